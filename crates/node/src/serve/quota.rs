//! Keeps the store within its quota: when it grew beyond it, paths that nothing keeps are deleted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use shoal_store::{GcAction, GcError, GcReport, GcRequest, Store};

use crate::build::service::BuildService;
use crate::cli::{Exit, Failure};
use crate::config::Config;
use crate::config::units::{Quota, size_text};

/// A disk fills by some 100 MB/s at most; the store's own reserve covers the time between.
const PERIOD: Duration = Duration::from_secs(30);
/// Collecting goes this far below the quota where nothing else is said, so that it does not start over at once.
const SLACK_PERCENT: u64 = 5;

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
pub async fn watch(store: Store, builds: Arc<BuildService>, marks: Watermarks) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (store, builds) = (store.clone(), builds.clone());
        let kept = tokio::task::spawn_blocking(move || keep(&store, marks, |request| builds.collect(request)));
        match kept.await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(report))) => {
                let freed = size_text(report.freed);
                tracing::info!(paths = report.paths.len(), freed, "the store was beyond its quota");
            }
            Ok(Err(error)) => tracing::warn!("cannot bring the store below its quota: {error:#}"),
            // The runtime is going down.
            Err(_) => return,
        }
    }
}

/// `None` when there was nothing to do.
fn keep(
    store: &Store,
    marks: Watermarks,
    collect: impl FnOnce(&GcRequest) -> Result<GcReport, GcError>,
) -> Result<Option<GcReport>> {
    store.save_uses()?;
    let used = store.stats()?.segment_bytes;
    if used <= marks.high {
        return Ok(None);
    }
    let request = GcRequest { max_freed: used - marks.low, ..GcRequest::new(GcAction::DeleteDead) };
    let report = collect(&request)?;
    Ok((!report.paths.is_empty()).then_some(report))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_store_beyond_its_quota_loses_what_nothing_keeps() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), shoal_store::Options::default()).unwrap();
        let mut paths = Vec::new();
        for i in 0..4u8 {
            let contents: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ i).collect();
            let mut ingest = store.ingest();
            ingest.write_all(&nar(&contents)).unwrap();
            let ingested = ingest.finish().unwrap();
            let path = StorePath::from_base_name(&format!("{}-x", i.to_string().repeat(32))).unwrap();
            let info = PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size);
            store.commit(vec![(info, ingested)]).unwrap();
            paths.push(path);
        }
        let kept = store.temp_roots();
        kept.add(&paths[2]);
        let marks = |high, low| Watermarks { high, low };
        assert!(keep(&store, marks(u64::MAX, 0), |request| store.collect(request)).unwrap().is_none());
        assert_eq!(store.paths().unwrap().len(), 4);
        let used = store.stats().unwrap().segment_bytes;
        assert!(keep(&store, marks(used, 0), |request| store.collect(request)).unwrap().is_none());
        let goal = |request: &GcRequest| {
            assert_eq!(request.max_freed, 100);
            store.collect(request)
        };
        keep(&store, marks(used - 1, used - 100), goal).unwrap().unwrap();
        assert_eq!(store.paths().unwrap(), [paths[2].clone()]);
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
