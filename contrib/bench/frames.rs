//! What the data plane core itself spends on a frame: the real `Stack` and `Switch`, driven in memory, no kernel between.
//!
//! ```text
//! bench-frames      runs every case and prints, one line each: name, unit, units counted, rule
//! ```
//!
//! By itself it proves only that the cases run. `contrib/bench/frames` runs it under callgrind, which counts nothing but
//! what happens inside the functions of [`counted`], and starts a new count whenever [`boundary`] returns. So each case
//! warms up (rings, tables and buffers have their size), crosses a boundary, does its rounds, and crosses another.
//!
//! The guest is the one of the tests (`tests/stack/sim.rs`): it makes its frames outside of what is counted. The host's
//! sockets take all and give what they are told to without touching the bytes, because those copies are the kernel's.

use std::hint::black_box;
use std::net::SocketAddr;

use smoltcp::time::{Duration, Instant};
use tapway::network::config::{EndpointConfig, Mac, Membership, Offloads};
use tapway::stack::arena::Id;
use tapway::stack::switch::{Members, Switch, SwitchLimits};
use tapway::stack::tcp::{TcpLimits, TcpWork};
use tapway::stack::udp::{UdpLimits, UdpVia};
use tapway::stack::{Limits, Output, PingToHost, Stack, UdpToHost};
use tapway::wire::csum;
use tapway::wire::vnet::{Gso, IP_OFFSET, VnetHdr};

#[allow(dead_code, missing_docs, clippy::unwrap_used, clippy::pedantic)]
#[path = "../../tests/stack/sim.rs"]
mod sim;

use sim::{ACK, Conn, FIN, Family, PSH, SYN, Seg, TCP, UDP, World, all_offloads, at, config};

/// Rounds before counting, and counted. Enough for the ring of 1 MiB to wrap some times with frames of 64 KiB.
const WARM: usize = 100;
const ROUNDS: usize = 200;
/// Connections or mappings that rest beside what is counted.
const IDLE: usize = 10_000;
/// Between rounds.
const STEP: Duration = Duration::from_micros(10);

/// The switch's other side and the stack's: takes everything, keeps the last frame's beginning.
struct Sink {
    frames: usize,
    datagrams: usize,
    mapping: Option<Id>,
    last: [u8; 128],
    last_len: usize,
}

impl Sink {
    fn new() -> Self {
        Self { frames: 0, datagrams: 0, mapping: None, last: [0; 128], last_len: 0 }
    }

    fn keep(&mut self, frame: &[u8]) {
        let head = frame.len().min(self.last.len());
        self.last[..head].copy_from_slice(&frame[..head]);
        self.last_len = frame.len();
        self.frames += 1;
    }
}

impl Output for Sink {
    fn to_guest(&mut self, frame: &[u8]) -> bool {
        self.keep(frame);
        true
    }

    fn udp_to_host(&mut self, send: &UdpToHost<'_>) {
        self.datagrams += 1;
        if let UdpVia::Mapping { id } = send.via {
            self.mapping = Some(id);
        }
    }

    fn ping_to_host(&mut self, _: &PingToHost<'_>) {}

    fn dns_query(&mut self, _: SocketAddr, _: SocketAddr, _: &[u8]) {}
}

impl Members for Sink {
    fn to_member(&mut self, _: u16, frame: &[u8]) {
        self.keep(frame);
    }
}

/// The host's sockets of all flows: what they still have for the guest, and what happened to them.
#[derive(Default)]
struct Host {
    gives: usize,
    ends: bool,
    took: usize,
    connect: Option<Id>,
    closed: usize,
}

/// All that callgrind counts. Nothing here calls anything else that is here, as leaving the inner one would end the count.
mod counted {
    use super::{Host, Id, Instant, Sink, SocketAddr, Stack, Switch, TcpWork, black_box, serve};

