//! Jobs that died for want of memory: tried again with twice as much, where they would have more than they died with.

use std::hash::Hash;

use super::{Actions, Answer, End, Schedule, TRIES_MAX};

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    pub(super) fn starve(&mut self, number: u32, used_mib: u64, actions: &mut Actions<K, N>) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        job.memory_mib = job.memory_mib.max(used_mib).saturating_mul(2);
        job.exceeded_mib = job.exceeded_mib.max(used_mib);
        let tries = job.losses + 1;
        self.choosy.insert(number);
        match self.jobs.get(number).is_some_and(|job| self.has_place(job, job.exceeded_mib)) {
            true => self.try_again(number, actions),
            false => self.fail(number, Answer::GivenUp { tries }, actions),
        }
    }

    /// Whether a job that runs would be placed again after such an end.
    pub fn is_tried_again(&self, key: &K, end: &End) -> bool {
        let Some(number) = self.jobs.find(key) else { return false };
        let Some(job) = self.jobs.get(number) else { return false };
        let is_left = job.losses + 1 < TRIES_MAX;
        match end {
            End::Success { .. } | End::Failed => false,
            End::Refused { .. } => true,
            End::Lost => is_left,
            End::OutOfMemory { used_mib } => is_left && self.has_place(job, job.exceeded_mib.max(*used_mib)),
        }
    }

    /// What a job is taken to need; 0 where nothing is known.
    pub fn memory_of(&self, key: &K) -> u64 {
        self.jobs.find(key).and_then(|job| self.jobs.get(job)).map_or(0, |job| job.memory_mib)
    }

    /// Memory that this coordinator's jobs at an executor need between them, as far as is known.
    pub fn memory_at(&self, node: &N) -> u64 {
        self.seats.find(node).map_or(0, |seat| self.seats.get(seat).standing.ours_mib)
    }
}
