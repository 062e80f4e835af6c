//! The data plane thread: waits for readiness, and gives every endpoint its turn.
//!
//! One turn: wait; serve what is ready; read frames from each TAP that has some (a budget of each a turn, so that no guest
//! starves the hosts, and no member of a network the others); do what the control plane asks and what is due; then let each
//! endpoint that anything happened to settle ([`Endpoint::settle`]): move the bytes of its flows, send what is due. Epoll is
//! level-triggered, so whatever a budget left behind is reported again.
//!
//! The process of one sandbox has one endpoint, that of a shared network a [`Switch`] before its members: a frame of one goes
//! to another's TAP within the turn that read it. Nothing is kept for a TAP that takes no more; what it does not take is
//! dropped and counted, as a switch of any kind does. Per turn only those are looked at that something happened to; when the
//! next of all is due is known without looking at any ([`Earliest`]).
//!
//! What faults on purpose hold (`stack::fault`) goes on in the turn in which it is due; while any endpoint has some, waiting is
//! timed in nanoseconds instead of milliseconds.
//!
//! A TAP with several queues has a thread for each (`runtime::lanes`): this one, and further ones that have no switch and hand over
//! what is not theirs.
//!
//! Endpoints come and go between events and the next wait, so no event is ever of a predecessor in its slot.

mod setup;
mod table;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as Clock};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use smoltcp::time::Instant;
use tokio::sync::mpsc;

use super::capture::{self};
use super::command::{AttachError, Command, FIRST, MemberTraffic, Order, Orders};
use super::control::{self, DnsAnswer, DnsQuery};
use super::endpoint::Endpoint;
use super::fair::{AllLimits, Held, Totals, Turnstile};
use super::lanes::{HandOver, Inbox, Lanes, Parcel};
use super::sockets::{MAX_SLOTS, Sockets, Token, What};
use super::vigil::{self, Vigil};
use super::{RuntimeError, scene, system};
use crate::host::address;
use crate::link::pcap::Direction;
use crate::link::tap::Read;
use crate::network::config::Turns;
use crate::network::fault;
use crate::stack::arena::Id;
use crate::stack::deadline::Earliest;
use crate::stack::fault::Verdict;
use crate::stack::ledger::Traffic;
use crate::stack::switch::Switch;
use crate::stack::verdict::DropReason;
use crate::sys;
use crate::wire::vnet::{MAX_FRAME, VNET_HDR_LEN};
pub use setup::{build, first_captures, seed, tell_ready};
use table::{Newcomer, Table};

/// Events taken in one wait.
const EVENTS: usize = 256;
/// Frames read from one TAP in one turn, beside those that answer what the guest was given ([`OWED`]).
const FRAME_BUDGET: usize = 64;
/// Most answers that are read beyond that. A guest acknowledges each frame by one at most. Were fewer read than are sent, as
/// with a hundred downloads at once, its queue would fill with acknowledgements and lose them, and with its queue's length of
/// 1000 (dataplane.md, rule 10) a question would wait behind as many.
const OWED: u64 = 1000;
/// Bytes read from one TAP in one turn: half a large ring, so that the guest's window never closes for our batching.
const BYTE_BUDGET: usize = 512 * 1024;
/// Bytes that all host sockets together give in one turn, about; each its share, but no less than a super-frame. A turn is
/// what everybody else waits for: with 512 KiB of each of a hundred downloads, one who asks a byte would wait behind 50 MiB.
const HOST_TURN: usize = 4 * 1024 * 1024;
/// Least share: the payload of a super-frame of either family, so that it makes one frame and not a second of some bytes.
const LEAST_SHARE: usize = 65_475;
/// Flows that one member gives at a time where all have too many: one look at all members for each would be dear.
const SHED: usize = 16;
/// How often the host's own addresses are asked for, while there is traffic.
const ADDRESS_AGE: Duration = Duration::from_secs(1);
/// Longest wait, so that a clock jump or a forgotten timer heals.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Why the data plane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The interface was deleted, or its namespace died.
    TapGone,
    /// The other side of the exit descriptor closed.
    Exit,
}

/// Where nobody looks.
static UNSEEN: AtomicU64 = AtomicU64::new(0);

/// In debug builds: a frame that has the bytes of this variable ends the process, as if it were one that we cannot bear. For tests of what
/// becomes of a guest that has such frames (`sandbox::blame`).
#[cfg(debug_assertions)]
pub const LETHAL: &str = "TAPWAY_DEBUG_LETHAL";