    /// A frame of the guest's.
    #[inline(never)]
    pub fn frame(stack: &mut Stack, now: Instant, frame: &mut [u8], out: &mut Sink) {
        stack.handle_from_guest(now, frame, out);
    }

    /// A frame of a member's, for another.
    #[inline(never)]
    pub fn switched(
        switch: &mut Switch,
        stack: &mut Stack,
        now: Instant,
        frame: &mut [u8],
        out: (&mut Sink, &mut Sink),
    ) {
        switch.handle_from_guest(now, 0, frame, (stack, out.0), out.1);
    }

    /// The host has accepted a connect.
    #[inline(never)]
    pub fn connected(stack: &mut Stack, now: Instant, flow: Id) {
        stack.handle_tcp_connected(flow, now);
    }

    /// A datagram, or several, came to a mapping's socket.
    #[inline(never)]
    pub fn datagram(
        stack: &mut Stack,
        now: Instant,
        (id, from): (Id, SocketAddr),
        payload: &[u8],
        segment: Option<u16>,
        out: &mut Sink,
    ) {
        stack.handle_udp_from_host(now, id, from, payload, segment, out);
    }

    /// The rest of a turn, as `runtime::endpoint` has it, without the sockets. `flow` is one that its socket has
    /// something to say of.
    #[inline(never)]
    pub fn settle(stack: &mut Stack, now: Instant, host: &mut Host, flow: Option<Id>, out: &mut Sink) {
        if let Some(flow) = flow {
            serve(stack, now, host, flow, out);
        }
        loop {
            let mut idle = true;
            while let Some(work) = stack.poll_tcp_work() {
                idle = false;
                match work {
                    TcpWork::Connect { flow, .. } => host.connect = Some(flow),
                    TcpWork::Close { .. } => host.closed += 1,
                    TcpWork::Keepalive { .. } => {}
                }
            }
            while let Some(flow) = stack.poll_dirty() {
                idle = false;
                serve(stack, now, host, flow, out);
            }
            if idle {
                break;
            }
        }
        while stack.poll_udp_closed().is_some() || stack.poll_ping_closed().is_some() {}
        while let Some(event) = stack.poll_flow_event() {
            black_box(&event);
        }
        if stack.next_timeout().is_some_and(|due| due <= now) {
            stack.handle_timeout(now, out);
        }
    }
}

/// Moves the bytes of one flow. Not in [`counted`], because it is called from there, and so counted.
fn serve(stack: &mut Stack, now: Instant, host: &mut Host, flow: Id, out: &mut Sink) {
    let mut ready = stack.tcp_readiness(flow);
    while ready.from_guest > 0 {
        let taken = stack.lend_from_guest(flow, <[u8]>::len);
        host.took += taken;
        ready.from_guest -= taken;
    }
    ready = stack.tcp_readiness(flow);
    if ready.shut_host {
        stack.handle_host_shut(flow);
    }
    while ready.to_guest_room > 0 && host.gives > 0 {
        let gives = host.gives;
        let filled = stack.lend_to_guest(flow, |room| room.len().min(gives));
        host.gives -= filled;
        ready.to_guest_room -= filled;
    }
    if host.ends && host.gives == 0 && ready.wants_host_data {
        host.ends = false;
        stack.handle_host_eof(flow);
    }
    stack.finish_tcp(flow, now, out);
}

/// Callgrind writes what it counted so far and starts anew when this returns.
#[inline(never)]
fn boundary(name: &str) {
    black_box(name);
}

/// Offloads of a TAP: all, or none, so that every frame is a packet with a whole checksum.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    Offloading,
    Plain,
}

/// One case: the world, the flow that is looked at, and how large its frames are.
struct Bed {
    world: World,
    out: Sink,
    host: Host,
    link: Link,
    conn: Conn,
    flow: Option<Id>,
    /// Bytes of payload in one packet.
    mss: usize,
    /// What the other side's window is shifted by, and what it was last.
    scale: u8,
    room: usize,
}

