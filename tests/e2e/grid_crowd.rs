//! Many clients at once.

use std::time::Duration;

use shoal_tests::{Machine, Mesh, Nix, Remote, built, shapes};

use crate::grid::has_built;

const NODES: usize = 5;
const CLIENTS_EACH: usize = 4;
const CLIENT_PATIENCE: Duration = Duration::from_secs(180);

/// Wherever they ask, and whenever they come to it.
#[test]
fn twenty_clients_of_five_nodes_that_want_one_derivation_have_it_built_once_and_hear_all_of_it() {
    let machines: Vec<Machine> = (0..NODES).map(|_| Machine::new(&Nix::newest())).collect();
    let mesh = Mesh::start(NODES, &machines.iter().collect::<Vec<_>>());
    let clients: Vec<_> = (0..CLIENTS_EACH)
        .flat_map(|_| machines.iter().zip(&mesh.nodes))
        .map(|(machine, node)| shapes::build_command(machine, node, Remote::SshNg, "", &["talks"]).start())
        .collect();
    let whole: Vec<String> = (0..200).map(|word| format!("word {word}")).collect();
    let mut paths = Vec::new();
    for (client, number) in clients.into_iter().zip(0..) {
        let finished = client.finish(CLIENT_PATIENCE).expect_code(0);
        let heard: Vec<&str> = finished.stderr.lines().filter(|line| line.starts_with("word ")).collect();
        assert_eq!(heard, whole, "client {number}");
        paths.extend(built(&finished));
    }
    assert_eq!(paths.len(), NODES * CLIENTS_EACH);
    paths.dedup();
    assert_eq!(paths.len(), 1, "{paths:?}");
    assert_eq!(mesh.nodes.iter().map(has_built).sum::<usize>(), 1, "builders that ran");
}
