//! Faults on purpose, between one endpoint's TAP and everything behind it: delay, jitter, loss and a rate.
//!
//! ```text
//!  TAP ─► handle_frame(FromGuest) ─┬─ no rule is about it: Pass ───────────────► switch, stack
//!                                  └─ Taken: lost, overflowed, or held ─► poll_due(FromGuest) ─► switch, stack
//!  switch, stack ─► handle_frame(ToGuest) ─── the same ─────────────────► poll_due(ToGuest) ───► TAP
//! ```
//!
//! **Which rule.** A packet's peer is its destination on the way from the guest, its source on the way to it. Of the rules
//! that fit the peer and say anything of this direction the one with the longest prefix counts, alone; one without a target
//! is the shortest. ARP and neighbour discovery are the segment's own and always pass, and so does what is not IP.
//!
//! **What happens**, in this order, as along a line:
//!
//! 1. loss: a draw for each packet;
//! 2. rate: packets leave one after the other, each in the time that its Ethernet frame takes at that rate. The first leaves
//!    at once if the line is idle; there is no burst. A packet that finds more than [`Limits::line`] bytes waiting, or a second's
//!    worth if that is more, is dropped at the tail;
//! 3. latency and jitter: a draw for each packet. Without `reorder` none overtakes another of the same rule and direction, so one
//!    that would is held until the other has gone.
//!
//! A super-frame is cut first where loss or rate is set, so that these are of packets; delay alone holds it whole.
//!
//! **Replay.** Each rule and direction draws twice for each packet, whatever its shape, from a stream of its own. The same seed
//! and the same packets give the same faults; changing a latency does not change which packets are lost.
//!
//! **Bounds.** What is held in one direction is bounded in frames and bytes ([`Limits`]); beyond them packets are dropped at the
//! tail ([`DropReason::FaultQueue`]). What a shape holds goes on at once, in order, when that shape is changed or ends.
//!
//! **Several stacks.** Those of one endpoint ([`Faults::beside`]) hold their own frames, and share what is drawn, counted and when
//! each line is free ([`Shaping`]), so that 10 Mbit/s is 10 Mbit/s of all. That is behind a lock, the only one that a frame
//! may meet, for less than a microsecond, and only where a rule holds. In which order their packets draw is chance.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use smoltcp::time::Instant;

use super::verdict::{DropCounters, DropReason};
use crate::network::fault::{DIRECTIONS, Direction, Draws, Rule, Shape};
use crate::wire::segment;
use crate::wire::vnet::{Gso, IP_OFFSET, MAX_FRAME, VNET_HDR_LEN, VnetHdr};

/// Bounds of what is held, for each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Bytes that wait for a line of some rate, where a second's worth is not more.
    pub line: u64,
}

impl Default for Limits {
    /// 16 MiB: the windows of 16 busy TCP flows. 1.5 MB at a line: 1000 packets, the default of tc-netem(8), and more than the
    /// window of one flow.
    fn default() -> Self {
        Self { frames: 16_384, bytes: 16 << 20, line: 1_500_000 }
    }
}

impl Limits {
    /// What each of several may hold.
    #[must_use]
    pub fn share(self, count: usize) -> Self {
        let count = count.max(1);
        Self { frames: self.frames.div_ceil(count), bytes: self.bytes.div_ceil(count), ..self }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No rule is about it: it goes on as it is.
    Pass,
    /// It was dropped and counted, or comes by [`Faults::poll_due`], maybe at once.
    Taken,
}

/// What happened to packets of one rule and direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub packets: u64,
    /// Those that were held.
    pub delayed: u64,
    /// Those that were lost by chance.
    pub lost: u64,
    /// Those that found a queue full.
    pub overflowed: u64,
}

/// One rule in one direction.
#[derive(Debug)]
struct Lane {
    /// Names it to what is held.
    id: u32,
    shape: Shape,
    draws: Draws,
    /// When the line is idle again, picoseconds: a frame's time at some rate is seldom whole microseconds.
    free_at: u128,
    /// When the last packet is due.
    last: Instant,
    counts: Counts,
}

