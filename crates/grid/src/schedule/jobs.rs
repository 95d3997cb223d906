//! The jobs of a schedule and what waits for what. Numbers stand for keys, which are kept once beside them.
//!
//! Invariant: `waits_for` and `dependants` mirror each other, and name jobs that exist.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::RequestId;
use super::queues::Place;
use crate::placement::{Tried, Verdict};
use std::cmp::Reverse;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Ready,
    Running(Run),
    /// Told to stop; its place is taken until it has.
    Stopping(Run),
}

/// Where a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub seat: u32,
    /// Of [`super::seats::Seats::take`].
    pub told: u32,
    pub memory_mib: u64,
    pub since_ms: u64,
    /// When the longest chain above it ends, by estimates.
    pub ends_ms: u64,
}

#[derive(Debug)]
pub(super) struct Job<K> {
    pub key: K,
    pub state: State,
    pub class: u32,
    /// Times it was started and lost.
    pub losses: u32,
    pub memory_mib: u64,
    /// What it had when it died for want of memory, the most of all times.
    pub exceeded_mib: u64,
    /// The only seat that it may have, and why.
    pub confined: Option<(u32, String)>,
    /// What it is estimated to take.
    pub estimate_ms: u64,
    /// By what others of its name took.
    pub has_estimate: bool,
    /// A second copy of it beside the run that counts.
    pub second: Option<Run>,
    /// It has one, or had.
    pub had_second: bool,
    /// Milliseconds of the longest chain of work from this job's start to a goal.
    pub longest_ms: u64,
    pub seq: u64,
    pub waits_for: BTreeSet<u32>,
    pub dependants: BTreeSet<u32>,
    /// Sorted; seldom more than one.
    pub wanted_by: Vec<RequestId>,
    /// What it needs and somebody has, as far as it is known where.
    pub inputs: Vec<u32>,
    /// Those of them that came where it runs for it.
    pub fetched: Vec<u32>,
    /// When it first waited for an executor that has its inputs, though it could have run elsewhere.
    pub waits_since_ms: Option<u64>,
    pub waits_until_ms: u64,
    /// What came of placing it, by seat.
    pub tried: Vec<(u32, Tried)>,
    /// How the seats stood when it was started; of one that runs.
    pub why: Vec<(u32, Verdict)>,
}

impl<K> Job<K> {
    pub fn new(key: K, class: u32, estimate_ms: u64, longest_ms: u64, memory_mib: u64, seq: u64) -> Self {
        Job {
            key,
            state: State::Waiting,
            class,
            losses: 0,
            memory_mib,
            exceeded_mib: 0,
            confined: None,
            estimate_ms,
            has_estimate: false,
            second: None,
            had_second: false,
            longest_ms,
            seq,
            waits_for: BTreeSet::new(),
            dependants: BTreeSet::new(),
            wanted_by: Vec::new(),
            inputs: Vec::new(),
            fetched: Vec::new(),
            waits_since_ms: None,
            waits_until_ms: 0,
            tried: Vec::new(),
            why: Vec::new(),
        }
    }

    pub fn place(&self, number: u32) -> Place {
        (Reverse(self.longest_ms), self.seq, number)
    }

    pub fn run(&self) -> Option<Run> {
        match self.state {
            State::Running(run) | State::Stopping(run) => Some(run),
            State::Waiting | State::Ready => None,
        }
    }

    /// True if that is news.
    pub fn want(&mut self, request: RequestId) -> bool {
        match self.wanted_by.binary_search(&request) {
            Ok(_) => false,
            Err(at) => {
                self.wanted_by.insert(at, request);
                true
            }
        }
    }

    pub fn leave(&mut self, request: RequestId) {
        if let Ok(at) = self.wanted_by.binary_search(&request) {
            self.wanted_by.remove(at);
        }
    }

    /// Waits for an executor that has its inputs, though others are free.
    pub fn is_patient(&self, now_ms: u64) -> bool {
        self.waits_since_ms.is_some() && self.waits_until_ms > now_ms
    }

    pub fn tried(&self, seat: u32) -> Option<&Tried> {
        self.tried.iter().find(|(at, _)| *at == seat).map(|(_, tried)| tried)
    }

    /// Why it can never run there, whatever is there.
    pub fn out_of_reach(&self, seat: u32) -> Option<&str> {
        self.confined.as_ref().filter(|(to, _)| *to != seat).map(|(_, why)| why.as_str())
    }

    /// A refusal does not hide that it failed there.
    pub fn note(&mut self, seat: u32, tried: Tried) {
        let (failed_there, refused) = (matches!(self.tried(seat), Some(Tried::Failed { .. })), &tried);
        let tried = match refused {
            Tried::Refused(refused) if failed_there => Tried::Failed { until_ms: refused.until_ms },
            _ => tried,
        };
        self.tried.retain(|(at, _)| *at != seat);
        self.tried.push((seat, tried));
    }
}

#[derive(Debug)]
pub(super) struct Jobs<K> {
    jobs: Vec<Option<Job<K>>>,
    by_key: HashMap<K, u32>,
    spare: Vec<u32>,
    work_ms: u64,
}

impl<K: Clone + Hash + Eq> Jobs<K> {
    pub fn new() -> Self {
        Jobs { jobs: Vec::new(), by_key: HashMap::new(), spare: Vec::new(), work_ms: 0 }
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Of all of them, by estimates.
    pub fn work_ms(&self) -> u64 {
        self.work_ms
    }

    pub fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Job<K>)> {
        (0..).zip(&self.jobs).filter_map(|(number, job)| Some((number, job.as_ref()?)))
    }

    pub fn get(&self, job: u32) -> Option<&Job<K>> {
        self.jobs.get(job as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, job: u32) -> Option<&mut Job<K>> {
        self.jobs.get_mut(job as usize)?.as_mut()
    }

    pub fn add(&mut self, job: Job<K>) -> u32 {
        let number = match self.spare.pop() {
            Some(number) => number,
            None => {
                self.jobs.push(None);
                u32::try_from(self.jobs.len() - 1).expect("four billion jobs do not fit into memory")
            }
        };
        self.work_ms = self.work_ms.saturating_add(job.estimate_ms);
        self.by_key.insert(job.key.clone(), number);
        self.jobs[number as usize] = Some(job);
        number
    }

    /// Takes it out, and out of the edges of those that it waits for. Its dependants still name it.
    pub fn remove(&mut self, number: u32) -> Option<Job<K>> {
        let job = self.jobs.get_mut(number as usize)?.take()?;
        self.work_ms = self.work_ms.saturating_sub(job.estimate_ms);
        self.by_key.remove(&job.key);
        self.spare.push(number);
        for dep in &job.waits_for {
            if let Some(dep) = self.get_mut(*dep) {
                dep.dependants.remove(&number);
            }
        }
        if self.by_key.is_empty() {
            // What a large graph took is given back.
            *self = Jobs::new();
        }
        Some(job)
    }

    /// What a new job waits for. All are jobs.
    pub fn add_edges(&mut self, number: u32, deps: BTreeSet<u32>) {
        for dep in &deps {
            if let Some(dep) = self.get_mut(*dep) {
                dep.dependants.insert(number);
            }
        }
        if let Some(job) = self.get_mut(number) {
            job.waits_for = deps;
        }
    }
}
