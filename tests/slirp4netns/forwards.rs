//! Forwarded ports: whom the guest sees, who gets the answers, and what adding and removing does.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::helper::{Guest, Helper, add, ask};
use crate::tools::{any, ask_tcp, ask_udp, at, connect, echo_tcp, echo_udp, heard_udp, tell_tcp, tell_udp, udp};
use crate::world::{GATEWAY4, HOST4, HOST6, INET4, INET6, ROUTER4, World};

tests! {
    the_guest_sees_the_true_client: real ours verb;
    a_loopback_client_is_the_gateway: real ours;
    any_loopback_address_is_answered: ours;
    a_forward_over_loopback_without_host_loopback: ours;
    udp_forwards_to_one_port_do_not_mix: ours;
    udp_answers_leave_from_the_address_asked: ours;
    fifty_clients_at_once: ours;
    removing_leaves_connections: real ours;
    a_removed_port_is_free_at_once: real ours;
    a_closed_port_inside_ends_the_client: real ours;
    where_the_guest_is: real ours;
    only_where_it_was_asked_for: real ours;
    what_cannot_be_bound: real ours;
    ipv6_hosts_and_guests: ours;
    the_outbound_address_is_not_for_forwards: real ours;
    an_upload_through_a_forward_does_not_stall: ours;
}

/// Port on which the guest's servers say whom they see.
const INSIDE: u16 = 7300;
const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn servers(guest: &Guest) {
    tell_tcp(guest.ns(), at([0; 4], INSIDE));
    tell_udp(guest.ns(), at([0; 4], INSIDE));
}

fn forward_both(guest: &Guest, host: SocketAddr) {
    guest.forward("tcp", host, INSIDE);
    guest.forward("udp", host, INSIDE);
}

fn the_guest_sees_the_true_client(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["--enable-sandbox", "--enable-seccomp", "--disable-host-loopback"]);
    servers(&guest);
    forward_both(&guest, at([0; 4], 8080));
    for (ns, address) in [(&w.internet, INET4), (&w.router, ROUTER4), (&w.host, HOST4)] {
        let (mine, seen) = ask_tcp(ns, at(address, 0), at(HOST4, 8080));
        assert_eq!(seen, mine, "TCP");
        let (mine, seen) = ask_udp(ns, at(address, 0), at(HOST4, 8080));
        assert_eq!(seen, mine, "UDP");
    }
}

fn a_loopback_client_is_the_gateway(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    servers(&guest);
    forward_both(&guest, at([127, 0, 0, 1], 8080));
    let (mine, seen) = ask_tcp(&w.host, at(LOCAL, 0), at(LOCAL, 8080));
    assert_eq!(seen, at(GATEWAY4, mine.port()));
    let (mine, seen) = ask_udp(&w.host, at(LOCAL, 0), at(LOCAL, 8080));
    assert_eq!(seen, at(GATEWAY4, mine.port()));
}

/// Upstream knows 127.0.0.1 alone.
fn any_loopback_address_is_answered(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    servers(&guest);
    forward_both(&guest, at([0; 4], 8080));
    forward_both(&guest, at([127, 0, 0, 9], 8090));
    for to in [at([127, 0, 0, 1], 8080), at([127, 3, 2, 1], 8080), at([127, 0, 0, 9], 8090)] {
        for from in [[127, 0, 0, 1], [127, 0, 0, 5], [127, 9, 9, 9]] {
            assert_eq!(ask_tcp(&w.host, at(from, 0), to).1.ip(), GATEWAY4, "TCP {from:?} -> {to}");
            assert_eq!(ask_udp(&w.host, at(from, 0), to).1.ip(), GATEWAY4, "UDP {from:?} -> {to}");
        }
    }
}

/// The guest may not call the host, but it may answer: upstream drops its UDP answers.
fn a_forward_over_loopback_without_host_loopback(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["--disable-host-loopback"]);
    servers(&guest);
    forward_both(&guest, at([127, 0, 0, 1], 8080));
    let socket = udp(&w.host, at(LOCAL, 0));
    w.host.run(|| socket.connect(at(LOCAL, 8080))).unwrap();
    for _ in 0..3 {
        assert_eq!(heard_udp(&socket).ip(), GATEWAY4);
        assert_eq!(ask_tcp(&w.host, at(LOCAL, 0), at(LOCAL, 8080)).1.ip(), GATEWAY4);
    }
    let error = connect(guest.ns(), at(GATEWAY4, 8080)).expect_err("that is a call");
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
}

