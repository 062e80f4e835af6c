//! The stage: a pretend machine with an ordinary user, for one test.
//!
//! ```text
//!   container           "host"                                      "outside"
//!   tap0 10.0.2.100 ──  ext0 198.51.100.1 .11      ────veth────  ext0 198.51.100.2
//!        fd00::…             2001:db8:51::1 ::11                      2001:db8:51::2
//!                       resolver 127.0.0.1, ::1
//! ```
//!
//! The test runs as root of a user namespace whose ids are an ordinary user and its subordinate ones: enough for a
//! machine with a root of its own (the test), a `user` with subordinate ids of its own (uid 1000), and whatever those
//! programs map below that. Mount, PID, UTS, IPC and cgroup namespaces are its own too, with a plain cgroup2 tree,
//! because crun refuses a hybrid one. `newuidmap` and `newgidmap` are copies that this root owns, because the kernel
//! honours the set-uid bit of mapped owners only. PID 1 is catatonit: podman waits for orphans to be reaped. Nothing of
//! the stage is outside of these namespaces, so nothing outlives the test.
//!
//! The helper under test is installed as `contrib/containers/README.md` says: `/usr/local/bin/slirp4netns`, named by
//! `contrib/containers/containers.conf` in the user's home directory. What only a machine without systemd needs is in
//! `/etc/containers/containers.conf`.
//!
//! The image is Debian's busybox with the libraries that it is linked to. Most traffic is made by threads of the test
//! inside a container's network namespace (see `spaces` and `tools`), the rest by busybox in the container.

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::spaces::{Cmd, Ended, Ns, Proc, need, wait_for};
use crate::spaces::{Entry, SCRATCH, enter, inside, ordinary_user, pids};

/// How a test of this binary gets to its stage.
const ENTRY: Entry = Entry {
    unshare: "unshare --user --map-root-user --map-auto --net --mount --pid --uts --ipc --cgroup --fork --kill-child \
              --mount-proc -- catatonit --",
    env: &[("HOME", "/mnt/home"), ("XDG_RUNTIME_DIR", RUNTIME_DIR)],
    seconds: 240,
};

/// Runtime directory of the user.
pub const RUNTIME_DIR: &str = "/run/user/1000";
/// Where the helper is installed.
pub const INSTALLED: &str = "/usr/local/bin/slirp4netns";

/// Addresses of the stage.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const HOST4_SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
pub const HOST6_SECOND: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x11);
pub const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
/// Addresses of slirp4netns's default plan.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// A name that the host's resolver knows: its addresses are those of "outside".
pub const OUTSIDE_NAME: &str = "outside.example";

/// A container's first process: lives until it is asked to end.
pub const IDLE: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"];

/// Who serves the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// Debian's slirp4netns.
    Slirp4netns,
    /// The binary of this build.
    Tapway,
}

/// Runs `scenario` on a fresh stage; `name` is that of the test, with the crate's.
pub fn run(helper: Helper, name: &str, scenario: fn(&World)) {
    let Some(tapway) = inside() else {
        for program in ["catatonit", "newuidmap", "newgidmap", "slirp4netns", "busybox"] {
            need(program);
        }
        require_subordinate_ids();
        let name = name.split_once("::").map_or(name, |(_crate, name)| name);
        return enter(name, &ENTRY);
    };
    scenario(&World::build(helper, &tapway));
}

/// Fails with the remedy if the ordinary user has no range of 65536 subordinate ids.
fn require_subordinate_ids() {
    let me = nix::unistd::geteuid();
    let uid = if me.is_root() { ordinary_user().0 } else { me.as_raw() };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.get(2) == Some(&&*uid.to_string()));
    let name = name.map_or_else(|| uid.to_string(), |fields| fields[0].to_owned());
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        let has = text.lines().map(|l| l.split(':').collect::<Vec<_>>()).any(|f| {
            f.len() == 3 && (f[0] == name || f[0] == uid.to_string()) && f[2].parse().is_ok_and(|n: u32| n >= 65536)
        });
        assert!(
            has,
            "{name} has no 65536 subordinate ids in {file}; \
             usermod --add-subuids 300000-365535 --add-subgids 300000-365535 {name}"
        );
    }
}

