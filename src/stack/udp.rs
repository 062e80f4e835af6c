//! UDP: who may answer whom, and for how long.
//!
//! **Out.** One host socket per guest address and port, whatever the destination (endpoint-independent mapping and
//! filtering, RFC 4787 REQ-1: STUN, games and WebRTC depend on it). The runtime owns the sockets; a [`UdpVia`] names the
//! mapping. **In.** A datagram at a published port is shown to the guest from the
//! client's true address; the guest's answers to that pair leave from the published socket, from the address that the
//! client used. Where the address cannot be shown, or the guest already talks to it through another forward, the gateway
//! with a port of our choice stands in.
//!
//! **Time.** A mapping lives for [`IDLE`] after the last datagram, [`IDLE_STREAM`] once it was answered after more than
//! [`STREAM_AGE`], [`IDLE_DNS`] if it only ever asked port 53.
//!
//! Many that end at once end in turns of at most [`EXPIRE_BATCH`]; `next_timeout` is due again until all have.
//!
//! **Limits.** `max_mappings` and `max_pairs`; of the same kind the one idle for longest gives way and is counted
//! (where more than [`EXPIRE_BATCH`] have moved since their timers were set, that of so many). Each unbound UDP socket
//! takes one of the host's 28 232 ephemeral ports, hence the low default.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::FixedState;
use smoltcp::time::{Duration, Instant};

use crate::stack::arena::{Arena, Id};
use crate::stack::census::{FlowId, FlowRecord, FlowState, Kind};
use crate::stack::deadline::Deadlines;
use crate::stack::flow::{FlowKey, StandIns};
use crate::stack::ledger::{Ledger, Traffic};
use crate::stack::verdict::DropReason;

/// RFC 4787, REQ-5: not below two minutes.
pub const IDLE: Duration = Duration::from_secs(120);
/// RFC 4787, REQ-5 recommends five minutes; given to mappings that are streams.
pub const IDLE_STREAM: Duration = Duration::from_secs(300);
/// A mapping whose answers span this is a stream: nf_conntrack's rule (net/netfilter/nf_conntrack_proto_udp.c).
pub const STREAM_AGE: Duration = Duration::from_secs(2);
/// RFC 4787, REQ-5 lets well-known ports be shorter; a resolver's longest wait is 30 s (resolv.conf(5), RES_MAXRETRANS).
pub const IDLE_DNS: Duration = Duration::from_secs(30);
/// Timers looked at in one call. Each may close a socket and tell of a flow: a few microseconds, and so well below the
/// millisecond that frames may wait for.
pub const EXPIRE_BATCH: usize = 64;
/// Gateway ports that a mapping remembers, to show answers from the host itself as the gateway's.
const ALIAS_PORTS: usize = 8;

/// Bounds of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct UdpLimits {
    /// Outgoing mappings, one host socket each.
    pub max_mappings: usize,
    /// Pairs of client and published port.
    pub max_pairs: usize,
}

impl Default for UdpLimits {
    fn default() -> Self {
        // dataplane.md, rule 9: 4096 per endpoint, a seventh of the host's ephemeral ports.
        Self { max_mappings: 4096, max_pairs: 4096 }
    }
}

#[derive(Debug)]
struct Mapping {
    guest: SocketAddr,
    /// Ports of the gateway that the guest sent to (as it named them), newest last.
    alias_ports: [u16; ALIAS_PORTS],
    alias_next: usize,
    only_dns: bool,
    answered: bool,
    since: Instant,
    last: Instant,
    traffic: Traffic,
    /// Whom the guest sent to last, as it named them and as we did.
    peer: (SocketAddr, SocketAddr),
    armed: Option<Instant>,
}

impl Mapping {
    fn record(&self, id: Id, closed: bool) -> FlowRecord {
        let state = match self.answered {
            _ if closed => FlowState::Closed,
            true => FlowState::Open,
            false => FlowState::Unanswered,
        };
        FlowRecord {
            id: FlowId { kind: Kind::Udp, id },
            guest: self.guest,
            peer: self.peer.0,
            target: Some(self.peer.1),
            listener: None,
            state,
            traffic: self.traffic,
            opened: self.since,
            last: self.last,
        }
    }

