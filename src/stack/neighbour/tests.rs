use proptest::prelude::*;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetFrame, Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscRepr};

use super::*;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 100];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("address")
}

fn neighbour() -> Neighbour {
    Neighbour {
        gateway_mac: Mac(GATEWAY_MAC),
        guest_mac: Mac(GUEST_MAC),
        v4: Some(PlanV4 {
            subnet: "10.0.2.0/24".parse().expect("subnet"),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            guest: Ipv4Addr::new(10, 0, 2, 100),
        }),
        v6: Some(PlanV6 {
            subnet: "fd00::/64".parse().expect("subnet"),
            gateway: v6("fd00::2"),
            gateway_link_local: v6("fe80::2"),
            dns: v6("fd00::3"),
            guest: v6("fd00::64"),
        }),
        slirp: false,
    }
}

fn arp(operation: u8, to: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend(GUEST_MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(GUEST_MAC);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

fn ask_arp(frame: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
    let mut out = [0; 100];
    Ok(neighbour().handle_arp(frame, &mut out)?.map(|n| out[..n].to_vec()))
}

#[test]
fn arp_for_each_address_of_the_subnet() {
    for last in 0..=255 {
        let target = Ipv4Addr::new(10, 0, 2, last);
        let answer = ask_arp(&arp(1, BROADCAST_MAC, Ipv4Addr::new(10, 0, 2, 100), target)).expect("valid");
        assert_eq!(answer.is_some(), matches!(last, 2 | 3), "{target}");
    }
}

#[test]
fn arp_answer_is_right() {
    let guest = Ipv4Addr::new(10, 0, 2, 100);
    let gateway = Ipv4Addr::new(10, 0, 2, 2);
    for to in [BROADCAST_MAC, GATEWAY_MAC] {
        let answer = ask_arp(&arp(1, to, guest, gateway)).expect("valid").expect("answered");
        let frame = EthernetFrame::new_checked(&answer[..]).expect("Ethernet");
        assert_eq!(frame.dst_addr().0, GUEST_MAC);
        assert_eq!(frame.src_addr().0, GATEWAY_MAC);
        let repr = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).expect("ARP")).expect("ARP");
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_hardware_addr,
            target_protocol_addr,
        } = repr
        else {
            panic!("{repr:?}")
        };
        assert_eq!(operation, ArpOperation::Reply);
        assert_eq!((source_hardware_addr.0, source_protocol_addr), (GATEWAY_MAC, gateway));
        assert_eq!((target_hardware_addr.0, target_protocol_addr), (GUEST_MAC, guest));
    }
}

#[test]
fn arp_probe_and_announcement_of_the_guest_meet_silence() {
    let guest = Ipv4Addr::new(10, 0, 2, 100);
    assert_eq!(ask_arp(&arp(1, BROADCAST_MAC, Ipv4Addr::UNSPECIFIED, guest)), Ok(None), "probe");
    assert_eq!(ask_arp(&arp(1, BROADCAST_MAC, guest, guest)), Ok(None), "announcement");
    assert_eq!(ask_arp(&arp(2, BROADCAST_MAC, guest, guest)), Ok(None), "reply");
}

#[test]
fn arp_probe_for_our_address_is_answered() {
    // RFC 5227 2.1.1: the guest must learn that 10.0.2.2 is taken.
    let answer = ask_arp(&arp(1, BROADCAST_MAC, Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 0, 2, 2)));
    assert_eq!(answer.expect("valid").expect("answered")[38..42], [0; 4]);
}

#[test]
fn bad_arp() {
    let good = arp(1, BROADCAST_MAC, Ipv4Addr::new(10, 0, 2, 100), Ipv4Addr::new(10, 0, 2, 2));
    for length in 0..good.len() {
        assert_eq!(ask_arp(&good[..length]), Err(DropReason::Truncated), "length {length}");
    }
    for byte in 14..20 {
        let mut bad = good.clone();
        bad[byte] ^= 0x40;
        assert_eq!(ask_arp(&bad), Err(DropReason::Malformed), "byte {byte}");
    }
    assert_eq!(ask_arp(&arp(3, BROADCAST_MAC, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)), Err(DropReason::Malformed));
    let mut other = good.clone();
    other[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    assert_eq!(ask_arp(&other), Err(DropReason::NotForUs));
    other[12] = 9;
    assert_eq!(ask_arp(&other), Err(DropReason::EtherType));
    let mut off = neighbour();
    off.v4 = None;
    assert_eq!(off.handle_arp(&good, &mut [0; 100]), Err(DropReason::FamilyOff));
    assert_eq!(neighbour().handle_arp(&good, &mut [0; 41]), Err(DropReason::TooBig));
    let mut padded = good;
    padded.extend([0; 18]);
    assert_eq!(ask_arp(&padded).expect("valid").map(|a| a.len()), Some(42));
}

fn solicitation(source: Ipv6Addr, destination: Ipv6Addr, target: Ipv6Addr, link_layer: bool) -> Vec<u8> {
    let length = if link_layer { 32 } else { 24 };
    let mut frame = vec![0; ndisc::MESSAGE + length];
    let body = &mut frame[ndisc::MESSAGE..];
    body[0] = 135;
    body[8..24].copy_from_slice(&target.octets());
    if link_layer {
        body[24..26].copy_from_slice(&[1, 1]);
        body[26..32].copy_from_slice(&GUEST_MAC);
    }
    ndisc::seal(&mut frame, length, GUEST_MAC, GATEWAY_MAC, source, destination).expect("fits");
    frame
}

fn ask_ndp(frame: &[u8]) -> Result<Option<Vec<u8>>, DropReason> {
    let mut out = [0xee; 100];
    Ok(neighbour().handle_ndp(frame, &mut out)?.map(|n| out[..n].to_vec()))
}

fn advertisement(answer: &[u8]) -> (EthernetFrame<&[u8]>, Ipv6Addr, Ipv6Addr, Ipv6Addr, u8) {
    let frame = EthernetFrame::new_checked(answer).expect("Ethernet");
    let ip = Ipv6Packet::new_checked(frame.payload()).expect("IPv6");
    assert_eq!(ip.hop_limit(), 255);
    let icmp = Icmpv6Packet::new_checked(ip.payload()).expect("ICMPv6");
    let repr = Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &icmp, &smoltcp::phy::ChecksumCapabilities::default());
    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }) = repr.expect("ICMPv6") else {
        panic!("{icmp:?}")
    };
    assert_eq!(lladdr.expect("target link-layer address").as_bytes(), GATEWAY_MAC);
    (EthernetFrame::new_unchecked(answer), ip.src_addr(), ip.dst_addr(), target_addr, flags.bits())
}

