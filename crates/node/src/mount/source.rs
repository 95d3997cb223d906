//! What mounts show: the local store's paths, and those of other nodes, of which only what is read is brought here.
//!
//! Chunks that came for a path that is not valid here are held in memory and not committed: after a restart, or when too
//! many are held, they are fetched again.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_fuse::{Deliver, Source, SourceError};
use shoal_mesh::fetcher::{Part, Urgency};
use shoal_store::{ChunkHold, Store};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use shoal_wire::nix::store_path::StorePath;

use crate::neighbours::Neighbours;
use crate::upstream::Held;

/// Chunks held of paths that are not valid here: some 16 GiB, and 50 MB of memory.
const HELD_CHUNKS_MAX: usize = 1 << 18;
/// Paths of which it is remembered who has them. Others are looked for again.
const WHEREABOUTS_MAX: usize = 16_384;

/// Shared by all mounts of a node.
pub struct NodeSource {
    store: Store,
    neighbours: Neighbours,
    state: Mutex<State>,
    /// What came from other nodes.
    pub moved_chunks: AtomicU64,
    pub moved_bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    whereabouts: HashMap<String, Held>,
    /// The oldest first.
    holds: VecDeque<Arc<ChunkHold>>,
    held_chunks: usize,
}

impl State {
    fn note(&mut self, path: &StorePath, held: Held) {
        if self.whereabouts.len() >= WHEREABOUTS_MAX {
            self.whereabouts.clear();
        }
        self.whereabouts.insert(path.base_name().to_owned(), held);
    }
}

impl NodeSource {
    pub fn new(store: Store, neighbours: Neighbours) -> NodeSource {
        let (moved_chunks, moved_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        NodeSource { store, neighbours, state: Mutex::default(), moved_chunks, moved_bytes }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who else has a path; looked for where that is not known.
    fn whereabouts(&self, path: &StorePath) -> Option<Held> {
        if let Some(held) = self.state().whereabouts.get(path.base_name()) {
            return Some(held.clone());
        }
        // One hash part may name another path there.
        let held = self.neighbours.find(&[path.hash_part()]).pop()?.filter(|held| held.record.path == *path)?;
        self.state().note(path, held.clone());
        Some(held)
    }

    /// Notes who has paths that may be read soon.
    pub fn expect<'a>(&self, held: impl IntoIterator<Item = (&'a StorePath, &'a Held)>) {
        let mut state = self.state();
        for (path, held) in held {
            state.note(path, held.clone());
        }
    }

    /// Brings chunks here that are not.
    fn bring(&self, name: &str, chunks: Vec<ChunkRef>, urgency: Urgency) -> Result<Part, SourceError> {
        let path = StorePath::from_base_name(name).map_err(|_| SourceError::Missing)?;
        let held = self.whereabouts(&path).ok_or(SourceError::Missing)?;
        let part = self.neighbours.bring(&held, chunks, urgency).map_err(|why| {
            // They may be elsewhere by now.
            self.state().whereabouts.remove(name);
            SourceError::Failed(why)
        })?;
        self.moved_chunks.fetch_add(part.moved_chunks, Ordering::Relaxed);
        self.moved_bytes.fetch_add(part.moved_bytes, Ordering::Relaxed);
        self.keep(part.hold.clone());
        Ok(part)
    }

    fn keep(&self, hold: Arc<ChunkHold>) {
        let mut state = self.state();
        state.held_chunks += hold.len();
        state.holds.push_back(hold);
        while state.held_chunks > HELD_CHUNKS_MAX
            && let Some(oldest) = state.holds.pop_front()
        {
            state.held_chunks -= oldest.len();
        }
    }

    /// Delivers those that are here; the places of the others.
    fn deliver_local(&self, chunks: &[ChunkRef], deliver: Deliver<'_>) -> shoal_store::Result<Vec<usize>> {
        // Held while they are read, so that nothing is deleted in between.
        let mut hold = self.store.hold_chunks();
        let hashes: Vec<[u8; 32]> = chunks.iter().map(|chunk| chunk.hash).collect();
        let lacking = hold.lacks(&hashes)?;
        let (here, missing): (Vec<usize>, Vec<usize>) = (0..chunks.len()).partition(|&place| !lacking[place]);
        deliver_held(&hold, chunks, &here, deliver)?;
        Ok(missing)
    }
}

/// Reads chunks that a hold has.
fn deliver_held(
    hold: &ChunkHold,
    chunks: &[ChunkRef],
    places: &[usize],
    deliver: Deliver<'_>,
) -> shoal_store::Result<()> {
    let mut reader = hold.chunks()?;
    for &place in places {
        let mut contents = Vec::new();
        let read = reader.read(&chunks[place], &mut contents);
        deliver(place, read.map(|()| contents).map_err(failed));
    }
    Ok(())
}

fn failed(error: shoal_store::Error) -> SourceError {
    SourceError::Failed(error.to_string())
}

impl Source for NodeSource {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        let paths = self.store.paths().map_err(failed)?;
        Ok(paths.iter().map(|path| path.base_name().to_owned()).collect())
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        let Ok(path) = StorePath::from_base_name(name) else { return Ok(None) };
        if let Some(manifest) = self.store.manifest(&path).map_err(failed)? {
            return Ok(Some(manifest));
        }
        let Some(held) = self.whereabouts(&path) else { return Ok(None) };
        match self.neighbours.manifest(&held) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(why) => {
                self.state().whereabouts.remove(name);
                Err(SourceError::Failed(why))
            }
        }
    }

    fn fetch(&self, name: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        let missing = match self.deliver_local(chunks, deliver) {
            Ok(missing) => missing,
            // What was not delivered counts as failed.
            Err(error) => return tracing::warn!(name, %error, "chunks of a path could not be read"),
        };
        if missing.is_empty() {
            return;
        }
        let wanted = missing.iter().map(|&place| chunks[place]).collect();
        let read = match self.bring(name, wanted, Urgency::Build) {
            Ok(part) => deliver_held(&part.hold, chunks, &missing, deliver).map_err(failed),
            Err(error) => {
                missing.iter().for_each(|&place| deliver(place, Err(error.clone())));
                Ok(())
            }
        };
        if let Err(error) = read {
            tracing::warn!(name, %error, "chunks of a path could not be read");
        }
    }

    fn prefetch(&self, name: &str, chunks: &[ChunkRef]) {
        let mut hold = self.store.hold_chunks();
        let hashes: Vec<[u8; 32]> = chunks.iter().map(|chunk| chunk.hash).collect();
        let Ok(lacking) = hold.lacks(&hashes) else { return };
        let wanted: Vec<ChunkRef> =
            chunks.iter().zip(lacking).filter(|(_, lacks)| *lacks).map(|(chunk, _)| *chunk).collect();
        if !wanted.is_empty()
            && let Err(error) = self.bring(name, wanted, Urgency::Client)
        {
            tracing::debug!(name, %error, "chunks that may be read soon did not come");
        }
    }
}
