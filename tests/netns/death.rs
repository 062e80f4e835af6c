//! kill -9 of every kind of process at seeded instants, while sandboxes come and go, names are asked for and streams run.
//!
//! ```text
//! stay ──┐                                  victim: of this round, with four streams under way (out and in, up and down),
//! anchor ─ live through all rounds          each again and again with another size and contents
//! ```
//!
//! A stream's ends are sockets of this very process in the sandbox's namespace, which nobody kills: so the end of a stream (FIN) before all of it
//! came can only be of tapway's making, and is a failure. (A program that is killed has its kernel end its streams in order, on any
//! machine.) After each round nothing may be left of the victim: processes, files, sockets, ports, mounts, its namespace; its
//! name and address are taken anew by the next.
//!
//! `TAPWAY_TEST_SEED=N` replays: instants, kinds, sizes and contents follow from it. `TAPWAY_TEST_ROUNDS=N` for another number.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::named::{create, member, processes};
use crate::tools::{Pattern, at, echo_tcp, listen};
use crate::world::{Guest, HOST4, INET4, Ns, Proc, World, long, pids};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// `tapway run` itself.
    Monitor,
    /// The network process of a sandbox with a network of its own.
    Own,
    /// That of a network of several.
    Shared,
    /// The command in the sandbox.
    Target,
    /// The sandbox's first process.
    Init,
    /// What started slirp4netns mode and holds its exit descriptor.
    Runtime,
    /// The process of slirp4netns mode.
    Helper,
}

const KINDS: [Kind; 7] =
    [Kind::Monitor, Kind::Own, Kind::Shared, Kind::Target, Kind::Init, Kind::Runtime, Kind::Helper];

impl Kind {
    /// The sandbox goes on.
    fn is_survived(self) -> bool {
        matches!(self, Self::Own | Self::Shared)
    }
}

/// A sequence that its seed determines.
struct Dice(Pattern);

impl Dice {
    fn new(seed: u64) -> Self {
        // Seeds that are close to each other begin alike.
        Self(Pattern::new(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
    }

    fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.word() >> 11) % n
    }

    /// From one byte to 16 MiB, each order of magnitude as often as the others.
    fn size(&mut self) -> u64 {
        let bits = self.below(25);
        (1 << bits) + self.below(1 << bits)
    }
}

/// What became of all streams.
#[derive(Default)]
struct Tally {
    verified: AtomicU64,
    whole: AtomicUsize,
    cut: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }
}

/// How one end of a stream saw it end.
#[derive(Debug)]
#[allow(dead_code, reason = "what is in it is printed")]
enum End {
    Whole,
    Cut(io::Error),
    /// Nothing for [`SILENCE`].
    Hung,
    /// In order, but not all of it.
    Short(u64),
    /// Other bytes.
    Wrong(u64),
}

/// How long nothing has to happen on a stream.
const SILENCE: Duration = Duration::from_secs(4);
/// How long recovering, and tidying up, may take.
const PATIENCE: Duration = Duration::from_secs(15);

fn broken(error: io::Error) -> End {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::Hung,
        _ => End::Cut(error),
    }
}

/// Receives a stream of this length and seed, and says that it is whole.
fn receive(mut stream: &TcpStream, seed: u64, total: u64, tally: &Tally) -> End {
    let mut pattern = Pattern::new(seed);
    let (mut got, mut want) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut sum = 0;
    loop {
        let (mut have, mut end) = (0, None);
        while have < got.len() && end.is_none() {
            match stream.read(&mut got[have..]) {
                Ok(0) => end = Some(End::Whole),
                Ok(n) => have += n,
                Err(error) => end = Some(broken(error)),
            }
        }
        pattern.fill(&mut want[..have]);
        if got[..have] != want[..have] {
            return End::Wrong(sum);
        }
        sum += have as u64;
        tally.verified.fetch_add(have as u64, Ordering::Relaxed);
        match end {
            None => {}
            Some(End::Whole) if sum != total => return if sum < total { End::Short(sum) } else { End::Wrong(sum) },
            Some(End::Whole) => return stream.write_all(b"!").map_or_else(broken, |()| End::Whole),
            Some(other) => return other,
        }
    }
}

