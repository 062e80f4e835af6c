//! The world around one stack: what the guest sends is built here, what it gets is checked and taken apart here, and
//! the host's sockets are plain buffers.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use smoltcp::time::{Duration, Instant};
use tapway::network::config::{EndpointConfig, Mac, Offloads, PlanV4, PlanV6, Slirp};
use tapway::stack::arena::Id;
use tapway::stack::tcp::{ConnectFailure, TcpTarget, TcpWork};
use tapway::stack::udp::UdpVia;
use tapway::stack::verdict::DropReason;
use tapway::stack::{Limits, Output, PingToHost, Stack, UdpToHost};
use tapway::wire::csum;
use tapway::wire::vnet::{Gso, IP_OFFSET, VNET_HDR_LEN, VnetHdr};

pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x64];
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// IPv4 or IPv6: most tests run for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub fn guest(self) -> IpAddr {
        ip(if self == Self::V4 { "10.0.2.100" } else { "fd00:1:2:3::64" })
    }

    pub fn gateway(self) -> IpAddr {
        ip(if self == Self::V4 { "10.0.2.2" } else { "fd00:1:2:3::2" })
    }

    pub fn dns(self) -> IpAddr {
        ip(if self == Self::V4 { "10.0.2.3" } else { "fd00:1:2:3::3" })
    }

    /// Somebody on the Internet.
    pub fn far(self) -> IpAddr {
        ip(if self == Self::V4 { "192.0.2.7" } else { "2001:db8::7" })
    }

    pub fn is_v6(self) -> bool {
        self == Self::V6
    }

    pub fn header(self) -> usize {
        if self.is_v6() { 40 } else { 20 }
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

pub fn all_offloads() -> Offloads {
    Offloads { vnet_hdr: true, csum: true, tso4: true, tso6: true, uso: true }
}

pub fn config(mtu: u16, offloads: Offloads) -> EndpointConfig {
    EndpointConfig {
        id: "0123456789ab".into(),
        mtu,
        guest_mac: Mac(GUEST_MAC),
        gateway_mac: Mac(GATEWAY_MAC),
        v4: Some(PlanV4 {
            subnet: "10.0.2.0/24".parse().expect("subnet"),
            gateway: "10.0.2.2".parse().expect("address"),
            dns: "10.0.2.3".parse().expect("address"),
            guest: "10.0.2.100".parse().expect("address"),
        }),
        v6: Some(PlanV6 {
            subnet: "fd00:1:2:3::/64".parse().expect("subnet"),
            gateway: "fd00:1:2:3::2".parse().expect("address"),
            gateway_link_local: "fe80::2".parse().expect("address"),
            dns: "fd00:1:2:3::3".parse().expect("address"),
            guest: "fd00:1:2:3::64".parse().expect("address"),
        }),
        offloads,
        allow_host_loopback: false,
        allow_link_local: false,
        outbound_v4: None,
        outbound_v6: None,
        hostname: "box".into(),
        dns_search: vec!["example.net".into()],
        slirp: None,
    }
}

/// slirp4netns's segment: no guest is known.
pub fn slirp_config(mtu: u16, offloads: Offloads) -> EndpointConfig {
    let dhcp = ("10.0.2.15".parse().expect("address"), "10.0.2.30".parse().expect("address"));
    EndpointConfig {
        guest_mac: Mac([0; 6]),
        gateway_mac: Mac([0; 6]),
        allow_host_loopback: true,
        allow_link_local: true,
        hostname: String::new(),
        dns_search: Vec::new(),
        slirp: Some(Slirp { dhcp, dns: true }),
        ..config(mtu, offloads)
    }
}

/// MACs of the gateway, by family, on that segment.
pub const SLIRP_MACS: [[u8; 6]; 2] = [[0x52, 0x55, 10, 0, 2, 2], [0x52, 0x56, 0, 0, 0, 2]];

/// One IP packet for or from the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub dont_fragment: bool,
    /// Transport header and data.
    pub body: Vec<u8>,
    /// Fragment: identification, offset in bytes, more to come.
    pub fragment: Option<(u32, usize, bool)>,
    /// Size of the pieces that the kernel is told to cut.
    pub gso_size: Option<u16>,
}

