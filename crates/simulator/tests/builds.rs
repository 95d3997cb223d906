//! What the schedule promises over many executors, in virtual time.

use shoal_grid::random::Random;
use shoal_grid::schedule::Terms;
use shoal_simulator::builds::graph::Graph;
use shoal_simulator::builds::machine::{Builder, MachineId};
use shoal_simulator::builds::traffic::Traffic;
use shoal_simulator::builds::{Builds, mayhem};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

const KEEP_GOING: Terms = Terms { keep_going: true, priority: shoal_grid::schedule::Priority::Interactive };
const DAY_MS: u64 = 24 * 3_600_000;

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match (number("SHOAL_SEED"), number("SHOAL_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(count),
    }
}

/// Random faults: `SHOAL_SEED=n` repeats one run, `SHOAL_SEEDS=n` makes n.
#[test]
fn no_job_is_lost_or_runs_twice_and_every_request_ends() {
    let failures: Vec<String> = seeds(500).filter_map(|seed| mayhem::run(seed).err()).take(5).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Columns of a real package graph, which lies outside the repository.
fn lines() -> Option<Vec<Vec<String>>> {
    let named = std::env::var_os("SHOAL_SHARED").map(PathBuf::from);
    let sibling = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join("shared"));
    let path =
        named.into_iter().chain(sibling).map(|dir| dir.join("corpus/dag-9k.tsv.gz")).find(|path| path.exists())?;
    let mut text = String::new();
    let file = std::fs::File::open(path).expect("the graph opens");
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("the graph is text");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Some(lines.map(|line| line.split('\t').map(String::from).collect()).collect())
}

/// What each derivation of it needs, and its system. Where it is missing, tests say so by name and pass.
fn corpus(test: &str) -> Option<Vec<(Vec<u32>, String)>> {
    let Some(lines) = lines() else {
        println!("skipped: {test}: no shared/corpus/dag-9k.tsv.gz");
        return None;
    };
    let inputs = |text: &str| text.split_whitespace().map(|input| input.parse().expect("an id")).collect();
    let shape: Vec<(Vec<u32>, String)> =
        lines.iter().map(|columns| (inputs(&columns[5]), columns[2].clone())).collect();
    assert!(shape.len() > 9_000);
    Some(shape)
}

/// Of each derivation of the real graph: fod, build or builtin.
fn kinds() -> Vec<String> {
    lines().into_iter().flatten().map(|columns| columns[3].clone()).collect()
}

fn machines(count: u32, slots: u32) -> Vec<Builder> {
    (0..count).map(|_| Builder::new(slots)).collect()
}

fn all(graph: &Graph) -> BTreeSet<u32> {
    (0..graph.tasks.len() as u32).collect()
}

#[test]
fn a_real_graph_takes_no_more_than_a_twentieth_above_what_it_must() {
    let Some(shape) = corpus("a_real_graph_takes_no_more_than_a_twentieth_above_what_it_must") else { return };
    for (seed, (count, slots)) in (0..).zip([(1, 8), (4, 8), (16, 4), (16, 8), (32, 8), (64, 8), (512, 1)]) {
        let graph = Graph::drawn(shape.clone(), &mut Random::new(seed));
        let bound_ms = graph.bound_ms(u64::from(count * slots), |_| 0, 0);
        let goals = all(&graph);
        let mut builds = Builds::new(graph, machines(count, slots), seed).unwrap();
        builds.submit(&goals, KEEP_GOING).unwrap();
        builds.run_to_end(30 * DAY_MS).unwrap();
        assert_eq!(builds.watch.succeeded, goals);
        let ratio = builds.now_ms() as f64 / bound_ms as f64;
        println!("{count} executors of {slots}: {:.0} s, {ratio:.3} of the bound", builds.now_ms() as f64 / 1e3);
        assert!(ratio <= 1.05, "seed {seed}, {count} executors of {slots} slots: {ratio} of the bound");
    }
}

