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

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, tcsetpgrp};

use super::command::{Fault, Start};
use super::files::{self, Content, Files, FilesError};
use super::interface::Interface;
use super::join::Donor;
use super::netlink::{self, NetlinkError};
use super::networks_inside::Networks;
use super::proto::{FromSandbox, ToSandbox};
use super::tap::TapError;
use super::users::Identity;
use crate::api::attach::{self, AttachError};
use crate::telemetry;

/// Name of the first interface.
pub const INTERFACE: &str = "eth0";

/// How long a sandbox without a PID namespace goes on killing what its command left behind.
const KILL_TIME: Duration = Duration::from_secs(2);

/// Where the sandbox is.
#[derive(Debug)]
pub enum Scope {
    /// In a network namespace of its own, with eth0.
    Interface,
    /// In one with nothing but lo.
    Loopback,
    /// In the host's network.
    Host,
    /// In another sandbox's network, with its host name and files.
    Joined(Donor),
}

impl Scope {
    /// As it is said to whoever wants to change the network.
    pub fn network(&self) -> &'static str {
        match self {
            Self::Interface => "it is on none; `tapway network connect` is how it gets on one",
            Self::Loopback => "--network none",
            Self::Host => "--network host",
            Self::Joined(_) => "it uses another sandbox's; ask that one",
        }
    }
}

/// Everything the first process must know; it has it from the monitor's memory.
#[derive(Debug)]
pub struct Setup {
    /// Where the sandbox is.
    pub scope: Scope,
    /// What its interfaces are to be, if it gets any.
    pub interfaces: Vec<Interface>,
    /// Their names, in the order of their ranks.
    pub order: Vec<String>,
    /// Host name.
    pub hostname: String,
    /// Text of /etc/hosts; None: the host's own.
    pub hosts: Option<String>,
    /// Text of /etc/resolv.conf; None: the host's own.
    pub resolv_conf: Option<String>,
    /// The same where names cannot be asked for at [`EMBEDDED_DNS`](crate::stack::policy::EMBEDDED_DNS).
    pub plain_resolv_conf: Option<String>,
    /// tapway's own directories, to be hidden; the first exists.
    pub hidden: Vec<PathBuf>,
    /// A PID namespace of its own.
    pub own_pids: bool,
    /// Who the command is, inside.
    pub identity: Identity,
    /// First and last group that may open ping sockets inside: as many as are mapped.
    pub ping_groups: (u32, u32),
    /// The command.
    pub start: Start,
}

/// Why the first process cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum InsideError {
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
    let mut notes = Vec::new();
    let mut networks = Networks::default();
    let mut embedded_dns = false;
    match setup.scope {
        Scope::Interface => embedded_dns = networks.make(conn, setup, &mut notes)?,
        Scope::Loopback => netlink::bring_up_loopback()?,
        Scope::Host | Scope::Joined(_) => {}
    }
    // Nothing else is sent before the maps are there.
    let (ToSandbox::Mapped, _) = attach::recv::<ToSandbox>(conn)? else {
        return Err(call("be told of the uid map")(Errno::EPROTO));
    };
    let (files, opened) = make_files(setup, embedded_dns, &mut notes)?;
    let raw: Vec<_> = opened.iter().map(AsRawFd::as_raw_fd).collect();
    attach::send(conn, &FromSandbox::Prepared { notes, embedded_dns }, &raw)?;
    drop(opened);
    // Not a signal for a command that is not there yet; a change of the host's files can wait, too.
    while !matches!(attach::recv::<ToSandbox>(conn)?.0, ToSandbox::Go) {}
    files.put_back()?;
    supervise(conn, setup, &files, networks)
}

