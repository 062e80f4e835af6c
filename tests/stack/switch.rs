//! A network of several members on the simulated stack: who reaches whom, and who cannot be whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use smoltcp::time::{Duration, Instant};
use tapway::network::config::{EndpointConfig, Link, Mac, Membership, Offloads};
use tapway::stack::policy::NetworkRules;
use tapway::stack::switch::{AttachRefusal, Members, QUERY_INTERVAL, Switch, SwitchLimits};
use tapway::stack::verdict::DropReason;
use tapway::stack::{Limits, Output, PingToHost, Stack, UdpToHost};
use tapway::wire::csum;
use tapway::wire::vnet::{Gso, IP_OFFSET, VNET_HDR_LEN, VnetHdr};

use crate::sim::{GATEWAY_MAC, Ip, SYN, Seg, TCP, UDP, all_offloads, at, config, ip, udp_body};

/// What every TAP got, by member.
#[derive(Default)]
pub struct Taps(pub Vec<Vec<Vec<u8>>>);

impl Members for Taps {
    fn to_member(&mut self, member: u16, frame: &[u8]) {
        self.0[usize::from(member)].push(frame.to_vec());
    }
}

/// What one stack handed out.
#[derive(Default)]
pub struct Own {
    pub frames: Vec<Vec<u8>>,
    pub dns: Vec<String>,
    pub to_host: usize,
}

impl Output for Own {
    fn to_guest(&mut self, frame: &[u8]) -> bool {
        self.frames.push(frame.to_vec());
        true
    }
    fn udp_to_host(&mut self, _: &UdpToHost<'_>) {
        self.to_host += 1;
    }
    fn ping_to_host(&mut self, _: &PingToHost<'_>) {
        self.to_host += 1;
    }
    fn dns_query(&mut self, _: std::net::SocketAddr, server: std::net::SocketAddr, _: &[u8]) {
        self.dns.push(server.to_string());
    }
}

pub struct Net {
    pub switch: Switch,
    pub stacks: Vec<Stack>,
    pub owns: Vec<Own>,
    pub taps: Taps,
    pub now: Instant,
}

pub fn mac(member: u16) -> [u8; 6] {
    [0x02, 0x42, 10, 0, 2, 10 + member as u8]
}

pub fn v4(member: u16) -> IpAddr {
    Ipv4Addr::new(10, 0, 2, 10 + member as u8).into()
}

pub fn v6(member: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0x10 + member).into()
}

fn link_local(member: u16) -> IpAddr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10 + member).into()
}

fn member_config(member: u16, offloads: Offloads) -> EndpointConfig {
    let mut config = config(1500, offloads);
    config.guest_mac = Mac(mac(member));
    if let (Some(plan), IpAddr::V4(guest)) = (&mut config.v4, v4(member)) {
        (plan.guest, plan.dns) = (guest, plan.gateway);
    }
    if let (Some(plan), IpAddr::V6(guest)) = (&mut config.v6, v6(member)) {
        (plan.guest, plan.dns) = (guest, plan.gateway);
    }
    config
}

fn named(names: &[&str], links: &[&str]) -> Membership {
    Membership {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        links: links.iter().map(|&target| Link { target: target.to_owned(), alias: "x".to_owned() }).collect(),
    }
}

impl Net {
    pub fn new(icc: bool, internal: bool, members: u16) -> Self {
        let mut net = Self::empty(icc);
        for member in 0..members {
            net.join(member, all_offloads(), named(&[&format!("m{member}")], &[])).unwrap();
            net.stacks[usize::from(member)].set_network(NetworkRules { internal, masquerade: true });
        }
        net
    }

    fn empty(icc: bool) -> Self {
        let switch = Switch::new(icc, SwitchLimits::default(), 7);
        Self { switch, stacks: Vec::new(), owns: Vec::new(), taps: Taps::default(), now: Instant::from_secs(100) }
    }

    fn join(&mut self, member: u16, offloads: Offloads, membership: Membership) -> Result<(), AttachRefusal> {
        self.join_as(member, member_config(member, offloads), membership)
    }

    fn join_as(&mut self, member: u16, config: EndpointConfig, membership: Membership) -> Result<(), AttachRefusal> {
        while self.stacks.len() <= usize::from(member) {
            self.stacks.push(Stack::new(config.clone(), Limits::default(), 1, self.now));
            self.owns.push(Own::default());
            self.taps.0.push(Vec::new());
        }
        self.stacks[usize::from(member)] = Stack::new(config.clone(), Limits::default(), 1, self.now);
        self.stacks[usize::from(member)].set_network(NetworkRules { internal: false, masquerade: true });
        self.switch.attach(member, &config, membership, &mut self.taps)?;
        self.clear();
        Ok(())
    }

