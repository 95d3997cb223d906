//! Replaces hash parts in a stream, as Nix does when an output moves from its scratch path to the
//! path its content gives it. Lengths never change, so neither does any offset.

use super::find::Finder;
use super::{HASH_PART_LEN, HashPart};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// References of which the offsets are kept, 8 bytes each; the most in a real tree are some thousands.
const OCCURRENCES_MAX: usize = 4 << 20;

/// Bytes looked at together: the buffer stays in L2.
const BLOCK_LEN: usize = 64 * 1024;

/// Copies what is written to it to `W`, every hash part of a map replaced by another. Occurrences
/// are taken from left to right and do not overlap; more than four million are an error.
#[derive(Debug)]
pub struct Rewriter<W: Write> {
    writer: W,
    finder: Finder,
    /// By position in the finder.
    replacements: Vec<HashPart>,
    /// Bytes not written yet; between calls fewer than a hash part.
    pending: Vec<u8>,
    /// Offset of `pending` in the stream.
    offset: u64,
    occurrences: Vec<u64>,
}

impl<W: Write> Rewriter<W> {
    pub fn new(writer: W, rewrites: BTreeMap<HashPart, HashPart>) -> Self {
        Rewriter {
            writer,
            finder: Finder::new(rewrites.keys().copied()),
            // Both are in ascending order of the replaced part.
            replacements: rewrites.into_values().collect(),
            pending: Vec::new(),
            offset: 0,
            occurrences: Vec::new(),
        }
    }

    /// Writes what is left. Gives back the writer, unflushed, and the offset of every replaced
    /// part in ascending order.
    pub fn finish(self) -> io::Result<(W, Vec<u64>)> {
        let (mut writer, pending, occurrences) = self.into_parts();
        writer.write_all(&pending)?;
        Ok((writer, occurrences))
    }

    /// The writer, what is still to be written to it, and the offsets.
    pub(super) fn into_parts(self) -> (W, Vec<u8>, Vec<u64>) {
        (self.writer, self.pending, self.occurrences)
    }

    fn block(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        let mut from = 0;
        while let Some((at, part)) = self.finder.find(&self.pending, from) {
            from = at + HASH_PART_LEN;
            self.pending[at..from].copy_from_slice(&self.replacements[part]);
            if self.occurrences.len() >= OCCURRENCES_MAX {
                return Err(io::Error::other(format!("more than {OCCURRENCES_MAX} references to replace")));
            }
            self.occurrences.push(self.offset + at as u64);
        }
        // An occurrence can still begin in the last bytes, unless they were just replaced.
        let done = from.max(self.pending.len().saturating_sub(HASH_PART_LEN - 1));
        self.writer.write_all(&self.pending[..done])?;
        self.pending.drain(..done);
        self.offset += done as u64;
        Ok(())
    }
}

impl<W: Write> Write for Rewriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(BLOCK_LEN);
        self.block(&bytes[..n])?;
        Ok(n)
    }

    /// Flushes what was written; up to 31 bytes wait for what follows them.
    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
