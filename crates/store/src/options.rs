//! How a store is opened.

use shoal_wire::nix::nar::NarLimits;
use shoal_wire::nix::store_path::StoreDir;
use std::time::{SystemTime, UNIX_EPOCH};

/// Settings of a store. None of them is part of the format.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that store paths are below: links that root a path point there.
    pub store_dir: StoreDir,
    /// What NARs are refused beside malformed ones.
    pub nar_limits: NarLimits,
    /// Memory for index pages; the kernel caches the rest.
    pub index_cache_bytes: usize,
    /// Size at which a segment is closed; between 4 MiB and 1 GiB.
    pub segment_bytes: u64,
    /// Free space that chunks do not take, so that the index can still grow to delete things.
    pub reserve_bytes: u64,
    /// zstd level of chunks as they come in.
    pub level: i32,
    /// zstd level of chunks that were stored in haste, when there is time to compress them.
    pub settled_level: i32,
    /// Seconds since 1970, for what ends at a time.
    pub clock: fn() -> u64,
}

/// The machine's clock.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Default for Options {
    fn default() -> Self {
        Options {
            store_dir: StoreDir::default(),
            nar_limits: NarLimits::default(),
            index_cache_bytes: 8 << 20,
            segment_bytes: 256 << 20,
            reserve_bytes: 64 << 20,
            level: 1,
            settled_level: 6,
            clock: now,
        }
    }
}

impl Options {
    /// The segment size within the bounds that offsets and batches need.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes.clamp(4 << 20, 1 << 30)
    }
}
