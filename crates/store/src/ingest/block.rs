//! Consecutive chunks of one NAR, stored together.

/// Bytes from which a block is handed on: enough to make handing over cheap, little enough that the
/// last blocks of a NAR keep all cores busy.
const BLOCK_LEN: usize = 256 << 10;

/// Some chunks, end to end; the last may not be whole yet.
#[derive(Default)]
pub struct Block {
    bytes: Vec<u8>,
    /// Where each whole chunk ends.
    ends: Vec<usize>,
}

impl Block {
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The chunk that is being filled is whole, if it was begun.
    pub fn end_chunk(&mut self) {
        if self.bytes.len() > self.ends.last().copied().unwrap_or_default() {
            self.ends.push(self.bytes.len());
        }
    }

    /// Whether it should be handed on as soon as its last chunk is whole.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= BLOCK_LEN
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The whole chunks.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(from, &to)| &self.bytes[from..to])
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}
