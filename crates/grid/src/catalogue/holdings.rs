//! What this node holds, and whom it still has to tell.
//!
//! Invariants:
//! - every owner of a held path is told once, and again only if it did not answer or became its owner anew;
//! - one batch is on its way to an owner at a time, so that a slow owner slows only what it is told;
//! - an owner that is none any more is told nothing;
//! - the first that an owner hears from a node that was started is that it was, so that nothing of its earlier life is
//!   mixed with this one. Who is told nothing else hears it too: at once where it may remember this node, and by and by
//!   from a newcomer, which would be linked to all members at once.

use crate::announce::{BATCH_KEYS_MAX, announcements, owners};
use crate::ring::{Key, NodeId, Ring};
use shoal_wire::mesh::announcement::{HolderMessage, Holding};
use shoal_wire::mesh::path_record::ContentTag;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// How often a node that was never started before, as far as it knows, tells one more member that it was: somebody may
/// remember it whose word has not come here. Each costs a connection.
pub const GREET_MS: u64 = 10_000;
/// An owner that did not answer a batch is told again: far longer than a batch takes, shorter than a death.
pub const ANNOUNCE_RETRY_MS: u64 = 5_000;
/// From one batch to an owner to the next, unless that is full. The first goes at once; of many paths that come one after the
/// other those of so long go together, as a message and its answer cost more than what they say.
pub const BATCH_GAP_MS: u64 = 20;

#[derive(Clone, Debug, Default)]
struct Outbox {
    /// Paths of which it is to be told whether this node holds them.
    waiting: BTreeSet<Key>,
    on_its_way: Option<(u64, Vec<Key>)>,
    /// Something of it was to be told at once, and is as soon as [`BATCH_GAP_MS`] are over.
    is_held_back: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Holdings {
    held: BTreeMap<Key, ContentTag>,
    /// The store was empty at the start.
    began_empty: bool,
    outboxes: BTreeMap<NodeId, Outbox>,
    /// Members that have not heard yet that this node was started.
    strangers: BTreeSet<NodeId>,
    /// Nobody remembers this node but those that it told something.
    is_unknown: bool,
    /// When each was told something last.
    told: BTreeMap<NodeId, u64>,
    /// See [`Holdings::next_ms`].
    next_ms: Option<u64>,
    /// The last stranger that was told, and when.
    greeted: (NodeId, u64),
    /// The life in which each owner was told.
    lives: BTreeMap<NodeId, u64>,
    /// This node's own.
    life: u64,
}

impl Holdings {
    /// `held` is what the store has at the start.
    pub fn new(life: u64, held: impl IntoIterator<Item = Holding>) -> Self {
        let held: BTreeMap<Key, ContentTag> = held.into_iter().map(|holding| (holding.key, holding.content)).collect();
        Holdings { began_empty: held.is_empty(), held, life, ..Holdings::default() }
    }

    /// This node was never started before, so that nobody remembers it.
    pub fn never_lived(&mut self) {
        self.is_unknown = true;
    }

