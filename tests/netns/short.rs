//! A minute of short connections from a client that has only a hundred ports.
//!
//! Every 4-tuple comes round again many times while the other end still remembers it in TIME-WAIT. Sequence numbers
//! that do not grow per 4-tuple make such a SYN wait for a retransmission, a whole second; no connect may take 200 ms.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::tools::{PATIENCE, at, listen, serve};
use crate::world::{HOST4, INET4, Ns, World};

const MINUTE: Duration = Duration::from_mins(1);
const LIMIT: Duration = Duration::from_millis(200);

/// Says one byte and closes first, so that TIME-WAIT is on its side and the client's ports are free at once.
fn short_server(ns: &Ns, port: u16) {
    serve(listen(ns, at([0; 4], port)), |mut stream, _| {
        let _ = stream.write_all(b"!");
    });
}

/// Connects again and again for a minute. Returns how often, and the slowest connect.
fn hammer(ns: &Ns, to: SocketAddr) -> (usize, Duration) {
    ns.sh("echo '40000 40099' > /proc/sys/net/ipv4/ip_local_port_range");
    ns.run(|| {
        let end = Instant::now() + MINUTE;
        let (mut count, mut slowest) = (0, Duration::ZERO);
        while Instant::now() < end {
            let begin = Instant::now();
            let mut stream =
                TcpStream::connect_timeout(&to, PATIENCE).unwrap_or_else(|e| panic!("connect {count}: {e}"));
            slowest = slowest.max(begin.elapsed());
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap_or_else(|e| panic!("connection {count}: {e}"));
            assert_eq!(text, b"!", "connection {count}");
            count += 1;
            // Some hundred a second: the point is that ports come round, not how fast.
            std::thread::sleep(Duration::from_millis(4));
        }
        (count, slowest)
    })
}

#[test]
fn inward_connections_never_wait() {
    World::run(|w| {
        let guest = w.guest(&["-p", "7600:7600"]);
        short_server(&guest.ns, 7600);
        let (count, slowest) = hammer(&w.internet, at(HOST4, 7600));
        assert!(count > 1000, "only {count} connections in a minute");
        assert!(slowest < LIMIT, "one of {count} connects took {slowest:?}");
    });
}

#[test]
fn outward_connections_never_wait() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        short_server(&w.internet, 7600);
        let (count, slowest) = hammer(&guest.ns, at(INET4, 7600));
        assert!(count > 1000, "only {count} connections in a minute");
        assert!(slowest < LIMIT, "one of {count} connects took {slowest:?}");
    });
}
