//! `tapway doctor`: tries what `tapway run` will need, line by line, and says what to do about what does not work.
//!
//! A line tries the thing itself wherever that is possible without a trace: it makes the namespaces, the TAP and the
//! mounts in a child that ends at once ([`trial`]), opens the sockets, confines a child as the network process will be.
//! Settings under /proc/sys and /etc are read only to explain a failure. Nothing is changed and nothing is sent.
//!
//! | status | meaning |
//! |---|---|
//! | ok | works |
//! | warn | `run` works, with less: slower, or one feature missing |
//! | fail | `run` will not work |
//!
//! The exit code is 0 if no line failed, else 1. The ids are stable: scripts may look for them in `--json`.

pub mod trial;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
use serde::Serialize;

use crate::cli::{FAILURE, Failure};
use crate::confine::Outcome;
use crate::sandbox::{state, users};
use trial::{Inside, Mapped, Tried};

/// Descriptors that 10 000 flows take: one socket each, and some 200 for listeners, epoll, timers and the resolver.
const WANTED_DESCRIPTORS: u64 = 10_200;
/// Below this not even a browser's worth of flows fits.
const NEEDED_DESCRIPTORS: u64 = 256;
/// Ids that images expect to find: 0 to 65535.
const WANTED_IDS: u32 = 65_536;
/// Character device 10:200 (Documentation/admin-guide/devices.txt).
const TUN_DEVICE: (u64, u64) = (10, 200);

/// Options of `tapway doctor`.
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Where to look. Only tests look elsewhere than at this machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What /proc/sys and /etc are below.
    pub root: PathBuf,
    /// The device that makes TAPs.
    pub tun: PathBuf,
    /// Value of XDG_RUNTIME_DIR.
    pub xdg_runtime_dir: Option<OsString>,
}

impl Machine {
    /// The one that we run on.
    pub fn this() -> Self {
        Self { root: "/".into(), tun: "/dev/net/tun".into(), xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR") }
    }

    /// The text of a file, trimmed; None if it cannot be read.
    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(path.trim_start_matches('/'))).ok().map(|text| text.trim().to_owned())
    }

    fn sysctl(&self, name: &str) -> Option<String> {
        self.text(&format!("/proc/sys/{}", name.replace('.', "/")))
    }
}

/// How a line ended; see the module head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Works.
    Ok,
    /// Works with less.
    Warn,
    /// `run` will not work.
    Fail,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name.
    pub id: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was seen.
    pub seen: String,
    /// What to do about it, where there is something to do.
    pub remedy: Option<String>,
}

fn ok(id: &'static str, seen: impl Into<String>) -> Check {
    Check { id, status: Status::Ok, seen: seen.into(), remedy: None }
}

fn warn(id: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { id, status: Status::Warn, seen: seen.into(), remedy: Some(remedy.into()) }
}

fn fail(id: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { id, status: Status::Fail, seen: seen.into(), remedy: Some(remedy.into()) }
}

/// Runs the command and returns its exit code. The process must have one thread: it forks.
pub fn main(args: &DoctorArgs) -> Result<u8, Failure> {
    let checks = examine(&Machine::this());
    let works = checks.iter().all(|check| check.status < Status::Fail);
    let text = if args.json {
        let value = serde_json::json!({ "works": works, "checks": checks });
        format!("{value:#}\n")
    } else {
        render(&checks)
    };
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // A reader that has seen enough (`doctor | head`) is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure { code: FAILURE, line: format!("cannot write to standard output: {error}") })
        }
        _ => Ok(u8::from(!works)),
    }
}

fn render(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok  ",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        let _ = writeln!(text, "{status}  {:<20}{}", check.id, check.seen);
        if let Some(remedy) = &check.remedy {
            let _ = writeln!(text, "{:26}remedy: {remedy}", "");
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let _ = match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) => writeln!(text, "tapway run will work here."),
        (0, n) => writeln!(text, "tapway run will work here; {n} of the lines above tell what would be missing."),
        (n, _) => writeln!(text, "tapway run will not work here: {n} failed."),
    };
    text
}

/// All lines, in order.
pub fn examine(machine: &Machine) -> Vec<Check> {
    let inside = trial::inside();
    let mut checks = vec![
        tun_device(&machine.tun),
        user_namespaces(machine, &inside),
        mounts(machine, &inside),
        tap(machine, &inside),
        offloads(&inside),
        subordinate_ids(machine),
        ping_sockets(machine),
        ipv6(machine),
        udp_offload(),
        event_loop(),
    ];
    checks.extend(confinement());
    checks.extend([descriptors(), low_ports(machine), runtime_dir(machine), congestion_control(machine)]);
    checks
}

