//! What peers did that a peer of good will and whole software does not.
//!
//! Stale facts are none of it: they come by themselves when frames overtake each other. They are counted, and a flood of
//! them is a flood.

use super::limits::{CONDUCTS_MAX, FLOOD_BYTES, FLOOD_MS};
use shoal_wire::mesh::NodeKey;
use std::collections::BTreeMap;
use std::fmt;

/// Why a peer is cut off. Its text goes into the log and to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
    /// A frame that does not decode.
    Garbage,
    /// It passed on a fact whose signature is wrong. Who passes facts on has verified them.
    Forged,
    /// It passed on facts of another mesh.
    OtherMesh,
    Flood,
    Revoked,
    Expired,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Offence::Garbage => "sent a frame that does not decode",
            Offence::Forged => "passed on a fact with a wrong signature",
            Offence::OtherMesh => "passed on facts of another mesh",
            Offence::Flood => "sent far more than its budget",
            Offence::Revoked => "its certificate was revoked",
            Offence::Expired => "its certificate has expired",
        })
    }
}

/// One peer's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    pub offences: u64,
    /// Facts that were older than what was known.
    pub stale: u64,
    window_ms: u64,
    window_bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Conducts(BTreeMap<NodeKey, Conduct>);

impl Conducts {
    pub fn of(&self, peer: &NodeKey) -> Conduct {
        self.0.get(peer).copied().unwrap_or_default()
    }

    /// A frame came in; whether it is one too many.
    pub fn received(&mut self, peer: NodeKey, len: usize, now_ms: u64) -> bool {
        let Some(conduct) = self.entry(peer) else { return false };
        if now_ms.saturating_sub(conduct.window_ms) >= FLOOD_MS {
            (conduct.window_ms, conduct.window_bytes) = (now_ms, 0);
        }
        conduct.window_bytes = conduct.window_bytes.saturating_add(len as u64);
        conduct.window_bytes > FLOOD_BYTES
    }

    pub fn stale(&mut self, peer: NodeKey) {
        if let Some(conduct) = self.entry(peer) {
            conduct.stale += 1;
        }
    }

    pub fn offended(&mut self, peer: NodeKey) {
        if let Some(conduct) = self.entry(peer) {
            conduct.offences += 1;
        }
    }

    /// Nothing where there are too many: the transport admits members only, and no more than that.
    fn entry(&mut self, peer: NodeKey) -> Option<&mut Conduct> {
        if self.0.len() >= CONDUCTS_MAX && !self.0.contains_key(&peer) {
            self.0.retain(|_, conduct| conduct.offences > 0);
        }
        (self.0.len() < CONDUCTS_MAX || self.0.contains_key(&peer)).then(|| self.0.entry(peer).or_default())
    }
}
