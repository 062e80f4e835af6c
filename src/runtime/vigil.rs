//! Whether the data plane waits awake for the next frame, instead of going to sleep.
//!
//! A frame that answers another comes a few microseconds after it. To be woken for it costs about as much as all that is done with
//! it: so whoever asks and answers in small pieces (a database, a cache, a terminal) waits for our wake-ups most of the time. Where that is what
//! goes on, the thread looks again and again for up to [`PATIENCE`] before it sleeps.
//!
//! ```text
//! turns that moved a little, LONE of them in a row ──► awake after each ── nothing came within PATIENCE ──► as at the beginning
//!                                                       └── a turn that moved much, or for many ─────────► as at the beginning
//! ```
//!
//! Bulk traffic does not get here, and frames that come now and then cost one patience for every [`LONE`] of them: by calculation 0.5 % of
//! a CPU at a thousand a second. What it gives, and what it costs, is in docs/benchmarks.md. Sans-I/O: the engine says what a turn was like.

use std::time::Duration;

/// How long is waited awake. A whole round trip takes 36 to 38 µs on our machine then (docs/benchmarks.md), and what we wait for is
/// a part of it.
pub const PATIENCE: Duration = Duration::from_micros(40);
/// After how many turns in a row.
const LONE: u8 = 8;
/// Bytes that such a turn moves at most, and events that it serves: a question and its answer.
const SMALL: u64 = 8192;
const FEW: usize = 2;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vigil {
    lone: u8,
}

impl Vigil {
    /// A turn is over that served so many events and moved so many bytes over TAPs.
    pub fn handle_turn(&mut self, events: usize, moved: u64) {
        match moved {
            // Not about frames: a timer, an order. Or no event: what was waited for came by the clock (`moderation`).
            0 => {}
            _ if events == 0 => {}
            1..=SMALL if events <= FEW => self.lone = self.lone.saturating_add(1),
            _ => self.lone = 0,
        }
    }

    /// Nothing came while it was awake.
    pub fn handle_missed(&mut self) {
        self.lone = 0;
    }

    /// Whether to stay awake now.
    pub fn is_due(&self) -> bool {
        self.lone >= LONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(turns: &[(usize, u64)]) -> Vigil {
        let mut vigil = Vigil::default();
        for &(events, moved) in turns {
            vigil.handle_turn(events, moved);
        }
        vigil
    }

    #[test]
    fn a_conversation_is_waited_for() {
        assert!(!after(&[(1, 67); 7]).is_due());
        let mut vigil = after(&[(1, 67); 8]);
        assert!(vigil.is_due());
        // Timers and orders do not matter.
        vigil.handle_turn(1, 0);
        assert!(vigil.is_due());
        for _ in 0..1000 {
            vigil.handle_turn(2, 134);
        }
        assert!(vigil.is_due());
        vigil.handle_missed();
        assert_eq!(vigil, Vigil::default());
    }

    #[test]
    fn bulk_and_crowds_are_not() {
        for turn in [(1, 65_535), (3, 67), (64, 4288)] {
            assert!(!after(&[&[(1, 67); 100], &[turn][..]].concat()).is_due(), "{turn:?}");
            assert!(!after(&[turn; 100]).is_due(), "{turn:?}");
        }
        // One of eight is much.
        let mixed: Vec<(usize, u64)> = (0..100).map(|n| (1, if n % 8 == 7 { 9000 } else { 67 })).collect();
        assert!((0..100).all(|n| !after(&mixed[..n]).is_due()));
    }
}
