//! What a store holds, in numbers.

use crate::error::Result;
use crate::index::tables::{CHUNKS, PATHS, SEGMENTS, SegmentRow};
use crate::place::SegmentId;
use crate::store::Store;
use redb::{ReadableTable, ReadableTableMetadata};
use std::collections::HashMap;

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub paths: u64,
    pub chunks: u64,
    pub segments: u64,
    /// Header and frame bytes of chunks that the index knows.
    pub live_bytes: u64,
    /// Of those, bytes stored in haste, which compressing anew may shrink.
    pub hasty_bytes: u64,
    /// Bytes of all segments, also those that no commit has published.
    pub segment_bytes: u64,
    /// Chunks and manifests that were found damaged and are not served until they are stored again.
    pub damaged: u64,
    /// Chunks that ingests at work want.
    pub pinned: u64,
}

impl Store {
    /// Counts, without looking at every path.
    pub fn stats(&self) -> Result<Stats> {
        let mut unfinished: HashMap<SegmentId, u64> = self.segments.appender().unfinished().collect();
        self.index.read(|txn| {
            let mut stats = Stats {
                paths: txn.open_table(PATHS)?.len()?,
                chunks: txn.open_table(CHUNKS)?.len()?,
                pinned: self.pins.count() as u64,
                damaged: self.pins.damaged_count() as u64,
                ..Stats::default()
            };
            for row in txn.open_table(SEGMENTS)?.iter()? {
                let (id, row) = row?;
                let row = SegmentRow::decode(row.value());
                let end = unfinished.remove(&id.value()).unwrap_or(0);
                stats.segments += 1;
                stats.live_bytes += row.live_bytes;
                stats.hasty_bytes += row.hasty_bytes;
                stats.segment_bytes += row.committed.max(end);
            }
            stats.segments += unfinished.len() as u64;
            stats.segment_bytes += unfinished.values().sum::<u64>();
            Ok(stats)
        })
    }
}
