//! What the catalogue promises: nothing acknowledged is lost, everything is found, every conflict is reported, and a
//! change of the ring moves what must move.

use shoal_grid::announce::{OWNERS, owners};
use shoal_grid::catalogue::holdings::{BATCH_GAP_MS, Holdings};
use shoal_grid::catalogue::replication::{COPIES, REPAIR_DELAY_MS};
use shoal_grid::catalogue::{Action, RING_SETTLE_MS};
use shoal_grid::random::Random;
use shoal_grid::ring::{Key, NodeId, Ring};
use shoal_simulator::Simulation;
use shoal_simulator::check::{acknowledged, conflicts, copies, everything_is_found};
use shoal_simulator::simulation::Seen;
use shoal_wire::mesh::announcement::{HolderMessage, Holding};
use shoal_wire::mesh::format::encode;
use shoal_wire::mesh::path_record::ContentTag;
use std::collections::{BTreeMap, BTreeSet};

fn key(number: u64) -> Key {
    let mut random = Random::new(number);
    let words = [random.word(), random.word(), random.word(), random.word()];
    words.map(u64::to_le_bytes).concat().try_into().unwrap()
}

fn holding(number: u64, content: u8) -> Holding {
    Holding { key: key(number), content: [content; 16] }
}

/// Nodes that know each other, and what clients stored at them.
struct Stored {
    simulation: Simulation,
    by: BTreeMap<(usize, Key), ContentTag>,
}

impl Stored {
    fn new(hosts: usize, seed: u64) -> Self {
        let mut simulation = Simulation::with_stores(hosts, seed);
        simulation.start_acquainted(0..hosts);
        simulation.run_for(5_000);
        Stored { simulation, by: BTreeMap::new() }
    }

    fn store(&mut self, host: usize, holding: Holding) -> bool {
        let is_stored = self.simulation.store(host, holding);
        if is_stored {
            self.by.insert((host, holding.key), holding.content);
        }
        is_stored
    }

    fn acknowledged(&self) -> BTreeSet<Holding> {
        acknowledged(&self.simulation, &self.by)
    }
}

/// 3 + 2 for a minute, with writes on both sides, some of them under the same names.
#[test]
fn a_partition_loses_nothing_and_hides_no_conflict() {
    let mut stored = Stored::new(5, 11);
    (0..100).for_each(|n| assert!(stored.store(n as usize % 5, holding(n, 0))));
    stored.simulation.run_for(10_000);
    assert_eq!(stored.acknowledged().len(), 100);
    stored.simulation.network.side = vec![0, 0, 0, 1, 1];
    stored.simulation.run_for(20_000);
    for n in 100..200 {
        assert!(stored.store(n as usize % 5, holding(n, 0)));
        stored.simulation.run_for(300);
    }
    for n in 200..210 {
        assert!(stored.store(n as usize % 3, holding(n, 1)));
        assert!(stored.store(3 + n as usize % 2, holding(n, 2)));
    }
    stored.simulation.run_for(10_000);
    assert_eq!(stored.acknowledged().len(), 220, "both sides acknowledge");
    assert_eq!(conflicts(&stored.simulation), BTreeSet::new(), "which nobody can see yet");
    stored.simulation.network.side = vec![0; 5];
    stored.simulation.run_for(120_000);
    let expected: BTreeSet<Key> = (200..210).map(key).collect();
    assert_eq!(conflicts(&stored.simulation), expected);
    let acknowledged = stored.acknowledged();
    for holding in &acknowledged {
        assert!(copies(&stored.simulation, holding) >= COPIES, "{holding:?}");
    }
    let keys = acknowledged.iter().map(|holding| holding.key).collect();
    assert_eq!(everything_is_found(&mut stored.simulation, &keys), Ok(()));
}

