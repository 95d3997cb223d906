//! Who is responsible for a key: the live members in an order that every node computes alike.
//!
//! Highest random weight: each member scores each key by a fixed hash of both, and the order is that of the
//! scores. So:
//! - the order depends on the set of members alone, not on how or when they were learned;
//! - a member that leaves takes only itself out of each key's order, and one that joins only puts itself in;
//! - a member of weight w draws w scores and keeps its best, so that it comes first for w shares of the keys,
//!   and a change of its weight moves no other member against another.
//!
//! Scores are integers and part of the protocol: nodes that computed them differently would not find each
//! other's records.

use std::collections::{BTreeMap, BinaryHeap};
use std::num::NonZeroU8;

/// A node's public key.
pub type NodeId = [u8; 32];
/// BLAKE3 or SHA-256 of what is looked for: uniform, so that no further hashing is needed.
pub type Key = [u8; 32];

/// Most shares of one member. Each costs one hash for each key, so it is small.
pub const WEIGHT_MAX: u8 = 16;

const WEIGHT_ONE: NonZeroU8 = NonZeroU8::MIN;

/// The members that count as live, with their weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    members: BTreeMap<NodeId, NonZeroU8>,
}

impl Ring {
    /// Weights above [`WEIGHT_MAX`] count as that.
    pub fn weighted(members: impl IntoIterator<Item = (NodeId, NonZeroU8)>) -> Self {
        Ring { members: members.into_iter().collect() }
    }

    pub fn contains(&self, id: &NodeId) -> bool {
        self.members.contains_key(id)
    }

    pub fn members(&self) -> impl Iterator<Item = &NodeId> {
        self.members.keys()
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// All members in the order in which they are responsible for `key`. Costs one pass over the members, and
    /// the logarithm of their number for each that is taken.
    pub fn successors(&self, key: &Key) -> impl Iterator<Item = NodeId> + use<> {
        let key = words(key);
        let mut heap: BinaryHeap<(u64, NodeId)> =
            self.members.iter().map(|(id, weight)| (score(id, *weight, key), *id)).collect();
        std::iter::from_fn(move || heap.pop().map(|(_, id)| id))
    }
}

/// Members of weight one.
impl FromIterator<NodeId> for Ring {
    fn from_iter<T: IntoIterator<Item = NodeId>>(members: T) -> Self {
        Ring::weighted(members.into_iter().map(|id| (id, WEIGHT_ONE)))
    }
}

fn score(id: &NodeId, weight: NonZeroU8, key: [u64; 4]) -> u64 {
    let id = words(id);
    let pair = id.iter().zip(key).fold(0, |state, (id, key)| mix(mix(state ^ id) ^ key));
    // A weight is at least one, so there is always a best.
    (0..u64::from(weight.get().min(WEIGHT_MAX))).map(|share| mix(pair ^ share)).max().unwrap_or(0)
}

/// The finaliser of SplitMix64 after its increment: a bijection in which each bit of the input reaches all of
/// the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn words(bytes: &[u8; 32]) -> [u64; 4] {
    let (chunks, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|i| u64::from_le_bytes(chunks[i]))
}
