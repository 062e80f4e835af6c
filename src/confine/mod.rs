//! What a process that reads a guest's bytes gives up before it reads the first of them.
//!
//! [`enter`] is called once by the network process, with everything that it needs already open (the attach connection,
//! log descriptor; the TAP and the listeners come over the connection), while it is single-threaded: a user namespace can
//! only be entered alone, and threads made afterwards inherit the rest. The stages, in call order; each says what is
//! still possible after it:
//!
//! | stage | function | still possible afterwards |
//! |---|---|---|
//! | descriptors | [`raise_descriptor_limit`] | everything, with as many descriptors as the hard limit allows |
//! | root | [`empty_root`] | all but reaching a file by path: the root is an empty read-only tmpfs |
//! | capabilities | [`drop_capabilities`] | what an ordinary user may do; no executable gives a capability back |
//! | no new privileges | [`no_new_privileges`] | the same; setuid programs run without their privilege |
//! | Landlock | [`landlock_nothing`] | no file operation by path, no abstract Unix sockets or signals of outsiders |
//! | memory | [`hide_memory`] | the same; no core file, and processes of the same user cannot trace us or read our memory |
//! | seccomp | [`filter::install`] | the system calls of [`filter`], with its bounds on arguments; others kill |
//!
//! The network namespace is *not* changed: our sockets must be the host's. So what remains to someone who takes this
//! process over is what it is for: TCP, UDP and ping sockets of the host's network, and the descriptors it holds.
//!
//! Root and Landlock are best effort: another layer of what seccomp forbids anyway, and refused on some machines (nested
//! containers, AppArmor, old kernels). Their refusal is in the [`Report`] and warned of. The others are asserted:
//! [`enter`] fails rather than go on without them. The bounding set can be emptied only with `CAP_SETPCAP`, which the new
//! user namespace gives; without it `no_new_privs` holds the same line.
//!
//! The order has reasons. Memory is hidden late because each change of credentials sets the dumpable flag again, and
//! because `/proc/self` belongs to root from then on. `no_new_privs` comes before Landlock and seccomp, which demand it.
//!
//! In slirp4netns mode nobody stands by, and some of it must stay possible: see [`standalone`].
//!
//! Cost, median of 101 runs on our 2-core machine with Linux 6.18: 0.57 ms in all (0.39 the filters, 0.10 the root, 0.05
//! the capabilities); a system call of the frame path then takes 165 ns instead of 144.

pub mod filter;
pub mod standalone;

use std::fmt;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// Newest Landlock ABI asked for (V6, Linux 6.12: scopes); older kernels give what they have.
const LANDLOCK_ABI: ABI = ABI::V6;

/// Which stages run. The default is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The empty root.
    pub root: bool,
    /// In the user namespace of the empty root the user keeps its number, so that those who connect can be told from
    /// others' (SO_PEERCRED). Otherwise nobody has one there.
    pub keep_user: bool,
    /// Landlock.
    pub landlock: bool,
    /// No core file, not dumpable.
    pub hide_memory: bool,
    /// The system call filter.
    pub seccomp: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { root: true, keep_user: false, landlock: true, hide_memory: true, seccomp: true }
    }
}

/// How one stage ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As described.
    Done,
    /// In part, and what is missing.
    Partial(String),
    /// Not at all, and why. The process goes on with the other stages.
    Refused(String),
    /// [`Options`] said so.
    NotAsked,
}

impl fmt::Display for Outcome {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => to.write_str("done"),
            Self::Partial(what) => write!(to, "in part: {what}"),
            Self::Refused(why) => write!(to, "refused: {why}"),
            Self::NotAsked => to.write_str("not asked for"),
        }
    }
}

/// What was achieved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Descriptors this process may have open.
    pub descriptors: u64,
    /// The empty root.
    pub root: Outcome,
    /// All five capability sets empty.
    pub capabilities: Outcome,
    /// Landlock.
    pub landlock: Outcome,
    /// No core file, not dumpable.
    pub memory: Outcome,
    /// The system call filter.
    pub seccomp: Outcome,
}

impl Report {
    /// Every stage by its name.
    pub fn outcomes(&self) -> [(&'static str, &Outcome); 5] {
        let Self { root, capabilities, landlock, memory, seccomp, descriptors: _ } = self;
        [
            ("root", root),
            ("capabilities", capabilities),
            ("landlock", landlock),
            ("memory", memory),
            ("seccomp", seccomp),
        ]
    }
}

/// A stage that must not fail did.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A system call refused.
    #[error("confinement: cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its errno.
        #[source]
        source: nix::Error,
    },
    /// Capabilities stayed.
    #[error("confinement: cannot drop the {set} capabilities: {why}")]
    Capabilities {
        /// Which of the five sets.
        set: &'static str,
        /// The message of the crate, which hides the errno.
        why: String,
    },
    /// The filter could not be built or installed.
    #[error("confinement: cannot install the system call filter")]
    Seccomp(#[from] filter::FilterError),
}

