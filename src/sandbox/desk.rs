//! What the control socket of a sandbox can ask for, done: the monitor's half of every verb.
//!
//! What is changed here stays asked: the ports with their sockets, the DNS settings, records and hosts are kept in the
//! [`Desk`] and told to each network process anew ([`Desk::attach`]). What is to be seen, the network process is asked.
//!
//! | verb | done by |
//! |---|---|
//! | `add_hostfwd`, `publish` | bound here, all or nothing; answered when the network process serves the sockets |
//! | `remove_hostfwd`, `unpublish` | closed here; answered when the network process has closed its duplicates: the port is free |
//! | `set_dns`, records, hosts | [`Desired`], then the sandbox's files, then the resolver (`ToNetwork::Zone`, `HostDns`) |
//! | `get_info` | what is known here, and what the network process adds |
//! | `list_ports` | what is known here, with the network process's counters |
//! | `set_log_level` | here and by the network process; successors have it by being forked, or (of a shared one) are told |
//! | captures | the network process; what runs is kept (`sandbox::captures`) and gone on with by a successor |
//! | `get_namespaces`, `send_signal`, `stop` | the monitor itself, see `sandbox::life` |
//! | all others | the network process, by `ToNetwork::Ask` |
//!
//! A client waits for nothing but its own request. A network process that dies meanwhile has its ports told to its
//! successor, so a change of ports is done; a question gets `gone`. One that does not answer within [`PATIENCE`] gets the
//! client a `timed_out`, and a port that it was to serve is taken back.

mod names;
mod ports;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::captures::{Captures, Kept, Resumption};
use super::control::Key;
use super::edit::Edited;
use super::link::Link;
use super::published::{Bound, Published};
use crate::api::attach::{AttachError, Context, FromNetwork, MAX_FDS, ToNetwork, VERSION};
use crate::api::error::{self, ApiError, Code};
use crate::api::hostfwd::{self, Fault};
use crate::api::session::{PROTOCOL, Request};
use crate::api::verbs::capture::StopCapture;
use crate::api::verbs::dns;
use crate::api::verbs::observe::SetLogLevel;
use crate::api::verbs::ports as verbs;
use crate::network::config::{EndpointConfig, Listener, Membership};
use crate::network::desired::Desired;
use crate::telemetry;

/// How long the network process may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Messages that may wait for the network process before clients are told that it is busy.
const BACKLOG: usize = 256;
/// Numbers of ports in one message.
const UNLISTEN: usize = 4096;
/// No client's key.
const NOBODY: Key = 0;

/// What the monitor knows of the sandbox beside its network.
#[derive(Clone, Debug)]
pub struct Identity {
    /// 12 hex digits.
    pub id: String,
    /// Name.
    pub name: String,
}

/// A reply for a client.
#[derive(Debug)]
pub struct Answered {
    /// Whose.
    pub key: Key,
    /// What; None: the network process writes to the client itself from now on.
    pub reply: Option<Vec<u8>>,
}

/// What an answer of the network process is for.
#[derive(Debug)]
enum For {
    /// The client, as it is.
    Client,
    /// `get_info`: to be added to this.
    Info(Map<String, Value>),
    /// `list_ports`: counters.
    Ports,
    /// `subscribe`.
    Subscription,
    /// What is done here already, and reaches a successor by itself.
    Done,
    /// `start_capture`: its number and what is kept of it.
    CaptureStart(u32, Kept),
    /// The same for a successor: nobody waits for the answer.
    CaptureResume(u32),
    /// `stop_capture`, of this one.
    CaptureStop(Option<u32>),
    /// `list_captures`.
    CaptureList,
}

#[derive(Debug)]
struct Asked {
    key: Key,
    what: For,
    until: Duration,
}

