//! The stage on which every test of this binary plays: three network namespaces, made without privilege.
//!
//! ```text
//!   tapway's guest        "host" (outer user namespace)      "router"                   "internet"
//!   eth0 10.0.2.100 ─TAP─ up0 203.0.113.2  ──veth 1500──  203.0.113.1 | 198.51.100.1 ──veth 1500── 198.51.100.2
//!                         2001:db8:1::2                   2001:db8:1::1 | 2001:db8:2::1            2001:db8:2::2
//! ```
//!
//! [`World::run`] starts this very test again, as an ordinary user (when we are root), in new user, network, mount and
//! PID namespaces (see `spaces`). There the test is uid 1000 with the capabilities of the outer user namespace, which
//! lets it lay cables; `tapway` and the programs of "the host" are started without them, so tapway sees what an
//! ordinary user sees.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "other binaries include this module")]
pub use crate::spaces::{Cmd, Ns, Proc, long, need, pids, wait_for};
use crate::spaces::{Entry, SCRATCH, enter, inside, test_name};

/// How a test of this binary gets to its stage.
const ENTRY: Entry = Entry {
    unshare: "unshare --user --map-user=1000 --map-group=1000 --keep-caps --net --mount --pid --fork --kill-child \
              --mount-proc --",
    env: &[("HOME", "/mnt/home"), ("XDG_RUNTIME_DIR", "/mnt/run"), ("XDG_STATE_HOME", "/mnt/home/state")],
    seconds: 400,
};

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
    /// The program that is tested.
    pub tapway: String,
}

#[allow(clippy::unused_self, reason = "these ask about the one stage that exists")]
impl World {
    /// Runs `test` on a fresh stage. The test must be the closure's own function: its name is how it is found again.
    pub fn run<F: FnOnce(&World)>(test: F) {
        Self::run_on(Stage { ping_sockets: true }, test);
    }

    /// The same with so many seconds for the whole of it.
    #[allow(dead_code, reason = "for one test of one binary that includes this module")]
    pub fn run_for<F: FnOnce(&World)>(seconds: u32, test: F) {
        match inside() {
            Some(tapway) => test(&World::build(tapway, Stage { ping_sockets: true })),
            None => enter(&test_name::<F>(), &Entry { seconds, ..ENTRY }),
        }
    }

    /// The same on a stage that differs from the usual one.
    pub fn run_on<F: FnOnce(&World)>(stage: Stage, test: F) {
        match inside() {
            Some(tapway) => test(&World::build(tapway, stage)),
            None => enter(&test_name::<F>(), &ENTRY),
        }
    }

    fn build(tapway: String, stage: Stage) -> World {
        let host = Ns::current();
        // The scratch directory is made by this very command, so it cannot start there yet.
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
        setup.directory("/").ok();
        if stage.ping_sockets {
            host.sh("echo '1000 1000' > /proc/sys/net/ipv4/ping_group_range");
        }
        let (router, internet) = (Ns::new(), Ns::new());
        // A router solicits from its link-local address, which would otherwise be checked for a second or two first.
        for ns in [&host, &router, &internet] {
            ns.sh("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
        }
        let me = std::process::id();
        // A veth end is moved by descriptor: the router's thread makes both cables and hands one end to each side.
        let internet_path = internet.path();
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

    /// Where the binary under test is.
    #[allow(dead_code, reason = "for the other binary that includes this module")]
    pub fn binary(&self) -> &str {
        &self.tapway
    }

    /// `tapway ARGS…` as the ordinary user of the host.
    pub fn tapway<S: AsRef<str>>(&self, args: &[S]) -> Cmd {
        let mut argv = vec![self.tapway.as_str()];
        argv.extend(args.iter().map(AsRef::as_ref));
        self.host.cmd(&argv).unprivileged()
    }

    /// `tapway run --network private OPTIONS -- COMMAND`.
    pub fn tapway_run<S: AsRef<str>>(&self, options: &[S], command: &[&str]) -> Cmd {
        self.tapway_run_on("private", options, command)
    }

    /// `tapway run --network NETWORK OPTIONS -- COMMAND`.
    pub fn tapway_run_on<S: AsRef<str>>(&self, network: &str, options: &[S], command: &[&str]) -> Cmd {
        let mut args = vec!["run", "--network", network];
        args.extend(options.iter().map(AsRef::as_ref));
        args.push("--");
        args.extend(command);
        self.tapway(&args)
    }

    /// A sandbox with a network of its own that stays until it is dropped.
    pub fn guest<S: AsRef<str>>(&self, options: &[S]) -> Guest {
        self.guest_on("private", options)
    }

    /// A sandbox on this network that stays until it is dropped.
    pub fn guest_on<S: AsRef<str>>(&self, network: &str, options: &[S]) -> Guest {
        let script = "readlink /proc/self/ns/net; exec sleep 1000000";
        let mut monitor = self.tapway_run_on(network, options, &["sh", "-c", script]).spawn();
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
        Guest { monitor, pid, ns: file.into(), _stdout: stdout }
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
    #[track_caller]
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
