//! The stage on which every test of this binary plays: three network namespaces, made without privilege.
//!
//! ```text
//!   tapway's guest        "host" (outer user namespace)      "router"                   "internet"
//!   eth0 10.0.2.100 ─TAP─ up0 203.0.113.2  ──veth 1500──  203.0.113.1 | 198.51.100.1 ──veth 1500── 198.51.100.2
//!                         2001:db8:1::2                   2001:db8:1::1 | 2001:db8:2::1            2001:db8:2::2
//! ```
//!
//! [`World::run`] starts this very test again, as an ordinary user (when we are root), in new user, network, mount and
//! PID namespaces. There the test is uid 1000 with the capabilities of the outer user namespace, which lets it lay
//! cables; `tapway` and the programs of "the host" are started without them, so tapway sees what an ordinary user
//! sees. When the test ends, the PID namespace takes every process with it and the mount namespace every file.
//!
//! Sockets of any namespace are made in this process: network namespaces belong to threads, so [`Ns::run`] starts a
//! thread that enters the namespace and runs a closure there.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

/// Set in the inner run of a test; its value is the path of the `tapway` binary to use.
const INNER: &str = "TAPWAY_TEST_INNER";
/// Whole life of one test, seconds. The outer run kills the PID namespace then.
const TEST_LIMIT: u32 = 400;
/// Where the tests keep their files: a tmpfs of the inner mount namespace.
const SCRATCH: &str = "/mnt";
/// Search path for programs; the caller's may lead to directories that the ordinary user cannot read.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a Debian 12 machine needs for this test binary; `.ci/run` installs the same list.
const PACKAGES: &str = "busybox curl dnsmasq-base dnsutils git iperf3 iproute2 iputils-ping mtr-tiny nginx-light \
                        procps python3 redis-server redis-tools traceroute udhcpc util-linux wrk";

/// Addresses of the stage.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
pub const ROUTER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub const INET4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const INET6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
/// Addresses of the default plan of `tapway run`.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const DNS4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// A network namespace that stays alive as long as this value.
#[derive(Clone)]
pub struct Ns(Arc<File>);

impl Ns {
    /// The namespace of the calling thread.
    pub fn current() -> Self {
        Self(Arc::new(File::open("/proc/thread-self/ns/net").expect("cannot open our network namespace")))
    }

    /// A new one, with loopback up.
    pub fn new() -> Self {
        let ns = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("cannot make a network namespace");
            Self::current()
        });
        let ns = ns.join().expect("the thread that makes a namespace panicked");
        ns.sh("ip link set lo up");
        ns
    }

    /// Runs `f` on a thread inside this namespace: sockets that it makes and programs that it starts live there.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).expect("cannot enter a network namespace");
                f()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts `f` on a thread inside this namespace and does not wait for it.
    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let ns = self.clone();
        thread::spawn(move || {
            setns(&*ns.0, CloneFlags::CLONE_NEWNET).expect("cannot enter a network namespace");
            f()
        })
    }

    /// A program in this namespace.
    pub fn cmd<S: AsRef<str>>(&self, argv: &[S]) -> Cmd {
        Cmd::new(Some(self.clone()), argv)
    }

    /// A shell line in this namespace; it must succeed. Returns its standard output.
    pub fn sh(&self, line: &str) -> String {
        self.cmd(&["sh", "-ec", line]).ok()
    }

    /// Waits until something listens on this TCP port (any address).
    pub fn await_listener(&self, port: u16) {
        let what = format!("a listener on TCP port {port}");
        wait_for(&what, Duration::from_secs(20), || {
            let filter = format!("sport = :{port}");
            !self.cmd(&["ss", "-Hltn", &filter]).ok().is_empty()
        });
    }
}

/// A program to run, with a limit on its time.
#[derive(Clone)]
pub struct Cmd {
    ns: Option<Ns>,
    argv: Vec<String>,
    limit: Duration,
    drop_caps: bool,
}

/// What a program left behind.
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    /// Exit code; 128 + n for signal n.
    pub code: i32,
}

impl Cmd {
    fn new<S: AsRef<str>>(ns: Option<Ns>, argv: &[S]) -> Self {
        let argv = argv.iter().map(|s| s.as_ref().to_owned()).collect::<Vec<_>>();
        Self { ns, argv, limit: Duration::from_mins(1), drop_caps: false }
    }

    /// Another limit than 60 seconds.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Without the capabilities of the outer user namespace: what an ordinary user starts.
    pub fn unprivileged(mut self) -> Self {
        self.drop_caps = true;
        self
    }

