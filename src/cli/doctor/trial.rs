//! Trials of `tapway doctor` that need a process of their own: each forks, tries, tells over a pipe and ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::confine::{self, Report};
use crate::network::config::Offloads;
use crate::sandbox::{files, tap, users};
use crate::sys::mount::{attach_tree, clone_tree};
use crate::sys::spawn::{Forked, clone_into, leave_with};
use crate::telemetry::chain;

/// What could be done within new namespaces; errors as text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inside {
    /// Everything made private.
    pub private: Result<(), String>,
    /// A /proc of the new PID namespace.
    pub proc: Result<(), String>,
    /// open_tree and move_mount.
    pub mount_api: Result<(), String>,
    /// A TAP.
    pub tap: Result<Offloads, String>,
}

/// How a trial in namespaces went.
#[derive(Clone, Debug)]
pub enum Tried<T> {
    /// It ran, and this is what it found.
    Yes(T),
    /// The namespaces were refused; the errno.
    Clone(i32),
    /// The namespaces exist, but our user could not be mapped into them.
    Map(String),
    /// It died without an answer.
    Lost(String),
}

/// How the mapping of subordinate ids went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// It works.
    Yes,
    /// This program is not there.
    Missing(&'static str),
    /// This is what it said.
    Failed(String),
    /// There was no namespace to map into.
    NoNamespace,
}

/// Makes all namespaces of `tapway run` and tries mounts and a TAP in them.
pub fn inside() -> Tried<Inside> {
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    in_namespaces(flags, write_own_map, || Inside {
        private: files::make_private().map_err(|error| chain(&error)),
        proc: files::mount_proc().map_err(|errno| errno.desc().to_owned()),
        mount_api: mount_api().map_err(|errno| errno.desc().to_owned()),
        tap: tap::create("tapway0").map(|(_, offloads)| offloads).map_err(|error| chain(&error)),
    })
}

/// Mounts one file over another by descriptors, as the sandbox does with resolv.conf.
fn mount_api() -> Result<(), Errno> {
    let path = |name| open(name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let tree = clone_tree(path("/proc/self/status")?.as_fd(), false)?;
    attach_tree(tree.as_fd(), path("/proc/self/limits")?.as_fd())
}

/// Maps the caller to root by hand, as `run` does without newuidmap.
fn write_own_map(child: Pid) -> Result<(), String> {
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", users::render(&users::single(0, uid))),
        ("gid_map", users::render(&users::single(0, gid))),
    ] {
        std::fs::write(format!("/proc/{child}/{file}"), text).map_err(|error| format!("{file}: {error}"))?;
    }
    Ok(())
}

/// Maps ids with newuidmap and newgidmap into a new user namespace.
pub fn map_ids(uids: &[users::Range], gids: &[users::Range]) -> Mapped {
    let mut result = Mapped::NoNamespace;
    let map = |child: Pid| {
        result = [("newuidmap", uids), ("newgidmap", gids)]
            .into_iter()
            .find_map(|(program, ranges)| map_with(program, child, ranges).err())
            .unwrap_or(Mapped::Yes);
        Ok(())
    };
    let _: Tried<()> = in_namespaces(CloneFlags::CLONE_NEWUSER, map, || ());
    result
}

fn map_with(program: &'static str, child: Pid, ranges: &[users::Range]) -> Result<(), Mapped> {
    let mut command = Command::new(program);
    command.arg(child.to_string()).stdin(Stdio::null()).env("LC_ALL", "C");
    for range in ranges {
        command.args([range.inside.to_string(), range.outside.to_string(), range.count.to_string()]);
    }
    match command.output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            Err(Mapped::Failed(format!("{program}: {}", said.lines().next().unwrap_or("failed without a word"))))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Mapped::Missing(program)),
        Err(error) => Err(Mapped::Failed(format!("{program}: {error}"))),
    }
}

/// Confines a child as the network process is.
pub fn confined() -> Result<Report, String> {
    let act = || confine::enter(confine::Options::default()).map_err(|error| chain(&error));
    match in_namespaces(CloneFlags::empty(), |_| Ok(()), act) {
        Tried::Yes(answer) => answer,
        Tried::Clone(errno) => Err(format!("cannot fork: {}", Errno::from_raw(errno).desc())),
        Tried::Map(why) | Tried::Lost(why) => Err(why),
    }
}

/// Forks into new namespaces, lets `map` map the child's ids from outside, and lets `act` act within.
fn in_namespaces<T: Serialize + DeserializeOwned>(
    flags: CloneFlags,
    map: impl FnOnce(Pid) -> Result<(), String>,
    act: impl FnOnce() -> T,
) -> Tried<T> {
    let pipes = pipe2(OFlag::O_CLOEXEC).and_then(|go| Ok((go, pipe2(OFlag::O_CLOEXEC)?)));
    let ((go_read, go_write), (answer_read, answer_write)) = match pipes {
        Ok(pipes) => pipes,
        Err(errno) => return Tried::Lost(format!("no pipe: {}", errno.desc())),
    };
    let child = match clone_into(flags) {
        Err(errno) => return Tried::Clone(errno as i32),
        Ok(Forked::Parent(child)) => child,
        Ok(Forked::Child) => leave_with(move || {
            drop((go_write, answer_read));
            answer(go_read, answer_write, act)
        }),
    };
    drop((go_read, answer_write));
    let mapped = map(child);
    if mapped.is_ok() {
        // If it died already, its end tells.
        let _ = nix::unistd::write(&go_write, b"g");
    }
    drop(go_write);
    let mut text = Vec::new();
    let _ = File::from(answer_read).read_to_end(&mut text);
    let ended = waitpid(child, None);
    match (mapped, serde_json::from_slice(&text)) {
        (Err(why), _) => Tried::Map(why),
        (Ok(()), Ok(found)) => Tried::Yes(found),
        (Ok(()), Err(_)) => Tried::Lost(match ended {
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
            Ok(other) => format!("{other:?}"),
            Err(errno) => errno.desc().to_owned(),
        }),
    }
}

/// The child: waits for the word, acts, tells.
fn answer<T: Serialize>(go: OwnedFd, to: OwnedFd, act: impl FnOnce() -> T) -> u8 {
    if File::from(go).read_exact(&mut [0]).is_err() {
        return 1;
    }
    let Ok(text) = serde_json::to_vec(&act()) else { return 1 };
    u8::from(File::from(to).write_all(&text).is_err())
}
