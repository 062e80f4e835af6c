//! Which frames a capture keeps, and how much of them: values from the command line or a request.
//!
//! All conditions of a [`CaptureFilter`] hold at once; without any, every frame passes. The words are tcpdump's. What they
//! see is the frame itself ([`crate::wire::summary`]): an ICMP error is its sender's, not that of the packet it quotes.
//!
//! A fragment behind the first has no ports of its own. It passes a condition on the port if it is of TCP or UDP, so that a
//! datagram is never captured in part for lack of its ports; the price is those of other ports between the same hosts.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::wire::summary::{Kind, Summary, protocol};

/// Longest frame kept when nobody names a limit, and the longest limit: more than any frame here (64 KiB and headers), and
/// what readers accept (MAXIMUM_SNAPLEN of libpcap).
pub const MAX_SNAP_LENGTH: NonZeroU32 = NonZeroU32::new(262_144).expect("not zero");

/// What one capture keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Which frames.
    pub filter: CaptureFilter,
    /// How many bytes of each, counted from its Ethernet header.
    pub snap_length: NonZeroU32,
    /// The capture ends before its file would be longer than this, bytes.
    pub max_bytes: Option<u64>,
}

impl Default for CaptureOptions {
    /// Everything.
    fn default() -> Self {
        Self { filter: CaptureFilter::default(), snap_length: MAX_SNAP_LENGTH, max_bytes: None }
    }
}

/// Protocols to choose by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureProtocol {
    /// TCP over either IP.
    Tcp,
    /// UDP over either IP.
    Udp,
    /// ICMP, which is IPv4's.
    Icmp,
    /// ICMPv6: echo, errors, neighbour and router discovery.
    Icmp6,
    /// ARP.
    Arp,
    /// Everything over IPv4.
    Ip,
    /// Everything over IPv6.
    Ip6,
}

impl CaptureProtocol {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Tcp, Self::Udp, Self::Icmp, Self::Icmp6, Self::Arp, Self::Ip, Self::Ip6];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Icmp6 => "icmp6",
            Self::Arp => "arp",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    fn matches(self, kind: Kind) -> bool {
        let number = match kind {
            Kind::Ipv4(number) => Some(number),
            Kind::Ipv6(number) => number,
            Kind::Arp | Kind::Other => None,
        };
        match self {
            Self::Tcp => number == Some(protocol::TCP),
            Self::Udp => number == Some(protocol::UDP),
            Self::Icmp => kind == Kind::Ipv4(protocol::ICMP),
            Self::Icmp6 => kind == Kind::Ipv6(Some(protocol::ICMP6)),
            Self::Arp => kind == Kind::Arp,
            Self::Ip => matches!(kind, Kind::Ipv4(_)),
            Self::Ip6 => matches!(kind, Kind::Ipv6(_)),
        }
    }
}

impl std::str::FromStr for CaptureProtocol {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let found = Self::ALL.into_iter().find(|protocol| protocol.name() == text);
        found.ok_or_else(|| FilterError::Protocol(text.to_owned()))
    }
}

/// Why a filter is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The host.
    #[error("host '{0}' is neither an IP address nor a network such as 192.0.2.0/24")]
    Host(String),
    /// The port.
    #[error("port {0} is not a port; it must be from 1 to 65535")]
    Port(u16),
    /// The protocol.
    #[error("protocol '{0}' is none of tcp, udp, icmp, icmp6, arp, ip, ip6")]
    Protocol(String),
    /// Ports of a protocol without them.
    #[error("port {port} with protocol {protocol}: only tcp and udp have ports", protocol = .protocol.name())]
    NoPorts {
        /// The port.
        port: u16,
        /// The protocol.
        protocol: CaptureProtocol,
    },
    /// Of the other IP version.
    #[error("host {host} with protocol {protocol}: no frame can be both", protocol = .protocol.name())]
    Family {
        /// The host.
        host: IpNet,
        /// The protocol.
        protocol: CaptureProtocol,
    },
}

/// What a frame must be to be kept. Built by [`CaptureFilter::new`], so it always makes sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct CaptureFilter {
    host: Option<IpNet>,
    port: Option<NonZeroU16>,
    protocol: Option<CaptureProtocol>,
}