/// A change of ports that the network process has not acknowledged.
#[derive(Debug)]
struct Change {
    key: Key,
    /// Ports that were bound for it.
    bound: Vec<u64>,
    /// Acknowledgements that are missing.
    missing: usize,
    fault: Option<String>,
    reply: Vec<u8>,
    /// slirp4netns's shape is wanted for errors.
    legacy: bool,
    until: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Desk {
    /// The sandbox.
    pub identity: Identity,
    /// The endpoint, as it was planned.
    pub endpoint: EndpointConfig,
    /// Bound ports.
    pub ports: Published,
    /// Names.
    pub desired: Desired,
    /// The host's name servers.
    pub host_servers: Vec<SocketAddr>,
    /// Where metrics are served, and the socket there.
    pub metrics: Option<(SocketAddr, Rc<OwnedFd>)>,
    /// Process id of the network process; 0 if it is not this monitor's child.
    pub network_pid: i32,
    /// `run`, or `attach`.
    pub mode: &'static str,
    /// How the sandbox is a member of a shared network.
    pub membership: Option<Membership>,
    /// Arguments of the last `set_log_level`.
    log_level: Option<Map<String, Value>>,
    /// How often it has been replaced.
    pub restarts: u32,
    /// Ports have changed since the state file was written.
    pub stale: bool,
    hosts_file: Option<Edited>,
    resolv_file: Option<Edited>,
    resolvers: Vec<IpAddr>,
    attached: bool,
    asked: BTreeMap<u64, Asked>,
    last_ask: u64,
    changes: BTreeMap<u64, Change>,
    last_change: u64,
    /// Which change each acknowledgement that is to come belongs to; 0: none that anybody waits for.
    listens: VecDeque<u64>,
    unlistens: VecDeque<u64>,
    captures: Captures,
    /// Subscribers and their arguments.
    subscribers: BTreeMap<Key, Map<String, Value>>,
    /// Names or servers have changed and are to be told.
    names_due: bool,
    servers_due: bool,
}

impl Desk {
    /// Of a sandbox that is about to begin.
    pub fn new(
        identity: Identity,
        endpoint: EndpointConfig,
        listeners: Vec<(Listener, OwnedFd)>,
        desired: Desired,
        host_servers: Vec<SocketAddr>,
    ) -> Self {
        let mut resolvers: Vec<IpAddr> = endpoint.v4.iter().map(|plan| plan.dns.into()).collect();
        resolvers.extend(endpoint.v6.map(|plan| IpAddr::from(plan.dns)));
        let ports = Published::new(listeners, endpoint.v4.map(|p| p.guest), endpoint.v6.map(|p| p.guest));
        Self {
            identity,
            endpoint,
            ports,
            desired,
            host_servers,
            metrics: None,
            network_pid: 0,
            mode: "run",
            membership: None,
            log_level: None,
            restarts: 0,
            stale: false,
            hosts_file: None,
            resolv_file: None,
            resolvers,
            attached: false,
            asked: BTreeMap::new(),
            last_ask: 0,
            changes: BTreeMap::new(),
            last_change: 0,
            listens: VecDeque::new(),
            unlistens: VecDeque::new(),
            captures: Captures::default(),
            subscribers: BTreeMap::new(),
            names_due: false,
            servers_due: false,
        }
    }

    /// The servers that the resolver asks.
    fn servers(&self) -> Vec<SocketAddr> {
        self.desired.dns().servers.clone().unwrap_or_else(|| self.host_servers.clone())
    }

    /// Tells a new network process everything.
    pub fn attach(
        &mut self,
        link: &mut Link,
        tap: &Rc<OwnedFd>,
        pcap: Option<&Rc<OwnedFd>>,
    ) -> Result<(), AttachError> {
        let mut fds = vec![Rc::clone(tap)];
        fds.extend(pcap.cloned());
        let endpoint = Box::new(self.endpoint.clone());
        let membership = self.membership.clone().map(Box::new);
        link.push(&ToNetwork::Attach { version: VERSION, endpoint, pcap: pcap.is_some(), membership }, fds)?;
        if let Some((_, socket)) = &self.metrics {
            link.push(&ToNetwork::Metrics, vec![Rc::clone(socket)])?;
        }
        self.listens.clear();
        self.unlistens.clear();
        for batch in self.ports.renumbered().chunks(MAX_FDS) {
            self.listens.push_back(0);
            ports::listen(link, batch)?;
        }
        self.tell_servers(link)?;
        if !self.desired.zone_records().is_empty() {
            self.tell_names(link)?;
        }
        link.push(&ToNetwork::Start, Vec::new())?;
        self.attached = true;
        Ok(())
    }

