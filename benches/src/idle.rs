//! A node that has nothing to do, and how long it takes to start on an empty and on a large store.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use shoal_store::{Ingested, Options, Store};
use shoal_tests::machine::Remote;
use shoal_tests::{Machine, Nix, Node};
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

use crate::Plan;
use crate::machine::memory_mib;
use crate::report::{Bar, Report};

const PATHS: usize = 100_000;
/// Paths made valid at once.
const BATCH: usize = 2_000;
/// Until what a start allocates and gives back has settled.
const SETTLE: Duration = Duration::from_secs(2);

const SHOAL: &str = "shoal";
const FIRST_START: &str = "first start to ready";
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
        let start = if rep == 0 { FIRST_START } else { START };
        report.add(start, SHOAL, "ms", node.start_time.as_secs_f64() * 1e3)?;
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
        let batch = batch.iter().map(|number| path(&store, *number)).collect::<Result<Vec<_>>>();
        store.commit(batch.context("made-up paths")?)?;
    }
    Ok(())
}

/// A small file under a name of its own.
fn path(store: &Store, number: usize) -> Result<(PathInfo, Ingested)> {
    let contents = format!("path {number}\n");
    let mut nar = NarWriter::new(Vec::new());
    nar.regular(b"", false, contents.len() as u64)?;
    nar.contents(contents.as_bytes())?;
    let mut ingest = store.ingest();
    ingest.feed(&nar.finish()?)?;
    let ingested = ingest.finish()?;
    let path = StorePath::from_base_name(&format!("{number:032}-made-up")).map_err(|error| anyhow!("{error}"))?;
    Ok((PathInfo::new(path, ingested.nar_hash, ingested.nar_size), ingested))
}
