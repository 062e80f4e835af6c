//! The interface of a sandbox and its place on a network: from what was typed to what is taken for it, the same for
//! `tapway run` and `tapway attach`.
//!
//! In this order, so that a failure leaves nothing: everything that can be checked by reading (exit code 2,
//! [`Endpoint::check`]); then, in [`Endpoint::take`], the ports, that of the metrics too, bound on the host; the place on the
//! network; the name; the capture file, opened. From there on the monitor cleans up.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU8;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::endpoint_args::{EndpointArgs, Switch};
use super::run_named::{self, Typed};
use super::run_network::NetworkMode;
use super::{FAILURE, Failure, metrics_listen};
use crate::host::ports;
use crate::host::published::PortError;
use crate::network::config::{self, EndpointConfig, Listener, Mac, Offloads, PlanV4, PlanV6, QueuesError};
use crate::network::definition::Network;
use crate::network::desired::{self, Desired, DnsSettings};
use crate::network::{plan, publish};
use crate::sandbox::desk::Identity;
use crate::sandbox::interface::Interface;
use crate::sandbox::place::{self, Asked, Place, Template, Who};
use crate::sandbox::state::{About, Attachment, Sandbox};
use crate::sandbox::station;
use crate::sandbox::uplink::{Own, Source};
use crate::sandbox::{control, host_dns, state};
use crate::sys;

/// Longest host name (HOST_NAME_MAX, limits.h) and longest label of one (RFC 1035, section 2.3.4).
const MAX_HOSTNAME: usize = 64;
const MAX_LABEL: usize = 63;
/// Port of DNS.
const DNS_PORT: u16 = 53;

/// What is asked for by name and is no endpoint's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names<'a> {
    /// Host name inside.
    pub hostname: Option<&'a str>,
    /// Search domains.
    pub search: &'a [String],
    /// Options of the resolver.
    pub options: &'a [String],
}

/// A network of the sandbox's own.
#[derive(Clone, Copy, Debug)]
pub struct Private {
    /// MTU of the interface.
    pub mtu: u16,
    /// Addresses.
    pub v4: PlanV4,
    /// Addresses.
    pub v6: Option<PlanV6>,
    /// Its MAC.
    pub mac: Mac,
}

/// The arguments, understood and checked.
#[derive(Debug)]
pub struct Endpoint {
    /// Of the sandbox, 12 hex digits.
    pub id: String,
    /// Of the sandbox.
    pub name: String,
    /// What kind of network.
    pub mode: NetworkMode,
    networks: Vec<(Network, Asked)>,
    /// A network of its own.
    pub private: Option<Private>,
    ipv6: bool,
    queues: NonZeroU8,
    /// Host name inside.
    pub hostname: String,
    /// Ports to be published.
    pub publish: Vec<publish::Publish>,
    metrics: Option<SocketAddr>,
    outbound_v4: Option<Ipv4Addr>,
    outbound_v6: Option<Ipv6Addr>,
    /// DNS settings and hosts.
    pub desired: Desired,
    /// Lines of the hosts file.
    pub add_host: Vec<(String, IpAddr)>,
}

/// Names the variable that says how many queues an interface has where the command line does not.
const QUEUES: &str = "TAPWAY_QUEUES";

/// How many queues an interface has.
pub fn queues(asked: Option<&str>) -> Result<NonZeroU8, QueuesError> {
    match (asked, std::env::var(QUEUES)) {
        (Some(text), _) => config::parse_queues(text),
        (None, Ok(text)) => config::parse_queues(&text),
        (None, Err(_)) => {
            Ok(config::default_queues(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)))
        }
    }
}

/// All that a monitor needs, held.
#[derive(Debug)]
pub struct Taken {
    /// As it is now that its place is known.
    pub endpoint: Endpoint,
    /// For the monitor.
    pub station: station::Plan,
    /// As its state file has it.
    pub sandbox: Sandbox,
    /// Where that is.
    pub runtime_dir: PathBuf,
}