impl Ip {
    pub fn new(src: IpAddr, dst: IpAddr, protocol: u8, body: Vec<u8>) -> Self {
        Self { src, dst, protocol, ttl: 64, dont_fragment: false, body, fragment: None, gso_size: None }
    }

    /// The IP packet without a frame around it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                out.extend([0x45, 0]);
                out.extend(((20 + self.body.len()) as u16).to_be_bytes());
                let (ident, offset, more) = self.fragment.unwrap_or_default();
                out.extend((ident as u16).to_be_bytes());
                let flags =
                    (offset / 8) as u16 | if more { 0x2000 } else { 0 } | if self.dont_fragment { 0x4000 } else { 0 };
                out.extend(flags.to_be_bytes());
                out.extend([self.ttl, self.protocol, 0, 0]);
                out.extend(src.octets());
                out.extend(dst.octets());
                let sum = csum::plain(&out);
                out[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let extra = if self.fragment.is_some() { 8 } else { 0 };
                out.extend([0x60, 0, 0, 0]);
                out.extend(((self.body.len() + extra) as u16).to_be_bytes());
                out.extend([if extra > 0 { 44 } else { self.protocol }, self.ttl]);
                out.extend(src.octets());
                out.extend(dst.octets());
                if let Some((ident, offset, more)) = self.fragment {
                    out.extend([self.protocol, 0]);
                    out.extend((offset as u16 | u16::from(more)).to_be_bytes());
                    out.extend(ident.to_be_bytes());
                }
            }
            _ => panic!("mixed families"),
        }
        out.extend(&self.body);
        out
    }

    /// A frame of the guest, with the transport checksum that its `body` has.
    pub fn frame(&self) -> Vec<u8> {
        let mut out = vec![0; VNET_HDR_LEN];
        out.extend(GATEWAY_MAC);
        out.extend(GUEST_MAC);
        out.extend(if self.src.is_ipv6() { [0x86, 0xdd] } else { [8, 0] });
        out.extend(self.bytes());
        out
    }
}

/// One TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seg {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    pub gso_size: Option<u16>,
}

