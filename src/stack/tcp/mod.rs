//! TCP: each flow is two connections, the guest's (smoltcp) and the host's (an ordinary socket that `runtime` holds),
//! with one pair of rings between them.
//!
//! ```text
//! guest ──segments──► [from-guest ring] ──lent to send(2)──► host socket
//! guest ◄─segments─── [to-guest ring]   ◄─lent to recv(2)─── host socket
//! ```
//!
//! **Out** (the guest connects): SYN → policy → [`TcpWork::Connect`]; smoltcp withholds the SYN-ACK until
//! [`Tcp::handle_connected`]. Refused becomes RST, unreachable an ICMP error about the SYN, a time-out stays silent, as
//! a direct connection would. **In** (a published port): [`Tcp::handle_accepted`] sends a SYN from the client's true address.
//!
//! **Ends.** FIN from the guest, once the from-guest ring is drained: the runtime does shutdown(SHUT_WR) and says
//! [`Tcp::handle_host_shut`]. End of file from the host: [`Tcp::handle_host_eof`], FIN once the to-guest ring is drained.
//! Both: [`TcpWork::Close`] in order. Anything else is a reset, passed on to the other side, but what the guest resets behind both FINs: that
//! stream is whole. A flow that reaches TIME-WAIT is forgotten at once (with bytes left for the host, when those are sent): the link does not reorder,
//! so no old duplicate can come but what the guest repeats, which gets a reset that it does not mind, and sequence numbers
//! that grow per 4-tuple (`isn`) make its reuse safe.
//!
//! **Never dropped.** What the host does not take stays in the ring and closes the guest's window.
//!
//! **Rest.** A flow that carries nothing for a second has no rings, and smoltcp no socket of it, until it does again; one that
//! turns bulky gets large rings (`rest`).
//!
//! **Timers.** smoltcp's (retransmission ≥ 1 s, zero-window probe), in a lazy heap; a guest that owes an answer for
//! [`GIVE_UP`] loses the flow; a handshake has [`HANDSHAKE`].
//!
//! **Limits.** `max_flows` in all (the longest idle gives way; where none is, a SYN is dropped and counted), `max_opening`
//! connects that the host has not answered and `max_half_open` that the guest has not (the oldest gives way), `held` bytes in rings
//! and host sockets (`hoard`), large rings by `rings::RingPool`.
//!
//! Deliberately not: urgent data, TCP Fast Open, ECN, forwarding of the guest's options.

mod account;
mod flow;
pub mod hoard;
pub mod isn;
mod opening;
pub mod port;
mod rest;
pub mod rings;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use foldhash::fast::FixedState;
use smoltcp::iface::{Config, Interface, PollResult};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::HardwareAddress;

use crate::stack::Output;
use crate::stack::arena::{Arena, Id};
use crate::stack::census::Lane;
use crate::stack::compose::{BareTcp, Composer, DEFAULT_TTL, proto, write_ip_header};
use crate::stack::deadline::Deadlines;
use crate::stack::flow::{FlowKey, StandIns};
use crate::stack::ledger::Ledger;
use crate::stack::verdict::DropReason;
use crate::wire::icmp_error::IcmpError;
use crate::wire::tcp_segment::{self, ACK, FIN, PSH, RST, SYN, Segment};
use account::record;
use flow::{Phase, TcpFlow};
use hoard::Waiting;
use isn::IsnClock;
use port::Port;
use rest::REST;
use rings::RingPool;

