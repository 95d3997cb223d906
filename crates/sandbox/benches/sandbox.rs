//! What a build costs that does nothing: from `spawn` to `Exited`, and of that until the builder is executed.
//!
//! `cargo bench -p shoal-sandbox [-- INPUTS...]`. Besides, with a directory that shows all inputs already, and many at once. Beside it, as the machine's own limit: starting the same
//! program without a sandbox.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use shoal_sandbox::{
    Cgroups, Event, Input, Outcome, Program, SUPERVISOR_ARG, Spec, cgroups, remove_tree, spawn, supervisor_main,
};

const BUSYBOX: &str = "00000000000000000000000000000000-busybox";
const ROUNDS: usize = 60;
const AT_ONCE: usize = 20;
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
                    build(&scratch, Shown::Each(&inputs[..*count]), &metering)
                });
                let (total, setup) = built.unzip();
                let kind = if metering == Cgroups::Off { "unmetered" } else { "metered" };
                println!("{kind:>10} {count:>5} inputs, every {:>2} ms, total  {}", gap.as_millis(), Spread::of(total));
                println!("{:>44}  {}", "set-up", Spread::of(setup));
            }
        }
    }
    let view = view(&dir);
    let scratch = |number: usize| dir.join(format!("scratch-view-{number}"));
    let built = (0..ROUNDS).map(|round| build(&scratch(round), Shown::View(&view), &Cgroups::Off));
    let (total, setup): (Vec<u64>, Vec<u64>) = built.unzip();
    println!("{:>44}  {}", "a view, total", Spread::of(total));
    println!("{:>44}  {}", "set-up", Spread::of(setup));
    let (one_by_one, _) = time(|| (0..AT_ONCE).for_each(|n| _ = build(&scratch(n), Shown::View(&view), &Cgroups::Off)));
    let (at_once, _) = time(|| {
        std::thread::scope(|scope| {
            for number in 0..AT_ONCE {
                let (scratch, view) = (scratch(number), &view);
                scope.spawn(move || build(&scratch, Shown::View(view), &Cgroups::Off));
            }
        });
    });
    println!("{AT_ONCE} with a view, one by one {one_by_one} us, at once {at_once} us");
    remove_tree(&dir).unwrap();
}

/// What a build is given to see.
#[derive(Clone, Copy)]
enum Shown<'a> {
    Each(&'a [Input]),
    View(&'a Arc<OwnedFd>),
}

/// All trees by one mount.
fn view(dir: &Path) -> Arc<OwnedFd> {
    let view = dir.join("view");
    fs::create_dir(&view).unwrap();
    fs::rename(dir.join("trees"), view.join("store")).unwrap();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Arc::new(open_tree(CWD, &view, flags).expect("root's rights"))
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
fn build(scratch: &Path, shown: Shown<'_>, metering: &Cgroups) -> (u64, u64) {
    fs::create_dir(scratch).unwrap();
    let path = format!("/nix/store/{BUSYBOX}/busybox").into();
    let mut spec = Spec::new(scratch, Program::Exec { path, argv: vec![b"true".to_vec()] });
    match shown {
        Shown::Each(inputs) => spec.inputs = inputs.to_vec(),
        Shown::View(view) => spec.view = Some(view.clone()),
    }
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
