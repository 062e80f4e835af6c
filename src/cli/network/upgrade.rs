//! `tapway network upgrade NAME`: a process of this very program takes over a network from the one that runs, of whatever version.
//!
//! The new one's sockets take the place of the old one's; then the old one is killed, as it might be at any time: its members come to the new one with
//! the same TAPs, addresses, names and published ports, whose listening sockets their monitors never close. Clients that connect meanwhile
//! wait in the backlog. Connections that went through the old one end with a reset; those between members go on.

use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{failure, store};
use crate::api::client::Server;
use crate::api::verbs::network::NetworkProcessInfo;
use crate::cli::table::{line, output};
use crate::cli::{FAILURE, Failure, target};
use crate::sandbox::leases::Leases;
use crate::sandbox::{place, shared};

const EXAMPLES: &str = "\
Examples:
  tapway network upgrade web
      connections through the old process end with a reset, ports, names and addresses stay
  tapway network ls -q | xargs -n1 tapway network upgrade --json
      all of them; where no process runs nothing is done";

/// How long members may take to come to the new process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `tapway network upgrade`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct UpgradeArgs {
    /// Name or id of a network, or the beginning of an id
    pub network: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn main(args: &UpgradeArgs) -> Result<u8, Failure> {
    let network = store().find(&args.network).map_err(|error| failure(&error))?;
    let leases = Leases::open(&target::runtime_dir()?, &network);
    let ask = || {
        let server = Server::at(leases.dir().join("control"));
        server.ask::<NetworkProcessInfo>("get_info", &json!({})).ok()
    };
    let mut old = None;
    let shared = place::shared(&leases, &network);
    let find = || {
        let info = ask().filter(is_it)?;
        old = Some(info.clone());
        Some(info)
    };
    let end = |info: NetworkProcessInfo| _ = kill(Pid::from_raw(info.pid.cast_signed()), Signal::SIGKILL);
    let done = shared.upgrade(find, end).map_err(|error| Failure::runtime(&error))?;
    let Some(old) = old.filter(|_| done) else {
        let text = format!("no process of network {} runs\n", network.name);
        let value = json!({ "network": network.name, "upgraded": false });
        output(&if args.json { line(&value) } else { text })?;
        return Ok(0);
    };
    let begun = Instant::now();
    let new = loop {
        match ask().filter(|new| new.pid != old.pid) {
            // Of those that have left meanwhile nobody waits for an answer.
            Some(new) if new.members >= old.members || begun.elapsed() > PATIENCE => break new,
            None if begun.elapsed() > PATIENCE => {
                let line = format!("the new process of network {} does not answer", network.name);
                return Err(Failure { code: FAILURE, ..Failure::usage(line) });
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let value = json!({
        "network": network.name, "upgraded": true, "old_version": old.version, "new_version": new.version,
        "old_pid": old.pid, "new_pid": new.pid, "members": new.members,
    });
    let text = format!(
        "{}: process {} (tapway {}) took over from {} (tapway {}); {} sandboxes came along\n",
        network.name, new.pid, new.version, old.pid, old.version, new.members
    );
    output(&if args.json { line(&value) } else { text })?;
    Ok(0)
}

/// True if the process of that number is a network's, as far as /proc can tell: it may be of another PID namespace.
fn is_it(info: &NetworkProcessInfo) -> bool {
    let words = target::words_of(info.pid.cast_signed());
    words.get(1..3).is_some_and(|words| words == [shared::COMMAND.as_bytes(), info.name.as_bytes()])
}
