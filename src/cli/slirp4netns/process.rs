//! The process that `slirp4netns PID TAP` is: what is done in which order between the command line and the data plane.
//!
//! 1. Descriptors: those that the command line names are taken, all others above 2 closed. What a caller leaked into us
//!    could keep something of its own from ending.
//! 2. The link: a child joins the namespace and comes back with a TAP (`sandbox::foreign::join`), or a descriptor was
//!    passed, or a peer is waited for (BESS).
//! 3. The banner; the API socket is made, so that it exists at the ready byte.
//! 4. Confinement (`confine::standalone`).
//! 5. The engine; then one byte `1` on the ready descriptor; then frames.
//!
//! It stays one process with the number that its caller knows, has no children from 3. on, and no signal handlers: a
//! signal ends it as it would any program. It ends with code 0 when the exit descriptor's other side closes or its network
//! namespace dies, with 1 when something else took the interface away.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::Ipv6Addr;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ipnet::Ipv6Net;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::UnlinkatFlags;

use super::banner;
use crate::api::server::bind_legacy;
use crate::cli::endpoint::queues;
use crate::confine::{Outcome, standalone};
use crate::network::config::{EndpointConfig, Mac, Membership, Offloads, PlanV6, Slirp};
use crate::network::fault::Rules;
use crate::network::plan::MIN_MTU_V4;
use crate::runtime::control::HostDns;
use crate::runtime::engine::End;
use crate::runtime::{self, Attached};
use crate::sandbox::foreign::join::{self, Configure, Request};
use crate::sandbox::foreign::target::Watched;
use crate::sandbox::host_dns::{self, Polled, RESOLV_CONF};
use crate::sandbox::slirp::bess;
use crate::sandbox::slirp::options::{Options, Target};
use crate::sandbox::tap;
use crate::{sys, telemetry};

/// What that program names as blocked, all of which is blocked here, too.
const BLOCKED: &str = " execve execveat ptrace process_vm_readv process_vm_writev pidfd_getfd pidfd_open \
pidfd_send_signal lookup_dcookie init_module finit_module delete_module mount umount umount2 pivot_root chroot fsopen \
fsconfig fsmount fspick move_mount open_tree open_by_handle_at name_to_handle_at setns unshare kexec_load \
kexec_file_load reboot";

/// The IPv6 segment, which no option changes: fd00::/64.
const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const DNS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Stands for a guest that has no address that we could know: it configures itself.
const GUEST: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x64);

/// A start that failed: the lines that say so.
struct Failure(Vec<String>);

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure(vec![telemetry::chain(error)])
}

/// What that program's main loop adds when it fails.
fn late(error: String) -> Failure {
    Failure(vec![error, "do_slirp is exiting".into(), "do_slirp failed".into(), "parent failed".into()])
}

/// Runs to the end.
pub fn run(options: Options) -> ExitCode {
    telemetry::init(0, telemetry::LogFormat::Text);
    match serve(options) {
        Ok(code) => code,
        Err(Failure(lines)) => {
            telemetry::say(&lines.join("\n"));
            ExitCode::FAILURE
        }
    }
}

/// The descriptors that the command line names.
struct Named {
    exit: Option<OwnedFd>,
    ready: Option<OwnedFd>,
    tap: Option<OwnedFd>,
}

/// Takes what is open of them and closes what nobody named.
fn take_descriptors(options: &Options) -> Result<Named, Failure> {
    let tap = match options.target {
        Target::TapFd(fd) => Some(fd),
        _ => None,
    };
    // One number may stand for several, so each gets a duplicate of its own.
    let take = |fd: Option<RawFd>| fd.and_then(sys::fd::duplicate_inherited);
    let mut named = Named { exit: take(options.exit_fd), ready: take(options.ready_fd), tap: take(tap) };
    if matches!(options.ready_fd, Some(0..=2))
        && let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null")
    {
        // A standard stream that was named for the ready byte carries nothing else, and ends after it.
        let _ = match options.ready_fd {
            Some(0) => nix::unistd::dup2_stdin(&null),
            Some(1) => nix::unistd::dup2_stdout(&null),
            Some(2) => nix::unistd::dup2_stderr(&null),
            _ => Ok(()),
        };
    }
    let keep: Vec<BorrowedFd<'_>> =
        [&named.exit, &named.ready, &named.tap].into_iter().flatten().map(AsFd::as_fd).collect();
    sys::spawn::close_all_but(&keep);
    if tap.is_some() && named.tap.is_none() {
        return Err(late(format!("tapfd {}: Bad file descriptor", tap.unwrap_or(-1))));
    }
    if options.exit_fd.is_some() && named.exit.is_none() {
        // Not open: over before it began, but only after the ready byte.
        named.exit = nix::unistd::pipe().ok().map(|(read, _)| read);
    }
    Ok(named)
}

