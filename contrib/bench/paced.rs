//! The highest rate at which datagrams arrive with less than one in a thousand lost.
//!
//! A flood first, and from the rate at which that arrived a staircase: each step is a short paced stream of datagrams in turn
//! over all flows; the rate goes up after one that arrived and down after one that did not, by less each time that the direction
//! changes and by more when it does not. Unlike a bisection this comes back from a step that a hiccup of a shared machine has
//! spoilt. What is reported is what the receiver counted in the best of the steps that arrived, the same number of steps for all.
//!
//! Flows are sockets whose first datagram was answered; one that gets no answer is replaced, as it says nothing about rates.
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

/// Length of one step: short, so that few of them have a hiccup.
const STEP: Duration = Duration::from_millis(50);
const STEPS: u32 = 36;
/// Factors from one step's rate to the next one's: of the first, and the least and most of the later.
const FIRST: f64 = 1.6;
const LEAST: f64 = 1.1;
const MOST: f64 = 3.0;
/// Part of the datagrams that may be lost.
const LOSS: f64 = 0.001;
/// Between two bursts of a sender.
const TICK: Duration = Duration::from_micros(50);
/// The most that a sender makes up for at once.
const BURST: u64 = 64;
/// Nothing more is to come when nothing came for so long.
const QUIET: Duration = Duration::from_millis(25);
/// What a client's datagram says that is to be answered, and by whom its sender becomes a peer.
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

/// What was found: datagrams a second that arrive without loss, and of a flood.
#[derive(Debug)]
struct Found {
    without_loss: f64,
    flood: f64,
}

impl Found {
    fn print(&self) {
        println!("{{\"per_s\": {:.1}, \"flood_per_s\": {:.1}}}", self.without_loss, self.flood);
    }
}

fn search(mut step: impl FnMut(f64) -> Result<Step>) -> Result<Found> {
    let flood = step(f64::INFINITY)?;
    let mut best = flood.rate();
    let seconds = flood.took.as_secs_f64();
    // What the sender has proved able to do; to ask for much more asks for nothing.
    let mut able = flood.sent as f64 / seconds;
    let (mut rate, mut factor) = (flood.got as f64 / seconds, FIRST);
    let mut way = None;
    for _ in 0..STEPS {
        // Below ten datagrams a step there is nothing to find.
        rate = rate.min(able * 1.5).max(10.0 / STEP.as_secs_f64());
        let step = step(rate)?;
        able = able.max(step.sent as f64 / step.took.as_secs_f64());
        let found = step.rate();
        best = best.into_iter().chain(found).reduce(f64::max);
        let up = found.is_some();
        factor = match way {
            None => factor,
            Some(before) if before == up => factor.powf(1.5).min(MOST),
            Some(_) => factor.sqrt().max(LEAST),
        };
        way = Some(up);
        rate = if up { rate * factor } else { rate / factor };
    }
    Ok(Found { without_loss: best.unwrap_or(0.0), flood: flood.got as f64 / seconds })
}

