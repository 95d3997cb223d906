//! Segments that somebody reads from by position: their files stay until the last has done.
//!
//! Who holds segments asks the index for places and takes the hold within one passage of the gate;
//! who deletes them looks whether they are dead and whether they are held with the gate shut. So a
//! segment is held before it is found dead, or it is gone from the index before it is asked for.

use super::Segments;
use crate::place::SegmentId;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Default)]
pub struct Holds {
    gate: RwLock<()>,
    counts: Mutex<HashMap<SegmentId, u32>>,
}

impl Holds {
    pub fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn shut(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody is within the gate now.
    #[cfg(test)]
    pub fn is_free(&self) -> bool {
        self.gate.try_write().is_ok()
    }

    pub fn is_held(&self, id: SegmentId) -> bool {
        self.counts().contains_key(&id)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<SegmentId, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the files of some segments until dropped.
pub struct SegmentHold {
    segments: Arc<Segments>,
    ids: BTreeSet<SegmentId>,
}

impl SegmentHold {
    pub fn new(segments: &Arc<Segments>, ids: impl Iterator<Item = SegmentId>) -> Self {
        let ids: BTreeSet<SegmentId> = ids.collect();
        let mut counts = segments.holds.counts();
        for &id in &ids {
            *counts.entry(id).or_insert(0) += 1;
        }
        SegmentHold { segments: segments.clone(), ids }
    }
}

impl Drop for SegmentHold {
    fn drop(&mut self) {
        let mut counts = self.segments.holds.counts();
        for id in &self.ids {
            if let Some(count) = counts.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(id);
                }
            }
        }
    }
}
