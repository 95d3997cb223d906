//! Many clients at once.

use std::fs::{self, File};
use std::time::Duration;

use shoal_tests::command::{Running, wait_for};
use shoal_tests::{Machine, Mesh, Nix, Remote, shapes};

use crate::grid::{builds, narrow, runs_itself, until_all_build};

const NODES: usize = 5;
/// Clients of each node before it is built, and when its builder has begun to speak.
const EARLY_EACH: usize = 3;
const LATE_EACH: usize = 1;
const CLIENT_PATIENCE: Duration = Duration::from_secs(180);
/// From a client's start until it hears a builder that runs, on a busy machine.
const WORD_PATIENCE: Duration = Duration::from_secs(60);

/// A client whose words are read while it runs.
struct Client<'a> {
    machine: &'a Machine,
    number: usize,
    running: Running,
}

impl<'a> Client<'a> {
    fn start(machine: &'a Machine, mesh: &Mesh, number: usize, attribute: &str) -> Client<'a> {
        let into = |stream| File::create(file(machine, stream, number)).unwrap().into();
        let build = shapes::build_command(machine, &mesh[number % NODES], Remote::SshNg, "", &[attribute]);
        Client { machine, number, running: build.start_into(into("said"), into("heard")) }
    }

    /// Its output so far: `said` or `heard`.
    fn text(&self, stream: &str) -> String {
        fs::read_to_string(file(self.machine, stream, self.number)).unwrap()
    }

    /// It says what it will have built and asks for it.
    fn has_asked(&self) -> bool {
        self.text("heard").contains("-talks.drv")
    }
}

fn file(machine: &Machine, stream: &str, number: usize) -> std::path::PathBuf {
    machine.path(&format!("{stream}-{number}"))
}

/// Wherever they ask, and whenever they come to it.
#[test]
fn twenty_clients_of_five_nodes_that_want_one_derivation_have_it_built_once_and_hear_all_of_it() {
    let machines: Vec<Machine> = (0..NODES).map(|_| Machine::new(&Nix::newest())).collect();
    let mesh = narrow(NODES, &machines.iter().collect::<Vec<_>>());
    // No node has a place for it before they have asked.
    let busy = ["one", "other"]
        .map(|salt| shapes::build_command(&machines[0], &mesh[0], Remote::SshNg, salt, &["asleep"]).start());
    until_all_build(&mesh);
    let start = |number| Client::start(&machines[number % NODES], &mesh, number, "talks");
    let mut clients: Vec<Client> = (0..NODES * EARLY_EACH).map(start).collect();
    wait_for("clients that have asked", CLIENT_PATIENCE, || clients.iter().all(Client::has_asked).then_some(()));
    drop(busy);
    wait_for("the first words", CLIENT_PATIENCE, || clients[0].text("heard").contains("word ").then_some(()));
    clients.extend((clients.len()..NODES * (EARLY_EACH + LATE_EACH)).map(start));
    let whole: Vec<String> = (0..200).map(|word| format!("word {word}")).collect();
    let mut paths = Vec::new();
    let mut in_time = 0;
    for mut client in clients {
        let status = client.running.wait(CLIENT_PATIENCE);
        let (said, heard) = (client.text("said"), client.text("heard"));
        assert!(status.success(), "client {}: {status}\n{heard}", client.number);
        let words: Vec<&str> = heard.lines().filter(|line| line.starts_with("word ")).collect();
        // Who comes after the end hears nothing, and nobody a part.
        let is_late = client.number >= NODES * EARLY_EACH;
        assert!(words == whole || is_late && words.is_empty(), "client {} hears {words:?}", client.number);
        in_time += usize::from(words == whole);
        paths.extend(said.lines().map(String::from));
    }
    println!("{in_time} of {} clients hear it", paths.len());
    assert_eq!(paths.len(), NODES * (EARLY_EACH + LATE_EACH));
    paths.dedup();
    assert_eq!(paths.len(), 1, "{paths:?}");
    let has_spoken =
        |build: &serde_json::Value| build["drv_path"].as_str().is_some_and(|path| path.ends_with("-talks.drv"));
    assert_eq!(mesh.nodes.iter().map(|node| builds(node, has_spoken)).sum::<usize>(), 1, "builders that ran");
}

/// It has no place for it: its only one has that very build.
#[test]
fn a_client_of_a_node_that_builds_what_it_wants_for_another_hears_that_build() {
    let machines = [Machine::new(&Nix::newest()), Machine::new(&Nix::newest())];
    let known: Vec<&Machine> = machines.iter().collect();
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&known, &["--no-build"]);
    mesh.add(&known, &["--max-jobs", "1"]);
    mesh.wait_until_whole();
    let mut clients = Vec::new();
    for (number, machine) in machines.iter().enumerate() {
        let client = Client::start(machine, &mesh, number, "sleeps");
        let hears = || client.text("heard").contains("now asleep").then_some(());
        wait_for("the first words", WORD_PATIENCE, hears);
        clients.push(client);
    }
    assert_eq!(runs_itself(&mesh[1]), 1);
}
