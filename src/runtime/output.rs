//! What the stack hands out: frames to the TAP, datagrams and echo requests to host sockets, DNS queries to the control
//! plane; and what host sockets say about them afterwards.
//!
//! Consecutive datagrams of one flow and size are kept back and leave as one UDP_SEGMENT send, at the latest when the
//! engine has read what the TAP had. An error queue is read until it is empty, because a pending error of one
//! destination fails the next send to another; what concerns the guest is kept (bounded) for [`super::engine`] to tell.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use smoltcp::time::Instant;

use super::control::DnsQuery;
use super::sockets::{ERROR_DATA, KeptError, MAX_ERRORS, Sockets, What, errno};
use crate::host::datagram::Datagram;
use crate::host::echo::{self, ECHO_HDR_LEN, Echo};
use crate::link::pcap::Direction;
use crate::network::fault;
use crate::stack::arena::Id;
use crate::stack::fault::{Faults, Limits, Released, Shaping, Verdict};
use crate::stack::ledger::Traffic;
use crate::stack::udp::UdpVia;
use crate::stack::verdict::{DropCounters, DropReason};
use crate::stack::{Output, PingToHost, UdpToHost};
use crate::sys::msg::{self, ErrorReport, Send};
use crate::wire::icmp_error::{self, IcmpError};
use crate::wire::vnet::VNET_HDR_LEN;

/// Largest UDP payload that IPv4 carries.
const MAX_PAYLOAD: usize = 65_507;
/// Datagrams in one UDP_SEGMENT send: UDP_MAX_SEGMENTS, include/linux/udp.h (64 before Linux 6.9).
const MAX_SEGMENTS: usize = 64;
/// Larger datagrams gain nothing from being copied together.
const MAX_COALESCED: usize = 2048;
impl Sockets {
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
    pub fn drain_listener_errors(&mut self, number: usize) {
        if let Some(port) = self.listeners.get(&number) {
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
        let datagrams = segment.map_or(1, |size| payload.len().div_ceil(usize::from(size.max(1))) as u64);
        let (fd, id, source) = match via {
            UdpVia::Mapping { id } => {
                let Some(socket) = self.udp.get_mut(id) else {
                    self.drops.count_all(DropReason::HostSocket, datagrams);
                    return;
                };
                socket.set_dont_fragment(dont_fragment);
                (Datagram::as_fd(socket), Some(id), None)
            }
            UdpVia::Listener { index, local } => {
                let Some(port) = self.listeners.get(&index) else {
                    // It was taken away since the guest's datagram was kept back.
                    self.drops.count_all(DropReason::NoMapping, datagrams);
                    return;
                };
                (port.fd.as_fd(), None, Some(local))
            }
        };
        let segment = segment.filter(|&size| payload.len() > usize::from(size));
        if let Some(size) = segment.map(usize::from) {
            // A guest's kernel may take more in one send than ours.
            let most = if self.gso { size * MAX_SEGMENTS } else { size };
            if payload.len() > most {
                for part in payload.chunks(most) {
                    self.send_udp(via, target, part, segment, ttl, dont_fragment);
                }
                return;
            }
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
                    drops.count_all(DropReason::HostSocket, datagrams);
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
                    drops.count_all(DropReason::TooBig, datagrams);
                    return;
                }
                libc::ECONNREFUSED => {}
                _ => {
                    if let Some((id, kind)) = id.zip(local_kind(code)) {
                        keep_local(errors, drops, id, None, kind, target, payload);
                    }
                    drops.count_all(DropReason::HostSocket, datagrams);
                    return;
                }
            }
        }
        self.drops.count_all(DropReason::HostSocket, datagrams);
    }

    fn new_udp(&mut self, id: Id, target: SocketAddr, payload: &[u8]) {
        let v6 = target.is_ipv6();
        match Datagram::new(v6, self.outbound(v6)) {
            Ok(socket) => {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, self.token(What::Udp(id)).encode());
                if self.epoll.add(&socket, event).is_ok() {
                    self.udp.put(id, socket);
                    self.moderation.put(id, super::moderation::Moderation::new(self.now));
                }
            }
            Err(error) => {
                self.warn_socket("UDP", &error);
                let Self { errors, drops, .. } = self;
                if let Some(kind) = local_kind(errno(&error)) {
                    keep_local(errors, drops, id, None, kind, target, payload);
                }
            }
        }
    }
}

