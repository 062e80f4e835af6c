//! Captures: copies of frames, both ways, in pcapng, begun and ended while traffic flows and never at its cost.
//!
//! ```text
//!  control plane  Captures::start(fd) ─────────► writer thread ──► descriptor
//!                    │ Command::StartCapture         ▲ ring (bounded)
//!                    ▼                               │
//!  data plane     Taken: every frame ─ filter ─► Capture
//! ```
//!
//! The control plane makes the ring and the thread; the data plane is handed its end of the ring. Without a capture a
//! frame costs it one comparison. With one, each frame is looked at by the filter, and one that passes is given the time
//! of that moment (the clock is read once for each kept frame, from user space) and copied, as a block of the file. A
//! full ring drops the frame from the capture, counted, and never waits: a file system or reader that stalls costs
//! frames of the capture, not of the guest. What is not yet a full chunk goes to the writer at the end of a turn, but
//! not more often than every [`FOLLOW`]; that, and once a chunk, is when the writer is woken.
//!
//! A capture ends when it is stopped, when the next frame would not fit under its `max_bytes`, when its descriptor
//! refuses a write, and with the process, which waits for the writers up to [`DRAIN`]. A stop waits as long for the
//! writer; then one that waits for its reader is told to give up, and what it did not write counts as dropped. A
//! descriptor that blocks all the same (a file system that hangs) keeps its thread and its memory until it lets go, and
//! its place among the [`MAX_CAPTURES`].
//!
//! Where an endpoint's TAP has several queues, their threads share each capture, behind a lock that is held for the copy
//! ([`Running`]): the ring has one end for all of them, and the file the frames in the order in which they took it.
//!
//! The monitor opens the file of `--pcap`; that capture is begun before the first frame, is no request's to stop, and
//! has a place of its own.
//!
//! A process may die within a write. So a regular file's position is moved only behind whole blocks, by the writer; with
//! the duplicate that the monitor holds it outlives the process, and a successor that goes on with the file
//! ([`Origin::resumed`]) cuts off what lies behind and begins a section of its own.

mod ring;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use smoltcp::time::Instant;
use tokio::sync::{oneshot, watch};

use super::command::DataPlane;
use crate::api::error::{ApiError, Code};
use crate::api::verbs::capture::{CaptureState, CaptureStatus};
use crate::link::pcap::{self, Direction};
use crate::network::capture::{CaptureFilter, CaptureOptions};
use crate::wire::vnet::VNET_HDR_LEN;
use ring::{Filling, Gone};

/// Captures that requests may have at once, stuck ones included.
pub const MAX_CAPTURES: usize = 4;
/// Bytes of one capture's ring: 8 ms of 8 Gbit/s, which is about what a busy machine lets a thread wait for a CPU.
pub const RING: usize = 8 * 1024 * 1024;
/// How far a file may lag behind the traffic.
pub const FOLLOW: Duration = Duration::from_millis(20);
/// How long the end of the process, and of a stopped capture, waits for the writer. Less than the monitor's patience.
pub const DRAIN: Duration = Duration::from_millis(1500);
/// How long a new capture waits to hear that its file takes the first bytes; longer is a reader that stalls.
const FIRST_BYTES: Duration = Duration::from_millis(500);
/// Finished captures that are still told of, until somebody stops them.
const MAX_FINISHED: usize = 16;
/// Stack of a writer.
const STACK: usize = 128 * 1024;

