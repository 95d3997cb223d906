//! Builds that several nodes must agree on, and checks on another node than the one that built.

use std::time::Duration;

use shoal_tests::command::wait_for;
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, built, shapes};

use crate::grid::has_built;

const START_PATIENCE: Duration = Duration::from_secs(60);
const CLIENT_PATIENCE: Duration = Duration::from_secs(120);

by_each_version!(
    checks_run_on_a_node_that_did_not_build,
    a_quorum_of_nodes_builds_the_same,
    what_differs_between_nodes_is_not_published,
);

fn counts(mesh: &Mesh) -> Vec<usize> {
    mesh.nodes.iter().map(has_built).collect()
}

/// Nodes that have built since.
fn builders(before: &[usize], after: &[usize]) -> Vec<usize> {
    let more = before.iter().zip(after).enumerate().filter(|(_, (before, after))| before < after);
    more.map(|(node, _)| node).collect()
}

fn is_valid_anywhere(mesh: &Mesh, name: &str) -> bool {
    mesh.nodes.iter().any(|node| node.valid().iter().any(|path| path.ends_with(name)))
}

fn checks_run_on_a_node_that_did_not_build(nix: &Nix) {
    let machine = Machine::new(nix);
    let mesh = Mesh::start(3, &[&machine]);
    // The path, and who ran a builder: first to build it, then to check it.
    let build = |attribute: &str| {
        let before = counts(&mesh);
        let path = shapes::build_on(&machine, &mesh[0], Remote::SshNg, &[attribute]).remove(0);
        (path, builders(&before, &counts(&mesh)))
    };
    let check = |attribute: &str| {
        let before = counts(&mesh);
        let build = shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &[attribute]);
        let checked = build.arg("--check").run();
        (checked, builders(&before, &counts(&mesh)))
    };
    let (path, built_by) = build("hello");
    let (same, checked_by) = check("hello");
    assert!(same.status.success() && same.text() == path, "{same}");
    assert!(checked_by.len() == 1 && checked_by != built_by, "{built_by:?} built, {checked_by:?} checked: {same}");
    let (path, built_by) = build("uneven");
    let hashes = || -> Vec<String> { mesh.nodes.iter().filter_map(|node| node.nar_hash(&path)).collect() };
    let before = hashes();
    let (failed, checked_by) = check("uneven");
    let expected = format!("may not be deterministic: output '{path}' differs");
    assert!(!failed.status.success() && failed.stderr.contains(&expected), "{expected}: {failed}");
    assert!(checked_by.len() == 1 && checked_by != built_by, "{built_by:?} built, {checked_by:?} checked: {failed}");
    let name = format!("n{}", checked_by[0]);
    assert!(failed.stderr.contains(&format!("{name}: sha256-")), "{failed}");
    assert!(failed.stderr.contains("share/id: contents differ from byte "), "{failed}");
    assert!(!failed.stderr.contains("share/same"), "{failed}");
    assert_eq!(hashes(), before);
}

fn a_quorum_of_nodes_builds_the_same(nix: &Nix) {
    let machine = Machine::new(nix);
    let mesh = Mesh::start_with(3, &[&machine], &["--build-quorum", "2"]);
    let start = counts(&mesh);
    let finished = shapes::build_command(&machine, &mesh[1], Remote::SshNg, "", &["outputs"]).ok();
    let after = counts(&mesh);
    assert_eq!(builders(&start, &after).len(), 2, "{start:?}, then {after:?}: {finished}");
    let paths = built(&finished);
    let reader = Machine::new(nix);
    let copy = reader.local("nix").args(["copy", "--from", &mesh[0].ready().http]);
    let keys: Vec<String> = mesh.nodes.iter().map(Node::key).collect();
    copy.args(["--option", "trusted-public-keys", &keys.join(" ")]).args(&paths).ok();
    reader.local("nix-store").args(["--verify", "--check-contents"]).ok();
    // References between outputs of one derivation are as those of a single build.
    let expected = shapes::build_locally(&machine, &["outputs"]);
    assert_eq!(paths, expected);
    let references = |at: &Machine| at.local("nix-store").args(["-q", "--references"]).args(&expected).ok().stdout;
    assert_eq!(references(&reader), references(&machine));
    // What needs them is built by two nodes again.
    let chained = shapes::build_command(&machine, &mesh[2], Remote::SshNg, "", &["twice"]).ok();
    let sum: usize = counts(&mesh).iter().sum();
    assert_eq!(sum, after.iter().sum::<usize>() + 4, "hello and twice, by two nodes each: {chained}");
}

