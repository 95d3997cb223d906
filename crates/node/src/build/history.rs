//! How long derivations of a name took before: the estimate the schedule weighs graphs with.
//!
//! Kept by name, so that the next version of a package inherits what the last one took. Written to disk now and then;
//! losing the latest entries costs nothing but a worse order.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What a derivation that was never seen is taken to last: most are small.
const UNKNOWN_MS: u64 = 1_000;

/// Names remembered; the rest of a larger set is forgotten at random.
const NAMES_MAX: usize = 50_000;

/// Changes between two writes to disk.
const CHANGES_PER_SAVE: usize = 64;

/// Weight of the newest duration against all before it.
const NEWEST_WEIGHT: f64 = 0.5;

#[derive(Default)]
struct State {
    took_ms: HashMap<String, u64>,
    unsaved: usize,
}

pub struct History {
    file: PathBuf,
    state: Mutex<State>,
}

impl History {
    pub fn open(data_dir: &Path) -> History {
        let file = data_dir.join("history.json");
        let read = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        History { file, state: Mutex::new(State { took_ms: read.unwrap_or_default(), unsaved: 0 }) }
    }

    /// `drv_name` is a derivation's name, with or without `.drv`.
    pub fn estimate_ms(&self, drv_name: &str) -> u64 {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.took_ms.get(package_name(drv_name)).copied().unwrap_or(UNKNOWN_MS)
    }

    pub fn record(&self, drv_name: &str, took_ms: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.took_ms.len() >= NAMES_MAX {
            let forgotten = state.took_ms.keys().next().cloned();
            forgotten.map(|name| state.took_ms.remove(&name));
        }
        let entry = state.took_ms.entry(package_name(drv_name).to_string()).or_insert(took_ms);
        *entry = (*entry as f64 * (1.0 - NEWEST_WEIGHT) + took_ms as f64 * NEWEST_WEIGHT) as u64;
        state.unsaved += 1;
        if state.unsaved >= CHANGES_PER_SAVE {
            state.unsaved = 0;
            self.save(&state.took_ms);
        }
    }

    fn save(&self, took_ms: &HashMap<String, u64>) {
        let temporary = self.file.with_extension("json.new");
        let written = serde_json::to_vec(took_ms)
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
            let took_ms = std::mem::take(&mut state.took_ms);
            self.save(&took_ms);
        }
    }
}

/// The name without its version: up to the first dash that a digit follows, as Nix splits names.
fn package_name(drv_name: &str) -> &str {
    let name = drv_name.strip_suffix(".drv").unwrap_or(drv_name);
    let bytes = name.as_bytes();
    let version = bytes.windows(2).position(|pair| pair[0] == b'-' && pair[1].is_ascii_digit());
    &name[..version.unwrap_or(name.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_share_an_estimate_and_it_survives() {
        let dir = tempfile::tempdir().expect("a directory");
        let history = History::open(dir.path());
        assert_eq!(history.estimate_ms("gcc-13.2.0.drv"), UNKNOWN_MS);
        history.record("gcc-13.2.0.drv", 9_000);
        drop(history);
        assert_eq!(History::open(dir.path()).estimate_ms("gcc-14.1"), 9_000);
    }
}