/// The data plane.
pub struct Engine {
    epoll: Arc<Epoll>,
    table: Table,
    /// On a shared network, in the first lane.
    switch: Option<Switch>,
    /// What comes from further lanes.
    inbox: Option<Inbox>,
    /// This is a further lane: the way to the first.
    hand: Option<HandOver>,
    /// When each endpoint is due.
    due: Earliest,
    frame: Box<[u8]>,
    datagram: Box<[u8]>,
    answers: mpsc::Receiver<DnsAnswer>,
    orders: mpsc::Receiver<Order>,
    wake: Arc<EventFd>,
    start: Clock,
    addresses_at: Option<Instant>,
    addresses: (Option<Ipv4Addr>, Option<Ipv6Addr>),
    tap_gone: bool,
    /// Whose turn it is ([`config::mark`]), where those see it who outlive this process; 0 between turns.
    serving: &'static AtomicU64,
    #[cfg(debug_assertions)]
    lethal: Option<Vec<u8>>,
    turn: u64,
    /// Bytes that this turn moved.
    moved: u64,
    vigil: Vigil,
    /// Whose turn it is, on a shared network; whether it matters now; and what all have.
    turnstile: Turnstile,
    contested: bool,
    totals: Totals,
    /// Some endpoint has faults: deadlines are shorter than a millisecond.
    precise: bool,
    /// They can be: the kernel has epoll_pwait2.
    fine: bool,
    /// The last time at which a datagram socket is to be looked at.
    look_until: Instant,
    /// Held open while epoll watches it.
    #[allow(dead_code, reason = "to be open is what it does")]
    exit: Option<OwnedFd>,
}

/// The control plane's ends of a data plane.
pub struct Ends {
    /// Questions of guests.
    pub queries: mpsc::Receiver<DnsQuery>,
    /// Where endpoints put them.
    pub ask: mpsc::Sender<DnsQuery>,
    /// Answers to guests.
    pub answers: mpsc::Sender<DnsAnswer>,
    /// Wakes the data plane.
    pub wake: Arc<EventFd>,
    /// What it is told to do.
    pub orders: Orders,
    /// Its epoll, for endpoints that are made for it.
    pub epoll: Arc<Epoll>,
    /// Further threads.
    pub lanes: Lanes,
    /// When its time began.
    pub since: Clock,
}

impl Engine {
    /// Without endpoints. `switch`: for a shared network, whose members `all` bounds together.
    pub fn new(switch: Option<Switch>, all: AllLimits) -> Result<(Self, Ends), RuntimeError> {
        let (ask, queries) = mpsc::channel(control::QUEUE);
        let (answers, answers_out) = mpsc::channel(control::QUEUE);
        let since = Clock::now();
        let totals = Totals::new(all);
        let (engine, orders, epoll) = Self::bare(since, answers_out, totals.clone())?;
        let wake = Arc::clone(&engine.wake);
        let (lanes, inbox) = Lanes::new(ask.clone(), Arc::clone(&wake), since, totals);
        let engine = Self { switch, inbox: Some(inbox), ..engine };
        Ok((engine, Ends { queries, ask, answers, wake, orders, epoll, lanes, since }))
    }

    /// A further lane, whose time and bounds are the first's.
    pub(super) fn further(
        hand: HandOver,
        since: Clock,
        totals: Totals,
        serving: Option<&'static AtomicU64>,
    ) -> Result<(Self, Orders, Arc<Epoll>), RuntimeError> {
        let (_, no_answers) = mpsc::channel(1);
        let (engine, orders, epoll) = Self::bare(since, no_answers, totals)?;
        Ok((Self { hand: Some(hand), serving: serving.unwrap_or(&UNSEEN), ..engine }, orders, epoll))
    }

