#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use smoltcp::time::Duration;

use super::*;
use crate::network::fault::{Change, Rate, Rules, Share, Span, Target, Wanted};

const MAC: [u8; 12] = [2; 12];

/// An IPv4 packet as a frame, of `len` bytes with its Ethernet header; its last four bytes are `mark`.
fn frame(src: [u8; 4], dst: [u8; 4], len: usize, mark: u32) -> Vec<u8> {
    let mut frame = vec![0; VNET_HDR_LEN];
    frame.extend(MAC);
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.resize(VNET_HDR_LEN + len, 0);
    frame[IP_OFFSET + 9] = 17;
    frame[IP_OFFSET + 12..IP_OFFSET + 16].copy_from_slice(&src);
    frame[IP_OFFSET + 16..IP_OFFSET + 20].copy_from_slice(&dst);
    let end = frame.len();
    frame[end - 4..].copy_from_slice(&mark.to_be_bytes());
    frame
}

const GUEST: [u8; 4] = [10, 0, 2, 100];
const FAR: [u8; 4] = [192, 0, 2, 7];

fn sent(mark: u32) -> Vec<u8> {
    frame(GUEST, FAR, 100, mark)
}

fn mark(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[frame.len() - 4..].try_into().unwrap())
}

fn shape(latency: &str, jitter: &str, loss: &str, rate: &str) -> Change {
    Change {
        latency: Some(latency.parse::<Span>().unwrap()),
        jitter: Some(jitter.parse().unwrap()),
        loss: Some(loss.parse().unwrap()),
        rate: Some(Rate::parse(rate).unwrap()),
        ..Change::default()
    }
}

fn target(text: &str) -> Target {
    match Wanted::parse(text).unwrap() {
        Wanted::Known(target) => target,
        Wanted::Name(name) => Target::of_name(&name, vec!["192.0.2.7".parse().unwrap()], 1).unwrap(),
    }
}

/// Faults, and the rules that they follow.
struct Line {
    faults: Faults,
    rules: Rules,
    drops: DropCounters,
}

impl Line {
    fn new(limits: Limits) -> Self {
        Self { faults: Faults::new(limits), rules: Rules::default(), drops: DropCounters::default() }
    }

    fn of(change: &Change) -> Self {
        let mut line = Self::new(Limits::default());
        line.set(None, change, Instant::ZERO);
        line
    }

    fn set(&mut self, to: Option<&str>, change: &Change, now: Instant) {
        self.rules.set(to.map(target), change, 42, &crate::network::fault::Limits::default()).unwrap();
        self.faults.set_rules(self.rules.all(), now);
    }

    fn put(&mut self, now: Instant, direction: Direction, frame: &[u8]) -> Verdict {
        self.faults.handle_frame(now, direction, frame, &mut self.drops)
    }

    /// What comes out from here to `end`, with its time, asked for exactly when it is said to be due.
    fn come(&mut self, direction: Direction, end: Instant) -> Vec<(Instant, u32)> {
        let mut came = Vec::new();
        while let Some(due) = self.faults.next_timeout().filter(|&due| due <= end) {
            assert!(self.faults.poll_due(due - Duration::from_micros(1), direction).is_none(), "too early");
            let frame = self.faults.poll_due(due, direction).expect("what is due comes");
            came.push((due, mark(&frame)));
        }
        came
    }
}

use Direction::{FromGuest, ToGuest};

fn ms(ms: i64) -> Instant {
    Instant::from_millis(ms)
}

const LATE: Instant = Instant::from_micros_const(1_000_000_000_000);

#[test]
fn without_a_rule_everything_passes() {
    let mut line = Line::new(Limits::default());
    assert_eq!(line.put(ms(0), FromGuest, &sent(1)), Verdict::Pass);
    line.set(Some("192.0.2.8"), &shape("1ms", "0", "0", "0"), ms(0));
    assert_eq!(line.put(ms(0), FromGuest, &sent(1)), Verdict::Pass);
    assert!(!line.faults.is_idle());
    line.faults.set_rules(&[], ms(0));
    assert!(line.faults.is_idle() && line.faults.next_timeout().is_none());
}

