//! Confinement of a process that no monitor stands by: slirp4netns mode.
//!
//! The same engine, but it reads the host's resolv.conf itself, binds listeners when its API asks, and removes its API
//! socket at the end. The stages, in call order:
//!
//! | stage | when | still possible afterwards |
//! |---|---|---|
//! | descriptors | always | everything |
//! | user namespace | `--enable-sandbox`, caller without capabilities | the same, as owner of that namespace |
//! | tree | `--enable-sandbox` | files below /etc and /run, for reading; the rest of the file system is not there |
//! | capabilities | always | ports below 1024, if it could before; no capability comes back |
//! | memory | always | no core file; dumpable, since callers and tests look into /proc/PID |
//! | no new privileges | always | the same |
//! | Landlock | always | reading in the directories that resolv.conf's links lead through; removing names beside the API socket |
//! | seccomp | always | [`super::filter::Role::Standalone`] |
//!
//! `--enable-seccomp` asks for what is done anyway. The parent's death signal is set again at the end: a change of
//! credentials clears it (kernel/cred.c, commit_creds; not where we own the user namespace that we join), and whoever
//! started us with one (RootlessKit, buildah) relies on it.
//!
//! Landlock is best effort as everywhere; without it no name can be removed at all, and the API socket's file is left.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use caps::{CapSet, Capability};
use landlock::{
    Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};

use super::{ConfineError, LANDLOCK_ABI, Outcome, filter, no_new_privileges, raise_descriptor_limit};

/// The only capability that is of use in here.
const KEPT: Capability = Capability::CAP_NET_BIND_SERVICE;
/// What a sandboxed process sees of the file system.
const SEEN: [&str; 2] = ["etc", "run"];
/// The file that must be readable in there.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What is asked for.
#[derive(Debug, Default)]
pub struct Options {
    /// `--enable-sandbox`: the tree.
    pub tree: bool,
    /// The user namespace to make the tree in where the caller has no capabilities of its own; None makes a new one.
    pub userns: Option<OwnedFd>,
    /// Directories to read in.
    pub readable: Vec<PathBuf>,
    /// The directory of the API socket, to remove it from.
    pub socket_dir: Option<OwnedFd>,
}

/// What remains.
#[derive(Debug)]
pub struct Confined {
    /// The directory of the API socket, if names in it can still be removed.
    pub socket_dir: Option<OwnedFd>,
    /// How Landlock went.
    pub landlock: Outcome,
}

/// Why it failed; in this mode what was asked for is had, or the process does not start.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// One of the common stages.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The tree.
    #[error("cannot {what}")]
    Tree {
        /// What was tried.
        what: String,
        /// Its errno.
        #[source]
        source: nix::Error,
    },
}

fn tree_error(what: impl Into<String>) -> impl FnOnce(nix::Error) -> StandaloneError {
    move |source| StandaloneError::Tree { what: what.into(), source }
}

fn io_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StandaloneError {
    let what = what.into();
    move |error| StandaloneError::Tree { what, source: nix::Error::from_raw(error.raw_os_error().unwrap_or(0)) }
}

/// Gives everything up but what the module head names. The process must have one thread.
pub fn enter(options: Options) -> Result<Confined, StandaloneError> {
    raise_descriptor_limit()?;
    let death_signal = prctl::get_pdeathsig().ok().flatten();
    if options.tree {
        own_mounts(options.userns)?;
        make_tree()?;
    }
    keep_bind_service()?;
    let failed = |what| move |source| ConfineError::System { what, source };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("forbid core files"))?;
    prctl::set_dumpable(true).map_err(failed("stay dumpable"))?;
    prctl::set_pdeathsig(death_signal).map_err(failed("keep the parent's death signal"))?;
    no_new_privileges()?;
    let (landlock, socket_dir) = landlock(&options.readable, options.socket_dir);
    filter::install(filter::Role::Standalone { unlink: socket_dir.is_some() }).map_err(ConfineError::from)?;
    Ok(Confined { socket_dir, landlock })
}