    pub fn clear(&mut self) {
        self.taps.0.iter_mut().for_each(Vec::clear);
        self.owns.iter_mut().for_each(|own| *own = Own::default());
    }

    /// A frame as it is.
    pub fn raw(&mut self, member: u16, frame: &[u8]) {
        let at = usize::from(member);
        let mut frame = frame.to_vec();
        let Self { switch, stacks, owns, taps, now } = self;
        switch.handle_from_guest(*now, member, &mut frame, (&mut stacks[at], &mut owns[at]), taps);
    }

    /// A packet in a frame of this member's for that MAC; returns who got something.
    pub fn send(&mut self, member: u16, to: [u8; 6], packet: &Ip) -> Vec<u16> {
        self.clear();
        self.raw(member, &framed(member, to, packet));
        self.reached()
    }

    fn reached(&self) -> Vec<u16> {
        (0..self.taps.0.len()).filter(|&at| !self.taps.0[at].is_empty()).map(|at| at as u16).collect()
    }

    fn drops(&self, member: u16, reason: DropReason) -> u64 {
        self.stacks[usize::from(member)].drops().get(reason)
    }

    fn dropped(&mut self, reason: DropReason, act: impl FnOnce(&mut Self)) {
        let before = self.drops(0, reason);
        self.clear();
        act(self);
        assert_eq!(self.reached(), NOBODY, "{reason:?}");
        assert!(self.owns[0].frames.is_empty() && self.owns[0].to_host == 0, "{reason:?}: answered");
        assert_eq!(self.drops(0, reason), before + 1, "{reason:?}: {:?}", self.stacks[0].drops());
    }
}

fn framed(member: u16, to: [u8; 6], packet: &Ip) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[10..16].copy_from_slice(&to);
    frame[16..22].copy_from_slice(&mac(member));
    frame
}

fn datagram(src: IpAddr, dst: IpAddr) -> Ip {
    Ip::new(src, dst, UDP, udp_body(at(src, 1000), at(dst, 2000), b"hello"))
}

const BROADCAST: [u8; 6] = [0xff; 6];
const NOBODY: [u16; 0] = [];

fn group_mac(group: IpAddr) -> [u8; 6] {
    match group {
        IpAddr::V4(group) => [1, 0, 0x5e, group.octets()[1] & 0x7f, group.octets()[2], group.octets()[3]],
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = group.octets();
            [0x33, 0x33, a, b, c, d]
        }
    }
}

fn arp(member: u16, op: u8, sender_mac: [u8; 6], sender: IpAddr, target: IpAddr, to: [u8; 6]) -> Vec<u8> {
    let (IpAddr::V4(sender), IpAddr::V4(target)) = (sender, target) else { panic!("ARP is IPv4's") };
    let mut frame = vec![0; VNET_HDR_LEN];
    frame.extend(to);
    frame.extend(mac(member));
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, op]);
    frame.extend(sender_mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

fn icmp6(src: IpAddr, dst: IpAddr, hops: u8, mut body: Vec<u8>) -> Ip {
    let sum = csum::full(src, dst, 58, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = Ip::new(src, dst, 58, body);
    packet.ttl = hops;
    packet
}

/// A neighbour message: kind, target, link-layer option.
fn ndp(kind: u8, src: IpAddr, dst: IpAddr, target: IpAddr, option: Option<(u8, [u8; 6])>) -> Ip {
    let IpAddr::V6(target) = target else { panic!("NDP is IPv6's") };
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    if let Some((kind, mac)) = option {
        body.extend([kind, 1]);
        body.extend(mac);
    }
    icmp6(src, dst, 255, body)
}

fn solicited(target: IpAddr) -> IpAddr {
    let IpAddr::V6(target) = target else { panic!("IPv6") };
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c])).into()
}

