//! Descriptors that the kernel handed us as plain integers.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes ownership of a descriptor that this process has just received (SCM_RIGHTS) or been started with.
///
/// The caller must be its only owner; nothing else in tapway keeps raw descriptors.
pub fn adopt(raw: RawFd) -> OwnedFd {
    // SAFETY: `raw` was installed in our table by the kernel for this call alone (SCM_RIGHTS or inheritance) and is
    // wrapped exactly once, here; so it is open and owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// Watches a descriptor on the running tokio runtime, which owns it from then on.
pub fn watch(fd: OwnedFd) -> std::io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: `OwnedFd` is one descriptor for its whole life and stays open until the `AsyncFd`, which owns it, has
    // deregistered it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(Into::into)
}

/// A close-on-exec duplicate of a descriptor that this process was started with, above those that standard streams use;
/// None if it is not open.
pub fn duplicate_inherited(raw: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC only reads the number: EBADF if it is not open. What it returns is new and nobody else's.
    let fd = unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 3) };
    (fd >= 0).then(|| adopt(fd))
}

/// A descriptor of process `pid` (pidfd_open(2), Linux 5.3), readable when it has ended.
pub fn process(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: both arguments are integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(fd) {
        Ok(fd) if fd >= 0 => Ok(adopt(fd)),
        _ => Err(std::io::Error::last_os_error()),
    }
}
