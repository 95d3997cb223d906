//! The store of a mesh as a directory: only what is read is fetched.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use shoal_tests::command::{PATIENCE, wait_for};
use shoal_tests::random::Random;
use shoal_tests::{Machine, Mesh, Nix, Node, Place, Remote, skip};

/// No FUSE, or not root and without its helper.
fn cannot_mount() -> bool {
    let has_fuse = fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let helper = || Command::new("fusermount3").arg("--version").output().is_ok();
    !has_fuse || !(rustix::process::geteuid().is_root() || helper())
}

/// A directory to mount at, which nothing is mounted at afterwards.
struct MountPoint {
    dir: PathBuf,
    _place: Place,
}

impl MountPoint {
    fn new() -> MountPoint {
        let place = Place::new("mount");
        let dir = place.join("store");
        fs::create_dir(&dir).unwrap();
        MountPoint { dir, _place: place }
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(4) == self.dir.to_str())
    }

    /// Where a store path is in it.
    fn at(&self, path: &str) -> PathBuf {
        self.dir.join(Path::new(path).file_name().unwrap())
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if self.is_mounted() {
            // Nothing more can be done where that fails.
            let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A path with a program and a big file, copied to a node; and the big file's contents.
fn put(machine: &Machine, node: &Node) -> (String, Vec<u8>) {
    let dir = machine.path("tool");
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::copy("/bin/echo", dir.join("bin/echo")).unwrap();
    let contents = Random::of(6).noise(16 << 20);
    fs::write(dir.join("image"), &contents).unwrap();
    let path = machine.local("nix-store").arg("--add").arg(&dir).ok().text().to_string();
    let store = machine.store(node, Remote::SshNg);
    machine.near("nix", node).args(["copy", "--no-check-sigs", "--to", &store, &path]).ok();
    (path, contents)
}

fn fetched(node: &Node) -> (u64, u64) {
    let status = node.shoal("status --json").ok().json();
    let number = |key: &str| status["mounts"][key].as_u64().unwrap();
    (number("fetched_chunks"), number("fetched_bytes"))
}

#[test]
fn what_one_node_has_is_read_at_another_and_only_what_is_read_is_fetched() {
    if cannot_mount() {
        return skip("FUSE cannot be mounted here");
    }
    let machine = Machine::new(&Nix::newest());
    let mesh = Mesh::start_with(2, &[&machine], &["--copies", "1"]);
    let (path, contents) = put(&machine, &mesh[0]);
    let point = MountPoint::new();
    let mut mounting = mesh[1].shoal("mount").arg(&point.dir).start();
    wait_for("a mount", PATIENCE, || point.is_mounted().then_some(()));
    let here = point.at(&path);
    assert!(fs::metadata(point.dir.join("00000000000000000000000000000000-nobody")).is_err());
    let run = Command::new(here.join("bin/echo")).arg("from afar").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&run.stdout), "from afar\n");
    let (chunks, bytes) = fetched(&mesh[1]);
    assert!((1..=8).contains(&chunks) && bytes < 1 << 20, "a small program took {chunks} chunks, {bytes} bytes");
    assert!(fs::read(here.join("image")).unwrap() == contents);
    let (_, all) = fetched(&mesh[1]);
    assert!(all < (17 << 20), "nothing twice: {all} bytes");
    assert_eq!(mesh.holders(&path), 1, "parts of a path do not make it valid");
    mounting.signal(Signal::INT);
    mounting.wait(PATIENCE);
    wait_for("the mount to be gone", PATIENCE, || (!point.is_mounted()).then_some(()));
}

#[test]
fn a_configured_mount_shows_what_comes_keeps_what_is_open_and_goes_with_the_node() {
    if cannot_mount() {
        return skip("FUSE cannot be mounted here");
    }
    let machine = Machine::new(&Nix::newest());
    let point = MountPoint::new();
    let mut node = Node::start_with(&[&machine], &["--mount", point.dir.to_str().unwrap()]);
    assert!(point.is_mounted());
    let (path, contents) = put(&machine, &node);
    let listed = || fs::read_dir(&point.dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let here = point.at(&path);
    wait_for("the path to be listed", PATIENCE, || listed().contains(&here).then_some(()));
    let open = fs::File::open(here.join("image")).unwrap();
    node.shoal("gc").ok();
    assert!(node.valid().contains(&path), "somebody has it open");
    assert!(fs::read(here.join("image")).unwrap() == contents);
    drop(open);
    wait_for("the path to be deleted", PATIENCE, || {
        node.shoal("gc").ok();
        (!node.valid().contains(&path)).then_some(())
    });
    wait_for("it to be listed no more", PATIENCE, || (!listed().contains(&here)).then_some(()));
    // Whoever kills a node leaves a mount that gives errors, and the next node at this place replaces it.
    let nobody = || fs::metadata(point.dir.join("00000000000000000000000000000000-nobody")).unwrap_err().kind();
    node.kill();
    assert_eq!(nobody(), ErrorKind::NotConnected);
    node.start_again();
    assert_eq!(nobody(), ErrorKind::NotFound);
    node.stop();
    assert!(!point.is_mounted());
}