/// A path that is valid is not replaced by other contents.
#[test]
fn what_is_valid_stays() {
    let mut stored = Stored::new(3, 5);
    assert!(stored.store(0, holding(1, 1)));
    assert!(!stored.store(0, holding(1, 2)));
    stored.simulation.run_for(5_000);
    let other = (0..3).find(|host| !stored.simulation.hosts[*host].disk.held.contains_key(&key(1))).unwrap();
    assert!(stored.store(other, holding(1, 2)));
    stored.simulation.run_for(10_000);
    assert_eq!(conflicts(&stored.simulation), BTreeSet::from([key(1)]));
    stored.simulation.seen.clear();
    // Whoever asks anew gets the first.
    for host in 0..3 {
        let answer = stored.simulation.hosts[host].catalogue.as_ref().unwrap().owned().answer(&key(1), |_| true);
        assert_eq!((answer.content, answer.holders.len()), (Some([1; 16]), 2));
    }
}

/// Each of two nodes stores its own contents under one name before it hears of the other's: neither can take a copy, both
/// are told so and the conflict is reported.
#[test]
fn two_contents_at_once_are_both_acknowledged_and_reported() {
    let mut stored = Stored::new(2, 7);
    assert!(stored.store(0, holding(1, 1)));
    assert!(stored.store(1, holding(1, 2)));
    stored.simulation.run_for(10_000);
    assert_eq!(stored.acknowledged(), BTreeSet::from([holding(1, 1), holding(1, 2)]));
    assert_eq!(conflicts(&stored.simulation), BTreeSet::from([key(1)]));
}

/// A node loses its disk: after the delay there are R copies again, as many at once as is allowed, and nobody asks the
/// others for what they have.
#[test]
fn a_lost_disk_is_repaired() {
    let mut stored = Stored::new(6, 2);
    (0..120).for_each(|n| assert!(stored.store(n as usize % 6, holding(n, 0))));
    stored.simulation.run_for(10_000);
    stored.simulation.replace(4);
    stored.simulation.start(4, &[0]);
    stored.simulation.run_for(15_000);
    let short = |simulation: &Simulation| (0..120).filter(|n| copies(simulation, &holding(*n, 0)) < COPIES).count();
    assert!(short(&stored.simulation) > 20, "a machine that restarts is waited for");
    let from_ms = stored.simulation.now_ms();
    while short(&stored.simulation) > 0 && stored.simulation.now_ms() < from_ms + 2 * REPAIR_DELAY_MS {
        stored.simulation.run_for(500);
    }
    assert_eq!(short(&stored.simulation), 0);
    assert!((0..120).all(|n| copies(&stored.simulation, &holding(n, 0)) == COPIES));
}

/// The disk is lost, the key is not.
#[test]
fn an_empty_store_is_believed() {
    let mut stored = Stored::new(4, 2);
    (0..40).for_each(|n| assert!(stored.store(n as usize % 4, holding(n, 0))));
    stored.simulation.run_for(10_000);
    stored.simulation.crash(1);
    stored.simulation.hosts[1].disk = Default::default();
    stored.simulation.start(1, &[0]);
    stored.simulation.run_for(3 * REPAIR_DELAY_MS);
    assert!((0..40).all(|n| copies(&stored.simulation, &holding(n, 0)) == COPIES));
}

/// All holders want to delete everything at the same moment, again and again.
#[test]
fn the_last_copy_stays() {
    for seed in 0..20 {
        let mut stored = Stored::new(5, seed);
        (0..60).for_each(|n| assert!(stored.store(n as usize % 5, holding(n, 0))));
        stored.simulation.run_for(10_000);
        for round in 0..4 {
            if round == 2 {
                stored.simulation.crash(seed as usize % 5);
                stored.simulation.run_for(seed * 700);
            }
            for host in 0..5 {
                let keys = stored.simulation.hosts[host].disk.held.keys().copied().collect();
                stored.simulation.with_catalogue(host, |catalogue, now_ms| catalogue.may_delete(keys, now_ms));
            }
            stored.simulation.run_for(12_000);
        }
        stored.simulation.start(seed as usize % 5, &[]);
        stored.simulation.run_for(5_000);
        let left: Vec<usize> = (0..60).map(|n| copies(&stored.simulation, &holding(n, 0))).collect();
        assert!(left.iter().all(|copies| *copies >= 1), "seed {seed}: {left:?}");
        assert!(left.iter().sum::<usize>() < 80, "seed {seed}: most second copies are gone: {left:?}");
    }
}

