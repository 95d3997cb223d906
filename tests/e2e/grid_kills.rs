//! Nodes that build together are killed, each in its part of a build and at any moment: the request succeeds, and what
//! comes of it is what an undisturbed one gives.

use std::thread::sleep;
use std::time::{Duration, Instant};

use shoal_tests::command::wait_for;
use shoal_tests::random::Random;
use shoal_tests::{Dag, Finished, Machine, Mesh, Nix, Node, built, is_full};

use crate::grid::has_built;

const START_PATIENCE: Duration = Duration::from_secs(60);
const CLIENT_PATIENCE: Duration = Duration::from_secs(300);
/// What a death costs beside the work that is lost with the node.
const DEATH_MAX: Duration = Duration::from_secs(5);
/// The same of the entry, whose client comes again to another node while nobody knows yet that the first is dead.
const ENTRY_DEATH_MAX: Duration = Duration::from_secs(10);
const KILLS: u32 = 3;
const KILLS_FULL: u32 = 50;
const SMALL: Dag = Dag { nodes: 40, seed: 1, nap_ms: 100 };
/// Of which each is built twice.
const VOTED: Dag = Dag { nodes: 12, seed: 1, nap_ms: 300 };
const LARGE: Dag = Dag { nodes: 1_000, seed: 1, nap_ms: 0 };

/// Parts of nodes in [`cast`].
const ENTRY: usize = 0;
const OWNER: usize = 1;
const EXECUTOR: usize = 2;

/// An entry, one that only answers for claims and for where paths are, and executors.
fn cast(machine: &Machine, executors: usize, flags: &[&str]) -> Mesh {
    let mut mesh = Mesh { nodes: Vec::new() };
    (0..EXECUTOR).for_each(|_| mesh.add(&[machine], &[&["--no-build"], flags].concat()));
    (0..executors).for_each(|_| mesh.add(&[machine], &[&["--max-jobs", "1"], flags].concat()));
    mesh.wait_until_whole();
    mesh
}

fn running(mesh: &Mesh) -> impl Iterator<Item = &Node> {
    mesh.nodes.iter().filter(|node| node.runs())
}

/// Hash of what a request came to, wherever it is.
fn result(mesh: &Mesh, finished: &Finished) -> String {
    let path = built(finished).pop().unwrap_or_else(|| panic!("no path: {finished}"));
    let mut hashes: Vec<String> = running(mesh).filter_map(|node| node.nar_hash(&path)).collect();
    hashes.dedup();
    assert_eq!(hashes.len(), 1, "nodes have {hashes:?} of {path}");
    hashes.remove(0)
}

/// What it should come to.
fn undisturbed(machine: &Machine, dag: Dag) -> String {
    let alone = Mesh::start(1, &[machine]);
    result(&alone, &dag.build(machine, &alone[0], "").patience(CLIENT_PATIENCE).ok())
}

/// A node in its part is killed before a request, while builders run, and when its client has been told of the end.
fn may_die(victim: usize, dag: Dag, executors: usize, flags: &[&str]) {
    let machine = Machine::new(&Nix::newest());
    let expected = undisturbed(&machine, dag);
    let mut mesh = cast(&machine, executors, flags);
    let other = if victim == OWNER { ENTRY } else { OWNER };
    let build = |mesh: &Mesh, node: usize, salt: &str| dag.build(&machine, &mesh[node], salt);
    let back = |mesh: &mut Mesh, node: usize| {
        mesh[node].start_again();
        mesh.wait_until_whole();
    };

    mesh[victim].kill();
    let entry = if victim == ENTRY { other } else { ENTRY };
    let finished = build(&mesh, entry, "before").patience(CLIENT_PATIENCE).ok();
    println!("node {victim} killed before: {:?}", finished.took);
    assert_eq!(result(&mesh, &finished), expected);
    back(&mut mesh, victim);

    let client = build(&mesh, ENTRY, "during").start();
    let building = wait_for("builders", START_PATIENCE, || {
        let building = (EXECUTOR..mesh.nodes.len()).filter(|node| !mesh[*node].builders().is_empty());
        Some(building.collect::<Vec<_>>()).filter(|building| building.len() >= 2)
    });
    // One that has just come back may be left out where others do.
    let dies = if victim < EXECUTOR { victim } else { building[0] };
    mesh[dies].kill();
    let mut finished = client.finish(CLIENT_PATIENCE);
    if victim == ENTRY {
        assert!(!finished.status.success(), "its link is broken: {finished}");
        finished = build(&mesh, other, "during").patience(CLIENT_PATIENCE).run();
    }
    let finished = finished.expect_code(0);
    println!("node {dies} killed during: {:?}", finished.took);
    assert_eq!(result(&mesh, &finished), expected);
    back(&mut mesh, dies);

    let finished = build(&mesh, ENTRY, "after").patience(CLIENT_PATIENCE).ok();
    println!("nobody killed: {:?}", finished.took);
    let had_built = |mesh: &Mesh| running(mesh).map(has_built).sum::<usize>();
    mesh[victim].kill();
    let before = had_built(&mesh);
    let finished = build(&mesh, other, "after").patience(CLIENT_PATIENCE).ok();
    println!("node {victim} killed after: {:?}", finished.took);
    assert_eq!(result(&mesh, &finished), expected);
    assert_eq!(had_built(&mesh), before, "it is built again");
}

