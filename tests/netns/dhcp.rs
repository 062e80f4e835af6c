//! Guests that ask rather than being configured: DHCPv4 and router advertisements.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::tools::{any, ask_tcp, at, tell_tcp};
use crate::world::{INET4, INET6, World, addresses6, wait_for};

/// What udhcpc calls with its lease in the environment.
const SCRIPT: &str = "#!/bin/sh
case $1 in
bound|renew)
    env | sort > /mnt/lease
    ip addr flush dev eth0 scope global
    ip addr add $ip/$mask dev eth0
    ip route replace default via $router
    ;;
esac
";

#[test]
fn dhcp_gives_what_the_plan_says() {
    World::run(|w| {
        tell_tcp(&w.internet, at(INET4, 7000));
        let guest = w.guest(&["--hostname", "box", "--mtu", "9000", "--dns-search", "corp.example"]);
        std::fs::write(w.path("lease.sh"), SCRIPT).unwrap();
        std::fs::set_permissions(w.path("lease.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
        guest.sh("ip -4 addr flush dev eth0; ip -4 route flush dev eth0");
        let options = ["-O", "mtu", "-O", "search", "-O", "hostname"];
        let argv = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-T", "2", "-s", "/mnt/lease.sh"];
        guest.cmd(&[&argv[..], &options].concat()).ok();
        let lease = std::fs::read_to_string(w.path("lease")).unwrap();
        let lines: Vec<_> = lease.lines().collect();
        for want in ["ip=10.0.2.100", "mask=24", "router=10.0.2.2", "dns=10.0.2.3", "mtu=9000", "hostname=box"] {
            assert!(lines.contains(&want), "{want} is missing in\n{lease}");
        }
        assert!(lines.iter().any(|l| l.starts_with("search=") && l.contains("corp.example")), "{lease}");
        assert!(lines.iter().any(|l| l.starts_with("serverid=10.0.2.")), "{lease}");
        let server = at(INET4, 7000);
        ask_tcp(&guest.ns, any(server), server);
    });
}

/// A guest with a request for another address gets its own one all the same.
#[test]
fn dhcp_does_not_hand_out_what_is_asked_for() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        std::fs::write(w.path("lease.sh"), SCRIPT).unwrap();
        std::fs::set_permissions(w.path("lease.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
        guest.sh("ip -4 addr flush dev eth0");
        let argv = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-T", "2", "-r", "10.0.2.77"];
        guest.cmd(&[&argv[..], &["-s", "/mnt/lease.sh"]].concat()).ok();
        let lease = std::fs::read_to_string(w.path("lease")).unwrap();
        assert!(lease.lines().any(|l| l == "ip=10.0.2.100"), "{lease}");
    });
}

#[test]
fn a_router_advertisement_configures_ipv6() {
    World::run(|w| {
        tell_tcp(&w.internet, at(INET6, 7000));
        let guest = w.guest::<&str>(&[]);
        let mine = guest.addr6();
        let prefix = mine.segments()[..4].to_vec();
        // A fresh interface that solicits, and then checks its addresses with DAD as kernels do by themselves.
        guest.sh("ip -6 addr flush dev eth0 scope global; ip -6 route flush dev eth0
             echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra
             echo 1 > /proc/sys/net/ipv6/conf/eth0/autoconf
             echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_dad
             echo 0 > /proc/sys/net/ipv6/conf/eth0/addr_gen_mode
             ip link set eth0 down; ip link set eth0 up");
        wait_for("an address from the advertised prefix", Duration::from_secs(20), || {
            addresses6(&guest.ns, "eth0", "global").iter().any(|a| a.segments()[..4] == prefix[..])
        });
        let route = guest.ns.sh("ip -6 route show default");
        assert!(route.contains("via fe80::2 ") && route.contains("proto ra"), "{route}");
    });
}

/// Duplicate address detection: an address of the gateway's is taken, one of the guest's own is not.
#[test]
fn dad_is_answered_for_the_gateway_only() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let (gateway, free) = (guest.gateway6(), {
            let mut s = guest.addr6().segments();
            s[7] = 0x1234;
            std::net::Ipv6Addr::from(s)
        });
        guest.sh(&format!(
            "echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_dad
             ip -6 addr add {gateway}/64 dev eth0; ip -6 addr add {free}/64 dev eth0"
        ));
        let state = |addr: std::net::Ipv6Addr| guest.ns.sh(&format!("ip -6 addr show dev eth0 to {addr}/128"));
        wait_for("the end of duplicate address detection", Duration::from_secs(15), || {
            let (a, b) = (state(gateway), state(free));
            (a.contains("dadfailed") || !a.contains("tentative")) && !b.contains("tentative")
        });
        assert!(state(gateway).contains("dadfailed"), "nobody defends the gateway's address: {}", state(gateway));
        assert!(!state(free).contains("dadfailed"), "{}", state(free));
    });
}