    fn expires(&self) -> Instant {
        self.last
            + if self.only_dns {
                IDLE_DNS
            } else if self.answered && self.last > self.since + STREAM_AGE {
                IDLE_STREAM
            } else {
                IDLE
            }
    }
}

#[derive(Debug)]
struct Pair {
    key: FlowKey,
    listener: usize,
    client: SocketAddr,
    local: IpAddr,
    since: Instant,
    last: Instant,
    traffic: Traffic,
    /// The port's account.
    port: Id,
    armed: Option<Instant>,
}

impl Pair {
    fn expires(&self) -> Instant {
        self.last + if self.last > self.since + STREAM_AGE { IDLE_STREAM } else { IDLE }
    }

    fn record(&self, id: Id, closed: bool) -> FlowRecord {
        let state = match self.traffic.from_guest_packets {
            _ if closed => FlowState::Closed,
            0 => FlowState::Unanswered,
            _ => FlowState::Open,
        };
        FlowRecord {
            id: FlowId { kind: Kind::UdpPublished, id },
            guest: self.key.guest(),
            peer: self.key.peer(),
            target: Some(self.client),
            listener: Some(self.listener),
            state,
            traffic: self.traffic,
            opened: self.since,
            last: self.last,
        }
    }
}

/// What a timer is of.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Mapping(Id),
    Pair(Id),
}

/// How a datagram of the guest leaves the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpVia {
    /// From the mapping's own socket.
    Mapping {
        /// Which. The first time it is named it has no socket yet.
        id: Id,
    },
    /// From a published socket, with this source address.
    Listener {
        /// Its number, which is never used twice.
        index: usize,
        /// The address that the client used.
        local: IpAddr,
    },
}

/// Every UDP flow of one endpoint.
pub struct Udp {
    mappings: Arena<Mapping>,
    by_guest: HashMap<SocketAddr, Id, FixedState>,
    pairs: Arena<Pair>,
    by_key: HashMap<FlowKey, Id, FixedState>,
    by_client: HashMap<(usize, SocketAddr, IpAddr), Id, FixedState>,
    mapping_timers: Deadlines<Id>,
    pair_timers: Deadlines<Id>,
    closed: Vec<Id>,
    limits: UdpLimits,
    stand_ins: StandIns,
    /// Mappings and pairs that gave way to newer ones.
    pub evicted: u64,
    /// The account.
    pub(in crate::stack) ledger: Ledger,
}

impl Udp {
    /// `seed`: unpredictable to the guest.
    pub fn new(limits: UdpLimits, seed: u64) -> Self {
        let hash = FixedState::with_seed(seed);
        Self {
            mappings: Arena::default(),
            by_guest: HashMap::with_hasher(hash.clone()),
            pairs: Arena::default(),
            by_key: HashMap::with_hasher(hash.clone()),
            by_client: HashMap::with_hasher(hash),
            mapping_timers: Deadlines::default(),
            pair_timers: Deadlines::default(),
            closed: Vec::new(),
            limits,
            stand_ins: StandIns::new(seed),
            evicted: 0,
            ledger: Ledger::default(),
        }
    }

    /// Outgoing mappings and published pairs that live.
    pub fn len(&self) -> (usize, usize) {
        (self.mappings.len(), self.pairs.len())
    }

    /// A mapping whose socket must be closed.
    pub fn poll_closed(&mut self) -> Option<Id> {
        self.closed.pop()
    }

    /// When to call [`Udp::handle_timeout`].
    pub fn next_timeout(&self) -> Option<Instant> {
        [self.mapping_timers.next(), self.pair_timers.next()].into_iter().flatten().min()
    }

