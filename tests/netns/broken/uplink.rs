//! The host loses its way to the world, gets another address, and its name servers come and go.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::{network_pid, restarts, rests};
use crate::dns::dns_server;
use crate::tools::{any, ask_tcp, ask_udp, at, connect, echo_tcp, tell_tcp, tell_udp};
use crate::world::{GATEWAY4, Guest, HOST4, INET4, INET6, ROUTER4, ROUTER6, World, wait_for};

/// What a server of the world sees of the guest, by TCP and by UDP.
fn seen(guest: &Guest, server: SocketAddr) -> [IpAddr; 2] {
    [ask_tcp(&guest.ns, any(server), server).1.ip(), ask_udp(&guest.ns, any(server), server).1.ip()]
}

#[test]
fn the_hosts_interface_goes_down_and_comes_up() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site", "-p", "8000:7000"]);
        for addr in [at(INET4, 7000), at(INET6, 7000)] {
            tell_tcp(&w.internet, addr);
            tell_udp(&w.internet, addr);
        }
        echo_tcp(&w.internet, at(INET4, 7001));
        let pid = network_pid(w, "site");
        let mut flow = connect(&guest.ns, at(INET4, 7001)).unwrap();
        seen(&guest, at(INET4, 7000));
        w.host.sh("ip link set up0 down");
        // At once, and by an error that names the reason.
        let begun = Instant::now();
        for (to, word) in [(INET4.to_string(), "unreachable"), (INET6.to_string(), "unreachable")] {
            let ended = guest.cmd(&["ping", "-c1", "-W3", &to]).end();
            assert!(ended.code != 0 && ended.stdout.to_lowercase().contains(word), "{}", ended.stdout);
            let error = connect(&guest.ns, at(to.parse::<IpAddr>().unwrap(), 7000)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        // What is inside goes on.
        guest.sh(&format!("ping -c1 -W2 {GATEWAY4}"));
        flow.write_all(b"waits for the way").unwrap();
        rests(pid, "no way out, bytes waiting");
        w.host.sh(&format!(
            "ip link set up0 up; ip -6 addr add 2001:db8:1::2/64 dev up0 nodad 2>/dev/null || true
             ip route replace default via {ROUTER4}; ip -6 route replace default via {ROUTER6}"
        ));
        let mut got = [0; 17];
        flow.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"waits for the way", "the flow outlives it");
        assert_eq!(seen(&guest, at(INET4, 7000)), [IpAddr::from(HOST4); 2]);
        wait_for("IPv6", Duration::from_secs(10), || connect(&guest.ns, at(INET6, 7000)).is_ok());
        seen(&guest, at(INET6, 7000));
        assert_eq!((network_pid(w, "site"), restarts(w, "site")), (pid, 0));
    });
}

#[test]
fn the_host_gets_another_address() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site", "-p", "8000:7000"]);
        tell_tcp(&w.internet, at(INET4, 7000));
        tell_udp(&w.internet, at(INET4, 7000));
        tell_tcp(&guest.ns, at([0; 4], 7000));
        // A server of the host: what the gateway address stands for.
        let host = crate::tools::listen(&w.host, at([0; 4], 7002));
        crate::tools::serve(host, |mut stream, _| {
            let local = stream.local_addr().unwrap().to_string();
            let _ = stream.write_all(local.as_bytes());
        });
        let host_is = || {
            let mut said = String::new();
            connect(&guest.ns, at(GATEWAY4, 7002))?.read_to_string(&mut said)?;
            Ok::<_, std::io::Error>(said)
        };
        assert_eq!(host_is().unwrap(), "203.0.113.2:7002");
        let from = seen(&guest, at(INET4, 7000));
        assert_eq!(from, [IpAddr::from(HOST4); 2]);
        // A socket that has been used before and stays.
        let old = crate::tools::udp(&guest.ns, any(at(INET4, 7000)));
        guest.run(|| old.connect(at(INET4, 7000))).unwrap();
        crate::tools::heard_udp(&old);

        w.host.sh(&format!(
            "ip addr add 203.0.113.77/24 dev up0; ip addr del {HOST4}/24 dev up0
             ip addr show dev up0 | grep -q 203.0.113.77 || ip addr add 203.0.113.77/24 dev up0
             ip route replace default via {ROUTER4}"
        ));
        let other = IpAddr::from([203, 0, 113, 77]);
        assert_eq!(seen(&guest, at(INET4, 7000)), [other; 2]);
        assert_eq!(crate::tools::heard_udp(&old).ip(), other);
        assert_eq!(connect(&w.internet, at(other, 8000)).map(drop).map_err(|e| e.kind()), Ok(()));
        wait_for("the gateway address to stand for the new one", Duration::from_secs(5), || {
            host_is().is_ok_and(|said| said == "203.0.113.77:7002")
        });

        // Without a default route the gateway is nobody, and the world is told to be unreachable.
        w.host.sh("ip route del default");
        let error = connect(&guest.ns, at(INET4, 7000)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{error}");
        w.host.sh(&format!("ip route add default via {ROUTER4}"));
        assert_eq!(seen(&guest, at(INET4, 7000)), [other; 2]);
        assert_eq!(restarts(w, "site"), 0);
    });
}

