//! The data plane core of one endpoint. Sans-I/O: time and randomness are arguments, it never sees a descriptor.
//!
//! ```text
//! frame ─► Ethernet ─┬─► ARP, NDP, RA            (neighbour, ra)       answered here
//!                    └─► IP ─► fragments ─┬─► TCP  (tcp)    ─► policy ─► TcpWork, rings lent to the runtime
//!                                         ├─► UDP  (udp)    ─► policy ─► Output::udp_to_host
//!                                         │    ├─► DHCP     (dhcp)      answered here
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
//! no allocation, clock call or scan over flows.

pub mod arena;
pub mod compose;
pub mod deadline;
pub mod dhcp;
pub mod flow;
pub mod neighbour;
pub mod ping;
pub mod policy;
pub mod ra;
pub mod reassembly;
pub mod tcp;
pub mod udp;
pub mod verdict;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::time::Instant;

use crate::network::config::EndpointConfig;
use crate::wire::icmp_error::IcmpError;
use crate::wire::vnet::{ETH_HDR_LEN, Gso, IP_OFFSET, VNET_HDR_LEN, VnetHdr};
use crate::wire::{chain, csum};
use arena::Id;
use compose::{Composer, DEFAULT_TTL, EchoReply, IPV4_HDR_LEN, UDP_HDR_LEN, proto, write_ip_header};
use dhcp::DhcpServer;
use flow::FlowKey;
use neighbour::Neighbour;
use ping::Ping;
use policy::{Decision, Policy};
use ra::RouterAdvertiser;
use reassembly::{Outcome, Reassembler};
use tcp::{ConnectFailure, OpenVerdict, Tcp, TcpLimits, TcpReadiness, TcpTarget, TcpWork};
use udp::{Udp, UdpLimits, UdpVia};
use verdict::{DropCounters, DropReason};

/// Where the DNS service listens.
const DNS_PORT: u16 = 53;
/// Where the DHCP server listens.
const DHCP_SERVER_PORT: u16 = 67;

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
}