impl Bed {
    /// `idle` connections rest beside the one that is looked at.
    fn new(family: Family, mtu: u16, link: Link, idle: usize) -> Self {
        let offloads = if link == Link::Plain { Offloads::default() } else { all_offloads() };
        let tcp = TcpLimits { max_flows: idle + 64, ..TcpLimits::default() };
        let mut world = World::with(config(mtu, offloads), Limits { tcp, ..Limits::default() });
        let mut conn = Conn::out(&mut world, family);
        let mss = usize::from(mtu) - family.header() - 20;
        let syn = Seg { options: syn_options(mss), ..conn.syn() };
        conn.window = 0xffff;
        let mut bed =
            Self { world, out: Sink::new(), host: Host::default(), link, flow: None, conn, mss, scale: 0, room: 0 };
        bed.guest_sends(syn);
        bed.turn(None);
        bed.flow = Some(bed.accept());
        bed.guest_sends(bed.conn.seg(ACK, b""));
        bed.turn(None);
        // They carry nothing, and do not rest yet.
        for n in 0..idle {
            let guest = at(family.guest(), 2000 + (n % 30_000) as u16);
            let peer = at(family.far(), 1 + (n / 30_000) as u16);
            Conn::new(&mut bed.world, guest, peer).open(&mut bed.world);
        }
        bed
    }

    /// What the host accepts, and the guest hears of.
    fn accept(&mut self) -> Id {
        let flow = self.host.connect.take().expect("the stack wants a connect");
        counted::connected(&mut self.world.stack, self.world.now, flow);
        self.turn(None);
        self.heard();
        let out = &self.out;
        let sim::Frame::Ip(packet) = sim::parse(&out.last[..out.last_len], self.world.stack.config()) else {
            panic!("no SYN-ACK");
        };
        self.scale = Seg::of(&packet).option(3).map_or(0, |shift| shift[0]);
        flow
    }

    fn turn(&mut self, flow: Option<Id>) {
        let Self { world, out, host, .. } = self;
        counted::settle(&mut world.stack, world.now, host, flow, out);
    }

    /// A segment, on the link as a kernel with these offloads would put it there; not settled.
    fn guest_sends(&mut self, segment: Seg) {
        let mut frame = segment.frame();
        if self.link == Link::Offloading {
            offload(&mut frame, &segment, self.mss);
        } else {
            assert!(segment.payload.len() <= self.mss, "a packet that no plain TAP takes");
        }
        let Self { world, out, conn, .. } = self;
        conn.seq = segment.end();
        counted::frame(&mut world.stack, world.now, &mut frame, out);
        world.now += STEP;
    }

    /// The guest takes note of the last frame that came; what was before it must have come in order.
    fn heard(&mut self) -> u8 {
        let out = &self.out;
        let tcp = IP_OFFSET + if self.conn.guest.is_ipv6() { 40 } else { 20 };
        let word = |at: usize| u32::from_be_bytes([out.last[at], out.last[at + 1], out.last[at + 2], out.last[at + 3]]);
        let flags = out.last[tcp + 13];
        let payload = out.last_len - tcp - usize::from(out.last[tcp + 12] >> 4) * 4;
        assert_eq!(word(tcp + 8), self.conn.seq, "not everything was acknowledged");
        let ends = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        self.conn.ack = word(tcp + 4).wrapping_add(payload as u32).wrapping_add(ends);
        // Of a SYN it is not scaled (RFC 7323, section 2.2).
        let scale = if flags & SYN != 0 { 0 } else { self.scale };
        self.room = usize::from(u16::from_be_bytes([out.last[tcp + 14], out.last[tcp + 15]])) << scale;
        flags
    }

