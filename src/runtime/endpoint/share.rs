//! What one endpoint has and takes, for [`super::super::fair`], and what its host sockets hold of flows that stand still.
//!
//! A flow stands still while bytes wait that its guest or its host does not take. Nothing is asked of it for [`FIRST`]: most go on before. What
//! the kernel takes meanwhile is beyond the bound: measured, of 400 flows that begin to stand still within two seconds, 155 MiB at 50 ms
//! and 210 at 200, where 90 or so were to be had.
//! Then its socket is asked what it holds in the kernel, and again as long as it stands; the stack charges it
//! (`stack::tcp::hoard`) and decides who gives way.

use std::os::fd::AsFd as _;
use std::time::Duration;

use smoltcp::time::Instant;

use super::Endpoint;
use crate::runtime::fair::{Held, Kind, Work};
use crate::sys::msg;

/// How long bytes wait for the guest or the host before their socket is asked what it holds in the kernel.
pub(super) const FIRST: Duration = Duration::from_millis(50);
/// … and how often from then on.
pub(super) const AUDIT: Duration = Duration::from_millis(200);

impl Endpoint {
    /// What it has of that which is bounded in all.
    pub fn holds(&self) -> Held {
        let (flows, datagrams, bytes) = self.stack.holds();
        Held { flows, datagrams, bytes }
    }

    /// Gives some of it for the others' sake; false if it has none.
    pub fn shed(&mut self, kind: Kind, now: Instant) -> bool {
        match kind {
            Kind::Flows => self.stack.shed_flow(now, &mut self.sockets),
            Kind::Datagrams => self.stack.shed_datagrams(),
            Kind::Bytes => self.stack.shed_bytes(now, &mut self.sockets),
        }
    }

    /// So many of its frames were wanted by nobody.
    pub fn handle_junk(&mut self, now: Instant, frames: u64) {
        if self.share.handle_junk(now, frames) {
            self.sockets.watch_tap(false);
        }
    }

    /// A part of what it had of this turn took so long.
    pub fn note_time(&mut self, nanos: u64) {
        self.nanos += nanos;
    }

    /// Its part in a turn is over, in which others were there, too (or not: then it is charged for nothing).
    pub fn charge(&mut self, now: Instant, contested: bool) {
        let all = (self.sockets.crossed, self.stack.dns_queries());
        let (before, asked) = std::mem::replace(&mut self.charged, all);
        let (nanos, connects) = (std::mem::take(&mut self.nanos), std::mem::take(&mut self.connects));
        let handed = std::mem::take(&mut self.handed);
        if !contested {
            return;
        }
        let crossed = all.0.since(&before);
        let work = Work {
            nanos,
            read: crossed.from_guest_packets + handed,
            frames: crossed.from_guest_packets + crossed.to_guest_packets + handed,
            bytes: crossed.from_guest_bytes + crossed.to_guest_bytes,
            questions: all.1 - asked,
            connects,
        };
        if self.share.charge(now, &work) {
            self.sockets.watch_tap(false);
        }
    }

    /// Asks the host sockets of flows that stand still what they hold.
    pub(super) fn audit(&mut self, now: Instant) {
        for (first, queued) in [(true, self.fresh.len()), (false, self.stalls.len())] {
            for _ in 0..queued {
                let all = if first { &mut self.fresh } else { &mut self.stalls };
                let Some((_, flow)) = all.front().copied().filter(|(at, _)| *at <= now) else { break };
                all.pop_front();
                let Some(socket) = self.sockets.tcp.get_mut(flow) else { continue };
                match socket.stalled {
                    None => socket.audited = false,
                    // It went on, and stands still again.
                    Some(since) if since + FIRST.into() > now => self.fresh.push_back((now + FIRST.into(), flow)),
                    Some(_) => {
                        self.stack.charge_tcp(flow, msg::memory(socket.fd.as_fd()));
                        self.stack.finish_tcp(flow, now, &mut self.sockets);
                        self.stalls.push_back((now + AUDIT.into(), flow));
                    }
                }
            }
        }
    }
}
