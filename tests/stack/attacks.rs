//! A guest that means harm, one attack each: the bound holds, what is refused is counted under a name, the oldest goes first, and what
//! behaves goes on.

use smoltcp::time::Duration;
use tapway::stack::Limits;
use tapway::stack::bucket::Rate;
use tapway::stack::reassembly;
use tapway::stack::tcp::TcpLimits;
use tapway::stack::udp::UdpLimits;
use tapway::stack::verdict::DropReason;
use tapway::wire::csum;
use tapway::wire::vnet::{Gso, VnetHdr};

use crate::sim::*;
use crate::switch::{Net, mac, v4};

/// The flow that behaves: its port is below all of the attackers'.
struct Good {
    conn: Conn,
    flow: tapway::stack::arena::Id,
}

impl Good {
    fn begin(world: &mut World) -> Self {
        let mut conn = Conn::new(world, at(Family::V4.guest(), 999), at(Family::V4.far(), 443));
        let flow = conn.open(world);
        Self { conn, flow }
    }

    /// Says something to the host and hears something.
    fn goes_on(&mut self, world: &mut World) {
        world.out.to_guest.clear();
        let before = world.host(self.flow).received.len();
        self.conn.push(world, ACK | PSH, b"question");
        assert_eq!(&world.host(self.flow).received[before..], b"question");
        world.out.to_guest.clear();
        world.host_sends(self.flow, b"answer");
        let came: Vec<u8> = world.segments().iter().flat_map(|segment| segment.payload.clone()).collect();
        assert_eq!(came, b"answer");
        self.conn.ack = self.conn.ack.wrapping_add(6);
        self.conn.acknowledge(world);
    }
}

fn tcp(limits: TcpLimits) -> World {
    World::with(config(1500, all_offloads()), Limits { tcp: limits, ..Limits::default() })
}

/// The n-th attacker's connection: to other hosts, from other ports.
fn nth(world: &mut World, n: u16) -> Conn {
    let peer = ip(&format!("198.51.{}.{}", n >> 8, n & 0xff));
    Conn::new(world, at(Family::V4.guest(), 1000 + n), at(peer, 80))
}

#[test]
fn a_syn_flood_to_hosts_that_never_answer_costs_its_own_oldest() {
    let mut world = tcp(TcpLimits { max_opening: 4, ..TcpLimits::default() });
    let mut good = Good::begin(&mut world);
    let mut order = Vec::new();
    for n in 0..300 {
        let conn = nth(&mut world, n);
        world.send(&conn.syn());
        order.push(world.connects.last().unwrap().0);
        assert!(world.connects.len() <= 4 && world.tcp_flows() <= 5);
        if n % 50 == 0 {
            good.goes_on(&mut world);
        }
    }
    let closed: Vec<_> = world.closed.iter().map(|(id, _)| *id).collect();
    assert_eq!(closed, order[..296], "the oldest first");
    assert_eq!(world.drops(DropReason::TableFull), 296);
}

#[test]
fn handshakes_that_the_guest_never_finishes_are_few() {
    let mut world = tcp(TcpLimits { max_half_open: 4, ..TcpLimits::default() });
    let mut good = Good::begin(&mut world);
    let mut order = Vec::new();
    for n in 0..300 {
        let conn = nth(&mut world, n);
        world.send(&conn.syn());
        order.push(world.accept());
        assert!(world.tcp_flows() <= 5, "{}", world.tcp_flows());
        if n % 50 == 0 {
            good.goes_on(&mut world);
        }
    }
    let closed: Vec<_> = world.closed.iter().map(|(id, in_order)| (*id, *in_order)).collect();
    assert_eq!(closed, order[..296].iter().map(|id| (*id, false)).collect::<Vec<_>>());
    assert_eq!(world.drops(DropReason::TableFull), 296);
    // The newest can still be finished.
    world.pass(Duration::from_secs(130));
    assert_eq!(world.tcp_flows(), 1, "and all end by themselves");
    good.goes_on(&mut world);
}