impl Endpoint {
    /// Reads the arguments, for a sandbox on networks of this kind. Nothing is taken yet.
    pub fn check(
        args: &EndpointArgs,
        (mode, mut typed): (NetworkMode, Vec<Typed>),
        names: &Names<'_>,
    ) -> Result<Self, Failure> {
        let usage = |error: &dyn std::error::Error| Failure::usage(crate::telemetry::chain(error));
        let mut random = [0; 16];
        sys::random::fill(&mut random).map_err(|error| Failure::runtime(&error))?;
        let [i0, i1, i2, i3, i4, i5, m0, m1, m2, subnet @ ..] = random;
        let id = [i0, i1, i2, i3, i4, i5].map(|byte| format!("{byte:02x}")).concat();
        let name = args.name.clone().unwrap_or_else(|| id.clone());
        if !state::is_name(&name) {
            return Err(Failure::usage(format!(
                "name '{name}' is not usable; give up to {} letters, digits, '_', '.' or '-', the first a letter or digit",
                state::MAX_NAME
            )));
        }
        let queues = queues(args.queues.as_deref()).map_err(|error| usage(&error))?;
        let hostname = match (names.hostname, &mode) {
            (Some(name), _) => {
                check_hostname(name)?;
                name.to_owned()
            }
            // As Docker has it; what the host is called need not be what we would let pass.
            (None, NetworkMode::Host) => {
                nix::unistd::gethostname().map_or_else(|_| id.clone(), |name| name.to_string_lossy().into_owned())
            }
            (None, _) => id.clone(),
        };
        // A kernel without IPv6 has no such directory. What was asked for by name is not dropped silently.
        let ipv6_exists = Path::new("/proc/sys/net/ipv6").exists();
        let ipv6 = args.ipv6 == Switch::On && ipv6_exists;
        if args.ipv6 == Switch::On && !ipv6_exists {
            if let Some(subnet) = args.subnet.iter().find(|subnet| subnet.contains("::")) {
                let line = format!("subnet '{subnet}' cannot be had: this kernel has no IPv6; leave it out");
                return Err(Failure { code: FAILURE, line });
            }
            tracing::info!("this kernel has no IPv6, so there is none inside");
        }
        let options = run_named::options(args)?;
        let (mut networks, mut private) = (Vec::new(), None);
        match &mode {
            NetworkMode::Named(_) => {
                if let Some(first) = typed.first_mut() {
                    first.asked = run_named::merge(std::mem::take(&mut first.asked), options)?;
                }
                networks = run_named::find(&typed)?;
                for (network, _) in &networks {
                    place::plans(network, None).map_err(|error| run_named::failure(&error))?;
                    let v6 = ipv6 && network.v6().is_some();
                    plan::check_mtu(place::mtu(network).into(), v6).map_err(|error| usage(&error))?;
                }
            }
            NetworkMode::Private => {
                let (v4, v6) = check_subnets(&args.subnet, ipv6, subnet)?;
                let mtu = args.mtu.unwrap_or(u32::from(plan::DEFAULT_MTU));
                let mtu = plan::check_mtu(mtu, v6.is_some()).map_err(|error| usage(&error))?;
                private = Some(Private { mtu, v4, v6, mac: options.mac.unwrap_or(plan::random_mac([m0, m1, m2])) });
            }
            NetworkMode::None | NetworkMode::Host | NetworkMode::Container(_) => {}
        }
        let main = run_named::main(&networks, ipv6);
        let gateway = match main {
            Some(network) => Some(place::plans(network, None).map_err(|error| run_named::failure(&error))?.0.gateway),
            None => private.map(|private| private.v4.gateway),
        };
        let mut publish = publish::parse_all(&args.publish).map_err(|error| usage(&error))?;
        let exposed = publish::parse_exposed(&args.expose).map_err(|error| usage(&error))?;
        if args.publish_all {
            publish::publish_exposed(&mut publish, exposed);
        }
        if let Some(network) = main {
            run_named::bind_where_it_says(network, &mut publish);
        }
        let metrics = args.metrics_listen.as_deref().map(metrics_listen::parse).transpose()?;
        let dns = args.dns.iter().map(|text| parse_dns(text)).collect::<Result<Vec<_>, _>>()?;
        let host = host_dns::read(Path::new(host_dns::RESOLV_CONF));
        let (outbound_v4, outbound_v6) = check_outbound(&args.outbound_addr, ipv6)?;
        let dns_search = words_or("search domain", names.search, host.search)?;
        let dns_options = words_or("resolver option", names.options, host.options)?;
        let mut add_host: Vec<(String, IpAddr)> = Vec::new();
        for text in &args.add_host {
            let host = parse_add_host(text, &mode, gateway)?;
            // Once is enough.
            if !add_host.contains(&host) {
                add_host.push(host);
            }
        }
        let settings = DnsSettings {
            servers: (!dns.is_empty()).then_some(dns),
            search: dns_search,
            options: dns_options,
            zones: Vec::new(),
        };
        let desired = Desired::new(settings, &add_host, &desired::Limits::default()).map_err(|error| usage(&error))?;
        Ok(Self {
            id,
            name,
            mode,
            networks,
            private,
            ipv6,
            queues,
            hostname,
            publish,
            metrics,
            outbound_v4,
            outbound_v6,
            desired,
            add_host,
        })
    }

