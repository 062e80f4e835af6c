//! Published ports by either of podman's port handlers: who can reach them, and whom the container sees.
//!
//! `port_handler=slirp4netns` uses the helper's API socket, so the helper listens. `port_handler=rootlesskit` is
//! podman's own forwarder, which connects from inside the container's namespace: its clients are all the container
//! itself, whatever the helper does.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::talk::{expect_closed, expect_seen, expect_true, seen_tcp, tellers};
use crate::tools::{ask_tcp, ask_udp, at, connect, connect_from, heard_udp, udp};
use crate::world::{GATEWAY4, GUEST4, HOST4, HOST4_SECOND, HOST6, OUTSIDE4, OUTSIDE6, World};

scenarios!(
    by_slirp4netns,
    by_rootlesskit,
    ranges,
    nobody_behind_it,
    ipv6_addresses;
    tapway:
    two_ports_lead_to_one,
    fifty_clients_at_once,
);

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// On all addresses, on the loopback only, on one address only: the container's port is two digits of the host's.
const FORMS: [&str; 12] = [
    "-p",
    "8080:80",
    "-p",
    "8080:80/udp",
    "-p",
    "127.0.0.1:8081:81",
    "-p",
    "127.0.0.1:8081:81/udp",
    "-p",
    "198.51.100.11:8082:82",
    "-p",
    "198.51.100.11:8082:82/udp",
];

fn by_slirp4netns(w: &World) {
    let options = [&["--network", "slirp4netns:port_handler=slirp4netns"][..], &FORMS].concat();
    let c = w.container("c", &options);
    for port in [80, 81, 82] {
        tellers(&c.ns, GUEST4.into(), port);
    }
    // A client of the loopback is the gateway, everybody else is shown as it is.
    if w.ours() {
        expect_seen(&w.host, at(LOOPBACK, 8080), GATEWAY4.into());
        expect_seen(&w.host, at(LOOPBACK, 8081), GATEWAY4.into());
        expect_true(&w.outside, OUTSIDE4.into(), at(HOST4_SECOND, 8080));
    } else {
        // slirp4netns gives UDP clients of the loopback no answers under --disable-host-loopback, and answers from
        // the host's first address whichever was asked.
        assert_eq!(seen_tcp(&w.host, LOOPBACK.into(), at(LOOPBACK, 8080)).ip(), IpAddr::V4(GATEWAY4));
        assert_eq!(seen_tcp(&w.host, LOOPBACK.into(), at(LOOPBACK, 8081)).ip(), IpAddr::V4(GATEWAY4));
        let from = at(OUTSIDE4, 0);
        let (mine, seen) = ask_tcp(&w.outside, from, at(HOST4_SECOND, 8080));
        assert_eq!(seen, mine);
    }
    expect_true(&w.host, HOST4.into(), at(HOST4, 8080));
    expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, 8080));
    expect_true(&w.outside, OUTSIDE4.into(), at(HOST4_SECOND, 8082));
    expect_closed(&w.outside, at(HOST4, 8081));
    expect_closed(&w.outside, at(HOST4, 8082));
    expect_closed(&w.host, at(LOOPBACK, 8082));
}

fn by_rootlesskit(w: &World) {
    let options = [&["--network", "slirp4netns:port_handler=rootlesskit"][..], &FORMS].concat();
    let c = w.container("c", &options);
    for port in [80, 81, 82] {
        tellers(&c.ns, GUEST4.into(), port);
    }
    for (ns, to) in [
        (&w.host, at(LOOPBACK, 8080)),
        (&w.host, at(LOOPBACK, 8081)),
        (&w.host, at(HOST4, 8080)),
        (&w.outside, at(HOST4, 8080)),
        (&w.outside, at(HOST4_SECOND, 8082)),
    ] {
        expect_seen(ns, to, GUEST4.into());
    }
    expect_closed(&w.outside, at(HOST4, 8081));
    expect_closed(&w.outside, at(HOST4, 8082));
}

