//! Further threads of the data plane: one for each queue that a TAP has beside its first (`IFF_MULTI_QUEUE`).
//!
//! ```text
//!  guest's kernel, by a hash of addresses and ports
//!     │ queue 0            │ queue 1                                   │ queue 2
//!     ▼                    ▼                                           ▼
//!  lane 0: everything   lane 1: TCP flows that the guest begins     lane 2: the same
//!     ▲                    │ anything else: a copy                     │
//!     └──── [Inbox] ◄──────┴──────────── [HandOver] ◄──────────────────┘
//! ```
//!
//! A lane is an engine of its own: epoll, endpoints with a stack each, host sockets, timers. What lanes share of an endpoint is
//! where its captures go and what its faults draw; neither is there without the user's wish. The kernel
//! pins flows: it sends what the guest sends to the queue that its flow was last answered by, and where it does not know (nothing
//! for three seconds: `TUN_FLOW_EXPIRE`, drivers/net/tun.c) to that which the hash says. A flow that the guest begins is
//! where the hash says from its first segment, so its frames never change lanes.
//!
//! **What goes to lane 0.** All but whole TCP segments ([`Stack::owns`](crate::stack::Stack::owns)): a guest's UDP port is one mapping whomever it
//! sends to, the switch of a network is one, and so are ARP, DHCP and echo. Published ports are served there too: their
//! flows the kernel knows only from our answers. Once lane 0 has answered, the kernel sends the next frames of that flow to it, so
//! handing over is for first frames and for what is never answered. It costs a copy and, if lane 0 sleeps, a wake-up.
//!
//! **Limits.** [`MAX_QUEUES`]; frames on their way from each lane ([`PARCELS`]), and beyond that they are dropped as
//! `hand_over`, as the queue of the TAP would drop them; an endpoint's bounds are divided among its lanes. Lanes are made when the
//! first endpoint needs them, and stay.
//!
//! **Deliberately not**: an endpoint does not get queues while it lives, and nothing moves a flow.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant as Clock;

use nix::sys::epoll::Epoll;
use nix::sys::eventfd::EventFd;
use smoltcp::time::Instant;
use tokio::sync::{mpsc, oneshot};

use super::command::{AttachError, DataPlane, Order, Orders};
use super::control::DnsQuery;
use super::endpoint::{Endpoint, Parts};
use super::engine::{Engine, first_captures, seed};
use super::fair::Totals;
use super::{RuntimeError, system};
use crate::network::config::{MAX_QUEUES, Turns};
use crate::network::fault::Rules;
use crate::stack::Limits;
use crate::stack::arena::Id;
use crate::stack::census::Lane;
use crate::wire::vnet::MAX_FRAME;

/// Frames on their way from one lane to the first: as many as one reads in a turn.
const PARCELS: usize = 64;
/// Stack of a lane's thread: address space, of which what is used is had; frames and datagrams are on the heap.
const STACK: usize = 1024 * 1024;

/// What comes to the first lane.
#[derive(Debug)]
pub enum Parcel {
    /// A frame of a guest's that is not its own queue's.
    Frame {
        /// Whose.
        of: Id,
        /// It, vnet header first.
        frame: Vec<u8>,
        /// Where the buffer goes when it is done with.
        back: SyncSender<Vec<u8>>,
    },
    /// A lane has ended, which it never should: so does the process.
    Failed(RuntimeError),
}

impl Parcel {
    /// Whether it is a frame of this guest's.
    pub fn is_of(&self, id: Id) -> bool {
        matches!(self, Self::Frame { of, .. } if *of == id)
    }

    /// It is of nobody who is here: its buffer is free again.
    pub fn give_back(self) {
        if let Self::Frame { frame, back, .. } = self {
            let _ = back.try_send(frame);
        }
    }
}

/// A lane's way to the first. Buffers go round, so that nothing is allocated; the last used is the next, so that those never
/// needed are never touched.
#[derive(Debug)]
pub struct HandOver {
    to: SyncSender<Parcel>,
    wake: Arc<EventFd>,
    spare: Vec<Vec<u8>>,
    back: Receiver<Vec<u8>>,
    returns: SyncSender<Vec<u8>>,
    given: bool,
}

impl HandOver {
    fn new(to: SyncSender<Parcel>, wake: Arc<EventFd>) -> Self {
        let (returns, back) = sync_channel(PARCELS);
        let spare = (0..PARCELS).map(|_| Vec::with_capacity(MAX_FRAME)).collect();
        Self { to, wake, spare, back, returns, given: false }
    }

    /// Copies a frame; false if there is no room for it.
    pub fn give(&mut self, of: Id, frame: &[u8]) -> bool {
        if self.spare.is_empty() {
            self.spare.extend(self.back.try_iter());
        }
        let Some(mut copy) = self.spare.pop() else { return false };
        copy.clear();
        copy.extend_from_slice(frame);
        self.given = true;
        // It holds what all lanes have buffers for.
        self.to.try_send(Parcel::Frame { of, frame: copy, back: self.returns.clone() }).is_ok()
    }

    /// At the end of a turn: wakes the first lane if it was given anything.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.given) {
            // The counter cannot overflow: it is read whenever it is not zero.
            let _ = self.wake.write(1);
        }
    }
}

/// The first lane's end.
#[derive(Debug)]
pub struct Inbox(Receiver<Parcel>);

impl Inbox {
    /// What came, oldest first, and no more than can have been on its way at once.
    pub fn all(&self) -> impl Iterator<Item = Parcel> + '_ {
        self.0.try_iter().take(PARCELS * usize::from(MAX_QUEUES.get()))
    }
}

