//! Echo requests of the guest, carried by the host's ping sockets (`SOCK_DGRAM`, `IPPROTO_ICMP`).
//!
//! One host socket per guest address and identifier; the kernel puts its own identifier on the wire and the answer gets
//! the guest's back. Sequence numbers and data pass unchanged, the time to live goes out as the guest's minus one and
//! comes back as it arrived, so `ping`, `traceroute` and `mtr` tell the truth. The gateway and the DNS address answer by
//! themselves (in `stack`). A session ends [`IDLE`] after its last packet. At most `max_sessions`; the oldest idle gives
//! way.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::FixedState;
use smoltcp::time::{Duration, Instant};

use crate::stack::arena::{Arena, Id};
use crate::stack::deadline::Deadlines;

/// nf_conntrack_icmp_timeout (Documentation/networking/nf_conntrack-sysctl.rst).
pub const IDLE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Session {
    guest: IpAddr,
    ident: u16,
    last: Instant,
    armed: Option<Instant>,
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
        let key = (session.guest, session.ident);
        self.sessions.remove(id);
        self.by_guest.remove(&key);
        self.closed.push(id);
        true
    }

    /// The session of an echo request.
    pub fn route_from_guest(&mut self, now: Instant, guest: IpAddr, ident: u16) -> Id {
        if let Some(&id) = self.by_guest.get(&(guest, ident))
            && let Some(session) = self.sessions.get_mut(id)
        {
            session.last = now;
            return id;
        }
        while self.sessions.len() >= self.max_sessions {
            let Some((at, id)) = self.deadlines.pop_earliest() else { break };
            if self.expire(id, at, now, true) {
                self.evicted += 1;
            }
        }
        let id = self.sessions.insert(Session { guest, ident, last: now, armed: None });
        self.by_guest.insert((guest, ident), id);
        if let Some(session) = self.sessions.get_mut(id) {
            self.deadlines.arm(id, now + IDLE, &mut session.armed);
        }
        id
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
        let at = Instant::from_secs;
        let a = ping.route_from_guest(at(0), guest, 1);
        let b = ping.route_from_guest(at(1), guest, 2);
        assert_eq!(ping.route_from_guest(at(2), guest, 1), a);
        let c = ping.route_from_guest(at(3), guest, 3);
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
