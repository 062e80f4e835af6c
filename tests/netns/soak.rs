//! An hour of everything: mixed traffic and every kind of change at once, and at its end no more memory, descriptors or
//! flows than in its tenth minute.
//!
//! Three sandboxes, `site` and `app` on a shared network and `alone` on its own, and the three processes that forward or
//! stand by for them are watched. What goes on meanwhile, each on a thread of its own and at a low rate, so that the whole
//! takes about half a processor: streams that run for half a minute, to the world, from it and from member to member; short
//! connections outward, through a published port and to a port where nobody is; datagrams over sockets that stay and sockets
//! that do not; questions answered here and forwarded; and the changes of [`turn`]. All content is compared. Of a
//! million exchanges one may fail (see docs/reliability.md), and one in all; they are printed, and `TAPWAY_TEST_SOAK_TRACE=DIRECTORY` keeps
//! the headers of all packets, by which the cause can be found.
//!
//! `TAPWAY_TEST_SOAK_MINUTES` says how long (5 unless given). Compared are medians of two minutes: the last, and the tenth, or
//! the second where it is shorter than twenty. A table with every minute is printed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::dns::dns_server;
use crate::named::{address_of, create, member, processes};
use crate::spaces::Ns;
use crate::tools::{PATIENCE, Pattern, any, at, echo_tcp, echo_udp, listen, serve, udp};
use crate::world::{Guest, HOST4, INET4, INET6, World};

/// Of so many exchanges one may fail.
const ONE_OF: usize = 1_000_000;
/// How far the last minute may be above the one that it is compared with.
const TOLERANCE: f64 = 0.05;

fn minutes() -> u64 {
    let given = std::env::var("TAPWAY_TEST_SOAK_MINUTES").ok();
    given.map_or(5, |text| text.parse().expect("TAPWAY_TEST_SOAK_MINUTES is a number of minutes"))
}

/// What all threads share: whether to go on, which change is being made, how much was done, what went wrong.
#[derive(Default)]
struct Course {
    step: Mutex<String>,
    over: AtomicBool,
    done: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Course {
    /// Fails if too much has failed, or anything arrived changed.
    fn check(&self) {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let most = 1 + self.done.load(Ordering::Relaxed) / ONE_OF;
        assert!(failures.len() <= most, "{failures:#?}");
        assert!(!failures.iter().any(|failure| failure.contains("changed")), "{failures:#?}");
    }
}

/// Runs `act` in `ns` every `pause` until the course is over. What it returns is a failure's description.
fn repeat(
    course: &Arc<Course>,
    ns: &Ns,
    what: &'static str,
    pause: Duration,
    mut act: impl FnMut(&Course) -> Result<(), String> + Send + 'static,
) -> JoinHandle<()> {
    let course = Arc::clone(course);
    ns.spawn(move || {
        while !course.over.load(Ordering::Relaxed) {
            match act(&course) {
                Ok(()) => _ = course.done.fetch_add(1, Ordering::Relaxed),
                Err(why) => {
                    let step = course.step.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let mut failures = course.failures.lock().unwrap_or_else(PoisonError::into_inner);
                    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                    let now = now.as_secs_f64();
                    failures.push(format!("{now:.3} {what}: {why} (at or after: {step})"));
                }
            }
            sleep(pause);
        }
    })
}

/// Half a minute of an echoed stream, 32 KiB every 50 ms each way.
fn stream(course: &Course, to: SocketAddr) -> Result<(), String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| format!("connect {to}: {error}"))?;
    let from = stream.local_addr().map_err(|error| error.to_string())?;
    let said = |what: &'static str| move |error: std::io::Error| format!("from {from} {what} {to}: {error}");
    stream.set_read_timeout(Some(PATIENCE)).map_err(said("set up"))?;
    let (mut pattern, end) = (Pattern::new(u64::from(to.port())), Instant::now() + Duration::from_secs(30));
    let (mut sent, mut got) = (vec![0; 32 * 1024], vec![0; 32 * 1024]);
    while Instant::now() < end && !course.over.load(Ordering::Relaxed) {
        pattern.fill(&mut sent);
        stream.write_all(&sent).map_err(said("write to"))?;
        stream.read_exact(&mut got).map_err(said("read from"))?;
        if sent != got {
            return Err(format!("the stream of {to} came back changed"));
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// One question and answer on a connection of its own.
fn short(to: SocketAddr) -> Result<(), String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| format!("{to}: {error}"))?;
    let from = stream.local_addr().map_err(|error| error.to_string())?;
    let said = |error: std::io::Error| format!("{from} to {to}: {error}");
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    stream.write_all(b"a question").map_err(said)?;
    stream.shutdown(std::net::Shutdown::Write).map_err(said)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(said)?;
    if answer == b"a question" { Ok(()) } else { Err(format!("{to} answered {answer:?}")) }
}

