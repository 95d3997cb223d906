//! What `shoal trace` says of a build on several nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use shoal_tests::command::wait_for;
use shoal_tests::{Machine, Mesh, Nix, Remote, shapes};

use crate::grid::narrow;

const PATIENCE: Duration = Duration::from_secs(60);

fn list<'a>(value: &'a Value, name: &str) -> Vec<&'a Value> {
    value[name].as_array().into_iter().flatten().collect()
}

fn ms(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} of {value}"))
}

/// A chain of nine and three layers of three, on three nodes.
fn built() -> (Machine, Mesh) {
    let machine = Machine::new(&Nix::newest());
    let mesh = narrow(3, &[&machine]);
    shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["mat", "chain"]).patience(PATIENCE).ok();
    (machine, mesh)
}

#[test]
fn the_time_of_a_build_is_told_node_by_node_and_stage_by_stage() {
    let (machine, mesh) = built();
    let told = mesh[0].shoal("trace --json").ok().json();
    let build = &told["build"];
    let derivations = list(&told, "derivations");
    assert_eq!((&build["state"], derivations.len()), (&"ended".into(), 21), "{build}");
    let mut nodes = BTreeSet::new();
    let mut stages = BTreeSet::new();
    for derivation in &derivations {
        let runs = list(derivation, "runs");
        assert_eq!(runs.last().expect("it was placed")["end"], "built", "{derivation}");
        for run in runs {
            nodes.insert(run["node"].as_str().unwrap());
            assert_eq!(run["slot"], 0, "a node with one slot: {derivation}");
            let mut at = ms(run, "began_ms");
            for stage in list(run, "stages") {
                stages.insert(stage["stage"].as_str().unwrap());
                assert!(at <= ms(stage, "began_ms") && ms(stage, "began_ms") <= ms(stage, "ended_ms"), "{derivation}");
                at = ms(stage, "ended_ms");
            }
            assert_eq!(at, ms(run, "ended_ms"), "{derivation}");
        }
    }
    assert!(nodes.len() > 1, "{nodes:?}");
    assert!(
        ["claim", "offer", "inputs", "build", "store", "copies"].iter().all(|stage| stages.contains(stage)),
        "{stages:?}"
    );
    // What held it up follows one another, and its end is that of the build.
    let mut path: Vec<&&Value> = derivations.iter().filter(|derivation| derivation["critical"].is_u64()).collect();
    path.sort_by_key(|derivation| ms(derivation, "critical"));
    let ended = |derivation: &Value| ms(list(derivation, "runs").last().unwrap(), "ended_ms");
    assert!(path.len() > 2 && path.windows(2).all(|pair| ended(pair[0]) <= ms(pair[1], "ready_ms")), "{path:?}");
    assert_eq!(derivations.iter().map(|derivation| ended(derivation)).max(), path.last().map(|last| ended(last)));
    // A part of it leads to it as well.
    let link = shapes::instantiate_on(&machine, &mesh[0], Remote::SshNg, "hello");
    let text = mesh[0].shoal("trace").arg(&link).ok();
    assert!(text.stdout.contains("21 derivations") && text.stdout.contains("critical path"), "{text}");
    assert_eq!(text.lines().iter().filter(|line| line.ends_with("-7")).count(), 1, "{text}");
    let unknown = mesh[1].shoal("trace").arg(&link).run().expect_code(1);
    assert!(unknown.stderr.contains("keeps no build of"), "{unknown}");
}

#[test]
fn a_trace_for_chrome_has_a_process_for_each_node_and_no_overlap_in_a_thread() {
    let (_machine, mesh) = built();
    let trace = mesh[0].shoal("trace --chrome").ok().json();
    let events = list(&trace, "traceEvents");
    let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).copied().collect::<Vec<_>>();
    let names: BTreeSet<&str> = of("M").iter().map(|event| event["args"]["name"].as_str().unwrap()).collect();
    assert!(names.contains("n0") && names.contains("slot 0"), "{names:?}");
    let mut threads: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
    let runs = of("X").into_iter().filter(|event| event["cat"] == "run").collect::<Vec<_>>();
    for run in &runs {
        let span = (ms(run, "ts"), ms(run, "ts") + ms(run, "dur"));
        threads.entry((ms(run, "pid"), ms(run, "tid"))).or_default().push(span);
    }
    assert!(runs.len() >= 21 && threads.len() > 1, "{} runs on {} threads", runs.len(), threads.len());
    for spans in threads.values_mut() {
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:?}");
    }
    let critical: BTreeSet<&str> =
        runs.iter().filter(|run| run["args"]["critical"] == true).map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!((of("s").len(), of("f").len()), (critical.len() - 1, critical.len() - 1), "{critical:?}");
}

#[test]
fn a_build_that_is_cancelled_leaves_no_run_open() {
    let machine = Machine::new(&Nix::newest());
    let mesh = narrow(3, &[&machine]);
    let mut client = shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["asleep"]).start();
    wait_for("a builder on each node", PATIENCE, || {
        mesh.nodes.iter().all(|node| !node.builders().is_empty()).then_some(())
    });
    assert_eq!(mesh[0].shoal("trace --json").ok().json()["build"]["state"], "runs");
    client.signal(Signal::INT);
    client.wait(PATIENCE);
    let told = wait_for("an end of all runs", PATIENCE, || {
        let told = mesh[0].shoal("trace --json").ok().json();
        let runs: Vec<Value> = list(&told, "derivations").iter().flat_map(|told| list(told, "runs")).cloned().collect();
        (runs.len() == 3 && runs.iter().all(|run| run["end"] == "cancelled")).then_some(told)
    });
    assert_eq!(told["build"]["state"], "cancelled", "{told}");
}
