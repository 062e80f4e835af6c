//! `tapway publish NAME SPEC…`: ports of a running sandbox, opened as `tapway run -p` would have. All of them, or none.

use clap::Args;
use serde_json::{Value, json};

use super::port::Ports;
use super::table::{line, output};
use super::{Failure, target};

const EXAMPLES: &str = "\
Examples:
  tapway publish site 8080:80
      port 80 of the sandbox 'site' at port 8080 of the host
  tapway publish site 127.0.0.1::53/udp '[::1]:9000-9010:80-90'
      a port that the host chooses, and eleven more; all of them, or none

Ports: [HOSTIP:]HOSTPORT:PORT[/tcp|udp], PORT and HOSTIP::PORT (a host port is chosen), ranges as 8000-8010:80-90,
  IPv6 addresses in brackets. Without HOSTIP: every address of the host.";

/// Arguments of `tapway publish`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PublishArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Port to publish: [[HOSTIP:]HOSTPORT:]PORT[/tcp|udp], ranges as 8000-8010:80-90
    #[arg(value_name = "SPEC", required = true)]
    pub specs: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it, and prints what was opened.
pub fn main(args: &PublishArgs) -> Result<u8, Failure> {
    let target = target::find(&args.sandbox)?;
    let reply: Value = target.ask("publish", json!({ "specs": args.specs }))?;
    if args.json {
        return output(&line(&reply));
    }
    let ports = Ports::read(&target, "publish", reply)?;
    output(&ports.render(false))
}
