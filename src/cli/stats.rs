//! `tapway stats NAME`: what was counted since the network process began, by name; drops by their reason.

use clap::Args;
use serde_json::{Value, json};

use super::table::{Side, Table, cell, line, output};
use super::{Failure, target};

const EXAMPLES: &str = "\
Examples:
  tapway stats site
      counters of the sandbox 'site' that are not 0
  tapway stats site --json | jq '.drops'
      every reason for which packets were dropped";

/// Arguments of `tapway stats`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct StatsArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Of this one of its networks, where it is on several [default: that which has the default route]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Show those that are 0 as well
    #[arg(long)]
    pub all: bool,
    /// Print OpenMetrics text instead
    #[arg(long, conflicts_with_all = ["json", "all"])]
    pub metrics: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn main(args: &StatsArgs) -> Result<u8, Failure> {
    let target = target::find(&args.sandbox)?.on(args.network.as_ref());
    if args.metrics {
        let reply: Value = target.ask("get_metrics", json!({}))?;
        return output(reply["text"].as_str().unwrap_or_default());
    }
    let reply: Value = target.ask("get_stats", json!({}))?;
    output(&if args.json { line(&reply) } else { render(&reply, args.all) })
}

fn render(reply: &Value, all: bool) -> String {
    let mut text = String::new();
    for (field, title) in [("counters", "COUNTER"), ("drops", "DROPPED BECAUSE")] {
        let mut table = Table::new(&[(title, Side::Left), ("COUNT", Side::Right)]);
        let counts = reply[field].as_object().into_iter().flatten();
        let mut rows = 0;
        for (name, count) in counts.filter(|(_, count)| all || **count != 0) {
            table.row([name.clone(), cell(count)]);
            rows += 1;
        }
        // Nothing dropped is worth no heading, nothing counted is.
        if rows > 0 || field == "counters" {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&table.render());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_shown() {
        let reply = json!({ "counters": { "frames_from_guest": 12, "x": 0 }, "drops": { "bad_checksum": 0 } });
        assert_eq!(render(&reply, false), "COUNTER            COUNT\nframes_from_guest     12\n");
        assert_eq!(
            render(&reply, true),
            "COUNTER            COUNT\nframes_from_guest     12\nx                      0\n\n\
             DROPPED BECAUSE  COUNT\nbad_checksum         0\n"
        );
    }
}
