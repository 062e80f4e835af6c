//! One endpoint of the data plane: its stack, its descriptors, and how bytes move between the two.
//!
//! A process of one sandbox has one of these, that of a shared network one for each member. What is here is about one endpoint
//! alone and knows nothing of the others; [`super::engine`] waits for all of them and gives each its turn.
//!
//! A TCP flow is watched for input while the guest can take some, for output while the host socket is full. A full
//! to-guest ring takes input out of epoll and the guest's acknowledgement brings the flow back, which finds `readable`
//! still set and reads at once.

mod share;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollFlags};
use smoltcp::time::Instant;
use tokio::sync::{mpsc, oneshot};

use super::capture::Taken;
use super::command::{Command, FaultsSet, FlowPage, Statistics};
use super::control::{DnsAnswer, DnsQuery};
use super::events::FlowTeller;
use super::fair::{Held, Share};
use super::scene;
use super::sockets::{KeptError, Sockets, TcpSocket, What};
use crate::host::echo;
use crate::host::gather::Run;
use crate::host::stream::{self, Connect, Moved};
use crate::network::config::{EndpointConfig, Membership, Proto};
use crate::network::fault::Rules;
use crate::stack::arena::Id;
use crate::stack::census::{Kind, Lane, Numbers};
use crate::stack::fault::Released;
use crate::stack::flow::GuestPort;
use crate::stack::ledger::Traffic;
use crate::stack::policy::NetworkRules;
use crate::stack::tcp::{ConnectFailure, TcpTarget, TcpWork};
use crate::stack::verdict::DropReason;
use crate::stack::{HostError, Limits, Stack};
use crate::sys::msg;
use share::FIRST;

/// Bytes moved from one host socket in one turn.
const HOST_BUDGET: usize = 512 * 1024;
/// Datagrams (coalesced ones count once) read from one socket in one turn.
const DATAGRAM_BUDGET: usize = 64;
/// Connections accepted from one listener in one turn.
const ACCEPT_BUDGET: usize = 64;
/// Free ring space worth waking up for: a quarter of a small ring.
const ROOM_LOWAT: usize = 16 * 1024;
/// A host socket that takes this much at once, or is full, carries bulk: what waits in it is bounded from then on.
const BOUND_FROM: usize = 32 * 1024;
/// What is asked of epoll to hear of input: with the end of file, which is read with what comes before it.
const INPUT: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);
/// How long a listener rests when descriptors run out.
const LISTENER_REST: Duration = Duration::from_millis(100);

/// What an endpoint is made of.
pub struct Parts {
    /// Its number: a slot that nobody has, and whose occupant it is.
    pub id: Id,
    /// Addresses and policy.
    pub config: EndpointConfig,
    /// Its TAP.
    pub tap: OwnedFd,
    /// Who gets copies of frames.
    pub captures: Taken,
    /// Who hears of flows that begin and end.
    pub flows: FlowTeller,
    /// Where questions for names go.
    pub queries: mpsc::Sender<DnsQuery>,
    /// What happens to frames on purpose, from the first on.
    pub faults: Rules,
    /// On a shared network: what that says of all.
    pub rules: Option<NetworkRules>,
    /// There: how this one is a member, and who is told when its TAP is gone.
    pub shared: Option<(Membership, oneshot::Sender<()>)>,
    /// Which of its lanes this is, and how many there are.
    pub lane: (Lane, usize),
}

/// One endpoint.
pub struct Endpoint {
    /// Its number.
    pub id: Id,
    /// Its sandbox ([`crate::network::config::mark`]).
    pub mark: u64,
    /// Its core.
    pub stack: Stack,
    /// Its descriptors.
    pub sockets: Sockets,
    /// Something happened this turn: see [`Endpoint::settle`].
    pub touched: bool,
    /// The last turn in which its TAP was ready. A frame that comes alone is served alone: its bytes leave before we look for
    /// another one that seldom is there.
    pub tap_turn: u64,
    /// Bytes that had crossed the TAP when it was last asked.
    counted: u64,
    /// How it is a member; the switch takes it.
    pub membership: Option<Membership>,
    gone: Option<oneshot::Sender<()>>,
    resting_until: Option<Instant>,
    /// Datagram sockets that are not watched, and when each is looked at (`moderation`).
    looks: VecDeque<(Instant, What)>,
    /// Flows of which bytes wait, and when each is asked what it holds.
    stalls: VecDeque<(Instant, Id)>,
    /// Those that do so since a moment ago.
    fresh: VecDeque<(Instant, Id)>,
    /// What it has, as added up with what the others have.
    pub held: Held,
    /// Its part in the time of all.
    pub share: Share,
    /// What had crossed its TAP, and questions, when it was last charged for them; and time since then.
    charged: (Traffic, u64),
    nanos: u64,
    /// Connections that were asked for since then.
    connects: u64,
    /// Frames that other lanes handed over since then.
    pub handed: u64,
    /// Drops of every reason when they were last told.
    drops_told: u64,
    flows: FlowTeller,
}

