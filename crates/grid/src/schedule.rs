//! What is built next, where, for whom, and who is told when it ends.
//!
//! A *job* is one derivation. Clients' *requests* bring graphs of jobs; requests that want the same job share it.
//! *Executors* are the nodes that jobs are placed on, this one among them.
//!
//! Invariants:
//! - a job runs at most once at a time, unless its executor is gone or is late with it ([`seconds`]), and only when all
//!   its dependencies have succeeded;
//! - never are more jobs of this coordinator at an executor than it has slots, unless it has told of fewer since, or builds
//!   them for others already ([`Schedule::join`]);
//! - where a job runs, and why it waits, is [`placement`](crate::placement)'s to say;
//! - requests of higher priority come first, then those with fewer jobs running: a small request is not behind a large one;
//! - within a request the job with the longest chain of dependants above it starts first, older first among equals, but
//!   those that have time go where their inputs are, and let others pass until then ([`pick`]);
//! - a job that nobody can take keeps only as many behind it as are looked at in one go, [`LOOK_AHEAD`];
//! - a job that is lost is placed again, elsewhere while another can run it, at most [`TRIES_MAX`] times in all; one that
//!   dies for want of memory so too, with twice as much, but never where it would have no more than it died with;
//! - a job that others cannot be asked for is for one executor alone, and for nobody if that one builds nothing;
//! - each goal of a request is answered exactly once, and a request without open goals is forgotten;
//! - a job that no request wants any more is dropped, and stopped if it runs;
//! - a failure answers every goal above it; without keep-going it ends the whole request.
//!
//! An event costs the logarithm of what is known, and a look at the executors that are free.

mod answers;
mod choosy;
mod demand;
mod explain;
mod jobs;
mod members;
mod memory;
mod outputs;
mod pick;
mod queues;
mod seats;
mod seconds;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use crate::can_run::Requirement;
use crate::critical_path::longest_to_goal;
use crate::placement::{Ask, Candidate, Refused, Tried};
use crate::ring::NodeId;
pub use demand::{DEMAND_JOBS_MAX, Wanted};
use explain::Choice;
pub use explain::{BEFORE_MAX, Explanation, INPUTS_NAMED_MAX, WHY_MAX};
use jobs::{Job, Jobs, Run, State};
use outputs::{Held, Outputs};
pub use pick::WAIT_MS_MAX;
use queues::{Queues, Turn};
use seats::Seats;
pub use seats::{LOAD_BELIEVED_MS, REFUSAL_BELIEVED_MS, REFUSAL_MS_MIN};
pub use seconds::{LATE_FACTOR, LATE_MS_MIN, SECONDS_MAX};

/// Starts of one job before it is given up: several nodes that die under it are no accident.
pub const TRIES_MAX: u32 = 5;

/// Ready jobs of one kind that are looked at for a free executor, in one event. Jobs of one kind differ in what they
/// need of memory and in where they were tried, and that seldom.
pub const LOOK_AHEAD: usize = 32;

/// How long an executor that lost a job, or did not take this one, is not asked for it again; twice as long each time.
pub const RETRY_DELAY_MS: u64 = 1_000;

/// How long an executor that refused one job is not asked for that job again.
pub const REFUSED_JOB_MS: u64 = 10_000;

/// Names a client's request for as long as it is open.
pub type RequestId = u64;

/// Which requests come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Its client has gone, or said that it does not wait.
    Detached,
}

/// How a request is to be treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Build what can be built after a failure.
    pub keep_going: bool,
    pub priority: Priority,
}

/// One derivation of a submitted graph.
#[derive(Clone, Debug, Default)]
pub struct Node<K> {
    pub key: K,
    /// Keys of nodes of the same graph that must succeed first, and of others whose outputs it needs.
    pub deps: Vec<K>,
    pub estimate_ms: u64,
    /// The estimate is from what others of its name took, and it may be run twice at once.
    pub has_estimate: bool,
    pub requirement: Requirement,
    /// Estimated peak; 0 where nothing is known.
    pub memory_mib: u64,
}

