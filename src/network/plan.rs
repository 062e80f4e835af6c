//! The address plan of a private network: which address the gateway, the name server and the guest have.
//!
//! A plan follows from the subnet alone, so that a person can predict it: in 10.0.2.0/24 the gateway is .2, the name
//! server .3 and the guest .100, as slirp4netns has it; in an IPv6 /64 they are ::2, ::3 and ::64 (decimal 100). The
//! IPv6 prefix is a random unique local /64 (RFC 4193) unless given, so that it never shadows a network of the host.
//! Randomness is an argument. Deliberately not here: allocation of addresses to several members.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::{Mac, PlanV4, PlanV6};

/// Subnet when --subnet does not say otherwise.
pub const DEFAULT_SUBNET: &str = "10.0.2.0/24";
/// Host part of the gateway's address.
const GATEWAY: u8 = 2;
/// Host part of the name server's address.
const DNS: u8 = 3;
/// Host part of the guest's address.
const GUEST: u8 = 100;
/// Longest IPv4 prefix in which the guest's address fits.
const MAX_PREFIX_V4: u8 = 25;
/// Shortest IPv4 prefix: 10.0.0.0/8 is the largest private block.
const MIN_PREFIX_V4: u8 = 8;
/// The only IPv6 prefix length (SLAAC, RFC 4862, wants it).
const PREFIX_V6: u8 = 64;
/// Link-local address of the gateway.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Default MTU of the guest's interface: the largest multiple of 8 below the TAP's limit, as slirp4netns users have it.
pub const DEFAULT_MTU: u16 = 65520;
/// Largest MTU of a TAP: 65535 less the Ethernet header (drivers/net/tun.c).
pub const MAX_MTU: u16 = 65521;
/// Smallest MTU for IPv4 (RFC 791).
pub const MIN_MTU_V4: u16 = 68;
/// Smallest MTU for IPv6 (RFC 8200, section 5).
pub const MIN_MTU_V6: u16 = 1280;
/// The gateway's MAC: locally administered, fixed, so that a network process that comes back keeps it.
pub const GATEWAY_MAC: Mac = Mac([0x02, 0x74, 0x77, 0x00, 0x00, 0x02]);

/// Why a value given for the plan cannot be used. Each message ends with what to give instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not ADDRESS/LENGTH.
    #[error("subnet '{0}' is not a network in CIDR form; give one such as 10.0.2.0/24 or fd00:1::/64")]
    NotCidr(String),
    /// Host bits set.
    #[error("subnet '{0}' has host bits set; did you mean {1}?")]
    HostBits(String, IpNet),
    /// No room, or absurdly much.
    #[error(
        "subnet '{0}' must be between /{MIN_PREFIX_V4} and /{MAX_PREFIX_V4}: the guest takes host number {GUEST} in it"
    )]
    PrefixV4(Ipv4Net),
    /// Not a /64.
    #[error("IPv6 subnet '{0}' must be a /{PREFIX_V6}")]
    PrefixV6(Ipv6Net),
    /// Loopback, multicast and so on.
    #[error(
        "subnet '{0}' is reserved (loopback, link-local, multicast or unspecified); take one from a private range such as 10.0.2.0/24"
    )]
    Reserved(IpNet),
    /// Outside the limits of the interface.
    #[error("MTU {mtu} is out of range; give {min} to {MAX_MTU}{why}")]
    Mtu {
        /// The value.
        mtu: u32,
        /// Its lower limit here.
        min: u16,
        /// What sets the limit.
        why: &'static str,
    },
    /// Not six bytes of hex.
    #[error("MAC address '{0}' is not six hex bytes such as 02:00:5e:10:00:01")]
    NotMac(String),
    /// Group bit set, zero, or the gateway's.
    #[error("MAC address '{0}' {1}; give a unicast address such as 02:00:5e:10:00:01")]
    UnusableMac(String, &'static str),
}

/// Reads a subnet of either family; exact prefixes only.
pub fn parse_subnet(text: &str) -> Result<IpNet, PlanError> {
    let net: IpNet = text.parse().map_err(|_| PlanError::NotCidr(text.to_owned()))?;
    if net.addr() != net.network() {
        return Err(PlanError::HostBits(text.to_owned(), net.trunc()));
    }
    Ok(net)
}

