//! Guests that are no kernel: frames made by hand over `--target-type=bess` and `--netns-type=tapfd`.
//!
//! [`Peer`] speaks one raw Ethernet frame a message, with every checksum filled in and checked: there is no header by
//! which either side could leave that to the other.

#![allow(unsafe_code, reason = "TUNSETIFF, for a TAP that is handed over")]

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet,
    Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
    UdpRepr,
};

use crate::data::bulk;
use crate::helper::{Helper, Running, Start, Target, pipe, raw, read_all};
use crate::spaces::{Ns, wait_for};
use crate::tools::{at, echo_tcp, tell_udp};
use crate::world::{GATEWAY4, INET4, World};

tests! {
    a_bess_peer_is_served: real ours verb;
    bess_waits_for_its_peer: real ours;
    a_bess_peer_of_a_sandboxed_helper: ours;
    a_bess_peer_leaves: ours;
    a_bess_path_that_is_too_long: real ours;
    a_bess_peer_gets_forwarded_connections: real ours;
    a_tap_descriptor: ours;
    a_tap_descriptor_with_a_header: ours;
    a_socket_as_tap_descriptor: ours;
    a_tap_descriptor_that_is_none: ours;
}

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 1, 2, 3]);
/// 52:55 and the gateway's address.
const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);
const PATIENCE: Duration = Duration::from_secs(5);

/// A guest made of frames.
struct Peer(OwnedFd);

