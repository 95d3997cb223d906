//! Reads all that the store holds at a bounded rate, by a schedule and on demand, and has what is damaged healed.
//!
//! One scrub runs at a time. One that somebody waits for takes the place of one that the schedule began.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use shoal_store::{Object, Store, VerifyProgress};
use shoal_wire::nix::store_path::StoreDir;

use crate::files;
use crate::upstream::Upstreams;

/// How often a scrub that keeps to its rate, or waits for its time, looks whether it is to stop.
const POLL: Duration = Duration::from_millis(100);
/// How often the schedule looks at the clock, which may be set.
const SCHEDULE_PERIOD: Duration = Duration::from_secs(60);
/// Who waits is told of progress at most so often.
const TELL_PERIOD: Duration = Duration::from_millis(200);

/// What a scrub found and what became of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Report {
    pub chunks: u64,
    pub paths: u64,
    pub bytes: u64,
    /// Chunks that were taken for damaged and read right this time.
    pub absolved: u64,
    /// What was found damaged, now or before, of each path the first.
    pub found: Vec<Finding>,
    pub healed: Vec<String>,
    pub not_healed: Vec<Finding>,
    /// It was stopped before it had seen all.
    pub cut_short: bool,
}

/// A path, and what is wrong with it or why it could not be healed.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Finding {
    pub path: String,
    pub why: String,
}

/// How far a scrub has come.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Progress {
    pub bytes: u64,
    pub bytes_total: u64,
    pub damaged: u64,
}

/// What is kept of the last scrub, in `<data-dir>/scrub.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Last {
    /// Seconds since 1970. Of a node that never scrubbed, when it was first started.
    pub ended: u64,
    pub report: Option<Report>,
}

pub struct Scrubber {
    store: Store,
    upstreams: Upstreams,
    dir: StoreDir,
    file: PathBuf,
    /// Stored bytes a second; 0 for no limit.
    rate: u64,
    /// Held by the scrub that runs.
    running: Mutex<()>,
    /// Held by who waits for one.
    demanding: Mutex<()>,
    is_demanded: AtomicBool,
    is_stopping: AtomicBool,
}