#[test]
fn ndp_answers_for_our_addresses() {
    for target in ["fd00::2", "fd00::3", "fe80::2"].map(v6) {
        for source in ["fd00::64", "fe80::64"].map(v6) {
            for destination in [target, solicited_node(target)] {
                for link_layer in [true, false] {
                    let answer = ask_ndp(&solicitation(source, destination, target, link_layer));
                    let answer = answer.expect("valid").expect("answered");
                    let (frame, from, to, told, flags) = advertisement(&answer);
                    assert_eq!((frame.src_addr().0, frame.dst_addr().0), (GATEWAY_MAC, GUEST_MAC));
                    assert_eq!((from, to, told), (target, source, target));
                    assert_eq!(flags, 0b1110_0000, "router, solicited, override");
                }
            }
        }
    }
}

#[test]
fn ndp_is_silent_for_the_guest_and_strangers() {
    for target in ["fd00::64", "fd00::4", "fe80::64", "fe80::1", "2001:db8::2"].map(v6) {
        for source in [Ipv6Addr::UNSPECIFIED, v6("fe80::64")] {
            let frame = solicitation(source, solicited_node(target), target, false);
            assert_eq!(ask_ndp(&frame), Ok(None), "{target} from {source}");
        }
    }
}

#[test]
fn ndp_duplicate_detection_of_our_address_is_answered_to_all() {
    let target = v6("fd00::2");
    let answer = ask_ndp(&solicitation(Ipv6Addr::UNSPECIFIED, solicited_node(target), target, false));
    let answer = answer.expect("valid").expect("answered");
    let (frame, from, to, _, flags) = advertisement(&answer);
    assert_eq!(frame.dst_addr().0, [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!((from, to, flags), (target, ndisc::ALL_NODES, 0b1010_0000));
}

#[test]
fn bad_ndp() {
    let target = v6("fd00::2");
    let source = v6("fd00::64");
    let none = Ipv6Addr::UNSPECIFIED;
    let malformed = Err(DropReason::Malformed);
    assert_eq!(ask_ndp(&solicitation(none, solicited_node(target), target, true)), malformed, "probe with an option");
    assert_eq!(ask_ndp(&solicitation(none, target, target, false)), malformed, "unicast probe");
    assert_eq!(ask_ndp(&solicitation(source, ndisc::ALL_NODES, target, false)), malformed, "wrong group");
    assert_eq!(ask_ndp(&solicitation(source, v6("ff02::2"), v6("ff02::2"), false)), malformed, "multicast target");
    let good = solicitation(source, target, target, true);
    let mut bad = good.clone();
    bad[21] = 64;
    assert_eq!(ask_ndp(&bad), malformed, "hop limit");
    let mut bad = good.clone();
    bad[57] ^= 1;
    assert_eq!(ask_ndp(&bad), Err(DropReason::Checksum));
    assert_eq!(ask_ndp(&good[..60]), Err(DropReason::Truncated));
    let mut off = neighbour();
    off.v6 = None;
    assert_eq!(off.handle_ndp(&good, &mut [0; 100]), Err(DropReason::FamilyOff));
    assert_eq!(neighbour().handle_ndp(&good, &mut [0; 85]), Err(DropReason::TooBig));
}

#[test]
fn other_icmpv6_is_left_alone() {
    for kind in [128, 133, 134, 136, 143] {
        let mut frame = vec![0; ndisc::MESSAGE + 32];
        frame[ndisc::MESSAGE] = kind;
        if kind == 136 || kind == 133 {
            frame[ndisc::MESSAGE + 9] = 1;
        }
        let length = if kind == 133 { 8 } else { 24 - if kind == 134 { 8 } else { 0 } };
        ndisc::seal(&mut frame, length, GUEST_MAC, GATEWAY_MAC, v6("fe80::64"), v6("fe80::2")).expect("fits");
        assert_eq!(ask_ndp(&frame), Ok(None), "type {kind}");
    }
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..120), room in 0usize..120) {
        let mut out = vec![0; room];
        let mut frame = bytes;
        let _ = neighbour().handle_arp(&frame, &mut out);
        let _ = neighbour().handle_ndp(&frame, &mut out);
        if frame.len() > ndisc::MESSAGE + 4 {
            frame[ndisc::MESSAGE] = 135;
            frame[ndisc::MESSAGE + 1] = 0;
            let length = frame.len() - ndisc::MESSAGE;
            ndisc::seal(&mut frame, length, GUEST_MAC, GATEWAY_MAC, v6("fe80::64"), v6("fe80::2"));
            let _ = neighbour().handle_ndp(&frame, &mut out);
        }
        if frame.len() > 24 {
            frame[..6].fill(0xff);
            frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            let _ = neighbour().handle_arp(&frame, &mut out);
        }
    }
}
