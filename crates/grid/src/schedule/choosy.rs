//! Jobs that not everybody who is fit for them can run: they died for want of memory, or cannot be sent to others.

use std::hash::Hash;

use super::jobs::{Job, State};
use super::outputs::Held;
use super::{Action, Actions, Schedule};
use crate::placement::{Ask, never};

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    /// From now on a job is for `to` alone, as others cannot be asked for it; `why` is for people. One that runs elsewhere
    /// goes on.
    pub fn confine(&mut self, key: &K, to: &N, why: &str) {
        let (Some(number), Some(seat)) = (self.jobs.find(key), self.seats.find(to)) else { return };
        if let Some(job) = self.jobs.get_mut(number) {
            job.confined = Some((seat, why.to_owned()));
            self.choosy.insert(number);
        }
    }

    /// Whether somebody is there who could run a job, at once or later, had it died with so much memory.
    pub(super) fn has_place(&self, job: &Job<K>, exceeded_mib: u64) -> bool {
        // What lies where is no reason for never.
        let (ask, nothing) = (Ask { exceeded_mib, ..self.ask(job) }, Held::default());
        let able = self.queues.class(job.class).able.iter();
        able.filter_map(|seat| self.candidate(job, &nothing, *seat)).any(|candidate| never(ask, &candidate).is_none())
    }

    /// Ready jobs that none of the members that are left can run, though some are fit for them.
    pub(super) fn report_stuck(&self, actions: &mut Actions<K, N>) {
        let ready = |number: &u32| self.jobs.get(*number).filter(|job| job.state == State::Ready);
        let has_able = |job: &&Job<K>| !self.queues.class(job.class).able.is_empty();
        let choosy = self.choosy.iter().filter_map(ready).filter(has_able);
        let stuck = choosy.filter(|job| !self.has_place(job, job.exceeded_mib));
        actions.extend(stuck.map(|job| Action::Nowhere { key: job.key.clone() }));
    }
}
