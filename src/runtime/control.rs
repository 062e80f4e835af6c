//! The control plane thread: a tokio current-thread runtime for what is slow.
//!
//! It listens to the [`Supervisor`] and answers the guest's DNS queries by asking upstream. A monitor's attach connection
//! is the lease: when it closes, the process ends; what else is said over it is in `runtime::told`. A process that stands alone looks
//! for them itself (`runtime::own_names`). Queries come over a bounded channel; answers go back over another,
//! with an eventfd that wakes the data plane. Both drop when full.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc;

use super::answers::Answers;
use super::api::{self, Desk};
use super::command::DataPlane;
use super::events::{self, FlowHearer};
use super::faults::Faults;
use super::forwards::Forwards;
use super::metrics_http;
use super::observe::{Identity, Observer};
use super::own_names::OwnNames;
use super::told::Told;
use crate::api::attach::ZoneParts;
use crate::host::resolver::{Limits, Resolver, Transport, serve_tcp};
use crate::network::config::DnsZone;
use crate::network::fault::Rules;
use crate::network::zone::{self, Record, Zone};
use crate::stack::arena::Id;

/// Queries and answers that may wait. A resolver that is this far behind has lost its guests' patience.
pub const QUEUE: usize = 8192;

/// Returns the host's name servers if they may have changed.
pub type HostDns = Box<dyn FnMut() -> Option<Vec<SocketAddr>> + Send>;

/// Who tells the process what to do.
pub enum Supervisor {
    /// A monitor, over the attach connection.
    Monitor(OwnedFd),
    /// Nobody after the start: the process stands alone.
    Caller {
        /// Looks for name servers.
        host_dns: HostDns,
    },
}

/// What the data plane asks for.
#[derive(Debug)]
pub enum DnsQuery {
    /// One query over UDP.
    Udp {
        /// Whose guest asks.
        endpoint: Id,
        /// Who asks.
        guest: SocketAddr,
        /// Which of our addresses.
        server: SocketAddr,
        /// The message.
        query: Vec<u8>,
        /// Kept until it is answered.
        ticket: Ticket,
    },
    /// A TCP connection of the guest to port 53, joined to this end.
    Stream {
        /// Whose guest asks.
        endpoint: Id,
        /// Non-blocking.
        stream: UnixStream,
        /// Kept until it ends.
        ticket: Ticket,
    },
}

/// One question of an endpoint that is on its way. The queue is everybody's, so nobody has more of it than its bound.
#[derive(Clone, Debug, Default)]
pub struct Ticket(Arc<()>);

impl Ticket {
    /// Another one of the same endpoint's, if fewer than `most` are out.
    pub fn draw(&self, most: usize) -> Option<Self> {
        (Arc::strong_count(&self.0) <= most).then(|| self.clone())
    }
}

impl DnsQuery {
    /// Whose guest asks.
    pub fn endpoint(&self) -> Id {
        match self {
            Self::Udp { endpoint, .. } | Self::Stream { endpoint, .. } => *endpoint,
        }
    }
}

/// One answer over UDP.
#[derive(Debug)]
pub struct DnsAnswer {
    /// Whose guest asked.
    pub endpoint: Id,
    /// Who asked.
    pub guest: SocketAddr,
    /// Which of our addresses.
    pub server: SocketAddr,
    /// The message.
    pub answer: Vec<u8>,
}

/// Whom the resolver asks, and which names it knows.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Upstream servers.
    pub servers: Vec<SocketAddr>,
    /// Domains with servers of their own.
    pub zones: Vec<DnsZone>,
    /// The network's own names.
    pub zone: Zone,
    /// Nobody upstream may be asked, whoever is told: the network is internal.
    pub offline: bool,
    parts: ZoneParts,
}

impl From<Vec<SocketAddr>> for Names {
    fn from(servers: Vec<SocketAddr>) -> Self {
        Self { servers, ..Self::default() }
    }
}

impl Names {
    /// Takes a part of the network's own names; they change with the last. One that makes no sense leaves them as they
    /// were: the monitor checked it, so it is told in the log alone.
    pub(super) fn take_part(&mut self, records: Vec<Record>, more: bool) {
        let limits = zone::Limits::default();
        match self.parts.add(records, more, limits.records).map(|all| Zone::new(all, &limits)) {
            None => {}
            Some(Ok(zone)) => self.zone = zone,
            Some(Err(error)) => tracing::error!("the monitor told names that are refused: {error}"),
        }
    }

    pub(super) fn tell(&self, resolver: &Resolver) {
        let (servers, zones) = if self.offline { (&[][..], &[][..]) } else { (&self.servers[..], &self.zones[..]) };
        resolver.set_servers(servers.to_vec());
        resolver.set_zones(zones);
        resolver.set_zone(self.zone.clone());
    }
}

