//! `start_capture`, `list_captures` and `stop_capture`.
//!
//! ```text
//! {"execute":"start_capture","arguments":{"host":"192.0.2.1","port":443,"protocol":"tcp"}}  + the open file
//! {"return":{"id":1}}
//! {"execute":"stop_capture","arguments":{"id":1}}
//! {"return":{"id":1,"packets":42,"bytes":31337,"dropped":0,"state":"stopped"}}
//! ```
//!
//! The file's descriptor travels beside `start_capture` (SCM_RIGHTS); whoever sends it may close it and chooses what it
//! is: a file, a pipe, a socket. The capture goes on when the connection closes, and a restart of the network process
//! ends it.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::api::error::{ApiError, Code};
use crate::network::capture::{CaptureFilter, CaptureOptions, CaptureProtocol, FilterError, MAX_SNAP_LENGTH};

/// Arguments of `start_capture`. All conditions must hold; without any, every frame is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StartCapture {
    /// Bytes kept of each frame, from its Ethernet header on: 1 to 262144, which is the default and more than any frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snap_length: Option<u32>,
    /// The capture ends before its file would be longer than this many bytes. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// An address, or a network such as `192.0.2.0/24`: the sender's or the receiver's, of ARP too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// A TCP or UDP port, either side. Fragments behind the first have none and are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// A protocol in tcpdump's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<CaptureProtocol>,
}

/// Why arguments of `start_capture` make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// The filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Bytes of a frame.
    #[error("snap_length {0} is not from 1 to {MAX_SNAP_LENGTH}")]
    SnapLength(u32),
}

impl From<ArgumentError> for ApiError {
    fn from(error: ArgumentError) -> Self {
        Self::new(Code::BadArgument, error.to_string())
    }
}

impl TryFrom<StartCapture> for CaptureOptions {
    type Error = ArgumentError;

    fn try_from(arguments: StartCapture) -> Result<Self, ArgumentError> {
        let StartCapture { snap_length, max_bytes, host, port, protocol } = arguments;
        let snap_length = match snap_length {
            None => MAX_SNAP_LENGTH,
            Some(bytes) => NonZeroU32::new(bytes)
                .filter(|bytes| *bytes <= MAX_SNAP_LENGTH)
                .ok_or(ArgumentError::SnapLength(bytes))?,
        };
        Ok(Self { filter: CaptureFilter::new(host.as_deref(), port, protocol)?, snap_length, max_bytes })
    }
}

/// What `start_capture` returns: the capture's number, which is never given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStarted {
    /// The number.
    pub id: u32,
}

/// Arguments of `list_captures`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListCaptures {}

/// What `list_captures` returns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureList {
    /// Captures that run, and those that ended by themselves and have not been stopped since.
    pub captures: Vec<CaptureStatus>,
}

/// Arguments of `stop_capture`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopCapture {
    /// Which one; may be left out if there is only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
}

/// Whether a capture runs, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaptureState {
    /// It runs.
    Running,
    /// It was stopped.
    Stopped,
    /// The next frame would have made the file longer than `max_bytes`.
    Limit,
    /// A write failed.
    Failed,
}

/// What became of a capture so far; what `stop_capture` returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureStatus {
    /// The capture's number.
    pub id: u32,
    /// Frames in the file.
    pub packets: u64,
    /// Bytes written to the file, headers included.
    pub bytes: u64,
    /// Frames that passed the filter and are missing in the file, because it was too slow or its end came first.
    pub dropped: u64,
    /// Sections of the file: one, and one more for each network process that died meanwhile. Packets and dropped frames
    /// are those of the last one.
    pub sections: u32,
    /// Whether it runs.
    pub state: CaptureState,
    /// Why a write failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options(json: &str) -> Result<CaptureOptions, String> {
        let arguments: StartCapture = serde_json::from_str(json).map_err(|error| error.to_string())?;
        arguments.try_into().map_err(|error: ArgumentError| error.to_string())
    }

    #[test]
    fn arguments_become_options() {
        assert_eq!(options("{}"), Ok(CaptureOptions::default()));
        let json = r#"{"snap_length":96,"max_bytes":1000000,"host":"10.0.2.0/24","port":53,"protocol":"udp"}"#;
        let filter = CaptureFilter::new(Some("10.0.2.0/24"), Some(53), Some(CaptureProtocol::Udp)).unwrap();
        let expected = CaptureOptions { filter, snap_length: 96.try_into().unwrap(), max_bytes: Some(1_000_000) };
        assert_eq!(options(json), Ok(expected));
        let arguments: StartCapture = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&arguments).unwrap(), json);
    }

    #[test]
    fn bad_arguments_are_named() {
        for (json, words) in [
            (r#"{"snaplen":96}"#, "unknown field `snaplen`"),
            (r#"{"snap_length":0}"#, "snap_length 0 is not from 1 to 262144"),
            (r#"{"snap_length":262145}"#, "snap_length 262145 is not"),
            (r#"{"snap_length":-1}"#, "-1"),
            (r#"{"max_bytes":"1M"}"#, "1M"),
            (r#"{"host":"nowhere"}"#, "host 'nowhere' is neither"),
            (r#"{"port":80,"protocol":"arp"}"#, "port 80 with protocol arp"),
            (r#"{"protocol":"TCP"}"#, "unknown variant `TCP`"),
            (r#"{"port":1,"port":2}"#, "duplicate field `port`"),
        ] {
            let error = options(json).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
        assert!(serde_json::from_str::<StopCapture>(r#"{"number":1}"#).is_err());
        assert!(serde_json::from_str::<ListCaptures>(r#"{"all":true}"#).is_err());
    }

    #[test]
    fn replies() {
        let status = CaptureStatus {
            id: 1,
            packets: 2,
            bytes: 300,
            dropped: 0,
            sections: 1,
            state: CaptureState::Running,
            error: None,
        };
        let json = r#"{"id":1,"packets":2,"bytes":300,"dropped":0,"sections":1,"state":"running"}"#;
        assert_eq!(serde_json::to_string(&status).unwrap(), json);
        assert_eq!(serde_json::from_str::<CaptureStatus>(json).unwrap(), status);
    }
}
