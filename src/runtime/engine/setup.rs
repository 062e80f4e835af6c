//! A data plane and its control plane for one endpoint, and what is said when they are ready.

use std::os::fd::OwnedFd;

use smoltcp::time::Instant;

use super::Engine;
use crate::api::attach::{self, FromNetwork};
use crate::network::config::Turns;
use crate::runtime::capture::{self, Taken};
use crate::runtime::command::{DataPlane, FIRST};
use crate::runtime::control::{Control, Supervisor};
use crate::runtime::endpoint::Parts;
use crate::runtime::engine::Ends;
use crate::runtime::events;
use crate::runtime::fair::AllLimits;
use crate::runtime::forwards::{Forwards, Guest, MAX_FORWARDS};
use crate::runtime::lanes::Place;
use crate::runtime::observe::Identity;
use crate::runtime::{Attached, RuntimeError, system};
use crate::stack::Limits;

/// Sets both planes up for one endpoint; nothing of the guest is read yet. `turns`: where it is noted whose turn it is.
pub fn build(
    attached: Attached,
    supervisor: Supervisor,
    turns: Option<&'static Turns>,
) -> Result<(Engine, Control), RuntimeError> {
    let Attached { endpoint: config, tap, queues, pcap, listeners, dns, metrics, api, exit, membership: _, faults } =
        attached;
    let (mut engine, ends) = Engine::new(None, AllLimits::default())?;
    let Ends { queries, ask, answers, wake, orders, epoll, mut lanes, since } = ends;
    if let Some(exit) = exit {
        engine.watch_exit(exit)?;
    }
    if let Some(turns) = turns {
        engine.tell_turns(turns, &mut lanes);
    }
    let limits = Limits::default();
    let identity = Identity { since, ..Identity::new(config.clone(), limits) };
    let (flows, hearer) = events::flow_channel();
    let parts = Parts {
        id: FIRST,
        config: config.clone(),
        tap,
        captures: Taken::default(),
        flows,
        queries: ask,
        faults: faults.clone(),
        rules: None,
        shared: None,
        lane: Default::default(),
    };
    let place = Place { orders, epoll, queues, listeners: listeners.len(), pcap, now: Instant::ZERO };
    let (plane, mut endpoint) = lanes.endpoint(parts, limits, place)?.serve_further()?;
    let api = api.map(|listener| {
        let guest = Guest::new(&config);
        (listener, Forwards::new(plane.clone(), guest, MAX_FORWARDS))
    });
    for (number, (listener, fd)) in listeners.into_iter().enumerate() {
        plane.know(number, listener);
        endpoint.sockets.add_listener(number, listener, fd).map_err(system("set up epoll"))?;
    }
    engine.install(endpoint).map_err(|(error, _)| system("set up epoll")(error))?;
    let observed = Some((identity, hearer));
    let metrics = metrics.map(Into::into);
    Ok((engine, Control { supervisor, dns, queries, answers, wake, metrics, api, plane, observed, faults }))
}

/// The captures that an endpoint begins with: that of the run, where the user asked for one.
pub fn first_captures(plane: &DataPlane, pcap: Option<OwnedFd>) -> Taken {
    let writers = plane.captures().writers();
    let mut captures = Taken::new(writers.clone());
    match pcap.map(|file| capture::of_run(file, writers, capture::RING)) {
        Some(Ok(capture)) => captures.add(capture),
        Some(Err(error)) => tracing::warn!("cannot start the capture: {}", crate::telemetry::chain(&error)),
        None => {}
    }
    captures
}

/// Something that no guest can guess.
pub fn seed() -> Result<u64, RuntimeError> {
    let mut seed = [0u8; 8];
    crate::sys::random::fill(&mut seed).map_err(system("get random bytes"))?;
    Ok(u64::from_ne_bytes(seed))
}

/// Tells the monitor that frames flow.
pub fn tell_ready(conn: &OwnedFd) -> Result<(), RuntimeError> {
    Ok(attach::send(conn, &FromNetwork::Ready, &[])?)
}
