//! slirp4netns's segment: guests that nobody has announced, several of them behind one TAP, found by ARP and neighbour
//! discovery; its MACs, its policy, its DHCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::time::Duration;
use tapway::network::config::{EndpointConfig, Offloads, Slirp};
use tapway::stack::arena::Id;
use tapway::stack::flow::GuestPort;
use tapway::stack::guests::GuestLimits;
use tapway::stack::tcp::{ConnectFailure, TcpTarget};
use tapway::stack::udp::UdpVia;
use tapway::stack::verdict::DropReason;
use tapway::stack::{HostError, Limits};
use tapway::wire::icmp_error::IcmpError;
use tapway::wire::ndisc;

use crate::sim::*;

/// Room for the segments that [`SYN_OPTIONS`] ask for, in IPv6 too.
const MTU: u16 = 1520;

const OTHER_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x65];

fn world() -> World {
    World::with(slirp_config(MTU, all_offloads()), Limits::default())
}

fn changed(change: impl FnOnce(&mut EndpointConfig)) -> World {
    let mut config = slirp_config(MTU, all_offloads());
    change(&mut config);
    World::with(config, Limits::default())
}

fn loopback(family: Family) -> IpAddr {
    ip(if family.is_v6() { "::1" } else { "127.0.0.1" })
}

/// Another address that a guest might have.
fn other(family: Family) -> IpAddr {
    ip(if family.is_v6() { "fd00:1:2:3:5054:ff:fe00:65" } else { "10.0.2.55" })
}

/// A guest knocks.
fn syn(world: &mut World, from: SocketAddr, to: SocketAddr) {
    let syn = Conn::new(world, from, to).syn();
    world.send(&syn);
}

