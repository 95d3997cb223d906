//! Nodes that are one builder to real clients, whichever of them these talk to.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use shoal_tests::command::{Running, wait_for};
use shoal_tests::random::Random;
use shoal_tests::{Cmd, Machine, Mesh, Nix, Node, Remote, built, is_full, shapes};

const START_PATIENCE: Duration = Duration::from_secs(60);
const CLIENT_PATIENCE: Duration = Duration::from_secs(120);
/// From a client's end to the end of its builders, on whatever node, where nothing else runs; and where much does.
const CANCEL_PATIENCE_FULL: Duration = Duration::from_secs(2);
const CANCEL_PATIENCE: Duration = Duration::from_secs(20);
/// To hear that no node can do it, beside what any build takes; who waited for one would wait for ever.
const AT_ONCE: Duration = Duration::from_secs(20);
/// What naps take on three nodes, as a share of what they take on one: half where nothing else runs.
const SHARE_OF_THREE: f64 = 0.8;
const ROUNDS: u32 = 3;
const ROUNDS_FULL: u32 = 20;
/// A kill falls anywhere into what a round does.
const KILL_AFTER_MS_MAX: u64 = 6_000;
const CA: [&str; 3] = ["--option", "extra-experimental-features", "ca-derivations"];

by_each_version!(nodes_share_the_work_of_one_client, what_several_nodes_build_is_what_one_builds);

/// One job at a time each, so that the work goes around.
pub fn narrow(count: usize, machines: &[&Machine]) -> Mesh {
    Mesh::start_with(count, machines, &["--max-jobs", "1"])
}

fn build(machine: &Machine, node: &Node, salt: &str, attributes: &[&str]) -> Cmd {
    let build = shapes::build_command(machine, node, Remote::SshNg, salt, attributes);
    build.args(CA).patience(CLIENT_PATIENCE)
}

/// How many builds it lists that are so.
pub fn builds(node: &Node, is: impl Fn(&serde_json::Value) -> bool) -> usize {
    let builds = node.shoal("builds --json").ok().json();
    builds.as_array().into_iter().flatten().filter(|build| is(build)).count()
}

/// How many derivations it has built itself.
pub fn has_built(node: &Node) -> usize {
    builds(node, |build| build["state"] == "built" || build["state"] == "failed")
}

/// How many builders run on it.
pub fn runs_itself(node: &Node) -> usize {
    builds(node, |build| build["state"] == "running" && build["at"].is_null())
}

pub fn until_all_build(mesh: &Mesh) {
    wait_for("a builder on each node", START_PATIENCE, || {
        mesh.nodes.iter().all(|node| !node.builders().is_empty()).then_some(())
    });
}

fn nodes_share_the_work_of_one_client(nix: &Nix) {
    let machine = Machine::new(nix);
    // Uploads are no part of what is compared.
    let upload = |node: &Node| {
        machine.remote("nix-instantiate", node, Remote::SshNg).args(shapes::args(&machine, "", &["naps"])).ok()
    };
    let mesh = narrow(3, &[&machine]);
    upload(&mesh[1]);
    let finished = build(&machine, &mesh[1], "", &["naps"]).ok();
    assert_eq!(built(&finished).len(), 20, "{finished}");
    assert!(finished.stderr.contains("nap 19"), "logs of all nodes reach the client: {finished}");
    for path in built(&finished) {
        // Some of them are at the two other nodes alone.
        let log = mesh[1].shoal("log").arg(&path).ok();
        assert!(log.stdout.contains("nap "), "the log of {path}: {log}");
    }
    let counts: Vec<usize> = mesh.nodes.iter().map(has_built).collect();
    assert!(counts.iter().all(|count| *count > 0) && counts.iter().sum::<usize>() == 20, "{counts:?}");
    println!("20 naps of 0.5 s: {:?} on three nodes, of them {counts:?}", finished.took);
    let told = mesh[1].shoal("trace --json").ok().json();
    let spans = builders_of(&told);
    assert_eq!(spans.len(), 20, "{told}");
    let is_beside =
        |one: &Span, other: &Span| one.node != other.node && one.began < other.ended && other.began < one.ended;
    assert!(spans.iter().any(|one| spans.iter().any(|other| is_beside(one, other))), "one after the other: {told}");
    // Times of one run tell of another where nothing else runs.
    if is_full() {
        drop(mesh);
        let alone = Node::start_with(&[&machine], &["--max-jobs", "1"]);
        upload(&alone);
        let took_alone = build(&machine, &alone, "", &["naps"]).ok().took;
        let share = finished.took.as_secs_f64() / took_alone.as_secs_f64();
        println!("{took_alone:?} on one ({share:.2})");
        assert!(share < SHARE_OF_THREE, "{:?} on three nodes, {took_alone:?} on one", finished.took);
    }
}

/// When a builder ran at a node, in milliseconds of one clock.
struct Span<'a> {
    node: &'a str,
    began: u64,
    ended: u64,
}

fn list<'a>(value: &'a serde_json::Value, name: &str) -> impl Iterator<Item = &'a serde_json::Value> {
    value[name].as_array().into_iter().flatten()
}

