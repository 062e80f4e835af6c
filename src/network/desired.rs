//! What the supervisor of a sandbox wants its network to be, beyond what was fixed at its birth: DNS settings, records and
//! hosts. A pure value; whoever supervises (the monitor, or the control thread where nobody else is) keeps one, changes it
//! at the verbs of the control socket, and tells the network process what follows from it, again after a restart.
//!
//! Every change is validated whole before anything of it is kept: after an error the value is what it was. What follows:
//!
//! | of the value | goes to |
//! |---|---|
//! | [`Desired::zone_records`] | the resolver, as a `Zone`: records, and an A or AAAA record for each host |
//! | [`DnsSettings::servers`], the host's where it is None | the resolver |
//! | [`DnsSettings::zones`] | the resolver |
//! | [`DnsSettings::resolv_conf`] | the sandbox's resolv.conf |
//! | [`Desired::hosts`] | the sandbox's hosts file, where it has one of ours |
//!
//! **Limits** are arguments ([`Limits`]). Servers are addresses: whose scope is a number, since interfaces are not known
//! here. What DHCP and router advertisements say of search domains is fixed with the endpoint and does not follow.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

use super::config::DnsZone;
use super::resolv;
use super::zone::{self, DEFAULT_TTL, Record, Zone, ZoneError};
use crate::wire::dns_data::{Data, DataError, type_number};
use crate::wire::dns_name::{Name, NameError};

/// Port of DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// Bounds of a desired state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Name servers in one list; what the resolver asks (`host::resolver::Limits::servers`).
    pub servers: usize,
    /// Domains with servers of their own.
    pub zones: usize,
    /// Search domains.
    pub search: usize,
    /// Resolver options.
    pub options: usize,
    /// Bytes of the `search` line's domains together.
    pub search_bytes: usize,
    /// Hosts.
    pub hosts: usize,
    /// Records, hosts' included.
    pub zone: zone::Limits,
}

impl Default for Limits {
    /// Three servers, as resolv.conf(5) has it. 64 domains: a company's VPN has a dozen. musl's resolver takes 256 bytes
    /// of search domains (src/network/lookup_name.c), glibc before 2.26 six of them; newer ones have no bound, so 32 and
    /// 1024 bytes. 32 options (there are some 15). 1024 hosts.
    fn default() -> Self {
        Self {
            servers: 3,
            zones: 64,
            search: 32,
            options: 32,
            search_bytes: 1024,
            hosts: 1024,
            zone: zone::Limits::default(),
        }
    }
}

/// Whom the resolver asks, and what the guest's own resolver is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsSettings {
    /// Servers in order of preference; None follows the host's resolv.conf.
    pub servers: Option<Vec<SocketAddr>>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options, such as `ndots:2`.
    pub options: Vec<String>,
    /// Domains with servers of their own.
    pub zones: Vec<DnsZone>,
}

impl DnsSettings {
    /// The text of a guest's resolv.conf that asks at `resolvers`.
    pub fn resolv_conf(&self, resolvers: &[IpAddr]) -> String {
        resolv::render(resolvers, &self.search, &self.options)
    }
}

/// A change of [`DnsSettings`]: what is None stays. Texts, as people give them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetDns {
    /// Servers; `Some(None)` follows the host again.
    pub servers: Option<Option<Vec<String>>>,
    /// Search domains.
    pub search: Option<Vec<String>>,
    /// Resolver options.
    pub options: Option<Vec<String>>,
    /// All domains with servers of their own: name, servers.
    pub zones: Option<Vec<(String, Vec<String>)>>,
}

/// Where a host comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostSource {
    /// The command line that began the sandbox.
    Run,
    /// The control socket.
    Socket,
}

/// A name for an address, in the hosts file and in DNS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The name.
    pub name: Name,
    /// Its address.
    pub address: IpAddr,
    /// Who wants it.
    pub source: HostSource,
}

impl Host {
    fn record(&self) -> Record {
        Record { name: self.name.clone(), ttl: DEFAULT_TTL, data: Data::from(self.address) }
    }
}

/// What the supervisor wants. See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    #[serde(default)]
    dns: DnsSettings,
    #[serde(default)]
    records: Vec<Record>,
    #[serde(default)]
    hosts: Vec<Host>,
}

