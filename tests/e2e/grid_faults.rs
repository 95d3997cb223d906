//! Executors and derivations that behave badly: the client hears of an end in Nix's words, and the mesh goes on.

use std::time::Duration;

use rustix::process::Signal;
use shoal_tests::command::wait_for;
use shoal_tests::mesh::invite;
use shoal_tests::{Cmd, Dag, Machine, Mesh, Nix, Node, Remote, built, clocks, place, shapes, skip};

use crate::grid::has_built;

const PATIENCE: Duration = Duration::from_secs(120);
/// For twenty builds, of which the first are silent: an executor that says nothing for ten seconds is taken for dead.
const SILENCE_PATIENCE: Duration = Duration::from_secs(180);
/// Starts of a derivation whose node dies each time, before it is given up.
const TRIES_MAX: usize = 5;
/// Of the executor whose disk is small; the derivation wants more.
const DISK: &str = "size=128m";
const CLOCK_OFFSET_S: i64 = 295;

/// An entry that builds nothing, and executors.
fn start(machine: &Machine, executors: usize) -> Mesh {
    start_with(machine, executors, &[])
}

/// The entry with further options.
fn start_with(machine: &Machine, executors: usize, of_entry: &[&str]) -> Mesh {
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[machine], &[&["--no-build"], of_entry].concat());
    (0..executors).for_each(|_| mesh.add(&[machine], &["--max-jobs", "1"]));
    mesh.wait_until_whole();
    mesh
}

fn build(machine: &Machine, mesh: &Mesh, salt: &str, attributes: &[&str]) -> Cmd {
    shapes::build_command(machine, &mesh[0], Remote::SshNg, salt, attributes).patience(PATIENCE)
}

/// All nodes are as good as new.
fn goes_on(machine: &Machine, mesh: &mut Mesh, salt: &str) {
    mesh.wait_until_whole();
    build(machine, mesh, salt, &["hello", "naps"]).ok();
}

#[test]
fn an_executor_that_never_answers_is_done_without() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = start(&machine, 2);
    mesh[1].signal(Signal::STOP);
    let finished = build(&machine, &mesh, "", &["naps"]).patience(SILENCE_PATIENCE).ok();
    println!("20 naps with an executor that hangs: {:?}", finished.took);
    assert_eq!((built(&finished).len(), has_built(&mesh[2])), (20, 20));
    mesh[1].signal(Signal::CONT);
    goes_on(&machine, &mut mesh, "after");
}

/// There is nobody else to ask, and it is a member all the while.
#[test]
fn the_only_executor_may_be_silent_for_a_moment() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = start(&machine, 1);
    let client = build(&machine, &mesh, "", &["brief"]).start();
    wait_for("a builder", PATIENCE, || (!mesh[1].builders().is_empty()).then_some(()));
    mesh[1].signal(Signal::STOP);
    wait_for("silence", SILENCE_PATIENCE, || mesh[0].log().contains("a build was lost").then_some(()));
    mesh[1].signal(Signal::CONT);
    let finished = client.finish(PATIENCE).expect_code(0);
    assert_eq!(built(&finished).len(), 1, "{finished}");
    goes_on(&machine, &mut mesh, "after");
}

/// What a directory is made of until this is dropped.
pub struct Mount(String);

impl Mount {
    pub fn tmpfs(dir: &std::path::Path, options: &str) -> Option<Mount> {
        let mounted = Cmd::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir).run();
        mounted.status.success().then(|| Mount(dir.display().to_string()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Cmd::new("umount").args(["--lazy", &self.0]).run();
    }
}

#[test]
fn an_executor_whose_disk_fills_up_fails_nobodys_build() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = start(&machine, 1);
    let busy = build(&machine, &mesh, "", &["silent"]).start();
    wait_for("a builder at the first executor", PATIENCE, || (!mesh[1].builders().is_empty()).then_some(()));
    let small = Node::prepare(&["--name", "n2", "--max-jobs", "1", "--join", &invite(&mesh[0], "")]);
    let Some(_mount) = Mount::tmpfs(&small.data_dir(), DISK) else { return skip("no small disk: mounting takes root") };
    mesh.nodes.push(small);
    mesh[2].start_again();
    mesh.wait_until_whole();
    let client = build(&machine, &mesh, "", &["fat"]).start();
    wait_for("a build that fails for want of space", PATIENCE, || (has_built(&mesh[2]) == 1).then_some(()));
    drop(busy);
    let finished = client.finish(PATIENCE).expect_code(0);
    assert!(finished.stderr.contains("it is built again"), "{finished}");
    assert!(mesh[1].nar_hash(&built(&finished)[0]).is_some(), "{finished}");
    let before = has_built(&mesh[2]);
    goes_on(&machine, &mut mesh, "after");
    assert!(has_built(&mesh[2]) > before, "it has room again, and builds");
}

