//! `shoal watch-store`: what a stock Nix adds to its store reaches the node, whatever happens in between.

use std::fs;
use std::process::Stdio;

use rustix::process::Signal;
use shoal_tests::command::wait_for;
use shoal_tests::node::program;
use shoal_tests::{Cmd, Machine, Nix, Node, shapes};

use crate::push::token;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

by_each_version!(what_a_store_gains_is_pushed);

fn watching(machine: &Machine, node: &Node, token: &str, more: &str) -> Cmd {
    let file = machine.path("token");
    fs::write(&file, token).unwrap();
    let nix = machine.nix.program("nix");
    let cmd = Cmd::new(program()).arg("watch-store").env("PATH", nix.parent().unwrap()).env("HOME", machine.home());
    let cmd = cmd.args(["--node", &node.ready().http, "--interval", "1s"]).arg("--token-file").arg(file);
    let cmd = cmd.arg("--store").arg(machine.root()).arg("--queue").arg(machine.path("queue"));
    cmd.args(more.split_whitespace())
}

fn has(node: &Node, path: &str) -> bool {
    node.paths().iter().any(|known| known["path"] == path)
}

fn build(machine: &Machine, salt: &str) -> String {
    let cmd = machine.local("nix-build").arg("--no-out-link").args(shapes::args(machine, salt, &["twice"]));
    cmd.ok().text().to_owned()
}

fn what_a_store_gains_is_pushed(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[]);
    let before = build(&machine, "before");
    let watch = watching(&machine, &node, &token(&node, "admin"), "").start_into(Stdio::null(), Stdio::null());
    wait_for("a queue", PATIENCE, || machine.path("queue/queue").exists().then_some(()));
    let built = build(&machine, "after");
    wait_for("a pushed path", PATIENCE, || has(&node, &built).then_some(()));
    assert!(!has(&node, &before), "what was there before is not to be pushed");
    drop(watch);
}

/// Killed again and again, with a node that is away: everything that was gained arrives.
#[test]
fn nothing_that_is_queued_is_lost() {
    let machine = Machine::new(&Nix::newest());
    let mut node = Node::start(&[]);
    let admin = token(&node, "admin");
    watching(&machine, &node, &admin, "--once").ok();
    let mut built = Vec::new();
    node.stop();
    for round in 0..4 {
        built.push(build(&machine, &format!("round {round}")));
        let watch = watching(&machine, &node, &admin, "").start();
        let name = built[round].trim_start_matches("/nix/store/").to_owned();
        let queue = || fs::read_to_string(machine.path("queue/queue")).unwrap_or_default();
        wait_for("a queued path", PATIENCE, || queue().contains(&format!("+ {name}\n")).then_some(()));
        watch.signal(Signal::KILL);
        drop(watch);
    }
    node.start_again();
    let pushed = watching(&machine, &node, &admin, "--once").ok();
    for path in &built {
        assert!(has(&node, path) && pushed.lines().contains(&path.as_str()), "{path} was lost: {pushed}");
    }
    assert_eq!(watching(&machine, &node, &admin, "--once").ok().text(), "");
}

#[test]
fn a_path_that_is_refused_holds_up_no_other() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[]);
    let push = token(&node, "push");
    watching(&machine, &node, &push, "--once").ok();
    // Nobody signed what was built; what was added proves itself.
    let unsigned = build(&machine, "unsigned");
    let file = machine.path("file");
    fs::write(&file, "contents").unwrap();
    let proven = machine.local("nix-store").arg("--add").arg(&file).ok().text().to_owned();
    let pushed = watching(&machine, &node, &push, "--once").ok();
    assert!(pushed.stderr.contains("lacks a signature") && pushed.stderr.contains("-twice"), "{pushed}");
    assert!(has(&node, &proven) && !has(&node, &unsigned));
    let unknown = watching(&machine, &node, "shoal-wrong", "--once");
    let another = machine.path("another");
    fs::write(&another, "other contents").unwrap();
    let kept = machine.local("nix-store").arg("--add").arg(&another).ok().text().to_owned();
    unknown.run().expect_code(1);
    watching(&machine, &node, &push, "--once").ok();
    assert!(has(&node, &kept), "a wrong token made it forget a path");
}
