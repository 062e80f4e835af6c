//! Looking at flows from outside: pages of them, what became of all, ending one.
//!
//! **Pages.** A listing walks the tables in a fixed order, slot by slot, from where the last page ended ([`Cursor`]), and
//! stops after as many flows as were asked for or [`VISITS`] slots, whichever is first; so one call is short whatever the
//! filter. A flow keeps its slot for life: one that lives throughout a listing is in exactly one page of it, and none is in
//! two. Flows that come and go meanwhile may be in or not.
//!
//! **Ending.** A TCP flow is reset on both sides, a UDP mapping or an echo session is forgotten and its socket closed.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;
use smoltcp::time::Instant;

use crate::stack::arena::Id;
use crate::stack::ledger::{FlowEvent, PortTotals, Sums, Traffic};
use crate::stack::tcp::ConnectFailure;
use crate::stack::{Output, Stack};

/// The lane is behind these bits of a slot in ids and cursors: `arena` needs 24.
const LANE_SHIFT: u32 = 24;

/// Which of an endpoint's stacks a flow is in: 0, and where its TAP has several queues, those of further ones
/// (`runtime::lanes`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane(pub u8);

impl Lane {
    /// A slot of this lane's as the endpoint's ids have it.
    pub(super) fn outside(self, id: Id) -> Id {
        Id { index: id.index | u32::from(self.0) << LANE_SHIFT, ..id }
    }
}

/// Slots looked at for one page: at some 20 ns each, a tenth of a millisecond.
pub const VISITS: usize = 4096;
/// Most flows of one page.
pub const PAGE: usize = 256;

/// Which table a flow is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// TCP, whoever began.
    Tcp,
    /// A guest's UDP port with all its peers.
    Udp,
    /// A client of a published UDP port.
    UdpPublished,
    /// An echo session of the guest.
    Echo,
}

impl Kind {
    /// Every table, in the order of a listing.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::UdpPublished, Self::Echo];

    /// How ids and cursors name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::UdpPublished => "pub",
            Self::Echo => "icmp",
        }
    }

    /// The protocol.
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Udp | Self::UdpPublished => Protocol::Udp,
            Self::Echo => Protocol::Icmp,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo, of either family.
    Icmp,
}

/// Names one flow of one stack, for ever: a later one has another id. As text, `tcp-12-345`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId {
    /// The table.
    pub kind: Kind,
    /// The flow there.
    pub id: Id,
}

impl FlowId {
    /// Whose flow it is, and its name there.
    pub fn split(self) -> (Lane, Self) {
        let slot = self.id.index & ((1 << LANE_SHIFT) - 1);
        (Lane((self.id.index >> LANE_SHIFT) as u8), Self { id: Id { index: slot, ..self.id }, ..self })
    }
}

/// Where a listing goes on. As text, `tcp-256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The table.
    pub kind: Kind,
    /// The first slot to look at.
    pub slot: u32,
}

impl Cursor {
    /// Where every listing begins.
    pub const START: Self = Self { kind: Kind::Tcp, slot: 0 };

    /// Where the listing of a lane begins; that of the first is the first.
    pub fn of_lane(lane: Lane) -> Self {
        Self::START.outside(lane)
    }

    /// A place in a lane, as the endpoint's cursors have it.
    #[must_use]
    pub fn outside(self, lane: Lane) -> Self {
        Self { slot: self.slot | u32::from(lane.0) << LANE_SHIFT, ..self }
    }

    /// In whose listing it is, and where.
    pub fn split(self) -> (Lane, Self) {
        (Lane((self.slot >> LANE_SHIFT) as u8), Self { slot: self.slot & ((1 << LANE_SHIFT) - 1), ..self })
    }
}

/// A text that is no id or cursor of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it names nothing of ours")]
pub struct NoSuchName;

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.kind.name(), self.id.index, self.id.generation)
    }
}

impl FromStr for FlowId {
    type Err = NoSuchName;

    fn from_str(text: &str) -> Result<Self, NoSuchName> {
        let mut parts = text.splitn(3, '-');
        let kind = parts.next().and_then(Kind::parse).ok_or(NoSuchName)?;
        let mut number = || parts.next().and_then(digits).ok_or(NoSuchName);
        Ok(Self { kind, id: Id { index: number()?, generation: number()? } })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.kind.name(), self.slot)
    }
}

impl FromStr for Cursor {
    type Err = NoSuchName;

    fn from_str(text: &str) -> Result<Self, NoSuchName> {
        let (kind, slot) = text.split_once('-').ok_or(NoSuchName)?;
        Ok(Self { kind: Kind::parse(kind).ok_or(NoSuchName)?, slot: digits(slot).ok_or(NoSuchName)? })
    }
}

