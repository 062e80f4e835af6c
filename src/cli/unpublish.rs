//! `tapway unpublish NAME SPEC…`: published ports of a running sandbox, closed. Connections through them go on.

use clap::Args;
use serde_json::{Value, json};

use super::port::Ports;
use super::table::{line, output};
use super::{Failure, target};

const EXAMPLES: &str = "\
Examples:
  tapway unpublish site 8080:80
      as it was published
  tapway unpublish site --id 3
      by its number, which 'tapway port --stats site' shows

All of them are closed, or none. Connections that were made through them go on.";

/// Arguments of `tapway unpublish`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct UnpublishArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Published port: [[HOSTIP:]HOSTPORT:]PORT[/tcp|udp], ranges as 8000-8010:80-90
    #[arg(value_name = "SPEC", required_unless_present = "ids", conflicts_with = "ids")]
    pub specs: Vec<String>,
    /// Number of a published port; once for each
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<u64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it, and prints what was closed.
pub fn main(args: &UnpublishArgs) -> Result<u8, Failure> {
    let target = target::find(&args.sandbox)?;
    let which = if args.ids.is_empty() { json!({ "specs": args.specs }) } else { json!({ "ids": args.ids }) };
    let reply: Value = target.ask("unpublish", which)?;
    if args.json {
        return output(&line(&reply));
    }
    let ports = Ports::read(&target, "unpublish", reply)?;
    output(&ports.render(false))
}
