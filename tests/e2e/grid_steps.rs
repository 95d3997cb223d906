//! Nodes are killed in each step of a build, which takes a while in each of them: inputs are big and move slowly.

use std::fs;
use std::time::Duration;

use shoal_tests::command::{Running, wait_for};
use shoal_tests::random::Random;
use shoal_tests::{Cmd, Dag, Finished, Machine, Mesh, Nix, Node, Remote, built, place};

use crate::grid::has_built;

const PATIENCE: Duration = Duration::from_secs(120);
/// At 3 MiB a second, moved twice.
const IMAGE_LEN: usize = 5 << 20;
const SMALL: Dag = Dag { nodes: 30, seed: 3, nap_ms: 150 };
/// Requests whose client ends before anybody has seen them in a step that is short, on a busy machine.
const TRIES_MAX: u64 = 5;
const ENTRIES: usize = 4;
const EXECUTORS: usize = 4;

/// Entries that build nothing and keep what they are given to themselves, and executors; all send slowly.
struct Cast {
    machine: Machine,
    mesh: Mesh,
}

/// A request in one of its steps, of which the executor `at` has the derivation.
struct Seen {
    client: Running,
    request: u64,
    entry: usize,
    at: usize,
}

impl Cast {
    fn new() -> Cast {
        let machine = Machine::new(&Nix::newest());
        let mut mesh = Mesh { nodes: Vec::new() };
        let slow = ["--mesh-upload-rate", "3MiB"];
        (0..ENTRIES).for_each(|_| mesh.add(&[&machine], &[&["--no-build", "--copies", "1"], &slow[..]].concat()));
        (0..EXECUTORS).for_each(|_| mesh.add(&[&machine], &[&["--max-jobs", "1"], &slow[..]].concat()));
        mesh.wait_until_whole();
        Cast { machine, mesh }
    }

