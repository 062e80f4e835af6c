//! A further command in a running sandbox: `tapway exec`.
//!
//! ```text
//! tapway exec ── get_namespaces ──► monitor         descriptors of the namespaces and of the first process
//!    │  enters them all: the user namespace first, the process ids last
//!    └── fork ──► the command                       born in the sandbox's PID namespace, in our session
//! ```
//!
//! We stay its parent, pass signals on, stop and go on with it and end with its exit code, as `tapway run` does. Entering a
//! PID namespace counts for children only, so our own number stays outside; the command's is inside, and the kernel kills
//! it with the sandbox. Where the process ids are the host's, the descriptor of the first process tells us the end, and we
//! kill what is left. If we are killed, so is the command; what it started in the background stays, until the sandbox ends.
//!
//! No process id is looked up, and the command inherits nothing but its standard streams.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, tcsetpgrp};

use super::command::{self, Fault, Start};
use super::inside::kill_children;
use super::jobs::{self, Terminal};

/// Why there is no exit code of the command.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// A system call of ours.
    #[error("cannot {what}")]
    Call {
        /// Which.
        what: &'static str,
        /// Errno.
        #[source]
        source: nix::Error,
    },
    /// The namespaces are closed to us.
    #[error("cannot enter the sandbox; only who started it can, and not from inside another container")]
    Enter(#[source] nix::Error),
    /// execve(2) failed.
    #[error("cannot run '{program}': {reason}")]
    NoCommand {
        /// argv\[0\].
        program: String,
        /// Errno in words.
        reason: &'static str,
        /// The errno.
        errno: Errno,
    },
    /// chdir(2) failed.
    #[error("cannot use the directory '{}' of --workdir", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Errno.
        #[source]
        source: nix::Error,
    },
    /// The sandbox ended before the command began.
    #[error("the sandbox has just ended")]
    Over,
}

impl ExecError {
    /// Exit code of `tapway exec`: as a shell's for a missing or forbidden program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoCommand { errno, .. } => command::exit_code(*errno),
            Self::Directory { .. } => 126,
            _ => 1,
        }
    }
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> ExecError {
    move |source| ExecError::Call { what, source }
}

/// What to do.
#[derive(Debug)]
pub struct Exec {
    /// The sandbox's namespaces, in the order in which they are entered.
    pub namespaces: Vec<(CloneFlags, OwnedFd)>,
    /// Its first process (pidfd_open(2)).
    pub first: OwnedFd,
    /// The command.
    pub start: Start,
    /// Our terminal is shared with the command.
    pub shares_terminal: bool,
    /// Not to be waited for.
    pub detach: bool,
}

/// Runs the command to its end: its exit code. This process is in the sandbox from then on.
pub fn run(exec: Exec) -> Result<u8, ExecError> {
    let Exec { namespaces, first, start, shares_terminal, detach } = exec;
    let signals = jobs::block_signals().map_err(call("block signals"))?;
    let here = std::env::current_dir();
    let own_pids = namespaces.iter().any(|&(flag, _)| flag == CloneFlags::CLONE_NEWPID);
    for (flag, fd) in &namespaces {
        match setns(fd, *flag) {
            // We are in that user namespace already: tapway is used in a container whose other sandbox we are not in.
            Err(Errno::EINVAL) if *flag == CloneFlags::CLONE_NEWUSER => {}
            result => result.map_err(ExecError::Enter)?,
        }
    }
    drop(namespaces);
    // Entering mounts leads to the root. Where this directory is hidden inside, that is where the command begins.
    if let Ok(here) = here {
        let _ = chdir(&here);
    }
    if !own_pids {
        prctl::set_child_subreaper(true).map_err(call("become a subreaper"))?;
    }
    let directory = start.directory.clone();
    let command = match start.run() {
        Ok(Ok(pid)) => pid,
        Ok(Err(Fault::Program(errno) | Fault::User(errno))) => {
            let program = start.command.first().map(|program| program.to_string_lossy().into_owned());
            return Err(ExecError::NoCommand {
                program: program.unwrap_or_default(),
                reason: command::reason(errno),
                errno,
            });
        }
        Ok(Err(Fault::Directory(source))) => {
            return Err(ExecError::Directory { path: directory.unwrap_or_default(), source });
        }
        // A PID namespace without its first process has no room for another.
        Err(Errno::ENOMEM) => return Err(ExecError::Over),
        Err(source) => return Err(call("start the command")(source)),
    };
    if detach {
        return Ok(0);
    }
    let mut standing =
        Standing { command, own_group: start.own_group, shares_terminal, terminal: Terminal::new(start.foreground) };
    let code = standing.by(&signals, &first);
    standing.terminal.take();
    if !own_pids {
        kill_children();
    }
    code
}

/// Who stands by a command.
struct Standing {
    command: Pid,
    own_group: bool,
    shares_terminal: bool,
    terminal: Terminal,
}

impl Standing {
    fn by(&mut self, signals: &SignalFd, first: &OwnedFd) -> Result<u8, ExecError> {
        let mut over = false;
        loop {
            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            if !over {
                fds.push(PollFd::new(first.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(source) => return Err(call("poll")(source)),
            }
            if fds.get(1).and_then(PollFd::any).unwrap_or(false) {
                over = true;
                // In a PID namespace it is dead already.
                let _ = kill(self.command, Signal::SIGKILL);
            }
            while let Ok(Some(info)) = signals.read_signal() {
                match jobs::meant(&info) {
                    Some(Signal::SIGCHLD) => {
                        if let Some(code) = self.reap()? {
                            return Ok(code);
                        }
                    }
                    // What the terminal sends goes to the whole process group: the command with us, unless it has its own.
                    Some(_) if jobs::is_from_terminal(&info) && self.shares_terminal && !self.own_group => {}
                    Some(signal) => self.forward(signal),
                    None => {}
                }
            }
        }
    }

    fn forward(&mut self, signal: Signal) {
        if signal == Signal::SIGCONT && self.terminal.lend() {
            let _ = tcsetpgrp(std::io::stdin(), self.command);
        }
        // Ctrl-Z has stopped the whole group, so the whole group goes on. ESRCH: it has just ended, as SIGCHLD will tell.
        let whole = self.own_group && signal == Signal::SIGCONT;
        let _ = if whole { killpg(self.command, signal) } else { kill(self.command, signal) };
    }

    /// The exit code, if the command has ended.
    fn reap(&mut self) -> Result<Option<u8>, ExecError> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.command => return Ok(Some(code as u8)),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.command => {
                    return Ok(Some(128 + signal as u8));
                }
                Ok(WaitStatus::Stopped(pid, _)) if pid == self.command && self.shares_terminal => {
                    // The shell that started us is to see a stopped job.
                    self.terminal.take();
                    jobs::stop_self().map_err(call("stop with the command"))?;
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(source) => return Err(call("wait for the command")(source)),
            }
        }
    }
}