/// A guest that acknowledges nothing for this long loses the flow: Linux's tcp_retries2 of 15 comes to 924.6 s
/// (Documentation/networking/ip-sysctl.rst).
pub const GIVE_UP: Duration = Duration::from_secs(924);
/// Longest wait for the guest's part of a handshake: Linux's tcp_syn_retries of 6 comes to 127 s (same source).
pub const HANDSHAKE: Duration = Duration::from_secs(127);
/// How long the acknowledgement of one small segment waits for an answer to travel with. Far below the 40 ms of Linux
/// (TCP_DELACK_MIN) and the 500 ms of RFC 9293, section 3.8.6.3; measured, with serving a lone frame at once, to save 2.5 µs
/// of a 32 µs round trip, while a guest that waits for the acknowledgement itself (Nagle) waits no longer than this.
pub const ACK_DELAY: Duration = Duration::from_millis(1);
/// Largest segment that is taken for a question, whose answer its acknowledgement may wait for. A larger one is part of something,
/// and at an MTU of 65 520 as large as a small ring: what follows would wait for the acknowledgement.
const QUESTION: usize = 8 * 1024;
/// How long smoltcp may ask to be called "now" before we believe it less often.
const MIN_RECHECK: Duration = Duration::from_millis(1);

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub struct TcpLimits {
    /// Flows in all.
    pub max_flows: usize,
    /// Connects that the host has not answered.
    pub max_opening: usize,
    /// Connections of which the guest has not finished the handshake.
    pub max_half_open: usize,
    /// Bytes that flows hold in their rings and, where they stand still, in the kernel, where each counts as four.
    pub held: usize,
    /// Flows with large rings.
    pub large_rings: usize,
}

impl Default for TcpLimits {
    fn default() -> Self {
        // 16 384 flows × one descriptor stay below the usual hard limit of 1 048 576 and 2 × 64 KiB rings below 2 GiB of
        // address space; 512 unanswered connects is dataplane.md's rule 8; 256 large pairs are 512 MiB if all are bulk, and no
        // guest has more of anything. Half-open ones: twice that
        // many, a choice.
        Self { max_flows: 16_384, max_opening: 512, max_half_open: 1024, held: 512 << 20, large_rings: 256 }
    }
}

/// What an outgoing flow is to be joined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpTarget {
    /// An ordinary connect().
    Outside(SocketAddr),
    /// The host itself, by way of the gateway address.
    Host(SocketAddr),
    /// The name service over TCP.
    Dns,
}

/// What policy says to a SYN of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenVerdict {
    /// Connect.
    Connect(TcpTarget),
    /// Answer with RST.
    Reset,
    /// Answer with an ICMP error.
    Icmp(IcmpError),
    /// Silence, counted.
    Ignore(DropReason),
}

/// What the runtime must do for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpWork {
    /// Make a host socket and connect it; answer with [`Tcp::handle_connected`] or [`Tcp::handle_connect_failed`].
    Connect {
        /// The flow.
        flow: Id,
        /// Where to.
        target: TcpTarget,
    },
    /// The guest probes whether its peer lives: let the host socket probe too.
    Keepalive {
        /// The flow.
        flow: Id,
    },
    /// The flow is gone: close its host socket, with a reset unless `in_order`.
    Close {
        /// The flow (its id finds nothing any more).
        flow: Id,
        /// Both directions ended in order.
        in_order: bool,
    },
}

/// Why a host connect failed, as the guest shall feel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// RST.
    Refused,
    /// An ICMP error of this kind.
    Unreachable(IcmpError),
    /// Nothing.
    Silent,
}

/// What the runtime may do with a flow now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpReadiness {
    /// There is such a flow.
    pub live: bool,
    /// Bytes for the host.
    pub from_guest: usize,
    /// Room for bytes from the host.
    pub to_guest_room: usize,
    /// The guest has sent FIN, the ring is drained and the host has not been told yet.
    pub shut_host: bool,
    /// Host data is still wanted (no end of file told, connection open).
    pub wants_host_data: bool,
}

/// Every TCP flow of one endpoint.
pub struct Tcp {
    iface: Interface,
    flows: Arena<TcpFlow>,
    by_key: HashMap<FlowKey, Id, FixedState>,
    deadlines: Deadlines<Id>,
    dirty: VecDeque<Id>,
    work: VecDeque<TcpWork>,
    opening: Waiting,
    opening_now: usize,
    half_open: Waiting,
    half_open_now: usize,
    /// Who gives way (`hoard`): of all, and of those that hold bytes.
    idle: Deadlines<Id>,
    holders: Deadlines<Id>,
    held: usize,
    rings: RingPool,
    isn: IsnClock,
    limits: TcpLimits,
    stand_ins: StandIns,
    /// The latest time that was told.
    latest: Instant,
    /// Which of several it is.
    lane: Lane,
    /// The account.
    pub(in crate::stack) ledger: Ledger,
}