fn datagram(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Ip {
    Ip::new(src.ip(), dst.ip(), UDP, udp_body(src, dst, payload))
}

fn echo_request(family: Family, target: IpAddr) -> Ip {
    let mut body = vec![if family.is_v6() { 128 } else { 8 }, 0, 0, 0, 1, 2, 0, 3, b'x'];
    let sum = match family {
        Family::V4 => tapway::wire::csum::plain(&body),
        Family::V6 => tapway::wire::csum::full(family.guest(), target, 58, &body),
    };
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    Ip::new(family.guest(), target, if family.is_v6() { 58 } else { 1 }, body)
}

/// Destination MAC and content of all frames since the last call, advertisements left out.
fn frames(world: &mut World) -> Vec<([u8; 6], Frame)> {
    let config = world.stack.config().clone();
    let frames = world.out.to_guest.drain(..).map(|f| (f[10..16].try_into().unwrap(), parse(&f, &config)));
    frames.filter(|(_, f)| !matches!(f, Frame::Ip(i) if i.protocol == 58 && i.body[0] == 134)).collect()
}

/// The only frame, which is IP.
fn frame(world: &mut World) -> ([u8; 6], Ip) {
    let mut all = frames(world);
    assert_eq!(all.len(), 1, "{all:?}");
    match all.remove(0) {
        (mac, Frame::Ip(ip)) => (mac, ip),
        (_, other) => panic!("{other:?}"),
    }
}

/// The guest's address that a frame asks for, if it does.
fn asked(mac: [u8; 6], frame: &Frame) -> Option<IpAddr> {
    match frame {
        Frame::Arp(arp) if arp[20..22] == [0, 1] => {
            assert_eq!((mac, &arp[6..12], &arp[22..28]), ([0xff; 6], &SLIRP_MACS[0][..], &SLIRP_MACS[0][..]));
            assert_eq!(arp[28..32], [10, 0, 2, 2]);
            Some(Ipv4Addr::new(arp[38], arp[39], arp[40], arp[41]).into())
        }
        Frame::Ip(packet) if packet.protocol == 58 && packet.body[0] == 135 => {
            assert_eq!((packet.src, packet.ttl), (ip("fe80::2"), 255));
            assert_eq!(packet.body[24..32], [1, 1, 0x52, 0x56, 0, 0, 0, 2]);
            let target = Ipv6Addr::from(<[u8; 16]>::try_from(&packet.body[8..24]).unwrap());
            let [.., a, b, c] = target.octets();
            assert_eq!(mac, [0x33, 0x33, 0xff, a, b, c]);
            Some(target.into())
        }
        _ => None,
    }
}

/// Everything since the last call is a question for this address; how many.
fn questions(world: &mut World, address: IpAddr) -> usize {
    let all = frames(world);
    for (mac, frame) in &all {
        assert_eq!(asked(*mac, frame), Some(address), "{frame:?}");
    }
    all.len()
}

fn arp(operation: u8, mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(target);
    // As long as Ethernet wants it: what is behind the message is nothing.
    frame.resize(10 + 60, 0xee);
    frame
}

/// An ICMPv6 message of a guest in a frame, with padding behind it.
fn discovery(mac: [u8; 6], message: &[u8], source: IpAddr, destination: &str) -> Vec<u8> {
    let IpAddr::V6(source) = source else { panic!("{source}") };
    let mut frame = vec![0; 10 + ndisc::MESSAGE + message.len()];
    frame[10 + ndisc::MESSAGE..].copy_from_slice(message);
    let destination = destination.parse().unwrap();
    ndisc::seal(&mut frame[10..], message.len(), mac, SLIRP_MACS[1], source, destination).expect("fits");
    frame
}

/// A neighbour solicitation (135) or advertisement (136) for `target`, with the sender's MAC.
fn neighbour(kind: u8, mac: [u8; 6], target: IpAddr) -> Vec<u8> {
    let IpAddr::V6(target) = target else { panic!("{target}") };
    let mut message = vec![kind, 0, 0, 0, if kind == 136 { 0x60 } else { 0 }, 0, 0, 0];
    message.extend(target.octets());
    message.extend([kind - 134, 1]);
    message.extend(mac);
    message
}

/// A guest answers a question of ours.
fn answer(world: &mut World, address: IpAddr, mac: [u8; 6]) {
    match address {
        IpAddr::V4(own) => world.inject(arp(2, mac, own.octets(), [10, 0, 2, 2])),
        IpAddr::V6(_) => world.inject(discovery(mac, &neighbour(136, mac, address), address, "fe80::2")),
    }
}

fn accepted(world: &mut World, to: SocketAddr, client: SocketAddr) -> Id {
    let to = GuestPort { addr: Some(to.ip()), port: to.port() };
    let flow = world.stack.handle_tcp_accepted(world.now, (0, to), client).expect("room");
    world.host.insert(flow, HostSocket::default());
    world.settle();
    flow
}

/// Each published port has a number of its own; here it tells by the guest's address.
fn listener(to: SocketAddr) -> usize {
    match to.ip() {
        IpAddr::V4(guest) => usize::from(guest.octets()[3]),
        IpAddr::V6(guest) => 256 + usize::from(guest.octets()[15]),
    }
}

fn published(world: &mut World, to: SocketAddr, client: SocketAddr, payload: &[u8]) {
    let port = GuestPort { addr: Some(to.ip()), port: to.port() };
    let local = if client.ip().is_loopback() { loopback(Family::V4) } else { ip("192.0.2.1") };
    let listener = (listener(to), port);
    world.stack.handle_udp_published(world.now, listener, (client, local), payload, None, &mut world.out);
}

fn udp_ends(packet: &Ip) -> (SocketAddr, SocketAddr, &[u8]) {
    assert_eq!(packet.protocol, UDP, "{packet:?}");
    let port = |from: usize| u16::from_be_bytes([packet.body[from], packet.body[from + 1]]);
    (at(packet.src, port(0)), at(packet.dst, port(2)), &packet.body[8..])
}

fn icmp_kind(family: Family, packet: &Ip) -> (u8, u8) {
    assert_eq!(packet.protocol, if family.is_v6() { 58 } else { 1 }, "{packet:?}");
    (packet.body[0], packet.body[1])
}

fn net_unreachable(family: Family) -> (u8, u8) {
    if family.is_v6() { (1, 0) } else { (3, 0) }
}

// ---- our addresses ----

#[test]
fn each_of_our_addresses_has_its_own_mac() {
    let mut world = world();
    for last in 0..=255 {
        // To whom the question goes on the wire does not matter.
        let mut question = arp(1, OTHER_MAC, [10, 0, 2, 55], [10, 0, 2, last]);
        question[10..16].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
        world.inject(question);
        let all = frames(&mut world);
        assert_eq!(all.len(), usize::from(matches!(last, 2 | 3)), "10.0.2.{last}");
        for (mac, frame) in all {
            let Frame::Arp(reply) = frame else { panic!("{frame:?}") };
            let own = [0x52, 0x55, 10, 0, 2, last];
            assert_eq!((mac, &reply[6..12], &reply[22..28]), (OTHER_MAC, &own[..], &own[..]));
            assert_eq!((reply[21], &reply[28..32]), (2, &[10, 0, 2, last][..]));
        }
    }
    for (target, last) in [("fd00:1:2:3::2", 2), ("fd00:1:2:3::3", 3), ("fe80::2", 2), ("fe80::3", 0), ("fd00::9", 0)] {
        let question = neighbour(135, OTHER_MAC, ip(target));
        world.inject(discovery(OTHER_MAC, &question, other(Family::V6), target));
        if last == 0 {
            world.silent();
            continue;
        }
        let (mac, packet) = frame(&mut world);
        assert_eq!((mac, packet.src, packet.dst), (OTHER_MAC, ip(target), other(Family::V6)));
        assert_eq!(packet.body[24..32], [2, 1, 0x52, 0x56, 0, 0, 0, last]);
    }
}

#[test]
fn a_duplicate_probe_is_nobodys_address() {
    let mut world = world();
    world.inject(arp(1, GUEST_MAC, [0; 4], [10, 0, 2, 100]));
    world.inject(discovery(GUEST_MAC, &neighbour(135, GUEST_MAC, ip("fe80::64"))[..24], ip("::"), "ff02::1:ff00:64"));
    world.silent();
    assert_eq!(world.stack.guests(), Some((0, 0, 0)));
}

// ---- guests are learnt ----

#[test]
fn any_guest_is_served_without_being_announced() {
    for family in BOTH {
        for offloads in [all_offloads(), Offloads::default()] {
            let mut world = World::with(slirp_config(MTU, offloads), Limits::default());
            for (guest, mac) in [(family.guest(), GUEST_MAC), (other(family), OTHER_MAC), (family.far(), [2; 6])] {
                world.macs.insert(guest, mac);
                let server = ip(if family.is_v6() { "2001:db8::99" } else { "198.51.100.99" });
                let mut conn = Conn::new(&mut world, at(guest, 40_000), at(server, 80));
                world.send(&conn.syn());
                world.silent();
                let flow = world.accept();
                let (to, packet) = frame(&mut world);
                assert_eq!((to, packet.dst), (mac, guest));
                let seg = Seg::of(&packet);
                conn.seq += 1;
                conn.ack = seg.end();
                conn.push(&mut world, ACK | PSH, b"question");
                assert_eq!(world.host(flow).received, b"question");
                let data = pattern(20_000, 1);
                conn.take(&mut world);
                world.host_sends(flow, &data);
                let mut got = Vec::new();
                for turn in 0.. {
                    assert!(turn < 100);
                    for f in &world.out.to_guest {
                        assert_eq!(f[10..16], mac);
                        assert!(offloads.csum || f.len() <= 24 + usize::from(MTU));
                    }
                    got.extend(conn.take(&mut world).0);
                    if got.len() == data.len() {
                        break;
                    }
                    conn.acknowledge(&mut world);
                }
                assert_eq!(got, data);
            }
        }
    }
}

#[test]
fn sources_that_nobody_can_have() {
    let mut world = world();
    for bad in ["127.0.0.1", "224.0.0.9", "255.255.255.255", "10.0.2.255", "10.0.2.2", "10.0.2.3", "0.0.0.0"] {
        syn(&mut world, at(ip(bad), 1), at(Family::V4.far(), 2));
    }
    for bad in ["::1", "::", "ff02::1", "::ffff:10.0.2.100", "fd00:1:2:3::2", "fd00:1:2:3::3", "fe80::2"] {
        syn(&mut world, at(ip(bad), 1), at(Family::V6.far(), 2));
    }
    // What comes back with our own MAC came from us.
    let mut echo = Conn::out(&mut world, Family::V4).syn().frame();
    echo[16..22].copy_from_slice(&SLIRP_MACS[0]);
    world.inject(echo);
    world.silent();
    assert_eq!((world.tcp_flows(), world.stack.guests()), (0, Some((0, 0, 0))));
    assert_eq!(world.drops(DropReason::SpoofedSource), 15);
}

#[test]
fn what_guests_say_to_each_other_is_not_ours() {
    let mut world = world();
    world.inject(arp(1, OTHER_MAC, [10, 0, 2, 55], [10, 0, 2, 100]));
    let conn = Conn::new(&mut world, at(Family::V4.guest(), 40_000), at(ip("10.0.2.55"), 80));
    let mut flooded = conn.syn().frame();
    flooded[10..16].copy_from_slice(&OTHER_MAC);
    world.inject(flooded.clone());
    assert_eq!((world.connects.len(), world.drops(DropReason::NotForUs)), (0, 1));
    // Any other destination is ours.
    flooded[10..16].copy_from_slice(&[2, 1, 2, 3, 4, 5]);
    world.inject(flooded);
    assert_eq!(world.connects.len(), 1);
}

#[test]
fn a_guest_that_has_never_spoken_is_asked_for() {
    for family in BOTH {
        for guest in [family.guest(), other(family), family.far()] {
            let mut world = world();
            let client = at(ip(if family.is_v6() { "2001:db8::99" } else { "198.51.100.99" }), 51_000);
            accepted(&mut world, at(guest, 80), client);
            assert_eq!(questions(&mut world, guest), 1);
            answer(&mut world, guest, OTHER_MAC);
            let (mac, packet) = frame(&mut world);
            let syn = Seg::of(&packet);
            assert_eq!((mac, syn.src, syn.dst, syn.flags), (OTHER_MAC, client, at(guest, 80), SYN));
            published(&mut world, at(guest, 53), at(ip("127.0.0.1"), 5000), b"now known");
            if !family.is_v6() {
                assert_eq!(frame(&mut world).0, OTHER_MAC);
            }
        }
    }
}

#[test]
fn a_silent_guest_is_given_up_and_asked_for_anew() {
    for family in BOTH {
        let mut world = world();
        let guest = other(family);
        let client = at(family.far(), 51_000);
        published(&mut world, at(guest, 53), client, b"one");
        published(&mut world, at(guest, 53), client, b"two");
        assert_eq!(questions(&mut world, guest), 1);
        world.pass(Duration::from_millis(999));
        assert_eq!(questions(&mut world, guest), 0);
        world.pass(Duration::from_secs(9));
        assert_eq!(questions(&mut world, guest), 2);
        assert_eq!((world.drops(DropReason::Unresolved), world.stack.guests()), (2, Some((0, 0, 0))));
        published(&mut world, at(guest, 53), client, b"three");
        assert_eq!(questions(&mut world, guest), 1);
        // Whatever it says shows where it is.
        world.macs.insert(guest, OTHER_MAC);
        world.inject_ip(&datagram(at(guest, 9), at(family.far(), 9), b"x"));
        let (mac, packet) = frame(&mut world);
        assert_eq!((mac, udp_ends(&packet).2), (OTHER_MAC, &b"three"[..]));
        world.pass(Duration::from_secs(10));
        world.silent();
        assert_eq!(world.drops(DropReason::Unresolved), 2);
    }
}

#[test]
fn a_late_guest_gets_the_repeated_syn() {
    let mut world = world();
    let guest = other(Family::V4);
    accepted(&mut world, at(guest, 80), at(Family::V4.far(), 51_000));
    world.pass(Duration::from_secs(20));
    assert!((5..20).contains(&questions(&mut world, guest)));
    world.inject(arp(2, OTHER_MAC, [10, 0, 2, 55], [10, 0, 2, 55]));
    world.pass(Duration::from_secs(30));
    assert!(world.segments().iter().all(|s| s.flags == SYN));
}

#[test]
fn large_datagrams_wait_whole() {
    for family in BOTH {
        let mut world = world();
        let guest = other(family);
        let data = pattern(60_000, 3);
        published(&mut world, at(guest, 53), at(family.far(), 51_000), &data);
        assert_eq!(questions(&mut world, guest), 1);
        answer(&mut world, guest, OTHER_MAC);
        let mut got = Vec::new();
        for (mac, frame) in frames(&mut world) {
            let Frame::Ip(piece) = frame else { panic!("{frame:?}") };
            assert_eq!((mac, piece.fragment.expect("a piece").1), (OTHER_MAC, got.len()));
            got.extend(piece.body);
        }
        assert_eq!(got[8..], data);
    }
}

#[test]
fn what_is_held_is_bounded() {
    let guests = GuestLimits { known: 4, asked: 3, held_frames: 5, held_bytes: 4000 };
    let mut world = World::with(slirp_config(1500, all_offloads()), Limits { guests, ..Limits::default() });
    let client = at(Family::V4.far(), 51_000);
    for _ in 0..20 {
        published(&mut world, at(ip("10.0.2.40"), 53), client, b"small");
        published(&mut world, at(ip("10.0.2.41"), 53), client, &[0; 1400]);
    }
    assert_eq!(world.drops(DropReason::Unresolved), 15 + 18);
    for last in 50..=250 {
        published(&mut world, at(ip(&format!("10.0.2.{last}")), 53), client, &[0; 1400]);
        let (known, asked, bytes) = world.stack.guests().unwrap();
        assert!(known == 0 && asked <= 3 && bytes <= 3 * 4000);
    }
    world.frames();
    world.pass(Duration::from_secs(5));
    // All but three gave way, and those were given up.
    assert_eq!(world.drops(DropReason::Unresolved), 40 + 201);
}

#[test]
fn a_guest_that_changes_its_mac_is_followed() {
    for family in BOTH {
        let mut world = world();
        let mut conn = Conn::out(&mut world, family);
        let flow = conn.open(&mut world);
        world.host_sends(flow, b"before");
        assert_eq!(frame(&mut world).0, GUEST_MAC);
        conn.ack += 6;
        match family {
            // By telling everybody; by its next segment.
            Family::V4 => world.inject(arp(1, OTHER_MAC, [10, 0, 2, 100], [10, 0, 2, 100])),
            Family::V6 => {
                world.macs.insert(family.guest(), OTHER_MAC);
                conn.acknowledge(&mut world);
            }
        }
        world.silent();
        world.host_sends(flow, b"after");
        assert_eq!(frame(&mut world).0, OTHER_MAC);
    }
}

#[test]
fn a_flood_of_invented_guests_does_not_push_out_those_that_work() {
    for family in BOTH {
        let mut world = world();
        let mut conn = Conn::out(&mut world, family);
        let flow = conn.open(&mut world);
        world.host_sends(flow, b"x");
        assert_eq!(conn.take(&mut world).0, b"x");
        for n in 0..5000u32 {
            let invented: IpAddr = match family {
                Family::V4 => Ipv4Addr::from_bits(0x0b00_0000 + n).into(),
                Family::V6 => Ipv6Addr::from_bits(0xfd09 << 112 | u128::from(n)).into(),
            };
            world.macs.insert(invented, [2, 2, 0, 0, (n >> 8) as u8, n as u8]);
            // Half of them draw an answer.
            let target = if n % 2 == 0 { family.gateway() } else { ip("224.0.0.9") };
            if target.is_ipv6() == family.is_v6() {
                syn(&mut world, at(invented, 5), at(target, 80));
                if !world.connects.is_empty() {
                    world.fail(ConnectFailure::Refused);
                }
            }
            let (known, asked, bytes) = world.stack.guests().unwrap();
            assert!(known <= 32 && asked <= 16 && bytes <= 16 * 212_992);
            world.out.to_guest.clear();
            if n % 100 == 0 {
                conn.push(&mut world, ACK | PSH, b"y");
                world.host_sends(flow, b"z");
                let ours: Vec<_> = frames(&mut world)
                    .into_iter()
                    .filter(|(_, f)| matches!(f, Frame::Ip(i) if i.dst == family.guest()))
                    .collect();
                assert!(!ours.is_empty() && ours.iter().all(|(mac, _)| *mac == GUEST_MAC), "{ours:?}");
                conn.ack += 1;
                conn.acknowledge(&mut world);
            }
        }
        assert_eq!(world.host(flow).received.len(), 50);
    }
}

#[test]
fn two_guests_talk_at_once() {
    for family in BOTH {
        let mut world = world();
        world.macs.insert(other(family), OTHER_MAC);
        // The same port, to the same server.
        let mut conns =
            [family.guest(), other(family)].map(|guest| Conn::new(&mut world, at(guest, 40_000), at(family.far(), 80)));
        let flows = [conns[0].open(&mut world), conns[1].open(&mut world)];
        assert_ne!(flows[0], flows[1]);
        for round in 0..50u8 {
            for (conn, flow) in conns.iter_mut().zip(flows) {
                let mac = if conn.guest.ip() == other(family) { OTHER_MAC } else { GUEST_MAC };
                conn.push(&mut world, ACK | PSH, &[round; 100]);
                world.host_sends(flow, &[round; 3000]);
                assert!(world.out.to_guest.iter().all(|f| f[10..16] == mac));
                assert_eq!(conn.take(&mut world).0, [round; 3000]);
                conn.acknowledge(&mut world);
            }
        }
        for flow in flows {
            assert_eq!(world.host(flow).received.len(), 5000);
        }
    }
}

// ---- where guests get ----

#[test]
fn the_gateway_is_the_hosts_loopback_or_nothing() {
    for family in BOTH {
        let mut world = world();
        world.stack.set_host_addresses(Some(Ipv4Addr::new(192, 0, 2, 5)), Some(Ipv6Addr::LOCALHOST));
        let conn = Conn::new(&mut world, at(family.guest(), 40_000), at(family.gateway(), 8080));
        world.send(&conn.syn());
        assert_eq!(world.connects[0].1, TcpTarget::Host(at(loopback(family), 8080)));
        world.inject_ip(&datagram(at(family.guest(), 5), at(family.gateway(), 6), b"x"));
        assert_eq!(world.out.udp[0].target, at(loopback(family), 6));

        let mut world = changed(|config| config.allow_host_loopback = false);
        world.stack.set_host_addresses(Some(Ipv4Addr::new(192, 0, 2, 5)), Some(Ipv6Addr::LOCALHOST));
        world.send(&conn.syn());
        let (_, error) = frame(&mut world);
        assert_eq!((error.src, icmp_kind(family, &error)), (family.gateway(), net_unreachable(family)));
        world.inject_ip(&datagram(at(family.guest(), 5), at(family.gateway(), 6), b"x"));
        let (_, error) = frame(&mut world);
        assert_eq!(icmp_kind(family, &error), net_unreachable(family));
        assert!(world.connects.is_empty() && world.out.udp.is_empty());
    }
}

#[test]
fn the_dns_address_answers_names_and_nothing_else() {
    for family in BOTH {
        let mut world = world();
        let guest = family.guest();
        syn(&mut world, at(guest, 1), at(family.dns(), 53));
        assert_eq!(world.connects.remove(0).1, TcpTarget::Dns);
        world.inject_ip(&datagram(at(guest, 5), at(family.dns(), 53), b"name?"));
        assert_eq!(world.out.dns, [(at(guest, 5), at(family.dns(), 53), b"name?".to_vec())]);
        world.stack.handle_dns_answer(at(guest, 5), at(family.dns(), 53), b"this", &mut world.out);
        let (mac, packet) = frame(&mut world);
        assert_eq!((mac, udp_ends(&packet)), (GUEST_MAC, (at(family.dns(), 53), at(guest, 5), &b"this"[..])));
        syn(&mut world, at(guest, 2), at(family.dns(), 80));
        assert_eq!(icmp_kind(family, &frame(&mut world).1), net_unreachable(family));
        world.inject_ip(&datagram(at(guest, 5), at(family.dns(), 54), b"x"));
        let (_, error) = frame(&mut world);
        assert_eq!(icmp_kind(family, &error), if family.is_v6() { (1, 4) } else { (3, 3) });
        assert!(world.out.udp.is_empty());
    }
}

#[test]
fn without_dns_its_address_is_silent() {
    for family in BOTH {
        for open in [true, false] {
            let mut world = changed(|config| {
                config.allow_host_loopback = open;
                config.slirp = config.slirp.map(|slirp| Slirp { dns: false, ..slirp });
            });
            for port in [53, 80] {
                let dns = at(family.dns(), port);
                syn(&mut world, at(family.guest(), port), dns);
                world.inject_ip(&datagram(at(family.guest(), port), dns, b"name?"));
            }
            assert!(world.connects.is_empty() && world.out.udp.is_empty() && world.out.dns.is_empty());
            // Neither reset nor ICMP: who asks gives up by himself.
            assert!(frames(&mut world).is_empty());
        }
    }
}

#[test]
fn pings_to_our_addresses_are_always_answered() {
    for family in BOTH {
        for (open, dns) in [(true, true), (false, false)] {
            let mut world = changed(|config| {
                config.allow_host_loopback = open;
                config.slirp = config.slirp.map(|slirp| Slirp { dns, ..slirp });
            });
            for target in [family.gateway(), family.dns()] {
                world.inject_ip(&echo_request(family, target));
                let (mac, reply) = frame(&mut world);
                assert_eq!((mac, reply.src, reply.dst), (GUEST_MAC, target, family.guest()));
                assert_eq!(reply.body[4..], [1, 2, 0, 3, b'x']);
                assert!(world.out.ping.is_empty());
            }
        }
    }
}

#[test]
fn the_rest_of_the_world() {
    let mut world = world();
    let guest = at(Family::V4.guest(), 5);
    // The subnet is the host's to reach or not, and so is what else looks odd.
    for target in ["10.0.2.4", "10.0.2.255", "10.0.2.0", "169.254.169.254", "198.51.100.1"] {
        world.inject_ip(&datagram(guest, at(ip(target), 6), b"x"));
        assert_eq!(world.out.udp.pop().map(|sent| (sent.target.ip(), sent.ttl)), Some((ip(target), 63)), "{target}");
    }
    world.inject_ip(&datagram(at(Family::V6.guest(), 5), at(ip("fd00:1:2:3::77"), 6), b"x"));
    assert_eq!(world.out.udp.pop().map(|sent| sent.target.ip()), Some(ip("fd00:1:2:3::77")));
    world.silent();
    // The back doors to the host's loopback are shut whatever is open.
    for target in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "::", "::1", "::ffff:127.0.0.1", "::127.0.0.1"] {
        let family = if ip(target).is_ipv6() { Family::V6 } else { Family::V4 };
        world.inject_ip(&datagram(at(family.guest(), 5), at(ip(target), 6), b"x"));
        syn(&mut world, at(family.guest(), 5), at(ip(target), 6));
    }
    assert!(world.out.udp.is_empty() && world.connects.is_empty());
    assert_eq!(world.drops(DropReason::Refused), 16);
}