fn tun_device(path: &Path) -> Check {
    let id = "tun-device";
    let load = "load the driver: sudo modprobe tun (in a container, start that with --device /dev/net/tun)";
    let shown = path.display();
    let Ok(meta) = std::fs::metadata(path) else {
        return fail(id, format!("{shown} is not there"), load);
    };
    let rdev = meta.rdev();
    let device = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    if !meta.file_type().is_char_device() || device != TUN_DEVICE {
        return fail(id, format!("{shown} is not the TUN device (character device 10:200)"), load);
    }
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => ok(id, format!("{shown} opens for reading and writing")),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            fail(id, format!("{shown}: {error}"), format!("allow everybody (as udev does): sudo chmod 0666 {shown}"))
        }
        Err(error) => fail(id, format!("{shown}: {error}"), load),
    }
}

fn user_namespaces(machine: &Machine, inside: &Tried<Inside>) -> Check {
    let id = "user-namespaces";
    match inside {
        Tried::Yes(_) => ok(id, "made user, network, mount, UTS, IPC and PID namespaces"),
        Tried::Clone(errno) => {
            let (why, remedy) = why_no_namespaces(machine, Errno::from_raw(*errno));
            fail(id, format!("cannot make them: {} ({why})", Errno::from_raw(*errno).desc()), remedy)
        }
        Tried::Map(why) => fail(id, format!("cannot map this user into one: {why}"), apparmor_remedy()),
        Tried::Lost(why) => fail(id, format!("the trial ended without an answer: {why}"), container_remedy()),
    }
}

/// AppArmor forbids user namespaces, or (as on Ubuntu since 24.04) lets them be made and forbids every use of them.
fn apparmor_restricts(machine: &Machine) -> bool {
    machine.sysctl("kernel.apparmor_restrict_unprivileged_userns").as_deref() == Some("1")
}

fn apparmor_remedy() -> String {
    "give tapway an AppArmor profile with 'userns,', or: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        .into()
}

fn container_remedy() -> String {
    "this looks like a container whose seccomp profile forbids it: start that with --security-opt seccomp=unconfined"
        .into()
}

/// Which of the switches that are known to forbid namespaces is the likely one.
fn why_no_namespaces(machine: &Machine, errno: Errno) -> (String, String) {
    let set = |name: &str, value: &str| machine.sysctl(name).as_deref() == Some(value);
    if errno == Errno::ENOSPC {
        for kind in ["user", "net", "mnt", "uts", "ipc", "pid"] {
            let name = format!("user.max_{kind}_namespaces");
            if set(&name, "0") {
                return (format!("{name} is 0"), format!("sudo sysctl -w {name}=15000"));
            }
        }
        let remedy = "end what holds them (lsns), or raise user.max_user_namespaces and its like with sudo sysctl -w";
        return ("a limit of namespaces is reached, or they are nested 32 deep".into(), remedy.into());
    }
    if set("kernel.unprivileged_userns_clone", "0") {
        return (
            "kernel.unprivileged_userns_clone is 0".into(),
            "sudo sysctl -w kernel.unprivileged_userns_clone=1".into(),
        );
    }
    if apparmor_restricts(machine) {
        return ("AppArmor restricts unprivileged user namespaces".into(), apparmor_remedy());
    }
    let filtered = machine.text("/proc/self/status").is_some_and(|status| {
        status.lines().any(|line| line.starts_with("Seccomp:") && line.trim_end().ends_with('2'))
    });
    if filtered {
        return ("a seccomp filter is in force".into(), container_remedy());
    }
    if errno == Errno::EINVAL {
        return (
            "the kernel lacks a kind of namespace".into(),
            "a kernel with CONFIG_USER_NS, CONFIG_NET_NS and the others, as Debian's is".into(),
        );
    }
    // A process whose root is not the root of its mount namespace may not make user namespaces (user_namespaces(7)).
    ("no known switch is set; in a chroot it is forbidden too".into(), "run tapway outside a chroot".into())
}

const NEEDS_NAMESPACES: (&str, &str) = ("not tried: there are no namespaces to try it in", "see user-namespaces");

fn mounts(machine: &Machine, inside: &Tried<Inside>) -> Check {
    let id = "mounts";
    let Tried::Yes(inside) = inside else { return fail(id, NEEDS_NAMESPACES.0, NEEDS_NAMESPACES.1) };
    let unmask =
        "in a container, start that with --security-opt unmask=ALL (podman) or systempaths=unconfined (docker)";
    let Inside { private, proc, mount_api, .. } = inside;
    match (private, mount_api, proc) {
        (Err(why), ..) => {
            fail(id, why.as_str(), if apparmor_restricts(machine) { apparmor_remedy() } else { container_remedy() })
        }
        (_, Err(why), _) => fail(
            id,
            format!("open_tree and move_mount: {why}"),
            "a kernel from 5.2 on, and no filter that forbids them",
        ),
        (.., Err(why)) => {
            warn(id, format!("a new /proc: {why}; the command sees that of its surroundings instead"), unmask)
        }
        (Ok(()), Ok(()), Ok(())) => ok(id, "mounted /proc, and a file by open_tree and move_mount"),
    }
}