/// Why a capture is not begun or stopped.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The bound.
    #[error("{MAX_CAPTURES} captures run already; stop one first")]
    TooMany,
    /// The descriptor is for reading, or names no open file.
    #[error("the descriptor that came with the request is not open for writing")]
    NotWritable,
    /// Nothing fits.
    #[error("max_bytes {max_bytes} is less than the {least} bytes of a capture file without frames")]
    TooSmall {
        /// What was asked for.
        max_bytes: u64,
        /// What it takes.
        least: u64,
    },
    /// No ring.
    #[error(
        "there is no memory for the {ring_bytes} bytes of a capture's ring; give the process more (ulimit -v), or capture later"
    )]
    Memory {
        /// What it takes.
        ring_bytes: usize,
    },
    /// No thread.
    #[error("cannot start the thread that writes the capture")]
    Thread(#[source] io::Error),
    /// The first write.
    #[error("cannot write to the capture file")]
    File(#[source] io::Error),
    /// The data plane.
    #[error("the capture found no data plane")]
    Gone(#[source] io::Error),
    /// The limit leaves no room for another section.
    #[error("max_bytes {max_bytes} leaves no room to go on")]
    Full {
        /// The limit.
        max_bytes: u64,
    },
    /// No such number.
    #[error("there is no capture {0}")]
    Unknown(u32),
    /// None at all.
    #[error("no capture runs")]
    None,
    /// Which one?
    #[error("several captures run ({}); name one by its id", .0.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))]
    Several(Vec<u32>),
}

impl From<CaptureError> for ApiError {
    fn from(error: CaptureError) -> Self {
        let code = match &error {
            CaptureError::TooMany | CaptureError::Full { .. } | CaptureError::Memory { .. } => Code::Limit,
            CaptureError::NotWritable
            | CaptureError::TooSmall { .. }
            | CaptureError::File(_)
            | CaptureError::Several(_) => Code::BadArgument,
            CaptureError::Unknown(_) | CaptureError::None => Code::NotFound,
            CaptureError::Gone(_) => Code::Gone,
            CaptureError::Thread(_) => Code::Internal,
        };
        Self::new(code, crate::telemetry::chain(&error))
    }
}

/// How a capture ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was stopped.
    Stopped,
    /// The next frame would not have fitted.
    Limit,
    /// A write failed: why.
    Failed(String),
}

/// What became of a capture so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureReport {
    /// Its number.
    pub id: u32,
    /// Frames in the file.
    pub packets: u64,
    /// Length of the file, headers included; what of it this capture wrote.
    pub bytes: u64,
    /// Sections that it has in the file.
    pub sections: u32,
    /// Frames that passed the filter and are not in the file: the ring was full, or the write failed. While the capture
    /// runs, only those of a full ring.
    pub dropped: u64,
    /// None: it runs.
    pub end: Option<End>,
}

/// What the two threads say to each other and to the control plane.
#[derive(Debug, Default)]
pub struct Shared {
    /// Frames that passed the filter. Written by the data plane.
    seen: AtomicU64,
    /// Those that found the ring full. Written by the data plane.
    refused: AtomicU64,
    /// The next frame did not fit. Written by the data plane before it lets go.
    limited: AtomicBool,
    /// Frames in the file. Written by the writer, as is the next.
    packets: AtomicU64,
    bytes: AtomicU64,
    sections: u32,
    end: OnceLock<End>,
    /// Written by the control plane.
    give_up: AtomicBool,
}

impl Shared {
    fn report(&self, id: u32) -> CaptureReport {
        let end = self.end.get().cloned();
        let packets = self.packets.load(Ordering::Acquire);
        let dropped = match end {
            Some(_) => self.seen.load(Ordering::Acquire).saturating_sub(packets),
            None => self.refused.load(Ordering::Relaxed),
        };
        let bytes = self.bytes.load(Ordering::Relaxed);
        CaptureReport { id, packets, bytes, sections: self.sections, dropped, end }
    }
}

impl From<CaptureReport> for CaptureStatus {
    fn from(CaptureReport { id, packets, bytes, sections, dropped, end }: CaptureReport) -> Self {
        let (state, error) = match end {
            None => (CaptureState::Running, None),
            Some(End::Stopped) => (CaptureState::Stopped, None),
            Some(End::Limit) => (CaptureState::Limit, None),
            Some(End::Failed(why)) => (CaptureState::Failed, Some(why)),
        };
        Self { id, packets, bytes, dropped, sections, state, error }
    }
}

// ---- the data plane's side ----

/// One capture, as the data plane has it.
#[derive(Debug)]
pub struct Capture {
    id: u32,
    filter: CaptureFilter,
    snap_length: usize,
    /// Bytes that blocks may still take in the file.
    left: u64,
    ring: Filling,
    /// When something was last handed to the writer before a chunk was full.
    flushed: Option<Instant>,
    waits: bool,
    over: bool,
    seen: u64,
    refused: u64,
    shared: Arc<Shared>,
}