/// All builders of a `shoal trace --json`.
fn builders_of(told: &serde_json::Value) -> Vec<Span<'_>> {
    let spans = list(told, "derivations").flat_map(|derivation| list(derivation, "runs")).filter_map(|run| {
        let stage = list(run, "stages").find(|stage| stage["stage"] == "build")?;
        let (began, ended) = (stage["began_ms"].as_u64()?, stage["ended_ms"].as_u64()?);
        Some(Span { node: run["node"].as_str()?, began, ended })
    });
    spans.collect()
}

/// NAR hash of each path and all it refers to.
fn hashes(machine: &Machine, node: &Node, paths: &[String]) -> BTreeMap<String, String> {
    let fetcher = Machine::new(&machine.nix);
    let key = node.key();
    let copy =
        fetcher.local("nix").args(["copy", "--from", &node.ready().http, "--option", "trusted-public-keys", &key]);
    copy.args(CA).args(paths).ok();
    let all = fetcher.local("nix-store").args(["-q", "--requisites"]).args(paths).ok();
    let hash = |path: &&str| fetcher.local("nix-store").args(["-q", "--hash", path]).ok().text().to_string();
    all.lines().iter().map(|path| (path.to_string(), hash(path))).collect()
}

fn what_several_nodes_build_is_what_one_builds(nix: &Nix) {
    let machine = Machine::new(nix);
    let attributes = ["mat", "chain", "outputs", "floating", "onFloating"];
    let alone = Node::start_with(&[&machine], &["--max-jobs", "1"]);
    let of_one = built(&build(&machine, &alone, "", &attributes).ok());
    let mesh = narrow(3, &[&machine]);
    let finished = build(&machine, &mesh[2], "", &attributes).ok();
    let of_three = built(&finished);
    assert_eq!(of_one, of_three, "{finished}");
    let counts: Vec<usize> = mesh.nodes.iter().map(has_built).collect();
    assert!(counts.iter().all(|count| *count > 0), "one node built nothing: {counts:?}");
    let expected = hashes(&machine, &alone, &of_one);
    assert!(expected.len() > of_one.len());
    // Asked of one that need not have built them.
    assert_eq!(hashes(&machine, &mesh[0], &of_three), expected);
}

#[test]
fn a_killed_executor_is_no_error_for_the_client() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = narrow(3, &[&machine]);
    let client = build(&machine, &mesh[0], "", &["slow"]).start();
    until_all_build(&mesh);
    mesh[1].kill();
    let finished = client.finish(CLIENT_PATIENCE).expect_code(0);
    assert_eq!(built(&finished).len(), 3, "{finished}");
    assert!(finished.stderr.contains("it is built again"), "the client hears of it: {finished}");
}

#[test]
fn a_derivation_that_two_nodes_want_at_once_is_built_once_and_both_hear_of_it() {
    let (machine, other) = (Machine::new(&Nix::newest()), Machine::new(&Nix::newest()));
    let mesh = Mesh::start(3, &[&machine, &other]);
    let wants = |machine, node| build(machine, node, "", &["lasting"]).start();
    let clients = [wants(&machine, &mesh[0]), wants(&other, &mesh[1])];
    for client in clients {
        let finished = client.finish(CLIENT_PATIENCE).expect_code(0);
        assert!(finished.stderr.contains("begun"), "{finished}");
    }
    assert_eq!(mesh.nodes.iter().map(has_built).sum::<usize>(), 1);
}

#[test]
fn ctrl_c_at_one_node_ends_the_builders_on_all() {
    let machine = Machine::new(&Nix::newest());
    let mesh = narrow(3, &[&machine]);
    let mut client: Running = build(&machine, &mesh[0], "", &["asleep"]).start();
    until_all_build(&mesh);
    client.signal(Signal::INT);
    client.wait(START_PATIENCE);
    let patience = if is_full() { CANCEL_PATIENCE_FULL } else { CANCEL_PATIENCE };
    wait_for("the end of builds that nobody wants", patience, || {
        mesh.nodes.iter().all(|node| node.builders().is_empty()).then_some(())
    });
    wait_for("nodes that know of it", START_PATIENCE, || {
        mesh.nodes.iter().all(|node| runs_itself(node) == 0).then_some(())
    });
    // All are as good as new.
    build(&machine, &mesh[1], "", &["naps"]).ok();
}

#[test]
fn what_no_node_can_build_fails_at_once_and_says_why_of_each() {
    let machine = Machine::new(&Nix::newest());
    let mesh = Mesh::start(3, &[&machine]);
    let known = build(&machine, &mesh[0], "", &["hello"]).ok();
    let failed = build(&machine, &mesh[0], "", &["teapot"]).fails();
    let wait = failed.took.saturating_sub(known.took);
    assert!(wait < AT_ONCE, "{failed}");
    for part in ["teapot", "n1: missing system features", "n2: missing system features"] {
        assert!(failed.stderr.contains(part), "{part}: {failed}");
    }
}

