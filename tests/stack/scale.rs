//! Many flows: what one call may cost, and who waits for whom.

use std::net::SocketAddr;

use smoltcp::time::{Duration, Instant};
use tapway::stack::arena::Id;
use tapway::stack::udp::{EXPIRE_BATCH, IDLE, IDLE_DNS, UdpLimits};
use tapway::stack::{Limits, Stack};

use crate::sim::{
    ACK, BOTH, Conn, Family, Ip, PSH, Recorder, Seg, TCP, UDP, World, all_offloads, at, config, udp_body,
};

const MAPPINGS: usize = 100_000;

/// A guest with so many mappings, half of them of either family. All are made within a second.
fn crowded() -> (Stack, Recorder, Instant) {
    let limits = Limits { udp: UdpLimits { max_mappings: MAPPINGS, max_pairs: 16 }, ..Limits::default() };
    let start = Instant::from_secs(1000);
    let mut stack = Stack::new(config(1500, all_offloads()), limits, 1, start);
    let mut out = Recorder::default();
    for n in 0..MAPPINGS {
        send(&mut stack, &mut out, start + Duration::from_micros(n as u64 * 10), n);
    }
    assert_eq!((stack.flows().1, out.udp.len()), (MAPPINGS, MAPPINGS));
    out.udp.clear();
    (stack, out, start + Duration::from_secs(1))
}

/// A datagram of mapping number `n`.
fn send(stack: &mut Stack, out: &mut Recorder, now: Instant, n: usize) {
    let family = BOTH[n % 2];
    let (guest, far) = (at(family.guest(), 1024 + (n / 2) as u16), at(family.far(), 4433));
    let mut frame = Ip::new(guest.ip(), far.ip(), UDP, udp_body(guest, far, b"?")).frame();
    stack.handle_from_guest(now, &mut frame, out);
}

/// Calls [`Stack::handle_timeout`] at one time until nothing is due, as turns do; returns how often, and the most mappings
/// that one call ended.
fn drain(stack: &mut Stack, out: &mut Recorder, now: Instant) -> (usize, usize) {
    let (mut calls, mut most) = (0, 0);
    while stack.next_timeout().is_some_and(|due| due <= now) {
        let before = stack.flows().1;
        stack.handle_timeout(now, out);
        let ended = before - stack.flows().1;
        most = most.max(ended);
        calls += 1;
        // Each is told of, so that its socket is closed, in the same turn.
        let closed = std::iter::from_fn(|| stack.poll_udp_closed()).count();
        assert_eq!(closed, ended);
        assert!(calls <= MAPPINGS, "timers without end");
    }
    (calls, most)
}

#[test]
fn a_hundred_thousand_mappings_expire_a_few_at_a_time() {
    let (mut stack, mut out, made) = crowded();
    let turns = MAPPINGS.div_ceil(EXPIRE_BATCH);
    // Timers are set for the shortest life first. To set them anew is work too.
    let (calls, ended) = drain(&mut stack, &mut out, made + IDLE_DNS);
    assert!(calls >= turns, "{calls} calls looked at {MAPPINGS} timers");
    assert_eq!((ended, stack.flows().1), (0, MAPPINGS));
    let (calls, ended) = drain(&mut stack, &mut out, made + IDLE);
    assert!(calls >= turns && ended <= EXPIRE_BATCH, "{calls} calls, one of which ended {ended}");
    assert_eq!(stack.flows().1, 0, "every mapping is gone");
    // What is over is over: a new datagram has a mapping of its own.
    send(&mut stack, &mut out, made + IDLE + Duration::from_secs(1), 0);
    assert_eq!((stack.flows().1, out.udp.len()), (1, 1));
}

#[test]
fn mappings_that_expire_do_not_hold_up_a_frame() {
    let (mut stack, mut out, made) = crowded();
    let now = made + IDLE;
    drain(&mut stack, &mut out, made + IDLE_DNS);
    // All are due. One call of the timer later a datagram passes, and the rest still live.
    stack.handle_timeout(now, &mut out);
    assert!(stack.flows().1 >= MAPPINGS - EXPIRE_BATCH);
    while stack.poll_udp_closed().is_some() {}
    send(&mut stack, &mut out, now, MAPPINGS - 1);
    assert_eq!(out.udp.len(), 1);
    // It has its mapping anew, or still: it stays when the others go.
    drain(&mut stack, &mut out, now);
    assert_eq!(stack.flows().1, 1);
}

