//! How a helper ends: told to, by signals, and because what it served is gone.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::helper::{HARDENED, Helper, Running, Target, pipe};
use crate::spaces::{Ns, wait_for};
use crate::world::World;

tests! {
    data_on_the_exit_descriptor_is_no_end: real ours;
    the_exit_descriptor_may_be_a_socket: real ours;
    the_exit_descriptor_may_be_the_end_to_write: real ours;
    the_exit_descriptor_may_be_a_file: real ours;
    the_exit_descriptor_may_be_standard_input: real ours;
    the_api_socket_goes_with_the_exit_descriptor: real ours;
    a_sandboxed_api_socket_goes_too: ours;
    a_successors_api_socket_stays: ours;
    signals_end_it: real ours verb;
    an_ignored_signal_stays_ignored: real ours;
    it_dies_with_its_parent: ours;
    the_next_helper_may_start_at_once: real ours;
    the_tap_is_deleted: ours;
    the_last_process_dies: ours;
    another_process_is_still_inside: ours;
    a_bind_mount_holds_the_namespace: ours;
    a_descriptor_holds_the_namespace: ours;
    with_an_exit_descriptor_it_waits_for_that: real ours;
}

/// How soon a helper must have noticed what it should.
const SOON: Duration = Duration::from_secs(5);
/// How long it is watched for not ending.
const WHILE: Duration = Duration::from_millis(2500);

/// With `-c`, this exit descriptor and these options.
fn start(helper: &Helper, pid: i32, exit: impl Into<OwnedFd>, options: &[&str]) -> Running {
    helper.with(&["-c", "--exit-fd=10"]).and(options).and(&[&pid.to_string(), "tap0"]).fd(exit, 10).ready()
}

fn data_on_the_exit_descriptor_is_no_end(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (read, write) = pipe();
    let mut running = start(helper, target.pid, read, &[]);
    let mut write = fs::File::from(write);
    write.write_all(b"data").unwrap();
    running.stays(Duration::from_millis(300));
    target.sh("ping -c1 -W5 10.0.2.2");
    drop(write);
    assert_eq!(running.wait(SOON), 0, "{}", running.output());
}

fn the_exit_descriptor_may_be_a_socket(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (mut near, far) = UnixStream::pair().unwrap();
    let mut running = start(helper, target.pid, far, HARDENED);
    near.write_all(b"data").unwrap();
    running.stays(Duration::from_millis(200));
    near.shutdown(Shutdown::Write).unwrap();
    running.stays(Duration::from_millis(300));
    target.sh("ping -c1 -W5 10.0.2.2");
    drop(near);
    assert_eq!(running.wait(SOON), 0, "{}", running.output());
}

fn the_exit_descriptor_may_be_the_end_to_write(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (read, write) = pipe();
    let mut running = start(helper, target.pid, write, &[]);
    running.stays(Duration::from_millis(200));
    drop(read);
    assert_eq!(running.wait(SOON), 0, "{}", running.output());
}

fn the_exit_descriptor_may_be_a_file(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let file = fs::File::create(w.path("file")).unwrap();
    let mut running = start(helper, target.pid, file, &[]);
    running.stays(Duration::from_millis(500));
    target.sh("ping -c1 -W5 10.0.2.2");
}

fn the_api_socket_goes_with_the_exit_descriptor(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (read, write) = pipe();
    let path = w.path("api");
    let mut running = start(helper, target.pid, read, &["-a", path.to_str().unwrap()]);
    assert!(path.exists());
    drop(write);
    assert_eq!(running.wait(SOON), 0, "{}", running.output());
    assert!(!path.exists(), "the API socket is left behind");
}

/// slirp4netns removes whatever is there.
fn a_successors_api_socket_stays(w: &World, helper: &Helper) {
    let target = Target::new(w);
    for hardening in [&[], HARDENED] {
        let (read, write) = pipe();
        let path = w.path("api");
        let options = [&["-a", path.to_str().unwrap()], hardening].concat();
        let mut running = start(helper, target.pid, read, &options);
        fs::remove_file(&path).unwrap();
        let _successor = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(write);
        assert_eq!(running.wait(SOON), 0, "{}", running.output());
        assert!(path.exists(), "the successor's API socket is gone");
        fs::remove_file(&path).unwrap();
    }
}

