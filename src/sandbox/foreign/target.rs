//! What became of the target, asked when its interface has vanished: did its namespace end, or did somebody delete the
//! interface in it?

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys;

/// What names the namespace from outside.
#[derive(Debug)]
pub enum Watched {
    /// A process: ended if this descriptor of it is readable.
    Process(OwnedFd),
    /// A file: ended if it is no longer this one (device and inode).
    File(PathBuf, (u64, u64)),
    /// Nothing that we could ask.
    Unknown,
}

impl Watched {
    /// Remembers a process, before it can be gone.
    pub fn process(pid: i32) -> Self {
        sys::fd::process(pid).map_or(Self::Unknown, Self::Process)
    }

    /// Remembers a file: that of a process stands for the process.
    pub fn file(path: &Path) -> Self {
        match process_of(path) {
            Some(pid) => Self::process(pid),
            None => identity(path).map_or(Self::Unknown, |file| Self::File(path.to_owned(), file)),
        }
    }

    /// True if what named the namespace is gone, too.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Process(fd) => {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
            }
            Self::File(path, file) => identity(path) != Some(*file),
            Self::Unknown => false,
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// 7 of /proc/7/ns/net.
fn process_of(path: &Path) -> Option<i32> {
    path.strip_prefix("/proc").ok()?.components().next()?.as_os_str().to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_proc_is_found() {
        assert_eq!(process_of(Path::new("/proc/7/ns/net")), Some(7));
        assert_eq!(process_of(Path::new("/proc/7/root/tmp/netns")), Some(7));
        assert_eq!(process_of(Path::new("/proc/self/ns/net")), None);
        assert_eq!(process_of(Path::new("/run/netns/7")), None);
    }

    #[test]
    fn a_process_and_a_file_end() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let watched = Watched::process(i32::try_from(child.id()).unwrap());
        assert!(!watched.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(watched.is_gone());

        let path = std::env::temp_dir().join(format!("tapway-target-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let watched = Watched::file(&path);
        assert!(!watched.is_gone());
        std::fs::remove_file(&path).unwrap();
        assert!(watched.is_gone());
        assert!(!Watched::Unknown.is_gone());
    }
}