    fn command(&self) -> Command {
        need(&self.argv[0]);
        let mut argv = Vec::new();
        if self.drop_caps {
            argv.extend(["setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--"].map(str::to_owned));
        }
        argv.extend(self.argv.iter().cloned());
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).current_dir(SCRATCH);
        command
    }

    /// Starts it; standard output is a pipe that the caller may read, standard error goes to a file shown on failure.
    pub fn spawn(&self) -> Proc {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let log = PathBuf::from(format!("{SCRATCH}/stderr.{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
        let stderr = File::create(&log).expect("cannot make a file for standard error");
        let start = || self.command().stdout(Stdio::piped()).stderr(stderr).spawn();
        let child = match &self.ns {
            Some(ns) => ns.run(start),
            None => start(),
        };
        let child = child.unwrap_or_else(|e| panic!("cannot start {:?}: {e}", self.argv));
        Proc { child, argv: self.argv.clone(), log }
    }

    /// Runs it to its end. Panics if it takes longer than the limit.
    pub fn end(&self) -> Ended {
        self.spawn().end(self.limit)
    }

    /// Runs it; it must succeed. Returns its standard output.
    pub fn ok(&self) -> String {
        let ended = self.end();
        assert!(
            ended.code == 0,
            "{:?} ended with {}\n--- stdout\n{}\n--- stderr\n{}",
            self.argv,
            ended.code,
            ended.stdout,
            ended.stderr
        );
        ended.stdout
    }
}

/// A running program; killed when dropped.
pub struct Proc {
    pub child: Child,
    argv: Vec<String>,
    log: PathBuf,
}

impl Proc {
    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id fits")
    }

    /// Waits for its end.
    pub fn end(mut self, limit: Duration) -> Ended {
        let mut pipe = self.child.stdout.take().expect("standard output was taken before");
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let give_up = Instant::now() + limit;
        let status = loop {
            match self.child.try_wait().expect("cannot wait for a child") {
                Some(status) => break status,
                None if Instant::now() > give_up => {
                    let _ = self.child.kill();
                    thread::sleep(Duration::from_millis(100));
                    let stdout = if reader.is_finished() { reader.join().unwrap_or_default() } else { String::new() };
                    let stderr = self.stderr();
                    panic!("{:?} did not end within {limit:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", self.argv);
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        // A grandchild may hold the pipe for ever; what the program itself wrote is there at once.
        let late = Instant::now() + Duration::from_secs(5);
        while !reader.is_finished() && Instant::now() < late {
            thread::sleep(Duration::from_millis(5));
        }
        let stdout = if reader.is_finished() { reader.join().unwrap_or_default() } else { String::new() };
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ended { stdout, stderr: self.stderr(), code }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What differs from test to test before anything runs.
#[derive(Clone, Copy)]
pub struct Stage {
    /// `ping_group_range` of the host lets its user make ping sockets. A new namespace forbids them, and what was
    /// opened cannot be closed again here: closing takes two groups in the wrong order, and only one is mapped.
    pub ping_sockets: bool,
}

/// The stage.
pub struct World {
    pub host: Ns,
    pub router: Ns,
    pub internet: Ns,
    tapway: String,
}

#[allow(clippy::unused_self, reason = "these ask about the one stage that exists")]
impl World {
    /// Runs `test` on a fresh stage. The test must be the closure's own function: its name is how it is found again.
    pub fn run<F: FnOnce(&World)>(test: F) {
        Self::run_on(Stage { ping_sockets: true }, test);
    }

    /// The same on a stage that differs from the usual one.
    pub fn run_on<F: FnOnce(&World)>(stage: Stage, test: F) {
        match std::env::var(INNER) {
            Ok(tapway) => test(&World::build(tapway, stage)),
            Err(_) => outer(&test_name::<F>()),
        }
    }

    fn build(tapway: String, stage: Stage) -> World {
        let host = Ns::current();
        let setup = Cmd::new(
            None,
            &[
                "sh",
                "-ec",
                "mount -t tmpfs -o mode=755 tmpfs /mnt
                 mkdir /mnt/etc /mnt/home
                 mkdir -m 700 /mnt/run
                 cp -a /etc/. /mnt/etc/ 2>/dev/null || true
                 rm -rf /mnt/etc/resolv.conf; echo 'nameserver 198.51.100.2' > /mnt/etc/resolv.conf
                 mount --bind /mnt/etc /etc
                 ip link set lo up",
            ],
        );
        // The scratch directory is made by this very command, so it cannot start there yet.
        let done = setup.command().current_dir("/").output().expect("cannot run sh");
        assert!(done.status.success(), "cannot lay the stage: {}", String::from_utf8_lossy(&done.stderr));
        if stage.ping_sockets {
            host.sh("echo '1000 1000' > /proc/sys/net/ipv4/ping_group_range");
        }
        let (router, internet) = (Ns::new(), Ns::new());
        let me = std::process::id();
        // A veth end is moved by descriptor: the router's thread makes both cables and hands one end to each side.
        let internet_fd = Arc::clone(&internet.0);
        let internet_path = format!("/proc/{me}/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*internet_fd));
        router.sh(&format!(
            "ip link add h0 type veth peer name up0 netns {me}
             ip link add n0 type veth peer name up0 netns {internet_path}
             echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             # A router answers every traceroute probe, not one a second.
             echo 0 > /proc/sys/net/ipv4/icmp_ratelimit
             echo 0 > /proc/sys/net/ipv6/icmp/ratelimit
             ip addr add {ROUTER4}/24 dev h0; ip addr add {ROUTER6}/64 dev h0 nodad
             ip addr add 198.51.100.1/24 dev n0; ip addr add 2001:db8:2::1/64 dev n0 nodad
             ip link set h0 up; ip link set n0 up"
        ));
        host.sh(&format!(
            "ip addr add {HOST4}/24 dev up0; ip addr add {HOST6}/64 dev up0 nodad; ip link set up0 up
             ip route add default via {ROUTER4}; ip -6 route add default via {ROUTER6}"
        ));
        internet.sh(&format!(
            "ip addr add {INET4}/24 dev up0; ip addr add {INET6}/64 dev up0 nodad; ip link set up0 up
             ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:2::1"
        ));
        let world = World { host, router, internet, tapway };
        // The first packet after link-up may be lost to neighbour discovery; no test should see that.
        wait_for("the stage's own ping", Duration::from_secs(20), || {
            let line = format!("ping -c1 -W1 {INET4} >&2 && ping -c1 -W1 {INET6} >&2");
            world.host.cmd(&["sh", "-c", &line]).end().code == 0
        });
        world
    }

    /// A file of this test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(SCRATCH).join(name)
    }

    /// Replaces the host's resolv.conf with these name servers.
    pub fn host_resolv_conf(&self, text: &str) {
        fs::write("/etc/resolv.conf.new", text).expect("cannot write resolv.conf");
        fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf").expect("cannot replace resolv.conf");
    }

    /// `tapway ARGS…` as the ordinary user of the host.
    pub fn tapway<S: AsRef<str>>(&self, args: &[S]) -> Cmd {
        let mut argv = vec![self.tapway.as_str()];
        argv.extend(args.iter().map(AsRef::as_ref));
        self.host.cmd(&argv).unprivileged()
    }

    /// `tapway run --network private OPTIONS -- COMMAND`.
    pub fn tapway_run<S: AsRef<str>>(&self, options: &[S], command: &[&str]) -> Cmd {
        let mut args = vec!["run", "--network", "private"];
        args.extend(options.iter().map(AsRef::as_ref));
        args.push("--");
        args.extend(command);
        self.tapway(&args)
    }

    /// A sandbox that stays until it is dropped.
    pub fn guest<S: AsRef<str>>(&self, options: &[S]) -> Guest {
        let script = "readlink /proc/self/ns/net; exec sleep 1000000";
        let mut monitor = self.tapway_run(options, &["sh", "-c", script]).spawn();
        let stdout = monitor.child.stdout.take().expect("standard output is a pipe");
        let reader = thread::spawn(move || {
            let mut line = String::new();
            let mut stdout = BufReader::new(stdout);
            let _ = stdout.read_line(&mut line);
            (line.trim().to_owned(), stdout)
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        while !reader.is_finished() {
            assert!(Instant::now() < deadline, "tapway run was not ready within 30 s\n{}", monitor.stderr());
            if let Ok(Some(status)) = monitor.child.try_wait() {
                panic!("tapway run ended with {status}\n--- stderr\n{}", monitor.stderr());
            }
            thread::sleep(Duration::from_millis(2));
        }
        let (link, stdout) = reader.join().expect("the reader cannot panic");
        assert!(
            link.starts_with("net:["),
            "tapway run did not start its command (it said {link:?})\n--- stderr\n{}",
            monitor.stderr()
        );
        let mut pid = None;
        wait_for("the command in the sandbox", Duration::from_secs(10), || {
            pid = pids().into_iter().find(|pid| {
                let same = fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|l| l.to_string_lossy() == link);
                same && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with(b"sleep\0"))
            });
            pid.is_some()
        });
        let pid = pid.expect("just found");
        let file = File::open(format!("/proc/{pid}/ns/net")).expect("cannot open the guest's network namespace");
        Guest { monitor, pid, ns: Ns(Arc::new(file)), _stdout: stdout }
    }

    /// Process ids of all living `tapway` processes.
    pub fn tapway_pids(&self) -> Vec<i32> {
        let living = |pid: &i32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            comm.starts_with("tapway") && !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
        };
        pids().into_iter().filter(living).collect()
    }

    /// The network process of a sandbox: neither its monitor nor in the sandbox's network namespace.
    pub fn network_process(&self, guest: &Guest) -> Option<i32> {
        let here = fs::read_link("/proc/self/ns/net").expect("cannot read our own namespace");
        let outside = |pid: &i32| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link == here);
        self.tapway_pids().into_iter().filter(|&pid| pid != guest.monitor.pid()).find(outside)
    }

    /// Sockets of the host's namespace: all of them are tapway's, the programs of the tests live elsewhere. (The
    /// descriptors themselves cannot be counted: the network process hides them from its own user.)
    pub fn sockets(&self) -> usize {
        let text = fs::read_to_string("/proc/thread-self/net/sockstat").expect("cannot read sockstat");
        let used = text.lines().find_map(|l| l.strip_prefix("sockets: used ")?.parse().ok());
        used.unwrap_or_else(|| panic!("no number of sockets in {text:?}"))
    }
}

/// A sandbox that `tapway run` made; the command in it sleeps.
pub struct Guest {
    pub monitor: Proc,
    pub pid: i32,
    pub ns: Ns,
    _stdout: BufReader<std::process::ChildStdout>,
}

impl Guest {
    /// Runs `f` on a thread of this process inside the guest's network namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.ns.run(f)
    }

    /// A program in all of the sandbox's namespaces.
    pub fn cmd<S: AsRef<str>>(&self, argv: &[S]) -> Cmd {
        need(argv[0].as_ref());
        let pid = self.pid.to_string();
        let mut full = vec!["nsenter", "-t", &pid, "-U", "-n", "-m", "-u", "-i", "-p", "--preserve-credentials", "--"];
        full.extend(argv.iter().map(AsRef::as_ref));
        Cmd::new(None, &full)
    }

    /// A shell line in the sandbox; it must succeed.
    pub fn sh(&self, line: &str) -> String {
        self.cmd(&["sh", "-ec", line]).ok()
    }

    /// The guest's global IPv6 address.
    pub fn addr6(&self) -> Ipv6Addr {
        let all = addresses6(&self.ns, "eth0", "global");
        *all.first().expect("the guest has no IPv6 address")
    }

    /// The gateway's IPv6 address, `prefix::2`.
    pub fn gateway6(&self) -> Ipv6Addr {
        self.neighbour6(2)
    }

    /// The DNS address, `prefix::3`.
    pub fn dns6(&self) -> Ipv6Addr {
        self.neighbour6(3)
    }

    fn neighbour6(&self, host: u16) -> Ipv6Addr {
        let s = self.addr6().segments();
        Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, host)
    }
}

/// IPv6 addresses of one scope of an interface, without those that are still being checked.
pub fn addresses6(ns: &Ns, device: &str, scope: &str) -> Vec<Ipv6Addr> {
    let text = ns.cmd(&["ip", "-j", "-6", "addr", "show", "dev", device, "scope", scope]).ok();
    let json: serde_json::Value = serde_json::from_str(&text).expect("ip prints JSON");
    // What a filter hides is still there, as an empty object.
    let infos = json.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array()).flatten();
    infos.filter(|a| a.get("tentative").is_none()).filter_map(|a| a["local"].as_str()?.parse().ok()).collect()
}

