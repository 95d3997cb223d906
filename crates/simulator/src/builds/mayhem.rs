//! Random scenarios: requests on random graphs, and one fault after the other; then executors behave, and all must end.

use super::graph::Graph;
use super::machine::{Builder, MachineId};
use super::{Builds, Chances};
use shoal_grid::random::Random;
use shoal_grid::schedule::{Priority, Terms};
use std::collections::BTreeSet;

/// Time after the last fault in which every request must end.
pub const END_MS: u64 = 12 * 3_600_000;

/// Runs the scenario of a seed. The error says what did not hold, and begins with the seed.
pub fn run(seed: u64) -> Result<(), String> {
    scenario(seed).map_err(|what| format!("SHOAL_SEED={seed}: {what}"))
}

fn scenario(seed: u64) -> Result<(), String> {
    let mut random = Random::new(!seed);
    let graph = Graph::random(&mut random);
    let tasks = graph.tasks.len() as u64;
    let most = [3, 12][random.below(2) as usize];
    let count = 1 + random.below(most) as usize;
    let mut machines: Vec<Builder> = (0..count).map(|_| Builder::new(1 + random.below(8) as u32)).collect();
    for machine in machines.iter_mut().skip(1).filter(|_| random.chance(30)) {
        machine.systems.truncate(1);
    }
    let mut builds = Builds::new(graph, machines, seed)?;
    builds.delay_ms_max = [5, 200, 3_000][random.below(3) as usize];
    let percent = |random: &mut Random| [0, 2, 10][random.below(3) as usize];
    builds.chances =
        Chances { refused: percent(&mut random), lost: percent(&mut random), out_of_memory: percent(&mut random) };
    for _ in 0..10 + random.below(40) {
        step(&mut builds, &mut random, tasks)?;
        let ms = builds.now_ms() + random.below(20_000);
        builds.run_until(ms)?;
    }
    heal(&mut builds);
    builds.run_to_end(END_MS)
}

fn step(builds: &mut Builds, random: &mut Random, tasks: u64) -> Result<(), String> {
    let machine = random.below(builds.machines.len() as u64) as MachineId;
    let now_ms = builds.now_ms();
    let known = &mut builds.machines[machine as usize];
    match random.below(10) {
        0..3 => {
            let goals: BTreeSet<u32> = (0..1 + random.below(4)).map(|_| random.below(tasks) as u32).collect();
            let priority = if random.chance(70) { Priority::Interactive } else { Priority::Detached };
            builds.submit(&goals, Terms { keep_going: random.chance(50), priority })?;
        }
        3 => {
            let open: Vec<u64> = builds.watch.open.keys().copied().collect();
            if let Some(request) = random.pick(&open) {
                builds.cancel(*request)?;
            }
        }
        4 => builds.crash(machine, random.chance(50)),
        5 => {
            builds.crash(machine, random.chance(50));
            builds.restart(machine);
        }
        6 => (0..builds.machines.len() as MachineId).for_each(|machine| builds.restart(machine)),
        7 => known.silent_until_ms = now_ms + random.below(30_000),
        8 if random.chance(30) => known.slowness = [1, 10][random.below(2) as usize],
        8 => known.foreign = random.below(u64::from(known.slots) + 1) as u32,
        _ => known.lie = random.chance(70).then(|| random.below(10) as u32),
    }
    Ok(())
}

/// All run, take what they are offered and tell no lies, but for one that keeps saying that it is full.
fn heal(builds: &mut Builds) {
    builds.chances = Chances::default();
    for machine in 0..builds.machines.len() as MachineId {
        let known = &mut builds.machines[machine as usize];
        known.slowness = 1;
        (known.foreign, known.lie) = (0, (machine == 0).then_some(u32::MAX));
        builds.restart(machine);
    }
}
