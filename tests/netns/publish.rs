//! Published ports: the forms of `-p`, and what address the guest's server sees.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::tools::{any, ask_tcp, ask_udp, at, connect_from, heard_tcp, heard_udp, tell_tcp, tell_udp, udp};
use crate::world::{GATEWAY4, Guest, HOST4, HOST6, INET4, INET6, Ns, ROUTER4, ROUTER6, World, addresses6, wait_for};

/// Port on which the guest's servers say whom they see.
const INSIDE: u16 = 7300;
/// The same port published, both protocols.
const BOTH: [&str; 4] = ["-p", "8080:7300", "-p", "8080:7300/udp"];

fn servers(guest: &Guest) {
    tell_tcp(&guest.ns, at([0; 4], INSIDE));
    tell_tcp(&guest.ns, at([0u16; 8], INSIDE));
    tell_udp(&guest.ns, at([0; 4], INSIDE));
    tell_udp(&guest.ns, at([0u16; 8], INSIDE));
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The client is shown as it is.
fn expect_true(ns: &Ns, from: IpAddr, to: SocketAddr) {
    let (mine, seen) = ask_tcp(ns, at(from, 0), to);
    assert_eq!(seen, mine, "TCP {from} -> {to}");
    let (mine, seen) = ask_udp(ns, at(from, 0), to);
    assert_eq!(seen, mine, "UDP {from} -> {to}");
}

/// The client is shown as `as_whom`.
fn expect_stand_in(ns: &Ns, from: IpAddr, to: SocketAddr, as_whom: IpAddr) {
    let (_, seen) = ask_tcp(ns, at(from, 0), to);
    assert_eq!(seen.ip(), as_whom, "TCP {from} -> {to}");
    let (_, seen) = ask_udp(ns, at(from, 0), to);
    assert_eq!(seen.ip(), as_whom, "UDP {from} -> {to}");
}

#[test]
fn the_guest_sees_the_true_client() {
    World::run(|w| {
        let guest = w.guest(&BOTH);
        servers(&guest);
        expect_true(&w.internet, INET4.into(), at(HOST4, 8080));
        expect_true(&w.internet, INET6.into(), at(HOST6, 8080));
        // The neighbour on the same link too, and the host itself by its own address.
        expect_true(&w.router, ROUTER4.into(), at(HOST4, 8080));
        expect_true(&w.router, ROUTER6.into(), at(HOST6, 8080));
        expect_true(&w.host, HOST4.into(), at(HOST4, 8080));
        expect_true(&w.host, HOST6.into(), at(HOST6, 8080));
    });
}

#[test]
fn nginx_logs_the_true_client() {
    World::run(|w| {
        let guest = w.guest(&["-p", "8080:80"]);
        let _nginx = crate::programs::nginx(w, "inside", |argv| guest.cmd(argv), &guest.ns);
        for (server, client) in [(format!("{HOST4}"), ip("198.51.100.2")), (format!("[{HOST6}]"), INET6.into())] {
            w.internet.sh(&format!("curl -sSg --fail --max-time 20 http://{server}:8080/small >/dev/null"));
            let log = std::fs::read_to_string(w.path("inside/access.log")).unwrap();
            let last = log.lines().last().unwrap_or_default();
            assert!(last.starts_with(&format!("{client} ")), "{server}: nginx logged {last:?}");
        }
    });
}

#[test]
fn a_loopback_client_is_the_gateway() {
    World::run(|w| {
        let guest = w.guest(&BOTH);
        servers(&guest);
        expect_stand_in(&w.host, ip("127.0.0.1"), at([127, 0, 0, 1], 8080), GATEWAY4.into());
        let gateway = guest.gateway6().into();
        expect_stand_in(&w.host, ip("::1"), SocketAddr::new(ip("::1"), 8080), gateway);
    });
}

#[test]
fn a_link_local_client_is_the_gateway() {
    World::run(|w| {
        w.router.sh("ip addr add 169.254.9.1/16 dev h0");
        w.host.sh("ip addr add 169.254.9.2/16 dev up0");
        let guest = w.guest(&BOTH);
        servers(&guest);
        expect_stand_in(&w.router, ip("169.254.9.1"), at([169, 254, 9, 2], 8080), GATEWAY4.into());
        // The address is checked for a second after the interface came up.
        let mut host = Vec::new();
        wait_for("the host's link-local address", Duration::from_secs(10), || {
            host = addresses6(&w.host, "up0", "link");
            !host.is_empty()
        });
        let scope = ifindex(&w.router, "h0");
        let to = SocketAddr::V6(std::net::SocketAddrV6::new(host[0], 8080, 0, scope));
        expect_stand_in(&w.router, ip("::"), to, guest.gateway6().into());
    });
}

fn ifindex(ns: &Ns, name: &str) -> u32 {
    let json: serde_json::Value = serde_json::from_str(&ns.sh(&format!("ip -j link show dev {name}"))).unwrap();
    u32::try_from(json[0]["ifindex"].as_u64().unwrap()).unwrap()
}

/// A client outside that has an address of the guest's own segment, or the guest's very address.
#[test]
fn a_client_from_the_guests_subnet_is_the_gateway() {
    World::run(|w| {
        let guest = w.guest(&BOTH);
        servers(&guest);
        let inside6 = guest.addr6();
        let mut neighbour6 = inside6.octets();
        neighbour6[15] = 50;
        let neighbour6 = std::net::Ipv6Addr::from(neighbour6);
        w.router.sh(&format!(
            "for a in 10.0.2.50/32 10.0.2.100/32 {neighbour6}/128 {inside6}/128; do
                 case $a in *:*) ip -6 addr add $a dev h0 nodad;; *) ip addr add $a dev h0;; esac
             done"
        ));
        w.host
            .sh(&format!("ip route add 10.0.2.0/24 via {ROUTER4}; ip -6 route add {inside6}/64 via {ROUTER6} || true"));
        w.host.sh(&format!(
            "ip -6 route replace {inside6}/128 via {ROUTER6}; ip -6 route replace {neighbour6}/128 via {ROUTER6}"
        ));
        let gateway6 = IpAddr::V6(guest.gateway6());
        expect_stand_in(&w.router, ip("10.0.2.50"), at(HOST4, 8080), GATEWAY4.into());
        expect_stand_in(&w.router, ip("10.0.2.100"), at(HOST4, 8080), GATEWAY4.into());
        expect_stand_in(&w.router, neighbour6.into(), at(HOST6, 8080), gateway6);
        expect_stand_in(&w.router, inside6.into(), at(HOST6, 8080), gateway6);
    });
}