/// What the coordinator must do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<K, N = NodeId> {
    /// Have it built there. [`Schedule::ended`] must be called when it has ended, however it did.
    Start { key: K, at: N },
    /// Have it built there too, while it runs elsewhere; else as [`Action::Start`].
    Second { key: K, at: N },
    /// Nobody wants this job to run there any more. [`Schedule::ended`] must still be called when it has ended.
    Stop { key: K, at: N },
    /// Ready, and no present executor will ever run it; [`Schedule::placement`] says why. It waits for others to come, or
    /// for [`Schedule::give_up`].
    Nowhere { key: K },
    /// A goal of a request is settled.
    Answer { request: RequestId, key: K, answer: Answer<K> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<K> {
    Done,
    Failed,
    /// Lost as often as it may be.
    GivenUp {
        tries: u32,
    },
    /// The named job failed, and the goal needs it, directly or not.
    DependencyFailed {
        failed: K,
    },
    /// The named job failed and the request did not ask to go on.
    Abandoned {
        failed: K,
    },
}

/// How a job that was started has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Its outputs, of so many bytes, are where it ran.
    Success { output_bytes: u64 },
    /// For good: it says something of the derivation.
    Failed,
    /// It says nothing of the derivation: the executor died, its link broke, its disk is full.
    Lost,
    /// Killed for want of memory, of which it had used so much.
    OutOfMemory { used_mib: u64 },
    /// The executor did not take it. With a time, which is the schedule's and not the executor's clock, it takes no job at
    /// all before that.
    Refused { text: String, full_until_ms: Option<u64> },
}

#[derive(Debug)]
struct Request {
    jobs: BTreeSet<u32>,
    open_goals: BTreeSet<u32>,
    terms: Terms,
    running: u32,
    /// When the longest chain above each job that runs ends, by estimates, and the job.
    ends: BTreeSet<(u64, u32)>,
}

#[derive(Debug)]
pub struct Schedule<K, N = NodeId> {
    running: usize,
    jobs: Jobs<K>,
    outputs: Outputs<K>,
    seats: Seats<N>,
    queues: Queues,
    requests: BTreeMap<RequestId, Request>,
    /// Jobs that not everybody who is fit for them can run; few.
    choosy: BTreeSet<u32>,
    /// Jobs that have a second copy.
    seconds: BTreeSet<u32>,
    next_seq: u64,
    next_request: RequestId,
}

type Actions<K, N> = Vec<Action<K, N>>;

