//! One path in for bytes: a NAR, pushed in pieces, becomes chunks in segments.
//!
//! Nothing of it is visible before [`Store::commit`], and what is never committed is only dead bytes.
//! Whoever brings the bytes only looks for boundaries; SHA-256 and all that is done to chunks run
//! beside. Memory: the blocks that wait for SHA-256 and for packing, both bounded, 80 bytes a chunk,
//! and the NAR's index.

mod block;
pub mod packer;
pub mod packing;
pub mod pool;

use crate::chunker::Chunker;
use crate::error::IngestError;
use crate::hashing::NarHasher;
use crate::pins::PinSet;
use crate::store::Store;
use packing::Packing;
use shoal_wire::mesh::manifest::{Manifest, content_root};
use shoal_wire::nix::nar::index::{IndexBuilder, NarIndex};
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::nar::{NarError, NarSink};
use std::io;
use std::sync::Arc;

/// Files of this size have chunks of their own, so that they are found again whatever lies around
/// them. Part of the format.
const OWN_CHUNKS_FROM: u64 = 32 << 10;

/// Bytes of memory that a pinned chunk takes, with its place in the tables of all pins and of its own set.
const PIN_MEMORY: usize = 200;
/// The same of a file in the index, with its name.
const ENTRY_MEMORY: usize = 100;

/// A NAR being taken in. Dropping it gives it up.
pub struct Ingest {
    packing: Packing,
    parser: NarParser,
    plan: Plan,
    chunker: Chunker,
    hasher: NarHasher,
    failed: bool,
}

/// A whole NAR whose chunks are stored and kept until this is committed or dropped.
#[derive(Clone)]
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
pub struct Plan {
    index: IndexBuilder,
    cuts: Vec<u64>,
}

impl Store {
    /// Begins to take in a NAR.
    pub fn ingest(&self) -> Ingest {
        Ingest {
            packing: Packing::new(self),
            parser: NarParser::new(self.options.nar_limits),
            plan: Plan::default(),
            chunker: Chunker::default(),
            hasher: NarHasher::new(self.hashing.clone()),
            failed: false,
        }
    }
}

impl Ingested {
    /// Whether all of it is still here: something that was stored before may have been found damaged meanwhile, and
    /// then this cannot be committed.
    pub fn is_here(&self) -> bool {
        !self.pins.any_absent(&self.content_root)
    }

    /// Bytes of memory that it takes until it is dropped, roughly.
    pub fn memory(&self) -> usize {
        PIN_MEMORY * self.pins.len() + ENTRY_MEMORY * self.index.entries().len() + self.packed_manifest.len()
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
        let chunks = self.packing.finish()?;
        let nar_size = self.parser.offset();
        let index = self.plan.index.finish(nar_size)?;
        let manifest = Manifest { chunks, index };
        let encoded = manifest.encode();
        let content_root = content_root(&encoded);
        let packed_manifest = self.packing.encode_whole(&encoded)?;
        let mut pins = self.packing.take_pins();
        pins.hold(&content_root);
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
        self.plan.place_cuts(&mut self.chunker);
        self.hasher.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (taken, ends) = self.chunker.advance(rest);
            self.packing.push(&rest[..taken], ends)?;
            rest = &rest[taken..];
        }
        Ok(used)
    }
}

impl Plan {
    /// Tells the chunker of the cuts that were seen since the last time.
    pub fn place_cuts(&mut self, chunker: &mut Chunker) {
        for cut in self.cuts.drain(..) {
            chunker.cut_at(cut);
        }
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
