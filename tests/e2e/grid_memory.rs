//! Derivations that want more memory than they get.

use std::time::Duration;

use serde_json::Value;
use shoal_tests::command::wait_for;
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, built, shapes, skip};

const PATIENCE: Duration = Duration::from_secs(60);
/// Enough for a shell, a third of what `hungry` has at once.
const LIMIT: [&str; 2] = ["--build-memory-max", "64M"];

/// Whether a node of this machine can limit the memory of builds.
fn limits_memory(node: &Node) -> bool {
    let checks = node.shoal("doctor --json").run().json();
    let groups = checks.as_array().into_iter().flatten().find(|check| check["name"] == "control-groups").cloned();
    let found = groups.and_then(|check| check["found"].as_str().map(String::from)).unwrap_or_default();
    found.starts_with("version 2") || (found.starts_with("version 1") && !found.contains("memory: none"))
}

fn explain(node: &Node, drv: &str) -> Option<Value> {
    let told = node.shoal("explain --json").arg(drv).run();
    (told.status.code() == Some(0)).then(|| told.json()[0].clone())
}

#[test]
fn a_build_that_outgrows_its_node_fails_with_what_it_had_and_what_to_do() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start_with(&[&machine], &LIMIT);
    if !limits_memory(&node) {
        return skip("no memory control group");
    }
    let build = |attribute: &str| shapes::build_command(&machine, &node, Remote::SshNg, "", &[attribute]);
    build("hello").ok();
    let failed = build("hungry").patience(PATIENCE).fails();
    for part in ["builder ran out of memory", "MiB of the 64 MiB", "Raise 'build-memory-max'"] {
        assert!(failed.stderr.contains(part), "{part}: {failed}");
    }
    assert_eq!(failed.stderr.matches("begun").count(), 1, "more tries would end alike: {failed}");
    let drv = shapes::instantiate_on(&machine, &node, Remote::SshNg, "hungry");
    assert_eq!(explain(&node, &drv).unwrap()["state"], "out-of-memory");
    build("brief").ok();
}

#[test]
fn a_build_that_outgrows_one_node_is_built_on_another_that_has_more() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[&machine], &["--no-build"]);
    mesh.add(&[&machine], &[&["--max-jobs", "1"], &LIMIT[..]].concat());
    mesh.add(&[&machine], &["--max-jobs", "1", "--feature", "alpha"]);
    mesh.wait_until_whole();
    if !limits_memory(&mesh[1]) {
        return skip("no memory control group");
    }
    let entry = &mesh[0];
    let [sleeps, hungry] =
        ["alphaSleeps", "hungry"].map(|attribute| shapes::instantiate_on(&machine, entry, Remote::SshNg, attribute));
    let build = |attribute| shapes::build_command(&machine, entry, Remote::SshNg, "", &[attribute]);
    let sleeper = build("alphaSleeps").start();
    wait_for("a builder on the larger node", PATIENCE, || (!mesh[2].builders().is_empty()).then_some(()));
    let client = build("hungry").start();
    let waits = wait_for("a build that died and waits", PATIENCE, || {
        explain(entry, &hungry)
            .filter(|told| told["state"] == "waits-for-place" && told["earlier"] != Value::Array(vec![]))
    });
    let verdict = |name: &str| {
        let nodes = waits["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["node"] == name).map(|node| node["verdict"].as_str().unwrap())
    };
    assert_eq!((verdict("n1"), verdict("n2")), (Some("too-little-memory"), Some("no-slot")), "{waits}");
    entry.shoal("cancel").arg(&sleeps).ok();
    sleeper.finish(PATIENCE);
    let finished = client.finish(PATIENCE).expect_code(0);
    assert_eq!(built(&finished).len(), 1, "{finished}");
    assert!(
        finished.stderr.contains("ran out of memory with 64 MiB; it is built again where it gets more"),
        "{finished}"
    );
    let told = explain(entry, &hungry).unwrap();
    assert!(told["text"].as_str().unwrap().starts_with("was built on n2"), "{told}");
    assert!(told["earlier"][0]["node"] == "n1", "{told}");
}
