//! tapway: a network for an unprivileged container.
//!
//! See `docs/architecture.md` for the whole picture.

pub mod api;
pub mod cli;
pub mod confine;
pub mod host;
pub mod link;
pub mod network;
pub mod runtime;
pub mod sandbox;
pub mod stack;
pub mod sys;
pub mod telemetry;
pub mod wire;
