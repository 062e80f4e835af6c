//! Where a packet from the guest may go. The only place that decides it; protocol code has no policy in it.
//!
//! The gateway address stands for the host: its address on the default route (so servers on 0.0.0.0 answer and
//! servers on 127.0.0.1 do not), or loopback where the user opened it. Forms that would reach a 127.0.0.1-only listener
//! by the back door — 0.0.0.0/8, ::, ::ffff:0:0/96, 127/8, ::1 — are refused before any connect(), and so is
//! 169.254/16 (cloud metadata) unless opened.
//!
//! On a network that many endpoints share, the network's [`NetworkRules`] come on top: nothing leaves an internal one, and
//! names are asked for at port 53 of the gateway and of [`EMBEDDED_DNS`], the address that Docker's containers have in
//! their resolv.conf.
//!
//! On slirp4netns's segment the gateway is the host's loopback or nothing, never its address on the network; the rest of
//! the subnet is the host's to reach or not; datagrams to groups go out; and whoever sends is a guest, unless its address
//! is one that no guest can have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::network::config::{EndpointConfig, PlanV4, PlanV6, Slirp};
use crate::stack::verdict::DropReason;

/// Where containers ask for names on networks that users make (Docker's resolver.go has it in every container's loopback).
pub const EMBEDDED_DNS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Where the DNS service listens.
pub const DNS_PORT: u16 = 53;

/// What a shared network says of all its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkRules {
    /// Nothing leaves, not even to the host.
    pub internal: bool,
    /// The host stands for its guests; otherwise nothing beyond the host is reached.
    pub masquerade: bool,
}

/// The answer for one destination address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// An ordinary host socket to this address.
    Outside(IpAddr),
    /// The gateway address: the host itself, at this address. `None`: it has none on a default route.
    Gateway(Option<IpAddr>),
    /// The address where names are asked for.
    Dns,
    /// A multicast group: datagrams go out as they are.
    Group(IpAddr),
    /// Answer with an error (RST for TCP, ICMP for the others).
    Refuse,
    /// There is no way there: answer that the network is unreachable.
    Unreachable,
    /// Silence.
    Ignore(DropReason),
}

/// The rules of one endpoint.
#[derive(Clone, Debug)]
pub struct Policy {
    v4: Option<PlanV4>,
    v6: Option<PlanV6>,
    allow_host_loopback: bool,
    allow_link_local: bool,
    host_v4: Option<Ipv4Addr>,
    host_v6: Option<Ipv6Addr>,
    slirp: Option<Slirp>,
    network: Option<NetworkRules>,
}

impl Policy {
    /// From the endpoint's configuration; the host's addresses are not known yet.
    pub fn new(config: &EndpointConfig) -> Self {
        Self {
            v4: config.v4,
            v6: config.v6,
            allow_host_loopback: config.allow_host_loopback,
            allow_link_local: config.allow_link_local,
            host_v4: None,
            host_v6: None,
            slirp: config.slirp,
            network: None,
        }
    }

    /// The endpoint is on a network that others share.
    pub fn set_network(&mut self, rules: NetworkRules) {
        self.network = Some(rules);
    }

    /// Tells the host's addresses on its default routes, whenever they may have changed.
    pub fn set_host_addresses(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        if self.slirp.is_some() {
            return;
        }
        self.host_v4 = v4;
        self.host_v6 = v6;
    }

    /// Decides for one destination of a protocol that has ports.
    pub fn decide_port(&self, dst: SocketAddr) -> Decision {
        if dst.port() == DNS_PORT && self.network.is_some() && self.is_dns(dst.ip()) {
            return Decision::Dns;
        }
        self.decide(dst.ip())
    }

    /// On a shared network: whether names are asked for at this address.
    fn is_dns(&self, dst: IpAddr) -> bool {
        match dst {
            IpAddr::V4(dst) => self.v4.is_some_and(|plan| dst == plan.dns || dst == EMBEDDED_DNS),
            IpAddr::V6(dst) => self.v6.is_some_and(|plan| dst == plan.dns),
        }
    }

    /// Decides for one destination.
    pub fn decide(&self, dst: IpAddr) -> Decision {
        let decision = match dst {
            IpAddr::V4(dst) => self.decide_v4(dst),
            IpAddr::V6(dst) => self.decide_v6(dst),
        };
        match (self.network, decision) {
            (Some(rules), Decision::Outside(_)) if rules.internal || !rules.masquerade => Decision::Unreachable,
            (Some(rules), Decision::Gateway(_)) if rules.internal => Decision::Unreachable,
            _ => decision,
        }
    }

