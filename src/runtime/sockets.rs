//! The descriptors of one endpoint: the TAP, and the host sockets of every flow, in the data plane's epoll.
//!
//! [`Sockets`] is the stack's [`Output`]: frames go to the TAP at once, datagrams to their mapping's socket, coalesced
//! where consecutive ones of a flow have one size. Errors that concern the guest are kept (bounded) and told to the stack
//! after the call. An epoll event names its endpoint and flow by [`Token`]; a token of a flow that is gone finds nothing.
//!
//! The monitor holds duplicates of TAP and listeners, so closing ours does not take them out of epoll: [`Sockets::retire`] and
//! [`Sockets::remove_listener`] do.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use foldhash::fast::FixedState;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use smoltcp::time::Instant;
use tokio::sync::mpsc;

use super::capture::Taken;
use super::control::{DnsQuery, Ticket};
use super::moderation::{Attention, Moderation};
use crate::host::datagram::Datagram;
use crate::host::echo::Echo;
use crate::link::tap::Tap;
use crate::network::config::{EndpointConfig, Listener, Proto};
use crate::stack::arena::Id;
use crate::stack::fault::Faults;
use crate::stack::ledger::Traffic;
use crate::stack::udp::UdpVia;
use crate::stack::verdict::DropCounters;
use crate::wire::icmp_error::IcmpError;

/// Errors kept between two calls of the stack.
pub(super) const MAX_ERRORS: usize = 64;
/// Bytes of a datagram kept with an error.
pub const ERROR_DATA: usize = 128;

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Something from the control plane.
    Control,
    /// The exit descriptor.
    Exit,
    /// Something of the endpoint in this slot. Which occupant it was need not be said: an endpoint comes and goes between
    /// two waits, and what it had watched is watched no more.
    Endpoint(u32, What),
}

/// What of an endpoint an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The TAP.
    Tap,
    /// A TCP flow.
    Tcp(Id),
    /// A UDP mapping.
    Udp(Id),
    /// An echo session.
    Ping(Id),
    /// A published port, by its number.
    Listener(usize),
}

/// Slots of endpoints that a token can name.
pub const MAX_SLOTS: usize = 1 << SLOT_BITS;
/// Tag 4 bits, slot 12, and 48 for a flow: generation 24 (`stack::arena`), index 24.
const SLOT_BITS: u32 = 12;
const GENERATION: u64 = 0x00ff_ffff;
const INDEX: u64 = 0x00ff_ffff;

impl Token {
    pub(super) fn encode(self) -> u64 {
        let (slot, what) = match self {
            Self::Control => return 1 << 60,
            Self::Exit => return 6 << 60,
            Self::Endpoint(slot, what) => (slot, what),
        };
        let id = |id: Id| (u64::from(id.generation) & GENERATION) << 24 | u64::from(id.index) & INDEX;
        let (tag, rest) = match what {
            What::Tap => (0, 0),
            What::Tcp(flow) => (2, id(flow)),
            What::Udp(flow) => (3, id(flow)),
            What::Ping(flow) => (4, id(flow)),
            What::Listener(number) => (5, number as u64 & (GENERATION << 24 | INDEX)),
        };
        tag << 60 | u64::from(slot) << 48 | rest
    }

    /// From an event's data.
    pub fn decode(data: u64) -> Option<Self> {
        let id = Id { generation: (data >> 24 & GENERATION) as u32, index: (data & INDEX) as u32 };
        let what = match data >> 60 {
            0 => What::Tap,
            1 => return Some(Self::Control),
            2 => What::Tcp(id),
            3 => What::Udp(id),
            4 => What::Ping(id),
            5 => What::Listener((data & (GENERATION << 24 | INDEX)) as usize),
            6 => return Some(Self::Exit),
            _ => return None,
        };
        Some(Self::Endpoint((data >> 48) as u32 & (MAX_SLOTS as u32 - 1), what))
    }
}

/// A side table over the stack's ids: slot → occupant, checked by generation.
#[derive(Debug)]
pub struct Slots<T>(Vec<Option<(u32, T)>>);

impl<T> Slots<T> {
    fn new() -> Self {
        Self(Vec::new())
    }

    /// Puts `value` at `id`; what an older generation left there is returned.
    pub fn put(&mut self, id: Id, value: T) -> Option<T> {
        let index = id.index as usize;
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index].replace((id.generation, value)).map(|(_, old)| old)
    }

    /// The occupant, if it is that one.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        match self.0.get_mut(id.index as usize) {
            Some(Some((generation, value))) if *generation == id.generation => Some(value),
            _ => None,
        }
    }

    /// Takes the occupant out, if it is that one.
    pub fn take(&mut self, id: Id) -> Option<T> {
        let slot = self.0.get_mut(id.index as usize)?;
        if slot.as_ref().is_some_and(|(generation, _)| *generation == id.generation) {
            slot.take().map(|(_, value)| value)
        } else {
            None
        }
    }
}

