//! Nodes that are one store to real clients, whichever of them these talk to.

use std::fs;
use std::time::Duration;

use shoal_tests::command::PATIENCE;
use shoal_tests::{Machine, Mesh, Nix, Node, Remote, built, shapes};

use crate::push::copying;

by_each_version!(nodes_are_one_store, a_build_fetches_inputs_that_only_another_node_has);

/// Twenty clients at once, with five hundred paths each, in the full tests.
const COPY_PATIENCE: Duration = Duration::from_secs(600);

/// Without this a client remembers for an hour what it once heard of a cache.
const FRESH: [&str; 6] = ["--option", "narinfo-cache-negative-ttl", "0", "--option", "narinfo-cache-positive-ttl", "0"];

fn trusting(key: &str) -> String {
    format!("trusted-public-keys = {key}\nexperimental-features = nix-command\n")
}

/// A new machine substitutes paths from a node, believing only `key`, and looks at every byte and signature.
pub fn substitute(nix: &Nix, node: &Node, key: &str, paths: &[String]) {
    let reader = Machine::new(nix);
    let client = |arguments: &[&str]| reader.local("nix").env("NIX_CONFIG", trusting(key)).args(arguments);
    let copy = client(&["copy", "--from", &node.ready().http]).beside(node).args(FRESH).args(paths);
    copy.patience(COPY_PATIENCE).ok();
    client(&["store", "verify", "--recursive", "--sigs-needed", "1"]).args(paths).ok();
    reader.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

/// Four closures, each brought to the node in another way: built there, copied over ssh, put into its cache, pushed.
fn bring(machine: &Machine, node: &Node) -> [String; 4] {
    let local = |salt: &str| {
        let build = machine.local("nix-build").arg("--no-out-link").args(shapes::args(machine, salt, &["chain"]));
        build.ok().text().to_string()
    };
    let on_node = built(&shapes::build_command(machine, node, Remote::SshNg, "built", &["chain"]).ok()).remove(0);
    let [copied, put, pushed] = ["copied", "put", "pushed"].map(local);
    let store = machine.store(node, Remote::SshNg);
    machine.near("nix", node).args(["copy", "--no-check-sigs", "--to", &store, &copied]).ok();
    let netrc = machine.path("netrc");
    fs::write(&netrc, format!("machine 127.0.0.1 login any password {}\n", node.token("admin"))).unwrap();
    machine.local("nix").args(["copy", "--netrc-file"]).arg(netrc).args(["--to", &node.ready().http, &put]).ok();
    copying(machine, &node.ready().http, "push", &node.token("admin")).arg(&pushed).ok();
    [on_node, copied, put, pushed]
}

fn nodes_are_one_store(nix: &Nix) {
    let machine = Machine::new(nix);
    let mut mesh = Mesh::start(3, &[&machine]);
    let key = mesh[0].key();
    assert!(mesh.nodes.iter().all(|node| node.key() == key), "one mesh signs with one key");
    let paths = bring(&machine, &mesh[0]);
    let drv = machine.remote("nix-instantiate", &mesh[0], Remote::SshNg);
    let drv = drv.args(shapes::args(&machine, "built", &["hello"])).ok().text().to_string();
    for path in &paths {
        assert!(mesh.holders(path) >= 2, "acknowledged on one node only: {path}");
    }
    mesh[1].kill();
    substitute(nix, &mesh[2], &key, &paths);
    mesh[1].start_again();
    mesh.wait_until_whole();
    // The one that was away has missed some and has them all the same, over ssh too.
    for number in [1, 2] {
        let reader = Machine::new(nix);
        let node = &mesh[number];
        // Its key is not among those the node lets in.
        node.write_keys(&format!("{}{}", machine.public_key(), reader.public_key()));
        let store = reader.store(node, Remote::SshNg);
        let info = reader.near("nix", node).args(["path-info", "--recursive", "--store", &store]).args(&paths).ok();
        assert!(paths.iter().all(|path| info.lines().contains(&path.as_str())), "{info}");
        let copy = reader.near("nix", node).env("NIX_CONFIG", trusting(&key)).args(["copy", "--from", &store]);
        copy.args(&paths).ok();
        reader.local("nix-store").args(["--verify", "--check-contents"]).ok();
        let nobody = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nobody";
        reader.near("nix", node).args(["path-info", "--store", &store, nobody]).fails();
    }
    // What was built says how, wherever somebody asks.
    let log = machine.local("nix").env("NIX_CONFIG", trusting(&key)).args(["log", "--store", &mesh[2].ready().http]);
    let log = log.arg(&drv).ok();
    assert!(log.stdout.contains("hello from the builder"), "{log}");
}

fn a_build_fetches_inputs_that_only_another_node_has(nix: &Nix) {
    let machine = Machine::new(nix);
    let mesh = Mesh::start_with(3, &[&machine], &["--copies", "1"]);
    let input = shapes::build_on(&machine, &mesh[0], Remote::SshNg, &["hello"]).remove(0);
    assert_eq!(mesh.holders(&input), 1);
    let output = shapes::build_command(&machine, &mesh[2], Remote::SshNg, "", &["twice"]).patience(PATIENCE).ok();
    let builds = |node: &Node| node.shoal("builds --json").ok().json().as_array().map_or(0, Vec::len);
    assert_eq!(mesh.nodes.iter().map(builds).collect::<Vec<_>>(), [1, 0, 1], "hello was built once\n{output}");
    let output = built(&output).remove(0);
    assert!(mesh[2].valid().is_superset(&[input, output.clone()].into()));
    substitute(nix, &mesh[1], &mesh[0].key(), &[output]);
}
