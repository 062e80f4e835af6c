//! Host UDP sockets.
//!
//! Unconnected (one mapping serves every destination), with the error queue on (ICMP errors go back to the guest), GRO
//! on, and don't-fragment switched per datagram to what the guest asked for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use socket2::SockRef;

use super::budget;
use crate::sys::msg::set_option;

/// A mapping's socket.
#[derive(Debug)]
pub struct Datagram {
    fd: OwnedFd,
    v6: bool,
    dont_fragment: Option<bool>,
}

/// Switches the error queue on, GRO, and larger buffers; all are optional.
fn common(fd: BorrowedFd<'_>, v6: bool) {
    let _ = if v6 {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)
    } else {
        set_option(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
    };
    let _ = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    // The kernel gives at most net.core.rmem_max, twice what a socket has by default: room for a burst while the data
    // plane serves others.
    let socket = SockRef::from(&fd);
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
}

/// Socket buffer asked for, bytes: some ten milliseconds of a gigabit.
const BUFFER: usize = 1 << 20;

/// Prepares a published port's socket, which the monitor made: error queue, GRO, and the local address of each datagram.
pub fn prepare_published(fd: BorrowedFd<'_>, v6: bool) {
    common(fd, v6);
    let _ = if v6 {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    };
}

impl Datagram {
    /// A socket of one family, bound to `source` or to any address, on a port of the host's choice.
    pub fn new(v6: bool, source: Option<IpAddr>) -> io::Result<Self> {
        let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let fd = socket(family, SockType::Datagram, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        budget::check(&fd)?;
        let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        common(fd.as_fd(), v6);
        if v6 {
            set_option(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        }
        // Bound at birth, so that the port is the same whatever is sent first.
        SockRef::from(&fd).bind(&SocketAddr::new(source.unwrap_or(any), 0).into())?;
        Ok(Self { fd, v6, dont_fragment: None })
    }

    /// Sets don't-fragment for what is sent next. Set: path MTU discovery, EMSGSIZE above it. Not set: the host may
    /// fragment.
    pub fn set_dont_fragment(&mut self, on: bool) {
        if self.dont_fragment == Some(on) {
            return;
        }
        self.dont_fragment = Some(on);
        set_discovery(self.fd.as_fd(), self.v6, on);
    }
}

/// Path MTU discovery on (never fragment, EMSGSIZE above the path MTU) or off (the host may fragment).
pub fn set_discovery(fd: BorrowedFd<'_>, v6: bool, on: bool) {
    let (level, name, mode) = match (v6, on) {
        (true, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
        (true, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        (false, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (false, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
    };
    // A kernel without the option fragments as it likes; traffic goes on.
    let _ = set_option(fd, level, name, mode);
}

impl AsFd for Datagram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
