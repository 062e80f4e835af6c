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
