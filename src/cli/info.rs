//! `tapway info NAME`: what a running sandbox is: addresses, offloads, limits, confinement.

use clap::Args;
use serde_json::{Value, json};

use super::table::{fields, line, output};
use super::{Failure, target};

const EXAMPLES: &str = "\
Examples:
  tapway info site
  tapway info \"$(pgrep -n nginx)\"
      of the sandbox that a process is in
  tapway info site --json | jq -r .pid";

/// Arguments of `tapway info`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct InfoArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Of this one of its networks, where it is on several [default: that which has the default route]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn main(args: &InfoArgs) -> Result<u8, Failure> {
    let reply: Value = target::find(&args.sandbox)?.on(args.network.as_ref()).ask("get_info", json!({}))?;
    output(&if args.json { line(&reply) } else { fields(&reply) })
}
