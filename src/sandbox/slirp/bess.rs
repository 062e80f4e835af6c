//! The other end of `--target-type=bess`: a User Mode Linux, a BESS switch or a virtual machine that speaks Ethernet frames
//! over a `SOCK_SEQPACKET` Unix socket, one message a frame.
//!
//! Whatever is at the path is replaced, one peer is waited for, and the listener is closed: there is one guest.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};

use crate::{sys, telemetry};

/// Longest path of a Unix socket, with its terminator (unix(7)).
const MAX_PATH: usize = 108;

/// Why there is no peer.
#[derive(Debug, thiserror::Error)]
pub enum BessError {
    /// unix(7).
    #[error("the specified BESS socket path is too long (>= {MAX_PATH})")]
    TooLong,
    /// A call failed.
    #[error("cannot {what} the BESS socket {path}")]
    Call {
        /// Which.
        what: &'static str,
        /// Where.
        path: String,
        /// Its errno.
        #[source]
        source: Errno,
    },
}

/// Waits for a peer at `path`; its socket, non-blocking.
pub fn wait(path: &Path) -> Result<OwnedFd, BessError> {
    if path.as_os_str().len() >= MAX_PATH {
        return Err(BessError::TooLong);
    }
    let call = |what| move |source| BessError::Call { what, path: path.display().to_string(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(call("replace")(Errno::from_raw(error.raw_os_error().unwrap_or(0))));
        }
        _ => {}
    }
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(call("make"))?;
    let address = UnixAddr::new(path).map_err(call("name"))?;
    bind(listener.as_raw_fd(), &address).map_err(call("bind"))?;
    listen(&listener, Backlog::new(1).map_err(call("listen on"))?).map_err(call("listen on"))?;
    telemetry::say(&format!("Waiting for connection to {}", path.display()));
    let peer = loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(fd) => break sys::fd::adopt(fd),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(source) => return Err(call("accept on")(source)),
        }
    };
    Ok(peer)
}
