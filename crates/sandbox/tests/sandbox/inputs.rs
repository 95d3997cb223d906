//! The store directory: which inputs show, and that nothing happens to them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use expect_test::expect;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use shoal_sandbox::{End, Input, Scratch, canonicalise};

use crate::harness::Test;
use crate::world::{BUSYBOX, Who, World, run};

pub const TESTS: &[Test] = &[
    ("few_inputs_of_every_kind", few_inputs_of_every_kind),
    ("many_inputs_of_every_kind", many_inputs_of_every_kind),
    ("many_inputs_mounted_singly", many_inputs_mounted_singly),
    ("a_view_that_is_given_shows_in_place_of_inputs", a_view_that_is_given_shows_in_place_of_inputs),
    ("a_thousand_inputs", a_thousand_inputs),
    ("inputs_from_several_directories", inputs_from_several_directories),
    ("outputs_beside_many_inputs_are_the_builders_alone", outputs_beside_many_inputs_are_the_builders_alone),
    ("a_missing_input_fails_the_set_up", a_missing_input_fails_the_set_up),
    ("inputs_cannot_be_changed", inputs_cannot_be_changed),
    ("data_directory_with_a_long_path", data_directory_with_a_long_path),
    ("every_kind_of_view_shows_the_same", every_kind_of_view_shows_the_same),
];

/// More than are mounted one by one.
const MANY: usize = 40;

const FILE: &str = "11111111111111111111111111111111-file";
const SCRIPT: &str = "22222222222222222222222222222222-script";
const EMPTY: &str = "33333333333333333333333333333333-empty";
const LINK: &str = "44444444444444444444444444444444-link";
const DIRECTORY: &str = "55555555555555555555555555555555-directory";

fn file(world: &World, name: &str, content: &str, mode: u32) -> Input {
    let tree = world.trees().join(name);
    fs::write(&tree, content).unwrap();
    fs::set_permissions(&tree, fs::Permissions::from_mode(mode)).unwrap();
    Input { name: name.to_owned(), tree }
}

fn one_of_every_kind(world: &World) -> Vec<Input> {
    let link = Input { name: LINK.to_owned(), tree: world.trees().join(LINK) };
    symlink(format!("/nix/store/{FILE}"), &link.tree).unwrap();
    vec![
        world.busybox(),
        link,
        file(world, SCRIPT, "#!/nix/store/00000000000000000000000000000000-busybox/bin/sh\necho ran\n", 0o555),
        file(world, FILE, "content\n", 0o444),
        file(world, EMPTY, "", 0o444),
        world.directory(DIRECTORY, "inside\n"),
    ]
}

fn fillers(world: &World, count: usize) -> Vec<Input> {
    (0..count).map(|i| world.directory(&format!("9{i:031}-filler"), &format!("{i}\n"))).collect()
}

