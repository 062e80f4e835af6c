//! The helper under test, started as its callers start it, and the namespaces that it serves.
//!
//! A [`Start`] is a command line that still takes descriptors; [`Start::ready`] waits for the ready byte and checks it.
//! The helper's two outputs go to files, so nothing that it writes can block it.

#![allow(unsafe_code, reason = "a child is given descriptors under chosen numbers between fork and exec")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use serde_json::Value;

use crate::spaces::{Cmd, Ended, Ns, Proc, need, wait_for};
use crate::tools::PATIENCE;
use crate::world::{World, addresses6};

/// From exec to the ready byte, at the very most.
const READY: Duration = Duration::from_secs(20);

/// What podman and RootlessKit add where they can.
pub const HARDENED: &[&str] = &["--enable-sandbox", "--enable-seccomp"];

/// Which program is asked.
pub struct Helper {
    argv: Vec<String>,
    real: bool,
}

impl Helper {
    /// Debian's slirp4netns.
    pub fn real(_: &World) -> Self {
        need("slirp4netns");
        Self { argv: vec!["slirp4netns".into()], real: true }
    }

    /// tapway under the name slirp4netns.
    pub fn ours(w: &World) -> Self {
        let link = w.path("slirp4netns");
        if !link.exists() {
            symlink(w.binary(), &link).unwrap();
        }
        Self { argv: vec![link.display().to_string()], real: false }
    }

    /// `tapway slirp4netns`.
    pub fn verb(w: &World) -> Self {
        Self { argv: vec![w.binary().into(), "slirp4netns".into()], real: false }
    }

    /// Whether upstream's known defects are to be expected.
    pub fn is_real(&self) -> bool {
        self.real
    }

    /// A command line.
    pub fn with<S: AsRef<str>>(&self, args: &[S]) -> Start {
        let mut argv = self.argv.clone();
        argv.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        Start { prefix: Vec::new(), argv, fds: Vec::new(), drop_caps: true }
    }

