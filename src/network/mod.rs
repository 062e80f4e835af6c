//! The control model: what a network and an endpoint are. Pure and synchronous; no sockets, no clock, no tokio.
//!
//! [`config`] holds the values that the monitor decides and the network process obeys: the address plan, the
//! policy switches and the published ports. They cross the attach connection as JSON (see `api::attach`).

pub mod capture;
pub mod config;
pub mod desired;
pub mod directory;
pub mod plan;
pub mod publish;
pub mod resolv;
pub mod zone;
