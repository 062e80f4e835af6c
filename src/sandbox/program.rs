//! The program that further processes are executed from, when that which runs is no longer the one that is installed.
//!
//! A monitor lives as long as its sandbox, over updates of tapway. A network process that it starts meanwhile (`sandbox::uplink`,
//! `sandbox::shared`) is therefore of the file that is now where the monitor's own was when it began, if that is another. The old one
//! still runs, as /proc/self/exe, and is what is fallen back on: a new program that does not come to serve is not tried again.
//!
//! Nobody says which program that is: not a client, not the environment. Whoever may write where tapway is installed may.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The program that runs, whatever has become of its file.
pub const OWN: &str = "/proc/self/exe";

/// Where it was when it began.
static AT: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Notes where this program is: at its start, while that is known.
pub fn note() {
    AT.get_or_init(|| std::fs::read_link(OWN).ok());
}

/// A program that has been put where this one's was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newer {
    /// Its path.
    pub path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

/// The program that is installed now, if it is another than this one and may be executed.
pub fn newer() -> Option<Newer> {
    newer_than(Path::new(OWN), AT.get()?.as_ref()?)
}

fn newer_than(own: &Path, at: &Path) -> Option<Newer> {
    let (own, now) = (std::fs::metadata(own).ok()?, std::fs::metadata(at).ok()?);
    let identity = (now.dev(), now.ino());
    let executable = now.is_file() && now.permissions().mode() & 0o111 != 0;
    (executable && identity != (own.dev(), own.ino())).then(|| Newer { path: at.to_owned(), identity })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    #[test]
    fn another_file_that_may_be_executed_is_newer() {
        let dir = std::env::temp_dir().join(format!("tapway-program-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (own, at) = (dir.join("own"), dir.join("at"));
        std::fs::write(&own, "").unwrap();
        assert_eq!(newer_than(&own, &at), None, "nothing is there");
        std::fs::hard_link(&own, &at).unwrap();
        std::fs::set_permissions(&own, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(newer_than(&own, &at), None, "the same");
        std::fs::remove_file(&at).unwrap();
        std::fs::write(&at, "").unwrap();
        std::fs::set_permissions(&at, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(newer_than(&own, &at), None, "no program");
        std::fs::set_permissions(&at, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(newer_than(&own, &at).unwrap().path, at);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
