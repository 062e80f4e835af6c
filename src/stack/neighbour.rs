//! ARP and neighbour discovery for one endpoint: who has the gateway's and the DNS address? We have.
//!
//! Answers come for exactly the addresses that are ours: gateway and DNS in IPv4, gateway (global and link-local) and
//! DNS in IPv6. Never for the guest's own, since an answer to its probe would be a duplicate address (RFC 5227 §2.1.1,
//! RFC 4862 §5.4), and never for the rest of the subnet, so that the guest's kernel itself says "host unreachable"
//! there. Nothing is learnt: the guest's MAC comes with the frame that asks, and whether that frame may have it is
//! checked before it gets here. No state, no timers; answers are written into the caller's buffer.

use std::net::{Ipv4Addr, Ipv6Addr};

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
}

impl Neighbour {
    /// The responder for an endpoint.
    pub fn new(config: &EndpointConfig) -> Self {
        Self { gateway_mac: config.gateway_mac, guest_mac: config.guest_mac, v4: config.v4, v6: config.v6 }
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
        if ethernet[..6] != BROADCAST_MAC && ethernet[..6] != self.gateway_mac.0 {
            return Err(DropReason::NotForUs);
        }
        match arp[6..8] {
            [0, 1] => {}
            // A reply: we never ask.
            [0, 2] => return Ok(None),
            _ => return Err(DropReason::Malformed),
        }
        let target = Ipv4Addr::new(arp[24], arp[25], arp[26], arp[27]);
        if !self.owns_v4(target) {
            return Ok(None);
        }
        let out = out.get_mut(..ARP_FRAME).ok_or(DropReason::TooBig)?;
        out[..6].copy_from_slice(&ethernet[6..12]);
        out[6..12].copy_from_slice(&self.gateway_mac.0);
        out[12..14].copy_from_slice(&[8, 6]);
        out[14..20].copy_from_slice(&ARP_KIND);
        out[20..22].copy_from_slice(&[0, 2]);
        out[22..28].copy_from_slice(&self.gateway_mac.0);
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
        body[26..32].copy_from_slice(&self.gateway_mac.0);
        let destination = if probe { ndisc::ALL_NODES } else { message.source };
        let mac = asker.unwrap_or(message.ethernet_source);
        Ok(ndisc::seal(out, 32, self.gateway_mac.0, mac, target, destination))
    }
}

/// The solicited-node multicast address of `target` (RFC 4291 §2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

#[cfg(test)]
mod tests;