#[test]
fn executors_that_die_each_minute_cost_a_tenth_and_the_work_that_they_lost() {
    let Some(shape) = corpus("executors_that_die_each_minute_cost_a_tenth_and_the_work_that_they_lost") else { return };
    for (seed, (count, slots)) in (0..).zip([(64, 1), (64, 2), (64, 8)]) {
        let graph = Graph::drawn(shape.clone(), &mut Random::new(seed));
        let goals = all(&graph);
        let mut builds = Builds::new(graph, machines(count, slots), seed).unwrap();
        builds.submit(&goals, KEEP_GOING).unwrap();
        for minute in 0..7 * DAY_MS / 60_000 {
            if builds.is_done() {
                break;
            }
            let victim = (minute % u64::from(count)) as MachineId;
            builds.crash(victim, minute % 2 == 0);
            builds.run_until(minute * 60_000 + 30_000).unwrap();
            builds.restart(victim);
            builds.run_until((minute + 1) * 60_000).unwrap();
        }
        assert!(builds.is_done(), "seed {seed}");
        assert_eq!(builds.watch.succeeded, goals, "seed {seed}: none is given up");
        let lost_ms: u64 = builds.lost_ms.values().sum();
        assert!(lost_ms > 0, "seed {seed}: nothing was lost");
        let extra_ms = |key: u32| builds.lost_ms.get(&key).copied().unwrap_or(0);
        let bound_ms = builds.graph.bound_ms(u64::from(count * slots), extra_ms, builds.down_ms);
        let took_ms = builds.watch.ended_ms;
        let ratio = took_ms as f64 / bound_ms as f64;
        println!(
            "{count} executors of {slots}: {} s, {ratio:.3} of the bound, {} s lost",
            took_ms / 1_000,
            lost_ms / 1_000
        );
        assert!(ratio <= 1.10, "seed {seed}, {count} executors of {slots} slots: {ratio} of the bound");
    }
}

#[test]
fn one_derivation_beside_five_thousand_starts_within_two_seconds() {
    for seed in seeds(20) {
        let mut random = Random::new(seed);
        let shape = (0..5_001u64).map(|key| {
            // The last one stands alone.
            let count = if key == 5_000 { 0 } else { random.below(3).min(key) };
            let deps: BTreeSet<u32> = (0..count).map(|_| random.below(key) as u32).collect();
            (deps.into_iter().collect(), "x86_64-linux".to_owned())
        });
        let shape: Vec<_> = shape.collect();
        let graph = Graph::drawn(shape, &mut Random::new(!seed));
        let mut builds = Builds::new(graph, machines(16, 8), seed).unwrap();
        builds.submit(&(0..5_000).collect(), KEEP_GOING).unwrap();
        builds.run_until(30_000).unwrap();
        let begun = builds.watch.started_ms.clone();
        builds.submit(&BTreeSet::from([5_000]), KEEP_GOING).unwrap();
        builds.run_until(32_000).unwrap();
        let started_ms = builds.watch.started_ms.get(&5_000).copied();
        let overtaken =
            builds.watch.started_ms.iter().filter(|(key, ms)| !begun.contains_key(key) && Some(**ms) < started_ms);
        assert!(started_ms.is_some(), "SHOAL_SEED={seed}: it waits");
        assert_eq!(overtaken.count(), 0, "SHOAL_SEED={seed}: others get what becomes free");
        assert!(builds.watch.succeeded.len() < 4_000, "SHOAL_SEED={seed}: the others are nearly done");
    }
}

/// What is new of a graph when it is built again.
enum Change {
    /// So many derivations that are no fixed outputs, and what needs them.
    Some(usize),
    /// So many of a hundred of these.
    Percent(u64),
    /// All but fixed outputs.
    All,
}

