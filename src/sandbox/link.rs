//! The monitor's end of the attach connection: what is to be said waits here, so that a network process that does not
//! listen holds up nothing.
//!
//! Messages leave in order. One with ports is followed by no other until the network process has acknowledged it: so no more
//! than one batch of descriptors is ever on its way (see `api::attach`).

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use crate::api::attach::{self, AttachError, FromNetwork, ToNetwork};

#[derive(Debug)]
struct Outgoing {
    text: Vec<u8>,
    fds: Vec<Rc<OwnedFd>>,
    acknowledged: bool,
}

/// The connection.
#[derive(Debug)]
pub struct Link {
    conn: OwnedFd,
    queue: VecDeque<Outgoing>,
    /// A batch of ports is on its way.
    waiting: bool,
}

impl Link {
    /// Over our end of the socket pair, which becomes non-blocking.
    pub fn new(conn: OwnedFd) -> nix::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&conn, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { conn, queue: VecDeque::new(), waiting: false })
    }

    /// For poll(2).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.conn.as_fd()
    }

    /// Says `message` when its turn comes.
    pub fn push(&mut self, message: &ToNetwork, fds: Vec<Rc<OwnedFd>>) -> Result<(), AttachError> {
        let text = attach::text(message)?;
        let acknowledged = matches!(message, ToNetwork::Listen { .. });
        self.queue.push_back(Outgoing { text, fds, acknowledged });
        self.flush()
    }

    /// Messages that wait.
    pub fn backlog(&self) -> usize {
        self.queue.len()
    }

    /// True if there is something to be sent as soon as the connection takes it.
    pub fn wants_output(&self) -> bool {
        !self.waiting && !self.queue.is_empty()
    }

    /// Sends what can be sent. A connection that is closed is noticed where it is read, with the reason.
    pub fn flush(&mut self) -> Result<(), AttachError> {
        while !self.waiting
            && let Some(next) = self.queue.front()
        {
            let raw: Vec<RawFd> = next.fds.iter().map(AsRawFd::as_raw_fd).collect();
            match attach::send_text(&self.conn, &next.text, &raw) {
                Ok(()) => {}
                Err(AttachError::Socket { source: nix::Error::EAGAIN, .. }) => return Ok(()),
                Err(AttachError::Closed) => {
                    self.queue.clear();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            self.waiting = next.acknowledged;
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Says that nothing more will be said: the network process lets go of everything, then closes the connection.
    pub fn say_goodbye(&mut self) {
        // What was not sent yet is of no interest any more.
        self.queue.clear();
        // It may be closed already, as is noticed where it is read.
        let _ = shutdown(self.conn.as_raw_fd(), Shutdown::Write);
    }

    /// Says that nothing more will be said, and waits until the network process has let go of everything. False if it did
    /// not within `limit`.
    pub fn leave(mut self, limit: Duration) -> bool {
        // What was not sent yet is of no interest any more.
        if shutdown(self.conn.as_raw_fd(), Shutdown::Write).is_err() {
            return true;
        }
        let end = Instant::now() + limit;
        loop {
            match self.hear() {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(_) => return true,
            }
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.conn.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                Ok(0) => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }

    /// What the network process says; None if there is nothing more.
    pub fn hear(&mut self) -> Result<Option<FromNetwork>, AttachError> {
        match attach::recv::<FromNetwork>(&self.conn) {
            Ok((message, _)) => {
                if matches!(message, FromNetwork::Listened { .. }) {
                    self.waiting = false;
                }
                Ok(Some(message))
            }
            Err(AttachError::Socket { source: nix::Error::EAGAIN, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
