//! Packet capture: the frames of one endpoint, written as a pcapng file.
//!
//! What flows through: whole Ethernet frames as the guest's kernel sent them or will receive them, without the vnet
//! header. So with segmentation offload a "packet" is up to 64 KiB long whatever the MTU, and its TCP or UDP checksum
//! may be partial (the pseudo-header sum only): readers must not be told to verify checksums, as for any capture taken
//! on a sending Linux host.
//!
//! ```text
//! section header │ interface description (Ethernet, ns) │ enhanced packet │ enhanced packet │ …
//! ```
//!
//! Blocks are those of draft-ietf-opsawg-pcapng-03 §4.1 to §4.3, in this machine's byte order; each packet carries
//! `epb_flags` (§4.3.1) that name its direction as the guest's interface sees it: what the guest receives is inbound.
//!
//! Memory is bounded by one buffer of [`BUFFER`] bytes; a block that does not fit is written after it. Call
//! [`PcapWriter::flush`] when the data plane goes idle, or the file lags behind the traffic, and at the end.
//!
//! A failed write ends the capture and not the traffic: the first error is returned once, to be reported, and the file
//! then stays as it is, at worst ending within a block, which readers report as cut. Later calls do nothing.
//! A file system that is slow makes the caller slow; a pipe nobody reads stops it unless the descriptor is non-blocking
//! (then EAGAIN ends the capture). Capturing is for debugging, not for the fast path.

use std::io::{self, Write};
use std::num::NonZeroU32;
use std::time::Duration;

/// Bytes gathered before a write; a compromise of ours: 4 super-frames, or about 2800 frames of 64 bytes.
pub const BUFFER: usize = 256 * 1024;

/// Longest frame kept when the user names no limit: an IPv6 or IPv4 packet of 64 KiB with its Ethernet header. Also what
/// readers (libpcap MAXIMUM_SNAPLEN) accept.
pub const SNAPLEN: NonZeroU32 = NonZeroU32::new(262_144).expect("not zero");

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
    pub const ENHANCED_PACKET: u32 = 6;
    /// LINKTYPE_ETHERNET.
    pub const ETHERNET: u16 = 1;
    pub const OPT_END: u16 = 0;
    pub const SHB_USERAPPL: u16 = 4;
    pub const IF_NAME: u16 = 2;
    pub const IF_TSRESOL: u16 = 9;
    pub const EPB_FLAGS: u16 = 2;
    /// Bits 0 and 1 of epb_flags.
    pub const INBOUND: u32 = 0b01;
    pub const OUTBOUND: u32 = 0b10;
    /// Enhanced packet without its data: type, length, interface, time (2), captured, original, flags option (2), end of
    /// options, length again.
    pub const ENHANCED_PACKET_FIXED: usize = 7 * 4 + 2 * 4 + 4 + 4;
}

/// Writes one capture file.
#[derive(Debug)]
pub struct PcapWriter<W: Write> {
    to: W,
    snaplen: usize,
    buffer: Vec<u8>,
    failed: bool,
}

impl<W: Write> PcapWriter<W> {
    /// Starts the file: section header and the one interface. Frames are kept up to `snaplen` bytes.
    pub fn new(to: W, snaplen: NonZeroU32) -> io::Result<Self> {
        let mut buffer = Vec::with_capacity(BUFFER);
        block(&mut buffer, field::SECTION_HEADER, |body| {
            word(body, field::BYTE_ORDER_MAGIC);
            half(body, 1); // version 1.0
            half(body, 0);
            body.extend_from_slice(&(-1i64).to_ne_bytes()); // section length: not known
            option(body, field::SHB_USERAPPL, concat!("tapway ", env!("CARGO_PKG_VERSION")).as_bytes());
            option(body, field::OPT_END, &[]);
        });
        block(&mut buffer, field::INTERFACE_DESCRIPTION, |body| {
            half(body, field::ETHERNET);
            half(body, 0);
            word(body, snaplen.get());
            option(body, field::IF_NAME, b"eth0");
            option(body, field::IF_TSRESOL, &[9]); // 10^-9 s
            option(body, field::OPT_END, &[]);
        });
        let mut writer = Self { to, snaplen: snaplen.get() as usize, buffer, failed: false };
        // A bad descriptor shows now, while somebody waits for the answer.
        writer.flush()?;
        Ok(writer)
    }

