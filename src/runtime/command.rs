//! What the control plane asks of the data plane, and the handle it asks by.
//!
//! Commands go over a bounded channel with the eventfd that wakes the data plane; each carries its own way back. The data
//! plane does one in microseconds and never waits, so whoever asks may wait for the answer. A full channel makes the
//! asker wait, never the data plane.
//!
//! Each endpoint has a handle of its own; all share one channel ([`Orders`]), on which the process of a shared network is also
//! told who comes and goes.
//!
//! Published ports go by number. Numbers are given here, upwards from those of the ports told at attach, and never given
//! again: a late event or a kept datagram of a port that is gone finds nothing, instead of its successor.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nix::sys::eventfd::EventFd;
use tokio::sync::{mpsc, oneshot};

use super::capture::{Captures, Running};
use super::endpoint::Endpoint;
use super::events::Hub;
use crate::api::verbs::observe::EventKind;
use crate::network::config::Listener;
use crate::network::fault::Rule;
use crate::stack::arena::Id;
use crate::stack::census::{Cursor, FlowFilter, FlowId, FlowRecord, Lane, Numbers, PAGE};
use crate::stack::fault::{Counts, Released, Shaping};
use crate::stack::ledger::{PortTotals, Traffic};
use crate::stack::switch::AttachRefusal;
use crate::stack::verdict::DropCounters;

/// Commands that may wait.
const QUEUE: usize = 64;

/// One command.
#[derive(Debug)]
pub enum Command {
    /// Serve one more published port.
    Listen {
        /// Its number.
        number: usize,
        /// What it is.
        listener: Listener,
        /// Its socket.
        fd: OwnedFd,
        /// Whether it is served now.
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Serve several more, up to the first that cannot be served.
    ListenAll {
        /// The first one's number.
        first: usize,
        /// What they are, with their sockets.
        ports: Vec<(Listener, OwnedFd)>,
        /// Whether all are served now.
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Close a published port's socket. Established TCP flows go on; UDP clients are forgotten.
    Unlisten {
        /// Its number.
        number: usize,
        /// Said when the socket is closed: whether there was one.
        done: oneshot::Sender<bool>,
    },
    /// Copy frames to one more capture.
    StartCapture {
        /// It.
        capture: Running,
        /// Said when the next frame will be seen by it.
        done: oneshot::Sender<()>,
    },
    /// Let go of a capture.
    StopCapture {
        /// Its number.
        id: u32,
        /// Whether it was there; one that ended by itself is not.
        done: oneshot::Sender<bool>,
    },
    /// One page of flows.
    Flows {
        /// Where it begins.
        after: Cursor,
        /// Most flows in it.
        limit: usize,
        /// Which.
        filter: Box<FlowFilter>,
        /// Where to, with room enough: the data plane allocates nothing.
        page: Vec<FlowRecord>,
        /// The page.
        done: oneshot::Sender<FlowPage>,
    },
    /// End a flow.
    KillFlow {
        /// Which.
        id: FlowId,
        /// Whether it was there.
        done: oneshot::Sender<bool>,
    },
    /// Faults on purpose.
    Faults {
        /// All rules from now on; None leaves them.
        rules: Option<Vec<Rule>>,
        /// What came of it.
        done: oneshot::Sender<FaultsSet>,
    },
    /// The first lane's faults hold here too.
    ShareFaults {
        /// What they are at.
        shaping: Option<Arc<Mutex<Shaping>>>,
        /// Those that ended.
        released: Released,
        /// Said when it is so.
        done: oneshot::Sender<()>,
    },
    /// All numbers.
    Stats {
        /// They.
        done: oneshot::Sender<Box<Statistics>>,
    },
    /// Tell of flows that begin and end, or no longer.
    Events {
        /// Whether to.
        on: bool,
        /// Said when it is so.
        done: oneshot::Sender<()>,
    },
}

/// What came of a change of faults.
#[derive(Debug)]
pub struct FaultsSet {
    /// What happened so far by each of those that hold now.
    pub counts: Vec<[Counts; 2]>,
    /// What they are at, if there are any.
    pub shaping: Option<Arc<Mutex<Shaping>>>,
    /// Those that ended: what other lanes hold of them goes on.
    pub released: Released,
}

/// The endpoint of a process that has only one.
pub const FIRST: Id = Id { index: 0, generation: 1 };

/// What goes to the data plane: a command of one endpoint's, or about who there is.
pub enum Order {
    /// For this endpoint. One that is gone does not answer.
    Endpoint(Id, Command),
    /// Serve one more endpoint.
    Attach {
        /// It.
        endpoint: Box<Endpoint>,
        /// Whether it is served; if not, it comes back.
        done: oneshot::Sender<Result<(), (AttachError, Box<Endpoint>)>>,
    },
    /// Serve an endpoint no more.
    Detach {
        /// Which.
        id: Id,
        /// It comes back, so that whoever asked closes its sockets, and no packet of others waits for that.
        done: oneshot::Sender<Option<Box<Endpoint>>>,
    },
    /// What crossed each TAP, and what was dropped.
    Survey {
        /// They, and the memberships of groups.
        done: oneshot::Sender<(Vec<MemberTraffic>, usize)>,
    },
}

/// Why an endpoint is not served.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The network's rules.
    #[error(transparent)]
    Refused(#[from] AttachRefusal),
    /// The kernel.
    #[error("cannot watch the TAP")]
    Watch(#[source] io::Error),
}

/// The numbers of one member.
#[derive(Debug)]
pub struct MemberTraffic {
    /// Which.
    pub id: Id,
    /// Frames and their bytes.
    pub crossed: Traffic,
    /// What was dropped.
    pub drops: DropCounters,
    /// Flows that live.
    pub flows: u64,
}

/// The way to the data plane; clones are the same.
#[derive(Clone, Debug)]
pub struct Orders {
    channel: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
}

impl Orders {
    /// Also returns the data plane's end.
    pub fn new(wake: Arc<EventFd>) -> (Self, mpsc::Receiver<Order>) {
        let (channel, receiver) = mpsc::channel(QUEUE);
        (Self { channel, wake }, receiver)
    }

    /// Asks without waiting; fails when as much waits as may.
    pub fn post(&self, order: Order) -> io::Result<()> {
        self.channel.try_send(order).map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        let _ = self.wake.write(1);
        Ok(())
    }

    /// Asks and waits.
    pub async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> io::Result<T> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the data plane has ended");
        let (done, answer) = oneshot::channel();
        self.channel.send(order(done)).await.map_err(|_| gone())?;
        // The counter cannot overflow: it is read whenever it is not zero.
        let _ = self.wake.write(1);
        answer.await.map_err(|_| gone())
    }
}

/// A page of flows.
#[derive(Debug)]
pub struct FlowPage {
    /// The flows.
    pub flows: Vec<FlowRecord>,
    /// Where the next page begins.
    pub next: Option<Cursor>,
    /// Flows that live, of all kinds.
    pub total: u64,
    /// The data plane's time.
    pub now: smoltcp::time::Instant,
}

/// All numbers of the data plane.
#[derive(Debug)]
pub struct Statistics {
    /// Of the stack.
    pub numbers: Numbers,
    /// What was dropped.
    pub drops: DropCounters,
    /// What went through published ports, where anything did.
    pub ports: Vec<PortTotals>,
    /// Packets that were held on purpose.
    pub delayed: u64,
}

/// The control plane's handle on one endpoint of the data plane; clones are the same handle.
#[derive(Clone, Debug)]
pub struct DataPlane(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    orders: Orders,
    /// Further lanes.
    further: Vec<Orders>,
    endpoint: Id,
    next_listener: AtomicUsize,
    captures: Captures,
    hub: Hub,
    ports: Mutex<BTreeMap<usize, Served>>,
}

/// A published port that is served.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// What it is.
    pub listener: Listener,
    /// Since when; its counters begin then.
    pub since: SystemTime,
}

impl DataPlane {
    /// Of the only endpoint of a process. `listeners`: how many ports, numbered from 0, the data plane has been told of
    /// already. Also returns the data plane's end.
    pub fn new(wake: Arc<EventFd>, listeners: usize) -> (Self, mpsc::Receiver<Order>) {
        let (orders, receiver) = Orders::new(wake);
        (Self::of(orders, Vec::new(), FIRST, listeners), receiver)
    }