    /// A new namespace with this helper: `-c`, an API socket, and these options.
    pub fn guest(&self, w: &World, options: &[&str]) -> Guest {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let api = w.path(&format!("api.{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
        let target = Target::new(w);
        let socket = format!("--api-socket={}", api.display());
        let pid = target.pid.to_string();
        let helper = self.with(&[&["-c", &socket], options, &[&pid, "tap0"]].concat()).ready();
        Guest { target, helper, api }
    }
}

/// A command line that is not started yet.
#[must_use]
pub struct Start {
    prefix: Vec<String>,
    argv: Vec<String>,
    fds: Vec<(OwnedFd, RawFd)>,
    drop_caps: bool,
}

impl Start {
    /// More arguments.
    pub fn and<S: AsRef<str>>(mut self, args: &[S]) -> Self {
        self.argv.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Gives it this descriptor under this number.
    pub fn fd(mut self, fd: impl Into<OwnedFd>, number: RawFd) -> Self {
        self.fds.push((fd.into(), number));
        self
    }

    /// Puts another program in front, such as nsenter.
    pub fn through<S: AsRef<str>>(mut self, prefix: &[S]) -> Self {
        need(prefix[0].as_ref());
        self.prefix = prefix.iter().map(|arg| arg.as_ref().to_owned()).collect();
        self
    }

    /// With the capabilities of the stage's user namespace.
    pub fn privileged(mut self) -> Self {
        self.drop_caps = false;
        self
    }

    /// The command, with its descriptors.
    pub fn command(self) -> Command {
        let mut argv: Vec<String> = Vec::new();
        if self.drop_caps {
            argv.extend(["setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--"].map(str::to_owned));
        }
        argv.extend(self.prefix);
        argv.extend(self.argv);
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).stdin(Stdio::null()).current_dir("/");
        // Sources out of the way of targets.
        let fds: Vec<(OwnedFd, RawFd)> = self
            .fds
            .into_iter()
            .map(|(fd, number)| {
                let high = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(200)).expect("cannot duplicate a descriptor");
                // SAFETY: just made, and nobody else knows it.
                (unsafe { std::os::fd::FromRawFd::from_raw_fd(high) }, number)
            })
            .collect();
        // SAFETY: between fork and exec the closure only calls close_range(2) and dup2(2), which are async-signal-safe,
        // on descriptors that it owns; the targets are the child's own.
        unsafe {
            command.pre_exec(move || {
                // Nothing that this process inherited itself, from cargo for one.
                if libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                for (fd, number) in &fds {
                    if libc::dup2(fd.as_raw_fd(), *number) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command
    }

    /// Starts it.
    pub fn spawn(self) -> Running {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let log = |name: &str| PathBuf::from(format!("/mnt/helper.{serial}.{name}"));
        let (out, err) = (log("out"), log("err"));
        let mut command = self.command();
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Running { child, out, err }
    }

    /// Starts it with a ready descriptor (3) and waits until it says so: one byte, then the end.
    pub fn ready(mut self) -> Running {
        let (mut said, tell) = pipe();
        self.argv.push("--ready-fd=3".into());
        let mut running = self.fd(tell, 3).spawn();
        let text = read_all(&mut said, READY).unwrap_or_else(|| panic!("not ready in time\n{}", running.output()));
        assert_eq!(text, b"1", "the ready descriptor; exit {:?}\n{}", running.child.try_wait(), running.output());
        running
    }

    /// Runs it to its end.
    pub fn end(self) -> Ended {
        let mut running = self.spawn();
        let code = running.wait(READY);
        Ended { stdout: running.stdout(), stderr: running.stderr(), code }
    }

    /// Runs it to its end: it fails with code 1, never was ready, and said `text` somewhere.
    pub fn fails(mut self, text: &str) {
        let (mut said, tell) = pipe();
        self.argv.push("--ready-fd=3".into());
        let shown = self.argv.join(" ");
        let ended = self.fd(tell, 3).end();
        assert_eq!(ended.code, 1, "{shown}\n{}\n{}", ended.stdout, ended.stderr);
        assert!(
            ended.stdout.contains(text) || ended.stderr.contains(text),
            "{shown}: no {text:?} in\n{}\n{}",
            ended.stdout,
            ended.stderr
        );
        assert_eq!(read_all(&mut said, READY).as_deref(), Some(&b""[..]), "{shown}: ready, and then it failed");
    }
}

/// A helper that was started; killed when dropped.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    /// Both outputs.
    pub fn output(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout(), self.stderr())
    }

    /// Waits for its end; the exit code, or 128 + the signal.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let give_up = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
            }
            assert!(Instant::now() < give_up, "the helper did not end within {limit:?}\n{}", self.output());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// It must go on for this long.
    pub fn stays(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let status = self.child.try_wait().unwrap();
            assert!(status.is_none(), "the helper ended too early ({status:?})\n{}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// One field of /proc/PID/status.
    pub fn status(&self, field: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A user and a network namespace as `unshare -r -n` makes them, and the process that lives there.
pub struct Target {
    pub pid: i32,
    pub ns: Ns,
    _process: Proc,
}

impl Target {
    pub fn new(w: &World) -> Self {
        Self::made_by(w, &["unshare", "-r", "-n"])
    }

    /// By this command, followed by one that stays.
    pub fn made_by(w: &World, maker: &[&str]) -> Self {
        let (process, pid) = Self::process(w, maker);
        let file = File::open(format!("/proc/{pid}/ns/net")).unwrap();
        Self { pid, ns: file.into(), _process: process }
    }

    /// The process alone: nothing here holds its namespace open.
    pub fn process(w: &World, maker: &[&str]) -> (Proc, i32) {
        let argv = [maker, &["sh", "-c", "echo; exec sleep 1000000"]].concat();
        let mut process = w.host.cmd(&argv).unprivileged().spawn();
        let mut line = String::new();
        BufReader::new(process.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "{maker:?} failed\n{}", process.stderr());
        let pid = process.pid();
        (process, pid)
    }

    /// A program inside, as root of the user namespace.
    pub fn cmd<S: AsRef<str>>(&self, argv: &[S]) -> Cmd {
        need(argv[0].as_ref());
        let pid = self.pid.to_string();
        let mut full = vec!["nsenter", "-t", &pid, "-U", "-n", "--preserve-credentials", "--"];
        full.extend(argv.iter().map(AsRef::as_ref));
        Ns::current().cmd(&full)
    }

    /// A shell line in the target's mount namespace; it must succeed.
    pub fn mount_sh(&self, line: &str) -> String {
        let pid = self.pid.to_string();
        let enter = ["nsenter", "-t", &pid, "-U", "-m", "--preserve-credentials", "--", "sh", "-ec", line];
        Ns::current().cmd(&enter).ok()
    }

    /// A shell line inside; it must succeed.
    pub fn sh(&self, line: &str) -> String {
        self.cmd(&["sh", "-ec", line]).ok()
    }
}

/// A namespace and its helper.
pub struct Guest {
    pub target: Target,
    pub helper: Running,
    pub api: PathBuf,
}

impl Guest {
    pub fn ns(&self) -> &Ns {
        &self.target.ns
    }

    pub fn sh(&self, line: &str) -> String {
        self.target.sh(line)
    }

    /// The address that the guest made of the router's advertisement.
    pub fn addr6(&self) -> Ipv6Addr {
        let mut all = Vec::new();
        wait_for("an IPv6 address", Duration::from_secs(10), || {
            all = addresses6(self.ns(), "tap0", "global");
            !all.is_empty()
        });
        all[0]
    }

    /// Forwards a port; it must work. Returns the id.
    pub fn forward(&self, proto: &str, host: SocketAddr, guest_port: u16) -> u64 {
        let reply = ask(&self.api, &add(proto, host, "", guest_port));
        reply["return"]["id"].as_u64().unwrap_or_else(|| panic!("{proto} {host} was not forwarded: {reply}"))
    }
}

/// A request for a forward.
pub fn add(proto: &str, host: SocketAddr, guest_addr: &str, guest_port: u16) -> String {
    serde_json::json!({"execute": "add_hostfwd", "arguments": {
        "proto": proto, "host_addr": host.ip().to_string(), "host_port": host.port(),
        "guest_addr": guest_addr, "guest_port": guest_port,
    }})
    .to_string()
}

/// One request to an API socket as clients make it: all of it, half-close, everything until the end.
pub fn raw(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("cannot connect to {}: {e}", path.display()));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

/// The same, with the reply parsed.
pub fn ask(path: &Path, request: &str) -> Value {
    let reply = raw(path, request.as_bytes());
    serde_json::from_str(&reply).unwrap_or_else(|e| panic!("{request} was answered {reply:?}: {e}"))
}

/// A pipe: the end to read and the end to write.
pub fn pipe() -> (File, OwnedFd) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (File::from(read), write)
}

/// Everything until the end of a pipe; nothing if the end does not come in time.
pub fn read_all(from: &mut File, limit: Duration) -> Option<Vec<u8>> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let give_up = Instant::now() + limit;
    let mut all = Vec::new();
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap() == 0 {
            return None;
        }
        let mut bytes = [0; 4096];
        match from.read(&mut bytes).unwrap() {
            0 => return Some(all),
            n => all.extend(&bytes[..n]),
        }
    }
}
