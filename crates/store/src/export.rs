//! One path out for NARs: chunks read back, verified, in order.

use crate::chunks::ChunkReader;
use crate::error::{Result, in_path};
use crate::leases::Lease;
use crate::read_ahead::{self, ReadAhead};
use crate::store::Store;
use shoal_wire::mesh::manifest::Manifest;
use shoal_wire::nix::nar::index::NarIndex;
use shoal_wire::nix::store_path::StorePath;
use std::io::{self, Read};
use std::sync::Arc;

/// The NAR of a path, or a range of it. The path is not deleted while this lives.
pub struct Export {
    path: StorePath,
    manifest: Arc<Manifest>,
    reader: ChunkReader,
    ahead: Option<ReadAhead>,
    _lease: Lease,
    /// Offsets in the NAR: of the next byte, and of the end.
    at: u64,
    end: u64,
    /// The chunk to read next, and where it begins in the NAR.
    next: usize,
    next_at: u64,
    /// The chunk read last, and how much of it is used up or skipped.
    contents: Vec<u8>,
    used: usize,
}

impl Store {
    /// The NAR of a valid path. Every byte read from it was verified; damage is an error of kind
    /// `InvalidData` that holds [`crate::Error::Damaged`].
    pub fn export(&self, path: &StorePath) -> Result<Option<Export>> {
        let lease = Lease::new(&self.leases, path);
        let Some(manifest) = self.manifest(path)? else {
            return Ok(None);
        };
        Ok(Some(Export {
            path: path.clone(),
            end: manifest.index.nar_size(),
            manifest: Arc::new(manifest),
            reader: ChunkReader::new(self)?,
            ahead: None,
            _lease: lease,
            at: 0,
            next: 0,
            next_at: 0,
            contents: Vec::new(),
            used: 0,
        }))
    }
}

impl Export {
    /// Bytes of the whole NAR.
    pub fn size(&self) -> u64 {
        self.manifest.index.nar_size()
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    pub fn index(&self) -> &NarIndex {
        &self.manifest.index
    }

    /// What is read from here on: `len` bytes from `offset`, or what the NAR has of them.
    pub fn range(mut self, offset: u64, len: u64) -> Self {
        self.seek(offset, len);
        self
    }

    /// As [`Export::range`], in place.
    pub fn seek(&mut self, offset: u64, len: u64) {
        let size = self.size();
        self.at = offset.min(size);
        self.end = self.at.saturating_add(len).min(size);
        let current_from = self.next_at - self.contents.len() as u64;
        if (current_from..self.next_at).contains(&self.at) {
            self.used = (self.at - current_from) as usize;
            return;
        }
        (self.next, self.next_at) = self.find(self.at);
        self.contents.clear();
        self.used = 0;
    }

    /// The chunk that byte `offset` is in, and where it begins.
    fn find(&self, offset: u64) -> (usize, u64) {
        let (mut from, mut chunk) = (0, 0);
        // Goes on from where we are, unless that is behind.
        if self.next_at <= offset {
            (from, chunk) = (self.next_at, self.next);
        }
        while let Some(next) = self.manifest.chunks.get(chunk) {
            if offset < from + u64::from(next.len) {
                break;
            }
            from += u64::from(next.len);
            chunk += 1;
        }
        (chunk, from)
    }

    /// Reads the chunk that the next byte is in.
    fn fill(&mut self) -> Result<()> {
        self.contents.clear();
        let (number, chunk_at) = (self.next, self.next_at);
        let Some(chunk) = self.manifest.chunks.get(number) else {
            return Ok(());
        };
        if self.ahead.is_none() && self.end - self.at >= read_ahead::WORTH_IT {
            self.ahead = ReadAhead::start(self.reader.store(), &self.manifest);
        }
        match &self.ahead {
            Some(ahead) => ahead.read(number, &mut self.reader, &mut self.contents)?,
            None => self.reader.read(chunk, None, &mut self.contents)?,
        }
        self.next += 1;
        self.next_at += u64::from(chunk.len);
        self.used = (self.at - chunk_at) as usize;
        Ok(())
    }

    /// What is verified and not yet read: the rest of a chunk. Empty at the end of the range.
    pub fn fill_buf(&mut self) -> Result<&[u8]> {
        if self.at < self.end && self.used >= self.contents.len() {
            let filled = self.fill();
            if filled.is_err() {
                self.contents.clear();
                self.used = 0;
            }
            filled.map_err(in_path(&self.path))?;
        }
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let rest = self.contents.get(self.used..).unwrap_or_default();
        Ok(&rest[..rest.len().min(left)])
    }

    /// Uses up `n` bytes of [`Export::fill_buf`].
    pub fn consume(&mut self, n: usize) {
        self.used += n;
        self.at += n as u64;
    }
}

impl Read for Export {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl io::BufRead for Export {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(Export::fill_buf(self)?)
    }

    fn consume(&mut self, n: usize) {
        Export::consume(self, n);
    }
}
