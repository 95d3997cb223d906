//! What this node holds, and whom it still has to tell.
//!
//! Invariants:
//! - every owner of a held path is told once, and again only if it did not answer or became its owner anew;
//! - one batch is on its way to an owner at a time, so that a slow owner slows only what it is told;
//! - an owner that is none any more is told nothing;
//! - the first that an owner hears from a node that was started is that it was, so that nothing of its earlier life is
//!   mixed with this one.

use crate::announce::{BATCH_KEYS_MAX, announcements, owners};
use crate::ring::{Key, NodeId, Ring};
use shoal_wire::mesh::announcement::{HolderMessage, Holding};
use shoal_wire::mesh::path_record::ContentTag;
use std::collections::{BTreeMap, BTreeSet};

/// An owner that did not answer a batch is told again: far longer than a batch takes, shorter than a death.
pub const ANNOUNCE_RETRY_MS: u64 = 5_000;

#[derive(Clone, Debug, Default)]
struct Outbox {
    /// It has not heard yet that this node was started.
    is_new: bool,
    /// Paths of which it is to be told whether this node holds them.
    waiting: BTreeSet<Key>,
    on_its_way: Option<(u64, Vec<Key>)>,
}

#[derive(Clone, Debug, Default)]
pub struct Holdings {
    held: BTreeMap<Key, ContentTag>,
    /// The store was empty at the start.
    began_empty: bool,
    outboxes: BTreeMap<NodeId, Outbox>,
    /// The life in which each owner was told.
    lives: BTreeMap<NodeId, u64>,
    /// This node's own.
    life: u64,
}

impl Holdings {
    /// `held` is what the store has at the start.
    pub fn new(life: u64, held: impl IntoIterator<Item = Holding>) -> Self {
        let held: BTreeMap<Key, ContentTag> = held.into_iter().map(|holding| (holding.key, holding.content)).collect();
        Holdings { began_empty: held.is_empty(), held, outboxes: BTreeMap::new(), lives: BTreeMap::new(), life }
    }

    pub fn get(&self, key: &Key) -> Option<ContentTag> {
        self.held.get(key).copied()
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &ContentTag)> {
        self.held.iter()
    }

    /// A path became valid here. One that is valid already stays what it is: `false`.
    pub fn add(&mut self, key: Key, content: ContentTag, ring: &Ring) -> bool {
        if self.held.contains_key(&key) {
            return false;
        }
        self.held.insert(key, content);
        self.tell_new(&Ring::default(), ring, [key].iter());
        true
    }

    /// A path was deleted.
    pub fn remove(&mut self, key: &Key, ring: &Ring) -> bool {
        let was_held = self.held.remove(key).is_some();
        if was_held {
            self.tell_new(&Ring::default(), ring, [*key].iter());
        }
        was_held
    }

    /// The owners are others now. `me` need not hear of itself.
    pub fn ring_changed(&mut self, me: &NodeId, before: &Ring, after: &Ring) {
        let held = std::mem::take(&mut self.held);
        self.outboxes.retain(|owner, _| after.contains(owner));
        self.lives.retain(|owner, _| after.contains(owner));
        for owner in after.members().filter(|owner| !before.contains(owner) && *owner != me) {
            self.outboxes.entry(*owner).or_default().is_new = true;
        }
        self.tell_new(before, after, held.keys());
        self.held = held;
    }

    fn tell_new<'a>(&mut self, before: &Ring, after: &Ring, keys: impl Iterator<Item = &'a Key>) {
        for announcement in announcements(before, after, keys) {
            self.outboxes.entry(announcement.to).or_default().waiting.extend(announcement.keys);
        }
    }

    /// Tells an owner again that may take these for gone.
    pub fn tell(&mut self, owner: &NodeId, keys: &[Key]) {
        let held: Vec<Key> = keys.iter().copied().filter(|key| self.held.contains_key(key)).collect();
        if !held.is_empty() {
            self.outboxes.entry(*owner).or_default().waiting.extend(held);
        }
    }

    /// What an owner was told in an earlier life it knows no more.
    pub fn owner_lives(&mut self, owner: &NodeId, life: u64, ring: &Ring) {
        if !ring.contains(owner) || self.lives.insert(*owner, life).is_none_or(|before| before == life) {
            return;
        }
        let is_its = |key: &&Key| owners(ring, key).contains(owner);
        let keys: BTreeSet<Key> = self.held.keys().filter(is_its).copied().collect();
        let outbox = self.outboxes.entry(*owner).or_default();
        (outbox.waiting, outbox.on_its_way) = (keys, None);
    }

    /// Messages to send now.
    pub fn due(&mut self, now_ms: u64) -> Vec<(NodeId, HolderMessage)> {
        let mut due = Vec::new();
        for (owner, outbox) in &mut self.outboxes {
            if let Some((since, keys)) = &outbox.on_its_way {
                if now_ms.saturating_sub(*since) < ANNOUNCE_RETRY_MS {
                    continue;
                }
                outbox.waiting.extend(keys.iter().copied());
                outbox.on_its_way = None;
            }
            if outbox.is_new {
                outbox.on_its_way = Some((now_ms, Vec::new()));
                due.push((*owner, HolderMessage::Begins { life: self.life, holds_nothing: self.began_empty }));
                continue;
            }
            let Some(first) = outbox.waiting.first() else { continue };
            let is_held = self.held.contains_key(first);
            let alike = outbox.waiting.iter().filter(|key| self.held.contains_key(*key) == is_held);
            let keys: Vec<Key> = alike.take(BATCH_KEYS_MAX).copied().collect();
            for key in &keys {
                outbox.waiting.remove(key);
            }
            let holding = |key: &Key| self.held.get(key).map(|content| Holding { key: *key, content: *content });
            let message = match is_held {
                true => HolderMessage::Holds(keys.iter().filter_map(holding).collect()),
                false => HolderMessage::Drops(keys.clone()),
            };
            outbox.on_its_way = Some((now_ms, keys));
            due.push((*owner, message));
        }
        self.outboxes.retain(|_, outbox| outbox.is_new || outbox.on_its_way.is_some() || !outbox.waiting.is_empty());
        due
    }

    /// The owner has taken in the batch that was on its way.
    pub fn answered(&mut self, owner: &NodeId) {
        if let Some(outbox) = self.outboxes.get_mut(owner) {
            // The first answer is to the first message.
            outbox.is_new = false;
            outbox.on_its_way = None;
        }
    }

    /// Whether everybody was told everything.
    pub fn is_settled(&self) -> bool {
        self.outboxes.is_empty()
    }
}
