//! How jobs end, and who is told.

use std::collections::BTreeSet;
use std::hash::Hash;

use super::jobs::{Job, State};
use super::{Action, Actions, Answer, RequestId, Schedule};

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    /// Its outputs are at `seat`, where it ran, or had run until that was given up.
    pub(super) fn succeed(
        &mut self,
        number: u32,
        seat: u32,
        output_bytes: u64,
        now_ms: u64,
        actions: &mut Actions<K, N>,
    ) {
        self.seats.forgive(seat);
        if self.jobs.get(number).and_then(Job::run).is_some_and(|run| run.seat == seat) {
            self.leave_seat(number, now_ms);
        }
        match self.is_second(number, seat) {
            true => drop(self.leave_second(number, now_ms)),
            false => self.stop_second(number, now_ms, actions),
        }
        self.leave_queue(number);
        let Some(job) = self.jobs.get_mut(number) else { return };
        let (key, dependants) = (job.key.clone(), std::mem::take(&mut job.dependants));
        let wanted_by = job.wanted_by.clone();
        let output = self.outputs.built(&key, output_bytes, seat);
        for dependant in dependants {
            if let Some(dependant) = self.jobs.get_mut(dependant) {
                dependant.waits_for.remove(&number);
            }
            self.add_input(dependant, output);
            self.make_ready(dependant, actions);
        }
        for &request in &wanted_by {
            self.answer(request, number, &key, Answer::Done, actions);
        }
        self.release(number, &wanted_by, actions);
    }

    /// Nobody wants a job any more that has ended. Where it has been started again, that is stopped.
    fn release(&mut self, number: u32, wanted_by: &[RequestId], actions: &mut Actions<K, N>) {
        if let Some(job) = self.jobs.get(number)
            && let State::Running(run) = job.state
            && !job.wanted_by.is_empty()
        {
            self.count_running(number, run, -1);
        }
        for request in wanted_by {
            if let Some(open) = self.requests.get_mut(request) {
                open.jobs.remove(&number);
            }
        }
        let Some(job) = self.jobs.get_mut(number) else { return };
        job.wanted_by.clear();
        match job.state {
            State::Running(run) => {
                job.state = State::Stopping(run);
                actions.push(Action::Stop { key: job.key.clone(), at: self.seats.get(run.seat).node.clone() });
            }
            State::Stopping(_) => {}
            State::Waiting | State::Ready => drop(self.forget(number)),
        }
    }

    /// Fails the job, which is not running, and all that need it.
    pub(super) fn fail(&mut self, number: u32, answer: Answer<K>, actions: &mut Actions<K, N>) {
        let Some(failed) = self.jobs.get(number).map(|job| job.key.clone()) else { return };
        let mut doomed = vec![number];
        let mut seen = BTreeSet::from([number]);
        let mut hit: BTreeSet<RequestId> = BTreeSet::new();
        while let Some(next) = doomed.pop() {
            self.leave_queue(next);
            let Some(job) = self.forget(next) else { continue };
            hit.extend(&job.wanted_by);
            doomed.extend(job.dependants.iter().filter(|dependant| seen.insert(**dependant)));
            for request in job.wanted_by {
                if let Some(open) = self.requests.get_mut(&request) {
                    open.jobs.remove(&next);
                }
                let answer = match next == number {
                    true => answer.clone(),
                    false => Answer::DependencyFailed { failed: failed.clone() },
                };
                self.answer(request, next, &job.key, answer, actions);
            }
        }
        for request in hit {
            let Some(open) = self.requests.get(&request).filter(|open| !open.terms.keep_going) else { continue };
            for goal in open.open_goals.clone() {
                let Some(key) = self.jobs.get(goal).map(|job| job.key.clone()) else { continue };
                self.answer(request, goal, &key, Answer::Abandoned { failed: failed.clone() }, actions);
            }
        }
    }

    /// Settles a goal, if the job is an open one of this request.
    fn answer(&mut self, request: RequestId, number: u32, key: &K, answer: Answer<K>, actions: &mut Actions<K, N>) {
        let Some(open) = self.requests.get_mut(&request) else { return };
        if open.open_goals.remove(&number) {
            actions.push(Action::Answer { request, key: key.clone(), answer });
        }
        if open.open_goals.is_empty() {
            self.drop_request(request, actions);
        }
    }

    pub(super) fn drop_request(&mut self, request: RequestId, actions: &mut Actions<K, N>) {
        let Some(turn) = self.turn(request) else { return };
        let Some(dropped) = self.requests.remove(&request) else { return };
        for number in dropped.jobs {
            let Some(job) = self.jobs.get_mut(number) else { continue };
            job.leave(request);
            if job.state == State::Ready {
                self.queues.class_mut(job.class).remove(turn, job.place(number));
            }
            if !job.wanted_by.is_empty() {
                continue;
            }
            match job.state {
                State::Running(run) => {
                    job.state = State::Stopping(run);
                    actions.push(Action::Stop { key: job.key.clone(), at: self.seats.get(run.seat).node.clone() });
                }
                State::Stopping(_) => {}
                State::Waiting | State::Ready => self.drop_waiting(number),
            }
        }
    }

    /// Removes a job that is not running and that nobody wants.
    pub(super) fn drop_waiting(&mut self, number: u32) {
        if self.jobs.get(number).is_some_and(|job| job.run().is_none()) {
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u32) -> Option<Job<K>> {
        let job = self.jobs.remove(number)?;
        self.choosy.remove(&number);
        job.inputs.iter().for_each(|output| self.outputs.leave(*output));
        self.queues.exit(job.class);
        Some(job)
    }
}
