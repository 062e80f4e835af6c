//! The order of things, and the event loop of one sandbox.
//!
//! ```text
//! start the network process ─┐
//! clone the first process ───┼─ its TAP ─► Attach, Listen, HostDns, Start ─► Ready ─┐
//! write the uid maps ────────┘  Mapped ─► Prepared ────────────────────────────────┴─► Go ─► … ─► Exited
//! ```
//!
//! Both children start at once and in parallel; nothing is waited for but what the next step needs. Then one poll(2) loop
//! serves signals (signalfd), the first process, the command's output, and what every monitor has (`sandbox::station`): the
//! network process, the watch on the host's resolv.conf and the clients of the control socket.
//!
//! Signals that were sent to the monitor go to the command; those that the terminal sent went to the whole process group anyway. When the command stops
//! (Ctrl-Z, or by itself) the monitor stops, and for no other reason.
//!
//! Whatever ends the loop, both children are dead and reaped when [`run`] returns.

mod networks;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::json;

use super::child::Child;
use super::command;
use super::control::Key;
use super::edit::Edited;
use super::files;
use super::inside::{self, Scope, Setup};
use super::jobs::{self, Terminal};
use super::join::JoinError;
use super::life::{self, Due, Stopping, Wish};
use super::logs::output::{Abandoned, Output};
use super::mapping::{MapError, Mapping, Maps};
use super::proto::{FromSandbox, ToSandbox};
use super::station::{self, Station, StationError};
use super::uplink::UplinkError;
use crate::api::attach::{self, AttachError};
use crate::api::error::{self, ApiError, Code};
use crate::api::session::Request;
use crate::api::verbs::{self, life::Stopped};
use crate::sys::spawn::{self, Forked};
use crate::telemetry;

/// Exit code of a command that was killed.
const KILLED: u8 = 128 + Signal::SIGKILL as u8;

/// Everything that was decided before the first process is started.
#[derive(Debug)]
pub struct Plan {
    /// What every monitor has.
    pub station: station::Plan,
    /// What the first process does. Its files and interfaces are filled in here where it has interfaces.
    pub setup: Setup,
    /// Where what runs has its files.
    pub runtime_dir: PathBuf,
    /// Users; see `sandbox::users`.
    pub maps: Maps,
    /// The caller's terminal is shared with the command (same process group).
    pub shares_terminal: bool,
    /// Where the command's output goes, if not to the caller (`tapway run --detach`).
    pub output: Option<Output>,
}

