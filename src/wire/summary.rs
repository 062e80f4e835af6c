//! Who talks to whom in one Ethernet frame: protocol, addresses and ports, and nothing else.
//!
//! For looking at traffic, so it takes any bytes and says what can be said: a frame that is cut or forged gives what its
//! intact beginning tells. Lengths and checksums are not checked; what the stack makes of the frame is its own affair.
//! Ports are told of TCP and UDP, whole or the first fragment. VLAN tags are not followed: the TAP has none.

use std::net::{IpAddr, Ipv4Addr};

use super::chain;
use super::vnet::ETH_HDR_LEN;

/// EtherTypes (IEEE 802 numbers, IANA).
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86DD;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4, with the number of its protocol.
    Ipv4(u8),
    /// IPv6, with the number of the first header that is no extension header. In a fragment behind the first it is what
    /// the fragment header names, which may be an extension header. None where the chain is cut.
    Ipv6(Option<u8>),
    /// ARP.
    Arp,
    /// Anything else.
    Other,
}

/// What one frame tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What it carries.
    pub kind: Kind,
    /// Source and destination; of ARP the protocol addresses of sender and target.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// Source and destination port.
    pub ports: Option<(u16, u16)>,
    /// A fragment that is not the first: its ports are in another frame.
    pub later_fragment: bool,
}

impl Summary {
    const OTHER: Self = Self { kind: Kind::Other, addresses: None, ports: None, later_fragment: false };

    /// Of an Ethernet frame, without a vnet header.
    pub fn of(frame: &[u8]) -> Self {
        let Some((header, packet)) = frame.split_at_checked(ETH_HDR_LEN) else { return Self::OTHER };
        match u16::from_be_bytes([header[12], header[13]]) {
            IPV4 => Self::of_ipv4(packet).unwrap_or(Self::OTHER),
            IPV6 => Self::of_ipv6(packet).unwrap_or(Self::OTHER),
            ARP => Self::of_arp(packet),
            _ => Self::OTHER,
        }
    }

    /// RFC 791, section 3.1.
    fn of_ipv4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; 20] = packet.get(..20)?.try_into().ok()?;
        if header[0] >> 4 != 4 {
            return None;
        }
        let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1FFF != 0;
        let at = 4 * usize::from(header[0] & 0x0F);
        let ports = if later_fragment || at < 20 { None } else { ports(header[9], packet, at) };
        Some(Self {
            kind: Kind::Ipv4(header[9]),
            addresses: Some((v4(&header[12..16])?, v4(&header[16..20])?)),
            ports,
            later_fragment,
        })
    }

    fn of_ipv6(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 != 6 {
            return None;
        }
        let (from, to) = chain::addresses(packet)?;
        let chain = chain::walk(packet);
        let later_fragment = chain.and_then(|chain| chain.fragment).is_some_and(|fragment| fragment.offset != 0);
        let ports = chain.filter(|_| !later_fragment).and_then(|chain| ports(chain.protocol, packet, chain.at));
        Some(Self {
            kind: Kind::Ipv6(chain.map(|chain| chain.protocol)),
            addresses: Some((from.into(), to.into())),
            ports,
            later_fragment,
        })
    }

    /// RFC 826; addresses of IPv4 over Ethernet only.
    fn of_arp(packet: &[u8]) -> Self {
        let addresses = match packet.get(..28) {
            Some(arp) if arp[..6] == [0, 1, 8, 0, 6, 4] => v4(&arp[14..18]).zip(v4(&arp[24..28])),
            _ => None,
        };
        Self { kind: Kind::Arp, addresses, ports: None, later_fragment: false }
    }
}

fn v4(bytes: &[u8]) -> Option<IpAddr> {
    let octets: [u8; 4] = bytes.try_into().ok()?;
    Some(Ipv4Addr::from(octets).into())
}