fn tap(machine: &Machine, inside: &Tried<Inside>) -> Check {
    let id = "tap";
    let Tried::Yes(inside) = inside else { return fail(id, NEEDS_NAMESPACES.0, NEEDS_NAMESPACES.1) };
    match &inside.tap {
        Ok(_) => ok(id, "made one in a new network namespace"),
        Err(why) if apparmor_restricts(machine) => fail(id, why.as_str(), apparmor_remedy()),
        Err(why) => fail(id, why.as_str(), "see tun-device; else a kernel with CONFIG_TUN, as Debian's is"),
    }
}

fn offloads(inside: &Tried<Inside>) -> Check {
    let id = "offloads";
    let Tried::Yes(Inside { tap: Ok(offloads), .. }) = inside else {
        return warn(id, "not tried: there is no TAP to try them on", "see tap");
    };
    let all = [
        ("vnet header", offloads.vnet_hdr),
        ("checksum", offloads.csum),
        ("TSO IPv4", offloads.tso4),
        ("TSO IPv6", offloads.tso6),
        ("USO", offloads.uso),
    ];
    let list = |granted: bool| {
        let names: Vec<_> = all.iter().filter(|(_, has)| *has == granted).map(|(name, _)| *name).collect();
        names.join(", ")
    };
    if all.iter().all(|(_, has)| *has) {
        ok(id, list(true))
    } else {
        let remedy = "a newer kernel (USO: 6.2); without them packets cross one by one, several times slower";
        warn(id, format!("not granted: {}", list(false)), remedy)
    }
}

fn subordinate_ids(machine: &Machine) -> Check {
    let id = "subordinate-ids";
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let passwd = machine.text("/etc/passwd").unwrap_or_default();
    let name = users::name_of(&passwd, uid);
    let shown = name.map_or_else(|| uid.to_string(), str::to_owned);
    let less = "else the command has one user id, which is enough unless it changes its user";
    let mut maps = Vec::new();
    for (file, own) in [("/etc/subuid", uid), ("/etc/subgid", gid)] {
        let ranges = users::subordinate(&machine.text(file).unwrap_or_default(), name, uid);
        let count: u64 = ranges.iter().map(|&(_, count)| u64::from(count)).sum();
        if count < u64::from(WANTED_IDS) {
            return warn(
                id,
                format!("{file} gives {shown} {count} ids; images expect {WANTED_IDS}"),
                format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {shown} ({less})"),
            );
        }
        maps.push(users::full(0, own, &ranges));
    }
    match trial::map_ids(&maps[0], &maps[1]) {
        Mapped::Yes => ok(id, format!("newuidmap and newgidmap mapped the ids of {shown}")),
        Mapped::Missing(program) => {
            warn(id, format!("{program} is not in PATH"), format!("install it: sudo apt install uidmap ({less})"))
        }
        Mapped::Failed(why) => warn(
            id,
            why,
            format!("both must be setuid root (ls -l) on a file system without nosuid, with no_new_privs off ({less})"),
        ),
        Mapped::NoNamespace => warn(id, NEEDS_NAMESPACES.0, NEEDS_NAMESPACES.1),
    }
}

fn ping_sockets(machine: &Machine) -> Check {
    let id = "ping-sockets";
    let open = |family, protocol| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol);
    match open(AddressFamily::Inet, SockProtocol::Icmp) {
        Err(errno) => {
            let range = machine
                .sysctl("net.ipv4.ping_group_range")
                .map_or_else(|| "not readable".into(), |range| range.replace('\t', " "));
            warn(
                id,
                format!("{} (net.ipv4.ping_group_range is {range}): only the gateway answers ping", errno.desc()),
                "sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'",
            )
        }
        Ok(_) => match open(AddressFamily::Inet6, SockProtocol::IcmpV6) {
            Ok(_) => ok(id, "IPv4 and IPv6"),
            Err(errno) => warn(id, format!("IPv4 only: IPv6 says {}", errno.desc()), "see ipv6"),
        },
    }
}

fn ipv6(machine: &Machine) -> Check {
    let id = "ipv6";
    match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => {
            // The default route, reached through an interface that is up: flag RTF_UP and prefix length 0.
            let routed = machine.text("/proc/net/ipv6_route").is_some_and(|table| {
                let default = |line: &&str| line.split_ascii_whitespace().nth(1) == Some("00");
                table.lines().filter(default).any(|line| !line.ends_with(" lo"))
            });
            ok(
                id,
                if routed {
                    "the host has it, with a default route"
                } else {
                    "the host has it, without a default route"
                },
            )
        }
        Err(error) => warn(
            id,
            format!("the host has none: {error}"),
            "sudo sysctl -w net.ipv6.conf.all.disable_ipv6=0, or run with --ipv6=off so that programs do not try it",
        ),
    }
}

