use proptest::prelude::*;
use smoltcp::wire::{
    EthernetFrame, Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscPrefixInfoFlags, NdiscRepr, NdiscRouterFlags,
};

use super::*;
use crate::network::config::{Offloads, PlanV6};

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 100];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("address")
}

fn at(seconds: i64) -> Instant {
    Instant::from_secs(seconds)
}

fn config(search: &[&str]) -> EndpointConfig {
    EndpointConfig {
        id: "0123456789ab".into(),
        mtu: 65_520,
        guest_mac: Mac(GUEST_MAC),
        gateway_mac: Mac(GATEWAY_MAC),
        v4: None,
        v6: Some(PlanV6 {
            subnet: "fd00:1:2:3::/64".parse().expect("subnet"),
            gateway: v6("fd00:1:2:3::2"),
            gateway_link_local: v6("fe80::2"),
            dns: v6("fd00:1:2:3::3"),
            guest: v6("fd00:1:2:3::64"),
        }),
        offloads: Offloads::default(),
        allow_host_loopback: false,
        allow_link_local: false,
        outbound_v4: None,
        outbound_v6: None,
        hostname: "box".into(),
        dns_search: search.iter().map(ToString::to_string).collect(),
        slirp: None,
    }
}

fn advertiser(search: &[&str]) -> RouterAdvertiser {
    RouterAdvertiser::new(&config(search), 42, at(0)).expect("IPv6")
}

fn solicitation(source: Ipv6Addr, link_layer: bool) -> Vec<u8> {
    let length = if link_layer { 16 } else { 8 };
    let mut frame = vec![0; ndisc::MESSAGE + length];
    let body = &mut frame[ndisc::MESSAGE..];
    body[0] = 133;
    if link_layer {
        body[8..10].copy_from_slice(&[1, 1]);
        body[10..16].copy_from_slice(&GUEST_MAC);
    }
    ndisc::seal(&mut frame, length, GUEST_MAC, [0; 6], source, v6("ff02::2")).expect("fits");
    frame
}

/// Checks an advertisement down to its options with smoltcp's parser; returns MAC and address that it goes to, and the
/// options that smoltcp does not know.
fn check(answer: &[u8]) -> ([u8; 6], Ipv6Addr, Vec<Vec<u8>>) {
    let frame = EthernetFrame::new_checked(answer).expect("Ethernet");
    let ip = Ipv6Packet::new_checked(frame.payload()).expect("IPv6");
    assert_eq!((ip.src_addr(), ip.hop_limit()), (v6("fe80::2"), 255));
    assert!(ip.total_len() <= 1280);
    let icmp = Icmpv6Packet::new_checked(ip.payload()).expect("ICMPv6");
    assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
    let repr = Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &icmp, &smoltcp::phy::ChecksumCapabilities::default());
    let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
        hop_limit,
        flags,
        router_lifetime,
        reachable_time,
        retrans_time,
        lladdr,
        mtu,
        prefix_info,
    }) = repr.expect("router advertisement")
    else {
        panic!("no router advertisement")
    };
    assert_eq!((hop_limit, flags), (64, NdiscRouterFlags::empty()));
    assert_eq!((router_lifetime.secs(), reachable_time.millis(), retrans_time.millis()), (1800, 0, 0));
    assert_eq!(lladdr.expect("source link-layer address").as_bytes(), GATEWAY_MAC);
    assert_eq!(mtu, Some(65_520));
    let prefix = prefix_info.expect("prefix");
    assert_eq!((prefix.prefix, prefix.prefix_len), (v6("fd00:1:2:3::"), 64));
    assert_eq!(prefix.flags, NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF);
    assert_eq!((prefix.valid_lifetime.secs(), prefix.preferred_lifetime.secs()), (2_592_000, 604_800));
    let message = ndisc::parse(answer).expect("valid").expect("neighbour discovery");
    let unknown = message.options().filter(|(kind, _)| *kind >= 25).map(|(_, o)| o.to_vec()).collect();
    (frame.dst_addr().0, ip.dst_addr(), unknown)
}

#[test]
fn solicited_unicast_at_once_and_as_often_as_asked() {
    let mut ra = advertiser(&[]);
    let mut out = [0; 1400];
    for link_layer in [true, false] {
        let frame = solicitation(v6("fe80::64"), link_layer);
        let length = ra.handle_solicitation(at(0), &frame, &mut out).expect("valid").expect("answered");
        let (mac, to, options) = check(&out[..length]);
        assert_eq!((mac, to), (GUEST_MAC, v6("fe80::64")));
        let mut rdnss = vec![25, 3, 0, 0, 0, 0, 7, 8];
        rdnss.extend(v6("fd00:1:2:3::3").octets());
        assert_eq!(options, [rdnss]);
    }
}

#[test]
fn search_list() {
    let mut ra = advertiser(&["example.net", "..", "lan"]);
    let mut out = [0; 1400];
    let frame = solicitation(v6("fe80::64"), true);
    let length = ra.handle_solicitation(at(0), &frame, &mut out).expect("valid").expect("answered");
    let (_, _, options) = check(&out[..length]);
    let mut expected = vec![31, 4, 0, 0, 0, 0, 7, 8];
    expected.extend(b"\x07example\x03net\x00\x03lan\x00");
    expected.resize(32, 0);
    assert_eq!(options[1], expected);
    assert_eq!(options.len(), 2);
}