/// SO_EE_ORIGIN_LOCAL.
const ORIGIN_LOCAL: u8 = 1;

/// What a send() that the host's own kernel refused means.
fn local_kind(code: i32) -> Option<IcmpError> {
    match code {
        // The second and third: the user's source address is none of this host, or the host has no such family.
        libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT => Some(IcmpError::NetUnreachable),
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

impl Sockets {
    /// Writes a frame to the TAP; false if it did not take it.
    fn write(&mut self, frame: &[u8]) -> bool {
        if !self.captures.is_empty() {
            self.captures.take(Direction::ToGuest, frame);
        }
        let taken = self.tap.write(frame);
        if taken {
            self.crossed.add(&Traffic::to_guest(1, frame.len() - VNET_HDR_LEN));
        }
        taken
    }

    /// The same for one that something may happen to first: true if the link is not to blame.
    fn write_or_hold(&mut self, frame: &[u8]) -> bool {
        let Some(faults) = &mut self.faults else { return self.write(frame) };
        match faults.handle_frame(self.now, fault::Direction::ToGuest, frame, &mut self.drops) {
            Verdict::Pass => self.write(frame),
            Verdict::Taken => {
                self.release_to_guest(self.now);
                true
            }
        }
    }

    /// Writes the frames that were held until now.
    pub fn release_to_guest(&mut self, now: Instant) {
        while let Some(faults) = &mut self.faults
            && let Some(frame) = faults.poll_due(now, fault::Direction::ToGuest)
        {
            if !self.write(&frame) {
                self.drops.count(DropReason::Link);
            }
        }
    }

    /// These faults hold from now on. What goes on because of that is due now: [`Sockets::release_to_guest`], and the engine for
    /// the other direction.
    pub fn set_faults(&mut self, rules: &[fault::Rule], now: Instant) -> Released {
        if self.faults.is_none() && rules.is_empty() {
            return Released::default();
        }
        let limits = Limits::default().share(self.lanes);
        let faults = self.faults.get_or_insert_with(|| Box::new(Faults::new(limits)));
        faults.set_rules(rules, now)
    }

    /// What the rules are at, where there are any.
    pub fn shaping(&self) -> Option<Arc<Mutex<Shaping>>> {
        self.faults.as_ref().map(|faults| faults.shaping())
    }

    /// Has the rules of another lane's hold here, if there are any; those that are held by now stay.
    pub fn share_faults(&mut self, shaping: Option<Arc<Mutex<Shaping>>>) {
        if let Some(shaping) = shaping {
            let limits = Limits::default().share(self.lanes);
            match &mut self.faults {
                // They hold what was shaped by the same, or nothing any more.
                Some(faults) => faults.join(shaping),
                None => self.faults = Some(Box::new(Faults::beside(limits, shaping))),
            }
        }
    }

    /// Faults that are over, and hold nothing any more, cost nothing from now on.
    pub fn forget_faults(&mut self) {
        if let Some(faults) = self.faults.take_if(|faults| faults.is_idle()) {
            self.delayed += faults.delayed();
        }
    }

    /// Packets that were held on purpose.
    pub fn delayed(&self) -> u64 {
        self.delayed + self.faults.as_ref().map_or(0, |faults| faults.delayed())
    }
}

impl Output for Sockets {
    fn to_guest(&mut self, frame: &[u8]) -> bool {
        if self.faults.is_some() { self.write_or_hold(frame) } else { self.write(frame) }
    }

    fn udp_to_host(&mut self, send: &UdpToHost<'_>) {
        let via = send.via;
        if let UdpVia::Mapping { id } = via
            && self.udp.get_mut(id).is_none()
        {
            self.new_udp(id, send.target, send.payload);
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
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, self.token(What::Ping(send.id)).encode());
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
                Err(error) => {
                    self.warn_socket("ping", &error);
                    let Self { errors, drops, .. } = self;
                    if let Some(kind) = local_kind(errno(&error)) {
                        keep_local(
                            errors,
                            drops,
                            send.id,
                            Some(send.seq),
                            kind,
                            SocketAddr::new(send.target, 0),
                            send.payload,
                        );
                    }
                }
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
        let asked = self.tickets.draw(self.dns_questions).is_some_and(|ticket| {
            let query = DnsQuery::Udp { endpoint: self.endpoint, guest, server, query: query.to_vec(), ticket };
            self.queries.try_send(query).is_ok()
        });
        if !asked {
            self.drops.count(DropReason::TableFull);
        }
    }
}

impl Sockets {
    /// Hands a guest's DNS-over-TCP connection to the control plane; returns our end of it.
    pub fn open_dns_stream(&mut self) -> io::Result<OwnedFd> {
        let ticket = self.tickets.draw(self.dns_questions).ok_or(io::ErrorKind::WouldBlock)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        self.queries
            .try_send(DnsQuery::Stream { endpoint: self.endpoint, stream: theirs, ticket })
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        Ok(OwnedFd::from(ours))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::os::unix::net::UnixDatagram;

    use nix::sys::epoll::{Epoll, EpollCreateFlags};

    use super::*;
    use crate::network::config::{EndpointConfig, Mac, Offloads};

    /// Sockets whose source address the user chose, and the other end of the TAP.
    fn sockets(outbound: &str) -> (Sockets, UnixDatagram) {
        let (tap, guest) = UnixDatagram::pair().expect("socket pair");
        let config = EndpointConfig {
            id: "0123456789ab".into(),
            mtu: 1500,
            guest_mac: Mac([0; 6]),
            gateway_mac: Mac([0; 6]),
            v4: None,
            v6: None,
            offloads: Offloads::default(),
            allow_host_loopback: true,
            allow_link_local: true,
            outbound_v4: Some(outbound.parse().expect("address")),
            outbound_v6: None,
            hostname: String::new(),
            dns_search: Vec::new(),
            slirp: None,
        };
        let queries = tokio::sync::mpsc::channel(1).0;
        let epoll = std::sync::Arc::new(Epoll::new(EpollCreateFlags::empty()).expect("epoll"));
        let id = Id { index: 0, generation: 1 };
        (Sockets::new(id, &config, OwnedFd::from(tap), epoll, queries), guest)
    }

    fn send(sockets: &mut Sockets, id: Id, target: SocketAddr) {
        sockets.udp_to_host(&UdpToHost {
            via: UdpVia::Mapping { id },
            guest: target,
            target,
            payload: b"data",
            segment: None,
            ttl: 64,
            dont_fragment: false,
        });
        sockets.flush();
    }

    #[test]
    fn a_source_that_is_none_of_ours_reaches_no_network() {
        // TEST-NET-3: nobody's.
        let (mut sockets, _guest) = sockets("203.0.113.9");
        let id = Id { index: 0, generation: 1 };
        send(&mut sockets, id, SocketAddr::from(([127, 0, 0, 1], 9)));
        let told: Vec<_> = sockets.errors.drain(..).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].id, told[0].kind, told[0].echo), (id, IcmpError::NetUnreachable, None));
        assert_eq!((told[0].offender, &told[0].data[..told[0].len]), (None, &b"data"[..]));
        let target = IpAddr::from([127, 0, 0, 1]);
        sockets.ping_to_host(&PingToHost { id, target, seq: 7, payload: b"ping", ttl: 64, dont_fragment: false });
        // Where ping sockets are forbidden there is nothing to bind.
        if !sockets.warned_ping {
            let told: Vec<_> = sockets.errors.drain(..).collect();
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!((told[0].kind, told[0].echo), (IcmpError::NetUnreachable, Some(7)));
        }
    }

    #[test]
    fn datagrams_come_from_the_source_that_was_chosen() {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let (mut sockets, _guest) = sockets("127.0.0.7");
        send(&mut sockets, Id { index: 0, generation: 1 }, server.local_addr().expect("address"));
        let (len, from) = server.recv_from(&mut [0; 10]).expect("a datagram");
        assert_eq!((len, from.ip()), (4, IpAddr::from([127, 0, 0, 7])));
        assert!(sockets.errors.is_empty());
    }
}
