//! What a network is: the definition that is kept in a file, and those that need none.
//!
//! A definition is made once ([`super::creation`]) and never changes. Three networks are there without being made, as in
//! Docker: `bridge` (172.17.0.0/16, shared, without names), `host` and `none`, which are modes more than networks. Their
//! ids follow from the user's number, so they are the same after a reboot.
//!
//! What is read from a file is checked as strictly as what is typed: fields that are not known are refused, since a
//! mistyped `internal` must not open a network that was to be shut.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::ipam::IpamConfig;
use super::options::{self, OptionError};
use super::timestamp::Timestamp;

/// The driver of every network that can be made.
pub const BRIDGE: &str = "bridge";
/// Longest name, in bytes: a DNS label, since a sandbox is also found as NAME.NETWORK.
pub const MAX_NAME: usize = 63;
/// Digits of an id.
pub const ID_DIGITS: usize = 64;
/// Digits of an id where it is shown or names something.
pub const SHORT_ID: usize = 12;
/// The subnet of the network `bridge`.
const BRIDGE_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 17, 0, 0), 16);
/// Names that are a mode of `run --network`, and so can be no network's. `default` is Docker's other word for `bridge`.
const MODES: [&str; 5] = [BRIDGE, "host", "none", "default", "private"];

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// `bridge`; `host` and `null` are the drivers of the modes.
    #[serde(default = "bridge_driver")]
    pub driver: String,
    /// No way out, no published ports.
    #[serde(default)]
    pub internal: bool,
    /// Kept for `inspect`; it says something about swarm only.
    #[serde(default)]
    pub attachable: bool,
    /// IPv6 as well.
    #[serde(default)]
    pub ipv6: bool,
    /// Its subnets: one of IPv4, and one of IPv6 with `ipv6`.
    pub ipam: Vec<IpamConfig>,
    /// Options of the driver (`-o`), as they were given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn bridge_driver() -> String {
    BRIDGE.to_owned()
}