fn what_differs_between_nodes_is_not_published(nix: &Nix) {
    let machine = Machine::new(nix);
    let mesh = Mesh::start_with(3, &[&machine], &["--build-quorum", "2"]);
    let start = counts(&mesh);
    let failed = shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["uneven"]).fails();
    let voters = builders(&start, &counts(&mesh));
    assert_eq!(voters.len(), 2, "{failed}");
    assert!(failed.stderr.contains("may not be deterministic"), "{failed}");
    for voter in voters {
        assert!(failed.stderr.contains(&format!("n{voter}: sha256-")), "n{voter}: {failed}");
    }
    assert!(failed.stderr.contains("share/id: contents differ from byte "), "{failed}");
    let output = failed.stderr.split("output '").nth(1).and_then(|rest| rest.split('\'').next()).unwrap_or_default();
    assert!(output.ends_with("-uneven"), "{failed}");
    let held = mesh.nodes.iter().filter(|node| node.valid().contains(output)).count();
    assert_eq!(held, 0, "{output} is valid: {failed}");
    // Each is kept, and can be looked at.
    let kept = failed.stderr.split("sha256-").skip(1).filter_map(|rest| rest.split('\'').nth(1));
    for path in kept.map(str::to_owned).collect::<Vec<_>>() {
        let reader = Machine::new(nix);
        reader.local("nix").args(["copy", "--no-check-sigs", "--from", &mesh[0].ready().http, &path]).ok();
        let same = std::fs::read_to_string(reader.real_path(&path).join("share/same"));
        assert_eq!(same.ok().as_deref(), Some("same\n"), "{path}");
    }
}

#[test]
fn a_quorum_needs_its_nodes() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start_with(&[&machine], &["--build-quorum", "2"]);
    let failed = shapes::build_command(&machine, &node, Remote::SshNg, "", &["hello"]).fails();
    assert!(failed.stderr.contains("2 nodes must agree on it, and 1 can build it"), "{failed}");
    let mesh = Mesh::start(2, &[&machine]);
    let drv = shapes::instantiate_on(&machine, &mesh[0], Remote::SshNg, "hello");
    let failed = mesh[0].shoal("build --quorum 3").arg(&drv).fails();
    assert!(failed.stderr.contains("3 nodes must agree on it, and 2 can build it"), "{failed}");
    let start = counts(&mesh);
    mesh[0].shoal("build --quorum 2").arg(&drv).ok();
    assert_eq!(builders(&start, &counts(&mesh)).len(), 2);
    // Its contents have a name before, or give it one: it is built once.
    let start: usize = counts(&mesh).iter().sum();
    let ca = ["--option", "extra-experimental-features", "ca-derivations"];
    shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["floating"]).args(ca).ok();
    assert_eq!(counts(&mesh).iter().sum::<usize>(), start + 1);
    assert!(is_valid_anywhere(&mesh, "-floating"));
    // So it is checked once, whatever must agree on others.
    let named = shapes::args(&machine, "", &["floating"]);
    let drv = machine.remote("nix-instantiate", &mesh[0], Remote::SshNg).args(ca).args(named).ok().text().to_string();
    mesh[0].shoal("build --check --quorum 4").arg(&drv).ok();
    // What was never agreed on is not made valid by one node.
    let failed = shapes::build_command(&machine, &node, Remote::SshNg, "", &["hello"]).arg("--repair").fails();
    assert!(failed.stderr.contains("2 nodes must agree on them"), "{failed}");
}

#[test]
fn a_voter_that_dies_is_replaced() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start_with(4, &[&machine], &["--build-quorum", "2"]);
    let start = counts(&mesh);
    let client = shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["lasting"]).start();
    let voters = |mesh: &Mesh| -> Vec<usize> {
        (0..mesh.nodes.len()).filter(|node| mesh[*node].runs() && !mesh[*node].builders().is_empty()).collect()
    };
    let first = wait_for("two builders", START_PATIENCE, || Some(voters(&mesh)).filter(|voters| voters.len() == 2));
    let killed = first.into_iter().find(|node| *node != 0).expect("one of two is not the first node");
    mesh[killed].kill();
    let finished = client.finish(CLIENT_PATIENCE);
    assert!(finished.status.success(), "{finished}");
    let live = (0..mesh.nodes.len()).filter(|node| *node != killed);
    let built = live.filter(|node| has_built(&mesh[*node]) > start[*node]).count();
    assert_eq!(built, 2, "{finished}");
}
