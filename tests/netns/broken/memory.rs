//! Memory runs out in the process that forwards: its address space may not grow any more.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{network_pid, restarts};
use crate::tools::{at, connect, echo_tcp, expect_pattern, send_pattern};
use crate::world::{INET4, World, wait_for};

/// Lets a living process have so much more address space.
fn allow_more(w: &World, pid: i32, bytes: u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap().trim().trim_end_matches(" kB");
    let most = size.parse::<u64>().unwrap() * 1024 + bytes;
    w.host.sh(&format!("prlimit --pid {pid} --as={most}:"));
}

/// A capture wants a ring of 8 MiB and a thread: it is refused, and nothing else happens.
#[test]
fn no_memory_for_a_capture() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        echo_tcp(&w.internet, at(INET4, 7000));
        let mut flow = connect(&guest.ns, at(INET4, 7000)).unwrap();
        let pid = network_pid(w, "site");
        for bytes in [1 << 20, 4 << 20] {
            allow_more(w, pid, bytes);
            let file = w.path("none.pcapng");
            let ended = w.tapway(&["capture", "site", file.to_str().unwrap()]).limit(10).end();
            eprintln!("{bytes} bytes: {} {}", ended.code, ended.stderr);
            let named = ended.stderr.contains("no memory for") || ended.stderr.contains("cannot start the thread");
            assert!(ended.code == 1 && named, "{bytes}: {}", ended.stderr);
            flow.write_all(b"x").unwrap();
            flow.read_exact(&mut [0]).unwrap();
            assert_eq!((network_pid(w, "site"), restarts(w, "site")), (pid, 0), "{bytes}");
        }
    });
}

/// Bulky flows want large rings: they go on with small ones. Where there is no memory even for those, the process ends and says
/// so, and another takes its place.
#[test]
fn no_memory_for_flows() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        echo_tcp(&w.internet, at(INET4, 7000));
        let pid = network_pid(w, "site");
        allow_more(w, pid, 1 << 20);
        // Of both directions at once, so that it is bulky: each would take two mebibytes.
        let bulky = || {
            let stream = connect(&guest.ns, at(INET4, 7000)).unwrap();
            let writer = stream.try_clone().unwrap();
            let sent = std::thread::spawn(move || {
                send_pattern(&writer, 4, 8 << 20).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            assert_eq!(expect_pattern(&stream, 4), 8 << 20);
            sent.join().unwrap();
        };
        bulky();
        assert_eq!((network_pid(w, "site"), restarts(w, "site")), (pid, 0), "{}", guest.monitor.stderr());
        let many: Vec<_> = (0..60)
            .map_while(|_| {
                let mut stream =
                    guest.run(|| TcpStream::connect_timeout(&at(INET4, 7000), Duration::from_secs(2))).ok()?;
                stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
                stream.write_all(b"x").ok()?;
                stream.read_exact(&mut [0]).ok().map(|()| stream)
            })
            .collect();
        wait_for("another network process", Duration::from_secs(5), || restarts(w, "site") == 1);
        let log = guest.monitor.stderr();
        assert!(
            log.contains("memory allocation of") && log.contains("starting another"),
            "{} flows: {log}",
            many.len()
        );
        drop(many);
        bulky();
    });
}
