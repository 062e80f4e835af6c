//! A frame of the guest on its way in: Ethernet, IP, and to whom it belongs.
//!
//! Every length is checked against what lies behind it before it is believed; sources must be the endpoint's own (or, on
//! slirp4netns's segment, such as a guest can have, and are learnt); IPv4
//! header sums and, where neither kernel vouches for them, transport sums are verified. Fragments go through
//! [`super::reassembly`] and come back here whole. What is refused returns its [`DropReason`], which
//! [`Stack::handle_from_guest`] counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::time::Instant;

use super::compose::{DEFAULT_TTL, EchoReply, IPV4_HDR_LEN, IPV6_HDR_LEN, UDP_HDR_LEN, proto};
use super::flow::FlowKey;
use super::ledger::{Traffic, datagrams};
use super::policy::{DNS_PORT, Decision};
use super::reassembly::Outcome;
use super::tcp::{OpenVerdict, TcpTarget};
use super::verdict::DropReason;
use super::{Output, PingToHost, Stack, UdpToHost, dhcp6, neighbour};
use crate::network::config::Mac;
use crate::wire::icmp_error::IcmpError;
use crate::wire::tcp_segment::{ACK, RST, SYN};
use crate::wire::vnet::{ETH_HDR_LEN, Gso, IP_OFFSET, VNET_HDR_LEN, VnetHdr};
use crate::wire::{chain, csum};

/// Where the DHCP server listens.
const DHCP_SERVER_PORT: u16 = 67;

