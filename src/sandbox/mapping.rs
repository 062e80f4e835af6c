//! Writing the uid and gid maps of a sandbox's first process: by ourselves, or by newuidmap and newgidmap.
//!
//! The helpers take longer to start than all else at the start of a sandbox, so both are started at once and waited for
//! only when nothing else is left to do. One that is missing or refuses costs the other users, not the sandbox: then the
//! map has the caller alone.

use std::process::{Command, Stdio};

use nix::unistd::Pid;

use super::users::{self, Range};

/// Why a map is not written. The kernel lets nobody map root who lacks CAP_SETFCAP (user_namespaces(7)).
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot write the {what} of the sandbox{}",
    if nix::unistd::geteuid().is_root() { "; root needs CAP_SETFCAP, CAP_SETUID and CAP_SETGID for it" } else { "" }
)]
pub struct MapError {
    /// Which file of /proc/PID.
    what: &'static str,
    /// Why.
    #[source]
    source: std::io::Error,
}

/// How the ids of the sandbox come about; see [`users`].
#[derive(Clone, Debug)]
pub enum Maps {
    /// They are there: the sandbox is in another's user namespace.
    Written,
    /// Written by the monitor itself: it has the capabilities, or they are one id each.
    Direct {
        /// uid map.
        uids: Vec<Range>,
        /// gid map.
        gids: Vec<Range>,
        /// setgroups(2) must be denied (the caller has no CAP_SETGID).
        deny_setgroups: bool,
    },
    /// By newuidmap and newgidmap; where these fail, one id each.
    Helpers {
        /// uid map.
        uids: Vec<Range>,
        /// gid map.
        gids: Vec<Range>,
        /// uid map without helpers.
        single_uid: Vec<Range>,
        /// gid map without helpers.
        single_gid: Vec<Range>,
    },
}

/// Writing the maps: begun when the first process exists, ended before it is told.
#[derive(Debug)]
pub enum Mapping<'a> {
    /// Nothing is to be written.
    Written,
    /// To be written by ourselves.
    Direct {
        /// uid map.
        uids: &'a [Range],
        /// gid map.
        gids: &'a [Range],
        /// setgroups(2) must be denied first.
        deny_setgroups: bool,
    },
    /// Being written by the helpers.
    Helpers {
        /// newuidmap and newgidmap.
        running: [Helper; 2],
        /// uid map if the first fails.
        single_uid: &'a [Range],
        /// gid map if the second fails.
        single_gid: &'a [Range],
    },
}

/// One of newuidmap and newgidmap, running or not to be had.
#[derive(Debug)]
pub struct Helper {
    program: &'static str,
    child: std::io::Result<std::process::Child>,
}

impl<'a> Mapping<'a> {
    /// Starts the helpers, if any, for the first process `pid`.
    pub fn start(pid: Pid, maps: &'a Maps) -> Self {
        match maps {
            Maps::Written => Self::Written,
            Maps::Direct { uids, gids, deny_setgroups } => Self::Direct { uids, gids, deny_setgroups: *deny_setgroups },
            Maps::Helpers { uids, gids, single_uid, single_gid } => Self::Helpers {
                running: [Helper::start("newuidmap", pid, uids), Helper::start("newgidmap", pid, gids)],
                single_uid,
                single_gid,
            },
        }
    }

    /// Waits for the helpers and writes what they did not.
    pub fn finish(self, pid: Pid) -> Result<(), MapError> {
        let write = |what: &'static str, text: &str| {
            std::fs::write(format!("/proc/{pid}/{what}"), text).map_err(|source| MapError { what, source })
        };
        let (uids, gids, deny_setgroups) = match self {
            Self::Written => return Ok(()),
            Self::Direct { uids, gids, deny_setgroups } => (Some(uids), Some(gids), deny_setgroups),
            Self::Helpers { running, single_uid, single_gid } => {
                let [uid_done, gid_done] = running.map(Helper::finish);
                ((!uid_done).then_some(single_uid), (!gid_done).then_some(single_gid), true)
            }
        };
        if let Some(gids) = gids {
            if deny_setgroups {
                write("setgroups", "deny")?;
            }
            write("gid_map", &users::render(gids))?;
        }
        uids.map_or(Ok(()), |uids| write("uid_map", &users::render(uids)))
    }
}

impl Helper {
    fn start(program: &'static str, pid: Pid, map: &[Range]) -> Self {
        let mut command = Command::new(program);
        command.arg(pid.to_string());
        for range in map {
            command.args([range.inside.to_string(), range.outside.to_string(), range.count.to_string()]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        Self { program, child }
    }

    /// True if the map is written.
    fn finish(self) -> bool {
        let program = self.program;
        match self.child.and_then(std::process::Child::wait_with_output) {
            Ok(output) if output.status.success() => true,
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
                tracing::info!("{program} refused, so only one user exists inside: {said}");
                false
            }
            Err(error) => {
                tracing::info!("cannot run {program}, so only one user exists inside: {error}");
                false
            }
        }
    }
}
