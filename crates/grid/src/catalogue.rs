//! Who has what: one node's part as a holder, as an owner, as one who looks for paths, and as one who keeps R copies.
//!
//! A holder tells the owners of a path ([`crate::announce`]). Who looks for it asks two of them. The first live owner of a
//! path sees to it that R live members hold it, and no holder deletes its copy without the word of every live owner.
//!
//! Invariants, beside those of [`holdings`] and [`owned`]:
//! - a path is acknowledged once, when min(R, live) live nodes hold it durably;
//! - nothing here depends on two nodes seeing the same members: they may then announce, look up or copy more than is
//!   needed, and lose nothing;
//! - everything that waits for another node has a bound in time and in number.
//!
//! What this sits on must carry [`HolderMessage`]s between two verified members in the order in which they were sent, or
//! lose them; fetch what
//! [`Action::Fetch`] says and report it by [`Catalogue::fetched`] or [`Catalogue::fetch_failed`]; report what becomes valid
//! here by [`Catalogue::stored`] (uploads and build outputs, which are to be acknowledged) or [`Catalogue::added`]; verify
//! records before [`Catalogue::learn_record`]; call [`Catalogue::set_members`] on every change of membership and
//! [`Catalogue::tick`] each [`TICK_MS`].

pub mod claims;
mod farewell;
pub mod holdings;
pub mod lookup;
pub mod members;
mod messages;
mod mute;
pub mod owned;
mod pledges;
pub mod replication;
mod seek;

use crate::announce::OWNERS;
use crate::ring::{Key, NodeId, Ring};
use claims::Claims;
use farewell::Farewells;
use holdings::Holdings;
use lookup::{Lookup, Questions, Recent};
use members::Members;
use mute::{COPY_PROBE_MS, Mutes};
use owned::{Answer, Conflict, Owned};
use pledges::Pledge;
use replication::{Orders, REPAIR_DELAY_MS, REPAIRS_MAX, targets};
use shoal_wire::mesh::announcement::{HolderMessage, Holding, SOURCES_MAX, Wanted};
use shoal_wire::mesh::path_record::ContentTag;
use std::collections::{BTreeMap, BTreeSet};

/// How often the catalogue looks at what waits.
pub const TICK_MS: u64 = 200;
/// Changes of the ring within this time are one change: machines start and stop in groups.
pub const RING_SETTLE_MS: u64 = 3_000;
/// How long owners remember what an absent member held.
pub const ABSENT_MS: u64 = 3_600_000;
/// A holder that was started says again what it holds within this time, or does not hold it.
pub const CONFIRM_MS: u64 = 60_000;
/// A holder that has not heard from every owner by then does not delete.
pub const DROP_TIMEOUT_MS: u64 = 10_000;
/// An owner that has met others so lately has not been told of everything, and says nothing of what it does not know: long
/// enough for the ring to settle, or for one announcement that is lost and told again.
pub const UNTOLD_MS: u64 = 6_000;
/// Up to so many members are asked themselves for what owners cannot say. In larger ones somebody comes all the time, and
/// what halves that were apart stored meanwhile is found when it has been told.
pub const SMALL_MESH: usize = 32;
/// Lookups, acknowledgements, fetches for others and requests to delete that wait at once; beyond it they are refused.
pub const WAITING_MAX: usize = 65_536;
/// Of an announcement with more new paths the records are asked for at once; those of fewer with what the next ticks bring,
/// as each request and its answer cost as much as the announcement.
pub const FEW_RECORDS: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Send {
        to: NodeId,
        message: HolderMessage,
    },
    /// Another node asks this one to keep a copy.
    Fetch {
        holding: Holding,
        from: Vec<NodeId>,
    },
    /// The owner lacks records of these paths, which this node holds: they are to be sent to it.
    SendRecords {
        to: NodeId,
        keys: Vec<Key>,
    },
    /// A lookup has ended.
    Found {
        id: u64,
        key: Key,
        answer: Answer,
    },
    Missing {
        id: u64,
        key: Key,
    },
    /// Too few owners say anything.
    Unreachable {
        id: u64,
        key: Key,
        /// Owners that say nothing, or could not be asked.
        silent: Vec<NodeId>,
    },
    Acknowledged {
        key: Key,
    },
    /// All others of those that were asked for stay.
    MayDelete {
        id: u64,
        keys: Vec<Key>,
    },
    /// Who brings a path in from outside: this node, another, or somebody who has it already.
    Claimed {
        id: u64,
        by: NodeId,
    },
    Conflict(Conflict),
}

