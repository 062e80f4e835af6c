//! The DNS forwarder behind the guest's DNS address. Runs on the control plane's tokio runtime.
//!
//! The data plane hands a guest's UDP query over as bytes ([`Resolver::resolve`]), and a guest's TCP connection as a
//! stream ([`serve_tcp`]). A question is answered from the first of these that knows its name:
//!
//! 1. `localhost` and all names under it are this host (RFC 6761 §6.3);
//! 2. the endpoint's own records, a [`Zone`] ([`Resolver::set_zone`]), and then, on a shared network, the names of its
//!    members ([`Resolver::set_neighbours`]) and those of the sandbox's other networks ([`Resolver::set_peers`]);
//! 3. the servers of the longest domain that the name is under, where a domain has servers of its own
//!    ([`Resolver::set_zones`]). Such names (split VPN DNS) never go to other servers, whatever those servers do;
//! 4. the host's own name servers ([`Resolver::set_servers`]).
//!
//! To servers, questions go on as the bytes they came in, only the id is changed; answers come back as the bytes they
//! are. Nothing is cached (the host's server does that), nothing is validated beyond "this answers that", and no public
//! server is ever invented: without servers there is SERVFAIL. Where an alias of the zone leads out of it, its target is
//! asked for, of 3 or 4, and that answer put behind the alias.
//!
//! **One question.** Servers are tried in the order of the host's resolv.conf. A server that is silent for
//! [`Limits::server_timeout`] stays listened to, and the next one is asked beside it; after the last the round begins
//! anew, until [`Limits::total_timeout`] is over. A server that refuses, fails or is not there (SERVFAIL, NOTIMP,
//! REFUSED, ICMP port unreachable) is skipped at once, and its answer is given only if nobody has a better one. Every
//! attempt has a socket of its own, so a source port and an id of its own (RFC 5452 §9.2), connected, so that the kernel
//! drops what comes from elsewhere; id, direction and question are checked besides.
//!
//! | transport of the guest | asked upstream | given back |
//! |---|---|---|
//! | UDP | UDP; TCP too where that answer is truncated | whole if it fits the guest's EDNS size (or 512), else truncated |
//! | TCP | TCP; UDP where no connection can be made | whole |
//!
//! **Refused here:** garbage (FORMERR), operations other than QUERY (NOTIMP), zone transfers (REFUSED: they are streams of
//! messages).
//!
//! **Limits.** Questions in flight, servers, connections' pipelines and every wait are bounded by [`Limits`]; beyond the
//! first there is SERVFAIL at once, counted in [`Stats::overload`]. What is answered here needs no place in flight.
//!
//! **Faults on purpose.** [`Resolver::set_failing`] has a share of questions answered SERVFAIL, drawn for each by a seed before
//! anything else is done with it.
//!
//! **Watching.** [`Resolver::observe`] takes a bounded channel that gets one [`Event`] for each question; when it is full
//! events are lost and counted. Unwatched, this costs one atomic load a question.

mod failing;
mod stats;

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::peers::Peer;
use crate::network::config::DnsZone;
use crate::network::directory::{Aliases, Directory};
use crate::network::fault::Share;
use crate::network::zone::{Answer, Zone};
use crate::wire::dns_build::{self, Builder};
use crate::wire::dns_message::{self, CLASS_IN, Query, Rcode, TYPE_A, TYPE_AAAA, TYPE_AXFR, TYPE_IXFR};
use crate::wire::dns_name::Name;

use failing::Failing;
use stats::{Counters, count};
pub use stats::{EVENT_ADDRESSES, Event, Source, Stats};

/// Bounds of the forwarder.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Questions in flight, over all guests and connections.
    pub in_flight: usize,
    /// Servers taken from the host's list, and from each domain's.
    pub servers: usize,
    /// Attempts for one question.
    pub attempts: usize,
    /// How long one server may be silent before the next is asked beside it.
    pub server_timeout: Duration,
    /// How long a question may take in all.
    pub total_timeout: Duration,
    /// Questions of one TCP connection that are worked on at once; further ones are not read meanwhile.
    pub pipeline: usize,
    /// A TCP connection on which nothing is asked for that long is closed; so is one that takes no answer.
    pub tcp_idle: Duration,
}

