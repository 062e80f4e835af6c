//! ARP, neighbour discovery, router advertisements and DHCP, through the whole stack.

use smoltcp::time::Duration;
use tapway::network::config::EndpointConfig;
use tapway::stack::Limits;
use tapway::stack::verdict::DropReason;
use tapway::wire::ndisc;

use crate::sim::*;

fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend(GUEST_MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(GUEST_MAC);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

/// An ICMPv6 message of the guest in a frame.
fn discovery(message: &[u8], source: &str, destination: &str) -> Vec<u8> {
    let mut frame = vec![0; 10 + ndisc::MESSAGE + message.len()];
    frame[10 + ndisc::MESSAGE..].copy_from_slice(message);
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    ndisc::seal(&mut frame[10..], message.len(), GUEST_MAC, GATEWAY_MAC, source, destination).expect("fits");
    frame
}

fn solicitation(target: &str) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.parse::<std::net::Ipv6Addr>().unwrap().octets());
    message.extend([1, 1]);
    message.extend(GUEST_MAC);
    message
}

#[test]
fn arp_is_answered_for_the_gateway_and_the_name_server_alone() {
    let mut world = World::new();
    for last in 0..=255 {
        world.inject(arp(1, [10, 0, 2, 100], [10, 0, 2, last]));
        let frames = world.frames();
        assert_eq!(frames.len(), usize::from(matches!(last, 2 | 3)), "10.0.2.{last}");
        for frame in frames {
            let Frame::Arp(reply) = frame else { panic!("{frame:?}") };
            assert_eq!(reply[..6], GUEST_MAC);
            assert_eq!((reply[21], &reply[22..28], &reply[28..32]), (2, &GATEWAY_MAC[..], &[10, 0, 2, last][..]));
        }
    }
    // Conflict detection of the guest's own address (RFC 5227) must hear nothing.
    world.inject(arp(1, [0; 4], [10, 0, 2, 100]));
    world.silent();
    world.inject(arp(2, [10, 0, 2, 100], [10, 0, 2, 100])[..30].to_vec());
    assert_eq!(world.drops(DropReason::Truncated), 1);
}

#[test]
fn neighbours_are_answered_and_duplicates_not_invented() {
    let mut world = World::new();
    for target in ["fd00:1:2:3::2", "fd00:1:2:3::3", "fe80::2"] {
        world.inject(discovery(&solicitation(target), "fd00:1:2:3::64", target));
        let packet = world.packet();
        assert_eq!((packet.src, packet.dst, packet.ttl), (ip(target), Family::V6.guest(), 255));
        assert_eq!((packet.body[0], packet.body[4]), (136, 0xe0));
    }
    let mut probe = solicitation("fd00:1:2:3::64");
    probe.truncate(24);
    world.inject(discovery(&probe, "::", "ff02::1:ff00:64"));
    world.silent();
    world.inject(discovery(&solicitation("fd00:1:2:3::9"), "fd00:1:2:3::64", "ff02::1:ff00:9"));
    world.silent();
}

#[test]
fn a_router_solicitation_is_answered() {
    let mut world = World::new();
    let mut message = vec![133, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    message.extend(GUEST_MAC);
    world.inject(discovery(&message, "fe80::5054:ff:fe00:64", "ff02::2"));
    assert_eq!(world.out.to_guest.len(), 1);
    let frame = world.out.to_guest.remove(0);
    let config = world.stack.config().clone();
    let Frame::Ip(packet) = parse(&frame, &config) else { panic!("no IP") };
    assert_eq!((packet.src, packet.dst), (ip("fe80::2"), ip("fe80::5054:ff:fe00:64")));
    assert_eq!((packet.body[0], packet.ttl), (134, 255));
}

#[test]
fn routers_advertise_themselves_now_and_then() {
    let mut world = World::new();
    let mut count = 0;
    for _ in 0..360 {
        world.pass(Duration::from_secs(10));
        count += world.out.to_guest.drain(..).count();
    }
    // Two more soon after the first, then every 200 to 600 s.
    assert!((8..=20).contains(&count), "{count} in an hour");
}

#[test]
fn an_address_is_given_by_dhcp() {
    let mut world = World::new();
    for (kind, expected) in [(1u8, 2u8), (3, 5)] {
        let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
        message.resize(28, 0);
        message.extend(GUEST_MAC);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, kind, 50, 4, 10, 0, 2, 100, 255]);
        let (client, all) = (at(ip("0.0.0.0"), 68), at(ip("255.255.255.255"), 67));
        let mut frame = Ip::new(client.ip(), all.ip(), UDP, udp_body(client, all, &message)).frame();
        frame[10..16].fill(0xff);
        world.inject(frame);
        let packet = world.packet();
        assert_eq!((packet.src, packet.dst), (Family::V4.gateway(), Family::V4.guest()));
        let reply = &packet.body[8..];
        assert_eq!((reply[0], &reply[16..20]), (2, &[10, 0, 2, 100][..]));
        assert_eq!(reply[240..243], [53, 1, expected]);
    }
}

#[test]
fn frames_that_are_not_ours() {
    let mut world = World::new();
    let conn = Conn::out(&mut world, Family::V4);
    let good = conn.syn().frame();
    let changed = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    for (frame, reason) in [
        (changed(11, 0x99), DropReason::NotForUs),
        (changed(17, 0x99), DropReason::SpoofedSource),
        (changed(22, 0x99), DropReason::EtherType),
        (good[..20].to_vec(), DropReason::Truncated),
        (good[..40].to_vec(), DropReason::Truncated),
    ] {
        let before = world.drops(reason);
        world.inject(frame);
        assert_eq!(world.drops(reason), before + 1, "{reason:?}");
        world.silent();
    }
    assert_eq!(world.tcp_flows(), 0);
}

#[test]
fn a_family_that_is_off_is_silent() {
    let both = config(1500, all_offloads());
    for off in BOTH {
        let config = match off {
            Family::V4 => EndpointConfig { v4: None, ..both.clone() },
            Family::V6 => EndpointConfig { v6: None, ..both.clone() },
        };
        let mut world = World::with(config, Limits::default());
        let conn = Conn::out(&mut world, off);
        world.send(&conn.syn());
        if off == Family::V4 {
            world.inject(arp(1, [10, 0, 2, 100], [10, 0, 2, 2]));
        } else {
            world.inject(discovery(&solicitation("fe80::2"), "fe80::64", "fe80::2"));
        }
        assert_eq!(world.drops(DropReason::FamilyOff), 2);
        world.pass(Duration::from_secs(1000));
        if off == Family::V6 {
            assert!(world.out.to_guest.is_empty(), "not even an advertisement");
        }
        world.silent();
    }
}
