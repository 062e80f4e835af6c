//! Making a TAP device and asking the kernel for its offloads.
//!
//! The device is created by the `tun` crate, which knows neither TUNSETOFFLOAD nor TUNSETVNETHDRSZ nor non-blocking
//! creation; those are ours, and so are several queues, which it refuses. The `tun` object is taken apart at once: its vectored I/O loses data, and all that is
//! wanted of it is the descriptor.

use std::num::NonZeroU8;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::network::config::Offloads;
use crate::sys;

/// Size of the virtio-net header in front of each frame: the plain `struct virtio_net_hdr`, without the buffer count
/// (include/uapi/linux/virtio_net.h).
pub const VNET_HEADER_LEN: i32 = 10;

// include/uapi/linux/if_tun.h
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No such file, no permission, or the driver refused.
    #[error("cannot create the TAP device {name} through /dev/net/tun{}", remedy(source))]
    Create {
        /// Interface name.
        name: String,
        /// What the `tun` crate or the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The descriptor could not be set up.
    #[error("cannot set {what} on the TAP device")]
    Set {
        /// The option.
        what: &'static str,
        /// Its errno.
        #[source]
        source: nix::Error,
    },
}

/// What to do about it.
fn remedy(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => "; load its driver (`modprobe tun`, as root)",
        Some(libc::EACCES) => "; let every user open it (`chmod 666 /dev/net/tun`, as root)",
        Some(libc::EPERM) => "; user namespaces have no capabilities here (see `tapway doctor`)",
        _ => "",
    }
}

/// Creates the TAP `name` with several queues in the current network namespace, each a descriptor; with one where the kernel
/// does not have several (before Linux 3.8, or a device of that name is there already and has one).
///
/// A device made for one queue has none of this: it costs the kernel a hash of each frame.
pub fn create_queues(name: &str, queues: NonZeroU8) -> Result<(Vec<OwnedFd>, Offloads), TapError> {
    if queues.get() > 1 {
        match open_queues(name, queues) {
            Ok((taps, vnet_hdr)) => {
                let mut offloads = Offloads::default();
                for tap in &taps {
                    // The device's, and the same each time.
                    offloads = prepare(tap, vnet_hdr)?;
                }
                return Ok((taps, offloads));
            }
            Err(errno) => tracing::info!("no {queues} queues for {name}, so one: {errno}"),
        }
    }
    create(name).map(|(tap, offloads)| (vec![tap], offloads))
}

/// Also says whether there is a header.
fn open_queues(name: &str, queues: NonZeroU8) -> nix::Result<(Vec<OwnedFd>, bool)> {
    let open = |vnet_hdr| sys::tap::open_queue(name, vnet_hdr).map(|first| (first, vnet_hdr));
    let (first, vnet_hdr) = open(true).or_else(|_| open(false))?;
    // Where the name was a pattern, the kernel has chosen.
    let (name, _) = sys::tap::identity(first.as_fd())?;
    let mut taps = vec![first];
    for _ in 1..queues.get() {
        taps.push(sys::tap::open_queue(&name, vnet_hdr)?);
    }
    Ok((taps, vnet_hdr))
}

/// Creates the TAP `name` in the current network namespace (one queue, non-blocking, close-on-exec) with as many
/// offloads as the kernel grants, tried from all to none.
pub fn create(name: &str) -> Result<(OwnedFd, Offloads), TapError> {
    let (tap, vnet_hdr) = match open(name, true) {
        Ok(tap) => (tap, true),
        // The driver answers EINVAL to a flag that it does not know; anything else is not about the header.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => match open(name, false) {
            Ok(tap) => (tap, false),
            Err(source) => return Err(TapError::Create { name: name.to_owned(), source }),
        },
        Err(source) => return Err(TapError::Create { name: name.to_owned(), source }),
    };
    let offloads = prepare(&tap, vnet_hdr)?;
    Ok((tap, offloads))
}

/// The link behind a descriptor that somebody else opened: a TAP queue, with what its flags say, or a socket that keeps
/// the bounds of frames, which has no offloads.
pub fn inherit(fd: OwnedFd) -> Result<(OwnedFd, Offloads), TapError> {
    const IFF_VNET_HDR: i32 = 0x4000;
    let vnet_hdr = match sys::tap::identity(fd.as_fd()) {
        Ok((_, flags)) => flags & IFF_VNET_HDR != 0,
        Err(nix::Error::ENOTTY | nix::Error::EINVAL | nix::Error::EOPNOTSUPP) => false,
        Err(source) => return Err(TapError::Set { what: "anything", source }),
    };
    let offloads = prepare(&fd, vnet_hdr)?;
    Ok((fd, offloads))
}

/// Non-blocking, with our header size and the offloads that can be had.
fn prepare(tap: &OwnedFd, vnet_hdr: bool) -> Result<Offloads, TapError> {
    let flags = fcntl(tap.as_fd(), FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    flags
        .and_then(|flags| fcntl(tap.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
        .map_err(|source| TapError::Set { what: "O_NONBLOCK", source })?;
    if !vnet_hdr {
        return Ok(Offloads::default());
    }
    sys::tap::set_vnet_header_size(tap.as_fd(), VNET_HEADER_LEN)
        .map_err(|source| TapError::Set { what: "the vnet header size", source })?;
    Ok(request_offloads(tap))
}

fn open(name: &str, vnet_hdr: bool) -> std::io::Result<OwnedFd> {
    let mut config = tun::Configuration::default();
    config.tun_name(name).layer(tun::Layer::L2);
    // The name is historical: without it `tun` would go on to configure addresses by ioctl.
    config.platform_config(|platform| {
        platform.ensure_root_privileges(false).vnet_hdr(vnet_hdr);
    });
    let device = tun::create(&config).map_err(|error| match error {
        tun::Error::Io(io) => io,
        other => std::io::Error::other(other.to_string()),
    })?;
    Ok(sys::fd::adopt(device.into_raw_fd()))
}

/// Asks for offloads, the most first. The kernel takes or refuses a whole set (EINVAL, drivers/net/tun.c).
fn request_offloads(tap: &OwnedFd) -> Offloads {
    let tries = [
        (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6, true, true, true),
        (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6, true, true, false),
        (TUN_F_CSUM | TUN_F_TSO4, true, false, false),
        (TUN_F_CSUM | TUN_F_TSO6, false, true, false),
        (TUN_F_CSUM, false, false, false),
    ];
    for (flags, tso4, tso6, uso) in tries {
        if sys::tap::set_offload(tap.as_fd(), flags).is_ok() {
            return Offloads { vnet_hdr: true, csum: true, tso4, tso6, uso };
        }
    }
    Offloads { vnet_hdr: true, ..Offloads::default() }
}
