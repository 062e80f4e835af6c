//! One line of a log file: `TIME STREAM F|P TEXT`, as Kubernetes and podman's k8s-file have it.
//!
//! ```text
//! 2026-11-24T13:45:07.123456789Z stdout F a line
//! 2026-11-24T13:45:07.123459321Z stderr P the beginning of a line; what follows on this stream continues it
//! ```
//!
//! TEXT is what was printed, byte for byte, without its newline.

use std::time::Duration;

use crate::telemetry::time;

/// Longest text of a record, as with Docker; longer lines are cut into parts.
pub const MAX_TEXT: usize = 16 * 1024;
/// Length of a time.
const TIME: usize = 30;

/// Where a line was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The command's standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// tapway's own log, on this sandbox.
    Tapway,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Tapway => "tapway",
        }
    }
}

/// A record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When, in RFC 3339 with nine digits: texts are in order as times are.
    pub time: &'a str,
    /// Where.
    pub stream: Stream,
    /// The line ends here.
    pub whole: bool,
    /// What.
    pub text: &'a [u8],
}

/// Appends a record.
pub fn write(to: &mut Vec<u8>, at: Duration, stream: Stream, whole: bool, text: &[u8]) {
    let kind = if whole { "F" } else { "P" };
    to.extend_from_slice(format!("{} {} {kind} ", time::rfc3339(at), stream.name()).as_bytes());
    to.extend_from_slice(text);
    to.push(b'\n');
}

/// Reads one line, without its newline. None if it is none of ours.
pub fn read(line: &[u8]) -> Option<Record<'_>> {
    let time = std::str::from_utf8(line.get(..TIME)?).ok().filter(|time| time.ends_with('Z'))?;
    let rest = line.get(TIME..)?.strip_prefix(b" ")?;
    let all = [Stream::Stdout, Stream::Stderr, Stream::Tapway];
    let named = |stream: Stream| Some((stream, rest.strip_prefix(stream.name().as_bytes())?.strip_prefix(b" ")?));
    let (stream, rest) = all.into_iter().find_map(named)?;
    let (whole, text) = match rest {
        [b'F', b' ', text @ ..] => (true, text),
        [b'P', b' ', text @ ..] => (false, text),
        _ => return None,
    };
    Some(Record { time, stream, whole, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_written_and_read() {
        let mut file = Vec::new();
        let at = Duration::new(1_764_000_307, 5);
        write(&mut file, at, Stream::Stdout, true, b"a line \xff");
        write(&mut file, at, Stream::Stderr, false, b"");
        write(&mut file, at, Stream::Tapway, true, b"tapway: warn: x");
        assert!(file.starts_with(b"2025-11-24T16:05:07.000000005Z stdout F a line \xff\n"));
        let read: Vec<_> = file.split(|&b| b == b'\n').filter_map(read).map(|r| (r.stream, r.whole, r.text)).collect();
        assert_eq!(
            read,
            [
                (Stream::Stdout, true, &b"a line \xff"[..]),
                (Stream::Stderr, false, b""),
                (Stream::Tapway, true, b"tapway: warn: x")
            ]
        );
    }

    #[test]
    fn what_is_no_record() {
        for line in [
            &b""[..],
            b"x",
            b"2025-11-24T16:05:07.000000005Z",
            b"2025-11-24T16:05:07.000000005Z stdout",
            b"2025-11-24T16:05:07.000000005Z stdout X text",
            b"2025-11-24T16:05:07.000000005Z other F text",
            b"2025-11-24T16:05:07.000000005+stdout F text",
            b"\xff025-11-24T16:05:07.000000005Z stdout F text",
        ] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }
}