/// A rule at work.
#[derive(Debug)]
struct Active {
    rule: Rule,
    lanes: [Lane; 2],
}

/// A frame that is not due yet.
#[derive(Debug)]
struct Held {
    due: Instant,
    /// Order among those that are due together.
    number: u64,
    lane: u32,
    frame: Box<[u8]>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    /// The heap's greatest is what is due first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

/// What one direction holds.
#[derive(Debug, Default)]
struct Queue {
    heap: BinaryHeap<Held>,
    bytes: usize,
    number: u64,
}

impl Queue {
    fn has_room(&self, len: usize, limits: &Limits) -> bool {
        self.heap.len() < limits.frames && self.bytes + len <= limits.bytes
    }

    fn push(&mut self, due: Instant, lane: u32, frame: &[u8]) {
        self.number += 1;
        self.bytes += frame.len();
        self.heap.push(Held { due, number: self.number, lane, frame: frame.into() });
    }

    fn pop_due(&mut self, now: Instant) -> Option<Box<[u8]>> {
        if self.heap.peek()?.due > now {
            return None;
        }
        let held = self.heap.pop()?;
        self.bytes -= held.frame.len();
        Some(held.frame)
    }

    /// What that lane holds is due, in the order in which it would have been.
    fn release(&mut self, lane: u32, now: Instant) {
        let mut held = std::mem::take(&mut self.heap).into_sorted_vec();
        // Those due first come last.
        held.reverse();
        for (at, one) in held.iter_mut().enumerate() {
            if one.lane == lane {
                one.due = one.due.min(now);
            }
            one.number = at as u64;
        }
        self.number = held.len() as u64;
        self.heap = held.into();
    }
}

/// Rules at work: of one endpoint, whichever of its stacks has a packet.
#[derive(Debug, Default)]
pub struct Shaping {
    active: Vec<Active>,
    /// For each direction every network of every rule that says something of it, longest prefixes first, with the rule.
    nets: [Vec<(IpNet, usize)>; 2],
    /// The rule for everybody else.
    general: [Option<usize>; 2],
    last_lane: u32,
}

/// Shapes that ended: what they hold goes on.
#[derive(Clone, Debug, Default)]
pub struct Released(Vec<(usize, u32)>);

/// The faults of one stack.
#[derive(Debug)]
pub struct Faults {
    limits: Limits,
    shaping: Arc<Mutex<Shaping>>,
    queues: [Queue; 2],
    delayed: u64,
    /// Where super-frames are cut.
    scratch: Box<[u8]>,
}

fn lock(shaping: &Mutex<Shaping>) -> MutexGuard<'_, Shaping> {
    shaping.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shaping {
    fn set_rules(&mut self, rules: &[Rule], now: Instant) -> Released {
        let mut released = Released::default();
        let mut before = std::mem::take(&mut self.active);
        for rule in rules {
            let old = before.iter().position(|old| old.rule.key() == rule.key()).map(|at| before.swap_remove(at));
            let active = match old {
                Some(old) => changed(old, rule, now, &mut released),
                None => Active { rule: rule.clone(), lanes: DIRECTIONS.map(|to| self.lane(rule, to)) },
            };
            self.active.push(active);
        }
        for (queue, lane) in before.iter().flat_map(|old| old.lanes.iter().enumerate()) {
            released.0.push((queue, lane.id));
        }
        for direction in DIRECTIONS {
            let counts = |active: &&(usize, &Active)| !active.1.rule.shape(direction).is_nothing();
            let active: Vec<(usize, &Active)> = self.active.iter().enumerate().collect();
            let nets = active.iter().filter(counts).flat_map(|&(at, active)| {
                active.rule.to.iter().flat_map(move |to| to.nets.iter().map(move |&net| (net, at)))
            });
            let mut nets: Vec<(IpNet, usize)> = nets.collect();
            nets.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
            let general = active.iter().filter(counts).find(|(_, active)| active.rule.to.is_none());
            self.general[direction as usize] = general.map(|&(at, _)| at);
            self.nets[direction as usize] = nets;
        }
        released
    }

    fn lane(&mut self, rule: &Rule, direction: Direction) -> Lane {
        self.last_lane += 1;
        Lane {
            id: self.last_lane,
            shape: *rule.shape(direction),
            draws: Draws::new(rule.seed, direction as u64),
            free_at: 0,
            last: Instant::ZERO,
            counts: Counts::default(),
        }
    }

    fn rule_about(&self, peer: IpAddr, direction: usize) -> Option<usize> {
        let found = self.nets[direction].iter().find(|(net, _)| net.contains(&peer)).map(|&(_, rule)| rule);
        found.or(self.general[direction])
    }
}

fn changed(old: Active, rule: &Rule, now: Instant, released: &mut Released) -> Active {
    let Active { rule: before, mut lanes } = old;
    for (direction, lane) in DIRECTIONS.into_iter().zip(&mut lanes) {
        if (before.seed, before.restarts) != (rule.seed, rule.restarts) {
            lane.draws = Draws::new(rule.seed, direction as u64);
        }
        if lane.shape != *rule.shape(direction) {
            lane.shape = *rule.shape(direction);
            (lane.free_at, lane.last) = (0, now);
            released.0.push((direction as usize, lane.id));
        }
    }
    Active { rule: rule.clone(), lanes }
}

impl Faults {
    /// Without rules: everything passes.
    pub fn new(limits: Limits) -> Self {
        Self::beside(limits, Arc::default())
    }

