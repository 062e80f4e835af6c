//! What the control socket of a sandbox can ask for, done: the monitor's half of every verb.
//!
//! What is changed here stays asked: the ports with their sockets, the DNS settings, records and hosts are kept in the
//! [`Desk`] and told to each network process anew ([`Desk::attach`]). What is to be seen, the network process is asked. Of a
//! sandbox on several networks each has an `endpoint::Endpoint` with a process: ports are served by that of the gateway, names are
//! told to all, and what is to be seen is asked of one, which is the gateway's unless `network` names another (`sandbox::station`).
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
//! | `set_fault`, `clear_fault` | the network process; what holds then is kept, and told to a successor before its first frame |
//! | `get_namespaces`, `send_signal`, `stop` | the monitor itself, see `sandbox::life` |
//! | all others | the network process, by `ToNetwork::Ask` |
//!
//! A client waits for nothing but its own request. A network process that dies meanwhile has its ports told to its
//! successor, so a change of ports is done; a question gets `gone`. One that does not answer within [`PATIENCE`] gets the
//! client a `timed_out`, and a port that it was to serve is taken back.

mod names;
mod ports;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::captures::{Kept, Resumption};
use super::control::Key;
use super::edit::Edited;
use super::endpoint::Endpoint;
use super::place::Template;
use super::published::{Bound, Published};
use crate::api::attach::{AttachError, BEFORE_QUEUES, Context, FromNetwork, ToNetwork, VERSION};
use crate::api::error::{self, ApiError, Code};
use crate::api::hostfwd::{self, Fault};
use crate::api::session::{PROTOCOL, Request};
use crate::api::verbs::capture::StopCapture;
use crate::api::verbs::dns;
use crate::api::verbs::fault::FaultList;
use crate::api::verbs::observe::SetLogLevel;
use crate::api::verbs::ports as verbs;
use crate::network::config::Listener;
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
pub(super) enum For {
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
    /// `set_fault` or `clear_fault`: what holds then is kept.
    Faults,
}

#[derive(Debug)]
pub(super) struct Asked {
    key: Key,
    what: For,
    pub(super) until: Duration,
}

/// A change of ports that the network process has not acknowledged.
#[derive(Debug)]
pub(super) struct Change {
    key: Key,
    /// Ports that were bound for it.
    bound: Vec<u64>,
    /// Acknowledgements that are missing.
    missing: usize,
    fault: Option<String>,
    reply: Vec<u8>,
    /// slirp4netns's shape is wanted for errors.
    legacy: bool,
    pub(super) until: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Desk {
    /// The sandbox.
    pub identity: Identity,
    /// What its endpoints have in common.
    pub template: Template,
    /// Bound ports.
    pub ports: Published,
    /// Names.
    pub desired: Desired,
    /// The host's name servers.
    pub host_servers: Vec<SocketAddr>,
    /// Where metrics are served, and the socket there.
    pub metrics: Option<(SocketAddr, Rc<OwnedFd>)>,
    /// `run`, or `attach`.
    pub mode: &'static str,
    /// Arguments of the last `set_log_level`.
    log_level: Option<Map<String, Value>>,
    /// Ports have changed since the state file was written.
    pub stale: bool,
    hosts_file: Option<Edited>,
    resolv_file: Option<Edited>,
    /// The sandbox's networks as `get_info` tells of them.
    networks: Vec<Value>,
    /// Addresses of the sandbox and where it asks for names, as its files have them.
    addresses: Vec<IpAddr>,
    resolvers: Vec<IpAddr>,
    /// One more with each change, which each network process is told.
    names_version: u64,
    servers_version: u64,
}

impl Desk {
    /// Of a sandbox that is about to begin.
    pub fn new(
        identity: Identity,
        template: Template,
        listeners: Vec<(Listener, OwnedFd)>,
        desired: Desired,
        host_servers: Vec<SocketAddr>,
    ) -> Self {
        Self {
            identity,
            template,
            ports: Published::new(listeners, None, None),
            desired,
            host_servers,
            metrics: None,
            mode: "run",
            log_level: None,
            stale: false,
            hosts_file: None,
            resolv_file: None,
            networks: Vec::new(),
            addresses: Vec::new(),
            resolvers: Vec::new(),
            names_version: 0,
            servers_version: 0,
        }
    }