/// Lays out an IPv4 subnet.
pub fn plan_v4(subnet: Ipv4Net) -> Result<PlanV4, PlanError> {
    if !(MIN_PREFIX_V4..=MAX_PREFIX_V4).contains(&subnet.prefix_len()) {
        return Err(PlanError::PrefixV4(subnet));
    }
    if is_reserved(IpNet::V4(subnet)) {
        return Err(PlanError::Reserved(IpNet::V4(subnet)));
    }
    let base = u32::from(subnet.network());
    let host = |number: u8| Ipv4Addr::from(base + u32::from(number));
    Ok(PlanV4 { subnet, gateway: host(GATEWAY), dns: host(DNS), guest: host(GUEST) })
}

/// Lays out an IPv6 subnet.
pub fn plan_v6(subnet: Ipv6Net) -> Result<PlanV6, PlanError> {
    if subnet.prefix_len() != PREFIX_V6 {
        return Err(PlanError::PrefixV6(subnet));
    }
    let base = subnet.network();
    if is_reserved(IpNet::V6(subnet)) {
        return Err(PlanError::Reserved(IpNet::V6(subnet)));
    }
    let host = |number: u8| Ipv6Addr::from(u128::from(base) + u128::from(number));
    Ok(PlanV6 {
        subnet,
        gateway: host(GATEWAY),
        gateway_link_local: GATEWAY_LINK_LOCAL,
        dns: host(DNS),
        guest: host(GUEST),
    })
}

/// True for subnets that can be nobody's segment.
pub fn is_reserved(subnet: IpNet) -> bool {
    // 0/8, 127/8, 169.254/16, and 224/3 upwards (multicast, reserved, broadcast).
    let reserved_v4 = |address: Ipv4Addr| {
        let [high, ..] = address.octets();
        high == 0 || address.is_loopback() || address.is_link_local() || high >= 224
    };
    match subnet {
        IpNet::V4(net) => [net.network(), net.broadcast()].into_iter().any(reserved_v4),
        // Unicast only: no multicast, link-local, and nothing in ::/8 (unspecified, loopback, v4-mapped; RFC 4291).
        IpNet::V6(net) => {
            let base = net.network();
            base.is_multicast() || base.is_unicast_link_local() || base.octets()[0] == 0
        }
    }
}

/// A unique local /64 from 7 random bytes: fd, 40 bits of global id, 16 bits of subnet id (RFC 4193, section 3.1).
pub fn random_ula(random: [u8; 7]) -> Ipv6Net {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&random);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), PREFIX_V6)
}

/// Checks an MTU against what a TAP and the families allow.
pub fn check_mtu(mtu: u32, ipv6: bool) -> Result<u16, PlanError> {
    let (min, why) = if ipv6 { (MIN_MTU_V6, " (or --ipv6=off for less than 1280)") } else { (MIN_MTU_V4, "") };
    match u16::try_from(mtu) {
        Ok(good) if (min..=MAX_MTU).contains(&good) => Ok(good),
        _ => Err(PlanError::Mtu { mtu, min, why }),
    }
}

