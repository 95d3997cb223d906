//! Chunks that are brought one by one, before the NARs they belong to.
//!
//! A hold pins what its owner named or brought: neither a collection nor another upload's end takes it away, and it is
//! still here when the NARs are put together. Chunks of a hold that is dropped before anything was committed are dead
//! bytes, which the next collection gives back. Nothing of a chunk is kept that was not compared with its name.

use crate::chunk_source::{ChunkSource, HeldChunks};
use crate::chunker;
use crate::error::{Error, Result};
use crate::frame::{Decoder, FrameError};
use crate::ingest::packing::Packing;
use crate::pins::PinSet;
use crate::store::Store;
use shoal_wire::mesh::manifest::ChunkRef;
use thiserror::Error as ThisError;

/// Why a chunk was not taken in.
#[derive(Debug, ThisError)]
pub enum ChunkError {
    #[error("a chunk of {0} bytes: chunks have 1 to {max}", max = chunker::MAX)]
    Len(u32),
    #[error("chunk {hash}: {error}", hash = hex(.hash))]
    Frame { hash: [u8; 32], error: FrameError },
    #[error("chunk {hash} has other bytes than its name says", hash = hex(.0))]
    Hash([u8; 32]),
    #[error(transparent)]
    Store(#[from] Error),
}

/// Keeps chunks for their owner until it is dropped.
pub struct ChunkHold {
    pub(crate) store: Store,
    pub(crate) pins: PinSet,
}

impl Store {
    /// A hold on nothing yet.
    pub fn hold_chunks(&self) -> ChunkHold {
        ChunkHold { store: self.clone(), pins: PinSet::new(self.pins.clone()) }
    }
}

impl ChunkHold {
    /// Of each chunk whether it has to be brought; those that need not are held from now on.
    pub fn lacks(&mut self, hashes: &[[u8; 32]]) -> Result<Vec<bool>> {
        hashes.iter().try_for_each(|hash| self.claim(hash))?;
        Ok(self.store.pins.absent(hashes.iter().copied()))
    }

    /// Takes in chunks, each from one zstd frame that states its content size, and holds them. What is here already is
    /// not written again. After an error those before the one that is refused may be here.
    pub fn bring<'a>(&mut self, chunks: impl IntoIterator<Item = (ChunkRef, &'a [u8])>) -> Result<(), ChunkError> {
        let mut decoder = self.store.decoders.take(Decoder::new)?;
        let brought = self.unpack(chunks, &mut decoder);
        self.store.decoders.put(decoder);
        brought
    }

    fn unpack<'a>(
        &mut self,
        chunks: impl IntoIterator<Item = (ChunkRef, &'a [u8])>,
        decoder: &mut Decoder,
    ) -> Result<(), ChunkError> {
        let mut packing = Packing::new(&self.store);
        let mut contents = Vec::new();
        for (ChunkRef { hash, len }, frame) in chunks {
            if len == 0 || len as usize > chunker::MAX {
                return Err(ChunkError::Len(len));
            }
            let decoded = decoder.decode(frame, len as usize, &mut contents);
            decoded.map_err(|error| ChunkError::Frame { hash, error })?;
            if *blake3::hash(&contents).as_bytes() != hash {
                return Err(ChunkError::Hash(hash));
            }
            packing.push(&contents, true)?;
        }
        // Both hold them for a moment, so that nobody takes them in between.
        for chunk in packing.finish()? {
            self.claim(&chunk.hash)?;
        }
        Ok(())
    }

    /// The bytes of chunks in a row; all of them must be held by this.
    pub fn contents(&self, chunks: Vec<ChunkRef>) -> Result<ChunkSource> {
        self.store.chunk_source(chunks)
    }

    /// Whether a chunk that this holds is stored by now, by whoever.
    pub fn is_here(&self, hash: &[u8; 32]) -> bool {
        self.pins.contains(hash) && !self.store.pins.absent(std::iter::once(*hash)).contains(&true)
    }

    /// Of each of these, which this holds, whether it is still to be brought.
    pub fn missing(&self, hashes: &[[u8; 32]]) -> Vec<bool> {
        self.store.pins.absent(hashes.iter().copied())
    }

    /// Reads chunks of it one by one, as soon as they are here.
    pub fn chunks(&self) -> Result<HeldChunks> {
        HeldChunks::new(&self.store)
    }

    /// How many of these it does not hold yet; one that is named twice counts twice.
    pub fn count_new<'a>(&self, hashes: impl IntoIterator<Item = &'a [u8; 32]>) -> usize {
        hashes.into_iter().filter(|hash| !self.pins.contains(hash)).count()
    }

    /// Chunks that were named or brought, which is what a hold takes of memory: some 200 bytes each.
    pub fn len(&self) -> usize {
        self.pins.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn claim(&mut self, hash: &[u8; 32]) -> Result<()> {
        let store = &self.store;
        let indexed = || Ok(store.places(std::iter::once(hash))?.iter().any(Option::is_some));
        self.pins.claim(hash, indexed)?;
        Ok(())
    }
}

fn hex(hash: &[u8; 32]) -> impl std::fmt::Display {
    blake3::Hash::from_bytes(*hash).to_hex()
}