#[derive(Debug)]
pub struct Catalogue {
    me: NodeId,
    life: u64,
    copies: usize,
    members: Members,
    ring: Ring,
    /// A ring that differs, and when it is taken.
    next_ring: Option<(Ring, u64)>,
    /// When it is looked at which paths lack copies, after members came or went: also where the ring is the same again
    /// before it was taken, as who leads among the owners may be another.
    recheck_ms: Option<u64>,
    /// When others came that were not there before: the first ones, and in a small mesh any.
    met_ms: Option<u64>,
    /// Members that were live, and when they ceased to be.
    absent: BTreeMap<NodeId, u64>,
    holdings: Holdings,
    owned: Owned,
    /// What members told in an earlier life and have not said again, since when.
    unconfirmed: BTreeMap<NodeId, (u64, BTreeSet<Key>)>,
    /// Paths of which this owner has no record yet and has asked for none, by who holds them.
    recordless: BTreeMap<NodeId, BTreeSet<Key>>,
    recent: Recent,
    lookups: BTreeMap<u64, (Key, Lookup)>,
    /// When the first of them has waited long enough for an owner.
    wake_ms: Option<u64>,
    questions: Questions,
    /// Paths stored here that are not acknowledged yet.
    pledges: BTreeMap<Key, Pledge>,
    orders: Orders,
    /// Those of them that are repairs, so that uploads do not take their places.
    repairing: BTreeSet<(Key, NodeId)>,
    /// Paths of which copies lack, and when that is looked at.
    repairs: BTreeMap<Key, u64>,
    /// Paths that are being fetched for others, and since when.
    fetches: BTreeMap<Key, (u64, BTreeSet<NodeId>)>,
    farewells: Farewells,
    claims: Claims,
    mutes: Mutes,
    ids: u64,
    now_ms: u64,
    out: Vec<Action>,
}

impl Catalogue {
    /// `held` is what the store has at the start, `life` a number that no earlier start had.
    pub fn new(me: NodeId, life: u64, copies: usize, held: impl IntoIterator<Item = Holding>, now_ms: u64) -> Self {
        Catalogue {
            me,
            life,
            copies: copies.max(1),
            members: Members::default(),
            ring: Ring::default(),
            next_ring: None,
            recheck_ms: None,
            met_ms: None,
            absent: BTreeMap::new(),
            holdings: Holdings::new(life, held),
            owned: Owned::default(),
            unconfirmed: BTreeMap::new(),
            recordless: BTreeMap::new(),
            recent: Recent::default(),
            lookups: BTreeMap::new(),
            wake_ms: None,
            questions: Questions::default(),
            pledges: BTreeMap::new(),
            orders: Orders::default(),
            repairing: BTreeSet::new(),
            repairs: BTreeMap::new(),
            fetches: BTreeMap::new(),
            farewells: Farewells::default(),
            claims: Claims::default(),
            mutes: Mutes::default(),
            ids: 0,
            now_ms,
            out: Vec::new(),
        }
    }

    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    pub fn owned(&self) -> &Owned {
        &self.owned
    }

    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Whether nothing waits to be told, copied or repaired.
    pub fn is_settled(&self) -> bool {
        self.holdings.is_settled() && self.repairs.is_empty() && self.pledges.is_empty() && self.next_ring.is_none()
    }

