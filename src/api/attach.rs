//! The attach protocol: how a monitor hands an endpoint to a network process.
//!
//! A connected `SOCK_SEQPACKET` pair; each message is one JSON value with the descriptors it names as SCM_RIGHTS. The
//! open connection is the lease: when it closes, the network process drops the endpoint and, being empty, exits.
//!
//! ```text
//! monitor                                  network process
//!   Attach {endpoint}  + [tap, pcap?]  ──►
//!   Listen {listeners} + [fd; n ≤ 250] ──►   (as often as needed)
//!   HostDns {...}                      ──►   (again whenever the host's resolv.conf changes)
//!   Start                              ──►
//!                                      ◄──  Ready | Failed {desc}
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::network::config::{EndpointConfig, Listener};

/// Version of the protocol; a network process serves monitors of its own or any older version.
pub const VERSION: u32 = 1;

/// Most descriptors in one message. The kernel allows 253 (SCM_MAX_FD, include/net/scm.h).
pub const MAX_FDS: usize = 250;

/// Largest JSON text of one message, far above a batch of 250 listeners. A longer one is refused, never cut.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Monitor → network process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNetwork {
    /// The endpoint. Descriptors: the TAP, then, if `pcap`, the open capture file.
    Attach {
        /// [`VERSION`] of the monitor.
        version: u32,
        /// Addresses and policy.
        endpoint: Box<EndpointConfig>,
        /// A capture file follows the TAP.
        pcap: bool,
    },
    /// Published ports; one descriptor for each, in order.
    Listen {
        /// What each descriptor is.
        listeners: Vec<Listener>,
    },
    /// Upstream name servers: the user's (--dns) or the host's resolv.conf. Sent again on each change.
    HostDns {
        /// Servers in order of preference; empty means that there are none and queries get SERVFAIL.
        servers: Vec<SocketAddr>,
    },
    /// Everything is told: begin.
    Start,
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

/// Sends one message with its descriptors (at most [`MAX_FDS`]).
pub fn send<T: Serialize>(conn: impl AsFd, message: &T, fds: &[RawFd]) -> Result<(), AttachError> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(AttachError::TooLarge);
    }
    let iov = [IoSlice::new(&text)];
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

/// Receives one message and its descriptors, close-on-exec. Blocks unless the socket is non-blocking (then EAGAIN
/// comes back as [`AttachError::Socket`]).
pub fn recv<T: DeserializeOwned>(conn: impl AsFd) -> Result<(T, Vec<OwnedFd>), AttachError> {
    let mut text = vec![0u8; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(&mut text)];
    let message = loop {
        match recvmsg::<()>(conn.as_fd().as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => break message,
            Err(nix::Error::EINTR) => {}
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
    let (bytes, cut) = (message.bytes, message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
    if cut {
        return Err(AttachError::TooLarge);
    }
    if bytes == 0 {
        return Err(AttachError::Closed);
    }
    Ok((serde_json::from_slice(&text[..bytes])?, fds))
}
