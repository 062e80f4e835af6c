//! All unsafe code of tapway: thin, typed wrappers around system calls that nix and socket2 do not have.
//!
//! Each block says which precondition holds and why. Everything that leaves this module is an `OwnedFd`, a
//! `BorrowedFd`, a value or an errno.
#![allow(unsafe_code)]

pub mod allocator;
pub mod epoll;
pub mod fd;
pub mod memory;
pub mod mount;
pub mod msg;
pub mod namespace;
pub mod random;
pub mod spawn;
pub mod tap;
