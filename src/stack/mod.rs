//! The data plane core. Sans-I/O: time and randomness are arguments, it never sees a descriptor.

pub mod verdict;
