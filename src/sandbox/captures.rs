//! What the monitor knows of captures that clients began: enough to go on with one when the network process that wrote it
//! has died.
//!
//! ```text
//! start_capture ─► numbered here ─► network process ──► kept: arguments, and a duplicate of the file
//!                                        │ dies            │ told to the successor: the file goes on with another section
//!                                        ▼                 ▼
//!           ended by itself ──► told of until somebody stops it
//! ```
//!
//! The position of the open file, which monitor and network process share, says how much of it is whole blocks
//! (`runtime::capture`): the successor cuts the rest and begins a section (a pcapng file may have several). What has no
//! such position (a pipe, a socket, a terminal, a file opened to append) may end within a block and cannot be gone on
//! with: such a capture ends with the network process, and is told of as failed.
//!
//! Pure but for asking for that position, which blocks for no file system.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, lseek};
use serde_json::{Map, Value};

use crate::api::attach::Context;
use crate::api::error::{self, ApiError, Code};
use crate::api::verbs::capture::{CaptureList, CaptureState, CaptureStatus};

/// Captures that ended and are still told of.
const MAX_ENDED: usize = 16;

/// One that runs.
#[derive(Clone, Debug)]
pub struct Kept {
    arguments: Map<String, Value>,
    file: Rc<OwnedFd>,
    /// Where in the file it began; None: it cannot be gone on with.
    origin: Option<i64>,
    sections: u32,
}

impl Kept {
    /// One that is about to begin.
    pub fn new(arguments: Map<String, Value>, file: Rc<OwnedFd>) -> Self {
        let appends = fcntl(&*file, FcntlArg::F_GETFL).is_ok_and(|flags| flags & OFlag::O_APPEND.bits() != 0);
        let origin = if appends { None } else { lseek(&*file, 0, Whence::SeekCur).ok() };
        Self { arguments, file, origin, sections: 1 }
    }

    /// Whole blocks in the file so far.
    fn written(&self) -> u64 {
        let at = lseek(&*self.file, 0, Whence::SeekCur).unwrap_or_default();
        u64::try_from(at - self.origin.unwrap_or_default()).unwrap_or_default()
    }

    fn status(&self, id: u32, state: CaptureState, error: Option<String>) -> CaptureStatus {
        CaptureStatus { id, packets: 0, bytes: self.written(), dropped: 0, sections: self.sections, state, error }
    }
}

/// What a successor is to be asked to go on with.
#[derive(Debug)]
pub struct Resumption {
    /// As `start_capture` was asked.
    pub arguments: Map<String, Value>,
    /// Where to.
    pub file: Rc<OwnedFd>,
    /// What came before.
    pub context: Context,
}

/// All of them, by number.
#[derive(Debug, Default)]
pub struct Captures {
    running: BTreeMap<u32, Kept>,
    ended: BTreeMap<u32, CaptureStatus>,
    last: u32,
}

