//! What becomes of the trees that builders leave.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use shoal_sandbox::{End, OutputError, Scratch, State, canonicalise, capabilities, release, remove_tree};

use crate::harness::Test;
use crate::world::{Ran, Who, World, run};

pub const TESTS: &[Test] = &[
    ("outputs_become_canonical", outputs_become_canonical),
    ("top_level_outputs_of_every_kind", top_level_outputs_of_every_kind),
    ("suspicious_outputs_are_rejected", suspicious_outputs_are_rejected),
    ("foreign_files_are_rejected", foreign_files_are_rejected),
    ("build_directory_can_be_kept", build_directory_can_be_kept),
    ("trees_of_any_shape_are_removed", trees_of_any_shape_are_removed),
    ("each_build_has_an_id_of_its_own", each_build_has_an_id_of_its_own),
    ("doctor_finds_all_well", doctor_finds_all_well),
];

/// Runs a script that makes `/nix/store/out`.
fn build(world: &World, script: &str) -> (Ran, Scratch) {
    let spec = world.script(&format!("out=/nix/store/out; {script}"));
    let ran = run(&spec);
    assert_eq!(ran.outcome.end, End::Exited(0), "{}", ran.log);
    (ran, Scratch::new(spec.scratch))
}

fn rejected(world: &World, script: &str) -> String {
    let (ran, scratch) = build(world, script);
    let error = canonicalise(&scratch.output("out"), ran.outcome.uid).unwrap_err();
    error.to_string().replace(&scratch.output("").display().to_string(), "/nix/store/")
}

fn outputs_become_canonical(world: &World) {
    let (ran, scratch) = build(
        world,
        "umask 0; mkdir -p $out/dir/deep; echo a > $out/plain; echo b > $out/run; chmod 751 $out/run; \
         echo c > $out/secret; chmod 000 $out/secret; echo d > $out/odd; chmod 1646 $out/odd; \
         ln -s /nowhere $out/link; ln $out/plain $out/dir/twin; chmod 2>/dev/null 0 $out/dir/deep; \
         chmod 755 $out",
    );
    let out = scratch.output("out");
    canonicalise(&out, ran.outcome.uid).unwrap();
    let euid = rustix::process::geteuid().as_raw();
    for (name, mode) in [
        ("", 0o40555),
        ("dir", 0o40555),
        ("dir/deep", 0o40555),
        ("dir/twin", 0o100444),
        ("plain", 0o100444),
        ("run", 0o100555),
        ("secret", 0o100444),
        ("odd", 0o100444),
        ("link", 0o120777),
    ] {
        let meta = out.join(name).symlink_metadata().unwrap();
        assert_eq!((meta.mode(), meta.mtime(), meta.uid()), (mode, 1, euid), "{name}");
    }
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("/nowhere"));
    let mut names = vec![0u8; 1000];
    let length = rustix::fs::llistxattr(&out, names.as_mut_slice()).unwrap();
    assert_eq!(length, 0, "{}", String::from_utf8_lossy(&names[..length]));
    canonicalise(&out, euid).expect("what is canonical stays so");
}

fn top_level_outputs_of_every_kind(world: &World) {
    for script in ["echo x > $out", "ln -s target $out", "mkdir $out"] {
        let (ran, scratch) = build(world, script);
        canonicalise(&scratch.output("out"), ran.outcome.uid).unwrap();
        let meta = scratch.output("out").symlink_metadata().unwrap();
        assert_eq!(meta.mtime(), 1);
    }
    let (ran, scratch) = build(world, "true");
    let missing = canonicalise(&scratch.output("out"), ran.outcome.uid);
    assert!(matches!(missing, Err(OutputError::Missing(_))), "{missing:?}");
}

fn suspicious_outputs_are_rejected(world: &World) {
    for script in ["mkdir -m 775 $out", "echo > $out; chmod 646 $out", "mkdir -m 1777 $out"] {
        assert_eq!(rejected(world, script), "suspicious ownership or permission on '/nix/store/out'");
    }
    for (script, name) in [
        ("mkdir -p $out/a/b; mkfifo $out/a/b/pipe", "out/a/b/pipe"),
        ("mkfifo $out; chmod 600 $out", "out"),
        ("mkdir $out; nc -lU $out/socket & until test -e $out/socket; do sleep 0.01; done", "out/socket"),
    ] {
        if script.contains("nc -lU") && world.output("nc -lU x 2>&1 | head -n 1").contains("invalid") {
            println!("skipped: sockets: this busybox has no nc -U");
            continue;
        }
        assert_eq!(rejected(world, script), format!("file '/nix/store/{name}' has an unsupported type"));
    }
}

