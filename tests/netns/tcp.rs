//! TCP: how connections begin, half-close, reset, wait and end, seen from both ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

use crate::tools::{PATIENCE, any, ask_tcp, at, connect, expect_pattern, listen, reset, send_pattern, serve, tell_tcp};
use crate::world::{HOST4, HOST6, INET4, INET6, World, wait_for};

/// The two families of every test here: (the server's address).
const SERVERS: [IpAddr; 2] = [IpAddr::V4(INET4), IpAddr::V6(INET6)];

#[test]
fn the_server_sees_the_hosts_address() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        for (server, host) in [(at(INET4, 7000), IpAddr::V4(HOST4)), (at(INET6, 7000), IpAddr::V6(HOST6))] {
            tell_tcp(&w.internet, server);
            let (_, seen) = ask_tcp(&guest.ns, any(server), server);
            assert_eq!(seen.ip(), host);
        }
    });
}

#[test]
fn outbound_addr_is_the_source() {
    World::run(|w| {
        w.host.sh("ip addr add 203.0.113.22/24 dev up0; ip addr add 2001:db8:1::22/64 dev up0 nodad");
        let guest = w.guest(&["--outbound-addr", "203.0.113.22", "--outbound-addr", "2001:db8:1::22"]);
        let want = ["203.0.113.22", "2001:db8:1::22"];
        for (server, want) in SERVERS.into_iter().zip(want) {
            let server = at(server, 7000);
            tell_tcp(&w.internet, server);
            crate::tools::tell_udp(&w.internet, server);
            let want: IpAddr = want.parse().unwrap();
            assert_eq!(ask_tcp(&guest.ns, any(server), server).1.ip(), want);
            assert_eq!(crate::tools::ask_udp(&guest.ns, any(server), server).1.ip(), want);
        }
    });
}

#[test]
fn refused_is_a_reset_at_once() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        for server in SERVERS {
            let begin = Instant::now();
            let error = connect(&guest.ns, at(server, 7001)).expect_err("nothing listens there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{server}: {error}");
            // A SYN that was dropped instead would be repeated after a second.
            assert!(begin.elapsed() < Duration::from_millis(900), "{server} took {:?}", begin.elapsed());
        }
    });
}

#[test]
fn unreachable_is_told_by_icmp() {
    World::run(|w| {
        w.router.sh("ip route add unreachable 198.51.100.66/32; ip -6 route add unreachable 2001:db8:2::66/128");
        let guest = w.guest::<&str>(&[]);
        for server in ["198.51.100.66", "2001:db8:2::66"] {
            let server = SocketAddr::new(server.parse().unwrap(), 80);
            let begin = Instant::now();
            let direct = connect(&w.host, server).expect_err("the router says so");
            let directly = begin.elapsed();
            let begin = Instant::now();
            let error = connect(&guest.ns, server).expect_err("the router says so");
            assert_eq!(error.raw_os_error(), direct.raw_os_error(), "{server}: {error}, direct: {direct}");
            // One SYN is enough, unless the host's own kernel needs more (IPv6 takes a second on 6.18).
            let took = begin.elapsed();
            assert!(took < directly + Duration::from_millis(900), "{server} took {took:?}, directly {directly:?}");
        }
    });
}

#[test]
fn silence_stays_silence_and_may_end() {
    World::run(|w| {
        w.router.sh("ip route add blackhole 198.51.100.2/32; ip -6 route add blackhole 2001:db8:2::2/128");
        let guest = w.guest::<&str>(&[]);
        let started: Vec<_> = SERVERS
            .into_iter()
            .map(|server| {
                let server = at(server, 7002);
                tell_tcp(&w.internet, server);
                let (tx, rx) = mpsc::channel();
                guest.ns.spawn(move || {
                    let _ = tx.send(TcpStream::connect_timeout(&server, Duration::from_secs(40)).map(drop));
                });
                (server, rx)
            })
            .collect();
        // Neither a reset nor an error: a direct connection would hear nothing either.
        std::thread::sleep(Duration::from_secs(4));
        for (server, rx) in &started {
            assert!(rx.try_recv().is_err(), "the silent {server} was answered for");
        }
        // The host's own SYN is repeated by then, and this time it arrives.
        w.router.sh("ip route del blackhole 198.51.100.2/32; ip -6 route del blackhole 2001:db8:2::2/128");
        for (server, rx) in started {
            let result = rx.recv_timeout(Duration::from_secs(40)).expect("the connect never ended");
            result.unwrap_or_else(|e| panic!("{server} after the silence: {e}"));
        }
    });
}

