//! One endpoint's stack under anything that a guest, the host's sockets, the control socket and time may do.
//!
//! Input: a byte of options (below), then acts: a byte (modulo 20), and what the act takes. The world around the stack is
//! that of the tests (`tests/stack/sim.rs`), which takes each frame for the guest apart and checks it.
//!
//! | act | what happens |
//! |---|---|
//! | 0, 1 | the guest sends a frame: flags (1; bit 0: from its own MAC to ours, bit 1: with a vnet header "sums are good" in front), length (2), bytes |
//! | 2, 3, 4 | … a TCP segment of a connection: number (1), flags (1), sequence number from the next expected (1, signed), acknowledgement from the last seen (1, signed), window (2), bytes of options (1, taken), bytes of data (2, not taken) |
//! | 5 | … a datagram: from and to (1), ports (1), bytes of data (2, not taken), as a super-frame of datagrams of this size (2, 0: not) |
//! | 6 | … an echo request: to (1), ident (1), bytes (1) |
//! | 7 | … a fragment: ident and family (1), offset / 8 (1), more (1), protocol (1), length (2), bytes |
//! | 8 | the host answers a connect: how (1) |
//! | 9 | a host socket has data: which (1), bytes (2) |
//! | 10 | … ends, breaks, takes no more, or takes again: which (1), what (1) |
//! | 11 | 2^n ms pass: n (1) |
//! | 12 | a datagram from the host: mapping (1), sender (1), bytes (2), segment (2) |
//! | 13 | an error of a host socket: mapping or session (1), kind (1…), offender (1) |
//! | 14 | an echo reply: session (1), sequence (1), TTL (1) |
//! | 15 | an answer to a DNS query: bytes (2) |
//! | 16 | a published port accepts: listener and client (1) |
//! | 17 | … gets a datagram: listener and client (1), bytes (2), segment (2) |
//! | 18 | a published port goes, a flow is killed, policy or the host's addresses change, flows are listed: which (1), what (1) |
//! | 19 | the link takes nothing, or again |
//!
//! Options: bit 0: slirp4netns's segment; 1: no offloads; 2: MTU 1500; 3: an internal network; 4: without IPv6; 5: the host's
//! loopback is open; 6: large limits; 7: events are listened to.
//!
//! What must hold beside not panicking: every frame for the guest is well formed (sums, lengths, MTU, offloads); the limits;
//! what was counted adds up; nothing wants to be served without end; in the end, when every peer is gone and time has
//! passed, nothing is left.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use smoltcp::time::Duration;
use tapway::network::config::Offloads;
use tapway::stack::arena::Id;
use tapway::stack::census::{Cursor, FlowFilter, FlowId, Kind};
use tapway::stack::flow::GuestPort;
use tapway::stack::guests::GuestLimits;
use tapway::stack::policy::NetworkRules;
use tapway::stack::tcp::{ConnectFailure, TcpLimits};
use tapway::stack::udp::{UdpLimits, UdpVia};
use tapway::stack::verdict::DropReason;
use tapway::stack::{HostError, Limits, reassembly};
use tapway::wire::csum;
use tapway::wire::vnet::{Gso, VnetHdr};
use tapway_fuzz::{Input, icmp_error};

#[allow(dead_code)]
#[path = "../../tests/stack/sim.rs"]
mod sim;

use sim::{GATEWAY_MAC, GUEST_MAC, Ip, Seg, UDP, World, at, ip, udp_body};

/// Most bytes of one act, so that an input is a story and not a weight.
const BYTES: usize = 70_000;

struct Story {
    world: World,
    limits: Limits,
    slirp: bool,
    /// The guest's view of its connections: next sequence number, next expected.
    conns: [(u32, u32); 8],
    mappings: Vec<Id>,
    sessions: Vec<Id>,
    questions: Vec<(SocketAddr, SocketAddr)>,
    injected: u64,
    listened: Vec<FlowId>,
}