#[test]
fn a_full_table_gives_the_place_of_the_longest_idle() {
    let mut world = tcp(TcpLimits { max_flows: 5, ..TcpLimits::default() });
    let mut good = Good::begin(&mut world);
    let mut idle: Vec<_> = (0..4)
        .map(|n| {
            let mut conn = nth(&mut world, n);
            let flow = conn.open(&mut world);
            world.pass(Duration::from_millis(10));
            (conn, flow)
        })
        .collect();
    // Nobody is idle yet.
    let early = nth(&mut world, 10);
    world.send(&early.syn());
    assert_eq!((world.tcp_flows(), world.connects.len(), world.drops(DropReason::TableFull)), (5, 0, 1));
    world.pass(Duration::from_secs(2));
    // The second one speaks again, and so do those that behave.
    idle[1].0.push(&mut world, ACK | PSH, b"x");
    for (n, gives_way) in [(20, 0), (21, 2), (22, 3)] {
        good.goes_on(&mut world);
        let conn = nth(&mut world, n);
        world.send(&conn.syn());
        assert_eq!(world.closed.last(), Some(&(idle[gives_way].1, false)), "{n}");
        let told = world.segments().into_iter().find(|s| s.has(RST)).expect("the guest is told");
        assert_eq!((told.dst, told.seq), (idle[gives_way].0.guest, idle[gives_way].0.ack));
        assert_eq!(world.tcp_flows(), 5);
    }
    assert_eq!(world.drops(DropReason::TableFull), 4);
    good.goes_on(&mut world);
}

/// Bytes of one ring.
const RING: usize = 65_495;

#[test]
fn a_hoard_of_shut_windows_is_bounded_in_bytes() {
    let held = 5 * RING;
    let mut world = tcp(TcpLimits { held, ..TcpLimits::default() });
    let mut good = Good::begin(&mut world);
    let mut order = Vec::new();
    for n in 0..40 {
        let mut conn = nth(&mut world, n);
        conn.window = 0;
        let flow = conn.open(&mut world);
        order.push(flow);
        // The host goes on sending; the ring is all that it can fill.
        world.host_sends(flow, &pattern(200_000, n.into()));
        world.out.to_guest.clear();
        let (.., bytes) = world.stack.holds();
        assert!(bytes <= held, "{bytes} at {n}");
        world.pass(Duration::from_millis(100));
        good.goes_on(&mut world);
    }
    let closed: Vec<_> = world.closed.iter().map(|(id, _)| *id).collect();
    assert_eq!(closed, order[..closed.len()], "of whom nobody took a byte for the longest time");
    assert!(closed.len() >= 34, "{}", closed.len());
    assert_eq!(world.drops(DropReason::Memory), closed.len() as u64);
    // Window probes that the guest answers make nobody young; the good one would be the oldest by its birth.
    good.goes_on(&mut world);
}

#[test]
fn a_host_that_stops_reading_is_bounded_the_same_way() {
    let held = 5 * RING;
    let mut world = tcp(TcpLimits { held, ..TcpLimits::default() });
    let mut good = Good::begin(&mut world);
    for n in 0..40 {
        let mut conn = nth(&mut world, n);
        let flow = conn.open(&mut world);
        world.host(flow).takes = 0;
        for _ in 0..50 {
            conn.push(&mut world, ACK, &[7; 1200]);
        }
        world.out.to_guest.clear();
        assert!(world.stack.holds().2 <= held);
        world.pass(Duration::from_millis(100));
        good.goes_on(&mut world);
    }
    assert!(world.drops(DropReason::Memory) >= 30, "{}", world.drops(DropReason::Memory));
}

#[test]
fn what_host_sockets_hold_in_the_kernel_counts() {
    let mut world = tcp(TcpLimits { held: 40 << 20, ..TcpLimits::default() });
    let mut good = Good::begin(&mut world);
    let flows: Vec<_> = (0..4).map(|n| nth(&mut world, n).open(&mut world)).collect();
    for (n, &flow) in flows.iter().enumerate() {
        world.pass(Duration::from_millis(50));
        world.host_sends(flow, b"something");
        world.stack.charge_tcp(flow, 3 << 20);
        world.stack.finish_tcp(flow, world.now, &mut world.out);
        world.settle();
        assert_eq!(world.closed.len(), usize::from(n == 3), "the fourth is one too many");
    }
    assert_eq!((world.closed[0].0, world.drops(DropReason::Memory)), (flows[0], 1));
    world.stack.charge_tcp(flows[1], 0);
    assert!(world.stack.holds().2 < 28 << 20);
    good.goes_on(&mut world);
}

fn datagram(world: &mut World, port: u16, to: std::net::IpAddr) {
    let (guest, peer) = (at(Family::V4.guest(), port), at(to, 5000));
    world.inject(Ip::new(guest.ip(), peer.ip(), UDP, udp_body(guest, peer, b"x")).frame());
}

