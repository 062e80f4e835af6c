//! What is known of running sandboxes: one locked file each.
//!
//! `DIR/sandboxes/NAME.json` exists while a sandbox of that name runs and is locked (flock) by its monitor. The lock, not
//! the file, is the truth: a file that can be locked belongs to a monitor that was killed, and whoever meets it removes
//! it. So nothing needs a process id to be checked, and a name is free the moment its owner is dead. The control socket,
//! `DIR/sandboxes/ID.sock`, comes after its file and goes before it: one whose id is in no file is a dead monitor's.
//!
//! DIR is `$XDG_RUNTIME_DIR/tapway`, else `/run/user/UID/tapway`, else `/tmp/tapway-UID` (or `.1` to `.9` after that name); always a directory of the user's
//! that nobody else can write to, or it is refused.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::locked::{self, Found};
use crate::api::verbs::fault::FaultRule;
use crate::network::config::Listener;

/// Longest name, in bytes: room for a suffix within the 255 of a file name, and a DNS label.
pub const MAX_NAME: usize = 63;
/// How many names are tried in /tmp.
const TMP_NAMES: u32 = 10;

/// What stands in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// 12 hex digits.
    pub id: String,
    /// Name; the id unless given.
    pub name: String,
    /// Process id of the monitor.
    pub pid: u32,
    /// Published ports, as bound.
    pub ports: Vec<Listener>,
    /// What it is, for those who list it; a file of an older tapway has none of it.
    #[serde(default)]
    pub about: About,
}

/// What a sandbox is, beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// When `tapway run` began, in milliseconds since 1970.
    pub created: Option<u64>,
    /// When the command was started.
    pub started: Option<u64>,
    /// Process id of its first process, or of that which was attached.
    pub init: Option<u32>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Host name inside.
    pub hostname: String,
    /// As `--network` says it; `container:` with the whole id.
    pub network_mode: String,
    /// What it is attached to.
    pub networks: Vec<Attachment>,
    /// Networks that it was put aside by (`sandbox::blame`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aside: Vec<Aside>,
    /// `--detach`: there are logs.
    pub detached: bool,
    /// `tapway attach`: the process or file by which the namespace was named that somebody else made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attached: Option<String>,
}

impl About {
    /// What runs there, in a word: the command, or what was attached.
    pub fn shown_command(&self) -> String {
        match &self.attached {
            Some(target) => format!("attached {target}"),
            None => self.command.join(" "),
        }
    }

    /// True if the sandbox has no interface of its own and gets none.
    pub fn is_without_interface(&self) -> bool {
        matches!(self.network_mode.as_str(), "none" | "host") || self.network_mode.starts_with("container:")
    }

    /// True if the command was started, as far as the file can tell: those of an older tapway say nothing of it.
    pub fn is_started(&self) -> bool {
        self.started.is_some() || self.created.is_none()
    }
}

/// One attachment to a network. Files of an older tapway have the first three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// Name of the network.
    pub network: String,
    /// MAC address, as it is written.
    pub mac: String,
    /// IPv4 and IPv6, as far as they are on.
    pub addresses: Vec<Address>,
    /// The interface inside.
    pub interface: String,
    /// Id of the network, 64 hex digits; empty where it has none.
    pub network_id: String,
    /// Another one each time a sandbox is connected.
    pub endpoint_id: String,
    /// What the sandbox is called there.
    pub names: Vec<String>,
    /// `--network-alias`.
    pub aliases: Vec<String>,
    /// `--link`, as `NAME:ALIAS`.
    pub links: Vec<String>,
    /// `--ip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// `--ip6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip6: Option<IpAddr>,
    /// `gw-priority`.
    pub gw_priority: i32,
    /// The default route leads there, and published ports come from there.
    pub gateway: bool,
    /// Faults on purpose, as they were set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultRule>,
}

/// A network that a sandbox was taken off because that killed its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Its name.
    pub network: String,
    /// In a line.
    pub why: String,
}

