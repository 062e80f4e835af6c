//! Networks as docker's commands and API show them: the same fields in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use crate::api::client::{ClientError, Server};
use crate::api::verbs::network::{self as api, NetworkProcessInfo};
use crate::cli::format::data::Lookup;
use crate::network::definition::Network;
use crate::network::lease::Lease;
use crate::network::options::DEFAULT_BRIDGE;
use crate::network::timestamp::Timestamp;
use crate::sandbox::blame::Deaths;
use crate::sandbox::leases::Leases;

/// A network of `docker network inspect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspected {
    name: String,
    id: String,
    created: Timestamp,
    scope: &'static str,
    driver: String,
    #[serde(rename = "EnableIPv4")]
    ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: ConfigFrom,
    config_only: bool,
    containers: BTreeMap<String, Member>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    status: Status,
    /// With `--verbose`, while somebody is in the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    switch: Option<Switch>,
    #[serde(rename = "Aside", skip_serializing_if = "Vec::is_empty")]
    aside: Vec<String>,
}

/// What the network's process tells of itself and its members (`api::verbs::network`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Switch {
    process: NetworkProcessInfo,
    members: Vec<api::Member>,
    counters: BTreeMap<String, u64>,
    drops: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: &'static str,
    options: Option<BTreeMap<String, String>>,
    config: Vec<Config>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    ip_range: Option<String>,
    gateway: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    auxiliary_addresses: BTreeMap<String, IpAddr>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigFrom {
    network: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    v4: String,
    #[serde(rename = "IPv6Address")]
    v6: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    #[serde(rename = "IPAM")]
    ipam: StatusIpam,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct StatusIpam {
    subnets: BTreeMap<String, Usage>,
}

#[derive(Debug, Serialize)]
struct Usage {
    #[serde(rename = "IPsInUse")]
    in_use: u64,
    #[serde(rename = "DynamicIPsAvailable")]
    available: u64,
}

impl Inspected {
    /// A network and those who are in it.
    pub fn new(network: &Network, live: &[Lease]) -> Self {
        let taken: BTreeSet<IpAddr> = live.iter().flat_map(Lease::addresses).collect();
        let usage = network.ipam.iter().map(|config| {
            let usage = config.usage(&taken);
            (config.subnet.to_string(), Usage { in_use: usage.in_use, available: usage.available })
        });
        Self {
            name: network.name.clone(),
            id: network.id.clone(),
            created: network.created,
            scope: "local",
            driver: network.driver.clone(),
            ipv4: true,
            ipv6: network.ipv6,
            ipam: Ipam {
                driver: "default",
                // Docker has null for what it made by itself.
                options: (!network.is_predefined()).then(BTreeMap::new),
                config: network.ipam.iter().map(Config::new).collect(),
            },
            internal: network.internal,
            attachable: network.attachable,
            ingress: false,
            config_from: ConfigFrom { network: "" },
            config_only: false,
            containers: live.iter().map(|lease| (lease.sandbox_id.clone(), Member::new(network, lease))).collect(),
            options: network.options.clone(),
            labels: network.labels.clone(),
            status: Status { ipam: StatusIpam { subnets: usage.collect() } },
            switch: None,
            aside: Vec::new(),
        }
    }

    /// Adds which sandboxes are put aside, because they have killed the network's process.
    pub fn add_aside(&mut self, runtime_dir: &Path, network: &Network) {
        let known = Deaths::read(Leases::open(runtime_dir, network).dir());
        self.aside = known.aside.into_iter().map(|aside| aside.sandbox).collect();
    }

    /// Adds what the network's process tells; nothing if none runs, since nobody is in the network then.
    pub fn ask_switch(&mut self, runtime_dir: &Path, network: &Network) -> Result<(), ClientError> {
        let server = Server::at(Leases::open(runtime_dir, network).dir().join("control"));
        let none = serde_json::json!({});
        let process: NetworkProcessInfo = match server.ask("get_info", &none) {
            Err(error) if error.nobody() => return Ok(()),
            answer => answer?,
        };
        let api::NetworkStats { counters, drops } = server.ask("get_stats", &none)?;
        let api::MemberList { members } = server.ask("list_members", &none)?;
        self.switch = Some(Switch { process, members, counters, drops });
        Ok(())
    }
}

impl Config {
    fn new(config: &crate::network::ipam::IpamConfig) -> Self {
        Self {
            subnet: config.subnet.to_string(),
            ip_range: config.ip_range.map(|range| range.to_string()),
            gateway: config.gateway.to_string(),
            auxiliary_addresses: config.auxiliary.clone(),
        }
    }
}

impl Member {
    fn new(network: &Network, lease: &Lease) -> Self {
        let v4 = network.v4().map(|(_, net)| format!("{}/{}", lease.v4, net.prefix_len()));
        let v6 = lease.v6.zip(network.v6()).map(|(address, (_, net))| format!("{address}/{}", net.prefix_len()));
        Self {
            name: lease.sandbox_name.clone(),
            endpoint_id: lease.endpoint_id.clone(),
            mac_address: lease.mac.to_string(),
            v4: v4.unwrap_or_default(),
            v6: v6.unwrap_or_default(),
        }
    }
}

/// A row of `docker network ls`, which are texts all of them.
#[derive(Debug, Serialize)]
pub struct Row {
    #[serde(rename = "CreatedAt")]
    created: String,
    #[serde(rename = "Driver")]
    driver: String,
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "IPv4")]
    ipv4: &'static str,
    #[serde(rename = "IPv6")]
    ipv6: String,
    #[serde(rename = "Internal")]
    internal: String,
    #[serde(rename = "Label")]
    label: Lookup,
    #[serde(rename = "Labels")]
    labels: String,
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Scope")]
    scope: &'static str,
}

/// Headings of its fields.
pub const HEADINGS: [(&str, &str); 10] = [
    ("CreatedAt", "CREATED AT"),
    ("Driver", "DRIVER"),
    ("ID", "NETWORK ID"),
    ("IPv4", "IPV4"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Label", ""),
    ("Labels", "LABELS"),
    ("Name", "NAME"),
    ("Scope", "SCOPE"),
];

impl Row {
    /// A network as a row, with the whole id or its beginning.
    pub fn new(network: &Network, whole_id: bool) -> Self {
        let labels: Vec<String> = network.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Self {
            created: network.created.go(),
            driver: network.driver.clone(),
            id: if whole_id { network.id.clone() } else { network.short_id().to_owned() },
            ipv4: "true",
            ipv6: network.ipv6.to_string(),
            internal: network.internal.to_string(),
            label: Lookup(network.labels.clone()),
            labels: labels.join(","),
            name: network.name.clone(),
            scope: "local",
        }
    }
}

/// Those who are in a network now. Without a runtime directory there is nobody.
pub fn live(runtime_dir: Option<&Path>, network: &Network) -> Vec<Lease> {
    // `host` and `none` have no leases, and no directory is looked for.
    let has_members = !network.is_predefined() || network.options.contains_key(DEFAULT_BRIDGE);
    runtime_dir.filter(|_| has_members).map(|dir| Leases::open(dir, network).live()).unwrap_or_default()
}