#[test]
fn members_get_what_is_theirs_and_nothing_else() {
    let mut net = Net::new(true, false, 3);
    for (src, dst) in [(v4(0), v4(1)), (v6(0), v6(1))] {
        assert_eq!(net.send(0, mac(1), &datagram(src, dst)), [1]);
        assert_eq!(net.taps.0[1][0], framed(0, mac(1), &datagram(src, dst)), "as it was sent");
        // What the gateway does with it is the stack's, and nobody else's.
        assert_eq!(
            net.send(0, GATEWAY_MAC, &datagram(src, ip(if src.is_ipv4() { "192.0.2.7" } else { "2001:db8::7" }))),
            NOBODY
        );
        assert_eq!(net.owns[0].to_host, 1);
    }
    net.dropped(DropReason::NoMember, |net| net.raw(0, &framed(0, mac(9), &datagram(v4(0), v4(1)))));
    net.dropped(DropReason::NoMember, |net| net.raw(0, &framed(0, mac(0), &datagram(v4(0), v4(0)))));
    // A frame to the gateway for a member's address does not get there by the back door.
    assert_eq!(net.send(0, GATEWAY_MAC, &datagram(v4(0), v4(1))), NOBODY);
    assert_eq!((net.drops(0, DropReason::Refused), net.owns[0].to_host), (1, 0));
    assert_eq!(net.send(0, BROADCAST, &datagram(v4(0), ip("255.255.255.255"))), [1, 2]);
    assert_eq!(net.send(1, BROADCAST, &datagram(v4(1), ip("10.0.2.255"))), [0, 2]);
    assert_eq!(net.send(1, group_mac(ip("ff02::1")), &datagram(v6(1), ip("ff02::1"))), [0, 2]);
    // A unicast packet in a frame for everybody.
    net.dropped(DropReason::Malformed, |net| net.raw(0, &framed(0, BROADCAST, &datagram(v4(0), v4(1)))));
}

#[test]
fn nobody_is_somebody_else() {
    let mut net = Net::new(true, false, 3);
    let spoofed = DropReason::SpoofedSource;
    for to in [mac(1), GATEWAY_MAC, BROADCAST] {
        let mut frame = framed(0, to, &datagram(v4(0), v4(1)));
        frame[16..22].copy_from_slice(&mac(2));
        net.dropped(spoofed, |net| net.raw(0, &frame));
        net.dropped(spoofed, |net| net.raw(0, &framed(0, to, &datagram(v4(2), ip("255.255.255.255")))));
        net.dropped(spoofed, |net| net.raw(0, &framed(0, to, &datagram(ip("192.0.2.7"), v4(1)))));
        net.dropped(spoofed, |net| net.raw(0, &framed(0, to, &datagram(ip("10.0.2.2"), v4(1)))));
        for source in [v6(2), ip("fd00:1:2:3::2"), ip("fe80::2"), ip("2001:db8::7")] {
            let dst = if to == BROADCAST { ip("ff02::1") } else { v6(1) };
            net.dropped(spoofed, |net| net.raw(0, &framed(0, to, &datagram(source, dst))));
        }
    }
    // ARP that claims another's address, the gateway's, or another MAC.
    for (op, sender_mac, sender) in [(1, mac(0), v4(2)), (2, mac(0), ip("10.0.2.2")), (2, mac(2), v4(0))] {
        for to in [mac(1), BROADCAST] {
            let frame = arp(0, op, sender_mac, sender, v4(1), to);
            net.dropped(spoofed, |net| net.raw(0, &frame));
        }
    }
    // The same in IPv6; and being a router.
    let all = ip("ff02::1");
    for packet in [
        ndp(136, v6(0), all, v6(2), Some((2, mac(0)))),
        ndp(136, v6(0), all, ip("fd00:1:2:3::2"), Some((2, mac(0)))),
        ndp(136, v6(0), all, v6(0), Some((2, mac(2)))),
        ndp(135, v6(0), solicited(v6(1)), v6(1), Some((1, mac(2)))),
        icmp6(link_local(0), all, 255, vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]),
        icmp6(link_local(0), all, 255, [vec![137, 0, 0, 0, 0, 0, 0, 0], vec![0; 32]].concat()),
    ] {
        net.dropped(spoofed, |net| net.raw(0, &framed(0, group_mac(all), &packet)));
        net.dropped(spoofed, |net| net.raw(0, &framed(0, mac(1), &packet)));
    }
    // No tag hides what is in it, and nobody's loopback is for others.
    let mut tagged = framed(0, mac(1), &datagram(v4(2), v4(1)));
    tagged.splice(22..22, [0x81, 0, 0, 0]);
    net.dropped(DropReason::EtherType, |net| net.raw(0, &tagged));
    for address in ["127.0.0.1", "127.0.0.11"] {
        net.dropped(DropReason::Refused, |net| net.raw(0, &framed(0, mac(1), &datagram(v4(0), ip(address)))));
    }
}

