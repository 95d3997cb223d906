//! Requests of this node to delete paths, which every live owner has to allow.
//!
//! Owners are asked one after the other, the leading one first: of several holders that want to delete the same path it
//! lets one go on, and those that it refuses ask nobody else.

use super::{Action, Catalogue, DROP_TIMEOUT_MS, WAITING_MAX};
use crate::ring::{Key, NodeId};
use shoal_wire::mesh::announcement::{HolderMessage, KEYS_MAX};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A request.
#[derive(Clone, Debug)]
struct Farewell {
    all: BTreeSet<Key>,
    allowed: BTreeSet<Key>,
    /// Keys that somebody still has to allow, with those who are to be asked after the one who is asked now.
    open: BTreeMap<Key, VecDeque<NodeId>>,
    /// Owners that may take some of these for gone.
    asked: BTreeSet<NodeId>,
    begun_ms: u64,
}

/// A question to one owner: the request, and its keys.
#[derive(Clone, Debug)]
struct Question {
    farewell: u64,
    owner: NodeId,
    keys: BTreeSet<Key>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Farewells {
    requests: BTreeMap<u64, Farewell>,
    questions: BTreeMap<u64, Question>,
}

impl Catalogue {
    /// The store would like to delete these. [`Action::MayDelete`] follows, and names those that it may. None, while
    /// owners are about to change.
    pub fn may_delete(&mut self, keys: Vec<Key>, now_ms: u64) -> (u64, Vec<Action>) {
        self.now_ms = now_ms;
        self.ids += 1;
        let id = self.ids;
        let is_refused = self.farewells.requests.len() >= WAITING_MAX || self.next_ring.is_some();
        let is_free = |key: &Key| !is_refused && self.holdings.get(key).is_some() && !self.pledges.contains_key(key);
        let all: BTreeSet<Key> = keys.into_iter().filter(is_free).take(KEYS_MAX).collect();
        let open = all.iter().map(|key| (*key, self.live_owners(key).into())).collect();
        let farewell =
            Farewell { allowed: BTreeSet::new(), open, asked: BTreeSet::new(), begun_ms: now_ms, all: all.clone() };
        self.farewells.requests.insert(id, farewell);
        self.ask_next(id, all);
        self.end_farewells();
        (id, self.finish())
    }

    /// Which of `keys` the store may delete although no other node may have them, since they are kept outside of the mesh:
    /// what it holds and of which nobody waits for copies. None, while owners are about to change: those to come would take
    /// it for a loss, and have copies made of what others still hold.
    pub fn may_leave(&self, keys: &[Key]) -> Vec<Key> {
        let is_free = |key: &&Key| self.holdings.get(key).is_some() && !self.pledges.contains_key(*key);
        if self.next_ring.is_some() { Vec::new() } else { keys.iter().filter(is_free).copied().collect() }
    }

    /// Asks the next owner of each of `keys`, or allows those that all have allowed.
    fn ask_next(&mut self, id: u64, keys: BTreeSet<Key>) {
        let Some(farewell) = self.farewells.requests.get_mut(&id) else { return };
        let mut next: BTreeMap<NodeId, BTreeSet<Key>> = BTreeMap::new();
        for key in keys {
            match farewell.open.get_mut(&key).map(VecDeque::pop_front) {
                Some(Some(owner)) => {
                    next.entry(owner).or_default().insert(key);
                }
                Some(None) => {
                    farewell.open.remove(&key);
                    // A path that nobody owns is not known to be anywhere else.
                    if !farewell.asked.is_empty() {
                        farewell.allowed.insert(key);
                    }
                }
                None => {}
            }
        }
        farewell.asked.extend(next.keys().copied());
        for (owner, keys) in next {
            self.ids += 1;
            let question = self.ids;
            let list: Vec<Key> = keys.iter().copied().collect();
            self.farewells.questions.insert(question, Question { farewell: id, owner, keys });
            match owner == self.me {
                true => {
                    let granted = self.give_word(&owner, &list);
                    self.word(question, owner, granted);
                }
                false => self.send(owner, HolderMessage::MayDrop { id: question, keys: list }),
            }
        }
    }

    /// Which of `keys` this node, as an owner, lets `holder` delete.
    pub(super) fn give_word(&mut self, holder: &NodeId, keys: &[Key]) -> Vec<Key> {
        let (live, unconfirmed, owned) = (&self.members.live, &self.unconfirmed, &mut self.owned);
        let holds = |node: &NodeId, key: &Key| {
            live.contains(node) && unconfirmed.get(node).is_none_or(|(_, keys)| !keys.contains(key))
        };
        keys.iter().filter(|key| owned.may_drop(holder, key, |node| holds(node, key))).copied().collect()
    }

    /// An owner has answered a question.
    pub(super) fn word(&mut self, question: u64, owner: NodeId, granted: Vec<Key>) {
        let Some(asked) = self.farewells.questions.get(&question).filter(|asked| asked.owner == owner) else { return };
        let (id, keys) = (asked.farewell, asked.keys.clone());
        self.farewells.questions.remove(&question);
        let granted: BTreeSet<Key> = granted.into_iter().filter(|key| keys.contains(key)).collect();
        if let Some(farewell) = self.farewells.requests.get_mut(&id) {
            for refused in keys.difference(&granted) {
                farewell.open.remove(refused);
            }
        }
        self.ask_next(id, granted);
    }

    /// Ends requests that everybody has answered, or that have waited long enough.
    pub(super) fn end_farewells(&mut self) {
        let now_ms = self.now_ms;
        let is_over = |farewell: &Farewell| {
            farewell.open.is_empty() || now_ms.saturating_sub(farewell.begun_ms) >= DROP_TIMEOUT_MS
        };
        let ended = self.farewells.requests.iter().filter(|(_, farewell)| is_over(farewell));
        for id in ended.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(farewell) = self.farewells.requests.remove(&id) else { continue };
            self.farewells.questions.retain(|_, question| question.farewell != id);
            // Owners that gave their word for what stays take it for gone.
            let stay: Vec<Key> = farewell.all.difference(&farewell.allowed).copied().collect();
            for owner in &farewell.asked {
                self.holdings.tell(owner, &stay);
            }
            self.out.push(Action::MayDelete { id, keys: farewell.allowed.into_iter().collect() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RING_SETTLE_MS;
    use super::super::members::Members;
    use super::*;
    use shoal_wire::mesh::announcement::Holding;
    use std::num::NonZeroU8;

    #[test]
    fn what_is_kept_elsewhere_may_leave_unless_copies_are_waited_for_or_owners_change() {
        let members = |nodes: &[NodeId]| Members {
            storers: nodes.iter().map(|node| (*node, NonZeroU8::MIN)).collect(),
            live: nodes.iter().copied().collect(),
            ..Members::default()
        };
        let mut catalogue = Catalogue::new([1; 32], 1, 2, [], 0);
        catalogue.set_members(members(&[[1; 32], [2; 32]]), 0);
        let holding = |key: u8| Holding { key: [key; 32], content: [0; 16] };
        catalogue.added(holding(7), 0);
        assert!(catalogue.stored(holding(8), 0).0);
        let keys = [[7; 32], [8; 32], [9; 32]];
        assert_eq!(catalogue.may_leave(&keys), [[7; 32]], "one is to be copied, and one not here");
        catalogue.set_members(members(&[[1; 32], [2; 32], [3; 32]]), 1);
        assert!(catalogue.may_leave(&keys).is_empty());
        catalogue.tick(1 + RING_SETTLE_MS);
        assert_eq!(catalogue.may_leave(&keys), [[7; 32]]);
    }
}
