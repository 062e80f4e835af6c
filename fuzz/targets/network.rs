//! A shared network under anything that its members send, while members come and go, faults are set, and time passes:
//! switch, faults on purpose and the gateway's stack of each, joined as the engine joins them.
//!
//! Input: a byte (bit 0: members are kept apart; bit 1: internal), then acts: a byte (modulo 12), and what the act takes:
//!
//! | act | what happens |
//! |---|---|
//! | 0, 1 | a member sends a frame: who (1), to whom (1), flags (1; bit 0: from its own MAC, bit 1: to the other's MAC, bit 2: with an empty vnet header in front), length (2), bytes |
//! | 2–5 | … a super-frame: who (1), to whom (1), kind (1), size of pieces (2), where the sum is: start and offset (1 each, signed, from where they belong), bytes of data (2, not taken), bytes over the transport header (1, taken) |
//! | 6 | … a report of a group or neighbour discovery with good sums: who (1), kind (1), length (2), bytes |
//! | 7 | an endpoint comes: number (1), offloads and MTU (1), whose MAC and addresses it has (1) |
//! | 8 | a member goes: number (1) |
//! | 9 | 2^n ms pass: n (1) |
//! | 10 | a fault is set or cleared: who (1), what (1), how much (1) |
//! | 11 | the network's rules change (1) |
//!
//! What must hold: no frame reaches whom it is not for, in a form that his TAP cannot take, above his MTU, or from a MAC
//! that its sender does not have; one frame makes boundedly many; what is held is bounded and comes out in order; in the
//! end the switch is empty.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use smoltcp::time::{Duration, Instant};
use tapway::network::config::{EndpointConfig, Link, Mac, Membership, Offloads};
use tapway::network::fault::{Change, Direction, Limits as RuleLimits, Rate, Rules, Wanted};
use tapway::stack::fault::{Faults, Limits as FaultLimits, Verdict};
use tapway::stack::policy::NetworkRules;
use tapway::stack::switch::{GroupLimits, Members, Switch, SwitchLimits};
use tapway::stack::tcp::TcpLimits;
use tapway::stack::udp::UdpLimits;
use tapway::stack::verdict::{DropCounters, DropReason};
use tapway::stack::{Limits, Output, PingToHost, Stack, UdpToHost, guests, reassembly};
use tapway::wire::vnet::{Gso, IP_OFFSET, MAX_FRAME, VNET_HDR_LEN, VnetHdr};
use tapway::wire::{csum, segment};
use tapway_fuzz::Input;

#[allow(dead_code)]
#[path = "../../tests/stack/sim.rs"]
mod sim;

use sim::GATEWAY_MAC;

const PLACES: u8 = 5;
const HELD: FaultLimits = FaultLimits { frames: 16, bytes: 200_000, line: 100_000 };

fn mac(member: u8) -> [u8; 6] {
    [2, 0x42, 10, 0, 2, 10 + member]
}

fn v4(member: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 10 + member)
}

fn v6(member: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0x10 + u16::from(member))
}

/// The TAPs, as the switch writes to them. Who is there is known, so that each frame can be checked.
#[derive(Default)]
struct Taps {
    configs: Vec<Option<EndpointConfig>>,
    /// Who has sent what is being handled; None: the switch itself speaks.
    sender: Option<u16>,
    written: usize,
    /// Members that may be reached, where they are kept apart.
    icc: bool,
}

impl Members for Taps {
    fn to_member(&mut self, member: u16, frame: &[u8]) {
        self.written += 1;
        assert!((IP_OFFSET..=MAX_FRAME).contains(&frame.len()), "a frame of {} bytes", frame.len());
        assert_ne!(self.sender, Some(member), "a frame came back");
        let config = self.configs[usize::from(member)].as_ref().expect("a frame for nobody");
        let (to, from) = (&frame[10..16], &frame[16..22]);
        if to[0] & 1 == 0 {
            assert_eq!(to, config.guest_mac.0, "a frame for somebody else");
        }
        match self.sender.and_then(|sender| self.configs[usize::from(sender)].as_ref()) {
            Some(sender) => {
                assert_eq!(from, sender.guest_mac.0, "a frame of somebody else");
                assert!(self.icc || self.sender.is_some_and(|s| linked(s, member)), "they are kept apart");
            }
            // An announcement of a newcomer's address has his MAC.
            None => assert!(from[0] & 1 == 0),
        }
        let hdr = VnetHdr::parse(frame).expect("a vnet header");
        assert!(config.offloads.csum || !hdr.needs_csum, "a sum is left to a TAP that cannot");
        let length = frame.len() - IP_OFFSET;
        match hdr.gso {
            Gso::None => assert!(length <= usize::from(config.mtu), "{length} bytes above the MTU"),
            Gso::Tcp4 => assert!(config.offloads.tso4),
            Gso::Tcp6 => assert!(config.offloads.tso6),
            Gso::Udp => assert!(config.offloads.uso),
            Gso::Unknown(_) => panic!("a segmentation that nobody takes"),
        }
        if hdr.gso != Gso::None {
            let largest = segment::largest(frame, &hdr).expect("a super-frame is one");
            assert!(largest <= config.mtu.into() || length <= config.mtu.into(), "pieces above the MTU");
        }
    }
}

