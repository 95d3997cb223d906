//! Which outputs lie where, and what moves between executors because of where jobs are placed. Copies that are made for
//! safety are left out: they are the same wherever a job runs.

use super::graph::Graph;
use super::machine::MachineId;
use shoal_grid::critical_path::longest_to_goal;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

#[derive(Clone, Debug, Default)]
pub struct Traffic {
    has: BTreeMap<MachineId, BTreeSet<u32>>,
    pub moved_bytes: u64,
    /// How often each output moved.
    pub moves: BTreeMap<u32, u32>,
}

impl Traffic {
    /// A job begins: what it needs and its executor lacks comes there, and stays.
    pub fn begins(&mut self, graph: &Graph, key: u32, at: MachineId) {
        let has = self.has.entry(at).or_default();
        for dep in &graph.tasks[key as usize].deps {
            if has.insert(*dep) {
                *self.moves.entry(*dep).or_default() += 1;
                self.moved_bytes += graph.tasks[*dep as usize].output_bytes;
            }
        }
    }

    pub fn built(&mut self, key: u32, at: MachineId) {
        self.has.entry(at).or_default().insert(key);
    }

    /// Who has what of which `stays` says that it is the same in the next run; nothing has moved yet.
    pub fn warm(&self, stays: impl Fn(u32) -> bool) -> Traffic {
        let kept = |has: &BTreeSet<u32>| has.iter().copied().filter(|key| stays(*key)).collect();
        Traffic { has: self.has.iter().map(|(at, has)| (*at, kept(has))).collect(), ..Traffic::default() }
    }

    /// Bytes that moved of those outputs.
    pub fn moved_of(&self, graph: &Graph, is_one: impl Fn(u32) -> bool) -> u64 {
        let moves = self.moves.iter().filter(|(key, _)| is_one(**key));
        moves.map(|(key, times)| graph.tasks[*key as usize].output_bytes * u64::from(*times)).sum()
    }

    pub fn holders(&self, key: u32) -> impl Iterator<Item = MachineId> + '_ {
        self.has.iter().filter(move |(_, has)| has.contains(&key)).map(|(at, _)| *at)
    }

    /// Builds what `is_done` does not hold of a graph by critical path, each job on the first of `count` executors that has a
    /// free one of `slots`: what moves where nobody looks at it, and how long it takes.
    pub fn first_fit(&mut self, graph: &Graph, is_done: impl Fn(u32) -> bool, count: u32, slots: u32) -> u64 {
        let deps: Vec<Vec<usize>> =
            graph.tasks.iter().map(|task| task.deps.iter().map(|dep| *dep as usize).collect()).collect();
        let durations: Vec<u64> = graph.tasks.iter().map(|task| task.estimate_ms).collect();
        let longest = longest_to_goal(&deps, &durations);
        let mut dependants: Vec<Vec<u32>> = vec![Vec::new(); graph.tasks.len()];
        let mut open: Vec<usize> = vec![0; graph.tasks.len()];
        let mut ready = BTreeSet::new();
        for (key, task) in (0u32..).zip(&graph.tasks).filter(|(key, _)| !is_done(*key)) {
            for dep in task.deps.iter().filter(|dep| !is_done(**dep)) {
                dependants[*dep as usize].push(key);
                open[key as usize] += 1;
            }
            if open[key as usize] == 0 {
                ready.insert((Reverse(longest[key as usize]), key));
            }
        }
        let mut free: Vec<u32> = vec![slots; count as usize];
        let (mut running, mut now_ms) = (BinaryHeap::new(), 0);
        loop {
            while let Some(at) = free.iter().position(|slots| *slots > 0) {
                let Some((_, key)) = ready.pop_first() else { break };
                free[at] -= 1;
                self.begins(graph, key, at as MachineId);
                running.push(Reverse((now_ms + graph.tasks[key as usize].duration_ms, key, at)));
            }
            let Some(Reverse((ms, key, at))) = running.pop() else { return now_ms };
            (now_ms, free[at]) = (ms, free[at] + 1);
            self.built(key, at as MachineId);
            for dependant in &dependants[key as usize] {
                open[*dependant as usize] -= 1;
                if open[*dependant as usize] == 0 {
                    ready.insert((Reverse(longest[*dependant as usize]), *dependant));
                }
            }
        }
    }
}
