//! The control socket of a sandbox: who may speak there, and what they said.
//!
//! `RUNTIME_DIR/sandboxes/ID.sock`, of mode 0600, in a directory of 0700; a client must be of our uid (SO_PEERCRED), too.
//! The monitor serves it from its own poll(2) loop: [`Server::interests`] says what to wait for, [`Server::handle`] does
//! what is ready, [`Server::next_request`] hands out one request at a time, [`Server::reply`] takes the answer back. What
//! verbs mean is `sandbox::desk`'s business; what a connection may do, `api::session`'s.
//!
//! No call here blocks. At most [`MAX_CLIENTS`] are served, others wait in the listener's backlog; while all places are
//! taken a client whose request is not there loses its place after [`PATIENCE`]. A turn reads at most [`READ`] bytes of a client and
//! takes at most [`REQUESTS`] requests; requests held are bounded together by [`MEMORY`], beyond which long ones wait.
//!
//! A subscriber's connection is handed to the network process, which writes events to it by itself. It stays here, too,
//! to be handed to a successor, and so that its end is seen.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice, Read as _};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, send,
    sendmsg, socket, sockopt,
};
use nix::sys::stat::{Mode, umask};

use crate::api::session::{Dialect, Limits, Request, Session};
use crate::api::socket::receive;

/// Clients served at a time.
pub const MAX_CLIENTS: usize = 32;
/// How long a client keeps its place without a whole request while others may be waiting.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// Bytes read from one client in a turn.
const READ: usize = 16 * 1024;
/// Requests taken in a turn.
pub const REQUESTS: usize = 64;
/// Bytes of requests held for all clients together, beyond which only short ones are read on.
const MEMORY: usize = 1 << 20;
/// A short one.
const SHORT: usize = 8 * 1024;
/// Descriptors sent with one reply.
pub const MAX_OUTGOING: usize = 8;
/// Clients that wait to be served; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// How long nobody is accepted when descriptors run out.
const REST: Duration = Duration::from_millis(50);
/// Size of `sun_path` (unix(7)), the NUL at its end included.
const PATH_SIZE: usize = 108;

/// Names a client; never given twice.
pub type Key = u64;

/// The address of a socket at `path`, whatever its length: a path that does not fit is named by its open directory, which
/// must stay open until the address has been used.
pub fn address(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().len() < PATH_SIZE {
        return Ok((path.to_owned(), None));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let dir = open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name), Some(dir)))
}

/// Makes the listening socket, for this user alone. What is at `path` is a dead monitor's and goes.
pub fn listen_at(path: &Path) -> io::Result<UnixListener> {
    listen_as(path, SockType::Stream).map(UnixListener::from)
}

/// The same for a socket of any kind, non-blocking.
pub fn listen_as(path: &Path, kind: SockType) -> io::Result<OwnedFd> {
    let (name, _dir) = address(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // The mode is right from the first moment on. One thread, so nobody else makes a file meanwhile.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixAddr::new(&name).and_then(|name| bind(fd.as_raw_fd(), &name));
    umask(before);
    bound?;
    listen(&fd, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN))?;
    Ok(fd)
}

/// What an event of poll(2) is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Somebody wants to be served.
    Listener,
    /// A client.
    Client(Key),
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    session: Session,
    /// Descriptors that came with what is not answered yet.
    fds: Vec<OwnedFd>,
    /// Descriptors that go with the first byte of what is to be sent.
    outgoing: Vec<OwnedFd>,
    came: Duration,
    subscribed: bool,
    /// It will send no more.
    silent: bool,
    shut: bool,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    verbs: &'static [&'static str],
    limits: Limits,
    uid: u32,
    clients: BTreeMap<Key, Client>,
    next_key: Key,
    /// No descriptor was left for another client.
    rest_until: Option<Duration>,
    /// More requests may be there than a turn takes.
    more: bool,
}

