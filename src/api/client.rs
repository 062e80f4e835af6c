//! The other end of a control socket: requests in, replies out, blocking, for programs that do one thing at a time.
//!
//! ```text
//! Server ── ask ───────► connect, one request, its reply, close
//!        ── session ───► connect, `hello` with keep_open, then any number of requests
//!        ── subscribe ─► connect, `subscribe`, then events until either side has enough
//! ```
//!
//! **Limits.** Every wait has the server's time-out, but that for an event, which may never come; a reply is read up to
//! [`MAX_REPLY`] bytes, an event to [`MAX_EVENT`]. **Errors** say what is the matter with the socket before they say what
//! the kernel said: no such path, the socket of a dead process, somebody else's. What a server refuses is
//! [`ClientError::Refused`] with its text and code. slirp4netns's own socket is served as well: its errors have no code
//! that stays, and its verbs are three.
//!
//! Deliberately not here: several requests under way at once, and trying again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Largest reply that is read, in bytes: a page of 256 flows is a tenth of a MiB, the list of 5000 ports one MiB.
pub const MAX_REPLY: u64 = 32 << 20;
/// Longest event, in bytes.
pub const MAX_EVENT: u64 = 1 << 20;
/// Descriptors taken with one answer.
const MAX_FDS: usize = 8;
/// Longest path that an address holds (unix(7)), in bytes.
const LONGEST: usize = 107;
/// How long to wait for a server that is busy: 5000 ports are opened in a second.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no reply, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The path leads nowhere.
    #[error("there is no socket {path}")]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// The path leads to something else.
    #[error("{path} is not a socket")]
    NotSocket {
        /// Where.
        path: PathBuf,
    },
    /// Nobody listens.
    #[error("nobody listens at {path}: its process is gone, and the file can be removed")]
    Dead {
        /// Where.
        path: PathBuf,
    },
    /// The mode or a directory above forbids it.
    #[error("the socket {path} is not this user's{}", owner.map(|uid| format!(" but of user {uid}")).unwrap_or_default())]
    NotOurs {
        /// Where.
        path: PathBuf,
        /// Whose it is, where that can be seen.
        owner: Option<u32>,
    },
    /// Its last part alone does not fit an address (unix(7)), or there is a NUL in it.
    #[error("{path} cannot be the path of a socket")]
    TooLong {
        /// Where.
        path: PathBuf,
    },
    /// A call failed.
    #[error("cannot {what} the control socket {path}")]
    Io {
        /// What.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("{path} did not answer within {} seconds", patience.as_secs())]
    TimedOut {
        /// Where.
        path: PathBuf,
        /// How long was waited.
        patience: Duration,
    },
    /// It hung up.
    #[error("{path} closed the connection without an answer")]
    Closed {
        /// Where.
        path: PathBuf,
    },
    /// More than is read.
    #[error("the answer of {path} is longer than {limit} bytes")]
    TooLarge {
        /// Where.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// Not an answer of this protocol, or not one to this request.
    #[error("the answer of {path} to {verb} is not understood")]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What was asked.
        verb: String,
        /// In which way.
        #[source]
        source: serde_json::Error,
    },
    /// The server says no.
    #[error("{desc}")]
    Refused {
        /// In words.
        desc: String,
        /// In a word that stays; slirp4netns has none.
        code: Option<String>,
    },
}

impl ClientError {
    /// The server's code, where it refused and has codes.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => code.as_deref(),
            _ => None,
        }
    }

    /// True where nobody serves: the one case in which another source may be asked.
    pub fn nobody(&self) -> bool {
        matches!(self, Self::NoSocket { .. } | Self::Dead { .. })
    }
}

/// What `hello` returns.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Hello {
    /// Of the server's tapway.
    pub version: String,
    /// Of the protocol.
    pub protocol: u32,
    /// Verbs that are served.
    pub verbs: Vec<String>,
}

/// Either kind of answer. What slirp4netns says beside is passed over.
#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Value>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    desc: String,
    #[serde(default)]
    code: Option<String>,
}

/// `"return":null` is an answer.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Somebody who can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    path: PathBuf,
    patience: Duration,
    network: Option<String>,
}

