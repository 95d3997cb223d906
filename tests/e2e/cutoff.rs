//! Content-addressed inputs that are built anew: what needs them is not built again where they come out as before, and is
//! where they do not.

use std::time::Duration;

use shoal_tests::command::{Running, wait_for};
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, built, shapes};

use crate::grid::builds;

const PATIENCE: Duration = Duration::from_secs(60);
const CA: [&str; 3] = ["--option", "extra-experimental-features", "ca-derivations"];
/// What each of the `ways` is made of: an input, what needs that, and what needs the latter.
const PARTS: [&str; 3] = ["base", "above", "top"];

/// How many derivations of each of [`PARTS`] a node has built itself.
fn parts(node: &Node) -> [usize; 3] {
    let is_of = |build: &serde_json::Value, part: &str| {
        build["state"] == "built" && build["drv_path"].to_string().contains(&format!("-{part}.drv"))
    };
    PARTS.map(|part| builds(node, |build| is_of(build, part)))
}

/// What one of the `ways` comes to, asked of `entry`, and what `executor` builds for it.
fn go(machine: &Machine, entry: &Node, executor: &Node, way: &str) -> (String, [usize; 3]) {
    let before = parts(executor);
    let finished = shapes::build_command(machine, entry, Remote::SshNg, "", &[way]).args(CA).patience(PATIENCE).ok();
    let mut more = parts(executor);
    more.iter_mut().zip(before).for_each(|(after, before)| *after -= before);
    (built(&finished).remove(0), more)
}

#[test]
fn a_node_builds_only_the_input_again_where_that_comes_out_as_before() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let [first, second, changed] = ["ways.0", "ways.1", "ways.2"].map(|way| go(&machine, &node, &node, way));
    assert_eq!([first.1, second.1, changed.1], [[1, 1, 1], [1, 0, 0], [1, 1, 1]]);
    assert_eq!(first.0, second.0);
    assert_ne!(first.0, changed.0);
}

/// The second way is asked of a node that knows nothing of the first, and built by one that has nothing of it.
#[test]
fn a_mesh_builds_only_the_input_again_where_that_comes_out_as_before_on_another_node() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    let executor = |feature| ["--max-jobs", "1", "--feature", feature];
    for own in [&["--no-build"][..], &["--no-build"], &executor("alpha"), &executor("beta")] {
        mesh.add(&[&machine], &[own, &["--copies", "1"]].concat());
    }
    mesh.wait_until_whole();
    let occupy = |executor: usize, attribute: &str| -> Running {
        let busy = shapes::build_command(&machine, &mesh[executor], Remote::SshNg, "", &[attribute]).start();
        wait_for("an executor that is busy", PATIENCE, || (!mesh[executor].builders().is_empty()).then_some(()));
        busy
    };
    let busy = occupy(3, "betaSleeps");
    let first = go(&machine, &mesh[0], &mesh[2], "ways.0");
    drop(busy);
    let _busy = occupy(2, "alphaSleeps");
    let [second, changed] = ["ways.1", "ways.2"].map(|way| go(&machine, &mesh[1], &mesh[3], way));
    assert_eq!([first.1, second.1, changed.1], [[1, 1, 1], [1, 0, 0], [1, 1, 1]]);
    assert_eq!(first.0, second.0);
    assert_ne!(first.0, changed.0);
    assert!(!mesh[3].valid().contains(&first.0), "it was not needed where the input was built");
}
