//! Ending the TCP connections of a network process that died, from inside the sandbox.
//!
//! What such a process terminated is gone, and its successor knows nothing of it. A guest that sends learns so from the reset
//! that its segment gets; one that only waits for data would wait for ever. So the sandbox's first process, which has the
//! capability over this network namespace, has the kernel end them (sock_diag(7), SOCK_DESTROY; `CONFIG_INET_DIAG_DESTROY`):
//! whoever waits gets ECONNABORTED that moment.
//!
//! Ended are connections to anybody but the loopback network and members of the interface's own subnet, whom frames reach
//! directly: those connections go on, until the interface itself goes. The gateway is no member. What belongs to an address of
//! another interface of the sandbox is none of this one's business. A connection that is only being asked for (SYN-SENT) is left:
//! its next SYN reaches the successor.
//!
//! In a namespace that somebody else made (`sandbox::attached`) a child that enters it does the same, for the interface's own addresses
//! alone.
//!
//! Two exchanges for each family: a dump of what there is, and a request for each that is to be ended. A few bytes of own
//! code for the messages, since no crate that is used here has them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{MsgFlags, recv};

use crate::network::config::{PlanV4, PlanV6};

/// NETLINK_SOCK_DIAG (include/uapi/linux/netlink.h).
const SOCK_DIAG: isize = 4;
/// SOCK_DIAG_BY_FAMILY and SOCK_DESTROY (include/uapi/linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// Lengths of nlmsghdr, inet_diag_req_v2 and inet_diag_sockid (include/uapi/linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ID: usize = 48;
/// Where the socket's id lies in a request, and in an answer: both begin with four bytes, a request has its states next.
const ID_IN_REQUEST: usize = 8;
const ID_IN_ANSWER: usize = 4;
/// A bit for each state (include/net/tcp_states.h) but SYN-SENT (2), TIME-WAIT (6), CLOSE (7), LISTEN (10), and SYN-RECV of
/// either kind (3, 12).
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Addresses of this end.
#[derive(Clone, Debug)]
pub enum Whose {
    /// All but those of the sandbox's other interfaces: somebody inside may have made some up.
    AllBut(Vec<IpAddr>),
    /// The interface's alone: what else is there is somebody else's.
    Planned,
}

/// Which connections are over.
#[derive(Clone, Debug)]
pub struct Over {
    /// Plans of the interface.
    pub v4: Option<PlanV4>,
    /// IPv6 plan of the interface.
    pub v6: Option<PlanV6>,
    /// Addresses whose connections these are.
    pub whose: Whose,
    /// Those to members of its own subnet are over, too: the interface is about to go.
    pub members: bool,
}

impl Over {
    /// Whether a connection between `own` and `peer` is over.
    fn has(&self, own: IpAddr, peer: IpAddr) -> bool {
        let (own, peer) = (own.to_canonical(), peer.to_canonical());
        let is_member = || match peer {
            IpAddr::V4(peer) => self.v4.is_some_and(|plan| plan.subnet.contains(&peer) && peer != plan.gateway),
            IpAddr::V6(peer) => self.v6.is_some_and(|plan| plan.subnet.contains(&peer) && peer != plan.gateway),
        };
        let is_ours = match &self.whose {
            Whose::AllBut(others) => !others.contains(&own),
            Whose::Planned => {
                self.v4.is_some_and(|plan| own == plan.guest) || self.v6.is_some_and(|plan| own == plan.guest)
            }
        };
        !peer.is_loopback() && is_ours && (self.members || !is_member())
    }
}

/// Ends the connections; how many there were. The caller is in the network namespace, and has CAP_NET_ADMIN over it.
pub fn end_connections(over: &Over) -> io::Result<usize> {
    let mut ended = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = family as u8;
        for id in dump(family)? {
            if over.has(address_of(family, &id, OWN), address_of(family, &id, PEER)) {
                ended += usize::from(destroy(family, &id)?);
            }
        }
    }
    Ok(ended)
}

/// A request about TCP: its type, flags, and the socket that it is about.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID]) -> [u8; HEADER + REQUEST] {
    let mut bytes = [0; HEADER + REQUEST];
    bytes[0..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    let body = &mut bytes[HEADER..];
    body[0] = family;
    body[1] = libc::IPPROTO_TCP as u8;
    body[4..8].copy_from_slice(&states.to_ne_bytes());
    body[ID_IN_REQUEST..].copy_from_slice(id);
    bytes
}

