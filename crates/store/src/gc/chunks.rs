//! Counts how many manifests want each chunk, and sweeps what none wants.

use super::rests::Rests;
use crate::commit::LiveChange;
use crate::error::Result;
use crate::frame::Decoder;
use crate::index::tables::{CHUNKS, MANIFESTS};
use crate::manifests;
use crate::pins::{Pins, prefix};
use crate::place::Place;
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::mesh::manifest::Manifest;

/// Chunks swept in one transaction: other writers wait for it, some milliseconds.
const CHUNKS_BATCH: usize = 2048;

/// Manifests that want each chunk, 12 bytes a chunk. Chunks are told apart by the start of their
/// hash; should two share it, they keep each other. Counts stop at the largest number and stay
/// there: such a chunk waits for a collection that counts fewer.
pub struct ChunkCounts {
    /// In order, which is that of the table.
    prefixes: Vec<u64>,
    counts: Vec<u32>,
}

impl ChunkCounts {
    /// Counts for every chunk that the index knows, by the manifests whose content root `wanted` takes.
    pub fn read(store: &Store, rests: &mut Rests<'_>, wanted: impl Fn(&[u8; 32]) -> bool) -> Result<Self> {
        let mut decoder = store.decoders.take(Decoder::new)?;
        store.index.read(|txn| {
            let mut prefixes = Vec::new();
            for row in txn.open_table(CHUNKS)?.iter()? {
                prefixes.push(prefix(row?.0.value()));
                if prefixes.len().is_multiple_of(CHUNKS_BATCH) {
                    rests.rest(0);
                }
            }
            let mut all = ChunkCounts { counts: vec![0; prefixes.len()], prefixes };
            for row in txn.open_table(MANIFESTS)?.iter()? {
                let (root, packed) = row?;
                if !wanted(root.value()) {
                    continue;
                }
                // What a damaged manifest wants nobody can know or read.
                let Ok(manifest) = manifests::unpack(root.value(), packed.value(), &mut decoder) else {
                    continue;
                };
                for chunk in &manifest.chunks {
                    if let Some(count) = all.count(&chunk.hash) {
                        *count = count.saturating_add(1);
                    }
                }
                rests.rest(0);
            }
            Ok(all)
        })
    }

    fn count(&mut self, hash: &[u8; 32]) -> Option<&mut u32> {
        let at = self.prefixes.binary_search(&prefix(hash)).ok()?;
        self.counts.get_mut(at)
    }

    /// Counts down what these manifests want; returns what nothing wants now.
    pub fn release(&mut self, gone: &[Manifest]) -> Vec<[u8; 32]> {
        let mut unused = Vec::new();
        for chunk in gone.iter().flat_map(|manifest| &manifest.chunks) {
            match self.count(&chunk.hash) {
                Some(&mut u32::MAX) | None => {}
                Some(count) => {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        unused.push(chunk.hash);
                    }
                }
            }
        }
        unused
    }

    fn is_unused(&self, hash: &[u8; 32]) -> bool {
        let at = self.prefixes.binary_search(&prefix(hash));
        at.ok().and_then(|at| self.counts.get(at)) == Some(&0)
    }
}

/// Removes chunks from the index, but for those that an ingest wants. Returns their stored bytes.
pub fn sweep(store: &Store, unused: &[[u8; 32]], rests: &mut Rests<'_>) -> Result<u64> {
    let mut freed = 0;
    for batch in unused.chunks(CHUNKS_BATCH) {
        freed += sweep_batch(store, batch)?;
        rests.rest(0);
    }
    Ok(freed)
}

fn sweep_batch(store: &Store, batch: &[[u8; 32]]) -> Result<u64> {
    let chosen = store.pins.begin_sweep(batch);
    let _ending = Ending(&store.pins);
    let places = store.places(chosen.iter())?;
    store.writer.write(false, move |txn| {
        let mut chunks = txn.open_table(CHUNKS)?;
        let mut live = LiveChange::default();
        let mut freed = 0;
        for (hash, place) in chosen.iter().zip(places) {
            let Some(place) = place else {
                continue;
            };
            // It may have been stored anew, elsewhere, since it was chosen.
            let same = chunks.get(hash)?.is_some_and(|row| Place::decode(row.value()) == place);
            if same {
                chunks.remove(hash)?;
                live.lost(&place);
                freed += place.record_len();
            }
        }
        live.apply(txn)?;
        Ok(freed)
    })
}

/// The stored bytes that [`sweep`] would free now.
pub fn sweepable(store: &Store, unused: &[[u8; 32]]) -> Result<u64> {
    let free = unused.iter().filter(|hash| store.pins.is_free(hash));
    Ok(store.places(free)?.iter().flatten().map(Place::record_len).sum())
}

/// The stored bytes of all that a collection sweeps before it deletes a path.
pub fn unused(store: &Store, counts: &ChunkCounts) -> Result<u64> {
    store.index.read(|txn| {
        let mut bytes = 0;
        for row in txn.open_table(CHUNKS)?.iter()? {
            let (hash, place) = row?;
            if counts.is_unused(hash.value()) && store.pins.is_free(hash.value()) {
                bytes += Place::decode(place.value()).record_len();
            }
        }
        Ok(bytes)
    })
}

/// Sweeps what no manifest wants, however it came to be: chunks kept after a crash, or left by a
/// collection that was cut short.
pub fn sweep_unused(store: &Store, counts: &ChunkCounts, rests: &mut Rests<'_>) -> Result<u64> {
    let mut freed = 0;
    let mut from = [0; 32];
    loop {
        let (unused, next) = store.index.read(|txn| {
            let mut unused = Vec::new();
            for row in txn.open_table(CHUNKS)?.range::<&[u8; 32]>(&from..)? {
                let hash = *row?.0.value();
                if unused.len() == CHUNKS_BATCH {
                    return Ok((unused, Some(hash)));
                }
                if counts.is_unused(&hash) {
                    unused.push(hash);
                }
            }
            Ok((unused, None))
        })?;
        freed += sweep(store, &unused, rests)?;
        match next {
            Some(next) => from = next,
            None => return Ok(freed),
        }
    }
}

/// Lets ingests trust the index again.
struct Ending<'a>(&'a Pins);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end_sweep();
    }
}
