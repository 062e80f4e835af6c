//! Protocols on unix sockets. [`attach`]: monitor ⇄ network process. Requests in JSON from anybody who may open a socket:
//! [`session`] is one connection, [`envelope`] what all requests have in common, [`error`] why one is refused, [`hostfwd`]
//! the three verbs of slirp4netns, [`verbs`] all others, [`registry`] the ports that they are about. [`server`] serves them with tokio, `sandbox::control`
//! without, both by [`socket`]; [`client`] asks. And [`http`], by which metrics are scraped.

pub mod attach;
pub mod client;
pub mod envelope;
pub mod error;
pub mod hostfwd;
pub mod http;
pub mod registry;
pub mod server;
pub mod session;
pub mod socket;
pub mod verbs;
