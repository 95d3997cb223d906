//! What must be fetched so that some paths become valid: they, and all they refer to that is not valid yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use shoal_grid::fetches::Wanted;
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::{PathKey, path_key};
use shoal_wire::nix::store_path::StorePath;

use super::asks::{Asks, Query, Tried};
use super::offer::{Held, Offer};
use crate::neighbours::Neighbours;

/// Paths in one closure. A whole distribution has a few hundred thousand.
const CLOSURE_PATHS_MAX: usize = 1_000_000;
/// Paths that another node is asked for at once.
const KEYS_AT_ONCE: usize = 256;

/// Invalid paths that upstreams offer together with all they refer to.
#[derive(Clone, Debug, Default)]
pub struct Closure {
    pub offers: BTreeMap<StorePath, Arc<Offer>>,
}

impl Closure {
    /// Looks for `roots`, level by level. Those that are not offered whole are left out, as are valid ones.
    pub fn find(store: &Store, asks: &Arc<Asks>, roots: &BTreeSet<StorePath>, budget: Duration) -> Result<Closure> {
        let mut offers: BTreeMap<StorePath, Arc<Offer>> = BTreeMap::new();
        let mut absent: BTreeSet<StorePath> = BTreeSet::new();
        let mut level = roots.clone();
        while !level.is_empty() {
            let valid: BTreeSet<StorePath> = store.valid_of(&level)?.into_iter().collect();
            let wanted: Vec<StorePath> = level.difference(&valid).cloned().collect();
            anyhow::ensure!(offers.len() + wanted.len() < CLOSURE_PATHS_MAX, "more than {CLOSURE_PATHS_MAX} paths");
            let queries: Vec<Query<'_>> = wanted.iter().map(Query::Path).collect();
            let found = asks.find(&queries, budget, &Tried::default());
            level = BTreeSet::new();
            for (path, offer) in wanted.into_iter().zip(found) {
                match offer {
                    Some(offer) => {
                        level.extend(offer.info.references.iter().cloned());
                        offers.insert(path, offer);
                    }
                    None => drop(absent.insert(path)),
                }
            }
            level.retain(|path| !offers.contains_key(path) && !absent.contains(path));
        }
        let mut closure = Closure { offers };
        closure.leave_out(absent);
        Ok(closure)
    }

    /// The same of what one other node has, which has with each path all that it refers to.
    pub fn find_at(
        store: &Store,
        neighbours: &Neighbours,
        holder: NodeKey,
        roots: impl Iterator<Item = PathKey>,
    ) -> Result<Closure> {
        let mut offers: BTreeMap<StorePath, Arc<Offer>> = BTreeMap::new();
        let mut absent: BTreeSet<StorePath> = BTreeSet::new();
        let mut keys: Vec<PathKey> = roots.collect();
        while !keys.is_empty() {
            anyhow::ensure!(offers.len() + keys.len() < CLOSURE_PATHS_MAX, "more than {CLOSURE_PATHS_MAX} paths");
            let held: Vec<Option<Held>> =
                keys.chunks(KEYS_AT_ONCE).flat_map(|keys| neighbours.find_at(holder, keys)).collect();
            let mut level = BTreeSet::new();
            for held in held.into_iter().flatten() {
                let offer = Offer::of_member(held);
                level.extend(offer.info.references.iter().cloned());
                offers.insert(offer.info.path.clone(), Arc::new(offer));
            }
            let valid: BTreeSet<StorePath> = store.valid_of(&level)?.into_iter().collect();
            // What was asked for and is not there by now is nowhere.
            level.retain(|path| !valid.contains(path) && !offers.contains_key(path) && absent.insert(path.clone()));
            keys = level.iter().filter_map(|path| path_key(path.hash_part())).collect();
        }
        absent.retain(|path| !offers.contains_key(path));
        let valid = store.valid_of(offers.keys())?;
        valid.iter().for_each(|path| drop(offers.remove(path)));
        let mut closure = Closure { offers };
        closure.leave_out(absent);
        Ok(closure)
    }

    /// Leaves out everything that refers to what is not to be had.
    fn leave_out(&mut self, absent: BTreeSet<StorePath>) {
        let mut referrers: BTreeMap<&StorePath, Vec<&StorePath>> = BTreeMap::new();
        for (path, offer) in &self.offers {
            for reference in &offer.info.references {
                referrers.entry(reference).or_default().push(path);
            }
        }
        let mut out: BTreeSet<StorePath> = BTreeSet::new();
        let mut open: Vec<&StorePath> = absent.iter().collect();
        while let Some(path) = open.pop() {
            for referrer in referrers.get(path).into_iter().flatten() {
                if out.insert((*referrer).clone()) {
                    open.push(referrer);
                }
            }
        }
        self.offers.retain(|path, _| !out.contains(path));
    }

    pub fn contains(&self, path: &StorePath) -> bool {
        self.offers.contains_key(path)
    }

    /// Takes some paths of `other`, and all they refer to.
    pub fn take(&mut self, other: &Closure, paths: &BTreeSet<StorePath>) {
        let mut open: Vec<&StorePath> = paths.iter().collect();
        while let Some(path) = open.pop() {
            if let Some(offer) = other.offers.get(path)
                && self.offers.insert(path.clone(), offer.clone()).is_none()
            {
                open.extend(&offer.info.references);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.offers.is_empty()
    }

    /// Bytes to be downloaded, and bytes of NAR that come of it.
    pub fn sizes(&self) -> (u64, u64) {
        let sum = |size: fn(&Offer) -> u64| self.offers.values().map(|offer| size(offer)).fold(0, u64::saturating_add);
        (sum(Offer::download_size), sum(|offer| offer.info.nar_size))
    }

    /// For the order of fetching: what is referred to first.
    pub(super) fn wanted(&self) -> Vec<Wanted<StorePath>> {
        let mut wanted = Vec::with_capacity(self.offers.len());
        let mut seen: BTreeSet<&StorePath> = BTreeSet::new();
        for root in self.offers.keys() {
            // Each path is entered, and left when all below it have been.
            let mut open = vec![(root, false)];
            while let Some((path, leaving)) = open.pop() {
                let Some(offer) = self.offers.get(path) else { continue };
                if leaving {
                    let references = offer.info.references.iter().filter(|path| self.contains(path)).cloned();
                    wanted.push(Wanted { key: path.clone(), references: references.collect() });
                } else if seen.insert(path) {
                    open.push((path, true));
                    open.extend(offer.info.references.iter().map(|reference| (reference, false)));
                }
            }
        }
        wanted
    }
}
