//! Which node of the file system is which entry of which store path.
//!
//! Invariants:
//! - a path's nodes have numbers side by side, given out once, below 2^32; a number never means anything else;
//! - a path that is taken out stays readable for whoever has its nodes, until the kernel has forgotten them all;
//! - nothing here waits.

use crate::numbers::{Numbers, Reservations, Reserved};
use crate::tree::Tree;
use shoal_wire::mesh::manifest::ContentRoot;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
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
    /// Of one that nobody counted, an entry that the kernel knew when it was asked last: it may know it still.
    known: AtomicU32,
    /// A bit for each chunk that was asked for ahead of its reader.
    hinted: Bits,
    /// And for each of which the kernel was given something.
    read: Bits,
}

/// A bit for each chunk of a path.
struct Bits(Box<[AtomicU64]>);

/// All paths that are shown.
pub struct Table(RwLock<Inner>);

struct Inner {
    by_name: HashMap<Box<str>, Arc<Shown>>,
    /// In the order of their numbers. Those that are not in `by_name` are gone but not forgotten.
    by_base: Vec<Arc<Shown>>,
    /// These, by their names: a name may have had several.
    gone: HashMap<Box<str>, Vec<Arc<Shown>>>,
    /// Numbers given out so far, but for those that no path has.
    next: u64,
    entries: u64,
    entries_max: u64,
    /// Where numbers are written down that are given out, and those that were before.
    numbers: Option<Numbers>,
    reserved: Reservations,
}

impl Shown {
    /// The number of an entry's node.
    pub fn node(&self, number: u32) -> u64 {
        u64::from(self.base) + u64::from(number)
    }

    /// Whether the kernel has nodes of it from an earlier server.
    pub fn is_restored(&self) -> bool {
        self.is_restored
    }

