//! End-to-end tests on a real kernel: unprivileged namespaces, a real TAP, real programs.
//!
//! `world` makes the stage; each module asks one part of the data path for the truth. Nothing here leaves the machine,
//! and nothing needs root. A missing Debian program fails the test with the line that installs it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod dhcp;
mod dns;
mod icmp;
mod iperf;
mod leaks;
mod policy;
mod programs;
mod publish;
mod short;
mod tcp;
mod tools;
mod udp;
mod world;
