//! Where frames come from and go to: the TAP, and middleware.

pub mod pcap;
pub mod tap;
