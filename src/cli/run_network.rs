//! `tapway run --network …`: which network, and which options go with it.
//!
//! | typed | the sandbox is |
//! |---|---|
//! | `private` | in a network of its own, with eth0 |
//! | `none` | in a network namespace with nothing but lo; published ports are discarded, with a warning |
//! | `host` | in the host's network; published ports are discarded, with a warning |
//! | `container:NAME` | in the network, UTS and IPC namespaces of another sandbox |
//! | `bridge`, or any other name | on a network that others are on, too (`run_named`) |
//!
//! What contradicts is refused in Docker's words.

use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;

use super::endpoint_args::EndpointArgs;
use super::run_args::RunArgs;
use super::run_named::Typed;
use super::target::{self, Target};
use super::{FAILURE, Failure};
use crate::api::verbs::life::{NamespaceKind, Namespaces};
use crate::sandbox::join::Donor;
use crate::sandbox::place::{self, Asked};
use crate::sandbox::state::Sandbox;
use crate::sandbox::users::{Identity, UserChoice};
use crate::sandbox::{life, state};

/// The network of sandboxes that name none.
const DEFAULT_NETWORK: &str = "bridge";

/// What `--network` comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// A network of its own.
    Private,
    /// Nothing but lo.
    None,
    /// The host's.
    Host,
    /// That of the sandbox of this name or id.
    Container(String),
    /// One of this name, and perhaps others beside it.
    Named(String),
}

impl NetworkMode {
    /// Reads all that was given: the mode, and the networks where that is to be on some.
    pub fn of(given: &[String]) -> Result<(Self, Vec<Typed>), Failure> {
        let networks = given.iter().map(|text| Typed::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let Some((first, others)) = networks.split_first() else {
            return Err(Failure::usage("--network names no network"));
        };
        let mode = Self::parse(&first.name)?;
        for (at, other) in others.iter().enumerate() {
            if networks[..=at].iter().any(|earlier| earlier.name == other.name) {
                return Err(Failure::usage(format!("network \"{}\" is specified multiple times", other.name)));
            }
        }
        let is_made = |mode: &Self| matches!(mode, Self::Named(name) if name != DEFAULT_NETWORK);
        if !others.is_empty() {
            for other in &networks {
                if !is_made(&Self::parse(&other.name)?) {
                    return Err(Failure::usage(
                        "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
                    ));
                }
            }
        }
        if !matches!(mode, Self::Named(_)) && first.asked != Asked::default() {
            return Err(Failure::usage(format!("the network mode {} takes nothing but its name", mode.name())));
        }
        Ok((mode, networks))
    }

    /// Reads one.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "private" => Ok(Self::Private),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            "container" | "container:" => {
                Err(Failure::usage("invalid network mode: invalid container format container:<name|id>"))
            }
            name => Ok(match name.strip_prefix("container:") {
                Some(name) => Self::Container(name.to_owned()),
                None => Self::Named(name.to_owned()),
            }),
        }
    }

    /// Refuses what does not go with it.
    pub fn check(&self, args: &RunArgs) -> Result<(), Failure> {
        let endpoint = &args.endpoint;
        let conflict = |what: &str| Err(Failure::usage(format!("conflicting options: {what}")));
        let links = |kind: &str| format!("{kind} can't be used with links. This would result in undefined behavior");
        // In Docker's order.
        match self {
            Self::Private | Self::Named(_) => {}
            Self::Container(_) => {
                for (is_given, what) in [
                    (args.hostname.is_some(), "hostname and the network mode"),
                    (!endpoint.link.is_empty(), &links("container type network")),
                    (
                        !endpoint.dns.is_empty() || !args.dns_search.is_empty() || !args.dns_option.is_empty(),
                        "dns and the network mode",
                    ),
                    (!endpoint.add_host.is_empty(), "custom host-to-IP mapping and the network mode"),
                    (endpoint.mac_address.is_some(), "mac-address and the network mode"),
                    (
                        !endpoint.publish.is_empty() || endpoint.publish_all,
                        "port publishing and the container type network mode",
                    ),
                    (!endpoint.expose.is_empty(), "port exposing and the container type network mode"),
                ] {
                    if is_given {
                        return conflict(what);
                    }
                }
            }
            Self::Host if !endpoint.link.is_empty() => return conflict(&links("host type networking")),
            Self::Host | Self::None => {}
        }
        self.check_endpoint(endpoint)
    }

    /// The same of what says how the interface is to be.
    pub fn check_endpoint(&self, args: &EndpointArgs) -> Result<(), Failure> {
        let conflict = |what: &str| Err(Failure::usage(format!("conflicting options: {what}")));
        // What belongs to the network, or to an interface that is not there.
        let own = [(!args.subnet.is_empty(), "subnet"), (args.mtu.is_some(), "mtu")];
        let interface = [
            (args.mac_address.is_some(), "mac-address"),
            (!args.outbound_addr.is_empty(), "outbound-addr"),
            (args.allow_host_loopback, "allow-host-loopback"),
            (args.allow_link_local, "allow-link-local"),
            (args.pcap.is_some(), "pcap"),
        ];
        let contrary: &[(bool, &str)] = match self {
            Self::Private => &[],
            Self::Named(_) => &own,
            Self::None | Self::Host | Self::Container(_) => &[own.as_slice(), interface.as_slice()].concat(),
        };
        if let Some((_, option)) = contrary.iter().find(|(is_given, _)| *is_given) {
            return match self {
                Self::Named(name) => conflict(&format!(
                    "{option} and the network {name}, which has its own; use --network private, or make a network"
                )),
                _ => conflict(&format!("{option} and the network mode")),
            };
        }
        if !matches!(self, Self::Named(_)) {
            let refused = |line: &str| Err(Failure::usage(line));
            if args.ip.is_some() || args.ip6.is_some() {
                return refused(
                    "invalid endpoint settings:\nuser-specified IP address is supported on user-defined networks only",
                );
            }
            if !args.network_alias.is_empty() {
                return refused("network-scoped aliases are only supported for user-defined networks");
            }
            if let Some(link) = args.link.first() {
                let dir = target::runtime_dir()?;
                return Err(Failure::runtime(&place::no_link(&dir, link.split(':').next().unwrap_or(link))));
            }
        }
        Ok(())
    }

    /// Says that published ports go nowhere, where that is so.
    pub fn discards_ports(&self) -> bool {
        matches!(self, Self::Host | Self::None)
    }

    /// As the state file has it, and `inspect`.
    pub fn name(&self) -> String {
        match self {
            Self::Private => "private".to_owned(),
            Self::None => "none".to_owned(),
            Self::Host => "host".to_owned(),
            Self::Container(id) => format!("container:{id}"),
            Self::Named(name) => name.clone(),
        }
    }
}

