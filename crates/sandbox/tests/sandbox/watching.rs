//! Attaching: late, twice, after the end, after the death of those who started it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shoal_sandbox::{End, Event, attach, spawn};

use crate::harness::Test;
use crate::world::{BUSYBOX, World, finish, run};

pub const TESTS: &[Test] = &[
    ("attach_gets_all_from_an_offset", attach_gets_all_from_an_offset),
    ("attach_after_the_end", attach_after_the_end),
    ("attach_to_nothing_is_not_found", attach_to_nothing_is_not_found),
    ("a_build_outlives_who_started_it", a_build_outlives_who_started_it),
    ("an_adopted_build_can_be_killed", an_adopted_build_can_be_killed),
    ("a_slow_watcher_holds_nobody_up", a_slow_watcher_holds_nobody_up),
    ("a_dead_supervisor_takes_the_build_along", a_dead_supervisor_takes_the_build_along),
    ("many_builds_at_once", many_builds_at_once),
    ("killed_at_any_moment_it_ends", killed_at_any_moment_it_ends),
];

fn attach_gets_all_from_an_offset(world: &World) {
    let spec = world.script("echo one; echo two; until test -e go; do sleep 0.02; done; echo three");
    let mut first = spawn(&spec).unwrap();
    let mut log = Vec::new();
    while log != b"one\ntwo\n" {
        let Some(Event::Output(bytes)) = first.next(None).unwrap() else { panic!("ended early") };
        log.extend(bytes);
    }
    drop(first);
    let from_start = attach(&spec.scratch, 0).unwrap();
    let from_two = attach(&spec.scratch, 4).unwrap();
    std::fs::write(spec.scratch.join("build/go"), "").unwrap();
    let (from_start, from_two) = (finish(from_start), finish(from_two));
    assert_eq!(from_start.outcome.end, End::Exited(0));
    assert_eq!(from_start.log, "one\ntwo\nthree\n");
    assert_eq!(from_two.log, "two\nthree\n");
    assert_eq!(from_two.outcome, from_start.outcome);
}

fn attach_after_the_end(world: &World) {
    let spec = world.script("echo some output; exit 5");
    let ran = run(&spec);
    for offset in [0, 5, 12, 100] {
        let again = finish(attach(&spec.scratch, offset).unwrap());
        assert_eq!(again.outcome, ran.outcome);
        assert_eq!(again.log, ran.log.get(offset as usize..).unwrap_or_default());
    }
    let mut running = attach(&spec.scratch, 12).unwrap();
    running.kill().unwrap();
    assert!(matches!(running.next(None), Ok(Some(Event::Exited(_)))));
    assert!(running.next(None).is_err());
}

