//! Fragments in any order and of any kind into the reassembler, while time passes.
//!
//! Input: a byte (bits 0-1: how tight the limits are), then for each step: a byte, whose upper half is how much time
//! passes (2^n ms, 0: none) and whose lower half says what comes:
//!
//! | lower half | what |
//! |---|---|
//! | 0 | a packet as it stands: length (2), bytes |
//! | 1 | an IPv4 fragment: identification (1), offset / 8 (2), flags (1; bit 0: more), length (2) of a pattern |
//! | 2 | the same of IPv6 |
//! | other | a whole datagram of IPv4 (odd) or IPv6, cut by us at a step of (1) * 8 bytes, given in an order (1) |
//!
//! What must hold: the limits; a datagram cut by us comes back as it was; in the end nothing is held.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smoltcp::time::{Duration, Instant};
use tapway::stack::reassembly::{Limits, Outcome, Reassembler};
use tapway::wire::{csum, fragment};
use tapway_fuzz::Input;

fn packet(v6: bool, ident: u32, offset: usize, more: bool, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if v6 {
        out.extend([0x60, 0, 0, 0]);
        out.extend(((data.len() + 8) as u16).to_be_bytes());
        out.extend([44, 64]);
        out.extend([0xfd; 32]);
        out.extend([17, 0]);
        out.extend((offset as u16 & 0xfff8 | u16::from(more)).to_be_bytes());
        out.extend(ident.to_be_bytes());
    } else {
        out.extend([0x45, 0]);
        out.extend(((data.len() + 20) as u16).to_be_bytes());
        out.extend((ident as u16).to_be_bytes());
        out.extend(((offset / 8) as u16 & 0x1fff | if more { 0x2000 } else { 0 }).to_be_bytes());
        out.extend([64, 17, 0, 0, 10, 0, 2, 100, 192, 0, 2, 7]);
        let sum = csum::plain(&out);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    out.extend(data);
    out
}

fn pattern(length: usize, at: usize) -> Vec<u8> {
    (at..at + length).map(|at| (at / 3) as u8).collect()
}

struct Held {
    reassembler: Reassembler,
    limits: Limits,
    now: Instant,
}

impl Held {
    /// Gives one packet; the whole datagram if that made one.
    fn give(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let whole = match self.reassembler.handle(self.now, packet) {
            Outcome::Complete(whole) => Some(whole.to_vec()),
            Outcome::NotAFragment | Outcome::Pending | Outcome::Drop(_) => None,
        };
        let (datagrams, bytes) = self.reassembler.held();
        assert!(datagrams <= self.limits.datagrams && bytes <= self.limits.bytes, "{datagrams} and {bytes} are held");
        assert!(datagrams == 0 || self.reassembler.next_timeout().is_some(), "held for ever");
        if let Some(whole) = &whole {
            let length = match whole[0] >> 4 {
                4 => usize::from(u16::from_be_bytes([whole[2], whole[3]])),
                _ => 40 + usize::from(u16::from_be_bytes([whole[4], whole[5]])),
            };
            assert_eq!(length, whole.len(), "its length");
            assert!(whole[0] >> 4 == 6 || csum::plain_ok(&whole[..usize::from(whole[0] & 15) * 4]));
        }
        whole
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let limits = match input.byte() & 3 {
        0 => Limits::default(),
        1 => Limits { datagrams: 2, bytes: 70_000, ..Limits::default() },
        2 => Limits { datagrams: 4, bytes: 3000, ..Limits::default() },
        _ => Limits { datagrams: 0, bytes: 0, ..Limits::default() },
    };
    let mut held = Held { reassembler: Reassembler::new(limits), limits, now: Instant::from_secs(100) };
    // Whether something came that may have any datagram's name.
    let mut any = false;
    for number in 0..200 {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        if step >> 4 > 0 {
            held.now += Duration::from_millis(1 << (step >> 4));
            held.reassembler.handle_timeout(held.now, &mut |first| assert!(first.len() >= 20));
        }
        match step & 15 {
            0 => {
                any = true;
                held.give(input.block());
            }
            kind @ 1..=2 => {
                let (ident, offset) = (input.byte() & 3, usize::from(input.word() & 0x1fff) * 8);
                let (more, length) = (input.bit(), usize::from(input.word()));
                let room = 65_535 - 48;
                held.give(&packet(kind == 2, ident.into(), offset, more, &pattern(length.min(room), offset)));
            }
            kind => {
                let v6 = kind & 1 == 0;
                let (step, order, length) =
                    (usize::from(input.byte()).max(1) * 8, input.byte(), usize::from(input.word() % 4000));
                let mut whole = packet(v6, 0, 0, false, &pattern(length, 0));
                if v6 {
                    // Without the fragment header.
                    whole.drain(40..48);
                    whole[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                    whole[6] = 17;
                }
                let mtu = step + if v6 { 48 } else { 20 };
                let mut pieces = Vec::new();
                let mut scratch = vec![0; 70_000];
                fragment::split(&whole, mtu, 0x7700 + number, &mut |piece| pieces.push(piece.to_vec()), &mut scratch);
                if pieces.len() > 1 {
                    let count = pieces.len();
                    pieces.rotate_left(usize::from(order & 15) % count);
                    if order & 16 != 0 {
                        pieces.reverse();
                    }
                    let mut done = None;
                    for piece in &pieces {
                        done = done.or(held.give(piece));
                    }
                    let fits = length + 2000 < limits.bytes && limits.datagrams > 0;
                    if fits && count <= 64 && !any {
                        let mut done =
                            done.unwrap_or_else(|| panic!("{count} fragments of {length} do not make it whole"));
                        if !v6 {
                            // Its number is the fragments'.
                            done[4..6].copy_from_slice(&whole[4..6]);
                            done[10..12].copy_from_slice(&whole[10..12]);
                        }
                        assert_eq!(done, whole);
                    }
                }
            }
        }
    }
    for _ in 0..300 {
        let Some(at) = held.reassembler.next_timeout() else { break };
        held.now = held.now.max(at);
        held.reassembler.handle_timeout(held.now, &mut |_| ());
    }
    assert_eq!(held.reassembler.held(), (0, 0));
    assert!(held.reassembler.next_timeout().is_none(), "timers without end");
});
