//! The verbs by which a sandbox is entered and ended, and the stop that is under way.
//!
//! ```text
//!            send_signal                  stop                                    [GRACE] later
//! running ───────────────► running      ───────► stopping ── `seconds` ──► killed ────────────► its first process is killed
//! ```
//!
//! Signals go to the command through the sandbox's first process, which is its parent: no process id is ever guessed. Who
//! asked for the stop is answered when nothing of the sandbox is left. A second `stop` while one is under way sends its
//! signal too; the earlier end counts.
//!
//! Namespaces are opened when they are asked for, as those of the first process, which is the monitor's unreaped child: its
//! number can be nobody else's. Whoever is handed them could reach the same by /proc, but not without a race.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Map, Value};

use super::control::Key;
use super::users::Identity;
use crate::api::error::{self, ApiError, Code};
use crate::api::verbs::life::{GetNamespaces, IdRange, NamespaceKind, Namespaces, SendSignal, Stop, VERBS};
use crate::sys;

/// How long the command may take to end by itself, as with Docker.
pub const STOP_TIME: Duration = Duration::from_secs(10);
/// Most seconds of a `stop`.
const MAX_SECONDS: u32 = 86_400;
/// How long the end of a command that was killed may take before the first process is killed.
const GRACE: Duration = Duration::from_secs(2);

/// Kinds in the order in which they are entered, and their flags. After the user namespace any order would do, but the
/// process ids come last: entering them counts for children only.
const KINDS: [(NamespaceKind, &str, CloneFlags); 6] = [
    (NamespaceKind::User, "user", CloneFlags::CLONE_NEWUSER),
    (NamespaceKind::Net, "net", CloneFlags::CLONE_NEWNET),
    (NamespaceKind::Uts, "uts", CloneFlags::CLONE_NEWUTS),
    (NamespaceKind::Ipc, "ipc", CloneFlags::CLONE_NEWIPC),
    (NamespaceKind::Mnt, "mnt", CloneFlags::CLONE_NEWNS),
    (NamespaceKind::Pid, "pid", CloneFlags::CLONE_NEWPID),
];

/// The flag of a kind, as setns(2) takes it.
pub fn flag(kind: NamespaceKind) -> CloneFlags {
    KINDS.iter().find(|(known, ..)| *known == kind).map_or(CloneFlags::empty(), |&(_, _, flag)| flag)
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// The namespaces.
    Namespaces,
    /// The command is sent this.
    Signal(Signal),
    /// The command is sent this, and killed after a while.
    Stop(Signal, Duration),
}

/// Reads a request of this group; None if it is of another.
pub fn read(verb: &str, arguments: Map<String, Value>) -> Option<Result<Wish, ApiError>> {
    Some(match verb {
        "get_namespaces" => error::arguments(verb, arguments).map(|GetNamespaces {}| Wish::Namespaces),
        "send_signal" => error::arguments(verb, arguments)
            .and_then(|SendSignal { signal }| Ok(Wish::Signal(named_signal(verb, &signal)?))),
        "stop" => error::arguments(verb, arguments).and_then(|Stop { signal, seconds }| {
            let signal = signal.map_or(Ok(Signal::SIGTERM), |name| named_signal(verb, &name))?;
            match seconds {
                Some(seconds) if seconds > MAX_SECONDS => Err(ApiError::new(
                    Code::BadArgument,
                    format!("stop: seconds: {seconds} is more than a day ({MAX_SECONDS})"),
                )),
                seconds => {
                    let time = seconds.map_or(STOP_TIME, |seconds| Duration::from_secs(seconds.into()));
                    Ok(Wish::Stop(signal, time))
                }
            }
        }),
        _ => {
            debug_assert!(!VERBS.contains(&verb));
            return None;
        }
    })
}

fn named_signal(verb: &str, name: &str) -> Result<Signal, ApiError> {
    parse_signal(name).ok_or_else(|| {
        let shown: String = name.chars().take(64).collect();
        ApiError::new(Code::BadArgument, format!("{verb}: signal: '{shown}' is no signal; give one such as TERM or 15"))
    })
}

/// `TERM`, `SIGTERM`, `sigterm` or `15`.
pub fn parse_signal(text: &str) -> Option<Signal> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    }
    let upper = text.to_ascii_uppercase();
    if upper.starts_with("SIG") { upper.parse().ok() } else { format!("SIG{upper}").parse().ok() }
}

/// Opens the namespaces of the first process `init` that are in `own`, and the process itself.
pub fn open(init: Pid, own: CloneFlags, identity: Identity) -> Result<(Namespaces, Vec<OwnedFd>), ApiError> {
    let fail = |what: &str, error: &std::io::Error| {
        ApiError::new(Code::Internal, format!("get_namespaces: cannot open the {what} of the sandbox: {error}"))
    };
    let (mut namespaces, mut fds) = (Vec::new(), Vec::new());
    for (kind, name, flag) in KINDS {
        if own.contains(flag) {
            let file = File::open(format!("/proc/{init}/ns/{name}"));
            fds.push(file.map_err(|error| fail(&format!("{name} namespace"), &error))?.into());
            namespaces.push(kind);
        }
    }
    fds.push(sys::fd::process(init.as_raw()).map_err(|error| fail("first process", &error))?);
    let ranges = |file: &str| {
        let text = std::fs::read_to_string(format!("/proc/{init}/{file}"));
        text.map(|text| parse_map(&text)).map_err(|error| fail(file, &error))
    };
    let Identity { uid, gid } = identity;
    let (uids, gids) = (ranges("uid_map")?, ranges("gid_map")?);
    Ok((Namespaces { namespaces, pid: init.as_raw().cast_unsigned(), uid, gid, uids, gids }, fds))
}

