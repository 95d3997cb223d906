//! One path in for bytes: a NAR, pushed in pieces, becomes chunks in segments.
//!
//! Nothing of it is visible before [`Store::commit`], and what is never committed is only dead bytes.
//! Memory: one chunk, one batch of records, the blocks that wait for SHA-256, 40 bytes a chunk, and
//! the NAR's index.

use crate::chunker::{self, Chunker};
use crate::error::{Error, IngestError, Result};
use crate::frame::{Effort, Encoded, Encoder, FRAME_LEN_MAX};
use crate::hashing::NarHasher;
use crate::pins::PinSet;
use crate::place::Place;
use crate::segment::record::{HEADER_LEN, Header};
use crate::store::Store;
use shoal_wire::mesh::manifest::{ChunkRef, Manifest, content_root};
use shoal_wire::nix::nar::index::{IndexBuilder, NarIndex};
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::nar::{NarError, NarSink};
use std::io;
use std::sync::Arc;

/// Files of this size have chunks of their own, so that they are found again whatever lies around
/// them. Part of the format.
const OWN_CHUNKS_FROM: u64 = 32 << 10;

/// Bytes of records that are written at once.
const BATCH_LEN: usize = 1 << 20;

/// A NAR being taken in. Dropping it gives it up.
pub struct Ingest {
    intake: Intake,
    parser: NarParser,
    plan: Plan,
    chunker: Chunker,
    hasher: NarHasher,
    failed: bool,
}

/// A whole NAR whose chunks are stored and kept until this is committed or dropped.
pub struct Ingested {
    pub nar_hash: [u8; 32],
    pub nar_size: u64,
    /// Names the manifest.
    pub content_root: [u8; 32],
    pub index: Arc<NarIndex>,
    pub(crate) packed_manifest: Vec<u8>,
    pub(crate) pins: PinSet,
}

/// Listens to the parser: keeps the index, and where chunks must begin.
#[derive(Default)]
struct Plan {
    index: IndexBuilder,
    cuts: Vec<u64>,
}

/// Where chunks go.
struct Intake {
    store: Store,
    chunks: Vec<ChunkRef>,
    pins: PinSet,
    encoder: Option<Encoder>,
    batch: Batch,
}

/// Records that are not written yet, end to end.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Of each record its chunk, its offset in `bytes` and its frame.
    records: Vec<(ChunkRef, u32, Encoded)>,
}

impl Store {
    /// Begins to take in a NAR.
    pub fn ingest(&self) -> Ingest {
        let intake = Intake {
            store: self.clone(),
            chunks: Vec::new(),
            pins: PinSet::new(self.pins.clone()),
            encoder: None,
            batch: Batch::default(),
        };
        Ingest {
            intake,
            parser: NarParser::new(self.options.nar_limits),
            plan: Plan::default(),
            chunker: Chunker::default(),
            hasher: NarHasher::new(self.hashing.clone()),
            failed: false,
        }
    }
}

impl Ingest {
    /// Takes what of `bytes` belongs to the NAR and returns how much that is: all of it unless the
    /// NAR ended. After an error the ingest takes nothing any more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, IngestError> {
        if self.failed {
            return Err(IngestError::Failed);
        }
        let fed = self.try_feed(bytes);
        self.failed = fed.is_err();
        fed
    }

    /// Whether the whole NAR has been seen.
    pub fn is_done(&self) -> bool {
        self.parser.is_done()
    }

    /// Bytes of the NAR seen so far.
    pub fn offset(&self) -> u64 {
        self.parser.offset()
    }

    /// Ends the NAR. Its bytes are in segments now; [`Store::commit`] makes them durable and visible.
    pub fn finish(mut self) -> Result<Ingested, IngestError> {
        if self.failed {
            return Err(IngestError::Failed);
        }
        self.parser.finish()?;
        let intake = &mut self.intake;
        self.chunker.finish(|chunk| intake.chunk(chunk))?;
        intake.flush()?;
        let nar_size = self.parser.offset();
        let index = self.plan.index.finish(nar_size)?;
        let Intake { chunks, mut pins, store, mut encoder, .. } = self.intake;
        let manifest = Manifest { chunks, index };
        let encoded = manifest.encode();
        let content_root = content_root(&encoded);
        pins.hold(&content_root);
        let packed_manifest = ready(&mut encoder, &store)?.encode_whole(&encoded);
        let packed_manifest = packed_manifest.map_err(Error::io("compress", &store.dir))?;
        encoder.into_iter().for_each(|encoder| store.encoders.put(encoder));
        Ok(Ingested {
            nar_hash: self.hasher.finish(),
            nar_size,
            content_root,
            index: Arc::new(manifest.index),
            packed_manifest,
            pins,
        })
    }

    fn try_feed(&mut self, bytes: &[u8]) -> Result<usize, IngestError> {
        let used = self.parser.feed(bytes, &mut self.plan)?;
        let bytes = &bytes[..used];
        for cut in self.plan.cuts.drain(..) {
            self.chunker.cut_at(cut);
        }
        self.hasher.update(bytes);
        let intake = &mut self.intake;
        self.chunker.feed(bytes, |chunk| intake.chunk(chunk))?;
        Ok(used)
    }
}

