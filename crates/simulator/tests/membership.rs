//! What membership promises, in virtual time.

use shoal_grid::membership::Change;
use shoal_simulator::check::{agreement, excess, false_deaths};
use shoal_simulator::faults;
use shoal_simulator::simulation::{Seen, Simulation};
use shoal_wire::mesh::NodeKey;
use std::collections::BTreeSet;

const THOUSAND: usize = 1_000;
/// What a node may send.
const BYTES_A_S: u64 = 20_000;
const WITHIN_MS: u64 = 10_000;

/// Random faults, then healing: `SHOAL_SEED=n` repeats one run, `SHOAL_SEEDS=n` makes n.
#[test]
fn views_agree_after_any_faults() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match (number("SHOAL_SEED"), number("SHOAL_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(300),
    };
    let failures: Vec<String> = seeds.filter_map(|seed| faults::run(seed).err()).take(5).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The same seed is the same run, to the last byte.
#[test]
fn a_seed_is_one_run() {
    let run = || {
        let mut simulation = Simulation::new(12, 7);
        simulation.network.loss = 5;
        simulation.start_acquainted(0..12);
        simulation.run_for(5_000);
        simulation.crash(3);
        simulation.run_for(15_000);
        (simulation.seen, simulation.meters.iter().map(|meter| meter.sent_bytes).collect::<Vec<_>>())
    };
    let first = run();
    assert!(!first.0.is_empty());
    assert_eq!(first, run());
}

/// Keeps loads changing, so that every node publishes as often as it may.
fn run_busy(simulation: &mut Simulation, ms: u64) {
    for _ in 0..ms / 1_000 {
        for host in simulation.hosts.iter_mut() {
            if let Some(membership) = host.membership.as_mut() {
                membership.update(|record| record.load.queued = record.load.queued.wrapping_add(1) % 100);
            }
        }
        simulation.run_for(1_000);
    }
}

/// Who saw `change` since the time.
fn witnesses(simulation: &Simulation, change: Change, since_ms: u64) -> BTreeSet<usize> {
    let seen = simulation.seen.iter().filter(|(at, _, seen)| *at >= since_ms && *seen == Seen::Change(change));
    seen.map(|(_, host, _)| *host).collect()
}

fn sent(simulation: &Simulation) -> Vec<u64> {
    simulation.meters.iter().map(|meter| meter.sent_bytes).collect()
}

/// Most and mean bytes a second that the first `THOUSAND` nodes sent since `before`.
fn rates(simulation: &Simulation, before: &[u64], ms: u64) -> (u64, u64) {
    let rates = sent(simulation).into_iter().zip(before).map(|(now, before)| (now - before) * 1_000 / ms);
    let rates: Vec<u64> = rates.take(THOUSAND).collect();
    (rates.iter().copied().max().unwrap_or(0), rates.iter().sum::<u64>() / rates.len() as u64)
}

/// A thousand nodes at 5 % loss, all publishing as often as they may: the budget, a join, a death, and nobody else
/// dead.
#[test]
fn a_thousand_nodes_keep_the_bounds() {
    let mut simulation = Simulation::new(THOUSAND + 1, 1);
    simulation.network.loss = 5;
    simulation.network.delay_ms_max = 60;
    simulation.start_acquainted(0..THOUSAND);
    run_busy(&mut simulation, 20_000);
    let before = sent(&simulation);
    run_busy(&mut simulation, 20_000);
    let (most, mean) = rates(&simulation, &before, 20_000);
    println!("steady: at most {most} and on average {mean} bytes a second and node");
    assert!(most <= BYTES_A_S, "{most}");

    let joined_ms = simulation.now_ms();
    simulation.start(THOUSAND, &[17]);
    let newcomer: NodeKey = simulation.hosts[THOUSAND].node;
    let view = |simulation: &Simulation| {
        let membership = simulation.hosts[THOUSAND].membership.as_ref();
        membership.map_or(0, |membership| membership.view().live().len())
    };
    let (mut full_ms, mut known_ms) = (None, None);
    while simulation.now_ms() < joined_ms + WITHIN_MS {
        simulation.run_for(100);
        if view(&simulation) == THOUSAND + 1 {
            full_ms.get_or_insert(simulation.now_ms() - joined_ms);
        }
        if witnesses(&simulation, Change::Joined(newcomer), joined_ms).len() == THOUSAND {
            known_ms.get_or_insert(simulation.now_ms() - joined_ms);
        }
    }
    println!("join: a full view after {full_ms:?} ms, known to all after {known_ms:?} ms");
    assert!(full_ms.is_some(), "the newcomer knows {}", view(&simulation));
    assert!(known_ms.is_some());

    assert_eq!(false_deaths(&simulation, 0), []);
    let died_ms = simulation.now_ms();
    simulation.crash(500);
    let dead = simulation.hosts[500].node;
    let before = sent(&simulation);
    simulation.run_for(WITHIN_MS);
    let knowing = witnesses(&simulation, Change::Died(dead), died_ms).len();
    let at = |(at, _, seen): &(u64, usize, Seen)| (*seen == Seen::Change(Change::Died(dead))).then(|| at - died_ms);
    let times: Vec<u64> = simulation.seen.iter().filter_map(at).collect();
    let (most, _) = rates(&simulation, &before, WITHIN_MS);
    println!("death: {knowing} know after {:?} to {:?} ms; at most {most} bytes a second", times.first(), times.last());
    assert_eq!(knowing, THOUSAND);
    assert!(most <= BYTES_A_S, "{most}");
    assert_eq!(false_deaths(&simulation, WITHIN_MS), []);
    assert_eq!(excess(&simulation), 0);
    let received = simulation.meters[THOUSAND].received_bytes;
    println!("the newcomer received {received} bytes");
    assert_eq!(agreement(&simulation).err().filter(|what| !what.contains("has RecordVersion")), None);
}
