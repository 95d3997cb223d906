//! SHA-256 of NARs, beside the thread that takes them in.
//!
//! A short NAR is hashed where it is: handing it over would cost more. A longer one goes block by
//! block to the service's threads.

mod lanes;
mod service;
mod state;

pub use service::HashService;

use state::State;
use std::sync::Arc;

/// Bytes handed over at a time, a multiple of SHA-256's own block. A NAR that fits into one is
/// hashed by its own thread.
pub const BLOCK_LEN: usize = 128 << 10;

/// One NAR's hash in the making.
pub struct NarHasher {
    service: Arc<HashService>,
    /// `None` while everything so far fits into `block`.
    stream: Option<service::StreamId>,
    block: Vec<u8>,
    len: u64,
}

impl NarHasher {
    pub fn new(service: Arc<HashService>) -> Self {
        NarHasher { service, stream: None, block: Vec::new(), len: 0 }
    }

    /// Continues the NAR; waits while the service is too far behind.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.block.len() == BLOCK_LEN {
                let service = &self.service;
                let stream = *self.stream.get_or_insert_with(|| service.begin());
                self.block = service.submit(stream, std::mem::take(&mut self.block));
            }
            let n = (BLOCK_LEN - self.block.len()).min(bytes.len());
            self.block.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
        }
    }

    /// The hash of all that was given.
    pub fn finish(mut self) -> [u8; 32] {
        let state = match self.stream.take() {
            Some(stream) => self.service.end(stream),
            None => State::default(),
        };
        state.finish(&self.block, self.len)
    }
}

impl Drop for NarHasher {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.service.end(stream);
        }
    }
}
