//! A bucket behind the mesh: what becomes valid here is written to it some time after, and what nobody has is read from it.
//!
//! The bucket is never needed. Nobody waits for a write, and whatever is wrong with an object makes it count as missing.
//! Nor is whoever can write there believed: a record is as good as the Nix signatures in it, which nodes add as they write,
//! chunks are compared with their names and NARs with their hashes.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use serde::Serialize;
use shoal_grid::cold::{BACKLOG_MAX, Backlog};
use shoal_store::{Lore, Store, Watcher};
use shoal_wire::mesh::cold::{ColdRecord, PackName, pack_object, record_object};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use tokio::runtime::Handle;

use crate::upstream::Refusal;
pub use bucket::{Bucket, Options, Pending, read_authorities};
pub use last_copies::LastCopies;
use last_copies::Tally;
use lengths::Lengths;
pub use location::{Credentials, Location};
use notes::Notes;
pub use signers::Signers;
pub use survey::{Finding, Findings, Report};
pub use unpacking::Unpacking;
pub use writer::{Means, Writer};

mod bucket;
mod claims;
mod last_copies;
mod lengths;
mod location;
mod lore;
mod notes;
mod signers;
mod survey;
mod unpacking;
mod writer;

/// Paths whose objects this node found damaged and is to write again, if it can; beyond it those are left to `verify`.
const DOUBTED_MAX: usize = 4096;

/// The bucket and what is known of it.
pub struct Cold {
    pub bucket: Bucket,
    notes: Notes,
    backlog: Mutex<Backlog<Item>>,
    /// Something came into the backlog, or the node stops.
    news: Condvar,
    /// Hash parts of paths whose record does not say what it should, or names packs that are not right.
    doubted: Mutex<BTreeSet<String>>,
    lengths: Lengths,
    last_copies: Tally,
    pub written: Written,
    /// Whether this node writes to it.
    writes: bool,
    since: Instant,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Path(StorePath),
    Lore(Lore),
}

/// What was written since the node started.
#[derive(Default)]
pub struct Written {
    pub paths: AtomicU64,
    pub packs: AtomicU64,
    pub bytes: AtomicU64,
    /// Chunks that the bucket had.
    pub shared_chunks: AtomicU64,
    pub logs: AtomicU64,
    pub realisations: AtomicU64,
    /// Requests that failed, and the last reason.
    pub failures: AtomicU64,
    /// Paths in hand, that is not in the backlog any more and not written yet.
    in_hand: AtomicUsize,
    last_error: Mutex<Option<String>>,
}

/// The writing side, for people. What is read counts as an upstream.
#[derive(Clone, Debug, Serialize)]
pub struct ColdStatus {
    pub url: String,
    pub writes: bool,
    /// Paths, logs and realisations to be written.
    pub backlog: usize,
    /// There are more: what is stored is looked through when these are written.
    pub backlog_is_partial: bool,
    /// Paths that other nodes write.
    pub elsewhere: usize,
    /// Paths of this node that are in the bucket.
    pub kept_paths: u64,
    pub written_paths: u64,
    pub written_packs: u64,
    pub written_bytes: u64,
    pub shared_chunks: u64,
    pub written_logs: u64,
    pub written_realisations: u64,
    pub failed_writes: u64,
    pub last_error: Option<String>,
    /// Last copies that were found in the bucket and let go of, and those that stayed for want of it.
    pub freed_last_copies: u64,
    pub kept_last_copies: u64,
    /// The last reason for which any stayed.
    pub kept_why: Option<String>,
}

impl Cold {
    /// `data_dir`: where what is known of the bucket is kept.
    pub fn open(options: &Options, data_dir: &Path, writes: bool, runtime: Handle) -> Result<Arc<Cold>> {
        Cold::on(Bucket::open(options, runtime)?, data_dir, writes)
    }

