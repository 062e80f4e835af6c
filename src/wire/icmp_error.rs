//! ICMP and ICMPv6 error messages, whole packets ready to be framed.
//!
//! One [`IcmpError`] says what happened in words of both families; [`emit`] chooses type and code, quotes the offending
//! packet and fills every checksum. [`from_host_error`] is the other end: what the host kernel's error queue reports for
//! a socket of ours (`struct sock_extended_err`) becomes the kind that the guest is told, so that `traceroute` and path
//! MTU discovery in the guest see what they would see outside.
//!
//! The rules about when *not* to send are kept here, because forgetting one makes a storm: never about an ICMP error,
//! never about a fragment other than the first, never to or about an address that is no single host (RFC 1122 §3.2.2,
//! RFC 1812 §4.3.2.7, RFC 4443 §2.4 (e)). Rate limits are the caller's, and so is the rule about link-layer broadcasts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{IpProtocol, checksum};

use super::chain::{self, IPV6_HEADER};

/// What went wrong with a packet, in words of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcmpError {
    /// No route (3/0; v6 1/0).
    NetUnreachable,
    /// The host did not answer on its link (3/1; v6 1/3).
    HostUnreachable,
    /// Nobody speaks that protocol there (3/2; v6 parameter problem 4/1).
    ProtocolUnreachable,
    /// Nobody listens on that port (3/3; v6 1/4).
    PortUnreachable,
    /// Forbidden by a filter, with a network's ban (3/9; v6 1/1).
    NetProhibited,
    /// Forbidden by a filter, with a host's ban: firewalld's usual answer (3/10; v6 1/1).
    HostProhibited,
    /// Forbidden by a filter (3/13; v6 1/1).
    AdminProhibited,
    /// Larger than a link on the way carries (3/4 with "don't fragment"; v6 packet too big, 2/0).
    FragmentationNeeded {
        /// Largest IP packet that passes, bytes.
        mtu: u32,
    },
    /// TTL or hop limit ran out on the way (11/0; v6 3/0).
    HopLimitExceeded,
    /// Fragments of the packet did not arrive in time (11/1; v6 3/1).
    ReassemblyTimeout,
}

/// Longest ICMP error for IPv4, headers included: what every host can take (RFC 1812 §4.3.2.3).
pub const MAX_LEN_V4: usize = 576;
/// Longest ICMPv6 error, headers included: the smallest MTU that IPv6 may meet (RFC 4443 §2.4 (c)).
pub const MAX_LEN_V6: usize = 1280;

/// TTL and hop limit of errors; Linux's default (`net.ipv4.ip_default_ttl`, 64; RFC 1700).
const HOP_LIMIT: u8 = 64;
/// Precedence "internetwork control", which errors should carry (RFC 1812 §4.3.2.5).
const TOS: u8 = 0xc0;
/// Smallest MTU of an IPv4 link (RFC 791 §3.2); a smaller one would be a lie or an attack.
const MIN_MTU_V4: u32 = 68;
const IPV4_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;

impl IcmpError {
    /// Type, code and the four bytes after the checksum for ICMP.
    fn v4(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::NetUnreachable => (3, 0, [0; 4]),
            Self::HostUnreachable => (3, 1, [0; 4]),
            Self::ProtocolUnreachable => (3, 2, [0; 4]),
            Self::PortUnreachable => (3, 3, [0; 4]),
            // RFC 1191 §4: the low half of the second word. Both bounds are ours; the field has 16 bits.
            Self::FragmentationNeeded { mtu } => (3, 4, mtu.clamp(MIN_MTU_V4, 0xffff).to_be_bytes()),
            Self::NetProhibited => (3, 9, [0; 4]),
            Self::HostProhibited => (3, 10, [0; 4]),
            Self::AdminProhibited => (3, 13, [0; 4]),
            Self::HopLimitExceeded => (11, 0, [0; 4]),
            Self::ReassemblyTimeout => (11, 1, [0; 4]),
        }
    }

    /// The same for ICMPv6. `named_by` is the offset of the byte that names the transport protocol.
    fn v6(self, named_by: usize) -> (u8, u8, [u8; 4]) {
        match self {
            Self::NetUnreachable => (1, 0, [0; 4]),
            Self::NetProhibited | Self::HostProhibited | Self::AdminProhibited => (1, 1, [0; 4]),
            Self::HostUnreachable => (1, 3, [0; 4]),
            Self::PortUnreachable => (1, 4, [0; 4]),
            // RFC 8201 §4: a node must not believe less than 1280, so saying less only confuses.
            Self::FragmentationNeeded { mtu } => (2, 0, mtu.max(MAX_LEN_V6 as u32).to_be_bytes()),
            Self::HopLimitExceeded => (3, 0, [0; 4]),
            Self::ReassemblyTimeout => (3, 1, [0; 4]),
            // RFC 4443 §3.4: "unrecognised next header", the pointer names the byte.
            Self::ProtocolUnreachable => (4, 1, (named_by as u32).to_be_bytes()),
        }
    }
}

