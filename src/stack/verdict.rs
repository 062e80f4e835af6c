//! Why a frame did not go on. Every refusal has a stable name and a counter; nothing is dropped without one.

/// Reasons for which a frame from the guest, or a datagram from the host, is dropped.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why something was dropped. The name is stable: it is what `info`, metrics and logs show.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// All reasons, in declaration order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// Stable name, snake_case.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers say.
    Truncated = "truncated",
    /// A header field contradicts another (lengths, versions, offsets).
    Malformed = "malformed",
    /// EtherType that we do not carry.
    EtherType = "ether_type",
    /// Not for the gateway's MAC, broadcast or multicast.
    NotForUs = "not_for_us",
    /// Source MAC or address is not the endpoint's own.
    SpoofedSource = "spoofed_source",
    /// The family is switched off for this endpoint.
    FamilyOff = "family_off",
    /// IP protocol that we do not carry.
    Protocol = "protocol",
    /// Multicast or broadcast that nothing here answers.
    Multicast = "multicast",
    /// Bad checksum.
    Checksum = "checksum",
    /// Policy refuses the destination.
    Refused = "refused",
    /// TTL or hop limit ran out here.
    HopLimit = "hop_limit",
    /// TCP segment of no known flow.
    NoFlow = "no_flow",
    /// A table or queue of this endpoint is full.
    TableFull = "table_full",
    /// Fragment that could not be kept (bounds, overlap, time).
    Fragment = "fragment",
    /// A host socket could not be made or used.
    HostSocket = "host_socket",
    /// The TAP did not take the frame.
    Link = "link",
    /// A datagram from the host that no mapping wants.
    NoMapping = "no_mapping",
    /// Larger than can be carried.
    TooBig = "too_big",
    /// For a guest that nobody has seen and that does not answer, or more than is held for one.
    Unresolved = "unresolved",
    /// A flow that ended because flows hold as many bytes as they may.
    Memory = "memory",
    /// For a MAC or address that no member of the network has.
    NoMember = "no_member",
    /// Between members of a network that keeps them apart.
    Isolated = "isolated",
    /// More answers (ICMP errors, resets, echo) or copies to everybody than the rate allows.
    RateLimited = "rate_limited",
    /// Lost on purpose (`stack::fault`).
    FaultLoss = "fault_loss",
    /// More than is held of what is delayed or slowed on purpose.
    FaultQueue = "fault_queue",
    /// For the first thread of several (`runtime::lanes`), which did not keep up.
    HandOver = "hand_over",
}

/// A counter for each [`DropReason`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Counts one.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }

    /// Counts several of one reason.
    pub fn count_all(&mut self, reason: DropReason, how_many: u64) {
        self.0[reason as usize] += how_many;
    }

    /// Everything that was dropped, but by a link or lane that took no more: what the guest should not have sent.
    pub fn junk(&self) -> u64 {
        self.0.iter().sum::<u64>() - self.get(DropReason::Link) - self.get(DropReason::HandOver)
    }

    /// The count of one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason that occurred, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&r| (r, self.get(r))).filter(|&(_, n)| n > 0)
    }
}