#[test]
fn the_client_half_closes() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7100:7100"]);
        for (near, far, server) in [
            (&guest.ns, &w.internet, at(INET4, 7100)),
            (&guest.ns, &w.internet, at(INET6, 7100)),
            (&w.internet, &guest.ns, at(HOST4, 7100)),
            (&w.internet, &guest.ns, at(HOST6, 7100)),
        ] {
            // The server answers only after it has seen the end of the request.
            serve(listen(far, at(any(server).ip(), 7100)), |stream, _| {
                let n = expect_pattern(&stream, 1);
                std::thread::sleep(Duration::from_millis(300));
                let _ = send_pattern(&stream, 2, n * 2);
            });
            let stream = connect(near, server).unwrap();
            send_pattern(&stream, 1, 3_000_001).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(expect_pattern(&stream, 2), 6_000_002, "{server}");
        }
    });
}

#[test]
fn the_server_half_closes() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7100:7100"]);
        for (near, far, server) in [
            (&guest.ns, &w.internet, at(INET4, 7100)),
            (&guest.ns, &w.internet, at(INET6, 7100)),
            (&w.internet, &guest.ns, at(HOST4, 7100)),
            (&w.internet, &guest.ns, at(HOST6, 7100)),
        ] {
            let (tx, rx) = mpsc::channel();
            serve(listen(far, at(any(server).ip(), 7100)), move |stream, _| {
                send_pattern(&stream, 3, 1_000_003).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let _ = tx.send(expect_pattern(&stream, 4));
            });
            let stream = connect(near, server).unwrap();
            assert_eq!(expect_pattern(&stream, 3), 1_000_003, "{server}");
            std::thread::sleep(Duration::from_millis(300));
            send_pattern(&stream, 4, 2_000_001).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rx.recv_timeout(PATIENCE).expect("the server hears the rest"), 2_000_001, "{server}");
        }
    });
}

#[test]
fn resets_cross_both_ways() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7100:7100"]);
        for (near, far, server) in [
            (&guest.ns, &w.internet, at(INET4, 7100)),
            (&guest.ns, &w.internet, at(INET6, 7100)),
            (&w.internet, &guest.ns, at(HOST4, 7100)),
            (&w.internet, &guest.ns, at(HOST6, 7100)),
        ] {
            let listener = listen(far, at(any(server).ip(), 7100));
            // The client resets.
            let client = connect(near, server).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            accepted.set_read_timeout(Some(PATIENCE)).unwrap();
            reset(client);
            let error = accepted.read(&mut [0; 8]).expect_err("an end would be a lie");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{server}: {error}");
            // The server resets.
            let mut client = connect(near, server).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            client.write_all(b"hello").unwrap();
            accepted.read_exact(&mut [0; 5]).unwrap();
            reset(accepted);
            let error = client.read(&mut [0; 8]).expect_err("an end would be a lie");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{server}: {error}");
        }
    });
}

#[test]
fn a_window_closes_and_nothing_is_lost() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7100:7100"]);
        for (near, far, server) in [
            (&guest.ns, &w.internet, at(INET4, 7100)),
            (&guest.ns, &w.internet, at(INET6, 7100)),
            (&w.internet, &guest.ns, at(HOST4, 7100)),
        ] {
            let listener = listen(far, at(any(server).ip(), 7100));
            let client = connect(near, server).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            accepted.set_read_timeout(Some(PATIENCE)).unwrap();
            let total = 200_000_003;
            std::thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    client.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
                    send_pattern(&client, 5, total)?;
                    client.shutdown(Shutdown::Write)
                });
                // Nobody reads: the sender must come to a halt with the rest still to go.
                std::thread::sleep(Duration::from_secs(3));
                assert!(!sender.is_finished(), "{server}: 200 MB went into buffers");
                assert_eq!(expect_pattern(&accepted, 5), total, "{server}");
                sender.join().unwrap().unwrap();
            });
        }
    });
}

#[test]
fn both_directions_at_once() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7100:7100"]);
        for (near, far, server) in [
            (&guest.ns, &w.internet, at(INET4, 7100)),
            (&guest.ns, &w.internet, at(INET6, 7100)),
            (&w.internet, &guest.ns, at(HOST4, 7100)),
            (&w.internet, &guest.ns, at(HOST6, 7100)),
        ] {
            let listener = listen(far, at(any(server).ip(), 7100));
            let client = connect(near, server).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            accepted.set_read_timeout(Some(PATIENCE)).unwrap();
            let total = 60_000_007;
            std::thread::scope(|scope| {
                for (stream, seed) in [(&client, 6), (&accepted, 7)] {
                    scope.spawn(move || {
                        send_pattern(stream, seed, total).unwrap();
                        stream.shutdown(Shutdown::Write).unwrap();
                    });
                }
                let one = scope.spawn(|| expect_pattern(&accepted, 6));
                assert_eq!(expect_pattern(&client, 7), total, "{server}");
                assert_eq!(one.join().unwrap(), total, "{server}");
            });
        }
    });
}

