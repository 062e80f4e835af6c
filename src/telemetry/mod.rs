//! Logging: what tapway tells on stderr, and how it keeps quiet.
//!
//! Each process of tapway (monitor, network process) calls [`init`] once, at its start. Events go to stderr, one line
//! each, written with a single `write(2)`, so that two processes sharing a terminal do not mix their lines. Two formats:
//!
//! ```text
//! text, no -v    tapway: warn: the text of the event key=value
//! text, -v…      2026-11-21T05:25:43.120381Z tapway: info: the text of the event key=value
//! json           {"timestamp":"…","level":"WARN","fields":{"message":"…","key":"value"},"target":"tapway::link"}
//! ```
//!
//! The level comes from the number of -v: warnings, then info, debug, trace. `TAPWAY_LOG`, when set, takes directives as
//! `tapway::stack=debug,warn` instead; it costs a regex engine's start-up, which is why the variable and not the level is
//! what switches it on: `init` stands on the path from `tapway run` to the command.
//!
//! [`set_level`] changes both while the process runs: the filter stands behind a lock that only a changed filter takes for
//! writing, and what it said of each call site is remembered by `tracing` as ever. A process that is forked has the level
//! of the one that forked it.
//!
//! Deliberately not here: log files, syslog, rotation (stderr is the caller's to direct), and any log call on the path of
//! a frame. What a guest can provoke at will is said once, or counted. Control characters in values are escaped
//! by the formatter, so a hostile name cannot drive the user's terminal.

pub mod time;

use std::fmt;
use std::io::{IsTerminal, StderrLock};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Environment variable with filter directives (`target=level,…`); replaces the level of -v when set and not empty.
pub const ENV: &str = "TAPWAY_LOG";

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to stderr: warnings, and more with each -v.
///
/// A second call in one process changes nothing. A bad `TAPWAY_LOG` is reported and the level of -v holds.
pub fn init(verbosity: u8, format: LogFormat) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    init_with(verbosity, format, colour);
}

/// The same, with colours or without whatever stderr is.
pub fn init_with(verbosity: u8, format: LogFormat, colour: bool) {
    let level = level(verbosity);
    let directives = std::env::var(ENV).ok().filter(|text| !text.is_empty());
    let read = directives.map(|text| match EnvFilter::try_new(&text) {
        Ok(filter) => Ok((filter, text)),
        Err(error) => Err((text, error)),
    });
    let (filter, text, complaint) = match read {
        None => (Filter::Level(level), level.to_string(), None),
        Some(Ok((filter, text))) => (Filter::Directives(Box::new(filter)), text, None),
        Some(Err(bad)) => (Filter::Level(level), level.to_string(), Some(bad)),
    };
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let (subscriber, change) = subscriber(filter, format, verbosity > 0, colour, || Stderr);
    // The error of `try_init` says only that a subscriber is there already.
    if subscriber.try_init().is_ok() {
        let _ = CHANGE.set(change);
        note(&text);
    }
    if let Some((text, error)) = complaint {
        tracing::warn!("{ENV}={text} is not a list of target=level directives ({error}); it is ignored");
    }
}

/// Standard error, where nobody minds what is not taken: a reader that is gone or slow must neither make a log line an error
/// of its own nor hold up who logs, which may be the thread that forwards frames. A pipe or terminal that has no room for
/// [`PATIENCE`] is not waited for again until it has: lines are left out meanwhile, and the next one is preceded by their
/// number. A regular file is always written to; a disk that blocks blocks its writer.
struct Stderr;

/// How long a reader of standard error is waited for, once. Longer than any that is alive and loaded takes for a line, and
/// no longer than a frame may be late without a program's noticing.
const PATIENCE: Duration = Duration::from_millis(50);
/// What a pipe that polls as writable takes without blocking (PIPE_BUF, limits.h; pipe(7)).
const AT_ONCE: usize = 4096;
/// Lines that were left out and not told yet.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);
/// Lines are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// True if standard error has room. After one that did not it is no longer waited for.
fn has_room(stderr: &StderrLock<'_>) -> bool {
    let patience = if LEFT_OUT.load(Ordering::Relaxed) == 0 { PATIENCE } else { Duration::ZERO };
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // What cannot be polled is written to, for better or worse.
    poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO)) != Ok(0)
}

fn left_out(lines: u64) -> String {
    let what = format!("{lines} lines of the log are missing here: nobody read them");
    if JSON.load(Ordering::Relaxed) {
        format!("{{\"level\":\"WARN\",\"fields\":{{\"message\":\"{what}\"}},\"target\":\"{}\"}}\n", module_path!())
    } else {
        format!("tapway: warn: {what}\n")
    }
}

