//! The timeline of a build, for people and programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use shoal_grid::ring::NodeId;
use shoal_grid::timeline::{critical_path, slots};
use shoal_wire::nix::store_path::StorePath;

use super::service::BuildService;
use super::story::{How, Run, Stage, Told};
use super::traces::Traced;

/// What is told of a build as a whole. All times are in milliseconds; those of its parts count from its beginning.
#[derive(Clone, Debug, Serialize)]
pub struct BuildTrace {
    pub goals: Vec<String>,
    /// Since 1970.
    pub began_unix_ms: u64,
    /// To its end, or to now.
    pub took_ms: u64,
    /// `runs`, `ended` or `cancelled`.
    pub state: &'static str,
    pub derivations: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct DerivationTrace {
    pub drv_path: String,
    /// Its place on the critical path, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical: Option<usize>,
    /// When all that it needs was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<u64>,
    pub runs: Vec<RunTrace>,
}

/// From being placed to the end.
#[derive(Clone, Debug, Serialize)]
pub struct RunTrace {
    pub node: String,
    /// Of the node's runs for this build no two in one slot are at the same time.
    pub slot: u32,
    pub began_ms: u64,
    pub ended_ms: u64,
    /// How it ended, or `runs`.
    pub end: &'static str,
    pub stages: Vec<StageTrace>,
}

#[derive(Clone, Debug, Serialize)]
pub struct StageTrace {
    pub stage: &'static str,
    pub began_ms: u64,
    pub ended_ms: u64,
}

impl BuildService {
    /// The newest build of which the derivation is a goal or a part, or the newest of all. `own` is what people call this
    /// node. Derivations come in the order in which they were placed; those that were not come last.
    pub fn trace(&self, part: Option<&StorePath>, own: &str) -> Option<(BuildTrace, Vec<DerivationTrace>)> {
        let state = self.lock();
        let traced = match part {
            Some(part) => state.traces.find(part)?.clone(),
            None => state.traces.newest().next()?.clone(),
        };
        drop(state);
        let now_ms = self.now_ms();
        let until_ms = traced.ended_ms.unwrap_or(now_ms);
        let build = BuildTrace {
            goals: traced.goals.iter().map(|goal| self.dir.print(goal)).collect(),
            began_unix_ms: self.began_unix_ms.saturating_add(traced.began_ms),
            took_ms: until_ms.saturating_sub(traced.began_ms),
            state: match (traced.ended_ms, traced.cancelled) {
                (None, _) => "runs",
                (Some(_), false) => "ended",
                (Some(_), true) => "cancelled",
            },
            derivations: traced.steps.len(),
        };
        Some((build, self.derivation_traces(&traced, until_ms, own)))
    }

    fn derivation_traces(&self, traced: &Traced, until_ms: u64, own: &str) -> Vec<DerivationTrace> {
        let steps = Arc::clone(&traced.steps);
        let told: Vec<Told> = steps.iter().map(|step| step.story.told()).collect();
        let ended_ms: Vec<Option<u64>> = told.iter().map(Told::ended_ms).collect();
        let deps: Vec<&[u32]> = steps.iter().map(|step| &step.deps[..]).collect();
        let path: BTreeMap<u32, usize> = critical_path(&deps, &ended_ms).into_iter().zip(0..).collect();
        let since = |ms: u64| ms.saturating_sub(traced.began_ms);
        let slots = slots_of(&told, until_ms);
        let mut traces: Vec<(u64, DerivationTrace)> = Vec::new();
        for (number, (step, told)) in (0..).zip(steps.iter().zip(&told)) {
            let ready = step.deps.iter().map(|dep| ended_ms[*dep as usize]).try_fold(0, |last, ms| Some(last.max(ms?)));
            let runs = told.runs.iter().zip(&slots[number as usize]);
            let trace = DerivationTrace {
                drv_path: self.dir.print(&step.drv_path),
                critical: path.get(&number).copied(),
                ready_ms: ready.map(since),
                runs: runs.map(|(run, slot)| self.run_trace(run, *slot, until_ms, own, since)).collect(),
            };
            traces.push((told.runs.front().map_or(u64::MAX, |run| run.began_ms), trace));
        }
        traces.sort_by_key(|(began_ms, _)| *began_ms);
        traces.into_iter().map(|(_, trace)| trace).collect()
    }

    fn run_trace(&self, run: &Run, slot: u32, until_ms: u64, own: &str, since: impl Fn(u64) -> u64) -> RunTrace {
        let (ended_ms, end) = match &run.end {
            None => (until_ms, "runs"),
            Some((ms, How::Built)) => (*ms, "built"),
            Some((ms, How::Found)) => (*ms, "found"),
            Some((ms, How::Failed(_))) => (*ms, "failed"),
            Some((ms, How::OutOfMemory(_))) => (*ms, "out-of-memory"),
            Some((ms, How::Lost(_))) => (*ms, "lost"),
            Some((ms, How::Refused(_))) => (*ms, "refused"),
            Some((ms, How::Cancelled)) => (*ms, "cancelled"),
        };
        let ends = run.stages.iter().skip(1).map(|(_, ms)| *ms).chain([ended_ms]);
        let stages = run.stages.iter().zip(ends).map(|((stage, began_ms), ended_ms)| StageTrace {
            stage: stage_name(*stage),
            began_ms: since(*began_ms),
            ended_ms: since(ended_ms),
        });
        RunTrace {
            node: self.node_name(&run.at, own),
            slot,
            began_ms: since(run.began_ms),
            ended_ms: since(ended_ms),
            end,
            stages: stages.collect(),
        }
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Claim => "claim",
        Stage::Follow(_) => "follow",
        Stage::Offer => "offer",
        Stage::Inputs => "inputs",
        Stage::Build => "build",
        Stage::Store => "store",
        Stage::Copies => "copies",
    }
}

/// Which run of which derivation, and from when to when.
struct Placed {
    number: usize,
    nth: usize,
    span: (u64, u64),
}

/// For each derivation the slot of each of its runs, at its node.
fn slots_of(told: &[Told], until_ms: u64) -> Vec<Vec<u32>> {
    let mut by_node: BTreeMap<NodeId, Vec<Placed>> = BTreeMap::new();
    for (number, told) in told.iter().enumerate() {
        for (nth, run) in told.runs.iter().enumerate() {
            let ended_ms = run.end.as_ref().map_or(until_ms, |(ms, _)| *ms);
            by_node.entry(run.at).or_default().push(Placed { number, nth, span: (run.began_ms, ended_ms) });
        }
    }
    let mut all: Vec<Vec<u32>> = told.iter().map(|told| vec![0; told.runs.len()]).collect();
    for placed in by_node.into_values() {
        let spans: Vec<(u64, u64)> = placed.iter().map(|placed| placed.span).collect();
        for (placed, slot) in placed.iter().zip(slots(&spans)) {
            all[placed.number][placed.nth] = slot;
        }
    }
    all
}
