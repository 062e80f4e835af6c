//! What a process without a monitor is asked about names: `set_dns`, records and hosts, kept here and told to its resolver.
//!
//! The same [`Desired`] as a monitor's (`sandbox::desk`), with two differences. The files inside are the container
//! runtime's: hosts resolve by DNS alone, and what would go into resolv.conf (`search`, `options`) is refused. The host's
//! name servers are looked for here, when a name is asked for and nobody has looked for [`LOOK_AGAIN`].

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::control::HostDns;
use super::events::Hub;
use crate::api::error::{self, ApiError, Code};
use crate::api::verbs::dns::{self, Change, Request, SetDns};
use crate::host::resolver::Resolver;
use crate::network::desired::{self, Desired};

/// How old the list of name servers may be when a name is asked for, where nobody tells of changes.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The names of one process.
pub struct OwnNames {
    resolver: Arc<Resolver>,
    hub: Hub,
    limits: desired::Limits,
    state: RefCell<State>,
}

struct State {
    desired: Desired,
    /// The host's servers, as they were last.
    host: Vec<SocketAddr>,
    look: Option<HostDns>,
    looked: Option<Instant>,
}

impl OwnNames {
    /// Over this resolver, which has been told `host`; `look` finds the host's servers when they change.
    pub fn new(resolver: Arc<Resolver>, hub: Hub, host: Vec<SocketAddr>, look: Option<HostDns>) -> Self {
        let state = State { desired: Desired::default(), host, look, looked: None };
        Self { resolver, hub, limits: desired::Limits::default(), state: RefCell::new(state) }
    }

    /// Looks for the host's name servers, if it is time.
    pub fn look(&self) {
        let mut state = self.state.borrow_mut();
        if state.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return;
        }
        state.looked = Some(Instant::now());
        let Some(servers) = state.look.as_mut().and_then(|look| look()) else { return };
        tracing::info!(?servers, "the host's name servers changed");
        state.host.clone_from(&servers);
        if state.desired.dns().servers.is_none() {
            self.hub.host_dns(&servers);
            self.resolver.set_servers(servers);
        }
    }

    /// Does what a verb of `api::verbs::dns` asks; all of it holds when this returns.
    pub fn obey(&self, verb: &str, arguments: Map<String, Value>) -> Result<Value, ApiError> {
        let request = match Request::read(verb, arguments) {
            Some(Ok(request)) => request,
            Some(Err(error)) => return Err(error::bad_arguments(verb, &error)),
            None => return Err(ApiError::new(Code::UnknownVerb, format!("{verb} is no verb about names"))),
        };
        if let Request::SetDns(SetDns { search, options, .. }) = &request
            && (search.is_some() || options.is_some())
        {
            let what = if search.is_some() { "search" } else { "options" };
            let desc = format!("set_dns: `{what}` stands in the container's resolv.conf, which is not tapway's here");
            return Err(ApiError::new(Code::Unsupported, desc));
        }
        self.look();
        let mut state = self.state.borrow_mut();
        let State { desired, host, .. } = &mut *state;
        let change = request.change();
        let value = request.apply(desired, &self.limits, host).map_err(|error| dns::refused(&error))?;
        match change {
            Change::Nothing => {}
            Change::Settings => {
                let servers = desired.dns().servers.clone().unwrap_or_else(|| host.clone());
                self.hub.host_dns(&servers);
                self.resolver.set_servers(servers);
                self.resolver.set_zones(&desired.dns().zones);
            }
            // What the resolver could not be told has been refused.
            Change::Records | Change::Hosts => {
                let zone = desired.zone(&self.limits).map_err(|error| dns::refused(&error.into()))?;
                self.resolver.set_zone(zone);
            }
        }
        Ok(value)
    }
}