/// The link to the guest, however it came about.
struct Link {
    tap: OwnedFd,
    queues: Vec<OwnedFd>,
    offloads: Offloads,
    userns: Option<OwnedFd>,
}

fn link(options: &Options, passed: Option<OwnedFd>) -> Result<Link, Failure> {
    let (netns, process_userns) = match &options.target {
        Target::Pid(pid) => (PathBuf::from(format!("/proc/{pid}/ns/net")), Some(format!("/proc/{pid}/ns/user").into())),
        Target::Path(path) => (path.clone(), None),
        Target::TapFd(_) => {
            let passed = passed.ok_or_else(|| late("no TAP descriptor".into()))?;
            let (tap, offloads) = tap::inherit(passed).map_err(|error| failed(&error))?;
            return Ok(Link { tap, queues: Vec::new(), offloads, userns: None });
        }
        Target::Bess(path) => {
            let tap =
                bess::wait(path).map_err(|error| Failure(vec![telemetry::chain(&error), "child failed(1)".into()]))?;
            return Ok(Link { tap, queues: Vec::new(), offloads: Offloads::default(), userns: None });
        }
    };
    let configure =
        options.configure.then_some(Configure::Slirp { plan: options.plan, mtu: options.mtu, mac: options.mac });
    let request = Request {
        netns,
        userns: options.userns_path.as_deref(),
        process_userns,
        name: &options.tap_name,
        fresh: false,
        configure,
        see_end: options.exit_fd.is_none() && !dies_with_parent(),
        queues: queues(None).unwrap_or_else(|error| {
            telemetry::say(&format!("TAPWAY_QUEUES: {error}"));
            NonZeroU8::MIN
        }),
    };
    let joined = join::join(&request).map_err(|error| failed(&error))?;
    telemetry::say(&format!("sent tapfd={} for {}", joined.sent, joined.name));
    telemetry::say(&format!("received tapfd={}", joined.tap.as_raw_fd()));
    Ok(Link { tap: joined.tap, queues: joined.queues, offloads: joined.offloads, userns: joined.userns })
}

/// True if the caller has arranged for us to be killed when it ends, as buildah and RootlessKit do.
fn dies_with_parent() -> bool {
    matches!(nix::sys::prctl::get_pdeathsig(), Ok(Some(_)))
}

