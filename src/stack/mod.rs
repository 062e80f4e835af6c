//! The data plane core of one endpoint. Sans-I/O: time and randomness are arguments, it never sees a descriptor.
//!
//! ```text
//! frame ─► Ethernet ─┬─► ARP, NDP, RA            (neighbour, ra)       answered here
//!                    └─► IP ─► fragments ─┬─► TCP  (tcp)    ─► policy ─► TcpWork, rings lent to the runtime
//!                                         ├─► UDP  (udp)    ─► policy ─► Output::udp_to_host
//!                                         │    ├─► DHCP     (dhcp*)     answered here
//!                                         │    └─► DNS                 ─► Output::dns_query
//!                                         └─► echo (ping)   ─► policy ─► Output::ping_to_host
//! ```
//!
//! **How it is driven.** `handle_*` takes what happened: a frame of the guest, a datagram, an accept or an error of the
//! host. What must be done at once with bytes that are only lent (a frame for the guest, a datagram for the host) goes to
//! the [`Output`] of that call. What can wait is polled: [`Stack::poll_tcp_work`], [`Stack::poll_dirty`], the closed
//! mappings. `next_timeout` says when [`Stack::handle_timeout`] wants to be called.
//!
//! **Refusals.** Each has a [`DropReason`] and a counter; nothing is dropped without one.
//!
//! **Order.** A flow's frames go through one stack in the order of the TAP. There is one thread, no lock, and per frame
//! no allocation, clock call or scan over flows (`contrib/bench/frames` counts).
//!
//! **Several.** An endpoint whose TAP has several queues has a stack for each. The first is whole; the others have TCP flows that the
//! guest begins ([`Stack::owns`]), and everything else is handed to the first (`runtime::lanes`). They share nothing.

pub mod arena;
pub mod bucket;
pub mod census;
pub mod compose;
pub mod deadline;
pub mod dhcp;
pub mod dhcp6;
pub mod fault;
pub mod flow;
pub mod guests;
mod ingress;
pub mod ledger;
pub mod neighbour;
pub mod ping;
pub mod policy;
pub mod ra;
pub mod reassembly;
pub mod switch;
pub mod tcp;
pub mod udp;
pub mod verdict;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::time::Instant;

use crate::network::config::EndpointConfig;
use crate::wire::icmp_error::IcmpError;
use arena::Id;
use bucket::Rate;
use census::Lane;
use compose::{Composer, DEFAULT_TTL, EchoReply, UDP_HDR_LEN, proto, write_ip_header};
use dhcp::DhcpServer;
use flow::GuestPort;
use guests::GuestLimits;
use ledger::{Traffic, datagrams};
use neighbour::Neighbour;
use ping::Ping;
use policy::{NetworkRules, Policy};
use ra::RouterAdvertiser;
use reassembly::Reassembler;
use tcp::{ConnectFailure, Tcp, TcpLimits, TcpReadiness, TcpWork};
use udp::{Udp, UdpLimits, UdpVia};
use verdict::{DropCounters, DropReason};

/// A datagram of the guest on its way out.
#[derive(Debug)]
pub struct UdpToHost<'a> {
    /// Which host socket.
    pub via: UdpVia,
    /// The guest's side.
    pub guest: SocketAddr,
    /// Where to.
    pub target: SocketAddr,
    /// Payload; several datagrams of `segment` bytes (the last may be shorter) where `segment` is given.
    pub payload: &'a [u8],
    /// Size of each datagram in a coalesced payload.
    pub segment: Option<u16>,
    /// Time to live to send with.
    pub ttl: u8,
    /// The guest asked that it not be fragmented.
    pub dont_fragment: bool,
}

/// An echo request of the guest on its way out.
#[derive(Debug)]
pub struct PingToHost<'a> {
    /// Which session. The first time it is named it has no socket yet.
    pub id: Id,
    /// Where to.
    pub target: IpAddr,
    /// Sequence number.
    pub seq: u16,
    /// Data.
    pub payload: &'a [u8],
    /// Time to live to send with.
    pub ttl: u8,
    /// The guest asked that it not be fragmented.
    pub dont_fragment: bool,
}

