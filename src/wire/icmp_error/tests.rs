use proptest::prelude::*;
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, Ipv4Packet, Ipv6Packet};

use super::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x64);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

const ALL: [IcmpError; 10] = [
    IcmpError::NetUnreachable,
    IcmpError::HostUnreachable,
    IcmpError::ProtocolUnreachable,
    IcmpError::PortUnreachable,
    IcmpError::NetProhibited,
    IcmpError::HostProhibited,
    IcmpError::AdminProhibited,
    IcmpError::FragmentationNeeded { mtu: 1400 },
    IcmpError::HopLimitExceeded,
    IcmpError::ReassemblyTimeout,
];

fn v4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    let length = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet
}

fn v6(protocol: u8, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

fn emit4(kind: IcmpError, original: &[u8]) -> Option<Vec<u8>> {
    let mut buf = [0xee; 1500];
    let length = emit(&mut buf, kind, GATEWAY.into(), GUEST.into(), original)?;
    assert!(buf[length..].iter().all(|&b| b == 0xee), "wrote past the returned length");
    Some(buf[..length].to_vec())
}

fn emit6(kind: IcmpError, original: &[u8]) -> Option<Vec<u8>> {
    let mut buf = [0xee; 1500];
    let length = emit(&mut buf, kind, GATEWAY6.into(), GUEST6.into(), original)?;
    assert!(buf[length..].iter().all(|&b| b == 0xee), "wrote past the returned length");
    Some(buf[..length].to_vec())
}

#[test]
fn every_kind_for_ipv4_is_a_valid_packet_with_the_right_numbers() {
    let original = v4(17, GUEST, FAR, &[7; 100]);
    let expected = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 9), (3, 10), (3, 13), (3, 4), (11, 0), (11, 1)];
    for (kind, (message, code)) in ALL.into_iter().zip(expected) {
        let packet = emit4(kind, &original).expect("fits");
        let ip = Ipv4Packet::new_checked(&packet[..]).expect("IPv4");
        assert!(ip.verify_checksum(), "{kind:?}");
        assert_eq!((ip.src_addr(), ip.dst_addr()), (GATEWAY, GUEST));
        assert_eq!(usize::from(ip.total_len()), packet.len());
        assert_eq!((ip.dont_frag(), ip.dscp(), ip.hop_limit()), (true, 48, 64));
        let icmp = Icmpv4Packet::new_checked(ip.payload()).expect("ICMP");
        assert!(icmp.verify_checksum(), "{kind:?}");
        assert_eq!((icmp.msg_type(), icmp.msg_code()), (Icmpv4Message::from(message), code), "{kind:?}");
        assert_eq!(&ip.payload()[8..], original, "{kind:?} quotes the whole short packet");
    }
}

#[test]
fn every_kind_for_ipv6_is_a_valid_packet_with_the_right_numbers() {
    let original = v6(17, GUEST6, FAR6, &[7; 100]);
    let expected = [(1, 0), (1, 3), (4, 1), (1, 4), (1, 1), (1, 1), (1, 1), (2, 0), (3, 0), (3, 1)];
    for (kind, (message, code)) in ALL.into_iter().zip(expected) {
        let packet = emit6(kind, &original).expect("fits");
        let ip = Ipv6Packet::new_checked(&packet[..]).expect("IPv6");
        assert_eq!((ip.src_addr(), ip.dst_addr(), ip.hop_limit()), (GATEWAY6, GUEST6, 64));
        assert_eq!(ip.total_len(), packet.len());
        let icmp = Icmpv6Packet::new_checked(ip.payload()).expect("ICMPv6");
        assert!(icmp.verify_checksum(&GATEWAY6, &GUEST6), "{kind:?}");
        assert_eq!((icmp.msg_type(), icmp.msg_code()), (Icmpv6Message::from(message), code), "{kind:?}");
        assert_eq!(&ip.payload()[8..], original, "{kind:?} quotes the whole short packet");
    }
}

