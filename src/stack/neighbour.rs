//! ARP and neighbour discovery for one endpoint: who has the gateway's and the DNS address? We have.
//!
//! Answers come for exactly the addresses that are ours: gateway and DNS in IPv4, gateway (global and link-local) and
//! DNS in IPv6. Never for the guest's own, since an answer to its probe would be a duplicate address (RFC 5227 §2.1.1,
//! RFC 4862 §5.4), and never for the rest of the subnet, so that the guest's kernel itself says "host unreachable"
//! there. Nothing is learnt: the guest's MAC comes with the frame that asks, and whether that frame may have it is
//! checked before it gets here. No state, no timers; answers are written into the caller's buffer.
//!
//! On slirp4netns's segment each of our addresses has a MAC of its own ([`own_mac`]), a question may come to any MAC, and
//! guests are learnt: [`arp_sender`] and [`ndp_sender`] say whom a message tells of, [`ask`] writes a question of ours.
//! The table is [`super::guests`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::verdict::DropReason;
use crate::network::config::{EndpointConfig, Mac, PlanV4, PlanV6};
use crate::wire::ndisc::{self, NdiscError};

/// Length of an ARP frame for IPv4 over Ethernet, without padding (a TAP has no minimum length).
const ARP_FRAME: usize = ndisc::ETHERNET_HEADER + 28;
/// Hardware type Ethernet, protocol type IPv4, address lengths (RFC 826).
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const BROADCAST_MAC: [u8; 6] = [0xff; 6];
/// Flags of a neighbour advertisement (RFC 4861 §4.4): router, solicited, override.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

impl From<NdiscError> for DropReason {
    fn from(error: NdiscError) -> Self {
        match error {
            NdiscError::Truncated => Self::Truncated,
            NdiscError::Malformed => Self::Malformed,
            NdiscError::Checksum => Self::Checksum,
        }
    }
}

/// The MAC of our address `own`: the endpoint's, or on slirp4netns's segment one that is made of the address (52:55 and
/// an IPv4 address, 52:56 and the end of an IPv6 address, as libslirp has them: guests and bridges may know them).
pub fn own_mac(config: &EndpointConfig, own: Option<IpAddr>) -> Mac {
    match own {
        Some(own) if config.slirp.is_some() => slirp_mac(own),
        _ => config.gateway_mac,
    }
}

fn slirp_mac(own: IpAddr) -> Mac {
    let (kind, [a, b, c, d]) = match own {
        IpAddr::V4(own) => (0x55, own.octets()),
        IpAddr::V6(own) => {
            let [.., a, b, c, d] = own.octets();
            (0x56, [a, b, c, d])
        }
    };
    Mac([0x52, kind, a, b, c, d])
}

/// Whom an ARP message tells of: its sender, whatever it wants. None for what is no ARP for IPv4 over Ethernet.
pub fn arp_sender(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let arp = frame.get(ndisc::ETHERNET_HEADER..ARP_FRAME)?;
    if arp[..6] != ARP_KIND || !matches!(arp[6..8], [0, 1 | 2]) {
        return None;
    }
    Some((Ipv4Addr::new(arp[14], arp[15], arp[16], arp[17]), Mac([arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]])))
}

/// Whom a neighbour discovery message tells of: a solicitation of its sender, an advertisement of its target.
pub fn ndp_sender(frame: &[u8]) -> Option<(Ipv6Addr, Mac)> {
    let message = ndisc::parse(frame).ok()??;
    let (address, option) = match message.kind {
        ndisc::NEIGHBOUR_SOLICITATION => (message.source, ndisc::SOURCE_LINK_LAYER),
        ndisc::NEIGHBOUR_ADVERTISEMENT => (message.target(), ndisc::TARGET_LINK_LAYER),
        _ => return None,
    };
    Some((address, Mac(message.link_layer(option).unwrap_or(message.ethernet_source))))
}

/// Writes a question for `wanted` from our address `own`; returns the frame's length.
pub fn ask(mac: Mac, own: IpAddr, wanted: IpAddr, out: &mut [u8]) -> Option<usize> {
    match (own, wanted) {
        (IpAddr::V4(own), IpAddr::V4(wanted)) => {
            let out = out.get_mut(..ARP_FRAME)?;
            out[..6].copy_from_slice(&BROADCAST_MAC);
            out[6..12].copy_from_slice(&mac.0);
            out[12..14].copy_from_slice(&[8, 6]);
            out[14..20].copy_from_slice(&ARP_KIND);
            out[20..22].copy_from_slice(&[0, 1]);
            out[22..28].copy_from_slice(&mac.0);
            out[28..32].copy_from_slice(&own.octets());
            out[32..38].fill(0);
            out[38..42].copy_from_slice(&wanted.octets());
            Some(ARP_FRAME)
        }
        (IpAddr::V6(own), IpAddr::V6(wanted)) => {
            let body = out.get_mut(ndisc::MESSAGE..ndisc::MESSAGE + 32)?;
            body.fill(0);
            body[0] = ndisc::NEIGHBOUR_SOLICITATION;
            body[8..24].copy_from_slice(&wanted.octets());
            body[24..26].copy_from_slice(&[ndisc::SOURCE_LINK_LAYER, 1]);
            body[26..32].copy_from_slice(&mac.0);
            ndisc::seal(out, 32, mac.0, BROADCAST_MAC, own, solicited_node(wanted))
        }
        _ => None,
    }
}

