//! /etc/resolv.conf and /etc/hosts of a sandbox, and the mounts around them.
//!
//! The command sees the host's file system with a few things changed, in a mount namespace of its own:
//!
//! - Our two files lie on a small tmpfs and are mounted exactly onto the directory entries of that name. The target is
//!   opened with O_PATH and O_NOFOLLOW, so a symbolic link, even a dangling one, is itself covered, and whatever the
//!   host does behind the link does not matter. Where there is no entry at all, an overlay over /etc makes one.
//! - When the host replaces /etc/resolv.conf by renaming over it, the kernel drops every mount on the old entry, in our
//!   namespace too. The monitor watches for that and calls [`Files::put_back`].
//! - An empty tmpfs covers tapway's runtime and state directories: the command has the caller's uid and could otherwise
//!   drive its own controller.
//! - /proc and /sys are mounted anew for the new PID and network namespaces. Where the kernel forbids that (inside a
//!   container that masks parts of them) the old ones stay and a note says so.
//!
//! Deliberately not here: any change of the root, or of what the command may read otherwise.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fstat};

use crate::sys;

/// Why the file system of the sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A mount.
    #[error("cannot mount {what} at {path}")]
    Mount {
        /// What was mounted.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Errno.
        #[source]
        source: nix::Error,
    },
    /// A file of ours.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The mount target.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Errno.
        #[source]
        source: nix::Error,
    },
}

/// One host's line in /etc/hosts. The mark tells people whose it is; it is a comment to every reader (hosts(5)).
pub fn host_line(address: IpAddr, name: &str) -> String {
    format!("{address}\t{name}\t# tapway")
}

/// A line for an address of the sandbox's own.
pub fn own_line(address: IpAddr, hostname: &str) -> String {
    format!("{address}\t{hostname}")
}

/// The text of /etc/hosts, with `lines` behind those that every sandbox has.
pub fn hosts_text(lines: &[String]) -> String {
    let mut text = String::from("# Made by tapway for this sandbox.\n");
    let mut line = |address: IpAddr, names: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{address}\t{names}");
    };
    line(IpAddr::V4(Ipv4Addr::LOCALHOST), "localhost");
    line(IpAddr::V6(Ipv6Addr::LOCALHOST), "localhost ip6-localhost ip6-loopback");
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// What is to be found at an entry.
#[derive(Debug)]
pub enum Content<'a> {
    /// A file of ours with this text.
    Text(&'a str),
    /// A detached mount of a file.
    Mount(OwnedFd),
}

/// The generated files, where they lie and where they belong. Keeps what is needed to put them back.
#[derive(Debug)]
pub struct Files {
    /// Root of the tmpfs that holds them.
    store: OwnedFd,
    /// Our file and the entry that it covers.
    placed: Vec<(OwnedFd, PathBuf)>,
}

