//! What the catalogue does with what other nodes say.

use super::owned::Answer;
use super::replication::COPY_TIMEOUT_MS;
use super::{Action, Catalogue, FEW_RECORDS, WAITING_MAX};
use crate::announce::BATCH_KEYS_MAX;
use crate::ring::{Key, NodeId};
use shoal_wire::mesh::announcement::{Found, HolderMessage, Holding, Wanted};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of records in one answer, which has room for as many keys as may be asked for beside them.
const RECORDS_LEN_MAX: usize = 4 << 20;

impl Catalogue {
    /// The node was never started before, as far as it knows: see [`super::holdings`].
    pub fn never_lived(&mut self) {
        self.holdings.never_lived();
    }

    /// Others remember it nevertheless.
    pub fn lived_before(&mut self, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        self.holdings.lived_before();
        self.announce();
        self.finish()
    }

    /// A message of a member. [`HolderMessage::Records`] are not for this: their signatures are verified first.
    pub fn receive(&mut self, from: NodeId, message: HolderMessage, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        self.mutes.heard(&from);
        match message {
            HolderMessage::Begins { life, holds_nothing } => self.begins(from, life, holds_nothing),
            HolderMessage::Holds(holdings) => {
                let lacks = holdings.iter().filter(|holding| self.take_holding(from, **holding));
                let lacks = lacks.map(|holding| holding.key).collect();
                let keys = self.asked_at_once(from, lacks);
                self.send(from, HolderMessage::Lacks { life: self.life, keys });
            }
            HolderMessage::Drops(keys) => {
                self.take_drops(from, keys);
                self.send(from, HolderMessage::Lacks { life: self.life, keys: Vec::new() });
            }
            HolderMessage::Lacks { life, keys } => {
                self.holdings.answered(&from, &keys);
                self.holdings.owner_lives(&from, life, &self.ring);
                let keys: Vec<Key> = keys.into_iter().filter(|key| self.holdings.get(key).is_some()).collect();
                if !keys.is_empty() {
                    self.out.push(Action::SendRecords { to: from, keys });
                }
                self.announce();
            }
            HolderMessage::Records(_) => {}
            HolderMessage::Lookup { id, keys } => {
                let live = &self.members.live;
                let mut room = RECORDS_LEN_MAX;
                let found = keys.iter().map(|key| {
                    let answer = self.owned.answer(key, |node| live.contains(node));
                    let record = answer.record;
                    // Whoever gets none asks a holder for it.
                    let record = room.checked_sub(record.len()).inspect(|left| room = *left).map(|_| record);
                    Found { key: *key, holders: answer.holders, record: record.unwrap_or_default() }
                });
                let is_untold = self.is_untold();
                let found: Vec<Found> = found.filter(|found| !is_untold || !found.holders.is_empty()).collect();
                self.send(from, HolderMessage::Answer { id, found });
            }
            HolderMessage::Answer { id, found } => self.lookup_answered(from, id, found),
            HolderMessage::Copy(wanted) => wanted.into_iter().for_each(|wanted| self.copy(from, wanted)),
            HolderMessage::Keep { holding, .. } => self.copy(from, Wanted { holding, from: vec![from] }),
            HolderMessage::Stored(keys) => keys.iter().for_each(|key| self.stored_by(from, key)),
            HolderMessage::Declined(keys) => keys.iter().for_each(|key| self.declined_by(from, key)),
            HolderMessage::Differs(keys) => keys.iter().for_each(|key| self.differs_at(from, key)),
            HolderMessage::MayDrop { id, keys } => {
                let keys = self.give_word(&from, &keys);
                self.send(from, HolderMessage::Dropped { id, keys });
            }
            HolderMessage::Claim { id, key } => {
                let by = self.give_claim(from, key);
                self.send(from, HolderMessage::Claimed { id, by });
            }
            HolderMessage::Claimed { id, by } => self.claim_answered(&from, id, by),
            HolderMessage::Unclaim(key) => self.end_claim(&from, &key),
            HolderMessage::Dropped { id, keys } => {
                self.word(id, from, keys);
                self.end_farewells();
            }
        }
        self.finish()
    }

    /// A member said something, be it for the catalogue or not.
    pub fn heard(&mut self, from: &NodeId) {
        self.mutes.heard(from);
    }