#[test]
fn mappings_and_echo_sessions_give_way_by_age() {
    let limits =
        Limits { udp: UdpLimits { max_mappings: 4, ..UdpLimits::default() }, ping_sessions: 4, ..Limits::default() };
    let mut world = World::with(config(1500, all_offloads()), limits);
    for n in 0..500_u16 {
        world.pass(Duration::from_millis(1));
        datagram(&mut world, 2000 + n, Family::V4.far());
        // One that is used all the time.
        datagram(&mut world, 999, Family::V4.far());
        let echo = |ident: u16| {
            let mut body = vec![8, 0, 0, 0];
            body.extend([ident.to_be_bytes(), 1_u16.to_be_bytes()].concat());
            let sum = csum::plain(&body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
            Ip::new(Family::V4.guest(), Family::V4.far(), 1, body).frame()
        };
        world.inject(echo(2000 + n));
        world.inject(echo(1));
        let (_, mappings, _, pings) = world.stack.flows();
        assert!(mappings <= 4 && pings <= 4);
    }
    let good: std::collections::HashSet<_> =
        world.out.udp.iter().filter(|sent| sent.guest.port() == 999).map(|sent| format!("{:?}", sent.via)).collect();
    assert_eq!(good.len(), 1, "the mapping in use was never replaced: {good:?}");
    assert_eq!(world.stack.numbers().evicted, [497, 497]);
}

#[test]
fn fragment_bombs_push_out_the_oldest_and_are_counted() {
    for family in BOTH {
        let limits =
            Limits { reassembly: reassembly::Limits { datagrams: 4, ..Default::default() }, ..Limits::default() };
        let mut world = World::with(config(1500, all_offloads()), limits);
        let piece = |ident: u32, offset: usize, more: bool, len: usize| {
            let mut packet = Ip::new(family.guest(), family.far(), UDP, vec![1; len]);
            packet.fragment = Some((ident, offset, more));
            packet.frame()
        };
        for ident in 0..1000 {
            // Never finished, and far apart: all that a datagram can be.
            world.inject(piece(ident, 0, true, 8));
            world.inject(piece(ident, 65_000, true, 8));
        }
        assert_eq!(world.drops(DropReason::Fragment), 996, "those that gave way");
        // Overlapping ones poison their datagram.
        world.inject(piece(5000, 0, true, 24));
        world.inject(piece(5000, 8, true, 24));
        assert_eq!(world.drops(DropReason::Fragment), 998);
        // One that is whole goes on beside them.
        let (guest, peer) = (at(family.guest(), 999), at(family.far(), 5000));
        let body = udp_body(guest, peer, &[9; 2000]);
        for (offset, more) in [(0, true), (1200, false)] {
            let part = if more { &body[..1200] } else { &body[1200..] };
            let mut packet = Ip::new(guest.ip(), peer.ip(), UDP, part.to_vec());
            packet.fragment = Some((77_777, offset, more));
            world.inject(packet.frame());
        }
        assert_eq!(world.out.udp.len(), 1, "{family:?}");
        assert_eq!(world.out.udp[0].payload, [9; 2000]);
        world.pass(Duration::from_secs(120));
        assert_eq!(world.out.to_guest.len() as u64 / 5, 0, "at most an error for each that was held");
    }
}

/// Answers to a guest that sends one of these frames a thousand times at once, then after a second again.
fn answers(frame: &[u8]) -> (World, usize, usize) {
    let limits = Limits { answers: Rate { per_second: 100, burst: 50 }, ..Limits::default() };
    let mut world = World::with(config(1500, all_offloads()), limits);
    let mut good = Good::begin(&mut world);
    let mut round = |world: &mut World| {
        world.out.to_guest.clear();
        for _ in 0..1000 {
            world.inject(frame.to_vec());
        }
        let came = world.out.to_guest.len();
        good.goes_on(world);
        came
    };
    let first = round(&mut world);
    world.pass(Duration::from_millis(100));
    let second = round(&mut world);
    (world, first, second)
}

#[test]
fn answers_that_carry_nothing_have_a_rate() {
    let family = Family::V4;
    let mut stray = Conn::new(&mut World::new(), at(family.guest(), 5000), at(family.far(), 80)).seg(ACK, b"junk");
    stray.ack = 7;
    let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1];
    let sum = csum::plain(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    let (guest, refused) = (at(family.guest(), 5000), at(ip("127.0.0.1"), 9));
    let frames = [
        ("a segment of no flow", stray.frame(), Some(DropReason::NoFlow)),
        ("echo of the gateway", Ip::new(family.guest(), family.gateway(), 1, echo).frame(), None),
        (
            "a refused datagram",
            Ip::new(guest.ip(), refused.ip(), UDP, udp_body(guest, refused, b"x")).frame(),
            Some(DropReason::Refused),
        ),
        (
            "another protocol",
            Ip::new(family.guest(), family.far(), 132, vec![0; 8]).frame(),
            Some(DropReason::Protocol),
        ),
    ];
    for (what, frame, counted) in frames {
        let (world, first, second) = answers(&frame);
        assert_eq!((first, second), (50, 10), "{what}");
        assert_eq!(world.drops(DropReason::RateLimited), 1940, "{what}");
        if let Some(reason) = counted {
            assert_eq!(world.drops(reason), 2000, "{what}");
        }
    }
}

#[test]
fn nobody_asks_or_speaks_in_anothers_name() {
    let mut world = World::new();
    for n in 0..200 {
        let victim = at(ip(&format!("192.0.2.{n}")), 5353);
        let server = at(Family::V4.dns(), 53);
        world.inject(Ip::new(victim.ip(), server.ip(), UDP, udp_body(victim, server, b"a question")).frame());
        datagram(&mut world, 5000, Family::V4.far());
        let mut conn = nth(&mut world, n);
        conn.guest = victim;
        world.send(&conn.syn());
    }
    assert_eq!(world.drops(DropReason::SpoofedSource), 400);
    assert!(world.out.dns.is_empty() && world.connects.is_empty(), "nothing is amplified to a victim");
    assert!(world.out.to_guest.is_empty());
    assert_eq!(world.stack.flows().1, 1);
}

#[test]
fn super_frames_of_thousands_of_packets_are_none() {
    for (size, sent) in [(1, 0), (511, 0), (512, 1)] {
        let mut world = World::new();
        let (guest, peer) = (at(Family::V4.guest(), 5000), at(Family::V4.far(), 5000));
        let mut frame = Ip::new(guest.ip(), peer.ip(), UDP, udp_body(guest, peer, &vec![5; 65_500])).frame();
        let hdr = VnetHdr {
            needs_csum: true,
            csum_start: 34,
            csum_offset: 6,
            hdr_len: 42,
            gso: Gso::Udp,
            gso_size: size,
            ..VnetHdr::default()
        };
        hdr.emit(&mut frame);
        world.inject(frame);
        assert_eq!((world.out.udp.len(), world.drops(DropReason::Malformed)), (sent, 1 - sent as u64), "{size}");
    }
}

#[test]
fn a_broadcast_storm_among_fifty_reaches_them_at_its_rate() {
    let mut net = Net::new(true, false, 50);
    let (host, all) = (at(v4(1), 5000), at(ip("10.0.2.255"), 5000));
    let packet = Ip::new(host.ip(), all.ip(), UDP, udp_body(host, all, b"to all"));
    let good = Ip::new(v4(2), v4(3), UDP, udp_body(at(v4(2), 1), at(v4(3), 1), b"to one"));
    let storm = |net: &mut Net| {
        let mut reached = 0;
        for n in 0..10_000 {
            reached += usize::from(net.send(1, [0xff; 6], &packet).len() == 49);
            if n % 1000 == 0 {
                assert_eq!(net.send(2, mac(3), &good), [3], "what is for one goes on");
            }
            net.clear();
        }
        reached
    };
    assert_eq!(storm(&mut net), 20_480 / 49, "a burst");
    net.now += Duration::from_millis(100);
    assert_eq!(storm(&mut net), 2_000 / 49 + 1, "then its rate, with what was left of the burst");
    assert!(net.stacks[1].drops().get(DropReason::RateLimited) > 19_000);
    // Others have their own.
    let other = Ip::new(v4(4), all.ip(), UDP, udp_body(at(v4(4), 1), all, b"to all"));
    assert_eq!(net.send(4, [0xff; 6], &other).len(), 49);
}

#[test]
fn groups_without_end_are_refused_to_who_wants_them_alone() {
    let mut net = Net::new(true, false, 3);
    let join = |net: &mut Net, member: u16, group: u32| {
        let group = std::net::Ipv4Addr::from(0xef01_0000 + group);
        let mut body = vec![0x16, 0, 0, 0];
        body.extend(group.octets());
        net.send(member, [1, 0, 0x5e, 1, 0, 1], &Ip::new(v4(member), group.into(), 2, body));
    };
    for group in 0..10_000 {
        join(&mut net, 0, group);
    }
    join(&mut net, 1, 9_999);
    assert_eq!(net.switch.group_memberships(), 65);
    assert_eq!(net.stacks[0].drops().get(DropReason::TableFull), 10_000 - 64);
    assert_eq!(net.stacks[1].drops().get(DropReason::TableFull), 0);
    // Who goes and comes has as many again.
    net.switch.detach(0);
    assert_eq!(net.switch.group_memberships(), 1);
}