#[test]
fn datagrams_to_groups_go_out_as_they_are() {
    let mut world = world();
    for (group, ttl) in
        [("224.0.0.251", 255), ("239.255.255.250", 4), ("224.0.0.1", 1), ("ff02::fb", 255), ("ff05::2", 1)]
    {
        let family = if ip(group).is_ipv6() { Family::V6 } else { Family::V4 };
        let mut packet = datagram(at(family.guest(), 5353), at(ip(group), 5353), b"who?");
        packet.ttl = ttl;
        let mut frame = packet.frame();
        frame[10..13].copy_from_slice(&if family.is_v6() { [0x33, 0x33, 0] } else { [1, 0, 0x5e] });
        world.inject(frame);
        let sent = world.out.udp.pop().expect(group);
        assert_eq!((sent.target, sent.ttl), (at(ip(group), 5353), ttl));
    }
    // Not beyond the node, not everybody, and nothing but datagrams.
    world.inject_ip(&datagram(at(Family::V6.guest(), 5), at(ip("ff01::1"), 6), b"x"));
    world.inject_ip(&datagram(at(Family::V4.guest(), 5), at(ip("255.255.255.255"), 6), b"x"));
    syn(&mut world, at(Family::V4.guest(), 5), at(ip("224.0.0.251"), 6));
    let mut stray = Conn::new(&mut world, at(Family::V4.guest(), 5), at(ip("224.0.0.251"), 6)).syn();
    stray.flags = ACK;
    world.send(&stray);
    world.inject_ip(&Ip::new(Family::V4.guest(), ip("224.0.0.22"), 2, vec![0x22; 8]));
    assert!(world.out.udp.is_empty() && world.connects.is_empty());
    world.silent();
}

