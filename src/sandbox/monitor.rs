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
//! keeps duplicates (`sandbox::uplink`, also for the process of a shared network, which is nobody's child). Signals that were sent to the
//! monitor go to the command; those that the terminal sent went to the whole process group anyway. When the command stops
//! (Ctrl-Z, or by itself) the monitor stops, and for no other reason.
//!
//! Whatever ends the loop, both children are dead and reaped when [`run`] returns.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::json;

use super::child::Child;
use super::command;
use super::control::{self, Key, Server, Watched};
use super::desk::{Answered, Desk, Identity};
use super::edit::Edited;
use super::host_dns::{self, RESOLV_CONF, Watcher};
use super::inside::{self, Scope, Setup};
use super::jobs::{self, Terminal};
use super::join::JoinError;
use super::life::{self, Due, Stopping, Wish};
use super::logs::output::{Abandoned, Output};
use super::mapping::{MapError, Mapping, Maps};
use super::proto::{FromSandbox, ToSandbox};
use super::state::{self, About, Entry};
use super::uplink::{Source, Uplink, UplinkError};
use crate::api::attach::{self, AttachError, FromNetwork};
use crate::api::error::{self, ApiError, Code};
use crate::api::session::{Limits, Request};
use crate::api::verbs::{self, life::Stopped};
use crate::network::config::{EndpointConfig, Listener};
use crate::network::desired::Desired;
use crate::sys::spawn::{self, Forked};
use crate::telemetry;

/// Exit code of a command that was killed.
const KILLED: u8 = 128 + Signal::SIGKILL as u8;

/// When the host's resolv.conf is first looked at again, and watched from then on. Making and above all closing a watch
/// costs milliseconds, which a short command should not pay.
const WATCH_AFTER: Duration = Duration::from_millis(500);

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
    /// Where the network process comes from.
    pub source: Source,
    /// What the state file tells of it.
    pub about: About,
    /// Where the command's output goes, if not to the caller (`tapway run --detach`).
    pub output: Option<Output>,
}

impl Plan {
    /// The namespaces that are not the host's.
    fn namespaces(&self) -> CloneFlags {
        let own_pids = if self.setup.own_pids { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
        let others = match &self.setup.scope {
            Scope::Interface | Scope::Loopback => CloneFlags::CLONE_NEWNET | NAMESPACES,
            Scope::Host => NAMESPACES,
            Scope::Joined(donor) => donor.namespaces.iter().map(|&(flag, _)| flag).collect(),
        };
        CloneFlags::CLONE_NEWNS | own_pids | others
    }
}

/// What every sandbox has of its own that does not join another, beside mounts.
const NAMESPACES: CloneFlags =
    CloneFlags::CLONE_NEWUSER.union(CloneFlags::CLONE_NEWUTS).union(CloneFlags::CLONE_NEWIPC);

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
    /// The other sandbox.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The caller is gone.
    #[error(transparent)]
    Abandoned(#[from] Abandoned),
    /// The first process said why.
    #[error("{0}")]
    Inside(String),
    /// The first process died without a word.
    #[error("the first process of the sandbox died ({0})")]
    InitDied(String),
    /// The network process said why.
    #[error("the network process gave up: {0}")]
    Network(String),
    /// There is none, or none any more.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
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
            RunError::NoCommand { errno, .. } => command::exit_code(*errno),
            RunError::Interrupted(signal) => 128 + *signal as u8,
            _ => 1,
        }
    }
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> RunError {
    move |source| RunError::Call { what, source }
}

struct Monitor {
    plan: Plan,
    sandbox: OwnedFd,
    init: Child,
    /// None where the sandbox has no interface of its own.
    network: Option<Uplink>,
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
    terminal: Terminal,
    stopping: Stopping,
    output: Option<Output>,
}

