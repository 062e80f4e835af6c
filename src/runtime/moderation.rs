//! How often a busy datagram socket is looked at: interrupt moderation, as network cards have it.
//!
//! Datagrams that come one by one, a few microseconds apart, cost one wake-up, one frame and one wake-up of the reader each, though
//! the guest's kernel would take them by the dozen (`host::gather`). So a socket at which many came lately is not watched, but
//! looked at every [`GATHER`], and what has gathered goes on together.
//!
//! ```text
//! watched ── MANY within LATELY ──► looked at every GATHER ── FEW or none gathered ──► watched
//! ```
//!
//! The price is [`GATHER`] of delay for a stream that has [`MANY`] datagrams in [`LATELY`] anyway; one that is slower never waits. Sans-I/O.

use smoltcp::time::{Duration, Instant};

/// How long datagrams gather. A socket's buffer at net.core.rmem_max holds some 180 of 1200 bytes: a millisecond at 200 000 a
/// second.
pub const GATHER: Duration = Duration::from_micros(60);
/// This many datagrams ...
const MANY: u32 = 40;
/// ... within this time are a stream.
const LATELY: Duration = Duration::from_millis(1);
/// Fewer than this in one look, and it is none any more.
const FEW: u32 = 2;

/// What is known of one socket.
#[derive(Clone, Copy, Debug)]
pub struct Moderation {
    since: Instant,
    lately: u32,
    gathers: bool,
}

/// How the socket is to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// As before.
    Same,
    /// Watch it again.
    Watch,
    /// Watch it no more, and look at it then.
    Leave(Instant),
    /// Look at it then; it is not watched.
    Look(Instant),
}

impl Moderation {
    /// Of a socket that is watched.
    pub fn new(now: Instant) -> Self {
        Self { since: now, lately: 0, gathers: false }
    }

    /// As [`Moderation::handle_look`], because epoll told of it. While datagrams gather that is an error's doing, and the next look is under way already:
    /// another for each would never end.
    pub fn handle_event(&mut self, now: Instant, taken: u32, more: bool) -> Attention {
        if self.gathers { Attention::Same } else { self.handle_look(now, taken, more) }
    }

    /// So many datagrams were taken; `more`: others wait.
    pub fn handle_look(&mut self, now: Instant, taken: u32, more: bool) -> Attention {
        if now - self.since > LATELY || now < self.since {
            self.since = now;
            self.lately = 0;
        }
        self.lately = self.lately.saturating_add(taken);
        if !self.gathers {
            if self.lately < MANY || more {
                return Attention::Same;
            }
            self.gathers = true;
            return Attention::Leave(now + GATHER);
        }
        if more {
            return Attention::Look(now);
        }
        if taken < FEW {
            self.gathers = false;
            self.lately = 0;
            return Attention::Watch;
        }
        Attention::Look(now + GATHER)
    }

    /// There is no way to wait for so short a time.
    pub fn give_up(&mut self) -> Attention {
        if std::mem::take(&mut self.gathers) { Attention::Watch } else { Attention::Same }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Instant {
        Instant::from_micros(micros)
    }

    #[test]
    fn a_slow_stream_is_watched() {
        let mut one = Moderation::new(at(0));
        // 30 000 a second.
        for n in 0..1000 {
            assert_eq!(one.handle_look(at(33 * n), 1, false), Attention::Same);
        }
    }

    #[test]
    fn a_fast_one_gathers_until_it_ends() {
        let mut one = Moderation::new(at(0));
        let left = (0..1000).find(|n| one.handle_look(at(5 * n), 1, false) != Attention::Same).expect("it is fast");
        assert!(left < 45, "{left}");
        let mut now = at(5 * left) + GATHER;
        for _ in 0..100 {
            assert_eq!(one.handle_look(now, 12, false), Attention::Look(now + GATHER));
            now += GATHER;
        }
        assert_eq!(one.handle_look(now, 64, true), Attention::Look(now), "what waits is not left to wait");
        assert_eq!(one.handle_look(now, 1, false), Attention::Watch);
        assert_eq!(one.handle_look(now, 1, false), Attention::Same);
    }

    #[test]
    fn an_error_meanwhile_brings_no_second_look() {
        let mut one = Moderation::new(at(0));
        assert_eq!(one.handle_event(at(0), 64, false), Attention::Leave(at(0) + GATHER));
        assert_eq!(one.handle_event(at(20), 3, false), Attention::Same);
        assert_eq!(one.handle_event(at(30), 64, true), Attention::Same);
        assert_eq!(one.handle_look(at(60), 9, false), Attention::Look(at(60) + GATHER));
        assert_eq!(one.handle_look(at(120), 0, false), Attention::Watch);
        assert_eq!(one.handle_event(at(130), 64, false), Attention::Leave(at(130) + GATHER));
    }

    #[test]
    fn a_backlog_is_worked_off_first() {
        let mut one = Moderation::new(at(0));
        assert_eq!(one.handle_look(at(0), 64, true), Attention::Same);
        assert_eq!(one.handle_look(at(10), 3, false), Attention::Leave(at(10) + GATHER));
        assert_eq!(one.give_up(), Attention::Watch);
        assert_eq!(one.give_up(), Attention::Same);
    }
}
