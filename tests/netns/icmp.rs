//! What `ping`, `traceroute` and `mtr` say inside: the same as outside, one hop further.

use std::net::IpAddr;

use crate::world::{GATEWAY4, INET4, INET6, ROUTER4, ROUTER6, Stage, World};

/// Hop limits of the echo replies that ping printed.
fn ttls(text: &str) -> Vec<u32> {
    text.lines().filter_map(|l| l.split("ttl=").nth(1)?.split(' ').next()?.parse().ok()).collect()
}

#[test]
fn ping_tells_the_true_ttl() {
    World::run(|w| {
        // No default of any system: nobody can have made this number up.
        w.internet.sh("echo 101 > /proc/sys/net/ipv4/ip_default_ttl; echo 101 > /proc/sys/net/ipv6/conf/all/hop_limit
                       echo 101 > /proc/sys/net/ipv6/conf/up0/hop_limit");
        let guest = w.guest::<&str>(&[]);
        for server in [IpAddr::V4(INET4), IpAddr::V6(INET6)] {
            let server = server.to_string();
            let direct = ttls(&w.host.sh(&format!("ping -n -c1 -W5 {server}")));
            let inside = guest.cmd(&["ping", "-n", "-c3", "-i0.2", "-W5", &server]).ok();
            let seen = ttls(&inside);
            assert_eq!(seen.len(), 3, "{inside}");
            // One more router than on the host, which may count itself or be transparent for the reply.
            assert_eq!(direct, [100]);
            assert!(seen.iter().all(|ttl| [99, 100].contains(ttl)), "{server}: {inside}");
        }
    });
}

#[test]
fn ping_carries_every_size() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        for server in [IpAddr::V4(INET4), IpAddr::V6(INET6)] {
            for size in ["0", "1", "56", "1452", "1472", "1473", "4000", "20000"] {
                // Two: the first long one may be told "fragmentation needed".
                let argv = ["ping", "-n", "-c2", "-i0.2", "-W2", "-s", size, &server.to_string()];
                let ended = guest.cmd(&argv).end();
                assert!(ended.code == 0, "{argv:?}: {}{}", ended.stdout, ended.stderr);
            }
        }
    });
}

#[test]
fn the_gateway_answers() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        guest.cmd(&["ping", "-n", "-c2", "-i0.2", "-W5", &GATEWAY4.to_string()]).ok();
        guest.cmd(&["ping", "-n", "-c2", "-i0.2", "-W5", &guest.gateway6().to_string()]).ok();
        guest.cmd(&["ping", "-n", "-c2", "-i0.2", "-W5", "fe80::2%eth0"]).ok();
    });
}

/// Errors on the way come from whom they come.
#[test]
fn ping_hears_of_errors() {
    World::run(|w| {
        w.router.sh("ip route add unreachable 198.51.100.66/32; ip -6 route add unreachable 2001:db8:2::66/128");
        let guest = w.guest::<&str>(&[]);
        for (argv, from, what) in [
            (
                ["ping", "-n", "-c1", "-W5", "198.51.100.66"].to_vec(),
                ROUTER4.to_string(),
                "Destination Host Unreachable",
            ),
            (["ping", "-n", "-c1", "-W5", "2001:db8:2::66"].to_vec(), ROUTER6.to_string(), "Destination unreachable"),
            (
                ["ping", "-n", "-c1", "-W5", "-t1", "198.51.100.2"].to_vec(),
                GATEWAY4.to_string(),
                "Time to live exceeded",
            ),
            (
                ["ping", "-n", "-c1", "-W5", "-t2", "198.51.100.2"].to_vec(),
                ROUTER4.to_string(),
                "Time to live exceeded",
            ),
            (["ping", "-n", "-c1", "-W5", "-t2", "2001:db8:2::2"].to_vec(), ROUTER6.to_string(), "Time exceeded"),
        ] {
            let ended = guest.cmd(&argv).end();
            assert_eq!(ended.code, 1, "{argv:?}: {}{}", ended.stdout, ended.stderr);
            let line = ended.stdout.lines().find(|l| l.contains(what));
            assert!(line.is_some_and(|l| l.contains(&from)), "{argv:?} printed\n{}", ended.stdout);
        }
    });
}

/// Addresses of the hops that a traceroute printed, in order.
fn hops(text: &str) -> Vec<String> {
    let numbered = |l: &&str| l.trim_start().starts_with(|c: char| c.is_ascii_digit());
    text.lines().filter(numbered).filter_map(|l| Some(l.split_whitespace().nth(1)?.to_owned())).collect()
}

#[test]
fn traceroute_sees_every_hop() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let gateway6 = guest.gateway6().to_string();
        for (server, first, router) in [
            (INET4.to_string(), GATEWAY4.to_string(), ROUTER4.to_string()),
            (INET6.to_string(), gateway6, ROUTER6.to_string()),
        ] {
            for method in ["-U", "-I"] {
                let argv = ["traceroute", "-n", "-q1", "-w3", "-m6", method, &server];
                let out = guest.cmd(&argv).ok();
                // An IPv6 gateway may answer from either of its addresses.
                let mut seen = hops(&out);
                if seen.first().is_some_and(|a| a == "fe80::2") {
                    seen[0].clone_from(&first);
                }
                assert_eq!(seen, [first.clone(), router.clone(), server.clone()], "{argv:?} printed\n{out}");
            }
        }
    });
}

#[test]
fn mtr_sees_every_hop() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        for (server, router) in [(INET4.to_string(), ROUTER4.to_string()), (INET6.to_string(), ROUTER6.to_string())] {
            let out = guest.cmd(&["mtr", "-u", "-n", "-r", "-c", "2", "-i", "1", "-m", "6", &server]).ok();
            let seen: Vec<_> = out.lines().filter_map(|l| l.split_once("|-- ")?.1.split_whitespace().next()).collect();
            assert_eq!(seen.len(), 3, "{out}");
            assert_eq!(seen[1..], [router.as_str(), server.as_str()], "{out}");
            assert!(seen[0] == "10.0.2.2" || seen[0].ends_with("::2"), "{out}");
        }
    });
}

/// Where the host forbids ping sockets the gateway still answers, and the log says why the rest does not.
#[test]
fn a_host_without_ping_sockets() {
    World::run_on(Stage { ping_sockets: false }, |w| {
        let guest = w.guest::<&str>(&[]);
        guest.cmd(&["ping", "-n", "-c1", "-W5", &GATEWAY4.to_string()]).ok();
        let outside = guest.cmd(&["ping", "-n", "-c1", "-W2", &INET4.to_string()]).end();
        assert_ne!(outside.code, 0, "{}", outside.stdout);
        let log = guest.monitor.stderr();
        assert!(log.contains("ping_group_range"), "nothing in the log says why: {log:?}");
    });
}
