//! Ports at the desk: bound or closed here at once, answered when the network process has done its half.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::super::control::Key;
use super::super::endpoint::Endpoint;
use super::super::published::Bound;
use super::{Change, Desk, PATIENCE, UNLISTEN};
use crate::api::attach::{AttachError, MAX_FDS, ToNetwork};
use crate::api::error::{self, ApiError, Code};
use crate::api::hostfwd::{self, Fault};
use crate::api::verbs::ports as verbs;
use crate::network::config::Listener;

impl Desk {
    pub(super) fn obey_legacy(
        &mut self,
        key: Key,
        request: hostfwd::Request,
        at: &mut Endpoint,
        now: Duration,
    ) -> Result<Option<Vec<u8>>, AttachError> {
        match request {
            hostfwd::Request::List => Ok(Some(hostfwd::listed(&self.ports.entries()))),
            hostfwd::Request::Add(add) => {
                let bound =
                    self.ports.check_room(1).map_err(|error| error.desc).and_then(|()| self.ports.forward(&add));
                match bound {
                    Ok(id) => self.serve(key, vec![id], at, now, Some(hostfwd::added(id))),
                    Err(reason) => {
                        // The reply is slirp4netns's, which has no place for it.
                        tracing::warn!("add_hostfwd: {reason}");
                        Ok(Some(hostfwd::refused(&Fault::AddFailed { reason })))
                    }
                }
            }
            hostfwd::Request::Remove(id) => match self.ports.remove(id) {
                Some(port) => self.release(key, vec![port], hostfwd::removed(), at, now),
                None => Ok(Some(hostfwd::refused(&Fault::RemoveId))),
            },
        }
    }

    pub(super) fn publish(&mut self, arguments: Map<String, Value>, at: &Endpoint) -> Result<Vec<u64>, ApiError> {
        let verbs::Publish { specs } = error::arguments("publish", arguments)?;
        if !at.gateway {
            let desc =
                "publish: the sandbox is on internal networks alone, and these publish nothing; connect it to another";
            return Err(ApiError::new(Code::Unsupported, desc));
        }
        self.ports.publish(&specs)
    }

    pub(super) fn unpublish(&mut self, arguments: Map<String, Value>) -> Result<Vec<Bound>, ApiError> {
        match error::arguments::<verbs::Unpublish>("unpublish", arguments)?.which()? {
            verbs::Which::Specs(specs) => self.ports.unpublish(&specs),
            verbs::Which::Ids(ids) => self.ports.remove_all(&ids),
        }
    }

    /// Has the network process serve ports that have just been bound. `legacy` is the reply in slirp4netns's shape.
    pub(super) fn serve(
        &mut self,
        key: Key,
        bound: Vec<u64>,
        at: &mut Endpoint,
        now: Duration,
        legacy: Option<Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, AttachError> {
        self.stale = true;
        let is_legacy = legacy.is_some();
        let reply = legacy.unwrap_or_else(|| {
            let ports = bound.iter().filter_map(|id| self.ports.get(*id)).map(|port| self.ports.tell(port)).collect();
            error::reply(&error::value(&verbs::Ports { ports }))
        });
        if !at.attached || !at.gateway {
            return Ok(Some(reply));
        }
        at.last_change += 1;
        let batches = self.ports.batch(&bound);
        let missing = batches.len().div_ceil(MAX_FDS);
        let until = now + PATIENCE;
        let change = Change { key, bound, missing, fault: None, reply, legacy: is_legacy, until };
        at.changes.insert(at.last_change, change);
        for batch in batches.chunks(MAX_FDS) {
            at.listens.push_back(at.last_change);
            listen(at, batch)?;
        }
        Ok(None)
    }

    /// Has the network process close ports that are closed here.
    pub(super) fn release(
        &mut self,
        key: Key,
        removed: Vec<Bound>,
        reply: Vec<u8>,
        at: &mut Endpoint,
        now: Duration,
    ) -> Result<Option<Vec<u8>>, AttachError> {
        self.stale = true;
        if !at.attached || !at.gateway {
            return Ok(Some(reply));
        }
        at.last_change += 1;
        let id = at.last_change;
        let missing = Self::unlisten(&removed, id, at)?;
        let until = now + PATIENCE;
        let change = Change { key, bound: Vec::new(), missing, fault: None, reply, legacy: false, until };
        at.changes.insert(id, change);
        Ok(None)
    }

    pub(super) fn unlisten(removed: &[Bound], change: u64, at: &mut Endpoint) -> Result<usize, AttachError> {
        let numbers: Vec<usize> = removed.iter().map(|port| port.number).collect();
        Self::unlisten_numbers(&numbers, change, at)
    }

    fn unlisten_numbers(numbers: &[usize], change: u64, at: &mut Endpoint) -> Result<usize, AttachError> {
        for batch in numbers.chunks(UNLISTEN) {
            at.unlistens.push_back(change);
            at.uplink.link.push(&ToNetwork::Unlisten { numbers: batch.to_vec() }, Vec::new())?;
        }
        Ok(numbers.len().div_ceil(UNLISTEN))
    }

    /// Has this network process serve all ports.
    pub(super) fn listen_all(&mut self, at: &mut Endpoint) -> Result<(), AttachError> {
        let (v4, v6) = at.plans();
        self.ports.set_guests(v4.map(|plan| plan.guest), v6.map(|plan| plan.guest));
        for batch in self.ports.renumbered(at.told_ports).chunks(MAX_FDS) {
            at.listens.push_back(0);
            listen(at, batch)?;
        }
        Ok(())
    }

    /// The endpoint is the sandbox's gateway, or is it no more: its process begins or ends to serve the ports, whose sockets stay
    /// open here. Connections that are established go on where they are.
    pub fn set_gateway(&mut self, at: &mut Endpoint, gateway: bool) -> Result<(), AttachError> {
        if std::mem::replace(&mut at.gateway, gateway) == gateway {
            return Ok(());
        }
        self.stale = true;
        if !at.attached {
            // It is told with everything else.
            return Ok(());
        }
        if gateway {
            return self.listen_all(at);
        }
        let numbers = self.ports.numbers();
        Self::unlisten_numbers(&numbers, 0, at).map(drop)
    }
}

/// One batch of ports.
fn listen(at: &mut Endpoint, batch: &[(Listener, Rc<OwnedFd>)]) -> Result<(), AttachError> {
    let listeners = batch.iter().map(|(listener, _)| *listener).collect();
    at.told_ports += batch.len();
    at.uplink.link.push(&ToNetwork::Listen { listeners }, batch.iter().map(|(_, fd)| Rc::clone(fd)).collect())
}