impl Default for Limits {
    /// 256 questions: each costs a descriptor and a port or two. Three servers, as resolv.conf(5) has it (MAXNS). Two
    /// seconds for a server rather than that manual's five, since we ask in a round what a stub asks in a row; 4.5
    /// seconds in all, so that SERVFAIL is there before a stub with that manual's default of five gives up on us.
    /// 10 s of idling ("a few seconds" in RFC 7766 §6.2.3), 16 questions in a pipeline.
    fn default() -> Self {
        Self {
            in_flight: 256,
            servers: 3,
            attempts: 6,
            server_timeout: Duration::from_secs(2),
            total_timeout: Duration::from_millis(4500),
            pipeline: 16,
            tcp_idle: Duration::from_secs(10),
        }
    }
}

/// How the guest asked, which bounds the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram: the answer fits the size that the question announces.
    Udp,
    /// A connection: the answer is whole.
    Tcp,
}

/// Addresses of one name, of each family, that are told to who asks for them here.
const NAME_ADDRESSES: usize = 64;
/// Room for an answer over UDP. A question that announces less has a server that sends less; what does not fit is asked
/// for over TCP.
const UDP_BUFFER: usize = 4096;
/// Longest message (the 16-bit length of RFC 1035 §4.2.2).
const MAX_MESSAGE: usize = 0xffff;
/// Life of our answers about `localhost`, seconds: they never change. One day is what most zones for it have.
const LOCALHOST_TTL: u32 = 86_400;
/// Pause after an attempt failed for want of something on this host, so that a round never spins.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Who else is on a shared network, as one of its members sees them.
#[derive(Clone, Debug)]
pub struct Neighbours {
    /// The names of all, which change as they come and go.
    pub directory: Arc<RwLock<Directory>>,
    /// This one's own names for some of them.
    pub aliases: Aliases,
}

/// The forwarder. See the module.
#[derive(Debug)]
pub struct Resolver {
    limits: Limits,
    servers: RwLock<Arc<[SocketAddr]>>,
    zone: RwLock<Arc<Zone>>,
    neighbours: RwLock<Arc<Option<Neighbours>>>,
    /// Other networks, in the order in which they are asked.
    peers: RwLock<Arc<[Arc<Peer>]>>,
    /// Domains with servers of their own, those with more labels first.
    domains: RwLock<Arc<[Domain]>>,
    /// True while `observer` is somebody.
    observed: AtomicBool,
    observer: RwLock<Option<mpsc::Sender<Event>>>,
    failing: Failing,
    in_flight: AtomicUsize,
    /// It was said that a socket cannot be had.
    warned_short: AtomicBool,
    counters: Counters,
    random: RandomState,
    drawn: AtomicU64,
}

/// A domain and its servers.
#[derive(Debug)]
struct Domain {
    name: Name,
    servers: Arc<[SocketAddr]>,
}

/// One question's place among those in flight.
struct Ticket<'a>(&'a AtomicUsize);

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Work under way, polled in place: it may borrow, and dropping it ends it.
type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What came of one attempt.
enum Attempt {
    /// An answer to give.
    Answer(Vec<u8>),
    /// An answer to give if there is no better one.
    Poor(Vec<u8>),
    /// None: the server is not there, or spoke nonsense.
    Failed,
}