/// What kind of fault a [`DesiredError`] is, for codes that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A value that cannot be meant.
    BadArgument,
    /// Nothing there to remove.
    NotFound,
    /// There already.
    Exists,
    /// Over a bound.
    Limit,
}

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DesiredError {
    /// Not the address of a server.
    #[error("name server '{0}' is not an address; give one such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353")]
    Server(String),
    /// An address at which nobody can be asked.
    #[error("name server '{0}' cannot be asked; give the address of a server")]
    Unaskable(String),
    /// The same server twice in one list.
    #[error("name server '{0}' is given twice; leave one out")]
    ServerTwice(SocketAddr),
    /// A domain's name is none.
    #[error("zone: {0}")]
    ZoneName(NameError),
    /// A domain with a `*`.
    #[error("zone '{0}' has a '*'; give the domain alone, it holds for every name under it")]
    ZoneWildcard(Name),
    /// A domain without servers.
    #[error("zone '{0}' has no servers; give at least one, or leave the zone out")]
    ZoneWithoutServers(Name),
    /// A domain twice.
    #[error("zone '{0}' is given twice; put its servers into one list")]
    ZoneTwice(Name),
    /// A word of resolv.conf that is none.
    #[error("{what} '{word}' is not one word of ASCII letters; give it anew")]
    Word {
        /// Search domain or resolver option.
        what: &'static str,
        /// The text.
        word: String,
    },
    /// A search domain that is no domain.
    #[error("search domain: {0}")]
    Search(NameError),
    /// More of something than is kept.
    #[error("{given} {what} are more than the {limit} that are kept; give fewer")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there would be.
        given: usize,
        /// The bound.
        limit: usize,
    },
    /// A record, or the records together.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// A type or value to remove by.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A value to remove by, without its type.
    #[error("the value '{0}' needs its type; give both, or the name alone")]
    ValueWithoutType(String),
    /// Nothing to remove.
    #[error("there is no record {0}; see list_dns_records")]
    NoRecord(String),
    /// No address.
    #[error("'{0}' is not an IP address; give one such as 192.0.2.7 or 2001:db8::7")]
    Address(String),
    /// A host that stands for many.
    #[error("host '{0}' has a '*', which a hosts file cannot say; use a DNS record")]
    HostWildcard(Name),
    /// The host is there.
    #[error("host '{0}' has the address {1} already")]
    HostExists(Name, IpAddr),
    /// No host to remove.
    #[error("there is no host {0}; see list_hosts")]
    NoHost(String),
}

impl DesiredError {
    /// Its kind.
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoRecord(_) | Self::NoHost(_) => Fault::NotFound,
            Self::HostExists(..) | Self::Zone(ZoneError::Exists(_)) => Fault::Exists,
            Self::TooMany { .. }
            | Self::Zone(ZoneError::Records { .. } | ZoneError::NameBytes { .. } | ZoneError::Text { .. }) => {
                Fault::Limit
            }
            _ => Fault::BadArgument,
        }
    }
}

/// Reads the address of a name server, with or without its port.
pub fn parse_server(text: &str) -> Result<SocketAddr, DesiredError> {
    let plain = || text.parse().map(|address: IpAddr| SocketAddr::new(address, DNS_PORT)).ok();
    // The standard library reads a scope only between brackets and with a port.
    let scoped = || {
        let (address, scope) = text.split_once('%')?;
        Some(SocketAddr::V6(SocketAddrV6::new(address.parse().ok()?, DNS_PORT, 0, scope.parse().ok()?)))
    };
    let server: SocketAddr =
        plain().or_else(|| text.parse().ok()).or_else(scoped).ok_or_else(|| DesiredError::Server(text.to_owned()))?;
    if server.ip().is_unspecified() || server.ip().is_multicast() || server.port() == 0 {
        return Err(DesiredError::Unaskable(text.to_owned()));
    }
    Ok(server)
}

fn bounded(what: &'static str, given: usize, limit: usize) -> Result<(), DesiredError> {
    if given > limit { Err(DesiredError::TooMany { what, given, limit }) } else { Ok(()) }
}

