//! `connect_network` and `disconnect_network`: networks of a sandbox that runs, one change at a time.
//!
//! ```text
//! connect      lease, process ─► Making ── Tap ──► Attaching ── Ready ──► Ordering ── Ordered ──► answered
//!                                   └─ refused, late: as below, answered with why ─┘
//! disconnect   Leaving ── Ordered ──► Closing ── process has let go ──► Deleting ── Deleted ──► answered
//! ```
//!
//! Making and Deleting are the first process's, as are the ways out (Ordering, Leaving: `sandbox::routes`); Attaching and Closing the
//! network process's. The ways out are changed before anything is taken away, and after everything is there, so that what does
//! not concern the network never waits. Published ports follow the gateway: to a new one when the way out is by it, and away from one
//! that goes before anything else is done. Clients that come in between wait in the backlogs; only those that had been let in by a
//! network that goes are cut off.
//!
//! A sandbox that its network puts aside (`sandbox::blame`) goes the way of one that is disconnected, but that nobody waits for it.
//!
//! Taking the lease waits for the network's lock, which others hold for microseconds; a process that is stopped with it would hold
//! this monitor up for five seconds, but none of its frames.

use std::time::Duration;

use super::super::control::Key;
use super::super::endpoint::Endpoint;
use super::super::inside::Scope;
use super::super::leases::LeaseError;
use super::super::networks::StoreError;
use super::super::place::{self, Asked, PlaceError, Who};
use super::super::proto::ToSandbox;
use super::super::state::Aside;
use super::super::station::{Said, StationError};
use super::super::uplink::Source;
use super::{Monitor, RunError};
use crate::api::error::{self, ApiError, Code};
use crate::api::session::Request;
use crate::api::verbs::connect::{ConnectNetwork, Connected, DisconnectNetwork, Disconnected};
use crate::network::definition::Network;
use crate::network::lease::RefusedLease;
use crate::network::plan;
use crate::telemetry;

/// How long a change may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most networks of one sandbox.
const MAX_NETWORKS: usize = 32;

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Making,
    Attaching,
    Ordering,
    Leaving,
    Closing,
    Deleting,
}

/// A change that is under way.
#[derive(Debug)]
pub(super) struct Change {
    /// Who asked for it.
    key: Key,
    interface: String,
    step: Step,
    until: Duration,
    /// Why there will be no connection.
    failed: Option<ApiError>,
}

impl Change {
    pub(super) fn next_timeout(&self) -> Option<Duration> {
        // The rest has time-outs of its own.
        (!matches!(self.step, Step::Closing)).then_some(self.until)
    }
}

/// What a refusal is called.
fn refused(error: &PlaceError) -> ApiError {
    let code = match error {
        PlaceError::Store(StoreError::NotFound(_)) | PlaceError::NoSuchTarget(_) => Code::NotFound,
        PlaceError::Lease(LeaseError::Store(StoreError::NotFound(_))) => Code::NotFound,
        PlaceError::Lease(LeaseError::Refused(RefusedLease::Twice { .. } | RefusedLease::InUse)) => Code::Exists,
        PlaceError::Lease(LeaseError::Refused(RefusedLease::Full { .. })) => Code::Limit,
        PlaceError::Lease(LeaseError::Refused(_)) | PlaceError::BadLink(_) | PlaceError::TargetElsewhere(_) => {
            Code::BadArgument
        }
        PlaceError::Lease(LeaseError::Busy(_)) | PlaceError::Store(StoreError::Busy(_)) => Code::Busy,
        _ => Code::Internal,
    };
    ApiError::new(code, telemetry::chain(error))
}

