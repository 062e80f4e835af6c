//! One connection of a control socket: bytes in, requests out, replies in, bytes out. No I/O and no clock.
//!
//! ```text
//!            a request                    its reply
//! Reading ────────────────► Answering ────────────────► Flushing ──► Draining ──► Done
//!    ▲                                                     │
//!    └──────────────── after hello with keep_open ─────────┘
//! ```
//!
//! One request, one reply, close. After `hello` with `keep_open` there are many, each on a line of its own, and each reply
//! ends with a newline; requests that come before their turn wait, bounded, and are answered in order. `hello` is answered
//! here; what all other verbs mean, the owner knows: [`Session::poll_request`], then [`Session::reply`].
//!
//! Where a request ends is found by counting brackets, once per byte, so a request in single bytes costs no more than one
//! in a piece. It is then read whole by `envelope`. A first request may have newlines in it; a kept connection's may not, so
//! that after half a request the next line is a request again.
//!
//! | a client that | gets |
//! |---|---|
//! | sends no JSON, or half a request and its end | `bad_json` |
//! | sends no object, no verb, arguments that are no object, a second request unasked | `bad_request` |
//! | asks what nobody knows | `unknown_verb`, `unknown_field` |
//! | sends more than [`Limits::request`] | `too_large`, and the connection closes |
//! | sends half a request and waits for [`Limits::rest`] | `timed_out`, and the connection closes |
//! | sends nothing for [`Limits::idle`] (kept: [`Limits::kept_idle`]) | closed |
//! | has not sent its first request while others wait ([`Session::hurry`]) | the same, sooner |
//! | does not read its reply for [`Limits::reply`] | closed |
//!
//! slirp4netns's three verbs keep that program's tolerance everywhere: what stands beside, within or behind the request
//! and is not known does not count. In its own mode ([`Dialect::Slirp4netns`]) what is no request is answered in its bytes,
//! and a request must be shorter than its buffer, until `hello`.
//!
//! After the last reply input is thrown away for a moment ([`Limits::linger`]): closing a unix socket with input unread makes
//! the kernel tell the other side ECONNRESET before it has read the reply (net/unix/af_unix.c, unix_release_sock).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::envelope::{self, Envelope, EnvelopeFault};
use super::error::{self, ApiError, Code};
use super::hostfwd::{self, Fault};

/// Version of the protocol, as `hello` and `get_info` tell it. It changes when a stable part does.
pub const PROTOCOL: u32 = 1;

/// slirp4netns's verbs, which every dialect has.
pub const LEGACY: [&str; 3] = ["add_hostfwd", "list_hostfwd", "remove_hostfwd"];

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// How what is no request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// With a code.
    Tapway,
    /// To slirp4netns's byte.
    Slirp4netns,
}

/// Bounds of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of a request.
    pub request: usize,
    /// How long a client may be silent before its only request.
    pub idle: Duration,
    /// How long a client that said hello may be silent.
    pub kept_idle: Duration,
    /// From a request's first byte to its last.
    pub rest: Duration,
    /// From a reply's first byte to its last.
    pub reply: Duration,
    /// How long a client may take to close after the last reply.
    pub linger: Duration,
    /// Bytes thrown away after the last reply.
    pub drain: usize,
}

impl Default for Limits {
    /// 64 KiB of request are 5000 specs of published ports. A minute for a person who types; ten for a program that watches.
    fn default() -> Self {
        Self {
            request: 64 * 1024,
            idle: Duration::from_mins(1),
            kept_idle: Duration::from_mins(10),
            rest: Duration::from_secs(5),
            reply: Duration::from_secs(5),
            linger: Duration::from_millis(200),
            drain: 4 << 20,
        }
    }
}

/// Arguments of `hello`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hello {
    /// The connection stays open: requests and replies, one a line.
    pub keep_open: bool,
}

/// What `hello` returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// tapway's version.
    pub version: String,
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// Every verb that this socket knows.
    pub verbs: Vec<String>,
}

/// One request, whose verb this socket knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub verb: String,
    /// With what.
    pub arguments: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for a request.
    Reading,
    /// The owner has one.
    Answering,
    /// The last reply is being sent.
    Flushing,
    /// Input is thrown away; so much more of it.
    Draining(usize),
    Done,
}

/// How far the search for a request's end has come.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    /// Bytes looked at.
    at: usize,
    /// A byte that is no blank has been seen.
    begun: bool,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The end is not there yet.
    Nothing,
    /// A request ends before this index; whether it may be one at all is not known.
    End(usize),
}

