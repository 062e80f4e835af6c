//! Networks that users made: one file each, which outlives everything else.
//!
//! ```text
//! STATE/networks/NAME.json     a definition (network::definition), for people to read
//! STATE/networks/.lock         held while one is made or removed, so that no name and no subnet is given twice
//! STATE/networks/.new          a definition that is being written; it gets its name when it is whole and on the disk
//! ```
//!
//! STATE is `$XDG_STATE_HOME/tapway`, or `~/.local/state/tapway`. Its directory is the user's alone (0700).
//!
//! A file that cannot be understood concerns its own network only: whoever asks for that one gets an error that names the
//! path, the others go on; and subnets that can still be read in it are not given to anybody else.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use nix::fcntl::Flock;

use super::locked;
use super::state::ours;
use crate::network::creation::{self, CreateError, Existing, Fresh, Request};
use crate::network::definition::{ID_DIGITS, Network};

/// Largest definition read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Longest wait for somebody else who makes or removes a network.
const PATIENCE: Duration = Duration::from_secs(5);
/// A definition on its way.
const NEW: &str = ".new";
/// The lock.
const LOCK: &str = ".lock";

/// Why networks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nowhere to keep them.
    #[error("networks have no place to be kept in: set HOME or XDG_STATE_HOME to an absolute path")]
    NoPlace,
    /// Somebody else's directory.
    #[error("{0} is not a directory that belongs to this user alone; remove it or set XDG_STATE_HOME")]
    Unsafe(PathBuf),
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
    /// A file that is no definition.
    #[error("the definition of network {} in {} cannot be used: {}; correct the file or remove it", .0.name, .0.path.display(), .0.why)]
    Broken(Broken),
    /// None of that name.
    #[error("network {0} not found")]
    NotFound(String),
    /// Several whose ids begin so.
    #[error("network {0} is ambiguous ({1} matches found based on ID prefix)")]
    Ambiguous(String, usize),
    /// Not one that somebody made.
    #[error("{0} is a pre-defined network and cannot be removed")]
    Predefined(String),
    /// It cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// A file that is no definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// What it would be called.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
    /// Subnets that can be read in it.
    pub subnets: Vec<IpNet>,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Networks, the predefined ones first, then by name.
    pub networks: Vec<Network>,
    /// Files that are none.
    pub broken: Vec<Broken>,
}

/// The networks of one user.
#[derive(Clone, Debug)]
pub struct Store {
    /// `STATE/networks`.
    dir: Option<PathBuf>,
    user: u32,
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::File { what, path: path.to_owned(), source }
}

impl Store {
    /// Of the calling user; `state` is where tapway keeps what lasts, if there is such a place. Nothing is touched.
    pub fn new(state: Option<&Path>) -> Self {
        Self { dir: state.map(|state| state.join("networks")), user: nix::unistd::geteuid().as_raw() }
    }

