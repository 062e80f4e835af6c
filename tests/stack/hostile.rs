//! Any frame at all: nothing panics, nothing that goes out is malformed, and everything ends.

use proptest::prelude::*;
use smoltcp::time::Duration;
use tapway::stack::Limits;
use tapway::stack::flow::GuestPort;
use tapway::stack::guests::GuestLimits;
use tapway::stack::reassembly;
use tapway::stack::tcp::{ConnectFailure, TcpLimits};
use tapway::stack::udp::UdpLimits;
use tapway::wire::icmp_error::IcmpError;

use crate::sim::*;

fn small_limits() -> Limits {
    Limits {
        tcp: TcpLimits { max_flows: 8, max_opening: 4, large_rings: 2, ..TcpLimits::default() },
        udp: UdpLimits { max_mappings: 4, max_pairs: 4 },
        ping_sessions: 2,
        reassembly: reassembly::Limits { datagrams: 4, bytes: 100_000, ..reassembly::Limits::default() },
        guests: GuestLimits { known: 4, asked: 2, held_frames: 8, held_bytes: 100_000 },
        ..Limits::default()
    }
}

/// What was handed out must be well formed; the connects are answered in every way there is.
fn look(world: &mut World, choice: u64) {
    world.frames();
    world.out.udp.clear();
    world.out.ping.clear();
    world.out.dns.clear();
    while !world.connects.is_empty() {
        match choice % 5 {
            0 => world.fail(ConnectFailure::Refused),
            1 => world.fail(ConnectFailure::Unreachable(IcmpError::HostUnreachable)),
            2 => world.fail(ConnectFailure::Silent),
            _ => world.accept(),
        };
    }
    world.frames();
    let (tcp, mappings, pairs, pings) = world.stack.flows();
    assert!(tcp <= 8 && mappings <= 4 && pairs <= 4 && pings <= 2);
}

