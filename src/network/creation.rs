//! From what was typed to a definition.
//!
//! ```text
//! texts ── assemble ──► Request ── create ──► Network
//!          which gateway, range and     names, pools, overlaps;
//!          address is which subnet's    what exists is an argument
//! ```
//!
//! The texts of errors are Docker's, including which of its parts complains first. Whoever calls [`create`] must see to it
//! that nobody else makes a network meanwhile. Time and randomness are arguments ([`Fresh`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::definition::{BRIDGE, DefinitionError, Network, SHORT_ID, check_name, hex};
use super::ipam::IpamConfig;
use super::options;
use super::plan::{is_reserved, random_ula};
use super::pools::{self, Exhausted};
use super::timestamp::Timestamp;

/// Longest IPv4 prefix: a gateway and a member.
const MAX_PREFIX_V4: u8 = 31;
/// Shortest IPv4 prefix: 10.0.0.0/8 is the largest private block.
const MIN_PREFIX_V4: u8 = 8;
/// Longest IPv6 prefix with room for a gateway and a member: the first address is nobody's.
const MAX_PREFIX_V6: u8 = 126;
/// Shortest IPv6 prefix: no unicast block that is given out is larger (RFC 4291, section 2.4: 2000::/3).
const MIN_PREFIX_V6: u8 = 3;

/// A subnet that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetRequest {
    /// As typed, host bits and all; an unspecified address means "any of this size".
    pub subnet: IpNet,
    /// `--ip-range`.
    pub ip_range: Option<IpNet>,
    /// `--gateway`.
    pub gateway: Option<IpAddr>,
    /// `--aux-address`.
    pub auxiliary: BTreeMap<String, IpAddr>,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub name: String,
    /// No way out.
    pub internal: bool,
    /// Kept.
    pub attachable: bool,
    /// IPv6 as well.
    pub ipv6: bool,
    /// Subnets; without one of IPv4, the pools give one.
    pub subnets: Vec<SubnetRequest>,
    /// `-o`.
    pub options: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
}

/// What is new in each network.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// Random: its id.
    pub id: [u8; 32],
    /// Random: its IPv6 prefix, if it needs one.
    pub ula: [u8; 7],
    /// The time.
    pub now: Timestamp,
}

/// What is there already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Existing<'a> {
    /// Networks, the predefined ones as well.
    pub networks: &'a [Network],
    /// Subnets that somebody may be using for other reasons.
    pub subnets: &'a [IpNet],
    /// What the host reaches itself: on-link routes and name servers.
    pub host: &'a [Ipv4Net],
}

/// Why no network is made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// More ranges or gateways than subnets.
    #[error("every ip-range or gateway must have a corresponding subnet")]
    NoCorrespondingSubnet,
    /// Subnets of one network that overlap.
    #[error("multiple overlapping subnet configuration is not supported")]
    OverlappingSubnets,
    /// Something that is in none of the subnets.
    #[error("no matching subnet for {what} {}", .value.escape_default())]
    NoMatchingSubnet {
        /// What.
        what: &'static str,
        /// Which.
        value: String,
    },
    /// Two where there can be one.
    #[error("cannot configure multiple {what} ({second}, {first}) {preposition} the same subnet ({subnet})")]
    Several {
        /// Of what.
        what: &'static str,
        /// The later one.
        second: String,
        /// The earlier one.
        first: String,
        /// Docker's grammar.
        preposition: &'static str,
        /// Where.
        subnet: String,
    },
    /// A text that is no address.
    #[error("invalid {what} \"{}\": {why}", .value.escape_default())]
    NotAddress {
        /// What it was to be.
        what: &'static str,
        /// The text.
        value: String,
        /// What it is to look like.
        why: &'static str,
    },
    /// The name is held.
    #[error("network with name {0} already exists")]
    Exists(String),
    /// The subnet is held.
    #[error("invalid pool request: Pool overlaps with other one on this address space")]
    Overlap,
    /// The subnet is held, and Docker's driver is the one that says so.
    #[error(
        "cannot create network {id} (br-{}): conflicts with network {other} ({bridge}): networks have {what}",
        short(.id)
    )]
    Conflict {
        /// The id it would have had.
        id: String,
        /// Whose it is.
        other: String,
        /// That one's bridge.
        bridge: String,
        /// What both have.
        what: &'static str,
    },
    /// IPv6 without the switch.
    #[error("the subnet {0} is of IPv6, which this network is without; add --ipv6")]
    NeedsIpv6(IpNet),
    /// The gateway is nobody's address, or there is no room for one.
    #[error("failed to allocate gateway ({0}): Address already in use")]
    Gateway(String),
    /// An auxiliary address is the gateway's, or nobody's.
    #[error("failed to allocate secondary ip address ({}:{}): Address already in use", .0.escape_default(), .1)]
    Auxiliary(String, IpAddr),
    /// The pools are used up.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The definition would not be sound.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
}

