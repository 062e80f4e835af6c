//! Whole streams over a line with faults on purpose: the middleware that users have (`stack::fault`), before the stack as the
//! runtime has it. Every byte comes, as late as the line says, and the same seed tells the same story.

use smoltcp::time::{Duration, Instant};
use tapway::network::fault::{Change, Direction, Rate, Rules};
use tapway::stack::fault::{Faults, Limits as Bounds, Verdict};
use tapway::stack::verdict::{DropCounters, DropReason};

use crate::guest_tcp::{End, GuestTcp};
use crate::sim::*;

/// What came of a stream each way.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    took: Duration,
    lost: u64,
    overflowed: u64,
}

const GUEST: Direction = Direction::ToGuest;
const AWAY: Direction = Direction::FromGuest;

fn change(latency: &str, jitter: &str, loss: &str, rate: &str) -> Change {
    Change {
        latency: Some(latency.parse().unwrap()),
        jitter: Some(jitter.parse().unwrap()),
        loss: Some(loss.parse().unwrap()),
        rate: Some(Rate::parse(rate).unwrap()),
        ..Change::default()
    }
}

struct Line {
    faults: Faults,
    drops: DropCounters,
}

impl Line {
    fn put(&mut self, now: Instant, direction: Direction, frame: &[u8]) {
        assert_eq!(self.faults.handle_frame(now, direction, frame, &mut self.drops), Verdict::Taken);
    }
}

/// `size` bytes each way over such a line.
fn tell(family: Family, mtu: u16, change: &Change, seed: u64, size: usize) -> Told {
    let mut rules = Rules::default();
    rules.set(None, change, seed, &tapway::network::fault::Limits::default()).unwrap();
    let mut world = World::with(config(mtu, all_offloads()), tapway::stack::Limits::default());
    let mut line = Line { faults: Faults::new(Bounds::default()), drops: DropCounters::default() };
    line.faults.set_rules(rules.all(), world.now);
    let (outgoing, incoming) = (pattern(size, seed), pattern(size, !seed));
    let ends = (at(family.guest(), 40_000), at(family.far(), 80));
    let segment = usize::from(mtu) - family.header() - 20;
    let mut guest = GuestTcp::new(ends.0, ends.1, 7, outgoing, 200_000, segment);
    let (start, mut flow) = (world.now, None);
    guest.connect(world.now);
    for step in 0.. {
        assert!(step < 1_000_000, "no end in sight");
        for segment in guest.take_out() {
            line.put(world.now, AWAY, &segment.packet().frame());
        }
        for frame in std::mem::take(&mut world.out.to_guest) {
            // Router advertisements: neighbour discovery passes.
            if !(frame[22..24] == [0x86, 0xdd] && frame[30] == 58) {
                line.put(world.now, GUEST, &frame);
            }
        }
        let quiet = line.faults.next_timeout().is_none();
        if world.tcp_flows() == 0 && flow.is_some() && quiet {
            if guest.end() != End::Open {
                break;
            }
            // The last word was lost: who asks is reset.
            if guest.next_timeout().is_none() {
                guest.probe();
                continue;
            }
        }
        if guest.end() == End::Reset && world.tcp_flows() > 0 && quiet {
            guest.repeat_reset();
            continue;
        }
        let due = [line.faults.next_timeout(), world.stack.next_timeout(), guest.next_timeout()];
        world.now = world.now.max(due.into_iter().flatten().min().expect("something is due"));
        assert!(world.now - start < Duration::from_secs(600), "no progress: {:?}", guest.end());
        while let Some(frame) = line.faults.poll_due(world.now, AWAY) {
            world.inject(frame.into_vec());
        }
        while let Some(frame) = line.faults.poll_due(world.now, GUEST) {
            let Frame::Ip(packet) = parse(&frame, world.stack.config()) else { panic!("not IP") };
            for part in cut(&Seg::of(&packet)) {
                guest.handle(world.now, &part);
            }
        }
        if world.stack.next_timeout().is_some_and(|at| at <= world.now) {
            world.stack.handle_timeout(world.now, &mut world.out);
            world.settle();
        }
        guest.handle_timeout(world.now);
        if flow.is_none() && !world.connects.is_empty() {
            let id = world.accept();
            let host = world.host(id);
            host.sending.extend(&incoming);
            host.ends = true;
            flow = Some(id);
            world.poke(id);
        }
        guest.read(usize::MAX);
        if !guest.closes {
            guest.closes = true;
            guest.push(world.now, 0);
        }
    }
    let id = flow.expect("accepted");
    let (_, in_order) = world.close();
    assert_eq!(guest.received, incoming, "what the host sent");
    assert_eq!((&world.gone[&id].received[..], in_order), (guest.sent(), true), "what the guest sent");
    Told {
        took: world.now - start,
        lost: line.drops.get(DropReason::FaultLoss),
        overflowed: line.drops.get(DropReason::FaultQueue),
    }
}

/// Cuts a super-frame as the guest's kernel would.
fn cut(segment: &Seg) -> Vec<Seg> {
    let Some(size) = segment.gso_size.map(usize::from) else { return vec![segment.clone()] };
    let count = segment.payload.len().div_ceil(size);
    let part = |(nth, part): (usize, &[u8])| Seg {
        seq: segment.seq.wrapping_add((nth * size) as u32),
        payload: part.to_vec(),
        flags: if nth + 1 < count { segment.flags & !(FIN | PSH) } else { segment.flags },
        gso_size: None,
        ..segment.clone()
    };
    segment.payload.chunks(size).enumerate().map(part).collect()
}

#[test]
fn late_streams_come_whole() {
    for family in BOTH {
        let told = tell(family, 1500, &change("50ms", "0", "0", "0"), 1, 100_000);
        // SYN and its answer, data, and the end: four times there and back, or a few more.
        assert!((400..1000).contains(&told.took.total_millis()), "{told:?}");
        assert_eq!((told.lost, told.overflowed), (0, 0));
        let told = tell(family, 65_520, &change("50ms", "20ms", "0", "0"), 2, 300_000);
        assert!((280..3000).contains(&told.took.total_millis()), "{told:?}");
    }
}

#[test]
fn lossy_streams_come_whole() {
    for family in BOTH {
        for seed in 0..10 {
            let told = tell(family, 1500, &change("5ms", "2ms", "3%", "0"), seed, 300_000);
            assert!(told.lost > 3, "{told:?}");
        }
    }
}

#[test]
fn slow_streams_take_their_time() {
    for family in BOTH {
        let told = tell(family, 1500, &change("0", "0", "0", "8mbit"), 1, 100_000);
        // Both ways at once: a tenth of a second for the bytes alone, and little more. (With more of them on the way the script's
        // guest, which has one patience for all lines, would send again what is only late.)
        assert!((100..130).contains(&told.took.total_millis()), "{told:?}");
        assert_eq!(told.overflowed, 0);
    }
}

#[test]
fn a_seed_tells_the_same_story() {
    let line = change("20ms", "10ms", "2%", "10mbit");
    let tell = |seed| tell(Family::V4, 1500, &line, seed, 200_000);
    assert_eq!(tell(5), tell(5));
    assert_ne!(tell(5), tell(6));
}
