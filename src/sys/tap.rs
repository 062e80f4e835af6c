//! The ioctls of a TAP descriptor that the `tun` crate does not know.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

/// What the macros make; TUNSETOFFLOAD takes its argument by value although it is declared as a pointer's
/// (include/uapi/linux/if_tun.h).
#[allow(missing_docs)]
mod raw {
    nix::ioctl_write_int_bad!(tunsetoffload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_write_ptr!(tunsetvnethdrsz, b'T', 216, libc::c_int);
    nix::ioctl_write_ptr_bad!(tunsetiff, nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);
    nix::ioctl_read_bad!(tungetiff, nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()), libc::ifreq);
}

/// Opens one queue of the TAP `name` in the current network namespace, which is made with the first; non-blocking,
/// close-on-exec. `vnet_hdr`: with the virtio-net header. What cannot be is EINVAL: a name that is too long, or a device that was
/// made for one queue.
pub fn open_queue(name: &str, vnet_hdr: bool) -> nix::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    // SAFETY: all zero bytes are a valid `ifreq`: names, integers and addresses.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The kernel wants a zero behind the name.
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::EINVAL);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let header = if vnet_hdr { libc::IFF_VNET_HDR } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | header;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let tap = open("/dev/net/tun", OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?;
    // SAFETY: the descriptor is open and the argument points to a whole `ifreq` that outlives the call.
    unsafe { raw::tunsetiff(tap.as_fd().as_raw_fd(), &raw const request) }?;
    Ok(tap)
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
