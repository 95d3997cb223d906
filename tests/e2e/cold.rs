//! A bucket behind nodes: written some time after, read when no node has a path, and never needed.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::Value;
use shoal_tests::command::wait_for;
use shoal_tests::mesh::Mesh;
use shoal_tests::{Machine, Nix, Node, Remote, S3, built, shapes};

use crate::grid::has_built;

by_each_version!(what_a_lost_disk_held_comes_back);

/// Until what is to be written is, on a busy machine.
const WRITTEN_PATIENCE: Duration = Duration::from_secs(60);
/// Without this a client remembers for an hour what it once heard of a cache.
const FRESH: [&str; 4] = ["--option", "narinfo-cache-negative-ttl", "0", "--no-check-sigs"];

fn node(machine: &Machine, bucket: &S3, more: &[&str]) -> Node {
    let flags = bucket.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Node::start_with(&[machine], &flags)
}

fn cold(node: &Node) -> Value {
    node.shoal("cold status --json").ok().json()
}

/// Waits until the bucket has every path that the node has.
fn wait_until_written(node: &Node) -> Value {
    wait_for("paths in the bucket", WRITTEN_PATIENCE, || {
        let status = cold(node);
        let paths = node.paths().len() as u64;
        let is_written = status["backlog"] == 0 && status["backlog_is_partial"] == false;
        (is_written && status["kept_paths"].as_u64()? >= paths).then_some(status)
    })
}

/// Fetched over HTTP by a client that has nothing, contents compared with what their names and hashes say.
fn fetch(nix: &Nix, node: &Node, paths: &[String]) -> Machine {
    let reader = Machine::new(nix);
    reader.local("nix").args(["copy", "--from", &node.ready().http]).args(FRESH).args(paths).ok();
    reader.local("nix-store").args(["--verify", "--check-contents"]).ok();
    reader
}

fn builds(node: &Node) -> usize {
    node.shoal("builds --json").ok().json().as_array().map_or(0, Vec::len)
}

