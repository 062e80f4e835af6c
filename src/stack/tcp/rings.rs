//! Where flows get their sockets: pairs of rings in two sizes, recycled with the socket around them.
//!
//! Rings of about 1 MiB measured best for bulk (256 KiB lost a third), but ten thousand flows cannot have them. So a flow
//! begins with a small pair, gets a large one when it turns bulky and the budget has one, and none at all while it rests
//! (`rest`): over budget, or without the memory for it, means slower, never refused. (Without the memory for a small pair the process
//! ends, and its successor begins with none.) A ring is a fresh mapping (`sys::memory`), so a page costs only when
//! touched; an idle or short flow touches the first page of each ring, because an empty ring of smoltcp's starts afresh.
//! A recycled pair keeps its pages; one that carried much is freed instead (a few are kept).
//!
//! smoltcp 0.14 gives no way to take a socket's rings back, but resets a socket in `listen` and `connect`; hence whole
//! one-socket sets are recycled.

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

use super::port::shift_of;
use crate::sys::allocator::zeros;

/// A large ring: sixteen super-frame payloads of 65 495 bytes, because smoltcp's segments do not cross the wrap.
pub const LARGE_RING: usize = 16 * 65_495;
/// A small ring: one such payload. (The allocator makes a mapping of it: `sys::allocator`.)
pub const SMALL_RING: usize = 65_495;
/// Bytes that all bulky guests' flows together may have under way, about. They queue in the TAP in order of arrival, so whoever asks
/// a byte waits behind them; 4 MiB are a few milliseconds, and a large ring for each of four.
const UNDER_WAY: usize = 4 * LARGE_RING;
/// Free large pairs kept that are hardly touched.
const KEEP_LARGE: usize = 8;
/// Free small pairs kept that are hardly touched.
const KEEP_SMALL: usize = 64;
/// Free large pairs kept although all their pages may be touched (up to 2 MiB each).
const KEEP_LARGE_TOUCHED: usize = 2;
/// The same of small ones (up to 128 KiB each).
const KEEP_SMALL_TOUCHED: usize = 16;
/// A flow that moved more than this in one direction has touched much of its large rings.
const LARGE_TOUCHED: u64 = 256 * 1024;
/// The same of small ones.
const SMALL_TOUCHED: u64 = 16 * 1024;

/// One socket in a set of its own, because smoltcp scans the set on every packet.
pub struct FlowSocket {
    /// The set, lent to each `Interface` call.
    pub set: SocketSet<'static>,
    handle: SocketHandle,
    large: bool,
}

impl FlowSocket {
    fn small() -> Self {
        Self::new([vec![0; SMALL_RING], vec![0; SMALL_RING]], false)
    }

    /// None: there is no memory for it.
    fn large() -> Option<Self> {
        Some(Self::new([zeros(LARGE_RING)?, zeros(LARGE_RING)?], true))
    }

    fn new([receive, send]: [Vec<u8>; 2], large: bool) -> Self {
        let socket = tcp::Socket::new(tcp::SocketBuffer::new(receive), tcp::SocketBuffer::new(send));
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Self { set, handle, large }
    }

    /// Whether its rings are large ones.
    pub fn is_large(&self) -> bool {
        self.large
    }

    /// The window scale that smoltcp uses with its rings.
    pub fn shift(&self) -> u8 {
        shift_of(if self.large { LARGE_RING } else { SMALL_RING })
    }

    /// Bytes of each of its rings.
    pub fn ring(&self) -> usize {
        if self.large { LARGE_RING } else { SMALL_RING }
    }

    /// The socket.
    pub fn get(&self) -> &tcp::Socket<'static> {
        self.set.get(self.handle)
    }

    /// The socket.
    pub fn get_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }
}

/// Free sockets of one size.
struct Shelf {
    /// Those whose rings are hardly touched.
    clean: Vec<FlowSocket>,
    /// Those whose pages are resident: taken first.
    touched: Vec<FlowSocket>,
    keep: usize,
    keep_touched: usize,
    /// More than this in one direction has touched much of a ring.
    much: u64,
}

impl Shelf {
    fn new(keep: usize, keep_touched: usize, much: u64) -> Self {
        let (clean, touched) = (Vec::with_capacity(keep), Vec::with_capacity(keep_touched));
        Self { clean, touched, keep, keep_touched, much }
    }

    fn take(&mut self) -> Option<FlowSocket> {
        self.touched.pop().or_else(|| self.clean.pop())
    }

    fn put(&mut self, socket: FlowSocket, moved: u64) {
        let (shelf, keep) =
            if moved > self.much { (&mut self.touched, self.keep_touched) } else { (&mut self.clean, self.keep) };
        if shelf.len() < keep {
            shelf.push(socket);
        }
    }
}

/// The pool of one endpoint.
pub struct RingPool {
    large: Shelf,
    small: Shelf,
    large_in_use: usize,
    large_budget: usize,
    /// Flows hold so much already that there are no more large ones.
    pub tight: bool,
}

impl RingPool {
    /// `large_budget`: flows that may have large rings at one time.
    pub fn new(large_budget: usize) -> Self {
        Self {
            large: Shelf::new(KEEP_LARGE, KEEP_LARGE_TOUCHED, LARGE_TOUCHED),
            small: Shelf::new(KEEP_SMALL, KEEP_SMALL_TOUCHED, SMALL_TOUCHED),
            large_in_use: 0,
            large_budget,
            tight: false,
        }
    }

    /// Whether a large pair is to be had.
    pub fn has_large(&self) -> bool {
        self.large_in_use < self.large_budget && !self.tight
    }

    /// How much a guest may have under way in one flow: what is there, shared by those that are bulky.
    pub fn share(&self) -> u32 {
        (UNDER_WAY / self.large_in_use.max(1)).clamp(SMALL_RING, LARGE_RING) as u32
    }

    /// A closed socket; with large rings if they are wanted and to be had.
    pub fn take(&mut self, large: bool) -> FlowSocket {
        let large = if large && self.has_large() { self.large.take().or_else(FlowSocket::large) } else { None };
        self.large_in_use += usize::from(large.is_some());
        let mut socket = large.or_else(|| self.small.take()).unwrap_or_else(FlowSocket::small);
        let tcp = socket.get_mut();
        tcp.set_nagle_enabled(false);
        // The guest's kernel must never wait for an acknowledgement (dataplane.md, rule 6).
        tcp.set_ack_delay(None);
        socket
    }

    /// Takes a socket back; `moved` is what it carried in its busier direction.
    pub fn give_back(&mut self, mut socket: FlowSocket, moved: u64) {
        socket.get_mut().abort();
        self.large_in_use -= usize::from(socket.large);
        let shelf = if socket.large { &mut self.large } else { &mut self.small };
        shelf.put(socket, moved);
    }
}
