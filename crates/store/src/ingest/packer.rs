//! From a block to records in a segment: name each chunk, leave out what is stored, compress, write.

use super::block::Block;
use crate::error::{Error, Result};
use crate::frame::{Effort, Encoder, FRAME_LEN_MAX};
use crate::pins::PinSet;
use crate::place::Place;
use crate::segment::record::{HEADER_LEN, Header};
use crate::store::Store;
use shoal_wire::mesh::manifest::ChunkRef;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The ingest that blocks belong to.
pub struct Target {
    pub store: Store,
    pub pins: Mutex<PinSet>,
    /// Nobody wants it any more.
    pub given_up: AtomicBool,
}

/// Packs one block after the other; keeps its work space between them.
pub struct Packer {
    encoder: Encoder,
    batch: Batch,
}

/// Records that are not written yet, end to end.
#[derive(Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    /// Of each record its chunk's length, its offset in `bytes` and its header.
    pub records: Vec<(u32, u32, Header)>,
}

impl Packer {
    pub fn new(level: i32) -> io::Result<Packer> {
        Ok(Packer { encoder: Encoder::new(level)?, batch: Batch::default() })
    }

    /// The one in `slot`, which is made if it is not there.
    pub fn ready(slot: &mut Option<Packer>, level: i32) -> Result<&mut Packer> {
        match slot {
            Some(packer) => Ok(packer),
            None => Ok(slot.insert(Packer::new(level).map_err(Error::io("prepare to use", Path::new("zstd")))?)),
        }
    }

    /// One frame of anything, compressed whether it helps or not.
    pub fn encode_whole(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.encoder.encode_whole(bytes)
    }

    /// Stores the block's chunks, which are pinned from here on. `effort` is asked before each.
    pub fn pack(&mut self, target: &Target, block: &Block, effort: impl Fn() -> Effort) -> Result<Vec<ChunkRef>> {
        self.batch.clear();
        let name = |bytes: &[u8]| ChunkRef { hash: *blake3::hash(bytes).as_bytes(), len: bytes.len() as u32 };
        let chunks: Vec<ChunkRef> = block.chunks().map(name).collect();
        let absent = target.claim(&chunks)?;
        for ((chunk, bytes), _) in chunks.iter().zip(block.chunks()).zip(absent).filter(|(_, absent)| *absent) {
            if target.given_up.load(Ordering::Relaxed) {
                return Err(Error::Stopped("the ingest was given up".into()));
            }
            let pushed = self.batch.push(*chunk, bytes, effort(), &mut self.encoder);
            pushed.map_err(Error::io("compress", &target.store.dir))?;
        }
        self.batch.write(&target.store)?;
        Ok(chunks)
    }
}

impl Target {
    /// Pins chunks; which of them are to be stored.
    fn claim(&self, chunks: &[ChunkRef]) -> Result<Vec<bool>> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let indexed = |hash| Ok(self.store.places(std::iter::once(hash))?.iter().any(Option::is_some));
        chunks.iter().map(|chunk| pins.claim(&chunk.hash, || indexed(&chunk.hash))).collect()
    }
}

impl Batch {
    fn push(&mut self, chunk: ChunkRef, bytes: &[u8], effort: Effort, encoder: &mut Encoder) -> io::Result<()> {
        self.bytes.reserve(HEADER_LEN + FRAME_LEN_MAX);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER_LEN]);
        let encoded = encoder.encode(bytes, effort, &mut self.bytes)?;
        let header = Header::of(chunk.hash, encoded.hasty, &self.bytes[at + HEADER_LEN..]);
        self.bytes[at..at + HEADER_LEN].copy_from_slice(&header.encode());
        self.records.push((chunk.len, at as u32, header));
        Ok(())
    }

    /// Writes the records, but for what another ingest has written meanwhile, and forgets them.
    pub fn write(&mut self, store: &Store) -> Result<()> {
        self.write_once(store)?;
        self.clear();
        Ok(())
    }

    /// The same, and leaves what was written.
    pub fn write_once(&mut self, store: &Store) -> Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let mut appender = store.segments.appender();
        let wanted = store.pins.absent(self.records.iter().map(|(.., header)| header.hash));
        self.retain(&wanted);
        if !self.records.is_empty() {
            let (segment, base) = appender.append(&self.bytes)?;
            let placed = self
                .records
                .iter()
                .map(|(chunk_len, at, header)| (header.hash, Place::of(header, segment, base + at, *chunk_len)));
            store.pins.written(placed);
        }
        Ok(())
    }

    /// Drops the records for which `keep` is false.
    pub fn retain(&mut self, keep: &[bool]) {
        if keep.iter().all(|&keep| keep) {
            return;
        }
        let old = std::mem::take(self);
        for ((chunk_len, at, header), _) in old.records.into_iter().zip(keep).filter(|(_, keep)| **keep) {
            let record = &old.bytes[at as usize..][..HEADER_LEN + header.frame_len as usize];
            self.records.push((chunk_len, self.bytes.len() as u32, header));
            self.bytes.extend_from_slice(record);
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
    }
}
