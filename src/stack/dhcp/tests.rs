use proptest::prelude::*;
use smoltcp::wire::{DhcpPacket, DhcpRepr, EthernetFrame, Ipv4Packet, UdpPacket};

use super::*;
use crate::network::config::{Mac, Offloads, PlanV4};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn config(hostname: &str, search: &[&str]) -> EndpointConfig {
    EndpointConfig {
        id: "0123456789ab".into(),
        mtu: 65_520,
        guest_mac: Mac([2, 0, 0, 0, 0, 100]),
        gateway_mac: Mac([2, 0, 0, 0, 0, 2]),
        v4: Some(PlanV4 {
            subnet: "10.0.2.0/24".parse().expect("subnet"),
            gateway: GATEWAY,
            dns: Ipv4Addr::new(10, 0, 2, 3),
            guest: GUEST,
        }),
        v6: None,
        offloads: Offloads::default(),
        allow_host_loopback: false,
        allow_link_local: false,
        outbound_v4: None,
        outbound_v6: None,
        hostname: hostname.into(),
        dns_search: search.iter().map(ToString::to_string).collect(),
        slirp: None,
    }
}

fn server() -> DhcpServer {
    DhcpServer::new(&config("box", &["example.net", "lan"])).expect("IPv4")
}

/// A client's message with the given options behind the message type.
fn message(kind: u8, client_ip: Ipv4Addr, broadcast: bool, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut m = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef, 0, 9, if broadcast { 0x80 } else { 0 }, 0];
    m.extend(client_ip.octets());
    m.extend([0; 12]);
    m.extend([2, 0, 0, 0, 0, 100]);
    m.resize(236, 0);
    m.extend([99, 130, 83, 99, 53, 1, kind]);
    for (option, data) in options {
        m.extend([*option, data.len() as u8]);
        m.extend(*data);
    }
    m.push(255);
    m
}

fn ask(server: &mut DhcpServer, request: &[u8]) -> Option<(DhcpReply, Vec<u8>)> {
    let mut out = [0xee; 1472];
    let reply = server.handle(Instant::ZERO, request, &mut out)?;
    Some((reply, out[..reply.len].to_vec()))
}

/// All options of an answer, those of one number joined (RFC 3396).
fn options(answer: &[u8]) -> std::collections::BTreeMap<u8, Vec<u8>> {
    let packet = DhcpPacket::new_checked(answer).expect("DHCP");
    let mut all = std::collections::BTreeMap::<u8, Vec<u8>>::new();
    for option in packet.options() {
        all.entry(option.kind).or_default().extend(option.data);
    }
    all
}

#[test]
fn discover_offer_request_ack() {
    let mut server = server();
    for (sent, expected) in [(1, DhcpMessageType::Offer), (3, DhcpMessageType::Ack)] {
        let request = message(sent, NONE, false, &[(50, &GUEST.octets()), (61, &[1, 2, 0, 0, 0, 0, 100])]);
        let (reply, answer) = ask(&mut server, &request).expect("answered");
        assert_eq!((reply.broadcast, reply.dst_ip), (false, GUEST));
        assert_eq!(reply.len, answer.len());
        assert!(reply.len >= 300);
        let packet = DhcpPacket::new_checked(&answer[..]).expect("DHCP");
        let repr = DhcpRepr::parse(&packet).expect("DHCP");
        assert_eq!((repr.message_type, repr.transaction_id), (expected, 0xdead_beef));
        assert_eq!(repr.client_hardware_address.0, [2, 0, 0, 0, 0, 100]);
        assert_eq!((repr.your_ip, repr.client_ip, repr.relay_agent_ip), (GUEST, NONE, NONE));
        assert_eq!((repr.router, repr.subnet_mask), (Some(GATEWAY), Some(Ipv4Addr::new(255, 255, 255, 0))));
        assert_eq!(repr.dns_servers.expect("DNS")[..], [Ipv4Addr::new(10, 0, 2, 3)]);
        assert_eq!(repr.server_identifier, Some(GATEWAY));
        assert_eq!(
            (repr.lease_duration, repr.renew_duration, repr.rebind_duration),
            (Some(86_400), Some(43_200), Some(75_600))
        );
        let options = options(&answer);
        assert_eq!(options[&26], 65_520u16.to_be_bytes());
        assert_eq!(options[&28], [10, 0, 2, 255]);
        assert_eq!(options[&12], b"box");
        assert_eq!(options[&119], b"\x07example\x03net\x00\x03lan\x00");
    }
}