fn guest(v6: bool, who: u8) -> IpAddr {
    match (v6, who & 3) {
        (false, 0) => ip("10.0.2.100"),
        (true, 0) => ip("fd00:1:2:3::64"),
        (true, 1) => ip("fe80::64"),
        (false, who) => IpAddr::from([10, 0, 2, 100 + who]),
        (true, who) => ip(if who == 2 { "fd00:1:2:3::65" } else { "::" }),
    }
}

fn peer(v6: bool, which: u8) -> IpAddr {
    let all: [[&str; 2]; 12] = [
        ["192.0.2.7", "2001:db8::7"],
        ["10.0.2.2", "fd00:1:2:3::2"],
        ["10.0.2.3", "fd00:1:2:3::3"],
        ["127.0.0.1", "::1"],
        ["10.0.2.255", "ff02::1"],
        ["255.255.255.255", "ff02::1:2"],
        ["224.0.0.251", "ff02::fb"],
        ["169.254.1.1", "fe80::9"],
        ["127.0.0.11", "fe80::2"],
        ["10.0.2.77", "fd00:1:2:3::77"],
        ["0.0.0.0", "::"],
        ["192.0.2.8", "::ffff:192.0.2.8"],
    ];
    ip(all[usize::from(which) % all.len()][usize::from(v6)])
}

impl Story {
    fn connection(&self, number: u8) -> (SocketAddr, SocketAddr) {
        let v6 = number & 4 != 0;
        let port = [80, 53, 443, 8080][usize::from(number >> 3 & 3)];
        let to = if number & 32 == 0 { 0 } else { number >> 5 };
        (at(guest(v6, 0), 4000 + u16::from(number & 3)), at(peer(v6, to), port))
    }

    fn inject(&mut self, frame: Vec<u8>) {
        self.injected += 1;
        self.world.inject(frame);
    }

    fn inject_ip(&mut self, packet: &Ip) {
        let mut frame = packet.frame();
        // "Sums are good", so that what is behind them is reached without them.
        frame[0] = 2;
        self.inject(frame);
    }

    /// What came out, and whether it may.
    fn look(&mut self) {
        let config = self.world.stack.config().clone();
        let frames: Vec<Vec<u8>> = self.world.out.to_guest.drain(..).collect();
        for frame in frames {
            if let sim::Frame::Ip(packet) = sim::parse(&frame, &config)
                && packet.protocol == sim::TCP
                && packet.fragment.is_none()
            {
                let segment = Seg::of(&packet);
                for number in 0..=255 {
                    let (guest, peer) = self.connection(number);
                    if (guest, peer) == (segment.dst, segment.src) {
                        self.conns[usize::from(number & 7)].1 = segment.end();
                    }
                }
            }
        }
        for sent in self.world.out.udp.drain(..) {
            assert!(sent.payload.len() <= 65_535);
            let count = sent.segment.map_or(1, |size| sent.payload.len().div_ceil(size.into()));
            assert!((1..=128).contains(&count), "{count} datagrams at once");
            if let UdpVia::Mapping { id } = sent.via
                && !self.mappings.contains(&id)
            {
                self.mappings.push(id);
            }
        }
        for sent in self.world.out.ping.drain(..) {
            if !self.sessions.contains(&sent.id) {
                self.sessions.push(sent.id);
            }
        }
        for (guest, server, _) in self.world.out.dns.drain(..) {
            self.questions.push((guest, server));
        }
        let keep = |list: &mut Vec<Id>| list.drain(..list.len().saturating_sub(16)).for_each(drop);
        keep(&mut self.mappings);
        keep(&mut self.sessions);
        self.questions.drain(..self.questions.len().saturating_sub(16));

        let stack = &mut self.world.stack;
        while let Some(id) = stack.poll_udp_closed() {
            self.mappings.retain(|known| *known != id);
        }
        while let Some(id) = stack.poll_ping_closed() {
            self.sessions.retain(|known| *known != id);
        }
        while stack.poll_flow_event().is_some() {}
        let (tcp, mappings, pairs, pings) = stack.flows();
        let Limits { tcp: tcp_limits, udp, ping_sessions, reassembly: _, guests, .. } = self.limits;
        assert!(tcp <= tcp_limits.max_flows, "{tcp} flows");
        assert!(mappings <= udp.max_mappings && pairs <= udp.max_pairs && pings <= ping_sessions);
        if let Some((known, asked, held)) = stack.guests() {
            assert!(known <= 2 * guests.known && asked <= guests.asked && held <= asked * guests.held_bytes);
        }
        // Host sockets and connects are flows, and each is one.
        assert!(self.world.host.len() + self.world.connects.len() <= tcp + 1, "sockets without a flow");
        let numbers = stack.numbers();
        assert_eq!(numbers.frames_from_guest, self.injected);
        assert_eq!(numbers.live, [tcp as u64, mappings as u64, pairs as u64, pings as u64]);
        let dropped: u64 = DropReason::ALL.iter().map(|&reason| stack.drops().get(reason)).sum();
        // A frame may lead to one refusal, an act of the host's to few; held frames are dropped in batches.
        assert!(dropped <= 4096 * (self.injected + 512), "{dropped} drops of {} frames", self.injected);
        for (sums, kinds) in numbers.sums.iter().zip([&numbers.live[..1], &numbers.live[1..3], &numbers.live[3..]]) {
            assert!(sums.opened >= kinds.iter().sum::<u64>(), "more are open than were opened: {sums:?}");
        }
    }

