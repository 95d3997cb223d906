//! The project's own package set, built on a node by every client and over every way in.

use std::time::Duration;

use shoal_tests::sources::{self, PackageSet};
use shoal_tests::{Cmd, Machine, Nix, Node, Remote, built};

const PACKAGES: [&str; 5] = ["tcc", "zlib", "lua", "jq", "report"];
/// Compiling all of it takes two seconds on an idle machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(300);

by_each_version!(builds_over_ssh_ng, builds_over_the_socket, builds_through_the_build_hook);

/// Builds the whole set on the node; the output paths.
fn build(machine: &Machine, node: &Node, remote: Remote, set: &PackageSet) -> Vec<String> {
    let build = machine.build(node, remote, &set.args(), &PACKAGES).patience(BUILD_PATIENCE).ok();
    assert!(build.stderr.contains("cc lvm.c"), "the log is not shown: {build}");
    built(&build)
}

/// The same paths and contents as Nix itself makes on `machine`, and they run there.
fn is_what_nix_makes(machine: &Machine, set: &PackageSet, paths: &[String]) {
    let home = Machine::new(&Nix::newest());
    let own = home
        .local("nix-build")
        .args(set.args())
        .args(PACKAGES.iter().flat_map(|package| ["-A", package]))
        .arg("--no-out-link")
        .patience(BUILD_PATIENCE)
        .ok();
    assert_eq!(own.lines(), paths);
    let hashes = |machine: &Machine| {
        let hashes = machine.local("nix-store").args(["-q", "--hash"]).args(paths).ok();
        hashes.lines().into_iter().map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(hashes(machine), hashes(&home));
    let lua = Cmd::new(machine.real_path(&paths[2]).join("bin/lua")).args(["-e", "print(6 * 7)"]).ok();
    assert_eq!(lua.text(), "42");
    let report = std::fs::read_to_string(machine.real_path(&paths[4]).join("report.txt")).unwrap();
    assert!(report.contains("the most frequent prime gap below 200000 is 6"), "{report}");
}

fn fetch(machine: &Machine, node: &Node, remote: Remote, paths: &[String]) {
    let key = node.shoal("key show").ok();
    let store = machine.store(node, remote.to_fetch());
    let cmd = machine.near("nix", node).args(["copy", "--from", &store]);
    cmd.args(["--option", "trusted-public-keys", key.text()]).args(paths).ok();
}

fn builds_over_ssh_ng(nix: &Nix) {
    let set = sources::examples();
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let paths = build(&machine, &node, Remote::SshNg, &set);
    fetch(&machine, &node, Remote::SshNg, &paths);
    is_what_nix_makes(&machine, &set, &paths);
}

fn builds_over_the_socket(nix: &Nix) {
    let set = sources::examples();
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let paths = build(&machine, &node, Remote::Unix, &set);
    fetch(&machine, &node, Remote::Unix, &paths);
    is_what_nix_makes(&machine, &set, &paths);
}

fn builds_through_the_build_hook(nix: &Nix) {
    let set = sources::examples();
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let builders = format!("{} x86_64-linux - 2 1 - - -", machine.store(&node, Remote::SshNg));
    let built = machine
        .near("nix-build", &node)
        .args(set.args())
        .args(PACKAGES.iter().flat_map(|package| ["-A", package]))
        .args(["--no-out-link", "--max-jobs", "0", "--builders", &builders])
        .patience(BUILD_PATIENCE)
        .ok();
    let paths: Vec<String> = built.lines().into_iter().map(String::from).collect();
    is_what_nix_makes(&machine, &set, &paths);
}

/// An ordinary user runs the node, and the node finds no program of its host.
#[test]
fn an_ordinary_user_runs_a_node() {
    if !rustix::process::geteuid().is_root() {
        return shoal_tests::skip("only root can become another user");
    }
    let set = sources::examples();
    let machine = Machine::new(&Nix::newest());
    let mut node = Node::prepare(&[]);
    node.write_keys(&machine.public_key());
    node = node.as_user(65534);
    node.start_again();
    let paths = build(&machine, &node, Remote::SshNg, &set);
    fetch(&machine, &node, Remote::SshNg, &paths);
    is_what_nix_makes(&machine, &set, &paths);
}

/// A second build of the same, and a build of what is there already, run nothing.
#[test]
fn what_is_built_is_not_built_again() {
    let set = sources::examples();
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let first = build(&machine, &node, Remote::SshNg, &set);
    let again = machine.build(&node, Remote::SshNg, &set.args(), &PACKAGES).ok();
    assert_eq!(built(&again), first);
    assert!(!again.stderr.contains("building '"), "{again}");
}