#[test]
fn the_frame_is_right() {
    for (broadcast, mac, to) in [(false, [2, 0, 0, 0, 0, 100], GUEST), (true, [0xff; 6], Ipv4Addr::BROADCAST)] {
        let mut out = [0xee; 1514];
        let length =
            server().handle_frame(Instant::ZERO, &message(1, NONE, broadcast, &[]), &mut out).expect("answered");
        let frame = EthernetFrame::new_checked(&out[..length]).expect("Ethernet");
        assert_eq!((frame.dst_addr().0, frame.src_addr().0), (mac, [2, 0, 0, 0, 0, 2]));
        let ip = Ipv4Packet::new_checked(frame.payload()).expect("IPv4");
        assert!(ip.verify_checksum());
        assert_eq!((ip.src_addr(), ip.dst_addr()), (GATEWAY, to));
        let udp = UdpPacket::new_checked(ip.payload()).expect("UDP");
        assert!(udp.verify_checksum(&GATEWAY.into(), &to.into()));
        assert_eq!((udp.src_port(), udp.dst_port()), (67, 68));
        assert_eq!(usize::from(udp.len()) + 34, length);
        let (reply, answer) = ask(&mut server(), &message(1, NONE, broadcast, &[])).expect("answered");
        assert_eq!((reply.broadcast, udp.payload()), (broadcast, &answer[..]));
    }
    assert_eq!(server().handle_frame(Instant::ZERO, &message(7, GUEST, false, &[]), &mut [0; 1514]), None);
    for room in [0, 41, 42, 341] {
        assert_eq!(
            server().handle_frame(Instant::ZERO, &message(1, NONE, false, &[]), &mut vec![0; room]),
            None,
            "room {room}"
        );
    }
}

#[test]
fn renewing_is_answered_to_the_address() {
    let (reply, answer) = ask(&mut server(), &message(3, GUEST, true, &[])).expect("answered");
    assert_eq!((reply.broadcast, reply.dst_ip), (false, GUEST));
    let packet = DhcpPacket::new_checked(&answer[..]).expect("DHCP");
    assert_eq!((packet.client_ip(), packet.your_ip()), (GUEST, GUEST));
    assert_eq!(options(&answer)[&53], [5]);
}

#[test]
fn the_broadcast_flag_is_honoured() {
    for kind in [1, 3] {
        let (reply, answer) =
            ask(&mut server(), &message(kind, NONE, true, &[(50, &GUEST.octets())])).expect("answered");
        assert_eq!((reply.broadcast, reply.dst_ip), (true, Ipv4Addr::BROADCAST));
        assert!(DhcpPacket::new_checked(&answer[..]).expect("DHCP").flags().contains(DhcpFlags::BROADCAST));
    }
}

#[test]
fn a_discover_that_wants_another_address_is_offered_ours() {
    let (_, answer) = ask(&mut server(), &message(1, NONE, false, &[(50, &[192, 168, 1, 7])])).expect("answered");
    assert_eq!(DhcpPacket::new_checked(&answer[..]).expect("DHCP").your_ip(), GUEST);
}

