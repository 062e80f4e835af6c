//! Small servers and clients that the tests share. All of them run as threads of the test process, in any namespace.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::world::Ns;

/// How long a read may take before a test calls it lost. Far above anything that a loaded machine causes.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A listener in `ns`; IPv6 listeners are IPv6 only.
pub fn listen(ns: &Ns, addr: SocketAddr) -> TcpListener {
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("cannot make a socket");
        if addr.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.bind(&addr.into()).unwrap_or_else(|e| panic!("cannot bind {addr}: {e}"));
        socket.listen(1024).unwrap();
        socket.into()
    })
}

/// A UDP socket in `ns`; IPv6 sockets are IPv6 only. Reads give up after [`PATIENCE`].
pub fn udp(ns: &Ns, addr: SocketAddr) -> UdpSocket {
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, None).expect("cannot make a socket");
        if addr.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.bind(&addr.into()).unwrap_or_else(|e| panic!("cannot bind {addr}: {e}"));
        let socket: UdpSocket = socket.into();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    })
}

/// Serves every connection with `handler`, one thread each. Returns how many were accepted so far.
pub fn serve(
    listener: TcpListener,
    handler: impl Fn(TcpStream, SocketAddr) + Send + Sync + 'static,
) -> Arc<AtomicUsize> {
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&accepted);
    let handler = Arc::new(handler);
    thread::spawn(move || {
        while let Ok((stream, peer)) = listener.accept() {
            counter.fetch_add(1, Ordering::Relaxed);
            let handler = Arc::clone(&handler);
            thread::spawn(move || handler(stream, peer));
        }
    });
    accepted
}

/// A TCP server that tells each client what address it sees and then closes.
pub fn tell_tcp(ns: &Ns, addr: SocketAddr) -> Arc<AtomicUsize> {
    serve(listen(ns, addr), |mut stream, peer| {
        let _ = stream.write_all(peer.to_string().as_bytes());
    })
}

/// A UDP server that answers each datagram with the address it came from.
pub fn tell_udp(ns: &Ns, addr: SocketAddr) -> Arc<AtomicUsize> {
    let socket = udp(ns, addr);
    socket.set_read_timeout(None).unwrap();
    let heard = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&heard);
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        // An ICMP error of an earlier answer surfaces here; it ends nothing.
        loop {
            if let Ok((_, peer)) = socket.recv_from(&mut bytes) {
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(peer.to_string().as_bytes(), peer);
            }
        }
    });
    heard
}

/// A UDP server that sends everything back. `df` false: answers may be fragmented on the way.
pub fn echo_udp(ns: &Ns, addr: SocketAddr) {
    let socket = udp(ns, addr);
    socket.set_read_timeout(None).unwrap();
    thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        loop {
            if let Ok((n, peer)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..n], peer);
            }
        }
    });
}

/// A TCP server that sends everything back and half-closes when the client did.
pub fn echo_tcp(ns: &Ns, addr: SocketAddr) -> Arc<AtomicUsize> {
    serve(listen(ns, addr), |mut stream, _| {
        let mut bytes = vec![0; 65_536];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..n]).is_err() {
                return;
            }
        }
    })
}

/// A connected stream from `ns`, with time-outs.
pub fn connect(ns: &Ns, to: SocketAddr) -> std::io::Result<TcpStream> {
    ns.run(|| {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// A connected stream from a chosen address and port of `ns` (port 0: any).
pub fn connect_from(ns: &Ns, from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// What a [`tell_tcp`] server says to a client in `ns` that binds `from`: (our own address, what the server saw).
#[track_caller]
pub fn ask_tcp(ns: &Ns, from: SocketAddr, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let mut stream = connect_from(ns, from, to).unwrap_or_else(|e| panic!("cannot connect {from} -> {to}: {e}"));
    let mine = stream.local_addr().unwrap();
    (mine, heard_tcp(&mut stream))
}

/// What the server at the other end of `stream` said.
#[track_caller]
pub fn heard_tcp(stream: &mut TcpStream) -> SocketAddr {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the server did not say whom it saw");
    text.parse().unwrap_or_else(|e| panic!("the server said {text:?}: {e}"))
}

/// What a [`tell_udp`] server says to a client in `ns` that binds `from`: (our own address, what the server saw). The
/// socket is connected, so an answer from another address than `to` does not count.
#[track_caller]
pub fn ask_udp(ns: &Ns, from: SocketAddr, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let socket = udp(ns, from);
    ns.run(|| socket.connect(to)).unwrap_or_else(|e| panic!("cannot connect {from} -> {to}: {e}"));
    let mine = socket.local_addr().unwrap();
    (mine, heard_udp(&socket))
}

/// Asks over a connected socket.
#[track_caller]
pub fn heard_udp(socket: &UdpSocket) -> SocketAddr {
    let mut bytes = [0; 128];
    socket.send(b"who?").expect("cannot send a datagram");
    let n = socket.recv(&mut bytes).expect("no answer to a datagram");
    let text = String::from_utf8_lossy(&bytes[..n]);
    text.parse().unwrap_or_else(|e| panic!("the server said {text:?}: {e}"))
}

/// Closes a stream with a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// `addr:port`, shorter.
pub fn at(addr: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(addr.into(), port)
}

/// Any address of the same family, any port.
pub fn any(like: SocketAddr) -> SocketAddr {
    if like.is_ipv4() { at([0; 4], 0) } else { at([0u16; 8], 0) }
}

/// A stream of bytes that no two places share for long: losing, doubling or swapping any part shows.
pub struct Pattern(u64);

impl Pattern {
    /// The same seed gives the same stream.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next bytes (xorshift64*, Marsaglia 2003 and Vigna 2014).
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Sends `total` bytes of the pattern. Returns what stopped it, if anything did.
pub fn send_pattern(mut stream: &TcpStream, seed: u64, total: usize) -> std::io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut bytes = vec![0; 64 * 1024];
    let mut left = total;
    while left > 0 {
        let n = left.min(bytes.len());
        pattern.fill(&mut bytes[..n]);
        stream.write_all(&bytes[..n])?;
        left -= n;
    }
    Ok(())
}

/// Reads until the end and compares with the pattern. Panics at the first difference; returns the length.
pub fn expect_pattern(mut stream: impl Read + std::fmt::Debug, seed: u64) -> usize {
    let mut pattern = Pattern::new(seed);
    // Whole words only, or the pattern would slip against itself.
    let (mut got, mut want) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut total = 0;
    loop {
        let mut have = 0;
        while have < got.len() {
            let read = stream.read(&mut got[have..]);
            match read.unwrap_or_else(|e| panic!("{stream:?} broke after {} bytes: {e}", total + have)) {
                0 => break,
                n => have += n,
            }
        }
        pattern.fill(&mut want[..have]);
        assert!(got[..have] == want[..have], "the stream differs within 64 KiB of offset {total}");
        total += have;
        if have < got.len() {
            return total;
        }
    }
}
