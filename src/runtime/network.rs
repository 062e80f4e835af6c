//! The process of a network that many endpoints share.
//!
//! ```text
//! monitors ──connect──► listener ─► [attend]: Arrival ─► Order::Attach ─► Ready ─► Told … until the connection ends
//! tapway network inspect ─► reads ─► [Reads] ─► Order::Survey
//! ```
//!
//! One task for each connection, and the connection is the lease: when it ends (or the monitor says no more, and waits), the member's names are forgotten, its port
//! of the switch and its published ports closed, its host sockets reset, in this order and at once. A member whose TAP is gone
//! loses its lease by itself. What a monitor says and asks meanwhile goes to its own endpoint alone: each has a resolver with
//! its own records and servers, an observer, events and captures of its own, as if it had a process to itself.
//!
//! **Who may come.** Whoever reaches the socket, which lies in a directory of the user's, and is the same user (SO_PEERCRED).
//! An endpoint that would be somebody else on the network (MAC, address) is refused with `Failed`.
//!
//! **Leaving.** After the last connection the process waits for [`NetworkConfig::linger_ms`], at its start for
//! [`NetworkConfig::first_ms`], and then closes its listener and ends. Whoever connects to a listener that closes sees that
//! at once (ECONNREFUSED, or the end of the connection) and starts another process.
//!
//! **Limits.** Members ([`NetworkConfig::max_members`]); connections that have not said `Start` yet ([`ARRIVING`], for
//! [`ARRIVAL`] each); whoever is one too many waits in the listener's backlog. The tables of each endpoint have their own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant as Clock};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockFlag, accept4, getsockopt, shutdown, sockopt::PeerCredentials};
use nix::unistd::Uid;
use serde_json::Value;
use smoltcp::time::Instant;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

use super::answers::Answers;
use super::arrival::{Arrival, Heard};
use super::capture::Taken;
use super::command::{AttachError as Refusal, DataPlane, MemberTraffic, Order, Orders};
use super::control::answer_query;
use super::endpoint::Parts;
use super::engine::{Ends, Engine, seed};
use super::fair::AllLimits;
use super::faults::Faults;
use super::lanes::{Laned, Lanes, Place};
use super::observe::{Identity, Observer};
use super::sockets::MAX_SLOTS;
use super::told::Told;
use super::{Attached, RuntimeError, events, metrics_http, scene, set_nonblocking, start_control_with, system};
use crate::api::attach::{self, AttachError, FromNetwork, MAX_FDS, ToNetwork};
use crate::api::error::{self, ApiError, Code};
use crate::api::server::{self, Answer, Connection, Handler};
use crate::api::session::{self, Dialect, Request};
use crate::api::verbs::network as api;
use crate::confine;
use crate::host::resolver::{self, Neighbours, Resolver};
use crate::network::config::{EndpointConfig, Membership, NetworkConfig, Turns};
use crate::network::directory::{self, Directory};
use crate::stack::Limits;
use crate::stack::arena::Id;
use crate::stack::policy::NetworkRules;
use crate::stack::switch::{AttachRefusal, Switch, SwitchLimits};
use crate::stack::verdict::DropReason;
use crate::telemetry::chain;

/// Connections beside those of members: arriving, or being refused.
const ARRIVING: usize = 16;
/// How long a monitor may take from its connection to `Start`: ports come in batches that are acknowledged.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How often an endpoint is tried whose place is still taken: a monitor that lets go and comes again is heard coming before
/// it is heard going.
const TRIES: usize = 10;
/// Between two tries.
const RETRY: Duration = Duration::from_millis(20);
/// How long nobody is accepted when descriptors run out.
const REST: Duration = Duration::from_millis(50);
/// Most bytes of a request on the socket for reads; its verbs have no arguments.
const REQUEST: usize = 4096;

/// What the process has of those before it.
#[derive(Debug, Default)]
pub struct Before {
    /// Where it notes whose turn it is ([`crate::network::config::mark`]).
    pub serving: Option<&'static Turns>,
    /// Sandboxes that are put aside, and why they are refused.
    pub aside: BTreeMap<String, String>,
}

