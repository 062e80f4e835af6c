//! A member's place in a network: its addresses, and what it is called there.
//!
//! Pure: who is there already is an argument, and so is the randomness of ids. Leases are kept and locked by the
//! monitors that hold them (`sandbox::leases`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::config::{Listener, Mac};
use super::definition::Network;
use super::ipam::{IpamConfig, mac_for};

/// What a member holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// 12 hex digits.
    pub sandbox_id: String,
    /// Its name.
    pub sandbox_name: String,
    /// 64 hex digits; another one each time a sandbox is connected.
    pub endpoint_id: String,
    /// The monitor.
    pub pid: u32,
    /// MAC address.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address, where the network has IPv6.
    #[serde(default)]
    pub v6: Option<Ipv6Addr>,
    /// What it is called, in Docker's order: name, aliases, short id, host name. Empty where there are no names.
    #[serde(default)]
    pub names: Vec<String>,
    /// Its interface there, `eth0`.
    pub interface: String,
    /// Published ports, if this is its gateway endpoint.
    #[serde(default)]
    pub ports: Vec<Listener>,
    /// Of its networks the one with the highest is its gateway.
    #[serde(default)]
    pub gw_priority: i32,
}

/// MAC addresses as people write them.
mod mac_text {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Mac;
    use crate::network::plan::parse_mac;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        parse_mac(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Lease {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.v4)).chain(self.v6.map(IpAddr::V6))
    }
}

/// What a sandbox asks of a network. What is not said is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// 12 hex digits.
    pub sandbox_id: String,
    /// Its name.
    pub sandbox_name: String,
    /// The monitor.
    pub pid: u32,
    /// `--ip`.
    pub ip: Option<Ipv4Addr>,
    /// `--ip6`.
    pub ip6: Option<Ipv6Addr>,
    /// `--mac-address`.
    pub mac: Option<Mac>,
    /// `--network-alias`.
    pub aliases: Vec<String>,
    /// Its host name.
    pub hostname: String,
    /// Its interface there.
    pub interface: String,
    /// Published ports.
    pub ports: Vec<Listener>,
    /// `gw-priority`.
    pub gw_priority: i32,
}

/// Why a network does not take a member, in Docker's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedLease {
    /// `host` and `none`.
    #[error("the network {0} has no members")]
    NoMembers(String),
    /// `--ip` on `bridge`.
    #[error("invalid endpoint settings:\nuser-specified IP address is supported on user-defined networks only")]
    DefaultNetworkAddress,
    /// `--network-alias` on `bridge`.
    #[error("network-scoped aliases are only supported for user-defined networks")]
    DefaultNetworkAlias,
    /// `--ip` that is no address of the network.
    #[error("invalid endpoint settings:\nno configured subnet contains IP address {0}")]
    NotContained(IpAddr),
    /// It is somebody's, or nobody's to have.
    #[error("Address already in use")]
    InUse,
    /// The subnet is full.
    #[error("no available {family} addresses on this network's address pools: {network} ({id})")]
    Full {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Which network.
        network: String,
        /// Its id.
        id: String,
    },
    /// Connected twice.
    #[error("endpoint with name {name} already exists in network {network}")]
    Twice {
        /// The sandbox.
        name: String,
        /// The network.
        network: String,
    },
    /// Two members with one MAC address would get each other's frames.
    #[error("MAC address {mac} is in use by {holder} in network {network}; give another --mac-address")]
    MacInUse {
        /// Which.
        mac: String,
        /// Whose.
        holder: String,
        /// Where.
        network: String,
    },
}

/// What can be said against `wanted` without knowing who is there.
pub fn check(network: &Network, wanted: &Wanted) -> Result<(), RefusedLease> {
    if network.ipam.is_empty() {
        return Err(RefusedLease::NoMembers(network.name.clone()));
    }
    if network.is_default() && (wanted.ip.is_some() || wanted.ip6.is_some()) {
        return Err(RefusedLease::DefaultNetworkAddress);
    }
    if network.is_default() && !wanted.aliases.is_empty() {
        return Err(RefusedLease::DefaultNetworkAlias);
    }
    let asked = [wanted.ip.map(IpAddr::V4), wanted.ip6.map(IpAddr::V6)];
    for address in asked.into_iter().flatten() {
        if !network.ipam.iter().any(|config| config.subnet.contains(&address)) {
            return Err(RefusedLease::NotContained(address));
        }
    }
    Ok(())
}

