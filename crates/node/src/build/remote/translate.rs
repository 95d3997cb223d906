//! Between what a node tells its clients of builds and what nodes tell each other of them.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_store::Store;
use shoal_wire::mesh::builds::{
    BuildFrame, BuiltOutput, LINES_LEN_MAX, LINES_MAX, Mode, NAME_LEN_MAX, Outcome, Settings, TEXT_LEN_MAX,
};
use shoal_wire::nix::worker::ops::BuildMode;
use shoal_wire::nix::worker::{BuildResult, BuildStatus};

use crate::build::feed::{BuildEvent, JobId};
use crate::build::request::BuildOptions;

pub fn settings(options: &BuildOptions) -> Settings {
    Settings {
        keep_failed: options.keep_failed,
        timeout_s: options.timeout.map(|timeout| timeout.as_secs()),
        max_silent_s: options.max_silent.map(|silent| silent.as_secs()),
        max_log_bytes: options.max_log_bytes,
        cores: options.cores,
    }
}

pub fn options(settings: &Settings) -> BuildOptions {
    BuildOptions {
        keep_going: None,
        keep_failed: settings.keep_failed,
        timeout: settings.timeout_s.map(Duration::from_secs),
        max_silent: settings.max_silent_s.map(Duration::from_secs),
        max_log_bytes: settings.max_log_bytes,
        cores: settings.cores,
        substitute: None,
        // Who asks sees to it.
        quorum: None,
        is_detached: false,
    }
}

pub fn mode(mode: BuildMode) -> Mode {
    match mode {
        BuildMode::Normal => Mode::Normal,
        BuildMode::Repair => Mode::Repair,
        BuildMode::Check => Mode::Check,
    }
}

pub fn build_mode(mode: Mode) -> BuildMode {
    match mode {
        Mode::Normal => BuildMode::Normal,
        Mode::Repair => BuildMode::Repair,
        Mode::Check => BuildMode::Check,
    }
}

/// What a frame says to this node's clients of a job; nothing for those that are about the request itself. `from` is
/// what people call the node that said so.
pub fn events(frame: BuildFrame, job: JobId, from: &str) -> Vec<BuildEvent> {
    match frame {
        BuildFrame::Phase(phase) => vec![BuildEvent::Phase { job, phase }],
        BuildFrame::Lines(lines) => lines.into_iter().map(|line| BuildEvent::Line { job, line }).collect(),
        BuildFrame::Said(text) => vec![BuildEvent::Said(text)],
        BuildFrame::Message(text) => vec![BuildEvent::Message(format!("{from}: {text}"))],
        BuildFrame::Refused { .. } | BuildFrame::Accepted | BuildFrame::Started { .. } => Vec::new(),
        BuildFrame::Alive | BuildFrame::Built | BuildFrame::Ended(_) | BuildFrame::Estimates { .. } => Vec::new(),
    }
}

/// What is said to another node of an event; lines are gathered by [`Batch`].
pub fn frame(event: BuildEvent) -> Option<BuildFrame> {
    match event {
        BuildEvent::Started { machine, .. } => {
            Some(BuildFrame::Started { at: machine.map(|name| cut(name, NAME_LEN_MAX)) })
        }
        BuildEvent::Phase { phase, .. } => Some(BuildFrame::Phase(cut(phase, TEXT_LEN_MAX))),
        BuildEvent::Line { line, .. } => Some(BuildFrame::Lines(vec![line])),
        BuildEvent::Said(text) => Some(BuildFrame::Said(cut(text, TEXT_LEN_MAX))),
        BuildEvent::Message(text) => Some(BuildFrame::Message(cut(text, TEXT_LEN_MAX))),
        BuildEvent::Finished { .. } | BuildEvent::Progress { .. } => None,
    }
}

