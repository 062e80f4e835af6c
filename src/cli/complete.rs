//! `tapway __complete sandboxes`, `… networks`: words for shells to complete with. Hidden, and stable: the scripts in
//! `contrib/completions` call it.

use clap::{Args, ValueEnum};

use super::table::output;
use super::{Failure, network, target};
use crate::sandbox::state;

/// Arguments of `tapway __complete`.
#[derive(Debug, Args)]
pub struct CompleteArgs {
    /// What is completed
    pub what: What,
}

/// Kinds of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Names of running sandboxes.
    Sandboxes,
    /// Names of networks.
    Networks,
}

/// Does it: one word a line.
pub fn main(args: &CompleteArgs) -> Result<u8, Failure> {
    let names: Vec<String> = match args.what {
        What::Sandboxes => state::running(&target::runtime_dir()?).into_iter().map(|sandbox| sandbox.name).collect(),
        // Definitions that cannot be used are told to whoever uses them.
        What::Networks => {
            let listing = network::store().list().map_err(|error| Failure::runtime(&error))?;
            listing.networks.into_iter().map(|network| network.name).collect()
        }
    };
    output(&if names.is_empty() { String::new() } else { names.join("\n") + "\n" })
}
