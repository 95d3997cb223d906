//! Second copies of jobs that take much longer than those of their name took before: the executor may be what is slow.
//!
//! - a job has one when it has run [`LATE_FACTOR`] times its estimate and [`LATE_MS_MIN`] more, and only if that estimate is
//!   from history;
//! - nothing waits for the place that it takes: while a job is ready, none is started;
//! - a job has one in all, and there are never more than [`SECONDS_MAX`];
//! - the first success counts, and the other run is stopped; a second copy that ends otherwise says nothing of the job;
//! - where the first run is lost, the second takes its place.

use std::cmp::Reverse;
use std::hash::Hash;

use super::jobs::{Run, State};
use super::{Action, Actions, Schedule};
use crate::placement::{passing, rank};

/// Estimates are off by a third, as builds of one name differ; three times is a build that stands still.
pub const LATE_FACTOR: u64 = 3;

/// What a second copy costs to begin with: offers, inputs, and the work of an executor that had none.
pub const LATE_MS_MIN: u64 = 20_000;

/// Second copies of one coordinator: an executor that is slow has few jobs.
pub const SECONDS_MAX: usize = 8;

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    /// Starts second copies of what is late. Costs a look at each job that runs.
    pub fn second_late(&mut self, now_ms: u64) -> Actions<K, N> {
        let mut actions = Vec::new();
        while self.seconds.len() < SECONDS_MAX && !self.queues.classes().any(|(_, class)| class.first().is_some()) {
            let Some((number, seat)) = self.late(now_ms) else { break };
            let Some(job) = self.jobs.get_mut(number) else { break };
            let (key, memory_mib) = (job.key.clone(), job.memory_mib);
            let ends_ms = now_ms.saturating_add(job.longest_ms);
            let told = self.seats.take(seat, number, memory_mib);
            job.second = Some(Run { seat, told, memory_mib, since_ms: now_ms, ends_ms });
            job.had_second = true;
            self.seconds.insert(number);
            actions.push(Action::Second { key, at: self.seats.get(seat).node.clone() });
            self.refresh(seat, now_ms);
        }
        actions
    }

    /// The job with the most work above it of those that are late and can be built elsewhere, and the best seat for it.
    fn late(&self, now_ms: u64) -> Option<(u32, u32)> {
        let running = self.seats.members().flat_map(|(_, seat, _)| seat.jobs.iter().copied());
        let late = running.filter_map(|number| {
            let job = self.jobs.get(number).filter(|job| job.has_estimate && !job.had_second)?;
            let State::Running(run) = job.state else { return None };
            let due_ms = job.estimate_ms.saturating_mul(LATE_FACTOR).saturating_add(LATE_MS_MIN);
            let is_late = now_ms.saturating_sub(run.since_ms) >= due_ms;
            let seat = self.other_seat(number, run, now_ms).filter(|_| is_late)?;
            Some((Reverse(job.longest_ms), job.seq, number, seat))
        });
        late.min().map(|(_, _, number, seat)| (number, seat))
    }

    fn other_seat(&self, number: u32, run: Run, now_ms: u64) -> Option<u32> {
        let job = self.jobs.get(number)?;
        let (ask, held) = (self.ask(job), self.outputs.held(&job.inputs));
        let open = self.queues.class(job.class).open.iter().copied().filter(|seat| *seat != run.seat);
        let candidates = open.filter_map(|seat| Some((seat, self.candidate(job, &held, seat)?)));
        let free = candidates.filter(|(_, candidate)| passing(ask, candidate, true, now_ms).is_none());
        free.map(|(seat, candidate)| (rank(&candidate), candidate.node, seat)).min().map(|(_, _, seat)| seat)
    }

    /// Whether a job's second copy is there.
    pub(super) fn is_second(&self, number: u32, seat: u32) -> bool {
        self.jobs.get(number).and_then(|job| job.second).is_some_and(|second| second.seat == seat)
    }

    /// The second copy is none any more.
    pub(super) fn leave_second(&mut self, number: u32, now_ms: u64) -> Option<Run> {
        self.seconds.remove(&number);
        let second = self.jobs.get_mut(number)?.second.take()?;
        self.seats.leave(second.seat, number, second.memory_mib, second.told);
        self.refresh(second.seat, now_ms);
        Some(second)
    }

    /// Nobody needs the second copy any more. Its place is taken as free at once: who is refused for that waits a moment.
    pub(super) fn stop_second(&mut self, number: u32, now_ms: u64, actions: &mut Actions<K, N>) {
        let Some(second) = self.leave_second(number, now_ms) else { return };
        let Some(job) = self.jobs.get(number) else { return };
        actions.push(Action::Stop { key: job.key.clone(), at: self.seats.get(second.seat).node.clone() });
    }

    /// Second copies of jobs that nobody wants any more.
    pub(super) fn idle_seconds(&self) -> Vec<u32> {
        let runs = |number: &u32| self.jobs.get(*number).is_some_and(|job| matches!(job.state, State::Running(_)));
        self.seconds.iter().copied().filter(|number| !runs(number)).collect()
    }

    /// The first run is lost: where there is a second, that is the run. The job runs nowhere else.
    pub(super) fn promote_second(&mut self, number: u32) -> bool {
        let Some(job) = self.jobs.get_mut(number).filter(|job| !job.wanted_by.is_empty()) else { return false };
        let Some(second) = job.second.take() else { return false };
        job.state = State::Running(second);
        self.seconds.remove(&number);
        self.running += 1;
        self.count_running(number, second, 1);
        true
    }
}