/// The namespaces that are not the host's.
fn namespaces(setup: &Setup) -> CloneFlags {
    let own_pids = if setup.own_pids { CloneFlags::CLONE_NEWPID } else { CloneFlags::empty() };
    let others = match &setup.scope {
        Scope::Interface | Scope::Loopback => CloneFlags::CLONE_NEWNET | NAMESPACES,
        Scope::Host => NAMESPACES,
        Scope::Joined(donor) => donor.namespaces.iter().map(|&(flag, _)| flag).collect(),
    };
    CloneFlags::CLONE_NEWNS | own_pids | others
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
    /// The network is lost.
    #[error(transparent)]
    Station(#[from] StationError),
    /// There is no network process.
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
    station: Station,
    setup: Setup,
    runtime_dir: PathBuf,
    /// A network that comes or goes.
    change: Option<networks::Change>,
    shares_terminal: bool,
    sandbox: OwnedFd,
    init: Child,
    /// Lines of the sandbox's files as the first process writes them.
    ours: Ours,
    prepared: bool,
    gone: bool,
    terminal: Terminal,
    stopping: Stopping,
    output: Option<Output>,
}

/// Lines of the sandbox's files that are ours to change.
#[derive(Clone, Debug)]
struct Ours {
    hosts: Vec<String>,
    resolv: Vec<String>,
    /// The same where names cannot be asked for at the address of Docker's containers.
    plain_resolv: Vec<String>,
}

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

/// What the first process makes for the endpoints that the sandbox is born with; and which lines of its files are ours.
fn lay_out(station: &mut Station, setup: &mut Setup) -> Ours {
    station.know_networks(false);
    let (plain_text, plain_resolv) = (station.desk.resolv_text(), station.desk.resolv_lines());
    station.know_networks(true);
    let ours = Ours { hosts: station.desk.host_lines(), resolv: station.desk.resolv_lines(), plain_resolv };
    if matches!(setup.scope, Scope::Interface) {
        setup.interfaces = station.endpoints().iter().map(|endpoint| endpoint.place.interface.clone()).collect();
        setup.order = station.ranked().iter().map(|endpoint| endpoint.interface().to_owned()).collect();
        setup.hosts = Some(files::hosts_text(&ours.hosts));
        setup.resolv_conf = Some(station.desk.resolv_text());
        setup.plain_resolv_conf = Some(plain_text);
    }
    ours
}

fn end_output(output: Output, result: &Result<u8, RunError>) {
    let code = result.as_ref().map_or_else(RunError::exit_code, |&code| code);
    output.end(code, result.as_ref().err().map(|error| telemetry::chain(error)));
}

fn run_with(plan: Plan, output: &mut Option<Output>) -> Result<u8, RunError> {
    let signals = jobs::block_signals().map_err(call("block signals"))?;
    let Plan { station, mut setup, maps, shares_terminal, runtime_dir, .. } = plan;
    // First, so that they start up while the kernel makes the namespaces.
    let mut station = Station::open(station)?;
    let ours = lay_out(&mut station, &mut setup);
    let (sandbox, init) = start_init(&setup)?;
    station.about.init = u32::try_from(init.pid.as_raw()).ok();
    setup.start.stdio = None;
    // These take longest to start, so all else is done while they run.
    let mapping = Mapping::start(init.pid, &maps);
    let terminal = Terminal::new(setup.start.foreground);
    let mut monitor = Monitor {
        ours,
        station,
        setup,
        runtime_dir,
        change: None,
        shares_terminal,
        sandbox,
        init,
        prepared: false,
        gone: false,
        terminal,
        stopping: Stopping::default(),
        output: output.take(),
    };
    let result = monitor.begin(mapping).and_then(|()| monitor.serve(&signals));
    monitor.terminal.take();
    // First the command and all it started, then its network.
    let Monitor { sandbox, init, station, stopping, output, .. } = monitor;
    drop(sandbox);
    drop(init);
    // Nobody prints any more; and the logs are whole before the name is free.
    if let Some(output) = output {
        end_output(output, &result);
    }
    let code = result.as_ref().map_or_else(RunError::exit_code, |&code| code);
    station.close(stopping.waiting(), &error::reply(&error::value(&Stopped { code })));
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
fn start_init(setup: &Setup) -> Result<(OwnedFd, Child), RunError> {
    let (ours, theirs) = connection()?;
    let mut keep = vec![theirs.as_fd()];
    keep.extend(setup.start.stdio.iter().flatten().map(AsFd::as_fd));
    if let Scope::Joined(donor) = &setup.scope {
        let created = namespaces(setup) & (CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID);
        let init = donor.start_init(created, &keep, || inside::main(&theirs, setup))?;
        return Ok((ours, Child::new(init)));
    }
    match spawn::clone_into(namespaces(setup)) {
        Ok(Forked::Parent(pid)) => Ok((ours, Child::new(pid))),
        Ok(Forked::Child) => spawn::leave_with(|| {
            spawn::close_all_but(&keep);
            inside::main(&theirs, setup)
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
        let taps = self.station.endpoints().len();
        let tap = (0..taps).try_for_each(|_| self.handle_sandbox().map(drop));
        // Also after a failure: helpers are waited for.
        let mapped = mapping.finish(self.init.pid);
        tap?;
        mapped?;
        self.tell(&ToSandbox::Mapped)
    }

    fn serve(&mut self, signals: &SignalFd) -> Result<u8, RunError> {
        loop {
            let mut own = vec![(signals.as_fd(), PollFlags::POLLIN), (self.sandbox.as_fd(), PollFlags::POLLIN)];
            let first = own.len();
            let streams = self.output.as_ref().map(Output::interests).unwrap_or_default();
            own.extend(streams.iter().map(|&(_, fd, flags)| (fd, flags)));
            let change = self.change.as_ref().and_then(networks::Change::next_timeout);
            let until = [self.stopping.next_timeout(), change].into_iter().flatten().min();
            let (ready, woken) = match self.station.wait(&own, until) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(source) => return Err(call("poll")(source)),
            };
            let streams: Vec<usize> =
                streams.iter().zip(&ready[first..]).filter(|&(_, &ready)| ready).map(|(&(what, ..), _)| what).collect();
            if ready[0] {
                self.handle_signals(signals)?;
            }
            if let Some(output) = &mut self.output {
                for what in streams {
                    output.handle(what);
                }
            }
            if ready[1]
                && let Some(code) = self.handle_sandbox()?
            {
                return Ok(code);
            }
            for said in self.station.hear(&woken)? {
                self.handle_said(said)?;
            }
            self.handle_late_change()?;
            self.go_if_ready()?;
            self.station.handle_clients(&woken);
            while let Some((key, request, fds)) = self.station.next_request() {
                if verbs::life::VERBS.contains(&request.verb.as_str()) {
                    self.obey_life(key, request)?;
                } else if verbs::connect::VERBS.contains(&request.verb.as_str()) {
                    self.obey_networks(key, request)?;
                } else {
                    self.station.obey(key, request, fds, self.setup.scope.network())?;
                }
            }
            match self.stopping.poll_due(self.station.now()) {
                Some(Due::Kill) => self.tell(&ToSandbox::Signal(Signal::SIGKILL as i32))?,
                Some(Due::End) => return Ok(KILLED),
                None => {}
            }
            if self.station.host_changed(&woken) {
                // A rename over the host's file takes our mount in the sandbox away.
                self.tell(&ToSandbox::Files)?;
            }
            self.station.settle()?;
        }
    }

    /// The verbs of `sandbox::life`.
    fn obey_life(&mut self, key: Key, Request { verb, arguments }: Request) -> Result<(), RunError> {
        let now = self.station.now();
        let Some(wish) = life::read(&verb, arguments) else { return Ok(()) };
        let (mut reply, mut fds) = (error::reply(&Ok(json!({}))), Vec::new());
        match wish {
            Err(refused) => reply = refused.reply(),
            // A sandbox that is not complete cannot be entered; it will be in a moment.
            Ok(Wish::Namespaces | Wish::Signal(_)) if self.station.about.started.is_none() => {
                reply = ApiError::new(Code::Busy, format!("{verb}: the sandbox is starting; ask again")).reply();
            }
            Ok(Wish::Namespaces) => match life::open(self.init.pid, namespaces(&self.setup), self.setup.identity) {
                Ok((namespaces, opened)) => {
                    reply = error::reply(&error::value(&namespaces));
                    fds = opened;
                }
                Err(refused) => reply = refused.reply(),
            },
            Ok(Wish::Signal(signal)) => self.tell(&ToSandbox::Signal(signal as i32))?,
            Ok(Wish::Stop(signal, time)) => {
                self.stopping.begin(key, time, now);
                if self.station.about.started.is_none() {
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
        self.station.reply(key, reply, fds);
        Ok(())
    }

    fn handle_signals(&mut self, signals: &SignalFd) -> Result<(), RunError> {
        while let Ok(Some(info)) = signals.read_signal() {
            let Some(signal) = jobs::meant(&info) else { continue };
            // What the terminal sends goes to the whole process group: the command with us, unless it has its own.
            let from_terminal = jobs::is_from_terminal(&info) && self.shares_terminal && !self.setup.start.own_group;
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
            FromSandbox::Tap { name, offloads } => {
                if fds.is_empty() {
                    return Err(RunError::InitDied("it sent no TAP".to_owned()));
                }
                self.station.handle_tap(&name, fds, offloads)?;
                self.handle_made(&name)?;
            }
            FromSandbox::NotConnected { name, desc } => self.handle_not_made(&name, &desc)?,
            FromSandbox::Ordered { embedded_dns, notes } => self.handle_ordered(embedded_dns, notes)?,
            FromSandbox::Deleted => self.handle_deleted(),
            FromSandbox::Prepared { notes, embedded_dns } => {
                for note in notes {
                    tracing::info!("{note}");
                }
                if let (Some(hosts), Some(resolv)) = (fds.pop(), fds.pop()) {
                    let Ours { hosts: host_lines, resolv: resolv_lines, plain_resolv } = self.ours.clone();
                    let resolv_lines = if embedded_dns { resolv_lines } else { plain_resolv };
                    self.station.know_networks(embedded_dns);
                    self.station.desk.handle_files(Edited::new(resolv, resolv_lines), Edited::new(hosts, host_lines));
                }
                self.prepared = true;
                self.go_if_ready()?;
            }
            FromSandbox::Started => {
                self.station.begun();
                if let Some(output) = &mut self.output {
                    output.up(&self.station.about)?;
                }
            }
            FromSandbox::Stopped => {
                // With a shared terminal the shell that started us is to see a stopped job.
                if self.shares_terminal {
                    self.terminal.take();
                    jobs::stop_self().map_err(call("stop with the command"))?;
                }
            }
            FromSandbox::NoCommand { errno } => {
                let program = self.setup.start.command.first().map(|c| c.to_string_lossy().into_owned());
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
        if self.prepared && self.station.is_ready() && !self.gone {
            self.gone = true;
            self.tell(&ToSandbox::Go)?;
        }
        Ok(())
    }
}