/// What one call hands out at once. Everything is lent for the time of the call.
pub trait Output {
    /// A frame (vnet header, Ethernet, …) for the guest; false if the link did not take it.
    fn to_guest(&mut self, frame: &[u8]) -> bool;
    /// A datagram for the host's network.
    fn udp_to_host(&mut self, send: &UdpToHost<'_>);
    /// An echo request for the host's network.
    fn ping_to_host(&mut self, send: &PingToHost<'_>);
    /// A DNS query over UDP from `guest` to our address `server`; answer with [`Stack::handle_dns_answer`].
    fn dns_query(&mut self, guest: SocketAddr, server: SocketAddr, query: &[u8]);
}

/// Bounds of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// TCP flows.
    pub tcp: TcpLimits,
    /// UDP mappings.
    pub udp: UdpLimits,
    /// Echo sessions.
    pub ping_sessions: usize,
    /// Incomplete datagrams.
    pub reassembly: reassembly::Limits,
    /// Guests, where they are learnt.
    pub guests: GuestLimits,
    /// Answers that cost a frame and carry nothing: ICMP errors, resets of what belongs to no flow, echo of the gateway.
    pub answers: Rate,
    /// Frames that nobody wants; above it the guest's are left in its queue for as long (`runtime::fair`).
    pub junk: Rate,
    /// Questions for names, and connections that ask them, on their way at a time.
    pub dns_questions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Sessions: one per pinging program; more is a scan.
        Self {
            tcp: TcpLimits::default(),
            udp: UdpLimits::default(),
            ping_sessions: 256,
            reassembly: reassembly::Limits::default(),
            guests: GuestLimits::default(),
            // Linux sends 1000 ICMP errors a second in bursts of 50 (net.ipv4.icmp_msgs_per_sec) for the whole machine, and as many echo
            // replies as are asked for. A program that pings again as soon as it is answered comes to 28 000 a second
            // (tests/netns/turns.rs, measured), and shall see no loss.
            answers: Rate { per_second: 50_000, burst: 10_000 },
            // A guess: at a microsecond or two each, a thirtieth of a processor. Not measured.
            junk: Rate { per_second: 20_000, burst: 5_000 },
            // As many as the resolver has on their way.
            dns_questions: 256,
        }
    }
}

/// What an error from the host's network said about a datagram of the guest.
#[derive(Clone, Copy, Debug)]
pub struct HostError<'a> {
    /// What went wrong.
    pub kind: IcmpError,
    /// Where the datagram was sent to.
    pub target: SocketAddr,
    /// Who said so; `None` if it was the host's own kernel.
    pub offender: Option<IpAddr>,
    /// What the guest sent (as much as the error tells).
    pub payload: &'a [u8],
}

/// The data plane core of one endpoint.
pub struct Stack {
    config: EndpointConfig,
    policy: Policy,
    composer: Composer,
    neighbour: Neighbour,
    ra: Option<RouterAdvertiser>,
    dhcp: Option<DhcpServer>,
    reassembler: Reassembler,
    whole: Vec<u8>,
    tcp: Tcp,
    udp: Udp,
    ping: Ping,
    frames_from_guest: u64,
    dns_queries: u64,
}

impl Stack {
    /// For one endpoint. `seed` must be unpredictable to the guest.
    pub fn new(config: EndpointConfig, limits: Limits, seed: u64, now: Instant) -> Self {
        let offloads = config.offloads;
        // One smoltcp interface has one MTU: super-frames need both families' segmentation.
        let tso = offloads.tso4 && offloads.tso6;
        let composer = Composer::new(&config, &limits, seed);
        Self {
            policy: Policy::new(&config),
            neighbour: Neighbour::new(&config),
            ra: RouterAdvertiser::new(&config, seed, now),
            dhcp: DhcpServer::new(&config),
            reassembler: Reassembler::new(limits.reassembly),
            whole: Vec::new(),
            tcp: Tcp::new(limits.tcp, config.mtu, tso, seed, now),
            udp: Udp::new(limits.udp, seed.rotate_left(7)),
            ping: Ping::new(limits.ping_sessions, seed.rotate_left(23)),
            frames_from_guest: 0,
            dns_queries: 0,
            composer,
            config,
        }
    }

