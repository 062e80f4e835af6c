//! The `tapway` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    tapway::cli::main()
}
