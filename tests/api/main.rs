//! The API socket of slirp4netns mode: its server beside clients that misbehave, and its replies beside the original's.
#![allow(clippy::unwrap_used)] // a test that fails by panic is a test that fails

mod clients;
mod observe;
mod openmetrics;
mod served;
mod upstream;