    pub fn set_members(&mut self, members: Members, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        for node in self.members.live.difference(&members.live) {
            self.absent.insert(*node, now_ms);
            self.orders.forget(node);
        }
        self.absent.retain(|node, _| !members.live.contains(node));
        let is_met = members.live.iter().any(|node| *node != self.me && !self.members.live.contains(node));
        if is_met && (self.met_ms.is_none() || members.live.len() <= SMALL_MESH) {
            self.met_ms = Some(now_ms);
        }
        let ring = Ring::weighted(members.storers.iter().copied());
        if self.members.live != members.live || self.members.storers != members.storers {
            self.recheck_ms.get_or_insert(now_ms + RING_SETTLE_MS);
        }
        self.members = members;
        // Who was alone, or knew nobody, has nothing to wait for: others have been there before.
        let settle_ms = if self.ring.len() <= 1 { 0 } else { RING_SETTLE_MS };
        self.next_ring = match (ring == self.ring, self.next_ring.take()) {
            (true, _) => None,
            (false, Some((_, at))) => Some((ring, at)),
            (false, None) => Some((ring, now_ms + settle_ms)),
        };
        self.tick(now_ms)
    }

    /// A member is gone for good: it left, or was revoked.
    pub fn forget(&mut self, node: &NodeId) {
        self.absent.remove(node);
        self.unconfirmed.remove(node);
        self.recordless.remove(node);
        self.owned.forget(node);
        self.recheck_all();
    }

    /// A path became valid here. Owners hear at once of what nobody else is known to hold, of another copy with the next
    /// tick.
    pub fn added(&mut self, holding: Holding, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        self.holdings.add(holding.key, holding.content, &self.ring);
        let is_copy = self.fetches.contains_key(&holding.key) || self.recent.get(&holding.key, now_ms).is_some();
        if !is_copy {
            self.announce();
        }
        self.finish()
    }

    /// What [`Action::Fetch`] asked for is durable here. Owners hear of the copy with the next tick.
    pub fn fetched(&mut self, holding: Holding, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        self.holdings.add(holding.key, holding.content, &self.ring);
        if self.holdings.get(&holding.key) == Some(holding.content) {
            for asker in self.fetches.remove(&holding.key).unwrap_or_default().1 {
                self.send(asker, HolderMessage::Stored(vec![holding.key]));
            }
        }
        self.finish()
    }

    /// It could not be had. Who ordered it looks for another place.
    pub fn fetch_failed(&mut self, key: &Key, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        for asker in self.fetches.remove(key).unwrap_or_default().1 {
            self.send(asker, HolderMessage::Declined(vec![*key]));
        }
        self.declined_by(self.me, key);
        self.finish()
    }

    /// The store deleted it, as it was allowed to, or lost it.
    pub fn deleted(&mut self, key: Key, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        self.holdings.remove(&key, &self.ring);
        self.announce();
        self.finish()
    }

    /// Owners allowed to delete these, and they stay all the same.
    pub fn stayed(&mut self, keys: &[Key], now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        for owner in keys.iter().flat_map(|key| self.live_owners(key)).collect::<BTreeSet<_>>() {
            let owned: Vec<Key> = keys.iter().filter(|key| self.live_owners(key).contains(&owner)).copied().collect();
            self.holdings.tell(&owner, &owned);
        }
        self.announce();
        self.finish()
    }

    /// What was found does not hold: the holders did not have it. The next lookup asks the owners again.
    pub fn doubt(&mut self, key: &Key) {
        self.recent.forget(key);
    }

    /// A record whose signature was verified.
    pub fn learn_record(&mut self, key: &Key, tag: &ContentTag, sealed: &[u8]) {
        self.owned.record(key, tag, sealed);
    }

    pub fn tick(&mut self, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        if let Some((ring, _)) = self.next_ring.take_if(|(_, at)| *at <= now_ms) {
            self.change_ring(ring);
        }
        if self.recheck_ms.take_if(|at| *at <= now_ms).is_some() {
            self.recheck_all();
        }
        let gone: Vec<NodeId> = self
            .absent
            .iter()
            .filter(|(_, since)| now_ms.saturating_sub(**since) >= ABSENT_MS)
            .map(|(n, _)| *n)
            .collect();
        gone.iter().for_each(|node| self.forget(node));
        self.drop_unconfirmed();
        self.announce();
        self.ask_for_records();
        self.questions.forget_old(now_ms);
        self.mutes.tick(now_ms);
        let mut slow = self.orders.slow(COPY_PROBE_MS, now_ms);
        slow.remove(&self.me);
        for (node, key) in self.mutes.to_probe(slow, now_ms) {
            self.probe(node, key);
        }
        self.advance_all();
        for key in self.pledges.keys().copied().collect::<Vec<_>>() {
            self.pursue(key);
        }
        self.repair();
        self.end_farewells();
        self.end_claims();
        self.finish()
    }

