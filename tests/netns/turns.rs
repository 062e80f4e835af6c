//! The data plane's turns: how long traffic waits beside what happens on the control socket.
//!
//! A program in the guest pings the gateway, which the data plane answers by itself, as fast as the answers come; the
//! longest time between two answers is the longest between two turns, and more. Rounds with and without a disturbance take
//! turns. The machine has few cores and others' work, which makes a round longer at random; a disturbance that holds the
//! data plane up does so in each of its rounds. So the shortest of either kind are compared, and rounds are added as long
//! as chance may have spoilt them all.

use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::control::{done, socket};
use crate::tools::{at, connect, listen, tell_tcp, udp};
use crate::world::{GATEWAY4, Guest, INET4, World, wait_for};

/// By how much the longest gap may grow.
const GROWTH: Duration = Duration::from_millis(2);
/// One round.
const ROUND: Duration = Duration::from_millis(300);
/// Rounds of either kind, at least and at most.
const ROUNDS: std::ops::Range<usize> = 5..60;

/// Pings the gateway for a round: the longest time between two answers, and how many came.
fn longest_gap(guest: &Guest) -> (Duration, u64) {
    guest.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect(&at(GATEWAY4, 0).into()).unwrap();
        let (begun, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        let mut count = 0;
        while begun.elapsed() < ROUND {
            // An echo request without data: type 8, and the checksum of it all (RFC 792).
            socket.send(&[8, 0, 0xF7, 0xFF, 0, 0, 0, 0]).unwrap();
            let mut reply = [MaybeUninit::uninit(); 128];
            socket.recv(&mut reply).expect("the gateway answers");
            count += 1;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        (longest, count)
    })
}

/// Rounds by turns, in which `disturbed` is false and true.
fn compare(what: &str, guest: &Guest, disturbed: &AtomicBool) -> Result<(), String> {
    let (mut without, mut with) = (Duration::MAX, Duration::MAX);
    let mut rounds = 0;
    while rounds < ROUNDS.start || (with > without + GROWTH && rounds < ROUNDS.end) {
        without = without.min(longest_gap(guest).0);
        disturbed.store(true, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(20));
        with = with.min(longest_gap(guest).0);
        disturbed.store(false, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(50));
        rounds += 1;
    }
    eprintln!("{what}: longest gap {with:?}, {without:?} without ({rounds} rounds)");
    if with <= without + GROWTH {
        return Ok(());
    }
    Err(format!("{what}: the longest gap is {with:?} instead of {without:?}"))
}

