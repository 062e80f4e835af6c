//! Putting IP fragments from the guest back together.
//!
//! The guest's kernel fragments what is larger than its MTU (UDP and ping up to 65507 bytes over an MTU of 1500, say);
//! the host sockets want whole datagrams. Packets go in one by one, [`Outcome`] says whether the caller goes on with the
//! packet itself, waits, has a whole datagram now, or drops. The data lie where they belong from the start: a fragment
//! is copied once into its datagram's buffer, and a complete datagram is lent out of it, header and all.
//!
//! **Limits.** Datagrams under way and bytes of their data are bounded by [`Limits`]; beyond either the oldest datagram
//! goes (counted in [`Stats::evicted`]), because a newer one is more likely to become whole. A datagram whose fragments
//! overlap is dropped whole and its number stays poisoned until its time is over (RFC 5722 §4; here for IPv4 too, like
//! Linux since CVE-2018-5391), but an exact repetition of bytes that are there is only a duplicate (RFC 8200 §4.5).
//! More than [`MAX_PIECES`] disjoint pieces of one datagram are an attack, not reordering.
//!
//! **Timers.** A datagram dies [`Limits::timeout_v4`] or [`Limits::timeout_v6`] after its first fragment. When the first
//! fragment (offset 0) is there, [`Reassembler::handle_timeout`] hands it out as a packet so that the caller can tell
//! the sender (ICMP time exceeded, code 1). Buffers are recycled, and given back [`IDLE`] after the last datagram.
//!
//! **Not done here:** checks of what the fragments carry, and of who sent them; the caller has done the latter.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::checksum;

use super::verdict::DropReason;
use crate::wire::chain::{self, FRAGMENT_HEADER, IPV6_HEADER};

/// What may be held at once for one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Datagrams under way.
    pub datagrams: usize,
    /// Bytes of data buffered in all, gaps between fragments counted like data.
    pub bytes: usize,
    /// Life of an incomplete IPv4 datagram.
    pub timeout_v4: Duration,
    /// Life of an incomplete IPv6 datagram.
    pub timeout_v6: Duration,
}

impl Default for Limits {
    /// 64 datagrams and 4 MiB (`net.ipv4.ipfrag_high_thresh` of Linux); 30 s (`net.ipv4.ipfrag_time`, within the
    /// 15 s and more of RFC 791 §3.2) and 60 s (RFC 8200 §4.5).
    fn default() -> Self {
        Self { datagrams: 64, bytes: 4 << 20, timeout_v4: Duration::from_secs(30), timeout_v6: Duration::from_secs(60) }
    }
}

/// Disjoint pieces that one datagram may have before the gaps are filled. In order there is one.
pub const MAX_PIECES: usize = 64;
/// How long buffers are kept after the last datagram; ours: longer than the gaps of a busy sender.
pub const IDLE: Duration = Duration::from_secs(10);
/// Room before the data for the header that goes with it: 60 bytes for IPv4; for IPv6 the per-fragment headers and the
/// fragment header. Real ones have 48 bytes; longer than this is dropped.
const HEADROOM: usize = 160;
/// End of the longest datagram's data: the 16-bit length of either family.
const MAX_DATA: usize = 0xffff;

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// It is whole as it is: go on with it.
    NotAFragment,
    /// Kept; the rest is still missing.
    Pending,
    /// The whole IP packet: IPv4 with length, flags and header checksum set right, IPv6 without the fragment header.
    Complete(&'a [u8]),
    /// Not kept, for that reason.
    Drop(DropReason),
}

/// What happened to datagrams that never became whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pushed out by newer ones.
    pub evicted: u64,
    /// Died of age.
    pub timed_out: u64,
    /// Dropped whole, because fragments overlapped or contradicted each other.
    pub poisoned: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    ident: u32,
    /// IPv4 only: RFC 791 identifies by protocol too, RFC 8200 does not.
    protocol: u8,
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    deadline: Instant,
    /// Order of arrival, for eviction.
    serial: u64,
    /// `HEADROOM` bytes, then the data up to the highest byte seen.
    buffer: Vec<u8>,
    /// Received pieces of the data, disjoint, not touching, in order.
    pieces: Vec<(usize, usize)>,
    /// Length of the data, known from the last fragment.
    total: Option<usize>,
    /// Length of the header that ends at `HEADROOM` (IPv6: with the fragment header); 0 before the first fragment.
    header: usize,
    /// Length of the data of the first fragment.
    first: usize,
    /// IPv6: offset in the header of the byte that names the fragment header.
    named_by: usize,
    /// ECN codepoints seen, one bit each.
    ecn: u8,
    /// Contradicted itself: takes no more data.
    poisoned: bool,
}