fn serve(options: Options) -> Result<ExitCode, Failure> {
    let Named { exit, ready, tap } = take_descriptors(&options)?;
    let target = match &options.target {
        Target::Pid(pid) => Watched::process(*pid),
        Target::Path(path) => Watched::file(path),
        Target::TapFd(_) | Target::Bess(_) => Watched::Unknown,
    };
    let Link { tap, queues, offloads, userns } = link(&options, tap)?;
    print(&banner(&options));

    if options.mtu < MIN_MTU_V4 {
        return Err(late(format!("MTU {} is too small for IPv4 (< {MIN_MTU_V4})\nslirp_new failed", options.mtu)));
    }
    let api = options.api_socket.as_deref().map(Api::bind).transpose()?;
    let resolv = Path::new(RESOLV_CONF);
    let mut polled = Polled::new(resolv);
    let dns = if options.disable_dns { Vec::new() } else { polled.servers() };
    let confined = standalone::enter(standalone::Options {
        tree: options.sandbox,
        userns,
        readable: host_dns::directories(resolv),
        socket_dir: api.as_ref().and_then(Api::directory),
    })
    .map_err(|error| {
        let what = telemetry::chain(&error);
        late(if options.sandbox { format!("{what}\ncreate_sandbox failed") } else { what })
    })?;
    tracing::info!(landlock = %confined.landlock, "confined");
    if options.seccomp {
        print(&format!(
            "seccomp: The following syscalls are blocked:{BLOCKED} (and what else forwarding does not take)\n"
        ));
    }
    let (listener, left_behind) = match api {
        Some(Api { listener, name, inode, .. }) => (Some(listener), confined.socket_dir.map(|dir| (dir, name, inode))),
        None => (None, None),
    };

    let attached = Attached {
        endpoint: endpoint(&options, offloads),
        tap,
        queues,
        pcap: None,
        listeners: vec![],
        dns: dns.into(),
        metrics: None,
        api: listener,
        exit,
        membership: Membership::default(),
        faults: Rules::default(),
    };
    let host_dns: HostDns = Box::new(move || polled.changed());
    let tree = if options.sandbox { Outcome::Done } else { Outcome::NotAsked };
    let stages = [("tree", tree), ("landlock", confined.landlock), ("seccomp", Outcome::Done)];
    let confinement = stages.map(|(stage, outcome)| (stage.to_owned(), outcome.to_string())).into();
    let end = runtime::standalone(attached, host_dns, confinement, || {
        if let Some(ready) = ready {
            // A reader that has gone away does not miss it.
            let _ = nix::unistd::write(&ready, b"1");
        }
    });
    if let Some((dir, name, inode)) = left_behind
        // A successor may have put its own there already.
        && fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(|stat| Some(stat.st_ino) == inode)
    {
        let _ = nix::unistd::unlinkat(&dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
    let code = match end {
        Ok(End::Exit) => ExitCode::SUCCESS,
        Ok(End::TapGone) if target.is_gone() => ExitCode::SUCCESS,
        Ok(End::TapGone) => {
            telemetry::say("the interface is gone: it was deleted, or its other side closed");
            ExitCode::FAILURE
        }
        Err(error) => {
            telemetry::say(&telemetry::chain(&error));
            ExitCode::FAILURE
        }
    };
    Ok(code)
}

/// The API socket.
struct Api {
    listener: UnixListener,
    path: PathBuf,
    /// Its name in the directory.
    name: OsString,
    inode: Option<u64>,
}

impl Api {
    fn bind(path: &OsStr) -> Result<Self, Failure> {
        let listener = bind_legacy(path).map_err(|error| late(telemetry::chain(&error)))?;
        let path = PathBuf::from(path);
        let name = path.file_name().unwrap_or_default().to_owned();
        let inode = std::fs::symlink_metadata(&path).ok().map(|meta| meta.ino());
        Ok(Self { listener, path, name, inode })
    }

    /// The directory that it is in; None for one without a file.
    fn directory(&self) -> Option<OwnedFd> {
        self.path.file_name()?;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        nix::fcntl::open(dir, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()
    }
}

/// To stdout at once. A caller that has closed its end has no use for it.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// The segment as that program has it.
fn endpoint(options: &Options, offloads: Offloads) -> EndpointConfig {
    let [a, b, c, d] = options.plan.gateway.octets();
    EndpointConfig {
        id: "slirp4netns".into(),
        mtu: options.mtu,
        // The guest's own is learnt.
        guest_mac: Mac([0; 6]),
        gateway_mac: Mac([0x52, 0x55, a, b, c, d]),
        v4: Some(options.plan),
        v6: options.ipv6.then(|| PlanV6 {
            subnet: Ipv6Net::new_assert(PREFIX, 64),
            gateway: GATEWAY,
            gateway_link_local: ROUTER,
            dns: DNS,
            guest: GUEST,
        }),
        offloads,
        allow_host_loopback: !options.disable_host_loopback,
        allow_link_local: true,
        outbound_v4: options.outbound_v4,
        outbound_v6: options.outbound_v6,
        hostname: String::new(),
        dns_search: Vec::new(),
        slirp: Some(Slirp { dhcp: options.dhcp, dns: !options.disable_dns }),
    }
}
