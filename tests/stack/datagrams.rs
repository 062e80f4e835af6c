//! UDP, echo, DNS, fragments and the ICMP errors about them.

use std::net::{IpAddr, SocketAddr};

use smoltcp::time::Duration;
use tapway::network::config::Offloads;
use tapway::stack::udp::{IDLE, IDLE_DNS, IDLE_STREAM, UdpLimits, UdpVia};
use tapway::stack::verdict::DropReason;
use tapway::stack::{HostError, Limits};
use tapway::wire::fragment;
use tapway::wire::icmp_error::IcmpError;
use tapway::wire::vnet::{Gso, VnetHdr};

use crate::sim::*;

fn datagram(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Ip {
    Ip::new(src.ip(), dst.ip(), UDP, udp_body(src, dst, payload))
}

/// Sends one datagram and returns how it left.
fn send(world: &mut World, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> UdpSent {
    world.inject(datagram(src, dst, payload).frame());
    assert_eq!(world.out.udp.len(), 1, "one datagram out: {:?}", world.stack.drops());
    world.out.udp.remove(0)
}

fn mapping(sent: &UdpSent) -> tapway::stack::arena::Id {
    match sent.via {
        UdpVia::Mapping { id, .. } => id,
        UdpVia::Listener { .. } => panic!("{sent:?}"),
    }
}

/// Source, destination and data of all datagrams that came, fragments put together.
fn received(world: &mut World) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
    let mut pieces: Vec<Ip> = Vec::new();
    let mut out = Vec::new();
    for ip in world.packets() {
        assert_eq!(ip.protocol, UDP, "{ip:?}");
        let whole = match ip.fragment {
            None => ip,
            Some((_, offset, more)) => {
                assert_eq!(offset, pieces.iter().map(|p| p.body.len()).sum::<usize>(), "in order");
                let mut joined = ip.clone();
                pieces.push(ip);
                if more {
                    continue;
                }
                joined.body = pieces.drain(..).flat_map(|p| p.body).collect();
                joined.fragment = None;
                // A fragmented datagram's checksum is whole.
                assert!(tapway::wire::csum::verify(joined.src, joined.dst, UDP, &joined.body));
                joined
            }
        };
        let port = |at: usize| u16::from_be_bytes([whole.body[at], whole.body[at + 1]]);
        let ends = (at(whole.src, port(0)), at(whole.dst, port(2)));
        let size = whole.gso_size.map_or(whole.body.len(), usize::from).max(1);
        for part in whole.body[8..].chunks(size) {
            out.push((ends.0, ends.1, part.to_vec()));
        }
        if whole.body.len() == 8 {
            out.push((ends.0, ends.1, vec![]));
        }
    }
    assert!(pieces.is_empty(), "a fragment is missing");
    out
}

#[test]
fn one_mapping_for_all_destinations() {
    for family in BOTH {
        let mut world = World::new();
        let guest = at(family.guest(), 5000);
        let far = at(family.far(), 3478);
        let first = send(&mut world, guest, far, b"hello");
        assert_eq!((first.guest, first.target, &first.payload[..]), (guest, far, &b"hello"[..]));
        assert_eq!((first.ttl, first.segment), (63, None), "one hop is here");
        let other = at(ip(if family.is_v6() { "2001:db8::9" } else { "198.51.100.9" }), 9);
        let second = send(&mut world, guest, other, b"again");
        assert_eq!(second.via, first.via, "RFC 4787, REQ-1");
        let third = send(&mut world, at(family.guest(), 5001), far, b"other port");
        assert_ne!(mapping(&third), mapping(&first));
        // Anybody may answer (endpoint-independent filtering).
        for source in [far, other, at(other.ip(), 1)] {
            world.stack.handle_udp_from_host(world.now, mapping(&first), source, b"answer", None, &mut world.out);
            assert_eq!(received(&mut world), [(source, guest, b"answer".to_vec())]);
        }
    }
}

#[test]
fn every_size_in_both_directions() {
    for family in BOTH {
        for offloads in [all_offloads(), Offloads::default()] {
            for mtu in [1500u16, 65_520] {
                let mut world = World::with(config(mtu, offloads), Limits::default());
                let (guest, far) = (at(family.guest(), 5000), at(family.far(), 7));
                let room = usize::from(mtu) - family.header() - 8;
                for size in [0, 1, 7, 8, 9, 1400, 1452, 1453, 1472, 1473, 4000, 65_507, room, room + 1] {
                    if size > 65_507 {
                        continue;
                    }
                    let data = pattern(size, size as u64);
                    let packet = datagram(guest, far, &data);
                    // The guest's kernel fragments what is above its MTU.
                    let mut scratch = vec![0; usize::from(mtu)];
                    let mut frames = Vec::new();
                    let head = packet.frame()[..24].to_vec();
                    let count = fragment::split(
                        &packet.bytes(),
                        usize::from(mtu),
                        size as u32,
                        &mut |piece| frames.push([&head[..], piece].concat()),
                        &mut scratch,
                    );
                    assert_eq!(count > 1, size > room);
                    for frame in frames {
                        world.inject(frame);
                    }
                    assert_eq!(world.out.udp.len(), 1, "{family:?} mtu {mtu} size {size}: {:?}", world.stack.drops());
                    let sent = world.out.udp.remove(0);
                    assert_eq!(sent.payload, data);
                    if count > 1 {
                        assert!(!sent.dont_fragment, "what the guest cut may be cut again");
                    }
                    let id = mapping(&sent);
                    world.stack.handle_udp_from_host(world.now, id, far, &data, None, &mut world.out);
                    assert_eq!(received(&mut world), [(far, guest, data)], "{family:?} mtu {mtu} size {size}");
                }
            }
        }
    }
}

#[test]
fn dont_fragment_is_passed_on() {
    let mut world = World::new();
    for set in [true, false] {
        let mut packet = datagram(at(Family::V4.guest(), 5000), at(Family::V4.far(), 7), b"x");
        packet.dont_fragment = set;
        world.inject(packet.frame());
        assert_eq!(world.out.udp.remove(0).dont_fragment, set);
    }
}

/// Found beside fuzzing: the header of one frame asked for 60 000 sends, and the kernel's refusal ended segmentation for good.
#[test]
fn a_super_frame_of_very_many_datagrams_is_refused() {
    for (size, len, passes) in [(1, 128, true), (1, 129, false), (1, 60_000, false), (1000, 60_000, true)] {
        let mut world = World::with(config(1500, all_offloads()), Limits::default());
        let mut frame = datagram(at(Family::V4.guest(), 5000), at(Family::V4.far(), 443), &pattern(len, 3)).frame();
        let header = VnetHdr {
            needs_csum: true,
            gso: Gso::Udp,
            gso_size: size,
            hdr_len: 42,
            csum_start: 34,
            csum_offset: 6,
            data_valid: false,
        };
        header.emit(&mut frame);
        world.inject(frame);
        assert_eq!(world.out.udp.len(), usize::from(passes), "{len} bytes in datagrams of {size}");
        assert_eq!(world.drops(DropReason::Malformed), u64::from(!passes));
    }
}

#[test]
fn a_super_frame_of_datagrams_goes_out_as_one() {
    for family in BOTH {
        let mut world = World::with(config(1500, all_offloads()), Limits::default());
        let data = pattern(10 * 1200 + 77, 3);
        let packet = datagram(at(family.guest(), 5000), at(family.far(), 443), &data);
        let mut frame = packet.frame();
        let start = 14 + family.header();
        let header = VnetHdr {
            needs_csum: true,
            gso: Gso::Udp,
            gso_size: 1200,
            hdr_len: (start + 8) as u16,
            csum_start: start as u16,
            csum_offset: 6,
            data_valid: false,
        };
        header.emit(&mut frame);
        world.inject(frame);
        let sent = world.out.udp.remove(0);
        assert_eq!((sent.segment, sent.payload), (Some(1200), data.clone()));
        // And back.
        let id = mapping(&UdpSent { payload: vec![], ..sent });
        let far = at(family.far(), 443);
        world.stack.handle_udp_from_host(world.now, id, far, &data, Some(1200), &mut world.out);
        let packet = world.packet();
        assert_eq!((packet.gso_size, packet.body.len()), (Some(1200), 8 + data.len()));
        // Without the offload, one by one.
        let offloads = Offloads { uso: false, ..all_offloads() };
        let mut plain = World::with(config(1500, offloads), Limits::default());
        let guest = at(family.guest(), 5000);
        let sent = send(&mut plain, guest, far, b"open");
        plain.stack.handle_udp_from_host(plain.now, mapping(&sent), far, &data, Some(1200), &mut plain.out);
        let got = received(&mut plain);
        assert_eq!(got.len(), 11);
        assert_eq!(got.into_iter().flat_map(|(_, _, part)| part).collect::<Vec<_>>(), data);
    }
}

#[test]
fn mappings_end_when_idle() {
    let far = at(Family::V4.far(), 4000);
    let name_server = at(Family::V4.far(), 53);
    for (target, answered_for, life) in
        [(name_server, 0, IDLE_DNS), (far, 0, IDLE), (far, 1, IDLE), (far, 10, IDLE_STREAM)]
    {
        let mut world = World::new();
        let guest = at(Family::V4.guest(), 5000);
        let sent = send(&mut world, guest, target, b"x");
        let id = mapping(&sent);
        for _ in 0..answered_for {
            world.pass(Duration::from_secs(1));
            world.stack.handle_udp_from_host(world.now, id, target, b"y", None, &mut world.out);
        }
        world.pass(life - Duration::from_secs(1));
        assert_eq!((world.stack.flows().1, world.stack.poll_udp_closed()), (1, None), "{target} {answered_for}");
        world.pass(Duration::from_secs(2));
        assert_eq!((world.stack.flows().1, world.stack.poll_udp_closed()), (0, Some(id)), "{target} {answered_for}");
        // What comes late is counted.
        world.packets();
        world.stack.handle_udp_from_host(world.now, id, target, b"late", None, &mut world.out);
        world.silent();
        assert_eq!(world.drops(DropReason::NoMapping), 1);
    }
}

#[test]
fn mappings_are_bounded_and_the_idlest_gives_way() {
    let limits = Limits { udp: UdpLimits { max_mappings: 4, max_pairs: 4 }, ..Limits::default() };
    let mut world = World::with(config(1500, all_offloads()), limits);
    let far = at(Family::V4.far(), 4000);
    let ids: Vec<_> = (0..4)
        .map(|i| {
            world.pass(Duration::from_millis(10));
            let guest = at(Family::V4.guest(), 5000 + i);
            mapping(&send(&mut world, guest, far, b"x"))
        })
        .collect();
    world.pass(Duration::from_millis(10));
    send(&mut world, at(Family::V4.guest(), 5000), far, b"again");
    send(&mut world, at(Family::V4.guest(), 6000), far, b"one more");
    assert_eq!(world.stack.flows().1, 4);
    let gone = world.stack.poll_udp_closed().expect("one gave way");
    assert_ne!(gone, ids[0], "the busiest stays");
    assert_eq!(world.stack.poll_udp_closed(), None);
}

#[test]
fn an_answer_from_the_host_itself_comes_from_the_gateway() {
    for family in BOTH {
        let mut config = config(1500, all_offloads());
        config.allow_host_loopback = true;
        let mut world = World::with(config, Limits::default());
        let guest = at(family.guest(), 5000);
        let gateway = at(family.gateway(), 7777);
        let loopback = at(ip(if family.is_v6() { "::1" } else { "127.0.0.1" }), 7777);
        let sent = send(&mut world, guest, gateway, b"x");
        assert_eq!(sent.target, loopback);
        world.stack.handle_udp_from_host(world.now, mapping(&sent), loopback, b"y", None, &mut world.out);
        assert_eq!(received(&mut world), [(gateway, guest, b"y".to_vec())]);
    }
}

#[test]
fn errors_about_datagrams_come_back() {
    let kinds = [
        (IcmpError::PortUnreachable, [3, 3], [1, 4]),
        (IcmpError::HostUnreachable, [3, 1], [1, 3]),
        (IcmpError::HopLimitExceeded, [11, 0], [3, 0]),
        (IcmpError::FragmentationNeeded { mtu: 1400 }, [3, 4], [2, 0]),
    ];
    for family in BOTH {
        for (kind, four, six) in kinds {
            let mut world = World::new();
            let (guest, far) = (at(family.guest(), 5000), at(family.far(), 33_434));
            let sent = send(&mut world, guest, far, b"probe");
            let router = ip(if family.is_v6() { "2001:db8:1::1" } else { "203.0.113.1" });
            for (offender, from) in [(Some(router), router), (Some(far.ip()), far.ip()), (None, family.gateway())] {
                let error = HostError { kind, target: far, offender, payload: b"probe" };
                world.stack.handle_udp_error(mapping(&sent), &error, &mut world.out);
                let packet = world.packet();
                assert_eq!((packet.src, packet.dst), (from, guest.ip()), "{kind:?}");
                assert_eq!(packet.body[..2], if family.is_v6() { six } else { four });
                if let IcmpError::FragmentationNeeded { mtu } = kind {
                    assert_eq!(packet.body[4..8], mtu.to_be_bytes());
                }
                // The guest's kernel finds the socket by the quoted ports.
                let quoted = &packet.body[8 + family.header()..];
                assert_eq!(quoted[..4], [&5000u16.to_be_bytes()[..], &33_434u16.to_be_bytes()].concat());
                assert_eq!(quoted[8..], *b"probe");
            }
        }
    }
}

#[test]
fn where_datagrams_may_not_go() {
    let mut world = World::new();
    for (address, port) in [("127.0.0.1", 7), ("169.254.169.254", 80), ("::1", 7), ("10.0.2.3", 99)] {
        let target = at(ip(address), port);
        let family = if target.is_ipv6() { Family::V6 } else { Family::V4 };
        world.inject(datagram(at(family.guest(), 5000), target, b"x").frame());
        assert!(world.out.udp.is_empty(), "{address}");
        let error = world.packet();
        assert_eq!(error.body[0], if family.is_v6() { 1 } else { 3 }, "{address}: unreachable");
    }
    // No error about an address that is no single host's (RFC 1812, 4.3.2.7).
    for address in ["0.0.0.0", "224.0.0.251", "255.255.255.255", "10.0.2.255", "ff02::fb"] {
        let target = at(ip(address), 5353);
        let family = if target.is_ipv6() { Family::V6 } else { Family::V4 };
        world.inject(datagram(at(family.guest(), 5000), target, b"x").frame());
        assert!(world.out.udp.is_empty(), "{address}");
        world.silent();
    }
}

#[test]
fn hops_run_out_here() {
    for family in BOTH {
        let mut world = World::new();
        let mut packet = datagram(at(family.guest(), 5000), at(family.far(), 33_434), b"x");
        packet.ttl = 1;
        world.inject(packet.frame());
        let error = world.packet();
        assert_eq!((error.src, error.body[0]), (family.gateway(), if family.is_v6() { 3 } else { 11 }));
        assert_eq!(error.body[8..], packet.bytes());
        assert_eq!(world.drops(DropReason::HopLimit), 1);
        packet.ttl = 2;
        world.inject(packet.frame());
        assert_eq!(world.out.udp[0].ttl, 1);
    }
}

#[test]
fn bad_checksums_are_dropped() {
    for family in BOTH {
        let mut world = World::new();
        let mut packet = datagram(at(family.guest(), 5000), at(family.far(), 7), b"payload");
        packet.body[9] ^= 1;
        world.inject(packet.frame());
        assert_eq!((world.out.udp.len(), world.drops(DropReason::Checksum)), (0, 1));
        // None at all is allowed in IPv4 (RFC 768), not in IPv6 (RFC 8200, 8.1).
        packet.body[6..8].fill(0);
        world.inject(packet.frame());
        assert_eq!(world.out.udp.len(), usize::from(!family.is_v6()));
    }
}

#[test]
fn names_are_asked_for_at_the_dns_address() {
    for family in BOTH {
        let mut world = World::new();
        let (guest, server) = (at(family.guest(), 5000), at(family.dns(), 53));
        world.inject(datagram(guest, server, b"question").frame());
        assert_eq!(world.out.dns, [(guest, server, b"question".to_vec())]);
        assert!(world.out.udp.is_empty());
        let answer = pattern(4000, 1);
        world.stack.handle_dns_answer(guest, server, &answer, &mut world.out);
        assert_eq!(received(&mut world), [(server, guest, answer)]);
    }
}

fn echo(family: Family, target: IpAddr, ident: u16, seq: u16, data: &[u8]) -> Ip {
    let v6 = family.is_v6();
    let mut body = vec![if v6 { 128 } else { 8 }, 0, 0, 0];
    body.extend(ident.to_be_bytes());
    body.extend(seq.to_be_bytes());
    body.extend(data);
    let sum =
        if v6 { tapway::wire::csum::full(family.guest(), target, 58, &body) } else { tapway::wire::csum::plain(&body) };
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    Ip::new(family.guest(), target, if v6 { 58 } else { 1 }, body)
}

#[test]
fn echo_goes_out_and_comes_back_as_it_was() {
    for family in BOTH {
        let mut world = World::new();
        for size in [0, 56, 1472, 9000] {
            let data = pattern(size, 4);
            world.inject(echo(family, family.far(), 77, 5, &data).frame());
            let sent = world.out.ping.remove(0);
            assert_eq!((sent.target, sent.seq, sent.ttl), (family.far(), 5, 63));
            assert_eq!(sent.payload, data);
            world.stack.handle_ping_from_host(sent.id, family.far(), (5, 50), &data, &mut world.out);
            let reply = world.packet();
            assert_eq!((reply.src, reply.dst, reply.ttl), (family.far(), family.guest(), 49));
            assert_eq!(reply.body[0], if family.is_v6() { 129 } else { 0 });
            assert_eq!(reply.body[4..8], [0, 77, 0, 5], "the guest's own identifier");
            assert_eq!(reply.body[8..], data);
        }
        assert_eq!(world.stack.flows().3, 1, "one session");
        // Another program pings at the same time.
        world.inject(echo(family, family.far(), 78, 1, b"x").frame());
        assert_eq!(world.stack.flows().3, 2);
        world.pass(Duration::from_secs(31));
        assert_eq!(world.stack.flows().3, 0);
        assert!(world.stack.poll_ping_closed().is_some() && world.stack.poll_ping_closed().is_some());
    }
}

#[test]
fn the_gateway_answers_echo_itself() {
    for family in BOTH {
        let mut world = World::new();
        for target in [family.gateway(), family.dns()] {
            world.inject(echo(family, target, 1, 2, b"hello").frame());
            let reply = world.packet();
            assert_eq!((reply.src, reply.dst), (target, family.guest()));
            assert_eq!(reply.body[4..], *b"\0\x01\0\x02hello");
        }
        assert!(world.out.ping.is_empty());
    }
}

#[test]
fn errors_about_echo_come_back() {
    for family in BOTH {
        let mut world = World::new();
        world.inject(echo(family, family.far(), 77, 9, b"where are you").frame());
        let sent = world.out.ping.remove(0);
        let router = ip(if family.is_v6() { "2001:db8:1::1" } else { "203.0.113.1" });
        let error = HostError {
            kind: IcmpError::HopLimitExceeded,
            target: at(family.far(), 0),
            offender: Some(router),
            payload: b"where are you",
        };
        world.stack.handle_ping_error(sent.id, 9, &error, &mut world.out);
        let packet = world.packet();
        assert_eq!((packet.src, packet.body[0]), (router, if family.is_v6() { 3 } else { 11 }));
        // `traceroute` finds its probe by the quoted identifier and sequence number.
        let quoted = &packet.body[8 + family.header()..];
        assert_eq!((quoted[0], &quoted[4..8]), (if family.is_v6() { 128 } else { 8 }, &[0, 77, 0, 9][..]));
        // The first hop is we.
        let mut near = echo(family, family.far(), 77, 1, b"x");
        near.ttl = 1;
        world.inject(near.frame());
        assert_eq!(world.packet().src, family.gateway());
    }
}

#[test]
fn protocols_that_are_not_carried_are_refused() {
    for family in BOTH {
        let mut world = World::new();
        world.inject(Ip::new(family.guest(), family.far(), 132, vec![0; 20]).frame());
        let error = world.packet();
        assert_eq!(error.body[..2], if family.is_v6() { [4, 1] } else { [3, 2] });
        assert_eq!(world.drops(DropReason::Protocol), 1);
    }
}

#[test]
fn fragments_that_never_become_whole_are_told() {
    for family in BOTH {
        let mut world = World::new();
        let packet = datagram(at(family.guest(), 5000), at(family.far(), 7), &pattern(100, 1));
        let piece = Ip { fragment: Some((9, 0, true)), body: packet.body[..48].to_vec(), ..packet };
        world.inject(piece.frame());
        world.silent();
        world.pass(Duration::from_secs(61));
        let error = world.packet();
        assert_eq!(error.body[..2], if family.is_v6() { [3, 1] } else { [11, 1] });
        assert_eq!(error.body[8..], piece.bytes());
        assert!(world.out.udp.is_empty());
    }
}
