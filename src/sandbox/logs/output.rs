//! The monitor's part: what comes by the pipes, cut into records and handed to the keeper. Nothing here blocks.
//!
//! Three streams are read: the command's two, and the log of tapway itself (the standard error of the monitor, of the
//! network process and of the first process). Until the sandbox is up, that log is the caller's to see; then it goes into
//! the file like the rest, and the caller is told.
//!
//! What the keeper does not take yet waits, up to [`PENDING`] bytes; beyond that lines are dropped, counted, and told of
//! when there is room again. A keeper that dies is replaced, at most once in [`REST`].

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::unistd::{dup2_stderr, pipe2, read, write};

use super::keeper;
use super::record::{self, MAX_TEXT, Stream};
use super::store::{Kept, Store};
use crate::sandbox::child::Child;
use crate::sandbox::state;
use crate::telemetry::time;

/// Bytes of records that wait for the keeper, beside what is in its pipe: a burst that fills a log file is not lost because the
/// keeper has had no time yet.
pub const PENDING: usize = 8 << 20;
/// Bytes read of one stream in a turn.
const READ: usize = 64 * 1024;
/// Size asked for the keeper's pipe; an ordinary user gets it (/proc/sys/fs/pipe-max-size).
const PIPE: i32 = 1 << 20;
/// How long a keeper that died is not replaced.
const REST: Duration = Duration::from_secs(1);
/// How long the keeper may take to write the last records.
const LEAVE_TIME: Duration = Duration::from_secs(2);

