//! Values on the command line: numbers as strtol(3) reads them, networks, MAC addresses, sources of outgoing sockets.
//!
//! slirp4netns hands numbers to the C library, so spaces before a number, a plus sign, and for descriptors an empty value
//! (0), are all taken. Its tests and callers look for the messages, so the words are that program's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use crate::network::config::{Mac, PlanV4};

/// Host numbers in the IPv4 network: gateway, name server, DHCP's first and last, and the guest's.
const GATEWAY: u32 = 2;
const DNS: u32 = 3;
const DHCP: (u32, u32) = (15, 30);
const GUEST: u32 = 100;
/// Longest prefix in which the guest's address fits.
const MAX_PREFIX: u8 = 25;

/// Why a value cannot be used, in that program's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not A.B.C.D/N.
    #[error("invalid CIDR: {0}")]
    Cidr(String),
    /// An octet is over 255 or begins with 0.
    #[error("invalid network address: {0}")]
    Network(String),
    /// No room for the guest, or everything.
    #[error("prefix length needs to be 1-{MAX_PREFIX}")]
    Prefix,
    /// Host bits are set.
    #[error("CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24")]
    HostBits,
    /// More than six bytes.
    #[error("\"{0}\" is an invalid MAC address.  Is it too long?")]
    LongMac(String),
    /// One of them is none.
    #[error("\"{0}\" is an invalid MAC address.")]
    Mac(String),
    /// Neither an IPv4 address nor an interface that has one.
    #[error("outbound-addr has to be valid ipv4 address or interface name.")]
    OutboundV4,
    /// Neither an IPv6 address nor an interface that has one (the words are that program's, slips included).
    #[error("outbound-addr has to be valid ipv4 address or iterface name.")]
    OutboundV6,
}

impl ValueError {
    /// A second line for it.
    pub fn hint(&self) -> Option<&'static str> {
        matches!(self, Self::Mac(_) | Self::LongMac(_))
            .then_some("macaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':').")
    }
}

/// An integer at the start of `text`, and the rest, as strtol(3) in that base: white space, a sign, in base 16 an optional
/// 0x, digits. Without a digit it is 0 and the rest is all of `text`. None if it does not fit.
fn leading_integer(text: &str, base: u32) -> Option<(i64, &str)> {
    let start = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, digits) = match start.as_bytes().first() {
        Some(b'-') => (true, &start[1..]),
        Some(b'+') => (false, &start[1..]),
        _ => (false, start),
    };
    let is_digit = |c: char| c.is_digit(base);
    let digits = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(after) if base == 16 && after.starts_with(is_digit) => after,
        _ => digits,
    };
    let end = digits.find(|c| !is_digit(c)).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if digits.is_empty() {
        return Some((0, text));
    }
    let value = i64::from_str_radix(digits, base).ok()?;
    Some((if negative { -value } else { value }, rest))
}

/// A decimal number that is all of `text`, and fits.
pub fn integer<T: TryFrom<i64>>(text: &str) -> Option<T> {
    match leading_integer(text, 10) {
        Some((value, "")) => T::try_from(value).ok(),
        _ => None,
    }
}