impl Files {
    /// Places `files` (entry, content) on a tmpfs of their own, mounts each onto its entry, and leaves `covered` empty.
    /// Also returns each file that has our text, open to read and write.
    ///
    /// The tmpfs is mounted on the first of `covered`, which is then covered once more: so it needs no directory of
    /// its own and is not seen.
    pub fn place(covered: &[PathBuf], files: Vec<(&str, Content<'_>)>) -> Result<(Self, Vec<OwnedFd>), FilesError> {
        let Some(spot) = covered.first() else {
            return Err(FilesError::Open { path: PathBuf::new(), source: Errno::ENOENT });
        };
        mount_tmpfs(spot, "mode=0755,size=1m,nr_inodes=64")?;
        let store = open_path(spot).map_err(|source| FilesError::Open { path: spot.clone(), source })?;
        let mut this = Self { store, placed: Vec::new() };
        let mut opened = Vec::new();
        for (entry, content) in files {
            let entry = PathBuf::from(entry);
            let (text, mounted) = match content {
                Content::Text(text) => (text, None),
                Content::Mount(tree) => ("", Some(tree)),
            };
            let path = spot.join(entry.file_name().unwrap_or(OsStr::new("file")));
            let write = || -> std::io::Result<OwnedFd> {
                use std::io::Write as _;
                let mut file =
                    std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&path)?;
                file.write_all(text.as_bytes())?;
                Ok(file.into())
            };
            let written = write().map_err(|source| FilesError::Write { path: path.clone(), source })?;
            match mounted {
                None => opened.push(written),
                Some(tree) => {
                    // It stays here, in our own mounts, to be put back from.
                    let attach = open_path(&path).and_then(|at| sys::mount::attach_tree(tree.as_fd(), at.as_fd()));
                    let what = "another sandbox's file";
                    attach.map_err(|source| FilesError::Mount { what, path: path.clone(), source })?;
                }
            }
            let file = open_path(&path).map_err(|source| FilesError::Open { path: path.clone(), source })?;
            this.placed.push((file, entry));
        }
        this.put_back()?;
        for path in covered {
            match mount_tmpfs(path, "mode=0700,size=1m,nr_inodes=1024") {
                // Nothing there, nothing to hide.
                Err(FilesError::Mount { source: Errno::ENOENT | Errno::ENOTDIR, .. }) => {}
                other => other?,
            }
        }
        Ok((this, opened))
    }

