//! `tapway hosts NAME [ls|add|rm]`: names for addresses in a running sandbox, by DNS and in its /etc/hosts.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::dns::removed;
use super::table::{Side, Table, cell, line, output};
use super::{Failure, target};

const EXAMPLES: &str = "\
Examples:
  tapway hosts site add db 192.0.2.7
      'db' is 192.0.2.7 in the sandbox 'site', at once
  tapway hosts site
      db  192.0.2.7
  tapway hosts site rm db";

/// Arguments of `tapway hosts`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct HostsArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do; 'ls' unless said.
    #[command(subcommand)]
    pub action: Option<HostsAction>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum HostsAction {
    /// Show the hosts.
    Ls,
    /// Add an address of a name.
    Add {
        /// The name
        name: String,
        /// The address
        address: String,
    },
    /// Remove a name, or one address of it.
    Rm {
        /// The name
        name: String,
        /// Only this address
        address: Option<String>,
    },
}

/// Does it.
pub fn main(args: &HostsArgs) -> Result<u8, Failure> {
    let target = target::find(&args.sandbox)?;
    match &args.action {
        None | Some(HostsAction::Ls) => {
            let reply: Value = target.ask("list_hosts", json!({}))?;
            output(&if args.json { line(&reply) } else { render(&reply) })
        }
        Some(HostsAction::Add { name, address }) => {
            let reply: Value = target.ask("add_host", json!({ "name": name, "address": address }))?;
            if args.json { output(&line(&reply)) } else { Ok(0) }
        }
        Some(HostsAction::Rm { name, address }) => {
            let mut arguments = json!({ "name": name });
            if let Some(address) = address {
                arguments["address"] = address.as_str().into();
            }
            let reply: Value = target.ask("remove_host", arguments)?;
            removed(&reply, args.json, &format!("no such host is named '{name}'"))
        }
    }
}

fn render(reply: &Value) -> String {
    let mut table = Table::new(&[("NAME", Side::Left), ("ADDRESS", Side::Left), ("SOURCE", Side::Left)]);
    for host in reply["hosts"].as_array().into_iter().flatten() {
        table.row(["name", "address", "source"].map(|field| cell(&host[field])));
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_shown() {
        let reply = json!({ "hosts": [{ "name": "db", "address": "192.0.2.7", "source": "socket" },
            { "name": "d\n", "address": "::1", "source": "run" }] });
        assert_eq!(render(&reply), "NAME  ADDRESS    SOURCE\ndb    192.0.2.7  socket\nd\\n   ::1        run\n");
    }
}
