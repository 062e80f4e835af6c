//! Requests and replies over a unix stream socket with tokio, whoever the clients are.
//!
//! What a connection may do, and what each kind of bad client gets, is `api::session`'s; what verbs mean, a [`Handler`]
//! says. Here are the sockets, and what must hold for all clients together, so that none can hold up another, nor grow the
//! process:
//!
//! | clients that | meet |
//! |---|---|
//! | are one too many | the listener's backlog |
//! | have not said what they want while all places are taken | [`Limits::patience`] |
//! | hold much of requests that are not whole | [`Limits::memory`]: beyond it long ones wait, until their time is up |
//!
//! A reply is not lost by what the client sent in vain: closing a unix socket with input unread makes the kernel report
//! ECONNRESET to the other side before it has read the reply (net/unix/af_unix.c, unix_release_sock). So after the
//! session's last reply input is thrown away for a moment, then refused (SHUT_RD), and what had come until then thrown
//! away as well.
//!
//! Peer credentials are not looked at: who may open the socket is the file's mode.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::future::{Future, pending};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, bind, listen, shutdown, socket,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::session::{self, Dialect, Request, Session};
use super::socket::receive;

/// Clients that wait to be served; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Size of `sun_path` (unix(7)).
const PATH_MAX: usize = 108;
/// How long nobody is accepted when descriptors run out.
const REST: Duration = Duration::from_millis(50);
/// Bytes read at once.
const READ: usize = 16 * 1024;
/// A request that is always read on.
const SHORT: usize = 8 * 1024;

/// A protocol: slirp4netns's three verbs and `hello`, which `api::session` knows, and others.
pub trait Handler: 'static {
    /// The others.
    const VERBS: &'static [&'static str];
    /// How what is no request is answered.
    const DIALECT: Dialect = Dialect::Slirp4netns;
    /// Does what is asked; `fds` came with it.
    fn answer(&self, request: Request, fds: Vec<OwnedFd>, connection: Connection<'_>) -> impl Future<Output = Answer>;
}

/// The connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a>(BorrowedFd<'a>);

impl Connection<'_> {
    /// A descriptor of one's own for it.
    pub fn duplicate(self) -> io::Result<OwnedFd> {
        self.0.try_clone_to_owned()
    }
}

/// The answer to a request.
#[derive(Debug)]
pub enum Answer {
    /// The reply.
    Reply(Vec<u8>),
    /// Somebody else writes to the connection from now on, and has a descriptor of its own for that.
    HandedOver,
}

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients served at a time.
    pub clients: usize,
    /// How long a client may take to send its request while others wait to be served.
    pub patience: Duration,
    /// Bytes of requests and replies held for all clients, beyond which only short requests are read on.
    pub memory: usize,
    /// Bounds of one connection.
    pub session: session::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 256,
            patience: Duration::from_millis(200),
            memory: 1 << 20,
            session: session::Limits::default(),
        }
    }
}

/// Why there is no socket. The texts are slirp4netns's.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It does not fit the address.
    #[error("the specified API socket path is too long (>= 108)")]
    TooLong,
    /// The kernel refused.
    #[error("api_bindlisten: {what}: {}", crate::telemetry::strerror(*errno))]
    System {
        /// The call.
        what: &'static str,
        /// Its errno.
        errno: Errno,
    },
}

/// Makes the listening socket as slirp4netns does: in the place of whatever is at `path`, with the mode that the umask
/// leaves. An empty path is the abstract name of NULs that a zeroed address stands for.
pub fn bind_legacy(path: &OsStr) -> Result<UnixListener, BindError> {
    let failed = |what| move |errno| BindError::System { what, errno };
    if path.len() >= PATH_MAX {
        return Err(BindError::TooLong);
    }
    let fd = legacy_socket().map_err(failed("socket"))?;
    let address = if path.is_empty() {
        UnixAddr::new_abstract(&[0; PATH_MAX - 1])
    } else {
        // What cannot be removed is in the way, which bind says.
        let _ = std::fs::remove_file(path);
        UnixAddr::new(path.as_bytes())
    };
    bind(fd.as_raw_fd(), &address.map_err(failed("bind"))?).map_err(failed("bind"))?;
    listen(&fd, Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN)).map_err(failed("listen"))?;
    Ok(UnixListener::from(fd))
}

fn legacy_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// What all connections of a server share.
struct Shared<H> {
    handler: H,
    limits: Limits,
    scratch: RefCell<Box<[u8]>>,
    /// Bytes held for all clients.
    held: Cell<usize>,
    /// Some were let go.
    freed: Notify,
}

/// Where clients come.
pub(super) trait Listen {
    /// A client's connection.
    type Stream;
    /// Waits for one.
    async fn accept(&self) -> io::Result<Self::Stream>;
}

impl Listen for tokio::net::UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Serves for ever, on a `LocalSet`; only a listener that fails returns. `listener` must be non-blocking.
pub async fn serve<H: Handler>(listener: UnixListener, handler: H, limits: Limits) -> io::Error {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let scratch = RefCell::new(vec![0; READ].into_boxed_slice());
    let shared = Rc::new(Shared { handler, limits, scratch, held: Cell::new(0), freed: Notify::new() });
    attend(&listener, limits.clients, |stream, crowd| Client::new(stream, Rc::clone(&shared)).serve(crowd)).await
}

