//! What a build costs that does nothing: from `spawn` to `Exited`, and of that until the builder is executed.
//!
//! `cargo bench -p shoal-sandbox [-- INPUTS...]`. Beside it, as the machine's own limit: starting the same
//! program without a sandbox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shoal_sandbox::{
    Cgroups, Event, Input, Outcome, Program, SUPERVISOR_ARG, Spec, cgroups, remove_tree, spawn, supervisor_main,
};

const BUSYBOX: &str = "00000000000000000000000000000000-busybox";
const ROUNDS: usize = 60;
const INPUTS: [usize; 5] = [1, 8, 9, 100, 1000];

/// Between builds; a node that is busy has none, one that builds a chain has some.
const GAPS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(50)];

fn main() {
    if std::env::args().nth(1).as_deref() == Some(SUPERVISOR_ARG) {
        supervisor_main(|_, _| 0);
    }
    let asked: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let counts = if asked.is_empty() { INPUTS.to_vec() } else { asked };
    let dir = Path::new("/var/tmp").join(format!("shoal-sandbox-bench-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let inputs = make_inputs(&dir.join("trees"), counts.iter().copied().max().unwrap_or(1));

    let busybox = inputs[0].tree.join("busybox");
    let bare = (0..ROUNDS).map(|_| time(|| run_bare(&busybox)).0).collect();
    println!("{:>44}  {}", "no sandbox", Spread::of(bare));
    for metering in [Cgroups::Off, cgroups()] {
        for count in &counts {
            for gap in GAPS {
                let built = (0..ROUNDS).map(|round| {
                    std::thread::sleep(gap);
                    let scratch = dir.join(format!("scratch-{count}-{round}"));
                    build(&scratch, &inputs[..*count], &metering)
                });
                let (total, setup) = built.unzip();
                let kind = if metering == Cgroups::Off { "unmetered" } else { "metered" };
                println!("{kind:>10} {count:>5} inputs, every {:>2} ms, total  {}", gap.as_millis(), Spread::of(total));
                println!("{:>44}  {}", "set-up", Spread::of(setup));
            }
        }
    }
    remove_tree(&dir).unwrap();
}

fn make_inputs(trees: &Path, count: usize) -> Vec<Input> {
    let make = |index: usize| {
        let name = if index == 0 { BUSYBOX.to_owned() } else { format!("{index:032}-input") };
        let tree = trees.join(&name);
        // As in a real closure, some are files.
        if index % 10 == 9 {
            fs::write(&tree, "file").unwrap();
        } else {
            fs::create_dir_all(tree.join("bin")).unwrap();
        }
        Input { name, tree }
    };
    let inputs: Vec<Input> = (0..count.max(1)).map(make).collect();
    fs::copy("/bin/busybox", inputs[0].tree.join("busybox")).expect("busybox-static is installed");
    inputs
}

fn run_bare(busybox: &PathBuf) {
    let status = Command::new(busybox).arg("true").stdin(Stdio::null()).status().unwrap();
    assert!(status.success());
}

/// Microseconds in all and of set-up.
fn build(scratch: &Path, inputs: &[Input], metering: &Cgroups) -> (u64, u64) {
    fs::create_dir(scratch).unwrap();
    let path = format!("/nix/store/{BUSYBOX}/busybox").into();
    let mut spec = Spec::new(scratch, Program::Exec { path, argv: vec![b"true".to_vec()] });
    spec.inputs = inputs.to_vec();
    spec.cgroups = metering.clone();
    let (total, outcome) = time(|| run(&spec));
    remove_tree(scratch).unwrap();
    (total, outcome.setup_us)
}

fn run(spec: &Spec) -> Outcome {
    match spawn(spec).unwrap().next(None).unwrap() {
        Some(Event::Exited(outcome)) => outcome,
        other => panic!("a build that does nothing says {other:?}"),
    }
}

fn time<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_micros() as u64, result)
}

/// Microseconds.
struct Spread(Vec<u64>);

impl Spread {
    fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        Spread(values)
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |tenth: usize| self.0[(self.0.len() - 1) * tenth / 10];
        write!(f, "min {:>6}  median {:>6}  p90 {:>6} us", at(0), at(5), at(9))
    }
}