#[test]
fn a_request_for_another_address_is_refused() {
    let other = [192, 168, 1, 7];
    let server_id = GATEWAY.octets();
    let cases = [
        message(3, NONE, false, &[(50, &other)]), // rebooting elsewhere
        message(3, NONE, false, &[(50, &other), (54, &server_id)]), // selecting
        message(3, Ipv4Addr::from(other), false, &[]), // renewing
    ];
    for request in cases {
        let (reply, answer) = ask(&mut server(), &request).expect("answered");
        assert_eq!((reply.broadcast, reply.dst_ip), (true, Ipv4Addr::BROADCAST));
        let packet = DhcpPacket::new_checked(&answer[..]).expect("DHCP");
        assert_eq!((packet.your_ip(), packet.client_ip()), (NONE, NONE));
        let options = options(&answer);
        assert_eq!(options.keys().copied().collect::<Vec<_>>(), [53, 54], "nothing but type and server");
        assert_eq!(options[&53], [6]);
    }
}

#[test]
fn the_client_identifier_comes_back_byte_for_byte() {
    let long = [7; 255];
    for id in [&b"\xff\0\x01\x02opaque"[..], &[0], &[], &long] {
        for (kind, wanted) in [(1, GUEST), (3, GUEST), (3, Ipv4Addr::LOCALHOST)] {
            let (_, answer) =
                ask(&mut server(), &message(kind, NONE, false, &[(61, id), (50, &wanted.octets())])).expect("answered");
            assert_eq!(options(&answer)[&61], id, "RFC 6842");
        }
    }
    let (_, answer) = ask(&mut server(), &message(1, NONE, false, &[])).expect("answered");
    assert!(!options(&answer).contains_key(&61));
}

#[test]
fn inform_gets_options_without_a_lease() {
    let own = Ipv4Addr::new(10, 0, 2, 77);
    let (reply, answer) = ask(&mut server(), &message(8, own, true, &[])).expect("answered");
    assert_eq!((reply.broadcast, reply.dst_ip), (false, own));
    let packet = DhcpPacket::new_checked(&answer[..]).expect("DHCP");
    assert_eq!((packet.client_ip(), packet.your_ip()), (own, NONE));
    let options = options(&answer);
    assert_eq!(options[&53], [5]);
    for lease in [51, 58, 59] {
        assert!(!options.contains_key(&lease), "option {lease}");
    }
    assert!(options.contains_key(&3) && options.contains_key(&6));
}

#[test]
fn inform_from_nowhere_is_ignored() {
    for address in [NONE, GATEWAY, Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 0, 2, 255), Ipv4Addr::new(10, 0, 2, 0)] {
        assert_eq!(ask(&mut server(), &message(8, address, false, &[])), None, "{address}");
    }
    assert_eq!(ask(&mut server(), &message(8, Ipv4Addr::new(8, 8, 8, 8), false, &[])), None);
}

#[test]
fn silence() {
    let mut server = server();
    let server_id = GATEWAY.octets();
    assert_eq!(ask(&mut server, &message(3, NONE, false, &[(50, &GUEST.octets()), (54, &[10, 0, 2, 9])])), None);
    assert_eq!(server.stats(), DhcpStats::default(), "another server's client is nothing to count");
    assert_eq!(ask(&mut server, &message(4, NONE, false, &[(50, &GUEST.octets()), (54, &server_id)])), None);
    assert_eq!(ask(&mut server, &message(7, GUEST, false, &[(54, &server_id)])), None);
    assert_eq!(server.stats(), DhcpStats { declined: 1, released: 1, ignored: 0 });
    for kind in [0, 2, 5, 6, 9, 255] {
        assert_eq!(ask(&mut server, &message(kind, NONE, false, &[])), None, "type {kind}");
    }
    assert_eq!(ask(&mut server, &message(3, NONE, false, &[])), None, "asks for nothing");
    assert_eq!(server.stats().ignored, 7);
    // After a decline it is still the guest's address, there is no other.
    assert!(ask(&mut server, &message(1, NONE, false, &[])).is_some());
}

