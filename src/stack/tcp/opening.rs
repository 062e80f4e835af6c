//! How TCP flows begin: by a SYN of the guest, or by a connection at a published port.

use std::net::{IpAddr, SocketAddr};

use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpEndpoint, IpListenEndpoint};

use super::account::{Origin, record};
use super::flow::{Phase, TcpFlow};
use super::port::{Port, Wire};
use super::{ConnectFailure, OpenVerdict, Tcp, TcpWork, mark, reset_unknown};
use crate::stack::Output;
use crate::stack::arena::Id;
use crate::stack::compose::{BareTcp, Composer, DEFAULT_TTL, proto, write_ip_header};
use crate::stack::flow::FlowKey;
use crate::stack::verdict::{DropCounters, DropReason};
use crate::wire::tcp_segment::{self, ACK, RST, SYN, Segment};

impl Tcp {
    /// A new flow by a SYN of the guest, if policy lets it.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn open(
        &mut self,
        now: Instant,
        packet: &mut [u8],
        tcp_at: usize,
        key: FlowKey,
        verdict: OpenVerdict,
        gateway: Option<IpAddr>,
        composer: &mut Composer,
        out: &mut impl Output,
    ) -> Result<(), DropReason> {
        let v6 = key.guest.is_ipv6();
        let mut segment = Segment::new(&mut packet[tcp_at..]).ok_or(DropReason::Truncated)?;
        let target = match verdict {
            OpenVerdict::Connect(target) => target,
            OpenVerdict::Reset => {
                reset_unknown(&key, &segment, composer, out);
                return Err(DropReason::Refused);
            }
            OpenVerdict::Icmp(kind) => {
                if let Some(gateway) = gateway {
                    composer.send_icmp_error(kind, gateway, key.guest, packet, out);
                }
                return Err(DropReason::Refused);
            }
            OpenVerdict::Ignore(reason) => return Err(reason),
        };
        if self.flows.len() >= self.limits.max_flows {
            let idle = self.longest_idle(now, false).ok_or(DropReason::TableFull)?;
            self.give_way(idle, DropReason::TableFull, now, composer, out);
        }
        while self.opening_now >= self.limits.max_opening {
            // The oldest unanswered connect gives way; the guest has long since had time to try again.
            let flows = &self.flows;
            let waits = |id| flows.get(id).is_some_and(|flow: &TcpFlow| flow.phase == Phase::Connecting);
            let Some(oldest) = self.opening.pop(waits) else { break };
            composer.drops.count(DropReason::TableFull);
            self.remove(oldest, now, false);
        }
        let guest_isn = segment.seq();
        let mut socket = self.rings.take(false);
        let mut wire = Wire { own_shift: socket.shift(), ..Wire::default() };
        let tso = if v6 { composer.offloads.tso6 } else { composer.offloads.tso4 };
        wire.from_guest(&mut segment, v6, tso, composer.mtu);
        let tcp = socket.get_mut();
        tcp.pause_synack(true);
        let listen = IpListenEndpoint { addr: Some(IpAddress::from(key.peer)), port: key.peer_port };
        if tcp.listen(listen).is_err() {
            self.rings.give_back(socket, 0);
            return Err(DropReason::Malformed);
        }
        let mut port = Port { rx: Some(packet), wire: &mut wire, key: &key, isn: &self.isn, composer, out, now };
        self.iface.poll_ingress_single(now, &mut port, &mut socket.set);
        if socket.get().state() != State::SynReceived {
            self.rings.give_back(socket, 0);
            return Err(DropReason::Malformed);
        }
        let id = self.insert(TcpFlow::new(key, Origin::Guest(target), socket, wire, Phase::Connecting, now));
        if let Some(flow) = self.flows.get_mut(id) {
            flow.guest_isn = guest_isn;
            flow.traffic.from_guest_packets = 1;
        }
        let Self { opening, flows, .. } = self;
        opening
            .push(id, self.limits.max_opening, |id| flows.get(id).is_some_and(|flow| flow.phase == Phase::Connecting));
        self.opening_now += 1;
        self.work.push_back(TcpWork::Connect { flow: id, target });
        Ok(())
    }

    fn insert(&mut self, flow: TcpFlow) -> Id {
        let key = flow.key;
        let id = self.flows.insert(flow);
        self.by_key.insert(key, id);
        let now = self.flows.get(id).map(|flow| flow.opened);
        self.rank(id, now.unwrap_or(self.latest));
        if let Some(flow) = self.flows.get(id) {
            self.ledger.opened(|| record((self.lane, id), flow, None));
        }
        id
    }

    /// The host answered a [`TcpWork::Connect`].
    pub fn handle_connected(&mut self, flow: Id, now: Instant, drops: &mut DropCounters) {
        let waits = self.flows.get(flow).is_some_and(|entry| entry.phase == Phase::Connecting);
        if waits {
            self.half_open(flow, now, drops);
        }
        if let Some(entry) = self.flows.get_mut(flow)
            && entry.phase == Phase::Connecting
        {
            entry.phase = Phase::Handshake;
            entry.since = now;
            if let Some(socket) = &mut entry.socket {
                socket.get_mut().pause_synack(false);
            }
            self.opening_now -= 1;
            mark(&mut self.dirty, flow, entry);
        }
    }

    /// One more flow waits for the guest's part of the handshake.
    fn half_open(&mut self, id: Id, now: Instant, drops: &mut DropCounters) {
        while self.half_open_now >= self.limits.max_half_open {
            let flows = &self.flows;
            let waits = |id| flows.get(id).is_some_and(|flow: &TcpFlow| flow.phase == Phase::Handshake);
            let Some(oldest) = self.half_open.pop(waits) else { break };
            drops.count(DropReason::TableFull);
            self.remove(oldest, now, false);
        }
        let Self { half_open, flows, .. } = self;
        half_open.push(id, self.limits.max_half_open, |other| {
            other == id || flows.get(other).is_some_and(|flow| flow.phase == Phase::Handshake)
        });
        self.half_open_now += 1;
    }

    /// The host refused, or nobody answered it.
    pub fn handle_connect_failed(
        &mut self,
        flow: Id,
        failure: ConnectFailure,
        from: Option<IpAddr>,
        now: Instant,
        composer: &mut Composer,
        out: &mut impl Output,
    ) {
        let Some(entry) = self.flows.get(flow) else { return };
        let key = entry.key;
        match failure {
            ConnectFailure::Refused => {
                let fields = BareTcp { seq: 0, ack: entry.guest_isn.wrapping_add(1), flags: RST | ACK, window: 0 };
                composer.send_tcp_bare(key.peer(), key.guest(), fields, out);
            }
            ConnectFailure::Unreachable(kind) => {
                // The guest's kernel looks at the addresses, the ports and the sequence number of its SYN.
                let mut original = [0u8; 60];
                let at = write_ip_header(
                    &mut original,
                    key.guest,
                    key.peer,
                    proto::TCP,
                    tcp_segment::TCP_HDR_LEN,
                    DEFAULT_TTL,
                    0,
                );
                let tcp = &mut original[at..];
                tcp_segment::emit_bare(tcp, (key.guest_port, key.peer_port), entry.guest_isn, 0, SYN, 0);
                if let Some(from) = from {
                    let len = at + tcp_segment::TCP_HDR_LEN;
                    composer.send_icmp_error(kind, from, key.guest, &original[..len], out);
                }
            }
            ConnectFailure::Silent => {}
        }
        self.remove(flow, now, false);
    }

    /// Published port number `listener` accepted `client`: opens the guest's side of it (`shown`), or, where that is `None` or taken, from
    /// `stand_in`, with the client's port if it can be. `None`: no room, close the client with a reset.
    pub fn handle_accepted(
        &mut self,
        now: Instant,
        (listener, client): (usize, SocketAddr),
        shown: Option<SocketAddr>,
        stand_in: Option<(IpAddr, SocketAddr)>,
        drops: &mut DropCounters,
    ) -> Result<Id, DropReason> {
        if self.flows.len() >= self.limits.max_flows {
            // The guest learns of it when it next says something there.
            let idle = self.longest_idle(now, false).ok_or(DropReason::TableFull)?;
            drops.count(DropReason::TableFull);
            self.remove(idle, now, false);
        }
        let key = shown
            .map(|guest| FlowKey::new(guest, client))
            .filter(|key| !self.by_key.contains_key(key))
            .or_else(|| self.stand_ins.find(stand_in?, client.port(), |key| self.by_key.contains_key(key)))
            .ok_or(DropReason::TableFull)?;
        let mut socket = self.rings.take(false);
        let remote = IpEndpoint::new(IpAddress::from(key.guest), key.guest_port);
        let local = IpListenEndpoint { addr: Some(IpAddress::from(key.peer)), port: key.peer_port };
        if socket.get_mut().connect(self.iface.context(), remote, local).is_err() {
            self.rings.give_back(socket, 0);
            return Err(DropReason::Malformed);
        }
        // The guest's SYN-ACK tells its segment size.
        let wire = Wire { mss: u16::MAX, ..Wire::default() };
        let origin = Origin::Published { client, listener, port: self.ledger.connection(listener) };
        let id = self.insert(TcpFlow::new(key, origin, socket, wire, Phase::Handshake, now));
        if let Some(flow) = self.flows.get_mut(id) {
            mark(&mut self.dirty, id, flow);
        }
        self.half_open(id, now, drops);
        Ok(id)
    }
}
