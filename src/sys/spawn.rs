//! Processes: fork, clone into new namespaces, and what a fresh child must shed.
//!
//! tapway's monitor is single-threaded for life, which is what makes `fork` without `exec` sound here: the child's only
//! thread is a whole copy of the parent's, so no lock can be held by a thread that no longer exists. Every function
//! that forks therefore refuses when the process has more than one thread.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// In the caller; the new process's id.
    Parent(Pid),
    /// In the new process.
    Child,
}

/// Forks. Fails with EBUSY when another thread runs (see the module head).
pub fn fork() -> nix::Result<Forked> {
    clone_into(CloneFlags::empty())
}

/// Forks into new namespaces: as fork(2), but the child is born in a new namespace of each kind in `flags`
/// (`CLONE_NEW*`), and so is process 1 of a new PID namespace. With `CLONE_PARENT` it is not our child but our parent's.
///
/// Fails with EBUSY when another thread runs.
pub fn clone_into(flags: CloneFlags) -> nix::Result<Forked> {
    const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
        .union(CloneFlags::CLONE_NEWNET)
        .union(CloneFlags::CLONE_NEWNS)
        .union(CloneFlags::CLONE_NEWUTS)
        .union(CloneFlags::CLONE_NEWIPC)
        .union(CloneFlags::CLONE_NEWPID)
        .union(CloneFlags::CLONE_NEWCGROUP)
        .union(CloneFlags::CLONE_PARENT);
    if !NAMESPACES.contains(flags) {
        return Err(Errno::EINVAL);
    }
    if !single_threaded() {
        return Err(Errno::EBUSY);
    }
    if flags.is_empty() {
        // SAFETY: this process has one thread (checked above), so the child is a whole copy and may run any code.
        return match unsafe { libc::fork() } {
            -1 => Err(Errno::last()),
            0 => Ok(Forked::Child),
            pid => Ok(Forked::Parent(Pid::from_raw(pid))),
        };
    }
    let flags = libc::c_ulong::try_from(flags.bits() | libc::SIGCHLD).map_err(|_| Errno::EINVAL)?;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM and with a null stack this is fork(2): the child continues on a copy of our memory. The
    // three pointer arguments are not used with these flags. One thread (checked above), so no lock is left held by a
    // thread that the child does not have. glibc's own tid cache is stale in the child; only raise(3) and abort(3) read it.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match pid {
        -1 => Err(Errno::last()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(libc::pid_t::try_from(pid).map_err(|_| Errno::EOVERFLOW)?))),
    }
}

/// True if this process has exactly one thread: `/proc/self/task` has one directory, so three links. Where /proc is not
/// readable the answer is true, for nothing in the monitor starts a thread.
fn single_threaded() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/task").map_or(true, |task| task.nlink() <= 3)
}

/// Runs `body` in a forked child and leaves with its exit code, by `_exit`: no destructor, exit handler or buffer of
/// the parent's copy runs, not even when `body` panics.
pub fn leave_with(body: impl FnOnce() -> u8) -> ! {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            exit_now(101);
        }
    }
    let guard = Guard;
    let code = body();
    std::mem::forget(guard);
    exit_now(code)
}

/// `_exit(2)`.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit has no precondition and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Adds to this process's environment. Fails with EBUSY when another thread runs, with EINVAL on what is no name.
pub fn set_environment(variables: &[(OsString, OsString)]) -> nix::Result<()> {
    if variables.is_empty() {
        return Ok(());
    }
    if !single_threaded() {
        return Err(Errno::EBUSY);
    }
    for (name, value) in variables {
        if name.is_empty() || name.as_bytes().contains(&b'=') || [name, value].iter().any(|s| s.as_bytes().contains(&0))
        {
            return Err(Errno::EINVAL);
        }
        // SAFETY: no other thread can read the environment meanwhile (checked above).
        unsafe { std::env::set_var(name, value) };
    }
    Ok(())
}

/// Gives one signal its default action. (Rust ignores SIGPIPE from birth, and what is ignored stays so across exec.)
pub fn default_signal(signal: Signal) {
    // SAFETY: SIG_DFL installs no code of ours.
    unsafe { libc::signal(signal as i32, libc::SIG_DFL) };
}

/// Closes every descriptor above 2 except those in `keep`. For a fresh child only: whatever the copied stack of the
/// parent still owns must never be used or dropped again there (see [`leave_with`]).
pub fn close_all_but(keep: &[BorrowedFd<'_>]) {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut next: RawFd = 3;
    for fd in keep {
        if fd > next {
            close_range(next, fd - 1, 0);
        }
        next = fd + 1;
    }
    close_range(next, RawFd::MAX, 0);
}

/// Marks every descriptor above 2 close-on-exec.
pub fn cloexec_all() {
    close_range(3, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC as i32);
}

/// close_range(2) (Linux 5.9; the flag 5.11), or the same through /proc/self/fd.
fn close_range(first: RawFd, last: RawFd, flags: i32) {
    // SAFETY: closes descriptors that, by the contract of the callers, nothing in this process uses any more, or only
    // sets a flag on them.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return;
    }
    let listed: Vec<RawFd> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok())).collect(),
        Err(_) => (3..1024).collect(),
    };
    for fd in listed.into_iter().filter(|fd| (first..=last).contains(fd)) {
        if flags == 0 {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        } else {
            // SAFETY: F_SETFD changes a flag; on a closed number it is EBADF.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}
