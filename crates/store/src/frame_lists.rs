//! Where the frames of NARs lie, kept for the next who asks for the same NAR.
//!
//! A list is kept under its content root, which names what is in the NAR and never means anything else; whether a path
//! with that root is valid is asked of the index each time. Bytes of a segment never change, so a place stays right,
//! also when its record is moved, until its segment is deleted or the bytes there were found damaged. Invariants:
//! - lists are used within a passage of the gate of segments, and what is deleted is told with the gate shut;
//! - a list that is older than the last deletion or than the last news of damage is not used.

use crate::place::Place;
use shoal_wire::mesh::manifest::ChunkRef;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Chunks of all lists that are kept, at 60 bytes each: 15 MiB for 16 GiB of NARs.
const CHUNKS_MAX: usize = 1 << 18;
/// Chunks of one list that is kept: one NAR does not push out all others.
pub const LIST_CHUNKS_MAX: usize = CHUNKS_MAX / 8;
/// What a list takes beside its chunks, in chunks: of empty ones there are not endlessly many either.
const LIST_COST: usize = 4;

/// All frames of one NAR.
pub struct FrameList {
    pub chunks: Vec<ChunkRef>,
    /// As many as chunks.
    pub places: Vec<Place>,
}

/// When a list was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Age {
    pub deletions: u64,
    pub damage: u64,
}

#[derive(Default)]
pub struct FrameLists {
    deletions: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    age: Age,
    clock: u64,
    cost: usize,
    lists: HashMap<[u8; 32], (Arc<FrameList>, u64)>,
}

impl FrameLists {
    /// Segments are about to be deleted. Told with the gate shut.
    pub fn deleting(&self) {
        self.deletions.fetch_add(1, Ordering::Release);
    }

    /// The age of a list that is made from now on. `damage`: how often it changed what is known to be damaged.
    pub fn age(&self, damage: u64) -> Age {
        Age { deletions: self.deletions.load(Ordering::Acquire), damage }
    }

    /// The list of a content root, if one of this age is kept.
    pub fn get(&self, root: &[u8; 32], age: Age) -> Option<Arc<FrameList>> {
        let mut kept = self.kept();
        kept.follow(age);
        if kept.age != age {
            return None;
        }
        kept.clock += 1;
        let now = kept.clock;
        let (list, used) = kept.lists.get_mut(root)?;
        *used = now;
        Some(list.clone())
    }

    /// Keeps a list that was made when `age` was asked for.
    pub fn put(&self, root: &[u8; 32], age: Age, list: &Arc<FrameList>) {
        let mut kept = self.kept();
        kept.follow(age);
        if kept.age != age || list.chunks.len() > LIST_CHUNKS_MAX {
            return;
        }
        kept.clock += 1;
        let now = kept.clock;
        kept.cost += cost(list);
        if let Some((before, _)) = kept.lists.insert(*root, (list.clone(), now)) {
            kept.cost -= cost(&before);
        }
        if kept.cost > CHUNKS_MAX {
            kept.make_room();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Forgets all that is older than `age`.
    fn follow(&mut self, age: Age) {
        if age.deletions > self.age.deletions || age.damage > self.age.damage {
            *self = Kept { age, ..Kept::default() };
        }
    }

    /// Lets go of the half that was used longest ago, so that this is not looked for each time.
    fn make_room(&mut self) {
        let mut used: Vec<(u64, [u8; 32])> = self.lists.iter().map(|(root, (_, used))| (*used, *root)).collect();
        used.sort_unstable();
        for (_, root) in used {
            if self.cost <= CHUNKS_MAX / 2 {
                return;
            }
            if let Some((list, _)) = self.lists.remove(&root) {
                self.cost -= cost(&list);
            }
        }
    }
}

fn cost(list: &FrameList) -> usize {
    list.chunks.len() + LIST_COST
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(chunks: usize) -> Arc<FrameList> {
        Arc::new(FrameList { chunks: vec![ChunkRef { hash: [0; 32], len: 1 }; chunks], places: Vec::new() })
    }

    #[test]
    fn what_is_older_than_a_deletion_or_damage_is_not_given() {
        let lists = FrameLists::default();
        let first = lists.age(0);
        lists.put(&[1; 32], first, &list(1));
        assert!(lists.get(&[1; 32], first).is_some());
        lists.deleting();
        assert!(lists.get(&[1; 32], lists.age(0)).is_none(), "after a deletion");
        // Who began before the deletion and is late.
        lists.put(&[1; 32], first, &list(1));
        assert!(lists.get(&[1; 32], lists.age(0)).is_none(), "from before the deletion");
        lists.put(&[1; 32], lists.age(0), &list(1));
        assert!(lists.get(&[1; 32], lists.age(1)).is_none(), "after news of damage");
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let lists = FrameLists::default();
        let age = lists.age(0);
        let name = |number: usize| [number as u8; 32];
        for number in 0..40 {
            lists.put(&name(number), age, &list(LIST_CHUNKS_MAX));
            assert!(lists.get(&name(0), age).is_some(), "used all the time: {number}");
        }
        assert!(lists.kept().cost <= CHUNKS_MAX);
        assert!(lists.get(&name(1), age).is_none() && lists.get(&name(39), age).is_some());
        lists.put(&name(99), age, &list(LIST_CHUNKS_MAX + 1));
        assert!(lists.get(&name(99), age).is_none(), "too long to be kept");
    }
}