    /// Adds one Ethernet frame. `unix_time`: since 1970, UTC. The first error ends the capture; see the module head.
    pub fn write(&mut self, unix_time: Duration, direction: Direction, frame: &[u8]) -> io::Result<()> {
        if self.failed {
            return Ok(());
        }
        let kept = &frame[..frame.len().min(self.snaplen)];
        if self.buffer.len() + field::ENHANCED_PACKET_FIXED + kept.len().next_multiple_of(4) > BUFFER {
            self.flush()?;
        }
        let nanos = u64::try_from(unix_time.as_nanos()).unwrap_or(u64::MAX);
        block(&mut self.buffer, field::ENHANCED_PACKET, |body| {
            word(body, 0); // interface
            word(body, (nanos >> 32) as u32);
            word(body, nanos as u32);
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
        // Only a frame longer than the whole buffer gets here (a snaplen above it).
        if self.buffer.len() > BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.failed || self.buffer.is_empty() {
            return Ok(());
        }
        let result = self.to.write_all(&self.buffer).and_then(|()| self.to.flush());
        self.buffer.clear();
        if result.is_err() {
            self.failed = true;
            self.buffer = Vec::new();
        } else {
            self.buffer.shrink_to(BUFFER);
        }
        result
    }

    /// Has an error ended the capture?
    pub fn failed(&self) -> bool {
        self.failed
    }
}

impl<W: Write> Drop for PcapWriter<W> {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.flush();
    }
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
        let mut writer = PcapWriter::new(&mut file, SNAPLEN).unwrap();
        // Lengths of every padding, and a super-frame.
        let lengths = [0, 1, 2, 3, 4, 1472, 65_507];
        for (i, length) in lengths.into_iter().enumerate() {
            let direction = if i % 2 == 0 { Direction::FromGuest } else { Direction::ToGuest };
            writer.write(Duration::new(1_700_000_000 + i as u64, 123_456_789), direction, &udp_frame(length)).unwrap();
        }
        drop(writer);
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
        let mut writer = PcapWriter::new(&mut file, snaplen(100)).unwrap();
        writer.write(Duration::from_secs(1), Direction::ToGuest, &udp_frame(1000)).unwrap();
        drop(writer);
        assert_eq!(packets(&file), [(1, (100, 1042))]);
        assert!(tcpdump(&file, &[]).0.contains("length 1000"));
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

    /// Takes `room` bytes, then fails each time.
    struct Full {
        room: usize,
        calls: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_told_once_and_ends_the_capture() {
        let mut writer = PcapWriter::new(Full { room: 1000, calls: 0 }, SNAPLEN).unwrap();
        let results: Vec<_> =
            (0..100).map(|_| writer.write(Duration::ZERO, Direction::ToGuest, &udp_frame(60_000))).collect();
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
        assert!(writer.failed());
        let calls = writer.to.calls;
        writer.write(Duration::ZERO, Direction::ToGuest, &udp_frame(60_000)).unwrap();
        writer.flush().unwrap();
        assert_eq!(writer.to.calls, calls, "nothing more is tried");
    }

    #[test]
    fn memory_stays_bounded_and_small_frames_share_a_write() {
        let mut writer = PcapWriter::new(Full { room: usize::MAX, calls: 0 }, snaplen(u32::MAX)).unwrap();
        for length in [0, 60, 1460, 65_507, 65_507, 65_507, 65_507, 65_507, 65_507] {
            for _ in 0..50 {
                writer.write(Duration::ZERO, Direction::FromGuest, &udp_frame(length)).unwrap();
                assert!(writer.buffer.len() <= BUFFER && writer.buffer.capacity() == BUFFER);
            }
        }
        let calls = writer.to.calls;
        assert!(calls > 1 && calls < 120, "{calls} writes for 450 frames");
        // A frame larger than the buffer passes through and leaves no large buffer behind.
        writer.write(Duration::ZERO, Direction::FromGuest, &vec![0; BUFFER * 2]).unwrap();
        assert!(writer.buffer.capacity() < BUFFER * 2, "{}", writer.buffer.capacity());
    }

    #[test]
    fn a_bad_descriptor_shows_at_once() {
        assert!(PcapWriter::new(Full { room: 10, calls: 0 }, SNAPLEN).is_err());
    }
}
