//! One packet under everything that reads a packet and remembers nothing: the header chain, fragments, ICMP errors,
//! neighbour discovery, TCP fields, who talks to whom, the filter of a capture and its file.
//!
//! Input: MTU (2), identification (4), a byte whose meaning each part has, the Ethernet frame.
//!
//! What must hold beside not panicking: what is found lies within the packet; fragments are whole packets below the MTU
//! that make the packet again; an ICMP error fits what every host takes and has right sums; a replaced option is read back.
#![no_main]

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tapway::link::pcap;
use tapway::network::capture::{CaptureFilter, CaptureProtocol};
use tapway::stack::reassembly::{Limits, Outcome, Reassembler};
use tapway::wire::icmp_error::{self, IcmpError, MAX_LEN_V4, MAX_LEN_V6};
use tapway::wire::summary::Summary;
use tapway::wire::tcp_segment::{self, Segment};
use tapway::wire::{chain, csum, fragment, ndisc};
use tapway_fuzz::Input;

const ETHERNET: usize = 14;

fn v6_chain(packet: &[u8]) {
    let Some(chain) = chain::walk(packet) else { return };
    assert!(chain.at <= packet.len() && chain.named_by < chain.at, "{chain:?}");
    assert!((40..=chain.at).contains(&chain.per_fragment) && chain.per_fragment_named_by < chain.per_fragment);
    assert!(chain::addresses(packet).is_some());
    if let Some(fragment) = chain.fragment {
        assert!(fragment.at + 8 <= chain.at && packet[fragment.named_by] == 44);
    } else {
        assert_eq!(packet[chain.named_by], chain.protocol);
    }
}

/// Where the IP length says that the packet ends.
fn bounded(packet: &[u8]) -> &[u8] {
    let length = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        Some(6) if packet.len() >= 40 => 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
        _ => packet.len(),
    };
    &packet[..length.min(packet.len())]
}

/// All fragments of a packet, put together again, are the packet.
fn fragments(packet: &[u8], mtu: usize, ident: u32) {
    let mut scratch = vec![0; mtu.max(packet.len()) + 8];
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let count = fragment::split(packet, mtu, ident, &mut |piece| pieces.push(piece.to_vec()), &mut scratch);
    assert_eq!(count, pieces.len());
    if count == 1 {
        assert_eq!(pieces[0], bounded(packet), "a packet that fits was changed");
    }
    if count < 2 || count > 64 {
        return;
    }
    let v6 = packet[0] >> 4 == 6;
    let mut reassembler = Reassembler::new(Limits::default());
    let now = smoltcp::time::Instant::from_secs(1);
    let fragmented = !v6 && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    for (at, piece) in pieces.iter().enumerate() {
        assert!(piece.len() <= mtu, "a fragment of {} bytes for {mtu}", piece.len());
        assert_eq!(bounded(piece).len(), piece.len(), "a fragment's length");
        assert!(v6 || csum::plain_ok(&piece[..usize::from(piece[0] & 15) * 4]), "a fragment's header sum");
        if fragmented {
            continue;
        }
        let last = at + 1 == pieces.len();
        match reassembler.handle(now, piece) {
            Outcome::Pending => assert!(!last, "the last fragment did not make it whole"),
            Outcome::Complete(whole) => {
                assert!(last, "whole too early");
                let (header, own) = if v6 {
                    (chain::walk(packet).expect("it was walked").per_fragment, bounded(packet))
                } else {
                    (usize::from(packet[0] & 15) * 4, bounded(packet))
                };
                assert_eq!(whole[header..], own[header..], "the data");
            }
            // Not what a datagram may be: a header chain cut short, data that ends beyond 65535.
            Outcome::Drop(_) => return,
            Outcome::NotAFragment => panic!("a fragment is none"),
        }
    }
}

fn error(packet: &[u8], kind: IcmpError) {
    let Some((from, to)) = ends(packet) else { return };
    let mut out = [0xaa; MAX_LEN_V6];
    if let Some(length) = icmp_error::emit(&mut out, kind, to, from, packet) {
        let out = &out[..length];
        match from {
            IpAddr::V4(_) => {
                assert!(length <= MAX_LEN_V4 && csum::plain_ok(&out[..20]) && csum::plain_ok(&out[20..]));
                assert!(packet.starts_with(&out[28..length]));
            }
            IpAddr::V6(_) => {
                assert!(csum::verify(to, from, 58, &out[40..]));
                assert!(packet.starts_with(&out[48..length]));
            }
        }
        // An error about an error is never sent.
        let mut again = [0; MAX_LEN_V6];
        assert_eq!(icmp_error::emit(&mut again, kind, from, to, out), None);
    }
}

fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    if packet.first()? >> 4 == 6 {
        return chain::addresses(packet).map(|(from, to)| (from.into(), to.into()));
    }
    let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    address(12).zip(address(16))
}