/// Changes one bit in the middle of a file.
fn damage(file: &std::path::Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn what_a_lost_disk_held_comes_back(nix: &Nix) {
    let machine = Machine::new(nix);
    let bucket = S3::start();
    let mut first = node(&machine, &bucket, &[]);
    let wanted = shapes::build_on(&machine, &first, Remote::SshNg, &["chain", "twice"]);
    let status = wait_until_written(&first);
    assert!(status["written_paths"].as_u64().unwrap() >= 2, "{status}");
    let had: BTreeSet<String> = first.valid();
    let hashes: Vec<_> = wanted.iter().map(|path| first.nar_hash(path)).collect();
    let key = first.key();
    first.stop();
    drop(first);
    // Another node, of which the bucket knows nothing, and which believes the lost one's key.
    let second = node(&machine, &bucket, &["--trusted-public-key", &key]);
    fetch(nix, &second, &wanted);
    // Over ssh, as a store to build in: nothing is built again.
    assert_eq!(shapes::build_on(&machine, &second, Remote::SshNg, &["chain", "twice"]), wanted);
    assert_eq!(builds(&second), 0, "{}", second.log());
    assert_eq!(wanted.iter().map(|path| second.nar_hash(path)).collect::<Vec<_>>(), hashes);
    let listed = second.shoal("status --json").ok().json();
    assert_eq!(listed["upstreams"][0]["url"], "s3://cold/mesh", "{listed}");
    assert!(listed["upstreams"][0]["fetched_paths"].as_u64().unwrap() >= 2, "{listed}");
    // All of it, and the bucket is right.
    second.shoal("cold restore").ok();
    assert!(second.valid().is_superset(&had), "{}", second.log());
    second.shoal("cold verify").ok();
}

#[test]
fn a_node_that_does_not_know_the_writers_key_believes_nothing() {
    let machine = Machine::new(&Nix::newest());
    let bucket = S3::start();
    let mut first = node(&machine, &bucket, &[]);
    let wanted = shapes::build_on(&machine, &first, Remote::SshNg, &["hello"]);
    wait_until_written(&first);
    first.stop();
    let second = node(&machine, &bucket, &[]);
    let reader = Machine::new(&Nix::newest());
    reader.local("nix").args(["copy", "--from", &second.ready().http]).args(FRESH).args(&wanted).fails();
    let restored = second.shoal("cold restore").fails();
    assert!(restored.stdout.contains("not restored"), "{restored}");
    assert!(second.valid().is_disjoint(&wanted.iter().cloned().collect()), "a path that nobody vouched for is valid");
}

#[test]
fn wrong_and_missing_objects_count_as_missing() {
    let machine = Machine::new(&Nix::newest());
    let bucket = S3::start();
    let mut first = node(&machine, &bucket, &[]);
    let wanted = shapes::build_on(&machine, &first, Remote::SshNg, &["hello"]);
    wait_until_written(&first);
    let (key, packs) = (first.key(), bucket.objects("packs"));
    first.stop();
    let refuses = |why: &str| {
        let second = node(&machine, &bucket, &["--trusted-public-key", &key]);
        let reader = Machine::new(&Nix::newest());
        reader.local("nix").args(["copy", "--from", &second.ready().http]).args(FRESH).args(&wanted).fails();
        assert!(!reader.real_path(&wanted[0]).exists(), "{why}");
        assert!(second.valid().is_disjoint(&wanted.iter().cloned().collect()), "{why}: {}", second.log());
        let log = second.log();
        assert!(log.contains("an object of the bucket is wrong"), "{why}: {log}");
        second
    };
    // A record that is not what was written.
    let records = bucket.objects("paths");
    let kept: Vec<Vec<u8>> = records.iter().map(|file| fs::read(file).unwrap()).collect();
    records.iter().for_each(|file| damage(file));
    refuses("damaged records");
    records.iter().zip(&kept).for_each(|(file, bytes)| fs::write(file, bytes).unwrap());
    // A bit in each frame.
    let kept: Vec<Vec<u8>> = packs.iter().map(|file| fs::read(file).unwrap()).collect();
    for (file, bytes) in packs.iter().zip(&kept) {
        let flipped: Vec<u8> =
            bytes.iter().enumerate().map(|(at, byte)| if at % 64 == 63 { byte ^ 1 } else { *byte }).collect();
        fs::write(file, flipped).unwrap();
    }
    let second = refuses("damaged packs");
    let found = second.shoal("cold verify").fails();
    assert!(found.stdout.contains("damaged: packs/"), "{found}");
    drop(second);
    // Packs that end too soon, and that are gone.
    packs.iter().zip(&kept).for_each(|(file, bytes)| fs::write(file, &bytes[..bytes.len() / 8]).unwrap());
    refuses("short packs");
    packs.iter().for_each(|file| fs::remove_file(file).unwrap());
    let second = refuses("missing packs");
    // What the bucket cannot give is built, and written again.
    assert_eq!(shapes::build_on(&machine, &second, Remote::SshNg, &["hello"]), wanted);
    second.shoal("cold verify").fails();
    wait_for("a bucket that is right again", WRITTEN_PATIENCE, || {
        second.shoal("cold verify").run().status.success().then_some(())
    });
}

#[test]
fn a_bucket_that_stalls_makes_paths_missing_and_keeps_nobody() {
    let machine = Machine::new(&Nix::newest());
    let bucket = S3::start();
    let mut first = node(&machine, &bucket, &[]);
    let wanted = shapes::build_on(&machine, &first, Remote::SshNg, &["hello"]);
    wait_until_written(&first);
    let key = first.key();
    first.stop();
    let second = node(&machine, &bucket, &["--trusted-public-key", &key]);
    for part in ["/paths/", "/packs/"] {
        bucket.stall(part);
        let reader = Machine::new(&Nix::newest());
        reader.local("nix").args(["copy", "--from", &second.ready().http]).args(FRESH).args(&wanted).fails();
        assert!(second.valid().is_disjoint(&wanted.iter().cloned().collect()));
    }
    // A client builds meanwhile what it would have had.
    assert_eq!(shapes::build_on(&machine, &second, Remote::SshNg, &["hello"]), wanted);
}

#[test]
fn a_bucket_that_is_down_is_written_to_later() {
    let machine = Machine::new(&Nix::newest());
    let bucket = S3::start();
    bucket.set_down();
    let mut node = node(&machine, &bucket, &[]);
    let wanted = shapes::build_on(&machine, &node, Remote::SshNg, &["hello"]);
    let status = wait_for("a write that fails", WRITTEN_PATIENCE, || {
        Some(cold(&node)).filter(|status| status["failed_writes"].as_u64() > Some(0))
    });
    assert!(status["last_error"].is_string(), "{status}");
    let text = node.shoal("status").ok();
    assert!(text.stdout.contains("s3://cold/mesh"), "{text}");
    fetch(&Nix::newest(), &node, &wanted);
    // What was to be written is known after a restart.
    node.stop();
    node.start_again();
    bucket.set_up();
    wait_until_written(&node);
    assert!(!bucket.objects("paths").is_empty() && !bucket.objects("packs").is_empty());
    node.shoal("cold verify").ok();
}

/// Of a path that several nodes have one writes it, and each finds in the bucket what another one wrote.
#[test]
fn a_mesh_writes_each_path_once_and_a_new_member_reads_it() {
    let machine = Machine::new(&Nix::newest());
    let bucket = S3::start();
    let flags = bucket.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut mesh = Mesh::start_with(2, &[&machine], &flags);
    let wanted = shapes::build_on(&machine, &mesh[0], Remote::SshNg, &["chain", "twice"]);
    let all: BTreeSet<String> = mesh[0].valid().union(&mesh[1].valid()).cloned().collect();
    wait_for("paths in the bucket", WRITTEN_PATIENCE, || (bucket.objects("paths").len() >= all.len()).then_some(()));
    // Whose write it was counts it when it has heard of its end.
    let count = || mesh.nodes.iter().map(|node| cold(node)["written_paths"].as_u64().unwrap()).sum();
    let written: u64 = wait_for("writes", WRITTEN_PATIENCE, || Some(count()).filter(|sum| *sum >= all.len() as u64));
    assert_eq!(written, all.len() as u64, "{:?}", mesh.nodes.iter().map(cold).collect::<Vec<_>>());
    // One more node, by a ticket: it believes what the mesh's keys signed. Then the others are gone for good.
    mesh.add(&[&machine], &flags);
    mesh.wait_until_whole();
    mesh[0].kill();
    mesh[1].kill();
    mesh.wait_until_whole();
    fetch(&Nix::newest(), &mesh[2], &wanted);
    assert_eq!(shapes::build_on(&machine, &mesh[2], Remote::SshNg, &["chain", "twice"]), wanted);
    assert_eq!(builds(&mesh[2]), 0, "{}", mesh[2].log());
}

/// Hashes of what a client that has nothing is given.
fn read(node: &Node, paths: &[String]) -> Vec<String> {
    let reader = fetch(&Nix::newest(), node, paths);
    let hashes = reader.local("nix-store").args(["--query", "--hash"]).args(paths).ok();
    hashes.lines().into_iter().map(String::from).collect()
}

/// What every node has, or what is left of it.
fn all(mesh: &Mesh) -> BTreeSet<String> {
    mesh.nodes.iter().flat_map(Node::valid).collect()
}

/// Nodes that may leave what they have to the bucket, and all that one of them built in it.
fn lean_mesh(machine: &Machine, bucket: &S3, more: &[&str], attributes: &[&str]) -> (Mesh, Vec<String>) {
    let flags = bucket.flags();
    let flags = flags.iter().map(String::as_str).chain(["--cold-last-copies"]).chain(more.iter().copied());
    let mesh = Mesh::start_with(2, &[machine], &flags.collect::<Vec<_>>());
    let wanted = shapes::build_on(machine, &mesh[0], Remote::SshNg, attributes);
    let paths = all(&mesh).len();
    wait_for("paths in the bucket", WRITTEN_PATIENCE, || {
        (bucket.objects("paths").len() >= paths && mesh.nodes.iter().all(|node| cold(node)["backlog"] == 0))
            .then_some(())
    });
    (mesh, wanted)
}

/// The bucket is the only place where paths are, and only when it can be asked.
#[test]
fn last_copies_are_left_to_a_bucket_that_has_them() {
    let machine = Machine::new(&Nix::newest());
    let bucket = S3::start();
    let (mesh, wanted) = lean_mesh(&machine, &bucket, &[], &["chain", "twice"]);
    let hashes = read(&mesh[0], &wanted);
    let had = all(&mesh);
    let counts = || mesh.nodes.iter().map(has_built).sum::<usize>();
    let built_once = counts();
    bucket.set_down();
    let mut said = String::new();
    for node in &mesh.nodes {
        said += &node.shoal("gc").ok().stdout;
    }
    assert!(said.contains("stay that no other node has: it cannot be learned"), "{said}");
    assert_eq!(all(&mesh), had, "something went that the bucket could not be asked for");
    bucket.set_up();
    wait_for("nodes without paths", WRITTEN_PATIENCE, || {
        mesh.nodes.iter().for_each(|node| _ = node.shoal("gc").ok());
        all(&mesh).is_empty().then_some(())
    });
    // Both serve it all the same, as what they could fetch.
    mesh.nodes.iter().for_each(|node| assert_eq!(read(node, &wanted), hashes));
    assert_eq!(shapes::build_on(&machine, &mesh[1], Remote::SshNg, &["chain", "twice"]), wanted);
    assert_eq!(counts(), built_once, "something was built again");
}

/// Stores that are too small for what is built make room by themselves, and none of it is lost.
#[test]
fn a_mesh_outgrows_its_disks() {
    let machine = Machine::new(&Nix::newest());
    let bucket = S3::start();
    let quota = ["--store-quota", "8MiB"];
    let (mesh, wanted) = lean_mesh(&machine, &bucket, &quota, &["large", "program"]);
    let hashes = read(&mesh[0], &wanted);
    wait_for("room on both disks", 3 * WRITTEN_PATIENCE, || (mesh.holders(&wanted[0]) == 0).then_some(()));
    mesh.nodes.iter().for_each(|node| assert_eq!(read(node, &wanted), hashes));
}

/// With the disk of the only node everything goes that it knew; another one has it from the bucket.
#[test]
fn logs_and_what_content_addressed_outputs_came_out_as_are_in_the_bucket() {
    const CA: [&str; 3] = ["--option", "extra-experimental-features", "ca-derivations"];
    let machine = Machine::new(&Nix::newest());
    let bucket = S3::start();
    let mut first = node(&machine, &bucket, &[]);
    let build = |node: &Node, attribute: &str| {
        built(&shapes::build_command(&machine, node, Remote::SshNg, "", &[attribute]).args(CA).ok()).remove(0)
    };
    let (top, hello) = (build(&first, "ways.0"), build(&first, "hello"));
    let derivation = shapes::instantiate_on(&machine, &first, Remote::SshNg, "hello");
    let status = wait_until_written(&first);
    assert!(
        status["written_logs"].as_u64() >= Some(4) && status["written_realisations"].as_u64() >= Some(2),
        "{status}"
    );
    let key = first.key();
    first.stop();
    drop(first);
    let second = node(&machine, &bucket, &["--trusted-public-key", &key]);
    for named in [&derivation, &hello] {
        assert!(second.shoal("log").arg(named).ok().stdout.contains("hello from the builder"));
    }
    assert_eq!(build(&second, "ways.0"), top);
    assert_eq!(has_built(&second), 0, "{}", second.log());
}