/// Serves one network to all its members; returns when nobody has been there for a while.
///
/// `listener`: a listening SOCK_SEQPACKET socket, for monitors. `reads`: a listening stream socket, for whoever looks.
pub fn shared_network_process(
    listener: OwnedFd,
    reads: Option<OwnedFd>,
    config: NetworkConfig,
    before: Before,
) -> ExitCode {
    match serve(listener, reads, config, before) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve(
    listener: OwnedFd,
    reads: Option<OwnedFd>,
    mut config: NetworkConfig,
    before: Before,
) -> Result<(), RuntimeError> {
    let text = crate::sys::memory::Text::find();
    let user = nix::unistd::geteuid();
    // Before a byte of anybody's is read, and while there is one thread.
    let report = confine::enter(confine::Options { keep_user: true, ..confine::Options::default() })?;
    scene::watch();
    tracing::debug!(?report, "confined");
    let confinement = report.outcomes().map(|(stage, outcome)| (stage.to_owned(), outcome.to_string())).into();
    config.max_members = config.max_members.clamp(1, MAX_SLOTS);
    set_nonblocking(&listener)?;
    if let Some(reads) = &reads {
        set_nonblocking(reads)?;
    }
    let limits = SwitchLimits { members: config.max_members, ..SwitchLimits::default() };
    let Before { serving, aside } = before;
    let (mut engine, mut ends) =
        Engine::new(Some(Switch::new(config.icc, limits, seed()?)), AllLimits::default().fitting())?;
    if let Some(serving) = serving {
        engine.tell_turns(serving, &mut ends.lanes);
    }
    start_control_with(
        move |runtime| {
            let local = LocalSet::new();
            local.block_on(runtime, Network::run(listener, reads, config, (user, aside), confinement, ends));
        },
        || std::process::exit(0),
    )?;
    text.drop_pages();
    engine.run().map(drop)
}

/// One member, as the control plane knows it.
struct Member {
    id: Id,
    config: EndpointConfig,
    names: Vec<String>,
    resolver: Arc<Resolver>,
}

impl Member {
    fn name(&self) -> &str {
        self.names.first().map_or(&self.config.id, String::as_str)
    }
}

/// The control plane of a network.
struct Network {
    config: NetworkConfig,
    user: Uid,
    aside: BTreeMap<String, String>,
    confinement: BTreeMap<String, String>,
    directory: Arc<RwLock<Directory>>,
    /// By slot; true: a slot that somebody is about to have, or has just left.
    members: RefCell<Vec<Option<Member>>>,
    taken: RefCell<Vec<bool>>,
    generation: Cell<u32>,
    connections: Cell<usize>,
    ended: tokio::sync::Notify,
    ends: EndsLeft,
    lanes: RefCell<Lanes>,
}

/// What is left of the data plane's ends without the questions.
struct EndsLeft {
    ask: tokio::sync::mpsc::Sender<super::control::DnsQuery>,
    orders: super::command::Orders,
    epoll: Arc<nix::sys::epoll::Epoll>,
    since: Clock,
}

/// An endpoint that is served.
struct Served {
    id: Id,
    plane: DataPlane,
    resolver: Arc<Resolver>,
    answers: Rc<Answers>,
    names: super::control::Names,
    /// What goes on beside, until it leaves.
    tasks: Vec<JoinHandle<()>>,
    gone: oneshot::Receiver<()>,
}

impl Network {
    async fn run(
        listener: OwnedFd,
        reads: Option<OwnedFd>,
        config: NetworkConfig,
        (user, aside): (Uid, BTreeMap<String, String>),
        confinement: BTreeMap<String, String>,
        ends: Ends,
    ) {
        let Ends { mut queries, ask, answers, wake, orders, epoll, lanes, since } = ends;
        let listener = match crate::sys::fd::watch(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!("cannot watch the attach socket: {error}"),
        };
        let directory = Directory::new(&config.name, directory::Limits::default());
        let network = Rc::new(Self {
            directory: Arc::new(RwLock::new(directory)),
            members: RefCell::default(),
            taken: RefCell::default(),
            generation: Cell::new(1),
            connections: Cell::new(0),
            ended: tokio::sync::Notify::new(),
            ends: EndsLeft { ask, orders, epoll, since },
            lanes: RefCell::new(lanes),
            config,
            user,
            aside,
            confinement,
        });
        if let Some(reads) = reads {
            let handler = Reads(Rc::clone(&network));
            tokio::task::spawn_local(async move {
                let session = session::Limits { request: REQUEST, ..session::Limits::default() };
                let limits = server::Limits { clients: 32, session, ..server::Limits::default() };
                let error = server::serve(UnixListener::from(reads), handler, limits).await;
                tracing::error!("the network's socket is served no more: {error}");
            });
        }
        let mut leave_at = Clock::now() + Duration::from_millis(network.config.first_ms);
        loop {
            let room = network.connections.get() < network.config.max_members + ARRIVING;
            let alone = network.connections.get() == 0;
            tokio::select! {
                query = queries.recv() => {
                    let Some(query) = query else { return };
                    if let Some(resolver) = network.resolver(query.endpoint()) {
                        answer_query(query, &resolver, &answers, &wake);
                    }
                }
                accepted = accept(&listener), if room => match accepted {
                    Ok(conn) => network.welcome(conn),
                    Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => tokio::time::sleep(REST).await,
                    Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                    Err(errno) => return tracing::error!("cannot accept monitors: {errno}"),
                },
                () = network.ended.notified() => {
                    if network.connections.get() == 0 {
                        leave_at = Clock::now() + Duration::from_millis(network.config.linger_ms);
                    }
                }
                () = tokio::time::sleep_until(leave_at.into()), if alone => {
                    // Somebody may have come this very moment.
                    let Ok(conn) = accept_now(listener.get_ref()) else {
                        tracing::info!(network = network.config.name, "nobody is left: leaving");
                        return;
                    };
                    network.welcome(conn);
                }
            }
        }
    }

    fn resolver(&self, endpoint: Id) -> Option<Arc<Resolver>> {
        let members = self.members.borrow();
        let member = members.get(endpoint.index as usize)?.as_ref().filter(|member| member.id == endpoint)?;
        Some(Arc::clone(&member.resolver))
    }

    /// Begins to serve a connection, if it is the user's.
    fn welcome(self: &Rc<Self>, conn: OwnedFd) {
        match getsockopt(&conn, PeerCredentials) {
            Ok(peer) if peer.uid() == self.user.as_raw() => {}
            Ok(peer) => return tracing::warn!(uid = peer.uid(), "another user's connection is refused"),
            Err(errno) => return tracing::warn!("a connection without credentials is refused: {errno}"),
        }
        let network = Rc::clone(self);
        self.connections.set(self.connections.get() + 1);
        tokio::task::spawn_local(async move {
            network.attend(conn).await;
            network.connections.set(network.connections.get() - 1);
            network.ended.notify_one();
        });
    }

    /// One connection, from its first word to its end.
    async fn attend(&self, conn: OwnedFd) {
        let conn = match crate::sys::fd::watch(conn) {
            Ok(conn) => conn,
            Err(error) => return tracing::error!("cannot watch a connection: {error}"),
        };
        let attached = match tokio::time::timeout(ARRIVAL, arrive(&conn)).await {
            Ok(Ok(attached)) => attached,
            Ok(Err(RuntimeError::Attach(AttachError::Closed))) => return,
            Ok(Err(error)) => return refuse(&conn, &chain(&error)),
            Err(_) => return refuse(&conn, "the endpoint was not told in time"),
        };
        let id = attached.endpoint.id.clone();
        if let Some(desc) = self.aside.get(&id) {
            tracing::warn!(id, "put aside");
            let last = FromNetwork::Failed { desc: desc.clone(), aside: true };
            let _ = attach::send(conn.get_ref(), &last, &[]);
            return;
        }
        let served = match self.admit(attached).await {
            Ok(served) => served,
            Err(desc) => {
                tracing::warn!(id, "refused: {desc}");
                return refuse(&conn, &desc);
            }
        };
        let Served { id: slot, plane, resolver, answers, names, tasks, gone } = served;
        tracing::info!(id, "joined");
        let mut held = None;
        if attach::send(conn.get_ref(), &FromNetwork::Ready, &[]).is_ok() {
            let told = Told::start(conn, (resolver, names), plane.clone(), answers);
            held = Some(told.connection());
            tokio::select! {
                () = told.listen() => {}
                _ = gone => tracing::info!(id, "the TAP is gone"),
            }
        }
        tasks.iter().for_each(JoinHandle::abort);
        plane.hub().close();
        self.dismiss(slot).await;
        // A monitor that waits for it may count on everything being free.
        if let Some(conn) = held {
            let _ = shutdown(conn.get_ref().as_raw_fd(), Shutdown::Both);
        }
        tracing::info!(id, "left");
    }

    /// Serves an endpoint, or says why not.
    async fn admit(&self, attached: Box<Attached>) -> Result<Served, String> {
        let Attached { endpoint: config, tap, queues, pcap, listeners, mut dns, metrics, membership, faults, .. } =
            *attached;
        let Membership { names, links } = &membership;
        let aliases = self.read(|directory| directory.aliases(links)).map_err(|error| error.to_string())?;
        let id = self.take_slot()?;
        dns.offline = self.config.internal;
        let resolver = Arc::new(Resolver::new(resolver::Limits::default()));
        if self.config.names {
            resolver.set_neighbours(Neighbours { directory: Arc::clone(&self.directory), aliases });
        }
        dns.tell(&resolver);
        let (flows, hearer) = events::flow_channel();
        let (tell_gone, gone) = oneshot::channel();
        let rules = NetworkRules { internal: self.config.internal, masquerade: self.config.masquerade };
        let limits = Limits::default();
        let identity = Identity { confinement: self.confinement.clone(), ..Identity::new(config.clone(), limits) };
        let parts = Parts {
            id,
            config: config.clone(),
            tap,
            captures: Taken::default(),
            flows,
            queries: self.ends.ask.clone(),
            faults: faults.clone(),
            rules: Some(rules),
            shared: Some((membership.clone(), tell_gone)),
            lane: Default::default(),
        };
        let place = Place {
            orders: self.ends.orders.clone(),
            epoll: Arc::clone(&self.ends.epoll),
            queues,
            listeners: 0,
            pcap,
            now: Instant::from_micros(i64::try_from(self.ends.since.elapsed().as_micros()).unwrap_or(i64::MAX)),
        };
        let made = self.lanes.borrow_mut().endpoint(parts, limits, place);
        let attached = match made {
            Ok(laned) => self.attach(id, laned).await,
            Err(error) => Err(chain(&error)),
        };
        let plane = match attached {
            Ok(plane) => plane,
            Err(desc) => {
                self.give_slot_back(id);
                return Err(desc);
            }
        };
        let addresses = config.v4.map(|plan| IpAddr::V4(plan.guest)).into_iter();
        let addresses: Vec<IpAddr> = addresses.chain(config.v6.map(|plan| IpAddr::V6(plan.guest))).collect();
        let joined = if self.config.names {
            let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            directory.join(id.index, names, &addresses).map_err(|error| error.to_string())
        } else {
            Ok(())
        };
        {
            let mut members = self.members.borrow_mut();
            let slot = id.index as usize;
            if members.len() <= slot {
                members.resize_with(slot + 1, || None);
            }
            let resolver = Arc::clone(&resolver);
            members[slot] = Some(Member { id, config, names: names.clone(), resolver });
        }
        let listening = match joined {
            Ok(()) => self.listen(&plane, listeners).await,
            Err(desc) => Err(desc),
        };
        if let Err(desc) = listening {
            self.dismiss(id).await;
            return Err(desc);
        }
        let events = tokio::task::spawn_local(events::watch(plane.clone(), hearer, Arc::clone(&resolver)));
        let observer = Observer::new(plane.clone(), identity, Arc::clone(&resolver));
        let metrics =
            metrics.map(|socket| tokio::task::spawn_local(metrics_http::serve(socket.into(), observer.clone())));
        let tasks = std::iter::once(events).chain(metrics).collect();
        let faults = Faults::new(plane.clone(), Arc::clone(&resolver), faults);
        let answers = Rc::new(Answers::new(plane.clone(), Some(observer)).with_faults(faults));
        Ok(Served { id, plane, resolver, answers, names: dns, tasks, gone })
    }

    /// Has the data plane serve an endpoint: the first lane, which may refuse, then the others.
    async fn attach(&self, id: Id, laned: Laned) -> Result<DataPlane, String> {
        let Laned { plane, first: mut endpoint, further } = laned;
        let membership = endpoint.membership.clone();
        for attempt in 1.. {
            let asked = self.ends.orders.ask(|done| Order::Attach { endpoint, done }).await;
            match asked.map_err(|error| error.to_string())? {
                Ok(()) => break,
                Err((Refusal::Refused(AttachRefusal::MacInUse(_) | AttachRefusal::AddressInUse(_)), again))
                    if attempt < TRIES =>
                {
                    endpoint = again;
                    endpoint.membership.clone_from(&membership);
                    tokio::time::sleep(RETRY).await;
                }
                Err((refusal, _)) => return Err(chain(&refusal)),
            }
        }
        for (orders, endpoint) in further {
            let asked = orders.ask(|done| Order::Attach { endpoint, done }).await;
            let refused = match asked {
                Ok(Ok(())) => continue,
                Ok(Err((refusal, _))) => chain(&refusal),
                Err(error) => error.to_string(),
            };
            self.detach(id).await;
            return Err(refused);
        }
        Ok(plane)
    }

    /// Has no lane serve an endpoint any more. Its sockets close here, with a reset each, and not on the data plane.
    async fn detach(&self, id: Id) {
        let further: Vec<Orders> = self.lanes.borrow().further().cloned().collect();
        for orders in further.iter().chain(std::iter::once(&self.ends.orders)) {
            drop(orders.ask(|done| Order::Detach { id, done }).await);
        }
    }

    /// In batches, so that nobody's frames wait for thousands of ports.
    async fn listen(
        &self,
        plane: &DataPlane,
        listeners: Vec<(crate::network::config::Listener, OwnedFd)>,
    ) -> Result<(), String> {
        let mut listeners = listeners.into_iter().peekable();
        while listeners.peek().is_some() {
            let batch = listeners.by_ref().take(MAX_FDS).collect();
            plane.listen_all(batch).await.map_err(|error| format!("cannot serve the published ports: {error}"))?;
        }
        Ok(())
    }

    /// Ends what [`Network::admit`] began: names first, so that nobody is sent to an address without anybody.
    async fn dismiss(&self, id: Id) {
        self.directory.write().unwrap_or_else(PoisonError::into_inner).leave(id.index);
        if let Some(member) = self.members.borrow_mut().get_mut(id.index as usize) {
            *member = None;
        }
        self.detach(id).await;
        self.give_slot_back(id);
    }

    fn read<T>(&self, look: impl FnOnce(&Directory) -> T) -> T {
        look(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lowest slot that nobody has.
    fn take_slot(&self) -> Result<Id, String> {
        let mut taken = self.taken.borrow_mut();
        let index = taken.iter().position(|taken| !taken).unwrap_or(taken.len());
        if index >= self.config.max_members {
            return Err(AttachRefusal::Full(self.config.max_members).to_string());
        }
        if index == taken.len() {
            taken.push(false);
        }
        taken[index] = true;
        let generation = self.generation.get();
        self.generation.set(generation.wrapping_add(1).max(1));
        Ok(Id { index: index as u32, generation })
    }

    fn give_slot_back(&self, id: Id) {
        if let Some(taken) = self.taken.borrow_mut().get_mut(id.index as usize) {
            *taken = false;
        }
    }
}

/// The next connection.
async fn accept(listener: &AsyncFd<OwnedFd>) -> Result<OwnedFd, Errno> {
    loop {
        let mut ready = listener.readable().await.map_err(|_| Errno::EBADF)?;
        match accept_now(listener.get_ref()) {
            Err(Errno::EAGAIN) => ready.clear_ready(),
            other => return other,
        }
    }
}

fn accept_now(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK).map(crate::sys::fd::adopt)
}

/// Listens to a monitor until it says `Start`.
async fn arrive(conn: &AsyncFd<OwnedFd>) -> Result<Box<Attached>, RuntimeError> {
    let mut arrival = Arrival::default();
    loop {
        let mut ready = conn.readable().await.map_err(system("wait for the monitor"))?;
        match attach::recv::<ToNetwork>(conn.get_ref().as_fd()) {
            Ok((message, fds)) => match arrival.heed(message, fds)? {
                Heard::Noted => {}
                // It waits for this word, so there is room for it.
                Heard::Listened => attach::send(conn.get_ref(), &FromNetwork::Listened { error: None }, &[])?,
                Heard::Start(attached) => return Ok(attached),
            },
            Err(AttachError::Socket { source: Errno::EAGAIN, .. }) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The last word to a monitor.
fn refuse(conn: &AsyncFd<OwnedFd>, desc: &str) {
    let _ = attach::send(conn.get_ref(), &FromNetwork::Failed { desc: desc.to_owned(), aside: false }, &[]);
}

// ---- the network's own socket ----

/// Answers what is asked about the whole network.
struct Reads(Rc<Network>);

impl Handler for Reads {
    const VERBS: &'static [&'static str] = &api::VERBS;
    const DIALECT: Dialect = Dialect::Tapway;

    async fn answer(&self, request: Request, _fds: Vec<OwnedFd>, _connection: Connection<'_>) -> Answer {
        let Request { verb, arguments } = request;
        let result = match error::arguments::<crate::api::verbs::observe::Nothing>(&verb, arguments) {
            Ok(_) => self.0.tell(&verb).await,
            Err(error) => Err(error),
        };
        Answer::Reply(error::reply(&result))
    }
}

impl Network {
    async fn tell(&self, verb: &str) -> Result<Value, ApiError> {
        match verb {
            "get_info" => error::value(&self.info()),
            "get_stats" => error::value(&self.stats().await?),
            "list_members" => error::value(&self.list().await?),
            other => {
                Err(ApiError::new(Code::UnknownVerb, format!("the network knows no verb '{}'", other.escape_debug())))
            }
        }
    }

    fn info(&self) -> api::NetworkProcessInfo {
        let config = &self.config;
        api::NetworkProcessInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.ends.since.elapsed().as_secs_f64(),
            id: config.id.clone(),
            name: config.name.clone(),
            mtu: config.mtu,
            internal: config.internal,
            icc: config.icc,
            masquerade: config.masquerade,
            names: config.names,
            members: self.members.borrow().iter().flatten().count() as u64,
            max_members: config.max_members as u64,
            confinement: self.confinement.clone(),
        }
    }

    async fn survey(&self) -> Result<(Vec<MemberTraffic>, usize), ApiError> {
        let gone = |error: std::io::Error| ApiError::new(Code::Gone, error.to_string());
        let (mut members, memberships) = self.ends.orders.ask(|done| Order::Survey { done }).await.map_err(gone)?;
        let further: Vec<Orders> = self.lanes.borrow().further().cloned().collect();
        for orders in further {
            let (more, _) = orders.ask(|done| Order::Survey { done }).await.map_err(gone)?;
            for more in more {
                if let Some(member) = members.iter_mut().find(|member| member.id == more.id) {
                    member.crossed.add(&more.crossed);
                    member.drops.add(&more.drops);
                    member.flows += more.flows;
                }
            }
        }
        Ok((members, memberships))
    }

    async fn stats(&self) -> Result<api::NetworkStats, ApiError> {
        let (members, memberships) = self.survey().await?;
        let mut stats = api::NetworkStats::default();
        for &reason in DropReason::ALL {
            let sum = members.iter().map(|member| member.drops.get(reason)).sum();
            stats.drops.insert(reason.name().to_owned(), sum);
        }
        let sum = |of: fn(&MemberTraffic) -> u64| members.iter().map(of).sum::<u64>();
        let mut put = |name: &str, value| stats.counters.insert(name.to_owned(), value);
        put("members", members.len() as u64);
        put("group_memberships", memberships as u64);
        put("flows", sum(|member| member.flows));
        put("frames_from_guest", sum(|member| member.crossed.from_guest_packets));
        put("frames_to_guest", sum(|member| member.crossed.to_guest_packets));
        put("bytes_from_guest", sum(|member| member.crossed.from_guest_bytes));
        put("bytes_to_guest", sum(|member| member.crossed.to_guest_bytes));
        let resolvers: Vec<_> = self.members.borrow().iter().flatten().map(|m| Arc::clone(&m.resolver)).collect();
        for resolver in resolvers {
            for (name, value) in resolver.stats().named() {
                *stats.counters.entry(name.to_owned()).or_default() += value;
            }
        }
        Ok(stats)
    }

    async fn list(&self) -> Result<api::MemberList, ApiError> {
        let (traffic, _) = self.survey().await?;
        let members = self.members.borrow();
        let of = |member: &Member| {
            let seen = traffic.iter().find(|seen| seen.id == member.id)?;
            Some(api::Member {
                id: member.config.id.clone(),
                name: member.name().to_owned(),
                names: member.names.clone(),
                port: member.id.index,
                mac: member.config.guest_mac.to_string(),
                v4: member.config.v4.map(|plan| plan.guest.to_string()),
                v6: member.config.v6.map(|plan| plan.guest.to_string()),
                frames_from_guest: seen.crossed.from_guest_packets,
                frames_to_guest: seen.crossed.to_guest_packets,
                bytes_from_guest: seen.crossed.from_guest_bytes,
                bytes_to_guest: seen.crossed.to_guest_bytes,
                flows: seen.flows,
                drops: seen.drops.iter().map(|(reason, n)| (reason.name().to_owned(), n)).collect(),
            })
        };
        Ok(api::MemberList { members: members.iter().flatten().filter_map(of).collect() })
    }
}
