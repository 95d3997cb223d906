//! `shoal pull`, into the store of a stock Nix.

use std::fs;

use serde_json::Value;
use shoal_tests::node::program;
use shoal_tests::{Cmd, Machine, Nix, Node, Remote, shapes};

use crate::push::{copying, cutting_proxy, number, token, versions};

by_each_version!(pulls_what_was_pushed, pulls_what_was_built);

/// Nix's configuration of a machine that trusts the node.
fn trusting(node: &Node) -> String {
    format!("trusted-public-keys = {}\n", node.shoal("key show").ok().text())
}

fn verify(machine: &Machine, node: &Node, paths: &[String]) {
    let verify = machine.local("nix").env("NIX_CONFIG", trusting(node)).args(["store", "verify", "--recursive"]);
    verify.args(paths).ok();
    machine.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

/// A closure goes from one stock store to another by way of a node.
fn pulls_what_was_pushed(nix: &Nix) {
    let (here, there) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start(&[]);
    let built = shapes::build_locally(&here, &["chain", "twice"]);
    copying(&here, &node.ready().http, "push", &token(&node, "admin")).args(&built).ok();
    let http = &node.ready().http;
    let untrusted = copying(&there, http, "pull", "").args(&built).run().expect_code(1);
    assert!(untrusted.stderr.contains("signature"), "{untrusted}");
    let report = copying(&there, http, "pull", "").env("NIX_CONFIG", trusting(&node)).args(&built).ok().json();
    assert!(report["paths"].as_array().unwrap().len() >= 10, "{report}");
    verify(&there, &node, &built);
    for path in &built {
        assert!(there.real_path(path).symlink_metadata().is_ok(), "{path}");
    }
    let again = copying(&there, http, "pull", "").env("NIX_CONFIG", trusting(&node)).args(&built).ok().json();
    assert_eq!((&again["paths"], number(&again, "moved_bytes")), (&Value::Array(Vec::new()), 0));
}

/// Signatures come along, and with `--no-check-sigs` they need not be trusted.
fn pulls_what_was_built(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let built = shapes::build_on(&machine, &node, Remote::SshNg, &["twice", "outputs"]);
    copying(&machine, &node.ready().http, "pull", "").arg("--no-check-sigs").args(&built).ok();
    verify(&machine, &node, &built);
}

#[test]
fn a_second_version_moves_what_changed() {
    let (here, there) = (Machine::new(&Nix::newest()), Machine::new(&Nix::newest()));
    let node = Node::start(&[]);
    let (http, push) = (&node.ready().http, token(&node, "push"));
    let paths = versions(&here);
    copying(&here, http, "push", &push).args(&paths).ok();
    let whole = copying(&there, http, "pull", "").arg(&paths[0]).ok().json();
    assert!(number(&whole, "moved_bytes") >= number(&whole, "nar_bytes"), "noise does not compress: {whole}");
    let part = copying(&there, http, "pull", "").arg(&paths[1]).ok().json();
    let (moved, all) = (number(&part, "moved_bytes"), number(&part, "nar_bytes"));
    println!("{moved} of {all} bytes moved: {:.2} %", moved as f64 * 100.0 / all as f64);
    assert!(moved * 100 <= all * 3, "{part}");
    there.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

/// Wherever the connection is cut: nothing half is valid, and the next pull moves the rest and what was on its way.
#[test]
fn a_pull_that_is_cut_goes_on_where_it_was() {
    const CUTS: usize = 6;
    /// Eight answers of a MiB, and what lies in buffers.
    const ON_ITS_WAY: u64 = 10 << 20;
    /// What moves of both versions.
    const ALL: usize = 24 << 20;
    let here = Machine::new(&Nix::newest());
    let node = Node::start(&[]);
    let (http, push) = (&node.ready().http, token(&node, "push"));
    let paths = versions(&here);
    copying(&here, http, "push", &push).args(&paths).ok();
    let (mut moved_again, mut whole) = (Vec::new(), 0);
    for cut in 0..CUTS {
        let there = Machine::new(&Nix::newest());
        let proxy = cutting_proxy(http, usize::MAX, ALL * cut / CUTS + 1000 * cut + 500);
        let broken = copying(&there, &proxy, "pull", "").args(&paths).run().expect_code(69);
        assert!(broken.stderr.contains("cannot reach"), "{broken}");
        there.local("nix-store").args(["--verify", "--check-contents"]).ok();
        let rest = copying(&there, http, "pull", "").args(&paths).ok().json();
        there.local("nix-store").args(["--verify", "--check-contents"]).ok();
        moved_again.push(number(&rest, "moved_bytes"));
        whole = whole.max(moved_again[cut]);
        let passed = (ALL * cut / CUTS) as u64;
        assert!(moved_again[cut] + passed <= whole + ON_ITS_WAY, "cut {cut}: {rest}");
    }
    assert!(moved_again[CUTS - 1] < whole / 2, "nothing was kept of what came: {moved_again:?}");
}

#[test]
fn what_goes_wrong_is_said() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[]);
    let absent = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-absent";
    let missing = copying(&machine, &node.ready().http, "pull", "").arg(absent).run().expect_code(1);
    assert!(missing.stderr.contains(absent) && missing.stderr.contains("does not have"), "{missing}");
    let closed = Node::start_with(&[], &["--http-read", "token"]);
    let http = &closed.ready().http;
    let refused = copying(&machine, http, "pull", "").arg(absent).run().expect_code(1);
    assert!(refused.stderr.contains("401"), "{refused}");
    let known = copying(&machine, http, "pull", &token(&closed, "read")).arg(absent).run().expect_code(1);
    assert!(known.stderr.contains("does not have"), "{known}");
    // The same by a login in netrc.
    let netrc = machine.path("netrc");
    fs::write(&netrc, format!("machine 127.0.0.1 login any password {}\n", token(&closed, "push"))).unwrap();
    let cmd = Cmd::new(program()).args(["pull", "--node", http, absent]).env("HOME", machine.home());
    let cmd = cmd.env("PATH", machine.nix.program("nix").parent().unwrap()).arg("--store").arg(machine.root());
    let known = cmd.arg("--netrc-file").arg(netrc).run().expect_code(1);
    assert!(known.stderr.contains("does not have"), "{known}");
}
