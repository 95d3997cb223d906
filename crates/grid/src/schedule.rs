//! What one node builds next, for whom, and who is told when it ends.
//!
//! A *job* is one derivation. Clients' *requests* bring graphs of jobs; requests that want the same job share it.
//!
//! Invariants:
//! - a job runs at most once at a time, and only when all its dependencies have succeeded;
//! - never more than `slots` jobs run;
//! - among ready jobs the one with the longest chain of dependants above it starts first, older first among equals;
//! - each goal of a request is answered exactly once, and a request without open goals is forgotten;
//! - a job that no request wants any more is dropped, and stopped if it runs;
//! - a failure answers every goal above it; without keep-going it ends the whole request.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use crate::critical_path::longest_to_goal;

/// Names a client's request for as long as it is open.
pub type RequestId = u64;

/// One derivation of a submitted graph.
#[derive(Clone, Debug)]
pub struct Node<K> {
    pub key: K,
    /// Keys of nodes of the same graph that must succeed first.
    pub deps: Vec<K>,
    pub estimate_ms: u64,
}

/// What the node must do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<K> {
    Start(K),
    /// Nobody wants this running job any more. `finished` must still be called when it has ended.
    Stop(K),
    /// A goal of a request is settled.
    Answer {
        request: RequestId,
        key: K,
        answer: Answer<K>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<K> {
    Done,
    Failed,
    /// The named job failed, and the goal needs it, directly or not.
    DependencyFailed {
        failed: K,
    },
    /// The named job failed and the request did not ask to go on.
    Abandoned {
        failed: K,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Ready,
    Running,
    /// Told to stop; its slot is taken until it has.
    Stopping,
}

#[derive(Debug)]
struct Job<K> {
    state: State,
    waits_for: BTreeSet<K>,
    dependants: BTreeSet<K>,
    wanted_by: BTreeSet<RequestId>,
    /// Milliseconds of the longest chain of work from this job's start to a goal.
    longest_ms: u64,
    seq: u64,
}

#[derive(Debug)]
struct Request<K> {
    jobs: BTreeSet<K>,
    open_goals: BTreeSet<K>,
    keep_going: bool,
}

#[derive(Debug)]
pub struct Schedule<K> {
    slots: usize,
    running: usize,
    jobs: HashMap<K, Job<K>>,
    requests: BTreeMap<RequestId, Request<K>>,
    ready: BTreeSet<(Reverse<u64>, u64, K)>,
    next_seq: u64,
    next_request: RequestId,
}

impl<K: Clone + Ord + Hash> Schedule<K> {
    pub fn new(slots: usize) -> Self {
        Schedule {
            slots,
            running: 0,
            jobs: HashMap::new(),
            requests: BTreeMap::new(),
            ready: BTreeSet::new(),
            next_seq: 0,
            next_request: 1,
        }
    }

    pub fn set_slots(&mut self, slots: usize) -> Vec<Action<K>> {
        self.slots = slots;
        self.start_ready()
    }

    pub fn running(&self) -> usize {
        self.running
    }

    pub fn waiting(&self) -> usize {
        self.jobs.len() - self.running
    }

    /// Whether any request still wants this job.
    pub fn wants(&self, key: &K) -> bool {
        self.jobs.get(key).is_some_and(|job| !job.wanted_by.is_empty())
    }

    /// The requests that want this job: who is told of its log lines.
    pub fn wanted_by(&self, key: &K) -> impl Iterator<Item = RequestId> + '_ {
        self.jobs.get(key).into_iter().flat_map(|job| job.wanted_by.iter().copied())
    }

    /// Takes a graph. Goals must be among its nodes; dependencies that are not are taken as satisfied.
    pub fn submit(&mut self, nodes: Vec<Node<K>>, goals: BTreeSet<K>, keep_going: bool) -> (RequestId, Vec<Action<K>>) {
        let request = self.next_request;
        self.next_request += 1;
        let index: HashMap<&K, usize> = nodes.iter().enumerate().map(|(i, node)| (&node.key, i)).collect();
        let deps: Vec<Vec<usize>> =
            nodes.iter().map(|node| node.deps.iter().filter_map(|dep| index.get(dep).copied()).collect()).collect();
        let estimates: Vec<u64> = nodes.iter().map(|node| node.estimate_ms).collect();
        let longest = longest_to_goal(&deps, &estimates);
        let open_goals: BTreeSet<K> = goals.into_iter().filter(|goal| index.contains_key(goal)).collect();
        if open_goals.is_empty() {
            return (request, Vec::new());
        }
        let fresh: Vec<bool> = nodes.iter().zip(&longest).map(|(node, &ms)| self.add_job(&node.key, ms)).collect();
        for (i, node) in nodes.iter().enumerate().filter(|&(i, _)| fresh[i]) {
            for &dep in &deps[i] {
                self.add_edge(&node.key, &nodes[dep].key);
            }
        }
        let jobs = self.add_interest(request, &open_goals);
        self.requests.insert(request, Request { jobs, open_goals, keep_going });
        for node in &nodes {
            if self.wants(&node.key) { self.make_ready(&node.key) } else { self.drop_waiting(&node.key) }
        }
        (request, self.start_ready())
    }

    /// Makes the job if there is none, else lets it weigh at least `longest_ms`. True if it was made.
    fn add_job(&mut self, key: &K, longest_ms: u64) -> bool {
        if let Some(job) = self.jobs.get_mut(key) {
            if longest_ms > job.longest_ms {
                if self.ready.remove(&(Reverse(job.longest_ms), job.seq, key.clone())) {
                    self.ready.insert((Reverse(longest_ms), job.seq, key.clone()));
                }
                job.longest_ms = longest_ms;
            }
            return false;
        }
        self.next_seq += 1;
        let job = Job {
            state: State::Waiting,
            waits_for: BTreeSet::new(),
            dependants: BTreeSet::new(),
            wanted_by: BTreeSet::new(),
            longest_ms,
            seq: self.next_seq,
        };
        self.jobs.insert(key.clone(), job);
        true
    }

    fn add_edge(&mut self, key: &K, dep: &K) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.waits_for.insert(dep.clone());
        }
        if let Some(dep) = self.jobs.get_mut(dep) {
            dep.dependants.insert(key.clone());
        }
    }

    /// Marks all that the goals wait for, directly or not, as wanted; returns it. A shared job may wait for jobs that
    /// this request's own graph did not name.
    fn add_interest(&mut self, request: RequestId, goals: &BTreeSet<K>) -> BTreeSet<K> {
        let mut wanted = BTreeSet::new();
        let mut open: Vec<K> = goals.iter().cloned().collect();
        while let Some(key) = open.pop() {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            if job.wanted_by.insert(request) {
                open.extend(job.waits_for.iter().cloned());
                wanted.insert(key);
            }
        }
        wanted
    }

    /// Tells that a started job has ended: with success, or not (also when it was stopped).
    pub fn finished(&mut self, key: &K, success: bool) -> Vec<Action<K>> {
        let Some(state) = self.jobs.get(key).map(|job| job.state) else { return Vec::new() };
        if !matches!(state, State::Running | State::Stopping) {
            return Vec::new();
        }
        self.running -= 1;
        let mut actions = Vec::new();
        if success {
            self.succeed(key, &mut actions);
        } else if state == State::Stopping && self.wants(key) {
            // Wanted again while it was being stopped: that end says nothing about the derivation.
            self.set_state(key, State::Waiting);
            self.make_ready(key);
        } else {
            self.fail(key, &mut actions);
        }
        actions.extend(self.start_ready());
        actions
    }

    /// The client of a request is gone.
    pub fn cancel(&mut self, request: RequestId) -> Vec<Action<K>> {
        let mut actions = Vec::new();
        self.drop_request(request, &mut actions);
        actions.extend(self.start_ready());
        actions
    }

    fn succeed(&mut self, key: &K, actions: &mut Vec<Action<K>>) {
        let Some(job) = self.jobs.remove(key) else { return };
        for dependant in &job.dependants {
            if let Some(dependant) = self.jobs.get_mut(dependant) {
                dependant.waits_for.remove(key);
            }
            self.make_ready(dependant);
        }
        for request in job.wanted_by {
            self.answer(request, key, Answer::Done, actions);
        }
    }

    fn fail(&mut self, key: &K, actions: &mut Vec<Action<K>>) {
        let mut doomed = vec![key.clone()];
        let mut seen = BTreeSet::from([key.clone()]);
        let mut hit: BTreeSet<RequestId> = BTreeSet::new();
        while let Some(next) = doomed.pop() {
            let Some(job) = self.jobs.remove(&next) else { continue };
            self.ready.remove(&(Reverse(job.longest_ms), job.seq, next.clone()));
            self.forget_edges(&next, &job);
            hit.extend(&job.wanted_by);
            doomed.extend(job.dependants.iter().filter(|dependant| seen.insert((*dependant).clone())).cloned());
            for request in job.wanted_by {
                let answer =
                    if next == *key { Answer::Failed } else { Answer::DependencyFailed { failed: key.clone() } };
                self.answer(request, &next, answer, actions);
            }
        }
        for request in hit {
            let Some(open) = self.requests.get(&request) else { continue };
            if !open.keep_going {
                for goal in open.open_goals.clone() {
                    self.answer(request, &goal, Answer::Abandoned { failed: key.clone() }, actions);
                }
            }
        }
    }

    /// Settles a goal, if `key` is an open one of this request.
    fn answer(&mut self, request: RequestId, key: &K, answer: Answer<K>, actions: &mut Vec<Action<K>>) {
        let Some(open) = self.requests.get_mut(&request) else { return };
        if open.open_goals.remove(key) {
            actions.push(Action::Answer { request, key: key.clone(), answer });
        }
        if open.open_goals.is_empty() {
            self.drop_request(request, actions);
        }
    }

    fn drop_request(&mut self, request: RequestId, actions: &mut Vec<Action<K>>) {
        let Some(dropped) = self.requests.remove(&request) else { return };
        for key in dropped.jobs {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            job.wanted_by.remove(&request);
            if !job.wanted_by.is_empty() {
                continue;
            }
            match job.state {
                State::Running => {
                    job.state = State::Stopping;
                    actions.push(Action::Stop(key));
                }
                State::Stopping => {}
                State::Waiting | State::Ready => self.drop_waiting(&key),
            }
        }
    }

    /// Removes a job that is not running and that nobody wants.
    fn drop_waiting(&mut self, key: &K) {
        if !self.jobs.get(key).is_some_and(|job| matches!(job.state, State::Waiting | State::Ready)) {
            return;
        }
        if let Some(job) = self.jobs.remove(key) {
            self.ready.remove(&(Reverse(job.longest_ms), job.seq, key.clone()));
            self.forget_edges(key, &job);
        }
    }

    fn forget_edges(&mut self, key: &K, job: &Job<K>) {
        for dep in &job.waits_for {
            if let Some(dep) = self.jobs.get_mut(dep) {
                dep.dependants.remove(key);
            }
        }
    }

    fn set_state(&mut self, key: &K, state: State) {
        if let Some(job) = self.jobs.get_mut(key) {
            job.state = state;
        }
    }

    fn make_ready(&mut self, key: &K) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        if job.state == State::Waiting && job.waits_for.is_empty() {
            job.state = State::Ready;
            self.ready.insert((Reverse(job.longest_ms), job.seq, key.clone()));
        }
    }

    fn start_ready(&mut self) -> Vec<Action<K>> {
        let mut actions = Vec::new();
        while self.running < self.slots {
            let Some((_, _, key)) = self.ready.pop_first() else { break };
            self.running += 1;
            self.set_state(&key, State::Running);
            actions.push(Action::Start(key));
        }
        actions
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