impl Peer {
    fn new(fd: OwnedFd) -> Self {
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(200)).unwrap();
        Self(fd)
    }

    /// Connects to a helper that waits at `path`.
    fn at(path: &Path) -> Self {
        wait_for("the BESS socket", Duration::from_secs(10), || path.exists());
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let address = UnixAddr::new(path).unwrap();
        wait_for("the BESS listener", Duration::from_secs(10), || connect(fd.as_raw_fd(), &address).is_ok());
        Self::new(fd)
    }

    fn send(&self, to: EthernetAddress, ethertype: EthernetProtocol, payload: &[u8]) {
        let mut frame = EthernetFrame::new_unchecked(vec![0; 14 + payload.len()]);
        EthernetRepr { src_addr: MAC, dst_addr: to, ethertype }.emit(&mut frame);
        frame.payload_mut().copy_from_slice(payload);
        send(self.0.as_raw_fd(), frame.as_ref(), MsgFlags::empty()).unwrap();
    }

    /// The first frame of which `f` makes something.
    fn expect<T>(&self, what: &str, mut f: impl FnMut(&EthernetFrame<&[u8]>) -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        let mut bytes = vec![0; 70_000];
        while Instant::now() < give_up {
            let Ok(n) = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) else { continue };
            assert!(n > 0, "the helper closed the connection, {what} was expected");
            if let Some(found) = f(&EthernetFrame::new_checked(&bytes[..n]).unwrap()) {
                return found;
            }
        }
        panic!("no {what} within {PATIENCE:?}");
    }

    fn arp(&self, operation: ArpOperation, whom: Ipv4Addr) {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: MAC,
            source_protocol_addr: GUEST,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: whom,
        };
        let mut packet = ArpPacket::new_unchecked(vec![0; repr.buffer_len()]);
        repr.emit(&mut packet);
        self.send(EthernetAddress::BROADCAST, EthernetProtocol::Arp, &packet.into_inner());
    }

    fn resolve(&self, whom: Ipv4Addr) -> EthernetAddress {
        self.arp(ArpOperation::Request, whom);
        self.expect("ARP reply", |frame| {
            let repr = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()?;
            let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, .. } = repr else {
                return None;
            };
            (operation == ArpOperation::Reply && source_protocol_addr == whom).then_some(source_hardware_addr)
        })
    }

    fn send_ip(&self, src: Ipv4Addr, dst: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) {
        let repr =
            Ipv4Repr { src_addr: src, dst_addr: dst, next_header: protocol, payload_len: payload.len(), hop_limit: 64 };
        let mut packet = Ipv4Packet::new_unchecked(vec![0; 20 + payload.len()]);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        packet.payload_mut().copy_from_slice(payload);
        let to = if dst == Ipv4Addr::BROADCAST { EthernetAddress::BROADCAST } else { GATEWAY_MAC };
        self.send(to, EthernetProtocol::Ipv4, packet.as_ref());
    }

    /// The first packet of a protocol, with its header's checksum right, of which `f` makes something.
    fn expect_ip<T>(&self, what: &str, protocol: IpProtocol, mut f: impl FnMut(&Ipv4Repr, &[u8]) -> Option<T>) -> T {
        self.expect(what, |frame| {
            if frame.ethertype() != EthernetProtocol::Ipv4 {
                return None;
            }
            let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
            let repr = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).expect("a wrong IPv4 header");
            (repr.next_header == protocol).then(|| f(&repr, packet.payload()))?
        })
    }

    fn udp(&self, src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), payload: &[u8]) {
        let repr = UdpRepr { src_port: src.1, dst_port: dst.1 };
        let mut bytes = vec![0; 8 + payload.len()];
        let mut packet = UdpPacket::new_unchecked(&mut bytes[..]);
        let (from, to) = (IpAddress::from(src.0), IpAddress::from(dst.0));
        repr.emit(
            &mut packet,
            &from,
            &to,
            payload.len(),
            |bytes| bytes.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
        self.send_ip(src.0, dst.0, IpProtocol::Udp, &bytes);
    }

    /// The next datagram to `port`: who sent it, and what.
    fn expect_udp(&self, port: u16) -> (Ipv4Addr, Vec<u8>) {
        self.expect_ip("UDP datagram", IpProtocol::Udp, |ip, bytes| {
            let packet = UdpPacket::new_checked(bytes).ok()?;
            let (from, to) = (ip.src_addr.into(), ip.dst_addr.into());
            let repr = UdpRepr::parse(&packet, &from, &to, &ChecksumCapabilities::default()).expect("a wrong checksum");
            (repr.dst_port == port).then(|| (ip.src_addr, packet.payload().to_vec()))
        })
    }

    fn ping(&self, whom: Ipv4Addr) {
        let repr = Icmpv4Repr::EchoRequest { ident: 77, seq_no: 1, data: b"are you there?" };
        let mut bytes = vec![0; repr.buffer_len()];
        let mut packet = Icmpv4Packet::new_unchecked(&mut bytes[..]);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        self.send_ip(GUEST, whom, IpProtocol::Icmp, &bytes);
        self.expect_ip("echo reply", IpProtocol::Icmp, |ip, bytes| {
            let packet = Icmpv4Packet::new_checked(bytes).ok()?;
            let repr = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).expect("a wrong checksum");
            let answer = Icmpv4Repr::EchoReply { ident: 77, seq_no: 1, data: b"are you there?" };
            (ip.src_addr == whom && repr == answer).then_some(())
        });
    }

    /// What DHCP offers.
    fn dhcp(&self) -> (Ipv4Addr, Vec<u8>) {
        let mut message = vec![0; 240];
        message[..4].copy_from_slice(&[1, 1, 6, 0]);
        message[4..8].copy_from_slice(b"xid!");
        message[28..34].copy_from_slice(&MAC.0);
        message[236..240].copy_from_slice(&[99, 130, 83, 99]);
        message.extend([53, 1, 1, 55, 3, 1, 3, 6, 255]);
        self.udp((Ipv4Addr::UNSPECIFIED, 68), (Ipv4Addr::BROADCAST, 67), &message);
        let (from, offer) = self.expect_udp(68);
        assert_eq!((from, &offer[4..8]), (GATEWAY4, &b"xid!"[..]));
        (Ipv4Addr::new(offer[16], offer[17], offer[18], offer[19]), offer[240..].to_vec())
    }

    fn tcp(&self, repr: &TcpRepr<'_>, dst: Ipv4Addr) {
        let mut bytes = vec![0; repr.buffer_len()];
        let mut packet = TcpPacket::new_unchecked(&mut bytes[..]);
        repr.emit(&mut packet, &GUEST.into(), &dst.into(), &ChecksumCapabilities::default());
        self.send_ip(GUEST, dst, IpProtocol::Tcp, &bytes);
    }

    /// The next segment to `port`: its control bits, numbers, ports and payload.
    fn expect_tcp(&self, port: u16) -> Segment {
        self.expect_ip("TCP segment", IpProtocol::Tcp, |ip, bytes| {
            let packet = TcpPacket::new_checked(bytes).ok()?;
            let (from, to) = (ip.src_addr.into(), ip.dst_addr.into());
            let repr = TcpRepr::parse(&packet, &from, &to, &ChecksumCapabilities::default()).expect("a wrong checksum");
            (repr.dst_port == port).then(|| Segment {
                from: ip.src_addr,
                port: repr.src_port,
                control: repr.control,
                seq: repr.seq_number,
                ack: repr.ack_number,
                payload: repr.payload.to_vec(),
            })
        })
    }

    /// A connection to an echo server: open, 1000 bytes there and back, closed in order.
    fn tcp_exchange(&self, server: Ipv4Addr, server_port: u16) {
        let mut repr = TcpRepr {
            src_port: 40_001,
            dst_port: server_port,
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(1000),
            ack_number: None,
            window_len: 60_000,
            window_scale: None,
            max_seg_size: Some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        self.tcp(&repr, server);
        let answer = self.expect_tcp(40_001);
        assert_eq!((answer.control, answer.ack), (TcpControl::Syn, Some(TcpSeqNumber(1001))));
        let mut theirs = answer.seq + 1;
        let data: Vec<u8> = (0..1000).map(|n| n as u8).collect();
        (repr.control, repr.seq_number, repr.ack_number, repr.max_seg_size) =
            (TcpControl::Psh, TcpSeqNumber(1001), Some(theirs), None);
        repr.payload = &data;
        self.tcp(&repr, server);
        let mut back = Vec::new();
        while back.len() < data.len() {
            let segment = self.expect_tcp(40_001);
            if segment.seq == theirs {
                theirs += segment.payload.len();
                back.extend(segment.payload);
            }
        }
        assert_eq!(back, data);
        (repr.control, repr.seq_number, repr.ack_number) = (TcpControl::Fin, TcpSeqNumber(2001), Some(theirs));
        repr.payload = &[];
        self.tcp(&repr, server);
        loop {
            let segment = self.expect_tcp(40_001);
            assert_ne!(segment.control, TcpControl::Rst, "reset instead of closed");
            if segment.control == TcpControl::Fin {
                assert_eq!(segment.seq, theirs);
                break;
            }
        }
        (repr.control, repr.seq_number, repr.ack_number) = (TcpControl::None, TcpSeqNumber(2002), Some(theirs + 1));
        self.tcp(&repr, server);
    }

    /// Everything that a guest may want of the helper and of [`servers`].
    fn is_served(&self) {
        assert_eq!(self.resolve(GATEWAY4), GATEWAY_MAC);
        assert_eq!(self.resolve(Ipv4Addr::new(10, 0, 2, 3)), EthernetAddress([0x52, 0x55, 10, 0, 2, 3]));
        let (offered, options) = self.dhcp();
        assert_eq!(offered, Ipv4Addr::new(10, 0, 2, 15));
        assert!(options.windows(6).any(|o| o == [3, 4, 10, 0, 2, 2]), "no router: {options:?}");
        assert!(options.windows(6).any(|o| o == [6, 4, 10, 0, 2, 3]), "no name server: {options:?}");
        self.ping(GATEWAY4);
        self.tcp_exchange(INET4, 7000);
        self.tcp_exchange(GATEWAY4, 7001);
        self.udp((GUEST, 5000), (INET4, 7000), b"who?");
        let (from, said) = self.expect_udp(5000);
        assert!(from == INET4 && said.starts_with(b"203.0.113.2:"), "{from} said {said:?}");
    }
}

