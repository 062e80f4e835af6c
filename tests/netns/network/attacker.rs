//! A member that means harm: frames of its own making, by a packet socket in its own namespace, where it is root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, setsockopt, socket};
use tapway::wire::csum;
use tapway::wire::vnet::{Gso, VnetHdr};

use super::{GATEWAY4, GATEWAY6, Member, v4, v6};
use crate::world::{INET4, INET6};

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Nothing but to keep a processor busy: what all others cost beside what they do here.
    Burn,
    /// SYNs to hosts that never answer.
    SynSilent,
    /// SYNs to a closed port.
    SynClosed,
    /// SYNs to an open one, and never the third word.
    HalfOpen,
    /// Segments of no flow.
    Stray,
    /// A datagram from each port there is.
    Mappings,
    /// First pieces of datagrams that never come.
    Fragments4,
    /// The same in IPv6.
    Fragments6,
    /// ARP in the gateway's and another member's name.
    Arp,
    /// Questions for names in another member's name.
    Spoof,
    /// Questions for names in its own.
    Questions,
    /// Datagrams to everybody.
    Broadcast,
    /// Datagrams to a group that all have joined.
    Multicast,
    /// Super-frames of single bytes.
    TinyGso,
    /// Echo of the gateway.
    Echo,
    /// A lease for one MAC after the other.
    Dhcp,
    /// Reports of one group after the other.
    Groups,
    /// Frames that are too short for what they are.
    Short,
    /// Advertisements of the gateway's and another member's IPv6 address, with the attacker's MAC.
    Neighbour,
    /// Advertisements of a router that is the attacker.
    Router,
    /// Pieces that say different things of the same bytes, each with another piece of its datagram; IPv4.
    Overlap4,
    /// The same in IPv6.
    Overlap6,
    /// Super-frames to another member whose pieces are larger than its MTU.
    Oversize,
}

impl Attack {
    pub const ALL: [Self; 23] = [
        Self::Burn,
        Self::SynSilent,
        Self::SynClosed,
        Self::HalfOpen,
        Self::Stray,
        Self::Mappings,
        Self::Fragments4,
        Self::Fragments6,
        Self::Arp,
        Self::Spoof,
        Self::Questions,
        Self::Broadcast,
        Self::Multicast,
        Self::TinyGso,
        Self::Echo,
        Self::Dhcp,
        Self::Groups,
        Self::Short,
        Self::Neighbour,
        Self::Router,
        Self::Overlap4,
        Self::Overlap6,
        Self::Oversize,
    ];

