//! `tapway run`: from what was typed to a plan, and the plan to the monitor.
//!
//! In this order, so that a failure leaves nothing: everything that can be checked by reading (exit code 2); the ports, that
//! of the metrics too, bound on the host; the name, taken; the capture file, opened; then the monitor starts its children and from there on
//! cleans up after itself.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use caps::{CapSet, Capability};
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;

use super::detach::{self, Side};
use super::run_args::{RunArgs, Switch};
use super::run_named;
use super::run_network::{self, NetworkMode};
use super::{FAILURE, Failure, metrics_listen};
use crate::host::ports;
use crate::host::published::PortError;
use crate::network::config::{EndpointConfig, Listener, Offloads, PlanV4, PlanV6};
use crate::network::definition::Network;
use crate::network::desired::{self, Desired, DnsSettings};
use crate::network::{plan, publish, resolv};
use crate::sandbox::command::Start;
use crate::sandbox::desk::Identity as SandboxIdentity;
use crate::sandbox::inside::{Scope, Setup};
use crate::sandbox::logs::output::Output;
use crate::sandbox::logs::store::{Kept, Store};
use crate::sandbox::mapping::Maps;
use crate::sandbox::monitor::{self, Plan};
use crate::sandbox::state::{About, Address, Attachment, Sandbox};
use crate::sandbox::uplink::Source;
use crate::sandbox::users::{self, Identity, UserChoice};
use crate::sandbox::{control, files, host_dns, jobs, state};
use crate::sys;

/// Longest host name (HOST_NAME_MAX, limits.h) and longest label of one (RFC 1035, section 2.3.4).
const MAX_HOSTNAME: usize = 64;
const MAX_LABEL: usize = 63;
/// Port of DNS.
const DNS_PORT: u16 = 53;

/// Does it; the exit code of the command.
pub fn main(args: RunArgs) -> Result<u8, Failure> {
    if !args.detach {
        crate::telemetry::init(args.verbose, args.log_format);
        return run(args, None);
    }
    // What is said goes into a file sooner or later.
    crate::telemetry::init_with(args.verbose, args.log_format, false);
    match detach::split()? {
        Side::Caller(waiting) => waiting.wait(),
        Side::Monitor(ready) => run(args, Some(ready)),
    }
}

