//! Deletes segments that hold nothing live.

use super::COMPACT_BELOW_PERCENT;
use crate::error::Result;
use crate::index::tables::{SEGMENTS, SegmentRow};
use crate::place::SegmentId;
use crate::segment::Appender;
use crate::store::Store;
use redb::ReadableTable;
use std::collections::{BTreeMap, HashMap};

/// The open segment is closed where as many bytes of it are dead, so that segments get no smaller than that.
const DEAD_OPEN_BYTES_MIN: u64 = 4 << 20;

/// Returns the bytes given back to the file system.
pub fn delete_dead(store: &Store) -> Result<u64> {
    // While this is held nothing is appended; what was appended and not published yet is pinned.
    let mut appender = store.segments.appender();
    let gate = store.segments.holds.shut();
    let unpublished = store.pins.unpublished_segments();
    let mut rows = rows(store)?;
    close_dead(&mut appender, &rows, &unpublished);
    // What was appended for no path in the end has no row.
    for (id, end) in appender.unfinished() {
        let row = rows.entry(id).or_default();
        row.committed = row.committed.max(end);
    }
    let open = appender.open_id();
    let is_used = |id| Some(id) == open || unpublished.contains_key(&id) || store.segments.holds.is_held(id);
    let dead = rows.iter().filter(|&(&id, row)| row.live_records == 0 && !is_used(id));
    let dead: Vec<(SegmentId, u64)> = dead.map(|(&id, row)| (id, row.committed)).collect();
    if !dead.is_empty() {
        store.frame_lists.deleting();
    }
    drop((gate, appender));
    if dead.is_empty() {
        return Ok(0);
    }
    let (mut deleted, mut failed) = (Vec::new(), None);
    for (id, bytes) in dead {
        match store.segments.delete(id) {
            Ok(()) => deleted.push((id, bytes)),
            // What stays is known, and tried again by the next collection.
            Err(error) => _ = failed.get_or_insert(error),
        }
    }
    let bytes = deleted.iter().map(|(_, bytes)| bytes).sum();
    let mut appender = store.segments.appender();
    deleted.iter().for_each(|&(id, _)| appender.forget(id));
    drop(appender);
    // Also of those that have none: a commit that was under way may have made one.
    store.writer.write(false, move |txn| {
        let mut segments = txn.open_table(SEGMENTS)?;
        for (id, _) in deleted {
            segments.remove(id)?;
        }
        Ok(())
    })?;
    failed.map_or(Ok(bytes), Err)
}

fn rows(store: &Store) -> Result<BTreeMap<SegmentId, SegmentRow>> {
    store.index.read(|txn| {
        let mut rows = BTreeMap::new();
        for row in txn.open_table(SEGMENTS)?.iter()? {
            let (id, row) = row?;
            rows.insert(id.value(), SegmentRow::decode(row.value()));
        }
        Ok(rows)
    })
}

/// Closes the open segment where most of it is dead: it would take what is dead along until it is full.
fn close_dead(
    appender: &mut Appender<'_>,
    rows: &BTreeMap<SegmentId, SegmentRow>,
    unpublished: &HashMap<SegmentId, u64>,
) {
    let open = appender.open_id();
    let Some((id, end)) = appender.unfinished().find(|(id, _)| Some(*id) == open) else { return };
    let live = rows.get(&id).map_or(0, |row| row.live_bytes) + unpublished.get(&id).copied().unwrap_or(0);
    let is_dead = end.saturating_sub(live) >= DEAD_OPEN_BYTES_MIN && live < end / 100 * COMPACT_BELOW_PERCENT;
    if is_dead {
        appender.close();
    }
}
