//! The bounded way from the data plane to one capture's writer.
//!
//! ```text
//!   data plane: Filling                                    writer thread: Draining
//!     current chunk ──── full, or the writer is idle ────►  writes it
//!     spare chunks  ◄───────────── empty ────────────────
//! ```
//!
//! A fixed number of chunks of [`CHUNK`] bytes is made beforehand and goes round through two channels that hold all of them.
//! So a frame costs a copy, and once a chunk an exchange by compare-and-swap, with a wake-up if the writer sleeps. Nothing
//! is allocated, nothing waits; without a spare chunk the frame is refused and the caller counts it.
//!
//! Spare chunks are used last in, first out: memory that a slow capture never needs is never touched. A chunk that is not
//! full is handed over when [`Filling::flush`] finds the writer with nothing to do. A writer that lags gets full ones
//! only, or a trickle of frames beside a stalled file would use the ring up chunk by chunk.
//!
//! At its end the data plane gives all chunks away, so that the writer's thread returns them to the system.

use std::collections::TryReserveError;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// Bytes of a chunk, and of a write to a file: 4 super-frames, or about 2500 frames of 64 bytes.
pub const CHUNK: usize = 256 * 1024;

/// Frames on their way.
#[derive(Debug)]
pub struct Chunk {
    /// Blocks of the capture file, whole ones.
    pub bytes: Vec<u8>,
}

/// The other end is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// The data plane's end.
#[derive(Debug)]
pub struct Filling {
    current: Option<Chunk>,
    spare: Vec<Chunk>,
    /// All chunks there are.
    chunks: usize,
    out: SyncSender<Chunk>,
    back: Receiver<Chunk>,
}

/// The writer's end.
#[derive(Debug)]
pub struct Draining {
    chunks: Receiver<Chunk>,
    back: SyncSender<Chunk>,
}

/// A ring of `bytes`, but of at least two chunks: one to fill while the other is written. Fails for want of memory.
pub fn ring(bytes: usize) -> Result<(Filling, Draining), TryReserveError> {
    let chunks = (bytes / CHUNK).max(2);
    let (out, draining) = sync_channel(chunks);
    let (empty, back) = sync_channel(chunks);
    let chunk = |_| {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(CHUNK).map(|()| Chunk { bytes })
    };
    let spare = (0..chunks).map(chunk).collect::<Result<Vec<_>, _>>()?;
    Ok((Filling { current: None, spare, chunks, out, back }, Draining { chunks: draining, back: empty }))
}

impl Filling {
    /// Has `write` append exactly `length` bytes; false if there is no room.
    pub fn push(&mut self, length: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<bool, Gone> {
        if length > CHUNK {
            return Ok(false);
        }
        if self.current.as_ref().is_none_or(|chunk| chunk.bytes.len() + length > CHUNK) {
            if self.spare.is_empty() {
                self.collect()?;
            }
            let Some(next) = self.spare.pop() else { return Ok(false) };
            if let Some(full) = self.current.replace(next) {
                self.hand(full)?;
            }
        }
        if let Some(chunk) = &mut self.current {
            write(&mut chunk.bytes);
            debug_assert!(chunk.bytes.len() <= CHUNK, "the chunk has grown");
        }
        Ok(true)
    }

    /// Hands over what there is if the writer has nothing to do. True if something still waits.
    pub fn flush(&mut self) -> Result<bool, Gone> {
        if self.current.is_none() {
            return Ok(false);
        }
        self.collect()?;
        // Beside the current one, all are here.
        if self.spare.len() + 1 < self.chunks {
            return Ok(true);
        }
        match self.current.take() {
            Some(chunk) => self.hand(chunk).map(|()| false),
            None => Ok(false),
        }
    }

    /// Takes back what has been written.
    fn collect(&mut self) -> Result<(), Gone> {
        loop {
            match self.back.try_recv() {
                Ok(chunk) => self.spare.push(chunk),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Gone),
            }
        }
    }

    /// The channel has room for every chunk, so this fails only when nobody listens.
    fn hand(&mut self, chunk: Chunk) -> Result<(), Gone> {
        self.out.try_send(chunk).map_err(|_| Gone)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if let Some(chunk) = self.current.take() {
            let _ = self.out.try_send(chunk);
        }
        for chunk in self.spare.drain(..) {
            let _ = self.out.try_send(chunk);
        }
    }
}