    /// By the rules of others of the same endpoint ([`Faults::shaping`]).
    pub fn beside(limits: Limits, shaping: Arc<Mutex<Shaping>>) -> Self {
        let scratch = vec![0; MAX_FRAME].into_boxed_slice();
        Self { limits, shaping, queues: Default::default(), delayed: 0, scratch }
    }

    /// Goes by those rules from now on; what is held stays.
    pub fn join(&mut self, shaping: Arc<Mutex<Shaping>>) {
        self.shaping = shaping;
    }

    /// What its rules are and are at.
    pub fn shaping(&self) -> Arc<Mutex<Shaping>> {
        Arc::clone(&self.shaping)
    }

    /// These rules hold from now on, for all that share them; who those are is told what that ended ([`Faults::release`]). What a
    /// rule was before, if its name is the same, goes on: where chance is, when the line is free, and what it holds if its
    /// shape stays.
    pub fn set_rules(&mut self, rules: &[Rule], now: Instant) -> Released {
        let released = lock(&self.shaping).set_rules(rules, now);
        self.release(&released, now);
        released
    }

    /// What these shapes hold here is due.
    pub fn release(&mut self, released: &Released, now: Instant) {
        for &(queue, lane) in &released.0 {
            self.queues[queue].release(lane, now);
        }
    }

    /// Whether nothing is left to do: no rules, and nothing held.
    pub fn is_idle(&self) -> bool {
        lock(&self.shaping).active.is_empty() && self.queues.iter().all(|queue| queue.heap.is_empty())
    }

    /// Frames and bytes held in a direction.
    pub fn held(&self, direction: Direction) -> (usize, usize) {
        let queue = &self.queues[direction as usize];
        (queue.heap.len(), queue.bytes)
    }

    /// Packets that were held so far.
    pub fn delayed(&self) -> u64 {
        self.delayed
    }

    /// What happened, for each rule in the order in which they were set: from the guest, to the guest.
    pub fn counts(&self) -> Vec<[Counts; 2]> {
        lock(&self.shaping).active.iter().map(|active| [active.lanes[0].counts, active.lanes[1].counts]).collect()
    }

    /// When the next frame is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.queues.iter().filter_map(|queue| Some(queue.heap.peek()?.due)).min()
    }

    /// The next frame that is due in a direction.
    pub fn poll_due(&mut self, now: Instant, direction: Direction) -> Option<Box<[u8]>> {
        self.queues[direction as usize].pop_due(now)
    }

