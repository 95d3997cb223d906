//! Which node of the file system is which entry of which store path.
//!
//! Invariants:
//! - a path's nodes have numbers side by side, given out once, below 2^32; a number never means anything else;
//! - a path that is taken out stays readable for whoever has its nodes, until the kernel has forgotten them all;
//! - nothing here waits.

use crate::numbers::{Numbers, Reservations, Reserved};
use crate::tree::Tree;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The number of the root, as the kernel has it.
pub const ROOT: u64 = 1;
/// An empty file at the root, which is not listed: see [`crate::greeting`].
pub const GREETING: u64 = 2;
/// The number after the last that is given out.
const END: u64 = 1 << 32;
/// Entries of all trees in memory: 16 M take some 700 MB. Beyond that no more paths are shown.
const ENTRIES_MAX: u64 = 16 << 20;

/// A store path that the mount shows.
pub struct Shown {
    /// Its base name.
    pub name: Box<str>,
    /// The number of its first node.
    pub base: u32,
    pub tree: Tree,
    /// How often the kernel was given nodes of it that it has not forgotten.
    lookups: AtomicU64,
    /// Whether the kernel was given its numbers by somebody else too: then nobody counted.
    is_restored: bool,
    /// A bit for each chunk that was asked for ahead of its reader.
    hinted: Bits,
    /// And for each of which the kernel was given something.
    read: Bits,
}

/// A bit for each chunk of a path.
struct Bits(Box<[AtomicU64]>);

/// All paths that are shown.
#[derive(Default)]
pub struct Table(RwLock<Inner>);

#[derive(Default)]
struct Inner {
    by_name: HashMap<Box<str>, Arc<Shown>>,
    /// In the order of their numbers. Those that are not in `by_name` are gone but not forgotten.
    by_base: Vec<Arc<Shown>>,
    /// Numbers given out so far, but for those that no path has.
    next: u64,
    entries: u64,
    /// Where numbers are written down that are given out, and those that were before.
    numbers: Option<Numbers>,
    reserved: Reservations,
}

impl Shown {
    /// The number of an entry's node.
    pub fn node(&self, number: u32) -> u64 {
        u64::from(self.base) + u64::from(number)
    }

