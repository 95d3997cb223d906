//! A node that has nothing to do, and how long it takes to start on an empty and on a large store.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use shoal_store::{Options, Store};
use shoal_tests::machine::Remote;
use shoal_tests::{Machine, Nix, Node};

use crate::Plan;
use crate::machine::memory_mib;
use crate::nars;
use crate::report::{Bar, Report};

const PATHS: usize = 100_000;
/// Paths made valid at once.
const BATCH: usize = 2_000;
/// Until what a start allocates and gives back has settled.
const SETTLE: Duration = Duration::from_secs(2);

const SHOAL: &str = "shoal";
const START: &str = "start to ready, empty store";

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let client = Machine::new(&Nix::newest());
    let mut node = Node::start(&[&client]);
    let idle = "resident, nothing done yet";
    for rep in 0..plan.reps {
        if rep > 0 {
            node.stop();
            node.start_again();
        }
        report.add(START, SHOAL, "ms", node.start_time.as_secs_f64() * 1e3)?;
        thread::sleep(SETTLE);
        report.add(idle, SHOAL, "MiB", resident(&node)?)?;
    }
    report.hold_value(idle, SHOAL, Bar::AtMost(40.0));
    let asked = "resident, after a client asked for every path";
    client.remote("nix", &node, Remote::SshNg).args(["path-info", "--all"]).ok();
    report.add(asked, SHOAL, "MiB", resident(&node)?)?;
    node.stop();
    let paths = plan.scaled(PATHS, 100);
    fill(&node, paths)?;
    let (start, idle) = (format!("start to ready, {paths} paths"), format!("resident, {paths} paths"));
    for _ in 0..plan.reps {
        node.start_again();
        report.add(&start, SHOAL, "ms", node.start_time.as_secs_f64() * 1e3)?;
        thread::sleep(SETTLE);
        report.add(&idle, SHOAL, "MiB", resident(&node)?)?;
        node.stop();
    }
    report.hold_value(&start, SHOAL, Bar::AtMost(200.0));
    report.hold_value(&idle, SHOAL, Bar::AtMost(40.0));
    Ok(())
}

fn resident(node: &Node) -> Result<f64> {
    match memory_mib(node.ready().pid, "VmRSS") {
        0.0 => bail!("the node is gone"),
        mib => Ok(mib),
    }
}

/// Puts that many small paths into the store of a node that is not running.
fn fill(node: &Node, paths: usize) -> Result<()> {
    let store = Store::open(&node.data_dir().join("store"), Options::default())?;
    let numbers: Vec<usize> = (0..paths).collect();
    for batch in numbers.chunks(BATCH) {
        let take = |number: &usize| {
            let nar = nars::of_file(format!("path {number}\n").as_bytes())?;
            Ok((nars::path(*number)?, nars::ingest(&store, &nar)?))
        };
        let batch = batch.iter().map(take).collect::<Result<Vec<_>>>().context("made-up paths")?;
        nars::commit(&store, batch)?;
    }
    Ok(())
}