impl<K: Clone + Ord + Hash, N: Clone + Ord> Default for Schedule<K, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    /// Without executors.
    pub fn new() -> Self {
        Schedule {
            running: 0,
            jobs: Jobs::new(),
            outputs: Outputs::new(),
            seats: Seats::new(),
            queues: Queues::default(),
            requests: BTreeMap::new(),
            choosy: BTreeSet::new(),
            seconds: BTreeSet::new(),
            next_seq: 0,
            next_request: 1,
        }
    }

    /// Takes a graph. Goals must be among its nodes; dependencies that are not are taken as satisfied, and lie where they
    /// are known to.
    pub fn submit(
        &mut self,
        nodes: Vec<Node<K>>,
        goals: BTreeSet<K>,
        terms: Terms,
        now_ms: u64,
    ) -> (RequestId, Actions<K, N>) {
        let request = self.next_request;
        self.next_request += 1;
        let index: HashMap<&K, usize> = nodes.iter().enumerate().map(|(i, node)| (&node.key, i)).collect();
        let mut deps: Vec<Vec<usize>> = Vec::with_capacity(nodes.len());
        let mut outside: Vec<Vec<u32>> = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let (mut inside, mut known) = (Vec::new(), Vec::new());
            for dep in &node.deps {
                match index.get(dep) {
                    Some(dep) => inside.push(*dep),
                    None => known.extend(self.outputs.find(dep)),
                }
            }
            deps.push(inside);
            outside.push(known);
        }
        let estimates: Vec<u64> = nodes.iter().map(|node| node.estimate_ms).collect();
        let longest = longest_to_goal(&deps, &estimates);
        let goals: Vec<usize> = goals.iter().filter_map(|goal| index.get(goal).copied()).collect();
        let mut actions = Vec::new();
        if goals.is_empty() {
            return (request, self.settle(actions, now_ms));
        }
        drop(index);
        let added: Vec<(u32, bool)> =
            nodes.into_iter().zip(longest).map(|(node, ms)| self.add_job(node, ms, now_ms)).collect();
        for ((deps, outside), (job, _)) in deps.iter().zip(&outside).zip(&added).filter(|(_, (_, is_fresh))| *is_fresh)
        {
            self.jobs.add_edges(*job, deps.iter().map(|&dep| added[dep].0).collect());
            outside.iter().for_each(|output| self.add_input(*job, *output));
        }
        let open_goals: BTreeSet<u32> = goals.into_iter().map(|goal| added[goal].0).collect();
        self.add_request(request, open_goals, terms);
        for (job, _) in added {
            if self.is_wanted(job) { self.make_ready(job, &mut actions) } else { self.drop_waiting(job) }
        }
        (request, self.settle(actions, now_ms))
    }

    /// Makes the job if there is none, else lets it weigh at least `longest_ms`. True if it was made.
    fn add_job(&mut self, node: Node<K>, longest_ms: u64, now_ms: u64) -> (u32, bool) {
        if let Some(number) = self.jobs.find(&node.key) {
            if self.jobs.get(number).is_some_and(|job| job.longest_ms < longest_ms) {
                let is_ready = self.leave_queue(number);
                if let Some(job) = self.jobs.get_mut(number) {
                    job.longest_ms = longest_ms;
                }
                if is_ready {
                    self.enter_queue(number);
                }
            }
            return (number, false);
        }
        self.next_seq += 1;
        let (class, is_new) = self.queues.enter(&node.requirement);
        if is_new {
            self.fill_class(class, now_ms);
        }
        let job = Job::new(node.key, class, node.estimate_ms, longest_ms, node.memory_mib, self.next_seq);
        (self.jobs.add(Job { has_estimate: node.has_estimate, ..job }), true)
    }

    /// Marks all that the goals wait for, directly or not, as wanted. A shared job may wait for jobs that this request's
    /// own graph did not name.
    fn add_request(&mut self, request: RequestId, open_goals: BTreeSet<u32>, terms: Terms) {
        let mut open: Vec<u32> = open_goals.iter().copied().collect();
        let mut jobs = Vec::new();
        let mut places = Vec::new();
        let mut running = 0;
        let mut ends = BTreeSet::new();
        while let Some(number) = open.pop() {
            let Some(job) = self.jobs.get_mut(number) else { continue };
            if !job.want(request) {
                continue;
            }
            open.extend(job.waits_for.iter().copied());
            jobs.push(number);
            match job.state {
                State::Running(run) => {
                    running += 1;
                    ends.insert((run.ends_ms, number));
                }
                State::Ready => places.push((job.class, job.place(number))),
                State::Waiting | State::Stopping(_) => {}
            }
        }
        for (class, place) in places {
            self.queues.class_mut(class).push((terms.priority, running, request), place);
        }
        let jobs = jobs.into_iter().collect();
        self.requests.insert(request, Request { jobs, open_goals, terms, running, ends });
    }

    /// Tells that a started job has ended at `at`. What comes of an executor that was given up in the meantime counts
    /// when it is a success: the job ends, and where it was started again, elsewhere, it is stopped. Else it is ignored.
    /// Where it was started again at the same executor, the caller tells the two apart: it reports no bad end of the
    /// earlier start, and withdraws the later one when the earlier succeeds. A second copy is told apart by where it was.
    pub fn ended(&mut self, key: &K, at: &N, end: End, now_ms: u64) -> Actions<K, N> {
        let mut actions = Vec::new();
        if let (Some(number), Some(seat)) = (self.jobs.find(key), self.seats.find(at)) {
            let run = self.jobs.get(number).and_then(Job::run);
            match end {
                End::Success { output_bytes } => self.succeed(number, seat, output_bytes, now_ms, &mut actions),
                _ if self.is_second(number, seat) => drop(self.leave_second(number, now_ms)),
                end if run.is_some_and(|run| run.seat == seat) => {
                    self.ended_badly(number, seat, end, now_ms, &mut actions);
                }
                _ => {}
            }
        }
        self.settle(actions, now_ms)
    }

    /// The client of a request is gone.
    pub fn cancel(&mut self, request: RequestId, now_ms: u64) -> Actions<K, N> {
        let mut actions = Vec::new();
        self.drop_request(request, &mut actions);
        self.settle(actions, now_ms)
    }

    /// Fails a job that does not run, as one that no executor can run.
    pub fn give_up(&mut self, key: &K, now_ms: u64) -> Actions<K, N> {
        let mut actions = Vec::new();
        if let Some(number) =
            self.jobs.find(key).filter(|job| self.jobs.get(*job).is_some_and(|job| job.run().is_none()))
        {
            self.fail(number, Answer::Failed, &mut actions);
        }
        self.settle(actions, now_ms)
    }

    /// Time has passed: see [`Schedule::next_tick_ms`].
    pub fn tick(&mut self, now_ms: u64) -> Actions<K, N> {
        self.settle(Vec::new(), now_ms)
    }

    /// When something that waits may start though nothing else happens.
    pub fn next_tick_ms(&self) -> Option<u64> {
        self.seats.next_wake_ms()
    }

    fn ended_badly(&mut self, number: u32, seat: u32, end: End, now_ms: u64, actions: &mut Actions<K, N>) {
        let is_stopping = self.jobs.get(number).is_some_and(|job| matches!(job.state, State::Stopping(_)));
        if matches!(end, End::Failed | End::OutOfMemory { .. }) {
            self.seats.forgive(seat);
        }
        self.leave_seat(number, now_ms);
        if end != End::Lost {
            self.stop_second(number, now_ms, actions);
        }
        if is_stopping {
            // That end says nothing about the derivation, which may be wanted again.
            if self.is_wanted(number) {
                self.make_ready(number, actions)
            } else {
                self.drop_waiting(number)
            }
            return;
        }
        match end {
            End::Success { .. } => {}
            End::Failed => self.fail(number, Answer::Failed, actions),
            End::Lost => self.lose(number, seat, now_ms, actions),
            End::OutOfMemory { used_mib } => self.starve(number, used_mib, actions),
            End::Refused { text, full_until_ms: Some(until_ms) } => {
                self.call_back(number, seat);
                self.seats.refuse(seat, Refused { text, until_ms }, now_ms);
                self.refresh(seat, now_ms);
                self.make_ready(number, actions);
            }
            End::Refused { text, full_until_ms: None } => {
                self.call_back(number, seat);
                let until_ms = now_ms.saturating_add(REFUSED_JOB_MS);
                self.note(number, seat, Tried::Refused(Refused { text, until_ms }), until_ms);
                self.make_ready(number, actions);
            }
        }
    }

    /// The executor says nothing of the derivation, or nothing at all.
    fn lose(&mut self, number: u32, seat: u32, now_ms: u64, actions: &mut Actions<K, N>) {
        let losses = self.jobs.get(number).map_or(0, |job| job.losses);
        let until_ms = now_ms.saturating_add(RETRY_DELAY_MS << losses.min(TRIES_MAX));
        self.note(number, seat, Tried::Failed { until_ms }, until_ms);
        if !self.promote_second(number) {
            self.try_again(number, actions);
        }
    }

    fn try_again(&mut self, number: u32, actions: &mut Actions<K, N>) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        job.losses += 1;
        match job.losses {
            tries if tries >= TRIES_MAX => self.fail(number, Answer::GivenUp { tries }, actions),
            _ => self.make_ready(number, actions),
        }
    }

    fn note(&mut self, number: u32, seat: u32, tried: Tried, until_ms: u64) {
        if let Some(job) = self.jobs.get_mut(number) {
            job.note(seat, tried);
        }
        self.seats.wake_at(until_ms);
    }

    fn make_ready(&mut self, number: u32, actions: &mut Actions<K, N>) {
        let is_ready = |job: &&mut Job<K>| job.state == State::Waiting && job.waits_for.is_empty();
        let Some(job) = self.jobs.get_mut(number).filter(is_ready) else { return };
        job.state = State::Ready;
        if let Some(job) = self.jobs.get(number).filter(|job| !self.has_place(job, job.exceeded_mib)) {
            actions.push(Action::Nowhere { key: job.key.clone() });
        }
        self.enter_queue(number);
    }

    /// A job that has not begun needs an output that is there.
    fn add_input(&mut self, number: u32, output: u32) {
        if let Some(job) = self.jobs.get_mut(number) {
            job.inputs.push(output);
            self.outputs.enter(output);
        }
    }

    /// It did not begin at the executor that it was placed on, so nothing came there for it.
    fn call_back(&mut self, number: u32, seat: u32) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        std::mem::take(&mut job.fetched).into_iter().for_each(|output| self.outputs.stay_away(output, seat));
    }

    fn turn(&self, request: RequestId) -> Option<Turn> {
        self.requests.get(&request).map(|open| (open.terms.priority, open.running, request))
    }

    fn enter_queue(&mut self, number: u32) {
        let Some(job) = self.jobs.get(number) else { return };
        for turn in job.wanted_by.iter().filter_map(|request| self.turn(*request)).collect::<Vec<_>>() {
            self.queues.class_mut(job.class).push(turn, job.place(number));
        }
    }

    /// True if it was ready.
    fn leave_queue(&mut self, number: u32) -> bool {
        let Some(job) = self.jobs.get(number).filter(|job| job.state == State::Ready) else { return false };
        for turn in job.wanted_by.iter().filter_map(|request| self.turn(*request)).collect::<Vec<_>>() {
            self.queues.class_mut(job.class).remove(turn, job.place(number));
        }
        true
    }

    fn start(&mut self, number: u32, choice: Choice, now_ms: u64, actions: &mut Actions<K, N>) {
        self.leave_queue(number);
        let Some(job) = self.jobs.get_mut(number) else { return };
        let Choice { seat, why } = choice;
        job.why = why;
        job.waits_since_ms = None;
        job.fetched = job.inputs.iter().copied().filter(|input| self.outputs.come(*input, seat)).collect();
        let told = self.seats.take(seat, number, job.memory_mib);
        let run = Run {
            seat,
            told,
            memory_mib: job.memory_mib,
            since_ms: now_ms,
            ends_ms: now_ms.saturating_add(job.longest_ms),
        };
        job.state = State::Running(run);
        actions.push(Action::Start { key: job.key.clone(), at: self.seats.get(seat).node.clone() });
        self.running += 1;
        self.count_running(number, run, 1);
        self.refresh(seat, now_ms);
    }

    /// The job is not at its executor any more, and waits.
    fn leave_seat(&mut self, number: u32, now_ms: u64) {
        let Some(job) = self.jobs.get_mut(number) else { return };
        let Some(run) = job.run() else { return };
        let is_counted = matches!(job.state, State::Running(_));
        job.state = State::Waiting;
        job.why = Vec::new();
        self.seats.leave(run.seat, number, run.memory_mib, run.told);
        self.running -= 1;
        if is_counted {
            self.count_running(number, run, -1);
        }
        self.refresh(run.seat, now_ms);
    }

    fn count_running(&mut self, number: u32, run: Run, change: i32) {
        let Some(job) = self.jobs.get(number) else { return };
        for request in &job.wanted_by {
            let Some(open) = self.requests.get_mut(request) else { continue };
            let before = (open.terms.priority, open.running, *request);
            open.running = open.running.saturating_add_signed(change);
            match change > 0 {
                true => open.ends.insert((run.ends_ms, number)),
                false => open.ends.remove(&(run.ends_ms, number)),
            };
            self.queues.turn_changed(before, (open.terms.priority, open.running, *request));
        }
    }

    /// The last step of each event: what can start does.
    fn settle(&mut self, mut actions: Actions<K, N>, now_ms: u64) -> Actions<K, N> {
        for number in self.idle_seconds() {
            self.stop_second(number, now_ms, &mut actions);
        }
        for seat in self.seats.due(now_ms) {
            self.refresh(seat, now_ms);
        }
        let mut passed = BTreeSet::new();
        loop {
            let open =
                self.queues.classes().filter(|(number, class)| !class.open.is_empty() && !passed.contains(number));
            let Some((_, class)) = open.filter_map(|(number, class)| Some((class.first()?, number))).min() else {
                break;
            };
            match self.pick(class, now_ms) {
                Some((number, choice)) => self.start(number, choice, now_ms, &mut actions),
                None => drop(passed.insert(class)),
            }
        }
        if self.jobs.len() == 0 {
            let stay = self.seats.forget_gone();
            if let Some(seats) = stay {
                self.outputs.renumber(&seats);
            }
        }
        actions
    }

    fn ask<'a>(&'a self, job: &Job<K>) -> Ask<'a> {
        let requirement = &self.queues.class(job.class).requirement;
        Ask { requirement, memory_mib: job.memory_mib, exceeded_mib: job.exceeded_mib }
    }

    /// `held` is what the seats have of the job's inputs.
    fn candidate<'a>(&'a self, job: &'a Job<K>, held: &Held, seat: u32) -> Option<Candidate<'a, N>> {
        let known = self.seats.get(seat);
        Some(Candidate {
            node: &known.node,
            executor: known.executor.as_ref()?,
            standing: &known.standing,
            missing_bytes: held.missing_bytes(seat),
            tried: job.tried(seat),
            out_of_reach: job.out_of_reach(seat),
        })
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
