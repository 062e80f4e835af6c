//! Protocols on unix sockets. [`attach`]: monitor ⇄ network process.

pub mod attach;