    /// Of one endpoint of several; `further`: the lanes that it has beside the first.
    pub fn of(orders: Orders, further: Vec<Orders>, endpoint: Id, listeners: usize) -> Self {
        Self(Arc::new(Handle {
            orders,
            further,
            endpoint,
            next_listener: AtomicUsize::new(listeners),
            captures: Captures::default(),
            hub: Hub::default(),
            ports: Mutex::default(),
        }))
    }

    /// Has one more port served; returns its number.
    pub async fn listen(&self, listener: Listener, fd: OwnedFd) -> io::Result<usize> {
        let number = self.0.next_listener.fetch_add(1, Ordering::Relaxed);
        self.ask(|done| Command::Listen { number, listener, fd, done }).await??;
        self.know(number, listener);
        self.0.hub.port(EventKind::PortBound, &listener);
        Ok(number)
    }

    /// Has several more ports served; they get consecutive numbers, served or not. One turn of the data plane serves
    /// them all, so they come in batches (`attach::MAX_FDS`: a third of a millisecond). All are served, or none; the first
    /// number.
    pub async fn listen_all(&self, ports: Vec<(Listener, OwnedFd)>) -> io::Result<usize> {
        let first = self.0.next_listener.fetch_add(ports.len(), Ordering::Relaxed);
        let listeners: Vec<Listener> = ports.iter().map(|(listener, _)| *listener).collect();
        if let Err(error) = self.ask(|done| Command::ListenAll { first, ports, done }).await? {
            for number in first..first + listeners.len() {
                self.ask(|done| Command::Unlisten { number, done }).await?;
            }
            return Err(error);
        }
        for (at, listener) in listeners.into_iter().enumerate() {
            self.know(first + at, listener);
            self.0.hub.port(EventKind::PortBound, &listener);
        }
        Ok(first)
    }

