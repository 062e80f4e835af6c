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
