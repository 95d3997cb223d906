//! What must hold of each action of a schedule, whatever happened.

use super::graph::Graph;
use super::machine::MachineId;
use shoal_grid::schedule::{Answer, RequestId, TRIES_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// What an observer of a coordinator knows.
#[derive(Debug, Default)]
pub struct Watch {
    pub succeeded: BTreeSet<u32>,
    pub failed: BTreeSet<u32>,
    /// Where each job runs, as far as the coordinator can know.
    pub running: BTreeMap<u32, MachineId>,
    /// The same of second copies.
    pub seconds: BTreeMap<u32, MachineId>,
    /// Starts that were not refused, of jobs that have not ended.
    tries: BTreeMap<u32, u32>,
    stopping: BTreeSet<u32>,
    pub open: BTreeMap<RequestId, BTreeSet<u32>>,
    /// When each job was last started.
    pub started_ms: BTreeMap<u32, u64>,
    /// When the last goal was answered.
    pub ended_ms: u64,
}

impl Watch {
    pub fn start(&mut self, graph: &Graph, key: u32, at: MachineId, slots: u32, now_ms: u64) -> Result<(), String> {
        if let Some(other) = self.running.insert(key, at) {
            return Err(format!("{key} starts at {at} while it runs at {other}"));
        }
        let needs = graph.tasks[key as usize].deps.iter().find(|dep| !self.succeeded.contains(dep));
        if let Some(dep) = needs {
            return Err(format!("{key} starts before {dep} has succeeded"));
        }
        self.count(at, slots)?;
        self.stopping.remove(&key);
        let tries = self.tries.entry(key).or_default();
        *tries += 1;
        if *tries > TRIES_MAX {
            return Err(format!("{key} is tried {tries} times"));
        }
        self.started_ms.insert(key, now_ms);
        Ok(())
    }

    pub fn second(&mut self, key: u32, at: MachineId, slots: u32) -> Result<(), String> {
        if self.running.get(&key).is_none_or(|first| *first == at) {
            return Err(format!("a second copy of {key} starts at {at}, where the first is, or there is none"));
        }
        if let Some(other) = self.seconds.insert(key, at) {
            return Err(format!("a third copy of {key} starts at {at}, beside one at {other}"));
        }
        self.count(at, slots)
    }

    /// The second copy is the one that counts from now on.
    pub fn promoted(&mut self, key: u32) {
        if let Some(at) = self.seconds.remove(&key) {
            self.running.insert(key, at);
        }
    }

    fn count(&self, at: MachineId, slots: u32) -> Result<(), String> {
        let there = self.running.values().chain(self.seconds.values()).filter(|node| **node == at).count();
        if there > slots as usize {
            return Err(format!("{there} jobs at {at}, which has {slots} slots"));
        }
        Ok(())
    }

    /// It was not taken, which is no try.
    pub fn refused(&mut self, key: u32) {
        if !self.stopping.contains(&key) {
            self.untried(key);
        }
    }

    /// It is told to stop: whatever comes of it is no try.
    pub fn stopped(&mut self, key: u32) {
        if self.stopping.insert(key) {
            self.untried(key);
        }
    }

    fn untried(&mut self, key: u32) {
        if let Some(tries) = self.tries.get_mut(&key) {
            *tries = tries.saturating_sub(1);
        }
    }

    pub fn succeeded(&mut self, key: u32) {
        self.succeeded.insert(key);
        self.tries.remove(&key);
    }

    /// A job that is dropped and then wanted again is another one.
    pub fn forget_unwanted(&mut self, is_wanted: impl Fn(&u32) -> bool) {
        self.tries.retain(|key, _| is_wanted(key));
    }

    pub fn answer(&mut self, request: RequestId, key: u32, answer: &Answer<u32>, now_ms: u64) -> Result<(), String> {
        let Some(goals) = self.open.get_mut(&request) else { return Err(format!("{request} is answered when closed")) };
        if !goals.remove(&key) {
            return Err(format!("{request} is answered twice for {key}"));
        }
        if goals.is_empty() {
            self.open.remove(&request);
        }
        self.ended_ms = now_ms;
        let is_true = match answer {
            Answer::Done => self.succeeded.contains(&key),
            Answer::Failed => self.failed.contains(&key),
            Answer::GivenUp { tries } => *tries == TRIES_MAX,
            Answer::DependencyFailed { failed } | Answer::Abandoned { failed } => !self.succeeded.contains(failed),
        };
        if is_true { Ok(()) } else { Err(format!("{request} hears {answer:?} of {key}, which is not so")) }
    }
}
