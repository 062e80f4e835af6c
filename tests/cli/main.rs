//! The command line, end to end: the real binary as an ordinary user, what it prints, returns and leaves behind.
//!
//! One file for each theme. Run as root the tests start tapway as an ordinary user all the same (one that has
//! subordinate ids if there is such a user); see [`stage`].

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod control;
mod detached;
mod document;
mod exit_codes;
mod files;
mod life;
mod network;
mod ports;
mod processes;
mod slirp4netns;
mod stage;
mod terminal;
mod users;