#[test]
fn what_is_too_large_for_the_path_is_cut_by_the_host() {
    for family in BOTH {
        let mut world = world();
        let mut large = datagram(at(family.guest(), 5), at(family.far(), 6), &[7; 1400]);
        large.dont_fragment = true;
        world.inject_ip(&large);
        assert!(!world.out.udp.remove(0).dont_fragment);
        let mut echo = echo_request(family, family.far());
        echo.dont_fragment = true;
        world.inject_ip(&echo);
        assert!(!world.out.ping.remove(0).dont_fragment);
    }
}

// ---- from the host ----

#[test]
fn clients_on_the_hosts_loopback_are_the_gateway() {
    for open in [true, false] {
        let mut world = changed(|config| config.allow_host_loopback = open);
        let guest = at(ip("10.0.2.55"), 53);
        world.inject(arp(1, OTHER_MAC, [10, 0, 2, 55], [10, 0, 2, 2]));
        world.frames();
        for (address, port) in [("127.0.0.1", 5000), ("127.0.0.5", 5001)] {
            let client = at(ip(address), port);
            published(&mut world, guest, client, b"question");
            let (mac, packet) = frame(&mut world);
            let gateway = at(ip("10.0.2.2"), port);
            assert_eq!((mac, udp_ends(&packet)), (OTHER_MAC, (gateway, guest, &b"question"[..])));
            world.macs.insert(guest.ip(), OTHER_MAC);
            world.inject_ip(&datagram(guest, gateway, b"answer"));
            let sent = world.out.udp.remove(0);
            assert_eq!(sent.via, UdpVia::Listener { index: listener(guest), local: loopback(Family::V4) });
            assert_eq!((sent.target, &sent.payload[..]), (client, &b"answer"[..]));
            accepted(&mut world, at(guest.ip(), 80), client);
            let syn = world.segment();
            assert_eq!((syn.src, syn.dst), (gateway, at(guest.ip(), 80)));
        }
        // Two of them with one port: the second gets another.
        published(&mut world, guest, at(ip("127.0.0.9"), 5000), b"question");
        let (_, packet) = frame(&mut world);
        assert_eq!(udp_ends(&packet).0.ip(), ip("10.0.2.2"));
        assert_ne!(udp_ends(&packet).0.port(), 5000);
    }
}

