//! Builds that are asked for by `shoal build`, and what people do with builds that run.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use shoal_tests::command::{Running, wait_for};
use shoal_tests::{Machine, Nix, Node, Remote, shapes};

/// From being asked to stop to the end of a builder.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);

/// A node, a machine whose Nix makes derivations for it, and some of them.
fn with_derivations<const N: usize>(attributes: [&str; N]) -> (Node, Machine, [String; N]) {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let drvs = attributes.map(|attribute| shapes::instantiate_on(&machine, &node, Remote::SshNg, attribute));
    (node, machine, drvs)
}

fn builds(node: &Node) -> Vec<Value> {
    node.shoal("builds --json").ok().json().as_array().cloned().unwrap_or_default()
}

fn in_state(node: &Node, state: &str) -> Option<Value> {
    builds(node).into_iter().find(|build| build["state"] == state)
}

/// Waits until a builder runs that says what `sleeps` says.
fn wait_for_sleeper(node: &Node) {
    wait_for("a build that runs", PATIENCE, || in_state(node, "running").filter(|_| !node.builders().is_empty()));
}

fn wait_for_no_builder(node: &Node) {
    wait_for("the end of a builder", CANCEL_PATIENCE, || {
        (in_state(node, "running").is_none() && node.builders().is_empty()).then_some(())
    });
}

#[test]
fn builds_without_a_nix_client() {
    let (node, _machine, [hello, outputs, fails]) = with_derivations(["hello", "outputs", "fails"]);
    let built = node.shoal("build").arg(&hello).ok();
    assert!(built.text().ends_with("-hello"), "{built}");
    assert!(built.stderr.contains("hello> hello from the builder"), "{built}");
    assert!(node.valid().contains(built.text()));
    let named = node.shoal("build --json").arg(format!("{outputs}^dev,out")).ok();
    let named = &named.json()[0];
    let names: Vec<&String> = named["outputs"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["dev", "out"], "{named}");
    let again = node.shoal("build --json").arg(&hello).ok().json();
    assert_eq!(again[0]["status"], "AlreadyValid", "{again}");
    let failed = node.shoal("build").arg(&fails).run().expect_code(1);
    assert!(failed.stderr.contains("exit code 3"), "{failed}");
    let unknown = node.shoal("build nothing-that-is-there").run().expect_code(1);
    assert!(unknown.stderr.contains("nothing that can be built"), "{unknown}");
}

#[test]
fn a_request_that_nobody_waits_for_is_built() {
    let (node, _machine, [sleeps, brief, fails]) = with_derivations(["sleeps", "brief", "fails"]);
    let id = node.shoal("build --detach").arg(&sleeps).ok().text().to_string();
    let running = in_state(&node, "detached").expect("it is listed");
    assert_eq!(running["id"].to_string(), id, "{running}");
    node.shoal("build --detach").arg(&brief).ok();
    let ended = wait_for("a build that ended", PATIENCE, || in_state(&node, "detached, built"));
    let out = ended["results"][0]["outputs"]["out"].as_str().unwrap();
    assert!(node.valid().contains(out), "{ended}");
    node.shoal("build --detach").arg(&fails).ok();
    let failed = wait_for("a build that failed", PATIENCE, || in_state(&node, "detached, failed"));
    assert!(failed["failure"].as_str().unwrap().contains("exit code 3"), "{failed}");
}

#[test]
fn a_request_that_is_cancelled_ends_its_builder() {
    let (node, _machine, [sleeps]) = with_derivations(["sleeps"]);
    let id = node.shoal("build --detach").arg(&sleeps).ok().text().to_string();
    wait_for_sleeper(&node);
    node.shoal("cancel").arg(&id).ok();
    wait_for_no_builder(&node);
    let unknown = node.shoal("cancel 4711").run().expect_code(1);
    assert!(unknown.stderr.contains("no request 4711 runs"), "{unknown}");
}

#[test]
fn who_interrupts_a_command_ends_its_builder() {
    let (node, _machine, [sleeps]) = with_derivations(["sleeps"]);
    let mut command = node.shoal("build").arg(&sleeps).start();
    wait_for_sleeper(&node);
    command.signal(Signal::INT);
    command.wait(CANCEL_PATIENCE);
    wait_for_no_builder(&node);
}

/// Whoever wants it hears of it.
#[test]
fn a_derivation_that_is_cancelled_fails_for_its_client() {
    let (node, machine, [sleeps]) = with_derivations(["sleeps"]);
    let client = shapes::build_command(&machine, &node, Remote::SshNg, "", &["sleeps"]).start();
    wait_for_sleeper(&node);
    node.shoal("cancel").arg(&sleeps).ok();
    let ended = client.finish(CANCEL_PATIENCE);
    assert_ne!(ended.status.code(), Some(0), "{ended}");
    wait_for_no_builder(&node);
    node.shoal("cancel").arg(&sleeps).run().expect_code(1);
}

#[test]
fn a_build_that_outlived_its_node_can_be_cancelled() {
    let (mut node, machine, [sleeps]) = with_derivations(["sleeps"]);
    let client = shapes::build_command(&machine, &node, Remote::SshNg, "", &["sleeps"]).start();
    wait_for_sleeper(&node);
    node.kill();
    client.finish(CANCEL_PATIENCE);
    node.start_again();
    wait_for_sleeper(&node);
    node.shoal("cancel").arg(&sleeps).ok();
    wait_for_no_builder(&node);
}

/// Looking on keeps no build alive and ends with it.
#[test]
fn a_log_is_followed_to_its_end() {
    let (node, machine, [sleeps]) = with_derivations(["sleeps"]);
    let mut client: Running = shapes::build_command(&machine, &node, Remote::SshNg, "", &["sleeps"]).start();
    wait_for_sleeper(&node);
    let heard = machine.path("heard");
    let said = fs::File::create(&heard).unwrap();
    let mut follower = node.shoal("log --follow").arg(&sleeps).start_into(said.into(), Stdio::null());
    let hears = || fs::read_to_string(&heard).is_ok_and(|heard| heard.contains("now asleep"));
    wait_for("a follower that hears", PATIENCE, || hears().then_some(()));
    assert!(!follower.has_ended());
    client.signal(Signal::INT);
    client.wait(CANCEL_PATIENCE);
    wait_for_no_builder(&node);
    assert!(follower.wait(CANCEL_PATIENCE).success());
}

#[test]
fn what_somebody_waits_for_comes_before_what_nobody_does() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start_with(&[&machine], &["--max-jobs", "1"]);
    let [sleeps, brief, hello] =
        ["sleeps", "brief", "hello"].map(|attribute| shapes::instantiate_on(&machine, &node, Remote::SshNg, attribute));
    let sleeper = node.shoal("build").arg(&sleeps).start();
    wait_for_sleeper(&node);
    let explained = |drv: &str, text: &str| {
        wait_for(text, PATIENCE, || {
            let told = node.shoal("explain").arg(drv).run();
            told.stdout.contains(text).then_some(())
        });
    };
    node.shoal("build --detach").arg(&brief).ok();
    explained(&brief, "brief.drv is ready and waits for a place\n");
    let waiting = node.shoal("build").arg(&hello).start();
    explained(&brief, "another one that asks for the same comes first");
    explained(&hello, "hello.drv is ready and waits for a place\n");
    node.shoal("cancel").arg(&sleeps).ok();
    sleeper.finish(PATIENCE).expect_code(1);
    waiting.finish(PATIENCE).expect_code(0);
    wait_for("a build that nobody waits for", PATIENCE, || in_state(&node, "detached, built"));
}