#[test]
fn a_search_list_too_long_is_cut_between_names() {
    let names: Vec<String> = (0..200).map(|i| format!("domain{i:03}.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut ra = advertiser(&names);
    let mut out = [0; 1400];
    let length = ra.handle_timeout(at(0), &mut out).expect("due");
    let (_, _, options) = check(&out[..length]);
    let list = &options[1][8..];
    let whole = list.chunks_exact(19).take_while(|name| name[0] == 9).count();
    assert!(whole > 50, "{whole} names");
    assert!(list[whole * 19..].iter().all(|&b| b == 0), "a name was cut");
}

#[test]
fn unsolicited_timing() {
    let mut ra = advertiser(&[]);
    let mut out = [0; 1400];
    let mut now = at(0);
    let mut gaps = Vec::new();
    for _ in 0..200 {
        assert_eq!(ra.handle_timeout(now - Duration::from_micros(1), &mut out), None, "early");
        let length = ra.handle_timeout(now, &mut out).expect("due");
        let (mac, to, _) = check(&out[..length]);
        assert_eq!((mac, to), ([0x33, 0x33, 0, 0, 0, 1], ndisc::ALL_NODES));
        gaps.push((ra.next_timeout().expect("always one") - now).total_millis());
        now = ra.next_timeout().expect("always one");
    }
    assert_eq!(gaps[..2], [16_000, 16_000]);
    assert!(gaps[2..].iter().all(|g| (200_000..=600_000).contains(g)));
    assert!(gaps[2..].iter().any(|&g| g < 300_000) && gaps[2..].iter().any(|&g| g > 500_000), "spread out");
}

#[test]
fn a_solicitation_without_source_waits_its_turn() {
    let mut ra = advertiser(&[]);
    let mut out = [0; 1400];
    let frame = solicitation(Ipv6Addr::UNSPECIFIED, false);
    let length = ra.handle_solicitation(at(1), &frame, &mut out).expect("valid").expect("the first is not late");
    assert_eq!(check(&out[..length]).1, ndisc::ALL_NODES);
    assert_eq!(ra.next_timeout(), Some(at(17)));
    assert_eq!(ra.handle_solicitation(at(2), &frame, &mut out), Ok(None));
    assert_eq!(ra.handle_solicitation(at(3), &frame, &mut out), Ok(None));
    assert_eq!(ra.next_timeout(), Some(at(4)), "three seconds after the last");
    assert_eq!(ra.handle_timeout(at(3), &mut out), None);
    assert!(ra.handle_timeout(at(4), &mut out).is_some());
    assert!(ra.handle_solicitation(at(8), &frame, &mut out).expect("valid").is_some());
}

#[test]
fn the_mtu_is_never_below_what_ipv6_needs() {
    let mut small = config(&[]);
    small.mtu = 1000;
    let mut ra = RouterAdvertiser::new(&small, 1, at(0)).expect("IPv6");
    let mut out = [0; 1400];
    let length = ra.handle_timeout(at(0), &mut out).expect("due");
    let message = ndisc::parse(&out[..length]).expect("valid").expect("neighbour discovery");
    let mtu = message.options().find(|(kind, _)| *kind == 5).expect("MTU option").1.to_vec();
    assert_eq!(mtu, [5, 1, 0, 0, 0, 0, 5, 0]);
}

#[test]
fn bad_or_other_messages() {
    let mut ra = advertiser(&[]);
    let mut out = [0; 1400];
    let with_option = solicitation(Ipv6Addr::UNSPECIFIED, true);
    assert_eq!(ra.handle_solicitation(at(0), &with_option, &mut out), Err(DropReason::Malformed));
    let good = solicitation(v6("fe80::64"), true);
    let mut bad = good.clone();
    bad[21] = 1;
    assert_eq!(ra.handle_solicitation(at(0), &bad, &mut out), Err(DropReason::Malformed));
    let mut bad = good.clone();
    bad[60] ^= 1;
    assert_eq!(ra.handle_solicitation(at(0), &bad, &mut out), Err(DropReason::Checksum));
    assert_eq!(ra.handle_solicitation(at(0), &good[..50], &mut out), Err(DropReason::Truncated));
    let mut echo = vec![0; ndisc::MESSAGE + 8];
    echo[ndisc::MESSAGE] = 128;
    ndisc::seal(&mut echo, 8, GUEST_MAC, GATEWAY_MAC, v6("fe80::64"), v6("fe80::2")).expect("fits");
    assert_eq!(ra.handle_solicitation(at(0), &echo, &mut out), Ok(None));
    assert_eq!(ra.handle_solicitation(at(0), &good, &mut [0; 100]), Ok(None), "no room");
    let mut off = config(&[]);
    off.v6 = None;
    assert!(RouterAdvertiser::new(&off, 1, at(0)).is_none());
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..100), room in 0usize..300) {
        let mut ra = advertiser(&["example.net"]);
        let mut out = vec![0; room];
        let mut frame = bytes;
        let _ = ra.handle_solicitation(at(0), &frame, &mut out);
        if frame.len() > ndisc::MESSAGE + 4 {
            frame[ndisc::MESSAGE..ndisc::MESSAGE + 2].copy_from_slice(&[133, 0]);
            let length = frame.len() - ndisc::MESSAGE;
            ndisc::seal(&mut frame, length, GUEST_MAC, GATEWAY_MAC, v6("fe80::64"), v6("ff02::2"));
            if let Ok(Some(length)) = ra.handle_solicitation(at(0), &frame, &mut out) {
                prop_assert!(length <= room);
            }
        }
    }
}
