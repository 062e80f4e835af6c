//! Ports that were opened at run time: what `add_hostfwd` and its like change.
//!
//! A forward is bound here, on the control thread, and served by the data plane once that has said so. Its id is 1 for the
//! first, one more for each that succeeds, and never given again; the list is in that order. Removing says so when the
//! socket is closed: the port can be had at once. TCP flows of a forward outlive it.
//!
//! Forwards are changed one at a time (the caller holds the registry exclusively), and die with the process.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::command::DataPlane;
use crate::api::hostfwd::{Add, Entry, Fault};
use crate::host::published::{self, PortError};
use crate::network::config::EndpointConfig;
use crate::telemetry::chain;

/// Most forwards of one process, of the 65 535 ports of two transports: each costs a descriptor.
pub const MAX_FORWARDS: usize = 16_384;

/// The guest's addresses, where a request leaves them to us. IPv6 ones the guest makes itself (SLAAC), so a forward that
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

#[derive(Debug)]
struct Forward {
    entry: Entry,
    /// The data plane's number.
    listener: usize,
}

/// The forwards of one process.
#[derive(Debug)]
pub struct Forwards {
    plane: DataPlane,
    guest: Guest,
    by_id: BTreeMap<u64, Forward>,
    last_id: u64,
    max: usize,
}

impl Forwards {
    /// None yet; `max` is a bound on their number.
    pub fn new(plane: DataPlane, guest: Guest, max: usize) -> Self {
        Self { plane, guest, by_id: BTreeMap::new(), last_id: 0, max }
    }

    /// Opens a port; returns its id.
    pub async fn add(&mut self, add: Add) -> Result<u64, AddError> {
        if self.by_id.len() >= self.max {
            return Err(AddError::Full(self.max));
        }
        let Add { proto, host_addr, host_port, guest_addr, guest_port } = add;
        let (guest_addr, meant) = self.guest.resolve(guest_addr);
        let bound = published::bind_one((host_addr, host_port, proto.transport()), Some(meant), guest_port)?;
        let listener = self.plane.listen(bound.0, bound.1).await.map_err(AddError::Serve)?;
        self.last_id += 1;
        let id = self.last_id;
        let entry = Entry { id, proto, host_addr, host_port, guest_addr, guest_port };
        self.by_id.insert(id, Forward { entry, listener });
        Ok(id)
    }

    /// Closes a port.
    pub async fn remove(&mut self, id: u64) -> Result<(), Fault> {
        let forward = self.by_id.remove(&id).ok_or(Fault::RemoveId)?;
        match self.plane.unlisten(forward.listener).await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::warn!("cannot close the forwarded port {}: {error}", forward.entry.host_port);
                Err(Fault::RemoveFailed)
            }
        }
    }

    /// All of them, oldest first.
    pub fn list(&self) -> Vec<Entry> {
        self.by_id.values().map(|forward| forward.entry).collect()
    }
}

impl From<AddError> for Fault {
    fn from(error: AddError) -> Self {
        Self::AddFailed { reason: chain(&error) }
    }
}
