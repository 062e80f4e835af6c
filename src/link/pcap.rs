//! pcapng: the bytes of a capture file.
//!
//! What flows through: whole Ethernet frames as the guest's kernel sent them or will receive them, without the vnet
//! header. So with segmentation offload a "packet" is up to 64 KiB long whatever the MTU, and its TCP or UDP checksum
//! may be partial (the pseudo-header sum only): readers must not be told to verify checksums, as for any capture taken
//! on a sending Linux host.
//!
//! ```text
//! section header │ interface description (Ethernet, ns) │ enhanced packet │ enhanced packet │ … │ interface statistics
//!  └──────────── start() ──────────────────────────────┘ └── packet() ───┘                       └─ statistics() ────┘
//! ```
//!
//! Blocks are those of draft-ietf-opsawg-pcapng-03 §4.1 to §4.3 and §4.6, in this machine's byte order; each packet
//! carries `epb_flags` (§4.3.1) that name its direction as the guest's interface sees it: what the guest receives is
//! inbound. The statistics say how many frames the capture missed; a file without them was cut short, which readers
//! report as such only if it ends within a block.
//!
//! Everything is appended to a buffer of the caller's, whose lengths are known beforehand ([`packet_len`],
//! [`STATISTICS_LEN`]): who bounds the buffer never makes it grow. Nothing here writes to a descriptor; that is
//! `runtime::capture`.

use std::num::NonZeroU32;
use std::time::Duration;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest sent it.
    FromGuest,
    /// The guest receives it.
    ToGuest,
}

/// draft-ietf-opsawg-pcapng-03, block types and option codes.
mod field {
    pub const SECTION_HEADER: u32 = 0x0A0D_0D0A;
    pub const BYTE_ORDER_MAGIC: u32 = 0x1A2B_3C4D;
    pub const INTERFACE_DESCRIPTION: u32 = 1;
    pub const INTERFACE_STATISTICS: u32 = 5;
    pub const ENHANCED_PACKET: u32 = 6;
    /// LINKTYPE_ETHERNET.
    pub const ETHERNET: u16 = 1;
    pub const OPT_END: u16 = 0;
    pub const SHB_USERAPPL: u16 = 4;
    pub const IF_NAME: u16 = 2;
    pub const IF_TSRESOL: u16 = 9;
    pub const EPB_FLAGS: u16 = 2;
    pub const ISB_IFRECV: u16 = 4;
    pub const ISB_IFDROP: u16 = 5;
    /// Bits 0 and 1 of epb_flags.
    pub const INBOUND: u32 = 0b01;
    pub const OUTBOUND: u32 = 0b10;
    /// Enhanced packet without its data: type, length, interface, time (2), captured, original, flags option (2), end of
    /// options, length again.
    pub const ENHANCED_PACKET_FIXED: usize = 7 * 4 + 2 * 4 + 4 + 4;
}

/// Bytes of the statistics block: type, length, interface, time (2), two options of 8 bytes, end of options, length again.
pub const STATISTICS_LEN: usize = 6 * 4 + 2 * 12 + 4;

/// Bytes of the block of a packet of which `kept` bytes are kept.
pub const fn packet_len(kept: usize) -> usize {
    field::ENHANCED_PACKET_FIXED + kept.next_multiple_of(4)
}

