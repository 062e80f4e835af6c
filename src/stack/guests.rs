//! Who is behind the TAP of slirp4netns's segment: guest address → MAC, learnt as frames pass.
//!
//! **Learning.** [`Guests::learn`] is told of every sender: of ARP and neighbour discovery, of each IP frame, of DHCP's
//! leases. What is known already costs one comparison with the sender of the last frame. A known address with another MAC
//! is believed (a guest that moved), and its frames follow at once.
//!
//! **Asking.** A frame for an address that nobody has been seen with is held, and the address asked for: at once, and
//! then every [`INTERVAL`], [`TRIES`] times in all. An answer releases the frames in their order; none drops them, counted
//! as [`DropReason::Unresolved`](super::verdict::DropReason::Unresolved). The next frame asks anew, so an absent guest
//! costs one request a second while somebody wants it, and a guest that comes late is found.
//!
//! **Limits.** A table for each family, so that one does not starve the other. When it is full, an address goes that we
//! have sent nothing to, else the one that we have sent to least recently: a guest that floods the table with invented
//! addresses does not push out those that are talked to. Addresses asked for at a time, and frames and bytes held for
//! each, are bounded too; the address asked for longest gives way.
//!
//! Entries do not age: a segment behind a TAP is small, and what is stale is either overwritten or not used. Nothing here
//! reads the clock: an address never asked for is due "at once", and [`Guests::poll_due`] sets its clock going.

use std::net::IpAddr;

use smoltcp::time::{Duration, Instant};

use crate::network::config::Mac;

/// Between two requests for one address: RetransTimer of RFC 4861, section 10, and Linux's `retrans_time_ms`.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Requests before an address is given up: MAX_MULTICAST_SOLICIT of RFC 4861, section 10, and Linux's `mcast_solicit`.
pub const TRIES: u8 = 3;

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct GuestLimits {
    /// Addresses known, of each family. At least one.
    pub known: usize,
    /// Addresses asked for at a time. At least one.
    pub asked: usize,
    /// Frames held for one address.
    pub held_frames: usize,
    /// Bytes held for one address.
    pub held_bytes: usize,
}

