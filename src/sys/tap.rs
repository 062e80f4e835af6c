//! The ioctls of a TAP descriptor that the `tun` crate does not know.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// What the macros make; TUNSETOFFLOAD takes its argument by value although it is declared as a pointer's
/// (include/uapi/linux/if_tun.h).
#[allow(missing_docs)]
mod raw {
    nix::ioctl_write_int_bad!(tunsetoffload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);
    nix::ioctl_read_bad!(tungetiff, nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()), libc::ifreq);
}

/// Sets the size of the virtio-net header in front of each frame (bytes).
pub fn set_vnet_header_size(tap: BorrowedFd<'_>, size: i32) -> nix::Result<()> {
    let size: libc::c_int = size;
    // SAFETY: the descriptor is open and the argument points to an int that outlives the call; on anything but a
    // TUN/TAP device the kernel answers ENOTTY.
    unsafe { raw::tunsetvnethdrsz(tap.as_raw_fd(), &raw const size) }.map(drop)
}

/// Name and flags (`IFF_*`) of the device behind a descriptor. On anything but a TUN/TAP device: ENOTTY.
pub fn identity(tap: BorrowedFd<'_>) -> nix::Result<(String, i32)> {
    // SAFETY: all zero bytes are a valid `ifreq`: names, integers and addresses.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and the kernel writes one whole `ifreq`, which outlives the call.
    unsafe { raw::tungetiff(tap.as_raw_fd(), &raw mut request) }?;
    let name: Vec<u8> =
        request.ifr_name.iter().map(|&byte| byte.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    // SAFETY: TUNGETIFF has filled the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((String::from_utf8_lossy(&name).into_owned(), i32::from(flags)))
}

/// Sets the offloads (`TUN_F_*`) that the guest may leave to us. The kernel takes the whole set or refuses it.
pub fn set_offload(tap: BorrowedFd<'_>, flags: u32) -> nix::Result<()> {
    let flags = libc::c_int::try_from(flags).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is open and the argument is a plain integer.
    unsafe { raw::tunsetoffload(tap.as_raw_fd(), flags) }.map(drop)
}