fn foreign_files_are_rejected(world: &World) {
    if world.who == Who::User {
        println!("skipped: foreign files: everything here belongs to one user");
        return;
    }
    let (ran, scratch) = build(world, "mkdir -p $out/dir; echo > $out/dir/own");
    let foreign = world.dir.join("foreign");
    fs::write(&foreign, "not yours").unwrap();
    // A builder can't make this link; a kernel's fault could.
    fs::hard_link(&foreign, scratch.output("out").join("dir/stolen")).unwrap();
    let error = canonicalise(&scratch.output("out"), ran.outcome.uid).unwrap_err().to_string();
    assert!(error.starts_with("invalid ownership on file '") && error.ends_with("out/dir/stolen'"));
    let meta = foreign.metadata().unwrap();
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o644, 0));

    let (ran, scratch) = build(world, "mkdir $out");
    let error = canonicalise(&scratch.output("out"), ran.outcome.uid + 1).unwrap_err().to_string();
    assert!(error.starts_with("suspicious ownership or permission on '"), "{error}");
}

fn build_directory_can_be_kept(world: &World) {
    let mut spec = world.script("mkdir -p a/b; echo x > a/b/c; chmod 640 a/b/c; ln -s /etc/shadow a/link; exit 1");
    spec.files = vec![shoal_sandbox::BuildFile { name: "f".into(), bytes: vec![], mode: 0o600 }];
    run(&spec);
    let build = Scratch::new(&spec.scratch).build_dir();
    release(&build).unwrap();
    let euid = rustix::process::geteuid().as_raw();
    for name in ["", "a", "a/b", "a/b/c", "a/link", "f"] {
        assert_eq!(build.join(name).symlink_metadata().unwrap().uid(), euid, "{name}");
    }
    assert_eq!(build.join("a/b/c").metadata().unwrap().mode() & 0o777, 0o640);
}

fn trees_of_any_shape_are_removed(world: &World) {
    const DEPTH: usize = 5000;
    let tree = world.dir.join("tree");
    fs::create_dir(&tree).unwrap();
    let outside = world.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "stays").unwrap();
    symlink(&outside, tree.join("link")).unwrap();
    for (name, mode) in [("none", 0o000), ("read", 0o444), ("search", 0o111), ("store", 0o555)] {
        fs::create_dir_all(tree.join(name).join("inner")).unwrap();
        fs::write(tree.join(name).join("inner/file"), "").unwrap();
        let no_rights = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        no_rights(&tree.join(name).join("inner"));
        no_rights(&tree.join(name));
    }
    let open = |dir: &std::os::fd::OwnedFd, name: &str| {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        mkdirat(dir, name, Mode::RWXU).unwrap();
        openat(dir, name, OFlags::DIRECTORY, Mode::empty()).unwrap()
    };
    let mut dir = std::os::fd::OwnedFd::from(fs::File::open(&tree).unwrap());
    (0..DEPTH).for_each(|_| dir = open(&dir, &"d".repeat(200)));
    drop(dir);
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "stays");
    remove_tree(&tree).expect("what is not there is removed already");
    fs::write(&tree, "a file").unwrap();
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
}

fn each_build_has_an_id_of_its_own(world: &World) {
    let spec = |_| world.script("echo running; until test -e go; do sleep 0.02; done");
    let specs: Vec<_> = (0..3).map(spec).collect();
    let mut running: Vec<_> = specs.iter().map(|spec| shoal_sandbox::spawn(spec).unwrap()).collect();
    running.iter_mut().for_each(|running| drop(running.next(None).unwrap()));
    specs.iter().for_each(|spec| fs::write(spec.scratch.join("build/go"), "").unwrap());
    let mut uids: Vec<u32> = running.into_iter().map(|running| crate::world::finish(running).outcome.uid).collect();
    uids.sort_unstable();
    uids.dedup();
    match world.who {
        Who::Root => assert_eq!((uids.len(), uids.contains(&0)), (3, false)),
        Who::User => assert_eq!(uids, [rustix::process::geteuid().as_raw()]),
    }
}

fn doctor_finds_all_well(world: &World) {
    let found = capabilities(&world.dir);
    let state = |name: &str| found.iter().find(|capability| capability.name == name).unwrap().state;
    assert_eq!(state("sandbox"), State::Good, "{found:#?}");
    assert_eq!(state("seccomp"), State::Good, "{found:#?}");
    for capability in &found {
        println!("{capability:?}");
        assert_eq!(capability.fix.is_empty(), capability.state == State::Good, "{capability:?}");
    }
    let left: Vec<_> = fs::read_dir(&world.dir).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["trees"], "nothing is left behind");
}
