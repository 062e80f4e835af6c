//! `tapway doctor`: each line is broken, for real where that is possible, and must then say so.
//!
//! Each breaker runs in a process of its own (see `apart`) and spoils something there: in new namespaces, by a seccomp
//! filter that answers with an errno, by a limit, or by pointing the checks at files made for the test.
#![allow(unsafe_code)] // `apart` forks.
#![allow(clippy::unwrap_used)]

mod apart;

use std::path::PathBuf;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde_json::Value;
use tapway::cli::doctor::{Machine, examine};

/// A breaker: what it is called, the line it breaks, how that line ends, words of the line, and how it breaks it.
struct Breaker {
    name: &'static str,
    line: &'static str,
    status: &'static str,
    words: &'static [&'static str],
    spoil: fn(&mut Machine),
}

const BREAKERS: &[Breaker] = &[
    Breaker {
        name: "the device is something else",
        line: "tun-device",
        status: "fail",
        words: &["/dev/net/tun is not the TUN device", "modprobe tun"],
        spoil: |_| {
            own_namespaces(CloneFlags::CLONE_NEWNS);
            bind("/dev/null", "/dev/net/tun");
        },
    },
    Breaker {
        name: "no TAP can be made",
        line: "tap",
        status: "fail",
        words: &["tapway0", "/dev/net/tun"],
        spoil: |_| {
            own_namespaces(CloneFlags::CLONE_NEWNS);
            bind("/dev/null", "/dev/net/tun");
        },
    },
    Breaker {
        name: "no device",
        line: "tun-device",
        status: "fail",
        words: &["is not there", "--device /dev/net/tun"],
        spoil: |machine| machine.tun = "/nowhere/tun".into(),
    },
    Breaker {
        name: "the device may not be opened",
        line: "tun-device",
        status: "fail",
        words: &["ermission denied", "chmod 0666"],
        spoil: |_| refuse(libc::SYS_openat, libc::EACCES, &[(2, libc::O_ACCMODE, libc::O_RDWR)]),
    },
    Breaker {
        name: "the limit of namespaces is none",
        line: "user-namespaces",
        status: "fail",
        words: &["user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces="],
        spoil: |_| {
            own_namespaces(CloneFlags::empty());
            std::fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
        },
    },
    Breaker {
        name: "the limit of network namespaces is none",
        line: "user-namespaces",
        status: "fail",
        words: &["user.max_net_namespaces is 0"],
        spoil: |_| {
            own_namespaces(CloneFlags::empty());
            std::fs::write("/proc/sys/user/max_net_namespaces", "0").unwrap();
        },
    },
    Breaker {
        name: "a container's filter forbids namespaces",
        line: "user-namespaces",
        status: "fail",
        words: &["seccomp", "--security-opt seccomp=unconfined"],
        spoil: |machine| {
            no_known_switch(machine);
            refuse_namespaces();
        },
    },
    Breaker {
        name: "Debian's switch forbids namespaces",
        line: "user-namespaces",
        status: "fail",
        words: &["kernel.unprivileged_userns_clone is 0", "sysctl -w kernel.unprivileged_userns_clone=1"],
        spoil: |machine| {
            no_known_switch(machine);
            put(machine, "proc/sys/kernel/unprivileged_userns_clone", "0\n");
            refuse_namespaces();
        },
    },
    Breaker {
        name: "AppArmor forbids namespaces",
        line: "user-namespaces",
        status: "fail",
        words: &["AppArmor", "kernel.apparmor_restrict_unprivileged_userns=0"],
        spoil: |machine| {
            no_known_switch(machine);
            put(machine, "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
            refuse_namespaces();
        },
    },
    Breaker {
        name: "an old kernel without open_tree",
        line: "mounts",
        status: "fail",
        words: &["open_tree", "5.2"],
        spoil: |_| refuse(libc::SYS_open_tree, libc::ENOSYS, &[]),
    },
    Breaker {
        name: "mounting is forbidden",
        line: "mounts",
        status: "fail",
        words: &["cannot mount", "seccomp=unconfined"],
        spoil: |_| refuse(libc::SYS_mount, libc::EPERM, &[]),
    },
    Breaker {
        name: "AppArmor lets namespaces be made, and nothing in them",
        line: "mounts",
        status: "fail",
        words: &["cannot mount", "kernel.apparmor_restrict_unprivileged_userns=0"],
        spoil: |machine| {
            no_known_switch(machine);
            put(machine, "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
            refuse(libc::SYS_mount, libc::EACCES, &[]);
        },
    },
    Breaker {
        name: "AppArmor forbids the TAP",
        line: "tap",
        status: "fail",
        words: &["tapway0", "kernel.apparmor_restrict_unprivileged_userns=0"],
        spoil: |machine| {
            no_known_switch(machine);
            put(machine, "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
            refuse(libc::SYS_ioctl, libc::EPERM, &[(1, -1, TUNSETIFF)]);
        },
    },
    Breaker {
        name: "a container masks parts of /proc",
        line: "mounts",
        status: "warn",
        words: &["a new /proc", "unmask=ALL"],
        spoil: |_| {
            own_namespaces(CloneFlags::CLONE_NEWNS);
            bind("/dev/null", "/proc/version");
        },
    },
    Breaker {
        name: "no USO",
        line: "offloads",
        status: "warn",
        words: &["not granted: USO", "6.2"],
        // TUNSETOFFLOAD with TUN_F_USO4 (0x20), which the call's third argument holds.
        spoil: |_| refuse(libc::SYS_ioctl, libc::EINVAL, &[(1, -1, TUNSETOFFLOAD), (2, 0x20, 0x20)]),
    },
    Breaker {
        name: "no offload at all",
        line: "offloads",
        status: "warn",
        words: &["checksum, TSO IPv4, TSO IPv6, USO"],
        spoil: |_| refuse(libc::SYS_ioctl, libc::EINVAL, &[(1, -1, TUNSETOFFLOAD)]),
    },
    Breaker {
        name: "no subordinate ids",
        line: "subordinate-ids",
        status: "warn",
        words: &["/etc/subuid gives", "usermod --add-subuids"],
        spoil: |machine| no_known_switch(machine),
    },
    Breaker {
        name: "newuidmap is not installed",
        line: "subordinate-ids",
        status: "warn",
        words: &["newuidmap is not in PATH", "uidmap"],
        spoil: |machine| {
            enough_ids(machine);
            // SAFETY: this process has one thread.
            unsafe { std::env::set_var("PATH", "/nowhere") };
        },
    },
    Breaker {
        name: "newuidmap has no privilege",
        line: "subordinate-ids",
        status: "warn",
        words: &["newuidmap: ", "setuid root"],
        spoil: |machine| {
            enough_ids(machine);
            if nix::unistd::getuid().is_root() {
                // Root needs no setuid bit; only a map of ids that there are none of fails.
                own_namespaces(CloneFlags::empty());
            }
            nix::sys::prctl::set_no_new_privs().unwrap();
        },
    },
    Breaker {
        name: "ping sockets are for nobody",
        line: "ping-sockets",
        status: "warn",
        words: &["net.ipv4.ping_group_range is ", "only the gateway", "sysctl -w net.ipv4.ping_group_range="],
        // What the kernel gives a new network namespace.
        spoil: |_| own_namespaces(CloneFlags::CLONE_NEWNET),
    },
    Breaker {
        name: "IPv6 is switched off",
        line: "ipv6",
        status: "warn",
        words: &["the host has none", "--ipv6=off"],
        spoil: |_| {
            own_namespaces(CloneFlags::CLONE_NEWNET);
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        },
    },
    Breaker {
        name: "no UDP segmentation",
        line: "udp-offload",
        status: "warn",
        words: &["UDP_SEGMENT", "5.0"],
        spoil: |_| refuse(libc::SYS_setsockopt, libc::ENOPROTOOPT, &[(1, -1, libc::IPPROTO_UDP)]),
    },
    Breaker {
        name: "no epoll",
        line: "event-loop",
        status: "fail",
        words: &["epoll"],
        spoil: |_| refuse(libc::SYS_epoll_create1, libc::ENOSYS, &[]),
    },
    Breaker {
        name: "no seccomp",
        line: "seccomp",
        status: "fail",
        words: &["filter", "CONFIG_SECCOMP_FILTER"],
        spoil: |_| refuse(libc::SYS_seccomp, libc::EINVAL, &[]),
    },
    Breaker {
        name: "no Landlock",
        line: "landlock",
        status: "warn",
        words: &["refused", "second layer"],
        spoil: |_| refuse(libc::SYS_landlock_create_ruleset, libc::EOPNOTSUPP, &[]),
    },
    Breaker {
        name: "few descriptors",
        line: "descriptors",
        status: "warn",
        words: &["soft 1024, hard 4096", "limits.conf"],
        spoil: |_| setrlimit(Resource::RLIMIT_NOFILE, 1024, 4096).unwrap(),
    },
    Breaker {
        name: "next to no descriptors",
        line: "descriptors",
        status: "fail",
        words: &["soft 64, hard 64"],
        spoil: |_| setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap(),
    },
    Breaker {
        name: "ports start high",
        line: "low-ports",
        status: "warn",
        words: &["only host ports from 2000 on", "ip_unprivileged_port_start=1024"],
        spoil: |_| {
            own_namespaces(CloneFlags::CLONE_NEWNET);
            std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "2000").unwrap();
        },
    },
    Breaker {
        name: "no runtime directory",
        line: "runtime-dir",
        status: "fail",
        words: &["/tmp/tapway-", "XDG_RUNTIME_DIR"],
        spoil: |machine| {
            own_namespaces(CloneFlags::CLONE_NEWNS);
            for path in ["/tmp", "/run"] {
                mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
            }
            machine.xdg_runtime_dir = None;
        },
    },
    Breaker {
        name: "no /proc to look at",
        line: "congestion-control",
        status: "warn",
        words: &["not readable"],
        spoil: |machine| machine.root = "/nowhere".into(),
    },
];

// _IOW('T', 208, unsigned int), include/uapi/linux/if_tun.h.
const TUNSETOFFLOAD: i32 = 0x4004_54D0;
// _IOW('T', 202, int).
const TUNSETIFF: i32 = 0x4004_54CA;

/// New namespaces beside a user namespace in which we are root.
fn own_namespaces(more: CloneFlags) {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER | more).unwrap();
    std::fs::write("/proc/self/setgroups", "deny").unwrap();
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
}

fn bind(from: &str, onto: &str) {
    mount(Some(from), onto, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

/// Answers `call` with `errno` where each `(argument, mask, value)` holds.
fn refuse(call: libc::c_long, errno: i32, only: &[(u8, i32, i32)]) {
    let conditions: Vec<_> = only
        .iter()
        .map(|&(argument, mask, value)| {
            let op = SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned()));
            let value = u64::from(value.cast_unsigned());
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).unwrap()
        })
        .collect();
    let rules = if conditions.is_empty() { Vec::new() } else { vec![SeccompRule::new(conditions).unwrap()] };
    let filter = SeccompFilter::new(
        [(call, rules)].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// As container engines' default profiles do.
fn refuse_namespaces() {
    refuse(libc::SYS_clone, libc::EPERM, &[(0, libc::CLONE_NEWUSER, libc::CLONE_NEWUSER)]);
}

/// Points the checks at a tree of files of this test: a machine without any of the known switches.
fn no_known_switch(machine: &mut Machine) {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("doctor-{}", std::process::id()));
    machine.root = if std::fs::create_dir_all(&root).is_ok() {
        root
    } else {
        // Run as somebody who may not write where the test was built.
        std::env::temp_dir().join(format!("tapway-doctor-{}", std::process::id()))
    };
    put(
        machine,
        "proc/self/status",
        &std::fs::read_to_string("/proc/self/status").unwrap().replace("Seccomp:\t0", "Seccomp:\t2"),
    );
    put(machine, "etc/passwd", &std::fs::read_to_string("/etc/passwd").unwrap());
}

fn put(machine: &Machine, path: &str, text: &str) {
    let path = machine.root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A machine whose files give this user enough ids, whether or not they are there.
fn enough_ids(machine: &mut Machine) {
    no_known_switch(machine);
    let line = format!("{}:100000:65536\n", nix::unistd::getuid());
    put(machine, "etc/subuid", &line);
    put(machine, "etc/subgid", &line);
}

/// Spoils, examines, prints what was found.
fn examined(spoil: impl FnOnce(&mut Machine)) -> i32 {
    let mut machine = Machine::this();
    let this = machine.clone();
    spoil(&mut machine);
    let checks = examine(&machine);
    println!("\nFOUND {}", serde_json::to_string(&checks).unwrap());
    if machine.root != this.root {
        let _ = std::fs::remove_dir_all(&machine.root);
    }
    0
}

/// The lines that the other process printed.
fn lines(out: &std::process::Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&out.stdout);
    let found = text.lines().find_map(|line| line.strip_prefix("FOUND "));
    let found = found.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&out.stderr)));
    serde_json::from_str(found).unwrap()
}

