//! RootlessKit, which makes a persistent TAP of its own, configures it, starts the helper as the unprivileged user and
//! ends it by SIGKILL.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::talk::{
    blob, collect, expect_closed, expect_seen, expect_true, first_word, offer, seen_tcp, sha256, tellers,
    tellers_outside,
};
use crate::tools::{ask_tcp, ask_udp, at, connect, listen, tell_tcp};
use crate::world::{
    GATEWAY4, GUEST4, HOST4, HOST6, HOST6_SECOND, INSTALLED, Ns, OUTSIDE_NAME, OUTSIDE4, OUTSIDE6, Proc, World,
    global6, ns_of, wait_for,
};

scenarios!(
    the_recipe,
    twenty_mebibytes_each_way,
    builtin_ports,
    slirp4netns_ports,
    ports_come_and_go,
    refused_ports,
    cidr_and_mtu,
    ipv6,
    sandbox_and_seccomp,
    host_loopback,
    a_namespace_apart,
    ends,
);

/// Options without which nothing works.
const PLAIN: [&str; 2] = ["--net=slirp4netns", "--copy-up=/etc"];

/// A running RootlessKit whose command sleeps.
struct Kit {
    process: Proc,
    ns: Ns,
    /// The command, seen from the host.
    child: i32,
}

impl Kit {
    fn new(w: &World, options: &[&str]) -> Self {
        Self::of(w, &[&["rootlesskit"], &PLAIN[..], options].concat().join(" "))
    }

    /// From a shell line that lacks the command.
    fn of(w: &World, line: &str) -> Self {
        let state = w.path("kit");
        let line = format!("{line} --state-dir={} sh -c 'touch $HOME/ready; exec sleep 1000000'", state.display());
        let process = w.user(&["sh", "-ec", &format!("exec {line}")]).spawn();
        let ready = w.path("ready");
        let deadline = Instant::now() + Duration::from_secs(20);
        // The command may run before RootlessKit has written down where.
        let child = loop {
            let child = fs::read_to_string(state.join("child_pid")).unwrap_or_default();
            match child.trim().parse() {
                Ok(child) if ready.exists() => break child,
                _ => {}
            }
            assert!(Instant::now() < deadline && process.alive(), "RootlessKit did not start:\n{}", process.stderr());
            std::thread::sleep(Duration::from_millis(10));
        };
        fs::remove_file(&ready).unwrap();
        Self { process, ns: ns_of(child), child }
    }

    /// A shell line inside all of its namespaces; it must succeed.
    fn sh(&self, w: &World, line: &str) -> String {
        let pid = self.child.to_string();
        let enter = ["nsenter", "-t", &pid, "-U", "-n", "-m", "--preserve-credentials", "--"];
        w.user(&[&enter[..], &["sh", "-ec", line]].concat()).ok()
    }
}

/// Data, names and a refusal.
fn works(w: &World, kit: &Kit) {
    tellers_outside(w, 7000);
    assert_eq!(ask_tcp(&kit.ns, at([0; 4], 0), at(OUTSIDE4, 7000)).1.ip(), HOST4);
    assert_eq!(ask_udp(&kit.ns, at([0; 4], 0), at(OUTSIDE4, 7000)).1.ip(), HOST4);
    expect_closed(&kit.ns, at(OUTSIDE4, 7999));
}

/// The command of `contrib/containers/README.md`.
fn the_recipe(w: &World) {
    let text = include_str!("../../contrib/containers/README.md");
    let start = text.find("\nrootlesskit ").expect("no RootlessKit recipe");
    let line = text[start..].split("```").next().unwrap().replace("\\\n", " ");
    let line = line.trim().strip_suffix(" bash").expect("the recipe starts a shell");
    let kit = Kit::of(w, line);
    works(w, &kit);
    global6(&kit.ns, "tap0");
    tellers(&kit.ns, OUTSIDE4.into(), 80);
    let (mine, seen) = ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8080));
    assert_eq!(seen, mine);
    let found = kit.sh(w, &format!("dig +short +tries=2 {OUTSIDE_NAME} A"));
    assert_eq!(found.trim(), OUTSIDE4.to_string());
}

fn twenty_mebibytes_each_way(w: &World) {
    let kit = Kit::new(w, &[]);
    let made = kit.sh(w, "dd if=/dev/urandom of=$HOME/blob bs=1M count=20 2>/dev/null; sha256sum $HOME/blob");
    let (to, got) = collect(&w.outside, OUTSIDE4.into());
    kit.sh(w, &format!("busybox nc {} {} <$HOME/blob", to.ip(), to.port()));
    assert_eq!(sha256(&got.join().unwrap()), first_word(&made));
    let bytes = blob(21, 20 << 20);
    let sum = sha256(&bytes);
    let from = offer(&w.outside, OUTSIDE4.into(), bytes);
    let got = kit.sh(w, &format!("busybox nc {} {} </dev/null | sha256sum", from.ip(), from.port()));
    assert_eq!(first_word(&got), sum);
}

