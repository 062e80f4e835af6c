//! Binding published ports on the host, as the user: before anything else is started, and when the control socket asks.
//!
//! All or nothing: the first port that cannot be had fails the lot, with its number, and what was bound is released.
//! Without a host address a port is bound on 0.0.0.0 and on [::] (IPv6 only), one number for both, also where the kernel
//! chooses it. A host without IPv6 has the IPv4 half alone.
//!
//! What the sockets are: `host::published`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use super::published::{self, PortError};
use crate::network::config::Listener;
use crate::network::publish::{HostPort, Publish};

/// How often a chosen port is given up because its number is taken in the other family. Docker tries ten.
const CHOICES: u32 = 32;

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

/// How many sockets a publication takes at most.
pub fn sockets(publish: &Publish) -> usize {
    if publish.host.is_some() { 1 } else { 2 }
}

fn bind_one(host: IpAddr, port: u16, publish: &Publish) -> Result<(Listener, OwnedFd), PortError> {
    published::bind_one((host, port, publish.proto), None, publish.guest_port)
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
}
