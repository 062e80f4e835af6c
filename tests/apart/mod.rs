//! Runs parts of a test in processes of their own.
//!
//! A test re-executes itself for each act (so the threads of the harness are gone but two), forks (so the act has one
//! thread: a user namespace is entered alone), acts and ends; the exit code and the output tell how it went.

use std::process::{Command, Output};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// Which act of which test the re-executed process performs.
const KEY: &str = "TAPWAY_TEST_ACT";
/// Runs `act` in a process of its own: first call spawns, the spawned process gets here again and acts. None: this is
/// the spawned process and it is here for another act.
pub fn run(test: &str, label: &str, act: impl FnOnce() -> i32) -> Option<Output> {
    run_watched(test, label, act, |_| ())
}

/// As [`run`]; `watch` looks at the acting process from outside, while it is still there.
pub fn run_watched(test: &str, label: &str, act: impl FnOnce() -> i32, watch: impl FnOnce(Pid)) -> Option<Output> {
    let me = format!("{test}/{label}");
    match std::env::var(KEY) {
        Ok(key) if key == me => {
            // SAFETY: the only other thread is the harness's main thread, which waits for this one; it holds no lock
            // that the child takes, and the child leaves by _exit.
            let code = match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let code = act();
                    // SAFETY: ends the child without the harness's exit handlers, which belong to its parent.
                    unsafe { libc::_exit(code) }
                }
                ForkResult::Parent { child } => {
                    watch(child);
                    match waitpid(child, None).unwrap() {
                        WaitStatus::Exited(_, code) => code,
                        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
                        other => panic!("{other:?}"),
                    }
                }
            };
            std::process::exit(code)
        }
        Ok(_) => None,
        Err(_) => Some(
            Command::new(std::env::current_exe().unwrap())
                .args([test, "--exact", "--nocapture", "--test-threads=1"])
                .env(KEY, me)
                .env("RUST_BACKTRACE", "1")
                .output()
                .unwrap(),
        ),
    }
}
