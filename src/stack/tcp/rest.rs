//! Flows without a socket, and flows that change their rings.
//!
//! ```text
//!             carried nothing for REST                more than BULKY within PACE
//! (resting) ◄────────────────────────── small rings ─────────────────────────────► large rings
//!     │  ▲                                   ▲                                         │
//!     │  └───────────────────────────────────┼───────── carried nothing for REST ──────┘
//!     └── anything from either side ─────────┴──► (large ones if the guest was promised that much room)
//! ```
//!
//! smoltcp has no way to move a connection to another pair of buffers. But at a moment when nothing is under way (both rings
//! empty, all that was sent acknowledged, nothing out of order, no timer) a connection is a few numbers, and those are in
//! [`Wire`]. So it is given up there, and made anew in another socket, or later, by a handshake that only that socket sees:
//! a SYN in the guest's name with what the guest once announced, an acknowledgement, and, of a connection that is half
//! closed, the FIN. What the socket answers goes nowhere but for its initial sequence number, which settles the flow's new
//! offset. The guest sees the same numbers, windows and scale as before.
//!
//! A resting flow keeps no page: ten thousand of them cost their entries in the tables. Windows never shrink: a guest that was
//! promised the room of a large ring may send that much at once when it wakes, so it is woken with one (over the
//! budget it gets a small one, and what does not fit is sent again).
//!
//! Deliberately not: a flow does not step down while it carries anything, and one that waits for a slow side holds its rings.

use smoltcp::iface::{Interface, PollResult};
use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpAddress, IpListenEndpoint};

use super::flow::{Phase, TcpFlow};
use super::port::{TOLD_SHIFT, capabilities};
use super::rings::{FlowSocket, LARGE_RING, RingPool, SMALL_RING};
use crate::stack::compose::{DEFAULT_TTL, proto, write_ip_header};
use crate::stack::flow::FlowKey;
use crate::wire::tcp_segment::{self, ACK, FIN, SYN, SYN_HDR_LEN, Segment};

/// A flow that carried nothing for this long gives its rings back (dataplane.md, rule 5).
pub(super) const REST: Duration = Duration::from_secs(1);
/// A flow that carries more than this within [`PACE`] is bulky: one small ring's worth.
const BULKY: u64 = SMALL_RING as u64;
/// How long a look at a flow's pace lasts.
const PACE: Duration = Duration::from_secs(1);
/// Room for an IPv6 header and a SYN's.
const HEADERS: usize = 40 + SYN_HDR_LEN;

/// When a flow whose time comes at `at` is looked at: together with the others of this hundredth of a second. Whoever opens ten
/// thousand connections a second leaves as many such times behind, and each of its own would be a wake-up.
pub(super) fn tick(at: Instant) -> Instant {
    const TICK: i64 = 10_000;
    Instant::from_micros((at.total_micros() + TICK - 1) / TICK * TICK)
}

/// Nothing is under way: the connection is what [`TcpFlow`] says of it without its socket.
fn is_still(iface: &mut Interface, flow: &TcpFlow, now: Instant) -> bool {
    let Some(socket) = &flow.socket else { return false };
    let tcp = socket.get();
    let state = match tcp.state() {
        State::Established => !flow.host_finished && !flow.guest_finished,
        State::CloseWait => !flow.host_finished && flow.guest_finished,
        State::FinWait2 => flow.closed && !flow.guest_finished,
        _ => false,
    };
    let wire = &flow.wire;
    let acked = wire.acked_by_guest.zip(wire.offset).map(|(acked, offset)| acked.wrapping_add(offset));
    state
        && flow.phase == Phase::Open
        && !flow.reset
        && !flow.lingering
        && !flow.ack_may_wait
        && tcp.send_queue() == 0
        && tcp.recv_queue() == 0
        && acked == Some(wire.sent_end)
        && (wire.end_of_guest.wrapping_sub(wire.acked_to_guest) as i32) <= 0
        && iface.poll_at(now, &socket.set).is_none()
}

