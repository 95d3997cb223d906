//! Chunks that are wanted by something not yet committed.
//!
//! An ingest pins every chunk of its NAR from the moment it names it until it is committed or
//! dropped. Invariants:
//! - a pinned chunk that the index knows is not swept;
//! - a chunk chosen for sweeping is `dying` until the sweep's transaction has ended, and who pins it
//!   meanwhile stores it again instead of trusting the index;
//! - while a collection runs, every chunk that was pinned since it began is `touched`, and the
//!   collection leaves it alone: the manifest that wants it may be newer than what was marked.
//!
//! A chunk that was found damaged is not trusted to be stored either, until it was stored again: what is
//! damaged ([`crate::damage`]) is mirrored here.
//! Manifests, which have a BLAKE3 name too, are pinned the same way.

use crate::error::Result;
use crate::place::{Place, SegmentId};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Hash = [u8; 32];

/// Damaged chunks that are remembered: 32 MB of them. Who has more has lost the disk.
const DAMAGED_MAX: usize = 1 << 20;

#[derive(Default)]
pub struct Pins {
    state: Mutex<State>,
    /// How many names are damaged, to be read without the lock.
    damaged_count: AtomicUsize,
    /// Grows whenever what is damaged changes.
    damage_generation: AtomicU64,
}

#[derive(Default)]
struct State {
    pinned: HashMap<Hash, Pin>,
    dying: HashSet<Hash>,
    damaged: HashSet<Hash>,
    touched: Option<HashSet<u64>>,
}

struct Pin {
    count: u32,
    home: Home,
}

/// Where a pinned chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    /// Nobody has looked yet.
    Unknown,
    /// Neither in the index nor in a segment.
    Absent,
    /// In a segment, to be published with the first commit that wants it.
    Written(Place),
    Indexed,
}

impl State {
    fn touch(&mut self, hash: &Hash) {
        if let Some(touched) = &mut self.touched {
            touched.insert(prefix(hash));
        }
    }

    fn is_free(&self, hash: &Hash) -> bool {
        let touched = self.touched.as_ref().is_some_and(|touched| touched.contains(&prefix(hash)));
        !touched && !self.pinned.contains_key(hash)
    }
}

impl Pins {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of `hashes`, those that are still to be written. Asked under the appender's lock, so the
    /// answer holds until the caller has written them.
    pub fn absent(&self, hashes: impl Iterator<Item = Hash>) -> Vec<bool> {
        let state = self.state();
        let absent = |hash| state.pinned.get(&hash).is_none_or(|pin| matches!(pin.home, Home::Unknown | Home::Absent));
        hashes.map(absent).collect()
    }

    pub fn written(&self, records: impl Iterator<Item = (Hash, Place)>) {
        let mut state = self.state();
        for (hash, place) in records {
            if let Some(pin) = state.pinned.get_mut(&hash) {
                pin.home = Home::Written(place);
            }
        }
    }

    /// Where a chunk lies that no commit has published yet.
    pub fn place(&self, hash: &Hash) -> Option<Place> {
        match self.state().pinned.get(hash)?.home {
            Home::Written(place) => Some(place),
            _ => None,
        }
    }

    /// Starts to remember what is pinned.
    pub fn begin_collection(&self) {
        let mut state = self.state();
        state.touched = Some(state.pinned.keys().map(prefix).collect());
    }

    pub fn end_collection(&self) {
        let mut state = self.state();
        state.touched = None;
        state.dying.clear();
    }

    /// Chooses from `candidates` what may be swept; it is dying from now on.
    pub fn begin_sweep(&self, candidates: &[Hash]) -> Vec<Hash> {
        let mut state = self.state();
        let chosen: Vec<Hash> = candidates.iter().filter(|hash| state.is_free(hash)).copied().collect();
        state.dying = chosen.iter().copied().collect();
        chosen
    }

    /// The sweep's transaction has ended, one way or the other.
    pub fn end_sweep(&self) {
        self.state().dying.clear();
    }

