//! The traffic of `contrib/bench/compare`: one small program that is either end of every measurement.
//!
//! ```text
//! bench-traffic serve PORT SOCKET                 TCP on PORT (first byte says what is wanted), one byte and close on
//!                                                 PORT + 1, connections that rest on PORT + 2, UDP on PORT; tells its
//!                                                 counts on the UNIX socket
//! bench-traffic send HOST PORT SECONDS STREAMS SOCKET     client to server;  Gbit/s, as the server counted
//! bench-traffic recv HOST PORT SECONDS STREAMS    server to client;  Gbit/s, as we counted
//! bench-traffic rtt HOST PORT SECONDS             one byte there and back; median and 99th percentile, µs
//! bench-traffic park HOST PORT COUNT              connections that carry 1 KiB each way, one after the other, and then rest until
//!                                                 standard input ends; says when all do
//! bench-traffic conn HOST PORT SECONDS CLIENTS    connect, one byte, close; median µs, and connections a second
//! bench-traffic udp-send HOST PORT SECONDS SIZE SOCKET    datagrams a second that the server got, of those sent
//! bench-traffic udp-recv HOST PORT SECONDS SIZE   datagrams a second that we got
//! bench-traffic udp-lossless-send HOST PORT SIZE FLOWS SOCKET     the highest rate of datagrams with less than one in a
//! bench-traffic udp-lossless-recv HOST PORT SIZE FLOWS SOCKET     thousand lost, over FLOWS sockets: paced.rs
//! bench-traffic probe HOST PORT                   returns as soon as one byte went there and back
//! bench-traffic names SERVER PORT SECONDS NAME ADDRESS FLIGHT     right answers a second to A questions for NAME, with
//!                                                 FLIGHT of them under way at any time; ADDRESS is what is right
//! bench-traffic first-byte PROGRAM ARGUMENT ...   starts it; ms until it has written a byte
//! bench-traffic byte                              writes a byte and ends
//! ```
//!
//! Counts travel over a UNIX socket, beside the network: a helper that is busy or stuck cannot hold them up.
//!
//! Each client prints one line of JSON. Nothing is tuned: socket buffers and congestion control are the kernel's defaults, as
//! they are for the programs of users.

#![allow(clippy::cast_precision_loss, reason = "counts become rates of four digits")]

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU64;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

mod paced;

/// Bytes of one read or write of bulk traffic.
const BLOCK: usize = 256 * 1024;
/// How long anything may stand still before the measurement counts as failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a TCP client asks for with its first byte.
const SINK: u8 = b'S';
const FLOOD: u8 = b'F';
const ECHO: u8 = b'E';
/// Length of a DNS message's header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", port, socket] => serve(number(port)?, socket),
        ["send", host, port, seconds, streams, socket] => {
            send(at(host, port)?, span(seconds)?, number(streams)?, &Counter::open(socket)?)
        }
        ["recv", host, port, seconds, streams] => recv(at(host, port)?, span(seconds)?, number(streams)?),
        ["rtt", host, port, seconds] => rtt(at(host, port)?, span(seconds)?),
        ["park", host, port, count] => park(at(host, port)?, number(count)?),
        ["conn", host, port, seconds, clients] => conn(at(host, port)?, span(seconds)?, number(clients)?),
        ["udp-send", host, port, seconds, size, socket] => {
            udp_send(at(host, port)?, span(seconds)?, number(size)?, &Counter::open(socket)?)
        }
        ["udp-recv", host, port, seconds, size] => udp_recv(at(host, port)?, span(seconds)?, number(size)?),
        ["udp-lossless-send", host, port, size, flows, socket] => {
            paced::send(at(host, port)?, number(size)?, number(flows)?, &Counter::open(socket)?)
        }
        ["udp-lossless-recv", host, port, size, flows, socket] => {
            paced::recv(at(host, port)?, number(size)?, number(flows)?, &Counter::open(socket)?)
        }
        ["probe", host, port] => probe(at(host, port)?),
        ["names", host, port, seconds, name, right, flight] => {
            names(at(host, port)?, span(seconds)?, name, number(right)?, number(flight)?)
        }
        ["first-byte", program, ref arguments @ ..] => first_byte(program, arguments),
        ["byte"] => writeln!(std::io::stdout(), "!"),
        _ => Err(bad("usage: see the head of contrib/bench/traffic.rs")),
    }
}