/// Takes the socket of a flow for which nothing is under way. Called when it carried nothing for [`REST`]; one that is in the
/// middle of something keeps its socket, and is looked at again after whatever ends that.
pub(super) fn rest(iface: &mut Interface, rings: &mut RingPool, flow: &mut TcpFlow, now: Instant) {
    if is_still(iface, flow, now)
        && let Some(socket) = flow.socket.take()
    {
        rings.give_back(socket, flow.carried() - flow.carried_before);
    }
}

/// Gives a bulky flow with small rings large ones, if there are any and nothing is under way.
pub(super) fn step_up(iface: &mut Interface, rings: &mut RingPool, flow: &mut TcpFlow, now: Instant) {
    let carried = flow.carried();
    if carried - flow.paced <= BULKY || flow.socket.as_ref().is_none_or(FlowSocket::is_large) || !rings.has_large() {
        return;
    }
    if now >= flow.paced_at + PACE {
        flow.paced = carried;
        flow.paced_at = now;
        return;
    }
    if is_still(iface, flow, now)
        && let Some(socket) = flow.socket.take()
    {
        rings.give_back(socket, carried - flow.carried_before);
        give_socket(iface, rings, flow, true, now);
    }
}

/// Whether a flow that rests gets large rings when it wakes.
fn wakes_large(rings: &RingPool, flow: &TcpFlow) -> bool {
    let promised = usize::from(flow.wire.window) << TOLD_SHIFT;
    flow.wire.scale_of_guest.is_some() && promised > SMALL_RING && rings.has_large()
}

/// Room for bytes to the guest that a flow that rests will have.
pub(super) fn room(rings: &RingPool, flow: &TcpFlow) -> usize {
    if wakes_large(rings, flow) { LARGE_RING } else { SMALL_RING }
}

/// Gives a flow that rests a socket again.
pub(super) fn wake(iface: &mut Interface, rings: &mut RingPool, flow: &mut TcpFlow, now: Instant) {
    if flow.socket.is_none() {
        let large = wakes_large(rings, flow);
        give_socket(iface, rings, flow, large, now);
        flow.paced = flow.carried();
        flow.paced_at = now;
    }
}

fn give_socket(iface: &mut Interface, rings: &mut RingPool, flow: &mut TcpFlow, large: bool, now: Instant) {
    let mut socket = rings.take(large);
    if let Some(isn) = stage(iface, flow, &mut socket, now) {
        let next = isn.wrapping_add(1 + u32::from(flow.closed));
        flow.wire.offset = Some(flow.wire.sent_end.wrapping_sub(next));
        flow.wire.acked_by_guest = Some(next);
        flow.wire.flight_end = flow.wire.sent_end;
    } else {
        // Not seen, and nothing a guest could bring about: every word of the play is ours. Let the flow end with a reset.
        debug_assert!(false, "smoltcp did not take the handshake that was played to it");
        flow.reset = true;
    }
    flow.wire.own_shift = socket.shift();
    flow.carried_before = flow.carried();
    flow.bases = [flow.traffic.to_guest_bytes, flow.traffic.from_guest_bytes];
    flow.socket = Some(socket);
}

/// Plays the guest's part of the connection's history to a fresh socket; returns the sequence number that it began with.
fn stage(iface: &mut Interface, flow: &TcpFlow, socket: &mut FlowSocket, now: Instant) -> Option<u32> {
    let (key, wire) = (&flow.key, &flow.wire);
    let tcp = socket.get_mut();
    tcp.pause_synack(false);
    tcp.listen(IpListenEndpoint { addr: Some(IpAddress::from(key.peer)), port: key.peer_port }).ok()?;
    let mut play = Stage { iface, socket, key, now };
    let next = wire.acked_to_guest.wrapping_sub(u32::from(flow.guest_finished));
    let isn = play.syn(next.wrapping_sub(1), wire.mss_told, wire.scale_of_guest, wire.sack)?;
    let answered = isn.wrapping_add(1);
    play.say(ACK, next, answered, wire.window_of_guest);
    if flow.guest_finished {
        play.say(FIN | ACK, next, answered, wire.window_of_guest);
    }
    if flow.closed {
        play.socket.get_mut().close();
        play.hear();
        play.say(ACK, next, answered.wrapping_add(1), wire.window_of_guest);
    }
    (socket.get().state() == flow.state()).then_some(isn)
}