    /// Forgets subscribers that have left.
    pub fn retain_subscribers(&mut self, is_there: impl Fn(Key) -> bool) {
        self.subscribers.retain(|&key, _| is_there(key));
    }

    /// Hands every subscriber, and every capture that runs, to a network process that has just begun.
    pub fn resume(
        &mut self,
        link: &mut Link,
        now: Duration,
        connection: impl Fn(Key) -> Option<OwnedFd>,
    ) -> Result<(), AttachError> {
        // One of our own has it from birth, being forked.
        if let Some(arguments) = self.log_level.clone().filter(|_| self.membership.is_some()) {
            self.last_ask += 1;
            let (verb, context) = ("set_log_level".to_owned(), Context::default());
            link.push(&ToNetwork::Ask { id: self.last_ask, verb, arguments, context }, Vec::new())?;
        }
        for (key, arguments) in self.subscribers.clone() {
            let Some(fd) = connection(key) else { continue };
            self.last_ask += 1;
            let context = Context { resumed: true, ..Context::default() };
            // Nobody waits for the answer.
            let message = ToNetwork::Ask { id: self.last_ask, verb: "subscribe".to_owned(), arguments, context };
            link.push(&message, vec![Rc::new(fd)])?;
        }
        for (number, Resumption { arguments, file, context }) in self.captures.resumptions() {
            self.last_ask += 1;
            let message = ToNetwork::Ask { id: self.last_ask, verb: "start_capture".to_owned(), arguments, context };
            link.push(&message, vec![file])?;
            let what = For::CaptureResume(number);
            self.asked.insert(self.last_ask, Asked { key: NOBODY, what, until: now + PATIENCE });
        }
        Ok(())
    }

    /// Does what a client asks. None: the answer comes later.
    pub fn obey(
        &mut self,
        key: Key,
        request: Request,
        fds: Vec<OwnedFd>,
        link: &mut Link,
        now: Duration,
        (uptime, connection): (Duration, Option<OwnedFd>),
    ) -> Result<Option<Vec<u8>>, AttachError> {
        let Request { verb, arguments } = request;
        if let Some(request) = hostfwd::parse(&verb, &arguments, self.endpoint.v6.is_some()) {
            return match request {
                Ok(request) => self.obey_legacy(key, request, link, now),
                Err(fault) => Ok(Some(hostfwd::refused(&fault))),
            };
        }
        let result = match verb.as_str() {
            "publish" => match self.publish(arguments) {
                Ok(bound) => return self.serve(key, bound, link, now, None),
                Err(error) => Err(error),
            },
            "unpublish" => match self.unpublish(arguments) {
                Ok(removed) => {
                    let reply = verbs::Ports { ports: removed.iter().map(|port| self.ports.tell(port)).collect() };
                    let reply = error::reply(&error::value(&reply));
                    return self.release(key, removed, reply, link, now);
                }
                Err(error) => Err(error),
            },
            "list_ports" => match error::arguments(&verb, arguments) {
                Ok(verbs::ListPorts {}) => {
                    return self.ask(key, "port_traffic", Map::new(), Vec::new(), For::Ports, link, now);
                }
                Err(error) => Err(error),
            },
            "get_info" => match error::arguments(&verb, arguments) {
                Ok(Nothing {}) => {
                    let info = self.info(uptime);
                    return self.ask(key, "get_info", Map::new(), Vec::new(), For::Info(info), link, now);
                }
                Err(error) => Err(error),
            },
            known if dns::VERBS.contains(&known) => match dns::Request::read(known, arguments) {
                Some(Ok(request)) => self.names(request),
                Some(Err(error)) => Err(error::bad_arguments(known, &error)),
                None => Err(ApiError::new(Code::Internal, format!("{known} is nobody's"))),
            },
            "set_log_level" => match set_log_level(arguments.clone()) {
                Ok(()) => {
                    self.log_level = Some(arguments.clone());
                    if self.attached {
                        return self.ask(key, &verb, arguments, Vec::new(), For::Done, link, now);
                    }
                    Ok(json!({}))
                }
                Err(error) => Err(error),
            },
            "subscribe" => {
                let fds = connection.into_iter().collect();
                self.subscribers.insert(key, arguments.clone());
                return self.ask(key, &verb, arguments, fds, For::Subscription, link, now);
            }
            "start_capture" => {
                let mut fds = fds;
                let number = self.captures.number();
                let what = match &mut fds[..] {
                    [file] => match file.try_clone() {
                        Ok(copy) => For::CaptureStart(number, Kept::new(arguments.clone(), Rc::new(copy))),
                        // It ends with the network process.
                        Err(_) => For::Client,
                    },
                    // Refused by the network process.
                    _ => For::Client,
                };
                return self.ask_about(key, (&verb, number), arguments, fds, what, link, now);
            }
            "stop_capture" => match error::arguments(&verb, arguments.clone()) {
                Ok(StopCapture { id }) => {
                    return self.ask(key, &verb, arguments, fds, For::CaptureStop(id), link, now);
                }
                Err(error) => Err(error),
            },
            "list_captures" => return self.ask(key, &verb, arguments, fds, For::CaptureList, link, now),
            _ => return self.ask(key, &verb, arguments, fds, For::Client, link, now),
        };
        Ok(Some(error::reply(&result)))
    }