impl Captures {
    /// A number for one more; never given twice.
    pub fn number(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// It runs.
    pub fn handle_begun(&mut self, number: u32, kept: Kept) {
        self.running.insert(number, kept);
    }

    /// It has ended by itself.
    pub fn handle_ended(&mut self, status: CaptureStatus) {
        // What was stopped meanwhile is nobody's any more.
        if self.running.remove(&status.id).is_some() {
            self.end(status);
        }
    }

    fn end(&mut self, status: CaptureStatus) {
        self.ended.insert(status.id, status);
        while self.ended.len() > MAX_ENDED {
            self.ended.pop_first();
        }
    }

    /// The network process is gone.
    pub fn handle_lost(&mut self) {
        for (id, mut kept) in std::mem::take(&mut self.running) {
            if kept.origin.is_some() {
                kept.sections += 1;
                self.running.insert(id, kept);
            } else {
                let why = "the network process died, and only a file that is not opened to append can be gone on with";
                let mut status = kept.status(id, CaptureState::Failed, Some(why.to_owned()));
                status.bytes = 0;
                self.end(status);
            }
        }
    }

    /// What its successor is asked for, by number.
    pub fn resumptions(&self) -> Vec<(u32, Resumption)> {
        let resume = |(&capture, kept): (&u32, &Kept)| {
            let context = Context { resumed: true, capture, sections: kept.sections, written: kept.written() };
            (capture, Resumption { arguments: kept.arguments.clone(), file: Rc::clone(&kept.file), context })
        };
        self.running.iter().map(resume).collect()
    }

    /// The successor does not go on with it.
    pub fn handle_refused(&mut self, number: u32, error: &ApiError) {
        // One that dies too, or is slow, has said nothing about it.
        if matches!(error.code, Code::Gone | Code::TimedOut) {
            return;
        }
        let Some(kept) = self.running.remove(&number) else { return };
        let (state, why) = match error.code {
            Code::Limit => (CaptureState::Limit, None),
            _ => (CaptureState::Failed, Some(error.desc.clone())),
        };
        tracing::warn!("capture {number} ends with the network process that died: {}", error.desc);
        self.end(kept.status(number, state, why));
    }

    /// The answer to `stop_capture`, given that of the network process.
    pub fn stop(&mut self, wanted: Option<u32>, result: Result<Value, ApiError>) -> Result<Value, ApiError> {
        match result {
            Ok(value) => {
                let id = value.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
                if let Some(id) = id {
                    self.running.remove(&id);
                    self.ended.remove(&id);
                }
                Ok(value)
            }
            // It may be one that ended with its network process.
            Err(error) if error.code == Code::NotFound => {
                let mut all = self.ended.keys().copied();
                let only = match (wanted, all.next(), all.next()) {
                    (Some(wanted), ..) => wanted,
                    (None, Some(only), None) => only,
                    _ => return Err(error),
                };
                self.ended.remove(&only).map_or(Err(error), |status| error::value(&status))
            }
            error => error,
        }
    }

    /// The answer to `list_captures`, given that of the network process.
    pub fn list(&self, result: Result<Value, ApiError>) -> Result<Value, ApiError> {
        let told: CaptureList = serde_json::from_value(result?)
            .map_err(|error| ApiError::new(Code::Internal, format!("the network process's list: {error}")))?;
        let mut all: BTreeMap<u32, CaptureStatus> = self.ended.clone();
        // A successor may not have taken them up yet.
        all.extend(self.running.iter().map(|(&id, kept)| (id, kept.status(id, CaptureState::Running, None))));
        all.extend(told.captures.into_iter().map(|status| (status.id, status)));
        error::value(&CaptureList { captures: all.into_values().collect() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write as _;

    fn file() -> OwnedFd {
        nix::sys::memfd::memfd_create(c"capture", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap()
    }

    fn arguments() -> Map<String, Value> {
        let Value::Object(map) = json!({"port": 53}) else { unreachable!() };
        map
    }

    fn nothing() -> Value {
        json!({"captures": []})
    }

    fn not_found() -> Result<Value, ApiError> {
        Err(ApiError::new(Code::NotFound, "no"))
    }

    #[test]
    fn a_file_is_gone_on_with() {
        let mut captures = Captures::default();
        let mut file = std::fs::File::from(file());
        file.write_all(&[0; 10]).unwrap();
        let number = captures.number();
        captures.handle_begun(number, Kept::new(arguments(), Rc::new(file.try_clone().unwrap().into())));
        file.write_all(&[0; 300]).unwrap();
        captures.handle_lost();
        captures.handle_lost();
        let (id, resumption) = captures.resumptions().remove(0);
        assert_eq!((id, resumption.arguments), (number, arguments()));
        assert_eq!(resumption.context, Context { resumed: true, capture: number, sections: 3, written: 300 });
        let list = captures.list(Ok(nothing())).unwrap();
        assert_eq!((&list["captures"][0]["state"], &list["captures"][0]["bytes"]), (&json!("running"), &json!(300)));
        // One that dies as well changes nothing; one that refuses ends it.
        captures.handle_refused(number, &ApiError::new(Code::Gone, "gone"));
        assert_eq!(captures.resumptions().len(), 1);
        captures.handle_refused(number, &ApiError::new(Code::Limit, "full"));
        assert!(captures.resumptions().is_empty());
        assert_eq!(captures.list(Ok(nothing())).unwrap()["captures"][0]["state"], "limit");
        assert_eq!(captures.stop(None, not_found()).unwrap()["sections"], 3);
        assert_eq!(captures.stop(Some(number), not_found()).unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn what_has_no_position_ends() {
        let mut captures = Captures::default();
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let appending = file();
        fcntl(&appending, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        for file in [writer, appending] {
            let number = captures.number();
            captures.handle_begun(number, Kept::new(arguments(), Rc::new(file)));
        }
        captures.handle_lost();
        assert!(captures.resumptions().is_empty());
        let list = captures.list(Ok(nothing())).unwrap();
        for id in [0, 1] {
            assert_eq!(list["captures"][id]["state"], "failed");
            assert!(list["captures"][id]["error"].as_str().unwrap().contains("the network process died"), "{list}");
        }
        // Which one?
        assert!(captures.stop(None, not_found()).is_err());
        assert_eq!(captures.stop(Some(2), not_found()).unwrap()["id"], 2);
    }

    #[test]
    fn what_ended_or_was_stopped_is_not_begun_again() {
        let mut captures = Captures::default();
        let numbers: Vec<u32> = (0..20)
            .map(|_| {
                let number = captures.number();
                captures.handle_begun(number, Kept::new(arguments(), Rc::new(file())));
                number
            })
            .collect();
        let status = |id| CaptureStatus {
            id,
            packets: 1,
            bytes: 2,
            dropped: 0,
            sections: 1,
            state: CaptureState::Limit,
            error: None,
        };
        captures.stop(Some(numbers[0]), Ok(serde_json::to_value(status(numbers[0])).unwrap())).unwrap();
        captures.handle_ended(status(numbers[0]));
        assert_eq!(captures.ended.len(), 0, "it was stopped");
        for &number in &numbers[1..] {
            captures.handle_ended(status(number));
        }
        captures.handle_lost();
        assert!(captures.resumptions().is_empty());
        assert_eq!(captures.ended.len(), MAX_ENDED);
        assert_eq!(captures.stop(Some(20), not_found()).unwrap()["packets"], 1);
    }
}
