//! Keeps the store within its quota: when it grew beyond it, paths that nothing keeps are deleted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shoal_store::{GcAction, GcError, GcReport, GcRequest, Store};

use crate::build::service::BuildService;
use crate::cli::{Exit, Failure};
use crate::config::Config;
use crate::config::units::{Quota, size_text};
use crate::mount::Mounts;

/// A disk fills by some 100 MB/s at most; the store's own reserve covers the time between.
const PERIOD: Duration = Duration::from_secs(30);
/// Longest pause before a store in which nothing can be deleted is collected again: it reads the whole index.
const PAUSE_MAX: Duration = Duration::from_secs(15 * 60);
/// Collecting goes this far below the quota where nothing else is said, so that it does not start over at once.
const SLACK_PERCENT: u64 = 5;
/// A full store has at least so many segments.
const SEGMENTS_MIN: u64 = 32;
/// Of the quota, what is only read may take one part in so many: the rest is for paths, of which others rely on copies.
const READ_SHARE: u64 = 4;

/// Beyond `high` bytes the store is collected, down to `low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    pub high: u64,
    pub low: u64,
}

impl Watermarks {
    /// For a store in the file system of `data_dir`.
    pub fn of(config: &Config) -> Result<Watermarks> {
        let dir = &config.data_dir;
        let disk = rustix::fs::statvfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
        Self::within(config.store_quota, config.store_quota_low, disk.f_blocks.saturating_mul(disk.f_frsize))
    }

    /// For a store of this size: space is given back by whole segments.
    pub fn store_options(&self) -> shoal_store::Options {
        let options = shoal_store::Options::default();
        shoal_store::Options { segment_bytes: options.segment_bytes.min(self.high / SEGMENTS_MIN), ..options }
    }

    /// How much of the disk what is only read may take.
    pub fn read_bytes_max(&self) -> u64 {
        self.high / READ_SHARE
    }

    fn within(high: Quota, low: Option<Quota>, file_system: u64) -> Result<Watermarks> {
        let high = high.bytes(file_system);
        let low = low.map_or(high - high / 100 * SLACK_PERCENT, |low| low.bytes(file_system));
        match low <= high {
            true => Ok(Watermarks { high, low }),
            false => {
                let (low, high) = (size_text(low), size_text(high));
                let text = format!("store-quota-low is {low} and store-quota {high}; it must not be above it");
                Err(Failure::new(Exit::Config, text).into())
            }
        }
    }
}

/// Watches for as long as it is polled.
pub async fn watch(store: Store, builds: Arc<BuildService>, mounts: Arc<Mounts>, marks: Watermarks) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut keeper = Keeper { marks, stuck: None };
    loop {
        ticks.tick().await;
        let (store, builds, mounts) = (store.clone(), builds.clone(), mounts.clone());
        let kept = tokio::task::spawn_blocking(move || {
            let kept = let_go(&store, marks, |bytes| mounts.let_go(bytes))
                .and_then(|()| keeper.keep(&store, Instant::now(), |request| builds.collect(request)));
            (keeper, kept)
        });
        // The runtime is going down.
        let Ok((back, kept)) = kept.await else { return };
        keeper = back;
        match kept {
            Ok(kept) => kept.tell(marks),
            Err(error) => tracing::warn!("cannot bring the store below its quota: {error:#}"),
        }
    }
}

/// What nobody holds any more goes first, then what is here only because it was read and can be fetched again; before any
/// path does.
fn let_go(store: &Store, marks: Watermarks, let_go: impl FnOnce(u64) -> bool) -> Result<()> {
    let used = || store.stats().map(|stats| stats.segment_bytes);
    if used()? <= marks.high {
        return Ok(());
    }
    store.reclaim()?;
    let left = used()?;
    if left > marks.high && let_go(left - marks.low) {
        store.reclaim()?;
    }
    Ok(())
}

/// Collects a store that is beyond its quota.
struct Keeper {
    marks: Watermarks,
    /// Set while it is beyond it and nothing can be deleted.
    stuck: Option<Stuck>,
}

struct Stuck {
    /// Bytes that stayed.
    used: u64,
    since: Instant,
    /// Until it is tried again.
    pause: Duration,
}

/// What became of a store.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    Within,
    /// Beyond the quota as before, and not looked at closely.
    Waits,
    Collected(GcReport),
    /// So many bytes stay, and nothing can be deleted.
    Stuck {
        used: u64,
        is_new: bool,
    },
}

impl Stuck {
    fn is_due(&self, marks: Watermarks, used: u64, now: Instant) -> bool {
        let grew = used.saturating_sub(self.used) > marks.high - marks.low;
        grew || now.saturating_duration_since(self.since) >= self.pause
    }
}

