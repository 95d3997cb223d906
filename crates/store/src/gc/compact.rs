//! Rewrites segments: what is live in them is copied to the open segment, then they are deleted whole.
//!
//! A copy is appended, made durable, and published by one transaction that points the index at it if
//! the chunk still lies where it was read. Killed before that, the copy is dead bytes; after it, the
//! old record is. Readers that know the old place find the file gone and ask the index again, or hold
//! the segment ([`crate::segment::hold`]). Runs under the lock of collections, so nothing is swept
//! meanwhile and no segment is deleted that has copies which are not published yet.

use super::rests::Rests;
use super::{COMPACT_BELOW_PERCENT, segments};
use crate::chunks::ChunkReader;
use crate::commit::LiveChange;
use crate::error::{Error, Result};
use crate::frame::{Effort, Encoder};
use crate::index::tables::{CHUNKS, SEGMENTS, SegmentRow};
use crate::place::{Place, SegmentId};
use crate::segment::record::{HEADER_LEN, Header};
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::mesh::manifest::ChunkRef;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

/// Bytes copied with one sync and one transaction. Writers wait for it, some milliseconds.
const BATCH_LEN: usize = 4 << 20;

/// A batch fills at most this part of a segment.
const BATCHES_IN_SEGMENT_MIN: u64 = 4;

/// Live chunks whose places are in memory at a time: 60 bytes each.
const CHUNKS_AT_ONCE: u64 = 250_000;

/// A segment is compressed anew if that concerns this share of what is live in it.
const HASTY_PERCENT_MIN: u64 = 10;

/// The open segment is closed to be compressed anew if that concerns as many bytes: segments are no smaller for it.
const HASTY_OPEN_BYTES_MIN: u64 = 4 << 20;

/// Why a segment is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compaction {
    /// Less than this share of it is live, in percent.
    LiveBelow(u64),
    /// Much of it was stored in haste; up to this many bytes of segments at a time.
    Hasty { bytes_max: u64 },
}

/// What compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    pub segments: u64,
    /// Header and frame bytes written anew.
    pub copied: u64,
    /// Bytes given back to the file system.
    pub deleted: u64,
}

impl Store {
    /// Gives back what nothing wants any more, and deletes no path: segments that are dead go, or, where none is, those of
    /// which little is live are rewritten. Waits for a collection that goes on. Returns the bytes given back to the file
    /// system.
    pub fn reclaim(&self) -> Result<u64> {
        let _one = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        match segments::delete_dead(self)? {
            0 => Ok(compact(self, Compaction::LiveBelow(COMPACT_BELOW_PERCENT), &|| true)?.deleted),
            deleted => Ok(deleted),
        }
    }

    /// Compresses segments anew that were stored in haste, for idle times. `more` is asked before
    /// every few MiB whether to go on.
    pub fn recompress(&self, bytes_max: u64, more: &dyn Fn() -> bool) -> Result<Compacted> {
        let _one = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        self.close_hasty()?;
        compact(self, Compaction::Hasty { bytes_max }, more)
    }

    /// Closes the open segment if it is worth being compressed anew. A store may be small for ever and fill no segment.
    fn close_hasty(&self) -> Result<()> {
        let Some(open) = self.segments.appender().open_id() else { return Ok(()) };
        let row = self.index.read(|txn| {
            let segments = txn.open_table(SEGMENTS)?;
            Ok(segments.get(open)?.map(|row| SegmentRow::decode(row.value())))
        })?;
        let is_worth_it = |row: SegmentRow| row.hasty_bytes >= HASTY_OPEN_BYTES_MIN && is_hasty(&row);
        let mut appender = self.segments.appender();
        if row.is_some_and(is_worth_it) && appender.open_id() == Some(open) {
            appender.close();
        }
        Ok(())
    }
}

fn is_hasty(row: &SegmentRow) -> bool {
    row.hasty_bytes > row.live_bytes / 100 * HASTY_PERCENT_MIN
}