/// A helper that dies must not make a cut stream look whole.
#[test]
fn a_death_is_a_reset() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let listener = listen(&w.internet, at(INET4, 7100));
        let mut client = connect(&guest.ns, at(INET4, 7100)).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"some").unwrap();
        accepted.read_exact(&mut [0; 4]).unwrap();
        for pid in w.tapway_pids() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let error = accepted.read(&mut [0; 8]).expect_err("the server took the cut for an end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

/// The network process comes back with the same TAP and the same ports; what it had in hand is reset on both sides.
#[test]
fn a_network_process_that_dies_comes_back() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7100:7100"]);
        crate::tools::echo_tcp(&guest.ns, at([0; 4], 7100));
        crate::tools::echo_tcp(&w.internet, at(INET4, 7101));
        let mut open = vec![
            ("inward", connect(&w.internet, at(HOST4, 7100)).unwrap()),
            ("outward", connect(&guest.ns, at(INET4, 7101)).unwrap()),
        ];
        let mut byte = [0];
        for (_, stream) in &mut open {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut byte).unwrap();
        }
        let first = w.network_process(&guest).expect("a network process");
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        let mut second = None;
        wait_for("another network process", Duration::from_secs(15), || {
            second = w.network_process(&guest).filter(|&pid| pid != first);
            second.is_some()
        });
        for (way, stream) in &mut open {
            // The side that says something hears that nobody knows its connection any more.
            let cut = stream.write_all(b"y").and_then(|()| stream.read_exact(&mut byte));
            let error = cut.expect_err("the connection outlived the process that carried it");
            // The sandbox's own connections are ended by its kernel, at once.
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::ConnectionAborted];
            assert!(kinds.contains(&error.kind()), "{way}: {error}");
        }
        for (ns, to) in [(&w.internet, at(HOST4, 7100)), (&guest.ns, at(INET4, 7101))] {
            let mut stream = connect(ns, to).unwrap_or_else(|e| panic!("{to} afterwards: {e}"));
            stream.write_all(b"z").unwrap();
            stream.read_exact(&mut byte).unwrap();
        }
    });
}

/// A link of 1500 bytes with a narrower one behind it: path MTU discovery is the host's, the guest notices nothing.
#[test]
fn a_narrow_path_carries_tcp() {
    World::run(|w| {
        w.router.sh(&format!(
            "ip route add {INET4}/32 dev n0 mtu lock 1300; ip -6 route add {INET6}/128 dev n0 mtu lock 1300"
        ));
        let guest = w.guest::<&str>(&[]);
        for server in SERVERS {
            let listener = listen(&w.internet, at(server, 7100));
            let client = connect(&guest.ns, at(server, 7100)).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            accepted.set_read_timeout(Some(PATIENCE)).unwrap();
            let sender = std::thread::spawn(move || {
                send_pattern(&client, 8, 20_000_000).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                client
            });
            assert_eq!(expect_pattern(&accepted, 8), 20_000_000, "{server}");
            drop(sender.join().unwrap());
        }
    });
}

/// Many connections at once, each with its own bytes.
#[test]
fn three_hundred_connections_stay_apart() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let server = at(INET4, 7100);
        let served = serve(listen(&w.internet, server), |mut stream, _| {
            let mut seed = [0; 8];
            stream.read_exact(&mut seed).unwrap();
            let _ = send_pattern(&stream, u64::from_le_bytes(seed), 300_000);
        });
        let streams: Vec<_> = (0..300u64).map(|i| (i * 2 + 1, connect(&guest.ns, server).unwrap())).collect();
        for (seed, stream) in &streams {
            (&*stream).write_all(&seed.to_le_bytes()).unwrap();
        }
        for (seed, stream) in &streams {
            assert_eq!(expect_pattern(stream, *seed), 300_000);
        }
        assert_eq!(served.load(std::sync::atomic::Ordering::Relaxed), 300);
    });
}

/// A keep-alive connection that says nothing for a while still works afterwards.
#[test]
fn an_idle_connection_survives() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let server = at(INET4, 7100);
        crate::tools::echo_tcp(&w.internet, server);
        let socket = guest.run(|| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
        socket.connect(&server.into()).unwrap();
        let mut stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for pause in [0, 15, 25] {
            std::thread::sleep(Duration::from_secs(pause));
            stream.write_all(b"still here").unwrap();
            let mut back = [0; 10];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"still here");
        }
    });
}