fn parse_servers(texts: &[String], limits: &Limits) -> Result<Vec<SocketAddr>, DesiredError> {
    bounded("name servers", texts.len(), limits.servers)?;
    let mut servers = Vec::with_capacity(texts.len());
    for text in texts {
        let server = parse_server(text)?;
        if servers.contains(&server) {
            return Err(DesiredError::ServerTwice(server));
        }
        servers.push(server);
    }
    Ok(servers)
}

fn parse_zones(zones: &[(String, Vec<String>)], limits: &Limits) -> Result<Vec<DnsZone>, DesiredError> {
    bounded("zones", zones.len(), limits.zones)?;
    let mut made: Vec<DnsZone> = Vec::with_capacity(zones.len());
    for (domain, servers) in zones {
        let domain = Name::parse(domain).map_err(DesiredError::ZoneName)?;
        if domain.is_wildcard() {
            return Err(DesiredError::ZoneWildcard(domain));
        }
        if made.iter().any(|other| other.domain == domain) {
            return Err(DesiredError::ZoneTwice(domain));
        }
        let servers = parse_servers(servers, limits)?;
        if servers.is_empty() {
            return Err(DesiredError::ZoneWithoutServers(domain));
        }
        made.push(DnsZone { domain, servers });
    }
    Ok(made)
}

fn check_search(search: &[String], limits: &Limits) -> Result<(), DesiredError> {
    bounded("search domains", search.len(), limits.search)?;
    bounded("bytes of search domains", search.iter().map(String::len).sum(), limits.search_bytes)?;
    for domain in search {
        Name::parse(domain).map_err(DesiredError::Search)?;
    }
    Ok(())
}

fn check_options(options: &[String], limits: &Limits) -> Result<(), DesiredError> {
    bounded("resolver options", options.len(), limits.options)?;
    let fits = |word: &&String| word.is_empty() || word.len() > 64 || !word.bytes().all(|b| b.is_ascii_graphic());
    match options.iter().find(fits) {
        Some(bad) => Err(DesiredError::Word { what: "resolver option", word: bad.clone() }),
        None => Ok(()),
    }
}

impl Desired {
    /// What a sandbox is born with. `dns` is taken as it is: it may hold what the host's own files say.
    pub fn new(dns: DnsSettings, hosts: &[(String, IpAddr)], limits: &Limits) -> Result<Self, DesiredError> {
        let mut desired = Self { dns, ..Self::default() };
        for (name, address) in hosts {
            desired.add_host_of(name, *address, HostSource::Run, limits)?;
        }
        Ok(desired)
    }

    /// The DNS settings.
    pub fn dns(&self) -> &DnsSettings {
        &self.dns
    }

    /// Records that were added, in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Hosts, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// All records that the resolver is told: those added, and the hosts'. One that says what another says already is
    /// left out.
    pub fn zone_records(&self) -> Vec<Record> {
        let mut records = self.records.clone();
        for host in &self.hosts {
            let record = host.record();
            let known = |other: &Record| other.name == record.name && other.data == record.data;
            if !self.records.iter().any(known) {
                records.push(record);
            }
        }
        records
    }

    /// [`Self::zone_records`], ready to be asked.
    pub fn zone(&self, limits: &Limits) -> Result<Zone, ZoneError> {
        Zone::new(self.zone_records(), &limits.zone)
    }

    /// Changes the DNS settings.
    pub fn set_dns(&mut self, change: &SetDns, limits: &Limits) -> Result<&DnsSettings, DesiredError> {
        let mut dns = self.dns.clone();
        match &change.servers {
            None => {}
            Some(None) => dns.servers = None,
            Some(Some(servers)) => dns.servers = Some(parse_servers(servers, limits)?),
        }
        if let Some(search) = &change.search {
            check_search(search, limits)?;
            dns.search.clone_from(search);
        }
        if let Some(options) = &change.options {
            check_options(options, limits)?;
            dns.options.clone_from(options);
        }
        if let Some(zones) = &change.zones {
            dns.zones = parse_zones(zones, limits)?;
        }
        self.dns = dns;
        Ok(&self.dns)
    }

