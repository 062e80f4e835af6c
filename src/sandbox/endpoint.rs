//! One endpoint of a sandbox: its place on a network, the network's process as the monitor speaks with it, and what was asked
//! of that process and is not answered yet.
//!
//! ```text
//! Place ─ Source::open ─► Endpoint ─ TAP, attach ─► ready ─ … ─ leave ─► left: the process has let go of everything
//! ```
//!
//! A sandbox has one for each of its networks. Their processes know nothing of each other, but for what the sandbox's names are
//! asked for by (`host::peers`). Each may die and is replaced by itself. What clients ask is `sandbox::desk`'s, which finds here
//! what it has to remember of one process.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::{Map, Value};

use super::captures::Captures;
use super::control::Key;
use super::desk::{Asked, Change};
use super::place::Place;
use super::state::Attachment;
use super::uplink::{Source, Uplink, UplinkError};
use crate::api::attach::{AttachError, ToNetwork};
use crate::api::verbs::fault::FaultRule;
use crate::network::config::{EndpointConfig, Listener, Membership, PlanV4, PlanV6};
use crate::network::definition::SHORT_ID;
use crate::network::gateway::Rank;
use crate::sys;

/// See the module.
#[derive(Debug)]
pub struct Endpoint {
    /// The place. Its source is the lease.
    pub place: Place,
    /// The network process.
    pub uplink: Uplink,
    /// Duplicate of the guest's TAP, once it exists.
    pub tap: Option<Rc<OwnedFd>>,
    /// Duplicates of its further queues.
    pub queues: Vec<Rc<OwnedFd>>,
    /// It has the default route and the published ports.
    pub gateway: bool,
    /// It is asked what is asked of the sandbox's network: the gateway, or the first where there is none.
    pub main: bool,
    /// Its process serves the metrics, until it is closed: another's would be mixed with its own.
    pub metrics: bool,
    /// It is being closed: when that has to be over.
    pub leaving: Option<Duration>,
    /// There is no process, for lack of something: when another is tried for. The connection is a dead one meanwhile.
    pub retry: Option<Duration>,
    /// How often the process was replaced.
    pub restarts: u32,
    /// The process was told everything.
    pub(super) attached: bool,
    /// Questions on their way, by number.
    pub(super) asked: BTreeMap<u64, Asked>,
    pub(super) last_ask: u64,
    /// Changes of ports that are not acknowledged.
    pub(super) changes: BTreeMap<u64, Change>,
    pub(super) last_change: u64,
    /// Which change each acknowledgement that is to come belongs to; 0: none that anybody waits for.
    pub(super) listens: VecDeque<u64>,
    pub(super) unlistens: VecDeque<u64>,
    /// How many ports the process has been told of.
    pub(super) told_ports: usize,
    /// Up to which change it knows servers and names.
    pub(super) told_servers: u64,
    pub(super) told_names: u64,
    pub(super) captures: Captures,
    /// Faults on purpose, as the process told them when they were last changed.
    pub(super) faults: Vec<FaultRule>,
    /// Subscribers and their arguments.
    pub(super) subscribers: BTreeMap<Key, Map<String, Value>>,
}

impl Endpoint {
    /// Finds the network process of a place, or starts it; None where there is to be none.
    pub fn open(place: Place) -> Result<Option<Self>, UplinkError> {
        let Some(uplink) = place.source.open()? else { return Ok(None) };
        Ok(Some(Self {
            place,
            uplink,
            tap: None,
            queues: Vec::new(),
            gateway: false,
            main: false,
            metrics: false,
            leaving: None,
            retry: None,
            restarts: 0,
            attached: false,
            asked: BTreeMap::new(),
            last_ask: 0,
            changes: BTreeMap::new(),
            last_change: 0,
            listens: VecDeque::new(),
            unlistens: VecDeque::new(),
            told_ports: 0,
            told_servers: 0,
            told_names: 0,
            captures: Captures::default(),
            faults: Vec::new(),
            subscribers: BTreeMap::new(),
        }))
    }

    /// Name of its interface, by which it is known in the sandbox.
    pub fn interface(&self) -> &str {
        &self.place.interface.name
    }

    /// What the network process is told of it.
    pub fn config(&self) -> &EndpointConfig {
        &self.place.config
    }

    /// Its addresses.
    pub fn plans(&self) -> (Option<PlanV4>, Option<PlanV6>) {
        (self.place.config.v4, self.place.config.v6)
    }