impl Tcp {
    /// `mtu`: the guest's. `tso`: the TAP takes super-frames of both families. `seed`: unpredictable to the guest.
    pub fn new(limits: TcpLimits, mtu: u16, tso: bool, seed: u64, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        // The interface copies its device's capabilities; this one exists for that alone.
        let mut device = Shape { mtu: usize::from(mtu), tso };
        let mut iface = Interface::new(config, &mut device, now);
        iface.set_any_ip(true);
        Self {
            iface,
            flows: Arena::default(),
            by_key: HashMap::with_hasher(FixedState::with_seed(seed ^ 0x9e37_79b9_7f4a_7c15)),
            deadlines: Deadlines::default(),
            dirty: VecDeque::new(),
            work: VecDeque::new(),
            opening: Waiting::default(),
            opening_now: 0,
            half_open: Waiting::default(),
            half_open_now: 0,
            idle: Deadlines::default(),
            holders: Deadlines::default(),
            held: 0,
            rings: RingPool::new(limits.large_rings),
            isn: IsnClock::new(seed.rotate_left(17)),
            limits,
            stand_ins: StandIns::new(seed),
            latest: now,
            lane: Lane::default(),
            ledger: Ledger::default(),
        }
    }

    /// Is one of several of an endpoint; `count` of them share its bounds.
    pub fn set_lane(&mut self, lane: Lane, count: usize) {
        self.lane = lane;
        let share = |bound: usize| bound.div_ceil(count.max(1));
        self.limits.max_flows = share(self.limits.max_flows);
        self.limits.max_opening = share(self.limits.max_opening);
        self.limits.max_half_open = share(self.limits.max_half_open);
        self.limits.held = share(self.limits.held);
        self.limits.large_rings = share(self.limits.large_rings);
        self.rings = RingPool::new(self.limits.large_rings);
    }

    /// Whether there is such a flow.
    pub fn has(&self, key: &FlowKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Live flows.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// What the runtime must do next.
    pub fn poll_work(&mut self) -> Option<TcpWork> {
        self.work.pop_front()
    }

    /// A flow that something happened to: move its bytes, then [`Tcp::finish`] it.
    pub fn poll_dirty(&mut self) -> Option<Id> {
        while let Some(id) = self.dirty.pop_front() {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.dirty = false;
                return Some(id);
            }
        }
        None
    }

    /// When to call [`Tcp::handle_timeout`].
    pub fn next_timeout(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// Marks the flows whose timers are due; [`Tcp::poll_dirty`] returns them.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.latest = now;
        while let Some((at, id)) = self.deadlines.pop_due(now) {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if flow.armed != Some(at) {
                continue;
            }
            flow.armed = None;
            let owed = match flow.phase {
                Phase::Connecting => None,
                Phase::Handshake => Some(flow.since + HANDSHAKE),
                Phase::Open if flow.owed() => Some(flow.heard + GIVE_UP),
                Phase::Open => None,
            };
            if owed.is_some_and(|at| at <= now) {
                flow.abort();
            }
            flow.overdue = flow.phase == Phase::Open && flow.wire.window_of_guest == 0;
            mark(&mut self.dirty, id, flow);
        }
    }

