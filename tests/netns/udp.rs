//! UDP: every size across a 1500-byte link, one mapping per socket, errors that come back, bounds.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::tools::{Pattern, any, ask_udp, at, echo_udp, heard_udp, tell_udp, udp};
use crate::world::{HOST4, HOST6, INET4, INET6, Ns, World, long};

/// Sizes to try: all of them in the nightly run, else every one around the link's and the fragments' edges and a
/// stride that visits each residue modulo 8 (fragment offsets count in eights).
fn sizes(most: usize) -> Vec<usize> {
    if long() {
        return (0..=most).collect();
    }
    let near_fragment_edge = |n: usize| (n + 8) % 1480 < 12 || (n + 8) % 1448 < 12;
    (0..=most).filter(|&n| n <= 3100 || n % 211 == 0 || near_fragment_edge(n) || n > most - 64).collect()
}

/// Sends each size once and expects it back; returns the sizes that did not come.
fn lost(socket: &UdpSocket, sizes: &[usize]) -> Vec<usize> {
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut pattern = Pattern::new(9);
    let (mut sent, mut back) = (vec![0; 65_536], vec![0; 65_536]);
    let mut lost = Vec::new();
    'sizes: for &size in sizes {
        pattern.fill(&mut sent[..size]);
        // A "fragmentation needed" for an earlier datagram may surface as an error of this send.
        if socket.send(&sent[..size]).is_err() && socket.send(&sent[..size]).is_err() {
            lost.push(size);
            continue;
        }
        loop {
            match socket.recv(&mut back) {
                // A late answer to a size already counted as lost.
                Ok(n) if n != size => {}
                Ok(n) => {
                    assert!(back[..n] == sent[..n], "{n} bytes came back changed");
                    break;
                }
                Err(_) => {
                    lost.push(size);
                    continue 'sizes;
                }
            }
        }
    }
    lost
}

fn echo_of_every_size(near: &Ns, server: SocketAddr, most: usize) {
    let socket = udp(near, any(server));
    near.run(|| socket.connect(server)).unwrap();
    let lost = lost(&socket, &sizes(most));
    assert!(lost.is_empty(), "{} sizes were lost on the way to {server}: {lost:?}", lost.len());
}

/// Guests set DF by default (`ip_no_pmtu_disc` 0), so the first datagram that is too long for the path costs one
/// "fragmentation needed"; with the sysctl at 1 the guest lets others fragment and nothing at all may be lost.
#[test]
fn every_size_outward_v4() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        guest.sh("echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc");
        let server = at(INET4, 7200);
        echo_udp(&w.internet, server);
        echo_of_every_size(&guest.ns, server, 65_507);
    });
}

#[test]
fn every_size_outward_v6() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let server = at(INET6, 7200);
        echo_udp(&w.internet, server);
        let socket = udp(&guest.ns, any(server));
        guest.run(|| socket.connect(server)).unwrap();
        // An IPv6 path says "too big" to the first one; from then on the guest's kernel cuts.
        let first = lost(&socket, &[60_000]);
        let lost = lost(&socket, &sizes(65_507 - 20));
        assert!(lost.is_empty(), "lost {} sizes (first probe: {first:?}): {lost:?}", lost.len());
    });
}

#[test]
fn every_size_inward() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7200:7200/udp"]);
        guest.sh("echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc");
        w.internet.sh("echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc");
        echo_udp(&guest.ns, at([0; 4], 7200));
        echo_udp(&guest.ns, at([0u16; 8], 7200));
        echo_of_every_size(&w.internet, at(HOST4, 7200), 65_507);
        echo_of_every_size(&w.internet, at(HOST6, 7200), 65_507 - 20);
    });
}

#[test]
fn a_guest_with_mtu_1500_fragments() {
    World::run(|w| {
        let guest = w.guest(&["--mtu", "1500"]);
        for server in [at(INET4, 7200), at(INET6, 7200)] {
            echo_udp(&w.internet, server);
            let socket = udp(&guest.ns, any(server));
            guest.run(|| socket.connect(server)).unwrap();
            let lost = lost(&socket, &[0, 1, 1472, 1473, 2945, 4000, 9000, 30_000, 65_487]);
            assert!(lost.is_empty(), "{server}: {lost:?}");
        }
    });
}