    /// Takes what the endpoint needs. `about`: what the state file is to tell beside what follows from it; `interface`: what
    /// it is called inside.
    pub fn take(mut self, args: &EndpointArgs, about: About, interface: &str) -> Result<Taken, Failure> {
        let metrics = self.metrics.map(metrics_listen::bind).transpose()?;
        let state_error = |error: state::StateError| Failure::runtime(&error);
        let runtime_dir = state::runtime_dir(std::env::var_os("XDG_RUNTIME_DIR")).map_err(state_error)?;
        let listeners = ports::bind_all(&self.publish).map_err(|error| port_refused(&runtime_dir, &self, &error))?;
        let template = self.template(args);
        let places = self.take_places(&runtime_dir, &template, &listeners, interface)?;
        let sandbox = Sandbox {
            id: self.id.clone(),
            name: self.name.clone(),
            pid: std::process::id(),
            ports: listeners.iter().map(|(listener, _)| *listener).collect(),
            about: self.about(about, &places),
        };
        let entry = state::register(&runtime_dir, &sandbox).map_err(state_error)?;
        let control = match control::listen_at(entry.socket()) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(
                    "there is no control socket for this sandbox: cannot make {}: {error}",
                    entry.socket().display()
                );
                None
            }
        };
        let pcap = args.pcap.as_deref().map(open_capture).transpose()?;
        let station = station::Plan {
            places,
            template,
            desired: self.desired.clone(),
            identity: Identity { id: self.id.clone(), name: self.name.clone() },
            entry,
            control,
            listeners,
            metrics,
            pcap,
            about: sandbox.about.clone(),
        };
        Ok(Taken { endpoint: self, station, sandbox, runtime_dir })
    }

    /// What all interfaces of the sandbox have in common.
    fn template(&self, args: &EndpointArgs) -> Template {
        let config = EndpointConfig {
            id: self.id.clone(),
            mtu: plan::DEFAULT_MTU,
            guest_mac: Mac([0; 6]),
            gateway_mac: plan::GATEWAY_MAC,
            v4: None,
            v6: None,
            offloads: Offloads::default(),
            allow_host_loopback: args.allow_host_loopback,
            allow_link_local: args.allow_link_local,
            outbound_v4: self.outbound_v4,
            outbound_v6: self.outbound_v6,
            hostname: self.hostname.clone(),
            dns_search: self.desired.dns().search.clone(),
            slirp: None,
        };
        Template { config, ipv6: self.ipv6, queues: self.queues }
    }

    /// Takes the sandbox's places on its networks, or lays out one of its own. The first interface is called `first`.
    fn take_places(
        &mut self,
        runtime_dir: &Path,
        template: &Template,
        listeners: &[(Listener, OwnedFd)],
        first: &str,
    ) -> Result<Vec<Place>, Failure> {
        if let Some(Private { mtu, v4, v6, mac }) = self.private {
            return Ok(vec![Place {
                network: self.mode.name(),
                network_id: String::new(),
                names: false,
                asked: Asked::default(),
                interface: Interface {
                    name: first.to_owned(),
                    mac,
                    mtu,
                    v4: Some(v4),
                    v6,
                    queues: template.queues,
                    internal: false,
                    embedded_dns: false,
                    keep_routes: false,
                },
                config: EndpointConfig { mtu, guest_mac: mac, v4: Some(v4), v6, ..template.config.clone() },
                source: Source::Own(Own::new(crate::runtime::network_process)),
                hosts: Vec::new(),
            }]);
        }
        let main = run_named::main(&self.networks, self.ipv6).map(|network| network.id.clone());
        let who = Who { id: &self.id, name: &self.name, hostname: &self.hostname };
        let mut places = Vec::new();
        for (at, (network, asked)) in self.networks.iter().enumerate() {
            let interface = if at == 0 { first.to_owned() } else { format!("eth{at}") };
            let published = Some(&network.id) == main.as_ref() && !network.internal;
            let ports = listeners.iter().filter(|_| published).map(|(listener, _)| *listener).collect();
            let mut place = place::take(runtime_dir, network, asked.clone(), who, &interface, ports, template)
                .map_err(|error| run_named::failure(&error))?;
            self.add_host.append(&mut place.hosts);
            places.push(place);
        }
        let usage = |error: desired::DesiredError| Failure::usage(error.to_string());
        let limits = desired::Limits::default();
        self.desired = Desired::new(self.desired.dns().clone(), &self.add_host, &limits).map_err(usage)?;
        Ok(places)
    }

    /// What the state file tells of it, before it runs.
    fn about(&self, about: About, places: &[Place]) -> About {
        let nothing = || vec![Attachment { network: self.mode.name(), ..Attachment::default() }];
        About {
            created: Some(state::now()),
            hostname: self.hostname.clone(),
            network_mode: self.mode.name(),
            networks: match &self.mode {
                NetworkMode::Private | NetworkMode::Named(_) => places.iter().map(Place::attachment).collect(),
                NetworkMode::None | NetworkMode::Host => nothing(),
                NetworkMode::Container(_) => Vec::new(),
            },
            ..about
        }
    }
}

