//! Whose doing it was that the process of a shared network died, and who is put aside for it.
//!
//! ```text
//! RUNTIME/networks/ID12/serving    whose turn it is in each lane: numbers that the process writes through a mapping, 0 between turns
//! RUNTIME/networks/ID12/deaths     what came of it (JSON), kept by whoever starts the next process
//! ```
//!
//! The data plane notes once a turn whose frames, sockets or timers it is about to serve (`runtime::engine`), and that outlives it: the page is the
//! file's. Whoever starts a successor reads it, under the lock of `sandbox::shared`. Who had the turn at [`MAX_BLAMES`] deaths within
//! [`BLAME_WITHIN`] is put aside: the process refuses that sandbox as long as the file is there, its monitor takes it off the network,
//! and the deaths that are somebody's count for no other (`sandbox::uplink`).
//!
//! What this is not: proof. Who is busy enough to have the turn whenever somebody kills the process from outside (or the kernel does, out of memory)
//! looks the same. What the control thread dies of (DNS) is nobody's. A thread that panics says at whose turn (`runtime::scene`), so that it does
//! not matter who has the turn in other lanes meanwhile; of any other death at which two sandboxes had it, it is not known whose doing it was.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::locked;
use super::state;
use crate::network::config::{self, Turns};
use crate::sys;

/// A sandbox at whose turn the process died this often…
pub const MAX_BLAMES: usize = 3;
/// … within this time is put aside.
pub const BLAME_WITHIN: Duration = Duration::from_mins(1);
/// Most sandboxes that are remembered as put aside; the oldest is forgotten first.
const MAX_ASIDE: usize = 1024;

/// One death.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// At whose turn: the sandbox's id.
    pub sandbox: String,
    /// When it was found out, in milliseconds since 1970.
    pub at: u64,
}

/// What is known of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Deaths {
    /// The last ones.
    pub deaths: Vec<Death>,
    /// Who is put aside, and since when.
    pub aside: Vec<Death>,
}

impl Deaths {
    /// Of the network whose directory this is. Nothing can be read: nothing is known.
    pub fn read(dir: &Path) -> Self {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(dir.join("deaths"));
        file.ok().and_then(|mut file| locked::parse(&mut file)).unwrap_or_default()
    }

    /// One more; true if its sandbox is put aside for it.
    fn add(&mut self, sandbox: String, at: u64) -> bool {
        self.deaths.retain(|death| is_within(death, at, BLAME_WITHIN));
        self.deaths.push(Death { sandbox, at });
        let last = &self.deaths[self.deaths.len() - 1];
        let often = self.deaths.iter().filter(|death| death.sandbox == last.sandbox).count() >= MAX_BLAMES;
        if often && !self.aside.iter().any(|aside| aside.sandbox == last.sandbox) {
            self.aside.push(last.clone());
            let surplus = self.aside.len().saturating_sub(MAX_ASIDE);
            self.aside.drain(..surplus);
        }
        often
    }

    /// How many there were lately that are somebody's.
    pub fn lately(&self, within: Duration) -> usize {
        let now = state::now();
        self.deaths.iter().filter(|death| is_within(death, now, within)).count()
    }
}

/// Not where the clock was set back since.
fn is_within(death: &Death, now: u64, within: Duration) -> bool {
    now.checked_sub(death.at).is_some_and(|age| u128::from(age) <= within.as_millis())
}

fn open(dir: &Path, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(dir.join(name))
}

/// Where the process notes whose turn it is.
pub fn serving(dir: &Path) -> io::Result<&'static Turns> {
    let file = open(dir, "serving")?;
    file.set_len(size_of::<Turns>() as u64)?;
    sys::memory::shared_words(Some(&file))
}

