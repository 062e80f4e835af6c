//! The highest rate at which datagrams arrive with less than one in a thousand lost.
//!
//! A flood first, whose rate is the most that the sender can do; if it arrives, that is the answer. Else the rate between
//! `LOWEST` and that one is found by bisection, in steps of `STEP`, each a paced stream of datagrams in turn over all
//! flows. A step that loses too many is taken once more and counts as failed only if that one does, too: one hiccup of a
//! shared machine does not decide. What is reported is what the receiver counted in the best of the steps that lost less.
//!
//! The sender sleeps between bursts (`TICK`) and does not spin: it shall not take a CPU from whom it measures. What is
//! late because it did not wake up in time is left out beyond `BURST`, so that it makes no flood of its own; only what was
//! sent can be lost.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Counter, Result, bad, udp_socket};

/// Length of one step.
const STEP: Duration = Duration::from_millis(120);
const STEPS: usize = 9;
/// Datagrams a second: who loses some even there has no figure but 0.
const LOWEST: f64 = 1000.0;
/// Part of them that may be lost.
const LOSS: f64 = 0.001;
/// Between two bursts of a sender.
const TICK: Duration = Duration::from_micros(50);
/// The most that a sender makes up for at once.
const BURST: u64 = 64;
/// Nothing more is to come when nothing came for so long.
const QUIET: Duration = Duration::from_millis(25);
/// What a client's datagram says that is to be answered by the server's own.
pub const HERE: &[u8] = b"here";

/// Calls `send` with 0, 1, 2 … at `rate` a second (or without a pause, if that is infinite); how many it sent, and the time.
pub fn pace(rate: f64, span: Duration, mut send: impl FnMut(u64) -> bool) -> (u64, Duration) {
    let (mut sent, mut next) = (0, 0u64);
    let begin = Instant::now();
    loop {
        let now = begin.elapsed();
        if now >= span {
            return (sent, now);
        }
        let due = if rate.is_finite() { (now.as_secs_f64() * rate) as u64 } else { next + BURST };
        next = next.max(due.saturating_sub(BURST));
        while next < due {
            sent += u64::from(send(next));
            next += 1;
        }
        if rate.is_finite() {
            thread::sleep(TICK);
        }
    }
}

/// One step: what was sent and got, and how long the sending took.
struct Step {
    sent: u64,
    got: u64,
    took: Duration,
}

impl Step {
    /// Datagrams a second that arrived, if enough of them did. More than were sent are left of the step before: no figure.
    fn rate(&self) -> Option<f64> {
        let lost = self.sent.checked_sub(self.got)? as f64;
        (self.sent > 0 && lost < self.sent as f64 * LOSS).then(|| self.got as f64 / self.took.as_secs_f64())
    }
}

/// Finds the rate and prints it.
fn search(mut step: impl FnMut(f64) -> Result<Step>) -> Result<()> {
    let flood = step(f64::INFINITY)?;
    let mut best = flood.rate();
    let (mut low, mut high) = (LOWEST, flood.sent as f64 / flood.took.as_secs_f64());
    let mut steps = 1;
    if best.is_none() {
        for _ in 0..STEPS {
            let rate = (low * high).sqrt();
            let mut found = None;
            for _ in 0..2 {
                steps += 1;
                found = step(rate)?.rate();
                if found.is_some() {
                    break;
                }
            }
            if found.is_some() {
                low = rate;
            } else {
                high = rate;
            }
            best = greater(best, found);
        }
    }
    let (per_s, flood) = (best.unwrap_or(0.0), flood.got as f64 / flood.took.as_secs_f64());
    println!("{{\"per_s\": {per_s:.1}, \"steps\": {steps}, \"flood_per_s\": {flood:.1}}}");
    Ok(())
}

fn greater(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    one.zip(other).map(|(a, b)| a.max(b)).or(one).or(other)
}

/// Waits until a count stands still or has come to `all`, and says what it is then.
fn settled(mut count: impl FnMut() -> Result<u64>, all: u64) -> Result<u64> {
    let mut last = count()?;
    let mut since = Instant::now();
    while last < all && since.elapsed() < QUIET {
        thread::sleep(Duration::from_millis(1));
        let now = count()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// From here to the server, over `flows` sockets.
pub fn send(to: SocketAddr, size: usize, flows: u64, counter: &Counter) -> Result<()> {
    let sockets = (0..flows).map(|_| udp_socket(to)).collect::<Result<Vec<_>>>()?;
    let datagram = vec![0; size];
    // A first one each, so that neighbours are resolved and the mappings stand.
    for socket in &sockets {
        socket.send(&[0])?;
        thread::sleep(Duration::from_millis(1));
    }
    settled(|| Ok(counter.now()?.0), u64::MAX)?;
    search(|rate| {
        let before = counter.now()?.0;
        let (sent, took) = pace(rate, STEP, |n| sockets[(n % flows) as usize].send(&datagram).is_ok());
        let got = settled(|| Ok(counter.now()?.0.saturating_sub(before)), sent)?;
        Ok(Step { sent, got, took })
    })
}

/// From the server to here, over `flows` sockets.
pub fn recv(from: SocketAddr, size: usize, flows: u64, counter: &Counter) -> Result<()> {
    let sockets = (0..flows).map(|_| udp_socket(from)).collect::<Result<Vec<_>>>()?;
    counter.forget_peers()?;
    let give_up = Instant::now() + Duration::from_secs(1);
    // The server does not count one twice.
    while counter.peers()? < flows {
        if Instant::now() > give_up {
            return Err(bad(&format!("the server heard of {} flows out of {flows}", counter.peers()?)));
        }
        for socket in &sockets {
            socket.send(HERE)?;
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let got = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&got);
    thread::spawn(move || read_all(&sockets, size, &count));
    search(|rate| {
        let before = got.load(Ordering::SeqCst);
        let (sent, took) = counter.pace(rate, STEP, size)?;
        let got = settled(|| Ok(got.load(Ordering::SeqCst) - before), sent)?;
        Ok(Step { sent, got, took })
    })
}

/// Counts what comes to any of the sockets, until the process ends.
fn read_all(sockets: &[UdpSocket], size: usize, got: &AtomicU64) -> Result<()> {
    for socket in sockets {
        socket.set_nonblocking(true)?;
    }
    let mut bytes = vec![0; 65_536];
    let mut ready: Vec<_> = sockets.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
    loop {
        poll(&mut ready, PollTimeout::NONE)?;
        for (socket, ready) in sockets.iter().zip(&ready) {
            if ready.any() == Some(true) {
                while let Ok(n) = socket.recv(&mut bytes) {
                    got.fetch_add(u64::from(n == size), Ordering::SeqCst);
                }
            }
        }
    }
}
