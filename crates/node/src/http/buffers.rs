//! Buffers that go round: what was sent last is still in the processor's cache when the next run is read into it.

use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Holds the longest frame of a chunk, and a whole chunk.
pub const BUFFER_BYTES: usize = 288 << 10;
/// Buffers that wait for their next use: 9 MiB of them.
const IDLE_MAX: usize = 32;

static IDLE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// A buffer, back in its place when it and all slices of it are gone. All of its memory was written once, so that
/// nothing need be cleared before it is written again.
pub struct Buffer {
    bytes: Box<[u8]>,
    /// How much of it is in use.
    len: usize,
}

impl Buffer {
    /// An empty one.
    pub fn take() -> Buffer {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { bytes: idle.unwrap_or_else(|| vec![0; BUFFER_BYTES].into()), len: 0 }
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.bytes.len() - self.len
    }

    /// Adds `len` bytes that `fill` writes; none where it fails or they do not fit.
    pub fn append(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let end = self.len + len;
        let room = self.bytes.get_mut(self.len..end).ok_or(io::ErrorKind::FileTooLarge)?;
        fill(room)?;
        self.len = end;
        Ok(())
    }

    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(bytes);
        }
    }
}