/// A number as we write it: no sign, no zeroes before it.
fn digits(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

/// What a flow is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowState {
    /// TCP: the host has not answered the connect.
    Connecting,
    /// TCP: the guest has not answered the handshake.
    Handshake,
    /// TCP: open both ways. UDP and echo: answered.
    Open,
    /// TCP: one side has ended its stream, or both have and the last bytes are under way.
    Closing,
    /// UDP and echo: nobody has answered yet.
    Unanswered,
    /// It has ended: TCP in order, UDP and echo in any way.
    Closed,
    /// TCP: it was reset.
    Reset,
    /// TCP: it never opened.
    Failed,
}

/// One flow, as it is at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// Its name.
    pub id: FlowId,
    /// The guest's end; of echo, the identifier in the port's place.
    pub guest: SocketAddr,
    /// The other end as the guest sees it; of a UDP mapping or an echo session the last that the guest sent to.
    pub peer: SocketAddr,
    /// The other end as the host sees it; None is the name service here.
    pub target: Option<SocketAddr>,
    /// The published port that it came by.
    pub listener: Option<usize>,
    /// What it is at.
    pub state: FlowState,
    /// What it carried.
    pub traffic: Traffic,
    /// When it began.
    pub opened: Instant,
    /// When it last carried anything.
    pub last: Instant,
}

/// One end of the flows that are wanted. What is None fits any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndFilter {
    /// Addresses.
    pub net: Option<IpNet>,
    /// Port.
    pub port: Option<u16>,
}

impl EndFilter {
    fn fits(&self, end: SocketAddr) -> bool {
        self.net.is_none_or(|net| net.contains(&end.ip())) && self.port.is_none_or(|port| port == end.port())
    }
}

/// Which flows are wanted. What is None fits any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Protocol.
    pub protocol: Option<Protocol>,
    /// The guest's end.
    pub guest: Option<EndFilter>,
    /// The other end, as the guest sees it or as the host does.
    pub peer: Option<EndFilter>,
    /// State.
    pub state: Option<FlowState>,
}

impl FlowFilter {
    fn fits(&self, flow: &FlowRecord) -> bool {
        self.guest.is_none_or(|end| end.fits(flow.guest))
            && self.peer.is_none_or(|end| end.fits(flow.peer) || flow.target.is_some_and(|target| end.fits(target)))
            && self.state.is_none_or(|state| state == flow.state)
    }
}

/// Numbers of one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Frames of the guest.
    pub frames_from_guest: u64,
    /// Frames for the guest.
    pub frames_to_guest: u64,
    /// TCP flows, UDP mappings, clients of published UDP ports, echo sessions that live.
    pub live: [u64; 4],
    /// Sums of TCP, UDP and echo.
    pub sums: [Sums; 3],
    /// UDP mappings and published clients, and echo sessions, that gave way to newer ones.
    pub evicted: [u64; 2],
    /// DNS queries over UDP that the guest sent to us.
    pub dns_queries: u64,
}

impl Numbers {
    /// Adds those of another stack.
    pub fn add(&mut self, other: &Self) {
        self.frames_from_guest += other.frames_from_guest;
        self.frames_to_guest += other.frames_to_guest;
        self.live.iter_mut().zip(other.live).for_each(|(sum, more)| *sum += more);
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| sum.add(more));
        self.evicted.iter_mut().zip(other.evicted).for_each(|(sum, more)| *sum += more);
        self.dns_queries += other.dns_queries;
    }
}

impl Stack {
    /// Adds the flows of one page to `page`, at most `limit` and at most [`PAGE`]; returns where the next begins, None
    /// behind the last. A page may be empty although there are more.
    pub fn flows_page(
        &self,
        after: Cursor,
        limit: usize,
        filter: &FlowFilter,
        page: &mut Vec<FlowRecord>,
    ) -> Option<Cursor> {
        let limit = limit.clamp(1, PAGE);
        let (mut visits, mut found) = (0, 0);
        let kinds = Kind::ALL.into_iter().filter(|kind| *kind >= after.kind);
        for kind in kinds.filter(|kind| filter.protocol.is_none_or(|protocol| protocol == kind.protocol())) {
            let first = if kind == after.kind { after.slot } else { 0 };
            for slot in first..self.slots(kind) {
                if found >= limit || visits >= VISITS {
                    return Some(Cursor { kind, slot });
                }
                visits += 1;
                if let Some(flow) = self.flow_at(kind, slot).filter(|flow| filter.fits(flow)) {
                    page.push(flow);
                    found += 1;
                }
            }
        }
        None
    }