    fn some_flow(&self, which: u8) -> Option<Id> {
        let mut flows: Vec<Id> = self.world.host.keys().copied().collect();
        flows.sort_unstable_by_key(|flow| format!("{flow:?}"));
        (!flows.is_empty()).then(|| flows[usize::from(which) % flows.len()])
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let now = self.world.now;
        match input.byte() % 20 {
            0 | 1 => {
                let (flags, bytes) = (input.byte(), input.block());
                let mut frame = if flags & 2 == 0 { Vec::new() } else { vec![2, 0, 0, 0, 0, 0, 0, 0, 0, 0] };
                frame.extend(bytes);
                if flags & 1 != 0 && frame.len() >= 22 {
                    frame[10..16].copy_from_slice(&GATEWAY_MAC);
                    frame[16..22].copy_from_slice(&GUEST_MAC);
                }
                self.inject(frame);
            }
            2..=4 => {
                let number = input.byte();
                let flags = input.byte();
                let (from_seq, from_ack) = (input.byte() as i8, input.byte() as i8);
                let window = input.word();
                let options = usize::from(input.byte() & 0x1f);
                let mut options = input.take(options).to_vec();
                options.resize(options.len().next_multiple_of(4).min(40), 0);
                let length = usize::from(input.word());
                let (src, dst) = self.connection(number);
                let slot = usize::from(number & 7);
                let (next, expected) = self.conns[slot];
                // Small ones are small, large ones reach beyond any window.
                let shift = |by: i8| if by.unsigned_abs() < 64 { i32::from(by) } else { i32::from(by) << 20 };
                let header = 40 + 20 + options.len();
                let segment = Seg {
                    src,
                    dst,
                    flags,
                    seq: next.wrapping_add_signed(shift(from_seq)),
                    ack: expected.wrapping_add_signed(shift(from_ack)),
                    window,
                    options,
                    payload: vec![number; length.min(65_535 - header)],
                    gso_size: None,
                };
                if from_seq == 0 {
                    self.conns[slot].0 = segment.end();
                }
                self.inject_ip(&segment.packet());
            }
            5 => {
                let (ends, ports, length) = (input.byte(), input.byte(), usize::from(input.word()));
                let size = input.word();
                let v6 = ends & 1 == 1;
                let all = [53, 67, 547, 123, 5353, 40_000, 7, 68];
                let src = at(guest(v6, ends >> 1 & if self.slirp { 3 } else { 0 }), 6000 + u16::from(ports & 7));
                let src = if ports & 128 == 0 { src } else { at(src.ip(), [546, 68][usize::from(ports >> 6 & 1)]) };
                let dst = at(peer(v6, ends >> 3), all[usize::from(ports >> 3 & 7)]);
                let payload = vec![1; length.min(65_000)];
                let packet = Ip::new(src.ip(), dst.ip(), UDP, udp_body(src, dst, &payload));
                let mut frame = packet.frame();
                if size == 0 {
                    frame[0] = 2;
                } else {
                    let at = if v6 { 54 } else { 34 };
                    VnetHdr {
                        needs_csum: true,
                        gso: Gso::Udp,
                        gso_size: size,
                        csum_start: at,
                        csum_offset: 6,
                        ..VnetHdr::default()
                    }
                    .emit(&mut frame);
                }
                self.inject(frame);
            }
            6 => {
                let (to, ident, length) = (input.byte(), input.byte(), input.byte());
                let v6 = to & 1 == 1;
                let (src, dst) = (guest(v6, 0), peer(v6, to >> 1));
                let mut body = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0, ident, 0, length];
                body.extend(vec![7; length.into()]);
                let sum = if v6 { csum::full(src, dst, 58, &body) } else { csum::plain(&body) };
                body[2..4].copy_from_slice(&sum.to_be_bytes());
                let mut packet = Ip::new(src, dst, if v6 { 58 } else { 1 }, body);
                packet.ttl = 1 + (ident & 3) * 64;
                self.inject_ip(&packet);
            }
            7 => {
                let (ident, offset, more) = (input.byte(), usize::from(input.byte()), input.bit());
                let protocol = input.byte();
                let body = input.block().to_vec();
                let v6 = ident & 1 == 1;
                let mut packet = Ip::new(guest(v6, 0), peer(v6, ident >> 4), protocol, body);
                packet.fragment = Some((ident.into(), offset * 8, more));
                self.inject_ip(&packet);
            }
            8 => {
                let how = input.byte();
                if self.world.connects.is_empty() {
                    return;
                }
                let last = self.world.connects.len() - 1;
                self.world.connects.rotate_left(usize::from(how >> 4) % (last + 1));
                match how & 7 {
                    0 => drop(self.world.fail(ConnectFailure::Refused)),
                    1 => drop(self.world.fail(ConnectFailure::Unreachable(icmp_error(input)))),
                    2 => drop(self.world.fail(ConnectFailure::Silent)),
                    _ => drop(self.world.accept()),
                }
            }
            9 => {
                let (which, length) = (input.byte(), usize::from(input.word()));
                if let Some(flow) = self.some_flow(which) {
                    // Enough to make it bulky.
                    let length = if length > 60_000 { 200_000 } else { length };
                    self.world.host_sends(flow, &vec![which; length]);
                }
            }
            10 => {
                let (which, what) = (input.byte(), input.byte());
                if let Some(flow) = self.some_flow(which) {
                    match what & 3 {
                        0 => self.world.host(flow).ends = true,
                        1 => self.world.host(flow).broken = true,
                        2 => self.world.host(flow).takes = usize::from(what),
                        _ => self.world.host(flow).takes = usize::MAX,
                    }
                    self.world.poke(flow);
                }
            }
            11 => self.world.pass(Duration::from_millis(1 << (input.byte() % 18))),
            12 => {
                let (which, sender) = (input.byte(), input.byte());
                let (length, segment) = (usize::from(input.word()), input.word());
                let Some(&id) = self.mappings.get(usize::from(which) % self.mappings.len().max(1)) else { return };
                let source = at(peer(sender & 1 == 1, sender >> 4), [53, 123, 5353, 9][usize::from(sender >> 1 & 3)]);
                // As the host's kernel gives them: more than one segment, or none is named.
                let payload = vec![3; length.min(65_507)];
                let segment = Some(segment).filter(|&size| size > 0 && usize::from(size) < payload.len());
                let World { stack, out, .. } = &mut self.world;
                stack.handle_udp_from_host(now, id, source, &payload, segment, out);
            }
            13 => {
                let which = input.byte();
                let kind = icmp_error(input);
                let offender = input.byte();
                let v6 = which & 1 == 1;
                let target = at(peer(v6, which >> 4), [53, 123, 5353, 9][usize::from(which >> 1 & 3)]);
                let payload = vec![5; usize::from(offender) * 8];
                let offender = (offender != 0).then(|| peer(v6 ^ (offender == 1), offender));
                let error = HostError { kind, target, offender, payload: &payload };
                let World { stack, out, .. } = &mut self.world;
                for &id in self.mappings.last().iter().copied() {
                    stack.handle_udp_error(id, &error, out);
                }
                for &id in self.sessions.last().iter().copied() {
                    stack.handle_ping_error(id, which.into(), &error, out);
                }
            }
            14 => {
                let (which, seq, ttl) = (input.byte(), input.byte(), input.byte());
                let Some(&id) = self.sessions.get(usize::from(which >> 4) % self.sessions.len().max(1)) else { return };
                let source = peer(which & 1 == 1, which >> 1 & 7);
                let World { stack, out, .. } = &mut self.world;
                // A session's socket has one family.
                if stack.config().v6.is_some() || source.is_ipv4() {
                    stack.handle_ping_from_host(id, source, (seq.into(), ttl), &vec![6; seq.into()], out);
                }
            }
            15 => {
                let length = usize::from(input.word());
                if let Some((guest, server)) = self.questions.pop() {
                    let World { stack, out, .. } = &mut self.world;
                    stack.handle_dns_answer(guest, server, &vec![4; length.min(65_000)], out);
                }
            }
            16 | 17 => {
                let tcp = input.0.len() & 1 == 0;
                let who = input.byte();
                let v6 = who & 1 == 1;
                let listener = usize::from(who >> 1 & 3);
                let addr = (who & 8 != 0).then(|| guest(v6, who >> 1));
                let to = (listener, GuestPort { addr, port: 80 + u16::from(who & 6) });
                let client = at(peer(v6, who >> 4), 5000 + u16::from(who & 7));
                if tcp {
                    let World { stack, host, .. } = &mut self.world;
                    if let Ok(flow) = stack.handle_tcp_accepted(now, to, client) {
                        host.insert(flow, sim::HostSocket::default());
                    }
                    self.world.settle();
                } else {
                    let (length, segment) = (usize::from(input.word()), input.word());
                    let payload = vec![8; length.min(65_507)];
                    let segment = Some(segment).filter(|&size| size > 0 && usize::from(size) < payload.len());
                    let local = peer(v6, who >> 5);
                    let World { stack, out, .. } = &mut self.world;
                    stack.handle_udp_published(now, to, (client, local), &payload, segment, out);
                }
            }
            18 => self.control(input),
            _ => {
                let World { stack, .. } = &mut self.world;
                stack.listen_to_flows(input.bit());
            }
        }
        self.world.settle();
    }

    fn control(&mut self, input: &mut Input<'_>) {
        let (which, what) = (input.byte(), input.byte());
        let now = self.world.now;
        match which % 6 {
            0 => self.world.stack.handle_listener_gone(usize::from(what & 3)),
            1 => {
                // Each once, in pages as small as can be.
                let mut listed: Vec<FlowId> = Vec::new();
                let (mut at, mut page) = (Some(Cursor::START), Vec::new());
                for turn in 0.. {
                    assert!(turn < 100_000, "a list without end");
                    let Some(cursor) = at else { break };
                    at = self.world.stack.flows_page(cursor, usize::from(what), &FlowFilter::default(), &mut page);
                    listed.extend(page.drain(..).map(|flow| flow.id));
                }
                let (tcp, mappings, pairs, pings) = self.world.stack.flows();
                assert_eq!(listed.len(), tcp + mappings + pairs + pings, "what is listed is not what there is");
                self.listened = listed;
            }
            2 => {
                if let Some(&flow) = self.listened.get(usize::from(what) % self.listened.len().max(1)) {
                    let World { stack, out, .. } = &mut self.world;
                    stack.kill_flow(flow, now, out);
                }
            }
            3 => {
                let rules = NetworkRules { internal: what & 1 == 1, masquerade: what & 2 == 0 };
                self.world.stack.set_network(rules);
            }
            4 => {
                let v4 = (what & 1 == 1).then_some([192, 0, 2, 1].into());
                let v6 = (what & 2 == 2).then(|| "2001:db8::1".parse().expect("it is an address"));
                self.world.stack.set_host_addresses(v4, v6);
            }
            _ => {
                // An id of nobody's, or of long ago.
                let kind = Kind::ALL[usize::from(what) % Kind::ALL.len()];
                if let Ok(id) = format!("{}-{}", kind.name(), what).parse::<FlowId>() {
                    let World { stack, out, .. } = &mut self.world;
                    stack.kill_flow(id, now, out);
                }
            }
        }
    }

    /// Everybody is gone, and time passes.
    fn end(mut self) {
        for turn in 0.. {
            assert!(turn < 1000, "flows without end");
            while !self.world.connects.is_empty() {
                self.world.fail(ConnectFailure::Silent);
            }
            let flows: Vec<Id> = self.world.host.keys().copied().collect();
            if flows.is_empty() {
                break;
            }
            for flow in flows {
                if let Some(socket) = self.world.host.get_mut(&flow) {
                    socket.broken = true;
                    self.world.poke(flow);
                }
            }
            self.world.pass(Duration::from_secs(10));
            self.look();
        }
        self.world.pass(Duration::from_secs(1000));
        self.look();
        while self.world.stack.poll_udp_closed().is_some() || self.world.stack.poll_ping_closed().is_some() {}
        assert_eq!(self.world.stack.flows(), (0, 0, 0, 0), "something is left");
        for sums in self.world.stack.numbers().sums {
            assert_eq!(sums.closed, sums.opened, "{sums:?}");
        }
        assert!(self.world.stack.guests().is_none_or(|(_, asked, held)| (asked, held) == (0, 0)));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let options = input.byte();
    let offloads =
        if options & 2 == 0 { sim::all_offloads() } else { Offloads { vnet_hdr: true, ..Offloads::default() } };
    let mtu = if options & 4 == 0 { 65_520 } else { 1500 };
    let slirp = options & 1 == 1;
    let mut config = if slirp { sim::slirp_config(mtu, offloads) } else { sim::config(mtu, offloads) };
    if options & 16 != 0 {
        config.v6 = None;
    }
    config.allow_host_loopback |= options & 32 != 0;
    let limits = if options & 64 != 0 {
        Limits::default()
    } else {
        Limits {
            tcp: TcpLimits { max_flows: 6, max_opening: 3, large_rings: 1, ..TcpLimits::default() },
            udp: UdpLimits { max_mappings: 3, max_pairs: 3 },
            ping_sessions: 2,
            reassembly: reassembly::Limits { datagrams: 4, bytes: 100_000, ..reassembly::Limits::default() },
            guests: GuestLimits { known: 4, asked: 2, held_frames: 4, held_bytes: 100_000 },
            ..Limits::default()
        }
    };
    let mut story = Story {
        world: World::with(config, limits),
        limits,
        slirp,
        conns: [(1000, 0); 8],
        mappings: Vec::new(),
        sessions: Vec::new(),
        questions: Vec::new(),
        injected: 0,
        listened: Vec::new(),
    };
    story.world.stack.listen_to_flows(options & 128 != 0);
    if options & 8 != 0 {
        story.world.stack.set_network(NetworkRules { internal: true, masquerade: true });
    }
    let mut weight = 0;
    for _ in 0..120 {
        if input.is_empty() || weight > BYTES {
            break;
        }
        let before = input.0.len();
        story.act(&mut input);
        weight += before - input.0.len();
        story.look();
    }
    story.end();
});
