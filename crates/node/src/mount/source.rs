//! What mounts show: the local store's paths, and those of other nodes, of which only what is read is brought here.
//!
//! Chunks that came for a path that is not valid here are held and not committed: after a restart, or when their room is
//! needed, they are fetched again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_fuse::{Deliver, Source, SourceError};
use shoal_mesh::fetcher::{Part, Urgency};
use shoal_store::{ChunkHold, Store};
use shoal_wire::mesh::manifest::{ChunkRef, ContentRoot, Manifest};
use shoal_wire::nix::store_path::StorePath;

use super::holds::Holds;
use crate::neighbours::{Neighbours, Sought};
use crate::upstream::Held;

/// Paths of which it is remembered who has them. Others are looked for again.
const WHEREABOUTS_MAX: usize = 16_384;

/// Shared by all mounts of a node.
pub struct NodeSource {
    store: Store,
    neighbours: Neighbours,
    state: Mutex<State>,
    making_room: Mutex<()>,
    /// What came from other nodes.
    pub moved_chunks: AtomicU64,
    pub moved_bytes: AtomicU64,
}

/// What is known of a path of other nodes.
struct Known {
    held: Held,
    /// It did not come from those who had it: they are looked for again.
    is_doubted: bool,
}

struct State {
    whereabouts: HashMap<String, Known>,
    holds: Holds,
}

impl State {
    fn note(&mut self, path: &StorePath, held: Held) {
        if self.whereabouts.len() >= WHEREABOUTS_MAX {
            self.whereabouts.clear();
        }
        self.whereabouts.insert(path.base_name().to_owned(), Known { held, is_doubted: false });
    }

    fn doubt(&mut self, name: &str) {
        if let Some(known) = self.whereabouts.get_mut(name) {
            known.is_doubted = true;
        }
    }
}

impl NodeSource {
    /// `held_bytes_max`: how much of the disk what is only read may take.
    pub fn new(store: Store, neighbours: Neighbours, held_bytes_max: u64) -> NodeSource {
        let (moved_chunks, moved_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let state = State { whereabouts: HashMap::new(), holds: Holds::new(held_bytes_max) };
        NodeSource {
            store,
            neighbours,
            state: Mutex::new(state),
            making_room: Mutex::default(),
            moved_chunks,
            moved_bytes,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who else has a path; looked for where that is not known.
    fn whereabouts(&self, path: &StorePath) -> Sought {
        if let Some(known) = self.state().whereabouts.get(path.base_name()).filter(|known| !known.is_doubted) {
            return Sought::Held(known.held.clone());
        }
        let sought = self.neighbours.seek(path);
        if let Sought::Held(held) = &sought {
            self.state().note(path, held.clone());
        }
        sought
    }

    /// Notes who has paths that may be read soon.
    pub fn expect<'a>(&self, held: impl IntoIterator<Item = (&'a StorePath, &'a Held)>) {
        let mut state = self.state();
        for (path, held) in held {
            state.note(path, held.clone());
        }
    }

    fn manifest_elsewhere(&self, path: &StorePath) -> Result<Option<Manifest>, SourceError> {
        let Some(held) = for_lookup(self.whereabouts(path))? else { return Ok(None) };
        self.neighbours.manifest(&held).map(Some).map_err(|why| {
            self.state().doubt(path.base_name());
            SourceError::Failed(why)
        })
    }

    /// Brings chunks here that are not.
    fn bring(&self, name: &str, chunks: Vec<ChunkRef>, urgency: Urgency) -> Result<Part, SourceError> {
        let path = StorePath::from_base_name(name).map_err(|_| SourceError::Missing)?;
        let held = for_reader(self.whereabouts(&path))?;
        let mut brought = self.neighbours.bring(&held, chunks.clone(), urgency);
        if brought.as_ref().is_err_and(|error| error.is_full) && urgency == Urgency::Build && self.make_room() {
            brought = self.neighbours.bring(&held, chunks, urgency);
        }
        let part = brought.map_err(|error| {
            if !error.is_full {
                // They may be elsewhere by now.
                self.state().doubt(name);
            }
            SourceError::Failed(error.why)
        })?;
        self.moved_chunks.fetch_add(part.moved_chunks, Ordering::Relaxed);
        self.moved_bytes.fetch_add(part.moved_bytes, Ordering::Relaxed);
        self.state().holds.keep(part.hold.clone(), part.moved_bytes);
        Ok(part)
    }

    /// Gives up what was read longest ago for what is read now. Whether that gave any room; who asks again gets more.
    fn make_room(&self) -> bool {
        // Who finds another at it asks again a little later: half is to go once for all.
        let Ok(_one) = self.making_room.try_lock() else { return false };
        let mut given = self.store.reclaim();
        if matches!(given, Ok(0)) {
            let gone = self.state().holds.let_go_half();
            given = self.store.reclaim();
            tracing::info!(
                gone,
                given = given.as_ref().ok(),
                "the disk is full: chunks that were only read are given up"
            );
        }
        given.is_ok_and(|bytes| bytes > 0)
    }

    /// Gives up so many bytes of what was only read, or all there is of it; whether there was any.
    pub fn let_go(&self, bytes: u64) -> bool {
        self.state().holds.let_go(bytes) > 0
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

/// Who reads knows that the path was there: as long as it may be again he asks again, until his time is over.
fn for_reader(sought: Sought) -> Result<Held, SourceError> {
    match sought {
        Sought::Held(held) => Ok(held),
        Sought::Missing { may_return: false } => Err(SourceError::Missing),
        Sought::Missing { may_return: true } => {
            Err(SourceError::Failed("nobody who can be reached has it, but a node that is dead may".into()))
        }
        Sought::Unknown => Err(SourceError::Failed("nodes that may have it do not answer".into())),
    }
}

/// Who looks up does not know whether it ever was there: what no living node has is not.
fn for_lookup(sought: Sought) -> Result<Option<Held>, SourceError> {
    match sought {
        Sought::Held(held) => Ok(Some(held)),
        Sought::Missing { .. } => Ok(None),
        Sought::Unknown => for_reader(sought).map(Some),
    }
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
        match self.store.manifest(&path).map_err(|error| SourceError::Broken(error.to_string()))? {
            Some(manifest) => Ok(Some(manifest)),
            None => self.manifest_elsewhere(&path),
        }
    }

    fn content_root(&self, name: &str) -> Option<ContentRoot> {
        let elsewhere = self.state().whereabouts.get(name)?.held.record.content_root;
        let path = StorePath::from_base_name(name).ok()?;
        // What is valid here is shown, whatever others have.
        Some(self.store.content_root(&path).ok()?.unwrap_or(elsewhere))
    }

    fn fetch_here(&self, name: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        if let Err(error) = self.deliver_local(chunks, deliver) {
            tracing::debug!(name, %error, "chunks of a path could not be looked for here");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_asked_is_not_taken_for_missing() {
        let failed = |sought| matches!(for_reader(sought), Err(SourceError::Failed(_)));
        assert!(failed(Sought::Unknown));
        assert!(failed(Sought::Missing { may_return: true }));
        assert!(matches!(for_reader(Sought::Missing { may_return: false }), Err(SourceError::Missing)));
        assert!(for_lookup(Sought::Unknown).is_err());
        for may_return in [false, true] {
            assert!(matches!(for_lookup(Sought::Missing { may_return }), Ok(None)));
        }
    }
}
