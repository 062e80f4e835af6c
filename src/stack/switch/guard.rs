//! What a member may send: the checks of [`super`], on one frame and without state.
//!
//! Each function gets a frame whose Ethernet source is the port's and says what it is, with the IPv6 addresses that it
//! uses, which the switch then compares with its table ([`Switch::claim`]). Frames whose inside cannot be seen are
//! refused where that matters: neighbour discovery behind extension headers or in fragments (RFC 6980).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::groups::{self, is_local_control};
use super::{Port, Switch};
use crate::stack::compose::proto;
use crate::stack::verdict::DropReason;
use crate::wire::chain;
use crate::wire::ndisc;
use crate::wire::vnet::{IP_OFFSET, VNET_HDR_LEN};

/// IGMP (RFC 5237 registry).
const IGMP: u8 = 2;
/// Where DHCP servers listen.
const DHCP_SERVER: u16 = 67;

/// What a frame is, as far as the switch must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// For one host.
    Plain,
    /// Who has this address?
    ArpRequest(Ipv4Addr),
    /// I have.
    ArpReply,
    /// The same in IPv6.
    Solicitation(Ipv6Addr),
    /// For whoever is the router, or the DHCP server.
    Gateways,
    /// Which groups the member wants; the message begins there.
    Reports(usize),
    /// For everybody.
    Everybody,
    /// For those that joined.
    Group(IpAddr),
}

/// A frame, and the IPv6 addresses that its sender says are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub kind: Kind,
    /// Must be its own.
    pub claims: [Option<Ipv6Addr>; 2],
    /// Asks whether it may be: nobody's yet becomes its own, somebody's is for that one to defend.
    pub probes: Option<Ipv6Addr>,
}

impl From<Kind> for Seen {
    fn from(kind: Kind) -> Self {
        Self { kind, claims: [None; 2], probes: None }
    }
}

pub(super) fn ip_v4(port: &Port, frame: &[u8]) -> Result<Seen, DropReason> {
    let plan = port.v4.ok_or(DropReason::FamilyOff)?;
    let ip = frame.get(IP_OFFSET..).filter(|ip| ip.len() >= 20).ok_or(DropReason::Truncated)?;
    let header = usize::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header < 20 {
        return Err(DropReason::Malformed);
    }
    let src = Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]);
    let dst = Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]);
    // The first fragment, or all of it.
    let whole = matches!(u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff, 0);
    let for_dhcp = whole
        && ip[9] == proto::UDP
        && ip.get(header + 2..header + 4).is_some_and(|port| *port == DHCP_SERVER.to_be_bytes());
    if src != plan.guest && !(src.is_unspecified() && for_dhcp) {
        return Err(DropReason::SpoofedSource);
    }
    let kind = if dst.is_broadcast() || dst == plan.subnet.broadcast() {
        if for_dhcp { Kind::Gateways } else { Kind::Everybody }
    } else if !dst.is_multicast() {
        if src.is_unspecified() { Kind::Gateways } else { Kind::Plain }
    } else if ip[9] == IGMP {
        Kind::Reports(IP_OFFSET + header)
    } else if is_local_control(dst) {
        Kind::Everybody
    } else {
        Kind::Group(dst.into())
    };
    Ok(kind.into())
}

pub(super) fn ip_v6(port: &Port, frame: &[u8]) -> Result<Seen, DropReason> {
    let plan = port.v6.ok_or(DropReason::FamilyOff)?;
    let ip = frame.get(IP_OFFSET..).unwrap_or_default();
    let (src, dst) = chain::addresses(ip).ok_or(DropReason::Truncated)?;
    if ip[0] >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    let mut seen = Seen::from(if !dst.is_multicast() {
        Kind::Plain
    } else if dst == ndisc::ALL_NODES {
        Kind::Everybody
    } else {
        Kind::Group(dst.into())
    });
    seen.claims[0] = Some(src).filter(|&src| src != plan.guest);
    // What is not one of these two directly may have anything behind its extension headers.
    if !matches!(ip[6], proto::TCP | proto::UDP) {
        let chain = chain::walk(ip).ok_or(DropReason::Malformed)?;
        let first = chain.fragment.is_none_or(|fragment| fragment.offset == 0);
        if chain.protocol == proto::ICMPV6 && first {
            icmp_v6(port, frame, &chain, &mut seen)?;
        }
    }
    if src.is_unspecified() {
        // Only before one has an address: probes and reports (RFC 4862, section 5.4.2; RFC 3590).
        if !matches!(seen.kind, Kind::Solicitation(_) | Kind::Reports(_)) {
            return Err(DropReason::SpoofedSource);
        }
        seen.claims[0] = None;
    }
    Ok(seen)
}

