//! The order of things, and the event loop of one sandbox.
//!
//! ```text
//! start the network process ─┐
//! clone the first process ───┼─ its TAP ─► Attach, Listen, HostDns, Start ─► Ready ─┐
//! write the uid maps ────────┘  Mapped ─► Prepared ────────────────────────────────┴─► Go ─► … ─► Exited
//! ```
//!
//! Both children start at once and in parallel; nothing is waited for but what the next step needs. Then one poll(2) loop
//! serves signals (signalfd), the first process, the network process and the watch on the host's resolv.conf.
//!
//! A network process that dies is replaced at once by one that gets the same TAP and listeners, of which the monitor
//! keeps duplicates; [`MAX_DEATHS`] within [`DEATHS_WITHIN`] end the sandbox with an error. Signals that were sent to the
//! monitor go to the command; those that the terminal sent went to the whole process group anyway. When the command stops
//! (Ctrl-Z, or by itself) the monitor stops, and for no other reason.
//!
//! Whatever ends the loop, both children are dead and reaped when [`run`] returns.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

use super::host_dns::{self, RESOLV_CONF, Watcher};
use super::inside::{self, Setup};
use super::mapping::{MapError, Mapping, Maps};
use super::proto::{FromSandbox, ToSandbox};
use crate::api::attach::{self, AttachError, FromNetwork, MAX_FDS, ToNetwork, VERSION};
use crate::network::config::{EndpointConfig, Listener};
use crate::sys::spawn::{self, Forked};
use crate::telemetry;

/// A network process that dies this often…
const MAX_DEATHS: usize = 3;
/// … within this time is not started again.
const DEATHS_WITHIN: Duration = Duration::from_secs(10);
/// How long a network process may take to leave at the end: it writes out its capture file.
const LEAVE_TIME: Duration = Duration::from_secs(2);

/// When the host's resolv.conf is first looked at again, and watched from then on. Making and above all closing a watch
/// costs milliseconds, which a short command should not pay.
const WATCH_AFTER: Duration = Duration::from_millis(500);

/// Signals that are passed on to the command if somebody sent them to us.
const FORWARDED: [Signal; 9] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// Signals by which a terminal stops its background, and with it our process group: the command acts on them, and what
/// it does we do ([`FromSandbox::Stopped`]).
const IGNORED: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// Everything that was decided before the first process is started.
#[derive(Debug)]
pub struct Plan {
    /// What the network process is told; `offloads` is filled in when the TAP exists.
    pub endpoint: EndpointConfig,
    /// What the first process does.
    pub setup: Setup,
    /// Users; see `sandbox::users`.
    pub maps: Maps,
    /// Name servers given by the user; None follows the host.
    pub dns: Option<Vec<SocketAddr>>,
    /// Published ports, bound.
    pub listeners: Vec<(Listener, OwnedFd)>,
    /// Capture file, open.
    pub pcap: Option<OwnedFd>,
    /// The caller's terminal is shared with the command (same process group).
    pub shares_terminal: bool,
    /// Body of the network process, given its end of the attach connection.
    pub network_process: fn(OwnedFd) -> ExitCode,
}

/// Why the sandbox ended without its command having ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// clone(2).
    #[error("cannot make a sandbox: {hint}")]
    Clone {
        /// What may be the matter.
        hint: String,
        /// Errno.
        #[source]
        source: nix::Error,
    },
    /// A system call of the monitor's own.
    #[error("cannot {what}")]
    Call {
        /// Which.
        what: &'static str,
        /// Errno.
        #[source]
        source: nix::Error,
    },
    /// The maps.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The first process said why.
    #[error("{0}")]
    Inside(String),
    /// The first process died without a word.
    #[error("the first process of the sandbox died ({0})")]
    InitDied(String),
    /// The network process said why.
    #[error("the network process gave up: {0}")]
    Network(String),
    /// The network process keeps dying.
    #[error(
        "the network process died {MAX_DEATHS} times in {within} seconds (the last time: {how}); the sandbox is stopped",
        within = DEATHS_WITHIN.as_secs()
    )]
    NetworkDied {
        /// How it ended the last time.
        how: String,
    },
    /// A connection to a child broke in an unexpected way.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A signal came before the command was started.
    #[error("stopped by {0} before the command was started")]
    Interrupted(Signal),
    /// execve(2) failed.
    #[error("cannot run '{program}': {reason}")]
    NoCommand {
        /// argv\[0\].
        program: String,
        /// Errno in words.
        reason: &'static str,
        /// The errno.
        errno: Errno,
    },
}