    fn bare(
        since: Clock,
        answers: mpsc::Receiver<DnsAnswer>,
        totals: Totals,
    ) -> Result<(Self, Orders, Arc<Epoll>), RuntimeError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wake = Arc::new(wake.map_err(system("make an eventfd"))?);
        let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("set up epoll"))?);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Control.encode());
        epoll.add(&*wake, event).map_err(system("watch the eventfd"))?;
        let (orders, orders_out) = Orders::new(Arc::clone(&wake));
        let engine = Self {
            epoll: Arc::clone(&epoll),
            table: Table::default(),
            switch: None,
            inbox: None,
            hand: None,
            due: Earliest::default(),
            frame: vec![0; MAX_FRAME].into_boxed_slice(),
            // A run of datagrams, and behind it one more that may be part of it.
            datagram: vec![0; 2 * (usize::from(u16::MAX) + 1)].into_boxed_slice(),
            answers,
            orders: orders_out,
            wake,
            start: since,
            addresses_at: None,
            addresses: (None, None),
            tap_gone: false,
            serving: &UNSEEN,
            #[cfg(debug_assertions)]
            lethal: std::env::var_os(LETHAL).map(std::os::unix::ffi::OsStringExt::into_vec),
            turn: 0,
            moved: 0,
            vigil: Vigil::default(),
            turnstile: Turnstile::default(),
            contested: false,
            totals,
            precise: false,
            fine: true,
            look_until: Instant::ZERO,
            exit: None,
        };
        Ok((engine, orders, epoll))
    }

    /// Notes there whose turn it is, as do lanes that are made from now on.
    pub fn tell_turns(&mut self, serving: &'static Turns, lanes: &mut Lanes) {
        scene::keep(serving);
        self.serving = &serving[0];
        lanes.tell_turns(serving);
    }

    /// Ends when the other side of `exit` closes.
    fn watch_exit(&mut self, exit: OwnedFd) -> Result<(), RuntimeError> {
        // What says that it is over: the other side's end, which epoll reports unasked.
        match self.epoll.add(&exit, EpollEvent::new(EpollFlags::empty(), Token::Exit.encode())) {
            // A regular file has no other side.
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(system("watch the exit descriptor")(errno)),
        }
        self.exit = Some(exit);
        Ok(())
    }
}

impl Engine {
    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Runs until the only TAP or the exit descriptor ends, or epoll itself fails. Captures are whole when it returns.
    pub fn run(mut self) -> Result<End, RuntimeError> {
        let end = self.turns();
        for endpoint in self.table.all() {
            endpoint.sockets.captures.finish(capture::DRAIN);
        }
        end
    }

    fn turns(&mut self) -> Result<End, RuntimeError> {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        let mut taps = Vec::with_capacity(EVENTS);
        let serving = self.serving;
        scene::serve(serving);
        loop {
            let ready = self.wait(&mut events)?;
            let now = self.now();
            self.table.now = now;
            self.turn = self.turn.wrapping_add(1);
            self.refresh(now);
            let mut control = false;
            let share = (HOST_TURN / ready.max(1)).max(LEAST_SHARE);
            for event in &events[..ready] {
                match Token::decode(event.data()) {
                    Some(Token::Endpoint(slot, What::Tap)) => taps.push(slot),
                    Some(Token::Endpoint(slot, what)) => {
                        if let Some(endpoint) = self.table.touch(slot) {
                            scene::endpoint(slot);
                            endpoint.sockets.share = share;
                            serving.store(endpoint.mark, Ordering::Relaxed);
                            endpoint.handle_event(what, event.events(), now, &mut self.datagram);
                        }
                    }
                    Some(Token::Control) => control = true,
                    Some(Token::Exit) => return Ok(End::Exit),
                    None => {}
                }
            }
            self.take_turns(&mut taps);
            for slot in taps.drain(..) {
                self.read_tap(slot, share, now)?;
            }
            if self.tap_gone {
                tracing::info!("the TAP is gone: leaving");
                return Ok(End::TapGone);
            }
            while let Some(slot) = self.due.due(now) {
                // Not due again before it has settled.
                self.due.set(slot, None);
                let Some(endpoint) = self.table.touch(slot as u32) else { continue };
                scene::endpoint(slot as u32);
                serving.store(endpoint.mark, Ordering::Relaxed);
                endpoint.handle_timeout(now, &mut self.datagram);
                if endpoint.sockets.faults.is_some() {
                    self.release(slot as u32, now);
                }
            }
            scene::other();
            serving.store(0, Ordering::Relaxed);
            if let Some(switch) = &mut self.switch
                && switch.next_timeout().is_some_and(|at| at <= now)
            {
                switch.handle_timeout(now, &mut self.table);
            }
            if control {
                self.control_ready(now)?;
            }
            self.settle(now);
            if let Some(hand) = &mut self.hand {
                hand.flush();
            }
            serving.store(0, Ordering::Relaxed);
            self.vigil.handle_turn(ready, std::mem::take(&mut self.moved));
        }
    }