#[test]
fn the_entry_and_coordinator_may_die_and_another_node_goes_on() {
    may_die(ENTRY, SMALL, 2, &[]);
}

#[test]
fn an_executor_may_die() {
    may_die(EXECUTOR, SMALL, 2, &[]);
}

#[test]
fn an_owner_of_claims_and_places_may_die() {
    may_die(OWNER, SMALL, 2, &[]);
}

#[test]
fn a_voter_may_die() {
    may_die(EXECUTOR, VOTED, 3, &["--build-quorum", "2"]);
}

/// Any node is killed at any moment of a random graph; the client of one that was its entry asks the next.
#[test]
fn any_node_killed_at_any_moment_costs_its_work_and_a_few_seconds() {
    let (kills, dag) = if is_full() { (KILLS_FULL, LARGE) } else { (KILLS, SMALL) };
    let machine = Machine::new(&Nix::newest());
    let mut random = Random::seeded();
    let mut mesh = Mesh::start(3, &[&machine]);
    let first = dag.build(&machine, &mesh[0], "undisturbed").patience(CLIENT_PATIENCE).ok();
    let (expected, mut alone) = (result(&mesh, &first), first.took);
    let mut late = Vec::new();
    for round in 0..kills {
        let (entry, victim) = (random.below(3) as usize, random.below(3) as usize);
        let moment = Duration::from_millis(random.below(alone.as_millis() as u64));
        let (salt, since) = (format!("round-{round}"), Instant::now());
        let client = dag.build(&machine, &mesh[entry], &salt).start();
        sleep(moment);
        mesh[victim].kill();
        let mut finished = client.finish(CLIENT_PATIENCE);
        if victim == entry && !finished.status.success() {
            finished = dag.build(&machine, &mesh[(entry + 1) % 3], &salt).patience(CLIENT_PATIENCE).run();
        }
        let (finished, took) = (finished.expect_code(0), since.elapsed());
        assert_eq!(result(&mesh, &finished), expected, "round {round}");
        // What the entry built itself was nowhere else yet.
        let (lost, death_max) = match victim == entry {
            true => (moment, ENTRY_DEATH_MAX),
            false => (Duration::from_millis(2 * dag.nap_ms), DEATH_MAX),
        };
        let added = took.saturating_sub(alone);
        println!(
            "round {round}: node {victim} killed after {moment:?}, entry {entry}: {took:?}, {added:?} more than undisturbed"
        );
        // Beside other tests, on a machine that is busy with them, one time tells nothing of another.
        if is_full() && added > lost + death_max {
            late.push((round, added, lost));
        }
        mesh[victim].start_again();
        mesh.wait_until_whole();
        // How fast the machine is just now.
        if is_full() && round % 10 == 9 {
            alone = dag.build(&machine, &mesh[0], &format!("after-{round}")).patience(CLIENT_PATIENCE).ok().took;
            println!("undisturbed: {alone:?}");
        }
    }
    assert!(late.is_empty(), "(round, added, of it lost work): {late:?}");
}

/// Nodes are told to keep one copy of each path: what an executor had built is gone with it.
#[test]
fn what_only_a_dead_node_had_is_built_again() {
    let machine = Machine::new(&Nix::newest());
    let expected = undisturbed(&machine, SMALL);
    let mut mesh = cast(&machine, 2, &["--copies", "1"]);
    let client = SMALL.build(&machine, &mesh[ENTRY], "").start();
    wait_for("something built by the victim", START_PATIENCE, || (has_built(&mesh[EXECUTOR]) >= 5).then_some(()));
    mesh[EXECUTOR].kill();
    let finished = client.finish(CLIENT_PATIENCE).expect_code(0);
    println!("the only holder killed: {:?}", finished.took);
    assert!(finished.stderr.contains("they are built again"), "the client hears of it: {finished}");
    assert_eq!(result(&mesh, &finished), expected);
}