/// Rewrites what `why` chooses, least live bytes first. The caller holds the lock of collections.
pub fn compact(store: &Store, why: Compaction, more: &dyn Fn() -> bool) -> Result<Compacted> {
    let mut done = Compacted::default();
    for group in chosen(store, why)? {
        let mut copier = Copier::new(store)?;
        let copied = copier.copy_all(&group, more);
        done.copied += copier.copied;
        done.deleted += segments::delete_dead(store)?;
        match copied {
            Ok(true) => done.segments += group.len() as u64,
            // No room for copies, which is no failure of what was asked for; or no more wanted.
            Ok(false) => break,
            Err(error) if error.is_full() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Closed segments to rewrite, in groups with a bounded number of live chunks each.
fn chosen(store: &Store, why: Compaction) -> Result<Vec<BTreeSet<SegmentId>>> {
    let (open, ends) = {
        let appender = store.segments.appender();
        (appender.open_id(), appender.unfinished().collect::<BTreeMap<_, _>>())
    };
    let unpublished = store.pins.unpublished_segments();
    let mut rows: Vec<(SegmentId, SegmentRow)> = store.index.read(|txn| {
        let mut rows = Vec::new();
        for row in txn.open_table(SEGMENTS)?.iter()? {
            let (id, row) = row?;
            let (id, mut row) = (id.value(), SegmentRow::decode(row.value()));
            // What no commit has published is dead too.
            row.committed = row.committed.max(ends.get(&id).copied().unwrap_or(0));
            rows.push((id, row));
        }
        Ok(rows)
    })?;
    rows.retain(|(id, row)| Some(*id) != open && !unpublished.contains_key(id) && row.live_records > 0);
    rows.retain(|(_, row)| match why {
        Compaction::LiveBelow(percent) => row.live_bytes < row.committed / 100 * percent,
        Compaction::Hasty { .. } => is_hasty(row),
    });
    rows.sort_by_key(|(_, row)| row.live_bytes);
    if let Compaction::Hasty { bytes_max } = why {
        let mut left = bytes_max;
        let mut fits = |len: u64| left.checked_sub(len).map(|rest| left = rest).is_some();
        rows.retain(|(_, row)| fits(row.committed));
    }
    let mut groups: Vec<BTreeSet<SegmentId>> = Vec::new();
    let mut in_group = 0;
    for (id, row) in rows {
        match groups.last_mut() {
            Some(group) if in_group + row.live_records <= CHUNKS_AT_ONCE => {
                in_group += row.live_records;
                group.insert(id);
            }
            _ => {
                in_group = row.live_records;
                groups.push(BTreeSet::from([id]));
            }
        }
    }
    Ok(groups)
}

/// Copies of records that are not written yet, end to end.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    copies: Vec<Copy>,
}

struct Copy {
    hash: [u8; 32],
    from: Place,
    header: Header,
    /// In the batch.
    at: u32,
}

struct Copier<'a> {
    store: &'a Store,
    reader: ChunkReader,
    encoder: Encoder,
    batch: Batch,
    record: Vec<u8>,
    contents: Vec<u8>,
    copied: u64,
    batch_len: usize,
    rests: Rests<'a>,
    /// Since the last rest.
    reads: u64,
}

impl<'a> Copier<'a> {
    fn new(store: &'a Store) -> Result<Self> {
        let encoder = Encoder::new(store.options.settled_level).map_err(Error::io("compress", &store.dir))?;
        Ok(Copier {
            store,
            reader: ChunkReader::new(store)?,
            encoder,
            batch: Batch::default(),
            record: Vec::new(),
            contents: Vec::new(),
            copied: 0,
            batch_len: BATCH_LEN.min((store.options.segment_bytes() / BATCHES_IN_SEGMENT_MIN) as usize),
            rests: Rests::new(&store.segments),
            reads: 0,
        })
    }

    /// `false` if `more` ended it.
    fn copy_all(&mut self, group: &BTreeSet<SegmentId>, more: &dyn Fn() -> bool) -> Result<bool> {
        for (place, hash) in self.store.chunks_in(|segment| group.contains(&segment))? {
            self.copy(hash, place)?;
            if self.batch.bytes.len() >= self.batch_len {
                self.flush()?;
                self.rests.rest(std::mem::take(&mut self.reads));
                if !more() {
                    return Ok(false);
                }
            }
        }
        self.flush()?;
        Ok(true)
    }

    /// What is damaged is not copied, and is known to be damaged from now on.
    fn copy(&mut self, hash: [u8; 32], from: Place) -> Result<()> {
        self.reads += 1;
        match self.store.segments.read(&hash, &from, &mut self.record) {
            Ok(()) => {}
            Err(error @ Error::Damaged(_)) => {
                self.store.noting(error);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let at = self.batch.bytes.len();
        let header = match from.hasty {
            false => {
                self.batch.bytes.extend_from_slice(&self.record);
                from.header(&hash)
            }
            true => {
                self.reads += 1;
                let chunk = ChunkRef { hash, len: from.chunk_len };
                match self.reader.read(&chunk, Some(from), &mut self.contents) {
                    Ok(()) => self.encode(hash)?,
                    Err(Error::Damaged(_)) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        // A batch is a little more than `BATCH_LEN`.
        self.batch.copies.push(Copy { hash, from, header, at: at as u32 });
        Ok(())
    }

    fn encode(&mut self, hash: [u8; 32]) -> Result<Header> {
        let bytes = &mut self.batch.bytes;
        let at = bytes.len();
        bytes.extend_from_slice(&[0; HEADER_LEN]);
        let encoded = self.encoder.encode(&self.contents, Effort::Level, bytes);
        encoded.map_err(Error::io("compress", &self.store.dir))?;
        let header = Header::of(hash, false, &bytes[at + HEADER_LEN..]);
        bytes[at..at + HEADER_LEN].copy_from_slice(&header.encode());
        Ok(header)
    }

    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.copies.is_empty() {
            return Ok(());
        }
        let (segment, base) = self.store.segments.appender().append_copies(&batch.bytes)?;
        self.copied += batch.bytes.len() as u64;
        self.store.writer.write(true, move |txn| {
            let mut chunks = txn.open_table(CHUNKS)?;
            let mut live = LiveChange::default();
            for Copy { hash, from, header, at } in batch.copies {
                let still = chunks.get(&hash)?.is_some_and(|row| Place::decode(row.value()) == from);
                if still {
                    let to = Place::of(&header, segment, base + at, from.chunk_len);
                    chunks.insert(&hash, &to.encode())?;
                    live.lost(&from);
                    live.gained(&to);
                }
            }
            live.apply(txn)
        })
    }
}
