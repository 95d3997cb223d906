//! What `shoal explain` says of derivations that wait, run and have ended, on several nodes.

use std::time::Duration;

use serde_json::Value;
use shoal_tests::command::wait_for;
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, shapes};

const PATIENCE: Duration = Duration::from_secs(60);

/// Three nodes with a slot each, of which the second alone has the feature `alpha`.
fn start(machine: &Machine) -> Mesh {
    let mut mesh = Mesh { nodes: Vec::new() };
    for features in [&[][..], &["--feature", "alpha"], &[]] {
        mesh.add(&[machine], &[&["--max-jobs", "1"], features].concat());
    }
    mesh.wait_until_whole();
    mesh
}

fn explain(node: &Node, drv: &str) -> Value {
    let explained = node.shoal("explain --json").arg(drv).ok().json();
    explained[0].clone()
}

/// Each node and what it is to the derivation, in one word.
fn verdicts(explained: &Value) -> Vec<(&str, &str)> {
    let nodes = explained["nodes"].as_array().into_iter().flatten();
    nodes.map(|node| (node["node"].as_str().unwrap(), node["verdict"].as_str().unwrap())).collect()
}

fn until_in_state(node: &Node, drv: &str, state: &str) -> Value {
    wait_for(&format!("{drv} that {state}"), PATIENCE, || {
        let told = node.shoal("explain --json").arg(drv).run();
        let explained = (told.status.code() == Some(0)).then(|| told.json()[0].clone());
        explained.filter(|told| told["state"] == state)
    })
}

#[test]
fn who_asks_why_a_derivation_waits_hears_it_of_each_node() {
    let machine = Machine::new(&Nix::newest());
    let mesh = start(&machine);
    let entry = &mesh[0];
    let [sleeps, alpha, on_alpha, teapot, hello] = ["alphaSleeps", "alpha", "onAlpha", "teapot", "hello"]
        .map(|attribute| shapes::instantiate_on(&machine, entry, Remote::SshNg, attribute));
    let build = |attribute| shapes::build_command(&machine, entry, Remote::SshNg, "", &[attribute]).patience(PATIENCE);
    let nothing = entry.shoal("explain").ok();
    assert_eq!(nothing.text(), "nothing waits or runs");

    let sleeper = build("alphaSleeps").start();
    let runs = until_in_state(entry, &sleeps, "builds");
    assert_eq!(verdicts(&runs), [("n1", "ranked"), ("n0", "unfit"), ("n2", "unfit")], "{runs}");
    let waiting = build("onAlpha").start();
    let waits = until_in_state(entry, &alpha, "waits-for-place");
    assert_eq!(verdicts(&waits), [("n0", "unfit"), ("n1", "no-slot"), ("n2", "unfit")], "{waits}");
    let inputs = explain(entry, &on_alpha);
    assert_eq!(
        (&inputs["state"], &inputs["inputs"][0]["drv_path"]),
        (&"waits-for-inputs".into(), &alpha.clone().into())
    );
    let all = entry.shoal("explain").ok();
    for part in [
        "is built on n1, since",
        "alpha.drv is ready and waits for a place",
        "n1: no free slot: all 1 are taken",
        "n2: missing system features: needs system features this machine lacks: alpha",
        "on-alpha.drv waits for an input",
    ] {
        assert!(all.stdout.contains(part), "{part}: {all}");
    }
    let guest = explain(&mesh[1], &sleeps);
    assert!(guest["text"].as_str().unwrap().contains("another node asked for it"), "{guest}");

    entry.shoal("cancel").arg(&sleeps).ok();
    sleeper.finish(PATIENCE);
    waiting.finish(PATIENCE).expect_code(0);
    let built = explain(entry, &alpha);
    assert!(built["text"].as_str().unwrap().starts_with("was built on n1 in "), "{built}");
    assert_eq!(verdicts(&built), [("n1", "ranked"), ("n0", "unfit"), ("n2", "unfit")], "{built}");
    assert_eq!(explain(entry, &sleeps)["state"], "cancelled");

    let failed = build("teapot").fails();
    let nowhere = explain(entry, &teapot);
    let reason = "n1: missing system features: needs system features this machine lacks: teapot";
    assert!(failed.stderr.contains(reason), "{failed}");
    assert!(nowhere["state"] == "failed" && nowhere["text"].as_str().unwrap().contains(reason), "{nowhere}");
    let unknown = entry.shoal("explain").arg(&hello).run().expect_code(1);
    assert!(unknown.stderr.contains("knows of no build of"), "{unknown}");
}

#[test]
fn a_request_that_nobody_waits_for_is_explained_by_its_number() {
    let machine = Machine::new(&Nix::newest());
    let mesh = start(&machine);
    let sleeps = shapes::instantiate_on(&machine, &mesh[0], Remote::SshNg, "alphaSleeps");
    let on_alpha = shapes::instantiate_on(&machine, &mesh[0], Remote::SshNg, "onAlpha");
    let sleeper = mesh[0].shoal("build --detach").arg(&sleeps).ok().text().to_string();
    until_in_state(&mesh[0], &sleeps, "builds");
    let number = mesh[0].shoal("build --detach").arg(&on_alpha).ok().text().to_string();
    let of_it = wait_for("a request whose derivations are known", PATIENCE, || {
        let told = mesh[0].shoal("explain --json").arg(&number).run();
        (told.status.code() == Some(0)).then(|| told.json())
    });
    let states: Vec<&str> = of_it.as_array().unwrap().iter().map(|told| told["state"].as_str().unwrap()).collect();
    assert_eq!(states.len(), 2, "{of_it}");
    assert!(["waits-for-place", "waits-for-inputs"].iter().all(|state| states.contains(state)), "{of_it}");
    mesh[0].shoal("cancel").arg(&sleeper).ok();
    let built = until_in_state(&mesh[0], &on_alpha, "built");
    assert!(built["text"].as_str().unwrap().starts_with("was built on n"), "{built}");
}