impl Endpoint {
    /// Puts it together; nothing of the guest's is read before [`Sockets::register`].
    pub fn new(parts: Parts, limits: Limits, seed: u64, now: Instant, epoll: Arc<Epoll>) -> Self {
        let Parts { id, config, tap, captures, flows, queries, faults, rules, shared, lane } = parts;
        let mark = crate::network::config::mark(&config.id);
        let mut sockets = Sockets::new(id, &config, tap, epoll, queries);
        sockets.captures = captures;
        sockets.now = now;
        sockets.lanes = lane.1;
        sockets.dns_questions = limits.dns_questions;
        sockets.set_faults(faults.all(), now);
        let mut stack = Stack::new(config, limits, seed, now);
        stack.set_lane(lane.0, lane.1);
        if let Some(rules) = rules {
            stack.set_network(rules);
        }
        let (membership, gone) = shared.unzip();
        Self {
            id,
            mark,
            stack,
            sockets,
            touched: false,
            tap_turn: u64::MAX,
            counted: 0,
            membership,
            gone,
            resting_until: None,
            looks: VecDeque::new(),
            stalls: VecDeque::new(),
            fresh: VecDeque::new(),
            held: Held::default(),
            share: Share::new(limits.junk),
            charged: (Traffic::default(), 0),
            nanos: 0,
            connects: 0,
            handed: 0,
            drops_told: 0,
            flows,
        }
    }

    /// Its TAP is gone: it is watched no more, and whoever keeps its lease is told.
    pub fn bury(&mut self) {
        self.sockets.retire();
        if let Some(gone) = self.gone.take() {
            let _ = gone.send(());
        }
    }

    /// When a datagram socket is looked at next.
    pub fn next_look(&self) -> Option<Instant> {
        self.looks.front().map(|(at, _)| *at)
    }

