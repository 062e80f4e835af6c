//! `tapway top NAME`: a live view of a running sandbox: flows by rate, names from DNS answers, drops.
//!
//! ```text
//! every interval   list_flows (all pages, to a bound) and get_stats ──► View::sample ──► a frame
//! meanwhile        DNS answers over a connection of their own (subscribe) ──► View::learn ──► names beside addresses
//! ```
//!
//! Rates are differences between two samples. The terminal is in raw mode and on its other screen while this runs, and
//! as it was afterwards, whatever ends it: `q`, Ctrl-C, a signal, the sandbox's end, an error. `--once` takes two samples,
//! an interval apart, and prints one frame, for scripts; nothing of the terminal is touched then.
//!
//! **Limits.** [`MOST_FLOWS`] a sample and [`view::MOST_NAMES`] names. Names of before the start are not known; a guest that
//! asks another server than tapway's is not heard.

pub mod screen;
pub mod view;

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value, json};

use self::screen::Screen;
use self::view::View;
use super::flows::{Page, fetch};
use super::table::output;
use super::target::{self, Target};
use super::{FAILURE, Failure};
use crate::api::client::{ClientError, Events};

/// Most flows of one sample: 16 pages.
pub const MOST_FLOWS: usize = 4096;

const EXAMPLES: &str = "\
Examples:
  tapway top site
      q or Ctrl-C ends it
  tapway top site --once --interval 5
      one frame, with rates over five seconds";

/// Arguments of `tapway top`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct TopArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Of this one of its networks, where it is on several [default: that which has the default route]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Seconds between two frames (0.1 to 60)
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub interval: f64,
    /// Print one frame and end
    #[arg(long)]
    pub once: bool,
}

/// Does it.
pub fn main(args: &TopArgs) -> Result<u8, Failure> {
    if !(0.1..=60.0).contains(&args.interval) {
        return Err(Failure::usage(format!("--interval {} is not from 0.1 to 60 seconds", args.interval)));
    }
    if !args.once && !std::io::stdout().is_terminal() {
        return Err(Failure::usage("stdout is not a terminal; --once prints one frame"));
    }
    let target = target::find(&args.sandbox)?.on(args.network.as_ref());
    let mut source = Source::open(&target);
    let mut view = View::new(target.name());
    let interval = Duration::from_secs_f64(args.interval);
    source.sample(&mut view)?;
    if args.once {
        source.listen(&mut view, interval);
        source.sample(&mut view)?;
        return output(&(view.frame(80, usize::MAX, &clock()).join("\n") + "\n"));
    }
    let end = {
        let mut screen = Screen::open()
            .map_err(|error| Failure { code: FAILURE, line: format!("cannot take the terminal: {error}") })?;
        watch(&mut source, &mut view, &mut screen, interval)
    };
    match end {
        Err(None) => {
            // Told on the screen that was there before.
            let _ = writeln!(std::io::stderr(), "tapway: {} has ended", super::printable(target.name()));
            Ok(0)
        }
        Err(Some(failure)) => Err(failure),
        Ok(()) => Ok(0),
    }
}

/// Frames until somebody has enough. `Err(None)`: the sandbox ended.
fn watch(
    source: &mut Source<'_>,
    view: &mut View,
    screen: &mut Screen,
    interval: Duration,
) -> Result<(), Option<Failure>> {
    let mut next = Instant::now();
    loop {
        let (columns, rows) = screen.size();
        screen.show(&view.frame(columns, rows, &clock())).map_err(|_| None)?;
        // A frame that took long is no reason for two at once.
        next = (next + interval).max(Instant::now());
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match source.wait(Some(screen), view, left) {
                Woken::Quit => return Ok(()),
                Woken::Redraw => {
                    let (columns, rows) = screen.size();
                    screen.show(&view.frame(columns, rows, &clock())).map_err(|_| None)?;
                }
                Woken::Other => {}
            }
        }
        match source.sample_raw(view) {
            Ok(()) => view.say(None),
            Err(error) if error.code() == Some("gone") => view.say(Some("the network process is being replaced")),
            // It ended between two connections, or while it was asked.
            Err(error) if error.nobody() || matches!(error, ClientError::Closed { .. }) => return Err(None),
            Err(error) => return Err(Some(source.target.failure("list_flows", &error))),
        }
    }
}

/// Why waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The user has enough.
    Quit,
    /// The terminal has another size.
    Redraw,
    /// Time is up, or a name was learnt.
    Other,
}

/// Where samples and names come from.
struct Source<'a> {
    target: &'a Target,
    /// None where nobody tells of DNS.
    events: Option<Events>,
    began: Instant,
}

impl<'a> Source<'a> {
    fn open(target: &'a Target) -> Self {
        let events = target.server.subscribe(&["dns".to_owned()]).ok();
        Self { target, events, began: Instant::now() }
    }

    fn sample_raw(&mut self, view: &mut View) -> Result<(), ClientError> {
        let server = &self.target.server;
        let page = |arguments: &Value| server.ask::<Page>("list_flows", arguments);
        let (flows, total) = fetch(&Map::new(), MOST_FLOWS, page)?;
        let at = self.began.elapsed().as_secs_f64();
        let stats: Value = server.ask("get_stats", json!({}))?;
        view.sample(at, &flows, total, &stats["drops"]);
        Ok(())
    }

    fn sample(&mut self, view: &mut View) -> Result<(), Failure> {
        self.sample_raw(view).map_err(|error| self.target.failure("list_flows", &error))
    }

    /// Learns names for a while.
    fn listen(&mut self, view: &mut View, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.wait(None, view, left);
        }
    }

    /// Waits for a key, a signal, an event or the end of `time`.
    fn wait(&mut self, screen: Option<&mut Screen>, view: &mut View, time: Duration) -> Woken {
        // Rounded up, or the last fraction of a millisecond would be spent turning.
        let timeout = PollTimeout::try_from(time.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        let mut fds: Vec<PollFd<'_>> = Vec::new();
        if let Some(events) = &self.events {
            fds.push(PollFd::new(events.stream().as_fd(), PollFlags::POLLIN));
        }
        if let Some(screen) = &screen {
            fds.extend(screen.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // Nothing to wait on: what is left is the time.
            Err(_) => std::thread::sleep(time),
        }
        let heard = self.events.is_some() && fds[0].any().unwrap_or(false);
        drop(fds);
        if heard {
            self.hear(view);
        }
        screen.map_or(Woken::Other, Screen::read)
    }

    fn hear(&mut self, view: &mut View) {
        while let Some(events) = &mut self.events {
            match events.wait() {
                Ok(Some(event)) => {
                    view.learn(&event);
                    if !events.buffered() {
                        return;
                    }
                }
                // It may come back with a new network process; names are not worth the trouble.
                Ok(None) | Err(_) => self.events = None,
            }
        }
    }
}

/// The time of day, UTC.
fn clock() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()) % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