#[test]
fn ports_of_addresses_that_no_guest_has() {
    let mut world = world();
    for guest in ["10.0.2.2", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fd00:1:2:3::2", "::1", "ff02::1"]
    {
        let port = GuestPort { addr: Some(ip(guest)), port: 80 };
        let client = at(if ip(guest).is_ipv6() { Family::V6.far() } else { Family::V4.far() }, 5000);
        assert!(world.stack.handle_tcp_accepted(world.now, (0, port), client).is_err(), "{guest}");
        published(&mut world, at(ip(guest), 53), client, b"x");
    }
    world.silent();
    assert_eq!(world.stack.guests(), Some((0, 0, 0)));
}

#[test]
fn a_client_of_the_other_family_is_the_gateway() {
    let mut world = world();
    accepted(&mut world, at(ip("10.0.2.55"), 80), at(Family::V6.far(), 5000));
    assert_eq!(questions(&mut world, ip("10.0.2.55")), 1);
    answer(&mut world, ip("10.0.2.55"), OTHER_MAC);
    assert_eq!(world.segment().src, at(ip("10.0.2.2"), 5000));
    accepted(&mut world, at(other(Family::V6), 80), at(Family::V4.far(), 5000));
    assert_eq!(questions(&mut world, other(Family::V6)), 1);
    answer(&mut world, other(Family::V6), OTHER_MAC);
    assert_eq!(world.segment().src, at(Family::V6.gateway(), 5000));
}

#[test]
fn strangers_on_the_hosts_loopback() {
    for family in BOTH {
        for open in [true, false] {
            let mut world = changed(|config| config.allow_host_loopback = open);
            let guest = at(family.guest(), 5);
            world.inject_ip(&datagram(guest, at(family.far(), 6), b"x"));
            let UdpVia::Mapping { id } = world.out.udp.remove(0).via else { panic!("no mapping") };
            // Not asked by the guest, but anybody may send to a mapping, if he can be shown.
            let stranger = at(loopback(family), 999);
            world.stack.handle_udp_from_host(world.now, id, stranger, b"hello", None, &mut world.out);
            if open {
                assert_eq!(udp_ends(&frame(&mut world).1), (at(family.gateway(), 999), guest, &b"hello"[..]));
            } else {
                world.silent();
                assert_eq!(world.drops(DropReason::NoMapping), 1);
            }
        }
    }
}

#[test]
fn errors_of_the_hosts_loopback_come_from_the_gateway() {
    for family in BOTH {
        let mut world = world();
        let guest = at(family.guest(), 5);
        // More ports than a mapping remembers.
        for port in 100..120 {
            world.inject_ip(&datagram(guest, at(family.gateway(), port), b"x"));
        }
        let UdpVia::Mapping { id } = world.out.udp.remove(0).via else { panic!("no mapping") };
        for (target, seen) in [(at(loopback(family), 100), family.gateway()), (at(family.far(), 9), family.far())] {
            let error =
                HostError { kind: IcmpError::PortUnreachable, target, offender: Some(loopback(family)), payload: b"x" };
            world.stack.handle_udp_error(id, &error, &mut world.out);
            let (mac, packet) = frame(&mut world);
            assert_eq!((mac, packet.src, packet.dst), (GUEST_MAC, family.gateway(), guest.ip()));
            assert_eq!(icmp_kind(family, &packet), if family.is_v6() { (1, 4) } else { (3, 3) });
            let quoted = if family.is_v6() { packet.body[32..48].to_vec() } else { packet.body[24..28].to_vec() };
            match seen {
                IpAddr::V4(seen) => assert_eq!(quoted, seen.octets()),
                IpAddr::V6(seen) => assert_eq!(quoted, seen.octets()),
            }
        }
    }
}

// ---- configuration of guests ----

/// A request; option 53 first where there is one.
fn request(mac: [u8; 6], client: [u8; 4], options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0];
    message.extend(client);
    message.resize(28, 0);
    message.extend(mac);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99]);
    for (kind, data) in options {
        message.extend([*kind, data.len() as u8]);
        message.extend(*data);
    }
    message.push(255);
    message.resize(300, 0);
    let (client, all) = (at(IpAddr::from(client), 68), at(ip("255.255.255.255"), 67));
    let mut frame = Ip::new(client.ip(), all.ip(), UDP, udp_body(client, all, &message)).frame();
    frame[10..16].fill(0xff);
    frame[16..22].copy_from_slice(&mac);
    frame
}

