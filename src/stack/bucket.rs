//! A token bucket: how much of something may happen in a second, and how much at once after a rest.

use smoltcp::time::Instant;

/// What a bucket gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: u32,
    /// Tokens that gather in rest.
    pub burst: u32,
}

/// Parts of a token: with one second in microseconds, no rounding is needed.
const PARTS: u64 = 1_000_000;

/// One bucket. It begins full.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: Rate,
    parts: u64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate) -> Self {
        Self { rate, parts: u64::from(rate.burst) * PARTS, filled: Instant::ZERO }
    }

    /// Takes `tokens` if they are all there.
    pub fn take(&mut self, now: Instant, tokens: u32) -> bool {
        if now > self.filled {
            let micros = (now - self.filled).total_micros();
            let gained = micros.saturating_mul(self.rate.per_second.into());
            self.parts = self.parts.saturating_add(gained).min(u64::from(self.rate.burst) * PARTS);
            self.filled = now;
        }
        let wanted = u64::from(tokens) * PARTS;
        let enough = self.parts >= wanted;
        if enough {
            self.parts -= wanted;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut bucket = Bucket::new(Rate { per_second: 1000, burst: 50 });
        let at = |millis| Instant::from_secs(5) + smoltcp::time::Duration::from_millis(millis);
        let mut take = |millis, n: u32| (0..n).filter(|_| bucket.take(at(millis), 1)).count();
        assert_eq!(take(0, 1000), 50);
        assert_eq!(take(10, 1000), 10, "ten milliseconds of a thousand a second");
        assert_eq!(take(10, 1), 0);
        assert_eq!(take(9, 1), 0, "a clock that stands still gives nothing");
        assert_eq!(take(100_000, 1000), 50, "no more than the burst, however long the rest");
        assert!(!bucket.take(at(100_010), 11) && bucket.take(at(100_010), 10), "all or nothing");
    }
}