#[test]
fn a_builders_failure_on_another_node_is_told_as_one_here_and_is_final() {
    let machine = Machine::new(&Nix::newest());
    let alone = Node::start(&[&machine]);
    let expected = build(&machine, &alone, "", &["fails"]).fails();
    let mesh = narrow(2, &[&machine]);
    // The entry is busy, so the other one has to.
    let busy = build(&machine, &mesh[0], "", &["silent"]).start();
    wait_for("a builder at the entry", START_PATIENCE, || (!mesh[0].builders().is_empty()).then_some(()));
    let failed = build(&machine, &mesh[0], "", &["fails"]).fails();
    drop(busy);
    assert_eq!((has_built(&mesh[1]), failed.status.code()), (1, expected.status.code()), "{failed}");
    let said = |finished: &shoal_tests::Finished| {
        let lines = finished.stderr.lines().filter(|line| !line.starts_with("building "));
        lines.map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(said(&failed), said(&expected));
    assert!(failed.stderr.contains("about to fail"), "{failed}");
}

/// Each node follows what the other has claimed, and builds for the other what it has itself to wait for.
#[test]
fn nodes_that_want_the_same_at_once_share_it_and_build_each_derivation_once() {
    let (machine, other) = (Machine::new(&Nix::newest()), Machine::new(&Nix::newest()));
    let mesh = narrow(2, &[&machine, &other]);
    let clients = [build(&machine, &mesh[0], "", &["naps"]).start(), build(&other, &mesh[1], "", &["naps"]).start()];
    for client in clients {
        let finished = client.finish(CLIENT_PATIENCE).expect_code(0);
        assert_eq!(built(&finished).len(), 20, "{finished}");
    }
    let counts: Vec<usize> = mesh.nodes.iter().map(has_built).collect();
    assert!(counts.iter().all(|count| *count > 0) && counts.iter().sum::<usize>() == 20, "{counts:?}");
}

/// The node that a client talked to dies; what it had others build is there for who asks the next one.
#[test]
fn a_build_outlives_the_node_that_asked_for_it() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = narrow(3, &[&machine]);
    let _busy = build(&machine, &mesh[0], "", &["silent"]).start();
    wait_for("a builder at the entry", START_PATIENCE, || (!mesh[0].builders().is_empty()).then_some(()));
    let mut client = build(&machine, &mesh[0], "", &["lasting"]).start();
    let runs_it = |mesh: &Mesh| [1, 2].into_iter().find(|number| !mesh[*number].builders().is_empty());
    let executor = wait_for("a builder elsewhere", START_PATIENCE, || runs_it(&mesh));
    mesh[0].kill();
    client.wait(CLIENT_PATIENCE);
    let finished = build(&machine, &mesh[3 - executor], "", &["lasting"]).ok();
    assert!(finished.stderr.contains("begun"), "{finished}");
    assert_eq!((has_built(&mesh[executor]), has_built(&mesh[3 - executor])), (1, 0), "{finished}");
}

/// Nobody comes back for it, and all the same it is there for who comes late.
#[test]
fn a_request_goes_on_without_the_node_that_it_was_asked_of() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = narrow(3, &[&machine]);
    let mut client = build(&machine, &mesh[0], "", &["stages"]).start();
    let has = |node: &Node, name: &str| node.valid().iter().any(|path| path.ends_with(name));
    // Its stand-in is asked after a second.
    wait_for("the first stage", START_PATIENCE, || mesh.nodes.iter().any(|node| has(node, "-stage-0")).then_some(()));
    mesh[0].kill();
    client.wait(CLIENT_PATIENCE);
    wait_for("the last stage", CLIENT_PATIENCE, || {
        mesh.nodes[1..].iter().any(|node| has(node, "-stage-3")).then_some(())
    });
    let instead = |node: &Node| builds(node, |build| build["instead_of"] == "n0");
    wait_for("the end of it", CLIENT_PATIENCE, || {
        let ended = |node: &Node| builds(node, |build| build["state"] == "detached, built");
        (mesh.nodes[1..].iter().map(ended).sum::<usize>() == 1).then_some(())
    });
    assert_eq!(mesh.nodes[1..].iter().map(instead).sum::<usize>(), 1);
    let late = build(&machine, &mesh[1], "", &["stages"]).ok();
    assert!(!late.stderr.contains("stage 3"), "it was built again: {late}");
}

/// Any executor is killed at any moment, and what it had built is needed by others.
#[test]
fn no_client_sees_an_error_when_any_executor_is_killed_at_any_moment() {
    let machine = Machine::new(&Nix::newest());
    let mut random = Random::seeded();
    let mut mesh = narrow(3, &[&machine]);
    for round in 0..if is_full() { ROUNDS_FULL } else { ROUNDS } {
        let salt = format!("round-{round}");
        let client = build(&machine, &mesh[0], &salt, &["mat", "naps"]).start();
        let victim = 1 + random.below(2) as usize;
        std::thread::sleep(Duration::from_millis(random.below(KILL_AFTER_MS_MAX)));
        mesh[victim].kill();
        let finished = client.finish(CLIENT_PATIENCE).expect_code(0);
        println!("round {round}: {:?} with node {victim} killed", finished.took);
        mesh[victim].start_again();
        mesh.wait_until_whole();
    }
}