const PUBLISHED: [&str; 6] = [
    "--publish=0.0.0.0:8080:80/tcp",
    "--publish=0.0.0.0:8080:80/udp",
    "--publish=127.0.0.1:8081:81/tcp",
    "--publish=127.0.0.1:8081:81/udp",
    "--publish=198.51.100.11:8082:82/tcp",
    "--publish=198.51.100.11:8082:82/udp",
];

/// RootlessKit's own forwarder: the helper has no part in it.
fn builtin_ports(w: &World) {
    let kit = Kit::new(w, &[&PUBLISHED[..], &["--port-driver=builtin"]].concat());
    tellers(&kit.ns, OUTSIDE4.into(), 80);
    tellers(&kit.ns, OUTSIDE4.into(), 81);
    for (ns, to) in
        [(&w.host, at([127, 0, 0, 1], 8080)), (&w.host, at([127, 0, 0, 1], 8081)), (&w.outside, at(HOST4, 8080))]
    {
        let whom = seen_tcp(ns, IpAddr::from([0; 4]), to).ip();
        assert!(whom.is_loopback() || whom == IpAddr::V4(GUEST4), "{to}: {whom}");
        expect_seen(ns, to, whom);
    }
    works(w, &kit);
}

/// The helper forwards, by its API socket; the guest's address is spelt out.
fn slirp4netns_ports(w: &World) {
    let kit = Kit::new(w, &[&PUBLISHED[..], &["--port-driver=slirp4netns"]].concat());
    for port in [80, 81, 82] {
        tellers(&kit.ns, OUTSIDE4.into(), port);
    }
    expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, 8080));
    expect_true(&w.host, HOST4.into(), at(HOST4, 8080));
    for port in [8080, 8081] {
        let to = at([127, 0, 0, 1], port);
        assert_eq!(seen_tcp(&w.host, to.ip(), to).ip(), IpAddr::V4(GATEWAY4));
        // UDP clients of the loopback: slirp4netns serves those of a port on 127.0.0.1 alone.
        if w.ours() || port == 8081 {
            expect_seen(&w.host, to, GATEWAY4.into());
        }
    }
    expect_closed(&w.outside, at(HOST4, 8081));
    expect_true(&w.outside, OUTSIDE4.into(), at([198, 51, 100, 11], 8082));
}

/// `rootlessctl` on a running RootlessKit; must succeed.
fn control(w: &World, args: &[&str]) -> String {
    w.user(&[&["rootlessctl", "--socket", "kit/api.sock"], args].concat()).ok()
}

/// Ports are added, listed and removed while it runs; numbers are not used again.
fn ports_come_and_go(w: &World) {
    let kit = Kit::new(w, &["--port-driver=slirp4netns"]);
    tellers(&kit.ns, OUTSIDE4.into(), 85);
    assert_eq!(control(w, &["add-ports", "0.0.0.0:8085:85/tcp"]).trim(), "1");
    assert_eq!(control(w, &["add-ports", "0.0.0.0:8085:85/udp"]).trim(), "2");
    let list = control(w, &["list-ports", "--json"]);
    let mut lines: Vec<serde_json::Value> = list.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    // RootlessKit keeps them in no order.
    lines.sort_by_key(|line| line["id"].as_u64());
    assert_eq!(lines.len(), 2, "{list}");
    assert_eq!((&lines[0]["id"], &lines[0]["spec"]["parentPort"]), (&1.into(), &8085.into()), "{list}");
    expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, 8085));
    for id in ["1", "2"] {
        control(w, &["remove-ports", id]);
        wait_for("the port to close", Duration::from_secs(3), || connect(&w.outside, at(HOST4, 8085)).is_err());
    }
    assert_eq!(control(w, &["list-ports", "--json"]).trim(), "");
    for _ in 0..20 {
        let id = control(w, &["add-ports", "0.0.0.0:8085:85/tcp"]);
        assert!(ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8085)).1.port() != 0);
        control(w, &["remove-ports", id.trim()]);
        expect_closed(&w.outside, at(HOST4, 8085));
    }
}

/// Taken, privileged, unknown protocols and numbers: each an error of this request alone.
fn refused_ports(w: &World) {
    let kit = Kit::new(w, &["--port-driver=slirp4netns"]);
    let _taken = listen(&w.host, at([0; 4], 8090));
    for request in [
        &["add-ports", "0.0.0.0:8090:85/tcp"][..],
        &["add-ports", "0.0.0.0:85:85/tcp"],
        &["add-ports", "0.0.0.0:8085:85/sctp"],
        &["remove-ports", "7"],
    ] {
        let ended = w.user(&[&["rootlessctl", "--socket", "kit/api.sock"], request].concat()).end();
        assert_ne!(ended.code, 0, "{request:?} was granted: {}", ended.stdout);
    }
    tellers(&kit.ns, OUTSIDE4.into(), 85);
    control(w, &["add-ports", "0.0.0.0:8085:85/tcp"]);
    assert_eq!(ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8085)).1.ip(), IpAddr::V4(OUTSIDE4));
}