/// One fragment, taken apart.
struct Fragment<'a> {
    key: Key,
    v6: bool,
    /// Header in front of the data (IPv6: per-fragment headers and fragment header).
    header: &'a [u8],
    named_by: usize,
    data: &'a [u8],
    offset: usize,
    more: bool,
    ecn: u8,
}

/// Keeps fragments until datagrams are whole. See the module.
#[derive(Debug)]
pub struct Reassembler {
    limits: Limits,
    live: Vec<Datagram>,
    /// Whole, lent out by the last call; becomes spare at the next.
    done: Option<Datagram>,
    spare: Vec<Datagram>,
    /// Bytes of data in `live`.
    bytes: usize,
    serial: u64,
    idle_at: Option<Instant>,
    stats: Stats,
}

impl Reassembler {
    /// An empty one. Allocates nothing before the first fragment.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            live: Vec::new(),
            done: None,
            spare: Vec::new(),
            bytes: 0,
            serial: 0,
            idle_at: None,
            stats: Stats::default(),
        }
    }

    /// What went wrong so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Datagrams under way, and bytes that they hold.
    pub fn held(&self) -> (usize, usize) {
        (self.live.len(), self.bytes)
    }

    /// Takes one IP packet (bytes after its IP length are ignored).
    pub fn handle(&mut self, now: Instant, packet: &[u8]) -> Outcome<'_> {
        if let Some(done) = self.done.take() {
            self.recycle(done);
        }
        let fragment = match parse(packet) {
            Ok(Some(fragment)) => fragment,
            Ok(None) => return Outcome::NotAFragment,
            Err(reason) => return Outcome::Drop(reason),
        };
        self.idle_at = Some(now + IDLE);
        // RFC 6946: a fragment that is a whole datagram has nothing to do with others of its number. IPv4 has none.
        let atomic = fragment.offset == 0 && !fragment.more;
        if atomic {
            let mut datagram = self.fresh(now, fragment.key, fragment.v6);
            datagram.add(&fragment);
            return self.finish(datagram);
        }
        let index = if let Some(index) = self.live.iter().position(|d| d.key == fragment.key) {
            index
        } else {
            if self.limits.datagrams == 0 || fragment.offset + fragment.data.len() > self.limits.bytes {
                return Outcome::Drop(DropReason::Fragment);
            }
            if self.live.len() >= self.limits.datagrams {
                self.evict(None);
            }
            let datagram = self.fresh(now, fragment.key, fragment.v6);
            self.live.push(datagram);
            self.live.len() - 1
        };
        let before = self.live[index].held();
        let added = self.live[index].add(&fragment);
        self.bytes = self.bytes - before + self.live[index].held();
        match added {
            Added::Kept => {}
            Added::Duplicate => return Outcome::Drop(DropReason::Fragment),
            Added::Contradiction => {
                self.stats.poisoned += 1;
                return Outcome::Drop(DropReason::Fragment);
            }
            Added::Whole => {
                let datagram = self.live.swap_remove(index);
                self.bytes -= datagram.held();
                return self.finish(datagram);
            }
        }
        let keep = self.live[index].serial;
        while self.bytes > self.limits.bytes {
            if !self.evict(Some(keep)) {
                // Alone it is too large for the limit.
                let datagram = self.live.swap_remove(0);
                self.bytes -= datagram.held();
                self.stats.evicted += 1;
                self.recycle(datagram);
                return Outcome::Drop(DropReason::Fragment);
            }
        }
        Outcome::Pending
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        let oldest = self.live.iter().map(|d| d.deadline).min();
        let idle = self.idle_at.filter(|_| self.live.is_empty());
        oldest.or(idle)
    }

    /// Drops what is too old and gives `expired` the first fragment of each, as a whole IP packet, where it is there.
    /// Returns how many datagrams died.
    pub fn handle_timeout(&mut self, now: Instant, expired: &mut dyn FnMut(&[u8])) -> usize {
        let mut count = 0;
        let mut index = 0;
        while index < self.live.len() {
            if self.live[index].deadline > now {
                index += 1;
                continue;
            }
            let datagram = self.live.swap_remove(index);
            self.bytes -= datagram.held();
            if !datagram.poisoned {
                count += 1;
                if datagram.header > 0 {
                    expired(&datagram.buffer[HEADROOM - datagram.header..HEADROOM + datagram.first]);
                }
            }
            self.recycle(datagram);
        }
        self.stats.timed_out += count as u64;
        if self.live.is_empty() && self.idle_at.is_some_and(|at| at <= now) {
            self.idle_at = None;
            self.done = None;
            self.spare = Vec::new();
            self.live = Vec::new();
        }
        count
    }

    fn fresh(&mut self, now: Instant, key: Key, v6: bool) -> Datagram {
        self.serial += 1;
        let deadline = now + if v6 { self.limits.timeout_v6 } else { self.limits.timeout_v4 };
        let (mut buffer, mut pieces) = match self.spare.pop() {
            Some(old) => (old.buffer, old.pieces),
            // Reserved whole and touched only as used.
            None => (Vec::with_capacity(HEADROOM + MAX_DATA), Vec::with_capacity(MAX_PIECES + 1)),
        };
        buffer.clear();
        buffer.resize(HEADROOM, 0);
        pieces.clear();
        Datagram {
            key,
            deadline,
            serial: self.serial,
            buffer,
            pieces,
            total: None,
            header: 0,
            first: 0,
            named_by: 0,
            ecn: 0,
            poisoned: false,
        }
    }

    fn recycle(&mut self, datagram: Datagram) {
        if self.spare.len() < self.limits.datagrams {
            self.spare.push(datagram);
        }
    }

    /// Throws the oldest datagram out, but not the one numbered `keep`. False where there is none.
    fn evict(&mut self, keep: Option<u64>) -> bool {
        let oldest = self
            .live
            .iter()
            .enumerate()
            .filter(|(_, d)| Some(d.serial) != keep)
            .min_by_key(|(_, d)| d.serial)
            .map(|(index, _)| index);
        let Some(index) = oldest else { return false };
        let datagram = self.live.swap_remove(index);
        self.bytes -= datagram.held();
        self.stats.evicted += 1;
        self.recycle(datagram);
        true
    }

    fn finish(&mut self, mut datagram: Datagram) -> Outcome<'_> {
        let range = datagram.seal();
        let datagram = self.done.insert(datagram);
        match range {
            Ok(start) => Outcome::Complete(&datagram.buffer[start..]),
            Err(reason) => Outcome::Drop(reason),
        }
    }
}

