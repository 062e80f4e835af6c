//! The capture file of `--pcap`: copies of every frame, both ways, in pcapng.
//!
//! The monitor opens the file, this process only gets the descriptor. Writing is buffered and on the data plane's thread:
//! a capture is for looking at traffic, and a file system that stalls, stalls the traffic looked at (docs/limits.md). An
//! error ends the capture, said once; traffic goes on.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use crate::link::pcap::{Direction, PcapWriter, SNAPLEN};
use crate::wire::vnet::VNET_HDR_LEN;

/// An open capture.
pub struct Capture {
    writer: Option<PcapWriter<File>>,
    dirty: bool,
}

impl Capture {
    /// Starts the file.
    pub fn new(file: OwnedFd) -> Self {
        let writer = match PcapWriter::new(File::from(file), SNAPLEN) {
            Ok(writer) => Some(writer),
            Err(error) => {
                tracing::warn!("cannot start the capture: {error}");
                None
            }
        };
        Self { writer, dirty: false }
    }

    /// A frame of the guest (vnet header first).
    pub fn from_guest(&mut self, frame: &[u8]) {
        self.write(Direction::FromGuest, frame);
    }

    /// A frame for the guest.
    pub fn to_guest(&mut self, frame: &[u8]) {
        self.write(Direction::ToGuest, frame);
    }

    fn write(&mut self, direction: Direction, frame: &[u8]) {
        let Some(writer) = &mut self.writer else { return };
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.dirty = true;
        if let Err(error) = writer.write(time, direction, frame.get(VNET_HDR_LEN..).unwrap_or_default()) {
            tracing::warn!("the capture ends here: {error}");
            self.writer = None;
        }
    }

    /// Writes out what is buffered, if anything is. Called before the thread waits, so that the file can be followed.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.dirty)
            && let Some(writer) = &mut self.writer
            && let Err(error) = writer.flush()
        {
            tracing::warn!("the capture ends here: {error}");
            self.writer = None;
        }
    }
}
