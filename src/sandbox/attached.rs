//! A namespace that somebody else made, as a member of a network: the monitor of `tapway attach`.
//!
//! ```text
//! start or find the network process ─► a child enters, makes the interface, sends the TAP ─► Attach … Start ─► Ready ─► up
//!        ─► …  until: the namespace ends · SIGTERM, SIGINT, SIGHUP, SIGQUIT · the verb `stop` (`tapway detach`)
//! ```
//!
//! What it has and does is every monitor's (`sandbox::station`), without a first process and without a command: it starts
//! nothing inside, mounts nothing, sends no signals, and hands out no namespaces. The files of the other runtime's container
//! are that runtime's; names are answered at the gateway, and at 127.0.0.11 where the route to it could be set.
//!
//! **The end of the namespace** shows by the TAP, which is the only thing of ours inside: it was made elsewhere and moved in, so
//! its descriptor does not keep the namespace alive (`foreign::join`), and the interface goes with the namespace. An interface
//! that is gone while what named the namespace is still there was deleted, which is an error. The other way round the
//! interface goes with the last descriptor of its TAP, and takes its addresses and routes along; that lo was brought up stays.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::control::Key;
use super::foreign::join::{self, Configure, JoinError, Refusal, Request};
use super::foreign::target::Watched;
use super::interface::Interface;
use super::jobs;
use super::life::{self, Wish};
use super::logs::output::{Abandoned, Output};
use super::resets::{Over, Whose};
use super::station::{self, Said, Station, StationError};
use super::uplink::UplinkError;
use crate::api::error::{self, ApiError, Code};
use crate::api::verbs::{self, life::Stopped};
use crate::telemetry::{self, strerror};

/// The namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// That of a process.
    Process(i32),
    /// A file that is one.
    File(PathBuf),
}

