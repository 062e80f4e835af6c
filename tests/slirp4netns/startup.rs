//! From the command line to the ready byte: what is there by then, and how each failure is told.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::helper::{HARDENED, Helper, Target, ask, pipe, read_all};
use crate::tools::at;
use crate::world::{INET4, World};

tests! {
    everything_is_there_at_the_ready_byte: real ours verb;
    a_closed_ready_descriptor_is_ignored: real ours;
    the_ready_descriptor_may_be_standard_output: real ours;
    help_is_complete: real ours verb;
    a_reader_may_leave_in_the_middle_of_help: ours verb;
    no_process_stays_beside_it: real ours;
    the_outputs_end_with_it: real ours verb;
    targets_that_cannot_be_joined: real ours verb;
    a_namespace_of_somebody_else: real ours;
    the_owner_of_a_path_is_found: ours;
    tap_names: real ours;
    an_unusable_tun_device: real ours;
    configuration_that_the_kernel_refuses: real ours;
    api_sockets_that_cannot_be: real ours;
    whatever_is_at_the_api_path_is_replaced: real ours;
    relative_paths: real ours;
    the_smallest_and_the_largest_mtu: real ours;
    the_banner_tells_the_addresses: real ours;
}

fn everything_is_there_at_the_ready_byte(w: &World, helper: &Helper) {
    for round in 0..5 {
        let target = Target::new(w);
        let path = w.path(&format!("api{round}"));
        let socket = path.to_str().unwrap();
        let start = helper.with(&["-c", "-6", "-a", socket, &target.pid.to_string(), "tap0"]).and(HARDENED);
        let running = start.ready();
        let (seccomp, no_new_privs) = (running.status("Seccomp"), running.status("NoNewPrivs"));
        let list = ask(&path, r#"{"execute":"list_hostfwd"}"#);
        assert_eq!((seccomp.as_str(), no_new_privs.as_str()), ("2", "1"));
        assert!(list["entries"].as_array().is_some_and(Vec::is_empty), "{list}");
        let (link, route) = (target.sh("ip -o addr show tap0"), target.sh("ip route"));
        assert!(link.contains("inet 10.0.2.100/24 "), "{link}");
        assert!(route.contains("default via 10.0.2.2 dev tap0"), "{route}");
    }
}

fn a_closed_ready_descriptor_is_ignored(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let mut running = helper.with(&["-c", "-r", "77", &target.pid.to_string(), "tap0"]).spawn();
    running.stays(Duration::from_millis(500));
    target.sh("ping -c1 -W5 10.0.2.2");
}

/// `slirp4netns -r 1 … | read -n1`: nothing else may come that way.
fn the_ready_descriptor_may_be_standard_output(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (mut said, tell) = pipe();
    let mut running = helper.with(&["-c", "-r", "1", &target.pid.to_string(), "tap0"]).fd(tell, 1).spawn();
    let all = read_all(&mut said, Duration::from_secs(10));
    assert_eq!(all.as_deref().map(String::from_utf8_lossy).as_deref(), Some("1"));
    running.stays(Duration::from_millis(100));
    target.sh("ping -c1 -W5 10.0.2.2");
}

/// Callers look for these words before they use an option.
fn help_is_complete(_: &World, helper: &Helper) {
    let ended = helper.with(&["--help"]).end();
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let words: Vec<&str> = ended.stdout.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
    for option in [
        "--api-socket",
        "--cidr",
        "--configure",
        "--disable-dns",
        "--disable-host-loopback",
        "--enable-ipv6",
        "--enable-sandbox",
        "--enable-seccomp",
        "--exit-fd",
        "--help",
        "--macaddress",
        "--mtu",
        "--netns-type",
        "--outbound-addr",
        "--outbound-addr6",
        "--ready-fd",
        "--target-type",
        "--userns-path",
        "--version",
    ] {
        assert!(words.contains(&option), "no {option} in {}", ended.stdout);
    }
    let version = helper.with(&["--version"]).end();
    let first = version.stdout.lines().next().unwrap_or_default();
    assert!(version.code == 0 && first.starts_with("slirp4netns version "), "{}", version.stdout);
}

/// `slirp4netns --help | grep -q` of Docker's script closes the pipe at once.
fn a_reader_may_leave_in_the_middle_of_help(_: &World, helper: &Helper) {
    let (read, write) = pipe();
    drop(read);
    let mut command = helper.with(&["--help"]).command();
    let output = command.stdout(Stdio::from(write)).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn no_process_stays_beside_it(w: &World, helper: &Helper) {
    let guest = helper.guest(w, HARDENED);
    let pid = guest.helper.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children, "");
}

/// RootlessKit reads the helper's output to its end: whatever way it ends, nothing may hold the pipe open.
fn the_outputs_end_with_it(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let endings: [(&[&str], Option<Signal>); 4] = [
        (&["-c", &pid, "tap0"], Some(Signal::SIGKILL)),
        (&["-c", "--enable-sandbox", "--enable-seccomp", &pid, "tap0"], Some(Signal::SIGTERM)),
        (&["-c", "--exit-fd=10", &pid, "tap0"], None),
        (&["-c", "4194304", "tap0"], None),
    ];
    for (args, signal) in endings {
        let (mut output, write) = pipe();
        let (mut said, tell) = pipe();
        let args = [args, &["-r", "3"]].concat();
        let mut command = helper.with(&args).fd(tell, 3).command();
        let mut child = command.stdout(write.try_clone().unwrap()).stderr(write).spawn().unwrap();
        drop(command);
        read_all(&mut said, Duration::from_secs(20)).expect("neither ready nor ended");
        if let Some(signal) = signal {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        }
        child.wait().unwrap();
        let all = read_all(&mut output, Duration::from_secs(2));
        assert!(all.is_some(), "{args:?}: something holds the output open");
    }
}

fn targets_that_cannot_be_joined(w: &World, helper: &Helper) {
    helper.with(&["-c", "4194304", "tap0"]).fails("/proc/4194304/ns/net: No such file or directory");
    helper.with(&["-c", "--netns-type=path", "/etc/passwd", "tap0"]).fails("setns(CLONE_NEWNET): Invalid argument");
    let gone = helper.with(&["-c", "--netns-type=path", "/mnt/not-there", "tap0"]).end();
    assert_eq!(gone.code, 1);
    let text = "existing path expected when --netns-type=path: No such file or directory";
    assert!(gone.stderr.contains(text) && gone.stdout.contains("Usage"), "{}\n{}", gone.stdout, gone.stderr);
    // A process that this user may not look into, as another user's.
    let me = std::process::id().to_string();
    helper.with(&["-c", &me, "tap0"]).fails(&format!("/proc/{me}/ns/net: Permission denied"));
    // A thread of nobody: a process that ended and was not reaped.
    let mut zombie = w.host.cmd(&["true"]).unprivileged().spawn();
    let pid = zombie.pid().to_string();
    nix::sys::wait::waitid(
        nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(zombie.pid())),
        nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
    )
    .unwrap();
    helper.with(&["-c", &pid, "tap0"]).fails("");
    zombie.child.wait().unwrap();
}