/// Times of lookups at host 0 from question to answer, in order, and what they ended with.
fn time_lookups(simulation: &mut Simulation, keys: impl Iterator<Item = Key>) -> (Vec<u64>, Vec<Action>) {
    let (mut times, mut ends) = (Vec::new(), Vec::new());
    for key in keys {
        simulation.seen.clear();
        let (begun_ms, id) = (simulation.now_ms(), simulation.look_up(0, key).unwrap());
        simulation.run_for(2_500);
        let end = simulation.seen.iter().find_map(|(at, host, seen)| match seen {
            Seen::Catalogue(
                action @ (Action::Found { id: ended, .. }
                | Action::Missing { id: ended, .. }
                | Action::Unreachable { id: ended, .. }),
            ) if *host == 0 && *ended == id => Some((at - begun_ms, action.clone())),
            _ => None,
        });
        let (time, end) = end.expect("a lookup ends");
        times.push(time);
        ends.push(end);
    }
    times.sort_unstable();
    (times, ends)
}

/// 5 ms each way: hits and misses take one round trip. With one of five nodes black-holed a miss takes one and a hedge
/// until it is suspected, and one afterwards.
#[test]
fn lookups_take_one_round_trip() {
    let mut stored = Stored::new(5, 4);
    (0..40).for_each(|n| assert!(stored.store(1 + n as usize % 4, holding(n, 0))));
    stored.simulation.run_for(10_000);
    (stored.simulation.network.delay_ms_min, stored.simulation.network.delay_ms_max) = (5, 5);
    let (times, ends) = time_lookups(&mut stored.simulation, (0..40).map(key));
    assert!(times.iter().all(|time| *time <= 10), "{times:?}");
    assert!(ends.iter().all(|end| matches!(end, Action::Found { .. })));
    let (times, ends) = time_lookups(&mut stored.simulation, (1_000..1_040).map(key));
    assert!(times.iter().all(|time| *time <= 10), "{times:?}");
    assert!(ends.iter().all(|end| matches!(end, Action::Missing { .. })));

    stored.simulation.network.side[3] = 1;
    let (times, ends) = time_lookups(&mut stored.simulation, std::iter::once(key(2_000)));
    assert!(times[0] < 50 && matches!(ends[0], Action::Missing { .. }), "{times:?}");
    stored.simulation.run_for(4_500);
    let (times, ends) = time_lookups(&mut stored.simulation, (3_000..3_100).map(key));
    println!("misses with one of five black-holed: {} ms at most", times[99]);
    assert!(times[99] <= 10, "{times:?}");
    assert!(ends.iter().all(|end| matches!(end, Action::Missing { .. })));
    let (times, ends) = time_lookups(&mut stored.simulation, (0..40).map(key));
    assert!(times.iter().all(|time| *time <= 10), "{times:?}");
    assert!(ends.iter().all(|end| matches!(end, Action::Found { .. })));
}

/// Who does not answer is done without long before members agree that it is dead: whoever of two others was to have the
/// copy, an upload is acknowledged without it.
#[test]
fn an_upload_waits_a_second_for_who_has_just_died() {
    let mut longest_ms = 0;
    for victim in [1, 2] {
        let mut stored = Stored::new(3, 7);
        stored.simulation.run_for(10_000);
        (stored.simulation.network.delay_ms_min, stored.simulation.network.delay_ms_max) = (5, 5);
        stored.simulation.crash(victim);
        let mut times = Vec::new();
        for n in 0..5 {
            let begun_ms = stored.simulation.now_ms();
            stored.simulation.seen.clear();
            assert!(stored.store(0, holding(n, 0)));
            stored.simulation.run_for(1_800);
            let acknowledged = stored.simulation.seen.iter().find_map(|(at, host, seen)| match seen {
                Seen::Catalogue(Action::Acknowledged { .. }) if *host == 0 => Some(at - begun_ms),
                _ => None,
            });
            times.push(acknowledged.expect("it is acknowledged before the death is known"));
        }
        println!("{times:?} ms with {victim} dead");
        longest_ms = longest_ms.max(times[0]);
        assert!(times[1..].iter().all(|time| *time < 400), "who was silent is not waited for again: {times:?}");
    }
    assert!(longest_ms > 500, "the copy was to go to one of them");
}