/// In the end nothing is left over.
fn end(world: &mut World) {
    for flow in world.host.keys().copied().collect::<Vec<_>>() {
        if let Some(socket) = world.host.get_mut(&flow) {
            socket.broken = true;
        }
        world.poke(flow);
    }
    world.pass(Duration::from_secs(1000));
    while world.stack.poll_udp_closed().is_some() || world.stack.poll_ping_closed().is_some() {}
    assert_eq!(world.stack.flows(), (0, 0, 0, 0));
    world.frames();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of no meaning.
    #[test]
    fn noise(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let mut world = World::with(config(1500, all_offloads()), small_limits());
        for mut frame in frames {
            if frame.len() > 24 {
                frame[10..16].copy_from_slice(&GATEWAY_MAC);
                frame[16..22].copy_from_slice(&GUEST_MAC);
            }
            world.inject(frame);
            look(&mut world, 3);
        }
        end(&mut world);
    }

    /// Good headers around nonsense of any protocol, with a vnet header of nonsense.
    #[test]
    fn nonsense_in_good_headers(
        packets in proptest::collection::vec((
            any::<bool>(),
            prop_oneof![Just(1u8), Just(6), Just(17), Just(58), Just(0), Just(44), Just(60), any::<u8>()],
            proptest::collection::vec(any::<u8>(), 0..200),
            proptest::option::of((0u32..3, 0usize..40, any::<bool>())),
            proptest::option::of(any::<[u8; 10]>()),
            any::<u8>(),
        ), 1..20),
        choice in any::<u64>(),
    ) {
        let mut world = World::with(config(1500, all_offloads()), small_limits());
        for (v6, protocol, body, fragment, vnet, ttl) in packets {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let mut packet = Ip::new(family.guest(), family.far(), protocol, body);
            packet.ttl = ttl;
            packet.fragment = fragment.map(|(ident, offset, more)| (ident, offset * 8, more));
            let mut frame = packet.frame();
            if let Some(vnet) = vnet {
                frame[..10].copy_from_slice(&vnet);
            } else {
                // "Checksum is good", so that what is behind it is reached.
                frame[0] = 2;
            }
            world.inject(frame);
            look(&mut world, choice);
        }
        end(&mut world);
    }

    /// TCP segments that are well formed and make no sense, on few ports so that they meet.
    #[test]
    fn segments_without_sense(
        segments in proptest::collection::vec((
            0u16..3,
            any::<u8>(),
            prop_oneof![0u32..4, 1000u32..1010, any::<u32>()],
            prop_oneof![0u32..4, any::<u32>()],
            any::<u16>(),
            proptest::collection::vec(any::<u8>(), 0..12),
            0usize..3000,
            0u64..200_000,
        ), 1..60),
        choice in any::<u64>(),
    ) {
        let mut world = World::with(config(1500, all_offloads()), small_limits());
        for (port, flags, seq, ack, window, mut options, length, wait) in segments {
            options.resize(options.len() / 4 * 4, 0);
            world.send(&Seg {
                src: at(Family::V4.guest(), 4000 + port),
                dst: at(Family::V4.far(), 80),
                flags,
                seq,
                ack,
                window,
                options,
                payload: vec![9; length],
                gso_size: None,
            });
            look(&mut world, choice);
            for flow in world.host.keys().copied().collect::<Vec<_>>() {
                if choice & 1 == 0 && world.host.contains_key(&flow) {
                    world.host_sends(flow, b"data from the host");
                }
                if choice & 2 == 0 && world.host.contains_key(&flow) {
                    world.host_ends(flow);
                }
            }
            world.pass(Duration::from_millis(wait));
            look(&mut world, choice);
        }
        end(&mut world);
    }

    /// slirp4netns's segment: anybody from any MAC, nonsense of every layer, and published ports to anywhere. Each frame
    /// goes to the MAC that its guest was last seen with.
    #[test]
    fn anybody_on_a_segment_that_learns(
        acts in proptest::collection::vec((
            0u8..8,
            any::<bool>(),
            (0u8..7, 0u8..4),
            proptest::collection::vec(any::<u8>(), 0..120),
            0u64..2500,
        ), 1..80),
        choice in any::<u64>(),
    ) {
        let mut world = World::with(slirp_config(1520, all_offloads()), small_limits());
        for (act, v6, (who, mac), bytes, wait) in acts {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let guest = ip(&if v6 { format!("fd00:1:2:3::10{who}") } else { format!("10.0.2.10{who}") });
            let mac = [2, 0, 0, 0, 0, mac];
            world.macs.insert(guest, mac);
            let mut spoken = true;
            match act {
                0 => {
                    let conn = Conn::new(&mut world, at(guest, 4000), at(family.far(), 80));
                    world.send(&conn.syn());
                }
                1 => {
                    let ends = (at(guest, 4000), at(family.gateway(), 80));
                    world.inject_ip(&Ip::new(ends.0.ip(), ends.1.ip(), UDP, udp_body(ends.0, ends.1, &bytes)));
                }
                2 => world.inject_ip(&Ip::new(guest, family.far(), TCP, bytes)),
                3 => {
                    // Neighbour discovery and echo of any kind, with a good checksum.
                    let mut body = vec![0; 4];
                    body.extend(bytes);
                    body[0] = 128 + who * 2;
                    let (protocol, sum) = if v6 {
                        (58, tapway::wire::csum::full(guest, ip("fe80::2"), 58, &body))
                    } else {
                        (1, tapway::wire::csum::plain(&body))
                    };
                    body[2..4].copy_from_slice(&sum.to_be_bytes());
                    let mut packet = Ip::new(guest, if v6 { ip("fe80::2") } else { family.far() }, protocol, body);
                    packet.ttl = 255;
                    world.inject_ip(&packet);
                    spoken = false;
                }
                4 => {
                    let mut frame = vec![0; 10];
                    frame.extend([0xff; 6]);
                    frame.extend(mac);
                    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, (who & 1) + 1]);
                    frame.extend(&bytes);
                    world.inject(frame);
                    spoken = false;
                }
                5 => {
                    let port = GuestPort { addr: Some(guest), port: 80 };
                    let _ = world.stack.handle_tcp_accepted(world.now, (0, port), at(family.far(), 5000 + u16::from(who)));
                    world.settle();
                    spoken = false;
                }
                _ => {
                    let listener = (usize::from(who), GuestPort { addr: Some(guest), port: 53 });
                    let (client, local) = (at(family.far(), 5000), ip("192.0.2.1"));
                    world.stack.handle_udp_published(world.now, listener, (client, local), &bytes, None, &mut world.out);
                    spoken = false;
                }
            }
            if spoken {
                // What it may have drawn, and what waited for it.
                for frame in &world.out.to_guest {
                    let arp = frame[22..24] == [8, 6] || frame[10] & 1 == 1;
                    // Another guest's idle flow that gave way: the reset is that one's.
                    let tcp = if frame[22..24] == [8, 0] { 44 } else { 64 };
                    let reset = frame.get(tcp + 13).is_some_and(|flags| flags & RST != 0);
                    assert!(arp || reset || frame[10..16] == mac, "{frame:?}");
                }
            }
            look(&mut world, choice);
            let (known, asked, held) = world.stack.guests().unwrap();
            assert!(known <= 8 && asked <= 2 && held <= 200_000);
            world.pass(Duration::from_millis(wait));
            look(&mut world, choice);
        }
        end(&mut world);
        assert_eq!(world.stack.guests().unwrap().1, 0);
    }
}