/// TCP and UDP both begin with them.
fn ports(number: u8, packet: &[u8], at: usize) -> Option<(u16, u16)> {
    if !matches!(number, protocol::TCP | protocol::UDP) {
        return None;
    }
    let bytes: &[u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some((u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
        [&[0; 12], &kind.to_be_bytes()[..], packet].concat()
    }

    /// IPv4 of 10.0.2.100 to 192.0.2.1 whose payload begins with ports 5000 and 53.
    fn ipv4(protocol: u8, options: usize, offset: u16) -> Vec<u8> {
        let mut packet = vec![0x45 + options as u8, 0, 0, 60, 0, 1];
        packet.extend(offset.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 10, 0, 2, 100, 192, 0, 2, 1]);
        packet.resize(20 + 4 * options, 1);
        packet.extend([0x13, 0x88, 0, 53, 0, 0, 0, 0]);
        ethernet(IPV4, &packet)
    }

    /// IPv6 of ::1:2 to ::3:4 with `chain` between the fixed header and ports 5000 and 53.
    fn ipv6(next: u8, chain: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 60, next, 64];
        packet.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]);
        packet.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 4]);
        packet.extend(chain);
        packet.extend([0x13, 0x88, 0, 53, 0, 0, 0, 0]);
        ethernet(IPV6, &packet)
    }

    #[test]
    fn ipv4_with_and_without_options() {
        for options in [0, 1, 10] {
            let seen = Summary::of(&ipv4(protocol::TCP, options, 0x4000));
            assert_eq!(seen.kind, Kind::Ipv4(protocol::TCP));
            assert_eq!(seen.addresses, Some(([10, 0, 2, 100].into(), [192, 0, 2, 1].into())));
            assert_eq!((seen.ports, seen.later_fragment), (Some((5000, 53)), false), "{options} words of options");
        }
        // A first fragment has its ports, a later one has something else there.
        assert_eq!(Summary::of(&ipv4(protocol::UDP, 0, 0x2000)).ports, Some((5000, 53)));
        let later = Summary::of(&ipv4(protocol::UDP, 0, 0x0001));
        assert_eq!((later.ports, later.later_fragment), (None, true));
        // ICMP's first bytes are no ports, nor are those behind a header that claims less than its own length.
        assert_eq!(Summary::of(&ipv4(protocol::ICMP, 0, 0)).ports, None);
        let mut short = ipv4(protocol::TCP, 0, 0);
        short[14] = 0x44;
        assert_eq!(Summary::of(&short).ports, None);
    }

    #[test]
    fn ipv6_with_extension_headers_and_fragments() {
        let hop_by_hop = [protocol::TCP, 0, 1, 4, 0, 0, 0, 0];
        for (next, chain) in [(protocol::TCP, &[][..]), (0, &hop_by_hop[..])] {
            let seen = Summary::of(&ipv6(next, chain));
            assert_eq!((seen.kind, seen.ports), (Kind::Ipv6(Some(protocol::TCP)), Some((5000, 53))));
            let expected: (IpAddr, IpAddr) = ("::1:2".parse().unwrap(), "::3:4".parse().unwrap());
            assert_eq!(seen.addresses, Some(expected));
        }
        let fragment = |offset: u8| [protocol::UDP, 0, 0, offset << 3, 0, 0, 0, 1];
        let first = Summary::of(&ipv6(44, &fragment(0)));
        assert_eq!((first.ports, first.later_fragment), (Some((5000, 53)), false));
        let later = Summary::of(&ipv6(44, &fragment(1)));
        assert_eq!((later.kind, later.ports), (Kind::Ipv6(Some(protocol::UDP)), None));
        assert!(later.later_fragment);
        // A chain that is cut still has addresses.
        let cut = Summary::of(&ipv6(0, &[])[..54]);
        assert_eq!((cut.kind, cut.addresses.is_some()), (Kind::Ipv6(None), true));
    }

    #[test]
    fn arp_and_others() {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend([2, 0, 0, 0, 0, 1, 10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        let seen = Summary::of(&ethernet(ARP, &arp));
        assert_eq!((seen.kind, seen.addresses), (Kind::Arp, Some(([10, 0, 2, 100].into(), [10, 0, 2, 2].into()))));
        assert_eq!(Summary::of(&ethernet(ARP, &arp[..20])).addresses, None);
        assert_eq!(Summary::of(&ethernet(0x88CC, &arp)), Summary::OTHER);
        assert_eq!(Summary::of(&ethernet(IPV6, &ipv4(6, 0, 0)[14..])), Summary::OTHER);
        assert_eq!(Summary::of(&[]), Summary::OTHER);
    }

    proptest! {
        #[test]
        fn any_bytes(
            mut frame in proptest::collection::vec(any::<u8>(), 0..200),
            kind in prop_oneof![Just(IPV4), Just(IPV6), Just(ARP), any::<u16>()],
            first in any::<u8>(),
        ) {
            if frame.len() > ETH_HDR_LEN {
                frame[12..14].copy_from_slice(&kind.to_be_bytes());
                frame[ETH_HDR_LEN] = first;
            }
            let seen = Summary::of(&frame);
            // Ports are those of TCP and UDP, and only beside addresses.
            if seen.ports.is_some() {
                prop_assert!(seen.addresses.is_some() && !seen.later_fragment);
                prop_assert!(matches!(seen.kind, Kind::Ipv4(6 | 17) | Kind::Ipv6(Some(6 | 17))));
            }
        }

        /// What is cut off behind the ports changes nothing, and what is cut before them never invents any.
        #[test]
        fn cut_anywhere(length in 0usize..54, options in 0usize..4) {
            let whole = ipv4(protocol::UDP, options, 0);
            let length = length.min(whole.len());
            let seen = Summary::of(&whole[..length]);
            let ports_end = ETH_HDR_LEN + 20 + 4 * options + 4;
            prop_assert_eq!(seen.ports.is_some(), length >= ports_end);
            prop_assert_eq!(seen.addresses.is_some(), length >= ETH_HDR_LEN + 20);
        }
    }
}