enum Added {
    Kept,
    Whole,
    Duplicate,
    Contradiction,
}

impl Datagram {
    /// Bytes of data that it holds.
    fn held(&self) -> usize {
        self.buffer.len() - HEADROOM
    }

    fn poison(&mut self) -> Added {
        self.poisoned = true;
        self.buffer.truncate(HEADROOM);
        self.pieces.clear();
        Added::Contradiction
    }

    fn add(&mut self, fragment: &Fragment<'_>) -> Added {
        if self.poisoned {
            return Added::Duplicate;
        }
        let (start, end) = (fragment.offset, fragment.offset + fragment.data.len());
        let range = HEADROOM + start..HEADROOM + end;
        // Where it goes: before the first piece that ends behind its start.
        let at = self.pieces.partition_point(|&(_, e)| e <= start);
        if let Some(&(s, e)) = self.pieces.get(at)
            && s < end
        {
            let inside = s <= start && end <= e && (fragment.more || self.total == Some(end));
            return if inside && self.buffer[range] == *fragment.data { Added::Duplicate } else { self.poison() };
        }
        let highest = self.held();
        if self.total.is_some_and(|total| end > total || (!fragment.more && end != total))
            || (!fragment.more && end < highest)
            || self.pieces.len() >= MAX_PIECES
        {
            return self.poison();
        }
        if !fragment.more {
            self.total = Some(end);
        }
        if end > highest {
            self.buffer.resize(HEADROOM + end, 0);
        }
        self.buffer[range].copy_from_slice(fragment.data);
        self.pieces.insert(at, (start, end));
        if self.pieces.get(at + 1).is_some_and(|&(s, _)| s == end) {
            self.pieces[at].1 = self.pieces.remove(at + 1).1;
        }
        if at > 0 && self.pieces[at - 1].1 == start {
            self.pieces[at - 1].1 = self.pieces.remove(at).1;
        }
        self.ecn |= 1 << fragment.ecn;
        if start == 0 {
            self.header = fragment.header.len();
            self.first = fragment.data.len();
            self.named_by = fragment.named_by;
            self.buffer[HEADROOM - self.header..HEADROOM].copy_from_slice(fragment.header);
        }
        match (self.total, &self.pieces[..]) {
            (Some(total), &[(0, end)]) if end == total => Added::Whole,
            // An atomic fragment without data has no piece worth the name.
            (Some(0), _) => Added::Whole,
            _ => Added::Kept,
        }
    }

