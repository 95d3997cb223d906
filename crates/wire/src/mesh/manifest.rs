//! The ordered chunks of one NAR and its file index, named by the BLAKE3 of their encoding.
//!
//! Encoding: postcard of `(1u8, chunks, index)`. A value has one encoding and decoding accepts no
//! other, so a manifest that was decoded encodes to the same bytes and the same content root.

use crate::nix::nar::index::NarIndex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Format version, which also fixes the chunker's parameters.
const VERSION: u8 = 1;
/// The chunker's maximum.
pub const CHUNK_LEN_MAX: u32 = 256 * 1024;
/// Most chunks of one NAR: 1 TiB at the average chunk of 64 KiB.
pub const CHUNKS_MAX: usize = 1 << 24;
/// Longest encoding that is decoded: [`CHUNKS_MAX`] chunks and as much again for the index.
pub const ENCODED_LEN_MAX: usize = 2 * 36 * CHUNKS_MAX;

/// BLAKE3 of a manifest's encoding.
pub type ContentRoot = [u8; 32];

/// One chunk: the BLAKE3 of its bytes and their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRef {
    pub hash: [u8; 32],
    pub len: u32,
}

impl ChunkRef {
    /// The name of a chunk's bytes, of which there are at most [`CHUNK_LEN_MAX`].
    pub fn of(bytes: &[u8]) -> ChunkRef {
        ChunkRef { hash: *blake3::hash(bytes).as_bytes(), len: bytes.len() as u32 }
    }
}

/// The chunks whose concatenation is the NAR, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub chunks: Vec<ChunkRef>,
    pub index: NarIndex,
}

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    #[error("manifest of {0} bytes is too long")]
    TooLong(usize),
    #[error("manifest does not decode: {0}")]
    Encoding(#[from] postcard::Error),
    #[error("manifest has version {0}, this program knows {VERSION}")]
    Version(u8),
    #[error("manifest is not in its one encoding")]
    NotCanonical,
    #[error("manifest has {0} chunks, more than {CHUNKS_MAX}")]
    TooManyChunks(usize),
    #[error("manifest has a chunk of {0} bytes")]
    ChunkLen(u32),
    #[error("manifest has {chunks} bytes of chunks for a NAR of {nar} bytes")]
    Size { chunks: u64, nar: u64 },
}

impl Manifest {
    pub fn encode(&self) -> Vec<u8> {
        // Serializing into a Vec fails only for types whose length is unknown.
        postcard::to_stdvec(&(VERSION, &self.chunks, &self.index)).unwrap_or_default()
    }

    pub fn content_root(&self) -> ContentRoot {
        content_root(&self.encode())
    }

    /// Decodes and checks: chunk lengths add up to the NAR that the index describes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > ENCODED_LEN_MAX {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        match bytes.first() {
            None | Some(&VERSION) => {}
            Some(&other) => return Err(ManifestError::Version(other)),
        }
        let (_, chunks, index): (u8, Vec<ChunkRef>, NarIndex) = postcard::from_bytes(bytes)?;
        let manifest = Manifest { chunks, index };
        manifest.check()?;
        match manifest.encode() == bytes {
            true => Ok(manifest),
            false => Err(ManifestError::NotCanonical),
        }
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.chunks.len() > CHUNKS_MAX {
            return Err(ManifestError::TooManyChunks(self.chunks.len()));
        }
        let mut total = 0;
        for chunk in &self.chunks {
            if chunk.len == 0 || chunk.len > CHUNK_LEN_MAX {
                return Err(ManifestError::ChunkLen(chunk.len));
            }
            total += u64::from(chunk.len);
        }
        let nar = self.index.nar_size();
        match total == nar {
            true => Ok(()),
            false => Err(ManifestError::Size { chunks: total, nar }),
        }
    }
}

/// The content root of an encoded manifest.
pub fn content_root(encoded: &[u8]) -> ContentRoot {
    *blake3::hash(encoded).as_bytes()
}
