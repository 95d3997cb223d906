//! Executors that are slow with what they took before.

use std::time::Duration;

use shoal_tests::command::wait_for;
use shoal_tests::{Machine, Mesh, Nix, Remote, built, shapes};

const PATIENCE: Duration = Duration::from_secs(120);
/// From the end of a client to that of the copy that was not needed.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn what_stands_still_on_one_node_is_built_on_another_too() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start_with(1, &[&machine], &["--cores", "1"]);
    mesh.add(&[&machine], &["--cores", "2"]);
    mesh.wait_until_whole();
    let build = |attribute: &str| shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &[attribute]);
    build("tardy.0").ok();
    let finished = build("tardy.1").patience(PATIENCE).ok();
    assert!(finished.stderr.contains("it is built on 'n1' as well"), "{finished}");
    assert!(mesh[1].valid().contains(&built(&finished)[0]), "{finished}");
    wait_for("the first copy's end", STOP_PATIENCE, || mesh[0].builders().is_empty().then_some(()));
    // Its place is free.
    build("hello").ok();
}
