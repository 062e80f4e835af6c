//! Addresses of one subnet: which is the gateway's, which are kept, and which is the next.
//!
//! The lowest free address is given, and one that was released is at once free again (Docker outside of swarm). The
//! first and the last of an IPv4 subnet are nobody's, but in a /31; in IPv6 the first is (RFC 4291, section 2.6.1). The
//! gateway has `.1`, or with an `--ip-range` the first of the range, unless it is said. What is chosen by itself comes
//! from the range; what is asked for may be anywhere in the subnet.
//!
//! Pure: what is taken is an argument, a set in order. Finding the next takes as many steps as addresses are taken below it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::config::Mac;

/// One subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpamConfig {
    /// The subnet.
    pub subnet: IpNet,
    /// Where addresses that nobody asked for come from, if not from the whole subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<IpNet>,
    /// The router's.
    pub gateway: IpAddr,
    /// Addresses that are never given, by what they are for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary: BTreeMap<String, IpAddr>,
}

/// How full a subnet is, as `docker network inspect` counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Addresses of the subnet that cannot be had: taken, kept, the gateway's, nobody's.
    pub in_use: u64,
    /// Addresses that can still be given by themselves.
    pub available: u64,
}

impl IpamConfig {
    /// A subnet whose gateway is chosen: the first free address. None if there is no room for one.
    pub fn with_gateway(subnet: IpNet, ip_range: Option<IpNet>) -> Option<Self> {
        // For the search nobody is the gateway: an address that no search within the subnet meets.
        let nobody = if subnet.addr().is_ipv4() { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
        let mut config = Self { subnet, ip_range, gateway: nobody, auxiliary: BTreeMap::new() };
        config.gateway = config.lowest_free(&BTreeSet::new())?;
        Some(config)
    }

    /// True if an address of this subnet is nobody's to have.
    pub fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved().contains(&number(address))
    }

    /// The lowest free address.
    pub fn lowest_free(&self, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let range = self.ip_range.unwrap_or(self.subnet);
        let (first, last) = bounds(range);
        let reserved = self.reserved();
        let mut taken = taken.range(range.network()..=range.broadcast()).copied().map(number).peekable();
        let mut kept = reserved.range(first..=last).copied().peekable();
        let mut candidate = first;
        loop {
            while taken.next_if(|&held| held < candidate).is_some() {}
            while kept.next_if(|&held| held < candidate).is_some() {}
            if taken.peek() != Some(&candidate) && kept.peek() != Some(&candidate) {
                return Some(address(range, candidate));
            }
            if candidate == last {
                return None;
            }
            candidate += 1;
        }
    }

    /// How full it is.
    pub fn usage(&self, taken: &BTreeSet<IpAddr>) -> Usage {
        let mut held = self.reserved();
        held.extend(taken.range(self.subnet.network()..=self.subnet.broadcast()).copied().map(number));
        let (first, last) = bounds(self.ip_range.unwrap_or(self.subnet));
        // A whole /0 of IPv6 has one address more than can be counted; what is left of it is not changed by one.
        let size = (last - first).saturating_add(1);
        let available = size - held.range(first..=last).count() as u128;
        Usage { in_use: held.len() as u64, available: u64::try_from(available).unwrap_or(u64::MAX) }
    }

    /// True for the first and the last address of the subnet.
    pub fn is_nobodys(&self, address: IpAddr) -> bool {
        self.nobodys().contains(&Some(number(address)))
    }

    fn nobodys(&self) -> [Option<u128>; 2] {
        let (first, last) = bounds(self.subnet);
        let host_bits = self.subnet.max_prefix_len() - self.subnet.prefix_len();
        // RFC 3021: both addresses of a /31 are usable.
        if host_bits <= 1 {
            return [None; 2];
        }
        [Some(first), self.subnet.addr().is_ipv4().then_some(last)]
    }

    fn reserved(&self) -> BTreeSet<u128> {
        let mut reserved: BTreeSet<u128> = self.auxiliary.values().copied().map(number).collect();
        let same_family = self.gateway.is_ipv4() == self.subnet.addr().is_ipv4();
        reserved.extend(same_family.then_some(number(self.gateway)));
        reserved.extend(self.nobodys().into_iter().flatten());
        reserved
    }
}

