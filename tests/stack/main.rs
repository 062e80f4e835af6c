//! The stack without a kernel: scripted segments of a guest, a simulated host, a virtual clock.
//!
//! Nothing here is smoltcp talking to itself: the guest is a script (`sim::Conn`) or a small TCP of its own
//! (`guest_tcp`), so that a misunderstanding in one place is not shared by the other. Every frame that the stack emits is
//! checked for lengths, checksums and segmentation before a test sees it (`sim::parse`).
#![allow(clippy::unwrap_used)] // a test that fails by panic is a test that fails

mod attacks;
mod datagrams;
mod faulty;
mod guest_tcp;
mod hostile;
mod lanes;
mod ledger;
mod link_layer;
mod scale;
mod sim;
mod slirp;
mod streams;
mod switch;
mod tcp_flow_control;
mod tcp_life;
mod tcp_published;
mod tcp_rest;
