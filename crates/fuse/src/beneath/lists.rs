//! What directories have. The kernel asks for a list piece by piece, and reading all of it for each would take the square
//! of its length: the last few are kept while they are asked for.

use super::{BENEATH, PLACE, Stamp, kind};
use fuser::{FileAttr, INodeNo};
use rustix::fs::FileType as Kind;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lists that are kept. Of a store of 100,000 paths one takes some 10 MiB.
const LISTS_MAX: usize = 4;

/// A name in a directory.
pub struct Listed {
    /// Where it is in a listing: no other name changes it.
    pub place: u64,
    pub name: Vec<u8>,
    kind: Kind,
}

/// What a directory has, in the order of places.
#[derive(Default)]
pub struct List(Vec<Listed>);

/// The last used at the end.
#[derive(Default)]
pub struct Lists(Mutex<VecDeque<(u64, Stamp, Arc<List>)>>);

impl Listed {
    pub fn new(name: &[u8], kind: Kind) -> Listed {
        Listed { place: place(name), name: name.to_vec(), kind }
    }

    /// What a listing without attributes says of it.
    pub fn attr(&self) -> FileAttr {
        FileAttr { ino: INodeNo(BENEATH | self.place), kind: kind(self.kind), ..crate::place::nothing() }
    }
}

impl List {
    pub fn new(mut listed: Vec<Listed>) -> List {
        listed.sort_unstable_by_key(|listed| listed.place);
        List(listed)
    }

    pub fn has(&self, name: &[u8]) -> bool {
        let place = place(name);
        let from = self.0.partition_point(|listed| listed.place < place);
        self.0[from..].iter().take_while(|listed| listed.place == place).any(|listed| listed.name == name)
    }

    /// Those that come after a place.
    pub fn after(&self, place: u64) -> &[Listed] {
        &self.0[self.0.partition_point(|listed| listed.place <= place)..]
    }
}

impl Lists {
    fn lists(&self) -> MutexGuard<'_, VecDeque<(u64, Stamp, Arc<List>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That of a directory which is still as it was.
    pub fn get(&self, node: u64, stamp: Stamp) -> Option<Arc<List>> {
        let mut lists = self.lists();
        let at = lists.iter().position(|(of, as_of, _)| (*of, *as_of) == (node, stamp))?;
        let found = lists.remove(at)?;
        let list = found.2.clone();
        lists.push_back(found);
        Some(list)
    }

    pub fn keep(&self, node: u64, stamp: Stamp, list: Arc<List>) {
        let mut lists = self.lists();
        lists.retain(|(of, ..)| *of != node);
        lists.push_back((node, stamp, list));
        let too_many = lists.len().saturating_sub(LISTS_MAX);
        lists.drain(..too_many);
    }

    /// It was told to its end.
    pub fn forget(&self, node: u64) {
        self.lists().retain(|(of, ..)| *of != node);
    }
}

fn place(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    PLACE | hasher.finish() >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_knows_its_names_and_goes_on_after_a_place() {
        let names = ["a", "b", "c", "d"];
        let list = List::new(names.iter().map(|name| Listed::new(name.as_bytes(), Kind::RegularFile)).collect());
        assert!(names.iter().all(|name| list.has(name.as_bytes())) && !list.has(b"e") && !list.has(b""));
        assert_eq!(list.after(0).len(), 4);
        let second = list.after(0)[1].place;
        assert_eq!(list.after(second).len(), 2);
        assert!(list.after(u64::MAX).is_empty());
    }

    #[test]
    fn few_lists_are_kept_and_only_while_they_are_true() {
        let lists = Lists::default();
        let stamp = Stamp { inode: (1, 1), modified: (1, 0), changed: (1, 0) };
        let list = Arc::new(List::default());
        (1..=LISTS_MAX as u64).for_each(|node| lists.keep(node, stamp, list.clone()));
        assert!(lists.get(1, stamp).is_some());
        assert!(lists.get(1, Stamp { changed: (1, 1), ..stamp }).is_none());
        lists.keep(99, stamp, list.clone());
        assert!(lists.get(1, stamp).is_some() && lists.get(2, stamp).is_none());
        lists.forget(99);
        assert!(lists.get(99, stamp).is_none());
    }
}
