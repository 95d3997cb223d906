//! A node as a binary cache over HTTP.

use shoal_tests::{Cmd, Machine, Nix, Node, Remote, shapes};

by_each_version!(substitutes_from_a_binary_cache, copies_from_a_binary_cache);

/// The settings that make a machine fetch from `node` and from nobody else.
fn client(machine: &Machine, node: &Node, program: &str) -> Cmd {
    let key = node.shoal("key show").ok();
    let config = format!("substituters = {}\ntrusted-public-keys = {}\n", node.ready().http, key.text());
    machine.local(program).env("NIX_CONFIG", config)
}

/// What one machine had built on a node another one substitutes, signatures checked.
fn substitutes_from_a_binary_cache(nix: &Nix) {
    let (builder, user) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start(&[&builder]);
    let paths = shapes::build_on(&builder, &node, Remote::SshNg, &["chain", "twice"]);
    let args = shapes::args(&user, "", &["chain", "twice"]);
    let build = client(&user, &node, "nix-build").args(["--no-out-link", "--max-jobs", "0"]).args(&args).ok();
    assert_eq!(build.lines(), paths);
    user.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

fn copies_from_a_binary_cache(nix: &Nix) {
    let (builder, user) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start(&[&builder]);
    let paths = shapes::build_on(&builder, &node, Remote::SshNg, &["chain", "outputs"]);
    client(&user, &node, "nix").args(["copy", "--from", &node.ready().http]).args(&paths).ok();
    let sigs = client(&user, &node, "nix").args(["path-info", "--sigs", "--store", &node.ready().http]);
    let sigs = sigs.args(&paths).ok();
    let key = node.shoal("key show").ok();
    let name = key.text().split(':').next().unwrap_or_default();
    assert!(sigs.lines().iter().all(|line| line.contains(name)), "{sigs}");
    let verify = client(&user, &node, "nix").args(["store", "verify", "--store", &node.ready().http, "--recursive"]);
    verify.args(&paths).ok();
    let listing = client(&user, &node, "nix").args(["store", "ls", "-lR", "--store", &node.ready().http, &paths[0]]);
    listing.ok();
}