/// Everything that the thread owns.
pub struct Control {
    /// Who is listened to.
    pub supervisor: Supervisor,
    /// What was told of names so far.
    pub dns: Names,
    /// From the data plane.
    pub queries: mpsc::Receiver<DnsQuery>,
    /// To the data plane.
    pub answers: mpsc::Sender<DnsAnswer>,
    /// Wakes the data plane.
    pub wake: Arc<EventFd>,
    /// Where metrics are scraped.
    pub metrics: Option<TcpListener>,
    /// The API socket, and the ports that are changed there.
    pub api: Option<(UnixListener, Forwards)>,
    /// The data plane's handle, for what it can tell and do.
    pub plane: DataPlane,
    /// What the process tells of itself, and what the data plane tells of flows.
    pub observed: Option<(Identity, FlowHearer)>,
    /// Faults that hold from the beginning.
    pub faults: Rules,
}

impl Control {
    /// How each stage of confinement ended.
    pub fn set_confinement(&mut self, confinement: BTreeMap<String, String>) {
        if let Some((identity, _)) = &mut self.observed {
            identity.confinement = confinement;
        }
    }

    /// Runs until the monitor is gone. Captures are whole when it returns.
    pub fn run(self, runtime: &tokio::runtime::Runtime) {
        let (writers, wake) = (self.plane.captures().writers().clone(), Arc::clone(&self.wake));
        let local = tokio::task::LocalSet::new();
        local.block_on(runtime, self.serve());
        writers.close();
        let _ = wake.write(1);
        writers.wait(super::capture::DRAIN);
    }

    async fn serve(self) {
        let Self { supervisor, dns, mut queries, answers, wake, metrics, api: api_socket, plane, observed, faults } =
            self;
        let resolver = Arc::new(Resolver::new(Limits::default()));
        dns.tell(&resolver);
        let faults = Faults::new(plane.clone(), Arc::clone(&resolver), faults);
        let observer = observed.map(|(identity, hearer)| {
            tokio::task::spawn_local(events::watch(plane.clone(), hearer, Arc::clone(&resolver)));
            Observer::new(plane.clone(), identity, Arc::clone(&resolver))
        });
        if let (Some(listener), Some(observer)) = (metrics, observer.clone()) {
            tokio::task::spawn_local(metrics_http::serve(listener, observer));
        }
        let mut own = None;
        let mut monitor = match supervisor {
            Supervisor::Monitor(conn) => {
                let asked = Rc::new(Answers::new(plane.clone(), observer).with_faults(faults));
                match crate::sys::fd::watch(conn) {
                    Ok(conn) => {
                        let told = Told::start(conn, (Arc::clone(&resolver), dns), plane, asked);
                        tokio::task::spawn_local(told.listen())
                    }
                    Err(error) => {
                        tracing::error!("cannot watch the attach connection: {error}");
                        return;
                    }
                }
            }
            Supervisor::Caller { host_dns } => {
                let hub = plane.hub().clone();
                let names = Rc::new(OwnNames::new(Arc::clone(&resolver), hub, dns.servers, Some(host_dns)));
                if let Some((listener, forwards)) = api_socket {
                    let desk =
                        Desk::new(forwards, Rc::clone(&names), Answers::new(plane, observer).with_faults(faults));
                    tokio::task::spawn_local(api::serve(listener, desk));
                }
                own = Some(names);
                tokio::task::spawn_local(std::future::pending())
            }
        };
        loop {
            tokio::select! {
                _ = &mut monitor => return,
                query = queries.recv() => {
                    if let Some(names) = &own {
                        names.look();
                    }
                    match query {
                    Some(query) => answer_query(query, &resolver, &answers, &wake),
                    None => return,
                    }
                }
            }
        }
    }
}

/// Has a question answered, on a `LocalSet`; the answer goes back to the data plane. The resolver bounds how many are in
/// flight.
pub(super) fn answer_query(
    query: DnsQuery,
    resolver: &Arc<Resolver>,
    answers: &mpsc::Sender<DnsAnswer>,
    wake: &Arc<EventFd>,
) {
    let resolver = Arc::clone(resolver);
    match query {
        DnsQuery::Udp { endpoint, guest, server, query, ticket } => {
            let (answers, wake) = (answers.clone(), Arc::clone(wake));
            tokio::task::spawn_local(async move {
                if let Some(answer) = resolver.resolve(&query, Transport::Udp).await
                    && answers.try_send(DnsAnswer { endpoint, guest, server, answer }).is_ok()
                {
                    let _ = wake.write(1);
                }
                drop(ticket);
            });
        }
        DnsQuery::Stream { stream, ticket, .. } => match tokio::net::UnixStream::from_std(stream) {
            Ok(stream) => {
                tokio::task::spawn_local(async move {
                    serve_tcp(stream, resolver).await;
                    drop(ticket);
                });
            }
            Err(error) => tracing::warn!("cannot serve DNS over TCP: {error}"),
        },
    }
}

#[cfg(test)]
mod tests;