/// Options in their order.
type DhcpOptions = Vec<(u8, Vec<u8>)>;

/// The answer's message: address given and options.
fn given(world: &mut World, mac: [u8; 6]) -> Option<([u8; 4], DhcpOptions)> {
    let mut all = frames(world);
    if all.is_empty() {
        return None;
    }
    let (to, Frame::Ip(packet)) = all.remove(0) else { panic!("no IP") };
    assert!(all.is_empty() && (to == mac || to == [0xff; 6]));
    let (from, _, message) = udp_ends(&packet);
    assert_eq!((from, message[0], &message[28..34]), (at(ip("10.0.2.2"), 67), 2, &mac[..]));
    let mut options = Vec::new();
    let mut rest = &message[240..];
    while rest[0] != 255 {
        let length = usize::from(rest[1]);
        options.push((rest[0], rest[2..2 + length].to_vec()));
        rest = &rest[2 + length..];
    }
    if options.first().is_none_or(|(_, kind)| kind != &[6]) {
        assert_eq!(message[20..24], [10, 0, 2, 2], "siaddr");
    }
    Some((message[16..20].try_into().unwrap(), options))
}

fn client(n: u8) -> [u8; 6] {
    [2, 0xaa, 0, 0, 0, n]
}

#[test]
fn addresses_are_lent_by_dhcp() {
    let mut world = world();
    for n in 0..16 {
        let mac = client(n);
        world.inject(request(mac, [0; 4], &[(53, &[1]), (50, &[192, 168, 1, 1])]));
        let (address, options) = given(&mut world, mac).expect("an offer");
        assert_eq!(address, [10, 0, 2, 15 + n]);
        assert_eq!(options[0], (53, vec![2]));
        world.inject(request(mac, [0; 4], &[(53, &[3]), (50, &address), (54, &[10, 0, 2, 2])]));
        let (address, options) = given(&mut world, mac).expect("a lease");
        let expected: DhcpOptions = vec![
            (53, vec![5]),
            (54, vec![10, 0, 2, 2]),
            (51, 86_400u32.to_be_bytes().to_vec()),
            (58, 43_200u32.to_be_bytes().to_vec()),
            (59, 75_600u32.to_be_bytes().to_vec()),
            (1, vec![255, 255, 255, 0]),
            (3, vec![10, 0, 2, 2]),
            (6, vec![10, 0, 2, 3]),
        ];
        assert_eq!((address, options), ([10, 0, 2, 15 + n], expected));
        // And its lease says where it is.
        published(&mut world, at(IpAddr::from(address), 53), at(Family::V4.far(), 9), b"x");
        assert_eq!(frame(&mut world).0, mac);
    }
    // The seventeenth.
    let late = client(99);
    world.inject(request(late, [0; 4], &[(53, &[1])]));
    assert_eq!(given(&mut world, late), None);
    for taken in [[10, 0, 2, 15], [10, 0, 2, 100], [10, 0, 2, 31]] {
        world.inject(request(late, [0; 4], &[(53, &[3]), (50, &taken)]));
        let (address, options) = given(&mut world, late).expect("a refusal");
        assert_eq!((address, &options[0]), ([0; 4], &(53, vec![6])));
    }
    // A lease renewed from its address, another given back, and the rest run out.
    world.pass(Duration::from_secs(43_200));
    frames(&mut world);
    world.inject(request(client(0), [10, 0, 2, 15], &[(53, &[3])]));
    assert_eq!(given(&mut world, client(0)).expect("renewed").0, [10, 0, 2, 15]);
    world.inject(request(client(5), [10, 0, 2, 20], &[(53, &[7]), (54, &[10, 0, 2, 2])]));
    world.inject(request(late, [0; 4], &[(53, &[1])]));
    assert_eq!(given(&mut world, late).expect("an offer").0, [10, 0, 2, 20]);
    world.pass(Duration::from_secs(43_201));
    frames(&mut world);
    world.inject(request(client(77), [0; 4], &[(53, &[1]), (50, &[10, 0, 2, 15])]));
    assert_ne!(given(&mut world, client(77)).expect("an offer").0, [10, 0, 2, 15], "renewed, so not run out");
}

