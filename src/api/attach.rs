//! The attach protocol: how a monitor hands an endpoint to a network process.
//!
//! A connected `SOCK_SEQPACKET` pair; each message is one JSON value with the descriptors it names as SCM_RIGHTS. The
//! open connection is the lease: when it closes, the network process drops the endpoint and, being empty, exits.
//!
//! ```text
//! monitor                                       network process
//!   Attach {endpoint}  + [tap, pcap?, …]    ──►   (4: further queues of the TAP)
//!   Metrics            + [fd]               ──►   (3; where --metrics-listen was given; later, too, from another endpoint)
//!   Listen {listeners} + [fd; n ≤ 250]      ──►   (as often as needed)
//!                                           ◄──  Listened                   (2)
//!   HostDns {...}                           ──►   (again whenever the servers change)
//!   Zone {records, more}                    ──►   (2; as often as needed, and again whenever the names change)
//!   Faults {faults}                         ──►   (3; of an endpoint that has some: again what a process that died was asked)
//!   Start                                   ──►
//!                                           ◄──  Ready | Failed {desc}
//!   Listen + [fd…] | Unlisten               ──►   (2; whenever the sandbox's ports change)
//!                                           ◄──  Listened | Unlistened
//!   OtherNetworks {ask, answer} + [fd…]     ──►   (3; on a shared network, whenever the sandbox's networks change)
//!   Ask {id, verb, arguments} + [fd…]       ──►   (2)
//!                                           ◄──  Answer {id, result}
//!                                           ◄──  CaptureEnded {status}      (2; of one that `start_capture` began)
//! ```
//!
//! The process of a shared network has a listening socket: each monitor connects, says the same words, with a `membership` in
//! `Attach`, and keeps its connection as the lease of its endpoint alone. `Failed` refuses that endpoint; then the connection
//! closes.
//!
//! What is marked (2) came with version 2, with the zones in `HostDns`; a monitor of version 1 neither says nor hears it.
//! (3) came with version 3, (4) with version 4.
//!
//! Ports go by number: the first one told has 0, each one told after it one more, served or not. The kernel bounds how many
//! descriptors may be on their way (too_many_unix_fds, net/unix/af_unix.c: as many as the sender's RLIMIT_NOFILE), so a
//! monitor waits for `Listened` before it sends the next batch. On the network process's death the monitor begins anew with
//! all that holds by then.

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::verbs::capture::CaptureStatus;
use super::verbs::fault::FaultRule;
use crate::network::config::{DnsZone, EndpointConfig, Listener, Membership};
use crate::network::zone::Record;

/// Version of the protocol; a network process serves monitors of its own or any older version.
pub const VERSION: u32 = 4;

/// The last version without further queues of a TAP, which is otherwise the same.
pub const BEFORE_QUEUES: u32 = 3;

/// The first version that acknowledges ports and can be asked.
pub const CONVERSES: u32 = 2;

/// Most descriptors in one message. The kernel allows 253 (SCM_MAX_FD, include/net/scm.h).
pub const MAX_FDS: usize = 250;

/// Largest JSON text of one message, far above a batch of 250 listeners. A longer one is refused, never cut.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Monitor → network process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNetwork {
    /// The endpoint. Descriptors: the TAP, then, if `pcap`, the open capture file, then further queues of the TAP.
    Attach {
        /// [`VERSION`] of the monitor.
        version: u32,
        /// Addresses and policy.
        endpoint: Box<EndpointConfig>,
        /// A capture file follows the TAP.
        pcap: bool,
        /// How many further queues of the TAP follow. A process that does not know of them would leave them unread, so there are
        /// none unless the version says that it does.
        #[serde(default)]
        queues: u8,
        /// How it is a member of a network that is shared; none elsewhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        membership: Option<Box<Membership>>,
    },
    /// Metrics are served by HTTP on the listening TCP socket that comes along.
    Metrics,
    /// Published ports; one descriptor for each, in order.
    Listen {
        /// What each descriptor is.
        listeners: Vec<Listener>,
    },
    /// Upstream name servers: the user's (--dns) or the host's resolv.conf. Sent again on each change.
    HostDns {
        /// Servers in order of preference; empty means that there are none and queries get SERVFAIL.
        servers: Vec<SocketAddr>,
        /// Domains with servers of their own.
        #[serde(default)]
        zones: Vec<DnsZone>,
    },
    /// The names that the network answers itself, in place of all that were told before; see [`zone_messages`].
    Zone {
        /// A part of them, in order.
        records: Vec<Record>,
        /// The next message has the next part; only with the last one they are complete.
        more: bool,
    },
    /// What happens to the endpoint's packets on purpose; said where there is any such thing.
    Faults {
        /// All rules, with what a process before this one answered.
        faults: Vec<FaultRule>,
    },
    /// Everything is told: begin.
    Start,
    /// Close these ports, by number. Established TCP flows go on.
    Unlisten {
        /// Which.
        numbers: Vec<usize>,
    },
    /// The sandbox's other networks, in place of those told before: whose names are asked of them, in order, and how many
    /// ask for names here. Descriptors: one end of a SOCK_SEQPACKET pair for each, first those that are asked; what is said
    /// over them is in `host::peers`.
    OtherNetworks {
        /// Names of the networks that are asked.
        ask: Vec<String>,
        /// How many sockets others ask by.
        answer: usize,
    },
    /// Answer a verb of the control socket. Descriptors: those that came with the client's request; for `subscribe` the
    /// client's connection itself.
    Ask {
        /// Comes back with the answer.
        id: u64,
        /// The verb.
        verb: String,
        /// Its arguments.
        arguments: Map<String, Value>,
        /// What only the monitor knows.
        #[serde(default)]
        context: Context,
    },
}