fn udp_offload() -> Check {
    let id = "udp-offload";
    let tried = || -> Result<(), (&str, String)> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| ("a UDP socket", error.to_string()))?;
        setsockopt(&socket, sockopt::UdpGsoSegment, &1200).map_err(|e| ("UDP_SEGMENT", e.desc().into()))?;
        setsockopt(&socket, sockopt::UdpGroSegment, &true).map_err(|e| ("UDP_GRO", e.desc().into()))
    };
    match tried() {
        Ok(()) => ok(id, "UDP_SEGMENT and UDP_GRO"),
        Err((what, why)) => {
            warn(id, format!("{what}: {why}"), "a kernel from 5.0 on; without it UDP is several times slower")
        }
    }
}

fn event_loop() -> Check {
    use nix::sys::{epoll, eventfd};
    let id = "event-loop";
    let tried = epoll::Epoll::new(epoll::EpollCreateFlags::EPOLL_CLOEXEC).and_then(|_| eventfd::EventFd::new());
    match tried {
        Ok(_) => ok(id, "epoll and eventfd"),
        Err(errno) => fail(id, format!("epoll or eventfd: {}", errno.desc()), container_remedy()),
    }
}

/// Confines a child as the network process will be: two lines.
fn confinement() -> [Check; 2] {
    let (seccomp, landlock) = ("seccomp", "landlock");
    match trial::confined() {
        Err(why) => [
            fail(
                seccomp,
                why,
                "a kernel with CONFIG_SECCOMP_FILTER, as Debian's is, and no filter that forbids seccomp(2)",
            ),
            warn(landlock, "not tried: the confinement failed", "see seccomp"),
        ],
        Ok(report) => [
            ok(seccomp, "the filter of the network process is accepted"),
            match report.landlock {
                Outcome::Done => ok(landlock, "no file is within reach of the network process"),
                other => warn(
                    landlock,
                    other.to_string(),
                    "a kernel from 6.12 on with 'landlock' in its lsm= list; it is a second layer, seccomp holds without it",
                ),
            },
        ],
    }
}

fn descriptors() -> Check {
    let id = "descriptors";
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return warn(id, "the limit cannot be read", "see getrlimit(2)");
    };
    let shown = |limit: u64| if limit == nix::libc::RLIM_INFINITY { "unlimited".to_owned() } else { limit.to_string() };
    let seen = format!("soft {}, hard {}: a flow takes one, 10000 need {WANTED_DESCRIPTORS}", shown(soft), shown(hard));
    let remedy = "raise the hard limit: 'nofile' in /etc/security/limits.conf, or LimitNOFILE= of the service";
    if hard < NEEDED_DESCRIPTORS {
        fail(id, seen, remedy)
    } else if hard < WANTED_DESCRIPTORS {
        warn(id, seen, remedy)
    } else {
        ok(id, seen)
    }
}

fn low_ports(machine: &Machine) -> Check {
    let id = "low-ports";
    let name = "net.ipv4.ip_unprivileged_port_start";
    let remedy = |start: u16| format!("to publish below it: sudo sysctl -w {name}={start}");
    match machine.sysctl(name).and_then(|text| text.parse::<u16>().ok()) {
        // The first port is the kernel's usual one, or lower by somebody's choice: as it should be.
        Some(start @ 0..=1024) => Check {
            remedy: (start > 80).then(|| remedy(80)),
            ..ok(id, format!("host ports from {start} on can be published"))
        },
        Some(start) => warn(id, format!("only host ports from {start} on can be published"), remedy(1024)),
        None => warn(id, format!("{name} is not readable"), "mount /proc, or publish ports from 1024 on"),
    }
}

fn runtime_dir(machine: &Machine) -> Check {
    let id = "runtime-dir";
    match state::runtime_dir(machine.xdg_runtime_dir.clone()) {
        Ok(path) => ok(id, path.display().to_string()),
        Err(error) => fail(
            id,
            crate::telemetry::chain(&error),
            "set XDG_RUNTIME_DIR to a directory of your own with mode 0700 (a login by PAM and systemd makes one)",
        ),
    }
}

fn congestion_control(machine: &Machine) -> Check {
    let id = "congestion-control";
    let name = "net.ipv4.tcp_congestion_control";
    match machine.sysctl(name) {
        Some(algorithm) => ok(id, format!("{algorithm} (name it with every figure measured here)")),
        None => warn(id, format!("{name} is not readable"), "mount /proc"),
    }
}
