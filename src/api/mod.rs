//! Protocols on unix sockets. [`attach`]: monitor ⇄ network process. [`server`]: requests in JSON from anybody who may
//! open the socket; [`envelope`] reads what is common to all of them, [`hostfwd`] the three verbs of slirp4netns.

pub mod attach;
pub mod envelope;
pub mod hostfwd;
pub mod server;