impl Seg {
    /// Sequence number behind it.
    pub fn end(&self) -> u32 {
        self.seq
            .wrapping_add(self.payload.len() as u32)
            .wrapping_add(u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0))
    }

    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// The value of an option.
    pub fn option(&self, kind: u8) -> Option<&[u8]> {
        let mut rest = &self.options[..];
        loop {
            match *rest.first()? {
                0 => return None,
                1 => rest = &rest[1..],
                found => {
                    let length = usize::from(rest[1]);
                    if found == kind {
                        return Some(&rest[2..length]);
                    }
                    rest = &rest[length..];
                }
            }
        }
    }

    pub fn mss(&self) -> Option<u16> {
        self.option(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    pub fn body(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(20 + self.options.len() + self.payload.len());
        out.extend(self.src.port().to_be_bytes());
        out.extend(self.dst.port().to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ack.to_be_bytes());
        assert_eq!(self.options.len() % 4, 0);
        out.extend([((5 + self.options.len() / 4) << 4) as u8, self.flags]);
        out.extend(self.window.to_be_bytes());
        out.extend([0; 4]);
        out.extend(&self.options);
        out.extend(&self.payload);
        let sum = csum::full(self.src.ip(), self.dst.ip(), TCP, &out);
        out[16..18].copy_from_slice(&sum.to_be_bytes());
        out
    }

    pub fn packet(&self) -> Ip {
        Ip::new(self.src.ip(), self.dst.ip(), TCP, self.body())
    }

    pub fn frame(&self) -> Vec<u8> {
        self.packet().frame()
    }

    /// From a packet that has one.
    pub fn of(ip: &Ip) -> Self {
        assert_eq!(ip.protocol, TCP, "{ip:?}");
        let b = &ip.body;
        let word = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let header = usize::from(b[12] >> 4) * 4;
        Self {
            src: at(ip.src, u16::from_be_bytes([b[0], b[1]])),
            dst: at(ip.dst, u16::from_be_bytes([b[2], b[3]])),
            flags: b[13],
            seq: word(4),
            ack: word(8),
            window: u16::from_be_bytes([b[14], b[15]]),
            options: b[20..header].to_vec(),
            payload: b[header..].to_vec(),
            gso_size: ip.gso_size,
        }
    }
}

/// A UDP datagram's header and data, with a checksum.
pub fn udp_body(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(src.port().to_be_bytes());
    out.extend(dst.port().to_be_bytes());
    out.extend(((8 + payload.len()) as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend(payload);
    let sum = match csum::full(src.ip(), dst.ip(), UDP, &out) {
        0 => 0xffff,
        sum => sum,
    };
    out[6..8].copy_from_slice(&sum.to_be_bytes());
    out
}

/// What is in a frame for the guest.
#[derive(Clone, Debug)]
pub enum Frame {
    Ip(Ip),
    Arp(Vec<u8>),
}

/// Takes a frame for the guest apart and checks all that any frame must have.
pub fn parse(frame: &[u8], config: &EndpointConfig) -> Frame {
    let vnet = VnetHdr::parse(frame).expect("vnet header");
    let slirp = config.slirp.is_some();
    let arp = frame[22..24] == [8, 6];
    if !slirp {
        assert_eq!(frame[16..22], GATEWAY_MAC, "source MAC");
    } else if !(arp || frame[22] == 0x86 && frame[30] == 58) {
        assert_eq!(frame[16..22], SLIRP_MACS[usize::from(frame[22] == 0x86)], "source MAC");
    }
    if arp {
        return Frame::Arp(frame[VNET_HDR_LEN..].to_vec());
    }
    // DHCP and neighbour discovery answer whatever hardware address the guest says that it has.
    let dhcp = frame[22..24] == [8, 0] && frame[33] == UDP && frame.get(44..46) == Some(&[0, 67]);
    let ndp = frame[22] == 0x86 && frame[30] == 58 && matches!(frame.get(64), Some(134 | 136));
    assert!(slirp || dhcp || ndp || frame[10..16] == GUEST_MAC || frame[10] & 1 == 1, "destination MAC");
    assert_ne!(frame[10..16], [0; 6], "no destination MAC");
    let packet = &frame[IP_OFFSET..];
    if vnet.gso == Gso::None {
        assert!(packet.len() <= usize::from(config.mtu), "{} bytes in one frame", packet.len());
    }
    let mut out = if frame[22..24] == [8, 0] {
        assert_eq!(packet[0], 0x45);
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len(), "total length");
        assert!(csum::plain_ok(&packet[..20]), "IPv4 header checksum");
        let flags = u16::from_be_bytes([packet[6], packet[7]]);
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        let mut out = Ip::new(address(12), address(16), packet[9], packet[20..].to_vec());
        out.ttl = packet[8];
        out.dont_fragment = flags & 0x4000 != 0;
        let ident = u32::from(u16::from_be_bytes([packet[4], packet[5]]));
        out.fragment = (flags & 0x3fff != 0).then_some((ident, usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0));
        out
    } else {
        assert_eq!(frame[22..24], [0x86, 0xdd]);
        assert_eq!(packet[0] >> 4, 6);
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len(), "payload length");
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        let mut out = Ip::new(address(8), address(24), packet[6], packet[40..].to_vec());
        out.ttl = packet[7];
        if out.protocol == 44 {
            let h = out.body[..8].to_vec();
            let offset = u16::from_be_bytes([h[2], h[3]]);
            out.protocol = h[0];
            out.fragment =
                Some((u32::from_be_bytes([h[4], h[5], h[6], h[7]]), usize::from(offset & 0xfff8), offset & 1 == 1));
            out.body.drain(..8);
        }
        out
    };
    assert!(out.ttl > 0);
    let header = packet.len() - out.body.len();
    if out.fragment.is_none() {
        check_transport(&vnet, &out, header, config);
    } else {
        assert_eq!(vnet, VnetHdr::default(), "a fragment has whole checksums");
    }
    out.gso_size = (vnet.gso != Gso::None).then_some(vnet.gso_size);
    Frame::Ip(out)
}

fn check_transport(vnet: &VnetHdr, ip: &Ip, header: usize, config: &EndpointConfig) {
    let offset = match ip.protocol {
        TCP => 16,
        UDP => 6,
        1 => {
            assert!(csum::plain_ok(&ip.body), "ICMP checksum");
            return;
        }
        _ => {
            assert!(csum::verify(ip.src, ip.dst, ip.protocol, &ip.body), "checksum of protocol {}", ip.protocol);
            return;
        }
    };
    if ip.protocol == UDP {
        assert_eq!(usize::from(u16::from_be_bytes([ip.body[4], ip.body[5]])), ip.body.len(), "UDP length");
    }
    let headers = if ip.protocol == UDP { 8 } else { usize::from(ip.body[12] >> 4) * 4 };
    if vnet.needs_csum {
        assert!(config.offloads.csum, "partial checksum without the offload");
        assert_eq!((usize::from(vnet.csum_start), usize::from(vnet.csum_offset)), (14 + header, offset));
        let partial = csum::partial(ip.src, ip.dst, ip.protocol, ip.body.len());
        assert_eq!(ip.body[offset..offset + 2], partial.to_be_bytes(), "pseudo-header sum");
    } else {
        assert_eq!(vnet.gso, Gso::None, "segmentation needs a partial checksum");
        assert!(csum::verify(ip.src, ip.dst, ip.protocol, &ip.body), "transport checksum");
    }
    match vnet.gso {
        Gso::None => {}
        Gso::Tcp4 => assert!(config.offloads.tso4 && ip.protocol == TCP && ip.src.is_ipv4()),
        Gso::Tcp6 => assert!(config.offloads.tso6 && ip.protocol == TCP && ip.src.is_ipv6()),
        Gso::Udp => assert!(config.offloads.uso && ip.protocol == UDP),
        Gso::Unknown(kind) => panic!("segmentation type {kind}"),
    }
    if vnet.gso != Gso::None {
        let size = usize::from(vnet.gso_size);
        assert!(size > 0 && header + headers + size <= usize::from(config.mtu), "pieces of {size} bytes");
        assert!(ip.body.len() - headers > size, "nothing to cut");
        assert_eq!(usize::from(vnet.hdr_len), 14 + header + headers);
    }
}

/// What the stack handed out.
#[derive(Default)]
pub struct Recorder {
    pub to_guest: Vec<Vec<u8>>,
    pub udp: Vec<UdpSent>,
    pub ping: Vec<PingSent>,
    pub dns: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpSent {
    pub via: UdpVia,
    pub guest: SocketAddr,
    pub target: SocketAddr,
    pub payload: Vec<u8>,
    pub segment: Option<u16>,
    pub ttl: u8,
    pub dont_fragment: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingSent {
    pub id: Id,
    pub target: IpAddr,
    pub seq: u16,
    pub payload: Vec<u8>,
    pub ttl: u8,
    pub dont_fragment: bool,
}

impl Output for Recorder {
    fn to_guest(&mut self, frame: &[u8]) -> bool {
        self.to_guest.push(frame.to_vec());
        true
    }

    fn udp_to_host(&mut self, send: &UdpToHost<'_>) {
        self.udp.push(UdpSent {
            via: send.via,
            guest: send.guest,
            target: send.target,
            payload: send.payload.to_vec(),
            segment: send.segment,
            ttl: send.ttl,
            dont_fragment: send.dont_fragment,
        });
    }

    fn ping_to_host(&mut self, send: &PingToHost<'_>) {
        self.ping.push(PingSent {
            id: send.id,
            target: send.target,
            seq: send.seq,
            payload: send.payload.to_vec(),
            ttl: send.ttl,
            dont_fragment: send.dont_fragment,
        });
    }

    fn dns_query(&mut self, guest: SocketAddr, server: SocketAddr, query: &[u8]) {
        self.dns.push((guest, server, query.to_vec()));
    }
}

/// The host's end of one flow.
#[derive(Debug)]
pub struct HostSocket {
    /// What the other side of the host got.
    pub received: Vec<u8>,
    /// What it has yet to send to the guest.
    pub sending: VecDeque<u8>,
    /// It ends its stream when `sending` is empty.
    pub ends: bool,
    /// How many bytes it still takes.
    pub takes: usize,
    /// Told that the guest has ended its stream.
    pub shut: bool,
    /// End of file was read from it.
    pub eof: bool,
    /// It answers with an error.
    pub broken: bool,
    /// The stack was told so.
    pub told_broken: bool,
    pub keepalive: bool,
}

impl Default for HostSocket {
    fn default() -> Self {
        Self {
            received: Vec::new(),
            sending: VecDeque::new(),
            ends: false,
            takes: usize::MAX,
            shut: false,
            eof: false,
            broken: false,
            told_broken: false,
            keepalive: false,
        }
    }
}

/// A stack and all that surrounds it.
pub struct World {
    pub stack: Stack,
    pub now: Instant,
    pub out: Recorder,
    pub host: HashMap<Id, HostSocket>,
    /// Connects that the host has not answered.
    pub connects: Vec<(Id, TcpTarget)>,
    /// Flows that are gone, and whether in order; their sockets are in `gone`.
    pub closed: Vec<(Id, bool)>,
    pub gone: HashMap<Id, HostSocket>,
    /// MACs of guests other than the first.
    pub macs: HashMap<IpAddr, [u8; 6]>,
    seq: u32,
}

impl World {
    pub fn new() -> Self {
        Self::with(config(65_520, all_offloads()), Limits::default())
    }

    pub fn with(config: EndpointConfig, limits: Limits) -> Self {
        let now = Instant::from_secs(1000);
        let mut world = Self {
            stack: Stack::new(config, limits, 0x1234_5678_9abc_def0, now),
            now,
            out: Recorder::default(),
            host: HashMap::new(),
            connects: Vec::new(),
            closed: Vec::new(),
            gone: HashMap::new(),
            macs: HashMap::new(),
            seq: 5_000_000,
        };
        // The first router advertisement is due at once and belongs to no test but its own.
        world.pass(Duration::ZERO);
        world.out.to_guest.clear();
        world
    }

    /// A frame of the guest, and all that follows from it at once.
    pub fn inject(&mut self, mut frame: Vec<u8>) {
        self.stack.handle_from_guest(self.now, &mut frame, &mut self.out);
        self.settle();
    }

    pub fn send(&mut self, segment: &Seg) {
        self.inject_ip(&segment.packet());
    }

    /// An IP packet of the guest whose address it has.
    pub fn inject_ip(&mut self, packet: &Ip) {
        let mut frame = packet.frame();
        if let Some(mac) = self.macs.get(&packet.src) {
            frame[16..22].copy_from_slice(mac);
        }
        self.inject(frame);
    }

    /// What the runtime does after each turn.
    pub fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < 10_000, "the stack wants to be served without end");
            let mut idle = true;
            while let Some(work) = self.stack.poll_tcp_work() {
                idle = false;
                match work {
                    TcpWork::Connect { flow, target } => self.connects.push((flow, target)),
                    TcpWork::Keepalive { flow } => {
                        if let Some(socket) = self.host.get_mut(&flow) {
                            socket.keepalive = true;
                        }
                    }
                    TcpWork::Close { flow, in_order } => {
                        self.connects.retain(|(id, _)| *id != flow);
                        self.closed.push((flow, in_order));
                        if let Some(socket) = self.host.remove(&flow) {
                            self.gone.insert(flow, socket);
                        }
                    }
                }
            }
            while let Some(flow) = self.stack.poll_dirty() {
                idle = false;
                self.serve(flow);
            }
            if idle {
                break;
            }
        }
    }

    /// Moves the bytes of one flow between stack and host, as the runtime does.
    pub fn serve(&mut self, flow: Id) {
        let Self { stack, host, out, now, .. } = self;
        if let Some(socket) = host.get_mut(&flow) {
            let mut ready = stack.tcp_readiness(flow);
            while ready.from_guest > 0 && socket.takes > 0 && !socket.broken {
                let taken = stack.lend_from_guest(flow, |bytes| {
                    let n = bytes.len().min(socket.takes);
                    socket.received.extend(&bytes[..n]);
                    n
                });
                if socket.takes != usize::MAX {
                    socket.takes -= taken;
                }
                assert!(taken > 0, "bytes that are ready are not lent");
                ready.from_guest -= taken;
            }
            ready = stack.tcp_readiness(flow);
            if ready.shut_host && !socket.broken {
                assert!(!socket.shut, "told twice");
                socket.shut = true;
                stack.handle_host_shut(flow);
            }
            while ready.to_guest_room > 0 && !socket.eof && !socket.broken && !socket.sending.is_empty() {
                let filled = stack.lend_to_guest(flow, |room| {
                    let n = room.len().min(socket.sending.len());
                    for (to, from) in room.iter_mut().zip(socket.sending.drain(..n)) {
                        *to = from;
                    }
                    n
                });
                if filled == 0 {
                    break;
                }
                ready.to_guest_room -= filled;
            }
            if socket.ends && !socket.eof && !socket.broken && socket.sending.is_empty() && ready.wants_host_data {
                socket.eof = true;
                stack.handle_host_eof(flow);
            }
            if socket.broken && !socket.told_broken {
                socket.told_broken = true;
                stack.handle_host_reset(flow);
            }
        }
        stack.finish_tcp(flow, *now, out);
    }

    /// Lets time pass, with every timer on the way.
    pub fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        for turn in 0.. {
            assert!(turn < 100_000, "timers without end");
            let due = self.stack.next_timeout().filter(|&at| at <= end);
            let Some(due) = due else { break };
            self.now = self.now.max(due);
            self.stack.handle_timeout(self.now, &mut self.out);
            self.settle();
        }
        self.now = end;
        self.stack.handle_timeout(self.now, &mut self.out);
        self.settle();
    }

    /// All frames since the last call, checked. Router advertisements, which come when they like, are left out.
    pub fn frames(&mut self) -> Vec<Frame> {
        let config = self.stack.config().clone();
        let frames: Vec<_> = self.out.to_guest.drain(..).map(|f| parse(&f, &config)).collect();
        frames.into_iter().filter(|f| !matches!(f, Frame::Ip(i) if i.protocol == 58 && i.body[0] == 134)).collect()
    }

    /// All IP packets since the last call; nothing else may have come.
    pub fn packets(&mut self) -> Vec<Ip> {
        self.frames()
            .into_iter()
            .map(|frame| match frame {
                Frame::Ip(ip) => ip,
                Frame::Arp(arp) => panic!("ARP: {arp:?}"),
            })
            .collect()
    }

    /// The only IP packet since the last call.
    pub fn packet(&mut self) -> Ip {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// All TCP segments since the last call; nothing else may have come.
    pub fn segments(&mut self) -> Vec<Seg> {
        self.packets().iter().map(Seg::of).collect()
    }

    /// The only TCP segment since the last call.
    pub fn segment(&mut self) -> Seg {
        let mut segments = self.segments();
        assert_eq!(segments.len(), 1, "{segments:?}");
        segments.remove(0)
    }

    pub fn silent(&mut self) {
        let frames = self.frames();
        assert!(frames.is_empty(), "{frames:?}");
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.stack.drops().get(reason)
    }

    /// The host accepts the connect that is outstanding.
    pub fn accept(&mut self) -> Id {
        let (flow, _) = self.connects.remove(0);
        self.host.insert(flow, HostSocket::default());
        self.stack.handle_tcp_connected(flow, self.now);
        self.settle();
        flow
    }

    /// The host does not.
    pub fn fail(&mut self, failure: ConnectFailure) -> Id {
        let (flow, _) = self.connects.remove(0);
        self.stack.handle_tcp_connect_failed(flow, failure, self.now, &mut self.out);
        self.settle();
        flow
    }

    pub fn host(&mut self, flow: Id) -> &mut HostSocket {
        self.host.get_mut(&flow).expect("the host socket is open")
    }

    /// What the host got, and whether it was told that this is all.
    pub fn heard(&self, flow: Id) -> (&[u8], bool) {
        let socket = &self.host[&flow];
        (&socket.received, socket.shut)
    }

    /// Something changed at the host: serve the flow.
    pub fn poke(&mut self, flow: Id) {
        self.serve(flow);
        self.settle();
    }

    /// The host sends bytes to the guest.
    pub fn host_sends(&mut self, flow: Id, bytes: &[u8]) {
        self.host(flow).sending.extend(bytes);
        self.poke(flow);
    }

    /// The host ends its stream.
    pub fn host_ends(&mut self, flow: Id) {
        self.host(flow).ends = true;
        self.poke(flow);
    }

    /// The only flow that was closed so far.
    pub fn close(&mut self) -> (Id, bool) {
        assert_eq!(self.closed.len(), 1, "{:?}", self.closed);
        self.closed[0]
    }

    pub fn tcp_flows(&self) -> usize {
        self.stack.flows().0
    }
}

