//! Host TCP sockets.
//!
//! Each carries SO_LINGER{1,0} from birth, cleared only when both directions have ended in order: if this process dies,
//! its peers see a reset, and a cut stream never looks complete. TCP_NODELAY because the guest's kernel has done its own
//! batching; TCP_NOTSENT_LOWAT, once it has carried something, so that a slow uplink's queue stays in the guest's view instead of
//! hiding megabytes here. Accepted sockets have them from their listener.
//!
//! **Pacing.** Where the host's congestion control paces what it sends (bbr, net/ipv4/tcp_bbr.c), a connection to the host itself is
//! taken out of it: there is no queue on the way that pacing could spare, and its timer (on a virtual machine an exit to the
//! hypervisor for each burst) was a quarter of all time in bulk from the guest. Connections to elsewhere keep the host's choice.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage};
use nix::sys::socket::{accept4, connect, getsockopt, recv, send, setsockopt, shutdown, socket, sockopt};
use socket2::SockRef;

use super::budget;
use crate::stack::tcp::ConnectFailure;
use crate::sys;
use crate::wire::icmp_error::IcmpError;

/// Unsent bytes above which the socket counts as full (dataplane.md, rule 7).
const NOTSENT_LOWAT: i32 = 256 * 1024;

/// How a connect() began.
#[derive(Debug)]
pub enum Connect {
    /// Wait until it is writable, then ask [`connect_result`].
    Pending(OwnedFd),
    /// It is connected.
    Done(OwnedFd),
    /// It failed at once.
    Failed(ConnectFailure),
    /// No socket could be had (descriptors, memory); errno for the log.
    NoSocket(Errno),
}

/// Options that every host socket of a flow carries, set at it or at the listener that it is accepted from (`sk_clone_lock`,
/// net/core/sock.c, copies them).
pub fn prepare(fd: BorrowedFd<'_>) {
    let socket = SockRef::from(&fd);
    // Failing, any of these leaves a working connection.
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = socket.set_tcp_nodelay(true);
    // Urgent bytes stay in the stream; the guest is not told of them, but loses none.
    let _ = socket.set_out_of_band_inline(true);
}

/// Bounds what waits in the kernel of a socket that carries more than a word.
pub fn bound_queue(fd: BorrowedFd<'_>) {
    let _ = sys::msg::set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, NOTSENT_LOWAT);
}

/// Starts a connection to `target`, from `source` if given.
pub fn start(target: SocketAddr, source: Option<IpAddr>) -> Connect {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = match socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None) {
        Ok(fd) => fd,
        // The host has no such family: nothing routes there.
        Err(Errno::EAFNOSUPPORT) => {
            return Connect::Failed(ConnectFailure::Unreachable(IcmpError::NetUnreachable));
        }
        Err(errno) => return Connect::NoSocket(errno),
    };
    if let Err(errno) = budget::check(&fd) {
        return Connect::NoSocket(errno);
    }
    prepare(fd.as_fd());
    if let Some(source) = source
        && let Err(error) = SockRef::from(&fd).bind(&SocketAddr::new(source, 0).into())
    {
        return Connect::Failed(failure(error.raw_os_error().unwrap_or(0)));
    }
    if target.ip().is_loopback() && is_paced(fd.as_fd()) {
        // The one algorithm that every kernel has and every process may choose (net/ipv4/tcp_cong.c).
        let _ = setsockopt(&fd, sockopt::TcpCongestion, &OsString::from("reno"));
    }
    let (raw, to) = (std::os::fd::AsRawFd::as_raw_fd(&fd), SockaddrStorage::from(target));
    match connect(raw, &to) {
        Ok(()) => Connect::Done(fd),
        // This machine has answered itself before connect() returned; asking once is cheaper than epoll.
        Err(Errno::EINPROGRESS) if target.ip().is_loopback() => match connect(raw, &to) {
            Ok(()) | Err(Errno::EISCONN) => Connect::Done(fd),
            Err(Errno::EALREADY | Errno::EINTR) => Connect::Pending(fd),
            Err(errno) => Connect::Failed(failure(errno as i32)),
        },
        Err(Errno::EINPROGRESS | Errno::EINTR) => Connect::Pending(fd),
        Err(errno) => Connect::Failed(failure(errno as i32)),
    }
}

/// Whether the host's own congestion control paces, as a new socket tells. It is asked once: another choice of the host's while
/// this process runs costs time and nothing else.
fn is_paced(fd: BorrowedFd<'_>) -> bool {
    static PACED: OnceLock<bool> = OnceLock::new();
    *PACED.get_or_init(|| {
        let name = getsockopt(&fd, sockopt::TcpCongestion).unwrap_or_default();
        name.as_encoded_bytes().starts_with(b"bbr")
    })
}