    /// Somebody may remember this node all the same.
    pub fn lived_before(&mut self) {
        if std::mem::take(&mut self.is_unknown) {
            for node in &self.strangers {
                self.outboxes.entry(*node).or_default();
            }
        }
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
        self.strangers.retain(|owner| after.contains(owner));
        if self.greeted.0 == NodeId::default() {
            // Not everybody begins with the same one.
            self.greeted.0 = *me;
        }
        for owner in after.members().filter(|owner| !before.contains(owner) && *owner != me) {
            self.strangers.insert(*owner);
            if !self.is_unknown || self.told.contains_key(owner) {
                self.outboxes.entry(*owner).or_default();
            }
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
        if keys.is_empty() && !self.outboxes.contains_key(owner) {
            return;
        }
        let outbox = self.outboxes.entry(*owner).or_default();
        (outbox.waiting, outbox.on_its_way) = (keys, None);
    }

    /// Adds the next stranger to those that are told something, when it is time.
    fn greet(&mut self, now_ms: u64) {
        let (last, at) = self.greeted;
        if !self.is_unknown || now_ms.saturating_sub(at) < GREET_MS {
            return;
        }
        let after = self.strangers.range((Bound::Excluded(last), Bound::Unbounded));
        let next = after.chain(&self.strangers).find(|node| !self.outboxes.contains_key(*node)).copied();
        if let Some(next) = next {
            self.outboxes.entry(next).or_default();
            self.greeted = (next, now_ms);
        }
    }

    /// When something more is sent to an owner that was just told something.
    pub fn next_ms(&self) -> Option<u64> {
        self.next_ms
    }

    /// Messages to send now; what is for `me` costs none, and waits for nothing.
    pub fn due(&mut self, me: &NodeId, now_ms: u64) -> Vec<(NodeId, HolderMessage)> {
        self.greet(now_ms);
        let mut due = Vec::new();
        for (owner, outbox) in &mut self.outboxes {
            if let Some((since, keys)) = &outbox.on_its_way {
                if now_ms.saturating_sub(*since) < ANNOUNCE_RETRY_MS {
                    continue;
                }
                outbox.waiting.extend(keys.iter().copied());
                outbox.on_its_way = None;
            }
            if self.strangers.contains(owner) {
                outbox.on_its_way = Some((now_ms, Vec::new()));
                due.push((*owner, HolderMessage::Begins { life: self.life, holds_nothing: self.began_empty }));
                continue;
            }
            let is_told = self.told.get(owner).is_some_and(|at| now_ms.saturating_sub(*at) < BATCH_GAP_MS);
            let fills_no_batch = (1..BATCH_KEYS_MAX).contains(&outbox.waiting.len());
            outbox.is_held_back = is_told && fills_no_batch && owner != me;
            if outbox.is_held_back {
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
        self.told.extend(due.iter().map(|(owner, _)| (*owner, now_ms)));
        let held_back = self.outboxes.iter().filter(|(_, outbox)| outbox.is_held_back && outbox.on_its_way.is_none());
        self.next_ms = held_back.filter_map(|(owner, _)| Some(self.told.get(owner)? + BATCH_GAP_MS)).min();
        self.outboxes.retain(|_, outbox| outbox.on_its_way.is_some() || !outbox.waiting.is_empty());
        due
    }

    /// The owner has taken in the batch that was on its way, if it lacks no records or some of that batch: those of earlier
    /// ones it may ask for at any time.
    pub fn answered(&mut self, owner: &NodeId, lacks: &[Key]) {
        let Some(outbox) = self.outboxes.get_mut(owner) else { return };
        // Of what is held no more, no record is lacking.
        let is_told = |sent: &[Key]| lacks.iter().any(|key| sent.contains(key) && self.held.contains_key(key));
        if outbox.on_its_way.as_ref().is_some_and(|(_, sent)| lacks.is_empty() || is_told(sent)) {
            // The first answer is to the first message.
            self.strangers.remove(owner);
            outbox.on_its_way = None;
        }
    }

    /// Whether everybody was told everything.
    pub fn is_settled(&self) -> bool {
        self.outboxes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = [50; 32];

    fn begun(holdings: &mut Holdings, now_ms: u64) -> Vec<NodeId> {
        let due = holdings.due(&ME, now_ms).into_iter();
        let begins = due.filter(|(_, message)| matches!(message, HolderMessage::Begins { .. }));
        begins.map(|(node, _)| node).collect()
    }

    fn hundred() -> Ring {
        (0..100).map(|n| [n; 32]).collect()
    }

    #[test]
    fn a_newcomer_speaks_to_few_until_it_has_something_to_say() {
        let (ring, mut holdings) = (hundred(), Holdings::new(1, []));
        holdings.never_lived();
        holdings.ring_changed(&[50; 32], &Ring::default(), &ring);
        assert_eq!(begun(&mut holdings, GREET_MS), [[51; 32]], "not the same one for all");
        holdings.answered(&[51; 32], &[]);
        assert_eq!(begun(&mut holdings, GREET_MS + 1), [[0; 32]; 0]);
        let key = [7; 32];
        holdings.add(key, [0; 16], &ring);
        let first: BTreeSet<NodeId> = begun(&mut holdings, GREET_MS + 2).into_iter().collect();
        assert_eq!(
            first,
            owners(&ring, &key).into_iter().filter(|owner| ![[50; 32], [51; 32]].contains(owner)).collect()
        );
        assert_eq!(begun(&mut holdings, 2 * GREET_MS).len(), first.len() + 1, "who did not answer is told again");
    }

    #[test]
    fn a_record_that_is_asked_for_later_answers_no_batch() {
        let (ring, mut holdings) = (hundred(), Holdings::new(1, []));
        let (early, late) = ([7; 32], [8; 32]);
        let owner = owners(&ring, &early)[0];
        holdings.add(early, [0; 16], &ring);
        assert!(holdings.due(&ME, 0).iter().any(|(to, _)| *to == owner));
        holdings.answered(&owner, &[late]);
        assert!(holdings.due(&ME, 1).iter().all(|(to, _)| *to != owner), "the batch is still on its way");
        assert!(holdings.due(&ME, ANNOUNCE_RETRY_MS).iter().any(|(to, _)| *to == owner), "and is told again");
        holdings.answered(&owner, &[early]);
        assert!(holdings.due(&ME, 2 * ANNOUNCE_RETRY_MS).iter().all(|(to, _)| *to != owner));
        holdings.remove(&early, &ring);
        holdings.due(&ME, 3 * ANNOUNCE_RETRY_MS);
        holdings.answered(&owner, &[early]);
        assert!(
            holdings.due(&ME, 4 * ANNOUNCE_RETRY_MS).iter().any(|(to, _)| *to == owner),
            "that it is gone is told again"
        );
    }

    #[test]
    fn who_may_be_remembered_tells_everybody_that_it_was_started() {
        let (ring, mut holdings) = (hundred(), Holdings::new(2, []));
        holdings.ring_changed(&[50; 32], &Ring::default(), &ring);
        assert_eq!(begun(&mut holdings, 0).len(), 99);
        let mut newcomer = Holdings::new(1, []);
        newcomer.never_lived();
        newcomer.ring_changed(&[50; 32], &Ring::default(), &ring);
        newcomer.lived_before();
        assert_eq!(begun(&mut newcomer, 0).len(), 99, "somebody does remember it");
    }

    #[test]
    fn the_first_of_many_is_told_at_once_and_the_others_together() {
        let (ring, mut holdings) = ([[1; 32], ME].into_iter().collect::<Ring>(), Holdings::new(1, []));
        let told = |holdings: &mut Holdings, now_ms| -> Vec<usize> {
            let to_other = holdings.due(&ME, now_ms).into_iter().filter(|(to, _)| *to != ME);
            let counts = to_other.filter_map(|(_, message)| match message {
                HolderMessage::Holds(batch) => Some(batch.len()),
                _ => None,
            });
            counts.collect()
        };
        let mut counts = Vec::new();
        for now_ms in 0..=50 {
            holdings.add([now_ms as u8; 32], [0; 16], &ring);
            counts.extend(told(&mut holdings, 1000 + now_ms));
            holdings.answered(&[1; 32], &[]);
            holdings.answered(&ME, &[]);
        }
        assert_eq!(counts, [1, 20, 20]);
        assert_eq!(holdings.next_ms(), Some(1060));
        assert_eq!(told(&mut holdings, 1059), [0; 0]);
        assert_eq!(told(&mut holdings, 1060), [10]);
    }
    #[test]
    fn as_much_as_a_message_takes_waits_for_nothing_but_the_answer() {
        let (ring, mut holdings) = ([[1; 32]].into_iter().collect::<Ring>(), Holdings::new(1, []));
        for number in 0..3 * BATCH_KEYS_MAX {
            let mut key = Key::default();
            key[..8].copy_from_slice(&number.to_le_bytes());
            holdings.add(key, [0; 16], &ring);
        }
        for _ in 0..3 {
            assert_eq!(holdings.due(&ME, 0).len(), 1);
            assert!(holdings.due(&ME, 0).is_empty());
            holdings.answered(&[1; 32], &[]);
        }
        assert!(holdings.due(&ME, 0).is_empty() && holdings.is_settled());
    }
}