    /// A node of it that the kernel knows, by asking it of each until it knows one: first of the one that it knew before.
    pub fn known_node(&self, is_known: impl Fn(u64) -> bool) -> Option<u64> {
        let before = self.known.load(Ordering::Relaxed);
        let mut numbers = std::iter::once(before).chain(0..self.tree.len()).filter(|number| *number < self.tree.len());
        let known = numbers.find(|number| is_known(self.node(*number)))?;
        self.known.store(known, Ordering::Relaxed);
        Some(self.node(known))
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

impl Default for Table {
    fn default() -> Table {
        Table::of(ENTRIES_MAX, None, Reservations::default())
    }
}

impl Table {
    pub(crate) fn of(entries_max: u64, numbers: Option<Numbers>, reserved: Reservations) -> Table {
        let (by_name, by_base, gone, next) = (HashMap::new(), Vec::new(), HashMap::new(), reserved.end());
        Table(RwLock::new(Inner { by_name, by_base, gone, next, entries: 0, entries_max, numbers, reserved }))
    }

    /// Writes down the numbers that it gives out. `reserved`: those that were given out before.
    pub fn keeping(numbers: Numbers, reserved: Vec<Reserved>) -> Table {
        Table::of(ENTRIES_MAX, Some(numbers), Reservations::new(reserved))
    }

    /// The name of a path that is not in memory and whose numbers the kernel was given before.
    pub fn reserved(&self, node: u64) -> Option<Box<str>> {
        self.read().reserved.name(node).map(Box::from)
    }

    /// The numbers of a path that is not in memory and that the kernel may have from before.
    pub fn restored(&self, name: &str) -> Option<Range<u64>> {
        let (base, len) = self.read().reserved.span(name)?;
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

    /// All that is in memory of a name: what is found by it, and what was and is not forgotten.
    pub fn all_of(&self, name: &str) -> Vec<Arc<Shown>> {
        let inner = self.read();
        inner.by_name.get(name).into_iter().chain(inner.gone.get(name).into_iter().flatten()).cloned().collect()
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
        self.write().insert(name, tree)
    }

    /// As [`Table::insert`], for a path that somebody asks for: where there is no room, all that the kernel knows nothing
    /// of is taken out for it. That is listed no more until somebody looks it up.
    pub fn insert_wanted(&self, name: &str, tree: Tree) -> Option<Arc<Shown>> {
        let mut inner = self.write();
        if !inner.by_name.contains_key(name) && !inner.has_room_for(&tree) {
            tracing::warn!(entries = inner.entries, "there is no room for more file trees: those that nobody uses go");
            inner.drop_unknown();
        }
        inner.insert(name, tree)
    }

    /// A path is not found any more; the one it was. Whoever has something of it open keeps it.
    pub fn remove(&self, name: &str) -> Option<Arc<Shown>> {
        let mut inner = self.write();
        let shown = inner.by_name.get(name)?.clone();
        inner.lose(&shown);
        Some(shown)
    }

    /// Takes out for good what is not found any more and of which the kernel, when it was asked, knew nothing.
    pub fn drop_restored(&self, shown: &Arc<Shown>) {
        let mut inner = self.write();
        if !inner.is_found(shown) {
            inner.take_out(shown);
        }
    }

    /// Counts that the kernel is given a node of a path; `false` where the path is not in memory any more, so that it must
    /// not be.
    pub fn give(&self, shown: &Arc<Shown>) -> bool {
        // While nobody can take it out.
        let inner = self.read();
        let is_here = inner.place(shown).is_some();
        if is_here {
            shown.looked_up();
        }
        is_here
    }

    /// As [`Table::remove`], if the name still means this one; whether it did.
    pub fn remove_this(&self, shown: &Arc<Shown>) -> bool {
        let mut inner = self.write();
        let is_found = inner.is_found(shown);
        if is_found {
            inner.lose(shown);
        }
        is_found
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
    fn has_room_for(&self, tree: &Tree) -> bool {
        self.entries + u64::from(tree.len()) <= self.entries_max
    }

    fn insert(&mut self, name: &str, tree: Tree) -> Option<Arc<Shown>> {
        if let Some(shown) = self.by_name.get(name) {
            return Some(shown.clone());
        }
        if !self.has_room_for(&tree) {
            return None;
        }
        let len = u64::from(tree.len());
        let restored = self.reserved.take(name, tree.len(), tree.content_root()).map(u64::from);
        let base = match restored {
            Some(base) => base,
            None => self.new_numbers(name, len, tree.content_root())?,
        };
        let (hinted, read) = (Bits::new(tree.chunk_count()), Bits::new(tree.chunk_count()));
        // Numbers end below 2^32.
        let shown = Shown {
            name: name.into(),
            base: base as u32,
            tree,
            lookups: AtomicU64::new(0),
            is_restored: restored.is_some(),
            known: AtomicU32::new(0),
            hinted,
            read,
        };
        let shown = Arc::new(shown);
        self.entries += len;
        self.by_name.insert(name.into(), shown.clone());
        let place = self.by_base.partition_point(|other| other.base < shown.base);
        self.by_base.insert(place, shown.clone());
        Some(shown)
    }

    /// Takes out all that is found and that the kernel knows nothing of, in one pass: everybody else waits for it.
    fn drop_unknown(&mut self) {
        let Inner { by_name, by_base, entries, .. } = self;
        by_base.retain(|shown| {
            let is_found = by_name.get(&shown.name).is_some_and(|found| Arc::ptr_eq(found, shown));
            let goes = is_found && !shown.is_known();
            if goes {
                by_name.remove(&shown.name);
                *entries -= u64::from(shown.tree.len());
            }
            !goes
        });
    }

    /// As many numbers as nobody had. `None` where there are no more, or they cannot be written down: numbers that the
    /// next server does not know would mean something else to it.
    fn new_numbers(&mut self, name: &str, len: u64, root: &ContentRoot) -> Option<u64> {
        let base = self.next.max(GREETING + 1);
        if base + len > END {
            return None;
        }
        if let Some(numbers) = &mut self.numbers
            && let Err(error) = numbers.note(base as u32, len as u32, name, root)
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

    /// What is found is not any more.
    fn lose(&mut self, shown: &Arc<Shown>) {
        self.by_name.remove(&shown.name);
        self.gone.entry(shown.name.clone()).or_default().push(shown.clone());
        self.drop_if_forgotten(shown);
    }

    /// Of what is not found any more.
    fn drop_if_forgotten(&mut self, shown: &Arc<Shown>) {
        if !shown.is_known() {
            self.take_out(shown);
        }
    }

    /// For good, what is not found any more.
    fn take_out(&mut self, shown: &Arc<Shown>) {
        let Some(at) = self.place(shown) else { return };
        self.by_base.remove(at);
        self.entries -= u64::from(shown.tree.len());
        if let Some(of_name) = self.gone.get_mut(&shown.name) {
            of_name.retain(|other| !Arc::ptr_eq(other, shown));
            if of_name.is_empty() {
                self.gone.remove(&shown.name);
            }
        }
    }

    /// Where it is among all that are in memory.
    fn place(&self, shown: &Arc<Shown>) -> Option<usize> {
        let at = self.by_base.partition_point(|other| other.base < shown.base);
        self.by_base.get(at).is_some_and(|other| Arc::ptr_eq(other, shown)).then_some(at)
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
        assert_eq!(table.all_of("one").iter().map(|one| one.base).collect::<Vec<_>>(), [again.base, shown.base]);
        table.forgotten(shown.node(0), 1);
        assert!(table.by_node(shown.node(0)).is_none());
        assert_eq!((table.all_of("one").len(), table.read().gone.len()), (1, 0));
        assert_eq!(table.size(), (1, 3));
        again.looked_up();
        table.forgotten(again.node(0), 1);
        assert!(table.by_name("one").is_some(), "what is forgotten is not taken out");
    }

    #[test]
    fn what_a_name_means_by_now_is_not_taken_out_for_what_it_meant_before() {
        let table = Table::default();
        let before = table.insert("one", tree(1)).unwrap();
        assert!(table.remove_this(&before));
        let now = table.insert("one", tree(2)).unwrap();
        assert!(!table.remove_this(&before));
        assert!(Arc::ptr_eq(&table.by_name("one").unwrap(), &now));
    }

    /// Both trees have as many entries.
    #[test]
    fn other_contents_under_a_name_have_other_numbers_after_a_restart() {
        let numbers = Numbers::new().unwrap();
        let kept = [numbers.share().unwrap(), numbers.share().unwrap()];
        let first = Table::keeping(numbers, Vec::new()).insert("one", tree(1)).unwrap().base;
        let after = kept.map(|kept| {
            let (numbers, reserved) = Numbers::reopen(kept).unwrap();
            Table::keeping(numbers, reserved)
        });
        assert_eq!(after[0].insert("one", tree(1)).unwrap().base, first);
        assert_ne!(after[1].insert("one", tree(2)).unwrap().base, first);
    }

    #[test]
    fn a_path_that_is_asked_for_finds_the_room_of_those_that_nobody_uses() {
        let table = Table::of(7, None, Reservations::default());
        let used = table.insert("used", tree(1)).unwrap();
        used.looked_up();
        table.insert("unused", tree(2)).unwrap();
        assert!(table.insert("listed", tree(3)).is_none());
        assert!(table.insert_wanted("wanted", tree(3)).is_some());
        assert!(table.by_name("unused").is_none() && table.by_name("used").is_some());
        table.by_name("wanted").unwrap().looked_up();
        assert!(table.insert_wanted("more", tree(4)).is_none(), "all there is is used");
    }

    #[test]
    fn what_was_taken_out_since_it_was_found_is_not_given_to_the_kernel() {
        let table = Table::default();
        let shown = table.insert("one", tree(1)).unwrap();
        assert!(table.give(&shown));
        table.remove("one");
        assert!(table.give(&shown), "the kernel has it, and may have it again");
        table.forgotten(shown.node(0), 2);
        assert!(!table.give(&shown));
    }

    #[test]
    fn the_kernel_is_asked_first_of_what_it_knew_before() {
        let shown = Table::default().insert("one", tree(1)).unwrap();
        let asked = std::cell::RefCell::new(Vec::new());
        let knows_last = |node: u64| {
            asked.borrow_mut().push(node);
            node == shown.node(2)
        };
        assert_eq!(shown.known_node(knows_last), Some(shown.node(2)));
        asked.borrow_mut().clear();
        assert_eq!(shown.known_node(knows_last), Some(shown.node(2)));
        assert_eq!(*asked.borrow(), [shown.node(2)]);
        assert_eq!(shown.known_node(|_| false), None);
    }

    #[test]
    fn a_path_from_an_earlier_server_goes_when_the_kernel_knows_nothing_of_it() {
        let numbers = Numbers::new().unwrap();
        let kept = numbers.share().unwrap();
        drop(Table::keeping(numbers, Vec::new()).insert("one", tree(1)));
        let (numbers, reserved) = Numbers::reopen(kept).unwrap();
        let table = Table::keeping(numbers, reserved);
        let shown = table.insert("one", tree(1)).unwrap();
        assert!(shown.is_restored());
        table.drop_restored(&shown);
        assert!(table.by_node(shown.node(0)).is_some(), "it is found");
        table.remove("one");
        assert!(table.by_node(shown.node(0)).is_some(), "somebody may have it");
        table.drop_restored(&shown);
        assert_eq!((table.by_node(shown.node(0)).is_some(), table.size()), (false, (0, 0)));
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