fn icmp_v6(port: &Port, frame: &[u8], chain: &chain::Chain, seen: &mut Seen) -> Result<(), DropReason> {
    let kind = *frame.get(IP_OFFSET + chain.at).ok_or(DropReason::Truncated)?;
    match kind {
        130..=132 | 143 if chain.fragment.is_some() => return Err(DropReason::Malformed),
        // The gateway asks.
        130 => return Err(DropReason::Multicast),
        131 | 132 | 143 => {
            seen.kind = Kind::Reports(IP_OFFSET + chain.at);
            return Ok(());
        }
        // The gateway is the router.
        ndisc::ROUTER_ADVERTISEMENT | 137 => return Err(DropReason::SpoofedSource),
        ndisc::ROUTER_SOLICITATION..=ndisc::NEIGHBOUR_ADVERTISEMENT => {}
        _ => return Ok(()),
    }
    // None: behind other headers, which no kernel does and receivers believe all the same.
    let message = ndisc::parse(&frame[VNET_HDR_LEN..])?.ok_or(DropReason::Malformed)?;
    let own = |option| message.link_layer(option).is_none_or(|mac| mac == port.mac.0);
    match kind {
        ndisc::NEIGHBOUR_SOLICITATION => {
            if !own(ndisc::SOURCE_LINK_LAYER) {
                return Err(DropReason::SpoofedSource);
            }
            let target = message.target();
            seen.probes = Some(target).filter(|_| message.source.is_unspecified());
            // To one host, it is delivered as what is for one host.
            seen.kind = Kind::Solicitation(target);
        }
        ndisc::NEIGHBOUR_ADVERTISEMENT => {
            if !own(ndisc::TARGET_LINK_LAYER) {
                return Err(DropReason::SpoofedSource);
            }
            let target = message.target();
            seen.claims[1] = Some(target).filter(|&target| port.v6.is_none_or(|plan| target != plan.guest));
        }
        _ => seen.kind = Kind::Gateways,
    }
    Ok(())
}

pub(super) fn arp(port: &Port, eth: &[u8]) -> Result<Seen, DropReason> {
    let plan = port.v4.ok_or(DropReason::FamilyOff)?;
    let arp = eth.get(14..42).ok_or(DropReason::Truncated)?;
    // Ethernet and IPv4 (RFC 826).
    if arp[..6] != [0, 1, 8, 0, 6, 4] {
        return Err(DropReason::Malformed);
    }
    let sender = Ipv4Addr::new(arp[14], arp[15], arp[16], arp[17]);
    // A probe names no sender (RFC 5227, section 1.1).
    if arp[8..14] != port.mac.0 || !(sender == plan.guest || sender.is_unspecified()) {
        return Err(DropReason::SpoofedSource);
    }
    match arp[6..8] {
        [0, 1] => Ok(Kind::ArpRequest(Ipv4Addr::new(arp[24], arp[25], arp[26], arp[27])).into()),
        [0, 2] => Ok(Kind::ArpReply.into()),
        _ => Err(DropReason::Malformed),
    }
}

/// What may not go to another member though it may go to the gateway.
pub(super) fn between_members(kind: Kind, frame: &[u8]) -> Result<(), DropReason> {
    match kind {
        // A client that has no address, or a solicitation for routers.
        Kind::Gateways => Err(DropReason::SpoofedSource),
        Kind::Reports(_) => Err(DropReason::Multicast),
        // Members have a route for 127.0.0.11, and their kernels let it in.
        _ if frame[VNET_HDR_LEN + 12] == 8 && frame[VNET_HDR_LEN + 13] == 0 && frame[IP_OFFSET + 16] == 127 => {
            Err(DropReason::Refused)
        }
        _ => Ok(()),
    }
}

impl Switch {
    /// Compares what a frame says of its sender's IPv6 addresses with the table.
    pub(super) fn claim_all(&mut self, member: u16, seen: &Seen) -> Result<(), DropReason> {
        for address in seen.claims.into_iter().flatten() {
            self.claim(member, address)?;
        }
        if let Some(address) = seen.probes {
            // Somebody else's is for its owner to say so.
            let _ = self.claim(member, address);
        }
        Ok(())
    }

    fn claim(&mut self, member: u16, address: Ipv6Addr) -> Result<(), DropReason> {
        if let Some(&owner) = self.by_v6.get(&address) {
            return if owner == member { Ok(()) } else { Err(DropReason::SpoofedSource) };
        }
        let limit = self.limits.own_addresses;
        let Some(Some(port)) = self.ports.get_mut(usize::from(member)) else { return Err(DropReason::NoMember) };
        let plan = port.v6.ok_or(DropReason::FamilyOff)?;
        let of_the_link = address.is_unicast_link_local() || plan.subnet.contains(&address);
        if !of_the_link
            || [plan.gateway, plan.gateway_link_local, plan.dns].contains(&address)
            || port.own.len() >= limit
        {
            return Err(DropReason::SpoofedSource);
        }
        port.own.push(address);
        self.by_v6.insert(address, member);
        Ok(())
    }

    /// Membership reports: they end here, since hosts that hear each other's would keep theirs back (RFC 4541, section
    /// 2.1.1).
    pub(super) fn take_reports(
        &mut self,
        now: smoltcp::time::Instant,
        member: u16,
        frame: &[u8],
        at: usize,
    ) -> Result<(), DropReason> {
        let message = frame.get(at..).ok_or(DropReason::Truncated)?;
        let v6 = frame[IP_OFFSET] >> 4 == 6;
        let Self { groups, .. } = self;
        let mut full = false;
        let mut each = |report| full |= groups.handle_report(now, member, report).is_err();
        let read = if v6 { groups::read_mld(message, &mut each) } else { groups::read_igmp(message, &mut each) };
        match read {
            // A query of IGMP: the gateway asks.
            None => Err(DropReason::Multicast),
            Some(()) if full => Err(DropReason::TableFull),
            Some(()) => Ok(()),
        }
    }
}
