//! `connect_network` and `disconnect_network`: the networks of a sandbox, changed while it runs.
//!
//! ```text
//! {"execute":"connect_network","arguments":{"network":"db","aliases":["web"]}}
//! {"return":{"network":"db","interface":"eth1","mac":"02:42:ac:13:00:02","v4":"172.19.0.2","gateway":false}}
//! {"execute":"disconnect_network","arguments":{"network":"db"}}
//! {"return":{}}
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Verbs of this group.
pub const VERBS: [&str; 2] = ["connect_network", "disconnect_network"];

/// Arguments of `connect_network`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectNetwork {
    /// Name or id of a network.
    pub network: String,
    /// The address there; the lowest that is free unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip6: Option<Ipv6Addr>,
    /// MAC address; made of the address unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// Further names there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Other sandboxes there by names that only this one knows, `NAME:ALIAS`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Of the sandbox's networks the one with the highest has the default route; 0 unless given.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gw_priority: i32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

/// What `connect_network` returns, when frames flow and names are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// Name of the network.
    pub network: String,
    /// The interface inside.
    pub interface: String,
    /// Its MAC address.
    pub mac: String,
    /// Its address.
    pub v4: Option<IpAddr>,
    /// Its IPv6 address, where the network has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<IpAddr>,
    /// It has the default route and the published ports now.
    pub gateway: bool,
}

/// Arguments of `disconnect_network`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisconnectNetwork {
    /// Name or id of a network that the sandbox is on.
    pub network: String,
}

/// What `disconnect_network` returns, when the address is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disconnected {}