fn bad(text: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, text)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| bad(text))
}

fn span(text: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(number(text)?))
}

fn at(host: &str, port: &str) -> Result<SocketAddr> {
    Ok(SocketAddr::new(number(host)?, number(port)?))
}

/// What the server has received since it began.
#[derive(Default)]
struct Received {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    /// Who asked for datagrams.
    peers: Mutex<Vec<SocketAddr>>,
}

impl Received {
    fn peers(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client says on the UNIX socket.
const COUNTS: u8 = b'?';
const FORGET_PEERS: u8 = b'0';
const PACE: u8 = b'P';

/// Asks a server what it has received, and what to send.
struct Counter(UnixStream);

impl Counter {
    fn open(path: &str) -> Result<Self> {
        Ok(Self(UnixStream::connect(path)?))
    }

    /// Datagrams and bytes of streams.
    fn now(&self) -> Result<(u64, u64)> {
        let [datagrams, bytes, _] = self.ask(&[COUNTS])?;
        Ok((datagrams, bytes))
    }

    /// How many flows have asked for datagrams.
    fn peers(&self) -> Result<u64> {
        Ok(self.ask(&[COUNTS])?[2])
    }

    fn forget_peers(&self) -> Result<()> {
        self.ask(&[FORGET_PEERS]).map(drop)
    }

    /// Has the server send to its peers in turn, `rate` datagrams a second; how many it sent, and the time that took.
    fn pace(&self, rate: f64, span: Duration, size: usize) -> Result<(u64, Duration)> {
        let wish = [rate.to_bits(), span.as_micros() as u64, size as u64];
        let [sent, micros, _] = self.ask(&[&[PACE][..], wish.map(u64::to_be_bytes).as_flattened()].concat())?;
        Ok((sent, Duration::from_micros(micros)))
    }

    /// Each question is answered by three numbers.
    fn ask(&self, question: &[u8]) -> Result<[u64; 3]> {
        (&self.0).write_all(question)?;
        three(&self.0)
    }
}

fn three(mut stream: &UnixStream) -> Result<[u64; 3]> {
    let mut numbers = [[0; 8]; 3];
    stream.read_exact(numbers.as_flattened_mut())?;
    Ok(numbers.map(u64::from_be_bytes))
}

/// Answers one client of the UNIX socket until it leaves.
fn serve_control(mut stream: &UnixStream, received: &Received, udp: &UdpSocket) -> Result<()> {
    loop {
        let mut wish = [0];
        stream.read_exact(&mut wish)?;
        let answer = match wish[0] {
            PACE => {
                let [rate, micros, size] = three(stream)?;
                let (datagram, peers) = (vec![0; size.min(65_507) as usize], received.peers().clone());
                let Some(turns) = NonZeroU64::new(peers.len() as u64) else { return Err(bad("nobody to send to")) };
                // Errors are full buffers or a client that left; neither was sent.
                let send = |n: u64| udp.send_to(&datagram, peers[(n % turns) as usize]).is_ok();
                let (sent, took) = paced::pace(f64::from_bits(rate), Duration::from_micros(micros), send);
                [sent, took.as_micros() as u64, 0]
            }
            FORGET_PEERS => {
                received.peers().clear();
                [0; 3]
            }
            _ => {
                let peers = received.peers().len() as u64;
                [received.datagrams.load(Ordering::SeqCst), received.bytes.load(Ordering::SeqCst), peers]
            }
        };
        stream.write_all(answer.map(u64::to_be_bytes).as_flattened())?;
    }
}

/// Serves until killed.
fn serve(port: u16, socket: &str) -> Result<()> {
    let received = Arc::new(Received::default());
    let control = UnixListener::bind(socket)?;
    // The wildcard IPv6 address takes both families (`bindv6only` is 0 by default).
    let udp = Arc::new(UdpSocket::bind(("::", port))?);
    let (counter, socket) = (Arc::clone(&received), Arc::clone(&udp));
    thread::spawn(move || serve_udp(&socket, &counter));
    let counter = Arc::clone(&received);
    thread::spawn(move || {
        loop {
            let Ok((stream, _)) = control.accept() else { continue };
            let (received, udp) = (Arc::clone(&counter), Arc::clone(&udp));
            thread::spawn(move || serve_control(&stream, &received, &udp));
        }
    });
    let short = TcpListener::bind(("::", port + 1))?;
    thread::spawn(move || {
        // One thread, no reads: the cost is the connection's, not the server's.
        loop {
            if let Ok((mut stream, _)) = short.accept() {
                let _ = stream.write_all(b"!");
            }
        }
    });
    let resting = TcpListener::bind(("::", port + 2))?;
    thread::spawn(move || serve_resting(&resting));
    let listener = TcpListener::bind(("::", port))?;
    println!("ready");
    loop {
        let (stream, _) = listener.accept()?;
        let received = Arc::clone(&received);
        thread::spawn(move || serve_one(stream, &received));
    }
}

/// Bytes that a connection carries each way before it rests.
const BEFORE_REST: usize = 1024;

/// Keeps connections, without a thread for each, until the other side has closed them.
fn serve_resting(listener: &TcpListener) {
    let kept: Mutex<Vec<TcpStream>> = Mutex::default();
    let kept = || kept.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                thread::sleep(Duration::from_millis(100));
                // Nothing more is to come from one that is open.
                kept().retain(|stream| matches!(stream.peek(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock));
            }
        });
        loop {
            let Ok((mut stream, _)) = listener.accept() else { continue };
            let mut block = [0; BEFORE_REST];
            let _ = stream.set_read_timeout(Some(PATIENCE));
            if stream.read_exact(&mut block).and_then(|()| stream.write_all(&block)).is_ok() {
                let _ = stream.set_nonblocking(true);
                kept().push(stream);
            }
        }
    });
}