    /// Adds a record.
    pub fn add_dns_record(
        &mut self,
        name: &str,
        kind: &str,
        value: &str,
        ttl: u32,
        limits: &Limits,
    ) -> Result<(), DesiredError> {
        self.records.push(Record::parse(name, kind, value, ttl)?);
        self.check_or(limits, |desired| {
            desired.records.pop();
        })
    }

    /// Removes the records of `name`, of that type and value where they are given. How many there were; none is an error.
    pub fn remove_dns_record(
        &mut self,
        name: &str,
        kind: Option<&str>,
        value: Option<&str>,
        limits: &Limits,
    ) -> Result<usize, DesiredError> {
        let fits: Box<dyn Fn(&Record) -> bool> = match (kind, value) {
            (None, None) => Box::new(|_| true),
            (None, Some(value)) => return Err(DesiredError::ValueWithoutType(value.to_owned())),
            (Some(kind), None) => {
                let number = type_number(kind)?;
                Box::new(move |record| record.data.kind() == number)
            }
            (Some(kind), Some(value)) => {
                let data = Data::parse(kind, value)?;
                Box::new(move |record| record.data == data)
            }
        };
        // A PTR record may be named by its address.
        let name = match name.parse::<IpAddr>() {
            Ok(address) => Name::reverse(address),
            Err(_) => Name::parse(name).map_err(ZoneError::Name)?,
        };
        let mut kept = self.records.clone();
        kept.retain(|record| record.name != name || !fits(record));
        let removed = self.records.len() - kept.len();
        if removed == 0 {
            let mut text = name.to_string();
            for word in [kind.map(str::to_ascii_uppercase), value.map(|value| format!("'{value}'"))] {
                text.extend(word.map(|word| format!(" {word}")));
            }
            return Err(DesiredError::NoRecord(text));
        }
        let before = std::mem::replace(&mut self.records, kept);
        // Where a name goes, a wildcard may come to light, and it may be an alias that leads back.
        self.check_or(limits, |desired| desired.records = before)?;
        Ok(removed)
    }

    /// Adds a host at the control socket's word.
    pub fn add_host(&mut self, name: &str, address: &str, limits: &Limits) -> Result<(), DesiredError> {
        self.add_host_of(name, parse_address(address)?, HostSource::Socket, limits)
    }

    fn add_host_of(
        &mut self,
        name: &str,
        address: IpAddr,
        source: HostSource,
        limits: &Limits,
    ) -> Result<(), DesiredError> {
        let name = Name::parse(name).map_err(ZoneError::Name)?;
        if name.is_wildcard() {
            return Err(DesiredError::HostWildcard(name));
        }
        if self.hosts.iter().any(|host| host.name == name && host.address == address) {
            return Err(DesiredError::HostExists(name, address));
        }
        bounded("hosts", self.hosts.len() + 1, limits.hosts)?;
        self.hosts.push(Host { name, address, source });
        self.check_or(limits, |desired| {
            desired.hosts.pop();
        })
    }

    /// Removes a host, or only that address of it. How many entries there were; none is an error.
    pub fn remove_host(&mut self, name: &str, address: Option<&str>, limits: &Limits) -> Result<usize, DesiredError> {
        let name = Name::parse(name).map_err(ZoneError::Name)?;
        let address = address.map(parse_address).transpose()?;
        let mut kept = self.hosts.clone();
        kept.retain(|host| host.name != name || address.is_some_and(|address| address != host.address));
        let removed = self.hosts.len() - kept.len();
        if removed == 0 {
            return Err(DesiredError::NoHost(match address {
                Some(address) => format!("{name} {address}"),
                None => name.to_string(),
            }));
        }
        let before = std::mem::replace(&mut self.hosts, kept);
        self.check_or(limits, |desired| desired.hosts = before)?;
        Ok(removed)
    }

    /// Checks what the resolver would be told; where it would refuse, `undo`.
    fn check_or(&mut self, limits: &Limits, undo: impl FnOnce(&mut Self)) -> Result<(), DesiredError> {
        self.zone(limits).map(drop).map_err(|error| {
            undo(self);
            DesiredError::Zone(error)
        })
    }
}

fn parse_address(text: &str) -> Result<IpAddr, DesiredError> {
    text.parse().map_err(|_| DesiredError::Address(text.to_owned()))
}

#[cfg(test)]
mod tests;