/// Don't-fragment is honoured: too long for the link is told, not cut, and costs one datagram.
#[test]
fn dont_fragment_is_answered_with_the_path_mtu() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        for (server, family) in [(at(INET4, 7200), "-4"), (at(INET6, 7200), "-6")] {
            echo_udp(&w.internet, server);
            let socket = udp(&guest.ns, any(server));
            guest.run(|| socket.connect(server)).unwrap();
            let first = lost(&socket, &[4000]);
            assert_eq!(first, [4000], "{server}: 4000 bytes with DF crossed a link of 1500");
            let route = guest.ns.sh(&format!("ip {family} route get {}", server.ip()));
            assert!(route.contains("mtu 1500"), "the guest did not learn the path's MTU: {route}");
            let lost = lost(&socket, &[4000, 1472, 1473, 9000, 65_000]);
            assert!(lost.is_empty(), "{server}: {lost:?}");
        }
    });
}

/// The same for a link beyond the host's own: the router's ICMP finds its way to the guest.
#[test]
fn a_routers_fragmentation_needed_reaches_the_guest() {
    World::run(|w| {
        w.router.sh(&format!(
            "ip route add {INET4}/32 dev n0 mtu lock 1300; ip -6 route add {INET6}/128 dev n0 mtu lock 1300"
        ));
        let guest = w.guest(&["--mtu", "1500"]);
        for (server, family) in [(at(INET4, 7200), "-4"), (at(INET6, 7200), "-6")] {
            echo_udp(&w.internet, server);
            let socket = udp(&guest.ns, any(server));
            guest.run(|| socket.connect(server)).unwrap();
            let _ = lost(&socket, &[1400]);
            let route = guest.ns.sh(&format!("ip {family} route get {}", server.ip()));
            assert!(route.contains("mtu 1300"), "the guest did not learn the path's MTU: {route}");
            assert!(lost(&socket, &[1400, 1200, 3000]).is_empty(), "{server}");
        }
    });
}

/// STUN, games and WebRTC depend on it: one socket of the guest is one port outside, whomever it talks to.
#[test]
fn one_mapping_for_all_destinations() {
    World::run(|w| {
        w.internet.sh("ip addr add 198.51.100.3/24 dev up0; ip addr add 2001:db8:2::3/64 dev up0 nodad");
        let guest = w.guest::<&str>(&[]);
        for (first, second, host) in [
            (at(INET4, 7200), "198.51.100.3:7300", IpAddr::V4(HOST4)),
            (at(INET6, 7200), "[2001:db8:2::3]:7300", IpAddr::V6(HOST6)),
        ] {
            let second: SocketAddr = second.parse().unwrap();
            tell_udp(&w.internet, first);
            tell_udp(&w.internet, second);
            let socket = udp(&guest.ns, any(first));
            let ask = |server: SocketAddr| {
                let mut bytes = [0; 128];
                socket.send_to(b"?", server).unwrap();
                let (n, from) = socket.recv_from(&mut bytes).expect("no answer");
                assert_eq!(from, server, "the answer came from another address");
                String::from_utf8_lossy(&bytes[..n]).parse::<SocketAddr>().unwrap()
            };
            let (one, two) = (ask(first), ask(second));
            assert_eq!(one.ip(), host);
            assert_eq!(one, two, "two destinations saw two mappings");
            // A third party that learned the mapping can answer to it: that is what hole punching needs.
            let third = udp(&w.internet, at(second.ip(), 7400));
            third.send_to(b"hello", one).unwrap();
            let mut bytes = [0; 16];
            let (n, from) = socket.recv_from(&mut bytes).expect("the third party was not heard");
            assert_eq!((&bytes[..n], from), (&b"hello"[..], third.local_addr().unwrap()));
        }
    });
}

#[test]
fn a_closed_port_is_told() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7300:7300/udp"]);
        for (near, server) in [
            (&guest.ns, at(INET4, 7201)),
            (&guest.ns, at(INET6, 7201)),
            (&w.internet, at(HOST4, 7302)),
            (&w.internet, at(HOST6, 7302)),
        ] {
            let socket = udp(near, any(server));
            near.run(|| socket.connect(server)).unwrap();
            socket.send(b"anyone?").unwrap();
            let error = socket.recv(&mut [0; 8]).expect_err("nobody is there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{server}: {error}");
        }
    });
}

/// The error of one destination must not cost another destination its datagram.
#[test]
fn an_error_hurts_nobody_else() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let good = at(INET4, 7200);
        echo_udp(&w.internet, good);
        let socket = udp(&guest.ns, any(good));
        for round in 0..50u8 {
            socket.send_to(b"nobody listens", at(INET4, 7201)).unwrap();
            // Now and then the ICMP error is there before the next datagram, now and then it is not.
            if round % 2 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            socket.send_to(&[round], good).unwrap();
            let mut bytes = [0; 8];
            let (n, from) = socket.recv_from(&mut bytes).unwrap_or_else(|e| panic!("round {round} was lost: {e}"));
            assert_eq!((&bytes[..n], from), (&[round][..], good));
        }
    });
}

