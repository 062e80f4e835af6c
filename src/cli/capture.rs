//! `tapway capture NAME FILE`: frames of a running sandbox into a pcapng file, until Ctrl-C.
//!
//! The file is opened here and its descriptor goes to the network process (which could not open it), which writes at its
//! own pace and drops what the file is too slow for, rather than hold traffic up. The capture ends with Ctrl-C or another
//! signal, at `--max` bytes, or with the sandbox; each time what was written is a whole file. A network process that dies
//! meanwhile ends a capture into a pipe; a file is gone on with.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::table::{bytes, line, output};
use super::target::{self, Target};
use super::{FAILURE, Failure, printable};
use crate::api::client::ClientError;
use crate::api::verbs::capture::{
    CaptureList, CaptureStarted, CaptureState, CaptureStatus, ListCaptures, StartCapture, StopCapture,
};
use crate::network::capture::{CaptureOptions, CaptureProtocol};
use crate::telemetry;

/// How often it is looked whether the capture has ended by itself, milliseconds.
const LOOK: u16 = 500;
/// How long to wait before a sandbox whose network process is being replaced is asked again.
const AGAIN: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  tapway capture site site.pcapng
      everything, until Ctrl-C
  tapway capture site dns.pcapng --port 53 --max 10000000
      what is asked and answered, at most 10 MB of it
  tapway capture site - --host 192.0.2.0/24 --protocol tcp | tshark -r -
      watched as it comes";

/// Arguments of `tapway capture`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CaptureArgs {
    /// Name or id of the sandbox, a process in it, or a socket
    #[arg(value_name = "SANDBOX")]
    pub sandbox: String,
    /// Of this one of its networks, where it is on several [default: that which has the default route]
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// File to write (pcapng), made anew; '-' for stdout
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: String,
    /// Only frames from or to this address or network
    #[arg(long, value_name = "ADDR")]
    pub host: Option<String>,
    /// Only TCP and UDP from or to this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only this protocol, such as tcp, udp, icmp, arp
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,
    /// Bytes kept of each frame [default: all]
    #[arg(long, value_name = "BYTES")]
    pub snap: Option<u32>,
    /// End before the file is longer than this
    #[arg(long, value_name = "BYTES")]
    pub max: Option<u64>,
    /// At the end, print what came of it as JSON on stdout
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn main(args: &CaptureArgs) -> Result<u8, Failure> {
    if args.json && args.file == "-" {
        return Err(Failure::usage("--json and the capture cannot both go to stdout"));
    }
    let arguments = StartCapture {
        snap_length: args.snap,
        max_bytes: args.max,
        host: args.host.clone(),
        port: args.port,
        protocol: args.protocol.as_deref().map(protocol).transpose()?,
    };
    // What makes no sense must not cost the file of last time.
    CaptureOptions::try_from(arguments.clone()).map_err(|error| Failure::usage(error.to_string()))?;
    let target = target::find(&args.sandbox)?.on(args.network.as_ref());
    // From here on a signal ends the capture, and not us before it.
    let signals = signals().map_err(|errno| Failure::runtime(&errno))?;
    let id = start(&target, &args.file, arguments)?;
    let status = wait(&target, &signals, id)?;
    report(&target, status.as_ref(), args.json)
}

fn protocol(name: &str) -> Result<CaptureProtocol, Failure> {
    CaptureProtocol::ALL.into_iter().find(|protocol| protocol.name() == name).ok_or_else(|| {
        let known = CaptureProtocol::ALL.map(CaptureProtocol::name).join(", ");
        Failure::usage(format!("protocol '{name}' is not one of {known}"))
    })
}

