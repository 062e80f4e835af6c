//! Whole streams over a link that loses, doubles and reorders: each arrives whole and in order, or the connection ends
//! with a reset. A failing run prints its seed; `run(seed)` repeats it.

use std::collections::BinaryHeap;

use proptest::prelude::*;
use smoltcp::time::{Duration, Instant};
use tapway::network::config::Offloads;
use tapway::stack::Limits;
use tapway::stack::tcp::TcpLimits;

use crate::guest_tcp::{End, GuestTcp};
use crate::sim::*;

/// How bad the link is, in percent of the frames of either direction.
#[derive(Clone, Copy, Debug)]
struct Weather {
    loss: u64,
    double: u64,
    reorder: u64,
}

const FAIR: Weather = Weather { loss: 0, double: 0, reorder: 0 };
const FOUL: Weather = Weather { loss: 4, double: 3, reorder: 6 };

/// How a connection is meant to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Orderly,
    GuestAborts,
    HostBreaks,
}

#[derive(Clone, Debug)]
struct Story {
    family: Family,
    mtu: u16,
    small_rings: bool,
    offloads: bool,
    from_guest: usize,
    to_guest: usize,
    guest_capacity: usize,
    /// Percent of turns in which a reader reads, and how much it takes then.
    guest_reads: (u64, usize),
    host_reads: (u64, usize),
    plan: Plan,
    weather: Weather,
}

impl Story {
    fn tell(random: &mut Random, weather: Weather) -> Self {
        let size = |random: &mut Random| match random.below(4) {
            0 => random.below(3) as usize,
            1 => random.below(3000) as usize,
            _ => random.below(400_000) as usize,
        };
        let reads = |random: &mut Random| {
            if random.chance(50) {
                (100, usize::MAX)
            } else {
                (5 + random.below(60), 500 + random.below(40_000) as usize)
            }
        };
        Self {
            family: if random.chance(50) { Family::V4 } else { Family::V6 },
            mtu: [1500, 9000, 65_520][random.below(3) as usize],
            small_rings: random.chance(30),
            offloads: random.chance(70),
            from_guest: size(random),
            to_guest: size(random),
            guest_capacity: 2000 + random.below(200_000) as usize,
            guest_reads: reads(random),
            host_reads: reads(random),
            plan: match random.below(6) {
                0 => Plan::GuestAborts,
                1 => Plan::HostBreaks,
                _ => Plan::Orderly,
            },
            weather,
        }
    }
}

/// Frames under way, by time of arrival.
#[derive(Default)]
struct Link {
    under_way: BinaryHeap<Arrival>,
    serial: u64,
}

struct Arrival {
    at: Instant,
    serial: u64,
    to_guest: bool,
    segment: Seg,
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.serial) == (other.at, other.serial)
    }
}

impl Eq for Arrival {}

impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Arrival {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The earliest on top.
        (other.at, other.serial).cmp(&(self.at, self.serial))
    }
}

impl Link {
    fn carry(&mut self, now: Instant, random: &mut Random, weather: Weather, to_guest: bool, segment: &Seg) {
        // A SYN that is late would open another connection: that no link before a TAP is like that is what lets the
        // stack forget a connection in TIME-WAIT at once.
        let opens = segment.flags & (SYN | ACK) == SYN;
        let copies = if random.chance(weather.loss) {
            0
        } else if !opens && random.chance(weather.double) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let late = if !opens && random.chance(weather.reorder) { random.below(5000) } else { 0 };
            let at = now + Duration::from_micros(100 + late);
            self.serial += 1;
            self.under_way.push(Arrival { at, serial: self.serial, to_guest, segment: segment.clone() });
        }
    }
}

/// The last segments of a run, printed if it fails.
#[derive(Default)]
struct Trace(std::collections::VecDeque<String>);

impl Trace {
    fn note(&mut self, now: Instant, who: &str, s: &Seg) {
        if self.0.len() == 60 {
            self.0.pop_front();
        }
        let (flags, length) = (s.flags, s.payload.len());
        self.0.push_back(format!(
            "{now} {who} flags {flags:#04x} seq {} +{length} ack {} window {}",
            s.seq, s.ack, s.window
        ));
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in &self.0 {
                eprintln!("{line}");
            }
        }
    }
}

/// Cuts a super-frame as the guest's kernel would.
fn cut(segment: Seg) -> Vec<Seg> {
    let Some(size) = segment.gso_size else { return vec![segment] };
    let parts: Vec<&[u8]> = segment.payload.chunks(usize::from(size)).collect();
    let count = parts.len();
    parts
        .into_iter()
        .enumerate()
        .map(|(i, part)| Seg {
            seq: segment.seq.wrapping_add((i * usize::from(size)) as u32),
            payload: part.to_vec(),
            flags: if i + 1 < count { segment.flags & !(FIN | PSH) } else { segment.flags },
            gso_size: None,
            ..segment.clone()
        })
        .collect()
}