#[test]
fn wishes_and_plain_bootp() {
    let mut world = world();
    world.inject(request(client(1), [0; 4], &[(53, &[1]), (50, &[10, 0, 2, 25])]));
    assert_eq!(given(&mut world, client(1)).expect("an offer").0, [10, 0, 2, 25]);
    world.inject(request(client(2), [0; 4], &[(53, &[3]), (50, &[10, 0, 2, 26])]));
    assert_eq!(given(&mut world, client(2)).expect("a lease").1[0], (53, vec![5]), "free, so it may have it");
    // BOOTP, with and without the magic number of options.
    let mut bare = request(client(3), [0; 4], &[]);
    world.inject(bare.clone());
    let (address, options) = given(&mut world, client(3)).expect("an address");
    assert_eq!((address, options[0].0), ([10, 0, 2, 15], 1), "no message type, mask first");
    bare.clone_from(&request(client(4), [0; 4], &[]));
    let message = 10 + 14 + 20 + 8;
    bare[message + 236..message + 240].fill(0);
    // Without a checksum, which UDP allows.
    bare[message - 2..message].fill(0);
    world.inject(bare);
    assert_eq!(given(&mut world, client(4)).expect("an address").0, [10, 0, 2, 16]);
    world.inject(request(client(5), [0; 4], &[(53, &[1]), (50, &[10, 0, 2, 15])]));
    assert_eq!(given(&mut world, client(5)).expect("an offer").0, [10, 0, 2, 17], "BOOTP's is lent");
}