    /// Mounts our files onto their entries wherever they are not (any more): at the start, and when the host's change
    /// of an entry has taken a mount away.
    pub fn put_back(&self) -> Result<(), FilesError> {
        // First all entries: making one covers the directory, with whatever was mounted in it.
        for (_, entry) in &self.placed {
            if open_path(entry).is_err_and(|errno| errno == Errno::ENOENT) {
                self.make_entry(entry)?;
            }
        }
        for (file, entry) in &self.placed {
            let target = open_path(entry).map_err(|source| FilesError::Open { path: entry.clone(), source })?;
            if identity(file.as_fd()) != identity(target.as_fd()) {
                bind(file.as_fd(), target.as_fd(), false).map_err(|source| FilesError::Mount {
                    what: "a generated file",
                    path: entry.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Gives the directory of `entry` an empty file of that name, by an overlay whose upper layer is ours.
    fn make_entry(&self, entry: &Path) -> Result<(), FilesError> {
        let dir = entry.parent().unwrap_or(Path::new("/"));
        let name = entry.file_name().unwrap_or(OsStr::new("file"));
        let store = PathBuf::from(format!("/proc/self/fd/{}", self.store.as_raw_fd()));
        // One overlay for each entry made: names in the store tell them apart.
        let layer = |kind: &str| {
            let mut path = store.join(kind);
            path.as_mut_os_string().push(name);
            path
        };
        let (upper, work) = (layer("upper-"), layer("work-"));
        let write = |path: &Path, source| FilesError::Write { path: path.to_owned(), source };
        for path in [&upper, &work] {
            match std::fs::create_dir(path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(write(path, error)),
                _ => {}
            }
        }
        // The overlay's root takes the mode of the upper layer.
        if let Ok(mode) = std::fs::metadata(dir) {
            std::fs::set_permissions(&upper, mode.permissions()).map_err(|error| write(&upper, error))?;
        }
        let file = upper.join(name);
        std::fs::write(&file, "").map_err(|error| write(&file, error))?;
        let options = format!("lowerdir={},upperdir={},workdir={}", dir.display(), upper.display(), work.display());
        let with_xattr = format!("{options},userxattr");
        let try_mount = |options: &str| mount(Some("overlay"), dir, Some("overlay"), MsFlags::empty(), Some(options));
        try_mount(&with_xattr).or_else(|_| try_mount(&options)).map_err(|source| FilesError::Mount {
            what: "an overlay",
            path: dir.to_owned(),
            source,
        })
    }
}

/// Device and inode of what a descriptor names.
fn identity(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Opens the entry itself, a symbolic link too.
fn open_path(path: &Path) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

/// Mounts what `source` names onto what `target` names. Without the calls of Linux 5.2, a bind mount through
/// /proc/self/fd, whose links lead to the entry itself.
fn bind(source: BorrowedFd<'_>, target: BorrowedFd<'_>, recursive: bool) -> nix::Result<()> {
    match sys::mount::clone_tree(source, recursive).and_then(|tree| sys::mount::attach_tree(tree.as_fd(), target)) {
        Ok(()) => Ok(()),
        Err(first) => {
            let path = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
            let flags = if recursive { MsFlags::MS_BIND | MsFlags::MS_REC } else { MsFlags::MS_BIND };
            mount(Some(path(source).as_str()), path(target).as_str(), None::<&str>, flags, None::<&str>)
                .map_err(|_| first)
        }
    }
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<(), FilesError> {
    mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some(options),
    )
    .map_err(|source| FilesError::Mount { what: "a tmpfs", path: path.to_owned(), source })
}

/// Makes every mount private, so that nothing of ours is seen outside and nothing of the host's arrives later.
pub fn make_private() -> Result<(), FilesError> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|source| FilesError::Mount { what: "everything private", path: PathBuf::from("/"), source })
}

/// Mounts a /proc of the new PID namespace over the old one.
pub fn mount_proc() -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)
}

/// Mounts a /sys of the new network namespace, with what was mounted below the old one (cgroup, debugfs …) put back.
pub fn mount_sys() -> nix::Result<()> {
    let below = mounts_below_sys(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let kept: Vec<(PathBuf, OwnedFd)> = below
        .into_iter()
        .filter_map(|path| open_path(&path).ok().map(|fd| (path, fd)))
        .filter_map(|(path, fd)| sys::mount::clone_tree(fd.as_fd(), true).ok().map(|tree| (path, tree)))
        .collect();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>)?;
    for (path, tree) in kept {
        // What cannot be put back was hardly of use to an ordinary user: the new /sys stands.
        if let Ok(target) = open_path(&path) {
            let _ = sys::mount::attach_tree(tree.as_fd(), target.as_fd());
        }
    }
    Ok(())
}

/// The outermost mount points below /sys, from the text of /proc/self/mountinfo (proc_pid_mountinfo(5)).
pub fn mounts_below_sys(mountinfo: &str) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        // Names with spaces and the like are written in octal; none is found in /sys.
        .filter(|point| point.starts_with("/sys/") && !point.contains('\\'))
        .map(PathBuf::from)
        .collect();
    points.sort();
    points.dedup();
    let mut outer: Vec<PathBuf> = Vec::new();
    for point in points {
        if !outer.iter().any(|o| point.starts_with(o)) {
            outer.push(point);
        }
    }
    outer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let address = |text: &str| text.parse().unwrap();
        let own = ["10.0.2.100", "fd00::64"].map(|text| own_line(address(text), "box"));
        let text = hosts_text(&[own.as_slice(), &[host_line(address("10.0.2.2"), "db")]].concat());
        let lines: Vec<Vec<&str>> =
            text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_ascii_whitespace().collect()).collect();
        assert_eq!(lines[0], ["127.0.0.1", "localhost"]);
        assert_eq!(lines[1][..2], ["::1", "localhost"]);
        assert_eq!(
            lines[2..],
            [vec!["10.0.2.100", "box"], vec!["fd00::64", "box"], vec!["10.0.2.2", "db", "#", "tapway"]]
        );
    }

    #[test]
    fn outermost_mounts_below_sys() {
        let text = "22 28 0:21 / /sys rw - sysfs sysfs rw\n\
                    23 22 0:6 / /sys/kernel/security rw - securityfs securityfs rw\n\
                    24 22 0:7 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    25 22 0:7 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    26 22 0:7 / /system rw - tmpfs tmpfs rw\n\
                    27 22 0:7 / /sys/a\\040b rw - tmpfs tmpfs rw\nbroken\n";
        assert_eq!(mounts_below_sys(text), [Path::new("/sys/fs/cgroup"), Path::new("/sys/kernel/security")]);
    }
}
