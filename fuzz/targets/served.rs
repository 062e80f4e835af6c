//! What the gateway answers itself, with memory: DHCP and BOOTP, DHCPv6, router advertisements, ARP and neighbour
//! discovery, and the guests that slirp4netns's segment learns.
//!
//! Input: a byte (bit 0: slirp4netns's segment; bits 1-2: the size of its range), then steps: a byte (upper half: 2^n
//! seconds pass, 0: none; lower half, modulo 6: which part), a client's number (1), length (2), bytes.
//!
//! What must hold: an answer has the right lengths and sums and fits its buffer; nobody has an address that another has,
//! or one outside the range; the learnt are bounded; what is held is given out or dropped.
#![no_main]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};

use libfuzzer_sys::fuzz_target;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{DhcpPacket, DhcpRepr};
use tapway::network::config::Mac;
use tapway::stack::dhcp::DhcpServer;
use tapway::stack::dhcp::pool::Pool;
use tapway::stack::dhcp6;
use tapway::stack::guests::{Due, GuestLimits, Guests};
use tapway::stack::neighbour::{self, Neighbour};
use tapway::stack::ra::RouterAdvertiser;
use tapway::wire::{csum, ndisc};
use tapway_fuzz::Input;

#[allow(dead_code)]
#[path = "../../tests/stack/sim.rs"]
mod sim;

const ROOM: usize = 2048;

fn v4_sums(frame: &[u8]) {
    let packet = &frame[14..];
    assert!(csum::plain_ok(&packet[..20]), "header sum");
    assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len(), "length");
    let address = |at: usize| IpAddr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    assert!(csum::verify(address(12), address(16), 17, &packet[20..]), "UDP sum");
}

