//! What every monitor has, whoever made the namespace that it stands by: the way to the network process, the TAP, the control
//! socket and what clients ask for there, the watch on the host's resolv.conf, and the state file.
//!
//! A monitor (`sandbox::monitor` of a sandbox that it made, `sandbox::attached` of a namespace of somebody else's) owns the
//! loop: it adds its own descriptors to [`Station::wait`], does what is its own, and lets the station do the rest in this order:
//! [`Station::hear`], [`Station::handle_clients`] and [`Station::next_request`], [`Station::host_changed`],
//! [`Station::settle`]. Verbs about the life of the sandbox (`api::verbs::life`) are the monitor's, all others
//! [`Station::obey`]s.
//!
//! A network process that dies is replaced at once by one that gets the same TAP and listeners, of which the station keeps
//! duplicates (`sandbox::uplink`, also for the process of a shared network, which is nobody's child). One that let go because
//! the interface is gone is not: the TAP's descriptor tells (EBADFD), and the monitor knows what that means.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::control::{self, Key, Server, Watched};
use super::desk::{Answered, Desk, Identity};
use super::host_dns::{self, RESOLV_CONF, Watcher};
use super::state::{self, About, Entry};
use super::uplink::{Source, Uplink, UplinkError};
use crate::api::attach::{AttachError, FromNetwork};
use crate::api::session::{Limits, Request};
use crate::api::verbs;
use crate::network::config::{EndpointConfig, Listener, Offloads};
use crate::network::desired::Desired;
use crate::{sys, telemetry};

/// When the host's resolv.conf is first looked at again, and watched from then on. Making and above all closing a watch
/// costs milliseconds, which a short command should not pay.
const WATCH_AFTER: Duration = Duration::from_millis(500);

/// What the watcher looks for beside resolv.conf.
const ALSO_WATCHED: [&str; 1] = ["hosts"];

/// What was decided before anything is started.
#[derive(Debug)]
pub struct Plan {
    /// What the network process is told; `offloads` is filled in when the TAP exists.
    pub endpoint: EndpointConfig,
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
    /// Where the network process comes from.
    pub source: Source,
    /// What the state file tells of it.
    pub about: About,
}

/// Why there is no network any more.
#[derive(Debug, thiserror::Error)]
pub enum StationError {
    /// The network process said why.
    #[error("the network process gave up: {0}")]
    Network(String),
    /// There is none, or none any more.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// A connection broke in an unexpected way.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Somebody deleted it, or its namespace ended.
    #[error("the interface is gone: it was deleted inside")]
    InterfaceGone,
}

/// What has happened, of the station's own.
#[derive(Debug)]
pub struct Woken {
    network: bool,
    /// None: there is no watch to wait for.
    watch: Option<bool>,
    clients: Vec<(Watched, PollFlags)>,
    /// Nothing at all, but time has passed.
    idle: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Station {
    /// What clients ask for, done.
    pub desk: Desk,
    /// What the state file tells.
    pub about: About,
    entry: Entry,
    source: Source,
    /// None where the sandbox has no interface of its own.
    network: Option<Uplink>,
    /// Duplicate of the guest's TAP, once it exists.
    tap: Option<Rc<OwnedFd>>,
    pcap: Option<Rc<OwnedFd>>,
    control: Option<Server>,
    started: Instant,
    /// From [`WATCH_AFTER`] on.
    watcher: Option<Watcher>,
    /// It has just been made.
    settled_down: bool,
    /// Requests taken in this turn.
    taken: usize,
}

impl Station {
    /// With the network process that `plan.source` has opened, which may be coming up meanwhile.
    pub fn new(plan: Plan, network: Option<Uplink>) -> Self {
        let Plan { endpoint, desired, identity, entry, control, listeners, metrics, pcap, source, about } = plan;
        let servers = host_dns::servers(&host_dns::read(Path::new(RESOLV_CONF)));
        let mut desk = Desk::new(identity, endpoint, listeners, desired, servers);
        desk.network_pid = network.as_ref().map_or(0, Uplink::pid);
        desk.membership = source.membership().cloned();
        desk.metrics = metrics.map(|(address, socket)| (address, Rc::new(socket)));
        Self {
            desk,
            about,
            entry,
            source,
            network,
            tap: None,
            pcap: pcap.map(Rc::new),
            control: control.map(|listener| Server::new(listener, &verbs::OF_SANDBOX, Limits::default())),
            started: Instant::now(),
            watcher: None,
            settled_down: false,
            taken: 0,
        }
    }

    /// Time since the beginning, in which everything here is told.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// True if there is an interface, or is to be one.
    pub fn has_network(&self) -> bool {
        self.network.is_some()
    }