/// The stage.
pub struct World {
    pub helper: Helper,
    pub host: Ns,
    pub outside: Ns,
    _resolver: Proc,
}

#[allow(clippy::unused_self, reason = "these ask about the one stage that exists")]
impl World {
    fn build(helper: Helper, tapway: &str) -> World {
        let host = Ns::current();
        // It may lie in a directory that the machine hides.
        let mut tapway = File::open(tapway).expect("cannot open the tapway binary");
        Cmd::new(None, &["sh", "-c", MACHINE]).directory("/").ok();
        match helper {
            Helper::Slirp4netns => {
                std::os::unix::fs::symlink("/usr/bin/slirp4netns", INSTALLED).expect("cannot install the helper");
            }
            Helper::Tapway => {
                let mut copy = File::create("/usr/local/bin/tapway").expect("cannot make a file");
                std::io::copy(&mut tapway, &mut copy).expect("cannot copy tapway");
                copy.set_permissions(fs::Permissions::from_mode(0o755)).expect("cannot make tapway executable");
                std::os::unix::fs::symlink("tapway", INSTALLED).expect("cannot install the helper");
            }
        }
        let outside = Ns::new();
        host.sh(&format!(
            "ip link add ext0 type veth peer name ext0 netns {}
             ip addr add {HOST4}/24 dev ext0; ip addr add {HOST4_SECOND}/24 dev ext0
             ip addr add {HOST6}/64 dev ext0 nodad; ip addr add {HOST6_SECOND}/64 dev ext0 nodad
             ip link set ext0 up; ip link set lo up
             ip route add default via {OUTSIDE4}; ip -6 route add default via {OUTSIDE6}
             echo '0 60000' > /proc/sys/net/ipv4/ping_group_range",
            outside.path()
        ));
        outside.sh(&format!(
            "ip addr add {OUTSIDE4}/24 dev ext0; ip addr add {OUTSIDE6}/64 dev ext0 nodad; ip link set ext0 up"
        ));
        let addresses = format!("--host-record={OUTSIDE_NAME},{OUTSIDE4},{OUTSIDE6}");
        let resolver = host.cmd(&[
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--group=root",
            "--pid-file=",
            "--no-hosts",
            "--no-resolv",
            "--listen-address=127.0.0.1,::1",
            "--bind-interfaces",
            "--log-facility=-",
            &addresses,
        ]);
        let world = World { helper, host, outside, _resolver: resolver.spawn() };
        world.configure("");
        world.host.await_listener(53);
        // The first packet after link-up may be lost to neighbour discovery; no test should see that.
        wait_for("the stage's own ping", Duration::from_secs(20), || {
            let line = format!("ping -c1 -W1 {OUTSIDE4} >&2 && ping -c1 -W1 {OUTSIDE6} >&2");
            world.host.cmd(&["sh", "-c", &line]).end().code == 0
        });
        world
    }

    /// True if tapway is the helper.
    pub fn ours(&self) -> bool {
        self.helper == Helper::Tapway
    }