#[test]
fn routers_advertise_what_guests_need_and_no_mtu() {
    for dns in [true, false] {
        let mut world = changed(|config| config.slirp = config.slirp.map(|slirp| Slirp { dns, ..slirp }));
        let mut message = vec![133, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        message.extend(OTHER_MAC);
        world.inject(discovery(OTHER_MAC, &message, ip("fe80::5054:ff:fe00:65"), "ff02::2"));
        let raw = world.out.to_guest.remove(0);
        let Frame::Ip(packet) = parse(&raw, world.stack.config()) else { panic!("no IP") };
        assert_eq!((&raw[10..16], &raw[16..22]), (&OTHER_MAC[..], &SLIRP_MACS[1][..]));
        assert_eq!((packet.src, packet.body[4], &packet.body[5..8]), (ip("fe80::2"), 64, &[0, 7, 8][..]));
        let mut expected = vec![1, 1, 0x52, 0x56, 0, 0, 0, 2, 3, 4, 64, 0xc0];
        expected.extend(86_400u32.to_be_bytes());
        expected.extend(14_400u32.to_be_bytes());
        expected.extend([0; 4]);
        expected.extend("fd00:1:2:3::".parse::<Ipv6Addr>().unwrap().octets());
        if dns {
            expected.extend([25, 3, 0, 0, 0, 0, 7, 8]);
            expected.extend("fd00:1:2:3::3".parse::<Ipv6Addr>().unwrap().octets());
        }
        assert_eq!(packet.body[16..], expected);
    }
}

#[test]
fn who_asks_for_information_by_dhcp_is_told_the_name_server() {
    let mut world = world();
    let client = at(ip("fe80::5054:ff:fe00:65"), 546);
    world.macs.insert(client.ip(), OTHER_MAC);
    for to in ["ff02::1:2", "fe80::2"] {
        world.inject_ip(&datagram(client, at(ip(to), 547), &[11, 1, 2, 3, 0, 6, 0, 2, 0, 23]));
        let (mac, packet) = frame(&mut world);
        let (from, to, message) = udp_ends(&packet);
        assert_eq!((mac, from, to), (OTHER_MAC, at(ip("fe80::2"), 547), client));
        let dns = "fd00:1:2:3::3".parse::<Ipv6Addr>().unwrap().octets();
        assert!(message.starts_with(&[7, 1, 2, 3]) && message.ends_with(&dns));
    }
    // Addresses are not lent.
    world.inject_ip(&datagram(client, at(ip("ff02::1:2"), 547), &[1, 1, 2, 3]));
    world.silent();
    assert!(world.out.udp.is_empty());
}
