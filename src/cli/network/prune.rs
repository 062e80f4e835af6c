//! `tapway network prune`.

use std::io::{BufRead as _, Write as _};

use clap::Args;
use serde_json::json;

use super::filter::Filters;
use super::{failure, store, tell, warn};
use crate::cli::table::{line, output};
use crate::cli::{FAILURE, Failure, target};
use crate::sandbox::leases::{self, LeaseError};
use crate::sandbox::networks::StoreError;

const EXAMPLES: &str = "\
Examples:
  tapway network prune
      asks first
  tapway network prune -f --filter until=24h --filter 'label!=keep'
      those made more than a day ago that are not labelled so

Filters: until=TIME (24h, 1h30m, 2026-01-31, 2026-01-31T12:00:00Z, seconds since 1970), label=KEY[=VALUE],
  label!=KEY[=VALUE]. Times without a zone are UTC.";

/// Docker's question.
const QUESTION: &str = "WARNING! This will remove all custom networks not used by at least one container.\n\
    Are you sure you want to continue? [y/N] ";

/// Arguments of `tapway network prune`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Remove only those of this kind
    #[arg(long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Print JSON; does not ask
    #[arg(long, requires = "force")]
    pub json: bool,
}

/// Does it.
pub fn main(args: &PruneArgs) -> Result<u8, Failure> {
    let filters = Filters::parse(&args.filter, &Filters::PRUNE).map_err(Failure::usage)?;
    if !args.force && !confirmed()? {
        return Ok(0);
    }
    let store = store();
    let runtime_dir = target::runtime_dir()?;
    let listing = store.list().map_err(|error| failure(&error))?;
    warn(&listing.broken);
    let (mut code, mut removed) = (0, Vec::new());
    for network in listing.networks.iter().filter(|network| !network.is_predefined()) {
        if !filters.match_network(network, Vec::new) {
            continue;
        }
        match leases::remove_network(&runtime_dir, &store, network) {
            Ok(()) => removed.push(network.name.as_str()),
            // In use, or somebody else was faster.
            Err(LeaseError::Active(_) | LeaseError::Store(StoreError::NotFound(_))) => {}
            Err(error) => code = tell(&Failure::runtime(&error)),
        }
    }
    if args.json {
        output(&line(&json!({ "removed": removed })))?;
    } else if !removed.is_empty() {
        output(&format!("Deleted Networks:\n{}\n\n", removed.join("\n")))?;
    }
    Ok(code)
}

/// Asks. Anything but a yes is a no, the end of the input too.
fn confirmed() -> Result<bool, Failure> {
    let cannot =
        |error: std::io::Error| Failure { code: FAILURE, line: format!("cannot ask on the terminal: {error}") };
    let mut stdout = std::io::stdout();
    stdout.write_all(QUESTION.as_bytes()).and_then(|()| stdout.flush()).map_err(cannot)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(cannot)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}
