//! Content-addressed inputs that are built anew and come out as before: what needs them is not built again.

use shoal_tests::{Machine, Mesh, Nix, Node, Remote, built, shapes};

use crate::grid::has_built;

const CA: [&str; 3] = ["--option", "extra-experimental-features", "ca-derivations"];

/// What `ways` comes to by the first way and then by the second, and how much is built for each.
fn both_ways(machine: &Machine, first: &Node, second: &Node, nodes: &[&Node]) -> [(String, usize); 2] {
    [(first, "ways.0"), (second, "ways.1")].map(|(node, way)| {
        let count = || nodes.iter().map(|node| has_built(node)).sum::<usize>();
        let before = count();
        let finished = shapes::build_command(machine, node, Remote::SshNg, "", &[way]).args(CA).ok();
        (built(&finished).remove(0), count() - before)
    })
}

#[test]
fn a_node_builds_only_the_input_again() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let [(first, first_count), (second, second_count)] = both_ways(&machine, &node, &node, &[&node]);
    assert_eq!((first_count, second_count), (3, 1));
    assert_eq!(first, second);
}

/// By way of another node, which learns of the first way's outputs from those that built them.
#[test]
fn a_mesh_builds_only_the_input_again() {
    let machine = Machine::new(&Nix::newest());
    let mesh = Mesh::start_with(3, &[&machine], &["--max-jobs", "1"]);
    let nodes: Vec<&Node> = mesh.nodes.iter().collect();
    let [(first, first_count), (second, second_count)] = both_ways(&machine, &mesh[0], &mesh[2], &nodes);
    assert_eq!((first_count, second_count), (3, 1));
    assert_eq!(first, second);
}