#[test]
fn latency_is_exact_and_of_its_direction() {
    let mut line = Line::of(&Change { direction: Some(FromGuest), ..shape("50ms", "0", "0", "0") });
    for at in [0, 1, 7] {
        assert_eq!(line.put(ms(at), FromGuest, &sent(at as u32)), Verdict::Taken);
    }
    assert_eq!(line.put(ms(7), ToGuest, &frame(FAR, GUEST, 100, 0)), Verdict::Pass);
    assert_eq!(line.come(FromGuest, LATE), [(ms(50), 0), (ms(51), 1), (ms(57), 7)]);
    assert_eq!(line.faults.counts()[0].map(|counts| counts.delayed), [3, 0]);
}

#[test]
fn the_peer_is_the_other_end() {
    let mut line = Line::new(Limits::default());
    line.set(Some("192.0.2.0/24"), &shape("1ms", "0", "0", "0"), ms(0));
    assert_eq!(line.put(ms(0), FromGuest, &frame(GUEST, FAR, 60, 0)), Verdict::Taken);
    assert_eq!(line.put(ms(0), ToGuest, &frame(FAR, GUEST, 60, 0)), Verdict::Taken);
    assert_eq!(line.put(ms(0), FromGuest, &frame(FAR, GUEST, 60, 0)), Verdict::Pass);
    assert_eq!(line.put(ms(0), ToGuest, &frame(GUEST, FAR, 60, 0)), Verdict::Pass);
    line.set(Some("2001:db8::/32"), &shape("1ms", "0", "0", "0"), ms(0));
    let mut six = frame(GUEST, FAR, 100, 0);
    six[IP_OFFSET - 2..IP_OFFSET].copy_from_slice(&[0x86, 0xdd]);
    six[IP_OFFSET + 24..IP_OFFSET + 40].copy_from_slice(&"2001:db8::9".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(line.put(ms(0), FromGuest, &six), Verdict::Taken);
    assert_eq!(line.put(ms(0), ToGuest, &six), Verdict::Pass);
}

#[test]
fn the_most_specific_rule_counts_alone() {
    let mut line = Line::new(Limits::default());
    for (to, latency) in
        [(None, "1ms"), (Some("192.0.2.0/24"), "2ms"), (Some("db"), "3ms"), (Some("192.0.0.0/16"), "4ms")]
    {
        line.set(to, &shape(latency, "0", "0", "0"), ms(0));
    }
    for dst in [[1, 1, 1, 1], [192, 0, 2, 8], FAR, [192, 0, 9, 9]] {
        line.put(ms(0), FromGuest, &frame(GUEST, dst, 60, u32::from(dst[3])));
    }
    assert_eq!(line.come(FromGuest, LATE), [(ms(1), 1), (ms(2), 8), (ms(3), 7), (ms(4), 9)]);
    // One that says nothing of a direction leaves it to others.
    let only = Change { direction: Some(ToGuest), ..shape("0", "0", "0", "0") };
    line.set(Some("db"), &only, ms(10));
    line.put(ms(10), ToGuest, &frame(FAR, GUEST, 60, 1));
    assert_eq!(line.come(ToGuest, LATE), [(ms(12), 1)]);
}

#[test]
fn neighbours_and_what_is_not_ip_pass() {
    let mut line = Line::of(&shape("0", "0", "100%", "0"));
    let mut arp = sent(0);
    arp[IP_OFFSET - 1] = 0x06;
    assert_eq!(line.put(ms(0), FromGuest, &arp), Verdict::Pass);
    let mut six = sent(0);
    six[IP_OFFSET - 2..IP_OFFSET].copy_from_slice(&[0x86, 0xdd]);
    six[IP_OFFSET + 6] = 58;
    for kind in 133..=137 {
        six[IP_OFFSET + 40] = kind;
        assert_eq!(line.put(ms(0), ToGuest, &six), Verdict::Pass, "{kind}");
    }
    six[IP_OFFSET + 40] = 128;
    assert_eq!(line.put(ms(0), ToGuest, &six), Verdict::Taken);
    for len in 0..IP_OFFSET + 20 {
        line.put(ms(0), FromGuest, &sent(0)[..len]);
        line.put(ms(0), ToGuest, &six[..len]);
    }
    assert_eq!(line.drops.get(DropReason::FaultLoss), 1);
}

/// 1 % of 100 000: 1000, four standard deviations of 31.5.
#[test]
fn loss_is_its_share() {
    for seed in 0..8 {
        let mut line = Line::of(&Change { seed: Some(seed), ..shape("0", "0", "1%", "0") });
        for at in 0..100_000 {
            line.put(ms(0), FromGuest, &sent(at));
        }
        let lost = line.drops.get(DropReason::FaultLoss);
        assert!(lost.abs_diff(1000) < 126, "{lost}");
        assert_eq!(line.faults.counts()[0][0].lost, lost);
        let came = line.come(FromGuest, LATE);
        assert_eq!(came.len() as u64 + lost, 100_000 - line.drops.get(DropReason::FaultQueue));
    }
}

#[test]
fn a_rate_is_exact() {
    for (rate, len, count) in [("10mbit", 1514, 900), ("7mbit", 1001, 1000), ("1kbit", 64, 20), ("3gbit", 1514, 900)] {
        let mut line = Line::of(&shape("0", "0", "0", rate));
        for at in 0..count {
            line.put(ms(0), ToGuest, &frame(FAR, GUEST, len, at));
        }
        let came = line.come(ToGuest, LATE);
        assert_eq!(came.len() as u32, count);
        let bits = Rate::parse(rate).unwrap().unwrap().bits();
        // The first leaves when its last bit does, and none is off by more than the clock's step.
        for (nth, (due, _)) in came.iter().enumerate() {
            let exact = (nth as u64 + 1) * len as u64 * 8 * 1_000_000 / bits;
            assert!(due.total_micros().abs_diff(exact as i64) <= 1, "{rate}, packet {nth}: {due} of {exact} us");
        }
    }
}

#[test]
fn an_idle_line_saves_nothing_up() {
    let mut line = Line::of(&shape("0", "0", "0", "1mbit"));
    line.put(ms(0), FromGuest, &frame(GUEST, FAR, 125, 1));
    line.put(ms(1000), FromGuest, &frame(GUEST, FAR, 125, 2));
    line.put(ms(1000), FromGuest, &frame(GUEST, FAR, 125, 3));
    assert_eq!(line.come(FromGuest, LATE), [(ms(1), 1), (ms(1001), 2), (ms(1002), 3)]);
}

#[test]
fn latency_comes_behind_the_line() {
    let mut line = Line::of(&shape("50ms", "0", "0", "1mbit"));
    for at in 0..3 {
        line.put(ms(0), FromGuest, &frame(GUEST, FAR, 125, at));
    }
    assert_eq!(line.come(FromGuest, LATE), [(ms(51), 0), (ms(52), 1), (ms(53), 2)]);
}

#[test]
fn jitter_is_even_around_the_latency() {
    let mut line = Line::of(&shape("50ms", "5ms", "0", "0"));
    let mut late = Vec::new();
    // Far enough apart that none waits for another.
    for at in 0..10_000_i64 {
        let now = ms(at * 20);
        line.put(now, FromGuest, &sent(0));
        let (due, _) = line.come(FromGuest, now + Duration::from_secs(1))[0];
        late.push((due - now).total_micros());
    }
    late.sort_unstable();
    let (least, median, most) = (late[0], late[5000], late[9999]);
    assert!((45_000..45_020).contains(&least) && (54_980..=55_000).contains(&most), "{least} to {most}");
    // The median of 10 000 even draws from 10 ms: a standard deviation of 50 us.
    assert!(median.abs_diff(50_000) < 250, "{median}");
}

#[test]
fn reorder_is_asked_for() {
    let run = |reorder| {
        let mut line = Line::of(&Change { reorder: Some(reorder), ..shape("50ms", "50ms", "0", "0") });
        for at in 0..100 {
            line.put(ms(at), FromGuest, &sent(at as u32));
        }
        line.come(FromGuest, LATE).iter().map(|&(_, mark)| mark).collect::<Vec<_>>()
    };
    assert!(run(false).is_sorted());
    let mut mixed = run(true);
    assert!(!mixed.is_sorted());
    mixed.sort_unstable();
    assert!(mixed.into_iter().eq(0..100));
}

#[test]
fn the_same_seed_is_the_same_faults() {
    let run = |seed, latency| {
        let mut line = Line::of(&Change { seed: Some(seed), ..shape(latency, "1ms", "20%", "0") });
        for at in 0..500 {
            line.put(ms(at), FromGuest, &sent(at as u32));
        }
        line.come(FromGuest, LATE)
    };
    assert_eq!(run(7, "5ms"), run(7, "5ms"));
    assert_ne!(run(7, "5ms"), run(8, "5ms"));
    // Which are lost has nothing to do with how late the others are.
    let marks = |came: Vec<(Instant, u32)>| came.into_iter().map(|(_, mark)| mark).collect::<Vec<_>>();
    assert_eq!(marks(run(7, "5ms")), marks(run(7, "90ms")));
}

#[test]
fn a_seed_begins_chance_anew_and_nothing_else_does() {
    let mut line = Line::of(&Change { seed: Some(7), ..shape("1ms", "1ms", "50%", "0") });
    let batch = |line: &mut Line, at| {
        for mark in 0..64 {
            line.put(ms(at), FromGuest, &sent(mark));
        }
        line.come(FromGuest, LATE).iter().map(|&(_, mark)| mark).collect::<Vec<_>>()
    };
    let first = batch(&mut line, 0);
    line.set(None, &Change { loss: Some("50%".parse::<Share>().unwrap()), ..Change::default() }, ms(100));
    assert_ne!(batch(&mut line, 100), first);
    line.set(None, &Change { seed: Some(7), ..Change::default() }, ms(200));
    assert_eq!(batch(&mut line, 200), first);
}

#[test]
fn what_was_held_goes_on_when_its_shape_changes() {
    let mut line = Line::of(&shape("50ms", "0", "0", "0"));
    line.set(Some("192.0.2.8"), &shape("30ms", "0", "0", "0"), ms(0));
    for at in 0..3 {
        line.put(ms(at), FromGuest, &sent(at as u32));
    }
    line.put(ms(3), FromGuest, &frame(GUEST, [192, 0, 2, 8], 60, 99));
    line.set(None, &shape("2ms", "0", "0", "0"), ms(10));
    line.put(ms(10), FromGuest, &sent(3));
    assert_eq!(line.come(FromGuest, LATE), [(ms(10), 0), (ms(10), 1), (ms(10), 2), (ms(12), 3), (ms(33), 99)]);
    line.put(ms(40), FromGuest, &sent(4));
    line.put(ms(40), ToGuest, &frame(FAR, GUEST, 60, 5));
    line.faults.set_rules(&[], ms(41));
    assert_eq!(line.faults.next_timeout(), Some(ms(41)));
    assert_eq!(mark(&line.faults.poll_due(ms(41), FromGuest).unwrap()), 4);
    assert!(!line.faults.is_idle());
    assert_eq!(mark(&line.faults.poll_due(ms(41), ToGuest).unwrap()), 5);
    assert!(line.faults.is_idle());
}

#[test]
fn queues_are_bounded() {
    let mut line = Line::new(Limits { frames: 10, bytes: usize::MAX, line: 0 });
    line.set(None, &shape("1s", "0", "0", "0"), ms(0));
    for at in 0..25 {
        line.put(ms(0), FromGuest, &sent(at));
    }
    assert_eq!((line.faults.held(FromGuest).0, line.drops.get(DropReason::FaultQueue)), (10, 15));
    // The tail is dropped.
    assert!(line.come(FromGuest, LATE).iter().map(|&(_, mark)| mark).eq(0..10));
    assert_eq!(line.faults.held(FromGuest), (0, 0));
    let mut line = Line::new(Limits { frames: usize::MAX, bytes: 1000, line: 0 });
    line.set(None, &shape("1s", "0", "0", "0"), ms(0));
    for at in 0..25 {
        line.put(ms(0), FromGuest, &sent(at));
    }
    assert_eq!((line.faults.held(FromGuest), line.drops.get(DropReason::FaultQueue)), ((9, 990), 16));
}

#[test]
fn a_line_has_a_queue_of_its_own() {
    // A second's worth of 1 mbit is 125 000 bytes: more than the least.
    let mut line = Line::new(Limits { line: 1000, ..Limits::default() });
    line.set(None, &shape("0", "0", "0", "1mbit"), ms(0));
    for at in 0..300 {
        line.put(ms(0), FromGuest, &frame(GUEST, FAR, 1000, at));
    }
    assert_eq!(line.drops.get(DropReason::FaultQueue), 300 - 126);
    // What overflowed has not taken time of the line.
    line.put(ms(1000), FromGuest, &frame(GUEST, FAR, 1000, 999));
    let came = line.come(FromGuest, LATE);
    assert_eq!((came.len(), came[126]), (127, (ms(127 * 8), 999)));
}

/// A TCP super-frame of IPv4 for `dst` with this much payload.
fn super_frame(payload: usize, size: u16) -> Vec<u8> {
    let mut frame = frame(GUEST, FAR, 14 + 20 + 20 + payload, 0);
    let total = (frame.len() - IP_OFFSET) as u16;
    frame[IP_OFFSET + 2..IP_OFFSET + 4].copy_from_slice(&total.to_be_bytes());
    frame[IP_OFFSET + 9] = 6;
    frame[IP_OFFSET + 20 + 12] = 0x50;
    let hdr = VnetHdr {
        needs_csum: true,
        gso: Gso::Tcp4,
        gso_size: size,
        csum_start: 34,
        csum_offset: 16,
        ..VnetHdr::default()
    };
    hdr.emit(&mut frame);
    frame
}

#[test]
fn loss_and_rate_are_of_packets() {
    let mut line = Line::of(&shape("0", "0", "0", "12.112mbit"));
    // 43 full packets of 1460 bytes and one of 20.
    line.put(ms(0), FromGuest, &super_frame(43 * 1460 + 20, 1460));
    assert_eq!(line.faults.held(FromGuest).0, 44);
    let came = line.come(FromGuest, LATE);
    // 1514 bytes are a millisecond.
    assert_eq!((came[0].0, came[42].0), (ms(1), ms(43)));
    let mut line = Line::of(&shape("0", "0", "1%", "0"));
    for _ in 0..2000 {
        line.put(ms(0), FromGuest, &super_frame(40 * 1460, 1460));
        while line.faults.poll_due(ms(0), FromGuest).is_some() {}
    }
    // 80 000 packets: 800 of them, four standard deviations of 28.
    assert!(line.drops.get(DropReason::FaultLoss).abs_diff(800) < 113, "{:?}", line.drops);
    // Delay alone leaves it whole.
    let mut line = Line::of(&shape("1ms", "0", "0", "0"));
    let whole = super_frame(10_000, 1460);
    line.put(ms(0), FromGuest, &whole);
    assert_eq!(&*line.faults.poll_due(ms(1), FromGuest).unwrap(), &whole[..]);
    // One that lies about itself goes on as it is.
    let mut line = Line::of(&shape("0", "0", "0", "1gbit"));
    let mut bad = whole;
    bad[VNET_HDR_LEN - 4] = 0xff;
    line.put(ms(0), FromGuest, &bad);
    assert_eq!(&*line.faults.poll_due(ms(9), FromGuest).unwrap(), &bad[..]);
}

proptest! {
    /// Whatever the rule and the traffic: each packet is lost, overflowed or comes once; in order unless asked; not before it
    /// could; memory stays within bounds, and what is counted adds up.
    #[test]
    fn packets_are_conserved(
        latency in 0_u64..100_000, jitter in 0_u64..100_000, loss in 0_u64..=1_000_000, rate in prop::option::of(1_u64..1_000_000),
        reorder: bool, seed: u64, gaps in prop::collection::vec((0_u64..3000, 60_usize..1500, any::<bool>()), 1..200),
    ) {
        let change = Change {
            latency: Some(format!("{latency}us").parse().unwrap()),
            jitter: Some(format!("{}us", jitter.min(latency)).parse().unwrap()),
            loss: Some(format!("{}.{:04}%", loss / 10_000, loss % 10_000).parse().unwrap()),
            rate: Some(rate.and_then(|kbit| Rate::parse(&format!("{kbit}kbit")).unwrap())),
            reorder: Some(reorder),
            seed: Some(seed),
            ..Change::default()
        };
        let limits = Limits { frames: 50, bytes: 20_000, line: 5000 };
        let mut line = Line::new(limits);
        if Rules::default().set(None, &change, 0, &crate::network::fault::Limits::default()).is_err() {
            return Ok(());
        }
        line.set(None, &change, ms(0));
        let (mut now, mut put, mut came) = (Instant::ZERO, [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        let mut passed = 0;
        for (nth, &(gap, len, out)) in gaps.iter().enumerate() {
            now += Duration::from_micros(gap);
            for direction in DIRECTIONS {
                while let Some(frame) = line.faults.poll_due(now, direction) {
                    came[direction as usize].push((now, mark(&frame)));
                }
                let (frames, bytes) = line.faults.held(direction);
                prop_assert!(frames <= limits.frames && bytes <= limits.bytes);
            }
            let direction = if out { FromGuest } else { ToGuest };
            let frame = if out { frame(GUEST, FAR, len, nth as u32) } else { frame(FAR, GUEST, len, nth as u32) };
            match line.put(now, direction, &frame) {
                Verdict::Taken => put[direction as usize].push((now, nth as u32)),
                Verdict::Pass => passed += 1,
            }
        }
        while let Some(due) = line.faults.next_timeout() {
            for direction in DIRECTIONS {
                while let Some(frame) = line.faults.poll_due(due, direction) {
                    came[direction as usize].push((due, mark(&frame)));
                }
            }
        }
        let all = put[0].len() + put[1].len();
        let dropped = line.drops.get(DropReason::FaultLoss) + line.drops.get(DropReason::FaultQueue);
        prop_assert_eq!(came[0].len() + came[1].len() + dropped as usize, all);
        prop_assert!(passed == 0 || line.rules.all().is_empty());
        for direction in DIRECTIONS {
            let (put, came) = (&put[direction as usize], &came[direction as usize]);
            prop_assert!(reorder || came.is_sorted_by_key(|&(_, mark)| mark));
            for (at, mark) in came {
                let (then, _) = put.iter().find(|(_, one)| one == mark).unwrap();
                prop_assert!((*at - *then).total_micros() >= latency - jitter.min(latency));
            }
        }
        for counts in line.faults.counts().into_iter().flatten() {
            prop_assert!(counts.lost + counts.overflowed + counts.delayed <= counts.packets);
        }
        prop_assert_eq!(line.faults.held(FromGuest), (0, 0));
        prop_assert_eq!(line.faults.held(ToGuest), (0, 0));
    }

    #[test]
    fn hostile_frames(bytes in prop::collection::vec(any::<u8>(), 0..300), rate: bool) {
        let mut line = Line::of(&shape("0", "0", if rate { "0" } else { "50%" }, if rate { "1mbit" } else { "0" }));
        for direction in DIRECTIONS {
            line.put(ms(0), direction, &bytes);
            while line.faults.poll_due(LATE, direction).is_some() {}
        }
    }
}