const IDS: &[&str] = &[
    "tun-device",
    "user-namespaces",
    "mounts",
    "tap",
    "offloads",
    "subordinate-ids",
    "ping-sockets",
    "ipv6",
    "udp-offload",
    "event-loop",
    "seccomp",
    "landlock",
    "descriptors",
    "low-ports",
    "runtime-dir",
    "congestion-control",
];

#[test]
fn each_line_can_be_broken() {
    for breaker in BREAKERS {
        let Some(out) = apart::run("each_line_can_be_broken", breaker.name, || examined(breaker.spoil)) else {
            continue;
        };
        let lines = lines(&out);
        let line = lines.iter().find(|line| line["id"] == breaker.line).unwrap();
        assert_eq!(line["status"], breaker.status, "{}: {line}", breaker.name);
        assert!(line["remedy"].is_string(), "{}: {line}", breaker.name);
        let text = format!("{} {}", line["seen"].as_str().unwrap(), line["remedy"].as_str().unwrap());
        for word in breaker.words {
            assert!(text.contains(word), "{}: '{word}' is not in: {text}", breaker.name);
        }
    }
    for id in IDS {
        assert!(BREAKERS.iter().any(|breaker| breaker.line == *id), "nothing breaks {id}");
    }
}

#[test]
fn here_every_line_is_there_and_none_fails() {
    let Some(out) = apart::run("here_every_line_is_there_and_none_fails", "", || examined(|_| ())) else { return };
    let lines = lines(&out);
    let ids: Vec<_> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids, IDS);
    for line in &lines {
        assert_ne!(line["status"], "fail", "{line}");
        assert!(line["status"] == "ok" || line["remedy"].is_string(), "{line}");
    }
}