fn cidr_and_mtu(w: &World) {
    let kit = Kit::new(w, &["--cidr=10.7.0.0/16", "--mtu=1500", "--ifname=eth7"]);
    works(w, &kit);
    let device = kit.ns.sh("ip addr show dev eth7");
    assert!(device.contains("mtu 1500") && device.contains("inet 10.7.0.100/16"), "{device}");
    assert!(kit.sh(w, "cat /etc/resolv.conf").contains("nameserver 10.7.0.3"));
    let found = kit.ns.sh(&format!("dig +short +tries=2 @10.7.0.3 {OUTSIDE_NAME} A"));
    assert_eq!(found.trim(), OUTSIDE4.to_string());
    kit.ns.sh("ping -c 1 -W 5 10.7.0.2");
}

fn ipv6(w: &World) {
    let kit = Kit::new(w, &["--ipv6"]);
    works(w, &kit);
    assert_eq!(global6(&kit.ns, "tap0").segments()[..4], [0xfd00, 0, 0, 0]);
    let seen = ask_tcp(&kit.ns, at([0u16; 8], 0), at(OUTSIDE6, 7000)).1.ip();
    assert!(seen == IpAddr::V6(HOST6) || seen == IpAddr::V6(HOST6_SECOND), "{seen}");
    ask_udp(&kit.ns, at([0u16; 8], 0), at(OUTSIDE6, 7000));
}

fn sandbox_and_seccomp(w: &World) {
    let options = ["--slirp4netns-sandbox=true", "--slirp4netns-seccomp=true", "--disable-host-loopback"];
    let kit = Kit::new(w, &[&options[..], &["--port-driver=slirp4netns", "--publish=0.0.0.0:8080:80/tcp"]].concat());
    works(w, &kit);
    tellers(&kit.ns, OUTSIDE4.into(), 80);
    assert_eq!(ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8080)).1.ip(), IpAddr::V4(OUTSIDE4));
    // The resolver's address is read inside the sandbox too.
    let found = kit.ns.sh(&format!("dig +short +tries=2 @10.0.2.3 {OUTSIDE_NAME} A"));
    assert_eq!(found.trim(), OUTSIDE4.to_string());
}

fn host_loopback(w: &World) {
    tell_tcp(&w.host, at([127, 0, 0, 1], 7001));
    let open = Kit::new(w, &[]);
    assert!(ask_tcp(&open.ns, at([0; 4], 0), at(GATEWAY4, 7001)).1.ip().is_loopback());
    end(w, open);
    let closed = Kit::new(w, &["--disable-host-loopback"]);
    let error = connect(&closed.ns, at(GATEWAY4, 7001)).expect_err("the host's loopback is open");
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{error}");
}

/// From 2.0 on the command can stay in the host's network, and the helper is told its namespace by two paths.
fn a_namespace_apart(w: &World) {
    let version = w.user(&["rootlesskit", "--version"]).ok();
    if version.contains(" 1.") {
        let refused = w.user(&["rootlesskit", "--detach-netns", "true"]).end();
        assert!(refused.code != 0 && refused.stderr.contains("detach-netns"), "{}", refused.stderr);
        return;
    }
    let options = ["--detach-netns", "--disable-host-loopback", "--slirp4netns-seccomp=auto"];
    let kit = Kit::new(w, &[&options[..], &["--port-driver=slirp4netns", PUBLISHED[0]]].concat());
    let ns = fs::File::open(format!("/proc/{}/root/{}/netns", kit.child, w.path("kit").display())).unwrap();
    let kit = Kit { ns: ns.into(), ..kit };
    works(w, &kit);
    tellers(&kit.ns, OUTSIDE4.into(), 80);
    assert_eq!(ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8080)).1.ip(), IpAddr::V4(OUTSIDE4));
    end(w, kit);
}

/// Ends the command; RootlessKit and the helper must follow at once.
fn end(w: &World, kit: Kit) {
    kill(Pid::from_raw(kit.child), Signal::SIGTERM).unwrap();
    kit.process.end(Duration::from_secs(4));
    w.expect_quiet();
}

/// RootlessKit reads the helper's output to its end: whoever keeps it open holds RootlessKit.
fn ends(w: &World) {
    for options in [&[][..], &["--slirp4netns-sandbox=true", "--slirp4netns-seccomp=true", "--port-driver=slirp4netns"]]
    {
        let kit = Kit::new(w, options);
        assert_eq!(w.helpers().len(), 1);
        end(w, kit);
    }
    // RootlessKit itself is killed: the helper has it as the parent whose death it follows.
    let kit = Kit::new(w, &[]);
    kill(Pid::from_raw(kit.process.pid()), Signal::SIGKILL).unwrap();
    wait_for("the helper's end", Duration::from_secs(4), || w.helpers().is_empty());
    // By its own command, with that command's code.
    let code = w.user(&[&["rootlesskit"], &PLAIN[..], &["sh", "-c", "exit 7"]].concat()).end().code;
    assert_eq!(code, 7);
    assert!(!w.user(&[INSTALLED, "--help"]).ok().is_empty());
}