/// Opens connections that rest.
fn park(to: SocketAddr, count: usize) -> Result<()> {
    let to = SocketAddr::new(to.ip(), to.port() + 2);
    let begin = Instant::now();
    let one = |_| -> Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut block = [1; BEFORE_REST];
        stream.write_all(&block)?;
        stream.read_exact(&mut block)?;
        Ok(stream)
    };
    let kept = (0..count).map(one).collect::<Result<Vec<_>>>()?;
    println!("{{\"parked\": {}, \"seconds\": {:.3}}}", kept.len(), begin.elapsed().as_secs_f64());
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

fn serve_one(mut stream: TcpStream, received: &Received) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    let mut block = vec![0; BLOCK];
    match wanted[0] {
        SINK => {
            // The client never reads this byte, so its kernel ends the connection with a reset instead of delivering
            // for a while what nobody measures any more.
            stream.write_all(b"!")?;
            loop {
                match stream.read(&mut block)? {
                    0 => return Ok(()),
                    n => received.bytes.fetch_add(n as u64, Ordering::SeqCst),
                };
            }
        }
        FLOOD => loop {
            stream.write_all(&block)?;
        },
        ECHO => loop {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        },
        _ => Err(bad("an unknown wish")),
    }
}

/// Counts datagrams; one that says `go MILLISECONDS SIZE` is answered with a flood of that length, and who says `here` becomes
/// a peer and hears the same.
fn serve_udp(socket: &UdpSocket, received: &Received) {
    let mut bytes = vec![0; 65_536];
    loop {
        let Ok((n, peer)) = socket.recv_from(&mut bytes) else { continue };
        let text = if n <= 40 { std::str::from_utf8(&bytes[..n]).unwrap_or_default() } else { "" };
        if text.as_bytes() == paced::HERE {
            let mut peers = received.peers();
            if !peers.contains(&peer) {
                peers.push(peer);
            }
            let _ = socket.send_to(paced::HERE, peer);
            continue;
        }
        let Some([ms, size]) = text.strip_prefix("go ").map(|t| t.split_once(' ').map_or([t, ""], <[_; 2]>::from))
        else {
            received.datagrams.fetch_add(1, Ordering::SeqCst);
            continue;
        };
        let (Ok(ms), Ok(size)) = (ms.parse(), size.parse::<usize>()) else { continue };
        let end = Instant::now() + Duration::from_millis(ms);
        let flood = vec![0; size.min(65_507)];
        while Instant::now() < end {
            // Errors are full buffers or a client that left; both end with the time.
            let _ = socket.send_to(&flood, peer);
        }
    }
}

fn open(to: SocketAddr, wish: u8) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[wish])?;
    Ok(stream)
}

