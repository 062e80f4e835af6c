//! Rootless bridge networks: netavark and aardvark-dns in one namespace, with one helper below all of them. podman
//! starts it with the first container and ends it by SIGTERM after the last. (No IPv6: netavark turns forwarding on there,
//! and a forwarding kernel takes no router advertisements.)

use std::time::Duration;

use crate::talk::{blob, expect_seen, first_word, offer, sha256, tellers};
use crate::tools::{ask_tcp, ask_udp, at};
use crate::world::{HOST4, OUTSIDE_NAME, OUTSIDE4, World, need, wait_for};

scenarios!(one_helper_below_all, ports_and_names);

fn network(w: &World, name: &str) {
    for program in ["iptables", "/usr/lib/podman/netavark", "/usr/lib/podman/aardvark-dns"] {
        need(program);
        assert!(!program.contains('/') || std::path::Path::new(program).exists(), "{program}: {}", crate::PACKAGES);
    }
    w.podman(&["network", "create", name]).ok();
}

fn one_helper_below_all(w: &World) {
    network(w, "n1");
    network(w, "n2");
    let a = w.container("a", &["--network", "n1"]);
    let b = w.container("b", &["--network", "n1,n2"]);
    let c = w.container("c", &["--network", "n2"]);
    assert_eq!(w.helpers().len(), 1);
    crate::talk::tellers_outside(w, 7000);
    for container in [&a, &b, &c] {
        let any = at([0; 4], 0);
        assert_eq!(ask_tcp(&container.ns, any, at(OUTSIDE4, 7000)).1.ip(), HOST4);
        assert_eq!(ask_udp(&container.ns, any, at(OUTSIDE4, 7000)).1.ip(), HOST4);
    }
    let bytes = blob(3, 20 << 20);
    let sum = sha256(&bytes);
    let from = offer(&w.outside, OUTSIDE4.into(), bytes);
    let got = a.sh(&format!("nc {} {} </dev/null | sha256sum", from.ip(), from.port()));
    assert_eq!(first_word(&got), sum);
    for name in ["a", "b"] {
        w.podman(&["rm", "-f", "-t", "1", name]).ok();
    }
    assert_eq!(w.helpers().len(), 1);
    w.podman(&["rm", "-f", "-t", "1", "c"]).ok();
    wait_for("the helper's end", Duration::from_secs(5), || w.helpers().is_empty());
    w.expect_quiet();
    // The next container gets a new one.
    let c = w.container("c", &["--network", "n1"]);
    assert_eq!(ask_tcp(&c.ns, at([0; 4], 0), at(OUTSIDE4, 7000)).1.ip(), HOST4);
}

/// Ports go through podman's own forwarder; names of containers through aardvark-dns, which asks 10.0.2.3 for others.
fn ports_and_names(w: &World) {
    network(w, "n1");
    let server = w.container("server", &["--network", "n1", "-p", "8080:80", "-p", "8080:80/udp"]);
    let client = w.container("client", &["--network", "n1"]);
    tellers(&server.ns, OUTSIDE4.into(), 80);
    for (ns, host) in [(&w.outside, HOST4.into()), (&w.host, std::net::IpAddr::from([127, 0, 0, 1]))] {
        let (_, seen) = ask_tcp(ns, at([0; 4], 0), at(host, 8080));
        expect_seen(ns, at(host, 8080), seen.ip());
    }
    client.sh("nc server 80 </dev/null | grep -q '^10[.]89[.]'");
    let found = client.sh(&format!("nslookup -type=a {OUTSIDE_NAME}"));
    assert!(found.contains(&OUTSIDE4.to_string()), "{found}");
}