/// The kind for an ICMP error that the host kernel reports on a socket (`ee_type`, `ee_code`, `ee_info` of
/// `struct sock_extended_err`, `linux/errqueue.h`; its origin is ICMP or ICMP6 by `v6`). `info` is the next-hop MTU
/// where the error is about size. None for what is no error about a packet of ours (source quench, redirects).
pub fn from_host_error(ee_type: u8, ee_code: u8, info: u32, v6: bool) -> Option<IcmpError> {
    Some(if v6 {
        match (ee_type, ee_code) {
            // 2: beyond scope of source address.
            (1, 0 | 2) => IcmpError::NetUnreachable,
            // 5: source address failed policy, 6: reject route; both are finer words for 1 (RFC 4443 §3.1).
            (1, 1 | 5 | 6) => IcmpError::AdminProhibited,
            (1, 3) => IcmpError::HostUnreachable,
            (1, 4) => IcmpError::PortUnreachable,
            (2, _) => IcmpError::FragmentationNeeded { mtu: info },
            (3, 0) => IcmpError::HopLimitExceeded,
            (3, 1) => IcmpError::ReassemblyTimeout,
            (4, 1) => IcmpError::ProtocolUnreachable,
            _ => return None,
        }
    } else {
        match (ee_type, ee_code) {
            // 5: source route failed, 6: network unknown, 11: unreachable for that type of service.
            (3, 0 | 5 | 6 | 11) => IcmpError::NetUnreachable,
            // 7: host unknown, 8: source host isolated, 12: unreachable for that type of service.
            (3, 1 | 7 | 8 | 12) => IcmpError::HostUnreachable,
            (3, 2) => IcmpError::ProtocolUnreachable,
            (3, 3) => IcmpError::PortUnreachable,
            (3, 4) => IcmpError::FragmentationNeeded { mtu: info },
            (3, 9) => IcmpError::NetProhibited,
            (3, 10) => IcmpError::HostProhibited,
            // 14: host precedence violation, 15: precedence cutoff (RFC 1812 §5.2.7.1).
            (3, 13..=15) => IcmpError::AdminProhibited,
            (11, 0) => IcmpError::HopLimitExceeded,
            (11, 1) => IcmpError::ReassemblyTimeout,
            _ => return None,
        }
    })
}

/// Writes a whole IP packet that tells `to` what went wrong with `original`, an IP packet that it sent (bytes after its
/// IP length, such as Ethernet padding, are not quoted). `from` is the address that complains. Returns its length.
///
/// None where the rules above forbid an error, where the families of `from`, `to` and `original` differ, where
/// `original` is not a sound IP packet, or where the error does not fit into `buf`.
pub fn emit(buf: &mut [u8], kind: IcmpError, from: IpAddr, to: IpAddr, original: &[u8]) -> Option<usize> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => emit_v4(buf, kind, from, to, original),
        (IpAddr::V6(from), IpAddr::V6(to)) => emit_v6(buf, kind, from, to, original),
        _ => None,
    }
}

/// An address that stands for exactly one host, so that an error may go to it (RFC 1812 §4.3.2.7).
fn single_host_v4(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224
}

