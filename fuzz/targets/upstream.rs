//! The resolver (`host::resolver`) between a guest that asks anything and a name server, or another network's process,
//! that answers anything. Real sockets on loopback: what is fuzzed is what stands behind them.
//!
//! Input: a byte (bit 0: the guest asks over TCP; bit 1: the server's answer has the right id; bit 2: the question in
//! front of the answer, too; bit 3: the server is another network's process; bit 4: servers of a domain;
//! bit 5: the same is asked by another network's process), the question
//! (length (2), bytes), then answers (length (2), bytes), the first for UDP, the others for TCP.
//!
//! What must hold: an answer is one to the question and fits; nobody waits longer than the limits say.
#![no_main]

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tapway::host::peers::{self, Peer};
use tapway::host::resolver::{Limits, Resolver, Transport, serve_tcp};
use tapway::network::config::DnsZone;
use tapway::network::zone::{self, Record, Zone};
use tapway::wire::dns_message::Query;
use tapway::wire::dns_name::Name;
use tapway_fuzz::Input;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket, UnixStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// What the server says next.
#[derive(Clone, Default)]
struct Says {
    id: bool,
    question: bool,
    answers: Vec<Vec<u8>>,
}

static SAYS: Mutex<Option<Says>> = Mutex::new(None);

fn says() -> Says {
    SAYS.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
}

impl Says {
    fn answer(&self, number: usize, asked: &[u8]) -> Vec<u8> {
        let mut answer = self.answers.get(number).or(self.answers.first()).cloned().unwrap_or_default();
        if self.question
            && let Ok(query) = Query::parse(asked)
            && answer.len() >= 12
        {
            answer[2] |= 0x80;
            answer[2] &= 0x87;
            answer[4..6].copy_from_slice(&[0, 1]);
            answer.splice(12..12, query.question.iter().copied());
        }
        if self.id && answer.len() >= 2 && asked.len() >= 2 {
            answer[..2].copy_from_slice(&asked[..2]);
        }
        answer.truncate(65_000);
        answer
    }
}

/// The runtime, and where the server is.
fn world() -> &'static (Runtime, SocketAddr) {
    static WORLD: OnceLock<(Runtime, SocketAddr)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let address = runtime.block_on(async {
            let (udp, tcp) = loop {
                let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
                if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("its address")).await {
                    break (udp, tcp);
                }
            };
            let address = udp.local_addr().expect("its address");
            tokio::spawn(async move {
                let mut asked = vec![0; 70_000];
                loop {
                    let Ok((length, peer)) = udp.recv_from(&mut asked).await else { continue };
                    let _ = udp.send_to(&says().answer(0, &asked[..length]), peer).await;
                }
            });
            tokio::spawn(async move {
                loop {
                    let Ok((mut stream, _)) = tcp.accept().await else { continue };
                    tokio::spawn(async move {
                        // Addresses and ports of ended connections are not kept: there are thousands.
                        let _ = stream.set_zero_linger();
                        let Ok(length) = stream.read_u16().await else { return };
                        let mut asked = vec![0; length.into()];
                        if stream.read_exact(&mut asked).await.is_err() {
                            return;
                        }
                        let says = says();
                        let answer = says.answer(1, &asked);
                        // The last answer says how long the next claims to be.
                        let length = if says.answers.len() > 2 { says.answers[2].len() } else { answer.len() };
                        let _ = stream.write_all(&[&(length as u16).to_be_bytes()[..], &answer].concat()).await;
                        let _ = stream.read(&mut [0; 1]).await;
                    });
                }
            });
            address
        });
        (runtime, address)
    })
}

fn resolver(choice: u8, server: SocketAddr) -> Arc<Resolver> {
    let limits = Limits {
        server_timeout: Duration::from_millis(4),
        total_timeout: Duration::from_millis(8),
        tcp_idle: Duration::from_millis(8),
        attempts: 2,
        ..Limits::default()
    };
    let resolver = Arc::new(Resolver::new(limits));
    resolver.set_servers(vec![server]);
    let records = [("db.example", "A", "192.0.2.7"), ("out.example", "CNAME", "www.example.net")];
    let records = records.iter().filter_map(|(name, kind, value)| Record::parse(name, kind, value, 60).ok()).collect();
    resolver.set_zone(Zone::new(records, &zone::Limits::default()).expect("the zone is one"));
    if choice & 16 != 0 {
        let domain = Name::parse("example.org").expect("it is a name");
        resolver.set_zones(&[DnsZone { domain, servers: vec![server] }]);
    }
    resolver
}