    /// The DNS address. Without DNS it is silent, so that a question to it times out: libslirp lets it through to whoever
    /// has that address outside, who may refuse, or be somebody.
    fn decide_dns(&self) -> Decision {
        match self.slirp {
            Some(Slirp { dns: false, .. }) => Decision::Ignore(DropReason::Refused),
            _ => Decision::Dns,
        }
    }

    fn decide_v4(&self, dst: Ipv4Addr) -> Decision {
        let Some(plan) = self.v4 else { return Decision::Ignore(DropReason::FamilyOff) };
        if dst == plan.gateway {
            let host = if self.allow_host_loopback { Some(Ipv4Addr::LOCALHOST) } else { self.host_v4 };
            return Decision::Gateway(host.map(IpAddr::V4));
        }
        if dst == plan.dns {
            return self.decide_dns();
        }
        if self.network.is_some() && dst.is_loopback() {
            // What is not the name service's comes from somebody who tries.
            return Decision::Ignore(DropReason::Refused);
        }
        if dst.is_multicast() && self.slirp.is_some() {
            return Decision::Group(IpAddr::V4(dst));
        }
        let own_broadcast = dst == plan.subnet.broadcast() && self.slirp.is_none();
        if dst.is_multicast() || dst.is_broadcast() || own_broadcast {
            return Decision::Ignore(DropReason::Multicast);
        }
        let refused = dst.octets()[0] == 0
            || dst.is_loopback()
            || (dst.is_link_local() && !self.allow_link_local)
            || (plan.subnet.contains(&dst) && self.slirp.is_none())
            // 240/4 is reserved (RFC 1112); the host would answer EINVAL.
            || dst.octets()[0] >= 240;
        if refused { Decision::Refuse } else { Decision::Outside(IpAddr::V4(dst)) }
    }

    fn decide_v6(&self, dst: Ipv6Addr) -> Decision {
        let Some(plan) = self.v6 else { return Decision::Ignore(DropReason::FamilyOff) };
        if dst == plan.gateway || dst == plan.gateway_link_local {
            let host = if self.allow_host_loopback { Some(Ipv6Addr::LOCALHOST) } else { self.host_v6 };
            return Decision::Gateway(host.map(IpAddr::V6));
        }
        if dst == plan.dns {
            return self.decide_dns();
        }
        if dst.is_multicast() {
            // Scopes 0 and 1 stay within the node (RFC 4291, section 2.7).
            if self.slirp.is_some() && dst.octets()[1] & 0x0f > 1 {
                return Decision::Group(IpAddr::V6(dst));
            }
            return Decision::Ignore(DropReason::Multicast);
        }
        // The v4-mapped range reaches IPv4 loopback through an IPv6 socket; v4-compatible (::/96) is obsolete
        // (RFC 4291, section 2.5.5.1) and holds :: and ::1; link-local needs a scope that only the host has.
        let segments = dst.segments();
        let low_96_zero = segments[..6].iter().all(|&s| s == 0);
        let refused = dst.to_ipv4_mapped().is_some()
            || low_96_zero
            || dst.is_unicast_link_local()
            || (plan.subnet.contains(&dst) && self.slirp.is_none());
        if refused { Decision::Refuse } else { Decision::Outside(IpAddr::V6(dst)) }
    }

    /// Whether a published port's client can be shown to the guest as it is (dataplane.md, rule 12). Otherwise the
    /// gateway stands in.
    pub fn can_show(&self, client: IpAddr) -> bool {
        match client {
            IpAddr::V4(a) => self.v4.is_some_and(|plan| {
                !(a.is_loopback()
                    || a.is_link_local()
                    || a.is_unspecified()
                    || a.is_multicast()
                    || a.is_broadcast()
                    || plan.subnet.contains(&a)
                    || a == plan.guest)
            }),
            IpAddr::V6(a) => self.v6.is_some_and(|plan| {
                !(a.is_loopback()
                    || a.is_unicast_link_local()
                    || a.is_unspecified()
                    || a.is_multicast()
                    || a.to_ipv4_mapped().is_some()
                    || plan.subnet.contains(&a)
                    || a == plan.guest)
            }),
        }
    }

