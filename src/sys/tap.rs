//! The ioctls of a TAP descriptor that the `tun` crate does not know.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// What the macros make; TUNSETOFFLOAD takes its argument by value although it is declared as a pointer's
/// (include/uapi/linux/if_tun.h).
#[allow(missing_docs)]
mod raw {
    nix::ioctl_write_int_bad!(tunsetoffload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);
}

/// Sets the size of the virtio-net header in front of each frame (bytes).
pub fn set_vnet_header_size(tap: BorrowedFd<'_>, size: i32) -> nix::Result<()> {
    let size: libc::c_int = size;
    // SAFETY: the descriptor is open and the argument points to an int that outlives the call; on anything but a
    // TUN/TAP device the kernel answers ENOTTY.
    unsafe { raw::tunsetvnethdrsz(tap.as_raw_fd(), &raw const size) }.map(drop)
}

/// Sets the offloads (`TUN_F_*`) that the guest may leave to us. The kernel takes the whole set or refuses it.
pub fn set_offload(tap: BorrowedFd<'_>, flags: u32) -> nix::Result<()> {
    let flags = libc::c_int::try_from(flags).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is open and the argument is a plain integer.
    unsafe { raw::tunsetoffload(tap.as_raw_fd(), flags) }.map(drop)
}