    /// One TCP/IP packet from the guest; `tcp_at` is where the TCP header starts. Its checksum is known to be good.
    #[allow(clippy::too_many_arguments)] // one call per segment; a struct would only name the same things twice
    pub fn handle_segment(
        &mut self,
        now: Instant,
        packet: &mut [u8],
        tcp_at: usize,
        (src, dst): (IpAddr, IpAddr),
        open: impl FnOnce(SocketAddr) -> OpenVerdict,
        gateway: Option<IpAddr>,
        composer: &mut Composer,
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let v6 = src.is_ipv6();
        let mut segment = Segment::new(&mut packet[tcp_at..]).ok_or(DropReason::Truncated)?;
        let key = FlowKey { guest: src, peer: dst, guest_port: segment.src_port(), peer_port: segment.dst_port() };
        if key.guest_port == 0 || key.peer_port == 0 {
            return Err(DropReason::Malformed);
        }
        let only_syn = segment.flags() & (SYN | ACK | RST) == SYN;
        let id = match self.by_key.get(&key).copied() {
            Some(id) => id,
            None if only_syn => return self.open(now, packet, tcp_at, key, open(key.peer()), gateway, composer, out),
            None => {
                // Nobody answers in a group's name.
                let group = key.peer.is_multicast() || key.peer == IpAddr::V4(Ipv4Addr::BROADCAST);
                if !segment.has(RST) && !group {
                    reset_unknown(&key, &segment, composer, out);
                }
                return Err(DropReason::NoFlow);
            }
        };
        self.latest = now;
        let Some(flow) = self.flows.get_mut(id) else { return Err(DropReason::NoFlow) };
        flow.heard = now;
        flow.last = now;
        flow.traffic.from_guest_packets += 1;
        if only_syn {
            if segment.seq() == flow.guest_isn && flow.phase != Phase::Open {
                // The guest repeats its SYN while the host has not answered, or smoltcp repeats the SYN-ACK itself.
                return Ok(());
            }
            if flow.phase == Phase::Open {
                // A SYN in a synchronized state is answered by a challenge ACK (RFC 9293, section 3.10.7.4).
                let fields = BareTcp {
                    seq: flow.wire.sent_end,
                    ack: flow.wire.acked_to_guest,
                    flags: ACK,
                    window: flow.wire.window,
                };
                if composer.may_answer() {
                    composer.send_tcp_bare(key.peer(), key.guest(), fields, out);
                }
                return Ok(());
            }
            // The guest gave the first attempt up and uses the port again.
            self.remove(id, now, false);
            return self.open(now, packet, tcp_at, key, open(key.peer()), gateway, composer, out);
        }
        if flow.phase == Phase::Connecting {
            if segment.has(RST) {
                self.remove(id, now, false);
            }
            return Ok(());
        }
        rest::wake(&mut self.iface, &mut self.rings, flow, now);
        flow.wire.share = self.rings.share();
        let tso = if v6 { composer.offloads.tso6 } else { composer.offloads.tso4 };
        let was_shut = flow.wire.window_of_guest == 0;
        if flow.wire.from_guest(&mut segment, v6, tso, composer.mtu) {
            self.work.push_back(TcpWork::Keepalive { flow: id });
        }
        flow.reopened |=
            was_shut && flow.wire.window_of_guest > 0 && flow.wire.in_flight() && flow.phase == Phase::Open;
        mark(&mut self.dirty, id, flow);
        // Behind both FINs a reset ends nothing that has not ended in order (RFC 9293, section 3.10.7.4): it answers the
        // acknowledgement of a repeated FIN, when the guest has forgotten the connection.
        let is_reset = segment.has(RST)
            && !matches!(flow.state(), State::Closing | State::LastAck | State::TimeWait | State::Closed);
        // In order, and nothing before it waits: a second one gets its acknowledgement at once, as RFC 9293 wants.
        let payload = segment.payload_len();
        flow.ack_may_wait = payload > 0
            && payload < usize::from(flow.wire.mss)
            && payload <= QUESTION
            && segment.has(PSH)
            && segment.flags() & (SYN | FIN | RST) == 0
            && segment.seq() == flow.wire.acked_to_guest;
        let TcpFlow { socket: Some(socket), wire, key, .. } = flow else { return Ok(()) };
        let mut port = Port { rx: Some(packet), wire, key, isn: &self.isn, composer, out, now };
        self.iface.poll_ingress_single(now, &mut port, &mut socket.set);
        let state = flow.state();
        if is_reset && state == State::Closed {
            flow.reset = true;
        }
        if flow.phase == Phase::Handshake
            && !matches!(state, State::SynSent | State::SynReceived | State::Listen | State::Closed)
        {
            flow.phase = Phase::Open;
            self.half_open_now -= 1;
        }
        // What was sent from small rings has just been acknowledged: the moment to go on with large ones.
        rest::step_up(&mut self.iface, &mut self.rings, flow, now);
        Ok(())
    }

