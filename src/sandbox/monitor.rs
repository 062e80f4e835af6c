//! The order of things, and the event loop of one sandbox.
//!
//! ```text
//! start the network process ─┐
//! clone the first process ───┼─ its TAP ─► Attach, Listen, HostDns, Start ─► Ready ─┐
//! write the uid maps ────────┘  Mapped ─► Prepared ────────────────────────────────┴─► Go ─► … ─► Exited
//! ```
//!
//! Both children start at once and in parallel; nothing is waited for but what the next step needs. Then one poll(2) loop
//! serves signals (signalfd), the first process, the network process, the watch on the host's resolv.conf and the clients
//! of the control socket (`sandbox::control`; what they ask is done by `sandbox::desk`).
//!
//! A network process that dies is replaced at once by one that gets the same TAP and listeners, of which the monitor
//! keeps duplicates; [`MAX_DEATHS`] within [`DEATHS_WITHIN`] end the sandbox with an error. Signals that were sent to the
//! monitor go to the command; those that the terminal sent went to the whole process group anyway. When the command stops
//! (Ctrl-Z, or by itself) the monitor stops, and for no other reason.
//!
//! Whatever ends the loop, both children are dead and reaped when [`run`] returns.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

use super::control::{self, Server, Watched};
use super::desk::{Answered, Desk, Identity};
use super::edit::Edited;
use super::host_dns::{self, RESOLV_CONF, Watcher};
use super::inside::{self, Setup};
use super::link::Link;
use super::mapping::{MapError, Mapping, Maps};
use super::proto::{FromSandbox, ToSandbox};
use super::state::{self, Entry};
use crate::api::attach::{self, AttachError, FromNetwork};
use crate::api::session::Limits;
use crate::api::verbs;
use crate::network::config::{EndpointConfig, Listener};
use crate::network::desired::Desired;
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
    /// DNS settings and hosts.
    pub desired: Desired,
    /// Name and id.
    pub identity: Identity,
    /// The sandbox's place among those that run.
    pub entry: Entry,
    /// The listening control socket, where it could be had.
    pub control: Option<UnixListener>,
    /// Published ports, bound.
    pub listeners: Vec<(Listener, OwnedFd)>,
    /// Where metrics are served, and the listening socket there.
    pub metrics: Option<(SocketAddr, OwnedFd)>,
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
    link: Link,
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
    tap: Option<Rc<OwnedFd>>,
    pcap: Option<Rc<OwnedFd>>,
    desk: Desk,
    control: Option<Server>,
    /// Lines of the sandbox's files as the first process writes them.
    ours: Ours,
    started: Instant,
    /// From [`WATCH_AFTER`] on.
    watcher: Option<Watcher>,
    prepared: bool,
    gone: bool,
    /// The command's process group is the terminal's foreground.
    lent_terminal: bool,
}