impl Default for GuestLimits {
    fn default() -> Self {
        // Addresses known: as libslirp. Bytes: Linux's unres_qlen_bytes (212 992, Documentation/networking/
        // ip-sysctl.rst); frames: a datagram of 64 KiB in pieces of 1500 is 45 of them.
        Self { known: 16, asked: 16, held_frames: 64, held_bytes: 212_992 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    address: IpAddr,
    mac: Mac,
    /// When it was learnt or last used, in uses of this table.
    stamp: u64,
    /// Something was sent to it.
    used: bool,
}

/// The table of one family.
#[derive(Debug)]
struct Table {
    known: Vec<Known>,
    /// Whom the last frame came from, and whom it went to: indices, compared before they are believed.
    from: usize,
    to: usize,
    clock: u64,
}

/// No index: nothing was sent yet, or whom it went to is forgotten.
const NOBODY: usize = usize::MAX;

impl Table {
    fn new() -> Self {
        Self { known: Vec::new(), from: NOBODY, to: NOBODY, clock: 0 }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn find(&self, address: IpAddr) -> Option<usize> {
        self.known.iter().position(|known| known.address == address)
    }

    /// Where a frame for `address` goes.
    fn mac_of(&mut self, address: IpAddr) -> Option<Mac> {
        if let Some(known) = self.known.get(self.to)
            && known.address == address
        {
            return Some(known.mac);
        }
        let at = self.find(address)?;
        // Stamped when the turn passes to another one, which is exact: between two stamps nobody else was sent to.
        let stamp = self.tick();
        if let Some(left) = self.known.get_mut(self.to) {
            left.stamp = stamp;
        }
        self.to = at;
        let stamp = self.tick();
        let known = &mut self.known[at];
        known.stamp = stamp;
        known.used = true;
        Some(known.mac)
    }

    /// True if the address was not known.
    fn learn(&mut self, address: IpAddr, mac: Mac, limit: usize) -> bool {
        let stamp = self.tick();
        if let Some(at) = self.find(address) {
            self.known[at].mac = mac;
            self.from = at;
            return false;
        }
        let entry = Known { address, mac, stamp, used: false };
        if self.known.len() < limit.max(1) {
            self.from = self.known.len();
            self.known.push(entry);
            return true;
        }
        // Whom we are sending to right now is the last to go.
        let oldest = |(at, known): &(usize, &Known)| (known.used && *at == self.to, known.used, known.stamp);
        let at = self.known.iter().enumerate().min_by_key(oldest).map_or(0, |(at, _)| at);
        self.known[at] = entry;
        self.from = at;
        if self.to == at {
            self.to = NOBODY;
        }
        true
    }
}

/// An address that is being asked for.
#[derive(Debug)]
struct Asked {
    address: IpAddr,
    tries: u8,
    /// When to ask again or give up; `None`: the clock has not been seen since the first request.
    due: Option<Instant>,
    frames: Vec<Vec<u8>>,
    bytes: usize,
}

/// Everything known of the guests on one segment.
#[derive(Debug)]
pub struct Guests {
    tables: [Table; 2],
    asked: Vec<Asked>,
    limits: GuestLimits,
}

impl Guests {
    /// Nobody is known yet.
    pub fn new(limits: GuestLimits) -> Self {
        Self { tables: [Table::new(), Table::new()], asked: Vec::new(), limits }
    }

    /// Addresses known, addresses asked for, and bytes held for those.
    pub fn len(&self) -> (usize, usize, usize) {
        let known = self.tables.iter().map(|table| table.known.len()).sum();
        (known, self.asked.len(), self.asked.iter().map(|asked| asked.bytes).sum())
    }

    /// Whether `mac` is that of a guest.
    pub fn is_guest(&self, mac: Mac) -> bool {
        self.tables.iter().any(|table| table.known.iter().any(|known| known.mac == mac))
    }

    /// Where a frame for `address` goes; `None`: to be held.
    pub fn mac_of(&mut self, address: IpAddr) -> Option<Mac> {
        self.tables[usize::from(address.is_ipv6())].mac_of(address)
    }

    /// `address` was seen with `mac`. True: somebody waits for it, take its frames with [`Guests::release`].
    pub fn learn(&mut self, address: IpAddr, mac: Mac) -> bool {
        let table = &mut self.tables[usize::from(address.is_ipv6())];
        if let Some(known) = table.known.get(table.from)
            && known.address == address
            && known.mac == mac
        {
            return false;
        }
        // Nobody has a group's MAC or none at all.
        if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
            return false;
        }
        let new = table.learn(address, mac, self.limits.known);
        new && self.asked.iter().any(|asked| asked.address == address)
    }

    /// The frames that wait for `address`, which is no longer asked for.
    pub fn release(&mut self, address: IpAddr) -> Vec<Vec<u8>> {
        match self.asked.iter().position(|asked| asked.address == address) {
            Some(at) => self.asked.remove(at).frames,
            None => Vec::new(),
        }
    }

    /// Keeps a frame for `address` and asks for it. Returns how many frames were dropped for want of room.
    pub fn hold(&mut self, address: IpAddr, frame: &[u8]) -> usize {
        let mut dropped = 0;
        let at = self.asked.iter().position(|asked| asked.address == address).unwrap_or_else(|| {
            if self.asked.len() >= self.limits.asked.max(1) {
                dropped += self.asked.remove(0).frames.len();
            }
            self.asked.push(Asked { address, tries: 0, due: None, frames: Vec::new(), bytes: 0 });
            self.asked.len() - 1
        });
        let asked = &mut self.asked[at];
        if asked.frames.len() >= self.limits.held_frames || asked.bytes + frame.len() > self.limits.held_bytes {
            return dropped + 1;
        }
        asked.bytes += frame.len();
        asked.frames.push(frame.to_vec());
        dropped
    }

    /// An address that has never been asked for: ask now.
    pub fn poll_new(&mut self) -> Option<IpAddr> {
        let asked = self.asked.iter_mut().find(|asked| asked.tries == 0)?;
        asked.tries = 1;
        Some(asked.address)
    }

    /// When to call [`Guests::poll_due`].
    pub fn next_timeout(&self) -> Option<Instant> {
        self.asked.iter().map(|asked| asked.due.unwrap_or(Instant::ZERO)).min()
    }

    /// What is due: an address to ask for again, or a number of frames whose guest did not answer.
    pub fn poll_due(&mut self, now: Instant) -> Option<Due> {
        for asked in &mut self.asked {
            asked.due.get_or_insert(now + INTERVAL);
        }
        let at = self.asked.iter().position(|asked| asked.due.is_some_and(|due| due <= now))?;
        let asked = &mut self.asked[at];
        if asked.tries < TRIES {
            asked.tries += 1;
            asked.due = Some(now + INTERVAL);
            return Some(Due::Ask(asked.address));
        }
        Some(Due::GivenUp { dropped: self.asked.remove(at).frames.len() })
    }
}

/// What [`Guests::poll_due`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Ask for this address again.
    Ask(IpAddr),
    /// An address was given up.
    GivenUp {
        /// Frames that waited for it.
        dropped: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GuestLimits = GuestLimits { known: 4, asked: 2, held_frames: 3, held_bytes: 100 };

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 2, last])
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn what_was_seen_is_known_and_what_moved_is_followed() {
        let mut guests = Guests::new(LIMITS);
        assert_eq!(guests.mac_of(ip(1)), None);
        assert!(!guests.learn(ip(1), mac(1)));
        assert!(!guests.learn(ip(2), mac(2)));
        assert_eq!((guests.mac_of(ip(1)), guests.mac_of(ip(2))), (Some(mac(1)), Some(mac(2))));
        guests.learn(ip(1), mac(9));
        assert_eq!((guests.mac_of(ip(1)), guests.mac_of(ip(2))), (Some(mac(9)), Some(mac(2))));
        assert!(guests.is_guest(mac(9)) && !guests.is_guest(mac(1)));
        // Two guests may share a MAC: one machine with two addresses, or a router.
        guests.learn(ip(3), mac(9));
        assert_eq!((guests.mac_of(ip(1)), guests.mac_of(ip(3))), (Some(mac(9)), Some(mac(9))));
    }

