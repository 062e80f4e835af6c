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