fn check_kinds(world: &World, mut inputs: Vec<Input>, binds: bool) {
    let not_chosen = "66666666666666666666666666666666-other";
    world.directory(not_chosen, "");
    // The same input twice is one input.
    inputs.push(inputs[0].clone());
    let mut spec = world.script(&format!(
        "cd /nix/store; ls | grep -v filler; cat {FILE} {EMPTY} {LINK} {DIRECTORY}/file; ./{SCRIPT}; \
         stat -c '%A %s %n' {FILE} {SCRIPT} {EMPTY} {LINK}; stat -c '%A %Y' {DIRECTORY}; readlink {LINK}; \
         cat {not_chosen}/file 2>&1; mkdir out && echo result > out/file && cat out/file; ls | wc -l",
    ));
    let count = inputs.len();
    spec.inputs = inputs;
    spec.binds_inputs = binds;
    let ran = run(&spec);
    let expected = expect![[r#"
        00000000000000000000000000000000-busybox
        11111111111111111111111111111111-file
        22222222222222222222222222222222-script
        33333333333333333333333333333333-empty
        44444444444444444444444444444444-link
        55555555555555555555555555555555-directory
        content
        content
        inside
        ran
        -r--r--r-- 8 11111111111111111111111111111111-file
        -r-xr-xr-x 70 22222222222222222222222222222222-script
        -r--r--r-- 0 33333333333333333333333333333333-empty
        lrwxrwxrwx 48 44444444444444444444444444444444-link
        dr-xr-xr-x 1
        /nix/store/11111111111111111111111111111111-file
        cat: can't open '66666666666666666666666666666666-other/file': No such file or directory
        result
    "#]];
    let (log, entries) = ran.log.trim_end().rsplit_once('\n').unwrap();
    expected.assert_eq(&format!("{log}\n"));
    assert_eq!(entries, count.to_string(), "all inputs, the double one once, and `out`");
    assert_eq!(ran.outcome.end, End::Exited(0));
}

fn few_inputs_of_every_kind(world: &World) {
    check_kinds(world, one_of_every_kind(world), false);
}

fn many_inputs_of_every_kind(world: &World) {
    let mut inputs = fillers(world, MANY);
    inputs.extend(one_of_every_kind(world));
    check_kinds(world, inputs, false);
}

fn many_inputs_mounted_singly(world: &World) {
    let mut inputs = fillers(world, MANY);
    inputs.extend(one_of_every_kind(world));
    check_kinds(world, inputs, true);
}

fn a_view_that_is_given_shows_in_place_of_inputs(world: &World) {
    if world.who == Who::User {
        return println!("skipped: a mount to give takes root's rights");
    }
    let view = world.dir.join("view");
    fs::create_dir(&view).unwrap();
    world.directory(DIRECTORY, "inside\n");
    fs::rename(world.trees(), view.join("store")).unwrap();
    let mut spec = world.script(&format!(
        "cd /nix/store; ls; cat {DIRECTORY}/file; echo x > {DIRECTORY}/more; mkdir out; mv out kept; echo y > kept/file; ls",
    ));
    spec.inputs = Vec::new();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    spec.view = Some(Arc::new(open_tree(CWD, &view, flags).unwrap()));
    let ran = run(&spec);
    expect![[r#"
        00000000000000000000000000000000-busybox
        55555555555555555555555555555555-directory
        inside
        sh: can't create 55555555555555555555555555555555-directory/more: Permission denied
        00000000000000000000000000000000-busybox
        55555555555555555555555555555555-directory
        kept
    "#]]
    .assert_eq(&ran.log);
    assert_eq!(fs::read_to_string(Scratch::new(&spec.scratch).output("kept").join("file")).unwrap(), "y\n");
    assert!(!view.join("store/kept").exists());
}

fn a_thousand_inputs(world: &World) {
    let mut inputs = fillers(world, 999);
    inputs.push(world.busybox());
    let mut spec = world.script("ls /nix/store | wc -l; cat /nix/store/*-filler/file | sort -n | wc -l");
    spec.inputs = inputs;
    let ran = run(&spec);
    assert_eq!(ran.log, "1000\n999\n");
    println!("1,000 inputs as {}: set up in {} us", world.who.name(), ran.outcome.setup_us);
}

/// The overlay that shows many inputs leaves nothing of its own in an output, and no way to an input's tree.
fn outputs_beside_many_inputs_are_the_builders_alone(world: &World) {
    let mut inputs = fillers(world, MANY);
    inputs.push(world.busybox());
    let filler = inputs[0].clone();
    let (dir, out) = (format!("/nix/store/{}", filler.name), "/nix/store/out");
    let mut spec = world.script(&format!(
        "mkdir -p {out}/deep; cat {dir}/file > {out}/deep/copy; echo draft > {out}/file; \
         mv {out}/file {out}/deep/moved; rm -rf {dir}; echo x > {dir}/file; \
         cat {dir}/file",
    ));
    spec.inputs = inputs;
    let ran = run(&spec);
    assert_eq!(ran.outcome.end, End::Exited(0), "{}", ran.log);
    assert!(ran.log.ends_with("\n0\n"), "the input stays as it is: {}", ran.log);
    assert_eq!(fs::read_to_string(filler.tree.join("file")).unwrap(), "0\n");
    let made = Scratch::new(&spec.scratch).output("out");
    canonicalise(&made, ran.outcome.uid).unwrap();
    assert_eq!(fs::read_to_string(made.join("deep/copy")).unwrap(), "0\n");
    assert_eq!(fs::read_to_string(made.join("deep/moved")).unwrap(), "draft\n");
    for part in [made.clone(), made.join("deep"), made.join("deep/copy")] {
        let mut names = vec![0u8; 1000];
        let length = rustix::fs::llistxattr(&part, names.as_mut_slice()).unwrap();
        assert_eq!(length, 0, "{}: {}", part.display(), String::from_utf8_lossy(&names[..length]));
    }
}

fn inputs_from_several_directories(world: &World) {
    let elsewhere = world.dir.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let mut inputs = fillers(world, MANY);
    let mut moved = one_of_every_kind(world);
    moved.retain(|input| input.name != BUSYBOX);
    for input in &mut moved {
        let tree = elsewhere.join(format!("renamed-{}", input.name));
        if input.name == DIRECTORY {
            fs::set_permissions(&input.tree, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::rename(&input.tree, &tree).unwrap();
        if input.name == DIRECTORY {
            fs::set_permissions(&tree, fs::Permissions::from_mode(0o555)).unwrap();
        }
        input.tree = tree;
    }
    inputs.push(world.busybox());
    inputs.extend(moved);
    inputs.rotate_left(MANY);
    check_kinds(world, inputs, false);
}

fn a_missing_input_fails_the_set_up(world: &World) {
    let mut spec = world.script("true");
    let tree = world.trees().join("missing");
    spec.inputs.push(Input { name: "missing".to_owned(), tree: tree.clone() });
    let text = format!("looking at input '{}': No such file or directory", tree.display());
    assert_eq!(run(&spec).outcome.end, End::SetupFailed(text));
}

fn inputs_cannot_be_changed(world: &World) {
    for count in [0, MANY] {
        let mut spec = world.script(&format!(
            "cd /nix/store; echo x > {DIRECTORY}/file; echo x > {DIRECTORY}/new; echo x > {FILE}; \
             rm -f {DIRECTORY}/file; chmod 777 {DIRECTORY} {DIRECTORY}/file {FILE}; touch {DIRECTORY} {FILE}; \
             mv {FILE} gone; mv {DIRECTORY} away; rm {LINK}; ln {FILE} hard; ln {DIRECTORY}/file hard2; \
             ln -sf x {LINK}; cat {FILE} {DIRECTORY}/file",
        ));
        spec.inputs = fillers(world, count);
        if count == 0 {
            spec.inputs.extend(one_of_every_kind(world));
        } else {
            let names = [BUSYBOX, FILE, SCRIPT, EMPTY, LINK, DIRECTORY];
            let input = |name: &&str| Input { name: name.to_string(), tree: world.trees().join(name) };
            spec.inputs.extend(names.iter().map(input));
        }
        let snapshot = || -> Vec<_> { describe(&world.trees()) };
        let before = snapshot();
        let ran = run(&spec);
        assert!(ran.log.ends_with("content\ninside\n"), "{}", ran.log);
        assert!(!ran.log.contains("spoilt"));
        assert_eq!(snapshot(), before);
        if world.who == Who::Root {
            let refused = ran
                .log
                .lines()
                .filter(|line| {
                    line.contains("ermission denied")
                        || line.contains("not permitted")
                        || line.contains("ead-only")
                        || line.contains("busy")
                        || line.contains("ross-device")
                })
                .count();
            assert!(refused >= 10, "{}", ran.log);
        }
    }
}

/// Name, mode, size, time, owner and links of everything below.
fn describe(dir: &Path) -> Vec<(String, u32, u64, i64, u32, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let name = path.to_string_lossy().into_owned();
        all.push((name, meta.mode(), meta.size(), meta.mtime(), meta.uid(), meta.nlink()));
        if meta.is_dir() {
            all.extend(describe(&path));
        }
    }
    all.sort();
    all
}

fn data_directory_with_a_long_path(world: &World) {
    let deep =
        ["d".repeat(100), "e".repeat(100), "f".repeat(100)].iter().fold(world.dir.clone(), |dir, name| dir.join(name));
    fs::create_dir_all(&deep).unwrap();
    let mut spec = world.script("ls /nix/store | wc -l; echo here");
    spec.inputs.extend(fillers(world, MANY));
    spec.scratch = deep;
    let ran = run(&spec);
    assert_eq!(ran.log, format!("{}\nhere\n", MANY + 1));
    let again = crate::world::finish(shoal_sandbox::attach(&spec.scratch, 3).unwrap());
    assert_eq!(again.log, "here\n");
}

fn every_kind_of_view_shows_the_same(world: &World) {
    if world.who == Who::User {
        println!("skipped: views: only root has them");
        return;
    }
    let dir = world.scratch();
    let output = std::process::Command::new("/proc/self/exe")
        .args([shoal_sandbox::SUPERVISOR_ARG, "probe"])
        .arg(&dir)
        .output()
        .unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    if !found.contains("erofs") {
        println!("skipped: EROFS views: this kernel can't mount a file");
    }
    assert!(["erofs tmpfs\n", "tmpfs\n"].contains(&found.as_str()), "{found}");
}
