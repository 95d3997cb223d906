//! What this node knows as an owner: who holds which contents of the paths that it answers for.
//!
//! Invariants:
//! - the contents that were heard of first stay the answer as long as anybody holds them; others are kept apart, are
//!   reported once, and are never given as the answer to who asks for the path;
//! - a holder that is not live is no answer, but stays known until it is forgotten, so that a short absence costs
//!   nothing;
//! - a word that a holder may delete is given only while another live holder of the same contents remains, and the
//!   holder counts as gone from then on. Who needs the word of every live owner therefore never deletes the last copy,
//!   though several ask at once and owners see different members, as long as one owner is common to them.

use crate::ring::{Key, NodeId};
use shoal_wire::mesh::announcement::{HOLDERS_MAX, Holding};
use shoal_wire::mesh::path_record::ContentTag;
use std::collections::{BTreeMap, BTreeSet};

/// Paths that one owner answers for: thirteen times the 300,000 that 1,000 nodes of 100,000 different paths make.
pub const OWNED_MAX: usize = 1 << 22;
/// Holders of one path that are remembered; of a path that more have, these are enough.
pub const REMEMBERED_MAX: usize = 64;
/// Different contents of one path that are kept apart.
pub const CONTENTS_MAX: usize = 4;

/// Contents of one path, who holds them, and the sealed record, empty until it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Contents {
    tag: ContentTag,
    holders: BTreeSet<NodeId>,
    record: Vec<u8>,
    /// A holder deleted it with this owner's word: it is not copied again until somebody else stores it.
    is_released: bool,
}

/// Two nodes hold different contents of one path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    pub key: Key,
    /// What is answered.
    pub first: ContentTag,
    pub other: ContentTag,
    pub other_holder: NodeId,
}

/// The answer to a lookup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub content: Option<ContentTag>,
    /// Live ones, at most [`HOLDERS_MAX`].
    pub holders: Vec<NodeId>,
    pub record: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub struct Owned(BTreeMap<Key, Vec<Contents>>);

impl Owned {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    /// `holder` says that it has this. Whether its record is lacking, and the conflict that it makes.
    pub fn holds(&mut self, holder: NodeId, holding: Holding) -> (bool, Option<Conflict>) {
        if self.0.len() >= OWNED_MAX && !self.0.contains_key(&holding.key) {
            return (false, None);
        }
        let all = self.0.entry(holding.key).or_default();
        for contents in all.iter_mut().filter(|contents| contents.tag != holding.content) {
            contents.holders.remove(&holder);
        }
        let first = all.first().map(|contents| contents.tag);
        if let Some(known) = all.iter_mut().find(|contents| contents.tag == holding.content) {
            if known.holders.len() < REMEMBERED_MAX && known.holders.insert(holder) {
                known.is_released = false;
            }
            return (known.record.is_empty(), None);
        }
        let conflict =
            first.map(|first| Conflict { key: holding.key, first, other: holding.content, other_holder: holder });
        if all.len() < CONTENTS_MAX {
            all.push(Contents {
                tag: holding.content,
                holders: BTreeSet::from([holder]),
                record: Vec::new(),
                is_released: false,
            });
        }
        (all.len() <= CONTENTS_MAX, conflict)
    }

    /// A record whose signature was verified. It is kept where somebody holds what it describes.
    pub fn record(&mut self, key: &Key, tag: &ContentTag, sealed: &[u8]) {
        let contents = self.0.get_mut(key).and_then(|all| all.iter_mut().find(|contents| contents.tag == *tag));
        if let Some(contents) = contents.filter(|contents| contents.record.is_empty()) {
            contents.record = sealed.to_vec();
        }
    }

    /// Whether the record of some contents of a path is not known.
    pub fn lacks_record(&self, key: &Key) -> bool {
        self.0.get(key).into_iter().flatten().any(|contents| contents.record.is_empty())
    }

    pub fn drops(&mut self, holder: &NodeId, key: &Key) {
        let Some(all) = self.0.get_mut(key) else { return };
        for contents in all.iter_mut() {
            contents.holders.remove(holder);
        }
        all.retain(|contents| !contents.holders.is_empty());
        if all.is_empty() {
            self.0.remove(key);
        }
    }

    /// The paths of which a node is known as a holder.
    pub fn held_by(&self, holder: &NodeId) -> BTreeSet<Key> {
        let holds = |all: &[Contents]| all.iter().any(|contents| contents.holders.contains(holder));
        self.0.iter().filter(|(_, all)| holds(all)).map(|(key, _)| *key).collect()
    }

    /// A member is gone for good.
    pub fn forget(&mut self, holder: &NodeId) {
        let keys: Vec<Key> = self.0.keys().copied().collect();
        keys.iter().for_each(|key| self.drops(holder, key));
    }

    /// Keeps what this node still owns.
    pub fn retain(&mut self, mut is_owned: impl FnMut(&Key) -> bool) {
        self.0.retain(|key, _| is_owned(key));
    }

    /// Gives the word that `holder` may delete its copy.
    pub fn may_drop(&mut self, holder: &NodeId, key: &Key, mut is_live: impl FnMut(&NodeId) -> bool) -> bool {
        let all = self.0.get_mut(key).map(Vec::as_mut_slice).unwrap_or_default();
        let Some(contents) = all.iter_mut().find(|contents| contents.holders.contains(holder)) else { return false };
        let others = contents.holders.iter().filter(|other| *other != holder && is_live(other)).count();
        if others > 0 {
            contents.is_released = true;
            contents.holders.remove(holder);
        }
        others > 0
    }

    /// The first contents that a live node holds.
    pub fn answer(&self, key: &Key, mut is_live: impl FnMut(&NodeId) -> bool) -> Answer {
        let all = self.0.get(key).map(Vec::as_slice).unwrap_or_default();
        let Some(first) = all.first() else { return Answer::default() };
        let holders = first.holders.iter().filter(|holder| is_live(holder)).copied().take(HOLDERS_MAX).collect();
        Answer { content: Some(first.tag), holders, record: first.record.clone() }
    }

    /// Whether the contents that are answered were given up by one of their holders.
    pub fn is_released(&self, key: &Key) -> bool {
        self.0.get(key).and_then(|all| all.first()).is_some_and(|first| first.is_released)
    }

    /// All contents of a path with their holders, the first ones first.
    pub fn contents(&self, key: &Key) -> impl Iterator<Item = (ContentTag, &BTreeSet<NodeId>)> {
        self.0.get(key).into_iter().flatten().map(|contents| (contents.tag, &contents.holders))
    }
}