impl Monitor {
    /// Begins to do what is asked.
    pub(super) fn obey_networks(&mut self, key: Key, Request { verb, arguments }: Request) -> Result<(), RunError> {
        let begun = match self.check(&verb) {
            Err(refused) => Err(refused),
            Ok(()) if verb == "connect_network" => {
                error::arguments(&verb, arguments).and_then(|wanted| self.begin_connect(wanted))
            }
            Ok(()) => error::arguments(&verb, arguments).and_then(|wanted| self.begin_disconnect(&wanted)),
        };
        let (interface, step, message) = match begun {
            Ok(begun) => begun,
            Err(refused) => {
                self.station.reply(key, refused.reply(), Vec::new());
                return Ok(());
            }
        };
        let until = self.station.now() + PATIENCE;
        if step == Step::Leaving {
            self.station.retire(&interface, PATIENCE)?;
        }
        self.change = Some(Change { key, interface, step, until, failed: None });
        self.tell(&message)
    }

    fn check(&self, verb: &str) -> Result<(), ApiError> {
        let (code, why) = match self.setup.scope {
            Scope::Host | Scope::Joined(_) if verb == "connect_network" => (
                Code::Unsupported,
                "container sharing network namespace with another container or host cannot be connected to any other network",
            ),
            Scope::Host | Scope::Joined(_) => (
                Code::Unsupported,
                "cannot disconnect container from host network - container was created in host network mode",
            ),
            Scope::Loopback => (
                Code::Unsupported,
                "container cannot be connected to multiple networks with one of the networks in private (none) mode",
            ),
            Scope::Interface if self.is_private() => {
                (Code::Unsupported, "the sandbox has a network of its own (--network private), and no other beside it")
            }
            Scope::Interface if self.station.about.started.is_none() => {
                (Code::Busy, "the sandbox is starting; ask again")
            }
            Scope::Interface if self.change.is_some() => (Code::Busy, "another change is under way; ask again"),
            Scope::Interface => return Ok(()),
        };
        Err(ApiError::new(code, why))
    }

    fn is_private(&self) -> bool {
        self.station.endpoints().iter().any(|endpoint| matches!(endpoint.place.source, Source::Own(_)))
    }

    fn begin_connect(&mut self, wanted: ConnectNetwork) -> Result<(String, Step, ToSandbox), ApiError> {
        let bad = |why: String| ApiError::new(Code::BadArgument, why);
        let ConnectNetwork { network, ip, ip6, mac_address, aliases, links, gw_priority } = wanted;
        let mac = mac_address.as_deref().map(plan::parse_mac).transpose().map_err(|error| bad(error.to_string()))?;
        let links = links.iter().map(|link| Asked::parse_link(link)).collect::<Result<_, _>>();
        let links = links.map_err(|error| refused(&error))?;
        let asked = Asked { ip, ip6, mac, aliases, links, gw_priority };
        let network = place::store().find(&network).map_err(|error| refused(&error.into()))?;
        check_kind(&network)?;
        if self.station.endpoints().len() >= MAX_NETWORKS {
            let desc = format!("a sandbox is on {MAX_NETWORKS} networks at most");
            return Err(ApiError::new(Code::Limit, desc));
        }
        // As with Docker, the lowest that is free.
        let name = |number: usize| format!("eth{number}");
        let free = (0..MAX_NETWORKS).map(name).find(|name| self.station.endpoint(name).is_none());
        let interface = free.unwrap_or_else(|| name(MAX_NETWORKS));
        let identity = self.station.desk.identity.clone();
        let template = &self.station.desk.template;
        let hostname = template.config.hostname.clone();
        let who = Who { id: &identity.id, name: &identity.name, hostname: &hostname };
        let place = place::take(&self.runtime_dir, &network, asked, who, &interface, Vec::new(), template)
            .map_err(|error| refused(&error))?;
        let wanted = place.interface.clone();
        let failed = |error| ApiError::new(Code::Internal, telemetry::chain(&error));
        let endpoint = Endpoint::open(place).map_err(failed)?;
        let endpoint = endpoint.ok_or_else(|| bad(format!("network {} has no process", network.name)))?;
        self.station.add(endpoint);
        Ok((interface, Step::Making, ToSandbox::Connect(wanted)))
    }

