//! What builds took at one node, others schedule by.

use std::time::Duration;

use rustix::process::Signal;
use shoal_tests::command::{Running, wait_for};
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, shapes};

const PATIENCE: Duration = Duration::from_secs(60);

/// By the socket, which never breaks as a link may: what a client wanted ends with it.
fn start(machine: &Machine, node: &Node, salt: &str, attribute: &str) -> Running {
    shapes::build_command(machine, node, Remote::Unix, salt, &[attribute]).start()
}

/// Ends a client as Ctrl-C does.
fn interrupt(mut client: Running) {
    client.signal(Signal::INT);
    client.wait(PATIENCE);
}

/// Jobs that wait for a slot, and the seconds that they are thought to take.
fn waiting(node: &Node) -> Option<(u64, u64)> {
    let status = node.shoal("status --json").ok().json();
    let ready = status.pointer("/builds/demand/0/ready")?;
    Some((ready["jobs"].as_u64()?, ready["slot_seconds"].as_u64()?))
}

/// Seconds that one waiting derivation is thought to take. It is not built.
fn expected(machine: &Machine, node: &Node, salt: &str, attribute: &str) -> u64 {
    let client = start(machine, node, salt, attribute);
    let seconds = wait_for("a derivation that waits for a slot", PATIENCE, || {
        waiting(node).and_then(|(jobs, seconds)| (jobs == 1).then_some(seconds))
    });
    interrupt(client);
    wait_for("nothing that waits", PATIENCE, || waiting(node).is_none_or(|(jobs, _)| jobs == 0).then_some(()));
    seconds
}

/// Both nodes are busy, so that what the second one thinks of a derivation shows in what it says it waits for.
#[test]
fn a_node_knows_what_builds_took_at_another_also_after_it_starts_again_alone() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start_with(1, &[&machine], &["--max-jobs", "1"]);
    shapes::build_command(&machine, &mesh[0], Remote::SshNg, "", &["slow.0"]).ok();
    let _busy = start(&machine, &mesh[0], "0", "silent");
    wait_for("a builder", PATIENCE, || (!mesh[0].builders().is_empty()).then_some(()));
    mesh.add(&[&machine], &["--max-jobs", "1"]);
    mesh.wait_until_whole();
    let busy = start(&machine, &mesh[1], "1", "silent");
    wait_for("a builder", PATIENCE, || (!mesh[1].builders().is_empty()).then_some(()));
    assert_eq!(expected(&machine, &mesh[1], "", "brief"), 1, "which nobody has built");
    let mut salt = 0;
    wait_for("what another node knows", PATIENCE, || {
        salt += 1;
        (expected(&machine, &mesh[1], &salt.to_string(), "slow.1") >= 5).then_some(())
    });
    mesh[0].kill();
    interrupt(busy);
    wait_for("the end of it", PATIENCE, || mesh[1].builders().is_empty().then_some(()));
    mesh[1].stop();
    mesh[1].start_again();
    let _busy = start(&machine, &mesh[1], "2", "silent");
    wait_for("a builder", PATIENCE, || (!mesh[1].builders().is_empty()).then_some(()));
    assert!(expected(&machine, &mesh[1], "again", "slow.1") >= 5);
}
