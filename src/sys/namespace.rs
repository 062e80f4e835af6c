//! The ioctls of a namespace descriptor, which nix does not have (ioctl_ns(2)).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;

#[allow(missing_docs)]
mod raw {
    nix::ioctl_none!(ns_get_userns, 0xb7, 1);
    nix::ioctl_none!(ns_get_nstype, 0xb7, 3);
}

/// The user namespace that owns a namespace (Linux 4.9). EPERM where it lies outside ours.
pub fn owner(namespace: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    // SAFETY: the descriptor is open and the request has no argument; on anything but a namespace it is ENOTTY.
    unsafe { raw::ns_get_userns(namespace.as_raw_fd()) }.map(super::fd::adopt)
}

/// What kind of namespace it is (Linux 4.11).
pub fn kind(namespace: BorrowedFd<'_>) -> nix::Result<CloneFlags> {
    // SAFETY: the descriptor is open and the request has no argument; on anything but a namespace it is ENOTTY.
    unsafe { raw::ns_get_nstype(namespace.as_raw_fd()) }.map(CloneFlags::from_bits_retain)
}
