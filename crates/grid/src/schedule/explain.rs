//! Why a job waits, or runs where it runs.

use std::hash::Hash;

use super::Schedule;
use super::jobs::{Job, State};
use super::outputs::Held;
use crate::placement::{Reason, Verdict, is_fresh, judge, lasting, merits, passing, rank};

/// Executors of which it is remembered what they were to a job when it was placed: a small mesh whole.
pub const WHY_MAX: usize = 8;
/// Inputs that are named before the rest is only counted.
pub const INPUTS_NAMED_MAX: usize = 10;
/// Jobs before one that are counted; as good as any greater number.
pub const BEFORE_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explanation<K, N> {
    /// It waits for jobs that must succeed first: some of them, and how many there are.
    Inputs { named: Vec<K>, count: usize },
    /// It waits for a place. `before`: ready jobs that ask for the same of a machine and come first.
    Place { before: usize, executors: Vec<(N, Verdict)> },
    /// It was started, and so the executors stood then: those that were best, and some of the others.
    Runs { at: N, why: Vec<(N, Verdict)> },
    /// It was told to stop, and has not yet.
    Stops { at: N },
}

/// Where a job goes, and how the executors stand with it, by seat.
pub(super) struct Choice {
    pub seat: u32,
    pub why: Vec<(u32, Verdict)>,
}

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    /// What a job waits for or where it runs; `None` for one that is unknown, or has ended. Costs a look at each executor.
    pub fn explain(&self, key: &K, now_ms: u64) -> Option<Explanation<K, N>> {
        let number = self.jobs.find(key)?;
        let job = self.jobs.get(number)?;
        let node = |seat| self.seats.get(seat).node.clone();
        Some(match job.state {
            State::Waiting => {
                let named = job.waits_for.iter().take(INPUTS_NAMED_MAX).filter_map(|dep| self.jobs.get(*dep));
                Explanation::Inputs { named: named.map(|dep| dep.key.clone()).collect(), count: job.waits_for.len() }
            }
            State::Ready => {
                let in_order = self.queues.class(job.class).in_order().take(BEFORE_MAX);
                let before = in_order.take_while(|(_, place)| place.2 != number).count();
                let held = self.outputs.held(&job.inputs);
                let candidates: Vec<_> =
                    self.seats.members().filter_map(|(seat, _, _)| self.candidate(job, &held, seat)).collect();
                let mut verdicts = judge(self.ask(job), &candidates, now_ms);
                if job.is_patient(now_ms) {
                    let again_in_ms = job.waits_until_ms - now_ms;
                    let open = verdicts.iter_mut().filter(|verdict| matches!(verdict, Verdict::Ranked { .. }));
                    open.for_each(|verdict| *verdict = Verdict::Kept(Reason::HasLess { again_in_ms }));
                }
                let executors = candidates.iter().map(|candidate| candidate.node.clone()).zip(verdicts).collect();
                Explanation::Place { before, executors }
            }
            State::Running(run) => Explanation::Runs { at: node(run.seat), why: self.why(key) },
            State::Stopping(run) => Explanation::Stops { at: node(run.seat) },
        })
    }

    /// How the executors stood when a job was placed; the first is where it went. Nothing for one that is not running.
    pub fn why(&self, key: &K) -> Vec<(N, Verdict)> {
        let job = self.jobs.find(key).and_then(|job| self.jobs.get(job));
        let why = job.into_iter().flat_map(|job| &job.why);
        why.map(|(seat, verdict)| (self.seats.get(*seat).node.clone(), verdict.clone())).collect()
    }

    /// The best of the open seats for a ready job. What is asked of the machine needs no look: its class was made by it.
    pub(super) fn choose(&self, number: u32, held: &Held, now_ms: u64) -> Option<Choice> {
        let job = self.jobs.get(number)?;
        let class = self.queues.class(job.class);
        let ask = self.ask(job);
        let mut able = class.able.iter().filter_map(|&seat| self.candidate(job, held, seat));
        let has_fresh = job.tried.is_empty() || able.any(|candidate| is_fresh(ask, &candidate));
        let candidates = class.open.iter().filter_map(|&seat| Some((seat, self.candidate(job, held, seat)?)));
        let free = candidates.filter(|(_, candidate)| passing(ask, candidate, has_fresh, now_ms).is_none());
        let mut ranked: Vec<_> = free.map(|(seat, candidate)| (rank(&candidate), candidate.node, seat)).collect();
        if ranked.len() > WHY_MAX {
            ranked.select_nth_unstable(WHY_MAX - 1);
            ranked.truncate(WHY_MAX);
        }
        ranked.sort_unstable();
        let seats: Vec<u32> = ranked.into_iter().map(|(_, _, seat)| seat).collect();
        Some(Choice { seat: *seats.first()?, why: self.verdicts(job, held, &seats, has_fresh, now_ms) })
    }

    /// What is remembered of a choice: those that were ranked, the best first, and what kept some of the others.
    fn verdicts(&self, job: &Job<K>, held: &Held, ranked: &[u32], has_fresh: bool, now_ms: u64) -> Vec<(u32, Verdict)> {
        let ranks = (1..).zip(ranked).filter_map(|(place, &seat)| {
            let merits = merits(&self.candidate(job, held, seat)?);
            Some((seat, Verdict::Ranked { place, merits }))
        });
        let ask = self.ask(job);
        let others =
            self.seats.members().filter(|(seat, _, _)| !ranked.contains(seat)).filter_map(|(seat, _, executor)| {
                let candidate = self.candidate(job, held, seat)?;
                let lasts = lasting(executor, ask.requirement);
                let reason = lasts.or_else(|| passing(ask, &candidate, has_fresh, now_ms))?;
                Some((seat, Verdict::Kept(reason)))
            });
        ranks.chain(others).take(WHY_MAX).collect()
    }
}