#[test]
fn mtu_is_told_within_what_the_family_allows() {
    let original = v4(17, GUEST, FAR, &[0; 8]);
    for (mtu, told) in [(1400, 1400), (0, 68), (67, 68), (65_535, 65_535), (u32::MAX, 65_535)] {
        let packet = emit4(IcmpError::FragmentationNeeded { mtu }, &original).expect("fits");
        assert_eq!(packet[24..28], u32::to_be_bytes(told), "mtu {mtu}");
    }
    let original = v6(17, GUEST6, FAR6, &[0; 8]);
    for (mtu, told) in [(1400, 1400), (0, 1280), (1279, 1280), (u32::MAX, u32::MAX)] {
        let packet = emit6(IcmpError::FragmentationNeeded { mtu }, &original).expect("fits");
        assert_eq!(packet[44..48], u32::to_be_bytes(told), "mtu {mtu}");
    }
}

#[test]
fn parameter_problem_points_at_the_byte_that_names_the_protocol() {
    let original = v6(132, GUEST6, FAR6, &[0; 8]);
    assert_eq!(emit6(IcmpError::ProtocolUnreachable, &original).expect("fits")[44..48], [0, 0, 0, 6]);
    let original = v6(60, GUEST6, FAR6, &[132, 0, 1, 4, 0, 0, 0, 0, 9, 9, 9, 9]);
    assert_eq!(emit6(IcmpError::ProtocolUnreachable, &original).expect("fits")[44..48], [0, 0, 0, 40]);
}

#[test]
fn quotes_as_much_as_the_standards_allow() {
    let packet = emit4(IcmpError::PortUnreachable, &v4(17, GUEST, FAR, &[7; 4000])).expect("fits");
    assert_eq!(packet.len(), 576);
    let packet = emit6(IcmpError::PortUnreachable, &v6(17, GUEST6, FAR6, &[7; 4000])).expect("fits");
    assert_eq!(packet.len(), 1280);
    assert!(Icmpv6Packet::new_checked(&packet[40..]).expect("ICMPv6").verify_checksum(&GATEWAY6, &GUEST6));
}

#[test]
fn padding_after_the_packet_is_not_quoted() {
    let mut original = v4(17, GUEST, FAR, &[7; 10]);
    let length = original.len();
    original.extend([0; 16]);
    assert_eq!(emit4(IcmpError::PortUnreachable, &original).expect("fits").len(), 28 + length);
    let mut original = v6(17, GUEST6, FAR6, &[7; 10]);
    let length = original.len();
    original.extend([0; 16]);
    assert_eq!(emit6(IcmpError::PortUnreachable, &original).expect("fits").len(), 48 + length);
}