    /// Waits for events: awake first, where that is worth it (`runtime::vigil`).
    fn wait(&mut self, events: &mut [EpollEvent]) -> Result<usize, RuntimeError> {
        let mut awake = self.vigil.is_due().then(|| Clock::now() + vigil::PATIENCE);
        loop {
            let waited = if awake.is_some() { self.epoll.wait(events, EpollTimeout::ZERO) } else { self.sleep(events) };
            match waited {
                Ok(0) if awake.is_some_and(|until| Clock::now() < until) => std::hint::spin_loop(),
                Ok(0) if awake.is_some() => {
                    self.vigil.handle_missed();
                    awake = None;
                }
                Ok(n) => return Ok(n),
                Err(Errno::EINTR) => return Ok(0),
                Err(errno) => return Err(system("wait for events")(errno)),
            }
        }
    }

    /// Sleeps until something happens or is due. In milliseconds, rounded up (waking early would spin until the deadline): the stack's
    /// deadlines are that coarse, and those of flows that are gone by the hundred cost no wake-up each. Those of faults are not,
    /// nor those of `moderation`.
    fn sleep(&mut self, events: &mut [EpollEvent]) -> Result<usize, Errno> {
        let wait = self.left();
        let looks = self.fine && self.look_until >= self.table.now;
        if self.precise || looks {
            match sys::epoll::wait(self.epoll.0.as_fd(), events, wait) {
                // Older than Linux 5.11, or a container runtime's filter is.
                Err(Errno::ENOSYS | Errno::EPERM) => {
                    (self.precise, self.fine) = (false, false);
                    self.table.all().for_each(|endpoint| endpoint.sockets.moderates = false);
                }
                waited => return waited,
            }
        }
        let timeout = EpollTimeout::try_from(wait.as_micros().div_ceil(1000) as u64 as i32);
        self.epoll.wait(events, timeout.unwrap_or(EpollTimeout::NONE))
    }

    /// How long until something is due.
    fn left(&self) -> Duration {
        let now = self.now();
        let mut wait = LONGEST_WAIT;
        for at in [self.due.next(), self.switch.as_ref().and_then(Switch::next_timeout)].into_iter().flatten() {
            let left = if at > now { Duration::from_micros((at - now).total_micros()) } else { Duration::ZERO };
            wait = wait.min(left);
        }
        wait
    }

    /// What is done now and then while there is traffic, at most once a second.
    fn refresh(&mut self, now: Instant) {
        if self.addresses_at.is_none_or(|at| now >= at + ADDRESS_AGE.into()) {
            self.addresses_at = Some(now);
            self.addresses = (address::default_v4(), address::default_v6());
            for endpoint in self.table.all() {
                endpoint.refresh(self.addresses);
            }
        }
    }

    /// Leaves those out that had more of the time than others who want some (`fair`).
    fn take_turns(&mut self, taps: &mut Vec<u32>) {
        self.contested = self.has_many() && self.turnstile.contested(self.table.now, taps.len());
        if !self.contested {
            return;
        }
        let Self { turnstile, table, turn, .. } = self;
        let mut least = u64::MAX;
        for &slot in taps.iter() {
            if let Some(endpoint) = table.at(slot) {
                turnstile.arrive(*turn, &mut endpoint.share, &mut least);
            }
        }
        taps.retain(|&slot| {
            let Some(endpoint) = table.at(slot) else { return false };
            let admitted = turnstile.admits(&endpoint.share, least);
            if !admitted {
                // It has more than one frame.
                endpoint.tap_turn = *turn;
            }
            admitted
        });
    }

    /// Has something done with frames of this guest, at its expense. Its endpoint is out of the table meanwhile: the switch hands its
    /// frames to the others.
    fn attend<T>(
        &mut self,
        slot: u32,
        now: Instant,
        act: impl FnOnce(&mut Self, &mut Box<Endpoint>) -> T,
    ) -> Option<T> {
        self.table.touch(slot)?;
        let mut endpoint = self.table.slots[slot as usize].take()?;
        let begun = self.contested.then(sys::thread_time);
        let junk = endpoint.stack.drops().junk();
        self.serving.store(endpoint.mark, Ordering::Relaxed);
        let result = act(self, &mut endpoint);
        endpoint.handle_junk(now, endpoint.stack.drops().junk() - junk);
        if let Some(begun) = begun {
            endpoint.note_time(sys::thread_time() - begun);
        }
        self.table.slots[slot as usize] = Some(endpoint);
        Some(result)
    }

