//! A child process that does not outlive its owner.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A child that is killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    /// Its process id, nobody else's as long as it is not reaped.
    pub pid: Pid,
    reaped: bool,
}

impl Child {
    /// The one that was just forked.
    pub fn new(pid: Pid) -> Self {
        Self { pid, reaped: false }
    }

    /// How it ended, if it has.
    pub fn poll_end(&mut self) -> Option<String> {
        self.wait_with(WaitPidFlag::WNOHANG)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> Option<String> {
        self.wait_with(WaitPidFlag::empty())
    }

    /// Kills it, unless it is reaped.
    pub fn kill(&self) {
        if !self.reaped {
            // Not reaped, so the number is still this child's.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    fn wait_with(&mut self, flags: WaitPidFlag) -> Option<String> {
        while !self.reaped {
            let how = match waitpid(self.pid, Some(flags)) {
                Ok(WaitStatus::Exited(_, code)) => format!("exit code {code}"),
                Ok(WaitStatus::Signaled(_, signal, _)) => format!("{signal}"),
                Ok(WaitStatus::StillAlive) => return None,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => errno.desc().to_owned(),
            };
            self.reaped = true;
            return Some(how);
        }
        None
    }

    /// Gives it `time` to leave by itself, then kills it.
    pub fn leave(mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.poll_end().is_none() && !self.reaped && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            self.wait();
        }
    }
}
