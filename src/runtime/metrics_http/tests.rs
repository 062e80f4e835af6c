#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant as Clock;

use super::*;
use crate::api::error::Code;

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// What a good client may take: shorter than any patience with bad ones, but for [`Limits::patience`] itself.
const IN_TIME: Duration = Duration::from_secs(2);

/// A server in a thread, whose metrics say how often they have been made.
struct Served {
    at: SocketAddr,
    made: Arc<AtomicUsize>,
}

impl Served {
    fn new() -> Self {
        Self::with(Limits::default(), Duration::ZERO, "")
    }

    /// `takes`: time to make a text; `padding`: what is behind the number.
    fn with(limits: Limits, takes: Duration, padding: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let made = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&made);
        let metrics = async move || {
            let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(takes).await;
            if padding == "gone" {
                return Err(ApiError::new(Code::Gone, "the data plane has ended"));
            }
            Ok(format!("number {number}\n{padding}# EOF\n"))
        };
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let local = tokio::task::LocalSet::new();
            let pages = Pages::new(metrics, limits.request, PACE);
            local.block_on(&runtime, server::serve(listener, pages, limits))
        });
        Self { at, made }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// All that is answered; the server closes.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        rest(&mut stream)
    }

    /// A good client, which must not notice anything.
    fn good(&self) {
        let start = Clock::now();
        assert_eq!(status(&self.ask(GET)), 200);
        assert!(start.elapsed() < IN_TIME, "a good client waited for {:?}", start.elapsed());
    }
}

fn rest(stream: &mut TcpStream) -> String {
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn status(reply: &str) -> u16 {
    let line = reply.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("{reply:?}"));
    line[..3].parse().unwrap()
}

fn body(reply: &str) -> &str {
    reply.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn a_scrape() {
    let served = Served::new();
    let reply = served.ask(GET);
    assert_eq!((status(&reply), body(&reply)), (200, "number 1\n# EOF\n"));
    let head = reply.split_once("\r\n\r\n").unwrap().0;
    for field in [
        "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8",
        "Content-Length: 15",
        "Connection: close",
    ] {
        assert!(head.lines().any(|line| line == field), "no {field:?} in\n{head}");
    }
    assert_eq!(body(&served.ask("GET /metrics HTTP/1.0\r\n\r\n")), "number 2\n# EOF\n");
}

#[test]
fn head_tells_the_length_alone() {
    let served = Served::new();
    let reply = served.ask("HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((status(&reply), body(&reply)), (200, ""));
    assert!(reply.contains("\r\nContent-Length: 15\r\n"), "{reply}");
    assert_eq!(body(&served.ask("HEAD /no HTTP/1.1\r\nHost: h\r\n\r\n")), "");
}

#[test]
fn other_pages_and_requests() {
    let served = Served::new();
    for (request, code, text) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 200, "href=\"/metrics\""),
        ("GET /metric HTTP/1.1\r\nHost: h\r\n\r\n", 404, "/metrics"),
        ("POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", 405, "GET and HEAD"),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400, "no request"),
        ("GET /metrics\r\n", 400, "no request"),
        ("\x16\x03\x01", 400, "no request"),
        ("GET /metrics HTTP/3.0\r\n\r\n", 505, "HTTP/1.1"),
    ] {
        let reply = served.ask(request);
        assert_eq!(status(&reply), code, "{request:?}");
        assert!(body(&reply).contains(text), "{request:?}: {reply}");
    }
    assert!(served.ask("PUT / HTTP/1.0\r\n\r\n").contains("\r\nAllow: GET, HEAD\r\n"));
    assert_eq!(served.made.load(Ordering::Relaxed), 0, "none of them cost the data plane anything");
}