    /// When something of this endpoint is due next.
    pub fn next_due(&self) -> Option<Instant> {
        let held = self.sockets.faults.as_ref().and_then(|faults| faults.next_timeout());
        let look = self.looks.front().map(|(at, _)| *at);
        let stall = [&self.stalls, &self.fresh].into_iter().filter_map(|all| all.front()).map(|(at, _)| *at).min();
        let rests = [self.resting_until, self.share.rests_until];
        [self.stack.next_timeout(), rests[0], rests[1], self.sockets.captures.due(), held, look, stall]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what time demands.
    pub fn handle_timeout(&mut self, now: Instant, buf: &mut [u8]) {
        self.look(now, buf);
        // Those on the other way are the engine's.
        self.sockets.release_to_guest(now);
        if self.resting_until.is_some_and(|at| at <= now) {
            self.resting_until = None;
            self.sockets.resume_listeners();
        }
        if self.share.rests_until.is_some_and(|at| at <= now) {
            self.share.rests_until = None;
            self.sockets.watch_tap(true);
        }
        self.audit(now);
        if self.stack.next_timeout().is_some_and(|at| at <= now) {
            self.stack.handle_timeout(now, &mut self.sockets);
        }
    }

    /// What is done now and then while there is traffic.
    pub fn refresh(&mut self, (v4, v6): (Option<Ipv4Addr>, Option<Ipv6Addr>)) {
        self.tell_drops();
        self.stack.set_host_addresses(v4, v6);
    }

    /// Something that epoll told of.
    pub fn handle_event(&mut self, what: What, flags: EpollFlags, now: Instant, buf: &mut [u8]) {
        match what {
            What::Tcp(flow) => scene::flow(Kind::Tcp, flow),
            What::Udp(id) => scene::flow(Kind::Udp, id),
            What::Ping(id) => scene::flow(Kind::Echo, id),
            What::Listener(number) => scene::listener(number),
            What::Tap => {}
        }
        match what {
            What::Tcp(flow) => self.tcp_ready(flow, flags, now),
            What::Udp(id) => self.udp_ready(id, flags, now, buf),
            What::Ping(id) => self.ping_ready(id, flags, buf),
            What::Listener(number) => self.listener_ready(number, flags, now, buf),
            // The engine's.
            What::Tap => {}
        }
    }

    /// The answer to a question of the guest's.
    pub fn handle_dns_answer(&mut self, answer: &DnsAnswer) {
        self.stack.handle_dns_answer(answer.guest, answer.server, &answer.answer, &mut self.sockets);
    }

    /// With `-v`: what has been dropped so far, by reason, whenever that has changed.
    fn tell_drops(&mut self) {
        if !tracing::enabled!(tracing::Level::INFO) {
            return;
        }
        let total = self.stack.drops().iter().map(|(_, n)| n).sum();
        if std::mem::replace(&mut self.drops_told, total) != total {
            let text: Vec<String> =
                self.stack.drops().iter().map(|(reason, n)| format!("{} {n}", reason.name())).collect();
            tracing::info!("dropped so far: {}", text.join(", "));
        }
    }

    /// Bytes that have crossed the TAP since this was asked last.
    pub fn moved(&mut self) -> u64 {
        let crossed = &self.sockets.crossed;
        let all = crossed.from_guest_bytes.wrapping_add(crossed.to_guest_bytes);
        all.wrapping_sub(std::mem::replace(&mut self.counted, all))
    }

    /// Does everything that the events of this turn led to.
    pub fn settle(&mut self, now: Instant) {
        self.sockets.flush();
        loop {
            let mut idle = true;
            while let Some(work) = self.stack.poll_tcp_work() {
                idle = false;
                self.do_work(work, now);
            }
            while let Some(flow) = self.stack.poll_dirty() {
                idle = false;
                self.serve(flow, now);
            }
            if idle {
                break;
            }
        }
        while let Some(id) = self.stack.poll_udp_closed() {
            self.sockets.close_udp(id);
        }
        while let Some(id) = self.stack.poll_ping_closed() {
            self.sockets.close_ping(id);
        }
        if !self.sockets.errors.is_empty() {
            self.tell_errors();
        }
        self.sockets.captures.settle(now);
        while let Some(event) = self.stack.poll_flow_event() {
            self.flows.tell(now, event);
        }
        let lost = self.stack.take_lost_flow_events();
        if lost > 0 {
            self.flows.lose(lost);
        }
        let drops = std::mem::take(&mut self.sockets.drops);
        for (reason, n) in drops.iter() {
            for _ in 0..n {
                self.stack.count_drop(reason);
            }
        }
    }

    /// Tells the guest what host sockets said of what it sent.
    pub fn tell_errors(&mut self) {
        let mut errors = std::mem::take(&mut self.sockets.errors);
        for error in errors.drain(..) {
            let KeptError { id, echo, kind, target, offender, ref data, len } = error;
            let host_error = HostError { kind, target, offender, payload: &data[..len] };
            match echo {
                Some(seq) => self.stack.handle_ping_error(id, seq, &host_error, &mut self.sockets),
                None => self.stack.handle_udp_error(id, &host_error, &mut self.sockets),
            }
        }
        self.sockets.errors = errors;
    }

    // ---- TCP ----

    fn do_work(&mut self, work: TcpWork, now: Instant) {
        match work {
            TcpWork::Connect { flow, target } => {
                self.connects += 1;
                self.connect(flow, target, now);
            }
            TcpWork::Keepalive { flow } => {
                if let Some(socket) = self.sockets.tcp.get_mut(flow) {
                    stream::keep_alive(socket.fd.as_fd());
                }
            }
            TcpWork::Close { flow, in_order } => {
                if let Some(socket) = self.sockets.tcp.take(flow)
                    && in_order
                {
                    stream::allow_orderly_close(socket.fd.as_fd());
                }
                // The descriptor is free again: listeners that rest may try.
                if self.resting_until.is_some() {
                    self.resting_until = Some(now);
                }
            }
        }
    }

    fn connect(&mut self, flow: Id, target: TcpTarget, now: Instant) {
        let started = match target {
            TcpTarget::Outside(to) => stream::start(to, self.sockets.outbound(to.is_ipv6())),
            // Where this stands in for slirp4netns, the user's source address serves here too, as with that program.
            TcpTarget::Host(to) => {
                let slirp = self.stack.config().slirp.is_some();
                stream::start(to, self.sockets.outbound(to.is_ipv6()).filter(|_| slirp))
            }
            TcpTarget::Dns => match self.sockets.open_dns_stream() {
                Ok(fd) => Connect::Done(fd),
                Err(_) => Connect::Failed(ConnectFailure::Refused),
            },
        };
        match started {
            Connect::Pending(fd) => self.add_socket(flow, fd, true),
            Connect::Done(fd) => {
                self.add_socket(flow, fd, false);
                self.stack.handle_tcp_connected(flow, now);
            }
            Connect::Failed(failure) => {
                self.stack.handle_tcp_connect_failed(flow, failure, now, &mut self.sockets);
            }
            Connect::NoSocket(errno) => {
                self.sockets.warn_socket("TCP", &io::Error::from(errno));
                self.sockets.drops.count(DropReason::HostSocket);
                // Silence: the guest repeats its SYN, and by then a descriptor may be free.
                self.stack.handle_tcp_connect_failed(flow, ConnectFailure::Silent, now, &mut self.sockets);
            }
        }
    }

    fn add_socket(&mut self, flow: Id, fd: OwnedFd, connecting: bool) {
        let socket = TcpSocket {
            fd,
            connecting,
            readable: false,
            writable: !connecting,
            shut: false,
            eof: false,
            hung: false,
            ending: false,
            bounded: false,
            interest: None,
            stalled: None,
            audited: false,
        };
        self.sockets.tcp.put(flow, socket);
        let wanted = if connecting { EpollFlags::EPOLLOUT } else { INPUT };
        self.sockets.set_tcp_interest(flow, Some(wanted));
    }

    fn tcp_ready(&mut self, flow: Id, flags: EpollFlags, now: Instant) {
        let Some(socket) = self.sockets.tcp.get_mut(flow) else { return };
        if socket.connecting {
            match stream::connect_result(socket.fd.as_fd()) {
                Ok(()) => {
                    socket.connecting = false;
                    socket.writable = true;
                    self.sockets.set_tcp_interest(flow, Some(INPUT));
                    self.stack.handle_tcp_connected(flow, now);
                }
                Err(failure) => {
                    self.stack.handle_tcp_connect_failed(flow, failure, now, &mut self.sockets);
                }
            }
            return;
        }
        if flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            // Read whatever is left; the error comes behind it. Where nothing more is read, the flow is broken.
            if socket.eof {
                self.stack.handle_host_reset(flow);
            }
            socket.hung = true;
            socket.readable = true;
            socket.writable = true;
        }
        if flags.contains(EpollFlags::EPOLLIN) {
            socket.readable = true;
            socket.ending |= flags.contains(EpollFlags::EPOLLRDHUP);
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            socket.writable = true;
        }
        self.serve(flow, now);
    }

