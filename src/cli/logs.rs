//! `tapway logs`: what a detached sandbox printed, and prints.
//!
//! Read off the files that its keeper writes (`sandbox::logs`): the previous one, then the current one. With `--follow` the
//! directory is watched; a file that became the previous one is read to its end before the next is begun; and all is over
//! when the sandbox is and nothing is left to read. What the command wrote to standard error goes to standard error, and
//! so does tapway's own log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Read as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{FAILURE, Failure, target};
use crate::sandbox::logs::keeper;
use crate::sandbox::logs::record::{self, Record, Stream};
use crate::sandbox::logs::store::{Kept, Store};
use crate::sandbox::state;
use crate::telemetry::time;

const EXAMPLES: &str = "\
Examples:
  tapway logs site
  tapway logs -f --tail 20 site
      the last twenty lines, and what comes, until the sandbox ends
  tapway logs --since 10m --timestamps site 2>/dev/null

Sandboxes of `tapway run --detach` have logs: two files of 10 MiB, the older half goes first. When the sandbox has ended
they stay until `tapway rm`, but only those of the last hundred, and for a week; --rm keeps none.";

/// How often it is looked whether the sandbox still runs.
const LOOK: u16 = 500;
/// Bytes read at once.
const READ: usize = 256 * 1024;

/// Arguments of `tapway logs`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct LogsArgs {
    /// Name or id of the sandbox
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Go on as more comes, until the sandbox ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only so many lines at the end, or 'all'
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    pub tail: String,
    /// Only what came after: a time such as 2026-01-31T12:00:00Z, or a span before now such as 10m
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Print the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
}

