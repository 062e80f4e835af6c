//! The process that writes a log: records come by a pipe, and it ends with the pipe.
//!
//! Records are written whole. When a file would become longer than [`MAX_FILE`], it becomes the previous one, and the
//! previous one goes. What cannot be written (a full disk, a directory that is gone) is dropped and counted; the next record
//! that can be written has a note before it. A write that fails half-way is taken back.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::record::{self, Stream};
use crate::sandbox::child::Child;
use crate::sys::spawn::{self, Forked};
use crate::telemetry::time;

/// Most bytes of a log file; there are two.
pub const MAX_FILE: u64 = 10 << 20;
/// Bytes read at once.
const READ: usize = 64 * 1024;

/// The file before `path`.
pub fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Starts a keeper that writes to `path` what comes by `pipe`.
pub fn start(pipe: &OwnedFd, path: &Path) -> nix::Result<Child> {
    match spawn::fork()? {
        Forked::Parent(pid) => Ok(Child::new(pid)),
        Forked::Child => spawn::leave_with(|| {
            spawn::close_all_but(&[pipe.as_fd()]);
            let _ = nix::unistd::setsid();
            if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
                let _ = nix::unistd::dup2_stdin(&null);
                let _ = nix::unistd::dup2_stdout(&null);
                let _ = nix::unistd::dup2_stderr(&null);
            }
            // Whatever ends the sandbox ends the pipe: nothing is to cut the last lines off.
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
            crate::sys::memory::drop_text();
            run(pipe, &mut Log::new(path, MAX_FILE));
            0
        }),
    }
}

fn run(pipe: &OwnedFd, log: &mut Log) {
    let (mut bytes, mut held) = (vec![0; READ], Vec::new());
    loop {
        match nix::unistd::read(pipe, &mut bytes) {
            Ok(0) => return,
            Ok(length) => held.extend_from_slice(&bytes[..length]),
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        }
        // Bounded: a record is, and the rest of one is all that stays.
        if let Some(end) = held.iter().rposition(|&byte| byte == b'\n') {
            log.append(&held[..=end]);
            held.drain(..=end);
        }
    }
}

/// A log file.
struct Log {
    path: PathBuf,
    limit: u64,
    file: Option<(File, u64)>,
    lost_lines: u64,
    lost_bytes: u64,
}

impl Log {
    fn new(path: &Path, limit: u64) -> Self {
        Self { path: path.to_owned(), limit, file: None, lost_lines: 0, lost_bytes: 0 }
    }

    /// Writes whole records, or none of them.
    fn append(&mut self, records: &[u8]) {
        let mut text = Vec::new();
        if self.lost_lines > 0 {
            let note = format!(
                "tapway: {} lines of output ({} bytes) are missing here: the disk did not take them",
                self.lost_lines, self.lost_bytes
            );
            record::write(&mut text, time::now(), Stream::Tapway, true, note.as_bytes());
        }
        text.extend_from_slice(records);
        if self.write(&text).is_ok() {
            (self.lost_lines, self.lost_bytes) = (0, 0);
        } else {
            self.lost_lines += records.split_inclusive(|&byte| byte == b'\n').count() as u64;
            self.lost_bytes += records.len() as u64;
        }
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let length = text.len() as u64;
        if self.file.as_ref().is_some_and(|(_, size)| size + length > self.limit) {
            std::fs::rename(&self.path, previous(&self.path))?;
            self.file = None;
        }
        let (file, size) = match &mut self.file {
            Some(open) => open,
            none => {
                let mut options = OpenOptions::new();
                options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
                let file = options.open(&self.path)?;
                let size = file.metadata()?.len();
                none.insert((file, size))
            }
        };
        match file.write_all(text) {
            Ok(()) => *size += length,
            Err(error) => {
                file.set_len(*size)?;
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Temp(PathBuf);

    impl Temp {
        fn new(tag: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tapway-keeper-{}-{tag}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn two_files_of_whole_records() {
        let dir = Temp::new("two");
        let path = dir.0.join("x.log");
        let mut log = Log::new(&path, 100);
        for number in 0..20 {
            log.append(format!("record {number:02} of ten and more bytes\n").as_bytes());
        }
        let (now, before) = (std::fs::read(&path).unwrap(), std::fs::read(previous(&path)).unwrap());
        assert!(now.len() <= 100 && before.len() <= 100 && now.ends_with(b"19 of ten and more bytes\n"));
        assert!(before.starts_with(b"record ") && before.ends_with(b"\n") && now.starts_with(b"record "));
        // Nothing is missing between them.
        let all = String::from_utf8([before, now].concat()).unwrap();
        let numbers: Vec<u32> = all.lines().map(|line| line[7..9].parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    }

    #[test]
    fn what_is_lost_is_told() {
        let dir = Temp::new("lost");
        let path = dir.0.join("sub/x.log");
        let mut log = Log::new(&path, 1000);
        log.append(b"one\ntwo\n");
        log.append(b"three\n");
        std::fs::create_dir(dir.0.join("sub")).unwrap();
        log.append(b"four\n");
        log.append(b"five\n");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].ends_with(
                " tapway F tapway: 3 lines of output (14 bytes) are missing here: the disk did not take them"
            )
        );
        assert_eq!(lines[1..], ["four", "five"]);
    }

    #[test]
    fn a_full_disk_leaves_no_half_records() {
        // Always full (full(4)).
        let mut log = Log::new(Path::new("/dev/full"), 1000);
        log.append(b"one\n");
        assert_eq!((log.lost_lines, log.lost_bytes), (1, 4));
    }
}