/// Member 0 links to 1; names are those of the places.
fn linked(a: u16, b: u16) -> bool {
    (a.min(b), a.max(b)) == (0, 1)
}

/// What the gateway's stack of a member hands out.
#[derive(Default)]
struct Own {
    frames: Vec<Vec<u8>>,
    to_host: usize,
}

impl Output for Own {
    fn to_guest(&mut self, frame: &[u8]) -> bool {
        assert!(frame.len() <= MAX_FRAME);
        self.frames.push(frame.to_vec());
        true
    }
    fn udp_to_host(&mut self, send: &UdpToHost<'_>) {
        assert!(send.payload.len() <= 65_535);
        self.to_host += 1;
    }
    fn ping_to_host(&mut self, _: &PingToHost<'_>) {
        self.to_host += 1;
    }
    fn dns_query(&mut self, _: SocketAddr, _: SocketAddr, _: &[u8]) {}
}

struct Member {
    stack: Stack,
    own: Own,
    rules: Rules,
    faults: Faults,
    drops: DropCounters,
}

struct Net {
    switch: Switch,
    taps: Taps,
    members: Vec<Option<Member>>,
    rules: NetworkRules,
    now: Instant,
}

fn limits() -> Limits {
    Limits {
        tcp: TcpLimits { max_flows: 4, max_opening: 2, large_rings: 1, ..TcpLimits::default() },
        udp: UdpLimits { max_mappings: 3, max_pairs: 3 },
        ping_sessions: 2,
        reassembly: reassembly::Limits { datagrams: 4, bytes: 100_000, ..reassembly::Limits::default() },
        guests: guests::GuestLimits::default(),
        ..Limits::default()
    }
}

impl Net {
    fn attach(&mut self, member: u8, kind: u8, who: u8) {
        let at = usize::from(member);
        if self.members[at].is_some() {
            return;
        }
        let offloads = match kind & 7 {
            0..=2 => sim::all_offloads(),
            3 => Offloads { vnet_hdr: true, csum: true, ..Offloads::default() },
            4 => Offloads { uso: false, ..sim::all_offloads() },
            5 => Offloads { tso6: false, ..sim::all_offloads() },
            _ => Offloads { vnet_hdr: true, ..Offloads::default() },
        };
        let mut config = sim::config([1500, 65_520, 1280, 9000][usize::from(kind >> 3 & 3)], offloads);
        config.guest_mac = Mac(mac(who % PLACES));
        if let Some(plan) = &mut config.v4 {
            plan.guest = v4(who % PLACES);
        }
        if let Some(plan) = &mut config.v6 {
            plan.guest = v6(who % PLACES);
        }
        if kind & 32 != 0 {
            config.v6 = None;
        }
        if kind & 64 != 0 {
            config.v4 = None;
        }
        let links = if member == 0 { vec![Link { target: "M1".into(), alias: "other".into() }] } else { Vec::new() };
        let membership = Membership { names: vec![format!("m{member}")], links };
        let refused = self.switch.check(&config).is_err();
        self.taps.sender = None;
        self.taps.configs[at] = Some(config.clone());
        if self.switch.attach(member.into(), &config, membership, &mut self.taps).is_err() {
            assert!(refused, "what was checked is refused");
            self.taps.configs[at] = None;
            return;
        }
        assert!(!refused, "what is refused was let in");
        let mut stack = Stack::new(config, limits(), 77, self.now);
        stack.set_network(self.rules);
        let faults = Faults::new(HELD);
        let rules = Rules::of(Vec::new(), &RuleLimits::default());
        self.members[at] = Some(Member { stack, own: Own::default(), rules, faults, drops: DropCounters::default() });
    }

