//! What monitor and network process say to each other (`api::attach`), from whoever has taken the other over.
//!
//! Input: packets, one a line.
//!
//! What must hold: what was read can be written and read again, descriptors with it; what is too long or comes from a side that is
//! gone is refused as that; the parts of a zone are bounded and what they make is
//! refused or a zone; the configuration of an endpoint makes a stack, which takes a frame.
#![no_main]

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smoltcp::time::Instant;
use tapway::api::attach::{self, AttachError, FromNetwork, ToNetwork, ZoneParts};
use tapway::host::resolver::{self, Resolver};
use tapway::network::fault::{Limits, Rule, Rules};
use tapway::network::zone::{self, Zone};
use tapway::stack::fault::{self, Faults};
use tapway::stack::switch::{Members, Switch, SwitchLimits};
use tapway::stack::{Output, PingToHost, Stack, UdpToHost};
use tapway::wire::vnet::MAX_FRAME;

/// Bounds of a zone in parts, small so that they are met.
const RECORDS: usize = 8;

struct Nobody(usize);

impl Output for Nobody {
    fn to_guest(&mut self, frame: &[u8]) -> bool {
        assert!(frame.len() <= MAX_FRAME);
        self.0 += 1;
        true
    }
    fn udp_to_host(&mut self, _: &UdpToHost<'_>) {}
    fn ping_to_host(&mut self, _: &PingToHost<'_>) {}
    fn dns_query(&mut self, _: std::net::SocketAddr, _: std::net::SocketAddr, _: &[u8]) {}
}

impl Members for Nobody {
    fn to_member(&mut self, _: u16, frame: &[u8]) {
        assert!(frame.len() <= MAX_FRAME);
    }
}

fn told(message: ToNetwork, parts: &mut ZoneParts) {
    let now = Instant::from_secs(1000);
    match message {
        ToNetwork::Attach { endpoint, membership, .. } => {
            let mut out = Nobody(0);
            let mut stack = Stack::new((*endpoint).clone(), tapway::stack::Limits::default(), 5, now);
            stack.handle_timeout(now, &mut out);
            let mut frame = vec![0; 60];
            frame[10..22].copy_from_slice(&[0xff; 12]);
            frame[22..24].copy_from_slice(&[8, 6]);
            stack.handle_from_guest(now, &mut frame, &mut out);
            let mut switch = Switch::new(true, SwitchLimits::default(), 3);
            if switch.attach(0, &endpoint, membership.map(|one| *one).unwrap_or_default(), &mut Nobody(0)).is_ok() {
                switch.handle_from_guest(now, 0, &mut frame, (&mut stack, &mut out), &mut Nobody(0));
                switch.detach(0);
            }
            assert!(switch.is_empty());
        }
        ToNetwork::HostDns { servers, zones } => {
            let limits = resolver::Limits::default();
            let resolver = Resolver::new(limits);
            resolver.set_servers(servers);
            resolver.set_zones(&zones);
            assert!(resolver.servers().len() <= limits.servers);
        }
        ToNetwork::Zone { records, more } => {
            if let Some(records) = parts.add(records, more, RECORDS) {
                assert!(records.len() <= RECORDS + 1);
                match Zone::new(records.clone(), &zone::Limits::default()) {
                    Ok(zone) => assert!(zone.records().len() <= records.len()),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
                let messages = attach::zone_messages(records).expect("records can be written");
                assert!(messages.iter().all(|message| attach::text(message).is_ok()), "a message that is too long");
            }
        }
        ToNetwork::Faults { faults } => {
            let rules: Vec<Rule> = faults.iter().filter_map(|rule| Rule::try_from(rule).ok()).collect();
            let limits = Limits::default();
            let rules = Rules::of(rules, &limits);
            let mut faults = Faults::new(fault::Limits::default());
            faults.set_rules(rules.all(), now);
            let _ = rules.dns_fail();
        }
        _ => {}
    }
}

/// One packet on its way from process to process.
fn read<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(packet: &[u8]) -> Option<T> {
    let (theirs, ours) = UnixDatagram::pair().expect("a pair");
    let sent = packet.len() % (attach::MAX_FDS + 1);
    let fds: Vec<RawFd> = std::iter::repeat_n(ours.as_raw_fd(), sent).collect();
    attach::send_text(&theirs, packet, &fds).ok()?;
    let (message, fds) = attach::recv::<T>(&ours).ok()?;
    assert_eq!(fds.len(), sent);
    assert!(
        attach::send_text(&theirs, packet, &[0; attach::MAX_FDS + 1]).is_err(),
        "more descriptors than one may send"
    );
    if attach::send(&theirs, &message, &[]).is_ok() {
        let (again, _) = attach::recv::<T>(&ours).expect("what was written can be read");
        assert_eq!(again, message);
    }
    Some(message)
}

/// A packet that is longer than any may be, and the other side's end.
fn overlong(packet: &[u8]) {
    let (theirs, ours) = UnixDatagram::pair().expect("a pair");
    let long = packet.repeat(attach::MAX_MESSAGE / packet.len() + 1);
    if attach::send_text(&theirs, &long, &[]).is_ok() {
        assert!(matches!(attach::recv::<ToNetwork>(&ours), Err(AttachError::TooLarge)));
    }
    drop(ours);
    assert!(matches!(attach::send_text(&theirs, packet, &[]), Err(AttachError::Closed | AttachError::Socket { .. })));
}

fuzz_target!(|input: &[u8]| {
    let mut parts = ZoneParts::default();
    for packet in input.split(|&byte| byte == b'\n').take(16) {
        if let Some(message) = read::<ToNetwork>(packet) {
            told(message, &mut parts);
        }
        read::<FromNetwork>(packet);
        if packet.first() == Some(&0) {
            overlong(packet);
        }
    }
});