fn v6_sums(frame: &[u8]) {
    let packet = &frame[14..];
    assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len(), "length");
    let address = |at: usize| {
        let octets: [u8; 16] = packet[at..at + 16].try_into().expect("16 bytes");
        IpAddr::from(octets)
    };
    assert!(csum::verify(address(8), address(24), 58, &packet[40..]), "ICMPv6 sum");
    assert_eq!(packet[7], 255, "hop limit");
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let choice = input.byte();
    let mut config = sim::config(1500, sim::all_offloads());
    let first = Ipv4Addr::new(10, 0, 2, 15);
    let last = Ipv4Addr::from_bits(first.to_bits() + [0, 1, 3, 15][usize::from(choice >> 1 & 3)]);
    if choice & 1 == 1 {
        config = sim::slirp_config(1500, sim::all_offloads());
        if let Some(slirp) = &mut config.slirp {
            slirp.dhcp = (first, last);
        }
    }
    let plan = config.v6.expect("the plan has IPv6");
    let guest = config.v4.expect("the plan has IPv4").guest;
    let mut now = Instant::from_secs(1000);
    let mut dhcp = DhcpServer::new(&config).expect("the plan has IPv4");
    let mut ra = RouterAdvertiser::new(&config, 9, now).expect("the plan has IPv6");
    let neighbour = Neighbour::new(&config);
    let limits = GuestLimits { known: 4, asked: 2, held_frames: 4, held_bytes: 4000 };
    let mut guests = Guests::new(limits);
    let mut pool = Pool::new((first, last));
    let mut lent: HashMap<Ipv4Addr, ([u8; 6], Instant)> = HashMap::new();
    let mut held = 0usize;
    let mut out = vec![0; ROOM];
    for _ in 0..100 {
        if input.is_empty() {
            break;
        }
        let (step, client) = (input.byte(), input.byte());
        let bytes = input.block();
        if step >> 4 > 0 {
            now += Duration::from_secs(1 << (step >> 4));
            if ra.next_timeout().is_some_and(|at| at <= now)
                && let Some(length) = ra.handle_timeout(now, &mut out)
            {
                v6_sums(&out[..length]);
            }
        }
        match step & 15 {
            0 | 6 => {
                if let Some(length) = dhcp.handle_frame(now, bytes, &mut out) {
                    v4_sums(&out[..length]);
                    let payload = &out[42..length];
                    let packet = DhcpPacket::new_checked(payload).expect("our answer is DHCP");
                    // BOOTP has no message type.
                    if let Ok(answer) = DhcpRepr::parse(&packet) {
                        assert!(
                            answer.your_ip.is_unspecified()
                                || if choice & 1 == 1 {
                                    (first..=last).contains(&answer.your_ip)
                                } else {
                                    answer.your_ip == guest
                                },
                            "an address that is not ours to give: {answer:?}"
                        );
                    }
                }
                // Any buffer at all.
                let _ = dhcp.handle(now, bytes, &mut out[..usize::from(client)]);
                if let Some((address, _)) = dhcp.take_leased() {
                    assert!(choice & 1 == 1 && (first..=last).contains(&address) || address == guest);
                }
            }
            1 | 7 => {
                let mut answer = [0; dhcp6::MAX_ANSWER];
                let port = if client & 1 == 0 { 546 } else { client.into() };
                let asker = SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
                if let Some(length) = dhcp6::answer(bytes, asker, config.gateway_mac, plan.dns, &mut answer) {
                    assert!(port == 546 && length <= answer.len());
                    assert_eq!((answer[0], &answer[1..4]), (7, &bytes[1..4]));
                }
            }
            2 | 8 => {
                for answer in [ra.handle_solicitation(now, bytes, &mut out), neighbour.handle_ndp(bytes, &mut out)] {
                    if let Ok(Some(length)) = answer {
                        v6_sums(&out[..length]);
                        assert!(ndisc::parse(&out[..length]).is_ok_and(|message| message.is_some()));
                    }
                }
                let _ = neighbour.handle_ndp(bytes, &mut out[..usize::from(client)]);
                assert!(ra.next_timeout().is_some());
            }
            3 | 9 => {
                if let Ok(Some(length)) = neighbour.handle_arp(bytes, &mut out) {
                    assert_eq!(out[20..22], [0, 2], "an answer to ARP");
                    let sender = neighbour::arp_sender(&out[..length]);
                    let Some((address, _)) = sender else { panic!("our ARP has no sender") };
                    assert!(neighbour.owns_v4(address));
                }
            }
            4 | 10 => {
                let mut input = Input(bytes);
                while !input.is_empty() {
                    let (act, who) = (input.byte(), input.byte() & 7);
                    let mac = [2, 0, 0, 0, 0, who];
                    let address =
                        Ipv4Addr::from_bits(first.to_bits().wrapping_add(input.byte().into()).wrapping_sub(2));
                    match act % 6 {
                        0 | 1 => {
                            if let Some(offered) = pool.offer(now, mac, (act & 8 != 0).then_some(address)) {
                                assert!((first..=last).contains(&offered));
                                let other = lent.get(&offered).is_some_and(|(of, until)| *of != mac && *until > now);
                                assert!(!other, "{offered} is another's");
                                if act & 16 != 0 && pool.bind(now, mac, offered, Duration::from_secs(60)) {
                                    lent.retain(|_, (of, _)| *of != mac);
                                    lent.insert(offered, (mac, now + Duration::from_secs(60)));
                                }
                            }
                        }
                        2 => {
                            if pool.bind(now, mac, address, Duration::from_secs(60)) {
                                let other = lent.get(&address).is_some_and(|(of, until)| *of != mac && *until > now);
                                assert!(!other, "{address} is another's");
                                lent.retain(|_, (of, _)| *of != mac);
                                lent.insert(address, (mac, now + Duration::from_secs(60)));
                            }
                        }
                        3 => {
                            pool.release(mac, address);
                            if lent.get(&address).is_some_and(|(of, _)| *of == mac) {
                                lent.remove(&address);
                            }
                        }
                        4 => pool.withdraw(mac),
                        _ => {
                            pool.decline(now, mac, address);
                            if lent.get(&address).is_some_and(|(of, _)| *of == mac) {
                                lent.remove(&address);
                            }
                        }
                    }
                }
            }
            _ => {
                for sender in [
                    neighbour::arp_sender(bytes).map(|(address, mac)| (IpAddr::V4(address), mac)),
                    neighbour::ndp_sender(bytes).map(|(address, mac)| (IpAddr::V6(address), mac)),
                ] {
                    if let Some((address, mac)) = sender {
                        let waited = guests.learn(address, mac);
                        let frames = guests.release(address);
                        assert!(
                            waited
                                || frames.is_empty()
                                || guests.mac_of(address).is_some()
                                || mac.0[0] & 1 == 1
                                || mac.0 == [0; 6]
                        );
                        held -= frames.len();
                    }
                }
                let address = IpAddr::from([10, 0, 2, client & 7]);
                let mac = Mac([2, 0, 0, 0, 1, client >> 4]);
                if client & 8 != 0 {
                    guests.learn(address, mac);
                    assert!(guests.is_guest(mac) && guests.mac_of(address) == Some(mac));
                } else if guests.mac_of(address).is_none() {
                    let dropped = guests.hold(address, bytes);
                    held = held + 1 - dropped;
                }
                let mut asks = 0;
                while let Some(address) = guests.poll_new() {
                    asks += 1;
                    assert!(asks < 10);
                    let length = neighbour::ask(mac, address, address, &mut out);
                    assert!(length.is_some_and(|length| length < 100));
                }
                while let Some(due) = guests.poll_due(now) {
                    if let Due::GivenUp { dropped } = due {
                        held -= dropped;
                    }
                }
                let (known, asked, bytes) = guests.len();
                assert!(known <= 2 * limits.known && asked <= limits.asked && bytes <= asked * limits.held_bytes);
                assert!(held <= asked * limits.held_frames, "{held} frames are held");
            }
        }
    }
});