impl Target {
    /// The file of it.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Process(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
            Self::File(path) => path.clone(),
        }
    }

    /// The file of its user namespace, where that is known.
    fn userns(&self) -> Option<PathBuf> {
        match self {
            Self::Process(pid) => Some(format!("/proc/{pid}/ns/user").into()),
            Self::File(_) => None,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Everything that was decided before anything is done.
#[derive(Debug)]
pub struct Plan {
    /// What every monitor has.
    pub station: station::Plan,
    /// The namespace.
    pub target: Target,
    /// Where the log goes, if not to the caller (`--detach`).
    pub output: Option<Output>,
}

/// Why there is no attachment, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum AttachedError {
    /// A system call of the monitor's own.
    #[error("cannot {what}")]
    Call {
        /// Which.
        what: &'static str,
        /// Errno.
        #[source]
        source: nix::Error,
    },
    /// The network is lost.
    #[error(transparent)]
    Station(#[from] StationError),
    /// There is no network process.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// Nobody came back with a TAP.
    #[error(transparent)]
    Join(JoinError),
    /// The namespace, or the kernel, would not have it.
    #[error("{0}")]
    Refused(String),
    /// Somebody deleted the interface.
    #[error("interface {interface} of {target} is gone: it was deleted there")]
    Deleted {
        /// Its name.
        interface: String,
        /// Where.
        target: Target,
    },
    /// The caller is gone.
    #[error(transparent)]
    Abandoned(#[from] Abandoned),
    /// A signal came first.
    #[error("stopped by {0} before {1} was attached")]
    Interrupted(Signal, Target),
}

impl AttachedError {
    /// Exit code of `tapway attach`: 128+n for a signal that came too early, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(signal, _) => 128 + *signal as u8,
            _ => 1,
        }
    }
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> AttachedError {
    move |source| AttachedError::Call { what, source }
}

/// In words for whoever typed `tapway attach`.
fn words(refusal: &Refusal, target: &Target, interface: &str) -> String {
    let said = |errno: i32| strerror(Errno::from_raw(errno));
    let exists = || format!("interface {interface} exists in {target} already; choose another --interface");
    match refusal {
        Refusal::Open { path, errno } => format!("cannot open {path}: {}", said(*errno)),
        Refusal::Enter { errno } => format!(
            "{target} cannot be entered: {}; its network belongs to a user namespace that is not yours",
            said(*errno)
        ),
        Refusal::Exists => exists(),
        // Somebody was quicker.
        Refusal::Configure { what, errno } if what.starts_with("move ") && *errno == Errno::EEXIST as i32 => exists(),
        Refusal::Interface { errno } => format!("cannot make interface {interface}: {}", said(*errno)),
        Refusal::Configure { what, errno } => format!("cannot {what} in {target}: {}", said(*errno)),
        Refusal::Device { .. } | Refusal::Call { .. } | Refusal::Other(_) => {
            format!("cannot make interface {interface}: {refusal}")
        }
    }
}

struct Attached {
    station: Station,
    target: Target,
    interface: String,
    /// Which namespace it was that got the interface.
    identity: Option<join::Identity>,
    watched: Watched,
    output: Option<Output>,
    up: bool,
    /// Who waits for the end.
    waiting: Vec<Key>,
}

/// Attaches the namespace and stands by it to its end: the exit code. `up` is given the id when frames flow.
pub fn run(plan: Plan, up: impl FnOnce(&str)) -> Result<u8, AttachedError> {
    let Plan { station, target, mut output } = plan;
    let result = run_with(station, target, &mut output, up);
    if let Some(output) = output {
        // It was never up, or everything of it is closed.
        let code = result.as_ref().map_or_else(AttachedError::exit_code, |&code| code);
        output.end(code, result.as_ref().err().map(|error| telemetry::chain(error)));
    }
    result
}

fn run_with(
    plan: station::Plan,
    target: Target,
    output: &mut Option<Output>,
    up: impl FnOnce(&str),
) -> Result<u8, AttachedError> {
    let signals = jobs::block_signals().map_err(call("block signals"))?;
    // Before anything of it can be gone.
    let watched = match &target {
        Target::Process(pid) => Watched::process(*pid),
        Target::File(path) => Watched::file(path),
    };
    // First, so that it starts up while the kernel moves the interface.
    let mut station = Station::open(plan)?;
    station.desk.mode = "attach";
    // What it gets there, at its only endpoint.
    let interface = station.endpoints().first().map(|endpoint| endpoint.place.interface.clone());
    let interface = &interface.ok_or_else(|| AttachedError::Refused("there is no network to attach to".to_owned()))?;
    let mut attached = Attached {
        station,
        interface: interface.name.clone(),
        identity: None,
        target,
        watched,
        output: output.take(),
        up: false,
        waiting: Vec::new(),
    };
    let result = attached.join(interface).and_then(|()| attached.serve(&signals, up));
    let Attached { station, waiting, output: taken, .. } = attached;
    let code = result.as_ref().map_or_else(AttachedError::exit_code, |&code| code);
    *output = taken;
    station.close(&waiting, &error::reply(&error::value(&Stopped { code })));
    result
}

impl Attached {
    /// Sends a child in for the TAP.
    fn join(&mut self, interface: &Interface) -> Result<(), AttachedError> {
        self.identity = join::identity(&self.target.path()).ok();
        let request = Request {
            netns: self.target.path(),
            userns: None,
            process_userns: self.target.userns(),
            name: &interface.name,
            fresh: true,
            configure: Some(Configure::Member(interface)),
            see_end: true,
            queues: interface.queues,
        };
        let joined = join::join(&request).map_err(|error| match error {
            JoinError::Refused(refusal) => AttachedError::Refused(words(&refusal, &self.target, &interface.name)),
            other => AttachedError::Join(other),
        })?;
        for note in &joined.notes {
            tracing::warn!("{note}");
        }
        let taps = std::iter::once(joined.tap).chain(joined.queues).collect();
        Ok(self.station.handle_tap(&self.interface, taps, joined.offloads)?)
    }

    fn serve(&mut self, signals: &SignalFd, up: impl FnOnce(&str)) -> Result<u8, AttachedError> {
        let mut up = Some(up);
        loop {
            let mut own = vec![(signals.as_fd(), PollFlags::POLLIN)];
            let streams = self.output.as_ref().map(Output::interests).unwrap_or_default();
            own.extend(streams.iter().map(|&(_, fd, flags)| (fd, flags)));
            let (ready, woken) = match self.station.wait(&own, None) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(source) => return Err(call("poll")(source)),
            };
            let streams: Vec<usize> =
                streams.iter().zip(&ready[1..]).filter(|&(_, &ready)| ready).map(|(&(what, ..), _)| what).collect();
            if ready[0] && self.is_told_to_end(signals)? {
                return Ok(0);
            }
            if let Some(output) = &mut self.output {
                for what in streams {
                    output.handle(what);
                }
            }
            match self.station.hear(&woken) {
                Err(StationError::InterfaceGone) if self.watched.is_gone() => {
                    tracing::info!("{} has ended", self.target);
                    return Ok(0);
                }
                Err(StationError::InterfaceGone) => {
                    let (interface, target) = (self.interface.clone(), self.target.clone());
                    return Err(AttachedError::Deleted { interface, target });
                }
                heard => {
                    for said in heard? {
                        match said {
                            Said::Refused(_, desc) | Said::Aside(_, desc) => {
                                return Err(StationError::Network(desc).into());
                            }
                            Said::Replaced(_) => self.end_connections(),
                            Said::Ready(_) | Said::Left(_) => {}
                        }
                    }
                }
            }
            if self.station.is_ready()
                && let Some(up) = up.take()
            {
                self.up = true;
                self.station.begun();
                match &mut self.output {
                    Some(output) => output.up(&self.station.about)?,
                    None => up(&self.station.desk.identity.id),
                }
            }
            self.station.handle_clients(&woken);
            while let Some((key, request, fds)) = self.station.next_request() {
                if verbs::connect::VERBS.contains(&request.verb.as_str()) {
                    let desc = format!(
                        "{}: {} was attached, which makes one interface; `tapway attach` it to the other network, too",
                        request.verb, self.target
                    );
                    self.station.reply(key, ApiError::new(Code::Unsupported, desc).reply(), Vec::new());
                    continue;
                }
                match life::read(&request.verb, request.arguments.clone()) {
                    Some(wish) => self.obey_life(key, &request.verb, wish),
                    None => self.station.obey(key, request, fds, "it is attached")?,
                }
            }
            if !self.waiting.is_empty() {
                return Ok(0);
            }
            self.station.host_changed(&woken);
            self.station.settle()?;
        }
    }

    /// Those that a network process had that died.
    fn end_connections(&self) {
        let (Some(identity), Some(endpoint)) = (self.identity, self.station.endpoints().first()) else { return };
        let (v4, v6) = endpoint.plans();
        let over = Over { v4, v6, whose: Whose::Planned, members: false };
        match join::end_connections(&self.target.path(), self.target.userns(), identity, &over) {
            Ok(ended) => tracing::info!(ended, "connections that are over"),
            Err(error) => tracing::warn!("connections that are over are left open: {}", telemetry::chain(&error)),
        }
    }

    /// The verbs of `sandbox::life`: `stop` ends the attachment, whatever its signal; nothing inside is ours for the others.
    fn obey_life(&mut self, key: Key, verb: &str, wish: Result<Wish, ApiError>) {
        let refused = match wish {
            Ok(Wish::Stop(..)) => return self.waiting.push(key),
            Ok(Wish::Namespaces | Wish::Signal(_)) => ApiError::new(
                Code::Unsupported,
                format!("{verb}: {} was attached, so what runs there is not tapway's; ask who started it", self.target),
            ),
            Err(refused) => refused,
        };
        self.station.reply(key, refused.reply(), Vec::new());
    }

    fn is_told_to_end(&self, signals: &SignalFd) -> Result<bool, AttachedError> {
        while let Ok(Some(info)) = signals.read_signal() {
            match jobs::meant(&info) {
                Some(Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT) if self.up => {
                    return Ok(true);
                }
                Some(signal @ (Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP | Signal::SIGQUIT)) => {
                    return Err(AttachedError::Interrupted(signal, self.target.clone()));
                }
                Some(Signal::SIGTSTP) => jobs::stop_self().map_err(call("stop"))?,
                _ => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_target_and_the_remedy() {
        let (process, file) = (Target::Process(7), Target::File("/run/netns/blue".into()));
        let eperm = Errno::EPERM as i32;
        for (refusal, target, text) in [
            (
                Refusal::Enter { errno: eperm },
                &process,
                "process 7 cannot be entered: Operation not permitted; its network belongs to a user namespace that is not yours",
            ),
            (Refusal::Exists, &file, "interface eth0 exists in /run/netns/blue already; choose another --interface"),
            (
                Refusal::Configure { what: "move eth0 to its namespace".to_owned(), errno: Errno::EEXIST as i32 },
                &process,
                "interface eth0 exists in process 7 already; choose another --interface",
            ),
            (
                Refusal::Configure { what: "bring up lo".to_owned(), errno: eperm },
                &process,
                "cannot bring up lo in process 7: Operation not permitted",
            ),
        ] {
            assert_eq!(words(&refusal, target, "eth0"), text);
        }
    }
}