#[test]
fn a_frame_that_its_vnet_header_does_not_fit_is_dropped_and_counted() {
    let mut net = Net::new(true, false, 2);
    net.join(2, Offloads::default(), named(&["plain"], &[])).unwrap();
    let broken = |to: u16, change: fn(&mut [u8])| {
        let mut frame = framed(0, mac(to), &datagram(v4(0), v4(to)));
        change(&mut frame);
        frame
    };
    // struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, little endian.
    let frames = [
        ("a kind of segmentation that is nobody's", broken(1, |frame| frame[1] = 9)),
        ("TCP segments of a datagram", broken(1, |frame| frame[..6].copy_from_slice(&[1, 1, 0, 0, 100, 0]))),
        ("a sum beyond the end", broken(2, |frame| (frame[0], frame[7]) = (1, 0x40))),
    ];
    for (what, frame) in frames {
        let before = net.drops(0, DropReason::Malformed);
        net.clear();
        net.raw(0, &frame);
        assert_eq!(net.reached(), NOBODY, "{what}");
        assert_eq!(net.drops(0, DropReason::Malformed), before + 1, "{what}: {:?}", net.stacks[0].drops());
    }
}

#[test]
fn questions_for_addresses_go_to_who_has_them() {
    let mut net = Net::new(true, false, 3);
    let ask = |net: &mut Net, target| {
        net.clear();
        net.raw(0, &arp(0, 1, mac(0), v4(0), target, BROADCAST));
        (net.reached(), net.owns[0].frames.len())
    };
    assert_eq!(ask(&mut net, ip("10.0.2.2")), (vec![], 1), "the gateway answers");
    assert_eq!(ask(&mut net, v4(2)), (vec![2], 0));
    assert_eq!(ask(&mut net, v4(0)), (vec![1, 2], 0), "an announcement");
    assert_eq!((ask(&mut net, v4(7)), net.drops(0, DropReason::NoMember)), ((vec![], 0), 1));
    // The answer goes straight back.
    net.clear();
    net.raw(2, &arp(2, 2, mac(2), v4(2), v4(0), mac(0)));
    assert_eq!(net.reached(), [0]);
    let ask = |net: &mut Net, target: IpAddr| {
        let packet = ndp(135, v6(0), solicited(target), target, Some((1, mac(0))));
        (net.send(0, group_mac(solicited(target)), &packet), net.owns[0].frames.len())
    };
    assert_eq!(ask(&mut net, ip("fd00:1:2:3::2")), (vec![], 1));
    assert_eq!(ask(&mut net, ip("fe80::2")), (vec![], 1));
    assert_eq!(ask(&mut net, v6(2)), (vec![2], 0));
    assert_eq!(ask(&mut net, link_local(2)), (vec![1, 2], 0), "not used yet");
    assert_eq!(net.send(2, mac(0), &datagram(link_local(2), link_local(0))), [0]);
    assert_eq!(ask(&mut net, link_local(2)), (vec![2], 0));
}

#[test]
fn addresses_that_members_make_are_the_firsts_until_assigned() {
    let mut net = Net::new(true, false, 2);
    let own = ip("fd00:1:2:3::abcd");
    let probe = || ndp(135, ip("::"), solicited(own), own, None);
    assert_eq!(net.send(0, group_mac(solicited(own)), &probe()), [1]);
    assert_eq!(net.send(0, mac(1), &datagram(own, v6(1))), [1]);
    // The second one's probe is for the first to answer; its datagrams are nobody's.
    assert_eq!(net.send(1, group_mac(solicited(own)), &probe()), [0]);
    assert_eq!(net.send(1, mac(0), &datagram(own, v6(0))), NOBODY);
    assert_eq!(net.drops(1, DropReason::SpoofedSource), 1);
    // Somebody comes who has it by right.
    let mut config = member_config(2, all_offloads());
    if let (Some(plan), IpAddr::V6(own)) = (&mut config.v6, own) {
        plan.guest = own;
    }
    net.join_as(2, config, Membership::default()).unwrap();
    assert_eq!(net.send(2, mac(1), &datagram(own, v6(1))), [1]);
    net.dropped(DropReason::SpoofedSource, |net| net.raw(0, &framed(0, mac(1), &datagram(own, v6(1)))));
    // What one member can make up is bounded.
    for n in 0..100 {
        net.send(1, mac(0), &datagram(ip(&format!("fd00:1:2:3::f:{n:x}")), v6(0)));
    }
    assert_eq!(net.drops(1, DropReason::SpoofedSource), 1 + 100 - SwitchLimits::default().own_addresses as u64);
}