fn attach_to_nothing_is_not_found(world: &World) {
    let error = attach(&world.scratch(), 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

/// Argument that makes this executable start a build and say so: then the scratch directory and the script.
pub const START_AND_DIE: &str = "start-and-die";

/// Starts a build and waits to be killed.
pub fn start_and_die(args: impl Iterator<Item = String>) -> ! {
    let [scratch, tree, script] = args.collect::<Vec<_>>().try_into().unwrap();
    let mut spec = shoal_sandbox::Spec::new(
        scratch,
        shoal_sandbox::Program::Exec {
            path: format!("/nix/store/{BUSYBOX}/bin/sh").into(),
            argv: ["sh", "-c", &script].map(|arg| arg.as_bytes().to_vec()).to_vec(),
        },
    );
    spec.env = vec![(b"PATH".to_vec(), format!("/nix/store/{BUSYBOX}/bin").into())];
    spec.inputs = vec![shoal_sandbox::Input { name: BUSYBOX.to_owned(), tree: tree.into() }];
    let mut running = spawn(&spec).unwrap();
    let Some(Event::Output(_)) = running.next(None).unwrap() else { panic!("ended early") };
    println!("started");
    std::thread::sleep(crate::world::PATIENCE);
    panic!("nobody killed me");
}

/// A build whose starter was killed with signal 9 after the first output.
fn orphan(world: &World, script: &str) -> std::path::PathBuf {
    let scratch = world.scratch();
    let mut starter = Command::new("/proc/self/exe")
        .arg(START_AND_DIE)
        .args([scratch.as_path(), &world.trees().join(BUSYBOX), Path::new(script)])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = starter.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "started\n");
    // The whole group, as a terminal's hang-up or a service manager would.
    let group = rustix::process::Pid::from_child(&starter);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    starter.wait().unwrap();
    scratch
}

fn a_build_outlives_who_started_it(world: &World) {
    let scratch = orphan(world, "echo begun; until test -e go; do sleep 0.02; done; echo > /nix/store/out; exit 3");
    let adopted = attach(&scratch, 6).unwrap();
    std::fs::write(scratch.join("build/go"), "").unwrap();
    let ran = finish(adopted);
    assert_eq!((ran.outcome.end, ran.log.as_str()), (End::Exited(3), ""));
    assert!(shoal_sandbox::Scratch::new(&scratch).output("out").exists());

    let scratch = orphan(world, "echo begun; sleep 0.2; echo alone; exit 4");
    let deadline = Instant::now() + crate::world::PATIENCE;
    while !scratch.join("exit").exists() {
        assert!(Instant::now() < deadline, "a build that nobody watches ends, too");
        std::thread::sleep(Duration::from_millis(10));
    }
    let ran = finish(attach(&scratch, 0).unwrap());
    assert_eq!((ran.outcome.end, ran.log.as_str()), (End::Exited(4), "begun\nalone\n"));
}

fn an_adopted_build_can_be_killed(world: &World) {
    let scratch = orphan(world, "echo begun; sleep 1000");
    let adopted = attach(&scratch, 0).unwrap();
    adopted.kill().unwrap();
    let ran = finish(adopted);
    assert_eq!((ran.outcome.end, ran.log.as_str()), (End::Killed, "begun\n"));
}

fn a_slow_watcher_holds_nobody_up(world: &World) {
    let spec = world.script("echo begun; until test -e go; do sleep 0.02; done; seq 200000; echo end");
    let mut first = spawn(&spec).unwrap();
    assert_eq!(first.next(None).unwrap(), Some(Event::Output(b"begun\n".to_vec())));
    drop(first);
    let mut slow = attach(&spec.scratch, 0).unwrap();
    let quick = attach(&spec.scratch, 0).unwrap();
    std::fs::write(spec.scratch.join("build/go"), "").unwrap();
    let Some(Event::Output(first)) = slow.next(None).unwrap() else { panic!("ended early") };
    let quick = finish(quick);
    assert_eq!(quick.outcome.end, End::Exited(0));
    assert!(quick.log.ends_with("200000\nend\n"));
    let rest = finish(slow);
    assert_eq!(first.len() + rest.log.len(), quick.log.len());
}

fn a_dead_supervisor_takes_the_build_along(world: &World) {
    let marker = format!("87{:07}", std::process::id());
    let mut running = spawn(&world.script(&format!("echo ready; exec sleep {marker}"))).unwrap();
    running.next(None).unwrap();
    let find = || {
        std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(|path| {
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).starts_with(&format!("sleep\0{marker}"))
        })
    };
    let deadline = Instant::now() + crate::world::PATIENCE;
    let builder = loop {
        match find() {
            Some(path) => break path,
            None => assert!(Instant::now() < deadline, "the builder runs"),
        }
    };
    let status = std::fs::read_to_string(builder.join("status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
    let supervisor = rustix::process::Pid::from_raw(parent.parse().unwrap()).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    assert_eq!(finish(running).outcome.end, End::Lost);
    while find().is_some() {
        assert!(Instant::now() < deadline, "the builder dies with its supervisor");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn many_builds_at_once(world: &World) {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..5 {
                    let ran = run(&world.script(&format!("echo {thread} {round}; id -u; exit {round}")));
                    assert_eq!(ran.log, format!("{thread} {round}\n1000\n"));
                    assert_eq!(ran.outcome.end, End::Exited(round));
                }
            });
        }
    });
}

fn killed_at_any_moment_it_ends(world: &World) {
    // From before the supervisor has read the spec to after the builder runs, on machines of any speed.
    let delays = (0..60).map(|step| Duration::from_micros(step * step * 8));
    for delay in delays {
        let spec = world.script("sleep 1000");
        let running = spawn(&spec).unwrap();
        std::thread::sleep(delay);
        running.kill().unwrap();
        assert_eq!(finish(running).outcome.end, End::Killed, "after {delay:?}");
        assert_eq!(finish(attach(&spec.scratch, 0).unwrap()).outcome.end, End::Killed);
        shoal_sandbox::remove_tree(&spec.scratch).unwrap();
    }
}
