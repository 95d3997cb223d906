//! Nodes that are killed at random moments: what was acknowledged is there afterwards, and the node goes on.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use shoal_tests::random::Random;
use shoal_tests::{Machine, Nix, Node, Remote, built, is_full, shapes};

const ROUNDS: u32 = 10;
const ROUNDS_FULL: u32 = 60;
/// A kill falls anywhere into what a round does.
const KILL_AFTER_MS_MAX: u64 = 1_500;
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);

fn rounds() -> u32 {
    if is_full() { ROUNDS_FULL } else { ROUNDS }
}

fn valid(node: &Node) -> BTreeSet<String> {
    node.paths().iter().filter_map(|path| Some(path["path"].as_str()?.to_string())).collect()
}

/// Whatever is listed is whole, and nothing that was promised is missing.
fn is_sound(machine: &Machine, node: &Node, promised: &BTreeSet<String>, round: u32) {
    let valid = valid(node);
    let lost: Vec<_> = promised.difference(&valid).collect();
    assert!(lost.is_empty(), "round {round}: lost {lost:?}");
    machine.remote("nix-store", node, Remote::Unix).args(["--verify", "--check-contents"]).ok();
}

#[test]
fn killed_while_paths_come_in() {
    let machine = Machine::new(&Nix::newest());
    let mut random = Random::seeded();
    let mut node = Node::start(&[&machine]);
    let mut promised = BTreeSet::new();
    for round in 0..rounds() {
        let file = machine.path(&format!("upload-{round}"));
        let len = ((random.below(24) + 1) << 21) as usize;
        std::fs::write(&file, random.noise(len)).unwrap();
        let path = machine.local("nix-store").arg("--add").arg(&file).ok().text().to_string();
        std::fs::remove_file(&file).unwrap();
        let store = machine.store(&node, Remote::SshNg);
        let mut client = machine.near("nix", &node).args(["copy", "--to", &store, &path]).start();
        thread::sleep(Duration::from_millis(random.below(KILL_AFTER_MS_MAX)));
        if client.has_ended() {
            promised.insert(path.clone());
        }
        node.kill();
        client.wait(CLIENT_PATIENCE);
        node.start_again();
        is_sound(&machine, &node, &promised, round);
        // And the interrupted upload can be done again.
        let store = machine.store(&node, Remote::SshNg);
        machine.near("nix", &node).args(["copy", "--to", &store, &path]).ok();
        promised.insert(path);
    }
}

#[test]
fn killed_while_builds_run() {
    let machine = Machine::new(&Nix::newest());
    let mut random = Random::seeded();
    let mut node = Node::start(&[&machine]);
    let mut promised = BTreeSet::new();
    for round in 0..rounds() {
        let salt = format!("{round}-{}", random.below(u64::MAX));
        let build = |node: &Node| {
            shapes::build_command(&machine, node, Remote::SshNg, &salt, &["many", "chain", "twice", "outputs"])
        };
        let mut client = build(&node).start();
        thread::sleep(Duration::from_millis(random.below(KILL_AFTER_MS_MAX)));
        let ended = client.has_ended();
        node.kill();
        let finished = client.finish(CLIENT_PATIENCE);
        if ended {
            promised.extend(built(&finished.expect_code(0)));
        }
        node.start_again();
        is_sound(&machine, &node, &promised, round);
        let again = build(&node).ok();
        promised.extend(built(&again));
    }
}

/// A build that ran when its node was killed is taken up by the next start.
#[test]
fn a_build_outlives_its_node() {
    let machine = Machine::new(&Nix::newest());
    let mut node = Node::start(&[&machine]);
    let client = shapes::build_command(&machine, &node, Remote::SshNg, "", &["leisurely"]).start();
    shoal_tests::command::wait_for("a build that runs", CLIENT_PATIENCE, || {
        (!node.builders().is_empty()).then_some(())
    });
    node.kill();
    assert!(!client.finish(CLIENT_PATIENCE).status.success());
    node.start_again();
    shoal_tests::command::wait_for("the adopted build's output", CLIENT_PATIENCE, || {
        valid(&node).iter().any(|path| path.ends_with("-leisurely")).then_some(())
    });
    let again = shapes::build_command(&machine, &node, Remote::SshNg, "", &["leisurely"]).ok();
    assert!(!again.stderr.contains("building '"), "{again}");
}
