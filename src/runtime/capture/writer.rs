//! The thread that writes one capture: chunks of finished blocks in, bytes to the descriptor out.
//!
//! ```text
//! header ─► chunk ─► chunk ─► … ─► the data plane has let go ─► statistics ─► closed        Stopped, or Limit
//!   └─────────┴───── write error ─────────────────────────────────────────► closed        Failed
//!             └───── told to give up while nobody reads ───────────────────► closed        Stopped
//! ```
//!
//! A descriptor that epoll does not take (a regular file) is written a chunk at a time; it blocks only as long as its file
//! system does. Its position is moved when a chunk, which is whole blocks, is there ([`Outlet::commit`]). Any other (a pipe, a socket, a terminal) is waited for and then given at most [`PAGE`] bytes, which a pipe
//! with room takes without blocking; so a reader that stalls is noticed here, where giving up is possible, and the
//! descriptor's flags, which are shared with whoever passed it, stay as they are.
//!
//! SIGPIPE and SIGXFSZ are blocked here: a reader that left and a file size limit are errors of a write, no death of the
//! process. The kernel sends both to the thread that writes.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::uio::pwrite;
use nix::unistd::{Whence, ftruncate, lseek};
use tokio::sync::{oneshot, watch};

use super::ring::Draining;
use super::{End, Shared, Ticket};
use crate::link::pcap;

/// Bytes that a pipe takes without blocking once epoll calls it writable: PIPE_BUF, a page (pipe(7)).
const PAGE: usize = 4096;
/// How often a writer that waits for its reader looks whether it should give up, milliseconds.
const LOOK: u16 = 50;

/// Everything the thread needs.
pub struct Writer {
    /// The file.
    pub fd: OwnedFd,
    /// A process that died has written to it: what lies behind its position is half a block.
    pub resumed: bool,
    /// What starts it.
    pub header: Vec<u8>,
    /// What follows.
    pub chunks: Draining,
    /// Counters and the end.
    pub shared: std::sync::Arc<Shared>,
    /// Told whether the file could be started.
    pub started: Option<oneshot::Sender<io::Result<()>>>,
    /// Dropped when all is over.
    pub ended: watch::Sender<()>,
    /// Count the thread.
    pub tickets: Vec<Ticket>,
}

/// Why writing ended early.
enum Stop {
    /// Told to.
    GiveUp,
    /// The descriptor does not take it.
    Error(io::Error),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Error(errno.into())
    }
}

impl Writer {
    /// The thread's body.
    pub fn run(mut self) {
        let signals: SigSet = [Signal::SIGPIPE, Signal::SIGXFSZ].into_iter().collect();
        // Refused never; if it were, the process would end with its reader.
        let _ = signals.thread_block();
        let end = match self.write() {
            Err(Stop::Error(error)) => {
                if let Some(started) = self.started.take() {
                    let copy = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
                    if started.send(Err(copy)).is_err() {
                        tracing::warn!("cannot start the capture: {error}");
                    }
                } else {
                    tracing::warn!("the capture ends here: {error}");
                }
                End::Failed(error.to_string())
            }
            _ if self.shared.limited.load(Ordering::Acquire) => End::Limit,
            _ => End::Stopped,
        };
        let Self { fd, chunks, shared, ended, tickets, .. } = self;
        // In this order: whoever sees the end finds the file closed and all counted.
        drop(chunks);
        drop(fd);
        let _ = shared.end.set(end);
        drop(tickets);
        drop(ended);
    }

    fn write(&mut self) -> Result<(), Stop> {
        let mut out = Outlet::new(&self.fd, &self.shared.give_up)?;
        if self.resumed {
            out.cut()?;
        }
        let mut bytes = std::mem::take(&mut self.header);
        out.write(&bytes, &self.shared).map_err(|(_, stop)| stop)?;
        out.commit()?;
        if let Some(started) = self.started.take() {
            let _ = started.send(Ok(()));
        }
        while let Some(chunk) = self.chunks.next() {
            let (length, result) = match out.write(&chunk.bytes, &self.shared) {
                Ok(()) => (chunk.bytes.len(), Ok(())),
                Err((written, stop)) => (written, Err(stop)),
            };
            self.shared.packets.fetch_add(pcap::whole_packets(&chunk.bytes, length), Ordering::Release);
            result?;
            out.commit()?;
            self.chunks.done(chunk);
        }
        // The data plane has let go: its counters stand.
        let (seen, kept) = (self.shared.seen.load(Ordering::Acquire), self.shared.packets.load(Ordering::Acquire));
        bytes.clear();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        pcap::statistics(&mut bytes, now, seen, seen.saturating_sub(kept));
        out.write(&bytes, &self.shared).map_err(|(_, stop)| stop)?;
        out.commit()
    }
}

/// A descriptor, and how to wait for it.
struct Outlet<'a> {
    fd: &'a OwnedFd,
    /// None: a file that is always ready.
    epoll: Option<Epoll>,
    /// Where the next byte goes, in a file that has positions and does not append.
    at: Option<i64>,
    give_up: &'a AtomicBool,
}

impl<'a> Outlet<'a> {
    fn new(fd: &'a OwnedFd, give_up: &'a AtomicBool) -> Result<Self, Stop> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let epoll = match epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLOUT, 0)) {
            Ok(()) => Some(epoll),
            Err(Errno::EPERM) => None,
            Err(errno) => return Err(errno.into()),
        };
        let appends = fcntl(fd, FcntlArg::F_GETFL).is_ok_and(|flags| flags & OFlag::O_APPEND.bits() != 0);
        let at = if epoll.is_some() || appends { None } else { lseek(fd, 0, Whence::SeekCur).ok() };
        Ok(Self { fd, epoll, at, give_up })
    }

    /// Cuts off what lies behind the position.
    fn cut(&self) -> Result<(), Stop> {
        match self.at {
            // A device has no length.
            Some(at) => match ftruncate(self.fd, at) {
                Err(Errno::EINVAL) | Ok(()) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
            None => Ok(()),
        }
    }

    /// What was written so far is whole.
    fn commit(&self) -> Result<(), Stop> {
        if let Some(at) = self.at {
            lseek(self.fd, at, Whence::SeekSet)?;
        }
        Ok(())
    }

    /// Writes all of it, or says how much was written.
    fn write(&mut self, bytes: &[u8], shared: &Shared) -> Result<(), (usize, Stop)> {
        let mut written = 0;
        while written < bytes.len() {
            let mut rest = &bytes[written..];
            if let Some(epoll) = &self.epoll {
                match self.wait(epoll) {
                    Ok(()) => rest = &rest[..rest.len().min(PAGE)],
                    Err(stop) => return Err((written, stop)),
                }
            }
            let wrote = match self.at {
                Some(at) => pwrite(self.fd, rest, at),
                None => nix::unistd::write(self.fd, rest),
            };
            match wrote {
                Ok(0) => return Err((written, Stop::Error(io::ErrorKind::WriteZero.into()))),
                Ok(n) => {
                    written += n;
                    self.at = self.at.map(|at| at + n as i64);
                    shared.bytes.fetch_add(n as u64, Ordering::Relaxed);
                }
                Err(Errno::EINTR) => {}
                // Somebody made it non-blocking and writes to it too.
                Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(errno) => return Err((written, errno.into())),
            }
        }
        Ok(())
    }

    fn wait(&self, epoll: &Epoll) -> Result<(), Stop> {
        loop {
            if self.give_up.load(Ordering::Acquire) {
                return Err(Stop::GiveUp);
            }
            match epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(LOOK)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
