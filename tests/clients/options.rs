//! What `--network slirp4netns:…` offers, each as the container and its peers see it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::talk::{expect_true, tellers, tellers_outside};
use crate::tools::{ask_tcp, ask_udp, at, connect, tell_tcp, udp};
use crate::world::{
    Container, GATEWAY4, GATEWAY6, HOST4, HOST4_SECOND, HOST6, HOST6_SECOND, INSTALLED, OUTSIDE_NAME, OUTSIDE4,
    OUTSIDE6, World,
};

scenarios!(
    defaults,
    cidr,
    without_ipv6,
    outbound_address,
    outbound_interface,
    host_loopback_denied,
    host_loopback_allowed,
    keep_id,
    uid_map,
    two_containers,
    options_of_the_file,
    without_sandbox,
    installed_as_a_copy;
    tapway:
    outbound_interface_of_ipv6,
);

/// Whom a server outside sees when the container asks.
fn seen(w: &World, c: &Container) -> [IpAddr; 4] {
    tellers_outside(w, 7000);
    c.addr6();
    let (to4, to6) = (at(OUTSIDE4, 7000), at(OUTSIDE6, 7000));
    let (any4, any6) = (at([0; 4], 0), at([0u16; 8], 0));
    [
        ask_tcp(&c.ns, any4, to4).1.ip(),
        ask_udp(&c.ns, any4, to4).1.ip(),
        ask_tcp(&c.ns, any6, to6).1.ip(),
        ask_udp(&c.ns, any6, to6).1.ip(),
    ]
}

fn defaults(w: &World) {
    // Nothing said at all: the helper is what podman takes.
    let c = w.container("c", &[""; 0]);
    assert_eq!(w.helpers().len(), 1);
    let tap = c.sh("ip addr show dev tap0");
    assert!(tap.contains("mtu 65520") && tap.contains("inet 10.0.2.100/24"), "{tap}");
    assert!(c.sh("ip route").contains("default via 10.0.2.2 dev tap0"));
    let address = c.addr6();
    assert_eq!(address.segments()[..4], [0xfd00, 0, 0, 0], "{address}");
    assert!(c.sh("ip -6 route").contains("default via fe80::2 dev tap0"));
    let hosts = c.sh("cat /etc/hosts");
    assert!(hosts.lines().any(|l| l.starts_with("10.0.2.100")), "{hosts}");
    let any = [IpAddr::V4(HOST4), HOST4.into(), HOST6.into(), HOST6.into()];
    let seen = seen(w, &c);
    assert_eq!(seen[..2], any[..2]);
    // Which of the host's two IPv6 addresses is the kernel's choice, by the order in which they were added.
    assert!(seen[2..].iter().all(|&a| a == IpAddr::V6(HOST6) || a == IpAddr::V6(HOST6_SECOND)), "{seen:?}");
}

fn cidr(w: &World) {
    let c = w.container("c", &["--network", "slirp4netns:cidr=10.99.0.0/16", "--cap-add", "NET_RAW"]);
    let tap = c.sh("ip addr show dev tap0");
    assert!(tap.contains("inet 10.99.0.100/16"), "{tap}");
    assert!(c.sh("ip route").contains("default via 10.99.0.2 dev tap0"));
    assert_eq!(c.sh("cat /etc/resolv.conf").lines().next(), Some("nameserver 10.99.0.3"));
    assert!(c.sh(&format!("nslookup {OUTSIDE_NAME} 10.99.0.3")).contains(&OUTSIDE4.to_string()));
    c.sh("ping -c 1 -W 5 10.99.0.2");
    seen(w, &c);
}

fn without_ipv6(w: &World) {
    let c = w.container("c", &["--network", "slirp4netns:enable_ipv6=false"]);
    tellers_outside(w, 7000);
    ask_tcp(&c.ns, at([0; 4], 0), at(OUTSIDE4, 7000));
    // Time for a router advertisement that must not come.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(c.sh("ip -6 addr show dev tap0 scope global").trim(), "");
    let error = connect(&c.ns, at(OUTSIDE6, 7000)).expect_err("there is a way out by IPv6");
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{error}");
}

