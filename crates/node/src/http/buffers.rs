//! Buffers that go round: what was sent last is still in the processor's cache when the next run is read into it.

use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Holds the longest frame of a chunk, and a whole chunk.
pub const BUFFER_BYTES: usize = 288 << 10;
/// Buffers that wait for their next use: 9 MiB of them.
const IDLE_MAX: usize = 32;

static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer, back in its place when it and all slices of it are gone.
pub struct Buffer {
    vec: Vec<u8>,
}

impl Buffer {
    /// With bytes of no meaning in it.
    pub fn take() -> Buffer {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { vec: idle.unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES)) }
    }

    pub fn take_empty() -> Buffer {
        let mut buffer = Buffer::take();
        buffer.vec.clear();
        buffer
    }

    pub fn vec(&mut self) -> &mut Vec<u8> {
        &mut self.vec
    }

    /// Its first `len` bytes; what was in it stays.
    pub fn resized(&mut self, len: usize) -> &mut [u8] {
        self.vec.resize(len, 0);
        &mut self.vec
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.vec.capacity() - self.vec.len()
    }

    /// Adds `len` bytes that `fill` writes; none where it fails.
    pub fn append(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let at = self.vec.len();
        self.vec.resize(at + len, 0);
        let filled = fill(&mut self.vec[at..]);
        if filled.is_err() {
            self.vec.truncate(at);
        }
        filled
    }

    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.vec
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let vec = std::mem::take(&mut self.vec);
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && vec.capacity() <= 2 * BUFFER_BYTES {
            idle.push(vec);
        }
    }
}