/// Another sandbox, whose network is joined.
#[derive(Debug)]
pub struct Joining {
    /// What the monitor needs.
    pub donor: Donor,
    /// What its monitor says of its users.
    pub namespaces: Namespaces,
    /// Its state file.
    pub sandbox: Sandbox,
}

/// Gets what it takes to join the sandbox `typed`, for one named `own`.
pub fn join(typed: &str, own: &str) -> Result<Joining, Failure> {
    if typed == own {
        return Err(Failure { code: FAILURE, line: "cannot join own network namespace".to_owned() });
    }
    let dir = target::runtime_dir()?;
    let Ok(sandbox) = state::find(&dir, typed) else {
        let line = format!("joining network namespace of container: No such container: {typed}");
        return Err(Failure { code: FAILURE, line });
    };
    let (namespaces, mut fds) = Target::of(&dir, &sandbox).namespaces()?;
    let mut mounts = None;
    let mut shared = Vec::new();
    // The last is the first process.
    fds.pop();
    for (&kind, fd) in namespaces.namespaces.iter().zip(fds) {
        match kind {
            NamespaceKind::Mnt => mounts = Some(fd),
            NamespaceKind::Pid => {}
            kind => shared.push((life::flag(kind), fd)),
        }
    }
    shared.sort_by_key(|(flag, _): &(CloneFlags, OwnedFd)| *flag != CloneFlags::CLONE_NEWUSER);
    let Some(mounts) = mounts else {
        let line = format!("sandbox {} has no mount namespace of its own; it cannot be joined", sandbox.name);
        return Err(Failure { code: FAILURE, line });
    };
    let donor = Donor { namespaces: shared, mounts, name: sandbox.name.clone() };
    Ok(Joining { donor, namespaces, sandbox })
}

impl Joining {
    /// Who the command is, and whether that is another than whom the donor's command is.
    pub fn user(&self, choice: Option<UserChoice>) -> Result<(Identity, bool), Failure> {
        let own = Identity { uid: self.namespaces.uid, gid: self.namespaces.gid };
        choose_user(choice, own, &self.namespaces, &self.sandbox.name)
    }
}

