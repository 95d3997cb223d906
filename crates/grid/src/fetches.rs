//! Which store path is fetched next, and when one may become valid.
//!
//! Invariants:
//! - a path that several want is fetched once;
//! - never more than `slots` are downloaded at once, and in the order in which they were wanted;
//! - a path is committed only when everything it refers to is (what is not known here counts as valid);
//! - when one fails, so does everything that refers to it, and nothing else;
//! - each path that was wanted is settled exactly once, and then forgotten;
//! - one that nobody wants any more is dropped unless it was begun.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Dropped paths that may stand in the queue beyond as many as wait there: so sweeping it costs little a path.
const DROPPED_MAX: usize = 1024;

/// One path of a closure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<K> {
    pub key: K,
    /// What it refers to, as far as that is not valid yet; all of it must be wanted in the same call or before.
    pub references: Vec<K>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<K> {
    /// `downloaded` or `failed` must follow.
    Download(K),
    /// `committed` or `failed` must follow.
    Commit(K),
    Settled {
        key: K,
        is_valid: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued,
    Downloading,
    Downloaded,
    Committing,
}

#[derive(Debug)]
struct Fetch<K> {
    stage: Stage,
    waits_for: BTreeSet<K>,
    needed_by: BTreeSet<K>,
    /// Requests that want it for itself.
    wanted: usize,
    /// Something it refers to failed while it was downloaded.
    doomed: bool,
}

#[derive(Debug)]
pub struct Fetches<K> {
    slots: usize,
    downloading: usize,
    /// Some of these were dropped meanwhile.
    queue: VecDeque<K>,
    queued: usize,
    fetches: BTreeMap<K, Fetch<K>>,
}

impl<K: Clone + Ord> Fetches<K> {
    /// `slots`: downloads at once, at least 1.
    pub fn new(slots: usize) -> Fetches<K> {
        Fetches { slots: slots.max(1), downloading: 0, queue: VecDeque::new(), queued: 0, fetches: BTreeMap::new() }
    }

    pub fn contains(&self, key: &K) -> bool {
        self.fetches.contains_key(key)
    }

    /// Paths that are being downloaded, and those that wait for it.
    pub fn counts(&self) -> (usize, usize) {
        (self.downloading, self.queued)
    }

    /// Wants all of these, each of which counts as wanted once more, and once settled or withdrawn no more.
    pub fn want(&mut self, closure: Vec<Wanted<K>>) -> Vec<Action<K>> {
        for Wanted { key, .. } in &closure {
            let fetch = self.fetches.entry(key.clone()).or_insert_with(|| {
                self.queue.push_back(key.clone());
                self.queued += 1;
                Fetch {
                    stage: Stage::Queued,
                    waits_for: BTreeSet::new(),
                    needed_by: BTreeSet::new(),
                    wanted: 0,
                    doomed: false,
                }
            });
            fetch.wanted += 1;
        }
        for Wanted { key, references } in closure {
            for reference in references.into_iter().filter(|reference| *reference != key) {
                let Some(below) = self.fetches.get_mut(&reference) else { continue };
                below.needed_by.insert(key.clone());
                if let Some(fetch) = self.fetches.get_mut(&key) {
                    fetch.waits_for.insert(reference);
                }
            }
        }
        let mut actions = Vec::new();
        self.start(&mut actions);
        actions
    }

    /// A request has lost its interest in a path.
    pub fn withdraw(&mut self, key: &K) {
        if let Some(fetch) = self.fetches.get_mut(key) {
            fetch.wanted = fetch.wanted.saturating_sub(1);
            self.drop_unwanted(vec![key.clone()]);
        }
    }

    /// Drops those of `open` that nobody wants any more and that were not begun, and what only they needed.
    fn drop_unwanted(&mut self, mut open: Vec<K>) {
        while let Some(key) = open.pop() {
            let Entry::Occupied(fetch) = self.fetches.entry(key) else { continue };
            let is_free = fetch.get().wanted == 0 && fetch.get().needed_by.is_empty();
            if !is_free || fetch.get().stage != Stage::Queued {
                continue;
            }
            let (key, fetch) = fetch.remove_entry();
            self.queued -= 1;
            for below in fetch.waits_for {
                if let Some(fetch) = self.fetches.get_mut(&below) {
                    fetch.needed_by.remove(&key);
                    open.push(below);
                }
            }
        }
        if self.queue.len() > 2 * self.queued + DROPPED_MAX {
            let fetches = &self.fetches;
            self.queue.retain(|key| fetches.get(key).is_some_and(|fetch| fetch.stage == Stage::Queued));
        }
    }

    pub fn downloaded(&mut self, key: &K) -> Vec<Action<K>> {
        let mut actions = Vec::new();
        if let Some(fetch) = self.fetches.get_mut(key).filter(|fetch| fetch.stage == Stage::Downloading) {
            self.downloading -= 1;
            fetch.stage = Stage::Downloaded;
            match fetch.doomed {
                true => self.fail(key, &mut actions),
                false => self.commit_if_ready(key, &mut actions),
            }
        }
        self.start(&mut actions);
        actions
    }

    pub fn committed(&mut self, key: &K) -> Vec<Action<K>> {
        let mut actions = Vec::new();
        if let Some(fetch) = self.fetches.remove(key) {
            actions.push(Action::Settled { key: key.clone(), is_valid: true });
            for above in fetch.needed_by {
                if let Some(fetch) = self.fetches.get_mut(&above) {
                    fetch.waits_for.remove(key);
                }
                self.commit_if_ready(&above, &mut actions);
            }
        }
        actions
    }

    /// A download or a commit failed.
    pub fn failed(&mut self, key: &K) -> Vec<Action<K>> {
        let mut actions = Vec::new();
        if let Some(fetch) = self.fetches.get_mut(key) {
            if fetch.stage == Stage::Downloading {
                self.downloading -= 1;
                fetch.stage = Stage::Downloaded;
            }
            self.fail(key, &mut actions);
        }
        self.start(&mut actions);
        actions
    }

    fn start(&mut self, actions: &mut Vec<Action<K>>) {
        while self.downloading < self.slots {
            let Some(key) = self.queue.pop_front() else { return };
            // It may have been dropped, and wanted again behind others.
            if let Some(fetch) = self.fetches.get_mut(&key).filter(|fetch| fetch.stage == Stage::Queued) {
                fetch.stage = Stage::Downloading;
                self.queued -= 1;
                self.downloading += 1;
                actions.push(Action::Download(key));
            }
        }
    }

    fn commit_if_ready(&mut self, key: &K, actions: &mut Vec<Action<K>>) {
        if let Some(fetch) = self.fetches.get_mut(key)
            && fetch.stage == Stage::Downloaded
            && fetch.waits_for.is_empty()
        {
            fetch.stage = Stage::Committing;
            actions.push(Action::Commit(key.clone()));
        }
    }

    /// Ends it and all above. One that is being downloaded ends with its download.
    fn fail(&mut self, key: &K, actions: &mut Vec<Action<K>>) {
        let mut open = vec![key.clone()];
        while let Some(key) = open.pop() {
            let Some(fetch) = self.fetches.get_mut(&key) else { continue };
            if fetch.stage == Stage::Downloading {
                fetch.doomed = true;
                continue;
            }
            let Some(fetch) = self.fetches.remove(&key) else { continue };
            if fetch.stage == Stage::Queued {
                self.queued -= 1;
            }
            for below in &fetch.waits_for {
                if let Some(fetch) = self.fetches.get_mut(below) {
                    fetch.needed_by.remove(&key);
                }
            }
            self.drop_unwanted(fetch.waits_for.into_iter().collect());
            open.extend(fetch.needed_by);
            actions.push(Action::Settled { key, is_valid: false });
        }
    }
}

#[cfg(test)]
#[path = "fetches_tests.rs"]
mod tests;
