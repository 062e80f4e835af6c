//! Signals and the terminal, for whoever stands by a command: the monitor (`tapway run`) and `tapway exec`.
//!
//! All signals of interest are blocked and read from a signalfd. Those that somebody sent to us go to the command; those
//! that the terminal sent went to the whole process group anyway, the command with us, unless it has its own. A command
//! that has the terminal for itself is its foreground process group; when it stops, the group of the shell that started
//! us gets the terminal back and we stop, and when the shell goes on with us the command gets it again.

use std::io::IsTerminal as _;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

use crate::sys::spawn;

/// Signals that are passed on to the command if somebody sent them to us.
const FORWARDED: [Signal; 9] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// Signals by which a terminal stops its background, and with it our process group: the command acts on them, and what
/// it does we do.
const IGNORED: [Signal; 2] = [Signal::SIGTTIN, Signal::SIGTTOU];

/// True if this process has a terminal, which the command then shares.
pub fn shares_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether the command is to have the terminal for itself, as an interactive shell expects: it reads it, writes it, and it
/// is ours to give. In a pipeline it is not: the others need the terminal as well.
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && tcgetpgrp(std::io::stdin()) == Ok(getpgrp())
}

/// Blocks what is read from the descriptor that is returned.
pub fn block_signals() -> nix::Result<SignalFd> {
    // An ignored SIGCHLD would reap our children for us.
    spawn::default_signal(Signal::SIGCHLD);
    let mut set = SigSet::empty();
    FORWARDED.into_iter().chain(IGNORED).chain([Signal::SIGCHLD]).for_each(|signal| set.add(signal));
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The signal that was read, unless it is one that the command deals with.
pub fn meant(info: &siginfo) -> Option<Signal> {
    let signal = i32::try_from(info.ssi_signo).map_err(|_| Errno::EINVAL).and_then(Signal::try_from).ok()?;
    (!IGNORED.contains(&signal)).then_some(signal)
}

/// True if the terminal sent it.
pub fn is_from_terminal(info: &siginfo) -> bool {
    info.ssi_code == libc::SI_KERNEL
}

/// Stops this process as Ctrl-Z would, until SIGCONT. (Where no shell could go on with it, in an orphaned process group,
/// the kernel does not stop it.)
pub fn stop_self() -> nix::Result<()> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTSTP);
    kill(Pid::this(), Signal::SIGTSTP)?;
    for how in [SigmaskHow::SIG_UNBLOCK, SigmaskHow::SIG_BLOCK] {
        pthread_sigmask(how, Some(&set), None)?;
    }
    Ok(())
}

/// The terminal on stdin, where the command is to have it for itself.
#[derive(Debug)]
pub struct Terminal {
    lendable: bool,
    lent: bool,
}

impl Terminal {
    /// `lendable`: the command is started as its foreground.
    pub fn new(lendable: bool) -> Self {
        Self { lendable, lent: lendable }
    }

    /// Makes our group the terminal's foreground again, if the command's is.
    pub fn take(&mut self) {
        if std::mem::take(&mut self.lent) {
            // SIGTTOU is blocked. A terminal that is gone needs no owner.
            let _ = tcsetpgrp(std::io::stdin(), getpgrp());
        }
    }

    /// True if a shell has made our group the foreground, so that the command's is to be it.
    pub fn lend(&mut self) -> bool {
        let ours = self.lendable && tcgetpgrp(std::io::stdin()) == Ok(getpgrp());
        self.lent |= ours;
        ours
    }
}
