//! What happened to questions, counted and told.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Transport;

/// What happened to questions so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Questions that went to a server.
    pub forwarded: u64,
    /// Of these, those about domains with servers of their own.
    pub forwarded_by_domain: u64,
    /// Of these, those about the target of an alias of the zone.
    pub followed: u64,
    /// Questions to which a server answered that there is no such name.
    pub no_such_name: u64,
    /// Questions to which the best answer of a server was that it failed or refuses.
    pub unwilling: u64,
    /// Questions answered from the zone, with records.
    pub zone: u64,
    /// Questions answered from the zone: the name has no such records.
    pub zone_empty: u64,
    /// Questions answered here: names of this host, garbage, what is not carried.
    pub local: u64,
    /// Questions that no server answered.
    pub failed: u64,
    /// Questions refused because too many were in flight.
    pub overload: u64,
    /// Datagrams from a server that did not answer what it was asked.
    pub mismatched: u64,
    /// Questions that failed on purpose.
    pub fault: u64,
    /// Events that nobody took in time.
    pub lost_events: u64,
}

impl Stats {
    /// Each counter by its name.
    pub fn named(&self) -> [(&'static str, u64); 13] {
        [
            ("dns_forwarded", self.forwarded),
            ("dns_forwarded_by_domain", self.forwarded_by_domain),
            ("dns_followed", self.followed),
            ("dns_no_such_name", self.no_such_name),
            ("dns_unwilling", self.unwilling),
            ("dns_zone", self.zone),
            ("dns_zone_empty", self.zone_empty),
            ("dns_local", self.local),
            ("dns_failed", self.failed),
            ("dns_overload", self.overload),
            ("dns_mismatched", self.mismatched),
            ("dns_fault", self.fault),
            ("dns_lost_events", self.lost_events),
        ]
    }
}

/// One question and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The name asked for, as text; "." is the root.
    pub name: String,
    /// Its type; see `wire::dns_data::type_name`.
    pub qtype: u16,
    /// How it was asked.
    pub transport: Transport,
    /// Response code of the answer given (RFC 1035 §4.1.1).
    pub rcode: u8,
    /// Who knew.
    pub source: Source,
    /// Addresses in the answer, at most [`EVENT_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
    /// How long it took.
    pub took: Duration,
}

/// Addresses told in one [`Event`].
pub const EVENT_ADDRESSES: usize = 8;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Answered or refused here, not from records.
    Local,
    /// The network's own records.
    Zone,
    /// A name server.
    Server(SocketAddr),
    /// No server answered, or too much was asked at once.
    Nobody,
}

/// What [`Stats`] is read from.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub forwarded: AtomicU64,
    pub forwarded_by_domain: AtomicU64,
    pub followed: AtomicU64,
    pub no_such_name: AtomicU64,
    pub unwilling: AtomicU64,
    pub zone: AtomicU64,
    pub zone_empty: AtomicU64,
    pub fault: AtomicU64,
    pub lost_events: AtomicU64,
    pub local: AtomicU64,
    pub failed: AtomicU64,
    pub overload: AtomicU64,
    pub mismatched: AtomicU64,
}

impl Counters {
    pub fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            forwarded: get(&self.forwarded),
            forwarded_by_domain: get(&self.forwarded_by_domain),
            followed: get(&self.followed),
            no_such_name: get(&self.no_such_name),
            unwilling: get(&self.unwilling),
            zone: get(&self.zone),
            zone_empty: get(&self.zone_empty),
            fault: get(&self.fault),
            lost_events: get(&self.lost_events),
            local: get(&self.local),
            failed: get(&self.failed),
            overload: get(&self.overload),
            mismatched: get(&self.mismatched),
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
