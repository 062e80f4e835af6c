//! Published ports: sockets of the host that stand for a port of the guest. And ports of our own, which lead nowhere else.
//!
//! TCP sockets listen from here on: connections that come before the data plane is there wait in the backlog. They carry
//! what `host::stream` wants of every socket, which accepted ones inherit, SO_LINGER {1, 0} among it: a death is a reset and never a clean end (see the architecture).
//! UDP sockets tell each datagram's destination (PKTINFO), so that replies leave from the address that the client used.
//! An IPv6 socket is for IPv6 alone, so that both families of a port are had or refused one by one.
//!
//! The monitor binds before anything else is started (`host::ports`), a process without one at run time, under its
//! system call filter: `socket`, `setsockopt` (SO_REUSEADDR, SO_LINGER, IP_PKTINFO, IPV6_V6ONLY, IPV6_RECVPKTINFO),
//! `bind`, `listen`, `getsockname`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::stream;
use crate::network::config::{Listener, Proto};

/// Connections that wait for the data plane; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// The same for a port of our own: its clients are few.
const OWN_BACKLOG: i32 = 128;

/// Why a port is not published.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Somebody has it.
    #[error("port {port}/{proto} on {host} is already in use; choose another host port or stop what listens there")]
    InUse {
        /// Host port.
        port: u16,
        /// Transport.
        proto: Proto,
        /// Host address.
        host: IpAddr,
    },
    /// Below the limit of the host.
    #[error(
        "port {port}/{proto} needs a privilege: ports below {limit} are reserved by the sysctl \
         net.ipv4.ip_unprivileged_port_start; choose a higher port or set it to {port}"
    )]
    Privileged {
        /// Host port.
        port: u16,
        /// Transport.
        proto: Proto,
        /// The sysctl's value.
        limit: u16,
    },
    /// Not an address of this host.
    #[error("port {port}/{proto}: {host} is not an address of this host; see `ip address`")]
    NotOurs {
        /// Host port.
        port: u16,
        /// Transport.
        proto: Proto,
        /// Host address.
        host: IpAddr,
    },
    /// None of a range is free.
    #[error("none of the host ports {first}-{last}/{proto} is free; choose another range")]
    NoneFree {
        /// First of the range.
        first: u16,
        /// Last of the range.
        last: u16,
        /// Transport.
        proto: Proto,
    },
    /// Anything else.
    #[error("cannot bind port {port}/{proto} on {host}")]
    Other {
        /// Host port; 0 where the kernel was to choose.
        port: u16,
        /// Transport.
        proto: Proto,
        /// Host address.
        host: IpAddr,
        /// Errno.
        #[source]
        source: io::Error,
    },
}

/// Binds one socket (`port` 0: the kernel chooses) that leads to `guest_port`, on the endpoint's own address for
/// `guest_addr` None.
pub fn bind_one(
    (host, port, proto): (IpAddr, u16, Proto),
    guest_addr: Option<IpAddr>,
    guest_port: u16,
) -> Result<(Listener, OwnedFd), PortError> {
    let (host_port, socket) = bind((host, port, proto), BACKLOG, true)?;
    Ok((Listener { proto, host_addr: host, host_port, guest_addr, guest_port }, OwnedFd::from(socket)))
}

/// Binds a TCP port of our own (0: the kernel chooses) and listens; returns where. What is accepted there does not linger:
/// a reply arrives though its connection is closed behind it.
pub fn bind_own(at: SocketAddr) -> Result<(SocketAddr, OwnedFd), PortError> {
    let (port, socket) = bind((at.ip(), at.port(), Proto::Tcp), OWN_BACKLOG, false)?;
    Ok((SocketAddr::new(at.ip(), port), OwnedFd::from(socket)))
}

/// A bound socket and its port.
fn bind(at: (IpAddr, u16, Proto), backlog: i32, reset: bool) -> Result<(u16, Socket), PortError> {
    let (host, port, proto) = at;
    let socket = open(at, backlog, reset).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => PortError::InUse { port, proto, host },
        Some(libc::EACCES) => PortError::Privileged { port, proto, limit: unprivileged_port_start() },
        Some(libc::EADDRNOTAVAIL) => PortError::NotOurs { port, proto, host },
        _ => PortError::Other { port, proto, host, source },
    })?;
    let number = socket.local_addr().map(|address| address.as_socket().map_or(port, |a| a.port()));
    let number = number.map_err(|source| PortError::Other { port, proto, host, source })?;
    Ok((number, socket))
}

/// `reset`: connections end by a reset unless somebody says otherwise.
fn open((host, port, proto): (IpAddr, u16, Proto), backlog: i32, reset: bool) -> io::Result<Socket> {
    let kind = match proto {
        Proto::Tcp => Type::STREAM,
        Proto::Udp => Type::DGRAM,
    };
    let domain = if host.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), None)?;
    if host.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if proto == Proto::Tcp {
        // Connections of a predecessor in TIME-WAIT do not hold the port; a live listener still does.
        socket.set_reuse_address(true)?;
        if reset {
            stream::prepare(socket.as_fd());
        }
    } else if host.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    socket.bind(&SocketAddr::new(host, port).into())?;
    if proto == Proto::Tcp {
        socket.listen(backlog)?;
    }
    Ok(socket)
}

/// The first port that needs no privilege (Documentation/networking/ip-sysctl.rst; 1024 where it cannot be read).
fn unprivileged_port_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_are_born_with_linger() {
        let localhost = "127.0.0.1".parse().unwrap();
        let (listener, fd) = bind_one((localhost, 0, Proto::Tcp), None, 80).unwrap();
        assert_eq!((listener.guest_addr, listener.guest_port), (None, 80));
        assert_ne!(listener.host_port, 0);
        let socket = socket2::SockRef::from(&fd);
        assert_eq!(socket.linger().unwrap(), Some(std::time::Duration::ZERO));
        assert!(socket.nonblocking().unwrap());
    }

    #[test]
    fn a_port_of_our_own_lets_replies_arrive() {
        let (at, fd) = bind_own("[::1]:0".parse().unwrap()).unwrap();
        assert!(at.ip().is_ipv6() && at.port() != 0);
        let socket = socket2::SockRef::from(&fd);
        assert_eq!((socket.linger().unwrap(), socket.nonblocking().unwrap()), (None, true));
        let error = bind_own(at).unwrap_err().to_string();
        assert!(error.contains(&format!("port {}/tcp on ::1 is already in use", at.port())), "{error}");
        let error = bind_own("192.0.2.1:0".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1 is not an address of this host"), "{error}");
    }

    #[test]
    fn the_families_of_a_port_are_bound_one_by_one() {
        let guest = Some("10.0.2.15".parse().unwrap());
        for proto in [Proto::Tcp, Proto::Udp] {
            let (v6, _held) = bind_one(("::".parse().unwrap(), 0, proto), guest, 80).unwrap();
            assert_eq!(v6.guest_addr, guest);
            let (_, _too) = bind_one(("0.0.0.0".parse().unwrap(), v6.host_port, proto), guest, 80).unwrap();
            let error = bind_one(("::1".parse().unwrap(), v6.host_port, proto), guest, 80).unwrap_err();
            assert!(matches!(error, PortError::InUse { .. }), "{error}");
        }
    }
}
