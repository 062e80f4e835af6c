//! Getting at a network namespace that somebody else made: `tapway attach` and slirp4netns mode.
//!
//! [`join`] sends a child in, which comes back with a TAP; [`target`] tells what became of the namespace when that is gone.

pub mod join;
pub mod target;