/// The lease that `wanted` gets beside those of `live`. `taken` are addresses that are held, by them or by somebody of
/// whom nothing else is known.
pub fn grant(
    network: &Network,
    wanted: &Wanted,
    live: &[Lease],
    taken: &BTreeSet<IpAddr>,
    endpoint_id: String,
) -> Result<Lease, RefusedLease> {
    check(network, wanted)?;
    if live.iter().any(|lease| lease.sandbox_id == wanted.sandbox_id) {
        let (name, network) = (wanted.sandbox_name.clone(), network.name.clone());
        return Err(RefusedLease::Twice { name, network });
    }
    let give = |config: &IpamConfig, asked: Option<IpAddr>, family| match asked {
        Some(address) if taken.contains(&address) || config.is_reserved(address) => Err(RefusedLease::InUse),
        Some(address) => Ok(address),
        None => config.lowest_free(taken).ok_or_else(|| RefusedLease::Full {
            family,
            network: network.name.clone(),
            id: network.id.clone(),
        }),
    };
    let none = || RefusedLease::NoMembers(network.name.clone());
    let (config, _) = network.v4().ok_or_else(none)?;
    let IpAddr::V4(v4) = give(config, wanted.ip.map(IpAddr::V4), "IPv4")? else { return Err(none()) };
    let v6 = match network.v6() {
        None => None,
        Some((config, _)) => match give(config, wanted.ip6.map(IpAddr::V6), "IPv6")? {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        },
    };
    let mac = wanted.mac.unwrap_or_else(|| mac_for(v4));
    if let Some(holder) = live.iter().find(|lease| lease.mac == mac) {
        let (holder, network) = (holder.sandbox_name.clone(), network.name.clone());
        return Err(RefusedLease::MacInUse { mac: mac.to_string(), holder, network });
    }
    Ok(Lease {
        sandbox_id: wanted.sandbox_id.clone(),
        sandbox_name: wanted.sandbox_name.clone(),
        endpoint_id,
        pid: wanted.pid,
        mac,
        v4,
        v6,
        names: if network.is_default() { Vec::new() } else { names(wanted) },
        interface: wanted.interface.clone(),
        ports: wanted.ports.clone(),
        gw_priority: wanted.gw_priority,
    })
}

/// What a member is called: each name once, the first of them the one of the reverse lookup.
fn names(wanted: &Wanted) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let all =
        std::iter::once(&wanted.sandbox_name).chain(&wanted.aliases).chain([&wanted.sandbox_id, &wanted.hostname]);
    for name in all {
        // DNS knows no case (RFC 4343).
        if !name.is_empty() && !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            names.push(name.clone());
        }
    }
    names
}