    /// One segment of `bytes` from the guest to the host, as far as the window goes. Its acknowledgement is heard.
    fn bulk_from_guest(&mut self, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(self.room)];
        let (before, frames) = (self.host.took, self.out.frames);
        self.guest_sends(self.conn.seg(ACK | PSH, bytes));
        self.turn(None);
        assert_eq!(self.host.took - before, bytes.len());
        if self.out.frames > frames {
            self.heard();
        }
    }

    /// The host gives `bytes`, the guest gets them in `1` or more frames and acknowledges the last. Returns how many.
    fn bulk_to_guest(&mut self, bytes: usize) -> usize {
        let frames = self.out.frames;
        self.host.gives = bytes;
        self.turn(self.flow);
        let before = self.conn.ack;
        self.heard();
        let given = bytes - std::mem::take(&mut self.host.gives);
        assert!(given > 0 && self.conn.ack.wrapping_sub(before) as usize == given, "all in one turn");
        let frames = self.out.frames - frames;
        self.guest_sends(self.conn.seg(ACK, b""));
        self.turn(None);
        frames
    }

    /// A byte there and a byte back, whose acknowledgement the next one carries.
    fn round_trip(&mut self) {
        let frames = self.out.frames;
        self.guest_sends(self.conn.seg(ACK | PSH, b"?"));
        self.turn(None);
        self.host.gives = 1;
        self.turn(self.flow);
        self.heard();
        assert_eq!(self.out.frames - frames, 1, "an acknowledgement travels with its answer");
    }

    /// A connection of its own: a byte each way, ended by the guest first.
    fn connection(&mut self, n: usize) {
        let peer = self.conn.peer;
        let guest = at(self.conn.guest.ip(), 33_000 + (n % 5000) as u16);
        self.conn = Conn::new(&mut self.world, guest, peer);
        self.conn.window = 0xffff;
        let closed = self.host.closed;
        self.guest_sends(Seg { options: syn_options(self.mss), ..self.conn.syn() });
        self.turn(None);
        self.flow = Some(self.accept());
        self.guest_sends(self.conn.seg(ACK, b""));
        self.turn(None);
        self.round_trip();
        self.guest_sends(self.conn.seg(ACK | FIN, b""));
        self.turn(None);
        self.host.ends = true;
        self.turn(self.flow);
        assert!(self.heard() & FIN != 0, "the host's end has come");
        self.guest_sends(self.conn.seg(ACK, b""));
        self.turn(None);
        assert_eq!(self.host.closed - closed, 1, "the connection is over");
    }
}

fn syn_options(mss: usize) -> Vec<u8> {
    let mut options = sim::SYN_OPTIONS.to_vec();
    options[2..4].copy_from_slice(&(mss as u16).to_be_bytes());
    options
}

/// Leaves checksum and cutting to whoever gets the frame.
fn offload(frame: &mut [u8], segment: &Seg, mss: usize) {
    let (src, dst) = (segment.src.ip(), segment.dst.ip());
    let tcp = IP_OFFSET + if src.is_ipv6() { 40 } else { 20 };
    let sum = csum::partial(src, dst, TCP, frame.len() - tcp);
    frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
    let large = segment.payload.len() > mss;
    let headers = (tcp + 20 + segment.options.len()) as u16;
    let kind = if src.is_ipv6() { Gso::Tcp6 } else { Gso::Tcp4 };
    VnetHdr {
        needs_csum: true,
        csum_start: tcp as u16 - 10,
        csum_offset: 16,
        gso: if large { kind } else { Gso::None },
        gso_size: if large { mss as u16 } else { 0 },
        hdr_len: if large { headers - 10 } else { 0 },
        ..VnetHdr::default()
    }
    .emit(frame);
}

/// Runs a case: warm-up and rounds, with callgrind's counters between; `round` says how many units it did. `rule` is
/// what contrib/bench/frames holds the case to beside the recorded figures.
fn case(name: &str, unit: &str, rule: &str, mut round: impl FnMut(usize) -> usize) {
    for n in 0..WARM {
        round(n);
    }
    boundary(name);
    let units: usize = (WARM..WARM + ROUNDS).map(round).sum();
    boundary(name);
    println!("{name}\t{unit}\t{units}\t{rule}");
}

