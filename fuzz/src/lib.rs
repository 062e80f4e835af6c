//! What the targets share: a reader of their input. Each target says in its head what its bytes mean, so that a seed can
//! be written by hand and captured traffic can be turned into one (`fuzz/seeds.py`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is left of an input. Reading beyond its end gives zeros, and nothing of that has a meaning that costs anything.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    pub fn bit(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Big-endian, as on the wire.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn long(&mut self) -> u32 {
        u32::from(self.word()) << 16 | u32::from(self.word())
    }

    /// At most `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        self.0.split_off(..count.min(self.0.len())).unwrap_or_default()
    }

    /// A length and as many bytes.
    pub fn block(&mut self) -> &'a [u8] {
        let length = self.word();
        self.take(length.into())
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// One of `all`.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    pub fn address(&mut self, v6: bool) -> IpAddr {
        if v6 { Ipv6Addr::from(self.array::<16>()).into() } else { Ipv4Addr::from(self.array::<4>()).into() }
    }
}

/// How the kinds of ICMP errors are chosen.
pub fn icmp_error(input: &mut Input<'_>) -> tapway::wire::icmp_error::IcmpError {
    use tapway::wire::icmp_error::IcmpError::*;
    match input.byte() % 10 {
        0 => NetUnreachable,
        1 => HostUnreachable,
        2 => ProtocolUnreachable,
        3 => PortUnreachable,
        4 => FragmentationNeeded { mtu: input.long() },
        5 => NetProhibited,
        6 => HostProhibited,
        7 => AdminProhibited,
        8 => HopLimitExceeded,
        _ => ReassemblyTimeout,
    }
}