    /// The servers that the resolver asks.
    fn servers(&self) -> Vec<SocketAddr> {
        self.desired.dns().servers.clone().unwrap_or_else(|| self.host_servers.clone())
    }

    /// Tells a new network process everything; `pcap`: what the sandbox's frames are written to.
    pub fn attach(&mut self, at: &mut Endpoint, pcap: Option<&Rc<OwnedFd>>) -> Result<(), AttachError> {
        let Some(tap) = &at.tap else { return Ok(()) };
        let mut fds = vec![Rc::clone(tap)];
        fds.extend(pcap.cloned());
        fds.extend(at.queues.iter().cloned());
        let queues = at.queues.len() as u8;
        // Said no newer than it need be: a network's process may be of before.
        let version = if queues > 0 { VERSION } else { BEFORE_QUEUES };
        let endpoint = Box::new(at.config().clone());
        let membership = at.membership().cloned().map(Box::new);
        let link = &mut at.uplink.link;
        link.push(&ToNetwork::Attach { version, endpoint, pcap: pcap.is_some(), queues, membership }, fds)?;
        if let Some((_, socket)) = self.metrics.as_ref().filter(|_| at.metrics) {
            link.push(&ToNetwork::Metrics, vec![Rc::clone(socket)])?;
        }
        at.listens.clear();
        at.unlistens.clear();
        at.told_ports = 0;
        if at.gateway {
            self.listen_all(at)?;
        }
        self.tell_servers(at)?;
        if !self.desired.zone_records().is_empty() {
            self.tell_names(at)?;
        }
        if !at.faults.is_empty() {
            at.uplink.link.push(&ToNetwork::Faults { faults: at.faults.clone() }, Vec::new())?;
        }
        at.uplink.link.push(&ToNetwork::Start, Vec::new())?;
        at.attached = true;
        Ok(())
    }

    /// The metrics are this network process's from now on.
    pub fn give_metrics(&self, at: &mut Endpoint) -> Result<(), AttachError> {
        at.metrics = true;
        match &self.metrics {
            Some((_, socket)) if at.attached => at.uplink.link.push(&ToNetwork::Metrics, vec![Rc::clone(socket)]),
            _ => Ok(()),
        }
    }

    /// Hands every subscriber, and every capture that runs, to a network process that has just begun.
    pub fn resume(
        &mut self,
        at: &mut Endpoint,
        now: Duration,
        connection: impl Fn(Key) -> Option<OwnedFd>,
    ) -> Result<(), AttachError> {
        // One of our own has it from birth, being forked.
        if let Some(arguments) = self.log_level.clone().filter(|_| at.membership().is_some()) {
            at.last_ask += 1;
            let (verb, context) = ("set_log_level".to_owned(), Context::default());
            at.uplink.link.push(&ToNetwork::Ask { id: at.last_ask, verb, arguments, context }, Vec::new())?;
        }
        for (key, arguments) in at.subscribers.clone() {
            let Some(fd) = connection(key) else { continue };
            Self::resubscribe(at, arguments, fd)?;
        }
        for (number, Resumption { arguments, file, context }) in at.captures.resumptions() {
            at.last_ask += 1;
            let message = ToNetwork::Ask { id: at.last_ask, verb: "start_capture".to_owned(), arguments, context };
            at.uplink.link.push(&message, vec![file])?;
            let what = For::CaptureResume(number);
            at.asked.insert(at.last_ask, Asked { key: NOBODY, what, until: now + PATIENCE });
        }
        Ok(())
    }

