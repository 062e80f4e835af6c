//! `set_dns`, `get_dns`, `add_dns_record`, `remove_dns_record`, `list_dns_records`, `add_host`, `remove_host` and
//! `list_hosts`.
//!
//! ```text
//! {"execute":"set_dns","arguments":{"servers":["192.0.2.53"],"zones":[{"domain":"corp.example","servers":["10.9.9.9"]}]}}
//! {"return":{"servers":["192.0.2.53"],"in_use":["192.0.2.53"],"search":[],"options":[],"zones":[…]}}
//! {"execute":"add_dns_record","arguments":{"name":"*.dev.example","type":"A","value":"10.0.2.100"}}
//! {"return":{}}
//! {"execute":"remove_dns_record","arguments":{"name":"*.dev.example"}}
//! {"return":{"removed":1}}
//! {"execute":"add_host","arguments":{"name":"db","address":"192.0.2.7"}}
//! {"return":{}}
//! ```
//!
//! All of them act on the desired state and nothing else ([`Request::apply`]); what then must be told to whom is
//! [`Request::change`].

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::api::error::{ApiError, Code};
use crate::network::config::DnsZone;
use crate::network::desired::{self, Desired, DesiredError, DnsSettings, Host, HostSource, Limits};
use crate::network::zone::{DEFAULT_TTL, Record};
use crate::wire::dns_data::type_name;

/// Port of DNS, which is not spelt out (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// Verbs of this group.
pub const VERBS: [&str; 8] = [
    "set_dns",
    "get_dns",
    "add_dns_record",
    "remove_dns_record",
    "list_dns_records",
    "add_host",
    "remove_host",
    "list_hosts",
];

/// Arguments of `set_dns`. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetDns {
    /// Name servers in order of preference, `ADDRESS` or `ADDRESS:PORT` with IPv6 in brackets, at most 3. `null` follows the
    /// host's resolv.conf again; an empty list asks nobody.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub servers: Option<Option<Vec<String>>>,
    /// Search domains, at most 32 of 1024 bytes together. They are put into the sandbox's resolv.conf.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub search: Option<Vec<String>>,
    /// Resolver options such as `ndots:2`, at most 32. They are put into the sandbox's resolv.conf.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub options: Option<Vec<String>>,
    /// All domains with name servers of their own, at most 64: their names are never asked of other servers, and of two
    /// domains that fit the longer one counts.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub zones: Option<Vec<DnsZoneText>>,
}

/// A field that is there has a value of its own type: `null` is not the same as to leave it out.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A domain with name servers of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsZoneText {
    /// The domain: it and every name under it.
    pub domain: String,
    /// Name servers in order of preference, 1 to 3.
    pub servers: Vec<String>,
}

/// Arguments of `get_dns`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetDns {}

/// What `set_dns` and `get_dns` return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers that were set; `null` where the host's are followed.
    pub servers: Option<Vec<String>>,
    /// Name servers that are asked: those set, or the host's as they are now.
    pub in_use: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
    /// Domains with name servers of their own.
    pub zones: Vec<DnsZoneText>,
}

/// Arguments of `add_dns_record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddDnsRecord {
    /// The record's name; `*.` in front stands for every name there that has no records. Of a PTR record also an address.
    pub name: String,
    /// A, AAAA, CNAME, TXT, SRV or PTR.
    #[serde(rename = "type")]
    pub kind: String,
    /// An address, a name, `PRIORITY WEIGHT PORT HOST`, or a text (in quotes: several, `"a=1" "b=2"`).
    pub value: String,
    /// Time to live, seconds.
    #[serde(default = "default_ttl")]
    pub ttl: u32,
}

fn default_ttl() -> u32 {
    DEFAULT_TTL
}

/// Arguments of `remove_dns_record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveDnsRecord {
    /// The records' name, as it was added.
    pub name: String,
    /// Only records of this type.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only the record of this value; the type belongs with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// What `remove_dns_record` and `remove_host` return.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// How many were removed, at least one.
    pub removed: usize,
}

/// Arguments of `list_dns_records`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListDnsRecords {}

/// What `list_dns_records` returns: records that were added, not what follows from hosts and addresses by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecords {
    /// In the order in which they were added.
    pub records: Vec<DnsRecord>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// Its name, in lower case.
    pub name: String,
    /// Its type, in capitals.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its value, as `add_dns_record` takes it.
    pub value: String,
    /// Time to live, seconds.
    pub ttl: u32,
}

/// Arguments of `add_host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddHost {
    /// The name.
    pub name: String,
    /// Its address. A name may have several, added one by one.
    pub address: String,
}

