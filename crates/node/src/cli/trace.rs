//! `shoal trace`: the timeline of a build, for people and for trace viewers.

mod chrome;

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::config::units::show_duration;
use crate::control::{Request, client};

/// What is done for a derivation that was placed, in this order.
const STAGES: [&str; 7] = ["claim", "follow", "offer", "inputs", "build", "store", "copies"];

/// Derivations that were not placed and are named.
const UNPLACED_NAMED_MAX: usize = 20;

#[derive(Args)]
pub struct Trace {
    /// A derivation of the build, an output, or the number of a request that nobody waits for; the newest build without it
    #[arg(value_name = "BUILD")]
    what: Option<String>,
    /// Print a trace for chrome://tracing or Perfetto: a process for each node, a thread for each slot
    #[arg(long, conflicts_with = "json")]
    chrome: bool,
    #[command(flatten)]
    read: ReadArgs,
}

impl Trace {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let (mut build, mut derivations) = (Value::Null, Vec::new());
        client::ask(&config.data_dir, &Request::Trace { what: self.what.clone() }, |mut item| {
            match item["build"].take() {
                Value::Null => derivations.push(item["derivation"].take()),
                told => build = told,
            }
            Ok(())
        })?;
        if self.chrome {
            return Ok(output::json(&chrome::trace(&build, &derivations))?);
        }
        if self.read.json {
            return Ok(output::json(&json!({ "build": build, "derivations": derivations }))?);
        }
        output::line(&heading(&build, &derivations))?;
        output::table(&rows(&derivations))?;
        unplaced(&derivations).map_or(Ok(()), |text| Ok(output::line(&text)?))
    }
}

fn ms(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or(0)
}

