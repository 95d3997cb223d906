//! Who may build, and what people and callers ask of the schedule.

use std::collections::BTreeMap;
use std::hash::Hash;

use super::explain::Choice;
use super::jobs::{Job, State};
use super::{Action, Actions, RequestId, Schedule};
use crate::placement::{Candidate, Executor, Placement, lasting, never, passing, place, rank};

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    /// All that may build, by what they say of themselves; others are gone, and what ran there is placed again. Costs
    /// little for those whose word is the same as before.
    pub fn set_executors(&mut self, members: BTreeMap<N, Executor>, now_ms: u64) -> Actions<K, N> {
        let gone: Vec<N> = self
            .seats
            .members()
            .map(|(_, seat, _)| &seat.node)
            .filter(|node| !members.contains_key(node))
            .cloned()
            .collect();
        let gone = gone.into_iter().map(|node| (node, None));
        let told = gone.chain(members.into_iter().map(|(node, executor)| (node, Some(executor))));
        self.tell(told.collect(), now_ms)
    }

    /// One of them has told something new, has come, or is gone (`None`).
    pub fn set_executor(&mut self, node: N, executor: Option<Executor>, now_ms: u64) -> Actions<K, N> {
        self.tell(vec![(node, executor)], now_ms)
    }

    fn tell(&mut self, told: Vec<(N, Option<Executor>)>, now_ms: u64) -> Actions<K, N> {
        let mut actions = Vec::new();
        let seats: Vec<u32> =
            told.into_iter().filter_map(|(node, executor)| self.seats.tell(&node, executor, now_ms)).collect();
        let mut stranded = Vec::new();
        for class in self.queues.classes_mut() {
            let was_able = !class.able.is_empty();
            for &seat in &seats {
                let executor = self.seats.get(seat).executor.as_ref();
                if executor.is_some_and(|executor| lasting(executor, &class.requirement).is_none()) {
                    class.able.insert(seat);
                } else {
                    class.able.remove(&seat);
                    class.open.remove(&seat);
                }
            }
            class.slots = self.seats.slots(&class.able);
            if was_able && class.able.is_empty() {
                stranded.extend(class.ready_jobs());
            }
        }
        for key in stranded.into_iter().filter_map(|number| self.jobs.get(number)).map(|job| job.key.clone()) {
            actions.push(Action::Nowhere { key });
        }
        self.report_stuck(&mut actions);
        // None runs there any more before the first of them is judged: a request that ends stops what runs.
        let mut gone = Vec::new();
        for seat in seats {
            self.refresh(seat, now_ms);
            let known = self.seats.get(seat);
            for number in known.jobs.iter().copied().filter(|_| known.executor.is_none()).collect::<Vec<_>>() {
                if self.is_second(number, seat) {
                    self.leave_second(number, now_ms);
                    continue;
                }
                let is_stopping = self.jobs.get(number).is_some_and(|job| matches!(job.state, State::Stopping(_)));
                self.leave_seat(number, now_ms);
                gone.push((number, seat, is_stopping));
            }
        }
        for (number, seat, is_stopping) in gone {
            match is_stopping {
                false => self.lose(number, seat, now_ms, &mut actions),
                true if self.is_wanted(number) => self.make_ready(number, &mut actions),
                true => self.drop_waiting(number),
            }
        }
        self.settle(actions, now_ms)
    }

    /// An executor builds a job for others: it begins there at once if it waits for a place, for it needs none.
    pub fn join(&mut self, key: &K, at: &N, now_ms: u64) -> Actions<K, N> {
        let mut actions = Vec::new();
        let is_ready = |number: &u32| self.jobs.get(*number).is_some_and(|job| job.state == State::Ready);
        let is_there = |seat: &u32| self.seats.get(*seat).executor.is_some();
        let waiting = self.jobs.find(key).filter(is_ready);
        let Some((number, seat)) = waiting.zip(self.seats.find(at).filter(is_there)) else { return actions };
        self.start(number, Choice { seat, why: Vec::new() }, now_ms, &mut actions);
        self.settle(actions, now_ms)
    }

    /// The seats of a class that is new.
    pub(super) fn fill_class(&mut self, class: u32, now_ms: u64) {
        let requirement = &self.queues.class(class).requirement;
        let able: Vec<u32> = self
            .seats
            .members()
            .filter(|(_, _, executor)| lasting(executor, requirement).is_none())
            .map(|(seat, _, _)| seat)
            .collect();
        let open: Vec<u32> = able.iter().copied().filter(|&seat| self.seats.is_open(seat, now_ms)).collect();
        let class = self.queues.class_mut(class);
        class.able.extend(able);
        class.slots = self.seats.slots(&class.able);
        class.open.extend(open);
    }

    /// Notes whether a seat may take a job now.
    pub(super) fn refresh(&mut self, seat: u32, now_ms: u64) {
        let is_open = self.seats.is_open(seat, now_ms);
        for class in self.queues.classes_mut() {
            if is_open && class.able.contains(&seat) {
                class.open.insert(seat);
            } else {
                class.open.remove(&seat);
            }
        }
    }

    /// The outputs of `key`, of so many bytes, lie at a node: jobs of requests to come that need them are better placed there.
    pub fn learn(&mut self, key: &K, at: &N, bytes: u64) {
        if let Some(seat) = self.seats.find(at) {
            self.outputs.learn(key, bytes, seat);
        }
    }

    /// Where a job that waits for a place would go, or why each executor does not take it. None for one that is unknown,
    /// runs, or waits for others.
    pub fn placement(&self, key: &K, now_ms: u64) -> Option<Placement<N>> {
        let job = self.jobs.get(self.jobs.find(key)?).filter(|job| job.state == State::Ready)?;
        let held = self.outputs.held(&job.inputs);
        let candidates: Vec<_> =
            self.seats.members().filter_map(|(seat, _, _)| self.candidate(job, &held, seat)).collect();
        Some(place(self.ask(job), &candidates, now_ms))
    }

    /// All that could run a job, at once or later: those that nothing keeps from it first, the best of them before the
    /// others.
    pub fn able(&self, key: &K, now_ms: u64) -> Vec<N> {
        let Some(job) = self.jobs.find(key).and_then(|job| self.jobs.get(job)) else { return Vec::new() };
        let (ask, held) = (self.ask(job), self.outputs.held(&job.inputs));
        let able = self.queues.class(job.class).able.iter().filter_map(|seat| self.candidate(job, &held, *seat));
        let able = able.filter(|candidate| !candidate.executor.silent && never(ask, candidate).is_none());
        let is_kept = |candidate: &Candidate<'_, N>| passing(ask, candidate, true, now_ms).is_some();
        let mut able: Vec<_> =
            able.map(|candidate| (is_kept(&candidate), rank(&candidate), candidate.node.clone())).collect();
        able.sort_unstable();
        able.into_iter().map(|(_, _, node)| node).collect()
    }

    /// Jobs that must succeed before this one, and have not.
    pub fn waits_for(&self, key: &K) -> Vec<K> {
        let job = self.jobs.find(key).and_then(|job| self.jobs.get(job));
        let deps = job.into_iter().flat_map(|job| &job.waits_for);
        deps.filter_map(|dep| self.jobs.get(*dep)).map(|dep| dep.key.clone()).collect()
    }

    /// Where the job runs.
    pub fn runs_at(&self, key: &K) -> Option<&N> {
        let run = self.jobs.get(self.jobs.find(key)?)?.run()?;
        Some(&self.seats.get(run.seat).node)
    }

    /// Jobs that run or are being stopped.
    pub fn running(&self) -> usize {
        self.running
    }

    pub fn waiting(&self) -> usize {
        self.jobs.len() - self.running
    }

    /// Whether any request still wants this job.
    pub fn wants(&self, key: &K) -> bool {
        self.jobs.find(key).is_some_and(|job| self.is_wanted(job))
    }

    pub(super) fn is_wanted(&self, number: u32) -> bool {
        self.jobs.get(number).is_some_and(|job| !job.wanted_by.is_empty())
    }

    /// The requests that want this job: who is told of its log lines.
    pub fn wanted_by(&self, key: &K) -> impl Iterator<Item = RequestId> + '_ {
        let job: Option<&Job<K>> = self.jobs.find(key).and_then(|job| self.jobs.get(job));
        job.into_iter().flat_map(|job| job.wanted_by.iter().copied())
    }
}