    /// The reply to a request where there is no network process, because the sandbox has no interface of its own:
    /// `network` says whose it uses.
    pub fn obey_without_network(
        &self,
        Request { verb, arguments }: Request,
        network: &str,
        uptime: Duration,
    ) -> Vec<u8> {
        let empty = |Nothing {}: Nothing| ();
        match verb.as_str() {
            "get_info" => {
                let info = error::arguments(&verb, arguments).map(empty).map(|()| {
                    let mut info = self.info(uptime);
                    // Of an interface that is not there.
                    for name in ["mtu", "mac", "v4", "v6", "offloads", "network_pid", "network_restarts"] {
                        info.remove(name);
                    }
                    info.insert("network".to_owned(), network.into());
                    Value::Object(info)
                });
                return error::reply(&info);
            }
            "list_ports" => {
                let none = error::arguments(&verb, arguments).map(|verbs::ListPorts {}| json!({ "ports": [] }));
                return error::reply(&none);
            }
            _ => {}
        }
        let desc = format!("{verb}: sandbox {} has no network of its own ({network})", self.identity.name);
        ApiError::new(Code::Unsupported, desc).reply()
    }

    #[allow(clippy::too_many_arguments, reason = "one question, whole")]
    fn ask(
        &mut self,
        key: Key,
        verb: &str,
        arguments: Map<String, Value>,
        fds: Vec<OwnedFd>,
        what: For,
        link: &mut Link,
        now: Duration,
    ) -> Result<Option<Vec<u8>>, AttachError> {
        self.ask_about(key, (verb, 0), arguments, fds, what, link, now)
    }

    /// The same, about the capture of this number.
    #[allow(clippy::too_many_arguments, reason = "one question, whole")]
    fn ask_about(
        &mut self,
        key: Key,
        (verb, capture): (&str, u32),
        arguments: Map<String, Value>,
        fds: Vec<OwnedFd>,
        what: For,
        link: &mut Link,
        now: Duration,
    ) -> Result<Option<Vec<u8>>, AttachError> {
        if !self.attached || link.backlog() >= BACKLOG {
            let error = ApiError::new(Code::Busy, "the network process is starting or busy; ask again");
            return Ok(self.finish(key, what, Err(error)).reply);
        }
        self.last_ask += 1;
        let id = self.last_ask;
        let context = Context { capture, ..Context::default() };
        let message = ToNetwork::Ask { id, verb: verb.to_owned(), arguments, context };
        match link.push(&message, fds.into_iter().map(Rc::new).collect()) {
            Ok(()) => {}
            Err(AttachError::TooLarge) => {
                let error = ApiError::new(Code::TooLarge, format!("{verb}: the arguments are too large"));
                return Ok(self.finish(key, what, Err(error)).reply);
            }
            Err(error) => return Err(error),
        }
        self.asked.insert(id, Asked { key, what, until: now + PATIENCE });
        Ok(None)
    }

