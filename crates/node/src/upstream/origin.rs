//! Where paths come from that no node has: a binary cache, or the mesh's bucket. Both are asked the same questions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shoal_store::Store;
use shoal_wire::mesh::cold::record_object;
use shoal_wire::nix::narinfo::{Compression, NarInfo};
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::store_path::StorePath;

use super::cache::{Cache, CacheInfo};
use super::offer::CacheFile;
use super::source::{self, Trouble};
use super::web::Refusal;
use crate::cold::{Cold, Unpacking};

/// The bucket is asked before caches: it is the mesh's own.
const BUCKET_PRIORITY: u32 = 10;

/// What was fetched from an origin.
#[derive(Default)]
pub struct Fetched {
    pub paths: AtomicU64,
    pub bytes: AtomicU64,
    /// Files that did not come, or were not what was promised.
    pub failed: AtomicU64,
}

pub struct Origin {
    kind: Kind,
    pub fetched: Fetched,
}

enum Kind {
    Cache(Arc<Cache>),
    Bucket { cold: Arc<Cold>, store: Store },
}

impl Origin {
    pub fn cache(cache: Cache) -> Origin {
        Origin { kind: Kind::Cache(Arc::new(cache)), fetched: Fetched::default() }
    }

    /// `store`: has chunks that need not come.
    pub fn bucket(cold: Arc<Cold>, store: Store) -> Origin {
        Origin { kind: Kind::Bucket { cold, store }, fetched: Fetched::default() }
    }

    /// Whether it is the mesh's own.
    pub fn is_bucket(&self) -> bool {
        matches!(self.kind, Kind::Bucket { .. })
    }

    /// Its URL, without login.
    pub fn base(&self) -> &str {
        match &self.kind {
            Kind::Cache(cache) => &cache.location.base,
            Kind::Bucket { cold, .. } => cold.bucket.url(),
        }
    }

    /// Where the configuration says how it ranks, or nothing else does.
    pub fn priority(&self) -> Option<u32> {
        match &self.kind {
            Kind::Cache(cache) => cache.location.priority,
            Kind::Bucket { .. } => Some(BUCKET_PRIORITY),
        }
    }

    pub fn info(&self) -> Result<CacheInfo, Refusal> {
        match &self.kind {
            Kind::Cache(cache) => cache.info(),
            Kind::Bucket { .. } => Ok(CacheInfo { priority: BUCKET_PRIORITY }),
        }
    }

    pub fn narinfo(&self, hash_part: &str) -> Result<NarInfo, Refusal> {
        match &self.kind {
            Kind::Cache(cache) => cache.narinfo(hash_part),
            Kind::Bucket { cold, .. } => {
                let record = cold.record(hash_part)?;
                let file_size = record.chunks.iter().map(|packed| u64::from(packed.frame_len)).sum();
                let (url, compression) = (record_object(hash_part), Compression::None);
                Ok(NarInfo { info: record.info(), url, compression, file_hash: None, file_size: Some(file_size) })
            }
        }
    }

    pub fn realisation(&self, id: &DrvOutput) -> Result<Realisation, Refusal> {
        match &self.kind {
            Kind::Cache(cache) => cache.realisation(id),
            Kind::Bucket { cold, .. } => cold.realisation(id),
        }
    }

    pub fn build_trace(&self, key: &BuildTraceKey) -> Result<BuildTrace, Refusal> {
        match &self.kind {
            Kind::Cache(cache) => cache.build_trace(key),
            Kind::Bucket { cold, .. } => cold.build_trace(key),
        }
    }

    pub fn log(&self, derivation: &StorePath) -> Result<Vec<u8>, Refusal> {
        match &self.kind {
            Kind::Cache(cache) => cache.log(derivation),
            Kind::Bucket { cold, .. } => cold.log(derivation),
        }
    }

    /// The URL of a file that a narinfo names.
    pub fn file_url(&self, named: &str) -> String {
        match &self.kind {
            Kind::Cache(cache) => cache.file_url(named),
            Kind::Bucket { cold, .. } => format!("{}/{named}", cold.bucket.url()),
        }
    }

    /// Gives `take` the NAR of `nar_size` bytes of a path, piece by piece. What came is that NAR only if nothing failed,
    /// here or with the NAR's hash, which the caller checks.
    pub fn read(
        &self,
        path: &StorePath,
        file: &CacheFile,
        nar_size: u64,
        file_bytes: Arc<AtomicU64>,
        take: impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        match &self.kind {
            Kind::Cache(cache) => source::read(cache, file, nar_size, file_bytes, take),
            Kind::Bucket { cold, store } => {
                let record = cold.record(path.hash_part()).map_err(Trouble::Upstream)?;
                if record.path != *path || record.nar_size != nar_size {
                    return Err(Trouble::Upstream(Refusal::Failed("it has another path there by now".into())));
                }
                file_bytes.store(0, Ordering::Relaxed);
                Unpacking { cold, store: Some(store), record: &record, file_bytes }.run(take)
            }
        }
    }

    pub fn count_fetched(&self, bytes: u64) {
        self.fetched.paths.fetch_add(1, Ordering::Relaxed);
        self.fetched.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