#[test]
fn a_request_in_single_bytes() {
    let served = Served::new();
    let mut stream = served.connect();
    for byte in GET.bytes() {
        stream.write_all(&[byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(status(&rest(&mut stream)), 200);
}

#[test]
fn of_pipelined_requests_the_first_is_answered() {
    let served = Served::new();
    let reply = served.ask(&GET.repeat(100));
    assert_eq!(body(&reply), "number 1\n# EOF\n");
    assert_eq!(reply.matches("Connection: close").count(), 1);
}

#[test]
fn a_huge_head_is_refused_and_its_sender_reads_so() {
    let served = Served::new();
    for size in [Limits::default().request, 100 * 1024] {
        let reply = served.ask(&format!("GET /metrics HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(size)));
        assert_eq!(status(&reply), 431, "{reply}");
    }
    let reply = served.ask(&format!("GET /metrics HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(100)));
    assert_eq!(status(&reply), 431, "{reply}");
    // One that never ends is cut off.
    let mut stream = served.connect();
    let endless = thread::spawn(move || {
        let part = vec![b'a'; 65_536];
        loop {
            if let Err(error) = stream.write_all(&part) {
                return error.kind();
            }
        }
    });
    served.good();
    assert!(matches!(endless.join().unwrap(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset));
}

#[test]
fn half_a_request_is_answered_after_a_while() {
    let limits = Limits { rest: Duration::from_millis(300), ..Limits::default() };
    let served = Served::with(limits, Duration::ZERO, "");
    let start = Clock::now();
    let mut stream = served.connect();
    stream.write_all(&GET.as_bytes()[..20]).unwrap();
    served.good();
    assert_eq!(status(&rest(&mut stream)), 408);
    assert!((Duration::from_millis(250)..IN_TIME).contains(&start.elapsed()));
    // A byte now and then does not make it longer.
    let start = Clock::now();
    let mut stream = served.connect();
    for byte in GET.bytes() {
        if stream.write_all(&[byte]).is_err() || start.elapsed() > Duration::from_secs(1) {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"HTTP/1.1 408");
    // One that stops in the middle hears it at once.
    let mut stream = served.connect();
    stream.write_all(b"GET /").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(status(&rest(&mut stream)), 408);
}

#[test]
fn a_client_that_says_nothing_hears_nothing() {
    let limits = Limits { silence: Duration::from_millis(300), ..Limits::default() };
    let served = Served::with(limits, Duration::ZERO, "");
    assert_eq!(rest(&mut served.connect()), "");
    let mut stream = served.connect();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), "");
}

/// More than are served at a time.
#[test]
fn silent_and_slow_clients_hold_nobody_up() {
    let served = Served::new();
    let _silent: Vec<_> = (0..100).map(|_| served.connect()).collect();
    served.good();
    let _slow: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(&GET.as_bytes()[..1]).unwrap();
            stream
        })
        .collect();
    served.good();
    // And those that begin when they are hurried already.
    let mut late: Vec<_> = (0..100).map(|_| served.connect()).collect();
    thread::sleep(Duration::from_millis(20));
    for stream in &mut late {
        let _ = stream.write_all(&GET.as_bytes()[..1]);
    }
    served.good();
}

#[test]
fn clients_that_do_not_read_hold_nobody_up() {
    static PADDING: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| "x".repeat(8 << 20));
    let limits = Limits { reply: Duration::from_millis(500), clients: 4, ..Limits::default() };
    let served = Served::with(limits, Duration::ZERO, PADDING.as_str());
    let deaf: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(GET.as_bytes()).unwrap();
            stream
        })
        .collect();
    served.good();
    drop(deaf);
}

#[test]
fn who_asks_at_once_costs_one_question() {
    let served = Served::with(Limits::default(), Duration::from_millis(300), "");
    let mut streams: Vec<_> = (0..50).map(|_| served.connect()).collect();
    for stream in &mut streams {
        stream.write_all(GET.as_bytes()).unwrap();
    }
    let numbers: Vec<String> = streams.iter_mut().map(|stream| body(&rest(stream)).to_owned()).collect();
    // The first asks for itself; whoever came while it was answered has the next.
    assert!(served.made.load(Ordering::Relaxed) <= 3, "{numbers:?}");
    // And what is asked for afterwards is new.
    let made = served.made.load(Ordering::Relaxed);
    assert_eq!(body(&served.ask(GET)), format!("number {}\n# EOF\n", made + 1));
}

#[test]
fn without_a_data_plane_it_is_unavailable() {
    let served = Served::with(Limits::default(), Duration::ZERO, "gone");
    let reply = served.ask(GET);
    assert_eq!((status(&reply), body(&reply)), (503, "the data plane has ended\n"));
}