impl Draining {
    /// The next chunk; None when the data plane is done. It may be empty.
    pub fn next(&self) -> Option<Chunk> {
        self.chunks.recv().ok()
    }

    /// Gives it back.
    pub fn done(&self, mut chunk: Chunk) {
        chunk.bytes.clear();
        // Nobody wants it once the data plane is done.
        let _ = self.back.try_send(chunk);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn push(filling: &mut Filling, length: usize, value: u8) -> Result<bool, Gone> {
        filling.push(length, |bytes| bytes.resize(bytes.len() + length, value))
    }

    #[test]
    fn a_full_ring_refuses_and_goes_on_when_there_is_room() {
        let (mut filling, draining) = ring(4 * CHUNK).unwrap();
        let frame = CHUNK / 4;
        // Sixteen fit, whatever the reader does not do.
        for i in 0..16 {
            assert_eq!(push(&mut filling, frame, i), Ok(true), "frame {i}");
        }
        assert_eq!(push(&mut filling, frame, 99), Ok(false));
        assert_eq!(push(&mut filling, 1, 99), Ok(false), "the last chunk is full to the brim");
        assert_eq!(filling.flush(), Ok(true), "a writer that lags gets no more");
        let first = draining.next().unwrap();
        assert_eq!((first.bytes[0], first.bytes[CHUNK - 1]), (0, 3));
        draining.done(first);
        assert_eq!(push(&mut filling, frame, 16), Ok(true));
        drop(filling);
        let mut rest = Vec::new();
        while let Some(chunk) = draining.next() {
            assert_eq!(chunk.bytes.capacity(), CHUNK, "nothing was allocated");
            rest.extend(chunk.bytes.iter().copied().step_by(frame));
        }
        // In order, nothing twice; and all chunks are the writer's now.
        assert_eq!(rest, (4..=16).collect::<Vec<u8>>());
    }

    #[test]
    fn a_trickle_beside_a_stalled_writer_uses_one_chunk() {
        let (mut filling, draining) = ring(2 * CHUNK).unwrap();
        assert_eq!(push(&mut filling, 100, 1), Ok(true));
        assert_eq!(filling.flush(), Ok(false), "the writer is idle and gets it at once");
        for _ in 0..1000 {
            assert_eq!(push(&mut filling, 100, 2), Ok(true));
            assert_eq!(filling.flush(), Ok(true));
        }
        let first = draining.next().unwrap();
        assert_eq!(first.bytes, [1; 100]);
        draining.done(first);
        assert_eq!(filling.flush(), Ok(false));
        assert_eq!(draining.next().unwrap().bytes, vec![2; 100_000]);
        assert_eq!(filling.flush(), Ok(false), "nothing is left");
    }

    #[test]
    fn a_writer_that_is_gone_is_noticed() {
        let (mut filling, draining) = ring(2 * CHUNK).unwrap();
        assert_eq!(push(&mut filling, 10, 1), Ok(true));
        drop(draining);
        assert_eq!(filling.flush(), Err(Gone));
        assert_eq!(push(&mut filling, CHUNK, 1), Err(Gone));
        // Larger than a chunk: refused, not torn.
        assert_eq!(push(&mut filling, CHUNK + 1, 1), Ok(false));
    }

    #[test]
    fn threads_agree() {
        let (mut filling, draining) = ring(2 * CHUNK).unwrap();
        let reader = std::thread::spawn(move || {
            let mut sum = 0u64;
            while let Some(chunk) = draining.next() {
                sum += chunk.bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
                draining.done(chunk);
            }
            sum
        });
        let mut expected = 0;
        for i in 0..200_000u64 {
            let (length, value) = (i as usize % 700, i as u8);
            if push(&mut filling, length, value).unwrap() {
                expected += length as u64 * u64::from(value);
            }
            if i % 64 == 0 {
                filling.flush().unwrap();
            }
        }
        drop(filling);
        assert_eq!(reader.join().unwrap(), expected);
    }
}