impl RunError {
    /// Exit code of `tapway run`: as a shell's for a missing or forbidden program, 128+n for a signal, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::NoCommand { errno: Errno::ENOENT | Errno::ENOTDIR, .. } => 127,
            RunError::NoCommand { .. } => 126,
            RunError::Interrupted(signal) => 128 + *signal as u8,
            _ => 1,
        }
    }
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> RunError {
    move |source| RunError::Call { what, source }
}

/// A child that is killed and reaped when dropped.
#[derive(Debug)]
struct Child {
    pid: Pid,
    reaped: bool,
}

impl Child {
    fn new(pid: Pid) -> Self {
        Self { pid, reaped: false }
    }

    /// How it ended, if it has.
    fn poll_end(&mut self) -> Option<String> {
        self.wait_with(WaitPidFlag::WNOHANG)
    }

    /// Waits for its end.
    fn wait(&mut self) -> Option<String> {
        self.wait_with(WaitPidFlag::empty())
    }

    fn wait_with(&mut self, flags: WaitPidFlag) -> Option<String> {
        while !self.reaped {
            let how = match waitpid(self.pid, Some(flags)) {
                Ok(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
                Ok(WaitStatus::Signaled(_, signal, _)) => format!("{signal}"),
                Ok(WaitStatus::StillAlive) => return None,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => errno.desc().to_owned(),
            };
            self.reaped = true;
            return Some(how);
        }
        None
    }

    /// Gives it `time` to leave by itself, then kills it.
    fn leave(mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.poll_end().is_none() && !self.reaped && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // Not reaped, so the number is still this child's.
            let _ = kill(self.pid, Signal::SIGKILL);
            self.wait();
        }
    }
}

/// A network process and the connection to it.
#[derive(Debug)]
struct Network {
    conn: OwnedFd,
    child: Child,
    ready: bool,
}

struct Monitor {
    plan: Plan,
    sandbox: OwnedFd,
    init: Child,
    network: Network,
    deaths: VecDeque<Instant>,
    /// Duplicate of the guest's TAP, once it exists.
    tap: Option<OwnedFd>,
    servers: Vec<SocketAddr>,
    started: Instant,
    /// From [`WATCH_AFTER`] on.
    watcher: Option<Watcher>,
    prepared: bool,
    gone: bool,
    /// The command's process group is the terminal's foreground.
    lent_terminal: bool,
}

/// What the watcher looks for beside resolv.conf.
const ALSO_WATCHED: [&str; 1] = ["hosts"];

/// Runs the sandbox to its end: the command's exit code.
pub fn run(plan: Plan) -> Result<u8, RunError> {
    let signals = block_signals()?;
    // First, so that it starts up while the kernel makes the namespaces.
    let network = start_network(plan.network_process)?;
    let (sandbox, init) = start_init(&plan)?;
    // These take longest to start, so all else is done while they run.
    let maps = plan.maps.clone();
    let mapping = Mapping::start(init.pid, &maps);
    let servers = match &plan.dns {
        Some(servers) => servers.clone(),
        None => host_dns::servers(&host_dns::read(Path::new(RESOLV_CONF))),
    };
    let mut monitor = Monitor {
        plan,
        sandbox,
        init,
        network,
        deaths: VecDeque::new(),
        tap: None,
        servers,
        started: Instant::now(),
        watcher: None,
        prepared: false,
        gone: false,
        lent_terminal: false,
    };
    monitor.lent_terminal = monitor.plan.setup.foreground;
    let result = monitor.begin(mapping).and_then(|()| monitor.serve(&signals));
    monitor.take_terminal();
    // First the command and all it started, then its network. The last close of a TAP waits for the kernel (some 15 ms,
    // as does that of the watch), so it is left to the network process, and runs while we close the rest.
    let Monitor { sandbox, init, network: Network { conn, child, .. }, tap, plan, watcher, .. } = monitor;
    drop(sandbox);
    drop(init);
    drop(tap);
    drop(conn);
    drop(plan);
    drop(watcher);
    child.leave(LEAVE_TIME);
    result
}

/// A closed connection is noticed where it is read, with the reason.
fn ignore_closed(error: AttachError) -> Result<(), AttachError> {
    match error {
        AttachError::Closed => Ok(()),
        other => Err(other),
    }
}

