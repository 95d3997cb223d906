//! Several nodes as one builder, beside one of them alone and stock Nix: graphs of derivations that do nothing, how soon
//! one that is ready runs, and a small request beside a large one.
//!
//! All nodes share this machine, so there are no more cores than for one of them.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, pipe};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use shoal_tests::command::{Running, wait_for};
use shoal_tests::machine::Remote;
use shoal_tests::{Cmd, Machine, Mesh, Nix};

use crate::Plan;
use crate::contender::{Contender, JOBS};
use crate::graphs::Graph;
use crate::report::{Bar, Report};
use crate::samples::Samples;
use crate::stock::{self, NO_STOCK};

const NODES: usize = 3;
/// For one graph; stock Nix needs two minutes for the largest on a quiet machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(1200);
/// Until the first builder of a large graph runs: its derivations are uploaded first.
const BEGIN_PATIENCE: Duration = Duration::from_secs(300);
/// Of the random graph.
const SEED: u64 = 9567;
/// Derivations of a graph that the build hook of stock Nix builds: each takes a quarter of a second, whatever it is.
const HOOKED: usize = 20;

const LOCAL: &str = "stock local";
const STOCK: &str = "stock ssh-ng";
const HOOK: &str = "stock --builders";
const ONE: &str = "one node";
const GRID: &str = "three nodes";
const REMOTE: &str = "three nodes, the entry builds nothing";

/// Activities and results of Nix's log.
const ACT_BUILD: u64 = 105;
const RES_LINE: u64 = 101;

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let nix = Nix::newest();
    graphs(plan, report, &nix)?;
    dispatch(plan, report, &nix)?;
    beside(plan, report, &nix)
}

/// Whole graphs, by everybody.
fn graphs(plan: &Plan, report: &mut Report, nix: &Nix) -> Result<()> {
    let mut contenders = vec![(LOCAL, Contender::local(nix)?)];
    match stock::can_run() {
        true => contenders.push((STOCK, Contender::stock(nix, None)?)),
        false => report.note(NO_STOCK.into()),
    }
    contenders.push((ONE, Contender::shoal(nix)?));
    contenders.push((GRID, Contender::grid(nix, NODES)?));
    let mut graphs = vec![
        ("independent", Graph::new("independent", plan.scaled(500, 6))),
        ("in a chain", Graph::new("chain", plan.scaled(200, 4))),
        ("of a random graph", Graph::random(plan.scaled(1000, 10), SEED)?),
    ];
    match Graph::real(plan.scaled(2000, 20))? {
        Some(real) => graphs.push(("of a real graph", real)),
        None => report.note("the real graph is not beside the repository: not measured".into()),
    }
    for (_, contender) in &contenders {
        Graph::new("independent", 2).build(contender.direct(), nix, "warm", BUILD_PATIENCE)?;
    }
    for (name, graph) in &graphs {
        let what = format!("{} {name}", graph.nodes);
        for rep in 0..plan.reps {
            let salt = format!("{what} {rep}");
            for (who, contender) in &contenders {
                let ms = graph.build(contender.direct(), nix, &salt, BUILD_PATIENCE)?;
                report.add(&what, who, "ms/derivation", ms / graph.nodes as f64)?;
            }
        }
        let uploaded = format!("{what}, evaluated and instantiated only");
        for (who, contender) in &contenders {
            let ms = graph.build(contender.instantiate(), nix, "instantiated", BUILD_PATIENCE)?;
            report.add(&uploaded, who, "ms/derivation", ms / graph.nodes as f64)?;
        }
        report.hold_ratio(&what, GRID, LOCAL, Bar::AtMost(1.0));
        report.hold_ratio(&what, GRID, ONE, Bar::AtMost(1.3));
    }
    let Some((_, stock)) = contenders.iter().find(|(who, _)| *who == STOCK) else { return Ok(()) };
    for shape in ["independent", "chain"] {
        let graph = Graph::new(shape, plan.scaled(HOOKED, 2));
        let ms = graph.build(stock.hook(), nix, "hooked", BUILD_PATIENCE)?;
        report.add(&format!("{} {shape}, once", graph.nodes), HOOK, "ms/derivation", ms / graph.nodes as f64)?;
    }
    Ok(())
}