    /// Moves the bytes of one flow both ways, then lets the stack send.
    fn serve(&mut self, flow: Id, now: Instant) {
        scene::flow(Kind::Tcp, flow);
        let Self { stack, sockets, .. } = self;
        let share = sockets.share;
        let Some(socket) = sockets.tcp.get_mut(flow) else {
            stack.finish_tcp(flow, now, sockets);
            return;
        };
        if socket.connecting {
            return;
        }
        let fd = socket.fd.as_fd();
        let mut ready = stack.tcp_readiness(flow);
        let mut broken = false;
        while ready.from_guest > 0 && socket.writable && !broken {
            let mut offered = 0;
            let taken = stack.lend_from_guest(flow, |bytes| {
                offered = bytes.len();
                match stream::send_bytes(fd, bytes) {
                    Moved::Bytes(n) => n,
                    Moved::Blocked => 0,
                    Moved::Broken => {
                        broken = true;
                        0
                    }
                }
            });
            if taken < offered {
                socket.writable = false;
            }
            if (taken >= BOUND_FROM || taken < offered) && !socket.bounded {
                socket.bounded = true;
                stream::bound_queue(fd);
            }
            ready.from_guest -= taken;
            if taken == 0 {
                break;
            }
        }
        if !broken && !socket.shut {
            // The ring may just have been drained behind the guest's FIN.
            ready = stack.tcp_readiness(flow);
            if ready.shut_host {
                socket.shut = true;
                stream::finish_sending(fd);
                stack.handle_host_shut(flow);
            }
        }
        // Nobody calls again for one that hung up, unless the guest makes room.
        let mut budget = if socket.hung { usize::MAX } else { HOST_BUDGET.min(share) };
        while !broken && socket.readable && !socket.eof && ready.to_guest_room > 0 && budget > 0 {
            let mut room_len = 0;
            let mut ended = false;
            let filled = stack.lend_to_guest(flow, |room| {
                room_len = room.len().min(budget);
                match stream::recv_bytes(fd, &mut room[..room_len]) {
                    Moved::Bytes(0) if room_len > 0 => {
                        ended = true;
                        0
                    }
                    Moved::Bytes(n) => n,
                    Moved::Blocked => 0,
                    Moved::Broken => {
                        broken = true;
                        0
                    }
                }
            });
            budget -= filled;
            ready.to_guest_room -= filled;
            if ended {
                socket.eof = true;
                stack.handle_host_eof(flow);
            }
            if filled < room_len && !ended && !broken {
                if filled > 0 && (socket.hung || socket.ending) {
                    // The end of file comes next: it goes to the guest with these bytes.
                    continue;
                }
                // A short read has emptied the socket; level-triggered epoll tells of more.
                socket.readable = false;
                socket.hung = false;
                socket.ending = false;
            }
        }
        if broken {
            stack.handle_host_reset(flow);
        }
        stack.finish_tcp(flow, now, sockets);
        self.watch(flow, now);
    }

