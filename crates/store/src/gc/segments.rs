//! Deletes segments that hold nothing live.

use crate::error::Result;
use crate::index::tables::{SEGMENTS, SegmentRow};
use crate::place::SegmentId;
use crate::store::Store;
use redb::ReadableTable;

/// Returns the bytes given back to the file system.
pub fn delete_dead(store: &Store) -> Result<u64> {
    // While this is held nothing is appended; what was appended and not published yet is pinned.
    let mut appender = store.segments.appender();
    let open = appender.open_id();
    let gate = store.segments.holds.shut();
    let unpublished = store.pins.unpublished_segments();
    let dead: Vec<(SegmentId, u64)> = store.index.read(|txn| {
        let mut dead = Vec::new();
        for row in txn.open_table(SEGMENTS)?.iter()? {
            let (id, row) = row?;
            let (id, row) = (id.value(), SegmentRow::decode(row.value()));
            let used = Some(id) == open || unpublished.contains(&id) || store.segments.holds.is_held(id);
            if row.live_records == 0 && !used {
                dead.push((id, row.committed));
            }
        }
        Ok(dead)
    })?;
    if !dead.is_empty() {
        store.frame_lists.deleting();
    }
    drop(gate);
    dead.iter().for_each(|&(id, _)| appender.forget(id));
    drop(appender);
    if dead.is_empty() {
        return Ok(0);
    }
    for &(id, _) in &dead {
        store.segments.delete(id)?;
    }
    let bytes = dead.iter().map(|(_, bytes)| bytes).sum();
    store.writer.write(false, move |txn| {
        let mut segments = txn.open_table(SEGMENTS)?;
        for &(id, _) in &dead {
            segments.remove(id)?;
        }
        Ok(())
    })?;
    Ok(bytes)
}
