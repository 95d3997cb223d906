//! What the schedule could run if it had slots enough: now, and within some time.
//!
//! The time at which a waiting job could start follows from the estimates of those that it waits for, as if each started
//! as soon as it could. One pass forward from what runs and what is ready, which stops at the horizon: it costs no more
//! than a look at each job, and at the edges of those within.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::hash::Hash;

use shoal_wire::mesh::demand::{Amount, Demand, Kind, Work};

use super::Schedule;
use super::jobs::State;
use crate::can_run::Requirement;

/// Jobs within the horizon that are looked at; more of them are as good as these to say that much is wanted.
pub const DEMAND_JOBS_MAX: usize = 20_000;

/// Jobs and what they take in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    jobs: u32,
    ms: u64,
}

impl Sum {
    fn add(&mut self, estimate_ms: u64) {
        self.jobs = self.jobs.saturating_add(1);
        self.ms = self.ms.saturating_add(estimate_ms);
    }

    fn work(self) -> Work {
        Work { jobs: self.jobs, slot_s: self.ms.div_ceil(1_000) }
    }
}

/// What waits for slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// By what is asked of a machine; each comes once.
    pub kinds: Vec<(Requirement, Amount)>,
    /// Largest peak of memory that something ready is estimated to have, MiB.
    pub memory_mib: u64,
}

impl Wanted {
    pub fn demand(&self) -> Demand {
        let kind = |(asked, amount): &(Requirement, Amount)| Kind {
            system: asked.system.clone(),
            features: asked.features.clone(),
            amount: *amount,
        };
        Demand::new(self.kinds.iter().map(kind).collect())
    }
}