/// What a monitor says beside a client's arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    /// The same was done by a network process that died: for `subscribe`, the client has had its reply; for
    /// `start_capture`, the file is to be gone on with.
    pub resumed: bool,
    /// `start_capture`: its number.
    pub capture: u32,
    /// … how many sections the file has with the one that begins now.
    pub sections: u32,
    /// … bytes that it wrote before.
    pub written: u64,
}

/// Network process → monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNetwork {
    /// Frames flow.
    Ready,
    /// It cannot serve this endpoint; it exits after saying so.
    Failed {
        /// One line, as the user should read it.
        desc: String,
        /// The endpoint's frames have killed the process too often: it is not to come again.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        aside: bool,
    },
    /// The ports of the oldest `Listen` not acknowledged yet are served, or not all of them.
    Listened {
        /// Why not.
        error: Option<String>,
    },
    /// The ports of the oldest `Unlisten` not acknowledged yet are closed.
    Unlistened,
    /// What a verb of the control socket came to.
    Answer {
        /// That of the `Ask`.
        id: u64,
        /// What it returns, or why it is refused.
        result: Result<Value, ApiError>,
    },
    /// A capture that was asked for writes no more.
    CaptureEnded {
        /// What became of it.
        status: CaptureStatus,
    },
}

/// Why a message could not be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The socket failed.
    #[error("attach connection: cannot {what}")]
    Socket {
        /// Call that failed.
        what: &'static str,
        /// Its errno.
        #[source]
        source: nix::Error,
    },
    /// The other side is gone.
    #[error("attach connection closed by the other side")]
    Closed,
    /// Not a message of this protocol.
    #[error("attach connection: bad message")]
    Json(#[from] serde_json::Error),
    /// Cut by the kernel or over our bound.
    #[error("attach connection: message larger than {MAX_MESSAGE} bytes or with more than {MAX_FDS} descriptors")]
    TooLarge,
}

/// Bytes of records in one message, half of what may be in it.
const ZONE_PART: usize = MAX_MESSAGE / 2;

/// The messages that tell `records`; at least one, since none is told too.
pub fn zone_messages(records: Vec<Record>) -> Result<Vec<ToNetwork>, AttachError> {
    let mut messages = Vec::new();
    let (mut part, mut size) = (Vec::new(), 0);
    for record in records {
        let length = serde_json::to_vec(&record)?.len() + 1;
        if size + length > ZONE_PART && !part.is_empty() {
            messages.push(ToNetwork::Zone { records: std::mem::take(&mut part), more: true });
            size = 0;
        }
        size += length;
        part.push(record);
    }
    messages.push(ToNetwork::Zone { records: part, more: false });
    Ok(messages)
}

/// The parts of a zone that came so far. Bounded: what is beyond `limit` records is not kept but for one, so that the
/// zone is refused as too large.
#[derive(Clone, Debug, Default)]
pub struct ZoneParts(Vec<Record>);

impl ZoneParts {
    /// Takes a part; returns all with the last.
    pub fn add(&mut self, records: Vec<Record>, more: bool, limit: usize) -> Option<Vec<Record>> {
        let room = limit.saturating_add(1).saturating_sub(self.0.len());
        self.0.extend(records.into_iter().take(room));
        (!more).then(|| std::mem::take(&mut self.0))
    }
}

/// Sends one message with its descriptors (at most [`MAX_FDS`]).
pub fn send<T: Serialize>(conn: impl AsFd, message: &T, fds: &[RawFd]) -> Result<(), AttachError> {
    send_text(conn, &text(message)?, fds)
}

/// One message as it travels.
pub fn text<T: Serialize>(message: &T) -> Result<Vec<u8>, AttachError> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MAX_MESSAGE { Err(AttachError::TooLarge) } else { Ok(text) }
}

