//! The control model: what a network and an endpoint are. Pure and synchronous; no sockets, no clock, no tokio.
//!
//! [`config`] holds the values that the monitor decides and the network process obeys: the address plan, the
//! policy switches and the published ports. They cross the attach connection as JSON (see `api::attach`).
//!
//! Named networks: [`creation`] makes a [`definition`] of what was typed, with a subnet of [`pools`] if need be and
//! [`options`]; a member's addresses come from [`ipam`] and are a [`lease`]; which of its networks is a sandbox's [`gateway`]. Files and locks are the monitor's
//! (`sandbox::networks`, `sandbox::leases`).

pub mod capture;
pub mod config;
pub mod creation;
pub mod definition;
pub mod desired;
pub mod directory;
pub mod fault;
pub mod gateway;
pub mod ipam;
pub mod lease;
pub mod options;
pub mod plan;
pub mod pools;
pub mod publish;
pub mod resolv;
pub mod timestamp;
pub mod zone;
