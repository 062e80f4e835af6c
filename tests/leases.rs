//! Leases and the real kernel: processes that are stopped keep their addresses, those that are killed have lost them.
//!
//! A test executes itself anew as somebody who takes a lease; the locks of one process's threads would prove less.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tapway::network::creation::{Fresh, Request, assemble};
use tapway::network::definition::Network;
use tapway::network::lease::Wanted;
use tapway::network::timestamp::Timestamp;
use tapway::sandbox::leases::{Leases, remove_network};
use tapway::sandbox::networks::Store;

/// Directory and number of the one who takes a lease.
const KEY: &str = "TAPWAY_TEST_LEASE";

struct World(PathBuf);

impl World {
    fn new(tag: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tapway-leases-{}-{tag}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        let subnets = assemble(&["10.9.0.0/24".to_owned()], &[], &[], &[]).unwrap();
        let request = Request { name: "foo".to_owned(), subnets, ipv6: true, ..Request::default() };
        let fresh = Fresh { id: [7; 32], ula: [1; 7], now: Timestamp::default() };
        Store::new(Some(&path)).create(request, &[], fresh).unwrap();
        Self(path)
    }

    fn network(&self) -> Network {
        Store::new(Some(&self.0)).find("foo").unwrap()
    }

    fn leases(&self) -> Leases {
        Leases::open(&self.0, &self.network())
    }

    fn live(&self) -> Vec<String> {
        self.leases().live().iter().map(|lease| lease.v4.to_string()).collect()
    }

    /// Starts somebody who takes a lease.
    fn start(&self, number: u32) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["holder", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(KEY, format!("{number} {}", self.0.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What somebody got, or why not.
fn got(child: &mut Child) -> String {
    let reader = BufReader::new(child.stdout.as_mut().unwrap());
    let mut lines = reader.lines().map(|line| line.unwrap());
    lines.find_map(|line| line.split_once("got ").map(|(_, got)| got.to_owned())).unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Not a test by itself: the one who takes a lease, says so and waits.
#[test]
fn holder() {
    let Ok(key) = std::env::var(KEY) else { return };
    let (number, path) = key.split_once(' ').unwrap();
    let number: u32 = number.parse().unwrap();
    let path = Path::new(path);
    let store = Store::new(Some(path));
    let network = store.find("foo").unwrap();
    let wanted = Wanted {
        sandbox_id: format!("{number:012x}"),
        sandbox_name: format!("c{number}"),
        pid: std::process::id(),
        interface: "eth0".to_owned(),
        ..Wanted::default()
    };
    let held = match Leases::open(path, &network).take(&store, &network, &wanted) {
        Ok(held) => held,
        Err(error) => {
            println!("got {error}");
            return;
        }
    };
    println!("got {}", held.lease().v4);
    // Until the end of the input: a lease that is given back.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

#[test]
fn fifty_at_once_get_fifty_addresses_and_half_of_them_are_killed() {
    let world = World::new("fifty");
    let mut children: Vec<Child> = (0..50).map(|number| world.start(number)).collect();
    for child in &mut children {
        got(child);
    }
    let all: Vec<String> = (2..52).map(|n| format!("10.9.0.{n}")).collect();
    assert_eq!(world.live(), all);
    let of_v6: Vec<_> = world.leases().live().iter().map(|lease| lease.v6.unwrap().segments()[7]).collect();
    assert!(of_v6.iter().all(|host| (2..52).contains(host)));
    for child in children.drain(..25) {
        end(child);
    }
    let left = world.live();
    assert_eq!(left.len(), 25);
    // Everything that they held is free: the lowest first.
    let free: Vec<&String> = all.iter().filter(|address| !left.contains(address)).collect();
    for (number, address) in (100..103).zip(free) {
        let mut child = world.start(number);
        assert_eq!(got(&mut child), *address);
        children.push(child);
    }
    children.into_iter().for_each(end);
    assert_eq!(world.live(), [""; 0]);
    remove_network(&world.0, &Store::new(Some(&world.0)), &world.network()).unwrap();
}

#[test]
fn a_stopped_holder_keeps_its_address() {
    let world = World::new("stopped");
    let mut first = world.start(1);
    assert_eq!(got(&mut first), "10.9.0.2");
    signal(&first, Signal::SIGSTOP);
    let mut second = world.start(2);
    assert_eq!(got(&mut second), "10.9.0.3");
    assert_eq!(world.live(), ["10.9.0.2", "10.9.0.3"]);
    let mut again = world.start(1);
    assert_eq!(got(&mut again), "endpoint with name c1 already exists in network foo");
    end(again);
    end(first);
    let mut third = world.start(3);
    assert_eq!(got(&mut third), "10.9.0.2", "a killed one has lost it that moment");
    // One that ends in order leaves no file.
    drop(third.stdin.take());
    third.wait().unwrap();
    assert!(!world.leases().dir().join("leases/10.9.0.2").exists());
    end(second);
}

#[test]
fn a_network_that_is_removed_takes_nobody() {
    let world = World::new("removed");
    let network = world.network();
    let store = Store::new(Some(&world.0));
    let mut first = world.start(1);
    got(&mut first);
    let error = remove_network(&world.0, &store, &network).unwrap_err().to_string();
    assert!(
        error.starts_with("error while removing network: network foo has active endpoints (name:\"c1\" id:\""),
        "{error}"
    );
    end(first);
    remove_network(&world.0, &store, &network).unwrap();
    let late = Leases::open(&world.0, &network).take(&store, &network, &Wanted::default()).unwrap_err();
    assert_eq!(late.to_string(), "network foo not found");
}
