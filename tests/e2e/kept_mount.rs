//! A mount that outlives its node: what is cached is read, what is not waits for the next node.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use shoal_tests::command::wait_for;
use shoal_tests::{Cmd, Machine, Mesh, Nix, Node, skip};

use crate::mount::{MountPoint, cannot_mount, fetched, put};

const PATIENCE: Duration = Duration::from_secs(90);

/// Only root can hand a mount over, on a kernel that asks again what was not answered.
fn cannot_keep(node: &Node) -> bool {
    node.log().contains("lets no mount outlive its node")
}

fn cannot_try() -> bool {
    cannot_mount() || !rustix::process::geteuid().is_root()
}

/// Compares a file with what it should be, on its own.
fn compare(file: &Path, with: &Path) -> Cmd {
    Cmd::new("cmp").args([file, with]).patience(PATIENCE)
}

#[test]
fn what_was_read_stays_and_what_was_not_comes_from_the_next_node() {
    if cannot_try() {
        return skip("a mount that outlives its node takes root and FUSE");
    }
    let machine = Machine::new(&Nix::newest());
    let point = MountPoint::new();
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[&machine], &["--copies", "1", "--mesh-upload-rate", "4MiB"]);
    mesh.add(&[&machine], &["--copies", "1", "--mount", point.dir.to_str().unwrap()]);
    mesh.wait_until_whole();
    if cannot_keep(&mesh[1]) {
        return skip("this kernel lets no mount outlive its node");
    }
    let (path, contents) = put(&machine, &mesh[0]);
    let (here, original) = (point.at(&path), machine.path("tool/image"));
    let image = fs::File::open(here.join("image")).unwrap();
    let mut begin = vec![0; 1 << 16];
    image.read_exact_at(&mut begin, 0).unwrap();
    let number = image.metadata().unwrap().ino();

    mesh[1].stop();
    assert!(point.is_mounted());
    image.read_exact_at(&mut begin, 0).unwrap();
    assert!(begin == contents[..1 << 16], "what the kernel has it gives");
    let mut reading = compare(&here.join("image"), &original).start();
    // By a process that is there: nobody gets hold of one whose program is waited for.
    let echo = format!("exec {}/bin/echo from afar", here.display());
    let mut running = Cmd::new("sh").args(["-c", &echo]).start();
    assert!(!reading.has_ended() && !running.has_ended(), "there is nobody who could answer");
    mesh[1].start_again();
    running.wait(PATIENCE);
    assert_eq!(running.finish(PATIENCE).text(), "from afar");
    reading.finish(PATIENCE).expect_code(0);
    assert_eq!(fs::metadata(here.join("image")).unwrap().ino(), number, "the same file");

    // In the middle of what it was asked for.
    let path = put_other(&machine, &mesh[0]);
    let other = point.at(&path).join("image");
    let before = fetched(&mesh[1]).1;
    let reading = compare(&other, &machine.path("other/image")).start();
    wait_for("some of it to be read", PATIENCE, || (fetched(&mesh[1]).1 > before + (1 << 20)).then_some(()));
    mesh[1].kill();
    mesh[1].start_again();
    reading.finish(PATIENCE).expect_code(0);
    assert!(mesh[1].log().contains("the mount of an earlier run goes on"), "{}", mesh[1].log());
}

/// As [`put`], with other contents.
fn put_other(machine: &Machine, node: &Node) -> String {
    let dir = machine.path("other");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("image"), shoal_tests::random::Random::of(8).noise(12 << 20)).unwrap();
    let path = machine.local("nix-store").arg("--add").arg(&dir).ok().text().to_string();
    let store = machine.store(node, shoal_tests::Remote::SshNg);
    machine.near("nix", node).args(["copy", "--no-check-sigs", "--to", &store, &path]).ok();
    path
}

#[test]
fn what_was_open_before_the_node_started_again_is_not_deleted_until_it_is_closed() {
    if cannot_try() {
        return skip("a mount that outlives its node takes root and FUSE");
    }
    let machine = Machine::new(&Nix::newest());
    let point = MountPoint::new();
    fs::write(point.dir.join("beneath"), "what lies beneath").unwrap();
    fs::write(point.dir.join("later"), "looked up later").unwrap();
    let mut node = Node::start_with(&[&machine], &["--mount", point.dir.to_str().unwrap(), "--mount-overlay"]);
    if cannot_keep(&node) {
        return skip("this kernel lets no mount outlive its node");
    }
    let (path, contents) = put(&machine, &node);
    let image = point.at(&path).join("image");
    let open = wait_for("the path", PATIENCE, || fs::File::open(&image).ok());
    assert_eq!(fs::read_to_string(point.dir.join("beneath")).unwrap(), "what lies beneath");
    node.kill();
    node.start_again();
    for (name, says) in [("beneath", "what lies beneath"), ("later", "looked up later")] {
        assert_eq!(fs::read_to_string(point.dir.join(name)).unwrap(), says);
    }
    node.shoal("gc").ok();
    assert!(node.valid().contains(&path), "somebody has it open");
    let mut end = vec![0; 1 << 20];
    open.read_exact_at(&mut end, (15 << 20) as u64).unwrap();
    assert!(end == contents[15 << 20..]);
    assert!(fs::metadata(&image).is_ok());
    drop(open);
    wait_for("the path to be deleted", PATIENCE, || {
        node.shoal("gc").ok();
        (!node.valid().contains(&path)).then_some(())
    });
    wait_for("it to be gone", PATIENCE, || fs::metadata(&image).is_err().then_some(()));
}

#[test]
fn a_mount_goes_when_no_node_comes_back_for_it() {
    if cannot_try() {
        return skip("a mount that outlives its node takes root and FUSE");
    }
    let machine = Machine::new(&Nix::newest());
    let point = MountPoint::new();
    let mut node = Node::start_with(&[&machine], &["--mount", point.dir.to_str().unwrap(), "--mount-keep", "6s"]);
    if cannot_keep(&node) {
        return skip("this kernel lets no mount outlive its node");
    }
    node.kill();
    assert!(point.is_mounted());
    wait_for("the mount to be gone", PATIENCE, || (!point.is_mounted()).then_some(()));
    node.start_again();
    assert!(point.is_mounted(), "another one");
    // Somebody unmounts it: the next node mounts it anew.
    Cmd::new("umount").arg("-l").arg(&point.dir).ok();
    node.stop();
    node.start_again();
    assert!(point.is_mounted());
}