fn send(bytes: &[u8]) -> io::Result<Socket> {
    let mut socket = Socket::new(SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
    Ok(socket)
}

/// The ids of all connections of one family.
fn dump(family: u8) -> io::Result<Vec<[u8; ID]>> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let socket = send(&request(BY_FAMILY, flags, family, STATES, &[0; ID]))?;
    let mut ids = Vec::new();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let len = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if !read_dump(&buffer[..len], &mut ids)? {
            return Ok(ids);
        }
    }
}

/// Reads messages of a dump; false once it is over.
fn read_dump(mut rest: &[u8], ids: &mut Vec<[u8; ID]>) -> io::Result<bool> {
    while let Some((kind, body, next)) = message(rest) {
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(false),
            libc::NLMSG_ERROR => return error_of(body).map(|()| false),
            _ if kind == BY_FAMILY => {
                ids.extend(body.get(ID_IN_ANSWER..ID_IN_ANSWER + ID).and_then(|id| <[u8; ID]>::try_from(id).ok()));
            }
            _ => {}
        }
        rest = next;
    }
    Ok(true)
}

/// Has the kernel end one; false if it ended meanwhile.
fn destroy(family: u8, id: &[u8; ID]) -> io::Result<bool> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let socket = send(&request(DESTROY, flags, family, STATES, id))?;
    let mut buffer = [0; 1024];
    let len = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = message(&buffer[..len]).map_or(Ok(()), |(_, body, _)| error_of(body));
    match answer {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first message of `bytes`: its type, its body, and what follows.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    // Messages are aligned to 4 bytes (NLMSG_ALIGN).
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// What an error message says; number 0 is an acknowledgement.
fn error_of(body: &[u8]) -> io::Result<()> {
    match body.get(0..4).and_then(|number| number.try_into().ok()).map(i32::from_ne_bytes) {
        None | Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
    }
}

/// Where the addresses are in a socket's id, behind the ports, each in 16 bytes.
const OWN: usize = 4;
const PEER: usize = 20;

fn address_of(family: u8, id: &[u8; ID], at: usize) -> IpAddr {
    let mut address = [0; 16];
    address.copy_from_slice(&id[at..at + 16]);
    if i32::from(family) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::new(address[0], address[1], address[2], address[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(address))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn which_are_over() {
        let v4 = PlanV4 {
            subnet: "172.18.0.0/16".parse().unwrap(),
            gateway: [172, 18, 0, 1].into(),
            dns: [172, 18, 0, 1].into(),
            guest: [172, 18, 0, 2].into(),
        };
        let other = IpAddr::from([172, 19, 0, 2]);
        let over = Over { v4: Some(v4), v6: None, whose: Whose::AllBut(vec![other]), members: false };
        let attached = Over { whose: Whose::Planned, ..over.clone() };
        let leaves = Over { members: true, ..over.clone() };
        for (peer, goes_on) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("172.18.0.3", true),
            ("::ffff:172.18.0.3", true),
            ("172.18.0.1", false),
            ("198.51.100.2", false),
            ("::ffff:198.51.100.2", false),
            ("2001:db8::1", false),
        ] {
            let peer: IpAddr = peer.parse().unwrap();
            assert_eq!(over.has(v4.guest.into(), peer), !goes_on, "{peer}");
            assert_eq!(leaves.has(v4.guest.into(), peer), !peer.to_canonical().is_loopback(), "{peer}");
            assert_eq!(attached.has(v4.guest.into(), peer), !goes_on, "{peer}");
            assert!(!attached.has(IpAddr::from([192, 0, 2, 1]), peer), "{peer}");
            assert!(!over.has(other, peer) && !leaves.has(other, peer), "{peer}");
        }
    }

    #[test]
    fn connections_of_this_machine_are_seen() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let ids = dump(libc::AF_INET as u8).unwrap();
        let to = |id: &&[u8; ID]| u16::from_be_bytes([id[2], id[3]]) == port;
        let found: Vec<_> = ids.iter().filter(to).collect();
        assert_eq!(found.len(), 1, "the client's end; a listener is none");
        assert_eq!(address_of(libc::AF_INET as u8, found[0], PEER), IpAddr::from([127, 0, 0, 1]));
    }

    #[test]
    fn what_is_no_message_is_nothing() {
        let mut ids = Vec::new();
        for length in 0..80usize {
            let mut bytes = request(BY_FAMILY, 0, 2, 0, &[0; ID]).to_vec();
            bytes.truncate(length);
            assert!(read_dump(&bytes, &mut ids).unwrap() && ids.is_empty() == (length < HEADER + REQUEST));
            ids.clear();
        }
        assert!(read_dump(&[0xff; 40], &mut ids).unwrap() && ids.is_empty());
    }
}
