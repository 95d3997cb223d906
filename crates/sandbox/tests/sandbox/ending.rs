//! How builds end, and that nothing of them is left.

use std::time::{Duration, Instant};

use expect_test::expect;
use shoal_sandbox::{Cgroups, End, Event, Program, spawn};

use crate::harness::Test;
use crate::world::{World, finish, run};

pub const TESTS: &[Test] = &[
    ("exit_codes_and_signals", exit_codes_and_signals),
    ("what_cannot_be_executed_says_so", what_cannot_be_executed_says_so),
    ("a_panicking_builtin_fails", a_panicking_builtin_fails),
    ("timeout", timeout),
    ("a_fork_bomb_is_bounded_and_ends", a_fork_bomb_is_bounded_and_ends),
    ("silence", silence),
    ("log_limit", log_limit),
    ("kill", kill),
    ("leftover_processes_are_dead", leftover_processes_are_dead),
    ("closing_the_log_is_death", closing_the_log_is_death),
    ("usage_is_metered", usage_is_metered),
    ("a_long_build_joins_its_control_group", a_long_build_joins_its_control_group),
    ("memory_is_limited", memory_is_limited),
    ("a_build_is_born_in_its_version_2_group", a_build_is_born_in_its_version_2_group),
    ("last_words_are_heard", last_words_are_heard),
    ("a_used_scratch_is_refused", a_used_scratch_is_refused),
];

fn end(world: &World, script: &str) -> End {
    run(&world.script(script)).outcome.end
}

fn exit_codes_and_signals(world: &World) {
    assert_eq!(end(world, "exit 0"), End::Exited(0));
    assert_eq!(end(world, "exit 42"), End::Exited(42));
    // Process 1 ignores what it does not handle from inside, so a child must die for it.
    assert_eq!(end(world, "sh -c 'kill -SEGV $$'; exit $?"), End::Exited(128 + 11));
    let ran = run(&world.script("true"));
    assert_eq!(ran.log, "");
    assert!(ran.outcome.setup_us > 0);
    assert!(ran.outcome.started_at > 1_700_000_000);
    assert!(ran.outcome.stopped_at >= ran.outcome.started_at);
}

fn what_cannot_be_executed_says_so(world: &World) {
    for (path, reason) in [
        ("/no/such/builder", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/build", "Permission denied"),
    ] {
        let mut spec = world.script("");
        spec.program = Program::Exec { path: path.into(), argv: vec![b"builder".to_vec()] };
        let ran = run(&spec);
        assert_eq!(ran.outcome.end, End::Exited(1));
        assert_eq!(ran.log, format!("error: executing '{path}': {reason}\n"));
    }
}

fn a_panicking_builtin_fails(world: &World) {
    let ran = run(&world.builtin("panic"));
    assert_eq!(ran.outcome.end, End::Exited(1));
    assert!(ran.log.contains("a builtin that panics"), "{}", ran.log);
}

fn timeout(world: &World) {
    let mut spec = world.script("while true; do echo still here; sleep 0.05; done");
    let timeout = Duration::from_secs(3);
    spec.limits.timeout = Some(timeout);
    spec.limits.max_silent = Some(Duration::from_secs(30));
    let start = Instant::now();
    let ran = run(&spec);
    assert_eq!(ran.outcome.end, End::TimedOut);
    assert!(ran.log.starts_with("still here\n"));
    assert!(start.elapsed() >= timeout);
}

fn a_fork_bomb_is_bounded_and_ends(world: &World) {
    let ran = run(&world.script("ulimit -Hu"));
    let limit: u64 = ran.log.trim().parse().unwrap();
    let machine: u64 = std::fs::read_to_string("/proc/sys/kernel/threads-max").unwrap().trim().parse().unwrap();
    assert!(limit <= machine / 4, "{limit} of {machine}");
    // Not the real limit: this machine has other things to do.
    let mut spec = world.script("ulimit -u 100; bomb() { bomb | bomb & }; sleep 1000 & bomb; wait");
    spec.limits.timeout = Some(Duration::from_secs(1));
    let ran = run(&spec);
    assert_eq!(ran.outcome.end, End::TimedOut, "{}", ran.log);
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|process| {
        let status = std::fs::read_to_string(process.path().join("status")).ok()?;
        let uids = status.lines().find(|line| line.starts_with("Uid:"))?.split_whitespace().nth(1)?.parse().ok();
        uids.filter(|uid: &u32| *uid == ran.outcome.uid && ran.outcome.uid != rustix::process::geteuid().as_raw())
    });
    assert_eq!(left.count(), 0);
}