impl Capture {
    /// `frame`: without a vnet header.
    fn take(&mut self, direction: Direction, frame: &[u8]) {
        if self.over || !self.filter.matches(frame) {
            return;
        }
        let length = pcap::packet_len(frame.len().min(self.snap_length));
        if length as u64 > self.left {
            self.over = true;
            self.shared.limited.store(true, Ordering::Release);
            return;
        }
        self.seen += 1;
        self.shared.seen.store(self.seen, Ordering::Release);
        let snap_length = self.snap_length;
        let kept = self.ring.push(length, |to| {
            let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            pcap::packet(to, time, direction, frame, snap_length);
        });
        match kept {
            Ok(true) => {
                self.left -= length as u64;
                self.waits = true;
            }
            Ok(false) => {
                self.refused += 1;
                self.shared.refused.store(self.refused, Ordering::Relaxed);
            }
            Err(Gone) => self.over = true,
        }
    }

    fn due(&self) -> Option<Instant> {
        self.waits.then(|| self.flushed.map_or(Instant::ZERO, |at| at + FOLLOW.into()))
    }

    fn settle(&mut self, now: Instant) {
        if self.due().is_some_and(|at| at <= now) {
            self.flushed = Some(now);
            match self.ring.flush() {
                Ok(waits) => self.waits = waits,
                Err(Gone) => self.over = true,
            }
        }
    }
}

/// A capture that the threads of an endpoint's data plane share: whoever has a frame has the lock for as long as it is copied.
/// Nobody else ever waits for it.
#[derive(Clone, Debug)]
pub struct Running {
    id: u32,
    /// None: it was stopped.
    capture: Arc<Mutex<Option<Capture>>>,
}

impl From<Capture> for Running {
    fn from(capture: Capture) -> Self {
        Self { id: capture.id, capture: Arc::new(Mutex::new(Some(capture))) }
    }
}

impl Running {
    fn get(&self) -> MutexGuard<'_, Option<Capture>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of it, for all: the writer ends when it has written what it was given.
    fn end(&self) {
        drop(self.get().take());
    }
}

/// The captures that one thread of the data plane serves. Clones are for further ones.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    captures: Vec<Running>,
    writers: Writers,
}

impl Taken {
    /// None yet. `writers`: all threads that write, to be waited for in the end.
    pub fn new(writers: Writers) -> Self {
        Self { captures: Vec::with_capacity(MAX_CAPTURES + 1), writers }
    }

    /// Whether there are none: then a frame needs no look.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.captures.is_empty()
    }

    /// One more.
    pub fn add(&mut self, capture: impl Into<Running>) {
        self.captures.push(capture.into());
    }

    /// Ends one; false if it is not there.
    pub fn remove(&mut self, id: u32) -> bool {
        let before = self.captures.len();
        self.captures.retain(|capture| {
            let stays = capture.id != id;
            if !stays {
                capture.end();
            }
            stays
        });
        before != self.captures.len()
    }

    /// Copies a frame, vnet header first, to each whose filter fits.
    pub fn take(&mut self, direction: Direction, frame: &[u8]) {
        let frame = frame.get(VNET_HDR_LEN..).unwrap_or_default();
        for capture in &self.captures {
            if let Some(capture) = &mut *capture.get() {
                capture.take(direction, frame);
            }
        }
    }

    /// At the end of a turn: hands over what waits for too long, and lets go of those that have ended.
    pub fn settle(&mut self, now: Instant) {
        if !self.captures.is_empty() {
            self.captures.retain(|running| {
                let mut capture = running.get();
                if let Some(capture) = &mut *capture {
                    capture.settle(now);
                }
                if capture.as_ref().is_some_and(|capture| capture.over) {
                    *capture = None;
                }
                capture.is_some()
            });
        }
    }

    /// When [`Taken::settle`] wants to be called.
    pub fn due(&self) -> Option<Instant> {
        self.captures.iter().filter_map(|running| running.get().as_ref()?.due()).min()
    }

    /// The control plane has ended, and the process will: there are no more frames for captures.
    pub fn heed_end(&mut self) {
        if self.writers.0.closing.load(Ordering::Acquire) {
            self.clear();
        }
    }

    /// Lets go of all, and waits until all is written, but for no longer than that.
    pub fn finish(&mut self, patience: Duration) {
        self.clear();
        self.writers.wait(patience);
    }

    fn clear(&mut self) {
        self.captures.drain(..).for_each(|capture| capture.end());
    }
}

// ---- threads ----

/// The writers that live.
#[derive(Clone, Debug, Default)]
pub struct Writers(Arc<Living>);

#[derive(Debug, Default)]
struct Living {
    count: Mutex<usize>,
    less: Condvar,
    closing: AtomicBool,
}

/// One living writer.
#[derive(Debug)]
pub struct Ticket(Writers);