fn short(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or(id)
}

/// Sorts ranges, gateways and auxiliary addresses to the subnets that they are of.
pub fn assemble(
    subnets: &[String],
    ranges: &[String],
    gateways: &[String],
    auxiliary: &[(String, String)],
) -> Result<Vec<SubnetRequest>, CreateError> {
    if subnets.len() < ranges.len() || subnets.len() < gateways.len() {
        return Err(CreateError::NoCorrespondingSubnet);
    }
    let mut requests: Vec<SubnetRequest> = Vec::new();
    for text in subnets {
        let subnet = parse_net(text).ok_or_else(|| invalid(format!("invalid subnet {}", text.escape_default())))?;
        if requests.iter().any(|other| overlap(&other.subnet, &subnet)) {
            return Err(CreateError::OverlappingSubnets);
        }
        requests.push(SubnetRequest { subnet, ip_range: None, gateway: None, auxiliary: BTreeMap::new() });
    }
    let several = |what, preposition, second: String, first: String, subnet: IpNet| {
        Err(CreateError::Several { what, second, first, preposition, subnet: subnet.to_string() })
    };
    for text in ranges {
        let range = parse_net(text).ok_or_else(|| invalid(format!("invalid ip-range {}", text.escape_default())))?;
        let request = matching(&mut requests, range.addr(), "range", text)?;
        if let Some(first) = request.ip_range {
            return several("ranges", "on", range.to_string(), first.to_string(), request.subnet);
        }
        request.ip_range = Some(range);
    }
    for text in gateways {
        let gateway = parse_address("gateway", text)?;
        let request = matching(&mut requests, gateway, "gateway", text)?;
        if let Some(first) = request.gateway {
            return several("gateways", "for", gateway.to_string(), first.to_string(), request.subnet);
        }
        request.gateway = Some(gateway);
    }
    for (name, text) in auxiliary {
        let address = parse_address("aux-address", text)?;
        matching(&mut requests, address, "aux-address", text)?.auxiliary.insert(name.clone(), address);
    }
    Ok(requests)
}

fn invalid(what: String) -> CreateError {
    CreateError::Definition(DefinitionError::Ipam(vec![format!("{what}: invalid CIDR block notation")]))
}

/// A subnet as typed; a bare address is the subnet of that address alone, as docker's command line has it.
fn parse_net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn parse_address(what: &'static str, text: &str) -> Result<IpAddr, CreateError> {
    let why = "give an address such as 10.0.0.1 or fd00::1";
    text.parse().map_err(|_| CreateError::NotAddress { what, value: text.to_owned(), why })
}

fn matching<'a>(
    requests: &'a mut [SubnetRequest],
    address: IpAddr,
    what: &'static str,
    text: &str,
) -> Result<&'a mut SubnetRequest, CreateError> {
    let found = requests.iter_mut().find(|request| request.subnet.contains(&address));
    found.ok_or_else(|| CreateError::NoMatchingSubnet { what, value: text.to_owned() })
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    // Any of this size: whatever it becomes is free.
    let any = |net: &IpNet| net.addr().is_unspecified();
    !any(a) && !any(b) && (a.contains(&b.network()) || b.contains(&a.network()))
}