    /// A frame, vnet header first.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        direction: Direction,
        frame: &[u8],
        drops: &mut DropCounters,
    ) -> Verdict {
        let at = direction as usize;
        let Self { limits, shaping, queues, scratch, delayed } = self;
        let mut shaping = lock(shaping);
        let Some(rule) = peer(frame, direction).and_then(|peer| shaping.rule_about(peer, at)) else {
            return Verdict::Pass;
        };
        let (lane, queue) = (&mut shaping.active[rule].lanes[at], &mut queues[at]);
        let cut = lane.shape.loss.parts() > 0 || lane.shape.rate.is_some();
        let mut each = |frame: &[u8]| *delayed += u64::from(lane.handle(now, frame, queue, limits, drops));
        match VnetHdr::parse(frame) {
            // Whoever gets it can do what the vnet header wants of a piece if it could of the whole.
            Some(hdr) if cut && hdr.gso != Gso::None => {
                if segment::cut(frame, &hdr, true, scratch, &mut each).is_err() {
                    // What is wrong with it is found by whoever reads it.
                    each(frame);
                }
            }
            _ => each(frame),
        }
        Verdict::Taken
    }
}

impl Lane {
    /// One packet, or a super-frame that is held whole: true if it is held.
    fn handle(
        &mut self,
        now: Instant,
        frame: &[u8],
        queue: &mut Queue,
        limits: &Limits,
        drops: &mut DropCounters,
    ) -> bool {
        self.counts.packets += 1;
        // Both, always: see the module.
        let (loss, jitter) = (self.draws.hits(self.shape.loss), self.draws.below(2 * self.shape.jitter.micros() + 1));
        if loss {
            self.counts.lost += 1;
            drops.count(DropReason::FaultLoss);
            return false;
        }
        let start = picos(now);
        let mut leaves = start;
        if let Some(rate) = self.shape.rate {
            let bits = u128::from(rate.bits());
            let waits = self.free_at.saturating_sub(start) * bits / (8 * PICOS);
            if waits > u128::from(limits.line.max(rate.bits() / 8)) || !queue.has_room(frame.len(), limits) {
                return self.overflow(drops);
            }
            leaves = self.free_at.max(start) + (frame.len() - VNET_HDR_LEN) as u128 * 8 * PICOS / bits;
            self.free_at = leaves;
        } else if !queue.has_room(frame.len(), limits) {
            return self.overflow(drops);
        }
        // Not before it has left.
        let left = Instant::from_micros(leaves.div_ceil(PICOS / 1_000_000) as i64);
        let late = self.shape.latency.micros() + jitter - self.shape.jitter.micros();
        let mut due = left + smoltcp::time::Duration::from_micros(late);
        if !self.shape.reorder {
            due = due.max(self.last);
        }
        self.last = due;
        queue.push(due, self.id, frame);
        let held = due > now;
        self.counts.delayed += u64::from(held);
        held
    }

    fn overflow(&mut self, drops: &mut DropCounters) -> bool {
        self.counts.overflowed += 1;
        drops.count(DropReason::FaultQueue);
        false
    }
}

/// Picoseconds in a second.
const PICOS: u128 = 1_000_000_000_000;

fn picos(now: Instant) -> u128 {
    now.total_micros().max(0) as u128 * (PICOS / 1_000_000)
}

/// The other end of a packet; None for what is not IP, and for neighbour discovery.
fn peer(frame: &[u8], direction: Direction) -> Option<IpAddr> {
    let packet = frame.get(IP_OFFSET..)?;
    let to_peer = direction == Direction::FromGuest;
    match [frame[IP_OFFSET - 2], frame[IP_OFFSET - 1]] {
        [0x08, 0x00] => {
            let at = if to_peer { 16 } else { 12 };
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes).into())
        }
        [0x86, 0xdd] => {
            // ICMPv6, router solicitation (133) to redirect (137): RFC 4861, section 4.
            if *packet.get(6)? == 58 && matches!(packet.get(40), Some(133..=137)) {
                return None;
            }
            let at = if to_peer { 24 } else { 8 };
            let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
