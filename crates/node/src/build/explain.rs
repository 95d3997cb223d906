//! Why a derivation waits, or went where it went, for people.

use serde::Serialize;
use shoal_grid::placement::Verdict;
use shoal_grid::ring::NodeId;
use shoal_grid::schedule::Explanation;
use shoal_wire::nix::store_path::StorePath;

use super::service::{BuildService, HERE, State};
use super::story::{How, Run, Stage, Story, Told};

/// What is known of one derivation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Explained {
    pub drv_path: String,
    /// One word for programs.
    pub state: &'static str,
    /// A sentence for people.
    pub text: String,
    /// Since when, in seconds.
    pub seconds: u64,
    /// Some of the derivations that it waits for, and what those are at.
    pub inputs: Vec<Input>,
    /// What each node is to it: now where it waits for a place, else when it was placed.
    pub nodes: Vec<NodeVerdict>,
    /// Where it was before, and how that ended.
    pub earlier: Vec<Earlier>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Input {
    pub drv_path: String,
    pub text: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct NodeVerdict {
    pub node: String,
    /// One word for programs.
    pub verdict: &'static str,
    pub text: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Earlier {
    pub node: String,
    pub seconds: u64,
    pub end: String,
}

impl BuildService {
    /// What is known here of a derivation, if anything. `own` is what people call this node.
    pub fn explain(&self, drv_path: &StorePath, own: &str) -> Option<Explained> {
        let state = self.lock();
        let now_ms = self.now_ms();
        let mut explained = match state.schedule.explain(drv_path, now_ms) {
            Some(explanation) => self.explain_open(&state, drv_path, own, explanation, now_ms),
            None => match state.guests.story(drv_path) {
                Some(story) => self.explain_guest(story, own, now_ms),
                None => {
                    let story = state.traces.find(drv_path)?.story(drv_path)?.clone();
                    drop(state);
                    self.explain_ended(&story.told(), own, now_ms)
                }
            },
        };
        explained.drv_path = self.dir.print(drv_path);
        Some(explained)
    }

    /// Derivations that wait or run, those that run first; of the newest build of which `part` is one where it is given,
    /// and all of that build's goals where none is left.
    pub fn unfinished(&self, part: Option<&StorePath>) -> Option<Vec<StorePath>> {
        let state = self.lock();
        let mut open: Vec<&StorePath> = match part {
            None => state.jobs.keys().collect(),
            Some(part) => {
                let steps = &state.traces.find(part)?.steps;
                steps.iter().map(|step| &step.drv_path).filter(|drv_path| state.jobs.contains_key(*drv_path)).collect()
            }
        };
        open.sort_by_key(|drv_path| (state.schedule.runs_at(drv_path).is_none(), *drv_path));
        let open: Vec<StorePath> = open.into_iter().cloned().collect();
        match part {
            Some(part) if open.is_empty() => Some(state.traces.find(part)?.goals.clone()),
            _ => Some(open),
        }
    }

    pub(super) fn node_name(&self, node: &NodeId, own: &str) -> String {
        match self.grid() {
            _ if *node == HERE => own.to_owned(),
            Some(grid) => match grid.neighbours.name(node) {
                name if name.is_empty() => "a node that is gone".into(),
                name => name,
            },
            None => "a node that is gone".into(),
        }
    }

    fn explain_open(
        &self,
        state: &State,
        drv_path: &StorePath,
        own: &str,
        explanation: Explanation<StorePath, NodeId>,
        now_ms: u64,
    ) -> Explained {
        let told = state.jobs.get(drv_path).map(|job| job.story.told()).unwrap_or_default();
        let earlier = told.runs.iter().filter(|run| run.end.is_some());
        let mut explained = Explained { earlier: self.earlier(earlier, own), ..Explained::default() };
        match explanation {
            Explanation::Inputs { named, count } => {
                explained.state = "waits-for-inputs";
                explained.text = match count {
                    1 => "waits for an input".to_owned(),
                    count => format!("waits for {count} inputs"),
                };
                explained.inputs = named.iter().map(|input| self.input(state, input, own)).collect();
            }
            Explanation::Place { before, executors } => {
                explained.state = "waits-for-place";
                explained.text = match before {
                    0 => "is ready and waits for a place".to_owned(),
                    1 => "is ready and waits for a place; another one that asks for the same comes first".to_owned(),
                    before => {
                        format!("is ready and waits for a place; {before} others that ask for the same come first")
                    }
                };
                explained.nodes = self.verdicts(&executors, own);
            }
            Explanation::Runs { at, why } => {
                explained.nodes = self.verdicts(&why, own);
                if let Some(run) = told.last() {
                    self.tell_stage(&mut explained, run, &self.node_name(&at, own), own, now_ms);
                }
            }
            Explanation::Stops { at } => {
                explained.state = "stops";
                explained.text = format!("was told to stop on {}, and has not yet", self.node_name(&at, own));
            }
        }
        explained
    }

    fn explain_guest(&self, story: &Story, own: &str, now_ms: u64) -> Explained {
        let mut explained = Explained::default();
        if let Some(run) = story.told().last() {
            self.tell_stage(&mut explained, run, own, own, now_ms);
            explained.text += "; another node asked for it, and says there why";
        }
        explained
    }

    fn explain_ended(&self, told: &Told, own: &str, now_ms: u64) -> Explained {
        let earlier = told.runs.iter().rev().skip(1).rev();
        let mut explained = Explained { earlier: self.earlier(earlier, own), ..Explained::default() };
        explained.seconds = told.ended_ms().map_or(0, |ended_ms| seconds(ended_ms, now_ms));
        if let Some((_, text)) = &told.unplaced {
            (explained.state, explained.text) = ("failed", format!("failed: {text}"));
            return explained;
        }
        let Some(run) = told.last() else {
            (explained.state, explained.text) =
                ("not-built", "was not built: what it needs failed, or nobody wanted it any more".into());
            return explained;
        };
        explained.nodes = self.verdicts(&run.why, own);
        let at = self.node_name(&run.at, own);
        let took = run.end.as_ref().map_or(0, |(end_ms, _)| seconds(run.began_ms, *end_ms));
        (explained.state, explained.text) = match run.end.as_ref().map(|(_, how)| how) {
            Some(How::Built) => match followed(run) {
                Some(by) => {
                    ("built", format!("was built for another client by {} in {took} s", self.node_name(&by, own)))
                }
                None => ("built", format!("was built on {at} in {took} s")),
            },
            Some(How::Found) => ("found", "was not built: its outputs were there".to_owned()),
            Some(How::Failed(text)) => ("failed", format!("failed on {at} after {took} s: {text}")),
            Some(How::OutOfMemory(text)) => ("out-of-memory", format!("ran out of memory on {at}: {text}")),
            Some(How::Lost(text)) => ("lost", format!("was lost on {at} after {took} s: {text}")),
            Some(How::Refused(text)) => ("refused", format!("was refused by {at}: {text}")),
            Some(How::Cancelled) => ("cancelled", format!("was cancelled on {at} after {took} s")),
            None => ("cancelled", format!("was given up on {at}")),
        };
        explained
    }

    /// What a derivation that was placed is at.
    fn tell_stage(&self, explained: &mut Explained, run: &Run, at: &str, own: &str, now_ms: u64) {
        let (stage, since_ms) = run.stages.last().copied().unwrap_or((Stage::Claim, run.began_ms));
        explained.seconds = seconds(since_ms, now_ms);
        (explained.state, explained.text) = match stage {
            Stage::Claim => ("claims", format!("is placed on {at}; the mesh is asked who may build it")),
            Stage::Follow(by) => {
                let by = self.node_name(&by, own);
                ("follows", format!("is built by {by} for another client, which is waited for"))
            }
            Stage::Offer => ("offered", format!("was offered to {at}, which has not answered yet")),
            Stage::Inputs => ("fetches-inputs", format!("is placed on {at}, which gets its inputs")),
            Stage::Build => ("builds", format!("is built on {at}")),
            Stage::Copies => ("copies", format!("was built on {at}; the outputs are copied to other nodes")),
            Stage::Store => ("stores", format!("was built on {at}, which stores the outputs")),
        };
        explained.text += &format!(", since {} s", explained.seconds);
    }

    fn input(&self, state: &State, drv_path: &StorePath, own: &str) -> Input {
        let text = match state.schedule.runs_at(drv_path) {
            Some(at) => format!("placed on {}", self.node_name(at, own)),
            None => match state.schedule.waits_for(drv_path).len() {
                0 => "ready, waits for a place".to_owned(),
                1 => "waits for an input itself".to_owned(),
                count => format!("waits for {count} inputs itself"),
            },
        };
        Input { drv_path: self.dir.print(drv_path), text }
    }

    /// Those that may take it, the best first, then the others by name.
    fn verdicts(&self, verdicts: &[(NodeId, Verdict)], own: &str) -> Vec<NodeVerdict> {
        let mut named: Vec<(String, &Verdict)> =
            verdicts.iter().map(|(node, verdict)| (self.node_name(node, own), verdict)).collect();
        named.sort_by_cached_key(|(name, verdict)| match verdict {
            Verdict::Ranked { place, .. } => (*place, name.clone()),
            Verdict::Kept(_) => (u32::MAX, name.clone()),
        });
        let told = |(node, verdict): (String, &Verdict)| NodeVerdict {
            node,
            verdict: verdict.kind(),
            text: verdict.to_string(),
        };
        named.into_iter().map(told).collect()
    }

    fn earlier<'a>(&self, ended: impl Iterator<Item = &'a Run>, own: &str) -> Vec<Earlier> {
        let earlier = ended.filter_map(|run| {
            let (end_ms, how) = run.end.as_ref()?;
            let end = match how {
                How::Built | How::Found => "built".to_owned(),
                How::Failed(text) => format!("failed: {text}"),
                How::OutOfMemory(text) => format!("ran out of memory: {text}"),
                How::Lost(text) => format!("lost: {text}"),
                How::Refused(text) => format!("refused: {text}"),
                How::Cancelled => "cancelled".to_owned(),
            };
            Some(Earlier { node: self.node_name(&run.at, own), seconds: seconds(run.began_ms, *end_ms), end })
        });
        earlier.collect()
    }
}

/// Who built it, where another node had the claim.
fn followed(run: &Run) -> Option<NodeId> {
    match run.stages.last() {
        Some((Stage::Follow(by), _)) => Some(*by),
        _ => None,
    }
}

fn seconds(from_ms: u64, to_ms: u64) -> u64 {
    to_ms.saturating_sub(from_ms) / 1_000
}
