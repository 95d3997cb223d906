//! Which nodes build one derivation that several must agree on, and what their outputs come to.
//!
//! A *vote* is what one node built. Invariants:
//! - a node votes once, and is not asked while it has been asked; whoever did not take it, or was lost, is asked again only
//!   after a pause, and after those that were not asked yet;
//! - never are more asked than votes are missing;
//! - it is agreed when as many as needed have voted, all for the same; two votes that differ end it, whatever others say;
//! - it is given up when fewer can vote than are needed, or when nodes were lost [`LOSSES_MAX`] times: several that die
//!   under a derivation are no accident. Who could vote and is silent counts for [`SILENT_MS`] more: most that are silent
//!   for some seconds are not dead.

use std::collections::{BTreeMap, BTreeSet};

/// Nodes that a derivation may be built on: beyond it, agreement costs more than it tells.
pub const VOTES_MAX: usize = 16;

/// Voters of one ballot that may be lost.
pub const LOSSES_MAX: u32 = 5;

/// How long a voter that was lost is not asked again.
pub const LOST_MS: u64 = 2_000;

/// How long a node that could vote is waited for when it cannot be asked: longer than others leave it alone for not having
/// answered, and than members need to agree that it is dead.
pub const SILENT_MS: u64 = 20_000;

/// What a node that was asked says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word<V> {
    Built(V),
    /// It says nothing of the derivation: the node died, or its link broke.
    Lost,
    /// It does not take it before this time; `None`: it never will.
    Refused {
        until_ms: Option<u64>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<N> {
    /// Have this node build it.
    Ask(N),
    /// Nothing is to be done before a node says something, or before this time.
    Wait {
        until_ms: Option<u64>,
    },
    Agreed,
    Differ,
    /// So many could vote at most.
    TooFew {
        able: usize,
    },
    GivenUp {
        losses: u32,
    },
}

#[derive(Clone, Debug)]
pub struct Ballot<N, V> {
    needed: usize,
    votes: Vec<(N, V)>,
    asked: BTreeSet<N>,
    /// Not asked again before this time.
    away: BTreeMap<N, u64>,
    unable: BTreeSet<N>,
    /// Were lost at least once.
    lost: BTreeSet<N>,
    /// When each was last known to be able.
    seen: BTreeMap<N, u64>,
    losses: u32,
}

impl<N: Clone + Ord, V: PartialEq> Ballot<N, V> {
    /// `needed` is taken as at least 1 and at most [`VOTES_MAX`].
    pub fn new(needed: usize) -> Self {
        Ballot {
            needed: needed.clamp(1, VOTES_MAX),
            votes: Vec::new(),
            asked: BTreeSet::new(),
            away: BTreeMap::new(),
            unable: BTreeSet::new(),
            lost: BTreeSet::new(),
            seen: BTreeMap::new(),
            losses: 0,
        }
    }

    /// Somebody wants more votes for it. It is never done with fewer than it began with.
    pub fn need(&mut self, needed: usize) {
        self.needed = self.needed.max(needed.min(VOTES_MAX));
    }

    /// How many are needed.
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// In the order in which they came.
    pub fn votes(&self) -> &[(N, V)] {
        &self.votes
    }

    /// Nodes that could vote as soon as they are heard of again.
    pub fn expect(&mut self, nodes: &[N], now_ms: u64) {
        self.seen.extend(nodes.iter().map(|node| (node.clone(), now_ms)));
    }

    /// Whether it neither said that it never takes it, nor was lost.
    pub fn has_hope(&self, node: &N) -> bool {
        !self.unable.contains(node) && !self.lost.contains(node)
    }

    /// Says what is next. `able`: who could build it, at once or later, the best first.
    pub fn step(&mut self, able: &[N], now_ms: u64) -> Step<N> {
        if self.votes.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            return Step::Differ;
        }
        if self.votes.len() >= self.needed {
            return Step::Agreed;
        }
        if self.losses >= LOSSES_MAX {
            return Step::GivenUp { losses: self.losses };
        }
        if self.votes.len() + self.asked.len() >= self.needed {
            return Step::Wait { until_ms: None };
        }
        self.expect(able, now_ms);
        let is_engaged = |node: &N| self.asked.contains(node) || self.votes.iter().any(|(voter, _)| voter == node);
        let left: Vec<&N> = able.iter().filter(|node| !is_engaged(node) && !self.unable.contains(node)).collect();
        let back_by = |(node, seen_ms): (&N, &u64)| {
            let is_silent = !is_engaged(node) && !self.unable.contains(node) && !able.contains(node);
            Some(seen_ms.saturating_add(SILENT_MS)).filter(|back_ms| is_silent && now_ms < *back_ms)
        };
        let silent: Vec<u64> = self.seen.iter().filter_map(back_by).collect();
        let most = self.votes.len() + self.asked.len() + left.len() + silent.len();
        if most < self.needed {
            return Step::TooFew { able: most };
        }
        let fresh = left.iter().find(|node| !self.away.contains_key(node));
        let back = || left.iter().find(|node| self.away.get(node).is_some_and(|until_ms| *until_ms <= now_ms));
        match fresh.or_else(back) {
            Some(node) => {
                let node = N::clone(node);
                self.asked.insert(node.clone());
                Step::Ask(node)
            }
            None => {
                let away = left.iter().filter_map(|node| self.away.get(node));
                Step::Wait { until_ms: away.chain(&silent).min().copied() }
            }
        }
    }

    /// A node that was asked says something. Of others nothing counts.
    pub fn hear(&mut self, node: &N, word: Word<V>, now_ms: u64) {
        if !self.asked.remove(node) {
            return;
        }
        match word {
            Word::Built(vote) => self.votes.push((node.clone(), vote)),
            Word::Lost => {
                self.losses += 1;
                self.lost.insert(node.clone());
                self.away.insert(node.clone(), now_ms.saturating_add(LOST_MS));
            }
            Word::Refused { until_ms: Some(until_ms) } => drop(self.away.insert(node.clone(), until_ms)),
            Word::Refused { until_ms: None } => drop(self.unable.insert(node.clone())),
        }
    }
}

#[cfg(test)]
#[path = "ballot_tests.rs"]
mod tests;