    /// Its rank among the sandbox's.
    pub fn rank(&self) -> Rank {
        self.place.rank()
    }

    /// How it is a member of a shared network.
    pub fn membership(&self) -> Option<&Membership> {
        self.place.source.membership()
    }

    /// True if somebody deleted the interface, or its namespace is gone.
    pub fn is_interface_gone(&self) -> bool {
        // drivers/net/tun.c: a queue whose interface is gone has no device.
        let gone = |tap: &Rc<OwnedFd>| sys::tap::identity(tap.as_fd()).is_err_and(|errno| errno == Errno::EBADFD);
        self.tap.as_ref().is_some_and(gone)
    }

    /// When an answer is overdue.
    pub fn next_timeout(&self) -> Option<Duration> {
        let asked = self.asked.values().map(|asked| asked.until);
        asked.chain(self.changes.values().map(|change| change.until)).chain(self.leaving).chain(self.retry).min()
    }

    /// The process is gone.
    pub fn handle_lost(&mut self) -> Result<(), UplinkError> {
        self.uplink.handle_lost(&self.place.source)
    }

    /// Connects to another process than the one that was lost.
    pub fn reopen(&mut self) -> Result<(), UplinkError> {
        self.uplink.reopen(&self.place.source)
    }

    /// Gives back what it has. A process that was left before is not waited for.
    pub fn close(self) {
        let Self { place, uplink, tap, queues, leaving, .. } = self;
        drop((tap, queues));
        if leaving.is_none() || matches!(place.source, Source::Own(_)) {
            uplink.close();
        }
    }

    /// The lease says what ports are published there.
    pub fn tell_lease(&mut self, ports: Vec<Listener>) {
        let Source::Shared(member) = &mut self.place.source else { return };
        if member.lease.lease().ports != ports
            && let Err(error) = member.lease.update(|lease| lease.ports = ports)
        {
            tracing::warn!("{}", crate::telemetry::chain(&error));
        }
    }

    /// As the state file has it.
    pub fn attachment(&self) -> Attachment {
        Attachment { gateway: self.gateway, faults: self.faults.clone(), ..self.place.attachment() }
    }
}

/// The endpoint on the network that was typed: its name, or its id, whole or short. Not less of it: the name of another network
/// may be how this one's id begins.
pub fn position(endpoints: &[Endpoint], typed: &str) -> Option<usize> {
    let by = |is: &dyn Fn(&Place) -> bool| endpoints.iter().position(|endpoint| is(&endpoint.place));
    by(&|place| place.network == typed)
        .or_else(|| by(&|place| typed.len() >= SHORT_ID && place.network_id.starts_with(typed)))
}

/// Where each endpoint stands when they are put in the order of their ranks, those left out that are being closed.
pub fn order(endpoints: &[Endpoint]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..endpoints.len()).filter(|&at| endpoints[at].leaving.is_none()).collect();
    order.sort_by_key(|&at| endpoints[at].rank());
    order
}

/// Has the process of the first network, which is where the sandbox asks, know the names of the others: a pair of sockets for each.
/// Those that were told before are forgotten.
pub fn introduce(endpoints: &mut [Endpoint]) -> Result<(), AttachError> {
    let named = |at: &usize| endpoints[*at].attached && matches!(endpoints[*at].place.source, Source::Shared(_));
    let order: Vec<usize> = order(endpoints).into_iter().filter(named).collect();
    let Some((&first, others)) = order.split_first() else { return Ok(()) };
    let (mut ask, mut sockets) = (Vec::new(), Vec::new());
    for &other in others {
        // The default network has no names.
        let pair = endpoints[other].place.names.then(|| {
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| {
                    tracing::warn!("names of network {} are not asked for: {errno}", endpoints[other].place.network);
                })
                .ok()
        });
        let answer = match pair.flatten() {
            Some((asking, answering)) => {
                ask.push(endpoints[other].place.network.clone());
                sockets.push(Rc::new(asking));
                vec![Rc::new(answering)]
            }
            None => Vec::new(),
        };
        let message = ToNetwork::OtherNetworks { ask: Vec::new(), answer: answer.len() };
        endpoints[other].uplink.link.push(&message, answer)?;
    }
    endpoints[first].uplink.link.push(&ToNetwork::OtherNetworks { ask, answer: 0 }, sockets)
}
