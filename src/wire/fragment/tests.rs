use proptest::prelude::*;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

use super::*;

fn v4(options: &[u8], data: &[u8], flags: u16) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let header = 20 + options.len();
    let mut packet =
        vec![0x40 | (header / 4) as u8, 0, 0, 0, 0xab, 0xcd, 0, 0, 63, 17, 0, 0, 10, 0, 2, 2, 10, 0, 2, 100];
    packet[6..8].copy_from_slice(&flags.to_be_bytes());
    packet.extend(options);
    packet.extend(data);
    let length = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    let sum = !checksum::data(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn v6(next: u8, data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0x12, 0x34, 0x56, 0, 0, next, 63];
    packet[4..6].copy_from_slice(&(data.len() as u16).to_be_bytes());
    packet.extend([0xfd; 16]);
    packet.extend([0xfe; 16]);
    packet.extend(data);
    packet
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn collect(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let mut scratch = vec![0xee; mtu];
    let mut fragments = Vec::new();
    let count = split(packet, mtu, 0x1234_5678, &mut |f| fragments.push(f.to_vec()), &mut scratch);
    assert_eq!(count, fragments.len());
    fragments
}

/// Data put together from IPv4 fragments, with every header field checked on the way.
fn join_v4(fragments: &[Vec<u8>], mtu: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for (i, fragment) in fragments.iter().enumerate() {
        assert!(fragment.len() <= mtu);
        let ip = Ipv4Packet::new_checked(&fragment[..]).expect("IPv4");
        assert!(ip.verify_checksum(), "header checksum of fragment {i}");
        assert_eq!(usize::from(ip.total_len()), fragment.len());
        assert_eq!(usize::from(ip.frag_offset()), data.len());
        assert_eq!(ip.more_frags(), i + 1 < fragments.len());
        assert_eq!(ip.ident(), 0x5678);
        assert_eq!(ip.hop_limit(), 63);
        data.extend(ip.payload());
    }
    data
}

#[test]
fn a_packet_that_fits_stays_as_it_is() {
    let packet = v4(&[], &pattern(1480), 0x4000);
    assert_eq!(collect(&packet, 1500), [&packet[..]]);
    let packet = v6(17, &pattern(1460));
    assert_eq!(collect(&packet, 1500), [&packet[..]]);
}

#[test]
fn ethernet_padding_is_not_data() {
    let packet = v4(&[], &pattern(3), 0);
    let mut padded = packet.clone();
    padded.extend([0; 40]);
    assert_eq!(collect(&padded, 1500), [packet]);
}

#[test]
fn ipv4_of_every_awkward_size() {
    for size in [1481, 1482, 1487, 1488, 1489, 2960, 2961, 4000, 9000, 65_515] {
        for mtu in [68, 576, 1499, 1500, 9000] {
            let data = pattern(size);
            let fragments = collect(&v4(&[], &data, 0), mtu);
            if size + 20 <= mtu {
                assert_eq!(fragments.len(), 1, "size {size} mtu {mtu}");
                continue;
            }
            assert_eq!(join_v4(&fragments, mtu), data, "size {size} mtu {mtu}");
        }
    }
}

#[test]
fn ipv4_options_are_repeated_only_with_the_copied_flag() {
    // Record route (7, not copied), no-operation, stream id (136, copied, 4 bytes).
    let options = [7, 7, 4, 0, 0, 0, 0, 1, 136, 4, 0x11, 0x22];
    let data = pattern(200);
    let fragments = collect(&v4(&options, &data, 0), 100);
    assert_eq!(join_v4(&fragments, 100), data);
    assert_eq!(fragments[0][20..32], options);
    for later in &fragments[1..] {
        assert_eq!(later[0] & 0x0f, 6, "24 bytes of header");
        assert_eq!(later[20..24], [136, 4, 0x11, 0x22]);
    }
}

#[test]
fn ipv4_option_longer_than_the_header_is_refused() {
    for options in [[136, 5, 0, 0], [136, 0, 0, 0], [136, 1, 0, 0], [1, 1, 1, 136]] {
        assert!(collect(&v4(&options, &pattern(200), 0), 100).is_empty(), "{options:?}");
    }
}

#[test]
fn dont_fragment_is_honoured() {
    assert!(collect(&v4(&[], &pattern(1481), 0x4000), 1500).is_empty());
}

#[test]
fn an_ipv4_fragment_is_split_further() {
    // Offset 8 units, more to come, own identification.
    let packet = v4(&[], &pattern(1600), 0x2000 | 8);
    let fragments = collect(&packet, 1500);
    let seen: Vec<_> = fragments
        .iter()
        .map(|f| {
            let ip = Ipv4Packet::new_checked(&f[..]).expect("IPv4");
            assert!(ip.verify_checksum());
            (ip.frag_offset(), ip.more_frags(), ip.ident(), ip.payload().len())
        })
        .collect();
    assert_eq!(seen, [(64, true, 0xabcd, 1480), (1544, true, 0xabcd, 120)]);
}

#[test]
fn an_ipv4_fragment_past_the_end_is_refused() {
    assert!(collect(&v4(&[], &pattern(1600), 0x1fff), 1500).is_empty());
}

#[test]
fn ipv6_of_every_awkward_size() {
    for size in [1461, 1462, 1463, 1464, 2904, 2905, 9000, 65_535] {
        for mtu in [1280, 1499, 1500, 9000] {
            let data = pattern(size);
            let fragments = collect(&v6(17, &data), mtu);
            if size + 40 <= mtu {
                assert_eq!(fragments.len(), 1);
                continue;
            }
            let mut joined: Vec<u8> = Vec::new();
            for (i, fragment) in fragments.iter().enumerate() {
                assert!(fragment.len() <= mtu);
                let ip = Ipv6Packet::new_checked(&fragment[..]).expect("IPv6");
                assert_eq!(ip.total_len(), fragment.len());
                assert_eq!((u8::from(ip.next_header()), ip.hop_limit(), ip.flow_label()), (44, 63, 0x23456));
                assert_eq!(ip.payload()[0], 17);
                let offset_more = u16::from_be_bytes([ip.payload()[2], ip.payload()[3]]);
                assert_eq!(usize::from(offset_more & 0xfff8), joined.len(), "size {size} mtu {mtu}");
                assert_eq!(offset_more & 1 == 1, i + 1 < fragments.len());
                assert_eq!(ip.payload()[4..8], [0x12, 0x34, 0x56, 0x78]);
                joined.extend(&ip.payload()[8..]);
            }
            assert_eq!(joined, data, "size {size} mtu {mtu}");
        }
    }
}

#[test]
fn ipv6_repeats_the_per_fragment_headers() {
    let mut data = vec![17, 0, 1, 4, 0, 0, 0, 0]; // hop-by-hop
    data.extend(pattern(2000));
    let fragments = collect(&v6(0, &data), 1280);
    for fragment in &fragments {
        assert_eq!(fragment[6], 0);
        assert_eq!(fragment[40], 44, "hop-by-hop names the fragment header");
        assert_eq!(fragment[41..48], data[1..8]);
        assert_eq!(fragment[48], 17);
    }
    let joined: Vec<u8> = fragments.iter().flat_map(|f| f[56..].to_vec()).collect();
    assert_eq!(joined, pattern(2000));
}

#[test]
fn an_ipv6_fragment_is_not_split() {
    let mut data = vec![17, 0, 0, 1, 0, 0, 0, 1];
    data.extend(pattern(2000));
    assert!(collect(&v6(44, &data), 1280).is_empty());
}

#[test]
fn an_mtu_without_room_for_data_is_refused() {
    assert!(collect(&v4(&[], &pattern(100), 0), 27).is_empty());
    assert_eq!(collect(&v4(&[], &pattern(100), 0), 28).len(), 13);
    assert!(collect(&v6(17, &pattern(100)), 55).is_empty());
    assert_eq!(collect(&v6(17, &pattern(100)), 56).len(), 13);
}

#[test]
fn a_short_scratch_emits_nothing() {
    let packet = v4(&[], &pattern(3000), 0);
    let mut scratch = [0; 1499];
    assert_eq!(split(&packet, 1500, 1, &mut |_| panic!("emitted"), &mut scratch), 0);
    let packet = v4(&[], &pattern(100), 0);
    assert_eq!(split(&packet, 1500, 1, &mut |_| panic!("emitted"), &mut scratch[..119]), 0);
}

#[test]
fn malformed_packets_are_refused() {
    for packet in [&[][..], &[0x45], &[0x45; 19], &[0x65; 39], &[0x15; 60]] {
        assert!(collect(packet, 1500).is_empty());
    }
    let mut lies = v4(&[], &pattern(10), 0);
    lies[3] = 31;
    assert!(collect(&lies, 1500).is_empty(), "total length beyond the bytes");
    lies[3] = 19;
    assert!(collect(&lies, 1500).is_empty(), "total length inside the header");
    let mut lies = v6(17, &pattern(10));
    lies[5] = 11;
    assert!(collect(&lies, 1500).is_empty(), "payload length beyond the bytes");
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600), mtu in 0usize..400, version in 0u8..3, scratch in 0usize..700) {
        let mut packet = bytes;
        let length = packet.len() as u16;
        if packet.len() > 6 && version < 2 {
            if version == 0 {
                packet[0] = 0x40 | (packet[0] & 0x0f);
                packet[2..4].copy_from_slice(&length.to_be_bytes());
            } else {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&length.saturating_sub(40).to_be_bytes());
            }
        }
        let mut scratch = vec![0; scratch];
        let mut total = 0;
        split(&packet, mtu, 7, &mut |f| { assert!(f.len() <= mtu); total += f.len(); }, &mut scratch);
        prop_assert!(total < 70 * packet.len() + 100);
    }

    #[test]
    fn joins_back(data in proptest::collection::vec(any::<u8>(), 0..5000), mtu in 28usize..2000) {
        let fragments = collect(&v4(&[], &data, 0), mtu);
        if data.len() + 20 > mtu {
            prop_assert_eq!(join_v4(&fragments, mtu), data);
        }
    }
}
