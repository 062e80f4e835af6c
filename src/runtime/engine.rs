//! The data plane thread: waits for readiness, and moves bytes.
//!
//! One turn: wait; note what is ready; read frames from the TAP (a budget a turn, so that no guest starves the hosts);
//! do the TCP work the stack asks for; move the bytes of every flow that something happened to; send what is due. Epoll is
//! level-triggered, so whatever a budget left behind is reported again.
//!
//! A TCP flow is watched for input while the guest can take some, for output while the host socket is full. A full
//! to-guest ring takes input out of epoll and the guest's acknowledgement brings the flow back, which finds `readable`
//! still set and reads at once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use smoltcp::time::Instant;
use tokio::sync::mpsc;

use super::capture::{self, Taken};
use super::command::{Command, DataPlane, FlowPage, Statistics};
use super::control::{self, Control, DnsAnswer, Supervisor};
use super::events::{self, FlowTeller};
use super::forwards::{Forwards, Guest, MAX_FORWARDS};
use super::observe::Identity;
use super::sockets::{KeptError, Sockets, TcpSocket, Token};
use super::{Attached, RuntimeError, system};
use crate::api::attach::{self, FromNetwork};
use crate::host::stream::{self, Connect, Moved};
use crate::host::{address, echo};
use crate::link::pcap::Direction;
use crate::link::tap::Read;
use crate::network::config::Proto;
use crate::stack::arena::Id;
use crate::stack::flow::GuestPort;
use crate::stack::tcp::{ConnectFailure, TcpTarget, TcpWork};
use crate::stack::verdict::DropReason;
use crate::stack::{HostError, Limits, Stack};
use crate::sys::msg;
use crate::wire::vnet::MAX_FRAME;

/// Events taken in one wait.
const EVENTS: usize = 256;
/// Frames read from the TAP in one turn.
const FRAME_BUDGET: usize = 64;
/// Bytes read from the TAP in one turn: half a large ring, so that the guest's window never closes for our batching.
const BYTE_BUDGET: usize = 512 * 1024;
/// Bytes moved from one host socket in one turn.
const HOST_BUDGET: usize = 512 * 1024;
/// Datagrams (coalesced ones count once) read from one socket in one turn.
const DATAGRAM_BUDGET: usize = 64;
/// Connections accepted from one listener in one turn.
const ACCEPT_BUDGET: usize = 64;
/// Free ring space worth waking up for: a quarter of a small ring.
const ROOM_LOWAT: usize = 16 * 1024;
/// How often the host's own addresses are asked for, while there is traffic.
const ADDRESS_AGE: Duration = Duration::from_secs(1);
/// How long a listener rests when descriptors run out.
const LISTENER_REST: Duration = Duration::from_millis(100);
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

/// The data plane of one endpoint.
pub struct Engine {
    stack: Stack,
    sockets: Sockets,
    frame: Box<[u8]>,
    datagram: Box<[u8]>,
    answers: mpsc::Receiver<DnsAnswer>,
    commands: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
    start: Clock,
    addresses_at: Option<Instant>,
    resting_until: Option<Instant>,
    tap_gone: bool,
    /// Held open while epoll watches it.
    _exit: Option<OwnedFd>,
    /// Drops of every reason when they were last told.
    drops_told: u64,
    /// Who hears of flows that begin and end.
    flows: FlowTeller,
}

