//! Which descriptors flows may have: not the last ones.
//!
//! A guest may open flows until the process has no descriptor left. What others need then (a question to a name server, a published
//! port, a capture, a member's TAP) would be refused for as long as it pleases. So the highest [`RESERVE`] numbers are not for
//! flows. The kernel gives the lowest number that is free, so a flow's socket with such a number means that all below are taken;
//! nothing has to be counted.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit};

/// Numbers that flows do not get; a quarter of them where there are fewer than four times as many.
pub const RESERVE: u64 = 64;

/// Somebody was refused since there was last seen to be room.
static TIGHT: AtomicBool = AtomicBool::new(false);

/// The first number that is not for flows. The limit is raised before anything else, and asked for once.
fn first_reserved() -> u64 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    *FIRST.get_or_init(|| getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| flows(soft)))
}

/// How many of `limit` descriptors flows may have.
fn flows(limit: u64) -> u64 {
    limit - RESERVE.min(limit / 4)
}

/// Refuses a flow the socket that was just made for it, as the kernel would, if it is one of the last.
pub fn check(socket: &impl AsFd) -> nix::Result<()> {
    let number = socket.as_fd().as_raw_fd().unsigned_abs();
    if u64::from(number) < first_reserved() {
        return Ok(());
    }
    TIGHT.store(true, Ordering::Relaxed);
    Err(Errno::EMFILE)
}

/// Refuses if a connection that is accepted now would be refused; then it waits instead. Asked of the kernel only where it was
/// tight before.
pub fn check_next(listener: &impl AsFd) -> nix::Result<()> {
    if !TIGHT.load(Ordering::Relaxed) {
        return Ok(());
    }
    let next = crate::sys::fd::adopt(fcntl(listener, FcntlArg::F_DUPFD_CLOEXEC(0))?);
    check(&next)?;
    TIGHT.store(false, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_left_whatever_the_limit() {
        assert_eq!([1_048_576, 1024, 256, 128, 4].map(flows), [1_048_512, 960, 192, 96, 3]);
    }
}
