//! What the switch itself says on the segment: general queries for multicast groups, and where a newcomer is.
//!
//! Each function writes a whole frame, vnet header included, into the caller's buffer and returns its length.

use std::net::{Ipv4Addr, Ipv6Addr};

use smoltcp::time::Duration;

use super::groups::QUERY_INTERVAL;
use crate::network::config::Mac;
use crate::wire::csum;
use crate::wire::ndisc;
use crate::wire::vnet::{IP_OFFSET, VNET_HDR_LEN, VnetHdr};

/// Robustness 2 (RFC 3376, section 8.1).
const QRV: u8 = 2;

/// A general query of IGMPv3 (RFC 3376, section 4.1), with the router alert option that it must have (section 4).
pub fn igmp_query(own: Mac, from: Ipv4Addr, response: Duration, out: &mut [u8]) -> usize {
    let len = IP_OFFSET + 24 + 12;
    let frame = &mut out[..len];
    frame.fill(0);
    ethernet(frame, [0x01, 0, 0x5e, 0, 0, 1], own, [8, 0]);
    let ip = &mut frame[IP_OFFSET..];
    ip[..10].copy_from_slice(&[0x46, 0xc0, 0, 36, 0, 0, 0, 0, 1, 2]);
    ip[12..16].copy_from_slice(&from.octets());
    ip[16..20].copy_from_slice(&[224, 0, 0, 1]);
    ip[20..24].copy_from_slice(&[0x94, 4, 0, 0]);
    let sum = csum::plain(&ip[..24]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let igmp = &mut ip[24..];
    igmp[0] = 0x11;
    // Tenths of a second; all of ours are below 12.8, where the code is the number.
    igmp[1] = (response.total_millis() / 100) as u8;
    igmp[8] = QRV;
    igmp[9] = QUERY_INTERVAL.secs() as u8;
    let sum = csum::plain(igmp);
    igmp[2..4].copy_from_slice(&sum.to_be_bytes());
    len
}

/// A general query of MLDv2 (RFC 3810, section 5.1), from the link-local address and with router alert.
pub fn mld_query(own: Mac, from: Ipv6Addr, response: Duration, out: &mut [u8]) -> usize {
    let len = IP_OFFSET + 40 + 8 + 28;
    let frame = &mut out[..len];
    frame.fill(0);
    ethernet(frame, [0x33, 0x33, 0, 0, 0, 1], own, [0x86, 0xdd]);
    let ip = &mut frame[IP_OFFSET..];
    ip[0] = 0x60;
    ip[5] = 36;
    // Hop-by-hop options, hop limit 1.
    ip[7] = 1;
    ip[8..24].copy_from_slice(&from.octets());
    ip[24..40].copy_from_slice(&ndisc::ALL_NODES.octets());
    // ICMPv6 follows; router alert for MLD (RFC 2711), and two bytes of padding.
    ip[40..48].copy_from_slice(&[58, 0, 5, 2, 0, 0, 1, 0]);
    let mld = &mut ip[48..];
    mld[0] = 130;
    mld[4..6].copy_from_slice(&(response.total_millis() as u16).to_be_bytes());
    mld[24] = QRV;
    mld[25] = QUERY_INTERVAL.secs() as u8;
    let sum = csum::full(from.into(), ndisc::ALL_NODES.into(), 58, mld);
    mld[2..4].copy_from_slice(&sum.to_be_bytes());
    len
}

/// A gratuitous ARP request (RFC 5227, section 3): `address` is at `mac`, whatever was known of it.
pub fn arp_announcement(mac: Mac, address: Ipv4Addr, out: &mut [u8]) -> usize {
    let len = VNET_HDR_LEN + 42;
    let frame = &mut out[..len];
    frame.fill(0);
    ethernet(frame, [0xff; 6], mac, [8, 6]);
    let arp = &mut frame[IP_OFFSET..];
    arp[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    arp[8..14].copy_from_slice(&mac.0);
    arp[14..18].copy_from_slice(&address.octets());
    arp[24..28].copy_from_slice(&address.octets());
    len
}

/// An unsolicited neighbour advertisement that overrides (RFC 4861, section 7.2.6); the same.
pub fn ndp_announcement(mac: Mac, address: Ipv6Addr, out: &mut [u8]) -> Option<usize> {
    VnetHdr::default().emit(out);
    let frame = out.get_mut(VNET_HDR_LEN..)?;
    let body = frame.get_mut(ndisc::MESSAGE..ndisc::MESSAGE + 32)?;
    body.fill(0);
    body[0] = ndisc::NEIGHBOUR_ADVERTISEMENT;
    // Override.
    body[4] = 0x20;
    body[8..24].copy_from_slice(&address.octets());
    body[24..26].copy_from_slice(&[ndisc::TARGET_LINK_LAYER, 1]);
    body[26..32].copy_from_slice(&mac.0);
    ndisc::seal(frame, 32, mac.0, [0; 6], address, ndisc::ALL_NODES).map(|len| VNET_HDR_LEN + len)
}

fn ethernet(frame: &mut [u8], to: [u8; 6], from: Mac, kind: [u8; 2]) {
    let eth = &mut frame[VNET_HDR_LEN..IP_OFFSET];
    eth[..6].copy_from_slice(&to);
    eth[6..12].copy_from_slice(&from.0);
    eth[12..].copy_from_slice(&kind);
}