    fn read_tap(&mut self, slot: u32, share: usize, now: Instant) -> Result<(), RuntimeError> {
        let read = self.attend(slot, now, |this, endpoint| {
            let result = this.read_frames(endpoint, share, now);
            if endpoint.sockets.faults.is_some() {
                this.release_from_guest(endpoint, now);
            }
            result
        });
        read.unwrap_or(Ok(()))
    }

    /// Frames of this guest's that were held until now go on.
    fn release(&mut self, slot: u32, now: Instant) {
        let Some(mut endpoint) = self.table.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        self.release_from_guest(&mut endpoint, now);
        endpoint.sockets.forget_faults();
        self.table.slots[slot as usize] = Some(endpoint);
    }

    fn release_from_guest(&mut self, endpoint: &mut Endpoint, now: Instant) {
        while let Some(faults) = &mut endpoint.sockets.faults
            && let Some(mut frame) = faults.poll_due(now, fault::Direction::FromGuest)
        {
            carry_on((&mut self.hand, &mut self.switch), &mut self.table, endpoint, &mut frame, now);
        }
    }

    /// Whether deadlines of faults are waited for.
    fn note_faults(&mut self) {
        self.precise = self.table.all().any(|endpoint| endpoint.sockets.faults.is_some());
    }

    fn read_frames(&mut self, endpoint: &mut Endpoint, share: usize, now: Instant) -> Result<(), RuntimeError> {
        let before = std::mem::replace(&mut endpoint.tap_turn, self.turn);
        let frames = if before == self.turn.wrapping_sub(1) {
            let given = endpoint.sockets.crossed.to_guest_packets;
            let owed = given.wrapping_sub(std::mem::replace(&mut endpoint.sockets.given, given));
            let all = FRAME_BUDGET + owed.min(OWED) as usize;
            if self.contested { endpoint.share.frames(all) } else { all }
        } else {
            1
        };
        endpoint.sockets.share = share;
        let mut bytes = 0;
        for _ in 0..frames {
            let len = match endpoint.sockets.tap.read(&mut self.frame) {
                Ok(Read::Frame(len)) => len,
                Ok(Read::Empty) => return Ok(()),
                Ok(Read::Gone) => {
                    self.bury(endpoint);
                    return Ok(());
                }
                Err(error) if self.switch.is_some() || self.hand.is_some() => {
                    tracing::error!("cannot read from the TAP of {}: {error}", endpoint.stack.config().id);
                    self.bury(endpoint);
                    return Ok(());
                }
                Err(error) => return Err(system("read from the TAP")(error)),
            };
            bytes += len;
            let frame = &mut self.frame[..len];
            scene::frame(endpoint.id.index, frame);
            #[cfg(debug_assertions)]
            if let Some(lethal) = &self.lethal
                && frame.windows(lethal.len().max(1)).any(|bytes| bytes == lethal.as_slice())
            {
                panic!("a lethal frame ({LETHAL})");
            }
            endpoint.sockets.crossed.add(&Traffic::from_guest(1, len - VNET_HDR_LEN));
            if !endpoint.sockets.captures.is_empty() {
                endpoint.sockets.captures.take(Direction::FromGuest, frame);
            }
            let Sockets { faults, drops, .. } = &mut endpoint.sockets;
            let verdict = faults.as_mut().map(|one| one.handle_frame(now, fault::Direction::FromGuest, frame, drops));
            if verdict != Some(Verdict::Taken) {
                carry_on((&mut self.hand, &mut self.switch), &mut self.table, endpoint, frame, now);
            }
            if bytes >= BYTE_BUDGET {
                return Ok(());
            }
        }
        Ok(())
    }

    /// An endpoint without a TAP: the end of a process that has no other.
    fn bury(&mut self, endpoint: &mut Endpoint) {
        if let Some(switch) = &mut self.switch {
            switch.detach(endpoint.id.index as u16);
            endpoint.bury();
        } else if self.hand.is_some() {
            // The first lane finds the same, and what it means.
            endpoint.bury();
        } else {
            self.tap_gone = true;
        }
    }

