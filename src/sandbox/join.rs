//! A sandbox in another's network: `--network container:NAME`.
//!
//! ```text
//! monitor ── fork ──► a helper: enters the donor's user, network, UTS and IPC namespaces
//!    ▲                   └── clone(CLONE_PARENT) ──► the first process, in mount and PID namespaces of its own
//!    └───────────────────── its parent ─────────────────┘
//! ```
//!
//! The network namespace belongs to the donor's user namespace, so that one must be entered first, and the new ones are made
//! in it: users inside are the donor's. Namespaces and descriptors come from the donor's monitor (`get_namespaces`), so no
//! process id is looked up. The helper's child is the monitor's, so it dies with it, as any first process does.
//!
//! The donor's /etc/resolv.conf and /etc/hosts are shared as they are: their mounts are copied in the donor's mount
//! namespace (the kernel copies a mount only where it is) and attached in the new one. They outlive the donor, the
//! interface does not: then only lo is left.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, fchdir, pipe2, read, write};

use super::child::Child;
use crate::sys;
use crate::sys::spawn::{self, Forked};

/// Why the other sandbox cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A call of the monitor's.
    #[error("cannot {what}")]
    Call {
        /// Which.
        what: &'static str,
        /// Errno.
        #[source]
        source: nix::Error,
    },
    /// The helper failed.
    #[error("cannot enter the namespaces of the other sandbox, or make new ones in them")]
    Enter(#[source] nix::Error),
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> JoinError {
    move |source| JoinError::Call { what, source }
}

/// The sandbox that is joined.
#[derive(Debug)]
pub struct Donor {
    /// What is shared, the user namespace first.
    pub namespaces: Vec<(CloneFlags, OwnedFd)>,
    /// Where its files are.
    pub mounts: OwnedFd,
    /// Its name, for messages.
    pub name: String,
}

impl Donor {
    /// Starts the first process, which runs `body` in the donor's namespaces and in new ones (`created`), with the
    /// descriptors `keep` and those of the donor; its process id. It is the child of the caller.
    pub fn start_init(
        &self,
        created: CloneFlags,
        keep: &[BorrowedFd<'_>],
        body: impl FnOnce() -> u8,
    ) -> Result<Pid, JoinError> {
        let (told, tell) = pipe2(OFlag::O_CLOEXEC).map_err(call("make a pipe"))?;
        let helper = match spawn::fork().map_err(call("fork"))? {
            Forked::Parent(pid) => Child::new(pid),
            Forked::Child => spawn::leave_with(|| match self.enter_and_clone(created) {
                Ok(Forked::Child) => {
                    let mut keep = keep.to_vec();
                    keep.push(self.mounts.as_fd());
                    spawn::close_all_but(&keep);
                    body()
                }
                Ok(Forked::Parent(init)) => say(&tell, init.as_raw()),
                Err(errno) => say(&tell, -(errno as i32)),
            }),
        };
        drop(tell);
        let mut number = [0; 4];
        let got = loop {
            match read(&told, &mut number) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(call("read a pipe"))?,
            }
        };
        drop(helper);
        match i32::from_ne_bytes(number) {
            init @ 1.. if got == number.len() => Ok(Pid::from_raw(init)),
            errno if got == number.len() => Err(JoinError::Enter(Errno::from_raw(-errno))),
            _ => Err(JoinError::Enter(Errno::ECHILD)),
        }
    }

    fn enter_and_clone(&self, created: CloneFlags) -> nix::Result<Forked> {
        for (flag, fd) in &self.namespaces {
            setns(fd, *flag)?;
        }
        spawn::clone_into(created | CloneFlags::CLONE_PARENT)
    }

    /// In the first process, before it changes any mount: copies of the donor's mounts at `entries`.
    pub fn copy_mounts(&self, entries: &[&str]) -> nix::Result<Vec<OwnedFd>> {
        let own =
            File::open("/proc/self/ns/mnt").map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let here = open(".", flags | OFlag::O_DIRECTORY, Mode::empty())?;
        setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
        let copy = |entry: &&str| {
            let fd = open(Path::new(entry), flags | OFlag::O_NOFOLLOW, Mode::empty())?;
            sys::mount::clone_tree(fd.as_fd(), false)
        };
        let copies = entries.iter().map(copy).collect();
        setns(&own, CloneFlags::CLONE_NEWNS)?;
        fchdir(&here)?;
        copies
    }
}

fn say(tell: &OwnedFd, number: i32) -> u8 {
    let _ = write(tell, &number.to_ne_bytes());
    0
}