impl Server {
    /// `verbs`: all that are answered, beside slirp4netns's and `hello`.
    pub fn new(listener: UnixListener, verbs: &'static [&'static str], limits: Limits) -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        let clients = BTreeMap::new();
        Self { listener, verbs, limits, uid, clients, next_key: 1, rest_until: None, more: false }
    }

    /// What to wait for.
    pub fn interests(&self) -> Vec<(Watched, BorrowedFd<'_>, PollFlags)> {
        let mut all = Vec::with_capacity(1 + self.clients.len());
        if self.clients.len() < MAX_CLIENTS && self.rest_until.is_none() {
            all.push((Watched::Listener, self.listener.as_fd(), PollFlags::POLLIN));
        }
        let full = self.clients.values().map(|client| client.session.memory()).sum::<usize>() > MEMORY;
        for (&key, client) in &self.clients {
            let mut flags = PollFlags::empty();
            if (client.subscribed && !client.silent)
                || (!client.subscribed && client.session.wants_input() && (!full || client.session.memory() < SHORT))
            {
                flags |= PollFlags::POLLIN;
            }
            if !client.session.output().is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            all.push((Watched::Client(key), client.stream.as_fd(), flags));
        }
        all
    }

    /// When to call [`Self::handle_timeout`].
    pub fn next_timeout(&self) -> Option<Duration> {
        if self.more {
            return Some(Duration::ZERO);
        }
        let sessions = self.clients.values().filter(|client| !client.subscribed);
        sessions.filter_map(|client| client.session.next_timeout()).chain(self.rest_until).min()
    }

    /// Something is ready.
    pub fn handle(&mut self, what: Watched, events: PollFlags, now: Duration) {
        match what {
            Watched::Listener => self.accept(now),
            Watched::Client(key) => {
                let Some(client) = self.clients.get_mut(&key) else { return };
                if !client.ready(events, now) {
                    self.clients.remove(&key);
                }
            }
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.rest_until = self.rest_until.filter(|&at| at > now);
        let crowded = self.clients.len() >= MAX_CLIENTS;
        self.clients.retain(|_, client| {
            if client.subscribed {
                return true;
            }
            if crowded {
                client.session.hurry(client.came + PATIENCE);
            }
            client.session.handle_timeout(now);
            client.pump(now)
        });
    }

    fn accept(&mut self, now: Duration) {
        while self.clients.len() < MAX_CLIENTS {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let peer = getsockopt(&stream, sockopt::PeerCredentials).map(|peer| peer.uid());
                    if peer != Ok(self.uid) || stream.set_nonblocking(true).is_err() {
                        tracing::warn!(?peer, "a client of the control socket is somebody else, and is not served");
                        continue;
                    }
                    let session = Session::new(Dialect::Tapway, self.verbs, self.limits, now);
                    let client = Client {
                        stream,
                        session,
                        fds: Vec::new(),
                        outgoing: Vec::new(),
                        came: now,
                        subscribed: false,
                        silent: false,
                        shut: false,
                    };
                    self.clients.insert(self.next_key, client);
                    self.next_key += 1;
                }
                Err(error) => {
                    match error.raw_os_error() {
                        Some(libc::EINTR | libc::ECONNABORTED) => continue,
                        Some(libc::EAGAIN) => {}
                        _ => self.rest_until = Some(now + REST),
                    }
                    return;
                }
            }
        }
    }

    /// The next request, and the descriptors that came with it. Call until None, at most [`REQUESTS`] times a turn.
    pub fn next_request(&mut self, now: Duration) -> Option<(Key, Request, Vec<OwnedFd>)> {
        let mut found = None;
        let mut over = Vec::new();
        for (&key, client) in &mut self.clients {
            if client.subscribed {
                continue;
            }
            let request = client.session.poll_request(now);
            // What is no request has been answered.
            if !client.pump(now) {
                over.push(key);
            } else if let Some(request) = request {
                found = Some((key, request, std::mem::take(&mut client.fds)));
                break;
            }
        }
        for key in over {
            self.clients.remove(&key);
        }
        found
    }

    /// Tells whether there may be more requests than were taken.
    pub fn set_more(&mut self, more: bool) {
        self.more = more;
    }

    /// The answer to a client's request; lost if the client has left.
    pub fn reply(&mut self, key: Key, reply: Vec<u8>, now: Duration) {
        self.reply_with(key, reply, Vec::new(), now);
    }

    /// The same, with descriptors (at most [`MAX_OUTGOING`]), which are closed here when they are sent.
    pub fn reply_with(&mut self, key: Key, reply: Vec<u8>, fds: Vec<OwnedFd>, now: Duration) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        client.outgoing = fds;
        client.session.reply(reply, now);
        // There may be another request behind the answered one.
        self.more = true;
        if !client.pump(now) {
            self.clients.remove(&key);
        }
    }

    /// A client's connection, to be handed on.
    pub fn connection(&self, key: Key) -> Option<OwnedFd> {
        self.clients.get(&key)?.stream.as_fd().try_clone_to_owned().ok()
    }

    /// From now on the network process writes to this client.
    pub fn subscribe(&mut self, key: Key) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.subscribed = true;
        }
    }

    /// Closes a client's connection.
    pub fn close(&mut self, key: Key) {
        self.clients.remove(&key);
    }

    /// True while the client is there.
    pub fn is_there(&self, key: Key) -> bool {
        self.clients.contains_key(&key)
    }
}