    /// Brings epoll in line with what the flow waits for now.
    fn watch(&mut self, flow: Id, now: Instant) {
        let ready = self.stack.tcp_readiness(flow);
        let Some(socket) = self.sockets.tcp.get_mut(flow) else { return };
        let mut wanted = EpollFlags::empty();
        // Its socket is closed in this turn, which takes it out.
        if !ready.live {
            return;
        }
        // Input that is known to wait is read when the guest makes room; watching it would only spin. Input that is not known
        // to wait is watched even where it is not wanted yet (the guest's part of the handshake): it seldom comes so early.
        if !socket.eof && (!socket.readable || (ready.wants_host_data && ready.to_guest_room >= ROOM_LOWAT)) {
            wanted |= INPUT;
        }
        if ready.from_guest > 0 && !socket.writable {
            wanted |= EpollFlags::EPOLLOUT;
        }
        let waits = (ready.from_guest > 0 && !socket.writable)
            || (socket.readable && !socket.eof && ready.to_guest_room < ROOM_LOWAT);
        if !waits {
            if socket.stalled.take().is_some() {
                self.stack.charge_tcp(flow, 0);
            }
        } else if socket.stalled.is_none() {
            socket.stalled = Some(now);
            if !std::mem::replace(&mut socket.audited, true) {
                self.fresh.push_back((now + FIRST.into(), flow));
            }
        }
        // Both directions ended: EPOLLHUP would be reported without end. What is left is read as the guest makes room.
        let over = socket.hung || (socket.eof && socket.shut);
        self.sockets.set_tcp_interest(flow, (!over).then_some(wanted));
    }

