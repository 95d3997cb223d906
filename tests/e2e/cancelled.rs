//! Clients that go away, and what becomes of their builds.

use std::time::Duration;

use rustix::process::Signal;
use shoal_tests::command::{Running, wait_for};
use shoal_tests::relay::Relay;
use shoal_tests::{Machine, Nix, Node, Remote, shapes};

/// From a client's end to the end of its build.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);
const START_PATIENCE: Duration = Duration::from_secs(60);
const CLIENT_PATIENCE: Duration = Duration::from_secs(120);

fn running(node: &Node) -> usize {
    let builds = node.shoal("builds --json").ok().json();
    builds.as_array().into_iter().flatten().filter(|build| build["state"] == "running").count()
}

/// Whether a builder has said this.
fn said(node: &Node, what: &str) -> bool {
    let builds = std::fs::read_dir(node.data_dir().join("builds")).into_iter().flatten().flatten();
    builds.filter_map(|build| std::fs::read_to_string(build.path().join("log")).ok()).any(|log| log.contains(what))
}

fn start_sleeping(machine: &Machine, node: &Node, remote: Remote) -> Running {
    let client = shapes::build_command(machine, node, remote, "", &["sleeps"]).start();
    wait_for("a build that runs", START_PATIENCE, || (running(node) == 1).then_some(()));
    client
}

fn is_cancelled_by(signal: Signal, remote: Remote) {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let mut client = start_sleeping(&machine, &node, remote);
    client.signal(signal);
    client.wait(CANCEL_PATIENCE);
    wait_for("the end of a build that nobody wants", CANCEL_PATIENCE, || {
        (running(&node) == 0 && node.builders().is_empty()).then_some(())
    });
    // The node is as good as new.
    shapes::build_on(&machine, &node, remote, &["hello"]);
}

#[test]
fn ctrl_c_ends_the_build_over_ssh_ng() {
    is_cancelled_by(Signal::INT, Remote::SshNg);
}

#[test]
fn ctrl_c_ends_the_build_over_the_socket() {
    is_cancelled_by(Signal::INT, Remote::Unix);
}

#[test]
fn a_killed_client_ends_the_build() {
    is_cancelled_by(Signal::KILL, Remote::SshNg);
}

/// Two clients want one build: it runs once, and goes on as long as one of them is there.
#[test]
fn a_build_that_another_client_wants_goes_on() {
    let machine = Machine::new(&Nix::newest());
    let other = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine, &other]);
    let mut first = shapes::build_command(&machine, &node, Remote::SshNg, "", &["lasting"]).start();
    wait_for("a builder that has spoken", START_PATIENCE, || said(&node, "begun").then_some(()));
    let second = shapes::build_command(&other, &node, Remote::SshNg, "", &["lasting"]).start();
    wait_for("two clients", START_PATIENCE, || {
        let status = node.shoal("status --json").ok().json();
        (status["sessions"].as_u64() >= Some(2)).then_some(())
    });
    assert_eq!(running(&node), 1);
    first.signal(Signal::INT);
    first.wait(CANCEL_PATIENCE);
    let second = second.finish(CLIENT_PATIENCE).expect_code(0);
    assert!(second.text().ends_with("-lasting"), "{second}");
    assert!(second.stderr.contains("begun"), "it does not hear what was said before it joined: {second}");
}

/// A link that breaks is no wish to stop: the build goes on, and whoever comes back joins it.
#[test]
fn a_build_whose_clients_link_breaks_goes_on_for_it() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let relay = Relay::to(node.ready().ssh_port).unwrap();
    let build = || shapes::build_command(&machine, &node, Remote::SshNg, "", &["lasting"]);
    let mut first = build().env("NIX_SSHOPTS", machine.ssh_options_by(&node, relay.port())).start();
    wait_for("a builder that has spoken", START_PATIENCE, || said(&node, "begun").then_some(()));
    relay.cut();
    assert!(!first.wait(START_PATIENCE).success(), "its link is broken");
    wait_for("no session", CANCEL_PATIENCE, || {
        (node.shoal("status --json").ok().json()["sessions"] == 0).then_some(())
    });
    assert_eq!(running(&node), 1, "it was stopped");
    let second = build().start().finish(CLIENT_PATIENCE).expect_code(0);
    assert!(second.stderr.contains("begun"), "it does not hear what was said before it came back: {second}");
    let built = node.shoal("builds --json").ok().json().as_array().map_or(0, Vec::len);
    assert_eq!(built, 1, "it was built twice");
}

/// Reading an output is part of its build, and ends with it.
#[test]
fn an_output_without_end_is_not_read_for_nobody() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let mut client = shapes::build_command(&machine, &node, Remote::SshNg, "", &["endless"]).start();
    wait_for("a builder that left its output", START_PATIENCE, || {
        (running(&node) == 1 && node.builders().is_empty()).then_some(())
    });
    client.signal(Signal::INT);
    client.wait(CANCEL_PATIENCE);
    wait_for("the end of the reading", CANCEL_PATIENCE, || (running(&node) == 0).then_some(()));
}

/// What a build works on is for nobody else's eyes, and not for their hands.
#[test]
fn other_users_of_the_machine_cannot_enter_a_build() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let _client = start_sleeping(&machine, &node, Remote::SshNg);
    wait_for("its builder", START_PATIENCE, || (!node.builders().is_empty()).then_some(()));
    let builds: Vec<_> = std::fs::read_dir(node.data_dir().join("builds")).unwrap().flatten().collect();
    assert_eq!(builds.len(), 1);
    let mode = std::os::unix::fs::PermissionsExt::mode(&builds[0].metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}