/// Sets both planes up; nothing of the guest is read yet.
pub fn build(attached: Attached, supervisor: Supervisor) -> Result<(Engine, Control), RuntimeError> {
    let Attached { endpoint, tap, pcap, listeners, dns, metrics, api, exit } = attached;
    let (queries, queries_out) = mpsc::channel(control::QUEUE);
    let (answers, answers_out) = mpsc::channel(control::QUEUE);
    let wake =
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(system("make an eventfd"))?;
    let wake = Arc::new(wake);
    let (plane, commands) = DataPlane::new(Arc::clone(&wake), listeners.len());
    for (number, (listener, _)) in listeners.iter().enumerate() {
        plane.know(number, *listener);
    }
    let mut sockets = Sockets::new(&endpoint, tap, listeners, queries).map_err(system("set up epoll"))?;
    sockets.watch(wake.as_fd(), Token::Control).map_err(system("watch the eventfd"))?;
    if let Some(exit) = &exit {
        // What says that it is over: the other side's end, which epoll reports unasked.
        match sockets.epoll.add(exit, EpollEvent::new(EpollFlags::empty(), Token::Exit.encode())) {
            // A regular file has no other side.
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => return Err(system("watch the exit descriptor")(errno)),
        }
    }
    let writers = plane.captures().writers();
    sockets.captures = Taken::new(writers.clone());
    match pcap.map(|file| capture::of_run(file, writers, capture::RING)) {
        Some(Ok(capture)) => sockets.captures.add(capture),
        Some(Err(error)) => tracing::warn!("cannot start the capture: {}", crate::telemetry::chain(&error)),
        None => {}
    }
    let api = api.map(|listener| {
        let guest = Guest::new(&endpoint);
        (listener, Forwards::new(plane.clone(), guest, MAX_FORWARDS))
    });
    let mut seed = [0u8; 8];
    crate::sys::random::fill(&mut seed).map_err(system("get random bytes"))?;
    let limits = Limits::default();
    let identity = Identity::new(endpoint.clone(), limits);
    let (flows, hearer) = events::flow_channel();
    let stack = Stack::new(endpoint, limits, u64::from_ne_bytes(seed), Instant::ZERO);
    let engine = Engine {
        stack,
        sockets,
        frame: vec![0; MAX_FRAME].into_boxed_slice(),
        datagram: vec![0; usize::from(u16::MAX) + 1].into_boxed_slice(),
        answers: answers_out,
        commands,
        wake: Arc::clone(&wake),
        start: identity.since,
        addresses_at: None,
        resting_until: None,
        tap_gone: false,
        _exit: exit,
        drops_told: 0,
        flows,
    };
    Ok((
        engine,
        Control {
            supervisor,
            dns,
            queries: queries_out,
            answers,
            wake,
            metrics: metrics.map(Into::into),
            api,
            plane,
            observed: Some((identity, hearer)),
        },
    ))
}

impl Engine {
    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Runs until the TAP or the exit descriptor ends, or epoll itself fails. Captures are whole when it returns.
    pub fn run(mut self) -> Result<End, RuntimeError> {
        let end = self.turns();
        self.sockets.captures.finish(capture::DRAIN);
        end
    }

    fn turns(&mut self) -> Result<End, RuntimeError> {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        // A frame that comes alone is served alone: its bytes leave before we look for another one that seldom is there.
        let mut tap_was_ready = false;
        loop {
            let timeout = self.timeout();
            let ready = match self.sockets.epoll.wait(&mut events, timeout) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(system("wait for events")(errno)),
            };
            let now = self.now();
            self.refresh(now);
            let mut tap = false;
            for event in &events[..ready] {
                match Token::decode(event.data()) {
                    Some(Token::Tap) => tap = true,
                    Some(Token::Tcp(flow)) => self.tcp_ready(flow, event.events(), now),
                    Some(Token::Udp(id)) => self.udp_ready(id, event.events(), now),
                    Some(Token::Ping(id)) => self.ping_ready(id, event.events()),
                    Some(Token::Listener(number)) => self.listener_ready(number, event.events(), now),
                    Some(Token::Control) => self.control_ready(now),
                    Some(Token::Exit) => return Ok(End::Exit),
                    None => {}
                }
            }
            let frames = if std::mem::replace(&mut tap_was_ready, tap) { FRAME_BUDGET } else { 1 };
            if tap {
                self.read_tap(frames, now)?;
                if self.tap_gone {
                    tracing::info!("the TAP is gone: leaving");
                    return Ok(End::TapGone);
                }
            }
            if self.stack.next_timeout().is_some_and(|at| at <= now) {
                self.stack.handle_timeout(now, &mut self.sockets);
            }
            self.settle(now);
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let now = self.now();
        let mut wait = LONGEST_WAIT;
        for at in [self.stack.next_timeout(), self.resting_until, self.sockets.captures.due()].into_iter().flatten() {
            let left = if at > now { Duration::from_micros((at - now).total_micros()) } else { Duration::ZERO };
            wait = wait.min(left);
        }
        // Rounded up: waking early would spin until the deadline.
        EpollTimeout::try_from(wait.as_micros().div_ceil(1000) as u64 as i32).unwrap_or(EpollTimeout::NONE)
    }