    fn detach(&mut self, member: u8) {
        self.switch.detach(member.into());
        self.members[usize::from(member)] = None;
        self.taps.configs[usize::from(member)] = None;
    }

    /// A frame off a member's TAP.
    fn from_tap(&mut self, member: u8, frame: &mut [u8]) {
        let now = self.now;
        let Some(one) = &mut self.members[usize::from(member)] else { return };
        if one.faults.handle_frame(now, Direction::FromGuest, frame, &mut one.drops) == Verdict::Pass {
            self.to_switch(member, frame);
        }
        self.check(member);
    }

    fn to_switch(&mut self, member: u8, frame: &mut [u8]) {
        let Self { switch, taps, members, now, .. } = self;
        let Some(one) = &mut members[usize::from(member)] else { return };
        (taps.sender, taps.written) = (Some(member.into()), 0);
        switch.handle_from_guest(*now, member.into(), frame, (&mut one.stack, &mut one.own), taps);
        let most = usize::from(PLACES) * segment::MAX_PIECES;
        assert!(taps.written <= most && one.own.frames.len() <= 2048, "{} frames of one", taps.written);
        while one.stack.poll_tcp_work().is_some() {}
        while let Some(flow) = one.stack.poll_dirty() {
            one.stack.finish_tcp(flow, *now, &mut one.own);
        }
        // What the stack says passes the faults, too.
        for frame in std::mem::take(&mut one.own.frames) {
            let _ = one.faults.handle_frame(*now, Direction::ToGuest, &frame, &mut one.drops);
        }
    }

