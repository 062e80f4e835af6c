//! `tapway network inspect NAME…`.

use clap::Args;

use super::view::{self, Inspected};
use super::{failure, store, tell};
use crate::cli::table::output;
use crate::cli::{Failure, format, target};

const EXAMPLES: &str = "\
Examples:
  tapway network inspect web
  tapway network inspect -f '{{(index .IPAM.Config 0).Subnet}}' web
  tapway network inspect -f '{{range .Containers}}{{.Name}} {{.IPv4Address}}{{println}}{{end}}' web
  tapway network inspect bridge web | jq '.[].Containers'
  tapway network inspect -v web | jq '.[].Switch.Members[] | {name, mac, frames_from_guest, drops}'";

/// Arguments of `tapway network inspect`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct InspectArgs {
    /// Name or id of a network, or the beginning of an id
    #[arg(required = true, value_name = "NETWORK")]
    pub network: Vec<String>,
    /// Form of the output: 'json' or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print JSON in one line
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Also ask the network's process: its members' ports of the switch, MACs, counters, drops
    #[arg(short, long)]
    pub verbose: bool,
}

/// Does it.
pub fn main(args: &InspectArgs) -> Result<u8, Failure> {
    let store = store();
    let runtime_dir = target::runtime_dir()?;
    let mut code = 0;
    let mut found = Vec::new();
    for typed in &args.network {
        match store.find(typed) {
            Ok(network) => {
                let mut inspected = Inspected::new(&network, &view::live(Some(&runtime_dir), &network));
                inspected.add_aside(&runtime_dir, &network);
                if args.verbose
                    && let Err(error) = inspected.ask_switch(&runtime_dir, &network)
                {
                    code = tell(&Failure::runtime(&error));
                }
                found.push(inspected);
            }
            Err(error) => code = tell(&failure(&error)),
        }
    }
    let format = args.format.as_deref().filter(|format| !format.is_empty()).or(args.json.then_some("json"));
    let text = match format {
        Some(format) => format::objects(format, &found).map_err(|error| Failure::usage(error.to_string()))?,
        // Docker indents by four.
        None => pretty(&found).unwrap_or_default() + "\n",
    };
    output(&text)?;
    Ok(code)
}

fn pretty(found: &[Inspected]) -> serde_json::Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    serde::Serialize::serialize(found, &mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
