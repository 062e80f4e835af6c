//! The network process of one sandbox, wherever it comes from: forked for this sandbox alone, or that of a network which
//! several share.
//!
//! | | own | shared |
//! |---|---|---|
//! | begins | forked by this monitor, and executed anew where another tapway is installed since (`sandbox::program`) | by the first monitor that needs it, executed anew (`sandbox::shared`) |
//! | the connection | a socket pair | by its socket |
//! | the connection closes | it died: reaped, and another is forked | it died or is leaving: found or started again |
//! | the monitor ends | it is waited for, then killed | it goes on with its other members |
//!
//! Either way what follows is the same: the endpoint is attached anew with the same TAP and the same listeners. A process
//! that is lost [`MAX_DEATHS`] times within [`DEATHS_WITHIN`] is not tried again; of a shared one only those deaths count that were at nobody's
//! turn (`sandbox::blame`): who kills it again and again is put aside, and the others go on. Where the machine is short of what another one
//! takes ([`UplinkError::is_shortage`]), the monitor goes on without and tries again. A loss is counted once, though whoever is
//! quick may meet the dying process of a shared network a second time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::child::Child;
use super::leases::HeldLease;
use super::link::Link;
use super::program::{self, Newer};
use super::shared::{Shared, SharedError};
use crate::network::config::{self, Membership, Turns};
use crate::sys;
use crate::sys::spawn::{self, Forked};
use crate::telemetry;

/// A network process that dies this often…
pub const MAX_DEATHS: usize = 3;
/// … within this time is not started again.
pub const DEATHS_WITHIN: Duration = Duration::from_secs(10);
/// How long the network process may take to let go at the end: an own one writes out its capture file.
pub const LEAVE_TIME: Duration = Duration::from_secs(2);

/// Where the network process comes from.
#[derive(Debug)]
pub enum Source {
    /// Nowhere: the sandbox has no interface of its own.
    None,
    /// Forked; its body, given its end of the attach connection.
    Own(Own),
    /// That of a shared network.
    Shared(Box<Member>),
}

/// The hidden command that a process of one sandbox is, where it is executed.
pub const COMMAND: &str = "__endpoint";

/// A network process that is forked.
#[derive(Debug)]
pub struct Own {
    body: fn(OwnedFd, &'static Turns) -> ExitCode,
    /// Not all 0 while it serves the sandbox.
    serving: &'static Turns,
    /// Where that is, for a process that is executed. None: none is.
    words: Option<File>,
    /// A program that was installed since and did not come to serve.
    refused: RefCell<Option<Newer>>,
}

impl Own {
    /// One whose body is this.
    pub fn new(body: fn(OwnedFd, &'static Turns) -> ExitCode) -> Self {
        /// Where it is not known: a child writes to its own copy.
        static UNSHARED: Turns = [const { AtomicU64::new(0) }; size_of::<Turns>() / size_of::<AtomicU64>()];
        let words = memfd_create(c"serving", MFdFlags::MFD_CLOEXEC).ok().map(File::from);
        let words = words.filter(|words| words.set_len(size_of::<Turns>() as u64).is_ok());
        let serving = sys::memory::shared_words(words.as_ref()).unwrap_or(&UNSHARED);
        Self { body, serving, words, refused: RefCell::new(None) }
    }

    /// What is installed now, if another program is and it has not failed yet.
    fn newer(&self) -> Option<Newer> {
        self.words.as_ref()?;
        program::newer().filter(|newer| self.refused.borrow().as_ref() != Some(newer))
    }
}

/// A sandbox's place on a shared network.
#[derive(Debug)]
pub struct Member {
    /// The network's process.
    pub shared: Shared,
    /// What the sandbox holds there, as long as it runs.
    pub lease: HeldLease,
    /// What it is called there.
    pub membership: Membership,
}

/// Why there is no network process.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// A system call.
    #[error("cannot {what}")]
    Call {
        /// Which.
        what: &'static str,
        /// Errno.
        #[source]
        source: nix::Error,
    },
    /// A shared one.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// It keeps dying.
    #[error(
        "the network process died {MAX_DEATHS} times in {within} seconds (the last time: {how}); the sandbox is stopped",
        within = DEATHS_WITHIN.as_secs()
    )]
    Dies {
        /// How it ended the last time.
        how: String,
    },
}