/// An address of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The sandbox's own.
    pub address: IpAddr,
    /// Length of the subnet's prefix.
    pub prefix_len: u8,
    /// The gateway.
    pub gateway: IpAddr,
}

/// The time as state files and logs have it, in milliseconds since 1970.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Why the state could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No safe directory.
    #[error("{path} is not a directory that belongs to this user alone; remove it or set XDG_RUNTIME_DIR")]
    Unsafe {
        /// The directory.
        path: PathBuf,
    },
    /// The name is held.
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) \
         that container to be able to reuse that name. (`tapway rm -f {name}` removes it; or choose another --name)"
    )]
    Taken {
        /// The name.
        name: String,
        /// Its holder.
        id: String,
    },
    /// Nothing of that name.
    #[error("there is no running sandbox named '{0}'")]
    None(String),
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
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::File { what, path: path.to_owned(), source }
}

/// True for a name: letters, digits, '_', '.', '-', the first a letter or digit.
pub fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// The runtime directory, made if need be. `xdg` is the value of XDG_RUNTIME_DIR.
pub fn runtime_dir(xdg: Option<OsString>) -> Result<PathBuf, StateError> {
    let uid = nix::unistd::geteuid().as_raw();
    let bases = [xdg.map(PathBuf::from), Some(PathBuf::from(format!("/run/user/{uid}")))];
    // A directory that is somebody else's (root's, after su) is passed over.
    let base = bases.into_iter().flatten().find(|base| base.is_absolute() && ours(base));
    if let Some(base) = base {
        let dir = base.join("tapway");
        return make_private_dir(&dir).map(|()| dir);
    }
    // Where the first name is somebody else's (a nested user namespace numbers its users anew) the next may be free.
    let mut last = Err(StateError::None(String::new()));
    for number in 0..TMP_NAMES {
        let suffix = if number == 0 { String::new() } else { format!(".{number}") };
        let dir = PathBuf::from(format!("/tmp/tapway-{uid}{suffix}"));
        last = make_private_dir(&dir).map(|()| dir);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Where that lives which outlives a session: definitions of networks, logs (XDG Base Directory Specification). None
/// without a home; nothing is made.
pub fn lasting_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(base.join("tapway"))
}

/// A directory of this user's that nobody else can write to. Not followed if it is a link.
pub(super) fn ours(path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0)
}

pub(super) fn make_private_dir(path: &Path) -> Result<(), StateError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(file_error("make", path)(error)),
        _ => {}
    }
    if ours(path) { Ok(()) } else { Err(StateError::Unsafe { path: path.to_owned() }) }
}

/// A sandbox's entry, held by its monitor. Dropping it removes the file and frees the name.
#[derive(Debug)]
pub struct Entry {
    path: PathBuf,
    socket: PathBuf,
    lock: Flock<std::fs::File>,
}

