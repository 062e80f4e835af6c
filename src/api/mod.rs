//! Protocols on unix sockets. [`attach`]: monitor ⇄ network process. [`server`]: requests in JSON from anybody who may
//! open the socket; [`error`] says why one is refused, [`envelope`] reads what is common to all of them, [`hostfwd`] the
//! three verbs of slirp4netns. [`verbs`]: arguments and results of all others. [`client`] asks.

pub mod attach;
pub mod client;
pub mod envelope;
pub mod error;
pub mod hostfwd;
pub mod server;
pub mod verbs;