/// All met again a moment ago and cannot say what nobody has; one of them is dead, and no reason to wait each time.
#[test]
fn lookups_that_nobody_can_answer_wait_once_for_who_has_just_died() {
    let mut stored = Stored::new(3, 8);
    stored.simulation.run_for(10_000);
    stored.simulation.crash(1);
    stored.simulation.run_for(30_000);
    stored.simulation.start(1, &[0]);
    stored.simulation.run_for(1_500);
    stored.simulation.crash(2);
    let (times, ends) = time_lookups(&mut stored.simulation, std::iter::once(key(1)));
    println!("the first after {} ms", times[0]);
    assert!(times[0] <= 1_300, "{times:?}");
    let dead = stored.simulation.hosts[2].node;
    assert!(matches!(&ends[0], Action::Unreachable { silent, .. } if *silent == [dead]), "{ends:?}");
    let (times, ends) = time_lookups(&mut stored.simulation, std::iter::once(key(2)));
    assert!(times[0] <= 60, "{times:?}");
    assert!(matches!(&ends[0], Action::Unreachable { .. }), "{ends:?}");
}

/// All batches that `holdings` sends, each answered at once.
fn sent(holdings: &mut Holdings) -> (usize, usize) {
    let (mut pairs, mut bytes) = (0, 0);
    for now_ms in (0..).step_by(BATCH_GAP_MS as usize) {
        let due = holdings.due(&NodeId::default(), now_ms);
        if due.is_empty() {
            break;
        }
        for (owner, message) in due {
            if let HolderMessage::Holds(batch) = &message {
                pairs += batch.len();
            }
            bytes += encode(&message).len();
            holdings.answered(&owner, &[]);
        }
    }
    (pairs, bytes)
}

/// Twenty nodes with 100,000 paths each, and one that comes: the least that can be said is the key of each path to each
/// node that is its owner now and was not.
#[test]
fn a_ring_change_moves_what_must_move() {
    let ids: Vec<NodeId> = (0..21).map(|n| key(1 << 40 | n)).collect();
    let (before, after): (Ring, Ring) = (ids[..20].iter().copied().collect(), ids.iter().copied().collect());
    let (mut least, mut pairs, mut bytes) = (0, 0, 0);
    for node in 0..20u64 {
        let mut holdings = Holdings::default();
        for n in 0..100_000 {
            let key = key(node << 32 | n);
            holdings.add(key, [7; 16], &Ring::default());
            least += usize::from(owners(&after, &key).contains(&ids[20]));
        }
        holdings.ring_changed(&ids[node as usize], &before, &after);
        let (told, len) = sent(&mut holdings);
        (pairs, bytes) = (pairs + told, bytes + len);
        assert!(holdings.is_settled());
    }
    println!("{bytes} bytes for {least} new pairs: {:.2} of the least", bytes as f64 / (32 * least) as f64);
    assert_eq!(pairs, least);
    assert!(bytes <= 2 * 32 * least);
    let share = 20 * 100_000 * OWNERS / 21;
    assert!(least.abs_diff(share) < share / 50, "{least} of {share}");
}

/// The same through everything: a node joins, which takes its records, and one that is away for a moment takes none.
#[test]
fn announcements_follow_the_ring_and_not_its_noise() {
    let mut stored = Stored::new(10, 8);
    (0..3_000).for_each(|n| assert!(stored.store(n as usize % 10, holding(n, 0))));
    stored.simulation.run_for(20_000);
    let said = |simulation: &Simulation| simulation.announced_bytes.iter().sum::<u64>();
    let before = said(&stored.simulation);
    stored.simulation.pause(6, 5_000);
    stored.simulation.run_for(20_000);
    assert_eq!(said(&stored.simulation), before, "suspected for a moment");
    let newcomer = stored.simulation.add();
    stored.simulation.start(newcomer, &[0]);
    stored.simulation.run_for(RING_SETTLE_MS + 15_000);
    let bytes = said(&stored.simulation) - before;
    let owned = stored.simulation.hosts[newcomer].catalogue.as_ref().unwrap().owned();
    // Each path has two holders, and both tell.
    let least = (owned.len() * COPIES * 32) as u64;
    println!("{bytes} bytes, {:.2} of the least", bytes as f64 / least as f64);
    assert!(owned.len() > 600 && bytes <= 2 * least, "{} {bytes}", owned.len());
}

