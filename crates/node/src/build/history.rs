//! What derivations took before, here and at other nodes, on disk: the estimates that the schedule weighs graphs with.
//!
//! Written now and then, and at the end; losing the latest entries costs nothing but a worse order.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use shoal_grid::estimates::{Estimate, Estimates};
use shoal_grid::random::scramble;
use shoal_wire::mesh::builds::{BuildFrame, ESTIMATES_MAX, Took};

/// Between two writes of the whole file, which is 10 MB where a mesh has built a distribution.
const KEPT_EVERY: Duration = Duration::from_secs(300);

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
    is_unsaved: bool,
    kept: Option<Instant>,
}

pub struct History {
    /// Held while it is written; taken before the state, which is not.
    file: Mutex<PathBuf>,
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
        History { file: Mutex::new(file), state: Mutex::new(State { estimates, is_unsaved: false, kept: None }) }
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
        state.is_unsaved = true;
        drop(state);
        self.keep_if_due();
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

    /// Takes what another node knows. Whether anything of it was news.
    pub fn merge(&self, rows: &[Took]) -> bool {
        let (mut state, mut is_news) = (self.lock(), false);
        for Took { name, system, built_s, duration_ms, memory_mib } in rows {
            let (built_s, duration_ms, memory_mib) = (*built_s, *duration_ms, *memory_mib);
            is_news |= state.estimates.merge(name, system, Estimate { built_s, duration_ms, memory_mib }, now_s());
        }
        state.is_unsaved |= is_news;
        is_news
    }

    /// Writes to disk what is not there yet, unless that was done a moment ago.
    pub fn keep_if_due(&self) {
        if self.lock().kept.is_none_or(|kept| kept.elapsed() >= KEPT_EVERY) {
            self.keep();
        }
    }

    /// Writes to disk what is not there yet.
    pub fn keep(&self) {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        if !state.is_unsaved {
            return;
        }
        (state.is_unsaved, state.kept) = (false, Some(Instant::now()));
        let entries: Vec<Entry> = state.estimates.all().map(entry).collect();
        // Others ask for estimates meanwhile, with locks of their own held.
        drop(state);
        if let Err(error) = save(&file, &entries) {
            tracing::warn!(file = %file.display(), %error, "cannot keep the durations of builds");
        }
    }
}

fn entry((name, system, estimate, seen): (&str, &str, Estimate, Option<Estimate>)) -> Entry {
    let Estimate { built_s, duration_ms, memory_mib } = estimate;
    let seen = seen.map(|seen| (seen.duration_ms, seen.memory_mib, seen.built_s));
    Entry { name: name.to_owned(), system: system.to_owned(), duration_ms, memory_mib, built_s, seen }
}

fn save(file: &Path, entries: &[Entry]) -> std::io::Result<()> {
    let temporary = file.with_extension("json.new");
    fs::write(&temporary, serde_json::to_vec(entries)?)?;
    fs::rename(&temporary, file)
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
        assert!(here.merge(&rows) && here.merge(&[lie("cc")]));
        drop(here);
        let here = History::open(dirs[0].path());
        let estimate = |name| here.estimate(name, "x86_64-linux").duration_ms;
        assert_eq!((estimate("gcc-14.1"), estimate("cc-1.1")), (9_000, 4_000));
        assert!(matches!(there.answer(&there.digest(1)), BuildFrame::Estimates { rows, .. } if rows.is_empty()));
    }
    #[test]
    fn it_is_written_for_news_only_and_not_each_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let (history, file) = (History::open(dir.path()), dir.path().join("history.json"));
        let told = |name: &str| Took {
            name: name.into(),
            system: "x86_64-linux".into(),
            built_s: now_s(),
            duration_ms: 7,
            memory_mib: 0,
        };
        let [first, second] = [told("cc"), told("ld")];
        assert!(history.merge(std::slice::from_ref(&first)));
        history.keep_if_due();
        assert!(fs::remove_file(&file).is_ok(), "the first is written at once");
        assert!(!history.merge(&[first]));
        history.keep();
        assert!(!file.exists(), "nothing is new");
        assert!(history.merge(&[second]));
        history.keep_if_due();
        assert!(!file.exists(), "it was written a moment ago");
        drop(history);
        assert!(file.exists());
    }
}
