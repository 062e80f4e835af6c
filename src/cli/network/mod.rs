//! `tapway network`: networks that sandboxes share, under docker's commands, words and JSON.
//!
//! A network is a definition in a file (`sandbox::networks`); its process, if it has one, is another matter, and nothing
//! here starts one but `upgrade`, in the place of another. `connect` and `disconnect` are about a sandbox, whose monitor does them. Texts are Docker's without "Error response from daemon: ".

pub mod connect;
pub mod create;
pub mod filter;
pub mod inspect;
pub mod ls;
pub mod prune;
pub mod rm;
pub mod upgrade;
pub mod view;

use clap::{Args, Subcommand};

use super::{FAILURE, Failure, USAGE};
use crate::network::creation::CreateError;
use crate::network::timestamp::Timestamp;
use crate::sandbox::networks::{Broken, Store, StoreError};
use crate::sandbox::place;
use crate::telemetry;

const EXAMPLES: &str = "\
Examples:
  tapway network create web
      a network of its own, with a subnet that nobody uses
  tapway network create --subnet 10.9.0.0/24 --ip-range 10.9.0.128/25 --internal db
      without a way out; addresses that nobody asks for come from the upper half
  tapway network ls --filter label=team=a --format '{{.Name}}\\t{{.Driver}}'
  tapway network inspect -f '{{range .Containers}}{{.Name}} {{end}}' web
      who is in it
  tapway network connect db web
      the running sandbox 'web' is on the network 'db', too
  tapway network upgrade web
      after an update of tapway: the network's running process is replaced, its sandboxes stay
  tapway network prune -f
      remove those without a running sandbox";

/// Arguments of `tapway network`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct NetworkArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: NetworkAction,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum NetworkAction {
    /// Make a network.
    Create(Box<create::CreateArgs>),
    /// Connect a running sandbox to one more network.
    Connect(connect::ConnectArgs),
    /// Take a running sandbox off a network.
    Disconnect(connect::DisconnectArgs),
    /// List networks.
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Show what networks are, and who is in them.
    Inspect(inspect::InspectArgs),
    /// Remove networks.
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
    /// Have a process of this version take over from the running one.
    Upgrade(upgrade::UpgradeArgs),
    /// Remove all networks that no running sandbox is in.
    Prune(prune::PruneArgs),
}

/// Does it.
pub fn main(args: &NetworkArgs) -> Result<u8, Failure> {
    let outcome = match &args.action {
        NetworkAction::Create(args) => create::main(args),
        NetworkAction::Connect(args) => connect::connect(args),
        NetworkAction::Disconnect(args) => connect::disconnect(args),
        NetworkAction::Ls(args) => ls::main(args),
        NetworkAction::Inspect(args) => inspect::main(args),
        NetworkAction::Rm(args) => rm::main(args),
        NetworkAction::Upgrade(args) => upgrade::main(args),
        NetworkAction::Prune(args) => prune::main(args),
    };
    outcome.or_else(|failure| Ok(tell(&failure)))
}

/// The networks of the caller.
pub fn store() -> Store {
    place::store()
}

/// The time, as the clock of the host has it.
pub fn now() -> Timestamp {
    Timestamp::since_epoch(telemetry::time::now())
}

/// What an error means to whoever typed the command.
pub fn failure(error: &StoreError) -> Failure {
    let code = match error {
        // What is there already is not the command line's fault.
        StoreError::Create(
            CreateError::Exists(_) | CreateError::Overlap | CreateError::Conflict { .. } | CreateError::Exhausted(_),
        ) => FAILURE,
        StoreError::Create(_) => USAGE,
        _ => FAILURE,
    };
    Failure { code, ..Failure::runtime(error) }
}

/// Says which definitions cannot be used; the others can.
pub fn warn(broken: &[Broken]) {
    for broken in broken {
        telemetry::say(&format!("tapway: {}", super::printable(&StoreError::Broken(broken.clone()).to_string())));
    }
}

/// Tells a failure and gives its exit code. Some of Docker's texts have several lines, and stay so here.
pub fn tell(failure: &Failure) -> u8 {
    telemetry::say(&format!("tapway: {}", super::printable_lines(&failure.line)));
    failure.code
}
