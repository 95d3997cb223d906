//! What the schedule costs its node: processor time for each derivation, and memory for a graph.
//!
//! `cargo bench -p shoal-grid --bench schedule`. The bars: 100 us a derivation, and 150,000 nodes taken in within 2 s
//! and 1 GiB.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_grid::can_run::{Machine, Requirement};
use shoal_grid::placement::Executor;
use shoal_grid::random::Random;
use shoal_grid::schedule::{Action, End, Node, Schedule, Terms};

const SYSTEMS: [&str; 2] = ["x86_64-linux", "i686-linux"];
/// As in a real package graph: edges for each node, and how far back most of them lead.
const EDGES: u64 = 16;
const NEAR: u64 = 2_000;
const OUTPUT_BYTES: u64 = 16 << 20;

fn executors(count: u32, slots: u32) -> BTreeMap<u32, Executor> {
    let machine = Machine { systems: SYSTEMS.map(String::from).into(), ..Machine::default() };
    let executor = Executor { machine, slots, active: true, ..Executor::default() };
    (0..count).map(|node| (node, executor.clone())).collect()
}

/// Keys are as long as store paths.
fn graph(nodes: u64, random: &mut Random) -> Vec<Node<String>> {
    let key = |n: u64| format!("{n:032}-a-package-with-a-name-1.2.3.drv");
    let mut node = |n: u64| {
        let count = random.below(2 * EDGES + 1).min(n);
        let deps: BTreeSet<u64> = (0..count).map(|_| n - 1 - random.below(n.min(NEAR))).collect();
        let system = SYSTEMS[usize::from(random.chance(30))].to_owned();
        Node {
            key: key(n),
            deps: deps.into_iter().map(key).collect(),
            estimate_ms: random.below(60_000),
            has_estimate: true,
            requirement: Requirement { system, ..Requirement::default() },
            memory_mib: 500,
        }
    };
    (0..nodes).map(&mut node).collect()
}

/// Processor time of this thread: other work on the machine does not count.
fn used() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn measure(nodes: u64, members: u32, slots: u32) {
    let mut random = Random::new(nodes);
    let mut schedule: Schedule<String, u32> = Schedule::new();
    schedule.set_executors(executors(members, slots), 0);
    let graph = graph(nodes, &mut random);
    let goals: BTreeSet<String> = graph.iter().map(|node| node.key.clone()).collect();
    let before_mib = resident_mib();
    let began = used();
    let (_, actions) = schedule.submit(graph, goals, Terms { keep_going: true, ..Terms::default() }, 0);
    let taken_in = used() - began;
    let mib = resident_mib().saturating_sub(before_mib);
    let mut running: Vec<(String, u32)> = Vec::new();
    let mut answers = 0;
    let mut see = |actions: Vec<Action<String, u32>>, running: &mut Vec<(String, u32)>| {
        for action in actions {
            match action {
                Action::Start { key, at } => running.push((key, at)),
                Action::Answer { .. } => answers += 1,
                // Nobody looks for what is late here.
                Action::Second { .. } | Action::Stop { .. } | Action::Nowhere { .. } => {}
            }
        }
    };
    see(actions, &mut running);
    let began = used();
    while !running.is_empty() {
        let (key, at) = running.swap_remove(random.below(running.len() as u64) as usize);
        see(schedule.ended(&key, &at, End::Success { output_bytes: random.below(OUTPUT_BYTES) }, 0), &mut running);
    }
    let run = used() - began;
    assert_eq!(answers, nodes, "all is answered");
    let each_us = (taken_in + run).as_micros() as f64 / nodes as f64;
    println!(
        "{nodes:>7} nodes, {members:>4} executors of {slots:>2}: taken in within {:>5} ms, {mib:>4} MiB more than before, \
         {each_us:>5.1} us a derivation in all",
        taken_in.as_millis()
    );
}

fn main() {
    for (members, slots) in [(1, 8), (64, 8), (1_000, 8)] {
        measure(10_000, members, slots);
    }
    measure(150_000, 64, 8);
}