impl Change {
    fn renewed(&self, graph: &Graph, is_fixed: impl Fn(u32) -> bool, random: &mut Random) -> BTreeSet<u32> {
        let built: Vec<u32> = (0..graph.tasks.len() as u32).filter(|key| !is_fixed(*key)).collect();
        let changed: BTreeSet<u32> = match self {
            Change::Some(count) => (0..*count).filter_map(|_| random.pick(&built).copied()).collect(),
            Change::Percent(percent) => built.into_iter().filter(|_| random.chance(*percent)).collect(),
            Change::All => built.into_iter().collect(),
        };
        graph.renewed(&changed, is_fixed)
    }
}

const SETTINGS: [(&str, Change); 5] = [
    ("3 derivations", Change::Some(3)),
    ("1 %", Change::Percent(1)),
    ("5 %", Change::Percent(5)),
    ("20 %", Change::Percent(20)),
    ("all", Change::All),
];

/// Outputs that so many of the new derivations need come to nearly every executor, wherever jobs are placed.
const COMMON_USERS: usize = 100;

/// Both have built a graph before, and have what came to their executors then; first fit moved twice as much for it.
struct Warm {
    graph: Graph,
    seed: u64,
    count: u32,
    slots: u32,
    ours: Traffic,
    fit: Traffic,
}

impl Warm {
    fn new(graph: Graph, seed: u64, (count, slots): (u32, u32)) -> Warm {
        let mut first = Builds::new(graph.clone(), machines(count, slots), seed).unwrap();
        first.submit(&all(&graph), KEEP_GOING).unwrap();
        first.run_to_end(30 * DAY_MS).unwrap();
        let mut fit = Traffic::default();
        fit.first_fit(&graph, |_| false, count, slots);
        let moved = [first.traffic.moved_bytes, fit.moved_bytes];
        println!("{count} executors of {slots}, seed {seed}: first {}", beside(moved));
        Warm { graph, seed, count, slots, ours: first.traffic, fit }
    }