    /// The endpoint's configuration.
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// Tells the host's addresses on its default routes.
    pub fn set_host_addresses(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        self.policy.set_host_addresses(v4, v6);
    }

    /// The endpoint is on a network that others share.
    pub fn set_network(&mut self, rules: NetworkRules) {
        self.policy.set_network(rules);
    }

    /// Is one of several of an endpoint, whose bounds they share: all but the first have TCP flows of the guest's alone
    /// ([`Stack::owns`]), and say nothing unasked.
    pub fn set_lane(&mut self, lane: Lane, count: usize) {
        self.tcp.set_lane(lane, count);
        if lane > Lane::default() {
            self.ra = None;
        }
    }

    /// A frame of the guest's was too large for another member: says so, as a router would.
    pub fn refuse_too_big(&mut self, mtu: u16, packet: &[u8], out: &mut impl Output) {
        if let Some(to) = compose::source(packet) {
            self.icmp_to_guest(IcmpError::FragmentationNeeded { mtu: mtu.into() }, None, to, packet, out);
        }
    }

    /// What was dropped, by reason.
    pub fn drops(&self) -> &DropCounters {
        &self.composer.drops
    }

    /// Counts something that the runtime dropped.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.composer.drops.count(reason);
    }

    /// Questions for names that were asked over UDP.
    pub fn dns_queries(&self) -> u64 {
        self.dns_queries
    }

    /// Frames from and to the guest.
    pub fn frames(&self) -> (u64, u64) {
        (self.frames_from_guest, self.composer.frames_to_guest)
    }

    /// Live TCP flows, UDP mappings, published UDP pairs and echo sessions.
    pub fn flows(&self) -> (usize, usize, usize, usize) {
        let (mappings, pairs) = self.udp.len();
        (self.tcp.len(), mappings, pairs, self.ping.len())
    }

    /// Where guests are learnt: addresses known, addresses asked for, and bytes held for those.
    pub fn guests(&self) -> Option<(usize, usize, usize)> {
        self.composer.guests().map(guests::Guests::len)
    }

    /// TCP flows, datagram sockets (UDP and echo), and bytes that flows hold.
    pub fn holds(&self) -> (usize, usize, usize) {
        let (flows, bytes) = self.tcp.holds();
        (flows, self.udp.len().0 + self.ping.len(), bytes)
    }

    /// Ends the TCP flow that has been idle longest, for the sake of others; false if there is none.
    pub fn shed_flow(&mut self, now: Instant, out: &mut impl Output) -> bool {
        self.tcp.shed_idle(now, &mut self.composer, out)
    }

    /// The same with a datagram socket: of the kind of which there are more.
    pub fn shed_datagrams(&mut self) -> bool {
        let shed = if self.ping.len() > self.udp.len().0 { self.ping.shed() } else { self.udp.shed() };
        if shed {
            self.composer.drops.count(DropReason::TableFull);
        }
        shed
    }

    /// The same with the flow that holds bytes and of which nobody took any for the longest time.
    pub fn shed_bytes(&mut self, now: Instant, out: &mut impl Output) -> bool {
        self.tcp.shed_held(now, &mut self.composer, out)
    }

    /// When [`Stack::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        [
            self.tcp.next_timeout(),
            self.udp.next_timeout(),
            self.ping.next_timeout(),
            self.reassembler.next_timeout(),
            self.ra.as_ref().and_then(RouterAdvertiser::next_timeout),
            self.composer.next_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what time demands.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Output) {
        self.tcp.handle_timeout(now);
        self.udp.handle_timeout(now);
        self.ping.handle_timeout(now);
        self.composer.handle_timeout(now, out);
        let Self { reassembler, composer, policy, ra, .. } = self;
        reassembler.handle_timeout(now, &mut |first| {
            let to = compose::source(first);
            if let Some((from, to)) = to.and_then(|to| policy.gateway(to.is_ipv6()).zip(Some(to))) {
                composer.send_icmp_error(IcmpError::ReassemblyTimeout, from, to, first, out);
            }
        });
        if let Some(ra) = ra
            && ra.next_timeout().is_some_and(|at| at <= now)
        {
            composer.send_frame(|buf| ra.handle_timeout(now, buf), out);
        }
    }

    /// One frame of the guest: vnet header (zeroed where the TAP has none), Ethernet, and what follows. May be rewritten.
    pub fn handle_from_guest(&mut self, now: Instant, frame: &mut [u8], out: &mut impl Output) {
        self.frames_from_guest += 1;
        self.composer.now = now;
        if let Err(reason) = self.ethernet(now, frame, out) {
            self.composer.drops.count(reason);
        }
    }

    // ---- TCP, passed through with what it needs of the rest ----

    /// What the runtime must do for TCP next.
    pub fn poll_tcp_work(&mut self) -> Option<TcpWork> {
        self.tcp.poll_work()
    }

    /// A TCP flow that something happened to: move its bytes, then [`Stack::finish_tcp`].
    pub fn poll_dirty(&mut self) -> Option<Id> {
        self.tcp.poll_dirty()
    }

    /// What can be moved for a flow now.
    pub fn tcp_readiness(&self, flow: Id) -> TcpReadiness {
        self.tcp.readiness(flow)
    }

    /// See [`Tcp::rests`].
    pub fn tcp_rests(&self, flow: Id) -> bool {
        self.tcp.rests(flow)
    }

    /// See [`Tcp::lend_from_guest`].
    pub fn lend_from_guest(&mut self, flow: Id, send: impl FnOnce(&[u8]) -> usize) -> usize {
        self.tcp.lend_from_guest(flow, send)
    }

    /// See [`Tcp::lend_to_guest`].
    pub fn lend_to_guest(&mut self, flow: Id, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        self.tcp.lend_to_guest(flow, fill)
    }

    /// The host accepted a connect.
    pub fn handle_tcp_connected(&mut self, flow: Id, now: Instant) {
        self.tcp.handle_connected(flow, now, &mut self.composer.drops);
    }

    /// The host refused a connect.
    pub fn handle_tcp_connect_failed(
        &mut self,
        flow: Id,
        failure: ConnectFailure,
        now: Instant,
        out: &mut impl Output,
    ) {
        let from = self.tcp.key(flow).and_then(|key| self.policy.gateway(key.guest.is_ipv6()));
        self.tcp.handle_connect_failed(flow, failure, from, now, &mut self.composer, out);
    }

    /// Published port number `listener`, which leads to `to`, accepted `client`.
    pub fn handle_tcp_accepted(
        &mut self,
        now: Instant,
        (listener, to): (usize, GuestPort),
        client: SocketAddr,
    ) -> Result<Id, DropReason> {
        let (shown, stand_in) = self.published(to, client);
        self.tcp.handle_accepted(now, (listener, client), shown, stand_in, &mut self.composer.drops)
    }

    /// How the guest sees a published port's client: its own end if the client can be shown, and the stand-in.
    fn published(&self, to: GuestPort, client: SocketAddr) -> (Option<SocketAddr>, Option<(IpAddr, SocketAddr)>) {
        let v6 = client.is_ipv6();
        if to.addr.is_some_and(|addr| !self.policy.can_be_guest(addr)) {
            return (None, None);
        }
        let guest = to.addr.map_or_else(|| self.policy.guest(v6), |addr| Some(addr).filter(|a| a.is_ipv6() == v6));
        let shown = guest.filter(|_| self.policy.can_show(client.ip()));
        let stand_in = match to.addr {
            Some(addr) => self.policy.gateway(addr.is_ipv6()).map(|gateway| (gateway, addr)),
            None => self.policy.stand_in(client.ip()),
        };
        let end = |guest| SocketAddr::new(guest, to.port);
        (shown.map(end), stand_in.map(|(gateway, guest)| (gateway, end(guest))))
    }

    /// Published port number `listener` is gone: its UDP clients are forgotten, so that its successor sees them as they
    /// are. TCP flows go on. Looks at every pair (a bounded table), as nothing else does.
    pub fn handle_listener_gone(&mut self, listener: usize) {
        self.udp.forget_listener(listener);
        self.tcp.ledger.forget_port(listener);
    }

    /// What the host socket of a flow holds in the kernel; [`Stack::finish_tcp`] acts on it.
    pub fn charge_tcp(&mut self, flow: Id, kernel: usize) {
        self.tcp.charge(flow, kernel);
    }

    /// See [`Tcp::handle_host_shut`].
    pub fn handle_host_shut(&mut self, flow: Id) {
        self.tcp.handle_host_shut(flow);
    }

    /// See [`Tcp::handle_host_eof`].
    pub fn handle_host_eof(&mut self, flow: Id) {
        self.tcp.handle_host_eof(flow);
    }

    /// See [`Tcp::handle_host_reset`].
    pub fn handle_host_reset(&mut self, flow: Id) {
        self.tcp.handle_host_reset(flow);
    }

    /// Sends what is due of one flow and arms its timer.
    pub fn finish_tcp(&mut self, flow: Id, now: Instant, out: &mut impl Output) {
        self.tcp.finish(flow, now, &mut self.composer, out);
    }

    // ---- UDP ----

    /// A mapping whose socket must be closed.
    pub fn poll_udp_closed(&mut self) -> Option<Id> {
        self.udp.poll_closed()
    }

    fn alias_of(&self, addr: IpAddr) -> Option<IpAddr> {
        self.policy.is_host_alias(addr).then(|| self.policy.gateway(addr.is_ipv6())).flatten()
    }

    /// A datagram (or several of `segment` bytes) arrived at a mapping's socket.
    pub fn handle_udp_from_host(
        &mut self,
        now: Instant,
        id: Id,
        source: SocketAddr,
        payload: &[u8],
        segment: Option<u16>,
        out: &mut impl Output,
    ) {
        let alias = self.alias_of(source.ip());
        let shown = self.policy.shown_sender(source).ok_or(DropReason::NoMapping);
        let size = Traffic::to_guest(datagrams(payload.len(), segment), payload.len());
        match shown.and_then(|source| self.udp.route_from_host(now, id, source, alias, &size)) {
            Ok((guest, shown)) => self.composer.send_udp(shown, guest, payload, segment, DEFAULT_TTL, out),
            Err(reason) => self.composer.drops.count(reason),
        }
    }

    /// A datagram arrived at published port number `listener` (address `local`), from `client`.
    pub fn handle_udp_published(
        &mut self,
        now: Instant,
        (listener, to): (usize, GuestPort),
        (client, local): (SocketAddr, IpAddr),
        payload: &[u8],
        segment: Option<u16>,
        out: &mut impl Output,
    ) {
        let (shown, stand_in) = self.published(to, client);
        let size = Traffic::to_guest(datagrams(payload.len(), segment), payload.len());
        match self.udp.route_published(now, (listener, client, local), shown, stand_in, &size) {
            Ok(key) => self.composer.send_udp(key.peer(), key.guest(), payload, segment, DEFAULT_TTL, out),
            Err(reason) => self.composer.drops.count(reason),
        }
    }

    /// An error about a datagram that a mapping sent: the guest gets it as ICMP.
    pub fn handle_udp_error(&mut self, id: Id, error: &HostError<'_>, out: &mut impl Output) {
        let alias = self.alias_of(error.target.ip());
        let Some(target) = self.policy.shown_sender(error.target) else { return };
        let Some((guest, shown)) = self.udp.route_error(id, target, alias) else { return };
        let mut original = [0u8; 40 + UDP_HDR_LEN + ERROR_DATA];
        let data = &error.payload[..error.payload.len().min(ERROR_DATA)];
        let udp_len = UDP_HDR_LEN + error.payload.len();
        let at = write_ip_header(&mut original, guest.ip(), shown.ip(), proto::UDP, udp_len, 1, 0);
        let udp = &mut original[at..];
        udp[0..2].copy_from_slice(&guest.port().to_be_bytes());
        udp[2..4].copy_from_slice(&shown.port().to_be_bytes());
        udp[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
        udp[8..8 + data.len()].copy_from_slice(data);
        let from = self.error_source(error, shown.ip());
        let len = at + UDP_HDR_LEN + data.len();
        self.icmp_to_guest(error.kind, from, guest.ip(), &original[..len], out);
    }

    /// Who an error comes from, as the guest sees it: the destination itself, a router on the way, or (`None`) we.
    fn error_source(&self, error: &HostError<'_>, shown: IpAddr) -> Option<IpAddr> {
        let offender = error.offender.filter(|addr| addr.is_ipv6() == shown.is_ipv6() && !addr.is_unspecified())?;
        if offender == error.target.ip() {
            Some(shown)
        } else {
            Some(offender).filter(|addr| !addr.is_loopback() && self.alias_of(*addr).is_none())
        }
    }

    // ---- echo ----

    /// An echo session whose socket must be closed.
    pub fn poll_ping_closed(&mut self) -> Option<Id> {
        self.ping.poll_closed()
    }

    /// An echo reply arrived for a session.
    pub fn handle_ping_from_host(
        &mut self,
        id: Id,
        source: IpAddr,
        (seq, ttl): (u16, u8),
        payload: &[u8],
        out: &mut impl Output,
    ) {
        match self.ping.route_from_host(id, payload.len()) {
            Some((guest, ident)) => {
                // One hop more: this one.
                let ttl = ttl.saturating_sub(1).max(1);
                self.composer.send_echo_reply(&EchoReply { src: source, dst: guest, ident, seq, ttl, payload }, out);
            }
            None => self.composer.drops.count(DropReason::NoMapping),
        }
    }

    /// An error about an echo request; `error.target`'s port is not looked at, `error.payload` is the request's data.
    pub fn handle_ping_error(&mut self, id: Id, seq: u16, error: &HostError<'_>, out: &mut impl Output) {
        let Some((guest, ident)) = self.ping.guest(id) else { return };
        let target = error.target.ip();
        let v6 = guest.is_ipv6();
        if target.is_ipv6() != v6 {
            return;
        }
        let data = &error.payload[..error.payload.len().min(ERROR_DATA)];
        let mut original = [0u8; 40 + 8 + ERROR_DATA];
        let len = 8 + error.payload.len();
        let protocol = if v6 { proto::ICMPV6 } else { proto::ICMP };
        let at = write_ip_header(&mut original, guest, target, protocol, len, 1, 0);
        let icmp = &mut original[at..];
        icmp[0] = if v6 { 128 } else { 8 };
        icmp[4..6].copy_from_slice(&ident.to_be_bytes());
        icmp[6..8].copy_from_slice(&seq.to_be_bytes());
        icmp[8..8 + data.len()].copy_from_slice(data);
        let from = self.error_source(error, target);
        self.icmp_to_guest(error.kind, from, guest, &original[..at + 8 + data.len()], out);
    }

    // ---- DNS ----

    /// The answer to a query of [`Output::dns_query`].
    pub fn handle_dns_answer(&mut self, guest: SocketAddr, server: SocketAddr, answer: &[u8], out: &mut impl Output) {
        self.composer.send_udp(server, guest, answer, None, DEFAULT_TTL, out);
    }
}

/// Bytes of a datagram that an error about it carries. Linux's error queue gives the whole; traceroute and mtr look at
/// the first few.
const ERROR_DATA: usize = 128;