fn live(seed: u64, story: &Story) {
    let mut random = Random(seed ^ 0x5eed);
    let limits = Limits {
        tcp: TcpLimits { large_rings: if story.small_rings { 0 } else { 256 }, ..TcpLimits::default() },
        ..Limits::default()
    };
    let offloads = if story.offloads { all_offloads() } else { Offloads::default() };
    let mut world = World::with(config(story.mtu, offloads), limits);
    let outgoing = pattern(story.from_guest, seed);
    let incoming = pattern(story.to_guest, !seed);
    let mut guest = GuestTcp::new(
        at(story.family.guest(), 40_000),
        at(story.family.far(), 80),
        random.next() as u32,
        outgoing,
        story.guest_capacity,
        usize::from(story.mtu) - story.family.header() - 20,
    );
    let mut link = Link::default();
    let mut trace = Trace::default();
    let start = world.now;
    guest.connect(world.now);
    let mut flow = None;
    // Both sides break off, if they do, after so many bytes.
    let breaks_at = random.below(1 + (story.from_guest + story.to_guest) as u64) as usize;
    let guest_ends_first = random.chance(50);
    let mut next_turn = world.now;
    let mut broke = false;

    for step in 0.. {
        assert!(step < 3_000_000, "no end in sight");
        for segment in guest.take_out() {
            link.carry(world.now, &mut random, story.weather, false, &segment);
        }
        for segment in world.segments() {
            for part in cut(segment) {
                link.carry(world.now, &mut random, story.weather, true, &part);
            }
        }
        let over = world.tcp_flows() == 0 && flow.is_some() && guest.end() != End::Open && link.under_way.is_empty();
        if over {
            break;
        }
        // A reset that was lost is found out by asking; the TAP loses none, but this link does.
        let orphan = world.tcp_flows() == 0 && flow.is_some() && link.under_way.is_empty();
        if orphan && guest.next_timeout().is_none() {
            guest.probe();
            continue;
        }
        // So does a reset by the guest; here the other side finds it out when it next speaks.
        if guest.end() == End::Reset && world.tcp_flows() > 0 && link.under_way.is_empty() {
            guest.repeat_reset();
            continue;
        }
        // Whatever is due first.
        let due =
            [link.under_way.peek().map(|a| a.at), world.stack.next_timeout(), guest.next_timeout(), Some(next_turn)]
                .into_iter()
                .flatten()
                .min()
                .expect("a turn is always due");
        world.now = world.now.max(due);
        assert!(
            world.now - start < Duration::from_secs(2000),
            "no progress: guest {:?}, flows {}, closed {:?}",
            guest.end(),
            world.tcp_flows(),
            world.closed
        );
        if link.under_way.peek().is_some_and(|a| a.at <= world.now) {
            let arrival = link.under_way.pop().expect("peeked");
            trace.note(world.now, if arrival.to_guest { "to guest" } else { "from guest" }, &arrival.segment);
            if arrival.to_guest {
                guest.handle(world.now, &arrival.segment);
            } else {
                world.send(&arrival.segment);
            }
        }
        if world.stack.next_timeout().is_some_and(|at| at <= world.now) {
            world.stack.handle_timeout(world.now, &mut world.out);
            world.settle();
        }
        guest.handle_timeout(world.now);
        if next_turn > world.now {
            continue;
        }
        next_turn = world.now + Duration::from_millis(2);

        // The programs at both ends.
        if flow.is_none() && !world.connects.is_empty() {
            let id = world.accept();
            let host = world.host(id);
            host.sending.extend(&incoming);
            host.takes = 0;
            flow = Some(id);
        }
        if random.chance(story.guest_reads.0) {
            guest.read(story.guest_reads.1);
        }
        let Some(id) = flow else { continue };
        let moved = guest.received.len() + world.host.get(&id).map_or(0, |h| h.received.len());
        let all_arrived = guest.received.len() == incoming.len();
        if !guest.closes && (guest_ends_first || all_arrived) {
            guest.closes = true;
            guest.push(world.now, 0);
        }
        if story.plan == Plan::GuestAborts && moved >= breaks_at {
            broke |= guest.end() == End::Open;
            guest.abort();
        }
        if let Some(host) = world.host.get_mut(&id) {
            if random.chance(story.host_reads.0) {
                host.takes = host.takes.saturating_add(story.host_reads.1);
            }
            if !guest_ends_first || host.shut {
                host.ends = true;
            }
            if story.plan == Plan::HostBreaks && moved >= breaks_at {
                broke = true;
                host.broken = true;
            }
            world.poke(id);
        }
    }

    let id = flow.expect("accepted");
    let (closed, in_order) = world.close();
    let host = &world.gone[&id];
    assert!(guest.sent().starts_with(&host.received), "what the host got is what the guest sent");
    assert!(incoming.starts_with(&guest.received), "what the guest got is what the host sent");
    assert_eq!(closed, id);
    if !broke {
        assert_eq!(host.received.len(), guest.sent().len(), "all arrived at the host");
        assert_eq!(guest.received.len(), incoming.len(), "all arrived at the guest");
        assert!(in_order && host.shut, "an orderly end is told as one");
    }
    if in_order {
        assert_eq!(host.received.len(), guest.sent().len(), "a cut stream never looks complete");
        assert!(host.shut);
    }
    if guest.peer_closed {
        assert_eq!(guest.received.len(), incoming.len(), "a cut stream never looks complete");
    }
}

fn run(seed: u64, weather: Weather) {
    let story = Story::tell(&mut Random(seed), weather);
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(seed, &story)));
    if let Err(panic) = told {
        eprintln!("seed {seed:#x}: {story:?}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_fair_link() {
    for seed in 0..150 {
        run(seed, FAIR);
    }
}

#[test]
fn a_foul_link() {
    for seed in 1000..1200 {
        run(seed, FOUL);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_story(seed in any::<u64>(), loss in 0u64..12, double in 0u64..10, reorder in 0u64..20) {
        run(seed, Weather { loss, double, reorder });
    }
}