/// A mount namespace of our own, in which we may mount.
fn own_mounts(userns: Option<OwnedFd>) -> Result<(), StandaloneError> {
    if geteuid().is_root() && unshare(CloneFlags::CLONE_NEWNS).is_ok() {
        return Ok(());
    }
    if let Some(userns) = userns {
        setns(userns, CloneFlags::CLONE_NEWUSER).map_err(tree_error("join the user namespace"))?;
        return unshare(CloneFlags::CLONE_NEWNS).map_err(tree_error("make a mount namespace"));
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(tree_error("make a user and mount namespace"))?;
    // Who is nobody makes no files, not even in a tmpfs (EOVERFLOW).
    let write = |file: &str, text: String| {
        fs::write(Path::new("/proc/self").join(file), text).map_err(io_error(format!("write {file}")))
    };
    write("setgroups", "deny".into())?;
    write("gid_map", format!("{gid} {gid} 1"))?;
    write("uid_map", format!("{uid} {uid} 1"))
}

/// /etc and /run, read-only, in an otherwise empty root.
///
/// Mounts of the old root go on appearing in it (slave), and nothing that is unmounted here is unmounted outside.
fn make_tree() -> Result<(), StandaloneError> {
    let none = None::<&str>;
    let target = fs::canonicalize(RESOLV_CONF).ok();
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).map_err(tree_error("make mounts private"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, Some("mode=0755,size=64k"))
        .map_err(tree_error("mount tmpfs on /tmp"))?;
    let root = Path::new("/tmp");
    for name in SEEN {
        let from = Path::new("/").join(name);
        let to = root.join(name);
        fs::create_dir(&to).map_err(io_error(format!("make {}", to.display())))?;
        bind(&from, &to)?;
    }
    if let Some(target) = target.filter(|path| !SEEN.iter().any(|seen| path.starts_with(Path::new("/").join(seen)))) {
        bind_file(&target, root)?;
    }
    chdir(root).map_err(tree_error("enter /tmp"))?;
    // The old root lands on top of the new one, where "." finds it (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").map_err(tree_error("pivot_root to /tmp"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(tree_error("unmount the old root"))?;
    chdir("/").map_err(tree_error("enter the new root"))?;
    crate::sys::mount::make_read_only("/", false).map_err(tree_error("make the new root read-only"))
}

fn bind(from: &Path, to: &Path) -> Result<(), StandaloneError> {
    let what = |verb: &str| format!("{verb} {}", from.display());
    let none = None::<&str>;
    mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(tree_error(what("bind")))?;
    crate::sys::mount::make_read_only(to, true).map_err(tree_error(what("make read-only")))
}

/// resolv.conf is a link to somewhere else: the file is put there in the new root, too.
fn bind_file(target: &Path, root: &Path) -> Result<(), StandaloneError> {
    let relative: PathBuf = target.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let to = root.join(relative);
    let what = format!("make {} in the sandbox", target.display());
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(io_error(&what))?;
    }
    fs::File::create(&to).map_err(io_error(&what))?;
    bind(target, &to)
}

/// Empties the capability sets but for [`KEPT`], which stays if it was there.
fn keep_bind_service() -> Result<(), ConfineError> {
    let failed = |set| move |error: caps::errors::CapsError| ConfineError::Capabilities { set, why: error.to_string() };
    let had = caps::has_cap(None, CapSet::Permitted, KEPT).map_err(failed("permitted"))?;
    let kept: caps::CapsHashSet = had.then_some(KEPT).into_iter().collect();
    // While there may be CAP_SETPCAP. Without it no_new_privs holds the same line.
    for capability in caps::all() {
        if capability != KEPT && caps::drop(None, CapSet::Bounding, capability).is_err() {
            break;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed("ambient"))?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed("effective"))?;
    // Adding to the inheritable set needs nothing that the permitted set does not have.
    caps::set(None, CapSet::Inheritable, &kept).map_err(failed("inheritable"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("permitted"))
}

/// A Landlock domain for [`Options`]; the directory comes back if it is enforced there.
fn landlock(readable: &[PathBuf], socket_dir: Option<OwnedFd>) -> (Outcome, Option<OwnedFd>) {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let tried = || {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
            .scope(Scope::from_all(LANDLOCK_ABI))?
            .create()?;
        for path in readable {
            // Not there now (a link that leads nowhere, a tree without it): not to be read later either.
            if let Ok(fd) = PathFd::new(path) {
                rules = rules.add_rule(PathBeneath::new(fd, read))?;
            }
        }
        if let Some(dir) = &socket_dir {
            let remove: BitFlags<AccessFs> = AccessFs::RemoveFile.into();
            rules = rules.add_rule(PathBeneath::new(dir.as_fd(), remove))?;
        }
        rules.restrict_self()
    };
    match tried() {
        Ok(status) if status.ruleset == RulesetStatus::FullyEnforced => (Outcome::Done, socket_dir),
        // What every ABI has (V1) is enforced: opening and removing.
        Ok(status) if status.ruleset == RulesetStatus::PartiallyEnforced => {
            (Outcome::Partial("an older Landlock".into()), socket_dir)
        }
        Ok(_) => (Outcome::Refused("the kernel has none".into()), None),
        Err(error) => (Outcome::Refused(error.to_string()), None),
    }
}
