//! sendmsg(2) and recvmsg(2) with the control messages that a UDP forwarder needs, without allocating.
//!
//! nix builds control buffers on the heap for each call and quinn-udp forces "don't fragment"; here one aligned buffer on
//! the stack serves UDP_SEGMENT, UDP_GRO, PKTINFO, TTL and the error queue (ip(7), ipv6(7), udp(7)).

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for every control message that we ask for at once, with alignment and to spare.
const CONTROL: usize = 256;

#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// How to send one datagram, or several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Send {
    /// Cut the payload into datagrams of this size (UDP_SEGMENT).
    pub segment: Option<u16>,
    /// Time to live or hop limit.
    pub ttl: Option<u8>,
    /// Source address (PKTINFO).
    pub source: Option<IpAddr>,
}

/// What arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes in the buffer.
    pub len: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// Size of each datagram where several were coalesced (UDP_GRO).
    pub segment: Option<u16>,
    /// Remaining hops.
    pub ttl: Option<u8>,
    /// Address it was sent to (PKTINFO).
    pub local: Option<IpAddr>,
    /// The buffer was too short.
    pub truncated: bool,
}

/// One entry of a socket's error queue.
#[derive(Clone, Copy, Debug)]
pub struct ErrorReport {
    /// Errno that the send would have had.
    pub errno: i32,
    /// SO_EE_ORIGIN_*: 1 local, 2 ICMP, 3 ICMPv6.
    pub origin: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Path MTU, where that is the error.
    pub info: u32,
    /// Who sent the ICMP error.
    pub offender: Option<IpAddr>,
    /// Where the datagram was going.
    pub target: SocketAddr,
    /// Bytes of it in the buffer.
    pub len: usize,
}

fn to_storage(addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: sockaddr_storage is plain data for which all zeroes is a valid value.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let len = match addr {
        SocketAddr::V4(v4) => {
            let sin = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is at least as large and as aligned as every sockaddr (POSIX).
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(sin) };
            mem::size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let sin6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(sin6) };
            mem::size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

/// Reads an address that the kernel wrote to `at`, of which `len` bytes are valid.
///
/// # Safety
/// `at` must be readable for `len` bytes.
unsafe fn read_address(at: *const u8, len: usize) -> Option<SocketAddr> {
    if len < mem::size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: `len` bytes are readable, and each arm reads no more than it has compared with `len`; unaligned reads
    // need no alignment.
    unsafe {
        match i32::from(at.cast::<libc::sa_family_t>().read_unaligned()) {
            libc::AF_INET if len >= mem::size_of::<libc::sockaddr_in>() => {
                let sin = at.cast::<libc::sockaddr_in>().read_unaligned();
                let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(sin.sin_port))))
            }
            libc::AF_INET6 if len >= mem::size_of::<libc::sockaddr_in6>() => {
                let sin6 = at.cast::<libc::sockaddr_in6>().read_unaligned();
                let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(sin6.sin6_port), 0, sin6.sin6_scope_id)))
            }
            _ => None,
        }
    }
}

