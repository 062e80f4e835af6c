//! The data plane's descriptors: the TAP, the host sockets of every flow, and epoll.
//!
//! [`Sockets`] is the stack's [`Output`]: frames go to the TAP at once, datagrams to their mapping's socket, coalesced
//! where consecutive ones of a flow have one size. Errors that concern the guest are kept (bounded) and told to the stack
//! after the call. An epoll event names its flow by [`Token`]; a token of a flow that is gone finds nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use foldhash::fast::FixedState;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::sync::mpsc;

use super::capture::Taken;
use super::control::DnsQuery;
use crate::host::datagram::Datagram;
use crate::host::echo::Echo;
use crate::link::tap::Tap;
use crate::network::config::{EndpointConfig, Listener};
use crate::stack::arena::Id;
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
    /// The TAP.
    Tap,
    /// Something from the control plane.
    Control,
    /// A TCP flow.
    Tcp(Id),
    /// A UDP mapping.
    Udp(Id),
    /// An echo session.
    Ping(Id),
    /// A published port, by its number.
    Listener(usize),
    /// The exit descriptor.
    Exit,
}

impl Token {
    pub(super) fn encode(self) -> u64 {
        let id = |tag: u64, id: Id| tag << 56 | u64::from(id.generation & 0x00ff_ffff) << 32 | u64::from(id.index);
        match self {
            Self::Tap => 0,
            Self::Control => 1 << 56,
            Self::Exit => 6 << 56,
            Self::Tcp(flow) => id(2, flow),
            Self::Udp(flow) => id(3, flow),
            Self::Ping(flow) => id(4, flow),
            Self::Listener(index) => 5 << 56 | index as u64,
        }
    }

    /// From an event's data.
    pub fn decode(data: u64) -> Option<Self> {
        let id = Id { generation: (data >> 32 & 0x00ff_ffff) as u32, index: data as u32 };
        match data >> 56 {
            0 => Some(Self::Tap),
            1 => Some(Self::Control),
            2 => Some(Self::Tcp(id)),
            3 => Some(Self::Udp(id)),
            4 => Some(Self::Ping(id)),
            5 => Some(Self::Listener((data & 0x00ff_ffff_ffff_ffff) as usize)),
            6 => Some(Self::Exit),
            _ => None,
        }
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
    /// What epoll watches; `None`: not registered.
    pub interest: Option<EpollFlags>,
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
}

impl PublishedPort {
    fn watch(&self, epoll: &Epoll, number: usize, flags: EpollFlags) {
        let mut event = EpollEvent::new(flags, Token::Listener(number).encode());
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

/// Every descriptor of the data plane.
pub struct Sockets {
    /// The TAP.
    pub tap: Tap,
    /// Readiness.
    pub epoll: Epoll,
    /// TCP flows.
    pub tcp: Slots<TcpSocket>,
    pub(super) udp: Slots<Datagram>,
    pub(super) ping: Slots<Echo>,
    /// Published ports by number. A number is never used twice, so an event of one that is gone finds nothing.
    pub listeners: HashMap<usize, PublishedPort, FixedState>,
    /// Errors to tell the stack.
    pub errors: Vec<KeptError>,
    pub(super) pending: Pending,
    pub(super) gso: bool,
    pub(super) queries: mpsc::Sender<DnsQuery>,
    /// What was dropped here; drained into the stack's counters.
    pub drops: DropCounters,
    pub(super) outbound: [Option<IpAddr>; 2],
    pub(super) echo_buf: Vec<u8>,
    pub(super) warned_ping: bool,
    pub(super) warned_sockets: bool,
    /// Who gets copies of frames.
    pub captures: Taken,
}

pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

impl Sockets {
    /// Takes the TAP and the listeners.
    pub fn new(
        config: &EndpointConfig,
        tap: OwnedFd,
        listeners: Vec<(Listener, OwnedFd)>,
        queries: mpsc::Sender<DnsQuery>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let tap = Tap::new(tap, config.offloads.vnet_hdr);
        epoll.add(&tap, EpollEvent::new(EpollFlags::EPOLLIN, Token::Tap.encode()))?;
        let none = UdpVia::Listener { index: usize::MAX, local: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let mut sockets = Self {
            tap,
            epoll,
            tcp: Slots::new(),
            udp: Slots::new(),
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
            drops: DropCounters::default(),
            outbound: [config.outbound_v4.map(IpAddr::V4), config.outbound_v6.map(IpAddr::V6)],
            echo_buf: Vec::new(),
            warned_ping: false,
            warned_sockets: false,
            captures: Taken::default(),
        };
        for (number, (spec, fd)) in listeners.into_iter().enumerate() {
            sockets.add_listener(number, spec, fd)?;
        }
        Ok(sockets)
    }

    /// Watches another descriptor.
    pub fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.encode()))?)
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
        let data = Token::Tcp(flow).encode();
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

    /// Takes a published port in, under a number that no other ever had.
    pub fn add_listener(&mut self, number: usize, spec: Listener, fd: OwnedFd) -> io::Result<()> {
        if spec.proto == crate::network::config::Proto::Udp {
            crate::host::datagram::prepare_published(fd.as_fd(), spec.host_addr.is_ipv6());
        }
        self.epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, Token::Listener(number).encode()))?;
        self.listeners.insert(number, PublishedPort { spec, fd, paused: false });
        Ok(())
    }

    /// Takes a published port out of epoll until [`Sockets::resume_listeners`].
    pub fn pause_listener(&mut self, number: usize) {
        let Some(port) = self.listeners.get_mut(&number) else { return };
        if !port.paused {
            port.paused = true;
            port.watch(&self.epoll, number, EpollFlags::empty());
        }
    }

    /// Puts every published port that was taken out of epoll back.
    pub fn resume_listeners(&mut self) {
        for (&number, port) in &mut self.listeners {
            if std::mem::take(&mut port.paused) {
                port.watch(&self.epoll, number, EpollFlags::EPOLLIN);
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
        let id = Id { index: u32::MAX, generation: 0x00ff_ffff };
        for token in [
            Token::Tap,
            Token::Control,
            Token::Tcp(id),
            Token::Udp(Id { index: 0, generation: 1 }),
            Token::Ping(id),
            Token::Listener(65_535),
            Token::Exit,
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
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