#[test]
fn a_full_table_makes_room_without_looking_at_all_of_it() {
    let (mut stack, mut out, made) = crowded();
    // Everything has moved since its timer was set: the worst that there is for finding the oldest.
    let later = made + Duration::from_secs(10);
    for n in 0..MAPPINGS {
        send(&mut stack, &mut out, later + Duration::from_micros(n as u64), n);
    }
    out.udp.clear();
    let now = later + Duration::from_secs(1);
    let new = SocketAddr::new(Family::V4.guest(), 1);
    let far = at(Family::V4.far(), 4433);
    let mut frame = Ip::new(new.ip(), far.ip(), UDP, udp_body(new, far, b"?")).frame();
    stack.handle_from_guest(now, &mut frame, &mut out);
    assert_eq!((stack.flows().1, out.udp.len()), (MAPPINGS, 1), "one gave way to one");
    assert_eq!(std::iter::from_fn(|| stack.poll_udp_closed()).count(), 1);
    // Only so many timers were set anew for it: the rest are due as they were.
    let moved = MAPPINGS - EXPIRE_BATCH;
    let (calls, _) = drain(&mut stack, &mut out, made + IDLE_DNS);
    assert!(calls >= moved.div_ceil(EXPIRE_BATCH), "{calls} calls looked at what was left");
}

/// Bulk flows beside the one that is looked at.
const BULK: usize = 100;
/// 1 MiB in pieces of 64 KiB, and one more where it wraps.
const FRAMES_OF_A_RING: usize = 18;

#[test]
fn an_answer_waits_for_one_turn_of_each_bulk_flow_at_most() {
    for family in BOTH {
        let mut world = World::with(config(65_520, all_offloads()), Limits::default());
        let mut bulk: Vec<(Conn, Id)> = Vec::new();
        for n in 0..BULK {
            let guest = at(family.guest(), 10_000 + n as u16);
            let mut conn = Conn::new(&mut world, guest, at(family.far(), 80));
            conn.window = 0xffff;
            let flow = conn.open(&mut world);
            // More than the ring holds: the flow has always something to send.
            world.host(flow).sending.extend(vec![n as u8; 8 << 20]);
            world.stack.finish_tcp(flow, world.now, &mut world.out);
            bulk.push((conn, flow));
        }
        let mut asker = Conn::out(&mut world, family);
        let asking = asker.open(&mut world);
        for (_, flow) in &bulk {
            world.poke(*flow);
        }
        // The guest acknowledges what has come of each flow, and asks in the midst of it, at the end, and at the beginning:
        // all of it waits to be served when the turn begins.
        for place in [BULK / 2, BULK, 0] {
            for packet in world.packets() {
                assert_eq!(packet.protocol, TCP);
                let segment = Seg::of(&packet);
                if let Some((conn, _)) = bulk.iter_mut().find(|(conn, _)| conn.guest == segment.dst) {
                    assert_eq!(segment.seq, conn.ack);
                    conn.ack = segment.end();
                }
            }
            let mut sent: Vec<Seg> = bulk.iter().map(|(conn, _)| conn.seg(ACK, b"")).collect();
            let question = asker.seg(ACK | PSH, b"?");
            asker.seq = question.end();
            sent.insert(place, question);
            for segment in sent {
                let mut frame = segment.frame();
                world.stack.handle_from_guest(world.now, &mut frame, &mut world.out);
            }
            world.out.to_guest.clear();
            // The turn, flow by flow. The host has its answer ready.
            world.host(asking).sending.extend(b"!");
            let mut served: Vec<Id> = Vec::new();
            while let Some(flow) = world.stack.poll_dirty() {
                world.serve(flow);
                served.push(flow);
                if flow == asking {
                    break;
                }
                // A flow that is ready again at once, as a host with much to send is, does not come before the others.
                assert!(served.len() <= BULK + 1, "{family:?}: the question is not served");
            }
            assert_eq!(served.last(), Some(&asking));
            assert_eq!(served.len(), place + 1, "{family:?}: it is served in its turn");
            // What went before its answer: of each flow no more than its ring holds, in super-frames.
            let before = world.out.to_guest.len();
            assert!(before <= place * FRAMES_OF_A_RING + 1, "{family:?}: {before} frames went before the answer");
            let answer = world.segments().pop().expect("frames");
            assert_eq!((answer.dst, answer.payload.as_slice()), (asker.guest, b"!".as_slice()));
            asker.ack = answer.end();
            world.settle();
        }
    }
}