/// Sends what [`text`] made, with its descriptors (at most [`MAX_FDS`]).
pub fn send_text(conn: impl AsFd, text: &[u8], fds: &[RawFd]) -> Result<(), AttachError> {
    if fds.len() > MAX_FDS {
        return Err(AttachError::TooLarge);
    }
    let iov = [IoSlice::new(text)];
    let rights = [ControlMessage::ScmRights(fds)];
    let cmsgs: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    loop {
        return match sendmsg::<()>(conn.as_fd().as_raw_fd(), &iov, cmsgs, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => Ok(()),
            Err(nix::Error::EINTR) => continue,
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => Err(AttachError::Closed),
            Err(source) => Err(AttachError::Socket { what: "send", source }),
        };
    }
}

/// Receives one message and its descriptors, close-on-exec; where our limit on them is reached, fewer than were sent. Blocks unless the socket is non-blocking (then EAGAIN
/// comes back as [`AttachError::Socket`]).
pub fn recv<T: DeserializeOwned>(conn: impl AsFd) -> Result<(T, Vec<OwnedFd>), AttachError> {
    let mut text = vec![0u8; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(&mut text)];
    let mut reset = false;
    let message = loop {
        match recvmsg::<()>(conn.as_fd().as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(nix::Error::EINTR) => {}
            // Told once, if the other side closed with something of ours unread (net/unix/af_unix.c, unix_release_sock): its
            // last words are still to be read.
            Err(nix::Error::ECONNRESET) if !std::mem::replace(&mut reset, true) => {}
            Err(nix::Error::ECONNRESET) => return Err(AttachError::Closed),
            Err(source) => return Err(AttachError::Socket { what: "receive", source }),
        }
    };
    let mut fds = Vec::new();
    if let Ok(cmsgs) = message.cmsgs() {
        for cmsg in cmsgs {
            if let ControlMessageOwned::ScmRights(raw) = cmsg {
                fds.extend(raw.into_iter().map(crate::sys::fd::adopt));
            }
        }
    }
    let bytes = message.bytes;
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(AttachError::TooLarge);
    }
    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        // The kernel gives as many as fit our table (scm_detach_fds, net/core/scm.c). Whoever wants more of them than came
        // refuses what they are for; the connection is worth more than that.
        tracing::warn!(
            "a descriptor that was sent cannot be had here: the limit on open files (RLIMIT_NOFILE) is reached"
        );
    }
    if bytes == 0 {
        return Err(AttachError::Closed);
    }
    Ok((serde_json::from_slice(&text[..bytes])?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: usize, text: usize) -> Vec<Record> {
        let record = |n| Record::parse(&format!("n{n}.example"), "TXT", &"\\".repeat(text), 60).expect("a record");
        (0..count).map(record).collect()
    }

    #[test]
    fn a_zone_of_any_size_travels() {
        let (one, other) = std::os::unix::net::UnixDatagram::pair().expect("socketpair");
        for (count, text) in [(0, 0), (1, 10), (4096, 10), (200, 2048)] {
            let records = records(count, text);
            let messages = zone_messages(records.clone()).expect("JSON");
            let mut parts = ZoneParts::default();
            for (at, message) in messages.iter().enumerate() {
                send(&one, message, &[]).expect("fits a message");
                let (ToNetwork::Zone { records: part, more }, _) = recv::<ToNetwork>(&other).expect("a message") else {
                    panic!("another message");
                };
                assert_eq!(more, at + 1 < messages.len());
                if let Some(whole) = parts.add(part, more, 4096) {
                    assert!(!more && whole == records, "{count} records");
                }
            }
            assert!(parts.0.is_empty(), "it begins anew");
        }
    }

    #[test]
    fn a_zone_too_large_is_seen_as_such() {
        let mut parts = ZoneParts::default();
        for _ in 0..9 {
            assert_eq!(parts.add(records(4, 1), true, 10), None);
        }
        assert_eq!(parts.0.len(), 11);
        assert_eq!(parts.add(Vec::new(), false, 10).map(|all| all.len()), Some(11));
    }

    #[test]
    fn last_words_are_heard_though_ours_were_not() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (one, other) = pair.expect("socketpair");
        send(&one, &"unread", &[]).expect("sent");
        send(&other, &"last words", &[]).expect("sent");
        drop(other);
        assert_eq!(recv::<String>(&one).map(|(text, _)| text).ok().as_deref(), Some("last words"));
        assert!(matches!(recv::<String>(&one), Err(AttachError::Closed)));
    }

    #[test]
    fn messages_of_version_1_are_read() {
        let old = r#"{"HostDns":{"servers":["192.0.2.53:53"]}}"#;
        let servers = vec!["192.0.2.53:53".parse().expect("address")];
        let read: ToNetwork = serde_json::from_str(old).expect("a message");
        assert_eq!(read, ToNetwork::HostDns { servers, zones: Vec::new() });
    }
}
