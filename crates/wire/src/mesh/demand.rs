//! What a node's clients wait for, told to all: work that could run now, and work that could soon, by what it asks of a
//! machine. Who sizes the grid sums it up.

use super::format::{Format, FormatError, encode, within};
use super::node_record::{EXTENSION_LEN_MAX, Extension, WORD_LEN_MAX, is_word};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::AddAssign;

/// Most kinds of work that are told apart; the rest is summed. A grid has a few systems, and three or four sets of features.
pub const KINDS_MAX: usize = 8;
/// Most features of one kind.
pub const KIND_FEATURES_MAX: usize = 8;

/// Derivations, and the time that they are estimated to take one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub jobs: u32,
    /// Seconds of one slot.
    pub slot_s: u64,
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.jobs = self.jobs.saturating_add(other.jobs);
        self.slot_s = self.slot_s.saturating_add(other.slot_s);
    }
}

/// Work that could run now if there were a slot, and work that is expected to be so within the horizon of who tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    pub ready: Work,
    pub coming: Work,
    /// Jobs that run and are estimated to end within the horizon: each gives its slot to another.
    pub ending: u32,
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.ready += other.ready;
        self.coming += other.coming;
        self.ending = self.ending.saturating_add(other.ending);
    }
}

impl Amount {
    /// Nothing waits.
    pub fn is_none(&self) -> bool {
        self.ready.jobs == 0 && self.coming.jobs == 0
    }
}

/// What asks for the same of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    pub system: String,
    pub features: BTreeSet<String>,
    pub amount: Amount,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// By system and features, each once.
    pub kinds: Vec<Kind>,
    /// Of all other kinds.
    pub rest: Amount,
}

impl Demand {
    /// Keeps apart as many kinds as there is room for, those with the most time first.
    pub fn new(mut all: Vec<Kind>) -> Self {
        all.retain(|kind| !kind.amount.is_none());
        let weight = |kind: &Kind| kind.amount.ready.slot_s.saturating_add(kind.amount.coming.slot_s);
        all.sort_by(|a, b| (weight(b), key(a)).cmp(&(weight(a), key(b))));
        let mut demand = Demand::default();
        for kind in all {
            let amount = kind.amount;
            let at = demand.kinds.partition_point(|other| key(other) < key(&kind));
            demand.kinds.insert(at, kind);
            // The sums of what is left out may take a few bytes more than now.
            let is_too_much = encode(&demand).len() + Self::REST_GROWTH > Self::LEN_MAX;
            if is_too_much || demand.check().is_err() {
                demand.kinds.remove(at);
                demand.rest += amount;
            }
        }
        demand
    }

    /// Most bytes of three numbers of 32 bits and two of 64.
    const REST_GROWTH: usize = 3 * 5 + 2 * 10;

    pub fn is_none(&self) -> bool {
        self.kinds.is_empty() && self.rest.is_none()
    }

    /// All kinds together.
    pub fn total(&self) -> Amount {
        let mut total = self.rest;
        self.kinds.iter().for_each(|kind| total += kind.amount);
        total
    }
}

fn key(kind: &Kind) -> (&str, &BTreeSet<String>) {
    (&kind.system, &kind.features)
}

impl Format for Demand {
    const WHAT: &'static str = "demand";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = EXTENSION_LEN_MAX;

    fn check(&self) -> Result<(), FormatError> {
        within::<Self>("kinds", self.kinds.len() <= KINDS_MAX)?;
        let words = |kind: &Kind| {
            kind.features.len() <= KIND_FEATURES_MAX
                && std::iter::once(&kind.system).chain(&kind.features).all(|word| is_word(word, WORD_LEN_MAX))
        };
        within::<Self>("systems and features", self.kinds.iter().all(words))?;
        within::<Self>("order of kinds", self.kinds.is_sorted_by(|a, b| key(a) < key(b)))
    }
}

impl Extension for Demand {
    const NUMBER: u16 = 1;
}
