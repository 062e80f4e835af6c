//! Splitting one IP datagram into fragments that fit an MTU.
//!
//! Used towards the guest only, for UDP and ICMP that came whole from a host socket (TCP never needs it: the vnet header
//! or the MSS keep it within the MTU). IPv4 as in RFC 791 §3.2 with the options rule (only options whose copied flag is
//! set are repeated), IPv6 as in RFC 8200 §4.5 with a fragment header after the per-fragment headers.
//!
//! [`Fragments`] is a cursor that writes one fragment at a time into the caller's buffer; [`split`] drives it. Transport
//! checksums must be complete before, since no fragment can carry a partial one (a virtio-net header has no word for
//! it). An IPv4 packet that already is a fragment is split further; an IPv6 one is not (only its source may do it).

use smoltcp::wire::checksum;

use super::chain::{self, FRAGMENT, FRAGMENT_HEADER, IPV6_HEADER};

const IPV4_HEADER: usize = 20;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
/// Fragment offsets count units of eight bytes.
const UNIT: usize = 8;
/// Longest IPv4 header: 15 words.
const MAX_IPV4_HEADER: usize = 60;

/// A cursor over the fragments of one datagram. See the module for its rules.
#[derive(Debug)]
pub struct Fragments<'a> {
    packet: &'a [u8],
    mtu: usize,
    ident: u32,
    /// Bytes that precede the data in the original (IPv4: header; IPv6: per-fragment headers).
    header: usize,
    /// Bytes of data already emitted; None once the last fragment is out.
    next: Option<usize>,
    family: Family,
}

#[derive(Debug)]
enum Family {
    /// It fits: emitted once, as it is.
    Whole,
    V4 {
        /// Header of every fragment but the first: fixed part and copied options.
        later: [u8; MAX_IPV4_HEADER],
        later_len: usize,
    },
    V6 {
        /// Which byte of the original names what follows the per-fragment headers.
        named_by: usize,
    },
}

