//! What keeps one member of a shared network from living at the others' expense: time, and bounds in all.
//!
//! **Time.** Frames cost what they cause: a plain one a microsecond, a SYN a host socket, one to everybody as many writes as there
//! are others. So while more than one TAP has frames, the time that each takes is measured, once a turn and not once a frame, and
//! a member that is more than [`SLACK`] ahead of the one that had least waits for the next turn. Whoever had nothing to say comes back
//! with no more credit than the others. How many frames one turn takes follows from what the last ones cost ([`TURN`]).
//!
//! **Dear frames.** That alone would not do: who streams waits for its acknowledgements between two turns, and a flood fills the gaps. So what
//! a member's frames cost beyond what carrying them does ([`FRAME`], [`BYTE`]; the rest is sockets that are made, copies, questions that
//! another thread answers) has a rate of its own while others are there too, [`DEAR`]; above it the TAP is left alone as well. Time
//! is the thread's own processor time: that others have the processor is nobody's fault.
//!
//! **Junk.** What a guest sends and nobody wants (dropped for whatever reason, but by a link that took no more) has a rate,
//! `Limits::junk`. Above it its TAP is left alone for as long as that takes: what comes meanwhile waits in the guest's own queue, and
//! is lost there, at the guest's own expense.
//!
//! **In all.** Each endpoint has its bounds ([`crate::stack::Limits`]), and all of a network together have [`AllLimits`]: where these
//! are met, the member that has most gives, of its longest idle (of those in the lane that finds it: `runtime::lanes`). What each has is added up when it settles; members are looked
//! at one by one only when a bound is met.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit};
use smoltcp::time::{Duration, Instant};

use crate::stack::bucket::{Bucket, Rate};

/// A member waits when it had this much more than the least, nanoseconds: about two turns.
const SLACK: u64 = 500_000;
/// How long one member's part of a turn is to take, nanoseconds: eight super-frames and their bytes.
const TURN: u64 = 250_000;
/// Frames that one turn takes, whatever they cost.
const LEAST: usize = 2;
/// How long times are measured after two TAPs had frames at once.
const CONTESTED: Duration = Duration::from_millis(100);
/// What carrying a frame may cost, nanoseconds: a guess, well above what small ones should cost, since slower machines are no attackers. Not measured.
const FRAME: u64 = 12_000;
/// What carrying a byte may: a guess with room for frames that are cut and summed in software. Not measured.
const BYTE: u64 = 3;
/// What a question costs the thread that answers it, nanoseconds.
const QUESTION: u64 = 20_000;
/// What a connection costs after the turn in which it is asked for: its answer, and its end. Nanoseconds.
const CONNECT: u64 = 15_000;
/// Microseconds beyond that: a twentieth of a processor, and at most as much again, since the rate gathers while a TAP rests for what was too
/// much. If a connection costs some 45 µs (a guess), that is up to 3000 of them a second.
const DEAR: Rate = Rate { per_second: 50_000, burst: 5_000 };

/// Bounds of all members of a network together.
#[derive(Clone, Copy, Debug)]
pub struct AllLimits {
    /// TCP flows.
    pub flows: usize,
    /// Sockets of UDP and echo.
    pub datagrams: usize,
    /// Bytes that flows hold, in rings and in the kernel.
    pub bytes: usize,
}

impl Default for AllLimits {
    /// Linux has 28 232 ephemeral ports (net.ipv4.ip_local_port_range), of each protocol: some are left for the host's own programs
    /// whatever members do, even where all connect to one server. Twice what one guest's flows may hold.
    fn default() -> Self {
        Self { flows: 24_576, datagrams: 8_192, bytes: 1 << 30 }
    }
}

impl AllLimits {
    /// The same within this process's descriptors, of which some are kept for what is not a flow.
    #[must_use]
    pub fn fitting(self) -> Self {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        self.within(usize::try_from(soft).unwrap_or(usize::MAX))
    }

    fn within(self, descriptors: usize) -> Self {
        let all = descriptors - descriptors / 4;
        let flows = self.flows.min(all - all / 4);
        Self { flows, datagrams: self.datagrams.min(all / 4), ..self }
    }
}

/// What may be too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP flows.
    Flows,
    /// Sockets of UDP and echo.
    Datagrams,
    /// Bytes that flows hold.
    Bytes,
}

/// All of them.
const KINDS: [Kind; 3] = [Kind::Flows, Kind::Datagrams, Kind::Bytes];

/// How much somebody has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// TCP flows.
    pub flows: usize,
    /// Sockets of UDP and echo.
    pub datagrams: usize,
    /// Bytes that flows hold.
    pub bytes: usize,
}

impl Held {
    /// Of one kind.
    pub fn of(&self, kind: Kind) -> usize {
        match kind {
            Kind::Flows => self.flows,
            Kind::Datagrams => self.datagrams,
            Kind::Bytes => self.bytes,
        }
    }
}

/// What all have; clones, for further lanes, are the same.
#[derive(Clone, Debug)]
pub struct Totals {
    limits: AllLimits,
    held: Arc<[AtomicUsize; 3]>,
}