fn a_namespace_of_somebody_else(w: &World, helper: &Helper) {
    // It belongs to the stage's own user namespace, in which an ordinary user has no say.
    let path = w.path("foreign");
    fs::write(&path, "").unwrap();
    w.host.sh(&format!("mount --bind {} {}", w.router.path(), path.display()));
    let args = ["-c", "--netns-type=path", path.to_str().unwrap(), "tap0"];
    helper.with(&args).fails("setns(CLONE_NEWNET): Operation not permitted");
}

/// Upstream gives up here: it has not been told which user namespace to join.
fn the_owner_of_a_path_is_found(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let net = format!("/proc/{}/ns/net", target.pid);
    for hardening in [&[], HARDENED] {
        let _running = helper.with(&["-c"]).and(hardening).and(&["--netns-type=path", &net, "tap0"]).ready();
        target.sh("ping -c1 -W5 10.0.2.2");
    }
}

fn tap_names(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    helper.with(&["-c", &pid, "a/b"]).fails("ioctl(TUNSETIFF): Invalid argument");
    helper.with(&["-c", &pid, "lo"]).fails("ioctl(TUNSETIFF): Invalid argument");
    helper.with(&["-c", &pid, "tap%d"]).fails("cannot set device up: No such device");
    // Cut to what an interface name may have.
    let long = helper.with(&["-c", &pid, "averyveryverylongtapname"]).ready();
    target.sh("ip link show averyveryverylo; ping -c1 -W5 10.0.2.2");
    helper.with(&["-c", &pid, "averyveryverylongtapname"]).fails("ioctl(TUNSETIFF): Device or resource busy");
    drop(long);
    // The kernel may choose.
    let _chosen = helper.with(&[pid.as_str(), "tap%d"]).ready();
    let links = target.sh("ip -o link");
    assert!(links.contains(": tap0: "), "{links}");
}

fn an_unusable_tun_device(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    w.host.sh("mount -t tmpfs -o mode=755 none /dev/net");
    helper.with(&["-c", &pid, "tap0"]).fails("open(\"/dev/net/tun\"): No such file or directory");
    fs::write("/dev/net/tun", "").unwrap();
    helper.with(&["-c", &pid, "tap0"]).fails("ioctl(TUNSETIFF): Inappropriate ioctl for device");
    // Somebody else's, and closed.
    w.host.sh("mount --bind /proc/kmsg /dev/net/tun");
    helper.with(&["-c", &pid, "tap0"]).fails("open(\"/dev/net/tun\"): Permission denied");
}

