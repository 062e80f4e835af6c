//! The virtio-net header in front of every frame of a TAP opened with `IFF_VNET_HDR`.
//!
//! It is what lets a 64 KiB segment cross unsegmented and unsummed: `needs_csum` says that the transport checksum holds
//! only the pseudo-header sum, `gso` and `gso_size` say how the frame would be cut. We use the plain 10-byte layout of
//! include/uapi/linux/virtio_net.h in native byte order (`TUNSETVNETHDRSZ` 10, no `TUNSETVNETLE`): with it the IP
//! header lies at offset 24, eight-byte aligned.

/// Bytes of the header.
pub const VNET_HDR_LEN: usize = 10;
/// Bytes of an Ethernet header.
pub const ETH_HDR_LEN: usize = 14;
/// Where the IP packet starts in a frame buffer.
pub const IP_OFFSET: usize = VNET_HDR_LEN + ETH_HDR_LEN;
/// Room for the largest frame: header, Ethernet, and the 65 535 bytes that an IP length field can say, plus the 40
/// that IPv6's payload length does not count.
pub const MAX_FRAME: usize = IP_OFFSET + 65_535 + 40;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// How a super-frame is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// One packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of equal size (the last may be shorter).
    Udp,
    /// A type that we did not negotiate.
    Unknown(u8),
}

/// The header, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// The checksum at `csum_start + csum_offset` holds the pseudo-header sum only.
    pub needs_csum: bool,
    /// The sender vouches for the checksum.
    pub data_valid: bool,
    /// Segmentation type.
    pub gso: Gso,
    /// Bytes of all headers, Ethernet included (a hint).
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where summing starts, from the Ethernet header.
    pub csum_start: u16,
    /// Where the sum goes, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// Decodes the first [`VNET_HDR_LEN`] bytes; `None` if there are fewer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let b: &[u8; VNET_HDR_LEN] = bytes.get(..VNET_HDR_LEN)?.try_into().ok()?;
        let word = |at: usize| u16::from_ne_bytes([b[at], b[at + 1]]);
        Some(Self {
            needs_csum: b[0] & F_NEEDS_CSUM != 0,
            data_valid: b[0] & F_DATA_VALID != 0,
            gso: match b[1] & !GSO_ECN {
                GSO_NONE => Gso::None,
                GSO_TCPV4 => Gso::Tcp4,
                GSO_TCPV6 => Gso::Tcp6,
                GSO_UDP_L4 => Gso::Udp,
                other => Gso::Unknown(other),
            },
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        })
    }

    /// Writes the header into the first [`VNET_HDR_LEN`] bytes of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than that; callers own frame buffers of [`MAX_FRAME`].
    pub fn emit(&self, out: &mut [u8]) {
        out[0] = if self.needs_csum { F_NEEDS_CSUM } else { 0 } | if self.data_valid { F_DATA_VALID } else { 0 };
        out[1] = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCPV4,
            Gso::Tcp6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
            Gso::Unknown(other) => other,
        };
        for (at, word) in [(2, self.hdr_len), (4, self.gso_size), (6, self.csum_start), (8, self.csum_offset)] {
            out[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_short_input() {
        let hdr = VnetHdr {
            needs_csum: true,
            data_valid: false,
            gso: Gso::Tcp6,
            hdr_len: 74,
            gso_size: 1440,
            csum_start: 54,
            csum_offset: 16,
        };
        let mut bytes = [0xff; VNET_HDR_LEN];
        hdr.emit(&mut bytes);
        assert_eq!(VnetHdr::parse(&bytes), Some(hdr));
        assert_eq!(VnetHdr::parse(&bytes[..9]), None);
        // The ECN bit is a hint on top of the type.
        bytes[1] |= GSO_ECN;
        assert_eq!(VnetHdr::parse(&bytes).map(|h| h.gso), Some(Gso::Tcp6));
    }
}