/// Runs the program itself with these arguments; what it wrote comes out of this process.
fn tapway(arguments: &[&str]) -> i32 {
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_tapway")).args(arguments).status();
    status.unwrap().code().unwrap()
}

#[test]
fn the_exit_code_and_the_last_line_say_whether_run_will_work() {
    let name = "the_exit_code_and_the_last_line_say_whether_run_will_work";
    let works = apart::run(name, "works", || tapway(&["doctor"]));
    if let Some(out) = works {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(out.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&out.stderr));
        assert!(text.trim_end().lines().last().unwrap().starts_with("tapway run will work here"), "{text}");
        assert!(text.contains("\nok    user-namespaces     made user"), "{text}");
    }
    let broken = apart::run(name, "broken", || {
        setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
        tapway(&["doctor"])
    });
    if let Some(out) = broken {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(out.status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&out.stderr));
        assert!(text.contains("FAIL  descriptors "), "{text}");
        assert_eq!(text.trim_end().lines().last(), Some("tapway run will not work here: 1 failed."));
    }
    let json = apart::run(name, "json", || tapway(&["doctor", "--json"]));
    if let Some(out) = json {
        let text = String::from_utf8_lossy(&out.stdout);
        let value: Value = serde_json::from_str(&text[text.find("{\n").unwrap()..]).unwrap();
        assert_eq!((value["works"].as_bool(), value["checks"].as_array().unwrap().len()), (Some(true), IDS.len()));
    }
}

#[test]
fn a_full_disk_is_told() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_tapway")).arg("doctor").stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(err.starts_with("tapway: cannot write to standard output: "), "{err}");
}