/// The MAC address of whoever has this address: Docker's until v27.5, and on overlays for ever. Made of the address, it
/// stays as long as that does, and two of one network are never the same.
pub fn mac_for(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, 0x42, a, b, c, d])
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(like: IpNet, number: u128) -> IpAddr {
    match like {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn bounds(net: IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(subnet: &str, range: Option<&str>) -> IpamConfig {
        let net = |text: &str| text.parse().unwrap();
        IpamConfig::with_gateway(net(subnet), range.map(net)).unwrap()
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn next(config: &IpamConfig, taken: &[&str]) -> Option<String> {
        config.lowest_free(&set(taken)).map(|address| address.to_string())
    }

    #[test]
    fn the_gateway_is_first() {
        for (subnet, range, gateway) in [
            ("172.18.0.0/16", None, "172.18.0.1"),
            ("10.0.0.0/24", Some("10.0.0.128/25"), "10.0.0.128"),
            ("10.0.0.0/24", Some("10.0.0.0/25"), "10.0.0.1"),
            ("10.0.0.0/31", None, "10.0.0.0"),
            ("10.0.0.0/30", None, "10.0.0.1"),
            ("fd00:1::/64", None, "fd00:1::1"),
            ("fd00:1::/64", Some("fd00:1::ff00/120"), "fd00:1::ff00"),
        ] {
            assert_eq!(config(subnet, range).gateway.to_string(), gateway, "{subnet} {range:?}");
        }
    }

    #[test]
    fn the_lowest_free_is_next_and_the_last_is_nobodys() {
        let small = config("10.0.0.0/29", None);
        assert_eq!(next(&small, &[]).as_deref(), Some("10.0.0.2"));
        assert_eq!(next(&small, &["10.0.0.2", "10.0.0.4"]).as_deref(), Some("10.0.0.3"));
        assert_eq!(next(&small, &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]), None);
        assert_eq!(next(&config("10.0.0.0/31", None), &[]).as_deref(), Some("10.0.0.1"));
        assert_eq!(next(&config("10.0.0.0/31", None), &["10.0.0.1"]), None);
        assert_eq!(next(&config("255.255.255.0/24", None), &[]).as_deref(), Some("255.255.255.2"));
    }

    #[test]
    fn auxiliary_addresses_and_ranges() {
        let mut pool = config("10.0.0.0/24", Some("10.0.0.128/30"));
        pool.auxiliary.insert("printer".to_owned(), "10.0.0.129".parse().unwrap());
        assert_eq!(next(&pool, &["10.0.0.2"]).as_deref(), Some("10.0.0.130"));
        assert_eq!(next(&pool, &["10.0.0.130", "10.0.0.131"]), None);
        assert!(pool.is_reserved("10.0.0.129".parse().unwrap()) && pool.is_reserved("10.0.0.255".parse().unwrap()));
        assert!(!pool.is_reserved("10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn ipv6_has_no_last_address() {
        let pool = config("fd00:1::/126", None);
        assert_eq!(next(&pool, &["fd00:1::2"]).as_deref(), Some("fd00:1::3"));
        assert_eq!(next(&pool, &["fd00:1::2", "fd00:1::3"]), None);
        let top = config("ffff:ffff:ffff:ffff::/64", None);
        assert_eq!(next(&top, &[]).as_deref(), Some("ffff:ffff:ffff:ffff::2"));
    }

    #[test]
    fn usage_is_as_docker_counts() {
        // Docker's own example: network, broadcast, gateway and one container.
        let usage = config("172.18.0.0/16", None).usage(&set(&["172.18.0.2"]));
        assert_eq!(usage, Usage { in_use: 4, available: 65_532 });
        let usage = config("10.0.0.0/24", Some("10.0.0.128/30")).usage(&set(&["10.0.0.2", "10.0.0.129", "10.0.1.1"]));
        assert_eq!(usage, Usage { in_use: 5, available: 2 });
        assert_eq!(config("fd00::/64", None).usage(&set(&["fd00::2"])).in_use, 3);
        assert_eq!(config("fd00::/64", None).usage(&set(&[])).available, u64::MAX - 1);
        assert_eq!(config("2000::/3", None).usage(&set(&[])).available, u64::MAX);
    }

    #[test]
    fn macs_are_made_of_addresses() {
        assert_eq!(mac_for(Ipv4Addr::new(172, 17, 0, 2)), Mac([0x02, 0x42, 172, 17, 0, 2]));
    }

    proptest! {
        /// Addresses are given and released at random: each is the lowest that was free, and nobody has one twice.
        #[test]
        fn lowest_free_against_a_plain_search(
            subnet in prop_oneof!["10\\.0\\.0\\.0/2[4-9]", "fd00::/12[0-6]"],
            ranged in any::<bool>(),
            kept in proptest::collection::vec(0u8..=255, 0..4),
            steps in proptest::collection::vec((any::<bool>(), any::<proptest::sample::Index>()), 0..60),
        ) {
            let subnet: IpNet = subnet.parse().unwrap();
            let range = ranged.then(|| subnet.subnets(subnet.prefix_len() + 2).unwrap().nth(1).unwrap());
            let mut config = IpamConfig::with_gateway(subnet, range).unwrap();
            let all: Vec<IpAddr> = {
                let (first, last) = bounds(subnet);
                (first..=last).map(|n| address(subnet, n)).collect()
            };
            for (i, host) in kept.iter().enumerate() {
                let held = all[usize::from(*host) % all.len()];
                config.auxiliary.insert(i.to_string(), held);
            }
            let mut taken = BTreeSet::new();
            for (take, which) in steps {
                if take {
                    let plain = all.iter().copied().find(|a| {
                        range.is_none_or(|range| range.contains(a)) && !taken.contains(a) && !config.is_reserved(*a)
                    });
                    let found = config.lowest_free(&taken);
                    prop_assert_eq!(found, plain);
                    let usage = config.usage(&taken);
                    prop_assert_eq!(usage.available == 0, found.is_none());
                    prop_assert!(usage.in_use + usage.available <= all.len() as u64);
                    prop_assert!(range.is_some() || usage.in_use + usage.available == all.len() as u64);
                    taken.extend(found);
                } else if !taken.is_empty() {
                    let released = *which.get(&taken.iter().copied().collect::<Vec<_>>());
                    taken.remove(&released);
                }
            }
        }
    }
}