    /// What a request is about: other bytes for each, so that no node has any of it.
    fn image(&self, request: u64) -> Vec<u8> {
        Random::of(request).noise(IMAGE_LEN)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.machine.path(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        path.display().to_string()
    }

    /// Hash of what a request should come to.
    fn expected(&self, request: u64) -> String {
        let more: Vec<u8> = self.image(request).into_iter().map(|byte| byte.wrapping_add(1)).collect();
        let file = self.write("expected", &more.repeat(8));
        let hash = self.machine.local("nix-hash").args(["--type", "sha256", "--base64", &file]).ok();
        format!("sha256-{}", hash.text())
    }

    fn run(&self, program: &str, entry: usize, request: u64) -> Cmd {
        let image = self.write("image", &self.image(request));
        let file = place::repository().join("tests/nix/steps.nix").display().to_string();
        let busybox = self.machine.nix.busybox().display().to_string();
        let cmd = self.machine.remote(program, &self.mesh[entry], Remote::SshNg).arg(file).patience(PATIENCE);
        cmd.args(["--arg", "busybox", &busybox, "--arg", "image", &image])
    }

    fn build(&self, entry: usize, request: u64) -> Cmd {
        self.run("nix-build", entry, request).arg("--no-out-link")
    }

    /// A request of the first entry that lives when its derivation is in `step`; one of [`TRIES_MAX`] with numbers from
    /// that of `kind` on.
    fn until(&self, kind: u64, step: &str) -> Seen {
        let entry = (0..ENTRIES).find(|node| self.mesh[*node].runs()).expect("an entry");
        let first = kind * TRIES_MAX;
        let seen = (first..first + TRIES_MAX).find_map(|request| self.see(entry, request, step));
        seen.unwrap_or_else(|| panic!("{TRIES_MAX} requests have ended before one was seen in this step: {step}"))
    }

    /// Asks an entry, and looks on until the derivation is in `step`. `None` if it has ended unseen.
    fn see(&self, entry: usize, request: u64, step: &str) -> Option<Seen> {
        let drv = self.run("nix-instantiate", entry, request).ok().text().to_string();
        let mut client = self.build(entry, request).start();
        let mut placed = None;
        let at = wait_for(step, PATIENCE, || {
            if client.has_ended() {
                assert!(client.wait(PATIENCE).success(), "request {request} failed");
                return Some(None);
            }
            placed = placed.or_else(|| self.placed(entry, &drv));
            let at = placed?;
            // Of the last steps only the executor knows which it is in, and of the copies the entry.
            let knows = if step == "copies" { entry } else { at };
            (state(&self.mesh[knows], &drv).as_deref() == Some(step)).then_some(Some(at))
        })?;
        Some(Seen { client, request, entry, at })
    }

    /// Which executor the entry says it is at.
    fn placed(&self, entry: usize, drv: &str) -> Option<usize> {
        let told = explain(&self.mesh[entry], drv)?;
        let words = told["text"].as_str()?.split(|letter: char| !letter.is_alphanumeric());
        words.filter_map(|word| word.strip_prefix('n')?.parse().ok()).next()
    }

    /// Hash of what a client was given, from whoever has it.
    fn hash(&self, finished: &Finished) -> String {
        let path = built(finished).pop().unwrap_or_else(|| panic!("no path: {finished}"));
        let running = self.mesh.nodes.iter().filter(|node| node.runs());
        let mut hashes: Vec<String> = running.filter_map(|node| node.nar_hash(&path)).collect();
        hashes.dedup();
        assert_eq!(hashes.len(), 1, "nodes have {hashes:?} of {path}");
        hashes.remove(0)
    }
}

fn explain(node: &Node, drv: &str) -> Option<serde_json::Value> {
    let told = node.shoal("explain --json").arg(drv).run();
    (told.status.code() == Some(0)).then(|| told.json()[0].clone())
}

fn state(node: &Node, drv: &str) -> Option<String> {
    explain(node, drv)?["state"].as_str().map(String::from)
}

/// Inputs are at the entry alone, and outputs at their executor alone until they are copied.
#[test]
fn an_entry_and_an_executor_may_die_in_each_step() {
    let mut cast = Cast::new();
    for (kind, step) in [(1, "fetches-inputs"), (2, "stores"), (3, "copies")] {
        let Seen { client, request, entry, .. } = cast.until(kind, step);
        cast.mesh[entry].kill();
        let finished = client.finish(PATIENCE);
        assert!(!finished.status.success(), "its link is broken: {finished}");
        let finished = cast.build(entry + 1, request).ok();
        println!("entry n{entry} killed when its build {step}: {:?}", finished.took);
        assert_eq!(cast.hash(&finished), cast.expected(request), "{step}");
    }
    for (kind, step) in [(4, "fetches-inputs"), (5, "stores"), (6, "copies")] {
        let Seen { client, request, at, .. } = cast.until(kind, step);
        cast.mesh[at].kill();
        let finished = client.finish(PATIENCE).expect_code(0);
        println!("executor n{at} killed when it {step}: {:?}", finished.took);
        assert_eq!(cast.hash(&finished), cast.expected(request), "{step}");
    }
}

/// What it had is needed by a request that comes then, and asked for again.
#[test]
fn the_holder_of_the_only_copies_may_die_before_they_are_needed_and_after_a_client_was_told() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    for own in [&["--no-build"][..], &["--max-jobs", "1"], &["--max-jobs", "1"]] {
        mesh.add(&[&machine], &[own, &["--copies", "1"]].concat());
    }
    mesh.wait_until_whole();
    let larger = Dag { nodes: SMALL.nodes + 10, ..SMALL };
    let content = |mesh: &Mesh, dag: Dag, salt: &str| {
        let finished = dag.build(&machine, &mesh[0], salt).patience(PATIENCE).ok();
        let path = built(&finished).pop().expect("a path");
        mesh.nodes.iter().filter(|node| node.runs()).find_map(|node| node.nar_hash(&path)).expect("a holder")
    };
    let expected = [content(&mesh, SMALL, ""), content(&mesh, larger, "undisturbed")];
    assert!(has_built(&mesh[1]) > 0 && has_built(&mesh[2]) > 0);
    mesh[1].kill();
    assert_eq!([content(&mesh, SMALL, ""), content(&mesh, larger, "")], expected);
}

/// The node that has all claims dies under who follows it.
#[test]
fn a_coordinator_may_die_whose_builds_another_node_follows() {
    let (machine, other) = (Machine::new(&Nix::newest()), Machine::new(&Nix::newest()));
    let mut mesh = Mesh { nodes: Vec::new() };
    for own in [&["--no-build"][..], &["--no-build"], &["--max-jobs", "1"], &["--max-jobs", "1"]] {
        mesh.add(&[&machine, &other], own);
    }
    mesh.wait_until_whole();
    let hash = |mesh: &Mesh, finished: &Finished| {
        let path = built(finished).pop().expect("a path");
        mesh.nodes.iter().filter(|node| node.runs()).find_map(|node| node.nar_hash(&path)).expect("a holder")
    };
    let expected = hash(&mesh, &SMALL.build(&machine, &mesh[0], "undisturbed").ok());
    let mut client = SMALL.build(&machine, &mesh[0], "").start();
    wait_for("builders", PATIENCE, || (!mesh[2].builders().is_empty() && !mesh[3].builders().is_empty()).then_some(()));
    let follower = SMALL.build(&other, &mesh[1], "").start();
    wait_for("one that follows", PATIENCE, || {
        mesh[1].shoal("builds --json").ok().text().contains("\"running\"").then_some(())
    });
    mesh[0].kill();
    client.wait(PATIENCE);
    let finished = follower.finish(PATIENCE).expect_code(0);
    println!("the coordinator that was followed killed: {:?}", finished.took);
    assert_eq!(hash(&mesh, &finished), expected);
}
