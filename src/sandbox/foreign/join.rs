//! Entering a namespace that somebody else made, and leaving it with a TAP.
//!
//! A forked child does it, so that the process that forwards never leaves the caller's network namespace:
//!
//! 1. opens the network namespace; joins a user namespace that has power over it, trying the one that was named
//!    (`--userns-path`), then its owner (`NS_GET_USERNS`), then the target's (they differ under bubblewrap). Failing to is no
//!    error yet: buildah's and podman's helpers are there already (EINVAL);
//! 2. joins the network namespace, which now works or tells what is wrong;
//! 3. attaches to the interface if there is one of that name (RootlessKit makes it beforehand), else makes it;
//! 4. configures it if asked;
//! 5. sends the descriptor, and that of the user namespace it joined, and exits.
//!
//! **Seeing the end.** A TAP's descriptor holds the network namespace in which /dev/net/tun was opened
//! (drivers/net/tun.c, `tun_chr_open`), so one that was opened in there keeps it alive for ever, and its end is never seen.
//! Where nobody promises to end us (no `--exit-fd`, no death signal of the parent's) the TAP is made in a namespace of its own and moved: then the target
//! dies with its last user and takes the interface along, which the data plane sees at once. The move costs two grace
//! periods of the kernel, some 20 ms on our machine; therefore not always.
//!
//! A name that is busy is tried again for [`BUSY_TIME`]: after a restart the predecessor may not have closed its TAP yet.
//!
//! [`Refusal`]s are written in slirp4netns's form, since that is what its callers' users search for; `tapway attach` has words
//! of its own for them (`sandbox::attached`).

use std::fs::OpenOptions;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use serde::{Deserialize, Serialize};

use crate::api::attach::{self, AttachError};
use crate::network::config::{Mac, Offloads, PlanV4};
use crate::sandbox::interface::{self, Interface};
use crate::sandbox::netlink::{Attribute, Batch, LOOPBACK, NetlinkError, move_link};
use crate::sandbox::resets::{self, Over};
use crate::sandbox::tap::{self, TapError};
use crate::sys::spawn::{self, Forked};
use crate::{sys, telemetry};

/// How long a busy interface is tried again.
const BUSY_TIME: Duration = Duration::from_millis(500);
/// Pause between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// What is to be done, and where.
#[derive(Debug)]
pub struct Request<'a> {
    /// The network namespace: a file of it.
    pub netns: PathBuf,
    /// The user namespace to join first, if the caller named one.
    pub userns: Option<&'a Path>,
    /// The user namespace of the target process, if there is a process.
    pub process_userns: Option<PathBuf>,
    /// Name of the interface; empty or with `%d`, the kernel numbers it.
    pub name: &'a str,
    /// An interface of that name must not be there; else it is used.
    pub fresh: bool,
    /// What to configure; None leaves everything as it is.
    pub configure: Option<Configure<'a>>,
    /// The end of the namespace must be seen by the TAP.
    pub see_end: bool,
    /// Queues of a TAP that is made, where the kernel has several.
    pub queues: NonZeroU8,
}

/// What is configured, and how.
#[derive(Clone, Copy, Debug)]
pub enum Configure<'a> {
    /// As slirp4netns's `--configure` does.
    Slirp {
        /// Address, prefix and route.
        plan: PlanV4,
        /// MTU, bytes.
        mtu: u16,
        /// A MAC of the caller's choice.
        mac: Option<Mac>,
    },
    /// As a member of a network of ours.
    Member(&'a Interface),
}

/// What the child brought back.
#[derive(Debug)]
pub struct Joined {
    /// The TAP, non-blocking.
    pub tap: OwnedFd,
    /// Its further queues.
    pub queues: Vec<OwnedFd>,
    /// What the kernel granted.
    pub offloads: Offloads,
    /// The interface's true name.
    pub name: String,
    /// The user namespace that was joined, if one was.
    pub userns: Option<OwnedFd>,
    /// What is not as it was to be.
    pub notes: Vec<String>,
    /// Number of the TAP in the child, as slirp4netns tells it.
    pub sent: i32,
}

