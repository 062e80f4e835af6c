//! The process of a network that several sandboxes share, as a monitor finds it: connects to it, or starts it first.
//!
//! ```text
//! RUNTIME/networks/ID12/attach     where it listens for monitors (SOCK_SEQPACKET, api::attach)
//! RUNTIME/networks/ID12/control    where it answers everybody of this user (api::session)
//! RUNTIME/networks/ID12/starting   held while one is started
//! RUNTIME/networks/ID12/serving    and deaths: see `sandbox::blame`
//! RUNTIME/networks/ID12/log        what the process says; begun anew by whoever starts it
//! ```
//!
//! Both sockets are made by the monitor that starts the process, before it starts it: so the first member's connection waits
//! in the backlog and nobody waits for the process to come up. The process is this program executed anew
//! (`cli::network_process`), with the two listening sockets and the log as its standard streams, an empty environment, and
//! nobody's child: it outlives the monitor that started it. It leaves by itself after its last member and closes its
//! sockets first. A connection that it closes without a word has found it leaving: the next attempt starts another.
//!
//! An upgrade ([`Shared::upgrade`]) puts the new process's sockets in the place of the old one's, then ends the old one: its members find the new one
//! by the way of all that have lost their process, whatever version they are of.
//!
//! What is at the paths is never trusted to be alive: who finds nobody listening takes the lock and looks once more, and
//! only then replaces the sockets.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::Flock;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::blame;
use super::control::{address, listen_as};
use super::locked;
use super::program;
use crate::network::config::NetworkConfig;

/// How long somebody else may take to start the process.
const PATIENCE: Duration = Duration::from_secs(5);
/// The hidden command that the process is.
pub const COMMAND: &str = "__network";
/// Variables that it keeps of the starter's environment: how much it says, and how.
const KEPT: &[&str] = if cfg!(debug_assertions) {
    // Tests kill it by this (`runtime::engine`).
    &["TAPWAY_LOG", "RUST_BACKTRACE", "TAPWAY_DEBUG_LETHAL"]
} else {
    &["TAPWAY_LOG", "RUST_BACKTRACE"]
};

/// Why there is no network process.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// A socket.
    #[error("cannot {what} {path}")]
    Socket {
        /// What.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Errno.
        #[source]
        source: Errno,
    },
    /// A file.
    #[error("cannot {what} {path}")]
    File {
        /// What.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Errno.
        #[source]
        source: io::Error,
    },
    /// The program.
    #[error("cannot start the process of network {network}")]
    Start {
        /// Whose.
        network: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said why.
    #[error("the process of network {network} cannot start; see {log}")]
    Refused {
        /// Whose.
        network: String,
        /// Where it says more.
        log: PathBuf,
    },
    /// The lock.
    #[error("another tapway has been starting network {0} for {seconds} seconds; is one of them stopped?", seconds = PATIENCE.as_secs())]
    Busy(String),
}

/// One network's process.
#[derive(Clone, Debug)]
pub struct Shared {
    /// `RUNTIME/networks/ID12`, which exists.
    dir: PathBuf,
    config: NetworkConfig,
}

impl Shared {
    /// The process of this network, whose directory is `dir` (`leases::Leases::dir`). Nothing is done yet.
    pub fn new(dir: &Path, config: NetworkConfig) -> Self {
        Self { dir: dir.to_owned(), config }
    }

    /// What the network is for everybody.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// What is known of deaths of it.
    pub fn deaths(&self) -> blame::Deaths {
        blame::Deaths::read(&self.dir)
    }

    /// A connection to the process, which is started if it does not run.
    pub fn connect(&self) -> Result<OwnedFd, SharedError> {
        let path = self.dir.join("attach");
        if let Some(conn) = try_connect(&path)? {
            return Ok(conn);
        }
        let _lock = self.lock()?;
        // Somebody else may just have started it.
        if let Some(conn) = try_connect(&path)? {
            return Ok(conn);
        }
        let conn = self.start_anew(true)?;
        conn.ok_or(SharedError::Socket { what: "connect to", path, source: Errno::ECONNREFUSED })
    }