    /// Every network.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let mut listing = Listing { networks: Network::predefined(self.user).into(), broken: Vec::new() };
        let Some(dir) = &self.dir else { return Ok(listing) };
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
            entries => entries.map_err(file_error("read the directory", dir))?,
        };
        if !ours(dir) {
            return Err(StoreError::Unsafe(dir.clone()));
        }
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(file_error("read the directory", dir))?.path();
            let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden && path.extension().is_some_and(|extension| extension == "json") {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            let read = read(&path).and_then(|network| match network {
                Some(n) if listing.networks.iter().any(|other| other.id == n.id) => {
                    let subnets = n.ipam.iter().map(|config| config.subnet).collect();
                    Err(Broken { subnets, ..broken(&path, "it has the id of another network".to_owned(), &[]) })
                }
                network => Ok(network),
            });
            match read {
                Ok(network) => listing.networks.extend(network),
                Err(broken) => listing.broken.push(broken),
            }
        }
        Ok(listing)
    }

    /// The network of this id, name, or beginning of an id, in this order.
    pub fn find(&self, typed: &str) -> Result<Network, StoreError> {
        // Those that are there by themselves can be had whatever has become of the files.
        let own =
            Network::predefined(self.user).into_iter().find(|network| network.name == typed || network.id == typed);
        if let Some(network) = own {
            return Ok(network);
        }
        let mut listing = self.list()?;
        let exact = |n: &Network| n.id == typed;
        let at =
            listing.networks.iter().position(exact).or_else(|| listing.networks.iter().position(|n| n.name == typed));
        if let Some(at) = at {
            return Ok(listing.networks.swap_remove(at));
        }
        if let Some(broken) = listing.broken.into_iter().find(|broken| broken.name == typed) {
            return Err(StoreError::Broken(broken));
        }
        listing.networks.retain(|n| !typed.is_empty() && typed.len() < ID_DIGITS && n.id.starts_with(typed));
        match (listing.networks.len(), listing.networks.pop()) {
            (1, Some(only)) => Ok(only),
            (0, _) => Err(StoreError::NotFound(typed.to_owned())),
            (several, _) => Err(StoreError::Ambiguous(typed.to_owned(), several)),
        }
    }

    /// True if exactly this network is still there.
    pub fn holds(&self, network: &Network) -> bool {
        if network.is_predefined() {
            return true;
        }
        let path = self.dir.as_ref().map(|dir| path_of(dir, &network.name));
        path.and_then(|path| read(&path).ok().flatten()).is_some_and(|found| found.id == network.id)
    }

    /// Makes a network. `host` is what its subnet must not cover if it has none of its own.
    pub fn create(&self, request: Request, host: &[Ipv4Net], fresh: Fresh) -> Result<Network, StoreError> {
        let dir = self.make_dir()?;
        let _lock = lock(dir)?;
        let listing = self.list()?;
        if let Some(broken) = listing.broken.iter().find(|broken| broken.name == request.name) {
            return Err(StoreError::Broken(broken.clone()));
        }
        let subnets: Vec<IpNet> = listing.broken.iter().flat_map(|broken| broken.subnets.clone()).collect();
        let existing = Existing { networks: &listing.networks, subnets: &subnets, host };
        let network = creation::create(request, existing, fresh)?;
        write(dir, &network)?;
        Ok(network)
    }

    /// Removes the definition. Whether it is in use is the caller's to know (`leases::remove_network`).
    pub(super) fn remove(&self, network: &Network) -> Result<(), StoreError> {
        let gone = || StoreError::NotFound(network.name.clone());
        let dir = self.dir.as_deref().ok_or_else(gone)?;
        let _lock = lock(dir)?;
        if !self.holds(network) {
            return Err(gone());
        }
        let path = path_of(dir, &network.name);
        std::fs::remove_file(&path).map_err(file_error("remove", &path))?;
        sync(dir);
        Ok(())
    }

    fn make_dir(&self) -> Result<&Path, StoreError> {
        let dir = self.dir.as_deref().ok_or(StoreError::NoPlace)?;
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file_error("make the directory", dir))?;
        if ours(dir) { Ok(dir) } else { Err(StoreError::Unsafe(dir.to_owned())) }
    }
}

fn path_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.json"))
}

fn lock(dir: &Path) -> Result<Flock<File>, StoreError> {
    let path = dir.join(LOCK);
    locked::wait(&path, PATIENCE).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => StoreError::Busy(path.clone()),
        _ => file_error("lock", &path)(error),
    })
}

/// Writes a definition. A name stands for a whole one or for none, whatever happens meanwhile.
fn write(dir: &Path, network: &Network) -> Result<(), StoreError> {
    let (new, path) = (dir.join(NEW), path_of(dir, &network.name));
    let written = (|| {
        let mut text = serde_json::to_vec_pretty(network)?;
        text.push(b'\n');
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written.map_err(file_error("write", &path))?;
    sync(dir);
    Ok(())
}

/// Makes a change of names in a directory last. Where a file system cannot, the change is made all the same.
fn sync(dir: &Path) {
    let _ = File::open(dir).and_then(|dir| dir.sync_all());
}

/// Reads one. None if it is gone meanwhile.
fn read(path: &Path) -> Result<Option<Network>, Broken> {
    let mut text = Vec::new();
    // A pipe in its place must not block us.
    let read = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).and_then(|file| {
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        file.take(MAX_FILE).read_to_end(&mut text)
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(broken(path, error.to_string(), &[])),
        Ok(_) => {}
    }
    let network: Network = serde_json::from_slice(&text).map_err(|error| broken(path, error.to_string(), &text))?;
    network.check().map_err(|error| broken(path, error.to_string().replace('\n', " "), &text))?;
    if path.file_stem().is_none_or(|stem| stem != network.name.as_str()) {
        return Err(broken(path, format!("it says that its name is {}", network.name), &text));
    }
    Ok(Some(network))
}

fn broken(path: &Path, why: String, text: &[u8]) -> Broken {
    let text = String::from_utf8_lossy(text);
    // Every second piece is inside quotes, and the last one is cut off.
    let mut pieces: Vec<&str> = text.split('"').collect();
    pieces.pop();
    let subnets = pieces.into_iter().skip(1).step_by(2).filter_map(|word| word.parse().ok()).collect();
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Broken { name, path: path.to_owned(), why, subnets }
}

#[cfg(test)]
#[path = "networks/tests.rs"]
pub(super) mod tests;
