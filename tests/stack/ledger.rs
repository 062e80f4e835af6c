//! What flows are said to have carried, pages of them, their ends, and the events about them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant as Clock;

use smoltcp::time::Duration;
use tapway::stack::census::{Cursor, EndFilter, FlowFilter, FlowId, FlowRecord, FlowState, Kind, PAGE, Protocol};
use tapway::stack::flow::GuestPort;
use tapway::stack::ledger::FlowEvent;
use tapway::stack::tcp::TcpLimits;
use tapway::stack::udp::UdpVia;
use tapway::stack::{HostError, Limits};
use tapway::wire::icmp_error::IcmpError;

use crate::sim::*;

fn all(world: &World) -> Vec<FlowRecord> {
    filtered(world, &FlowFilter::default())
}

fn filtered(world: &World, filter: &FlowFilter) -> Vec<FlowRecord> {
    let mut page = Vec::new();
    let mut next = Some(Cursor::START);
    while let Some(after) = next {
        next = world.stack.flows_page(after, PAGE, filter, &mut page);
    }
    page
}

fn only(world: &World) -> FlowRecord {
    let flows = all(world);
    assert_eq!(flows.len(), 1, "{flows:?}");
    flows[0]
}

fn datagram(world: &mut World, family: Family, from: u16, to: u16, payload: &[u8]) -> UdpSent {
    let (src, dst) = (at(family.guest(), from), at(family.far(), to));
    world.inject_ip(&Ip::new(src.ip(), dst.ip(), UDP, udp_body(src, dst, payload)));
    world.out.udp.pop().expect("sent")
}

fn echo(world: &mut World, family: Family, ident: u16, data: &[u8]) -> PingSent {
    let mut body = vec![if family.is_v6() { 128 } else { 8 }, 0, 0, 0];
    body.extend(ident.to_be_bytes());
    body.extend([0, 1]);
    body.extend(data);
    let protocol = if family.is_v6() { 58 } else { 1 };
    let sum = if family.is_v6() {
        tapway::wire::csum::full(family.guest(), family.far(), 58, &body)
    } else {
        tapway::wire::csum::plain(&body)
    };
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    world.inject_ip(&Ip::new(family.guest(), family.far(), protocol, body));
    world.out.ping.pop().expect("sent")
}

#[test]
fn a_connection_counts_what_it_moves() {
    for family in BOTH {
        let mut world = World::new();
        let began = world.now;
        let mut conn = Conn::out(&mut world, family);
        let flow = conn.open(&mut world);
        world.pass(Duration::from_secs(3));
        let (up, down) = (pattern(100_000, 1), pattern(300_000, 2));
        let mut sent = 2;
        for piece in up.chunks(1000) {
            conn.push(&mut world, ACK | PSH, piece);
            sent += 1;
        }
        world.segments();
        world.host_sends(flow, &down);
        let mut got = Vec::new();
        while got.len() < down.len() {
            got.extend(conn.take(&mut world).0);
            conn.acknowledge(&mut world);
            sent += 1;
        }
        assert_eq!(got, down);
        let record = only(&world);
        assert_eq!(record.id, FlowId { kind: Kind::Tcp, id: flow });
        assert_eq!((record.guest, record.peer, record.target), (conn.guest, conn.peer, Some(conn.peer)));
        assert_eq!((record.listener, record.state), (None, FlowState::Open));
        assert_eq!(record.traffic.from_guest_bytes, up.len() as u64);
        assert_eq!(record.traffic.to_guest_bytes, down.len() as u64);
        assert_eq!(record.traffic.from_guest_packets, sent);
        assert_eq!((record.opened, record.last), (began, world.now));
        // Every frame for the guest but the first router advertisement was this flow's.
        let numbers = world.stack.numbers();
        assert_eq!(record.traffic.to_guest_packets, numbers.frames_to_guest - 1);
        assert_eq!(numbers.sums[0].traffic, record.traffic);
        assert_eq!((numbers.sums[0].opened, numbers.sums[0].closed, numbers.live), (1, 0, [1, 0, 0, 0]));
        // What has ended stays in the sums.
        conn.push(&mut world, ACK | FIN, b"");
        assert_eq!(only(&world).state, FlowState::Closing);
        world.host_ends(flow);
        conn.take(&mut world);
        conn.acknowledge(&mut world);
        assert_eq!(all(&world), []);
        let numbers = world.stack.numbers();
        assert_eq!((numbers.sums[0].closed, numbers.live), (1, [0; 4]));
        assert_eq!(numbers.sums[0].traffic.to_guest_bytes, down.len() as u64);
        assert_eq!(numbers.sums[0].traffic.from_guest_packets, sent + 2);
    }
}