/// Arguments of `remove_host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveHost {
    /// The name.
    pub name: String,
    /// Only this address of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Arguments of `list_hosts`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListHosts {}

/// What `list_hosts` returns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// In the order in which they were added.
    pub hosts: Vec<HostEntry>,
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// Its name, in lower case.
    pub name: String,
    /// Its address.
    pub address: String,
    /// `run`: of the command line that began the sandbox; `socket`: of `add_host`.
    pub source: HostSource,
}

/// The refusal of a change.
pub fn refused(error: &DesiredError) -> ApiError {
    let code = match error.fault() {
        desired::Fault::BadArgument => Code::BadArgument,
        desired::Fault::NotFound => Code::NotFound,
        desired::Fault::Exists => Code::Exists,
        desired::Fault::Limit => Code::Limit,
    };
    ApiError::new(code, error.to_string())
}

/// A server as it is shown: the port only where it is another than DNS's.
fn server_text(server: &SocketAddr) -> String {
    match server {
        SocketAddr::V6(server) if server.port() == DNS_PORT && server.scope_id() != 0 => {
            format!("{}%{}", server.ip(), server.scope_id())
        }
        server if server.port() == DNS_PORT => server.ip().to_string(),
        server => server.to_string(),
    }
}

fn server_texts(servers: &[SocketAddr]) -> Vec<String> {
    servers.iter().map(server_text).collect()
}

impl Dns {
    /// `settings` as they are shown; `host`: the host's servers as they are now.
    pub fn new(settings: &DnsSettings, host: &[SocketAddr]) -> Self {
        let zone =
            |zone: &DnsZone| DnsZoneText { domain: zone.domain.to_string(), servers: server_texts(&zone.servers) };
        Self {
            servers: settings.servers.as_deref().map(server_texts),
            in_use: server_texts(settings.servers.as_deref().unwrap_or(host)),
            search: settings.search.clone(),
            options: settings.options.clone(),
            zones: settings.zones.iter().map(zone).collect(),
        }
    }
}

impl From<SetDns> for desired::SetDns {
    fn from(arguments: SetDns) -> Self {
        let SetDns { servers, search, options, zones } = arguments;
        let zones = zones.map(|zones| zones.into_iter().map(|zone| (zone.domain, zone.servers)).collect());
        Self { servers, search, options, zones }
    }
}

impl From<&Record> for DnsRecord {
    fn from(record: &Record) -> Self {
        Self {
            name: record.name.to_string(),
            kind: type_name(record.data.kind()).into_owned(),
            value: record.data.to_string(),
            ttl: record.ttl,
        }
    }
}

impl From<&Host> for HostEntry {
    fn from(host: &Host) -> Self {
        Self { name: host.name.to_string(), address: host.address.to_string(), source: host.source }
    }
}

/// One verb of this group with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `set_dns`.
    SetDns(SetDns),
    /// `get_dns`.
    GetDns(GetDns),
    /// `add_dns_record`.
    AddDnsRecord(AddDnsRecord),
    /// `remove_dns_record`.
    RemoveDnsRecord(RemoveDnsRecord),
    /// `list_dns_records`.
    ListDnsRecords(ListDnsRecords),
    /// `add_host`.
    AddHost(AddHost),
    /// `remove_host`.
    RemoveHost(RemoveHost),
    /// `list_hosts`.
    ListHosts(ListHosts),
}

/// What a request that was applied changed, and so what must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// The settings: the resolver's servers, and the sandbox's resolv.conf.
    Settings,
    /// Records: the resolver's zone.
    Records,
    /// Hosts: the resolver's zone, and the sandbox's hosts file.
    Hosts,
}

impl Request {
    /// The request that `verb` is; None for a verb of another group.
    pub fn read(verb: &str, arguments: Map<String, Value>) -> Option<Result<Self, serde_json::Error>> {
        fn typed<T: for<'de> Deserialize<'de>>(
            arguments: Map<String, Value>,
            request: impl FnOnce(T) -> Request,
        ) -> Result<Request, serde_json::Error> {
            T::deserialize(Value::Object(arguments)).map(request)
        }
        Some(match verb {
            "set_dns" => typed(arguments, Self::SetDns),
            "get_dns" => typed(arguments, Self::GetDns),
            "add_dns_record" => typed(arguments, Self::AddDnsRecord),
            "remove_dns_record" => typed(arguments, Self::RemoveDnsRecord),
            "list_dns_records" => typed(arguments, Self::ListDnsRecords),
            "add_host" => typed(arguments, Self::AddHost),
            "remove_host" => typed(arguments, Self::RemoveHost),
            "list_hosts" => typed(arguments, Self::ListHosts),
            _ => return None,
        })
    }

