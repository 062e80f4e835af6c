//! The sandbox's first process: it makes the network interface and the file system, then is the init of the command.
//!
//! Born by one clone(2) into all new namespaces, as process 1 of the PID namespace (unless `--pid=host`), it works in
//! the order in which the kernel allows things: the TAP and the addresses need capabilities but no uid map and go first,
//! so that the network process can attach while the maps are still being written; mounts need the map.
//!
//! As init it reaps orphans, passes on signals that the monitor was sent, and leaves when the command does, upon which
//! the kernel kills what is left of the PID namespace. It blocks every signal; the monitor's death kills it (PDEATHSIG,
//! and the end of the connection). Without a PID namespace it is a subreaper and kills what is left itself.
//!
//! It never executes anything but the command, and keeps its capabilities over the sandbox only to put files back.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, execvp, getpid, pipe2, read, setgroups, sethostname, setpgid, setresgid, setresuid, tcsetpgrp, write,
};

use super::files::{self, Files, FilesError};
use super::netlink::{self, NetlinkError};
use super::proto::{FromSandbox, ToSandbox};
use super::tap::{self, TapError};
use super::users::Identity;
use crate::api::attach::{self, AttachError};
use crate::network::config::{Mac, PlanV4, PlanV6};
use crate::sys::spawn::{self, Forked};
use crate::telemetry;

/// Name of the interface.
pub const INTERFACE: &str = "eth0";

/// How long a sandbox without a PID namespace goes on killing what its command left behind.
const KILL_TIME: Duration = Duration::from_secs(2);

/// Everything the first process must know; it has it from the monitor's memory.
#[derive(Debug)]
pub struct Setup {
    /// The guest's MAC.
    pub mac: Mac,
    /// The guest's MTU.
    pub mtu: u16,
    /// IPv4 plan.
    pub v4: Option<PlanV4>,
    /// IPv6 plan.
    pub v6: Option<PlanV6>,
    /// Host name.
    pub hostname: String,
    /// Text of /etc/hosts.
    pub hosts: String,
    /// Text of /etc/resolv.conf.
    pub resolv_conf: String,
    /// tapway's own directories, to be hidden; the first exists.
    pub hidden: Vec<PathBuf>,
    /// A PID namespace of its own.
    pub own_pids: bool,
    /// Who the command is, inside.
    pub identity: Identity,
    /// The first process is another user than that (privileged callers).
    pub switch_user: bool,
    /// First and last group that may open ping sockets inside: as many as are mapped.
    pub ping_groups: (u32, u32),
    /// The command gets a process group of its own (there is no terminal to share, or it is to have it for itself).
    pub own_group: bool,
    /// That group is the terminal's foreground, with the terminal as its standard input.
    pub foreground: bool,
    /// Signals that the caller had blocked, and so the command.
    pub signal_mask: SigSet,
    /// The caller's limits on open descriptors, soft and hard, which the monitor may have raised for itself.
    pub descriptor_limit: Option<(u64, u64)>,
    /// Program and arguments.
    pub command: Vec<CString>,
}

