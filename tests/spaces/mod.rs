//! What the end-to-end tests have in common: network namespaces as values, programs in them, and the way of a test
//! into namespaces of its own.
//!
//! [`enter`] starts the calling test again, as an ordinary user (when we are root), in new user, network, mount and
//! PID namespaces; there [`inside`] says so and the test plays. When it ends, the PID namespace takes every process
//! with it and the mount namespace every file.
//!
//! Sockets of any namespace are made in this process: network namespaces belong to threads, so [`Ns::run`] starts a
//! thread that enters the namespace and runs a closure there.
//!
//! A test binary that includes this module says in `crate::PACKAGES` what Debian packages it needs.

#![allow(dead_code, reason = "not every test binary needs all of it")]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Set in the inner run of a test; its value is the path of the `tapway` binary to use.
const INNER: &str = "TAPWAY_TEST_INNER";
/// Where the tests keep their files: a tmpfs of the inner mount namespace.
pub const SCRATCH: &str = "/mnt";
/// Search path for programs; the caller's may lead to directories that the ordinary user cannot read.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A network namespace that stays alive as long as this value.
#[derive(Clone)]
pub struct Ns(Arc<File>);

impl From<File> for Ns {
    /// The namespace that an open `/proc/PID/ns/net` stands for.
    fn from(file: File) -> Self {
        Self(Arc::new(file))
    }
}

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

    /// A path by which any program can open it, as long as this process and this value live.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
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
    #[track_caller]
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
    /// What is put before the program's own words.
    prefix: Vec<String>,
    env: Vec<(String, String)>,
    directory: &'static str,
}

/// What a program left behind.
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    /// Exit code; 128 + n for signal n.
    pub code: i32,
}

impl Cmd {
    /// `None`: in the namespace of the thread that starts it.
    pub fn new<S: AsRef<str>>(ns: Option<Ns>, argv: &[S]) -> Self {
        let argv = argv.iter().map(|s| s.as_ref().to_owned()).collect::<Vec<_>>();
        let (prefix, env) = (Vec::new(), Vec::new());
        Self { ns, argv, limit: Duration::from_mins(1), prefix, env, directory: SCRATCH }
    }

    /// Another limit than 60 seconds.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// By means of another program, which starts this one: its words come first.
    pub fn by(mut self, prefix: &[&str]) -> Self {
        self.prefix = prefix.iter().map(|&word| word.to_owned()).chain(self.prefix).collect();
        self
    }

    /// Without the capabilities of the outer user namespace: what an ordinary user starts.
    pub fn unprivileged(self) -> Self {
        self.by(&["setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--"])
    }

    /// With one more variable in its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// In another working directory than the test's own.
    pub fn directory(mut self, directory: &'static str) -> Self {
        self.directory = directory;
        self
    }

    fn command(&self) -> Command {
        need(&self.argv[0]);
        let mut argv = self.prefix.iter().chain(&self.argv);
        let mut command = Command::new(argv.next().expect("a program has a name"));
        command.args(argv).envs(self.env.iter().map(|(n, v)| (n, v))).stdin(Stdio::null()).current_dir(self.directory);
        command
    }

    /// Starts it; standard output is a pipe that the caller may read, standard error is kept and shown on failure.
    pub fn spawn(&self) -> Proc {
        let log = memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC).expect("cannot make a file for standard error");
        let log = File::from(log);
        let stderr = log.try_clone().expect("cannot share a descriptor");
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
    #[track_caller]
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
    log: File,
}

impl Proc {
    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        let mut bytes = vec![0; self.log.metadata().map_or(0, |m| m.len() as usize)];
        let read = self.log.read_at(&mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id fits")
    }

    /// True until it ended. A child that ended is a zombie until somebody waits for it, which is not done here.
    pub fn alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(' ') && !rest.starts_with(" Z"))
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

/// Polls until `done` says so; panics after `limit`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < give_up, "waited {limit:?} in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Fails the test with a remedy if a program is not installed.
#[track_caller]
pub fn need(program: &str) {
    let found = program.contains('/') || PATH.split(':').any(|dir| Path::new(dir).join(program).exists());
    let packages = crate::PACKAGES;
    assert!(found, "{program} is not installed; apt-get install -y --no-install-recommends {packages}");
}

/// True in the nightly runs, where tests may take longer and cover more.
pub fn long() -> bool {
    std::env::var_os("TAPWAY_TEST_LONG").is_some()
}

/// Every process that this test can see.
pub fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("cannot read /proc");
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// `module::test`, the name under which libtest knows the function whose closure `F` is.
pub fn test_name<F>() -> String {
    let full = std::any::type_name::<F>();
    let path = full.split_once("::").map_or(full, |(_crate, path)| path);
    path.trim_end_matches("::{{closure}}").to_owned()
}

/// How a test leaves the machine's namespaces for its own.
pub struct Entry {
    /// `unshare` and its options: must make user, network, mount and PID namespaces and mount /proc.
    pub unshare: &'static str,
    /// Variables of the inner run, beside [`PATH`].
    pub env: &'static [(&'static str, &'static str)],
    /// Whole life of one test, seconds; the PID namespace is killed then. Four times that in nightly runs.
    pub seconds: u32,
}

/// In the inner run of a test: the `tapway` binary to use.
pub fn inside() -> Option<String> {
    std::env::var(INNER).ok()
}

/// Runs one test of this binary inside new namespaces, as an ordinary user, and panics with its output if it fails.
pub fn enter(name: &str, entry: &Entry) {
    for program in ["setpriv", "unshare", "timeout", "nsenter"] {
        need(program);
    }
    let (test, tapway) = executables();
    let limit = if long() { entry.seconds * 4 } else { entry.seconds };
    let mut argv = vec!["timeout".to_owned(), "-k".into(), "5".into(), limit.to_string()];
    if nix::unistd::geteuid().is_root() {
        let (uid, gid) = ordinary_user();
        argv.extend(["setpriv".to_owned(), format!("--reuid={uid}"), format!("--regid={gid}")]);
        argv.extend(["--clear-groups", "--"].map(str::to_owned));
    }
    argv.extend(entry.unshare.split_whitespace().map(str::to_owned));
    argv.push(test.display().to_string());
    argv.extend(["--exact", name, "--nocapture", "--include-ignored"].map(str::to_owned));
    let kept = std::env::vars().filter(|(name, _)| name.starts_with("TAPWAY_TEST_") || name == "TAPWAY_NO_SKIP");
    let output = Command::new(&argv[0])
        .args(&argv[1..])
        .current_dir("/")
        .env_clear()
        .envs(kept)
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("RUST_BACKTRACE", "0")
        .envs(entry.env.iter().copied())
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
pub fn ordinary_user() -> (u32, u32) {
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
