//! `tapway run`: from what was typed to a plan, and the plan to the monitor.
//!
//! What the sandbox is on its network is `cli::endpoint`'s, which also holds what is taken for it; here are users, files and the
//! command. Then the monitor starts its children and from there on cleans up after itself.

use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use caps::{CapSet, Capability};
use nix::sys::signal::SigSet;

use super::detach::{self, Side};
use super::endpoint::{self, Endpoint, Names, Taken};
use super::run_args::RunArgs;
use super::run_network::{self, NetworkMode};
use super::{FAILURE, Failure};
use crate::network::resolv;
use crate::sandbox::command::Start;
use crate::sandbox::inside::{INTERFACE, Scope, Setup};
use crate::sandbox::mapping::Maps;
use crate::sandbox::monitor::{self, Plan};
use crate::sandbox::state::About;
use crate::sandbox::users::{self, Identity, UserChoice};
use crate::sandbox::{files as hosts_files, host_dns, jobs, state};

/// Does it; the exit code of the command.
pub fn main(args: RunArgs) -> Result<u8, Failure> {
    if !args.endpoint.detach {
        crate::telemetry::init(args.endpoint.verbose, args.endpoint.log_format);
        return run(args, None);
    }
    // What is said goes into a file sooner or later.
    crate::telemetry::init_with(args.endpoint.verbose, args.endpoint.log_format, false);
    match detach::split()? {
        Side::Caller(waiting) => waiting.wait(),
        Side::Monitor(ready) => run(args, Some(ready)),
    }
}

/// In the foreground, or, with somebody who is to be told when it is up, detached.
fn run(args: RunArgs, ready: Option<OwnedFd>) -> Result<u8, Failure> {
    let mut wanted = Wanted::check(&args)?;
    let joining = match &wanted.endpoint.mode {
        NetworkMode::Container(name) => Some(run_network::join(name, &wanted.endpoint.name)?),
        _ => None,
    };
    if let Some(joining) = &joining {
        let choice = args.user.as_deref().map(users::parse_user).transpose().map_err(Failure::usage)?;
        (wanted.identity, wanted.switch_user) = joining.user(choice)?;
        wanted.maps = Maps::Written;
        wanted.endpoint.mode = NetworkMode::Container(joining.sandbox.id.clone());
        wanted.endpoint.hostname.clone_from(&joining.sandbox.about.hostname);
    }
    if wanted.endpoint.mode.discards_ports() && !wanted.endpoint.publish.is_empty() {
        let mode = wanted.endpoint.mode.name();
        crate::telemetry::say(&format!("WARNING: Published ports are discarded when using {mode} network mode"));
        wanted.endpoint.publish.clear();
    }
    let Wanted { endpoint, own_pids, identity, switch_user, maps, ping_groups, command } = wanted;
    let descriptor_limit = endpoint::raise_descriptor_limit();
    let about = About {
        command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        detached: ready.is_some(),
        ..About::default()
    };
    let Taken { endpoint, station, sandbox, runtime_dir } = endpoint.take(&args.endpoint, about, INTERFACE)?;
    let (output, stdio) = match ready {
        Some(ready) => {
            let null = std::fs::File::open("/dev/null")
                .map_err(|error| Failure { code: FAILURE, line: format!("cannot open /dev/null: {error}") })?;
            let (output, stdout, stderr) = detach::keep_output(&runtime_dir, sandbox, args.endpoint.rm, ready)?;
            (Some(output), Some([null.into(), stdout, stderr]))
        }
        None => (None, None),
    };
    let shares_terminal = jobs::shares_terminal();
    let foreground = shares_terminal && jobs::is_interactive();
    let (hosts, resolv_conf) = files(&endpoint);
    let hidden = [Some(runtime_dir.clone()), state::lasting_dir()].into_iter().flatten().collect();
    let plan = Plan {
        runtime_dir,
        setup: Setup {
            scope: match (&endpoint.mode, joining) {
                (_, Some(joining)) => Scope::Joined(joining.donor),
                (NetworkMode::None, _) => Scope::Loopback,
                (NetworkMode::Host, _) => Scope::Host,
                _ => Scope::Interface,
            },
            interfaces: Vec::new(),
            order: Vec::new(),
            hostname: endpoint.hostname,
            hosts,
            plain_resolv_conf: resolv_conf.clone(),
            resolv_conf,
            hidden,
            own_pids,
            identity,
            ping_groups,
            start: Start {
                command,
                environment: Vec::new(),
                directory: None,
                identity: switch_user.then_some(identity),
                own_group: !shares_terminal || foreground,
                foreground,
                own_session: false,
                dies_with_parent: false,
                stdio,
                signal_mask: SigSet::thread_get_mask().unwrap_or(SigSet::empty()),
                descriptor_limit,
            },
        },
        maps,
        shares_terminal,
        output,
        station,
    };
    monitor::run(plan).map_err(|error| Failure { code: error.exit_code(), line: crate::telemetry::chain(&error) })
}

