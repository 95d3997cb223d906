//! Views: directories that show some store paths and no others, each made for one build.
//!
//! Invariants:
//! - what a view shows is in memory before it is there, and never changes: nobody waits who looks something up in it;
//! - its directories are its own, since the kernel has a directory at one place only: the upper half of their numbers is
//!   the view's. Files and symlinks are the same in all, and so is what the kernel keeps of their contents;
//! - a number is given to one view only.
//!
//! The kernel keeps the contents of a file for as long as it knows a name of it. So the last few views stay known to it
//! after they ended, and the next build finds there what these have read.

use crate::profile::{self, Profile, Reads};
use crate::table::{ROOT, Shown};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Views that ended and are still known to the kernel. It has some kilobytes for each directory that was looked into, and
/// takes them back itself when memory is short.
const ENDED_MAX: usize = 32;
/// In a view, where the paths are: an overlay merges what has the same name.
pub const STORE: &str = "store";
/// What the names of views at the root begin with. No store path has such a name, and no list shows it.
const PREFIX: &str = ".view-";
/// The number of [`STORE`] within its view. No path has it.
pub const STORE_NODE: u64 = 2;

/// The paths of one build.
pub struct ViewPaths {
    number: u32,
    /// Sorted by name.
    paths: Box<[Arc<Shown>]>,
    failed_reads: AtomicU64,
    /// By whomever, while it is used.
    reads: Mutex<Reads>,
}

/// The views of a mount.
#[derive(Default)]
pub struct Views(RwLock<Inner>);

#[derive(Default)]
struct Inner {
    used: HashMap<u32, Arc<ViewPaths>>,
    /// The oldest first.
    ended: VecDeque<Arc<ViewPaths>>,
    last: u32,
}

/// What a node in a view is.
pub enum Node {
    Top,
    Store,
    /// A directory of a store path, by the number that it has outside of views.
    Inside(u64),
}

/// Divides the number of a node into its view's and its own. `None` for what is in no view.
pub fn divide(node: u64) -> Option<(u32, Node)> {
    // Below 2^32 after the shift.
    let view = (node >> 32) as u32;
    let own = node & u64::from(u32::MAX);
    let node = match own {
        ROOT => Node::Top,
        STORE_NODE => Node::Store,
        own => Node::Inside(own),
    };
    (view > 0).then_some((view, node))
}

/// The number of a directory in a view, by the one that it has outside.
pub fn within(view: u32, node: u64) -> u64 {
    u64::from(view) << 32 | node
}

impl ViewPaths {
    pub fn number(&self) -> u32 {
        self.number
    }

    pub fn top(&self) -> u64 {
        within(self.number, ROOT)
    }

    pub fn store(&self) -> u64 {
        within(self.number, STORE_NODE)
    }

    /// What it is called at the root.
    pub fn name(&self) -> String {
        format!("{PREFIX}{}", self.number)
    }

    pub fn paths(&self) -> &[Arc<Shown>] {
        &self.paths
    }

    pub fn path(&self, name: &[u8]) -> Option<&Arc<Shown>> {
        self.paths.get(self.place(name)?)
    }

    fn place(&self, name: &[u8]) -> Option<usize> {
        self.paths.binary_search_by(|shown| shown.name.as_bytes().cmp(name)).ok()
    }

    /// What to remember of it, and of what was read `before` by its like.
    pub fn profile(&self, before: &Profile) -> Profile {
        profile::merge(&self.reads.lock().unwrap_or_else(PoisonError::into_inner), before, &self.paths)
    }

    /// Reads of what it shows that were answered with an error, for whomever.
    pub fn failed_reads(&self) -> u64 {
        self.failed_reads.load(Ordering::Acquire)
    }
}

impl Views {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new view of these paths, which are held for as long as it is used. `None` when there were 2^32 of them.
    pub fn begin(&self, mut paths: Vec<Arc<Shown>>) -> Option<Arc<ViewPaths>> {
        paths.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        paths.dedup_by(|one, other| one.name == other.name);
        let mut inner = self.write();
        let number = inner.last.checked_add(1)?;
        let view = Arc::new(ViewPaths {
            number,
            paths: paths.into(),
            failed_reads: AtomicU64::new(0),
            reads: Mutex::default(),
        });
        inner.last = number;
        inner.used.insert(number, view.clone());
        Some(view)
    }

    /// Nobody uses it any more. The views that the kernel should forget for that.
    #[must_use]
    pub fn end(&self, view: &Arc<ViewPaths>) -> Vec<Arc<ViewPaths>> {
        let mut inner = self.write();
        inner.used.remove(&view.number);
        inner.ended.push_back(view.clone());
        let too_many = inner.ended.len().saturating_sub(ENDED_MAX);
        inner.ended.drain(..too_many).collect()
    }

    /// Ended views that show one of these paths, which the kernel should forget.
    #[must_use]
    pub fn give_up(&self, shows: impl Fn(&ViewPaths) -> bool) -> Vec<Arc<ViewPaths>> {
        let mut inner = self.write();
        if inner.ended.is_empty() {
            return Vec::new();
        }
        let (given_up, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut inner.ended).into_iter().partition(|view| shows(view));
        inner.ended = kept.into();
        given_up
    }

    pub fn by_name(&self, name: &[u8]) -> Option<Arc<ViewPaths>> {
        let number = str::from_utf8(name.strip_prefix(PREFIX.as_bytes())?).ok()?.parse().ok()?;
        self.by_number(number)
    }

    pub fn by_number(&self, number: u32) -> Option<Arc<ViewPaths>> {
        self.read().used.get(&number).cloned()
    }

    /// Bytes of a file are read: in whichever view, they are noted in all that show it, as a file has one number in all.
    /// So what one build reads is also remembered of those that run beside it and have that path as an input.
    pub fn note_read(&self, shown: &Shown, number: u32, bytes: &Range<u64>) {
        for view in self.read().used.values() {
            if let Some(place) = view.place(shown.name.as_bytes()).filter(|at| view.paths[*at].base == shown.base) {
                view.reads.lock().unwrap_or_else(PoisonError::into_inner).add(place, number, bytes.clone());
            }
        }
    }

    /// A read of a path is about to be answered with an error.
    pub fn failed(&self, shown: &Shown) {
        for view in self.read().used.values() {
            if view.path(shown.name.as_bytes()).is_some_and(|path| path.base == shown.base) {
                view.failed_reads.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}
