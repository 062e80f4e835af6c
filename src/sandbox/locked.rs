//! Files that somebody holds by a lock (flock) and others read.
//!
//! The lock, not the file, is the truth: a file that can be locked belongs to a process that is dead, stopped ones keep
//! theirs. A holder rewrites its file in place, since a file that is renamed over would be another one, without the lock;
//! so a reader may for a moment find a mixture, which is no JSON, and looks again.
//!
//! A lock lives as long as any duplicate of its descriptor: a process that is forked off and lives on must close its copy.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest file read, in bytes: 32 768 listeners of some 100 each, and slack.
const MAX_FILE: u64 = 8 << 20;
/// How often a file that is being written anew is looked at again, and how soon.
const RETRIES: (u32, Duration) = (20, Duration::from_millis(1));
/// How soon a lock that is held is tried again.
const PAUSE: Duration = Duration::from_millis(2);

/// What stands at a path.
#[derive(Debug)]
pub enum Found<T> {
    /// Nothing, or nothing of ours.
    Nothing,
    /// The file of a process that is dead.
    Dead,
    /// The file of one that lives; without contents if they are no such value.
    Held(Option<T>),
}

/// Looks at the file at `path` without keeping it from anybody for longer than that.
pub fn look<T: DeserializeOwned>(path: &Path) -> Found<T> {
    let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) else {
        return Found::Nothing;
    };
    // Shared: whoever else is looking does not seem to be a holder.
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(lock) if is_at(&lock, path) => Found::Dead,
        Ok(_) => Found::Nothing,
        Err((mut file, _)) => Found::Held(read_held(&mut file)),
    }
}

/// Reads a file whose holder may be writing it.
pub fn read_held<T: DeserializeOwned>(file: &mut File) -> Option<T> {
    for attempt in 0..RETRIES.0 {
        if attempt > 0 {
            std::thread::sleep(RETRIES.1);
        }
        if let Some(value) = parse(file) {
            return Some(value);
        }
    }
    None
}

/// Reads a file once.
pub fn parse<T: DeserializeOwned>(file: &mut File) -> Option<T> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(MAX_FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Writes a held file anew, in one write; a text that is shorter is filled up with blanks.
pub fn rewrite<T: Serialize>(file: &File, value: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    let len = file.metadata()?.len();
    text.resize(text.len().max(usize::try_from(len).unwrap_or(0)), b' ');
    file.write_all_at(&text, 0)
}

/// True if the open file is the one at `path`.
pub fn is_at(file: &File, path: &Path) -> bool {
    let open = nix::sys::stat::fstat(file.as_fd());
    let named = std::fs::symlink_metadata(path);
    matches!((open, named), (Ok(open), Ok(named)) if open.st_ino == named.ino() && open.st_dev == named.dev())
}

/// Takes the lock file at `path`, made if need be. TimedOut if somebody else has it for longer than `patience`.
pub fn wait(path: &Path, patience: Duration) -> io::Result<Flock<File>> {
    let deadline = Instant::now() + patience;
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        match Flock::lock(options.open(path)?, FlockArg::LockExclusiveNonblock) {
            // Somebody may have removed it between our open and our lock: then this lock keeps nobody out.
            Ok(lock) if is_at(&lock, path) => return Ok(lock),
            Ok(_) => {}
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err((_, Errno::EWOULDBLOCK)) => return Err(io::ErrorKind::TimedOut.into()),
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}
