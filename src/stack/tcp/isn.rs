//! Initial sequence numbers that grow per 4-tuple (RFC 6528): ISN = M + F(4-tuple, secret).
//!
//! smoltcp draws them at random. With a published port's true client address the guest meets 4-tuples again while they
//! are in its TIME-WAIT, and its kernel takes a SYN there only if the sequence number is ahead of the last one; half of
//! random ones are not, and such connects stall for a second. So each flow gets an offset between smoltcp's numbers and
//! the guest's. M ticks every 64 ns (as Linux's `secure_tcp_seq`, net/core/secure_seq.c), which covers 16 MB/s; a faster
//! flow leaves its end behind in a bucket, and the next flow of that bucket starts above it.

use std::hash::{BuildHasher, Hash};

use foldhash::quality::FixedState;
use smoltcp::time::{Duration, Instant};

/// Buckets that remember where fast flows ended. 16 KiB; a collision only makes a number larger than needed.
const BUCKETS: usize = 1024;
/// How long a 4-tuple can linger in the guest: TCP_TIMEWAIT_LEN, include/net/tcp.h.
const TIME_WAIT: Duration = Duration::from_secs(60);

/// The generator of one network process.
#[derive(Debug)]
pub struct IsnClock {
    secret: FixedState,
    floors: Box<[(u32, Instant)]>,
}

impl IsnClock {
    /// `seed` must be unpredictable to the guest.
    pub fn new(seed: u64) -> Self {
        Self {
            secret: FixedState::with_seed(seed),
            floors: vec![(0, Instant::from_micros(-1)); BUCKETS].into_boxed_slice(),
        }
    }

    fn hash(&self, tuple: &impl Hash) -> (u32, usize) {
        let hash = self.secret.hash_one(tuple);
        ((hash >> 32) as u32, hash as usize % BUCKETS)
    }

    fn clock(now: Instant) -> u32 {
        // 1 µs is 15.625 ticks of 64 ns.
        (now.total_micros().unsigned_abs().wrapping_mul(125) / 8) as u32
    }

    /// The first sequence number of a new flow.
    pub fn start(&self, tuple: &impl Hash, now: Instant) -> u32 {
        let (f, bucket) = self.hash(tuple);
        let mut m = Self::clock(now);
        let (floor, until) = self.floors[bucket];
        if now < until && (floor.wrapping_sub(m) as i32) > 0 {
            m = floor;
        }
        f.wrapping_add(m)
    }

    /// Notes the last sequence number of a flow that ended.
    pub fn end(&mut self, tuple: &impl Hash, last: u32, now: Instant) {
        let (f, bucket) = self.hash(tuple);
        let m = last.wrapping_sub(f).wrapping_add(1);
        let (floor, until) = self.floors[bucket];
        let ahead_of_clock = (m.wrapping_sub(Self::clock(now)) as i32) > 0;
        let ahead_of_floor = now >= until || (m.wrapping_sub(floor) as i32) > 0;
        if ahead_of_clock && ahead_of_floor {
            self.floors[bucket] = (m, now + TIME_WAIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newer(a: u32, b: u32) -> bool {
        (a.wrapping_sub(b) as i32) > 0
    }

    #[test]
    fn grows_with_time_and_beyond_fast_flows() {
        let mut clock = IsnClock::new(7);
        let tuple = ("10.0.2.100", 80u16, "192.0.2.9", 40000u16);
        let t0 = Instant::from_secs(5);
        let first = clock.start(&tuple, t0);
        let later = clock.start(&tuple, t0 + Duration::from_millis(1));
        assert!(newer(later, first));
        // A gigabyte within a millisecond: the clock alone would fall behind.
        let last = first.wrapping_add(1 << 30);
        clock.end(&tuple, last, t0 + Duration::from_millis(1));
        assert!(newer(clock.start(&tuple, t0 + Duration::from_millis(2)), last));
        // After TIME-WAIT the bucket is forgotten.
        let after = t0 + Duration::from_secs(62);
        assert_eq!(
            clock.start(&tuple, after),
            first.wrapping_add(IsnClock::clock(after).wrapping_sub(IsnClock::clock(t0)))
        );
    }

    #[test]
    fn differs_between_tuples_and_seeds() {
        let t = Instant::from_secs(1);
        let a = IsnClock::new(1);
        let b = IsnClock::new(2);
        assert_ne!(a.start(&(1, 2), t), a.start(&(1, 3), t));
        assert_ne!(a.start(&(1, 2), t), b.start(&(1, 2), t));
    }
}