#[test]
fn a_derivation_that_kills_each_node_it_runs_on_is_given_up() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = start(&machine, 2);
    let mut client = build(&machine, &mesh, "", &["silent"]).start();
    let mut kills = 0;
    loop {
        let victim = wait_for("a builder, or the client's end", PATIENCE, || {
            let runs = [1, 2].into_iter().find(|node| !mesh[*node].builders().is_empty());
            runs.map(Some).or_else(|| client.has_ended().then_some(None))
        });
        let Some(victim) = victim else { break };
        kills += 1;
        assert!(kills <= TRIES_MAX, "it is tried once more");
        mesh[victim].crash();
        mesh[victim].start_again();
    }
    let finished = client.finish(PATIENCE);
    println!("{kills} nodes killed in {:?}", finished.took);
    assert_eq!(kills, TRIES_MAX, "{finished}");
    assert!(!finished.status.success() && finished.stderr.contains("silent"), "{finished}");
    goes_on(&machine, &mut mesh, "after");
}

/// A derivation made by a builder of another node claims what is another's.
#[test]
fn a_derivation_whose_outputs_do_not_follow_from_it_is_refused_by_its_executor() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = start(&machine, 1);
    let file = place::repository().join("tests/nix/forge.nix").display().to_string();
    let busybox = machine.nix.busybox().display().to_string();
    let features = ["--option", "extra-experimental-features", "ca-derivations dynamic-derivations"];
    let build = |attribute: &str| {
        let build = machine.remote("nix-build", &mesh[0], Remote::SshNg).args(features);
        build.args([&file, "--no-out-link", "--arg", "busybox", &busybox, "-A", attribute])
    };
    let refused = build("forged").fails();
    assert!(refused.stderr.contains("derivation has incorrect output"), "{refused}");
    let refused = build("garbage").fails();
    assert!(refused.stderr.contains("error parsing derivation"), "{refused}");
    build("victim").ok();
    goes_on(&machine, &mut mesh, "after");
}

#[test]
fn nodes_whose_clocks_are_minutes_apart_build_together() {
    let machine = Machine::new(&Nix::newest());
    let dag = Dag { nodes: 30, seed: 5, nap_ms: 100 };
    let mut mesh = start(&machine, 0);
    for (number, seconds) in [(1, CLOCK_OFFSET_S), (2, -CLOCK_OFFSET_S)] {
        let name = format!("n{number}");
        let node = Node::prepare(&["--name", &name, "--max-jobs", "1", "--join", &invite(&mesh[0], "")]);
        let Some(mut node) = clocks::ahead(node, seconds) else { return skip("no C compiler") };
        node.start_again();
        mesh.nodes.push(node);
    }
    mesh.wait_until_whole();
    dag.build(&machine, &mesh[0], "").patience(PATIENCE).ok();
    assert!(has_built(&mesh[1]) > 0 && has_built(&mesh[2]) > 0);
    mesh[1].kill();
    dag.build(&machine, &mesh[0], "again").patience(PATIENCE).ok();
}

/// Longer than nodes send each other, asked of a node that builds nothing itself.
#[test]
fn a_derivation_that_nobody_can_be_sent_fails_at_once_and_says_why() {
    let machine = Machine::new(&Nix::newest());
    // Clients do not send it over ssh-ng.
    let mut mesh = start_with(&machine, 2, &["--keep-going"]);
    let needy = build(&machine, &mesh, "", &["afterLong"]).patience(SILENCE_PATIENCE).fails();
    println!("refused in {:?}", needy.took);
    for part in ["too long to be sent to another node", "this one builds nothing", "long.drv"] {
        assert!(needy.stderr.contains(part), "{part}: {needy}");
    }
    // Others of the same request are built.
    let both = build(&machine, &mesh, "", &["long", "hello"]).fails();
    assert!(both.stderr.contains("too long to be sent to another node"), "{both}");
    assert_eq!(has_built(&mesh[1]) + has_built(&mesh[2]), 1, "{both}");
    // A node that builds does.
    shapes::build_command(&machine, &mesh[1], Remote::SshNg, "", &["afterLong"]).patience(PATIENCE).ok();
    goes_on(&machine, &mut mesh, "after");
}
