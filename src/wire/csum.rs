//! Internet checksums (RFC 1071) for frames that we finish ourselves.
//!
//! Towards a TAP with checksum offload only the pseudo-header sum is written; without it the whole sum is.

use std::net::IpAddr;

/// Folds a 32-bit accumulator to 16 bits.
const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn add_bytes(mut sum: u64, data: &[u8]) -> u64 {
    // Four bytes a step; the fold at the end makes wider words equivalent (RFC 1071, section 2). Wrapping, though it takes 16 GiB to
    // get there: a check at each step is what keeps the compiler from adding several at once (+73 % for a frame that is cut).
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        sum = sum.wrapping_add(u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]])));
    }
    let rest = chunks.remainder();
    let mut last = [0u8; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum.wrapping_add(u64::from(u32::from_be_bytes(last)))
}

fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u64 {
    let sum = u64::from(protocol) + len as u64;
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => add_bytes(add_bytes(sum, &s.octets()), &d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => add_bytes(add_bytes(sum, &s.octets()), &d.octets()),
        // Mixed families never reach a frame: a flow's two guest-side addresses share one.
        _ => sum,
    }
}

/// The pseudo-header sum, not complemented: what NEEDS_CSUM wants in the checksum field.
pub fn partial(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u16 {
    fold(pseudo(src, dst, protocol, len))
}

/// The full transport checksum of `segment`, whose own checksum field must be zero.
pub fn full(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    !fold(add_bytes(pseudo(src, dst, protocol, segment.len()), segment))
}

/// Whether `segment`, checksum field included, sums to zero.
pub fn verify(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> bool {
    fold(add_bytes(pseudo(src, dst, protocol, segment.len()), segment)) == 0xffff
}

/// Plain checksum of a header or ICMPv4 message whose checksum field is zero.
pub fn plain(data: &[u8]) -> u16 {
    !fold(add_bytes(0, data))
}

/// Whether `data`, checksum field included, sums to zero.
pub fn plain_ok(data: &[u8]) -> bool {
    fold(add_bytes(0, data)) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn rfc1071_example_and_odd_lengths() {
        // RFC 1071, section 3: the example sums to ddf2.
        assert_eq!(plain(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(plain(&[0x01]), !0x0100);
        assert_eq!(plain(&[]), 0xffff);
    }

    #[test]
    fn full_verifies_for_both_families() {
        let (s4, d4) = (IpAddr::V4(Ipv4Addr::new(10, 0, 2, 100)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        let (s6, d6) = (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9)));
        for (src, dst) in [(s4, d4), (s6, d6)] {
            for len in [8usize, 9, 20, 31, 1461] {
                let mut segment: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
                segment[6..8].fill(0);
                let sum = full(src, dst, 17, &segment);
                segment[6..8].copy_from_slice(&sum.to_be_bytes());
                assert!(verify(src, dst, 17, &segment));
                segment[0] ^= 1;
                assert!(!verify(src, dst, 17, &segment));
            }
        }
    }
}