    /// Has a port closed; returns whether it was there.
    pub async fn unlisten(&self, number: usize) -> io::Result<bool> {
        let known = self.ask(|done| Command::Unlisten { number, done }).await?;
        let port = self.0.ports.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        if let Some(Served { listener, .. }) = port {
            self.0.hub.port(EventKind::PortClosed, &listener);
        }
        Ok(known)
    }

    /// Notes a port that the data plane was told of at attach.
    pub fn know(&self, number: usize, listener: Listener) {
        let served = Served { listener, since: SystemTime::now() };
        self.0.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(number, served);
    }

    /// The ports that are served, by number.
    pub fn ports(&self) -> BTreeMap<usize, Served> {
        self.0.ports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who is told of events.
    pub fn hub(&self) -> &Hub {
        &self.0.hub
    }

    /// A page of flows; those of further lanes come behind the first's.
    pub async fn flows(&self, after: Cursor, limit: usize, filter: FlowFilter) -> io::Result<FlowPage> {
        let (page, filter) = (Vec::with_capacity(limit.min(PAGE)), Box::new(filter));
        let (lane, after) = after.split();
        let Some(orders) = self.lane(lane) else {
            // A cursor that somebody made up.
            let total = self.statistics().await?.numbers.live.iter().sum();
            return Ok(FlowPage { flows: page, next: None, total, now: smoltcp::time::Instant::ZERO });
        };
        let mut found = self.ask_lane(orders, |done| Command::Flows { after, limit, filter, page, done }).await?;
        let behind = Lane(lane.0.saturating_add(1));
        found.next = match found.next {
            Some(next) => Some(next.outside(lane)),
            None => self.lane(behind).map(|_| Cursor::of_lane(behind)),
        };
        if !self.0.further.is_empty() {
            found.total = self.statistics().await?.numbers.live.iter().sum();
        }
        Ok(found)
    }

    /// Ends a flow; returns whether it was there.
    pub async fn kill_flow(&self, id: FlowId) -> io::Result<bool> {
        let (lane, id) = id.split();
        match self.lane(lane) {
            Some(orders) => self.ask_lane(orders, |done| Command::KillFlow { id, done }).await,
            None => Ok(false),
        }
    }

    /// All numbers.
    pub async fn statistics(&self) -> io::Result<Box<Statistics>> {
        let mut all = self.ask(|done| Command::Stats { done }).await?;
        for orders in &self.0.further {
            let more = self.ask_lane(orders, |done| Command::Stats { done }).await?;
            all.numbers.add(&more.numbers);
            all.drops.add(&more.drops);
            all.delayed += more.delayed;
        }
        Ok(all)
    }

    /// Has these rules of faults hold, where some are given; what happened by each of those that hold then.
    pub async fn faults(&self, rules: Option<Vec<Rule>>) -> io::Result<Vec<[Counts; 2]>> {
        let changes = rules.is_some();
        let FaultsSet { counts, shaping, released } = self.ask(|done| Command::Faults { rules, done }).await?;
        for orders in self.0.further.iter().filter(|_| changes) {
            let (shaping, released) = (shaping.clone(), released.clone());
            self.ask_lane(orders, |done| Command::ShareFaults { shaping, released, done }).await?;
        }
        Ok(counts)
    }

    /// Has flows that begin and end told, or no longer.
    pub async fn tell_flows(&self, on: bool) -> io::Result<()> {
        for orders in self.lanes() {
            self.ask_lane(orders, |done| Command::Events { on, done }).await?;
        }
        Ok(())
    }

    /// Has frames copied to a capture.
    pub(super) async fn start_capture(&self, capture: &Running) -> io::Result<()> {
        for orders in self.lanes() {
            let capture = capture.clone();
            self.ask_lane(orders, |done| Command::StartCapture { capture, done }).await?;
        }
        Ok(())
    }

    /// Has a capture ended; returns whether it was there.
    pub(super) async fn stop_capture(&self, id: u32) -> io::Result<bool> {
        let mut known = false;
        for orders in self.lanes() {
            known |= self.ask_lane(orders, |done| Command::StopCapture { id, done }).await?;
        }
        Ok(known)
    }

    /// The lanes that serve this endpoint, the first one first.
    pub fn lanes(&self) -> impl Iterator<Item = &Orders> {
        std::iter::once(&self.0.orders).chain(&self.0.further)
    }

    fn lane(&self, lane: Lane) -> Option<&Orders> {
        self.lanes().nth(lane.0.into())
    }

    async fn ask_lane<T>(&self, orders: &Orders, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> io::Result<T> {
        let endpoint = self.0.endpoint;
        orders.ask(|done| Order::Endpoint(endpoint, command(done))).await
    }

    /// Captures that are begun and ended on request: each method takes this handle.
    pub fn captures(&self) -> &Captures {
        &self.0.captures
    }

    pub(super) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> io::Result<T> {
        self.ask_lane(&self.0.orders, command).await
    }
}