    fn listener_ready(&mut self, number: usize, flags: EpollFlags, now: Instant, buf: &mut [u8]) {
        let Some(port) = self.sockets.listeners.get(&number) else { return };
        let spec = port.spec;
        if spec.proto == Proto::Udp {
            self.published_datagrams(number, flags, now, buf);
            return;
        }
        for _ in 0..ACCEPT_BUDGET {
            let Some(port) = self.sockets.listeners.get(&number) else { return };
            let guest = GuestPort { addr: spec.guest_addr, port: spec.guest_port };
            match stream::accept(port.fd.as_fd()) {
                Ok((fd, client)) => match self.stack.handle_tcp_accepted(now, (number, guest), canonical(client)) {
                    Ok(flow) => self.add_socket(flow, fd, false),
                    // Dropped here, the socket resets the client (SO_LINGER).
                    Err(reason) => self.stack.count_drop(reason),
                },
                Err(error) => {
                    match error.raw_os_error() {
                        Some(libc::EAGAIN) => {}
                        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                            self.sockets.warn_socket("TCP", &error);
                            self.sockets.pause_listener(number);
                            self.resting_until = Some(now + LISTENER_REST.into());
                        }
                        // The client was gone before it was accepted; others wait.
                        _ => continue,
                    }
                    return;
                }
            }
        }
    }

    // ---- datagrams ----

    fn udp_ready(&mut self, id: Id, flags: EpollFlags, now: Instant, buf: &mut [u8]) {
        if flags.contains(EpollFlags::EPOLLERR) {
            self.sockets.drain_udp_errors(id);
        }
        let mut run: Option<Run> = None;
        let (mut taken, mut more) = (0, true);
        for _ in 0..DATAGRAM_BUDGET {
            let Some(fd) = self.sockets.udp_fd(id) else { break };
            let at = run.map_or(0, |run| run.bytes());
            let received = msg::recv(fd, &mut buf[at..]);
            taken += u32::from(received.is_ok());
            match received {
                Ok(got) if got.truncated => self.stack.count_drop(DropReason::TooBig),
                Ok(got) if run.as_mut().is_some_and(|run| run.take(&got)) => {}
                Ok(got) => {
                    self.udp_from_host(id, run.replace(Run::begin(got)), now, buf);
                    buf.copy_within(at..at + got.len, 0);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                // An ICMP error of an earlier send: its details are in the queue.
                Err(_) => self.sockets.drain_udp_errors(id),
            }
        }
        self.udp_from_host(id, run, now, buf);
        self.moderate(What::Udp(id), flags, now, (taken, more));
    }

    fn moderate(&mut self, what: What, said: EpollFlags, now: Instant, taken: (u32, bool)) {
        if let Some(at) = self.sockets.moderate(what, said, now, taken) {
            self.looks.push_back((at, what));
        }
    }

    /// Looks at the sockets whose datagrams have gathered long enough. All wait equally long, so the first is due first.
    fn look(&mut self, now: Instant, buf: &mut [u8]) {
        for _ in 0..self.looks.len() {
            let Some(&(at, what)) = self.looks.front() else { break };
            if at > now {
                break;
            }
            self.looks.pop_front();
            self.handle_event(what, EpollFlags::empty(), now, buf);
        }
    }

    fn udp_from_host(&mut self, id: Id, run: Option<Run>, now: Instant, buf: &[u8]) {
        let Some(got) = run.map(|run| run.received()) else { return };
        let payload = &buf[..got.len];
        self.stack.handle_udp_from_host(now, id, got.from, payload, got.segment, &mut self.sockets);
    }

    fn published_datagrams(&mut self, number: usize, flags: EpollFlags, now: Instant, buf: &mut [u8]) {
        if flags.contains(EpollFlags::EPOLLERR) {
            self.sockets.drain_listener_errors(number);
        }
        let mut run: Option<Run> = None;
        let (mut taken, mut more) = (0, true);
        for _ in 0..DATAGRAM_BUDGET {
            let Some(port) = self.sockets.listeners.get(&number) else { break };
            let at = run.map_or(0, |run| run.bytes());
            let received = msg::recv(port.fd.as_fd(), &mut buf[at..]);
            taken += u32::from(received.is_ok());
            match received {
                Ok(got) if got.truncated => self.stack.count_drop(DropReason::TooBig),
                Ok(got) if run.as_mut().is_some_and(|run| run.take(&got)) => {}
                Ok(got) => {
                    self.published_from_host(number, run.replace(Run::begin(got)), now, buf);
                    buf.copy_within(at..at + got.len, 0);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(_) => self.sockets.drain_listener_errors(number),
            }
        }
        self.published_from_host(number, run, now, buf);
        self.moderate(What::Listener(number), flags, now, (taken, more));
    }

    fn published_from_host(&mut self, number: usize, run: Option<Run>, now: Instant, buf: &[u8]) {
        let (Some(got), Some(port)) = (run.map(|run| run.received()), self.sockets.listeners.get(&number)) else {
            return;
        };
        let guest = GuestPort { addr: port.spec.guest_addr, port: port.spec.guest_port };
        // A link-local client's scope stays: the answer needs it.
        let ends = (got.from, got.local.unwrap_or(port.spec.host_addr));
        let payload = &buf[..got.len];
        self.stack.handle_udp_published(now, (number, guest), ends, payload, got.segment, &mut self.sockets);
    }

    fn ping_ready(&mut self, id: Id, flags: EpollFlags, buf: &mut [u8]) {
        if flags.contains(EpollFlags::EPOLLERR) {
            self.sockets.drain_ping_errors(id);
        }
        for _ in 0..DATAGRAM_BUDGET {
            let Some((fd, v6)) = self.sockets.ping_fd(id) else { return };
            match msg::recv(fd, buf) {
                Ok(got) => {
                    let message = &buf[..got.len];
                    if let Some(seq) = echo::read_reply(message, v6) {
                        let meta = (seq, got.ttl.unwrap_or(64));
                        let payload = &message[echo::ECHO_HDR_LEN..];
                        self.stack.handle_ping_from_host(id, got.from.ip(), meta, payload, &mut self.sockets);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.sockets.drain_ping_errors(id),
            }
        }
    }
}

impl Endpoint {
    /// Does what the control plane asks. Who asked may have stopped waiting; it is done all the same.
    pub fn obey(&mut self, command: Command, now: Instant, buf: &mut [u8]) {
        match command {
            Command::Listen { number, listener, fd, done } => {
                let _ = done.send(self.sockets.add_listener(number, listener, fd));
            }
            Command::ListenAll { first, ports, done } => {
                let all = ports.into_iter().enumerate();
                let result = all.map(|(at, (listener, fd))| self.sockets.add_listener(first + at, listener, fd));
                let _ = done.send(result.collect());
            }
            Command::Unlisten { number, done } => {
                // What has come before is served: connections that clients hold for established, the guest's answers.
                self.listener_ready(number, EpollFlags::EPOLLIN, now, buf);
                self.sockets.flush();
                let known = self.sockets.remove_listener(number);
                self.stack.handle_listener_gone(number);
                let _ = done.send(known);
            }
            Command::Flows { after, limit, filter, mut page, done } => {
                let next = self.stack.flows_page(after, limit, &filter, &mut page);
                let total = self.stack.numbers().live.iter().sum();
                let _ = done.send(FlowPage { flows: page, next, total, now });
            }
            Command::KillFlow { id, done } => {
                let _ = done.send(self.stack.kill_flow(id, now, &mut self.sockets));
            }
            Command::Stats { done } => {
                let crossed = self.sockets.crossed;
                let numbers = Numbers {
                    frames_from_guest: crossed.from_guest_packets,
                    frames_to_guest: crossed.to_guest_packets,
                    ..self.stack.numbers()
                };
                let drops = self.stack.drops().clone();
                let ports = self.stack.port_totals().copied().collect();
                let delayed = self.sockets.delayed();
                let _ = done.send(Box::new(Statistics { numbers, drops, ports, delayed }));
            }
            Command::Faults { rules, done } => {
                let mut released = Released::default();
                if let Some(rules) = rules {
                    released = self.sockets.set_faults(&rules, now);
                    self.sockets.release_to_guest(now);
                }
                let counts = self.sockets.faults.as_ref().map(|faults| faults.counts());
                let shaping = self.sockets.shaping();
                let _ = done.send(FaultsSet { counts: counts.unwrap_or_default(), shaping, released });
            }
            Command::ShareFaults { shaping, released, done } => {
                self.sockets.share_faults(shaping);
                if let Some(faults) = &mut self.sockets.faults {
                    faults.release(&released, now);
                }
                self.sockets.release_to_guest(now);
                let _ = done.send(());
            }
            Command::Events { on, done } => {
                self.stack.listen_to_flows(on);
                let _ = done.send(());
            }
            Command::StartCapture { capture, done } => {
                self.sockets.captures.add(capture);
                let _ = done.send(());
            }
            Command::StopCapture { id, done } => {
                let _ = done.send(self.sockets.captures.remove(id));
            }
        }
    }
}

/// A client of an IPv6 socket without its scope, which means nothing to the guest.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port())
}