/// Upstream answers all of them through the newer one.
fn udp_forwards_to_one_port_do_not_mix(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    tell_udp(guest.ns(), at([0; 4], INSIDE));
    let ports = [8081, 8082, 8083];
    for port in ports {
        guest.forward("udp", at([0; 4], port), INSIDE);
    }
    for (ns, from, host) in [(&w.internet, IpAddr::from(INET4), HOST4.into()), (&w.host, LOCAL, LOCAL)] {
        // One client address and port for all three.
        let socket = udp(ns, at(from, 0));
        for port in ports.into_iter().chain(ports) {
            ns.run(|| socket.connect(at(host, port))).unwrap();
            heard_udp(&socket);
        }
        // And three clients in turn.
        let sockets = ports.map(|port| {
            let socket = udp(ns, at(from, 0));
            ns.run(|| socket.connect(at(host, port))).unwrap();
            socket
        });
        for _ in 0..3 {
            for socket in &sockets {
                heard_udp(socket);
            }
        }
    }
}

/// Upstream leaves the choice to the routing table.
fn udp_answers_leave_from_the_address_asked(w: &World, helper: &Helper) {
    w.host.sh("ip addr add 203.0.113.22/24 dev up0");
    let guest = helper.guest(w, &[]);
    tell_udp(guest.ns(), at([0; 4], INSIDE));
    guest.forward("udp", at([0; 4], 8080), INSIDE);
    for to in [at([203, 0, 113, 22], 8080), at(HOST4, 8080)] {
        let (mine, seen) = ask_udp(&w.internet, at(INET4, 0), to);
        assert_eq!(seen, mine, "{to}");
    }
}

/// Upstream's backlog is one: the others wait for their SYNs to be repeated.
fn fifty_clients_at_once(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    echo_tcp(guest.ns(), at([0; 4], INSIDE));
    guest.forward("tcp", at([0; 4], 8080), INSIDE);
    for (ns, to) in [(&w.internet, at(HOST4, 8080)), (&w.host, at(LOCAL, 8080))] {
        let begin = Instant::now();
        let clients: Vec<_> = (0..50u8)
            .map(|n| {
                ns.spawn(move || {
                    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
                    let connected = begin.elapsed();
                    stream.write_all(&[n; 100]).unwrap();
                    let mut back = [0; 100];
                    stream.read_exact(&mut back).unwrap();
                    assert_eq!(back, [n; 100]);
                    connected
                })
            })
            .collect();
        let slowest = clients.into_iter().map(|client| client.join().unwrap()).max().unwrap();
        // Nobody had to ask twice.
        assert!(slowest < Duration::from_millis(900), "{slowest:?} to {to}");
    }
}

fn remove(guest: &Guest, id: u64) {
    let reply = ask(&guest.api, &format!(r#"{{"execute":"remove_hostfwd","arguments":{{"id":{id}}}}}"#));
    assert_eq!(reply.to_string(), r#"{"return":{}}"#);
}

fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"still here?").unwrap();
    let mut back = [0; 11];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"still here?");
}

