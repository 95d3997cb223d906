//! Nodes are killed in each step of a build, which takes a while in each of them: inputs are big and move slowly.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitStatus;
use std::time::Duration;

use shoal_grid::ring::{NodeId, Ring};
use shoal_tests::command::{Running, wait_for};
use shoal_tests::mesh::invite;
use shoal_tests::random::Random;
use shoal_tests::{Cmd, Dag, Finished, Machine, Mesh, Nix, Node, Remote, built, place, shapes, skip};
use shoal_wire::mesh::builds::claim_key;
use shoal_wire::nix::base64::decode_hex_into;
use shoal_wire::nix::store_path::StoreDir;

use crate::grid::{builds, has_built};
use crate::grid_faults::Mount;

const PATIENCE: Duration = Duration::from_secs(120);
/// At [`RATE`], moved twice.
const IMAGE_LEN: usize = 5 << 20;
/// What a node sends in a second; two requests are to be in a step of two or three at once at the slower one.
const RATE: &str = "3MiB";
const SLOWER: &str = "2MiB";
const SMALL: Dag = Dag { nodes: 30, seed: 3, nap_ms: 150 };
/// Requests whose client ends before anybody has seen them in a step that is short, on a busy machine.
const TRIES_MAX: usize = 5;
/// Numbers of requests from which tries of one kind are taken.
const KIND: u64 = 1_000;
/// Of executors whose disks are filled: nothing but the filler needs more.
const DISK: &str = "size=256m";
const DISK_LEN: usize = 256 << 20;
const ENTRIES: usize = 4;
const EXECUTORS: usize = 4;

/// A step of a build as `shoal explain` calls it, and whether the entry tells of it. Of others only the executor knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    state: &'static str,
    at_entry: bool,
}

const INPUTS: Step = Step { state: "fetches-inputs", at_entry: false };
const BUILD: Step = Step { state: "builds", at_entry: false };
const STORE: Step = Step { state: "stores", at_entry: false };
const COPIES: Step = Step { state: "copies", at_entry: true };
/// Nodes have agreed; one of them makes what it has the outputs, and copies them.
const PUBLISHES: Step = Step { state: "stores", at_entry: true };

/// Entries that build nothing and keep what they are given to themselves, and executors; all send slowly.
struct Cast {
    machine: Machine,
    mesh: Mesh,
}

/// A request in one of its steps, of which the executor `at` has the derivation.
struct Seen {
    client: Running,
    /// The same of another entry, which follows the first one's.
    follower: Option<Running>,
    drv: String,
    request: u64,
    entry: usize,
    at: usize,
}

impl Cast {
    /// `rate`: what each sends in a second. `entry`: more flags of entries.
    fn new(rate: &str, entry: &[&str]) -> Cast {
        let mut cast = Cast::of_entries(rate, entry);
        let executor = ["--max-jobs", "1", "--mesh-upload-rate", rate];
        (0..EXECUTORS).for_each(|_| cast.mesh.add(&[&cast.machine], &executor));
        cast.mesh.wait_until_whole();
        cast
    }

    fn of_entries(rate: &str, entry: &[&str]) -> Cast {
        let machine = Machine::new(&Nix::newest());
        let mut mesh = Mesh { nodes: Vec::new() };
        let flags = [&["--no-build", "--copies", "1", "--mesh-upload-rate", rate], entry].concat();
        (0..ENTRIES).for_each(|_| mesh.add(&[&machine], &flags));
        Cast { machine, mesh }
    }

    /// The same with executors whose disks can be filled; `None` where they cannot be made.
    fn on_small_disks() -> Option<(Cast, Vec<Mount>)> {
        let mut cast = Cast::of_entries(RATE, &[]);
        let mut disks = Vec::new();
        for number in ENTRIES..ENTRIES + EXECUTORS {
            let (name, ticket) = (format!("n{number}"), invite(&cast.mesh[0], ""));
            let flags = ["--name", &name, "--join", &ticket, "--max-jobs", "1", "--mesh-upload-rate", RATE];
            let mut node = Node::prepare(&flags);
            disks.push(Mount::tmpfs(&node.data_dir(), DISK)?);
            node.start_again();
            cast.mesh.nodes.push(node);
        }
        cast.mesh.wait_until_whole();
        Some((cast, disks))
    }

