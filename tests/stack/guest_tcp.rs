//! A guest's TCP, small and independent of smoltcp: enough to move bytes over a link that loses, doubles and reorders.
//!
//! Go-back-N with a doubling timer, no congestion control; what is behind a gap waits; a window that follows its
//! reader; FIN, RST and TIME-WAIT's answers. It believes what RFC 9293 lets it believe and nothing more.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use smoltcp::time::{Duration, Instant};

use crate::sim::{ACK, FIN, PSH, RST, SYN, SYN_OPTIONS, Seg};

const RTO: Duration = Duration::from_millis(300);
const MAX_RTO: Duration = Duration::from_secs(20);
/// As its SYN says.
const SCALE: u8 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Not ended.
    Open,
    /// Both streams ended and are acknowledged.
    InOrder,
    /// A reset, ours or the other side's.
    Reset,
}

/// One connection of the guest.
pub struct GuestTcp {
    guest: SocketAddr,
    peer: SocketAddr,
    /// All that it will send; FIN behind it if `closes`.
    outgoing: Vec<u8>,
    pub closes: bool,
    pub received: Vec<u8>,
    /// How much its reader takes per turn; the rest closes the window.
    pub unread: usize,
    pub capacity: usize,
    mss: usize,
    iss: u32,
    irs: u32,
    connected: bool,
    /// Offsets into the outgoing stream: acknowledged, next to send.
    acked: usize,
    next: usize,
    /// The other side's window, and its scale.
    window: usize,
    peer_scale: u8,
    /// FIN of ours was sent at least once; and acknowledged.
    fin_sent: bool,
    fin_acked: bool,
    pub peer_closed: bool,
    reset: bool,
    /// Segments behind a gap, by their place in the stream.
    early: BTreeMap<usize, Seg>,
    /// Newest acknowledgement number that came.
    heard_ack: Option<u32>,
    timer: Option<Instant>,
    rto: Duration,
    out: VecDeque<Seg>,
}

impl GuestTcp {
    pub fn new(guest: SocketAddr, peer: SocketAddr, iss: u32, outgoing: Vec<u8>, capacity: usize, mss: usize) -> Self {
        Self {
            guest,
            peer,
            outgoing,
            closes: false,
            received: Vec::new(),
            unread: 0,
            capacity,
            mss,
            iss,
            irs: 0,
            connected: false,
            acked: 0,
            next: 0,
            window: 0,
            peer_scale: 0,
            fin_sent: false,
            fin_acked: false,
            peer_closed: false,
            reset: false,
            early: BTreeMap::new(),
            heard_ack: None,
            timer: None,
            rto: RTO,
            out: VecDeque::new(),
        }
    }

    pub fn sent(&self) -> &[u8] {
        &self.outgoing
    }

    pub fn end(&self) -> End {
        if self.reset {
            End::Reset
        } else if self.fin_acked && self.peer_closed {
            End::InOrder
        } else {
            End::Open
        }
    }

    /// Segments to put on the link.
    pub fn take_out(&mut self) -> Vec<Seg> {
        self.out.drain(..).collect()
    }

    pub fn next_timeout(&self) -> Option<Instant> {
        self.timer
    }

    fn expected(&self) -> u32 {
        self.irs.wrapping_add(1).wrapping_add(self.received.len() as u32).wrapping_add(u32::from(self.peer_closed))
    }

    fn seq_of(&self, offset: usize) -> u32 {
        self.iss.wrapping_add(1).wrapping_add(offset as u32)
    }

    fn segment(&self, flags: u8, offset: usize, payload: &[u8]) -> Seg {
        let room = self.capacity.saturating_sub(self.unread) >> SCALE;
        Seg {
            src: self.guest,
            dst: self.peer,
            flags,
            seq: self.seq_of(offset),
            ack: if flags & ACK != 0 { self.expected() } else { 0 },
            window: room.min(0xffff) as u16,
            options: Vec::new(),
            payload: payload.to_vec(),
            gso_size: None,
        }
    }

    pub fn connect(&mut self, now: Instant) {
        let mut syn = self.segment(SYN, 0, b"");
        syn.seq = self.iss;
        syn.window = 64_240;
        syn.options = SYN_OPTIONS.to_vec();
        syn.options[2..4].copy_from_slice(&(self.mss as u16).to_be_bytes());
        self.out.push_back(syn);
        self.timer = Some(now + self.rto);
    }

    /// The application gives up.
    pub fn abort(&mut self) {
        if self.end() == End::Open {
            let offset = self.next + usize::from(self.fin_sent);
            self.out.push_back(self.segment(RST | ACK, offset, b""));
            self.reset = true;
            self.timer = None;
        }
    }

    /// Asks whether the other side is still there, as SO_KEEPALIVE does.
    pub fn probe(&mut self) {
        let at = self.seq_of(self.acked + usize::from(self.fin_acked)).wrapping_sub(1);
        self.out.push_back(Seg { seq: at, ..self.segment(ACK, 0, b"") });
    }

