//! Which logs there are: one `ID.json` beside each `ID.log`, with what the state file told of the sandbox, and how it ended.
//!
//! Logs of sandboxes that have ended stay until `tapway rm`, but of these only the newest [`KEPT`], and none for longer than
//! [`KEPT_FOR`]; the rest goes when another detached sandbox begins. Which of them run, the state files say.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keeper;
use crate::sandbox::state::Sandbox;

/// Ended sandboxes whose logs are kept.
pub const KEPT: usize = 100;
/// How long.
pub const KEPT_FOR: Duration = Duration::from_hours(7 * 24);
/// Largest description that is read, in bytes, as of a state file.
const MAX_FILE: u64 = 8 << 20;

/// One sandbox that has, or had, logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// As its state file told it.
    pub sandbox: Sandbox,
    /// When it ended, in milliseconds since 1970; None: it runs, or its monitor was killed.
    #[serde(default)]
    pub ended: Option<u64>,
    /// Its exit code.
    #[serde(default)]
    pub code: Option<u8>,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

impl Store {
    /// The one in tapway's state directory `dir`; nothing is made yet.
    pub fn at(dir: &Path) -> Self {
        Self(dir.join("logs"))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The log of a sandbox.
    pub fn log(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.log"))
    }

    fn description(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }

    /// Makes the directory, for this user alone, and an empty log.
    pub fn begin(&self, kept: &Kept) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        self.describe(kept)?;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(self.log(&kept.sandbox.id)).map(drop)
    }

    /// Writes a description, whole or not at all.
    pub fn describe(&self, kept: &Kept) -> io::Result<()> {
        let (path, text) = (self.description(&kept.sandbox.id), serde_json::to_vec(kept)?);
        let new = path.with_extension("json.new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, path)
    }

    /// Removes a sandbox's files.
    pub fn remove(&self, id: &str) {
        let log = self.log(id);
        for path in [keeper::previous(&log), log, self.description(id)] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// All of them, the newest first.
    pub fn all(&self) -> Vec<Kept> {
        let Ok(entries) = std::fs::read_dir(&self.0) else { return Vec::new() };
        let paths = entries.flatten().map(|entry| entry.path());
        let mut all: Vec<Kept> =
            paths.filter(|p| p.extension().is_some_and(|e| e == "json")).filter_map(read).collect();
        all.sort_by_key(|kept| std::cmp::Reverse(kept.sandbox.about.created));
        all
    }

    /// The newest of this name, or the one of this id or of an unambiguous beginning of one.
    pub fn find(&self, typed: &str) -> Option<Kept> {
        let all = self.all();
        if let Some(found) = all.iter().find(|kept| kept.sandbox.name == typed) {
            return Some(found.clone());
        }
        let mut by_id = all.into_iter().filter(|kept| !typed.is_empty() && kept.sandbox.id.starts_with(typed));
        by_id.next().filter(|_| by_id.next().is_none())
    }

    /// Removes what is kept no longer; `running` are the ids of those that run.
    pub fn prune(&self, running: &BTreeSet<String>, now: Duration) {
        let ended =
            |kept: &Kept| kept.ended.or(kept.sandbox.about.created).map_or(Duration::ZERO, Duration::from_millis);
        let over = self.all().into_iter().filter(|kept| !running.contains(&kept.sandbox.id));
        for (place, kept) in over.enumerate() {
            if place >= KEPT || now.saturating_sub(ended(&kept)) > KEPT_FOR {
                self.remove(&kept.sandbox.id);
            }
        }
    }
}

fn read(path: PathBuf) -> Option<Kept> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sandbox::state::About;

    struct Temp(PathBuf);

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn kept(id: u64, name: &str, ended: Option<u64>) -> Kept {
        let about = About { created: Some(id * 1000), detached: true, ..About::default() };
        let sandbox = Sandbox { id: format!("{id:012x}"), name: name.to_owned(), pid: 1, ports: vec![], about };
        Kept { sandbox, ended, code: ended.map(|_| 0) }
    }

    fn store(tag: &str) -> (Temp, Store) {
        let path = std::env::temp_dir().join(format!("tapway-logs-{}-{tag}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        (Temp(path.clone()), Store::at(&path))
    }

    #[test]
    fn found_by_name_and_id() {
        let (_temp, store) = store("find");
        assert_eq!((store.all(), store.find("web")), (vec![], None));
        let (old, new) = (kept(1, "web", Some(1500)), kept(2, "web", None));
        store.begin(&old).unwrap();
        store.begin(&new).unwrap();
        assert_eq!(store.all(), [new.clone(), old.clone()]);
        assert_eq!(store.find("web"), Some(new.clone()));
        assert_eq!(store.find("000000000001"), Some(old));
        assert_eq!(store.find("0000"), None);
        assert_eq!(store.find(""), None);
        assert!(store.begin(&new).is_err(), "an id is never used twice");
        store.remove("000000000002");
        assert_eq!(std::fs::read_dir(store.dir()).unwrap().count(), 2);
    }

    #[test]
    fn old_ones_go() {
        let (_temp, store) = store("prune");
        for id in 1..=KEPT as u64 + 3 {
            store.begin(&kept(id, "x", Some(id * 1000 + 1))).unwrap();
        }
        let running = BTreeSet::from([format!("{:012x}", 1)]);
        store.prune(&running, Duration::from_secs(200));
        // The running one, and as many as are kept.
        assert_eq!(store.all().len(), KEPT + 1);
        assert!(store.find("000000000001").is_some() && store.find("000000000002").is_none());
        store.prune(&running, KEPT_FOR + Duration::from_secs(50));
        assert_eq!(store.all().last().map(|kept| kept.sandbox.id.clone()), Some(format!("{:012x}", 1)));
        assert!(store.all().len() < KEPT);
    }
}