/// A datagram there and back; a lost one is asked again, as programs do.
fn datagram(socket: &UdpSocket, to: SocketAddr, sent: &[u8]) -> Result<Vec<u8>, String> {
    let mut got = [0; 2048];
    socket.set_read_timeout(Some(Duration::from_secs(3))).map_err(|e| e.to_string())?;
    for _ in 0..4 {
        socket.send_to(sent, to).map_err(|e| format!("{to}: {e}"))?;
        // An answer that was late belongs to an earlier question: its first two bytes say so.
        while let Ok((n, _)) = socket.recv_from(&mut got) {
            if got[..2] == sent[..2] {
                return Ok(got[..n].to_vec());
            }
        }
    }
    Err(format!("{to} does not answer"))
}

/// Asks for the address (type A) or text (type TXT) of a name.
fn question(to: SocketAddr, id: u16, name: &str, kind: u16) -> Result<(), String> {
    let socket = UdpSocket::bind(any(to)).map_err(|e| e.to_string())?;
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a short label"));
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    let answer = datagram(&socket, to, &query)?;
    let (rcode, answers) = (answer[3] & 0xf, u16::from_be_bytes([answer[6], answer[7]]));
    if (rcode, answers) == (0, 1) { Ok(()) } else { Err(format!("{name}: code {rcode}, {answers} answers")) }
}

/// Everything that carries bytes.
fn traffic(course: &Arc<Course>, w: &World, guests: &[&Guest]) -> Vec<JoinHandle<()>> {
    let [site, app, alone] = guests else { panic!("three sandboxes") };
    let ms = Duration::from_millis;
    for guest in guests {
        echo_tcp(&guest.ns, at([0; 4], 7000));
        echo_udp(&guest.ns, at([0; 4], 7000));
    }
    for addr in [at(INET4, 7000), at(INET6, 7000)] {
        echo_tcp(&w.internet, addr);
        echo_udp(&w.internet, addr);
    }
    // Says nothing for longer than a shutdown takes: half-closed flows.
    serve(listen(&w.internet, at(INET4, 7001)), move |mut stream, _| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        sleep(ms(300));
        let _ = stream.write_all(&all);
    });
    let member4 = at(address_of(site, "eth0"), 7000);
    let mut threads = Vec::new();
    for (guest, to) in [
        (&site.ns, at(INET4, 7000)),
        (&app.ns, at(INET6, 7000)),
        (&app.ns, member4),
        (&alone.ns, at(INET4, 7000)),
        (&w.internet, at(HOST4, 8000)),
    ] {
        threads.push(repeat(course, guest, "a stream", ms(10), move |course| stream(course, to)));
    }
    for (guest, to, pause) in [
        (&site.ns, at(INET4, 7000), 50),
        (&app.ns, at(INET4, 7001), 200),
        (&app.ns, member4, 200),
        (&alone.ns, at(INET6, 7000), 50),
        (&w.internet, at(HOST4, 8000), 50),
        (&w.internet, at(HOST4, 8001), 50),
    ] {
        threads.push(repeat(course, guest, "a short connection", ms(pause), move |_| short(to)));
    }
    for guest in [&site.ns, &alone.ns] {
        threads.push(repeat(course, guest, "nobody there", ms(250), move |_| match short(at(INET4, 7009)) {
            Err(why) if why.contains("refused") => Ok(()),
            other => Err(format!("{other:?}")),
        }));
    }
    for (guest, to) in
        [(&site.ns, at(INET4, 7000)), (&alone.ns, at(INET6, 7000)), (&w.internet, at(HOST4, 8000)), (&app.ns, member4)]
    {
        let socket = udp(guest, any(to));
        let mut number = 0u16;
        threads.push(repeat(course, guest, "datagrams", ms(25), move |_| {
            number = number.wrapping_add(1);
            let sent = [&number.to_be_bytes()[..], &[7; 998]].concat();
            (datagram(&socket, to, &sent)? == sent).then_some(()).ok_or_else(|| "changed".into())
        }));
    }
    // Sockets that are used once: to port 53 their mappings live for 30 s.
    for guest in [&app.ns, &alone.ns] {
        let mut id = 0u16;
        threads.push(repeat(course, guest, "a name server of the world", ms(1000), move |_| {
            id = id.wrapping_add(1);
            question(at(INET4, 53), id, "who.test", 16)
        }));
    }
    for (guest, own, dns) in [(&app.ns, "site", at([127, 0, 0, 11], 53)), (&alone.ns, "db.soak", at([10, 0, 2, 3], 53))]
    {
        let mut id = 0u16;
        threads.push(repeat(course, guest, "names", ms(50), move |_| {
            id = id.wrapping_add(1);
            question(dns, id, own, 1)?;
            question(dns, id, &format!("n{}.test", id % 500), 16)
        }));
    }
    threads
}

