//! Addresses lent to whoever asks, by MAC: the DHCP of slirp4netns's segment, where guests are not known beforehand.
//!
//! An address is offered for [`OFFER`] and, once asked for, lent for the server's lease time. It is free again when its
//! client releases it or lets it expire; the client that had it gets it again while nobody else has. First the addresses
//! that nobody ever had are lent, then the one that expired first, so that a client that slept through its lease most
//! likely finds its address untouched. The table is the range: its size is the bound.

use std::net::Ipv4Addr;

use smoltcp::time::{Duration, Instant};

/// How long an offer is kept for its client: longer than any client waits between offer and request (RFC 2131,
/// section 4.1: 64 s is the longest wait between two messages of a client).
const OFFER: Duration = Duration::from_secs(64);
/// How long an address rests that a client found in use by somebody else.
const DECLINED: Duration = Duration::from_secs(600);
/// Largest range kept; what lies above is not lent.
const MAX_RANGE: u32 = 4096;

#[derive(Clone, Copy, Debug)]
struct Lease {
    /// Zeroes: nobody's, but in use.
    mac: [u8; 6],
    until: Instant,
    bound: bool,
}

/// The addresses of one segment.
#[derive(Debug)]
pub struct Pool {
    first: u32,
    leases: Vec<Option<Lease>>,
}

impl Pool {
    /// From `first` to `last`, both included.
    pub fn new((first, last): (Ipv4Addr, Ipv4Addr)) -> Self {
        let (first, last) = (first.to_bits(), last.to_bits());
        let size = last.checked_sub(first).map_or(0, |span| span.saturating_add(1)).min(MAX_RANGE);
        Self { first, leases: vec![None; size as usize] }
    }