/// Datagrams of one super-frame: UDP_MAX_SEGMENTS, include/linux/udp.h. One of thousands is no kernel's, and would be as many
/// sends.
const MAX_DATAGRAMS: u64 = 128;

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
    /// Whether a frame of the guest's is for a stack that is not the endpoint's first: a whole TCP segment for somebody beyond the
    /// gateway that begins a flow, or is of one that began here. What is wrong with the rest is for the first to find.
    pub fn owns(&self, frame: &[u8]) -> bool {
        let Some(packet) = frame.get(IP_OFFSET..) else { return false };
        let eth = &frame[VNET_HDR_LEN..];
        if eth[0] & 1 != 0 || self.config.slirp.is_none() && eth[0..6] != self.config.gateway_mac.0 {
            return false;
        }
        let array = |at: usize| packet.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        let array6 = |at: usize| packet.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        let ends = match [eth[12], eth[13]] {
            // A fragment has More-fragments or an offset.
            [0x08, 0x00]
                if packet.len() >= IPV4_HDR_LEN
                    && packet[9] == proto::TCP
                    && packet[6].trailing_zeros() >= 6
                    && packet[7] == 0 =>
            {
                let header = usize::from(packet[0] & 0x0f) * 4;
                array(12).zip(array(16)).map(|(src, dst)| (IpAddr::V4(src.into()), IpAddr::V4(dst.into()), header))
            }
            // Extension headers, with which fragments come, are for the first.
            [0x86, 0xdd] if packet.len() >= IPV6_HDR_LEN && packet[6] == proto::TCP => array6(8)
                .zip(array6(24))
                .map(|(src, dst)| (IpAddr::V6(src.into()), IpAddr::V6(dst.into()), IPV6_HDR_LEN)),
            _ => None,
        };
        let Some((src, dst, at)) = ends else { return false };
        let Some(&[a, b, c, d, .., flags]) = packet.get(at..at + 14) else { return false };
        let port = |high, low| u16::from_be_bytes([high, low]);
        let key = FlowKey { guest: src, peer: dst, guest_port: port(a, b), peer_port: port(c, d) };
        flags & (SYN | ACK | RST) == SYN || self.tcp.has(&key)
    }

    pub(super) fn ethernet(&mut self, now: Instant, frame: &mut [u8], out: &mut impl Output) -> Result<(), DropReason> {
        let hdr = VnetHdr::parse(frame).ok_or(DropReason::Truncated)?;
        if frame.len() < IP_OFFSET {
            return Err(DropReason::Truncated);
        }
        let eth = &frame[VNET_HDR_LEN..];
        let group = eth[0] & 1 != 0;
        if self.config.slirp.is_some() {
            self.composer.admit(eth)?;
        } else {
            if eth[6..12] != self.config.guest_mac.0 {
                return Err(DropReason::SpoofedSource);
            }
            if !group && eth[0..6] != self.config.gateway_mac.0 {
                return Err(DropReason::NotForUs);
            }
        }
        match u16::from_be_bytes([eth[12], eth[13]]) {
            0x0800 => self.ip_v4(now, hdr, frame, group, out),
            0x86dd => self.ip_v6(now, hdr, frame, group, false, out),
            0x0806 => {
                if self.config.slirp.is_some()
                    && let Some((address, mac)) = neighbour::arp_sender(eth)
                {
                    self.learn(IpAddr::V4(address), mac, out);
                }
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
        let slirp = self.config.slirp.is_some();
        if src.is_unspecified() && bytes[9] == proto::UDP {
            // A client of DHCP.
        } else if slirp {
            if !self.policy.can_be_guest(IpAddr::V4(src)) {
                return Err(DropReason::SpoofedSource);
            }
            self.composer.learn(IpAddr::V4(src), sender(frame), out);
        } else if src != plan.guest {
            return Err(DropReason::SpoofedSource);
        }
        if group && !(slirp || dst.is_broadcast() || dst == plan.subnet.broadcast()) {
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
        let slirp = self.config.slirp.is_some();
        if !slirp && (group || dst.is_multicast()) {
            return Err(DropReason::Multicast);
        }
        // From its link-local address the guest reaches the router's, and nothing beyond the link.
        let on_link = src.is_unicast_link_local() && self.config.v6.is_some_and(|plan| dst == plan.gateway_link_local);
        if !on_link && !self.policy.is_guest_source(IpAddr::V6(src)) {
            return Err(DropReason::SpoofedSource);
        }
        if slirp {
            self.composer.learn(IpAddr::V6(src), sender(frame), out);
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
        if self.config.slirp.is_some()
            && matches!(eth.get(ETH_HDR_LEN + at), Some(135 | 136))
            && let Some((address, mac)) = neighbour::ndp_sender(eth)
        {
            self.learn(IpAddr::V6(address), mac, out);
        }
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
            // Advertisements and redirects tell the responder nothing.
            Some(134 | 136 | 137) => {}
            // MLD reports (RFC 3810) from a link that does not flood.
            Some(130..=132 | 143) if src.is_unspecified() || src.is_unicast_link_local() => {
                return Err(DropReason::Multicast);
            }
            _ => return Ok(false),
        }
        refused.map_or(Ok(true), Err)
    }

    /// Whether a packet that is larger than the path shall be refused rather than cut. slirp4netns's guests rely on the
    /// host to cut: their MTU is far above any path's, and Linux sets the bit on all that fits that.
    fn passes_dont_fragment(&self, packet: &Packet) -> bool {
        packet.dont_fragment && !self.policy.is_slirp()
    }

    /// A guest told who it is.
    fn learn(&mut self, address: IpAddr, mac: Mac, out: &mut impl Output) {
        if self.policy.can_be_guest(address) {
            self.composer.learn(address, mac, out);
        }
    }

    fn fragment(
        &mut self,
        now: Instant,
        frame: &mut [u8],
        total: usize,
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let mut whole = std::mem::take(&mut self.whole);
        let gave_way = self.reassembler.stats().evicted;
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
        for _ in gave_way..self.reassembler.stats().evicted {
            self.composer.drops.count(DropReason::Fragment);
        }
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
                let open = |peer: SocketAddr| match policy.decide_port(peer) {
                    Decision::Outside(_) if ttl <= 1 => OpenVerdict::Icmp(IcmpError::HopLimitExceeded),
                    Decision::Outside(addr) => {
                        OpenVerdict::Connect(TcpTarget::Outside(SocketAddr::new(addr, peer.port())))
                    }
                    Decision::Gateway(Some(addr)) => {
                        OpenVerdict::Connect(TcpTarget::Host(SocketAddr::new(addr, peer.port())))
                    }
                    Decision::Gateway(None) | Decision::Unreachable => OpenVerdict::Icmp(IcmpError::NetUnreachable),
                    Decision::Dns if peer.port() == DNS_PORT => OpenVerdict::Connect(TcpTarget::Dns),
                    Decision::Dns if policy.is_slirp() => OpenVerdict::Icmp(IcmpError::NetUnreachable),
                    Decision::Dns | Decision::Refuse => OpenVerdict::Reset,
                    Decision::Group(_) => OpenVerdict::Ignore(DropReason::Multicast),
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
    pub(super) fn icmp_to_guest(
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
        let decision = self.policy.decide_port(peer);
        if peer.port() == DHCP_SERVER_PORT
            && (packet.dst == IpAddr::V4(Ipv4Addr::BROADCAST) || self.policy.gateway(false) == Some(packet.dst))
            && let Some(dhcp) = &mut self.dhcp
        {
            self.composer.send_frame(|buf| dhcp.handle_frame(now, payload, buf), out);
            if let Some((address, mac)) = dhcp.take_leased() {
                self.learn(IpAddr::V4(address), mac, out);
            }
            return Ok(());
        }
        if peer.port() == dhcp6::SERVER_PORT
            && let (SocketAddr::V6(client), Some(plan)) = (guest, self.config.v6)
            && self.config.slirp.is_some_and(|slirp| slirp.dns)
            && (packet.dst == IpAddr::V6(dhcp6::SERVERS) || matches!(decision, Decision::Gateway(_)))
        {
            let own = IpAddr::V6(plan.gateway_link_local);
            let mut buf = [0; dhcp6::MAX_ANSWER];
            let len = dhcp6::answer(payload, client, neighbour::own_mac(&self.config, Some(own)), plan.dns, &mut buf);
            let from = SocketAddr::new(own, dhcp6::SERVER_PORT);
            if let Some(len) = len {
                self.composer.send_udp(from, guest, &buf[..len], None, DEFAULT_TTL, out);
            }
            return Ok(());
        }
        if guest.port() == 0 || peer.port() == 0 || packet.src.is_unspecified() {
            return Err(DropReason::Malformed);
        }
        if decision == Decision::Dns && peer.port() == DNS_PORT {
            self.dns_queries += 1;
            out.dns_query(guest, peer, payload);
            return Ok(());
        }
        let (target, alias, hops) = match decision {
            Decision::Outside(addr) => (Some(addr), false, 1),
            Decision::Gateway(addr) => (addr, true, 0),
            // Groups of the link are told from others by their time to live (RFC 6762, section 11: 255).
            Decision::Group(addr) => (Some(addr), false, 0),
            _ => (None, false, 1),
        };
        if hops > 0 && packet.ttl <= hops && target.is_some() {
            self.icmp_to_guest(IcmpError::HopLimitExceeded, None, packet.src, bytes, out);
            return Err(DropReason::HopLimit);
        }
        let target = target.map(|addr| SocketAddr::new(addr, peer.port()));
        let count = datagrams(payload.len(), packet.segment);
        if count > MAX_DATAGRAMS {
            return Err(DropReason::Malformed);
        }
        let size = Traffic::from_guest(count, payload.len());
        if let Some((via, target)) = self.udp.route_from_guest(now, (guest, peer), target, alias, &size) {
            out.udp_to_host(&UdpToHost {
                via,
                guest,
                target,
                payload,
                segment: packet.segment.filter(|&size| usize::from(size) < payload.len()),
                ttl: packet.ttl.saturating_sub(hops).max(1),
                dont_fragment: self.passes_dont_fragment(packet),
            });
            return Ok(());
        }
        let kind = match decision {
            Decision::Dns => IcmpError::PortUnreachable,
            Decision::Gateway(_) | Decision::Unreachable => IcmpError::NetUnreachable,
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
        if self.policy.answers_echo(packet.dst) {
            if !self.composer.may_answer() {
                return Ok(());
            }
            let reply = EchoReply { src: packet.dst, dst: packet.src, ident, seq, ttl: DEFAULT_TTL, payload };
            self.composer.send_echo_reply(&reply, out);
            return Ok(());
        }
        match self.policy.decide(packet.dst) {
            Decision::Outside(_) if packet.ttl <= 1 => {
                self.icmp_to_guest(IcmpError::HopLimitExceeded, None, packet.src, bytes, out);
                Err(DropReason::HopLimit)
            }
            Decision::Outside(target) => {
                let id = self.ping.route_from_guest(now, (packet.src, ident), target, payload.len());
                let ttl = packet.ttl - 1;
                let dont_fragment = self.passes_dont_fragment(packet);
                out.ping_to_host(&PingToHost { id, target, seq, payload, ttl, dont_fragment });
                Ok(())
            }
            Decision::Refuse => {
                self.icmp_to_guest(IcmpError::AdminProhibited, None, packet.src, bytes, out);
                Err(DropReason::Refused)
            }
            Decision::Unreachable => {
                self.icmp_to_guest(IcmpError::NetUnreachable, None, packet.src, bytes, out);
                Err(DropReason::Refused)
            }
            Decision::Group(_) => Err(DropReason::Multicast),
            Decision::Ignore(reason) => Err(reason),
            // Answered above.
            Decision::Gateway(_) | Decision::Dns => Ok(()),
        }
    }
}

/// The MAC that a frame came from.
fn sender(frame: &[u8]) -> Mac {
    let mut mac = [0; 6];
    mac.copy_from_slice(&frame[VNET_HDR_LEN + 6..VNET_HDR_LEN + 12]);
    Mac(mac)
}