impl Writers {
    fn enter(&self, most: usize) -> Option<Ticket> {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Ticket(self.clone()))
    }

    /// Says that the process is about to end; the data plane looks when it is woken.
    pub fn close(&self) {
        self.0.closing.store(true, Ordering::Release);
    }

    /// Waits until none is left; false if that took too long.
    pub fn wait(&self, patience: Duration) -> bool {
        let count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.less.wait_timeout_while(count, patience, |count| *count > 0);
        let (count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *count == 0
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let living = &self.0.0;
        *living.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        living.less.notify_all();
    }
}

/// Which capture, and what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    id: u32,
    sections: u32,
    /// Bytes that it has in the file.
    written: u64,
    /// The file is gone on with.
    resumed: bool,
}

impl Origin {
    /// One that begins.
    pub fn new(id: u32) -> Self {
        Self { id, sections: 1, written: 0, resumed: false }
    }

    /// One that was begun by a process that died, having written so many bytes; `sections` with the one to come.
    pub fn resumed(id: u32, sections: u32, written: u64) -> Self {
        Self { id, sections, written, resumed: true }
    }
}

/// A capture and its writer, made but not yet seen by the data plane.
struct Made {
    capture: Capture,
    started: oneshot::Receiver<io::Result<()>>,
    ended: watch::Receiver<()>,
}