    fn drop_unconfirmed(&mut self) {
        let now_ms = self.now_ms;
        let is_late = |since: u64| now_ms.saturating_sub(since) >= CONFIRM_MS;
        let late: Vec<NodeId> =
            self.unconfirmed.iter().filter(|(_, (since, _))| is_late(*since)).map(|(node, _)| *node).collect();
        for node in late {
            if let Some((_, keys)) = self.unconfirmed.remove(&node) {
                self.take_drops(node, keys.into_iter().collect());
            }
        }
    }

    fn change_ring(&mut self, ring: Ring) {
        let before = std::mem::replace(&mut self.ring, ring);
        self.holdings.ring_changed(&self.me, &before, &self.ring);
        let (ring, me) = (&self.ring, self.me);
        self.owned.retain(|key| ring.successors(key).take(OWNERS).any(|owner| owner == me));
        self.recheck_all();
    }

    fn recheck_all(&mut self) {
        let keys: Vec<Key> = self.owned.keys().copied().collect();
        keys.into_iter().for_each(|key| self.recheck(key));
    }

    /// Plans a repair where this node is the one to see to it.
    fn recheck(&mut self, key: Key) {
        if self.lacking(&key).is_some() {
            self.repairs.entry(key).or_insert(self.now_ms + REPAIR_DELAY_MS);
        } else {
            self.repairs.remove(&key);
        }
    }

    /// The answer for `key` and the members that are to get copies, where copies lack and this node leads.
    fn lacking(&self, key: &Key) -> Option<(Answer, Vec<NodeId>)> {
        if self.live_owners(key).first() != Some(&self.me) || self.owned.is_released(key) {
            return None;
        }
        let answer = self.owned.answer(key, |node| self.members.live.contains(node));
        if answer.holders.is_empty() {
            return None;
        }
        // Who holds other contents under this name cannot take these.
        let others: BTreeSet<NodeId> =
            self.owned.contents(key).skip(1).flat_map(|(_, holders)| holders.iter().copied()).collect();
        let beside = answer.holders.first().unwrap_or(&self.me);
        let storers: Vec<NodeId> = self.storers(beside).into_iter().filter(|node| !others.contains(node)).collect();
        // Those that drain or keep no copies for others are about to go.
        let staying: Vec<NodeId> = answer.holders.iter().filter(|node| storers.contains(node)).copied().collect();
        let targets = targets(&self.able(key, &storers, &staying), &staying, self.copies.min(storers.len()));
        (!targets.is_empty()).then_some((answer, targets))
    }

    fn repair(&mut self) {
        let now_ms = self.now_ms;
        // Also those of paths that lack nothing any more: they would keep their places for ever.
        self.repairing.retain(|(key, to)| self.orders.is_awaited(key, to, now_ms));
        let due: Vec<Key> = self.repairs.iter().filter(|(_, at)| **at <= now_ms).map(|(key, _)| *key).collect();
        for key in due {
            let Some((answer, targets)) = self.lacking(&key) else {
                self.repairs.remove(&key);
                continue;
            };
            let Some(content) = answer.content else { continue };
            for target in targets {
                if self.repairing.len() >= REPAIRS_MAX || !self.orders.place(key, target, WAITING_MAX, now_ms) {
                    continue;
                }
                self.repairing.insert((key, target));
                let from = answer.holders.iter().take(SOURCES_MAX).copied().collect();
                self.order(target, Wanted { holding: Holding { key, content }, from });
            }
        }
    }