/// Upstream cannot reach it any more.
fn a_sandboxed_api_socket_goes_too(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (read, write) = pipe();
    let path = w.path("api");
    let options = ["-a", path.to_str().unwrap(), "--enable-sandbox", "--enable-seccomp"];
    let mut running = start(helper, target.pid, read, &options);
    assert!(path.exists());
    drop(write);
    assert_eq!(running.wait(SOON), 0, "{}", running.output());
    assert!(!path.exists(), "the API socket is left behind");
}

fn the_exit_descriptor_may_be_standard_input(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (read, write) = pipe();
    let mut running = helper.with(&["-c", "-e", "0", &target.pid.to_string(), "tap0"]).fd(read, 0).ready();
    running.stays(Duration::from_millis(200));
    drop(write);
    assert_eq!(running.wait(SOON), 0, "{}", running.output());
}

fn signals_end_it(w: &World, helper: &Helper) {
    let target = Target::new(w);
    for hardening in [&[], HARDENED] {
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGINT, Signal::SIGKILL] {
            let mut running = helper.with(&["-c"]).and(hardening).and(&[&target.pid.to_string(), "tap0"]).ready();
            running.signal(signal);
            assert_eq!(running.wait(SOON), 128 + signal as i32, "{signal} {hardening:?}");
        }
    }
}

/// As a background job of a shell without job control has it.
fn an_ignored_signal_stays_ignored(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let shell = ["sh", "-c", "trap '' INT QUIT; exec \"$@\"", "sh"];
    let mut running = helper.with(&["-c", &target.pid.to_string(), "tap0"]).through(&shell).ready();
    running.signal(Signal::SIGINT);
    running.stays(Duration::from_millis(300));
    target.sh("ping -c1 -W5 10.0.2.2");
}

/// As RootlessKit and buildah start it.
fn it_dies_with_its_parent(w: &World, helper: &Helper) {
    let target = Target::new(w);
    for hardening in [&[], HARDENED] {
        let parent = ["sh", "-c", "setpriv --pdeathsig KILL \"$@\" & exec 3>&-; wait", "sh"];
        let pid = target.pid.to_string();
        let mut running = helper.with(&["-c"]).and(hardening).and(&[&pid, "tap0"]).through(&parent).ready();
        target.sh("ping -c1 -W5 10.0.2.2");
        running.signal(Signal::SIGKILL);
        running.wait(SOON);
        wait_for("the end of its child", SOON, || !target.sh("ip -o link").contains("tap0"));
    }
}

/// A restart policy: the name must be free, whatever way the first one ended.
fn the_next_helper_may_start_at_once(w: &World, helper: &Helper) {
    let target = Target::new(w);
    for round in 0..20 {
        let (read, write) = pipe();
        let hardening: &[&str] = if round % 4 < 2 { HARDENED } else { &[] };
        let mut running = start(helper, target.pid, read, hardening);
        if round % 5 == 0 {
            target.sh("ping -c1 -W5 10.0.2.2");
        }
        if round % 2 == 0 {
            drop(write);
        } else {
            running.signal(Signal::SIGKILL);
        }
        running.wait(SOON);
    }
}

/// Processor time that it has used, in clock ticks.
fn ticks(running: &Running) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn the_tap_is_deleted(w: &World, helper: &Helper) {
    for hardening in [&[], HARDENED] {
        let target = Target::new(w);
        let mut running = helper.with(&["-c"]).and(hardening).and(&[&target.pid.to_string(), "tap0"]).ready();
        target.sh("ip link delete tap0");
        let code = running.wait(SOON);
        assert!((1..128).contains(&code), "ended with {code}\n{}", running.output());
        let said = running.output();
        assert!(said.lines().count() < 40, "{said}");
    }
}