/// Does it.
pub fn main(args: &LogsArgs) -> Result<u8, Failure> {
    let tail = match args.tail.as_str() {
        "all" => None,
        text => Some(text.parse::<usize>().map_err(|_| {
            Failure::usage(format!("tail '{text}' is not a number of lines; give one such as 20, or 'all'"))
        })?),
    };
    let since = match &args.since {
        Some(text) => Some(time::parse(text, time::now()).ok_or_else(|| {
            Failure::usage(format!("'{text}' is not a time; give one such as 2026-01-31T12:00:00Z, 2026-01-31 or 10m"))
        })?),
        None => None,
    };
    let runtime_dir = target::runtime_dir()?;
    let store = store(&runtime_dir);
    let kept = find(&runtime_dir, &store, &args.sandbox)?;
    let mut out = Out { since: since.map(time::rfc3339), timestamps: args.timestamps, streams: Streams::default() };
    let log = store.log(&kept.sandbox.id);
    // Before anything is read, so that no change is missed.
    let watch = if args.follow { watch(store.dir()) } else { None };
    match show(&log, tail, &mut out).map(|reader| Some(reader).filter(|_| args.follow)) {
        Ok(Some(reader)) => {
            follow(reader, &log, watch.as_ref(), &mut out, || state::find(&runtime_dir, &kept.sandbox.id).is_ok())
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    }
    .and_then(|()| out.streams.flush())
    .map(|()| 0)
    .or_else(|error| match error.kind() {
        // A reader that has seen enough.
        ErrorKind::BrokenPipe => Ok(0),
        _ => Err(Failure { code: FAILURE, line: format!("cannot show the logs of {}: {error}", args.sandbox) }),
    })
}

/// Where logs are.
pub fn store(runtime_dir: &Path) -> Store {
    Store::at(&state::lasting_dir().unwrap_or_else(|| runtime_dir.to_owned()))
}

/// The sandbox that runs, or else the newest that did.
fn find(runtime_dir: &Path, store: &Store, typed: &str) -> Result<Kept, Failure> {
    let failure = |line| Err(Failure { code: FAILURE, line });
    if let Ok(running) = state::find(runtime_dir, typed) {
        return match store.find(&running.id) {
            Some(kept) => Ok(kept),
            None => failure(format!(
                "sandbox {} runs in the foreground, where its output is; logs are kept by `tapway run --detach`",
                running.name
            )),
        };
    }
    store.find(typed).map_or_else(|| failure(format!("No such container: {typed}")), Ok)
}

#[derive(Default)]
struct Streams {
    stdout: Option<BufWriter<io::Stdout>>,
    stderr: Option<BufWriter<io::Stderr>>,
}

impl Streams {
    fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        // What is on both comes out in the order in which it was printed, wherever that can be.
        if stream == Stream::Stdout {
            self.stderr.as_mut().map_or(Ok(()), Write::flush)?;
            self.stdout.get_or_insert_with(|| BufWriter::new(io::stdout())).write_all(bytes)
        } else {
            self.stdout.as_mut().map_or(Ok(()), Write::flush)?;
            self.stderr.get_or_insert_with(|| BufWriter::new(io::stderr())).write_all(bytes)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.as_mut().map_or(Ok(()), Write::flush)?;
        self.stderr.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// What is shown of a record, and how.
struct Out {
    since: Option<String>,
    timestamps: bool,
    streams: Streams,
}

impl Out {
    fn wants(&self, record: &Record<'_>) -> bool {
        self.since.as_deref().is_none_or(|since| record.time >= since)
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(record) = record::read(line).filter(|record| self.wants(record)) else { return Ok(()) };
        let mut text = Vec::with_capacity(record.text.len() + 32);
        if self.timestamps {
            text.extend_from_slice(record.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(record.text);
        // With times each part is a line, or they could not be told from the text.
        if record.whole || self.timestamps {
            text.push(b'\n');
        }
        self.streams.write(record.stream, &text)
    }
}

/// A log file that is read from its beginning as it grows.
struct Reader {
    file: File,
    rest: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self { file, rest: Vec::new() })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every whole line that is there.
    fn read(&mut self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut bytes = vec![0; READ];
        loop {
            match self.file.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(length) => self.rest.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else { continue };
            for line in self.rest[..end].split(|&byte| byte == b'\n') {
                each(line)?;
            }
            self.rest.drain(..=end);
        }
    }

    /// True if this file is at `path` no more.
    fn is_replaced(&self, path: &Path) -> io::Result<bool> {
        let own = self.file.metadata()?;
        Ok(std::fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) != (own.dev(), own.ino())))
    }
}

/// What is there. The reader of the current file, to go on with.
fn show(log: &Path, tail: Option<usize>, out: &mut Out) -> io::Result<Reader> {
    // The current file first: if it becomes the previous one now, it is read twice rather than not at all; so that it
    // is not, what was opened is compared.
    let gone = || io::Error::new(ErrorKind::NotFound, "the file is gone");
    let mut current = Reader::open(log)?.ok_or_else(gone)?;
    let before = Reader::open(&keeper::previous(log))?;
    let is_other = |reader: &Reader| {
        let same = |a: io::Result<std::fs::Metadata>, b: std::fs::Metadata| a.is_ok_and(|a| a.ino() == b.ino());
        current.file.metadata().is_ok_and(|own| !same(reader.file.metadata(), own))
    };
    let before = before.filter(is_other);
    let mut last = VecDeque::new();
    let mut lines = 0;
    let mut each = |line: &[u8]| match tail {
        None => out.put(line),
        Some(tail) => {
            let whole = |line: &[u8]| usize::from(record::read(line).is_none_or(|record| record.whole));
            if record::read(line).is_some_and(|record| out.wants(&record)) {
                last.push_back(line.to_vec());
                lines += whole(line);
            }
            while lines > tail
                && let Some(first) = last.pop_front()
            {
                lines -= whole(&first);
            }
            Ok(())
        }
    };
    if let Some(mut before) = before {
        before.read(&mut each)?;
    }
    current.read(&mut each)?;
    last.iter().try_for_each(|line| out.put(line))?;
    Ok(current)
}

/// What comes, until the sandbox is over.
fn follow(
    mut reader: Reader,
    log: &Path,
    watch: Option<&Inotify>,
    out: &mut Out,
    runs: impl Fn() -> bool,
) -> io::Result<()> {
    loop {
        // In this order: what was written before the end is read after it.
        let (over, replaced) = (!runs(), reader.is_replaced(log)?);
        reader.read(|line| out.put(line))?;
        out.streams.flush()?;
        if replaced && let Some(next) = Reader::open(log)? {
            reader = next;
            continue;
        }
        if over {
            return Ok(());
        }
        wait(watch);
    }
}

/// Watches a directory, where that can be had.
fn watch(dir: &Path) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    inotify.add_watch(dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_CREATE).ok()?;
    Some(inotify)
}

/// Until something changes there, or for a moment.
fn wait(watch: Option<&Inotify>) {
    match watch {
        Some(inotify) => {
            let _ = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK));
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        None => std::thread::sleep(Duration::from_millis(LOOK.into())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(tail: Option<usize>, since: Option<Duration>, files: [&[u8]; 2]) -> Vec<String> {
        let path = std::env::temp_dir().join(format!("tapway-logs-cli-{}-{tail:?}-{since:?}", std::process::id()));
        std::fs::write(keeper::previous(&path), files[0]).unwrap();
        std::fs::write(&path, files[1]).unwrap();
        let mut reader = Reader::open(&path).unwrap().unwrap();
        let mut all = Vec::new();
        let mut out = Out { since: since.map(time::rfc3339), timestamps: false, streams: Streams::default() };
        reader
            .read(|line| {
                all.push(String::from_utf8_lossy(line).into_owned());
                Ok(())
            })
            .unwrap();
        show(&path, tail, &mut out).unwrap();
        std::fs::remove_file(keeper::previous(&path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        all
    }

    #[test]
    fn half_a_line_waits() {
        assert_eq!(
            lines(
                None,
                None,
                [
                    b"",
                    b"one
two
thr"
                ]
            ),
            ["one", "two"]
        );
        assert_eq!(
            lines(
                Some(1),
                None,
                [
                    b"x
", b""
                ]
            ),
            [""; 0]
        );
    }
}
