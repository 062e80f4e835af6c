//! Where frames come from and go to: the TAP, an in-memory pair, and middleware.

pub mod pcap;