    /// The reply that the network process's answer makes.
    fn finish(&mut self, key: Key, what: For, result: Result<Value, ApiError>) -> Answered {
        let reply = match what {
            For::Client => Some(error::reply(&result)),
            For::Info(mut info) => {
                // Without an answer what is known here stands.
                if let Ok(Value::Object(more)) = result {
                    for (name, value) in more {
                        match (info.get_mut(&name), value) {
                            // Each knows some of these.
                            (Some(Value::Object(here)), Value::Object(there)) => {
                                for (name, value) in there {
                                    here.entry(name).or_insert(value);
                                }
                            }
                            (Some(_), _) if name != "pid" => {}
                            // That of a shared network is not known here.
                            (Some(_), value) => {
                                if info.get("network_pid").is_some_and(Value::is_null) {
                                    info.insert("network_pid".to_owned(), value);
                                }
                            }
                            (None, value) => drop(info.insert(name, value)),
                        }
                    }
                }
                Some(error::success(&Value::Object(info)))
            }
            For::Ports => {
                let traffic = result.ok().and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default();
                Some(error::reply(&error::value(&self.ports.list(&traffic))))
            }
            For::CaptureStart(number, kept) => {
                if result.is_ok() {
                    self.captures.handle_begun(number, kept);
                }
                Some(error::reply(&result))
            }
            For::CaptureResume(number) => {
                if let Err(error) = result {
                    self.captures.handle_refused(number, &error);
                }
                None
            }
            For::CaptureStop(wanted) => Some(error::reply(&self.captures.stop(wanted, result))),
            For::CaptureList => Some(error::reply(&self.captures.list(result))),
            For::Done => Some(match result {
                Err(error) if error.code != Code::Gone => error.reply(),
                _ => error::success(&json!({})),
            }),
            For::Subscription => match result {
                Ok(_) => None,
                Err(error) => {
                    self.subscribers.remove(&key);
                    Some(error.reply())
                }
            },
        };
        Answered { key, reply }
    }

    /// The network process says something that is not about its life.
    pub fn handle_word(&mut self, word: FromNetwork, link: &mut Link) -> Result<Vec<Answered>, AttachError> {
        let mut answered = Vec::new();
        match word {
            FromNetwork::Answer { id, result } => {
                // One that came too late is nobody's.
                if let Some(Asked { key, what, .. }) = self.asked.remove(&id) {
                    answered.push(self.finish(key, what, result));
                }
            }
            FromNetwork::Listened { error } => {
                let id = self.listens.pop_front().unwrap_or_default();
                if let Some(error) = &error
                    && id == 0
                {
                    tracing::warn!("the network process does not serve every published port: {error}");
                }
                answered.extend(self.acknowledged(id, error, link)?);
            }
            FromNetwork::Unlistened => {
                let id = self.unlistens.pop_front().unwrap_or_default();
                answered.extend(self.acknowledged(id, None, link)?);
            }
            FromNetwork::CaptureEnded { status } => self.captures.handle_ended(status),
            FromNetwork::Ready | FromNetwork::Failed { .. } => {}
        }
        Ok(answered)
    }

    fn acknowledged(
        &mut self,
        id: u64,
        fault: Option<String>,
        link: &mut Link,
    ) -> Result<Option<Answered>, AttachError> {
        let Some(change) = self.changes.get_mut(&id) else { return Ok(None) };
        change.missing = change.missing.saturating_sub(1);
        if change.fault.is_none() {
            change.fault = fault;
        }
        if change.missing > 0 {
            return Ok(None);
        }
        let Some(change) = self.changes.remove(&id) else { return Ok(None) };
        match &change.fault {
            None => Ok(Some(Answered { key: change.key, reply: Some(change.reply) })),
            Some(fault) => {
                let error =
                    ApiError::new(Code::Internal, format!("the network process cannot serve the port: {fault}"));
                self.undo(&change, &error, link).map(Some)
            }
        }
    }

    /// Takes back what a change has bound.
    fn undo(&mut self, change: &Change, error: &ApiError, link: &mut Link) -> Result<Answered, AttachError> {
        let removed: Vec<Bound> = change.bound.iter().filter_map(|&id| self.ports.remove(id)).collect();
        self.stale = true;
        self.unlisten(&removed, 0, link)?;
        let reply = if change.legacy {
            hostfwd::refused(&Fault::AddFailed { reason: error.desc.clone() })
        } else {
            error.reply()
        };
        Ok(Answered { key: change.key, reply: Some(reply) })
    }

