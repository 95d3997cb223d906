//! The store of a mesh as a directory: only what is read is fetched.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use shoal_tests::command::{PATIENCE, wait_for};
use shoal_tests::mesh::{invite, peers};
use shoal_tests::random::Random;
use shoal_tests::{Machine, Mesh, Nix, Node, Place, Remote, skip};

/// Longer than a read waits for who does not answer, and than it is remembered.
const READ_PATIENCE: Duration = Duration::from_secs(120);
/// Until a reader is dead, which waits much longer for what it reads.
const KILL_PATIENCE: Duration = Duration::from_secs(20);
/// Less than a read waits for a node, with time to start it again.
const DEAD_FOR: Duration = Duration::from_secs(12);
/// Of a node whose disk is full before 16 MiB are read.
const DISK: &str = "size=96m";

/// No FUSE, or not root and without its helper.
pub fn cannot_mount() -> bool {
    let has_fuse = fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let helper = || Command::new("fusermount3").arg("--version").output().is_ok();
    !has_fuse || !(rustix::process::geteuid().is_root() || helper())
}

/// A directory to mount at, which nothing is mounted at afterwards.
pub struct MountPoint {
    pub dir: PathBuf,
    _place: Place,
}

impl MountPoint {
    pub fn new() -> MountPoint {
        let place = Place::new("mount");
        let dir = place.join("store");
        fs::create_dir(&dir).unwrap();
        MountPoint { dir, _place: place }
    }

    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().any(|line| line.split(' ').nth(4) == self.dir.to_str())
    }

    /// Where a store path is in it.
    pub fn at(&self, path: &str) -> PathBuf {
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
pub fn put(machine: &Machine, node: &Node) -> (String, Vec<u8>) {
    put_of(machine, node, "tool", 16 << 20)
}

/// As [`put`], with a file of so many bytes.
fn put_of(machine: &Machine, node: &Node, name: &str, len: usize) -> (String, Vec<u8>) {
    let dir = machine.path(name);
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::copy("/bin/echo", dir.join("bin/echo")).unwrap();
    let contents = Random::of(6 + len as u64).noise(len);
    fs::write(dir.join("image"), &contents).unwrap();
    let path = machine.local("nix-store").arg("--add").arg(&dir).ok().text().to_string();
    let store = machine.store(node, Remote::SshNg);
    machine.near("nix", node).args(["copy", "--no-check-sigs", "--to", &store, &path]).ok();
    (path, contents)
}

pub fn fetched(node: &Node) -> (u64, u64) {
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
    let mut node = Node::start_with(&[&machine], &["--mount", point.dir.to_str().unwrap(), "--mount-keep", "0s"]);
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

/// A process that reads a file of a mount, ended when this is dropped: a reader that waits can be killed.
struct Reader(Child);

impl Reader {
    fn of(file: &Path) -> Reader {
        let cat = Command::new("cat").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Reader(cat.expect("cat"))
    }

    fn has_ended(&mut self) -> Option<bool> {
        self.0.try_wait().unwrap().map(|status| status.success())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reader_whose_node_is_gone_gets_an_error_in_time_and_the_rest_when_it_is_back() {
    if cannot_mount() {
        return skip("FUSE cannot be mounted here");
    }
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start_with(2, &[&machine], &["--copies", "1", "--mesh-upload-rate", "2MiB"]);
    let (path, contents) = put(&machine, &mesh[0]);
    let point = MountPoint::new();
    let mut mounting = mesh[1].shoal("mount").arg(&point.dir).start();
    wait_for("a mount", PATIENCE, || point.is_mounted().then_some(()));
    let image = point.at(&path).join("image");
    let mut reader = Reader::of(&image);
    wait_for("some of it to be read", PATIENCE, || (fetched(&mesh[1]).1 > 1 << 20).then_some(()));
    mesh[0].kill();
    assert_eq!(reader.has_ended(), None, "16 MiB take eight seconds");
    // Who waits in a read can be killed.
    let begun = Instant::now();
    drop(Reader::of(&image));
    assert!(begun.elapsed() < KILL_PATIENCE);
    let ended = wait_for("the reader's end", READ_PATIENCE, || reader.has_ended());
    assert!(!ended, "an error, and not an early end of the file");
    mesh[0].start_again();
    let whole = wait_for("the rest of it", READ_PATIENCE, || fs::read(&image).ok());
    assert!(whole == contents);
    mounting.signal(Signal::INT);
    mounting.wait(PATIENCE);
}

/// The one node that has it is known to be dead when the read begins: it may come back.
#[test]
fn a_reader_waits_for_a_node_that_is_dead_and_comes_back() {
    if cannot_mount() {
        return skip("FUSE cannot be mounted here");
    }
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start_with(2, &[&machine], &["--copies", "1"]);
    let (path, _) = put(&machine, &mesh[0]);
    let point = MountPoint::new();
    let mut mounting = mesh[1].shoal("mount").arg(&point.dir).start();
    wait_for("a mount", PATIENCE, || point.is_mounted().then_some(()));
    let image = point.at(&path).join("image");
    assert!(fs::metadata(&image).is_ok());
    mesh[0].kill();
    wait_for("the node to be taken for dead", READ_PATIENCE, || {
        peers(&mesh[1]).values().any(|state| state == "dead").then_some(())
    });
    let mut reader = Reader::of(&image);
    // By then it has been asked in vain, and looked for again.
    let begun = Instant::now();
    wait_for("the reader to have waited", PATIENCE, || {
        assert_eq!(reader.has_ended(), None, "an error, though the node may come back");
        (begun.elapsed() > DEAD_FOR).then_some(())
    });
    mesh[0].start_again();
    assert!(wait_for("the reader's end", READ_PATIENCE, || reader.has_ended()));
    mounting.signal(Signal::INT);
    mounting.wait(PATIENCE);
}

#[test]
fn a_full_disk_makes_reads_fail_and_they_work_when_there_is_room() {
    if cannot_mount() {
        return skip("FUSE cannot be mounted here");
    }
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh::start_with(1, &[&machine], &["--copies", "1"]);
    let (path, contents) = put(&machine, &mesh[0]);
    let small = Node::prepare(&["--name", "n1", "--copies", "1", "--join", &invite(&mesh[0], "")]);
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(small.data_dir()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        return skip("no small disk: mounting takes root");
    }
    let _disk = Unmounted(small.data_dir());
    mesh.nodes.push(small);
    mesh[1].start_again();
    mesh.wait_until_whole();
    let point = MountPoint::new();
    let mut mounting = mesh[1].shoal("mount").arg(&point.dir).start();
    wait_for("a mount", PATIENCE, || point.is_mounted().then_some(()));
    let (filler, image) = (mesh[1].data_dir().join("filler"), point.at(&path).join("image"));
    // As much as there is.
    let _ = fs::write(&filler, vec![1; 256 << 20]);
    let failed = fs::read(&image).expect_err("there is no room for it");
    assert_eq!(failed.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert!(fs::metadata(&image).is_ok(), "what is in memory is there");
    fs::remove_file(&filler).unwrap();
    let whole = wait_for("what there is room for now", READ_PATIENCE, || fs::read(&image).ok());
    assert!(whole == contents);
    // What was read before makes room for what is read now.
    let (path, contents) = put_of(&machine, &mesh[0], "bigger", 80 << 20);
    assert!(fs::read(point.at(&path).join("image")).unwrap() == contents);
    mounting.signal(Signal::INT);
    mounting.wait(PATIENCE);
    wait_for("the mount to be gone", PATIENCE, || (!point.is_mounted()).then_some(()));
    mesh[1].stop();
}

/// A directory at which something is mounted until this is dropped.
pub struct Unmounted(pub PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        // Nothing more can be done where that fails.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
