//! What became of one derivation: where it was placed and why there, what happened when, and how it ended.
//!
//! Invariants:
//! - all but the newest run have ended;
//! - of a derivation that is placed again and again the last [`RUNS_MAX`] runs are kept, and of a run the first
//!   [`STAGES_MAX`] stages: there are no more unless nodes come and go without end;
//! - times are the schedule's, in milliseconds, and never decrease.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_grid::placement::Verdict;
use shoal_grid::ring::NodeId;
use shoal_grid::schedule::End;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use super::feed::JobId;

/// Runs of one derivation that are kept: more than it is tried after losses.
const RUNS_MAX: usize = 8;
const STAGES_MAX: usize = 16;
/// Bytes of a text about an end: the reason, and what each of some nodes says.
const TEXT_LEN_MAX: usize = 2 << 10;

/// What is being done for a derivation that was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The mesh is asked for the right to build it.
    Claim,
    /// This node has that right, and another one builds it.
    Follow(NodeId),
    /// The executor is asked.
    Offer,
    /// The executor gets what it lacks.
    Inputs,
    Build,
    /// Outputs are read into the store.
    Store,
    /// Outputs are copied to other nodes.
    Copies,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    Built,
    /// The outputs were there.
    Found,
    Failed(String),
    /// For want of memory.
    OutOfMemory(String),
    /// It says nothing of the derivation.
    Lost(String),
    Refused(String),
    Cancelled,
}

impl How {
    /// What is remembered of an end.
    pub fn of(end: &End, result: &BuildResult, was_killed: bool) -> How {
        let text = || String::from_utf8_lossy(&result.error_msg).into_owned();
        match end {
            End::Success { .. } if result.status == BuildStatus::AlreadyValid => How::Found,
            End::Success { .. } => How::Built,
            End::Refused { text, .. } => How::Refused(text.clone()),
            _ if was_killed => How::Cancelled,
            End::OutOfMemory { .. } => How::OutOfMemory(text()),
            End::Lost => How::Lost(text()),
            End::Failed => How::Failed(text()),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Run {
    number: JobId,
    pub at: NodeId,
    /// How the executors stood when it was placed.
    pub why: Vec<(NodeId, Verdict)>,
    pub began_ms: u64,
    /// With the time at which each began.
    pub stages: Vec<(Stage, u64)>,
    pub end: Option<(u64, How)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub runs: VecDeque<Run>,
    /// Earlier ones that are not kept.
    pub dropped: usize,
    /// When and why it failed without being placed.
    pub unplaced: Option<(u64, String)>,
}

impl Told {
    pub fn last(&self) -> Option<&Run> {
        self.runs.back()
    }

    /// When it was done with, for whatever reason.
    pub fn ended_ms(&self) -> Option<u64> {
        let unplaced = self.unplaced.as_ref().map(|(ms, _)| *ms);
        unplaced.or_else(|| self.last().and_then(|run| run.end.as_ref()).map(|(ms, _)| *ms))
    }
}

/// Shared by all who want to know. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Story(Arc<Mutex<Told>>);

impl Story {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn told(&self) -> Told {
        self.lock().clone()
    }

    /// A run begins. One that has not ended is lost.
    pub fn begin(&self, number: JobId, at: NodeId, why: Vec<(NodeId, Verdict)>, now_ms: u64) {
        let mut told = self.lock();
        if let Some(before) = told.runs.back_mut().filter(|run| run.end.is_none()) {
            before.end = Some((now_ms, How::Lost("the node is gone".into())));
        }
        if told.runs.len() >= RUNS_MAX {
            told.runs.pop_front();
            told.dropped += 1;
        }
        told.runs.push_back(Run { number, at, why, began_ms: now_ms, stages: Vec::new(), end: None });
    }

    /// The run of this number comes to something else. Of a run that has ended nothing is heard any more.
    pub fn stage(&self, number: JobId, stage: Stage, now_ms: u64) {
        let mut told = self.lock();
        let Some(run) = told.runs.back_mut().filter(|run| run.number == number && run.end.is_none()) else { return };
        let is_news = run.stages.last().is_none_or(|(last, _)| *last != stage);
        if is_news && run.stages.len() < STAGES_MAX {
            run.stages.push((stage, now_ms));
        }
    }

    /// A run that was given up may still succeed.
    pub fn end(&self, number: JobId, how: How, now_ms: u64) {
        let mut told = self.lock();
        let Some(run) = told.runs.iter_mut().find(|run| run.number == number) else { return };
        if run.end.is_none() || how == How::Built {
            run.end = Some((now_ms, cut(how)));
        }
    }

    /// How long a stage of the run of this number took, which has come to another since, or to `now_ms`.
    pub fn took_ms(&self, number: JobId, stage: Stage, now_ms: u64) -> Option<u64> {
        let told = self.lock();
        let stages = &told.runs.iter().find(|run| run.number == number)?.stages;
        let at = stages.iter().position(|(other, _)| *other == stage)?;
        let until_ms = stages.get(at + 1).map_or(now_ms, |(_, ms)| *ms);
        Some(until_ms.saturating_sub(stages[at].1))
    }

    pub fn fail_unplaced(&self, text: &str, now_ms: u64) {
        self.lock().unplaced = Some((now_ms, cut_text(text.to_owned())));
    }
}

fn cut(how: How) -> How {
    match how {
        How::Failed(text) => How::Failed(cut_text(text)),
        How::OutOfMemory(text) => How::OutOfMemory(cut_text(text)),
        How::Lost(text) => How::Lost(cut_text(text)),
        How::Refused(text) => How::Refused(cut_text(text)),
        How::Built | How::Found | How::Cancelled => how,
    }
}

fn cut_text(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_LEN_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: NodeId = [1; 32];

    #[test]
    fn a_run_ends_once_and_the_next_one_ends_the_one_before() {
        let story = Story::default();
        story.begin(1, AT, Vec::new(), 10);
        story.stage(1, Stage::Claim, 11);
        story.stage(1, Stage::Claim, 12);
        story.stage(7, Stage::Build, 12);
        story.begin(2, AT, Vec::new(), 20);
        story.stage(1, Stage::Build, 21);
        story.end(1, How::Failed("too late".into()), 22);
        story.end(2, How::Cancelled, 30);
        story.stage(2, Stage::Build, 31);
        let told = story.told();
        assert_eq!(told.runs[0].stages, [(Stage::Claim, 11)]);
        assert_eq!(told.runs[0].end, Some((20, How::Lost("the node is gone".into()))));
        assert_eq!((told.runs[1].stages.len(), told.ended_ms()), (0, Some(30)));
        story.end(1, How::Built, 33);
        assert_eq!(story.told().runs[0].end, Some((33, How::Built)), "given up, and built all the same");
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let story = Story::default();
        for number in 0..100 {
            story.begin(number, AT, Vec::new(), number);
            (0..100).for_each(|n| story.stage(number, if n % 2 == 0 { Stage::Claim } else { Stage::Follow(AT) }, n));
            story.end(number, How::Lost("é".repeat(TEXT_LEN_MAX)), number);
        }
        let told = story.told();
        assert_eq!((told.runs.len(), told.dropped), (RUNS_MAX, 100 - RUNS_MAX));
        assert!(told.runs.iter().all(|run| run.stages.len() == STAGES_MAX));
        assert!(matches!(&told.runs[0].end, Some((_, How::Lost(text))) if text.len() <= TEXT_LEN_MAX));
    }
}