impl Keeper {
    /// Gives back what no path has, and only where that is not enough deletes paths.
    fn keep(
        &mut self,
        store: &Store,
        now: Instant,
        collect: impl Fn(&GcRequest) -> Result<GcReport, GcError>,
    ) -> Result<Kept> {
        let Watermarks { high, low } = self.marks;
        store.save_uses()?;
        let before = store.stats()?.segment_bytes;
        if before <= high {
            self.stuck = None;
            return Ok(Kept::Within);
        }
        if self.stuck.as_ref().is_some_and(|stuck| !stuck.is_due(self.marks, before, now)) {
            return Ok(Kept::Waits);
        }
        let up_to = |max_freed| GcRequest { max_freed, ..GcRequest::new(GcAction::DeleteDead) };
        // Twice where paths must go as well: in one, those would make up for what there is room for without them.
        let mut report = collect(&up_to(0))?;
        let mut used = store.stats()?.segment_bytes;
        if used > high {
            let more = collect(&up_to(used - low))?;
            report.freed += more.freed;
            report.paths = more.paths;
            used = store.stats()?.segment_bytes;
        }
        let was = self.stuck.take();
        if used <= high || !report.paths.is_empty() {
            return Ok(Kept::Collected(report));
        }
        let is_new = was.is_none();
        let pause = was.map_or(PERIOD, |was| (was.pause * 2).min(PAUSE_MAX));
        self.stuck = Some(Stuck { used, since: now, pause });
        Ok(Kept::Stuck { used, is_new })
    }
}

impl Kept {
    fn tell(self, marks: Watermarks) {
        match self {
            Kept::Within | Kept::Waits | Kept::Stuck { is_new: false, .. } => {}
            Kept::Collected(report) => {
                let freed = size_text(report.freed);
                tracing::info!(paths = report.paths.len(), freed, "the store was beyond its quota");
            }
            Kept::Stuck { used, is_new: true } => {
                let (used, quota) = (size_text(used), size_text(marks.high));
                tracing::warn!(
                    used,
                    quota,
                    "the store is beyond its quota and nothing in it can be deleted: all is kept by roots, pins, clients, \
                     builds or as the last copy of the mesh; remove some of these (`shoal gc --dry-run` says what could \
                     go) or raise store-quota"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_grid::random::Random;
    use shoal_wire::nix::path_info::PathInfo;
    use shoal_wire::nix::store_path::StorePath;
    use std::io::Write;

    /// A NAR of one regular file.
    fn nar(contents: &[u8]) -> Vec<u8> {
        let mut nar = Vec::new();
        let mut string = |bytes: &[u8]| {
            nar.extend((bytes.len() as u64).to_le_bytes());
            nar.extend(bytes);
            nar.resize(nar.len().next_multiple_of(8), 0);
        };
        for word in ["nix-archive-1", "(", "type", "regular", "contents"] {
            string(word.as_bytes());
        }
        string(contents);
        string(b")");
        nar
    }

    fn contents(salt: u8, len: u32) -> Vec<u8> {
        (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ salt).collect()
    }

    /// Paths of 200 kB each.
    fn filled(store: &Store, paths: u8) -> Vec<StorePath> {
        let add = |i: u8| {
            let mut ingest = store.ingest();
            ingest.write_all(&nar(&contents(i, 200_000))).unwrap();
            let ingested = ingest.finish().unwrap();
            let path = StorePath::from_base_name(&format!("{}-x", i.to_string().repeat(32))).unwrap();
            let info = PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size);
            store.commit(vec![(info, ingested)]).unwrap();
            path
        };
        (0..paths).map(add).collect()
    }

    fn kept(store: &Store, high: u64, low: u64) -> Kept {
        let mut keeper = Keeper { marks: Watermarks { high, low }, stuck: None };
        keeper.keep(store, Instant::now(), |request| store.collect(request)).unwrap()
    }

    fn used(store: &Store) -> u64 {
        store.stats().unwrap().segment_bytes
    }

    #[test]
    fn a_store_beyond_its_quota_loses_what_nothing_keeps() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let paths = filled(&store, 4);
        let roots = store.temp_roots();
        roots.add(&paths[2]);
        assert_eq!(kept(&store, u64::MAX, 0), Kept::Within);
        assert_eq!(store.paths().unwrap().len(), 4);
        assert_eq!(kept(&store, used(&store), 0), Kept::Within);
        let used = used(&store);
        let mut keeper = Keeper { marks: Watermarks { high: used - 1, low: used - 100 }, stuck: None };
        let goals = std::cell::RefCell::new(Vec::new());
        let collect = |request: &GcRequest| {
            goals.borrow_mut().push(request.max_freed);
            store.collect(request)
        };
        keeper.keep(&store, Instant::now(), collect).unwrap();
        assert_eq!(*goals.borrow(), [0, 100]);
        assert_eq!(store.paths().unwrap(), [paths[2].clone()]);
    }

    /// What an upload left that broke off is given back before any path goes.
    #[test]
    fn bytes_of_no_path_go_before_paths_do() {
        let dir = tempfile::tempdir().unwrap();
        let options = shoal_store::Options { segment_bytes: 4 << 20, ..shoal_store::Options::default() };
        let store = Store::open(&dir.path().join("store"), options).unwrap();
        filled(&store, 4);
        let before = used(&store);
        let mut broken = store.ingest();
        let nar = nar(&noise(24 << 20));
        broken.write_all(&nar[..nar.len() - 100]).unwrap();
        drop(broken);
        let high = before + (12 << 20);
        assert!(used(&store) > high, "the upload left too little");
        assert!(matches!(kept(&store, high, before / 2), Kept::Collected(_)));
        assert!(used(&store) <= high);
        assert_eq!(store.paths().unwrap().len(), 4);
    }

    /// Bytes that nothing compresses.
    fn noise(len: usize) -> Vec<u8> {
        let mut random = Random::new(1);
        (0..len).map(|_| random.word() as u8).collect()
    }

    #[test]
    fn a_store_in_which_all_is_kept_is_told_of_once_and_collected_seldom() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let roots = store.temp_roots();
        filled(&store, 4).iter().for_each(|path| roots.add(path));
        let used = used(&store);
        let mut keeper = Keeper { marks: Watermarks { high: used - 1, low: used - 1 }, stuck: None };
        let start = Instant::now();
        let mut at = |seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            keeper.keep(&store, now, |request| store.collect(request)).unwrap()
        };
        assert_eq!(at(0), Kept::Stuck { used, is_new: true });
        assert_eq!(at(29), Kept::Waits);
        assert_eq!(at(30), Kept::Stuck { used, is_new: false });
        assert_eq!(at(60), Kept::Waits);
        assert_eq!(at(90), Kept::Stuck { used, is_new: false });
        // What came in may be what can go.
        filled(&store, 5);
        assert!(matches!(at(91), Kept::Collected(_)));
        assert_eq!(store.paths().unwrap().len(), 4);
        drop(roots);
        assert!(matches!(at(92), Kept::Collected(_)));
    }

