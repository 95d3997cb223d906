//! Paths that were stored here and are to be acknowledged: once, when min(R, live) live nodes hold them durably.
//!
//! A node with other contents under the same name can hold no copy. It does not count among the live ones then: the
//! conflict is reported by the owners, and whoever stored the path is not kept waiting for what cannot be.

use super::replication::{is_acknowledged, targets};
use super::{Action, Catalogue, WAITING_MAX};
use crate::ring::{Key, NodeId};
use shoal_wire::mesh::announcement::{Holding, Wanted};
use std::collections::BTreeSet;

/// A path that is not acknowledged yet.
#[derive(Clone, Debug, Default)]
pub struct Pledge {
    /// Others that hold it.
    holders: BTreeSet<NodeId>,
    /// Others that hold other contents under its name.
    differ: BTreeSet<NodeId>,
}

impl Catalogue {
    /// A path became valid here that is to be kept on R nodes; [`Action::Acknowledged`] says when it is. `false` where
    /// other contents are valid under its name, or too many wait.
    pub fn stored(&mut self, holding: Holding, now_ms: u64) -> (bool, Vec<Action>) {
        self.now_ms = now_ms;
        let is_other = self.holdings.get(&holding.key).is_some_and(|held| held != holding.content);
        if is_other || self.pledges.len() >= WAITING_MAX {
            return (false, Vec::new());
        }
        self.holdings.add(holding.key, holding.content, &self.ring);
        self.pledges.entry(holding.key).or_default();
        self.pursue(holding.key);
        self.announce();
        (true, self.finish())
    }

    /// Sees to it that a path that is to be acknowledged gets its copies.
    pub(super) fn pursue(&mut self, key: Key) {
        let Some(pledge) = self.pledges.get(&key) else { return };
        let mut storers = self.storers(&self.me);
        storers.retain(|node| !pledge.differ.contains(node));
        // Holders that stay: this one is not among them while it drains.
        let staying = |node: &&NodeId| storers.contains(*node);
        let kept: Vec<NodeId> = pledge.holders.iter().chain([&self.me]).filter(staying).copied().collect();
        if storers.is_empty() || is_acknowledged(kept.len(), self.copies, storers.len()) {
            self.pledges.remove(&key);
            self.out.push(Action::Acknowledged { key });
            return;
        }
        let Some(content) = self.holdings.get(&key) else {
            // It was deleted or lost; nobody can copy it from here.
            self.pledges.remove(&key);
            return;
        };
        for target in targets(&self.able(&key, &storers, &kept), &kept, self.copies.min(storers.len())) {
            if self.orders.place(key, target, WAITING_MAX, self.now_ms) {
                self.order(target, Wanted { holding: Holding { key, content }, from: vec![self.me] });
            }
        }
    }

    pub(super) fn stored_by(&mut self, node: NodeId, key: &Key) {
        // The word of who was not asked for a copy does not count.
        if !self.orders.done(key, &node) {
            return;
        }
        if let Some(pledge) = self.pledges.get_mut(key) {
            pledge.holders.insert(node);
            self.pursue(*key);
        }
    }

    /// A node that was asked for a copy has other contents under this name.
    pub(super) fn differs_at(&mut self, node: NodeId, key: &Key) {
        if !self.orders.failed(key, &node, self.now_ms) {
            return;
        }
        if let Some(pledge) = self.pledges.get_mut(key) {
            pledge.differ.insert(node);
            self.pursue(*key);
        }
        self.recheck(*key);
    }
}
