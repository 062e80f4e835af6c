//! How the tests start tapway, and how they find what it left.
//!
//! Each [`Stage`] has a runtime directory of its own, and a mark in the environment of everything that it starts: a
//! process that still bears it afterwards was left behind. Tests that alter /etc or /dev do it by a shell script in a
//! mount namespace of their own ([`Stage::script`]), as root where we are root, else as root of a user namespace.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Search path; the caller's may lead to directories that the ordinary user cannot read.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variable whose value marks the processes of one stage.
const MARK: &str = "TAPWAY_CLI_TEST";
/// The user of the kernel for nobody.
const NOBODY: u32 = 65534;

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Who runs tapway: we, or, if we are root, a user with subordinate ids, or nobody.
pub fn user() -> u32 {
    if !is_root() {
        return nix::unistd::geteuid().as_raw();
    }
    let subordinate = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let uid_of = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        line.split(':').nth(2)?.parse().ok()
    };
    subordinate.lines().filter_map(|line| uid_of(line.split(':').next()?)).find(|&uid| uid != 0).unwrap_or(NOBODY)
}

/// True if `user` has a full range of ids inside.
pub fn has_subordinate_ids() -> bool {
    let helper = |name: &str| PATH.split(':').any(|dir| Path::new(dir).join(name).exists());
    let subordinate = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let uid = user().to_string();
    let name = passwd.lines().find(|l| l.split(':').nth(2) == Some(&uid)).and_then(|l| l.split(':').next());
    helper("newuidmap") && subordinate.lines().any(|l| l.split(':').next() == name || l.split(':').next() == Some(&uid))
}

/// The binary, where every user can execute it: the build directory may be closed to others.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("tapway-cli-bin-{}-{}", nix::unistd::geteuid(), user()));
        let built = Path::new(env!("CARGO_BIN_EXE_tapway"));
        DirBuilder::new().recursive(true).mode(0o755).create(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        // Under a name of its own first: another test binary may be executing the old one.
        let (new, copy) = (dir.join(format!("tapway.{}", std::process::id())), dir.join("tapway"));
        fs::copy(built, &new).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &copy).unwrap();
        copy
    })
}

/// What a run came to.
#[derive(Debug)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    /// Exit code; 128 + n for signal n.
    pub code: i32,
}

impl Ended {
    fn new(output: &Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap()),
        }
    }

    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        Self::new(&command.output().unwrap())
    }

    /// Standard output of a run that must have succeeded, silently.
    pub fn ok(&self) -> &str {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        &self.stdout
    }
}

pub struct Stage {
    dir: PathBuf,
    mark: String,
}

impl Stage {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        heed_signals();
        let mark = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("tapway-cli-{mark}"));
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        if is_root() {
            std::os::unix::fs::chown(&dir, Some(user()), Some(user())).unwrap();
        }
        Self { dir, mark }
    }

    /// A directory that the user owns; it is removed at the end.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn command(&self, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir("/")
            .env_clear()
            .envs([("PATH", PATH), ("LC_ALL", "C"), (MARK, &self.mark)])
            .env("HOME", &self.dir)
            .env("XDG_RUNTIME_DIR", &self.dir)
            .env("TAPWAY", binary())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `tapway ARGS` as the ordinary user, ready to be started.
    pub fn tapway(&self, args: &[&str]) -> Command {
        let mut command = self.as_user(binary().as_os_str());
        command.args(args);
        command
    }

    /// Any program as the ordinary user.
    pub fn as_user(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command(program.as_ref());
        if is_root() {
            command.uid(user()).gid(user());
        }
        command
    }

    /// Runs `tapway ARGS` to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::new(&self.tapway(args).output().unwrap())
    }

    /// `tapway run ARGS`, where no other network is named.
    fn on_a_network_of_its_own<'a>(args: &[&'a str]) -> Vec<&'a str> {
        let named = args.iter().any(|arg| ["--network", "--net"].contains(&arg.split('=').next().unwrap_or(arg)));
        let mut all = vec!["run"];
        all.extend(["--network", "private"].iter().filter(|_| !named));
        all.extend(args);
        all
    }

    /// Runs `tapway run ARGS`.
    pub fn sandbox(&self, args: &[&str]) -> Ended {
        self.run(&Self::on_a_network_of_its_own(args))
    }

    /// Starts `tapway run ARGS`.
    pub fn start(&self, args: &[&str]) -> Running {
        let all = Self::on_a_network_of_its_own(args);
        Running(Some(self.tapway(&all).spawn().unwrap()))
    }

    /// Runs a shell script with the right to mount in a new mount namespace, where it may mount; in it, `user tapway …` runs tapway as
    /// the ordinary user.
    pub fn script(&self, text: &str) -> Ended {
        let (unshare, drop): (&[&str], String) = if is_root() {
            (&["-m", "--propagation", "private"], format!("setpriv --reuid {0} --regid {0} --clear-groups", user()))
        } else {
            // An ordinary number that may mount here by ambient capabilities, and loses them by dropping these.
            let map = &["-Um", "--map-user=4242", "--map-group=4242", "--keep-caps", "--propagation", "private"];
            (map, "setpriv --inh-caps=-all --ambient-caps=-all".to_owned())
        };
        let text = format!("set -eu\nuser() {{ {drop} env PATH=${{TAPWAY%/*}}:$PATH \"$@\"; }}\n{text}");
        // A script that waits for something that does not come is ended; nothing here takes a tenth of that.
        let mut command = self.command(OsStr::new("timeout"));
        command.args(["60", "unshare"]).args(unshare).args(["sh", "-c", &text]);
        Ended::new(&command.output().unwrap())
    }

    /// Fails if anything that this stage started still lives, or left a file in its runtime directory.
    pub fn assert_clean(&self) {
        self.assert_processes_gone();
        let sandboxes = self.dir.join("tapway/sandboxes");
        let files: Vec<_> =
            fs::read_dir(sandboxes).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
        assert!(files.is_empty(), "left behind: {files:?}");
    }

    /// Fails if anything that this stage started still lives in five seconds.
    pub fn assert_processes_gone(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Command lines of the living processes with our mark.
    pub fn processes(&self) -> Vec<String> {
        let mark = format!("{MARK}={}\0", self.mark);
        let has_mark = |pid: &Path| {
            let environ = fs::read(pid.join("environ")).unwrap_or_default();
            environ.windows(mark.len()).any(|window| window == mark.as_bytes())
        };
        let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        entries
            .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().bytes().all(|b| b.is_ascii_digit())))
            .filter(|path| has_mark(path))
            .map(|path| {
                let line = fs::read(path.join("cmdline")).unwrap_or_default();
                format!("{} {}", path.display(), String::from_utf8_lossy(&line).replace('\0', " "))
            })
            .collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_clean();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A tapway that runs; told to end when dropped.
pub struct Running(Option<Child>);

impl Running {
    pub fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.0.as_ref().unwrap().id()).unwrap())
    }

    /// The next line that the command prints.
    pub fn line(&mut self) -> String {
        use std::io::Read;
        // Byte by byte: what follows is for somebody else.
        let stdout = self.child().stdout.as_mut().unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        Ended::new(&self.0.take().unwrap().wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.id().cast_signed()),
                nix::sys::signal::Signal::SIGTERM,
            );
            let _ = child.wait();
        }
    }
}

/// Waits until `done`, for five seconds at most.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Undoes what the caller of the tests ignores (nohup, a shell's background job): a shell cannot trap what it was born
/// ignoring, and tapway rightly hands it on.
fn heed_signals() {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().for_each(tapway::sys::spawn::default_signal);
}
