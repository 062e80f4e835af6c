//! `tapway events NAME [EVENT…]`: what happens in a running sandbox, a line each, until Ctrl-C or its end.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};

use clap::Args;
use serde_json::Value;

use super::table::cell;
use super::{FAILURE, Failure, printable, target};

/// Every kind of event that this version knows.
pub const KINDS: [&str; 7] = ["flow_opened", "flow_closed", "port_bound", "port_closed", "dns", "host_dns", "drops"];

const EXAMPLES: &str = "\
Examples:
  tapway events site
      everything that happens in the sandbox 'site'
  tapway events site dns
      what it looks up
  tapway events site flow_closed --json | jq .data.to_guest_bytes

Events: flow_opened, flow_closed, port_bound, port_closed, dns, host_dns, drops. Who reads too slowly loses some, and is
told how many by an event 'lost'. Ends with exit code 0 when the sandbox does.";

/// Arguments of `tapway events`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct EventsArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Of this one of its networks, where it is on several [default: that which has the default route]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Kinds of events [default: all]
    #[arg(value_name = "EVENT")]
    pub events: Vec<String>,
    /// End after so many
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub count: Option<u64>,
    /// Print JSON, an object a line
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn main(args: &EventsArgs) -> Result<u8, Failure> {
    let target = target::find(&args.sandbox)?.on(args.network.as_ref());
    let kinds: Vec<String> =
        if args.events.is_empty() { KINDS.map(str::to_owned).to_vec() } else { args.events.clone() };
    let failure = |error| target.failure("subscribe", &error);
    let mut events = target.server.subscribe(&kinds).map_err(failure)?;
    let mut left = args.count;
    while left != Some(0) {
        let Some(event) = events.wait().map_err(failure)? else { return Ok(0) };
        match show(&event, args.json) {
            Ok(()) => {}
            // A reader that has seen enough is no error.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(0),
            Err(error) => return Err(Failure { code: FAILURE, line: format!("cannot write the output: {error}") }),
        }
        left = left.map(|left| left - 1);
    }
    Ok(0)
}

fn show(event: &[u8], json: bool) -> io::Result<()> {
    let mut stdout = io::stdout();
    let text = if json { String::from_utf8_lossy(event).into_owned() } else { render(event) };
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// One line: the time of day (UTC), the kind, and what is in it.
fn render(event: &[u8]) -> String {
    let Ok(event) = serde_json::from_slice::<Value>(event) else {
        return format!("{}\n", printable(String::from_utf8_lossy(event).trim_end()));
    };
    let time = event["time"].as_f64().map_or_else(|| "-".to_owned(), time_of_day);
    let mut line = format!("{time}  {:<11}", cell(&event["event"]));
    for (name, value) in event["data"].as_object().into_iter().flatten() {
        let _ = write!(line, "  {name}={}", word(value));
    }
    format!("{}\n", printable(line.trim_end()))
}

/// A value that can be told from its neighbours.
fn word(value: &Value) -> String {
    let text = match value {
        Value::Array(_) | Value::Object(_) => value.to_string(),
        value => cell(value),
    };
    if text.is_empty() || (value.is_string() && text.contains(char::is_whitespace)) {
        format!("{text:?}")
    } else {
        text
    }
}

/// `HH:MM:SS.mmm` of seconds since 1970.
fn time_of_day(time: f64) -> String {
    let millis = (time * 1000.0).round().max(0.0) as u64;
    let (seconds, millis) = (millis / 1000 % 86_400, millis % 1000);
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines() {
        let event = br#"{"event":"dns","time":1763717143.1204,"data":{"name":"a\u001b.example","answers":["192.0.2.1"],"rcode":"NXDOMAIN or so","tries":2,"none":null}}"#;
        assert_eq!(
            render(event),
            "09:25:43.120  dns          answers=[\"192.0.2.1\"]  name=a\\u{1b}.example  none=-  \
             rcode=\"NXDOMAIN or so\"  tries=2\n"
        );
        assert_eq!(render(br#"{"event":"lost","data":{"count":5}}"#), "-  lost         count=5\n");
        assert_eq!(render(b"no json\x07\n"), "no json\\u{7}\n");
    }

    #[test]
    fn times_of_day() {
        assert_eq!(time_of_day(0.0), "00:00:00.000");
        assert_eq!(time_of_day(86_399.999_6), "00:00:00.000");
        assert_eq!(time_of_day(-5.0), "00:00:00.000");
    }
}
