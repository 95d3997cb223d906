//! Who may do what.

use shoal_tests::{Machine, Nix, Node, Remote, place, shapes};

by_each_version!(builds_for_untrusted_clients);

fn node_with_role(machine: &Machine, role: &str) -> Node {
    let node = Node::start(&[machine]);
    node.write_keys(&format!("role=\"{role}\" {}", machine.public_key()));
    node
}

/// A client that is not trusted builds, and pushes what proves itself, but cannot claim what a path holds.
#[test]
fn an_untrusted_client_builds_but_cannot_forge() {
    let machine = Machine::new(&Nix::newest());
    let node = node_with_role(&machine, "build");
    let store = machine.store(&node, Remote::SshNg);
    let path = shapes::build_locally(&machine, &["hello"]).remove(0);
    let refused = machine.near("nix", &node).args(["copy", "--no-check-sigs", "--to", &store, &path]).fails();
    assert!(refused.stderr.contains("signature"), "{refused}");
    assert!(node.paths().iter().all(|known| known["path"] != path.as_str()), "a forged path became valid");
    // The same path is built from its derivation.
    assert_eq!(shapes::build_on(&machine, &node, Remote::SshNg, &["hello"]), [path]);
}

#[test]
fn a_signature_by_a_trusted_key_lets_a_path_in() {
    let machine = Machine::new(&Nix::newest());
    let key = machine.path("key");
    let public = Node::prepare(&[]).shoal("key generate team-1").arg("--output").arg(&key).ok();
    let node = Node::start_with(&[&machine], &["--trusted-public-key", public.text()]);
    node.write_keys(&format!("role=\"push\" {}", machine.public_key()));
    let path = shapes::build_locally(&machine, &["hello"]).remove(0);
    let store = machine.store(&node, Remote::SshNg);
    machine.near("nix", &node).args(["copy", "--to", &store, &path]).fails();
    machine.local("nix").args(["store", "sign", "--key-file"]).arg(&key).arg(&path).ok();
    machine.near("nix", &node).args(["copy", "--to", &store, &path]).ok();
    assert!(node.paths().iter().any(|known| known["path"] == path.as_str()));
}

#[test]
fn a_reader_may_fetch_and_nothing_else() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let path = shapes::build_on(&machine, &node, Remote::SshNg, &["hello"]).remove(0);
    node.write_keys(&format!("role=\"read\" {}", machine.public_key()));
    let store = machine.store(&node, Remote::SshNg);
    machine.near("nix", &node).args(["copy", "--no-check-sigs", "--from", &store, &path]).ok();
    let refused = shapes::build_command(&machine, &node, Remote::SshNg, "", &["twice"]).fails();
    assert!(refused.stderr.contains("privileged") || refused.stderr.contains("role"), "{refused}");
    let refused = machine.remote("nix-store", &node, Remote::SshNg).arg("--gc").fails();
    assert!(refused.stderr.contains("privileged") || refused.stderr.contains("role"), "{refused}");
    assert!(node.paths().iter().any(|known| known["path"] == path.as_str()));
}

/// Keys are let in and locked out while the node runs.
#[test]
fn keys_come_and_go_without_a_restart() {
    let alice = Machine::new(&Nix::newest());
    let bob = Machine::new(&Nix::newest());
    let node = Node::start(&[&alice]);
    let ping = |machine: &Machine| {
        let store = machine.store(&node, Remote::SshNg);
        machine.near("nix", &node).args(["store", "info", "--store", &store]).run().status.success()
    };
    assert!(ping(&alice) && !ping(&bob));
    node.shoal("client add --role build").arg(bob.public_key().trim()).ok();
    assert!(ping(&alice) && ping(&bob));
    let listed = node.shoal("client list").ok();
    assert_eq!(listed.lines().len(), 2, "{listed}");
    node.shoal("client remove").arg(alice.public_key().trim()).ok();
    assert!(!ping(&alice) && ping(&bob));
}

/// The build hook of a client that is not trusted: Nix from 2.15 on sends derivations whole, older ones cannot.
fn builds_for_untrusted_clients(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = node_with_role(&machine, "build");
    let builder = format!("{} x86_64-linux", machine.store(&node, Remote::SshNg));
    let build = machine.near("nix-build", &node).args(["--no-out-link", "--max-jobs", "0", "--builders", &builder]);
    let build = build.args(shapes::args(&machine, "", &["hello"]));
    if nix.is_before("2.26") {
        let refused = build.fails();
        assert!(refused.stderr.contains("you are not privileged to build input-addressed derivations"), "{refused}");
        return;
    }
    let path = build.ok().text().to_string();
    assert!(machine.real_path(&path).join("greeting").is_file());
    assert!(node.paths().iter().any(|known| known["path"] == path.as_str()));
}

/// A builder's output that is a derivation is judged like one that is uploaded.
#[test]
fn a_builder_cannot_write_a_derivation_that_claims_anothers_output() {
    let machine = Machine::new(&Nix::newest());
    let node = node_with_role(&machine, "build");
    let file = place::repository().join("tests/nix/forge.nix").display().to_string();
    let busybox = machine.nix.busybox().display().to_string();
    let features = ["--option", "extra-experimental-features", "ca-derivations dynamic-derivations"];
    let build = |attribute: &str| {
        let build = machine.remote("nix-build", &node, Remote::SshNg).args(features);
        build.args([&file, "--no-out-link", "--arg", "busybox", &busybox, "-A", attribute])
    };
    let refused = build("forged").fails();
    assert!(refused.stderr.contains("derivation has incorrect output"), "{refused}");
    let refused = build("garbage").fails();
    assert!(refused.stderr.contains("error parsing derivation"), "{refused}");
    let honest = build("victim").ok();
    let store = machine.store(&node, Remote::SshNg);
    let cat = machine.near("nix", &node).args(["store", "cat", "--store", &store, honest.text()]).ok();
    assert_eq!(cat.stdout, "honest\n");
}

/// Told by its store path: where the node keeps it is nobody's business.
#[test]
fn what_is_no_output_is_rejected_by_name() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    for (attribute, text) in
        [("writable", "suspicious ownership or permission on"), ("pipe", "has an unsupported type")]
    {
        let rejected = shapes::build_command(&machine, &node, Remote::SshNg, "", &[attribute]).fails();
        assert!(
            rejected.stderr.contains(text) && rejected.stderr.contains("rejecting this build output"),
            "{rejected}"
        );
        let data = node.data_dir().display().to_string();
        assert!(!rejected.stderr.contains(&data), "{rejected}");
    }
}
