//! `tapway run --network NAME…`: the networks of a sandbox that others are on as well, as they are typed.
//!
//! | typed | |
//! |---|---|
//! | `--network web` | the network `web`; `--ip`, `--ip6`, `--network-alias`, `--link` and `--mac-address` are about the first |
//! | `--network name=db,alias=cache,ip=172.19.0.9` | the same with what is asked of this one |
//!
//! What the networks are (their definitions) is looked up before anything is done, since it says what goes with them; the sandbox's
//! places there are taken when ports and name are had (`sandbox::place`). Texts are Docker's.

use super::endpoint_args::EndpointArgs;
use super::{FAILURE, Failure};
use crate::network::definition::Network;
use crate::network::gateway::Rank;
use crate::network::plan;
use crate::network::publish::Publish;
use crate::sandbox::place::{self, Asked, PlaceError};

/// One value of `--network`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// Name or id.
    pub name: String,
    /// What is asked of it.
    pub asked: Asked,
}

/// What `run` refuses of a place: usage errors are the command line's fault.
pub fn failure(error: &PlaceError) -> Failure {
    match error {
        PlaceError::BadLink(_) => Failure::usage(error.to_string()),
        _ => Failure::runtime(error),
    }
}

impl Typed {
    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let mut typed = Self::default();
        if !text.contains('=') {
            text.clone_into(&mut typed.name);
            return Ok(typed);
        }
        let bad = |line: String| Failure::usage(format!("invalid argument \"{text}\" for \"--network\": {line}"));
        for field in text.split(',') {
            let (key, value) = field.split_once('=').ok_or_else(|| bad(format!("invalid field {field}")))?;
            let asked = &mut typed.asked;
            match key.trim().to_ascii_lowercase().as_str() {
                "name" => value.clone_into(&mut typed.name),
                "alias" => asked.aliases.push(value.to_owned()),
                "ip" => asked.ip = Some(value.parse().map_err(|_| bad(format!("invalid IPv4 address: {value}")))?),
                "ip6" => asked.ip6 = Some(value.parse().map_err(|_| bad(format!("invalid IPv6 address: {value}")))?),
                "mac-address" => {
                    asked.mac = Some(plan::parse_mac(value).map_err(|error| bad(error.to_string()))?);
                }
                "gw-priority" => {
                    asked.gw_priority = value
                        .parse()
                        .map_err(|_| bad(format!("invalid gw-priority ({value}): give a whole number")))?;
                }
                "driver-opt" | "link-local-ip" => {
                    return Err(bad(format!("{key} is not supported by tapway; leave it out")));
                }
                _ => return Err(bad(format!("invalid field key {key}"))),
            }
        }
        if typed.name.is_empty() {
            return Err(bad("network name/id is not specified".to_owned()));
        }
        Ok(typed)
    }
}

/// What the options that are about the first network ask of it.
pub fn options(args: &EndpointArgs) -> Result<Asked, Failure> {
    let bad = |option: &str, text: &str| Failure::usage(format!("invalid {option} address: {text}"));
    let mac = args.mac_address.as_deref().map(plan::parse_mac).transpose();
    Ok(Asked {
        ip: args.ip.as_ref().map(|text| text.parse().map_err(|_| bad("IPv4", text))).transpose()?,
        ip6: args.ip6.as_ref().map(|text| text.parse().map_err(|_| bad("IPv6", text))).transpose()?,
        mac: mac.map_err(|error| Failure::usage(error.to_string()))?,
        aliases: args.network_alias.clone(),
        links: args
            .link
            .iter()
            .map(|link| Asked::parse_link(link))
            .collect::<Result<_, _>>()
            .map_err(|e| failure(&e))?,
        gw_priority: 0,
    })
}

/// All that is asked of the first network, here or there.
pub fn merge(typed: Asked, options: Asked) -> Result<Asked, Failure> {
    for (both, what) in [
        (!typed.aliases.is_empty() && !options.aliases.is_empty(), "--network-alias and per-network alias"),
        (typed.ip.is_some() && options.ip.is_some(), "--ip and per-network IPv4 address"),
        (typed.ip6.is_some() && options.ip6.is_some(), "--ip6 and per-network IPv6 address"),
        (typed.mac.is_some() && options.mac.is_some(), "--mac-address and per-network MAC address"),
    ] {
        if both {
            return Err(Failure::usage(format!("conflicting options: cannot specify both {what}")));
        }
    }
    Ok(Asked {
        ip: typed.ip.or(options.ip),
        ip6: typed.ip6.or(options.ip6),
        mac: typed.mac.or(options.mac),
        aliases: [typed.aliases, options.aliases].concat(),
        links: options.links,
        gw_priority: typed.gw_priority,
    })
}