#[derive(Debug, thiserror::Error)]
enum InsideError {
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Monitor(#[from] AttachError),
    #[error("cannot {what}")]
    Call {
        what: &'static str,
        #[source]
        source: nix::Error,
    },
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> InsideError {
    move |source| InsideError::Call { what, source }
}

/// Body of the first process. Returns its exit code, which nobody needs: the monitor was told.
pub fn main(conn: &OwnedFd, setup: &Setup) -> u8 {
    match run(conn, setup) {
        Ok(()) => 0,
        // The monitor is gone, so there is nobody to tell.
        Err(InsideError::Monitor(_)) => 1,
        Err(error) => {
            let desc = telemetry::chain(&error);
            let _ = attach::send(conn, &FromSandbox::Failed { desc }, &[]);
            1
        }
    }
}

fn run(conn: &OwnedFd, setup: &Setup) -> Result<(), InsideError> {
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).map_err(call("block signals"))?;
    if setup.own_pids {
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(call("arrange to die with the monitor"))?;
    } else {
        prctl::set_child_subreaper(true).map_err(call("become a subreaper"))?;
    }
    make_interface(conn, setup)?;
    // Nothing else is sent before the maps are there.
    let (ToSandbox::Mapped, _) = attach::recv::<ToSandbox>(conn)? else {
        return Err(call("be told of the uid map")(Errno::EPROTO));
    };
    let mut notes = Vec::new();
    let (files, opened) = make_files(setup, &mut notes)?;
    let raw: Vec<_> = opened.iter().map(AsRawFd::as_raw_fd).collect();
    attach::send(conn, &FromSandbox::Prepared { notes }, &raw)?;
    drop(opened);
    // Not a signal for a command that is not there yet; a change of the host's files can wait, too.
    while !matches!(attach::recv::<ToSandbox>(conn)?.0, ToSandbox::Go) {}
    files.put_back()?;
    supervise(conn, setup, &files)
}

/// Makes the TAP, hands it over, and configures it.
fn make_interface(conn: &OwnedFd, setup: &Setup) -> Result<(), InsideError> {
    let (tap, offloads) = tap::create(INTERFACE)?;
    attach::send(conn, &FromSandbox::Tap { offloads }, &[tap.as_raw_fd()])?;
    drop(tap);
    let index = nix::net::if_::if_nametoindex(INTERFACE).map_err(call("find eth0"))?;
    // Where /proc/sys is read-only (in a container) these stay as they are: eth0 then listens to our router
    // advertisements, too, which say the same.
    let set = |name: &str, value: &str| {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/{name}"), value);
    };
    if setup.v6.is_some() {
        set("disable_ipv6", "0");
        set("accept_ra", "0");
        set("accept_dad", "0");
    } else {
        set("disable_ipv6", "1");
    }
    netlink::configure(&netlink::Interface {
        name: INTERFACE,
        index,
        mac: setup.mac,
        mtu: setup.mtu,
        v4: setup.v4,
        v6: setup.v6,
    })?;
    Ok(())
}

fn make_files(setup: &Setup, notes: &mut Vec<String>) -> Result<(Files, Vec<OwnedFd>), InsideError> {
    sethostname(&setup.hostname).map_err(call("set the host name"))?;
    // As in Docker: no port is privileged in a network of one's own, and every group may ping.
    let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    let (first, last) = setup.ping_groups;
    for (name, value) in
        [("ip_unprivileged_port_start", "0".to_owned()), ("ping_group_range", format!("{first} {last}"))]
    {
        if let Err(error) = set(name, &value) {
            notes.push(format!("net.ipv4.{name} inside stays as it is: {error}"));
        }
    }
    files::make_private()?;
    let placed =
        Files::place(&setup.hidden, &[("/etc/resolv.conf", &setup.resolv_conf), ("/etc/hosts", &setup.hosts)])?;
    if let Err(errno) = files::mount_sys() {
        notes.push(format!("/sys inside still shows the host's interfaces: {errno}"));
    }
    if setup.own_pids
        && let Err(errno) = files::mount_proc()
    {
        notes.push(format!("/proc inside is the host's (its numbers are not those of the sandbox): {errno}"));
    }
    Ok(placed)
}

/// Starts the command and stands by it to its end.
fn supervise(conn: &OwnedFd, setup: &Setup, files: &Files) -> Result<(), InsideError> {
    let mut only_child = SigSet::empty();
    only_child.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&only_child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(call("make a signalfd"))?;
    let command = match start(setup)? {
        Ok(pid) => pid,
        Err(errno) => {
            attach::send(conn, &FromSandbox::NoCommand { errno: errno as i32 }, &[])?;
            return Ok(());
        }
    };
    crate::sys::memory::drop_text();
    let code = stand_by(conn, &signals, command, setup.own_group, files);
    if !setup.own_pids {
        kill_children();
    }
    // An error means that the monitor is gone: then all that was wanted is that the command is, too.
    attach::send(conn, &FromSandbox::Exited { code: code? }, &[])?;
    Ok(())
}

/// Forks and executes the command. The inner error is execve's.
fn start(setup: &Setup) -> Result<Result<Pid, Errno>, InsideError> {
    let (told, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(call("make a pipe"))?;
    match spawn::fork().map_err(call("fork"))? {
        Forked::Child => spawn::leave_with(|| {
            let errno = execute(setup);
            let _ = write(&tell, &(errno as i32).to_ne_bytes());
            127
        }),
        Forked::Parent(pid) => {
            drop(tell);
            let mut errno = [0; 4];
            let got = loop {
                match read(&told, &mut errno) {
                    Err(Errno::EINTR) => {}
                    other => break other.map_err(call("read a pipe"))?,
                }
            };
            if got == errno.len() {
                let _ = waitpid(pid, None);
                return Ok(Err(Errno::from_raw(i32::from_ne_bytes(errno))));
            }
            Ok(Ok(pid))
        }
    }
}

/// In the command's process: becomes the command, or says why not.
fn execute(setup: &Setup) -> Errno {
    let prepare = || -> nix::Result<()> {
        if setup.own_group {
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        }
        if setup.foreground {
            // SIGTTOU, which a background group gets for this, is still blocked.
            tcsetpgrp(std::io::stdin(), getpid())?;
        }
        if setup.switch_user {
            let (uid, gid) = (Uid::from_raw(setup.identity.uid), Gid::from_raw(setup.identity.gid));
            setgroups(&[gid])?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
        }
        if let Some((soft, hard)) = setup.descriptor_limit {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        }
        spawn::cloexec_all();
        spawn::default_signal(Signal::SIGPIPE);
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&setup.signal_mask), None)
    };
    if let Err(errno) = prepare() {
        return errno;
    }
    let Some(program) = setup.command.first() else { return Errno::ENOENT };
    match execvp(program, &setup.command) {
        Ok(never) => match never {},
        // A directory of PATH that may not be entered answers EACCES, too, although nothing was found.
        Err(Errno::EACCES) if !is_found(program) => Errno::ENOENT,
        Err(errno) => errno,
    }
}