/// Makes a definition.
pub fn create(request: Request, existing: Existing<'_>, fresh: Fresh) -> Result<Network, CreateError> {
    check_name(&request.name)?;
    if existing.networks.iter().any(|network| network.name == request.name) {
        return Err(CreateError::Exists(request.name));
    }
    let mut network = Network {
        id: hex(&fresh.id),
        name: request.name,
        created: fresh.now,
        driver: BRIDGE.to_owned(),
        internal: request.internal,
        attachable: request.attachable,
        ipv6: request.ipv6,
        ipam: Vec::new(),
        options: request.options,
        labels: request.labels,
    };
    let (v4, v6): (Vec<_>, Vec<_>) = request.subnets.into_iter().partition(|s| s.subnet.addr().is_ipv4());
    if let (Some(first), false) = (v6.first(), network.ipv6) {
        return Err(CreateError::NeedsIpv6(first.subnet));
    }
    let any = |net: Ipv4Net| IpNet::V4(net);
    let mut wanted = v4;
    if wanted.is_empty() {
        wanted.push(bare(any(Ipv4Net::default())));
    }
    wanted.extend(v6);
    if network.ipv6 && wanted.iter().all(|s| s.subnet.addr().is_ipv4()) {
        wanted.push(bare(IpNet::V6(random_ula(fresh.ula))));
    }
    // Docker tells everything that is wrong with them at once, before it looks for room.
    let wrong: Vec<String> = wanted.iter().flat_map(check_request).collect();
    if !wrong.is_empty() {
        return Err(DefinitionError::Ipam(wrong).into());
    }
    for wanted in wanted {
        let taken: Vec<IpNet> = network.ipam.iter().map(|config| config.subnet).collect();
        network.ipam.push(settle(&network.id, wanted, existing, &taken, fresh)?);
    }
    network.check()?;
    let same_bridge = |other: &&Network| {
        network.options.contains_key(options::BRIDGE_NAME) && other.bridge_name() == network.bridge_name()
    };
    if let Some(other) = existing.networks.iter().find(same_bridge) {
        return Err(conflict(&network.id, other, "same bridge name"));
    }
    Ok(network)
}

fn bare(subnet: IpNet) -> SubnetRequest {
    SubnetRequest { subnet, ip_range: None, gateway: None, auxiliary: BTreeMap::new() }
}

fn conflict(id: &str, other: &Network, what: &'static str) -> CreateError {
    let (other, bridge) = (other.id.clone(), other.bridge_name());
    CreateError::Conflict { id: id.to_owned(), other, bridge, what }
}

/// Finds room for one subnet; `mine` are those of the same network.
fn settle(
    id: &str,
    wanted: SubnetRequest,
    existing: Existing<'_>,
    mine: &[IpNet],
    fresh: Fresh,
) -> Result<IpamConfig, CreateError> {
    let theirs = || existing.networks.iter().flat_map(|network| &network.ipam).map(|config| config.subnet);
    let others = || theirs().chain(existing.subnets.iter().copied()).chain(mine.iter().copied());
    let subnet = match wanted.subnet {
        IpNet::V4(net) if net.addr().is_unspecified() => {
            let taken: Vec<Ipv4Net> = others()
                .filter_map(|net| match net {
                    IpNet::V4(net) => Some(net),
                    IpNet::V6(_) => None,
                })
                .collect();
            // /0 is "any of any size": what the pools have.
            let size = Some(net.prefix_len()).filter(|&len| len != 0);
            IpNet::V4(pools::allocate(size, &taken, existing.host)?)
        }
        IpNet::V6(net) if net.addr().is_unspecified() => IpNet::V6(random_ula(fresh.ula)),
        net => net,
    };
    if others().any(|other| overlap(&other, &subnet)) {
        // With a range Docker's address management lets it pass, and the driver refuses it.
        let has = |other: &&Network| other.ipam.iter().any(|config| overlap(&config.subnet, &subnet));
        return Err(match (wanted.ip_range, existing.networks.iter().find(has)) {
            (Some(_), Some(other)) if subnet.addr().is_ipv4() => conflict(id, other, "overlapping IPv4"),
            (Some(_), Some(other)) => conflict(id, other, "overlapping IPv6"),
            _ => CreateError::Overlap,
        });
    }
    let no_room = || CreateError::Gateway(String::new());
    let mut config = IpamConfig::with_gateway(subnet, wanted.ip_range).ok_or_else(no_room)?;
    if let Some(gateway) = wanted.gateway {
        config.gateway = gateway;
        if config.is_nobodys(gateway) {
            return Err(CreateError::Gateway(gateway.to_string()));
        }
    }
    let mut held = BTreeSet::from([config.gateway]);
    for (name, &address) in &wanted.auxiliary {
        if config.is_nobodys(address) || !held.insert(address) {
            return Err(CreateError::Auxiliary(name.clone(), address));
        }
    }
    config.auxiliary = wanted.auxiliary;
    Ok(config)
}