const NO_ALLOCATION: &str = "no allocation";

fn bulk(label: &str, family: Family, mtu: u16, link: Link, idle: usize, rule: &str) {
    let mut bed = Bed::new(family, mtu, link, idle);
    let size = if link == Link::Plain { bed.mss } else { 65_535 - 20 - 60 };
    let bytes = vec![0x5a; size.min(65_520 - family.header() - 20)];
    case(&format!("bulk from guest {label}"), "frame", rule, |_| {
        bed.bulk_from_guest(&bytes);
        1
    });
    let rule = rule.replace("from guest", "to guest");
    case(&format!("bulk to guest {label}"), "frame", &rule, |_| bed.bulk_to_guest(bytes.len()));
}

fn round_trip(label: &str, family: Family, idle: usize, rule: &str) {
    let mut bed = Bed::new(family, 1500, Link::Offloading, idle);
    case(&format!("round trip {label}"), "round trip", rule, |_| {
        bed.round_trip();
        1
    });
}

/// Datagrams of 1200 bytes: from the guest, then to it; `several` of them in one frame.
fn datagrams(label: &str, idle: usize, several: usize, rule: &str) {
    let limits = Limits { udp: UdpLimits { max_mappings: idle + 64, ..UdpLimits::default() }, ..Limits::default() };
    let mut world = World::with(config(1500, all_offloads()), limits);
    let (mut out, mut host) = (Sink::new(), Host::default());
    let far = at(Family::V4.far(), 4433);
    let send = |world: &mut World, out: &mut Sink, host: &mut Host, port: u16| {
        let guest = at(Family::V4.guest(), port);
        let body = sim::udp_body(guest, far, &vec![0x5a; 1200 * several]);
        let mut frame = sim::Ip::new(guest.ip(), far.ip(), UDP, body).frame();
        let sum = csum::partial(guest.ip(), far.ip(), UDP, 8 + 1200 * several);
        frame[IP_OFFSET + 26..IP_OFFSET + 28].copy_from_slice(&sum.to_be_bytes());
        let (gso, gso_size, hdr_len) = if several > 1 { (Gso::Udp, 1200, 42) } else { (Gso::None, 0, 0) };
        let hdr =
            VnetHdr { needs_csum: true, csum_start: 34, csum_offset: 6, gso, gso_size, hdr_len, data_valid: false };
        hdr.emit(&mut frame);
        let before = out.datagrams;
        counted::frame(&mut world.stack, world.now, &mut frame, out);
        counted::settle(&mut world.stack, world.now, host, None, out);
        assert_eq!(out.datagrams, before + 1, "sent");
        world.now += STEP;
    };
    for n in 0..idle {
        send(&mut world, &mut out, &mut host, 2000 + n as u16);
    }
    case(&format!("udp from guest {label}"), "frame", rule, |_| {
        send(&mut world, &mut out, &mut host, 1000);
        1
    });
    let id = out.mapping.expect("a mapping");
    let payload = vec![0x5a; 1200 * several];
    let segment = (several > 1).then_some(1200);
    case(&format!("udp to guest {label}"), "frame", &rule.replace("from guest", "to guest"), |_| {
        let before = out.frames;
        counted::datagram(&mut world.stack, world.now, (id, far), &payload, segment, &mut out);
        counted::settle(&mut world.stack, world.now, &mut host, None, &mut out);
        assert_eq!(out.frames, before + 1, "sent");
        world.now += STEP;
        1
    });
}

fn member_config(member: u8, mtu: u16, offloads: Offloads) -> EndpointConfig {
    let mut config = config(mtu, offloads);
    config.guest_mac = Mac([2, 0x42, 10, 0, 2, member]);
    if let Some(plan) = &mut config.v4 {
        (plan.guest, plan.dns) = ([10, 0, 2, member].into(), plan.gateway);
    }
    config.v6 = None;
    config
}

