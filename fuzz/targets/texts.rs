//! Texts of files and of the command line that somebody else wrote: definitions of networks, leases, state files,
//! resolv.conf, /etc/hosts, /etc/subuid, /etc/passwd, routes and mounts of /proc, ports, amounts, times, subnets.
//!
//! Input: a byte (which part, modulo 8), the text.
//!
//! What must hold: what was read is written and read again as the same; what is refused has a text; lists are bounded;
//! of a file that is edited, the lines of others stay.
#![no_main]

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;
use std::time::Duration;

use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tapway::network::capture::{CaptureFilter, CaptureProtocol};
use tapway::network::config::{EndpointConfig, NetworkConfig};
use tapway::network::definition::{self, Network};
use tapway::network::fault::{Rate, Share, Span};
use tapway::network::ipam::IpamConfig;
use tapway::network::lease::Lease;
use tapway::network::timestamp::Timestamp;
use tapway::network::{options, plan, pools, publish, resolv};
use tapway::sandbox::state::{self, Sandbox};
use tapway::sandbox::{edit, files, host_dns, host_routes, users};
use tapway::stack::census::{Cursor, FlowId};
use tapway_fuzz::Input;

/// JSON of a file, which other versions and other people may have written.
fn read<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(text: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(text).ok()?;
    let again = serde_json::to_vec(&value).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&again).expect("what was written can be read"), value);
    Some(value)
}

fn definition(text: &[u8]) {
    if let Some(lease) = read::<Lease>(text) {
        assert!(lease.addresses().count() >= 1);
    }
    for network in Network::predefined(text.len() as u32) {
        assert!(network.is_predefined() && network.short_id().len() == definition::SHORT_ID);
    }
    let Some(network) = read::<Network>(text) else { return };
    let _ = (network.icc(), network.masquerade(), network.bridge_name(), network.is_predefined(), network.is_default());
    if let Err(error) = network.check() {
        assert!(!error.to_string().is_empty());
        return;
    }
    assert!(network.short_id().len() == definition::SHORT_ID);
    let (config, _) = network.v4().expect("a network has IPv4");
    assert_eq!(network.v6().is_some(), network.ipv6);
    let mut taken = BTreeSet::new();
    for _ in 0..3 {
        let Some(address) = config.lowest_free(&taken) else { break };
        assert!(config.subnet.contains(&address) && !config.is_reserved(address), "{address}");
        assert!(taken.insert(address), "{address} was taken");
    }
    let usage = config.usage(&taken);
    assert!(usage.in_use >= taken.len() as u64, "{usage:?}");
    if let Some(mtu) = network.mtu() {
        assert!(plan::check_mtu(mtu.into(), network.ipv6).is_ok());
    }
    assert!(options::check(&network.options, network.ipv6).is_ok());
}

fn servers(text: &str) {
    let conf = resolv::parse(text);
    assert!(conf.servers.len() <= resolv::MAX_SERVERS);
    assert!(host_dns::servers(&conf).len() <= conf.servers.len());
    let addresses: Vec<IpAddr> = conf.servers.iter().map(|server| server.address).collect();
    let again = resolv::parse(&resolv::render(&addresses, &conf.search, &conf.options));
    assert_eq!(again.servers.len(), addresses.len());
    assert_eq!((again.search, again.options), (conf.search, conf.options));
}

/// A file without a name.
fn scratch() -> &'static File {
    static FILE: OnceLock<File> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("tapway-fuzz-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        std::fs::remove_file(path).expect("its name is not needed");
        file
    })
}

fn hosts(text: &[u8]) {
    // Of the text: the lines of ours as they were, those that are wanted, and the file.
    let mut parts = text.splitn(3, |&byte| byte == 0);
    let mut lines = || -> Vec<String> {
        let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        text.split('\n').filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    let (ours, wanted) = (lines(), lines());
    let file = parts.next().unwrap_or_default();
    let new = edit::replaced(file, &ours, &wanted);
    // The same in a file, which is held as the monitor holds it.
    let on_disk = scratch();
    on_disk.set_len(0).and_then(|()| on_disk.write_all_at(file, 0)).expect("the file takes it");
    let held = on_disk.try_clone().expect("a descriptor");
    if edit::Edited::new(held.into(), ours.clone()).set(wanted.clone()).is_ok() {
        let mut found = vec![0; on_disk.metadata().expect("it is there").len() as usize];
        on_disk.read_exact_at(&mut found, 0).expect("it can be read");
        assert!(ours == wanted || found == new, "the file became another than the text");
    }
    let count = |text: &[u8], line: &str| text.split(|&byte| byte == b'\n').filter(|l| *l == line.as_bytes()).count();
    for line in &wanted {
        assert!(count(&new, line) >= 1, "a wanted line is missing");
    }
    for line in String::from_utf8_lossy(file).split('\n').filter(|line| !line.is_empty()) {
        if !ours.iter().any(|own| own == line) && !line.contains('\u{fffd}') {
            assert!(count(&new, line) >= count(file, line), "a line of somebody else's is gone");
        }
    }
    // Once more changes nothing but where nothing is wanted.
    if ours == wanted || ours.is_empty() {
        let again = edit::replaced(&new, &wanted, &wanted);
        for line in &wanted {
            assert!(count(&again, line) <= count(&new, line), "a line was doubled");
        }
    }
}

fn kernel(text: &str) {
    if text.is_empty() {
        assert!(host_routes::read().iter().all(|net| net.prefix_len() > 0));
    }
    for net in host_routes::on_link(text) {
        assert!(net.prefix_len() > 0 && net.addr() == net.network());
    }
    for point in files::mounts_below_sys(text) {
        assert!(point.starts_with("/sys"));
    }
    let ranges = users::subordinate(text, Some("user"), 1000);
    assert!(ranges.iter().all(|(_, count)| *count > 0));
    for inside in [0, 1000, u32::MAX - 1] {
        let map = users::full(inside, 1000, &ranges);
        assert!(users::covers(&map, inside), "the caller is nobody");
        assert!(!users::render(&map).is_empty());
        let mut ends: Vec<(u64, u64)> =
            map.iter().map(|range| (range.inside.into(), u64::from(range.inside) + u64::from(range.count))).collect();
        ends.sort_unstable();
        assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0), "ids inside overlap: {map:?}");
        assert!(ends.iter().all(|(_, end)| *end <= 1 << 32), "ids beyond 32 bits: {map:?}");
    }
    let _ = users::unchanged(text);
    if let Some(name) = users::name_of(text, 1000) {
        assert!(!name.contains('\n'));
    }
    let _ = users::parse_user(text);
}

