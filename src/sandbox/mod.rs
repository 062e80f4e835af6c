//! The monitor: the process that stands by one sandbox.
//!
//! ```text
//! tapway run ── monitor ──┬── fork ──► network process     the data plane; gets TAP and listeners, holds no privilege
//!   (this module)         └── clone ─► first process       makes the interfaces and the files, is init of the command
//! ```
//!
//! The monitor is the user on the host: it binds the published ports, writes the uid maps, reads resolv.conf, opens the
//! capture file. It enters no namespace and is single-threaded for life. It keeps a duplicate of every descriptor that it
//! hands out, so a network process that dies is replaced by one with the same TAP and the same listening sockets.
//!
//! - [`monitor`]: the event loop and the order of things of a sandbox that we make; [`attached`]: the same for a namespace that
//!   somebody else made, which [`foreign`] gets into; [`station`]: what both have;
//! - [`inside`], [`tap`], [`interface`], [`netlink`], [`files`]: the sandbox's first process; `networks_inside`, [`routes`]: its
//!   interfaces as they come and go, and the ways out; [`resets`]: what it ends when a network process has died;
//! - [`users`], [`mapping`], [`host_dns`], [`state`]: what the monitor decides, binds and writes;
//! - [`place`], [`endpoint`]: a sandbox's place on a network, and its endpoint there;
//! - [`networks`], [`leases`]: networks that users made, and who is in them; [`host_routes`]: what they must not cover;
//!   [`locked`]: files that are held by a lock;
//! - [`command`], [`jobs`], [`child`]: starting the command and standing by it, here and in `tapway exec`;
//! - [`control`], [`desk`], [`published`], [`captures`], [`edit`]: the control socket, and what is changed there;
//! - [`join`]: a sandbox in another's network;
//! - [`life`]: the verbs by which a sandbox is entered and ended; [`exec`]: a process that enters one;
//! - [`uplink`]: the network process, our own or (`shared`) that of a network; [`link`]: the connection to it; [`proto`]: what monitor and first process say to each other.
//!
//! Everything ends together: the connection to the network process is its lease, the first process dies with the
//! monitor, and the state file is locked by the monitor's life, so that a file without a lock is a dead one's.

pub mod attached;
pub mod blame;
pub mod captures;
pub mod child;
pub mod command;
pub mod control;
pub mod desk;
pub mod edit;
pub mod endpoint;
pub mod exec;
pub mod files;
pub mod foreign;
pub mod host_dns;
pub mod host_routes;
pub mod inside;
pub mod interface;
pub mod jobs;
pub mod join;
pub mod leases;
pub mod life;
pub mod link;
pub mod locked;
pub mod logs;
pub mod mapping;
pub mod monitor;
pub mod netlink;
pub mod networks;
mod networks_inside;
pub mod place;
pub mod program;
pub mod proto;
pub mod published;
pub mod resets;
pub mod routes;
pub mod shared;
pub mod slirp;
pub mod state;
pub mod station;
pub mod tap;
pub mod uplink;
pub mod users;