    /// Of each name whether its stored bytes are not its own: who brings it again stores it again. What has a mark has
    /// no row, so who found one before the mark relies on it no longer. Whether anything changed.
    pub fn set_damaged(&self, marks: impl Iterator<Item = (Hash, bool)>) -> bool {
        let mut state = self.state();
        let mut changed = false;
        for (hash, damaged) in marks {
            match state.pinned.get_mut(&hash) {
                Some(pin) if damaged && pin.home == Home::Indexed => pin.home = Home::Absent,
                _ => {}
            }
            changed |= match damaged {
                true => state.damaged.len() < DAMAGED_MAX && state.damaged.insert(hash),
                false => state.damaged.remove(&hash),
            };
        }
        if changed {
            self.damaged_count.store(state.damaged.len(), Ordering::Release);
            self.damage_generation.fetch_add(1, Ordering::AcqRel);
        }
        changed
    }

    /// What lies at `place`, or is not where the index says, is not relied on by who pins the chunk from now on.
    pub fn distrust(&self, hash: &Hash, place: Option<Place>) {
        if let Some(pin) = self.state().pinned.get_mut(hash) {
            let relied_on = match pin.home {
                Home::Written(at) => Some(at) == place,
                home => home == Home::Indexed,
            };
            if relied_on {
                pin.home = Home::Absent;
            }
        }
    }

    /// Whether anything is damaged.
    pub fn any_damaged(&self) -> bool {
        self.damaged_count.load(Ordering::Acquire) > 0
    }

    pub fn damaged_count(&self) -> usize {
        self.damaged_count.load(Ordering::Acquire)
    }

    pub fn damage_generation(&self) -> u64 {
        self.damage_generation.load(Ordering::Acquire)
    }

    /// Whether the stored bytes of a chunk are known not to be its own.
    pub fn is_damaged(&self, hash: &Hash) -> bool {
        self.any_damaged() && self.state().damaged.contains(hash)
    }

    pub fn none_damaged<'a>(&self, mut hashes: impl Iterator<Item = &'a Hash>) -> bool {
        let state = self.state();
        !hashes.any(|hash| state.damaged.contains(hash))
    }

    /// Whether nothing wants what `hash` names, nor did since the collection began.
    pub fn is_free(&self, hash: &Hash) -> bool {
        self.state().is_free(hash)
    }

    /// Segments with records that the index does not know yet, and the bytes of these.
    pub fn unpublished_segments(&self) -> HashMap<SegmentId, u64> {
        let state = self.state();
        let mut bytes = HashMap::new();
        for pin in state.pinned.values() {
            if let Home::Written(place) = pin.home {
                *bytes.entry(place.segment).or_insert(0) += place.record_len();
            }
        }
        bytes
    }

    /// Chunks pinned now.
    pub fn count(&self) -> usize {
        self.state().pinned.len()
    }
}

/// The pins of one ingest; lets go of them when dropped.
pub struct PinSet {
    pins: Arc<Pins>,
    mine: HashSet<Hash>,
}

impl PinSet {
    pub fn new(pins: Arc<Pins>) -> Self {
        PinSet { pins, mine: HashSet::new() }
    }

    /// Pins a chunk. Whether the caller must store it; `is_indexed` is asked without any lock held.
    pub fn claim(&mut self, hash: &Hash, is_indexed: impl FnOnce() -> Result<bool>) -> Result<bool> {
        if !self.mine.insert(*hash) {
            return Ok(false);
        }
        let home = {
            let mut state = self.pins.state();
            state.touch(hash);
            let distrusted = state.dying.contains(hash) || state.damaged.contains(hash);
            let first = if distrusted { Home::Absent } else { Home::Unknown };
            let pin = state.pinned.entry(*hash).or_insert(Pin { count: 0, home: first });
            pin.count += 1;
            pin.home
        };
        match home {
            Home::Written(_) | Home::Indexed => Ok(false),
            Home::Absent => Ok(true),
            Home::Unknown => self.look_up(hash, is_indexed()?),
        }
    }