/// The host socket of a TCP flow.
#[derive(Debug)]
pub struct TcpSocket {
    /// The socket.
    pub fd: OwnedFd,
    /// connect() has not been answered.
    pub connecting: bool,
    /// The last receive did not find the socket empty.
    pub readable: bool,
    /// The last send did not find the socket full.
    pub writable: bool,
    /// shutdown(SHUT_WR) is done.
    pub shut: bool,
    /// End of file was read.
    pub eof: bool,
    /// The connection is over in both directions, though bytes may wait: epoll would report it without end.
    pub hung: bool,
    /// Its end of file waits behind what is to be read: epoll tells of it once.
    pub ending: bool,
    /// Bytes that it was given are many enough for its queue to be bounded.
    pub bounded: bool,
    /// What epoll watches; `None`: not registered.
    pub interest: Option<EpollFlags>,
    /// Since when bytes wait that the guest or the host does not take.
    pub stalled: Option<Instant>,
    /// It is among those that are asked what they hold.
    pub audited: bool,
}

/// A published port.
#[derive(Debug)]
pub struct PublishedPort {
    /// What it is.
    pub spec: Listener,
    /// The listening or bound socket.
    pub fd: OwnedFd,
    /// Taken out of epoll for lack of descriptors.
    pub paused: bool,
    /// How often it is looked at, one of datagrams.
    pub moderation: Moderation,
}

impl PublishedPort {
    fn watch(&self, epoll: &Epoll, token: Token, flags: EpollFlags) {
        let mut event = EpollEvent::new(flags, token.encode());
        if let Err(error) = epoll.modify(&self.fd, &mut event) {
            tracing::warn!("cannot watch published port {}: {error}", self.spec.host_port);
        }
    }
}

/// An error about something that the guest sent.
#[derive(Debug)]
pub struct KeptError {
    /// Which mapping or session.
    pub id: Id,
    /// It was an echo request with this sequence number.
    pub echo: Option<u16>,
    /// What went wrong.
    pub kind: IcmpError,
    /// Where it was going.
    pub target: SocketAddr,
    /// Who said so.
    pub offender: Option<IpAddr>,
    /// The first bytes of the payload.
    pub data: [u8; ERROR_DATA],
    /// How many of them.
    pub len: usize,
}

/// Consecutive datagrams of one flow and size, waiting to be sent as one.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) via: UdpVia,
    pub(super) target: SocketAddr,
    pub(super) ttl: u8,
    pub(super) dont_fragment: bool,
    pub(super) size: usize,
    pub(super) count: usize,
    pub(super) buf: Vec<u8>,
}

/// Every descriptor of one endpoint.
pub struct Sockets {
    /// Whose.
    pub(super) endpoint: Id,
    /// The TAP.
    pub tap: Tap,
    /// Frames, vnet header left out, that crossed the TAP.
    pub crossed: Traffic,
    /// Frames that the guest had been given when its TAP was last read.
    pub given: u64,
    /// Bytes that one host socket may give this turn, beside its own bound.
    pub share: usize,
    /// Readiness, of all endpoints.
    pub epoll: Arc<Epoll>,
    /// TCP flows.
    pub tcp: Slots<TcpSocket>,
    pub(super) udp: Slots<Datagram>,
    /// How often each of those is looked at.
    pub(super) moderation: Slots<Moderation>,
    /// Whether they are: waiting can be timed finely enough.
    pub moderates: bool,
    pub(super) ping: Slots<Echo>,
    /// Published ports by number. A number is never used twice, so an event of one that is gone finds nothing.
    pub listeners: HashMap<usize, PublishedPort, FixedState>,
    /// Errors to tell the stack.
    pub errors: Vec<KeptError>,
    pub(super) pending: Pending,
    pub(super) gso: bool,
    pub(super) queries: mpsc::Sender<DnsQuery>,
    /// Questions on their way, and how many there may be.
    pub(super) tickets: Ticket,
    pub(super) dns_questions: usize,
    /// What was dropped here; drained into the stack's counters.
    pub drops: DropCounters,
    pub(super) outbound: [Option<IpAddr>; 2],
    pub(super) echo_buf: Vec<u8>,
    pub(super) warned_ping: bool,
    pub(super) warned_sockets: bool,
    /// Who gets copies of frames.
    pub captures: Taken,
    /// How many lanes the endpoint has.
    pub(super) lanes: usize,
    /// What happens to frames on purpose, where anything does.
    pub faults: Option<Box<Faults>>,
    /// Packets that were held by faults that are over.
    pub(super) delayed: u64,
    /// The turn's time, for those.
    pub now: Instant,
}

pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

impl Sockets {
    /// Takes the TAP, which is not watched yet.
    pub fn new(
        endpoint: Id,
        config: &EndpointConfig,
        tap: OwnedFd,
        epoll: Arc<Epoll>,
        queries: mpsc::Sender<DnsQuery>,
    ) -> Self {
        let tap = Tap::new(tap, config.offloads.vnet_hdr);
        let none = UdpVia::Listener { index: usize::MAX, local: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Self {
            endpoint,
            tap,
            crossed: Traffic::default(),
            given: 0,
            share: usize::MAX,
            epoll,
            tcp: Slots::new(),
            udp: Slots::new(),
            moderation: Slots::new(),
            moderates: true,
            ping: Slots::new(),
            listeners: HashMap::default(),
            errors: Vec::with_capacity(MAX_ERRORS),
            pending: Pending {
                via: none,
                target: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
                ttl: 0,
                dont_fragment: false,
                size: 0,
                count: 0,
                buf: Vec::new(),
            },
            gso: true,
            queries,
            tickets: Ticket::default(),
            dns_questions: usize::MAX,
            drops: DropCounters::default(),
            outbound: [config.outbound_v4.map(IpAddr::V4), config.outbound_v6.map(IpAddr::V6)],
            echo_buf: Vec::new(),
            warned_ping: false,
            warned_sockets: false,
            captures: Taken::default(),
            lanes: 1,
            faults: None,
            delayed: 0,
            now: Instant::ZERO,
        }
    }

    /// What epoll calls something of this endpoint.
    pub(super) fn token(&self, what: What) -> Token {
        Token::Endpoint(self.endpoint.index, what)
    }

    /// Watches the TAP from now on.
    pub fn register(&self) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.token(What::Tap).encode());
        Ok(self.epoll.add(&self.tap, event)?)
    }

    /// Watches neither TAP nor published ports any more.
    pub fn retire(&mut self) {
        let _ = self.epoll.delete(&self.tap);
        for port in self.listeners.values() {
            let _ = self.epoll.delete(&port.fd);
        }
    }

    /// The source address that the user chose for a family.
    pub fn outbound(&self, v6: bool) -> Option<IpAddr> {
        self.outbound[usize::from(v6)]
    }

    /// Brings epoll in line with what a TCP flow waits for. Nothing is asked if nothing changed.
    pub fn set_tcp_interest(&mut self, flow: Id, wanted: Option<EpollFlags>) {
        let Some(socket) = self.tcp.get_mut(flow) else { return };
        if socket.interest == wanted {
            return;
        }
        let data = Token::Endpoint(self.endpoint.index, What::Tcp(flow)).encode();
        let result = match (socket.interest, wanted) {
            (None, Some(flags)) => self.epoll.add(&socket.fd, EpollEvent::new(flags, data)),
            (Some(_), Some(flags)) => self.epoll.modify(&socket.fd, &mut EpollEvent::new(flags, data)),
            (_, None) => self.epoll.delete(&socket.fd),
        };
        match result {
            Ok(()) => socket.interest = wanted,
            Err(error) => tracing::warn!("cannot watch a host socket: {error}"),
        }
    }

    /// Reads the TAP, or leaves what comes in its queue.
    pub fn watch_tap(&self, reads: bool) {
        let flags = if reads { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        if let Err(error) = self.epoll.modify(&self.tap, &mut EpollEvent::new(flags, self.token(What::Tap).encode())) {
            tracing::warn!("cannot watch the TAP: {error}");
        }
    }

    /// Takes a published port in, under a number that no other ever had.
    pub fn add_listener(&mut self, number: usize, spec: Listener, fd: OwnedFd) -> io::Result<()> {
        match spec.proto {
            Proto::Udp => crate::host::datagram::prepare_published(fd.as_fd(), spec.host_addr.is_ipv6()),
            Proto::Tcp => crate::host::stream::prepare(fd.as_fd()),
        }
        self.epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, self.token(What::Listener(number)).encode()))?;
        self.listeners.insert(number, PublishedPort { spec, fd, paused: false, moderation: Moderation::new(self.now) });
        Ok(())
    }

    /// Lets a published port go; true if it was there.
    pub fn remove_listener(&mut self, number: usize) -> bool {
        let Some(port) = self.listeners.remove(&number) else { return false };
        let _ = self.epoll.delete(&port.fd);
        true
    }

    /// Takes a published port out of epoll until [`Sockets::resume_listeners`].
    pub fn pause_listener(&mut self, number: usize) {
        let token = self.token(What::Listener(number));
        let Some(port) = self.listeners.get_mut(&number) else { return };
        if !port.paused {
            port.paused = true;
            port.watch(&self.epoll, token, EpollFlags::empty());
        }
    }

    /// Puts every published port that was taken out of epoll back.
    pub fn resume_listeners(&mut self) {
        for (&number, port) in &mut self.listeners {
            if std::mem::take(&mut port.paused) {
                let token = Token::Endpoint(self.endpoint.index, What::Listener(number));
                port.watch(&self.epoll, token, EpollFlags::EPOLLIN);
            }
        }
    }

    /// A mapping's or session's socket, for receiving.
    pub fn udp_fd(&mut self, id: Id) -> Option<BorrowedFd<'_>> {
        self.udp.get_mut(id).map(|socket| Datagram::as_fd(socket))
    }

    /// A session's socket, for receiving, and whether it is IPv6.
    pub fn ping_fd(&mut self, id: Id) -> Option<(BorrowedFd<'_>, bool)> {
        self.ping.get_mut(id).map(|socket| (Echo::as_fd(socket), socket.is_v6()))
    }

    /// Closes a mapping's socket.
    pub fn close_udp(&mut self, id: Id) {
        self.udp.take(id);
        self.moderation.take(id);
    }

    /// What was taken from a datagram socket, for what epoll said of it (nothing: it was looked at); returns when to look at it
    /// next, if it is not watched.
    pub fn moderate(
        &mut self,
        what: What,
        said: EpollFlags,
        now: Instant,
        (taken, more): (u32, bool),
    ) -> Option<Instant> {
        let moderation = match what {
            What::Udp(id) => self.moderation.get_mut(id)?,
            What::Listener(number) => &mut self.listeners.get_mut(&number)?.moderation,
            _ => return None,
        };
        let attention = match said {
            _ if !self.moderates => moderation.give_up(),
            said if said.is_empty() => moderation.handle_look(now, taken, more),
            _ => moderation.handle_event(now, taken, more),
        };
        let (flags, at) = match attention {
            Attention::Same => return None,
            Attention::Look(at) => return Some(at),
            // Errors are told all the same.
            Attention::Leave(at) => (EpollFlags::empty(), Some(at)),
            Attention::Watch => (EpollFlags::EPOLLIN, None),
        };
        let token = self.token(what);
        if let What::Listener(number) = what {
            self.listeners.get(&number)?.watch(&self.epoll, token, flags);
        } else if let What::Udp(id) = what {
            let changed = self.epoll.modify(self.udp.get_mut(id)?, &mut EpollEvent::new(flags, token.encode()));
            if let Err(error) = changed {
                tracing::warn!("cannot watch a host socket: {error}");
            }
        }
        at
    }

    /// Closes a session's socket.
    pub fn close_ping(&mut self, id: Id) {
        self.ping.take(id);
    }

    /// Says once that a socket could not be had; the drops are counted.
    pub fn warn_socket(&mut self, kind: &str, error: &io::Error) {
        if !self.warned_sockets {
            self.warned_sockets = true;
            tracing::warn!("cannot make a host {kind} socket: {error}; further failures are only counted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_epoll() {
        let id = Id { index: 0x00ff_ffff, generation: 0x00ff_ffff };
        assert_eq!(Token::decode(Token::Control.encode()), Some(Token::Control));
        assert_eq!(Token::decode(Token::Exit.encode()), Some(Token::Exit));
        for slot in [0, 1, MAX_SLOTS as u32 - 1] {
            for what in [
                What::Tap,
                What::Tcp(id),
                What::Udp(Id { index: 0, generation: 1 }),
                What::Ping(id),
                What::Listener(65_535),
                What::Listener((1 << 48) - 1),
            ] {
                let token = Token::Endpoint(slot, what);
                assert_eq!(Token::decode(token.encode()), Some(token));
            }
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }

    #[test]
    fn a_slot_knows_its_occupant() {
        let mut slots = Slots::new();
        let old = Id { index: 3, generation: 1 };
        let new = Id { index: 3, generation: 2 };
        assert_eq!(slots.put(old, 'a'), None);
        assert_eq!(slots.put(new, 'b'), Some('a'));
        assert_eq!(slots.take(old), None);
        assert_eq!(slots.get_mut(new), Some(&mut 'b'));
        assert_eq!(slots.take(new), Some('b'));
        assert_eq!(slots.get_mut(new), None);
    }
}
