//! What a client may ask of a build beside its outputs: limits, going on after failures, building again, not building.
//!
//! Over `ssh-ng://` no settings reach a node, whoever serves; they do over its socket, and over `ssh://` with each build.

use shoal_tests::{Cmd, Machine, Nix, Node, Remote, shapes};

by_each_version!(sets_limits_over_the_socket, sets_limits_over_ssh, goes_on_after_failures, builds_again, only_looks);

fn realise(machine: &Machine, node: &Node, remote: Remote, drvs: &[&str]) -> Cmd {
    machine.remote("nix-store", node, remote).arg("--realise").args(drvs)
}

fn sets_limits_over_the_socket(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let drv = |attribute: &str| shapes::instantiate_on(&machine, &node, Remote::SshNg, attribute);
    for (attribute, options, said) in [
        ("silent", &["--timeout", "1"][..], "timed out after 1 seconds"),
        ("silent", &["--max-silent-time", "1"], "timed out after 1 seconds of silence"),
        ("chatty", &["--option", "max-build-log-size", "5000"], "killed after writing more than 5000 bytes"),
    ] {
        let failed = realise(&machine, &node, Remote::Unix, &[&drv(attribute)]).args(options).fails();
        assert!(failed.stderr.contains(said), "{said}: {failed}");
        assert!(node.builders().is_empty(), "{said}: it still runs");
    }
}

/// The build hook's own connection carries its client's limits.
fn sets_limits_over_ssh(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let builder = format!("{} x86_64-linux", machine.store(&node, Remote::Ssh));
    let build = machine.near("nix-build", &node).args(["--no-out-link", "--max-jobs", "0", "--builders", &builder]);
    let failed = build.args(["--max-silent-time", "1"]).args(shapes::args(&machine, "", &["silent"])).fails();
    assert!(failed.stderr.contains("timed out") || failed.stderr.contains("silence"), "{failed}");
    assert!(node.builders().is_empty(), "it still runs");
}

fn goes_on_after_failures(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start_with(&[&machine], &["--max-jobs", "1"]);
    let drvs =
        ["needsFailed", "hello"].map(|attribute| shapes::instantiate_on(&machine, &node, Remote::SshNg, attribute));
    let drvs = drvs.each_ref().map(String::as_str);
    let built = |node: &Node| {
        node.paths().iter().any(|path| path["path"].as_str().is_some_and(|path| path.ends_with("-hello")))
    };
    let failed = realise(&machine, &node, Remote::Unix, &drvs).arg("--keep-going").fails();
    assert!(failed.stderr.contains("exit code 3"), "{failed}");
    assert!(built(&node), "{failed}");
}

/// `--check`: an output that comes out otherwise is no reason to replace what is there.
fn builds_again(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let hash = |path: &str| node.shoal("paths --json").arg(path).ok().json()[0]["narHash"].clone();
    let same = shapes::build_on(&machine, &node, Remote::SshNg, &["hello"]).remove(0);
    let check =
        |attribute: &str| shapes::build_command(&machine, &node, Remote::SshNg, "", &[attribute]).arg("--check");
    assert_eq!(check("hello").ok().text(), same);
    let differs = shapes::build_on(&machine, &node, Remote::SshNg, &["differs"]).remove(0);
    let before = hash(&differs);
    let failed = check("differs").fails();
    assert!(failed.stderr.contains("may not be deterministic"), "{failed}");
    assert_eq!(hash(&differs), before);
}

fn only_looks(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let looked = shapes::build_command(&machine, &node, Remote::SshNg, "", &["twice"]).arg("--dry-run").ok();
    assert!(looked.stderr.contains("will be built") && looked.stderr.contains("-twice.drv"), "{looked}");
    assert!(node.paths().iter().all(|path| !path["path"].as_str().is_some_and(|path| path.ends_with("-twice"))));
    assert_eq!(node.shoal("builds --json").ok().json(), serde_json::json!([]));
}
