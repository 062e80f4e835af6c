//! Bytes ⇄ typed views on top of `smoltcp::wire`. No I/O, no clock, no allocation.

pub mod chain;
pub mod csum;
pub mod dns_build;
pub mod dns_data;
pub mod dns_message;
pub mod dns_name;
pub mod fragment;
pub mod icmp_error;
pub mod ndisc;
pub mod segment;
pub mod summary;
pub mod tcp_segment;
pub mod vnet;