impl std::io::Write for Stderr {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        // Held over looking and writing, so that no other thread takes the room between.
        let mut stderr = std::io::stderr().lock();
        for part in text.chunks(AT_ONCE) {
            if !has_room(&stderr) {
                LEFT_OUT.fetch_add(1, Ordering::Relaxed);
                break;
            }
            let missing = LEFT_OUT.swap(0, Ordering::Relaxed);
            if missing > 0 {
                let _ = stderr.write_all(left_out(missing).as_bytes());
                if !has_room(&stderr) {
                    LEFT_OUT.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
            let _ = stderr.write_all(part);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Puts another filter in place of the one there is.
type Change = Box<dyn Fn(Filter) -> Result<(), reload::Error> + Send + Sync>;

/// Of this process.
static CHANGE: OnceLock<Change> = OnceLock::new();

/// Why the level cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// Neither a level nor directives.
    #[error("'{}' is neither a level nor a list of target=level directives", .0.escape_debug())]
    Text(String),
    /// Nothing is logged in this process.
    #[error("this process has no log")]
    NoLog,
}

/// Sets what is logged from now on: a level (`off`, `error`, `warn`, `info`, `debug`, `trace`) or directives.
pub fn set_level(text: &str) -> Result<(), LevelError> {
    let filter = filter_of(text)?;
    CHANGE.get().and_then(|change| change(filter).ok()).ok_or(LevelError::NoLog)?;
    note(text);
    Ok(())
}

/// As [`in_force`] tells it.
static IN_FORCE: Mutex<String> = Mutex::new(String::new());

fn note(text: &str) {
    text.clone_into(&mut IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner));
}

/// True if lines are JSON.
pub fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// What is logged now, in the words that set it: a level or directives. Empty where nothing is.
pub fn in_force() -> String {
    IN_FORCE.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn filter_of(text: &str) -> Result<Filter, LevelError> {
    let bad = || LevelError::Text(text.to_owned());
    if text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    if let Ok(level) = text.parse() {
        return Ok(Filter::Level(level));
    }
    // A word alone would be the name of a target: a level that is misspelt must not pass for one.
    if !text.contains('=') {
        return Err(bad());
    }
    EnvFilter::try_new(text).map(|filter| Filter::Directives(Box::new(filter))).map_err(|_| bad())
}

/// Writes one line to stderr that belongs to a program's words rather than to its log. A reader that is gone is no error,
/// and no panic, as it would be with `eprintln!`.
pub fn say(line: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Which events are written.
enum Filter {
    Level(LevelFilter),
    Directives(Box<EnvFilter>),
}

fn subscriber<W>(filter: Filter, format: LogFormat, timed: bool, colour: bool, writer: W) -> (tracing::Dispatch, Change)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_writer(writer).with_ansi(colour).with_max_level(LevelFilter::TRACE);
    match format {
        LogFormat::Text => changeable(filter, builder.event_format(TextLine { timed }).finish()),
        LogFormat::Json => changeable(filter, builder.json().finish()),
    }
}

/// `subscriber` behind a filter that can be changed.
fn changeable<S>(filter: Filter, subscriber: S) -> (tracing::Dispatch, Change)
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let (layer, handle) = reload::Layer::new(filter);
    (subscriber.with(layer).into(), Box::new(move |filter| handle.reload(filter)))
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Filter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self {
            Self::Level(level) => Layer::<S>::register_callsite(level, metadata),
            Self::Directives(filter) => Layer::<S>::register_callsite(&**filter, metadata),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        match self {
            Self::Level(level) => Layer::<S>::enabled(level, metadata, context),
            Self::Directives(filter) => Layer::<S>::enabled(&**filter, metadata, context),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        match self {
            Self::Level(level) => Some(*level),
            Self::Directives(filter) => Layer::<S>::max_level_hint(&**filter),
        }
    }
}

/// The text format of the module head.
struct TextLine {
    /// Start with the wall-clock time, UTC.
    timed: bool,
}

impl<S, N> FormatEvent<S, N> for TextLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.timed {
            SystemTime.format_time(&mut writer)?;
            writer.write_char(' ')?;
        }
        // SGR colours: 31 red, 33 yellow, 32 green, 34 blue, 35 magenta (ECMA-48).
        let (name, colour) = match *event.metadata().level() {
            Level::ERROR => ("error", 31),
            Level::WARN => ("warn", 33),
            Level::INFO => ("info", 32),
            Level::DEBUG => ("debug", 34),
            Level::TRACE => ("trace", 35),
        };
        if writer.has_ansi_escapes() {
            write!(writer, "tapway: \x1b[{colour}m{name}\x1b[0m: ")?;
        } else {
            write!(writer, "tapway: {name}: ")?;
        }
        ctx.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// An error with all its causes on one line, "what: why: errno".
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// The words of strerror(3) for an errno: what C programs print, without Rust's "(os error 22)" and without the words
/// of older systems that `Errno::desc` has for some ("Not a typewriter").
pub fn strerror(errno: nix::errno::Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn errno_in_the_words_of_the_c_library() {
        assert_eq!(strerror(nix::errno::Errno::ENOTTY), "Inappropriate ioctl for device");
        assert_eq!(strerror(nix::errno::Errno::EINVAL), "Invalid argument");
    }

    use std::io::Write;
    use std::sync::{Arc, Mutex};

    /// A sink that keeps what was written, one entry for each write call.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<String>>>);

    impl Write for Sink {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8(text.to_vec()).unwrap());
            Ok(text.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines(filter: Filter, format: LogFormat, timed: bool, colour: bool, emit: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let to = sink.clone();
        tracing::dispatcher::with_default(&subscriber(filter, format, timed, colour, move || to.clone()).0, emit);
        sink.0.lock().unwrap().clone()
    }

    fn emit_all() {
        tracing::error!("an error");
        tracing::warn!(port = 80, "a warning");
        tracing::info!("an info");
        tracing::debug!("a debug");
        tracing::trace!("a trace");
    }

    #[test]
    fn each_v_shows_one_level_more() {
        for (verbosity, expected) in [(0, 2), (1, 3), (2, 4), (3, 5), (200, 5)] {
            let written = lines(Filter::Level(level(verbosity)), LogFormat::Text, false, false, emit_all);
            assert_eq!(written.len(), expected, "-v × {verbosity}: {written:?}");
        }
    }

    #[test]
    fn text_lines_are_whole_writes_without_escapes() {
        let written = lines(Filter::Level(level(0)), LogFormat::Text, false, false, emit_all);
        assert_eq!(written, ["tapway: error: an error\n", "tapway: warn: a warning port=80\n"]);
    }

    #[test]
    fn a_terminal_gets_colour_and_minus_v_gets_time() {
        let written = lines(Filter::Level(level(0)), LogFormat::Text, true, true, || tracing::warn!("w"));
        assert!(written[0].contains("\x1b[33mwarn\x1b[0m"), "{written:?}");
        assert!(written[0].starts_with("20") && written[0].contains("Z tapway: "), "{written:?}");
    }

    #[test]
    fn control_characters_of_a_guest_do_not_reach_the_terminal() {
        let name = "evil\x1b[2J.example";
        let written = lines(Filter::Level(level(0)), LogFormat::Text, false, false, || tracing::warn!("name {name}"));
        assert!(!written[0].contains('\x1b'), "{written:?}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let written = lines(Filter::Level(level(0)), LogFormat::Json, false, false, emit_all);
        assert_eq!(written.len(), 2);
        let value: serde_json::Value = serde_json::from_str(&written[1]).unwrap();
        assert_eq!(value["level"], "WARN");
        assert_eq!(value["fields"]["message"], "a warning");
        assert_eq!(value["fields"]["port"], 80);
        assert!(value["timestamp"].is_string());
    }

    #[test]
    fn the_filter_changes_while_it_runs() {
        let sink = Sink::default();
        let to = sink.clone();
        let (dispatch, change) =
            subscriber(Filter::Level(LevelFilter::WARN), LogFormat::Text, false, false, move || to.clone());
        tracing::dispatcher::with_default(&dispatch, || {
            for (text, expected) in [("debug", 4), ("off", 0), ("tapway=info,other=off", 3), ("error", 1)] {
                change(filter_of(text).unwrap()).unwrap();
                sink.0.lock().unwrap().clear();
                emit_all();
                assert_eq!(sink.0.lock().unwrap().len(), expected, "{text}");
            }
        });
        for text in ["", "5", "loud", "x=loud", "warning", "=,=="] {
            assert!(filter_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn directives_choose_by_target() {
        let filter = Filter::Directives(Box::new(EnvFilter::new("tapway=info,other=off")));
        let written = lines(filter, LogFormat::Text, false, false, || {
            tracing::info!("kept");
            tracing::debug!("too fine");
            tracing::error!(target: "other", "silenced");
        });
        assert_eq!(written, ["tapway: info: kept\n"]);
    }
}
