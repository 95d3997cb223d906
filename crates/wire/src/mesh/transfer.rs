//! What `shoal push` and `shoal pull` say to a node: questions, chunks, and paths made of chunks.
//!
//! A message is a version byte, a byte for its kind, and the value: postcard, but for [`ChunkBatch`], which is laid out
//! so that frames need no copy. What is longer or has more entries than its limit is refused, not shortened.
//! Lengths and counts are in bytes and entries; numbers of a batch are little-endian.

use crate::mesh::manifest::{CHUNK_LEN_MAX, CHUNKS_MAX, ChunkRef};
use crate::nix::path_info::PathInfo;
use crate::nix::store_path::StorePath;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const VERSION: u8 = 1;
/// Longest message. The largest is a commit, whose chunks take up to 37 bytes each: enough for a NAR of 100 GiB.
pub const MESSAGE_LEN_MAX: usize = 64 << 20;
/// Most paths of a question: a MiB, and more than most closures have.
pub const PATHS_MAX: usize = 16 << 10;
/// Most chunks of a question, or of a request for chunks: half a MiB of hashes, the names of a GiB.
pub const HASHES_MAX: usize = 16 << 10;
/// Most chunks of a batch.
pub const FRAMES_MAX: usize = 1024;
/// Longest batch: some hundred chunks, so that a connection that breaks costs little.
pub const BATCH_LEN_MAX: usize = 8 << 20;
/// Longest frame of one chunk; what zstd makes of incompressible bytes stays below it.
pub const FRAME_LEN_MAX: usize = CHUNK_LEN_MAX as usize + (CHUNK_LEN_MAX as usize >> 7) + 512;
/// Most paths of a commit: they become valid in one transaction, which others wait for.
pub const ENTRIES_MAX: usize = 1024;

const HEAD_LEN: usize = 2;
/// postcard's for a count, and for a number of 32 bits: 7 bits a byte.
const COUNT_LEN_MAX: usize = 10;
const NUMBER_LEN_MAX: usize = 5;
const FRAME_HEAD_LEN: usize = 32 + 4 + 4;

/// Why bytes are not the message that was expected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TransferError {
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    #[error("a message of version {0}; this program knows {VERSION}")]
    Version(u8),
    #[error("a message of kind {found} instead of {expected}")]
    Kind { expected: u8, found: u8 },
    #[error("a message that does not decode: {0}")]
    Encoding(#[from] postcard::Error),
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    #[error("a message with {count} {what}, more than {limit}")]
    TooMany { what: &'static str, count: usize, limit: usize },
    #[error("the message ends within a chunk")]
    Truncated,
    #[error("a chunk of {0} bytes")]
    ChunkLen(u32),
    #[error("a frame of {0} bytes")]
    FrameLen(u32),
    #[error("a chunk's number, {number}, does not follow {before}")]
    Order { before: u32, number: u32 },
    #[error("{path} has {chunks} bytes of chunks for a NAR of {nar} bytes")]
    Size { path: StorePath, chunks: u64, nar: u64 },
}

/// A message with one value in postcard.
pub trait Message: Serialize + DeserializeOwned {
    const KIND: u8;
    /// Longest message that is decoded: what has more cannot keep the limits, and would take memory before that is seen.
    const LEN_MAX: usize = MESSAGE_LEN_MAX;

    /// Whether the limits are kept.
    fn check(&self) -> Result<(), TransferError>;

    fn encode(&self) -> Vec<u8> {
        // Serializing into a Vec fails only for types whose length is unknown.
        postcard::to_stdvec(&(VERSION, Self::KIND, self)).unwrap_or_default()
    }

    fn decode(bytes: &[u8]) -> Result<Self, TransferError> {
        let rest = open(bytes, Self::KIND, Self::LEN_MAX)?;
        let (message, rest) = postcard::take_from_bytes::<Self>(rest)?;
        if !rest.is_empty() {
            return Err(TransferError::Trailing(rest.len()));
        }
        message.check()?;
        Ok(message)
    }
}

/// What follows the head.
fn open(bytes: &[u8], kind: u8, limit: usize) -> Result<&[u8], TransferError> {
    if bytes.len() > limit {
        return Err(TransferError::TooLong(bytes.len()));
    }
    match bytes {
        [VERSION, found, rest @ ..] if *found == kind => Ok(rest),
        [VERSION, found, ..] => Err(TransferError::Kind { expected: kind, found: *found }),
        [version, _, ..] => Err(TransferError::Version(*version)),
        _ => Err(TransferError::Truncated),
    }
}

fn at_most(what: &'static str, count: usize, limit: usize) -> Result<(), TransferError> {
    if count > limit { Err(TransferError::TooMany { what, count, limit }) } else { Ok(()) }
}

/// Which of these paths are not valid?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathQuery(pub Vec<StorePath>);

impl Message for PathQuery {
    const KIND: u8 = 1;

    fn check(&self) -> Result<(), TransferError> {
        at_most("paths", self.0.len(), PATHS_MAX)
    }
}

/// Which of these chunks, by their BLAKE3, are lacking?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkQuery(pub Vec<[u8; 32]>);

impl Message for ChunkQuery {
    const KIND: u8 = 2;

    fn check(&self) -> Result<(), TransferError> {
        at_most("chunks", self.0.len(), HASHES_MAX)
    }
}

/// Send me these chunks of a path: their places in its [`Entry`], ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRequest(pub Vec<u32>);

impl Message for ChunkRequest {
    const KIND: u8 = 7;
    const LEN_MAX: usize = HEAD_LEN + COUNT_LEN_MAX + HASHES_MAX * NUMBER_LEN_MAX;

    fn check(&self) -> Result<(), TransferError> {
        at_most("chunks", self.0.len(), HASHES_MAX)?;
        match self.0.iter().zip(self.0.iter().skip(1)).find(|(before, number)| before >= number) {
            Some((&before, &number)) => Err(TransferError::Order { before, number }),
            None => Ok(()),
        }
    }
}

/// The answer to a question: of each thing asked about whether it is lacking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking(pub Vec<bool>);

impl Message for Lacking {
    const KIND: u8 = 3;

    fn check(&self) -> Result<(), TransferError> {
        at_most("answers", self.0.len(), PATHS_MAX.max(HASHES_MAX))
    }
}

/// A path and the chunks whose concatenation is its NAR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub info: PathInfo,
    pub chunks: Vec<ChunkRef>,
}

