//! Finishing in software what a frame's vnet header leaves to hardware: sums, and cutting super-frames.
//!
//! A frame of one sandbox goes to another as it is, vnet header and all, where the other's TAP can do what it needs. Where
//! it cannot, [`complete`] writes the transport checksum, and [`cut`] makes packets of a super-frame as a network card
//! would: TCP by `gso_size` bytes of payload (sequence numbers go on, FIN and PSH only in the last, CWR only in the first:
//! RFC 3168, section 6.1.2), UDP datagram by datagram. The partial sum that the sender left holds the addresses, so
//! only the length in it is replaced; extension headers need not be understood.
//!
//! Nothing is allocated: packets are built in the caller's buffer, one after the other.

use super::csum;
use super::tcp_segment::{FIN, PSH, TCP_HDR_LEN};
use super::vnet::{Gso, IP_OFFSET, VNET_HDR_LEN, VnetHdr};

/// CWR flag (RFC 3168, section 6.1).
const CWR: u8 = 0x80;
/// Bytes of a UDP header.
const UDP_HDR_LEN: usize = 8;

/// Most packets that one super-frame is cut into. Linux's own have 128 datagrams at most (UDP_MAX_SEGMENTS, include/linux/udp.h) or
/// TCP segments of at least 48 bytes less options (TCP_MIN_SND_MSS, include/net/tcp.h): 1820 with timestamps. Of pieces of a
/// byte, one frame of a member would become 65 000 for another.
pub const MAX_PIECES: usize = 2048;
/// Least payload of each packet of a TCP super-frame: TCP_MIN_SND_MSS (48, include/net/tcp.h) less the options that Linux counts in it
/// (40). No kernel cuts finer, and a frame of 64 KiB in single bytes would be as many packets.
const LEAST_SEGMENT: u16 = 8;
/// Packets of a UDP super-frame: UDP_MAX_SEGMENTS (include/linux/udp.h).
const MAX_DATAGRAMS: usize = 128;

/// The headers are not those that the vnet header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the vnet header does not fit the frame")]
pub struct Mismatch;

/// Where the transport header and its checksum are in the frame.
fn places(frame: &[u8], hdr: &VnetHdr) -> Result<(usize, usize), Mismatch> {
    let at = VNET_HDR_LEN + usize::from(hdr.csum_start);
    let sum_at = at + usize::from(hdr.csum_offset);
    if !hdr.needs_csum || at < IP_OFFSET || sum_at + 2 > frame.len() {
        return Err(Mismatch);
    }
    Ok((at, sum_at))
}

/// Writes the transport checksum that `hdr` leaves open, and the vnet header that says so.
pub fn complete(frame: &mut [u8], hdr: &mut VnetHdr) -> Result<(), Mismatch> {
    let (at, sum_at) = places(frame, hdr)?;
    finish(frame, at, sum_at, hdr.csum_offset == 6);
    *hdr = VnetHdr::default();
    hdr.emit(frame);
    Ok(())
}

