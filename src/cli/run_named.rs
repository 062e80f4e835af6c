//! `tapway run --network NAME`: a sandbox on a network that others are on as well.
//!
//! In two steps. What the network is (its definition) is looked up before anything is done, since it says what goes with it;
//! the sandbox's place there (its lease) is taken when ports and name are had, and is given back when the sandbox ends.
//! Texts are Docker's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::endpoint_args::EndpointArgs;
use super::network::store;
use super::{FAILURE, Failure};
use crate::network::config::{
    Link, Listener, Membership, NetworkConfig, PlanV4, PlanV6, first_ms, linger_ms, max_members,
};
use crate::network::definition::Network;
use crate::network::lease::{Lease, Wanted};
use crate::network::plan;
use crate::network::publish::Publish;
use crate::sandbox::leases::{HeldLease, LeaseError, Leases};
use crate::sandbox::shared::Shared;
use crate::sandbox::uplink::Member;
use crate::stack::policy::EMBEDDED_DNS;

/// What is asked of the network on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    ip: Option<Ipv4Addr>,
    ip6: Option<Ipv6Addr>,
    aliases: Vec<String>,
    links: Vec<(String, String)>,
}

impl Asked {
    /// Reads it.
    pub fn parse(args: &EndpointArgs) -> Result<Self, Failure> {
        let bad = |option: &str, text: &str| Failure::usage(format!("invalid {option} address: {text}"));
        let ip = args.ip.as_ref().map(|text| text.parse().map_err(|_| bad("IPv4", text))).transpose()?;
        let ip6 = args.ip6.as_ref().map(|text| text.parse().map_err(|_| bad("IPv6", text))).transpose()?;
        let link = |text: &String| {
            let (name, alias) = text.split_once(':').unwrap_or((text, text));
            if name.is_empty() || alias.is_empty() || alias.contains(':') {
                return Err(Failure::usage(format!("bad format for links: {text}")));
            }
            Ok((name.trim_start_matches('/').to_owned(), alias.to_owned()))
        };
        let links = args.link.iter().map(link).collect::<Result<_, _>>()?;
        Ok(Self { ip, ip6, aliases: args.network_alias.clone(), links })
    }
}

/// The network of that name or id, on which a sandbox can be.
pub fn find(typed: &str) -> Result<Network, Failure> {
    store().find(typed).map_err(|error| Failure::runtime(&error))
}

/// The address plan of a network's members, without the member's own address, which `guest` stands for.
pub fn plans(network: &Network, guest: Option<&Lease>) -> Result<(PlanV4, Option<PlanV6>), Failure> {
    let Some((config, subnet)) = network.v4() else {
        return Err(Failure { code: FAILURE, line: format!("network {} has no IPv4 subnet", network.name) });
    };
    let IpAddr::V4(gateway) = config.gateway else {
        return Err(Failure { code: FAILURE, line: format!("network {} has no IPv4 gateway", network.name) });
    };
    let v4 = PlanV4 { subnet, gateway, dns: gateway, guest: guest.map_or(gateway, |lease| lease.v4) };
    let v6 = network.v6().and_then(|(config, subnet)| match config.gateway {
        IpAddr::V6(gateway) => {
            let guest = guest.map_or(Some(gateway), |lease| lease.v6)?;
            let gateway_link_local = plan::GATEWAY_LINK_LOCAL;
            Some(PlanV6 { subnet, gateway, gateway_link_local, dns: gateway, guest })
        }
        IpAddr::V4(_) => None,
    });
    Ok((v4, v6))
}

/// MTU of its members' interfaces.
pub fn mtu(network: &Network) -> u16 {
    network.mtu().unwrap_or(plan::DEFAULT_MTU)
}

/// Where its members ask for names, and whether that is the address of Docker's containers.
pub fn resolvers(network: &Network, v4: &PlanV4) -> (Vec<IpAddr>, bool) {
    if network.is_default() { (vec![v4.gateway.into()], false) } else { (vec![EMBEDDED_DNS.into()], true) }
}