/// The child's last words.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    offloads: Offloads,
    name: String,
    joined_userns: bool,
    notes: Vec<String>,
    sent: i32,
    queues: usize,
}

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It has said why; in slirp4netns's form.
    #[error("{0}\nchild failed(1)")]
    Refused(Refusal),
    /// It died.
    #[error("child failed({0})")]
    Child(i32),
    /// fork(2) or its like.
    #[error("cannot {what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// Its errno.
        #[source]
        source: Errno,
    },
    /// The child's message did not come through.
    #[error(transparent)]
    Connection(#[from] AttachError),
}

/// Why the child gave up; numbers are errnos.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// A namespace's file cannot be opened.
    #[error("{path}: {}", said(*errno))]
    Open {
        /// Which.
        path: String,
        /// Why.
        errno: i32,
    },
    /// The network namespace cannot be entered.
    #[error("setns(CLONE_NEWNET): {}", said(*errno))]
    Enter {
        /// Why.
        errno: i32,
    },
    /// /dev/net/tun.
    #[error("open(\"/dev/net/tun\"): {}{}", said(*errno), remedy(Errno::from_raw(*errno)))]
    Device {
        /// Why.
        errno: i32,
    },
    /// The interface cannot be made or attached to.
    #[error("ioctl(TUNSETIFF): {}", said(*errno))]
    Interface {
        /// Why.
        errno: i32,
    },
    /// There is one of that name.
    #[error("the interface exists")]
    Exists,
    /// Something that was asked of the kernel.
    #[error("cannot {what}: {}", said(*errno))]
    Configure {
        /// What.
        what: String,
        /// Why.
        errno: i32,
    },
    /// Another call.
    #[error("{what}: {}", said(*errno))]
    Call {
        /// Which.
        what: String,
        /// Why.
        errno: i32,
    },
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

fn said(errno: i32) -> String {
    telemetry::strerror(Errno::from_raw(errno))
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => " (load its driver: `modprobe tun`, as root)",
        Errno::EACCES | Errno::EPERM => " (let every user open it: `chmod 666 /dev/net/tun`, as root)",
        _ => "",
    }
}

fn number(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

impl From<NetlinkError> for Refusal {
    fn from(error: NetlinkError) -> Self {
        match error {
            NetlinkError::Refused { what, source } => Self::Configure { what, errno: number(&source) as i32 },
            other => Self::Other(telemetry::chain(&other)),
        }
    }
}

fn call(what: impl Into<String>) -> impl FnOnce(Errno) -> Refusal {
    move |errno| Refusal::Call { what: what.into(), errno: errno as i32 }
}

/// Sends a child into the namespace for a TAP. The process must have one thread.
pub fn join(request: &Request<'_>) -> Result<Joined, JoinError> {
    let failed = |what| move |source| JoinError::Call { what, source };
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(failed("make a socket pair"))?;
    let child = match spawn::fork().map_err(failed("fork"))? {
        Forked::Child => spawn::leave_with(|| {
            drop(ours);
            let sent = match work(request) {
                Ok((report, taps, userns)) => {
                    let mut fds: Vec<RawFd> = taps.iter().map(AsRawFd::as_raw_fd).collect();
                    let report = Report { sent: fds[0], queues: fds.len() - 1, ..report };
                    fds.extend(userns.as_ref().map(AsRawFd::as_raw_fd));
                    attach::send(&theirs, &Ok::<_, Refusal>(report), &fds)
                }
                Err(refusal) => attach::send(&theirs, &Err::<Report, _>(refusal), &[]),
            };
            u8::from(sent.is_err())
        }),
        Forked::Parent(pid) => pid,
    };
    drop(theirs);
    let report = attach::recv::<Result<Report, Refusal>>(&ours);
    let code = loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => break code,
            Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => return Err(JoinError::Call { what: "wait for the child", source }),
        }
    };
    if code != 0 {
        return Err(JoinError::Child(code));
    }
    let (report, fds) = report?;
    let report = report.map_err(JoinError::Refused)?;
    let mut fds = fds.into_iter();
    let tap = fds.next().ok_or(AttachError::Closed)?;
    let queues = fds.by_ref().take(report.queues).collect();
    Ok(Joined {
        tap,
        queues,
        offloads: report.offloads,
        name: report.name,
        userns: fds.next().filter(|_| report.joined_userns),
        notes: report.notes,
        sent: report.sent,
    })
}