/// One round of changes: each is made, seen to hold, and unmade.
fn turn(course: &Course, w: &World, turn: u64) {
    let say = |words: &[&str]| {
        *course.step.lock().unwrap() = words.join(" ");
        w.tapway(words).limit(30).ok()
    };
    let capture = w.path("soak.pcapng");
    let capture = capture.to_str().expect("a plain path");
    for name in ["site", "alone"] {
        say(&["publish", name, "127.0.0.1:9000-9003:7000-7003", "127.0.0.1:9000:7000/udp"]);
        short(at([127, 0, 0, 1], 9000)).unwrap_or_else(|why| panic!("{name}'s port: {why}"));
        say(&["unpublish", name, "127.0.0.1:9000-9003:7000-7003", "127.0.0.1:9000:7000/udp"]);
        assert!(TcpStream::connect(at([127, 0, 0, 1], 9000)).is_err(), "{name}'s port stays open");
        let running = w.tapway(&["capture", name, capture, "--snap", "96"]).spawn();
        say(&["fault", "set", name, "--latency", "2ms", "--loss", "0.2%", "--to", "198.51.100.0/24"]);
        say(&["dns", name, "add", &format!("x{turn}.soak"), "A", "192.0.2.7"]);
        say(&["hosts", name, "add", &format!("h{turn}.soak"), "192.0.2.8"]);
        say(&["flows", name]);
        say(&["stats", name, "--metrics"]);
        let watcher = w.tapway(&["events", name, "--json", "-n", "20"]).spawn();
        watcher.end(Duration::from_secs(30));
        say(&["hosts", name, "rm", &format!("h{turn}.soak")]);
        say(&["dns", name, "rm", &format!("x{turn}.soak")]);
        say(&["fault", "clear", name]);
        w.host.sh(&format!("kill -INT {}", running.pid()));
        let captured = running.end(Duration::from_secs(10));
        assert!(captured.code == 0, "capture: {}", captured.stderr);
    }
    // A member comes and goes, and another network of one that stays.
    let seen = w.tapway_run_on("soak", &["--name", "visitor"], &["busybox", "nslookup", "site"]).ok();
    assert!(seen.contains("172.18.0."), "{seen}");
    say(&["network", "connect", "beside", "app"]);
    say(&["network", "disconnect", "beside", "app"]);
}

/// What is watched.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Resident memory and page tables, KiB.
    memory: usize,
    /// Open descriptors.
    descriptors: usize,
}

/// KCMP_FILE, linux/kcmp.h.
const KCMP_FILE: libc::c_int = 0;

/// Whether a process has this descriptor open.
#[allow(unsafe_code, reason = "kcmp(2) has no safe wrapper; /proc/PID/fd of a process that hides is closed")]
pub fn is_open(pid: i32, fd: usize) -> bool {
    // SAFETY: no pointer is passed.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, fd, fd) == 0 }
}

fn sample(pid: i32) -> Sample {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_else(|e| panic!("{pid} is gone: {e}"));
    let number = |name: &str| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let descriptors = (0..number("FDSize:")).filter(|&fd| is_open(pid, fd)).count();
    Sample { memory: number("VmRSS:") + number("VmPTE:"), descriptors }
}

fn flows(w: &World, sandbox: &str) -> usize {
    let text = w.tapway(&["stats", sandbox, "--json"]).ok();
    let stats: Value = serde_json::from_str(&text).unwrap();
    let count = |name: &str| stats["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {text}"));
    ["tcp_flows", "udp_mappings", "udp_clients", "echo_sessions"].iter().map(|name| count(name) as usize).sum()
}