/// Ports of a network say where they are bound if they do not themselves; those of an internal one go nowhere.
pub fn bind_where_it_says(network: &Network, ports: &mut Vec<Publish>) {
    if network.internal {
        ports.clear();
    }
    if let Some(address) = network.host_binding_ipv4() {
        for port in ports {
            port.host.get_or_insert(address.into());
        }
    }
}

/// A sandbox that is about to join.
#[derive(Debug)]
pub struct Joining {
    network: Network,
    leases: Leases,
    lease: HeldLease,
    /// What links are called, and where.
    pub links: Vec<(String, IpAddr)>,
    membership: Membership,
}

/// Takes a place on the network.
pub fn take(
    runtime_dir: &Path,
    network: Network,
    asked: Asked,
    (id, name, hostname): (&str, &str, &str),
    mac: Option<crate::network::config::Mac>,
    (interface, ports): (&str, Vec<Listener>),
) -> Result<Joining, Failure> {
    let refused = |error: LeaseError| Failure::runtime(&error);
    let leases = Leases::open(runtime_dir, &network);
    let (links, targets) = find_links(&network, &leases, &asked.links)?;
    let wanted = Wanted {
        sandbox_id: id.to_owned(),
        sandbox_name: name.to_owned(),
        pid: std::process::id(),
        ip: asked.ip,
        ip6: asked.ip6,
        mac,
        aliases: asked.aliases,
        hostname: hostname.to_owned(),
        interface: interface.to_owned(),
        ports,
        gw_priority: 0,
    };
    let lease = leases.take(&store(), &network, &wanted).map_err(refused)?;
    // The default network has no names that others could ask for; its links need something to go by all the same.
    let mut names = lease.lease().names.clone();
    if names.is_empty() {
        names = vec![name.to_owned(), id.to_owned()];
        names.dedup();
    }
    let membership = Membership { names, links: targets };
    Ok(Joining { network, leases, lease, links, membership })
}

/// What `--link` comes to: lines of the hosts file on the default network, aliases elsewhere.
#[allow(clippy::type_complexity, reason = "read at one place")]
fn find_links(
    network: &Network,
    leases: &Leases,
    links: &[(String, String)],
) -> Result<(Vec<(String, IpAddr)>, Vec<Link>), Failure> {
    let link = |(target, alias): &(String, String)| Link { target: target.clone(), alias: alias.clone() };
    let targets = links.iter().map(link).collect();
    if !network.is_default() || links.is_empty() {
        return Ok((Vec::new(), targets));
    }
    let live = leases.live();
    let mut hosts = Vec::new();
    for (target, alias) in links {
        let found = live.iter().find(|lease| lease.sandbox_name == *target || lease.sandbox_id.starts_with(target));
        let Some(lease) = found else {
            return Err(super::run_network::no_link(target));
        };
        let mut names = vec![alias.clone(), lease.sandbox_id.clone(), lease.sandbox_name.clone()];
        names.dedup();
        hosts.extend(names.into_iter().map(|name| (name, IpAddr::V4(lease.v4))));
    }
    Ok((hosts, targets))
}

impl Joining {
    /// The place.
    pub fn lease(&self) -> &Lease {
        self.lease.lease()
    }

    /// The address plan.
    pub fn plans(&self) -> Result<(PlanV4, Option<PlanV6>), Failure> {
        plans(&self.network, Some(self.lease()))
    }

    /// What the monitor needs.
    pub fn member(self) -> Member {
        let Self { network, leases, lease, membership, .. } = self;
        let config = NetworkConfig {
            id: network.id.clone(),
            name: network.name.clone(),
            mtu: mtu(&network),
            internal: network.internal,
            icc: network.icc(),
            masquerade: network.masquerade(),
            names: !network.is_default(),
            max_members: max_members(),
            linger_ms: linger_ms(),
            first_ms: first_ms(),
        };
        Member { shared: Shared::new(leases.dir(), config), lease, membership }
    }
}