/// Lines of the sandbox's files that are ours to change.
#[derive(Clone, Debug)]
struct Ours {
    hosts: Vec<String>,
    resolv: Vec<String>,
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
    let mut plan = plan;
    let mut desk = Desk::new(
        plan.identity.clone(),
        plan.endpoint.clone(),
        std::mem::take(&mut plan.listeners),
        plan.desired.clone(),
        host_dns::servers(&host_dns::read(Path::new(RESOLV_CONF))),
    );
    desk.network_pid = network.child.pid.as_raw();
    desk.metrics = plan.metrics.take().map(|(address, socket)| (address, Rc::new(socket)));
    let control = plan.control.take().map(|listener| Server::new(listener, verbs::ALL, Limits::default()));
    let pcap = plan.pcap.take().map(Rc::new);
    let mut monitor = Monitor {
        plan,
        sandbox,
        init,
        network,
        deaths: VecDeque::new(),
        tap: None,
        pcap,
        ours: Ours { hosts: desk.host_lines(), resolv: desk.resolv_lines() },
        desk,
        control,
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
    let Monitor {
        sandbox, init, network: Network { link, child, .. }, tap, pcap, plan, desk, control, watcher, ..
    } = monitor;
    drop(sandbox);
    drop(init);
    drop(tap);
    drop(pcap);
    drop(link);
    drop(desk);
    drop(control);
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
        Forked::Parent(pid) => {
            let child = Child::new(pid);
            let link = Link::new(ours).map_err(call("make the attach connection non-blocking"))?;
            Ok(Network { link, child, ready: false })
        }
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
            let (ready, clients, happened) = match self.wait(signals) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(source) => return Err(call("poll")(source)),
            };
            let [signalled, sandbox, network, watched] = ready;
            let watched = watched.unwrap_or(happened == 0 || self.watcher.is_none());
            if signalled == Some(true) {
                self.handle_signals(signals)?;
            }
            if sandbox == Some(true)
                && let Some(code) = self.handle_sandbox()?
            {
                return Ok(code);
            }
            if network == Some(true) {
                self.handle_network()?;
            }
            self.handle_clients(&clients)?;
            let first = self.watcher.is_none();
            if watched && self.is_host_changed() {
                self.handle_host_files()?;
            }
            self.settle()?;
            if first && self.watcher.is_some() {
                // Everything is under way: from here on there is little to do but wait.
                crate::sys::memory::drop_text();
            }
        }
    }

    /// Waits for something to happen: which of signals, sandbox, network process and watch are ready (None: not waited
    /// for), and what became of each client.
    #[allow(clippy::type_complexity, reason = "read at one place")]
    fn wait(&self, signals: &SignalFd) -> nix::Result<([Option<bool>; 4], Vec<(Watched, PollFlags)>, i32)> {
        let watch = self.watcher.as_ref().and_then(Watcher::fd);
        let now = self.started.elapsed();
        let mut wait = match (&self.watcher, watch) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(host_dns::FALLBACK),
            (None, _) => Some(WATCH_AFTER.saturating_sub(now)),
        };
        let clients = self.control.as_ref().and_then(Server::next_timeout);
        for at in [clients, self.desk.next_timeout()].into_iter().flatten() {
            let left = at.saturating_sub(now);
            wait = Some(wait.map_or(left, |wait| wait.min(left)));
        }
        let link = &self.network.link;
        let output = if link.wants_output() { PollFlags::POLLOUT } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.sandbox.as_fd(), PollFlags::POLLIN),
            PollFd::new(link.fd(), PollFlags::POLLIN | output),
        ];
        fds.extend(watch.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let own = fds.len();
        let clients = self.control.as_ref().map(Server::interests).unwrap_or_default();
        fds.extend(clients.iter().map(|&(_, fd, flags)| PollFd::new(fd, flags)));
        let happened = poll(&mut fds, wait.map_or(PollTimeout::NONE, timeout_of))?;
        let events = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let ready = [0, 1, 2, 3].map(|at| (at < own).then(|| !events(&fds[at]).is_empty()));
        let clients = clients.iter().zip(&fds[own..]).map(|(&(what, ..), fd)| (what, events(fd)));
        Ok((ready, clients.filter(|(_, events)| !events.is_empty()).collect(), happened))
    }

    /// Whatever clients did, and what they ask for.
    fn handle_clients(&mut self, ready: &[(Watched, PollFlags)]) -> Result<(), RunError> {
        let now = self.started.elapsed();
        let Some(control) = &mut self.control else { return Ok(()) };
        for &(what, events) in ready {
            control.handle(what, events, now);
        }
        control.handle_timeout(now);
        control.set_more(false);
        self.desk.retain_subscribers(|key| control.is_there(key));
        for taken in 1.. {
            let Some((key, request, fds)) = control.next_request(now) else { break };
            let about = (now, control.connection(key).filter(|_| request.verb == "subscribe"));
            if let Some(reply) = self.desk.obey(key, request, fds, &mut self.network.link, now, about)? {
                control.reply(key, reply, now);
            }
            if taken == control::REQUESTS {
                control.set_more(true);
                break;
            }
        }
        Ok(())
    }

    fn answer(&mut self, answered: Vec<Answered>) {
        let now = self.started.elapsed();
        let Some(control) = &mut self.control else { return };
        for Answered { key, reply } in answered {
            match reply {
                Some(reply) => control.reply(key, reply, now),
                None => control.subscribe(key),
            }
        }
    }

    /// What is left to do at the end of a turn.
    fn settle(&mut self) -> Result<(), RunError> {
        let now = self.started.elapsed();
        let late = self.desk.handle_timeout(now, &mut self.network.link)?;
        self.answer(late);
        self.desk.tell_due(&mut self.network.link)?;
        self.network.link.flush()?;
        if std::mem::take(&mut self.desk.stale) {
            let Identity { id, name } = self.plan.identity.clone();
            let state = state::Sandbox { id, name, pid: std::process::id(), ports: self.desk.ports.listeners() };
            if let Err(error) = self.plan.entry.update(&state) {
                tracing::warn!("{}", telemetry::chain(&error));
            }
        }
        Ok(())
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
                self.tap = Some(Rc::new(tap));
                self.desk.endpoint.offloads = offloads;
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
                if let (Some(hosts), Some(resolv)) = (fds.pop(), fds.pop()) {
                    let Ours { hosts: host_lines, resolv: resolv_lines } = self.ours.clone();
                    self.desk.handle_files(Edited::new(resolv, resolv_lines), Edited::new(hosts, host_lines));
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
    fn attach(&mut self) -> Result<(), RunError> {
        let Some(tap) = &self.tap else { return Ok(()) };
        let link = &mut self.network.link;
        self.desk.attach(link, tap, self.pcap.as_ref())?;
        let control = self.control.as_ref();
        Ok(self.desk.resume(link, self.started.elapsed(), |key| control?.connection(key))?)
    }

    /// Everything that the network process has said.
    fn handle_network(&mut self) -> Result<(), RunError> {
        loop {
            match self.network.link.hear() {
                Ok(None) => return Ok(()),
                Ok(Some(FromNetwork::Ready)) => {
                    self.network.ready = true;
                    self.go_if_ready()?;
                }
                Ok(Some(FromNetwork::Failed { desc })) => return Err(RunError::Network(desc)),
                Ok(Some(word)) => {
                    let answered = self.desk.handle_word(word, &mut self.network.link)?;
                    self.answer(answered);
                }
                Err(AttachError::Closed) => return self.replace_network(),
                Err(error) => {
                    tracing::warn!("the network process talks nonsense and is replaced: {}", telemetry::chain(&error));
                    return self.replace_network();
                }
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
        let answered = self.desk.handle_lost();
        self.answer(answered);
        self.network = start_network(self.plan.network_process)?;
        self.desk.network_pid = self.network.child.pid.as_raw();
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
        self.desk.handle_host_servers(host_dns::servers(&host_dns::read(Path::new(RESOLV_CONF))));
        Ok(())
    }
}

/// As poll(2) takes it: milliseconds, rounded up.
fn timeout_of(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}