    /// A file of this test's own; the user can write beside it.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(SCRATCH).join("home").join(name)
    }

    /// Writes the user's containers.conf: that of `contrib/containers`, and this in its `[engine]`.
    pub fn configure(&self, engine: &str) {
        let text = CONTAINERS_CONF.replace("[engine]\n", &format!("[engine]\n{engine}\n"));
        fs::write(self.path(".config/containers/containers.conf"), text).expect("cannot write a file");
    }

    /// A program that the user starts.
    pub fn user<S: AsRef<str>>(&self, argv: &[S]) -> Cmd {
        need(argv[0].as_ref());
        let user = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all", "--"];
        self.host.cmd(argv).by(&user).directory("/mnt/home")
    }

    /// A shell line of the user's; it must succeed.
    pub fn user_sh(&self, line: &str) -> String {
        self.user(&["sh", "-ec", line]).ok()
    }

    /// `podman ARGS…` as the user.
    pub fn podman<S: AsRef<str>>(&self, args: &[S]) -> Cmd {
        let mut argv = vec!["podman"];
        argv.extend(args.iter().map(AsRef::as_ref));
        self.user(&argv)
    }

    /// A root file system in a tar archive.
    pub fn image_tar(&self) -> PathBuf {
        let tar = self.path("box.tar");
        if !tar.exists() {
            self.user(&["sh", "-c", IMAGE]).ok();
        }
        tar
    }

    /// Makes podman (and buildah, which shares its storage) know the image `box`.
    pub fn podman_image(&self) {
        let tar = self.image_tar();
        self.podman(&["import", "-q", &tar.display().to_string(), "box"]).ok();
    }

    /// A container that idles, started by `podman run -d OPTIONS box`.
    pub fn container<S: AsRef<str>>(&self, name: &str, options: &[S]) -> Container<'_> {
        self.container_with(name, options, IDLE)
    }

    /// A container that runs `command`.
    pub fn container_with<S: AsRef<str>>(&self, name: &str, options: &[S], command: &[&str]) -> Container<'_> {
        if !self.path("box.tar").exists() {
            self.podman_image();
        }
        let mut args = vec!["run", "-d", "--name", name];
        args.extend(options.iter().map(AsRef::as_ref));
        args.push("box");
        args.extend(command);
        self.podman(&args).ok();
        self.running(name)
    }

    /// The container of this name, which runs.
    pub fn running(&self, name: &str) -> Container<'_> {
        let pid = self.podman(&["inspect", "-f", "{{.State.Pid}}", name]).ok();
        let pid = pid.trim().parse().expect("podman inspect prints a process id");
        assert!(pid != 0, "{name} does not run:\n{}", self.podman(&["logs", name]).end().stderr);
        Container { world: self, name: name.to_owned(), ns: ns_of(pid) }
    }

    /// Process ids of all living helpers.
    pub fn helpers(&self) -> Vec<i32> {
        let is_helper = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let first = line.split(|&b| b == 0).next().unwrap_or_default();
            first.ends_with(b"slirp4netns") && alive(*pid)
        };
        pids().into_iter().filter(is_helper).collect()
    }

    /// Command lines of the user's living processes, but for podman's pause process, which stays until log-out.
    pub fn user_processes(&self) -> Vec<String> {
        let describe = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let uid = status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().next()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (uid != "0" && alive(pid) && line.trim() != "catatonit -P").then(|| format!("{pid}: {line}"))
        };
        pids().into_iter().filter_map(describe).collect()
    }

    /// Waits until nothing of the user's runs any more.
    pub fn expect_quiet(&self) {
        let mut left = Vec::new();
        for _ in 0..150 {
            left = self.user_processes();
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("still running after 3 s:\n{}", left.join("\n"));
    }
}

/// A container that podman started.
pub struct Container<'w> {
    world: &'w World,
    pub name: String,
    pub ns: Ns,
}

impl Container<'_> {
    /// A shell line in it; it must succeed.
    pub fn sh(&self, line: &str) -> String {
        self.world.podman(&["exec", &self.name, "sh", "-ec", line]).ok()
    }

    /// A global IPv6 address on its TAP, once it has one.
    pub fn addr6(&self) -> Ipv6Addr {
        global6(&self.ns, "tap0")
    }
}

/// The global IPv6 address of a device, once it has one that may be used.
pub fn global6(ns: &Ns, device: &str) -> Ipv6Addr {
    let mut found = None;
    wait_for("a global IPv6 address", Duration::from_secs(10), || {
        let text = ns.cmd(&["ip", "-j", "-6", "addr", "show", "dev", device, "scope", "global"]).ok();
        let json: serde_json::Value = serde_json::from_str(&text).expect("ip prints JSON");
        let infos = json.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array()).flatten();
        let mut ready = infos.filter(|a| a.get("tentative").is_none());
        found = ready.find_map(|a| a["local"].as_str()?.parse().ok());
        found.is_some()
    });
    found.expect("just found")
}

/// The network namespace of a process.
pub fn ns_of(pid: i32) -> Ns {
    File::open(format!("/proc/{pid}/ns/net")).expect("cannot open a network namespace").into()
}

/// Neither gone nor waiting to be reaped.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(' ') && !rest.starts_with(" Z"))
}

/// The file that the README of `contrib/containers` tells users to copy.
const CONTAINERS_CONF: &str = include_str!("../../contrib/containers/containers.conf");

/// Makes the machine, as its root.
const MACHINE: &str = include_str!("machine.sh");

/// Makes box.tar, in the user's home directory.
const IMAGE: &str = include_str!("image.sh");
