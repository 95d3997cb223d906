//! Looking for paths: what is asked of whom, and when it ends.

use super::lookup::{ASKED_AT_ONCE, Lookup, Step};
use super::owned::Answer;
use super::{Action, Catalogue, WAITING_MAX};
use crate::announce::OWNERS;
use crate::ring::{Key, NodeId};

impl Catalogue {
    /// Looks for a path. One of [`Action::Found`], [`Action::Missing`], [`Action::Unreachable`] with the id follows.
    pub fn look_up(&mut self, key: Key, now_ms: u64) -> (u64, Vec<Action>) {
        self.now_ms = now_ms;
        self.ids += 1;
        let id = self.ids;
        if let Some(content) = self.holdings.get(&key) {
            let answer = Answer { content: Some(content), holders: vec![self.me], record: Vec::new() };
            self.out.push(Action::Found { id, key, answer });
        } else {
            self.ask(id, key);
        }
        (id, self.finish())
    }

    /// The same of what others hold, whether this node holds it or not: to show it, or because the copy here is damaged.
    /// One id for each of `keys`.
    pub fn look_up_others(&mut self, keys: &[Key], now_ms: u64) -> (Vec<u64>, Vec<Action>) {
        self.now_ms = now_ms;
        let mut ids = Vec::with_capacity(keys.len());
        for key in keys {
            self.ids += 1;
            ids.push(self.ids);
            self.ask(self.ids, *key);
        }
        (ids, self.finish())
    }

    fn ask(&mut self, id: u64, key: Key) {
        let now_ms = self.now_ms;
        let live = &self.members.live;
        let is_of_use = |answer: &&Answer| answer.holders.iter().all(|node| live.contains(node));
        if let Some(answer) = self.recent.get(&key, now_ms).filter(is_of_use) {
            self.out.push(Action::Found { id, key, answer: answer.clone() });
        } else if self.lookups.len() >= WAITING_MAX {
            self.out.push(Action::Unreachable { id, key, silent: Vec::new() });
        } else {
            let (mut owners, mut enough) = (self.live_owners(&key), ASKED_AT_ONCE);
            if let Some((next, _)) = &self.next_ring {
                // Some nodes tell the owners of before still, and some those of then.
                let live = next.successors(&key).filter(|node| self.members.live.contains(node)).take(OWNERS);
                owners.extend(live.filter(|node| !owners.contains(node)).collect::<Vec<_>>());
                enough = owners.len();
            }
            // What this node knows itself costs no message.
            owners.sort_by_key(|owner| *owner != self.me);
            let lookup = Lookup::new(owners, |owner| self.is_doubtful(owner), enough, now_ms);
            self.lookups.insert(id, (key, lookup));
            self.advance(id);
        }
    }

    /// Takes a lookup one step on, until it waits or ends.
    pub(super) fn advance(&mut self, id: u64) {
        loop {
            let Some((key, lookup)) = self.lookups.get_mut(&id) else { return };
            let key = *key;
            let (suspected, mutes, now_ms) = (&self.members.suspected, &self.mutes, self.now_ms);
            let is_doubtful = |node: &NodeId| suspected.contains(node) || mutes.is_mute(node, now_ms);
            match lookup.step(now_ms, is_doubtful) {
                Step::Ask(owners) => {
                    for owner in owners {
                        if owner != self.me {
                            self.questions.add(owner, key, id);
                        } else if self.asks_itself(id, &key) {
                            // Nobody else need be asked.
                            break;
                        }
                    }
                    continue;
                }
                Step::Wait(until) => {
                    self.wake_ms = Some(self.wake_ms.map_or(until, |wake_ms| wake_ms.min(until)));
                    return;
                }
                Step::Found(answer) => {
                    // One without its record is complete a moment later.
                    if !answer.record.is_empty() {
                        self.recent.insert(key, answer.clone(), self.now_ms);
                    }
                    self.out.push(Action::Found { id, key, answer });
                }
                Step::Missing => self.out.push(Action::Missing { id, key }),
                Step::Unreachable(silent) => self.out.push(Action::Unreachable { id, key, silent }),
            }
            self.lookups.remove(&id);
            return;
        }
    }

    pub(super) fn advance_all(&mut self) {
        self.wake_ms = None;
        for id in self.lookups.keys().copied().collect::<Vec<_>>() {
            self.advance(id);
        }
    }
}
