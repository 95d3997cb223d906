//! What clients do with a node's store beside building and copying: logs, roots and garbage, verification, signatures.

use shoal_tests::{Machine, Nix, Node, Remote, shapes};

by_each_version!(shows_logs, collects_garbage, deletes_and_verifies, signs, adds_files);

fn shows_logs(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let path = shapes::build_on(&machine, &node, Remote::SshNg, &["hello"]).remove(0);
    let log = node.shoal("log").arg(&path).ok();
    assert_eq!(log.stdout, "hello from the builder\n");
    let missing = node.shoal("log /nix/store/0123456789abcdfghijklmnpqrsvwxyz-other").fails();
    assert!(missing.stderr.contains("no log of"), "{missing}");
    // A failed build has one too.
    let drv = shapes::instantiate_on(&machine, &node, Remote::SshNg, "fails");
    machine.remote("nix-store", &node, Remote::SshNg).args(["-r", &drv]).fails();
    assert_eq!(node.shoal("log").arg(&drv).ok().stdout, "about to fail\n");
    let spoken = shapes::build_command(&machine, &node, Remote::SshNg, "", &["says"]).ok();
    assert!(spoken.stderr.contains("a message") && !spoken.stderr.contains("@nix"), "{spoken}");
    if !nix.is_before("2.26") {
        let store = machine.store(&node, Remote::SshNg);
        let log = machine.near("nix", &node).args(["log", "--store", &store, &drv]).run();
        // Stock ssh-ng stores cannot fetch logs; a client that can gets this one.
        assert!(!log.status.success() || log.stdout == "about to fail\n", "{log}");
    }
}

/// What a connected client works with stays; what nobody holds goes.
fn collects_garbage(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let path = shapes::build_on(&machine, &node, Remote::SshNg, &["twice"]).remove(0);
    let dry = node.shoal("gc --dry-run --json").ok().json();
    assert!(dry["paths"].to_string().contains(&path), "{dry}");
    assert!(!node.paths().is_empty());
    let dead = machine.remote("nix-store", &node, Remote::SshNg).args(["--gc", "--print-dead"]).ok();
    assert!(dead.stdout.contains(&path), "{dead}");
    machine.remote("nix-store", &node, Remote::SshNg).arg("--gc").ok();
    assert_eq!(node.paths().len(), 0);
    // And it can be built again.
    assert_eq!(shapes::build_on(&machine, &node, Remote::SshNg, &["twice"]), [path]);
}

fn deletes_and_verifies(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let path = shapes::build_on(&machine, &node, Remote::SshNg, &["hello"]).remove(0);
    let store = |args: &[&str]| machine.remote("nix-store", &node, Remote::SshNg).args(args);
    store(&["--verify", "--check-contents"]).ok();
    let twice = shapes::build_on(&machine, &node, Remote::SshNg, &["twice"]).remove(0);
    let refused = store(&["--delete", &path]).fails();
    assert!(refused.stderr.contains("since it is still alive") || refused.stderr.contains("in use"), "{refused}");
    store(&["--delete", &twice, &path]).ok();
    assert!(node.paths().iter().all(|known| known["path"] != path.as_str()));
}

fn signs(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let path = shapes::build_on(&machine, &node, Remote::SshNg, &["hello"]).remove(0);
    let key = machine.path("key");
    node.shoal("key generate other-1").arg("--output").arg(&key).ok();
    let store = machine.store(&node, Remote::SshNg);
    machine.near("nix", &node).args(["store", "sign", "--store", &store, "--key-file"]).arg(&key).arg(&path).ok();
    let known = node.shoal("paths --json").arg(&path).ok().json();
    let signatures = known[0]["signatures"].to_string();
    assert!(
        signatures.contains("other-1:")
            && signatures.contains(node.shoal("key show").ok().text().split(':').next().unwrap()),
        "{known}"
    );
}

fn adds_files(nix: &Nix) {
    let machine = Machine::new(nix);
    let node = Node::start(&[&machine]);
    let file = machine.path("a file");
    let file = file.with_file_name("file-to-add");
    std::fs::write(&file, "added\n").unwrap();
    for arguments in [&["--add"][..], &["--add-fixed", "sha256"], &["--add-fixed", "--recursive", "sha1"]] {
        let added = machine.remote("nix-store", &node, Remote::SshNg).args(arguments).arg(&file).ok();
        let own = machine.local("nix-store").args(arguments).arg(&file).ok();
        assert_eq!(added.text(), own.text());
        let store = machine.store(&node, Remote::SshNg);
        let cat = machine.near("nix", &node).args(["store", "cat", "--store", &store, added.text()]).ok();
        assert_eq!(cat.stdout, "added\n");
    }
}
