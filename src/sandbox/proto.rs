//! What the monitor and the sandbox's first process say to each other.
//!
//! A `SOCK_SEQPACKET` pair, sent and received as the attach protocol is (`api::attach`). Both ends are one program at
//! one version, so there is no negotiation.
//!
//! ```text
//! sandbox                          monitor
//!   Tap {name} + [tap, …]    ──►             a device exists (addresses may not yet); one for each interface
//!                            ◄──   Mapped    uid and gid maps are written
//!   Prepared {notes} + [2]   ──►             namespaces are complete; /etc/resolv.conf and /etc/hosts, to be edited
//!                            ◄──   Go        the network is ready: start the command
//!                            ◄──   Signal    (at any time) for the command
//!                            ◄──   Broken    (at any time) the network process died: end the connections that it had
//!                            ◄──   Files     (at any time) look whether /etc/resolv.conf and /etc/hosts are still ours
//!   Started                  ──►             the command runs
//!   Stopped                  ──►             the command was stopped
//!                            ◄──   Connect   (from Started on, as the next three) make one more interface
//!   Tap | NotConnected       ──►
//!                            ◄──   Order     the interfaces in the order of their ranks: set the ways out
//!   Ordered                  ──►
//!                            ◄──   Leave     the same without one that is to go: end the connections that it has
//!   Ordered                  ──►
//!                            ◄──   Delete    delete an interface
//!   Deleted                  ──►
//!   NoCommand | Exited       ──►             the end; the process leaves
//!   Failed                   ──►             instead of any of the above; the process leaves
//! ```
//!
//! A closed connection means that the other side is dead, and ends the sandbox.

use serde::{Deserialize, Serialize};

use super::interface::Interface;
use crate::network::config::Offloads;

/// Sandbox → monitor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromSandbox {
    /// A TAP; a descriptor for each of its queues comes along.
    Tap {
        /// The interface.
        name: String,
        /// What the kernel granted.
        offloads: Offloads,
    },
    /// Everything but the command is there. Descriptors: the sandbox's resolv.conf and hosts.
    Prepared {
        /// What had to be left out, for the log.
        notes: Vec<String>,
        /// Names can be asked for at the address of Docker's containers.
        embedded_dns: bool,
    },
    /// An interface could not be made; nothing is left of it.
    NotConnected {
        /// Its name.
        name: String,
        /// Why.
        desc: String,
    },
    /// The ways out are set.
    Ordered {
        /// Names can be asked for at the address of Docker's containers.
        embedded_dns: bool,
        /// What had to be left out, for the log.
        notes: Vec<String>,
    },
    /// An interface is gone.
    Deleted,
    /// The command was executed.
    Started,
    /// The command was stopped by a signal and waits.
    Stopped,
    /// The command could not be executed.
    NoCommand {
        /// Errno of execve(2).
        errno: i32,
    },
    /// The command ended.
    Exited {
        /// Exit code, or 128 + the signal.
        code: u8,
    },
    /// The sandbox could not be made.
    Failed {
        /// One line for the user.
        desc: String,
    },
}

/// Monitor → sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToSandbox {
    /// The uid and gid maps are written.
    Mapped,
    /// Start the command.
    Go,
    /// Send the command this signal.
    Signal(i32),
    /// The terminal is ours again: give it to the command.
    Foreground,
    /// The network process of this interface died: connections that it terminated are over.
    Broken {
        /// Its name.
        name: String,
    },
    /// Make one more interface.
    Connect(Interface),
    /// Set the ways out for these interfaces, which are in the order of their ranks.
    Order {
        /// Their names.
        names: Vec<String>,
    },
    /// The same, and end all connections of another interface, which is about to go.
    Leave {
        /// Its name.
        name: String,
        /// Names of those that stay.
        others: Vec<String>,
    },
    /// Delete an interface.
    Delete {
        /// Its name.
        name: String,
    },
    /// The host's /etc changed: put back our files where they were lost.
    Files,
}