/// Reads a MAC address for the guest: six hex bytes with ':' or '-' between them.
pub fn parse_mac(text: &str) -> Result<Mac, PlanError> {
    let bad = || PlanError::NotMac(text.to_owned());
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut mac = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut mac {
        let part = parts.next().ok_or_else(bad)?;
        if !(1..=2).contains(&part.len()) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    if parts.next().is_some() {
        return Err(bad());
    }
    let unusable = |why| PlanError::UnusableMac(text.to_owned(), why);
    if mac == [0; 6] {
        return Err(unusable("is all zero"));
    }
    if mac[0] & 1 != 0 {
        return Err(unusable("is a group address"));
    }
    if mac == GATEWAY_MAC.0 {
        return Err(unusable("is the gateway's"));
    }
    Ok(Mac(mac))
}

/// A locally administered unicast MAC for the guest, from 3 random bytes; never the gateway's.
pub fn random_mac(random: [u8; 3]) -> Mac {
    let [a, b, c] = random;
    Mac([0x02, 0x74, 0x77, a | 0x80, b, c])
}

/// True if `address` belongs to the plan's own segment.
pub fn contains(v4: Option<&PlanV4>, v6: Option<&PlanV6>, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => v4.is_some_and(|plan| plan.subnet.contains(&a)),
        IpAddr::V6(a) => v6.is_some_and(|plan| plan.subnet.contains(&a)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> Result<PlanV4, PlanError> {
        match parse_subnet(text)? {
            IpNet::V4(net) => plan_v4(net),
            IpNet::V6(_) => panic!("{text} is IPv6"),
        }
    }

    fn v6(text: &str) -> Result<PlanV6, PlanError> {
        match parse_subnet(text)? {
            IpNet::V6(net) => plan_v6(net),
            IpNet::V4(_) => panic!("{text} is IPv4"),
        }
    }

    #[test]
    fn default_plan_is_the_documented_one() {
        let plan = v4(DEFAULT_SUBNET).unwrap();
        assert_eq!(plan.gateway, Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(plan.dns, Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(plan.guest, Ipv4Addr::new(10, 0, 2, 100));
    }

    #[test]
    fn smallest_and_largest_subnets() {
        assert_eq!(v4("192.168.7.128/25").unwrap().guest, Ipv4Addr::new(192, 168, 7, 228));
        assert_eq!(v4("10.0.0.0/8").unwrap().guest, Ipv4Addr::new(10, 0, 0, 100));
        for bad in ["10.0.2.0/26", "10.0.2.0/32", "10.0.2.1/32", "8.0.0.0/7"] {
            assert!(matches!(v4(bad), Err(PlanError::PrefixV4(_))), "{bad}");
        }
    }

    #[test]
    fn bad_subnets_are_named() {
        for bad in ["", "10.0.2.0", "10.0.2/24", "10.0.2.0/33", "fd00::/129", "x/24", "10.0.2.0/-1", "10.0.2.0/24 "] {
            assert_eq!(parse_subnet(bad), Err(PlanError::NotCidr(bad.to_owned())), "{bad}");
        }
        assert_eq!(
            parse_subnet("10.0.2.5/24").unwrap_err().to_string(),
            "subnet '10.0.2.5/24' has host bits set; did you mean 10.0.2.0/24?"
        );
        assert!(matches!(parse_subnet("fd00::1/64"), Err(PlanError::HostBits(..))));
    }

    #[test]
    fn reserved_subnets() {
        for bad in [
            "127.0.0.0/8",
            "127.1.0.0/16",
            "0.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/8",
            "240.0.0.0/24",
            "255.255.255.0/24",
        ] {
            assert!(matches!(v4(bad), Err(PlanError::Reserved(_))), "{bad}");
        }
        for bad in ["::/64", "fe80::/64", "ff02::/64", "0:0:0:1::/64"] {
            assert!(matches!(v6(bad), Err(PlanError::Reserved(_))), "{bad}");
        }
    }

    #[test]
    fn ipv6_plan() {
        let plan = v6("fd12:3456:789a:1::/64").unwrap();
        assert_eq!(plan.gateway, "fd12:3456:789a:1::2".parse::<Ipv6Addr>().unwrap());
        assert_eq!(plan.dns, "fd12:3456:789a:1::3".parse::<Ipv6Addr>().unwrap());
        assert_eq!(plan.guest, "fd12:3456:789a:1::64".parse::<Ipv6Addr>().unwrap());
        assert!(matches!(v6("fd00::/48"), Err(PlanError::PrefixV6(_))));
    }

    #[test]
    fn random_prefix_is_unique_local() {
        let net = random_ula([0xff; 7]);
        assert!(net.network().is_unique_local());
        assert_eq!(net.prefix_len(), 64);
        assert!(plan_v6(net).is_ok() && plan_v6(random_ula([0; 7])).is_ok());
        assert_ne!(random_ula([1, 0, 0, 0, 0, 0, 0]), random_ula([0, 0, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn mtu_limits() {
        assert_eq!(check_mtu(65520, true), Ok(65520));
        assert_eq!(check_mtu(1280, true), Ok(1280));
        assert_eq!(check_mtu(68, false), Ok(68));
        assert_eq!(check_mtu(65521, false), Ok(65521));
        for (mtu, v6) in [(1279, true), (67, false), (0, false), (65522, true), (u32::MAX, true)] {
            let error = check_mtu(mtu, v6).unwrap_err().to_string();
            assert!(error.contains(&format!("MTU {mtu} ")), "{error}");
        }
    }

    #[test]
    fn macs() {
        assert_eq!(parse_mac("02:00:5e:10:00:01"), Ok(Mac([2, 0, 0x5e, 0x10, 0, 1])));
        assert_eq!(parse_mac("02-00-5E-10-00-01"), Ok(Mac([2, 0, 0x5e, 0x10, 0, 1])));
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "02:00:5e:10:00:1g",
            "+2:00:5e:10:00:01",
            "020:0:0:0:0:1",
            "02:00-5e:10:00:01",
        ] {
            assert_eq!(parse_mac(bad), Err(PlanError::NotMac(bad.to_owned())), "{bad}");
        }
        for bad in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "02:74:77:00:00:02"] {
            assert!(matches!(parse_mac(bad), Err(PlanError::UnusableMac(..))), "{bad}");
        }
        for random in [[0, 0, 2], [0, 0, 0], [0xff; 3]] {
            assert_ne!(random_mac(random), GATEWAY_MAC);
        }
    }
}