#[test]
fn kept_apart_but_for_links() {
    let mut net = Net::new(false, false, 3);
    let isolated = DropReason::Isolated;
    for packet in [datagram(v4(0), v4(1)), datagram(v6(0), v6(1))] {
        net.dropped(isolated, |net| net.raw(0, &framed(0, mac(1), &packet)));
    }
    net.dropped(isolated, |net| net.raw(0, &framed(0, BROADCAST, &datagram(v4(0), ip("255.255.255.255")))));
    net.dropped(isolated, |net| net.raw(0, &arp(0, 1, mac(0), v4(0), v4(1), BROADCAST)));
    let ask = ndp(135, v6(0), solicited(v6(1)), v6(1), Some((1, mac(0))));
    net.dropped(isolated, |net| net.raw(0, &framed(0, group_mac(solicited(v6(1))), &ask)));
    let group = ip("239.1.2.3");
    net.send(1, group_mac(group), &igmp(1, group, 4));
    net.dropped(DropReason::Multicast, |net| net.raw(0, &framed(0, group_mac(group), &datagram(v4(0), group))));
    // The gateway is there for all.
    net.clear();
    net.raw(0, &arp(0, 1, mac(0), v4(0), ip("10.0.2.2"), BROADCAST));
    assert_eq!(net.owns[0].frames.len(), 1);
    // Number 3 is linked with m1, both ways, and with nobody else; a link waits for its name.
    net.join(3, all_offloads(), named(&["web"], &["M1", "later"])).unwrap();
    assert_eq!(net.send(3, mac(1), &datagram(v4(3), v4(1))), [1]);
    assert_eq!(net.send(1, mac(3), &datagram(v4(1), v4(3))), [3]);
    assert_eq!(net.send(3, BROADCAST, &datagram(v4(3), ip("255.255.255.255"))), [1]);
    assert_eq!(net.send(3, group_mac(group), &datagram(v4(3), group)), [1]);
    assert_eq!(net.send(3, mac(0), &datagram(v4(3), v4(0))), NOBODY);
    net.join(4, all_offloads(), named(&["later"], &[])).unwrap();
    assert_eq!(net.send(4, mac(3), &datagram(v4(4), v4(3))), [3]);
    net.switch.detach(4);
    net.join(4, all_offloads(), named(&["other"], &[])).unwrap();
    assert_eq!(net.send(4, mac(3), &datagram(v4(4), v4(3))), NOBODY);
}

#[test]
fn nothing_leaves_an_internal_network_but_questions_for_names() {
    let mut net = Net::new(true, true, 2);
    assert_eq!(net.send(0, mac(1), &datagram(v4(0), v4(1))), [1]);
    for dst in ["192.0.2.7", "10.0.2.2", "2001:db8::7", "fd00:1:2:3::2"].map(ip) {
        let src = if dst.is_ipv4() { v4(0) } else { v6(0) };
        net.send(0, GATEWAY_MAC, &datagram(src, dst));
        assert_eq!((net.owns[0].to_host, net.owns[0].frames.len()), (0, 1), "{dst}: told so");
        let icmp = &net.owns[0].frames[0][IP_OFFSET + if dst.is_ipv4() { 20 } else { 40 }..];
        assert_eq!(icmp[..2], if dst.is_ipv4() { [3, 0] } else { [1, 0] }, "{dst}: no way to that network");
        let seg = Seg {
            src: at(src, 4000),
            dst: at(dst, 80),
            flags: SYN,
            seq: 1,
            ack: 0,
            window: 1000,
            options: vec![],
            payload: vec![],
            gso_size: None,
        };
        net.send(0, GATEWAY_MAC, &seg.packet());
        assert!(net.stacks[0].poll_tcp_work().is_none() && net.owns[0].frames.len() == 1, "{dst}: {TCP}");
    }
    names_are_asked_for(&mut net);
}

#[test]
fn names_are_asked_for_at_both_addresses() {
    names_are_asked_for(&mut Net::new(true, false, 2));
}

fn names_are_asked_for(net: &mut Net) {
    for (src, server) in [(v4(0), "127.0.0.11"), (v4(0), "10.0.2.2"), (v6(0), "fd00:1:2:3::2")] {
        let question = Ip::new(src, ip(server), UDP, udp_body(at(src, 4000), at(ip(server), 53), b"a question"));
        net.send(0, GATEWAY_MAC, &question);
        assert_eq!(net.owns[0].dns, [at(ip(server), 53).to_string()]);
        let Net { stacks, owns, .. } = &mut *net;
        stacks[0].handle_dns_answer(at(src, 4000), at(ip(server), 53), b"an answer", &mut owns[0]);
        let frame = owns[0].frames.last().unwrap();
        if let IpAddr::V4(server) = ip(server) {
            assert_eq!(frame[IP_OFFSET + 12..IP_OFFSET + 16], server.octets(), "the answer's source");
        }
    }
    // The rest of 127/8 is silent.
    for (server, port) in [("127.0.0.1", 53), ("127.0.0.11", 80), ("127.1.2.3", 53)] {
        let packet = Ip::new(v4(0), ip(server), UDP, udp_body(at(v4(0), 4000), at(ip(server), port), b"x"));
        net.dropped(DropReason::Refused, |net| net.raw(0, &framed(0, GATEWAY_MAC, &packet)));
    }
}