    fn check(&mut self, member: u8) {
        let Some(one) = &self.members[usize::from(member)] else { return };
        for direction in [Direction::FromGuest, Direction::ToGuest] {
            let (frames, bytes) = one.faults.held(direction);
            assert!(frames <= HELD.frames && bytes <= HELD.bytes, "{frames} frames, {bytes} bytes are held");
            assert!(frames == 0 || one.faults.next_timeout().is_some(), "held for ever");
        }
        for counts in one.faults.counts().into_iter().flatten() {
            assert!(counts.delayed + counts.lost + counts.overflowed <= counts.packets, "{counts:?}");
        }
        let (tcp, mappings, pairs, pings) = one.stack.flows();
        assert!(tcp <= 4 && mappings <= 3 && pairs <= 3 && pings <= 2);
        assert!(self.switch.group_memberships() <= 8, "groups");
        assert_eq!(self.switch.len(), self.members.iter().flatten().count());
    }

    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        for turn in 0.. {
            assert!(turn < 20_000, "timers without end");
            let due =
                self.members.iter().flatten().flat_map(|one| [one.stack.next_timeout(), one.faults.next_timeout()]);
            let due = due.chain([self.switch.next_timeout()]).flatten().min();
            let Some(due) = due.filter(|&at| at <= end) else { break };
            self.now = self.now.max(due);
            self.timeouts();
        }
        self.now = end;
        self.timeouts();
    }

    fn timeouts(&mut self) {
        let now = self.now;
        self.taps.sender = None;
        self.switch.handle_timeout(now, &mut self.taps);
        for member in 0..PLACES {
            let Some(one) = &mut self.members[usize::from(member)] else { continue };
            one.stack.handle_timeout(now, &mut one.own);
            while one.stack.poll_udp_closed().is_some() || one.stack.poll_ping_closed().is_some() {}
            one.own.frames.clear();
            while one.faults.poll_due(now, Direction::ToGuest).is_some() {}
            while let Some(mut frame) = self.members[usize::from(member)]
                .as_mut()
                .and_then(|one| one.faults.poll_due(now, Direction::FromGuest))
            {
                self.to_switch(member, &mut frame);
            }
            self.check(member);
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 | 1 => {
                let (who, whom, flags) = (input.byte() % PLACES, input.byte(), input.byte());
                let bytes = input.block();
                let mut frame = if flags & 4 == 0 { Vec::new() } else { vec![0; VNET_HDR_LEN] };
                frame.extend(bytes);
                self.address(&mut frame, who, whom, flags);
                self.from_tap(who, &mut frame);
            }
            2..=5 => {
                let (who, whom, kind) = (input.byte() % PLACES, input.byte(), input.byte());
                let (size, start, offset) = (input.word(), input.byte() as i8, input.byte() as i8);
                let length = usize::from(input.word());
                let over = input.byte() & 31;
                let over = input.take(over.into());
                let mut frame = super_frame(who, whom, kind, length);
                let (v6, udp) = (kind & 1 == 1, kind & 2 == 2);
                let at = if v6 { 54 } else { 34 };
                let into = VNET_HDR_LEN + usize::from(at as u8);
                let room = over.len().min(frame.len() - into);
                frame[into..into + room].copy_from_slice(&over[..room]);
                let gso = match kind >> 2 & 7 {
                    0 => Gso::None,
                    1 => Gso::Tcp4,
                    2 => Gso::Tcp6,
                    3 => Gso::Udp,
                    4 => Gso::Unknown(kind),
                    _ if udp => Gso::Udp,
                    _ if v6 => Gso::Tcp6,
                    _ => Gso::Tcp4,
                };
                let hdr = VnetHdr {
                    needs_csum: kind & 128 == 0,
                    data_valid: false,
                    gso,
                    hdr_len: 0,
                    gso_size: size,
                    csum_start: (at as u16).wrapping_add_signed(start.into()),
                    csum_offset: (if udp { 6u16 } else { 16 }).wrapping_add_signed(offset.into()),
                };
                hdr.emit(&mut frame);
                self.address(&mut frame, who, whom, 3);
                self.from_tap(who, &mut frame);
            }
            6 => {
                let (who, kind) = (input.byte() % PLACES, input.byte());
                let body = input.block();
                let mut frame = report(who, kind, body);
                self.from_tap(who, &mut frame);
            }
            7 => {
                let (member, kind, who) = (input.byte() % PLACES, input.byte(), input.byte());
                // Mostly itself.
                self.attach(member, kind, if who & 1 == 0 { member } else { who >> 1 });
            }
            8 => self.detach(input.byte() % PLACES),
            9 => self.pass(Duration::from_millis(1 << (input.byte() % 18))),
            10 => {
                let (who, what, much) = (input.byte() % PLACES, input.byte(), input.byte());
                let now = self.now;
                let Some(one) = &mut self.members[usize::from(who)] else { return };
                let to = format!("10.0.2.{}", 10 + (what >> 5) % PLACES);
                let target = match Wanted::parse(&to) {
                    Ok(Wanted::Known(target)) if what & 16 != 0 => Some(target),
                    _ => None,
                };
                let direction = match what & 3 {
                    0 => Some(Direction::FromGuest),
                    1 => Some(Direction::ToGuest),
                    _ => None,
                };
                if what & 12 == 12 {
                    let wanted = target.map(|target| Wanted::parse(&target.text).expect("it was read"));
                    let _ = one.rules.clear(wanted.as_ref(), direction);
                } else {
                    let change = Change {
                        direction,
                        latency: (what & 4 == 0).then(|| format!("{much}ms").parse().expect("a span")),
                        jitter: (much & 1 == 1).then(|| format!("{much}us").parse().expect("a span")),
                        loss: (much & 2 == 2).then(|| format!("{}%", much % 100).parse().expect("a share")),
                        rate: (much & 4 == 4).then(|| Rate::parse(&format!("{much}kbit")).expect("a rate")),
                        reorder: (much & 8 == 8).then_some(much & 16 == 16),
                        dns_fail: None,
                        seed: Some(much.into()),
                    };
                    let _ = one.rules.set(target, &change, 9, &RuleLimits::default());
                }
                one.faults.set_rules(one.rules.all(), now);
                self.check(who);
            }
            _ => {
                let what = input.byte();
                self.rules = NetworkRules { internal: what & 1 == 1, masquerade: what & 2 == 0 };
                for one in self.members.iter_mut().flatten() {
                    one.stack.set_network(self.rules);
                }
            }
        }
    }

    fn address(&self, frame: &mut [u8], who: u8, whom: u8, flags: u8) {
        if frame.len() < 22 {
            return;
        }
        if flags & 1 != 0 {
            let config = self.taps.configs[usize::from(who)].as_ref();
            frame[16..22].copy_from_slice(&config.map_or(mac(who), |config| config.guest_mac.0));
        }
        if flags & 2 != 0 {
            let to = match whom & 7 {
                0..=3 => mac(whom & 7),
                4 => GATEWAY_MAC,
                5 => [0xff; 6],
                6 => [0x33, 0x33, 0, 0, 0, 1],
                _ => mac(4),
            };
            frame[10..16].copy_from_slice(&to);
        }
    }
}