fn make(
    origin: Origin,
    fd: OwnedFd,
    options: &CaptureOptions,
    ring_bytes: usize,
    tickets: Vec<Ticket>,
) -> Result<Made, CaptureError> {
    let mode = fcntl(fd.as_fd(), FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    if mode.is_ok_and(|mode| mode & OFlag::O_ACCMODE == OFlag::O_RDONLY) {
        return Err(CaptureError::NotWritable);
    }
    let mut header = Vec::new();
    pcap::start(&mut header, options.snap_length);
    let least = (header.len() + pcap::STATISTICS_LEN) as u64;
    let left = match options.max_bytes {
        Some(max_bytes) if origin.resumed => {
            max_bytes.checked_sub(origin.written + least).ok_or(CaptureError::Full { max_bytes })?
        }
        Some(max_bytes) => max_bytes.checked_sub(least).ok_or(CaptureError::TooSmall { max_bytes, least })?,
        None => u64::MAX,
    };
    let Origin { id, sections, written, resumed } = origin;
    let shared = Arc::new(Shared { sections, bytes: written.into(), ..Shared::default() });
    let (filling, chunks) = ring::ring(ring_bytes).map_err(|_| CaptureError::Memory { ring_bytes })?;
    let (started, first) = oneshot::channel();
    let (ended, last) = watch::channel(());
    let writer = writer::Writer {
        fd,
        resumed,
        header,
        chunks,
        shared: Arc::clone(&shared),
        started: Some(started),
        ended,
        tickets,
    };
    std::thread::Builder::new()
        .name("capture".into())
        .stack_size(STACK)
        .spawn(move || writer.run())
        .map_err(CaptureError::Thread)?;
    let capture = Capture {
        id,
        filter: options.filter,
        snap_length: options.snap_length.get() as usize,
        left,
        ring: filling,
        flushed: None,
        waits: false,
        over: false,
        seen: 0,
        refused: 0,
        shared,
    };
    Ok(Made { capture, started: first, ended: last })
}

/// The capture of `--pcap`, for the data plane to begin with. What goes wrong later is only logged. The monitor has opened
/// the file for it alone, so what lies behind its position is of a process that died.
pub fn of_run(fd: OwnedFd, writers: &Writers, ring_bytes: usize) -> Result<Capture, CaptureError> {
    let ticket = writers.enter(usize::MAX).ok_or(CaptureError::TooMany)?;
    let origin = Origin::resumed(0, 1, 0);
    make(origin, fd, &CaptureOptions::default(), ring_bytes, vec![ticket]).map(|made| made.capture)
}

// ---- the control plane's side ----

#[derive(Debug)]
struct Handle {
    id: u32,
    shared: Arc<Shared>,
    ended: watch::Receiver<()>,
}

/// The captures that requests began, by number. Numbers go upwards from 1 and are never given again.
#[derive(Debug)]
pub struct Captures {
    all: Writers,
    /// Those of requests, which are bounded.
    requested: Writers,
    handles: Mutex<Vec<Handle>>,
    next_id: AtomicU32,
    ring_bytes: usize,
}

impl Default for Captures {
    fn default() -> Self {
        Self::new(RING)
    }
}

impl Captures {
    /// With rings of so many bytes.
    pub fn new(ring_bytes: usize) -> Self {
        Self {
            all: Writers::default(),
            requested: Writers::default(),
            handles: Mutex::default(),
            next_id: AtomicU32::new(1),
            ring_bytes,
        }
    }

    /// Every writer that lives.
    pub fn writers(&self) -> &Writers {
        &self.all
    }

    /// Begins a capture into `fd`; returns its number when the data plane serves it.
    pub async fn start(&self, plane: &DataPlane, fd: OwnedFd, options: &CaptureOptions) -> Result<u32, CaptureError> {
        self.start_from(plane, None, fd, options).await
    }

    /// The same where somebody else numbers captures, and may have one gone on with.
    pub async fn start_from(
        &self,
        plane: &DataPlane,
        origin: Option<Origin>,
        fd: OwnedFd,
        options: &CaptureOptions,
    ) -> Result<u32, CaptureError> {
        let bounded = self.requested.enter(MAX_CAPTURES).ok_or(CaptureError::TooMany)?;
        let ticket = self.all.enter(usize::MAX).ok_or(CaptureError::TooMany)?;
        let origin = origin.unwrap_or_else(|| Origin::new(self.next_id.fetch_add(1, Ordering::Relaxed)));
        let id = origin.id;
        let Made { capture, started, ended } = make(origin, fd, options, self.ring_bytes, vec![ticket, bounded])?;
        // No answer yet is somebody's stalled pipe, which is no error.
        if let Ok(Ok(Err(error))) = tokio::time::timeout(FIRST_BYTES, started).await {
            return Err(CaptureError::File(error));
        }
        // Before the data plane has it, so that it can be stopped even if whoever asked goes away now.
        self.remember(Handle { id, shared: Arc::clone(&capture.shared), ended });
        let asked = plane.start_capture(&capture.into()).await;
        asked.map(|()| id).map_err(|error| {
            self.forget(id);
            CaptureError::Gone(error)
        })
    }

    /// Ends a capture, or tells of one that has ended by itself, and forgets it. Without a number: the only one.
    pub async fn stop(&self, plane: &DataPlane, id: Option<u32>) -> Result<CaptureReport, CaptureError> {
        let (id, shared, mut ended) = self.find(id)?;
        if shared.end.get().is_none() {
            plane.stop_capture(id).await.map_err(CaptureError::Gone)?;
            let mut over = async || while ended.changed().await.is_ok() {};
            if tokio::time::timeout(DRAIN, over()).await.is_err() {
                shared.give_up.store(true, Ordering::Release);
                // A descriptor that hangs is left to itself.
                let _ = tokio::time::timeout(DRAIN, over()).await;
            }
        }
        self.forget(id);
        Ok(shared.report(id))
    }

    /// Waits for the end of a capture; None if there is no such one.
    pub async fn ended(&self, id: u32) -> Option<CaptureReport> {
        let (id, shared, mut ended) = self.find(Some(id)).ok()?;
        while ended.changed().await.is_ok() {}
        Some(shared.report(id))
    }

    /// Every capture of requests, ended ones too until they are stopped.
    pub fn list(&self) -> Vec<CaptureReport> {
        self.handles().iter().map(|handle| handle.shared.report(handle.id)).collect()
    }

    fn handles(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: Option<u32>) -> Result<(u32, Arc<Shared>, watch::Receiver<()>), CaptureError> {
        let handles = self.handles();
        let handle = match (id, handles.as_slice()) {
            (Some(id), all) => all.iter().find(|handle| handle.id == id).ok_or(CaptureError::Unknown(id))?,
            (None, []) => return Err(CaptureError::None),
            (None, [only]) => only,
            (None, all) => return Err(CaptureError::Several(all.iter().map(|handle| handle.id).collect())),
        };
        Ok((handle.id, Arc::clone(&handle.shared), handle.ended.clone()))
    }

    fn remember(&self, handle: Handle) {
        let mut handles = self.handles();
        let ended = |handle: &Handle| handle.shared.end.get().is_some();
        if handles.iter().filter(|handle| ended(handle)).count() >= MAX_FINISHED
            && let Some(oldest) = handles.iter().position(ended)
        {
            handles.remove(oldest);
        }
        handles.push(handle);
    }

    fn forget(&self, id: u32) {
        self.handles().retain(|handle| handle.id != id);
    }
}