/// Gives everything up, in the order of the module head. The process must have one thread.
pub fn enter(options: Options) -> Result<Report, ConfineError> {
    let descriptors = raise_descriptor_limit()?;
    let root = if options.root { empty_root(options.keep_user) } else { Outcome::NotAsked };
    if let Outcome::Refused(why) = &root {
        tracing::warn!("the network process keeps the file system in view ({why}); seccomp still forbids its use");
    }
    let capabilities = drop_capabilities()?;
    no_new_privileges()?;
    let landlock = if options.landlock { landlock_nothing() } else { Outcome::NotAsked };
    if let Outcome::Refused(why) = &landlock {
        // Not a warning: nothing the user of an older kernel could do on each run.
        tracing::info!("no Landlock for the network process: {why}");
    }
    let memory = if options.hide_memory { hide_memory()? } else { Outcome::NotAsked };
    let report = Report { descriptors, root, capabilities, landlock, memory, seccomp: Outcome::NotAsked };
    if !options.seccomp {
        return Ok(report);
    }
    filter::install(filter::Role::Network)?;
    Ok(Report { seccomp: Outcome::Done, ..report })
}

/// Raises the soft limit of open descriptors to the hard one and returns it: a flow is a socket.
pub fn raise_descriptor_limit() -> Result<u64, ConfineError> {
    let failed = |what| move |source| ConfineError::System { what, source };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed("read the descriptor limit"))?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed("raise the descriptor limit to the hard one"))?;
    }
    Ok(hard)
}

/// A user and mount namespace of our own whose root is an empty read-only tmpfs; the old root is unmounted from it.
///
/// No user is mapped unless `keep_user` says so: we need no name in there, and unmapped is one thing less to be.
pub fn empty_root(keep_user: bool) -> Outcome {
    let user = nix::unistd::geteuid();
    let tried = || -> Result<(), (&'static str, nix::Error)> {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
            .map_err(|e| ("new user and mount namespace", e))?;
        if keep_user {
            let map = format!("{user} {user} 1");
            let written = std::fs::write("/proc/self/uid_map", map);
            let errno = |e: std::io::Error| nix::Error::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
            written.map_err(|e| ("keep the user's number", errno(e)))?;
        }
        // Any directory will do to mount on; /proc is the one that `tapway run` cannot do without. The mounts of a
        // namespace made with a new user namespace are slaves (mount_namespaces(7)), so nothing shows outside.
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), "/proc", Some("tmpfs"), flags, Some("mode=0555,nr_inodes=1,size=4k"))
            .map_err(|e| ("mount an empty tmpfs", e))?;
        nix::unistd::chdir("/proc").map_err(|e| ("enter the empty tmpfs", e))?;
        // The old root lands on top of the new one, where "." finds it: pivot_root(2), "pivot_root(".", ".")".
        nix::unistd::pivot_root(".", ".").map_err(|e| ("pivot_root", e))?;
        umount2(".", MntFlags::MNT_DETACH).map_err(|e| ("unmount the old root", e))?;
        nix::unistd::chdir("/").map_err(|e| ("enter the new root", e))
    };
    match tried() {
        Ok(()) => Outcome::Done,
        Err((what, errno)) => Outcome::Refused(format!("{what}: {}", errno.desc())),
    }
}

/// Empties the bounding, ambient, inheritable, permitted and effective sets.
pub fn drop_capabilities() -> Result<Outcome, ConfineError> {
    // First, while we may still have CAP_SETPCAP.
    let bounding = caps::clear(None, caps::CapSet::Bounding);
    let must = |set, name| {
        caps::clear(None, set).map_err(|error| ConfineError::Capabilities { set: name, why: error.to_string() })
    };
    // Kernels since 4.3 have the ambient set; ours are all newer.
    must(caps::CapSet::Ambient, "ambient")?;
    must(caps::CapSet::Inheritable, "inheritable")?;
    must(caps::CapSet::Permitted, "permitted")?;
    Ok(match bounding {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Partial(format!("the bounding set stays ({error})")),
    })
}

/// No execve(2) can gain a privilege any more, for us and every descendant.
pub fn no_new_privileges() -> Result<(), ConfineError> {
    prctl::set_no_new_privs().map_err(|source| ConfineError::System { what: "set no_new_privs", source })
}

/// A Landlock domain in which no path may be used for anything.
pub fn landlock_nothing() -> Outcome {
    let tried = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?
            .restrict_self()
    };
    match tried() {
        Ok(status) => match (status.ruleset, status.landlock) {
            (RulesetStatus::FullyEnforced, _) => Outcome::Done,
            (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
                Outcome::Partial(format!("the kernel has Landlock ABI {effective_abi:?}, asked was {LANDLOCK_ABI:?}"))
            }
            (_, LandlockStatus::NotEnabled) => Outcome::Refused("switched off when the kernel booted".into()),
            _ => Outcome::Refused("the kernel has none".into()),
        },
        Err(error) => Outcome::Refused(error.to_string()),
    }
}

/// No core file, and not dumpable: ptrace(2) and /proc/PID/mem of this process are closed to the same user.
pub fn hide_memory() -> Result<Outcome, ConfineError> {
    let failed = |what| move |source| ConfineError::System { what, source };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("forbid core files"))?;
    prctl::set_dumpable(false).map_err(failed("become undumpable"))?;
    Ok(Outcome::Done)
}