#[test]
fn bytes_that_wait_in_a_ring_are_not_counted() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    let flow = conn.open(&mut world);
    world.host(flow).takes = 10;
    conn.push(&mut world, ACK | PSH, &[7; 100]);
    assert_eq!(only(&world).traffic.from_guest_bytes, 10);
    world.host(flow).takes = usize::MAX;
    world.poke(flow);
    assert_eq!(only(&world).traffic.from_guest_bytes, 100);
}

#[test]
fn datagrams_and_echo_are_counted() {
    for family in BOTH {
        let mut world = World::new();
        let UdpVia::Mapping { id } = datagram(&mut world, family, 5000, 9, &[1; 100]).via else { panic!("no mapping") };
        assert_eq!(only(&world).state, FlowState::Unanswered);
        let began = world.now;
        world.pass(Duration::from_secs(1));
        let far = at(family.far(), 9);
        // Three datagrams in one: two whole and a rest.
        world.stack.handle_udp_from_host(world.now, id, far, &[2; 250], Some(100), &mut world.out);
        let record = only(&world);
        assert_eq!(record.id, FlowId { kind: Kind::Udp, id });
        assert_eq!((record.guest, record.peer), (at(family.guest(), 5000), far));
        assert_eq!((record.traffic.from_guest_bytes, record.traffic.from_guest_packets), (100, 1));
        assert_eq!((record.traffic.to_guest_bytes, record.traffic.to_guest_packets), (250, 3));
        assert_eq!((record.state, record.opened, record.last), (FlowState::Open, began, world.now));
        // An error is no traffic.
        let error = HostError { kind: IcmpError::PortUnreachable, target: far, offender: None, payload: b"x" };
        world.stack.handle_udp_error(id, &error, &mut world.out);
        assert_eq!(only(&world), record);

        let sent = echo(&mut world, family, 77, &[3; 56]);
        let echoes = FlowFilter { protocol: Some(Protocol::Icmp), ..FlowFilter::default() };
        let session = filtered(&world, &echoes)[0];
        assert_eq!((session.guest, session.peer), (at(family.guest(), 77), at(family.far(), 0)));
        assert_eq!(session.state, FlowState::Unanswered);
        world.stack.handle_ping_from_host(sent.id, family.far(), (1, 60), &[3; 56], &mut world.out);
        let session = filtered(&world, &echoes)[0];
        assert_eq!((session.traffic.from_guest_bytes, session.traffic.to_guest_bytes), (56, 56));
        assert_eq!((session.traffic.from_guest_packets, session.traffic.to_guest_packets), (1, 1));
        assert_eq!(session.state, FlowState::Open);
        let numbers = world.stack.numbers();
        assert_eq!(numbers.live, [0, 1, 0, 1]);
        assert_eq!((numbers.sums[1].traffic, numbers.sums[2].traffic), (record.traffic, session.traffic));
    }
}