    /// What is done now and then while there is traffic, at most once a second.
    fn refresh(&mut self, now: Instant) {
        if self.addresses_at.is_none_or(|at| now >= at + ADDRESS_AGE.into()) {
            self.addresses_at = Some(now);
            self.tell_drops();
            self.stack.set_host_addresses(address::default_v4(), address::default_v6());
        }
        if self.resting_until.is_some_and(|at| at <= now) {
            self.resting_until = None;
            self.sockets.resume_listeners();
        }
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

    fn read_tap(&mut self, frames: usize, now: Instant) -> Result<(), RuntimeError> {
        let mut bytes = 0;
        for _ in 0..frames {
            match self.sockets.tap.read(&mut self.frame) {
                Ok(Read::Frame(len)) => {
                    bytes += len;
                    let frame = &mut self.frame[..len];
                    if !self.sockets.captures.is_empty() {
                        self.sockets.captures.take(Direction::FromGuest, frame);
                    }
                    self.stack.handle_from_guest(now, frame, &mut self.sockets);
                    if !self.sockets.errors.is_empty() {
                        self.tell_errors();
                    }
                    if bytes >= BYTE_BUDGET {
                        return Ok(());
                    }
                }
                Ok(Read::Empty) => return Ok(()),
                Ok(Read::Gone) => {
                    self.tap_gone = true;
                    return Ok(());
                }
                Err(error) => return Err(system("read from the TAP")(error)),
            }
        }
        Ok(())
    }

    /// Does everything that the events of this turn led to.
    fn settle(&mut self, now: Instant) {
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

    fn tell_errors(&mut self) {
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
            TcpWork::Connect { flow, target } => self.connect(flow, target, now),
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
            interest: None,
        };
        self.sockets.tcp.put(flow, socket);
        let wanted = if connecting { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
        self.sockets.set_tcp_interest(flow, Some(wanted));
    }

    fn tcp_ready(&mut self, flow: Id, flags: EpollFlags, now: Instant) {
        let Some(socket) = self.sockets.tcp.get_mut(flow) else { return };
        if socket.connecting {
            match stream::connect_result(socket.fd.as_fd()) {
                Ok(()) => {
                    socket.connecting = false;
                    socket.writable = true;
                    self.sockets.set_tcp_interest(flow, Some(EpollFlags::EPOLLIN));
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
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            socket.writable = true;
        }
        self.serve(flow, now);
    }

    /// Moves the bytes of one flow both ways, then lets the stack send.
    fn serve(&mut self, flow: Id, now: Instant) {
        let Self { stack, sockets, .. } = self;
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
        let mut budget = if socket.hung { usize::MAX } else { HOST_BUDGET };
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
                if filled > 0 && socket.hung {
                    // It hung up: epoll is not asked again, and the end of file comes next.
                    continue;
                }
                // A short read has emptied the socket; level-triggered epoll tells of more.
                socket.readable = false;
                socket.hung = false;
            }
        }
        if broken {
            stack.handle_host_reset(flow);
        }
        stack.finish_tcp(flow, now, sockets);
        self.watch(flow);
    }

    /// Brings epoll in line with what the flow waits for now.
    fn watch(&mut self, flow: Id) {
        let ready = self.stack.tcp_readiness(flow);
        let Some(socket) = self.sockets.tcp.get_mut(flow) else { return };
        let mut wanted = EpollFlags::empty();
        // Input that is known to wait is read when the guest makes room; watching it would only spin.
        if !socket.eof && ready.wants_host_data && (ready.to_guest_room >= ROOM_LOWAT || !socket.readable) {
            wanted |= EpollFlags::EPOLLIN;
        }
        if ready.from_guest > 0 && !socket.writable {
            wanted |= EpollFlags::EPOLLOUT;
        }
        // Both directions ended: EPOLLHUP would be reported without end. What is left is read as the guest makes room.
        let over = socket.hung || (socket.eof && socket.shut);
        self.sockets.set_tcp_interest(flow, (!over).then_some(wanted));
    }

    fn listener_ready(&mut self, number: usize, flags: EpollFlags, now: Instant) {
        let Some(port) = self.sockets.listeners.get(&number) else { return };
        let spec = port.spec;
        if spec.proto == Proto::Udp {
            self.published_datagrams(number, flags, now);
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

    fn udp_ready(&mut self, id: Id, flags: EpollFlags, now: Instant) {
        if flags.contains(EpollFlags::EPOLLERR) {
            self.sockets.drain_udp_errors(id);
        }
        for _ in 0..DATAGRAM_BUDGET {
            let Some(fd) = self.sockets.udp_fd(id) else { return };
            match msg::recv(fd, &mut self.datagram) {
                Ok(got) if got.truncated => self.stack.count_drop(DropReason::TooBig),
                Ok(got) => {
                    let payload = &self.datagram[..got.len];
                    self.stack.handle_udp_from_host(now, id, got.from, payload, got.segment, &mut self.sockets);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error of an earlier send: its details are in the queue.
                Err(_) => self.sockets.drain_udp_errors(id),
            }
        }
    }

    fn published_datagrams(&mut self, number: usize, flags: EpollFlags, now: Instant) {
        if flags.contains(EpollFlags::EPOLLERR) {
            self.sockets.drain_listener_errors(number);
        }
        for _ in 0..DATAGRAM_BUDGET {
            let Some(port) = self.sockets.listeners.get(&number) else { return };
            let guest = GuestPort { addr: port.spec.guest_addr, port: port.spec.guest_port };
            let bound = port.spec.host_addr;
            match msg::recv(port.fd.as_fd(), &mut self.datagram) {
                Ok(got) if got.truncated => self.stack.count_drop(DropReason::TooBig),
                Ok(got) => {
                    // A link-local client's scope stays: the answer needs it.
                    let ends = (got.from, got.local.unwrap_or(bound));
                    let payload = &self.datagram[..got.len];
                    let out = &mut self.sockets;
                    self.stack.handle_udp_published(now, (number, guest), ends, payload, got.segment, out);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.sockets.drain_listener_errors(number),
            }
        }
    }

    fn ping_ready(&mut self, id: Id, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLERR) {
            self.sockets.drain_ping_errors(id);
        }
        for _ in 0..DATAGRAM_BUDGET {
            let Some((fd, v6)) = self.sockets.ping_fd(id) else { return };
            match msg::recv(fd, &mut self.datagram) {
                Ok(got) => {
                    let message = &self.datagram[..got.len];
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

    fn control_ready(&mut self, now: Instant) {
        let _ = self.wake.read();
        self.sockets.captures.heed_end();
        while let Ok(DnsAnswer { guest, server, answer }) = self.answers.try_recv() {
            self.stack.handle_dns_answer(guest, server, &answer, &mut self.sockets);
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command, now);
        }
    }
}

impl Engine {
    /// Does what the control plane asks. Who asked may have stopped waiting; it is done all the same.
    fn obey(&mut self, command: Command, now: Instant) {
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
                self.listener_ready(number, EpollFlags::EPOLLIN, now);
                self.sockets.flush();
                let port = self.sockets.listeners.remove(&number);
                let known = port.is_some();
                self.stack.handle_listener_gone(number);
                drop(port);
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
                let numbers = self.stack.numbers();
                let drops = self.stack.drops().clone();
                let ports = self.stack.port_totals().copied().collect();
                let _ = done.send(Box::new(Statistics { numbers, drops, ports }));
            }
            Command::Events { on, done } => {
                self.stack.listen_to_flows(on);
                let _ = done.send(());
            }
            Command::StartCapture { capture, done } => {
                self.sockets.captures.add(*capture);
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

/// Tells the monitor that frames flow.
pub fn tell_ready(conn: &OwnedFd) -> Result<(), RuntimeError> {
    Ok(attach::send(conn.as_fd(), &FromNetwork::Ready, &[])?)
}
