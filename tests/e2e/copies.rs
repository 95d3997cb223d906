//! Store paths that go to a node and come back.

use shoal_tests::{Machine, Nix, Node, Remote, built, shapes};

by_each_version!(
    copies_there_and_back_over_ssh_ng,
    copies_there_and_back_over_ssh,
    copies_there_and_back_over_the_socket,
    copies_closures,
    evaluates_in_a_store_of_its_own,
    looks_at_paths,
    substitutes,
);

/// A machine fills a node, another machine empties it.
fn there_and_back(nix: &Nix, remote: Remote) {
    let here = Machine::new(nix);
    let there = Machine::new(nix);
    let node = Node::start(&[&here, &there]);
    let paths = shapes::build_locally(&here, &["chain", "twice", "outputs"]);
    let store = here.store(&node, remote);
    // A machine's own builds carry no signature; who may push them is trusted, and so is the node by its clients.
    here.near("nix", &node).args(["copy", "--no-check-sigs", "--to", &store]).args(&paths).ok();
    let again = here.near("nix", &node).args(["copy", "--no-check-sigs", "--to", &store]).args(&paths).ok();
    assert!(!again.stderr.contains("copying path"), "{again}");
    let store = there.store(&node, remote.to_fetch());
    there.near("nix", &node).args(["copy", "--no-check-sigs", "--from", &store]).args(&paths).ok();
    let closure = |machine: &Machine| {
        let closure = machine.local("nix-store").args(["-qR"]).args(&paths).ok();
        let paths: Vec<String> = closure.lines().into_iter().map(String::from).collect();
        let hashes = machine.local("nix-store").args(["-q", "--hash"]).args(&paths).ok();
        paths.into_iter().zip(hashes.lines().into_iter().map(String::from).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let mut sent = closure(&here);
    let mut received = closure(&there);
    sent.sort();
    received.sort();
    assert_eq!(sent, received);
    there.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

fn copies_there_and_back_over_ssh_ng(nix: &Nix) {
    there_and_back(nix, Remote::SshNg);
}

fn copies_there_and_back_over_ssh(nix: &Nix) {
    there_and_back(nix, Remote::Ssh);
}

fn copies_there_and_back_over_the_socket(nix: &Nix) {
    there_and_back(nix, Remote::Unix);
}

/// `nix-copy-closure`, which speaks the serve protocol.
fn copies_closures(nix: &Nix) {
    let here = Machine::new(nix);
    let there = Machine::new(nix);
    let node = Node::start(&[&here, &there]);
    let path = shapes::build_locally(&here, &["chain"]).remove(0);
    here.near("nix-copy-closure", &node).args(["--to", "nix@127.0.0.1", &path]).ok();
    assert_eq!(node.paths().iter().filter(|known| known["path"] == path.as_str()).count(), 1);
    // Without a signature the receiving machine would refuse; nix-copy-closure has no way to say so but a setting.
    let from = there.near("nix-copy-closure", &node).env("NIX_CONFIG", "require-sigs = false");
    from.args(["--from", "nix@127.0.0.1", &path]).ok();
    assert!(there.real_path(&path).is_file());
}

/// `--eval-store`: derivations are made in the machine's own store, and go to the node to be built.
fn evaluates_in_a_store_of_its_own(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let own = format!("local?root={}", machine.root().display());
    let store = machine.store(&node, Remote::SshNg);
    let build =
        machine.near("nix", &node).args(["build", "--no-link", "--json", "--eval-store", &own, "--store", &store]);
    let build = build.arg("-f").args(shapes::expression(&machine, "")).arg("twice").ok();
    let path = built(&build).remove(0);
    assert!(node.paths().iter().any(|known| known["path"] == path.as_str()));
    assert!(!machine.real_path(&path).exists(), "the result came back unasked");
}

/// path-info, ls and cat, and the queries of nix-store.
fn looks_at_paths(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let path = shapes::build_on(&machine, &node, Remote::SshNg, &["twice"]).remove(0);
    let store = machine.store(&node, Remote::SshNg);
    let nix = |args: &[&str]| machine.near("nix", &node).args(args).args(["--store", &store]).ok();
    let info = nix(&["path-info", "-r", "--json", &path]);
    assert!(info.stdout.contains("narHash") && info.stdout.contains("-hello"), "{info}");
    let listing = nix(&["store", "ls", "-l", &path]);
    assert!(listing.stdout.contains("both") && listing.stdout.contains("from"), "{listing}");
    assert_eq!(nix(&["store", "cat", &format!("{path}/both")]).stdout, "hello\nhello\n");
    let query = |args: &[&str]| machine.remote("nix-store", &node, Remote::SshNg).args(args).arg(&path).ok();
    let requisites = query(&["-qR"]);
    assert_eq!(requisites.lines().len(), 2, "{requisites}");
    let deriver = query(&["-q", "--deriver"]);
    assert!(deriver.text().ends_with("-twice.drv"), "{deriver}");
    let hello = requisites.lines().into_iter().find(|path| path.ends_with("-hello")).unwrap().to_string();
    let referrers = machine.remote("nix-store", &node, Remote::SshNg).args(["-q", "--referrers", &hello]).ok();
    assert!(referrers.stdout.contains(&path), "{referrers}");
}

/// A machine that has the node as its substituter takes from it what it would have to build.
fn substitutes(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let built = shapes::build_on(&machine, &node, Remote::SshNg, &["twice"]);
    let key = node.shoal("key show").ok();
    let store = machine.store(&node, Remote::SshNg);
    let got = machine
        .near("nix-build", &node)
        .arg("--no-out-link")
        .args(shapes::args(&machine, "", &["twice"]))
        .args(["--option", "substituters", &store, "--option", "trusted-public-keys", key.text()])
        .args(["--max-jobs", "0"])
        .ok();
    assert_eq!(got.lines(), built);
    assert!(machine.real_path(&built[0]).join("both").is_file());
}