impl<K: Clone + Ord + Hash, N: Clone + Ord> Schedule<K, N> {
    /// What is ready, and what could start within `horizon_ms` from now.
    pub fn wanted(&self, horizon_ms: u64, now_ms: u64) -> Wanted {
        let mut sums: BTreeMap<u32, (Sum, Sum, u32)> = BTreeMap::new();
        let mut memory_mib = 0;
        // When jobs end that are to end within the horizon.
        let mut ends = BinaryHeap::new();
        for (number, job) in self.jobs.iter() {
            match job.state {
                State::Ready => {
                    let of_class = sums.entry(job.class).or_default();
                    // More slots are of no use to one that waits for an executor that has its inputs.
                    let sum = if job.is_patient(now_ms) { &mut of_class.1 } else { &mut of_class.0 };
                    sum.add(job.estimate_ms);
                    memory_mib = memory_mib.max(job.memory_mib);
                    ends.push(Reverse((job.estimate_ms, number)));
                }
                State::Running(run) => {
                    let ran_ms = now_ms.saturating_sub(run.since_ms);
                    // Of one that takes longer than was thought, nothing is known but that it takes long.
                    let left_ms = if ran_ms < job.estimate_ms { job.estimate_ms - ran_ms } else { ran_ms };
                    sums.entry(job.class).or_default().2 += u32::from(left_ms <= horizon_ms);
                    ends.push(Reverse((left_ms, number)));
                }
                State::Waiting | State::Stopping(_) => {}
            }
        }
        let mut inputs_left: HashMap<u32, usize> = HashMap::new();
        let mut seen = 0;
        while let Some(Reverse((end_ms, number))) = ends.pop() {
            if end_ms > horizon_ms || seen >= DEMAND_JOBS_MAX {
                break;
            }
            seen += 1;
            for &dependant in self.jobs.get(number).into_iter().flat_map(|job| &job.dependants) {
                let Some(job) = self.jobs.get(dependant).filter(|job| job.state == State::Waiting) else { continue };
                let left = inputs_left.entry(dependant).or_insert(job.waits_for.len());
                *left = left.saturating_sub(1);
                if *left == 0 {
                    sums.entry(job.class).or_default().1.add(job.estimate_ms);
                    ends.push(Reverse((end_ms.saturating_add(job.estimate_ms), dependant)));
                }
            }
        }
        let amount = |(class, (ready, coming, ending)): (u32, (Sum, Sum, u32))| {
            let amount = Amount { ready: ready.work(), coming: coming.work(), ending };
            (self.queues.class(class).requirement.clone(), amount)
        };
        Wanted { kinds: sums.into_iter().map(amount).collect(), memory_mib }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{End, Node, Terms};
    use super::*;
    use crate::can_run::Machine;
    use crate::placement::Executor;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Schedule = super::Schedule<u32, u8>;

    fn asked(features: &[&str]) -> Requirement {
        Requirement {
            system: "x86_64-linux".to_owned(),
            features: features.iter().map(|feature| feature.to_string()).collect(),
        }
    }

    fn node(key: u32, deps: &[u32], estimate_ms: u64, features: &[&str]) -> Node<u32> {
        Node {
            key,
            deps: deps.to_vec(),
            estimate_ms,
            has_estimate: false,
            requirement: asked(features),
            memory_mib: u64::from(key),
        }
    }

    /// On one executor without features.
    fn schedule(slots: u32, nodes: Vec<Node<u32>>) -> Schedule {
        let mut schedule = Schedule::new();
        let machine = Machine { systems: BTreeSet::from(["x86_64-linux".to_owned()]), features: BTreeSet::new() };
        let executor = Executor { machine, slots, active: true, ..Executor::default() };
        schedule.set_executors(BTreeMap::from([(0, executor)]), 0);
        let goals = nodes.iter().map(|node| node.key).collect();
        schedule.submit(nodes, goals, Terms { keep_going: true, ..Terms::default() }, 0);
        schedule
    }

    fn work(jobs: u32, slot_s: u64) -> Work {
        Work { jobs, slot_s }
    }

    #[test]
    fn what_is_ready_and_what_is_coming_by_kind() {
        // 1 runs for 30 s; then 2, which wants kvm, and then 3 at 50 s; 4 waits for a slot, 5 for 4.
        let nodes = vec![
            node(1, &[], 30_000, &[]),
            node(2, &[1], 20_000, &["kvm"]),
            node(3, &[2], 5_000, &[]),
            node(4, &[], 1_500, &[]),
            node(5, &[4], 7_000, &[]),
        ];
        let mut schedule = schedule(1, nodes);
        let of = |schedule: &Schedule, horizon_s: u64, now_ms| schedule.wanted(horizon_s * 1_000, now_ms);
        let wanted = of(&schedule, 40, 0);
        let plain = Amount { ready: work(1, 2), coming: work(1, 7), ending: 1 };
        let kvm = Amount { ready: Work::default(), coming: work(1, 20), ending: 0 };
        assert_eq!(wanted.kinds, [(asked(&[]), plain), (asked(&["kvm"]), kvm)]);
        assert_eq!(wanted.memory_mib, 4);
        // The longer chain comes within the horizon when time passes.
        assert_eq!(of(&schedule, 40, 10_000).demand().total().coming, work(3, 32));
        // One that takes longer than was thought holds back what waits for it.
        assert_eq!(of(&schedule, 40, 50_000).demand().total().coming, work(1, 7));
        schedule.ended(&1, &0, End::Success { output_bytes: 0 }, 50_000);
        let wanted = of(&schedule, 40, 50_000);
        assert_eq!(wanted.kinds[1].1.ready, work(1, 20), "which no executor can run");
    }

    proptest! {
        #[test]
        fn everything_that_waits_is_in_it_once_and_a_longer_horizon_shows_no_less(
            edges in prop::collection::vec(prop::collection::btree_set(0u32..30, 0..3), 1..30),
            estimates in prop::collection::vec(1u64..100_000, 30),
            slots in 1u32..5,
            horizon in 0u64..200_000,
        ) {
            let deps = |n: usize| edges[n].iter().copied().filter(|dep| (*dep as usize) < n).collect::<Vec<_>>();
            let nodes: Vec<_> = (0..edges.len()).map(|n| node(n as u32, &deps(n), estimates[n], &[])).collect();
            let schedule = schedule(slots, nodes);
            let jobs = |horizon| {
                let total = schedule.wanted(horizon, 0).demand().total();
                (total.ready.jobs, total.coming.jobs)
            };
            let (near, all) = (jobs(horizon), jobs(u64::MAX));
            prop_assert_eq!((all.0 + all.1) as usize, schedule.waiting());
            prop_assert!(near.0 == all.0 && near.1 <= all.1);
        }
    }
}