/// Why a port is not had: in Docker's words if another sandbox has it.
fn port_refused(runtime_dir: &Path, wanted: &Endpoint, error: &PortError) -> Failure {
    let &PortError::InUse { port, proto, host } = error else { return Failure::runtime(error) };
    let holds = |other: &Listener| {
        let same = other.host_addr == host || other.host_addr.is_unspecified() || host.is_unspecified();
        other.proto == proto && other.host_port == port && other.host_addr.is_ipv4() == host.is_ipv4() && same
    };
    let running = state::running(runtime_dir);
    let Some(holder) = running.iter().find(|sandbox| sandbox.ports.iter().any(holds)) else {
        return Failure::runtime(error);
    };
    let line = format!(
        "driver failed programming external connectivity on endpoint {} ({}): Bind for {} failed: port is already \
         allocated; sandbox {} has it",
        wanted.name,
        wanted.id,
        SocketAddr::new(host, port),
        holder.name
    );
    Failure { code: FAILURE, line }
}

fn check_hostname(name: &str) -> Result<(), Failure> {
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= MAX_HOSTNAME && name.split('.').all(label) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "host name '{name}' is not usable; give up to {MAX_HOSTNAME} letters, digits and '-', in parts divided by '.'"
    )))
}

fn check_subnets(texts: &[String], ipv6: bool, random: [u8; 7]) -> Result<(PlanV4, Option<PlanV6>), Failure> {
    let usage = |error: plan::PlanError| Failure::usage(error.to_string());
    let (mut v4, mut v6) = (None, None);
    for text in texts {
        let twice =
            |family| Failure::usage(format!("subnet '{text}' is the second for {family}; give one of each family"));
        match plan::parse_subnet(text).map_err(usage)? {
            IpNet::V4(net) if v4.is_none() => v4 = Some(plan::plan_v4(net).map_err(usage)?),
            IpNet::V4(_) => return Err(twice("IPv4")),
            IpNet::V6(_) if !ipv6 => {
                return Err(Failure::usage(format!("subnet '{text}' contradicts --ipv6=off; leave one of them out")));
            }
            IpNet::V6(net) if v6.is_none() => v6 = Some(plan::plan_v6(net).map_err(usage)?),
            IpNet::V6(_) => return Err(twice("IPv6")),
        }
    }
    let v4 = match v4 {
        Some(plan) => plan,
        None => match plan::parse_subnet(plan::DEFAULT_SUBNET).map_err(usage)? {
            IpNet::V4(net) => plan::plan_v4(net).map_err(usage)?,
            IpNet::V6(_) => return Err(Failure::usage("the default subnet is not IPv4")),
        },
    };
    let v6 = match v6 {
        None if ipv6 => Some(plan::plan_v6(plan::random_ula(random)).map_err(usage)?),
        given => given,
    };
    Ok((v4, v6))
}

