//! What the host reaches itself, so that no network of ours is laid over it: its on-link IPv4 routes and the addresses of
//! its name servers (a resolver behind a tunnel is on no link).

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::Ipv4Net;

use super::host_dns;

/// Where the kernel lists its routes (main table, IPv4).
const ROUTES: &str = "/proc/net/route";
/// The route leads to a router (RTF_GATEWAY, include/uapi/linux/route.h).
const GATEWAY: u32 = 2;
/// The route refuses (RTF_REJECT).
const REJECT: u32 = 0x200;

/// All of them, now. What cannot be read is left out.
pub fn read() -> Vec<Ipv4Net> {
    let mut nets = on_link(&std::fs::read_to_string(ROUTES).unwrap_or_default());
    let servers = host_dns::servers(&host_dns::read(Path::new(host_dns::RESOLV_CONF)));
    nets.extend(servers.into_iter().filter_map(|server| match server.ip() {
        IpAddr::V4(address) => Some(Ipv4Net::from(address)),
        IpAddr::V6(_) => None,
    }));
    nets
}

/// Destinations of the routes in `text` that lead straight to a link; a default route is none.
pub fn on_link(text: &str) -> Vec<Ipv4Net> {
    let route = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        // Iface Destination Gateway Flags RefCnt Use Metric Mask …, addresses as the machine's memory has them.
        let address = |word: &str| Some(Ipv4Addr::from(u32::from_str_radix(word, 16).ok()?.to_ne_bytes()));
        let destination = address(words.nth(1)?)?;
        let flags = u32::from_str_radix(words.nth(1)?, 16).ok()?;
        let mask = address(words.nth(3)?)?;
        let net = Ipv4Net::with_netmask(destination, mask).ok()?.trunc();
        (flags & (GATEWAY | REJECT) == 0 && net.prefix_len() != 0).then_some(net)
    };
    text.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn links_and_not_routers() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            tun0\t0000000A\t0101A8C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n\
            *\t000012AC\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            cut\t0000\n";
        let nets: Vec<String> = on_link(text).iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["192.168.1.0/24", "172.17.0.0/16"]);
        assert!(on_link("").is_empty());
    }
}
