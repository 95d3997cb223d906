//! What derivations took before, on disk: the estimates that the schedule weighs graphs with.
//!
//! Written now and then; losing the latest entries costs nothing but a worse order.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use shoal_grid::estimates::{Estimate, Estimates};

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
        for Entry { name, system, duration_ms, memory_mib, built_s } in read.unwrap_or_default() {
            estimates.merge(&name, &system, Estimate { built_s, duration_ms, memory_mib });
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
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let mut state = self.lock();
        state.estimates.record(drv_name, system, Estimate { built_s: now.as_secs(), duration_ms, memory_mib });
        state.unsaved += 1;
        if state.unsaved >= CHANGES_PER_SAVE {
            state.unsaved = 0;
            self.save(&state.estimates);
        }
    }

    fn save(&self, estimates: &Estimates) {
        let entry = |(name, system, estimate): (&str, &str, Estimate)| {
            let Estimate { built_s, duration_ms, memory_mib } = estimate;
            Entry { name: name.to_owned(), system: system.to_owned(), duration_ms, memory_mib, built_s }
        };
        let entries: Vec<Entry> = estimates.since(0).map(entry).collect();
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

impl Drop for History {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.unsaved > 0 {
            let estimates = std::mem::take(&mut state.estimates);
            self.save(&estimates);
        }
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
}
