//! Which owners a holder tells of which paths, when the ring changes.
//!
//! Owners of a key are the first [`OWNERS`] of its successors. A change of the ring costs an announcement for
//! each pair of key and owner that is new, and nothing else; a former owner is told nothing, it sees the same
//! ring and drops what is no longer its own.

use crate::ring::{Key, NodeId, Ring};
use std::collections::BTreeMap;

/// Nodes that keep the records of one key (R): two may be lost at once.
pub const OWNERS: usize = 3;
/// Most keys in one announcement: 32 KiB, which no stream's window notices.
pub const BATCH_KEYS_MAX: usize = 1024;

/// Keys that one owner is to be told of, at most [`BATCH_KEYS_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub to: NodeId,
    pub keys: Vec<Key>,
}

/// The nodes that keep the records of `key`, the leading one first. Fewer than [`OWNERS`] in a smaller mesh.
pub fn owners(ring: &Ring, key: &Key) -> Vec<NodeId> {
    ring.successors(key).take(OWNERS).collect()
}

/// What a holder of `keys` has to say when `before` becomes `after`; from an empty ring, everything. The holder
/// is told as well where it owns a key itself.
pub fn announcements<'a>(before: &Ring, after: &Ring, keys: impl IntoIterator<Item = &'a Key>) -> Vec<Announcement> {
    let mut news: BTreeMap<NodeId, Vec<Key>> = BTreeMap::new();
    if before != after {
        for key in keys {
            let known = owners(before, key);
            for owner in owners(after, key).into_iter().filter(|owner| !known.contains(owner)) {
                news.entry(owner).or_default().push(*key);
            }
        }
    }
    let batches = |(to, keys): (NodeId, Vec<Key>)| {
        keys.chunks(BATCH_KEYS_MAX).map(|keys| Announcement { to, keys: keys.to_vec() }).collect::<Vec<_>>()
    };
    news.into_iter().flat_map(batches).collect()
}
