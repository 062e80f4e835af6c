//! Subnets for networks that ask for none: Docker's local pools.
//!
//! ```text
//! 172.17.0.0/16, 172.18.0.0/16 … 172.31.0.0/16      fifteen, the first of them is the network `bridge`
//! 192.168.0.0/20, 192.168.16.0/20 … 192.168.240.0/20    sixteen more
//! ```
//!
//! The lowest that is free is given, so one that was removed is the next to be used (Docker since v27). Free is what
//! overlaps neither another network nor anything that the host reaches itself: its on-link routes and its name servers,
//! which are arguments. A size may be asked for instead of a pool's own (`0.0.0.0/24`): then the pools are cut in that size.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// A block, and the size that is cut from it.
struct Pool {
    base: Ipv4Net,
    size: u8,
}

const fn pool(first: Ipv4Addr, prefix_len: u8, size: u8) -> Pool {
    Pool { base: Ipv4Net::new_assert(first, prefix_len), size }
}

/// In order (moby, ipamutils/utils.go).
const POOLS: [Pool; 7] = [
    pool(Ipv4Addr::new(172, 17, 0, 0), 16, 16),
    pool(Ipv4Addr::new(172, 18, 0, 0), 16, 16),
    pool(Ipv4Addr::new(172, 19, 0, 0), 16, 16),
    pool(Ipv4Addr::new(172, 20, 0, 0), 14, 16),
    pool(Ipv4Addr::new(172, 24, 0, 0), 14, 16),
    pool(Ipv4Addr::new(172, 28, 0, 0), 14, 16),
    pool(Ipv4Addr::new(192, 168, 0, 0), 16, 20),
];

/// Nothing is free any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all predefined address pools have been fully subnetted")]
pub struct Exhausted;

/// The lowest subnet that overlaps none of `networks` and none of `host`: of a pool's own size, or of prefix length
/// `size`.
pub fn allocate(size: Option<u8>, networks: &[Ipv4Net], host: &[Ipv4Net]) -> Result<Ipv4Net, Exhausted> {
    POOLS
        .iter()
        .find_map(|pool| {
            let size = size.unwrap_or(pool.size);
            if (pool.base.prefix_len()..=32).contains(&size) { lowest(pool.base, size, networks, host) } else { None }
        })
        .ok_or(Exhausted)
}

/// The lowest free subnet of that size within `base`. Steps over whatever is in the way at once, so it takes as many
/// steps as there are obstacles, not as there are subnets.
fn lowest(base: Ipv4Net, size: u8, networks: &[Ipv4Net], host: &[Ipv4Net]) -> Option<Ipv4Net> {
    let step = 1u64 << (32 - size);
    let end = u64::from(u32::from(base.broadcast())) + 1;
    let mut start = u64::from(u32::from(base.network()));
    while start + step <= end {
        let candidate = Ipv4Net::new(Ipv4Addr::from(u32::try_from(start).ok()?), size).ok()?;
        let obstacles = networks.iter().chain(host);
        match obstacles.filter(|net| overlap(net, &candidate)).map(|net| u32::from(net.broadcast())).max() {
            None => return Some(candidate),
            Some(last) => start = (u64::from(last) + 1).next_multiple_of(step).max(start + step),
        }
    }
    None
}

/// True if two subnets have an address in common.
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn all_in_order_and_then_none() {
        let mut taken = Vec::new();
        while let Ok(next) = allocate(None, &taken, &[]) {
            taken.push(next);
        }
        let mut expected: Vec<String> = (17..32).map(|n| format!("172.{n}.0.0/16")).collect();
        expected.extend((0..16).map(|n| format!("192.168.{}.0/20", n * 16)));
        assert_eq!(taken.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        let text = allocate(None, &taken, &[]).unwrap_err().to_string();
        assert_eq!(text, "all predefined address pools have been fully subnetted");
        // The one that was removed is the next.
        let freed = taken.remove(3);
        assert_eq!(allocate(None, &taken, &[]), Ok(freed));
    }

    #[test]
    fn what_the_host_reaches_is_left_out() {
        let host = nets(&["172.18.0.1/32", "172.16.0.0/15", "172.19.200.0/24", "10.0.0.0/8"]);
        assert_eq!(allocate(None, &[], &host).unwrap().to_string(), "172.20.0.0/16");
        assert_eq!(allocate(None, &[], &nets(&["172.16.0.0/12"])).unwrap().to_string(), "192.168.0.0/20");
        assert_eq!(allocate(None, &[], &nets(&["0.0.0.0/0"])), Err(Exhausted));
    }

    #[test]
    fn a_size_of_ones_own() {
        let taken = nets(&["172.17.0.0/16", "172.18.0.0/24", "172.18.1.128/25"]);
        assert_eq!(allocate(Some(24), &taken, &[]).unwrap().to_string(), "172.18.2.0/24");
        assert_eq!(allocate(Some(30), &taken, &[]).unwrap().to_string(), "172.18.1.0/30");
        assert_eq!(allocate(Some(15), &taken, &[]).unwrap().to_string(), "172.20.0.0/15");
        assert_eq!(allocate(Some(32), &[], &[]).unwrap().to_string(), "172.17.0.0/32");
        for size in [0, 8, 13, 33, 255] {
            assert_eq!(allocate(Some(size), &taken, &[]), Err(Exhausted), "{size}");
        }
    }

    proptest! {
        #[test]
        fn never_overlapping_and_the_lowest(
            taken in proptest::collection::vec((0u32..16, 0u32..65536, 14u8..=32), 0..20),
            size in 16u8..=24,
        ) {
            let net = |(second, low, len): (u32, u32, u8)| Ipv4Net::new(Ipv4Addr::from((172 << 24) | ((16 + second) << 16) | low), len);
            let taken: Vec<Ipv4Net> = taken.into_iter().map(|t| net(t).unwrap().trunc()).collect();
            let found = allocate(Some(size), &taken, &[]).unwrap();
            prop_assert!(taken.iter().all(|net| !overlap(net, &found)));
            // None of those before it is free.
            let (mut at, step) = (u32::from(Ipv4Addr::new(172, 17, 0, 0)), 1u32 << (32 - size));
            while Ipv4Addr::from(at) < found.network() && at < u32::from(Ipv4Addr::new(172, 32, 0, 0)) {
                let before = Ipv4Net::new(Ipv4Addr::from(at), size).unwrap();
                prop_assert!(taken.iter().any(|net| overlap(net, &before)), "{} was free", before);
                at += step;
            }
        }
    }
}
