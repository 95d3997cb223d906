//! Paths that somebody uses right now: temporary roots, and paths being read.
//!
//! A path chosen for deletion is `dying` until the deleting transaction has ended; who takes a lease
//! on it meanwhile waits, and then finds it gone. So a path that was found valid under a lease stays.

use crate::uses::Uses;
use shoal_wire::nix::store_path::StorePath;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
pub struct Leases {
    state: Mutex<State>,
    settled: Condvar,
    pub uses: Uses,
}

#[derive(Default)]
struct State {
    held: HashMap<StorePath, u32>,
    dying: HashSet<StorePath>,
}

impl Leases {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, path: &StorePath) {
        self.uses.note(path);
        let mut state = self.state();
        while state.dying.contains(path) {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state.held.entry(path.clone()).or_insert(0) += 1;
    }

    fn release(&self, path: &StorePath) {
        let mut state = self.state();
        if let Some(count) = state.held.get_mut(path) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(path);
            }
        }
    }

    /// All paths with a lease.
    pub fn held(&self) -> Vec<StorePath> {
        self.state().held.keys().cloned().collect()
    }

    /// Chooses those of `candidates` that nobody holds; they are dying from now on.
    pub fn begin_deletion(&self, candidates: &[StorePath]) -> Vec<StorePath> {
        let mut state = self.state();
        let free = candidates.iter().filter(|path| !state.held.contains_key(*path));
        let chosen: Vec<StorePath> = free.cloned().collect();
        state.dying = chosen.iter().cloned().collect();
        chosen
    }

    /// The deleting transaction has ended, one way or the other.
    pub fn end_deletion(&self) {
        self.state().dying.clear();
        self.settled.notify_all();
    }
}

/// Keeps one path from being deleted until dropped.
pub struct Lease {
    leases: Arc<Leases>,
    path: StorePath,
}

impl Lease {
    pub fn new(leases: &Arc<Leases>, path: &StorePath) -> Self {
        leases.hold(path);
        Lease { leases: leases.clone(), path: path.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.release(&self.path);
    }
}

/// The temporary roots of one client or one build: paths that are not deleted while this lives,
/// nor what they refer to. They need not be valid yet.
pub struct TempRoots {
    leases: Arc<Leases>,
    mine: Mutex<HashMap<StorePath, Lease>>,
}

impl TempRoots {
    pub(crate) fn new(leases: Arc<Leases>) -> Self {
        TempRoots { leases, mine: Mutex::default() }
    }

    /// Adds a root. A path that is valid afterwards stays valid.
    pub fn add(&self, path: &StorePath) {
        let mut mine = self.mine.lock().unwrap_or_else(PoisonError::into_inner);
        mine.entry(path.clone()).or_insert_with(|| Lease::new(&self.leases, path));
    }
}