    /// Bytes that move when these are built again, and those that first fit moves.
    fn again(&self, what: &str, renewed: &BTreeSet<u32>) -> [u64; 2] {
        let stays = |key: u32| !renewed.contains(&key);
        let mut again = Builds::new(self.graph.clone(), machines(self.count, self.slots), self.seed).unwrap();
        again.traffic = self.ours.warm(stays);
        again.submit_warm(stays, KEEP_GOING).unwrap();
        again.run_to_end(30 * DAY_MS).unwrap();
        let mut fit = self.fit.warm(stays);
        let fit_ms = fit.first_fit(&self.graph, stays, self.count, self.slots);
        let mut users = vec![0; self.graph.tasks.len()];
        let needed = renewed.iter().flat_map(|key| &self.graph.tasks[*key as usize].deps);
        needed.for_each(|dep| users[*dep as usize] += 1);
        let moved = [again.traffic.moved_bytes, fit.moved_bytes];
        println!(
            "  {what} changed, {} new: {} (common {:.1}, there before {:.1}) in {} s, first fit in {} s",
            renewed.len(),
            beside(moved),
            gib(again.traffic.moved_of(&self.graph, |key| users[key as usize] >= COMMON_USERS)),
            gib(again.traffic.moved_of(&self.graph, stays)),
            again.now_ms() / 1_000,
            fit_ms / 1_000,
        );
        assert!(again.now_ms() as f64 <= fit_ms as f64 * 1.05, "seed {}, {what}: it takes longer", self.seed);
        moved
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

fn ratio([ours, fit]: [u64; 2]) -> f64 {
    ours as f64 / fit.max(1) as f64
}

fn beside(moved: [u64; 2]) -> String {
    format!("{:.1} GiB, first fit {:.1}: {:.2}", gib(moved[0]), gib(moved[1]), ratio(moved))
}

/// Some derivations change, and all that needs them is new; what is not lies where the first run brought it.
///
/// In each setting half as much moves as by first fit, over meshes of 3 to 64 executors. A single one may be a little above
/// that, and where three derivations change so little moves at all that a single output decides. What is common is the least that
/// could move: about a tenth of what does.
#[test]
fn what_moves_when_a_graph_is_built_again_is_half_of_what_first_fit_moves() {
    let name = "what_moves_when_a_graph_is_built_again_is_half_of_what_first_fit_moves";
    let Some(shape) = corpus(name) else { return };
    let kinds = kinds();
    let is_fixed = |key: u32| kinds[key as usize] == "fod";
    for seed in seeds(1) {
        let graph = Graph::drawn(shape.clone(), &mut Random::new(seed));
        let mut sums = [[0; 2]; SETTINGS.len()];
        for size in [(3, 2), (5, 8), (16, 8), (64, 8)] {
            let warm = Warm::new(graph.clone(), seed, size);
            for ((what, change), sum) in SETTINGS.iter().zip(&mut sums) {
                let moved = warm.again(what, &change.renewed(&graph, is_fixed, &mut Random::new(!seed)));
                assert!(matches!(change, Change::Some(_)) || ratio(moved) <= 0.6, "seed {seed}, {size:?}, {what}");
                *sum = [sum[0] + moved[0], sum[1] + moved[1]];
            }
        }
        for ((what, _), sum) in SETTINGS.iter().zip(sums) {
            println!("{what} changed, all sizes: {}", beside(sum));
            assert!(ratio(sum) <= 0.5, "seed {seed}, {what}: {:.3} of what first fit moves", ratio(sum));
        }
    }
}

/// The same seed is the same run.
#[test]
fn a_seed_is_one_run_of_builds() {
    let run = || {
        let graph = Graph::random(&mut Random::new(3));
        let goals = all(&graph);
        let mut builds = Builds::new(graph, machines(3, 2), 3).unwrap();
        builds.delay_ms_max = 100;
        builds.submit(&goals, KEEP_GOING).unwrap();
        builds.run_until(30_000).unwrap();
        builds.crash(1, false);
        builds.run_to_end(DAY_MS).unwrap();
        (builds.now_ms(), builds.watch.started_ms)
    };
    assert_eq!(run(), run());
}

/// One executor of eight takes twenty times as long for everything.
#[test]
fn a_slow_executor_holds_up_little_where_what_is_late_is_built_twice() {
    for seed in seeds(10) {
        let took_ms = |slowness: u64, seconds_late: bool| {
            let mut random = Random::new(seed);
            let shape = (0..200u64).map(|key| {
                let deps: BTreeSet<u64> = (0..random.below(3).min(key)).map(|_| random.below(key)).collect();
                (deps.into_iter().map(|dep| dep as u32).collect(), "x86_64-linux".to_owned())
            });
            let shape: Vec<_> = shape.collect();
            let graph = Graph::drawn(shape, &mut Random::new(!seed));
            let goals = all(&graph);
            let mut builds = Builds::new(graph, machines(8, 2), seed).unwrap();
            builds.machines[3].slowness = slowness;
            builds.seconds_late = seconds_late;
            builds.submit(&goals, KEEP_GOING).unwrap();
            builds.run_to_end(30 * DAY_MS).unwrap();
            assert_eq!(builds.watch.succeeded, goals, "SHOAL_SEED={seed}");
            builds.watch.ended_ms
        };
        let (fast_ms, slow_ms, seconded_ms) = (took_ms(1, true), took_ms(20, false), took_ms(20, true));
        println!("seed {seed}: {fast_ms} ms, with a slow executor {slow_ms}, with second copies {seconded_ms}");
        assert!(seconded_ms <= slow_ms, "SHOAL_SEED={seed}: {seconded_ms} ms, without second copies {slow_ms}");
        assert!(seconded_ms <= fast_ms * 4, "SHOAL_SEED={seed}: {seconded_ms} ms, without a slow executor {fast_ms}");
    }
}