    #[test]
    fn no_group_and_no_zeroes() {
        let mut guests = Guests::new(LIMITS);
        guests.learn(ip(1), Mac([0xff; 6]));
        guests.learn(ip(1), Mac([0; 6]));
        assert_eq!(guests.len(), (0, 0, 0));
    }

    #[test]
    fn those_that_are_talked_to_outlive_a_flood() {
        let mut guests = Guests::new(LIMITS);
        guests.learn(ip(1), mac(1));
        guests.learn(ip(2), mac(2));
        assert_eq!((guests.mac_of(ip(1)), guests.mac_of(ip(2))), (Some(mac(1)), Some(mac(2))));
        for n in 10..=255 {
            guests.learn(ip(n), mac(n));
            assert!(guests.len().0 <= 4);
        }
        assert_eq!((guests.mac_of(ip(1)), guests.mac_of(ip(2))), (Some(mac(1)), Some(mac(2))));
        assert_eq!((guests.mac_of(ip(255)), guests.mac_of(ip(20))), (Some(mac(255)), None));
        // The other family has a table of its own.
        guests.learn("fd00::9".parse().unwrap(), mac(9));
        assert_eq!(guests.len().0, 5);
    }

    #[test]
    fn among_those_that_are_talked_to_the_one_left_longest_goes() {
        let mut guests = Guests::new(LIMITS);
        for n in 1..=4 {
            guests.learn(ip(n), mac(n));
            guests.mac_of(ip(n));
        }
        guests.mac_of(ip(1));
        guests.learn(ip(5), mac(5));
        assert_eq!(guests.mac_of(ip(2)), None);
        for n in [1, 3, 4, 5] {
            assert_eq!(guests.mac_of(ip(n)), Some(mac(n)));
        }
    }

    #[test]
    fn frames_wait_for_an_answer_in_order() {
        let mut guests = Guests::new(LIMITS);
        assert_eq!((guests.hold(ip(1), &[1]), guests.hold(ip(1), &[2]), guests.hold(ip(2), &[3])), (0, 0, 0));
        assert_eq!((guests.poll_new(), guests.poll_new(), guests.poll_new()), (Some(ip(1)), Some(ip(2)), None));
        assert!(guests.learn(ip(1), mac(1)));
        assert_eq!(guests.release(ip(1)), [vec![1], vec![2]]);
        assert!(!guests.learn(ip(1), mac(2)), "nothing waits any more");
        assert!(guests.release(ip(1)).is_empty());
        assert_eq!(guests.len(), (1, 1, 1));
    }

    #[test]
    fn asked_three_times_and_given_up() {
        let mut guests = Guests::new(LIMITS);
        assert_eq!(guests.next_timeout(), None);
        let at = |ms| Instant::from_millis(5000 + ms);
        guests.hold(ip(1), &[1]);
        guests.hold(ip(1), &[2]);
        assert_eq!(guests.poll_new(), Some(ip(1)));
        assert_eq!(guests.next_timeout(), Some(Instant::ZERO), "the clock is wanted");
        assert_eq!(guests.poll_due(at(0)), None);
        let mut seen = Vec::new();
        while let Some(due) = guests.next_timeout() {
            while let Some(what) = guests.poll_due(due) {
                seen.push((due, what));
            }
        }
        let given_up = Due::GivenUp { dropped: 2 };
        assert_eq!(seen, [(at(1000), Due::Ask(ip(1))), (at(2000), Due::Ask(ip(1))), (at(3000), given_up)]);
        assert_eq!(guests.len(), (0, 0, 0));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut guests = Guests::new(LIMITS);
        assert_eq!(guests.hold(ip(1), &[0; 101]), 1, "too many bytes at once");
        assert_eq!((0..5).map(|_| guests.hold(ip(1), &[0; 30])).sum::<usize>(), 2, "three frames fit");
        assert_eq!((0..5).map(|_| guests.hold(ip(2), &[0; 40])).sum::<usize>(), 3, "100 bytes fit");
        assert_eq!(guests.len(), (0, 2, 170));
        // A third address: the one asked for longest gives way.
        assert_eq!(guests.hold(ip(3), &[0; 10]), 3);
        assert_eq!(guests.len(), (0, 2, 90));
        assert!(!guests.learn(ip(1), mac(1)) && guests.learn(ip(2), mac(2)));
    }
}