/// A report of IGMPv3: joins with 4, leaves with 3.
fn igmp(member: u16, group: IpAddr, kind: u8) -> Ip {
    let IpAddr::V4(group) = group else { panic!("IGMP is IPv4's") };
    let mut body = vec![0x22, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0];
    body.extend(group.octets());
    let sum = csum::plain(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    Ip::new(v4(member), ip("224.0.0.22"), 2, body)
}

fn mld(member: u16, group: IpAddr, kind: u8) -> Ip {
    let IpAddr::V6(group) = group else { panic!("MLD is IPv6's") };
    let mut body = vec![143, 0, 0, 0, 0, 0, 0, 1, kind, 0, 0, 0];
    body.extend(group.octets());
    icmp6(link_local(member), ip("ff02::16"), 1, body)
}

#[test]
fn groups_reach_those_that_joined() {
    let mut net = Net::new(true, false, 4);
    for (group, report) in
        [(ip("239.1.2.3"), igmp as fn(u16, IpAddr, u8) -> Ip), (ip("ff05::7"), mld), (ip("ff02::fb"), mld)]
    {
        let src = |member| if group.is_ipv4() { v4(member) } else { v6(member) };
        let send = |net: &mut Net| net.send(0, group_mac(group), &datagram(src(0), group));
        net.dropped(DropReason::Multicast, |net| net.raw(0, &framed(0, group_mac(group), &datagram(src(0), group))));
        for member in [1, 3] {
            // Nobody hears of it: who heard would keep its own report back.
            let to = report(member, group, 4);
            assert_eq!(net.send(member, group_mac(to.dst), &to), NOBODY);
        }
        assert_eq!(send(&mut net), [1, 3], "{group}");
        let leave = report(3, group, 3);
        net.send(3, group_mac(leave.dst), &leave);
        assert_eq!(send(&mut net), [1]);
        // Renewed only when asked.
        let begun = net.now;
        for _ in 0..3 {
            net.clear();
            net.now += QUERY_INTERVAL;
            assert!(net.switch.next_timeout().is_some_and(|at| at <= net.now));
            net.switch.handle_timeout(net.now, &mut net.taps);
        }
        assert!(send(&mut net).is_empty(), "{group}: forgotten after {:?}", net.now - begun);
    }
    // Everybody's.
    assert_eq!(net.send(0, group_mac(ip("224.0.0.251")), &datagram(v4(0), ip("224.0.0.251"))), [1, 2, 3]);
    // To ask is the gateway's.
    let query = Ip::new(v4(0), ip("224.0.0.1"), 2, vec![0x11, 100, 0xee, 0x9b, 0, 0, 0, 0]);
    net.dropped(DropReason::Multicast, |net| net.raw(0, &framed(0, group_mac(query.dst), &query)));
}

#[test]
fn while_there_are_groups_everybody_is_asked() {
    let mut net = Net::new(true, false, 2);
    assert_eq!(net.switch.next_timeout(), None);
    let join = igmp(1, ip("239.1.2.3"), 4);
    net.send(1, group_mac(join.dst), &join);
    net.clear();
    net.now += QUERY_INTERVAL;
    net.switch.handle_timeout(net.now, &mut net.taps);
    assert_eq!(net.reached(), [0, 1]);
    let [igmp, mld] = &net.taps.0[0][..] else { panic!("one of each family") };
    let ip = &igmp[IP_OFFSET..];
    assert!(csum::plain_ok(&ip[..24]) && csum::plain_ok(&ip[24..]));
    assert_eq!((ip[8], ip[9], ip[24], &ip[20..22]), (1, 2, 0x11, &[0x94, 4][..]));
    let ip = &mld[IP_OFFSET..];
    assert_eq!((ip[6], ip[7], ip[48]), (0, 1, 130));
    assert!(csum::verify("fe80::2".parse().unwrap(), "ff02::1".parse().unwrap(), 58, &ip[48..]));
    // Another one's queries are not asked for when the network is empty of groups again.
    net.switch.detach(1);
    assert_eq!(net.switch.next_timeout(), None);
}

/// A TCP super-frame with its partial sum.
fn super_frame(src: IpAddr, dst: IpAddr, payload: usize, gso_size: u16) -> Vec<u8> {
    let seg = Seg {
        src: at(src, 4000),
        dst: at(dst, 80),
        flags: 0x18,
        seq: 77,
        ack: 1,
        window: 1000,
        options: vec![],
        payload: (0..payload).map(|at| at as u8).collect(),
        gso_size: None,
    };
    let mut frame = framed(0, mac(1), &seg.packet());
    let tcp = IP_OFFSET + if src.is_ipv4() { 20 } else { 40 };
    let sum = csum::partial(src, dst, TCP, 20 + payload);
    frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
    let hdr = VnetHdr {
        needs_csum: true,
        gso: if src.is_ipv4() { Gso::Tcp4 } else { Gso::Tcp6 },
        gso_size,
        csum_start: (tcp - VNET_HDR_LEN) as u16,
        csum_offset: 16,
        ..VnetHdr::default()
    };
    hdr.emit(&mut frame);
    frame
}

#[test]
fn super_frames_are_cut_for_who_does_not_take_them() {
    let none = Offloads { vnet_hdr: true, ..Offloads::default() };
    let sums = Offloads { csum: true, ..none };
    for (able, pieces) in [(all_offloads(), 1), (none, 7), (sums, 7), (Offloads::default(), 7)] {
        for (src, dst) in [(v4(0), v4(1)), (v6(0), v6(1))] {
            let mut net = Net::empty(true);
            net.join(0, all_offloads(), Membership::default()).unwrap();
            net.join(1, able, Membership::default()).unwrap();
            let frame = super_frame(src, dst, 9000, 1400);
            net.raw(0, &frame);
            let got = &net.taps.0[1];
            assert_eq!(got.len(), pieces, "{able:?}");
            if pieces == 1 {
                assert_eq!(got[0], frame);
                continue;
            }
            let mut payload = Vec::new();
            for piece in got {
                let hdr = VnetHdr::parse(piece).unwrap();
                assert_eq!((hdr.gso, hdr.needs_csum), (Gso::None, able.csum));
                let tcp = IP_OFFSET + if src.is_ipv4() { 20 } else { 40 };
                assert!(able.csum || csum::verify(src, dst, TCP, &piece[tcp..]));
                payload.extend_from_slice(&piece[tcp + 20..]);
            }
            assert_eq!(payload, frame[frame.len() - 9000..]);
        }
    }
}

#[test]
fn what_is_too_large_for_the_receiver_is_refused_as_by_a_router() {
    let mut net = Net::empty(true);
    net.join(0, all_offloads(), Membership::default()).unwrap();
    let mut small = member_config(1, all_offloads());
    small.mtu = 1280;
    net.join_as(1, small, Membership::default()).unwrap();
    for (src, dst, kind) in [(v4(0), v4(1), [3, 4]), (v6(0), v6(1), [2, 0])] {
        net.clear();
        net.raw(0, &super_frame(src, dst, 9000, 1400));
        assert_eq!(net.reached(), NOBODY);
        let icmp = &net.owns[0].frames[0][IP_OFFSET + if src.is_ipv4() { 20 } else { 40 }..];
        assert_eq!((&icmp[..2], &icmp[6..8]), (&kind[..], &1280_u16.to_be_bytes()[..]));
        net.clear();
        net.raw(0, &super_frame(src, dst, 9000, 1220));
        assert_eq!(net.reached(), [1]);
        let body = udp_body(at(src, 1), at(dst, 2), &[0; 1300]);
        assert_eq!(net.send(0, mac(1), &Ip::new(src, dst, UDP, body)), NOBODY);
        assert_eq!(net.owns[0].frames.len(), 1);
    }
}

#[test]
fn who_left_is_unknown_at_once_and_its_place_is_free() {
    let mut net = Net::new(true, false, 3);
    let join = igmp(1, ip("239.1.2.3"), 4);
    net.send(1, group_mac(join.dst), &join);
    net.send(1, mac(0), &datagram(link_local(1), link_local(0)));
    net.switch.detach(1);
    assert_eq!(net.switch.len(), 2);
    net.dropped(DropReason::NoMember, |net| net.raw(0, &framed(0, mac(1), &datagram(v4(0), v4(1)))));
    net.dropped(DropReason::NoMember, |net| net.raw(0, &arp(0, 1, mac(0), v4(0), v4(1), BROADCAST)));
    net.dropped(DropReason::Multicast, |net| {
        net.raw(0, &framed(0, group_mac(join.dst), &datagram(v4(0), ip("239.1.2.3"))));
    });
    // Its frames, should some be read still.
    net.clear();
    net.raw(1, &framed(1, mac(0), &datagram(v4(1), v4(0))));
    assert_eq!(net.reached(), NOBODY);
    // Another comes with its address and another MAC: everybody is told.
    let mut config = member_config(1, all_offloads());
    config.guest_mac = Mac(mac(8));
    let at = usize::from(1_u16);
    net.stacks[at] = Stack::new(config.clone(), Limits::default(), 1, net.now);
    net.switch.attach(1, &config, Membership::default(), &mut net.taps).unwrap();
    for other in [0, 2] {
        let arp = net.taps.0[other].iter().find(|frame| frame[22..24] == [8, 6]).expect("an announcement");
        assert_eq!((&arp[32..38], &arp[38..42]), (&mac(8)[..], &[10, 0, 2, 11][..]));
    }
}

#[test]
fn places_are_had_once() {
    let mut net = Net::new(true, false, 2);
    let refused = |net: &mut Net, change: fn(&mut EndpointConfig)| {
        let mut config = member_config(5, all_offloads());
        change(&mut config);
        net.join_as(5, config, Membership::default())
    };
    assert_eq!(refused(&mut net, |c| c.guest_mac = Mac(mac(1))), Err(AttachRefusal::MacInUse(Mac(mac(1)))));
    assert_eq!(refused(&mut net, |c| c.guest_mac = c.gateway_mac), Err(AttachRefusal::MacInUse(Mac(GATEWAY_MAC))));
    let group = Mac([3, 0, 0, 0, 0, 1]);
    assert_eq!(refused(&mut net, |c| c.guest_mac = Mac([3, 0, 0, 0, 0, 1])), Err(AttachRefusal::BadMac(group)));
    let taken = refused(&mut net, |c| c.v4.as_mut().unwrap().guest = "10.0.2.11".parse().unwrap());
    assert_eq!(taken, Err(AttachRefusal::AddressInUse(v4(1))));
    let taken = refused(&mut net, |c| c.v6.as_mut().unwrap().guest = "fd00:1:2:3::11".parse().unwrap());
    assert_eq!(taken, Err(AttachRefusal::AddressInUse(v6(1))));
    assert_eq!(net.switch.len(), 2);
    let limits = SwitchLimits { members: 1, ..SwitchLimits::default() };
    let mut small = Net { switch: Switch::new(true, limits, 1), ..Net::empty(true) };
    small.join(0, all_offloads(), Membership::default()).unwrap();
    assert_eq!(small.join(1, all_offloads(), Membership::default()), Err(AttachRefusal::Full(1)));
}

#[test]
fn groups_forget_with_time() {
    // A membership ends although others of the group are renewed.
    let mut net = Net::new(true, false, 3);
    let group = ip("239.1.2.3");
    for member in [1, 2] {
        let join = igmp(member, group, 4);
        net.send(member, group_mac(join.dst), &join);
    }
    for _ in 0..4 {
        net.now += Duration::from_secs(70);
        let join = igmp(2, group, 4);
        net.send(2, group_mac(join.dst), &join);
    }
    assert_eq!(net.send(0, group_mac(group), &datagram(v4(0), group)), [2]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes behind any Ethernet header: nothing panics, nobody is somebody else, and what comes out is whole.
    #[test]
    fn any_frame_at_all(
        frames in proptest::collection::vec(
            (0_u16..3, 0_usize..5, 0_usize..4, proptest::collection::vec(any::<u8>(), 0..120), any::<[u8; VNET_HDR_LEN]>()),
            1..40,
        ),
    ) {
        let mut net = Net::empty(true);
        net.join(0, all_offloads(), named(&["a"], &[])).unwrap();
        net.join(1, Offloads::default(), named(&["b"], &["a"])).unwrap();
        net.join(2, Offloads { vnet_hdr: true, csum: true, ..Offloads::default() }, named(&["c"], &[])).unwrap();
        for (member, to, kind, body, vnet) in frames {
            let to = [mac(0), mac(1), GATEWAY_MAC, BROADCAST, [0x33, 0x33, 0, 0, 0, 1]][to];
            let mut frame = vnet.to_vec();
            frame.extend(to);
            frame.extend(mac(member));
            frame.extend([[8, 0], [0x86, 0xdd], [8, 6], [0x88, 0xcc]][kind]);
            // Often enough what it says it is.
            let mut body = body;
            if let (0, [first, .., ]) = (kind, &mut body[..]) {
                *first = 0x45;
            } else if let (1, [first, ..]) = (kind, &mut body[..]) {
                *first = 0x60;
            }
            if let (0, Some(src), IpAddr::V4(own)) = (kind, body.get_mut(12..16), v4(member)) {
                src.copy_from_slice(&own.octets());
            }
            if let (1, Some(src), IpAddr::V6(own)) = (kind, body.get_mut(8..24), v6(member)) {
                src.copy_from_slice(&own.octets());
            }
            frame.extend(body);
            net.clear();
            net.raw(member, &frame);
            for (at, tap) in net.taps.0.iter().enumerate() {
                for got in tap {
                    prop_assert!(at != usize::from(member) && got.len() >= IP_OFFSET && got[16..22] == mac(member));
                }
            }
        }
    }
}