fn silence(world: &World) {
    // It speaks for longer than it may be silent.
    let mut spec = world.script("for i in 1 2 3 4; do echo $i; sleep 0.9; done; sleep 100");
    spec.limits.timeout = Some(Duration::from_secs(50));
    spec.limits.max_silent = Some(Duration::from_secs(3));
    let ran = run(&spec);
    assert_eq!((ran.outcome.end, ran.log.as_str()), (End::Silent, "1\n2\n3\n4\n"));
}

fn log_limit(world: &World) {
    let mut spec = world.script("yes; exit 0");
    spec.limits.max_log_bytes = Some(100_001);
    let ran = run(&spec);
    assert_eq!(ran.outcome.end, End::LogLimit);
    assert_eq!((ran.outcome.log_bytes, ran.log.len()), (100_001, 100_001));
    assert_eq!(std::fs::metadata(spec.scratch.join("log")).unwrap().len(), 100_001);

    let mut spec = world.script("printf 12345");
    spec.limits.max_log_bytes = Some(5);
    assert_eq!(run(&spec).outcome.end, End::Exited(0), "exactly the limit is allowed");
}

fn kill(world: &World) {
    let mut running = spawn(&world.script("echo ready; sleep 100")).unwrap();
    assert_eq!(running.next(None).unwrap(), Some(Event::Output(b"ready\n".to_vec())));
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(running.next(Some(soon)).unwrap(), None, "a deadline passes without an event");
    let killer = running.killer().unwrap();
    std::thread::spawn(move || killer.kill().unwrap());
    let ran = finish(running);
    assert_eq!((ran.outcome.end, ran.log.as_str()), (End::Killed, ""));
}

/// Process ids that a process with this word in its command line has on the host.
fn processes_with(word: &str) -> Vec<String> {
    let is_one = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
    entries.filter(is_one).map(name).filter(|name| name.parse::<u32>().is_ok()).collect()
}

fn leftover_processes_are_dead(world: &World) {
    let marker = format!("86{:07}", std::process::id());
    let script = format!(
        "setsid sleep {marker} > /dev/null 2>&1 < /dev/null & \
         (setsid sh -c 'sleep {marker}; echo never' &) ; sleep 0.1; echo done"
    );
    let ran = run(&world.script(&script));
    assert_eq!(processes_with(&marker), Vec::<String>::new());
    assert_eq!((ran.outcome.end, ran.log.as_str()), (End::Exited(0), "done\n"));
}

fn closing_the_log_is_death(world: &World) {
    let start = Instant::now();
    let ran = run(&world.script("echo last; exec > /dev/null 2>&1; sleep 50"));
    assert_eq!((ran.outcome.end, ran.log.as_str()), (End::Signaled(9), "last\n"));
    assert!(start.elapsed() < Duration::from_secs(40));
}

fn usage_is_metered(world: &World) {
    let mut spec =
        world.script("i=0; while test $i -lt 20000; do i=$((i+1)); done; dd if=/dev/zero of=/dev/null bs=32M count=2");
    for cgroups in [Cgroups::Off, shoal_sandbox::cgroups()] {
        spec.scratch = world.scratch();
        spec.cgroups = cgroups;
        let ran = run(&spec);
        let usage = ran.outcome.usage;
        assert_eq!(ran.outcome.end, End::Exited(0), "{}", ran.log);
        assert!(usage.cpu_user_us + usage.cpu_system_us > 1_000, "{usage:?}");
        assert!(usage.memory_peak_bytes > 32 * 1024 * 1024, "{usage:?}");
        assert!(!usage.out_of_memory);
    }
}

/// What this machine has, if it can meter memory.
fn memory_groups() -> Option<Cgroups> {
    match shoal_sandbox::cgroups() {
        Cgroups::Off | Cgroups::V1 { memory: None, .. } => None,
        found => Some(found),
    }
}

