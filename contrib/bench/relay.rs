//! A bare relay between two TAPs, a yardstick of `contrib/bench/compare`: what a program in userspace can do at best
//! that takes each frame from one kernel and gives it to another.
//!
//! ```text
//! bench-relay NETNS NETNS     makes eth0 in each namespace, says "ready", and relays until it is killed
//! ```
//!
//! The TAPs are made by tapway's own code, with the same header and offloads. One thread waits in a level-triggered
//! poll(2) and moves frames, unread and unchanged, until a TAP has none left or has had its turn. There is no check, no
//! table and no counter: a switch can only be slower.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use tapway::link::tap::{Read, Tap};
use tapway::sandbox::tap::create;
use tapway::wire::vnet::MAX_FRAME;

/// Frames of one TAP until the other has its turn. 1, 8, 64 and 256 measured alike, within the noise.
const TURN: usize = 64;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [first, second] = &args[..] else {
        return Err(Error::new(ErrorKind::InvalidInput, "usage: bench-relay NETNS NETNS"));
    };
    // Opened before we leave our own namespace: the paths may be below /proc/self.
    let spaces = [File::open(first)?, File::open(second)?];
    let mut taps = Vec::new();
    for space in spaces {
        setns(space, CloneFlags::CLONE_NEWNET)?;
        let (fd, offloads) = create("eth0").map_err(Error::other)?;
        if !offloads.vnet_hdr {
            return Err(Error::new(ErrorKind::Unsupported, "this kernel's TAPs have no vnet header"));
        }
        taps.push(Tap::new(fd, true));
    }
    println!("ready");
    relay(&taps[0], &taps[1])
}

fn relay(one: &Tap, other: &Tap) -> Result<()> {
    let mut frame = vec![0; MAX_FRAME];
    loop {
        let mut ready = [PollFd::new(one.as_fd(), PollFlags::POLLIN), PollFd::new(other.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE)?;
        let ready = ready.map(|fd| fd.any() == Some(true));
        for (ready, from, to) in [(ready[0], one, other), (ready[1], other, one)] {
            for _ in 0..if ready { TURN } else { 0 } {
                match from.read(&mut frame)? {
                    // What the other kernel refuses is lost, as on any wire.
                    Read::Frame(len) => drop(to.write(&frame[..len])),
                    Read::Empty => break,
                    Read::Gone => return Ok(()),
                }
            }
        }
    }
}
