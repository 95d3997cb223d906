//! What a running build has said so far, for clients that join it.

use std::collections::VecDeque;

use super::feed::{BuildEvent, JobId};

/// Bytes of lines kept of a running build: some thousand lines, which is more than a person reads.
const PAST_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Default)]
pub struct Past {
    started: Option<BuildEvent>,
    phase: Option<String>,
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    lines_dropped: u64,
}

impl Past {
    pub fn note(&mut self, event: &BuildEvent) {
        match event {
            BuildEvent::Started { .. } => self.started = Some(event.clone()),
            BuildEvent::Phase { phase, .. } => self.phase = Some(phase.clone()),
            BuildEvent::Line { line, .. } => {
                self.bytes += line.len();
                self.lines.push_back(line.clone());
                while self.bytes > PAST_BYTES_MAX {
                    let Some(line) = self.lines.pop_front() else { return };
                    self.bytes -= line.len();
                    self.lines_dropped += 1;
                }
            }
            _ => {}
        }
    }

    /// The build's start, its last lines, and the phase that it is in. Nothing where it has not been announced yet: that
    /// is still to come.
    pub fn events(&self, job: JobId) -> Vec<BuildEvent> {
        let Some(started) = &self.started else { return Vec::new() };
        let dropped = (self.lines_dropped > 0).then(|| {
            format!("[{} lines before you joined left out: the log has them]", self.lines_dropped).into_bytes()
        });
        let lines = dropped.into_iter().chain(self.lines.iter().cloned()).map(|line| BuildEvent::Line { job, line });
        let phase = self.phase.clone().map(|phase| BuildEvent::Phase { job, phase });
        std::iter::once(started.clone()).chain(lines).chain(phase).collect()
    }
}

#[cfg(test)]
mod tests {
    use shoal_wire::nix::store_path::StorePath;

    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_the_others_counted() {
        let mut past = Past::default();
        let line = |text: &str| BuildEvent::Line { job: 1, line: text.into() };
        assert_eq!(past.events(1), []);
        let drv_path = StorePath::from_base_name("00000000000000000000000000000000-x.drv").unwrap();
        let started = BuildEvent::Started { job: 1, drv_path, machine: None };
        past.note(&started);
        past.note(&line("first"));
        let phase = BuildEvent::Phase { job: 1, phase: "buildPhase".into() };
        past.note(&phase);
        past.note(&line("second"));
        assert_eq!(past.events(1), [started.clone(), line("first"), line("second"), phase.clone()]);
        let long = "x".repeat(PAST_BYTES_MAX - 6);
        past.note(&line(&long));
        let note = line("[1 lines before you joined left out: the log has them]");
        assert_eq!(past.events(1), [started, note, line("second"), line(&long), phase]);
    }
}