impl CaptureFilter {
    /// `host`: an address or a network, either side of the frame, those of ARP too. `port`: either side of TCP or UDP.
    pub fn new(host: Option<&str>, port: Option<u16>, protocol: Option<CaptureProtocol>) -> Result<Self, FilterError> {
        let host = host.map(parse_host).transpose()?;
        let port = port.map(|port| NonZeroU16::new(port).ok_or(FilterError::Port(port))).transpose()?;
        if let (Some(port), Some(protocol)) = (port, protocol)
            && matches!(protocol, CaptureProtocol::Icmp | CaptureProtocol::Icmp6 | CaptureProtocol::Arp)
        {
            return Err(FilterError::NoPorts { port: port.get(), protocol });
        }
        if let (Some(host), Some(protocol)) = (host, protocol) {
            let impossible = match protocol {
                CaptureProtocol::Icmp | CaptureProtocol::Arp | CaptureProtocol::Ip => matches!(host, IpNet::V6(_)),
                CaptureProtocol::Icmp6 | CaptureProtocol::Ip6 => matches!(host, IpNet::V4(_)),
                CaptureProtocol::Tcp | CaptureProtocol::Udp => false,
            };
            if impossible {
                return Err(FilterError::Family { host, protocol });
            }
        }
        Ok(Self { host, port, protocol })
    }

    /// Should this Ethernet frame (no vnet header) be kept? Takes any bytes.
    pub fn matches(&self, frame: &[u8]) -> bool {
        // `--pcap` and most others keep everything.
        if *self == Self::default() {
            return true;
        }
        let seen = Summary::of(frame);
        self.protocol.is_none_or(|protocol| protocol.matches(seen.kind))
            && self
                .host
                .is_none_or(|host| seen.addresses.is_some_and(|(from, to)| host.contains(&from) || host.contains(&to)))
            && self.port.is_none_or(|port| passes(port.get(), &seen))
    }
}

fn passes(port: u16, seen: &Summary) -> bool {
    if let Some((from, to)) = seen.ports {
        return port == from || port == to;
    }
    seen.later_fragment && (CaptureProtocol::Tcp.matches(seen.kind) || CaptureProtocol::Udp.matches(seen.kind))
}

fn parse_host(text: &str) -> Result<IpNet, FilterError> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    // The bits behind the prefix do not matter, as for a route.
    address.or_else(|_| text.parse::<IpNet>()).map(|net| net.trunc()).map_err(|_| FilterError::Host(text.to_owned()))
}

/// The same as it travels.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protocol: Option<CaptureProtocol>,
}

impl TryFrom<Unchecked> for CaptureFilter {
    type Error = FilterError;

    fn try_from(Unchecked { host, port, protocol }: Unchecked) -> Result<Self, FilterError> {
        Self::new(host.as_deref(), port, protocol)
    }
}