impl Server {
    /// The one behind the socket at `path`; nothing is done yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), patience: PATIENCE, network: None }
    }

    /// The same with another time-out.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The same, asked about this one of a sandbox's networks where a verb is about one.
    #[must_use]
    pub fn on(self, network: Option<&String>) -> Self {
        Self { network: network.cloned(), ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let path = || self.path.clone();
        let (address, _dir) = self.address()?;
        let connect = || {
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
            // It bounds the wait for a place in a full backlog, too (net/unix/af_unix.c, unix_stream_connect).
            socket.set_write_timeout(Some(self.patience))?;
            socket.set_read_timeout(Some(self.patience))?;
            socket.connect(&address)?;
            Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
        };
        connect().map_err(|source: io::Error| {
            let meta = std::fs::symlink_metadata(&self.path).ok();
            match source.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => ClientError::NoSocket { path: path() },
                ErrorKind::PermissionDenied => {
                    ClientError::NotOurs { path: path(), owner: meta.map(|meta| meta.uid()) }
                }
                ErrorKind::ConnectionRefused
                    if std::fs::metadata(&self.path).is_ok_and(|meta| !meta.file_type().is_socket()) =>
                {
                    ClientError::NotSocket { path: path() }
                }
                ErrorKind::ConnectionRefused => ClientError::Dead { path: path() },
                _ => self.failed("connect to", source),
            }
        })
    }

    /// Where to connect to: a path that does not fit an address is named by its open directory, which must stay open
    /// until then.
    fn address(&self) -> Result<(socket2::SockAddr, Option<File>), ClientError> {
        let too_long = |_| ClientError::TooLong { path: self.path.clone() };
        match (self.path.parent(), self.path.file_name()) {
            (Some(dir), Some(name)) if self.path.as_os_str().len() > LONGEST => {
                let open = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir);
                // What cannot be opened leads nowhere for us, which connecting says.
                let Ok(dir) = open else { return Err(ClientError::NoSocket { path: self.path.clone() }) };
                let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
                Ok((socket2::SockAddr::unix(short).map_err(too_long)?, Some(dir)))
            }
            _ => Ok((socket2::SockAddr::unix(&self.path).map_err(too_long)?, None)),
        }
    }

    fn failed(&self, what: &'static str, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::TimedOut { path, patience: self.patience },
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
                ClientError::Closed { path }
            }
            _ => ClientError::Io { what, path, source },
        }
    }

    /// Sends a request as it is, and returns the answer as it is.
    pub fn exchange(&self, request: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.exchange_with(request, None)
    }

    fn exchange_with(&self, request: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<Vec<u8>, ClientError> {
        let mut stream = self.connect()?;
        let sent = send(&mut stream, request, fd).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        let mut reply = Vec::new();
        // Who refuses a request that is too long answers before it is whole: that answer is worth more than our EPIPE.
        let read = (&stream).take(MAX_REPLY + 1).read_to_end(&mut reply);
        if reply.len() as u64 > MAX_REPLY {
            return Err(ClientError::TooLarge { path: self.path.clone(), limit: MAX_REPLY });
        }
        if reply.is_empty() {
            sent.map_err(|source| self.failed("write to", source))?;
            read.map_err(|source| self.failed("read from", source))?;
            return Err(ClientError::Closed { path: self.path.clone() });
        }
        read.map_err(|source| self.failed("read from", source))?;
        Ok(reply)
    }

    /// Asks one thing.
    pub fn ask<T: DeserializeOwned>(&self, verb: &str, arguments: impl Serialize) -> Result<T, ClientError> {
        self.ask_with(verb, arguments, None)
    }

    /// Asks one thing that needs an open file.
    pub fn ask_with<T: DeserializeOwned>(
        &self,
        verb: &str,
        arguments: impl Serialize,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<T, ClientError> {
        let reply = self.exchange_with(&self.request(verb, arguments)?, fd)?;
        self.answer(verb, &reply)
    }

    /// Asks one thing whose answer has descriptors with it.
    pub fn ask_for_descriptors<T: DeserializeOwned>(
        &self,
        verb: &str,
        arguments: impl Serialize,
    ) -> Result<(T, Vec<OwnedFd>), ClientError> {
        let mut stream = self.connect()?;
        let request = self.request(verb, arguments)?;
        send(&mut stream, &request, None).map_err(|source| self.failed("write to", source))?;
        let (mut reply, mut fds) = (Vec::new(), Vec::new());
        loop {
            let mut bytes = [0; 4096];
            match receive(&stream, &mut bytes, &mut fds).map_err(|source| self.failed("read from", source))? {
                0 if reply.is_empty() => return Err(ClientError::Closed { path: self.path.clone() }),
                0 => break,
                length => reply.extend_from_slice(&bytes[..length]),
            }
            if reply.len() as u64 > MAX_REPLY {
                return Err(ClientError::TooLarge { path: self.path.clone(), limit: MAX_REPLY });
            }
        }
        Ok((self.answer(verb, &reply)?, fds))
    }

    fn request(&self, verb: &str, arguments: impl Serialize) -> Result<Vec<u8>, ClientError> {
        let foreign = |source| self.foreign(verb, source);
        let mut arguments = serde_json::to_value(arguments).map_err(foreign)?;
        if let (Some(network), Some(arguments)) = (&self.network, arguments.as_object_mut())
            && super::verbs::OF_ONE_NETWORK.contains(&verb)
        {
            arguments.insert("network".to_owned(), network.as_str().into());
        }
        let mut text = serde_json::to_vec(&json!({ "execute": verb, "arguments": arguments })).map_err(foreign)?;
        text.push(b'\n');
        Ok(text)
    }

    fn foreign(&self, verb: &str, source: serde_json::Error) -> ClientError {
        ClientError::Foreign { path: self.path.clone(), verb: verb.to_owned(), source }
    }

    fn answer<T: DeserializeOwned>(&self, verb: &str, reply: &[u8]) -> Result<T, ClientError> {
        let foreign = |source| self.foreign(verb, source);
        let reply: Reply = serde_json::from_slice(reply).map_err(foreign)?;
        match (reply.value, reply.error) {
            (Some(value), None) => T::deserialize(value).map_err(foreign),
            (_, Some(Fault { desc, code })) => Err(ClientError::Refused { desc, code }),
            (None, None) => Err(foreign(serde::de::Error::custom("neither 'return' nor 'error'"))),
        }
    }

    /// Opens a connection for many requests.
    pub fn session(&self) -> Result<Session, ClientError> {
        let connection = Connection { server: self.clone(), stream: BufReader::new(self.connect()?) };
        let mut session =
            Session { connection, hello: Hello { version: String::new(), protocol: 0, verbs: Vec::new() } };
        session.hello = session.ask("hello", json!({ "keep_open": true }))?;
        Ok(session)
    }

    /// Watches events of these kinds.
    pub fn subscribe(&self, events: &[String]) -> Result<Events, ClientError> {
        let mut connection = Connection { server: self.clone(), stream: BufReader::new(self.connect()?) };
        let _: Value = connection.ask("subscribe", json!({ "events": events }))?;
        connection.stream.get_ref().set_read_timeout(None).map_err(|source| self.failed("wait on", source))?;
        Ok(Events(connection))
    }
}

struct Connection {
    server: Server,
    stream: BufReader<UnixStream>,
}

impl Connection {
    fn ask<T: DeserializeOwned>(&mut self, verb: &str, arguments: impl Serialize) -> Result<T, ClientError> {
        let request = self.server.request(verb, arguments)?;
        let sent = send(self.stream.get_mut(), &request, None);
        match self.line(MAX_REPLY) {
            Ok(Some(reply)) => self.server.answer(verb, &reply),
            Ok(None) => {
                sent.map_err(|source| self.server.failed("write to", source))?;
                Err(ClientError::Closed { path: self.server.path.clone() })
            }
            Err(error) => Err(error),
        }
    }

    /// The next line; None at the end.
    fn line(&mut self, limit: u64) -> Result<Option<Vec<u8>>, ClientError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(limit);
        bounded.read_until(b'\n', &mut line).map_err(|source| self.server.failed("read from", source))?;
        if line.len() as u64 == limit && !line.ends_with(b"\n") {
            return Err(ClientError::TooLarge { path: self.server.path.clone(), limit });
        }
        // An error may come without a newline, from a server that does not know `hello`.
        Ok(Some(line).filter(|line| !line.is_empty()))
    }
}

