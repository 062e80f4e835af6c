//! `--detach` of `tapway run` and `tapway attach`: one process becomes two. The caller's waits until the sandbox is up, prints its id and leaves;
//! the other is its monitor, in a session of its own, with nothing of the caller's but, until then, standard error.
//!
//! A sandbox that could not be made has said why on standard error; its exit code becomes the caller's.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, pipe2, setsid};

use super::table::output;
use super::{FAILURE, Failure};
use crate::sandbox::logs::output::Output;
use crate::sandbox::logs::store::{Kept, Store};
use crate::sandbox::state::{self, Sandbox};
use crate::sys::spawn::{self, Forked};

/// Which process this is.
#[derive(Debug)]
pub enum Side {
    /// The caller's.
    Caller(Waiting),
    /// The monitor's; it writes its id here when the sandbox is up.
    Monitor(OwnedFd),
}

/// Waits for the sandbox.
#[derive(Debug)]
pub struct Waiting {
    told: File,
    monitor: Pid,
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure { code: FAILURE, line: format!("cannot {what} for --detach: {why}") }
}

/// Splits this process in two.
pub fn split() -> Result<Side, Failure> {
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed("make a pipe", &errno))?;
    match spawn::fork().map_err(|errno| failed("fork", &errno))? {
        Forked::Parent(monitor) => Ok(Side::Caller(Waiting { told: told.into(), monitor })),
        Forked::Child => {
            drop(told);
            setsid().map_err(|errno| failed("make a session", &errno))?;
            let null = File::options().read(true).write(true).open("/dev/null");
            let null = null.map_err(|error| failed("open /dev/null", &error))?;
            dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).map_err(|errno| failed("leave the streams", &errno))?;
            Ok(Side::Monitor(tell))
        }
    }
}

/// Begins the logs of a detached sandbox; also returns what the command's standard output and error are to be.
pub fn keep_output(
    runtime_dir: &Path,
    sandbox: Sandbox,
    remove: bool,
    ready: OwnedFd,
) -> Result<(Output, OwnedFd, OwnedFd), Failure> {
    let store = Store::at(&state::lasting_dir().unwrap_or_else(|| runtime_dir.to_owned()));
    let running = state::running(runtime_dir).into_iter().map(|sandbox| sandbox.id).collect();
    store.prune(&running, crate::telemetry::time::now());
    let kept = Kept { sandbox, ended: None, code: None };
    Output::begin(store, kept, remove, ready).map_err(|error| Failure::runtime(&error))
}

impl Waiting {
    /// Until the sandbox is up, or could not be made: the exit code.
    pub fn wait(mut self) -> Result<u8, Failure> {
        let mut id = String::new();
        self.told.read_to_string(&mut id).map_err(|error| failed("wait", &error))?;
        if !id.is_empty() {
            return output(&format!("{id}\n"));
        }
        loop {
            match waitpid(self.monitor, None) {
                // It has said why.
                Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(FAILURE)),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    let line = format!("the monitor died ({signal}) before the sandbox was up");
                    return Err(Failure { code: FAILURE, line });
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("wait", &errno)),
            }
        }
    }
}
