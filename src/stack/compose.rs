//! Builds frames to the guest in one buffer: vnet header, Ethernet, IP, transport.
//!
//! With checksum offload only the pseudo-header sum is written and NEEDS_CSUM set; neither kernel then sums the
//! payload. Without it the sum is computed here. Datagrams above the guest's MTU are fragmented here too; TCP never is.
//!
//! An endpoint's frames all go to its one MAC. On slirp4netns's segment [`Guests`] says where each goes; a frame for a
//! guest that is not known yet is left there, and leaves with [`Composer::learn`].

use std::net::{IpAddr, SocketAddr};

use smoltcp::time::Instant;

use crate::network::config::{EndpointConfig, Mac, Offloads};
use crate::stack::bucket::Bucket;
use crate::stack::guests::{Due, Guests};
use crate::stack::neighbour;
use crate::stack::verdict::{DropCounters, DropReason};
use crate::stack::{Limits, Output};
use crate::wire::vnet::{ETH_HDR_LEN, Gso, IP_OFFSET, MAX_FRAME, VNET_HDR_LEN, VnetHdr};
use crate::wire::{csum, fragment, icmp_error, tcp_segment};

/// IP protocol numbers (RFC 5237 registry).
pub mod proto {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

/// Hop limit of what we originate ourselves (RFC 1700's and Linux's default).
pub const DEFAULT_TTL: u8 = 64;

/// The frame builder of one endpoint.
pub struct Composer {
    buf: Box<[u8]>,
    /// Fragments are built here while the whole datagram lies in `buf`.
    scratch: Box<[u8]>,
    /// One fragment as a frame.
    frame: Box<[u8]>,
    /// Offloads of the TAP.
    pub offloads: Offloads,
    /// The guest's MTU.
    pub mtu: usize,
    guest_mac: Mac,
    /// Ours, by family.
    gateway_macs: [Mac; 2],
    /// On slirp4netns's segment: who is where.
    guests: Option<Box<Guests>>,
    /// Who asks for them, by family.
    gateways: [Option<IpAddr>; 2],
    ident: u32,
    /// Frames handed to the link.
    pub frames_to_guest: u64,
    /// Why something was not sent or not taken.
    pub drops: DropCounters,
    /// What is left of answers that carry nothing.
    answers: Bucket,
    /// When the guest's last frame came.
    pub now: Instant,
}

impl Composer {
    /// For one endpoint; `seed` starts the IP identification.
    pub fn new(config: &EndpointConfig, limits: &Limits, seed: u64) -> Self {
        let gateways = [
            config.v4.map(|plan| IpAddr::V4(plan.gateway)),
            // The router speaks of neighbours from its link-local address, which every one of them reaches.
            config.v6.map(|plan| IpAddr::V6(plan.gateway_link_local)),
        ];
        Self {
            buf: vec![0; MAX_FRAME].into_boxed_slice(),
            scratch: vec![0; MAX_FRAME].into_boxed_slice(),
            frame: vec![0; MAX_FRAME].into_boxed_slice(),
            offloads: config.offloads,
            mtu: usize::from(config.mtu),
            guest_mac: config.guest_mac,
            gateway_macs: gateways.map(|gateway| neighbour::own_mac(config, gateway)),
            guests: config.slirp.map(|_| Box::new(Guests::new(limits.guests))),
            gateways,
            ident: seed as u32,
            frames_to_guest: 0,
            drops: DropCounters::default(),
            answers: Bucket::new(limits.answers),
            now: Instant::ZERO,
        }
    }

    /// Room for one IP packet; finish with [`Composer::send_packet`] or [`Composer::send_tcp`].
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.buf[IP_OFFSET..]
    }