impl UplinkError {
    /// True if the machine is short of something that it may have again: descriptors, memory, processes.
    pub fn is_shortage(&self) -> bool {
        let errno = match self {
            Self::Call { source, .. } => *source,
            Self::Shared(error) => match error {
                SharedError::Socket { source, .. } => *source,
                SharedError::File { source, .. } | SharedError::Start { source, .. } => {
                    source.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
                }
                SharedError::Refused { .. } | SharedError::Busy(_) => return false,
            },
            Self::Dies { .. } => return false,
        };
        matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN | Errno::ENOSPC)
    }
}

fn call(what: &'static str) -> impl FnOnce(nix::Error) -> UplinkError {
    move |source| UplinkError::Call { what, source }
}

/// A network process and the connection to it.
#[derive(Debug)]
pub struct Uplink {
    /// What is said to it.
    pub link: Link,
    /// It forwards frames.
    pub ready: bool,
    /// None: it is a shared one.
    child: Option<Child>,
    /// The child is of this program.
    newer: Option<Newer>,
    losses: Losses,
    /// One of a shared network's was lost and is not replaced: how it went, and whether frames flowed before.
    lost: Option<(String, bool)>,
}

/// How often the process was lost lately.
#[derive(Debug, Default)]
struct Losses {
    counted: VecDeque<Instant>,
    /// One was not counted since frames flowed last.
    excused: bool,
}

impl Losses {
    /// One more; true if there are too many beside those that are `excused`: somebody else's doing. A shared process that is dying or leaving may take one connection more before its
    /// listener closes: the same loss, seen twice.
    fn count(&mut self, shared: bool, was_ready: bool, blamed: usize, now: Instant) -> bool {
        let excuse = shared && !was_ready && !self.excused;
        self.excused = !was_ready && (excuse || self.excused);
        if !excuse {
            self.counted.push_back(now);
        }
        while self.counted.front().is_some_and(|&loss| now.duration_since(loss) > DEATHS_WITHIN) {
            self.counted.pop_front();
        }
        self.counted.len() >= MAX_DEATHS + blamed
    }
}

impl Source {
    /// How the sandbox is a member of a shared network.
    pub fn membership(&self) -> Option<&Membership> {
        match self {
            Self::Shared(member) => Some(&member.membership),
            Self::None | Self::Own(_) => None,
        }
    }

    /// Starts the process, or finds it; None where there is to be none.
    pub fn open(&self) -> Result<Option<Uplink>, UplinkError> {
        let (conn, child, newer) = match self {
            Self::None => return Ok(None),
            Self::Own(own) => {
                let newer = own.newer();
                let (conn, child) = fork(own, newer.as_ref())?;
                (conn, Some(child), newer)
            }
            Self::Shared(member) => (member.shared.connect()?, None, None),
        };
        let link = Link::new(conn).map_err(call("make the attach connection non-blocking"))?;
        Ok(Some(Uplink { link, ready: false, child, newer, losses: Losses::default(), lost: None }))
    }
}

impl Uplink {
    /// Process id of the network process; 0 if it is not this monitor's child.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().map_or(0, |child| child.pid.as_raw())
    }

    /// The connection is gone: reaps the process. An error if one of our own dies too often; of a shared one that is known when
    /// there is another.
    pub fn handle_lost(&mut self, source: &Source) -> Result<(), UplinkError> {
        let mut how = match &mut self.child {
            // Where only the connection is gone, the process goes now.
            Some(child) => {
                child.kill();
                child.wait().unwrap_or_default()
            }
            None => "the connection to it closed".to_owned(),
        };
        if let Source::Own(own) = source {
            if let Some(newer) = self.newer.take().filter(|_| !self.ready) {
                tracing::warn!("{} does not come to serve; going on with the program that runs", newer.path.display());
                own.refused.replace(Some(newer));
            }
            // All lanes are this sandbox's; what the control thread dies of is not.
            let turns = own.serving.each_ref().map(|turn| turn.swap(0, Ordering::Relaxed));
            if config::at_turn(&turns).is_some() {
                how += ", while it served the sandbox's frames or connections";
            }
            if self.losses.count(false, self.ready, 0, Instant::now()) {
                return Err(UplinkError::Dies { how });
            }
        }
        tracing::warn!("the network process died ({how}); starting another");
        self.lost = Some((how, self.ready));
        self.ready = false;
        Ok(())
    }

    /// Another process, or a connection to another, in place of what was lost.
    pub fn reopen(&mut self, source: &Source) -> Result<(), UplinkError> {
        let Some(mut next) = source.open()? else { return Ok(()) };
        // Whoever started it has found out whose doing it was.
        if let (Source::Shared(member), Some((how, was_ready))) = (source, self.lost.take()) {
            let blamed = member.shared.deaths().lately(DEATHS_WITHIN);
            if self.losses.count(true, was_ready, blamed, Instant::now()) {
                return Err(UplinkError::Dies { how });
            }
        }
        next.losses = std::mem::take(&mut self.losses);
        *self = next;
        Ok(())
    }

    /// Lets go of the process: the connection is the lease. One of our own is given time to leave, that of a shared network
    /// time to close what was this endpoint's: ports and addresses are free then.
    pub fn close(self) {
        let Self { link, child, .. } = self;
        match child {
            Some(child) => {
                drop(link);
                child.leave(LEAVE_TIME);
            }
            None if !link.leave(LEAVE_TIME) => {
                tracing::warn!("the network's process does not answer; ports may be taken for a while");
            }
            None => {}
        }
    }
}

