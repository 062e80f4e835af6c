//! `tapway dns NAME [ls|set|add|rm]`: name servers and records of a running sandbox.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::table::{Side, Table, cell, line, output};
use super::target::{self, Target};
use super::{FAILURE, Failure};

const EXAMPLES: &str = "\
Examples:
  tapway dns site
      whom the sandbox 'site' asks, and its own records
  tapway dns site set --zone corp.example=10.9.9.9,10.9.9.10
      names of a VPN are asked of the VPN's servers, and of no others
  tapway dns site add '*.dev.example' A 10.0.2.100
      a record for every name under dev.example; the reverse name comes by itself
  tapway dns site rm '*.dev.example'";

/// Arguments of `tapway dns`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct DnsArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do; 'ls' unless said.
    #[command(subcommand)]
    pub action: Option<DnsAction>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum DnsAction {
    /// Show settings and records.
    Ls,
    /// Change settings; what is not named stays.
    Set(SetArgs),
    /// Add a record.
    Add(AddArgs),
    /// Remove records.
    Rm(RemoveArgs),
}

/// Settings.
#[derive(Debug, Default, Args)]
#[group(required = true, multiple = true)]
pub struct SetArgs {
    /// Name server, ADDRESS or ADDRESS:PORT; once for each, in order of preference
    #[arg(long, value_name = "ADDR")]
    pub server: Vec<String>,
    /// Ask the host's name servers again, as they change
    #[arg(long, conflicts_with = "server")]
    pub follow_host: bool,
    /// Search domain; '.' for none
    #[arg(long, value_name = "DOMAIN")]
    pub search: Vec<String>,
    /// Resolver option, such as ndots:2; '.' for none
    #[arg(long = "option", value_name = "OPTION")]
    pub options: Vec<String>,
    /// Domain with name servers of its own; '.' for no such domain
    #[arg(long, value_name = "DOMAIN=ADDR[,ADDR]")]
    pub zone: Vec<String>,
}

/// A record.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Its name; may begin with '*.'
    pub name: String,
    /// A, AAAA, CNAME, TXT, SRV or PTR
    #[arg(value_name = "TYPE")]
    pub kind: String,
    /// An address, a name, a text, or 'PRIORITY WEIGHT PORT HOST'
    pub value: String,
    /// Time to live, seconds [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub ttl: Option<u32>,
}

/// Records.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Their name, as it was added
    pub name: String,
    /// Only those of this type
    #[arg(value_name = "TYPE")]
    pub kind: Option<String>,
    /// Only the one with this value
    pub value: Option<String>,
}

/// Does it.
pub fn main(args: &DnsArgs) -> Result<u8, Failure> {
    // What was typed wrongly is told before anybody is looked for.
    let settings = match &args.action {
        Some(DnsAction::Set(set)) => Some(settings(set)?),
        _ => None,
    };
    let target = target::find(&args.sandbox)?;
    match (&args.action, settings) {
        (None | Some(DnsAction::Ls), _) => list(&target, args.json),
        (Some(DnsAction::Set(_)), settings) => {
            let reply: Value = target.ask("set_dns", settings)?;
            output(&if args.json { line(&reply) } else { render_settings(&reply) })
        }
        (Some(DnsAction::Add(add)), _) => {
            let mut arguments = json!({ "name": add.name, "type": add.kind, "value": add.value });
            if let Some(ttl) = add.ttl {
                arguments["ttl"] = ttl.into();
            }
            let reply: Value = target.ask("add_dns_record", arguments)?;
            if args.json { output(&line(&reply)) } else { Ok(0) }
        }
        (Some(DnsAction::Rm(remove)), _) => {
            let mut arguments = json!({ "name": remove.name });
            for (key, value) in [("type", &remove.kind), ("value", &remove.value)] {
                if let Some(value) = value {
                    arguments[key] = value.as_str().into();
                }
            }
            let reply: Value = target.ask("remove_dns_record", arguments)?;
            removed(&reply, args.json, &format!("no record of that kind is named '{}'", remove.name))
        }
    }
}

/// Prints what came of a removal; of nothing at all it is a failure.
pub fn removed(reply: &Value, json: bool, none: &str) -> Result<u8, Failure> {
    if reply["removed"] == 0 {
        return Err(Failure { code: FAILURE, line: none.to_owned() });
    }
    if json { output(&line(reply)) } else { Ok(0) }
}