    /// Under which names what it does is refused, any of them.
    pub fn counted(self) -> &'static [&'static str] {
        match self {
            // Of mappings and questions there is a bound, and no refusal below it.
            Self::Burn | Self::Mappings | Self::Questions | Self::Multicast | Self::SynClosed | Self::Dhcp => &[],
            Self::SynSilent | Self::HalfOpen | Self::Groups => &["table_full"],
            Self::Stray => &["no_flow"],
            Self::Fragments4 | Self::Fragments6 | Self::Overlap4 | Self::Overlap6 => &["fragment"],
            Self::Arp | Self::Spoof | Self::Neighbour | Self::Router => &["spoofed_source"],
            Self::Oversize => &["too_big"],
            Self::Broadcast | Self::Echo => &["rate_limited"],
            Self::TinyGso => &["malformed"],
            Self::Short => &["truncated"],
        }
    }

    /// The n-th frame of it, vnet header first.
    fn frame(self, from: u8, n: u32) -> Vec<u8> {
        let own = v4(from);
        let port = 10_000 + (n % 50_000) as u16;
        let syn = |to: Ipv4Addr, at: u16| ip(own, to, 6, segment(own, to, port, at, n, 2));
        let gateway = |packet: Vec<u8>| framed(from, GATEWAY_MAC, 0x0800, &packet);
        let to_all = |packet: Vec<u8>| framed(from, [0xff; 6], 0x0800, &packet);
        match self {
            Self::Burn => Vec::new(),
            // A route to nowhere; see `world`.
            Self::SynSilent => gateway(syn(Ipv4Addr::from(0xc000_0200 + n % 256), 80)),
            Self::SynClosed => gateway(syn(INET4, 9)),
            Self::HalfOpen => gateway(syn(INET4, 7000)),
            Self::Stray => gateway(ip(own, INET4, 6, segment(own, INET4, port, 7000, n, 16))),
            Self::Mappings => gateway(ip(own, INET4, 17, datagram(own, INET4, port, 9, &[1; 16]))),
            // At an end that makes it as large as can be, and never all of it.
            Self::Fragments4 => gateway(piece4(from, n, 7900, &[0; 1400])),
            Self::Fragments6 => framed(from, GATEWAY_MAC, 0x86dd, &piece6(from, n, 7900, &[0; 1400])),
            // Three of each datagram: of bytes 0 to 800, 400 to 1200, and the same again otherwise.
            Self::Overlap4 => gateway(piece4(from, n / 3, (n % 3 * 50) as u16 % 100, &[n as u8; 800])),
            Self::Overlap6 => {
                framed(from, GATEWAY_MAC, 0x86dd, &piece6(from, n / 3, (n % 3 * 50) as u16 % 100, &[n as u8; 800]))
            }
            Self::Neighbour => {
                let claimed = if n & 1 == 0 { GATEWAY6 } else { v6(3) };
                // For everybody, override; the target, and whose MAC it has.
                let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
                message.extend(claimed.octets());
                message.extend([2, 1]);
                message.extend(mac(from));
                to_all_nodes(from, v6(from), message)
            }
            Self::Router => {
                let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
                message.extend(mac(from));
                to_all_nodes(from, Ipv6Addr::from((0xfe80_u128 << 112) + u128::from(from)), message)
            }
            Self::Oversize => super_frame(from, n, 9000),
            Self::Arp => {
                let claimed = if n & 1 == 0 { GATEWAY4 } else { v4(3) };
                let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2];
                arp.extend(mac(from));
                arp.extend(claimed.octets());
                arp.extend([0xff; 6]);
                arp.extend(v4(2).octets());
                framed(from, [0xff; 6], 0x0806, &arp)
            }
            Self::Spoof | Self::Questions => {
                let asks = if self == Self::Spoof { v4(2) } else { own };
                let mut question = vec![n as u8, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
                question.extend(b"\x03one\x00\x00\xff\x00\x01");
                gateway(ip(asks, GATEWAY4, 17, datagram(asks, GATEWAY4, port, 53, &question)))
            }
            Self::Broadcast => {
                let all = Ipv4Addr::new(172, 18, 255, 255);
                to_all(ip(own, all, 17, datagram(own, all, port, 9, &[1; 64])))
            }
            Self::Multicast => {
                let group = Ipv4Addr::new(239, 7, 7, 7);
                let packet = ip(own, group, 17, datagram(own, group, port, 6000, &[1; 64]));
                framed(from, [1, 0, 0x5e, 7, 7, 7], 0x0800, &packet)
            }
            Self::TinyGso => super_frame(from, n, 1),
            Self::Echo => {
                let mut echo = vec![8, 0, 0, 0, 0, 1];
                echo.extend((n as u16).to_be_bytes());
                let sum = csum::plain(&echo);
                echo[2..4].copy_from_slice(&sum.to_be_bytes());
                gateway(ip(own, GATEWAY4, 1, echo))
            }
            Self::Dhcp => {
                let mut ask = vec![1, 1, 6, 0];
                ask.extend(n.to_be_bytes());
                ask.resize(28, 0);
                ask.extend([2, 9]);
                ask.extend(n.to_be_bytes());
                ask.resize(236, 0);
                ask.extend([99, 130, 83, 99, 53, 1, 1, 255]);
                ask.resize(300, 0);
                let (none, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
                to_all(ip(none, all, 17, datagram(none, all, 68, 67, &ask)))
            }
            Self::Groups => {
                let group = Ipv4Addr::from(0xef02_0000 + n % 60_000);
                let mut report = vec![0x16, 0, 0, 0];
                report.extend(group.octets());
                let sum = csum::plain(&report);
                report[2..4].copy_from_slice(&sum.to_be_bytes());
                framed(from, [1, 0, 0x5e, 2, 0, 1], 0x0800, &ip(own, group, 2, report))
            }
            // Half an IP header, and not padded: a TAP carries what it is given.
            Self::Short => framed(from, GATEWAY_MAC, 0x0800, &[0x45, 0, 0, 20, 0, 0, 0, 0]),
        }
    }
}

const GATEWAY_MAC: [u8; 6] = [0x02, 0x42, 172, 18, 0, 1];

fn mac(member: u8) -> [u8; 6] {
    [0x02, 0x42, 172, 18, 0, member]
}

fn framed(from: u8, to: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend(to);
    frame.extend(mac(from));
    frame.extend(kind.to_be_bytes());
    frame.extend(packet);
    frame
}

fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: Vec<u8>) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&(20 + body.len() as u16).to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = csum::plain(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

/// A piece of a datagram to the Internet, not the last, at so many times eight bytes.
fn piece4(from: u8, id: u32, at: u16, bytes: &[u8]) -> Vec<u8> {
    let mut packet = ip(v4(from), INET4, 17, bytes.to_vec());
    packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&(0x2000 + at).to_be_bytes());
    packet[10..12].fill(0);
    let sum = csum::plain(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The same in IPv6.
fn piece6(from: u8, id: u32, at: u16, bytes: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, 44, 64];
    packet[4..6].copy_from_slice(&(8 + bytes.len() as u16).to_be_bytes());
    packet.extend(v6(from).octets());
    packet.extend(INET6.octets());
    packet.extend([17, 0]);
    packet.extend((at * 8 + 1).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(bytes);
    packet
}

/// ICMPv6 to all nodes of the link.
fn to_all_nodes(from: u8, own: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let sum = csum::full(IpAddr::V6(own), IpAddr::V6(all), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, 58, 255];
    packet.extend(own.octets());
    packet.extend(all.octets());
    packet.extend(message);
    framed(from, [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &packet)
}

/// 30 000 bytes to another member, to be cut into pieces of so many.
fn super_frame(from: u8, n: u32, size: u16) -> Vec<u8> {
    let (own, to) = (v4(from), v4(3));
    let mut tcp = segment(own, to, 10_000 + (n % 50_000) as u16, 9, n, 16);
    tcp.resize(20 + 30_000, 1);
    let sum = csum::partial(IpAddr::V4(own), IpAddr::V4(to), 6, tcp.len());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut frame = framed(from, mac(3), 0x0800, &ip(own, to, 6, tcp));
    let hdr = VnetHdr {
        needs_csum: true,
        csum_start: 34,
        csum_offset: 16,
        hdr_len: 54,
        gso: Gso::Tcp4,
        gso_size: size,
        ..VnetHdr::default()
    };
    hdr.emit(&mut frame);
    frame
}

fn segment(from: Ipv4Addr, to: Ipv4Addr, port: u16, at: u16, seq: u32, flags: u8) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(port.to_be_bytes());
    tcp.extend(at.to_be_bytes());
    tcp.extend(seq.wrapping_mul(7919).to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = csum::full(IpAddr::V4(from), IpAddr::V4(to), 6, &tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    tcp
}

fn datagram(from: Ipv4Addr, to: Ipv4Addr, port: u16, at: u16, payload: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(port.to_be_bytes());
    udp.extend(at.to_be_bytes());
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let sum = csum::full(IpAddr::V4(from), IpAddr::V4(to), 17, &udp);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    udp
}

/// Frames that are made beforehand, so that sending is all that it does.
const MADE: u32 = 4_096;

/// The attacker at work; it stops when it is dropped.
pub struct Attacker {
    over: Arc<AtomicBool>,
    resting: Arc<AtomicBool>,
    pub sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Attacker {
    /// At rest to begin with.
    pub fn new(member: &Member, attack: Attack) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let resting = Arc::new(AtomicBool::new(true));
        let sent = Arc::new(AtomicU64::new(0));
        let frames: Vec<Vec<u8>> = (0..MADE).map(|n| attack.frame(member.number, n)).collect();
        let socket = member.ns.run(packet_socket);
        let thread = thread::spawn({
            let (over, resting, sent) = (over.clone(), resting.clone(), sent.clone());
            move || {
                for frame in frames.iter().cycle() {
                    while resting.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed) {
                        thread::park_timeout(std::time::Duration::from_millis(10));
                    }
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    if attack == Attack::Burn {
                        std::hint::spin_loop();
                    } else if send(socket.as_raw_fd(), frame, MsgFlags::empty()).is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Self { over, resting, sent, thread: Some(thread) }
    }

    pub fn set(&self, on: bool) {
        self.resting.store(!on, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends through eth0, vnet header first.
fn packet_socket() -> OwnedFd {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)
        .expect("root in its namespace");
    let index = nix::net::if_::if_nametoindex("eth0").unwrap() as i32;
    let on = 1i32;
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: both calls read an integer and an address that live until they return.
    let results = unsafe {
        [
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<i32>() as u32,
            ),
            libc::bind(socket.as_raw_fd(), (&raw const to).cast(), size_of::<libc::sockaddr_ll>() as u32),
        ]
    };
    assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
    let _ = setsockopt(&socket, nix::sys::socket::sockopt::SndBuf, &(1 << 20));
    socket
}
