//! Which flows give way when a bound is met, and what flows hold.
//!
//! **Who.** The longest idle: of all flows where there are too many, of those that hold bytes where these are too many.
//! Both are lazy heaps like the timers (`deadline`): an entry is as old as its flow once was, and is brought up to date when it
//! comes to the front. So a flow that lives costs one entry in each and nothing a frame.
//!
//! **What is held.** Of each ring no more pages than bytes went through it since the flow got it, so that much is charged;
//! and what the host socket holds in the kernel, which the runtime asks for of flows that stand still
//! ([`Tcp::charge`]), each byte of which counts as [`KERNEL`]. Idle, of a holder, is since the guest or the host last took a byte: window probes that are answered and
//! bytes that nobody takes keep no one young.
//!
//! **What happens.** The guest gets a reset, the host another, and it is counted: `table_full` for a place, `memory` for bytes. A
//! flow that has just been spoken of keeps its place (a SYN beyond the bound is dropped instead), but not its bytes: those must end
//! somewhere.

use std::collections::VecDeque;

use smoltcp::time::Instant;

use super::Tcp;
use super::flow::{Phase, TcpFlow};
use super::rest::REST;
use crate::stack::Output;
use crate::stack::arena::Id;
use crate::stack::compose::{BareTcp, Composer};
use crate::stack::verdict::DropReason;
use crate::wire::tcp_segment::{ACK, RST};

/// Entries brought up to date to find one that gives way; then the oldest of these does.
const LOOKS: usize = 64;
/// What a byte in the kernel counts as. All connections of the machine share that memory, a sixteenth of it before the kernel feels
/// pressed (net.ipv4.tcp_mem, tcp_init in net/ipv4/tcp.c), and what is pressed is everybody's.
const KERNEL: usize = 4;
/// Stale entries that are not worth a sweep.
const STALE: usize = 1024;

/// Flows in a phase of which there may be so many, oldest first.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<Id>);

impl Waiting {
    /// One more; those that have gone on (`waits` is false) are swept out now and then.
    pub fn push(&mut self, id: Id, bound: usize, waits: impl Fn(Id) -> bool) {
        self.0.push_back(id);
        if self.0.len() > 2 * bound + 2 {
            self.0.retain(|&id| waits(id));
        }
    }

    /// The oldest that still waits.
    pub fn pop(&mut self, waits: impl Fn(Id) -> bool) -> Option<Id> {
        std::iter::from_fn(|| self.0.pop_front()).find(|&id| waits(id))
    }
}

/// Bytes that a flow's rings may have touched, and what its host socket holds.
fn charge(flow: &TcpFlow) -> usize {
    let rings = flow.socket.as_ref().map_or(0, |socket| {
        let through = |now: u64, base: u64, waits: usize| ((now - base) as usize + waits).min(socket.ring());
        through(flow.traffic.to_guest_bytes, flow.bases[0], 0)
            + through(flow.traffic.from_guest_bytes, flow.bases[1], socket.get().recv_queue())
    });
    rings + flow.kernel
}

impl Tcp {
    /// What all flows hold: their number, and bytes in rings and host sockets.
    pub fn holds(&self) -> (usize, usize) {
        (self.flows.len(), self.held)
    }

