//! One member means harm: the others keep their rate, the host its own connections, and memory its bound.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::attacker::{Attack, Attacker};
use super::{GATEWAY6, Member, Network, config, v4, v6, wish};
use crate::spaces::{long, wait_for};
use crate::tools::{at, connect, listen, serve};
use crate::world::{INET4, World};

/// The attacker's number.
const ATTACKER: u8 = 4;

/// Bits that a paced stream writes at a time.
const BLOCK_BITS: f64 = 8.0 * 16.0 * 1024.0;

/// A stream from one member to another that never ends, and what of it has come.
struct Stream {
    came: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    sender: TcpStream,
}

impl Stream {
    /// `pace`: Mbit/s that it wants; as fast as it goes without.
    fn begin(from: &Member, to: &Member, port: u16, pace: Option<f64>) -> Self {
        let (came, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let taken = came.clone();
        serve(listen(&to.ns, at(v4(to.number), port)), move |mut stream: TcpStream, _| {
            let mut room = vec![0; 256 * 1024];
            while let Ok(got) = stream.read(&mut room) {
                if got == 0 {
                    break;
                }
                taken.fetch_add(got as u64, Ordering::Relaxed);
            }
        });
        let sender = connect(&from.ns, at(v4(to.number), port)).unwrap();
        let mut writer = sender.try_clone().unwrap();
        let ends = over.clone();
        thread::spawn(move || {
            let block = vec![5; if pace.is_some() { 16 * 1024 } else { 128 * 1024 }];
            let mut next = Instant::now();
            while !ends.load(Ordering::Relaxed) && writer.write_all(&block).is_ok() {
                if let Some(pace) = pace {
                    next += Duration::from_secs_f64(BLOCK_BITS / 1e6 / pace);
                    // What it could not send is not made good.
                    let now = Instant::now();
                    next = next.max(now.checked_sub(Duration::from_millis(10)).unwrap_or(now));
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }
        });
        Self { came, over, sender }
    }

    /// Mbit/s over the next span.
    fn rate(&self, span: Duration) -> f64 {
        let (before, begun) = (self.came.load(Ordering::Relaxed), Instant::now());
        thread::sleep(span);
        let came = self.came.load(Ordering::Relaxed) - before;
        f64::from(u32::try_from(came / 1000).unwrap()) * 8.0 / 1e3 / begun.elapsed().as_secs_f64()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.sender.shutdown(std::net::Shutdown::Both);
    }
}

/// MiB of a process with its page tables.
fn resident(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name: &str| -> f64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    };
    (kib("VmRSS:") + kib("VmPTE:")) / 1024.0
}

/// MiB that the sockets of the host's namespace hold in the kernel, which are the network's: `skmem` of ss(8).
fn kernel(w: &World) -> f64 {
    let text = w.host.cmd(&["ss", "-Htunam"]).ok();
    let mut bytes = 0.0;
    for part in text.split("skmem:(").skip(1) {
        let inside = part.split(')').next().unwrap_or_default();
        // Queued for reading, allocated ahead, queued for sending, backlog.
        for field in inside.split(',') {
            let held = field.strip_prefix('r').or(field.strip_prefix('f')).or(field.strip_prefix('w'));
            let number = held.or(field.strip_prefix("bl")).and_then(|n| n.parse::<f64>().ok());
            bytes += number.unwrap_or(0.0);
        }
    }
    bytes / f64::from(1 << 20)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The host's own question and connection, milliseconds for both.
fn hosts_own(w: &World) -> f64 {
    let begun = Instant::now();
    let answered = w.host.cmd(&["dig", "+short", "+tries=3", "+time=2", "@198.51.100.2", "-p", "5354", "x"]).ok();
    assert_eq!(answered.trim(), "192.0.2.9");
    let mut stream = connect(&w.host, at(INET4, 7003)).expect("the host's own connection");
    stream.write_all(b"x").unwrap();
    begun.elapsed().as_secs_f64() * 1e3
}

/// A name server on the Internet that knows one thing.
fn name_server(w: &World) {
    let socket = crate::tools::udp(&w.internet, at(INET4, 5354));
    thread::spawn(move || {
        let mut buf = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut buf) {
            let end = 12 + buf[12..len].iter().position(|&b| b == 0).unwrap_or(0) + 5;
            let mut answer = buf[..end].to_vec();
            (answer[2], answer[3]) = (0x81, 0x80);
            answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 9]);
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// What the attackers aim at: a server that reads and says nothing, and a net that nobody answers from.
fn targets(w: &World) {
    w.router.sh("ip route add blackhole 192.0.2.0/24");
    // One is attacked, the other is for the host's own connections.
    for port in [7000, 7003] {
        serve(listen(&w.internet, at(INET4, port)), |mut stream: TcpStream, _| {
            let _ = stream.read_to_end(&mut Vec::new());
        });
    }
    name_server(w);
}

/// Where the next stream goes.
static PORT: AtomicU16 = AtomicU16::new(7400);

/// One attack beside a stream, on and off in turns: what is left of its rate, and a line that says all.
fn attack(
    w: &World,
    (network, members): (&Network, &[Member]),
    pace: Option<f64>,
    which: Attack,
    rounds: usize,
) -> (f64, String) {
    let span = Duration::from_millis(if long() { 300 } else { 80 });
    let attacked_from = &members[2];
    let attacker = Attacker::new(attacked_from, which);
    let stream = Stream::begin(&members[0], &members[1], PORT.fetch_add(1, Ordering::Relaxed), pace);
    thread::sleep(Duration::from_millis(100));
    // They know each other's MACs, which an advertisement may replace.
    members[0].ns.sh(&format!("ping -c1 -W2 {GATEWAY6}; ping -c1 -W2 {}", v6(members[1].number)));
    let pid = network.pid();
    let (mut rates, mut most) = ([Vec::new(), Vec::new()], [0.0_f64; 2]);
    for _ in 0..rounds {
        for on in [false, true] {
            attacker.set(on);
            thread::sleep(Duration::from_millis(20));
            rates[usize::from(on)].push(stream.rate(span));
        }
        most[0] = most[0].max(resident(pid));
    }
    // It goes on meanwhile.
    most[1] = kernel(w);
    let host = hosts_own(w);
    attacker.set(false);
    // What the members believe of each other: nobody is where the attacker is.
    for victim in &members[..2] {
        let believed = victim.ns.sh("ip neigh; ip -6 route show default");
        let (mac, router) = (format!("02:42:ac:12:00:{ATTACKER:02x}"), format!("via fe80::{ATTACKER:x} "));
        let own = [v4(ATTACKER).to_string(), v6(ATTACKER).to_string(), format!("fe80::42:acff:fe12:{ATTACKER:x} ")];
        for line in believed.lines().filter(|line| line.contains(&mac) || line.contains(&router)) {
            assert!(own.iter().any(|own| line.starts_with(&format!("{} ", own.trim()))), "{which:?}: {line}");
        }
    }
    let counted: Vec<String> =
        which.counted().iter().map(|reason| format!("{reason} {}", network.drops(attacked_from, reason))).collect();
    let sent = attacker.sent.load(Ordering::Relaxed);
    let [calm, beside] = rates.map(median);
    let ratio = beside / calm;
    let line = format!(
        "{which:?}{}: {ratio:.2} of {calm:.0} Mbit/s, process {:.0} MiB, kernel {:.1} MiB, host {host:.0} ms, {sent} frames \
         sent, {}",
        if pace.is_none() { " (as fast as it goes)" } else { "" },
        most[0],
        most[1],
        counted.join(", ")
    );
    eprintln!("{line}");
    for (reason, text) in which.counted().iter().zip(&counted) {
        assert!(network.drops(attacked_from, reason) > 0, "{text}: not counted as such");
    }
    // Half-open connections hold small rings that nothing has touched, fragments 4 MiB.
    assert!(most[0] < 256.0 && most[1] < 64.0, "{line}");
    (ratio, line)
}

#[test]
fn members_keep_their_rate_beside_one_that_means_harm() {
    World::run(|w| {
        targets(w);
        let network = Network::start(w, config(1500));
        let count = if long() { 50 } else { 8 };
        let members: Vec<Member> = [2, 3, ATTACKER]
            .into_iter()
            .chain(5..3 + count - 1)
            .map(|number| network.join(number, &wish(&[&format!("m{number}")])))
            .collect();
        // All have joined the group that is flooded.
        let joined: Vec<UdpSocket> = members
            .iter()
            .map(|member| {
                member.ns.run(|| {
                    let socket = UdpSocket::bind("0.0.0.0:6000").unwrap();
                    socket.join_multicast_v4(&Ipv4Addr::new(239, 7, 7, 7), &v4(member.number)).unwrap();
                    socket
                })
            })
            .collect();
        let rounds = if long() { 15 } else { 5 };
        let only = std::env::var("TAPWAY_TEST_ATTACK").ok();
        let chosen =
            Attack::ALL.into_iter().filter(|which| only.as_ref().is_none_or(|one| *one == format!("{which:?}")));
        let mut lines = Vec::new();
        for which in chosen {
            let (mut ratio, mut line) = attack(w, (&network, &members), PACE, which, rounds);
            // A machine that others use: twice more before it is believed.
            for _ in 0..2 {
                if ratio < 0.8 {
                    (ratio, line) = attack(w, (&network, &members), PACE, which, 2 * rounds);
                }
            }
            lines.push((ratio, line));
            if long() {
                // As fast as it goes, where every cycle that anybody takes is one less: to be read beside what `Burn` leaves.
                attack(w, (&network, &members), None, which, rounds);
            }
        }
        drop(joined);
        let low: Vec<&String> = lines.iter().filter(|(ratio, _)| *ratio < 0.8).map(|(_, line)| line).collect();
        assert!(low.is_empty(), "less than 0.8 of their rate is left:\n{low:#?}");
    });
}

/// What the members that behave want of each other, Mbit/s: they get it as long as nobody takes it from them.
const PACE: Option<f64> = Some(400.0);

/// Its end is a reset that throws away what was not sent. Else what is left of a test would keep the machine's memory of TCP for minutes: a
/// namespace that is gone answers nobody.
fn ends_at_once(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Connections of one guest that stand still.
const HOARD: usize = 400;

#[test]
fn hoards_of_both_directions_are_bounded_and_others_go_on() {
    World::run(|w| {
        let hoarders = if long() { 3 } else { 1 };
        let many = HOARD * hoarders;
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
            .and_then(|(_, most)| {
                nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most)
            })
            .unwrap();
        targets(w);
        // One that never stops sending, and one that never reads.
        for port in [7001, 7002] {
            let listener = listen(&w.internet, at(INET4, port));
            thread::spawn(move || {
                let block = vec![3; 256 * 1024];
                let mut kept = Vec::new();
                for stream in listener.incoming().flatten() {
                    stream.set_nonblocking(true).unwrap();
                    ends_at_once(&stream);
                    kept.push(stream);
                    if port == 7001 {
                        for stream in &mut kept {
                            while stream.write(&block).is_ok() {}
                        }
                    }
                }
            });
        }
        let network = Network::start(w, config(1500));
        let members: Vec<Member> =
            (2..4 + hoarders as u8).map(|n| network.join(n, &wish(&[&format!("m{n}")]))).collect();
        let pid = network.pid();
        let begin = resident(pid);
        let stream = Stream::begin(&members[0], &members[1], 7399, PACE);
        thread::sleep(Duration::from_millis(200));
        let calm = stream.rate(Duration::from_millis(500));
        let mut hoard = Vec::new();
        let mut most = [0.0_f64; 2];
        for n in 0..many {
            // Every other one has the guest not read, the rest the host.
            let stops = n / hoarders % 2 == 0;
            let Ok(stream) = connect(&members[2 + n % hoarders].ns, at(INET4, if stops { 7001 } else { 7002 })) else {
                continue;
            };
            stream.set_nonblocking(true).unwrap();
            ends_at_once(&stream);
            if !stops {
                let block = vec![4; 64 * 1024];
                let _ = (0..40).try_for_each(|_| (&stream).write(&block).map(drop));
            }
            hoard.push(stream);
            if n % 100 == 99 {
                most = [most[0].max(resident(pid)), most[1].max(kernel(w))];
            }
        }
        thread::sleep(Duration::from_millis(1500));
        most = [most[0].max(resident(pid)), most[1].max(kernel(w))];
        // A machine that others use: the best of a few.
        let beside = (0..5).map(|_| stream.rate(Duration::from_millis(300))).fold(0.0, f64::max);
        let host = hosts_own(w);
        let ended: u64 = members[2..].iter().map(|member| network.drops(member, "memory")).sum();
        eprintln!(
            "hoard of {}: process {begin:.0} to {:.0} MiB, kernel {:.0} MiB, {ended} had to end; {:.2} of {calm:.0} Mbit/s, \
             host {host:.0} ms",
            hoard.len(),
            most[0],
            most[1],
            beside / calm
        );
        // `TcpLimits::held` is of both together; what comes between two looks at the kernel's part is beyond it.
        // All of it in the kernel, which counts fourfold.
        let bound = if long() { 1024.0 } else { 512.0 };
        assert!(most[1] < bound / 4.0 + 64.0 && most[0] - begin + most[1] < bound + 64.0, "{most:?} MiB");
        assert!(ended > 0 && most[1] > bound / 8.0, "it was no hoard: {most:?} MiB");
        assert!(beside > 0.8 * calm, "{beside:.0} of {calm:.0} Mbit/s");
    });
}

/// Whether the connection still stands: one that was ended here reads as reset, one that stands has nothing to read.
fn stands(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn of_what_all_may_have_together_who_has_most_gives() {
    World::run(|w| {
        targets(w);
        // A quarter is kept, and of the rest a quarter is for datagrams: 576 flows and 192 sockets of UDP for all.
        let network = Network::start_within(w, config(1500), Some(1024));
        let [greedy, modest] = [2, 3].map(|n| network.join(n, &wish(&[&format!("m{n}")])));
        let open = |member: &Member, count: usize| -> Vec<TcpStream> {
            (0..count).map(|_| connect(&member.ns, at(INET4, 7000)).expect("a connection")).collect()
        };
        let few = open(&modest, 50);
        let many = open(&greedy, 500);
        assert!(few.iter().chain(&many).all(stands), "all fit");
        let more = open(&modest, 100);
        wait_for("the greedy one to give", Duration::from_secs(10), || {
            many.iter().filter(|one| !stands(one)).count() >= 74
        });
        // Its oldest, and no more than there are too many; whoever has less than another keeps all.
        assert!(few.iter().chain(&more).all(stands), "the modest one's");
        let gone: Vec<usize> = (0..many.len()).filter(|&at| !stands(&many[at])).collect();
        assert!(gone.len() < 120, "{gone:?}");
        assert!(many[400..].iter().all(stands), "not its newest: {gone:?}");
        let counted = network.drops(&greedy, "table_full");
        assert!(counted >= 74 && network.drops(&modest, "table_full") == 0, "{counted} are counted");
        // The same of datagrams: each of these is a socket.
        let ask = |member: &Member, count: usize| {
            for _ in 0..count {
                let socket = crate::tools::udp(&member.ns, at([0; 4], 0));
                member.ns.run(|| socket.send_to(b"x", at(INET4, 7200))).unwrap();
            }
        };
        let kept = crate::tools::udp(&modest.ns, at([0; 4], 0));
        modest.ns.run(|| kept.connect(at(INET4, 7200))).unwrap();
        crate::tools::tell_udp(&w.internet, at(INET4, 7200));
        let first = crate::tools::heard_udp(&kept);
        ask(&greedy, 400);
        ask(&modest, 20);
        assert_eq!(crate::tools::heard_udp(&kept), first, "the modest one's mapping went");
        assert!(network.pid() > 0);
    });
}
