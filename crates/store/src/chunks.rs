//! One path out for stored bytes: from a chunk's hash to its verified contents.

use crate::chunker;
use crate::error::{Damage, Defect, Error, Result};
use crate::frame::Decoder;
use crate::place::Place;
use crate::segment::record::HEADER_LEN;
use crate::store::Store;
use shoal_wire::mesh::manifest::ChunkRef;

/// Attempts to read a chunk that is moved to another segment meanwhile. Each move takes a pass over
/// a whole segment, so a second one is unlikely already.
const MOVES_MAX: usize = 4;

/// Reads chunks; keeps its work space between them.
pub struct ChunkReader {
    store: Store,
    decoder: Option<Decoder>,
    record: Vec<u8>,
}

impl ChunkReader {
    pub fn new(store: &Store) -> Result<Self> {
        let decoder = store.decoders.take(Decoder::new)?;
        Ok(ChunkReader { store: store.clone(), decoder: Some(decoder), record: Vec::new() })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Replaces `out` by the chunk's bytes. `place` is where the index said it lies, if asked already.
    pub fn read(&mut self, chunk: &ChunkRef, place: Option<Place>, out: &mut Vec<u8>) -> Result<()> {
        self.examine(chunk, place, out).map_err(|error| self.store.noting(error))
    }

    /// As [`ChunkReader::read`], but no note is taken of damage.
    pub fn examine(&mut self, chunk: &ChunkRef, place: Option<Place>, out: &mut Vec<u8>) -> Result<()> {
        let read = self.try_read(chunk, place, out);
        if read.is_err() {
            out.clear();
        }
        read
    }

    fn try_read(&mut self, chunk: &ChunkRef, place: Option<Place>, out: &mut Vec<u8>) -> Result<()> {
        let place = self.fetch(chunk, place)?;
        let damaged = |defect| Error::from(Damage::chunk(chunk.hash, Some(place), defect));
        let Some(decoder) = &mut self.decoder else {
            return Err(Error::Stopped("a chunk reader lost its decoder".into()));
        };
        let decoded = decoder.decode(&self.record[HEADER_LEN..], chunk.len as usize, out);
        decoded.map_err(|error| damaged(error.into()))?;
        match *blake3::hash(out).as_bytes() == chunk.hash {
            true => Ok(()),
            false => Err(damaged(Defect::Hash)),
        }
    }

    /// Brings the chunk's record into `self.record`.
    fn fetch(&mut self, chunk: &ChunkRef, mut known: Option<Place>) -> Result<Place> {
        let damaged = |place, defect| Error::from(Damage::chunk(chunk.hash, place, defect));
        let mut failed = None;
        for _ in 0..MOVES_MAX {
            let place = match known.take() {
                Some(place) => place,
                None => {
                    let place = self.store.places(std::iter::once(&chunk.hash))?.into_iter().next().flatten();
                    place.ok_or_else(|| damaged(None, Defect::Unknown))?
                }
            };
            if place.chunk_len != chunk.len || chunk.len as usize > chunker::MAX {
                let defect = crate::frame::FrameError::Length {
                    expected: chunk.len as usize,
                    actual: u64::from(place.chunk_len),
                };
                return Err(damaged(Some(place), defect.into()));
            }
            match self.store.segments.read(&chunk.hash, &place, &mut self.record) {
                Ok(()) => return Ok(place),
                // Unless it lies elsewhere by now, it is lost.
                Err(error) if failed == Some(place) => return Err(error),
                Err(Error::Damaged(_)) => failed = Some(place),
                Err(error) => return Err(error),
            }
        }
        Err(damaged(failed, Defect::NoSegment))
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        if let Some(decoder) = self.decoder.take() {
            self.store.decoders.put(decoder);
        }
    }
}