fn signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Begins it; returns its number. A file that was made for a capture that is refused goes again.
fn start(target: &Target, file: &str, arguments: StartCapture) -> Result<u32, Failure> {
    let begin = |fd: BorrowedFd<'_>| -> Result<u32, Failure> {
        let reply = target.server.ask_with("start_capture", &arguments, Some(fd));
        let started: CaptureStarted = reply.map_err(|error| target.failure("start_capture", &error))?;
        Ok(started.id)
    };
    if file == "-" {
        return begin(std::io::stdout().as_fd());
    }
    let path = Path::new(file);
    let fresh = !path.exists();
    let open = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    let open = open.map_err(|error| Failure {
        code: FAILURE,
        line: format!("cannot write the capture file {file}: {error}; choose another"),
    })?;
    begin(open.as_fd()).inspect_err(|_| {
        if fresh {
            let _ = std::fs::remove_file(path);
        }
    })
}

/// Waits for a signal, or the capture's own end. None: the sandbox ended, and the file with it.
fn wait(target: &Target, signals: &SignalFd, id: u32) -> Result<Option<CaptureStatus>, Failure> {
    let mut told = false;
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if told {
            // Asked once more.
            std::thread::sleep(AGAIN);
        } else {
            told = matches!(poll(&mut fds, PollTimeout::from(LOOK)), Ok(1..));
        }
        let list: Result<CaptureList, ClientError> = target.server.ask("list_captures", ListCaptures {});
        let running = match list {
            Ok(list) => list.captures.iter().any(|c| c.id == id && c.state == CaptureState::Running),
            Err(error) if error.nobody() || matches!(error, ClientError::Closed { .. }) => return Ok(None),
            // The network process is being replaced.
            Err(error) if matches!(error.code(), Some("gone" | "busy")) => continue,
            Err(error) => return Err(target.failure("list_captures", &error)),
        };
        if told || !running {
            return match target.server.ask("stop_capture", StopCapture { id: Some(id) }) {
                Ok(status) => Ok(Some(status)),
                Err(error) if matches!(error.code(), Some("gone" | "busy")) => continue,
                Err(error) if error.nobody() || error.code() == Some("not_found") => Ok(None),
                Err(ClientError::Closed { .. }) => Ok(None),
                Err(error) => Err(target.failure("stop_capture", &error)),
            };
        }
    }
}

/// Tells what came of it, as tcpdump does: on stderr, since stdout may be the file.
fn report(target: &Target, status: Option<&CaptureStatus>, json: bool) -> Result<u8, Failure> {
    let Some(status) = status else {
        telemetry::say(&format!("tapway: {} has ended, and the capture with it", printable(target.name())));
        return Ok(0);
    };
    if json {
        output(&line(&serde_json::to_value(status).unwrap_or_default()))?;
    } else {
        telemetry::say(&summary(status));
    }
    match &status.error {
        // A reader that has seen enough is no error.
        Some(why) if status.state == CaptureState::Failed && !why.contains("Broken pipe") => {
            Err(Failure { code: FAILURE, line: format!("the capture ended early: {why}") })
        }
        _ => Ok(0),
    }
}

fn summary(status: &CaptureStatus) -> String {
    let limit = if status.state == CaptureState::Limit { "; the limit was reached" } else { "" };
    let CaptureStatus { packets, dropped, .. } = status;
    let since = match status.sections {
        0 | 1 => String::new(),
        n => format!(", since the network process was last replaced ({} times)", n - 1),
    };
    format!("tapway: {packets} packets, {}, {dropped} dropped{since}{limit}", bytes(status.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_it() {
        let mut status = CaptureStatus {
            id: 1,
            packets: 42,
            bytes: 3072,
            dropped: 0,
            sections: 1,
            state: CaptureState::Stopped,
            error: None,
        };
        assert_eq!(summary(&status), "tapway: 42 packets, 3.0 KiB, 0 dropped");
        status.state = CaptureState::Limit;
        assert_eq!(summary(&status), "tapway: 42 packets, 3.0 KiB, 0 dropped; the limit was reached");
        (status.state, status.sections) = (CaptureState::Stopped, 3);
        assert_eq!(
            summary(&status),
            "tapway: 42 packets, 3.0 KiB, 0 dropped, since the network process was last replaced (2 times)"
        );
    }
}