    /// True if frames flow, or there is nothing by which they could.
    pub fn is_ready(&self) -> bool {
        self.network.as_ref().is_none_or(|network| network.ready)
    }

    /// Waits for something to happen: to the station, or to `own`, for which the events are returned in order. `until` is
    /// when the monitor has something to do.
    pub fn wait(
        &self,
        own: &[(BorrowedFd<'_>, PollFlags)],
        until: Option<Duration>,
    ) -> nix::Result<(Vec<bool>, Woken)> {
        let watch = self.watcher.as_ref().and_then(Watcher::fd);
        let now = self.now();
        let mut wait = match (&self.watcher, watch) {
            (Some(_), Some(_)) => None,
            (Some(_), None) => Some(host_dns::FALLBACK),
            (None, _) => Some(WATCH_AFTER.saturating_sub(now)),
        };
        let clients = self.control.as_ref().and_then(Server::next_timeout);
        for at in [clients, self.desk.next_timeout(), until].into_iter().flatten() {
            let left = at.saturating_sub(now);
            wait = Some(wait.map_or(left, |wait| wait.min(left)));
        }
        let mut fds: Vec<PollFd<'_>> = own.iter().map(|&(fd, flags)| PollFd::new(fd, flags)).collect();
        let link = self.network.as_ref().map(|Uplink { link, .. }| {
            let output = if link.wants_output() { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(link.fd(), PollFlags::POLLIN | output));
            fds.len() - 1
        });
        let watch = watch.map(|fd| {
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
            fds.len() - 1
        });
        let served = fds.len();
        let clients = self.control.as_ref().map(Server::interests).unwrap_or_default();
        fds.extend(clients.iter().map(|&(_, fd, flags)| PollFd::new(fd, flags)));
        let count = poll(&mut fds, wait.map_or(PollTimeout::NONE, timeout_of))?;
        let events = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let is_ready = |at: usize| !events(&fds[at]).is_empty();
        let clients = clients.iter().zip(&fds[served..]).map(|(&(what, ..), fd)| (what, events(fd)));
        let woken = Woken {
            network: link.is_some_and(is_ready),
            watch: watch.map(is_ready),
            clients: clients.filter(|(_, events)| !events.is_empty()).collect(),
            idle: count == 0,
        };
        Ok(((0..own.len()).map(is_ready).collect(), woken))
    }

    /// The TAP exists: the network process is told everything.
    pub fn handle_tap(&mut self, tap: OwnedFd, offloads: Offloads) -> Result<(), StationError> {
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
        self.attach()
    }

    /// Tells the network process everything, with duplicates of every descriptor.
    fn attach(&mut self) -> Result<(), StationError> {
        let (Some(tap), Some(Uplink { link, .. })) = (&self.tap, &mut self.network) else { return Ok(()) };
        self.desk.attach(link, tap, self.pcap.as_ref())?;
        let control = self.control.as_ref();
        Ok(self.desk.resume(link, self.started.elapsed(), |key| control?.connection(key))?)
    }

    /// Everything that the network process has said. Returns whether it died and another has taken its place.
    pub fn hear(&mut self, woken: &Woken) -> Result<bool, StationError> {
        while woken.network
            && let Some(network) = &mut self.network
        {
            match network.link.hear() {
                Ok(None) => break,
                Ok(Some(FromNetwork::Ready)) => network.ready = true,
                Ok(Some(FromNetwork::Failed { desc })) => return Err(StationError::Network(desc)),
                Ok(Some(word)) => {
                    let answered = self.desk.handle_word(word, &mut network.link)?;
                    self.answer(answered);
                }
                Err(AttachError::Closed) => return self.replace_network().map(|()| true),
                Err(error) => {
                    tracing::warn!("the network process talks nonsense and is replaced: {}", telemetry::chain(&error));
                    return self.replace_network().map(|()| true);
                }
            }
        }
        Ok(false)
    }

    /// The connection is gone: attaches to another process.
    fn replace_network(&mut self) -> Result<(), StationError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        // drivers/net/tun.c: a queue whose interface is gone has no device.
        let gone = |tap: &Rc<OwnedFd>| sys::tap::identity(tap.as_fd()).is_err_and(|errno| errno == Errno::EBADFD);
        if self.tap.as_ref().is_some_and(gone) {
            return Err(StationError::InterfaceGone);
        }
        network.replace(&self.source)?;
        self.desk.network_pid = network.pid();
        // Its successor is told all that holds; what was being asked is over.
        let answered = self.desk.handle_lost();
        self.answer(answered);
        self.attach()
    }

    /// Whatever clients did. What they ask for is at [`Self::next_request`].
    pub fn handle_clients(&mut self, woken: &Woken) {
        let now = self.now();
        let Some(control) = &mut self.control else { return };
        for &(what, events) in &woken.clients {
            control.handle(what, events, now);
        }
        control.handle_timeout(now);
        control.set_more(false);
        self.desk.retain_subscribers(|key| control.is_there(key));
        self.taken = 0;
    }

    /// The next request of this turn.
    pub fn next_request(&mut self) -> Option<(Key, Request, Vec<OwnedFd>)> {
        let now = self.now();
        let control = self.control.as_mut()?;
        if self.taken == control::REQUESTS {
            control.set_more(true);
            return None;
        }
        self.taken += 1;
        control.next_request(now)
    }

    /// Does what a client asks, or sees to it that it is done. `without`: why there is no network, where there is none.
    pub fn obey(
        &mut self,
        key: Key,
        request: Request,
        fds: Vec<OwnedFd>,
        without: &'static str,
    ) -> Result<(), StationError> {
        let now = self.now();
        let Some(control) = &mut self.control else { return Ok(()) };
        let Some(Uplink { link, .. }) = &mut self.network else {
            control.reply(key, self.desk.obey_without_network(request, without, now), now);
            return Ok(());
        };
        let about = (now, control.connection(key).filter(|_| request.verb == "subscribe"));
        if let Some(reply) = self.desk.obey(key, request, fds, link, now, about)? {
            control.reply(key, reply, now);
        }
        Ok(())
    }

    /// A monitor's own reply to a client, with descriptors.
    pub fn reply(&mut self, key: Key, reply: Vec<u8>, fds: Vec<OwnedFd>) {
        let now = self.now();
        if let Some(control) = &mut self.control {
            control.reply_with(key, reply, fds, now);
        }
    }

    fn answer(&mut self, answered: Vec<Answered>) {
        let now = self.now();
        let Some(control) = &mut self.control else { return };
        for Answered { key, reply } in answered {
            match reply {
                Some(reply) => control.reply(key, reply, now),
                None => control.subscribe(key),
            }
        }
    }

    /// True if the host's resolv.conf or hosts may have changed, or the way to them; the name servers are seen to.
    pub fn host_changed(&mut self, woken: &Woken) -> bool {
        if !woken.watch.unwrap_or(woken.idle || self.watcher.is_none()) {
            return false;
        }
        let changed = match &mut self.watcher {
            Some(watcher) => watcher.changed(&ALSO_WATCHED),
            None if self.started.elapsed() < WATCH_AFTER => false,
            None => {
                self.watcher = Some(Watcher::new(Path::new(RESOLV_CONF), &ALSO_WATCHED));
                self.settled_down = true;
                true
            }
        };
        if changed {
            self.desk.handle_host_servers(host_dns::servers(&host_dns::read(Path::new(RESOLV_CONF))));
        }
        changed
    }

    /// What is left to do at the end of a turn.
    pub fn settle(&mut self) -> Result<(), StationError> {
        let now = self.now();
        if let Some(Uplink { link, .. }) = &mut self.network {
            let late = self.desk.handle_timeout(now, link)?;
            self.desk.tell_due(link)?;
            link.flush()?;
            self.answer(late);
        }
        if std::mem::take(&mut self.desk.stale) {
            self.write_state();
        }
        if std::mem::take(&mut self.settled_down) {
            // Everything is under way: from here on there is little to do but wait.
            sys::memory::drop_text();
        }
        Ok(())
    }

    /// It runs: whoever waits for the sandbox finds it so.
    pub fn begun(&mut self) {
        self.about.started = Some(state::now());
        self.write_state();
    }

    fn write_state(&self) {
        let Identity { id, name } = self.desk.identity.clone();
        let (ports, about) = (self.desk.ports.listeners(), self.about.clone());
        let state = state::Sandbox { id, name, pid: std::process::id(), ports, about };
        if let Err(error) = self.entry.update(&state) {
            tracing::warn!("{}", telemetry::chain(&error));
        }
    }

    /// The end: lets go of the network, then of name and address, and gives `waiting` their answer, if they are to have one.
    /// The last close of a TAP waits for the kernel (some 15 ms, as does that of the watch), so it is left to the network
    /// process, and runs while we close the rest.
    pub fn close(self, waiting: &[Key], reply: &[u8]) {
        let Self { desk, entry, source, network, tap, pcap, control, started, watcher, .. } = self;
        drop(tap);
        drop(pcap);
        drop(desk);
        drop(watcher);
        if let Some(network) = network {
            network.close();
        }
        drop(entry);
        // With the lease, whose address is free from here on.
        drop(source);
        if let Some(mut control) = control {
            for &key in waiting {
                control.reply(key, reply.to_vec(), started.elapsed());
            }
        }
    }
}

/// As poll(2) takes it: milliseconds, rounded up.
fn timeout_of(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
}