impl Totals {
    /// Nobody has anything.
    pub fn new(limits: AllLimits) -> Self {
        Self { limits, held: Arc::default() }
    }

    /// One of them has `now` instead of what is noted in `told`. Nothing else goes by the sums, so their order with other memory does
    /// not matter.
    pub fn update(&mut self, told: &mut Held, now: Held) {
        let before = std::mem::replace(told, now);
        for kind in KINDS {
            let more = now.of(kind).wrapping_sub(before.of(kind));
            if more != 0 {
                // Wraps where there is less, and back with what others have.
                self.held[kind as usize].fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    /// Of what there is too much.
    pub fn over(&self) -> Option<Kind> {
        let AllLimits { flows, datagrams, bytes } = self.limits;
        let limits = [flows, datagrams, bytes];
        KINDS.into_iter().find(|&kind| self.held[kind as usize].load(Ordering::Relaxed) > limits[kind as usize])
    }
}

/// What one turn did of one endpoint's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Processor time, nanoseconds.
    pub nanos: u64,
    /// Frames that were read from its TAP.
    pub read: u64,
    /// Frames that crossed its TAP, either way, and their bytes.
    pub frames: u64,
    /// See there.
    pub bytes: u64,
    /// Questions for names that it asked.
    pub questions: u64,
    /// Connections that it asked for.
    pub connects: u64,
}

/// One endpoint's part in the time of all, and its junk.
#[derive(Debug)]
pub struct Share {
    /// Nanoseconds that it has had.
    spent: u64,
    /// What one of its frames costs, about.
    cost: u64,
    /// The last turn in which it had frames to read.
    ready: u64,
    junk: Bucket,
    per_junk: Duration,
    dear: Bucket,
    /// Its TAP is left alone until then.
    pub rests_until: Option<Instant>,
}

impl Share {
    /// `junk`: what it may send that nobody wants.
    pub fn new(junk: Rate) -> Self {
        let per_junk = Duration::from_micros(1_000_000 / u64::from(junk.per_second.max(1)));
        Self {
            spent: 0,
            cost: 0,
            ready: 0,
            junk: Bucket::new(junk),
            per_junk,
            dear: Bucket::new(DEAR),
            rests_until: None,
        }
    }

    /// It took so long for that. True if its TAP is to be left alone for a while.
    pub fn charge(&mut self, now: Instant, work: &Work) -> bool {
        self.spent += work.nanos;
        if work.read == 0 {
            // Its hosts' doing.
            return false;
        }
        self.cost = (3 * self.cost + work.nanos / work.read) / 4;
        let plain = FRAME * work.frames + BYTE * work.bytes;
        let dear = (work.nanos + QUESTION * work.questions + CONNECT * work.connects).saturating_sub(plain) / 1000;
        let dear = u32::try_from(dear).unwrap_or(u32::MAX);
        if dear == 0 || self.dear.take(now, dear) {
            return false;
        }
        let micros = u64::from(dear) * 1_000_000 / u64::from(DEAR.per_second);
        self.rest(now + Duration::from_micros(micros.clamp(1_000, 50_000)))
    }

    fn rest(&mut self, until: Instant) -> bool {
        self.rests_until = Some(self.rests_until.map_or(until, |before| before.max(until)));
        true
    }

    /// How many frames it may have in a turn, if `all` were to be had.
    pub fn frames(&self, all: usize) -> usize {
        let fits = usize::try_from(TURN / self.cost.max(1)).unwrap_or(usize::MAX);
        all.min(fits.max(LEAST))
    }

    /// So many of its frames were wanted by nobody. True if its TAP is to be left alone for a while.
    pub fn handle_junk(&mut self, now: Instant, frames: u64) -> bool {
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        if frames == 0 || self.junk.take(now, frames) {
            return false;
        }
        self.rest(now + (self.per_junk * frames).max(Duration::from_millis(1)))
    }
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Turnstile {
    floor: u64,
    until: Option<Instant>,
}

impl Turnstile {
    /// So many TAPs have frames in this turn: whether times are measured.
    pub fn contested(&mut self, now: Instant, ready: usize) -> bool {
        if ready > 1 {
            self.until = Some(now + CONTESTED);
        }
        self.until.is_some_and(|until| now < until)
    }

    /// One that has frames in this turn; before any is asked [`Turnstile::admits`].
    pub fn arrive(&mut self, turn: u64, share: &mut Share, least: &mut u64) {
        if share.ready + 1 != turn {
            share.spent = share.spent.max(self.floor);
        }
        share.ready = turn;
        *least = (*least).min(share.spent);
    }

    /// Whether it is read in this turn, `least` being what the one that had least has had.
    pub fn admits(&mut self, share: &Share, least: u64) -> bool {
        self.floor = self.floor.max(least);
        share.spent <= least.saturating_add(SLACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JUNK: Rate = Rate { per_second: 1000, burst: 100 };

    fn work(nanos: u64, read: u64) -> Work {
        Work { nanos, read, frames: read, ..Work::default() }
    }

    #[test]
    fn dear_frames_have_a_rate_and_plain_ones_none() {
        let mut share = Share::new(JUNK);
        let (mut now, mut opened, mut turns) = (Instant::from_secs(1), 0, 0);
        // SYNs of 30 µs each, eight a turn, for a second; then a stream of 64 KiB frames of 25 µs each.
        while now < Instant::from_secs(2) {
            turns += 1;
            opened += 8;
            now += Duration::from_micros(240);
            if share.charge(now, &work(240_000, 8)) {
                now = now.max(share.rests_until.take().unwrap());
            }
        }
        // 18 µs each beyond carrying them: the rate, and as much again, for it gathers while the TAP rests for what was too much.
        assert!((4_500..6_000).contains(&opened), "{opened} in {turns} turns");
        for _ in 0..10_000 {
            let stream = Work { nanos: 200_000, read: 8, frames: 8, bytes: 8 * 65_000, ..Work::default() };
            assert!(!share.charge(now, &stream));
        }
        assert!(!share.charge(now, &work(50_000_000, 0)), "what hosts send is not its doing");
    }

    /// Turns in which each of two is read, of `turns`, if one costs so much a turn and the other so much.
    fn turns(costs: [u64; 2], turns: u64) -> [u64; 2] {
        let (mut stile, mut shares) = (Turnstile::default(), [Share::new(JUNK), Share::new(JUNK)]);
        let mut read = [0; 2];
        for turn in 1..=turns {
            assert!(stile.contested(Instant::from_millis(turn as i64), 2));
            let mut least = u64::MAX;
            for share in &mut shares {
                stile.arrive(turn, share, &mut least);
            }
            for (at, share) in shares.iter_mut().enumerate() {
                if stile.admits(share, least) {
                    share.charge(Instant::ZERO, &work(costs[at], 1));
                    read[at] += 1;
                }
            }
        }
        read
    }

    #[test]
    fn who_costs_ten_times_as_much_is_read_a_tenth_as_often() {
        let [dear, cheap] = turns([1_000_000, 100_000], 1000);
        assert_eq!(cheap, 1000);
        assert!((95..=110).contains(&dear), "{dear}");
        assert_eq!(turns([100_000, 100_000], 1000), [1000, 1000]);
    }

    #[test]
    fn silence_gathers_no_credit() {
        let (mut stile, mut busy, mut late) = (Turnstile::default(), Share::new(JUNK), Share::new(JUNK));
        for turn in 1..=1000 {
            let mut least = u64::MAX;
            stile.arrive(turn, &mut busy, &mut least);
            assert!(stile.admits(&busy, least), "nobody else wants the time");
            busy.charge(Instant::ZERO, &work(1_000_000, 10));
        }
        let mut waited = 0;
        for turn in 1001..=1100 {
            let mut least = u64::MAX;
            for share in [&mut busy, &mut late] {
                stile.arrive(turn, share, &mut least);
            }
            for share in [&mut busy, &mut late] {
                if stile.admits(share, least) {
                    share.charge(Instant::ZERO, &work(1_000_000, 10));
                } else {
                    waited += 1;
                }
            }
        }
        assert!(waited <= 4, "the busy one waited {waited} turns for one that comes late");
    }

    #[test]
    fn a_turn_takes_as_many_frames_as_fit() {
        let mut share = Share::new(JUNK);
        assert_eq!(share.frames(64), 64);
        for _ in 0..32 {
            share.charge(Instant::ZERO, &work(64 * 25_000, 64));
        }
        assert!((9..=11).contains(&share.frames(64)), "{}", share.frames(64));
        for _ in 0..32 {
            share.charge(Instant::ZERO, &work(4_000_000, 4));
        }
        assert_eq!(share.frames(64), LEAST);
    }

    #[test]
    fn junk_beyond_its_rate_rests_the_tap_for_as_long() {
        let mut share = Share::new(JUNK);
        let now = Instant::from_secs(1);
        assert!(!share.handle_junk(now, 0) && !share.handle_junk(now, 100));
        assert!(share.handle_junk(now, 64));
        assert_eq!(share.rests_until, Some(now + Duration::from_millis(64)));
    }

    #[test]
    fn bounds_in_all_fit_the_descriptors() {
        let all = AllLimits::default();
        assert_eq!(all.within(1 << 20).flows, 24_576);
        let few = all.within(4096);
        assert_eq!((few.flows, few.datagrams), (2304, 768));
        let mut totals = Totals::new(few);
        let mut told = [Held::default(); 2];
        totals.update(&mut told[0], Held { flows: 2000, ..Held::default() });
        totals.update(&mut told[1], Held { flows: 304, bytes: 1 << 30, ..Held::default() });
        assert_eq!(totals.over(), None);
        totals.update(&mut told[1], Held { flows: 305, ..Held::default() });
        assert_eq!(totals.over(), Some(Kind::Flows));
        totals.update(&mut told[0], Held::default());
        assert_eq!(totals.over(), None);
    }
}
