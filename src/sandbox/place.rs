//! A sandbox's place on a network: what is asked for, what is taken for it, and what follows from that. The same for the networks
//! that a sandbox is born on and for those that it is connected to while it runs.
//!
//! What the network is (its definition) says what the place is like; the place itself is the lease, which is held as long as
//! the sandbox is there. Nothing of it knows the network's process yet: that is `sandbox::endpoint`'s. Texts are Docker's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::path::Path;

use super::interface::Interface;
use super::leases::{LeaseError, Leases};
use super::networks::{Store, StoreError};
use super::shared::Shared;
use super::state::{self, Address, Attachment};
use super::uplink::{Member, Source};
use crate::network::config::{
    EndpointConfig, Link, Listener, Mac, Membership, NetworkConfig, PlanV4, PlanV6, first_ms, linger_ms, max_members,
};
use crate::network::definition::Network;
use crate::network::desired::DnsSettings;
use crate::network::gateway::Rank;
use crate::network::lease::{Lease, Wanted};
use crate::network::plan;
use crate::stack::policy::EMBEDDED_DNS;

/// What is asked of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `--ip`.
    pub ip: Option<Ipv4Addr>,
    /// `--ip6`.
    pub ip6: Option<Ipv6Addr>,
    /// `--mac-address`.
    pub mac: Option<Mac>,
    /// `--network-alias`.
    pub aliases: Vec<String>,
    /// `--link`: names and what they are called.
    pub links: Vec<(String, String)>,
    /// `gw-priority`.
    pub gw_priority: i32,
}

impl Asked {
    /// Reads a link, `NAME[:ALIAS]`.
    pub fn parse_link(text: &str) -> Result<(String, String), PlaceError> {
        let (name, alias) = text.split_once(':').unwrap_or((text, text));
        if name.is_empty() || alias.is_empty() || alias.contains(':') {
            return Err(PlaceError::BadLink(text.to_owned()));
        }
        Ok((name.trim_start_matches('/').to_owned(), alias.to_owned()))
    }
}

/// Why there is no place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The network's definition.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A definition that somebody wrote.
    #[error("network {0} has no IPv4 {1}")]
    NoIpv4(String, &'static str),
    /// `--link` that cannot be read.
    #[error("bad format for links: {0}")]
    BadLink(String),
    /// `--link` on the default network, to nobody.
    #[error("could not get container for {0}: No such container: {0}")]
    NoSuchTarget(String),
    /// `--link` on the default network, to somebody elsewhere.
    #[error("Cannot link to /{0}, as it does not belong to the default network")]
    TargetElsewhere(String),
}

/// Who takes the place.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// 12 hex digits.
    pub id: &'a str,
    /// Name.
    pub name: &'a str,
    /// Host name.
    pub hostname: &'a str,
}

/// What all endpoints of a sandbox have in common.
#[derive(Clone, Debug)]
pub struct Template {
    /// Everything but MAC, MTU, addresses and offloads.
    pub config: EndpointConfig,
    /// Interfaces have IPv6 where their network has it.
    pub ipv6: bool,
    /// Queues of each interface.
    pub queues: NonZeroU8,
}

/// A place that is taken.
#[derive(Debug)]
pub struct Place {
    /// Name of the network.
    pub network: String,
    /// Its id; empty of a network of the sandbox's own.
    pub network_id: String,
    /// Members have names there, and ask for them at [`EMBEDDED_DNS`].
    pub names: bool,
    /// What was asked for.
    pub asked: Asked,
    /// What the endpoint gets inside.
    pub interface: Interface,
    /// What the network process is told; `offloads` is filled in when the TAP exists.
    pub config: EndpointConfig,
    /// Where that process comes from.
    pub source: Source,
    /// Lines of the hosts file that links come to.
    pub hosts: Vec<(String, IpAddr)>,
}

impl Place {
    /// Its rank among the sandbox's places.
    pub fn rank(&self) -> Rank {
        Rank::new(self.asked.gw_priority, self.interface.internal, self.config.v6.is_some(), &self.network)
    }

    /// As the state file has it; whether it is the gateway is not known here.
    pub fn attachment(&self) -> Attachment {
        let address = |address, prefix_len, gateway| Address { address, prefix_len, gateway };
        let (v4, v6) = (self.config.v4, self.config.v6);
        let v4 = v4.map(|p| address(p.guest.into(), p.subnet.prefix_len(), p.gateway.into()));
        let v6 = v6.map(|p| address(p.guest.into(), p.subnet.prefix_len(), p.gateway.into()));
        let lease = match &self.source {
            Source::Shared(member) => Some(member.lease.lease()),
            Source::Own(_) | Source::None => None,
        };
        Attachment {
            network: self.network.clone(),
            mac: self.interface.mac.to_string(),
            addresses: v4.into_iter().chain(v6).collect(),
            interface: self.interface.name.clone(),
            network_id: self.network_id.clone(),
            endpoint_id: lease.map(|lease| lease.endpoint_id.clone()).unwrap_or_default(),
            names: lease.map(|lease| lease.names.clone()).unwrap_or_default(),
            aliases: self.asked.aliases.clone(),
            links: self.asked.links.iter().map(|(name, alias)| format!("{name}:{alias}")).collect(),
            ip: self.asked.ip.map(Into::into),
            ip6: self.asked.ip6.map(Into::into),
            gw_priority: self.asked.gw_priority,
            gateway: false,
            faults: Vec::new(),
        }
    }
}

/// The networks of the caller.
pub fn store() -> Store {
    Store::new(state::lasting_dir().as_deref())
}