fn block_signals() -> Result<SignalFd, RunError> {
    // An ignored SIGCHLD would reap our children for us.
    spawn::default_signal(Signal::SIGCHLD);
    let mut set = SigSet::empty();
    FORWARDED.into_iter().chain(IGNORED).chain([Signal::SIGCHLD]).for_each(|signal| set.add(signal));
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(call("block signals"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(call("make a signalfd"))
}

/// Stops this process as Ctrl-Z would, until SIGCONT. (Where no shell could go on with it, in an orphaned process group,
/// the kernel does not stop it.)
fn stop() -> Result<(), RunError> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTSTP);
    kill(Pid::this(), Signal::SIGTSTP).map_err(call("stop with the command"))?;
    for how in [SigmaskHow::SIG_UNBLOCK, SigmaskHow::SIG_BLOCK] {
        pthread_sigmask(how, Some(&set), None).map_err(call("stop with the command"))?;
    }
    Ok(())
}

fn connection() -> Result<(OwnedFd, OwnedFd), RunError> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(call("make a socket pair"))
}

/// Forks the network process. It has a session of its own, so that no terminal signals it, and only its end of the
/// connection and stderr (for its log) are left to it.
fn start_network(body: fn(OwnedFd) -> ExitCode) -> Result<Network, RunError> {
    let (ours, theirs) = connection()?;
    match spawn::fork().map_err(call("fork the network process"))? {
        Forked::Parent(pid) => Ok(Network { conn: ours, child: Child::new(pid), ready: false }),
        Forked::Child => spawn::leave_with(|| {
            spawn::close_all_but(&[theirs.as_fd()]);
            let _ = nix::unistd::setsid();
            if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stdin(&null);
                let _ = nix::unistd::dup2_stdout(&null);
            }
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            u8::from(body(theirs) != ExitCode::SUCCESS)
        }),
    }
}

/// Clones the first process into the new namespaces.
fn start_init(plan: &Plan) -> Result<(OwnedFd, Child), RunError> {
    let (ours, theirs) = connection()?;
    let mut flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if plan.setup.own_pids {
        flags |= CloneFlags::CLONE_NEWPID;
    }
    match spawn::clone_into(flags) {
        Ok(Forked::Parent(pid)) => Ok((ours, Child::new(pid))),
        Ok(Forked::Child) => spawn::leave_with(|| {
            spawn::close_all_but(&[theirs.as_fd()]);
            inside::main(&theirs, &plan.setup)
        }),
        Err(source) => Err(RunError::Clone { hint: clone_hint(), source }),
    }
}

