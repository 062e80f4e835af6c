//! Who a flow is, as the guest sees it.

use std::net::{IpAddr, SocketAddr};

/// The guest-side 4-tuple of a flow, the key of every flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The guest's address.
    pub guest: IpAddr,
    /// The other side's address as the guest sees it (a stand-in where the true one cannot be shown).
    pub peer: IpAddr,
    /// The guest's port.
    pub guest_port: u16,
    /// The other side's port as the guest sees it.
    pub peer_port: u16,
}

impl FlowKey {
    /// From the two ends.
    pub fn new(guest: SocketAddr, peer: SocketAddr) -> Self {
        Self { guest: guest.ip(), peer: peer.ip(), guest_port: guest.port(), peer_port: peer.port() }
    }

    /// The guest's end.
    pub fn guest(&self) -> SocketAddr {
        SocketAddr::new(self.guest, self.guest_port)
    }

    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.peer, self.peer_port)
    }
}

/// Where a published port leads in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPort {
    /// Which of the guest's addresses; None is the endpoint's own, of the client's family where the guest has it.
    pub addr: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// First port of the gateway where it stands in for a client (the dynamic range of RFC 6335).
const STAND_IN_FIRST: u16 = 49_152;
/// Ports tried for one client before it is refused.
const STAND_IN_TRIES: u16 = 256;

/// Ports of the gateway for clients whose own address the guest cannot be shown, in turn.
#[derive(Debug)]
pub struct StandIns {
    next: u16,
}

impl StandIns {
    /// Starts at a port that `seed` picks.
    pub fn new(seed: u64) -> Self {
        Self { next: STAND_IN_FIRST + (seed % 16_384) as u16 }
    }

    /// A flow from the gateway to the guest's end that is not `taken` yet, with the client's own port if that is free.
    pub fn find(
        &mut self,
        (gateway, guest): (IpAddr, SocketAddr),
        client_port: u16,
        taken: impl Fn(&FlowKey) -> bool,
    ) -> Option<FlowKey> {
        let own = FlowKey::new(guest, SocketAddr::new(gateway, client_port));
        if !taken(&own) {
            return Some(own);
        }
        (0..STAND_IN_TRIES).find_map(|_| {
            let port = self.next;
            self.next = port.checked_add(1).unwrap_or(STAND_IN_FIRST);
            let key = FlowKey::new(guest, SocketAddr::new(gateway, port));
            (!taken(&key)).then_some(key)
        })
    }
}
