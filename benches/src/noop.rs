//! What a build costs beside the building: derivations that do nothing, by a stock client.

use std::time::Duration;

use anyhow::Result;
use shoal_tests::{Cmd, Nix};

use crate::Plan;
use crate::contender::Contender;
use crate::graphs::Graph;
use crate::report::{Bar, Report};
use crate::stock::{self, NO_STOCK};

/// For one graph; stock Nix needs 20 s for the largest on a quiet machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(600);
/// What OpenSSH used before the slow post-quantum exchange that some of its versions prefer.
const FAST_KEY_EXCHANGE: &str = "curve25519-sha256";

const LOCAL: &str = "stock local";
const STOCK: &str = "stock ssh-ng";
const STOCK_FAST: &str = "stock ssh-ng, curve25519";
const SHOAL: &str = "shoal ssh-ng";

type Way = fn(&Contender) -> Cmd;

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let nix = Nix::newest();
    let mut contenders = Vec::new();
    contenders.push((LOCAL, Contender::local(&nix)?));
    if stock::can_run() {
        contenders.push((STOCK, Contender::stock(&nix, None)?));
    } else {
        report.note(NO_STOCK.into());
    }
    contenders.push((SHOAL, Contender::shoal(&nix)?));
    let independent = Graph::new("independent", plan.scaled(200, 4));
    let chain = Graph::new("chain", plan.scaled(100, 4));
    for graph in [&independent, &chain] {
        let what = format!("{} {}", graph.nodes, graph.shape);
        run(plan, report, &nix, &mut contenders, (&what, graph, Contender::direct))?;
        report.hold_ratio(&what, SHOAL, LOCAL, Bar::AtMost(0.25));
        report.hold_ratio(&what, SHOAL, STOCK, Bar::AtMost(0.2));
        let what = format!("{what}, evaluated and instantiated only");
        run(plan, report, &nix, &mut contenders, (&what, graph, Contender::instantiate))?;
    }
    contenders.retain(|(who, _)| *who != LOCAL);
    if stock::can_run() {
        contenders.insert(1, (STOCK_FAST, Contender::stock(&nix, Some(FAST_KEY_EXCHANGE))?));
    }
    let independent = Graph::new("independent", plan.scaled(20, 2));
    let chain = Graph::new("chain", plan.scaled(10, 2));
    for graph in [&independent, &chain] {
        let what = format!("{} {} by the build hook", graph.nodes, graph.shape);
        run(plan, report, &nix, &mut contenders, (&what, graph, Contender::hook))?;
        report.hold_ratio(&what, SHOAL, STOCK, Bar::AtMost(0.4));
    }
    Ok(())
}

/// Every contender builds the graph `reps` times, in turn, after one small build that nobody measures.
fn run(
    plan: &Plan,
    report: &mut Report,
    nix: &Nix,
    contenders: &mut Vec<(&'static str, Contender)>,
    (what, graph, way): (&str, &Graph, Way),
) -> Result<()> {
    let warm = Graph::new(graph.shape, 2);
    contenders.retain(|(who, contender)| match warm.build(way(contender), nix, "warm", BUILD_PATIENCE) {
        Ok(_) => true,
        Err(error) => {
            report.failed(&format!("{who}, {what}: {error:#}"));
            false
        }
    });
    for rep in 0..plan.reps {
        for (who, contender) in contenders.iter() {
            let ms = graph.build(way(contender), nix, &format!("{what} {rep}"), BUILD_PATIENCE)?;
            report.add(what, who, "ms/derivation", ms / graph.nodes as f64)?;
        }
    }
    Ok(())
}
