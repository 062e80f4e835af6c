//! `tapway __complete sandboxes`: words for shells to complete with. Hidden, and stable: the scripts in
//! `contrib/completions` call it.

use clap::{Args, ValueEnum};

use super::table::output;
use super::{Failure, target};
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
}

/// Does it: one word a line.
pub fn main(args: &CompleteArgs) -> Result<u8, Failure> {
    let What::Sandboxes = args.what;
    let running = state::running(&target::runtime_dir()?);
    let names: Vec<&str> = running.iter().map(|sandbox| sandbox.name.as_str()).collect();
    output(&if names.is_empty() { String::new() } else { names.join("\n") + "\n" })
}