    /// `storers` without those that have just failed to get a copy, or may be dead, unless nobody else is left.
    fn able(&self, key: &Key, storers: &[NodeId], holders: &[NodeId]) -> Vec<NodeId> {
        let fails = |node: &NodeId| self.is_doubtful(node) || self.orders.has_failed(key, node, self.now_ms);
        let able: Vec<NodeId> = storers.iter().filter(|node| !fails(node)).copied().collect();
        match able.iter().any(|node| !holders.contains(node)) {
            true => able,
            false => storers.to_vec(),
        }
    }

    fn order(&mut self, to: NodeId, wanted: Wanted) {
        match to == self.me {
            true => self.copy(self.me, wanted),
            false => self.send(to, HolderMessage::Copy(vec![wanted])),
        }
    }

    /// When [`Catalogue::hurry`] is worth while at the latest: a lookup waits for an owner, or an owner is to be told more.
    pub fn next_ms(&self) -> Option<u64> {
        [self.wake_ms, self.holdings.next_ms()].into_iter().flatten().min()
    }

    /// Takes lookups on that wait for an owner that is late, and tells owners what has come together for them.
    pub fn hurry(&mut self, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        let is_due = |at: Option<u64>| at.is_some_and(|at| at <= now_ms);
        if is_due(self.holdings.next_ms()) {
            self.announce();
        }
        if is_due(self.wake_ms) {
            self.advance_all();
        }
        self.finish()
    }

    /// Whether this node does not know yet, as an owner, what others hold.
    fn is_untold(&self) -> bool {
        self.met_ms.is_some_and(|met_ms| self.now_ms.saturating_sub(met_ms) < UNTOLD_MS)
    }

    fn announce(&mut self) {
        for (owner, message) in self.holdings.due(&self.me, self.now_ms) {
            match message {
                HolderMessage::Holds(batch) if owner == self.me => {
                    batch.iter().for_each(|holding| {
                        self.take_holding(owner, *holding);
                    });
                    self.holdings.answered(&owner, &[]);
                }
                HolderMessage::Drops(keys) if owner == self.me => {
                    self.take_drops(owner, keys);
                    self.holdings.answered(&owner, &[]);
                }
                message => self.send(owner, message),
            }
        }
    }

    /// Members that keep copies, in the ring's order for a holder: what one node stored together comes together to another,
    /// as a path is valid only with all that it refers to. By the order for each path, a closure of a hundred paths went to
    /// all nodes, and what they have in common went to all of them.
    fn storers(&self, holder: &NodeId) -> Vec<NodeId> {
        let stores = |node: &NodeId| self.members.storers.binary_search_by_key(node, |(storer, _)| *storer).is_ok();
        self.newest_ring().successors(holder).filter(stores).collect()
    }

    /// With all changes that have not settled yet.
    fn newest_ring(&self) -> &Ring {
        self.next_ring.as_ref().map_or(&self.ring, |(ring, _)| ring)
    }

    /// The first live owners. While the ring has not settled, who comes next stands in for one that died.
    fn live_owners(&self, key: &Key) -> Vec<NodeId> {
        self.ring.successors(key).filter(|node| self.members.live.contains(node)).take(OWNERS).collect()
    }

    /// Whether a member may be dead, as far as this node knows.
    fn is_doubtful(&self, node: &NodeId) -> bool {
        self.members.suspected.contains(node) || self.mutes.is_mute(node, self.now_ms)
    }

    /// Asks for a sign of life. What is answered is of no interest.
    fn probe(&mut self, node: NodeId, key: Key) {
        self.ids += 1;
        self.send(node, HolderMessage::Lookup { id: self.ids, keys: vec![key] });
    }

    fn send(&mut self, to: NodeId, message: HolderMessage) {
        self.mutes.told(to, &message, self.now_ms);
        self.out.push(Action::Send { to, message });
    }

    fn finish(&mut self) -> Vec<Action> {
        for (owner, id, keys) in self.questions.due(&mut self.ids, self.now_ms) {
            self.send(owner, HolderMessage::Lookup { id, keys });
        }
        std::mem::take(&mut self.out)
    }
}