/// What has happened.
struct Ready {
    signals: bool,
    sandbox: bool,
    network: bool,
    /// None: there is no watch to wait for.
    watch: Option<bool>,
    clients: Vec<(Watched, PollFlags)>,
    /// Streams of [`Output`].
    output: Vec<usize>,
    /// How much of it, at all.
    count: i32,
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
pub fn run(mut plan: Plan) -> Result<u8, RunError> {
    let mut output = plan.output.take();
    let result = run_with(plan, &mut output);
    if let Some(output) = output {
        // It was not begun.
        end_output(output, &result);
    }
    result
}

fn end_output(output: Output, result: &Result<u8, RunError>) {
    let code = result.as_ref().map_or_else(RunError::exit_code, |&code| code);
    output.end(code, result.as_ref().err().map(|error| telemetry::chain(error)));
}

fn run_with(mut plan: Plan, output: &mut Option<Output>) -> Result<u8, RunError> {
    let signals = jobs::block_signals().map_err(call("block signals"))?;
    // First, so that it starts up while the kernel makes the namespaces.
    let network = plan.source.open()?;
    let (sandbox, init) = start_init(&plan)?;
    plan.about.init = u32::try_from(init.pid.as_raw()).ok();
    plan.setup.start.stdio = None;
    // These take longest to start, so all else is done while they run.
    let maps = plan.maps.clone();
    let mapping = Mapping::start(init.pid, &maps);
    let terminal = Terminal::new(plan.setup.start.foreground);
    let mut desk = Desk::new(
        plan.identity.clone(),
        plan.endpoint.clone(),
        std::mem::take(&mut plan.listeners),
        plan.desired.clone(),
        host_dns::servers(&host_dns::read(Path::new(RESOLV_CONF))),
    );
    desk.network_pid = network.as_ref().map_or(0, Uplink::pid);
    desk.membership = plan.source.membership().cloned();
    desk.metrics = plan.metrics.take().map(|(address, socket)| (address, Rc::new(socket)));
    let control = plan.control.take().map(|listener| Server::new(listener, &verbs::OF_SANDBOX, Limits::default()));
    let pcap = plan.pcap.take().map(Rc::new);
    let mut monitor = Monitor {
        plan,
        sandbox,
        init,
        network,
        tap: None,
        pcap,
        ours: Ours { hosts: desk.host_lines(), resolv: desk.resolv_lines() },
        desk,
        control,
        started: Instant::now(),
        watcher: None,
        prepared: false,
        gone: false,
        terminal,
        stopping: Stopping::default(),
        output: output.take(),
    };
    let result = monitor.begin(mapping).and_then(|()| monitor.serve(&signals));
    monitor.terminal.take();
    // First the command and all it started, then its network. The last close of a TAP waits for the kernel (some 15 ms,
    // as does that of the watch), so it is left to the network process, and runs while we close the rest.
    let Monitor { sandbox, init, network, tap, pcap, plan, desk, control, watcher, stopping, started, output, .. } =
        monitor;
    drop(sandbox);
    drop(init);
    // Nobody prints any more; and the logs are whole before the name is free.
    if let Some(output) = output {
        end_output(output, &result);
    }
    drop(tap);
    drop(pcap);
    drop(desk);
    drop(watcher);
    if let Some(network) = network {
        network.close();
    }
    // With the lease, whose address is free from here on.
    drop(plan);
    if let Some(mut control) = control {
        let code = result.as_ref().map_or_else(RunError::exit_code, |&code| code);
        let reply = error::reply(&error::value(&Stopped { code }));
        for &key in stopping.waiting() {
            control.reply(key, reply.clone(), started.elapsed());
        }
    }
    result
}

/// A closed connection is noticed where it is read, with the reason.
fn ignore_closed(error: AttachError) -> Result<(), AttachError> {
    match error {
        AttachError::Closed => Ok(()),
        other => Err(other),
    }
}

fn connection() -> Result<(OwnedFd, OwnedFd), RunError> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(call("make a socket pair"))
}

