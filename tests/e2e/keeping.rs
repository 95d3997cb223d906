//! What is kept, and what damage on disk takes: found, never served, and healed from the node behind.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use shoal_tests::{Machine, Nix, Node, Remote, shapes};

/// Flips a bit in some places of every segment.
pub fn damage(node: &Node, turn: u64) {
    for entry in fs::read_dir(node.data_dir().join("store/segments")).unwrap() {
        let file = OpenOptions::new().read(true).write(true).open(entry.unwrap().path()).unwrap();
        let len = file.metadata().unwrap().len();
        for n in 0..5 {
            let at = 16 + (len - 16) * (2 * n + turn) / 11;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        }
    }
}

/// Has a client substitute paths from a node, and look at every byte.
fn fetch(reader: &Machine, node: &Node, paths: &[String]) {
    let copy = reader.local("nix").args(["copy", "--no-check-sigs", "--from", &node.ready().http]);
    copy.args(["--option", "narinfo-cache-positive-ttl", "0"]).args(paths).ok();
    reader.local("nix-store").args(["--verify", "--check-contents"]).ok();
}

#[test]
fn scrub_heals_from_the_node_behind() {
    let machine = Machine::new(&Nix::newest());
    let reader = Machine::new(&machine.nix);
    let mut first = Node::start(&[&machine]);
    let wanted = shapes::build_on(&machine, &first, Remote::SshNg, &["chain", "twice", "outputs"]);
    let key = first.shoal("key show").ok().text().to_string();
    let mut node =
        Node::start_with(&[&machine, &reader], &["--upstream", &first.ready().http, "--trusted-public-key", &key]);
    machine.remote("nix-store", &node, Remote::SshNg).arg("--realise").args(&wanted).ok();
    let whole = node.shoal("scrub --json").ok().json();
    assert_eq!((whole["found"].as_array().map(Vec::len), &whole["cut_short"]), (Some(0), &false.into()), "{whole}");
    assert!(whole["chunks"].as_u64() > Some(0) && whole["paths"].as_u64() >= Some(3), "{whole}");

    damage(&node, 0);
    let scrubbed = node.shoal("scrub --rate 0").ok();
    assert!(
        scrubbed.stdout.contains("damaged: /nix/store/") && scrubbed.stdout.contains("healed: /nix/store/"),
        "{scrubbed}"
    );
    assert!(!scrubbed.stdout.contains("not healed"), "{scrubbed}");
    let status = node.shoal("status --json").ok().json();
    assert_eq!(status["store"]["damaged"], 0, "{status}");
    assert_eq!(status["last_scrub"]["report"]["not_healed"].as_array().map(Vec::len), Some(0), "{status}");
    fetch(&Machine::new(&machine.nix), &node, &wanted);

    // The same by a client's own command.
    damage(&node, 1);
    let verify = |more: &[&str]| {
        machine.remote("nix-store", &node, Remote::SshNg).args(["--verify", "--check-contents"]).args(more)
    };
    verify(&[]).fails();
    let repaired = verify(&["--repair"]).ok();
    assert!(repaired.stderr.contains("repaired '/nix/store/"), "{repaired}");
    verify(&[]).ok();
    fetch(&reader, &node, &wanted);

    // With nobody behind it stays known, over a restart too, and is a miss.
    first.stop();
    damage(&node, 2);
    let failed = node.shoal("scrub --json").run().expect_code(1);
    assert!(failed.stderr.contains("could not be healed"), "{failed}");
    let report = failed.json();
    let left: Vec<&str> =
        report["not_healed"].as_array().unwrap().iter().filter_map(|one| one["path"].as_str()).collect();
    assert!(!left.is_empty(), "{failed}");
    node.stop();
    node.start_again();
    let paths = node.paths();
    assert!(left.iter().all(|path| paths.iter().all(|known| known["path"] != *path)), "{left:?}");
    let status = node.shoal("status --json").ok().json();
    assert!(status["store"]["damaged"].as_u64() > Some(0), "{status}");
    // Brought again by a client that has it.
    let to = reader.store(&node, Remote::SshNg);
    reader.near("nix", &node).args(["copy", "--no-check-sigs", "--to", &to]).args(&wanted).ok();
    fetch(&Machine::new(&machine.nix), &node, &wanted);
    assert_eq!(node.shoal("status --json").ok().json()["store"]["damaged"], 0);
}

#[test]
fn what_is_pinned_outlives_collections_and_restarts() {
    let machine = Machine::new(&Nix::newest());
    let mut node = Node::start(&[&machine]);
    let paths = shapes::build_on(&machine, &node, Remote::SshNg, &["chain", "twice"]);
    let valid = |node: &Node, path: &String| node.paths().into_iter().find(|known| known["path"] == path.as_str());
    let pinned = node.shoal("pin --json --name release --ttl 1d").arg(&paths[1]).ok().json();
    assert_eq!((&pinned[0]["name"], &pinned[0]["paths"][0]), (&"release".into(), &paths[1].clone().into()), "{pinned}");
    assert!(pinned[0]["seconds_left"].as_u64().is_some_and(|left| left <= 86_400), "{pinned}");
    node.stop();
    node.start_again();
    let plan = node.shoal("gc --dry-run --json").ok().json();
    let done = node.shoal("gc --json").ok().json();
    assert_eq!(plan, done);
    assert!(done["freed_bytes"].as_u64() > Some(0), "{done}");
    let kept = valid(&node, &paths[1]).expect("it was pinned");
    assert_eq!(kept["pins"][0], "release", "{kept}");
    assert!(node.shoal("pin").ok().stdout.contains("release"));
    let unknown = node.shoal("pin /nix/store/0123456789abcdfghijklmnpqrsvwxyz-x").fails();
    assert!(unknown.stderr.contains("is not valid here"), "{unknown}");
    node.shoal("unpin nobody").fails();
    // Without a name each path is its own pin.
    node.shoal("pin").arg(&paths[1]).ok();
    node.shoal("unpin release").ok();
    node.shoal("gc").ok();
    assert!(valid(&node, &paths[1]).is_some());
    node.shoal("unpin").arg(&paths[1]).ok();
    node.shoal("gc").ok();
    assert!(valid(&node, &paths[1]).is_none());
}