/// A source address that the user chose goes away and comes back.
#[test]
fn a_chosen_source_address_goes_and_comes_back() {
    World::run(|w| {
        w.host.sh("ip addr add 203.0.113.50/24 dev up0");
        let guest = w.guest(&["--outbound-addr", "203.0.113.50"]);
        tell_tcp(&w.internet, at(INET4, 7000));
        tell_udp(&w.internet, at(INET4, 7000));
        let chosen = IpAddr::from([203, 0, 113, 50]);
        assert_eq!(seen(&guest, at(INET4, 7000)), [chosen; 2]);
        w.host.sh("ip addr del 203.0.113.50/24 dev up0");
        // Never by another address than that one.
        let error = connect(&guest.ns, at(INET4, 7000)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{error}");
        w.host.sh("ip addr add 203.0.113.50/24 dev up0");
        assert_eq!(seen(&guest, at(INET4, 7000)), [chosen; 2]);
    });
}

#[test]
fn name_servers_come_and_go() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        let ask = |seconds: u32| {
            let text = guest.sh(&format!("dig @10.0.2.3 +tries=1 +time={seconds} -t TXT who.test || true"));
            let status = text.split("status: ").nth(1).map(|rest| rest.split(',').next().unwrap().to_owned());
            status.unwrap_or_else(|| "silence".into())
        };
        // Nobody is there: the host says so, and so do we, at once.
        let begun = Instant::now();
        assert_eq!(ask(10), "SERVFAIL");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        dns_server(&w.internet, at(INET4, 53), "outside");
        wait_for("the server that is there now", Duration::from_secs(3), || ask(3) == "NOERROR");
        // The way to it breaks, in silence, and heals.
        w.router.sh("ip route add blackhole 198.51.100.2/32");
        assert_eq!(ask(15), "SERVFAIL");
        w.router.sh("ip route del blackhole 198.51.100.2/32");
        wait_for("the way back", Duration::from_secs(5), || ask(3) == "NOERROR");
        // The file vanishes, is empty, a directory, nonsense, and is right again: each is heeded.
        for text in ["", "nonsense\n", "nameserver\nnameserver not.an.address\n"] {
            w.host_resolv_conf(text);
            wait_for("no servers", Duration::from_secs(5), || ask(3) == "SERVFAIL");
            w.host_resolv_conf("nameserver 198.51.100.2\n");
            wait_for("the server again", Duration::from_secs(5), || ask(3) == "NOERROR");
        }
        w.host.sh("rm /etc/resolv.conf; mkdir /etc/resolv.conf");
        wait_for("no servers", Duration::from_secs(5), || ask(3) == "SERVFAIL");
        w.host.sh("rmdir /etc/resolv.conf; echo 'nameserver 198.51.100.2' > /etc/resolv.conf");
        wait_for("the server again", Duration::from_secs(5), || ask(3) == "NOERROR");
        assert_eq!(restarts(w, "site"), 0);
    });
}