    /// The address that stands in for a client which cannot be shown: the gateway, of the client's family if the guest
    /// has it; and the guest's own address of that family.
    pub fn stand_in(&self, client: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let v4 = self.v4.map(|plan| (IpAddr::V4(plan.gateway), IpAddr::V4(plan.guest)));
        let v6 = self.v6.map(|plan| (IpAddr::V6(plan.gateway), IpAddr::V6(plan.guest)));
        if client.is_ipv4() { v4.or(v6) } else { v6.or(v4) }
    }

    /// The gateway's address of one family, source of our own ICMP errors.
    pub fn gateway(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.v6.map(|plan| IpAddr::V6(plan.gateway)) } else { self.v4.map(|plan| IpAddr::V4(plan.gateway)) }
    }

    /// The guest's configured address of one family.
    pub fn guest(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.v6.map(|plan| IpAddr::V6(plan.guest)) } else { self.v4.map(|plan| IpAddr::V4(plan.guest)) }
    }

    /// Whether `src` is an address that the guest may send from: its own, or, in IPv6, any of its prefix (a guest that
    /// autoconfigures makes its own) except ours. Where guests are learnt: any that a host can have.
    pub fn is_guest_source(&self, src: IpAddr) -> bool {
        if self.slirp.is_some() {
            return self.can_be_guest(src);
        }
        match src {
            IpAddr::V4(a) => self.v4.is_some_and(|plan| a == plan.guest),
            IpAddr::V6(a) => self.v6.is_some_and(|plan| {
                a == plan.guest || (plan.subnet.contains(&a) && a != plan.gateway && a != plan.dns)
            }),
        }
    }

    /// Whether a host on slirp4netns's segment can have this address: a unicast one, not a loopback one, and not ours.
    pub fn can_be_guest(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => self.v4.is_some_and(|plan| {
                !(a.is_loopback()
                    || a.is_unspecified()
                    || a.is_multicast()
                    || a.is_broadcast()
                    || a == plan.subnet.broadcast()
                    || a == plan.gateway
                    || a == plan.dns)
            }),
            IpAddr::V6(a) => self.v6.is_some_and(|plan| {
                !(a.is_loopback()
                    || a.is_unspecified()
                    || a.is_multicast()
                    || a.to_ipv4_mapped().is_some()
                    || [plan.gateway, plan.gateway_link_local, plan.dns].contains(&a))
            }),
        }
    }

    /// Where guests are learnt, a sender on the host's loopback is the gateway, and nobody where that is closed: with its
    /// own address no guest's kernel would take the datagram.
    pub fn shown_sender(&self, sender: SocketAddr) -> Option<SocketAddr> {
        if self.slirp.is_none() || !sender.ip().is_loopback() {
            return Some(sender);
        }
        let gateway = self.gateway(sender.is_ipv6()).filter(|_| self.allow_host_loopback)?;
        Some(SocketAddr::new(gateway, sender.port()))
    }

    /// Whether echo requests to `dst` are answered here: it is ours, whatever else is behind it.
    pub fn answers_echo(&self, dst: IpAddr) -> bool {
        match dst {
            IpAddr::V4(a) => self.v4.is_some_and(|plan| a == plan.gateway || a == plan.dns),
            IpAddr::V6(a) => self.v6.is_some_and(|plan| [plan.gateway, plan.gateway_link_local, plan.dns].contains(&a)),
        }
    }

    /// Whether this is slirp4netns's segment.
    pub fn is_slirp(&self) -> bool {
        self.slirp.is_some()
    }

    /// Whether an address of the host is what the gateway alias stands for now.
    pub fn is_host_alias(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) if self.allow_host_loopback => a == Ipv4Addr::LOCALHOST,
            IpAddr::V6(a) if self.allow_host_loopback => a == Ipv6Addr::LOCALHOST,
            IpAddr::V4(a) => self.host_v4 == Some(a),
            IpAddr::V6(a) => self.host_v6 == Some(a),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::config::{Mac, Offloads};

    pub fn config() -> EndpointConfig {
        EndpointConfig {
            id: "0123456789ab".into(),
            mtu: 65_520,
            guest_mac: Mac([2, 0x42, 10, 0, 2, 100]),
            gateway_mac: Mac([2, 0x42, 10, 0, 2, 2]),
            v4: Some(PlanV4 {
                subnet: "10.0.2.0/24".parse().unwrap(),
                gateway: "10.0.2.2".parse().unwrap(),
                dns: "10.0.2.3".parse().unwrap(),
                guest: "10.0.2.100".parse().unwrap(),
            }),
            v6: Some(PlanV6 {
                subnet: "fd00:1::/64".parse().unwrap(),
                gateway: "fd00:1::2".parse().unwrap(),
                gateway_link_local: "fe80::2".parse().unwrap(),
                dns: "fd00:1::3".parse().unwrap(),
                guest: "fd00:1::64".parse().unwrap(),
            }),
            offloads: Offloads::default(),
            allow_host_loopback: false,
            allow_link_local: false,
            outbound_v4: None,
            outbound_v6: None,
            hostname: "guest".into(),
            dns_search: Vec::new(),
            slirp: None,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_form_that_reaches_host_loopback_is_refused() {
        let policy = Policy::new(&config());
        for addr in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.9.9.9",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::7f00:1",
        ] {
            assert_eq!(policy.decide(ip(addr)), Decision::Refuse, "{addr}");
        }
    }

    #[test]
    fn metadata_is_closed_until_it_is_opened() {
        let mut config = config();
        assert_eq!(Policy::new(&config).decide(ip("169.254.169.254")), Decision::Refuse);
        config.allow_link_local = true;
        assert_eq!(Policy::new(&config).decide(ip("169.254.169.254")), Decision::Outside(ip("169.254.169.254")));
        // IPv6 link-local has no scope here, opened or not.
        assert_eq!(Policy::new(&config).decide(ip("fe80::1")), Decision::Refuse);
    }

    #[test]
    fn the_gateway_is_the_host_and_loopback_only_where_opened() {
        let mut config = config();
        let mut policy = Policy::new(&config);
        assert_eq!(policy.decide(ip("10.0.2.2")), Decision::Gateway(None));
        policy.set_host_addresses(Some(Ipv4Addr::new(192, 0, 2, 7)), None);
        assert_eq!(policy.decide(ip("10.0.2.2")), Decision::Gateway(Some(ip("192.0.2.7"))));
        assert_eq!(policy.decide(ip("fd00:1::2")), Decision::Gateway(None));
        assert!(policy.is_host_alias(ip("192.0.2.7")) && !policy.is_host_alias(ip("127.0.0.1")));
        config.allow_host_loopback = true;
        let policy = Policy::new(&config);
        assert_eq!(policy.decide(ip("10.0.2.2")), Decision::Gateway(Some(ip("127.0.0.1"))));
        assert_eq!(policy.decide(ip("fe80::2")), Decision::Gateway(Some(ip("::1"))));
    }

    #[test]
    fn the_rest_of_the_subnet_and_groups() {
        let policy = Policy::new(&config());
        assert_eq!(policy.decide(ip("10.0.2.77")), Decision::Refuse);
        assert_eq!(policy.decide(ip("10.0.2.3")), Decision::Dns);
        assert_eq!(policy.decide(ip("fd00:1::3")), Decision::Dns);
        for group in ["224.0.0.251", "255.255.255.255", "10.0.2.255", "ff02::fb"] {
            assert_eq!(policy.decide(ip(group)), Decision::Ignore(DropReason::Multicast), "{group}");
        }
        assert_eq!(policy.decide(ip("192.168.1.1")), Decision::Outside(ip("192.168.1.1")));
        assert_eq!(policy.decide(ip("2001:db8::1")), Decision::Outside(ip("2001:db8::1")));
    }

    #[test]
    fn who_can_be_shown_and_who_stands_in() {
        let mut config = config();
        let policy = Policy::new(&config);
        for hidden in
            ["127.0.0.1", "169.254.1.1", "10.0.2.9", "10.0.2.100", "::1", "fe80::9", "fd00:1::9", "::ffff:1.2.3.4"]
        {
            assert!(!policy.can_show(ip(hidden)), "{hidden}");
        }
        assert!(policy.can_show(ip("192.0.2.1")) && policy.can_show(ip("2001:db8::9")));
        assert_eq!(policy.stand_in(ip("::1")), Some((ip("fd00:1::2"), ip("fd00:1::64"))));
        config.v6 = None;
        let policy = Policy::new(&config);
        // A guest without the client's family sees the gateway of the family it has.
        assert!(!policy.can_show(ip("2001:db8::9")));
        assert_eq!(policy.stand_in(ip("2001:db8::9")), Some((ip("10.0.2.2"), ip("10.0.2.100"))));
        assert_eq!(policy.decide(ip("2001:db8::9")), Decision::Ignore(DropReason::FamilyOff));
    }
}