/// More sockets than an endpoint may map: the oldest idle ones make room, the new ones work.
#[test]
fn mappings_are_bounded() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let server = at(INET4, 7200);
        tell_udp(&w.internet, server);
        let before = w.sockets();
        guest.run(|| {
            for port in 20_000..26_000u16 {
                let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
                socket.send_to(b"?", server).unwrap();
                if port % 64 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let (_, seen) = ask_udp(&guest.ns, any(server), server);
        assert_eq!(seen.ip(), IpAddr::V4(HOST4));
        let grown = w.sockets().saturating_sub(before);
        assert!(grown <= 4100, "{grown} sockets for one endpoint");
        assert!(grown >= 500, "only {grown} mappings lived");
    });
}

/// A burst of equal datagrams (what `UDP_SEGMENT` and `UDP_GRO` are for) arrives as it was cut.
#[test]
fn a_burst_keeps_its_boundaries() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7300:7300/udp"]);
        for (near, far, bind, server) in [
            (&guest.ns, &w.internet, at(INET4, 7200), at(INET4, 7200)),
            (&guest.ns, &w.internet, at(INET6, 7200), at(INET6, 7200)),
            (&w.internet, &guest.ns, at([0; 4], 7300), at(HOST4, 7300)),
            (&w.internet, &guest.ns, at([0u16; 8], 7300), at(HOST6, 7300)),
        ] {
            let receiver = udp(far, bind);
            receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let sender = udp(near, any(server));
            near.run(|| sender.connect(server)).unwrap();
            let mut seen = 0;
            for burst in 0..50u32 {
                for i in 0..20u32 {
                    let mut datagram = vec![0; if i == 19 { 333 } else { 1200 }];
                    datagram[..4].copy_from_slice(&(burst * 20 + i).to_be_bytes());
                    sender.send(&datagram).unwrap();
                }
                let mut bytes = [0; 4096];
                for _ in 0..20 {
                    let Ok(n) = receiver.recv(&mut bytes) else { break };
                    let number = u32::from_be_bytes(bytes[..4].try_into().unwrap());
                    assert_eq!(n, if number % 20 == 19 { 333 } else { 1200 }, "datagram {number}");
                    seen += 1;
                }
            }
            assert!(seen >= 990, "only {seen} of 1000 datagrams arrived at {server}");
        }
    });
}

/// As many datagrams as one call may carry (UDP_MAX_SEGMENTS, net/ipv4/udp.c), which the TAP brings as one frame.
#[test]
fn a_super_frame_of_small_datagrams_arrives_whole() {
    const EACH: usize = 24;
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        for server in [at(INET4, 7200), at(INET6, 7200)] {
            let receiver = udp(&w.internet, server);
            receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let sender = udp(&guest.ns, any(server));
            guest.run(|| sender.connect(server)).unwrap();
            sender.send(b"a mapping").unwrap();
            receiver.recv(&mut [0; 64]).unwrap();
            nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::UdpGsoSegment, &(EACH as i32)).unwrap();
            // Before Linux 6.9 half as many.
            let (mut pattern, mut count) = (Pattern::new(24), 128);
            let mut all = vec![0; count * EACH + 7];
            let mut seen = 0;
            for _ in 0..20 {
                pattern.fill(&mut all);
                if sender.send(&all[..(count - 1) * EACH + 7]).is_err() && count == 128 {
                    count = 64;
                    sender.send(&all[..(count - 1) * EACH + 7]).unwrap();
                }
                let mut bytes = [0; 2048];
                for number in 0..count {
                    let Ok(n) = receiver.recv(&mut bytes) else { break };
                    let expected = if number + 1 == count { 7 } else { EACH };
                    assert!(bytes[..n] == all[number * EACH..][..expected], "datagram {number} of {count}: {n} bytes");
                    seen += 1;
                }
            }
            assert_eq!(seen, 20 * count, "to {server}");
        }
    });
}

/// After the guest's socket is silent for a while the mapping still answers, as a DNS or QUIC client expects.
#[test]
fn a_mapping_outlives_a_pause() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let server = at(INET4, 7200);
        tell_udp(&w.internet, server);
        let socket = udp(&guest.ns, any(server));
        guest.run(|| socket.connect(server)).unwrap();
        let first = heard_udp(&socket);
        let again = heard_udp(&socket);
        std::thread::sleep(Duration::from_secs(20));
        assert_eq!(first, again);
        assert_eq!(heard_udp(&socket), first, "the mapping changed within 20 s");
    });
}