/// Has everybody who comes served by `client`, at most `most` at a time; others wait in the backlog. `client` is also given
/// what says whether somebody may be waiting. Returns if the listener fails.
pub(super) async fn attend<L: Listen, F: Future<Output = ()> + 'static>(
    listener: &L,
    most: usize,
    client: impl Fn(L::Stream, watch::Receiver<bool>) -> F,
) -> io::Error {
    let mut clients = JoinSet::new();
    let (crowded, crowd) = watch::channel(false);
    loop {
        let full = clients.len() >= most;
        crowded.send_if_modified(|was| std::mem::replace(was, full) != full);
        tokio::select! {
            // Ends of clients first: they make room.
            biased;
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok(stream) => {
                    clients.spawn_local(client(stream, crowd.clone()));
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => sleep(REST).await,
                    Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => {}
                    // What befell the one connection (accept(2), "Error handling"), or a firewall's word.
                    Some(
                        libc::ENETDOWN
                        | libc::EPROTO
                        | libc::ENOPROTOOPT
                        | libc::EHOSTDOWN
                        | libc::ENONET
                        | libc::EHOSTUNREACH
                        | libc::ENETUNREACH
                        | libc::EPERM,
                    ) => {}
                    _ => return error,
                },
            },
        }
    }
}

struct Client<H: Handler> {
    stream: UnixStream,
    session: Session,
    /// Descriptors that came with what is not answered yet.
    fds: Vec<OwnedFd>,
    came: Instant,
    /// What of [`Shared::held`] is ours.
    held: usize,
    shared: Rc<Shared<H>>,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is to be closed.
    Over,
    /// It is somebody else's.
    HandedOver,
}

impl<H: Handler> Client<H> {
    fn new(stream: UnixStream, shared: Rc<Shared<H>>) -> Self {
        let session = Session::new(H::DIALECT, H::VERBS, shared.limits.session, Duration::ZERO);
        Self { stream, session, fds: Vec::new(), came: Instant::now(), held: 0, shared }
    }

    /// The session's time.
    fn now(&self) -> Duration {
        self.came.elapsed()
    }

    async fn serve(mut self, crowd: watch::Receiver<bool>) {
        let end = self.converse(crowd).await;
        self.hold(0);
        // A connection that is somebody else's now must not be shut.
        if end == End::Over {
            refuse_input(&self.stream);
        }
    }

    async fn converse(&mut self, mut crowd: watch::Receiver<bool>) -> End {
        let shared = Rc::clone(&self.shared);
        let (mut hurried, mut shut) = (false, false);
        loop {
            if let Some(end) = self.answer_all(&shared).await {
                return end;
            }
            if self.session.is_finished() && !std::mem::replace(&mut shut, true) {
                let _ = shutdown(self.stream.as_raw_fd(), Shutdown::Write);
            }
            if self.session.is_done() {
                return End::Over;
            }
            self.hold(self.session.memory());
            let wants = self.session.wants_input();
            let may = shared.held.get() <= shared.limits.memory || self.session.memory() < SHORT;
            let deadline = self.session.next_timeout().map(|at| self.came + at);
            tokio::select! {
                ready = self.stream.readable(), if wants && may => {
                    if ready.is_err() || self.read().is_err() {
                        return End::Over;
                    }
                }
                () = shared.freed.notified(), if wants && !may => {}
                ready = self.stream.writable(), if !self.session.output().is_empty() => {
                    if ready.is_err() {
                        return End::Over;
                    }
                }
                () = until(deadline) => self.session.handle_timeout(self.now()),
                // Somebody waits: whoever has had time enough goes.
                _ = crowd.wait_for(|&crowded| crowded), if !hurried => {
                    hurried = true;
                    self.session.hurry(shared.limits.patience);
                }
            }
        }
    }

    /// Answers what has come, as long as replies leave at once.
    async fn answer_all(&mut self, shared: &Shared<H>) -> Option<End> {
        loop {
            if self.write().is_err() {
                return Some(End::Over);
            }
            if !self.session.output().is_empty() {
                return None;
            }
            if let Some(request) = self.session.poll_request(self.now()) {
                let fds = std::mem::take(&mut self.fds);
                let connection = Connection(self.stream.as_fd());
                match shared.handler.answer(request, fds, connection).await {
                    Answer::Reply(reply) => self.session.reply(reply, self.now()),
                    Answer::HandedOver => return Some(End::HandedOver),
                }
            } else if self.session.output().is_empty() {
                return None;
            }
        }
    }

    /// Reads what is there.
    fn read(&mut self) -> io::Result<()> {
        let mut scratch = self.shared.scratch.borrow_mut();
        let room = self.session.room().min(scratch.len());
        let (stream, fds) = (&self.stream, &mut self.fds);
        let read = stream.try_io(Interest::READABLE, || Ok(receive(stream, &mut scratch[..room], fds)?));
        let now = self.came.elapsed();
        match read {
            Ok(0) => self.session.handle_end(),
            Ok(len) => self.session.handle_input(&scratch[..len], now),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Writes what can be written.
    fn write(&mut self) -> io::Result<()> {
        while !self.session.output().is_empty() {
            match self.stream.try_write(self.session.output()) {
                Ok(len) => self.session.handle_sent(len, self.now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Accounts for `bytes` held from now on.
    fn hold(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.held, bytes);
        self.shared.held.set(self.shared.held.get() + bytes - before);
        if bytes < before {
            self.shared.freed.notify_waiters();
        }
    }
}

/// Sleeps until then; for ever without a time.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Before closing: nothing that the client sent is left unread.
fn refuse_input(stream: &UnixStream) {
    // From here on sending fails with EPIPE, so the loop ends with what is queued now.
    if shutdown(stream.as_raw_fd(), Shutdown::Both).is_err() {
        return;
    }
    let mut waste = vec![0; READ];
    while let Ok(1..) = receive(stream, &mut waste, &mut Vec::new()) {}
}
