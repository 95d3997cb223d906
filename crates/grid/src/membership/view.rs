//! All members as one node sees them, and how facts change that.
//!
//! Invariants:
//! - the version of a member's record only grows, whoever brings which records in which order;
//! - a dead member returns by a greater incarnation only, which nobody but itself can sign;
//! - a suspicion counts against the incarnation that it names and no other, and once for each author;
//! - who was revoked is no member, has no voice, and does not come back;
//! - equal facts make equal views, but for the moment in which a grace ends.

use super::limits::{GRACE_MS, LONE_GRACE_MS, MEMBERS_MAX, QUORUM, REVOCATIONS_MAX, SUSPICIONS_MAX, TOMBSTONE_MS};
use super::member::{Member, Standing};
use super::notary::Record;
use super::{Change, Now};
use shoal_wire::mesh::certificate::CLOCK_SKEW_MAX_S;
use shoal_wire::mesh::node_record::Presence;
use shoal_wire::mesh::revocation::Revocation;
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::mesh::suspicion::Suspicion;
use shoal_wire::mesh::{MeshId, NodeKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a fact did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// A newcomer, a new incarnation, a departure, a suspicion, a revocation.
    Urgent,
    /// A new sequence.
    News,
    Known,
    /// Older than what is known.
    Stale,
    /// Nothing can be made of it here and now: expired, of a revoked node, of an unknown one, or too many.
    Refused,
    OtherMesh,
}

#[derive(Debug)]
pub struct View {
    mesh: MeshId,
    members: BTreeMap<NodeKey, Member>,
    revocations: BTreeMap<NodeKey, Arc<Sealed<Revocation>>>,
    /// Live members against whom there are suspicions.
    suspected: BTreeSet<NodeKey>,
    /// Live members in the order of their keys.
    live: Vec<NodeKey>,
    changes: Vec<Change>,
}

impl View {
    pub fn new(mesh: MeshId) -> Self {
        View {
            mesh,
            members: BTreeMap::new(),
            revocations: BTreeMap::new(),
            suspected: BTreeSet::new(),
            live: Vec::new(),
            changes: Vec::new(),
        }
    }

    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    pub fn get(&self, node: &NodeKey) -> Option<&Member> {
        self.members.get(node)
    }

    pub fn members(&self) -> &BTreeMap<NodeKey, Member> {
        &self.members
    }

    /// Members whose key begins with `prefix`.
    pub fn with_prefix(&self, prefix: u64) -> impl Iterator<Item = &Member> {
        let mut from = [0; 32];
        from[..8].copy_from_slice(&prefix.to_le_bytes());
        self.members.range(from..).take_while(move |(key, _)| key[..8] == from[..8]).map(|(_, member)| member)
    }

    pub fn revocations(&self) -> &BTreeMap<NodeKey, Arc<Sealed<Revocation>>> {
        &self.revocations
    }

    pub fn is_revoked(&self, node: &NodeKey) -> bool {
        self.revocations.contains_key(node)
    }

    pub fn live(&self) -> &[NodeKey] {
        &self.live
    }

    pub fn suspected(&self) -> &BTreeSet<NodeKey> {
        &self.suspected
    }

    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub fn learn_record(&mut self, record: Record, now: Now) -> Learned {
        let (node, new) = (record.node, record.version);
        if record.mesh != self.mesh {
            return Learned::OtherMesh;
        }
        if self.is_revoked(&node) || !record.term.holds(now.wall_s) {
            return Learned::Refused;
        }
        let Some(member) = self.members.get_mut(&node) else {
            if self.members.len() >= MEMBERS_MAX {
                return Learned::Refused;
            }
            let member = Member::new(record, now.ms);
            let is_live = member.is_live();
            self.members.insert(node, member);
            if is_live {
                self.enliven(node, Change::Joined(node));
            }
            return Learned::Urgent;
        };
        match new.cmp(&member.version) {
            std::cmp::Ordering::Less => return Learned::Stale,
            std::cmp::Ordering::Equal => return Learned::Known,
            std::cmp::Ordering::Greater => {}
        }
        let (was_live, was) = (member.is_live(), member.standing);
        let is_other_incarnation = new.incarnation > member.version.incarnation;
        let is_gone = record.presence == Presence::Left;
        (member.record, member.version) = (record, new);
        if is_other_incarnation {
            (member.suspicions, member.quorum_ms) = (Vec::new(), None);
            self.suspected.remove(&node);
        }
        if is_gone {
            self.set(node, Standing::Left, now.ms, Change::Left(node));
        } else if is_other_incarnation || was == Standing::Expired {
            self.set_standing(node, Standing::Alive, now.ms);
            match was_live {
                true if was == Standing::Suspected => self.changes.push(Change::Cleared(node)),
                true => self.changes.push(Change::Updated(node)),
                false => self.enliven(node, Change::Returned(node)),
            }
        } else {
            self.changes.push(Change::Updated(node));
            return Learned::News;
        }
        Learned::Urgent
    }