/// True if `program` is a path, or if a file of that name is in a directory of PATH.
fn is_found(program: &CStr) -> bool {
    let name = Path::new(OsStr::from_bytes(program.to_bytes()));
    if program.to_bytes().contains(&b'/') {
        return true;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Reaps and forwards until the command ends; its exit code.
fn stand_by(
    conn: &OwnedFd,
    signals: &SignalFd,
    command: Pid,
    own_group: bool,
    files: &Files,
) -> Result<u8, InsideError> {
    loop {
        let mut fds = [readable(conn.as_fd()), readable(signals.as_fd())];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => return Err(call("poll")(source)),
        }
        let (told, child) = (is_ready(&fds[0]), is_ready(&fds[1]));
        if child {
            while let Ok(Some(_)) = signals.read_signal() {}
            if let Some(code) = reap(conn, command)? {
                return Ok(code);
            }
        }
        if told {
            match attach::recv::<ToSandbox>(conn)?.0 {
                ToSandbox::Signal(number) => {
                    if let Ok(signal) = Signal::try_from(number) {
                        // Ctrl-Z has stopped the whole group, so the whole group goes on.
                        let whole = own_group && signal == Signal::SIGCONT;
                        // ESRCH: it has just ended, as SIGCHLD will tell.
                        let _ = if whole { killpg(command, signal) } else { kill(command, signal) };
                    }
                }
                ToSandbox::Foreground => {
                    let _ = tcsetpgrp(std::io::stdin(), command);
                }
                ToSandbox::Files => {
                    if let Err(error) = files.put_back() {
                        tracing::warn!("the sandbox's files: {}", telemetry::chain(&error));
                    }
                }
                ToSandbox::Mapped | ToSandbox::Go => {}
            }
        }
    }
}

/// Collects every child that ended; the exit code of the command if it was among them.
fn reap(conn: &OwnedFd, command: Pid) -> Result<Option<u8>, InsideError> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == command => code = Some(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => code = Some(128 + signal as u8),
            Ok(WaitStatus::Stopped(pid, _)) if pid == command => attach::send(conn, &FromSandbox::Stopped, &[])?,
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => return Err(call("wait for the command")(source)),
        }
    }
}

/// Without a PID namespace: kills all that the command left, over and over, since each death hands us its children.
fn kill_children() {
    let end = Instant::now() + KILL_TIME;
    let own = format!("/proc/self/task/{}/children", nix::unistd::gettid());
    while Instant::now() < end {
        let children = std::fs::read_to_string(&own).unwrap_or_default();
        for pid in children.split_ascii_whitespace().filter_map(|word| word.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            // Dying takes the kernel a moment; nothing else is left to do here.
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.revents().is_some_and(|events| !events.is_empty())
}