    /// The flow's guest-side addresses.
    pub fn key(&self, flow: Id) -> Option<FlowKey> {
        self.flows.get(flow).map(|entry| entry.key)
    }

    /// Whether it carries nothing and therefore has no socket.
    pub fn rests(&self, flow: Id) -> bool {
        self.flows.get(flow).is_some_and(|entry| entry.socket.is_none())
    }

    /// What can be moved now.
    pub fn readiness(&self, flow: Id) -> TcpReadiness {
        let Some(entry) = self.flows.get(flow) else { return TcpReadiness::default() };
        let Some(tcp) = entry.tcp() else {
            // It rests: whatever comes from the host has it woken first.
            let open = !entry.host_finished;
            let room = if open { rest::room(&self.rings, entry) } else { 0 };
            return TcpReadiness { live: true, to_guest_room: room, wants_host_data: open, ..TcpReadiness::default() };
        };
        let state = tcp.state();
        let from_guest = tcp.recv_queue();
        let fin_seen = match state {
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => true,
            // LAST-ACK and its like end in CLOSED once our FIN is acknowledged, or reset; the guest's FIN came before.
            State::Closed => !entry.reset,
            _ => false,
        };
        let open = entry.phase == Phase::Open && !entry.host_finished && tcp.may_send();
        TcpReadiness {
            live: true,
            from_guest: if entry.phase == Phase::Open { from_guest } else { 0 },
            to_guest_room: if open { tcp.send_capacity() - tcp.send_queue() } else { 0 },
            shut_host: entry.phase == Phase::Open && fin_seen && from_guest == 0 && !entry.guest_finished,
            wants_host_data: open,
        }
    }

    /// Lends the first contiguous part of the from-guest ring; `send` returns how much of it the host took.
    pub fn lend_from_guest(&mut self, flow: Id, send: impl FnOnce(&[u8]) -> usize) -> usize {
        let Some(entry) = self.flows.get_mut(flow) else { return 0 };
        let Some(socket) = &mut entry.socket else { return 0 };
        let moved = socket.get_mut().recv(|bytes| {
            let taken = send(bytes);
            (taken, taken)
        });
        let moved = moved.unwrap_or(0);
        entry.traffic.from_guest_bytes += moved as u64;
        if moved > 0 {
            entry.last = self.latest;
        }
        moved
    }

    /// Lends the free contiguous part of the to-guest ring; `fill` returns how much of it the host filled.
    pub fn lend_to_guest(&mut self, flow: Id, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let Some(entry) = self.flows.get_mut(flow) else { return 0 };
        rest::wake(&mut self.iface, &mut self.rings, entry, self.latest);
        let Some(socket) = &mut entry.socket else { return 0 };
        let moved = socket.get_mut().send(|room| {
            let filled = fill(room);
            (filled, filled)
        });
        let moved = moved.unwrap_or(0);
        entry.traffic.to_guest_bytes += moved as u64;
        if moved > 0 {
            entry.last = self.latest;
        }
        moved
    }

    /// The guest's FIN was passed on: shutdown(SHUT_WR) is done.
    pub fn handle_host_shut(&mut self, flow: Id) {
        if let Some(entry) = self.flows.get_mut(flow) {
            entry.guest_finished = true;
            mark(&mut self.dirty, flow, entry);
        }
    }

    /// The host's end of file was read.
    pub fn handle_host_eof(&mut self, flow: Id) {
        if let Some(entry) = self.flows.get_mut(flow)
            && !entry.host_finished
        {
            rest::wake(&mut self.iface, &mut self.rings, entry, self.latest);
            entry.host_finished = true;
            entry.finish_sending();
            mark(&mut self.dirty, flow, entry);
        }
    }

    /// The host socket broke: the guest gets a reset.
    pub fn handle_host_reset(&mut self, flow: Id) {
        if let Some(entry) = self.flows.get_mut(flow) {
            rest::wake(&mut self.iface, &mut self.rings, entry, self.latest);
            entry.abort();
            mark(&mut self.dirty, flow, entry);
        }
    }

