//! What derivations took before, here and at other nodes, on disk: the estimates that the schedule weighs graphs with.
//!
//! Written now and then; losing the latest entries costs nothing but a worse order.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use shoal_grid::estimates::{Estimate, Estimates};
use shoal_grid::random::scramble;
use shoal_wire::mesh::builds::{BuildFrame, ESTIMATES_MAX, Took};

/// Changes between two writes to disk.
const CHANGES_PER_SAVE: usize = 64;

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    system: String,
    duration_ms: u64,
    memory_mib: u64,
    built_s: u64,
    /// Where this node saw one built: what that took, and when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen: Option<(u64, u64, u64)>,
}

#[derive(Default)]
struct State {
    estimates: Estimates,
    unsaved: usize,
}

pub struct History {
    file: PathBuf,
    state: Mutex<State>,
}

impl History {
    pub fn open(data_dir: &Path) -> History {
        let file = data_dir.join("history.json");
        let read: Option<Vec<Entry>> = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut estimates = Estimates::default();
        for Entry { name, system, duration_ms, memory_mib, built_s, seen } in read.unwrap_or_default() {
            let seen = seen.map(|(duration_ms, memory_mib, built_s)| Estimate { built_s, duration_ms, memory_mib });
            estimates.restore(&name, &system, Estimate { built_s, duration_ms, memory_mib }, seen);
        }
        History { file, state: Mutex::new(State { estimates, unsaved: 0 }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `drv_name` is a derivation's name, with or without `.drv`.
    pub fn estimate(&self, drv_name: &str, system: &str) -> Estimate {
        self.lock().estimates.get(drv_name, system)
    }

    /// One was built now. `memory_mib` is its peak, 0 where that was not measured.
    pub fn record(&self, drv_name: &str, system: &str, took: Duration, memory_mib: u64) {
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let mut state = self.lock();
        state.estimates.record(drv_name, system, Estimate { built_s: now_s(), duration_ms, memory_mib });
        self.changed(&mut state);
    }

    /// What is asked of a node that knows so many estimates, as far as is known.
    pub fn digest(&self, known: usize) -> Vec<u32> {
        self.lock().estimates.digest(known)
    }

    /// What is answered to who has this digest.
    pub fn answer(&self, digest: &[u32]) -> BuildFrame {
        let state = self.lock();
        let took = |(name, system, estimate): (&str, &str, Estimate)| {
            let Estimate { built_s, duration_ms, memory_mib } = estimate;
            Took { name: name.to_owned(), system: system.to_owned(), built_s, duration_ms, memory_mib }
        };
        let from =
            scramble(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64));
        let rows = state.estimates.differing(digest, from, ESTIMATES_MAX).into_iter().map(took).collect();
        BuildFrame::Estimates { known: u32::try_from(state.estimates.len()).unwrap_or(u32::MAX), rows }
    }

    /// Takes what another node knows. Whether any of it is new.
    pub fn merge(&self, rows: &[Took]) -> bool {
        let (mut state, mut is_any_new) = (self.lock(), false);
        for Took { name, system, built_s, duration_ms, memory_mib } in rows {
            let (built_s, duration_ms, memory_mib) = (*built_s, *duration_ms, *memory_mib);
            is_any_new |= state.estimates.merge(name, system, Estimate { built_s, duration_ms, memory_mib }, now_s());
        }
        if is_any_new {
            self.changed(&mut state);
        }
        is_any_new
    }

    /// Writes to disk what is not there yet.
    pub fn keep(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.unsaved) > 0 {
            self.save(&state.estimates);
        }
    }

    fn changed(&self, state: &mut State) {
        state.unsaved += 1;
        if state.unsaved >= CHANGES_PER_SAVE {
            state.unsaved = 0;
            self.save(&state.estimates);
        }
    }

    fn save(&self, estimates: &Estimates) {
        let entry = |(name, system, estimate, seen): (&str, &str, Estimate, Option<Estimate>)| {
            let Estimate { built_s, duration_ms, memory_mib } = estimate;
            let seen = seen.map(|seen| (seen.duration_ms, seen.memory_mib, seen.built_s));
            Entry { name: name.to_owned(), system: system.to_owned(), duration_ms, memory_mib, built_s, seen }
        };
        let entries: Vec<Entry> = estimates.all().map(entry).collect();
        let temporary = self.file.with_extension("json.new");
        let written = serde_json::to_vec(&entries)
            .map_err(std::io::Error::from)
            .and_then(|bytes| fs::write(&temporary, bytes))
            .and_then(|()| fs::rename(&temporary, &self.file));
        if let Err(error) = written {
            tracing::warn!(file = %self.file.display(), %error, "cannot keep the durations of builds");
        }
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Drop for History {
    fn drop(&mut self) {
        self.keep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_grid::estimates::UNKNOWN;

    #[test]
    fn what_builds_took_survives() {
        let dir = tempfile::tempdir().expect("a directory");
        let history = History::open(dir.path());
        assert_eq!(history.estimate("gcc-13.2.0.drv", "x86_64-linux"), UNKNOWN);
        history.record("gcc-13.2.0.drv", "x86_64-linux", Duration::from_secs(9), 700);
        drop(history);
        let estimate = History::open(dir.path()).estimate("gcc-14.1", "x86_64-linux");
        assert_eq!((estimate.duration_ms, estimate.memory_mib), (9_000, 700));
        assert!(estimate.built_s > UNKNOWN.built_s);
    }

    #[test]
    fn what_another_node_told_is_known_after_a_restart_and_bounded_by_what_was_seen() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let [here, there] = [0, 1].map(|number: usize| History::open(dirs[number].path()));
        here.record("cc-1.0", "x86_64-linux", Duration::from_secs(1), 0);
        there.record("gcc-13.2.0.drv", "x86_64-linux", Duration::from_secs(9), 700);
        let lie = |name: &str| Took {
            name: name.into(),
            system: "x86_64-linux".into(),
            built_s: now_s() + 60,
            duration_ms: 3_600_000,
            memory_mib: 1 << 20,
        };
        let BuildFrame::Estimates { known: 1, rows } = there.answer(&here.digest(0)) else { panic!("not one row") };
        here.merge(&rows);
        here.merge(&[lie("cc")]);
        drop(here);
        let here = History::open(dirs[0].path());
        let estimate = |name| here.estimate(name, "x86_64-linux").duration_ms;
        assert_eq!((estimate("gcc-14.1"), estimate("cc-1.1")), (9_000, 4_000));
        assert!(matches!(there.answer(&there.digest(1)), BuildFrame::Estimates { rows, .. } if rows.is_empty()));
    }
}