/// What became of a pending connect.
pub fn connect_result(fd: BorrowedFd<'_>) -> Result<(), ConnectFailure> {
    match SockRef::from(&fd).take_error() {
        Ok(None) => Ok(()),
        Ok(Some(error)) | Err(error) => Err(failure(error.raw_os_error().unwrap_or(0))),
    }
}

/// What the guest shall feel of a connect() that failed with `errno`.
pub fn failure(errno: i32) -> ConnectFailure {
    match Errno::from_raw(errno) {
        Errno::ECONNREFUSED | Errno::ECONNRESET => ConnectFailure::Refused,
        // The second: the user's source address is none of this host.
        Errno::ENETUNREACH | Errno::EADDRNOTAVAIL => ConnectFailure::Unreachable(IcmpError::NetUnreachable),
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => ConnectFailure::Unreachable(IcmpError::HostUnreachable),
        Errno::EACCES | Errno::EPERM => ConnectFailure::Unreachable(IcmpError::AdminProhibited),
        Errno::ENOPROTOOPT => ConnectFailure::Unreachable(IcmpError::ProtocolUnreachable),
        // A time-out is silence, and so is a blackhole route (EINVAL, net/ipv4/route.c).
        _ => ConnectFailure::Silent,
    }
}

/// Accepts one connection of a listener that was prepared.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    budget::check_next(&listener)?;
    let raw = accept4(std::os::fd::AsRawFd::as_raw_fd(&listener), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
    let fd = sys::fd::adopt(raw);
    budget::check(&fd)?;
    // Gone already (reset between handshake and accept): as if it had never come.
    let client = SockRef::from(&fd).peer_addr()?;
    let client = client.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
    Ok((fd, client))
}

/// What moving bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// This many.
    Bytes(usize),
    /// None now; wait for readiness.
    Blocked,
    /// The other side broke the connection.
    Broken,
}

fn moved(result: nix::Result<usize>) -> Moved {
    match result {
        Ok(n) => Moved::Bytes(n),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM) => Moved::Blocked,
        Err(_) => Moved::Broken,
    }
}

/// Sends from `bytes`.
pub fn send_bytes(fd: BorrowedFd<'_>, bytes: &[u8]) -> Moved {
    moved(send(std::os::fd::AsRawFd::as_raw_fd(&fd), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT))
}

/// Receives into `room`; zero bytes are the end of file.
pub fn recv_bytes(fd: BorrowedFd<'_>, room: &mut [u8]) -> Moved {
    moved(recv(std::os::fd::AsRawFd::as_raw_fd(&fd), room, MsgFlags::MSG_DONTWAIT))
}

/// Passes the guest's FIN on.
pub fn finish_sending(fd: BorrowedFd<'_>) -> bool {
    shutdown(std::os::fd::AsRawFd::as_raw_fd(&fd), Shutdown::Write).is_ok()
}

/// Lets the kernel finish the connection in order after close(): both directions have ended.
pub fn allow_orderly_close(fd: BorrowedFd<'_>) {
    let _ = SockRef::from(&fd).set_linger(None);
}

/// Probes a silent peer, because the guest does.
pub fn keep_alive(fd: BorrowedFd<'_>) {
    let _ = SockRef::from(&fd).set_keepalive(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_listener_has_its_connections_have() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        prepare(listener.as_fd());
        let connected = start(listener.local_addr().unwrap(), None);
        let Connect::Done(client) = connected else { panic!("the host itself answers at once: {connected:?}") };
        let (server, _) = accept(listener.as_fd()).unwrap();
        for fd in [client.as_fd(), server.as_fd()] {
            let socket = SockRef::from(&fd);
            assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO));
            assert!(socket.tcp_nodelay().unwrap() && socket.out_of_band_inline().unwrap());
        }
    }

    #[test]
    fn nothing_to_the_host_itself_is_paced() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let Connect::Done(fd) = start(listener.local_addr().unwrap(), None) else { panic!("it listens") };
        let name = getsockopt(&fd, sockopt::TcpCongestion).unwrap();
        assert!(!name.as_encoded_bytes().starts_with(b"bbr"), "{name:?}");
    }

    #[test]
    fn nobody_listens_on_the_host() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = start(free, None);
        assert!(matches!(refused, Connect::Failed(ConnectFailure::Refused)), "{refused:?}");
    }

    #[test]
    fn a_source_that_is_none_of_ours_reaches_no_network() {
        // TEST-NET-3 and the documentation prefix: nobody's addresses.
        for (target, source) in [("127.0.0.1:1", "203.0.113.9"), ("[::1]:1", "2001:db8::9")] {
            let started = start(target.parse().unwrap(), Some(source.parse().unwrap()));
            let expected = ConnectFailure::Unreachable(IcmpError::NetUnreachable);
            assert!(matches!(started, Connect::Failed(failure) if failure == expected), "{started:?}");
        }
    }
}