impl<'a> Fragments<'a> {
    /// A cursor over `packet`, one whole IP packet (bytes after its IP length are ignored), for links that carry IP
    /// packets of up to `mtu` bytes. `ident` identifies the datagram among those with equal addresses; IPv4 takes its
    /// low 16 bits.
    ///
    /// None where the packet is malformed, where it does not fit and forbids fragmenting (IPv4's DF, an IPv6 fragment),
    /// or where not even eight bytes of data fit beside the headers.
    pub fn new(packet: &'a [u8], mtu: usize, ident: u32) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::new_v4(packet, mtu, ident),
            6 => Self::new_v6(packet, mtu, ident),
            _ => None,
        }
    }

    fn new_v4(packet: &'a [u8], mtu: usize, ident: u32) -> Option<Self> {
        if packet.len() < IPV4_HEADER {
            return None;
        }
        let header = usize::from(packet[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        if header < IPV4_HEADER || total < header || packet.len() < total {
            return None;
        }
        let packet = &packet[..total];
        if total <= mtu {
            return Some(Self { packet, mtu, ident, header, next: Some(0), family: Family::Whole });
        }
        let flags = u16::from_be_bytes([packet[6], packet[7]]);
        if flags & DONT_FRAGMENT != 0 || mtu < header + UNIT {
            return None;
        }
        // A fragment may not reach past 65535 bytes of datagram (RFC 791): the split of a sound one never does.
        if usize::from(flags & 0x1fff) * UNIT + (total - header) > 0xffff {
            return None;
        }
        let mut later = [0; MAX_IPV4_HEADER];
        later[..IPV4_HEADER].copy_from_slice(&packet[..IPV4_HEADER]);
        let options = copied_options(&packet[IPV4_HEADER..header], &mut later[IPV4_HEADER..])?;
        let later_len = IPV4_HEADER + options;
        later[0] = 0x40 | (later_len / 4) as u8;
        Some(Self { packet, mtu, ident, header, next: Some(0), family: Family::V4 { later, later_len } })
    }

    fn new_v6(packet: &'a [u8], mtu: usize, ident: u32) -> Option<Self> {
        if packet.len() < IPV6_HEADER {
            return None;
        }
        let total = IPV6_HEADER + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
        let packet = packet.get(..total)?;
        let chain = chain::walk(packet)?;
        let header = chain.per_fragment;
        if total <= mtu {
            return Some(Self { packet, mtu, ident, header, next: Some(0), family: Family::Whole });
        }
        if chain.fragment.is_some() || mtu < header + FRAGMENT_HEADER + UNIT {
            return None;
        }
        let family = Family::V6 { named_by: chain.per_fragment_named_by };
        Some(Self { packet, mtu, ident, header, next: Some(0), family })
    }

    /// Writes the next fragment, a whole IP packet, to the start of `out` and returns its length; None after the last,
    /// or for good where `out` is too short (the MTU is always enough).
    pub fn next_into(&mut self, out: &mut [u8]) -> Option<usize> {
        let sent = self.next.take()?;
        let length = match &self.family {
            Family::Whole => {
                out.get_mut(..self.packet.len())?.copy_from_slice(self.packet);
                return Some(self.packet.len());
            }
            Family::V4 { later, later_len } => {
                let header = if sent == 0 { &self.packet[..self.header] } else { &later[..*later_len] };
                let data = &self.packet[self.header + sent..];
                let (take, last) = portion(data.len(), self.mtu - header.len());
                let length = header.len() + take;
                let out = out.get_mut(..length)?;
                out[..header.len()].copy_from_slice(header);
                out[header.len()..].copy_from_slice(&data[..take]);
                let flags = u16::from_be_bytes([self.packet[6], self.packet[7]]);
                let more = if last { flags & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
                let offset = (flags & 0x1fff) + (sent / UNIT) as u16;
                out[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                // A packet that already is a fragment belongs to a datagram that has its number.
                if flags & (MORE_FRAGMENTS | 0x1fff) == 0 {
                    out[4..6].copy_from_slice(&(self.ident as u16).to_be_bytes());
                }
                out[6..8].copy_from_slice(&(more | offset).to_be_bytes());
                out[10..12].fill(0);
                let sum = !checksum::data(&out[..header.len()]);
                out[10..12].copy_from_slice(&sum.to_be_bytes());
                self.next = (!last).then_some(sent + take);
                length
            }
            Family::V6 { named_by } => {
                let data = &self.packet[self.header + sent..];
                let before = self.header + FRAGMENT_HEADER;
                let (take, last) = portion(data.len(), self.mtu - before);
                let length = before + take;
                let out = out.get_mut(..length)?;
                out[..self.header].copy_from_slice(&self.packet[..self.header]);
                out[4..6].copy_from_slice(&((length - IPV6_HEADER) as u16).to_be_bytes());
                out[*named_by] = FRAGMENT;
                out[self.header] = self.packet[*named_by];
                out[self.header + 1] = 0;
                let offset_more = sent as u16 | u16::from(!last);
                out[self.header + 2..self.header + 4].copy_from_slice(&offset_more.to_be_bytes());
                out[self.header + 4..before].copy_from_slice(&self.ident.to_be_bytes());
                out[before..].copy_from_slice(&data[..take]);
                self.next = (!last).then_some(sent + take);
                length
            }
        };
        Some(length)
    }
}

/// How much of `left` bytes goes into a fragment with `room`, and whether that is the rest.
fn portion(left: usize, room: usize) -> (usize, bool) {
    if left <= room { (left, true) } else { (room / UNIT * UNIT, false) }
}

/// Writes those of `options` that every fragment carries (copied flag, RFC 791 §3.1) to `out`, padded to whole words.
/// None where an option is longer than the header.
fn copied_options(mut options: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut written = 0;
    while let Some(&kind) = options.first() {
        let length = match kind {
            0 => break,
            1 => 1,
            _ => usize::from(*options.get(1)?),
        };
        if length == 0 || (kind > 1 && length < 2) || options.len() < length {
            return None;
        }
        if kind & 0x80 != 0 {
            out.get_mut(written..written + length)?.copy_from_slice(&options[..length]);
            written += length;
        }
        options = &options[length..];
    }
    // What is behind is zero, the end-of-list option.
    Some(written.next_multiple_of(4))
}

/// Splits `packet` for links of `mtu` bytes and calls `emit` with each fragment in order, written to the start of
/// `scratch`, which must hold `mtu` bytes. A packet that fits is emitted once and unchanged. Returns how many were
/// emitted: 0 where it cannot be split (see [`Fragments::new`]) or `scratch` is too short.
pub fn split(packet: &[u8], mtu: usize, ident: u32, emit: &mut dyn FnMut(&mut [u8]), scratch: &mut [u8]) -> usize {
    let Some(mut fragments) = Fragments::new(packet, mtu, ident) else { return 0 };
    if scratch.len() < mtu.min(packet.len() + FRAGMENT_HEADER) {
        return 0;
    }
    let mut count = 0;
    while let Some(length) = fragments.next_into(scratch) {
        emit(&mut scratch[..length]);
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests;
