//! A NAR that may still be on its way, as a reader.

use super::flight::Interest;
use shoal_store::HeldChunks;
use std::io::{self, Read};
use std::sync::Arc;

/// The bytes of a NAR in order, each chunk as soon as it and all before it are here. A blocking reader: for threads, not
/// for tasks. It reads from the store, so it holds nothing up and takes the memory of one chunk. An error in the middle
/// means that what came before must not be used.
pub struct NarReader {
    interest: Arc<Interest>,
    chunks: Option<HeldChunks>,
    next: usize,
    contents: Vec<u8>,
    used: usize,
}

impl NarReader {
    pub(super) fn new(interest: Arc<Interest>) -> NarReader {
        NarReader { interest, chunks: None, next: 0, contents: Vec::new(), used: 0 }
    }

    pub fn nar_size(&self) -> u64 {
        self.interest.flight.record.nar_size
    }

    /// The next chunk; nothing at the end.
    fn advance(&mut self) -> io::Result<()> {
        let flight = &self.interest.flight;
        let number = self.next;
        let found = self.interest.engine.wait_for(|| {
            match flight.ended() {
                Some(Err(error)) => return Some(Err(io::Error::other(error))),
                Some(Ok(())) => {}
                // The last byte is not given out before the whole was found right.
                None if flight.checks_nar && is_last(flight, number) => return None,
                None => {}
            }
            let (received, hold) = (flight.manifest()?, flight.hold()?);
            match received.manifest().chunks.get(number) {
                None => Some(Ok(None)),
                Some(chunk) => hold.is_here(&chunk.hash).then(|| Ok(Some((*chunk, hold.clone())))),
            }
        });
        self.contents.clear();
        self.used = 0;
        if let Some((chunk, hold)) = found? {
            let chunks = match &mut self.chunks {
                Some(chunks) => chunks,
                None => self.chunks.insert(hold.chunks()?),
            };
            chunks.read(&chunk, &mut self.contents)?;
            self.next += 1;
        }
        Ok(())
    }
}

fn is_last(flight: &super::flight::Flight, number: usize) -> bool {
    flight.manifest().is_some_and(|received| number + 1 >= received.manifest().chunks.len())
}

impl Read for NarReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == self.contents.len() {
            self.advance()?;
        }
        let ready = self.contents.get(self.used..).unwrap_or_default();
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.used += n;
        Ok(n)
    }
}
