//! Where flows get their sockets: pairs of rings in two sizes, recycled with the socket around them.
//!
//! Rings of about 1 MiB measured best for bulk (256 KiB lost a third), but ten thousand flows cannot have them. So a flow
//! gets a large pair while the budget lasts and a small one above it: over budget means slower, never refused. The
//! memory comes zeroed from the allocator by mmap, so a page costs only when touched; an idle or short flow touches the
//! first page of each ring, because smoltcp's `listen` and `connect` start them afresh. A recycled pair keeps its pages;
//! one that carried bulk data is freed instead (kept only up to [`KEEP_TOUCHED`]).
//!
//! smoltcp 0.14 gives no way to take a socket's rings back, but resets a socket in `listen` and `connect`; hence whole
//! one-socket sets are recycled.

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;

/// A large ring: sixteen super-frame payloads of 65 495 bytes, because smoltcp's segments do not cross the wrap.
pub const LARGE_RING: usize = 16 * 65_495;
/// A small ring: one window of 64 KiB.
pub const SMALL_RING: usize = 65_536;
/// Free pairs kept of each size.
const KEEP_FREE: usize = 64;
/// Free large pairs kept although all their pages may be touched (up to 2 MiB each).
const KEEP_TOUCHED: usize = 2;
/// A flow that moved more than this in one direction has touched much of its rings.
const TOUCHED: u64 = 256 * 1024;

/// One socket in a set of its own, because smoltcp scans the set on every packet.
pub struct FlowSocket {
    /// The set, lent to each `Interface` call.
    pub set: SocketSet<'static>,
    handle: SocketHandle,
    large: bool,
}

impl FlowSocket {
    fn new(large: bool) -> Self {
        let size = if large { LARGE_RING } else { SMALL_RING };
        let socket = tcp::Socket::new(tcp::SocketBuffer::new(vec![0; size]), tcp::SocketBuffer::new(vec![0; size]));
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Self { set, handle, large }
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

/// The pool of one network process.
pub struct RingPool {
    free_large: Vec<FlowSocket>,
    free_small: Vec<FlowSocket>,
    large_in_use: usize,
    large_budget: usize,
    touched_kept: usize,
}

impl RingPool {
    /// `large_budget`: flows that may have large rings at one time.
    pub fn new(large_budget: usize) -> Self {
        Self {
            free_large: Vec::with_capacity(KEEP_FREE),
            free_small: Vec::with_capacity(KEEP_FREE),
            large_in_use: 0,
            large_budget,
            touched_kept: 0,
        }
    }

    /// A closed socket.
    pub fn take(&mut self) -> FlowSocket {
        let large = self.large_in_use < self.large_budget;
        let free = if large { &mut self.free_large } else { &mut self.free_small };
        let mut socket = free.pop().unwrap_or_else(|| FlowSocket::new(large));
        if large {
            self.large_in_use += 1;
            self.touched_kept = self.touched_kept.min(self.free_large.len());
        }
        let tcp = socket.get_mut();
        tcp.set_nagle_enabled(false);
        // The guest's kernel must never wait for an acknowledgement (dataplane.md, rule 6).
        tcp.set_ack_delay(None);
        socket
    }

    /// Takes a socket back; `moved` is what its flow carried in its busier direction.
    pub fn give_back(&mut self, mut socket: FlowSocket, moved: u64) {
        let touched = moved > TOUCHED;
        socket.get_mut().abort();
        if socket.large {
            self.large_in_use -= 1;
            if self.free_large.len() < KEEP_FREE && (!touched || self.touched_kept < KEEP_TOUCHED) {
                self.touched_kept += usize::from(touched);
                self.free_large.push(socket);
            }
        } else if self.free_small.len() < KEEP_FREE {
            self.free_small.push(socket);
        }
    }
}