#[test]
fn what_is_no_request_is_ignored() {
    let good = message(1, NONE, false, &[(54, &[10, 0, 2, 2])]);
    let mut server = server();
    assert!(ask(&mut server, &good).is_some());
    // Reply; not Ethernet; not six bytes; relayed; multicast MAC; magic cookie.
    for (byte, value) in [(0, 2), (1, 6), (2, 16), (24, 1), (28, 3), (236, 0)] {
        let mut bad = good.clone();
        bad[byte] = value;
        assert_eq!(ask(&mut server, &bad), None, "byte {byte}");
    }
    for option in [50, 54] {
        assert_eq!(ask(&mut server, &message(1, NONE, false, &[(option, &[1, 2, 3])])), None, "option {option}");
    }
    for length in 0..243 {
        assert_eq!(ask(&mut server, &good[..length]), None, "length {length}");
    }
}

#[test]
fn size_follows_what_the_client_takes() {
    let names: Vec<String> = (0..30).map(|i| format!("domain{i:03}.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut server = DhcpServer::new(&config("box", &names)).expect("IPv4");
    let (reply, answer) = ask(&mut server, &message(1, NONE, false, &[])).expect("answered");
    assert!(reply.len <= 548);
    assert!(!options(&answer).contains_key(&119), "no room for the whole list");
    assert!(options(&answer).contains_key(&12));
    let (reply, answer) =
        ask(&mut server, &message(1, NONE, false, &[(57, &1500u16.to_be_bytes())])).expect("answered");
    assert!(reply.len <= 1472);
    assert_eq!(options(&answer)[&119].len(), 30 * 19, "split into several options and joined again");
    for silly in [0u16, 100, 65_535] {
        let (reply, _) = ask(&mut server, &message(1, NONE, false, &[(57, &silly.to_be_bytes())])).expect("answered");
        assert!(reply.len <= 1472);
    }
}

#[test]
fn a_hostname_that_does_not_fit_is_left_out() {
    let mut server = DhcpServer::new(&config(&"x".repeat(300), &[])).expect("IPv4");
    let (_, answer) = ask(&mut server, &message(1, NONE, false, &[])).expect("answered");
    assert!(!options(&answer).contains_key(&12));
    let mut server = DhcpServer::new(&config("", &[])).expect("IPv4");
    let (_, answer) = ask(&mut server, &message(1, NONE, false, &[])).expect("answered");
    assert!(!options(&answer).contains_key(&12));
}

#[test]
fn a_short_buffer_gets_nothing() {
    let mut server = server();
    for room in 0..300 {
        assert_eq!(
            server.handle(Instant::ZERO, &message(1, NONE, false, &[]), &mut vec![0; room]),
            None,
            "room {room}"
        );
    }
    let mut out = vec![0; 320];
    let reply = server.handle(Instant::ZERO, &message(1, NONE, false, &[]), &mut out).expect("the essentials fit");
    assert_eq!(options(&out[..reply.len])[&53], [2]);
}

#[test]
fn without_ipv4_there_is_no_server() {
    let mut off = config("box", &[]);
    off.v4 = None;
    assert!(DhcpServer::new(&off).is_none());
}

proptest! {
    #[test]
    fn any_bytes(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        kind in 0u8..10,
        shaped in any::<bool>(),
        room in 0usize..1500,
    ) {
        let request = if shaped {
            let mut m = message(kind, GUEST, false, &[]);
            m.pop();
            m.extend(bytes);
            m
        } else {
            bytes
        };
        let mut server = server();
        let mut out = vec![0; room];
        if let Some(reply) = server.handle(Instant::ZERO, &request, &mut out) {
            prop_assert!(reply.len <= room && reply.len >= 300);
            let answer = DhcpPacket::new_checked(&out[..reply.len]).expect("DHCP");
            prop_assert_eq!(answer.opcode(), DhcpOpCode::Reply);
            prop_assert!(out[FIXED..reply.len].contains(&OPTION_END));
            prop_assert!(answer.options().any(|o| o.kind == OPTION_TYPE));
        }
    }
}
