//! Options of a network (`-o KEY=VALUE`), under Docker's names.
//!
//! | key | value |
//! |---|---|
//! | `com.docker.network.bridge.enable_icc` | members reach each other |
//! | `com.docker.network.bridge.enable_ip_masquerade` | what leaves has the host's address |
//! | `com.docker.network.bridge.host_binding_ipv4` | host address of published ports that name none |
//! | `com.docker.network.bridge.name` | kept and shown; there is no bridge to be named |
//! | `com.docker.network.driver.mtu` | MTU of the members' interfaces |
//! | `com.docker.network.bridge.gateway_mode_ipv4`, `…_ipv6` | `nat` alone |
//!
//! Anything else is refused by name: an option that does nothing would be believed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::plan::{MAX_MTU, MIN_MTU_V4, MIN_MTU_V6};

/// Members reach each other.
pub const ICC: &str = "com.docker.network.bridge.enable_icc";
/// What leaves has the host's address.
pub const MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
/// Host address of published ports that name none.
pub const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
/// Name of the bridge, if there were one.
pub const BRIDGE_NAME: &str = "com.docker.network.bridge.name";
/// MTU of the members' interfaces.
pub const MTU: &str = "com.docker.network.driver.mtu";
/// Set on the network `bridge` alone.
pub const DEFAULT_BRIDGE: &str = "com.docker.network.bridge.default_bridge";
const GATEWAY_MODES: [&str; 2] =
    ["com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"];
/// Longest name of an interface (IFNAMSIZ less the zero, include/uapi/linux/if.h).
const MAX_INTERFACE: usize = 15;

/// Options that Docker has and this is without, and what to do instead.
const REFUSED: [(&str, &str); 6] = [
    ("com.docker.network.enable_ipv4", "a network always has IPv4"),
    ("com.docker.network.enable_ipv6", "use --ipv6"),
    ("com.docker.network.bridge.inhibit_ipv4", "the gateway always has its address; there is no bridge of the kernel"),
    ("com.docker.network.container_iface_prefix", "interfaces are eth0, eth1 and so on"),
    ("com.docker.network.bridge.trusted_host_interfaces", "nothing is routed to members from outside"),
    ("parent", "it belongs to macvlan and ipvlan, which need root"),
];

/// Why an option is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Docker's words for a value that cannot be read.
    #[error("failed to parse {key} value: {} ({why})", .value.escape_default())]
    Value {
        /// Which.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why.
        why: String,
    },
    /// Docker's, and not here.
    #[error("the option \"{key}\" is not supported: {why}")]
    Refused {
        /// Which.
        key: String,
        /// Why.
        why: &'static str,
    },
    /// A mode of the gateway.
    #[error("the option \"{key}\" can be \"nat\" only, not \"{}\": members have no addresses outside", .value.escape_default())]
    GatewayMode {
        /// Which.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// Nobody's.
    #[error("the option \"{}\" is not known; there are {ICC}, {MASQUERADE}, {HOST_BINDING}, {BRIDGE_NAME} and {MTU}", .0.escape_default())]
    Unknown(String),
}

/// Whether these can be a network's.
pub fn check(options: &BTreeMap<String, String>, ipv6: bool) -> Result<(), OptionError> {
    options.iter().try_for_each(|(key, value)| check_one(key, value, ipv6))
}

fn check_one(key: &str, value: &str, ipv6: bool) -> Result<(), OptionError> {
    let refuse = |key: &'static str, why: String| Err(OptionError::Value { key, value: value.to_owned(), why });
    let quoted = value.escape_default();
    match key {
        ICC | MASQUERADE if parse_bool(value).is_none() => {
            let key = if key == ICC { ICC } else { MASQUERADE };
            refuse(key, format!("strconv.ParseBool: parsing \"{quoted}\": invalid syntax"))
        }
        HOST_BINDING if value.parse::<Ipv4Addr>().is_err() => refuse(HOST_BINDING, "nil ip".to_owned()),
        BRIDGE_NAME if !is_interface(value) => {
            refuse(BRIDGE_NAME, format!("not the name of an interface: 1 to {MAX_INTERFACE} letters, digits, '_.-'"))
        }
        MTU => {
            let min = if ipv6 { MIN_MTU_V6 } else { MIN_MTU_V4 };
            match value.parse::<i64>() {
                Err(_) => refuse(MTU, format!("strconv.Atoi: parsing \"{quoted}\": invalid syntax")),
                Ok(mtu) if !(i64::from(min)..=i64::from(MAX_MTU)).contains(&mtu) => {
                    refuse(MTU, format!("give {min} to {MAX_MTU}{}", if ipv6 { " with IPv6" } else { "" }))
                }
                Ok(_) => Ok(()),
            }
        }
        ICC | MASQUERADE | HOST_BINDING | BRIDGE_NAME => Ok(()),
        _ => match (GATEWAY_MODES.iter().find(|mode| **mode == key), REFUSED.iter().find(|(name, _)| *name == key)) {
            (Some(_), _) if value == "nat" => Ok(()),
            (Some(&key), _) => Err(OptionError::GatewayMode { key, value: value.to_owned() }),
            (_, Some(&(key, why))) => Err(OptionError::Refused { key: key.to_owned(), why }),
            (None, None) => Err(OptionError::Unknown(key.to_owned())),
        },
    }
}

/// A switch that is on unless it says otherwise.
pub fn switch(options: &BTreeMap<String, String>, key: &str) -> bool {
    options.get(key).and_then(|value| parse_bool(value)).unwrap_or(true)
}

/// As Go reads it.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn is_interface(name: &str) -> bool {
    (1..=MAX_INTERFACE).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: &str, value: &str) -> String {
        check(&[(key.to_owned(), value.to_owned())].into(), false).unwrap_err().to_string()
    }

    #[test]
    fn what_is_kept() {
        let options =
            [(ICC, "0"), (MASQUERADE, "TRUE"), (HOST_BINDING, "127.0.0.1"), (BRIDGE_NAME, "br0"), (MTU, "1500")];
        let mut options: BTreeMap<String, String> = options.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        options.insert(GATEWAY_MODES[0].to_owned(), "nat".to_owned());
        assert_eq!(check(&options, true), Ok(()));
        assert!(!switch(&options, ICC) && switch(&options, MASQUERADE) && switch(&BTreeMap::new(), ICC));
    }

    #[test]
    fn what_is_refused_and_why() {
        assert_eq!(
            text(ICC, "maybe"),
            "failed to parse com.docker.network.bridge.enable_icc value: maybe \
             (strconv.ParseBool: parsing \"maybe\": invalid syntax)"
        );
        assert_eq!(
            text(HOST_BINDING, "::1"),
            "failed to parse com.docker.network.bridge.host_binding_ipv4 value: ::1 (nil ip)"
        );
        assert!(text(MTU, "big").contains("strconv.Atoi: parsing \"big\": invalid syntax"));
        assert!(text(MTU, "67").contains("give 68 to 65521"));
        assert!(check(&[(MTU.to_owned(), "1279".to_owned())].into(), true).is_err());
        assert!(text(BRIDGE_NAME, "a/b").contains("name of an interface"));
        assert!(text(BRIDGE_NAME, &"x".repeat(16)).contains("1 to 15"));
        assert!(text(GATEWAY_MODES[1], "routed").contains("\"nat\" only, not \"routed\""));
        assert!(text("parent", "eth0").contains("macvlan"));
        assert!(text("com.docker.network.enable_ipv6", "true").ends_with("use --ipv6"));
        assert!(text("x\n", "").contains("\"x\\n\" is not known; there are com.docker.network.bridge.enable_icc"));
    }
}