/// Polls until `done` says so; panics after `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < give_up, "waited {limit:?} in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Fails the test with a remedy if a program is not installed.
pub fn need(program: &str) {
    let found = program.contains('/') || PATH.split(':').any(|dir| Path::new(dir).join(program).exists());
    assert!(found, "{program} is not installed; apt-get install -y --no-install-recommends {PACKAGES}");
}

/// True in the nightly runs, where tests may take longer and cover more.
pub fn long() -> bool {
    std::env::var_os("TAPWAY_TEST_LONG").is_some()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("cannot read /proc");
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// `module::test`, the name under which libtest knows the function whose closure `F` is.
fn test_name<F>() -> String {
    let full = std::any::type_name::<F>();
    let path = full.split_once("::").map_or(full, |(_crate, path)| path);
    path.trim_end_matches("::{{closure}}").to_owned()
}

/// Runs one test of this binary inside new namespaces, and panics with its output if it fails.
fn outer(name: &str) {
    for program in ["setpriv", "unshare", "timeout", "nsenter"] {
        need(program);
    }
    let (test, tapway) = executables();
    let limit = if long() { TEST_LIMIT * 4 } else { TEST_LIMIT };
    let mut argv = vec!["timeout".to_owned(), "-k".into(), "5".into(), limit.to_string()];
    if nix::unistd::geteuid().is_root() {
        let (uid, gid) = ordinary_user();
        argv.extend(["setpriv".to_owned(), format!("--reuid={uid}"), format!("--regid={gid}")]);
        argv.extend(["--clear-groups", "--"].map(str::to_owned));
    }
    let namespaces = "unshare --user --map-user=1000 --map-group=1000 --keep-caps --net --mount --pid --fork \
                      --kill-child --mount-proc --";
    argv.extend(namespaces.split_whitespace().map(str::to_owned));
    argv.push(test.display().to_string());
    argv.extend(["--exact", name, "--nocapture", "--include-ignored"].map(str::to_owned));
    let kept = std::env::vars().filter(|(name, _)| name.starts_with("TAPWAY_TEST_") || name == "TAPWAY_NO_SKIP");
    let output = Command::new(&argv[0])
        .args(&argv[1..])
        .current_dir("/")
        .env_clear()
        .envs(kept)
        .env("PATH", PATH)
        .env("HOME", format!("{SCRATCH}/home"))
        .env("XDG_RUNTIME_DIR", format!("{SCRATCH}/run"))
        .env("XDG_STATE_HOME", format!("{SCRATCH}/home/state"))
        .env("LC_ALL", "C.UTF-8")
        .env("RUST_BACKTRACE", "0")
        .env(INNER, &tapway)
        .stdin(Stdio::null())
        .output()
        .expect("cannot start timeout(1)");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{stdout}");
    eprint!("{stderr}");
    assert!(output.status.success(), "{name} failed inside its namespaces ({}); see above", output.status);
    assert!(stdout.contains("1 passed"), "{name} did not run inside its namespaces");
}

/// The ordinary user that stands in for root: `tapway-test` as `.ci/run` makes it, else `tester`, else just a number
/// (the kernel does not ask for a name).
fn ordinary_user() -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    for name in ["tapway-test", "tester"] {
        let entry = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f[0] == name);
        if let Some((uid, gid)) = entry.and_then(|f| Some((f.get(2)?.parse().ok()?, f.get(3)?.parse().ok()?))) {
            return (uid, gid);
        }
    }
    (61_234, 61_234)
}