/// Sends one, and waits until the other end has all of it.
fn send(mut stream: &TcpStream, seed: u64, total: u64) -> End {
    let mut byte = [0];
    let sent = crate::tools::send_pattern(stream, seed, usize::try_from(total).unwrap())
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        .and_then(|()| stream.read(&mut byte));
    match sent {
        Ok(1) => End::Whole,
        Ok(_) => End::Short(total),
        Err(error) => broken(error),
    }
}

/// The flows of one round.
struct Flows {
    tally: Arc<Tally>,
    kind: Kind,
    seed: u64,
    stop: Arc<AtomicBool>,
}

impl Flows {
    fn timed(&self, stream: &TcpStream, inside: bool) {
        // There is nobody any more who could tell those inside.
        let silence = if inside && !self.kind.is_survived() { SILENCE / 4 } else { SILENCE };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(silence)).unwrap();
        stream.set_write_timeout(Some(silence)).unwrap();
    }

    fn note(&self, who: &str, inside: bool, stream: TcpStream, end: End) {
        if !matches!(end, End::Whole) {
            // Its kernel would hold on to the namespace as long as it says goodbye to nobody.
            crate::tools::reset(stream);
        }
        match end {
            End::Whole => _ = self.tally.whole.fetch_add(1, Ordering::Relaxed),
            End::Cut(_) => _ = self.tally.cut.fetch_add(1, Ordering::Relaxed),
            End::Hung if inside && !self.kind.is_survived() => _ = self.tally.cut.fetch_add(1, Ordering::Relaxed),
            other => {
                self.tally.wrong(format!("{:?}, seed {}, {who}, inside: {inside}: {other:?}", self.kind, self.seed));
            }
        }
    }

    /// Accepts until told to stop: header (direction, seed, length), then the stream.
    fn serve(self: &Arc<Self>, ns: &Ns, port: u16, inside: bool) -> JoinHandle<()> {
        let listener = listen(ns, at([0; 4], port));
        listener.set_nonblocking(true).unwrap();
        let flows = Arc::clone(self);
        thread::spawn(move || {
            let mut served = Vec::new();
            while !flows.stop.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let flows = Arc::clone(&flows);
                served.push(thread::spawn(move || {
                    flows.timed(&stream, inside);
                    let mut header = [0; 17];
                    let read = read_all(&stream, &mut header);
                    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
                    let end = read.map_or_else(
                        |end| end,
                        |()| match header[0] {
                            b'u' => receive(&stream, word(1), word(9), &flows.tally),
                            _ => send(&stream, word(1), word(9)),
                        },
                    );
                    flows.note("server", inside, stream, end);
                }));
            }
            drop(listener);
            for one in served {
                one.join().unwrap();
            }
        })
    }

    /// Streams to `to`, one after the other, until told to stop or until one was cut.
    fn client(self: &Arc<Self>, ns: &Ns, to: SocketAddr, up: bool, inside: bool) -> JoinHandle<()> {
        let flows = Arc::clone(self);
        let mut dice = Dice::new(self.seed ^ u64::from(to.port()) << 32 ^ u64::from(up) << 48);
        ns.spawn(move || {
            while !flows.stop.load(Ordering::Relaxed) {
                let (seed, total) = (dice.word(), dice.size());
                // Refused, reset, or lost: not one that had begun.
                let Ok(stream) = TcpStream::connect_timeout(&to, SILENCE) else {
                    thread::sleep(Duration::from_millis(20));
                    continue;
                };
                flows.timed(&stream, inside);
                let mut header = [0; 17];
                header[0] = if up { b'u' } else { b'd' };
                header[1..9].copy_from_slice(&seed.to_le_bytes());
                header[9..].copy_from_slice(&total.to_le_bytes());
                let end = match (&stream).write_all(&header) {
                    Err(error) => broken(error),
                    Ok(()) if up => send(&stream, seed, total),
                    Ok(()) => receive(&stream, seed, total, &flows.tally),
                };
                flows.note(if up { "upload" } else { "download" }, inside, stream, end);
            }
        })
    }
}