impl Scan {
    /// Looks at what is new in `input`. `line`: a newline ends what has begun.
    fn run(&mut self, input: &[u8], line: bool) -> Found {
        while let Some(&byte) = input.get(self.at) {
            self.at += 1;
            if !self.begun {
                match byte {
                    b' ' | b'\t' | b'\r' | b'\n' => {}
                    // The first byte of a byte order mark, the others.
                    _ if self.at <= BYTE_ORDER_MARK.len() && input[..self.at] == BYTE_ORDER_MARK[..self.at] => {}
                    b'{' => (self.begun, self.depth) = (true, 1),
                    // No object, so no request: the rest of the line belongs to it.
                    _ if line => {
                        self.begun = true;
                        self.depth = usize::MAX;
                    }
                    _ => return Found::End(self.at),
                }
                continue;
            }
            match byte {
                b'\n' if line => return Found::End(self.at),
                0 => return Found::End(self.at),
                _ if self.depth == usize::MAX => {}
                _ if std::mem::take(&mut self.escaped) => {}
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Found::End(self.at);
                    }
                }
                _ => {}
            }
        }
        Found::Nothing
    }
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    dialect: Dialect,
    verbs: &'static [&'static str],
    limits: Limits,
    phase: Phase,
    kept: bool,
    /// The client will send no more.
    ended: bool,
    input: Vec<u8>,
    scan: Scan,
    output: Vec<u8>,
    sent: usize,
    deadline: Duration,
    /// Others wait: when the first request must be there.
    hurried: Option<Duration>,
}

