//! Following the host's resolv.conf.
//!
//! The name servers of the host change while a sandbox runs: a laptop joins another network, a VPN comes up. The file is
//! often a symbolic link to another link, and is changed by renaming over it, by pointing a link elsewhere, by exchanging
//! the directory it is in; or it appears only later. So not the file is watched but every directory on the way to it,
//! through all links, for the one name that the way takes there ([`way`]). After each event that concerns such a name the
//! way is walked anew, and the file read anew.
//!
//! Without inotify (the user's instances may be used up) the file is read every [`FALLBACK`].
//!
//! Nothing is invented: no file, or no name server in it, is an empty list.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use crate::network::resolv::{self, ResolvConf};

/// Where the host says which name servers it uses.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often the file is read where it cannot be watched.
pub const FALLBACK: Duration = Duration::from_secs(2);
/// Port of DNS (RFC 1035, section 4.2).
const DNS_PORT: u16 = 53;
/// Most links on the way, as in the kernel (MAXSYMLINKS, include/linux/namei.h).
const MAX_LINKS: usize = 40;
/// Most of the file that is read, in bytes.
const MAX_SIZE: u64 = 64 * 1024;

/// The host's configuration as it is now.
pub fn read(path: &Path) -> ResolvConf {
    try_read(path).unwrap_or_else(|| resolv::parse(""))
}

/// The same. None: we are short of descriptors or memory, which says nothing about the file.
pub fn try_read(path: &Path) -> Option<ResolvConf> {
    let mut text = Vec::new();
    match std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => return None,
        // Absent or unreadable is empty; a directory or a pipe in its place must not block us.
        Ok(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => {
            let _ = file.take(MAX_SIZE).read_to_end(&mut text);
        }
        _ => {}
    }
    Some(resolv::parse(&String::from_utf8_lossy(&text)))
}

/// Its name servers as socket addresses; a link-local one of an interface that is not there is left out.
pub fn servers(conf: &ResolvConf) -> Vec<SocketAddr> {
    conf.servers
        .iter()
        .filter_map(|server| match (server.address, &server.scope) {
            (IpAddr::V6(address), Some(scope)) => {
                let index = scope.parse().ok().or_else(|| nix::net::if_::if_nametoindex(scope.as_str()).ok())?;
                Some(SocketAddr::V6(SocketAddrV6::new(address, DNS_PORT, 0, index)))
            }
            (address, _) => Some(SocketAddr::new(address, DNS_PORT)),
        })
        .collect()
}

/// The directories that a reader of `path` reads in, through all links.
pub fn directories(path: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        way(path).into_iter().map(|(dir, _)| dir).filter(|dir| dir != Path::new("/")).collect();
    dirs.sort();
    dirs.dedup();
    dirs
}

/// Looks whether a file has changed, for a reader that is asked now and then and cannot watch.
#[derive(Debug)]
pub struct Polled {
    path: PathBuf,
    /// Device, inode, size, and time of the last change.
    seen: Option<[i128; 4]>,
}

impl Polled {
    /// For `path`, which counts as not looked at.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: None }
    }

    /// Its name servers now.
    pub fn servers(&mut self) -> Vec<SocketAddr> {
        self.take().unwrap_or_default()
    }

    /// Its name servers, if it is another file than when last looked at. A file that vanished is none.
    pub fn changed(&mut self) -> Option<Vec<SocketAddr>> {
        if self.look() == self.seen { None } else { self.take() }
    }

    fn take(&mut self) -> Option<Vec<SocketAddr>> {
        let look = self.look();
        let conf = try_read(&self.path)?;
        self.seen = look;
        Some(servers(&conf))
    }

    fn look(&self) -> Option<[i128; 4]> {
        let meta = std::fs::metadata(&self.path).ok()?;
        let time = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        Some([i128::from(meta.dev()), i128::from(meta.ino()), i128::from(meta.size()), time])
    }
}

/// Watches the way to a file.
#[derive(Debug)]
pub struct Watcher {
    path: PathBuf,
    /// None where inotify is not to be had.
    inotify: Option<Inotify>,
    /// What each watch is for: one directory, and the names in it that matter.
    watches: Vec<(WatchDescriptor, Vec<OsString>)>,
}

impl Watcher {
    /// Starts to watch `path` (absolute). `also` are names in its directory that matter as well.
    pub fn new(path: &Path, also: &[&str]) -> Self {
        let mut this = Self { path: path.to_owned(), inotify: None, watches: Vec::new() };
        this.renew(also);
        this
    }

