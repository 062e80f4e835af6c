//! Bytes and descriptors from a stream socket, for both servers of the control protocol.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Descriptors taken with one request.
pub const MAX_FDS: usize = 4;

/// Reads what is there without waiting, with descriptors, close-on-exec; those beyond [`MAX_FDS`] are closed.
pub fn receive(stream: impl AsFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> nix::Result<usize> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(stream.as_fd().as_raw_fd(), &mut iov, Some(&mut control), flags)?;
    if let Ok(all) = message.cmsgs() {
        for cmsg in all {
            if let ControlMessageOwned::ScmRights(raw) = cmsg {
                fds.extend(raw.into_iter().map(crate::sys::fd::adopt));
            }
        }
    }
    fds.truncate(MAX_FDS);
    Ok(message.bytes)
}