/// Bytes after the end of the NAR are an error.
impl io::Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let used = self.feed(bytes)?;
        match used {
            0 if !bytes.is_empty() => Err(IngestError::Trailing(bytes.len() as u64).into()),
            used => Ok(used),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Intake {
    fn chunk(&mut self, bytes: &[u8]) -> Result<()> {
        debug_assert!(bytes.len() <= chunker::MAX);
        let hash = *blake3::hash(bytes).as_bytes();
        let chunk = ChunkRef { hash, len: bytes.len() as u32 };
        self.chunks.push(chunk);
        let store = &self.store;
        let indexed = || Ok(store.places(std::iter::once(&hash))?.iter().any(Option::is_some));
        if !self.pins.claim(&hash, indexed)? {
            return Ok(());
        }
        let encoder = ready(&mut self.encoder, store)?;
        self.batch.push(chunk, bytes, encoder).map_err(Error::io("compress", &store.dir))?;
        match self.batch.bytes.len() >= BATCH_LEN {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Writes the batch, but for what another ingest has written meanwhile.
    fn flush(&mut self) -> Result<()> {
        if self.batch.records.is_empty() {
            return Ok(());
        }
        let mut appender = self.store.segments.appender();
        let pins = &self.store.pins;
        let wanted = pins.absent(self.batch.records.iter().map(|(chunk, ..)| chunk.hash));
        self.batch.retain(&wanted);
        if !self.batch.records.is_empty() {
            let (segment, base) = appender.append(&self.batch.bytes)?;
            let placed = self.batch.records.iter().map(|&(chunk, at, Encoded { frame_len, hasty })| {
                let (offset, frame_len) = (base + at, frame_len as u32);
                (chunk.hash, Place { segment, offset, frame_len, chunk_len: chunk.len, hasty })
            });
            pins.written(placed);
        }
        self.batch.bytes.clear();
        self.batch.records.clear();
        Ok(())
    }
}

/// The encoder, from the store's idle ones the first time.
fn ready<'a>(slot: &'a mut Option<Encoder>, store: &Store) -> Result<&'a mut Encoder> {
    if slot.is_none() {
        let level = store.options.level;
        let mut encoder = store.encoders.take(|| Encoder::new(level))?;
        encoder.set_level(level).map_err(Error::io("compress", &store.dir))?;
        *slot = Some(encoder);
    }
    slot.as_mut().ok_or_else(|| Error::Stopped("no encoder".into()))
}

impl Batch {
    fn push(&mut self, chunk: ChunkRef, bytes: &[u8], encoder: &mut Encoder) -> io::Result<()> {
        self.bytes.reserve(HEADER_LEN + FRAME_LEN_MAX);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER_LEN]);
        let encoded = encoder.encode(bytes, Effort::Level, &mut self.bytes)?;
        let header = Header { hash: chunk.hash, frame_len: encoded.frame_len as u32 }.encode();
        self.bytes[at..at + HEADER_LEN].copy_from_slice(&header);
        self.records.push((chunk, at as u32, encoded));
        Ok(())
    }

    /// Drops the records for which `keep` is false.
    fn retain(&mut self, keep: &[bool]) {
        if keep.iter().all(|&keep| keep) {
            return;
        }
        let old = std::mem::take(self);
        for ((chunk, at, encoded), _) in old.records.into_iter().zip(keep).filter(|(_, keep)| **keep) {
            let record = &old.bytes[at as usize..][..HEADER_LEN + encoded.frame_len];
            self.records.push((chunk, self.bytes.len() as u32, encoded));
            self.bytes.extend_from_slice(record);
        }
    }
}

impl NarSink for Plan {
    type Error = NarError;

    fn directory(&mut self, name: &[u8], offset: u64) -> Result<(), NarError> {
        self.index.directory(name, offset)
    }

    fn end_directory(&mut self, offset: u64) -> Result<(), NarError> {
        self.index.end_directory(offset)
    }

    fn regular(&mut self, name: &[u8], executable: bool, size: u64, offset: u64) -> Result<(), NarError> {
        if size >= OWN_CHUNKS_FROM {
            self.cuts.extend([offset, offset + size]);
        }
        self.index.regular(name, executable, size, offset)
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], offset: u64) -> Result<(), NarError> {
        self.index.symlink(name, target, offset)
    }
}