/// A connection that takes many requests.
pub struct Session {
    connection: Connection,
    hello: Hello,
}

impl Session {
    /// Who answers.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks one thing.
    pub fn ask<T: DeserializeOwned>(&mut self, verb: &str, arguments: impl Serialize) -> Result<T, ClientError> {
        self.connection.ask(verb, arguments)
    }
}

/// Events as they come, each the text of one JSON object.
pub struct Events(Connection);

impl Events {
    /// Waits for the next; None when the server has ended.
    pub fn wait(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let line = self.0.line(MAX_EVENT)?;
        // What a server that died in the middle left is no event.
        Ok(line.filter(|line| line.ends_with(b"\n")))
    }

    /// The socket, to wait for together with others. What [`Self::buffered`] says must be read first.
    pub fn stream(&self) -> &UnixStream {
        self.0.stream.get_ref()
    }

    /// True if a whole event is here already.
    pub fn buffered(&self) -> bool {
        self.0.stream.buffer().contains(&b'\n')
    }
}

/// Reads what is there, with descriptors, which are close-on-exec.
fn receive(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(bytes)];
    let message = loop {
        match recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(nix::Error::EINTR) => {}
            result => break result?,
        }
    };
    if let Ok(all) = message.cmsgs() {
        for cmsg in all {
            if let ControlMessageOwned::ScmRights(raw) = cmsg {
                fds.extend(raw.into_iter().map(crate::sys::fd::adopt));
            }
        }
    }
    Ok(message.bytes)
}

/// Sends everything, the descriptor beside the first byte.
fn send(stream: &mut UnixStream, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(fd) = fd else { return write_all(stream, bytes) };
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let iov = [IoSlice::new(bytes)];
    let sent = loop {
        match sendmsg::<()>(stream.as_raw_fd(), &iov, &rights, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::Error::EINTR) => {}
            result => break result?,
        }
    };
    write_all(stream, &bytes[sent..])
}

fn write_all(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)
}

#[cfg(test)]
mod tests;