    /// What a request is about: other bytes for each, so that no node has any of it.
    fn image(&self, request: u64) -> Vec<u8> {
        Random::of(request).noise(IMAGE_LEN)
    }

    /// A file of the machine, written once: clients read it.
    fn file(&self, name: &str, bytes: impl FnOnce() -> Vec<u8>) -> String {
        let path = self.machine.path(name);
        if !path.exists() {
            fs::write(&path, bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        path.display().to_string()
    }

    /// Hash of what a request should come to.
    fn expected(&self, request: u64) -> String {
        let more = || self.image(request).into_iter().map(|byte| byte.wrapping_add(1)).collect::<Vec<u8>>().repeat(8);
        let file = self.file(&format!("expected-{request}"), more);
        let hash = self.machine.local("nix-hash").args(["--type", "sha256", "--base64", &file]).ok();
        format!("sha256-{}", hash.text())
    }

    fn arguments(&self, request: u64) -> Vec<String> {
        let image = self.file(&format!("image-{request}"), || self.image(request));
        let file = place::repository().join("tests/nix/steps.nix").display().to_string();
        let busybox = self.machine.nix.busybox().display().to_string();
        let named = ["--arg", "busybox", &busybox, "--arg", "image", &image].map(String::from);
        std::iter::once(file).chain(named).collect()
    }

    fn run(&self, program: &str, entry: usize, request: u64) -> Cmd {
        let cmd = self.machine.remote(program, &self.mesh[entry], Remote::SshNg);
        cmd.args(self.arguments(request)).patience(PATIENCE)
    }

    fn build(&self, entry: usize, request: u64) -> Cmd {
        self.run("nix-build", entry, request).arg("--no-out-link")
    }

    /// Which node answers for the claim of a request's derivation, as far as `entry` knows.
    fn owner(&self, entry: usize, request: u64) -> usize {
        let drv = self.machine.local("nix-instantiate").args(self.arguments(request)).ok();
        let drv = StoreDir::default().parse(drv.text()).unwrap_or_else(|error| panic!("{error}: {drv}"));
        let live = (0..self.mesh.nodes.len()).filter(|node| self.mesh[*node].runs());
        let members = members(&self.mesh[entry]);
        let key = |node: usize| members[&format!("n{node}")];
        let ring: Ring = live.clone().map(key).collect();
        let owner = ring.successors(&claim_key(&drv)).next();
        live.into_iter().find(|node| Some(key(*node)) == owner).expect("an owner")
    }

    /// A request of the first entry that lives when its derivation is in `step`; one of [`TRIES_MAX`] of a kind.
    fn until(&self, kind: u64, step: Step) -> Seen {
        let entry = (0..ENTRIES).find(|node| self.mesh[*node].runs()).expect("an entry");
        seen(step, kind * KIND.., |request| self.see(entry, request, step, None))
    }

    /// Asks an entry, and another one when the first has placed it, and looks on until the derivation is in `step` and the
    /// other one follows. `None` if one of both has ended before.
    fn see(&self, entry: usize, request: u64, step: Step, other: Option<usize>) -> Option<Seen> {
        // The other entry alone has the sources, so they are not lost with the first.
        let drv = self.run("nix-instantiate", other.unwrap_or(entry), request).ok().text().to_string();
        let mut client = self.build(entry, request).start();
        let (mut follower, mut placed) = (None::<Running>, None);
        let at = wait_for(step.state, PATIENCE, || {
            if let Some(ended) = [Some(&mut client), follower.as_mut()].into_iter().flatten().find_map(ended) {
                assert!(ended.success(), "request {request} failed");
                return Some(None);
            }
            placed = placed.or_else(|| self.placed(entry, &drv));
            let at = placed?;
            if let Some(other) = other {
                let follower = follower.get_or_insert_with(|| self.build(other, request).start());
                if follower.has_ended() || state(&self.mesh[other], &drv).as_deref() != Some("follows") {
                    return None;
                }
            }
            let knows = if step.at_entry { entry } else { at };
            (state(&self.mesh[knows], &drv).as_deref() == Some(step.state)).then_some(Some(at))
        })?;
        Some(Seen { client, follower, drv, request, entry, at })
    }

    /// Which executor the entry says it is at.
    fn placed(&self, entry: usize, drv: &str) -> Option<usize> {
        let told = explain(&self.mesh[entry], drv)?;
        let words = told["text"].as_str()?.split(|letter: char| !letter.is_alphanumeric());
        words.filter_map(|word| word.strip_prefix('n')?.parse().ok()).next()
    }

    fn back(&mut self, node: usize) {
        self.mesh[node].start_again();
        self.mesh.wait_until_whole();
    }

    /// The first executor that has outputs of a derivation.
    fn holder(&self, entry: usize, drv: &str) -> usize {
        let asked = self.machine.remote("nix-store", &self.mesh[entry], Remote::SshNg);
        let output = asked.args(["--query", "--outputs", drv]).ok().text().to_string();
        wait_for("valid outputs", PATIENCE, || {
            (ENTRIES..ENTRIES + EXECUTORS).find(|node| self.mesh[*node].valid().contains(&output))
        })
    }

    /// How many nodes that run have built it.
    fn have_built(&self, drv: &str) -> usize {
        self.mesh.nodes.iter().filter(|node| node.runs() && has_built_it(node, drv)).count()
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

/// The first of [`TRIES_MAX`] requests that is seen in a step.
fn seen<T>(step: Step, requests: impl Iterator<Item = u64>, see: impl FnMut(u64) -> Option<T>) -> T {
    let seen = requests.take(TRIES_MAX).find_map(see);
    seen.unwrap_or_else(|| panic!("{TRIES_MAX} requests have ended before one was seen in this step: {}", step.state))
}

fn has_built_it(node: &Node, drv: &str) -> bool {
    builds(node, |build| build["state"] == "built" && build["drv_path"] == drv) > 0
}

/// How it ended, if it has.
fn ended(running: &mut Running) -> Option<ExitStatus> {
    running.has_ended().then(|| running.wait(PATIENCE))
}

/// Keys of all members by name, as a node knows them.
fn members(node: &Node) -> BTreeMap<String, NodeId> {
    let peers = node.shoal("peers --json").ok().json();
    let member = |peer: &serde_json::Value| {
        let mut key = NodeId::default();
        decode_hex_into(peer["node_id"].as_str()?.as_bytes(), &mut key).ok()?;
        Some((peer["name"].as_str()?.to_string(), key))
    };
    peers.as_array().into_iter().flatten().filter_map(member).collect()
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
    let mut cast = Cast::new(RATE, &[]);
    for (kind, step) in [(1, INPUTS), (2, STORE), (3, COPIES)] {
        let Seen { client, request, entry, .. } = cast.until(kind, step);
        cast.mesh[entry].kill();
        let finished = client.finish(PATIENCE);
        assert!(!finished.status.success(), "its link is broken: {finished}");
        let finished = cast.build(entry + 1, request).ok();
        println!("entry n{entry} killed when its build {}: {:?}", step.state, finished.took);
        assert_eq!(cast.hash(&finished), cast.expected(request), "{step:?}");
    }
    for (kind, step) in [(4, INPUTS), (5, STORE), (6, COPIES)] {
        let Seen { client, request, at, .. } = cast.until(kind, step);
        cast.mesh[at].kill();
        let finished = client.finish(PATIENCE).expect_code(0);
        println!("executor n{at} killed when it {}: {:?}", step.state, finished.took);
        assert_eq!(cast.hash(&finished), cast.expected(request), "{step:?}");
    }
}

/// The node that gave the claim dies, which has no other part in the build.
#[test]
fn an_owner_of_claims_may_die_in_each_step() {
    let mut cast = Cast::new(RATE, &[]);
    for (kind, step) in [(1, INPUTS), (2, STORE), (3, COPIES)] {
        let is_idle = |request: &u64| (1..ENTRIES).contains(&cast.owner(0, *request));
        let Seen { client, request, .. } =
            seen(step, (kind * KIND..).filter(is_idle), |request| cast.see(0, request, step, None));
        let owner = cast.owner(0, request);
        cast.mesh[owner].kill();
        let finished = client.finish(PATIENCE).expect_code(0);
        println!("owner n{owner} killed when a build {}: {:?}", step.state, finished.took);
        assert_eq!(cast.hash(&finished), cast.expected(request), "{step:?}");
    }
}

/// Two nodes must agree; another one votes instead of the one that is lost.
#[test]
fn a_voter_may_die_in_each_step() {
    let mut cast = Cast::new(RATE, &["--build-quorum", "2"]);
    for (kind, step) in [(1, INPUTS), (2, STORE), (3, PUBLISHES)] {
        let Seen { client, drv, request, entry, at, .. } = cast.until(kind, step);
        // Who votes has no valid outputs, and who published them copies them.
        let victim = if step == PUBLISHES { cast.holder(entry, &drv) } else { at };
        cast.mesh[victim].kill();
        let finished = client.finish(PATIENCE).expect_code(0);
        println!("voter n{victim} killed, step {step:?}: {:?}", finished.took);
        assert_eq!(cast.hash(&finished), cast.expected(request), "{step:?}");
        // One has died after it had voted.
        let needed = if step == PUBLISHES { 1 } else { 2 };
        assert!(cast.have_built(&drv) >= needed, "{step:?}: {finished}");
        cast.back(victim);
    }
}

/// Its executor goes on, and who follows hears of the end.
#[test]
fn a_coordinator_that_another_node_follows_may_die_in_each_step() {
    let (mut cast, entry, other) = (Cast::new(SLOWER, &[]), 0, 1);
    for (kind, step) in [(1, INPUTS), (2, STORE), (3, COPIES)] {
        let Seen { mut client, follower, request, .. } =
            seen(step, kind * KIND.., |request| cast.see(entry, request, step, Some(other)));
        cast.mesh[entry].kill();
        client.wait(PATIENCE);
        let finished = follower.expect("one that follows").finish(PATIENCE).expect_code(0);
        println!("coordinator n{entry} killed when a build that is followed {}: {:?}", step.state, finished.took);
        assert_eq!(cast.hash(&finished), cast.expected(request), "{step:?}");
        cast.back(entry);
    }
    let Seen { client, follower, drv, request, .. } =
        seen(COPIES, 4 * KIND.., |request| cast.see(entry, request, COPIES, Some(other)));
    let ends = [client, follower.expect("one that follows")].map(|client| client.finish(PATIENCE).expect_code(0));
    cast.mesh[entry].kill();
    assert_eq!(cast.have_built(&drv), 1);
    assert_eq!(cast.hash(&ends[1]), cast.expected(request));
    let again = cast.build(other, request).ok();
    assert_eq!((built(&again), cast.have_built(&drv)), (built(&ends[0]), 1), "{again}");
}

/// Something else fills it from one moment to the next, and is gone when the client was told of the end.
#[test]
fn an_executors_disk_may_run_full_in_each_step() {
    let Some((cast, _disks)) = Cast::on_small_disks() else { return skip("no small disk: mounting takes root") };
    for (kind, step) in [(1, INPUTS), (2, BUILD), (3, STORE), (4, COPIES)] {
        let Seen { client, drv, request, at, .. } = cast.until(kind, step);
        let filler = cast.mesh[at].data_dir().join("filler");
        // As much as there is.
        let _ = fs::write(&filler, vec![1; 2 * DISK_LEN]);
        let finished = client.finish(PATIENCE).expect_code(0);
        println!("the disk of n{at} filled, step {step:?}: {:?}", finished.took);
        assert_eq!(cast.hash(&finished), cast.expected(request), "{step:?}");
        if step == INPUTS || step == BUILD {
            let ends = [has_built_it(&cast.mesh[at], &drv), cast.have_built(&drv) == 1];
            assert_eq!(ends, [false, true], "built elsewhere: {finished}");
        }
        fs::remove_file(&filler).unwrap_or_else(|error| panic!("the filler: {error}"));
    }
    // All are as good as new.
    let counts = || cast.mesh.nodes[ENTRIES..].iter().map(has_built).collect::<Vec<_>>();
    let (before, mut rounds) = (counts(), 0..);
    wait_for("builds on all executors", PATIENCE, || {
        let salt = format!("round {:?}", rounds.next());
        shapes::build_command(&cast.machine, &cast.mesh[0], Remote::SshNg, &salt, &["naps"]).ok();
        counts().iter().zip(&before).all(|(after, before)| after > before).then_some(())
    });
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