fn configuration_that_the_kernel_refuses(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let mac = "--macaddress=01:00:00:00:00:01";
    helper.with(&["-c", mac, &pid, "tap0"]).fails("cannot set MAC address: Cannot assign requested address");
    helper.with(&["-c", "--mtu=60", &pid, "tap0"]).fails("cannot set MTU: Invalid argument");
    helper.with(&["--mtu=60", &pid, "tap0"]).fails("slirp_new failed");
    // What failed leaves nothing behind.
    let _running = helper.with(&["-c", &pid, "tap0"]).ready();
    target.sh("ping -c1 -W5 10.0.2.2");
}

fn api_sockets_that_cannot_be(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid.to_string();
    let with = |path: &str| helper.with(&["-c", "-a", path, &pid, "tap0"]);
    let long = format!("/mnt/{}", "x".repeat(103));
    assert_eq!(long.len(), 108);
    with(&long).fails("the specified API socket path is too long (>= 108)");
    let running = with(&long[..107]).ready();
    assert!(ask(long[..107].as_ref(), r#"{"execute":"list_hostfwd"}"#)["entries"].is_array());
    drop(running);
    with("/mnt/no/such/directory").fails("No such file or directory");
    fs::create_dir(w.path("directory")).unwrap();
    with("/mnt/directory").fails("");
}

fn whatever_is_at_the_api_path_is_replaced(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let path = w.path("api");
    let start = || helper.with(&["-c", "-a", path.to_str().unwrap(), &target.pid.to_string(), "tap0"]).ready();
    let mode = || std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777;
    fs::write(&path, "a file").unwrap();
    drop(start());
    // A socket of a dead helper.
    let running = start();
    assert!(ask(&path, r#"{"execute":"list_hostfwd"}"#)["entries"].is_array());
    assert_eq!(mode(), 0o755);
    drop(running);
    // A socket that somebody serves.
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    let _running = start();
    assert!(ask(&path, r#"{"execute":"list_hostfwd"}"#)["entries"].is_array());
}

/// From the directory in which the caller stands.
fn relative_paths(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let pid = target.pid;
    let (read, write) = pipe();
    let there = ["sh", "-c", "cd /mnt/home && exec \"$@\"", "sh"];
    let (user, net) = (format!("--userns-path=../../proc/{pid}/ns/user"), format!("../../proc/{pid}/ns/net"));
    let args = ["-c", "-e", "5", "-a", "api.sock", &user, "--netns-type=path", &net, "tap0"];
    let mut running = helper.with(&args).through(&there).fd(read, 5).ready();
    let api = w.path("home/api.sock");
    assert!(ask(&api, r#"{"execute":"list_hostfwd"}"#)["entries"].is_array());
    target.sh("ping -c1 -W5 10.0.2.2");
    drop(write);
    assert_eq!(running.wait(Duration::from_secs(5)), 0);
    assert!(!api.exists());
}

fn the_smallest_and_the_largest_mtu(w: &World, helper: &Helper) {
    for (port, mtu) in [(7000, "68"), (7001, "65521"), (7002, "576"), (7003, "1280")] {
        let guest = helper.guest(w, &["--mtu", mtu]);
        assert!(guest.sh("ip link show tap0").contains(&format!(" mtu {mtu} ")));
        let length = if mtu == "68" { 100_000 } else { 2 << 20 };
        crate::data::bulk(guest.ns(), &w.internet, at(INET4, port), at(INET4, port), length);
    }
}

fn the_banner_tells_the_addresses(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (read, write) = pipe();
    let args = ["-c", "-m", "1400", "--cidr=192.168.64.0/20", "-e", "5", &target.pid.to_string(), "tap0"];
    let mut running = helper.with(&args).fd(read, 5).ready();
    drop(write);
    assert_eq!(running.wait(Duration::from_secs(5)), 0);
    let banner = running.stdout();
    for line in [
        "Starting slirp",
        "* MTU:             1400",
        "* Network:         192.168.64.0",
        "* Netmask:         255.255.240.0",
        "* Gateway:         192.168.64.2",
        "* DNS:             192.168.64.3",
        "* Recommended IP:  192.168.64.100",
    ] {
        assert!(banner.lines().any(|l| l == line), "no {line:?} in\n{banner}");
    }
    assert!(banner.contains("WARNING: 127.0.0.1:* on the host is accessible as 192.168.64.2 (set"), "{banner}");
}
