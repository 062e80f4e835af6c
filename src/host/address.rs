//! The host's own address on its default route: what the gateway address stands for.
//!
//! Asked by connecting a UDP socket to a documentation address, which sends nothing: the kernel's route decides. Where
//! there is no default route there is no address, and the gateway alias is unreachable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// TEST-NET-1 (RFC 5737) and the documentation prefix (RFC 3849): routed by default routes only.
const PROBE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

fn source_towards(probe: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = match probe {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((probe, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

/// The host's IPv4 address on its default route.
pub fn default_v4() -> Option<Ipv4Addr> {
    match source_towards(IpAddr::V4(PROBE_V4))? {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// The host's IPv6 address on its default route.
pub fn default_v6() -> Option<Ipv6Addr> {
    match source_towards(IpAddr::V6(PROBE_V6))? {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    }
}