/// The test binary and the tapway binary, at places where the ordinary user can execute them: a clone below /root
/// is closed to it, so then they are copied, once per build.
fn executables() -> (PathBuf, PathBuf) {
    let test = std::env::current_exe().expect("cannot find our own executable");
    let tapway = std::env::var_os("TAPWAY_TEST_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_tapway")), PathBuf::from);
    if !nix::unistd::geteuid().is_root() {
        return (test, tapway);
    }
    (reachable(&test), reachable(&tapway))
}

fn reachable(path: &Path) -> PathBuf {
    let (uid, gid) = ordinary_user();
    let open = Command::new("setpriv")
        .args([&format!("--reuid={uid}"), &format!("--regid={gid}"), "--clear-groups", "--", "test", "-x"])
        .arg(path)
        .stderr(Stdio::null())
        .status();
    if open.is_ok_and(|status| status.success()) {
        return path.to_owned();
    }
    let meta = fs::metadata(path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let directory = std::env::temp_dir().join("tapway-test-binaries");
    fs::create_dir_all(&directory).expect("cannot make a directory for test binaries");
    let owner = fs::symlink_metadata(&directory).map(|m| (m.is_dir(), m.uid()));
    assert!(owner.is_ok_and(|o| o == (true, 0)), "{} is somebody else's; remove it", directory.display());
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("cannot open that directory");
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A directory per build, so that the process is still called `tapway` and an older copy is never taken for it.
    let build = directory.join(format!("{}-{}-{}", meta.ino(), meta.mtime(), meta.mtime_nsec()));
    fs::create_dir_all(&build).expect("cannot make a directory for a test binary");
    let copy = build.join(&name);
    if !copy.exists() {
        let part = build.join(format!("{name}.{}.{:?}", std::process::id(), thread::current().id()));
        fs::copy(path, &part).expect("cannot copy a test binary");
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).expect("cannot make a test binary executable");
        fs::rename(&part, &copy).expect("cannot put a test binary in place");
    }
    copy
}