    fn index(&self, address: Ipv4Addr) -> Option<usize> {
        let at = address.to_bits().checked_sub(self.first)? as usize;
        (at < self.leases.len()).then_some(at)
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first + at as u32)
    }

    fn open_to(&self, at: usize, mac: [u8; 6], now: Instant) -> bool {
        self.leases[at].is_none_or(|lease| lease.mac == mac || lease.until <= now)
    }

    /// An address for `mac`: the one it wants if that is free, its last one, or a free one. `None`: all are lent.
    pub fn offer(&mut self, now: Instant, mac: [u8; 6], wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let wanted = wanted.and_then(|address| self.index(address)).filter(|&at| self.open_to(at, mac, now));
        let mine = || self.leases.iter().position(|lease| lease.is_some_and(|lease| lease.mac == mac));
        let never_lent = || self.leases.iter().position(Option::is_none);
        let expired = || {
            let ends = self.leases.iter().enumerate().filter_map(|(at, lease)| Some((lease.as_ref()?.until, at)));
            ends.min().filter(|&(until, _)| until <= now).map(|(_, at)| at)
        };
        let at = wanted.or_else(mine).or_else(never_lent).or_else(expired)?;
        let bound = self.leases[at].is_some_and(|lease| lease.mac == mac && lease.bound && lease.until > now);
        if !bound {
            // One offer a client, or two clients that cannot decide would empty the range.
            self.forget(mac, |lease| !lease.bound);
            self.leases[at] = Some(Lease { mac, until: now + OFFER, bound: false });
        }
        Some(self.address(at))
    }

    /// Lends `address` to `mac` for `time`; false if it is not ours or somebody else's.
    pub fn bind(&mut self, now: Instant, mac: [u8; 6], address: Ipv4Addr, time: Duration) -> bool {
        let Some(at) = self.index(address).filter(|&at| self.open_to(at, mac, now)) else { return false };
        self.forget(mac, |_| true);
        self.leases[at] = Some(Lease { mac, until: now + time, bound: true });
        true
    }

    /// `mac` gives `address` back.
    pub fn release(&mut self, mac: [u8; 6], address: Ipv4Addr) {
        if let Some(at) = self.index(address)
            && self.leases[at].is_some_and(|lease| lease.mac == mac)
        {
            self.leases[at] = None;
        }
    }

    /// `mac` took another server's offer.
    pub fn withdraw(&mut self, mac: [u8; 6]) {
        self.forget(mac, |lease| !lease.bound);
    }

    /// `mac` found somebody else at `address`, which it was given.
    pub fn decline(&mut self, now: Instant, mac: [u8; 6], address: Ipv4Addr) {
        if let Some(at) = self.index(address)
            && self.leases[at].is_some_and(|lease| lease.mac == mac)
        {
            self.leases[at] = Some(Lease { mac: [0; 6], until: now + DECLINED, bound: true });
        }
    }

    fn forget(&mut self, mac: [u8; 6], which: impl Fn(&Lease) -> bool) {
        for slot in &mut self.leases {
            if slot.is_some_and(|lease| lease.mac == mac && which(&lease)) {
                *slot = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn pool() -> Pool {
        Pool::new((Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 30)))
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 2, last)
    }

    fn mac(last: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, last]
    }

    fn at(seconds: i64) -> Instant {
        Instant::from_secs(seconds)
    }

    #[test]
    fn sixteen_clients_and_the_seventeenth() {
        let mut pool = pool();
        for n in 0..16 {
            assert_eq!(pool.offer(at(0), mac(n), None), Some(ip(15 + n)));
            assert!(pool.bind(at(0), mac(n), ip(15 + n), HOUR));
        }
        assert_eq!(pool.offer(at(0), mac(16), None), None);
        assert_eq!(pool.offer(at(0), mac(16), Some(ip(20))), None);
        assert!(!pool.bind(at(0), mac(16), ip(20), HOUR));
        // One goes: by its own word, not another's.
        pool.release(mac(4), ip(20));
        assert_eq!(pool.offer(at(1), mac(16), None), None);
        pool.release(mac(5), ip(20));
        assert_eq!(pool.offer(at(1), mac(16), None), Some(ip(20)));
        // And when time is up the first to expire.
        assert!(pool.bind(at(10), mac(3), ip(18), HOUR));
        assert_eq!(pool.offer(at(3599), mac(17), None), Some(ip(20)), "an offer that was not taken");
        assert_eq!(pool.offer(at(3600), mac(18), None), Some(ip(15)));
        assert!(pool.bind(at(3601), mac(0), ip(16), HOUR), "expired, and free for its asker");
    }

    #[test]
    fn wishes_are_heard_where_they_can_be() {
        let mut pool = pool();
        assert_eq!(pool.offer(at(0), mac(1), Some(ip(22))), Some(ip(22)));
        assert_eq!(pool.offer(at(0), mac(2), Some(ip(22))), Some(ip(15)), "taken");
        assert_eq!(pool.offer(at(0), mac(3), Some(ip(100))), Some(ip(16)), "out of range");
        assert_eq!(pool.offer(at(0), mac(4), Some(Ipv4Addr::new(1, 1, 1, 1))), Some(ip(17)));
        assert!(!pool.bind(at(0), mac(3), ip(14), HOUR) && !pool.bind(at(0), mac(3), ip(31), HOUR));
        // A change of mind gives the first one back.
        assert!(pool.bind(at(0), mac(1), ip(22), HOUR));
        assert!(pool.bind(at(1), mac(1), ip(23), HOUR));
        assert!(pool.bind(at(1), mac(5), ip(22), HOUR));
    }

    #[test]
    fn a_client_keeps_its_address() {
        let mut pool = pool();
        for second in [0, 10, 4000, 9000] {
            assert_eq!(pool.offer(at(second), mac(1), None), Some(ip(15)));
            assert!(pool.bind(at(second), mac(1), ip(15), HOUR));
        }
        assert_eq!(pool.offer(at(100_000), mac(2), None), Some(ip(16)), "those never lent come first");
        assert_eq!(pool.offer(at(100_000), mac(1), None), Some(ip(15)));
    }

    #[test]
    fn offers_that_nobody_takes_come_back() {
        let mut pool = pool();
        for n in 0..16 {
            pool.offer(at(0), mac(n), None);
        }
        assert_eq!(pool.offer(at(63), mac(99), None), None);
        assert_eq!(pool.offer(at(64), mac(99), None), Some(ip(15)));
        pool.withdraw(mac(99));
        assert_eq!(pool.offer(at(64), mac(98), None), Some(ip(15)));
    }

    #[test]
    fn a_declined_address_rests() {
        let mut pool = pool();
        assert_eq!(pool.offer(at(0), mac(1), None), Some(ip(15)));
        assert!(pool.bind(at(0), mac(1), ip(15), HOUR));
        pool.decline(at(0), mac(2), ip(15));
        assert_eq!(pool.offer(at(0), mac(1), None), Some(ip(15)), "not for others to decline");
        pool.decline(at(0), mac(1), ip(15));
        assert_eq!(pool.offer(at(0), mac(1), Some(ip(15))), Some(ip(16)));
        assert!(pool.bind(at(600), mac(1), ip(15), HOUR));
    }

    #[test]
    fn an_empty_range_lends_nothing() {
        let mut pool = Pool::new((ip(30), ip(15)));
        assert_eq!(pool.offer(at(0), mac(1), Some(ip(20))), None);
        assert!(!pool.bind(at(0), mac(1), ip(20), HOUR));
    }
}
