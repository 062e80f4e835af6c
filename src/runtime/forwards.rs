//! Ports of a process that stands alone, opened and closed at run time: `add_hostfwd`, `publish` and their like.
//!
//! A port is bound here, on the control thread, and served by the data plane, which gets the socket; it is told to the
//! client when the data plane has said so. What ports are called is in `api::registry`. Removing says so when the socket is
//! closed: the port can be had at once. TCP flows of a port outlive it.
//!
//! Ports are changed one request at a time (the caller holds them exclusively), and die with the process.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::command::DataPlane;
use crate::api::attach::MAX_FDS;
use crate::api::error::{ApiError, Code};
use crate::api::hostfwd::{Add, Entry, Fault};
use crate::api::registry::{Bound, Registry, Specs};
use crate::api::verbs::ports::{PortList, PortTraffic, Ports, Which};
use crate::host::published::{self, PortError};
use crate::network::config::{EndpointConfig, Listener};
use crate::telemetry::chain;

/// Most ports of one process, of the 65 535 of two transports: each costs a descriptor.
pub const MAX_FORWARDS: usize = 16_384;

/// The guest's addresses, where a request leaves them to us. IPv6 ones the guest makes itself (SLAAC), so a port that
/// names none leads to the IPv4 address from both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The recommended address.
    pub recommended: Ipv4Addr,
    /// What 0.0.0.0 means: the first address that DHCP gives.
    pub dhcp: Ipv4Addr,
    /// It has IPv6, too.
    pub v6: bool,
}

impl Guest {
    /// Of an endpoint.
    pub fn new(endpoint: &EndpointConfig) -> Self {
        let recommended = endpoint.v4.map_or(Ipv4Addr::UNSPECIFIED, |plan| plan.guest);
        let dhcp = endpoint.slirp.map_or(recommended, |slirp| slirp.dhcp.0);
        Self { recommended, dhcp, v6: endpoint.v6.is_some() }
    }

    /// The address that is listed, and the one that is meant.
    fn resolve(&self, asked: Option<IpAddr>) -> (IpAddr, IpAddr) {
        let listed = asked.unwrap_or(self.recommended.into());
        (listed, if listed.is_unspecified() { self.dhcp.into() } else { listed })
    }
}

/// Why a forward is not made.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Binding.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The data plane cannot serve it.
    #[error("cannot serve the port")]
    Serve(#[source] io::Error),
    /// Too many.
    #[error("{0} ports are forwarded already; remove some")]
    Full(usize),
}

/// The ports of one process.
#[derive(Debug)]
pub struct Forwards {
    plane: DataPlane,
    guest: Guest,
    registry: Registry<()>,
    max: usize,
}

impl Forwards {
    /// None yet; `max` is a bound on their number.
    pub fn new(plane: DataPlane, guest: Guest, max: usize) -> Self {
        Self { plane, guest, registry: Registry::new(Some(guest.recommended), None), max }
    }

    /// Whose they are.
    pub fn guest(&self) -> Guest {
        self.guest
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.registry.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.registry.is_empty()
    }

    /// Opens the port of `add_hostfwd`; returns its id.
    pub async fn add(&mut self, add: Add) -> Result<u64, AddError> {
        if self.len() >= self.max {
            return Err(AddError::Full(self.max));
        }
        let Add { proto, host_addr, host_port, guest_addr, guest_port } = add;
        let (listed, meant) = self.guest.resolve(guest_addr);
        let (listener, fd) = published::bind_one((host_addr, host_port, proto.transport()), Some(meant), guest_port)?;
        let number = self.plane.listen(listener, fd).await.map_err(AddError::Serve)?;
        Ok(self.registry.add(listener, number, (), Some((proto, listed))))
    }

    /// Closes the port of `remove_hostfwd`.
    pub async fn remove(&mut self, id: u64) -> Result<(), Fault> {
        let bound = self.registry.remove(id).ok_or(Fault::RemoveId)?;
        match self.plane.unlisten(bound.number).await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!("cannot close the forwarded port {}: {error}", bound.listener.host_port);
                Err(Fault::RemoveFailed)
            }
        }
    }

    /// All of them in slirp4netns's words, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.registry.entries()
    }

    /// Opens all of these ports, or none.
    pub async fn publish(&mut self, specs: &[String]) -> Result<Ports, ApiError> {
        let specs = Specs::parse(specs)?;
        let needed = specs.sockets();
        self.registry.check_room(needed)?;
        if self.len() + needed > self.max {
            let desc = format!("{needed} more ports would be more than the {} of one process; remove some", self.max);
            return Err(ApiError::new(Code::Limit, desc));
        }
        let mut bound = specs.bind()?;
        for (listener, _) in &mut bound {
            listener.guest_addr = Some(self.guest.recommended.into());
        }
        let mut served: Vec<(Listener, usize)> = Vec::with_capacity(bound.len());
        let mut bound = bound.into_iter();
        loop {
            let batch: Vec<_> = bound.by_ref().take(MAX_FDS).collect();
            if batch.is_empty() {
                break;
            }
            let listeners: Vec<Listener> = batch.iter().map(|(listener, _)| *listener).collect();
            match self.plane.listen_all(batch).await {
                Ok(first) => served.extend(listeners.into_iter().zip(first..)),
                Err(error) => {
                    for (_, number) in served {
                        let _ = self.plane.unlisten(number).await;
                    }
                    return Err(ApiError::new(Code::Internal, format!("cannot serve the port: {error}")));
                }
            }
        }
        let mut ports = Vec::with_capacity(served.len());
        for (listener, number) in served {
            let id = self.registry.add(listener, number, (), None);
            ports.extend(self.registry.get(id).map(|bound| self.registry.tell(bound)));
        }
        Ok(Ports { ports })
    }

    /// Closes all of these ports, or none.
    pub async fn unpublish(&mut self, which: &Which) -> Result<Ports, ApiError> {
        let removed: Vec<Bound<()>> = match which {
            Which::Specs(specs) => self.registry.remove_specs(specs)?,
            Which::Ids(ids) => self.registry.remove_all(ids)?,
        };
        for bound in &removed {
            self.plane
                .unlisten(bound.number)
                .await
                .map_err(|error| ApiError::new(Code::Gone, format!("cannot close the port: {error}")))?;
        }
        Ok(Ports { ports: removed.iter().map(|bound| self.registry.tell(bound)).collect() })
    }

    /// All of them, with what went through each.
    pub fn list(&self, traffic: &HashMap<usize, PortTraffic>) -> PortList {
        self.registry.list(traffic)
    }
}

impl From<AddError> for Fault {
    fn from(error: AddError) -> Self {
        Self::AddFailed { reason: chain(&error) }
    }
}
