//! Builds whose inputs are a view of the lazy store: what becomes of them when something of it goes wrong.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use shoal_tests::command::wait_for;
use shoal_tests::random::Random;
use shoal_tests::{Cmd, Machine, Mesh, Nix, Node, Remote, built, place, shapes, skip};

/// More than reads wait for what does not come.
const PATIENCE: Duration = Duration::from_secs(120);
const LAZY: [&str; 2] = ["--inputs", "lazy"];

/// Whether this machine cannot show views to builds, which the node says itself.
fn cannot_show(node: &Node) -> bool {
    node.shoal("status --json").ok().json()["inputs"]["views"] != true
}

fn build(machine: &Machine, node: &Node, attribute: &str) -> Cmd {
    shapes::build_command(machine, node, Remote::SshNg, "", &[attribute]).patience(PATIENCE)
}

/// The files with the store's contents, and how long they are.
fn segments(node: &Node) -> BTreeMap<PathBuf, u64> {
    let entries = fs::read_dir(node.data_dir().join("store/segments")).unwrap();
    entries.map(|entry| entry.unwrap()).map(|entry| (entry.path(), entry.metadata().unwrap().len())).collect()
}

/// All that came after `before` is overwritten.
fn damage_since(node: &Node, before: &BTreeMap<PathBuf, u64>) {
    for (path, len) in segments(node) {
        let since = before.get(&path).copied().unwrap_or(0);
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&vec![0x5a; (len - since) as usize], since).unwrap();
    }
}

#[test]
fn a_builder_that_was_given_an_error_fails_for_the_nodes_reason_and_not_its_own() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start_with(&[&machine], &LAZY);
    if cannot_show(&node) {
        return skip("no views here; 'shoal doctor' says why");
    }
    // What builders are made of comes before what is damaged.
    build(&machine, &node, "hello").ok();
    let before = segments(&node);
    build(&machine, &node, "large").ok();
    damage_since(&node, &before);
    let finished = build(&machine, &node, "reads").run();
    assert!(!finished.status.success(), "{finished}");
    assert!(finished.stderr.contains("some inputs could not be read"), "{finished}");
    assert!(!finished.stderr.contains("builder failed"), "{finished}");
}

#[test]
fn when_the_node_that_serves_a_view_is_killed_the_build_succeeds_elsewhere() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[&machine], &["--no-build"]);
    (0..2).for_each(|_| mesh.add(&[&machine], &["--max-jobs", "1", LAZY[0], LAZY[1]]));
    mesh.wait_until_whole();
    if cannot_show(&mesh[1]) {
        return skip("no views here; 'shoal doctor' says why");
    }
    let client = build(&machine, &mesh[0], "reads").start();
    // What it reads is built first; the one that waits is told by its output.
    let victim = wait_for("the builder that waits", PATIENCE, || {
        let running = |node: usize| mesh[node].shoal("builds --json").ok().text().contains("-reads.drv");
        [1, 2].into_iter().find(|node| running(*node) && !mesh[*node].builders().is_empty())
    });
    mesh[victim].kill();
    let finished = client.finish(PATIENCE).expect_code(0);
    let out = built(&finished);
    assert_eq!(out.len(), 1, "{finished}");
    // What is left of it there is ended, and not taken up again.
    mesh[victim].start_again();
    wait_for("the end of the orphan", PATIENCE, || mesh[victim].builders().is_empty().then_some(()));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(mesh[victim].data_dir().to_str().unwrap()), "{mounts}");
}

/// Uploads of the node that has the image are capped, so that all of it would take longer than the test allows.
#[test]
fn a_build_begins_before_its_inputs_have_come_and_ends_when_what_it_refers_to_has() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[&machine], &["--no-build", "--copies", "1", "--mesh-upload-rate", "1MiB"]);
    mesh.add(&[&machine], &["--copies", "1", LAZY[0], LAZY[1]]);
    mesh.wait_until_whole();
    if cannot_show(&mesh[1]) {
        return skip("no views here; 'shoal doctor' says why");
    }
    let image = machine.path("image");
    fs::write(&image, Random::of(7).noise(18 << 20)).unwrap();
    let file = place::repository().join("tests/nix/peeks.nix").display().to_string();
    let (busybox, image) = (machine.nix.busybox().display().to_string(), image.display().to_string());
    let args = [file.as_str(), "--arg", "busybox", &busybox, "--arg", "image", &image].map(String::from);
    let build = |attribute: &str| machine.build(&mesh[0], Remote::SshNg, &args, &[attribute]).patience(PATIENCE).ok();
    let has_image = || mesh[1].valid().iter().any(|path| path.ends_with("-image"));
    let peeked = build("peeks");
    println!("a build that reads 3 bytes of 18 MiB: {:?}", peeked.took);
    assert!(!has_image(), "18 s of upload cannot be over");
    let kept = build("keeps");
    println!("one that refers to them: {:?}", kept.took);
    assert!(has_image());
    assert_eq!(built(&kept).len(), 1);
}

