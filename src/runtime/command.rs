//! What the control plane asks of the data plane, and the handle it asks by.
//!
//! Commands go over a bounded channel with the eventfd that wakes the data plane; each carries its own way back. The data
//! plane does one in microseconds and never waits, so whoever asks may wait for the answer. A full channel makes the
//! asker wait, never the data plane.
//!
//! Published ports go by number. Numbers are given here, upwards from those of the ports told at attach, and never given
//! again: a late event or a kept datagram of a port that is gone finds nothing, instead of its successor.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::eventfd::EventFd;
use tokio::sync::{mpsc, oneshot};

use super::capture::{Capture, Captures};
use crate::network::config::Listener;

/// Commands that may wait.
const QUEUE: usize = 64;

/// One command.
#[derive(Debug)]
pub enum Command {
    /// Serve one more published port.
    Listen {
        /// Its number.
        number: usize,
        /// What it is.
        listener: Listener,
        /// Its socket.
        fd: OwnedFd,
        /// Whether it is served now.
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Close a published port's socket. Established TCP flows go on; UDP clients are forgotten.
    Unlisten {
        /// Its number.
        number: usize,
        /// Said when the socket is closed: whether there was one.
        done: oneshot::Sender<bool>,
    },
    /// Copy frames to one more capture.
    StartCapture {
        /// It.
        capture: Box<Capture>,
        /// Said when the next frame will be seen by it.
        done: oneshot::Sender<()>,
    },
    /// Let go of a capture.
    StopCapture {
        /// Its number.
        id: u32,
        /// Whether it was there; one that ended by itself is not.
        done: oneshot::Sender<bool>,
    },
}

/// The control plane's handle on the data plane; clones are the same handle.
#[derive(Clone, Debug)]
pub struct DataPlane(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    next_listener: AtomicUsize,
    captures: Captures,
}

impl DataPlane {
    /// `listeners`: how many ports, numbered from 0, the data plane has been told of already. Also returns the data
    /// plane's end.
    pub fn new(wake: Arc<EventFd>, listeners: usize) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(QUEUE);
        let next_listener = AtomicUsize::new(listeners);
        (Self(Arc::new(Handle { commands, wake, next_listener, captures: Captures::default() })), receiver)
    }

    /// Has one more port served; returns its number.
    pub async fn listen(&self, listener: Listener, fd: OwnedFd) -> io::Result<usize> {
        let number = self.0.next_listener.fetch_add(1, Ordering::Relaxed);
        self.ask(|done| Command::Listen { number, listener, fd, done }).await??;
        Ok(number)
    }

    /// Has a port closed; returns whether it was there.
    pub async fn unlisten(&self, number: usize) -> io::Result<bool> {
        self.ask(|done| Command::Unlisten { number, done }).await
    }

    /// Captures that are begun and ended on request: each method takes this handle.
    pub fn captures(&self) -> &Captures {
        &self.0.captures
    }

    pub(super) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> io::Result<T> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the data plane has ended");
        let (done, answer) = oneshot::channel();
        self.0.commands.send(command(done)).await.map_err(|_| gone())?;
        // The counter cannot overflow: it is read whenever it is not zero.
        let _ = self.0.wake.write(1);
        answer.await.map_err(|_| gone())
    }
}
