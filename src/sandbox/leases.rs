//! Who is in a network: leases as files, each held by the monitor of its sandbox.
//!
//! ```text
//! RUNTIME/networks/ID12/lock               held for moments: while a lease is taken, or the network removed
//! RUNTIME/networks/ID12/leases/ADDRESS     a lease (network::lease), locked by its holder; one file for each address
//! ```
//!
//! A holder that is stopped or slow keeps its addresses, one that was killed has lost them that moment: the lock says so,
//! no process id is looked at. A lease gets its name when it is whole and locked, so nobody meets a half of one. Files of
//! the dead are removed by whoever holds the network's lock; looking needs no lock.
//!
//! A forked process must not keep a copy of a lease's descriptor, or the lease outlives its monitor (see [`locked`]).

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::locked::{self, Found};
use super::networks::{Store, StoreError};
use super::state::{StateError, make_private_dir};
use crate::network::definition::{Network, hex};
use crate::network::lease::{self, Lease, RefusedLease, Wanted};
use crate::sys::random;

/// Longest wait for somebody else who takes a lease or removes the network.
const PATIENCE: Duration = Duration::from_secs(5);
/// A lease that is being written.
const NEW: &str = ".new";

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The network does not take this member.
    #[error(transparent)]
    Refused(#[from] RefusedLease),
    /// The network is not there any more.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The runtime directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file operation.
    #[error("cannot {what} {path}")]
    File {
        /// What.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody holds the lock and does not let go.
    #[error("another tapway has held {} for {} seconds; is one of them stopped?", .0.display(), PATIENCE.as_secs())]
    Busy(PathBuf),
    /// It has members.
    #[error("{0}")]
    Active(String),
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LeaseError {
    move |source| LeaseError::File { what, path: path.to_owned(), source }
}

/// The leases of one network.
#[derive(Clone, Debug)]
pub struct Leases {
    /// `RUNTIME/networks`.
    root: PathBuf,
    /// `RUNTIME/networks/ID12`.
    dir: PathBuf,
}

/// What there is of leases.
#[derive(Debug, Default)]
struct Seen {
    live: Vec<Lease>,
    /// Addresses that somebody holds, whether or not the lease can be read.
    held: BTreeSet<IpAddr>,
    /// There are files of the dead.
    dead: bool,
}

impl Leases {
    /// Those of `network` in the runtime directory. Nothing is touched.
    pub fn open(runtime_dir: &Path, network: &Network) -> Self {
        let root = runtime_dir.join("networks");
        let dir = root.join(network.short_id());
        Self { root, dir }
    }

    /// The directory of what the network has at run time; it is there once a lease was taken.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn files(&self) -> PathBuf {
        self.dir.join("leases")
    }

    /// Leases whose holders live, by address.
    pub fn live(&self) -> Vec<Lease> {
        let seen = self.look();
        // Only under the lock: whoever has it may be giving the address anew. If it is busy, the next one cleans up.
        if seen.dead
            && let Ok(_lock) = locked::wait(&self.lock_path(), Duration::ZERO)
        {
            self.remove_dead();
        }
        seen.live
    }

    fn look(&self) -> Seen {
        let mut seen = Seen::default();
        for path in self.paths() {
            let Some(address) = file_name(&path) else { continue };
            match locked::look::<Lease>(&path) {
                Found::Held(lease) => {
                    seen.held.insert(address);
                    // A lease of two addresses has two files: that of the IPv4 address counts.
                    seen.live.extend(lease.filter(|lease| address == IpAddr::V4(lease.v4)));
                }
                Found::Dead => seen.dead = true,
                Found::Nothing => {}
            }
        }
        seen.live.sort_by_key(|lease| lease.v4);
        seen
    }

    /// Takes a place in the network and holds it.
    pub fn take(&self, store: &Store, network: &Network, wanted: &Wanted) -> Result<HeldLease, LeaseError> {
        lease::check(network, wanted)?;
        let _lock = self.lock()?;
        if !store.holds(network) {
            self.remove_dir();
            return Err(StoreError::NotFound(network.name.clone()).into());
        }
        self.remove_dead();
        let seen = self.look();
        let lease = lease::grant(network, wanted, &seen.live, &seen.held, endpoint_id()?)?;
        let mut held = HeldLease { lease, files: Vec::new() };
        for address in held.lease.addresses().collect::<Vec<_>>() {
            let path = self.files().join(address.to_string());
            // What was made before an error goes with `held`.
            let lock = self.place(&path, &held.lease).map_err(file_error("write", &path))?;
            held.files.push((path, lock));
        }
        Ok(held)
    }

    /// Makes a file that is locked and whole before it has its name.
    fn place(&self, path: &Path, lease: &Lease) -> io::Result<Flock<File>> {
        let new = self.files().join(NEW);
        let placed = (|| {
            let _ = std::fs::remove_file(&new);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&new)?;
            let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
            lock.write_all(&serde_json::to_vec(lease)?)?;
            std::fs::rename(&new, path)?;
            Ok(lock)
        })();
        if placed.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        placed
    }

    fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn lock(&self) -> Result<Flock<File>, LeaseError> {
        let path = self.lock_path();
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        loop {
            // Whoever removes the network removes these directories, between any two of our steps.
            let made = [&self.root, &self.dir, &self.files()].into_iter().try_for_each(|dir| make_private_dir(dir));
            match made {
                Err(StateError::File { source, .. }) if gone(&source) && self.root.exists() => continue,
                Err(StateError::Unsafe { path }) if !path.exists() && self.root.exists() => continue,
                made => made?,
            }
            match locked::wait(&path, PATIENCE) {
                Err(error) if gone(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(LeaseError::Busy(path)),
                Err(error) => return Err(file_error("lock", &path)(error)),
                Ok(lock) if self.files().is_dir() => return Ok(lock),
                Ok(_) => {}
            }
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.files());
        entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| file_name(path).is_some())
            .collect()
    }

    /// Removes the files of the dead. The caller holds the network's lock.
    fn remove_dead(&self) {
        for path in self.paths() {
            if let Found::Dead = locked::look::<serde::de::IgnoredAny>(&path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Removes what is left of a network that is not there any more. The caller holds its lock.
    fn remove_dir(&self) {
        let _ = std::fs::remove_file(self.files().join(NEW));
        let _ = std::fs::remove_dir(self.files());
        let _ = std::fs::remove_file(self.lock_path());
        let _ = std::fs::remove_dir(&self.dir);
    }
}

fn file_name(path: &Path) -> Option<IpAddr> {
    path.file_name()?.to_str()?.parse().ok()
}

fn endpoint_id() -> Result<String, LeaseError> {
    let mut id = [0; 32];
    random::fill(&mut id).map_err(file_error("read", Path::new("random bytes")))?;
    Ok(hex(&id))
}

/// Removes a network that has no members. None joins meanwhile.
pub fn remove_network(runtime_dir: &Path, store: &Store, network: &Network) -> Result<(), LeaseError> {
    if network.is_predefined() {
        return Err(StoreError::Predefined(network.name.clone()).into());
    }
    let leases = Leases::open(runtime_dir, network);
    let _lock = leases.lock()?;
    leases.remove_dead();
    let seen = leases.look();
    if let Some(text) = lease::active_endpoints(network, &seen.live) {
        return Err(LeaseError::Active(text));
    }
    if let Some(address) = seen.held.first() {
        // Its holder is stopped in the midst of writing.
        let path = leases.files().join(address.to_string());
        return Err(LeaseError::Active(format!("the lease {} is held, and cannot be read", path.display())));
    }
    store.remove(network)?;
    leases.remove_dir();
    Ok(())
}

/// A lease and the locks that make it one. Dropping it gives its addresses back.
#[derive(Debug)]
pub struct HeldLease {
    lease: Lease,
    files: Vec<(PathBuf, Flock<File>)>,
}

impl HeldLease {
    /// What it says.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Changes what it says: names, ports, the interface. Its addresses stay what they are, and so do the ids.
    pub fn update(&mut self, change: impl FnOnce(&mut Lease)) -> Result<(), LeaseError> {
        let mut lease = self.lease.clone();
        change(&mut lease);
        let Lease { sandbox_id, endpoint_id, v4, v6, .. } = self.lease.clone();
        lease = Lease { sandbox_id, endpoint_id, v4, v6, ..lease };
        for (path, file) in &self.files {
            locked::rewrite(file, &lease).map_err(file_error("write", path))?;
        }
        self.lease = lease;
        Ok(())
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        for (path, file) in &self.files {
            // While it is locked nobody else gives the address, so what is there is ours, unless it is gone.
            if locked::is_at(file, path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
#[path = "leases/tests.rs"]
mod tests;