/// The same of a build that the node which its client talks to runs itself.
#[test]
fn what_a_coordinator_builds_itself_begins_before_its_inputs_have_come_too() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[&machine], &["--feature", "alpha", "--copies", "1", "--mesh-upload-rate", "1MiB"]);
    mesh.add(&[&machine], &["--feature", "beta", "--copies", "1", LAZY[0], LAZY[1]]);
    mesh.wait_until_whole();
    if cannot_show(&mesh[1]) {
        return skip("no views here; 'shoal doctor' says why");
    }
    let finished = build(&machine, &mesh[1], "betaPeeks").ok();
    assert!(mesh[1].valid().contains(&built(&finished)[0]), "{finished}");
    let has_input = mesh[1].valid().iter().any(|path| path.ends_with("-alpha-large"));
    assert!(!has_input, "24 s of upload cannot be over: {finished}");
}

/// The node that has a build's input is killed while the build, which has begun without it, waits to read that.
fn loses_what_has_not_come(entry: usize) {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[&machine], &["--no-build", "--copies", "1"]);
    mesh.add(&[&machine], &["--feature", "beta", "--copies", "1", LAZY[0], LAZY[1]]);
    for _ in 0..2 {
        mesh.add(&[&machine], &["--feature", "alpha", "--copies", "1", "--mesh-upload-rate", "1MiB"]);
    }
    mesh.wait_until_whole();
    if cannot_show(&mesh[1]) {
        return skip("no views here; 'shoal doctor' says why");
    }
    let client = build(&machine, &mesh[entry], "betaReads").start();
    wait_for("a builder that waits", PATIENCE, || (!mesh[1].builders().is_empty()).then_some(()));
    let has_input = |node: &Node| node.valid().iter().any(|path| path.ends_with("-alpha-large"));
    assert!(!has_input(&mesh[1]), "24 s of upload cannot be over");
    let victim = [2, 3].into_iter().find(|node| has_input(&mesh[*node])).expect("who has built the input");
    mesh[victim].kill();
    let finished = client.finish(PATIENCE).expect_code(0);
    println!("an input that had not come lost with n{victim}: {:?}", finished.took);
    assert!(finished.stderr.contains("were lost with the node that had them; they are built again"), "{finished}");
    assert!(has_input(&mesh[5 - victim]) && mesh[1].valid().contains(&built(&finished)[0]), "{finished}");
}

#[test]
fn what_an_executor_reads_and_nobody_has_any_more_is_built_again() {
    loses_what_has_not_come(0);
}

#[test]
fn what_a_coordinators_own_build_reads_and_nobody_has_any_more_is_built_again() {
    loses_what_has_not_come(1);
}

/// What the view of a build waited for, of all that was read in it.
fn waited(node: &Node) -> (u64, u64) {
    let inputs = &node.shoal("status --json").ok().json()["inputs"];
    (inputs["waited_reads"].as_u64().unwrap(), inputs["reads"].as_u64().unwrap())
}

/// Its memory is gone in between, and all that the kernel had; another build of that name reads other bytes of one file.
#[test]
fn what_a_build_read_is_there_before_the_next_of_its_name_reads_it() {
    let machine = Machine::new(&Nix::newest());
    let mut mesh = Mesh { nodes: Vec::new() };
    mesh.add(&[&machine], &["--no-build", "--copies", "1"]);
    mesh.add(&[&machine], &["--copies", "1", LAZY[0], LAZY[1]]);
    mesh.wait_until_whole();
    if cannot_show(&mesh[1]) {
        return skip("no views here; 'shoal doctor' says why");
    }
    let (grain, mut random) = (machine.path("grain"), Random::of(11));
    for n in 0..320 {
        let part = grain.join(format!("part{}", n / 40));
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join(n.to_string()), random.noise(80_000)).unwrap();
    }
    let file = place::repository().join("tests/nix/sifts.nix").display().to_string();
    let (busybox, grain_arg) = (machine.nix.busybox().display().to_string(), grain.display().to_string());
    let build = |mesh: &Mesh, salt: &str| {
        let args = [&*file, "--arg", "busybox", &busybox, "--arg", "grain", &grain_arg, "--argstr", "salt", salt];
        let build = machine.remote("nix-build", &mesh[0], Remote::SshNg).arg("--no-out-link").args(args);
        build.patience(PATIENCE).ok();
        let (waited, reads) = waited(&mesh[1]);
        println!("{salt}: {waited} of {reads} reads waited");
        waited
    };
    let first = build(&mesh, "first");
    assert!(first >= 40, "each of 40 files is waited for: {first}");
    mesh[1].stop();
    fs::write(grain.join("part0/0"), random.noise(80_000)).unwrap();
    mesh[1].start_again();
    mesh.wait_until_whole();
    let second = build(&mesh, "second");
    assert!(second * 10 <= first, "{first} blocking misses, and then {second}");
}
