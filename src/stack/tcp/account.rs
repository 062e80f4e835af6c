//! What a TCP flow is seen as from outside, and its part in the sums.

use std::net::SocketAddr;

use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;

use super::flow::{Phase, TcpFlow};
use super::{Tcp, TcpTarget};
use crate::stack::arena::Id;
use crate::stack::census::{FlowId, FlowRecord, FlowState, Kind, Lane};
use crate::stack::ledger::Traffic;

/// Who began a flow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// The guest.
    Guest(TcpTarget),
    /// A client of a published port.
    Published {
        /// Its true address.
        client: SocketAddr,
        /// The port's number.
        listener: usize,
        /// The port's account.
        port: Id,
    },
}

/// All that it has carried so far.
fn carried(flow: &TcpFlow) -> Traffic {
    Traffic { to_guest_packets: flow.wire.packets_to_guest, ..flow.traffic }
}

/// The flow as it is, or as it ended (`Some(in order)`).
pub(super) fn record((lane, id): (Lane, Id), flow: &TcpFlow, ended: Option<bool>) -> FlowRecord {
    let closing = || flow.host_finished || flow.guest_finished || flow.state() != State::Established;
    let state = match (ended, flow.phase) {
        (Some(true), _) => FlowState::Closed,
        (Some(false), Phase::Open) => FlowState::Reset,
        (Some(false), _) => FlowState::Failed,
        (None, Phase::Connecting) => FlowState::Connecting,
        (None, Phase::Handshake) => FlowState::Handshake,
        (None, Phase::Open) if closing() => FlowState::Closing,
        (None, Phase::Open) => FlowState::Open,
    };
    let (target, listener) = match flow.origin {
        Origin::Guest(TcpTarget::Outside(to) | TcpTarget::Host(to)) => (Some(to), None),
        Origin::Guest(TcpTarget::Dns) => (None, None),
        Origin::Published { client, listener, .. } => (Some(client), Some(listener)),
    };
    FlowRecord {
        id: FlowId { kind: Kind::Tcp, id: lane.outside(id) },
        guest: flow.key.guest(),
        peer: flow.key.peer(),
        target,
        listener,
        state,
        traffic: carried(flow),
        opened: flow.opened,
        last: flow.last,
    }
}

impl Tcp {
    /// Brings the sums up to date with one flow.
    pub(super) fn settle_account(&mut self, id: Id, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let carried = carried(flow);
        if carried == flow.told {
            return;
        }
        let port = match flow.origin {
            Origin::Guest(_) => None,
            Origin::Published { port, .. } => Some(port),
        };
        self.ledger.add(port, &carried.since(&flow.told));
        flow.told = carried;
        flow.last = now;
    }

    /// Whether the host has not answered yet.
    pub fn is_connecting(&self, flow: Id) -> bool {
        self.flows.get(flow).is_some_and(|flow| flow.phase == Phase::Connecting)
    }

    /// Slots that were ever used.
    pub fn slots(&self) -> u32 {
        self.flows.slots()
    }

    /// The flow in a slot.
    pub fn record_at(&self, slot: u32) -> Option<FlowRecord> {
        self.flows.at(slot).map(|(id, flow)| record((self.lane, id), flow, None))
    }
}