/// `network rm` while there are members: Docker's words for it.
pub fn active_endpoints(network: &Network, live: &[Lease]) -> Option<String> {
    let short = |id: &str| id.get(..super::definition::SHORT_ID).unwrap_or(id).to_owned();
    let list: Vec<String> = live
        .iter()
        .map(|lease| format!("name:\"{}\" id:\"{}\"", lease.sandbox_name, short(&lease.endpoint_id)))
        .collect();
    (!list.is_empty()).then(|| {
        format!("error while removing network: network {} has active endpoints ({})", network.name, list.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::creation::{Existing, Fresh, Request, assemble, create};
    use crate::network::timestamp::Timestamp;

    fn network(subnets: &[&str], ipv6: bool) -> Network {
        let texts: Vec<String> = subnets.iter().map(|&text| text.to_owned()).collect();
        let subnets = assemble(&texts, &[], &[], &[]).unwrap();
        let request = Request { name: "foo".to_owned(), subnets, ipv6, ..Request::default() };
        create(request, Existing::default(), Fresh { id: [7; 32], ula: [1; 7], now: Timestamp::default() }).unwrap()
    }

    fn wanted(name: &str) -> Wanted {
        let id = format!("{:012x}", name.bytes().fold(0u64, |hash, b| hash * 31 + u64::from(b)));
        Wanted {
            sandbox_id: id.clone(),
            sandbox_name: name.to_owned(),
            pid: 1,
            hostname: id,
            interface: "eth0".to_owned(),
            ..Wanted::default()
        }
    }

    fn grant(network: &Network, wanted: &Wanted, live: &[Lease], id: String) -> Result<Lease, RefusedLease> {
        let taken = live.iter().flat_map(Lease::addresses).collect();
        super::grant(network, wanted, live, &taken, id)
    }

    fn text(network: &Network, wanted: &Wanted, live: &[Lease]) -> String {
        grant(network, wanted, live, String::new()).unwrap_err().to_string()
    }

    #[test]
    fn addresses_macs_and_names() {
        let foo = network(&["10.0.0.0/24"], true);
        let mut live = Vec::new();
        for (name, v4) in [("a", "10.0.0.2"), ("b", "10.0.0.3")] {
            let lease = grant(&foo, &wanted(name), &live, "e".repeat(64)).unwrap();
            assert_eq!(lease.v4.to_string(), v4);
            assert_eq!(lease.mac.0[2..], lease.v4.octets());
            live.push(lease);
        }
        assert_eq!(live[1].v6.unwrap().to_string(), "fd01:101:101:101::3");
        live.remove(0);
        let asked = Wanted { aliases: vec!["db".to_owned(), "C".to_owned()], hostname: "DB".to_owned(), ..wanted("c") };
        let lease = grant(&foo, &asked, &live, String::new()).unwrap();
        assert_eq!(lease.v4.to_string(), "10.0.0.2");
        assert_eq!(lease.names, ["c", "db", &asked.sandbox_id]);
        let bridge = Network::bridge(0);
        assert!(grant(&bridge, &wanted("c"), &[], String::new()).unwrap().names.is_empty());
        let json = serde_json::to_string(&lease).unwrap();
        assert_eq!(serde_json::from_str::<Lease>(&json).unwrap(), lease);
    }

    #[test]
    fn dockers_words() {
        let foo = network(&["10.0.0.0/30"], false);
        let first = grant(&foo, &wanted("a"), &[], "ab".repeat(32)).unwrap();
        let live = [first.clone()];
        let ip = |text: &str| Wanted { ip: Some(text.parse().unwrap()), ..wanted("b") };
        assert_eq!(
            text(&foo, &wanted("b"), &live),
            format!("no available IPv4 addresses on this network's address pools: foo ({})", "07".repeat(32))
        );
        for taken in ["10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3"] {
            assert_eq!(text(&foo, &ip(taken), &live), "Address already in use");
        }
        let outside = "invalid endpoint settings:\nno configured subnet contains IP address 1.2.3.4";
        assert_eq!(text(&foo, &ip("1.2.3.4"), &live), outside);
        let v6 = Wanted { ip6: Some("fd00::5".parse().unwrap()), ..wanted("b") };
        assert!(text(&foo, &v6, &[]).ends_with("no configured subnet contains IP address fd00::5"));
        assert_eq!(text(&foo, &wanted("a"), &live), "endpoint with name a already exists in network foo");
        let bridge = Network::bridge(0);
        assert_eq!(
            text(&bridge, &ip("172.17.0.5"), &[]),
            "invalid endpoint settings:\nuser-specified IP address is supported on user-defined networks only"
        );
        let aliased = Wanted { aliases: vec!["db".to_owned()], ..wanted("b") };
        assert_eq!(text(&bridge, &aliased, &[]), "network-scoped aliases are only supported for user-defined networks");
        assert_eq!(
            active_endpoints(&foo, &live).unwrap(),
            "error while removing network: network foo has active endpoints (name:\"a\" id:\"abababababab\")"
        );
        assert_eq!(active_endpoints(&foo, &[]), None);
        let [_, host, _] = Network::predefined(0);
        assert_eq!(text(&host, &wanted("b"), &[]), "the network host has no members");
        let same = Wanted { mac: Some(first.mac), ..wanted("b") };
        let big = network(&["10.0.0.0/24"], false);
        assert_eq!(
            text(&big, &same, &live),
            "MAC address 02:42:0a:00:00:02 is in use by a in network foo; give another --mac-address"
        );
    }
}