    /// Whether there may be several endpoints: those of a shared network, in each of its lanes.
    fn has_many(&self) -> bool {
        self.switch.is_some() || self.hand.is_some()
    }

    /// Does everything that the events of this turn led to.
    fn settle(&mut self, now: Instant) {
        let many = self.has_many();
        while let Some(slot) = self.table.touched.pop() {
            let Some(endpoint) = self.table.at(slot) else { continue };
            endpoint.touched = false;
            scene::endpoint(slot);
            let begun = self.contested.then(sys::thread_time);
            self.serving.store(endpoint.mark, Ordering::Relaxed);
            endpoint.settle(now);
            if let Some(begun) = begun {
                endpoint.note_time(sys::thread_time() - begun);
            }
            if many {
                endpoint.charge(now, self.contested);
                let holds = endpoint.holds();
                self.totals.update(&mut endpoint.held, holds);
            }
            self.moved += endpoint.moved();
            if let Some(at) = endpoint.next_look() {
                self.look_until = self.look_until.max(at);
            }
            let due = endpoint.next_due();
            self.due.set(slot as usize, due);
        }
        if many && self.totals.over().is_some() {
            self.shed(now);
        }
    }

    /// All have too much of something together: whoever has most gives.
    fn shed(&mut self, now: Instant) {
        while let Some(kind) = self.totals.over() {
            let Some(endpoint) = self.table.all().max_by_key(|endpoint| endpoint.held.of(kind)) else { return };
            let gave = (0..SHED).take_while(|_| endpoint.shed(kind, now)).count();
            endpoint.sockets.now = now;
            endpoint.settle(now);
            let holds = endpoint.holds();
            self.totals.update(&mut endpoint.held, holds);
            let (slot, due) = (endpoint.id.index, endpoint.next_due());
            self.due.set(slot as usize, due);
            if gave == 0 {
                return;
            }
        }
    }

    fn control_ready(&mut self, now: Instant) -> Result<(), RuntimeError> {
        let _ = self.wake.read();
        self.take_parcels(now)?;
        if self.switch.is_none()
            && self.hand.is_none()
            && let Some(endpoint) = self.table.at(FIRST.index)
        {
            // Members of a shared network are gone before their process is.
            endpoint.sockets.captures.heed_end();
        }
        while let Ok(answer) = self.answers.try_recv() {
            if let Some(endpoint) = self.table.touch_id(answer.endpoint) {
                endpoint.handle_dns_answer(&answer);
            }
        }
        while let Ok(order) = self.orders.try_recv() {
            self.obey(order, now);
        }
        Ok(())
    }

    /// Frames that other lanes read and have no use for. What captures and faults do has been done; what they cost is their guest's, and
    /// while its TAP rests for that, those of its other queues are not served either.
    fn take_parcels(&mut self, now: Instant) -> Result<(), RuntimeError> {
        let Some(inbox) = self.inbox.take() else { return Ok(()) };
        let mut failed = Ok(());
        let mut parcels = inbox.all().peekable();
        while let Some(parcel) = parcels.next() {
            let of = match &parcel {
                Parcel::Frame { of, .. } => *of,
                Parcel::Failed(_) => {
                    if let Parcel::Failed(error) = parcel {
                        failed = Err(error);
                    }
                    break;
                }
            };
            if self.table.at(of.index).is_none_or(|endpoint| endpoint.id != of) {
                parcel.give_back();
                continue;
            }
            // Those of one guest that came together: what is measured is measured once for them.
            self.attend(of.index, now, |this, endpoint| {
                let mut next = Some(parcel);
                while let Some(Parcel::Frame { mut frame, back, .. }) = next {
                    if endpoint.share.rests_until.is_some() {
                        endpoint.sockets.drops.count(DropReason::HandOver);
                    } else {
                        endpoint.handed += 1;
                        scene::frame(of.index, &frame);
                        carry_on((&mut this.hand, &mut this.switch), &mut this.table, endpoint, &mut frame, now);
                    }
                    // A lane that is gone wants none back.
                    let _ = back.try_send(frame);
                    next = parcels.next_if(|parcel| parcel.is_of(of));
                }
            });
        }
        self.serving.store(0, Ordering::Relaxed);
        scene::other();
        drop(parcels);
        self.inbox = Some(inbox);
        failed
    }

