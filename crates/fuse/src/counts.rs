//! What the kernel asked, counted: a warm store asks nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// Questions of the kernel since the mount began.
#[derive(Debug, Default)]
pub struct Upcalls {
    pub(crate) lookup: AtomicU64,
    pub(crate) getattr: AtomicU64,
    pub(crate) readlink: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) readdir: AtomicU64,
    pub(crate) forget: AtomicU64,
    pub(crate) other: AtomicU64,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    pub lookups: u64,
    pub getattrs: u64,
    pub readlinks: u64,
    pub opens: u64,
    pub reads: u64,
    pub readdirs: u64,
    /// Nodes that the kernel forgot; not an upcall that anybody waits for.
    pub forgets: u64,
    pub others: u64,
    /// Of the reads, those that waited for the source, and those that failed.
    pub waited_reads: u64,
    pub failed_reads: u64,
    pub asked_chunks: u64,
    pub fetched_bytes: u64,
    pub corrupt_chunks: u64,
    /// Chunks fetched because their like was read before.
    pub expected_chunks: u64,
    pub paths: u64,
    pub files: u64,
}

impl Stats {
    /// Questions that somebody waited for.
    pub fn upcalls(&self) -> u64 {
        self.lookups + self.getattrs + self.readlinks + self.opens + self.reads + self.readdirs + self.others
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