#[test]
fn published_ports_have_sums_of_their_own() {
    let mut world = World::new();
    let port = |port| GuestPort { addr: None, port };
    let client = at(Family::V4.far(), 50_000);
    let mut first = None;
    for (n, listener) in [3, 3, 5].into_iter().enumerate() {
        let client = at(client.ip(), client.port() + n as u16);
        let flow = world.stack.handle_tcp_accepted(world.now, (listener, port(80)), client).expect("room");
        world.host.insert(flow, HostSocket::default());
        world.settle();
        let syn = world.segment();
        let mut conn = Conn::new(&mut world, syn.dst, syn.src);
        conn.ack = syn.end();
        world.send(&Seg { options: SYN_OPTIONS.to_vec(), window: 64_240, ..conn.seg(SYN | ACK, b"") });
        conn.seq += 1;
        world.segment();
        conn.push(&mut world, ACK | PSH, &vec![1; 100 * (n + 1)]);
        world.host_sends(flow, &vec![1; 1000 * (n + 1)]);
        world.segments();
        first.get_or_insert(flow);
    }
    let ends = (client, ip("192.0.2.200"));
    world.stack.handle_udp_published(world.now, (9, port(53)), ends, &[0; 30], None, &mut world.out);
    world.packets();
    let pair = *all(&world).last().unwrap();
    assert_eq!((pair.id.kind, pair.listener, pair.state), (Kind::UdpPublished, Some(9), FlowState::Unanswered));
    let answer = udp_body(pair.guest, pair.peer, &[0; 40]);
    world.inject_ip(&Ip::new(pair.guest.ip(), pair.peer.ip(), UDP, answer));
    let totals: BTreeMap<_, _> = world.stack.port_totals().map(|port| (port.listener, *port)).collect();
    let bytes =
        |n: usize| (totals[&n].connections, totals[&n].traffic.from_guest_bytes, totals[&n].traffic.to_guest_bytes);
    assert_eq!(totals.len(), 3);
    assert_eq!((bytes(3), bytes(5), bytes(9)), ((2, 300, 3000), (1, 300, 3000), (1, 40, 30)));
    assert_eq!((totals[&9].traffic.from_guest_packets, totals[&9].traffic.to_guest_packets), (1, 1));
    // A port that is gone has none; its connections go on and count in the sums.
    world.stack.handle_listener_gone(3);
    world.stack.handle_listener_gone(9);
    let before = world.stack.numbers().sums[0].traffic.to_guest_bytes;
    world.host_sends(first.unwrap(), &[1; 500]);
    assert_eq!(world.stack.numbers().sums[0].traffic.to_guest_bytes, before + 500);
    assert_eq!(world.stack.port_totals().map(|port| port.listener).collect::<Vec<_>>(), [5]);
    assert_eq!(world.stack.numbers().live, [3, 0, 0, 0]);
}

#[test]
fn filters() {
    let mut world = World::new();
    for family in BOTH {
        let mut conn = Conn::out(&mut world, family);
        conn.open(&mut world);
    }
    for family in BOTH {
        let mut waiting = Conn::new(&mut world, at(family.guest(), 40_001), at(family.far(), 443));
        waiting.window = 1;
        world.send(&waiting.syn());
        datagram(&mut world, family, 5000, 80, b"x");
        echo(&mut world, family, 1, b"x");
    }
    let any = FlowFilter::default();
    let end = |net: Option<&str>, port| Some(EndFilter { net: net.map(|net| net.parse().unwrap()), port });
    for (count, filter) in [
        (8, any),
        (4, FlowFilter { protocol: Some(Protocol::Tcp), ..any }),
        (2, FlowFilter { protocol: Some(Protocol::Udp), ..any }),
        (2, FlowFilter { protocol: Some(Protocol::Icmp), ..any }),
        (2, FlowFilter { state: Some(FlowState::Connecting), ..any }),
        (2, FlowFilter { state: Some(FlowState::Open), ..any }),
        (4, FlowFilter { state: Some(FlowState::Unanswered), ..any }),
        (4, FlowFilter { guest: end(Some("10.0.2.0/24"), None), ..any }),
        (4, FlowFilter { peer: end(Some("2001:db8::7/128"), None), ..any }),
        (4, FlowFilter { peer: end(None, Some(80)), ..any }),
        (1, FlowFilter { peer: end(Some("192.0.2.7/32"), Some(80)), protocol: Some(Protocol::Udp), ..any }),
        (0, FlowFilter { guest: end(Some("192.0.2.7/32"), None), ..any }),
        (2, FlowFilter { guest: end(None, Some(40_000)), ..any }),
    ] {
        assert_eq!(filtered(&world, &filter).len(), count, "{filter:?}");
    }
}

#[test]
fn a_killed_connection_is_reset_on_both_sides() {
    for family in BOTH {
        let mut world = World::new();
        let mut conn = Conn::out(&mut world, family);
        let flow = conn.open(&mut world);
        let id = only(&world).id;
        assert!(world.stack.kill_flow(id, world.now, &mut world.out));
        world.settle();
        let reset = world.segment();
        assert!(reset.has(RST), "{reset:?}");
        assert_eq!((reset.src, reset.dst, reset.seq), (conn.peer, conn.guest, conn.ack));
        assert_eq!(world.close(), (flow, false));
        assert!(!world.stack.kill_flow(id, world.now, &mut world.out), "it is gone");
        assert_eq!(world.tcp_flows(), 0);
        // One that the host has not answered: the SYN is refused.
        world.closed.clear();
        let second = Conn::new(&mut world, at(family.guest(), 40_001), at(family.far(), 80));
        world.send(&second.syn());
        let id = only(&world).id;
        assert!(world.stack.kill_flow(id, world.now, &mut world.out));
        world.settle();
        let reset = world.segment();
        assert_eq!((reset.flags, reset.ack), (RST | ACK, second.seq.wrapping_add(1)));
        assert_eq!(world.close(), (id.id, false));
    }
}

