//! How many copies there are, how many there should be, and who makes the next one.
//!
//! A path is acknowledged when it is durable on min(R, live) nodes. Copies go to the first members that lack it in the
//! ring's order for its holder, so that what is stored together stays together. The first live owner alone repairs, after
//! a while, and a bounded number at once.

use crate::ring::{Key, NodeId};
use std::collections::BTreeMap;

/// Copies of each path (R) unless configured otherwise.
pub const COPIES: usize = 2;
/// From a loss to its repair: a machine that restarts is back by then.
pub const REPAIR_DELAY_MS: u64 = 30_000;
/// Repairs that one owner has under way: at 1 MiB a path, and 1,000 owners, a gigabyte at once in a large mesh.
pub const REPAIRS_MAX: usize = 8;
/// A copy that was asked for and is not there by then is asked for elsewhere.
pub const COPY_TIMEOUT_MS: u64 = 60_000;

/// Members that are to get a copy: `copies` in all, of which `holders` have one. `able` are those that may be asked, in the
/// order in which they are to.
pub fn targets(able: &[NodeId], holders: &[NodeId], copies: usize) -> Vec<NodeId> {
    let missing = copies.saturating_sub(holders.len());
    able.iter().filter(|node| !holders.contains(node)).take(missing).copied().collect()
}

/// Whether so many copies are durable enough to say so.
pub fn is_acknowledged(holders: usize, copies: usize, live: usize) -> bool {
    holders >= copies.min(live).max(1)
}

/// Who could not get a copy is not asked for it again before this time, if somebody else can be.
pub const FAILED_MS: u64 = 60_000;
/// Nobody is asked for the same copy again before this time, though nobody else is left to ask.
const AGAIN_MS: u64 = 5_000;
/// Failures that are remembered.
const FAILURES_MAX: usize = 65_536;

/// Copies that were asked for, and since when.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    placed: BTreeMap<(Key, NodeId), u64>,
    failed: BTreeMap<(Key, NodeId), u64>,
}

impl Orders {
    /// Notes an order; `false` where the same is under way, or too many are.
    pub fn place(&mut self, key: Key, to: NodeId, max: usize, now_ms: u64) -> bool {
        if self.failed.get(&(key, to)).is_some_and(|since| now_ms.saturating_sub(*since) < AGAIN_MS) {
            return false;
        }
        let is_late = |since: &u64| now_ms.saturating_sub(*since) >= COPY_TIMEOUT_MS;
        match self.placed.get(&(key, to)) {
            Some(since) if !is_late(since) => return false,
            Some(_) => {
                self.failed(&key, &to, now_ms);
                return false;
            }
            None => {}
        }
        if self.placed.len() >= max {
            self.placed.retain(|_, since| !is_late(since));
        }
        if self.placed.len() >= max {
            return false;
        }
        self.placed.insert((key, to), now_ms);
        true
    }

    /// A node did not get its copy. Whether it was to.
    pub fn failed(&mut self, key: &Key, by: &NodeId, now_ms: u64) -> bool {
        if self.failed.len() >= FAILURES_MAX {
            self.failed.retain(|_, since| now_ms.saturating_sub(*since) < FAILED_MS);
        }
        if self.failed.len() < FAILURES_MAX {
            self.failed.insert((*key, *by), now_ms);
        }
        self.placed.remove(&(*key, *by)).is_some()
    }

    pub fn has_failed(&self, key: &Key, by: &NodeId, now_ms: u64) -> bool {
        self.failed.get(&(*key, *by)).is_some_and(|since| now_ms.saturating_sub(*since) < FAILED_MS)
    }

    /// A node has its copy, late perhaps. Whether it was to.
    pub fn done(&mut self, key: &Key, by: &NodeId) -> bool {
        let was_late = self.failed.remove(&(*key, *by)).is_some();
        self.placed.remove(&(*key, *by)).is_some() || was_late
    }

    /// A member is gone, and what it was asked for with it.
    pub fn forget(&mut self, node: &NodeId) {
        self.placed.retain(|(_, to), _| to != node);
    }

    /// Whether a copy of it is on its way to a member. What is late has failed.
    pub fn is_awaited(&mut self, key: &Key, to: &NodeId, now_ms: u64) -> bool {
        let since = self.placed.get(&(*key, *to));
        let is_late = since.is_some_and(|since| now_ms.saturating_sub(*since) >= COPY_TIMEOUT_MS);
        if is_late {
            self.failed(key, to, now_ms);
        }
        self.placed.contains_key(&(*key, *to))
    }

    /// Members that were asked for a copy so long ago and do not have it yet, each with one such. What is late has failed.
    pub fn slow(&self, after_ms: u64, now_ms: u64) -> BTreeMap<NodeId, Key> {
        let is_slow = |since: u64| (after_ms..COPY_TIMEOUT_MS).contains(&now_ms.saturating_sub(since));
        let slow = self.placed.iter().filter(|(_, since)| is_slow(**since));
        slow.map(|((key, to), _)| (*to, *key)).collect()
    }

    pub fn len(&self) -> usize {
        self.placed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.placed.is_empty()
    }
}