fn emit_v4(buf: &mut [u8], kind: IcmpError, from: Ipv4Addr, to: Ipv4Addr, original: &[u8]) -> Option<usize> {
    let first = *original.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IPV4_HEADER || original.len() < header {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([original[2], original[3]]));
    if total < header {
        return None;
    }
    let original = &original[..original.len().min(total)];
    let later_fragment = u16::from_be_bytes([original[6], original[7]]) & 0x1fff != 0;
    let source = Ipv4Addr::new(original[12], original[13], original[14], original[15]);
    let destination = Ipv4Addr::new(original[16], original[17], original[18], original[19]);
    if later_fragment || !single_host_v4(source) || !single_host_v4(destination) || !single_host_v4(to) {
        return None;
    }
    if original[9] == PROTOCOL_ICMP {
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem. Without its type the
        // message cannot be told from an error.
        match original.get(header)? {
            3 | 4 | 5 | 11 | 12 => return None,
            _ => {}
        }
    }

    let quoted = original.len().min(MAX_LEN_V4 - IPV4_HEADER - ICMP_HEADER);
    let length = IPV4_HEADER + ICMP_HEADER + quoted;
    let packet = buf.get_mut(..length)?;
    let (kind, code, rest) = kind.v4();
    let (ip, icmp) = packet.split_at_mut(IPV4_HEADER);
    ip[0] = 0x45;
    ip[1] = TOS;
    ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    // Identification 0 is right for a packet that is never fragmented, which DF says (RFC 6864 §4.1).
    ip[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
    ip[8] = HOP_LIMIT;
    ip[9] = PROTOCOL_ICMP;
    ip[10..12].fill(0);
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&to.octets());
    let sum = !checksum::data(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    icmp[..4].copy_from_slice(&[kind, code, 0, 0]);
    icmp[4..8].copy_from_slice(&rest);
    icmp[8..].copy_from_slice(&original[..quoted]);
    let sum = !checksum::data(icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(length)
}

fn emit_v6(buf: &mut [u8], kind: IcmpError, from: Ipv6Addr, to: Ipv6Addr, original: &[u8]) -> Option<usize> {
    let payload = usize::from(u16::from_be_bytes([*original.get(4)?, *original.get(5)?]));
    let original = &original[..original.len().min(IPV6_HEADER + payload)];
    let chain = chain::walk(original)?;
    let (source, destination) = chain::addresses(original)?;
    // Only "packet too big" may answer a multicast packet (RFC 4443 §2.4 (e.3)).
    let multicast = destination.is_multicast() && !matches!(kind, IcmpError::FragmentationNeeded { .. });
    let no_host = |address: Ipv6Addr| address.is_unspecified() || address.is_multicast();
    if chain.fragment.is_some_and(|f| f.offset != 0) || multicast || no_host(source) || no_host(to) {
        return None;
    }
    if chain.protocol == PROTOCOL_ICMPV6 {
        // Errors have the high bit clear; 137 is a redirect (RFC 4443 §2.4 (e.1) and (e.2)).
        match original.get(chain.at)? {
            ..128 | 137 => return None,
            _ => {}
        }
    }

    let quoted = original.len().min(MAX_LEN_V6 - IPV6_HEADER - ICMP_HEADER);
    let length = IPV6_HEADER + ICMP_HEADER + quoted;
    let packet = buf.get_mut(..length)?;
    let (kind, code, rest) = kind.v6(chain.named_by);
    let (ip, icmp) = packet.split_at_mut(IPV6_HEADER);
    ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    ip[4..6].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
    ip[6] = PROTOCOL_ICMPV6;
    ip[7] = HOP_LIMIT;
    ip[8..24].copy_from_slice(&from.octets());
    ip[24..40].copy_from_slice(&to.octets());

    icmp[..4].copy_from_slice(&[kind, code, 0, 0]);
    icmp[4..8].copy_from_slice(&rest);
    icmp[8..].copy_from_slice(&original[..quoted]);
    let pseudo = checksum::pseudo_header_v6(&from, &to, IpProtocol::Icmpv6, icmp.len() as u32);
    let sum = !checksum::combine(&[pseudo, checksum::data(icmp)]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(length)
}

#[cfg(test)]
mod tests;
