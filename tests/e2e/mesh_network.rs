//! A mesh of machines on a network that breaks.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use shoal_tests::cable::Quality;
use shoal_tests::command::wait_for;
use shoal_tests::mesh::{invite, is_live, peers};
use shoal_tests::network::Network;
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, is_full, shapes};

use crate::mesh::substitute;

/// Until all on one side know that the other is gone, and that it is back: a busy machine takes its time.
const HEARD_PATIENCE: Duration = Duration::from_secs(90);
/// How long the network stays broken once everybody knows.
const BROKEN: Duration = Duration::from_secs(2);
const BROKEN_FULL: Duration = Duration::from_secs(60);
/// Between two machines: 100 Mbit/s, a round trip of 40 ms, and two packets of a hundred lost each way.
const FAR: Quality = Quality { bytes_s: 100e6 / 8.0, delay: Duration::from_millis(10), lost_per_mille: 10 };
/// What a newcomer may take from two machines to a mesh.
const NEWCOMER_PATIENCE: Duration = Duration::from_secs(120);

fn live(node: &Node) -> BTreeSet<String> {
    peers(node).into_iter().filter(|(_, state)| is_live(state)).map(|(name, _)| name).collect()
}

fn wait_for_live(nodes: &[&Node], names: &[&str]) {
    let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    wait_for("a mesh that is seen as it is", HEARD_PATIENCE, || {
        nodes.iter().all(|node| live(node) == names).then_some(())
    });
}

#[test]
fn halves_go_on_by_themselves_and_are_one_store_again() {
    let Some(network) = Network::start_far(5, FAR) else { return };
    let machine = Machine::new(&Nix::newest());
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..5 {
        let ticket = nodes.first().map(|first| invite(first, ""));
        let (name, mesh) = (format!("n{number}"), format!("{}:7433", network.address(number)));
        let mut flags = vec!["--name", &name, "--mesh", &mesh];
        flags.extend(ticket.iter().flat_map(|ticket| ["--join", ticket]));
        let mut node = Node::prepare(&flags).within(&network.namespace(number));
        node.write_keys(&machine.public_key());
        node.start_again();
        nodes.push(node);
    }
    let all = ["n0", "n1", "n2", "n3", "n4"];
    wait_for_live(&nodes.iter().collect::<Vec<_>>(), &all);
    let build = |node: &Node, salt: &str| {
        let build = shapes::build_command(&machine, node, Remote::SshNg, salt, &["chain"]);
        shoal_tests::built(&build.ok()).remove(0)
    };
    let before = build(&nodes[1], "before");
    let log: String = nodes.iter().map(Node::log).collect();
    assert!(!log.contains("a node is dead"), "nobody is taken for dead because packets are lost:\n{log}");
    network.split(&[3, 4]);
    wait_for_live(&[&nodes[0], &nodes[1], &nodes[2]], &all[..3]);
    wait_for_live(&[&nodes[3], &nodes[4]], &all[3..]);
    let (here, there) = (build(&nodes[0], "here"), build(&nodes[4], "there"));
    thread::sleep(if is_full() { BROKEN_FULL } else { BROKEN });
    network.heal();
    wait_for_live(&nodes.iter().collect::<Vec<_>>(), &all);
    let key = nodes[0].key();
    let paths = [before, here, there];
    for node in &nodes {
        substitute(&Nix::newest(), node, &key, &paths);
    }
    let mesh = Mesh { nodes };
    assert!(paths.iter().all(|path| mesh.holders(path) >= 2), "something is on one node only");
    let log: String = mesh.nodes.iter().map(Node::log).collect();
    assert!(!log.contains("different contents"), "nobody stored anything twice differently:\n{log}");
}

/// Two machines, the program, and what the README says.
#[test]
fn a_newcomer_has_a_mesh_of_two_machines_in_two_minutes() {
    let Some(network) = Network::start(2) else { return };
    let since = Instant::now();
    let start = |number: usize, flags: &[&str]| {
        // The ports that nobody chose.
        let usual = ["--ssh", "[::]:2222", "--http", "[::]:8080", "--mesh", "[::]:7433"];
        let mut node = Node::prepare(&[&usual[..], flags].concat()).within(&network.namespace(number));
        node.start_again();
        node
    };
    let first = start(0, &["--name", "first"]);
    let ticket = invite(&first, "");
    let second = start(1, &["--name", "second", "--join", &ticket]);
    wait_for_live(&[&first, &second], &["first", "second"]);
    assert!(since.elapsed() < NEWCOMER_PATIENCE, "{:?}", since.elapsed());
}