impl From<CaptureFilter> for Unchecked {
    fn from(CaptureFilter { host, port, protocol }: CaptureFilter) -> Self {
        let host = host
            .map(|net| if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() });
        Self { host, port: port.map(NonZeroU16::get), protocol }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An IPv4 frame of 10.0.2.100:5000 to 192.0.2.1:53.
    fn frame4(number: u8, offset: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 1]);
        frame.extend(offset.to_be_bytes());
        frame.extend([64, number, 0, 0, 10, 0, 2, 100, 192, 0, 2, 1, 0x13, 0x88, 0, 53, 0, 8, 0, 0]);
        frame
    }

    /// An IPv6 frame of 2001:db8::1:5000 to 2001:db8::2:443, behind a destination options header.
    fn frame6(number: u8) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xDD, 0x60, 0, 0, 0, 0, 16, 60, 64]);
        for last in [1, 2] {
            frame.extend([0x20, 1, 0x0D, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        frame.extend([number, 0, 1, 4, 0, 0, 0, 0, 0x13, 0x88, 0x01, 0xBB, 0, 8, 0, 0]);
        frame
    }

    fn arp() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 2, 100, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        frame
    }

    fn filter(json: &str) -> CaptureFilter {
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
    }

    #[test]
    fn each_condition_and_all_of_them() {
        let (tcp4, udp4, later4) = (frame4(6, 0), frame4(17, 0x2000), frame4(17, 0x0005));
        let (icmp, tcp6, icmp6, arp) = (frame4(1, 0), frame6(6), frame6(58), arp());
        let all = [&tcp4, &udp4, &later4, &icmp, &tcp6, &icmp6, &arp];
        for (json, expected) in [
            ("{}", &[true; 7][..]),
            (r#"{"protocol":"tcp"}"#, &[true, false, false, false, true, false, false]),
            (r#"{"protocol":"udp"}"#, &[false, true, true, false, false, false, false]),
            (r#"{"protocol":"icmp"}"#, &[false, false, false, true, false, false, false]),
            (r#"{"protocol":"icmp6"}"#, &[false, false, false, false, false, true, false]),
            (r#"{"protocol":"arp"}"#, &[false, false, false, false, false, false, true]),
            (r#"{"protocol":"ip"}"#, &[true, true, true, true, false, false, false]),
            (r#"{"protocol":"ip6"}"#, &[false, false, false, false, true, true, false]),
            // Either side; a later fragment has no ports and comes along.
            (r#"{"port":53}"#, &[true, true, true, false, false, false, false]),
            (r#"{"port":5000}"#, &[true, true, true, false, true, false, false]),
            (r#"{"port":80}"#, &[false, false, true, false, false, false, false]),
            (r#"{"port":443,"protocol":"ip6"}"#, &[false, false, false, false, true, false, false]),
            (r#"{"host":"192.0.2.1"}"#, &[true, true, true, true, false, false, false]),
            (r#"{"host":"10.0.2.100"}"#, &[true, true, true, true, false, false, true]),
            (r#"{"host":"10.0.2.0/28"}"#, &[false, false, false, false, false, false, true]),
            (r#"{"host":"2001:db8::/126"}"#, &[false, false, false, false, true, true, false]),
            (r#"{"host":"0.0.0.0/0"}"#, &[true, true, true, true, false, false, true]),
            (r#"{"host":"192.0.2.1","port":53,"protocol":"udp"}"#, &[false, true, true, false, false, false, false]),
            (r#"{"host":"192.0.2.9","port":53,"protocol":"udp"}"#, &[false; 7]),
        ] {
            let filter = filter(json);
            let matched: Vec<bool> = all.iter().map(|frame| filter.matches(frame)).collect();
            assert_eq!(matched, expected, "{json}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (json, words) in [
            (r#"{"host":"example.org"}"#, &["example.org"][..]),
            (r#"{"host":"10.0.0.0/33"}"#, &["10.0.0.0/33"]),
            (r#"{"host":"fe80::1%eth0"}"#, &["fe80::1%eth0"]),
            (r#"{"port":0}"#, &["port 0", "1 to 65535"]),
            (r#"{"port":65536}"#, &["65536"]),
            (r#"{"protocol":"sctp"}"#, &["sctp", "tcp"]),
            (r#"{"port":80,"protocol":"icmp"}"#, &["port 80", "icmp"]),
            (r#"{"host":"::1","protocol":"ip"}"#, &["::1", "ip"]),
            (r#"{"host":"10.0.2.1","protocol":"icmp6"}"#, &["10.0.2.1", "icmp6"]),
            (r#"{"hots":"10.0.2.1"}"#, &["hots"]),
        ] {
            let error = serde_json::from_str::<CaptureFilter>(json).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{json}: {error}");
        }
    }

    #[test]
    fn it_survives_the_way_and_the_host_bits_do_not_matter() {
        for json in [
            "{}",
            r#"{"host":"10.0.2.1"}"#,
            r#"{"host":"10.0.2.0/24","port":80,"protocol":"tcp"}"#,
            r#"{"host":"fe80::/10","protocol":"ip6"}"#,
        ] {
            assert_eq!(serde_json::to_string(&filter(json)).unwrap(), json);
        }
        assert_eq!(filter(r#"{"host":"10.0.2.77/24"}"#), filter(r#"{"host":"10.0.2.0/24"}"#));
        for protocol in CaptureProtocol::ALL {
            assert_eq!(protocol.name().parse(), Ok(protocol));
            assert_eq!(serde_json::to_value(protocol).unwrap(), protocol.name());
        }
    }

    proptest! {
        /// No bytes make it panic, and adding a condition never lets more through.
        #[test]
        fn any_bytes(
            mut frame in proptest::collection::vec(any::<u8>(), 0..120),
            kind in prop_oneof![Just([8, 0]), Just([8, 6]), Just([0x86, 0xDD]), any::<[u8; 2]>()],
            first in prop_oneof![Just(0x45), Just(0x60), any::<u8>()],
            port in proptest::option::of(1u16..),
            protocol in proptest::sample::select(&[CaptureProtocol::Tcp, CaptureProtocol::Ip, CaptureProtocol::Ip6][..]),
        ) {
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&kind);
                frame[14] = first;
            }
            let narrow = CaptureFilter::new(None, port, Some(protocol)).unwrap();
            let wide = CaptureFilter::new(None, None, Some(protocol)).unwrap();
            prop_assert!(!narrow.matches(&frame) || wide.matches(&frame));
            prop_assert!(CaptureFilter::default().matches(&frame));
            // Every IP frame is of one family, and within one of the two halves of the address space or both.
            let halves = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]
                .map(|net| CaptureFilter::new(Some(net), None, None).unwrap().matches(&frame));
            if Summary::of(&frame).addresses.is_some() {
                prop_assert!(halves.contains(&true));
            }
        }
    }
}
