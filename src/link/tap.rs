//! The TAP: one read(2) or write(2) per frame, whole super-frames where the kernel cuts them.
//!
//! The descriptor comes from the sandbox's child, non-blocking, with the plain 10-byte virtio-net header if the kernel
//! granted it. A write is taken by the guest's kernel at once (it runs the guest's receive path within our call), so
//! there is no queue on our side; what it refuses is counted by the caller.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::wire::vnet::VNET_HDR_LEN;

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// A frame of this many bytes, vnet header included.
    Frame(usize),
    /// Nothing for now.
    Empty,
    /// The device is gone (deleted inside, or its namespace died).
    Gone,
}

/// One TAP.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    vnet_hdr: bool,
}

impl Tap {
    /// Wraps a non-blocking TAP descriptor.
    pub fn new(fd: OwnedFd, vnet_hdr: bool) -> Self {
        Self { fd, vnet_hdr }
    }

    /// Reads one frame to the start of `buf`, which must hold `vnet::MAX_FRAME` bytes. Where the TAP has no vnet header
    /// a zeroed one is put in front.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<Read> {
        let at = if self.vnet_hdr { 0 } else { VNET_HDR_LEN };
        buf[..at].fill(0);
        match nix::unistd::read(&self.fd, &mut buf[at..]) {
            Ok(0) => Ok(Read::Gone),
            Ok(len) => Ok(Read::Frame(at + len)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Read::Empty),
            // EBADFD: the interface was deleted; EIO: it is down (drivers/net/tun.c, tun_chr_read_iter).
            Err(Errno::EBADFD) => Ok(Read::Gone),
            Err(Errno::EIO) => Ok(Read::Empty),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes one frame (vnet header included); false if the kernel did not take it.
    pub fn write(&self, frame: &[u8]) -> bool {
        let bytes = if self.vnet_hdr { frame } else { &frame[VNET_HDR_LEN..] };
        nix::unistd::write(&self.fd, bytes).is_ok_and(|n| n == bytes.len())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