fn gigabits(bytes: u64, took: Duration) -> f64 {
    bytes as f64 * 8e-9 / took.as_secs_f64()
}

/// Sends from `streams` threads for `span` and then asks the server what it has got so far. Threads that are stuck in
/// a write end with the process, so a helper that stalls costs no more time than one that does not.
fn send(to: SocketAddr, span: Duration, streams: usize, counter: &Counter) -> Result<()> {
    let streams = (0..streams).map(|_| open(to, SINK)).collect::<Result<Vec<_>>>()?;
    let before = counter.now()?.1;
    let begin = Instant::now();
    for mut stream in streams {
        thread::spawn(move || -> Result<()> {
            let block = vec![0x5a; BLOCK];
            loop {
                stream.write_all(&block)?;
            }
        });
    }
    thread::sleep(span);
    let bytes = counter.now()?.1.saturating_sub(before);
    println!("{{\"gbit_s\": {:.4}, \"bytes\": {bytes}}}", gigabits(bytes, begin.elapsed()));
    Ok(())
}

/// Reads with `streams` threads for `span`.
fn recv(from: SocketAddr, span: Duration, streams: usize) -> Result<()> {
    let streams = (0..streams).map(|_| open(from, FLOOD)).collect::<Result<Vec<_>>>()?;
    let total = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    for mut stream in streams {
        let total = Arc::clone(&total);
        thread::spawn(move || -> Result<()> {
            let mut block = vec![0; BLOCK];
            loop {
                match stream.read(&mut block)? {
                    0 => return Err(ErrorKind::UnexpectedEof.into()),
                    n => total.fetch_add(n as u64, Ordering::SeqCst),
                };
            }
        });
    }
    thread::sleep(span);
    let bytes = total.load(Ordering::SeqCst);
    println!("{{\"gbit_s\": {:.4}, \"bytes\": {bytes}}}", gigabits(bytes, begin.elapsed()));
    Ok(())
}

/// Runs `one` for each item, each on a thread of its own.
fn in_threads<I: Send, T: Send>(items: Vec<I>, one: impl Fn(I) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || one(item))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(bad("a thread panicked")))).collect()
    })
}

fn median_us(times: &mut [Duration]) -> f64 {
    percentile_us(times, 50)
}

fn percentile_us(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    times.get(times.len() * percent / 100).map_or(f64::NAN, |t| t.as_secs_f64() * 1e6)
}

fn rtt(to: SocketAddr, span: Duration) -> Result<()> {
    let mut stream = open(to, ECHO)?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < span {
        let sent = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        times.push(sent.elapsed());
    }
    let [median, worst] = [50, 99].map(|percent| percentile_us(&mut times, percent));
    println!("{{\"us\": {median:.2}, \"p99_us\": {worst:.2}, \"count\": {}}}", times.len());
    Ok(())
}

fn conn(to: SocketAddr, span: Duration, clients: usize) -> Result<()> {
    let to = SocketAddr::new(to.ip(), to.port() + 1);
    let begin = Instant::now();
    let one = |_: usize| -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        while begin.elapsed() < span {
            let start = Instant::now();
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut bytes = [0; 2];
            stream.read_exact(&mut bytes[..1])?;
            if stream.read(&mut bytes)? != 0 {
                return Err(bad("more than one byte"));
            }
            drop(stream);
            times.push(start.elapsed());
        }
        Ok(times)
    };
    let mut times: Vec<Duration> = in_threads((0..clients).collect(), one)?.concat();
    let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
    println!("{{\"us\": {:.2}, \"per_s\": {rate:.1}, \"count\": {}}}", median_us(&mut times), times.len());
    Ok(())
}

fn udp_socket(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    Ok(socket)
}

fn udp_send(to: SocketAddr, span: Duration, size: usize, counter: &Counter) -> Result<()> {
    let socket = udp_socket(to)?;
    // A first one, so that neighbours are resolved and the mapping stands.
    socket.send(&[0])?;
    thread::sleep(Duration::from_millis(20));
    let before = counter.now()?.0;
    let datagram = vec![0; size];
    let mut sent = 0u64;
    let begin = Instant::now();
    while begin.elapsed() < span {
        sent += u64::from(socket.send(&datagram).is_ok());
    }
    let took = begin.elapsed();
    thread::sleep(Duration::from_millis(50));
    let delivered = counter.now()?.0.saturating_sub(before);
    println!(
        "{{\"per_s\": {:.1}, \"delivered\": {delivered}, \"sent\": {sent}}}",
        delivered as f64 / took.as_secs_f64()
    );
    Ok(())
}

