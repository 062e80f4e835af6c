//! Echo requests of the guest, carried by the host's ping sockets (`SOCK_DGRAM`, `IPPROTO_ICMP`).
//!
//! One host socket per guest address and identifier; the kernel puts its own identifier on the wire and the answer gets
//! the guest's back. Sequence numbers and data pass unchanged, the time to live goes out as the guest's minus one and
//! comes back as it arrived, so `ping`, `traceroute` and `mtr` tell the truth. The gateway and the DNS address answer by
//! themselves (in `stack`). A session ends [`IDLE`] after its last packet. At most `max_sessions`; the oldest idle gives
//! way.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::FixedState;
use smoltcp::time::{Duration, Instant};

use crate::stack::arena::{Arena, Id};
use crate::stack::census::{FlowId, FlowRecord, FlowState, Kind};
use crate::stack::deadline::Deadlines;
use crate::stack::ledger::{Ledger, Traffic};

/// nf_conntrack_icmp_timeout (Documentation/networking/nf_conntrack-sysctl.rst).
pub const IDLE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Session {
    guest: IpAddr,
    ident: u16,
    /// The last that was pinged.
    target: IpAddr,
    opened: Instant,
    last: Instant,
    traffic: Traffic,
    armed: Option<Instant>,
}

impl Session {
    fn record(&self, id: Id, closed: bool) -> FlowRecord {
        let state = match self.traffic.to_guest_packets {
            _ if closed => FlowState::Closed,
            0 => FlowState::Unanswered,
            _ => FlowState::Open,
        };
        let peer = SocketAddr::new(self.target, 0);
        FlowRecord {
            id: FlowId { kind: Kind::Echo, id },
            guest: SocketAddr::new(self.guest, self.ident),
            peer,
            target: Some(peer),
            listener: None,
            state,
            traffic: self.traffic,
            opened: self.opened,
            last: self.last,
        }
    }
}

/// Every echo session of one endpoint.
pub struct Ping {
    sessions: Arena<Session>,
    by_guest: HashMap<(IpAddr, u16), Id, FixedState>,
    deadlines: Deadlines<Id>,
    closed: Vec<Id>,
    max_sessions: usize,
    /// Sessions that gave way to newer ones.
    pub evicted: u64,
    /// The account.
    pub(in crate::stack) ledger: Ledger,
}

impl Ping {
    /// At most `max_sessions` host sockets.
    pub fn new(max_sessions: usize, seed: u64) -> Self {
        Self {
            sessions: Arena::default(),
            by_guest: HashMap::with_hasher(FixedState::with_seed(seed)),
            deadlines: Deadlines::default(),
            closed: Vec::new(),
            max_sessions,
            evicted: 0,
            ledger: Ledger::default(),
        }
    }

    /// Live sessions.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// A session whose socket must be closed.
    pub fn poll_closed(&mut self) -> Option<Id> {
        self.closed.pop()
    }

    /// When to call [`Ping::handle_timeout`].
    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Ends idle sessions.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, id)) = self.deadlines.pop_due(now) {
            self.expire(id, at, now, false);
        }
    }

    fn expire(&mut self, id: Id, at: Instant, now: Instant, force: bool) -> bool {
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if session.armed != Some(at) {
            return false;
        }
        session.armed = None;
        let expires = session.last + IDLE;
        if expires > now && !(force && expires <= at) {
            self.deadlines.arm(id, expires, &mut session.armed);
            return false;
        }
        self.end(id)
    }

    /// Ends a session; false if there is none.
    pub fn end(&mut self, id: Id) -> bool {
        let Some(session) = self.sessions.remove(id) else { return false };
        self.by_guest.remove(&(session.guest, session.ident));
        self.closed.push(id);
        self.ledger.closed(|| session.record(id, true));
        true
    }

    /// Slots of sessions that were ever used.
    pub fn slots(&self) -> u32 {
        self.sessions.slots()
    }

    /// The session in a slot.
    pub fn record_at(&self, slot: u32) -> Option<FlowRecord> {
        self.sessions.at(slot).map(|(id, session)| session.record(id, false))
    }

    /// Ends the session that has been idle longest; false if there is none.
    pub fn shed(&mut self) -> bool {
        while let Some((at, id)) = self.deadlines.pop_earliest() {
            if self.expire(id, at, at, true) {
                self.evicted += 1;
                return true;
            }
        }
        false
    }

    /// The session of an echo request to `target` with `len` bytes of data.
    pub fn route_from_guest(&mut self, now: Instant, guest: (IpAddr, u16), target: IpAddr, len: usize) -> Id {
        let request = Traffic::from_guest(1, len);
        self.ledger.add(None, &request);
        let (guest, ident) = guest;
        if let Some(&id) = self.by_guest.get(&(guest, ident))
            && let Some(session) = self.sessions.get_mut(id)
        {
            session.last = now;
            session.target = target;
            session.traffic.add(&request);
            return id;
        }
        while self.sessions.len() >= self.max_sessions && self.shed() {}
        let session = Session { guest, ident, target, opened: now, last: now, traffic: request, armed: None };
        let id = self.sessions.insert(session);
        self.by_guest.insert((guest, ident), id);
        if let Some(session) = self.sessions.get_mut(id) {
            self.deadlines.arm(id, now + IDLE, &mut session.armed);
            self.ledger.opened(|| session.record(id, false));
        }
        id
    }

    /// A reply with `len` bytes of data came: the guest and the identifier that it is for. Keeps nothing alive.
    pub fn route_from_host(&mut self, id: Id, len: usize) -> Option<(IpAddr, u16)> {
        let reply = Traffic::to_guest(1, len);
        let session = self.sessions.get_mut(id)?;
        session.traffic.add(&reply);
        self.ledger.add(None, &reply);
        Some((session.guest, session.ident))
    }

    /// The guest and the identifier of a session.
    pub fn guest(&self, id: Id) -> Option<(IpAddr, u16)> {
        self.sessions.get(id).map(|session| (session.guest, session.ident))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_end_when_idle_or_when_too_many() {
        let mut ping = Ping::new(2, 1);
        let guest = IpAddr::from([10, 0, 2, 100]);
        let far = IpAddr::from([192, 0, 2, 1]);
        let at = Instant::from_secs;
        let a = ping.route_from_guest(at(0), (guest, 1), far, 8);
        let b = ping.route_from_guest(at(1), (guest, 2), far, 8);
        assert_eq!(ping.route_from_guest(at(2), (guest, 1), far, 8), a);
        let c = ping.route_from_guest(at(3), (guest, 3), far, 8);
        assert_eq!((ping.len(), ping.evicted), (2, 1));
        assert_eq!(ping.poll_closed(), Some(b));
        assert_eq!(ping.guest(b), None);
        assert_eq!(ping.guest(c), Some((guest, 3)));
        ping.handle_timeout(at(32));
        assert_eq!((ping.poll_closed(), ping.poll_closed()), (Some(a), None));
        ping.handle_timeout(at(33));
        assert!(ping.is_empty());
        assert_eq!(ping.next_timeout(), None);
    }
}
