//! Datagrams that were received one after the other, made one: the guest's kernel takes up to 64 KiB of them in one frame
//! (UDP segmentation, `TUN_F_USO4`), and what a frame costs is paid once.
//!
//! Only what is there already: nothing is waited for. One run has datagrams of one sender for one address, all of one size but the
//! last, which may be shorter. What the kernel has coalesced already (UDP_GRO) is part of it.

use crate::sys::msg::Received;

/// Bytes of a run: with headers they are an IP packet.
const MAX_RUN: usize = 65_000;
/// Datagrams of a run (UDP_MAX_SEGMENTS, include/linux/udp.h, before Linux 6.9).
const MAX_DATAGRAMS: usize = 64;

/// A run, in the buffer where its datagrams lie one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    first: Received,
    size: usize,
    len: usize,
    /// The last datagram was shorter.
    closed: bool,
}

impl Run {
    /// Begins with what was received.
    pub fn begin(got: Received) -> Self {
        let size = got.segment.map_or(got.len, usize::from);
        Self { first: got, size, len: got.len, closed: got.len == 0 || size == 0 || !got.len.is_multiple_of(size) }
    }

    /// Bytes in the buffer.
    pub fn bytes(&self) -> usize {
        self.len
    }

    /// Takes what was received behind it in the buffer, if it belongs to it.
    pub fn take(&mut self, got: &Received) -> bool {
        let size = got.segment.map_or(got.len, usize::from);
        let fits = !self.closed
            && got.len > 0
            && (size == self.size || (size < self.size && got.len <= size))
            && (got.from, got.local, got.ttl) == (self.first.from, self.first.local, self.first.ttl)
            && self.len + got.len <= MAX_RUN
            && (self.len + got.len).div_ceil(self.size) <= MAX_DATAGRAMS;
        if fits {
            self.len += got.len;
            self.closed = size < self.size || !got.len.is_multiple_of(size);
        }
        fits
    }

    /// What arrived, as one: the length is that of all, the segment what each has but the last.
    pub fn received(&self) -> Received {
        let segment = if self.len > self.size { u16::try_from(self.size).ok() } else { None };
        Received { len: self.len, segment, ..self.first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(len: usize, segment: Option<u16>, port: u16) -> Received {
        let from = ([192, 0, 2, 1], port).into();
        Received { len, from, segment, ttl: Some(64), local: None, truncated: false }
    }

    /// What becomes of these, one after the other: length and segment of each run.
    fn runs(all: &[Received]) -> Vec<(usize, Option<u16>)> {
        let mut runs: Vec<Run> = Vec::new();
        for got in all {
            if !runs.last_mut().is_some_and(|run| run.take(got)) {
                runs.push(Run::begin(*got));
            }
        }
        runs.iter().map(|run| (run.received().len, run.received().segment)).collect()
    }

    #[test]
    fn equals_go_together_and_a_shorter_one_ends_it() {
        let (one, short) = (got(1200, None, 1), got(7, None, 1));
        assert_eq!(runs(&[one]), [(1200, None)]);
        assert_eq!(runs(&[one, one, one]), [(3600, Some(1200))]);
        assert_eq!(runs(&[one, one, short, one, one]), [(2407, Some(1200)), (2400, Some(1200))]);
        // A longer one begins anew.
        assert_eq!(runs(&[short, one]), [(7, None), (1200, None)]);
        // Another sender, another address.
        assert_eq!(runs(&[one, got(1200, None, 2), one]), [(1200, None); 3]);
        let elsewhere = Received { local: Some([127, 0, 0, 1].into()), ..one };
        assert_eq!(runs(&[one, elsewhere]), [(1200, None); 2]);
    }

    #[test]
    fn what_the_kernel_coalesced_is_part_of_it() {
        let (whole, cut) = (got(2400, Some(1200), 1), got(2500, Some(1200), 1));
        assert_eq!(runs(&[whole, got(1200, None, 1)]), [(3600, Some(1200))]);
        assert_eq!(runs(&[whole, cut, whole]), [(4900, Some(1200)), (2400, Some(1200))]);
        assert_eq!(runs(&[got(1200, None, 1), whole]), [(3600, Some(1200))]);
        // Several that are shorter are no end.
        assert_eq!(runs(&[whole, got(200, Some(100), 1)]), [(2400, Some(1200)), (200, Some(100))]);
    }

    #[test]
    fn runs_are_bounded_and_empty_datagrams_are_alone() {
        let many = runs(&[got(1400, None, 1); 100]);
        assert_eq!(many, [(64_400, Some(1400)), (64_400, Some(1400)), (11_200, Some(1400))]);
        assert_eq!(runs(&[got(10, None, 1); 65]), [(640, Some(10)), (10, None)]);
        assert_eq!(runs(&[got(0, None, 1), got(0, None, 1), got(5, None, 1), got(0, None, 1)]).len(), 4);
        assert_eq!(runs(&[got(65_507, None, 1); 2]).len(), 2);
    }
}