fn outbound_address(w: &World) {
    let network = format!("slirp4netns:outbound_addr={HOST4_SECOND},outbound_addr6={HOST6_SECOND}");
    let c = w.container("c", &["--network", &network]);
    let (v4, v6) = (IpAddr::V4(HOST4_SECOND), IpAddr::V6(HOST6_SECOND));
    assert_eq!(seen(w, &c), [v4, v4, v6, v6]);
}

fn outbound_interface(w: &World) {
    // The host's choice would be its first address; an interface that is not the way out has only the other.
    w.host
        .sh("ip link add other type veth peer name far; ip addr add 198.51.100.77/32 dev other; ip link set other up");
    let c = w.container("c", &["--network", "slirp4netns:outbound_addr=other"]);
    assert_eq!(seen(w, &c)[..2], [IpAddr::from([198, 51, 100, 77]); 2]);
}

/// slirp4netns looks up the name that was given for IPv4 instead.
fn outbound_interface_of_ipv6(w: &World) {
    w.host.sh("ip link add other type veth peer name far; ip addr add 2001:db8:51::77/128 dev other nodad; ip link set other up");
    w.outside.sh(&format!("ip -6 route add 2001:db8:51::77 via {HOST6}"));
    let c = w.container("c", &["--network", "slirp4netns:outbound_addr6=other"]);
    let other: Ipv6Addr = "2001:db8:51::77".parse().unwrap();
    assert_eq!(seen(w, &c)[2..], [IpAddr::V6(other); 2]);
}

/// Servers on the host: on its loopback only, and on its own address only.
fn host_servers(w: &World) {
    for (address, port) in [
        (IpAddr::from([127, 0, 0, 1]), 7001),
        (IpAddr::V6(Ipv6Addr::LOCALHOST), 7001),
        (HOST4.into(), 7002),
        (HOST6.into(), 7002),
    ] {
        tell_tcp(&w.host, at(address, port));
        crate::tools::tell_udp(&w.host, at(address, port));
    }
}

fn host_loopback_denied(w: &World) {
    let c = w.container("c", &[""; 0]);
    c.addr6();
    host_servers(w);
    for gateway in [IpAddr::V4(GATEWAY4), GATEWAY6.into()] {
        let before = Instant::now();
        let error = connect(&c.ns, at(gateway, 7001)).expect_err("the host's loopback is open");
        assert_eq!(error.kind(), ErrorKind::NetworkUnreachable, "{gateway}: {error}");
        assert!(before.elapsed() < Duration::from_secs(1), "{gateway} was refused after {:?}", before.elapsed());
        let socket = udp(&c.ns, crate::tools::any(at(gateway, 0)));
        c.ns.run(|| socket.connect(at(gateway, 7001))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let _ = socket.send(b"who?");
        socket.recv(&mut [0; 64]).expect_err("the host's loopback answers");
    }
    // The host's own addresses are none of its loopback.
    ask_tcp(&c.ns, at([0; 4], 0), at(HOST4, 7002));
    ask_udp(&c.ns, at([0; 4], 0), at(HOST4, 7002));
    ask_tcp(&c.ns, at([0u16; 8], 0), at(HOST6, 7002));
    // A name server on the loopback serves all the same.
    assert!(c.sh(&format!("nslookup {OUTSIDE_NAME} 10.0.2.3")).contains(&OUTSIDE4.to_string()));
}

fn host_loopback_allowed(w: &World) {
    let c = w.container("c", &["--network", "slirp4netns:allow_host_loopback=true"]);
    c.addr6();
    host_servers(w);
    let (any4, any6) = (at([0; 4], 0), at([0u16; 8], 0));
    assert!(ask_tcp(&c.ns, any4, at(GATEWAY4, 7001)).1.ip().is_loopback());
    assert!(ask_udp(&c.ns, any4, at(GATEWAY4, 7001)).1.ip().is_loopback());
    assert!(ask_tcp(&c.ns, any6, at(GATEWAY6, 7001)).1.ip().is_loopback());
    assert!(ask_udp(&c.ns, any6, at(GATEWAY6, 7001)).1.ip().is_loopback());
    let error = connect(&c.ns, at(GATEWAY4, 7009)).expect_err("nobody listens there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    // podman's name for the host leads to the host's own address, or to the gateway: either is the host.
    let hosts = c.sh("cat /etc/hosts");
    assert!(hosts.contains("host.containers.internal"), "{hosts}");
}

/// The container's user namespace is nested in podman's: podman 4.3 names the namespace by a process id then.
fn keep_id(w: &World) {
    let options = [
        "--userns",
        "keep-id",
        "--network",
        "slirp4netns:port_handler=slirp4netns",
        "-p",
        "8080:80",
        "-p",
        "8080:80/udp",
    ];
    let c = w.container("c", &options);
    assert_eq!(c.sh("id -u").trim(), "1000");
    seen(w, &c);
    tellers(&c.ns, OUTSIDE4.into(), 80);
    expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, 8080));
}

