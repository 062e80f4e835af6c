//! Clients that misbehave, and a good one beside them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tapway::api::server::{BindError, Limits, bind_legacy};
use tapway::api::session;

use crate::served::{Served, ask, connect, fresh_path};

const LIST: &[u8] = br#"{"execute":"list_hostfwd"}"#;
const EMPTY: &str = r#"{"return":{"entries":[]},"entries":[]}"#;
const NO_JSON: &str = r#"{"error":{"desc":"bad request: cannot parse JSON"}}"#;
const TOO_LARGE: &str = r#"{"error":{"desc":"bad request: too large message"}}"#;
/// What a good client may take: no time-out of the server is as short.
const IN_TIME: Duration = Duration::from_secs(1);

fn served() -> Served {
    Served::start(Limits::default(), 1000)
}

fn with(session: session::Limits) -> Limits {
    Limits { session, ..Limits::default() }
}

/// A good client, which must not notice anything.
fn good(served: &Served) {
    let start = Instant::now();
    assert_eq!(served.ask(LIST), EMPTY);
    assert!(start.elapsed() < IN_TIME, "a good client waited for {:?}", start.elapsed());
}

fn rest(mut stream: &UnixStream) -> String {
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

#[test]
fn a_reply_needs_no_half_close_and_comes_in_one_piece() {
    let served = served();
    let mut stream = served.connect();
    stream.write_all(LIST).unwrap();
    let mut reply = [0; 4096];
    let n = stream.read(&mut reply).unwrap();
    assert_eq!(&reply[..n], EMPTY.as_bytes());
    assert_eq!(stream.read(&mut reply).unwrap(), 0, "closed after the reply");
}

#[test]
fn a_request_in_pieces() {
    let served = served();
    let stream = served.connect();
    for byte in LIST {
        (&stream).write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(rest(&stream), EMPTY);
    good(&served);
}

#[test]
fn half_a_request_is_answered_after_a_while() {
    let limits = with(session::Limits { rest: Duration::from_millis(300), ..session::Limits::default() });
    let served = Served::start(limits, 1);
    let stream = served.connect();
    (&stream).write_all(br#"{"execute":"#).unwrap();
    let start = Instant::now();
    good(&served);
    assert_eq!(rest(&stream), NO_JSON);
    assert!(start.elapsed() >= Duration::from_millis(250));
    // Half closed, it is answered at once.
    assert_eq!(served.ask(r#"{"execute":"#), NO_JSON);
    assert_eq!(served.ask(""), NO_JSON);
}

#[test]
fn what_can_be_no_request_is_refused_at_once() {
    let served = served();
    let start = Instant::now();
    let stream = served.connect();
    (&stream).write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(rest(&stream), NO_JSON);
    assert!(start.elapsed() < IN_TIME);
}

#[test]
fn silent_clients_are_sent_away() {
    let limits = with(session::Limits { idle: Duration::from_millis(300), ..session::Limits::default() });
    let served = Served::start(limits, 1);
    let stream = served.connect();
    good(&served);
    assert_eq!(rest(&stream), "", "closed without a word");
}

#[test]
fn a_thousand_silent_clients_hold_nobody_up() {
    let served = served();
    let silent: Vec<_> = (0..1000).map(|_| served.connect()).collect();
    // Behind them all, in turn: patience, a few times over.
    let start = Instant::now();
    assert_eq!(served.ask(LIST), EMPTY);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    drop(silent);
    good(&served);
}

#[test]
fn two_hundred_good_clients_at_once() {
    let served = served();
    let streams: Vec<_> = (0..200).map(|_| served.connect()).collect();
    for mut stream in &streams {
        stream.write_all(LIST).unwrap();
    }
    for stream in &streams {
        assert_eq!(rest(stream), EMPTY);
    }
}

#[test]
fn a_megabyte_is_refused_and_its_sender_reads_so() {
    let served = served();
    for megabyte in [vec![b'['; 1 << 20], vec![0; 1 << 20], [LIST, &vec![b' '; 1 << 20]].concat()] {
        let stream = served.connect();
        (&stream).write_all(&megabyte).unwrap();
        assert_eq!(rest(&stream), TOO_LARGE);
        good(&served);
    }
}

#[test]
fn an_endless_request_ends() {
    let served = served();
    let stream = served.connect();
    let writer = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        let zeroes = vec![0u8; 65536];
        loop {
            if let Err(error) = (&writer).write_all(&zeroes) {
                return error.kind();
            }
        }
    });
    good(&served);
    // No ECONNRESET before the reply, however much is under way.
    assert_eq!(rest(&stream), TOO_LARGE);
    assert_eq!(sending.join().unwrap(), ErrorKind::BrokenPipe);
}

#[test]
fn what_follows_a_request_does_not_cost_its_reply() {
    let served = served();
    for _ in 0..50 {
        let stream = served.connect();
        (&stream).write_all(LIST).unwrap();
        // May come before or after the reply; the server may have closed.
        let _ = (&stream).write_all(LIST);
        assert_eq!(rest(&stream), EMPTY);
    }
}

#[test]
fn a_client_that_never_reads() {
    let limits = with(session::Limits { reply: Duration::from_millis(500), ..session::Limits::default() });
    let served = Served::start(limits, 20_000);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    // A reply larger than socket buffers.
    let entries = 2000;
    for n in 0..entries {
        let guest = 1 + n % 1000;
        let host = std::net::Ipv4Addr::from(0x7f10_0000 + n);
        let forward = format!(r#""proto":"udp","host_addr":"{host}","host_port":29999,"guest_port":{guest}"#);
        assert_eq!(add(&served, &forward), format!(r#"{{"return":{{"id":{}}}}}"#, n + 1));
    }
    let stuck: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(LIST).unwrap();
            stream
        })
        .collect();
    let start = Instant::now();
    let list: serde_json::Value = serde_json::from_str(&served.ask(LIST)).unwrap();
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    assert_eq!(list["entries"], list["return"]["entries"]);
    assert_eq!(list["entries"].as_array().unwrap().len(), entries as usize);
    // Cut off: the rest of the reply is not kept for ever.
    thread::sleep(Duration::from_secs(1));
    let mut reply = Vec::new();
    let _ = (&stuck[0]).read_to_end(&mut reply);
    assert!(reply.len() < list.to_string().len(), "{} bytes", reply.len());
}

#[test]
fn clients_that_leave_in_the_middle() {
    let served = served();
    for request in [&b""[..], b"{", LIST] {
        for _ in 0..100 {
            let mut stream = served.connect();
            stream.write_all(request).unwrap();
        }
    }
    good(&served);
}

#[test]
fn all_of_them_at_once() {
    let served = served();
    let silent: Vec<_> = (0..100).map(|_| served.connect()).collect();
    let halves: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(b"{\"execute\"").unwrap();
            stream
        })
        .collect();
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                let mut stream = served.connect();
                let _ = stream.write_all(&vec![b'{'; 1 << 20]);
            });
            scope.spawn(|| {
                let mut stream = served.connect();
                for byte in LIST {
                    let _ = stream.write_all(&[*byte]);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        for _ in 0..50 {
            good(&served);
        }
    });
    drop((silent, halves));
}

// ---- the socket's file ----

#[test]
fn the_socket_takes_the_place_of_a_file() {
    let path = fresh_path();
    std::fs::write(&path, "in the way").unwrap();
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let first = bind_legacy(path.as_os_str()).unwrap();
    nix::sys::stat::umask(umask);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o755);
    connect(&path);
    let second = bind_legacy(path.as_os_str()).unwrap();
    drop(first);
    connect(&path);
    drop(second);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn refusals_to_bind() {
    let path = fresh_path();
    let mut long = path.clone().into_os_string();
    long.push("x".repeat(108 - long.len()));
    assert_eq!(bind_legacy(&long).unwrap_err().to_string(), "the specified API socket path is too long (>= 108)");
    let name = long.into_string().unwrap();
    let longest = std::ffi::OsStr::new(&name[..107]);
    bind_legacy(longest).unwrap();
    std::fs::remove_file(longest).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = bind_legacy(path.as_os_str()).unwrap_err();
    assert_eq!(error.to_string(), "api_bindlisten: bind: Address already in use");
    let error = bind_legacy(path.join("no/such").as_os_str()).unwrap_err();
    assert_eq!(error.to_string(), "api_bindlisten: bind: No such file or directory");
    assert!(matches!(error, BindError::System { .. }));
    std::fs::remove_dir(&path).unwrap();
}

#[test]
fn an_empty_path_is_an_abstract_name() {
    let listener = bind_legacy(std::ffi::OsStr::new("")).unwrap();
    let address = listener.local_addr().unwrap();
    assert!(address.as_pathname().is_none() && !address.is_unnamed());
}

// ---- forwards ----

/// An address of the loopback interface that nobody else has, so that every port of it is free.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(64);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, NEXT.fetch_add(1, Ordering::Relaxed), high, low)
}

