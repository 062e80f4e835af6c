//! The smoltcp device of one call: one segment in, any number out, rewritten on the way.
//!
//! smoltcp sees an IP link of MTU 65 535 without checksums. What it emits gets the flow's sequence offset, windows in
//! units of [`TOLD_SHIFT`] (a flow changes rings, and thereby smoltcp's scale, while the guest was told one for good), the vnet
//! header with the guest's true MSS, and the checksum that the TAP wants (see `compose`). What it is given has been
//! adjusted by [`Wire::from_guest`] before.

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::stack::Output;
use crate::stack::compose::Composer;
use crate::stack::flow::FlowKey;
use crate::stack::tcp::isn::IsnClock;
use crate::stack::tcp::rings::LARGE_RING;
use crate::wire::tcp_segment::{ACK, FIN, RST, SYN, Segment};

/// MTU that smoltcp works with where the TAP takes super-frames.
const SUPER_MTU: usize = 65_535;

/// What one flow must remember of the numbers that passed.
#[derive(Debug, Default)]
pub struct Wire {
    /// Guest's numbers minus smoltcp's, fixed by the first SYN that we emit.
    pub offset: Option<u32>,
    /// Largest payload of one segment that the guest takes.
    pub mss: u16,
    /// The same as smoltcp was told.
    pub mss_told: u16,
    /// End of what we have sent (guest's numbers).
    pub sent_end: u32,
    /// The same without window probes.
    pub flight_end: u32,
    /// Last acknowledgement that we sent: the next byte we expect.
    pub acked_to_guest: u32,
    /// Highest acknowledgement seen from the guest (smoltcp's numbers).
    pub acked_by_guest: Option<u32>,
    /// Window of our last segment, as sent.
    pub window: u16,
    /// Most that the guest may have under way: a share, where many are bulky (`rings`).
    pub share: u32,
    /// The end of what the guest was promised room for (guest's numbers).
    pub edge: u32,
    /// Window scale that the guest has announced, if it did.
    pub scale_of_guest: Option<u8>,
    /// The guest permits selective acknowledgements.
    pub sack: bool,
    /// Window scale of the socket that serves the flow now.
    pub own_shift: u8,
    /// End of what the guest has sent, as far as it can be within a window (guest's numbers): beyond `acked_to_guest`
    /// where something of it waits for what comes before.
    pub end_of_guest: u32,
    /// Window of the guest's last segment, as it came.
    pub window_of_guest: u16,
    /// Payload bytes that went to the guest, retransmissions included.
    pub bytes_to_guest: u64,
    /// Segments that went to the guest, retransmissions included.
    pub packets_to_guest: u64,
    /// Payload bytes that came from the guest, retransmissions included.
    pub bytes_from_guest: u64,
}

/// Window scale that the guest is told, whatever ring its flow has at the moment: that of a large one.
pub const TOLD_SHIFT: u8 = shift_of(LARGE_RING);

/// smoltcp's window scale for a receive buffer of this size (`tcp::Socket::new`).
pub const fn shift_of(ring: usize) -> u8 {
    (usize::BITS - ring.leading_zeros()).saturating_sub(16) as u8
}

/// MSS that a peer without the option means: 536 (RFC 9293, section 3.7.1) and 1220 (RFC 8200: 1280 − 60).
const fn default_mss(v6: bool) -> u16 {
    if v6 { 1220 } else { 536 }
}

/// MSS told to smoltcp instead of the guest's: the largest that an IP length field can carry.
pub const fn super_mss(v6: bool) -> u16 {
    if v6 { 65_475 } else { 65_495 }
}

impl Wire {
    /// Adjusts a segment from the guest for smoltcp. `mtu`: the guest's. Returns true if it is a keepalive probe.
    pub fn from_guest(&mut self, segment: &mut Segment<'_>, v6: bool, tso: bool, mtu: usize) -> bool {
        if segment.has(SYN) {
            let mss = segment.mss(tso.then(|| super_mss(v6)));
            self.mss_told = mss.map_or(default_mss(v6), |mss| if tso { super_mss(v6) } else { mss });
            // What the link carries in one packet, whatever the guest says that it takes. Below Linux's own floor
            // (TCP_MIN_SND_MSS, 48) segments would hold next to nothing.
            let most = mtu.saturating_sub(if v6 { 60 } else { 40 }).min(super_mss(v6).into()) as u16;
            self.mss = mss.filter(|&mss| mss != 0).unwrap_or(default_mss(v6)).min(most).max(48);
            self.scale_of_guest = segment.window_scale(None);
            self.sack = segment.sack_permitted();
            self.end_of_guest = segment.seq().wrapping_add(segment.sequence_len());
        } else {
            let end = segment.seq().wrapping_add(segment.sequence_len());
            let ahead = end.wrapping_sub(self.acked_to_guest);
            if (end.wrapping_sub(self.end_of_guest) as i32) > 0 && ahead <= 2 * LARGE_RING as u32 {
                self.end_of_guest = end;
            }
        }
        self.bytes_from_guest += segment.payload_len() as u64;
        let mut keepalive = false;
        if segment.has(ACK) {
            let mut ack = segment.ack().wrapping_sub(self.offset.unwrap_or(0));
            let newest = self.acked_by_guest.filter(|newest| (newest.wrapping_sub(ack) as i32) > 0);
            let sent = self.sent_end.wrapping_sub(segment.ack()) as i32 >= 0;
            match newest {
                // smoltcp drops in-order data whole if its acknowledgement is older than the newest (seen); the data
                // is good, so bring the acknowledgement up to date.
                Some(newest) if segment.sequence_len() > 0 => ack = newest,
                // An acknowledgement of what was never sent is nobody's newest.
                None if sent && !segment.has(RST) => self.acked_by_guest = Some(ack),
                _ => {}
            }
            segment.set_ack(ack);
            if !segment.has(RST) {
                self.window_of_guest = segment.window();
            }
            // RFC 9293, section 3.8.4: one octet or none, just before the window.
            keepalive = segment.payload_len() <= 1
                && segment.flags() & (SYN | FIN | RST) == 0
                && segment.seq() == self.acked_to_guest.wrapping_sub(1);
        }
        keepalive
    }