impl Default for Limits {
    fn default() -> Self {
        // Sessions: one per pinging program; more is a scan.
        Self {
            tcp: TcpLimits::default(),
            udp: UdpLimits::default(),
            ping_sessions: 256,
            reassembly: reassembly::Limits::default(),
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
}

/// An IP packet, taken apart.
struct Packet {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// Where the transport header starts.
    at: usize,
    ttl: u8,
    dont_fragment: bool,
    /// The transport checksum need not be looked at.
    sum_ok: bool,
    /// Datagram size of a UDP super-frame.
    segment: Option<u16>,
}

impl Stack {
    /// For one endpoint. `seed` must be unpredictable to the guest.
    pub fn new(config: EndpointConfig, limits: Limits, seed: u64, now: Instant) -> Self {
        let offloads = config.offloads;
        // One smoltcp interface has one MTU: super-frames need both families' segmentation.
        let tso = offloads.tso4 && offloads.tso6;
        let composer = Composer::new(&config, seed);
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

    /// What was dropped, by reason.
    pub fn drops(&self) -> &DropCounters {
        &self.composer.drops
    }

    /// Counts something that the runtime dropped.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.composer.drops.count(reason);
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

    /// When [`Stack::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        [
            self.tcp.next_timeout(),
            self.udp.next_timeout(),
            self.ping.next_timeout(),
            self.reassembler.next_timeout(),
            self.ra.as_ref().and_then(RouterAdvertiser::next_timeout),
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
        let Self { reassembler, composer, policy, ra, .. } = self;
        reassembler.handle_timeout(now, &mut |first| {
            let v6 = first.first().is_some_and(|b| b >> 4 == 6);
            if let (Some(from), Some(to)) = (policy.gateway(v6), policy.guest(v6)) {
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
        if let Err(reason) = self.ethernet(now, frame, out) {
            self.composer.drops.count(reason);
        }
    }

    fn ethernet(&mut self, now: Instant, frame: &mut [u8], out: &mut impl Output) -> Result<(), DropReason> {
        let hdr = VnetHdr::parse(frame).ok_or(DropReason::Truncated)?;
        if frame.len() < IP_OFFSET {
            return Err(DropReason::Truncated);
        }
        let eth = &frame[VNET_HDR_LEN..];
        if eth[6..12] != self.config.guest_mac.0 {
            return Err(DropReason::SpoofedSource);
        }
        let group = eth[0] & 1 != 0;
        if !group && eth[0..6] != self.config.gateway_mac.0 {
            return Err(DropReason::NotForUs);
        }
        match u16::from_be_bytes([eth[12], eth[13]]) {
            0x0800 => self.ip_v4(now, hdr, frame, group, out),
            0x86dd => self.ip_v6(now, hdr, frame, group, false, out),
            0x0806 => {
                let Self { neighbour, composer, .. } = self;
                let mut refused = None;
                composer.send_frame(
                    |buf| {
                        neighbour.handle_arp(eth, buf).unwrap_or_else(|r| {
                            refused = Some(r);
                            None
                        })
                    },
                    out,
                );
                refused.map_or(Ok(()), Err)
            }
            _ => Err(DropReason::EtherType),
        }
    }

    fn ip_v4(
        &mut self,
        now: Instant,
        hdr: VnetHdr,
        frame: &mut [u8],
        group: bool,
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let plan = self.config.v4.ok_or(DropReason::FamilyOff)?;
        let bytes = &frame[IP_OFFSET..];
        if bytes.len() < IPV4_HDR_LEN {
            return Err(DropReason::Truncated);
        }
        let header_len = usize::from(bytes[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        if bytes[0] >> 4 != 4 || header_len < IPV4_HDR_LEN || total < header_len {
            return Err(DropReason::Malformed);
        }
        if total > bytes.len() {
            return Err(DropReason::Truncated);
        }
        if !csum::plain_ok(&bytes[..header_len]) {
            return Err(DropReason::Checksum);
        }
        let src = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
        let dst = Ipv4Addr::new(bytes[16], bytes[17], bytes[18], bytes[19]);
        if src != plan.guest && !(src.is_unspecified() && bytes[9] == proto::UDP) {
            return Err(DropReason::SpoofedSource);
        }
        if group && !(dst.is_broadcast() || dst == plan.subnet.broadcast()) {
            return Err(DropReason::Multicast);
        }
        // More-fragments or an offset.
        if u16::from_be_bytes([bytes[6], bytes[7]]) & 0x3fff != 0 {
            return self.fragment(now, frame, total, out);
        }
        let packet = Packet {
            src: IpAddr::V4(src),
            dst: IpAddr::V4(dst),
            protocol: bytes[9],
            at: header_len,
            ttl: bytes[8],
            dont_fragment: bytes[6] & 0x40 != 0,
            sum_ok: hdr.needs_csum || hdr.data_valid,
            segment: (hdr.gso == Gso::Udp && hdr.gso_size > 0).then_some(hdr.gso_size),
        };
        self.transport(now, &packet, &mut frame[IP_OFFSET..IP_OFFSET + total], out)
    }

    fn ip_v6(
        &mut self,
        now: Instant,
        hdr: VnetHdr,
        frame: &mut [u8],
        group: bool,
        was_fragmented: bool,
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        if self.config.v6.is_none() {
            return Err(DropReason::FamilyOff);
        }
        let bytes = &frame[IP_OFFSET..];
        let (src, dst) = chain::addresses(bytes).ok_or(DropReason::Truncated)?;
        let total = chain::IPV6_HEADER + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
        if bytes[0] >> 4 != 6 {
            return Err(DropReason::Malformed);
        }
        if total > bytes.len() {
            return Err(DropReason::Truncated);
        }
        let chain = chain::walk(&bytes[..total]).ok_or(DropReason::Malformed)?;
        if let Some(fragment) = chain.fragment
            && (fragment.more || fragment.offset > 0)
        {
            return self.fragment(now, frame, total, out);
        }
        if chain.protocol == proto::ICMPV6 && self.discovery(now, frame, total, chain.at, src, out)? {
            return Ok(());
        }
        if group || dst.is_multicast() {
            return Err(DropReason::Multicast);
        }
        // From its link-local address the guest reaches the router's, and nothing beyond the link.
        let on_link = src.is_unicast_link_local() && self.config.v6.is_some_and(|plan| dst == plan.gateway_link_local);
        if !on_link && !self.policy.is_guest_source(IpAddr::V6(src)) {
            return Err(DropReason::SpoofedSource);
        }
        let packet = Packet {
            src: IpAddr::V6(src),
            dst: IpAddr::V6(dst),
            protocol: chain.protocol,
            at: chain.at,
            ttl: frame[IP_OFFSET + 7],
            // Routers never fragment IPv6 (RFC 8200, section 5), but what the guest itself cut may be cut again.
            dont_fragment: !was_fragmented,
            sum_ok: hdr.needs_csum || hdr.data_valid,
            segment: (hdr.gso == Gso::Udp && hdr.gso_size > 0).then_some(hdr.gso_size),
        };
        self.transport(now, &packet, &mut frame[IP_OFFSET..IP_OFFSET + total], out)
    }

    /// Neighbour and router discovery; true if the packet was that.
    fn discovery(
        &mut self,
        now: Instant,
        frame: &[u8],
        total: usize,
        at: usize,
        src: Ipv6Addr,
        out: &mut impl Output,
    ) -> Result<bool, DropReason> {
        let eth = &frame[VNET_HDR_LEN..IP_OFFSET + total];
        let Self { neighbour, ra, composer, .. } = self;
        let mut refused = None;
        match eth.get(ETH_HDR_LEN + at) {
            // Router solicitation (RFC 4861, section 4.1).
            Some(133) => {
                let Some(ra) = ra else { return Ok(true) };
                composer.send_frame(
                    |buf| {
                        ra.handle_solicitation(now, eth, buf).unwrap_or_else(|r| {
                            refused = Some(r);
                            None
                        })
                    },
                    out,
                );
            }
            // Neighbour solicitation.
            Some(135) => composer.send_frame(
                |buf| {
                    neighbour.handle_ndp(eth, buf).unwrap_or_else(|r| {
                        refused = Some(r);
                        None
                    })
                },
                out,
            ),
            // Advertisements and redirects tell us nothing: the attach table is the truth.
            Some(134 | 136 | 137) => {}
            // MLD reports (RFC 3810) from a link that does not flood.
            Some(130..=132 | 143) if src.is_unspecified() || src.is_unicast_link_local() => {
                return Err(DropReason::Multicast);
            }
            _ => return Ok(false),
        }
        refused.map_or(Ok(true), Err)
    }

    fn fragment(
        &mut self,
        now: Instant,
        frame: &mut [u8],
        total: usize,
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let mut whole = std::mem::take(&mut self.whole);
        let outcome = match self.reassembler.handle(now, &frame[IP_OFFSET..IP_OFFSET + total]) {
            Outcome::Complete(packet) => {
                // Given a frame's head again, so that one path serves both.
                whole.clear();
                whole.extend_from_slice(&[0; VNET_HDR_LEN]);
                whole.extend_from_slice(&frame[VNET_HDR_LEN..IP_OFFSET]);
                whole.extend_from_slice(packet);
                Ok(true)
            }
            Outcome::Pending => Ok(false),
            Outcome::NotAFragment => Err(DropReason::Malformed),
            Outcome::Drop(reason) => Err(reason),
        };
        let result = match outcome {
            Ok(true) => {
                let hdr = VnetHdr::default();
                if whole[IP_OFFSET] >> 4 == 4 {
                    self.ip_v4(now, hdr, &mut whole, false, out)
                } else {
                    self.ip_v6(now, hdr, &mut whole, false, true, out)
                }
            }
            Ok(false) => Ok(()),
            Err(reason) => Err(reason),
        };
        self.whole = whole;
        result
    }

    fn transport(
        &mut self,
        now: Instant,
        packet: &Packet,
        bytes: &mut [u8],
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let sum_ok = packet.sum_ok;
        match packet.protocol {
            proto::TCP => {
                if !sum_ok && !csum::verify(packet.src, packet.dst, proto::TCP, &bytes[packet.at..]) {
                    return Err(DropReason::Checksum);
                }
                let Self { tcp, policy, composer, .. } = self;
                let ttl = packet.ttl;
                let open = |peer: SocketAddr| match policy.decide(peer.ip()) {
                    Decision::Outside(_) if ttl <= 1 => OpenVerdict::Icmp(IcmpError::HopLimitExceeded),
                    Decision::Outside(addr) => {
                        OpenVerdict::Connect(TcpTarget::Outside(SocketAddr::new(addr, peer.port())))
                    }
                    Decision::Gateway(Some(addr)) => {
                        OpenVerdict::Connect(TcpTarget::Host(SocketAddr::new(addr, peer.port())))
                    }
                    Decision::Gateway(None) => OpenVerdict::Icmp(IcmpError::NetUnreachable),
                    Decision::Dns if peer.port() == DNS_PORT => OpenVerdict::Connect(TcpTarget::Dns),
                    Decision::Dns | Decision::Refuse => OpenVerdict::Reset,
                    Decision::Ignore(reason) => OpenVerdict::Ignore(reason),
                };
                let from = policy.gateway(packet.src.is_ipv6());
                tcp.handle_segment(now, bytes, packet.at, (packet.src, packet.dst), open, from, composer, out)
            }
            proto::UDP => self.udp(now, packet, bytes, out),
            proto::ICMP if packet.src.is_ipv4() => self.echo(now, packet, bytes, 8, out),
            proto::ICMPV6 if packet.src.is_ipv6() => self.echo(now, packet, bytes, 128, out),
            _ => {
                self.icmp_to_guest(IcmpError::ProtocolUnreachable, None, packet.src, bytes, out);
                Err(DropReason::Protocol)
            }
        }
    }

    /// An ICMP error of ours about `original`, from the gateway unless `from` is given.
    fn icmp_to_guest(
        &mut self,
        kind: IcmpError,
        from: Option<IpAddr>,
        to: IpAddr,
        original: &[u8],
        out: &mut impl Output,
    ) {
        if let Some(from) = from.or_else(|| self.policy.gateway(to.is_ipv6())) {
            self.composer.send_icmp_error(kind, from, to, original, out);
        }
    }

    fn udp(
        &mut self,
        now: Instant,
        packet: &Packet,
        bytes: &mut [u8],
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let udp = bytes.get(packet.at..).filter(|udp| udp.len() >= UDP_HDR_LEN).ok_or(DropReason::Truncated)?;
        let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
        if len < UDP_HDR_LEN || len > udp.len() {
            return Err(DropReason::Malformed);
        }
        let udp = &udp[..len];
        let unsummed = packet.src.is_ipv4() && udp[6..8] == [0, 0];
        if !packet.sum_ok && !unsummed && !csum::verify(packet.src, packet.dst, proto::UDP, udp) {
            return Err(DropReason::Checksum);
        }
        let guest = SocketAddr::new(packet.src, u16::from_be_bytes([udp[0], udp[1]]));
        let peer = SocketAddr::new(packet.dst, u16::from_be_bytes([udp[2], udp[3]]));
        let payload = &udp[UDP_HDR_LEN..];
        let decision = self.policy.decide(peer.ip());
        if peer.port() == DHCP_SERVER_PORT
            && (packet.dst == IpAddr::V4(Ipv4Addr::BROADCAST) || matches!(decision, Decision::Gateway(_)))
            && let Some(dhcp) = &mut self.dhcp
        {
            self.composer.send_frame(|buf| dhcp.handle_frame(payload, buf), out);
            return Ok(());
        }
        if guest.port() == 0 || peer.port() == 0 || packet.src.is_unspecified() {
            return Err(DropReason::Malformed);
        }
        if decision == Decision::Dns && peer.port() == DNS_PORT {
            out.dns_query(guest, peer, payload);
            return Ok(());
        }
        let (target, alias, hops) = match decision {
            Decision::Outside(addr) => (Some(addr), false, 1),
            Decision::Gateway(addr) => (addr, true, 0),
            _ => (None, false, 1),
        };
        if hops > 0 && packet.ttl <= hops && target.is_some() {
            self.icmp_to_guest(IcmpError::HopLimitExceeded, None, packet.src, bytes, out);
            return Err(DropReason::HopLimit);
        }
        let target = target.map(|addr| SocketAddr::new(addr, peer.port()));
        if let Some((via, target)) = self.udp.route_from_guest(now, guest, peer, target, alias) {
            out.udp_to_host(&UdpToHost {
                via,
                guest,
                target,
                payload,
                segment: packet.segment.filter(|&size| usize::from(size) < payload.len()),
                ttl: packet.ttl.saturating_sub(hops).max(1),
                dont_fragment: packet.dont_fragment,
            });
            return Ok(());
        }
        let kind = match decision {
            Decision::Dns => IcmpError::PortUnreachable,
            Decision::Gateway(_) => IcmpError::NetUnreachable,
            Decision::Ignore(reason) => return Err(reason),
            _ => IcmpError::AdminProhibited,
        };
        let from = (decision == Decision::Dns).then_some(packet.dst);
        self.icmp_to_guest(kind, from, packet.src, bytes, out);
        Err(DropReason::Refused)
    }

    /// ICMP of the guest: echo requests go on, the rest ends here.
    fn echo(
        &mut self,
        now: Instant,
        packet: &Packet,
        bytes: &mut [u8],
        request: u8,
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let icmp = bytes.get(packet.at..).filter(|icmp| icmp.len() >= 8).ok_or(DropReason::Truncated)?;
        let good = if packet.src.is_ipv4() {
            csum::plain_ok(icmp)
        } else {
            packet.sum_ok || csum::verify(packet.src, packet.dst, proto::ICMPV6, icmp)
        };
        if !good {
            return Err(DropReason::Checksum);
        }
        if icmp[0] != request || icmp[1] != 0 {
            // Errors about what we sent: the flow's own timers deal with it.
            return Err(DropReason::Protocol);
        }
        let ident = u16::from_be_bytes([icmp[4], icmp[5]]);
        let seq = u16::from_be_bytes([icmp[6], icmp[7]]);
        let payload = &icmp[8..];
        match self.policy.decide(packet.dst) {
            Decision::Gateway(_) | Decision::Dns => {
                let reply = EchoReply { src: packet.dst, dst: packet.src, ident, seq, ttl: DEFAULT_TTL, payload };
                self.composer.send_echo_reply(&reply, out);
                Ok(())
            }
            Decision::Outside(_) if packet.ttl <= 1 => {
                self.icmp_to_guest(IcmpError::HopLimitExceeded, None, packet.src, bytes, out);
                Err(DropReason::HopLimit)
            }
            Decision::Outside(target) => {
                let id = self.ping.route_from_guest(now, packet.src, ident);
                let ttl = packet.ttl - 1;
                let dont_fragment = packet.dont_fragment;
                out.ping_to_host(&PingToHost { id, target, seq, payload, ttl, dont_fragment });
                Ok(())
            }
            Decision::Refuse => {
                self.icmp_to_guest(IcmpError::AdminProhibited, None, packet.src, bytes, out);
                Err(DropReason::Refused)
            }
            Decision::Ignore(reason) => Err(reason),
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
        self.tcp.handle_connected(flow, now);
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

    /// A published port accepted `client`.
    pub fn handle_tcp_accepted(&mut self, now: Instant, guest_port: u16, client: SocketAddr) -> Result<Id, DropReason> {
        let (shown, stand_in) = self.published(guest_port, client);
        self.tcp.handle_accepted(now, shown.map(|guest| (client, guest)), stand_in)
    }

    /// How the guest sees a published port's client: its own end if the client can be shown, and the stand-in.
    fn published(&self, guest_port: u16, client: SocketAddr) -> (Option<SocketAddr>, Option<(IpAddr, SocketAddr)>) {
        let shown = self
            .policy
            .can_show(client.ip())
            .then(|| self.policy.guest(client.is_ipv6()))
            .flatten()
            .map(|guest| SocketAddr::new(guest, guest_port));
        let stand_in =
            self.policy.stand_in(client.ip()).map(|(gateway, guest)| (gateway, SocketAddr::new(guest, guest_port)));
        (shown, stand_in)
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
        match self.udp.route_from_host(now, id, source, alias) {
            Ok((guest, shown)) => self.composer.send_udp(shown, guest, payload, segment, DEFAULT_TTL, out),
            Err(reason) => self.composer.drops.count(reason),
        }
    }

    /// A datagram arrived at published port number `listener` (address `local`), from `client`.
    pub fn handle_udp_published(
        &mut self,
        now: Instant,
        (listener, guest_port): (usize, u16),
        (client, local): (SocketAddr, IpAddr),
        payload: &[u8],
        segment: Option<u16>,
        out: &mut impl Output,
    ) {
        let (shown, stand_in) = self.published(guest_port, client);
        match self.udp.route_published(now, (listener, client, local), shown, stand_in) {
            Ok(key) => self.composer.send_udp(key.peer(), key.guest(), payload, segment, DEFAULT_TTL, out),
            Err(reason) => self.composer.drops.count(reason),
        }
    }

    /// An error about a datagram that a mapping sent: the guest gets it as ICMP.
    pub fn handle_udp_error(&mut self, id: Id, error: &HostError<'_>, out: &mut impl Output) {
        let alias = self.alias_of(error.target.ip());
        let Some((guest, shown)) = self.udp.route_error(id, error.target, alias) else { return };
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
            Some(offender).filter(|_| self.alias_of(offender).is_none())
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
        match self.ping.guest(id) {
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

    /// The guest-side addresses of a TCP flow.
    pub fn tcp_key(&self, flow: Id) -> Option<FlowKey> {
        self.tcp.key(flow)
    }
}

/// Bytes of a datagram that an error about it carries. Linux's error queue gives the whole; traceroute and mtr look at
/// the first few.
const ERROR_DATA: usize = 128;