fn udp_recv(from: SocketAddr, span: Duration, size: usize) -> Result<()> {
    let socket = udp_socket(from)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut bytes = vec![0; 65_536];
    socket.send(format!("go {} {size}", span.as_millis()).as_bytes())?;
    let begin = Instant::now();
    let mut got = 0u64;
    while begin.elapsed() < span + Duration::from_millis(100) {
        got += u64::from(socket.recv(&mut bytes).is_ok());
    }
    println!("{{\"per_s\": {:.1}, \"delivered\": {got}}}", got as f64 / span.as_secs_f64());
    Ok(())
}

fn probe(to: SocketAddr) -> Result<()> {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        let tried = TcpStream::connect_timeout(&to, Duration::from_millis(200)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(&[ECHO, b'x'])?;
            stream.read_exact(&mut [0])
        });
        match tried {
            Ok(()) => {
                println!("{{\"ready\": true}}");
                return Ok(());
            }
            Err(e) if Instant::now() > give_up => return Err(e),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// A question for the A records of `name` (RFC 1035, section 4.1).
fn question(name: &str) -> Result<Vec<u8>> {
    // Recursion desired; one question.
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..64).contains(len));
        message.push(len.ok_or_else(|| bad("not a name"))?);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    Ok(message)
}

/// Whether `answer` is the right one to `question`, whatever its id: no error, one record, and that names `right`.
fn is_right(answer: &[u8], question: &[u8], right: Ipv4Addr) -> bool {
    let Some((head, rest)) = answer.split_at_checked(HEADER) else { return false };
    let Some(record) = rest.strip_prefix(&question[HEADER..]) else { return false };
    // The owner's name is a pointer or spelt out; type, class, TTL and length follow it, then the address.
    let Some((fixed, address)) = record.split_at_checked(record.len().saturating_sub(4)) else { return false };
    head[2] & 0x80 != 0
        && head[3] % 16 == 0
        && head[4..8] == [0, 1, 0, 1]
        && fixed.len() >= 11
        && fixed[fixed.len() - 10..][..4] == [0, 1, 0, 1]
        && fixed.ends_with(&[0, 4])
        && address == right.octets()
}

/// Keeps `flight` questions under way and counts the right answers. What is lost is asked again, which costs its time.
fn names(to: SocketAddr, span: Duration, name: &str, right: Ipv4Addr, flight: u16) -> Result<()> {
    let socket = udp_socket(to)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let question = question(name)?;
    let ask = |id: u16| {
        let mut message = question.clone();
        message[..2].copy_from_slice(&id.to_be_bytes());
        socket.send(&message).map(drop)
    };
    (0..flight).try_for_each(ask)?;
    let (mut answers, mut wrong, mut lost) = (0u64, 0u64, 0u64);
    let mut bytes = [0; 1500];
    let begin = Instant::now();
    while begin.elapsed() < span {
        let n = match socket.recv(&mut bytes) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                lost += u64::from(flight);
                (0..flight).try_for_each(ask)?;
                continue;
            }
            Err(e) => return Err(e),
        };
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        if n > 2 && id < flight && is_right(&bytes[..n], &question, right) {
            answers += 1;
            ask(id)?;
        } else {
            wrong += 1;
        }
    }
    if wrong > 0 {
        return Err(bad(&format!("{wrong} wrong answers beside {answers} right ones")));
    }
    println!("{{\"per_s\": {:.1}, \"lost\": {lost}}}", answers as f64 / begin.elapsed().as_secs_f64());
    Ok(())
}

/// Starts a program and waits for its first byte, then for its end.
fn first_byte(program: &str, arguments: &[&str]) -> Result<()> {
    let begin = Instant::now();
    let mut child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().ok_or_else(|| bad("no pipe"))?;
    let read = output.read_exact(&mut [0]);
    let took = begin.elapsed();
    let status = child.wait()?;
    if read.is_err() || !status.success() {
        return Err(bad(&format!("{program} wrote nothing or failed: {status}")));
    }
    println!("{{\"ms\": {:.3}}}", took.as_secs_f64() * 1e3);
    Ok(())
}