async fn ask(resolver: Arc<Resolver>, tcp: bool, question: &[u8]) -> Option<Vec<u8>> {
    if !tcp {
        return resolver.resolve(question, Transport::Udp).await;
    }
    let (mut guest, ours) = UnixStream::pair().expect("a pair");
    let served = tokio::spawn(serve_tcp(ours, resolver));
    let message = [&(question.len() as u16).to_be_bytes()[..], question].concat();
    let _ = guest.write_all(&message).await;
    let _ = guest.shutdown().await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(5), guest.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "a connection that never ends");
    served.await.expect("it was served");
    let length = usize::from(u16::from_be_bytes([*answer.first()?, *answer.get(1)?]));
    assert_eq!(answer.len(), 2 + length, "half an answer, or two");
    Some(answer.split_off(2))
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let choice = input.byte();
    let question = input.block();
    let mut answers = Vec::new();
    while !input.is_empty() && answers.len() < 3 {
        answers.push(input.block().to_vec());
    }
    let (runtime, server) = world();
    *SAYS.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Says { id: choice & 2 != 0, question: choice & 4 != 0, answers: answers.clone() });
    let tcp = choice & 1 == 1;
    let answer = runtime.block_on(async {
        let resolver = resolver(choice, *server);
        if choice & 32 != 0 {
            // Asked by another network's process: answered, or told that it is not known.
            let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().expect("a pair");
            theirs.set_nonblocking(true).expect("it does not block");
            let theirs = tokio::net::UnixDatagram::from_std(theirs).expect("it is watched");
            let answering = tokio::spawn(peers::answer(OwnedFd::from(ours), Arc::clone(&resolver)));
            if question.len() > 2 && theirs.send(question).await.is_ok() {
                let mut said = vec![0; 70_000];
                let length = timeout(Duration::from_secs(5), theirs.recv(&mut said)).await;
                let Ok(Ok(length)) = length else { panic!("no answer: {length:?}") };
                assert!(length >= 2 && said[..2] == question[..2], "another question's answer");
            }
            answering.abort();
        }
        if choice & 8 != 0 {
            let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().expect("a pair");
            theirs.set_nonblocking(true).expect("it does not block");
            let theirs = tokio::net::UnixDatagram::from_std(theirs).expect("it is watched");
            let peer = Arc::new(Peer::new(OwnedFd::from(ours), "other").expect("a peer"));
            let listening = tokio::spawn(Arc::clone(&peer).listen());
            resolver.set_peers(vec![peer]);
            let answering = tokio::spawn(async move {
                let mut asked = vec![0; 70_000];
                while let Ok(length) = theirs.recv(&mut asked).await {
                    if theirs.send(&says().answer(0, &asked[..length])).await.is_err() {
                        break;
                    }
                    // And the end, so that nobody waits for another.
                    if !says().id {
                        break;
                    }
                }
                drop(theirs);
            });
            let answer = ask(Arc::clone(&resolver), tcp, question).await;
            listening.abort();
            answering.abort();
            answer
        } else {
            ask(resolver, tcp, question).await
        }
    });
    let Some(answer) = answer else { return };
    let Ok(query) = Query::parse(question) else {
        assert_eq!(answer.len(), 12, "a refusal is a header");
        return;
    };
    assert!(query.is_answered_by(&answer, query.id), "not an answer to the question");
    assert!(tcp || answer.len() <= query.max_udp(), "{} bytes", answer.len());
    if let Some(name) = query.name()
        && name.to_string() == "db.example"
        && query.qclass == 1
        && query.qtype == 1
    {
        let own = tapway::wire::dns_build::addresses(&answer, 4);
        assert_eq!(own, [std::net::IpAddr::from([192, 0, 2, 7])], "the server answered for a name of ours");
    }
});
