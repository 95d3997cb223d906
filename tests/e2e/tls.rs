//! A node as a binary cache over HTTPS.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use shoal_tests::certificates::{Authority, Files};
use shoal_tests::command::{PATIENCE, wait_for};
use shoal_tests::{Cmd, Machine, Nix, Node, Remote, shapes};

by_each_version!(reads_and_writes_over_https);

/// A node with a certificate of `authority`.
fn node(machines: &[&Machine], files: &Files) -> Node {
    let (certificate, key) = (files.certificate(), files.key());
    let flags = ["--http-certificate", certificate.to_str().unwrap(), "--http-key", key.to_str().unwrap(), "--http3"];
    Node::start_with(machines, &flags)
}

/// A Nix program that believes this authority and trusts the node's key.
fn client(machine: &Machine, node: &Node, bundle: &PathBuf, program: &str) -> Cmd {
    let key = node.shoal("key show").ok();
    let config = format!(
        "substituters = {}\ntrusted-public-keys = {}\nnarinfo-cache-negative-ttl = 0\nconnect-timeout = 10\n",
        node.ready().http,
        key.text()
    );
    machine.local(program).env("NIX_CONFIG", config).env("NIX_SSL_CERT_FILE", bundle)
}

/// Where a client finds the authority's certificate.
fn bundle(machine: &Machine, authority: &Authority) -> PathBuf {
    let path = machine.path("ca.pem");
    fs::write(&path, authority.root_pem()).unwrap();
    path
}

fn reads_and_writes_over_https(nix: &Nix) {
    let (builder, user) = (Machine::new(nix), Machine::new(nix));
    let authority = Authority::make();
    let files = Files::of(&authority.pair());
    let node = node(&[&builder], &files);
    let url = node.ready().http.clone();
    let bundle = bundle(&user, &authority);
    assert!(node.shoal("use --host 127.0.0.1").ok().stdout.contains(&format!("extra-substituters = {url}\n")));
    let wanted = ["chain", "twice"];
    let paths = shapes::build_on(&builder, &node, Remote::SshNg, &wanted);
    let build = client(&user, &node, &bundle, "nix-build").args(["--no-out-link", "--max-jobs", "0"]);
    assert_eq!(build.args(shapes::args(&user, "", &wanted)).ok().lines(), paths);
    client(&user, &node, &bundle, "nix").args(["store", "verify", "-r", "--store", &url]).args(&paths).ok();
    // The other way, with a token that only TLS keeps secret.
    let token = node.shoal("token create --role admin").ok().text().to_owned();
    let netrc = user.path("netrc");
    fs::write(&netrc, format!("machine 127.0.0.1 login any password {token}\n")).unwrap();
    let new = user.local("nix-build").arg("--no-out-link").args(shapes::args(&user, "new", &["hello"])).ok();
    let copy = client(&user, &node, &bundle, "nix").args(["copy", "--no-check-sigs", "--netrc-file"]).arg(&netrc);
    copy.args(["--to", &url]).args(new.lines()).ok();
    assert!(node.paths().iter().any(|known| new.lines().contains(&known["path"].as_str().unwrap())));
    // Who does not know the authority gets nothing.
    let other = Machine::new(nix);
    let stranger = self::bundle(&other, &Authority::make());
    let build = client(&other, &node, &stranger, "nix-build").args(["--no-out-link", "--max-jobs", "0"]);
    build.args(shapes::args(&other, "", &wanted)).fails();
}

/// A renewed certificate counts from the next connection on; SIGHUP with a bad one says so and changes nothing.
#[test]
fn certificates_are_renewed_while_the_node_runs() {
    let machine = Machine::new(&Nix::newest());
    let (first, second) = (Authority::make(), Authority::make());
    let files = Files::of(&first.pair());
    let node = node(&[&machine], &files);
    let url = node.ready().http.clone();
    let pings = |authority: &Authority| {
        let bundle = bundle(&machine, authority);
        // What the client knows of the cache from before is put aside.
        let cmd = client(&machine, &node, &bundle, "nix").env("XDG_CACHE_HOME", machine.path("cache"));
        let _ = fs::remove_dir_all(machine.path("cache"));
        cmd.args(["store", "ping", "--store", &url]).run().status.success()
    };
    assert!(pings(&first));
    files.write(&second.pair());
    assert!(pings(&second));
    files.write_raw(&first.pair().chain, &first.pair().key);
    node.signal(Signal::HUP);
    let said = "the certificate stays the one from before";
    wait_for("a complaint about the certificate", PATIENCE, || node.log().contains(said).then_some(()));
    assert!(pings(&second));
}

/// What a node is not started with.
#[test]
fn a_node_with_a_certificate_that_cannot_be_used_does_not_start() {
    let (one, other) = (Authority::make().pair(), Authority::make().pair());
    let files = Files::of(&one);
    files.write_raw(&one.chain, &other.key);
    let place = shoal_tests::Place::new("t");
    let serve = Cmd::new(shoal_tests::node::program()).args([
        "serve",
        "--ssh",
        "none",
        "--http",
        "127.0.0.1:0",
        "--mesh",
        "none",
    ]);
    let serve = serve.arg("--data-dir").arg(place.path()).arg("--http-certificate").arg(files.certificate());
    let alone = serve.run().expect_code(64);
    assert!(alone.stderr.contains("means nothing without 'http-key'"), "{alone}");
    let serve = Cmd::new(shoal_tests::node::program()).args([
        "serve",
        "--ssh",
        "none",
        "--http",
        "127.0.0.1:0",
        "--mesh",
        "none",
    ]);
    let serve = serve.arg("--data-dir").arg(place.path()).arg("--http-certificate").arg(files.certificate());
    let wrong = serve.arg("--http-key").arg(files.key()).fails();
    assert!(wrong.stderr.contains("does not go with the first certificate"), "{wrong}");
}