/// Starts a file, or another section of one: section header and the one interface, whose frames are kept up to `snaplen`
/// bytes.
pub fn start(to: &mut Vec<u8>, snaplen: NonZeroU32) {
    block(to, field::SECTION_HEADER, |body| {
        word(body, field::BYTE_ORDER_MAGIC);
        half(body, 1); // version 1.0
        half(body, 0);
        body.extend_from_slice(&(-1i64).to_ne_bytes()); // section length: not known
        option(body, field::SHB_USERAPPL, concat!("tapway ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(body, field::OPT_END, &[]);
    });
    block(to, field::INTERFACE_DESCRIPTION, |body| {
        half(body, field::ETHERNET);
        half(body, 0);
        word(body, snaplen.get());
        option(body, field::IF_NAME, b"eth0");
        option(body, field::IF_TSRESOL, &[9]); // 10^-9 s
        option(body, field::OPT_END, &[]);
    });
}

/// Adds one Ethernet frame, up to `snaplen` bytes of it. `unix_time`: since 1970, UTC.
pub fn packet(to: &mut Vec<u8>, unix_time: Duration, direction: Direction, frame: &[u8], snaplen: usize) {
    let kept = &frame[..frame.len().min(snaplen)];
    block(to, field::ENHANCED_PACKET, |body| {
        word(body, 0); // interface
        time(body, unix_time);
        word(body, kept.len() as u32);
        word(body, u32::try_from(frame.len()).unwrap_or(u32::MAX));
        padded(body, kept);
        let flags = match direction {
            Direction::FromGuest => field::OUTBOUND,
            Direction::ToGuest => field::INBOUND,
        };
        option(body, field::EPB_FLAGS, &flags.to_ne_bytes());
        option(body, field::OPT_END, &[]);
    });
}

/// Ends a file: how many frames the capture met, and how many of them are missing in it.
pub fn statistics(to: &mut Vec<u8>, unix_time: Duration, received: u64, dropped: u64) {
    block(to, field::INTERFACE_STATISTICS, |body| {
        word(body, 0); // interface
        time(body, unix_time);
        option(body, field::ISB_IFRECV, &received.to_ne_bytes());
        option(body, field::ISB_IFDROP, &dropped.to_ne_bytes());
        option(body, field::OPT_END, &[]);
    });
}

/// How many packets lie whole within the first `length` bytes of `blocks`, which [`packet`] wrote.
pub fn whole_packets(blocks: &[u8], length: usize) -> u64 {
    let (mut at, mut count) = (0, 0);
    while let Some(bytes) = blocks.get(at + 4..at + 8).and_then(|bytes| bytes.try_into().ok()) {
        at += u32::from_ne_bytes(bytes) as usize;
        if at > length {
            break;
        }
        count += 1;
    }
    count
}

/// A time stamp (§4.3): the upper half first, whatever the byte order.
fn time(to: &mut Vec<u8>, unix_time: Duration) {
    let nanos = u64::try_from(unix_time.as_nanos()).unwrap_or(u64::MAX);
    word(to, (nanos >> 32) as u32);
    word(to, nanos as u32);
}

fn half(to: &mut Vec<u8>, value: u16) {
    to.extend_from_slice(&value.to_ne_bytes());
}

fn word(to: &mut Vec<u8>, value: u32) {
    to.extend_from_slice(&value.to_ne_bytes());
}

/// Bytes, then zeros up to 32 bits (§3.1).
fn padded(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(bytes);
    to.resize(to.len() + bytes.len().next_multiple_of(4) - bytes.len(), 0);
}

/// One option (§3.5). Ours are constants and short.
fn option(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    half(to, code);
    half(to, value.len() as u16);
    padded(to, value);
}

/// One block (§3.1): type, total length, body, total length again.
fn block(to: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    word(to, kind);
    word(to, 0);
    body(to);
    let length = (to.len() - start + 4) as u32;
    word(to, length);
    to[start + 4..start + 8].copy_from_slice(&length.to_ne_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::Command;

    fn snaplen(bytes: u32) -> NonZeroU32 {
        NonZeroU32::new(bytes).unwrap()
    }

    /// An Ethernet frame with an IPv4 UDP packet whose datagram carries `payload` bytes.
    fn udp_frame(payload: usize) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let total = (28 + payload) as u16;
        frame.extend_from_slice(&[0x45, 0]);
        frame.extend_from_slice(&total.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 100, 192, 0, 2, 1]);
        frame.extend_from_slice(&[0x13, 0x88, 0x17, 0x70]);
        frame.extend_from_slice(&(8 + payload as u16).to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
        frame.resize(frame.len() + payload, 0xAB);
        frame
    }

    /// What the reader everybody has says of the file.
    fn tcpdump(file: &[u8], arguments: &[&str]) -> (String, String) {
        let path = std::env::temp_dir().join(format!("tapway-pcap-{}-{:p}", std::process::id(), file.as_ptr()));
        std::fs::write(&path, file).unwrap();
        let out = Command::new("tcpdump").args(["-n", "-r"]).arg(&path).args(arguments).output().unwrap();
        std::fs::remove_file(&path).unwrap();
        let (text, err) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
        assert!(out.status.success(), "{err}");
        (text, err)
    }

    #[test]
    fn tcpdump_reads_every_frame_its_time_and_its_direction() {
        let mut file = Vec::new();
        start(&mut file, snaplen(262_144));
        // Lengths of every padding, and a super-frame.
        let lengths = [0, 1, 2, 3, 4, 1472, 65_507];
        for (i, length) in lengths.into_iter().enumerate() {
            let direction = if i % 2 == 0 { Direction::FromGuest } else { Direction::ToGuest };
            let (before, frame) = (file.len(), udp_frame(length));
            packet(&mut file, Duration::new(1_700_000_000 + i as u64, 123_456_789), direction, &frame, usize::MAX);
            assert_eq!(file.len() - before, packet_len(frame.len()));
        }
        let before = file.len();
        statistics(&mut file, Duration::from_secs(1_700_000_009), 9, 2);
        assert_eq!(file.len() - before, STATISTICS_LEN);
        let (text, err) = tcpdump(&file, &["-tt", "--nano"]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), lengths.len(), "{text}{err}");
        for (i, (line, length)) in lines.iter().zip(lengths).enumerate() {
            assert!(line.starts_with(&format!("{}.123456789 ", 1_700_000_000 + i)), "{line}");
            assert!(line.ends_with(&format!("10.0.2.100.5000 > 192.0.2.1.6000: UDP, length {length}")), "{line}");
        }
        assert!(err.contains("EN10MB (Ethernet)"), "{err}");
        // tcpdump does not show epb_flags: read them as any reader must, through the block chain.
        let flags: Vec<_> = packets(&file).into_iter().map(|(flags, _)| flags).collect();
        assert_eq!(flags, [2, 1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn a_cut_frame_keeps_its_true_length() {
        let mut file = Vec::new();
        start(&mut file, snaplen(100));
        packet(&mut file, Duration::from_secs(1), Direction::ToGuest, &udp_frame(1000), 100);
        assert_eq!(packets(&file), [(1, (100, 1042))]);
        assert!(tcpdump(&file, &[]).0.contains("length 1000"));
    }

    #[test]
    fn whole_packets_are_counted_and_cut_ones_are_not() {
        let mut blocks = Vec::new();
        let mut ends = Vec::new();
        for length in [0, 1, 700, 65_507] {
            packet(&mut blocks, Duration::ZERO, Direction::ToGuest, &udp_frame(length), usize::MAX);
            ends.push(blocks.len());
        }
        for (i, end) in ends.into_iter().enumerate() {
            assert_eq!(whole_packets(&blocks, end - 1), i as u64);
            assert_eq!(whole_packets(&blocks, end), i as u64 + 1);
        }
        assert_eq!(whole_packets(&blocks, 0), 0);
        assert_eq!(whole_packets(&[], 0), 0);
    }

    /// Walks the chain of blocks by both length fields; flags, captured and original length of each packet.
    fn packets(file: &[u8]) -> Vec<(u32, (u32, u32))> {
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut found) = (0, Vec::new());
        while at < file.len() {
            let length = word(at + 4) as usize;
            assert_eq!(word(at + length - 4) as usize, length, "trailing length of the block at {at}");
            if word(at) == 6 {
                // …flags option (code and length, value), end of options, length.
                found.push((word(at + length - 12), (word(at + 20), word(at + 24))));
            }
            at += length;
        }
        found
    }
}
