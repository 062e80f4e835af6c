//! Memory runs out in the process that forwards: its address space may not grow any more.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{network_pid, restarts};
use crate::tools::{at, connect, echo_tcp};
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
        for bytes in [0, 1 << 20, 9 << 20] {
            allow_more(w, pid, bytes);
            let file = w.path("none.pcapng");
            let ended = w.tapway(&["capture", "site", file.to_str().unwrap()]).limit(10).end();
            eprintln!("{bytes} bytes: {} {}", ended.code, ended.stderr);
            assert!(ended.code == 1 && ended.stderr.contains("memory"), "{bytes}: {}", ended.stderr);
            flow.write_all(b"x").unwrap();
            flow.read_exact(&mut [0]).unwrap();
            assert_eq!((network_pid(w, "site"), restarts(w, "site")), (pid, 0), "{bytes}");
        }
    });
}

/// Flows want rings. Where there is no memory for them the process ends, says so, and another takes its place.
#[test]
fn no_memory_for_flows() {
    World::run(|w| {
        let guest = w.guest(&["--name", "site"]);
        echo_tcp(&w.internet, at(INET4, 7000));
        let pid = network_pid(w, "site");
        allow_more(w, pid, 1 << 20);
        let flood = || -> Vec<TcpStream> {
            let one = |_| {
                let mut stream = connect(&guest.ns, at(INET4, 7000)).ok()?;
                stream.set_write_timeout(Some(Duration::from_millis(50))).ok()?;
                while stream.write(&[1; 65_536]).is_ok() {}
                Some(stream)
            };
            (0..30).filter_map(one).collect()
        };
        drop(flood());
        eprintln!("{} {} {}", network_pid(w, "site"), restarts(w, "site"), guest.monitor.stderr());
        wait_for("the next one", Duration::from_secs(10), || {
            let Ok(mut stream) = connect(&guest.ns, at(INET4, 7000)) else { return false };
            stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok()
        });
        assert!(guest.monitor.alive());
    });
}
