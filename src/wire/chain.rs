//! The IPv6 header chain: from the fixed header to the transport header (RFC 8200 §4).
//!
//! Walked with a bound (the packet's own length; every step moves forward by at least eight bytes) and without copying.
//! Only what tapway must know is remembered: which transport it is and where, whether and where there is a fragment
//! header, and which byte names each of them. Options inside the headers are not looked at.

use std::net::Ipv6Addr;

/// Length of the fixed IPv6 header.
pub const IPV6_HEADER: usize = 40;
/// Length of a fragment header (RFC 8200 §4.5).
pub const FRAGMENT_HEADER: usize = 8;

/// Hop-by-hop options (0), only directly after the fixed header.
const HOP_BY_HOP: u8 = 0;
/// Routing header (43).
const ROUTING: u8 = 43;
/// Fragment header (44).
pub const FRAGMENT: u8 = 44;
/// Authentication header (51): its length counts four-byte units.
const AUTHENTICATION: u8 = 51;
/// Destination options (60).
const DESTINATION: u8 = 60;

/// A fragment header, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Where the fragment header starts in the packet.
    pub at: usize,
    /// Which byte of the packet names it (the preceding "next header" field).
    pub named_by: usize,
    /// What follows it in the reassembled packet.
    pub next_header: u8,
    /// Offset of this fragment's data in the fragmentable part, in bytes.
    pub offset: usize,
    /// More fragments follow.
    pub more: bool,
    /// Identification.
    pub ident: u32,
}

/// What the chain leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Protocol number of the first header that is no extension header. 59 means that nothing follows.
    pub protocol: u8,
    /// Where that header starts; may equal the packet's length.
    pub at: usize,
    /// Which byte of the packet names it.
    pub named_by: usize,
    /// The fragment header, if there is one. In a fragment that is not the first the chain ends there: `protocol` is
    /// then the fragment header's word for what the first fragment starts with, and `at` is where the data starts.
    pub fragment: Option<FragmentHeader>,
    /// End of the part that every fragment repeats: the fixed header, hop-by-hop options, and all up to a routing header.
    pub per_fragment: usize,
    /// Which byte names what follows the per-fragment part.
    pub per_fragment_named_by: usize,
}

/// Follows the chain of one IPv6 packet. None where it is shorter than its headers say or the version is not 6.
pub fn walk(packet: &[u8]) -> Option<Chain> {
    if packet.len() < IPV6_HEADER || packet[0] >> 4 != 6 {
        return None;
    }
    let mut named_by = 6;
    let mut at = IPV6_HEADER;
    let mut fragment = None;
    let mut per_fragment = (IPV6_HEADER, 6);
    loop {
        let protocol = packet[named_by];
        let length = match protocol {
            HOP_BY_HOP if at == IPV6_HEADER => 8 * (usize::from(*packet.get(at + 1)?) + 1),
            ROUTING | DESTINATION => 8 * (usize::from(*packet.get(at + 1)?) + 1),
            AUTHENTICATION => 4 * (usize::from(*packet.get(at + 1)?) + 2),
            FRAGMENT if fragment.is_none() => {
                let header = fragment_header(packet, at, named_by)?;
                fragment = Some(header);
                if header.offset != 0 {
                    return Some(Chain {
                        protocol: header.next_header,
                        at: at + FRAGMENT_HEADER,
                        named_by: at,
                        fragment,
                        per_fragment: per_fragment.0,
                        per_fragment_named_by: per_fragment.1,
                    });
                }
                FRAGMENT_HEADER
            }
            _ => {
                return Some(Chain {
                    protocol,
                    at,
                    named_by,
                    fragment,
                    per_fragment: per_fragment.0,
                    per_fragment_named_by: per_fragment.1,
                });
            }
        };
        if packet.len() < at + length {
            return None;
        }
        if fragment.is_none() && matches!(protocol, HOP_BY_HOP | ROUTING) {
            per_fragment = (at + length, at);
        }
        named_by = at;
        at += length;
    }
}

