//! Many flows that rest: what they cost, that each goes on as if nothing had been, and that they take nothing from others.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::tools::{at, connect, expect_pattern, listen, send_pattern};
use crate::world::{Guest, INET4, INET6, World, wait_for};

/// Issue "Speed and scale" asks this of 10 000 flows that carried 1 KiB each way and rest, at once and ten seconds later. Both ends
/// of these are in this process, whose descriptors may be 20 000.
const FLOWS: usize = 9_000;
const AT_ONCE_MIB: f64 = 120.0;
const LATER_MIB: f64 = 40.0;

/// Resident memory and page tables of a process.
fn memory_mib(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name: &str| -> f64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    };
    (kib("VmRSS:") + kib("VmPTE:")) / 1024.0
}

/// As many descriptors as there may be, for both ends of every connection.
fn many_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let needed = 2 * FLOWS as u64 + 500;
    assert!(most >= needed, "the limit on open files ({most}) is too low for this test; raise ulimit -Hn to {needed}");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// A server that takes 1 KiB of each client and answers with it; the ends that it holds.
fn server(w: &World, port: u16) -> Arc<Mutex<Vec<TcpStream>>> {
    let held = Arc::new(Mutex::new(Vec::new()));
    for addr in [at(INET4, port), at(INET6, port)] {
        let (listener, holder) = (listen(&w.internet, addr), Arc::clone(&held));
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut block = [0; 1024];
                if stream.read_exact(&mut block).and_then(|()| stream.write_all(&block)).is_ok() {
                    holder.lock().unwrap().push(stream);
                }
            }
        });
    }
    held
}

fn client(guest: &Guest, n: usize, port: u16) -> TcpStream {
    let to = if n.is_multiple_of(2) { at(INET4, port) } else { at(INET6, port) };
    let mut stream = connect(&guest.ns, to).unwrap();
    let mut block = [n as u8; 1024];
    stream.write_all(&block).unwrap();
    stream.read_exact(&mut block).unwrap();
    assert_eq!(block, [n as u8; 1024]);
    stream
}

#[test]
fn thousands_of_flows_cost_next_to_nothing_and_go_on() {
    World::run(|w| {
        many_descriptors();
        let guest = w.guest::<&str>(&[]);
        let held = server(w, 4000);
        let pid = w.network_process(&guest).unwrap();
        let idle = memory_mib(pid);
        let mut clients: Vec<TcpStream> = (0..FLOWS).map(|n| client(&guest, n, 4000)).collect();
        let at_once = memory_mib(pid);
        // Half of the rest are half closed by the guest.
        for stream in clients.iter().skip(FLOWS / 2) {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        wait_for("the memory to be given back", Duration::from_secs(10), || memory_mib(pid) <= LATER_MIB);
        let later = memory_mib(pid);
        eprintln!("network process: {idle:.1} MiB idle, {at_once:.1} with {FLOWS} flows, {later:.1} when they rest");
        assert!(at_once <= AT_ONCE_MIB, "{at_once:.1} MiB");

        // A flow that comes now is as fast as in an empty house: there are large rings for it.
        let listener = listen(&w.internet, at(INET4, 4001));
        let sender = thread::spawn(move || send_pattern(&listener.accept().unwrap().0, 5, 200 << 20));
        let bulk = connect(&guest.ns, at(INET4, 4001)).unwrap();
        let begun = Instant::now();
        assert_eq!(expect_pattern(&bulk, 5), 200 << 20);
        sender.join().unwrap().unwrap();
        eprintln!("200 MiB beside them in {:?}", begun.elapsed());

        // Each goes on, whichever end speaks first; those that are half closed in the direction that they have.
        let mut servers = std::mem::take(&mut *held.lock().unwrap());
        assert_eq!(servers.len(), FLOWS);
        let key = |stream: &TcpStream| stream.peer_addr().unwrap();
        servers.sort_by_key(|stream| key(stream));
        let mut byte = [0];
        for (n, client) in clients.iter_mut().enumerate().step_by(7) {
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            if n < FLOWS / 2 && n.is_multiple_of(3) {
                client.write_all(b"!").unwrap();
            }
        }
        for server in &mut servers {
            server.set_nonblocking(true).unwrap();
            server.write_all(b"?").unwrap();
        }
        for client in &mut clients {
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            client.read_exact(&mut byte).unwrap();
            assert_eq!(byte, *b"?");
        }
        let spoken = (0..FLOWS / 2).step_by(7).filter(|n| n.is_multiple_of(3)).count();
        let mut heard = 0;
        let mut ended = 0;
        for server in &mut servers {
            match server.read(&mut byte) {
                Ok(0) => ended += 1,
                Ok(_) => heard += 1,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!((heard, ended), (spoken, FLOWS / 2));
        // What woke rests again.
        wait_for("the memory to be given back again", Duration::from_secs(10), || memory_mib(pid) <= LATER_MIB);
    });
}

#[test]
fn a_flow_that_was_busy_gives_its_memory_back() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let pid = w.network_process(&guest).unwrap();
        let before = memory_mib(pid);
        let listener = listen(&w.internet, at(INET4, 4000));
        let mut pairs = Vec::new();
        for n in 0..20u64 {
            let client = connect(&guest.ns, at(INET4, 4000)).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let there = client.try_clone().unwrap();
            let sender = thread::spawn(move || send_pattern(&there, n, 8 << 20));
            let mut all = vec![0; 8 << 20];
            server.read_exact(&mut all).unwrap();
            sender.join().unwrap().unwrap();
            pairs.push((client, server));
        }
        wait_for("rings to be given back", Duration::from_secs(10), || memory_mib(pid) < before + 6.0);
        // They are open all the while.
        for (client, server) in &mut pairs {
            server.write_all(b"!").unwrap();
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
        }
    });
}

