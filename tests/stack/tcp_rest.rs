//! TCP: flows that rest keep no socket, flows that turn bulky get large rings, and the guest sees neither.

use smoltcp::time::Duration;
use tapway::stack::Limits;
use tapway::stack::arena::Id;
use tapway::stack::flow::GuestPort;
use tapway::stack::tcp::TcpLimits;

use crate::sim::*;

const LONG: Duration = Duration::from_secs(3);
/// What a small ring promises at most, and what a large one does at least.
const SMALL: usize = 65_536;
const LARGE: usize = 1_000_000;

/// A connection out, with one exchange behind it.
fn talking(world: &mut World, family: Family) -> (Conn, Id) {
    let mut conn = Conn::out(world, family);
    let flow = conn.open(world);
    say(world, &mut conn, flow, b"question");
    conn.receives(world, flow, b"answer");
    (conn, flow)
}

/// The guest says something: it is acknowledged and reaches the host. Returns the window that is promised then.
fn say(world: &mut World, conn: &mut Conn, flow: Id, words: &[u8]) -> usize {
    let before = world.host(flow).received.len();
    conn.push(world, ACK | PSH, words);
    world.pass(Duration::from_millis(2));
    let answer = world.segments().pop().expect("an acknowledgement");
    assert_eq!((answer.flags & !PSH, answer.seq, answer.ack), (ACK, conn.ack, conn.seq));
    assert_eq!(world.host(flow).received[before..], *words);
    usize::from(answer.window) << 4
}

#[test]
fn a_flow_rests_and_goes_on_with_the_same_numbers() {
    for family in BOTH {
        for first in ["guest", "host", "both", "neither"] {
            let mut world = World::new();
            let (mut conn, flow) = talking(&mut world, family);
            assert!(!world.stack.tcp_rests(flow), "it has just spoken");
            for round in 0..3 {
                world.pass(LONG);
                world.silent();
                assert!(world.stack.tcp_rests(flow), "{family:?} {first} {round}");
                let next = world.stack.next_timeout();
                assert!(next.is_none_or(|at| at > world.now + LONG), "nothing is due of a flow that rests: {next:?}");
                if first == "guest" || first == "both" {
                    let window = say(&mut world, &mut conn, flow, b"more");
                    assert!(window > 60_000, "{window}");
                }
                if first == "host" || first == "both" {
                    conn.receives(&mut world, flow, &pattern(5000, round));
                }
                assert_eq!(world.stack.tcp_rests(flow), first == "neither");
            }
            conn.push(&mut world, ACK | FIN, b"");
            conn.take(&mut world);
            world.host_ends(flow);
            assert!(conn.take(&mut world).1);
            conn.acknowledge(&mut world);
            assert_eq!(world.close(), (flow, true));
        }
    }
}

#[test]
fn a_client_of_a_published_port_rests_too() {
    let mut world = World::new();
    let client = at(ip("198.51.100.7"), 5555);
    let port = GuestPort { addr: None, port: 80 };
    let flow = world.stack.handle_tcp_accepted(world.now, (0, port), client).expect("room");
    world.host.insert(flow, HostSocket::default());
    world.settle();
    let syn = world.segment();
    let mut conn = Conn::new(&mut world, syn.dst, syn.src);
    conn.ack = syn.end();
    let answer = Seg { options: SYN_OPTIONS.to_vec(), window: 64_240, ..conn.seg(SYN | ACK, b"") };
    world.send(&answer);
    conn.seq = answer.end();
    world.segments();
    world.pass(LONG);
    assert!(world.stack.tcp_rests(flow));
    conn.receives(&mut world, flow, b"GET /");
    say(&mut world, &mut conn, flow, b"200 OK");
    world.pass(LONG);
    assert!(world.stack.tcp_rests(flow));
    say(&mut world, &mut conn, flow, b"again");
}

#[test]
fn half_closed_flows_rest_and_end_in_order() {
    for family in BOTH {
        // The guest has ended its stream, and the host goes on.
        let mut world = World::new();
        let (mut conn, flow) = talking(&mut world, family);
        conn.push(&mut world, ACK | FIN, b"");
        conn.take(&mut world);
        world.pass(LONG);
        assert!(world.stack.tcp_rests(flow));
        conn.receives(&mut world, flow, &pattern(3000, 1));
        world.pass(LONG);
        assert!(world.stack.tcp_rests(flow));
        world.host_ends(flow);
        assert!(conn.take(&mut world).1);
        conn.acknowledge(&mut world);
        assert_eq!(world.close(), (flow, true));

        // The host has, and the guest goes on.
        let mut world = World::new();
        let (mut conn, flow) = talking(&mut world, family);
        world.host_ends(flow);
        assert!(conn.take(&mut world).1);
        conn.acknowledge(&mut world);
        world.pass(LONG);
        assert!(world.stack.tcp_rests(flow));
        say(&mut world, &mut conn, flow, b"the rest");
        world.pass(LONG);
        assert!(world.stack.tcp_rests(flow));
        conn.push(&mut world, ACK | FIN, b"");
        world.segments();
        assert_eq!(world.close(), (flow, true));
    }
}

