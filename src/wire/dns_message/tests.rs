use proptest::prelude::*;
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::OPT, rdata::RData,
};

use super::*;

/// A question made by simple-dns.
fn query(name: &str, qtype: TYPE, edns: Option<u16>) -> Vec<u8> {
    let mut packet = Packet::new_query(0x1234);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new_unchecked(name);
    packet.questions.push(Question::new(name, QTYPE::TYPE(qtype), QCLASS::CLASS(CLASS::IN), false));
    if let Some(udp_packet_size) = edns {
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
    }
    packet.build_bytes_vec().expect("valid")
}

#[test]
fn a_question_is_understood() {
    let message = query("www.example.net", TYPE::AAAA, None);
    let q = Query::parse(&message).expect("valid");
    assert_eq!((q.id, q.qtype, q.qclass, q.edns, q.max_udp()), (0x1234, TYPE_AAAA, CLASS_IN, None, 512));
    assert_eq!(q.question, b"\x03www\x07example\x03net\x00\x00\x1c\x00\x01");
    for (size, max) in [(1232, 1232), (100, 512), (65_535, 65_535)] {
        let message = query("www.example.net", TYPE::A, Some(size));
        let q = Query::parse(&message).expect("valid");
        assert_eq!((q.edns, q.max_udp()), (Some(size), max));
    }
    let message = query("", TYPE::NS, None);
    assert_eq!(Query::parse(&message).expect("the root").question, [0, 0, 2, 0, 1]);
}

#[test]
fn what_is_no_question() {
    let good = query("a.example", TYPE::A, Some(1232));
    for length in 0..HEADER {
        assert_eq!(Query::parse(&good[..length]).err(), Some(QueryError::NoQuestion));
    }
    for length in HEADER..good.len() {
        assert_eq!(Query::parse(&good[..length]).err(), Some(QueryError::Malformed), "length {length}");
    }
    let changed = |at: usize, value: u8| {
        let mut bad = good.clone();
        bad[at] = value;
        Query::parse(&bad).err()
    };
    assert_eq!(changed(2, 0x80), Some(QueryError::NoQuestion), "an answer");
    assert_eq!(changed(2, 0x28), Some(QueryError::Operation(5)), "an update");
    assert_eq!(changed(5, 0), Some(QueryError::Malformed), "no question");
    assert_eq!(changed(5, 2), Some(QueryError::Malformed), "two questions");
    assert_eq!(changed(12, 0xc0), Some(QueryError::Malformed), "compressed");
    assert_eq!(changed(12, 64), Some(QueryError::Malformed), "label too long");
    assert_eq!(changed(7, 1), Some(QueryError::Malformed), "a record more than there is");
    let mut two = good.clone();
    two.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    two[11] = 2;
    assert_eq!(Query::parse(&two).err(), Some(QueryError::Malformed), "two OPT records");
    let mut long = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for _ in 0..64 {
        long.extend(b"\x03abc");
    }
    long.extend([0, 0, 1, 0, 1]);
    assert_eq!(Query::parse(&long).err(), Some(QueryError::Malformed), "257 bytes of name");
}

#[test]
fn names_under_a_label() {
    for (name, expected) in [
        ("localhost", true),
        ("LocalHost", true),
        ("a.b.localhost", true),
        ("localhost.example", false),
        ("notlocalhost", false),
        ("a.notlocalhost", false),
        ("", false),
    ] {
        let message = query(name, TYPE::A, None);
        assert_eq!(Query::parse(&message).expect("valid").is_under("localhost"), expected, "{name:?}");
    }
}