/// What is wrong with a subnet that was asked for, in Docker's words.
fn check_request(request: &SubnetRequest) -> Vec<String> {
    if request.subnet.addr().is_unspecified() {
        return Vec::new();
    }
    let SubnetRequest { subnet, ip_range, gateway, auxiliary } = request;
    complaints(*subnet, *ip_range, *gateway, auxiliary)
}

/// What is wrong with a subnet of a definition.
pub(super) fn check_subnet(config: &IpamConfig) -> Vec<String> {
    complaints(config.subnet, config.ip_range, Some(config.gateway), &config.auxiliary)
}

fn complaints(
    subnet: IpNet,
    ip_range: Option<IpNet>,
    gateway: Option<IpAddr>,
    auxiliary: &BTreeMap<String, IpAddr>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let family = |v4: bool| if v4 { "IPv4" } else { "IPv6" };
    let is_v4 = subnet.addr().is_ipv4();
    if subnet != subnet.trunc() {
        wrong.push(format!("invalid subnet {subnet}: it should be {}", subnet.trunc()));
    }
    let (min, max) = if is_v4 { (MIN_PREFIX_V4, MAX_PREFIX_V4) } else { (MIN_PREFIX_V6, MAX_PREFIX_V6) };
    if !(min..=max).contains(&subnet.prefix_len()) {
        wrong.push(format!("invalid subnet {subnet}: its prefix length must be {min} to {max}"));
    } else if is_reserved(subnet) {
        wrong.push(format!(
            "invalid subnet {subnet}: it is reserved (loopback, link-local, multicast or unspecified); \
             take one from a private range such as 10.0.2.0/24"
        ));
    }
    if let Some(range) = ip_range {
        let mut say = |text: String| wrong.push(format!("invalid ip-range {range}: {text}"));
        if range.addr().is_ipv4() == is_v4 {
            if range.prefix_len() < subnet.prefix_len() {
                say(format!("CIDR block is bigger than its parent subnet {subnet}"));
            }
            if range != range.trunc() {
                say(format!("it should be {}", range.trunc()));
            }
            if !overlap(&range, &subnet) {
                say(format!("parent subnet {subnet} doesn't contain ip-range"));
            }
        } else {
            say(format!("parent subnet is an {} block", family(is_v4)));
        }
    }
    let address = |address: IpAddr| {
        if address.is_ipv4() != is_v4 {
            Some(format!("parent subnet is an {} block", family(is_v4)))
        } else if subnet.contains(&address) {
            None
        } else {
            Some(format!("parent subnet {subnet} doesn't contain this address"))
        }
    };
    if let Some((gateway, why)) = gateway.and_then(|gateway| Some((gateway, address(gateway)?))) {
        wrong.push(format!("invalid gateway {gateway}: {why}"));
    }
    for (name, &value) in auxiliary {
        if let Some(why) = address(value) {
            wrong.push(format!("invalid auxiliary address {}: {why}", name.escape_default()));
        }
    }
    wrong
}

#[cfg(test)]
mod tests;
