//! What members ask each other for bytes, and the parts of which answers consist.
//!
//! A request is one stream: the asker sends an [`Ask`] and ends its side; the answer is a [`Part`] for each thing that was
//! asked for, in order, and the bytes that it announces behind it. Whoever answers says [`Part::Busy`] rather than letting
//! others wait for long, and nothing of an answer is believed because of who sent it: chunks and manifests are compared with
//! their names, records with their authors' signatures.
//!
//! Encoding of a part: a byte of status, the length of the contents and the length of what follows, both u32 and
//! little-endian, and zero where nothing follows.

use super::format::{Format, FormatError, within};
use super::manifest::{CHUNK_LEN_MAX, ContentRoot, ENCODED_LEN_MAX};
use super::path_record::{PathKey, PathRecord};
use super::sealed::Sealed;
use super::transfer::FRAME_LEN_MAX;
use crate::nix::realisation::{BuildTraceKey, DrvOutput};
use crate::nix::store_path::StorePath;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most keys of one question for records: the references of nearly every path, 16 KiB.
pub const RECORDS_MAX: usize = 512;
/// Most chunks of one request: some 5 MiB of frames, of which a fast peer sends twenty a second.
pub const CHUNKS_MAX: usize = 256;
/// Most realisations of one question.
pub const REALISATIONS_MAX: usize = 256;
/// Longest realisation, as JSON: hundreds of dependencies and signatures.
pub const REALISATION_LEN_MAX: usize = 256 << 10;
/// Longest build log, compressed: text shrinks to a tenth, so a GiB or so.
pub const LOG_LEN_MAX: usize = 128 << 20;
/// Bytes of an encoded [`Part`].
pub const PART_LEN: usize = 9;

/// How urgently bytes are wanted; the least is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Urgency {
    /// A build cannot begin without them.
    Build,
    /// A client waits.
    Client,
    /// Nobody waits: another copy is made.
    Replication,
}

/// Names a realisation, in Nix's old or new form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RealisationKey {
    Output(DrvOutput),
    Trace(BuildTraceKey),
}

/// What is asked for on one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Sealed path records, made by whoever answers from what it holds. One part for each key.
    Records(Vec<PathKey>),
    /// A manifest as one zstd frame of its encoding. One part.
    Manifest(ContentRoot),
    /// Chunks by their BLAKE3, each as its stored zstd frame. One part for each.
    Chunks { urgency: Urgency, hashes: Vec<[u8; 32]> },
    /// Realisations as JSON. One part for each key.
    Realisations(Vec<RealisationKey>),
    /// The build log of a derivation as one zstd stream. One part, whose length of contents is 0: it is not known.
    Log(StorePath),
}

impl Ask {
    /// Parts of the answer.
    pub fn parts(&self) -> usize {
        match self {
            Ask::Records(keys) => keys.len(),
            Ask::Chunks { hashes, .. } => hashes.len(),
            Ask::Realisations(keys) => keys.len(),
            Ask::Manifest(_) | Ask::Log(_) => 1,
        }
    }

    /// Limits of lengths of contents and of bytes in each part of the answer.
    pub fn limits(&self) -> PartLimits {
        let (contents, bytes) = match self {
            Ask::Records(_) => (Sealed::<PathRecord>::LEN_MAX, Sealed::<PathRecord>::LEN_MAX),
            Ask::Manifest(_) => (ENCODED_LEN_MAX, packed_len_max(ENCODED_LEN_MAX)),
            Ask::Chunks { .. } => (CHUNK_LEN_MAX as usize, FRAME_LEN_MAX),
            Ask::Realisations(_) => (REALISATION_LEN_MAX, REALISATION_LEN_MAX),
            Ask::Log(_) => (0, LOG_LEN_MAX),
        };
        PartLimits { contents, bytes }
    }
}

/// Longest zstd frame of `len` bytes.
pub const fn packed_len_max(len: usize) -> usize {
    len + (len >> 7) + 512
}

impl Format for Ask {
    const WHAT: &'static str = "request for chunks";
    const VERSION: u8 = 1;
    /// [`REALISATIONS_MAX`] keys with long names are the longest.
    const LEN_MAX: usize = 128 << 10;

    fn check(&self) -> Result<(), FormatError> {
        let few = |count: usize, max: usize| within::<Self>("count", (1..=max).contains(&count));
        match self {
            Ask::Records(keys) => few(keys.len(), RECORDS_MAX),
            Ask::Chunks { hashes, .. } => few(hashes.len(), CHUNKS_MAX),
            Ask::Realisations(keys) => few(keys.len(), REALISATIONS_MAX),
            Ask::Log(path) => within::<Self>("derivation", path.name().ends_with(".drv")),
            Ask::Manifest(_) => Ok(()),
        }
    }
}

/// Longest contents and most bytes that a part may announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartLimits {
    pub contents: usize,
    pub bytes: usize,
}

/// What is answered for one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Whoever answers does not have it, or not whole.
    Absent,
    /// It may be asked for again, a little later.
    Busy,
    Here {
        /// Length of the contents, once decompressed.
        len: u32,
        /// Bytes that follow; never 0.
        bytes: u32,
        /// A chunk that was stored without trying to compress it.
        hasty: bool,
    },
}

const ABSENT: u8 = 0;
const BUSY: u8 = 1;
const HERE: u8 = 2;
const HASTY: u8 = 3;

/// Why bytes are no part of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PartError {
    #[error("a part with status {0}")]
    Status(u8),
    #[error("a part without bytes that has lengths, or the other way round")]
    Lengths,
    #[error("a part of {found} bytes, more than {max}")]
    TooLong { found: u32, max: usize },
}

impl Part {
    pub fn encode(&self) -> [u8; PART_LEN] {
        let (status, len, bytes) = match *self {
            Part::Absent => (ABSENT, 0, 0),
            Part::Busy => (BUSY, 0, 0),
            Part::Here { len, bytes, hasty: false } => (HERE, len, bytes),
            Part::Here { len, bytes, hasty: true } => (HASTY, len, bytes),
        };
        let mut out = [status; PART_LEN];
        out[1..5].copy_from_slice(&u32::to_le_bytes(len));
        out[5..].copy_from_slice(&u32::to_le_bytes(bytes));
        out
    }

    /// Refuses what is outside `limits` before anybody takes memory for it.
    pub fn decode(bytes: &[u8; PART_LEN], limits: PartLimits) -> Result<Part, PartError> {
        let [status, a, b, c, d, e, f, g, h] = *bytes;
        let (len, bytes) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let has_bytes = match status {
            ABSENT | BUSY if len == 0 => false,
            HERE | HASTY => true,
            ABSENT | BUSY => return Err(PartError::Lengths),
            other => return Err(PartError::Status(other)),
        };
        if has_bytes != (bytes > 0) {
            return Err(PartError::Lengths);
        }
        for (found, max) in [(len, limits.contents), (bytes, limits.bytes)] {
            if found as usize > max {
                return Err(PartError::TooLong { found, max });
            }
        }
        Ok(match status {
            ABSENT => Part::Absent,
            BUSY => Part::Busy,
            status => Part::Here { len, bytes, hasty: status == HASTY },
        })
    }
}

#[cfg(test)]
#[path = "chunks_tests.rs"]
mod tests;