fn read_all(mut stream: &TcpStream, bytes: &mut [u8]) -> Result<(), End> {
    let mut have = 0;
    while have < bytes.len() {
        match stream.read(&mut bytes[have..]) {
            Ok(0) => return Err(End::Short(have as u64)),
            Ok(n) => have += n,
            Err(error) => return Err(broken(error)),
        }
    }
    Ok(())
}

// ---- how long it takes to come back ----

/// Until `done`, in seconds.
fn until(since: Instant, what: &str, mut done: impl FnMut() -> bool) -> f64 {
    while !done() {
        assert!(since.elapsed() < PATIENCE, "{what} has not come back within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
    since.elapsed().as_secs_f64()
}

fn answers(server: SocketAddr) -> bool {
    // One question: localhost, A.
    let question = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01";
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut bytes = [0; 512];
    // The fourth byte's low half is the code of a failure.
    socket.send_to(question, server).is_ok()
        && socket.recv(&mut bytes).is_ok_and(|n| n > 12 && bytes[3].trailing_zeros() >= 4)
}

fn echoes(server: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&server, Duration::from_millis(250)) else { return false };
    stream.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
    stream.write_all(b"x").is_ok() && stream.read(&mut [0]).is_ok_and(|n| n == 1)
}

const ECHO: u16 = 4400;
const SERVED: u16 = 4300;
const MEASURED: [&str; 4] = ["DNS", "out", "in", "ping"];

/// What a guest can do again: names, out, in, ping.
fn recover(w: &World, guest: &Ns, dns: SocketAddr, published: u16, since: Instant) -> [f64; 4] {
    thread::scope(|scope| {
        let names = scope.spawn(|| guest.run(|| until(since, "DNS", || answers(dns))));
        let out = scope.spawn(|| guest.run(|| until(since, "a way out", || echoes(at(INET4, ECHO)))));
        let into = scope.spawn(|| w.internet.run(|| until(since, "a way in", || echoes(at(HOST4, published)))));
        let ping = scope.spawn(|| {
            let ping = guest.cmd(&["ping", "-n", "-c1", "-W0.25", &INET4.to_string()]);
            until(since, "ping", || ping.end().code == 0)
        });
        [names, out, into, ping].map(|one| one.join().unwrap())
    })
}

// ---- what is there ----

/// Everything of tapway's on the host, as text: what is too many is seen by a comparison.
fn remains(w: &World) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    let mut put = |what: String| *all.entry(what).or_default() += 1;
    for pid in w.tapway_pids() {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        put(format!("process {}", String::from_utf8_lossy(&words).replace('\0', " ")));
    }
    let files = w.host.sh("find /mnt/run /mnt/home ! -name deaths | sort");
    files.lines().for_each(|line| put(format!("file {line}")));
    w.host.sh("ss -Hltun | awk '{print $1, $5}'").lines().for_each(|line| put(format!("socket {line}")));
    w.host.sh("awk '{print $2, $3}' /proc/self/mounts").lines().for_each(|line| put(format!("mount {line}")));
    // One end of a cable to each victim: it goes with the namespace of the other.
    w.host.sh("ip -o link | awk '{print $2}'").lines().for_each(|line| put(format!("link {line}")));
    all
}

struct Victim {
    ns: Ns,
    dns: SocketAddr,
    to_kill: i32,
    run: Option<Guest>,
    runtime: Option<(Proc, i32)>,
}

/// The child of a monitor that leads a session of its own: the network process.
fn own_process(monitor: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).ok()?;
    children.split_ascii_whitespace().filter_map(|child| child.parse().ok()).find(|child| session(*child) == *child)
}

fn session(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(3)?.parse().ok()).unwrap_or(0)
}

/// What a container runtime does, as far as the helper can tell.
const RUNTIME: &str = r#"
import os, subprocess, sys, time
exit_r, exit_w = os.pipe()
ready_r, ready_w = os.pipe()
ns = subprocess.Popen(["unshare", "-Urn", "setpriv", "--pdeathsig", "KILL", "sleep", "1000000"])
while open("/proc/%d/comm" % ns.pid).read() != "sleep\n": time.sleep(0.01)
helper = subprocess.Popen([sys.argv[1], "slirp4netns", "-c", "--mtu=65520", "--exit-fd=%d" % exit_r, "--ready-fd=%d" % ready_w,
    "--api-socket=" + sys.argv[2], str(ns.pid), "tap0"], pass_fds=[exit_r, ready_w], stdout=subprocess.DEVNULL)
