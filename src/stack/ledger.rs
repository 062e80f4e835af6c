//! What flows carried, and who is told when one begins or ends.
//!
//! Each flow has a [`Traffic`]; each table of flows (TCP, UDP, echo) has a [`Ledger`] with the sums, with those of every
//! published port, and with a ring of [`FlowEvent`]s for whoever listens. Counting is additions to what the frame's path
//! holds already. A ring exists only while somebody listens; it is made once, of a fixed size, and what finds it full is
//! counted and forgotten.
//!
//! **Bytes** are payload: of TCP what the host took and gave, of UDP the datagrams' data, of echo the requests' and
//! replies' data. **Packets** are what crossed the TAP, retransmissions included: of TCP frames, where a frame may be a
//! super-frame; of UDP datagrams.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use crate::stack::arena::{Arena, Id};
use crate::stack::census::FlowRecord;

/// Events that wait for the runtime, which fetches them after every turn.
const EVENTS: usize = 1024;

/// Bytes and packets, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes of the guest that went on to the host.
    pub from_guest_bytes: u64,
    /// Payload bytes that the host gave for the guest.
    pub to_guest_bytes: u64,
    /// Packets of the guest.
    pub from_guest_packets: u64,
    /// Packets for the guest.
    pub to_guest_packets: u64,
}

impl Traffic {
    /// Some packets of the guest with `bytes` of payload in all.
    pub fn from_guest(packets: u64, bytes: usize) -> Self {
        Self { from_guest_bytes: bytes as u64, from_guest_packets: packets, ..Self::default() }
    }

    /// Some packets for the guest.
    pub fn to_guest(packets: u64, bytes: usize) -> Self {
        Self { to_guest_bytes: bytes as u64, to_guest_packets: packets, ..Self::default() }
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        self.from_guest_bytes += other.from_guest_bytes;
        self.to_guest_bytes += other.to_guest_bytes;
        self.from_guest_packets += other.from_guest_packets;
        self.to_guest_packets += other.to_guest_packets;
    }

    /// What was counted since `earlier`, a former value of this one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            from_guest_bytes: self.from_guest_bytes - earlier.from_guest_bytes,
            to_guest_bytes: self.to_guest_bytes - earlier.to_guest_bytes,
            from_guest_packets: self.from_guest_packets - earlier.from_guest_packets,
            to_guest_packets: self.to_guest_packets - earlier.to_guest_packets,
        }
    }
}

/// Datagrams in `len` bytes that may be several of `segment`.
pub fn datagrams(len: usize, segment: Option<u16>) -> u64 {
    segment.map_or(1, |size| len.div_ceil(usize::from(size.max(1))).max(1) as u64)
}

/// What went through one published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTotals {
    /// The port's number.
    pub listener: usize,
    /// Connections accepted, or clients seen, since it was opened.
    pub connections: u64,
    /// What they carried.
    pub traffic: Traffic,
}

/// A flow has begun or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// It has ended; otherwise it has begun.
    pub closed: bool,
    /// The flow as it is now.
    pub flow: FlowRecord,
}

/// The sums of one table of flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Flows that began.
    pub opened: u64,
    /// Flows that ended.
    pub closed: u64,
    /// What all of them carried.
    pub traffic: Traffic,
}

impl Sums {
    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.traffic.add(&other.traffic);
    }
}

/// The account of one table of flows.
#[derive(Debug, Default)]
pub struct Ledger {
    sums: Sums,
    ports: Arena<PortTotals>,
    by_number: HashMap<usize, Id, FixedState>,
    events: Option<VecDeque<FlowEvent>>,
    lost: u64,
}

impl Ledger {
    /// The sums so far.
    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// The account of published port number `listener`, to be named in [`Ledger::add`]; one more connection of it.
    pub fn connection(&mut self, listener: usize) -> Id {
        let ports = &mut self.ports;
        let id = *self
            .by_number
            .entry(listener)
            .or_insert_with(|| ports.insert(PortTotals { listener, ..PortTotals::default() }));
        if let Some(port) = ports.get_mut(id) {
            port.connections += 1;
        }
        id
    }

    /// Published port number `listener` is gone. What its flows carry from now on counts in the sums only.
    pub fn forget_port(&mut self, listener: usize) {
        if let Some(id) = self.by_number.remove(&listener) {
            self.ports.remove(id);
        }
    }

    /// Every published port that was used.
    pub fn ports(&self) -> impl Iterator<Item = &PortTotals> {
        self.ports.iter().map(|(_, port)| port)
    }

    /// Counts.
    pub fn add(&mut self, port: Option<Id>, more: &Traffic) {
        self.sums.traffic.add(more);
        if let Some(port) = port.and_then(|id| self.ports.get_mut(id)) {
            port.traffic.add(more);
        }
    }

    /// Starts or stops to keep events.
    pub fn listen(&mut self, on: bool) {
        if !on {
            self.events = None;
        } else if self.events.is_none() {
            self.events = Some(VecDeque::with_capacity(EVENTS));
        }
    }

    /// A flow has begun.
    pub fn opened(&mut self, flow: impl FnOnce() -> FlowRecord) {
        self.sums.opened += 1;
        self.keep(false, flow);
    }

    /// A flow has ended.
    pub fn closed(&mut self, flow: impl FnOnce() -> FlowRecord) {
        self.sums.closed += 1;
        self.keep(true, flow);
    }

    fn keep(&mut self, closed: bool, flow: impl FnOnce() -> FlowRecord) {
        let Some(events) = &mut self.events else { return };
        if events.len() >= EVENTS {
            self.lost += 1;
        } else {
            events.push_back(FlowEvent { closed, flow: flow() });
        }
    }

    /// The oldest event.
    pub fn poll_event(&mut self) -> Option<FlowEvent> {
        self.events.as_mut()?.pop_front()
    }

    /// How many events were lost since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}