/// Further lanes, and what one more is made of.
pub struct Lanes {
    running: Vec<(Orders, Arc<Epoll>)>,
    first: SyncSender<Parcel>,
    wake: Arc<EventFd>,
    ask: mpsc::Sender<DnsQuery>,
    since: Clock,
    totals: Totals,
    turns: Option<&'static Turns>,
}

/// One endpoint, ready to be served: on the first lane, then on each further one.
pub struct Laned {
    /// The way to all.
    pub plane: DataPlane,
    /// The whole one.
    pub first: Box<Endpoint>,
    /// Those with TCP alone, each with the lane that it is for.
    pub further: Vec<(Orders, Box<Endpoint>)>,
}

/// What [`Lanes::endpoint`] needs beside [`Parts`].
pub struct Place {
    /// The first lane.
    pub orders: Orders,
    /// Its epoll.
    pub epoll: Arc<Epoll>,
    /// Further queues of the TAP.
    pub queues: Vec<OwnedFd>,
    /// How many published ports the first lane is told of before it starts.
    pub listeners: usize,
    /// The file of the run's capture.
    pub pcap: Option<OwnedFd>,
    /// The data plane's time.
    pub now: Instant,
}

impl Lanes {
    /// Also returns the first lane's end. `wake` wakes it.
    pub fn new(ask: mpsc::Sender<DnsQuery>, wake: Arc<EventFd>, since: Clock, totals: Totals) -> (Self, Inbox) {
        let (first, inbox) = sync_channel(PARCELS * usize::from(MAX_QUEUES.get()));
        (Self { running: Vec::new(), first, wake, ask, since, totals, turns: None }, Inbox(inbox))
    }

    /// Where each notes whose turn it is.
    pub fn tell_turns(&mut self, turns: &'static Turns) {
        self.turns = Some(turns);
    }

    /// How many there are with the first.
    pub fn count(&self) -> usize {
        self.running.len() + 1
    }

    /// Those beside the first.
    pub fn further(&self) -> impl Iterator<Item = &Orders> {
        self.running.iter().map(|(orders, _)| orders)
    }

    fn start_one(&mut self) -> Result<(), RuntimeError> {
        let hand = HandOver::new(self.first.clone(), Arc::clone(&self.wake));
        let number = self.count();
        let turn = self.turns.and_then(|turns| turns.get(number));
        let (engine, orders, epoll) = Engine::further(hand, self.since, self.totals.clone(), turn)?;
        let (first, wake) = (self.first.clone(), Arc::clone(&self.wake));
        std::thread::Builder::new()
            .name(format!("data-{number}"))
            .stack_size(STACK)
            .spawn(move || {
                if let Err(error) = engine.run() {
                    let _ = first.send(Parcel::Failed(error));
                    let _ = wake.write(1);
                }
            })
            .map_err(system("start a further thread of the data plane"))?;
        self.running.push((orders, epoll));
        Ok(())
    }

    /// Makes what serves an endpoint, and the lanes that it needs.
    pub fn endpoint(&mut self, parts: Parts, limits: Limits, place: Place) -> Result<Laned, RuntimeError> {
        let Place { orders, epoll, queues, listeners, pcap, now } = place;
        if queues.len() >= usize::from(MAX_QUEUES.get()) {
            return Err(RuntimeError::Protocol("the TAP has more queues than are served"));
        }
        while self.running.len() < queues.len() {
            self.start_one()?;
        }
        let count = queues.len() + 1;
        let lanes: Vec<_> = self.running.iter().take(queues.len()).cloned().collect();
        let further = lanes.iter().map(|(orders, _)| orders.clone()).collect();
        let plane = DataPlane::of(orders, further, parts.id, listeners);
        let captures = first_captures(&plane, pcap);
        let mut beside = Vec::new();
        for (at, ((orders, epoll), tap)) in lanes.into_iter().zip(queues).enumerate() {
            let parts = Parts {
                id: parts.id,
                config: parts.config.clone(),
                tap,
                captures: captures.clone(),
                flows: parts.flows.clone(),
                queries: self.ask.clone(),
                faults: Rules::default(),
                rules: parts.rules,
                shared: None,
                lane: (Lane(at as u8 + 1), count),
            };
            beside.push((orders, Box::new(Endpoint::new(parts, limits, seed()?, now, epoll))));
        }
        let parts = Parts { captures, lane: (Lane::default(), count), ..parts };
        let first = Box::new(Endpoint::new(parts, limits, seed()?, now, epoll));
        for (_, endpoint) in &mut beside {
            endpoint.sockets.share_faults(first.sockets.shaping());
        }
        Ok(Laned { plane, first, further: beside })
    }
}

impl Laned {
    /// Has the further lanes serve it; the first is the caller's. Not from within the control plane's runtime.
    pub fn serve_further(self) -> Result<(DataPlane, Box<Endpoint>), RuntimeError> {
        for (orders, endpoint) in self.further {
            let (done, answer) = oneshot::channel();
            orders.post(Order::Attach { endpoint, done }).map_err(system("reach a thread of the data plane"))?;
            match answer.blocking_recv() {
                Ok(Ok(())) => {}
                Ok(Err((AttachError::Watch(error), _))) => return Err(system("watch a queue of the TAP")(error)),
                Ok(Err(_)) | Err(_) => return Err(RuntimeError::Protocol("a thread of the data plane has no room")),
            }
        }
        Ok((self.plane, self.first))
    }
}
