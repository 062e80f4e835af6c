//! What every monitor has, whoever made the namespace that it stands by: the endpoints, each with its TAP and the way to its network
//! process, the control socket and what clients ask for there, the watch on the host's resolv.conf, and the state file.
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
//!
//! **Several networks.** Which of them is the gateway follows from what they are (`network::gateway`) and is settled anew whenever
//! an endpoint comes or goes ([`Station::elect`]): the published ports are served by its process from then on, their sockets stay
//! open here meanwhile. What a client asks is asked of the gateway's process, or of the one of the network that it names.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::control::{self, Key, Server, Watched};
use super::desk::{Answered, Desk, Identity};
use super::endpoint::{self, Endpoint};
use super::host_dns::{self, RESOLV_CONF, Watcher};
use super::place::{Place, Template};
use super::state::{self, About, Entry};
use super::uplink::{LEAVE_TIME, Uplink, UplinkError};
use crate::api::attach::{AttachError, FromNetwork};
use crate::api::error::{ApiError, Code};
use crate::api::session::{Limits, Request};
use crate::api::verbs;
use crate::network::config::{Listener, Offloads};
use crate::network::desired::Desired;
use crate::{sys, telemetry};

/// When the host's resolv.conf is first looked at again, and watched from then on. Making and above all closing a watch
/// costs milliseconds, which a short command should not pay.
const WATCH_AFTER: Duration = Duration::from_millis(500);

/// How often another network process is tried for where the machine is short of descriptors, memory or processes.
const RETRY: Duration = Duration::from_millis(500);

/// What the watcher looks for beside resolv.conf.
const ALSO_WATCHED: [&str; 1] = ["hosts"];

/// What was decided before anything is started.
#[derive(Debug)]
pub struct Plan {
    /// Where the sandbox is from the beginning, in the order of its interfaces.
    pub places: Vec<Place>,
    /// What its endpoints have in common.
    pub template: Template,
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
    /// Capture file, open: what the first endpoint carries is written there.
    pub pcap: Option<OwnedFd>,
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

/// What a network process has said that is the monitor's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Frames flow on this interface.
    Ready(String),
    /// The process of this interface's endpoint died, and another has taken its place.
    Replaced(String),
    /// The process that this interface's endpoint was leaving has let go of everything.
    Left(String),
    /// The endpoint of this interface is not served: why.
    Refused(String, String),
    /// The same, and for good: its frames have killed the network's process.
    Aside(String, String),
}

/// What has happened, of the station's own.
#[derive(Debug)]
pub struct Woken {
    /// Interfaces whose network processes have said something.
    networks: Vec<String>,
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
    /// Where the sandbox is, in the order in which it came there. None where it has no interface of its own.
    endpoints: Vec<Endpoint>,
    entry: Entry,
    /// The capture file, and the interface whose frames it has.
    pcap: Option<(String, Rc<OwnedFd>)>,
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
    /// Finds or starts the network processes, which come up meanwhile.
    pub fn open(plan: Plan) -> Result<Self, UplinkError> {
        let Plan { places, template, desired, identity, entry, control, listeners, metrics, pcap, about } = plan;
        let first = places.first().map(|place| place.interface.name.clone());
        let mut endpoints = Vec::new();
        for place in places {
            endpoints.extend(Endpoint::open(place)?);
        }
        let servers = host_dns::servers(&host_dns::read(Path::new(RESOLV_CONF)));
        let mut desk = Desk::new(identity, template, listeners, desired, servers);
        desk.metrics = metrics.map(|(address, socket)| (address, Rc::new(socket)));
        let mut station = Self {
            desk,
            about,
            endpoints,
            entry,
            pcap: first.zip(pcap.map(Rc::new)),
            control: control.map(|listener| Server::new(listener, &verbs::OF_SANDBOX, Limits::default())),
            started: Instant::now(),
            watcher: None,
            settled_down: false,
            taken: 0,
        };
        let order = endpoint::order(&station.endpoints);
        if let Some(&main) = station.gateway(&order).or(order.first()) {
            station.endpoints[main].main = true;
            station.endpoints[main].metrics = true;
        }
        if let Some(&gateway) = station.gateway(&order) {
            station.endpoints[gateway].gateway = true;
            let (v4, v6) = station.endpoints[gateway].plans();
            station.desk.ports.set_guests(v4.map(|plan| plan.guest), v6.map(|plan| plan.guest));
        }
        Ok(station)
    }

