//! The few TCP header fields that the stack reads and rewrites in place (RFC 9293, section 3.1).
//!
//! smoltcp does the protocol; what passes is adjusted here: sequence numbers by a per-flow offset (RFC 6528 needs
//! numbers that grow per 4-tuple), the guest's MSS (so that smoltcp may build super-frames). Checksums are not touched:
//! towards smoltcp they are not looked at, towards the guest they are written last.

use std::ops::Range;

/// Bytes of a TCP header without options.
pub const TCP_HDR_LEN: usize = 20;
/// Offset of the checksum in the header.
pub const CSUM_OFFSET: usize = 16;

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// PSH flag.
pub const PSH: u8 = 0x08;
/// ACK flag.
pub const ACK: u8 = 0x10;

/// A checked view of one segment: the header and all options lie within the slice.
pub struct Segment<'a> {
    bytes: &'a mut [u8],
}

impl<'a> Segment<'a> {
    /// Wraps a whole TCP segment; `None` if the header or its options do not fit.
    pub fn new(bytes: &'a mut [u8]) -> Option<Self> {
        let header_len = usize::from(*bytes.get(12)? >> 4) * 4;
        (header_len >= TCP_HDR_LEN && bytes.len() >= header_len).then_some(Self { bytes })
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    fn set_word(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// Source port.
    pub fn src_port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }

    /// Sequence number.
    pub fn seq(&self) -> u32 {
        self.word(4)
    }

    /// Sets the sequence number.
    pub fn set_seq(&mut self, seq: u32) {
        self.set_word(4, seq);
    }

    /// Acknowledgement number (meaningful with [`ACK`]).
    pub fn ack(&self) -> u32 {
        self.word(8)
    }

    /// Sets the acknowledgement number.
    pub fn set_ack(&mut self, ack: u32) {
        self.set_word(8, ack);
    }

    /// Flag bits.
    pub fn flags(&self) -> u8 {
        self.bytes[13]
    }

    /// Whether all of `flags` are set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags() & flags == flags
    }

