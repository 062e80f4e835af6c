//! Questions that fail on purpose: which, by a share and a seed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::network::fault::{Draws, Share};

/// Tells this chance from that of frames, which has the same seed.
const STREAM: u64 = 2;

/// See the module. Where none are to fail, asking costs one atomic load.
#[derive(Debug)]
pub(super) struct Failing {
    any: AtomicBool,
    chance: Mutex<Chance>,
}

#[derive(Debug)]
struct Chance {
    share: Share,
    /// The seed, and how often it was given.
    begun: (u64, u32),
    draws: Draws,
}

impl Default for Failing {
    fn default() -> Self {
        let chance = Chance { share: Share::default(), begun: (0, 0), draws: Draws::new(0, STREAM) };
        Self { any: AtomicBool::new(false), chance: Mutex::new(chance) }
    }
}

impl Failing {
    /// This share fails from now on. Chance begins anew where `begun` is another than before.
    pub fn set(&self, share: Share, begun: (u64, u32)) {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        chance.share = share;
        if chance.begun != begun {
            chance.begun = begun;
            chance.draws = Draws::new(begun.0, STREAM);
        }
        self.any.store(share != Share::default(), Ordering::Relaxed);
    }

    /// Whether the next question fails.
    pub fn draw(&self) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        let share = chance.share;
        chance.draws.hits(share)
    }
}