#[test]
fn killed_mappings_clients_and_sessions_are_forgotten() {
    let mut world = World::new();
    let family = Family::V4;
    let UdpVia::Mapping { id } = datagram(&mut world, family, 5000, 9, b"x").via else { panic!("no mapping") };
    let sent = echo(&mut world, family, 7, b"x");
    let to = GuestPort { addr: None, port: 53 };
    let ends = (at(family.far(), 4000), ip("192.0.2.200"));
    world.stack.handle_udp_published(world.now, (0, to), ends, b"x", None, &mut world.out);
    let stale =
        FlowId { kind: Kind::Udp, id: tapway::stack::arena::Id { index: id.index, generation: id.generation + 9 } };
    assert!(!world.stack.kill_flow(stale, world.now, &mut world.out));
    for flow in all(&world) {
        assert!(world.stack.kill_flow(flow.id, world.now, &mut world.out));
        assert!(!world.stack.kill_flow(flow.id, world.now, &mut world.out));
    }
    assert_eq!(all(&world), []);
    assert_eq!((world.stack.poll_udp_closed(), world.stack.poll_udp_closed()), (Some(id), None));
    assert_eq!((world.stack.poll_ping_closed(), world.stack.poll_ping_closed()), (Some(sent.id), None));
    // Timers of the dead disturb nobody, and the guest may begin anew.
    world.pass(Duration::from_secs(400));
    datagram(&mut world, family, 5000, 9, b"x");
    assert_eq!(all(&world).len(), 1);
}

fn events(world: &mut World) -> Vec<FlowEvent> {
    std::iter::from_fn(|| world.stack.poll_flow_event()).collect()
}

#[test]
fn each_flow_begins_and_ends_once_for_those_who_listen() {
    let mut world = World::new();
    let mut early = Conn::out(&mut world, Family::V4);
    let early_flow = early.open(&mut world);
    assert_eq!(events(&mut world), [], "nobody listens");
    world.stack.listen_to_flows(true);
    world.stack.listen_to_flows(true);
    let mut began = HashMap::new();
    for port in 0..20 {
        let mut conn = Conn::new(&mut world, at(Family::V6.guest(), 41_000 + port), at(Family::V6.far(), 80));
        let flow = conn.open(&mut world);
        conn.push(&mut world, ACK | PSH, &vec![0; usize::from(port) + 1]);
        world.packets();
        match port % 3 {
            0 => {
                conn.push(&mut world, ACK | FIN, b"");
                world.host_ends(flow);
                conn.take(&mut world);
                conn.acknowledge(&mut world);
            }
            1 => conn.push(&mut world, RST | ACK, b""),
            _ => {
                world.host(flow).broken = true;
                world.poke(flow);
            }
        }
        world.packets();
        began.insert(flow, port);
    }
    datagram(&mut world, Family::V4, 5000, 9, b"xyz");
    echo(&mut world, Family::V4, 5, b"x");
    world.pass(Duration::from_secs(300));
    world
        .stack
        .handle_tcp_accepted(world.now, (0, GuestPort { addr: None, port: 1 }), at(Family::V4.far(), 1))
        .unwrap();
    let mut opened = BTreeMap::new();
    let mut closed = BTreeMap::new();
    for event in events(&mut world) {
        let flow = event.flow;
        if !event.closed {
            assert!(opened.insert(flow.id.to_string(), flow).is_none(), "twice: {flow:?}");
            continue;
        }
        assert!(opened.contains_key(&flow.id.to_string()), "it never began: {flow:?}");
        assert!(closed.insert(flow.id.to_string(), flow).is_none(), "twice: {flow:?}");
        if flow.id.kind == Kind::Tcp {
            let port = began[&flow.id.id];
            assert_eq!(flow.traffic.from_guest_bytes, u64::from(port) + 1);
            let expected = if port % 3 == 0 { FlowState::Closed } else { FlowState::Reset };
            assert_eq!(flow.state, expected, "{flow:?}");
        } else {
            assert_eq!((flow.state, flow.traffic.from_guest_packets), (FlowState::Closed, 1));
        }
    }
    assert_eq!((opened.len(), closed.len()), (23, 22));
    // One that began before is told when it ends.
    world.stack.handle_host_reset(early_flow);
    world.settle();
    let end = events(&mut world);
    assert_eq!((end.len(), end[0].closed, end[0].flow.id.id), (1, true, early_flow));
    world.stack.listen_to_flows(false);
    datagram(&mut world, Family::V4, 5001, 9, b"x");
    assert_eq!(events(&mut world), []);
    assert_eq!(world.stack.take_lost_flow_events(), 0);
}