/// The address plan of a network's members; `guest` is whose, and None stands for nobody's in particular.
pub fn plans(network: &Network, guest: Option<&Lease>) -> Result<(PlanV4, Option<PlanV6>), PlaceError> {
    let missing = |what| PlaceError::NoIpv4(network.name.clone(), what);
    let (config, subnet) = network.v4().ok_or_else(|| missing("subnet"))?;
    let IpAddr::V4(gateway) = config.gateway else { return Err(missing("gateway")) };
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

/// Takes a place on `network`, with an interface called `interface`; `ports` are those that are published there.
pub fn take(
    runtime_dir: &Path,
    network: &Network,
    asked: Asked,
    who: Who<'_>,
    interface: &str,
    ports: Vec<Listener>,
    template: &Template,
) -> Result<Place, PlaceError> {
    let leases = Leases::open(runtime_dir, network);
    let (hosts, links) = find_links(runtime_dir, network, &leases, &asked.links)?;
    let wanted = Wanted {
        sandbox_id: who.id.to_owned(),
        sandbox_name: who.name.to_owned(),
        pid: std::process::id(),
        ip: asked.ip,
        ip6: asked.ip6,
        mac: asked.mac,
        aliases: asked.aliases.clone(),
        hostname: who.hostname.to_owned(),
        interface: interface.to_owned(),
        ports,
        gw_priority: asked.gw_priority,
    };
    let held = leases.take(&store(), network, &wanted)?;
    let lease = held.lease();
    // The default network has no names that others could ask for; its links need something to go by all the same.
    let mut names = lease.names.clone();
    if names.is_empty() {
        names = vec![who.name.to_owned(), who.id.to_owned()];
        names.dedup();
    }
    let (v4, v6) = plans(network, Some(lease))?;
    let v6 = v6.filter(|_| template.ipv6);
    let (mac, mtu) = (lease.mac, mtu(network));
    Ok(Place {
        network: network.name.clone(),
        network_id: network.id.clone(),
        names: !network.is_default(),
        asked,
        interface: Interface {
            name: interface.to_owned(),
            mac,
            mtu,
            v4: Some(v4),
            v6,
            queues: template.queues,
            internal: network.internal,
            embedded_dns: !network.is_default(),
            keep_routes: false,
        },
        config: EndpointConfig { mtu, guest_mac: mac, v4: Some(v4), v6, ..template.config.clone() },
        source: Source::Shared(Box::new(Member {
            shared: shared(&leases, network),
            membership: Membership { names, links },
            lease: held,
        })),
        hosts,
    })
}

/// The process of a network.
pub fn shared(leases: &Leases, network: &Network) -> Shared {
    let config = NetworkConfig {
        id: network.id.clone(),
        name: network.name.clone(),
        mtu: mtu(network),
        internal: network.internal,
        icc: network.icc(),
        masquerade: network.masquerade(),
        names: !network.is_default(),
        max_members: max_members(),
        linger_ms: linger_ms(),
        first_ms: first_ms(),
    };
    Shared::new(leases.dir(), config)
}

/// A link as it is said to the network.
fn link((target, alias): &(String, String)) -> Link {
    Link { target: target.clone(), alias: alias.clone() }
}

/// What `--link` comes to: lines of the hosts file on the default network, aliases elsewhere.
#[allow(clippy::type_complexity, reason = "read at one place")]
fn find_links(
    runtime_dir: &Path,
    network: &Network,
    leases: &Leases,
    links: &[(String, String)],
) -> Result<(Vec<(String, IpAddr)>, Vec<Link>), PlaceError> {
    let targets = links.iter().map(link).collect();
    if !network.is_default() || links.is_empty() {
        return Ok((Vec::new(), targets));
    }
    let live = leases.live();
    let mut hosts = Vec::new();
    for (target, alias) in links {
        let found = live.iter().find(|lease| lease.sandbox_name == *target || lease.sandbox_id.starts_with(target));
        let lease = found.ok_or_else(|| no_link(runtime_dir, target))?;
        let mut names = vec![alias.clone(), lease.sandbox_id.clone(), lease.sandbox_name.clone()];
        names.dedup();
        hosts.extend(names.into_iter().map(|name| (name, IpAddr::V4(lease.v4))));
    }
    Ok((hosts, targets))
}

/// The refusal of a link to a sandbox that is not on the default network.
pub fn no_link(runtime_dir: &Path, name: &str) -> PlaceError {
    match state::find(runtime_dir, name) {
        Err(_) => PlaceError::NoSuchTarget(name.to_owned()),
        Ok(found) => PlaceError::TargetElsewhere(found.name),
    }
}

/// Where names are asked for inside, given the sandbox's places in the order of their ranks: at [`EMBEDDED_DNS`] where a network has
/// names, and otherwise at the first one's gateway.
pub fn resolvers<'a>(places: impl IntoIterator<Item = (bool, &'a EndpointConfig)>) -> Vec<IpAddr> {
    let mut first: Option<Vec<IpAddr>> = None;
    for (names, config) in places {
        if names {
            return vec![EMBEDDED_DNS.into()];
        }
        first.get_or_insert_with(|| {
            let v4 = config.v4.iter().map(|plan| plan.dns.into());
            v4.chain(config.v6.map(|plan| plan.dns.into())).collect()
        });
    }
    first.unwrap_or_default()
}

/// The text of /etc/resolv.conf of a sandbox that asks at `resolvers`.
pub fn resolv_text(settings: &DnsSettings, resolvers: &[IpAddr]) -> String {
    let given = |option: &String| option.starts_with("ndots:");
    if resolvers != [IpAddr::V4(EMBEDDED_DNS)] || settings.options.iter().any(given) {
        return settings.resolv_conf(resolvers);
    }
    // As Docker has it: names of one label are asked for as they are.
    let mut settings = settings.clone();
    settings.options.push("ndots:0".to_owned());
    settings.resolv_conf(resolvers)
}