os.close(ready_w)
os.close(exit_r)
assert os.read(ready_r, 1) == b"1"
print(ns.pid, helper.pid, flush=True)
helper.wait()
"#;

fn start_runtime(w: &World, kind: Kind) -> Victim {
    let api: PathBuf = w.path("home/tapway-api");
    let argv = ["python3", "-c", RUNTIME, w.binary(), &api.display().to_string()];
    let mut proc = w.host.cmd(&argv).unprivileged().spawn();
    let mut line = String::new();
    let mut stdout = io::BufReader::new(proc.child.stdout.take().unwrap());
    io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    let pids: Vec<i32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [target, helper] = pids[..] else { panic!("the helper did not start: {line:?} {}", proc.stderr()) };
    for (host, guest) in [(8080, 7300), (8081, 7301)] {
        let mut conn = UnixStream::connect(&api).unwrap();
        let ask = format!(
            r#"{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_addr":"0.0.0.0","host_port":{host},"guest_addr":"10.0.2.100","guest_port":{guest}}}}}"#
        );
        conn.write_all(ask.as_bytes()).unwrap();
        conn.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        conn.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("return"), "{answer}");
    }
    let ns: Ns = std::fs::File::open(format!("/proc/{target}/ns/net")).unwrap().into();
    let to_kill = if kind == Kind::Runtime { proc.pid() } else { helper };
    Victim { ns, dns: at([10, 0, 2, 3], 53), to_kill, run: None, runtime: Some((proc, target)) }
}

fn start(w: &World, kind: Kind, dice: &mut Dice) -> Victim {
    let ports = ["-p", "8080:7300", "-p", "8081:7301"];
    if matches!(kind, Kind::Runtime | Kind::Helper) {
        return start_runtime(w, kind);
    }
    let shared = kind == Kind::Shared || kind != Kind::Own && dice.below(2) == 0;
    let guest = member(w, if shared { "web" } else { "private" }, "victim", &ports);
    if shared {
        // What the last one held is free.
        assert_eq!(crate::named::address_of(&guest, "eth0"), std::net::Ipv4Addr::new(172, 18, 0, 3));
    }
    let monitor = guest.monitor.pid();
    let to_kill = match kind {
        Kind::Monitor => monitor,
        Kind::Own => own_process(monitor).expect("a network process"),
        Kind::Shared => {
            let name = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            processes()
                .into_iter()
                .find(|pid| name(pid).split(|&b| b == 0).nth(2) == Some(b"web"))
                .expect("web's process")
        }
        Kind::Target => guest.pid,
        Kind::Init => {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", guest.pid)).unwrap();
            stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
        }
        Kind::Runtime | Kind::Helper => unreachable!(),
    };
    let dns = if shared { at([172, 18, 0, 1], 53) } else { at([10, 0, 2, 3], 53) };
    Victim { ns: guest.ns.clone(), dns, to_kill, run: Some(guest), runtime: None }
}

/// Sandboxes that come and go, and a sandbox that is connected to another network and taken off it; all of it must be done
/// whoever is killed.
fn churn(w: &World, stop: &AtomicBool, tally: &Tally, kind: Kind, dice: &mut Dice) -> usize {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        if dice.below(2) == 0 {
            let ended = w.tapway_run_on::<&str>("web", &[], &["true"]).end();
            if ended.code != 0 {
                tally.wrong(format!("{kind:?}: a sandbox that came and went: {} {}", ended.code, ended.stderr));
            }
        } else {
            let connected = w.tapway(&["network", "connect", "other", "stay"]).end();
            let taken_off = w.tapway(&["network", "disconnect", "other", "stay"]).end();
            if connected.code != 0 || taken_off.code != 0 {
                tally.wrong(format!("{kind:?}: connect: {} disconnect: {}", connected.stderr, taken_off.stderr));
            }
        }
        done += 1;
    }
    done
}

type Recovered = BTreeMap<Kind, Vec<[f64; 4]>>;