    /// Writes the Ethernet header; the address that must be asked for first, if the packet's guest is not known.
    fn ethernet(&mut self, v6: bool) -> Option<IpAddr> {
        let mut unknown = None;
        let mac = match &mut self.guests {
            None => self.guest_mac,
            Some(guests) => {
                let to = destination(&self.buf[IP_OFFSET..], v6);
                guests.mac_of(to).unwrap_or_else(|| {
                    unknown = Some(to);
                    Mac([0; 6])
                })
            }
        };
        let eth = &mut self.buf[VNET_HDR_LEN..IP_OFFSET];
        eth[0..6].copy_from_slice(&mac.0);
        eth[6..12].copy_from_slice(&self.gateway_macs[usize::from(v6)].0);
        eth[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        unknown
    }

    fn emit(&mut self, hdr: VnetHdr, ip_len: usize, out: &mut impl Output) {
        hdr.emit(&mut self.buf);
        let v6 = self.buf[IP_OFFSET] >> 4 == 6;
        match self.ethernet(v6) {
            None => self.deliver(IP_OFFSET + ip_len, out),
            Some(unknown) => {
                let Self { buf, guests, drops, .. } = self;
                hold(guests, drops, unknown, &buf[..IP_OFFSET + ip_len]);
                self.ask_new(out);
            }
        }
    }

    fn deliver(&mut self, len: usize, out: &mut impl Output) {
        if out.to_guest(&self.buf[..len]) {
            self.frames_to_guest += 1;
        } else {
            self.drops.count(DropReason::Link);
        }
    }

    /// Sends a whole IP packet of `len` bytes whose checksums are complete, fragmenting it if it is above the MTU.
    pub fn send_packet(&mut self, len: usize, out: &mut impl Output) {
        if len <= self.mtu {
            self.emit(VnetHdr::default(), len, out);
            return;
        }
        self.ident = self.ident.wrapping_add(1);
        VnetHdr::default().emit(&mut self.buf);
        let v6 = self.buf[IP_OFFSET] >> 4 == 6;
        let unknown = self.ethernet(v6);
        let Self { buf, scratch, frame, mtu, ident, frames_to_guest, drops, guests, .. } = self;
        frame[..IP_OFFSET].copy_from_slice(&buf[..IP_OFFSET]);
        let mut each = |piece: &mut [u8]| {
            let end = IP_OFFSET + piece.len();
            frame[IP_OFFSET..end].copy_from_slice(piece);
            if let Some(unknown) = unknown {
                hold(guests, drops, unknown, &frame[..end]);
            } else if out.to_guest(&frame[..end]) {
                *frames_to_guest += 1;
            } else {
                drops.count(DropReason::Link);
            }
        };
        if fragment::split(&buf[IP_OFFSET..IP_OFFSET + len], *mtu, *ident, &mut each, scratch) == 0 {
            drops.count(DropReason::TooBig);
        }
        if unknown.is_some() {
            self.ask_new(out);
        }
    }

    /// Sends the TCP/IP packet of `len` bytes that lies in the buffer, IP header complete, TCP checksum still open.
    /// `mss`: the largest payload of one segment that the guest takes; above it the frame is a super-frame.
    pub fn send_tcp(&mut self, len: usize, mss: u16, out: &mut impl Output) {
        let ip = &mut self.buf[IP_OFFSET..IP_OFFSET + len];
        let Some((src, dst, tcp_at)) = addresses(ip) else {
            self.drops.count(DropReason::Malformed);
            return;
        };
        let v6 = tcp_at == IPV6_HDR_LEN;
        let tcp = &mut ip[tcp_at..];
        let tcp_len = tcp.len();
        let header_len = usize::from(tcp[12] >> 4) * 4;
        let payload = tcp_len - header_len;
        let mut hdr = VnetHdr::default();
        if self.offloads.csum {
            let sum = csum::partial(src, dst, proto::TCP, tcp_len);
            tcp[16..18].copy_from_slice(&sum.to_be_bytes());
            hdr.needs_csum = true;
            hdr.csum_start = (ETH_HDR_LEN + tcp_at) as u16;
            hdr.csum_offset = tcp_segment::CSUM_OFFSET as u16;
            if payload > usize::from(mss) {
                hdr.gso = if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
                hdr.gso_size = mss;
                hdr.hdr_len = (ETH_HDR_LEN + tcp_at + header_len) as u16;
            }
        } else {
            tcp[16..18].fill(0);
            let sum = csum::full(src, dst, proto::TCP, tcp);
            tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        }
        self.emit(hdr, len, out);
    }

    /// Sends a bare TCP segment (no payload, no options).
    pub fn send_tcp_bare(&mut self, src: SocketAddr, dst: SocketAddr, fields: BareTcp, out: &mut impl Output) {
        let at = self.ip_header(src.ip(), dst.ip(), proto::TCP, tcp_segment::TCP_HDR_LEN, DEFAULT_TTL);
        tcp_segment::emit_bare(
            &mut self.buf[IP_OFFSET + at..],
            (src.port(), dst.port()),
            fields.seq,
            fields.ack,
            fields.flags,
            fields.window,
        );
        self.send_tcp(at + tcp_segment::TCP_HDR_LEN, u16::MAX, out);
    }

    /// Writes an IP header for `payload` bytes; returns its length.
    fn ip_header(&mut self, src: IpAddr, dst: IpAddr, protocol: u8, payload: usize, ttl: u8) -> usize {
        self.ident = self.ident.wrapping_add(1);
        write_ip_header(&mut self.buf[IP_OFFSET..], src, dst, protocol, payload, ttl, self.ident as u16)
    }

    /// Sends the UDP payload (`segment`: datagram size where several are coalesced) from `src` to `dst`.
    pub fn send_udp(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        payload: &[u8],
        segment: Option<u16>,
        ttl: u8,
        out: &mut impl Output,
    ) {
        let segment = segment.map_or(payload.len(), usize::from).max(1);
        let ip_len = if dst.is_ipv6() { IPV6_HDR_LEN } else { IPV4_HDR_LEN };
        // One super-frame where the guest's kernel takes it; else datagram by datagram.
        let whole = payload.len() > segment
            && self.offloads.uso
            && segment + ip_len + UDP_HDR_LEN <= self.mtu
            && u16::try_from(payload.len() + ip_len + UDP_HDR_LEN).is_ok();
        if whole || payload.len() <= segment {
            self.send_datagram(src, dst, payload, whole.then_some(segment as u16), ttl, out);
        } else {
            for datagram in payload.chunks(segment) {
                self.send_datagram(src, dst, datagram, None, ttl, out);
            }
        }
    }

    fn send_datagram(
        &mut self,
        src: SocketAddr,
        dst: SocketAddr,
        payload: &[u8],
        gso: Option<u16>,
        ttl: u8,
        out: &mut impl Output,
    ) {
        let udp_len = UDP_HDR_LEN + payload.len();
        let ip_len = if dst.is_ipv6() { IPV6_HDR_LEN } else { IPV4_HDR_LEN };
        if src.is_ipv6() != dst.is_ipv6() || udp_len + if dst.is_ipv6() { 0 } else { ip_len } > usize::from(u16::MAX) {
            self.drops.count(DropReason::TooBig);
            return;
        }
        let at = self.ip_header(src.ip(), dst.ip(), proto::UDP, udp_len, ttl);
        let udp = &mut self.buf[IP_OFFSET + at..IP_OFFSET + at + udp_len];
        udp[0..2].copy_from_slice(&src.port().to_be_bytes());
        udp[2..4].copy_from_slice(&dst.port().to_be_bytes());
        udp[4..6].copy_from_slice(&(udp_len as u16).to_be_bytes());
        udp[6..8].fill(0);
        udp[8..].copy_from_slice(payload);
        let fits = at + udp_len <= self.mtu || gso.is_some();
        if self.offloads.csum && fits {
            let sum = csum::partial(src.ip(), dst.ip(), proto::UDP, udp_len);
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
            let hdr = VnetHdr {
                needs_csum: true,
                csum_start: (ETH_HDR_LEN + at) as u16,
                csum_offset: 6,
                gso: if gso.is_some() { Gso::Udp } else { Gso::None },
                gso_size: gso.unwrap_or(0),
                hdr_len: if gso.is_some() { (ETH_HDR_LEN + at + UDP_HDR_LEN) as u16 } else { 0 },
                ..VnetHdr::default()
            };
            self.emit(hdr, at + udp_len, out);
            return;
        }
        let sum = match csum::full(src.ip(), dst.ip(), proto::UDP, udp) {
            // Zero means "no checksum" (RFC 768).
            0 => 0xffff,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        self.send_packet(at + udp_len, out);
    }

    /// Whether one more answer that carries nothing may be given. What may not is counted.
    pub fn may_answer(&mut self) -> bool {
        let may = self.answers.take(self.now, 1);
        if !may {
            self.drops.count(DropReason::RateLimited);
        }
        may
    }

    /// Sends an ICMP or ICMPv6 echo reply.
    pub fn send_echo_reply(&mut self, reply: &EchoReply<'_>, out: &mut impl Output) {
        let len = 8 + reply.payload.len();
        let v6 = reply.dst.is_ipv6();
        if reply.src.is_ipv6() != v6 || len + if v6 { 0 } else { IPV4_HDR_LEN } > usize::from(u16::MAX) {
            self.drops.count(DropReason::TooBig);
            return;
        }
        let protocol = if v6 { proto::ICMPV6 } else { proto::ICMP };
        let at = self.ip_header(reply.src, reply.dst, protocol, len, reply.ttl);
        let icmp = &mut self.buf[IP_OFFSET + at..IP_OFFSET + at + len];
        // Echo reply: type 0 (RFC 792), 129 (RFC 4443, section 4.2).
        icmp[0] = if v6 { 129 } else { 0 };
        icmp[1..4].fill(0);
        icmp[4..6].copy_from_slice(&reply.ident.to_be_bytes());
        icmp[6..8].copy_from_slice(&reply.seq.to_be_bytes());
        icmp[8..].copy_from_slice(reply.payload);
        let sum = if v6 { csum::full(reply.src, reply.dst, proto::ICMPV6, icmp) } else { csum::plain(icmp) };
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        self.send_packet(at + len, out);
    }

    /// Sends an ICMP error about `original` (a whole IP packet, or its start).
    pub fn send_icmp_error(
        &mut self,
        kind: icmp_error::IcmpError,
        from: IpAddr,
        to: IpAddr,
        original: &[u8],
        out: &mut impl Output,
    ) {
        if !self.may_answer() {
            return;
        }
        if let Some(len) = icmp_error::emit(&mut self.buf[IP_OFFSET..], kind, from, to, original) {
            self.send_packet(len, out);
        }
    }

    /// Sends a frame whose Ethernet header is already there: `build` writes it behind the vnet header and returns its
    /// length. For ARP, NDP, router advertisements and DHCP.
    pub fn send_frame(&mut self, build: impl FnOnce(&mut [u8]) -> Option<usize>, out: &mut impl Output) {
        VnetHdr::default().emit(&mut self.buf);
        if let Some(len) = build(&mut self.buf[VNET_HDR_LEN..]) {
            self.deliver(VNET_HDR_LEN + len, out);
        }
    }

    // ---- guests that are learnt ----

    /// Where guests are learnt: who they are.
    pub fn guests(&self) -> Option<&Guests> {
        self.guests.as_deref()
    }

    /// Where guests are learnt: whether a frame with this Ethernet header is for us. Any destination is, but those that
    /// are known to be another guest's; what is from one of our own MACs is ours, come back.
    pub fn admit(&self, eth: &[u8]) -> Result<(), DropReason> {
        let to: [u8; 6] = eth.get(..6).and_then(|to| to.try_into().ok()).ok_or(DropReason::Truncated)?;
        if self.gateway_macs.iter().any(|own| eth.get(6..12) == Some(&own.0[..])) {
            return Err(DropReason::SpoofedSource);
        }
        let plain = to[0] & 1 != 0 || self.gateway_macs.contains(&Mac(to));
        if !plain && self.guests.as_ref().is_some_and(|guests| guests.is_guest(Mac(to))) {
            return Err(DropReason::NotForUs);
        }
        Ok(())
    }

    /// Where guests are learnt: `address` sent something from `mac`. What waited for it leaves.
    pub fn learn(&mut self, address: IpAddr, mac: Mac, out: &mut impl Output) {
        let Some(guests) = &mut self.guests else { return };
        if !guests.learn(address, mac) {
            return;
        }
        for mut frame in guests.release(address) {
            frame[VNET_HDR_LEN..VNET_HDR_LEN + 6].copy_from_slice(&mac.0);
            if out.to_guest(&frame) {
                self.frames_to_guest += 1;
            } else {
                self.drops.count(DropReason::Link);
            }
        }
    }

    /// When to call [`Composer::handle_timeout`].
    pub fn next_timeout(&self) -> Option<Instant> {
        self.guests.as_ref()?.next_timeout()
    }

    /// Asks again for guests that have not answered, or gives them up.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Output) {
        while let Some(due) = self.guests.as_mut().and_then(|guests| guests.poll_due(now)) {
            match due {
                Due::Ask(address) => self.ask(address, out),
                Due::GivenUp { dropped } => (0..dropped).for_each(|_| self.drops.count(DropReason::Unresolved)),
            }
        }
    }

    fn ask_new(&mut self, out: &mut impl Output) {
        while let Some(address) = self.guests.as_mut().and_then(|guests| guests.poll_new()) {
            self.ask(address, out);
        }
    }

    fn ask(&mut self, address: IpAddr, out: &mut impl Output) {
        let v6 = address.is_ipv6();
        if let Some(from) = self.gateways[usize::from(v6)] {
            let mac = self.gateway_macs[usize::from(v6)];
            self.send_frame(|buf| neighbour::ask(mac, from, address, buf), out);
        }
    }
}

fn hold(guests: &mut Option<Box<Guests>>, drops: &mut DropCounters, address: IpAddr, frame: &[u8]) {
    let dropped = guests.as_mut().map_or(0, |guests| guests.hold(address, frame));
    (0..dropped).for_each(|_| drops.count(DropReason::Unresolved));
}

/// The source of a packet, of which at least the fixed header is there.
pub fn source(ip: &[u8]) -> Option<IpAddr> {
    addresses(ip).map(|(source, ..)| source)
}

/// The destination of a packet that we built.
fn destination(ip: &[u8], v6: bool) -> IpAddr {
    if v6 {
        let mut octets = [0u8; 16];
        octets.copy_from_slice(&ip[24..40]);
        IpAddr::from(octets)
    } else {
        IpAddr::from([ip[16], ip[17], ip[18], ip[19]])
    }
}

/// Fields of a bare TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct BareTcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
}