    /// What must be told once it is applied.
    pub fn change(&self) -> Change {
        match self {
            Self::SetDns(_) => Change::Settings,
            Self::AddDnsRecord(_) | Self::RemoveDnsRecord(_) => Change::Records,
            Self::AddHost(_) | Self::RemoveHost(_) => Change::Hosts,
            Self::GetDns(_) | Self::ListDnsRecords(_) | Self::ListHosts(_) => Change::Nothing,
        }
    }

    /// Does it, all or nothing, and returns what the client is told. `host`: the host's name servers as they are now.
    pub fn apply(self, desired: &mut Desired, limits: &Limits, host: &[SocketAddr]) -> Result<Value, DesiredError> {
        // Values of this module become JSON always: their keys are strings.
        fn json(value: impl Serialize) -> Value {
            serde_json::to_value(value).unwrap_or_default()
        }
        Ok(match self {
            Self::SetDns(arguments) => json(Dns::new(desired.set_dns(&arguments.into(), limits)?, host)),
            Self::GetDns(GetDns {}) => json(Dns::new(desired.dns(), host)),
            Self::AddDnsRecord(AddDnsRecord { name, kind, value, ttl }) => {
                desired.add_dns_record(&name, &kind, &value, ttl, limits)?;
                Value::Object(Map::new())
            }
            Self::RemoveDnsRecord(RemoveDnsRecord { name, kind, value }) => {
                json(Removed { removed: desired.remove_dns_record(&name, kind.as_deref(), value.as_deref(), limits)? })
            }
            Self::ListDnsRecords(ListDnsRecords {}) => {
                json(DnsRecords { records: desired.records().iter().map(DnsRecord::from).collect() })
            }
            Self::AddHost(AddHost { name, address }) => {
                desired.add_host(&name, &address, limits)?;
                Value::Object(Map::new())
            }
            Self::RemoveHost(RemoveHost { name, address }) => {
                json(Removed { removed: desired.remove_host(&name, address.as_deref(), limits)? })
            }
            Self::ListHosts(ListHosts {}) => {
                json(Hosts { hosts: desired.hosts().iter().map(HostEntry::from).collect() })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(verb: &str, arguments: Value) -> Result<Request, String> {
        let Value::Object(arguments) = arguments else { panic!("no object") };
        Request::read(verb, arguments).expect("a verb of this group").map_err(|error| error.to_string())
    }

    /// Applies a request; the error is its text.
    fn run(desired: &mut Desired, verb: &str, arguments: Value) -> Result<Value, String> {
        let host = ["192.0.2.1:53".parse().expect("address"), "[fe80::1%2]:53".parse().expect("address")];
        read(verb, arguments)?.apply(desired, &Limits::default(), &host).map_err(|error| error.to_string())
    }

    #[test]
    fn every_verb() {
        let mut desired = Desired::default();
        let host = json!(["192.0.2.1", "fe80::1%2"]);
        let zone = json!({"domain": "corp.example", "servers": ["10.9.9.9:5353", "::9"]});
        for (verb, arguments, reply) in [
            ("get_dns", json!({}), json!({"servers": null, "in_use": host, "search": [], "options": [], "zones": []})),
            (
                "set_dns",
                json!({"servers": ["192.0.2.53", "[::1]:5353"], "zones": [zone], "search": ["a", "b"]}),
                json!({
                    "servers": ["192.0.2.53", "[::1]:5353"], "in_use": ["192.0.2.53", "[::1]:5353"],
                    "search": ["a", "b"], "options": [], "zones": [zone],
                }),
            ),
            (
                "set_dns",
                json!({"servers": null, "options": ["ndots:2"]}),
                json!({"servers": null, "in_use": host, "search": ["a", "b"], "options": ["ndots:2"], "zones": [zone]}),
            ),
            ("add_dns_record", json!({"name": "*.Dev", "type": "a", "value": "10.0.2.9"}), json!({})),
            ("add_dns_record", json!({"name": "t", "type": "TXT", "value": "x", "ttl": 5}), json!({})),
            (
                "list_dns_records",
                json!({}),
                json!({"records": [
                    {"name": "*.dev", "type": "A", "value": "10.0.2.9", "ttl": 60},
                    {"name": "t", "type": "TXT", "value": "x", "ttl": 5},
                ]}),
            ),
            ("remove_dns_record", json!({"name": "t", "type": "TXT", "value": "x"}), json!({"removed": 1})),
            ("remove_dns_record", json!({"name": "*.dev"}), json!({"removed": 1})),
            ("add_host", json!({"name": "Db", "address": "10.0.2.9"}), json!({})),
            ("add_host", json!({"name": "db", "address": "fd00:0::9"}), json!({})),
            (
                "list_hosts",
                json!({}),
                json!({"hosts": [
                    {"name": "db", "address": "10.0.2.9", "source": "socket"},
                    {"name": "db", "address": "fd00::9", "source": "socket"},
                ]}),
            ),
            ("remove_host", json!({"name": "db", "address": "10.0.2.9"}), json!({"removed": 1})),
            ("remove_host", json!({"name": "db"}), json!({"removed": 1})),
        ] {
            assert!(VERBS.contains(&verb));
            assert_eq!(run(&mut desired, verb, arguments.clone()), Ok(reply), "{verb} {arguments}");
        }
        assert_eq!(Request::read("publish", Map::new()).map(|read| read.is_ok()), None);
        for verb in VERBS {
            assert!(Request::read(verb, Map::new()).is_some(), "{verb}");
        }
    }

    #[test]
    fn arguments_that_are_refused() {
        let mut desired = Desired::default();
        let before = desired.clone();
        for (verb, arguments, said) in [
            ("set_dns", json!({"server": ["1.2.3.4"]}), "unknown field `server`"),
            ("set_dns", json!({"search": null}), "invalid type: null, expected a sequence"),
            ("set_dns", json!({"servers": "1.2.3.4"}), "invalid type: string"),
            ("set_dns", json!({"zones": [{"domain": "a", "servers": [], "x": 1}]}), "unknown field `x`"),
            ("set_dns", json!({"zones": [{"domain": "a"}]}), "missing field `servers`"),
            ("set_dns", json!({"search": ["ok"], "servers": ["x"]}), "name server 'x' is not an address"),
            ("get_dns", json!({"x": 1}), "unknown field `x`"),
            ("add_dns_record", json!({"name": "a", "type": "A"}), "missing field `value`"),
            ("add_dns_record", json!({"name": "a", "type": "A", "value": "10.0.0.1", "ttl": -1}), "invalid value"),
            ("add_dns_record", json!({"name": "a", "type": "A", "value": "10.0.0.1", "TTL": 1}), "unknown field `TTL`"),
            (
                "add_dns_record",
                json!({"name": "a", "type": "A", "value": "b"}),
                "record 'a': 'b' is not an IPv4 address",
            ),
            ("remove_dns_record", json!({"name": "a", "ttl": 60}), "unknown field `ttl`"),
            ("remove_dns_record", json!({"name": "a"}), "there is no record a"),
            ("list_dns_records", json!({"name": "a"}), "unknown field `name`"),
            ("add_host", json!({"name": "a"}), "missing field `address`"),
            ("add_host", json!({"name": "a", "address": "b"}), "'b' is not an IP address"),
            ("remove_host", json!({"name": "a", "address": "10.0.0.1"}), "there is no host a 10.0.0.1"),
            ("list_hosts", json!({"x": 1}), "unknown field `x`"),
        ] {
            let error = run(&mut desired, verb, arguments.clone()).expect_err(said);
            assert!(error.contains(said), "{verb} {arguments}: {error}");
            assert_eq!(desired, before, "{verb} {arguments}");
        }
    }

    #[test]
    fn arguments_are_written_as_they_are_read() {
        for (request, text) in [
            (SetDns::default(), "{}"),
            (SetDns { servers: Some(None), ..SetDns::default() }, r#"{"servers":null}"#),
            (SetDns { servers: Some(Some(vec![])), ..SetDns::default() }, r#"{"servers":[]}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).expect("JSON"), text);
            assert_eq!(serde_json::from_str::<SetDns>(text).expect("arguments"), request);
        }
    }

    #[test]
    fn what_must_be_told() {
        for (verb, change) in VERBS.iter().zip([
            Change::Settings,
            Change::Nothing,
            Change::Records,
            Change::Records,
            Change::Nothing,
            Change::Hosts,
            Change::Hosts,
            Change::Nothing,
        ]) {
            let arguments = match *verb {
                "add_dns_record" => json!({"name": "a", "type": "A", "value": "10.0.0.1"}),
                "add_host" => json!({"name": "a", "address": "10.0.0.1"}),
                "remove_dns_record" | "remove_host" => json!({"name": "a"}),
                _ => json!({}),
            };
            assert_eq!(read(verb, arguments).map(|request| request.change()), Ok(change), "{verb}");
        }
    }
}
