//! Graphs of derivations that do nothing, so that all a build costs is what it costs beside the building.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use shoal_tests::random::Random;
use shoal_tests::{Cmd, Nix, place};

/// In a random graph each derivation needs at most so many of those before it, none further away than [`REACH`].
const INPUTS_MAX: u64 = 3;
const REACH: u64 = 100;

#[derive(Clone)]
pub struct Graph {
    /// As `graphs.nix` calls it.
    pub shape: &'static str,
    pub nodes: usize,
    edges: Option<PathBuf>,
}

impl Graph {
    pub fn new(shape: &'static str, nodes: usize) -> Graph {
        Graph { shape, nodes, edges: None }
    }

    /// A random one, the same for one seed.
    pub fn random(nodes: usize, seed: u64) -> Result<Graph> {
        let mut random = Random::of(seed);
        let inputs = (0..nodes as u64).map(|number| {
            let count = if number == 0 { 0 } else { random.below(INPUTS_MAX + 1) };
            let inputs: BTreeSet<u64> = (0..count).map(|_| number - 1 - random.below(REACH.min(number))).collect();
            inputs.into_iter().collect()
        });
        Graph::dag(&format!("random-{nodes}-{seed}"), inputs.collect())
    }

    /// The first so many derivations of a real package set. `None` where that is not beside the repository.
    pub fn real(nodes: usize) -> Result<Option<Graph>> {
        let Some(file) = place::shared().map(|shared| shared.join("corpus/dag-9k.tsv.gz")).filter(|file| file.exists())
        else {
            return Ok(None);
        };
        let mut text = String::new();
        let file = fs::File::open(&file).with_context(|| file.display().to_string())?;
        flate2::read::GzDecoder::new(file).read_to_string(&mut text)?;
        let lines = text.lines().filter(|line| !line.starts_with('#')).take(nodes);
        let inputs = lines.map(|line| {
            // id, name, system, kind, outputs, ids of inputs, which come before it.
            let ids = line.split('\t').nth(5).context("a line without inputs")?.split_whitespace();
            ids.map(|id| id.parse::<u64>().context("an id")).collect()
        });
        let inputs = inputs.collect::<Result<Vec<Vec<u64>>>>()?;
        Graph::dag(&format!("real-{}", inputs.len()), inputs).map(Some)
    }

    fn dag(name: &str, inputs: Vec<Vec<u64>>) -> Result<Graph> {
        let needed: BTreeSet<u64> = inputs.iter().flatten().copied().collect();
        let goals: Vec<u64> = (0..inputs.len() as u64).filter(|number| !needed.contains(number)).collect();
        let dir = place::kept().join("bench");
        fs::create_dir_all(&dir)?;
        let edges = dir.join(format!("{name}.json"));
        fs::write(&edges, json!({ "inputs": inputs, "goals": goals }).to_string())?;
        Ok(Graph { shape: "dag", nodes: inputs.len(), edges: Some(edges) })
    }

    /// A graph that nobody has built when nobody had the salt.
    pub fn args(&self, nix: &Nix, salt: &str) -> Vec<String> {
        let file = place::repository().join("benches/graphs.nix");
        let mut args = vec![file.display().to_string()];
        let mut name = |kind: &str, name: &str, value: String| args.extend([kind.into(), name.into(), value]);
        name("--argstr", "shape", self.shape.into());
        name("--argstr", "salt", salt.into());
        name("--arg", "nodes", self.nodes.to_string());
        name("--arg", "busybox", nix.busybox().display().to_string());
        if let Some(edges) = &self.edges {
            name("--arg", "edges", edges.display().to_string());
        }
        args
    }

    /// `cmd` with this graph to build.
    pub fn on(&self, cmd: Cmd, nix: &Nix, salt: &str) -> Cmd {
        cmd.args(self.args(nix, salt))
    }

    /// Builds it; wall time in ms.
    pub fn build(&self, cmd: Cmd, nix: &Nix, salt: &str, patience: Duration) -> Result<f64> {
        let finished = self.on(cmd, nix, salt).patience(patience).run();
        if !finished.status.success() {
            bail!("{finished}");
        }
        Ok(finished.took.as_secs_f64() * 1e3)
    }
}