impl Client {
    /// Reads and writes what can be; false if it is over.
    fn ready(&mut self, events: PollFlags, now: Duration) -> bool {
        let over = events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR);
        if self.subscribed {
            // What it says does not matter any more.
            let mut waste = [0; 1024];
            return match (&self.stream).read(&mut waste) {
                // It may still read.
                Ok(0) => {
                    self.silent = true;
                    !over
                }
                Ok(_) => true,
                Err(error) => error.kind() == ErrorKind::WouldBlock || error.kind() == ErrorKind::Interrupted,
            };
        }
        if !self.session.wants_input() {
            return !over && self.pump(now);
        }
        if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            let mut bytes = [0; READ];
            let room = self.session.room().min(READ);
            match receive(&self.stream, &mut bytes[..room], &mut self.fds) {
                Ok(0) => self.session.handle_end(),
                Ok(len) => self.session.handle_input(&bytes[..len], now),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        self.pump(now)
    }

    /// Sends what there is to send; false if it is over.
    fn pump(&mut self, now: Duration) -> bool {
        while !self.session.output().is_empty() {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let sent = if self.outgoing.is_empty() {
                send(self.stream.as_raw_fd(), self.session.output(), flags)
            } else {
                // One request, one reply: what is to be sent is the reply that they belong to, from its start.
                let raw: Vec<RawFd> = self.outgoing.iter().map(AsRawFd::as_raw_fd).collect();
                let iov = [IoSlice::new(self.session.output())];
                sendmsg::<()>(self.stream.as_raw_fd(), &iov, &[ControlMessage::ScmRights(&raw)], flags, None)
            };
            match sent {
                Ok(len) => {
                    self.outgoing.clear();
                    self.session.handle_sent(len, now);
                }
                Err(Errno::EINTR) => {}
                // One that has not read in time keeps its place no longer.
                Err(Errno::EAGAIN) => return !self.session.is_done(),
                Err(_) => return false,
            }
        }
        if self.session.is_finished() && !std::mem::replace(&mut self.shut, true) {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        !self.session.is_done()
    }
}

impl Drop for Client {
    /// Leaves nothing unread, or a reply that the other side has not read yet would be lost (see `api::session`).
    fn drop(&mut self) {
        if !self.subscribed && self.shut && self.stream.shutdown(Shutdown::Read).is_ok() {
            let mut waste = [0; READ];
            while let Ok(1..) = (&self.stream).read(&mut waste) {}
        }
    }
}