/// Ids inside, from the text of a uid_map (user_namespaces(7)).
fn parse_map(text: &str) -> Vec<IdRange> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?.parse().ok()?;
        Some(IdRange { first, count: words.nth(1)?.parse().ok()? })
    };
    text.lines().filter_map(line).collect()
}

/// True if `id` exists inside.
pub fn exists(ranges: &[IdRange], id: u32) -> bool {
    ranges.iter().any(|range| id >= range.first && id - range.first < range.count)
}

/// The stop that is under way.
#[derive(Debug, Default)]
pub struct Stopping {
    waiting: Vec<Key>,
    kill_at: Option<Duration>,
    end_at: Option<Duration>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The command is to be killed.
    Kill,
    /// The first process is to be killed.
    End,
}

impl Stopping {
    /// A client wants the command to have ended within `time`.
    pub fn begin(&mut self, key: Key, time: Duration, now: Duration) {
        self.waiting.push(key);
        if self.end_at.is_none() {
            let at = now + time;
            self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
        }
    }

    /// The command has been sent SIGKILL.
    pub fn killed(&mut self, now: Duration) {
        self.kill_at = None;
        self.end_at.get_or_insert(now + GRACE);
    }

    /// When to call [`Self::poll_due`].
    pub fn next_timeout(&self) -> Option<Duration> {
        self.kill_at.or(self.end_at)
    }

    /// What is to be done by now.
    pub fn poll_due(&mut self, now: Duration) -> Option<Due> {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.killed(now);
            return Some(Due::Kill);
        }
        self.end_at.is_some_and(|at| at <= now).then_some(Due::End)
    }

    /// Who waits for the end.
    pub fn waiting(&self) -> &[Key] {
        &self.waiting
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_json(verb: &str, arguments: Value) -> Result<Wish, String> {
        let Value::Object(arguments) = arguments else { panic!("no object") };
        read(verb, arguments).unwrap().map_err(|error| error.desc)
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "term", "sigTerm", "15"] {
            assert_eq!(parse_signal(text), Some(Signal::SIGTERM), "{text}");
        }
        for text in ["", "0", "65", "SIG", "SIGSIGTERM", "-15", " 15", "é", "99999999999999999999"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }

    #[test]
    fn requests_are_read() {
        assert_eq!(read_json("get_namespaces", json!({})), Ok(Wish::Namespaces));
        assert_eq!(read_json("send_signal", json!({ "signal": "HUP" })), Ok(Wish::Signal(Signal::SIGHUP)));
        assert_eq!(read_json("stop", json!({})), Ok(Wish::Stop(Signal::SIGTERM, STOP_TIME)));
        let quick = json!({ "signal": "9", "seconds": 0 });
        assert_eq!(read_json("stop", quick), Ok(Wish::Stop(Signal::SIGKILL, Duration::ZERO)));
        for (verb, arguments, word) in [
            ("get_namespaces", json!({ "pid": 1 }), "pid"),
            ("send_signal", json!({}), "signal"),
            ("send_signal", json!({ "signal": "FOO" }), "'FOO'"),
            ("stop", json!({ "seconds": 90_000 }), "90000"),
            ("stop", json!({ "seconds": -1 }), "-1"),
            ("stop", json!({ "signal": 15 }), "15"),
        ] {
            let desc = read_json(verb, arguments).unwrap_err();
            assert!(desc.contains(word) && desc.starts_with(verb), "{desc}");
        }
        assert_eq!(read("publish", Map::new()), None);
    }

    #[test]
    fn a_stop_kills_and_then_ends() {
        let at = Duration::from_secs;
        let mut stop = Stopping::default();
        assert_eq!((stop.next_timeout(), stop.poll_due(at(100))), (None, None));
        stop.begin(1, at(10), at(0));
        // Somebody who is in more of a hurry; and one who is not.
        stop.begin(2, at(3), at(1));
        stop.begin(3, at(60), at(1));
        assert_eq!((stop.next_timeout(), stop.poll_due(at(3))), (Some(at(4)), None));
        assert_eq!(stop.poll_due(at(4)), Some(Due::Kill));
        assert_eq!((stop.next_timeout(), stop.poll_due(at(5))), (Some(at(6)), None));
        stop.begin(4, at(0), at(5));
        assert_eq!(stop.poll_due(at(6)), Some(Due::End));
        assert_eq!(stop.waiting(), [1, 2, 3, 4]);
    }

    #[test]
    fn ids_inside() {
        let map = parse_map("         0       1000          1\n         1     100000      65536\njunk\n");
        assert_eq!(map, [IdRange { first: 0, count: 1 }, IdRange { first: 1, count: 65536 }]);
        assert!(exists(&map, 0) && exists(&map, 65536) && !exists(&map, 65537));
    }

    #[test]
    fn every_kind_has_a_flag() {
        assert!(KINDS.iter().all(|&(kind, _, expected)| flag(kind) == expected));
    }
}
