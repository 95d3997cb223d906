//! Nodes from the image in containers, at each level of privilege: real builds, while nodes come and go.
//!
//! They take the image, which takes optimised static programs: `deploy/image/build` first.

use std::fs;
use std::time::Duration;

use shoal_tests::command::wait_for;
use shoal_tests::expected;
use shoal_tests::pods::{Pods, Privilege};
use shoal_tests::sources;
use shoal_tests::{Machine, Nix, skip};

use crate::mini::{ABSENT, SET_PATIENCE, TRIES, all_unpacked_over_a_second};

const SEEN_PATIENCE: Duration = Duration::from_secs(60);
/// Until the build has got so far, on a busy machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(900);

fn see_each_other(pods: &Pods, nodes: &[usize]) {
    for node in nodes {
        wait_for("pods that see each other", SEEN_PATIENCE, || (pods.live(*node) == nodes.len()).then_some(()));
    }
}

/// `good` from nothing on three nodes; two more come and one goes while it is built. What it comes to is asked of the last.
fn good_while_nodes_come_and_go(privilege: Privilege) {
    let Some(set) = sources::mini() else { return skip(ABSENT) };
    let machine = Machine::new(&Nix::newest());
    let Some(mut pods) = Pods::start(3, privilege, &machine) else { return };
    see_each_other(&pods, &[0, 1, 2]);
    println!("{privilege:?}: doctor says\n{}", pods.shoal(0, "doctor").run());
    let client = |pods: &Pods| {
        let (build, store) = pods.reach(&machine, "nix-build", 0);
        let build = build.env("NIX_REMOTE", store).without_env("NIX_CLIENT_ROOT").arg("--no-out-link");
        build.args(set.args()).args(["-A", "good", "--keep-going"]).patience(SET_PATIENCE)
    };
    let mut build = client(&pods).start();
    wait_for("something built by the second", BUILD_PATIENCE, || (pods.built(1) > 0).then_some(()));
    pods.add();
    pods.add();
    see_each_other(&pods, &[0, 1, 2, 3, 4]);
    wait_for("something built by the newest", BUILD_PATIENCE, || {
        (pods.built(4) > 0 || build.has_ended()).then_some(())
    });
    assert!(!build.has_ended(), "it was over before anything changed");
    pods.remove(1);
    let mut finished = build.finish(SET_PATIENCE);
    for _ in 1..TRIES {
        let kept = [0, 2, 3, 4].map(|node| pods.kept(node));
        let is_excused = finished.stderr.contains("is missing on your system")
            && kept.iter().filter(|kept| kept.exists()).all(|kept| all_unpacked_over_a_second(kept));
        if finished.status.success() || !is_excused {
            break;
        }
        finished = client(&pods).run();
    }
    finished.expect_code(0);
    let built: Vec<usize> = [0, 2, 3, 4].map(|node| pods.built(node)).to_vec();
    println!("{privilege:?}: built by those that stayed: {built:?}");
    assert!(built.iter().all(|count| *count > 0), "one built nothing: {built:?}");
    let rows = expected::rows(&set.expected(), "good");
    let (copy, store) = pods.reach(&machine, "nix", 4);
    let key = pods.shoal(4, "key show").ok();
    let copy = copy.args(["copy", "--from", &store, "--option", "trusted-public-keys", key.text()]);
    copy.args(rows.iter().map(|row| &row.path)).patience(SET_PATIENCE).ok();
    expected::compare(&rows, &expected::of_machine(&machine, &rows), &[]);
    println!("{privilege:?}: ready {:?} after its start, with the store that it had", pods.restart(2));
}

#[test]
fn with_all_privileges() {
    good_while_nodes_come_and_go(Privilege::Privileged);
}

#[test]
fn with_user_namespaces() {
    good_while_nodes_come_and_go(Privilege::Userns);
}

/// What was uploaded to a node that is gone is at one that came later.
#[test]
fn caches_without_any_privilege() {
    let machine = Machine::new(&Nix::newest());
    let Some(mut pods) = Pods::start(3, Privilege::Cache, &machine) else { return };
    see_each_other(&pods, &[0, 1, 2]);
    println!("Cache: doctor says\n{}", pods.shoal(0, "doctor").run());
    let file = machine.path("kept.txt");
    fs::write(&file, "what is not to be lost\n".repeat(10_000)).expect("a file");
    let path = machine.local("nix-store").arg("--add").arg(&file).ok().text().to_owned();
    let copy = |pods: &Pods, machine: &Machine, way: &str, node: usize| {
        let (copy, store) = pods.reach(machine, "nix", node);
        copy.args(["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", way, &store, &path]).ok();
    };
    copy(&pods, &machine, "--to", 0);
    pods.remove(0);
    pods.add();
    see_each_other(&pods, &[1, 2, 3]);
    let machine = machine.emptied();
    copy(&pods, &machine, "--from", 3);
    assert_eq!(fs::read(machine.real_path(&path)).expect("it came"), fs::read(&file).expect("the file"));
}
