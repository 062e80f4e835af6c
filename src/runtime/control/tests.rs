//! The thread itself, told by a monitor over a real attach connection and asked as the data plane asks.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::eventfd::EfdFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;
use crate::api::attach::{self, ToNetwork};
use crate::runtime::command::FIRST;
use crate::wire::dns_build::addresses;
use crate::wire::dns_message::{Query, Rcode, TYPE_A, rcode};

/// A running control thread: the monitor's end, and the data plane's.
struct World {
    monitor: Option<OwnedFd>,
    queries: mpsc::Sender<DnsQuery>,
    answers: mpsc::Receiver<DnsAnswer>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl World {
    fn new(dns: Names) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (monitor, conn) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("socketpair");
        let (queries, queries_out) = mpsc::channel(QUEUE);
        let (answers_in, answers) = mpsc::channel(QUEUE);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("eventfd"));
        let control = Control {
            supervisor: Supervisor::Monitor(conn),
            dns,
            queries: queries_out,
            answers: answers_in,
            plane: DataPlane::new(Arc::clone(&wake), 0).0,
            wake,
            metrics: None,
            api: None,
            observed: None,
            faults: crate::network::fault::Rules::default(),
        };
        let thread = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            control.run(&runtime);
        });
        Self { monitor: Some(monitor), queries, answers, thread: Some(thread) }
    }

    fn tell(&self, message: &ToNetwork) {
        attach::send(self.monitor.as_ref().expect("connected"), message, &[]).expect("sent");
    }

    /// Response code and addresses for `name`.
    fn ask(&mut self, name: &str) -> (u8, Vec<IpAddr>) {
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        assert!(crate::wire::dns_name::append(&mut query, name));
        query.extend([0, TYPE_A as u8, 0, 1]);
        let (guest, server) = (([10, 0, 2, 100], 4000).into(), ([10, 0, 2, 3], 53).into());
        self.queries
            .blocking_send(DnsQuery::Udp { endpoint: FIRST, guest, server, query, ticket: Ticket::default() })
            .expect("control lives");
        let answer = self.answers.blocking_recv().expect("answered");
        assert_eq!((answer.guest, answer.server), (guest, server));
        (rcode(&answer.answer), addresses(&answer.answer, 8))
    }

    /// Asks until the answer is `expected`: what the monitor says and what the guest asks take different ways.
    fn comes_to(&mut self, name: &str, expected: (u8, Vec<IpAddr>)) {
        let begun = Instant::now();
        while self.ask(name) != expected {
            assert!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", self.ask(name));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The lease is over, and so is the thread.
        self.monitor = None;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join().is_ok();
            assert!(ended || std::thread::panicking());
        }
    }
}

fn record(name: &str, address: &str) -> Record {
    Record::parse(name, "A", address, 60).expect("a record")
}

/// A name server on loopback that answers every question with one address.
fn server(address: [u8; 4]) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let at = socket.local_addr().expect("address");
    std::thread::spawn(move || {
        let mut buffer = [0; 600];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let answer = Query::parse(&buffer[..length]).expect("a question").address_answer(&[address.into()], 60);
            if socket.send_to(&answer, peer).is_err() {
                return;
            }
        }
    });
    at
}

const SERVFAIL: (u8, Vec<IpAddr>) = (Rcode::ServFail as u8, Vec::new());

fn found(address: [u8; 4]) -> (u8, Vec<IpAddr>) {
    (0, vec![address.into()])
}

#[test]
fn the_monitor_changes_names() {
    let mut dns = Names::default();
    dns.take_part(vec![record("at-start", "10.0.0.1")], false);
    let mut world = World::new(dns);
    assert_eq!(world.ask("at-start"), found([10, 0, 0, 1]));
    // Half a zone changes nothing; with its last part the new one takes the place of the old.
    world.tell(&ToNetwork::Zone { records: vec![record("a", "10.0.0.2")], more: true });
    assert_eq!(world.ask("a"), SERVFAIL);
    assert_eq!(world.ask("at-start"), found([10, 0, 0, 1]));
    world.tell(&ToNetwork::Zone { records: vec![record("b", "10.0.0.3")], more: false });
    world.comes_to("b", found([10, 0, 0, 3]));
    assert_eq!(world.ask("a"), found([10, 0, 0, 2]));
    assert_eq!(world.ask("at-start"), SERVFAIL);
    // Nonsense leaves the names as they are, and the thread alive.
    let twice = vec![record("c", "10.0.0.4"), record("c", "10.0.0.4")];
    world.tell(&ToNetwork::Zone { records: twice, more: false });
    world.tell(&ToNetwork::Start);
    world.tell(&ToNetwork::HostDns { servers: vec![server([10, 9, 9, 9])], zones: vec![] });
    world.comes_to("c", found([10, 9, 9, 9]));
    assert_eq!(world.ask("b"), found([10, 0, 0, 3]));
    world.tell(&ToNetwork::Zone { records: vec![], more: false });
    world.comes_to("b", found([10, 9, 9, 9]));
}

#[test]
fn the_monitor_changes_servers() {
    let mut world = World::new(vec![server([10, 1, 1, 1])].into());
    assert_eq!(world.ask("www.corp.example"), found([10, 1, 1, 1]));
    let domain = "corp.example".parse().expect("a name");
    let zones = vec![DnsZone { domain, servers: vec![server([10, 2, 2, 2])] }];
    world.tell(&ToNetwork::HostDns { servers: vec![server([10, 3, 3, 3])], zones });
    world.comes_to("www.corp.example", found([10, 2, 2, 2]));
    assert_eq!(world.ask("www.example"), found([10, 3, 3, 3]));
    world.tell(&ToNetwork::HostDns { servers: vec![], zones: vec![] });
    world.comes_to("www.corp.example", SERVFAIL);
}
