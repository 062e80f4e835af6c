//! What a guest may reach of the host: nothing on loopback unless it was asked for, whatever form the address takes.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::tools::{any, ask_tcp, ask_udp, at, connect, tell_tcp, tell_udp, udp};
use crate::world::{GATEWAY4, HOST4, HOST6, Ns, World};

/// On the host: loopback only.
const CLOSED: u16 = 7500;
/// On the host: every address.
const OPEN: u16 = 7501;

fn no_answer(ns: &Ns, to: SocketAddr) {
    let error = connect(ns, to).expect_err("a connection went through");
    assert_ne!(error.kind(), ErrorKind::InvalidInput, "{to}: {error}");
    let socket = udp(ns, any(to));
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    if ns.run(|| socket.connect(to)).and_then(|()| socket.send(b"?")).is_ok() {
        assert!(socket.recv(&mut [0; 128]).is_err(), "{to} answered a datagram");
    }
}

fn loopback_servers(w: &World) {
    for addr in [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()] {
        tell_tcp(&w.host, at(addr, CLOSED));
        tell_udp(&w.host, at(addr, CLOSED));
    }
    for addr in [at([0; 4], OPEN), at([0u16; 8], OPEN)] {
        tell_tcp(&w.host, addr);
        tell_udp(&w.host, addr);
    }
}

#[test]
fn the_gateway_is_the_host_but_not_its_loopback() {
    World::run(|w| {
        loopback_servers(w);
        let guest = w.guest::<&str>(&[]);
        let gateway6 = guest.gateway6();
        for to in [at(GATEWAY4, OPEN), at(HOST4, OPEN)] {
            assert_eq!(ask_tcp(&guest.ns, any(to), to).1.ip(), IpAddr::V4(HOST4), "{to}");
            assert_eq!(ask_udp(&guest.ns, any(to), to).1.ip(), IpAddr::V4(HOST4), "{to}");
        }
        for to in [at(gateway6, OPEN), at(HOST6, OPEN)] {
            assert_eq!(ask_tcp(&guest.ns, any(to), to).1.ip(), IpAddr::V6(HOST6), "{to}");
            assert_eq!(ask_udp(&guest.ns, any(to), to).1.ip(), IpAddr::V6(HOST6), "{to}");
        }
        for to in [at(GATEWAY4, CLOSED), at(gateway6, CLOSED), at(HOST4, CLOSED), at(HOST6, CLOSED)] {
            no_answer(&guest.ns, to);
        }
    });
}

