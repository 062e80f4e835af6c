//! Neighbour discovery messages in Ethernet frames: the checks that RFC 4861 wants before a byte is believed, and the
//! frame around an answer.
//!
//! The rules that all five message types share (§6.1, §7.1: hop limit 255 so that no router passed it on, code 0, a good
//! checksum, options that fit) are in [`parse`]; what differs by type is the caller's. Frames with extension headers
//! before the message are not taken: no kernel sends them, and RFC 6980 forbids the one that would matter.

use std::net::Ipv6Addr;

use smoltcp::wire::{IpProtocol, checksum};

/// Length of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Where the ICMPv6 message starts in a frame.
pub const MESSAGE: usize = ETHERNET_HEADER + IPV6_HEADER;
/// ICMPv6 type of a router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6 type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Option: source link-layer address.
pub const SOURCE_LINK_LAYER: u8 = 1;
/// Option: target link-layer address.
pub const TARGET_LINK_LAYER: u8 = 2;
/// All nodes of the link, ff02::1.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const IPV6_HEADER: usize = 40;
const HOP_LIMIT: u8 = 255;
const PROTOCOL_ICMPV6: u8 = 58;

/// Why a frame is no neighbour discovery message that may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NdiscError {
    /// The frame ends inside its headers.
    #[error("neighbour discovery message is shorter than its headers say")]
    Truncated,
    /// A field has a value that RFC 4861 forbids.
    #[error("neighbour discovery message breaks a rule of RFC 4861 (hop limit, code, length, option or address)")]
    Malformed,
    /// The ICMPv6 checksum is wrong.
    #[error("neighbour discovery message has a bad checksum")]
    Checksum,
}

/// A checked neighbour discovery message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Source MAC of the frame.
    pub ethernet_source: [u8; 6],
    /// IPv6 source.
    pub source: Ipv6Addr,
    /// IPv6 destination.
    pub destination: Ipv6Addr,
    /// ICMPv6 type, 133 to 137.
    pub kind: u8,
    /// The ICMPv6 message from its type on; at least as long as its type's fixed part.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// The 16 bytes at 8: the target of a solicitation or advertisement. Unspecified for router messages.
    pub fn target(&self) -> Ipv6Addr {
        match self.body.get(8..24).and_then(|b| <[u8; 16]>::try_from(b).ok()) {
            Some(octets) if self.kind >= NEIGHBOUR_SOLICITATION => octets.into(),
            _ => Ipv6Addr::UNSPECIFIED,
        }
    }

    /// The options: type and whole option (type and length included).
    pub fn options(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let mut rest = self.body.get(fixed_length(self.kind).unwrap_or(usize::MAX)..).unwrap_or(&[]);
        std::iter::from_fn(move || {
            let length = 8 * usize::from(*rest.get(1)?);
            if length == 0 {
                return None;
            }
            let option = rest.get(..length)?;
            rest = &rest[length..];
            Some((option[0], option))
        })
    }

    /// The MAC address in an option of that type.
    pub fn link_layer(&self, option: u8) -> Option<[u8; 6]> {
        self.options().find(|&(kind, _)| kind == option).and_then(|(_, bytes)| bytes.get(2..8)?.try_into().ok())
    }
}

/// Length of a message before its options; None for what is no neighbour discovery.
fn fixed_length(kind: u8) -> Option<usize> {
    match kind {
        ROUTER_SOLICITATION => Some(8),
        ROUTER_ADVERTISEMENT => Some(16),
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => Some(24),
        137 => Some(40),
        _ => None,
    }
}

/// Checks an Ethernet frame that carries ICMPv6. Ok(None): it does not, or it is no neighbour discovery.
pub fn parse(frame: &[u8]) -> Result<Option<Message<'_>>, NdiscError> {
    if frame.len() < MESSAGE {
        return Err(NdiscError::Truncated);
    }
    let (ethernet, packet) = frame.split_at(ETHERNET_HEADER);
    if ethernet[12..14] != [0x86, 0xdd] || packet[6] != PROTOCOL_ICMPV6 {
        return Ok(None);
    }
    if packet[0] >> 4 != 6 {
        return Err(NdiscError::Malformed);
    }
    let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let body = packet.get(IPV6_HEADER..IPV6_HEADER + length).ok_or(NdiscError::Truncated)?;
    let kind = *body.first().ok_or(NdiscError::Truncated)?;
    let Some(fixed) = fixed_length(kind) else { return Ok(None) };
    if body.len() < fixed {
        return Err(NdiscError::Truncated);
    }
    let source = address(packet, 8).ok_or(NdiscError::Truncated)?;
    let destination = address(packet, 24).ok_or(NdiscError::Truncated)?;
    let pseudo = checksum::pseudo_header_v6(&source, &destination, IpProtocol::Icmpv6, length as u32);
    if checksum::combine(&[pseudo, checksum::data(body)]) != 0xffff {
        return Err(NdiscError::Checksum);
    }
    if packet[7] != HOP_LIMIT || body[1] != 0 || source.is_multicast() {
        return Err(NdiscError::Malformed);
    }
    let mut ethernet_source = [0; 6];
    ethernet_source.copy_from_slice(&ethernet[6..12]);
    let message = Message { ethernet_source, source, destination, kind, body };
    // Every option has a length, and together they end where the message ends.
    let options: usize = message.options().map(|(_, bytes)| bytes.len()).sum();
    if fixed + options != body.len() {
        return Err(NdiscError::Malformed);
    }
    Ok(Some(message))
}

