//! A node as a binary cache over HTTP.

use std::net::TcpListener;

use shoal_tests::{Cmd, Machine, Nix, Node, Remote, shapes};

by_each_version!(
    substitutes_from_a_binary_cache,
    substitutes_frames_as_they_are_stored,
    takes_frames_as_an_encoding_of_http,
    copies_from_a_binary_cache,
    reads_logs_and_files,
    a_miss_is_a_hit_once_it_is_built,
);

/// The settings that make a machine fetch from `node` and from nobody else.
fn client(machine: &Machine, node: &Node, program: &str) -> Cmd {
    let key = node.shoal("key show").ok();
    let config = format!(
        "substituters = {}\ntrusted-public-keys = {}\nexperimental-features = nix-command\n",
        node.ready().http,
        key.text()
    );
    machine.local(program).env("NIX_CONFIG", config)
}

/// What one machine had built on a node another one substitutes, signatures checked.
fn substitute(nix: &Nix, flags: &[&str]) {
    let (builder, user) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start_with(&[&builder], flags);
    let wanted = ["chain", "twice", "outputs"];
    let paths = shapes::build_on(&builder, &node, Remote::SshNg, &wanted);
    let args = shapes::args(&user, "", &wanted);
    let build = client(&user, &node, "nix-build").args(["--no-out-link", "--max-jobs", "0"]).args(&args).ok();
    assert_eq!(build.lines(), paths);
    user.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

fn substitutes_from_a_binary_cache(nix: &Nix) {
    substitute(nix, &[]);
}

/// As a client far away does.
fn substitutes_frames_as_they_are_stored(nix: &Nix) {
    substitute(nix, &["--http-compression", "zstd"]);
}

/// A client that was near when it asked for the narinfo, and is far when it fetches the NAR.
fn takes_frames_as_an_encoding_of_http(nix: &Nix) {
    let (builder, user) = (Machine::new(nix), Machine::new(nix));
    // Free now, and again once the listener is gone: the client knows what it was told by the address.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.unwrap_or_else(|error| panic!("no free port: {error}")).to_string();
    let mut node = Node::start_with(&[&builder], &["--http", &address]);
    let paths = shapes::build_on(&builder, &node, Remote::SshNg, &["chain"]);
    let url = node.ready().http.clone();
    client(&user, &node, "nix").args(["path-info", "-r", "--store", &url]).args(&paths).ok();
    node.stop();
    node.use_flags(&["--http", &address, "--http-compression", "zstd", "--log-level", "debug"]);
    node.start_again();
    client(&user, &node, "nix").args(["copy", "--from", &url]).args(&paths).ok();
    user.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

fn copies_from_a_binary_cache(nix: &Nix) {
    let (builder, user) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start(&[&builder]);
    let paths = shapes::build_on(&builder, &node, Remote::SshNg, &["chain", "outputs"]);
    let url = &node.ready().http;
    client(&user, &node, "nix").args(["copy", "--from", url]).args(&paths).ok();
    let sigs = client(&user, &node, "nix").args(["path-info", "--sigs", "--store", url]).args(&paths).ok();
    let key = node.shoal("key show").ok();
    let name = key.text().split(':').next().unwrap_or_default();
    assert!(sigs.lines().iter().all(|line| line.contains(name)), "{sigs}");
    client(&user, &node, "nix").args(["store", "verify", "--recursive", "--store", url]).args(&paths).ok();
    let absent = "/nix/store/00000000000000000000000000000000-absent";
    client(&user, &node, "nix").args(["copy", "--from", url, absent]).fails();
}

fn reads_logs_and_files(nix: &Nix) {
    let (builder, user) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start(&[&builder]);
    let path = shapes::build_on(&builder, &node, Remote::SshNg, &["chain"]).remove(0);
    let derivation = shapes::instantiate_on(&builder, &node, Remote::SshNg, "chain");
    let url = &node.ready().http;
    client(&user, &node, "nix").args(["store", "ls", "-lR", "--store", url, &path]).ok();
    let kept = node.shoal("log").arg(&derivation).ok();
    let shown = client(&user, &node, "nix").args(["log", "--store", url, &derivation]).ok();
    assert_eq!(shown.text(), kept.text());
}

/// With no other settings than those that the node prints.
fn a_miss_is_a_hit_once_it_is_built(nix: &Nix) {
    let (builder, user) = (Machine::new(nix), Machine::new(nix));
    let node = Node::start(&[&builder]);
    let printed = node.shoal("use --host 127.0.0.1").ok();
    let lines = printed.lines().into_iter().skip_while(|line| *line != "# /etc/nix/nix.conf").skip(1);
    let settings: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    assert!(!settings.is_empty(), "{printed}");
    // Only that no other cache is asked, which a test cannot reach.
    let config = format!("substituters =\n{}\n", settings.join("\n"));
    let args = shapes::args(&user, "", &["chain"]);
    let build = || {
        let build = user.local("nix-build").env("NIX_CONFIG", &config);
        build.args(["--no-out-link", "--max-jobs", "0"]).args(&args)
    };
    build().fails();
    let paths = shapes::build_on(&builder, &node, Remote::SshNg, &["chain"]);
    assert_eq!(build().ok().lines(), paths);
}