/// Sends `payload` to `to`.
pub fn send(fd: BorrowedFd<'_>, to: SocketAddr, payload: &[u8], how: Send) -> io::Result<usize> {
    let (mut storage, storage_len) = to_storage(to);
    let mut iov = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut control = Control([0; CONTROL]);
    // SAFETY: msghdr is plain data for which all zeroes is valid.
    let mut msg: libc::msghdr = unsafe { mem::zeroed() };
    msg.msg_name = (&raw mut storage).cast();
    msg.msg_namelen = storage_len;
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = CONTROL;
    let mut used = 0usize;
    // SAFETY: `msg` describes `control`, which is aligned for cmsghdr, lives until the call, and whose CONTROL bytes
    // hold the at most three messages (24 + 24 + 40 bytes); CMSG_FIRSTHDR and CMSG_NXTHDR stay inside it.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const msg);
        let mut push = |level: i32, kind: i32, data: &[u8]| {
            if next.is_null() {
                return;
            }
            (*next).cmsg_level = level;
            (*next).cmsg_type = kind;
            (*next).cmsg_len = libc::CMSG_LEN(data.len() as u32) as _;
            std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(next), data.len());
            used += libc::CMSG_SPACE(data.len() as u32) as usize;
            next = libc::CMSG_NXTHDR(&raw const msg, next);
        };
        if let Some(segment) = how.segment {
            push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        if let Some(ttl) = how.ttl {
            let ttl = i32::from(ttl).to_ne_bytes();
            match to {
                SocketAddr::V4(_) => push(libc::IPPROTO_IP, libc::IP_TTL, &ttl),
                SocketAddr::V6(_) => push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &ttl),
            }
        }
        match how.source {
            Some(IpAddr::V4(source)) => {
                // struct in_pktinfo: ifindex, spec_dst, addr.
                let mut info = [0u8; 12];
                info[4..8].copy_from_slice(&source.octets());
                push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(source)) => {
                // struct in6_pktinfo: addr, ifindex.
                let mut info = [0u8; 20];
                info[..16].copy_from_slice(&source.octets());
                push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
    }
    msg.msg_controllen = used as _;
    if used == 0 {
        msg.msg_control = std::ptr::null_mut();
    }
    // SAFETY: every pointer in `msg` is to a live local of the stated length; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Calls `each` with level, type and data of every control message of `msg`.
///
/// # Safety
/// `msg` must come from a recvmsg() that returned without error, its control buffer still alive.
unsafe fn each_control(msg: &libc::msghdr, mut each: impl FnMut(i32, i32, &[u8])) {
    // SAFETY: the kernel filled the control buffer that `msg` describes; CMSG_* walk it within msg_controllen.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(msg);
        while !at.is_null() {
            let header = at.read_unaligned();
            let data = libc::CMSG_DATA(at);
            #[allow(clippy::unnecessary_cast)] // cmsg_len is u32 with some C libraries
            let len = (header.cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            each(header.cmsg_level, header.cmsg_type, std::slice::from_raw_parts(data, len));
            at = libc::CMSG_NXTHDR(msg, at);
        }
    }
}

/// Receives into `buf` and calls `each` for the control messages; returns length, sender and flags.
fn receive(
    fd: BorrowedFd<'_>,
    buf: &mut [u8],
    flags: i32,
    each: impl FnMut(i32, i32, &[u8]),
) -> io::Result<(usize, Option<SocketAddr>, i32)> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut control = Control([0; CONTROL]);
    // SAFETY: msghdr is plain data for which all zeroes is valid.
    let mut msg: libc::msghdr = unsafe { mem::zeroed() };
    msg.msg_name = storage.as_mut_ptr().cast();
    msg.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = CONTROL as _;
    // SAFETY: every pointer in `msg` is to a live local or to `buf`, with its true length; the kernel writes no more.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut msg, flags | libc::MSG_DONTWAIT) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: recvmsg succeeded; `control` and `storage` are alive, msg_namelen is what the kernel wrote, bounded by the
    // size of the storage.
    let from = unsafe {
        each_control(&msg, each);
        let name_len = (msg.msg_namelen as usize).min(mem::size_of::<libc::sockaddr_storage>());
        read_address(storage.as_ptr().cast(), name_len)
    };
    Ok((len as usize, from, msg.msg_flags))
}

fn int(data: &[u8]) -> Option<i32> {
    data.get(..4)?.try_into().ok().map(i32::from_ne_bytes)
}

/// Receives one datagram, or several coalesced ones.
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Received> {
    let (mut segment, mut ttl, mut local) = (None, None, None);
    let (len, from, flags) = receive(fd, buf, 0, |level, kind, data| match (level, kind) {
        (libc::SOL_UDP, libc::UDP_GRO) => segment = int(data).and_then(|size| u16::try_from(size).ok()),
        (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
            ttl = int(data).and_then(|ttl| u8::try_from(ttl).ok());
        }
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // The local address to answer from: spec_dst, which is the destination unless that was a broadcast.
            local = data.get(4..8).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(IpAddr::from);
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            local = data.get(..16).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(IpAddr::from);
        }
        _ => {}
    })?;
    let from = from.ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    Ok(Received { len, from, segment, ttl, local, truncated: flags & libc::MSG_TRUNC != 0 })
}

