//! What a running helper has given up, seen from outside. What its system call filter does from inside is in
//! `tests/confine.rs`.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::helper::{HARDENED, Helper, Running, Target, add, ask, pipe, read_all};
use crate::spaces::wait_for;
use crate::tools::{ask_tcp, at, tell_tcp};
use crate::world::{GATEWAY4, World};

tests! {
    capabilities: ours verb;
    the_sandbox_keeps_one_capability: real ours;
    the_sandbox_is_all_that_there_is: real ours;
    the_sandbox_of_one_who_is_root: real ours;
    seccomp_is_told: real ours;
    descriptors_that_nobody_named: ours;
    the_parents_death_signal_stays: ours;
    low_ports_where_the_caller_may: real ours;
    its_name_in_the_process_table: real ours;
}

fn set(running: &Running, name: &str) -> u64 {
    u64::from_str_radix(&running.status(name), 16).unwrap()
}

/// Given up whatever was asked for. Upstream keeps them unless asked.
fn capabilities(w: &World, helper: &Helper) {
    for options in [&[][..], &["--enable-seccomp"], &["--enable-sandbox"], HARDENED] {
        let guest = helper.guest(w, options);
        let low_ports = if options.contains(&"--enable-sandbox") { 0x400 } else { 0 };
        for name in ["CapPrm", "CapEff", "CapInh"] {
            assert_eq!(set(&guest.helper, name), low_ports, "{name} with {options:?}");
        }
        assert_eq!(set(&guest.helper, "CapAmb"), 0, "{options:?}");
        assert_eq!((guest.helper.status("Seccomp"), guest.helper.status("NoNewPrivs")), ("2".into(), "1".into()));
        let limits = fs::read_to_string(format!("/proc/{}/limits", guest.helper.pid())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        guest.sh("ping -c1 -W5 10.0.2.2");
    }
    // With all that a root of the host's user namespace has.
    let target = Target::new(w);
    let running = helper.with(&["-c", &target.pid.to_string(), "tap0"]).privileged().ready();
    for name in ["CapPrm", "CapEff", "CapInh"] {
        assert_eq!(set(&running, name) & !0x400, 0, "{name}");
    }
}

fn the_sandbox_keeps_one_capability(w: &World, helper: &Helper) {
    let guest = helper.guest(w, &["--enable-sandbox"]);
    for name in ["CapPrm", "CapEff", "CapInh"] {
        assert_eq!(set(&guest.helper, name), 0x400, "{name}");
    }
    assert_eq!(guest.helper.status("NoNewPrivs"), "1");
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("cannot read {directory}: {e}"));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_a_sandbox(running: &Running) {
    let root = format!("/proc/{}/root", running.pid());
    assert_eq!(names(&root), ["etc", "run"]);
    assert!(Path::new(&format!("{root}/etc/resolv.conf")).exists());
    for directory in [root.clone(), format!("{root}/etc"), format!("{root}/run")] {
        let refused = fs::write(format!("{directory}/x"), "").expect_err("it must be read-only");
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{directory}: {refused}");
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", running.pid())).unwrap();
    let outside = |line: &&str| {
        let at = line.split_whitespace().nth(4).unwrap();
        at != "/" && !at.starts_with("/etc") && !at.starts_with("/run")
    };
    let others: Vec<_> = mounts.lines().filter(outside).collect();
    assert!(others.is_empty(), "{others:#?}");
}

fn the_sandbox_is_all_that_there_is(w: &World, helper: &Helper) {
    let guest = helper.guest(w, HARDENED);
    is_a_sandbox(&guest.helper);
}

/// Podman's helper is root of podman's user namespace, in podman's view of the network.
fn the_sandbox_of_one_who_is_root(w: &World, helper: &Helper) {
    let host = Target::new(w);
    host.sh("ip link set lo up");
    let enter = ["nsenter", "-t", &host.pid.to_string(), "-U", "-n", "--preserve-credentials", "--"];
    let container = Target::made_by(w, &[&enter[..], &["unshare", "-n"]].concat());
    let (net, api) = (format!("/proc/{}/ns/net", container.pid), w.path("api"));
    let args = ["-c", "--netns-type=path", "-a", api.to_str().unwrap(), &net, "tap0"];
    let running = helper.with(&args).and(HARDENED).through(&enter).ready();
    is_a_sandbox(&running);
    // It may still forward a low port of the network that it belongs to.
    tell_tcp(&container.ns, at([0; 4], 80));
    assert_eq!(ask(&api, &add("tcp", at([127, 0, 0, 1], 80), "", 80))["return"]["id"], 1);
    let to = at([127, 0, 0, 1], 80);
    assert_eq!(ask_tcp(&host.ns, at([127, 0, 0, 1], 0), to).1.ip(), GATEWAY4);
}

fn seccomp_is_told(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (exit, held) = pipe();
    let args = ["-c", "--enable-seccomp", "-e", "5", &target.pid.to_string(), "tap0"];
    let mut running = helper.with(&args).fd(exit, 5).ready();
    drop(held);
    running.wait(Duration::from_secs(5));
    let said = running.stdout();
    let line = said.lines().find(|line| line.starts_with("seccomp: The following syscalls are blocked: "));
    assert!(line.is_some_and(|line| line.contains(" execve ") && line.contains(" setns ")), "{said}");
    assert!(said.contains("WARNING: Support for seccomp is experimental"), "{said}");
}

/// A caller's other descriptors are none of its business: holding them could keep something from ending.
fn descriptors_that_nobody_named(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (mut leaked, end) = pipe();
    let start = helper.with(&["-c", &target.pid.to_string(), "tap0"]).fd(end, 50);
    let mut running = start.ready();
    assert_eq!(read_all(&mut leaked, Duration::from_secs(2)).as_deref(), Some(&b""[..]), "it holds a stray descriptor");
    running.stays(Duration::from_millis(50));
    target.sh("ping -c1 -W5 10.0.2.2");
}

/// RootlessKit and buildah have their helpers killed that way; a change of credentials would cancel it.
fn the_parents_death_signal_stays(w: &World, helper: &Helper) {
    for options in [&[][..], HARDENED] {
        let target = Target::new(w);
        let script = "setpriv --pdeathsig KILL -- \"$@\" & exec 3>&-; echo $!; wait";
        let start = helper.with(&["-c", &target.pid.to_string(), "tap0"]).and(options);
        let parent = start.through(&["sh", "-c", script, "sh"]).ready();
        let said = parent.stdout();
        let pid: i32 = said.lines().find_map(|line| line.parse().ok()).unwrap_or_else(|| panic!("{said}"));
        let state = || {
            let mut text = String::new();
            let _ = fs::File::open(format!("/proc/{pid}/stat")).map(|mut file| file.read_to_string(&mut text));
            text.rsplit(')').next().unwrap().trim().chars().next()
        };
        assert!(matches!(state(), Some('S' | 'R')), "{:?}", state());
        parent.signal(Signal::SIGKILL);
        wait_for("the helper's death", Duration::from_secs(5), || matches!(state(), None | Some('Z')));
    }
}

fn low_ports_where_the_caller_may(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let api = w.path("api");
    let args = ["-c", "-a", api.to_str().unwrap(), &target.pid.to_string(), "tap0"];
    let _running = helper.with(&args).privileged().ready();
    tell_tcp(&target.ns, at([0; 4], 80));
    assert_eq!(ask(&api, &add("tcp", at([127, 0, 0, 1], 80), "", 80))["return"]["id"], 1);
    ask_tcp(&w.host, at([127, 0, 0, 1], 0), at([127, 0, 0, 1], 80));
}

/// Scripts look for it by name.
fn its_name_in_the_process_table(w: &World, helper: &Helper) {
    let guest = helper.guest(w, HARDENED);
    let comm = fs::read_to_string(format!("/proc/{}/comm", guest.helper.pid())).unwrap();
    assert_eq!(comm, "slirp4netns\n");
}