#[test]
fn a_reset_finds_a_flow_that_rests() {
    let mut world = World::new();
    let (conn, flow) = talking(&mut world, Family::V4);
    world.pass(LONG);
    world.host(flow).broken = true;
    world.poke(flow);
    let reset = world.segment();
    assert_eq!((reset.has(RST), reset.seq), (true, conn.ack));
    assert_eq!(world.close(), (flow, false));

    let mut world = World::new();
    let (conn, flow) = talking(&mut world, Family::V6);
    world.pass(LONG);
    world.send(&conn.seg(RST, b""));
    assert_eq!(world.close(), (flow, false));
}

#[test]
fn a_probe_of_a_flow_that_rests_is_answered() {
    let mut world = World::new();
    let (conn, flow) = talking(&mut world, Family::V4);
    world.pass(LONG);
    let mut probe = conn.seg(ACK, b"");
    probe.seq = conn.seq.wrapping_sub(1);
    world.send(&probe);
    let answer = world.segment();
    assert_eq!((answer.flags, answer.seq, answer.ack), (ACK, conn.ack, conn.seq));
    assert!(world.host(flow).keepalive);
    world.pass(LONG);
    assert!(world.stack.tcp_rests(flow));
}

#[test]
fn what_waits_is_not_put_to_rest() {
    // For the host, for the guest, and for what is missing in between.
    let mut world = World::new();
    let (mut conn, flow) = talking(&mut world, Family::V4);
    world.host(flow).takes = 0;
    conn.push(&mut world, ACK | PSH, b"kept");
    world.pass(LONG);
    assert!(!world.stack.tcp_rests(flow));
    world.host(flow).takes = usize::MAX;
    world.poke(flow);
    assert!(world.heard(flow).0.ends_with(b"kept"));

    let mut world = World::new();
    let (mut conn, flow) = talking(&mut world, Family::V4);
    world.host_sends(flow, b"kept");
    world.pass(LONG);
    assert!(!world.stack.tcp_rests(flow));
    assert!(world.segments().iter().all(|segment| segment.payload == b"kept"));
    conn.ack = conn.ack.wrapping_add(4);
    conn.acknowledge(&mut world);
    world.pass(LONG);
    assert!(world.stack.tcp_rests(flow));

    let mut world = World::new();
    let (mut conn, flow) = talking(&mut world, Family::V4);
    let start = conn.seq;
    conn.seq = start.wrapping_add(4);
    conn.push(&mut world, ACK | PSH, b"late");
    world.pass(LONG);
    world.segments();
    assert!(!world.stack.tcp_rests(flow));
    conn.seq = start;
    conn.push(&mut world, ACK | PSH, b"come");
    assert!(world.heard(flow).0.ends_with(b"comelate"));
    world.segments();
    world.pass(LONG);
    assert!(world.stack.tcp_rests(flow));
}

#[test]
fn a_bulky_flow_gets_large_rings_and_gives_them_back() {
    for family in BOTH {
        let mut world = World::new();
        let (mut conn, flow) = talking(&mut world, family);
        assert!(say(&mut world, &mut conn, flow, b"small") <= SMALL);
        // By what it gets from the host, and by what it sends.
        for to_guest in [true, false] {
            if to_guest {
                conn.turn_bulky(&mut world, flow);
            } else {
                for _ in 0..200 {
                    conn.push(&mut world, ACK | PSH, &pattern(1460, 5));
                    world.segments();
                }
            }
            let window = say(&mut world, &mut conn, flow, b"large");
            assert!(window >= LARGE, "{window}");
            world.pass(LONG);
            assert!(world.stack.tcp_rests(flow));
            // There is room for as much from the host at once, and the guest was promised that much: it may send it at once.
            let flood = pattern(900_000, 9);
            conn.window = 0x4000;
            conn.receives(&mut world, flow, &flood);
            world.pass(LONG);
            assert!(world.stack.tcp_rests(flow));
            let burst = pattern(600_000, 6);
            let before = world.host(flow).received.len();
            world.host(flow).takes = 0;
            for part in burst.chunks(60_000) {
                conn.push(&mut world, ACK | PSH, part);
            }
            world.host(flow).takes = usize::MAX;
            world.poke(flow);
            assert!(world.host(flow).received[before..] == burst, "what was sent within the window is kept");
            world.segments();
            world.pass(LONG);
            assert!(world.stack.tcp_rests(flow));
        }
    }
}

#[test]
fn flows_that_rest_leave_large_rings_to_others() {
    let limits = Limits { tcp: TcpLimits { large_rings: 1, ..TcpLimits::default() }, ..Limits::default() };
    let mut world = World::with(config(1500, all_offloads()), limits);
    let (mut first, flow) = talking(&mut world, Family::V4);
    first.turn_bulky(&mut world, flow);
    assert!(say(&mut world, &mut first, flow, b"mine") >= LARGE);

    let (guest, peer) = (at(Family::V4.guest(), 40_001), at(Family::V4.far(), 80));
    let mut second = Conn::new(&mut world, guest, peer);
    let other = second.open(&mut world);
    second.turn_bulky(&mut world, other);
    assert!(say(&mut world, &mut second, other, b"none left") <= SMALL);

    world.pass(LONG);
    second.turn_bulky(&mut world, other);
    assert!(say(&mut world, &mut second, other, b"mine now") >= LARGE);
    // The first wakes with a small pair, and loses nothing that it was sent.
    first.receives(&mut world, flow, &pattern(300_000, 8));
    say(&mut world, &mut first, flow, b"still here");
}