/// From the end of a build, when the only one that needs it is ready, to the first word of that one's builder: what a
/// client sees.
fn dispatch(plan: &Plan, report: &mut Report, nix: &Nix) -> Result<()> {
    let client = Machine::new(nix);
    let mut remote = Mesh { nodes: Vec::new() };
    remote.add(&[&client], &["--no-build"]);
    (1..NODES).for_each(|_| remote.add(&[&client], &["--max-jobs", &JOBS.to_string()]));
    remote.wait_until_whole();
    let contenders = [
        (ONE, Contender::shoal(nix)?),
        (GRID, Contender::grid(nix, NODES)?),
        (REMOTE, Contender::Grid(client, remote)),
    ];
    let graph = Graph::new("speaking", plan.scaled(200, 4));
    let (half, most) = ("ready to its builder's first word, p50", "ready to its builder's first word, p99");
    for (_, contender) in &contenders {
        waits(graph.on(contender.direct(), nix, "warm"))?;
    }
    for rep in 0..plan.reps {
        for (who, contender) in &contenders {
            let waits = waits(graph.on(contender.direct(), nix, &format!("dispatch {rep}")))?;
            let quantile = |share| waits.quantile(share).context("no builder said a word");
            report.add(half, who, "ms", quantile(0.5)?)?;
            report.add(most, who, "ms", quantile(0.99)?)?;
        }
    }
    for who in [GRID, REMOTE] {
        report.hold_value(half, who, Bar::AtMost(20.0));
        report.hold_value(most, who, Bar::AtMost(100.0));
    }
    Ok(())
}

/// What one build after the other waited for its builder's first word, in ms.
fn waits(cmd: Cmd) -> Result<Samples> {
    let (mut waits, mut builds, mut ended) = (Samples::default(), HashSet::new(), None::<Instant>);
    let mut client = hear(cmd, |at, said| {
        let id = said["id"].as_u64().unwrap_or_default();
        match said["action"].as_str() {
            Some("start") if said["type"] == ACT_BUILD => drop(builds.insert(id)),
            Some("stop") if builds.contains(&id) => ended = Some(at),
            Some("result") if said["type"] == RES_LINE && builds.contains(&id) => {
                if let Some(ended) = ended.take() {
                    waits.push((at - ended).as_secs_f64() * 1e3);
                }
            }
            _ => {}
        }
        true
    })?;
    let status = client.wait(BUILD_PATIENCE);
    if !status.success() {
        bail!("a client ended with {status}");
    }
    Ok(waits)
}

/// Runs a client, and looks at what it says while it says it, for as long as `look` wants to.
fn hear(cmd: Cmd, mut look: impl FnMut(Instant, Value) -> bool) -> Result<Running> {
    let (reader, writer) = pipe()?;
    let client = cmd.args(["--log-format", "internal-json"]).start_into(Stdio::null(), writer.into());
    for line in BufReader::new(reader).lines() {
        let (at, line) = (Instant::now(), line?);
        let said = line.strip_prefix("@nix ").and_then(|json| serde_json::from_str(json).ok());
        if said.is_some_and(|said| !look(at, said)) {
            break;
        }
    }
    Ok(client)
}

/// How long one derivation takes to run while the same nodes have thousands to build, for a client of the same node and of
/// another one.
fn beside(plan: &Plan, report: &mut Report, nix: &Nix) -> Result<()> {
    let client = Machine::new(nix);
    let mesh = Mesh::start_with(NODES, &[&client], &["--max-jobs", &JOBS.to_string()]);
    let at = |node: usize| {
        let store = client.store(&mesh[node], Remote::SshNg);
        client.near("nix-build", &mesh[node]).args(["--no-out-link", "--store", &store])
    };
    let many = Graph::new("independent", plan.scaled(5000, 100));
    let mut large = many.on(at(0), nix, "large").start_into(Stdio::null(), Stdio::null());
    wait_for("builders of a large request", BEGIN_PATIENCE, || (!mesh[0].builders().is_empty()).then_some(()));
    let what = format!("client's start to its builder's first word, beside {} others", many.nodes);
    for rep in 0..plan.reps {
        for (who, node) in [("at the same node", 0), ("at another node", 1)] {
            let (since, mut spoke) = (Instant::now(), None);
            let one = Graph::new("speaking", 1).on(at(node), nix, &format!("small {rep} {node}"));
            let mut small = hear(one, |at, said| {
                if said["action"] == "result" && said["type"] == RES_LINE {
                    spoke.get_or_insert(at);
                }
                true
            })?;
            small.wait(BUILD_PATIENCE);
            let spoke = spoke.context("its builder said nothing")?;
            report.add(&what, who, "s", (spoke - since).as_secs_f64())?;
        }
        if large.has_ended() {
            report.note(format!("the large request ended in turn {rep}"));
            break;
        }
    }
    report.hold_value(&what, "at the same node", Bar::AtMost(2.0));
    report.hold_value(&what, "at another node", Bar::AtMost(2.0));
    Ok(())
}