/// What is wrong with a definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// The name.
    #[error(
        "\"{}\" includes invalid characters for a network name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed, \
         {MAX_NAME} at most", .0.escape_default()
    )]
    Name(String),
    /// No name at all.
    #[error("invalid name: name is empty")]
    NoName,
    /// A name that means a mode.
    #[error("operation is not permitted on predefined {0} network ")]
    Predefined(String),
    /// Not 64 hex digits.
    #[error("its id is not {ID_DIGITS} hex digits")]
    Id,
    /// Another driver.
    #[error("its driver is \"{}\"; there is \"bridge\" alone", .0.escape_default())]
    Driver(String),
    /// Docker collects what is wrong with subnets.
    #[error("invalid network config:\n{}", .0.join("\n"))]
    Ipam(Vec<String>),
    /// More than one of IPv4.
    #[error("bridge driver doesn't support multiple subnets")]
    ManySubnets,
    /// None of IPv4.
    #[error("it has no IPv4 subnet")]
    NoSubnet,
    /// One of IPv6 without the switch, or the other way round.
    #[error("it {0} an IPv6 subnet, and ipv6 is {1}")]
    Families(&'static str, bool),
    /// An option.
    #[error(transparent)]
    Option(#[from] OptionError),
}

impl Network {
    /// The shared network that is there by itself.
    pub fn bridge(user: u32) -> Self {
        let options = [
            (options::DEFAULT_BRIDGE, "true"),
            (options::ICC, "true"),
            (options::MASQUERADE, "true"),
            (options::HOST_BINDING, "0.0.0.0"),
        ];
        Self {
            ipam: IpamConfig::with_gateway(IpNet::V4(BRIDGE_SUBNET), None).into_iter().collect(),
            options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ..Self::mode(BRIDGE, BRIDGE, user)
        }
    }

    /// Those that are there by themselves, in Docker's order by name.
    pub fn predefined(user: u32) -> [Self; 3] {
        [Self::bridge(user), Self::mode("host", "host", user), Self::mode("none", "null", user)]
    }

    fn mode(name: &str, driver: &str, user: u32) -> Self {
        Self {
            id: stable_id(name, user),
            name: name.to_owned(),
            created: Timestamp::default(),
            driver: driver.to_owned(),
            internal: false,
            attachable: false,
            ipv6: false,
            ipam: Vec::new(),
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    /// True for `bridge`, `host` and `none`.
    pub fn is_predefined(&self) -> bool {
        MODES.contains(&self.name.as_str())
    }

    /// True for the network `bridge`, which has no names, no aliases and no addresses of one's choice.
    pub fn is_default(&self) -> bool {
        self.name == BRIDGE
    }

    /// The first digits of its id.
    pub fn short_id(&self) -> &str {
        self.id.get(..SHORT_ID).unwrap_or(&self.id)
    }

    /// Its subnet of IPv4.
    pub fn v4(&self) -> Option<(&IpamConfig, Ipv4Net)> {
        self.ipam.iter().find_map(|config| match config.subnet {
            IpNet::V4(net) => Some((config, net)),
            IpNet::V6(_) => None,
        })
    }

    /// Its subnet of IPv6.
    pub fn v6(&self) -> Option<(&IpamConfig, Ipv6Net)> {
        self.ipam.iter().find_map(|config| match config.subnet {
            IpNet::V6(net) => Some((config, net)),
            IpNet::V4(_) => None,
        })
    }

    /// Members reach each other (`com.docker.network.bridge.enable_icc`).
    pub fn icc(&self) -> bool {
        options::switch(&self.options, options::ICC)
    }

    /// What leaves has the host's address (`com.docker.network.bridge.enable_ip_masquerade`).
    pub fn masquerade(&self) -> bool {
        options::switch(&self.options, options::MASQUERADE)
    }

    /// The host address of published ports that name none (`com.docker.network.bridge.host_binding_ipv4`), if it is not
    /// every one.
    pub fn host_binding_ipv4(&self) -> Option<Ipv4Addr> {
        let address: Ipv4Addr = self.options.get(options::HOST_BINDING)?.parse().ok()?;
        (!address.is_unspecified()).then_some(address)
    }

    /// The name that Docker would give its bridge (`com.docker.network.bridge.name`). No interface is made here.
    pub fn bridge_name(&self) -> String {
        self.options.get(options::BRIDGE_NAME).cloned().unwrap_or_else(|| format!("br-{}", self.short_id()))
    }

    /// MTU of its members' interfaces, where it says one (`com.docker.network.driver.mtu`).
    pub fn mtu(&self) -> Option<u16> {
        self.options.get(options::MTU)?.parse().ok()
    }

    /// Whether it can be a network that somebody made.
    pub fn check(&self) -> Result<(), DefinitionError> {
        check_name(&self.name)?;
        if self.id.len() != ID_DIGITS || !self.id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DefinitionError::Id);
        }
        if self.driver != BRIDGE {
            return Err(DefinitionError::Driver(self.driver.clone()));
        }
        let wrong: Vec<String> = self.ipam.iter().flat_map(super::creation::check_subnet).collect();
        if !wrong.is_empty() {
            return Err(DefinitionError::Ipam(wrong));
        }
        let of_v4 = self.ipam.iter().filter(|config| config.subnet.addr().is_ipv4()).count();
        match (of_v4, self.ipam.len() - of_v4, self.ipv6) {
            (0, ..) => Err(DefinitionError::NoSubnet),
            (2.., ..) | (_, 2.., _) => Err(DefinitionError::ManySubnets),
            (1, 0, true) => Err(DefinitionError::Families("lacks", true)),
            (1, 1, false) => Err(DefinitionError::Families("has", false)),
            (1, ..) => Ok(options::check(&self.options, self.ipv6)?),
        }
    }
}

/// Whether a network may be called that.
pub fn check_name(name: &str) -> Result<(), DefinitionError> {
    if name.trim().is_empty() {
        return Err(DefinitionError::NoName);
    }
    if MODES.contains(&name) {
        return Err(DefinitionError::Predefined(name.to_owned()));
    }
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if !plain || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || name.len() > MAX_NAME {
        return Err(DefinitionError::Name(name.to_owned()));
    }
    Ok(())
}

/// An id as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An id that is always the same for one name and one user. It is to differ from others, not to be secret: FNV-1a over
/// both, stretched by the finaliser of SplitMix64.
fn stable_id(name: &str, user: u32) -> String {
    let seed = name
        .bytes()
        .chain(user.to_be_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let word = |n: u64| {
        let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_be_bytes()
    };
    hex(&[word(1), word(2), word(3), word(4)].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        serde_json::from_str(&format!(
            r#"{{ "id": "{}", "name": "foo", "created": "2026-01-31T12:00:00Z",
                "ipam": [{{ "subnet": "10.0.0.0/24", "gateway": "10.0.0.1" }}] }}"#,
            "0123456789abcdef".repeat(4)
        ))
        .unwrap()
    }

    #[test]
    fn three_are_there_by_themselves() {
        let [bridge, host, none] = Network::predefined(1000);
        assert_eq!(bridge, Network::bridge(1000));
        assert_eq!(bridge.v4().unwrap().1.to_string(), "172.17.0.0/16");
        assert_eq!(bridge.v4().unwrap().0.gateway.to_string(), "172.17.0.1");
        assert!(bridge.icc() && bridge.masquerade() && bridge.is_default() && bridge.host_binding_ipv4().is_none());
        assert_eq!((host.driver.as_str(), none.driver.as_str()), ("host", "null"));
        let ids = [&bridge.id, &host.id, &none.id, &Network::bridge(1001).id];
        assert!(ids.iter().all(|id| id.len() == ID_DIGITS));
        assert!(ids.iter().enumerate().all(|(i, id)| !ids[..i].contains(id)), "{ids:?}");
        // It is part of paths that others know: it must not change between versions.
        assert_eq!(Network::bridge(0).short_id(), "a5aa60535202");
    }

    #[test]
    fn a_definition_reads_back_and_unknown_fields_are_refused() {
        let good = network();
        good.check().unwrap();
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<Network>(&text).unwrap(), good);
        for (from, to) in [("\"internal\"", "\"internel\""), ("\"gateway\"", "\"router\""), ("\"name\"", "\"nmae\"")] {
            let error = serde_json::from_str::<Network>(&text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains("unknown field") || error.contains("missing field"), "{error}");
        }
        assert!(serde_json::from_str::<Network>(&text[..text.len() / 2]).is_err());
    }

    #[test]
    fn what_is_edited_by_hand_is_checked() {
        type Edit = fn(&mut Network);
        let edits: [(Edit, &str); 9] = [
            (|n| n.id.truncate(12), "its id is not 64 hex digits"),
            (|n| n.name = "a/b".to_owned(), "invalid characters"),
            (|n| n.name = "host".to_owned(), "predefined host network "),
            (|n| n.driver = "macvlan".to_owned(), "\"macvlan\""),
            (|n| n.ipam.clear(), "no IPv4 subnet"),
            (|n| n.ipam.push(n.ipam[0].clone()), "multiple subnets"),
            (|n| n.ipv6 = true, "lacks an IPv6 subnet, and ipv6 is true"),
            (
                |n| n.ipam[0].gateway = "10.0.1.1".parse().unwrap(),
                "invalid gateway 10.0.1.1: parent subnet 10.0.0.0/24 doesn't contain this address",
            ),
            (|n| _ = n.options.insert("x".to_owned(), String::new()), "\"x\""),
        ];
        for (edit, text) in edits {
            let mut edited = network();
            edit(&mut edited);
            let error = edited.check().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn names() {
        for good in ["foo", "A.b_c-d", "0", &"x".repeat(MAX_NAME)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["-a", ".a", "a b", "a/b", "é", "a\n", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(check_name(bad), Err(DefinitionError::Name(bad.to_owned())), "{bad}");
        }
        assert_eq!(check_name(" ").unwrap_err().to_string(), "invalid name: name is empty");
        for mode in MODES {
            let text = check_name(mode).unwrap_err().to_string();
            assert_eq!(text, format!("operation is not permitted on predefined {mode} network "));
        }
    }
}