/// The responder of one endpoint.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// The MAC that all our addresses have.
    pub gateway_mac: Mac,
    /// The guest's MAC. Answers go to whoever asked; this is here for those who look the plan up.
    pub guest_mac: Mac,
    /// IPv4 plan; None: ARP is refused.
    pub v4: Option<PlanV4>,
    /// IPv6 plan; None: neighbour discovery is refused.
    pub v6: Option<PlanV6>,
    /// slirp4netns's segment.
    pub slirp: bool,
}

impl Neighbour {
    /// The responder for an endpoint.
    pub fn new(config: &EndpointConfig) -> Self {
        Self {
            gateway_mac: config.gateway_mac,
            guest_mac: config.guest_mac,
            v4: config.v4,
            v6: config.v6,
            slirp: config.slirp.is_some(),
        }
    }

    fn mac_of(&self, own: IpAddr) -> Mac {
        if self.slirp { slirp_mac(own) } else { self.gateway_mac }
    }

    /// True for the IPv4 addresses that we answer for.
    pub fn owns_v4(&self, address: Ipv4Addr) -> bool {
        self.v4.is_some_and(|p| address != p.guest && (address == p.gateway || address == p.dns))
    }

    /// True for the IPv6 addresses that we answer for.
    pub fn owns_v6(&self, address: Ipv6Addr) -> bool {
        self.v6.is_some_and(|p| address != p.guest && [p.gateway, p.gateway_link_local, p.dns].contains(&address))
    }

    /// Takes an Ethernet frame with ARP in it. Ok(Some): an answer of that length is in `out`. Ok(None): nothing to say.
    pub fn handle_arp(&self, frame: &[u8], out: &mut [u8]) -> Result<Option<usize>, DropReason> {
        if self.v4.is_none() {
            return Err(DropReason::FamilyOff);
        }
        let frame = frame.get(..ARP_FRAME).ok_or(DropReason::Truncated)?;
        let (ethernet, arp) = frame.split_at(ndisc::ETHERNET_HEADER);
        if ethernet[12..14] != [8, 6] {
            return Err(DropReason::EtherType);
        }
        if arp[..6] != ARP_KIND {
            return Err(DropReason::Malformed);
        }
        if !self.slirp && ethernet[..6] != BROADCAST_MAC && ethernet[..6] != self.gateway_mac.0 {
            return Err(DropReason::NotForUs);
        }
        match arp[6..8] {
            [0, 1] => {}
            // A reply: what it tells is not for the responder.
            [0, 2] => return Ok(None),
            _ => return Err(DropReason::Malformed),
        }
        let target = Ipv4Addr::new(arp[24], arp[25], arp[26], arp[27]);
        if !self.owns_v4(target) {
            return Ok(None);
        }
        let out = out.get_mut(..ARP_FRAME).ok_or(DropReason::TooBig)?;
        out[..6].copy_from_slice(&ethernet[6..12]);
        let own = self.mac_of(IpAddr::V4(target)).0;
        out[6..12].copy_from_slice(&own);
        out[12..14].copy_from_slice(&[8, 6]);
        out[14..20].copy_from_slice(&ARP_KIND);
        out[20..22].copy_from_slice(&[0, 2]);
        out[22..28].copy_from_slice(&own);
        out[28..32].copy_from_slice(&target.octets());
        out[32..42].copy_from_slice(&arp[8..18]);
        Ok(Some(ARP_FRAME))
    }

    /// Takes an Ethernet frame with ICMPv6 in it; anything but a neighbour solicitation is Ok(None) (router
    /// solicitations belong to [`super::ra`]). Ok(Some): an advertisement of that length is in `out`.
    pub fn handle_ndp(&self, frame: &[u8], out: &mut [u8]) -> Result<Option<usize>, DropReason> {
        if self.v6.is_none() {
            return Err(DropReason::FamilyOff);
        }
        let Some(message) = ndisc::parse(frame)? else { return Ok(None) };
        if message.kind != ndisc::NEIGHBOUR_SOLICITATION {
            return Ok(None);
        }
        let target = message.target();
        let asker = message.link_layer(ndisc::SOURCE_LINK_LAYER);
        // Duplicate address detection: only to the target's solicited-node group and without a link-layer address
        // (RFC 4861 §7.1.1).
        let probe = message.source.is_unspecified();
        if target.is_multicast()
            || (probe && (asker.is_some() || message.destination != solicited_node(target)))
            || (message.destination != target && message.destination != solicited_node(target))
        {
            return Err(DropReason::Malformed);
        }
        if !self.owns_v6(target) {
            return Ok(None);
        }
        let body = out.get_mut(ndisc::MESSAGE..ndisc::MESSAGE + 32).ok_or(DropReason::TooBig)?;
        body.fill(0);
        body[0] = ndisc::NEIGHBOUR_ADVERTISEMENT;
        // All our addresses are one node's, and that node is a router: an advertisement without the flag would make
        // the guest forget its default route (RFC 4861 §7.2.5).
        body[4] = ROUTER | OVERRIDE | if probe { 0 } else { SOLICITED };
        body[8..24].copy_from_slice(&target.octets());
        body[24..26].copy_from_slice(&[ndisc::TARGET_LINK_LAYER, 1]);
        let own = self.mac_of(IpAddr::V6(target)).0;
        body[26..32].copy_from_slice(&own);
        let destination = if probe { ndisc::ALL_NODES } else { message.source };
        let mac = asker.unwrap_or(message.ethernet_source);
        Ok(ndisc::seal(out, 32, own, mac, target, destination))
    }
}

/// The solicited-node multicast address of `target` (RFC 4291 §2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

#[cfg(test)]
mod tests;