    fn begin_disconnect(&mut self, wanted: &DisconnectNetwork) -> Result<(String, Step, ToSandbox), ApiError> {
        // Looked up among all networks: the name of one may be how the id of another begins.
        let is_meant: Box<dyn Fn(&Endpoint) -> bool> = match place::store().find(&wanted.network) {
            Ok(network) => Box::new(move |endpoint| endpoint.place.network_id == network.id),
            Err(error @ StoreError::NotFound(_)) => return Err(refused(&error.into())),
            // Whatever has become of the definition, the sandbox is on it.
            Err(_) => Box::new(|endpoint| endpoint.place.network == wanted.network),
        };
        let Some(endpoint) = self.station.endpoints().iter().find(|endpoint| is_meant(endpoint)) else {
            let (id, network) = (&self.station.desk.identity.id, &wanted.network);
            let desc = format!("container {id} is not connected to network {network}");
            return Err(ApiError::new(Code::NotFound, desc));
        };
        let name = endpoint.interface().to_owned();
        let others = self.order().into_iter().filter(|other| *other != name).collect();
        Ok((name.clone(), Step::Leaving, ToSandbox::Leave { name, others }))
    }

    /// Interfaces in the order of their ranks.
    fn order(&self) -> Vec<String> {
        self.station.ranked().iter().map(|endpoint| endpoint.interface().to_owned()).collect()
    }

    /// What a network process said.
    pub(super) fn handle_said(&mut self, said: Said) -> Result<(), RunError> {
        let changing = self.change.as_ref().map(|change| (change.interface.clone(), change.step));
        match said {
            Said::Ready(name) if changing == Some((name.clone(), Step::Attaching)) => self.arrange(),
            Said::Ready(_) => Ok(()),
            Said::Replaced(name) => self.tell(&ToSandbox::Broken { name }),
            Said::Aside(name, desc)
                if self.station.about.started.is_some() && changing.as_ref().is_none_or(|(one, _)| *one != name) =>
            {
                self.put_aside(&name, desc)
            }
            Said::Refused(name, desc) | Said::Aside(name, desc) => match changing {
                Some((changing, step)) if changing == name && step != Step::Closing => {
                    self.give_up(ApiError::new(Code::Internal, desc))
                }
                _ => Err(StationError::Network(desc).into()),
            },
            Said::Left(name) => {
                self.station.remove(&name)?;
                if let Some(change) = self.change.as_mut().filter(|change| change.interface == name) {
                    change.step = Step::Deleting;
                }
                self.tell(&ToSandbox::Delete { name })
            }
        }
    }

    /// Takes the sandbox off a network that does not have it any more. Nobody asked for it, so nobody is answered.
    fn put_aside(&mut self, interface: &str, desc: String) -> Result<(), RunError> {
        let Some(endpoint) = self.station.endpoint(interface) else { return Ok(()) };
        let network = endpoint.place.network.clone();
        tracing::error!("{desc}; it is taken off network {network}");
        self.station.about.aside.push(Aside { network, why: desc });
        self.station.retire(interface, PATIENCE)?;
        let others = self.order().into_iter().filter(|other| other != interface).collect();
        self.tell(&ToSandbox::Leave { name: interface.to_owned(), others })
    }

    fn arrange(&mut self) -> Result<(), RunError> {
        if let Some(change) = &mut self.change {
            change.step = Step::Ordering;
        }
        self.tell(&ToSandbox::Order { names: self.order() })
    }

    /// The first process has made the interface that it was asked for.
    pub(super) fn handle_made(&mut self, name: &str) -> Result<(), RunError> {
        let Some(change) = self.change.as_mut().filter(|change| change.interface == name) else { return Ok(()) };
        if change.step == Step::Making {
            change.step = Step::Attaching;
            // A process that was quick.
            if self.station.endpoint(name).is_some_and(|endpoint| endpoint.uplink.ready) {
                return self.arrange();
            }
        }
        Ok(())
    }