    /// Ends what has been idle for too long, or the first of it: then [`Udp::next_timeout`] stays due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..EXPIRE_BATCH {
            let (at, owner) = if let Some((at, id)) = self.mapping_timers.pop_due(now) {
                (at, Owner::Mapping(id))
            } else if let Some((at, id)) = self.pair_timers.pop_due(now) {
                (at, Owner::Pair(id))
            } else {
                return;
            };
            self.expire(owner, at, now);
        }
    }

    /// Handles one popped timer: ends what is due, and arms anew what has moved since.
    fn expire(&mut self, owner: Owner, at: Instant, now: Instant) {
        let Some(expires) = self.take_timer(owner, at) else { return };
        if expires <= now {
            self.end(owner);
        } else {
            self.arm(owner, expires);
        }
    }

    /// Whether a popped timer is its owner's; then the owner has none, and this is when it expires.
    fn take_timer(&mut self, owner: Owner, at: Instant) -> Option<Instant> {
        let (armed, expires) = match owner {
            Owner::Mapping(id) => {
                let mapping = self.mappings.get_mut(id)?;
                let expires = mapping.expires();
                (&mut mapping.armed, expires)
            }
            Owner::Pair(id) => {
                let pair = self.pairs.get_mut(id)?;
                let expires = pair.expires();
                (&mut pair.armed, expires)
            }
        };
        (*armed == Some(at)).then(|| {
            *armed = None;
            expires
        })
    }

    fn arm(&mut self, owner: Owner, at: Instant) {
        match owner {
            Owner::Mapping(id) => {
                if let Some(mapping) = self.mappings.get_mut(id) {
                    self.mapping_timers.arm(id, at, &mut mapping.armed);
                }
            }
            Owner::Pair(id) => {
                if let Some(pair) = self.pairs.get_mut(id) {
                    self.pair_timers.arm(id, at, &mut pair.armed);
                }
            }
        }
    }

    fn end(&mut self, owner: Owner) -> bool {
        match owner {
            Owner::Mapping(id) => self.end_mapping(id),
            Owner::Pair(id) => self.end_pair(id),
        }
    }

    /// Ends a mapping; false if there is none.
    pub fn end_mapping(&mut self, id: Id) -> bool {
        let Some(mapping) = self.mappings.remove(id) else { return false };
        self.by_guest.remove(&mapping.guest);
        self.closed.push(id);
        self.ledger.closed(|| mapping.record(id, true));
        true
    }

    /// Ends a pair; false if there is none.
    pub fn end_pair(&mut self, id: Id) -> bool {
        let Some(pair) = self.pairs.remove(id) else { return false };
        self.by_key.remove(&pair.key);
        self.by_client.remove(&(pair.listener, pair.client, pair.local));
        self.ledger.closed(|| pair.record(id, true));
        true
    }

    /// Slots of mappings and of pairs that were ever used.
    pub fn slots(&self) -> (u32, u32) {
        (self.mappings.slots(), self.pairs.slots())
    }

    /// The mapping in a slot.
    pub fn mapping_at(&self, slot: u32) -> Option<FlowRecord> {
        self.mappings.at(slot).map(|(id, mapping)| mapping.record(id, false))
    }

    /// The pair in a slot.
    pub fn pair_at(&self, slot: u32) -> Option<FlowRecord> {
        self.pairs.at(slot).map(|(id, pair)| pair.record(id, false))
    }

    /// Forgets every pair of one published port. A scan; its port has just been closed by a person or a program.
    pub fn forget_listener(&mut self, listener: usize) {
        let Self { pairs, by_key, by_client, ledger, .. } = self;
        by_client.retain(|client, id| {
            let stays = client.0 != listener;
            if !stays && let Some(pair) = pairs.remove(*id) {
                by_key.remove(&pair.key);
                ledger.closed(|| pair.record(*id, true));
            }
            stays
        });
        ledger.forget_port(listener);
    }

    /// Makes room for one more `of` them by ending what expires first. The earliest timer that is up to date is that; those
    /// before it are armed anew. After [`EXPIRE_BATCH`] that were not, the first to expire of these gives way.
    fn evict(&mut self, of: Kind) {
        let mut first: Option<(Instant, Owner)> = None;
        let mut moved = 0;
        while moved < EXPIRE_BATCH {
            let popped = match of {
                Kind::Udp => self.mapping_timers.pop_earliest().map(|(at, id)| (at, Owner::Mapping(id))),
                _ => self.pair_timers.pop_earliest().map(|(at, id)| (at, Owner::Pair(id))),
            };
            let Some((at, owner)) = popped else { break };
            // Of one that has ended; its entry is gone with this.
            let Some(expires) = self.take_timer(owner, at) else { continue };
            moved += 1;
            let later = match first {
                Some((earliest, _)) if earliest <= expires => Some((expires, owner)),
                _ => first.replace((expires, owner)),
            };
            if let Some((expires, owner)) = later {
                self.arm(owner, expires);
            }
            if expires <= at {
                break;
            }
        }
        if let Some((_, owner)) = first
            && self.end(owner)
        {
            self.evicted += 1;
        }
    }

    /// Ends the mapping that expires first; false if there is none.
    pub fn shed(&mut self) -> bool {
        let before = self.evicted;
        self.evict(Kind::Udp);
        self.evicted > before
    }

    /// A datagram of the guest: how it leaves, and to whom (`target` is where policy sends it; a published client's true
    /// address wins). `alias`: it went to the gateway address. `size`: what it is counted as.
    pub fn route_from_guest(
        &mut self,
        now: Instant,
        (guest, peer): (SocketAddr, SocketAddr),
        target: Option<SocketAddr>,
        alias: bool,
        size: &Traffic,
    ) -> Option<(UdpVia, SocketAddr)> {
        if let Some(pair) = self.by_key.get(&FlowKey::new(guest, peer)).and_then(|&id| self.pairs.get_mut(id)) {
            pair.last = now;
            pair.traffic.add(size);
            self.ledger.add(Some(pair.port), size);
            return Some((UdpVia::Listener { index: pair.listener, local: pair.local }, pair.client));
        }
        let target = target?;
        let id = match self.by_guest.get(&guest).copied() {
            Some(id) => id,
            None => self.new_mapping(now, guest, (peer, target)),
        };
        let mapping = self.mappings.get_mut(id)?;
        mapping.last = now;
        mapping.traffic.add(size);
        mapping.peer = (peer, target);
        self.ledger.add(None, size);
        mapping.only_dns &= peer.port() == 53;
        if alias && !mapping.alias_ports.contains(&peer.port()) {
            mapping.alias_ports[mapping.alias_next % ALIAS_PORTS] = peer.port();
            mapping.alias_next += 1;
        }
        Some((UdpVia::Mapping { id }, target))
    }

    fn new_mapping(&mut self, now: Instant, guest: SocketAddr, peer: (SocketAddr, SocketAddr)) -> Id {
        if self.mappings.len() >= self.limits.max_mappings {
            self.evict(Kind::Udp);
        }
        let id = self.mappings.insert(Mapping {
            guest,
            alias_ports: [0; ALIAS_PORTS],
            alias_next: 0,
            only_dns: true,
            answered: false,
            since: now,
            last: now,
            traffic: Traffic::default(),
            peer,
            armed: None,
        });
        self.by_guest.insert(guest, id);
        if let Some(mapping) = self.mappings.get_mut(id) {
            // Armed for the shortest life; moved later when it pops.
            self.mapping_timers.arm(id, now + IDLE_DNS, &mut mapping.armed);
            self.ledger.opened(|| mapping.record(id, false));
        }
        id
    }

    /// A datagram at a mapping's socket: the guest's address, and the source as the guest knows it.
    pub fn route_from_host(
        &mut self,
        now: Instant,
        id: Id,
        source: SocketAddr,
        gateway_alias: Option<IpAddr>,
        size: &Traffic,
    ) -> Result<(SocketAddr, SocketAddr), DropReason> {
        let mapping = self.mappings.get_mut(id).ok_or(DropReason::NoMapping)?;
        mapping.last = now;
        mapping.traffic.add(size);
        self.ledger.add(None, size);
        mapping.answered = true;
        Ok((mapping.guest, shown_source(mapping, source, gateway_alias)))
    }

    /// As [`Udp::route_from_host`] for an error about a datagram that the guest sent; keeps nothing alive.
    pub fn route_error(
        &self,
        id: Id,
        target: SocketAddr,
        gateway_alias: Option<IpAddr>,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let mapping = self.mappings.get(id)?;
        Some((mapping.guest, shown_source(mapping, target, gateway_alias)))
    }

    /// A datagram at a published port: the guest-side pair that carries it. `shown`: whether policy lets the client's
    /// address be seen; `gateway`: who stands in otherwise.
    pub fn route_published(
        &mut self,
        now: Instant,
        (listener, client, local): (usize, SocketAddr, IpAddr),
        shown: Option<SocketAddr>,
        stand_in: Option<(IpAddr, SocketAddr)>,
        size: &Traffic,
    ) -> Result<FlowKey, DropReason> {
        if let Some(pair) = self.by_client.get(&(listener, client, local)).and_then(|&id| self.pairs.get_mut(id)) {
            pair.last = now;
            pair.traffic.add(size);
            self.ledger.add(Some(pair.port), size);
            return Ok(pair.key);
        }
        if self.pairs.len() >= self.limits.max_pairs {
            self.evict(Kind::UdpPublished);
        }
        if self.pairs.len() >= self.limits.max_pairs {
            return Err(DropReason::TableFull);
        }
        let key = shown
            .map(|guest| FlowKey::new(guest, client))
            .filter(|key| !self.by_key.contains_key(key))
            .or_else(|| self.stand_ins.find(stand_in?, client.port(), |key| self.by_key.contains_key(key)))
            .ok_or(DropReason::TableFull)?;
        let port = self.ledger.connection(listener);
        self.ledger.add(Some(port), size);
        let traffic = *size;
        let pair = Pair { key, listener, client, local, since: now, last: now, traffic, port, armed: None };
        let id = self.pairs.insert(pair);
        self.by_key.insert(key, id);
        self.by_client.insert((listener, client, local), id);
        if let Some(pair) = self.pairs.get_mut(id) {
            self.pair_timers.arm(id, now + IDLE, &mut pair.armed);
            self.ledger.opened(|| pair.record(id, false));
        }
        Ok(key)
    }
}