/// A packet with good headers; the vnet header is the caller's.
fn super_frame(who: u8, whom: u8, kind: u8, length: usize) -> Vec<u8> {
    let (is_v6, udp) = (kind & 1 == 1, kind & 2 == 2);
    let to = whom & 7;
    let (src, dst): (IpAddr, IpAddr) = if is_v6 {
        (v6(who).into(), if to == 4 { sim::ip("2001:db8::7") } else { v6(to.min(4)).into() })
    } else {
        (v4(who).into(), if to == 4 { sim::ip("192.0.2.7") } else { v4(to.min(4)).into() })
    };
    let header = if udp { 8 } else { 20 };
    let length = length.min(65_535 - 60);
    let mut body = vec![whom; header + length];
    body[..4].copy_from_slice(&[0x10, 0, 0, 80]);
    if udp {
        body[4..6].copy_from_slice(&((header + length) as u16).to_be_bytes());
    } else {
        (body[12], body[13]) = (0x50, 0x18);
    }
    let protocol = if udp { 17 } else { 6 };
    let sum = csum::partial(src, dst, protocol, body.len());
    let at = if udp { 6 } else { 16 };
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    sim::Ip::new(src, dst, protocol, body).frame()
}

/// IGMP, MLD or neighbour discovery.
fn report(who: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let body = &body[..body.len().min(1400)];
    let is_v6 = kind & 1 == 1;
    let mut message = vec![0; 4];
    message.extend(body);
    let packet = if is_v6 {
        message[0] = [143, 131, 132, 135, 136, 133, 134, 130][usize::from(kind >> 1 & 7)];
        let dst = if kind & 32 == 0 { sim::ip("ff02::16") } else { sim::ip("ff02::1:ff00:11") };
        let src = if kind & 16 == 0 {
            IpAddr::from(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, who.into()))
        } else if kind & 64 == 0 {
            v6(who).into()
        } else {
            sim::ip("::")
        };
        let mut packet = sim::Ip::new(src, dst, 58, Vec::new());
        packet.ttl = if message[0] >= 133 && message[0] != 143 { 255 } else { 1 };
        let sum = csum::full(src, dst, 58, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        packet.body = message;
        packet
    } else {
        message[0] = [0x22, 0x16, 0x17, 0x12, 0x11][usize::from(kind >> 1) % 5];
        let sum = csum::plain(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = sim::Ip::new(v4(who).into(), sim::ip("224.0.0.22"), 2, message);
        packet.ttl = 1;
        packet
    };
    let mut frame = packet.frame();
    frame[10..16].copy_from_slice(if is_v6 { &[0x33, 0x33, 0, 0, 0, 0x16] } else { &[1, 0, 0x5e, 0, 0, 22] });
    frame[16..22].copy_from_slice(&mac(who));
    frame
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let options = input.byte();
    let icc = options & 1 == 0;
    let limits = SwitchLimits {
        members: 4,
        own_addresses: 3,
        groups: GroupLimits { per_member: 3, all: 8 },
        ..SwitchLimits::default()
    };
    let mut net = Net {
        switch: Switch::new(icc, limits, 7),
        taps: Taps { icc, configs: vec![None; PLACES.into()], ..Taps::default() },
        members: (0..PLACES).map(|_| None).collect(),
        rules: NetworkRules { internal: options & 2 != 0, masquerade: true },
        now: Instant::from_secs(1000),
    };
    net.attach(0, 0, 0);
    net.attach(1, 6, 1);
    net.attach(2, 3, 2);
    for _ in 0..60 {
        if input.is_empty() {
            break;
        }
        net.act(&mut input);
    }
    net.pass(Duration::from_secs(300));
    for member in 0..PLACES {
        if let Some(one) = &net.members[usize::from(member)] {
            let dropped: u64 = DropReason::ALL.iter().map(|&reason| one.stack.drops().get(reason)).sum();
            assert!(dropped < 1 << 20);
        }
        net.detach(member);
    }
    assert!(net.switch.is_empty() && net.switch.group_memberships() == 0, "somebody is left");
});