/// Reads a network and lays it out; also DHCP's first and last address.
pub fn plan(text: &str) -> Result<(PlanV4, (Ipv4Addr, Ipv4Addr)), ValueError> {
    let invalid = || ValueError::Cidr(text.to_owned());
    let digits = |part: &str, most: usize| (1..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
    if address.split('.').count() != 4 || !address.split('.').all(|octet| digits(octet, 3)) || !digits(prefix, 2) {
        return Err(invalid());
    }
    let network: Ipv4Addr = address.parse().map_err(|_| ValueError::Network(address.to_owned()))?;
    let prefix = prefix.parse().ok().filter(|prefix| (1..=MAX_PREFIX).contains(prefix)).ok_or(ValueError::Prefix)?;
    let subnet = Ipv4Net::new_assert(network, prefix);
    if subnet.network() != network {
        return Err(ValueError::HostBits);
    }
    let host = |number: u32| Ipv4Addr::from(u32::from(network) + number);
    let plan = PlanV4 { subnet, gateway: host(GATEWAY), dns: host(DNS), guest: host(GUEST) };
    Ok((plan, (host(DHCP.0), host(DHCP.1))))
}

/// Reads a MAC address: up to six bytes in hex, the others are zero. What follows the digits of a byte is not looked at.
pub fn mac(text: &str) -> Result<Mac, ValueError> {
    let mut mac = [0; 6];
    for (i, part) in text.split(':').enumerate() {
        let byte = mac.get_mut(i).ok_or_else(|| ValueError::LongMac(text.to_owned()))?;
        *byte = match leading_integer(part, 16) {
            Some((value, rest)) if rest.len() < part.len() => u8::try_from(value).ok(),
            _ => None,
        }
        .ok_or_else(|| ValueError::Mac(text.to_owned()))?;
    }
    Ok(Mac(mac))
}

/// Addresses of this host and the interfaces that have them, in the kernel's order.
pub type Addresses = Vec<(String, IpAddr)>;

/// An IPv4 address, or the first one of an interface.
pub fn outbound_v4(text: &str, host: impl FnOnce() -> Addresses) -> Result<Ipv4Addr, ValueError> {
    text.parse()
        .ok()
        .or_else(|| {
            host().into_iter().find_map(|(name, address)| match address {
                IpAddr::V4(address) if name == text => Some(address),
                _ => None,
            })
        })
        .ok_or(ValueError::OutboundV4)
}

/// An IPv6 address, or the first one of an interface; a link-local one only if it has no other.
pub fn outbound_v6(text: &str, host: impl FnOnce() -> Addresses) -> Result<Ipv6Addr, ValueError> {
    let of_interface = || {
        let all: Vec<Ipv6Addr> = host()
            .into_iter()
            .filter_map(|(name, address)| match address {
                IpAddr::V6(address) if name == text => Some(address),
                _ => None,
            })
            .collect();
        all.iter().find(|address| !address.is_unicast_link_local()).or(all.first()).copied()
    };
    text.parse().ok().or_else(of_interface).ok_or(ValueError::OutboundV6)
}

/// Asks the kernel. A host that does not tell has no interfaces, as far as names go.
pub fn addresses() -> Addresses {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    all.filter_map(|entry| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let address = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))?;
        Some((entry.interface_name, address))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers() {
        for (text, expected) in [
            ("5", Some(5)),
            (" \t+5", Some(5)),
            ("-5", Some(-5)),
            ("-0", Some(0)),
            ("007", Some(7)),
            ("", Some(0)),
            ("2147483647", Some(i32::MAX)),
            ("2147483648", None),
            ("99999999999999999999", None),
            (" ", None),
            ("+", None),
            ("5 ", None),
            ("0x5", None),
            ("12a", None),
            ("٣", None),
        ] {
            assert_eq!(integer::<i32>(text), expected, "{text:?}");
        }
    }

    #[test]
    fn networks() {
        let (plan, dhcp) = super::plan("10.0.135.128/25").unwrap();
        let shown = [plan.gateway, plan.dns, dhcp.0, dhcp.1, plan.guest].map(|a| a.octets()[3]);
        assert_eq!((plan.subnet.to_string().as_str(), shown), ("10.0.135.128/25", [130, 131, 143, 158, 228]));
        assert_eq!(super::plan("10.0.2.0/24").unwrap().0.guest, Ipv4Addr::new(10, 0, 2, 100));
        for odd in ["128.0.0.0/1", "0.0.0.0/1", "0.0.0.0/01", "127.0.0.0/8", "255.255.255.128/25"] {
            assert!(super::plan(odd).is_ok(), "{odd}");
        }
        let refused = |text: &str| super::plan(text).unwrap_err();
        for bad in [
            "",
            "24",
            "foo",
            "10.0.2.0",
            "10.0.2.0/",
            "10.0.2.0/024",
            " 10.0.2.0/24",
            "10.0.2.0/24 ",
            "10.0.2/24",
            "10.0.2.0.0/24",
            "1000.0.2.0/24",
            "10.0.2.+0/24",
            "10.0.2.0/+4",
            "10..2.0/24",
            "fd00::/64",
            "10.0.2.0/24\n",
            "10.0.2.0/24/1",
        ] {
            assert_eq!(refused(bad), ValueError::Cidr(bad.to_owned()), "{bad:?}");
        }
        for bad in ["256.0.0.0", "010.0.2.0", "00.0.0.0"] {
            assert_eq!(refused(&format!("{bad}/30")).to_string(), format!("invalid network address: {bad}"));
        }
        for bad in ["10.0.2.100/26", "10.0.2.0/0", "10.0.2.0/00", "10.0.2.0/99", "10.0.2.0/32"] {
            assert_eq!(refused(bad).to_string(), "prefix length needs to be 1-25", "{bad}");
        }
        for bad in ["10.0.2.100/24", "10.0.2.0/1", "10.0.2.1/25"] {
            assert_eq!(refused(bad), ValueError::HostBits, "{bad}");
        }
    }

    #[test]
    fn macs() {
        for (text, expected) in [
            ("02:aA:03:04:05:6", [2, 0xaa, 3, 4, 5, 6]),
            ("0x2:0X3", [2, 3, 0, 0, 0, 0]),
            ("02:03:04:05:06:1junk", [2, 3, 4, 5, 6, 1]),
            ("0e-d4-00-01-02-03", [0x0e, 0, 0, 0, 0, 0]),
            (" 2:+3:-0", [2, 3, 0, 0, 0, 0]),
            ("2:0x", [2, 0, 0, 0, 0, 0]),
            ("2:0xg", [2, 0, 0, 0, 0, 0]),
            ("0002", [2, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(mac(text), Ok(Mac(expected)), "{text}");
        }
        for bad in
            ["", ":", "zz", " ", "02:", "02::03", "100:1", "-1", "2:3:zz", "ffffffffffffffffff", "zz:2:3:4:5:6:7"]
        {
            assert_eq!(mac(bad), Err(ValueError::Mac(bad.to_owned())), "{bad:?}");
        }
        for bad in ["01:02:03:04:05:06:07", "1:2:3:4:5:6:", "1:2:3:4:5:6:zz"] {
            assert_eq!(mac(bad), Err(ValueError::LongMac(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn sources() {
        let host = || {
            [
                ("lo", "127.0.0.1"),
                ("eth0", "192.0.2.1"),
                ("eth0", "192.0.2.2"),
                ("lo", "::1"),
                ("eth0", "fe80::1"),
                ("eth0", "2001:db8::1"),
                ("eth0", "2001:db8::2"),
                ("tun0", "fe80::2"),
                ("tun0", "fe80::3"),
                ("v6", "fd00::1"),
            ]
            .map(|(name, address)| (name.to_owned(), address.parse().unwrap()))
            .to_vec()
        };
        let v4 = |text: &str| outbound_v4(text, host).map(|a| a.to_string());
        let v6 = |text: &str| outbound_v6(text, host).map(|a| a.to_string());
        for (text, expected) in [("203.0.113.9", "203.0.113.9"), ("eth0", "192.0.2.1"), ("lo", "127.0.0.1")] {
            assert_eq!(v4(text).as_deref(), Ok(expected));
        }
        for bad in ["", "v6", "nope", "127.1", "fd00::1", "010.0.0.1", "ETH0"] {
            assert_eq!(v4(bad), Err(ValueError::OutboundV4), "{bad}");
        }
        for (text, expected) in [
            ("2001:db8::9", "2001:db8::9"),
            ("eth0", "2001:db8::1"),
            ("tun0", "fe80::2"),
            ("lo", "::1"),
            ("v6", "fd00::1"),
        ] {
            assert_eq!(v6(text).as_deref(), Ok(expected));
        }
        for bad in ["", "nope", "127.0.0.1", "fe80::1%lo"] {
            assert_eq!(v6(bad), Err(ValueError::OutboundV6), "{bad}");
        }
        assert_eq!(outbound_v4("lo", addresses), Ok(Ipv4Addr::LOCALHOST));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC{0,12}|[0-9./:x+ a-f-]{0,20}") {
            let _ = (integer::<i32>(&text), mac(&text), outbound_v4(&text, Vec::new), outbound_v6(&text, Vec::new));
            if let Ok((plan, dhcp)) = plan(&text) {
                prop_assert!([plan.gateway, plan.dns, plan.guest, dhcp.0, dhcp.1].iter().all(|a| plan.subnet.contains(a)));
            }
        }

        #[test]
        fn numbers_come_back(value: i64) {
            prop_assert_eq!(integer::<i64>(&value.to_string()), if value == i64::MIN { None } else { Some(value) });
        }
    }
}