impl Resolver {
    /// A forwarder without servers; see [`Self::set_servers`].
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            servers: RwLock::new(Arc::new([])),
            zone: RwLock::default(),
            neighbours: RwLock::default(),
            peers: RwLock::new(Arc::new([])),
            domains: RwLock::new(Arc::new([])),
            observed: AtomicBool::new(false),
            observer: RwLock::new(None),
            failing: Failing::default(),
            in_flight: AtomicUsize::new(0),
            warned_short: AtomicBool::new(false),
            counters: Counters::default(),
            random: RandomState::new(),
            drawn: AtomicU64::new(0),
        }
    }

    /// The servers to ask from now on, in order; those beyond [`Limits::servers`] are left out. Questions in flight stay
    /// with the servers that they began with.
    pub fn set_servers(&self, mut servers: Vec<SocketAddr>) {
        servers.truncate(self.limits.servers);
        put(&self.servers, servers.into());
    }

    /// The names that are answered here from now on.
    pub fn set_zone(&self, zone: Zone) {
        put(&self.zone, Arc::new(zone));
    }

    /// The members of the network whose names are answered here from now on.
    pub fn set_neighbours(&self, neighbours: Neighbours) {
        put(&self.neighbours, Arc::new(Some(neighbours)));
    }

    /// The networks that are asked for names of theirs from now on, in order.
    pub fn set_peers(&self, peers: Vec<Arc<Peer>>) {
        put(&self.peers, peers.into());
    }

    /// What is known here of a name.
    fn known(&self, name: &Name, qtype: u16) -> Option<Answer> {
        get(&self.zone).lookup(name, qtype, self.random()).or_else(|| self.known_of_neighbours(name, qtype))
    }

    fn known_of_neighbours(&self, name: &Name, qtype: u16) -> Option<Answer> {
        let neighbours = get(&self.neighbours);
        let neighbours = neighbours.as_ref().as_ref()?;
        let directory = neighbours.directory.read().unwrap_or_else(PoisonError::into_inner);
        directory.lookup(name, qtype, &neighbours.aliases, self.random())
    }

    /// The answer to another network's question, from the names of this network's members alone; None where they have no
    /// such name, or it is no question.
    pub fn answer_neighbour(&self, query: &[u8]) -> Option<Vec<u8>> {
        let query = Query::parse(query).ok()?;
        let name = query.name().filter(|_| query.qclass == CLASS_IN)?;
        let answer = self.known_of_neighbours(&name, query.qtype)?;
        let mut builder = Builder::new(&query, Rcode::NoError, true);
        for (owner, ttl, data) in &answer.records {
            builder.record(owner, *ttl, data);
        }
        Some(builder.finish(&query))
    }

    /// What the other networks say of a name.
    async fn ask_peers(&self, query: &Query<'_>, name: &Name) -> Option<Vec<u8>> {
        let peers = get(&self.peers);
        for peer in peers.iter() {
            if let Some(mut answer) = peer.ask(query, name).await {
                answer[..2].copy_from_slice(&query.id.to_be_bytes());
                return Some(answer);
            }
        }
        None
    }

    /// This share of questions fails on purpose from now on; the others are given as they were. Chance begins anew where the
    /// seed, or how often it was given, is another than before.
    pub fn set_failing(&self, (share, seed, restarts): (Share, u64, u32)) {
        self.failing.set(share, (seed, restarts));
    }

    /// The addresses that the guest would get for a name, IPv4 and IPv6. Nothing fails here on purpose, and nobody is told.
    pub async fn addresses(&self, name: &Name) -> Vec<IpAddr> {
        let ask = async |qtype: u16| {
            let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            message.extend(name.as_wire());
            message.extend([qtype.to_be_bytes(), CLASS_IN.to_be_bytes()].concat());
            let Ok(query) = Query::parse(&message) else { return Vec::new() };
            let (answer, _) = self.answer(&query, Transport::Tcp).await;
            dns_build::addresses(&answer, NAME_ADDRESSES)
        };
        let (v4, v6) = tokio::join!(ask(TYPE_A), ask(TYPE_AAAA));
        [v4, v6].concat()
    }

    /// The domains whose names go to servers of their own from now on, instead of those of before; of each list those
    /// beyond [`Limits::servers`] are left out. A domain without servers fails.
    pub fn set_zones(&self, zones: &[DnsZone]) {
        let mut domains: Vec<Domain> = zones
            .iter()
            .map(|zone| Domain {
                name: zone.domain.clone(),
                servers: zone.servers.iter().copied().take(self.limits.servers).collect(),
            })
            .collect();
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.name.labels()));
        put(&self.domains, domains.into());
    }

    /// Tells of each question from now on; None tells nobody.
    pub fn observe(&self, observer: Option<mpsc::Sender<Event>>) {
        let mut place = self.observer.write().unwrap_or_else(PoisonError::into_inner);
        self.observed.store(observer.is_some(), Ordering::Relaxed);
        *place = observer;
    }

    /// The servers that are asked.
    pub fn servers(&self) -> Vec<SocketAddr> {
        get(&self.servers).to_vec()
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// The answer to one message of a guest, or None where nothing may be said to it (it is no question). Takes
    /// [`Limits::total_timeout`] at most.
    pub async fn resolve(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let parsed = match Query::parse(query) {
            Ok(parsed) => parsed,
            Err(error) => {
                count(&self.counters.local);
                return dns_message::error_answer(query, error);
            }
        };
        let limit = match transport {
            Transport::Udp => parsed.max_udp(),
            Transport::Tcp => MAX_MESSAGE,
        };
        let begun = self.observed.load(Ordering::Relaxed).then(Instant::now);
        let (answer, source) = if self.failing.draw() {
            count(&self.counters.fault);
            (parsed.answer(Rcode::ServFail), Source::Nobody)
        } else {
            self.answer(&parsed, transport).await
        };
        if let Some(begun) = begun {
            self.tell(&parsed, transport, &answer, source, begun.elapsed());
        }
        Some(parsed.fit(answer, limit))
    }

    /// The whole answer to a question, and whose it is.
    async fn answer(&self, query: &Query<'_>, transport: Transport) -> (Vec<u8>, Source) {
        if let Some(answer) = answer_here(query) {
            count(&self.counters.local);
            return (answer, Source::Local);
        }
        let name = query.name();
        let from_zone =
            name.as_ref().filter(|_| query.qclass == CLASS_IN).and_then(|name| self.known(name, query.qtype));
        let Some(from_zone) = from_zone else {
            if let Some(name) = name.as_ref().filter(|_| query.qclass == CLASS_IN)
                && let Some(answer) = self.ask_peers(query, name).await
            {
                count(&self.counters.zone);
                return (answer, Source::Zone);
            }
            return match self.forward(query, name.as_ref(), transport).await {
                Ok((mut answer, server)) => {
                    answer[..2].copy_from_slice(&query.id.to_be_bytes());
                    (answer, Source::Server(server))
                }
                Err(Unanswered) => (query.answer(Rcode::ServFail), Source::Nobody),
            };
        };
        let mut builder = Builder::new(query, Rcode::NoError, from_zone.rest.is_none());
        for (owner, ttl, data) in &from_zone.records {
            builder.record(owner, *ttl, data);
        }
        let Some(rest) = from_zone.rest else {
            let empty = from_zone.records.is_empty();
            count(if empty { &self.counters.zone_empty } else { &self.counters.zone });
            return (builder.finish(query), Source::Zone);
        };
        count(&self.counters.followed);
        let onward = query.about(&rest);
        // What was a question with another name is one with this.
        let Ok(asked) = Query::parse(&onward) else {
            return (query.answer(Rcode::ServFail), Source::Nobody);
        };
        match self.forward(&asked, Some(&rest), transport).await {
            Ok((answer, server)) => {
                // The code is that of the last name (RFC 6604 §3).
                let rcode = match dns_message::rcode(&answer) {
                    0 => Rcode::NoError,
                    3 => Rcode::NxDomain,
                    5 => Rcode::Refused,
                    _ => Rcode::ServFail,
                };
                if !matches!(rcode, Rcode::NoError | Rcode::NxDomain) || !builder.append_answer(&answer) {
                    let rcode = if rcode == Rcode::Refused { rcode } else { Rcode::ServFail };
                    return (query.answer(rcode), Source::Server(server));
                }
                builder.set_rcode(rcode);
                (builder.finish(query), Source::Server(server))
            }
            Err(Unanswered) => (query.answer(Rcode::ServFail), Source::Nobody),
        }
    }

    /// Asks the servers that know `name` (None is the root).
    async fn forward(
        &self,
        query: &Query<'_>,
        name: Option<&Name>,
        transport: Transport,
    ) -> Result<(Vec<u8>, SocketAddr), Unanswered> {
        let Some(_ticket) = self.admit() else {
            count(&self.counters.overload);
            return Err(Unanswered);
        };
        count(&self.counters.forwarded);
        let domains = get(&self.domains);
        let own = domains.iter().find(|domain| name.is_some_and(|name| name.is_under(&domain.name)));
        let servers = if let Some(domain) = own {
            count(&self.counters.forwarded_by_domain);
            Arc::clone(&domain.servers)
        } else {
            get(&self.servers)
        };
        let answered = self.ask_servers(&servers, query, transport).await;
        match &answered {
            None => count(&self.counters.failed),
            Some((answer, _)) => match dns_message::rcode(answer) {
                2 | 4 | 5 => count(&self.counters.unwilling),
                3 => count(&self.counters.no_such_name),
                _ => {}
            },
        }
        answered.ok_or(Unanswered)
    }

    /// Tells the observer, if there is one with room.
    fn tell(&self, query: &Query<'_>, transport: Transport, answer: &[u8], source: Source, took: Duration) {
        let observer = self.observer.read().unwrap_or_else(PoisonError::into_inner);
        // The place in the channel first: without one nothing need be made.
        let place = match observer.as_ref().map(mpsc::Sender::try_reserve) {
            Some(Ok(place)) => place,
            Some(Err(_)) => return count(&self.counters.lost_events),
            None => return,
        };
        place.send(Event {
            name: query.name().map_or_else(|| ".".to_owned(), |name| name.to_string()),
            qtype: query.qtype,
            transport,
            rcode: dns_message::rcode(answer),
            source,
            addresses: dns_build::addresses(answer, EVENT_ADDRESSES),
            took,
        });
    }

    fn admit(&self) -> Option<Ticket<'_>> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket(&self.in_flight);
        (before < self.limits.in_flight).then_some(ticket)
    }

    /// A number that nobody can guess: a counter under a keyed hash (SipHash, keyed by the kernel's randomness).
    fn random(&self) -> u64 {
        self.random.hash_one(self.drawn.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks one server after the other; see the module. The answer, and which server's it is.
    async fn ask_servers(
        &self,
        servers: &[SocketAddr],
        query: &Query<'_>,
        transport: Transport,
    ) -> Option<(Vec<u8>, SocketAddr)> {
        if servers.is_empty() {
            return None;
        }
        let deadline = Instant::now() + self.limits.total_timeout;
        let mut order = servers.iter().copied().cycle().take(self.limits.attempts).enumerate().peekable();
        let mut ask_at = Instant::now();
        let mut running: Vec<Running<'_, (Attempt, SocketAddr)>> = Vec::new();
        let mut poor = None;
        loop {
            if Instant::now() >= deadline || (order.peek().is_none() && running.is_empty()) {
                return poor;
            }
            if Instant::now() >= ask_at
                && let Some((_, server)) = order.next()
            {
                running.push(Box::pin(async move { (self.attempt(server, query, transport).await, server) }));
                ask_at = Instant::now() + self.limits.server_timeout;
            }
            let wait = if order.peek().is_some() { deadline.min(ask_at) } else { deadline };
            let (ended, server) = tokio::select! {
                ended = any_of(&mut running), if !running.is_empty() => ended,
                () = sleep_until(wait) => continue,
            };
            match ended {
                Attempt::Answer(answer) => return Some((answer, server)),
                Attempt::Poor(answer) => {
                    poor.get_or_insert((answer, server));
                }
                Attempt::Failed => {}
            }
            match order.peek() {
                // There is one that was not asked yet.
                Some(&(asked, _)) if asked < servers.len() => ask_at = Instant::now(),
                // Nobody is of use. A server that is just being restarted may be, after a breath.
                _ if running.is_empty() && poor.is_none() => ask_at = Instant::now() + RETRY_PAUSE,
                _ if running.is_empty() => return poor,
                _ => {}
            }
        }
    }

    /// Asks one server. Ends when it answers or cannot; the caller's deadline ends it otherwise.
    async fn attempt(&self, server: SocketAddr, query: &Query<'_>, transport: Transport) -> Attempt {
        let answer = match transport {
            Transport::Udp => match self.ask_udp(server, query).await {
                // The short answer is better than none.
                Ok(short) if dns_message::is_truncated(&short) => {
                    let whole = timeout(self.limits.server_timeout, self.ask_tcp(server, query)).await;
                    Ok(whole.ok().and_then(Result::ok).unwrap_or(short))
                }
                answer => answer,
            },
            Transport::Tcp => match self.ask_tcp(server, query).await {
                Ok(answer) => Ok(answer),
                Err(_) => self.ask_udp(server, query).await,
            },
        };
        match answer {
            Ok(answer) if matches!(dns_message::rcode(&answer), 2 | 4 | 5) => Attempt::Poor(answer),
            // A truncated answer over a connection would make the guest ask again for ever.
            Ok(answer) if transport == Transport::Tcp && dns_message::is_truncated(&answer) => Attempt::Failed,
            Ok(answer) => Attempt::Answer(answer),
            Err(error) => {
                let short = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM));
                if short && !self.warned_short.swap(true, Ordering::Relaxed) {
                    tracing::warn!("cannot make a socket for a question: {error}; further failures are only counted");
                }
                tracing::debug!(%server, %error, "name server of no use");
                Attempt::Failed
            }
        }
    }

    async fn ask_udp(&self, server: SocketAddr, query: &Query<'_>) -> io::Result<Vec<u8>> {
        let unspecified: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // The kernel draws the source port at random; connecting makes it drop what others send.
        let socket = UdpSocket::bind((unspecified, 0)).await?;
        socket.connect(server).await?;
        let id = self.random() as u16;
        socket.send(&query.with_id(id)).await?;
        let mut buffer = vec![0; query.max_udp().max(UDP_BUFFER) + 1];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if !query.is_answered_by(&buffer[..length], id) {
                count(&self.counters.mismatched);
                continue;
            }
            if length == buffer.len() {
                // The kernel cut it.
                buffer[2] |= 0x02;
                return Ok(query.fit(buffer, 0));
            }
            buffer.truncate(length);
            return Ok(buffer);
        }
    }

    async fn ask_tcp(&self, server: SocketAddr, query: &Query<'_>) -> io::Result<Vec<u8>> {
        let connected = timeout(self.limits.server_timeout, TcpStream::connect(server)).await;
        let mut stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let id = self.random() as u16;
        // One write: length and message belong into one segment (RFC 7766 §8).
        stream.write_all(&framed(&query.with_id(id))).await?;
        let length = usize::from(stream.read_u16().await?);
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        if !query.is_answered_by(&answer, id) {
            count(&self.counters.mismatched);
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answer to another question over TCP"));
        }
        Ok(answer)
    }
}