/// In the foreground, or, with somebody who is to be told when it is up, detached.
fn run(args: RunArgs, ready: Option<OwnedFd>) -> Result<u8, Failure> {
    let mut wanted = Wanted::check(&args)?;
    let joining = match &wanted.mode {
        NetworkMode::Container(name) => Some(run_network::join(name, &wanted.name)?),
        _ => None,
    };
    if let Some(joining) = &joining {
        let choice = args.user.as_deref().map(users::parse_user).transpose().map_err(Failure::usage)?;
        (wanted.identity, wanted.switch_user) = joining.user(choice)?;
        wanted.maps = Maps::Written;
        wanted.mode = NetworkMode::Container(joining.sandbox.id.clone());
        wanted.hostname.clone_from(&joining.sandbox.about.hostname);
    }
    if wanted.mode.discards_ports() && !wanted.publish.is_empty() {
        let mode = wanted.mode.name();
        crate::telemetry::say(&format!("WARNING: Published ports are discarded when using {mode} network mode"));
        wanted.publish.clear();
    }
    let descriptor_limit = raise_descriptor_limit();
    let metrics = wanted.metrics.map(metrics_listen::bind).transpose()?;
    let state_error = |error: state::StateError| Failure::runtime(&error);
    let runtime_dir = state::runtime_dir(std::env::var_os("XDG_RUNTIME_DIR")).map_err(state_error)?;
    let listeners = ports::bind_all(&wanted.publish).map_err(|error| port_refused(&runtime_dir, &wanted, &error))?;
    let joined = match wanted.network.take() {
        Some(network) => Some(wanted.join(&runtime_dir, network, &listeners)?),
        None => None,
    };
    let sandbox = Sandbox {
        id: wanted.id.clone(),
        name: wanted.name.clone(),
        pid: std::process::id(),
        ports: listeners.iter().map(|(listener, _)| *listener).collect(),
        about: wanted.about(ready.is_some()),
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
    let (output, stdio) = match ready {
        Some(ready) => keep_output(&runtime_dir, sandbox.clone(), args.rm, ready).map(|(o, s)| (Some(o), Some(s)))?,
        None => (None, None),
    };
    let shares_terminal = jobs::shares_terminal();
    let foreground = shares_terminal && jobs::is_interactive();
    let (hosts, resolv_conf) = wanted.files();
    let has_interface = matches!(wanted.mode, NetworkMode::Private | NetworkMode::Named(_));
    let (v4, v6) = (has_interface.then_some(wanted.v4), wanted.v6.filter(|_| has_interface));
    let hidden = [Some(runtime_dir), state::lasting_dir()].into_iter().flatten().collect();
    let plan = Plan {
        setup: Setup {
            scope: match (&wanted.mode, joining) {
                (_, Some(joining)) => Scope::Joined(joining.donor),
                (NetworkMode::None, _) => Scope::Loopback,
                (NetworkMode::Host, _) => Scope::Host,
                _ => Scope::Interface,
            },
            mac: wanted.guest_mac,
            mtu: wanted.mtu,
            v4,
            v6,
            internal: wanted.internal,
            embedded_dns: wanted.embedded_dns,
            hostname: wanted.hostname.clone(),
            hosts,
            resolv_conf,
            hidden,
            own_pids: wanted.own_pids,
            identity: wanted.identity,
            ping_groups: wanted.ping_groups,
            start: Start {
                command: wanted.command,
                environment: Vec::new(),
                directory: None,
                identity: wanted.switch_user.then_some(wanted.identity),
                own_group: !shares_terminal || foreground,
                foreground,
                own_session: false,
                dies_with_parent: false,
                stdio,
                signal_mask: SigSet::thread_get_mask().unwrap_or(SigSet::empty()),
                descriptor_limit,
            },
        },
        maps: wanted.maps,
        desired: wanted.desired,
        identity: SandboxIdentity { id: wanted.id.clone(), name: wanted.name },
        entry,
        control,
        listeners,
        metrics,
        pcap,
        shares_terminal,
        source: match joined {
            Some(joined) => Source::Shared(Box::new(joined.member())),
            None if has_interface => Source::Own(crate::runtime::network_process),
            None => Source::None,
        },
        about: sandbox.about,
        output,
        endpoint: EndpointConfig {
            id: wanted.id,
            mtu: wanted.mtu,
            guest_mac: wanted.guest_mac,
            gateway_mac: plan::GATEWAY_MAC,
            v4,
            v6,
            offloads: Offloads::default(),
            allow_host_loopback: args.allow_host_loopback,
            allow_link_local: args.allow_link_local,
            outbound_v4: wanted.outbound_v4,
            outbound_v6: wanted.outbound_v6,
            hostname: wanted.hostname,
            dns_search: wanted.dns_search,
            slirp: None,
        },
    };
    monitor::run(plan).map_err(|error| Failure { code: error.exit_code(), line: crate::telemetry::chain(&error) })
}

/// The arguments, understood and checked.
struct Wanted {
    id: String,
    name: String,
    mode: NetworkMode,
    network: Option<Network>,
    asked: run_named::Asked,
    own_mac: bool,
    /// On a shared network: where names are asked for.
    resolvers: Option<Vec<IpAddr>>,
    embedded_dns: bool,
    internal: bool,
    hostname: String,
    publish: Vec<publish::Publish>,
    metrics: Option<SocketAddr>,
    mtu: u16,
    v4: PlanV4,
    v6: Option<PlanV6>,
    guest_mac: crate::network::config::Mac,
    outbound_v4: Option<Ipv4Addr>,
    outbound_v6: Option<Ipv6Addr>,
    desired: Desired,
    dns_search: Vec<String>,
    dns_options: Vec<String>,
    add_host: Vec<(String, IpAddr)>,
    own_pids: bool,
    identity: Identity,
    switch_user: bool,
    maps: Maps,
    ping_groups: (u32, u32),
    command: Vec<CString>,
}

impl Wanted {
    fn check(args: &RunArgs) -> Result<Self, Failure> {
        let usage = |error: &dyn std::error::Error| Failure::usage(crate::telemetry::chain(error));
        let mode = NetworkMode::parse(&args.network)?;
        mode.check(args)?;
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
        let hostname = match (&args.hostname, &mode) {
            (Some(name), _) => {
                check_hostname(name)?;
                name.clone()
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
        let network = match &mode {
            NetworkMode::Named(name) => Some(run_named::find(name)?),
            _ => None,
        };
        let asked = run_named::Asked::parse(args)?;
        let (mtu, (v4, v6)) = if let Some(network) = &network {
            (u32::from(run_named::mtu(network)), run_named::plans(network, None)?)
        } else {
            let mtu = args.mtu.unwrap_or(u32::from(plan::DEFAULT_MTU));
            (mtu, check_subnets(&args.subnet, ipv6, subnet)?)
        };
        let v6 = v6.filter(|_| ipv6);
        let mtu = plan::check_mtu(mtu, v6.is_some()).map_err(|error| usage(&error))?;
        let guest_mac = match &args.mac_address {
            Some(text) => plan::parse_mac(text).map_err(|error| usage(&error))?,
            None => plan::random_mac([m0, m1, m2]),
        };
        let mut publish = publish::parse_all(&args.publish).map_err(|error| usage(&error))?;
        let exposed = publish::parse_exposed(&args.expose).map_err(|error| usage(&error))?;
        if args.publish_all {
            publish::publish_exposed(&mut publish, exposed);
        }
        if let Some(network) = &network {
            run_named::bind_where_it_says(network, &mut publish);
        }
        let metrics = args.metrics_listen.as_deref().map(metrics_listen::parse).transpose()?;
        let dns = args.dns.iter().map(|text| parse_dns(text)).collect::<Result<Vec<_>, _>>()?;
        let host = host_dns::read(Path::new(host_dns::RESOLV_CONF));
        let own_pids = match args.pid.as_str() {
            "private" => true,
            "host" => false,
            other => {
                return Err(Failure::usage(format!("pid namespace '{other}' is not known; give private or host")));
            }
        };
        let users = decide_users(args.user.as_deref())?;
        let command = args
            .command
            .iter()
            .map(|word| CString::new(word.clone().into_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Failure::usage("the command has a NUL byte in it"))?;
        let (outbound_v4, outbound_v6) = check_outbound(&args.outbound_addr, ipv6)?;
        let dns_search = words_or("search domain", &args.dns_search, host.search)?;
        let dns_options = words_or("resolver option", &args.dns_option, host.options)?;
        let mut add_host: Vec<(String, IpAddr)> = Vec::new();
        for text in &args.add_host {
            let host = parse_add_host(text, &mode, &v4)?;
            // Once is enough.
            if !add_host.contains(&host) {
                add_host.push(host);
            }
        }
        let settings = DnsSettings {
            servers: (!dns.is_empty()).then_some(dns),
            search: dns_search.clone(),
            options: dns_options.clone(),
            zones: Vec::new(),
        };
        let desired = Desired::new(settings, &add_host, &desired::Limits::default()).map_err(|error| usage(&error))?;
        Ok(Self {
            id,
            name,
            mode,
            network,
            asked,
            own_mac: args.mac_address.is_some(),
            resolvers: None,
            embedded_dns: false,
            internal: false,
            publish,
            metrics,
            mtu,
            v4,
            v6,
            guest_mac,
            outbound_v4,
            outbound_v6,
            desired,
            dns_search,
            dns_options,
            add_host,
            hostname,
            own_pids,
            identity: users.identity,
            switch_user: users.switch_user,
            maps: users.maps,
            ping_groups: users.ping_groups,
            command,
        })
    }

    /// Takes the sandbox's place on a network, and lays out what follows from it.
    fn join(
        &mut self,
        runtime_dir: &Path,
        network: Network,
        listeners: &[(Listener, OwnedFd)],
    ) -> Result<run_named::Joining, Failure> {
        let who = (self.id.as_str(), self.name.as_str(), self.hostname.as_str());
        let ports = listeners.iter().map(|(listener, _)| *listener).collect();
        let (resolvers, embedded) = run_named::resolvers(&network, &self.v4);
        (self.resolvers, self.embedded_dns, self.internal) = (Some(resolvers), embedded, network.internal);
        if embedded && !self.dns_options.iter().any(|option| option.starts_with("ndots:")) {
            // As Docker has it: names of one label are asked for as they are.
            self.dns_options.push("ndots:0".to_owned());
        }
        let mac = self.own_mac.then_some(self.guest_mac);
        let joining = run_named::take(runtime_dir, network, std::mem::take(&mut self.asked), who, mac, ports)?;
        let has_v6 = self.v6.is_some();
        (self.v4, self.v6) = joining.plans()?;
        self.v6 = self.v6.filter(|_| has_v6);
        self.guest_mac = joining.lease().mac;
        self.add_host.extend(joining.links.iter().cloned());
        let usage = |error: desired::DesiredError| Failure::usage(error.to_string());
        let mut settings = self.desired.dns().clone();
        settings.options.clone_from(&self.dns_options);
        self.desired = Desired::new(settings, &self.add_host, &desired::Limits::default()).map_err(usage)?;
        Ok(joining)
    }

    /// What the state file tells of it, before it runs.
    fn about(&self, detached: bool) -> About {
        let mut addresses = vec![Address {
            address: self.v4.guest.into(),
            prefix_len: self.v4.subnet.prefix_len(),
            gateway: self.v4.gateway.into(),
        }];
        addresses.extend(self.v6.map(|plan| Address {
            address: plan.guest.into(),
            prefix_len: plan.subnet.prefix_len(),
            gateway: plan.gateway.into(),
        }));
        let mac = self.guest_mac.0.map(|byte| format!("{byte:02x}")).join(":");
        let attachment = |mac, addresses| vec![Attachment { network: self.mode.name(), mac, addresses }];
        About {
            created: Some(state::now()),
            started: None,
            init: None,
            command: self.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            hostname: self.hostname.clone(),
            network_mode: self.mode.name(),
            networks: match &self.mode {
                NetworkMode::Private | NetworkMode::Named(_) => attachment(mac, addresses),
                NetworkMode::None | NetworkMode::Host => attachment(String::new(), Vec::new()),
                NetworkMode::Container(_) => Vec::new(),
            },
            detached,
        }
    }

    /// Texts of /etc/hosts and /etc/resolv.conf; None where the host's own are to be seen, or another sandbox's.
    fn files(&self) -> (Option<String>, Option<String>) {
        let own_hosts = |v4, v6| files::hosts_text(&self.hostname, v4, v6, &self.add_host);
        match &self.mode {
            NetworkMode::Private | NetworkMode::Named(_) => {
                let mut resolvers = vec![IpAddr::V4(self.v4.dns)];
                resolvers.extend(self.v6.map(|plan| IpAddr::V6(plan.dns)));
                if let Some(shared) = &self.resolvers {
                    resolvers.clone_from(shared);
                }
                let resolv_conf = resolv::render(&resolvers, &self.dns_search, &self.dns_options);
                (Some(own_hosts(Some(&self.v4), self.v6.as_ref())), Some(resolv_conf))
            }
            NetworkMode::None => (Some(own_hosts(None, None)), self.resolv_conf_of_host()),
            NetworkMode::Host => {
                let hosts = (!self.add_host.is_empty()).then(|| {
                    let mut text = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
                    for (name, address) in &self.add_host {
                        text = text.trim_end_matches('\n').to_owned() + "\n" + &files::host_line(*address, name) + "\n";
                    }
                    text
                });
                (hosts, self.resolv_conf_of_host())
            }
            NetworkMode::Container(_) => (None, None),
        }
    }

    /// The host's, unless something in it is to be different.
    fn resolv_conf_of_host(&self) -> Option<String> {
        let host = host_dns::read(Path::new(host_dns::RESOLV_CONF));
        let given = self.desired.dns().servers.as_ref();
        if given.is_none() && self.dns_search == host.search && self.dns_options == host.options {
            return None;
        }
        let servers: Vec<IpAddr> =
            given.cloned().unwrap_or_else(|| host_dns::servers(&host)).iter().map(SocketAddr::ip).collect();
        Some(resolv::render(&servers, &self.dns_search, &self.dns_options))
    }
}

/// Why a port is not had: in Docker's words if another sandbox has it.
fn port_refused(runtime_dir: &Path, wanted: &Wanted, error: &PortError) -> Failure {
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
fn parse_add_host(text: &str, mode: &NetworkMode, v4: &PlanV4) -> Result<(String, IpAddr), Failure> {
    let bad = |why: &str| Failure::usage(format!("host entry '{text}' {why}; write NAME:IP or NAME:host-gateway"));
    let (name, address) = text.split_once([':', '=']).ok_or_else(|| bad("has no address"))?;
    check_hostname(name).map_err(|_| bad("has no usable name"))?;
    if address == "host-gateway" {
        return match mode {
            NetworkMode::None => Err(bad("has no gateway to name: there is none with --network none")),
            NetworkMode::Host => Ok((name.to_owned(), IpAddr::V4(Ipv4Addr::LOCALHOST))),
            _ => Ok((name.to_owned(), IpAddr::V4(v4.gateway))),
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

/// What `--user` comes to on this machine.
struct Users {
    identity: Identity,
    switch_user: bool,
    maps: Maps,
    ping_groups: (u32, u32),
}

fn decide_users(text: Option<&str>) -> Result<Users, Failure> {
    let choice = text.map_or(Ok(UserChoice::Root), users::parse_user).map_err(Failure::usage)?;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let identity = match choice {
        UserChoice::Root => Identity { uid: 0, gid: 0 },
        UserChoice::Keep => Identity { uid, gid },
        UserChoice::Ids(identity) => identity,
    };
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // To map root an unprivileged-looking kernel check wants CAP_SETFCAP, too (Linux 5.12).
    if has(Capability::CAP_SETUID) && has(Capability::CAP_SETGID) && has(Capability::CAP_SETFCAP) {
        let (uids, gids) =
            (users::unchanged(&read("/proc/self/uid_map")), users::unchanged(&read("/proc/self/gid_map")));
        if !users::covers(&uids, identity.uid) || !users::covers(&gids, identity.gid) {
            return Err(Failure::usage(format!(
                "user {}:{} does not exist in this user namespace; choose another --user",
                identity.uid, identity.gid
            )));
        }
        let ping_groups = ping_groups(&gids, identity.gid);
        return Ok(Users {
            identity,
            switch_user: identity != Identity { uid, gid },
            maps: Maps::Direct { uids, gids, deny_setgroups: false },
            ping_groups,
        });
    }
    let passwd = read("/etc/passwd");
    let name = users::name_of(&passwd, uid);
    let (sub_uids, sub_gids) =
        (users::subordinate(&read("/etc/subuid"), name, uid), users::subordinate(&read("/etc/subgid"), name, uid));
    let (single_uid, single_gid) = (users::single(identity.uid, uid), users::single(identity.gid, gid));
    let (maps, ping_groups) = if sub_uids.is_empty() || sub_gids.is_empty() {
        let ping_groups = ping_groups(&single_gid, identity.gid);
        (Maps::Direct { uids: single_uid, gids: single_gid, deny_setgroups: true }, ping_groups)
    } else {
        let (uids, gids) = (users::full(identity.uid, uid, &sub_uids), users::full(identity.gid, gid, &sub_gids));
        let ping_groups = ping_groups(&gids, identity.gid);
        (Maps::Helpers { uids, gids, single_uid, single_gid }, ping_groups)
    };
    Ok(Users { identity, switch_user: false, maps, ping_groups })
}

/// The groups of a map for net.ipv4.ping_group_range, which is written as ids inside but compared as those outside
/// (net/ipv4/ping.c): from the one that is lowest outside to the one that is highest. Where these are in the other order
/// inside, the command's own group alone. At most 2^31 - 1.
fn ping_groups(gids: &[users::Range], own: u32) -> (u32, u32) {
    let first = gids.iter().min_by_key(|range| range.outside).map_or(own, |range| range.inside);
    let last = gids
        .iter()
        .max_by_key(|range| range.outside.saturating_add(range.count))
        .map_or(own, |range| range.inside.saturating_add(range.count - 1))
        .min(i32::MAX as u32);
    if first <= last { (first, last) } else { (own, own) }
}

/// Raises our soft limit on open descriptors to the hard one: a published port costs two, and the network process, which
/// inherits the limit, one for each flow. What it was, for the command.
fn raise_descriptor_limit() -> Option<(u64, u64)> {
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

/// Begins the logs of a detached sandbox; also returns the command's standard streams.
fn keep_output(
    runtime_dir: &Path,
    sandbox: Sandbox,
    remove: bool,
    ready: OwnedFd,
) -> Result<(Output, [OwnedFd; 3]), Failure> {
    let store = Store::at(&state::lasting_dir().unwrap_or_else(|| runtime_dir.to_owned()));
    let running = state::running(runtime_dir).into_iter().map(|sandbox| sandbox.id).collect();
    store.prune(&running, crate::telemetry::time::now());
    let null = std::fs::File::open("/dev/null")
        .map_err(|error| Failure { code: FAILURE, line: format!("cannot open /dev/null: {error}") })?;
    let kept = Kept { sandbox, ended: None, code: None };
    let (output, stdout, stderr) =
        Output::begin(store, kept, remove, ready).map_err(|error| Failure::runtime(&error))?;
    Ok((output, [null.into(), stdout, stderr]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Action, Cli, USAGE};
    use clap::Parser as _;

    fn check(words: &str) -> Result<Wanted, Failure> {
        let mut argv = vec!["tapway", "run", "--network", "private"];
        argv.extend(words.split_whitespace());
        argv.push("true");
        match Cli::try_parse_from(argv).unwrap().command {
            Action::Run(args) => Wanted::check(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let wanted = check("").unwrap_or_else(|f| panic!("{f:?}"));
        assert_eq!(wanted.id.len(), 12);
        assert!(wanted.id.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!((&wanted.name, &wanted.hostname), (&wanted.id, &wanted.id));
        assert_eq!(wanted.mtu, 65520);
        assert_eq!(wanted.v4.guest, Ipv4Addr::new(10, 0, 2, 100));
        assert!(wanted.v6.is_some_and(|plan| plan.guest.is_unique_local()));
        assert!(wanted.own_pids && wanted.desired.dns().servers.is_none());
        assert_ne!(check("").map(|w| w.id).ok(), Some(wanted.id));
    }

    #[test]
    fn habits_are_accepted() {
        assert!(check("-it --rm --net private --network=private").is_ok());
        for mode in ["none", "host", "container:x"] {
            assert!(check(&format!("--network {mode}")).is_ok_and(|w| w.mode.name() == mode));
        }
        assert!(check("-i -t -h box").is_ok_and(|w| w.hostname == "box"));
    }

    #[test]
    fn bad_values_are_usage_errors_that_name_them() {
        for (words, value) in [
            ("--name a/b", "'a/b'"),
            ("--name=", "''"),
            ("--hostname=-x-", "'-x-'"),
            ("-h a..b", "'a..b'"),
            ("--mtu 1000", "MTU 1000"),
            ("--mtu 70000", "MTU 70000"),
            ("--subnet 10.0.2.0/30", "10.0.2.0/30"),
            ("--subnet nonsense", "'nonsense'"),
            ("--subnet 10.0.2.0/24 --subnet 10.0.3.0/24", "'10.0.3.0/24'"),
            ("--subnet fd00::/64 --ipv6=off", "--ipv6=off"),
            ("--mac-address ff:ff:ff:ff:ff:ff", "ff:ff:ff:ff:ff:ff"),
            ("-p http", "'http'"),
            ("-p 8080:80 -p 8080:81", "'8080:80'"),
            ("--dns dns.example", "'dns.example'"),
            ("--dns 0.0.0.0", "'0.0.0.0'"),
            ("--dns-search . --dns-search a", "'.'"),
            ("--add-host db", "'db'"),
            ("--add-host db:nowhere", "'db:nowhere'"),
            ("--add-host :1.2.3.4", "':1.2.3.4'"),
            ("--user root", "'root'"),
            ("--pid 7", "'7'"),
        ] {
            let failure = check(words).map(|_| ()).unwrap_err();
            assert_eq!(failure.code, USAGE, "{words}: {failure:?}");
            assert!(failure.line.contains(value), "{words}: {failure:?}");
            assert!(!failure.line.contains('\n'), "{failure:?}");
        }
    }

    #[test]
    fn ipv6_off_lowers_the_mtu_limit() {
        assert!(check("--ipv6=off --mtu 1000").is_ok_and(|w| w.v6.is_none() && w.mtu == 1000));
    }

    #[test]
    fn hosts_and_dns() {
        let wanted = check(
            "--add-host db:host-gateway --add-host six:[fd00::1] --add-host e=fd00::2 --dns 192.0.2.1 --dns [::1]:5353",
        )
        .unwrap_or_else(|f| panic!("{f:?}"));
        let hosts: Vec<String> = wanted.add_host.iter().map(|(n, a)| format!("{n} {a}")).collect();
        assert_eq!(hosts, ["db 10.0.2.2", "six fd00::1", "e fd00::2"]);
        let dns: Vec<String> =
            wanted.desired.dns().servers.clone().unwrap_or_default().iter().map(ToString::to_string).collect();
        assert_eq!(dns, ["192.0.2.1:53", "[::1]:5353"]);
    }

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

    #[test]
    fn ranges_for_ping() {
        let full = |inside, caller| ping_groups(&users::full(inside, caller, &[(100_000, 65536)]), inside);
        assert_eq!(ping_groups(&users::single(5, 1000), 5), (5, 5));
        assert_eq!(full(0, 1000), (0, 65536));
        // The caller's own group is the lowest outside, wherever it is inside …
        assert_eq!(full(1000, 1000), (1000, 65536));
        // … or the highest; and a range that would be empty is not tried.
        assert_eq!(full(7, 500_000), (0, 7));
        assert_eq!(full(70_000, 1000), (70_000, 70_000));
        assert_eq!(ping_groups(&users::unchanged("0 0 4294967295\n"), 0), (0, i32::MAX as u32));
    }
}