fn parse_dns(text: &str) -> Result<SocketAddr, Failure> {
    let address = text.parse().map(|address: IpAddr| SocketAddr::new(address, DNS_PORT)).or_else(|_| text.parse());
    match address {
        Ok(address) if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 => {
            Err(Failure::usage(format!("name server '{text}' cannot be asked; give the address of a server")))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(Failure::usage(format!(
            "name server '{text}' is not an address; give one such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353"
        ))),
    }
}

/// The words given, or else the host's; a single '.' means none.
fn words_or(what: &str, given: &[String], host: Vec<String>) -> Result<Vec<String>, Failure> {
    if given.is_empty() {
        return Ok(host);
    }
    if given.iter().any(|word| word == ".") {
        return match given {
            [_] => Ok(Vec::new()),
            _ => Err(Failure::usage(format!("{what} '.' means none; it cannot be given with others"))),
        };
    }
    let fits = |word: &&String| word.is_empty() || !word.bytes().all(|b| b.is_ascii_graphic());
    match given.iter().find(fits) {
        Some(bad) => Err(Failure::usage(format!("{what} '{bad}' is not one word of ASCII letters; give it anew"))),
        None => Ok(given.to_vec()),
    }
}

/// `NAME:IP`, `NAME=IP`; IP may be in brackets, or `host-gateway`.
fn parse_add_host(text: &str, mode: &NetworkMode, gateway: Option<Ipv4Addr>) -> Result<(String, IpAddr), Failure> {
    let bad = |why: &str| Failure::usage(format!("host entry '{text}' {why}; write NAME:IP or NAME:host-gateway"));
    let (name, address) = text.split_once([':', '=']).ok_or_else(|| bad("has no address"))?;
    check_hostname(name).map_err(|_| bad("has no usable name"))?;
    if address == "host-gateway" {
        return match mode {
            NetworkMode::Host => Ok((name.to_owned(), IpAddr::V4(Ipv4Addr::LOCALHOST))),
            _ => match gateway {
                Some(gateway) => Ok((name.to_owned(), IpAddr::V4(gateway))),
                None => Err(bad("has no gateway to name: there is none with --network none")),
            },
        };
    }
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    let address = bare.parse().map_err(|_| bad("has no IP address"))?;
    Ok((name.to_owned(), address))
}

/// Addresses of the host, or of an interface; each must be one that can be bound.
fn check_outbound(texts: &[String], ipv6: bool) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), Failure> {
    let (mut v4, mut v6) = (None, None);
    for text in texts {
        let addresses = match text.parse() {
            Ok(address) => vec![address],
            Err(_) => addresses_of(text)?,
        };
        for address in addresses {
            if let Err(error) = UdpSocket::bind((address, 0)) {
                let line = format!("outbound address '{text}' is not one of this host's ({error}); see `ip address`");
                return Err(Failure { code: FAILURE, line });
            }
            let again = match address {
                IpAddr::V4(address) => v4.replace(address).is_some(),
                IpAddr::V6(_) if !ipv6 => false,
                IpAddr::V6(address) => v6.replace(address).is_some(),
            };
            if again {
                return Err(Failure::usage(format!(
                    "outbound address '{text}' is the second of its family; give one of each family"
                )));
            }
        }
    }
    Ok((v4, v6))
}