fn address(packet: &[u8], at: usize) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok().map(Ipv6Addr::from)
}

/// Writes the Ethernet and IPv6 headers around the message of `length` bytes that stands at [`MESSAGE`] in `out`, and
/// its checksum. A multicast destination gets its multicast MAC (RFC 2464 §7) instead of `ethernet_destination`.
/// Returns the frame's length; None where `out` is too short.
pub fn seal(
    out: &mut [u8],
    length: usize,
    ethernet_source: [u8; 6],
    ethernet_destination: [u8; 6],
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> Option<usize> {
    let frame = out.get_mut(..MESSAGE + length)?;
    let (headers, message) = frame.split_at_mut(MESSAGE);
    if destination.is_multicast() {
        headers[..2].copy_from_slice(&[0x33, 0x33]);
        headers[2..6].copy_from_slice(&destination.octets()[12..]);
    } else {
        headers[..6].copy_from_slice(&ethernet_destination);
    }
    headers[6..12].copy_from_slice(&ethernet_source);
    headers[12..18].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
    headers[18..20].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
    headers[20] = PROTOCOL_ICMPV6;
    headers[21] = HOP_LIMIT;
    headers[22..38].copy_from_slice(&source.octets());
    headers[38..54].copy_from_slice(&destination.octets());
    message.get_mut(2..4)?.fill(0);
    let pseudo = checksum::pseudo_header_v6(&source, &destination, IpProtocol::Icmpv6, length as u32);
    let sum = !checksum::combine(&[pseudo, checksum::data(message)]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(frame.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x64);
    const B: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut out = vec![0; MESSAGE + message.len()];
        out[MESSAGE..].copy_from_slice(message);
        assert_eq!(seal(&mut out, message.len(), [2; 6], [4; 6], A, B), Some(MESSAGE + message.len()));
        out
    }

    fn solicitation(options: &[u8]) -> Vec<u8> {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(B.octets());
        message.extend(options);
        frame(&message)
    }

    #[test]
    fn what_is_sealed_parses() {
        let bytes = solicitation(&[1, 1, 2, 2, 2, 2, 2, 2]);
        let message = parse(&bytes).expect("valid").expect("neighbour discovery");
        assert_eq!((message.kind, message.source, message.destination, message.target()), (135, A, B, B));
        assert_eq!(message.ethernet_source, [2; 6]);
        assert_eq!(message.link_layer(SOURCE_LINK_LAYER), Some([2; 6]));
        assert_eq!(message.link_layer(TARGET_LINK_LAYER), None);
        assert_eq!(bytes[..6], [4; 6]);
    }

    #[test]
    fn multicast_takes_its_own_mac() {
        let mut out = [0; MESSAGE + 8];
        out[MESSAGE] = 133;
        seal(&mut out, 8, [2; 6], [4; 6], A, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x64)).expect("fits");
        assert_eq!(out[..6], [0x33, 0x33, 0xff, 0, 0, 0x64]);
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let good = solicitation(&[]);
        for at in MESSAGE..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            match parse(&bad) {
                Err(_) => {}
                // The type decides whether it is ours at all.
                Ok(None) => assert_eq!(at, MESSAGE),
                Ok(Some(_)) => panic!("believed with byte {at} changed"),
            }
        }
    }

    #[test]
    fn the_shared_rules() {
        let mut bad = solicitation(&[]);
        bad[21] = 254;
        assert_eq!(parse(&bad).err(), Some(NdiscError::Malformed), "hop limit");
        let mut message = vec![135, 1, 0, 0, 0, 0, 0, 0];
        message.extend(B.octets());
        assert_eq!(parse(&frame(&message)).err(), Some(NdiscError::Malformed), "code");
        assert_eq!(parse(&frame(&message[..23])).err(), Some(NdiscError::Truncated), "short");
        for options in [&[1u8, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 0, 0, 0, 0, 0, 0], &[1], &[1, 1, 0]] {
            assert_eq!(parse(&solicitation(options)).err(), Some(NdiscError::Malformed), "options {options:?}");
        }
        assert!(parse(&frame(&[128, 0, 0, 0, 0, 1, 0, 1])).expect("valid").is_none(), "echo is not ours");
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 130u8..140, length in 0u16..160) {
            let mut bytes = bytes;
            if bytes.len() > MESSAGE {
                bytes[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                bytes[18..20].copy_from_slice(&length.to_be_bytes());
                bytes[20..22].copy_from_slice(&[58, 255]);
                bytes[MESSAGE..].iter_mut().skip(1).take(1).for_each(|b| *b = 0);
                bytes[MESSAGE] = kind;
                // A right checksum, so that the rules behind it are reached.
                let (source, destination) = (A, B);
                let n = bytes.len() - MESSAGE;
                if n >= 4 {
                    seal(&mut bytes, n, [2; 6], [4; 6], source, destination);
                }
            }
            if let Ok(Some(message)) = parse(&bytes) {
                let _ = (message.target(), message.options().count(), message.link_layer(1));
            }
        }
    }
}