/// What forbids user namespaces here, as far as sysctls tell.
fn clone_hint() -> String {
    let value = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    for (path, bad, remedy) in [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
        ("user/max_net_namespaces", "0", "user.max_net_namespaces=10000"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ] {
        if value(&format!("/proc/sys/{path}")).as_deref() == Some(bad) {
            let name = path.replace('/', ".");
            return format!("sysctl {name} is {bad}, which forbids it; set {remedy} (sysctl -w, as root)");
        }
    }
    "user or network namespaces are not to be had here; `tapway doctor` tries out why".to_owned()
}

impl Monitor {
    /// Up to the first process having its maps; it makes the TAP meanwhile.
    fn begin(&mut self, mapping: Mapping<'_>) -> Result<(), RunError> {
        let tap = self.handle_sandbox();
        // Also after a failure: helpers are waited for.
        let mapped = mapping.finish(self.init.pid);
        tap?;
        mapped?;
        self.tell(&ToSandbox::Mapped)
    }

    fn serve(&mut self, signals: &SignalFd) -> Result<u8, RunError> {
        loop {
            let watch = self.watcher.as_ref().and_then(Watcher::fd);
            let timeout = match (&self.watcher, watch) {
                (Some(_), Some(_)) => PollTimeout::NONE,
                (Some(_), None) => timeout_of(host_dns::FALLBACK),
                (None, _) => timeout_of(WATCH_AFTER.saturating_sub(self.started.elapsed())),
            };
            let mut fds = vec![
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.sandbox.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.network.conn.as_fd(), PollFlags::POLLIN),
            ];
            fds.extend(watch.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            let happened = match poll(&mut fds, timeout) {
                Ok(happened) => happened,
                Err(Errno::EINTR) => continue,
                Err(source) => return Err(call("poll")(source)),
            };
            let ready: Vec<bool> = fds.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect();
            let [signalled, sandbox, network] = [ready[0], ready[1], ready[2]];
            let watched = ready.get(3).copied().unwrap_or(happened == 0 || self.watcher.is_none());
            if signalled {
                self.handle_signals(signals)?;
            }
            if sandbox && let Some(code) = self.handle_sandbox()? {
                return Ok(code);
            }
            if network {
                self.handle_network()?;
            }
            let first = self.watcher.is_none();
            if watched && self.is_host_changed() {
                self.handle_host_files()?;
            }
            if first && self.watcher.is_some() {
                // Everything is under way: from here on there is little to do but wait.
                crate::sys::memory::drop_text();
            }
        }
    }

    fn handle_signals(&mut self, signals: &SignalFd) -> Result<(), RunError> {
        while let Ok(Some(info)) = signals.read_signal() {
            let Ok(signal) = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL).and_then(Signal::try_from) else {
                continue;
            };
            // What the terminal sends goes to the whole process group: the command with us, unless it has its own.
            let from_terminal =
                info.ssi_code == libc::SI_KERNEL && self.plan.shares_terminal && !self.plan.setup.own_group;
            match signal {
                // Ends show on the connections, after the last words.
                Signal::SIGCHLD | Signal::SIGTTIN | Signal::SIGTTOU => {}
                _ if from_terminal && self.gone => {}
                Signal::SIGCONT if self.gone => {
                    self.lend_terminal()?;
                    self.tell(&ToSandbox::Signal(signal as i32))?;
                }
                _ if self.gone => self.tell(&ToSandbox::Signal(signal as i32))?,
                Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT => {
                    return Err(RunError::Interrupted(signal));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes our group the terminal's foreground again, if the command's is.
    fn take_terminal(&mut self) {
        if std::mem::take(&mut self.lent_terminal) {
            // SIGTTOU is blocked. A terminal that is gone needs no owner.
            let _ = tcsetpgrp(std::io::stdin(), getpgrp());
        }
    }

    /// Makes the command's group the foreground, if a shell has made ours so.
    fn lend_terminal(&mut self) -> Result<(), RunError> {
        if self.plan.setup.foreground && tcgetpgrp(std::io::stdin()) == Ok(getpgrp()) {
            self.lent_terminal = true;
            self.tell(&ToSandbox::Foreground)?;
        }
        Ok(())
    }

    fn tell(&self, message: &ToSandbox) -> Result<(), RunError> {
        Ok(attach::send(&self.sandbox, message, &[]).or_else(ignore_closed)?)
    }

    /// One message of the first process; the exit code if it is the last.
    fn handle_sandbox(&mut self) -> Result<Option<u8>, RunError> {
        let (message, mut fds) = match attach::recv::<FromSandbox>(&self.sandbox) {
            Ok(got) => got,
            Err(AttachError::Closed) => {
                let how = self.init.wait().unwrap_or_default();
                return Err(RunError::InitDied(how));
            }
            Err(error) => return Err(error.into()),
        };
        match message {
            FromSandbox::Tap { offloads } => {
                let tap = fds.pop().ok_or(RunError::InitDied("it sent no TAP".to_owned()))?;
                self.tap = Some(tap);
                self.plan.endpoint.offloads = offloads;
                tracing::info!(
                    vnet_hdr = offloads.vnet_hdr,
                    csum = offloads.csum,
                    tso4 = offloads.tso4,
                    tso6 = offloads.tso6,
                    uso = offloads.uso,
                    "the TAP's offloads"
                );
                self.attach()?;
            }
            FromSandbox::Prepared { notes } => {
                for note in notes {
                    tracing::info!("{note}");
                }
                self.prepared = true;
                self.go_if_ready()?;
            }
            FromSandbox::Stopped => {
                // With a shared terminal the shell that started us is to see a stopped job.
                if self.plan.shares_terminal {
                    self.take_terminal();
                    stop()?;
                }
            }
            FromSandbox::NoCommand { errno } => {
                let program = self.plan.setup.command.first().map(|c| c.to_string_lossy().into_owned());
                let errno = Errno::from_raw(errno);
                let reason = match errno {
                    Errno::ENOENT => "no such program; give a path, or a name found in PATH",
                    other => other.desc(),
                };
                return Err(RunError::NoCommand { program: program.unwrap_or_default(), reason, errno });
            }
            FromSandbox::Exited { code } => return Ok(Some(code)),
            FromSandbox::Failed { desc } => return Err(RunError::Inside(desc)),
        }
        Ok(None)
    }

    fn go_if_ready(&mut self) -> Result<(), RunError> {
        if self.prepared && self.network.ready && !self.gone {
            self.gone = true;
            self.tell(&ToSandbox::Go)?;
        }
        Ok(())
    }

    /// Tells the network process everything, with duplicates of every descriptor.
    fn attach(&self) -> Result<(), RunError> {
        let Some(tap) = &self.tap else { return Ok(()) };
        let conn = self.network.conn.as_fd();
        let send = |message: &ToNetwork, fds: &[BorrowedFd<'_>]| {
            let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
            attach::send(conn, message, &raw).or_else(ignore_closed)
        };
        let mut fds = vec![tap.as_fd()];
        fds.extend(self.plan.pcap.as_ref().map(AsFd::as_fd));
        let endpoint = Box::new(self.plan.endpoint.clone());
        send(&ToNetwork::Attach { version: VERSION, endpoint, pcap: self.plan.pcap.is_some() }, &fds)?;
        for batch in self.plan.listeners.chunks(MAX_FDS) {
            let listeners = batch.iter().map(|(listener, _)| *listener).collect();
            let fds: Vec<BorrowedFd<'_>> = batch.iter().map(|(_, fd)| fd.as_fd()).collect();
            send(&ToNetwork::Listen { listeners }, &fds)?;
        }
        send(&ToNetwork::HostDns { servers: self.servers.clone(), zones: Vec::new() }, &[])?;
        send(&ToNetwork::Start, &[])?;
        Ok(())
    }

    fn handle_network(&mut self) -> Result<(), RunError> {
        match attach::recv::<FromNetwork>(&self.network.conn) {
            Ok((FromNetwork::Ready, _)) => {
                self.network.ready = true;
                self.go_if_ready()
            }
            Ok((FromNetwork::Failed { desc }, _)) => Err(RunError::Network(desc)),
            Err(AttachError::Closed) => self.replace_network(),
            Err(error) => {
                tracing::warn!("the network process talks nonsense and is replaced: {}", telemetry::chain(&error));
                self.replace_network()
            }
        }
    }

    /// The connection is gone: reaps the old process, starts and attaches a new one.
    fn replace_network(&mut self) -> Result<(), RunError> {
        // Where only the connection is gone, the process goes now.
        let _ = kill(self.network.child.pid, Signal::SIGKILL);
        let how = self.network.child.wait().unwrap_or_default();
        let now = Instant::now();
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|&death| now.duration_since(death) > DEATHS_WITHIN) {
            self.deaths.pop_front();
        }
        if self.deaths.len() >= MAX_DEATHS {
            return Err(RunError::NetworkDied { how });
        }
        tracing::warn!("the network process died ({how}); starting another");
        self.network = start_network(self.plan.network_process)?;
        self.attach()
    }

    /// True if the host's files may have changed; begins to watch them if nobody does yet.
    fn is_host_changed(&mut self) -> bool {
        match &mut self.watcher {
            Some(watcher) => watcher.changed(&ALSO_WATCHED),
            None if self.started.elapsed() < WATCH_AFTER => false,
            None => {
                self.watcher = Some(Watcher::new(Path::new(RESOLV_CONF), &ALSO_WATCHED));
                true
            }
        }
    }

    /// The host's resolv.conf or hosts changed, or the way to it.
    fn handle_host_files(&mut self) -> Result<(), RunError> {
        // A rename over the host's file takes our mount in the sandbox away.
        self.tell(&ToSandbox::Files)?;
        if self.plan.dns.is_some() {
            return Ok(());
        }
        let servers = host_dns::servers(&host_dns::read(Path::new(RESOLV_CONF)));
        if servers != self.servers {
            tracing::info!(?servers, "the host's name servers changed");
            self.servers = servers;
            if self.tap.is_some() {
                let message = ToNetwork::HostDns { servers: self.servers.clone(), zones: Vec::new() };
                attach::send(&self.network.conn, &message, &[]).or_else(ignore_closed)?;
            }
        }
        Ok(())
    }
}

/// As poll(2) takes it: milliseconds, rounded up.
fn timeout_of(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}