    /// … or has not.
    pub(super) fn handle_not_made(&mut self, name: &str, desc: &str) -> Result<(), RunError> {
        if self.change.as_ref().is_none_or(|change| change.interface != name) {
            return Ok(());
        }
        self.give_up(ApiError::new(Code::Internal, desc.to_owned()))
    }

    /// There will be no connection: what there is of it is taken back.
    fn give_up(&mut self, why: ApiError) -> Result<(), RunError> {
        let Some(change) = &mut self.change else { return Ok(()) };
        change.failed.get_or_insert(why);
        change.step = Step::Leaving;
        change.until = self.station.now() + PATIENCE;
        let name = change.interface.clone();
        self.station.retire(&name, PATIENCE)?;
        self.tell(&ToSandbox::Leave { name, others: self.order() })
    }

    /// The first process has set the ways out.
    pub(super) fn handle_ordered(&mut self, embedded_dns: bool, notes: Vec<String>) -> Result<(), RunError> {
        for note in notes {
            tracing::warn!("{note}");
        }
        let Some(change) = &mut self.change else {
            // Of one that was put aside.
            self.station.handle_networks(embedded_dns);
            return Ok(());
        };
        match change.step {
            Step::Ordering => {
                self.station.elect()?;
                self.station.handle_networks(embedded_dns);
                self.finish();
                Ok(())
            }
            Step::Leaving => {
                change.step = Step::Closing;
                let name = change.interface.clone();
                self.station.leave(&name);
                self.station.elect()?;
                self.station.handle_networks(embedded_dns);
                Ok(())
            }
            Step::Making | Step::Attaching | Step::Closing | Step::Deleting => Ok(()),
        }
    }

    /// The first process has deleted an interface.
    pub(super) fn handle_deleted(&mut self) {
        if self.change.as_ref().is_some_and(|change| change.step == Step::Deleting) {
            self.finish();
        }
    }

    /// Answers whoever asked.
    fn finish(&mut self) {
        let Some(Change { key, interface, step, failed, .. }) = self.change.take() else { return };
        let reply = match (failed, self.station.endpoint(&interface)) {
            (Some(failed), _) => failed.reply(),
            (None, Some(endpoint)) if step == Step::Ordering => {
                let (v4, v6) = endpoint.plans();
                error::reply(&error::value(&Connected {
                    network: endpoint.place.network.clone(),
                    interface,
                    mac: endpoint.place.interface.mac.to_string(),
                    v4: v4.map(|plan| plan.guest.into()),
                    v6: v6.map(|plan| plan.guest.into()),
                    gateway: endpoint.gateway,
                }))
            }
            (None, _) => error::reply(&error::value(&Disconnected {})),
        };
        self.station.reply(key, reply, Vec::new());
    }

    /// Time has passed.
    pub(super) fn handle_late_change(&mut self) -> Result<(), RunError> {
        let now = self.station.now();
        let Some(change) = &mut self.change else { return Ok(()) };
        if change.next_timeout().is_none_or(|until| now < until) {
            return Ok(());
        }
        let late =
            || ApiError::new(Code::TimedOut, format!("it has not come to an end within {} s", PATIENCE.as_secs()));
        match change.step {
            Step::Making | Step::Attaching | Step::Ordering => self.give_up(late()),
            // The first process does nothing any more: it is stopped, say.
            Step::Leaving | Step::Closing | Step::Deleting => {
                change.failed.get_or_insert_with(late);
                self.finish();
                Ok(())
            }
        }
    }
}

/// Networks that nobody is connected to.
fn check_kind(network: &Network) -> Result<(), ApiError> {
    if !network.ipam.is_empty() {
        return Ok(());
    }
    let why = match network.name.as_str() {
        "host" => "cannot connect container to host network - container must be created in host network mode",
        _ => "container cannot be connected to multiple networks with one of the networks in private (none) mode",
    };
    Err(ApiError::new(Code::Unsupported, why))
}