    /// Sends what is due of one flow, arms its timer, and forgets it if it has ended. Call after moving its bytes.
    pub fn finish(&mut self, id: Id, now: Instant, composer: &mut Composer, out: &mut impl Output) {
        self.send_due(id, now, composer, out);
        self.settle_account(id, now);
        self.weigh(id);
        if self.held > self.limits.held {
            self.shed_over(now, composer, out);
        }
    }

    fn send_due(&mut self, id: Id, now: Instant, composer: &mut Composer, out: &mut impl Output) {
        self.latest = now;
        let Some(flow) = self.flows.get_mut(id) else { return };
        // While the SYN-ACK is held back poll_at says "now": do not believe it, and there is nothing to send.
        if flow.phase == Phase::Connecting {
            return;
        }
        if std::mem::take(&mut flow.ack_may_wait) && flow.owes_only_an_ack() {
            self.deadlines.arm(id, now + ACK_DELAY, &mut flow.armed);
            return;
        }
        flow.wire.share = self.rings.share();
        let lingering = flow.lingering;
        if !lingering {
            flow.finish_sending();
            if std::mem::take(&mut flow.reopened) {
                // What was lost while it closed comes before what is new.
                kick(&mut self.iface, &self.isn, flow, 5, now, composer, out);
            }
            egress(&mut self.iface, &self.isn, flow, now, composer, out);
            let state = flow.state();
            let sends = matches!(state, State::Established | State::CloseWait | State::FinWait1 | State::Closing);
            let overdue = std::mem::take(&mut flow.overdue);
            if sends && flow.wire.in_flight() {
                // smoltcp gives its retransmission timer up for window probes, and those up when the window opens: what
                // was lost while it closed (a kernel short of memory drops just then) would never be sent again. And a
                // retransmission timer that finds the window shut gives up without a probe; and a probe behind data in
                // flight is empty, which need not be answered.
                let idle = due(&mut self.iface, flow, now).is_none();
                if overdue || (idle && flow.wire.window_of_guest > 0) {
                    kick(&mut self.iface, &self.isn, flow, 5, now, composer, out);
                } else if idle {
                    kick(&mut self.iface, &self.isn, flow, 1, now, composer, out);
                }
            }
        }
        let state = flow.state();
        // CLOSED without a reset follows LAST-ACK, or a reset behind both FINs, but bytes may still wait for the host.
        let ended = match state {
            State::Listen => Some(false),
            State::Closed if flow.reset => Some(false),
            State::Closed | State::TimeWait if flow.guest_finished => Some(true),
            _ => None,
        };
        if let Some(in_order) = ended {
            self.remove(id, now, in_order);
            return;
        }
        if matches!(state, State::TimeWait | State::Closed) {
            flow.lingering = true;
            return;
        }
        // A debt that begins now is not as old as the last word of a guest that was idle.
        let owing = flow.owed();
        if owing && !flow.owing {
            flow.heard = now;
        }
        flow.owing = owing;
        let mut due = due(&mut self.iface, flow, now).map(|at| at.max(now + MIN_RECHECK));
        if flow.phase == Phase::Handshake {
            let end = flow.since + HANDSHAKE;
            due = Some(due.map_or(end, |at| at.min(end)));
        } else if due.is_none() && flow.socket.is_some() {
            rest::step_up(&mut self.iface, &mut self.rings, flow, now);
            let tired = flow.last + REST;
            if tired > now {
                due = Some(rest::tick(tired));
            } else {
                rest::rest(&mut self.iface, &mut self.rings, flow, now);
            }
        }
        if let Some(due) = due {
            self.deadlines.arm(id, due, &mut flow.armed);
        }
    }

