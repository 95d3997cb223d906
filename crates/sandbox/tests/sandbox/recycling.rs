//! One scratch directory for one build after another.

use std::fs;
use std::os::unix::fs::MetadataExt;

use shoal_sandbox::{End, Scratch, Spec, recycle};

use crate::harness::Test;
use crate::world::{World, run};

pub const TESTS: &[Test] = &[
    ("what_can_be_used_again_is", what_can_be_used_again_is),
    ("a_build_sees_nothing_of_the_one_before", a_build_sees_nothing_of_the_one_before),
    ("inputs_of_all_kinds_and_numbers_follow_each_other", inputs_of_all_kinds_and_numbers_follow_each_other),
    ("half_recycled_is_no_build", half_recycled_is_no_build),
];

/// A second build in the directory of the first.
fn again(world: &World, first: &Spec, script: &str) -> Spec {
    recycle(&Scratch::new(&first.scratch)).unwrap();
    let mut spec = world.script(script);
    spec.scratch.clone_from(&first.scratch);
    spec
}

fn what_can_be_used_again_is(world: &World) {
    let mut first = world.script("echo some output; echo > $out");
    first.env.push((b"out".to_vec(), b"/nix/store/out".to_vec()));
    assert_eq!(run(&first).log, "some output\n");
    let dir = |name: &str| fs::symlink_metadata(first.scratch.join(name)).unwrap().ino();
    let names = ["build", "tmp", "upper/store", "log", "exit"];
    let before = names.map(dir);
    let input = fs::symlink_metadata(first.scratch.join("upper/store").join(crate::world::BUSYBOX)).unwrap().ino();
    let second = again(world, &first, "exit 3");
    assert_eq!(fs::read_dir(second.scratch.join("upper/store")).unwrap().count(), 0);
    let ran = run(&second);
    assert_eq!((ran.outcome.end, ran.log.as_str()), (End::Exited(3), ""));
    assert_eq!(names.map(dir), before);
    let place = second.scratch.join("upper/store").join(crate::world::BUSYBOX);
    assert_eq!(fs::symlink_metadata(place).unwrap().ino(), input);
}

/// What a builder can see of the directories that it is given.
const LOOK: &str = "for dir in /build /tmp /nix/store; do stat -c '%n %a %u %g' $dir; ls -A $dir; done";

fn a_build_sees_nothing_of_the_one_before(world: &World) {
    let mut fresh = world.script(LOOK);
    let expected = run(&fresh).log;
    let spoilers = [
        "echo secret > /build/file; echo secret > /tmp/file; echo secret > /nix/store/out",
        "mkdir -p /build/a/b/c /tmp/d/e /nix/store/out/f; chmod 0 /build/a /tmp/d /nix/store/out",
        "touch -d @1000 /tmp; touch -d @1000 /build; chmod 0 /build",
        "chmod 7777 /build; ln -s /etc/passwd /tmp/link; ln -s / /nix/store/out; mkfifo /tmp/pipe",
        "i=0; while test $i -lt 400; do : > /build/a-rather-long-name-for-a-file-$i; i=$((i+1)); done; rm /build/*",
        "mkdir /nix/store/empty; : > /nix/store/nothing",
    ];
    for spoiler in spoilers {
        let spoiled = again(world, &fresh, spoiler);
        assert_eq!(run(&spoiled).outcome.end, End::Exited(0), "{spoiler}");
        fresh = again(world, &spoiled, LOOK);
        assert_eq!(run(&fresh).log, expected, "after: {spoiler}");
        let build = fs::metadata(fresh.scratch.join("build")).unwrap();
        assert!(build.len() <= 4096, "a large directory stays after: {spoiler}");
    }
    attributes_do_not_stay(world, &fresh);
}

fn attributes_do_not_stay(world: &World, before: &Spec) {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let build = before.scratch.join("build");
    if setxattr(&build, "user.mark", b"x", XattrFlags::CREATE).is_err() {
        return eprintln!("this file system has no attributes");
    }
    let after = again(world, before, "true");
    run(&after);
    assert!(getxattr(&build, "user.mark", &mut [0; 8]).is_err());
}

fn inputs_of_all_kinds_and_numbers_follow_each_other(world: &World) {
    let file = world.trees().join("a-file");
    fs::write(&file, "content of the file\n").unwrap();
    std::os::unix::fs::symlink("/nowhere", world.trees().join("a-link")).unwrap();
    let input = |name: &str| shoal_sandbox::Input { name: name.to_owned(), tree: world.trees().join(name) };
    let many: Vec<_> = (0..20).map(|number| world.directory(&format!("many-{number:02}"), "one of many\n")).collect();
    let few: Vec<_> = many.iter().take(5).cloned().collect();
    let sets = [vec![], vec![input("a-file"), input("a-link")], few.clone(), many, few, vec![input("a-link")], vec![]];
    let mut spec = world.script("true");
    run(&spec);
    for set in sets {
        spec = again(
            world,
            &spec,
            "cd /nix/store; ls; for file in a-file many-*/file; do test -e $file && cat $file; done",
        );
        spec.inputs.extend(set.clone());
        let mut expected: Vec<&str> = spec.inputs.iter().map(|input| input.name.as_str()).collect();
        expected.sort_unstable();
        expected.extend(set.iter().filter_map(|input| match input.name.as_str() {
            "a-file" => Some("content of the file"),
            "a-link" => None,
            _ => Some("one of many"),
        }));
        assert_eq!(run(&spec).log.lines().collect::<Vec<_>>(), expected);
    }
}

fn half_recycled_is_no_build(world: &World) {
    let spec = world.script("echo of the first; exit 7");
    let scratch = Scratch::new(&spec.scratch);
    scratch.leave_note(b"who I am").unwrap();
    run(&spec);
    assert_eq!(scratch.note().unwrap().as_deref(), Some(&b"who I am"[..]));
    recycle(&scratch).unwrap();
    assert_eq!(scratch.note().unwrap(), None);
    assert_eq!(fs::read(scratch.log()).unwrap(), b"");
    let error = shoal_sandbox::attach(&spec.scratch, 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}