fn servers(w: &World) {
    echo_tcp(&w.internet, at(INET4, 7000));
    echo_tcp(&w.host, at([127, 0, 0, 1], 7001));
    tell_udp(&w.internet, at(INET4, 7000));
}

struct Segment {
    from: Ipv4Addr,
    port: u16,
    control: TcpControl,
    seq: TcpSeqNumber,
    ack: Option<TcpSeqNumber>,
    payload: Vec<u8>,
}

/// A helper and its peer. The ready byte comes when there is one, not before.
fn bess(start: Start, path: &Path) -> (Running, Peer) {
    let (mut said, tell) = pipe();
    let running = start.and(&["--target-type=bess", "-r", "3", path.to_str().unwrap()]).fd(tell, 3).spawn();
    wait_for("the BESS socket", Duration::from_secs(10), || path.exists());
    assert!(read_all(&mut said, Duration::from_millis(200)).is_none(), "ready before there is a peer");
    let peer = Peer::at(path);
    assert_eq!(read_all(&mut said, Duration::from_secs(10)).as_deref(), Some(&b"1"[..]), "{}", running.output());
    (running, peer)
}

fn a_bess_peer_is_served(w: &World, helper: &Helper) {
    servers(w);
    for hardening in [&[][..], &["--enable-seccomp"]] {
        let path = w.path(&format!("bess{}", hardening.len()));
        let (_running, peer) = bess(helper.with(hardening), &path);
        peer.is_served();
    }
}

/// Upstream has no user namespace to make its sandbox in.
fn a_bess_peer_of_a_sandboxed_helper(w: &World, helper: &Helper) {
    servers(w);
    let (_running, peer) = bess(helper.with(crate::helper::HARDENED), &w.path("bess"));
    peer.is_served();
}

fn bess_waits_for_its_peer(w: &World, helper: &Helper) {
    let path = w.path("bess");
    // Whatever is there is replaced.
    std::fs::write(&path, "").unwrap();
    let mut running = helper.with(&["--target-type=bess", path.to_str().unwrap()]).spawn();
    wait_for("the words", Duration::from_secs(10), || {
        running.stderr().contains(&format!("Waiting for connection to {}", path.display()))
    });
    running.stays(Duration::from_millis(200));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait(Duration::from_secs(5)), 128 + Signal::SIGTERM as i32);
}

