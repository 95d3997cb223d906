//! Ready jobs, in the order in which they are to start.
//!
//! Jobs that ask for the same of a machine are one *class*: what one of them waits for, all wait for, but for memory and
//! for what came of earlier tries. So a class without a free executor costs one look, however many jobs wait in it.
//!
//! Within a class the requests take turns: the one of higher priority first, then the one that has the fewest jobs
//! running, then the older. Within a request the job with the most work above it goes first, then the older.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Priority, RequestId};
use crate::can_run::Requirement;

/// Where a job stands in its request: work above it, age, number.
pub(super) type Place = (Reverse<u64>, u64, u32);

/// Where a request stands: priority, jobs running, age.
pub(super) type Turn = (Priority, u32, RequestId);

#[derive(Debug, Default)]
pub(super) struct Class {
    pub requirement: Requirement,
    /// Jobs of this class, ready or not.
    jobs: u32,
    /// Seats that can run it.
    pub able: BTreeSet<u32>,
    /// Those of them that may take a job now.
    pub open: BTreeSet<u32>,
    /// Of all that can.
    pub slots: u64,
    waiting: BTreeMap<RequestId, BTreeSet<Place>>,
    turns: BTreeSet<Turn>,
}

impl Class {
    /// Ready jobs in their order. One that several requests want may come several times.
    pub fn in_order(&self) -> impl Iterator<Item = (Turn, Place)> + '_ {
        self.turns.iter().flat_map(|turn| {
            let places = self.waiting.get(&turn.2).into_iter().flatten();
            places.map(|place| (*turn, *place))
        })
    }

    /// Whose turn it is, and with what.
    pub fn first(&self) -> Option<(Turn, Place)> {
        self.in_order().next()
    }

    pub fn ready_jobs(&self) -> BTreeSet<u32> {
        self.waiting.values().flatten().map(|place| place.2).collect()
    }

    pub fn push(&mut self, turn: Turn, place: Place) {
        self.waiting.entry(turn.2).or_default().insert(place);
        self.turns.insert(turn);
    }

    pub fn remove(&mut self, turn: Turn, place: Place) {
        let Some(places) = self.waiting.get_mut(&turn.2) else { return };
        places.remove(&place);
        if places.is_empty() {
            self.waiting.remove(&turn.2);
            self.turns.remove(&turn);
        }
    }

    fn turn_changed(&mut self, before: Turn, after: Turn) {
        if self.turns.remove(&before) {
            self.turns.insert(after);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Queues {
    classes: BTreeMap<u32, Class>,
    by_requirement: BTreeMap<Requirement, u32>,
    next: u32,
}

impl Queues {
    /// The class of a job that begins to count, and whether it is new.
    pub fn enter(&mut self, requirement: &Requirement) -> (u32, bool) {
        if let Some(&class) = self.by_requirement.get(requirement) {
            self.class_mut(class).jobs += 1;
            return (class, false);
        }
        while self.classes.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let class = Class { requirement: requirement.clone(), jobs: 1, ..Class::default() };
        self.classes.insert(self.next, class);
        self.by_requirement.insert(requirement.clone(), self.next);
        (self.next, true)
    }

    /// A job of this class is no more.
    pub fn exit(&mut self, class: u32) {
        let known = self.class_mut(class);
        known.jobs -= 1;
        if known.jobs == 0 {
            let requirement = std::mem::take(&mut known.requirement);
            self.by_requirement.remove(&requirement);
            self.classes.remove(&class);
        }
    }

    pub fn class(&self, class: u32) -> &Class {
        &self.classes[&class]
    }

    pub fn class_mut(&mut self, class: u32) -> &mut Class {
        self.classes.get_mut(&class).expect("a job's class lives as long as the job")
    }

    pub fn classes(&self) -> impl Iterator<Item = (u32, &Class)> {
        self.classes.iter().map(|(number, class)| (*number, class))
    }

    pub fn classes_mut(&mut self) -> impl Iterator<Item = &mut Class> {
        self.classes.values_mut()
    }

    /// A request runs more or fewer jobs than before.
    pub fn turn_changed(&mut self, before: Turn, after: Turn) {
        self.classes.values_mut().for_each(|class| class.turn_changed(before, after));
    }
}