/// A range is one request per port, in any order; `tcp,udp` is two.
fn ranges(w: &World) {
    let options =
        ["--network", "slirp4netns:port_handler=slirp4netns", "-p", "9000-9009:70-79", "-p", "9000-9009:70-79/udp"];
    let c = w.container("c", &options);
    for port in 70..80 {
        tellers(&c.ns, GUEST4.into(), port);
    }
    for port in 9000..9010 {
        expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, port));
    }
    expect_closed(&w.outside, at(HOST4, 9010));
}

/// The client is accepted by the host before anybody asks the container, so all that can be said is the end.
fn nobody_behind_it(w: &World) {
    let _c = w.container("c", &["--network", "slirp4netns:port_handler=slirp4netns", "-p", "8080:80"]);
    // The end may come while connect() still looks whether it succeeded.
    let end = connect(&w.outside, at(HOST4, 8080)).and_then(|mut stream| stream.read(&mut [0]));
    let reset = end.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
    assert!(reset || end.as_ref().is_ok_and(|&n| n == 0), "{end:?}");
}

/// slirp4netns listens on IPv4 only and says so; podman hands its words on.
fn ipv6_addresses(w: &World) {
    w.podman_image();
    let options = ["run", "-d", "--name", "c", "--network", "slirp4netns:port_handler=slirp4netns"];
    let options = [&options[..], &["-p", "[::1]:8080:80", "-p", "[2001:db8:51::1]:8081:80", "box"]].concat();
    let started = w.podman(&[&options[..], crate::world::IDLE].concat()).end();
    if !w.ours() {
        assert_eq!(started.code, 126, "{}", started.stderr);
        assert!(started.stderr.contains("bad arguments.host_addr"), "{}", started.stderr);
        return;
    }
    assert_eq!(started.code, 0, "{}", started.stderr);
    let c = w.running("c");
    tellers(&c.ns, OUTSIDE4.into(), 80);
    let loopback: SocketAddr = "[::1]:8080".parse().unwrap();
    // podman asks for the default guest, which is known by its IPv4 address only.
    assert_eq!(seen_tcp(&w.host, loopback.ip(), loopback).ip(), IpAddr::V4(GATEWAY4));
    assert_eq!(seen_tcp(&w.outside, OUTSIDE6.into(), at(HOST6, 8081)).ip(), IpAddr::V4(GATEWAY4));
}

/// Two host ports lead to one port of the container; each client hears from where it asked.
fn two_ports_lead_to_one(w: &World) {
    let network = "slirp4netns:port_handler=slirp4netns";
    let ports = ["-p", "8080:80/udp", "-p", "8081:80/udp", "-p", "8080:80", "-p", "8081:80"];
    let c = w.container("c", &[&["--network", network][..], &ports].concat());
    tellers(&c.ns, GUEST4.into(), 80);
    let (one, two) = (udp(&w.outside, at(OUTSIDE4, 0)), udp(&w.outside, at(OUTSIDE4, 0)));
    w.outside.run(|| one.connect(at(HOST4, 8080)).and_then(|()| two.connect(at(HOST4, 8081)))).unwrap();
    for _ in 0..3 {
        assert_eq!(heard_udp(&one), one.local_addr().unwrap());
        assert_eq!(heard_udp(&two), two.local_addr().unwrap());
    }
    for port in [8080, 8081] {
        expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, port));
    }
    // The loopback's own clients too, in turn.
    for port in [8080, 8081, 8080] {
        assert_eq!(ask_udp(&w.host, at(LOOPBACK, 0), at(LOOPBACK, port)).1.ip(), IpAddr::V4(GATEWAY4));
    }
}

fn fifty_clients_at_once(w: &World) {
    let c = w.container("c", &["--network", "slirp4netns:port_handler=slirp4netns", "-p", "8080:80"]);
    tellers(&c.ns, GUEST4.into(), 80);
    std::thread::scope(|scope| {
        let ask = || {
            let mut stream = connect_from(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8080)).unwrap();
            let mine = stream.local_addr().unwrap();
            assert_eq!(crate::tools::heard_tcp(&mut stream), mine);
        };
        for _ in 0..50 {
            scope.spawn(ask);
        }
    });
}