/// One that does the same again and again while it is told to.
fn again<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    over: &'scope AtomicBool,
    disturbed: &'scope AtomicBool,
    mut act: impl FnMut() + Send + 'scope,
) {
    scope.spawn(move || {
        // What is measured is who holds up whom, not who gets a CPU.
        let thread = nix::unistd::gettid().to_string();
        let _ = std::process::Command::new("renice").args(["-n", "19", "-p", &thread]).output();
        while !over.load(Ordering::Relaxed) {
            if disturbed.load(Ordering::Relaxed) {
                act();
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
}

#[test]
fn clients_that_misbehave_hold_up_no_frame() {
    World::run(|w| {
        let guest = w.guest(&["-p", "8080:7300"]);
        let path = socket(w);
        let open = &|| {
            let stream = UnixStream::connect(&path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            stream
        };
        let send = &|input: &[u8]| {
            let mut stream = open();
            let _ = stream.write_all(input);
            stream
        };
        let brackets = &vec![b'['; 65_536];
        let (over, disturbed, done_so_far) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        let disturbed = &disturbed;
        let count = &|| done_so_far.fetch_add(1, Ordering::Relaxed);
        thread::scope(|scope| {
            // Each way of the list, all at once.
            again(scope, &over, disturbed, move || {
                let mut stream = send(b"{\"execute\":");
                for _ in 0..1024 {
                    if stream.write_all(brackets).is_err() {
                        break;
                    }
                }
                count();
            });
            again(scope, &over, disturbed, move || {
                for input in [
                    &b"{\"execute\":\"get_in"[..],
                    b"{\"execute\":\"get_info\"}{\"execute\":\"get_info\"}",
                    b"{\"execute\":\"get_info\xff\"}",
                    b"{\"execute\":\"get_info\",\"execute\":\"get_info\"}",
                    b"{\"execute\":\"unpublish\",\"arguments\":{\"ids\":[99999999999999999999999]}}",
                ] {
                    let _ = send(input).shutdown(std::net::Shutdown::Write);
                    count();
                }
            });
            again(scope, &over, disturbed, move || {
                let mut stream = open();
                for byte in b"{\"execute\":\"list_flows\"}" {
                    let _ = stream.write_all(&[*byte]);
                }
                count();
            });
            again(scope, &over, disturbed, move || {
                let mut stream = send(b"{\"execute\":\"hello\",\"arguments\":{\"keep_open\":true}}\n");
                while disturbed.load(Ordering::Relaxed) && stream.write_all(b"{\"execute\":\"get_stats\"}\n").is_ok() {}
                count();
            });
            again(scope, &over, disturbed, move || {
                let idle: Vec<UnixStream> = (0..1000).map(|_| open()).collect();
                while disturbed.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                }
                drop(idle);
                count();
            });
            again(scope, &over, disturbed, move || {
                drop(send(b"{\"execute\":\"get_metrics\"}"));
                count();
            });
            let result = compare("misbehaving clients", &guest, disturbed);
            // Before anything fails, or they would go on for ever.
            over.store(true, Ordering::Relaxed);
            result.unwrap();
        });
        assert!(done_so_far.load(Ordering::Relaxed) > 20, "they did nothing");
        assert_eq!(done(w, "get_info", json!({}))["network_restarts"], 0);
    });
}

/// Real ones: 6000 connections of TCP and 4000 ports of UDP.
#[test]
fn a_list_of_ten_thousand_flows_holds_up_no_frame() {
    const TCP: u16 = 6000;
    const UDP: u16 = 4000;
    World::run(|w| {
        // Each connection has two ends here.
        let needed = 2 * u64::from(TCP) + u64::from(UDP) + 1000;
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(
            most >= needed,
            "the limit on open files ({most}) is too low for this test; raise ulimit -Hn to {needed}"
        );
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let (listener, accepted) = (listen(&w.internet, at(INET4, 4000)), Arc::new(Mutex::new(Vec::new())));
        let holder = Arc::clone(&accepted);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                holder.lock().unwrap().push(stream);
            }
        });
        let guest = w.guest::<&str>(&[]);
        let held: Vec<TcpStream> = (0..TCP).map(|_| connect(&guest.ns, at(INET4, 4000)).unwrap()).collect();
        let sent: Vec<_> = (0..UDP)
            .map(|n| {
                let socket = udp(&guest.ns, at([0; 4], 20_000 + n));
                socket.send_to(b"x", at(INET4, 9)).unwrap();
                socket
            })
            .collect();
        wait_for("all connections", Duration::from_secs(20), || accepted.lock().unwrap().len() == usize::from(TCP));
        let (over, disturbed) = (AtomicBool::new(false), AtomicBool::new(false));
        let (lists, longest) = (&AtomicU64::new(0), &AtomicU64::new(0));
        let disturbed = &disturbed;
        thread::scope(|scope| {
            again(scope, &over, disturbed, move || {
                let mut stream = UnixStream::connect(socket(w)).unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let mut ask = |verb: &str, arguments: Value| -> Value {
                    writeln!(stream, "{}", json!({ "execute": verb, "arguments": arguments })).unwrap();
                    serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
                };
                ask("hello", json!({"keep_open": true}));
                let (begun, mut flows, mut arguments) = (Instant::now(), 0, json!({}));
                loop {
                    let page = ask("list_flows", arguments)["return"].take();
                    flows += page["flows"].as_array().unwrap().len();
                    if page["next"].is_null() {
                        break;
                    }
                    arguments = json!({"after": page["next"]});
                }
                assert!(flows >= usize::from(TCP + UDP), "{flows} flows are listed");
                lists.fetch_add(1, Ordering::Relaxed);
                longest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
            });
            let result = compare("list_flows of 10 000", &guest, disturbed);
            // Before anything fails, or they would go on for ever.
            over.store(true, Ordering::Relaxed);
            result.unwrap();
        });
        let (lists, longest) = (lists.load(Ordering::Relaxed), Duration::from_micros(longest.load(Ordering::Relaxed)));
        eprintln!("{lists} lists of 10 000 flows, the slowest in {longest:?}");
        assert!(lists > 2);
        drop((held, sent));
        // Traffic goes on as ever.
        tell_tcp(&w.internet, at(INET4, 4001));
        assert!(connect(&guest.ns, at(INET4, 4001)).is_ok());
    });
}