fn removing_leaves_connections(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    echo_tcp(guest.ns(), at([0; 4], INSIDE));
    echo_udp(guest.ns(), at([0; 4], INSIDE));
    let (tcp, udp_id) =
        (guest.forward("tcp", at([0; 4], 8080), INSIDE), guest.forward("udp", at([0; 4], 8080), INSIDE));
    let other = guest.forward("tcp", at([0; 4], 8081), INSIDE);
    assert_eq!((tcp, udp_id, other), (1, 2, 3));
    let mut stream = connect(&w.internet, at(HOST4, 8080)).unwrap();
    let mut neighbour = connect(&w.internet, at(HOST4, 8081)).unwrap();
    echoes(&mut stream);
    echoes(&mut neighbour);
    remove(&guest, tcp);
    remove(&guest, udp_id);
    let error = connect(&w.internet, at(HOST4, 8080)).expect_err("nobody listens any more");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    echoes(&mut stream);
    echoes(&mut neighbour);
    let socket = udp(&w.internet, at(INET4, 0));
    w.internet.run(|| socket.connect(at(HOST4, 8080))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.send(b"?").unwrap();
    socket.recv(&mut [0; 8]).expect_err("the UDP forward is gone, too");
    let list = ask(&guest.api, r#"{"execute":"list_hostfwd"}"#);
    assert_eq!(list["entries"].as_array().map(Vec::len), Some(1), "{list}");
    // What it had been called is not given to another.
    assert_eq!(guest.forward("tcp", at([0; 4], 8082), INSIDE), 4);
}

fn a_removed_port_is_free_at_once(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    echo_tcp(guest.ns(), at([0; 4], INSIDE));
    tell_udp(guest.ns(), at([0; 4], INSIDE));
    let mut kept = Vec::new();
    for _ in 0..10 {
        let tcp = guest.forward("tcp", at([0; 4], 8080), INSIDE);
        let udp = guest.forward("udp", at([0; 4], 8080), INSIDE);
        let mut stream = connect(&w.internet, at(HOST4, 8080)).unwrap();
        echoes(&mut stream);
        kept.push(stream);
        ask_udp(&w.internet, at(INET4, 0), at(HOST4, 8080));
        remove(&guest, tcp);
        remove(&guest, udp);
    }
    kept.iter_mut().for_each(echoes);
    // For another process of the host as well.
    drop(crate::tools::listen(&w.host, at(HOST4, 8080)));
    udp(&w.host, at(HOST4, 8080));
}

fn a_closed_port_inside_ends_the_client(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    guest.forward("tcp", at([0; 4], 8080), 7999);
    let ended = match connect(&w.internet, at(HOST4, 8080)) {
        Ok(mut stream) => stream.read(&mut [0; 1]).unwrap_or_default() == 0,
        Err(error) => matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset),
    };
    assert!(ended, "somebody answered");
}

/// Every way to say it, and the guest that DHCP would have given its first address.
fn where_the_guest_is(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    guest.sh("ip addr add 10.0.2.15/24 dev tap0; ip addr add 10.0.2.77/24 dev tap0; ip addr add 10.9.9.9/32 dev tap0");
    for (n, address) in ["10.0.2.100", "10.0.2.15", "10.0.2.77", "10.9.9.9"].into_iter().enumerate() {
        let address: IpAddr = address.parse().unwrap();
        let text = b'a' + u8::try_from(n).unwrap();
        crate::tools::serve(crate::tools::listen(guest.ns(), at(address, INSIDE)), move |mut stream, _| {
            let _ = stream.write_all(&[text]);
        });
    }
    // The guest has said where those are.
    guest.sh(
        "ping -c1 -W5 -I 10.0.2.77 10.0.2.2; ping -c1 -W5 -I 10.0.2.15 10.0.2.2; ping -c1 -W5 -I 10.9.9.9 10.0.2.2",
    );
    let mut port = 8000;
    for (arguments, want) in [
        (r#","guest_addr":"""#, b'a'),
        ("", b'a'),
        (r#","guest_addr":null"#, b'a'),
        (r#","guest_addr":"10.0.2.100""#, b'a'),
        (r#","guest_addr":"0.0.0.0""#, b'b'),
        (r#","guest_addr":"10.0.2.77""#, b'c'),
        (r#","guest_addr":"10.9.9.9""#, b'd'),
    ] {
        port += 1;
        let request = format!(
            r#"{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_port":{port},"guest_port":{INSIDE}{arguments}}}}}"#
        );
        let reply = ask(&guest.api, &request);
        assert!(reply["return"]["id"].is_u64(), "{request}: {reply}");
        let mut stream = connect(&w.internet, at(HOST4, port)).unwrap();
        let mut seen = [0; 1];
        stream.read_exact(&mut seen).unwrap_or_else(|e| panic!("{arguments}: {e}"));
        assert_eq!(seen, [want], "{arguments}");
    }
}

fn only_where_it_was_asked_for(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    servers(&guest);
    guest.forward("tcp", at([127, 0, 0, 1], 8080), INSIDE);
    guest.forward("tcp", at(HOST4, 8081), INSIDE);
    ask_tcp(&w.host, at([0; 4], 0), at(LOCAL, 8080));
    ask_tcp(&w.internet, at([0; 4], 0), at(HOST4, 8081));
    for (ns, to) in [(&w.internet, at(HOST4, 8080)), (&w.host, at(LOCAL, 8081)), (guest.ns(), at(GATEWAY4, 8081))] {
        let error = connect(ns, to).expect_err("not forwarded there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
}

fn what_cannot_be_bound(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &[]);
    let _taken = crate::tools::listen(&w.host, at([0; 4], 8088));
    guest.forward("tcp", at([0; 4], 8080), INSIDE);
    let refused = |proto: &str, host: SocketAddr, why: &str| {
        let reply = ask(&guest.api, &add(proto, host, "", INSIDE));
        assert_eq!(reply["error"]["desc"], format!("bad request: add_hostfwd: {why}"), "{proto} {host}");
    };
    let failed = "slirp_add_hostfwd failed";
    refused("tcp", at([0; 4], 8080), failed);
    refused("tcp", at(LOCAL, 8080), failed);
    refused("tcp", at([0; 4], 8088), failed);
    refused("tcp", at([0; 4], 80), failed);
    refused("udp", at([0; 4], 53), failed);
    refused("tcp", at([192, 0, 2, 1], 8085), failed);
    refused("tcp", at([0; 4], 0), "bad arguments.host_port");
    // The other protocol has ports of its own; and what failed took nothing.
    assert_eq!(guest.forward("udp", at([0; 4], 8080), INSIDE), 2);
    servers(&guest);
    ask_udp(&w.internet, at(INET4, 0), at(HOST4, 8080));
}

fn ipv6_hosts_and_guests(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["-6", "--disable-host-loopback"]);
    let inside = guest.addr6();
    servers(&guest);
    tell_tcp(guest.ns(), at([0u16; 8], INSIDE));
    tell_udp(guest.ns(), at([0u16; 8], INSIDE));
    let forward = |proto: &str, host: &str, port: u16, to: &str| {
        let host = SocketAddr::new(host.parse().unwrap(), port);
        let reply = ask(&guest.api, &add(proto, host, to, INSIDE));
        assert!(reply["return"]["id"].is_u64(), "{proto} {host} to {to:?}: {reply}");
    };
    // To the IPv6 guest, with the true client.
    for (proto, port) in [("tcp", 8080), ("tcp6", 8081)] {
        forward(proto, "::", port, &inside.to_string());
        let (mine, seen) = ask_tcp(&w.internet, at(INET6, 0), at(HOST6, port));
        assert_eq!(seen, mine, "{proto}");
    }
    for (proto, port) in [("udp", 8080), ("udp6", 8081)] {
        forward(proto, "::", port, &inside.to_string());
        let (mine, seen) = ask_udp(&w.internet, at(INET6, 0), at(HOST6, port));
        assert_eq!(seen, mine, "{proto}");
    }
    // From the host's loopback: the gateway.
    let gateway: Ipv6Addr = "fd00::2".parse().unwrap();
    let local = at(Ipv6Addr::LOCALHOST, 8080);
    assert_eq!(ask_tcp(&w.host, any(local), local).1.ip(), gateway);
    assert_eq!(ask_udp(&w.host, any(local), local).1.ip(), gateway);
    // To the guest that was not named.
    forward("tcp", "::1", 8090, "");
    forward("udp", "::1", 8090, "");
    let local = at(Ipv6Addr::LOCALHOST, 8090);
    ask_tcp(&w.host, any(local), local);
    ask_udp(&w.host, any(local), local);
    // And the names of RootlessKit's protocols.
    forward("tcp4", "0.0.0.0", 8095, "");
    forward("udp4", "0.0.0.0", 8095, "10.0.2.100");
    assert_eq!(ask_tcp(&w.internet, at(INET4, 0), at(HOST4, 8095)).1.ip(), INET4);
    assert_eq!(ask_udp(&w.internet, at(INET4, 0), at(HOST4, 8095)).1.ip(), INET4);
    let list = ask(&guest.api, r#"{"execute":"list_hostfwd"}"#);
    assert_eq!(list["entries"].as_array().map(Vec::len), Some(8), "{list}");
}

fn the_outbound_address_is_not_for_forwards(w: &World, helper: &Helper) {
    w.host.sh("ip addr add 203.0.113.22/24 dev up0");
    let guest = helper.guest(w, &["--outbound-addr=203.0.113.22"]);
    servers(&guest);
    forward_both(&guest, at([0; 4], 8080));
    let (mine, seen) = ask_tcp(&w.internet, at(INET4, 0), at(HOST4, 8080));
    assert_eq!(seen, mine);
    let (mine, seen) = ask_udp(&w.internet, at(INET4, 0), at(HOST4, 8080));
    assert_eq!(seen, mine);
}

/// Upstream at MTU 65520 stops for five seconds when a server inside is slow to read.
fn an_upload_through_a_forward_does_not_stall(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["--mtu=65520"]);
    guest.forward("tcp", at([0; 4], 8080), INSIDE);
    let listener = crate::tools::listen(guest.ns(), at([0; 4], INSIDE));
    crate::tools::serve(listener, |mut stream, _| {
        let mut bytes = vec![0; 256 << 10];
        let (mut total, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            total += n;
            if total % 7 == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        let _ = stream.write_all(format!("{total} {}", longest.as_millis()).as_bytes());
    });
    let stream = connect(&w.internet, at(HOST4, 8080)).unwrap();
    crate::tools::send_pattern(&stream, 5, 32 << 20).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    (&stream).read_to_string(&mut said).unwrap();
    let (total, longest) = said.split_once(' ').unwrap();
    assert_eq!(total, (32usize << 20).to_string());
    assert!(longest.parse::<u64>().unwrap() < 1000, "nothing arrived for {longest} ms");
}