/// The networks, none of them twice.
pub fn find(typed: &[Typed]) -> Result<Vec<(Network, Asked)>, Failure> {
    let mut found: Vec<(Network, Asked)> = Vec::new();
    for Typed { name, asked } in typed {
        let network = place::store().find(name).map_err(|error| Failure::runtime(&error))?;
        if network.ipam.is_empty() {
            let line = format!("the network {} has no members; give it as the only --network", network.name);
            return Err(Failure { code: FAILURE, line });
        }
        if found.iter().any(|(other, _)| other.id == network.id) {
            return Err(Failure::usage(format!("network \"{name}\" is specified multiple times")));
        }
        found.push((network, asked.clone()));
    }
    Ok(found)
}

/// The one that will be the gateway, or, where none leads out, the first in the order of ranks.
pub fn main(networks: &[(Network, Asked)], ipv6: bool) -> Option<&Network> {
    let rank = |(network, asked): &&(Network, Asked)| {
        let rank = Rank::new(asked.gw_priority, network.internal, ipv6 && network.v6().is_some(), &network.name);
        (!rank.leads_out(), rank)
    };
    networks.iter().min_by_key(rank).map(|(network, _)| network)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn networks_as_they_are_typed() {
        assert_eq!(Typed::parse("web"), Ok(Typed { name: "web".to_owned(), asked: Asked::default() }));
        let text = "name=db,alias=a,alias=b,ip=172.19.0.9,ip6=fd00::9,mac-address=02:00:00:00:00:01,gw-priority=-3";
        let typed = Typed::parse(text).unwrap();
        assert_eq!(typed.name, "db");
        assert_eq!(typed.asked.aliases, ["a", "b"]);
        assert_eq!(typed.asked.ip, Some([172, 19, 0, 9].into()));
        assert_eq!(typed.asked.ip6, Some("fd00::9".parse().unwrap()));
        assert_eq!(typed.asked.mac.unwrap().to_string(), "02:00:00:00:00:01");
        assert_eq!(typed.asked.gw_priority, -3);
        for (bad, why) in [
            ("name=", "network name/id is not specified"),
            ("alias=x", "network name/id is not specified"),
            ("name=x,y", "invalid field y"),
            ("name=x,colour=red", "invalid field key colour"),
            ("name=x,ip=1.2.3", "invalid IPv4 address: 1.2.3"),
            ("name=x,ip6=::g", "invalid IPv6 address: ::g"),
            ("name=x,mac-address=1", "1"),
            ("name=x,gw-priority=high", "invalid gw-priority (high)"),
            ("name=x,driver-opt=a=b", "driver-opt is not supported"),
        ] {
            let failure = Typed::parse(bad).unwrap_err();
            assert!(failure.line.contains(why) && failure.line.contains("\"--network\""), "{failure:?}");
        }
    }

    #[test]
    fn what_is_asked_twice() {
        let typed = Typed::parse("name=x,alias=a,ip=1.2.3.4,ip6=::1,mac-address=02:00:00:00:00:01").unwrap().asked;
        for (option, line) in [
            (Asked { aliases: vec!["b".to_owned()], ..Asked::default() }, "--network-alias and per-network alias"),
            (Asked { ip: typed.ip, ..Asked::default() }, "--ip and per-network IPv4 address"),
            (Asked { ip6: typed.ip6, ..Asked::default() }, "--ip6 and per-network IPv6 address"),
            (Asked { mac: typed.mac, ..Asked::default() }, "--mac-address and per-network MAC address"),
        ] {
            let failure = merge(typed.clone(), option).unwrap_err();
            assert_eq!(failure.line, format!("conflicting options: cannot specify both {line}"));
        }
        let both = merge(typed.clone(), Asked { links: vec![("a".into(), "b".into())], ..Asked::default() }).unwrap();
        assert!(both.ip == typed.ip && both.links.len() == 1);
    }
}