/// One socket and the guest that it believes to talk to.
struct Stage<'a> {
    iface: &'a mut Interface,
    socket: &'a mut FlowSocket,
    key: &'a FlowKey,
    now: Instant,
}

impl Stage<'_> {
    fn syn(&mut self, seq: u32, mss: u16, scale: Option<u8>, sack: bool) -> Option<u32> {
        let ports = (self.key.guest_port, self.key.peer_port);
        self.deliver(SYN_HDR_LEN, |tcp| tcp_segment::emit_syn(tcp, ports, seq, u16::MAX, mss, scale, sack));
        self.hear()
    }

    fn say(&mut self, flags: u8, seq: u32, ack: u32, window: u16) {
        let ports = (self.key.guest_port, self.key.peer_port);
        let length = tcp_segment::TCP_HDR_LEN;
        self.deliver(length, |tcp| tcp_segment::emit_bare(tcp, ports, seq, ack, flags, window));
        self.hear();
    }

    fn deliver(&mut self, length: usize, emit: impl FnOnce(&mut [u8]) -> usize) {
        let mut packet = [0; HEADERS];
        let at = write_ip_header(&mut packet, self.key.guest, self.key.peer, proto::TCP, length, DEFAULT_TTL, 0);
        emit(&mut packet[at..]);
        let mut ear = Ear { rx: Some(&packet[..at + length]), isn: None };
        self.iface.poll_ingress_single(self.now, &mut ear, &mut self.socket.set);
    }

    /// Lets the socket say what it has to say; returns the sequence number of its SYN if it said one.
    fn hear(&mut self) -> Option<u32> {
        let mut ear = Ear { rx: None, isn: None };
        while self.iface.poll_egress(self.now, &mut ear, &mut self.socket.set) != PollResult::None {}
        ear.isn
    }
}

/// The device of the play: what the socket says ends here.
struct Ear<'a> {
    rx: Option<&'a [u8]>,
    isn: Option<u32>,
}

struct Line<'a>(&'a [u8]);

impl RxToken for Line<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Answer<'a>(&'a mut Option<u32>);

impl TxToken for Answer<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // Bare headers with up to 40 bytes of options; there is nothing that a packet could carry.
        let mut packet = [0; 40 + 60];
        let packet = &mut packet[..len];
        let result = f(packet);
        let tcp_at = if packet[0] >> 4 == 6 { 40 } else { 20 };
        if let Some(segment) = Segment::new(&mut packet[tcp_at..])
            && segment.has(SYN)
        {
            *self.0 = Some(segment.seq());
        }
        result
    }
}

impl Device for Ear<'_> {
    type RxToken<'b>
        = Line<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Answer<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.rx.take()?;
        Some((Line(packet), Answer(&mut self.isn)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        Some(Answer(&mut self.isn))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // Read once by `Interface::new`, which is given a device of its own; afterwards ignored.
        capabilities(1500, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_late_by_less_than_a_tick_and_never_early() {
        for micros in [0, 1, 9_999, 10_000, 10_001, 1_234_567] {
            let late = tick(Instant::from_micros(micros)).total_micros() - micros;
            assert!((0..10_000).contains(&late), "{micros}: {late}");
        }
        assert_eq!(tick(Instant::from_micros(10_001)), tick(Instant::from_micros(19_999)));
    }
}