/// Sums from `at`; the field holds the pseudo-header's sum. Zero means "no checksum" in UDP (RFC 768).
fn finish(frame: &mut [u8], at: usize, sum_at: usize, udp: bool) {
    let sum = match csum::plain(&frame[at..]) {
        0 if udp => 0xffff,
        sum => sum,
    };
    frame[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Bytes of the largest IP packet that the super-frame becomes.
pub fn largest(frame: &[u8], hdr: &VnetHdr) -> Result<usize, Mismatch> {
    let (at, _) = places(frame, hdr)?;
    Ok(at + transport_header(frame, at, hdr)? + usize::from(hdr.gso_size) - IP_OFFSET)
}

fn transport_header(frame: &[u8], at: usize, hdr: &VnetHdr) -> Result<usize, Mismatch> {
    let len = match hdr.gso {
        Gso::Tcp4 | Gso::Tcp6 => usize::from(*frame.get(at + 12).ok_or(Mismatch)? >> 4) * 4,
        Gso::Udp => UDP_HDR_LEN,
        Gso::None | Gso::Unknown(_) => return Err(Mismatch),
    };
    let least = if hdr.gso == Gso::Udp { UDP_HDR_LEN } else { TCP_HDR_LEN };
    if len < least || at + len > frame.len() || hdr.gso_size == 0 {
        return Err(Mismatch);
    }
    let fine = match hdr.gso {
        Gso::Udp => (frame.len() - at - len).div_ceil(hdr.gso_size.into()) > MAX_DATAGRAMS,
        _ => hdr.gso_size < LEAST_SEGMENT,
    };
    if fine { Err(Mismatch) } else { Ok(len) }
}

/// Cuts a super-frame; each packet is built in `buf`, which must hold the largest of them, and lent to `each` as a frame.
/// `partial`: the link takes partial sums.
pub fn cut(
    frame: &[u8],
    hdr: &VnetHdr,
    partial: bool,
    buf: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(), Mismatch> {
    let (at, sum_at) = places(frame, hdr)?;
    let headers = at + transport_header(frame, at, hdr)?;
    let udp = hdr.gso == Gso::Udp;
    // Each packet has the headers, but the last may have less payload than the first: a field in there is not in each.
    if sum_at + 2 > headers {
        return Err(Mismatch);
    }
    let size = usize::from(hdr.gso_size);
    let v6 = frame[IP_OFFSET] >> 4 == 6;
    let ip_header = if v6 { 40 } else { usize::from(frame[IP_OFFSET] & 0x0f) * 4 };
    if IP_OFFSET + ip_header > at || ip_header < 20 || buf.len() < headers + size {
        return Err(Mismatch);
    }
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    // One's complement arithmetic: the length goes out of the pseudo-header's sum, and that of each packet comes in.
    let whole = u16::try_from(frame.len() - at).map_err(|_| Mismatch)?;
    let without = u32::from(word(sum_at)) + u32::from(!whole);
    let seq = if udp { 0 } else { u32::from_be_bytes([frame[at + 4], frame[at + 5], frame[at + 6], frame[at + 7]]) };
    let flags = if udp { 0 } else { frame[at + 13] };
    let ident = if v6 { 0 } else { word(IP_OFFSET + 4) };
    let payload = &frame[headers..];
    let count = payload.len().div_ceil(size).max(1);
    if count > MAX_PIECES {
        return Err(Mismatch);
    }
    for number in 0..count {
        let from = number * size;
        let chunk = &payload[from..payload.len().min(from + size)];
        let end = headers + chunk.len();
        let out = &mut buf[..end];
        out[..headers].copy_from_slice(&frame[..headers]);
        out[headers..].copy_from_slice(chunk);
        if v6 {
            let length = (end - IP_OFFSET - 40) as u16;
            out[IP_OFFSET + 4..IP_OFFSET + 6].copy_from_slice(&length.to_be_bytes());
        } else {
            let ip = &mut out[IP_OFFSET..IP_OFFSET + ip_header];
            ip[2..4].copy_from_slice(&((end - IP_OFFSET) as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&ident.wrapping_add(number as u16).to_be_bytes());
            ip[10..12].fill(0);
            let sum = csum::plain(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let length = (end - at) as u16;
        if udp {
            out[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
        } else {
            out[at + 4..at + 8].copy_from_slice(&seq.wrapping_add(from as u32).to_be_bytes());
            let last = number + 1 == count;
            let mut flags = flags;
            if !last {
                flags &= !(FIN | PSH);
            }
            if number > 0 {
                flags &= !CWR;
            }
            out[at + 13] = flags;
        }
        let mut sum = without + u32::from(length);
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        out[sum_at..sum_at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        let mut piece = VnetHdr::default();
        if partial {
            piece = VnetHdr { needs_csum: true, csum_start: hdr.csum_start, csum_offset: hdr.csum_offset, ..piece };
        } else {
            finish(out, at, sum_at, udp);
        }
        piece.emit(out);
        each(out);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    /// A super-frame of either family and protocol with its partial sum.
    fn frame(v6: bool, udp: bool, payload: &[u8], gso_size: u16, flags: u8) -> (Vec<u8>, VnetHdr) {
        let (src, dst): (IpAddr, IpAddr) = if v6 {
            ("fd00::2".parse().unwrap(), "fd00::3".parse().unwrap())
        } else {
            ([172, 18, 0, 2].into(), [172, 18, 0, 3].into())
        };
        let header = if udp { 8 } else { 32 };
        let len = header + payload.len();
        let mut out = vec![0; IP_OFFSET];
        out[22..24].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
        let protocol = if udp { 17 } else { 6 };
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = vec![0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, protocol, 0, 0];
                ip[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
                ip.extend(src.octets());
                ip.extend(dst.octets());
                let sum = csum::plain(&ip);
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
                out.extend(ip);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                out.extend([0x60, 0, 0, 0]);
                out.extend((len as u16).to_be_bytes());
                out.extend([protocol, 64]);
                out.extend(src.octets());
                out.extend(dst.octets());
            }
            _ => unreachable!(),
        }
        let at = out.len();
        let mut l4 = vec![0; header];
        l4[..4].copy_from_slice(&[0x12, 0x34, 0, 80]);
        if udp {
            l4[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        } else {
            l4[4..8].copy_from_slice(&0xffff_ff00_u32.to_be_bytes());
            l4[12] = 0x80;
            l4[13] = flags;
        }
        let offset = if udp { 6 } else { 16 };
        l4[offset..offset + 2].copy_from_slice(&csum::partial(src, dst, protocol, len).to_be_bytes());
        out.extend(l4);
        out.extend(payload);
        let hdr = VnetHdr {
            needs_csum: true,
            gso: match (udp, v6) {
                (true, _) => Gso::Udp,
                (false, true) => Gso::Tcp6,
                (false, false) => Gso::Tcp4,
            },
            gso_size,
            csum_start: (at - VNET_HDR_LEN) as u16,
            csum_offset: offset as u16,
            ..VnetHdr::default()
        };
        hdr.emit(&mut out);
        (out, hdr)
    }

    /// Source, destination, protocol, transport part of a finished packet.
    fn packet(frame: &[u8]) -> (IpAddr, IpAddr, u8, &[u8]) {
        let ip = &frame[IP_OFFSET..];
        if ip[0] >> 4 == 4 {
            assert!(csum::plain_ok(&ip[..20]));
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
            let addr = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
            (addr(12), addr(16), ip[9], &ip[20..])
        } else {
            assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), ip.len() - 40);
            let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
            (addr(8), addr(24), ip[6], &ip[40..])
        }
    }

    proptest! {
        /// Pieces carry the payload in order, each with good sums, and none above the size.
        #[test]
        fn pieces_are_the_payload(v6: bool, udp: bool, size in 10_u16..3000, len in 1_usize..20_000, partial: bool) {
            // No kernel makes more of one.
            let len = if udp { len.min(MAX_DATAGRAMS * usize::from(size)) } else { len };
            let payload: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
            let (whole, hdr) = frame(v6, udp, &payload, size, FIN | PSH | CWR | 0x10);
            let mut buf = vec![0; 4096];
            let mut got = Vec::new();
            let mut pieces = 0;
            let mut flags = Vec::new();
            cut(&whole, &hdr, partial, &mut buf, |piece| {
                let mut piece = piece.to_vec();
                let mut hdr = VnetHdr::parse(&piece).unwrap();
                assert_eq!((hdr.needs_csum, hdr.gso), (partial, Gso::None));
                if partial {
                    complete(&mut piece, &mut hdr).unwrap();
                }
                let (src, dst, protocol, l4) = packet(&piece);
                assert!(csum::verify(src, dst, protocol, l4), "checksum");
                let header = if udp { 8 } else { 32 };
                assert!(l4.len() <= header + usize::from(size));
                if udp {
                    assert_eq!(usize::from(u16::from_be_bytes([l4[4], l4[5]])), l4.len());
                } else {
                    let seq = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
                    assert_eq!(seq, 0xffff_ff00_u32.wrapping_add(got.len() as u32));
                    flags.push(l4[13]);
                }
                if !v6 {
                    assert_eq!(u16::from_be_bytes([piece[28], piece[29]]), 0xffff_u16.wrapping_add(pieces));
                }
                pieces += 1;
                got.extend_from_slice(&l4[header..]);
            }).unwrap();
            prop_assert_eq!(got, payload);
            if let [first, .., last] = &flags[..] {
                prop_assert_eq!((first & (FIN | PSH | CWR), last & (FIN | PSH | CWR)), (CWR, FIN | PSH));
            }
        }

        /// Wherever in the frame the header has the sum, nothing panics.
        #[test]
        fn hostile_offsets(payload in proptest::collection::vec(any::<u8>(), 0..300), at in 0..160_u16, off in 0..300_u16, size in 1..150_u16, udp: bool, v6: bool) {
            let (frame, mut hdr) = frame(v6, udp, &payload, size, 0);
            (hdr.csum_start, hdr.csum_offset) = (if at < 100 { hdr.csum_start } else { at - 100 }, off);
            let mut buf = vec![0; 66_000];
            let _ = cut(&frame, &hdr, false, &mut buf, |_| ());
        }

        /// Whatever the header says of whatever bytes, nothing panics.
        #[test]
        fn hostile_bytes(bytes in proptest::collection::vec(any::<u8>(), IP_OFFSET..200), at: u16, off: u16, size: u16, kind in 0..5) {
            let gso = [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp, Gso::Unknown(9)][kind as usize];
            let mut hdr = VnetHdr {
                needs_csum: true, gso, gso_size: size, csum_start: at % 200, csum_offset: off % 40, ..VnetHdr::default()
            };
            let mut buf = vec![0; 66_000];
            let mut frame = bytes;
            let _ = largest(&frame, &hdr);
            let _ = cut(&frame, &hdr, false, &mut buf, |_| ());
            let _ = complete(&mut frame, &mut hdr);
        }
    }

    /// A guest says where the sum is: in the payload it would be past the end of the last, shorter packet.
    #[test]
    fn a_sum_in_the_payload_is_refused() {
        for udp in [false, true] {
            let (frame, mut hdr) = frame(false, udp, &[7; 130], 100, 0);
            hdr.csum_offset = 100;
            let mut buf = vec![0; 66_000];
            assert_eq!(cut(&frame, &hdr, false, &mut buf, |_| ()), Err(Mismatch), "udp: {udp}");
        }
    }

    /// One frame of a member is not a flood for another.
    #[test]
    fn a_frame_of_very_many_pieces_is_refused() {
        for (len, cuts) in [(MAX_PIECES * 8, true), (MAX_PIECES * 8 + 1, false), (60_000, false)] {
            let (frame, hdr) = frame(true, false, &vec![7; len], 8, 0);
            let (mut buf, mut pieces) = (vec![0; 66_000], 0);
            let result = cut(&frame, &hdr, false, &mut buf, |_| pieces += 1);
            assert_eq!((result.is_ok(), pieces), (cuts, if cuts { MAX_PIECES } else { 0 }), "{len} bytes");
        }
    }
}