/// Takes one entry off the error queue; `Ok(None)` if it is empty. `buf` gets the start of the datagram concerned.
pub fn recv_error(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Option<ErrorReport>> {
    // struct sock_extended_err (include/uapi/linux/errqueue.h): errno u32, origin, type, code, pad, info u32, data u32;
    // the offender's sockaddr follows.
    const EXTENDED: usize = 16;
    let mut report = None;
    let received = receive(fd, buf, libc::MSG_ERRQUEUE, |level, kind, data| {
        let ours = (level, kind) == (libc::IPPROTO_IP, libc::IP_RECVERR)
            || (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
        if ours && data.len() >= EXTENDED {
            // SAFETY: the slice behind the fixed part is readable for its length.
            let offender = unsafe { read_address(data[EXTENDED..].as_ptr(), data.len() - EXTENDED) };
            report = Some(ErrorReport {
                errno: int(data).unwrap_or(0),
                origin: data[4],
                icmp_type: data[5],
                icmp_code: data[6],
                info: int(&data[8..]).unwrap_or(0).cast_unsigned(),
                offender: offender.map(|addr| addr.ip()).filter(|ip| !ip.is_unspecified()),
                target: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
                len: 0,
            });
        }
    });
    match received {
        Ok((len, Some(target), _)) => Ok(report.map(|report| ErrorReport { target, len, ..report })),
        Ok((_, None, _)) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes that a socket holds in the kernel, queues and overhead (SO_MEMINFO, Linux 4.12); 0 where the kernel does not say.
pub fn memory(fd: BorrowedFd<'_>) -> usize {
    /// SK_MEMINFO_RMEM_ALLOC, SK_MEMINFO_FWD_ALLOC, SK_MEMINFO_WMEM_QUEUED, SK_MEMINFO_BACKLOG (linux/sock_diag.h).
    const HELD: [usize; 4] = [0, 4, 5, 7];
    let mut info = [0u32; 9];
    let mut len = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`; both live until the call returns.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    if result < 0 { 0 } else { HELD.iter().map(|&at| info[at] as usize).sum() }
}

/// setsockopt(2) with an integer.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the kernel reads four bytes of `value`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<i32>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    fn pair(addr: &str) -> (UdpSocket, UdpSocket) {
        let a = UdpSocket::bind((addr, 0)).expect("bind");
        let b = UdpSocket::bind((addr, 0)).expect("bind");
        b.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("timeout");
        (a, b)
    }

    fn wait(socket: &UdpSocket) {
        let mut byte = [0; 1];
        let _ = socket.peek_from(&mut byte);
    }

    #[test]
    fn ttl_pktinfo_and_segments_cross_loopback_in_both_families() {
        for addr in ["127.0.0.1", "::1"] {
            let (a, b) = pair(addr);
            let v6 = addr == "::1";
            let (level, recv_ttl, pktinfo) = if v6 {
                (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVPKTINFO)
            } else {
                (libc::IPPROTO_IP, libc::IP_RECVTTL, libc::IP_PKTINFO)
            };
            set_option(b.as_fd(), level, recv_ttl, 1).expect("ttl");
            set_option(b.as_fd(), level, pktinfo, 1).expect("pktinfo");
            set_option(b.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).expect("gro");
            let to = b.local_addr().expect("addr");
            let source = Some(a.local_addr().expect("addr").ip());
            let how = Send { segment: Some(100), ttl: Some(7), source };
            assert_eq!(send(a.as_fd(), to, &[5; 250], how).expect("send"), 250);
            wait(&b);
            let mut buf = [0; 2048];
            let got = recv(b.as_fd(), &mut buf).expect("recv");
            assert_eq!(got.from, a.local_addr().expect("addr"));
            assert_eq!(got.ttl, Some(7));
            assert_eq!(got.local, Some(to.ip()));
            assert_eq!((got.len, got.segment), (250, Some(100)));
        }
    }

    #[test]
    fn a_refused_datagram_is_reported_with_its_target() {
        let (a, b) = pair("127.0.0.1");
        set_option(a.as_fd(), libc::IPPROTO_IP, libc::IP_RECVERR, 1).expect("recverr");
        let to = b.local_addr().expect("addr");
        drop(b);
        send(a.as_fd(), to, b"hello", Send::default()).expect("send");
        let mut buf = [0; 64];
        let report = recv_error(a.as_fd(), &mut buf).expect("queue").expect("one entry");
        assert_eq!((report.errno, report.origin), (libc::ECONNREFUSED, 2));
        assert_eq!((report.icmp_type, report.icmp_code), (3, 3));
        assert_eq!(report.target, to);
        assert_eq!(&buf[..report.len], b"hello");
        assert!(recv_error(a.as_fd(), &mut buf).expect("queue").is_none());
    }
}