/// Sockets whose way to the server and back works.
fn flows(to: SocketAddr, wanted: usize) -> Result<Vec<UdpSocket>> {
    let mut sockets = Vec::new();
    for _ in 0..2 * wanted {
        let socket = udp_socket(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut answer = [0; HERE.len() + 1];
        let answered =
            (0..3).any(|_| socket.send(HERE).is_ok() && socket.recv(&mut answer).is_ok_and(|n| n == HERE.len()));
        if answered {
            sockets.push(socket);
            if sockets.len() == wanted {
                return Ok(sockets);
            }
        }
    }
    Err(bad(&format!("{} flows out of {wanted}", sockets.len())))
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

/// From here to the server, over so many flows.
pub fn send(to: SocketAddr, size: usize, wanted: usize, counter: &Counter) -> Result<()> {
    let sockets = flows(to, wanted)?;
    let datagram = vec![0; size];
    search(|rate| {
        let before = counter.now()?.0;
        let (sent, took) = pace(rate, STEP, |n| sockets[n as usize % wanted].send(&datagram).is_ok());
        let got = settled(|| Ok(counter.now()?.0.saturating_sub(before)), sent)?;
        Ok(Step { sent, got, took })
    })
    .map(|found| found.print())
}

/// From the server to here, over so many flows.
pub fn recv(from: SocketAddr, size: usize, wanted: usize, counter: &Counter) -> Result<()> {
    let sockets = flows(from, wanted)?;
    counter.forget_peers()?;
    let give_up = Instant::now() + Duration::from_secs(1);
    // The server does not count one twice.
    while counter.peers()? < wanted as u64 {
        if Instant::now() > give_up {
            return Err(bad(&format!("the server heard of {} flows out of {wanted}", counter.peers()?)));
        }
        for socket in &sockets {
            socket.send(HERE)?;
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
    .map(|found| found.print())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that takes `most` a second and loses the rest, of steps whose number is given.
    fn path(most: f64, spoilt: &[usize]) -> Found {
        let mut number = 0;
        search(|rate| {
            let offered = rate.min(400_000.0) * STEP.as_secs_f64();
            let taken = if spoilt.contains(&number) { offered / 2.0 } else { most * STEP.as_secs_f64() };
            number += 1;
            Ok(Step { sent: offered as u64, got: offered.min(taken) as u64, took: STEP })
        })
        .expect("no step fails")
    }

    #[test]
    fn the_highest_rate_without_loss_is_found() {
        for most in [20_000.0, 90_000.0, 300_000.0, 500_000.0] {
            let found = path(most, &[]).without_loss;
            let right = most.min(400_000.0);
            assert!(found <= right * 1.001 && found > right * 0.93, "{found} instead of {right}");
        }
    }

    #[test]
    fn a_flood_that_collapses_does_not_hide_it() {
        // The flood arrives at 1000 a second, and the path takes a hundred times that.
        let mut first = true;
        let found = search(|rate| {
            let most = if std::mem::take(&mut first) { 1_000.0 } else { 100_000.0 };
            let offered = rate.min(400_000.0) * STEP.as_secs_f64();
            Ok(Step { sent: offered as u64, got: offered.min(most * STEP.as_secs_f64()) as u64, took: STEP })
        })
        .expect("no step fails");
        assert!(found.without_loss > 80_000.0 && found.flood < 1_100.0, "{found:?}");
    }

    #[test]
    fn a_hiccup_does_not_decide() {
        for spoilt in 1..12 {
            let found = path(90_000.0, &[spoilt, spoilt + 1]).without_loss;
            assert!(found > 80_000.0, "{found} when steps {spoilt} and the next are spoilt");
        }
    }

    #[test]
    fn nothing_that_arrives_is_no_rate() {
        assert_eq!(path(0.0, &[]).without_loss.to_bits(), 0f64.to_bits());
    }

    #[test]
    fn more_than_was_sent_is_no_figure() {
        assert!(Step { sent: 100, got: 101, took: STEP }.rate().is_none());
        assert!(Step { sent: 10_000, got: 9_990, took: STEP }.rate().is_none());
        assert!(Step { sent: 10_000, got: 9_991, took: STEP }.rate().is_some());
    }

    #[test]
    fn a_pace_is_kept_and_arrears_are_left_out() {
        let mut seen = Vec::new();
        let (sent, took) = pace(10_000.0, Duration::from_millis(50), |n| {
            if n == 100 {
                thread::sleep(Duration::from_millis(20));
            }
            seen.push(n);
            true
        });
        // 20 ms are 200 datagrams, of which a burst is made up for.
        assert!(took >= Duration::from_millis(50) && sent == seen.len() as u64);
        assert!(sent <= 500 - 200 + 2 * BURST, "{sent} sent");
        assert!(seen.windows(2).all(|w| w[0] < w[1]));
    }
}
