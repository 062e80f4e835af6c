//! `tapway upgrade SANDBOX`: another network process for a sandbox that has its own, of the tapway that is installed now.
//!
//! The process that runs is killed, as it might be at any time; the monitor, of whatever version, starts the next from what is where its own
//! program was when it began (`sandbox::program`) and gives it the same TAP and the same listening sockets, which never close. Connections
//! through the old one end with a reset; new ones wait in the backlog meanwhile.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::json;

use super::table::{line, output};
use super::target::{self, Target};
use super::{FAILURE, Failure};
use crate::sandbox::{program, uplink};

const EXAMPLES: &str = "\
Examples:
  tapway upgrade site
      connections through the old process end with a reset, ports, names and addresses stay
  tapway network upgrade web
      a network that several sandboxes share has a process of its own";

/// How long the next process may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `tapway upgrade`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct UpgradeArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Of what `get_info` tells, what matters here.
#[derive(Debug, Deserialize)]
struct Info {
    pid: i32,
    network_pid: Option<i32>,
    /// Of the network process, while there is one.
    version: Option<String>,
}

fn ask(target: &Target) -> Result<Info, Failure> {
    target.ask("get_info", json!({}))
}

/// Does it.
pub fn main(args: &UpgradeArgs) -> Result<u8, Failure> {
    let target = target::find(&args.sandbox)?;
    let old = ask(&target)?;
    let own = |pid: &i32| parent(*pid) == Some(old.pid);
    let Some(old_pid) = old.network_pid.filter(own) else {
        let line = format!(
            "sandbox {} has no network process of its own; that of a network is upgraded with 'tapway network upgrade NETWORK'",
            target.name()
        );
        return Err(Failure { code: FAILURE, line });
    };
    kill(Pid::from_raw(old_pid), Signal::SIGKILL).map_err(|errno| Failure {
        code: FAILURE,
        line: format!("cannot end the network process {old_pid} of sandbox {}: {}", target.name(), errno.desc()),
    })?;
    let begun = Instant::now();
    let (new_pid, new_version) = loop {
        // Who asks between the two is told nothing of a network process, or to ask again.
        let new = ask(&target);
        if let Ok(Info { network_pid: Some(pid), version: Some(version), .. }) = &new
            && *pid != old_pid
        {
            break (*pid, version.clone());
        }
        if begun.elapsed() > PATIENCE {
            let line = format!("no other network process of sandbox {} came; see its log", target.name());
            return Err(new.err().unwrap_or(Failure { code: FAILURE, line }));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let old_version = old.version.unwrap_or_else(|| "?".to_owned());
    let mut text = format!(
        "{}: process {new_pid} (tapway {new_version}) took over from {old_pid} (tapway {old_version})\n",
        target.name()
    );
    // Of what is installed, if it was executed; or if that is what the monitor is, whose fork it is.
    let installed = is_executed(new_pid) || is_this_program(old.pid);
    let own = env!("CARGO_PKG_VERSION");
    let upgraded = installed && new_version == own;
    if !upgraded {
        let _ = writeln!(
            text,
            "it is not tapway {own} as installed here: the sandbox's monitor was started from another file, is older than upgrades, or says \
             in its log why it went on with its own program; the sandbox can be run anew"
        );
    }
    let value = json!({
        "sandbox": target.name(), "upgraded": upgraded, "old_version": old_version, "new_version": new_version,
        "old_pid": old_pid, "new_pid": new_pid,
    });
    output(&if args.json { line(&value) } else { text })
}

/// Of which process this is a child, as far as /proc can tell: it may be of another PID namespace.
fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// True if it was executed by its monitor, and not forked.
fn is_executed(pid: i32) -> bool {
    target::words_of(pid).get(1).is_some_and(|word| word == uplink::COMMAND.as_bytes())
}

/// True if its program is this one.
fn is_this_program(pid: i32) -> bool {
    let identity = |path: &str| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(&format!("/proc/{pid}/exe")).is_some_and(|its| Some(its) == identity(program::OWN))
}