/// Random faults while clients store: `SHOAL_SEED=n` repeats one run, `SHOAL_SEEDS=n` makes n.
#[test]
fn nothing_acknowledged_is_lost() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match (number("SHOAL_SEED"), number("SHOAL_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(150),
    };
    let failed = |seed: u64| scenario(seed).err().map(|what| format!("SHOAL_SEED={seed}: {what}"));
    let failures: Vec<String> = seeds.filter_map(failed).take(5).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn scenario(seed: u64) -> Result<(), String> {
    let mut random = Random::new(!seed);
    let hosts = 3 + random.below(6) as usize;
    let mut stored = Stored::new(hosts, seed);
    stored.simulation.network.loss = random.below(6);
    stored.simulation.network.delay_ms_max = [2, 50, 200][random.below(3) as usize];
    let deletes = random.chance(50);
    for round in 0..4 + random.below(6) {
        for n in 0..8 {
            let host = random.below(hosts as u64) as usize;
            if stored.simulation.hosts[host].runs(stored.simulation.now_ms()) {
                // Some names are used again, with other contents.
                let name = if random.chance(20) { random.below(20) } else { round * 100 + n };
                stored.store(host, holding(name, (seed as u8) ^ random.below(256) as u8));
            }
        }
        stored.simulation.run_for(random.below(4_000));
        fault(&mut stored.simulation, &mut random, deletes);
        stored.simulation.run_for(random.below(20_000));
    }
    let lost = (!deletes && random.chance(50)).then(|| random.below(hosts as u64) as usize);
    heal(&mut stored.simulation, lost);
    let acknowledged = stored.acknowledged();
    let contents =
        |key: &Key| stored.by.iter().filter(|((_, stored), _)| stored == key).map(|(_, c)| *c).collect::<BTreeSet<_>>();
    let reported = conflicts(&stored.simulation);
    for holding in &acknowledged {
        let is_alone = contents(&holding.key).len() == 1;
        // Of contents that are not the answer no new copies are made.
        let least = match is_alone {
            true if !deletes => COPIES.min(hosts),
            true => 1,
            false => usize::from(lost.is_none()),
        };
        let there = copies(&stored.simulation, holding);
        if there < least {
            return Err(format!("{there} copies of {:02x?}, {least} at least", &holding.key[..4]));
        }
        let held: BTreeSet<_> =
            stored.simulation.hosts.iter().filter_map(|host| host.disk.held.get(&holding.key)).collect();
        if held.len() > 1 && !reported.contains(&holding.key) {
            return Err(format!("{} contents of {:02x?} and no report", held.len(), &holding.key[..4]));
        }
    }
    let keys = acknowledged.iter().map(|holding| holding.key).collect();
    everything_is_found(&mut stored.simulation, &keys)
}

fn fault(simulation: &mut Simulation, random: &mut Random, deletes: bool) {
    let hosts = simulation.hosts.len();
    let host = random.below(hosts as u64) as usize;
    match random.below(if deletes { 7 } else { 5 }) {
        0 => simulation.crash(host),
        1 => simulation.pause(host, random.below(15_000)),
        2 => simulation.network.side = (0..hosts).map(|_| random.below(2) as u8).collect(),
        3 => simulation.network.side = vec![0; hosts],
        4 => start_all(simulation),
        _ => {
            let keys: Vec<Key> = simulation.hosts[host].disk.held.keys().copied().collect();
            simulation.with_catalogue(host, |catalogue, now_ms| catalogue.may_delete(keys, now_ms));
        }
    }
}

fn start_all(simulation: &mut Simulation) {
    for down in 0..simulation.hosts.len() {
        if simulation.hosts[down].membership.is_none() {
            simulation.start(down, &[0, 1]);
        }
    }
}

/// Everything runs and is reached again; then one disk may be lost, whose copies are made again.
fn heal(simulation: &mut Simulation, lost: Option<usize>) {
    simulation.network.side = vec![0; simulation.hosts.len()];
    start_all(simulation);
    simulation.run_for(150_000);
    if let Some(host) = lost {
        simulation.replace(host);
        simulation.start(host, &[0, 1, 2]);
        simulation.run_for(150_000);
    }
}
