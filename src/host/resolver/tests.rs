//! Against servers made here, on loopback. Where waits matter the clock is tokio's paused one: it jumps when nobody has
//! anything to do, and the sockets of loopback deliver at once.

use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::wire::dns_message::{TYPE_A, rcode};

mod own_names;

/// What a server sends, and after how many milliseconds.
type Replies = Vec<(u64, Vec<u8>)>;

/// Who asked, and what.
type Asked = Arc<Mutex<Vec<(SocketAddr, Vec<u8>)>>>;

/// A UDP server on loopback and what it was asked, by whom.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    asked: Asked,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn udp(reply: impl Fn(&[u8]) -> Replies + Send + Sync + 'static) -> Self {
        Self::start(UdpSocket::bind("127.0.0.1:0").await.expect("bind"), reply)
    }

    fn start(socket: UdpSocket, reply: impl Fn(&[u8]) -> Replies + Send + Sync + 'static) -> Self {
        let socket = Arc::new(socket);
        let server =
            Self { address: socket.local_addr().expect("address"), asked: Arc::default(), connections: Arc::default() };
        let asked = Arc::clone(&server.asked);
        tokio::spawn(async move {
            let mut buffer = vec![0; 70_000];
            loop {
                let (length, peer) = socket.recv_from(&mut buffer).await.expect("receive");
                asked.lock().expect("lock").push((peer, buffer[..length].to_vec()));
                for (delay, answer) in reply(&buffer[..length]) {
                    let socket = Arc::clone(&socket);
                    tokio::spawn(async move {
                        if delay > 0 {
                            tokio::time::sleep(Duration::from_millis(delay)).await;
                        }
                        // The asker may be gone.
                        let _ = socket.send_to(&answer, peer).await;
                    });
                }
            }
        });
        server
    }

    /// The same port over UDP and TCP.
    async fn both(
        reply: impl Fn(&[u8]) -> Replies + Send + Sync + 'static,
        reply_tcp: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        // A port that is free for UDP may be taken for TCP.
        let (socket, listener) = loop {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
            let address = socket.local_addr().expect("address");
            if let Ok(listener) = tokio::net::TcpListener::bind(address).await {
                break (socket, listener);
            }
        };
        let server = Self::start(socket, reply);
        let connections = Arc::clone(&server.connections);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accept");
                connections.fetch_add(1, Ordering::Relaxed);
                let length = usize::from(stream.read_u16().await.expect("length"));
                let mut query = vec![0; length];
                stream.read_exact(&mut query).await.expect("question");
                let _ = stream.write_all(&framed(&reply_tcp(&query))).await;
            }
        });
        server
    }

    fn count(&self) -> usize {
        self.asked.lock().expect("lock").len()
    }
}

/// An address on which nobody listens.
async fn nobody() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address")
}

fn question(name: &str, qtype: u16, edns: Option<u16>) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(qtype.to_be_bytes());
    message.extend([0, 1]);
    if let Some(size) = edns {
        message[11] = 1;
        message.extend([0, 0, 41]);
        message.extend(size.to_be_bytes());
        message.extend([0; 6]);
    }
    message
}

fn ask() -> Vec<u8> {
    question("www.example.net", TYPE_A, None)
}

/// An answer with `records` addresses, the last byte of each being `mark`.
fn answer(query: &[u8], records: usize, mark: u8) -> Vec<u8> {
    let addresses = vec![IpAddr::from([192, 0, 2, mark]); records];
    Query::parse(query).expect("a question").address_answer(&addresses, 60)
}

fn failure(query: &[u8], code: Rcode) -> Vec<u8> {
    Query::parse(query).expect("a question").answer(code)
}

fn truncated(query: &[u8]) -> Vec<u8> {
    let mut answer = failure(query, Rcode::NoError);
    answer[2] |= 2;
    answer
}

fn mark_of(answer: &[u8]) -> u8 {
    *answer.last().expect("a record")
}

fn resolver(servers: &[SocketAddr]) -> Resolver {
    let resolver = Resolver::new(Limits::default());
    resolver.set_servers(servers.to_vec());
    resolver
}

async fn udp(resolver: &Resolver, query: &[u8]) -> Vec<u8> {
    resolver.resolve(query, Transport::Udp).await.expect("answered")
}