    /// The gateway among endpoints that are in order.
    fn gateway<'a>(&self, order: &'a [usize]) -> Option<&'a usize> {
        order.iter().find(|&&at| self.endpoints[at].rank().leads_out())
    }

    /// Time since the beginning, in which everything here is told.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The endpoints, in the order of their interfaces.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The same in the order of their ranks, those left out that are being closed.
    pub fn ranked(&self) -> Vec<&Endpoint> {
        endpoint::order(&self.endpoints).into_iter().map(|at| &self.endpoints[at]).collect()
    }

    /// True if frames flow everywhere, or there is nothing by which they could.
    pub fn is_ready(&self) -> bool {
        self.endpoints.iter().all(|endpoint| endpoint.uplink.ready)
    }

    fn at(&self, interface: &str) -> Option<usize> {
        self.endpoints.iter().position(|endpoint| endpoint.interface() == interface)
    }

    /// The endpoint of this interface.
    pub fn endpoint(&self, interface: &str) -> Option<&Endpoint> {
        self.at(interface).map(|at| &self.endpoints[at])
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
        let endpoints = self.endpoints.iter().filter_map(Endpoint::next_timeout).min();
        for at in [clients, endpoints, until].into_iter().flatten() {
            let left = at.saturating_sub(now);
            wait = Some(wait.map_or(left, |wait| wait.min(left)));
        }
        let mut fds: Vec<PollFd<'_>> = own.iter().map(|&(fd, flags)| PollFd::new(fd, flags)).collect();
        let links = fds.len();
        // A dead connection would be ready without end.
        let linked: Vec<&Endpoint> = self.endpoints.iter().filter(|endpoint| endpoint.retry.is_none()).collect();
        fds.extend(linked.iter().map(|Endpoint { uplink: Uplink { link, .. }, .. }| {
            let output = if link.wants_output() { PollFlags::POLLOUT } else { PollFlags::empty() };
            PollFd::new(link.fd(), PollFlags::POLLIN | output)
        }));
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
            networks: (linked.iter().enumerate())
                .filter(|(at, _)| is_ready(links + at))
                .map(|(_, endpoint)| endpoint.interface().to_owned())
                .collect(),
            watch: watch.map(is_ready),
            clients: clients.filter(|(_, events)| !events.is_empty()).collect(),
            idle: count == 0,
        };
        Ok(((0..own.len()).map(is_ready).collect(), woken))
    }

    /// The TAP of this interface exists, with so many queues: its network process is told everything.
    pub fn handle_tap(&mut self, interface: &str, taps: Vec<OwnedFd>, offloads: Offloads) -> Result<(), StationError> {
        let Some(at) = self.at(interface) else { return Ok(()) };
        let mut taps = taps.into_iter().map(Rc::new);
        self.endpoints[at].tap = taps.next();
        self.endpoints[at].queues = taps.collect();
        self.endpoints[at].place.config.offloads = offloads;
        tracing::info!(
            interface,
            queues = 1 + self.endpoints[at].queues.len(),
            vnet_hdr = offloads.vnet_hdr,
            csum = offloads.csum,
            tso4 = offloads.tso4,
            tso6 = offloads.tso6,
            uso = offloads.uso,
            "the TAP's offloads"
        );
        self.attach(at)
    }

    /// Tells the network process everything, with duplicates of every descriptor.
    fn attach(&mut self, at: usize) -> Result<(), StationError> {
        let endpoint = &mut self.endpoints[at];
        let pcap = self.pcap.as_ref().filter(|(interface, _)| interface == endpoint.interface()).map(|(_, file)| file);
        self.desk.attach(endpoint, pcap)?;
        let control = self.control.as_ref();
        self.desk.resume(endpoint, self.started.elapsed(), |key| control?.connection(key))?;
        self.introduce()
    }

    /// Has the network processes know of each other what they need to.
    fn introduce(&mut self) -> Result<(), StationError> {
        if self.endpoints.len() > 1 { Ok(endpoint::introduce(&mut self.endpoints)?) } else { Ok(()) }
    }

    /// An endpoint more, whose interface does not exist yet.
    pub fn add(&mut self, endpoint: Endpoint) {
        self.endpoints.push(endpoint);
    }

    /// The endpoint of this interface is about to be closed, and no gateway any more: what comes for published ports comes by
    /// another one from now on. `limit`: when it has to be over.
    pub fn retire(&mut self, interface: &str, limit: Duration) -> Result<(), StationError> {
        let until = self.now() + limit;
        let Some(at) = self.at(interface) else { return Ok(()) };
        self.endpoints[at].leaving = Some(until);
        self.elect()
    }

    /// Begins to close the endpoint of this interface. What its process says then is [`Said::Left`].
    pub fn leave(&mut self, interface: &str) {
        let until = self.now() + LEAVE_TIME;
        let Some(at) = self.at(interface) else { return };
        self.endpoints[at].uplink.link.say_goodbye();
        self.endpoints[at].leaving = Some(until);
    }

    /// The endpoint is no more: its address is free. What was asked of it is over, and who was told of its events is told of those
    /// of the one that takes its place.
    pub fn remove(&mut self, interface: &str) -> Result<(), StationError> {
        let Some(at) = self.at(interface) else { return Ok(()) };
        let mut endpoint = self.endpoints.remove(at);
        let answered = self.desk.handle_lost(&mut endpoint);
        self.answer(answered);
        self.desk.stale = true;
        let subscribers = std::mem::take(&mut endpoint.subscribers);
        endpoint.close();
        self.elect()?;
        let (Some(main), Some(control)) = (self.endpoints.iter_mut().find(|one| one.main), &self.control) else {
            return Ok(());
        };
        for (key, arguments) in subscribers {
            if let Some(connection) = control.connection(key) {
                main.subscribers.insert(key, arguments.clone());
                if main.attached {
                    Desk::resubscribe(main, arguments, connection)?;
                }
            }
        }
        Ok(())
    }

    /// An endpoint has come or gone: settles which is the gateway, and has everybody know.
    pub fn elect(&mut self) -> Result<(), StationError> {
        let order = endpoint::order(&self.endpoints);
        let gateway = self.gateway(&order).copied();
        let main = gateway.or(order.first().copied());
        // First they are let go of, then they are taken: by then they may be the same process's.
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            if Some(at) != gateway {
                self.desk.set_gateway(endpoint, false)?;
            }
            endpoint.main = Some(at) == main;
        }
        if let Some(gateway) = gateway {
            self.desk.set_gateway(&mut self.endpoints[gateway], true)?;
        }
        if let Some(main) = main
            && !self.endpoints.iter().any(|endpoint| endpoint.metrics)
        {
            self.desk.give_metrics(&mut self.endpoints[main])?;
        }
        self.desk.stale = true;
        self.introduce()
    }

    /// The sandbox's files follow what networks it is on. `embedded`: names can be asked for at the address of Docker's containers.
    pub fn handle_networks(&mut self, embedded: bool) {
        let order: Vec<&Endpoint> =
            endpoint::order(&self.endpoints).into_iter().map(|at| &self.endpoints[at]).collect();
        self.desk.handle_networks(&order, embedded);
    }

    /// The same, before there are files.
    pub fn know_networks(&mut self, embedded: bool) {
        let order: Vec<&Endpoint> =
            endpoint::order(&self.endpoints).into_iter().map(|at| &self.endpoints[at]).collect();
        self.desk.know_networks(&order, embedded);
    }

    /// Everything that the network processes have said.
    pub fn hear(&mut self, woken: &Woken) -> Result<Vec<Said>, StationError> {
        let mut said = Vec::new();
        for interface in &woken.networks {
            if let Some(at) = self.at(interface) {
                said.extend(self.hear_one(at)?);
            }
        }
        let now = self.now();
        for at in 0..self.endpoints.len() {
            if self.endpoints[at].retry.is_some_and(|due| due <= now) && self.restart(at)? {
                said.push(Said::Replaced(self.endpoints[at].interface().to_owned()));
            }
        }
        let late = self.endpoints.iter().filter(|endpoint| endpoint.leaving.is_some_and(|until| until <= now));
        for endpoint in late {
            let left = Said::Left(endpoint.interface().to_owned());
            if !said.contains(&left) {
                tracing::warn!(
                    "the process of network {} does not answer; ports may be taken for a while",
                    endpoint.place.network
                );
                said.push(left);
            }
        }
        Ok(said)
    }

    fn hear_one(&mut self, at: usize) -> Result<Vec<Said>, StationError> {
        let mut said = Vec::new();
        loop {
            let endpoint = &mut self.endpoints[at];
            let interface = endpoint.interface().to_owned();
            let leaving = endpoint.leaving.is_some();
            match endpoint.uplink.link.hear() {
                Ok(None) => return Ok(said),
                Ok(Some(FromNetwork::Ready)) => {
                    endpoint.uplink.ready = true;
                    said.push(Said::Ready(interface));
                }
                Ok(Some(FromNetwork::Failed { desc, aside })) => {
                    said.push(if aside { Said::Aside(interface, desc) } else { Said::Refused(interface, desc) });
                    return Ok(said);
                }
                Ok(Some(word)) => {
                    let answered = self.desk.handle_word(word, endpoint)?;
                    self.answer(answered);
                }
                Err(_) if leaving => {
                    said.push(Said::Left(interface));
                    return Ok(said);
                }
                Err(error) => {
                    if !matches!(error, AttachError::Closed) {
                        let why = telemetry::chain(&error);
                        tracing::warn!("the network process talks nonsense and is replaced: {why}");
                    }
                    if self.replace(at)? {
                        said.push(Said::Replaced(interface));
                    }
                    return Ok(said);
                }
            }
        }
    }

    /// The connection is gone: attaches to another process. False if that is still to be done, for lack of something.
    fn replace(&mut self, at: usize) -> Result<bool, StationError> {
        let endpoint = &mut self.endpoints[at];
        if endpoint.is_interface_gone() {
            return Err(StationError::InterfaceGone);
        }
        endpoint.handle_lost()?;
        // What was being asked is over.
        let answered = self.desk.handle_lost(endpoint);
        self.answer(answered);
        self.restart(at)
    }

    /// Attaches to another process in place of the one that was lost, which is told all that holds.
    fn restart(&mut self, at: usize) -> Result<bool, StationError> {
        let now = self.now();
        let endpoint = &mut self.endpoints[at];
        if endpoint.is_interface_gone() {
            return Err(StationError::InterfaceGone);
        }
        match endpoint.reopen() {
            Ok(()) => {
                endpoint.retry = None;
                self.attach(at)?;
                Ok(true)
            }
            Err(error) if error.is_shortage() => {
                if endpoint.retry.replace(now + RETRY).is_none() {
                    let (why, seconds) = (telemetry::chain(&error), RETRY.as_secs_f32());
                    tracing::warn!("{why}; the sandbox is without network, and it is tried again every {seconds} s");
                }
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
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
        for endpoint in &mut self.endpoints {
            endpoint.subscribers.retain(|&key, _| control.is_there(key));
        }
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
        mut request: Request,
        fds: Vec<OwnedFd>,
        without: &'static str,
    ) -> Result<(), StationError> {
        let now = self.now();
        let Some(control) = &mut self.control else { return Ok(()) };
        let wanted = if verbs::OF_ONE_NETWORK.contains(&request.verb.as_str()) {
            request.arguments.remove("network")
        } else {
            None
        };
        let endpoint = match &wanted {
            None => self.endpoints.iter_mut().find(|endpoint| endpoint.main),
            Some(typed) => {
                let typed = typed.as_str().unwrap_or_default();
                let Some(at) = endpoint::position(&self.endpoints, typed) else {
                    let networks: Vec<&str> =
                        self.endpoints.iter().map(|endpoint| endpoint.place.network.as_str()).collect();
                    let desc = format!(
                        "{}: network: the sandbox is not on network {wanted}, but on: {}",
                        request.verb,
                        networks.join(", "),
                        wanted = wanted.as_ref().map(ToString::to_string).unwrap_or_default(),
                    );
                    control.reply(key, ApiError::new(Code::BadArgument, desc).reply(), now);
                    return Ok(());
                };
                self.endpoints.get_mut(at)
            }
        };
        let Some(endpoint) = endpoint else {
            control.reply(key, self.desk.obey_without_network(request, without, now), now);
            return Ok(());
        };
        let about = (now, control.connection(key).filter(|_| request.verb == "subscribe"));
        if let Some(reply) = self.desk.obey(key, request, fds, endpoint, now, about)? {
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
            match (host_dns::try_read(Path::new(RESOLV_CONF)), &mut self.watcher) {
                (Some(conf), _) => self.desk.handle_host_servers(host_dns::servers(&conf)),
                (None, Some(watcher)) => watcher.look_again(),
                (None, None) => {}
            }
        }
        changed
    }

    /// What is left to do at the end of a turn.
    pub fn settle(&mut self) -> Result<(), StationError> {
        let now = self.now();
        let mut late = Vec::new();
        for endpoint in &mut self.endpoints {
            late.extend(self.desk.handle_timeout(now, endpoint)?);
            self.desk.tell_due(endpoint)?;
            endpoint.uplink.link.flush()?;
        }
        self.answer(late);
        if std::mem::take(&mut self.desk.stale) {
            let ports = self.desk.ports.listeners();
            for endpoint in &mut self.endpoints {
                endpoint.tell_lease(if endpoint.gateway { ports.clone() } else { Vec::new() });
            }
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
        let (ports, mut about) = (self.desk.ports.listeners(), self.about.clone());
        if !self.endpoints.is_empty() || !about.is_without_interface() {
            about.networks = self.endpoints.iter().map(Endpoint::attachment).collect();
        }
        let state = state::Sandbox { id, name, pid: std::process::id(), ports, about };
        if let Err(error) = self.entry.update(&state) {
            tracing::warn!("{}", telemetry::chain(&error));
        }
    }

    /// The end: lets go of the network, then of name and address, and gives `waiting` their answer, if they are to have one.
    /// The last close of a TAP waits for the kernel (some 15 ms, as does that of the watch), so it is left to the network
    /// process, and runs while we close the rest.
    pub fn close(self, waiting: &[Key], reply: &[u8]) {
        let Self { desk, entry, endpoints, pcap, control, started, watcher, .. } = self;
        drop(pcap);
        drop(desk);
        drop(watcher);
        // They let go at the same time.
        let mut closing = Vec::new();
        for endpoint in endpoints {
            let Endpoint { place, mut uplink, tap, queues, .. } = endpoint;
            drop((tap, queues));
            uplink.link.say_goodbye();
            closing.push((uplink, place));
        }
        let places: Vec<Place> = closing
            .into_iter()
            .map(|(uplink, place)| {
                uplink.close();
                place
            })
            .collect();
        drop(entry);
        // With the leases, whose addresses are free from here on.
        drop(places);
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