/// One echo reply.
#[derive(Clone, Copy, Debug)]
pub struct EchoReply<'a> {
    /// Who answers.
    pub src: IpAddr,
    /// The guest.
    pub dst: IpAddr,
    /// Identifier that the guest used.
    pub ident: u16,
    /// Sequence number.
    pub seq: u16,
    /// Remaining hops, as they arrived.
    pub ttl: u8,
    /// Data.
    pub payload: &'a [u8],
}

/// Bytes of an IPv4 header without options.
pub const IPV4_HDR_LEN: usize = 20;
/// Bytes of the IPv6 header.
pub const IPV6_HDR_LEN: usize = 40;
/// Bytes of a UDP header.
pub const UDP_HDR_LEN: usize = 8;

/// Writes an IP header (no options, don't-fragment clear) and returns its length. Both addresses are of one family.
pub fn write_ip_header(
    out: &mut [u8],
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    payload: usize,
    ttl: u8,
    ident: u16,
) -> usize {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let ip = &mut out[..IPV4_HDR_LEN];
            ip.fill(0);
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&((IPV4_HDR_LEN + payload) as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&ident.to_be_bytes());
            ip[8] = ttl;
            ip[9] = protocol;
            ip[12..16].copy_from_slice(&src.octets());
            ip[16..20].copy_from_slice(&dst.octets());
            let sum = csum::plain(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            IPV4_HDR_LEN
        }
        (src, dst) => {
            let ip = &mut out[..IPV6_HDR_LEN];
            ip.fill(0);
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
            ip[6] = protocol;
            ip[7] = ttl;
            ip[8..24].copy_from_slice(&octets_v6(src));
            ip[24..40].copy_from_slice(&octets_v6(dst));
            IPV6_HDR_LEN
        }
    }
}

fn octets_v6(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// Addresses and header length of an IP packet that we built (no options, no extension headers).
fn addresses(ip: &[u8]) -> Option<(IpAddr, IpAddr, usize)> {
    match ip.first()? >> 4 {
        4 => {
            let src: [u8; 4] = ip.get(12..16)?.try_into().ok()?;
            let dst: [u8; 4] = ip.get(16..20)?.try_into().ok()?;
            Some((IpAddr::from(src), IpAddr::from(dst), IPV4_HDR_LEN))
        }
        6 => {
            let src: [u8; 16] = ip.get(8..24)?.try_into().ok()?;
            let dst: [u8; 16] = ip.get(24..40)?.try_into().ok()?;
            Some((IpAddr::from(src), IpAddr::from(dst), IPV6_HDR_LEN))
        }
        _ => None,
    }
}