impl Entry {
    /// Where the control socket belongs.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Writes the file anew. A reader finds the old text, the new one, or for a moment a mixture that is no JSON; so the
    /// text takes one write, and one that is shorter is filled up with blanks.
    pub fn update(&self, sandbox: &Sandbox) -> Result<(), StateError> {
        locked::rewrite(&self.lock, sandbox).map_err(file_error("write", &self.path))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        // Removed while locked: nobody can meet it unlocked. If it is gone already, so much the better.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Takes the name of `sandbox` in `dir`, and removes what dead monitors left there.
pub fn register(dir: &Path, sandbox: &Sandbox) -> Result<Entry, StateError> {
    let dir = dir.join("sandboxes");
    make_private_dir(&dir)?;
    remove_stale(&dir);
    let path = dir.join(format!("{}.json", sandbox.name));
    loop {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(file_error("open", &path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let holder: Option<Sandbox> = locked::parse(&mut file);
                let id = holder.map_or_else(|| "that is starting".to_owned(), |holder| holder.id);
                return Err(StateError::Taken { name: sandbox.name.clone(), id });
            }
            Err((_, errno)) => return Err(file_error("lock", &path)(errno.into())),
        };
        // Somebody may have removed it between our open and our lock: then we hold a file without a name.
        if !locked::is_at(&lock, &path) {
            continue;
        }
        let text = serde_json::to_vec(sandbox).map_err(|error| file_error("write", &path)(error.into()))?;
        lock.set_len(0).and_then(|()| lock.write_all(&text)).map_err(file_error("write", &path))?;
        return Ok(Entry { path, socket: socket_path(&dir, &sandbox.id), lock });
    }
}

fn socket_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.sock"))
}

/// The control socket of a sandbox in the runtime directory `dir`.
pub fn socket_of(dir: &Path, sandbox: &Sandbox) -> PathBuf {
    socket_path(&dir.join("sandboxes"), &sandbox.id)
}

/// Removes what dead monitors left.
fn remove_stale(dir: &Path) {
    // The sockets first: one that comes after this has its file already.
    let sockets = with_extension(dir, "sock");
    let mut ids = Vec::new();
    for path in list(dir) {
        // Reading removes it if it is stale.
        match read(&path) {
            Some(other) => ids.push(other.id),
            // What cannot be read is not ours to judge, nor is then any socket.
            None if path.exists() => return,
            None => {}
        }
    }
    for path in sockets {
        if !ids.iter().any(|id| path.file_stem().is_some_and(|stem| stem == id.as_str())) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The running sandbox of this name, id, or unambiguous beginning of an id.
pub fn find(dir: &Path, name: &str) -> Result<Sandbox, StateError> {
    let dir = dir.join("sandboxes");
    if is_name(name)
        && let Some(found) = read(&dir.join(format!("{name}.json")))
    {
        return Ok(found);
    }
    let mut by_id: Vec<Sandbox> = list(&dir)
        .iter()
        .filter_map(|path| read(path))
        .filter(|s| !name.is_empty() && s.id.starts_with(name))
        .collect();
    match (by_id.pop(), by_id.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(StateError::None(name.to_owned())),
    }
}

fn list(dir: &Path) -> Vec<PathBuf> {
    with_extension(dir, "json")
}

fn with_extension(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect()
}

/// Every running sandbox, by name.
pub fn running(dir: &Path) -> Vec<Sandbox> {
    let mut all: Vec<Sandbox> = list(&dir.join("sandboxes")).iter().filter_map(|path| read(path)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Where the monitor of the sandbox `id` serves its control socket.
pub fn socket(dir: &Path, id: &str) -> PathBuf {
    dir.join("sandboxes").join(format!("{id}.sock"))
}

/// Reads one entry. None if there is none, or a dead monitor's, which is removed.
fn read(path: &Path) -> Option<Sandbox> {
    match locked::look(path) {
        Found::Held(sandbox) => sandbox,
        Found::Dead => {
            let _ = std::fs::remove_file(path);
            None
        }
        Found::Nothing => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    struct Temp(PathBuf);

    impl Temp {
        fn new(tag: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tapway-state-{}-{tag}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn sandbox(name: &str) -> Sandbox {
        Sandbox {
            id: format!("0123456789{:02}", name.len()),
            name: name.to_owned(),
            pid: 1,
            ports: vec![],
            about: About::default(),
        }
    }

    #[test]
    fn a_name_is_held_while_its_entry_lives() {
        let dir = Temp::new("held");
        let entry = register(&dir.0, &sandbox("web")).unwrap();
        let error = register(&dir.0, &sandbox("web")).unwrap_err().to_string();
        assert_eq!(
            error,
            "Conflict. The container name \"/web\" is already in use by container \"012345678903\". You have to remove (or \
             rename) that container to be able to reuse that name. (`tapway rm -f web` removes it; or choose another --name)"
        );
        assert_eq!(find(&dir.0, "web").unwrap(), sandbox("web"));
        assert_eq!(find(&dir.0, "0123").unwrap().name, "web");
        drop(entry);
        assert!(matches!(find(&dir.0, "web"), Err(StateError::None(_))));
        assert!(!dir.0.join("sandboxes/web.json").exists());
        register(&dir.0, &sandbox("web")).unwrap();
    }

    #[test]
    fn what_a_dead_monitor_left_is_removed() {
        let dir = Temp::new("stale");
        drop(register(&dir.0, &sandbox("x")).unwrap());
        let stale = dir.0.join("sandboxes/dead.json");
        std::fs::write(&stale, serde_json::to_vec(&sandbox("dead")).unwrap()).unwrap();
        assert!(find(&dir.0, "dead").is_err());
        assert!(!stale.exists());
        std::fs::write(&stale, "not json").unwrap();
        let _entry = register(&dir.0, &sandbox("other")).unwrap();
        assert!(!stale.exists());
    }

    #[test]
    fn sockets_of_the_dead_are_removed_and_others_stay() {
        let dir = Temp::new("sockets");
        let web = register(&dir.0, &sandbox("web")).unwrap();
        assert_eq!(web.socket(), socket_of(&dir.0, &sandbox("web")));
        std::fs::write(web.socket(), "").unwrap();
        let stale = dir.0.join("sandboxes/0123456789ff.sock");
        std::fs::write(&stale, "").unwrap();
        let _other = register(&dir.0, &sandbox("x")).unwrap();
        assert!(web.socket().exists() && !stale.exists());
        let path = web.socket().to_owned();
        drop(web);
        assert!(!path.exists());
    }

    #[test]
    fn an_entry_is_updated_in_place() {
        let dir = Temp::new("update");
        let entry = register(&dir.0, &sandbox("web")).unwrap();
        let listener = Listener {
            proto: crate::network::config::Proto::Tcp,
            host_addr: "127.0.0.1".parse().unwrap(),
            host_port: 8080,
            guest_addr: None,
            guest_port: 80,
        };
        for ports in [vec![listener; 3], vec![], vec![listener]] {
            let now = Sandbox { ports, ..sandbox("web") };
            entry.update(&now).unwrap();
            assert_eq!(find(&dir.0, "web").unwrap(), now);
        }
    }

    #[test]
    fn ambiguous_beginnings_are_nobody() {
        let dir = Temp::new("ambiguous");
        let _a = register(&dir.0, &sandbox("a")).unwrap();
        let _b = register(&dir.0, &sandbox("bb")).unwrap();
        assert!(find(&dir.0, "0123").is_err());
        assert!(find(&dir.0, "").is_err());
        assert_eq!(find(&dir.0, "012345678901").unwrap().name, "a");
    }

    #[test]
    fn all_that_run_are_listed_by_name() {
        let dir = Temp::new("all");
        assert_eq!(running(&dir.0), []);
        let _b = register(&dir.0, &sandbox("b")).unwrap();
        let _a = register(&dir.0, &sandbox("a")).unwrap();
        std::fs::write(dir.0.join("sandboxes/dead.json"), serde_json::to_vec(&sandbox("dead")).unwrap()).unwrap();
        assert_eq!(running(&dir.0), [sandbox("a"), sandbox("b")]);
        assert_eq!(socket(&dir.0, "0123"), dir.0.join("sandboxes/0123.sock"));
    }

    #[test]
    fn names() {
        for good in ["a", "web-1", "A.b_c", "0"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a/b", "../x", "a b", "é", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn unsafe_runtime_directories_are_passed_over() {
        let dir = Temp::new("unsafe");
        assert_eq!(runtime_dir(Some(dir.0.clone().into())).unwrap(), dir.0.join("tapway"));
        std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_ne!(runtime_dir(Some(dir.0.clone().into())).unwrap(), dir.0.join("tapway"));
        assert_ne!(runtime_dir(Some("relative".into())).unwrap(), Path::new("relative/tapway"));
    }
}