/// What tells a network namespace from every other: its file's device and inode.
pub type Identity = (u64, u64);

/// The identity of the namespace whose file is there.
pub fn identity(netns: &Path) -> std::io::Result<Identity> {
    std::fs::metadata(netns).map(|meta| (meta.dev(), meta.ino()))
}

/// Ends connections in a namespace, if it is still the one of that identity. A child goes in, and is not waited for longer than that takes; how
/// many connections there were.
pub fn end_connections(
    netns: &Path,
    process_userns: Option<PathBuf>,
    expected: Identity,
    over: &Over,
) -> Result<usize, JoinError> {
    let failed = |what| move |source| JoinError::Call { what, source };
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(failed("make a socket pair"))?;
    let request = Request {
        netns: netns.to_owned(),
        userns: None,
        process_userns,
        name: "",
        fresh: false,
        configure: None,
        see_end: false,
        queues: NonZeroU8::MIN,
    };
    let child = match spawn::fork().map_err(failed("fork"))? {
        Forked::Child => spawn::leave_with(|| {
            drop(ours);
            let done = open_namespace(netns).and_then(|file| {
                let stat = nix::sys::stat::fstat(&file).map(|stat| (stat.st_dev, stat.st_ino));
                if stat != Ok(expected) {
                    return Err(Refusal::Other("it is another namespace now".to_owned()));
                }
                enter(&request, &file)?;
                resets::end_connections(over).map_err(|error| Refusal::Other(error.to_string()))
            });
            u8::from(attach::send(&theirs, &done, &[]).is_err())
        }),
        Forked::Parent(pid) => pid,
    };
    drop(theirs);
    let done = attach::recv::<Result<usize, Refusal>>(&ours);
    while let Err(Errno::EINTR) = waitpid(child, None) {}
    done?.0.map_err(JoinError::Refused)
}

/// Body of the child.
fn work(request: &Request<'_>) -> Result<(Report, Vec<OwnedFd>, Option<OwnedFd>), Refusal> {
    let netns = open_namespace(&request.netns)?;
    let userns = enter(request, &netns)?;
    let (taps, offloads) = interface(request, netns.as_fd())?;
    let name = sys::tap::identity(taps[0].as_fd()).map_or_else(|_| request.name.to_owned(), |(name, _)| name);
    let notes = match &request.configure {
        // By the name that was asked for: one that the kernel chose is not known to who asked, and that program refuses.
        Some(Configure::Slirp { plan, mtu, mac }) => set_up(request.name, *plan, *mtu, *mac).map(|()| Vec::new())?,
        Some(Configure::Member(interface)) => interface::configure(interface, true)?.notes,
        None => Vec::new(),
    };
    let report = Report { offloads, name, joined_userns: userns.is_some(), notes, sent: -1, queues: 0 };
    Ok((report, taps, userns))
}

fn open_namespace(path: &Path) -> Result<OwnedFd, Refusal> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Refusal::Open { path: path.display().to_string(), errno: errno as i32 })
}

/// Joins both namespaces; the user namespace that it took, if it was not ours before.
fn enter(request: &Request<'_>, netns: &OwnedFd) -> Result<Option<OwnedFd>, Refusal> {
    let candidates = [
        request.userns.map(open_namespace).transpose()?,
        sys::namespace::owner(netns.as_fd()).ok(),
        request.process_userns.as_deref().and_then(|path| open_namespace(path).ok()),
    ];
    let mut last = Errno::EPERM;
    for userns in candidates.into_iter().flatten().map(Some).chain([None]) {
        let joined = userns.filter(|fd| setns(fd, CloneFlags::CLONE_NEWUSER).is_ok());
        match setns(netns, CloneFlags::CLONE_NEWNET) {
            Ok(()) => return Ok(joined),
            Err(errno) => last = errno,
        }
    }
    Err(Refusal::Enter { errno: last as i32 })
}