#[test]
fn answers_that_belong() {
    let message = query("www.example.net", TYPE::A, None);
    let q = Query::parse(&message).expect("valid");
    let mut answer = q.answer(Rcode::NoError);
    answer[..2].copy_from_slice(&[0xab, 0xcd]);
    assert!(q.is_answered_by(&answer, 0xabcd));
    assert!(!q.is_answered_by(&answer, 0xabce), "id");
    let changed = |at: usize, value: u8| {
        let mut other = answer.clone();
        other[at] = value;
        q.is_answered_by(&other, 0xabcd)
    };
    assert!(changed(13, b'W'), "case of a letter");
    assert!(!changed(13, b'v'), "name");
    assert!(!changed(2, 0), "a question");
    assert!(!changed(2, 0xa8), "another operation");
    assert!(!changed(5, 2), "two questions");
    assert!(!changed(answer.len() - 3, 28), "type");
    assert!(!changed(answer.len() - 1, 3), "class");
    assert!(!q.is_answered_by(&answer[..answer.len() - 1], 0xabcd), "cut");
    let bare = [0xab, 0xcd, 0x80, 0x05, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(q.is_answered_by(&bare, 0xabcd), "refused without a question");
    assert!(!q.is_answered_by(&[0xab, 0xcd, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0xabcd), "empty success");
}

#[test]
fn our_answers_parse() {
    for edns in [None, Some(4096)] {
        let message = query("www.example.net", TYPE::A, edns);
        let q = Query::parse(&message).expect("valid");
        let bytes = q.answer(Rcode::ServFail);
        let packet = Packet::parse(&bytes).expect("DNS");
        assert_eq!(
            (packet.id(), packet.rcode(), packet.opcode()),
            (0x1234, RCODE::ServerFailure, OPCODE::StandardQuery)
        );
        assert!(
            packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE)
        );
        assert_eq!(packet.questions.len(), 1);
        assert_eq!(packet.opt().map(|o| o.udp_packet_size), edns.map(|_| 1232));

        let both = ["127.0.0.1".parse().expect("address"), "::1".parse().expect("address")];
        let bytes = q.address_answer(&both, 3600);
        let packet = Packet::parse(&bytes).expect("DNS");
        assert_eq!(packet.answers.len(), 1);
        assert_eq!((packet.answers[0].name.to_string(), packet.answers[0].ttl), ("www.example.net".into(), 3600));
        let RData::A(a) = &packet.answers[0].rdata else { panic!("{:?}", packet.answers) };
        assert_eq!(a.address, 0x7f00_0001);
        assert_eq!(packet.opt().is_some(), edns.is_some());
    }
    let message = query("localhost", TYPE::MX, None);
    let bytes = Query::parse(&message).expect("valid").address_answer(&["127.0.0.1".parse().expect("address")], 1);
    let packet = Packet::parse(&bytes).expect("DNS");
    assert_eq!((packet.rcode(), packet.answers.len()), (RCODE::NoError, 0), "no such data");
}

#[test]
fn too_long_becomes_truncated() {
    for edns in [None, Some(1000)] {
        let message = query("www.example.net", TYPE::A, edns);
        let q = Query::parse(&message).expect("valid");
        let many: Vec<IpAddr> = (0..100).map(|i| IpAddr::from([10, 0, 0, i])).collect();
        let whole = q.address_answer(&many, 60);
        assert_eq!(q.fit(whole.clone(), whole.len()), whole);
        let short = q.fit(whole.clone(), whole.len() - 1);
        assert!(is_truncated(&short) && !is_truncated(&whole));
        let packet = Packet::parse(&short).expect("DNS");
        assert_eq!((packet.questions.len(), packet.answers.len(), packet.rcode()), (1, 0, RCODE::NoError));
        assert_eq!(packet.opt().is_some(), edns.is_some());
        assert!(q.is_answered_by(&short, 0x1234));
    }
}

#[test]
fn errors_about_garbage() {
    let mut message = query("a.example", TYPE::A, None);
    message[5] = 7;
    let answer = error_answer(&message, QueryError::Malformed).expect("answered");
    assert_eq!(answer, [0x12, 0x34, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
    let answer = error_answer(&message, QueryError::Operation(5)).expect("answered");
    assert_eq!(rcode(&answer), 4);
    assert_eq!(error_answer(&message, QueryError::NoQuestion), None);
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300), shape in 0u8..3, limit in 0usize..600) {
        let mut message = bytes;
        if shape > 0 && message.len() >= HEADER {
            message[2] &= 0x01;
            message[4..12].copy_from_slice(&[0, 1, 0, shape - 1, 0, 0, 0, 1]);
        }
        match Query::parse(&message) {
            Ok(q) => {
                prop_assert!(q.question.len() >= 5);
                for answer in [q.answer(Rcode::Refused), q.address_answer(&["::1".parse().expect("address")], 1)] {
                    prop_assert!(q.is_answered_by(&answer, q.id));
                    let short = q.fit(answer, limit);
                    prop_assert!(q.is_answered_by(&short, q.id));
                }
                let _ = (q.is_under("localhost"), q.max_udp(), q.with_id(7));
            }
            Err(error) => drop(error_answer(&message, error)),
        }
        let good = query("www.example.net", TYPE::A, Some(1232));
        let _ = Query::parse(&good).expect("valid").is_answered_by(&message, 0x1234);
    }
}