/// The arguments of `set_dns`.
fn settings(set: &SetArgs) -> Result<Value, Failure> {
    let mut settings = Map::new();
    let none = |list: &[String]| list.iter().any(|item| item == ".");
    if set.follow_host {
        settings.insert("servers".to_owned(), Value::Null);
    } else if !set.server.is_empty() {
        settings.insert("servers".to_owned(), json!(set.server));
    }
    for (name, option, list) in [("search", "--search", &set.search), ("options", "--option", &set.options)] {
        if none(list) && list.len() > 1 {
            return Err(Failure::usage(format!("{option} '.' means none, and cannot stand beside others")));
        }
        if !list.is_empty() {
            settings.insert(name.to_owned(), if none(list) { json!([]) } else { json!(list) });
        }
    }
    if none(&set.zone) && set.zone.len() > 1 {
        return Err(Failure::usage("--zone '.' means none, and cannot stand beside others"));
    }
    if !set.zone.is_empty() {
        let zones = if none(&set.zone) { Ok(Vec::new()) } else { set.zone.iter().map(|text| zone(text)).collect() };
        settings.insert("zones".to_owned(), Value::Array(zones?));
    }
    Ok(Value::Object(settings))
}

fn zone(text: &str) -> Result<Value, Failure> {
    match text.split_once('=') {
        Some((domain, servers)) if !domain.is_empty() && !servers.is_empty() => {
            Ok(json!({ "domain": domain, "servers": servers.split(',').collect::<Vec<_>>() }))
        }
        _ => Err(Failure::usage(format!("zone '{text}' is not DOMAIN=ADDR, such as corp.example=10.9.9.9"))),
    }
}

fn list(target: &Target, json: bool) -> Result<u8, Failure> {
    let settings: Value = target.ask("get_dns", json!({}))?;
    let records: Value = target.ask("list_dns_records", json!({}))?;
    if json {
        let mut both = settings;
        both["records"] = records["records"].clone();
        return output(&line(&both));
    }
    output(&(render_settings(&settings) + &render_records(&records)))
}

fn render_settings(settings: &Value) -> String {
    let servers = match &settings["servers"] {
        Value::Null => format!("{} (the host's)", cell(&settings["in_use"])),
        servers => cell(servers),
    };
    let mut lines = vec![("servers", servers)];
    lines.extend([("search", cell(&settings["search"])), ("options", cell(&settings["options"]))]);
    for zone in settings["zones"].as_array().into_iter().flatten() {
        lines.push(("zone", format!("{} = {}", cell(&zone["domain"]), cell(&zone["servers"]))));
    }
    let shown: Vec<String> =
        lines.iter().map(|(name, value)| format!("{name:<7}  {}", super::printable(value))).collect();
    shown.join("\n") + "\n"
}

fn render_records(records: &Value) -> String {
    let records = records["records"].as_array().map(Vec::as_slice).unwrap_or_default();
    if records.is_empty() {
        return String::new();
    }
    let columns = [("NAME", Side::Left), ("TTL", Side::Right), ("TYPE", Side::Left), ("VALUE", Side::Left)];
    let mut table = Table::new(&columns);
    for record in records {
        table.row(["name", "ttl", "type", "value"].map(|field| cell(&record[field])));
    }
    format!("\n{}", table.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn what_is_typed_becomes_arguments() {
        let zone = texts(&["corp.example=10.9.9.9,[::1]:5353"]);
        let set = SetArgs { server: texts(&["1.1.1.1"]), search: texts(&["."]), zone, ..SetArgs::default() };
        assert_eq!(
            settings(&set),
            Ok(json!({ "servers": ["1.1.1.1"], "search": [],
                "zones": [{ "domain": "corp.example", "servers": ["10.9.9.9", "[::1]:5353"] }] }))
        );
        let set = SetArgs { follow_host: true, zone: texts(&["."]), ..SetArgs::default() };
        assert_eq!(settings(&set), Ok(json!({ "servers": null, "zones": [] })));
        for bad in ["corp.example", "=1.1.1.1", "corp.example="] {
            let failure = settings(&SetArgs { zone: texts(&[bad]), ..SetArgs::default() }).unwrap_err();
            assert!(failure.code == 2 && failure.line.contains(&format!("'{bad}'")), "{failure:?}");
        }
        for set in [
            SetArgs { search: texts(&[".", "a"]), ..SetArgs::default() },
            SetArgs { zone: texts(&[".", "a=1.1.1.1"]), ..SetArgs::default() },
        ] {
            assert!(settings(&set).unwrap_err().line.contains("means none"));
        }
    }

    #[test]
    fn settings_and_records_are_shown() {
        let settings = json!({ "servers": null, "in_use": ["192.0.2.1", "[::1]:5353"], "search": ["a.example"],
            "options": [], "zones": [{ "domain": "corp.example", "servers": ["10.9.9.9"] }] });
        assert_eq!(
            render_settings(&settings),
            "servers  192.0.2.1, [::1]:5353 (the host's)\nsearch   a.example\noptions  -\nzone     corp.example = 10.9.9.9\n"
        );
        let records = json!({ "records": [{ "name": "db", "type": "TXT", "value": "a\x1bb", "ttl": 60 }] });
        assert_eq!(render_records(&records), "\nNAME  TTL  TYPE  VALUE\ndb     60  TXT   a\\u{1b}b\n");
        assert_eq!(render_records(&json!({ "records": [] })), "");
    }
}