    /// A message could not be sent. What it asked for is not waited for.
    pub fn unsent(&mut self, to: &NodeId) {
        self.mutes.untold(to, self.now_ms);
    }

    /// An order of a copy could not be sent: it is as if the node had declined.
    pub fn undelivered(&mut self, to: NodeId, key: &Key, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        self.declined_by(to, key);
        self.finish()
    }

    fn begins(&mut self, node: NodeId, life: u64, holds_nothing: bool) {
        match holds_nothing {
            true => self.forget(&node),
            false => {
                self.unconfirmed.insert(node, (self.now_ms, self.owned.held_by(&node)));
            }
        }
        self.holdings.owner_lives(&node, life, &self.ring);
        self.send(node, HolderMessage::Lacks { life: self.life, keys: Vec::new() });
        self.announce();
    }

    /// This node's own answer as an owner to a lookup of what others hold. Whether it knows of somebody: of a path that it
    /// holds itself, others may know more.
    pub(super) fn asks_itself(&mut self, id: u64, key: &Key) -> bool {
        let answer = self.owned.answer(key, |node| self.members.live.contains(node));
        let is_known = answer.holders.iter().any(|holder| *holder != self.me);
        let is_miss = answer.holders.is_empty() && !self.is_untold();
        let me = self.me;
        if let Some((_, lookup)) = self.lookups.get_mut(&id) {
            match is_known || is_miss {
                true => lookup.answered(&me, answer),
                false => lookup.passed(&me),
            }
        }
        is_known
    }

    /// An owner that says nothing of a key cannot say.
    fn lookup_answered(&mut self, owner: NodeId, id: u64, found: Vec<Found>) {
        let found: BTreeMap<Key, Found> = found.into_iter().map(|found| (found.key, found)).collect();
        for (key, lookup) in self.questions.answered(&owner, id) {
            if let Some((_, asker)) = self.lookups.get_mut(&lookup) {
                asker.heard();
                match found.get(&key).cloned() {
                    Some(Found { holders, record, .. }) => {
                        asker.answered(&owner, Answer { content: None, holders, record });
                    }
                    None => asker.passed(&owner),
                }
            }
            self.advance(lookup);
        }
    }

    /// A holder told this owner. Whether its record is lacking here.
    pub(super) fn take_holding(&mut self, from: NodeId, holding: Holding) -> bool {
        if let Some((_, keys)) = self.unconfirmed.get_mut(&from) {
            keys.remove(&holding.key);
        }
        let (lacks, conflict) = self.owned.holds(from, holding);
        if let Some(conflict) = conflict {
            self.out.push(Action::Conflict(conflict));
        }
        // It may be heard before the word that the copy is made.
        if self.holdings.get(&holding.key) == Some(holding.content) {
            self.stored_by(from, &holding.key);
        }
        self.orders.done(&holding.key, &from);
        self.end_claim(&from, &holding.key);
        self.recheck(holding.key);
        lacks
    }

    /// Those of which the record is asked for at once: none if they are few, and there will be more.
    fn asked_at_once(&mut self, holder: NodeId, lacks: Vec<Key>) -> Vec<Key> {
        let waiting = self.recordless.get(&holder).map_or(0, BTreeSet::len);
        if lacks.len() > FEW_RECORDS || waiting + lacks.len() > BATCH_KEYS_MAX {
            return lacks;
        }
        if !lacks.is_empty() {
            self.recordless.entry(holder).or_default().extend(lacks);
        }
        Vec::new()
    }

    /// Asks holders for the records that are lacking still.
    pub(super) fn ask_for_records(&mut self) {
        let live = &self.members.live;
        for (holder, keys) in self.recordless.extract_if(.., |holder, _| live.contains(holder)).collect::<Vec<_>>() {
            let keys: Vec<Key> = keys.into_iter().filter(|key| self.owned.lacks_record(key)).collect();
            if !keys.is_empty() {
                self.send(holder, HolderMessage::Lacks { life: self.life, keys });
            }
        }
    }

    pub(super) fn take_drops(&mut self, from: NodeId, keys: Vec<Key>) {
        for key in keys {
            self.owned.drops(&from, &key);
            self.recheck(key);
        }
    }