#[test]
fn what_nobody_fetches_is_lost_and_counted() {
    let mut world = World::new();
    world.stack.listen_to_flows(true);
    for port in 0..2000 {
        datagram(&mut world, Family::V4, 5000 + port, 9, b"x");
    }
    let kept = events(&mut world).len();
    assert_eq!(kept as u64 + world.stack.take_lost_flow_events(), 2000);
    assert!(kept >= 512);
    assert_eq!(world.stack.take_lost_flow_events(), 0);
}

#[test]
fn pages_have_every_flow_once_while_others_come_and_go() {
    let mut random = Random(7);
    let mut world = World::new();
    for port in 0..3000 {
        datagram(&mut world, Family::V4, 1000 + port, 9, b"x");
        if port % 3 == 0 {
            let conn = Conn::new(&mut world, at(Family::V6.guest(), 1000 + port), at(Family::V6.far(), 80));
            world.send(&conn.syn());
            world.accept();
        }
    }
    world.packets();
    let mut lasting: BTreeMap<String, FlowId> = all(&world).iter().map(|flow| (flow.id.to_string(), flow.id)).collect();
    assert_eq!(lasting.len(), 4000);
    let mut seen = BTreeSet::new();
    let mut next = Some(Cursor::START);
    let mut fresh = 0;
    while let Some(after) = next {
        let mut page = Vec::new();
        // As a client does: the cursor goes through text.
        let after: Cursor = after.to_string().parse().unwrap();
        next = world.stack.flows_page(after, 100, &FlowFilter::default(), &mut page);
        assert!(page.len() <= 100);
        for flow in page {
            assert!(seen.insert(flow.id.to_string()), "twice: {flow:?}");
        }
        for _ in 0..20 {
            let pick = random.below(lasting.len() as u64) as usize;
            let name = lasting.keys().nth(pick).unwrap().clone();
            let id = lasting.remove(&name).unwrap();
            assert!(world.stack.kill_flow(id, world.now, &mut world.out));
            world.settle();
            fresh += 1;
            datagram(&mut world, Family::V6, 1000 + fresh, 9, b"x");
        }
    }
    for name in lasting.keys() {
        assert!(seen.contains(name), "{name} is in no page");
    }
    assert!(lasting.len() > 2000);
}

#[test]
fn a_page_of_ten_thousand_flows_is_short_work() {
    // Nobody finishes a handshake here.
    let limits = Limits { tcp: TcpLimits { max_half_open: 10_000, ..TcpLimits::default() }, ..Limits::default() };
    let mut world = World::with(config(65_520, all_offloads()), limits);
    for n in 0..10_000u16 {
        let conn = Conn::new(&mut world, at(Family::V4.guest(), 1000 + n), at(Family::V4.far(), 80));
        world.send(&conn.syn());
        world.accept();
        world.out.to_guest.clear();
    }
    // What fits and what does not: the second looks at as many slots as a page ever does.
    let nothing = FlowFilter { guest: Some(EndFilter { net: None, port: Some(1) }), ..FlowFilter::default() };
    for (filter, expected) in [(FlowFilter::default(), 10_000), (nothing, 0)] {
        let mut worst = std::time::Duration::MAX;
        // The machine may be busy: the best of a few rounds is our own doing.
        for _ in 0..5 {
            let (mut next, mut count, mut longest) = (Some(Cursor::START), 0, std::time::Duration::ZERO);
            let mut page = Vec::with_capacity(PAGE);
            while let Some(after) = next {
                page.clear();
                let start = Clock::now();
                next = world.stack.flows_page(after, PAGE, &filter, &mut page);
                longest = longest.max(start.elapsed());
                count += page.len();
            }
            assert_eq!(count, expected);
            worst = worst.min(longest);
        }
        println!("longest page: {worst:?}");
        assert!(worst < std::time::Duration::from_millis(2), "{worst:?}");
    }
}