    pub fn learn_suspicion(&mut self, suspicion: Arc<Sealed<Suspicion>>, now: Now) -> Learned {
        let (author, subject) = (suspicion.author, suspicion.subject);
        if suspicion.mesh != self.mesh {
            return Learned::OtherMesh;
        }
        if self.is_revoked(&author) || !self.members.contains_key(&author) {
            return Learned::Refused;
        }
        let Some(member) = self.members.get_mut(&subject) else { return Learned::Refused };
        match suspicion.incarnation.cmp(&member.version.incarnation) {
            std::cmp::Ordering::Less => return Learned::Stale,
            std::cmp::Ordering::Greater => return Learned::Refused,
            std::cmp::Ordering::Equal => {}
        }
        let is_known = member.suspicions.iter().any(|known| known.author == author);
        if is_known || !member.is_live() || member.suspicions.len() >= SUSPICIONS_MAX {
            return Learned::Known;
        }
        member.suspicions.push(suspicion);
        if member.suspicions.len() == 1 {
            self.set_standing(subject, Standing::Suspected, now.ms);
            self.suspected.insert(subject);
            self.changes.push(Change::Suspected(subject));
        }
        Learned::Urgent
    }

    pub fn learn_revocation(&mut self, revocation: Sealed<Revocation>, now: Now) -> Learned {
        let node = revocation.node;
        if revocation.mesh != self.mesh {
            return Learned::OtherMesh;
        }
        if self.is_revoked(&node) {
            return Learned::Known;
        }
        if is_over(&revocation, now) || self.revocations.len() >= REVOCATIONS_MAX {
            return Learned::Refused;
        }
        self.revocations.insert(node, Arc::new(revocation));
        self.members.remove(&node);
        self.unlive(&node);
        for member in self.members.values_mut() {
            member.suspicions.retain(|suspicion| suspicion.author != node);
        }
        self.changes.push(Change::Revoked(node));
        Learned::Urgent
    }

    /// Lets graces end. Cheap where nobody is suspected.
    pub fn settle(&mut self, now_ms: u64) {
        let voices = self.live.len().saturating_sub(self.suspected.len());
        let quorum = QUORUM.min(voices).max(1);
        let mut died = Vec::new();
        let mut cleared = Vec::new();
        for node in &self.suspected {
            let Some(member) = self.members.get_mut(node) else { continue };
            if member.suspicions.is_empty() {
                cleared.push(*node);
            } else if member.suspicions.len() >= quorum {
                let since = *member.quorum_ms.get_or_insert(now_ms);
                if now_ms.saturating_sub(since) >= GRACE_MS {
                    died.push(*node);
                }
            } else {
                member.quorum_ms = None;
                if now_ms.saturating_sub(member.since_ms) >= LONE_GRACE_MS {
                    died.push(*node);
                }
            }
        }
        for node in died {
            self.set(node, Standing::Dead, now_ms, Change::Died(node));
        }
        for node in cleared {
            self.suspected.remove(&node);
            self.set_standing(node, Standing::Alive, now_ms);
            self.changes.push(Change::Cleared(node));
        }
    }

    /// This node was stopped for `gap_ms`: nobody could contradict to it meanwhile.
    pub fn forgive(&mut self, gap_ms: u64) {
        for node in &self.suspected {
            if let Some(member) = self.members.get_mut(node) {
                member.since_ms = member.since_ms.saturating_add(gap_ms);
                member.quorum_ms = member.quorum_ms.map(|since| since.saturating_add(gap_ms));
            }
        }
    }

    /// Drops what has expired: certificates, tombstones, revocations.
    pub fn sweep(&mut self, now: Now) {
        let expired: Vec<NodeKey> = self.live.iter().copied().filter(|node| !self.holds(node, now)).collect();
        for node in expired {
            self.set(node, Standing::Expired, now.ms, Change::Expired(node));
        }
        self.members.retain(|_, member| member.is_live() || now.ms.saturating_sub(member.since_ms) < TOMBSTONE_MS);
        self.revocations.retain(|_, revocation| !is_over(revocation, now));
    }

    fn holds(&self, node: &NodeKey, now: Now) -> bool {
        self.members.get(node).is_some_and(|member| member.record.term.holds(now.wall_s))
    }

    /// Takes a member out of the live ones.
    fn set(&mut self, node: NodeKey, standing: Standing, now_ms: u64, change: Change) {
        let was_live = self.members.get(&node).is_some_and(Member::is_live);
        self.set_standing(node, standing, now_ms);
        self.unlive(&node);
        if was_live {
            self.changes.push(change);
        }
    }

    fn set_standing(&mut self, node: NodeKey, standing: Standing, now_ms: u64) {
        if let Some(member) = self.members.get_mut(&node) {
            (member.standing, member.since_ms) = (standing, now_ms);
        }
    }

    fn enliven(&mut self, node: NodeKey, change: Change) {
        if let Err(at) = self.live.binary_search(&node) {
            self.live.insert(at, node);
        }
        self.changes.push(change);
    }

    fn unlive(&mut self, node: &NodeKey) {
        if let Ok(at) = self.live.binary_search(node) {
            self.live.remove(at);
        }
        self.suspected.remove(node);
    }
}

/// All certificates that it takes back have expired, by any clock.
fn is_over(revocation: &Revocation, now: Now) -> bool {
    now.wall_s > revocation.until_s.saturating_add(2 * CLOCK_SKEW_MAX_S)
}