    fn lock(&self) -> Result<Flock<File>, SharedError> {
        let lock = self.dir.join("starting");
        locked::wait(&lock, PATIENCE).map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => SharedError::Busy(self.config.name.clone()),
            _ => SharedError::File { what: "lock", path: lock.clone(), source },
        })
    }

    /// Starts a process of this program's while another runs: whoever comes from now on comes to it, and when `end` has ended the
    /// other, all its members do. False if none runs, and nothing was done; `end` is given what `find` found out of the one that runs.
    pub fn upgrade<T>(&self, find: impl FnOnce() -> Option<T>, end: impl FnOnce(T)) -> Result<bool, SharedError> {
        if try_connect(&self.dir.join("attach"))?.is_none() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let Some(found) = find() else { return Ok(false) };
        self.start_anew(false)?;
        if let Err(error) = blame::pardon(&self.dir) {
            tracing::warn!("members will take the end of the process for a death: {error}");
        }
        end(found);
        Ok(true)
    }

    /// New sockets and a new process behind them; a connection to it if `connected`. With the lock.
    fn start_anew(&self, connected: bool) -> Result<Option<OwnedFd>, SharedError> {
        let path = self.dir.join("attach");
        let listen = |path: &Path, kind| {
            listen_as(path, kind).map_err(|source| SharedError::File {
                what: "listen at",
                path: path.to_owned(),
                source,
            })
        };
        // While another runs, it is somebody's turn.
        if connected && let Err(error) = blame::account(&self.dir) {
            tracing::warn!("whose doing the death of network {}'s process was is not known: {error}", self.config.name);
        }
        let attach = listen(&path, SockType::SeqPacket)?;
        let control = listen(&self.dir.join("control"), SockType::Stream)?;
        let conn = if connected { try_connect(&path)? } else { None };
        self.start(attach, control)?;
        Ok(conn)
    }

    fn start(&self, attach: OwnedFd, control: OwnedFd) -> Result<(), SharedError> {
        let path = self.dir.join("log");
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|log| log.set_len(0).map(|()| log))
            .map_err(|source| SharedError::File { what: "open", path: path.clone(), source })?;
        let failed = |source| SharedError::Start { network: self.config.name.clone(), source };
        let config = serde_json::to_string(&self.config).map_err(|error| failed(error.into()))?;
        let start = |program: &Path| -> io::Result<bool> {
            let mut command = Command::new(program);
            command.arg0("tapway").args([COMMAND, &self.config.name, &config]).arg(&self.dir).current_dir("/");
            command.env_clear().envs(std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept)));
            command.stdin(attach.try_clone()?).stdout(control.try_clone()?).stderr(log.try_clone()?);
            // What is waited for is the child that makes the process and leaves.
            Ok(command.status()?.success())
        };
        if let Some(newer) = program::newer() {
            match start(&newer.path) {
                Ok(true) => return Ok(()),
                Ok(false) => tracing::warn!("{} does not start; going on with what runs", newer.path.display()),
                Err(error) => tracing::warn!("cannot start {}: {error}", newer.path.display()),
            }
        }
        if start(Path::new(program::OWN)).map_err(failed)? {
            return Ok(());
        }
        Err(SharedError::Refused { network: self.config.name.clone(), log: path })
    }
}

/// Connects; None if nobody listens there.
fn try_connect(path: &Path) -> Result<Option<OwnedFd>, SharedError> {
    let failed = |what| move |source| SharedError::Socket { what, path: path.to_owned(), source };
    let (name, _dir) =
        address(path).map_err(|source| SharedError::File { what: "open", path: path.to_owned(), source })?;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed("make a socket for"))?;
    let to = UnixAddr::new(&name).map_err(failed("name"))?;
    loop {
        return match connect(fd.as_raw_fd(), &to) {
            Ok(()) => Ok(Some(fd)),
            Err(Errno::EINTR) => continue,
            // No file, a dead process's, or no socket at all.
            Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::EPROTOTYPE) => Ok(None),
            Err(source) => Err(failed("connect to")(source)),
        };
    }
}
