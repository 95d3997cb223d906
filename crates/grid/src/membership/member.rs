//! One member as one node sees it.

use super::limits::{DEATH_SHARED_MS, QUORUM};
use super::notary::Record;
use crate::random::scramble;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::frame::{Digest, Fact};
use shoal_wire::mesh::node_record::{Presence, RecordVersion};
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::mesh::suspicion::Suspicion;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Alive,
    /// Somebody cannot reach it, and it has not contradicted yet. It counts as live.
    Suspected,
    Dead,
    Left,
    Expired,
}

#[derive(Clone, Debug)]
pub struct Member {
    pub record: Record,
    pub version: RecordVersion,
    /// Against this incarnation, by different authors.
    pub suspicions: Vec<Arc<Sealed<Suspicion>>>,
    pub standing: Standing,
    /// When it got its standing.
    pub since_ms: u64,
    /// When as many suspected it as make a death.
    pub quorum_ms: Option<u64>,
}

/// The eight bytes that stand for a member in digests.
pub fn prefix(node: &NodeKey) -> u64 {
    let (first, _) = node.as_chunks::<8>();
    u64::from_le_bytes(first[0])
}

impl Member {
    pub fn new(record: Record, now_ms: u64) -> Self {
        let standing = if record.presence == Presence::Left { Standing::Left } else { Standing::Alive };
        Member { version: record.version, record, suspicions: Vec::new(), standing, since_ms: now_ms, quorum_ms: None }
    }

    pub fn is_live(&self) -> bool {
        matches!(self.standing, Standing::Alive | Standing::Suspected)
    }

    /// Whether others are told of it.
    pub fn is_shared(&self, now_ms: u64) -> bool {
        self.is_live() || now_ms.saturating_sub(self.since_ms) < DEATH_SHARED_MS
    }

    pub fn digest(&self) -> Digest {
        let suspicions = match self.suspicions.as_slice() {
            [] => 0,
            [one] if QUORUM > 1 => (scramble(prefix(&one.author)) as u32).clamp(1, u32::MAX - 1),
            _ => u32::MAX,
        };
        Digest { member: prefix(&self.record.node), version: self.version, suspicions }
    }

    /// The record, and what speaks against it.
    pub fn facts(&self) -> impl Iterator<Item = Fact> {
        let suspicions = self.suspicions.iter().map(|suspicion| Fact::Suspicion(suspicion.bytes().clone()));
        std::iter::once(Fact::Record(self.record.bytes().clone())).chain(suspicions)
    }
}

/// Whether `mine` says something that is new to who has `theirs`.
pub fn tells_more(mine: &Digest, theirs: &Digest) -> bool {
    match mine.version.cmp(&theirs.version) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => {
            mine.suspicions != 0 && theirs.suspicions != u32::MAX && mine.suspicions != theirs.suspicions
        }
    }
}