    #[test]
    fn what_nobody_holds_goes_before_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let options = shoal_store::Options { segment_bytes: 4 << 20, ..shoal_store::Options::default() };
        let store = Store::open(&dir.path().join("store"), options).unwrap();
        let nar = nar(&noise(24 << 20));
        let mut broken = store.ingest();
        broken.write_all(&nar[..nar.len() - 100]).unwrap();
        drop(broken);
        let marks = Watermarks { high: 12 << 20, low: 6 << 20 };
        assert!(store.stats().unwrap().segment_bytes > marks.high);
        let_go(&store, marks, |_| panic!("there is room without it")).unwrap();
        assert!(store.stats().unwrap().segment_bytes <= marks.high);
    }

    #[test]
    fn what_was_only_read_is_asked_to_go_when_the_store_is_beyond_its_quota() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let mut ingest = store.ingest();
        ingest.write_all(&nar(&[7; 100_000])).unwrap();
        // Never committed.
        let _ingested = ingest.finish().unwrap();
        let used = store.stats().unwrap().segment_bytes;
        assert!(used > 0);
        let mut asked = Vec::new();
        let mut ask = |high| {
            let marks = Watermarks { high, low: high / 2 };
            let_go(&store, marks, |bytes| {
                asked.push(bytes);
                false
            })
            .unwrap();
        };
        ask(used);
        ask(used - 1);
        assert_eq!(asked, [used - (used - 1) / 2]);
    }

    #[test]
    fn the_low_mark_is_below_the_high_one() {
        let within = |high: &str, low: Option<&str>| {
            Watermarks::within(Quota::parse(high).unwrap(), low.map(|low| Quota::parse(low).unwrap()), 1_000_000)
        };
        assert_eq!(within("80%", None).unwrap(), Watermarks { high: 800_000, low: 760_000 });
        assert_eq!(within("500000", Some("30%")).unwrap(), Watermarks { high: 500_000, low: 300_000 });
        let error = within("20%", Some("500000")).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Config);
    }
}
