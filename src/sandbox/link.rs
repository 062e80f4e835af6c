//! The monitor's end of the attach connection: what is to be said waits here, so that a network process that does not
//! listen holds up nothing.
//!
//! Messages leave in order. One with ports is followed by no other until the network process has acknowledged it: so no more
//! than one batch of descriptors is ever on its way (see `api::attach`).

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

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
