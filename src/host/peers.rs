//! Names on the other networks of a sandbox. Each network has a process of its own, and a sandbox asks one of them: that of
//! its gateway. What that one does not know, it asks those of the sandbox's other networks, over pairs of sockets that the
//! monitor made and handed to both sides.
//!
//! ```text
//! sandbox ─ 127.0.0.11 ─► its gateway's network ─ not known ─► [Peer] ══ socket pair ══► [answer]: the other network's names
//! ```
//!
//! A packet is a DNS message with an id of the asker's, and comes back as the answer with that id, or as the id alone: not
//! known here either. A pair belongs to one sandbox on both of its networks, so an answer is what that very member would be
//! told there, its own `--link` names included.
//!
//! **Not every name.** Asked for are names of one label, names under the other network's name, and addresses. So nobody learns
//! from it what a sandbox looks up in the world, no such question waits for it, and a process that has been taken over cannot
//! answer for the world.
//!
//! **Limits.** [`PENDING`] questions on their way over one pair, [`PATIENCE`] for each; a socket that is closed is a
//! network that does not know.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdSocket;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::resolver::Resolver;
use crate::wire::dns_message::Query;
use crate::wire::dns_name::Name;

/// Questions on their way.
const PENDING: usize = 256;
/// How long another network's process may take: it answers out of its memory, or it is dead.
const PATIENCE: Duration = Duration::from_millis(250);
/// Room for a packet; local answers are far smaller.
const PACKET: usize = 65_536;

/// Another network, asked for names.
#[derive(Debug)]
pub struct Peer {
    socket: UnixDatagram,
    /// Its name, as the last labels of names.
    network: Option<Name>,
    pending: Mutex<HashMap<u16, oneshot::Sender<Vec<u8>>>>,
    next: AtomicU16,
}