/// Takes down at whose turn the last process died, if it did so at anybody's. Called by who is about to start another, with the lock.
pub fn account(dir: &Path) -> io::Result<()> {
    let file = open(dir, "serving")?;
    let mut words = [0; size_of::<Turns>()];
    if file.read_exact_at(&mut words, 0).is_err() {
        return Ok(());
    }
    let mut turns = [0; config::CULPRIT + 1];
    for (turn, word) in turns.iter_mut().zip(words.as_chunks::<8>().0) {
        *turn = u64::from_ne_bytes(*word);
    }
    let Some(sandbox) = config::at_turn(&turns).and_then(config::sandbox_of) else {
        return file.write_all_at(&[0; size_of::<Turns>()], 0);
    };
    file.write_all_at(&[0; size_of::<Turns>()], 0)?;
    let mut known = Deaths::read(dir);
    if known.add(sandbox.clone(), state::now()) {
        tracing::warn!(
            "the network's process died {MAX_BLAMES} times while it served sandbox {sandbox}, which is put aside"
        );
    }
    write(dir, &known)
}

/// Takes down that the process is ended on purpose, which is held against nobody. Called with the lock.
pub fn pardon(dir: &Path) -> io::Result<()> {
    let mut known = Deaths::read(dir);
    known.deaths.push(Death { sandbox: String::new(), at: state::now() });
    write(dir, &known)
}

fn write(dir: &Path, known: &Deaths) -> io::Result<()> {
    // Whole under its name, or not at all.
    let (new, path) = (dir.join("deaths.new"), dir.join("deaths"));
    std::fs::write(&new, serde_json::to_vec(known)?).and_then(|()| std::fs::rename(new, path))
}

/// Why a sandbox that is put aside is refused.
pub fn refusal(network: &str) -> String {
    format!(
        "the process of network {network} died {MAX_BLAMES} times while it served this sandbox, which is put aside; \
         run it anew to have it back"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn three_deaths_of_one_put_it_aside() {
        let mut known = Deaths::default();
        let add = |known: &mut Deaths, who: &str, second: u64| known.add(who.to_owned(), second * 1000);
        assert!(!add(&mut known, "a", 0) && !add(&mut known, "b", 1) && !add(&mut known, "a", 2));
        assert!(!add(&mut known, "b", 3));
        assert!(add(&mut known, "a", 4));
        assert_eq!(known.aside.iter().map(|aside| aside.sandbox.as_str()).collect::<Vec<_>>(), ["a"]);
        // Those of long ago are forgotten, who is put aside is not.
        assert!(!add(&mut known, "b", 62) && !add(&mut known, "b", 124) && !add(&mut known, "b", 130));
        assert_eq!((known.deaths.len(), known.aside.len()), (2, 1));
        // The clock is set back: what is of a time to come is no longer counted.
        assert!(!add(&mut known, "b", 10) && !add(&mut known, "b", 11));
        assert_eq!(known.deaths.len(), 2);
    }

    #[test]
    fn who_had_the_turn_outlives_the_process() {
        let dir = std::env::temp_dir().join(format!("tapway-blame-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let [word, other, ..] = serving(&dir).unwrap();
        account(&dir).unwrap();
        assert_eq!(Deaths::read(&dir), Deaths::default(), "nobody had it");
        for _ in 0..3 {
            word.store(config::mark("00c0ffee0123"), std::sync::atomic::Ordering::Relaxed);
            account(&dir).unwrap();
            assert_eq!(word.load(std::sync::atomic::Ordering::Relaxed), 0);
        }
        // Two at once, in two lanes: it may have been either.
        word.store(config::mark("00c0ffee0123"), std::sync::atomic::Ordering::Relaxed);
        other.store(config::mark("00c0ffee0124"), std::sync::atomic::Ordering::Relaxed);
        account(&dir).unwrap();
        assert_eq!(other.load(std::sync::atomic::Ordering::Relaxed), 0);
        let known = Deaths::read(&dir);
        assert_eq!((known.lately(BLAME_WITHIN), known.aside[0].sandbox.as_str()), (3, "00c0ffee0123"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