fn cut(mut text: String, len_max: usize) -> String {
    if text.len() > len_max {
        let end = (0..=len_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Lines that travel together.
#[derive(Debug, Default)]
pub struct Batch {
    lines: Vec<Vec<u8>>,
    len: usize,
}

impl Batch {
    /// Takes a line; gives those before it when there is no room for it beside them.
    pub fn push(&mut self, line: Vec<u8>) -> Option<BuildFrame> {
        let is_full = self.lines.len() >= LINES_MAX || self.len + line.len() > LINES_LEN_MAX;
        let full = if is_full { self.take() } else { None };
        self.len += line.len();
        self.lines.push(line);
        full
    }

    pub fn take(&mut self) -> Option<BuildFrame> {
        self.len = 0;
        let lines = std::mem::take(&mut self.lines);
        (!lines.is_empty()).then_some(BuildFrame::Lines(lines))
    }
}

/// How a build ended, for another node.
pub fn outcome(store: &Store, result: &BuildResult) -> Outcome {
    let facts = |path| store.path_info(path).ok().flatten().map_or((0, [0; 32]), |info| (info.nar_size, info.nar_hash));
    let outputs = result.built_outputs.iter().map(|(name, built)| {
        let (nar_size, nar_hash) = facts(&built.out_path);
        (name.clone(), BuiltOutput { path: built.out_path.clone(), nar_size, nar_hash })
    });
    let mut error = result.error_msg.clone();
    error.truncate(TEXT_LEN_MAX);
    Outcome {
        status: result.status as u8,
        error,
        times_built: result.times_built,
        is_non_deterministic: result.is_non_deterministic,
        start_time: result.start_time,
        stop_time: result.stop_time,
        cpu_user: result.cpu_user,
        cpu_system: result.cpu_system,
        outputs: outputs.collect::<BTreeMap<_, _>>(),
        at: None,
        memory_mib: 0,
        out_of_memory: false,
        given_up: false,
    }
}

/// The result without its outputs. `None` where the status is none that is known.
pub fn result(outcome: &Outcome) -> Option<BuildResult> {
    let mut result = BuildResult::new(BuildStatus::from_number(outcome.status.into())?, outcome.error.clone());
    result.times_built = outcome.times_built;
    result.is_non_deterministic = outcome.is_non_deterministic;
    result.start_time = outcome.start_time;
    result.stop_time = outcome.stop_time;
    result.cpu_user = outcome.cpu_user;
    result.cpu_system = outcome.cpu_system;
    Some(result)
}

#[cfg(test)]
mod tests {
    use shoal_wire::mesh::format::{decode, encode};

    use super::*;

    fn lines(frame: Option<BuildFrame>) -> usize {
        match frame {
            Some(frame) => {
                assert_eq!(decode(&encode(&frame)), Ok(frame.clone()));
                let BuildFrame::Lines(lines) = frame else { panic!("{frame:?}") };
                lines.len()
            }
            None => 0,
        }
    }

    #[test]
    fn lines_travel_together_as_far_as_a_frame_takes_them() {
        let mut batch = Batch::default();
        assert_eq!(lines(batch.take()), 0);
        let long = vec![b'x'; LINES_LEN_MAX / 2];
        assert_eq!(lines(batch.push(long.clone())), 0);
        assert_eq!(lines(batch.push(long)), 0);
        assert_eq!(lines(batch.push(vec![b'x'; TEXT_LEN_MAX])), 2);
        assert_eq!(lines(batch.push(Vec::new())), 1, "one alone may be longer");
        let full = (1..=LINES_MAX).map(|_| lines(batch.push(Vec::new()))).sum::<usize>();
        assert_eq!((full, lines(batch.take())), (LINES_MAX, 1));
    }

    #[test]
    fn texts_that_are_too_long_are_cut_and_still_text() {
        let text = "é".repeat(TEXT_LEN_MAX);
        let Some(frame) = frame(BuildEvent::Said(text)) else { panic!("nothing is said") };
        assert_eq!(decode(&encode(&frame)), Ok(frame));
    }

    #[test]
    fn a_result_comes_back_as_it_was_but_for_its_outputs() {
        let mut was = BuildResult::new(BuildStatus::OutputRejected, "no");
        (was.times_built, was.start_time, was.stop_time, was.cpu_user) = (1, 2, 3, Some(4));
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), shoal_store::Options::default()).unwrap();
        assert_eq!(result(&outcome(&store, &was)), Some(was));
        let unknown = Outcome { status: 99, ..outcome(&store, &BuildResult::new(BuildStatus::Built, "")) };
        assert_eq!(result(&unknown), None);
    }
}