fn the_last_process_dies(w: &World, helper: &Helper) {
    for (options, signal) in [
        (&[][..], Signal::SIGKILL),
        (&["--enable-sandbox", "--enable-seccomp", "-6", "-a", "/mnt/api"], Signal::SIGTERM),
    ] {
        let (process, pid) = Target::process(w, &["unshare", "-r", "-n"]);
        let mut running = helper.with(&["-c"]).and(options).and(&[&pid.to_string(), "tap0"]).ready();
        running.stays(WHILE);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
        drop(process);
        let code = running.wait(SOON);
        assert!(code < 128, "ended with {code}\n{}", running.output());
    }
    // By path, too.
    let (process, pid) = Target::process(w, &["unshare", "-r", "-n"]);
    let net = format!("/proc/{pid}/ns/net");
    let user = format!("--userns-path=/proc/{pid}/ns/user");
    let mut running = helper.with(&["-c", &user, "--netns-type=path", &net, "tap0"]).ready();
    running.stays(WHILE);
    drop(process);
    running.wait(SOON);
}

fn another_process_is_still_inside(w: &World, helper: &Helper) {
    let (process, pid) = Target::process(w, &["unshare", "-r", "-n"]);
    let enter = ["nsenter", "-t", &pid.to_string(), "-U", "-n", "--preserve-credentials"];
    let (second, inside) = Target::process(w, &enter);
    let mut running = helper.with(&["-c", &pid.to_string(), "tap0"]).ready();
    drop(process);
    running.stays(WHILE);
    let enter = ["nsenter", "-t", &inside.to_string(), "-U", "-n", "--preserve-credentials", "ping", "-c1", "10.0.2.2"];
    w.host.cmd(&enter).ok();
    drop(second);
    running.wait(SOON);
}

fn a_bind_mount_holds_the_namespace(w: &World, helper: &Helper) {
    let (process, pid) = Target::process(w, &["unshare", "-r", "-n"]);
    let path = w.path("netns");
    fs::write(&path, "").unwrap();
    let shown = path.display();
    // Entered by its path, as podman has it; the user namespace is held by somebody else.
    let keeper = Target::made_by(w, &["nsenter", "-t", &pid.to_string(), "-U", "--preserve-credentials"]);
    w.host.sh(&format!("mount --bind /proc/{pid}/ns/net {shown}"));
    let user = format!("--userns-path=/proc/{}/ns/user", keeper.pid);
    for hardening in [&[][..], &["--enable-seccomp"]] {
        let mut running = helper
            .with(&["-c"])
            .and(hardening)
            .and(&[&user, "--netns-type=path", path.to_str().unwrap(), "tap0"])
            .ready();
        running.stays(Duration::from_millis(100));
    }
    let args = ["-c", "--enable-seccomp", &user, "--netns-type=path", path.to_str().unwrap(), "tap0"];
    let mut running = helper.with(&args).ready();
    drop(process);
    running.stays(WHILE);
    w.host.sh(&format!("nsenter --net={shown} ping -c1 -W5 10.0.2.2"));
    w.host.sh(&format!("umount {shown}"));
    running.wait(SOON);
}

fn a_descriptor_holds_the_namespace(w: &World, helper: &Helper) {
    let (process, pid) = Target::process(w, &["unshare", "-r", "-n"]);
    let held: Ns = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap().into();
    let mut running = helper.with(&["-c", "--enable-sandbox", &pid.to_string(), "tap0"]).ready();
    drop(process);
    running.stays(WHILE);
    held.sh("ping -c1 -W5 10.0.2.2");
    drop(held);
    running.wait(SOON);
}

/// The caller decides, even about a namespace without processes.
fn with_an_exit_descriptor_it_waits_for_that(w: &World, helper: &Helper) {
    let target = Target::new(w);
    let (read, write) = pipe();
    let mut running = start(helper, target.pid, read, &[]);
    let begin = Instant::now();
    running.stays(Duration::from_secs(1));
    let used = ticks(&running);
    assert!(used < 50, "{used} ticks of processor time in {:?} of silence", begin.elapsed());
    drop(target);
    drop(write);
    let mut code = None;
    wait_for("the end", SOON, || {
        code = running.child.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    });
    // Both happened; either is a reason to end.
    assert!(code.flatten().is_some(), "ended by a signal");
}