struct Play<'a> {
    w: &'a World,
    stay: &'a Guest,
    tally: Arc<Tally>,
    recovered: Recovered,
    gone: BTreeMap<Kind, Vec<f64>>,
    churned: usize,
    before: BTreeMap<String, usize>,
}

impl Play<'_> {
    fn round(&mut self, number: u64, seed: u64, kind: Kind) {
        let w = self.w;
        let mut dice = Dice::new(seed);
        let victim = start(w, kind, &mut dice);
        let inner = victim.run.as_ref().map_or_else(|| victim.runtime.as_ref().unwrap().1, |guest| guest.pid);
        w.host.sh(&format!("ip link add victim{number} type veth peer name cable netns {inner}"));
        let stop = Arc::new(AtomicBool::new(false));
        let flows = Arc::new(Flows { tally: Arc::clone(&self.tally), kind, seed, stop: Arc::clone(&stop) });
        let mut threads = vec![
            flows.serve(&w.internet, SERVED, false),
            flows.serve(&victim.ns, 7300, true),
            echo_until(&victim.ns, &stop),
        ];
        for up in [true, false] {
            threads.push(flows.client(&victim.ns, at(INET4, SERVED), up, true));
            threads.push(flows.client(&w.internet, at(HOST4, 8080), up, false));
        }
        let asking = {
            let (stop, dns) = (Arc::clone(&stop), victim.dns);
            victim.ns.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    answers(dns);
                }
            })
        };
        threads.push(asking);
        let instant = Duration::from_micros(dice.below(700_000));
        let (recovered, killed) = thread::scope(|scope| {
            let (tally, to_stop) = (&self.tally, Arc::clone(&stop));
            let mut churning = Dice::new(seed ^ 0x5eed);
            let churned = scope.spawn(move || churn(w, &to_stop, tally, kind, &mut churning));
            thread::sleep(instant);
            let killed = Instant::now();
            kill(Pid::from_raw(victim.to_kill), Signal::SIGKILL).unwrap();
            // Who lives on: the victim, or else a bystander.
            let recovered = if kind.is_survived() {
                recover(w, &victim.ns, victim.dns, 8081, killed)
            } else {
                recover(w, &self.stay.ns, at([172, 18, 0, 1], 53), 8091, killed)
            };
            stop.store(true, Ordering::Relaxed);
            self.churned += churned.join().unwrap();
            (recovered, killed)
        });
        self.recovered.entry(kind).or_default().push(recovered);
        let Victim { run, runtime, ns, .. } = victim;
        let mut threads = Some(threads);
        let mut join = || threads.take().into_iter().flatten().for_each(|one| one.join().unwrap());
        if run.is_some() && kind.is_survived() {
            join();
            w.tapway(&["stop", "-t", "0", "victim"]).ok();
        }
        // Before this process's own ends are: what is left then was tapway's.
        if let Some(Guest { mut monitor, ns, .. }) = run {
            drop(ns);
            let expected: &[i32] = match kind {
                Kind::Init => &[1],
                // By `stop`.
                _ if kind.is_survived() => &[143, 137],
                _ => &[137],
            };
            let code = code(&mut monitor);
            assert!(expected.contains(&code), "{kind:?}: {code}: {}", monitor.stderr());
        }
        if let Some((mut proc, _)) = runtime {
            code(&mut proc);
            if kind == Kind::Helper {
                // In the directory of who started it, who removes it where the helper could not.
                std::fs::remove_file(w.path("home/tapway-api")).unwrap();
            }
        }
        join();
        // Connections that this process has closed, and whose last segment nobody acknowledges any more, would keep the namespace for a minute.
        ns.cmd(&["ss", "-K", "state", "all"]).end();
        drop(ns);
        drop(flows);
        // Whoever looks, or comes, tidies up after the dead.
        let tidy = || {
            w.tapway(&["ps"]).ok();
            w.tapway(&["network", "inspect", "web"]).ok();
            w.tapway_run::<&str>(&[], &["true"]).ok();
        };
        tidy();
        let mut last = BTreeMap::new();
        while killed.elapsed() < PATIENCE * 2 {
            last = remains(w);
            if last == self.before {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let more: Vec<_> = last.iter().filter(|&(what, n)| self.before.get(what) != Some(n)).collect();
        let less: Vec<_> = self.before.iter().filter(|&(what, n)| last.get(what) != Some(n)).collect();
        let ps = || w.host.sh("ps -eo pid,ppid,stat,args --width 150");
        assert!(last == self.before, "{kind:?}, seed {seed}: is: {more:?}, was: {less:?}\n{}", ps());
        self.gone.entry(kind).or_default().push(killed.elapsed().as_secs_f64());
        let wrong = std::mem::take(&mut *self.tally.wrong.lock().unwrap());
        assert!(wrong.is_empty(), "round {number} ({instant:?}): {wrong:#?}");
    }
}