    fn slots(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Tcp => self.tcp.slots(),
            Kind::Udp => self.udp.slots().0,
            Kind::UdpPublished => self.udp.slots().1,
            Kind::Echo => self.ping.slots(),
        }
    }

    fn flow_at(&self, kind: Kind, slot: u32) -> Option<FlowRecord> {
        match kind {
            Kind::Tcp => self.tcp.record_at(slot),
            Kind::Udp => self.udp.mapping_at(slot),
            Kind::UdpPublished => self.udp.pair_at(slot),
            Kind::Echo => self.ping.record_at(slot),
        }
    }

    /// Ends a flow; false if there is none of that name. The runtime does what that leads to, as always.
    pub fn kill_flow(&mut self, flow: FlowId, now: Instant, out: &mut impl Output) -> bool {
        match flow.kind {
            // Its SYN was not answered yet: it is refused.
            Kind::Tcp if self.tcp.is_connecting(flow.id) => {
                self.handle_tcp_connect_failed(flow.id, ConnectFailure::Refused, now, out);
                true
            }
            Kind::Tcp => {
                let known = self.tcp.key(flow.id).is_some();
                self.tcp.handle_host_reset(flow.id);
                known
            }
            Kind::Udp => self.udp.end_mapping(flow.id),
            Kind::UdpPublished => self.udp.end_pair(flow.id),
            Kind::Echo => self.ping.end(flow.id),
        }
    }

    /// Starts or stops to keep events.
    pub fn listen_to_flows(&mut self, on: bool) {
        self.tcp.ledger.listen(on);
        self.udp.ledger.listen(on);
        self.ping.ledger.listen(on);
    }

    /// A flow that began or ended. Those of one protocol come in the order in which it happened.
    pub fn poll_flow_event(&mut self) -> Option<FlowEvent> {
        let Self { tcp, udp, ping, .. } = self;
        tcp.ledger.poll_event().or_else(|| udp.ledger.poll_event()).or_else(|| ping.ledger.poll_event())
    }

    /// How many such events were lost since the last call.
    pub fn take_lost_flow_events(&mut self) -> u64 {
        self.tcp.ledger.take_lost() + self.udp.ledger.take_lost() + self.ping.ledger.take_lost()
    }

    /// What went through every published port that was used.
    pub fn port_totals(&self) -> impl Iterator<Item = &PortTotals> {
        self.tcp.ledger.ports().chain(self.udp.ledger.ports())
    }

    /// All numbers.
    pub fn numbers(&self) -> Numbers {
        let (tcp, mappings, pairs, echo) = self.flows();
        let (frames_from_guest, frames_to_guest) = self.frames();
        Numbers {
            frames_from_guest,
            frames_to_guest,
            live: [tcp, mappings, pairs, echo].map(|n| n as u64),
            sums: [self.tcp.ledger.sums(), self.udp.ledger.sums(), self.ping.ledger.sums()],
            evicted: [self.udp.evicted, self.ping.evicted],
            dns_queries: self.dns_queries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_cursors_know_their_lane() {
        let id = Id { index: 0x00ff_ffff, generation: 7 };
        for lane in [Lane(0), Lane(1), Lane(255)] {
            let flow = FlowId { kind: Kind::Tcp, id: lane.outside(id) };
            assert_eq!(flow.split(), (lane, FlowId { kind: Kind::Tcp, id }));
            let cursor = Cursor { kind: Kind::Echo, slot: 12 };
            assert_eq!(cursor.outside(lane).split(), (lane, cursor));
        }
        assert_eq!(Cursor::of_lane(Lane(0)), Cursor::START);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["tcp-0-1", "udp-12-345", "pub-4294967295-1", "icmp-3-16777215"] {
            assert_eq!(text.parse::<FlowId>().unwrap().to_string(), text);
        }
        for text in ["tcp-0", "pub-4294967295", "icmp-256"] {
            assert_eq!(text.parse::<Cursor>().unwrap().to_string(), text);
        }
        for text in
            ["", "tcp", "tcp-", "tcp-1-", "tcp-1-2-3", "x-1-2", "tcp-01-2", "tcp-+1-2", "tcp--1-2", "tcp-4294967296-1"]
        {
            assert!(text.parse::<FlowId>().is_err(), "{text}");
        }
        for text in ["", "tcp", "tcp-", "tcp-1-2", "x-1", "tcp-01", "tcp-+1", "tcp-4294967296"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