/// Forks the network process, which becomes `newer` if there is one. It has a session of its own, so that no terminal signals it, and
/// only its end of the connection and stderr (for its log) are left to it.
fn fork(own: &Own, newer: Option<&Newer>) -> Result<(OwnedFd, Child), UplinkError> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(call("make a socket pair"))?;
    match spawn::fork().map_err(call("fork the network process"))? {
        Forked::Parent(pid) => Ok((ours, Child::new(pid))),
        Forked::Child => spawn::leave_with(|| {
            let words = own.words.as_ref().filter(|_| newer.is_some());
            let kept: Vec<_> = [Some(theirs.as_fd()), words.map(AsFd::as_fd)].into_iter().flatten().collect();
            spawn::close_all_but(&kept);
            let _ = nix::unistd::setsid();
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
            if let (Some(newer), Some(words)) = (newer, words) {
                execute(newer, &theirs, words);
            }
            if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stdin(&null);
                let _ = nix::unistd::dup2_stdout(&null);
            }
            u8::from((own.body)(theirs, own.serving) != ExitCode::SUCCESS)
        }),
    }
}

/// Becomes the other program; returns where that cannot be. Its standard input is the connection, its standard output where it notes
/// whose turn it is.
fn execute(newer: &Newer, theirs: &OwnedFd, words: &File) {
    let become_it = || {
        nix::unistd::dup2_stdin(theirs)?;
        nix::unistd::dup2_stdout(words)?;
        let text = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
        let path = CString::new(newer.path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
        let format = if telemetry::is_json() { "json" } else { "text" };
        let arguments = [text("tapway")?, text(COMMAND)?, text(format)?, text(&telemetry::in_force())?];
        nix::unistd::execv(&path, &arguments)
    };
    let Err(errno) = become_it();
    tracing::warn!("cannot execute {}: {}; going on with the program that runs", newer.path.display(), errno.desc());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which loss of those is one too many; each says whether frames flowed.
    fn last(shared: bool, ready: &[bool]) -> Option<usize> {
        let (mut losses, now) = (Losses::default(), Instant::now());
        ready.iter().position(|&ready| losses.count(shared, ready, 0, now))
    }

    #[test]
    fn a_dying_process_that_is_met_again_is_lost_once() {
        assert_eq!(last(true, &[true, false, true, false]), None);
        assert_eq!(last(true, &[true, false, true, false, true]), Some(4));
        // One that never serves is given up, and no excuse is made twice.
        assert_eq!(last(true, &[false; 9]), Some(3));
        assert_eq!(last(true, &[true, false, false, false]), Some(3));
        assert_eq!(last(false, &[false; 9]), Some(2));
        assert_eq!(last(false, &[true; 9]), Some(2));
    }

    #[test]
    fn what_is_somebodys_doing_is_not_held_against_the_others() {
        let (mut losses, now) = (Losses::default(), Instant::now());
        for blamed in 1..=5 {
            assert!(!losses.count(true, true, blamed, now), "{blamed}");
        }
        assert!(!losses.count(true, true, 5, now) && !losses.count(true, true, 5, now));
        assert!(losses.count(true, true, 5, now), "three of nobody's");
    }

    #[test]
    fn losses_are_forgotten() {
        let (mut losses, start) = (Losses::default(), Instant::now());
        for second in 0..50 {
            assert!(!losses.count(true, true, 0, start + Duration::from_secs(6 * second)), "{second}");
        }
    }
}
