//! `tapway stop`, `tapway kill` and `tapway rm -f`: the end of sandboxes, by their monitors.
//!
//! | command | the monitor is asked | printed when |
//! |---|---|---|
//! | `stop` | `stop`: TERM, and KILL after ten seconds | nothing of it is left |
//! | `kill` | `stop` with KILL at once; any other signal: `send_signal` | nothing of it is left; it was sent |
//! | `rm` | nobody: the logs of a sandbox that has ended are removed | they are |
//! | `rm -f` | as `kill`, if it runs | nothing of it is left |
//!
//! Names are printed as they were typed, and errors told, each on a line of its own; several are done at a time.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::table::output;
use super::target::{self, Target};
use super::{FAILURE, Failure, logs, printable};
use crate::api::client::ClientError;
use crate::api::verbs::life::{SendSignal, Stop, Stopped};
use crate::sandbox::life;

/// How long a monitor may take beyond the time that the command has.
const SLACK: Duration = Duration::from_secs(15);
/// Sandboxes that are dealt with at a time.
const AT_A_TIME: usize = 32;
/// The signal that nobody survives.
const KILL: &str = "KILL";

const STOP_EXAMPLES: &str = "\
Examples:
  tapway stop site
      TERM to its command, and KILL after ten seconds; the name is printed when it is over
  tapway stop -t 60 db cache";

const KILL_EXAMPLES: &str = "\
Examples:
  tapway kill site
  tapway kill -s HUP site
      a signal for the command; the sandbox goes on if the command does";

const RM_EXAMPLES: &str = "\
Examples:
  tapway rm site
      the logs of a detached sandbox that has ended
  tapway rm -f site
      ends the sandbox at once, if it runs, and removes its logs";

/// Arguments of `tapway stop`.
#[derive(Debug, Args)]
#[command(after_long_help = STOP_EXAMPLES)]
pub struct StopArgs {
    /// Names or ids of sandboxes
    #[arg(value_name = "SANDBOX", required = true)]
    pub sandbox: Vec<String>,
    /// Seconds after which the command is killed [default: 10]
    #[arg(short = 't', long, alias = "timeout", value_name = "SECONDS")]
    pub time: Option<u32>,
    /// Signal that is sent first [default: TERM]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
}

/// Arguments of `tapway kill`.
#[derive(Debug, Args)]
#[command(after_long_help = KILL_EXAMPLES)]
pub struct KillArgs {
    /// Names or ids of sandboxes
    #[arg(value_name = "SANDBOX", required = true)]
    pub sandbox: Vec<String>,
    /// Signal to send
    #[arg(short, long, value_name = "SIGNAL", default_value = KILL)]
    pub signal: String,
}

/// Arguments of `tapway rm`.
#[derive(Debug, Args)]
#[command(after_long_help = RM_EXAMPLES)]
pub struct RmArgs {
    /// Names or ids of sandboxes
    #[arg(value_name = "SANDBOX", required = true)]
    pub sandbox: Vec<String>,
    /// End those that run, and do not mind those that are not there
    #[arg(short, long)]
    pub force: bool,
}

/// `tapway stop`.
pub fn stop(args: &StopArgs) -> Result<u8, Failure> {
    check_signal(args.signal.as_deref())?;
    let store = logs::store(&target::runtime_dir()?);
    for_each(&args.sandbox, |name| match target::container(name) {
        Ok(target) => end(&target, Stop { signal: args.signal.clone(), seconds: args.time }),
        // What has ended is as it is to be.
        Err(_) if store.find(name).is_some() => Ok(()),
        Err(failure) => Err(failure),
    })
}

/// `tapway kill`.
pub fn kill(args: &KillArgs) -> Result<u8, Failure> {
    check_signal(Some(&args.signal))?;
    let store = logs::store(&target::runtime_dir()?);
    let is_kill = life::parse_signal(&args.signal) == life::parse_signal(KILL);
    for_each(&args.sandbox, |name| {
        let cannot =
            |failure: Failure| Failure { line: format!("cannot kill container: {name}: {}", failure.line), ..failure };
        let target = target::container(name).map_err(|failure| match store.find(name) {
            Some(ended) => {
                cannot(Failure { line: format!("container {} is not running", ended.sandbox.id), ..failure })
            }
            None => cannot(failure),
        })?;
        if is_kill {
            return end(&target, at_once());
        }
        target.ask::<Value>("send_signal", SendSignal { signal: args.signal.clone() }).map(drop)
    })
}

