use proptest::prelude::*;
use smoltcp::wire::Ipv4Packet;

use super::*;
use crate::wire::fragment::split;

fn at(seconds: i64) -> Instant {
    Instant::from_secs(seconds)
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8 ^ seed).collect()
}

fn v4(ident: u16, data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 63, 17, 0, 0, 10, 0, 2, 100, 192, 0, 2, 7];
    packet.extend(data);
    let length = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet[4..6].copy_from_slice(&ident.to_be_bytes());
    let sum = !checksum::data(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn v6(data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0x12, 0x34, 0x56, 0, 0, 17, 63];
    packet[4..6].copy_from_slice(&(data.len() as u16).to_be_bytes());
    packet.extend([0xfd; 16]);
    packet.extend([0xfe; 16]);
    packet.extend(data);
    packet
}

/// One IPv4 fragment by hand. `offset` in bytes.
fn piece(ident: u16, offset: usize, more: bool, data: &[u8]) -> Vec<u8> {
    let mut packet = v4(ident, data);
    let flags = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
    packet[6..8].copy_from_slice(&flags.to_be_bytes());
    packet[10..12].fill(0);
    let sum = !checksum::data(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// One IPv6 fragment by hand.
fn piece6(ident: u32, offset: usize, more: bool, data: &[u8]) -> Vec<u8> {
    let mut body = vec![17, 0];
    body.extend((offset as u16 | u16::from(more)).to_be_bytes());
    body.extend(ident.to_be_bytes());
    body.extend(data);
    let mut packet = v6(&body);
    packet[6] = 44;
    packet
}

fn fragments(packet: &[u8], mtu: usize, ident: u32) -> Vec<Vec<u8>> {
    let mut scratch = vec![0; mtu];
    let mut all = Vec::new();
    split(packet, mtu, ident, &mut |f| all.push(f.to_vec()), &mut scratch);
    all
}

fn complete(outcome: &Outcome<'_>) -> Vec<u8> {
    match outcome {
        Outcome::Complete(packet) => packet.to_vec(),
        other => panic!("not complete: {other:?}"),
    }
}

const DROP: Outcome<'static> = Outcome::Drop(DropReason::Fragment);

#[test]
fn whole_packets_pass_by() {
    let mut r = Reassembler::new(Limits::default());
    assert_eq!(r.handle(at(0), &v4(1, b"hello")), Outcome::NotAFragment);
    assert_eq!(r.handle(at(0), &v6(b"hello")), Outcome::NotAFragment);
    let mut packet = v4(1, b"hello");
    packet[6] = 0x40;
    assert_eq!(r.handle(at(0), &packet), Outcome::NotAFragment, "don't fragment is no fragment");
    assert_eq!(r.next_timeout(), None);
    assert_eq!(r.held(), (0, 0));
}

#[test]
fn in_order_reversed_and_interleaved() {
    for size in [1481, 2000, 9000, 65_507] {
        let original = [v4(7, &pattern(size, 0)), v6(&pattern(size, 1))];
        for packet in &original {
            let mut parts = fragments(packet, 1500, 7);
            assert!(parts.len() > 1);
            for reversed in [false, true] {
                let mut r = Reassembler::new(Limits::default());
                if reversed {
                    parts.reverse();
                }
                let (last, rest) = parts.split_last().expect("several");
                for part in rest {
                    assert_eq!(r.handle(at(0), part), Outcome::Pending, "size {size}");
                }
                assert_eq!(complete(&r.handle(at(0), last)), *packet, "size {size} reversed {reversed}");
                assert_eq!(r.held(), (0, 0));
            }
        }
        let a = fragments(&original[0], 1500, 1);
        let b = fragments(&original[1], 1500, 1);
        let mut r = Reassembler::new(Limits::default());
        let mut got = Vec::new();
        for i in 0..a.len().max(b.len()) {
            for part in [a.get(i), b.get(i)].into_iter().flatten() {
                if let Outcome::Complete(packet) = r.handle(at(0), part) {
                    got.push(packet.to_vec());
                }
            }
        }
        assert_eq!(got.len(), 2);
        let mut expected = original[0].clone();
        expected[4..6].copy_from_slice(&[0, 1]);
        expected[10..12].fill(0);
        let sum = !checksum::data(&expected[..20]);
        expected[10..12].copy_from_slice(&sum.to_be_bytes());
        assert!(got.contains(&expected) && got.contains(&original[1]));
    }
}

#[test]
fn the_header_is_set_right() {
    let mut r = Reassembler::new(Limits::default());
    r.handle(at(0), &piece(9, 16, false, &[2; 5]));
    let whole = complete(&r.handle(at(0), &piece(9, 0, true, &[1; 16])));
    let ip = Ipv4Packet::new_checked(&whole[..]).expect("IPv4");
    assert!(ip.verify_checksum());
    assert_eq!((ip.total_len(), ip.more_frags(), ip.frag_offset(), ip.ident()), (41, false, 0, 9));
    assert_eq!(&ip.payload()[14..], [1, 1, 2, 2, 2, 2, 2]);
}

#[test]
fn options_of_the_first_fragment_stay() {
    let mut first = piece(9, 0, true, &[1; 16]);
    first.splice(20..20, [7, 3, 4, 0]);
    first[0] = 0x46;
    first[3] += 4;
    let mut r = Reassembler::new(Limits::default());
    assert_eq!(r.handle(at(0), &piece(9, 16, false, &[2; 8])), Outcome::Pending);
    let whole = complete(&r.handle(at(0), &first));
    assert_eq!(whole.len(), 48);
    assert_eq!(whole[20..24], [7, 3, 4, 0]);
    assert!(Ipv4Packet::new_checked(&whole[..]).expect("IPv4").verify_checksum());
}

#[test]
fn ipv6_extension_headers_before_and_behind() {
    // Hop-by-hop names the fragment header; destination options are in the fragmentable part.
    let build = |offset: u16, more: bool, data: &[u8]| {
        let mut body = vec![44, 0, 1, 4, 0, 0, 0, 0, 60, 0];
        body.extend((offset | u16::from(more)).to_be_bytes());
        body.extend([0, 0, 0, 5]);
        body.extend(data);
        let mut packet = v6(&body);
        packet[6] = 0;
        packet
    };
    let mut r = Reassembler::new(Limits::default());
    assert_eq!(r.handle(at(0), &build(16, false, &[3; 4])), Outcome::Pending);
    let first = [17, 0, 1, 4, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9];
    let whole = complete(&r.handle(at(0), &build(0, true, &first)));
    let mut body = vec![60, 0, 1, 4, 0, 0, 0, 0];
    body.extend(first);
    body.extend([3; 4]);
    let mut expected = v6(&body);
    expected[6] = 0;
    assert_eq!(whole, expected);
}

#[test]
fn a_header_chain_longer_than_the_headroom_is_dropped() {
    let mut body = vec![44, 14, 1, 116];
    body.extend([0; 116]);
    body.extend([17, 0, 0, 1, 0, 0, 0, 5]);
    body.extend([0; 8]);
    let mut packet = v6(&body);
    packet[6] = 0;
    assert_eq!(Reassembler::new(Limits::default()).handle(at(0), &packet), DROP);
}

#[test]
fn an_atomic_fragment_stands_alone() {
    let mut r = Reassembler::new(Limits::default());
    assert_eq!(r.handle(at(0), &piece6(5, 0, true, &[1; 8])), Outcome::Pending);
    // RFC 6946: the same number, but nothing to do with the other.
    assert_eq!(complete(&r.handle(at(0), &piece6(5, 0, false, b"atom"))), v6(b"atom"));
    assert_eq!(complete(&r.handle(at(0), &piece6(5, 0, false, b""))), v6(b""));
    let mut expected = vec![1; 8];
    expected.push(2);
    assert_eq!(complete(&r.handle(at(0), &piece6(5, 8, false, &[2]))), v6(&expected));
}

#[test]
fn keys_tell_datagrams_apart() {
    let mut r = Reassembler::new(Limits::default());
    let first = piece(5, 0, true, &[1; 8]);
    assert_eq!(r.handle(at(0), &first), Outcome::Pending);
    let last = piece(5, 8, false, &[2; 8]);
    // Another source, destination, protocol, number: all other datagrams.
    for (byte, value) in [(12, 11), (16, 193), (9, 1), (5, 6)] {
        let mut other = last.clone();
        other[byte] = value;
        assert_eq!(r.handle(at(0), &other), Outcome::Pending, "byte {byte}");
    }
    assert_eq!(r.held().0, 5);
    assert_eq!(complete(&r.handle(at(0), &last)).len(), 36);
}

#[test]
fn exact_duplicates_do_no_harm() {
    let mut r = Reassembler::new(Limits::default());
    let parts = fragments(&v4(5, &pattern(5000, 3)), 1500, 5);
    for part in &parts[..3] {
        assert_eq!(r.handle(at(0), part), Outcome::Pending);
        assert_eq!(r.handle(at(0), part), DROP, "duplicate");
    }
    assert_eq!(r.handle(at(0), &parts[0]), DROP);
    assert_eq!(complete(&r.handle(at(0), &parts[3])), v4(5, &pattern(5000, 3)));
    assert_eq!(r.stats(), Stats::default());
}

#[test]
fn overlap_poisons_the_datagram_until_its_time_is_over() {
    let overlaps: [(usize, &[u8]); 5] = [(16, &[9; 16]), (8, &[9; 16]), (24, &[9; 16]), (0, &[9; 64]), (16, &[9; 8])];
    for (offset, data) in overlaps {
        let mut r = Reassembler::new(Limits::default());
        assert_eq!(r.handle(at(0), &piece(5, 16, true, &[1; 16])), Outcome::Pending);
        assert_eq!(r.handle(at(1), &piece(5, offset, true, data)), DROP, "offset {offset}");
        assert_eq!((r.stats().poisoned, r.held()), (1, (1, 0)));
        // What would have made it whole does not.
        assert_eq!(r.handle(at(2), &piece(5, 0, true, &[1; 16])), DROP);
        assert_eq!(r.handle(at(2), &piece(5, 32, false, &[1; 16])), DROP);
        assert_eq!(r.handle_timeout(at(30), &mut |_| panic!("told of a poisoned datagram")), 0);
        assert_eq!(r.held(), (0, 0));
        // The number is free again.
        assert_eq!(r.handle(at(31), &piece(5, 0, true, &[1; 16])), Outcome::Pending);
        assert_eq!(complete(&r.handle(at(31), &piece(5, 16, false, &[1; 16]))).len(), 52);
    }
}

#[test]
fn contradicting_ends_poison() {
    let cases: [&[(usize, bool, usize)]; 4] = [
        // (offset, more, length): two ends; data behind the end; an end before data; an end inside data.
        &[(16, false, 8), (32, false, 8)],
        &[(16, false, 8), (24, true, 8)],
        &[(32, true, 8), (16, false, 8)],
        &[(16, true, 16), (16, false, 8)],
    ];
    for case in cases {
        let mut r = Reassembler::new(Limits::default());
        let (last, rest) = case.split_last().expect("several");
        for &(offset, more, length) in rest {
            assert_eq!(r.handle(at(0), &piece(5, offset, more, &vec![1; length])), Outcome::Pending);
        }
        assert_eq!(r.handle(at(0), &piece(5, last.0, last.1, &vec![1; last.2])), DROP, "{case:?}");
        assert_eq!(r.stats().poisoned, 1, "{case:?}");
    }
}

#[test]
fn malformed_fragments_are_refused_at_once() {
    let mut r = Reassembler::new(Limits::default());
    let malformed = Outcome::Drop(DropReason::Malformed);
    assert_eq!(r.handle(at(0), &piece(1, 0, true, &[0; 7])), malformed, "not a multiple of eight");
    assert_eq!(r.handle(at(0), &piece(1, 8, true, &[])), malformed, "empty");
    assert_eq!(r.handle(at(0), &piece(1, 8, false, &[])), malformed, "empty");
    assert_eq!(r.handle(at(0), &piece(1, 65_528, false, &[0; 8])), malformed, "past the end");
    assert_eq!(r.handle(at(0), &piece6(1, 65_528, false, &[0; 8])), malformed, "past the end");
    assert_eq!(r.handle(at(0), &piece6(1, 0, true, &[0; 7])), malformed, "not a multiple of eight");
    let truncated = Outcome::Drop(DropReason::Truncated);
    assert_eq!(r.handle(at(0), &[]), truncated);
    assert_eq!(r.handle(at(0), &[0x45; 10]), truncated);
    assert_eq!(r.handle(at(0), &[0x60; 39]), truncated);
    assert_eq!(r.handle(at(0), &[0x10; 60]), malformed, "version");
    let mut short = piece(1, 0, true, &[0; 16]);
    short.pop();
    assert_eq!(r.handle(at(0), &short), truncated);
    assert_eq!(r.held(), (0, 0));
}

#[test]
fn longer_than_ip_can_say_is_too_big() {
    // 65535 bytes of data fit the offsets, but not the length field beside a header.
    let mut r = Reassembler::new(Limits::default());
    assert_eq!(r.handle(at(0), &piece(1, 65_528, false, &[0; 7])), Outcome::Pending);
    for offset in (0..65_528).step_by(32_760) {
        let more = piece(1, offset, true, &vec![0; 32_760.min(65_528 - offset)]);
        let outcome = r.handle(at(0), &more);
        if offset + 32_760 < 65_528 {
            assert_eq!(outcome, Outcome::Pending);
        } else {
            assert_eq!(outcome, Outcome::Drop(DropReason::TooBig));
        }
    }
    assert_eq!(r.held(), (0, 0));
}

#[test]
fn time_runs_out() {
    let mut r = Reassembler::new(Limits::default());
    assert_eq!(r.handle(at(100), &piece(1, 0, true, &[1; 16])), Outcome::Pending);
    assert_eq!(r.handle(at(110), &piece(2, 16, false, &[1; 16])), Outcome::Pending);
    assert_eq!(r.handle(at(105), &piece6(3, 0, true, &[1; 16])), Outcome::Pending);
    assert_eq!(r.handle(at(120), &piece(1, 32, true, &[1; 16])), Outcome::Pending, "does not extend its life");
    assert_eq!(r.next_timeout(), Some(at(130)));
    assert_eq!(r.handle_timeout(at(129), &mut |_| panic!("early")), 0);
    let mut told = Vec::new();
    assert_eq!(r.handle_timeout(at(130), &mut |p| told.push(p.to_vec())), 1);
    assert_eq!(told, [piece(1, 0, true, &[1; 16])], "the first fragment as it came");
    assert_eq!(r.next_timeout(), Some(at(140)));
    assert_eq!(r.handle_timeout(at(140), &mut |_| panic!("no first fragment, nobody is told")), 1);
    assert_eq!(r.next_timeout(), Some(at(165)));
    told.clear();
    assert_eq!(r.handle_timeout(at(165), &mut |p| told.push(p.to_vec())), 1);
    assert_eq!(told, [piece6(3, 0, true, &[1; 16])]);
    assert_eq!((r.stats().timed_out, r.held()), (3, (0, 0)));
}

#[test]
fn buffers_are_given_back_when_idle() {
    let mut r = Reassembler::new(Limits::default());
    r.handle(at(0), &piece(1, 0, true, &[1; 16]));
    complete(&r.handle(at(0), &piece(1, 16, false, &[1; 16])));
    assert_eq!(r.next_timeout(), Some(at(10)));
    // A packet that is none does not keep it awake.
    r.handle(at(5), &v4(1, b"x"));
    assert_eq!(r.next_timeout(), Some(at(10)));
    assert_eq!((r.spare.len(), r.done.is_some()), (1, false));
    assert_eq!(r.handle_timeout(at(10), &mut |_| panic!("nothing expired")), 0);
    assert_eq!((r.next_timeout(), r.spare.capacity(), r.done.is_some()), (None, 0, false));
}

#[test]
fn a_buffer_is_recycled_and_shows_nothing_of_its_past() {
    let mut r = Reassembler::new(Limits::default());
    let big = fragments(&v4(1, &pattern(60_000, 9)), 1500, 1);
    for fragment in &big {
        r.handle(at(0), fragment);
    }
    r.handle(at(0), &v4(1, b"x"));
    let capacity = r.spare[0].buffer.capacity();
    assert_eq!(r.handle(at(0), &piece(2, 800, false, &[2; 8])), Outcome::Pending);
    assert_eq!((r.spare.len(), r.live[0].buffer.capacity()), (0, capacity));
    assert!(r.live[0].buffer[HEADROOM..HEADROOM + 800].iter().all(|&b| b == 0));
}

#[test]
fn the_oldest_goes_when_there_are_too_many() {
    let mut r = Reassembler::new(Limits { datagrams: 3, ..Limits::default() });
    for ident in 0..4 {
        assert_eq!(r.handle(at(0), &piece(ident, 0, true, &[1; 8])), Outcome::Pending);
    }
    assert_eq!((r.held(), r.stats().evicted), ((3, 24), 1));
    assert_eq!(complete(&r.handle(at(0), &piece(1, 8, false, &[1; 8]))).len(), 36, "the second is still there");
    assert_eq!(r.handle(at(0), &piece(0, 8, false, &[1; 8])), Outcome::Pending, "the first is not");
}

#[test]
fn the_oldest_go_when_there_are_too_many_bytes() {
    let mut r = Reassembler::new(Limits { bytes: 1000, ..Limits::default() });
    for ident in 0..4 {
        assert_eq!(r.handle(at(0), &piece(ident, 0, true, &[1; 240])), Outcome::Pending);
    }
    assert_eq!(r.held(), (4, 960));
    // A gap counts like data: it is there in the buffer.
    assert_eq!(r.handle(at(0), &piece(3, 480, true, &[1; 240])), Outcome::Pending);
    assert_eq!((r.held(), r.stats().evicted), ((2, 960), 2));
    assert_eq!(r.handle(at(0), &piece(3, 800, true, &[1; 240])), DROP, "too large alone");
    assert_eq!(r.held(), (0, 0));
    assert_eq!(r.handle(at(0), &piece(9, 1000, true, &[1; 8])), DROP, "not even begun");
    assert_eq!(r.held(), (0, 0));
}

#[test]
fn too_many_pieces_are_an_attack() {
    let mut r = Reassembler::new(Limits::default());
    for i in 0..MAX_PIECES {
        assert_eq!(r.handle(at(0), &piece(1, i * 16, true, &[1; 8])), Outcome::Pending);
    }
    assert_eq!(r.handle(at(0), &piece(1, MAX_PIECES * 16, true, &[1; 8])), DROP);
    assert_eq!(r.stats().poisoned, 1);
}

#[test]
fn congestion_marks_survive() {
    for (a, b, expected) in
        [(0, 0, Some(0)), (2, 2, Some(2)), (2, 3, Some(3)), (3, 1, Some(3)), (3, 3, Some(3)), (0, 3, None)]
    {
        let (mut first, mut last) = (piece(1, 0, true, &[1; 8]), piece(1, 8, false, &[1; 8]));
        first[1] = 0x48 | a;
        last[1] = b;
        let mut r = Reassembler::new(Limits::default());
        r.handle(at(0), &first);
        match (r.handle(at(0), &last), expected) {
            (Outcome::Complete(p), Some(ecn)) => {
                assert_eq!(p[1], 0x48 | ecn, "{a} and {b}");
                assert!(Ipv4Packet::new_checked(p).expect("IPv4").verify_checksum());
            }
            (outcome, expected) => assert_eq!((outcome, expected), (DROP, None), "{a} and {b}"),
        }
        let (mut first, mut last) = (piece6(1, 0, true, &[1; 8]), piece6(1, 8, false, &[1; 8]));
        first[1] = (a << 4) | 2;
        last[1] = b << 4;
        r.handle(at(0), &first);
        match (r.handle(at(0), &last), expected) {
            (Outcome::Complete(p), Some(ecn)) => assert_eq!(p[1], (ecn << 4) | 2, "{a} and {b}"),
            (outcome, expected) => assert_eq!((outcome, expected), (DROP, None), "{a} and {b}"),
        }
    }
}

proptest! {
    #[test]
    fn any_order_with_duplicates(
        sizes in proptest::collection::vec((1usize..6000, any::<bool>()), 1..6),
        mtu in 600usize..2000,
        order in proptest::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        // Every fragment of every datagram, some twice, in an order drawn at random.
        let packets: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, &(size, six))| {
            let data = pattern(size.max(mtu), i as u8);
            if six { v6(&data) } else { v4(i as u16, &data) }
        }).collect();
        let mut parts: Vec<Vec<u8>> = packets.iter().enumerate().flat_map(|(i, p)| fragments(p, mtu, i as u32)).collect();
        // The first ones begin their datagrams and never complete them.
        let firsts: Vec<Vec<u8>> = packets.iter().enumerate().map(|(i, p)| fragments(p, mtu, i as u32).swap_remove(0)).collect();
        let twice: Vec<Vec<u8>> = order.iter().take(5).map(|i| i.get(&firsts).clone()).collect();
        for (i, index) in order.iter().enumerate() {
            let n = parts.len();
            parts.swap(i % n, index.index(n));
        }
        let mut r = Reassembler::new(Limits::default());
        let mut got = Vec::new();
        for part in twice.iter().chain(&parts) {
            match r.handle(at(0), part) {
                Outcome::Complete(p) => got.push(p.to_vec()),
                Outcome::NotAFragment => prop_assert!(false, "a fragment taken for a packet"),
                Outcome::Pending | Outcome::Drop(_) => {}
            }
        }
        got.sort();
        let mut expected = packets;
        expected.sort();
        prop_assert_eq!(got, expected);
        // A duplicate that came after its datagram was whole began it anew.
        prop_assert!(r.held().0 <= twice.len());
        r.handle_timeout(at(60), &mut |_| {});
        prop_assert_eq!(r.held(), (0, 0));
    }

    #[test]
    fn any_bytes(
        packets in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..120), 0u8..3), 1..40),
        datagrams in 0usize..4,
        bytes in 0usize..3000,
    ) {
        let mut r = Reassembler::new(Limits { datagrams, bytes, ..Limits::default() });
        for (i, (mut packet, version)) in (0i64..).zip(packets) {
            let length = packet.len();
            if length >= 48 {
                match version {
                    // Few numbers, small offsets: so that they meet.
                    0 => {
                        packet[0] = 0x45;
                        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                        packet[4..6].copy_from_slice(&[0, length as u8 & 1]);
                        packet[6] &= 0x20;
                        packet[9..20].fill(1);
                    }
                    1 => {
                        packet[0] = 0x60;
                        packet[4..7].copy_from_slice(&[0, (length - 40) as u8, 44]);
                        packet[8..40].fill(1);
                        packet[42] = 0;
                        packet[44..48].fill(0);
                    }
                    _ => {}
                }
            }
            let now = at(i * 3);
            if let Outcome::Complete(p) = r.handle(now, &packet) {
                prop_assert!(p.len() >= 20);
            }
            let (count, held) = r.held();
            prop_assert!(count <= datagrams && held <= bytes);
            prop_assert_eq!(held, r.live.iter().map(Datagram::held).sum::<usize>());
            if i % 5 == 0 {
                r.handle_timeout(now, &mut |p| assert!(p.len() >= 20));
            }
        }
        r.handle_timeout(at(100_000), &mut |_| {});
        prop_assert_eq!((r.held(), r.next_timeout()), ((0, 0), None));
    }
}
