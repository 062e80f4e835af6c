//! The `tapway` binary.
fn main() {}