fn segment(bytes: &[u8], value: u16) {
    let mut bytes = bytes.to_vec();
    let before = bytes.clone();
    let Some(mut segment) = Segment::new(&mut bytes) else { return };
    assert_eq!(segment.header_len() + segment.payload_len(), before.len());
    assert!(segment.sequence_len() as usize <= segment.payload_len() + 2);
    if segment.mss(Some(value)).is_some() {
        assert_eq!(segment.mss(None), Some(value));
    }
    if segment.window_scale(Some(value as u8)).is_some() {
        assert_eq!(segment.window_scale(None), Some(value as u8));
    }
    let _ = (segment.sack_permitted(), segment.has(tcp_segment::SYN), segment.src_port(), segment.dst_port());
    let (seq, ack, window) = (segment.seq(), segment.ack(), segment.window());
    segment.set_seq(!seq);
    segment.set_ack(!ack);
    segment.set_window(!window);
    segment.set_checksum(value);
    assert_eq!((segment.seq(), segment.ack(), segment.window()), (!seq, !ack, !window));
    assert_eq!(segment.bytes()[segment.header_len()..], before[segment.header_len()..], "the payload was touched");

    let mut out = [0; 64];
    let length =
        tcp_segment::emit_syn(&mut out, (value, seq as u16), seq, window, value, Some(value as u8), value & 1 == 1);
    assert!(Segment::new(&mut out[..length]).is_some_and(|mut own| own.mss(None) == Some(value)));
    let length = tcp_segment::emit_bare(&mut out, (value, seq as u16), seq, ack, value as u8, window);
    assert!(Segment::new(&mut out[..length]).is_some_and(|own| own.payload_len() == 0));
}

fn neighbour(frame: &[u8]) {
    let Ok(Some(message)) = ndisc::parse(frame) else { return };
    assert!(message.body.len() + ndisc::MESSAGE <= frame.len() && message.body.len() >= 8);
    let mut left = message.body.len();
    for (_, data) in message.options() {
        left = left.checked_sub(data.len()).expect("options are longer than the message");
    }
    let _ = (message.link_layer(ndisc::SOURCE_LINK_LAYER), message.link_layer(ndisc::TARGET_LINK_LAYER));
    if matches!(message.kind, ndisc::NEIGHBOUR_SOLICITATION | ndisc::NEIGHBOUR_ADVERTISEMENT) {
        let _ = message.target();
    }
}

fn captured(frame: &[u8], choice: u8) {
    let seen = Summary::of(frame);
    if let (Some(ports), Some((from, to))) = (seen.ports, seen.addresses) {
        assert_eq!(from.is_ipv6(), to.is_ipv6());
        let filter = CaptureFilter::new(Some(&from.to_string()), None, None).expect("an address is a host");
        assert!(filter.matches(frame), "who sent it is not in it");
        if let Ok(filter) = CaptureFilter::new(None, Some(ports.1), None) {
            assert!(filter.matches(frame), "its port is not in it");
        }
    }
    let all = [CaptureProtocol::Tcp, CaptureProtocol::Udp, CaptureProtocol::Icmp, CaptureProtocol::Icmp6];
    for protocol in all.into_iter().chain([CaptureProtocol::Arp, CaptureProtocol::Ip, CaptureProtocol::Ip6]) {
        if let Ok(filter) = CaptureFilter::new(None, None, Some(protocol)) {
            let _ = filter.matches(frame);
        }
    }
    let snaplen = usize::from(choice).max(1) * 8;
    let mut file = Vec::new();
    pcap::start(&mut file, NonZeroU32::new(snaplen as u32).unwrap_or(NonZeroU32::MIN));
    let begin = file.len();
    let direction = if choice & 1 == 0 { pcap::Direction::FromGuest } else { pcap::Direction::ToGuest };
    for _ in 0..2 {
        pcap::packet(&mut file, Duration::from_secs(choice.into()), direction, frame, snaplen);
    }
    assert_eq!(file.len() - begin, 2 * pcap::packet_len(frame.len().min(snaplen)));
    assert_eq!(pcap::whole_packets(&file[begin..], file.len() - begin), 2);
    assert_eq!(pcap::whole_packets(&file[begin..], file.len() - begin - 1), 1);
    let end = file.len();
    pcap::statistics(&mut file, Duration::MAX, 2, 0);
    assert_eq!(file.len() - end, pcap::STATISTICS_LEN);
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (mtu, ident, choice) = (usize::from(input.word()), input.long(), input.byte());
    let frame = input.0;
    captured(frame, choice);
    neighbour(frame);
    let packet = frame.get(ETHERNET..).unwrap_or_default();
    v6_chain(packet);
    fragments(packet, mtu, ident);
    error(packet, tapway_fuzz::icmp_error(&mut Input(&[choice, 0, 0, ident as u8, choice])));
    let header = if packet.first().is_some_and(|byte| byte >> 4 == 6) { 40 } else { 20 };
    segment(packet.get(header..).unwrap_or_default(), ident as u16);
    if let &[kind, code, a, b, ..] = packet {
        for v6 in [false, true] {
            let _ = icmp_error::from_host_error(kind, code, u32::from_be_bytes([0, 0, a, b]), v6);
        }
    }
});