#[test]
fn host_loopback_opens_when_asked() {
    World::run(|w| {
        loopback_servers(w);
        let guest = w.guest(&["--allow-host-loopback"]);
        for (to, host) in [
            (at(GATEWAY4, CLOSED), IpAddr::from([127, 0, 0, 1])),
            (at(guest.gateway6(), CLOSED), IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ] {
            assert_eq!(ask_tcp(&guest.ns, any(to), to).1.ip(), host);
            assert_eq!(ask_udp(&guest.ns, any(to), to).1.ip(), host);
        }
    });
}

#[test]
fn link_local_is_closed_and_opens_when_asked() {
    World::run(|w| {
        // Cloud metadata lives at such an address; here the router plays it.
        w.router.sh("ip addr add 169.254.169.254/16 dev h0");
        w.host.sh("ip addr add 169.254.9.2/16 dev up0");
        let metadata = at([169, 254, 169, 254], 80);
        let counters = [tell_tcp(&w.router, metadata), tell_udp(&w.router, metadata)];
        {
            let guest = w.guest::<&str>(&[]);
            no_answer(&guest.ns, metadata);
            assert!(counters.iter().all(|c| c.load(Ordering::Relaxed) == 0), "metadata was asked");
        }
        let guest = w.guest(&["--allow-link-local"]);
        ask_tcp(&guest.ns, any(metadata), metadata);
        ask_udp(&guest.ns, any(metadata), metadata);
    });
}

/// Frames that the guest's kernel would never send, written to the TAP by hand: each names a destination that, handed
/// to `connect()` or `sendto()` on the host, would reach a server on the host's loopback.
const FORGE: &str = r#"
import socket, struct, subprocess, sys, time, json
dst, port, proto = sys.argv[1], int(sys.argv[2]), sys.argv[3]
addrs = json.loads(subprocess.check_output(["ip", "-j", "addr", "show", "dev", "eth0"]))[0]
mac = bytes.fromhex(addrs["address"].replace(":", ""))
six = ":" in dst
src = [a["local"] for a in addrs["addr_info"] if a["family"] == ("inet6" if six else "inet") and a["scope"] == "global"][0]
route = json.loads(subprocess.check_output(["ip", "-j", "-6" if six else "-4", "route", "show", "default"]))[0]["gateway"]
subprocess.call(["ping", "-c1", "-W1", (route + "%eth0") if route.startswith("fe80") else route], stdout=subprocess.DEVNULL)
neigh = json.loads(subprocess.check_output(["ip", "-j", "neigh", "show", route, "dev", "eth0"]))
gw = bytes.fromhex(neigh[0]["lladdr"].replace(":", ""))
fam = socket.AF_INET6 if six else socket.AF_INET
s, d = socket.inet_pton(fam, src), socket.inet_pton(fam, dst)
def csum(b):
    if len(b) % 2: b += b"\0"
    t = sum(struct.unpack("!%dH" % (len(b) // 2), b))
    while t >> 16: t = (t & 0xffff) + (t >> 16)
    return ~t & 0xffff
if proto == "tcp":
    num, body = 6, struct.pack("!HHIIBBHHH", 33333, port, 1000, 0, 0x50, 2, 65535, 0, 0)
    at = 16
else:
    num, body = 17, struct.pack("!HHHH", 33333, port, 12, 0) + b"who?"
    at = 6
pseudo = s + d + (struct.pack("!IHBB", len(body), 0, 0, num) if six else struct.pack("!BBH", 0, num, len(body)))
body = body[:at] + struct.pack("!H", csum(pseudo + body)) + body[at + 2:]
if six:
    ip = struct.pack("!IHBB", 6 << 28, len(body), num, 64) + s + d
else:
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, num, 0) + s + d
    ip = ip[:10] + struct.pack("!H", csum(ip)) + ip[12:]
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
raw.send(gw + mac + struct.pack("!H", 0x86dd if six else 0x0800) + ip + body)
time.sleep(0.5)
"#;

#[test]
fn no_form_of_loopback_gets_through() {
    World::run(|w| {
        let tcp = [tell_tcp(&w.host, at([127, 0, 0, 1], CLOSED)), tell_tcp(&w.host, at(Ipv6Addr::LOCALHOST, CLOSED))];
        let udp = [tell_udp(&w.host, at([127, 0, 0, 1], CLOSED)), tell_udp(&w.host, at(Ipv6Addr::LOCALHOST, CLOSED))];
        let heard = |proto: &str| -> usize {
            if proto == "tcp" { &tcp } else { &udp }.iter().map(|c| c.load(Ordering::Relaxed)).sum()
        };
        let port = CLOSED.to_string();
        {
            let guest = w.guest::<&str>(&[]);
            for dst in [
                "0.0.0.0",
                "0.0.0.1",
                "127.0.0.1",
                "127.1.2.3",
                "::",
                "::1",
                "::ffff:127.0.0.1",
                "::ffff:0.0.0.0",
                "::ffff:203.0.113.2",
            ] {
                for proto in ["tcp", "udp"] {
                    guest.cmd(&["/usr/bin/python3", "-c", FORGE, dst, &port, proto]).ok();
                    assert_eq!(heard(proto), 0, "{proto} to {dst} reached the host's loopback");
                }
            }
        }
        // The forged frames are good ones: where loopback is open they arrive.
        let guest = w.guest(&["--allow-host-loopback"]);
        let gateway6 = guest.gateway6().to_string();
        for (n, dst) in [(1, "10.0.2.2"), (2, gateway6.as_str())] {
            for proto in ["tcp", "udp"] {
                guest.cmd(&["/usr/bin/python3", "-c", FORGE, dst, &port, proto]).ok();
                assert_eq!(heard(proto), n, "the forged {proto} frame to {dst} is wrong, so this test shows nothing");
            }
        }
    });
}