    /// The kernel has been given a node of it once more.
    pub fn looked_up(&self) {
        self.lookups.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the kernel may have anything of it: then somebody may have it open.
    pub fn is_known(&self) -> bool {
        self.is_restored || self.lookups.load(Ordering::Acquire) > 0
    }

    /// Notes that a chunk is asked for ahead; `false` if it was before.
    pub fn hint(&self, chunk: usize) -> bool {
        self.hinted.set(chunk)
    }

    /// Notes that the kernel is given something of a chunk.
    pub fn note_read(&self, chunk: usize) {
        self.read.set(chunk);
    }

    /// Whether it was. It mostly keeps that.
    pub fn was_read(&self, chunk: usize) -> bool {
        self.read.has(chunk)
    }
}

impl Bits {
    fn new(len: usize) -> Bits {
        Bits((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether it was not set before.
    fn set(&self, at: usize) -> bool {
        let bit = 1 << (at % 64);
        self.0.get(at / 64).is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (at % 64) != 0)
    }
}

impl Table {
    /// Writes down the numbers that it gives out. `reserved`: those that were given out before.
    pub fn keeping(numbers: Numbers, reserved: Vec<Reserved>) -> Table {
        let reserved = Reservations::new(reserved);
        let next = reserved.end();
        Table(RwLock::new(Inner { numbers: Some(numbers), reserved, next, ..Inner::default() }))
    }

    /// The name of a path that is not in memory and whose numbers the kernel was given before.
    pub fn reserved(&self, node: u64) -> Option<Box<str>> {
        self.read().reserved.name(node).map(Box::from)
    }

    /// The numbers of a path that the kernel may have from before.
    pub fn restored(&self, name: &str) -> Option<Range<u64>> {
        let inner = self.read();
        let shown = inner.by_name.get(name).filter(|shown| shown.is_restored);
        let here = shown.map(|shown| (shown.base, shown.tree.len()));
        let (base, len) = here.or_else(|| inner.reserved.span(name))?;
        Some(u64::from(base)..u64::from(base) + u64::from(len))
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn by_name(&self, name: &str) -> Option<Arc<Shown>> {
        self.read().by_name.get(name).cloned()
    }

    /// The path that a node is of, and which of its entries.
    pub fn by_node(&self, node: u64) -> Option<(Arc<Shown>, u32)> {
        let inner = self.read();
        let after = inner.by_base.partition_point(|shown| u64::from(shown.base) <= node);
        let shown = inner.by_base.get(after.checked_sub(1)?)?;
        let number = u32::try_from(node - u64::from(shown.base)).ok()?;
        (number < shown.tree.len()).then(|| (shown.clone(), number))
    }

    /// Shows a path from now on; what is shown already stays. `None` where there is no room for it.
    pub fn insert(&self, name: &str, tree: Tree) -> Option<Arc<Shown>> {
        let mut inner = self.write();
        if let Some(shown) = inner.by_name.get(name) {
            return Some(shown.clone());
        }
        let len = u64::from(tree.len());
        if inner.entries + len > ENTRIES_MAX {
            return None;
        }
        let restored = inner.reserved.take(name, tree.len()).map(u64::from);
        let base = match restored {
            Some(base) => base,
            None => inner.new_numbers(name, len)?,
        };
        let (hinted, read) = (Bits::new(tree.chunk_count()), Bits::new(tree.chunk_count()));
        // Numbers end below 2^32.
        let shown = Shown {
            name: name.into(),
            base: base as u32,
            tree,
            lookups: AtomicU64::new(0),
            is_restored: restored.is_some(),
            hinted,
            read,
        };
        let shown = Arc::new(shown);
        inner.entries += len;
        inner.by_name.insert(name.into(), shown.clone());
        let place = inner.by_base.partition_point(|other| other.base < shown.base);
        inner.by_base.insert(place, shown.clone());
        Some(shown)
    }

    /// A path is not found any more. Whoever has something of it open keeps it.
    pub fn remove(&self, name: &str) {
        let mut inner = self.write();
        if let Some(shown) = inner.by_name.remove(name) {
            inner.drop_if_forgotten(&shown);
        }
    }

    /// The kernel has forgotten a node that it was given `lookups` times.
    pub fn forgotten(&self, node: u64, lookups: u64) {
        let Some((shown, _)) = self.by_node(node).filter(|(shown, _)| !shown.is_restored) else { return };
        let before = shown.lookups.fetch_sub(lookups, Ordering::AcqRel);
        if before == lookups {
            let mut inner = self.write();
            if !inner.is_found(&shown) {
                inner.drop_if_forgotten(&shown);
            }
        }
    }

    /// Takes out all that the kernel knows nothing of.
    pub fn drop_unknown(&self) {
        let mut inner = self.write();
        let unknown: Vec<Arc<Shown>> = inner.by_name.values().filter(|shown| !shown.is_known()).cloned().collect();
        for shown in unknown {
            inner.by_name.remove(&shown.name);
            inner.drop_if_forgotten(&shown);
        }
    }

    /// Paths from the one whose nodes begin at `base` or behind, in the order of their numbers, until `take` has enough.
    /// The order of those that are there does not change.
    pub fn list(&self, base: u64, mut take: impl FnMut(&Arc<Shown>) -> bool) {
        let inner = self.read();
        let from = inner.by_base.partition_point(|shown| u64::from(shown.base) < base);
        let found = inner.by_base[from..].iter().filter(|shown| inner.is_found(shown));
        for shown in found {
            if !take(shown) {
                return;
            }
        }
    }

    /// How many paths are shown, and how many entries they have.
    pub fn size(&self) -> (usize, u64) {
        let inner = self.read();
        (inner.by_name.len(), inner.entries)
    }
}

/// Paths that stay in memory until it is dropped.
pub struct Held {
    table: Arc<Table>,
    paths: Vec<Arc<Shown>>,
}

impl Held {
    pub fn new(table: Arc<Table>) -> Held {
        Held { table, paths: Vec::new() }
    }

    /// Holds one more, if it is in memory.
    pub fn add(&mut self, name: &str) -> bool {
        let inner = self.table.read();
        let Some(shown) = inner.by_name.get(name) else { return false };
        // As if the kernel had been given it, and while nobody can take it out.
        shown.looked_up();
        self.paths.push(shown.clone());
        true
    }

    pub fn paths(&self) -> &[Arc<Shown>] {
        &self.paths
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.paths.iter().for_each(|shown| self.table.forgotten(shown.node(0), 1));
    }
}

impl Inner {
    /// As many numbers as nobody had. `None` where there are no more, or they cannot be written down: numbers that the
    /// next server does not know would mean something else to it.
    fn new_numbers(&mut self, name: &str, len: u64) -> Option<u64> {
        let base = self.next.max(GREETING + 1);
        if base + len > END {
            return None;
        }
        if let Some(numbers) = &mut self.numbers
            && let Err(error) = numbers.note(base as u32, len as u32, name)
        {
            tracing::warn!(%error, "the numbers of a path's files cannot be written down");
            return None;
        }
        self.next = base + len;
        Some(base)
    }

    fn is_found(&self, shown: &Arc<Shown>) -> bool {
        self.by_name.get(&shown.name).is_some_and(|found| Arc::ptr_eq(found, shown))
    }

    fn drop_if_forgotten(&mut self, shown: &Arc<Shown>) {
        let at = self.by_base.partition_point(|other| other.base < shown.base);
        let is_there = self.by_base.get(at).is_some_and(|other| Arc::ptr_eq(other, shown));
        if is_there && !shown.is_known() {
            self.by_base.remove(at);
            self.entries -= u64::from(shown.tree.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn tree(seed: u64) -> Tree {
        Tree::new(&testing::path(&[("a", testing::file(&testing::noise(seed, 10))), ("b", testing::link("a"))]).0)
    }

    #[test]
    fn every_node_is_found_by_its_number_and_no_other_is() {
        let table = Table::default();
        let (one, two) = (table.insert("one", tree(1)).unwrap(), table.insert("two", tree(2)).unwrap());
        for shown in [&one, &two] {
            for number in 0..shown.tree.len() {
                let (found, which) = table.by_node(shown.node(number)).unwrap();
                assert!(Arc::ptr_eq(&found, shown) && which == number);
            }
        }
        assert!(table.by_node(ROOT).is_none());
        assert!(table.by_node(two.node(two.tree.len())).is_none());
        assert!(table.by_node(u64::MAX).is_none());
    }

    #[test]
    fn a_path_that_was_taken_out_stays_until_it_is_forgotten_and_its_numbers_are_not_given_out_again() {
        let table = Table::default();
        let shown = table.insert("one", tree(1)).unwrap();
        shown.looked_up();
        shown.looked_up();
        table.remove("one");
        assert!(table.by_name("one").is_none());
        assert!(table.by_node(shown.node(0)).is_some());
        table.forgotten(shown.node(1), 1);
        assert!(table.by_node(shown.node(0)).is_some());
        let again = table.insert("one", tree(1)).unwrap();
        assert_ne!(again.base, shown.base);
        table.forgotten(shown.node(0), 1);
        assert!(table.by_node(shown.node(0)).is_none());
        assert_eq!(table.size(), (1, 3));
        again.looked_up();
        table.forgotten(again.node(0), 1);
        assert!(table.by_name("one").is_some(), "what is forgotten is not taken out");
    }

    #[test]
    fn a_list_goes_on_where_it_stopped_though_paths_come_and_go() {
        let table = Table::default();
        let names = ["a", "b", "c", "d"];
        names.iter().zip(0..).for_each(|(name, seed)| drop(table.insert(name, tree(seed))));
        let (mut seen, mut next) = (Vec::new(), 0);
        table.list(0, |shown| {
            seen.push(shown.name.to_string());
            next = u64::from(shown.base) + 1;
            seen.len() < 2
        });
        table.remove("a");
        table.remove("c");
        drop(table.insert("e", tree(9)));
        table.list(next, |shown| {
            seen.push(shown.name.to_string());
            true
        });
        assert_eq!(seen, ["a", "b", "d", "e"]);
    }
}