    /// Does what the control plane asks. Who asked may have stopped waiting; it is done all the same.
    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Endpoint(id, command) => {
                let faults = matches!(command, Command::Faults { rules: Some(_), .. } | Command::ShareFaults { .. });
                if let Some(endpoint) = self.table.touch_id(id) {
                    endpoint.obey(command, now, &mut self.datagram);
                }
                if faults {
                    self.release(id.index, now);
                    self.note_faults();
                }
            }
            Order::Attach { endpoint, done } => {
                let _ = done.send(self.attach(endpoint));
            }
            Order::Detach { id, done } => {
                let _ = done.send(self.detach(id));
            }
            Order::Survey { done } => {
                let of = |endpoint: &mut Box<Endpoint>| MemberTraffic {
                    id: endpoint.id,
                    crossed: endpoint.sockets.crossed,
                    drops: endpoint.stack.drops().clone(),
                    flows: endpoint.stack.numbers().live.iter().sum(),
                };
                let memberships = self.switch.as_ref().map_or(0, Switch::group_memberships);
                let _ = done.send((self.table.all().map(of).collect(), memberships));
            }
        }
    }

    fn attach(&mut self, mut endpoint: Box<Endpoint>) -> Result<(), (AttachError, Box<Endpoint>)> {
        if let Some(switch) = &mut self.switch {
            let membership = endpoint.membership.take().unwrap_or_default();
            let member = endpoint.id.index as u16;
            // Its own queries reach it with the first turn: they are in the TAP before it is in the table.
            let config = endpoint.stack.config().clone();
            let mut newcomer = Newcomer { table: &mut self.table, endpoint: &mut endpoint };
            if let Err(refusal) = switch.attach(member, &config, membership, &mut newcomer) {
                return Err((refusal.into(), endpoint));
            }
        }
        let id = endpoint.id;
        self.install(endpoint).map_err(|(error, endpoint)| {
            if let Some(switch) = &mut self.switch {
                switch.detach(id.index as u16);
            }
            (AttachError::Watch(error), endpoint)
        })
    }

    /// Puts an endpoint into its slot and watches its TAP.
    fn install(&mut self, mut endpoint: Box<Endpoint>) -> Result<(), (io::Error, Box<Endpoint>)> {
        let slot = endpoint.id.index as usize;
        if slot >= MAX_SLOTS || self.table.slots.get(slot).is_some_and(Option::is_some) {
            return Err((io::Error::from(io::ErrorKind::AlreadyExists), endpoint));
        }
        endpoint.sockets.moderates = self.fine;
        if let Err(error) = endpoint.sockets.register() {
            return Err((error, endpoint));
        }
        if self.table.slots.len() <= slot {
            self.table.slots.resize_with(slot + 1, || None);
            let room = self.table.slots.len().saturating_sub(self.table.touched.len());
            self.table.touched.reserve(room);
        }
        endpoint.refresh(self.addresses);
        self.due.set(slot, endpoint.next_due());
        self.table.slots[slot] = Some(endpoint);
        self.note_faults();
        Ok(())
    }

    fn detach(&mut self, id: Id) -> Option<Box<Endpoint>> {
        self.table.at(id.index).filter(|endpoint| endpoint.id == id)?;
        if let Some(switch) = &mut self.switch {
            switch.detach(id.index as u16);
        }
        let mut endpoint = self.table.slots[id.index as usize].take()?;
        self.totals.update(&mut endpoint.held, Held::default());
        self.due.set(id.index as usize, None);
        endpoint.bury();
        self.note_faults();
        Some(endpoint)
    }
}

/// A frame of a guest's goes to the first lane, to the switch, or to its stack.
fn carry_on(
    (hand, switch): (&mut Option<HandOver>, &mut Option<Switch>),
    table: &mut Table,
    endpoint: &mut Endpoint,
    frame: &mut [u8],
    now: Instant,
) {
    let Endpoint { id, stack, sockets, .. } = &mut *endpoint;
    if let Some(hand) = hand
        && !stack.owns(frame)
    {
        if !hand.give(*id, frame) {
            sockets.drops.count(DropReason::HandOver);
        }
        return;
    }
    match switch {
        None => stack.handle_from_guest(now, frame, sockets),
        Some(switch) => switch.handle_from_guest(now, id.index as u16, frame, (stack, sockets), table),
    }
    if !endpoint.sockets.errors.is_empty() {
        endpoint.tell_errors();
    }
}
