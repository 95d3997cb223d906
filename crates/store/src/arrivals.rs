//! Frames that come from another store, kept as they come.
//!
//! Their bytes are received where they will be written from: each behind room for the header of its record. What a
//! frame holds is compared with the name of its chunk before it counts, so a record here decodes to its chunk whoever
//! sent it; the compressed bytes are not made anew, which would cost more than all else that is done to a chunk.

use crate::chunk_hold::{ChunkError, ChunkHold};
use crate::chunker;
use crate::error::Result;
use crate::frame::{self, Decoder, FRAME_LEN_MAX, FrameError};
use crate::ingest::packer::Batch;
use crate::segment::record::{HEADER_LEN, Header};
use crate::store::Store;
use shoal_wire::mesh::manifest::ChunkRef;

/// Bytes of frames from which arrivals should be verified and written. With the frame that goes beyond it they stay
/// below the smallest segment.
pub const ARRIVALS_LEN_MAX: usize = 1 << 20;

/// What is received into: a megabyte and the frame that goes beyond it, so that it never grows.
const BUFFER_LEN: usize = ARRIVALS_LEN_MAX + HEADER_LEN + FRAME_LEN_MAX;

/// Frames that are being received, end to end.
pub struct Arrivals {
    store: Store,
    /// Those of an earlier use lie behind `end`: memory that is cleared each time costs as much as comparing with names.
    bytes: Vec<u8>,
    end: usize,
    frames: Vec<Arrival>,
}

struct Arrival {
    chunk: ChunkRef,
    hasty: bool,
    /// Of the room for its header, in the bytes.
    at: usize,
}

/// Frames that hold what their names say, not written yet.
pub struct Verified {
    batch: Batch,
    refused: Option<ChunkError>,
}

impl Store {
    /// None yet.
    pub fn arrivals(&self) -> Result<Arrivals> {
        let bytes = self.idle_buffers.take(|| Ok(Vec::with_capacity(BUFFER_LEN)))?;
        Ok(Arrivals { store: self.clone(), bytes, end: 0, frames: Vec::new() })
    }
}

impl Arrivals {
    /// Room for the frame of a chunk, to be filled at once: what is in it has no meaning. `hasty`: it was stored without trying to compress it.
    pub fn slot(&mut self, chunk: ChunkRef, hasty: bool, frame_len: usize) -> Result<&mut [u8], ChunkError> {
        if chunk.len == 0 || chunk.len as usize > chunker::MAX {
            return Err(ChunkError::Len(chunk.len));
        }
        if frame_len > FRAME_LEN_MAX {
            let error = FrameError::Length { expected: FRAME_LEN_MAX, actual: frame_len as u64 };
            return Err(ChunkError::Frame { hash: chunk.hash, error });
        }
        let at = self.end;
        self.frames.push(Arrival { chunk, hasty, at });
        self.end += HEADER_LEN + frame_len;
        if self.bytes.len() < self.end {
            self.bytes.resize(self.end, 0);
        }
        Ok(&mut self.bytes[at + HEADER_LEN..self.end])
    }

    /// Takes the last slot back, which was not filled.
    pub fn undo(&mut self) {
        if let Some(last) = self.frames.pop() {
            self.end = last.at;
        }
    }

    /// The chunks of all slots, in order.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = &ChunkRef> {
        self.frames.iter().map(|arrival| &arrival.chunk)
    }

    /// Bytes of all slots.
    pub fn len(&self) -> usize {
        self.end
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether it is time to write them.
    pub fn is_full(&self) -> bool {
        self.end >= ARRIVALS_LEN_MAX
    }

    /// Compares each with its name, in order, up to the first that is refused. Takes a core; writes nothing.
    pub fn verify(self) -> Result<Verified> {
        let store = self.store.clone();
        let mut decoder = store.decoders.take(Decoder::new)?;
        let verified = self.verify_with(&mut decoder);
        store.decoders.put(decoder);
        Ok(verified)
    }

    fn verify_with(mut self, decoder: &mut Decoder) -> Verified {
        let mut records = Vec::with_capacity(self.frames.len());
        let mut contents = Vec::new();
        let mut refused = None;
        self.bytes.truncate(self.end);
        let ends = self.frames.iter().skip(1).map(|next| next.at).chain([self.end]);
        for (Arrival { chunk, hasty, at }, end) in self.frames.iter().zip(ends) {
            let frame = &self.bytes[at + HEADER_LEN..end];
            if let Err(error) = holds(chunk, frame, decoder, &mut contents) {
                refused = Some(error);
                self.bytes.truncate(*at);
                break;
            }
            let header = Header::of(chunk.hash, *hasty, frame);
            self.bytes[*at..at + HEADER_LEN].copy_from_slice(&header.encode());
            records.push((chunk.len, *at as u32, header));
        }
        Verified { batch: Batch { bytes: self.bytes, records }, refused }
    }
}

/// Whether a frame is one, and holds this chunk.
fn holds(chunk: &ChunkRef, frame: &[u8], decoder: &mut Decoder, contents: &mut Vec<u8>) -> Result<(), ChunkError> {
    let refused = |error| ChunkError::Frame { hash: chunk.hash, error };
    if !frame::is_plain(frame) {
        return Err(refused(FrameError::Unusual));
    }
    let hash = match frame::raw_blocks(frame, chunk.len as usize) {
        // As it lies, without a copy.
        Some(blocks) => {
            let mut hasher = blake3::Hasher::new();
            blocks.iter().fold(&mut hasher, |hasher, block| hasher.update(block)).finalize()
        }
        None => {
            decoder.decode(frame, chunk.len as usize, contents).map_err(refused)?;
            blake3::hash(contents)
        }
    };
    match *hash.as_bytes() == chunk.hash {
        true => Ok(()),
        false => Err(ChunkError::Hash(chunk.hash)),
    }
}

impl Verified {
    /// How many there are: all that came before the one that was refused.
    pub fn len(&self) -> usize {
        self.batch.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn names(&self) -> impl ExactSizeIterator<Item = &[u8; 32]> {
        self.batch.records.iter().map(|(.., header)| &header.hash)
    }

    /// Why the one after these was refused, if one was.
    pub fn refused(&self) -> Option<&ChunkError> {
        self.refused.as_ref()
    }

    /// The same, taken out.
    pub fn take_refused(&mut self) -> Option<ChunkError> {
        self.refused.take()
    }
}

impl ChunkHold {
    /// Writes frames of chunks that this holds ([`ChunkHold::lacks`] named them) and that nobody has written meanwhile;
    /// leaves out others.
    pub fn keep(&self, mut verified: Verified) -> Result<()> {
        let batch = &mut verified.batch;
        let is_held: Vec<bool> = batch.records.iter().map(|(.., header)| self.pins.contains(&header.hash)).collect();
        batch.retain(&is_held);
        let written = batch.write_once(&self.store);
        self.store.idle_buffers.put(std::mem::take(&mut batch.bytes));
        written
    }
}
