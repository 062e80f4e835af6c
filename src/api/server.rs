//! Requests and replies over a unix stream socket, whoever the clients are.
//!
//! One request, one reply, one write, and the connection is closed. What a request is, and the answer, a [`Handler`]
//! says; here is what must hold for every protocol, so that no client can hold up another, nor grow the process:
//!
//! | a client that | meets |
//! |---|---|
//! | sends nothing | [`Limits::silence`]; once all places are taken, [`Limits::patience`] |
//! | sends half a request | [`Limits::rest`], then the answer to half a request |
//! | sends too much | [`Limits::request`] bytes are looked at, [`Limits::drain`] more thrown away |
//! | does not read | [`Limits::reply`] |
//! | does not close | [`Limits::linger`] |
//! | is one too many | waits in the listener's backlog |
//!
//! A reply is not lost by what the client sent in vain: closing a unix socket with input unread makes the kernel report
//! ECONNRESET to the other side before it has read the reply (net/unix/af_unix.c, unix_release_sock). So input is thrown
//! away for a moment, then refused (SHUT_RD), and what had come until then thrown away as well.
//!
//! Peer credentials are not looked at: who may open the socket is the file's mode.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Clients that wait to be served; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Size of `sun_path` (unix(7)).
const PATH_MAX: usize = 108;
/// How long nobody is accepted when descriptors run out.
const REST: Duration = Duration::from_millis(50);

/// A protocol.
pub trait Handler: 'static {
    /// What it understood, or why it did not.
    type Request;
    /// Looks at what has come so far (at most [`Limits::request`] bytes); None waits for more. `ended`: there will be no
    /// more, and None closes the connection without a reply.
    fn read(&self, input: &[u8], ended: bool) -> Option<Self::Request>;
    /// Does what is asked, and returns the reply.
    fn answer(&self, request: Self::Request) -> impl Future<Output = Answer>;
}

/// What a connection is given to after the reply; it is closed when this has ended.
pub type Then = Box<dyn FnOnce(UnixStream) -> Pin<Box<dyn Future<Output = ()>>>>;

/// The answer to a request.
pub struct Answer {
    /// The reply.
    pub reply: Vec<u8>,
    /// Goes on with the connection, where the reply is not the end of it.
    pub then: Option<Then>,
}

impl From<Vec<u8>> for Answer {
    fn from(reply: Vec<u8>) -> Self {
        Self { reply, then: None }
    }
}

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients served at a time.
    pub clients: usize,
    /// Most bytes of a request.
    pub request: usize,
    /// How long a client may be silent.
    pub silence: Duration,
    /// The same while clients wait to be served.
    pub patience: Duration,
    /// From a request's first byte to its last.
    pub rest: Duration,
    /// How long a client may take to read the reply.
    pub reply: Duration,
    /// How long a client may take to close after the reply.
    pub linger: Duration,
    /// Bytes thrown away after the reply.
    pub drain: usize,
}

impl Limits {
    /// `request`: most bytes of a request.
    pub const fn new(request: usize) -> Self {
        Self {
            clients: 256,
            request,
            silence: Duration::from_mins(1),
            patience: Duration::from_millis(200),
            rest: Duration::from_secs(5),
            reply: Duration::from_secs(5),
            linger: Duration::from_millis(200),
            drain: 4 << 20,
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

/// Serves for ever, on a `LocalSet`; only a listener that fails returns. `listener` must be non-blocking.
pub async fn serve<H: Handler>(listener: UnixListener, handler: H, limits: Limits) -> io::Error {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let handler = Rc::new(handler);
    let mut clients = JoinSet::new();
    let (crowded, crowd) = watch::channel(false);
    loop {
        let full = clients.len() >= limits.clients;
        crowded.send_if_modified(|was| std::mem::replace(was, full) != full);
        tokio::select! {
            // Ends of clients first: they make room.
            biased;
            Some(_) = clients.join_next() => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, _)) => {
                    clients.spawn_local(client(stream, Rc::clone(&handler), limits, crowd.clone()));
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => sleep(REST).await,
                    Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => {}
                    _ => return error,
                },
            },
        }
    }
}

async fn client<H: Handler>(mut stream: UnixStream, handler: Rc<H>, limits: Limits, crowd: watch::Receiver<bool>) {
    let Some(request) = receive(&mut stream, &*handler, &limits, crowd).await else { return };
    let Answer { reply, then } = handler.answer(request).await;
    if let Some(then) = then {
        if matches!(timeout(limits.reply, stream.write_all(&reply)).await, Ok(Ok(()))) {
            then(stream).await;
        }
        return;
    }
    let sent = timeout(limits.reply, async {
        stream.write_all(&reply).await?;
        stream.shutdown().await
    });
    if matches!(sent.await, Ok(Ok(()))) {
        let _ = timeout(limits.linger, drain(&mut stream, limits.drain)).await;
    }
    refuse_input(stream);
}

/// The request; None where there is none to answer.
async fn receive<H: Handler>(
    stream: &mut UnixStream,
    handler: &H,
    limits: &Limits,
    mut crowd: watch::Receiver<bool>,
) -> Option<H::Request> {
    let came = Instant::now();
    let mut deadline = came + limits.silence;
    let mut hurry = false;
    let mut input = Vec::new();
    let mut len = 0;
    loop {
        let ended = tokio::select! {
            ready = stream.readable() => {
                ready.ok()?;
                // A client that sends nothing costs no buffer.
                input.resize(limits.request, 0);
                match stream.try_read(&mut input[len..]) {
                    Ok(0) => true,
                    Ok(n) => {
                        if len == 0 {
                            deadline = Instant::now() + limits.rest;
                        }
                        len += n;
                        len == limits.request
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(_) => return None,
                }
            }
            () = sleep_until(deadline) => {
                if len == 0 {
                    return None;
                }
                true
            }
            // Somebody waits: whoever has had time enough goes.
            _ = crowd.wait_for(|&crowded| crowded), if !hurry => {
                hurry = true;
                deadline = deadline.min(came + limits.patience);
                continue;
            }
        };
        let request = handler.read(&input[..len], ended);
        if ended || request.is_some() {
            return request;
        }
    }
}

/// Throws input away until the client closes, or `most` bytes have come.
async fn drain(stream: &mut UnixStream, most: usize) {
    let mut waste = vec![0; 16 * 1024];
    let mut left = most;
    while left > 0 {
        match stream.read(&mut waste).await {
            Ok(0) | Err(_) => return,
            Ok(n) => left = left.saturating_sub(n),
        }
    }
}

/// Closes; nothing that the client sent is left unread.
fn refuse_input(stream: UnixStream) {
    let Ok(stream) = stream.into_std() else { return };
    // From here on sending fails with EPIPE, so the loop ends with what is queued now.
    if stream.shutdown(std::net::Shutdown::Both).is_err() {
        return;
    }
    let mut waste = vec![0; 16 * 1024];
    while let Ok(1..) = io::Read::read(&mut &stream, &mut waste) {}
}