/// Without the directory and the hash.
fn short(drv_path: &Value) -> &str {
    let path = drv_path.as_str().unwrap_or_default();
    let base = path.rsplit('/').next().unwrap_or(path);
    base.split_once('-').map_or(base, |(_, name)| name).trim_end_matches(".drv")
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

fn took(ms: u64) -> String {
    show_duration(Duration::from_millis(ms))
}

fn heading(build: &Value, derivations: &[Value]) -> String {
    let goals: Vec<&str> = list(build, "goals").filter_map(Value::as_str).collect();
    let state = match build["state"].as_str() {
        Some("runs") => "runs since",
        Some("cancelled") => "was cancelled after",
        _ => "took",
    };
    let critical = derivations.iter().filter(|derivation| derivation["critical"].is_u64()).count();
    format!(
        "build of {} {state} {}: {} derivations, {critical} of them on the critical path (*)",
        goals.join(" "),
        took(ms(build, "took_ms")),
        build["derivations"]
    )
}

/// A row for each run. Columns of stages have what each took, and none is shown that nothing came to.
fn rows(derivations: &[Value]) -> Vec<Vec<String>> {
    let runs = derivations.iter().flat_map(|derivation| list(derivation, "runs"));
    let told: BTreeSet<&str> =
        runs.flat_map(|run| list(run, "stages")).filter_map(|told| told["stage"].as_str()).collect();
    let stages: Vec<&str> = STAGES.into_iter().filter(|stage| told.contains(stage)).collect();
    let heads = ["", "at", "waited"].into_iter().chain(stages.iter().copied()).chain(["end", "node", "derivation"]);
    let mut rows: Vec<Vec<String>> = vec![heads.map(String::from).collect()];
    for derivation in derivations {
        // It waits from when all inputs are there, and again from the end of a run that was for nothing.
        let mut ready = ms(derivation, "ready_ms");
        for run in list(derivation, "runs") {
            let waited = ms(run, "began_ms").saturating_sub(ready);
            ready = ms(run, "ended_ms");
            rows.push(row(derivation, run, waited, &stages));
        }
    }
    rows
}

/// Those that no run was begun of.
fn unplaced(derivations: &[Value]) -> Option<String> {
    let unplaced: Vec<&str> = derivations
        .iter()
        .filter(|derivation| list(derivation, "runs").next().is_none())
        .map(|derivation| short(&derivation["drv_path"]))
        .collect();
    let more = if unplaced.len() > UNPLACED_NAMED_MAX { ", …" } else { "" };
    let named = unplaced[..unplaced.len().min(UNPLACED_NAMED_MAX)].join(", ");
    (!unplaced.is_empty()).then(|| format!("not placed: {} ({named}{more})", unplaced.len()))
}

fn row(derivation: &Value, run: &Value, waited_ms: u64, stages: &[&str]) -> Vec<String> {
    let mark = if derivation["critical"].is_u64() { "*" } else { "" };
    let mut row = vec![mark.to_owned(), took(ms(run, "began_ms")), took(waited_ms)];
    for stage in stages {
        let of_it = list(run, "stages").filter(|told| told["stage"] == *stage);
        let spans: Vec<u64> = of_it.map(|told| ms(told, "ended_ms").saturating_sub(ms(told, "began_ms"))).collect();
        row.push(if spans.is_empty() { "-".to_owned() } else { took(spans.iter().sum()) });
    }
    row.extend([&run["end"], &run["node"]].map(|cell| cell.as_str().unwrap_or_default().to_owned()));
    row.push(short(&derivation["drv_path"]).to_owned());
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    /// A build on two nodes: `a` runs twice, `b` waits for it, `c` was not placed.
    pub(super) fn told() -> (Value, Vec<Value>) {
        let build = json!({
            "goals": ["/nix/store/00000000000000000000000000000000-b.drv"],
            "began_unix_ms": 1_000_000, "took_ms": 900, "state": "ended", "derivations": 3,
        });
        let stage = |stage: &str, began_ms: u64, ended_ms: u64| json!({ "stage": stage, "began_ms": began_ms, "ended_ms": ended_ms });
        let run = |node: &str, began_ms: u64, ended_ms: u64, end: &str, stages: Value| json!({ "node": node, "slot": 0, "began_ms": began_ms, "ended_ms": ended_ms, "end": end, "stages": stages });
        let lost = run("n1", 0, 200, "lost", json!([stage("claim", 0, 10), stage("offer", 10, 200)]));
        let stages = json!([stage("claim", 300, 310), stage("inputs", 310, 320), stage("build", 320, 600)]);
        let a = json!({
            "drv_path": "/nix/store/00000000000000000000000000000000-a.drv", "critical": 0, "ready_ms": 0,
            "runs": [lost, run("n0", 300, 600, "built", stages)],
        });
        let stages = json!([
            stage("claim", 650, 660),
            stage("offer", 660, 670),
            stage("build", 670, 880),
            stage("copies", 880, 900)
        ]);
        let b = json!({
            "drv_path": "/nix/store/00000000000000000000000000000000-b.drv", "critical": 1, "ready_ms": 600,
            "runs": [run("n1", 650, 900, "built", stages)],
        });
        let c = json!({ "drv_path": "/nix/store/00000000000000000000000000000000-c.drv", "ready_ms": 0, "runs": [] });
        (build, vec![a, b, c])
    }

    #[test]
    fn people_read_a_row_for_each_run() {
        let (build, derivations) = told();
        let text: Vec<String> = rows(&derivations).iter().map(|row| row.join("|")).collect();
        expect![[r#"
            build of /nix/store/00000000000000000000000000000000-b.drv took 900ms: 3 derivations, 2 of them on the critical path (*)
            |at|waited|claim|offer|inputs|build|copies|end|node|derivation
            *|0s|0s|10ms|190ms|-|-|-|lost|n1|a
            *|300ms|100ms|10ms|-|10ms|280ms|-|built|n0|a
            *|650ms|50ms|10ms|10ms|-|210ms|20ms|built|n1|b
            not placed: 1 (c)"#]]
        .assert_eq(&format!(
            "{}\n{}\n{}",
            heading(&build, &derivations),
            text.join("\n"),
            unplaced(&derivations).unwrap_or_default()
        ));
    }
}