    fn remove(&mut self, id: Id, now: Instant, in_order: bool) {
        self.settle_account(id, now);
        let Some(flow) = self.flows.remove(id) else { return };
        self.by_key.remove(&flow.key);
        self.ledger.closed(|| record((self.lane, id), &flow, Some(in_order)));
        match flow.phase {
            Phase::Connecting => self.opening_now -= 1,
            Phase::Handshake => self.half_open_now -= 1,
            Phase::Open => {}
        }
        self.held -= flow.charge;
        if flow.wire.offset.is_some() {
            self.isn.end(&flow.key, flow.wire.sent_end, now);
        }
        let carried = flow.carried() - flow.carried_before;
        if let Some(socket) = flow.socket {
            self.rings.give_back(socket, carried);
        }
        self.work.push_back(TcpWork::Close { flow: id, in_order });
    }
}

/// When smoltcp wants to be asked about one flow.
fn due(iface: &mut Interface, flow: &TcpFlow, now: Instant) -> Option<Instant> {
    flow.socket.as_ref().and_then(|socket| iface.poll_at(now, &socket.set))
}

/// Sends all that smoltcp has to send of one flow.
fn egress(
    iface: &mut Interface,
    isn: &IsnClock,
    flow: &mut TcpFlow,
    now: Instant,
    composer: &mut Composer,
    out: &mut impl Output,
) {
    let TcpFlow { socket: Some(socket), wire, key, .. } = flow else { return };
    loop {
        let mut port = Port { rx: None, wire, key, isn, composer, out, now };
        if iface.poll_egress(now, &mut port, &mut socket.set) == PollResult::None {
            break;
        }
    }
}

/// Makes smoltcp send the first unacknowledged segment again, by three duplicate acknowledgements in the guest's name;
/// two with other windows before them make it count from zero: five in all. One alone starts its window probes where the
/// window is shut.
fn kick(
    iface: &mut Interface,
    isn: &IsnClock,
    flow: &mut TcpFlow,
    count: usize,
    now: Instant,
    composer: &mut Composer,
    out: &mut impl Output,
) {
    let TcpFlow { socket: Some(socket), wire, key, .. } = flow else { return };
    let (seq, ack, window) = (wire.acked_to_guest, wire.acked_by_guest.unwrap_or(0), wire.window_of_guest);
    for window in [window ^ 1, window, window, window, window].into_iter().skip(5 - count) {
        let mut packet = [0u8; 60];
        let length = tcp_segment::TCP_HDR_LEN;
        let at = write_ip_header(&mut packet, key.guest, key.peer, proto::TCP, length, DEFAULT_TTL, 0);
        tcp_segment::emit_bare(&mut packet[at..], (key.guest_port, key.peer_port), seq, ack, ACK, window);
        let mut port = Port { rx: Some(&packet[..at + length]), wire, key, isn, composer, out, now };
        iface.poll_ingress_single(now, &mut port, &mut socket.set);
    }
    egress(iface, isn, flow, now, composer, out);
}

fn mark(dirty: &mut VecDeque<Id>, id: Id, flow: &mut TcpFlow) {
    if !flow.dirty {
        flow.dirty = true;
        dirty.push_back(id);
    }
}

/// Answers a segment that belongs to nothing (RFC 9293, section 3.10.7.1).
fn reset_unknown(key: &FlowKey, segment: &Segment<'_>, composer: &mut Composer, out: &mut impl Output) {
    if !composer.may_answer() {
        return;
    }
    let fields = if segment.has(ACK) {
        BareTcp { seq: segment.ack(), ack: 0, flags: RST, window: 0 }
    } else {
        let ack = segment.seq().wrapping_add(segment.sequence_len());
        BareTcp { seq: 0, ack, flags: RST | ACK, window: 0 }
    };
    composer.send_tcp_bare(key.peer(), key.guest(), fields, out);
}

/// A device that only has a shape, for `Interface::new`.
struct Shape {
    mtu: usize,
    tso: bool,
}

/// A token that is never made.
enum NoToken {}

impl RxToken for NoToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, _: F) -> R {
        match self {}
    }
}

impl TxToken for NoToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self {}
    }
}

impl Device for Shape {
    type RxToken<'a> = NoToken;
    type TxToken<'a> = NoToken;

    fn receive(&mut self, _: Instant) -> Option<(NoToken, NoToken)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<NoToken> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        port::capabilities(self.mtu, self.tso)
    }
}
