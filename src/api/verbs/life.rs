//! `get_namespaces`, `send_signal` and `stop`: getting into a sandbox, and ending it.
//!
//! ```text
//! {"execute":"get_namespaces"}
//! {"return":{"namespaces":["user","mnt","net","uts","ipc","pid"],"pid":4711,"uid":0,"gid":0,…}}    + 7 descriptors
//! {"execute":"send_signal","arguments":{"signal":"HUP"}}
//! {"return":{}}
//! {"execute":"stop","arguments":{"signal":"TERM","seconds":10}}
//! {"return":{"code":143}}                                                                when all is over
//! ```

use serde::{Deserialize, Serialize};

/// Verbs of this group.
pub const VERBS: [&str; 3] = ["get_namespaces", "send_signal", "stop"];

/// Arguments of `get_namespaces`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetNamespaces {}

/// A kind of namespace, named as in /proc/PID/ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// Users; to be entered first.
    User,
    /// Mounts.
    Mnt,
    /// Network.
    Net,
    /// Host name.
    Uts,
    /// System V and POSIX message queues, semaphores, shared memory.
    Ipc,
    /// Process ids.
    Pid,
}

/// What `get_namespaces` returns. Descriptors come with it (SCM_RIGHTS): the namespaces in this order, and after them the
/// sandbox's first process (pidfd_open(2)), which is readable when the sandbox is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Those that are the sandbox's own, or another sandbox's that it shares; what is left out is the host's.
    pub namespaces: Vec<NamespaceKind>,
    /// Process id of the first process.
    pub pid: u32,
    /// User id of the command, inside.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// User ids that exist inside.
    pub uids: Vec<IdRange>,
    /// Group ids that exist inside.
    pub gids: Vec<IdRange>,
}

/// Consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Arguments of `send_signal`. It goes to the command, not to what the command started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendSignal {
    /// `TERM`, `SIGTERM` or `15`.
    pub signal: String,
}

/// Arguments of `stop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// What the command is sent first; `TERM` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// After how many seconds it is killed; 10 unless given, at most a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u32>,
}

/// What `stop` returns, when nothing of the sandbox is left: its name and ports are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The exit code of `tapway run`.
    pub code: u8,
}
