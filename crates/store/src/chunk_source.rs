//! Reads chunks of NARs that are not valid yet.

use crate::chunks::ChunkReader;
use crate::error::Result;
use crate::ingest::Ingested;
use crate::manifests;
use crate::store::Store;
use shoal_wire::mesh::manifest::ChunkRef;
use std::io::{self, BufRead, Read};

/// The bytes of chunks in a row, every one verified. Somebody holds the chunks, or reading fails.
pub struct ChunkSource {
    reader: ChunkReader,
    chunks: std::vec::IntoIter<ChunkRef>,
    contents: Vec<u8>,
    used: usize,
}

impl Store {
    pub(crate) fn chunk_source(&self, chunks: Vec<ChunkRef>) -> Result<ChunkSource> {
        let reader = ChunkReader::new(self)?;
        Ok(ChunkSource { reader, chunks: chunks.into_iter(), contents: Vec::new(), used: 0 })
    }

    /// The NAR of what was ingested and is not committed.
    pub fn uncommitted_nar(&self, ingested: &Ingested) -> Result<ChunkSource> {
        let mut decoder = self.decoders.take(crate::frame::Decoder::new)?;
        let manifest = manifests::unpack(&ingested.content_root, &ingested.packed_manifest, &mut decoder);
        self.decoders.put(decoder);
        self.chunk_source(manifest?.chunks)
    }
}

/// Reads chunks that somebody holds, every one verified; keeps its work space between them.
pub struct HeldChunks(ChunkReader);

impl HeldChunks {
    pub(crate) fn new(store: &Store) -> Result<Self> {
        Ok(HeldChunks(ChunkReader::new(store)?))
    }

    /// The lengths of chunks; `None`: of one that is not there.
    pub fn lens<'a>(&self, hashes: impl Iterator<Item = &'a [u8; 32]> + Clone) -> Result<Vec<Option<u32>>> {
        let store = self.0.store();
        let places = store.places(hashes.clone())?;
        let placed = hashes.zip(places).map(|(hash, place)| store.pins.place(hash).or(place));
        Ok(placed.map(|place| place.map(|place| place.chunk_len)).collect())
    }

    /// As [`HeldChunks::read`], for one whose length nobody vouches for: no note is taken of damage.
    pub fn examine(&mut self, chunk: &ChunkRef, out: &mut Vec<u8>) -> Result<()> {
        let unpublished = self.0.store().pins.place(&chunk.hash);
        self.0.examine(chunk, unpublished, out)
    }

    /// Replaces `out` by the chunk's bytes.
    pub fn read(&mut self, chunk: &ChunkRef, out: &mut Vec<u8>) -> Result<()> {
        let unpublished = self.0.store().pins.place(&chunk.hash);
        self.0.read(chunk, unpublished, out)
    }
}

impl ChunkSource {
    fn fill(&mut self) -> Result<()> {
        while self.used >= self.contents.len() {
            let Some(chunk) = self.chunks.next() else { break };
            self.used = 0;
            let unpublished = self.reader.store().pins.place(&chunk.hash);
            self.reader.read(&chunk, unpublished, &mut self.contents)?;
        }
        Ok(())
    }
}

impl BufRead for ChunkSource {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Err(error) = self.fill() {
            self.contents.clear();
            self.used = 0;
            return Err(error.into());
        }
        Ok(self.contents.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.used += n;
    }
}

impl Read for ChunkSource {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.consume(n);
        Ok(n)
    }
}