#[tokio::test(start_paused = true)]
async fn forwards_with_an_id_and_a_port_of_its_own() {
    let server = Server::udp(|q| vec![(0, answer(q, 1, 7))]).await;
    let resolver = resolver(&[server.address]);
    for _ in 0..20 {
        let got = udp(&resolver, &ask()).await;
        assert_eq!(got, answer(&ask(), 1, 7), "the guest's own id is back");
    }
    let asked = server.asked.lock().expect("lock").clone();
    assert!(asked.iter().all(|(_, q)| q[2..] == ask()[2..]), "the rest of the question is unchanged");
    let mut ids: Vec<_> = asked.iter().map(|(_, q)| [q[0], q[1]]).collect();
    let mut ports: Vec<_> = asked.iter().map(|(peer, _)| peer.port()).collect();
    ids.sort_unstable();
    ids.dedup();
    ports.sort_unstable();
    ports.dedup();
    assert!(ids.len() > 15 && ports.len() > 10, "{} ids and {} ports in 20 questions", ids.len(), ports.len());
    assert_eq!(resolver.stats(), Stats { forwarded: 20, ..Stats::default() });
}

#[tokio::test]
async fn without_servers_it_fails_at_once() {
    let resolver = resolver(&[]);
    assert_eq!(rcode(&udp(&resolver, &ask()).await), 2);
    assert_eq!(resolver.stats().failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_followed_by_the_next() {
    let silent = Server::udp(|_| vec![]).await;
    let good = Server::udp(|q| vec![(0, answer(q, 1, 2))]).await;
    let resolver = resolver(&[silent.address, good.address]);
    let start = Instant::now();
    assert_eq!(mark_of(&udp(&resolver, &ask()).await), 2);
    let took = start.elapsed();
    assert!((2000..2100).contains(&took.as_millis()), "{took:?}");
    assert_eq!((silent.count(), good.count()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_server_stays_listened_to() {
    let slow = Server::udp(|q| vec![(3000, answer(q, 1, 1))]).await;
    let silent = Server::udp(|_| vec![]).await;
    let resolver = resolver(&[slow.address, silent.address]);
    let start = Instant::now();
    assert_eq!(mark_of(&udp(&resolver, &ask()).await), 1);
    assert!((3000..3100).contains(&start.elapsed().as_millis()));
}

#[tokio::test(start_paused = true)]
async fn a_lost_question_is_asked_again() {
    let seen = AtomicUsize::new(0);
    let lossy = Server::udp(move |q| match seen.fetch_add(1, Ordering::Relaxed) {
        0 => vec![],
        _ => vec![(0, answer(q, 1, 3))],
    })
    .await;
    let resolver = resolver(&[lossy.address]);
    let start = Instant::now();
    assert_eq!(mark_of(&udp(&resolver, &ask()).await), 3);
    assert!((2000..2100).contains(&start.elapsed().as_millis()));
    let asked = lossy.asked.lock().expect("lock");
    assert_ne!(asked[0].0, asked[1].0, "each attempt has a port of its own");
}

#[tokio::test(start_paused = true)]
async fn silence_everywhere_fails_before_stubs_give_up() {
    let silent = Server::udp(|_| vec![]).await;
    let resolver = resolver(&[silent.address]);
    let start = Instant::now();
    assert_eq!(rcode(&udp(&resolver, &ask()).await), 2);
    assert!((4500..4600).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(silent.count(), 3);
    assert_eq!(resolver.stats().failed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_not_there_costs_no_time() {
    let good = Server::udp(|q| vec![(0, answer(q, 1, 2))]).await;
    let resolver = resolver(&[nobody().await, good.address]);
    let start = Instant::now();
    assert_eq!(mark_of(&udp(&resolver, &ask()).await), 2);
    assert!(start.elapsed().as_millis() < 50, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn when_nobody_is_there_it_fails_soon() {
    let resolver = resolver(&[nobody().await, nobody().await]);
    let start = Instant::now();
    assert_eq!(rcode(&udp(&resolver, &ask()).await), 2);
    let took = start.elapsed().as_millis();
    assert!((100..1500).contains(&took), "breathes between rounds, {took} ms");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_is_passed_over_at_once() {
    for code in [Rcode::ServFail, Rcode::Refused, Rcode::NotImp] {
        let poor = Server::udp(move |q| vec![(0, failure(q, code))]).await;
        let good = Server::udp(|q| vec![(0, answer(q, 1, 2))]).await;
        let start = Instant::now();
        assert_eq!(mark_of(&udp(&resolver(&[poor.address, good.address]), &ask()).await), 2, "{code:?}");
        assert!(start.elapsed().as_millis() < 50, "{code:?}");
        // Alone, its answer is the answer.
        assert_eq!(udp(&resolver(&[poor.address]), &ask()).await, failure(&ask(), code));
        assert_eq!(udp(&resolver(&[poor.address, nobody().await]), &ask()).await, failure(&ask(), code));
    }
}

#[tokio::test(start_paused = true)]
async fn no_such_name_is_final() {
    let first = Server::udp(|q| {
        let mut answer = failure(q, Rcode::NoError);
        answer[3] |= 3;
        vec![(0, answer)]
    })
    .await;
    let second = Server::udp(|q| vec![(0, answer(q, 1, 2))]).await;
    assert_eq!(rcode(&udp(&resolver(&[first.address, second.address]), &ask()).await), 3);
    assert_eq!(second.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_answer_the_question_is_ignored() {
    let liar = Server::udp(|q| {
        let mut wrong_id = answer(q, 1, 66);
        wrong_id[0] ^= 1;
        let mut wrong_name = answer(q, 1, 66);
        wrong_name[13] = b'x';
        let mut wrong_type = answer(q, 1, 66);
        wrong_type[30] = 28;
        vec![
            (0, wrong_id),
            (1, wrong_name),
            (2, wrong_type),
            (3, q.to_vec()),
            (4, vec![]),
            (5, answer(q, 1, 66)[..20].to_vec()),
            (6, answer(q, 1, 7)),
        ]
    })
    .await;
    let resolver = resolver(&[liar.address]);
    assert_eq!(mark_of(&udp(&resolver, &ask()).await), 7);
    assert_eq!(resolver.stats().mismatched, 6);
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_elsewhere_is_not_heard() {
    // The forger knows id and port, and has the wrong address.
    let forger = Arc::new(std::net::UdpSocket::bind("127.0.0.1:0").expect("bind"));
    let real = Server::udp(|q| vec![(20, answer(q, 1, 7))]).await;
    let resolver = Arc::new(resolver(&[real.address]));
    let asking = tokio::spawn({
        let resolver = Arc::clone(&resolver);
        async move { udp(&resolver, &ask()).await }
    });
    while real.count() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (peer, query) = real.asked.lock().expect("lock")[0].clone();
    forger.send_to(&answer(&query, 1, 66), peer).expect("send");
    assert_eq!(mark_of(&asking.await.expect("task")), 7);
    assert_eq!(resolver.stats().mismatched, 0, "the kernel dropped it");
}

#[tokio::test(start_paused = true)]
async fn truncated_answers_are_fetched_whole() {
    let server = Server::both(|q| vec![(0, truncated(q))], |q| answer(q, 60, 7)).await;
    let resolver = resolver(&[server.address]);
    let large = question("www.example.net", TYPE_A, Some(4096));
    let got = udp(&resolver, &large).await;
    assert_eq!(got, answer(&large, 60, 7));
    assert!(got.len() > 512);
    // Without EDNS it does not fit, and says so; over TCP it is whole.
    let got = udp(&resolver, &ask()).await;
    assert!(got.len() <= 512 && dns_message::is_truncated(&got));
    let got = resolver.resolve(&ask(), Transport::Tcp).await.expect("answered");
    assert_eq!(got, answer(&ask(), 60, 7));
    assert_eq!(server.connections.load(Ordering::Relaxed), 3);
    assert_eq!(server.count(), 2, "a question over TCP goes on over TCP");
}

#[tokio::test(start_paused = true)]
async fn answers_of_every_size_for_every_announced_size() {
    for records in [1, 30, 31, 32, 75, 250, 4000] {
        let short = move |q: &[u8]| {
            let whole = answer(q, records, 7);
            vec![(0, if whole.len() > 3000 { truncated(q) } else { whole })]
        };
        let server = Server::both(short, move |q| answer(q, records, 7)).await;
        let resolver = resolver(&[server.address]);
        for edns in [None, Some(512), Some(1232), Some(4096), Some(65_535)] {
            let query = question("www.example.net", TYPE_A, edns);
            let whole = answer(&query, records, 7);
            let limit = usize::from(edns.unwrap_or(512));
            let got = udp(&resolver, &query).await;
            assert!(got.len() <= limit, "{records} records, {edns:?}");
            assert_eq!(dns_message::is_truncated(&got), whole.len() > limit, "{records} records, {edns:?}");
            if whole.len() <= limit {
                assert_eq!(got, whole);
            }
            assert_eq!(resolver.resolve(&query, Transport::Tcp).await, Some(whole));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_kernel_cuts_is_fetched_over_tcp() {
    // 5000 bytes by UDP for somebody who takes 512.
    let server = Server::both(|q| vec![(0, answer(q, 310, 7))], |q| answer(q, 20, 9)).await;
    let got = udp(&resolver(&[server.address]), &ask()).await;
    assert_eq!((mark_of(&got), server.connections.load(Ordering::Relaxed)), (9, 1));
}

#[tokio::test(start_paused = true)]
async fn servers_without_tcp() {
    // Over UDP the short answer is better than none.
    let short = Server::udp(|q| vec![(0, truncated(q))]).await;
    assert!(dns_message::is_truncated(&udp(&resolver(&[short.address]), &ask()).await));
    // Over TCP an answer marked truncated would be asked for again for ever.
    let got = resolver(&[short.address]).resolve(&ask(), Transport::Tcp).await.expect("answered");
    assert_eq!((rcode(&got), dns_message::is_truncated(&got)), (2, false));
    let whole = Server::udp(|q| vec![(0, answer(q, 1, 7))]).await;
    let got = resolver(&[whole.address]).resolve(&ask(), Transport::Tcp).await.expect("answered");
    assert_eq!(mark_of(&got), 7, "UDP stands in");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_answer_over_tcp_is_not_given() {
    let server = Server::both(
        |q| vec![(0, truncated(q))],
        |q| {
            let mut wrong = answer(q, 1, 66);
            wrong[0] ^= 1;
            wrong
        },
    )
    .await;
    let resolver = resolver(&[server.address]);
    assert!(dns_message::is_truncated(&udp(&resolver, &ask()).await));
    assert_eq!(resolver.stats().mismatched, 1);
}

#[tokio::test]
async fn this_host_is_answered_here() {
    let resolver = resolver(&[]);
    for name in ["localhost", "LOCALHOST", "a.localhost"] {
        let got = udp(&resolver, &question(name, TYPE_A, None)).await;
        assert!(got.ends_with(&[0, 4, 127, 0, 0, 1]), "{name}");
        let got = udp(&resolver, &question(name, 28, None)).await;
        assert!(got.ends_with(&Ipv6Addr::LOCALHOST.octets()), "{name}");
        let got = udp(&resolver, &question(name, 15, None)).await;
        assert_eq!((rcode(&got), &got[6..8]), (0, &[0, 0][..]), "{name}");
    }
    assert_eq!(resolver.stats(), Stats { local: 9, ..Stats::default() });
}

#[tokio::test]
async fn what_is_not_forwarded() {
    let resolver = resolver(&[]);
    for transport in [Transport::Udp, Transport::Tcp] {
        let code = |answer: Option<Vec<u8>>| rcode(&answer.expect("answered"));
        let zone = question("example.net", TYPE_AXFR, None);
        assert_eq!(code(resolver.resolve(&zone, transport).await), 5);
        let mut garbage = ask();
        garbage[5] = 9;
        assert_eq!(code(resolver.resolve(&garbage, transport).await), 1);
        let mut update = ask();
        update[2] = 0x28;
        assert_eq!(code(resolver.resolve(&update, transport).await), 4);
        let mut answer = ask();
        answer[2] |= 0x80;
        assert_eq!(resolver.resolve(&answer, transport).await, None);
        assert_eq!(resolver.resolve(&ask()[..11], transport).await, None);
        assert_eq!(resolver.resolve(&[], transport).await, None);
    }
    assert_eq!(resolver.stats().failed, 0);
}

#[tokio::test(start_paused = true)]
async fn questions_in_flight_are_bounded() {
    let silent = Server::udp(|_| vec![]).await;
    let resolver = Arc::new(Resolver::new(Limits { in_flight: 2, ..Limits::default() }));
    resolver.set_servers(vec![silent.address]);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let resolver = Arc::clone(&resolver);
            tokio::spawn(async move { udp(&resolver, &ask()).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let start = Instant::now();
    assert_eq!(rcode(&udp(&resolver, &ask()).await), 2);
    assert_eq!((resolver.stats().overload, start.elapsed().as_millis()), (1, 0));
    // Local names need no place.
    assert_eq!(rcode(&udp(&resolver, &question("localhost", TYPE_A, None)).await), 0);
    for task in waiting {
        task.await.expect("task");
    }
    assert_eq!(resolver.in_flight.load(Ordering::Relaxed), 0);
    udp(&resolver, &ask()).await;
    assert_eq!(resolver.stats().overload, 1, "places come back");
}

#[tokio::test(start_paused = true)]
async fn a_question_given_up_gives_its_place_back() {
    let silent = Server::udp(|_| vec![]).await;
    let resolver = resolver(&[silent.address]);
    assert!(timeout(Duration::from_millis(100), udp(&resolver, &ask())).await.is_err());
    assert_eq!(resolver.in_flight.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn servers_may_change() {
    let first = Server::udp(|q| vec![(0, answer(q, 1, 1))]).await;
    let second = Server::udp(|q| vec![(0, answer(q, 1, 2))]).await;
    let resolver = resolver(&[first.address]);
    assert_eq!(mark_of(&udp(&resolver, &ask()).await), 1);
    resolver.set_servers(vec![second.address; 5]);
    assert_eq!(mark_of(&udp(&resolver, &ask()).await), 2);
    assert_eq!(resolver.servers().len(), 3);
    resolver.set_servers(vec![]);
    assert_eq!(rcode(&udp(&resolver, &ask()).await), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_on_ipv6() {
    let Ok(socket) = UdpSocket::bind("[::1]:0").await else {
        panic!("this machine has no IPv6 loopback, which the tests need");
    };
    let address = socket.local_addr().expect("address");
    tokio::spawn(async move {
        let mut buffer = [0; 600];
        let (length, peer) = socket.recv_from(&mut buffer).await.expect("receive");
        socket.send_to(&answer(&buffer[..length], 1, 6), peer).await.expect("send");
    });
    assert_eq!(mark_of(&udp(&resolver(&[address]), &ask()).await), 6);
}

/// A guest's connection to a served resolver.
struct Guest {
    stream: UnixStream,
    served: tokio::task::JoinHandle<()>,
}

impl Guest {
    fn new(resolver: Resolver) -> Self {
        let (stream, theirs) = UnixStream::pair().expect("socketpair");
        Self { stream, served: tokio::spawn(serve_tcp(theirs, Arc::new(resolver))) }
    }

    async fn send(&mut self, message: &[u8]) {
        self.stream.write_all(&framed(message)).await.expect("write");
    }

    async fn receive(&mut self) -> Option<Vec<u8>> {
        let length = self.stream.read_u16().await.ok()?;
        let mut message = vec![0; usize::from(length)];
        self.stream.read_exact(&mut message).await.ok()?;
        Some(message)
    }
}

/// `ask` under that id.
fn numbered(id: u8) -> Vec<u8> {
    let mut query = ask();
    query[1] = id;
    query
}

#[tokio::test(start_paused = true)]
async fn connection_answers_in_the_order_of_readiness() {
    // The first question is answered last.
    let seen = AtomicUsize::new(0);
    let server =
        Server::udp(move |q| vec![(1500 - 500 * seen.fetch_add(1, Ordering::Relaxed) as u64, answer(q, 1, 7))]).await;
    let mut guest = Guest::new(resolver(&[server.address]));
    for id in 0..3 {
        guest.send(&numbered(id)).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut got = Vec::new();
    for _ in 0..3 {
        let answer = guest.receive().await.expect("answered");
        assert_eq!(mark_of(&answer), 7);
        got.push(answer[1]);
    }
    assert_eq!(got, [2, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn connection_takes_questions_in_pieces() {
    let server = Server::udp(|q| vec![(0, answer(q, 1, 7))]).await;
    let mut guest = Guest::new(resolver(&[server.address]));
    let mut bytes = framed(&numbered(1));
    bytes.extend(framed(&numbered(2)));
    for byte in bytes {
        guest.stream.write_all(&[byte]).await.expect("write");
        tokio::task::yield_now().await;
    }
    for id in [1, 2] {
        assert_eq!(guest.receive().await.expect("answered")[1], id);
    }
}

#[tokio::test(start_paused = true)]
async fn connection_half_closed_gets_its_answers() {
    let server = Server::udp(|q| vec![(1000, answer(q, 1, 7))]).await;
    let mut guest = Guest::new(resolver(&[server.address]));
    guest.send(&numbered(1)).await;
    guest.send(&numbered(2)).await;
    guest.stream.shutdown().await.expect("shutdown");
    let mut ids = [guest.receive().await.expect("answered")[1], guest.receive().await.expect("answered")[1]];
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
    assert_eq!(guest.receive().await, None);
    guest.served.await.expect("ends");
}

#[tokio::test(start_paused = true)]
async fn connection_idle_is_closed() {
    let server = Server::udp(|q| vec![(0, answer(q, 1, 7))]).await;
    for partial in [&[][..], &[0], &[0, 33, 1, 2, 3]] {
        let mut guest = Guest::new(resolver(&[server.address]));
        let start = Instant::now();
        tokio::time::sleep(Duration::from_secs(6)).await;
        guest.send(&numbered(1)).await;
        guest.receive().await.expect("answered");
        guest.stream.write_all(partial).await.expect("write");
        assert_eq!(guest.receive().await, None);
        assert_eq!(start.elapsed().as_secs(), 16, "ten after the last question");
        guest.served.await.expect("ends");
    }
}

#[tokio::test(start_paused = true)]
async fn connection_waits_for_slow_answers_beyond_the_idle_time() {
    let silent = Server::udp(|_| vec![]).await;
    let limits = Limits { tcp_idle: Duration::from_secs(1), ..Limits::default() };
    let resolver = Resolver::new(limits);
    resolver.set_servers(vec![silent.address]);
    let mut guest = Guest::new(resolver);
    guest.send(&numbered(1)).await;
    assert_eq!(rcode(&guest.receive().await.expect("answered")), 2);
}

#[tokio::test(start_paused = true)]
async fn connection_with_garbage() {
    let mut guest = Guest::new(resolver(&[]));
    let mut garbage = numbered(9);
    garbage[5] = 3;
    guest.send(&garbage).await;
    assert_eq!(rcode(&guest.receive().await.expect("answered")), 1);
    for nonsense in [&[][..], &[1, 2, 3], &[0x80; 30]] {
        let mut guest = Guest::new(resolver(&[]));
        guest.send(nonsense).await;
        assert_eq!(guest.receive().await, None, "{nonsense:?}");
        guest.served.await.expect("ends");
    }
}

#[tokio::test(start_paused = true)]
async fn connection_pipeline_is_bounded() {
    let silent = Server::udp(|_| vec![]).await;
    let resolver = Resolver::new(Limits { pipeline: 4, ..Limits::default() });
    resolver.set_servers(vec![silent.address]);
    let mut guest = Guest::new(resolver);
    for id in 0..10 {
        guest.send(&numbered(id)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(silent.count(), 4);
    for _ in 0..10 {
        guest.receive().await.expect("all are answered in the end");
    }
}

#[tokio::test(start_paused = true)]
async fn connection_that_takes_no_answers_is_closed() {
    let server = Server::both(|q| vec![(0, truncated(q))], |q| answer(q, 3000, 7)).await;
    let mut guest = Guest::new(resolver(&[server.address]));
    for id in 0..100 {
        if guest.stream.write_all(&framed(&numbered(id))).await.is_err() {
            break;
        }
    }
    timeout(Duration::from_mins(1), guest.served).await.expect("ends").expect("ends well");
}

proptest! {
    #[test]
    fn messages_are_cut_where_their_lengths_say(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..6), rest in 0usize..3) {
        let mut buffer: Vec<u8> = messages.iter().flat_map(|m| framed(m)).collect();
        buffer.extend(&[0, 9][..rest.min(2)]);
        for message in &messages {
            prop_assert_eq!(take_message(&mut buffer), Some(message.clone()));
        }
        prop_assert_eq!(take_message(&mut buffer), None);
        prop_assert_eq!(buffer.len(), rest);
    }

    #[test]
    fn any_message(bytes in proptest::collection::vec(any::<u8>(), 0..100), shaped in any::<bool>()) {
        let mut message = bytes;
        if shaped && message.len() >= 12 {
            message[2] &= 1;
            message[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let resolver = resolver(&[]);
        for transport in [Transport::Udp, Transport::Tcp] {
            let answer = runtime.block_on(resolver.resolve(&message, transport));
            if let Some(answer) = answer {
                prop_assert_eq!(&answer[..2], &message[..2]);
                prop_assert!(answer.len() <= 512);
            } else {
                prop_assert!(message.len() < 12 || message[2] & 0x80 != 0);
            }
        }
    }
}
