//! The data plane's descriptors: the TAP, the host sockets of every flow, and epoll.
//!
//! [`Sockets`] is the stack's [`Output`]: frames go to the TAP at once, datagrams to their mapping's socket, coalesced
//! where consecutive ones of a flow have one size. Errors that concern the guest are kept (bounded) and told to the stack
//! after the call. An epoll event names its flow by [`Token`]; a token of a flow that is gone finds nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::sync::mpsc;

use super::control::DnsQuery;
use crate::host::datagram::Datagram;
use crate::host::echo::{self, ECHO_HDR_LEN, Echo};
use crate::link::tap::Tap;
use crate::network::config::{EndpointConfig, Listener};
use crate::stack::arena::Id;
use crate::stack::udp::UdpVia;
use crate::stack::verdict::{DropCounters, DropReason};
use crate::stack::{Output, PingToHost, UdpToHost};
use crate::sys::msg::{self, ErrorReport, Send};
use crate::wire::icmp_error::{self, IcmpError};

/// Largest UDP payload that IPv4 carries.
const MAX_PAYLOAD: usize = 65_507;
/// Datagrams in one UDP_SEGMENT send: UDP_MAX_SEGMENTS, include/linux/udp.h (64 before Linux 6.9).
const MAX_SEGMENTS: usize = 64;
/// Larger datagrams gain nothing from being copied together.
const MAX_COALESCED: usize = 2048;
/// Errors kept between two calls of the stack.
const MAX_ERRORS: usize = 64;
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
    /// A published port.
    Listener(usize),
}