/// No server answered.
struct Unanswered;

fn get<T: ?Sized>(place: &RwLock<Arc<T>>) -> Arc<T> {
    Arc::clone(&place.read().unwrap_or_else(PoisonError::into_inner))
}

fn put<T: ?Sized>(place: &RwLock<Arc<T>>, value: Arc<T>) {
    *place.write().unwrap_or_else(PoisonError::into_inner) = value;
}

/// What is neither in a zone nor asked of a server.
fn answer_here(query: &Query<'_>) -> Option<Vec<u8>> {
    if matches!(query.qtype, TYPE_AXFR | TYPE_IXFR) {
        return Some(query.answer(Rcode::Refused));
    }
    query.is_under("localhost").then(|| {
        let both = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        query.address_answer(&both, LOCALHOST_TTL)
    })
}

/// `message` with its length in front (RFC 1035 §4.2.2).
fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + message.len());
    out.extend((message.len() as u16).to_be_bytes());
    out.extend(message);
    out
}

/// Serves DNS over one connection (RFC 7766): questions with their length in front, several at once, answers in the
/// order in which they become ready. Ends when the guest has closed and has its answers, after [`Limits::tcp_idle`]
/// without a question, at a message that nothing may be said to, or when answers are not taken.
pub async fn serve_tcp(stream: UnixStream, resolver: Arc<Resolver>) {
    let limits = resolver.limits;
    let (mut reader, mut writer) = stream.into_split();
    let mut buffer: Vec<u8> = Vec::new();
    let mut chunk = vec![0; UDP_BUFFER];
    let mut running: Vec<Running<'_, Option<Vec<u8>>>> = Vec::new();
    let mut ended = false;
    let mut idle = Instant::now() + limits.tcp_idle;
    loop {
        while running.len() < limits.pipeline
            && let Some(message) = take_message(&mut buffer)
        {
            let resolver = Arc::clone(&resolver);
            running.push(Box::pin(async move { resolver.resolve(&message, Transport::Tcp).await }));
            idle = Instant::now() + limits.tcp_idle;
        }
        if ended && running.is_empty() {
            return;
        }
        let reads = !ended && running.len() < limits.pipeline;
        tokio::select! {
            read = reader.read(&mut chunk), if reads => match read {
                Ok(0) => ended = true,
                Ok(length) => buffer.extend(&chunk[..length]),
                Err(_) => return,
            },
            answer = any_of(&mut running), if !running.is_empty() => {
                let Some(answer) = answer else { return };
                let written = timeout(limits.tcp_idle, writer.write_all(&framed(&answer))).await;
                if !matches!(written, Ok(Ok(()))) {
                    return;
                }
                idle = Instant::now() + limits.tcp_idle;
            }
            () = sleep_until(idle), if running.is_empty() => return,
        }
    }
}

/// The first of `running` to end; it is taken out.
async fn any_of<T>(running: &mut Vec<Running<'_, T>>) -> T {
    poll_fn(|context| {
        for at in 0..running.len() {
            if let Poll::Ready(value) = running[at].as_mut().poll(context) {
                drop(running.swap_remove(at));
                return Poll::Ready(value);
            }
        }
        Poll::Pending
    })
    .await
}

/// The first whole message in `buffer`, taken out. An empty one counts: it is no question, and ends the connection.
fn take_message(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([*buffer.first()?, *buffer.get(1)?]));
    let message = buffer.get(2..2 + length)?.to_vec();
    buffer.drain(..2 + length);
    Some(message)
}

#[cfg(test)]
mod tests;