/// The first address of each family that an interface has, link-local ones left out.
fn addresses_of(interface: &str) -> Result<Vec<IpAddr>, Failure> {
    let all = nix::ifaddrs::getifaddrs()
        .map_err(|errno| Failure { code: FAILURE, line: format!("cannot list the host's interfaces: {errno}") })?;
    let mut names = BTreeSet::new();
    let (mut v4, mut v6) = (None, None);
    for entry in all {
        let matches = entry.interface_name == interface;
        names.insert(entry.interface_name);
        let Some(address) = entry.address.filter(|_| matches) else { continue };
        if let Some(address) = address.as_sockaddr_in() {
            v4.get_or_insert(IpAddr::V4(address.ip()));
        } else if let Some(address) = address.as_sockaddr_in6()
            && !address.ip().is_unicast_link_local()
        {
            v6.get_or_insert(IpAddr::V6(address.ip()));
        }
    }
    if !names.contains(interface) {
        let known: Vec<String> = names.into_iter().collect();
        return Err(Failure {
            code: FAILURE,
            line: format!(
                "outbound address '{interface}' is neither an address nor an interface of this host ({})",
                known.join(", ")
            ),
        });
    }
    let found: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    if found.is_empty() {
        let line = format!("outbound address: the interface '{interface}' has no address; give it one or name another");
        return Err(Failure { code: FAILURE, line });
    }
    Ok(found)
}

/// Raises our soft limit on open descriptors to the hard one: a published port costs two, and the network process, which
/// inherits the limit, one for each flow. What it was, for the command.
pub fn raise_descriptor_limit() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    // Where it is refused we live with less, as anybody would.
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    Some((soft, hard))
}

fn open_capture(path: &Path) -> Result<OwnedFd, Failure> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|error| Failure {
            code: FAILURE,
            line: format!("cannot write the capture file {}: {error}; choose another --pcap", path.display()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::USAGE;

    #[test]
    fn search_domains() {
        assert_eq!(words_or("x", &[], vec!["h".to_owned()]), Ok(vec!["h".to_owned()]));
        assert_eq!(words_or("x", &[".".to_owned()], vec!["h".to_owned()]), Ok(vec![]));
        assert_eq!(words_or("x", &["a".to_owned()], vec!["h".to_owned()]), Ok(vec!["a".to_owned()]));
        assert!(words_or("x", &["a b".to_owned()], vec![]).is_err());
        assert!(words_or("x", &["a\nnameserver 1.2.3.4".to_owned()], vec![]).is_err());
    }

    #[test]
    fn outbound_addresses() {
        let one = |text: &str| check_outbound(&[text.to_owned()], true);
        assert_eq!(one("127.0.0.1").ok(), Some((Some(Ipv4Addr::LOCALHOST), None)));
        assert_eq!(one("lo").ok().and_then(|(v4, _)| v4), Some(Ipv4Addr::LOCALHOST));
        for bad in ["192.0.2.1", "no-such-if"] {
            let failure = one(bad).unwrap_err();
            assert!(failure.code == FAILURE && failure.line.contains(bad), "{failure:?}");
        }
        let twice = check_outbound(&["127.0.0.1".to_owned(), "127.0.0.2".to_owned()], true).unwrap_err();
        assert_eq!(twice.code, USAGE);
    }
}