    /// Header length with options.
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes[12] >> 4) * 4
    }

    /// Payload length.
    pub fn payload_len(&self) -> usize {
        self.bytes.len() - self.header_len()
    }

    /// Sequence space that the segment takes (payload, SYN and FIN).
    pub fn sequence_len(&self) -> u32 {
        self.payload_len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// Sets the checksum field.
    pub fn set_checksum(&mut self, sum: u16) {
        self.bytes[CSUM_OFFSET..CSUM_OFFSET + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// The whole segment.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Window field, as it is (not scaled).
    pub fn window(&self) -> u16 {
        u16::from_be_bytes([self.bytes[14], self.bytes[15]])
    }

    /// Sets the window field.
    pub fn set_window(&mut self, window: u16) {
        self.bytes[14..16].copy_from_slice(&window.to_be_bytes());
    }

    /// Where the value of an option of this kind and whole length is. `None` where it is absent or the list is broken.
    fn option(&self, kind: u8, whole: usize) -> Option<Range<usize>> {
        let end = self.header_len();
        let mut at = TCP_HDR_LEN;
        while at < end {
            match self.bytes[at] {
                0 => return None,
                1 => at += 1,
                found => {
                    let len = usize::from(*self.bytes[..end].get(at + 1)?);
                    if len < 2 || at + len > end {
                        return None;
                    }
                    if found == kind && len == whole {
                        return Some(at + 2..at + len);
                    }
                    at += len;
                }
            }
        }
        None
    }

    /// Reads the MSS option and, if `replace` is given, overwrites it. `None` where the option is absent or the option
    /// list is broken.
    pub fn mss(&mut self, replace: Option<u16>) -> Option<u16> {
        let at = self.option(2, 4)?;
        let mss = u16::from_be_bytes([self.bytes[at.start], self.bytes[at.start + 1]]);
        if let Some(new) = replace {
            self.bytes[at].copy_from_slice(&new.to_be_bytes());
        }
        Some(mss)
    }

    /// Reads the window scale option (RFC 7323, section 2.2) and, if `replace` is given, overwrites it.
    pub fn window_scale(&mut self, replace: Option<u8>) -> Option<u8> {
        let at = self.option(3, 3)?.start;
        let scale = self.bytes[at];
        if let Some(new) = replace {
            self.bytes[at] = new;
        }
        Some(scale)
    }

    /// Whether selective acknowledgements are permitted (RFC 2018, section 2).
    pub fn sack_permitted(&self) -> bool {
        self.option(4, 2).is_some()
    }
}

/// Longest header that [`emit_syn`] writes.
pub const SYN_HDR_LEN: usize = TCP_HDR_LEN + 12;

/// Writes a SYN with the options that were negotiated, without checksum; returns its length.
pub fn emit_syn(
    out: &mut [u8],
    ports: (u16, u16),
    seq: u32,
    window: u16,
    mss: u16,
    scale: Option<u8>,
    sack: bool,
) -> usize {
    emit_bare(out, ports, seq, 0, SYN, window);
    let mss = mss.to_be_bytes();
    // Padded by no-operations to whole words.
    let scale = scale.map_or([1; 4], |scale| [1, 3, 3, scale]);
    let sack = if sack { [1, 1, 4, 2] } else { [1; 4] };
    for (at, option) in [[2, 4, mss[0], mss[1]], scale, sack].into_iter().enumerate() {
        let at = TCP_HDR_LEN + 4 * at;
        out[at..at + 4].copy_from_slice(&option);
    }
    out[12] = ((SYN_HDR_LEN / 4) as u8) << 4;
    SYN_HDR_LEN
}

/// Writes a header without options and without checksum; returns [`TCP_HDR_LEN`].
pub fn emit_bare(out: &mut [u8], ports: (u16, u16), seq: u32, ack: u32, flags: u8, window: u16) -> usize {
    out[..TCP_HDR_LEN].fill(0);
    out[0..2].copy_from_slice(&ports.0.to_be_bytes());
    out[2..4].copy_from_slice(&ports.1.to_be_bytes());
    out[4..8].copy_from_slice(&seq.to_be_bytes());
    out[8..12].copy_from_slice(&ack.to_be_bytes());
    out[12] = 5 << 4;
    out[13] = flags;
    out[14..16].copy_from_slice(&window.to_be_bytes());
    TCP_HDR_LEN
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn syn(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; TCP_HDR_LEN];
        emit_bare(&mut bytes, (40000, 80), 7, 0, SYN, 1000);
        bytes.extend_from_slice(options);
        bytes[12] = ((bytes.len() / 4) as u8) << 4;
        bytes
    }

    #[test]
    fn mss_is_found_and_replaced_behind_other_options() {
        let mut bytes = syn(&[1, 1, 4, 2, 2, 4, 0x05, 0xb4]);
        let mut segment = Segment::new(&mut bytes).expect("valid");
        assert_eq!(segment.mss(Some(65_495)), Some(1460));
        assert_eq!(segment.mss(None), Some(65_495));
        assert_eq!(segment.sequence_len(), 1);
    }

    #[test]
    fn a_written_syn_reads_back() {
        for (scale, sack) in [(None, false), (Some(7), false), (None, true), (Some(0), true)] {
            let mut bytes = [0; SYN_HDR_LEN];
            assert_eq!(emit_syn(&mut bytes, (1, 2), 9, 77, 1460, scale, sack), SYN_HDR_LEN);
            let mut segment = Segment::new(&mut bytes).expect("valid");
            assert_eq!((segment.flags(), segment.seq(), segment.window()), (SYN, 9, 77));
            assert_eq!(
                (segment.mss(None), segment.window_scale(None), segment.sack_permitted()),
                (Some(1460), scale, sack)
            );
            assert_eq!(segment.window_scale(Some(4)), scale);
            assert_eq!(segment.window_scale(None), scale.map(|_| 4));
            assert_eq!(segment.payload_len(), 0);
        }
    }

    #[test]
    fn broken_options_are_not_followed() {
        for options in [[2, 4, 5, 0xb4].as_slice(), &[3, 0, 0, 0], &[3, 40, 0, 0], &[1, 1, 1, 2], &[0, 2, 4, 1]] {
            let mut bytes = syn(options);
            let mss = Segment::new(&mut bytes).expect("valid").mss(None);
            assert_eq!(mss.is_some(), options[0] == 2);
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(mut segment) = Segment::new(&mut bytes) {
                segment.mss(Some(1));
                segment.window_scale(Some(1));
                segment.sack_permitted();
                let _ = (segment.seq(), segment.ack(), segment.sequence_len(), segment.payload_len());
            }
        }
    }
}