impl Token {
    fn encode(self) -> u64 {
        let id = |tag: u64, id: Id| tag << 56 | u64::from(id.generation & 0x00ff_ffff) << 32 | u64::from(id.index);
        match self {
            Self::Tap => 0,
            Self::Control => 1 << 56,
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

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.iter().flatten().count()
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
struct Pending {
    via: UdpVia,
    target: SocketAddr,
    ttl: u8,
    dont_fragment: bool,
    size: usize,
    count: usize,
    buf: Vec<u8>,
}

/// Every descriptor of the data plane.
pub struct Sockets {
    /// The TAP.
    pub tap: Tap,
    /// Readiness.
    pub epoll: Epoll,
    /// TCP flows.
    pub tcp: Slots<TcpSocket>,
    udp: Slots<Datagram>,
    ping: Slots<Echo>,
    /// Published ports.
    pub listeners: Vec<PublishedPort>,
    /// Errors to tell the stack.
    pub errors: Vec<KeptError>,
    pending: Pending,
    gso: bool,
    queries: mpsc::Sender<DnsQuery>,
    /// What was dropped here; drained into the stack's counters.
    pub drops: DropCounters,
    outbound: [Option<IpAddr>; 2],
    echo_buf: Vec<u8>,
    warned_ping: bool,
    warned_sockets: bool,
    /// Copies of frames for the capture file.
    pub capture: Option<super::capture::Capture>,
}

fn errno(error: &io::Error) -> i32 {
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
            listeners: Vec::with_capacity(listeners.len()),
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
            capture: None,
        };
        for (index, (spec, fd)) in listeners.into_iter().enumerate() {
            if spec.proto == crate::network::config::Proto::Udp {
                crate::host::datagram::prepare_published(fd.as_fd(), spec.host_addr.is_ipv6());
            }
            sockets.epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, Token::Listener(index).encode()))?;
            sockets.listeners.push(PublishedPort { spec, fd, paused: false });
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

    /// Takes a published port out of epoll, or puts it back.
    pub fn pause_listener(&mut self, index: usize, paused: bool) {
        let Some(port) = self.listeners.get_mut(index) else { return };
        if port.paused == paused {
            return;
        }
        port.paused = paused;
        let flags = if paused { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        let mut event = EpollEvent::new(flags, Token::Listener(index).encode());
        if let Err(error) = self.epoll.modify(&port.fd, &mut event) {
            tracing::warn!("cannot watch published port {}: {error}", port.spec.host_port);
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

    /// Host sockets held, for tests and information.
    pub fn held(&self) -> (usize, usize, usize) {
        (self.tcp.count(), self.udp.count(), self.ping.count())
    }

    /// Empties the error queue of a mapping's socket into [`Sockets::errors`].
    pub fn drain_udp_errors(&mut self, id: Id) {
        let Self { udp, errors, drops, .. } = self;
        if let Some(socket) = udp.get_mut(id) {
            drain(Datagram::as_fd(socket), |report, data| keep(errors, drops, id, None, report, data));
        }
    }

    /// Empties the error queue of a session's socket into [`Sockets::errors`].
    pub fn drain_ping_errors(&mut self, id: Id) {
        let Self { ping, errors, drops, .. } = self;
        if let Some(socket) = ping.get_mut(id) {
            drain(socket.as_fd(), |report, data| {
                if let Some(seq) = echo::read_request(data) {
                    keep(errors, drops, id, Some(seq), report, &data[ECHO_HDR_LEN..]);
                }
            });
        }
    }

    /// Empties the error queue of a published UDP port: its clients' troubles are not the guest's.
    pub fn drain_listener_errors(&mut self, index: usize) {
        if let Some(port) = self.listeners.get(index) {
            drain(port.fd.as_fd(), |_, _| {});
        }
    }

    /// Sends what was kept back to be coalesced. To be called before waiting.
    pub fn flush(&mut self) {
        if self.pending.count == 0 {
            return;
        }
        let mut buf = std::mem::take(&mut self.pending.buf);
        let segment = (self.pending.count > 1).then_some(self.pending.size as u16);
        let (via, target) = (self.pending.via, self.pending.target);
        let (ttl, dont_fragment) = (self.pending.ttl, self.pending.dont_fragment);
        self.pending.count = 0;
        self.send_udp(via, target, &buf, segment, ttl, dont_fragment);
        buf.clear();
        self.pending.buf = buf;
    }

    fn send_udp(
        &mut self,
        via: UdpVia,
        target: SocketAddr,
        payload: &[u8],
        segment: Option<u16>,
        ttl: u8,
        dont_fragment: bool,
    ) {
        let (fd, id, source) = match via {
            UdpVia::Mapping { id } => {
                let Some(socket) = self.udp.get_mut(id) else {
                    self.drops.count(DropReason::HostSocket);
                    return;
                };
                socket.set_dont_fragment(dont_fragment);
                (Datagram::as_fd(socket), Some(id), None)
            }
            UdpVia::Listener { index, local } => {
                let Some(port) = self.listeners.get(index) else { return };
                (port.fd.as_fd(), None, Some(local))
            }
        };
        if segment.is_some() && !self.gso {
            let size = segment.map_or(payload.len(), usize::from);
            for datagram in payload.chunks(size) {
                self.send_udp(via, target, datagram, None, ttl, dont_fragment);
            }
            return;
        }
        let how = Send { segment, ttl: Some(ttl), source };
        // A pending error of another destination fails the first try: it is in the queue, so empty that and try again.
        for _ in 0..2 {
            let Err(error) = msg::send(fd, target, payload, how) else { return };
            let code = errno(&error);
            let Self { errors, drops, .. } = self;
            let mut told = false;
            drain(fd, |report, data| {
                let mut report = *report;
                if report.origin == ORIGIN_LOCAL && report.target.ip() == target.ip() {
                    // What the kernel itself refuses names no port on an unconnected socket, and brings no bytes.
                    told = true;
                    report.target = target;
                }
                if let Some(id) = id {
                    keep(errors, drops, id, None, &report, if data.is_empty() { payload } else { data });
                }
            });
            match code {
                libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => {
                    drops.count(DropReason::HostSocket);
                    return;
                }
                // No UDP_SEGMENT in this kernel or on this path: one by one from now on.
                libc::EINVAL | libc::EIO | libc::ENOPROTOOPT if segment.is_some() => {
                    self.gso = false;
                    self.send_udp(via, target, payload, segment, ttl, dont_fragment);
                    return;
                }
                libc::EMSGSIZE if told => return,
                libc::EMSGSIZE => {
                    drops.count(DropReason::TooBig);
                    return;
                }
                libc::ECONNREFUSED => {}
                _ => {
                    if let Some((id, kind)) = id.zip(local_kind(code)) {
                        keep_local(errors, drops, id, None, kind, target, payload);
                    }
                    drops.count(DropReason::HostSocket);
                    return;
                }
            }
        }
        self.drops.count(DropReason::HostSocket);
    }

    fn new_udp(&mut self, id: Id, target: SocketAddr) {
        let v6 = target.is_ipv6();
        match Datagram::new(v6, self.outbound(v6)) {
            Ok(socket) => {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Udp(id).encode());
                if self.epoll.add(&socket, event).is_ok() {
                    self.udp.put(id, socket);
                }
            }
            Err(error) => self.warn_socket("UDP", &error),
        }
    }

    /// Says once that a socket could not be had; the drops are counted.
    pub fn warn_socket(&mut self, kind: &str, error: &io::Error) {
        if !self.warned_sockets {
            self.warned_sockets = true;
            tracing::warn!("cannot make a host {kind} socket: {error}; further failures are only counted");
        }
    }
}

/// SO_EE_ORIGIN_LOCAL.
const ORIGIN_LOCAL: u8 = 1;

/// What a send() that the host's own kernel refused means.
fn local_kind(code: i32) -> Option<IcmpError> {
    match code {
        libc::ENETUNREACH => Some(IcmpError::NetUnreachable),
        libc::EHOSTUNREACH | libc::EHOSTDOWN => Some(IcmpError::HostUnreachable),
        libc::EACCES | libc::EPERM => Some(IcmpError::AdminProhibited),
        _ => None,
    }
}

/// Reads an error queue until it is empty (bounded: the kernel's own limit is the receive buffer).
fn drain(fd: BorrowedFd<'_>, mut each: impl FnMut(&ErrorReport, &[u8])) {
    let mut buf = [0u8; ERROR_DATA + ECHO_HDR_LEN];
    for _ in 0..MAX_ERRORS {
        match msg::recv_error(fd, &mut buf) {
            Ok(Some(report)) => each(&report, &buf[..report.len.min(buf.len())]),
            _ => return,
        }
    }
}

fn keep(
    errors: &mut Vec<KeptError>,
    drops: &mut DropCounters,
    id: Id,
    echo: Option<u16>,
    report: &ErrorReport,
    data: &[u8],
) {
    let v6 = report.target.is_ipv6();
    let kind = if report.origin == ORIGIN_LOCAL {
        match report.errno {
            libc::EMSGSIZE => Some(IcmpError::FragmentationNeeded { mtu: report.info }),
            code => local_kind(code),
        }
    } else {
        icmp_error::from_host_error(report.icmp_type, report.icmp_code, report.info, v6)
    };
    let Some(kind) = kind else { return };
    if errors.len() >= MAX_ERRORS {
        drops.count(DropReason::RateLimited);
        return;
    }
    let mut kept = KeptError {
        id,
        echo,
        kind,
        target: report.target,
        offender: report.offender,
        data: [0; ERROR_DATA],
        len: data.len().min(ERROR_DATA),
    };
    kept.data[..kept.len].copy_from_slice(&data[..kept.len]);
    errors.push(kept);
}

fn keep_local(
    errors: &mut Vec<KeptError>,
    drops: &mut DropCounters,
    id: Id,
    echo: Option<u16>,
    kind: IcmpError,
    target: SocketAddr,
    payload: &[u8],
) {
    if errors.len() >= MAX_ERRORS {
        drops.count(DropReason::RateLimited);
        return;
    }
    let len = payload.len().min(ERROR_DATA);
    let mut kept = KeptError { id, echo, kind, target, offender: None, data: [0; ERROR_DATA], len };
    kept.data[..len].copy_from_slice(&payload[..len]);
    errors.push(kept);
}

impl Output for Sockets {
    fn to_guest(&mut self, frame: &[u8]) -> bool {
        if let Some(capture) = &mut self.capture {
            capture.to_guest(frame);
        }
        self.tap.write(frame)
    }

    fn udp_to_host(&mut self, send: &UdpToHost<'_>) {
        let via = send.via;
        if let UdpVia::Mapping { id } = via
            && self.udp.get_mut(id).is_none()
        {
            self.new_udp(id, send.target);
        }
        let size = send.payload.len();
        let fits = self.pending.count > 0
            && self.pending.via == via
            && self.pending.target == send.target
            && self.pending.ttl == send.ttl
            && self.pending.dont_fragment == send.dont_fragment
            && send.segment.is_none()
            && size <= self.pending.size
            && self.pending.count < MAX_SEGMENTS
            && self.pending.buf.len() + size <= MAX_PAYLOAD
            && size > 0;
        if fits {
            self.pending.buf.extend_from_slice(send.payload);
            self.pending.count += 1;
            if size < self.pending.size {
                // Only the last may be shorter.
                self.flush();
            }
            return;
        }
        self.flush();
        if send.segment.is_none() && size > 0 && size <= MAX_COALESCED && self.gso {
            self.pending.via = via;
            self.pending.target = send.target;
            self.pending.ttl = send.ttl;
            self.pending.dont_fragment = send.dont_fragment;
            self.pending.size = size;
            self.pending.count = 1;
            self.pending.buf.extend_from_slice(send.payload);
            return;
        }
        self.send_udp(via, send.target, send.payload, send.segment, send.ttl, send.dont_fragment);
    }

    fn ping_to_host(&mut self, send: &PingToHost<'_>) {
        let v6 = send.target.is_ipv6();
        if self.ping.get_mut(send.id).is_none() {
            match Echo::new(v6, self.outbound(v6)) {
                Ok(socket) => {
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Ping(send.id).encode());
                    if self.epoll.add(&socket, event).is_ok() {
                        self.ping.put(send.id, socket);
                    }
                }
                Err(error) if matches!(errno(&error), libc::EACCES | libc::EPERM) => {
                    if !self.warned_ping {
                        self.warned_ping = true;
                        tracing::warn!(
                            "ping beyond the gateway is off: the host forbids ping sockets \
                             (net.ipv4.ping_group_range does not hold your group; see `tapway doctor`)"
                        );
                    }
                }
                Err(error) => self.warn_socket("ping", &error),
            }
        }
        let Self { ping, errors, drops, echo_buf, .. } = self;
        let Some(socket) = ping.get_mut(send.id) else {
            drops.count(DropReason::HostSocket);
            return;
        };
        socket.set_dont_fragment(send.dont_fragment);
        echo_buf.clear();
        echo_buf.resize(ECHO_HDR_LEN, 0);
        echo::write_request(echo_buf, v6, send.seq);
        echo_buf.extend_from_slice(send.payload);
        let target = SocketAddr::new(send.target, 0);
        let how = Send { ttl: Some(send.ttl), ..Send::default() };
        for _ in 0..2 {
            let Err(error) = msg::send(socket.as_fd(), target, echo_buf, how) else { return };
            let mut told = false;
            drain(socket.as_fd(), |report, data| {
                let local = report.origin == ORIGIN_LOCAL;
                told |= local;
                if local && data.is_empty() {
                    // What the kernel itself refuses comes without its bytes; they are still at hand.
                    keep(errors, drops, send.id, Some(send.seq), report, send.payload);
                } else if let Some(seq) = echo::read_request(data) {
                    keep(errors, drops, send.id, Some(seq), report, &data[ECHO_HDR_LEN..]);
                }
            });
            match errno(&error) {
                libc::EMSGSIZE if told => return,
                code => {
                    if let Some(kind) = local_kind(code) {
                        // An old error of another destination, or this one's own: the second try tells.
                        if told {
                            return;
                        }
                        if code == libc::ENETUNREACH {
                            keep_local(errors, drops, send.id, Some(send.seq), kind, target, send.payload);
                            return;
                        }
                    }
                }
            }
        }
        drops.count(DropReason::HostSocket);
    }

    fn dns_query(&mut self, guest: SocketAddr, server: SocketAddr, query: &[u8]) {
        // The one place on the datagram path that allocates: a query waits for its answer elsewhere.
        if self.queries.try_send(DnsQuery::Udp { guest, server, query: query.to_vec() }).is_err() {
            self.drops.count(DropReason::TableFull);
        }
    }
}

impl Sockets {
    /// Hands a guest's DNS-over-TCP connection to the control plane; returns our end of it.
    pub fn open_dns_stream(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        self.queries
            .try_send(DnsQuery::Stream { stream: theirs })
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        Ok(OwnedFd::from(ours))
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
        assert_eq!(slots.count(), 0);
    }
}