/// From one member to another, whose TAP may be without offloads.
fn members(label: &str, mtu: u16, to: Link, bytes: usize, rule: &str) {
    let now = Instant::from_secs(1000);
    let offloads = if to == Link::Plain { Offloads::default() } else { all_offloads() };
    let (one, other) = (member_config(10, mtu, all_offloads()), member_config(11, mtu, offloads));
    let (mut out, mut taps) = (Sink::new(), Sink::new());
    let mut switch = Switch::new(true, SwitchLimits::default(), 7);
    for (n, config) in [(0, &one), (1, &other)] {
        switch.attach(n, config, Membership::default(), &mut taps).expect("there is room");
    }
    let mut stack = Stack::new(one, Limits::default(), 1, now);
    let segment = Seg {
        src: "10.0.2.10:40000".parse().expect("address"),
        dst: "10.0.2.11:80".parse().expect("address"),
        flags: ACK | PSH,
        seq: 1,
        ack: 1,
        window: 0xffff,
        options: Vec::new(),
        payload: vec![0x5a; bytes],
        gso_size: None,
    };
    let mut template = segment.frame();
    offload(&mut template, &segment, usize::from(mtu) - 40);
    template[10..16].copy_from_slice(&[2, 0x42, 10, 0, 2, 11]);
    template[16..22].copy_from_slice(&[2, 0x42, 10, 0, 2, 10]);
    case(&format!("member to member {label}"), "frame", rule, |_| {
        let mut frame = template.clone();
        let before = taps.frames;
        counted::switched(&mut switch, &mut stack, now, &mut frame, (&mut out, &mut taps));
        assert!(taps.frames > before, "passed on");
        1
    });
}

fn main() {
    let nothing = NO_ALLOCATION;
    bulk("v4 65520", Family::V4, 65_520, Link::Offloading, 0, nothing);
    bulk("v6 65520", Family::V6, 65_520, Link::Offloading, 0, nothing);
    bulk("v4 1500", Family::V4, 1500, Link::Offloading, 0, nothing);
    bulk("v4 1500 without offloads", Family::V4, 1500, Link::Plain, 0, nothing);
    round_trip("v4", Family::V4, 0, nothing);
    round_trip("v6", Family::V6, 0, nothing);
    for (label, family) in [("v4", Family::V4), ("v6", Family::V6)] {
        let mut bed = Bed::new(family, 1500, Link::Offloading, 0);
        case(&format!("connect+byte+close {label}"), "connection", "", |n| {
            bed.connection(n);
            1
        });
    }
    datagrams("v4 1200", 0, 1, nothing);
    datagrams("v4 1200 x20", 0, 20, nothing);
    members("65520", 65_520, Link::Offloading, 65_480, nothing);
    members("1500", 1500, Link::Offloading, 65_000, nothing);
    members("1500, one byte", 1500, Link::Offloading, 1, nothing);
    members("1500, to a TAP without offloads", 1500, Link::Plain, 65_000, nothing);
    // Nothing is O(flows): beside many that rest, at most 1.1 times what it costs alone.
    let beside = |what: &str| format!("{nothing}; 1.1 × {what}");
    bulk(
        "v4 65520 beside 10000 idle flows",
        Family::V4,
        65_520,
        Link::Offloading,
        IDLE,
        &beside("bulk from guest v4 65520"),
    );
    round_trip("v4 beside 10000 idle flows", Family::V4, IDLE, &beside("round trip v4"));
    datagrams("v4 1200 beside 10000 idle mappings", IDLE, 1, &beside("udp from guest v4 1200"));
    {
        let mut bed = Bed::new(Family::V4, 1500, Link::Offloading, IDLE);
        let rule = "1.1 × connect+byte+close v4";
        case("connect+byte+close v4 beside 10000 idle flows", "connection", rule, |n| {
            bed.connection(n);
            1
        });
    }
}
