//! `tapway network rm NAME…`.

use clap::Args;
use serde_json::json;

use super::{failure, store, tell};
use crate::cli::table::{line, output};
use crate::cli::{Failure, target};
use crate::sandbox::leases::{self, LeaseError};
use crate::sandbox::networks::StoreError;

const EXAMPLES: &str = "\
Examples:
  tapway network rm web db
      each name is printed as its network goes; one with a running sandbox in it stays
  tapway network rm -f web
      no error if there is none";

/// Arguments of `tapway network rm`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct RmArgs {
    /// Name or id of a network, or the beginning of an id
    #[arg(required = true, value_name = "NETWORK")]
    pub network: Vec<String>,
    /// No error for networks that are not there
    #[arg(short, long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn main(args: &RmArgs) -> Result<u8, Failure> {
    let store = store();
    let runtime_dir = target::runtime_dir()?;
    let (mut code, mut removed) = (0, Vec::new());
    for typed in &args.network {
        let network = store.find(typed).map_err(LeaseError::from);
        match network.and_then(|network| leases::remove_network(&runtime_dir, &store, &network)) {
            Ok(()) if args.json => removed.push(typed),
            Ok(()) => _ = output(&format!("{typed}\n"))?,
            Err(LeaseError::Store(StoreError::NotFound(_))) if args.force => {}
            Err(LeaseError::Store(error)) => code = tell(&failure(&error)),
            Err(error) => code = tell(&Failure::runtime(&error)),
        }
    }
    if args.json {
        output(&line(&json!({ "removed": removed })))?;
    }
    Ok(code)
}