/// A SOCK_SEQPACKET socket on the running tokio runtime. tokio knows it as a datagram socket, which differs in nothing that is
/// done with it here, but that the other side's end is read as a packet without bytes.
fn watch(socket: OwnedFd) -> io::Result<UnixDatagram> {
    let socket = StdSocket::from(socket);
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

impl Peer {
    /// Asks over this socket for names of the network called `network`.
    pub fn new(socket: OwnedFd, network: &str) -> io::Result<Self> {
        let (pending, next) = (Mutex::default(), AtomicU16::new(0));
        Ok(Self { socket: watch(socket)?, network: Name::parse(network).ok(), pending, next })
    }

    /// Whether the other network may know this name.
    fn may_know(&self, name: &Name) -> bool {
        name.labels() == 1
            || name.reversed_address().is_some()
            || self.network.as_ref().is_some_and(|network| name.is_under(network))
    }

    /// Its answer, whole and with an id that means nothing; None: it knows nothing of the name.
    pub async fn ask(&self, query: &Query<'_>, name: &Name) -> Option<Vec<u8>> {
        if !self.may_know(name) {
            return None;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (done, answer) = oneshot::channel();
        let pending = || self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut pending = pending();
            if pending.len() >= PENDING {
                return None;
            }
            pending.insert(id, done);
        }
        let question = query.with_id(id);
        let asked = async {
            self.socket.send(&question).await.ok()?;
            answer.await.ok()
        };
        let answer = timeout(PATIENCE, asked).await.ok().flatten();
        pending().remove(&id);
        // The id alone is "not known".
        answer.filter(|answer| answer.len() > 2 && query.is_answered_by(answer, id))
    }

    /// Hands answers to those who wait for them, until the other side is gone.
    pub async fn listen(self: Arc<Self>) {
        let mut packet = vec![0; PACKET];
        loop {
            let len = match self.socket.recv(&mut packet).await {
                Ok(len @ 2..) => len,
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            };
            let id = u16::from_be_bytes([packet[0], packet[1]]);
            let waiting = self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if let Some(waiting) = waiting {
                let _ = waiting.send(packet[..len].to_vec());
            }
        }
    }
}

/// Answers what another network's process asks over this socket, from the names of this network alone, until it is gone.
pub async fn answer(socket: OwnedFd, resolver: Arc<Resolver>) -> io::Result<()> {
    let socket = watch(socket)?;
    let mut packet = vec![0; PACKET];
    loop {
        let len = socket.recv(&mut packet).await?;
        if len == 0 {
            return Ok(());
        }
        let Some(id) = packet.get(..2) else { continue };
        let answer = resolver.answer_neighbour(&packet[..len]).unwrap_or_else(|| id.to_vec());
        // An asker that reads nothing holds up its own questions alone.
        socket.send(&answer).await?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::IpAddr;
    use std::sync::RwLock;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::host::resolver::{Limits, Neighbours, Transport};
    use crate::network::config::Link;
    use crate::network::directory::{self, Directory};
    use crate::wire::dns_build::addresses;
    use crate::wire::dns_message::{TYPE_A, rcode};

    fn network(name: &str, member: &str, address: &str, links: &[Link]) -> Arc<Resolver> {
        let mut directory = Directory::new(name, directory::Limits::default());
        directory.join(0, &[member.to_owned()], &[address.parse().unwrap()]).unwrap();
        let aliases = directory.aliases(links).unwrap();
        let resolver = Resolver::new(Limits::default());
        resolver.set_neighbours(Neighbours { directory: Arc::new(RwLock::new(directory)), aliases });
        Arc::new(resolver)
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    async fn ask(resolver: &Resolver, name: &str) -> (u8, Vec<IpAddr>) {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        assert!(crate::wire::dns_name::append(&mut query, name));
        query.extend([0, TYPE_A as u8, 0, 1]);
        let answer = resolver.resolve(&query, Transport::Udp).await.unwrap();
        assert_eq!(answer[..2], [0x12, 0x34], "the guest's id");
        (rcode(&answer), addresses(&answer, 8))
    }

    #[tokio::test]
    async fn a_sandbox_on_two_networks_finds_the_members_of_both() {
        let link = Link { target: "redis".into(), alias: "db".into() };
        let (front, back) =
            (network("front", "web", "172.18.0.2", &[]), network("back", "redis", "172.19.0.3", &[link]));
        let (one, other) = pair();
        let peer = Arc::new(Peer::new(one, "back").unwrap());
        front.set_peers(vec![Arc::clone(&peer)]);
        tokio::spawn(Arc::clone(&peer).listen());
        let answering = tokio::spawn(answer(other, Arc::clone(&back)));
        let redis: IpAddr = [172, 19, 0, 3].into();
        assert_eq!(ask(&front, "web").await, (0, vec![[172, 18, 0, 2].into()]));
        for name in ["redis", "REDIS.back", "db"] {
            assert_eq!(ask(&front, name).await, (0, vec![redis]), "{name}");
        }
        // Nobody knows, and there is no server; of the world the other one is not even asked.
        let began = std::time::Instant::now();
        for name in ["nobody", "redis.front", "example.com"] {
            assert_eq!(ask(&front, name).await, (2, vec![]), "{name}");
        }
        assert!(began.elapsed() < PATIENCE);
        // The way back was not given.
        assert_eq!(ask(&back, "web").await, (2, vec![]));
        // A network that is gone knows nothing, at once.
        answering.abort();
        assert!(answering.await.is_err());
        let began = std::time::Instant::now();
        assert_eq!(ask(&front, "redis").await, (2, vec![]));
        assert!(began.elapsed() < PATIENCE && peer.pending.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_that_is_silent_or_talks_nonsense_costs_its_patience() {
        let front = network("front", "web", "172.18.0.2", &[]);
        let (one, other) = pair();
        let peer = Arc::new(Peer::new(one, "back").unwrap());
        front.set_peers(vec![Arc::clone(&peer)]);
        tokio::spawn(Arc::clone(&peer).listen());
        nix::unistd::write(&other, &[0; 1]).unwrap();
        nix::unistd::write(&other, &[0xff; 100]).unwrap();
        let began = std::time::Instant::now();
        assert_eq!(ask(&front, "redis").await, (2, vec![]));
        assert!(began.elapsed() >= PATIENCE);
        assert!(peer.pending.lock().unwrap().is_empty());
    }
}