    /// Chunks of this set.
    pub fn len(&self) -> usize {
        self.mine.len()
    }

    /// Pins what the index knows or will know by the caller's own transaction: a manifest.
    pub fn hold(&mut self, hash: &Hash) {
        if self.mine.insert(*hash) {
            let mut state = self.pins.state();
            state.touch(hash);
            state.pinned.entry(*hash).or_insert(Pin { count: 0, home: Home::Indexed }).count += 1;
        }
    }

    fn look_up(&self, hash: &Hash, indexed: bool) -> Result<bool> {
        let mut state = self.pins.state();
        // It may have been found damaged while it was looked up.
        let trusted = indexed && !state.damaged.contains(hash);
        let Some(pin) = state.pinned.get_mut(hash) else {
            return Ok(true);
        };
        if pin.home == Home::Unknown {
            pin.home = if trusted { Home::Indexed } else { Home::Absent };
        }
        Ok(pin.home == Home::Absent)
    }

    /// Chunks of this set that no commit has published yet.
    pub fn unpublished(&self) -> Vec<(Hash, Place)> {
        let state = self.pins.state();
        let written = |hash: &Hash| match state.pinned.get(hash)?.home {
            Home::Written(place) => Some((*hash, place)),
            _ => None,
        };
        self.mine.iter().filter_map(written).collect()
    }

    /// Names of this set.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &Hash> {
        self.mine.iter()
    }

    pub fn contains(&self, hash: &Hash) -> bool {
        self.mine.contains(hash)
    }

    /// Whether one that was here when it was claimed is not any more. Not asked of `manifest`, which a commit brings.
    pub fn any_absent(&self, manifest: &Hash) -> bool {
        let state = self.pins.state();
        let is_absent = |hash: &Hash| state.pinned.get(hash).is_none_or(|pin| pin.home == Home::Absent);
        self.mine.iter().any(|hash| hash != manifest && is_absent(hash))
    }

    /// A commit has published what was to be published of this set.
    pub fn published(&self) {
        let mut state = self.pins.state();
        for hash in &self.mine {
            match state.pinned.get_mut(hash) {
                Some(pin) if matches!(pin.home, Home::Written(_)) => pin.home = Home::Indexed,
                _ => {}
            }
        }
    }
}

/// Pins the same chunks once more.
impl Clone for PinSet {
    fn clone(&self) -> Self {
        let mut state = self.pins.state();
        for hash in &self.mine {
            if let Some(pin) = state.pinned.get_mut(hash) {
                pin.count += 1;
            }
        }
        PinSet { pins: self.pins.clone(), mine: self.mine.clone() }
    }
}

impl Drop for PinSet {
    fn drop(&mut self) {
        let mut state = self.pins.state();
        for hash in &self.mine {
            if let Some(pin) = state.pinned.get_mut(hash) {
                pin.count -= 1;
                if pin.count == 0 {
                    state.pinned.remove(hash);
                }
            }
        }
    }
}

/// Enough of a hash to tell chunks apart; two with one prefix only keep each other.
pub fn prefix(hash: &Hash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between a chunk's row and its mark somebody may find the row.
    #[test]
    fn who_found_a_row_does_not_rely_on_it_once_it_is_marked() {
        let (pins, chunk, manifest) = (Arc::new(Pins::default()), [1; 32], [2; 32]);
        pins.distrust(&chunk, None);
        let mut set = PinSet::new(pins.clone());
        assert!(!set.claim(&chunk, || Ok(true)).unwrap());
        set.hold(&manifest);
        assert!(!set.any_absent(&manifest));
        pins.set_damaged([(chunk, true), (manifest, true)].into_iter());
        assert!(set.any_absent(&manifest));
        assert!(PinSet::new(pins).claim(&chunk, || Ok(true)).unwrap(), "it is to be stored again");
    }
}