/// `tapway rm`.
pub fn rm(args: &RmArgs) -> Result<u8, Failure> {
    let store = logs::store(&target::runtime_dir()?);
    for_each(&args.sandbox, |name| {
        let target = match (target::container(name), store.find(name)) {
            (Ok(target), _) => target,
            (Err(_), Some(ended)) => {
                store.remove(&ended.sandbox.id);
                return Ok(());
            }
            // Docker's words on stderr, and no failure.
            (Err(failure), None) if args.force => return Err(Failure { code: 0, ..failure }),
            (Err(failure), None) => return Err(failure),
        };
        if args.force {
            end(&target, at_once())?;
            if let Some(sandbox) = &target.sandbox {
                store.remove(&sandbox.id);
            }
            return Ok(());
        }
        let line = format!(
            "cannot remove container \"/{}\": container is running: stop the container before removing or force remove",
            target.name()
        );
        Err(Failure { code: FAILURE, line })
    })
}

fn at_once() -> Stop {
    Stop { signal: Some(KILL.to_owned()), seconds: Some(0) }
}

fn check_signal(name: Option<&str>) -> Result<(), Failure> {
    match name {
        Some(name) if life::parse_signal(name).is_none() => {
            Err(Failure::usage(format!("invalid signal: {name}; give one such as TERM or 15")))
        }
        _ => Ok(()),
    }
}

/// Ends a sandbox and waits for it.
pub(super) fn end(target: &Target, stop: Stop) -> Result<(), Failure> {
    let time = stop.seconds.map_or(life::STOP_TIME, |seconds| Duration::from_secs(seconds.into()));
    match target.server.clone().patience(time + SLACK).ask::<Stopped>("stop", stop) {
        // Somebody else was quicker, or killed the monitor meanwhile.
        Ok(Stopped { .. })
        | Err(ClientError::Closed { .. } | ClientError::NoSocket { .. } | ClientError::Dead { .. }) => Ok(()),
        Err(error @ ClientError::TimedOut { .. }) => {
            let pid = target.sandbox.as_ref().map_or(0, |sandbox| sandbox.pid);
            let line = format!("{}: {error}; is its monitor stopped? `kill -CONT {pid}` lets it go on", target.name());
            Err(Failure { code: FAILURE, line })
        }
        Err(error) => Err(target.failure("stop", &error)),
    }
}

/// Does something for each name, and prints those for which it was done.
pub(super) fn for_each(names: &[String], act: impl Fn(&str) -> Result<(), Failure> + Sync) -> Result<u8, Failure> {
    let mut code = 0;
    for some in names.chunks(AT_A_TIME) {
        let results: Vec<Result<(), Failure>> = std::thread::scope(|scope| {
            let threads: Vec<_> = some.iter().map(|name| scope.spawn(|| act(name))).collect();
            let panicked = || Err(Failure { code: FAILURE, line: "internal error".to_owned() });
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
        });
        for (name, result) in some.iter().zip(results) {
            match result {
                Ok(()) => drop(output(&format!("{}\n", printable(name)))?),
                Err(failure) => {
                    crate::telemetry::say(&format!("tapway: {}", printable(&failure.line)));
                    code = code.max(failure.code);
                }
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_checked_before_anything_is_sent() {
        assert_eq!(check_signal(None), Ok(()));
        assert_eq!(check_signal(Some("sighup")), Ok(()));
        let failure = check_signal(Some("NOPE")).unwrap_err();
        assert_eq!(failure, Failure::usage("invalid signal: NOPE; give one such as TERM or 15"));
    }

    #[test]
    fn the_worst_code_counts() {
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let code = for_each(&names, |name| match name {
            "a" => Ok(()),
            "b" => Err(Failure { code: 1, line: "b".to_owned() }),
            _ => Err(Failure { code: 0, line: "c".to_owned() }),
        });
        assert_eq!(code, Ok(1));
    }
}