    /// Turns the header of the first fragment into that of the whole. Returns where the packet starts in the buffer.
    fn seal(&mut self) -> Result<usize, DropReason> {
        let data = self.held();
        let congested = 1 << 3;
        let ecn = match self.ecn {
            // Some fragments say that the transport does not do ECN, others that a router marked it: RFC 3168 §5.3
            // wants such a packet dropped.
            mixed if mixed & congested != 0 && mixed & 1 != 0 => return Err(DropReason::Fragment),
            marked if marked & congested != 0 => 3,
            _ => 0,
        };
        let mut start = HEADROOM - self.header;
        if self.key.source.is_ipv4() {
            let total = u16::try_from(self.header + data).map_err(|_| DropReason::TooBig)?;
            let header = &mut self.buffer[start..HEADROOM];
            header[1] |= ecn;
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[6..8].fill(0);
            header[10..12].fill(0);
            let sum = !checksum::data(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let per_fragment = self.header - FRAGMENT_HEADER;
            let payload = u16::try_from(per_fragment - IPV6_HEADER + data).map_err(|_| DropReason::TooBig)?;
            let next_header = self.buffer[HEADROOM - FRAGMENT_HEADER];
            self.buffer.copy_within(start..start + per_fragment, start + FRAGMENT_HEADER);
            start += FRAGMENT_HEADER;
            let header = &mut self.buffer[start..HEADROOM];
            header[1] |= ecn << 4;
            header[4..6].copy_from_slice(&payload.to_be_bytes());
            header[self.named_by] = next_header;
        }
        Ok(start)
    }
}

fn parse(packet: &[u8]) -> Result<Option<Fragment<'_>>, DropReason> {
    let fragment = match packet.first().ok_or(DropReason::Truncated)? >> 4 {
        4 => parse_v4(packet)?,
        6 => parse_v6(packet)?,
        _ => return Err(DropReason::Malformed),
    };
    let Some(fragment) = fragment else { return Ok(None) };
    let atomic = fragment.offset == 0 && !fragment.more;
    // Every fragment but the last is a multiple of eight bytes (RFC 791 §3.2, RFC 8200 §4.5), and none is empty.
    if (fragment.more && fragment.data.len() % 8 != 0)
        || (fragment.data.is_empty() && !atomic)
        || fragment.offset + fragment.data.len() > MAX_DATA
    {
        return Err(DropReason::Malformed);
    }
    if fragment.header.len() > HEADROOM {
        return Err(DropReason::Fragment);
    }
    Ok(Some(fragment))
}

fn parse_v4(packet: &[u8]) -> Result<Option<Fragment<'_>>, DropReason> {
    if packet.len() < 20 {
        return Err(DropReason::Truncated);
    }
    let flags = u16::from_be_bytes([packet[6], packet[7]]);
    let (offset, more) = (usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0);
    if offset == 0 && !more {
        return Ok(None);
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if header < 20 || total < header {
        return Err(DropReason::Malformed);
    }
    let packet = packet.get(..total).ok_or(DropReason::Truncated)?;
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]));
    Ok(Some(Fragment {
        key: Key {
            source: address(12),
            destination: address(16),
            ident: u32::from(u16::from_be_bytes([packet[4], packet[5]])),
            protocol: packet[9],
        },
        v6: false,
        header: &packet[..header],
        named_by: 9,
        data: &packet[header..],
        offset,
        more,
        ecn: packet[1] & 3,
    }))
}

fn parse_v6(packet: &[u8]) -> Result<Option<Fragment<'_>>, DropReason> {
    if packet.len() < IPV6_HEADER {
        return Err(DropReason::Truncated);
    }
    let total = IPV6_HEADER + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let packet = packet.get(..total).ok_or(DropReason::Truncated)?;
    // A first fragment may be cut inside a long header chain, which RFC 7112 forbids: malformed.
    let chain = chain::walk(packet).ok_or(DropReason::Malformed)?;
    let Some(fragment) = chain.fragment else { return Ok(None) };
    let (source, destination) = chain::addresses(packet).ok_or(DropReason::Truncated)?;
    let header = fragment.at + FRAGMENT_HEADER;
    Ok(Some(Fragment {
        key: Key { source: source.into(), destination: destination.into(), ident: fragment.ident, protocol: 0 },
        v6: true,
        header: &packet[..header],
        named_by: fragment.named_by,
        data: &packet[header..],
        offset: fragment.offset,
        more: fragment.more,
        ecn: packet[1] >> 4 & 3,
    }))
}

#[cfg(test)]
mod tests;
