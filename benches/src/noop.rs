//! What a build costs beside the building: derivations that do nothing, by a stock client.

use std::time::Duration;

use anyhow::{Result, bail};
use shoal_tests::machine::Remote;
use shoal_tests::{Cmd, Machine, Nix, Node};

use crate::Plan;
use crate::graphs::Graph;
use crate::report::{Bar, Report};
use crate::stock::{self, NO_STOCK, Stock};

const JOBS: usize = 2;
/// For one graph; stock Nix needs 20 s for the largest on a quiet machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(600);
/// What OpenSSH used before the slow post-quantum exchange that some of its versions prefer.
const FAST_KEY_EXCHANGE: &str = "curve25519-sha256";

const LOCAL: &str = "stock local";
const STOCK: &str = "stock ssh-ng";
const STOCK_FAST: &str = "stock ssh-ng, curve25519";
const SHOAL: &str = "shoal ssh-ng";

/// Where derivations are built, and the client that asks for it.
enum Contender {
    Local(Machine),
    Stock { client: Machine, _server: Machine, stock: Stock },
    Shoal(Machine, Node),
}

impl Contender {
    fn local(nix: &Nix) -> Result<Contender> {
        Ok(Contender::Local(Machine::new(nix)))
    }

    fn stock(nix: &Nix, key_exchange: Option<&str>) -> Result<Contender> {
        let server = Machine::new(nix);
        let stock = Stock::start(nix, &server.root(), JOBS, key_exchange)?;
        Ok(Contender::Stock { client: Machine::new(nix), _server: server, stock })
    }

    fn shoal(nix: &Nix) -> Result<Contender> {
        let client = Machine::new(nix);
        let node = Node::start_with(&[&client], &["--max-jobs", &JOBS.to_string()]);
        Ok(Contender::Shoal(client, node))
    }

    /// A client, and the store it may name.
    fn client(&self) -> (Cmd, Option<String>) {
        match self {
            Contender::Local(machine) => (machine.local("nix-build"), None),
            Contender::Stock { client, stock, .. } => {
                (client.local("nix-build").env("NIX_SSHOPTS", stock.ssh_options()), Some(stock::STORE.into()))
            }
            Contender::Shoal(client, node) => (client.near("nix-build", node), Some(client.store(node, Remote::SshNg))),
        }
    }

    /// Builds where the store is.
    fn direct(&self) -> Cmd {
        match self.client() {
            (cmd, None) => cmd.args(["--no-out-link", "--max-jobs", &JOBS.to_string()]),
            (cmd, Some(store)) => cmd.args(["--no-out-link", "--store", &store]),
        }
    }

    /// What the client does before anything is built.
    fn instantiate(&self) -> Cmd {
        match self {
            Contender::Local(machine) => machine.local("nix-instantiate"),
            Contender::Stock { client, stock, .. } => {
                let cmd = client.local("nix-instantiate").env("NIX_SSHOPTS", stock.ssh_options());
                cmd.without_env("NIX_CLIENT_ROOT").env("NIX_REMOTE", stock::STORE)
            }
            Contender::Shoal(client, node) => client.remote("nix-instantiate", node, Remote::SshNg),
        }
    }

    /// Keeps its own store and has others build for it.
    fn hook(&self) -> Cmd {
        let (cmd, store) = self.client();
        let builder = store.map(|store| format!("{store} x86_64-linux - {JOBS} 1")).unwrap_or_default();
        cmd.args(["--no-out-link", "--max-jobs", "0", "--builders", &builder])
    }
}

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
    let independent = Graph { shape: "independent", nodes: plan.scaled(200, 4) };
    let chain = Graph { shape: "chain", nodes: plan.scaled(100, 4) };
    for graph in [independent, chain] {
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
    let independent = Graph { nodes: plan.scaled(20, 2), ..independent };
    let chain = Graph { nodes: plan.scaled(10, 2), ..chain };
    for graph in [independent, chain] {
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
    (what, graph, way): (&str, Graph, Way),
) -> Result<()> {
    let warm = Graph { nodes: 2, ..graph };
    contenders.retain(|(who, contender)| match build(way(contender), nix, warm, "warm") {
        Ok(_) => true,
        Err(error) => {
            report.failed(&format!("{who}, {what}: {error:#}"));
            false
        }
    });
    for rep in 0..plan.reps {
        for (who, contender) in contenders.iter() {
            let ms = build(way(contender), nix, graph, &format!("{what} {rep}"))?;
            report.add(what, who, "ms/derivation", ms / graph.nodes as f64)?;
        }
    }
    Ok(())
}

/// Wall time in ms.
fn build(cmd: Cmd, nix: &Nix, graph: Graph, salt: &str) -> Result<f64> {
    let finished = graph.on(cmd, nix, salt).patience(BUILD_PATIENCE).run();
    if !finished.status.success() {
        bail!("{finished}");
    }
    Ok(finished.took.as_secs_f64() * 1e3)
}
