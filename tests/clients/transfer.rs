//! Bulk data and names, through podman's ordinary container: 20 MiB each way, compared by SHA-256 that busybox in the
//! container computes.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use crate::talk::{blob, collect, download, exchange, first_word, offer, sha256};
use crate::tools::{any, at, udp};
use crate::world::{Container, GATEWAY4, HOST4, OUTSIDE_NAME, OUTSIDE4, OUTSIDE6, World, wait_for};

scenarios!(
    outside_by_ipv4,
    outside_by_ipv6,
    outside_at_mtu_1500,
    published_by_slirp4netns,
    published_by_rootlesskit,
    datagrams_of_every_size,
    names,
    ping,
);

const LENGTH: usize = 20 << 20;

/// 20 MiB up and down between a container and a server outside.
fn each_way(w: &World, c: &Container, outside: IpAddr) {
    let made = c.sh(&format!(
        "dd if=/dev/urandom of=/tmp/blob bs=1024 count={} 2>/dev/null; sha256sum /tmp/blob",
        LENGTH >> 10
    ));
    let (to, got) = collect(&w.outside, outside);
    c.sh(&format!("nc {} {} </tmp/blob", to.ip(), to.port()));
    let got = got.join().unwrap();
    assert_eq!((got.len(), sha256(&got)), (LENGTH, first_word(&made)), "up to {to}");

    let bytes = blob(0x5eed, LENGTH);
    let sum = sha256(&bytes);
    let from = offer(&w.outside, outside, bytes);
    let got = c.sh(&format!("nc {} {} </dev/null | sha256sum", from.ip(), from.port()));
    assert_eq!(first_word(&got), sum, "down from {from}");
}

fn outside_by_ipv4(w: &World) {
    each_way(w, &w.container("c", &[""; 0]), OUTSIDE4.into());
}

fn outside_by_ipv6(w: &World) {
    let c = w.container("c", &[""; 0]);
    c.addr6();
    each_way(w, &c, OUTSIDE6.into());
}

fn outside_at_mtu_1500(w: &World) {
    let c = w.container("c", &["--network", "slirp4netns:mtu=1500"]);
    assert!(c.sh("ip link show tap0").contains("mtu 1500"));
    c.addr6();
    each_way(w, &c, OUTSIDE4.into());
    each_way(w, &c, OUTSIDE6.into());
}

/// 20 MiB each way through a published port, from outside and from the host's loopback.
fn published(w: &World, handler: &str) {
    let network = format!("slirp4netns:port_handler={handler}");
    let c = w.container("c", &["--network", &network, "-p", "8080:80", "-p", "8081:81"]);
    let made = c.sh(&format!(
        "dd if=/dev/urandom of=/tmp/blob bs=1024 count={} 2>/dev/null; sha256sum /tmp/blob",
        LENGTH >> 10
    ));
    let bytes = blob(0xf00d, LENGTH);
    let sum = sha256(&bytes);
    for (ns, host) in [(&w.outside, HOST4.into()), (&w.host, IpAddr::from([127, 0, 0, 1]))] {
        // sha256sum reads to the end, which only comes if the forwarder hands on that one way was closed.
        let back = with_server(w, &c, "nc -l -p 80 -e sha256sum", 80, || exchange(ns, at(host, 8080), &bytes));
        assert_eq!(first_word(&String::from_utf8(back).unwrap()), sum, "into the container by {host}");
        let back = with_server(w, &c, "nc -l -p 81 </tmp/blob", 81, || download(ns, at(host, 8081)));
        assert_eq!((back.len(), sha256(&back)), (LENGTH, first_word(&made)), "out of the container by {host}");
    }
}