/// The queues of a TAP, one at least, and what the kernel granted.
type Made = (Vec<OwnedFd>, Offloads);

/// Attaches to the interface, or makes it; we are in the target namespace before and after.
fn interface(request: &Request<'_>, netns: BorrowedFd<'_>) -> Result<Made, Refusal> {
    // Opened once for nothing, to tell a device that is not to be had from a name that is not.
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| Refusal::Device { errno: number(&error) as i32 })?;
    let give_up = Instant::now() + BUSY_TIME;
    loop {
        let exists = nix::net::if_::if_nametoindex(request.name).is_ok();
        if exists && request.fresh {
            return Err(Refusal::Exists);
        }
        // What is moved under a pattern is named by it twice, and then not as a TAP that is made here.
        let pattern = request.name.is_empty() || request.name.contains('%');
        let made = if request.see_end && !exists && !pattern {
            made_outside(request, netns)
        } else {
            made_here(request.name, request.queues)
        };
        match made {
            Err(error) if is_busy(&error) && Instant::now() < give_up => std::thread::sleep(BUSY_PAUSE),
            made => return made,
        }
    }
}

fn is_busy(error: &Refusal) -> bool {
    match error {
        Refusal::Interface { errno } => *errno == Errno::EBUSY as i32,
        Refusal::Configure { errno, .. } => *errno == Errno::EEXIST as i32,
        _ => false,
    }
}

fn made_here(name: &str, queues: NonZeroU8) -> Result<Made, Refusal> {
    tap::create_queues(name, queues).map_err(|error| match error {
        TapError::Create { source, .. } => Refusal::Interface { errno: number(&source) as i32 },
        other @ TapError::Set { .. } => Refusal::Other(telemetry::chain(&other)),
    })
}

/// Makes it in a namespace that nobody else is in, which only the descriptor holds from then on, and moves it.
fn made_outside(request: &Request<'_>, netns: BorrowedFd<'_>) -> Result<Made, Refusal> {
    let name = request.name;
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {}
        Err(errno) if request.fresh => return Err(call("unshare(CLONE_NEWNET)")(errno)),
        // No namespaces left, or not allowed: then without seeing the end.
        Err(_) => return made_here(name, request.queues),
    }
    let made = made_here(name, request.queues).and_then(|(taps, offloads)| {
        let own = sys::tap::identity(taps[0].as_fd()).map_err(call("ioctl(TUNGETIFF)"))?.0;
        let index = nix::net::if_::if_nametoindex(own.as_str()).map_err(call("if_nametoindex"))?;
        move_link(index, netns, name)?;
        Ok((taps, offloads))
    });
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(call("setns(CLONE_NEWNET)"))?;
    made
}

/// lo and the interface up, MTU, MAC, address and default route: in that order, with that program's words for a failure.
fn set_up(name: &str, plan: PlanV4, mtu: u16, mac: Option<Mac>) -> Result<(), Refusal> {
    let index = nix::net::if_::if_nametoindex(name).map_err(call("cannot set device up"))?;
    let mut batch = Batch::default();
    batch.set_link("set device up", LOOPBACK, true, vec![]);
    batch.set_link("set MTU", index, false, vec![Attribute::Mtu(u32::from(mtu))]);
    if let Some(mac) = mac {
        batch.set_link("set MAC address", index, false, vec![Attribute::Address(mac.0.to_vec())]);
    }
    batch.set_link("set device up", index, true, vec![]);
    batch.add_address("set device address", index, IpAddr::V4(plan.guest), plan.subnet.prefix_len());
    batch.add_default_route("set route", index, IpAddr::V4(plan.gateway), None);
    Ok(batch.run()?)
}