fn uid_map(w: &World) {
    let c = w.container("c", &["--uidmap", "0:1:5000"]);
    assert_eq!(c.sh("id -u").trim(), "0");
    seen(w, &c);
}

/// Set for all containers in containers.conf; the command line has the last word.
fn options_of_the_file(w: &World) {
    w.configure("network_cmd_options = [\"mtu=9000\", \"cidr=192.168.0.0/24\", \"enable_ipv6=false\"]");
    let c = w.container("c", &["--network", "slirp4netns:enable_ipv6=true,port_handler=slirp4netns", "-p", "8080:80"]);
    let tap = c.sh("ip addr show dev tap0");
    assert!(tap.contains("mtu 9000") && tap.contains("inet 192.168.0.100/24"), "{tap}");
    seen(w, &c);
    // The default guest of the API socket is that of the network.
    tellers(&c.ns, OUTSIDE4.into(), 80);
    assert_eq!(ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, 8080)).1.ip(), IpAddr::V4(OUTSIDE4));
}

/// podman asks for no sandbox where pivot_root does not work.
fn without_sandbox(w: &World) {
    w.configure("no_pivot_root = true");
    let c = w.container("c", &[""; 0]);
    let arguments = std::fs::read(format!("/proc/{}/cmdline", w.helpers()[0])).unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains("sandbox"));
    seen(w, &c);
}

/// A copy under that name, in a directory of the user's own.
fn installed_as_a_copy(w: &World) {
    w.podman_image();
    w.user_sh(&format!("mkdir bin; cp -L {INSTALLED} bin/slirp4netns"));
    let options = ["--network-cmd-path", "/mnt/home/bin/slirp4netns", "run", "-d", "--name", "c", "box"];
    w.podman(&[&options[..], crate::world::IDLE].concat()).ok();
    seen(w, &w.running("c"));
}

/// Each has a helper and a network of its own, with the same addresses.
fn two_containers(w: &World) {
    let handler = "slirp4netns:port_handler=slirp4netns";
    let a = w.container("a", &["--network", handler, "-p", "8080:80", "-p", "8080:80/udp"]);
    let b = w.container("b", &["--network", handler, "-p", "8081:80", "-p", "8081:80/udp"]);
    assert_eq!(w.helpers().len(), 2);
    for c in [&a, &b] {
        tellers(&c.ns, OUTSIDE4.into(), 80);
    }
    seen(w, &a);
    for port in [8080, 8081] {
        let (mine, seen) = ask_tcp(&w.outside, at(OUTSIDE4, 0), at(HOST4, port));
        assert_eq!(seen, mine);
    }
    w.podman(&["rm", "-f", "-t", "0", "a"]).ok();
    assert_eq!(w.helpers().len(), 1);
    expect_true(&w.outside, OUTSIDE4.into(), at(HOST4, 8081));
}
