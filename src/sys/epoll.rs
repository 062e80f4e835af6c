//! epoll_pwait2(2): epoll_wait(2) with a time-out in nanoseconds (Linux 5.11), which neither nix nor musl has.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::EpollEvent;

/// As the kernel has it on every architecture (include/uapi/linux/time_types.h, `__kernel_timespec`).
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// Waits until something is ready or `timeout` is over; how many events there are. ENOSYS where the kernel is older.
pub fn wait(epoll: BorrowedFd<'_>, events: &mut [EpollEvent], timeout: Duration) -> Result<usize, Errno> {
    let timeout = Timespec { seconds: timeout.as_secs() as i64, nanoseconds: timeout.subsec_nanos().into() };
    let count = i32::try_from(events.len()).unwrap_or(i32::MAX);
    // SAFETY: `events` is writable for `count` entries and EpollEvent is a transparent epoll_event (nix); `timeout` outlives the
    // call, which only reads it; no signal mask is given, so its size is not looked at.
    let ready = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.as_raw_fd(),
            events.as_mut_ptr(),
            count,
            &raw const timeout,
            std::ptr::null::<libc::sigset_t>(),
            0_usize,
        )
    };
    Errno::result(ready).map(|ready| ready as usize)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Instant;

    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollFlags};
    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn it_waits_no_longer_than_needed() {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let wake = EventFd::new().unwrap();
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, 7)).unwrap();
        let mut events = [EpollEvent::empty(); 4];
        let begun = Instant::now();
        match wait(epoll.0.as_fd(), &mut events, Duration::from_micros(300)) {
            // An older kernel.
            Err(Errno::ENOSYS) => return,
            ready => assert_eq!(ready, Ok(0)),
        }
        assert!(begun.elapsed() >= Duration::from_micros(300));
        wake.write(1).unwrap();
        assert_eq!(wait(epoll.0.as_fd(), &mut events, Duration::from_mins(1)), Ok(1));
        assert_eq!(events[0].data(), 7);
    }
}
