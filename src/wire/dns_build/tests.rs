use proptest::prelude::*;
use simple_dns::{CLASS, Name as SimpleName, Packet, PacketFlag, RCODE, ResourceRecord, rdata::RData, rdata::*};

use super::*;
use crate::wire::dns_message::{MIN_UDP, is_truncated};

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

fn question(text: &str, qtype: u16, edns: bool) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    // The letters of the question are kept.
    crate::wire::dns_name::append(&mut message, text);
    message.extend(qtype.to_be_bytes());
    message.extend([0, 1]);
    if edns {
        message.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    }
    message
}

fn data(kind: &str, value: &str) -> Data {
    Data::parse(kind, value).expect("a value")
}

#[test]
fn records_of_every_type() {
    for edns in [false, true] {
        let message = question("Www.Example", 255, edns);
        let query = Query::parse(&message).expect("a question");
        let mut builder = Builder::new(&query, Rcode::NoError, true);
        for (owner, kind, value) in [
            ("www.example", "CNAME", "a.example"),
            ("a.example", "A", "192.0.2.1"),
            ("a.example", "AAAA", "2001:db8::1"),
            ("a.example", "TXT", "\"one\" \"two\""),
            ("_x._tcp.example", "SRV", "1 2 3 a.example"),
            ("1.2.0.192.in-addr.arpa", "PTR", "b.a.example"),
        ] {
            assert!(builder.record(&name(owner), 60, &data(kind, value)));
        }
        let bytes = builder.finish(&query);
        let packet = Packet::parse(&bytes).expect("DNS");
        assert!(packet.has_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RESPONSE));
        assert_eq!((packet.rcode(), packet.opt().is_some()), (RCODE::NoError, edns));
        let got: Vec<(String, &RData<'_>)> = packet.answers.iter().map(|a| (a.name.to_string(), &a.rdata)).collect();
        assert_eq!(got.len(), 6);
        assert_eq!(got[0].0, "Www.Example", "in the letters of the question");
        let RData::CNAME(CNAME(target)) = got[0].1 else { panic!("{got:?}") };
        // Its tail is the question's, letters too.
        assert_eq!(target.to_string(), "a.Example");
        assert!(matches!(got[1].1, RData::A(a) if a.address == 0xc000_0201));
        assert!(matches!(got[2].1, RData::AAAA(a) if a.address == 0x2001_0db8 << 96 | 1));
        let RData::TXT(text) = got[3].1 else { panic!("{got:?}") };
        assert_eq!(
            text.clone().into_owned(),
            TXT::new().with_string("one").expect("text").with_string("two").expect("text")
        );
        let RData::SRV(srv) = got[4].1 else { panic!("{got:?}") };
        assert_eq!((srv.priority, srv.weight, srv.port, srv.target.to_string()), (1, 2, 3, "a.example".to_owned()));
        let RData::PTR(PTR(target)) = got[5].1 else { panic!("{got:?}") };
        assert_eq!(target.to_string(), "b.a.Example");
        assert!(packet.answers.iter().all(|a| a.ttl == 60 && a.class == CLASS::IN));
        // Header 12, question 17; CNAME 12 + 4; A 12 + 4; AAAA 12 + 16; TXT 12 + 8; SRV 20 + 17; PTR 34 + 4.
        let opt = if edns { 11 } else { 0 };
        assert_eq!(bytes.len(), 29 + 16 + 16 + 28 + 20 + 37 + 38 + opt, "names are pointed at, SRV's target is not");
    }
}

#[test]
fn what_does_not_fit_is_left_out_and_marked() {
    let message = question("a.example", 16, true);
    let query = Query::parse(&message).expect("a question");
    let mut builder = Builder::new(&query, Rcode::NoError, true);
    let text = Data::Txt(vec!["x".repeat(255); 8]);
    let fitting = (0..100).take_while(|_| builder.record(&name("a.example"), 1, &text)).count();
    assert_eq!(fitting, 31, "2060 bytes each");
    assert!(!builder.record(&name("a.example"), 1, &data("A", "192.0.2.1")), "nothing follows");
    let bytes = builder.finish(&query);
    assert!(is_truncated(&bytes) && bytes.len() <= 0xffff);
    assert_eq!(Packet::parse(&bytes).expect("DNS").answers.len(), 31);
    let short = query.fit(bytes, MIN_UDP);
    assert!(is_truncated(&short) && Packet::parse(&short).expect("DNS").answers.is_empty());
}

/// An answer to another question, made and compressed by simple-dns.
fn theirs() -> Vec<u8> {
    let mut packet = Packet::new_reply(7);
    let owner = || SimpleName::new_unchecked("web.far.example");
    let mut add = |rdata| packet.answers.push(ResourceRecord::new(owner(), CLASS::IN, 300, rdata));
    add(RData::CNAME(CNAME(SimpleName::new_unchecked("cdn.far.example"))));
    add(RData::A(A { address: 0xc000_0207 }));
    add(RData::MX(MX { preference: 5, exchange: SimpleName::new_unchecked("mail.far.example") }));
    let soa = SOA {
        mname: SimpleName::new_unchecked("ns.far.example"),
        rname: SimpleName::new_unchecked("root.far.example"),
        serial: 1,
        refresh: 2,
        retry: 3,
        expire: 4,
        minimum: 5,
    };
    let far = SimpleName::new_unchecked("far.example");
    packet.name_servers.push(ResourceRecord::new(far.clone(), CLASS::IN, 60, RData::SOA(soa)));
    packet.additional_records.push(ResourceRecord::new(far, CLASS::IN, 60, RData::A(A { address: 9 })));
    packet.questions.push(simple_dns::Question::new(
        owner(),
        simple_dns::QTYPE::TYPE(simple_dns::TYPE::A),
        simple_dns::QCLASS::CLASS(CLASS::IN),
        false,
    ));
    packet.build_bytes_vec_compressed().expect("valid")
}