    /// The descriptor to poll.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(|inotify| inotify.as_fd())
    }

    /// What was said to have changed could not be read: it is looked at again every [`FALLBACK`].
    pub fn look_again(&mut self) {
        self.inotify = None;
    }

    /// Reads what happened; true if any of it may have changed the file or the way to it.
    pub fn changed(&mut self, also: &[&str]) -> bool {
        let Some(inotify) = &self.inotify else {
            // Perhaps it is to be had again.
            self.renew(also);
            return true;
        };
        let mut concerned = false;
        loop {
            match inotify.read_events() {
                Ok(events) => {
                    concerned |= events.iter().any(|event| {
                        let watch = self.watches.iter().find(|(wd, _)| *wd == event.wd);
                        match (&event.name, watch) {
                            (Some(name), Some((_, names))) => names.contains(name),
                            // The directory itself moved or went, or events were lost.
                            _ => true,
                        }
                    });
                }
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        if concerned {
            self.renew(also);
        }
        concerned
    }

    /// Walks the way anew, with new watches; they are in place before anything is read.
    fn renew(&mut self, also: &[&str]) {
        self.watches.clear();
        // First the old one goes: it may be the only one that we can have.
        self.inotify = None;
        self.inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let Some(inotify) = &self.inotify else { return };
        let mut steps = way(&self.path);
        if let Some(dir) = self.path.parent() {
            steps.extend(also.iter().map(|name| (dir.to_owned(), OsString::from(name))));
        }
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        for (dir, name) in steps {
            // A directory that vanished meanwhile: the watch on its parent tells.
            let Ok(wd) = inotify.add_watch(&dir, events) else { continue };
            match self.watches.iter_mut().find(|(known, _)| *known == wd) {
                Some((_, names)) => names.push(name),
                None => self.watches.push((wd, vec![name])),
            }
        }
    }
}

/// Every step that the kernel takes to open `path`: a directory, and the name looked up in it. Ends where something is
/// missing.
fn way(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut steps = Vec::new();
    let mut links = 0;
    let mut here = PathBuf::from("/");
    let mut ahead: VecDeque<OsString> = names(path);
    while let Some(name) = ahead.pop_front() {
        if name == OsStr::new("..") {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        steps.push((here.clone(), name));
        match std::fs::read_link(&next) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    break;
                }
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                for part in names(&target).into_iter().rev() {
                    ahead.push_front(part);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
            // Not a link.
            Err(_) => here = next,
        }
    }
    steps
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Temp(PathBuf);

    impl Temp {
        fn new(tag: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tapway-dns-{}-{tag}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(path.join("etc")).unwrap();
            Self(path.canonicalize().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn write(&self, name: &str, server: &str) {
            std::fs::write(self.path(name), format!("nameserver {server}\n")).unwrap();
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn server(path: &Path) -> Vec<String> {
        servers(&read(path)).iter().map(ToString::to_string).collect()
    }

    /// Asserts that the watcher notices, and that the file then says `expected`.
    fn expect(watcher: &mut Watcher, path: &Path, expected: &[&str]) {
        assert!(watcher.changed(&[]), "not noticed; expected {expected:?}");
        assert_eq!(server(path), expected);
        assert!(!watcher.changed(&[]), "noticed twice");
    }

    #[test]
    fn rename_over_write_in_place_and_removal() {
        let t = Temp::new("rename");
        let file = t.path("etc/resolv.conf");
        t.write("etc/resolv.conf", "1.1.1.1");
        let mut watcher = Watcher::new(&file, &[]);
        assert!(!watcher.changed(&[]));
        t.write("etc/new", "2.2.2.2");
        assert!(!watcher.changed(&[]), "another name in the same directory");
        std::fs::rename(t.path("etc/new"), &file).unwrap();
        expect(&mut watcher, &file, &["2.2.2.2:53"]);
        t.write("etc/resolv.conf", "3.3.3.3");
        expect(&mut watcher, &file, &["3.3.3.3:53"]);
        std::fs::remove_file(&file).unwrap();
        expect(&mut watcher, &file, &[]);
        t.write("etc/resolv.conf", "4.4.4.4");
        expect(&mut watcher, &file, &["4.4.4.4:53"]);
    }

    #[test]
    fn links_retargeted_and_directories_exchanged() {
        let t = Temp::new("links");
        let file = t.path("etc/resolv.conf");
        std::fs::create_dir_all(t.path("run/a")).unwrap();
        t.write("run/a/resolv.conf", "1.1.1.1");
        symlink("../run/link", &file).unwrap();
        symlink("a/resolv.conf", t.path("run/link")).unwrap();
        let mut watcher = Watcher::new(&file, &[]);
        assert_eq!(server(&file), ["1.1.1.1:53"]);
        // The far end.
        t.write("run/a/resolv.conf", "2.2.2.2");
        expect(&mut watcher, &file, &["2.2.2.2:53"]);
        // The link in the middle.
        t.write("run/other", "3.3.3.3");
        symlink("other", t.path("run/link.new")).unwrap();
        std::fs::rename(t.path("run/link.new"), t.path("run/link")).unwrap();
        expect(&mut watcher, &file, &["3.3.3.3:53"]);
        // The directory on the way.
        std::fs::create_dir_all(t.path("run.new")).unwrap();
        t.write("run.new/link", "4.4.4.4");
        std::fs::rename(t.path("run"), t.path("run.old")).unwrap();
        std::fs::rename(t.path("run.new"), t.path("run")).unwrap();
        expect(&mut watcher, &file, &["4.4.4.4:53"]);
    }

    #[test]
    fn a_dangling_link_gets_its_target_later() {
        let t = Temp::new("dangling");
        let file = t.path("etc/resolv.conf");
        symlink(t.path("run/systemd/resolv.conf"), &file).unwrap();
        let mut watcher = Watcher::new(&file, &[]);
        assert_eq!(server(&file), Vec::<String>::new());
        std::fs::create_dir_all(t.path("run/systemd")).unwrap();
        expect(&mut watcher, &file, &[]);
        t.write("run/systemd/resolv.conf", "127.0.0.53");
        expect(&mut watcher, &file, &["127.0.0.53:53"]);
    }

    #[test]
    fn circles_and_directories_end() {
        let t = Temp::new("circle");
        let file = t.path("etc/resolv.conf");
        symlink("resolv.conf", &file).unwrap();
        assert!(way(&file).len() <= MAX_LINKS + 20);
        assert_eq!(server(&file), Vec::<String>::new());
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(server(&file), Vec::<String>::new());
        std::fs::remove_dir(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(server(&file), Vec::<String>::new());
    }

    #[test]
    fn scopes_become_numbers() {
        let conf = resolv::parse("nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%no-such-if\n");
        let addresses: Vec<String> = servers(&conf).iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["[fe80::1%1]:53", "[fe80::2%7]:53"]);
    }
}
