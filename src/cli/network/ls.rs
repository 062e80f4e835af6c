//! `tapway network ls`.

use clap::Args;
use serde_json::json;

use super::filter::Filters;
use super::view::{self, HEADINGS, Row};
use super::{failure, store, warn};
use crate::cli::format::{Format, natural};
use crate::cli::table::{line, output};
use crate::cli::{Failure, target};

/// Docker's columns.
const TABLE: &str = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";

const EXAMPLES: &str = "\
Examples:
  tapway network ls
  tapway network ls -q --filter type=custom --filter dangling=true
      ids of those that 'tapway network prune' would remove
  tapway network ls --format 'table {{.Name}}\\t{{.Labels}}\\t{{.CreatedAt}}'

Filters: driver=NAME, id=ID, label=KEY[=VALUE], name=NAME, scope=local, type=custom|builtin, dangling=true|false.
  Of several of one kind one is enough, but all labels must be there; ^ and $ stand for the ends of a name or id.
Fields: .ID .Name .Driver .Scope .IPv4 .IPv6 .Internal .Labels .CreatedAt, and .Label \"KEY\"; also 'table' and 'json'.";

/// Arguments of `tapway network ls`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct LsArgs {
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print ids whole
    #[arg(long)]
    pub no_trunc: bool,
    /// Show only those of this kind
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Form of the output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print JSON: one object with everything that is known
    #[arg(long, conflicts_with_all = ["format", "quiet"])]
    pub json: bool,
}

/// Does it.
pub fn main(args: &LsArgs) -> Result<u8, Failure> {
    let filters = Filters::parse(&args.filter, &Filters::LS).map_err(Failure::usage)?;
    let asked = args.format.as_deref().unwrap_or("table");
    let format = match (args.quiet, asked.trim()) {
        (true, "" | "table") => Format::parse("{{.ID}}", ""),
        _ => Format::parse(asked, TABLE),
    };
    let usage = |error: crate::cli::format::template::TemplateError| Failure::usage(error.to_string());
    let format = format.map_err(usage)?;
    let mut listing = store().list().map_err(|error| failure(&error))?;
    listing.networks.sort_by(|a, b| natural(&a.name, &b.name));
    // Whoever does not ask who is in them needs no runtime directory.
    let runtime_dir = if args.json || filters.needs_members() { Some(target::runtime_dir()?) } else { None };
    listing.networks.retain(|network| filters.match_network(network, || view::live(runtime_dir.as_deref(), network)));
    if args.json {
        let network = |network| {
            let mut value = json!(network);
            value["endpoints"] = json!(view::live(runtime_dir.as_deref(), network));
            value
        };
        let broken = |broken: &crate::sandbox::networks::Broken| json!({ "name": broken.name, "path": broken.path.to_string_lossy(), "error": broken.why });
        let networks: Vec<_> = listing.networks.iter().map(network).collect();
        let broken: Vec<_> = listing.broken.iter().map(broken).collect();
        return output(&line(&json!({ "networks": networks, "broken": broken })));
    }
    warn(&listing.broken);
    let rows: Vec<Row> = listing.networks.iter().map(|network| Row::new(network, args.no_trunc)).collect();
    output(&format.render(&HEADINGS, &rows).map_err(usage)?)
}