    /// The reader takes up to `amount` bytes; a window that was shut is announced when it opens.
    pub fn read(&mut self, amount: usize) {
        let before = self.capacity.saturating_sub(self.unread);
        self.unread = self.unread.saturating_sub(amount);
        if self.connected && !self.reset && before < self.mss && self.capacity - self.unread >= self.mss {
            let offset = self.next + usize::from(self.fin_sent);
            self.out.push_back(self.segment(ACK, offset, b""));
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.timer.is_none_or(|at| at > now) {
            return;
        }
        self.timer = None;
        self.rto = (self.rto * 2).min(MAX_RTO);
        if !self.connected {
            self.connect(now);
            return;
        }
        // Go back to what is not acknowledged; through a shut window goes one byte.
        self.next = self.acked;
        let probe = self.window == 0 && self.acked < self.outgoing.len();
        self.push(now, usize::from(probe));
    }

    /// Sends what the window lets, at least `least` bytes of it.
    pub fn push(&mut self, now: Instant, least: usize) {
        if !self.connected || self.reset || self.fin_acked {
            return;
        }
        let limit = self.outgoing.len().min(self.acked + self.window.max(least));
        while self.next < limit {
            let end = limit.min(self.next + self.mss);
            let payload = self.outgoing[self.next..end].to_vec();
            self.out.push_back(self.segment(ACK | PSH, self.next, &payload));
            self.next = end;
        }
        if self.closes && self.next == self.outgoing.len() && (!self.fin_sent || self.timer.is_none()) {
            self.out.push_back(self.segment(ACK | FIN, self.next, b""));
            self.fin_sent = true;
        }
        let owed = self.acked < self.outgoing.len() || self.fin_sent;
        if owed && self.timer.is_none() {
            self.timer = Some(now + self.rto);
        }
    }

    /// Answers once more the last segment that came for a connection that is no more.
    pub fn repeat_reset(&mut self) {
        self.out.push_back(Seg { seq: self.heard_ack.unwrap_or(self.iss), ..self.segment(RST, 0, b"") });
    }

    /// Takes what is new of a segment that begins at or before what is expected.
    fn take(&mut self, segment: &Seg) {
        if self.peer_closed {
            return;
        }
        let known = self.expected().wrapping_sub(segment.seq) as usize;
        if known < segment.payload.len() {
            let fresh = &segment.payload[known..];
            let taken = fresh.len().min(self.capacity - self.unread);
            self.received.extend(&fresh[..taken]);
            self.unread += taken;
        }
        let all = segment.end().wrapping_sub(u32::from(segment.has(FIN)));
        self.peer_closed |= segment.has(FIN) && all == self.expected();
    }

    pub fn handle(&mut self, now: Instant, segment: &Seg) {
        if segment.has(ACK) && segment.ack.wrapping_sub(self.heard_ack.unwrap_or(self.iss)) as i32 > 0 {
            self.heard_ack = Some(segment.ack);
        }
        if self.reset {
            if !segment.has(RST) {
                self.out.push_back(Seg { seq: segment.ack, ..self.segment(RST, 0, b"") });
            }
            return;
        }
        if !self.connected {
            if segment.has(RST) {
                self.reset |= segment.has(ACK) && segment.ack == self.iss.wrapping_add(1);
            } else if segment.has(SYN | ACK) && segment.ack == self.iss.wrapping_add(1) {
                self.connected = true;
                self.irs = segment.seq;
                self.peer_scale = segment.option(3).map_or(0, |b| b[0]);
                self.window = usize::from(segment.window);
                self.timer = None;
                self.rto = RTO;
                self.out.push_back(self.segment(ACK, 0, b""));
                self.push(now, 0);
            }
            return;
        }
        if segment.has(RST) {
            // RFC 5961: exactly the expected number; elsewhere in the window a challenge.
            if segment.seq == self.expected() {
                self.reset = true;
                self.timer = None;
            }
            return;
        }
        let mut answer = !segment.payload.is_empty() || segment.has(SYN) || segment.has(FIN);
        if segment.has(ACK) && !segment.has(SYN) {
            let acked = segment.ack.wrapping_sub(self.seq_of(0)) as usize;
            let highest = self.outgoing.len() + usize::from(self.fin_sent);
            if acked <= highest && acked >= self.acked {
                let progress = acked > self.acked;
                self.acked = acked.min(self.outgoing.len());
                self.next = self.next.max(self.acked);
                self.fin_acked |= acked > self.outgoing.len();
                let opened = self.window == 0 && segment.window > 0;
                self.window = usize::from(segment.window) << self.peer_scale;
                if progress || opened {
                    self.rto = RTO;
                    self.timer = None;
                }
                if opened {
                    self.next = self.acked;
                }
            }
        }
        let offset = segment.seq.wrapping_sub(self.expected()) as i32;
        let room = self.capacity - self.unread;
        // What is not acceptable is answered (RFC 9293, 3.10.7.4).
        answer |= offset < 0 || (offset > 0 && offset as usize >= room);
        if !self.peer_closed {
            // What is behind a gap is kept, if the window has room for it.
            if offset > 0 && offset as usize + segment.payload.len() <= room {
                self.early.insert(self.received.len() + offset as usize, segment.clone());
            }
            if offset <= 0 {
                self.take(segment);
                while let Some(at) = self.early.first_key_value().map(|(&at, _)| at)
                    && at <= self.received.len()
                {
                    let early = self.early.remove(&at).expect("just seen");
                    self.take(&early);
                }
            }
        }
        if answer {
            let at = self.next + usize::from(self.fin_sent && self.next == self.outgoing.len());
            self.out.push_back(self.segment(ACK, at, b""));
        }
        self.push(now, 0);
    }
}
