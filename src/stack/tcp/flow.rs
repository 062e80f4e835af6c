//! What is known of one TCP flow.

use smoltcp::socket::tcp::{self, State};
use smoltcp::time::Instant;

use super::account::Origin;
use super::port::Wire;
use super::rings::FlowSocket;
use crate::stack::flow::FlowKey;
use crate::stack::ledger::Traffic;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host connect is outstanding; smoltcp's SYN-ACK is held back.
    Connecting,
    /// Handshake with the guest outstanding (SYN or SYN-ACK sent).
    Handshake,
    /// Data may flow.
    Open,
}

pub(super) struct TcpFlow {
    pub key: FlowKey,
    pub origin: Origin,
    /// None while it rests (`rest`).
    pub socket: Option<FlowSocket>,
    pub wire: Wire,
    pub phase: Phase,
    /// First sequence number of the guest, to tell a repeated SYN from a new one.
    pub guest_isn: u32,
    /// The host sent end of file.
    pub host_finished: bool,
    /// smoltcp was told so.
    pub closed: bool,
    /// The guest's FIN was passed on to the host.
    pub guest_finished: bool,
    /// The guest or we have reset it.
    pub reset: bool,
    /// One small segment has come and its acknowledgement may wait.
    pub ack_may_wait: bool,
    /// In TIME-WAIT with bytes left for the host: smoltcp must not run its timer, which would empty the ring.
    pub lingering: bool,
    pub dirty: bool,
    /// When it began, and when it last carried anything.
    pub opened: Instant,
    pub last: Instant,
    /// What it carried (packets to the guest are in `wire`), and what of that is in the ledger.
    pub traffic: Traffic,
    pub told: Traffic,
    pub since: Instant,
    /// When the guest was last heard of, or came to owe an answer.
    pub heard: Instant,
    pub owing: bool,
    /// The guest's window has opened, and what was sent before it shut is not acknowledged.
    pub reopened: bool,
    /// A timer went off while the guest's window was shut.
    pub overdue: bool,
    pub armed: Option<Instant>,
    /// What it had carried when it got its socket, for the pool.
    pub carried_before: u64,
    /// What it had carried at the last look at its pace, and when that was.
    pub paced: u64,
    pub paced_at: Instant,
    /// What it had carried to the guest and to the host when it got its socket, for [`super::hoard`].
    pub bases: [u64; 2],
    /// What its rings and its host socket hold, as charged.
    pub charge: usize,
    /// The part of that in the host socket, as it counts.
    pub kernel: usize,
    /// Bytes that the guest and the host have taken, and when that last changed.
    pub delivered: u64,
    pub progress: Instant,
    /// Its entries among those that may give way.
    pub ranked_idle: Option<Instant>,
    pub ranked_holder: Option<Instant>,
}

impl TcpFlow {
    pub fn new(key: FlowKey, origin: Origin, socket: FlowSocket, mut wire: Wire, phase: Phase, now: Instant) -> Self {
        wire.own_shift = socket.shift();
        Self {
            key,
            origin,
            socket: Some(socket),
            wire,
            phase,
            guest_isn: 0,
            host_finished: false,
            closed: false,
            guest_finished: false,
            reset: false,
            ack_may_wait: false,
            lingering: false,
            dirty: false,
            opened: now,
            last: now,
            traffic: Traffic::default(),
            told: Traffic::default(),
            since: now,
            heard: now,
            owing: false,
            reopened: false,
            overdue: false,
            armed: None,
            carried_before: 0,
            paced: 0,
            paced_at: now,
            bases: [0; 2],
            charge: 0,
            kernel: 0,
            delivered: 0,
            progress: now,
            ranked_idle: None,
            ranked_holder: None,
        }
    }

    /// smoltcp's socket, but of a flow that rests.
    pub fn tcp(&self) -> Option<&tcp::Socket<'static>> {
        self.socket.as_ref().map(FlowSocket::get)
    }

    /// The state of the guest's side.
    pub fn state(&self) -> State {
        match self.tcp() {
            Some(tcp) => tcp.state(),
            None if self.guest_finished => State::CloseWait,
            None if self.closed => State::FinWait2,
            None => State::Established,
        }
    }

    /// What it has carried in its busier direction, retransmissions included.
    pub fn carried(&self) -> u64 {
        self.wire.bytes_to_guest.max(self.wire.bytes_from_guest)
    }

    /// The guest owes an acknowledgement, of data or of our FIN.
    pub fn owed(&self) -> bool {
        self.tcp().is_some_and(|tcp| {
            tcp.send_queue() > 0 || matches!(tcp.state(), State::FinWait1 | State::Closing | State::LastAck)
        })
    }

    /// Ends the stream to the guest, now or once its ring is drained.
    ///
    /// smoltcp in LAST-ACK answers every acknowledgement that acknowledges nothing new before it looks at its window:
    /// a guest that closed first and reads slowly would open its window in vain, and get one byte a probe. So that state
    /// is entered only with nothing but the FIN to send.
    pub fn finish_sending(&mut self) {
        let Some(tcp) = self.socket.as_mut().map(FlowSocket::get_mut) else { return };
        if self.host_finished && !self.closed && !(tcp.state() == State::CloseWait && tcp.send_queue() > 0) {
            self.closed = true;
            tcp.close();
        }
    }

    /// There is nothing else to say to the guest, nothing has been lost, and its window is open.
    pub fn owes_only_an_ack(&self) -> bool {
        let Some(tcp) = self.tcp() else { return false };
        self.phase == Phase::Open
            && tcp.state() == State::Established
            && tcp.send_queue() == 0
            && tcp.recv_queue() == 0
            && !self.host_finished
            && self.wire.window_of_guest > 0
    }

    /// Resets the guest's side; the RST leaves with the next egress.
    pub fn abort(&mut self) {
        self.reset = true;
        if let Some(socket) = &mut self.socket {
            socket.get_mut().abort();
        }
    }
}
