//! What a detached sandbox prints: from its pipes to two files, without ever holding it up.
//!
//! ```text
//! command ── stdout, stderr ──► monitor's poll loop ── pipe ──► keeper ──► ID.log, and ID.log.1 before it
//! monitor, network process ── stderr ──►  (`output`)              (`keeper`, a process of its own)
//! ```
//!
//! The monitor reads what comes at once, cuts it into lines with a time, and hands them on without blocking. The keeper
//! is a fork of the monitor that does nothing but write: a disk that hangs holds up nobody else. What finds the pipe full
//! for longer than [`output::PENDING`] bytes, or the disk full, is lost, counted, and told in the log.
//!
//! The files are in `$XDG_STATE_HOME/tapway/logs`, on a disk: the runtime directory is memory, which the user shares with
//! every other program. They hold [`keeper::MAX_FILE`] bytes each, whole lines, in the form of Kubernetes and podman's
//! k8s-file (`record`). They stay when the sandbox has ended, until `tapway rm`, or until they are old (`store`).

pub mod keeper;
pub mod output;
pub mod record;
pub mod store;