fn amounts(text: &str) {
    if let Ok(time) = text.parse::<Timestamp>() {
        assert_eq!(time.to_string().parse(), Ok(time), "{text}");
        assert!(!time.go().is_empty());
    }
    if let Ok(span) = text.parse::<Span>() {
        assert_eq!(span.to_string().parse(), Ok(span), "{text}");
    }
    if let Ok(share) = text.parse::<Share>() {
        assert_eq!(share.to_string().parse(), Ok(share), "{text}");
    }
    if let Ok(Some(rate)) = Rate::parse(text) {
        assert_eq!(Rate::parse(&rate.to_string()), Ok(Some(rate)), "{text}");
    }
    if let Ok(id) = text.parse::<FlowId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(cursor) = text.parse::<Cursor>() {
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }
}

fn plans(text: &str) {
    match plan::parse_subnet(text) {
        Ok(IpNet::V4(net)) => {
            if let Some(config) = IpamConfig::with_gateway(net.into(), None) {
                assert!(config.subnet.contains(&config.gateway) && !config.is_nobodys(config.gateway));
            }
            if let Ok(plan) = plan::plan_v4(net) {
                assert!([plan.gateway, plan.dns, plan.guest].iter().all(|address| net.contains(address)));
                assert!(plan::contains(Some(&plan), None, plan.guest.into()));
            }
            let networks: Vec<_> = text.lines().filter_map(|line| line.parse().ok()).collect();
            for size in [None, Some(24), Some(net.prefix_len())] {
                if let Ok(found) = pools::allocate(size, &networks, &[net]) {
                    assert!(
                        networks.iter().chain([&net]).all(|other| !pools::overlap(&found, other)),
                        "{found} is taken"
                    );
                }
            }
        }
        Ok(IpNet::V6(net)) => {
            if let Ok(plan) = plan::plan_v6(net) {
                assert!([plan.gateway, plan.dns, plan.guest].iter().all(|address| net.contains(address)));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(mac) = plan::parse_mac(text) {
        assert_eq!(plan::parse_mac(&mac.to_string()), Ok(mac));
    }
    let _ = (state::is_name(text), definition::check_name(text));
}

fn ports(text: &str) {
    let specs: Vec<&str> = text.lines().collect();
    if let Ok(all) = publish::parse_all(&specs) {
        assert!(all.len() <= publish::MAX_PORTS);
    }
    for spec in &specs {
        match publish::parse(spec) {
            Ok(ports) => assert!(!ports.is_empty() && ports.len() <= 65_536),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    if let Ok(exposed) = publish::parse_exposed(&specs[..specs.len().min(2)]) {
        let mut published = Vec::new();
        publish::publish_exposed(&mut published, exposed.into_iter().take(64).collect());
        assert!(published.len() <= 64);
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let part = input.byte() & 7;
    let bytes = input.0;
    let text = String::from_utf8_lossy(bytes);
    match part {
        0 => definition(bytes),
        1 => servers(&text),
        2 => hosts(bytes),
        3 => kernel(&text),
        4 => amounts(&text),
        5 => plans(&text),
        6 => ports(&text),
        _ => {
            // A state file, and what a network process gets on its command line.
            let _ = serde_json::from_slice::<Sandbox>(bytes).map(|sandbox| serde_json::to_vec(&sandbox));
            read::<EndpointConfig>(bytes);
            read::<CaptureFilter>(bytes);
            if let Ok(protocol) = text.parse::<CaptureProtocol>() {
                assert_eq!(protocol.name().parse(), Ok(protocol));
            }
            let _ = serde_json::from_slice::<NetworkConfig>(bytes);
            let _ = Timestamp::since_epoch(Duration::from_secs(bytes.len() as u64)).to_string();
        }
    }
});