/// Upstream runs in circles for ever.
fn a_bess_peer_leaves(w: &World, helper: &Helper) {
    for hardening in [&[][..], &["--enable-seccomp"]] {
        let path = w.path(&format!("bess{}", hardening.len()));
        let (mut running, peer) = bess(helper.with(hardening), &path);
        peer.ping(GATEWAY4);
        drop(peer);
        let code = running.wait(Duration::from_secs(5));
        assert!(code < 128, "ended with {code}\n{}", running.output());
    }
}

fn a_bess_path_that_is_too_long(_: &World, helper: &Helper) {
    let path = format!("/mnt/{}", "x".repeat(103));
    helper.with(&["--target-type=bess", &path]).fails("the specified BESS socket path is too long (>= 108)");
}

fn a_bess_peer_gets_forwarded_connections(w: &World, helper: &Helper) {
    let (path, api) = (w.path("bess"), w.path("api"));
    let (_running, peer) = bess(helper.with(&["-a", api.to_str().unwrap()]), &path);
    let request = crate::helper::add("tcp", at([0; 4], 8080), "", 80);
    assert_eq!(raw(&api, request.as_bytes()), r#"{"return":{"id":1}}"#);
    // It says where it is, as kernels do.
    peer.arp(ArpOperation::Request, GUEST);
    peer.resolve(GATEWAY4);
    let client = w.internet.spawn(|| std::net::TcpStream::connect((crate::world::HOST4, 8080)));
    let syn = peer.expect_tcp(80);
    assert_eq!((syn.control, syn.from), (TcpControl::Syn, INET4));
    let refusal = TcpRepr {
        src_port: 80,
        dst_port: syn.port,
        control: TcpControl::Rst,
        seq_number: TcpSeqNumber(0),
        ack_number: Some(syn.seq + 1),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    peer.tcp(&refusal, INET4);
    let _ = client.join().unwrap();
}

/// A TAP of this name in a namespace.
fn tap(ns: &Ns, name: &str, flags: i32) -> OwnedFd {
    ns.run(|| {
        let open =
            std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let device: OwnedFd = open.unwrap().into();
        // SAFETY: all zero bytes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as i16;
        // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which outlives the call.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0, "cannot make {name}: {}", std::io::Error::last_os_error());
        device
    })
}

fn a_tap_descriptor_serves(w: &World, helper: &Helper, flags: i32) {
    for (port, hardening) in [(7000, &[][..]), (7010, &["--enable-seccomp", "--mtu=9000"])] {
        let target = Target::new(w);
        let device = tap(&target.ns, "tap0", flags);
        let _running = helper.with(&["--netns-type=tapfd", "17"]).and(hardening).fd(device, 17).ready();
        target.sh("ip link set lo up; ip link set tap0 up; ip addr add 10.0.2.100/24 dev tap0
             ip route add default via 10.0.2.2; ping -c1 -W5 10.0.2.2");
        bulk(&target.ns, &w.internet, at(INET4, port), at(INET4, port), 4 << 20);
    }
}

/// New in 1.3: Debian's does not know it.
fn a_tap_descriptor(w: &World, helper: &Helper) {
    a_tap_descriptor_serves(w, helper, 0);
}

fn a_tap_descriptor_with_a_header(w: &World, helper: &Helper) {
    a_tap_descriptor_serves(w, helper, libc::IFF_VNET_HDR);
}

fn a_socket_as_tap_descriptor(w: &World, helper: &Helper) {
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let mut running = helper.with(&["--netns-type=tapfd", "17"]).fd(far, 17).ready();
    let peer = Peer::new(near);
    servers(w);
    peer.is_served();
    drop(peer);
    let code = running.wait(Duration::from_secs(5));
    assert!(code < 128, "ended with {code}\n{}", running.output());
}

fn a_tap_descriptor_that_is_none(w: &World, helper: &Helper) {
    let not_open = helper.with(&["--netns-type=tapfd", "17"]).end();
    assert_eq!(not_open.code, 1, "{}\n{}", not_open.stdout, not_open.stderr);
    let file = std::fs::File::create(w.path("file")).unwrap();
    let a_file = helper.with(&["--netns-type=tapfd", "17"]).fd(file, 17).end();
    assert_eq!(a_file.code, 1, "{}\n{}", a_file.stdout, a_file.stderr);
    let word = helper.with(&["--netns-type=tapfd", "tap0"]).end();
    assert!(word.code == 1 && word.stderr.contains("TAPFD must a file descriptor"), "{}", word.stderr);
}