/// How it ended: its exit code, 128 + n for signal n.
fn code(proc: &mut Proc) -> i32 {
    let since = Instant::now();
    loop {
        if let Some(status) = proc.child.try_wait().unwrap() {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        }
        assert!(since.elapsed() < PATIENCE, "it has not ended: {}", proc.stderr());
        thread::sleep(Duration::from_millis(2));
    }
}

/// An echo server that leaves.
fn echo_until(ns: &Ns, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let listener = listen(ns, at([0; 4], 7301));
    listener.set_nonblocking(true).unwrap();
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
            let mut byte = [0];
            if stream.read(&mut byte).is_ok_and(|n| n == 1) {
                let _ = stream.write_all(&byte);
            }
        }
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn shown(times: &mut [f64]) -> String {
    times.sort_by(f64::total_cmp);
    format!("{:.0}/{:.0}", times[times.len() / 2] * 1e3, times[times.len() - 1] * 1e3)
}

#[test]
fn whoever_is_killed() {
    World::run(|w| {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = number("TAPWAY_TEST_SEED").unwrap_or(time.as_nanos() as u64 % 1_000_000);
        let rounds = number("TAPWAY_TEST_ROUNDS").unwrap_or(if long() { 200 } else { 20 });
        eprintln!("TAPWAY_TEST_SEED={seed} TAPWAY_TEST_ROUNDS={rounds}");
        create(w, &["web"]);
        create(w, &["other"]);
        let stay = member(w, "web", "stay", &["-p", "8091:7301"]);
        let _anchor = member(w, "other", "anchor", &[]);
        echo_tcp(&stay.ns, at([0; 4], 7301));
        echo_tcp(&w.internet, at(INET4, ECHO));
        // What is made once and kept.
        w.tapway_run_on::<&str>("web", &[], &["true"]).ok();
        w.tapway_run::<&str>(&[], &["true"]).ok();
        thread::sleep(Duration::from_millis(600));
        let before = remains(w);
        let (recovered, gone) = (Recovered::new(), BTreeMap::new());
        let mut play = Play { w, stay: &stay, tally: Arc::default(), recovered, gone, churned: 0, before };
        let mut dice = Dice::new(seed);
        let mut order = Vec::new();
        for number in 0..rounds {
            if order.is_empty() {
                order = KINDS.to_vec();
                (1..order.len()).rev().for_each(|at| order.swap(at, dice.below(at as u64 + 1) as usize));
            }
            let (kind, seed) = (order.pop().unwrap(), dice.word());
            play.round(number, seed, kind);
        }
        let Play { tally, mut recovered, mut gone, churned, .. } = play;
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
        eprintln!(
            "{rounds} rounds; streams: {} whole, {} cut, {} MB verified; {churned} that came and went",
            count(&tally.whole),
            count(&tally.cut),
            tally.verified.load(Ordering::Relaxed) / 1_000_000
        );
        for (kind, times) in &mut recovered {
            let each: Vec<String> = (0..MEASURED.len())
                .map(|at| {
                    format!("{} {}", MEASURED[at], shown(&mut times.iter().map(|one| one[at]).collect::<Vec<_>>()))
                })
                .collect();
            let gone = shown(gone.get_mut(kind).unwrap());
            eprintln!("{kind:?}: {} kills; ms, median/longest: {}; tidy {gone}", times.len(), each.join(", "));
        }
        assert!(count(&tally.cut) > 0 && count(&tally.whole) > 0, "nothing was under way");
        assert_eq!(pids().iter().filter(|&&pid| pid == stay.monitor.pid()).count(), 1);
    });
}