#[test]
fn a_trickle_is_not_bulky() {
    let mut world = World::new();
    let (mut conn, flow) = talking(&mut world, Family::V4);
    for round in 0..400 {
        conn.receives(&mut world, flow, &pattern(1400, round));
        world.pass(Duration::from_millis(50));
    }
    assert!(say(&mut world, &mut conn, flow, b"still small") <= SMALL);
}

#[test]
fn a_guest_without_window_scaling_rests_and_turns_bulky_too() {
    let mut world = World::new();
    let mut conn = Conn::out(&mut world, Family::V4);
    world.send(&Seg { options: vec![2, 4, 5, 0xb4], ..conn.syn() });
    let flow = world.accept();
    let answer = world.segment();
    assert_eq!(answer.option(3), None);
    conn.seq = conn.seq.wrapping_add(1);
    conn.ack = answer.end();
    conn.window = 60_000;
    conn.acknowledge(&mut world);
    conn.turn_bulky(&mut world, flow);
    world.pass(LONG);
    assert!(world.stack.tcp_rests(flow));
    let window = say(&mut world, &mut conn, flow, b"hello") >> 4;
    assert!((60_000..=65_535).contains(&window), "{window}");
    conn.turn_bulky(&mut world, flow);
}

#[test]
fn bulky_flows_share_what_may_be_under_way() {
    let mut world = World::new();
    let mut conns = Vec::new();
    for n in 0..40 {
        let (guest, peer) = (at(Family::V4.guest(), 40_000 + n), at(Family::V4.far(), 80));
        let mut conn = Conn::new(&mut world, guest, peer);
        let flow = conn.open(&mut world);
        conn.turn_bulky(&mut world, flow);
        conns.push((conn, flow));
    }
    let mut promised = 0;
    for (conn, flow) in &mut conns {
        // What the first were promised when they were few stays promised until they have sent as much.
        let mut edge = 0;
        for _ in 0..40 {
            conn.push(&mut world, ACK | PSH, &pattern(60_000, 1));
            let answer = world.segments().pop().expect("an acknowledgement");
            let next = answer.ack.wrapping_add(u32::from(answer.window) << 4);
            assert!(edge == 0 || next.wrapping_sub(edge) as i32 >= 0, "the window shrinks");
            edge = next;
        }
        let window = say(&mut world, conn, *flow, b"now");
        assert!((60_000..=200_000).contains(&window), "{window}");
        promised += window;
    }
    assert!(promised <= 5_000_000, "{promised}");
    // They rest; one that is alone gets all that there is.
    world.pass(LONG);
    let (mut conn, flow) = conns.swap_remove(7);
    conn.turn_bulky(&mut world, flow);
    assert!(say(&mut world, &mut conn, flow, b"alone") >= LARGE);
}

#[test]
fn what_was_ever_promised_is_taken() {
    // Sizes that are no multiples of the window's unit, to a host that takes nothing, then a little, then nothing again.
    for bulky in [true, false] {
        let mut world = World::new();
        let (mut conn, flow) = talking(&mut world, Family::V4);
        if bulky {
            conn.turn_bulky(&mut world, flow);
        }
        let mut edge = conn.seq;
        let mut sent = world.host(flow).received.clone();
        for round in 0..6 {
            world.host(flow).takes = [0, 99_991, 0, 5, 0, 50_021][round];
            world.poke(flow);
            for answer in world.segments() {
                edge = answer.ack.wrapping_add(u32::from(answer.window) << 4);
            }
            for size in (0..).map(|n| 1461 - 7 * (n % 100)) {
                let room = edge.wrapping_sub(conn.seq) as i32;
                if room <= 0 && round > 0 {
                    break;
                }
                let part = pattern(if round == 0 && room <= 0 { 1 } else { (room as usize).min(size) }, 4);
                conn.push(&mut world, ACK, &part);
                let answer = world.segments().pop().expect("an acknowledgement");
                if answer.ack != conn.seq {
                    // Only a byte into a window that is shut.
                    assert_eq!((part.len(), room), (1, 0), "what was sent within the window is kept");
                    conn.seq = answer.ack;
                    break;
                }
                sent.extend(&part);
                let end = answer.ack.wrapping_add(u32::from(answer.window) << 4);
                if end.wrapping_sub(edge) as i32 > 0 {
                    edge = end;
                }
            }
        }
        world.host(flow).takes = usize::MAX;
        world.poke(flow);
        assert!(world.heard(flow).0 == sent);
        assert!(sent.len() > if bulky { 1_000_000 } else { 60_000 }, "{}", sent.len());
    }
}