fn add(served: &Served, arguments: &str) -> String {
    served.ask(format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#))
}

#[test]
fn forwards_come_and_go() {
    let served = served();
    let (host, port) = (own_address(), 8080);
    let local = format!(r#""host_addr":"{host}","host_port":{port},"guest_port":80"#);
    assert_eq!(add(&served, &format!(r#""proto":"tcp",{local}"#)), r#"{"return":{"id":1}}"#);
    assert_eq!(add(&served, &format!(r#""proto":"udp",{local}"#)), r#"{"return":{"id":2}}"#);
    let taken = add(&served, &format!(r#""proto":"tcp",{local}"#));
    assert_eq!(taken, r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"}}"#);
    // It listens, and the data plane knows.
    TcpStream::connect((host, port)).unwrap();
    UdpSocket::bind((host, port)).unwrap_err();
    assert_eq!(served.listeners.lock().unwrap().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [7, 8]);
    let list = served.ask(LIST);
    assert!(
        list.starts_with(&format!(
            r#"{{"return":{{"entries":[{{"id":1,"proto":"tcp","host_addr":"{host}","host_port":8080,"#
        )),
        "{list}"
    );
    // Removed means closed: the port can be had at once.
    assert_eq!(served.ask(r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#), r#"{"return":{}}"#);
    TcpListener::bind((host, port)).unwrap();
    let again = served.ask(r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#);
    assert_eq!(again, r#"{"error":{"desc":"bad request: remove_hostfwd: bad arguments.id"}}"#);
    // Ids and numbers are not given again.
    assert_eq!(add(&served, &format!(r#""proto":"tcp",{local}"#)), r#"{"return":{"id":3}}"#);
    assert_eq!(served.listeners.lock().unwrap().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [8, 9]);
    let list: serde_json::Value = serde_json::from_str(&served.ask(LIST)).unwrap();
    assert_eq!(list["entries"][0]["id"], 2);
    assert_eq!(list["entries"][1]["id"], 3);
}

#[test]
fn where_forwards_lead() {
    let served = served();
    let own = own_address().to_string();
    for (n, (host, guest, listed, meant)) in [
        ("127.0.0.1", "null", "10.0.2.100", "10.0.2.100"),
        (&own, r#""""#, "10.0.2.100", "10.0.2.100"),
        (&own, r#""0.0.0.0""#, "0.0.0.0", "10.0.2.15"),
        (&own, r#""10.0.2.77""#, "10.0.2.77", "10.0.2.77"),
        (&own, r#""192.168.7.7""#, "192.168.7.7", "192.168.7.7"),
        (&own, r#""fd00::77""#, "fd00::77", "fd00::77"),
        ("::1", "null", "10.0.2.100", "10.0.2.100"),
        ("[::1]", r#""10.0.2.15""#, "10.0.2.15", "10.0.2.15"),
    ]
    .into_iter()
    .enumerate()
    {
        let port = 20_000 + std::process::id() as u16 % 1000 + n as u16;
        let reply = add(
            &served,
            &format!(r#""proto":"tcp","host_addr":"{host}","host_port":{port},"guest_addr":{guest},"guest_port":81"#),
        );
        assert_eq!(reply, format!(r#"{{"return":{{"id":{}}}}}"#, n + 1));
        let list: serde_json::Value = serde_json::from_str(&served.ask(LIST)).unwrap();
        assert_eq!(list["entries"][n]["guest_addr"], listed);
        let listener = served.listeners.lock().unwrap()[n].1;
        assert_eq!(listener.guest_addr, Some(meant.parse().unwrap()));
        assert_eq!((listener.host_port, listener.guest_port), (port, 81));
    }
}

#[test]
fn the_number_of_forwards_is_bounded() {
    let served = Served::start(Limits::default(), 1);
    let host = own_address();
    let one =
        |port: u16| add(&served, &format!(r#""proto":"tcp","host_addr":"{host}","host_port":{port},"guest_port":1"#));
    assert_eq!(one(1081), r#"{"return":{"id":1}}"#);
    assert_eq!(one(1082), r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"}}"#);
}

#[test]
fn changes_at_once_are_all_made() {
    let served = served();
    let host = own_address();
    let mut ids: Vec<u64> = thread::scope(|scope| {
        let asked: Vec<_> = (18_100..18_164)
            .map(|port: u16| {
                let served = &served;
                scope.spawn(move || {
                    let reply = ask(
                        &served.path,
                        format!(r#"{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_addr":"{host}","host_port":{port},"guest_port":1}}}}"#).as_bytes(),
                    );
                    let reply: serde_json::Value = serde_json::from_slice(&reply.unwrap()).unwrap();
                    reply["return"]["id"].as_u64().unwrap_or_else(|| panic!("{reply}"))
                })
            })
            .collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    ids.sort_unstable();
    assert_eq!(ids, (1..=64).collect::<Vec<u64>>());
}