    /// Something that we sent, and not as a window probe, is not acknowledged.
    pub fn in_flight(&self) -> bool {
        let acked = self.acked_by_guest.unwrap_or(0).wrapping_add(self.offset.unwrap_or(0));
        (self.flight_end.wrapping_sub(acked) as i32) > 0
    }
}

/// The device of one call.
pub struct Port<'a, O: Output> {
    /// IP packet from the guest, once.
    pub rx: Option<&'a [u8]>,
    /// Flow's numbers.
    pub wire: &'a mut Wire,
    /// Who the flow is.
    pub key: &'a FlowKey,
    /// Sequence number source.
    pub isn: &'a IsnClock,
    /// Frame builder.
    pub composer: &'a mut Composer,
    /// Where frames go.
    pub out: &'a mut O,
    /// This call's time.
    pub now: Instant,
}

/// What smoltcp is told of the link.
pub fn capabilities(mtu: usize, tso: bool) -> DeviceCapabilities {
    let mut checksum = ChecksumCapabilities::ignored();
    // The kernel checks the IPv4 header's own sum even on a TAP with offload.
    checksum.ipv4 = Checksum::Tx;
    let mut caps = DeviceCapabilities::default();
    caps.medium = Medium::Ip;
    caps.max_transmission_unit = if tso { SUPER_MTU } else { mtu };
    caps.checksum = checksum;
    caps
}

impl<O: Output> Device for Port<'_, O> {
    type RxToken<'b>
        = Rx<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Tx<'b, O>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.rx.take()?;
        let tx =
            Tx { wire: self.wire, key: self.key, isn: self.isn, composer: self.composer, out: self.out, now: self.now };
        Some((Rx(packet), tx))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        Some(Tx {
            wire: self.wire,
            key: self.key,
            isn: self.isn,
            composer: self.composer,
            out: self.out,
            now: self.now,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // Read once by `Interface::new`, which is given a device of its own; afterwards ignored.
        capabilities(SUPER_MTU, true)
    }
}

/// One packet from the guest.
pub struct Rx<'b>(&'b [u8]);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for one packet to the guest.
pub struct Tx<'b, O: Output> {
    wire: &'b mut Wire,
    key: &'b FlowKey,
    isn: &'b IsnClock,
    composer: &'b mut Composer,
    out: &'b mut O,
    now: Instant,
}

impl<O: Output> TxToken for Tx<'_, O> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let packet = &mut self.composer.packet_mut()[..len];
        let result = f(packet);
        let tcp_at = if packet[0] >> 4 == 6 { 40 } else { 20 };
        let Some(mut segment) = Segment::new(&mut packet[tcp_at..]) else {
            return result;
        };
        let offset = match self.wire.offset {
            Some(offset) => offset,
            None if segment.has(SYN) => {
                let offset = self.isn.start(self.key, self.now).wrapping_sub(segment.seq());
                self.wire.offset = Some(offset);
                offset
            }
            None => 0,
        };
        let seq = segment.seq().wrapping_add(offset);
        segment.set_seq(seq);
        let end = seq.wrapping_add(segment.sequence_len());
        if segment.has(SYN) || (end.wrapping_sub(self.wire.sent_end) as i32) > 0 {
            self.wire.sent_end = end;
            // Into a shut window smoltcp sends a byte that it does not count as sent.
            if segment.payload_len() != 1 || self.wire.window_of_guest > 0 {
                self.wire.flight_end = end;
            }
        }
        if segment.has(ACK) {
            self.wire.acked_to_guest = segment.ack();
        }
        if segment.has(SYN) {
            segment.window_scale(Some(TOLD_SHIFT));
        } else if self.wire.scale_of_guest.is_some() {
            // smoltcp rounds its window down anew with each acknowledgement, so the end of it moves back and forth by less than one
            // unit, and what a guest sent up to the farther end was cut off (seen: a few bytes sent again in some GiB, RFC
            // 7323, section 2.4). The nearer end is told.
            let unit = 1 << self.wire.own_shift;
            let room = (u32::from(segment.window()) * unit).saturating_sub(unit - 1);
            // What was promised stays promised: a share that has become smaller is come to as bytes arrive.
            let promised = self.wire.edge.wrapping_sub(segment.ack()) as i32;
            let window = room.min(self.wire.share.max(promised.max(0) as u32)) >> TOLD_SHIFT;
            self.wire.edge = segment.ack().wrapping_add(window << TOLD_SHIFT);
            segment.set_window(window as u16);
        }
        self.wire.window = segment.window();
        self.wire.bytes_to_guest += segment.payload_len() as u64;
        self.wire.packets_to_guest += 1;
        self.composer.send_tcp(len, self.wire.mss, self.out);
        result
    }
}
