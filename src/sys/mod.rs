//! All unsafe code of tapway: thin, typed wrappers around system calls that nix and socket2 do not have.
//!
//! Each block says which precondition holds and why. Everything that leaves this module is an `OwnedFd`, a
//! `BorrowedFd`, a value or an errno.
#![allow(unsafe_code)]

pub mod allocator;
pub mod epoll;
pub mod fd;
pub mod memory;
pub mod mount;
pub mod msg;
pub mod namespace;
pub mod random;
pub mod spawn;
pub mod tap;

/// Processor time of this thread, nanoseconds; 0 where the kernel does not say.
pub fn thread_time() -> u64 {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    let time = nix::time::clock_gettime(clock).map_or(std::time::Duration::ZERO, std::time::Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
