//! Starting the command: by the sandbox's first process (`tapway run`), or by a process that has entered the sandbox
//! (`tapway exec`).
//!
//! A child is forked, becomes who it is to be, and executes the program; a pipe that closes on exec tells the parent
//! whether it got that far, and where not, what failed.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::{
    Gid, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execvp, getpid, pipe2, read, setgroups, setpgid, setresgid,
    setresuid, setsid, tcsetpgrp, write,
};

use super::users::Identity;
use crate::sys::spawn::{self, Forked};

/// How a command is started.
#[derive(Debug)]
pub struct Start {
    /// Program and arguments.
    pub command: Vec<CString>,
    /// Added to the environment of this process.
    pub environment: Vec<(OsString, OsString)>,
    /// Where; None: where this process is.
    pub directory: Option<PathBuf>,
    /// Who it becomes; None: who this process is.
    pub identity: Option<Identity>,
    /// It gets a process group of its own (there is no terminal to share, or it is to have it for itself).
    pub own_group: bool,
    /// That group is the terminal's foreground, with the terminal as its standard input.
    pub foreground: bool,
    /// It gets a session of its own, without a terminal.
    pub own_session: bool,
    /// It is killed when the process that started it ends.
    pub dies_with_parent: bool,
    /// Standard input, output and error; None: those of this process.
    pub stdio: Option<[OwnedFd; 3]>,
    /// Signals that the caller had blocked, and so the command.
    pub signal_mask: SigSet,
    /// The caller's limits on open descriptors, soft and hard, which the monitor may have raised for itself.
    pub descriptor_limit: Option<(u64, u64)>,
}

/// What kept the program from being executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// execve(2), or something before it that is nobody's fault.
    Program(Errno),
    /// The working directory.
    Directory(Errno),
    /// The user.
    User(Errno),
}

impl Fault {
    fn to_bytes(self) -> [u8; 5] {
        let (kind, errno) = match self {
            Self::Program(errno) => (0, errno),
            Self::Directory(errno) => (1, errno),
            Self::User(errno) => (2, errno),
        };
        let [a, b, c, d] = (errno as i32).to_ne_bytes();
        [kind, a, b, c, d]
    }

    fn from_bytes([kind, a, b, c, d]: [u8; 5]) -> Self {
        let errno = Errno::from_raw(i32::from_ne_bytes([a, b, c, d]));
        match kind {
            1 => Self::Directory(errno),
            2 => Self::User(errno),
            _ => Self::Program(errno),
        }
    }
}

impl Start {
    /// Forks and executes. The inner error is the child's.
    pub fn run(&self) -> nix::Result<Result<Pid, Fault>> {
        let (told, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        match spawn::fork()? {
            Forked::Child => spawn::leave_with(|| {
                let _ = write(&tell, &self.execute().to_bytes());
                127
            }),
            Forked::Parent(pid) => {
                drop(tell);
                let mut fault = [0; 5];
                let got = loop {
                    match read(&told, &mut fault) {
                        Err(Errno::EINTR) => {}
                        other => break other?,
                    }
                };
                if got == fault.len() {
                    let _ = waitpid(pid, None);
                    return Ok(Err(Fault::from_bytes(fault)));
                }
                Ok(Ok(pid))
            }
        }
    }

    /// In the child: becomes the command, or says why not.
    fn execute(&self) -> Fault {
        match self.prepare() {
            Ok(()) => Fault::Program(self.exec()),
            Err(fault) => fault,
        }
    }

    fn prepare(&self) -> Result<(), Fault> {
        let program = Fault::Program;
        if self.own_session {
            setsid().map_err(program)?;
        } else if self.own_group {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(program)?;
        }
        if self.foreground {
            // SIGTTOU, which a background group gets for this, is still blocked.
            tcsetpgrp(std::io::stdin(), getpid()).map_err(program)?;
        }
        if let Some([stdin, stdout, stderr]) = &self.stdio {
            dup2_stdin(stdin).and_then(|()| dup2_stdout(stdout)).and_then(|()| dup2_stderr(stderr)).map_err(program)?;
        }
        if let Some(Identity { uid, gid }) = self.identity {
            become_user(uid, gid).map_err(Fault::User)?;
        }
        if self.dies_with_parent {
            // After the user, whose change clears it.
            prctl::set_pdeathsig(Signal::SIGKILL).map_err(program)?;
        }
        if let Some(directory) = &self.directory {
            nix::unistd::chdir(directory.as_path()).map_err(Fault::Directory)?;
        }
        if let Some((soft, hard)) = self.descriptor_limit {
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(program)?;
        }
        spawn::set_environment(&self.environment).map_err(program)?;
        spawn::cloexec_all();
        spawn::default_signal(Signal::SIGPIPE);
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.signal_mask), None).map_err(program)
    }

    fn exec(&self) -> Errno {
        let Some(program) = self.command.first() else { return Errno::ENOENT };
        match execvp(program, &self.command) {
            Ok(never) => match never {},
            // A directory of PATH that may not be entered answers EACCES, too, although nothing was found.
            Err(Errno::EACCES) if !is_found(program) => Errno::ENOENT,
            Err(errno) => errno,
        }
    }
}

fn become_user(uid: u32, gid: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match setgroups(&[gid]) {
        // Denied for good where one id is mapped (user_namespaces(7)): then there is no other group to shed.
        Err(Errno::EPERM) if std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny")) => {}
        result => result?,
    }
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

/// True if `program` is a path, or if a file of that name is in a directory of PATH.
fn is_found(program: &CStr) -> bool {
    let name = Path::new(OsStr::from_bytes(program.to_bytes()));
    if program.to_bytes().contains(&b'/') {
        return true;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Exit code for a program that was not executed: as a shell's.
pub fn exit_code(errno: Errno) -> u8 {
    if matches!(errno, Errno::ENOENT | Errno::ENOTDIR) { 127 } else { 126 }
}

/// Why a program was not executed, in words.
pub fn reason(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => "no such program; give a path, or a name found in PATH",
        other => other.desc(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_travel() {
        for fault in [Fault::Program(Errno::ENOENT), Fault::Directory(Errno::EACCES), Fault::User(Errno::EINVAL)] {
            assert_eq!(Fault::from_bytes(fault.to_bytes()), fault);
        }
    }
}