    /// Has a network process tell a subscriber that another has told until now.
    pub fn resubscribe(at: &mut Endpoint, arguments: Map<String, Value>, fd: OwnedFd) -> Result<(), AttachError> {
        at.last_ask += 1;
        let context = Context { resumed: true, ..Context::default() };
        // Nobody waits for the answer.
        let message = ToNetwork::Ask { id: at.last_ask, verb: "subscribe".to_owned(), arguments, context };
        at.uplink.link.push(&message, vec![Rc::new(fd)])
    }

    /// Does what a client asks. None: the answer comes later.
    pub fn obey(
        &mut self,
        key: Key,
        request: Request,
        fds: Vec<OwnedFd>,
        at: &mut Endpoint,
        now: Duration,
        (uptime, connection): (Duration, Option<OwnedFd>),
    ) -> Result<Option<Vec<u8>>, AttachError> {
        let Request { verb, arguments } = request;
        if let Some(request) = hostfwd::parse(&verb, &arguments, at.config().v6.is_some()) {
            return match request {
                Ok(request) => self.obey_legacy(key, request, at, now),
                Err(fault) => Ok(Some(hostfwd::refused(&fault))),
            };
        }
        let result = match verb.as_str() {
            "publish" => match self.publish(arguments, at) {
                Ok(bound) => return self.serve(key, bound, at, now, None),
                Err(error) => Err(error),
            },
            "unpublish" => match self.unpublish(arguments) {
                Ok(removed) => {
                    let reply = verbs::Ports { ports: removed.iter().map(|port| self.ports.tell(port)).collect() };
                    let reply = error::reply(&error::value(&reply));
                    return self.release(key, removed, reply, at, now);
                }
                Err(error) => Err(error),
            },
            "list_ports" => match error::arguments(&verb, arguments) {
                Ok(verbs::ListPorts {}) => {
                    return self.ask(key, "port_traffic", Map::new(), Vec::new(), For::Ports, at, now);
                }
                Err(error) => Err(error),
            },
            "get_info" => match error::arguments(&verb, arguments) {
                Ok(Nothing {}) => {
                    let info = self.info(Some(at), uptime);
                    return self.ask(key, "get_info", Map::new(), Vec::new(), For::Info(info), at, now);
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
                    if at.attached {
                        return self.ask(key, &verb, arguments, Vec::new(), For::Done, at, now);
                    }
                    Ok(json!({}))
                }
                Err(error) => Err(error),
            },
            "subscribe" => {
                let fds = connection.into_iter().collect();
                at.subscribers.insert(key, arguments.clone());
                return self.ask(key, &verb, arguments, fds, For::Subscription, at, now);
            }
            "start_capture" => {
                let mut fds = fds;
                let number = at.captures.number();
                let what = match &mut fds[..] {
                    [file] => match file.try_clone() {
                        Ok(copy) => For::CaptureStart(number, Kept::new(arguments.clone(), Rc::new(copy))),
                        // It ends with the network process.
                        Err(_) => For::Client,
                    },
                    // Refused by the network process.
                    _ => For::Client,
                };
                return self.ask_about(key, (&verb, number), arguments, fds, what, at, now);
            }
            "stop_capture" => match error::arguments(&verb, arguments.clone()) {
                Ok(StopCapture { id }) => {
                    return self.ask(key, &verb, arguments, fds, For::CaptureStop(id), at, now);
                }
                Err(error) => Err(error),
            },
            "set_fault" | "clear_fault" => return self.ask(key, &verb, arguments, fds, For::Faults, at, now),
            "list_captures" => return self.ask(key, &verb, arguments, fds, For::CaptureList, at, now),
            _ => return self.ask(key, &verb, arguments, fds, For::Client, at, now),
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
                    let mut info = self.info(None, uptime);
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
        at: &mut Endpoint,
        now: Duration,
    ) -> Result<Option<Vec<u8>>, AttachError> {
        self.ask_about(key, (verb, 0), arguments, fds, what, at, now)
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
        at: &mut Endpoint,
        now: Duration,
    ) -> Result<Option<Vec<u8>>, AttachError> {
        if !at.attached || at.uplink.link.backlog() >= BACKLOG {
            let error = ApiError::new(Code::Busy, "the network process is starting or busy; ask again");
            return Ok(self.finish(at, key, what, Err(error)).reply);
        }
        at.last_ask += 1;
        let id = at.last_ask;
        let context = Context { capture, ..Context::default() };
        let message = ToNetwork::Ask { id, verb: verb.to_owned(), arguments, context };
        match at.uplink.link.push(&message, fds.into_iter().map(Rc::new).collect()) {
            Ok(()) => {}
            Err(AttachError::TooLarge) => {
                let error = ApiError::new(Code::TooLarge, format!("{verb}: the arguments are too large"));
                return Ok(self.finish(at, key, what, Err(error)).reply);
            }
            Err(error) => return Err(error),
        }
        at.asked.insert(id, Asked { key, what, until: now + PATIENCE });
        Ok(None)
    }

    /// The reply that the network process's answer makes.
    fn finish(&mut self, at: &mut Endpoint, key: Key, what: For, result: Result<Value, ApiError>) -> Answered {
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
                    at.captures.handle_begun(number, kept);
                }
                Some(error::reply(&result))
            }
            For::CaptureResume(number) => {
                if let Err(error) = result {
                    at.captures.handle_refused(number, &error);
                }
                None
            }
            For::CaptureStop(wanted) => Some(error::reply(&at.captures.stop(wanted, result))),
            For::Faults => {
                if let Ok(value) = &result
                    && let Ok(FaultList { faults }) = FaultList::deserialize(value)
                {
                    at.faults = faults;
                    self.stale = true;
                }
                Some(error::reply(&result))
            }
            For::CaptureList => Some(error::reply(&at.captures.list(result))),
            For::Done => Some(match result {
                Err(error) if error.code != Code::Gone => error.reply(),
                _ => error::success(&json!({})),
            }),
            For::Subscription => match result {
                Ok(_) => None,
                Err(error) => {
                    at.subscribers.remove(&key);
                    Some(error.reply())
                }
            },
        };
        Answered { key, reply }
    }

    /// The network process says something that is not about its life.
    pub fn handle_word(&mut self, word: FromNetwork, at: &mut Endpoint) -> Result<Vec<Answered>, AttachError> {
        let mut answered = Vec::new();
        match word {
            FromNetwork::Answer { id, result } => {
                // One that came too late is nobody's.
                if let Some(Asked { key, what, .. }) = at.asked.remove(&id) {
                    answered.push(self.finish(at, key, what, result));
                }
            }
            FromNetwork::Listened { error } => {
                let id = at.listens.pop_front().unwrap_or_default();
                if let Some(error) = &error
                    && id == 0
                {
                    tracing::warn!("the network process does not serve every published port: {error}");
                }
                answered.extend(self.acknowledged(id, error, at)?);
            }
            FromNetwork::Unlistened => {
                let id = at.unlistens.pop_front().unwrap_or_default();
                answered.extend(self.acknowledged(id, None, at)?);
            }
            FromNetwork::CaptureEnded { status } => at.captures.handle_ended(status),
            FromNetwork::Ready | FromNetwork::Failed { .. } => {}
        }
        Ok(answered)
    }

    fn acknowledged(
        &mut self,
        id: u64,
        fault: Option<String>,
        at: &mut Endpoint,
    ) -> Result<Option<Answered>, AttachError> {
        let Some(change) = at.changes.get_mut(&id) else { return Ok(None) };
        change.missing = change.missing.saturating_sub(1);
        if change.fault.is_none() {
            change.fault = fault;
        }
        if change.missing > 0 {
            return Ok(None);
        }
        let Some(change) = at.changes.remove(&id) else { return Ok(None) };
        match &change.fault {
            None => Ok(Some(Answered { key: change.key, reply: Some(change.reply) })),
            Some(fault) => {
                let error =
                    ApiError::new(Code::Internal, format!("the network process cannot serve the port: {fault}"));
                self.undo(&change, &error, at).map(Some)
            }
        }
    }

    /// Takes back what a change has bound.
    fn undo(&mut self, change: &Change, error: &ApiError, at: &mut Endpoint) -> Result<Answered, AttachError> {
        let removed: Vec<Bound> = change.bound.iter().filter_map(|&id| self.ports.remove(id)).collect();
        self.stale = true;
        Self::unlisten(&removed, 0, at)?;
        let reply = if change.legacy {
            hostfwd::refused(&Fault::AddFailed { reason: error.desc.clone() })
        } else {
            error.reply()
        };
        Ok(Answered { key: change.key, reply: Some(reply) })
    }

    /// The network process is gone. Its successor gets everything at [`Self::attach`].
    pub fn handle_lost(&mut self, at: &mut Endpoint) -> Vec<Answered> {
        at.attached = false;
        at.restarts += 1;
        at.captures.handle_lost();
        let mut answered = Vec::new();
        for (_, change) in std::mem::take(&mut at.changes) {
            answered.push(Answered { key: change.key, reply: Some(change.reply) });
        }
        for (_, asked) in std::mem::take(&mut at.asked) {
            // A subscription that was under way is taken up with the others.
            if matches!(asked.what, For::Subscription) {
                answered.push(Answered { key: asked.key, reply: None });
                continue;
            }
            let error = ApiError::new(Code::Gone, "the network process ended while it was asked; ask again");
            answered.push(self.finish(at, asked.key, asked.what, Err(error)));
        }
        answered
    }

    /// Time has passed: who has waited too long is told so.
    pub fn handle_timeout(&mut self, now: Duration, at: &mut Endpoint) -> Result<Vec<Answered>, AttachError> {
        let mut answered = Vec::new();
        if at.next_timeout().is_none_or(|due| now < due) {
            return Ok(answered);
        }
        let error = ApiError::new(
            Code::TimedOut,
            format!("the network process did not answer within {} s", PATIENCE.as_secs()),
        );
        let late: Vec<u64> = at.asked.iter().filter(|(_, asked)| asked.until <= now).map(|(&id, _)| id).collect();
        for id in late {
            if let Some(Asked { key, what, .. }) = at.asked.remove(&id) {
                answered.push(self.finish(at, key, what, Err(error.clone())));
            }
        }
        let late: Vec<u64> = at.changes.iter().filter(|(_, change)| change.until <= now).map(|(&id, _)| id).collect();
        for id in late {
            if let Some(change) = at.changes.remove(&id) {
                answered.push(self.undo(&change, &error, at)?);
            }
        }
        Ok(answered)
    }

    /// What is known here; without `at` nothing of an interface.
    fn info(&self, at: Option<&Endpoint>, uptime: Duration) -> Map<String, Value> {
        let common = &self.template.config;
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": PROTOCOL,
            "mode": self.mode,
            "id": self.identity.id,
            "name": self.identity.name,
            "pid": std::process::id(),
            "uptime_seconds": uptime.as_secs_f64(),
            "hostname": common.hostname,
            "allow_host_loopback": common.allow_host_loopback,
            "allow_link_local": common.allow_link_local,
            "ports": self.ports.len(),
            "networks": self.networks,
            "metrics_listen": self.metrics.as_ref().map(|(address, _)| address),
            "limits": { "descriptors": limit },
        });
        let Value::Object(mut info) = info else { return Map::new() };
        let Some(at) = at else { return info };
        let config = at.config();
        let v4 = config.v4.map(|p| json!({"subnet": p.subnet, "gateway": p.gateway, "dns": p.dns, "guest": p.guest}));
        let v6 = config.v6.map(|p| json!({"subnet": p.subnet, "gateway": p.gateway, "dns": p.dns, "guest": p.guest}));
        let pid = at.uplink.pid();
        let of_interface = json!({
            "interface": at.interface(),
            "network_pid": (pid != 0).then_some(pid),
            "network_restarts": at.restarts,
            "mtu": config.mtu,
            "mac": config.guest_mac.to_string(),
            "v4": v4,
            "v6": v6,
            "offloads": config.offloads,
        });
        if let Value::Object(more) = of_interface {
            info.extend(more);
        }
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
