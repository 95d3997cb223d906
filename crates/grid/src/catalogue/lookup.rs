//! Where a path is: here, where it was just heard of, or where its owners say. One round trip, no broadcast.
//!
//! Two owners are asked at once, those against whom nothing is suspected first. One that has it ends the search; two that
//! do not have it are a miss, so that an owner which is one since a moment ago makes none. An owner that is silent for
//! [`HEDGE_MS`] is not waited for: the next one is asked beside it. Where all but doubtful ones, who are suspected or mute,
//! have said what they know, those are waited for no longer either.

use super::owned::Answer;
use crate::ring::{Key, NodeId};
use shoal_wire::mesh::announcement::KEYS_MAX;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Owners asked at once.
pub const ASKED_AT_ONCE: usize = 2;
/// From asking an owner to asking the next as well: several round trips of a local network, and a miss with one of five
/// nodes black-holed still takes less than 50 ms.
pub const HEDGE_MS: u64 = 20;
/// After this a lookup ends with what is known.
pub const LOOKUP_MS: u64 = 2_000;
/// Paths whose holders were heard of by gossip or asked for a moment ago, and how long they are believed.
pub const RECENT_MAX: usize = 16_384;
pub const RECENT_MS: u64 = 60_000;

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Ask(Vec<NodeId>),
    /// Nothing before this time, unless an answer comes.
    Wait(u64),
    Found(Answer),
    /// Nobody has it.
    Missing,
    /// Too few owners answered: nothing is known, which is not the same as a miss. Those that said nothing.
    Unreachable(Vec<NodeId>),
}

#[derive(Clone, Debug)]
pub struct Lookup {
    to_ask: VecDeque<NodeId>,
    silent: BTreeSet<NodeId>,
    misses: usize,
    /// Another node said something.
    is_heard: bool,
    /// So many misses are a miss.
    enough: usize,
    begun_ms: u64,
    asked_ms: u64,
    found: Option<Answer>,
}

impl Lookup {
    /// `owners` in the order of the ring. After `enough` misses, or one of each, nobody has it.
    pub fn new(owners: Vec<NodeId>, is_doubtful: impl Fn(&NodeId) -> bool, enough: usize, now_ms: u64) -> Self {
        let (doubtful, mut sound): (Vec<NodeId>, Vec<NodeId>) =
            owners.into_iter().partition(|owner| is_doubtful(owner));
        sound.extend(doubtful);
        let enough = enough.min(sound.len()).max(1);
        Lookup {
            to_ask: sound.into(),
            silent: BTreeSet::new(),
            misses: 0,
            is_heard: false,
            enough,
            begun_ms: now_ms,
            asked_ms: now_ms,
            found: None,
        }
    }

    pub fn answered(&mut self, owner: &NodeId, answer: Answer) {
        if self.silent.remove(owner) {
            match answer.holders.is_empty() {
                true => self.misses += 1,
                false => self.found = self.found.take().or(Some(answer)),
            }
        }
    }

    /// The owner cannot say.
    pub fn passed(&mut self, owner: &NodeId) {
        self.silent.remove(owner);
    }

    /// Another node answered, whatever it said.
    pub fn heard(&mut self) {
        self.is_heard = true;
    }

    /// `is_doubtful`: by what is known now.
    pub fn step(&mut self, now_ms: u64, is_doubtful: impl Fn(&NodeId) -> bool) -> Step {
        if let Some(answer) = self.found.take() {
            return Step::Found(answer);
        }
        let is_over =
            now_ms.saturating_sub(self.begun_ms) >= LOOKUP_MS || self.silent.is_empty() && self.to_ask.is_empty();
        if self.misses >= self.enough {
            return Step::Missing;
        }
        let is_vain = self.is_heard && self.to_ask.is_empty() && self.silent.iter().all(is_doubtful);
        if is_over || is_vain {
            return Step::Unreachable(self.silent.iter().copied().collect());
        }
        let is_late = now_ms.saturating_sub(self.asked_ms) >= HEDGE_MS;
        let wanted = match self.silent.len() + self.misses {
            asked if asked < self.enough => self.enough - asked,
            _ => usize::from(is_late),
        };
        let next: Vec<NodeId> = self.to_ask.drain(..wanted.min(self.to_ask.len())).collect();
        if next.is_empty() {
            let hedge_ms = if self.to_ask.is_empty() { LOOKUP_MS } else { HEDGE_MS };
            return Step::Wait((self.asked_ms + hedge_ms).min(self.begun_ms + LOOKUP_MS));
        }
        self.asked_ms = now_ms;
        self.silent.extend(next.iter().copied());
        Step::Ask(next)
    }
}

/// Keys that are asked for, with the lookups that they are of.
type Asked = Vec<(Key, u64)>;

/// What owners are asked on behalf of lookups: those of one moment together, as a message costs more than what is in it.
#[derive(Clone, Debug, Default)]
pub struct Questions {
    /// To be asked of each owner now.
    coming: BTreeMap<NodeId, Asked>,
    /// Asked of an owner, and since when.
    open: BTreeMap<u64, (NodeId, u64, Asked)>,
}

impl Questions {
    pub fn add(&mut self, owner: NodeId, key: Key, lookup: u64) {
        self.coming.entry(owner).or_default().push((key, lookup));
    }

    /// What is to be asked of whom, with a number from `ids` for each message.
    pub fn due(&mut self, ids: &mut u64, now_ms: u64) -> Vec<(NodeId, u64, Vec<Key>)> {
        let mut due = Vec::new();
        for (owner, asked) in std::mem::take(&mut self.coming) {
            for batch in asked.chunks(KEYS_MAX) {
                *ids += 1;
                due.push((owner, *ids, batch.iter().map(|(key, _)| *key).collect()));
                self.open.insert(*ids, (owner, now_ms, batch.to_vec()));
            }
        }
        due
    }

    /// The keys and lookups of a question that `owner` answers.
    pub fn answered(&mut self, owner: &NodeId, id: u64) -> Asked {
        match self.open.get(&id) {
            Some((asked, ..)) if asked == owner => self.open.remove(&id).map(|(_, _, keys)| keys).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// Forgets those of which every lookup has ended.
    pub fn forget_old(&mut self, now_ms: u64) {
        self.open.retain(|_, (_, since, _)| now_ms.saturating_sub(*since) < LOOKUP_MS);
    }
}

/// Paths that were heard of lately.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    answers: BTreeMap<Key, (u64, Answer)>,
    order: VecDeque<(u64, Key)>,
}

impl Recent {
    pub fn insert(&mut self, key: Key, answer: Answer, now_ms: u64) {
        self.answers.insert(key, (now_ms, answer));
        self.order.push_back((now_ms, key));
        while self.order.len() > RECENT_MAX {
            let Some((at, key)) = self.order.pop_front() else { break };
            if self.answers.get(&key).is_some_and(|(since, _)| *since == at) {
                self.answers.remove(&key);
            }
        }
    }

    pub fn get(&self, key: &Key, now_ms: u64) -> Option<&Answer> {
        let (at, answer) = self.answers.get(key)?;
        (now_ms.saturating_sub(*at) < RECENT_MS).then_some(answer)
    }

    /// A holder that did not have it, or is gone.
    pub fn forget(&mut self, key: &Key) {
        self.answers.remove(key);
    }
}