    /// Another node, or this one as an owner, wants a copy kept here.
    pub(super) fn copy(&mut self, asker: NodeId, wanted: Wanted) {
        let key = wanted.holding.key;
        match self.holdings.get(&key) {
            Some(content) if content == wanted.holding.content => {
                if asker != self.me {
                    self.send(asker, HolderMessage::Stored(vec![key]));
                }
            }
            // The owners hear of both and report it.
            Some(_) => {
                if asker != self.me {
                    self.send(asker, HolderMessage::Differs(vec![key]));
                }
            }
            None => {
                let is_late = |since: u64| self.now_ms.saturating_sub(since) >= COPY_TIMEOUT_MS;
                let is_new = self.fetches.get(&key).is_none_or(|(since, _)| is_late(*since));
                if is_new && self.fetches.len() >= WAITING_MAX {
                    return;
                }
                let (since, askers) = self.fetches.entry(key).or_default();
                if is_new {
                    *since = self.now_ms;
                }
                if asker != self.me {
                    askers.insert(asker);
                }
                if is_new {
                    self.out.push(Action::Fetch { holding: wanted.holding, from: wanted.from });
                }
            }
        }
    }

    pub(super) fn declined_by(&mut self, node: NodeId, key: &Key) {
        if self.orders.failed(key, &node, self.now_ms) {
            self.pursue(*key);
            self.recheck(*key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::holdings::BATCH_GAP_MS;
    use crate::catalogue::members::Members;
    use crate::catalogue::replication::REPAIR_DELAY_MS;
    use crate::catalogue::{TICK_MS, UNTOLD_MS};
    use std::num::NonZeroU8;

    const ME: NodeId = [1; 32];
    const OTHER: NodeId = [2; 32];

    fn pair() -> Catalogue {
        let mut catalogue = Catalogue::new(ME, 1, 2, [], 0);
        let storers = [ME, OTHER].map(|node| (node, NonZeroU8::MIN)).to_vec();
        catalogue.set_members(Members { storers, live: [ME, OTHER].into(), suspected: BTreeSet::new() }, 0);
        // What is said to a stranger first.
        catalogue.receive(OTHER, HolderMessage::Lacks { life: 1, keys: Vec::new() }, 0);
        catalogue
    }

    fn holdings(keys: std::ops::Range<u8>) -> Vec<Holding> {
        keys.map(|key| Holding { key: [key; 32], content: [0; 16] }).collect()
    }

    /// The records that are asked for by these, of each request.
    fn asked(actions: Vec<Action>) -> Vec<usize> {
        let keys = actions.into_iter().filter_map(|action| match action {
            Action::Send { to: OTHER, message: HolderMessage::Lacks { keys, .. } } => Some(keys.len()),
            _ => None,
        });
        keys.collect()
    }

    fn told(actions: &[Action]) -> bool {
        actions.iter().any(|action| matches!(action, Action::Send { message: HolderMessage::Holds(_), .. }))
    }

    #[test]
    fn records_of_few_paths_are_asked_for_together_and_of_many_at_once() {
        let mut owner = pair();
        for key in 0..3 {
            assert_eq!(asked(owner.receive(OTHER, HolderMessage::Holds(holdings(key..key + 1)), 1)), [0]);
        }
        owner.learn_record(&[1; 32], &[0; 16], b"sealed");
        assert_eq!(asked(owner.tick(TICK_MS)), [2], "one came meanwhile");
        assert!(asked(owner.tick(2 * TICK_MS)).is_empty());
        let many = FEW_RECORDS as u8 + 1;
        let told = HolderMessage::Holds(holdings(100..100 + many));
        assert_eq!(asked(owner.receive(OTHER, told, 2 * TICK_MS)), [FEW_RECORDS + 1]);
    }

    #[test]
    fn owners_hear_at_once_of_what_is_new_and_by_and_by_of_another_copy() {
        let [new, copy] = [7, 8].map(|key| Holding { key: [key; 32], content: [0; 16] });
        assert!(told(&pair().added(new, BATCH_GAP_MS)));
        let mut keeper = pair();
        keeper.receive(OTHER, HolderMessage::Copy(vec![Wanted { holding: copy, from: vec![OTHER] }]), BATCH_GAP_MS);
        assert!(!told(&keeper.added(copy, BATCH_GAP_MS)));
        assert!(!told(&keeper.fetched(copy, BATCH_GAP_MS)));
        assert!(told(&keeper.tick(TICK_MS)));
    }

    #[test]
    fn what_comes_right_after_a_word_to_an_owner_is_told_before_the_next_tick() {
        let mut holder = pair();
        let holdings = holdings(7..9);
        assert!(told(&holder.added(holdings[0], BATCH_GAP_MS)));
        assert!(!told(&holder.added(holdings[1], BATCH_GAP_MS + 1)));
        holder.receive(OTHER, HolderMessage::Lacks { life: 1, keys: Vec::new() }, BATCH_GAP_MS + 2);
        assert_eq!(holder.next_ms(), Some(2 * BATCH_GAP_MS));
        assert!(told(&holder.hurry(2 * BATCH_GAP_MS)));
        assert_eq!(holder.next_ms(), None);
    }

    #[test]
    fn a_copy_that_lacks_is_made_though_the_only_holder_is_mute_just_then() {
        let mut owner = pair();
        let leads = |key: &u8| owner.live_owners(&[*key; 32])[0] == ME;
        let key = (0..u8::MAX).find(leads).unwrap();
        owner.receive(OTHER, HolderMessage::Holds(holdings(key..key + 1)), 1);
        let fetched = |actions: Vec<Action>| actions.iter().any(|action| matches!(action, Action::Fetch { .. }));
        assert!(!fetched(owner.tick(REPAIR_DELAY_MS)));
        owner.mutes.mark(OTHER, REPAIR_DELAY_MS);
        assert!(fetched(owner.tick(REPAIR_DELAY_MS + TICK_MS)));
    }

    #[test]
    fn who_looks_again_hears_of_the_record_that_came_meanwhile() {
        let mut owner = pair();
        let holding = holdings(1..2);
        owner.receive(OTHER, HolderMessage::Holds(holding.clone()), 1);
        let found = |owner: &mut Catalogue| {
            let (_, actions) = owner.look_up(holding[0].key, 1);
            let records = actions.into_iter().map(|action| match action {
                Action::Found { answer, .. } => answer.record,
                other => panic!("nobody else need be asked: {other:?}"),
            });
            records.collect::<Vec<_>>()
        };
        assert_eq!(found(&mut owner), [b""]);
        owner.learn_record(&holding[0].key, &holding[0].content, b"sealed");
        assert_eq!(found(&mut owner), [b"sealed"]);
    }

    #[test]
    fn what_is_looked_for_together_is_asked_of_an_owner_together() {
        let nodes: [NodeId; 5] = std::array::from_fn(|n| [n as u8 + 1; 32]);
        let mut asker = Catalogue::new(ME, 1, 2, [], 0);
        let storers = nodes.map(|node| (node, NonZeroU8::MIN)).to_vec();
        asker.set_members(Members { storers, live: nodes.into(), suspected: BTreeSet::new() }, 0);
        let keys: Vec<Key> = (0..200).map(|key| [key; 32]).collect();
        let (ids, actions) = asker.look_up_others(&keys, UNTOLD_MS);
        let mut asked: BTreeMap<NodeId, Vec<Key>> = BTreeMap::new();
        let mut questions = Vec::new();
        for action in actions {
            let Action::Send { to, message: HolderMessage::Lookup { id, keys } } = action else { panic!("{action:?}") };
            assert!(asked.insert(to, keys.clone()).is_none(), "one message to each owner");
            questions.push((to, id, keys));
        }
        assert_eq!(asked.len(), 4);
        let mut ended = BTreeMap::new();
        for (owner, id, keys) in questions {
            assert!(asker.receive(ME, HolderMessage::Answer { id, found: Vec::new() }, UNTOLD_MS).is_empty());
            let found = |key: &Key| {
                let holders = if key[0] == 7 { vec![nodes[4]] } else { Vec::new() };
                Found { key: *key, holders, record: b"sealed".to_vec() }
            };
            let answer = HolderMessage::Answer { id, found: keys.iter().map(found).collect() };
            for action in asker.receive(owner, answer, UNTOLD_MS) {
                match action {
                    Action::Found { id, key, .. } => assert!(ended.insert(id, key).is_none() && key[0] == 7),
                    Action::Missing { id, key } => assert!(ended.insert(id, key).is_none() && key[0] != 7),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(ended, ids.into_iter().zip(keys).collect());
    }
}