    fn on(bucket: Bucket, data_dir: &Path, writes: bool) -> Result<Arc<Cold>> {
        let notes = Notes::open(&data_dir.join("cold.redb"), bucket.identity())?;
        let lengths = Lengths::with_wrong(notes.wrong_packs()?);
        let (news, doubted, last_copies, written) = Default::default();
        let backlog = Mutex::new(Backlog::new(BACKLOG_MAX));
        let since = Instant::now();
        Ok(Arc::new(Cold { bucket, notes, backlog, news, doubted, lengths, last_copies, written, writes, since }))
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog<Item>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubted(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Nothing is written or waited for from now on.
    pub fn stop(&self) {
        self.bucket.stop();
        self.news.notify_all();
    }

    /// The record of the path with this hash part. One that is damaged, or of another path, is a failure, of which note is
    /// taken.
    pub fn record(&self, hash_part: &str) -> Result<ColdRecord, Refusal> {
        let object: Bytes = self.bucket.get(&record_object(hash_part), ColdRecord::OBJECT_LEN_MAX)?;
        self.read_record(hash_part, &object)
    }

    fn read_record(&self, hash_part: &str, object: &[u8]) -> Result<ColdRecord, Refusal> {
        let read = ColdRecord::from_object(object).map_err(|error| error.to_string());
        let right = read.and_then(|record| match record.path.hash_part() == hash_part {
            true => Ok(record),
            false => Err(format!("it is the record of '{}'", record.path)),
        });
        right.map_err(|why| self.refuse_record(hash_part, &why))
    }

    /// The record of the path with this hash part is wrong.
    pub fn refuse_record(&self, hash_part: &str, why: &str) -> Refusal {
        self.doubt(hash_part);
        self.refuse(&record_object(hash_part), why)
    }

    /// An object is not what it should be; it counts as missing.
    fn refuse(&self, object: &str, why: &str) -> Refusal {
        tracing::warn!(
            bucket = self.bucket.url(),
            object,
            why,
            "an object of the bucket is wrong; it counts as missing"
        );
        Refusal::Missing
    }

    /// A pack is gone or wrong, and was wanted for this path.
    pub fn refuse_pack(&self, pack: &PackName, hash_part: &str, why: &str) -> Refusal {
        self.doubt(hash_part);
        self.forget(pack);
        self.found_wrong(pack);
        self.refuse(&pack_object(pack), why)
    }

    /// A pack that this node wrote is gone.
    fn lose_pack(&self, pack: &PackName) {
        self.forget(pack);
        self.refuse(&pack_object(pack), "it is not there any more, or too short: its chunks are written again");
    }

    /// No record names a pack any more that is not right.
    fn forget(&self, pack: &PackName) {
        self.lengths.forget(pack);
        if let Err(error) = self.notes.forget_pack(pack) {
            tracing::warn!("{error:#}");
        }
    }

    /// Has a path written again that is here, or comes here, and over a restart too looked for in the bucket.
    fn doubt(&self, hash_part: &str) {
        if let Err(error) = self.notes.undo(hash_part) {
            tracing::warn!("{error:#}");
        }
        let mut doubted = self.doubted();
        if doubted.len() < DOUBTED_MAX {
            doubted.insert(hash_part.to_string());
        }
    }

    /// The path is whole in the bucket, as far as this node knows.
    pub fn keeps(&self, path: &StorePath) -> bool {
        !self.doubted().contains(path.hash_part()) && self.notes.is_kept(path).unwrap_or(false)
    }

    /// Last copies that stayed for want of the bucket, and the last reason.
    pub fn last_copies_kept(&self) -> (u64, Option<String>) {
        (self.last_copies.kept.load(Ordering::Relaxed), self.last_copies.why())
    }

    pub fn status(&self) -> ColdStatus {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let backlog = self.backlog();
        let (ready, elsewhere) = backlog.counts();
        let is_partial = backlog.is_partial();
        drop(backlog);
        let written = &self.written;
        ColdStatus {
            url: self.bucket.url().to_string(),
            writes: self.writes,
            backlog: ready + written.in_hand.load(Ordering::Relaxed),
            backlog_is_partial: is_partial,
            elsewhere,
            kept_paths: self.notes.done_count().unwrap_or(0),
            written_paths: load(&written.paths),
            written_packs: load(&written.packs),
            written_bytes: load(&written.bytes),
            shared_chunks: load(&written.shared_chunks),
            written_logs: load(&written.logs),
            written_realisations: load(&written.realisations),
            failed_writes: load(&written.failures),
            last_error: written.last_error(),
            freed_last_copies: load(&self.last_copies.freed),
            kept_last_copies: load(&self.last_copies.kept),
            kept_why: self.last_copies.why(),
        }
    }
}

impl Written {
    fn failed(&self, why: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_string());
    }

    fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Tells the backlog what becomes valid.
struct Arrivals(Arc<Cold>);

impl Watcher for Arrivals {
    fn committed(&self, paths: &[PathInfo]) {
        let mut backlog = self.0.backlog();
        for info in paths {
            backlog.add(Item::Path(info.path.clone()));
        }
        drop(backlog);
        self.0.news.notify_all();
    }

    fn may_delete(&self, paths: &[StorePath]) -> Vec<StorePath> {
        paths.to_vec()
    }

    fn deleted(&self, _gone: &[StorePath], _stayed: &[StorePath]) {}

    /// What was healed may be written now.
    fn damage_changed(&self) {
        self.0.backlog().look_again();
        self.0.news.notify_all();
    }

    fn learned(&self, lore: &Lore) {
        self.0.backlog().add(Item::Lore(lore.clone()));
        self.0.news.notify_all();
    }
}

/// Follows what `store` has.
fn follow(cold: &Arc<Cold>, store: &Store) {
    store.watch(Arc::new(Arrivals(cold.clone())));
}

#[cfg(test)]
#[path = "cold_tests.rs"]
mod tests;