/// A scripted guest's end of one connection.
#[derive(Clone, Debug)]
pub struct Conn {
    pub guest: SocketAddr,
    pub peer: SocketAddr,
    /// Next sequence number to send.
    pub seq: u32,
    /// Next one expected.
    pub ack: u32,
    pub window: u16,
    /// Bytes that it may send.
    pub room: usize,
}

/// MSS 1460, SACK permitted, window scale 7, as Linux sends them (without timestamps).
pub const SYN_OPTIONS: [u8; 12] = [2, 4, 5, 0xb4, 4, 2, 1, 1, 1, 3, 3, 7];

impl Conn {
    pub fn new(world: &mut World, guest: SocketAddr, peer: SocketAddr) -> Self {
        world.seq = world.seq.wrapping_add(1_000_003);
        Self { guest, peer, seq: world.seq, ack: 0, window: 0x2000, room: 0 }
    }

    /// To a server on the Internet.
    pub fn out(world: &mut World, family: Family) -> Self {
        Self::new(world, at(family.guest(), 40_000), at(family.far(), 80))
    }

    /// A segment at the current numbers.
    pub fn seg(&self, flags: u8, payload: &[u8]) -> Seg {
        Seg {
            src: self.guest,
            dst: self.peer,
            flags,
            seq: self.seq,
            ack: if flags & ACK != 0 { self.ack } else { 0 },
            window: self.window,
            options: Vec::new(),
            payload: payload.to_vec(),
            gso_size: None,
        }
    }