fn make_files(
    setup: &Setup,
    embedded_dns: bool,
    notes: &mut Vec<String>,
) -> Result<(Files, Vec<OwnedFd>), InsideError> {
    // Whoever reads it must find somebody there.
    let resolv_conf = if embedded_dns { &setup.resolv_conf } else { &setup.plain_resolv_conf };
    let mut contents = Vec::new();
    if let Scope::Joined(donor) = &setup.scope {
        let entries = ["/etc/resolv.conf", "/etc/hosts"];
        let mounts = donor.copy_mounts(&entries).map_err(call("get at the other sandbox's files"))?;
        contents.extend(entries.into_iter().zip(mounts.into_iter().map(Content::Mount)));
    } else {
        sethostname(&setup.hostname).map_err(call("set the host name"))?;
        let texts = [("/etc/resolv.conf", resolv_conf), ("/etc/hosts", &setup.hosts)];
        contents.extend(texts.into_iter().filter_map(|(entry, text)| Some((entry, Content::Text(text.as_deref()?)))));
    }
    if matches!(setup.scope, Scope::Interface | Scope::Loopback) {
        set_up_network(setup, notes);
    }
    files::make_private()?;
    let placed = Files::place(&setup.hidden, contents)?;
    // Only who owns a network may mount its /sys.
    if !matches!(setup.scope, Scope::Host)
        && let Err(errno) = files::mount_sys()
    {
        notes.push(format!("/sys inside still shows the host's interfaces: {errno}"));
    }
    if setup.own_pids
        && let Err(errno) = files::mount_proc()
    {
        notes.push(format!("/proc inside is the host's (its numbers are not those of the sandbox): {errno}"));
    }
    Ok(placed)
}

/// As in Docker: no port is privileged in a network of one's own, and every group may ping.
fn set_up_network(setup: &Setup, notes: &mut Vec<String>) {
    let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    let (first, last) = setup.ping_groups;
    for (name, value) in
        [("ip_unprivileged_port_start", "0".to_owned()), ("ping_group_range", format!("{first} {last}"))]
    {
        if let Err(error) = set(name, &value) {
            notes.push(format!("net.ipv4.{name} inside stays as it is: {error}"));
        }
    }
}

/// Starts the command and stands by it to its end.
fn supervise(conn: &OwnedFd, setup: &Setup, files: &Files, networks: Networks) -> Result<(), InsideError> {
    let mut only_child = SigSet::empty();
    only_child.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&only_child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(call("make a signalfd"))?;
    let command = match setup.start.run().map_err(call("start the command"))? {
        Ok(pid) => pid,
        Err(Fault::Program(errno) | Fault::Directory(errno) | Fault::User(errno)) => {
            attach::send(conn, &FromSandbox::NoCommand { errno: errno as i32 }, &[])?;
            return Ok(());
        }
    };
    attach::send(conn, &FromSandbox::Started, &[])?;
    crate::sys::memory::drop_text();
    let code = stand_by(conn, &signals, command, setup.start.own_group, files, networks);
    if !setup.own_pids {
        kill_children();
    }
    // An error means that the monitor is gone: then all that was wanted is that the command is, too.
    attach::send(conn, &FromSandbox::Exited { code: code? }, &[])?;
    Ok(())
}

/// Reaps and forwards until the command ends; its exit code.
fn stand_by(
    conn: &OwnedFd,
    signals: &SignalFd,
    command: Pid,
    own_group: bool,
    files: &Files,
    mut networks: Networks,
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
                ToSandbox::Broken { name } => networks.end_connections(&name, false),
                ToSandbox::Connect(interface) => networks.connect(conn, interface)?,
                ToSandbox::Order { names } => attach::send(conn, &networks.arrange(&names), &[])?,
                ToSandbox::Leave { name, others } => {
                    let ordered = networks.arrange(&others);
                    networks.end_connections(&name, true);
                    attach::send(conn, &ordered, &[])?;
                }
                ToSandbox::Delete { name } => {
                    networks.delete(&name);
                    attach::send(conn, &FromSandbox::Deleted, &[])?;
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
pub(super) fn kill_children() {
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
