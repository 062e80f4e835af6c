//! slirp4netns mode: what tapway does for a caller that knows slirp4netns and spawns one.
//!
//! One process plays both roles, monitor and network process, for a namespace that somebody else made (`sandbox::foreign`
//! gets at it). Here is what only that program has; the order of things is in `cli::slirp4netns::process`.

pub mod bess;
pub mod options;