impl Session {
    /// A client that has come at `now`. `verbs`: all that the owner knows beside slirp4netns's three and `hello`.
    pub fn new(dialect: Dialect, verbs: &'static [&'static str], limits: Limits, now: Duration) -> Self {
        Self {
            dialect,
            verbs,
            limits,
            phase: Phase::Reading,
            kept: false,
            ended: false,
            input: Vec::new(),
            scan: Scan::default(),
            output: Vec::new(),
            sent: 0,
            deadline: now + limits.idle,
            hurried: None,
        }
    }

    /// True if input would be looked at or thrown away; else it waits in the kernel.
    pub fn wants_input(&self) -> bool {
        match self.phase {
            // One byte over the limit shows that it is over.
            Phase::Reading => !self.ended && self.input.len() <= self.limits.request && self.output().is_empty(),
            Phase::Draining(_) => !self.ended,
            Phase::Answering | Phase::Flushing | Phase::Done => false,
        }
    }

    /// Bytes that may come at once.
    pub fn room(&self) -> usize {
        match self.phase {
            Phase::Reading => (self.limits.request + 1).saturating_sub(self.input.len()),
            _ => usize::MAX,
        }
    }

    /// Bytes held.
    pub fn memory(&self) -> usize {
        self.input.capacity() + self.output.capacity()
    }

    /// The client has sent `bytes`, at most [`Self::room`] of them.
    pub fn handle_input(&mut self, bytes: &[u8], now: Duration) {
        match &mut self.phase {
            Phase::Reading => {
                if self.input.is_empty() {
                    self.deadline = now + self.limits.rest;
                }
                self.input.extend_from_slice(bytes);
            }
            Phase::Draining(left) => {
                *left = left.saturating_sub(bytes.len());
                if *left == 0 {
                    self.phase = Phase::Done;
                }
            }
            Phase::Answering | Phase::Flushing | Phase::Done => {}
        }
    }

    /// The client will send no more.
    pub fn handle_end(&mut self) {
        self.ended = true;
        if matches!(self.phase, Phase::Draining(_)) {
            self.phase = Phase::Done;
        }
    }

    /// The next request, to be answered by [`Self::reply`]. What is no request is answered here.
    pub fn poll_request(&mut self, now: Duration) -> Option<Request> {
        while self.phase == Phase::Reading && self.output().is_empty() {
            let ended = self.ended;
            let Some((envelope, len)) = self.next_envelope(ended, now) else {
                if self.ended {
                    self.phase = Phase::Done;
                }
                return None;
            };
            // What of a request is not legacy's: the strict reading.
            let rest_is_blank = self.input[len..].iter().all(u8::is_ascii_whitespace);
            self.consume(len, now);
            match self.read(envelope, rest_is_blank) {
                Ok(request) if request.verb == "hello" => self.hello(request.arguments, now),
                Ok(request) => {
                    self.phase = Phase::Answering;
                    return Some(request);
                }
                Err(reply) => self.put(reply, now),
            }
        }
        None
    }

    /// The reply to the request that was handed out. Without a session that waits for it, it is lost.
    pub fn reply(&mut self, reply: Vec<u8>, now: Duration) {
        if self.phase == Phase::Answering {
            self.put(reply, now);
        }
    }

    /// What is to be sent.
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// `len` bytes of [`Self::output`] have been sent.
    pub fn handle_sent(&mut self, len: usize, now: Duration) {
        self.sent += len;
        if self.sent < self.output.len() {
            return;
        }
        (self.output, self.sent) = (Vec::new(), 0);
        match self.phase {
            Phase::Flushing => {
                self.input = Vec::new();
                self.deadline = now + self.limits.linger;
                self.phase = if self.ended { Phase::Done } else { Phase::Draining(self.limits.drain) };
            }
            Phase::Reading => self.set_reading_deadline(now),
            Phase::Answering | Phase::Draining(_) | Phase::Done => {}
        }
    }

    /// The last reply is sent: the client is to be told that there will be no more (SHUT_WR).
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Draining(_) | Phase::Done)
    }

    /// The connection is to be closed.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// True if the owner has a request of this client.
    pub fn is_answering(&self) -> bool {
        self.phase == Phase::Answering
    }

    /// When to call [`Self::handle_timeout`]; while the owner answers, it keeps the time.
    pub fn next_timeout(&self) -> Option<Duration> {
        let hurried = self.hurried.filter(|_| self.phase == Phase::Reading && !self.kept);
        let deadline = hurried.map_or(self.deadline, |at| at.min(self.deadline));
        (!matches!(self.phase, Phase::Answering | Phase::Done)).then_some(deadline)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.next_timeout().is_none_or(|at| now < at) {
            return;
        }
        if self.phase != Phase::Reading || self.input.iter().all(u8::is_ascii_whitespace) || !self.output().is_empty() {
            self.phase = Phase::Done;
            return;
        }
        let reply = match self.dialect {
            Dialect::Slirp4netns if !self.kept => hostfwd::refused(&Fault::Parse),
            _ => {
                let desc = match self.hurried {
                    Some(at) if at <= now => "the rest of the request did not come in time, and others wait".to_owned(),
                    _ => format!("the rest of the request did not come within {} seconds", self.limits.rest.as_secs()),
                };
                ApiError::new(Code::TimedOut, desc + "; send requests whole").reply()
            }
        };
        self.put_last(reply, now);
    }

    /// Others wait: the first request must be there, whole, at `deadline`, whenever it began.
    pub fn hurry(&mut self, deadline: Duration) {
        self.hurried = Some(self.hurried.map_or(deadline, |at| at.min(deadline)));
    }

    /// The envelope at the start of the input, and its length; None waits for more.
    fn next_envelope(&mut self, ended: bool, now: Duration) -> Option<(Result<Envelope, Refused>, usize)> {
        if self.dialect == Dialect::Slirp4netns && !self.kept {
            let first = &self.input[..self.input.len().min(hostfwd::TOO_LARGE - 1)];
            let read = envelope::read(first, ended || first.len() < self.input.len());
            // What follows matters to those verbs alone that are read strictly, and to `hello`, which keeps it.
            let len = match (Scan::default().run(first, false), &read) {
                (Found::End(len), Some(Ok(_))) => len,
                _ => self.input.len(),
            };
            if first.len() < self.input.len() && !matches!(&read, Some(Ok(envelope)) if envelope.execute == "hello") {
                return Some((Err(Refused::TooLarge), self.input.len()));
            }
            return Some((read?.map_err(Refused::No), len));
        }
        let len = match self.scan.run(&self.input, self.kept) {
            Found::End(len) => len,
            Found::Nothing if self.input.len() > self.limits.request => {
                return Some((Err(Refused::TooLarge), self.input.len()));
            }
            Found::Nothing if ended && self.scan.begun => self.input.len(),
            Found::Nothing => {
                // Blanks between requests are not kept.
                if !self.scan.begun && self.scan.at == self.input.len() && self.kept {
                    self.consume(self.input.len(), now);
                }
                return None;
            }
        };
        if len > self.limits.request {
            return Some((Err(Refused::TooLarge), self.input.len()));
        }
        let envelope = envelope::read(&self.input[..len], true).unwrap_or(Err(EnvelopeFault::Parse));
        Some((envelope.map_err(Refused::No), len))
    }

    /// What the envelope asks for, or the reply to it.
    fn read(&mut self, envelope: Result<Envelope, Refused>, rest_is_blank: bool) -> Result<Request, Vec<u8>> {
        let legacy = self.dialect == Dialect::Slirp4netns && !self.kept;
        let refuse = |code, desc: &str| Err(ApiError::new(code, desc).reply());
        let envelope = match envelope {
            Ok(envelope) => envelope,
            Err(Refused::TooLarge) if legacy => return Err(hostfwd::refused(&Fault::TooLarge)),
            Err(Refused::No(fault)) if legacy => return Err(hostfwd::refused(&fault.into())),
            Err(Refused::TooLarge) => {
                self.kept = false;
                let desc = format!("the request is larger than {} bytes; ask for less at once", self.limits.request);
                return refuse(Code::TooLarge, &desc);
            }
            Err(Refused::No(EnvelopeFault::Parse)) => {
                return refuse(
                    Code::BadJson,
                    "the request is not JSON; write {\"execute\":VERB,\"arguments\":{…}} in UTF-8",
                );
            }
            Err(Refused::No(EnvelopeFault::NotObject)) => {
                return refuse(
                    Code::BadRequest,
                    "the request is no object; write {\"execute\":VERB,\"arguments\":{…}}",
                );
            }
            Err(Refused::No(EnvelopeFault::NoExecute)) => {
                return refuse(Code::BadRequest, "the request has no verb; name one in \"execute\"");
            }
        };
        let Envelope { execute: verb, arguments, odd_arguments, unknown } = envelope;
        if LEGACY.contains(&verb.as_str()) {
            return Ok(Request { verb, arguments });
        }
        if verb != "hello" && !self.verbs.contains(&verb.as_str()) {
            if legacy {
                return Err(hostfwd::refused(&Fault::Unknown));
            }
            let shown: String = verb.chars().take(64).collect();
            return refuse(Code::UnknownVerb, &format!("there is no verb '{shown}'; hello returns those that are"));
        }
        if let Some(key) = unknown {
            let shown: String = key.chars().take(64).collect();
            let desc = format!("unknown field `{shown}` beside `execute` and `arguments`; leave it out");
            return refuse(Code::UnknownField, &desc);
        }
        if odd_arguments {
            return refuse(Code::BadRequest, "the arguments are no object; write \"arguments\":{…} or leave them out");
        }
        let keeps = verb == "hello" && arguments.get("keep_open") == Some(&Value::Bool(true));
        if !self.kept && !keeps && !rest_is_blank {
            return refuse(
                Code::BadRequest,
                "something follows the request; for several requests begin with hello and keep_open",
            );
        }
        Ok(Request { verb, arguments })
    }

    fn hello(&mut self, arguments: Map<String, Value>, now: Duration) {
        let hello: Hello = match error::arguments("hello", arguments) {
            Ok(hello) => hello,
            Err(error) => return self.put(error.reply(), now),
        };
        self.kept |= hello.keep_open;
        let mut verbs: Vec<&str> = LEGACY.iter().chain(&["hello"]).chain(self.verbs).copied().collect();
        verbs.sort_unstable();
        verbs.dedup();
        let version = env!("CARGO_PKG_VERSION");
        let reply = json!({ "version": version, "protocol": PROTOCOL, "verbs": verbs });
        self.put(error::success(&reply), now);
    }

    fn consume(&mut self, len: usize, now: Duration) {
        self.input.drain(..len);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        self.scan = Scan::default();
        self.set_reading_deadline(now);
    }

    fn set_reading_deadline(&mut self, now: Duration) {
        self.deadline = now + if self.input.is_empty() { self.limits.kept_idle } else { self.limits.rest };
    }

    /// Queues a reply; what comes after it depends on the connection.
    fn put(&mut self, mut reply: Vec<u8>, now: Duration) {
        if !self.kept {
            return self.put_last(reply, now);
        }
        reply.push(b'\n');
        self.output = reply;
        self.sent = 0;
        self.deadline = now + self.limits.reply;
        self.phase = Phase::Reading;
    }

    fn put_last(&mut self, mut reply: Vec<u8>, now: Duration) {
        if self.kept {
            reply.push(b'\n');
        }
        self.output = reply;
        self.sent = 0;
        self.deadline = now + self.limits.reply;
        self.phase = Phase::Flushing;
    }
}

/// Why there is no envelope.
#[derive(Clone, Copy, Debug)]
enum Refused {
    TooLarge,
    No(EnvelopeFault),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