/// One of a namespace's counters (RFC 4022 and the kernel's own; Documentation/networking/snmp_counter.rst).
fn counter(guest: &Guest, wanted: &str) -> u64 {
    let text = guest.sh("cat /proc/net/snmp /proc/net/netstat");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Tcp")).collect();
    let found = lines.chunks(2).find_map(|pair| {
        let at = pair[0].split_whitespace().position(|name| name == wanted)?;
        pair[1].split_whitespace().nth(at)?.parse().ok()
    });
    found.unwrap_or_else(|| panic!("no counter {wanted}"))
}

#[test]
fn nothing_is_sent_twice_on_a_clean_path() {
    for congestion in ["reno", "cubic", "bbr"] {
        for mtu in ["1500", "65520"] {
            World::run(|w| {
                let guest = w.guest(&["--mtu", mtu]);
                let file = "/proc/sys/net/ipv4/tcp_congestion_control";
                let set = guest.sh(&format!("echo {congestion} > {file} || true; cat {file}"));
                if set.trim() != congestion {
                    eprintln!("{congestion} is not measured: this kernel lets a namespace have {} only", set.trim());
                    return;
                }
                let listener = listen(&w.internet, at(INET4, 4000));
                for round in 0..3 {
                    let client = connect(&guest.ns, at(INET4, 4000)).unwrap();
                    let (server, _) = listener.accept().unwrap();
                    let sender = thread::spawn(move || send_pattern(&client, round, 300 << 20).map(|()| client));
                    let mut sink = vec![0; 1 << 20];
                    let mut left = 300usize << 20;
                    while left > 0 {
                        let n = (&server).read(&mut sink).unwrap();
                        assert!(n > 0, "it ends with {left} bytes to come");
                        left -= n;
                    }
                    drop(sender.join().unwrap().unwrap());
                    // The last acknowledgements, and a pause in which the flow rests.
                    thread::sleep(Duration::from_millis(50));
                }
                let of = |name| counter(&guest, name);
                let (again, probes, timeouts) = (of("RetransSegs"), of("TCPLossProbes"), of("TCPTimeouts"));
                eprintln!(
                    "{congestion}, MTU {mtu}: {again} segments sent again of 900 MiB, {probes} loss probes, {timeouts} time-outs"
                );
                // A guest whose acknowledgement takes longer than two ticks of its clock probes (RFC 8985, section 7): on
                // a busy machine our process waits as long for a processor. What is sent again without a probe was lost.
                assert_eq!(timeouts, 0, "{congestion}, MTU {mtu}");
                assert!(
                    again <= 2 * probes,
                    "{congestion}, MTU {mtu}: {again} segments were sent again, {probes} probes"
                );
            });
        }
    }
}