/// Runs `f` while `server` listens in the container on `port`; the server must end by itself.
fn with_server<T>(w: &World, c: &Container, server: &str, port: u16, f: impl FnOnce() -> T) -> T {
    let server = w.podman(&["exec", &c.name, "sh", "-ec", server]).spawn();
    c.ns.await_listener(port);
    let value = f();
    let ended = server.end(Duration::from_secs(20));
    assert_eq!(ended.code, 0, "the server in the container said: {}", ended.stderr);
    value
}

fn published_by_slirp4netns(w: &World) {
    published(w, "slirp4netns");
}

fn published_by_rootlesskit(w: &World) {
    published(w, "rootlesskit");
}

/// UDP to an echo server outside, up to what fits in one packet of podman's MTU.
fn datagrams_of_every_size(w: &World) {
    let c = w.container("c", &[""; 0]);
    c.addr6();
    // A path of 1500 lies between: larger datagrams are fragmented by the host.
    for outside in [IpAddr::from(OUTSIDE4), OUTSIDE6.into()] {
        let to = echo(w, outside);
        let socket = udp(&c.ns, any(to));
        c.ns.run(|| socket.connect(to)).unwrap();
        for length in [0, 1, 512, 1400, 1472, 1473, 4000, 9000, 40_000, 65_000] {
            let bytes = blob(length as u64, length);
            socket.send(&bytes).unwrap();
            let mut back = vec![0; 65_536];
            let n = socket.recv(&mut back).unwrap_or_else(|e| panic!("no echo of {length} bytes from {to}: {e}"));
            assert!(back[..n] == bytes[..], "{length} bytes to {to} came back as {n}, or changed");
        }
    }
}

/// Where a server outside sends every datagram back.
fn echo(w: &World, outside: IpAddr) -> SocketAddr {
    let socket = udp(&w.outside, at(outside, 0));
    let here = socket.local_addr().unwrap();
    socket.set_read_timeout(None).unwrap();
    thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while let Ok((n, peer)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..n], peer);
        }
    });
    here
}

/// The container's resolv.conf, and the resolver behind 10.0.2.3, which is the host's on its loopback.
fn names(w: &World) {
    let c = w.container("c", &[""; 0]);
    let conf = c.sh("cat /etc/resolv.conf");
    assert_eq!(conf.lines().next(), Some("nameserver 10.0.2.3"), "{conf}");
    let found = c.sh(&format!("nslookup {OUTSIDE_NAME} 10.0.2.3"));
    assert!(found.contains(&OUTSIDE4.to_string()) && found.contains(&OUTSIDE6.to_string()), "{found}");
    // By TCP, and by IPv6.
    c.addr6();
    for (server, option) in [("10.0.2.3", "+tcp"), ("fd00::3", "+notcp"), ("fd00::3", "+tcp")] {
        let line = format!("dig +short +tries=2 +time=5 {option} @{server} {OUTSIDE_NAME} A");
        assert_eq!(c.ns.sh(&line).trim(), OUTSIDE4.to_string(), "{line}");
    }
    // What a program does: look up, connect.
    let bytes = blob(7, 100_000);
    let sum = sha256(&bytes);
    let from = offer(&w.outside, OUTSIDE4.into(), bytes);
    let got = c.sh(&format!("nc {OUTSIDE_NAME} {} </dev/null | sha256sum", from.port()));
    assert_eq!(first_word(&got), sum);
}

/// Echo requests to the gateway, the resolver and the world.
fn ping(w: &World) {
    let c = w.container("c", &["--cap-add", "NET_RAW"]);
    c.addr6();
    for to in [GATEWAY4.to_string(), "10.0.2.3".into(), OUTSIDE4.to_string(), "fd00::2".into()] {
        wait_for(&format!("an echo from {to}"), Duration::from_secs(10), || {
            w.podman(&["exec", "c", "ping", "-c", "1", "-W", "2", &to]).end().code == 0
        });
    }
    // libslirp 4.7 drops echo requests by IPv6 to the world.
    if w.ours() {
        c.sh(&format!("ping -c 1 -W 5 {OUTSIDE6}"));
    }
}