fn shown_source(mapping: &Mapping, source: SocketAddr, gateway_alias: Option<IpAddr>) -> SocketAddr {
    match gateway_alias {
        Some(gateway) if mapping.alias_ports.contains(&source.port()) => SocketAddr::new(gateway, source.port()),
        _ => source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Traffic = Traffic { from_guest_bytes: 0, to_guest_bytes: 0, from_guest_packets: 0, to_guest_packets: 0 };

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn out(udp: &mut Udp, now: i64, guest: &str, peer: &str) -> UdpVia {
        let peer = at(peer);
        udp.route_from_guest(Instant::from_secs(now), (at(guest), peer), Some(peer), false, &ONE).expect("routed").0
    }

    #[test]
    fn one_mapping_serves_every_destination() {
        let mut udp = Udp::new(UdpLimits::default(), 1);
        let first = out(&mut udp, 0, "10.0.2.100:5000", "192.0.2.1:3478");
        assert_eq!(first, out(&mut udp, 0, "10.0.2.100:5000", "192.0.2.2:3479"));
        assert_ne!(first, out(&mut udp, 0, "10.0.2.100:5001", "192.0.2.1:3478"));
        let UdpVia::Mapping { id } = first else { panic!("not a mapping") };
        // Filtering is endpoint-independent too: a stranger reaches it.
        let stranger = at("198.51.100.9:9");
        assert_eq!(
            udp.route_from_host(Instant::from_secs(1), id, stranger, None, &ONE),
            Ok((at("10.0.2.100:5000"), stranger))
        );
    }

    #[test]
    fn idle_times_differ_and_traffic_extends_them() {
        let mut udp = Udp::new(UdpLimits::default(), 1);
        let UdpVia::Mapping { id: dns } = out(&mut udp, 0, "10.0.2.100:1", "192.0.2.1:53") else { panic!() };
        let UdpVia::Mapping { id: single } = out(&mut udp, 0, "10.0.2.100:2", "192.0.2.1:4000") else { panic!() };
        let UdpVia::Mapping { id: stream } = out(&mut udp, 0, "10.0.2.100:3", "192.0.2.1:4000") else { panic!() };
        udp.route_from_host(Instant::from_secs(10), stream, at("192.0.2.1:4000"), None, &ONE).unwrap();
        let mut ended = Vec::new();
        for second in 0..400 {
            udp.handle_timeout(Instant::from_secs(second));
            while let Some(id) = udp.poll_closed() {
                ended.push((second, id));
            }
        }
        assert_eq!(ended, [(30, dns), (120, single), (310, stream)]);
        assert_eq!(udp.len(), (0, 0));
    }

    #[test]
    fn full_tables_end_the_longest_idle() {
        let mut udp = Udp::new(UdpLimits { max_mappings: 2, max_pairs: 1 }, 1);
        let a = out(&mut udp, 0, "10.0.2.100:1", "192.0.2.1:9");
        let b = out(&mut udp, 1, "10.0.2.100:2", "192.0.2.1:9");
        // The first becomes the younger one.
        out(&mut udp, 2, "10.0.2.100:1", "192.0.2.1:9");
        out(&mut udp, 3, "10.0.2.100:3", "192.0.2.1:9");
        assert_eq!(udp.len().0, 2);
        assert_eq!(udp.evicted, 1);
        let (UdpVia::Mapping { id: a }, UdpVia::Mapping { id: b }) = (a, b) else { panic!() };
        assert_eq!(udp.poll_closed(), Some(b));
        assert!(udp.route_error(a, at("192.0.2.1:9"), None).is_some());
    }

    #[test]
    fn mappings_and_published_pairs_do_not_take_each_others_room() {
        let mut udp = Udp::new(UdpLimits { max_mappings: 2, max_pairs: 2 }, 1);
        let (guest, here) = (at("10.0.2.100:53"), "192.0.2.7".parse().unwrap());
        let client = |n: u16| SocketAddr::new(IpAddr::from([198, 51, 100, 1]), n);
        let published = |udp: &mut Udp, now, n| {
            udp.route_published(Instant::from_secs(now), (0, client(n), here), Some(guest), None, &ONE).unwrap()
        };
        published(&mut udp, 0, 1);
        let second = published(&mut udp, 1, 2);
        for n in 1..50 {
            out(&mut udp, 1 + n, &format!("10.0.2.100:{}", 1000 + n), "192.0.2.1:9");
        }
        assert_eq!((udp.len(), udp.evicted), ((2, 2), 47), "a guest that asks much keeps its clients");
        // The third client takes the place of the first, the older one.
        published(&mut udp, 60, 3);
        assert_eq!((udp.len(), udp.evicted), ((2, 2), 48));
        assert_eq!(published(&mut udp, 61, 2), second);
        assert_eq!(udp.evicted, 48);
    }

    #[test]
    fn answers_of_the_host_come_from_the_gateway_that_was_asked() {
        let mut udp = Udp::new(UdpLimits::default(), 1);
        let now = Instant::from_secs(0);
        let (guest, gateway) = (at("10.0.2.100:1"), at("10.0.2.2:7"));
        let host = at("192.0.2.7:7");
        let (via, target) = udp.route_from_guest(now, (guest, gateway), Some(host), true, &ONE).unwrap();
        assert_eq!(target, host);
        let UdpVia::Mapping { id } = via else { panic!() };
        assert_eq!(udp.route_from_host(now, id, host, Some(gateway.ip()), &ONE), Ok((guest, gateway)));
        // A port of the host that was never asked by way of the gateway is itself.
        let other = at("192.0.2.7:8");
        assert_eq!(udp.route_from_host(now, id, other, Some(gateway.ip()), &ONE), Ok((guest, other)));
    }

    #[test]
    fn two_forwards_to_one_port_do_not_mix_their_answers() {
        let mut udp = Udp::new(UdpLimits::default(), 1);
        let now = Instant::from_secs(0);
        let (guest, client) = (at("10.0.2.100:53"), at("198.51.100.1:4000"));
        let stand_in = Some(("10.0.2.2".parse().unwrap(), guest));
        let (here, there): (IpAddr, IpAddr) = ("192.0.2.7".parse().unwrap(), "192.0.2.8".parse().unwrap());
        let first = udp.route_published(now, (0, client, here), Some(guest), stand_in, &ONE).unwrap();
        let second = udp.route_published(now, (1, client, there), Some(guest), stand_in, &ONE).unwrap();
        assert_eq!(first.peer(), client);
        assert_eq!(second.peer().ip(), IpAddr::from([10, 0, 2, 2]));
        let answer = |udp: &mut Udp, peer| udp.route_from_guest(now, (guest, peer), None, false, &ONE).unwrap();
        assert_eq!(answer(&mut udp, first.peer()), (UdpVia::Listener { index: 0, local: here }, client));
        assert_eq!(answer(&mut udp, second.peer()), (UdpVia::Listener { index: 1, local: there }, client));
        // The same client again is the same pair.
        assert_eq!(udp.route_published(now, (0, client, here), Some(guest), stand_in, &ONE), Ok(first));
    }
}