#[test]
fn never_about_an_icmp_error() {
    for message in 0..=255u8 {
        let refused = matches!(message, 3 | 4 | 5 | 11 | 12);
        let original = v4(1, GUEST, FAR, &[message, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(emit4(IcmpError::HostUnreachable, &original).is_none(), refused, "type {message}");
        let refused = message < 128 || message == 137;
        let original = v6(58, GUEST6, FAR6, &[message, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(emit6(IcmpError::HostUnreachable, &original).is_none(), refused, "type {message}");
        // The same behind an extension header.
        let original = v6(60, GUEST6, FAR6, &[58, 0, 1, 4, 0, 0, 0, 0, message, 0, 0, 0]);
        assert_eq!(emit6(IcmpError::HostUnreachable, &original).is_none(), refused, "type {message}");
    }
    assert_eq!(emit4(IcmpError::HostUnreachable, &v4(1, GUEST, FAR, &[])), None, "type unknown");
    assert_eq!(emit6(IcmpError::HostUnreachable, &v6(58, GUEST6, FAR6, &[])), None, "type unknown");
}

#[test]
fn only_about_the_first_fragment() {
    let mut original = v4(17, GUEST, FAR, &[0; 16]);
    original[6] = 0x20;
    assert!(emit4(IcmpError::ReassemblyTimeout, &original).is_some());
    original[7] = 1;
    assert_eq!(emit4(IcmpError::ReassemblyTimeout, &original), None);
    let mut original = v6(44, GUEST6, FAR6, &[17, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(emit6(IcmpError::ReassemblyTimeout, &original).is_some());
    original[43] = 9;
    assert_eq!(emit6(IcmpError::ReassemblyTimeout, &original), None);
}

#[test]
fn only_between_single_hosts() {
    let no_hosts = [
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(0, 1, 2, 3),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(224, 0, 0, 251),
        Ipv4Addr::new(240, 0, 0, 1),
    ];
    for address in no_hosts {
        assert_eq!(emit4(IcmpError::PortUnreachable, &v4(17, address, FAR, &[0; 8])), None, "from {address}");
        assert_eq!(emit4(IcmpError::PortUnreachable, &v4(17, GUEST, address, &[0; 8])), None, "to {address}");
    }
    let mdns = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
    for address in [Ipv6Addr::UNSPECIFIED, mdns] {
        assert_eq!(emit6(IcmpError::PortUnreachable, &v6(17, address, FAR6, &[0; 8])), None, "from {address}");
    }
    let original = v6(17, GUEST6, mdns, &[0; 8]);
    assert_eq!(emit6(IcmpError::PortUnreachable, &original), None);
    assert!(emit6(IcmpError::FragmentationNeeded { mtu: 1280 }, &original).is_some(), "RFC 4443 2.4 (e.3)");
}

#[test]
fn families_must_agree() {
    let mut buf = [0; 1500];
    let four = v4(17, GUEST, FAR, &[0; 8]);
    let six = v6(17, GUEST6, FAR6, &[0; 8]);
    let kind = IcmpError::PortUnreachable;
    assert_eq!(emit(&mut buf, kind, GATEWAY.into(), GUEST6.into(), &four), None);
    assert_eq!(emit(&mut buf, kind, GATEWAY6.into(), GUEST.into(), &six), None);
    assert_eq!(emit(&mut buf, kind, GATEWAY.into(), GUEST.into(), &six), None);
    assert_eq!(emit(&mut buf, kind, GATEWAY6.into(), GUEST6.into(), &four), None);
}

#[test]
fn a_buffer_one_byte_too_short_is_refused() {
    let original = v4(17, GUEST, FAR, &[0; 30]);
    let mut buf = [0; 78];
    assert_eq!(emit(&mut buf[..77], IcmpError::PortUnreachable, GATEWAY.into(), GUEST.into(), &original), None);
    assert_eq!(emit(&mut buf, IcmpError::PortUnreachable, GATEWAY.into(), GUEST.into(), &original), Some(78));
}

#[test]
fn host_errors_come_back_as_they_were() {
    // What we would emit for a kind is what the host kernel reports for the same message.
    for kind in ALL {
        let (message, code, rest) = kind.v4();
        let info = u32::from_be_bytes(rest);
        assert_eq!(from_host_error(message, code, info, false), Some(kind), "IPv4 {message}/{code}");
        let (message, code, rest) = kind.v6(6);
        let info = u32::from_be_bytes(rest);
        let expected = match kind {
            IcmpError::NetProhibited | IcmpError::HostProhibited => IcmpError::AdminProhibited,
            other => other,
        };
        assert_eq!(from_host_error(message, code, info, true), Some(expected), "IPv6 {message}/{code}");
    }
    for (message, code) in [(4, 0), (5, 1), (12, 0), (0, 0), (8, 0), (3, 16)] {
        assert_eq!(from_host_error(message, code, 0, false), None, "IPv4 {message}/{code}");
    }
    for (message, code) in [(128, 0), (4, 0), (4, 2), (1, 7), (137, 0)] {
        assert_eq!(from_host_error(message, code, 0, true), None, "IPv6 {message}/{code}");
    }
}

proptest! {
    #[test]
    fn any_original(bytes in proptest::collection::vec(any::<u8>(), 0..1600), room in 0usize..1400, kind in 0usize..ALL.len(), version in 0u8..3) {
        let mut original = bytes;
        if let Some(first) = original.first_mut() {
            match version {
                0 => *first = 0x40 | (*first & 0x0f),
                1 => *first = 0x60 | (*first & 0x0f),
                _ => {}
            }
        }
        let mut buf = vec![0; room];
        if let Some(length) = emit(&mut buf, ALL[kind], GATEWAY.into(), GUEST.into(), &original) {
            prop_assert!(length <= room.min(MAX_LEN_V4));
            let ip = Ipv4Packet::new_checked(&buf[..length]).expect("IPv4");
            prop_assert!(ip.verify_checksum());
            prop_assert!(Icmpv4Packet::new_checked(ip.payload()).expect("ICMP").verify_checksum());
        }
        if let Some(length) = emit(&mut buf, ALL[kind], GATEWAY6.into(), GUEST6.into(), &original) {
            prop_assert!(length <= room.min(MAX_LEN_V6));
            let ip = Ipv6Packet::new_checked(&buf[..length]).expect("IPv6");
            prop_assert!(Icmpv6Packet::new_checked(ip.payload()).expect("ICMPv6").verify_checksum(&GATEWAY6, &GUEST6));
        }
    }
}