/// Clones the first process into the new namespaces.
fn start_init(plan: &Plan) -> Result<(OwnedFd, Child), RunError> {
    let (ours, theirs) = connection()?;
    let mut keep = vec![theirs.as_fd()];
    keep.extend(plan.setup.start.stdio.iter().flatten().map(AsFd::as_fd));
    if let Scope::Joined(donor) = &plan.setup.scope {
        let created = plan.namespaces() & (CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID);
        let init = donor.start_init(created, &keep, || inside::main(&theirs, &plan.setup))?;
        return Ok((ours, Child::new(init)));
    }
    match spawn::clone_into(plan.namespaces()) {
        Ok(Forked::Parent(pid)) => Ok((ours, Child::new(pid))),
        Ok(Forked::Child) => spawn::leave_with(|| {
            spawn::close_all_but(&keep);
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
        let tap = if self.network.is_some() { self.handle_sandbox() } else { Ok(None) };
        // Also after a failure: helpers are waited for.
        let mapped = mapping.finish(self.init.pid);
        tap?;
        mapped?;
        self.tell(&ToSandbox::Mapped)
    }

    fn serve(&mut self, signals: &SignalFd) -> Result<u8, RunError> {
        loop {
            let ready = match self.wait(signals) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(source) => return Err(call("poll")(source)),
            };
            let watched = ready.watch.unwrap_or(ready.count == 0 || self.watcher.is_none());
            if ready.signals {
                self.handle_signals(signals)?;
            }
            if let Some(output) = &mut self.output {
                ready.output.iter().for_each(|&what| output.handle(what));
            }
            if ready.sandbox
                && let Some(code) = self.handle_sandbox()?
            {
                return Ok(code);
            }
            if ready.network {
                self.handle_network()?;
            }
            self.handle_clients(&ready.clients)?;
            match self.stopping.poll_due(self.started.elapsed()) {
                Some(Due::Kill) => self.tell(&ToSandbox::Signal(Signal::SIGKILL as i32))?,
                Some(Due::End) => return Ok(KILLED),
                None => {}
            }
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

    /// Waits for something to happen.
    fn wait(&self, signals: &SignalFd) -> nix::Result<Ready> {
        let watch = self.watcher.as_ref().and_then(Watcher::fd);
        let now = self.started.elapsed();
        let mut wait = match (&self.watcher, watch) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(host_dns::FALLBACK),
            (None, _) => Some(WATCH_AFTER.saturating_sub(now)),
        };
        let clients = self.control.as_ref().and_then(Server::next_timeout);
        for at in [clients, self.desk.next_timeout(), self.stopping.next_timeout()].into_iter().flatten() {
            let left = at.saturating_sub(now);
            wait = Some(wait.map_or(left, |wait| wait.min(left)));
        }
        let mut fds =
            vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(self.sandbox.as_fd(), PollFlags::POLLIN)];
        let link = self.network.as_ref().map(|Uplink { link, .. }| {
            let output = if link.wants_output() { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(link.fd(), PollFlags::POLLIN | output));
            fds.len() - 1
        });
        let watch = watch.map(|fd| {
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
            fds.len() - 1
        });
        let own = fds.len();
        let clients = self.control.as_ref().map(Server::interests).unwrap_or_default();
        fds.extend(clients.iter().map(|&(_, fd, flags)| PollFd::new(fd, flags)));
        let served = fds.len();
        let output = self.output.as_ref().map(Output::interests).unwrap_or_default();
        fds.extend(output.iter().map(|&(_, fd, flags)| PollFd::new(fd, flags)));
        let count = poll(&mut fds, wait.map_or(PollTimeout::NONE, timeout_of))?;
        let events = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let is_ready = |at: usize| !events(&fds[at]).is_empty();
        let clients = clients.iter().zip(&fds[own..served]).map(|(&(what, ..), fd)| (what, events(fd)));
        let output = output.iter().enumerate().filter(|(at, _)| is_ready(served + at)).map(|(_, &(what, ..))| what);
        Ok(Ready {
            signals: is_ready(0),
            sandbox: is_ready(1),
            network: link.is_some_and(is_ready),
            watch: watch.map(is_ready),
            clients: clients.filter(|(_, events)| !events.is_empty()).collect(),
            output: output.collect(),
            count,
        })
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
            let Some((key, request, fds)) = self.control.as_mut().and_then(|control| control.next_request(now)) else {
                break;
            };
            self.obey(key, request, fds, now)?;
            if taken == control::REQUESTS {
                self.control.iter_mut().for_each(|control| control.set_more(true));
                break;
            }
        }
        Ok(())
    }

    /// Does what a client asks, or sees to it that it is done.
    fn obey(&mut self, key: Key, request: Request, fds: Vec<OwnedFd>, now: Duration) -> Result<(), RunError> {
        if verbs::life::VERBS.contains(&request.verb.as_str()) {
            return self.obey_life(key, request, now);
        }
        let Some(control) = &mut self.control else { return Ok(()) };
        let Some(Uplink { link, .. }) = &mut self.network else {
            let uptime = now;
            control.reply(key, self.desk.obey_without_network(request, self.plan.setup.scope.network(), uptime), now);
            return Ok(());
        };
        let about = (now, control.connection(key).filter(|_| request.verb == "subscribe"));
        if let Some(reply) = self.desk.obey(key, request, fds, link, now, about)? {
            control.reply(key, reply, now);
        }
        Ok(())
    }

    /// The verbs of `sandbox::life`.
    fn obey_life(&mut self, key: Key, Request { verb, arguments }: Request, now: Duration) -> Result<(), RunError> {
        let Some(wish) = life::read(&verb, arguments) else { return Ok(()) };
        let (mut reply, mut fds) = (error::reply(&Ok(json!({}))), Vec::new());
        match wish {
            Err(refused) => reply = refused.reply(),
            // A sandbox that is not complete cannot be entered; it will be in a moment.
            Ok(Wish::Namespaces | Wish::Signal(_)) if self.plan.about.started.is_none() => {
                reply = ApiError::new(Code::Busy, format!("{verb}: the sandbox is starting; ask again")).reply();
            }
            Ok(Wish::Namespaces) => match life::open(self.init.pid, self.plan.namespaces(), self.plan.setup.identity) {
                Ok((namespaces, opened)) => {
                    reply = error::reply(&error::value(&namespaces));
                    fds = opened;
                }
                Err(refused) => reply = refused.reply(),
            },
            Ok(Wish::Signal(signal)) => self.tell(&ToSandbox::Signal(signal as i32))?,
            Ok(Wish::Stop(signal, time)) => {
                self.stopping.begin(key, time, now);
                if self.plan.about.started.is_none() {
                    return Err(RunError::Interrupted(signal));
                }
                self.tell(&ToSandbox::Signal(signal as i32))?;
                if signal == Signal::SIGKILL {
                    self.stopping.killed(now);
                } else {
                    // A command that is stopped acts on nothing until it goes on.
                    self.tell(&ToSandbox::Signal(Signal::SIGCONT as i32))?;
                }
                return Ok(());
            }
        }
        self.control
            .iter_mut()
            .for_each(|control| control.reply_with(key, reply.clone(), std::mem::take(&mut fds), now));
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
        if let Some(Uplink { link, .. }) = &mut self.network {
            let late = self.desk.handle_timeout(now, link)?;
            self.desk.tell_due(link)?;
            link.flush()?;
            self.answer(late);
        }
        if std::mem::take(&mut self.desk.stale) {
            self.write_state();
        }
        Ok(())
    }

    fn write_state(&self) {
        let Identity { id, name } = self.plan.identity.clone();
        let (ports, about) = (self.desk.ports.listeners(), self.plan.about.clone());
        let state = state::Sandbox { id, name, pid: std::process::id(), ports, about };
        if let Err(error) = self.plan.entry.update(&state) {
            tracing::warn!("{}", telemetry::chain(&error));
        }
    }

    fn handle_signals(&mut self, signals: &SignalFd) -> Result<(), RunError> {
        while let Ok(Some(info)) = signals.read_signal() {
            let Some(signal) = jobs::meant(&info) else { continue };
            // What the terminal sends goes to the whole process group: the command with us, unless it has its own.
            let from_terminal =
                jobs::is_from_terminal(&info) && self.plan.shares_terminal && !self.plan.setup.start.own_group;
            match signal {
                // Ends show on the connections, after the last words.
                Signal::SIGCHLD => {}
                _ if from_terminal && self.gone => {}
                Signal::SIGCONT if self.gone => {
                    if self.terminal.lend() {
                        self.tell(&ToSandbox::Foreground)?;
                    }
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
            FromSandbox::Started => {
                self.plan.about.started = Some(state::now());
                // Whoever waits for the sandbox finds it running.
                self.write_state();
                if let Some(output) = &mut self.output {
                    output.up(&self.plan.about)?;
                }
            }
            FromSandbox::Stopped => {
                // With a shared terminal the shell that started us is to see a stopped job.
                if self.plan.shares_terminal {
                    self.terminal.take();
                    jobs::stop_self().map_err(call("stop with the command"))?;
                }
            }
            FromSandbox::NoCommand { errno } => {
                let program = self.plan.setup.start.command.first().map(|c| c.to_string_lossy().into_owned());
                let errno = Errno::from_raw(errno);
                let (program, reason) = (program.unwrap_or_default(), command::reason(errno));
                return Err(RunError::NoCommand { program, reason, errno });
            }
            FromSandbox::Exited { code } => return Ok(Some(code)),
            FromSandbox::Failed { desc } => return Err(RunError::Inside(desc)),
        }
        Ok(None)
    }

    fn go_if_ready(&mut self) -> Result<(), RunError> {
        if self.prepared && self.network.as_ref().is_none_or(|network| network.ready) && !self.gone {
            self.gone = true;
            self.tell(&ToSandbox::Go)?;
        }
        Ok(())
    }

    /// Tells the network process everything, with duplicates of every descriptor.
    fn attach(&mut self) -> Result<(), RunError> {
        let (Some(tap), Some(Uplink { link, .. })) = (&self.tap, &mut self.network) else { return Ok(()) };
        self.desk.attach(link, tap, self.pcap.as_ref())?;
        let control = self.control.as_ref();
        Ok(self.desk.resume(link, self.started.elapsed(), |key| control?.connection(key))?)
    }

    /// Everything that the network process has said.
    fn handle_network(&mut self) -> Result<(), RunError> {
        while let Some(network) = &mut self.network {
            match network.link.hear() {
                Ok(None) => return Ok(()),
                Ok(Some(FromNetwork::Ready)) => {
                    network.ready = true;
                    self.go_if_ready()?;
                }
                Ok(Some(FromNetwork::Failed { desc })) => return Err(RunError::Network(desc)),
                Ok(Some(word)) => {
                    let answered = self.desk.handle_word(word, &mut network.link)?;
                    self.answer(answered);
                }
                Err(AttachError::Closed) => return self.replace_network(),
                Err(error) => {
                    tracing::warn!("the network process talks nonsense and is replaced: {}", telemetry::chain(&error));
                    return self.replace_network();
                }
            }
        }
        Ok(())
    }

    /// The connection is gone: attaches to another process.
    fn replace_network(&mut self) -> Result<(), RunError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        network.replace(&self.plan.source)?;
        self.desk.network_pid = network.pid();
        // Its successor is told all that holds; what was being asked is over.
        let answered = self.desk.handle_lost();
        self.answer(answered);
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