    /// The network process is gone. Its successor gets everything at [`Self::attach`].
    pub fn handle_lost(&mut self) -> Vec<Answered> {
        self.attached = false;
        self.restarts += 1;
        self.captures.handle_lost();
        let mut answered = Vec::new();
        for (_, change) in std::mem::take(&mut self.changes) {
            answered.push(Answered { key: change.key, reply: Some(change.reply) });
        }
        for (_, asked) in std::mem::take(&mut self.asked) {
            // A subscription that was under way is taken up with the others.
            if matches!(asked.what, For::Subscription) {
                answered.push(Answered { key: asked.key, reply: None });
                continue;
            }
            let error = ApiError::new(Code::Gone, "the network process ended while it was asked; ask again");
            answered.push(self.finish(asked.key, asked.what, Err(error)));
        }
        answered
    }

    /// When to call [`Self::handle_timeout`].
    pub fn next_timeout(&self) -> Option<Duration> {
        self.asked.values().map(|asked| asked.until).chain(self.changes.values().map(|change| change.until)).min()
    }

    /// Time has passed: who has waited too long is told so.
    pub fn handle_timeout(&mut self, now: Duration, link: &mut Link) -> Result<Vec<Answered>, AttachError> {
        let mut answered = Vec::new();
        if self.next_timeout().is_none_or(|at| now < at) {
            return Ok(answered);
        }
        let error = ApiError::new(
            Code::TimedOut,
            format!("the network process did not answer within {} s", PATIENCE.as_secs()),
        );
        let late: Vec<u64> = self.asked.iter().filter(|(_, asked)| asked.until <= now).map(|(&id, _)| id).collect();
        for id in late {
            if let Some(Asked { key, what, .. }) = self.asked.remove(&id) {
                answered.push(self.finish(key, what, Err(error.clone())));
            }
        }
        let late: Vec<u64> = self.changes.iter().filter(|(_, change)| change.until <= now).map(|(&id, _)| id).collect();
        for id in late {
            if let Some(change) = self.changes.remove(&id) {
                answered.push(self.undo(&change, &error, link)?);
            }
        }
        Ok(answered)
    }

    fn info(&self, uptime: Duration) -> Map<String, Value> {
        let endpoint = &self.endpoint;
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
        let v4 = endpoint.v4.map(|p| json!({"subnet": p.subnet, "gateway": p.gateway, "dns": p.dns, "guest": p.guest}));
        let v6 = endpoint.v6.map(|p| json!({"subnet": p.subnet, "gateway": p.gateway, "dns": p.dns, "guest": p.guest}));
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": PROTOCOL,
            "mode": self.mode,
            "id": self.identity.id,
            "name": self.identity.name,
            "pid": std::process::id(),
            "network_pid": (self.network_pid != 0).then_some(self.network_pid),
            "network_restarts": self.restarts,
            "uptime_seconds": uptime.as_secs_f64(),
            "hostname": endpoint.hostname,
            "mtu": endpoint.mtu,
            "mac": endpoint.guest_mac.0.map(|byte| format!("{byte:02x}")).join(":"),
            "v4": v4,
            "v6": v6,
            "offloads": endpoint.offloads,
            "allow_host_loopback": endpoint.allow_host_loopback,
            "allow_link_local": endpoint.allow_link_local,
            "ports": self.ports.len(),
            "metrics_listen": self.metrics.as_ref().map(|(address, _)| address),
            "limits": { "descriptors": limit },
        });
        let Value::Object(info) = info else { return Map::new() };
        info
    }
}

/// Arguments of verbs that have none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Of this process, and of every one that it forks.
fn set_log_level(arguments: Map<String, Value>) -> Result<(), ApiError> {
    let SetLogLevel { level } = error::arguments("set_log_level", arguments)?;
    let refused = |why| ApiError::new(Code::BadArgument, format!("set_log_level: level: {why}"));
    telemetry::set_level(&level).map_err(refused)
}