#[test]
fn a_servers_answer_moves_here() {
    let message = question("alias.local", 1, true);
    let query = Query::parse(&message).expect("a question");
    let mut builder = Builder::new(&query, Rcode::NoError, false);
    assert!(builder.record(&name("alias.local"), 30, &data("CNAME", "web.far.example")));
    assert!(builder.append_answer(&theirs()));
    builder.set_rcode(Rcode::NxDomain);
    let bytes = builder.finish(&query);
    let packet = Packet::parse(&bytes).expect("DNS");
    assert_eq!((packet.id(), packet.rcode()), (0x1234, RCODE::NameError));
    assert!(!packet.has_flags(PacketFlag::AUTHORITATIVE_ANSWER));
    let owners: Vec<String> = packet.answers.iter().map(|a| a.name.to_string()).collect();
    assert_eq!(owners, ["alias.local", "web.far.example", "web.far.example", "web.far.example"]);
    assert_eq!(packet.answers[1].ttl, 300);
    let RData::CNAME(CNAME(target)) = &packet.answers[1].rdata else { panic!("{packet:?}") };
    assert_eq!(target.to_string(), "cdn.far.example");
    let RData::MX(mx) = &packet.answers[3].rdata else { panic!("{packet:?}") };
    assert_eq!((mx.preference, mx.exchange.to_string()), (5, "mail.far.example".to_owned()));
    assert_eq!(packet.name_servers.len(), 1);
    let RData::SOA(soa) = &packet.name_servers[0].rdata else { panic!("{packet:?}") };
    assert_eq!((soa.mname.to_string(), soa.rname.to_string()), ("ns.far.example".into(), "root.far.example".into()));
    assert_eq!((soa.serial, soa.minimum), (1, 5));
    assert!(packet.additional_records.is_empty() && packet.opt().is_some());
    assert_eq!(addresses(&bytes, 9), [std::net::IpAddr::from([192, 0, 2, 7])]);
    assert_eq!(addresses(&bytes, 0), Vec::<std::net::IpAddr>::new());
}

#[test]
fn a_servers_answer_that_breaks_off_leaves_nothing() {
    let message = question("alias.local", 1, false);
    let query = Query::parse(&message).expect("a question");
    let whole = theirs();
    let empty = Builder::new(&query, Rcode::NoError, false).finish(&query);
    for length in 0..whole.len() {
        let mut builder = Builder::new(&query, Rcode::NoError, false);
        // The additional section is not read: what breaks off there does not matter.
        if builder.append_answer(&whole[..length]) {
            assert!(length > whole.len() - 20, "length {length}");
        } else {
            assert_eq!(builder.finish(&query), empty, "length {length}");
        }
    }
    // Pointers that lead to themselves, forwards, or into the header.
    for pointer in [[0xc0, 33], [0xc0, 40], [0xc0, 2]] {
        let mut message = question("web.far.example", 1, false);
        message[2] = 0x80;
        message[7] = 1;
        assert_eq!(message.len(), 33);
        message.extend(pointer);
        message.extend([0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 1, 2, 3, 4]);
        let mut builder = Builder::new(&query, Rcode::NoError, false);
        assert!(!builder.append_answer(&message), "{pointer:?}");
        message[33..35].copy_from_slice(&[0xc0, 12]);
        assert!(builder.append_answer(&message));
    }
}

proptest! {
    #[test]
    fn any_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), counts in any::<(u8, u8)>(), flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let message = question("alias.local", 1, true);
        let query = Query::parse(&message).expect("a question");
        let mut shaped = bytes.clone();
        if shaped.len() >= HEADER {
            shaped[2..HEADER].copy_from_slice(&[0x80, 0, 0, 0, 0, counts.0 & 7, 0, counts.1 & 7, 0, 0]);
        }
        let mut changed = theirs();
        for (at, value) in &flips {
            let at = at.index(changed.len());
            changed[at] = *value;
        }
        for message in [bytes, shaped, changed] {
            let _ = addresses(&message, 16);
            let mut builder = Builder::new(&query, Rcode::NoError, false);
            builder.append_answer(&message);
            let answer = builder.finish(&query);
            prop_assert!(query.is_answered_by(&answer, query.id));
            // Whatever came out, it can be walked.
            let end = question_end(&answer).expect("a question");
            prop_assert!(records(&answer, end).expect("counters").all(|record| record.is_some()));
        }
    }

    #[test]
    fn records_read_back(names in proptest::collection::vec(proptest::collection::vec("[a-c]{1,3}", 1..5), 1..40), asked in "[a-cA-C]{1,3}(\\.[a-cA-C]{1,3}){0,3}") {
        let message = question(&asked, 5, false);
        let query = Query::parse(&message).expect("a question");
        let mut builder = Builder::new(&query, Rcode::NoError, true);
        let names: Vec<Name> = names.iter().map(|labels| name(&labels.join("."))).collect();
        for pair in names.windows(2) {
            prop_assert!(builder.record(&pair[0], 1, &Data::Cname(pair[1].clone())));
        }
        let bytes = builder.finish(&query);
        let mut at = records(&bytes, question_end(&bytes).expect("question")).expect("records");
        for pair in names.windows(2) {
            let record = at.next().flatten().expect("a record");
            let owner = Name::from_wire(&expand(&bytes, record.start).expect("a name").0);
            let target = Name::from_wire(&expand(&bytes, record.fixed + 10).expect("a name").0);
            prop_assert_eq!((owner.as_ref(), target.as_ref()), (Some(&pair[0]), Some(&pair[1])));
        }
        prop_assert!(at.next().is_none());
    }
}
