//! Graphs to build: what needs what, how long each takes, and what that must take at least.

use shoal_grid::critical_path::longest_to_goal;
use shoal_grid::random::Random;
use std::collections::BTreeSet;

/// Durations are log-normal, as those of real package sets are: half are over within this, and few take long.
const DURATION_MS_MEDIAN: f64 = 5_000.0;
const DURATION_SIGMA: f64 = 1.5;
/// Longest: beyond it, one build alone is the makespan.
const DURATION_MS_MAX: u64 = 20 * 60_000;
/// How far estimates from history are off.
const ESTIMATE_SIGMA: f64 = 0.3;

/// What a derivation is to the simulator. Its key is its place in the graph.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// Lesser keys.
    pub deps: Vec<u32>,
    pub system: String,
    pub duration_ms: u64,
    pub estimate_ms: u64,
    pub memory_mib: u64,
    pub output_bytes: u64,
    /// Its builder fails, always.
    pub is_broken: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub tasks: Vec<Task>,
}

impl Graph {
    /// Gives each task, by its dependencies and system, what it takes.
    pub fn drawn(shape: impl IntoIterator<Item = (Vec<u32>, String)>, random: &mut Random) -> Self {
        let task = |(deps, system)| {
            let duration_ms = (DURATION_MS_MEDIAN * (DURATION_SIGMA * normal(random)).exp()) as u64;
            let duration_ms = duration_ms.clamp(1, DURATION_MS_MAX);
            Task {
                deps,
                system,
                duration_ms,
                estimate_ms: (duration_ms as f64 * (ESTIMATE_SIGMA * normal(random)).exp()) as u64,
                memory_mib: 100 + random.below(2_000),
                output_bytes: random.below(64 << 20),
                is_broken: false,
            }
        };
        Graph { tasks: shape.into_iter().map(task).collect() }
    }

    /// Some hundred tasks on some levels.
    pub fn random(random: &mut Random) -> Self {
        let most = [20, 100, 400][random.below(3) as usize];
        let count = 1 + random.below(most);
        let edges = 1 + random.below(6);
        let near = 1 + random.below(count);
        let mut shape = Vec::new();
        for key in 0..count {
            let of = random.below(edges + 1).min(key);
            let deps: BTreeSet<u64> = (0..of).map(|_| key - 1 - random.below(near.min(key))).collect();
            let system = if random.chance(80) { "x86_64-linux" } else { "i686-linux" };
            shape.push((deps.into_iter().map(|dep| dep as u32).collect(), system.to_owned()));
        }
        let mut graph = Graph::drawn(shape, random);
        graph.tasks.iter_mut().for_each(|task| task.is_broken = random.chance(2));
        graph
    }

    /// All that `goals` need, themselves among it.
    pub fn closure(&self, goals: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut closure = BTreeSet::new();
        let mut open: Vec<u32> = goals.iter().copied().collect();
        while let Some(key) = open.pop() {
            if closure.insert(key) {
                open.extend(&self.tasks[key as usize].deps);
            }
        }
        closure
    }

    /// What is new when some have changed: they, and all that needs them, but for `is_fixed` outputs.
    pub fn renewed(&self, changed: &BTreeSet<u32>, is_fixed: impl Fn(u32) -> bool) -> BTreeSet<u32> {
        let mut renewed = changed.clone();
        for (key, task) in (0..).zip(&self.tasks).filter(|(key, _)| !is_fixed(*key)) {
            if task.deps.iter().any(|dep| renewed.contains(dep)) {
                renewed.insert(key);
            }
        }
        renewed
    }

    /// What it must take on so many slots, where each task takes its duration and `extra_ms` of it, and `idle_ms` of the
    /// slots' time is lost: the longest chain, or all work on all slots.
    pub fn bound_ms(&self, slots: u64, extra_ms: impl Fn(u32) -> u64, idle_ms: u64) -> u64 {
        let deps: Vec<Vec<usize>> =
            self.tasks.iter().map(|task| task.deps.iter().map(|dep| *dep as usize).collect()).collect();
        let took_ms: Vec<u64> = (0..).zip(&self.tasks).map(|(key, task)| task.duration_ms + extra_ms(key)).collect();
        let longest_ms = longest_to_goal(&deps, &took_ms).into_iter().max().unwrap_or(0);
        longest_ms.max((took_ms.iter().sum::<u64>() + idle_ms) / slots)
    }
}

/// A draw from the standard normal distribution, by Box and Muller.
fn normal(random: &mut Random) -> f64 {
    let mut unit = || (random.word() >> 11) as f64 / (1u64 << 53) as f64;
    let (radius, angle) = ((1.0 - unit()).ln(), unit());
    (-2.0 * radius).sqrt() * (angle * std::f64::consts::TAU).cos()
}