#[test]
fn a_family_that_the_guest_lacks_is_the_gateway() {
    World::run(|w| {
        let options: Vec<&str> = BOTH.into_iter().chain(["--ipv6=off"]).collect();
        let guest = w.guest(&options);
        tell_tcp(&guest.ns, at([0; 4], INSIDE));
        tell_udp(&guest.ns, at([0; 4], INSIDE));
        expect_stand_in(&w.internet, INET6.into(), at(HOST6, 8080), GATEWAY4.into());
        expect_true(&w.internet, INET4.into(), at(HOST4, 8080));
    });
}

/// Two published ports lead to one port inside; one client uses one local port for both.
#[test]
fn a_taken_four_tuple_is_the_gateway() {
    World::run(|w| {
        let guest = w.guest(&["-p", "8080:7300", "-p", "8081:7300", "-p", "8080:7300/udp", "-p", "8081:7300/udp"]);
        // These servers keep the first connection open until the second one was served.
        for family in [at([0; 4], INSIDE), at([0u16; 8], INSIDE)] {
            crate::tools::serve(crate::tools::listen(&guest.ns, family), |mut stream, peer| {
                let _ = std::io::Write::write_all(&mut stream, peer.to_string().as_bytes());
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
            tell_udp(&guest.ns, family);
        }
        let gateway6 = IpAddr::V6(guest.gateway6());
        for (client, host, gateway) in [
            (IpAddr::V4(INET4), IpAddr::V4(HOST4), IpAddr::V4(GATEWAY4)),
            (IpAddr::V6(INET6), IpAddr::V6(HOST6), gateway6),
        ] {
            let from = at(client, 40_000);
            let mut one = connect_from(&w.internet, from, at(host, 8080)).unwrap();
            let mut two = connect_from(&w.internet, from, at(host, 8081)).unwrap();
            assert_eq!(heard_tcp(&mut one), from, "TCP");
            assert_eq!(heard_tcp(&mut two).ip(), gateway, "TCP");
            let (one, two) = (udp(&w.internet, from), udp(&w.internet, from));
            w.internet.run(|| one.connect(at(host, 8080)).and_then(|()| two.connect(at(host, 8081)))).unwrap();
            assert_eq!(heard_udp(&one), from, "UDP");
            let second = heard_udp(&two);
            assert_eq!(second.ip(), gateway, "UDP");
            // Both conversations go on, each with its own face.
            assert_eq!((heard_udp(&one), heard_udp(&two)), (from, second));
        }
    });
}

/// A member that reaches its own network through a published port is shown as the host.
#[test]
fn a_guest_meets_itself_as_the_host() {
    World::run(|w| {
        let guest = w.guest(&BOTH);
        servers(&guest);
        expect_stand_in(&guest.ns, ip("0.0.0.0"), at(HOST4, 8080), HOST4.into());
        expect_stand_in(&guest.ns, ip("::"), at(HOST6, 8080), HOST6.into());
    });
}

/// An answer leaves from the address that the client used, not from the one that the host prefers.
#[test]
fn udp_answers_leave_from_the_address_used() {
    World::run(|w| {
        w.host.sh("ip addr add 203.0.113.22/24 dev up0; ip addr add 2001:db8:1::22/64 dev up0 nodad");
        let guest = w.guest(&BOTH);
        servers(&guest);
        for (client, used) in [(IpAddr::V4(INET4), ip("203.0.113.22")), (INET6.into(), ip("2001:db8:1::22"))] {
            // The socket is connected: an answer from another address would not be heard.
            let (mine, seen) = ask_udp(&w.internet, at(client, 0), at(used, 8080));
            assert_eq!(seen, mine);
        }
        // One client port, both addresses: two conversations for the client, each answered from where it was begun.
        let socket = udp(&w.internet, at([0; 4], 41_000));
        for used in [IpAddr::V4(HOST4), ip("203.0.113.22"), IpAddr::V4(HOST4)] {
            socket.send_to(b"?", at(used, 8080)).unwrap();
            let (_, from) = socket.recv_from(&mut [0; 128]).expect("no answer");
            assert_eq!(from, at(used, 8080));
        }
    });
}

#[test]
fn every_form_of_publish() {
    World::run(|w| {
        w.host.sh("ip addr add 203.0.113.22/24 dev up0");
        let guest = w.guest(&[
            "--name",
            "forms",
            "-p",
            "7303",
            "-p",
            "9000:7300",
            "-p",
            "203.0.113.22:9001:7300",
            "-p",
            "203.0.113.22::7300/udp",
            "-p",
            "9010-9012:7300-7302",
            "-p",
            "[2001:db8:1::2]:9020:7300/tcp",
            "-p",
            "127.0.0.1:9030:7300",
        ]);
        servers(&guest);
        for port in [7301, 7302, 7303] {
            tell_tcp(&guest.ns, at([0; 4], port));
        }
        tell_tcp(&guest.ns, at([0u16; 8], 7303));
        let client = at([0; 4], 0);
        let fixed = ["203.0.113.2:9000", "203.0.113.22:9000", "203.0.113.22:9001", "203.0.113.2:9010"];
        for to in fixed.into_iter().chain(["203.0.113.2:9011", "203.0.113.2:9012"]) {
            let to: SocketAddr = to.parse().unwrap();
            assert_eq!(ask_tcp(&w.internet, client, to).1.ip(), IpAddr::V4(INET4), "{to}");
        }
        // No address: both families on one number. An address: that family and that address only.
        assert_eq!(ask_tcp(&w.internet, at([0u16; 8], 0), at(HOST6, 9000)).1.ip(), IpAddr::V6(INET6));
        assert_eq!(ask_tcp(&w.internet, at([0u16; 8], 0), at(HOST6, 9020)).1.ip(), IpAddr::V6(INET6));
        for closed in ["203.0.113.2:9001", "[2001:db8:1::2]:9001", "203.0.113.2:9020", "203.0.113.2:9030"] {
            let to: SocketAddr = closed.parse().unwrap();
            assert!(crate::tools::connect(&w.internet, to).is_err(), "{closed} is open");
        }
        assert_eq!(ask_tcp(&w.host, client, at([127, 0, 0, 1], 9030)).1.ip(), IpAddr::V4(GATEWAY4));
        // `tapway port` knows them all, the chosen ones too; both families share the number that was chosen.
        let ports = w.tapway(&["port", "forms"]).ok();
        let chosen = |mapping: &str| -> u16 {
            let port = ports.lines().find_map(|l| l.strip_prefix(mapping)?.trim().parse().ok());
            port.unwrap_or_else(|| panic!("no line that begins with {mapping:?} in\n{ports}"))
        };
        let udp = chosen("7300/udp -> 203.0.113.22:");
        let to = SocketAddr::new(ip("203.0.113.22"), udp);
        assert_eq!(ask_udp(&w.internet, any(to), to).1.ip(), IpAddr::V4(INET4));
        let tcp = chosen("7303/tcp -> 0.0.0.0:");
        assert_eq!(tcp, chosen("7303/tcp -> [::]:"));
        assert_eq!(ask_tcp(&w.internet, client, at(HOST4, tcp)).1.ip(), IpAddr::V4(INET4));
        assert_eq!(ask_tcp(&w.internet, at([0u16; 8], 0), at(HOST6, tcp)).1.ip(), IpAddr::V6(INET6));
        for line in ["7301/tcp -> 0.0.0.0:9011", "7301/tcp -> [::]:9011", "7300/tcp -> 127.0.0.1:9030"] {
            assert!(ports.lines().any(|l| l == line), "{line:?} is missing in\n{ports}");
        }
        let one = w.tapway(&["port", "forms", "7302"]).ok();
        assert!(one.contains("0.0.0.0:9012") && !one.contains("9011"), "tapway port forms 7302 printed {one:?}");
        let one = w.tapway(&["port", "forms", "7300/udp"]).ok();
        assert_eq!(one.trim().rsplit(':').next(), Some(udp.to_string().as_str()), "{one:?}");
    });
}

/// The guest's server is not there yet: a client is refused, and served once it is.
#[test]
fn a_published_port_without_a_server_refuses() {
    World::run(|w| {
        let guest = w.guest(&BOTH);
        for host in [at(HOST4, 8080), at(HOST6, 8080)] {
            // The host's kernel has accepted already, so the refusal comes as a reset of the connection.
            let refused = crate::tools::connect(&w.internet, host)
                .and_then(|mut s| std::io::Read::read(&mut s, &mut [0; 8]).map(|n| assert_ne!(n, 0, "a clean end")));
            let error = refused.expect_err("nobody is there");
            assert!(
                matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::ConnectionRefused),
                "{host}: {error}"
            );
        }
        servers(&guest);
        expect_true(&w.internet, INET4.into(), at(HOST4, 8080));
        expect_true(&w.internet, INET6.into(), at(HOST6, 8080));
    });
}