fn a_long_build_joins_its_control_group(world: &World) {
    let Some(cgroups) = memory_groups() else {
        println!("skipped: memory control groups: none that we may use");
        return;
    };
    // Together they need more than the largest of them, which is all that resource usage knows.
    let mut spec =
        world.script("for i in 1 2 3; do (sleep 1.3; dd if=/dev/zero of=/dev/null bs=24M count=40) & done; wait");
    spec.cgroups = cgroups;
    let ran = run(&spec);
    assert_eq!(ran.outcome.end, End::Exited(0), "{}", ran.log);
    assert!(ran.outcome.usage.memory_peak_bytes > 40 * 1024 * 1024, "{:?}", ran.outcome.usage);
}

fn memory_is_limited(world: &World) {
    const LIMIT: u64 = 48 * 1024 * 1024;
    let Some(mut cgroups) = memory_groups() else {
        println!("skipped: memory control groups: none that we may use");
        return;
    };
    if let Cgroups::V1 { memory_max, .. } | Cgroups::V2 { memory_max, .. } = &mut cgroups {
        *memory_max = Some(LIMIT);
    }
    let mut spec = world.script("dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?");
    spec.cgroups = cgroups;
    let ran = run(&spec);
    assert!(ran.outcome.usage.out_of_memory, "{ran:?}");
    assert!(ran.outcome.usage.memory_peak_bytes <= LIMIT, "{ran:?}");
    assert_ne!(ran.outcome.end, End::Exited(0));
}

fn a_build_is_born_in_its_version_2_group(world: &World) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let point = mount.and_then(|line| line.split(' ').nth(4)).map(std::path::Path::new);
    let groups = point.into_iter().flat_map(|point| std::fs::read_dir(point).unwrap().flatten());
    for left in groups.filter(|group| group.file_name().to_string_lossy().starts_with("shoal-test-")) {
        // Of an earlier run, whose last spares outlived it for a moment.
        let _ = std::fs::remove_dir(left.path());
    }
    let parent = point.map(|point| point.join(format!("shoal-test-{}", std::process::id())));
    let Some(parent) = parent.filter(|parent| std::fs::create_dir(parent).is_ok()) else {
        println!("skipped: version 2 control groups: none that we may use");
        return;
    };
    let mut spec = world.script("grep ^0:: /proc/self/cgroup; i=0; while test $i -lt 20000; do i=$((i+1)); done");
    spec.cgroups = Cgroups::V2 { parent: parent.clone(), memory_max: None };
    // The first one may find spares for builds without groups, the second has a spare of its own.
    for _ in 0..5 {
        spec.scratch = world.scratch();
        let ran = run(&spec);
        let name = parent.file_name().unwrap().to_str().unwrap();
        assert!(ran.log.contains(&format!("{name}/shoal-build-")), "{}", ran.log);
        assert!(ran.outcome.usage.cpu_user_us > 1_000, "{:?}", ran.outcome.usage);
    }
    spec.scratch = world.scratch();
    spec.cgroups = Cgroups::V2 { parent: parent.clone(), memory_max: Some(1 << 30) };
    let limited = run(&spec).outcome.end;
    if !std::fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap().contains("memory") {
        assert!(matches!(limited, End::SetupFailed(_)), "a limit that can't be had is an error: {limited:?}");
    }
    let left = || std::fs::read_dir(&parent).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    // Spares have theirs as long as we live; those of builds are gone.
    assert!(left() <= 3, "{}", left());
}

fn last_words_are_heard(world: &World) {
    for length in [1, 4096, 60_000] {
        let ran = run(&world.script(&format!("head -c {length} /dev/zero | tr '\\000' 'x'")));
        assert_eq!(ran.log.len(), length);
    }
}

fn a_used_scratch_is_refused(world: &World) {
    let spec = world.script("true");
    assert_eq!(run(&spec).outcome.end, End::Exited(0));
    let End::SetupFailed(text) = run(&spec).outcome.end else { panic!("must not run twice in one place") };
    expect!["the scratch directory is that of another build"].assert_eq(&text);
}