impl Scrubber {
    /// `rate` in stored bytes a second, `None` for no limit.
    pub fn new(store: Store, upstreams: Upstreams, dir: StoreDir, data_dir: &Path, rate: Option<u64>) -> Scrubber {
        Scrubber {
            store,
            upstreams,
            dir,
            file: data_dir.join("scrub.json"),
            rate: rate.unwrap_or(0),
            running: Mutex::new(()),
            demanding: Mutex::new(()),
            is_demanded: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// Ends the scrub that runs, soon, and begins none any more.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    pub fn last(&self) -> Last {
        let read = std::fs::read(&self.file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        read.unwrap_or_default()
    }

    /// Scrubs whenever the last time is `interval` ago, until it is stopped.
    pub fn run_by_schedule(&self, interval: Duration) {
        if self.last().ended == 0 {
            self.keep(&Last { ended: now(), report: None });
        }
        while !self.is_stopping.load(Ordering::Relaxed) {
            if is_due(self.last().ended, interval, now()) {
                let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                let scrubbed = self.scrub(self.rate, &mut |_| !self.is_demanded.load(Ordering::Relaxed));
                drop(running);
                match scrubbed {
                    Ok(report) => tell(&report),
                    Err(error) => tracing::warn!("cannot scrub the store: {error:#}"),
                }
            }
            let until = Instant::now() + SCHEDULE_PERIOD;
            while Instant::now() < until && !self.is_stopping.load(Ordering::Relaxed) {
                thread::sleep(POLL);
            }
        }
    }

    /// Scrubs for somebody who waits; `None` if somebody else does already. `rate` replaces the configured one.
    /// `on_progress` says whether to go on.
    pub fn run_now(&self, rate: Option<u64>, mut on_progress: impl FnMut(Progress) -> bool) -> Option<Result<Report>> {
        let _demanding = self.demanding.try_lock().ok()?;
        self.is_demanded.store(true, Ordering::Relaxed);
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_demanded.store(false, Ordering::Relaxed);
        let mut told = Instant::now();
        let mut tell_now_and_then = |progress| {
            let due = told.elapsed() >= TELL_PERIOD;
            if due {
                told = Instant::now();
            }
            !due || on_progress(progress)
        };
        Some(self.scrub(rate.unwrap_or(self.rate), &mut tell_now_and_then))
    }

    fn scrub(&self, rate: u64, go_on: &mut dyn FnMut(Progress) -> bool) -> Result<Report> {
        let since = Instant::now();
        let mut seen = Progress { bytes: 0, bytes_total: 0, damaged: 0 };
        let verified = self.store.scrub(&mut |progress| {
            let VerifyProgress { bytes, bytes_total, damaged } = progress;
            seen = Progress { bytes, bytes_total, damaged };
            loop {
                if self.is_stopping.load(Ordering::Relaxed) || !go_on(seen) {
                    return false;
                }
                let early = ahead(bytes, rate, since.elapsed());
                if early.is_zero() {
                    return true;
                }
                thread::sleep(early.min(POLL));
            }
        })?;
        let mut report = Report {
            chunks: verified.chunks,
            paths: verified.paths,
            bytes: verified.bytes,
            absolved: verified.absolved,
            cut_short: verified.cut_short,
            ..Report::default()
        };
        for damage in &verified.damage {
            let Some(path) = &damage.path else { continue };
            let finding = Finding { path: self.dir.print(path), why: damage.to_string() };
            // No NAR brings back what is missing beside it.
            if matches!(damage.object, Object::Record(_)) {
                report.not_healed.push(finding.clone());
            }
            report.found.push(finding);
        }
        self.heal_all(&mut report)?;
        if !report.cut_short {
            self.keep(&Last { ended: now(), report: Some(report.clone()) });
        }
        Ok(report)
    }

    /// Has every damaged path stored again that an upstream has.
    fn heal_all(&self, report: &mut Report) -> Result<()> {
        let go_on = || !self.is_stopping.load(Ordering::Relaxed);
        for (path, outcome) in self.upstreams.heal_all(&self.store, &go_on)? {
            let path = self.dir.print(&path);
            match outcome {
                Ok(()) => report.healed.push(path),
                Err(why) => report.not_healed.push(Finding { path, why }),
            }
        }
        report.cut_short |= !go_on();
        Ok(())
    }

    fn keep(&self, last: &Last) {
        let written = serde_json::to_vec(last)
            .map_err(std::io::Error::from)
            .and_then(|text| files::replace(&self.file, files::PUBLIC, &text));
        if let Err(error) = written {
            tracing::warn!("cannot write {}: {error}", self.file.display());
        }
    }
}

fn tell(report: &Report) {
    if report.cut_short {
        return;
    }
    let (healed, left) = (report.healed.len(), report.not_healed.len());
    match left {
        0 => tracing::info!(chunks = report.chunks, found = report.found.len(), healed, "scrubbed the store"),
        _ => tracing::error!(healed, left, "the store is damaged and no upstream has what it lacks; see `shoal scrub`"),
    }
}

/// Whether a scrub is due that is to run an `interval` after the last one ended. A last one in the future is no last one.
fn is_due(last_ended: u64, interval: Duration, now: u64) -> bool {
    last_ended > now || now - last_ended >= interval.as_secs()
}

/// How long to wait so that `bytes` within `elapsed` are no more than `rate` allows.
fn ahead(bytes: u64, rate: u64, elapsed: Duration) -> Duration {
    match rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(bytes as f64 / rate as f64).saturating_sub(elapsed),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_is_due_an_interval_after_the_last() {
        let day = Duration::from_secs(86_400);
        assert!(!is_due(1_000_000, day, 1_086_399) && is_due(1_000_000, day, 1_086_400));
        assert!(is_due(2_000_000, day, 1_000_000), "the clock was set back");
    }

    #[test]
    fn the_rate_bounds_what_is_read() {
        let second = Duration::from_secs(1);
        assert_eq!(ahead(10 << 20, 5 << 20, second), second);
        assert_eq!(ahead(5 << 20, 5 << 20, second), Duration::ZERO);
        assert_eq!(ahead(u64::MAX, 0, Duration::ZERO), Duration::ZERO);
    }
}