fn fragment_header(packet: &[u8], at: usize, named_by: usize) -> Option<FragmentHeader> {
    let header: &[u8; FRAGMENT_HEADER] = packet.get(at..at + FRAGMENT_HEADER)?.try_into().ok()?;
    let offset_flags = u16::from_be_bytes([header[2], header[3]]);
    Some(FragmentHeader {
        at,
        named_by,
        next_header: header[0],
        offset: usize::from(offset_flags & 0xfff8),
        more: offset_flags & 1 != 0,
        ident: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
    })
}

/// Source and destination of an IPv6 packet; the caller has checked that the fixed header is there.
pub fn addresses(packet: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    Some((source.into(), destination.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fixed(next_header: u8, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
        packet[6] = next_header;
        packet[7] = 64;
        packet
    }

    #[test]
    fn plain_udp() {
        let mut packet = fixed(17, 8);
        packet.extend([0; 8]);
        let chain = walk(&packet).expect("valid");
        assert_eq!((chain.protocol, chain.at, chain.named_by), (17, 40, 6));
        assert_eq!((chain.fragment, chain.per_fragment), (None, 40));
    }

    #[test]
    fn hop_by_hop_routing_destination_fragment_udp() {
        let mut packet = fixed(0, 0);
        packet.extend([43, 0, 1, 4, 0, 0, 0, 0]); // hop-by-hop, at 40
        packet.extend([44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // routing, at 48
        packet.extend([60, 0, 0, 1, 1, 2, 3, 4]); // fragment, at 64: offset 0, more
        packet.extend([17, 0, 1, 4, 0, 0, 0, 0]); // destination options, at 72
        packet.extend([9; 8]);
        let chain = walk(&packet).expect("valid");
        assert_eq!((chain.protocol, chain.at, chain.named_by), (17, 80, 72));
        let fragment = chain.fragment.expect("fragment header");
        assert_eq!((fragment.at, fragment.named_by, fragment.next_header), (64, 48, 60));
        assert_eq!((fragment.offset, fragment.more, fragment.ident), (0, true, 0x0102_0304));
        assert_eq!((chain.per_fragment, chain.per_fragment_named_by), (64, 48));
    }

    #[test]
    fn later_fragment_ends_the_chain() {
        let mut packet = fixed(44, 16);
        packet.extend([60, 0, 0, 17, 0, 0, 0, 1]);
        packet.extend([0xff; 8]);
        let chain = walk(&packet).expect("valid");
        let fragment = chain.fragment.expect("fragment header");
        assert_eq!((fragment.offset, fragment.more), (16, true));
        assert_eq!((chain.protocol, chain.at), (60, 48));
    }

    #[test]
    fn hop_by_hop_elsewhere_is_not_followed() {
        let mut packet = fixed(60, 16);
        packet.extend([0, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        let chain = walk(&packet).expect("valid");
        assert_eq!((chain.protocol, chain.at), (0, 48));
    }

    #[test]
    fn authentication_header_counts_four_byte_units() {
        let mut packet = fixed(51, 24);
        packet.extend([17, 4, 0, 0]);
        packet.extend([0; 20]);
        assert_eq!(walk(&packet).map(|c| (c.protocol, c.at)), Some((17, 64)));
    }

    #[test]
    fn cut_anywhere_in_the_chain_is_none() {
        let mut packet = fixed(0, 0);
        packet.extend([44, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend([17, 0, 0, 1, 1, 2, 3, 4]);
        for length in 0..packet.len() {
            assert_eq!(walk(&packet[..length]), None, "length {length}");
        }
        assert!(walk(&packet).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400), next in prop_oneof![Just(0u8), Just(43), Just(44), Just(51), Just(60)]) {
            let mut packet = bytes;
            if packet.len() > 6 {
                packet[0] = 0x60;
                packet[6] = next;
            }
            if let Some(chain) = walk(&packet) {
                prop_assert!(chain.at <= packet.len());
                prop_assert!(chain.named_by < packet.len());
                prop_assert!(chain.per_fragment <= chain.at);
            }
        }
    }
}