/// The arguments, understood and checked.
struct Wanted {
    endpoint: Endpoint,
    own_pids: bool,
    identity: Identity,
    switch_user: bool,
    maps: Maps,
    ping_groups: (u32, u32),
    command: Vec<CString>,
}

impl Wanted {
    fn check(args: &RunArgs) -> Result<Self, Failure> {
        let (mode, networks) = NetworkMode::of(&args.endpoint.network)?;
        // What cannot be read is refused before what does not fit.
        super::run_named::options(&args.endpoint)?;
        mode.check(args)?;
        let names = Names { hostname: args.hostname.as_deref(), search: &args.dns_search, options: &args.dns_option };
        let endpoint = Endpoint::check(&args.endpoint, (mode, networks), &names)?;
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
        Ok(Self {
            endpoint,
            own_pids,
            identity: users.identity,
            switch_user: users.switch_user,
            maps: users.maps,
            ping_groups: users.ping_groups,
            command,
        })
    }
}

/// Texts of /etc/hosts and /etc/resolv.conf; None where the host's own are to be seen, or another sandbox's, or where the monitor
/// knows what stands in them.
fn files(endpoint: &Endpoint) -> (Option<String>, Option<String>) {
    let lines =
        || endpoint.add_host.iter().map(|(name, address)| hosts_files::host_line(*address, name)).collect::<Vec<_>>();
    match &endpoint.mode {
        NetworkMode::Private | NetworkMode::Named(_) => (None, None),
        NetworkMode::None => (Some(hosts_files::hosts_text(&lines())), resolv_conf_of_host(endpoint)),
        NetworkMode::Host => {
            let hosts = (!endpoint.add_host.is_empty()).then(|| {
                let mut text = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
                for line in lines() {
                    text = text.trim_end_matches('\n').to_owned() + "\n" + &line + "\n";
                }
                text
            });
            (hosts, resolv_conf_of_host(endpoint))
        }
        NetworkMode::Container(_) => (None, None),
    }
}

/// The host's, unless something in it is to be different.
fn resolv_conf_of_host(endpoint: &Endpoint) -> Option<String> {
    let host = host_dns::read(Path::new(host_dns::RESOLV_CONF));
    let settings = endpoint.desired.dns();
    let given = settings.servers.as_ref();
    if given.is_none() && settings.search == host.search && settings.options == host.options {
        return None;
    }
    let servers: Vec<IpAddr> =
        given.cloned().unwrap_or_else(|| host_dns::servers(&host)).iter().map(SocketAddr::ip).collect();
    Some(resolv::render(&servers, &settings.search, &settings.options))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Action, Cli, USAGE};
    use clap::Parser as _;

    fn check(words: &str) -> Result<Wanted, Failure> {
        let mut argv = vec!["tapway", "run"];
        // Where no other is named.
        argv.extend(["--network", "private"].iter().filter(|_| !words.contains("--net")));
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
        assert_eq!(wanted.endpoint.id.len(), 12);
        assert!(wanted.endpoint.id.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!((&wanted.endpoint.name, &wanted.endpoint.hostname), (&wanted.endpoint.id, &wanted.endpoint.id));
        let private = wanted.endpoint.private.unwrap_or_else(|| panic!("no network of its own"));
        assert_eq!(private.mtu, 65520);
        assert_eq!(private.v4.guest, std::net::Ipv4Addr::new(10, 0, 2, 100));
        assert!(private.v6.is_some_and(|plan| plan.guest.is_unique_local()));
        assert!(wanted.own_pids && wanted.endpoint.desired.dns().servers.is_none());
        assert_ne!(check("").map(|w| w.endpoint.id).ok(), Some(wanted.endpoint.id));
    }

    #[test]
    fn habits_are_accepted() {
        assert!(check("-it --rm --net private").is_ok());
        for mode in ["none", "host", "container:x"] {
            assert!(check(&format!("--network {mode}")).is_ok_and(|w| w.endpoint.mode.name() == mode));
        }
        assert!(check("-i -t -h box").is_ok_and(|w| w.endpoint.hostname == "box"));
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
        assert!(
            check("--ipv6=off --mtu 1000")
                .is_ok_and(|w| w.endpoint.private.is_some_and(|own| own.v6.is_none() && own.mtu == 1000))
        );
    }

    #[test]
    fn hosts_and_dns() {
        let wanted = check(
            "--add-host db:host-gateway --add-host six:[fd00::1] --add-host e=fd00::2 --dns 192.0.2.1 --dns [::1]:5353",
        )
        .unwrap_or_else(|f| panic!("{f:?}"));
        let hosts: Vec<String> = wanted.endpoint.add_host.iter().map(|(n, a)| format!("{n} {a}")).collect();
        assert_eq!(hosts, ["db 10.0.2.2", "six fd00::1", "e fd00::2"]);
        let dns: Vec<String> =
            wanted.endpoint.desired.dns().servers.clone().unwrap_or_default().iter().map(ToString::to_string).collect();
        assert_eq!(dns, ["192.0.2.1:53", "[::1]:5353"]);
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