    pub fn syn(&self) -> Seg {
        Seg { options: SYN_OPTIONS.to_vec(), window: 64_240, ..self.seg(SYN, b"") }
    }

    /// Opens it: SYN, accepted by the host, SYN-ACK, ACK.
    pub fn open(&mut self, world: &mut World) -> Id {
        world.send(&self.syn());
        world.silent();
        let flow = world.accept();
        let answer = world.segment();
        assert_eq!((answer.flags, answer.ack), (SYN | ACK, self.seq.wrapping_add(1)));
        assert_eq!((answer.src, answer.dst), (self.peer, self.guest));
        self.seq = self.seq.wrapping_add(1);
        self.ack = answer.end();
        world.send(&self.seg(ACK, b""));
        world.silent();
        flow
    }

    /// Sends a segment and moves on.
    pub fn push(&mut self, world: &mut World, flags: u8, payload: &[u8]) {
        let segment = self.seg(flags, payload);
        world.send(&segment);
        self.seq = segment.end();
    }

    /// Takes all segments that came, which must be in order and none without need; answers nothing. Returns the data and
    /// whether a FIN was there.
    pub fn take(&mut self, world: &mut World) -> (Vec<u8>, bool) {
        let mut data = Vec::new();
        let mut fin = false;
        for segment in world.segments() {
            assert!(!segment.has(RST), "{segment:?}");
            assert_eq!((segment.src, segment.dst), (self.peer, self.guest));
            assert_eq!(segment.seq, self.ack, "{segment:?}");
            assert_eq!(segment.ack, self.seq, "{segment:?}");
            data.extend(&segment.payload);
            fin |= segment.has(FIN);
            self.ack = segment.end();
        }
        (data, fin)
    }

    /// Takes `data` from the host, acknowledging each burst.
    pub fn receives(&mut self, world: &mut World, flow: Id, data: &[u8]) {
        world.host_sends(flow, data);
        let mut got = Vec::new();
        while got.len() < data.len() {
            let (more, _) = self.take(world);
            assert!(!more.is_empty(), "nothing comes after {} of {} bytes", got.len(), data.len());
            got.extend(more);
            self.acknowledge(world);
        }
        assert_eq!(got.len(), data.len());
        assert!(got == data, "other bytes came");
    }

    /// Has the host send enough that the flow gets large rings, and acknowledges all of it.
    pub fn turn_bulky(&mut self, world: &mut World, flow: Id) {
        self.receives(world, flow, &pattern(200_000, 3));
    }

    /// Acknowledges what was taken.
    pub fn acknowledge(&self, world: &mut World) {
        world.send(&self.seg(ACK, b""));
    }
}

/// Bytes that show where they come from.
pub fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        out.extend(random.next().to_le_bytes());
    }
    out.truncate(length);
    out
}

/// SplitMix64, so that a printed seed repeats a run on any machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
