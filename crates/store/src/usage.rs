//! What chunking and compression save.

use crate::error::Result;
use crate::index::path_record::PathRecord;
use crate::index::tables::{CHUNKS, PATHS};
use crate::pins::prefix;
use crate::place::Place;
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::nix::store_path::StorePath;
use std::collections::HashSet;

/// Sizes of some paths, in bytes. Chunking saved `nar_bytes - unique_bytes`, compression
/// `unique_bytes - stored_bytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub paths: u64,
    /// Of their NARs, each as if it were alone.
    pub nar_bytes: u64,
    pub chunks: u64,
    /// Of their chunks, each once.
    pub unique_bytes: u64,
    /// Of the records that hold these chunks, headers included.
    pub stored_bytes: u64,
}

impl Usage {
    fn add_chunk(&mut self, place: &Place) {
        self.chunks += 1;
        self.unique_bytes += u64::from(place.chunk_len);
        self.stored_bytes += place.record_len();
    }
}

impl Store {
    /// Of all valid paths, and all chunks whether a path still has them or not.
    pub fn usage(&self) -> Result<Usage> {
        self.index.read(|txn| {
            let mut usage = Usage::default();
            for row in txn.open_table(PATHS)?.iter()? {
                let (key, row) = row?;
                usage.paths += 1;
                usage.nar_bytes += PathRecord::decode(key.value(), row.value())?.info.nar_size;
            }
            for row in txn.open_table(CHUNKS)?.iter()? {
                usage.add_chunk(&Place::decode(row?.1.value()));
            }
            Ok(usage)
        })
    }

    /// Of the valid ones of `paths`, each counted once. Memory: 8 bytes a chunk.
    pub fn usage_of(&self, paths: &[StorePath]) -> Result<Usage> {
        let mut usage = Usage::default();
        let (mut seen_paths, mut seen) = (HashSet::new(), HashSet::new());
        for path in paths.iter().filter(|path| seen_paths.insert(*path)) {
            let Some(manifest) = self.manifest(path)? else {
                continue;
            };
            usage.paths += 1;
            usage.nar_bytes += manifest.index.nar_size();
            let new = manifest.chunks.iter().map(|chunk| &chunk.hash).filter(|hash| seen.insert(prefix(hash)));
            let new: Vec<&[u8; 32]> = new.collect();
            for place in self.places(new.into_iter())?.into_iter().flatten() {
                usage.add_chunk(&place);
            }
        }
        Ok(usage)
    }

    /// The valid ones of `paths` and all that they refer to, directly or not.
    pub fn closure(&self, paths: &[StorePath]) -> Result<Vec<StorePath>> {
        let mut pending = paths.to_vec();
        let (mut seen, mut closure) = (HashSet::new(), Vec::new());
        while let Some(path) = pending.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if let Some(info) = self.path_info(&path)? {
                pending.extend(info.references);
                closure.push(path);
            }
        }
        Ok(closure)
    }
}