/// The user that is meant in a sandbox whose command is `own`, and whether it is another.
pub fn choose_user(
    choice: Option<UserChoice>,
    own: Identity,
    namespaces: &Namespaces,
    name: &str,
) -> Result<(Identity, bool), Failure> {
    let identity = match choice {
        None => own,
        Some(UserChoice::Root) => Identity { uid: 0, gid: 0 },
        Some(UserChoice::Keep) => {
            Identity { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
        }
        Some(UserChoice::Ids(identity)) => identity,
    };
    if !life::exists(&namespaces.uids, identity.uid) || !life::exists(&namespaces.gids, identity.gid) {
        return Err(Failure::usage(format!(
            "user {}:{} does not exist in sandbox {name}; choose another --user",
            identity.uid, identity.gid
        )));
    }
    Ok((identity, identity != own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::verbs::life::IdRange;
    use crate::cli::{Action, Cli, USAGE};
    use clap::Parser as _;

    fn check(words: &str) -> Result<NetworkMode, Failure> {
        let argv = ["tapway", "run"].into_iter().chain(words.split_whitespace()).chain(["true"]);
        let Action::Run(args) = Cli::try_parse_from(argv).unwrap_or_else(|error| panic!("{error}")).command else {
            panic!("not run")
        };
        let (mode, _) = NetworkMode::of(&args.endpoint.network)?;
        mode.check(&args).map(|()| mode)
    }

    #[test]
    fn modes_are_read() {
        for (text, mode) in [
            ("private", NetworkMode::Private),
            ("none", NetworkMode::None),
            ("host", NetworkMode::Host),
            ("container:db", NetworkMode::Container("db".to_owned())),
            ("web", NetworkMode::Named("web".to_owned())),
        ] {
            assert_eq!(NetworkMode::parse(text).as_ref(), Ok(&mode));
            assert_eq!(mode.name(), text);
        }
        for text in ["container", "container:"] {
            let line = NetworkMode::parse(text).map(|_| ()).map_err(|failure| failure.line);
            assert_eq!(line, Err("invalid network mode: invalid container format container:<name|id>".to_owned()));
        }
    }

    #[test]
    fn several_networks() {
        let of = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            NetworkMode::of(&texts)
                .map(|(mode, networks)| (mode.name(), networks.len()))
                .map_err(|failure| failure.line)
        };
        assert_eq!(of(&["web", "name=db,alias=x"]), Ok(("web".to_owned(), 2)));
        assert_eq!(of(&["bridge"]), Ok(("bridge".to_owned(), 1)));
        assert_eq!(of(&["web", "db", "name=web"]), Err("network \"web\" is specified multiple times".to_owned()));
        for mixed in [["web", "bridge"], ["host", "web"], ["web", "none"], ["private", "web"], ["web", "container:x"]] {
            let line = "conflicting options: cannot attach both user-defined and non-user-defined network-modes";
            assert_eq!(of(&mixed), Err(line.to_owned()), "{mixed:?}");
        }
        assert!(of(&["name=host,ip=1.2.3.4"]).is_err_and(|line| line.contains("nothing but its name")));
        assert!(of(&[]).is_err());
    }

    #[test]
    fn what_contradicts_is_refused_in_dockers_words() {
        for (words, line) in [
            ("-h x", "conflicting options: hostname and the network mode"),
            ("--dns 192.0.2.1", "conflicting options: dns and the network mode"),
            ("--dns-search x", "conflicting options: dns and the network mode"),
            ("--dns-option x", "conflicting options: dns and the network mode"),
            ("--add-host a:1.2.3.4", "conflicting options: custom host-to-IP mapping and the network mode"),
            ("--mac-address 02::1", "conflicting options: mac-address and the network mode"),
            ("-p 80", "conflicting options: port publishing and the container type network mode"),
            ("-P", "conflicting options: port publishing and the container type network mode"),
            ("--expose 80", "conflicting options: port exposing and the container type network mode"),
            (
                "--link db",
                "conflicting options: container type network can't be used with links. This would result in undefined \
                 behavior",
            ),
            ("--pcap x", "conflicting options: pcap and the network mode"),
        ] {
            let failure = check(&format!("--network container:x {words}")).unwrap_err();
            assert_eq!((failure.code, failure.line.as_str()), (USAGE, line), "{words}");
        }
        let failure = check("--network host --link db").unwrap_err();
        assert!(failure.line.starts_with("conflicting options: host type networking can't be used with links. "));
        for words in ["--subnet 10.0.0.0/24", "--allow-link-local", "--outbound-addr lo", "--allow-host-loopback"] {
            for mode in ["none", "host", "container:x"] {
                assert!(check(&format!("--network {mode} {words}")).is_err(), "{mode} {words}");
            }
        }
        for words in ["-p 80:80", "-P --expose 80", "--dns 192.0.2.1 -h x --add-host a:1.2.3.4"] {
            for mode in ["none", "host", "private"] {
                assert!(check(&format!("--network {mode} {words}")).is_ok(), "{mode} {words}");
            }
        }
    }

    #[test]
    fn users_of_another_sandbox() {
        let ids = || vec![IdRange { first: 0, count: 1 }, IdRange { first: 1, count: 10 }];
        let namespaces = Namespaces { namespaces: vec![], pid: 1, uid: 5, gid: 5, uids: ids(), gids: ids() };
        let own = Identity { uid: 5, gid: 5 };
        let choose = |choice| choose_user(choice, own, &namespaces, "db");
        assert_eq!(choose(None), Ok((own, false)));
        assert_eq!(choose(Some(UserChoice::Ids(own))), Ok((own, false)));
        assert_eq!(choose(Some(UserChoice::Root)), Ok((Identity { uid: 0, gid: 0 }, true)));
        let failure = choose(Some(UserChoice::Ids(Identity { uid: 11, gid: 0 }))).unwrap_err();
        assert_eq!(failure.line, "user 11:0 does not exist in sandbox db; choose another --user");
    }
}