impl Entry {
    fn check(&self) -> Result<(), TransferError> {
        at_most("chunks", self.chunks.len(), CHUNKS_MAX)?;
        let mut chunks = 0;
        for chunk in &self.chunks {
            if chunk.len == 0 || chunk.len > CHUNK_LEN_MAX {
                return Err(TransferError::ChunkLen(chunk.len));
            }
            chunks += u64::from(chunk.len);
        }
        let nar = self.info.nar_size;
        // A sum of that many lengths is far below 2^64.
        match chunks == nar {
            true => Ok(()),
            false => Err(TransferError::Size { path: self.info.path.clone(), chunks, nar }),
        }
    }
}

/// Paths to be made valid, all or none; each after what it refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit(pub Vec<Entry>);

impl Message for Commit {
    const KIND: u8 = 4;

    fn check(&self) -> Result<(), TransferError> {
        at_most("paths", self.0.len(), ENTRIES_MAX)?;
        self.0.iter().try_for_each(Entry::check)
    }
}

/// The answer to a request for a path.
impl Message for Entry {
    const KIND: u8 = 5;

    fn check(&self) -> Result<(), TransferError> {
        Entry::check(self)
    }
}

/// Chunks on their way, each as one zstd frame that states its content size: count, then for each chunk its BLAKE3,
/// its length, its frame's length, its frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkBatch {
    bytes: Vec<u8>,
    count: u32,
}

impl Default for ChunkBatch {
    fn default() -> Self {
        ChunkBatch { bytes: vec![VERSION, Self::KIND, 0, 0, 0, 0], count: 0 }
    }
}

impl ChunkBatch {
    const KIND: u8 = 6;

    /// Whether another frame of `len` bytes fits.
    pub fn has_room(&self, len: usize) -> bool {
        (self.count as usize) < FRAMES_MAX && self.bytes.len() + FRAME_HEAD_LEN + len <= BATCH_LEN_MAX
    }

    /// `frame` is no longer than [`FRAME_LEN_MAX`], and there is room for it.
    pub fn push(&mut self, chunk: &ChunkRef, frame: &[u8]) {
        debug_assert!(frame.len() <= FRAME_LEN_MAX && self.has_room(frame.len()));
        self.bytes.extend_from_slice(&chunk.hash);
        self.bytes.extend_from_slice(&chunk.len.to_le_bytes());
        self.bytes.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(frame);
        self.count += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn encode(mut self) -> Vec<u8> {
        self.bytes[HEAD_LEN..HEAD_LEN + 4].copy_from_slice(&self.count.to_le_bytes());
        self.bytes
    }

    /// The chunks of a message with their frames. Whether a frame holds its chunk is for the reader to see.
    pub fn decode(bytes: &[u8]) -> Result<Vec<(ChunkRef, &[u8])>, TransferError> {
        let mut rest = open(bytes, Self::KIND, BATCH_LEN_MAX)?;
        let count = number(&mut rest)? as usize;
        at_most("chunks", count, FRAMES_MAX)?;
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            let (hash, tail) = rest.split_first_chunk::<32>().ok_or(TransferError::Truncated)?;
            rest = tail;
            let chunk = ChunkRef { hash: *hash, len: number(&mut rest)? };
            if chunk.len == 0 || chunk.len > CHUNK_LEN_MAX {
                return Err(TransferError::ChunkLen(chunk.len));
            }
            let len = number(&mut rest)?;
            if len as usize > FRAME_LEN_MAX {
                return Err(TransferError::FrameLen(len));
            }
            let (frame, tail) = rest.split_at_checked(len as usize).ok_or(TransferError::Truncated)?;
            rest = tail;
            chunks.push((chunk, frame));
        }
        match rest.len() {
            0 => Ok(chunks),
            left => Err(TransferError::Trailing(left)),
        }
    }
}

fn number(rest: &mut &[u8]) -> Result<u32, TransferError> {
    let (number, tail) = rest.split_first_chunk::<4>().ok_or(TransferError::Truncated)?;
    *rest = tail;
    Ok(u32::from_le_bytes(*number))
}
