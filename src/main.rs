//! The `tapway` binary.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tapway::sys::allocator::Allocator = tapway::sys::allocator::Allocator;

fn main() -> ExitCode {
    tapway::cli::main()
}
