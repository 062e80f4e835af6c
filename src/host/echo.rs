//! Host ping sockets (`SOCK_DGRAM` with `IPPROTO_ICMP` or `IPPROTO_ICMPV6`, net/ipv4/ping.c).
//!
//! The kernel writes its own identifier and checksum; sequence number and data are ours. net.ipv4.ping_group_range decides
//! who may have one; where the user may not, only the gateway answers pings.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::budget;
use crate::sys::msg::set_option;

/// Bytes of an ICMP echo header.
pub const ECHO_HDR_LEN: usize = 8;

/// A session's socket.
#[derive(Debug)]
pub struct Echo {
    fd: OwnedFd,
    v6: bool,
    dont_fragment: Option<bool>,
}

impl Echo {
    /// A ping socket of one family.
    pub fn new(v6: bool, source: Option<IpAddr>) -> io::Result<Self> {
        let (domain, protocol) = if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
        socket.set_nonblocking(true)?;
        let fd = OwnedFd::from(socket);
        budget::check(&fd)?;
        let (level, error, ttl) = if v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, libc::IPV6_RECVHOPLIMIT)
        } else {
            (libc::IPPROTO_IP, libc::IP_RECVERR, libc::IP_RECVTTL)
        };
        let _ = set_option(fd.as_fd(), level, error, 1);
        let _ = set_option(fd.as_fd(), level, ttl, 1);
        if let Some(source) = source {
            SockRef::from(&fd).bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(Self { fd, v6, dont_fragment: None })
    }

    /// As for UDP: set, path MTU discovery; not set, the host may fragment.
    pub fn set_dont_fragment(&mut self, on: bool) {
        if self.dont_fragment == Some(on) {
            return;
        }
        self.dont_fragment = Some(on);
        crate::host::datagram::set_discovery(self.fd.as_fd(), self.v6, on);
    }

    /// Whether it is of the IPv6 family.
    pub fn is_v6(&self) -> bool {
        self.v6
    }
}

/// Writes an echo request's header; the kernel fills identifier and checksum.
pub fn write_request(out: &mut [u8], v6: bool, seq: u16) {
    out[..ECHO_HDR_LEN].fill(0);
    out[0] = if v6 { 128 } else { 8 };
    out[6..8].copy_from_slice(&seq.to_be_bytes());
}

/// The sequence number of an echo reply; `None` for anything else.
pub fn read_reply(message: &[u8], v6: bool) -> Option<u16> {
    let reply = if v6 { 129 } else { 0 };
    (message.len() >= ECHO_HDR_LEN && message[0] == reply).then(|| u16::from_be_bytes([message[6], message[7]]))
}

/// The sequence number of an echo request that comes back in the error queue.
pub fn read_request(message: &[u8]) -> Option<u16> {
    (message.len() >= ECHO_HDR_LEN).then(|| u16::from_be_bytes([message[6], message[7]]))
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