fn median(mut all: Vec<usize>) -> usize {
    all.sort_unstable();
    all[all.len() / 2]
}

#[test]
#[allow(clippy::cast_precision_loss, reason = "kibibytes of a process")]
#[ignore = "takes minutes: .ci/run and .ci/nightly have it as a step of its own"]
fn an_hour_of_everything() {
    World::run_for(u32::try_from(minutes()).unwrap() * 60 + 180, |w| {
        create(w, &["--ipv6", "soak"]);
        create(w, &["beside"]);
        dns_server(&w.internet, at(INET4, 53), "outside");
        let site = member(w, "soak", "site", &["-p", "8000:7000", "-p", "8000:7000/udp"]);
        let app = member(w, "soak", "app", &[]);
        let alone = w.guest(&["--name", "alone", "-p", "8001:7000", "--add-host", "db.soak:192.0.2.1"]);
        let shared = processes();
        assert_eq!(shared.len(), 1);
        let watched = [
            ("process of the shared network", shared[0]),
            ("process of a private network", {
                let info: Value = serde_json::from_str(&w.tapway(&["info", "alone", "--json"]).ok()).unwrap();
                i32::try_from(info["network_pid"].as_i64().unwrap()).unwrap()
            }),
            ("monitor of site", site.monitor.pid()),
            ("monitor of app", app.monitor.pid()),
            ("monitor of alone", alone.monitor.pid()),
        ];
        let course = Arc::new(Course::default());
        // Headers of everything, where the cause of a failure is sought.
        let _traced = std::env::var("TAPWAY_TEST_SOAK_TRACE").ok().map(|to| {
            [(&w.internet, "internet"), (&site.ns, "site"), (&app.ns, "app"), (&alone.ns, "alone")].map(|(ns, name)| {
                let file = format!("{to}/{name}.pcap");
                ns.cmd(&["tcpdump", "-Z", "root", "-ni", "any", "-s", "100", "-B", "65536", "-w", &file, "tcp"]).spawn()
            })
        });
        let mut threads = traffic(&course, w, &[&site, &app, &alone]);
        let begun = Instant::now();
        let minute = || begun.elapsed().as_secs() / 60;
        let mut taken: BTreeMap<u64, BTreeMap<(&str, &str), Vec<usize>>> = BTreeMap::new();
        let (mut turns, mut printed) = (0, 0);
        while minute() < minutes() {
            turn(&course, w, turns);
            turns += 1;
            // Between two turns nothing of theirs is in what is counted.
            for _ in 0..4 {
                sleep(Duration::from_millis(1500));
                let now = taken.entry(minute()).or_default();
                for (name, pid) in watched {
                    let Sample { memory, descriptors } = sample(pid);
                    now.entry((name, "memory")).or_default().push(memory);
                    now.entry((name, "descriptors")).or_default().push(descriptors);
                }
                for name in ["site", "app", "alone"] {
                    now.entry((name, "flows")).or_default().push(flows(w, name));
                }
            }
            if minute() > printed {
                let text: Vec<String> = taken[&printed]
                    .iter()
                    .map(|((name, what), all)| format!("{name} {what} {}", median(all.clone())))
                    .collect();
                eprintln!("minute {}: {}", printed + 1, text.join(", "));
                printed = minute();
            }
            course.check();
        }
        course.over.store(true, Ordering::Relaxed);
        threads.drain(..).for_each(|thread| thread.join().unwrap());
        course.check();
        eprintln!("failed: {:#?}", course.failures.lock().unwrap());
        let (early, late) = (if minutes() < 20 { 1 } else { 9 }, minutes() - 1);
        eprintln!(
            "{} exchanges and {turns} turns of changes in {} minutes",
            course.done.load(Ordering::Relaxed),
            late + 1
        );
        let mut grown = Vec::new();
        for (&(name, what), all) in &taken[&late] {
            let (before, after) = (median(taken[&early][&(name, what)].clone()), median(all.clone()));
            let more = after as f64 / before as f64 - 1.0;
            eprintln!("{name}, {what}: {before} in minute {}, {after} in the last ({:+.1} %)", early + 1, more * 100.0);
            // Five per cent of a handful is less than one.
            if more > TOLERANCE && after - before > 2 {
                grown.push((name, what, before, after));
            }
        }
        assert!(grown.is_empty(), "grown by more than 5 %: {grown:?}");
    });
}