    /// The host socket of a flow that stands still holds this much in the kernel.
    pub fn charge(&mut self, id: Id, kernel: usize) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.kernel = KERNEL * kernel;
        }
        self.weigh(id);
    }

    /// Notes a new flow among those that may give way.
    pub(super) fn rank(&mut self, id: Id, now: Instant) {
        let Self { idle, holders, flows, .. } = self;
        if let Some(flow) = flows.get_mut(id) {
            idle.arm(id, now, &mut flow.ranked_idle);
        }
        for heap in [idle, holders] {
            if heap.len() > 2 * flows.len() + STALE {
                heap.retain(|id| flows.get(id).is_some());
            }
        }
    }

    /// Brings up to date what a flow holds, and whether anything of it was taken.
    pub(super) fn weigh(&mut self, id: Id) {
        let (latest, limit) = (self.latest, self.limits.held);
        let Self { flows, holders, held, rings, .. } = self;
        let Some(flow) = flows.get_mut(id) else { return };
        let waits = flow.tcp().map_or(0, |tcp| tcp.send_queue() as u64);
        let delivered = (flow.traffic.to_guest_bytes + flow.traffic.from_guest_bytes).wrapping_sub(waits);
        if delivered != flow.delivered {
            flow.delivered = delivered;
            flow.progress = latest;
        }
        let charge = charge(flow);
        *held = *held - flow.charge + charge;
        flow.charge = charge;
        if charge > 0 && flow.ranked_holder.is_none() {
            holders.arm(id, flow.progress, &mut flow.ranked_holder);
        }
        rings.tight = *held > limit / 2;
    }

    /// Ends flows until what they hold is within the bound again.
    pub(super) fn shed_over(&mut self, now: Instant, composer: &mut Composer, out: &mut impl Output) {
        while self.held > self.limits.held && self.shed_held(now, composer, out) {}
    }

    /// Ends the flow that holds something and of which nothing was taken for the longest time; false if none holds any.
    pub fn shed_held(&mut self, now: Instant, composer: &mut Composer, out: &mut impl Output) -> bool {
        let mut oldest: Option<(Instant, Id)> = None;
        for _ in 0..LOOKS {
            let Some((at, id)) = self.holders.pop_earliest() else { break };
            let Some(flow) = self.flows.get_mut(id).filter(|flow| flow.ranked_holder == Some(at)) else { continue };
            flow.ranked_holder = None;
            if flow.charge == 0 {
                continue;
            }
            let since = flow.progress;
            // Two are older than all that were not looked at, and one of them is the older.
            let later = match oldest {
                Some((first, _)) if first <= since => Some((since, id)),
                _ => oldest.replace((since, id)),
            };
            if let Some((at, id)) = later
                && let Some(flow) = self.flows.get_mut(id)
            {
                self.holders.arm(id, at, &mut flow.ranked_holder);
            }
            if since <= at {
                break;
            }
        }
        let Some((_, id)) = oldest else { return false };
        self.give_way(id, DropReason::Memory, now, composer, out);
        true
    }

    /// The flow that carried nothing for the longest time. Without `any`, only if it is idle.
    pub(super) fn longest_idle(&mut self, now: Instant, any: bool) -> Option<Id> {
        let mut oldest: Option<(Instant, Id)> = None;
        for _ in 0..LOOKS {
            let Some((at, id)) = self.idle.pop_earliest() else { break };
            let Some(flow) = self.flows.get_mut(id).filter(|flow| flow.ranked_idle == Some(at)) else { continue };
            flow.ranked_idle = None;
            let since = flow.last;
            self.idle.arm(id, since, &mut flow.ranked_idle);
            if oldest.is_none_or(|(first, _)| since < first) {
                oldest = Some((since, id));
            }
            if since <= at {
                break;
            }
        }
        oldest.filter(|&(since, _)| any || since + REST <= now).map(|(_, id)| id)
    }

    /// Ends the flow that carried nothing for the longest time; false if there is none.
    pub fn shed_idle(&mut self, now: Instant, composer: &mut Composer, out: &mut impl Output) -> bool {
        let Some(id) = self.longest_idle(now, true) else { return false };
        self.give_way(id, DropReason::TableFull, now, composer, out);
        true
    }

    /// Ends a flow for others' sake.
    pub(super) fn give_way(
        &mut self,
        id: Id,
        reason: DropReason,
        now: Instant,
        composer: &mut Composer,
        out: &mut impl Output,
    ) {
        composer.drops.count(reason);
        if let Some(flow) = self.flows.get(id)
            && flow.phase != Phase::Connecting
        {
            // Where the guest has not seen all that was sent, it asks (RFC 5961, section 3.2), and is told again.
            let fields =
                BareTcp { seq: flow.wire.sent_end, ack: flow.wire.acked_to_guest, flags: RST | ACK, window: 0 };
            composer.send_tcp_bare(flow.key.peer(), flow.key.guest(), fields, out);
        }
        self.remove(id, now, false);
    }
}
