//! What the scenarios say over a network, and what they expect to hear.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use crate::tools::{Pattern, any, ask_tcp, ask_udp, at, connect, listen, tell_tcp, tell_udp};
use crate::world::{Ns, World};

/// Bytes that no two places share for long.
pub fn blob(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Pattern::new(seed).fill(&mut bytes);
    bytes
}

/// SHA-256 in hexadecimal, as sha256sum(1) says.
pub fn sha256(bytes: &[u8]) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("no sha256sum");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    first_word(&String::from_utf8(output.stdout).unwrap())
}

/// What comes before the first blank.
pub fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// A server for one connection, which keeps what it gets. Where it listens, and what it will have got.
pub fn collect(ns: &Ns, address: IpAddr) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = listen(ns, at(address, 0));
    let here = listener.local_addr().unwrap();
    let got = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("a connection broke");
        bytes
    });
    (here, got)
}

/// A server that sends `bytes` to each client and closes.
pub fn offer(ns: &Ns, address: IpAddr, bytes: Vec<u8>) -> SocketAddr {
    let listener = listen(ns, at(address, 0));
    let here = listener.local_addr().unwrap();
    crate::tools::serve(listener, move |mut stream, _| {
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    here
}

/// Sends `bytes`, closes that way, and returns what comes back until the other end closes.
#[track_caller]
pub fn exchange(ns: &Ns, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let stream = connect(ns, to).unwrap_or_else(|e| panic!("cannot connect to {to}: {e}"));
    let mut back = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(bytes).expect("cannot send");
            stream.shutdown(Shutdown::Write).expect("cannot close one way");
        });
        (&stream).read_to_end(&mut back).expect("a connection broke");
    });
    back
}

/// What a server sends until it closes.
#[track_caller]
pub fn download(ns: &Ns, from: SocketAddr) -> Vec<u8> {
    let mut stream = connect(ns, from).unwrap_or_else(|e| panic!("cannot connect to {from}: {e}"));
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a connection broke");
    bytes
}

/// Servers on both protocols of a port that say whom they see, on every address of one family.
pub fn tellers(ns: &Ns, like: IpAddr, port: u16) {
    let all = at(any(at(like, 0)).ip(), port);
    tell_tcp(ns, all);
    tell_udp(ns, all);
}

/// Servers outside, on both protocols and families of one port, that say whom they see.
pub fn tellers_outside(w: &World, port: u16) {
    tellers(&w.outside, IpAddr::from([0; 4]), port);
    tellers(&w.outside, IpAddr::from([0u16; 8]), port);
}

/// Whom a TCP server at `to` sees when `ns` asks from `from`; the port is the server's view too.
#[track_caller]
pub fn seen_tcp(ns: &Ns, from: IpAddr, to: SocketAddr) -> SocketAddr {
    ask_tcp(ns, at(from, 0), to).1
}

/// Asks from `from` over TCP and UDP, and expects to be seen as what we are.
#[track_caller]
pub fn expect_true(ns: &Ns, from: IpAddr, to: SocketAddr) {
    let (mine, seen) = ask_tcp(ns, at(from, 0), to);
    assert_eq!(seen, mine, "TCP {from} -> {to}");
    let (mine, seen) = ask_udp(ns, at(from, 0), to);
    assert_eq!(seen, mine, "UDP {from} -> {to}");
}

/// Asks from any address over TCP and UDP, and expects to be seen as `whom`.
#[track_caller]
pub fn expect_seen(ns: &Ns, to: SocketAddr, whom: IpAddr) {
    assert_eq!(ask_tcp(ns, any(to), to).1.ip(), whom, "TCP to {to}");
    assert_eq!(ask_udp(ns, any(to), to).1.ip(), whom, "UDP to {to}");
}

/// Nobody listens there.
#[track_caller]
pub fn expect_closed(ns: &Ns, to: SocketAddr) {
    let error = connect(ns, to).map(|s: TcpStream| s.local_addr()).expect_err(&format!("{to} is open"));
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}: {error}");
}
