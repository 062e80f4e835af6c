//! One member means harm: the others keep their rate, the host its own connections, and memory its bound.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::attacker::{Attack, Attacker};
use super::{Member, Network, config, v4, wish};
use crate::spaces::long;
use crate::tools::{at, connect, listen, serve};
use crate::world::{INET4, World};

/// The attacker's number.
const ATTACKER: u8 = 4;

/// A stream from one member to another that never ends, and what of it has come.
struct Stream {
    came: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    sender: TcpStream,
}

impl Stream {
    fn begin(from: &Member, to: &Member) -> Self {
        let (came, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let taken = came.clone();
        serve(listen(&to.ns, at(v4(to.number), 7400)), move |mut stream: TcpStream, _| {
            let mut room = vec![0; 256 * 1024];
            while let Ok(got) = stream.read(&mut room) {
                if got == 0 {
                    break;
                }
                taken.fetch_add(got as u64, Ordering::Relaxed);
            }
        });
        let sender = connect(&from.ns, at(v4(to.number), 7400)).unwrap();
        let mut writer = sender.try_clone().unwrap();
        let ends = over.clone();
        thread::spawn(move || {
            let block = vec![5; 128 * 1024];
            while !ends.load(Ordering::Relaxed) && writer.write_all(&block).is_ok() {}
        });
        Self { came, over, sender }
    }

    /// Mbit/s over the next span.
    fn rate(&self, span: Duration) -> f64 {
        let (before, begun) = (self.came.load(Ordering::Relaxed), Instant::now());
        thread::sleep(span);
        let came = self.came.load(Ordering::Relaxed) - before;
        came as f64 * 8.0 / 1e6 / begun.elapsed().as_secs_f64()
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
    let mut stream = connect(&w.host, at(INET4, 7000)).expect("the host's own connection");
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
    serve(listen(&w.internet, at(INET4, 7000)), |mut stream: TcpStream, _| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    name_server(w);
}

fn attack(w: &World, network: &Network, members: &[Member], which: Attack, rounds: usize) -> (f64, String) {
    let span = Duration::from_millis(if long() { 1000 } else { 350 });
    let attacker = Attacker::new(&members[2], which);
    let stream = Stream::begin(&members[0], &members[1]);
    thread::sleep(Duration::from_millis(150));
    let pid = network.pid();
    let (mut ratios, mut most, mut host, mut calm) = (Vec::new(), [0.0_f64; 2], 0.0_f64, Vec::new());
    for _ in 0..rounds {
        let mut rates = [0.0; 2];
        for on in [false, true] {
            attacker.set(on);
            thread::sleep(Duration::from_millis(50));
            rates[usize::from(on)] = stream.rate(span);
        }
        ratios.push(rates[1] / rates[0]);
        calm.push(rates[0]);
        most = [most[0].max(resident(pid)), most[1].max(kernel(w))];
        if which != Attack::Burn {
            host = host.max(hosts_own(w));
        }
    }
    attacker.set(false);
    let counted: Vec<String> =
        which.counted().iter().map(|reason| format!("{reason} {}", network.drops(&members[2], reason))).collect();
    let sent = attacker.sent.load(Ordering::Relaxed);
    let ratio = median(ratios.clone());
    let line = format!(
        "{which:?}: {ratio:.2} of {:.0} Mbit/s (each {:.2?}), process {:.0} MiB, kernel {:.1} MiB, host {host:.0} ms, \
         {sent} frames sent, {}",
        median(calm),
        ratios,
        most[0],
        most[1],
        counted.join(", ")
    );
    eprintln!("{line}");
    for (reason, text) in which.counted().iter().zip(&counted) {
        assert!(network.drops(&members[2], reason) > 0, "{text}: not counted as such");
    }
    // Half-open connections hold small rings that nothing has touched, fragments 4 MiB.
    assert!(most[0] < 128.0 && most[1] < 64.0, "{line}");
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
        let rounds = if long() { 7 } else { 3 };
        let only = std::env::var("TAPWAY_TEST_ATTACK").ok();
        let chosen = Attack::ALL.into_iter().filter(|which| only.as_ref().is_none_or(|one| *one == format!("{which:?}")));
        let mut lines = Vec::new();
        let mut burn = 1.0_f64;
        for which in chosen {
            let (mut ratio, mut line) = attack(w, &network, &members, which, rounds);
            if which == Attack::Burn {
                burn = ratio.min(1.0);
                continue;
            }
            // A machine that others use: once more before it is believed.
            if ratio < 0.8 * burn {
                (ratio, line) = attack(w, &network, &members, which, 2 * rounds);
            }
            lines.push((ratio, line));
        }
        drop(joined);
        let low: Vec<&String> = lines.iter().filter(|(ratio, _)| *ratio < 0.8 * burn).map(|(_, line)| line).collect();
        assert!(low.is_empty(), "a program that only burns leaves {burn:.2}; below 0.8 of that:\n{low:#?}");
    });
}

/// Connections of one guest that stand still.
const HOARD: usize = 300;

#[test]
fn hoards_of_both_directions_are_bounded_and_others_go_on() {
    World::run(|w| {
        let many = if long() { 3000 } else { HOARD };
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
            [2, 3, ATTACKER].into_iter().map(|n| network.join(n, &wish(&[&format!("m{n}")]))).collect();
        let pid = network.pid();
        let begin = resident(pid);
        let stream = Stream::begin(&members[0], &members[1]);
        thread::sleep(Duration::from_millis(200));
        let calm = stream.rate(Duration::from_millis(500));
        let mut hoard = Vec::new();
        let mut most = [0.0_f64; 2];
        for n in 0..many {
            // Every other one has the guest not read, the rest the host.
            let stops = n % 2 == 0;
            let Ok(stream) = connect(&members[2].ns, at(INET4, if stops { 7001 } else { 7002 })) else { continue };
            stream.set_nonblocking(true).unwrap();
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
        let beside = stream.rate(Duration::from_millis(500));
        let host = hosts_own(w);
        let ended = network.drops(&members[2], "memory");
        eprintln!(
            "hoard of {}: process {begin:.0} to {:.0} MiB, kernel {:.0} MiB, {ended} had to end; {:.2} of {calm:.0} Mbit/s, \
             host {host:.0} ms",
            hoard.len(),
            most[0],
            most[1],
            beside / calm
        );
        // `TcpLimits::held` is of both together; what comes between two looks at the kernel's part is beyond it.
        assert!(most[0] - begin + most[1] < 512.0 + 128.0, "{most:?} MiB");
        assert!(hoard.len() == many || ended > 0);
        assert!(members[0].ns.run(|| stream.rate(Duration::from_millis(200))) > 0.0);
        let _ = IpAddr::V4(INET4);
    });
}
