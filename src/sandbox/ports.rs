//! Binding published ports on the host, as the user, before anything else is started.
//!
//! All or nothing: the first port that cannot be had fails the lot, with its number, and what was bound is released.
//! Without a host address a port is bound on 0.0.0.0 and on [::] (IPv6 only), one number for both, also where the kernel
//! chooses it. A host without IPv6 has the IPv4 half alone.
//!
//! TCP sockets listen from here on: connections that come before the data plane is there wait in the backlog. They carry
//! SO_LINGER {1, 0}, which accepted sockets inherit: a death is a reset and never a clean end (see the architecture).
//! UDP sockets tell each datagram's destination (PKTINFO), so that replies leave from the address that the client used.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use crate::network::config::{Listener, Proto};
use crate::network::publish::{HostPort, Publish};

/// Connections that wait for the data plane; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// How often a chosen port is given up because its number is taken in the other family. Docker tries ten.
const CHOICES: u32 = 32;

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

/// Binds all of them.
pub fn bind_all(ports: &[Publish]) -> Result<Vec<(Listener, OwnedFd)>, PortError> {
    let mut bound = Vec::new();
    for publish in ports {
        match publish.host_port {
            HostPort::Fixed(port) => bind_number(publish, port, &mut bound)?,
            HostPort::Chosen => bind_chosen(publish, &mut bound)?,
            HostPort::FirstOf(first, last) => {
                let free = (first..=last).find_map(|port| match bind_number(publish, port, &mut bound) {
                    Ok(()) => Some(Ok(())),
                    Err(PortError::InUse { .. }) => None,
                    Err(error) => Some(Err(error)),
                });
                free.unwrap_or(Err(PortError::NoneFree { first, last, proto: publish.proto }))?;
            }
        }
    }
    Ok(bound)
}

/// Binds one number on every address that the publication means; adds nothing to `bound` on failure.
fn bind_number(publish: &Publish, port: u16, bound: &mut Vec<(Listener, OwnedFd)>) -> Result<(), PortError> {
    let mut both = Vec::with_capacity(2);
    if let Some(host) = publish.host {
        both.push(bind_one(host, port, publish)?);
    } else {
        let first = bind_one(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port, publish)?;
        let number = first.0.host_port;
        both.push(first);
        match bind_one(IpAddr::V6(Ipv6Addr::UNSPECIFIED), number, publish) {
            Ok(second) => both.push(second),
            Err(error) if no_ipv6(&error) => {}
            Err(error) => return Err(error),
        }
    }
    bound.append(&mut both);
    Ok(())
}

/// Lets the kernel choose a number that is free on every address.
fn bind_chosen(publish: &Publish, bound: &mut Vec<(Listener, OwnedFd)>) -> Result<(), PortError> {
    let mut tries = 1;
    loop {
        match bind_number(publish, 0, bound) {
            Err(PortError::InUse { .. }) if tries < CHOICES => tries += 1,
            other => return other,
        }
    }
}

/// True if the host has no IPv6 at all.
fn no_ipv6(error: &PortError) -> bool {
    match error {
        PortError::NotOurs { .. } => true,
        PortError::Other { source, .. } => source.raw_os_error() == Some(libc::EAFNOSUPPORT),
        _ => false,
    }
}

fn bind_one(host: IpAddr, port: u16, publish: &Publish) -> Result<(Listener, OwnedFd), PortError> {
    let proto = publish.proto;
    let socket = open(host, port, proto).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => PortError::InUse { port, proto, host },
        Some(libc::EACCES) => PortError::Privileged { port, proto, limit: unprivileged_port_start() },
        Some(libc::EADDRNOTAVAIL) => PortError::NotOurs { port, proto, host },
        _ => PortError::Other { port, proto, host, source },
    })?;
    let number = socket.local_addr().map(|address| address.as_socket().map_or(port, |a| a.port()));
    let host_port = number.map_err(|source| PortError::Other { port, proto, host, source })?;
    let listener = Listener { proto, host_addr: host, host_port, guest_addr: None, guest_port: publish.guest_port };
    Ok((listener, OwnedFd::from(socket)))
}

fn open(host: IpAddr, port: u16, proto: Proto) -> io::Result<Socket> {
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
        socket.set_linger(Some(Duration::ZERO))?;
    } else if host.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    socket.bind(&SocketAddr::new(host, port).into())?;
    if proto == Proto::Tcp {
        socket.listen(BACKLOG)?;
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
    use crate::network::publish::parse;

    fn bind(spec: &str) -> Result<Vec<(Listener, OwnedFd)>, PortError> {
        bind_all(&parse(spec).unwrap())
    }

    #[test]
    fn both_families_share_the_chosen_number() {
        for spec in ["80", "80/udp"] {
            let bound = bind(spec).unwrap();
            assert_eq!(bound.len(), 2);
            assert_eq!(bound[0].0.host_port, bound[1].0.host_port);
            assert_ne!(bound[0].0.host_port, 0);
            assert!(bound[0].0.host_addr.is_ipv4() && bound[1].0.host_addr.is_ipv6());
            assert!(bound.iter().all(|(listener, _)| listener.guest_port == 80));
        }
    }

    #[test]
    fn a_taken_port_is_named_and_nothing_is_kept() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = bind(&format!("127.0.0.1:{port}:80")).unwrap_err().to_string();
        assert!(error.contains(&format!("port {port}/tcp on 127.0.0.1 is already in use")), "{error}");
        // The wildcard clashes, too; and its IPv6 half, bound or not, is free again after the failure.
        assert!(matches!(bind(&format!("{port}:80")), Err(PortError::InUse { .. })));
        std::net::TcpListener::bind(("::1", port)).unwrap();
        // UDP ports are others.
        assert_eq!(bind(&format!("127.0.0.1:{port}:80/udp")).unwrap().len(), 1);
    }

    #[test]
    fn the_ipv6_half_in_use_fails_the_whole() {
        let holder = std::net::TcpListener::bind("[::1]:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = bind(&format!("{port}:80")).unwrap_err();
        assert!(matches!(error, PortError::InUse { host: IpAddr::V6(_), .. }), "{error}");
        std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn the_first_free_of_a_range() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let last = port.saturating_add(20);
        let bound = bind(&format!("127.0.0.1:{port}-{last}:80")).unwrap();
        assert!(bound[0].0.host_port > port && bound[0].0.host_port <= last);
        let error = bind(&format!("127.0.0.1:{port}-{port}:80")).unwrap_err();
        assert!(matches!(error, PortError::InUse { .. }), "{error}");
    }

    #[test]
    fn foreign_addresses_are_named() {
        let error = bind("192.0.2.1:8080:80").unwrap_err().to_string();
        assert!(error.contains("192.0.2.1 is not an address of this host"), "{error}");
    }

    #[test]
    fn accepted_sockets_are_born_with_linger() {
        let bound = bind("127.0.0.1::80").unwrap();
        let listener = socket2::SockRef::from(&bound[0].1);
        assert_eq!(listener.linger().unwrap(), Some(Duration::ZERO));
        assert!(listener.nonblocking().unwrap());
    }
}
