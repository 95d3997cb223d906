//! `shoal demo`, as somebody tries it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_tests::command::{Running, wait_for};
use shoal_tests::node::program;
use shoal_tests::{Cmd, Finished, Machine, Nix, shapes};

/// Three nodes that find each other, on a busy machine.
const START_PATIENCE: Duration = Duration::from_secs(60);
const END_PATIENCE: Duration = Duration::from_secs(30);

struct Demo {
    running: Running,
    dir: PathBuf,
}

impl Demo {
    fn start(machine: &Machine, flags: &[&str]) -> Demo {
        let demo =
            Cmd::new(program()).arg("demo").args(flags).env("TMPDIR", machine.path("")).env("HOME", machine.home());
        let running = demo.start();
        let dir = machine.path(&format!("shoal-demo-{}", running.pid().as_raw_nonzero()));
        let env = dir.join("env");
        wait_for("a demo", START_PATIENCE, || env.exists().then_some(()));
        Demo { running, dir }
    }

    /// A shell line with the settings that the demo wrote.
    fn shell(&self, machine: &Machine, line: &str) -> Cmd {
        let script = format!(". \"$1\"; shoal=$2; shift 2; {line}");
        let cmd = Cmd::new("sh").args(["-euc", &script, "sh"]).arg(self.dir.join("env")).arg(program());
        cmd.env("HOME", machine.home()).env("NIX_CLIENT_ROOT", machine.path("store"))
    }

    fn build(&self, machine: &Machine, name: &str) -> Cmd {
        let line = "unset NIX_CLIENT_ROOT; export NIX_REMOTE=$DEMO_STORE; exec \"$@\"";
        let nix = machine.nix.program("nix-build");
        self.shell(machine, line).arg(nix).arg("--no-out-link").args(shapes::args(machine, "", &[name]))
    }

    /// Processes of the demo and of its clients: a directory of theirs is in the command line or the environment.
    fn processes(&self) -> Vec<String> {
        let dir = self.dir.parent().unwrap().as_os_str().as_encoded_bytes();
        let names =
            |file: &Path| std::fs::read(file).unwrap_or_default().windows(dir.len()).any(|window| window == dir);
        let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let found = entries.filter(|process| names(&process.join("cmdline")) || names(&process.join("environ")));
        found.map(|process| process.display().to_string()).collect()
    }
}

#[test]
fn a_demo_says_how_to_use_it_and_leaves_nothing() {
    let machine = Machine::new(&Nix::newest());
    let demo = Demo::start(&machine, &[]);
    let built = demo.build(&machine, "hello").ok();
    assert!(built.text().ends_with("-hello"), "{built}");
    let peers: Finished = demo.shell(&machine, "exec \"$shoal\" peers --data-dir \"$DEMO_DIR_2\"").ok();
    assert_eq!(peers.lines().len(), 4, "a heading and three nodes: {peers}");
    let copy = "exec \"$1\" copy --from $DEMO_HTTP_3 --option trusted-public-keys $DEMO_KEY \"$2\"";
    demo.shell(&machine, copy).arg(machine.nix.program("nix")).arg(built.text()).ok();
    demo.running.signal(rustix::process::Signal::INT);
    let said = demo.running.finish(END_PATIENCE).expect_code(0);
    assert!(said.stdout.contains("nix-build"), "{said}");
    assert!(!demo.dir.exists(), "the demo left its directory");
}

#[test]
fn nothing_is_left_of_a_demo_that_is_killed_during_a_build() {
    let machine = Machine::new(&Nix::newest());
    let demo = Demo::start(&machine, &["--nodes", "2", "--log-level", "error", "--http", "none", "--max-jobs", "1"]);
    let build = demo.build(&machine, "sleeps").start();
    let is_building = || {
        let builds = demo.shell(&machine, "exec \"$shoal\" builds --json --data-dir \"$DEMO_DIR_1\"").ok().json();
        builds.as_array().is_some_and(|builds| !builds.is_empty()).then_some(())
    };
    wait_for("a build", START_PATIENCE, is_building);
    let count = demo.processes().len();
    assert!(count > 5, "a demo, its keeper, two nodes, a supervisor and the client are {count} processes");
    demo.running.signal(rustix::process::Signal::KILL);
    wait_for("the end of all processes", END_PATIENCE, || demo.processes().is_empty().then_some(()));
    assert!(!demo.dir.exists(), "the demo left its directory");
    build.finish(END_PATIENCE);
}