/// Why there can be no logs.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory or a file in it.
    #[error("cannot keep logs in {dir}; make room there, or set XDG_STATE_HOME")]
    Store {
        /// Where.
        dir: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A system call.
    #[error("cannot {what} for the logs")]
    Call {
        /// Which.
        what: &'static str,
        /// Errno.
        #[source]
        source: nix::Error,
    },
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> LogError {
    move |source| LogError::Call { what, source }
}

/// A stream that is read.
#[derive(Debug)]
struct Source {
    stream: Stream,
    fd: Option<OwnedFd>,
    line: Vec<u8>,
}

/// What a caller waits for.
#[derive(Debug)]
struct Caller {
    stderr: OwnedFd,
    /// The id is written when the sandbox is up.
    ready: OwnedFd,
}

/// See the module.
#[derive(Debug)]
pub struct Output {
    store: Store,
    kept: Kept,
    /// Files go with the sandbox.
    remove: bool,
    sources: [Source; 3],
    /// Until the sandbox is up.
    caller: Option<Caller>,
    pipe: OwnedFd,
    keeper: Child,
    started: Instant,
    pending: Pending,
    lost_lines: u64,
    lost_bytes: u64,
}

/// Nobody waits for the sandbox any more.
#[derive(Debug, thiserror::Error)]
#[error("whoever asked for the sandbox has gone")]
pub struct Abandoned;

impl Output {
    /// Begins the logs of `kept`, and makes the standard error of this process one of its streams; `ready` is told when
    /// the sandbox is up. Also returns the command's standard output and error.
    pub fn begin(store: Store, kept: Kept, remove: bool, ready: OwnedFd) -> Result<(Self, OwnedFd, OwnedFd), LogError> {
        let refused = |source| LogError::Store { dir: store.dir().to_owned(), source };
        store.begin(&kept).map_err(refused)?;
        let result = Self::open(store.clone(), kept.clone(), remove, ready);
        if result.is_err() {
            store.remove(&kept.sandbox.id);
        }
        result
    }

    fn open(store: Store, kept: Kept, remove: bool, ready: OwnedFd) -> Result<(Self, OwnedFd, OwnedFd), LogError> {
        let pair = || pipe2(OFlag::O_CLOEXEC).map_err(call("make a pipe"));
        let non_blocking =
            |fd: &OwnedFd| fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(call("set up a pipe"));
        let ((stdout, to_stdout), (stderr, to_stderr), (own, to_own)) = (pair()?, pair()?, pair()?);
        // Our own log must not wait for ourselves (`telemetry` drops what is refused); the command's output may.
        for fd in [&stdout, &stderr, &own, &to_own] {
            non_blocking(fd)?;
        }
        let (pipe, keeper) = start_keeper(&store, &kept.sandbox.id)?;
        let caller = std::io::stderr().as_fd().try_clone_to_owned();
        let caller =
            caller.map_err(|error| call("keep standard error")(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
        dup2_stderr(&to_own).map_err(call("redirect standard error"))?;
        let source = |stream, fd| Source { stream, fd: Some(fd), line: Vec::new() };
        let this = Self {
            store,
            kept,
            remove,
            sources: [source(Stream::Stdout, stdout), source(Stream::Stderr, stderr), source(Stream::Tapway, own)],
            caller: Some(Caller { stderr: caller, ready }),
            pipe,
            keeper,
            started: Instant::now(),
            pending: Pending::default(),
            lost_lines: 0,
            lost_bytes: 0,
        };
        Ok((this, to_stdout, to_stderr))
    }

    /// What to wait for: a number for [`Self::handle`].
    pub fn interests(&self) -> Vec<(usize, BorrowedFd<'_>, PollFlags)> {
        let sources = self.sources.iter().enumerate();
        let mut all: Vec<_> =
            sources.filter_map(|(at, source)| Some((at, source.fd.as_ref()?.as_fd(), PollFlags::POLLIN))).collect();
        if !self.pending.rest().is_empty() {
            all.push((self.sources.len(), self.pipe.as_fd(), PollFlags::POLLOUT));
        }
        all
    }

    /// Something is ready.
    pub fn handle(&mut self, what: usize) {
        if what < self.sources.len() {
            self.take(what);
        }
        self.flush();
    }

    /// Reads once; false if there is nothing.
    fn take(&mut self, what: usize) -> bool {
        let mut bytes = vec![0; READ];
        let Some(fd) = &self.sources[what].fd else { return false };
        let length = match read(fd, &mut bytes) {
            Err(Errno::EINTR) => return true,
            Err(Errno::EAGAIN) => return false,
            Ok(0) | Err(_) => {
                self.sources[what].fd = None;
                self.end_line(what);
                return false;
            }
            Ok(length) => length,
        };
        let bytes = &bytes[..length];
        if let (Stream::Tapway, Some(caller)) = (self.sources[what].stream, &self.caller) {
            // Nothing is lost here: the terminal or file of the caller takes it as it would without us.
            write_whole(&caller.stderr, bytes);
            return true;
        }
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, whole) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            self.sources[what].line.extend_from_slice(text);
            while self.sources[what].line.len() > MAX_TEXT {
                let text: Vec<u8> = self.sources[what].line.drain(..MAX_TEXT).collect();
                self.push(self.sources[what].stream, false, &text);
            }
            if whole {
                let line = std::mem::take(&mut self.sources[what].line);
                self.push(self.sources[what].stream, true, &line);
            }
        }
        true
    }

    /// Records what was printed without a newline.
    fn end_line(&mut self, what: usize) {
        let line = std::mem::take(&mut self.sources[what].line);
        if !line.is_empty() {
            self.push(self.sources[what].stream, false, &line);
        }
    }

    fn push(&mut self, stream: Stream, whole: bool, text: &[u8]) {
        if self.pending.rest().len() + text.len() > PENDING {
            self.flush();
        }
        if self.pending.rest().len() + text.len() > PENDING {
            self.lost_lines += u64::from(whole);
            self.lost_bytes += text.len() as u64;
            return;
        }
        let now = time::now();
        if std::mem::take(&mut self.lost_bytes) + self.lost_lines > 0 {
            let lines = std::mem::take(&mut self.lost_lines);
            let note = format!("tapway: {lines} lines of output are missing here: the disk did not keep up");
            record::write(&mut self.pending.bytes, now, Stream::Tapway, true, note.as_bytes());
        }
        record::write(&mut self.pending.bytes, now, stream, whole, text);
    }

    /// Hands on what the keeper takes.
    fn flush(&mut self) {
        while !self.pending.rest().is_empty() {
            match write(&self.pipe, self.pending.rest()) {
                Ok(length) => self.pending.sent(length),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE) if self.started.elapsed() > REST => {
                    self.started = Instant::now();
                    self.pending.skip_half_record();
                    match start_keeper(&self.store, &self.kept.sandbox.id) {
                        Ok((pipe, keeper)) => (self.pipe, self.keeper) = (pipe, keeper),
                        Err(_) => return,
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// The command runs: tells the caller, and is silent from then on.
    pub fn up(&mut self, about: &state::About) -> Result<(), Abandoned> {
        self.kept.sandbox.about = about.clone();
        // Without it the log is found by its name alone.
        let _ = self.store.describe(&self.kept);
        // What was said until now is the caller's.
        while self.take(self.sources.len() - 1) {}
        match self.caller.take() {
            Some(caller) => write(&caller.ready, self.kept.sandbox.id.as_bytes()).map(drop).map_err(|_| Abandoned),
            None => Ok(()),
        }
    }

    /// All is over: the rest is written. `code` is the exit code; `error` is why the sandbox, and not its command, ended.
    /// What is printed to standard error from here on goes to the caller, if the sandbox was never up, or nowhere.
    pub fn end(mut self, code: u8, error: Option<String>) {
        for what in 0..self.sources.len() {
            while self.take(what) {
                self.flush();
            }
            self.end_line(what);
        }
        let was_up = self.caller.is_none();
        if let Some(error) = error.filter(|_| was_up) {
            self.push(Stream::Tapway, true, format!("tapway: {error}").as_bytes());
        }
        let Self { store, mut kept, remove, caller, pipe, keeper, pending, .. } = self;
        // The keeper has time to write all of it.
        let end = Instant::now() + LEAVE_TIME;
        write_until(&pipe, pending.rest(), end);
        drop(pipe);
        keeper.leave(end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        if let Some(caller) = caller {
            let _ = dup2_stderr(&caller.stderr);
        } else if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            let _ = dup2_stderr(&null);
        }
        if remove || !was_up {
            store.remove(&kept.sandbox.id);
        } else {
            (kept.ended, kept.code) = (Some(state::now()), Some(code));
            let _ = store.describe(&kept);
        }
    }
}

/// Records on their way to the keeper.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// So many of them are sent.
    sent: usize,
}

impl Pending {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    fn sent(&mut self, length: usize) {
        self.sent += length;
        if self.sent == self.bytes.len() {
            // The memory of a burst goes with it.
            (self.bytes, self.sent) = (Vec::new(), 0);
        } else if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// What a keeper that died was in the middle of.
    fn skip_half_record(&mut self) {
        if self.sent > 0 && self.bytes[self.sent - 1] != b'\n' {
            let rest = self.rest();
            self.sent(rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |at| at + 1));
        }
    }
}

/// Writes everything, or as much as a caller's standard error takes.
fn write_whole(fd: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Writes what can be written until `end`.
fn write_until(pipe: &OwnedFd, mut bytes: &[u8], end: Instant) {
    use nix::poll::{PollFd, PollTimeout, poll};
    while !bytes.is_empty() {
        match write(pipe, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if Instant::now() < end => {
                let left = end.saturating_duration_since(Instant::now());
                let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
            }
            Err(_) => return,
        }
    }
}

fn start_keeper(store: &Store, id: &str) -> Result<(OwnedFd, Child), LogError> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).map_err(call("make a pipe"))?;
    // Where it is refused (the user has many pipes) there is less room.
    let _ = fcntl(&ours, FcntlArg::F_SETPIPE_SZ(PIPE));
    let keeper = keeper::start(&theirs, &store.log(id)).map_err(call("fork the keeper"))?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(call("set up a pipe"))?;
    Ok((ours, keeper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pending_goes_out_in_order() {
        let mut pending = Pending { bytes: b"one\ntwo\nthree\n".to_vec(), sent: 0 };
        pending.sent(2);
        assert_eq!(pending.rest(), b"e\ntwo\nthree\n");
        pending.skip_half_record();
        assert_eq!(pending.rest(), b"two\nthree\n");
        pending.skip_half_record();
        pending.sent(4);
        assert_eq!(pending.rest(), b"three\n");
        pending.sent(6);
        assert!(pending.rest().is_empty() && pending.bytes.capacity() == 0);
    }
}
