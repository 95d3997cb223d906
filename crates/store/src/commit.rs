//! Makes paths valid: record, manifest, edges and chunks in one transaction, after their bytes are
//! durable.

use crate::error::{CommitError, Result};
use crate::index::path_record::PathRecord;
use crate::index::tables::{CHUNKS, DERIVERS, MANIFESTS, PATHS, REFERRERS, SEGMENTS, SegmentRow};
use crate::ingest::Ingested;
use crate::paths::edge;
use crate::pins::PinSet;
use crate::place::{PLACE_LEN, Place, SegmentId};
use crate::store::Store;
use redb::{ReadableTable, Table, WriteTransaction};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use std::collections::{HashMap, HashSet};

/// All that one path publishes.
struct Publication {
    record: PathRecord,
    packed_manifest: Vec<u8>,
    chunks: Vec<([u8; 32], Place)>,
}

/// Whether each path of a batch became valid by it; what was valid before published nothing.
type Published = Vec<bool>;

impl Store {
    /// Makes paths valid, durably, all or none. Every reference must be valid or among `batch`.
    /// Paths that are valid already stay as they are. Concurrent commits share the wait for the disk.
    pub fn commit(&self, batch: Vec<(PathInfo, Ingested)>) -> Result<(), CommitError> {
        let mut publications = Vec::with_capacity(batch.len());
        let mut pins: Vec<PinSet> = Vec::with_capacity(batch.len());
        for (info, ingested) in batch {
            if info.nar_hash != ingested.nar_hash || info.nar_size != ingested.nar_size {
                return Err(CommitError::Contents { path: info.path });
            }
            let record = PathRecord { content_root: ingested.content_root, info };
            let (packed_manifest, chunks) = (ingested.packed_manifest, ingested.pins.unpublished());
            publications.push(Publication { record, packed_manifest, chunks });
            pins.push(ingested.pins);
        }
        let needs_sync = publications.iter().any(|publication| !publication.chunks.is_empty());
        let published = self.writer.write(needs_sync, move |txn| publish(txn, &publications))??;
        pins.iter().zip(published).filter(|(_, published)| *published).for_each(|(set, _)| set.published());
        Ok(())
    }
}

/// The inner error is decided on before anything is written.
fn publish(txn: &WriteTransaction, batch: &[Publication]) -> Result<Result<Published, CommitError>> {
    if let Some(error) = missing_reference(&txn.open_table(PATHS)?, batch)? {
        return Ok(Err(error));
    }
    let mut live = LiveChange::default();
    let mut published = Vec::with_capacity(batch.len());
    for publication in batch {
        let is_new = publish_path(txn, &publication.record)?;
        if is_new {
            publish_chunks(&mut txn.open_table(CHUNKS)?, &publication.chunks, &mut live)?;
            let mut manifests = txn.open_table(MANIFESTS)?;
            let root = &publication.record.content_root;
            if manifests.get(root)?.is_none() {
                manifests.insert(root, publication.packed_manifest.as_slice())?;
            }
        }
        published.push(is_new);
    }
    live.apply(txn)?;
    Ok(Ok(published))
}

/// Whether the path was not valid yet.
fn publish_path(txn: &WriteTransaction, record: &PathRecord) -> Result<bool> {
    let info = &record.info;
    let name = info.path.base_name();
    let mut paths = txn.open_table(PATHS)?;
    if paths.get(name)?.is_some() {
        return Ok(false);
    }
    paths.insert(name, record.encode().as_slice())?;
    let mut referrers = txn.open_table(REFERRERS)?;
    for reference in &info.references {
        referrers.insert(&edge(reference, &info.path), ())?;
    }
    if let Some(deriver) = &info.deriver {
        txn.open_table(DERIVERS)?.insert(&edge(&info.path, deriver), ())?;
    }
    Ok(true)
}

fn missing_reference(
    paths: &impl ReadableTable<&'static str, &'static [u8]>,
    batch: &[Publication],
) -> Result<Option<CommitError>> {
    let infos = || batch.iter().map(|publication| &publication.record.info);
    let together: HashSet<&StorePath> = infos().map(|info| &info.path).collect();
    for info in infos() {
        for reference in info.references.iter().filter(|reference| !together.contains(reference)) {
            if paths.get(reference.base_name())?.is_none() {
                let (path, reference) = (info.path.clone(), reference.clone());
                return Ok(Some(CommitError::Reference { path, reference }));
            }
        }
    }
    Ok(None)
}

/// Points the index at chunks' places. The place given is one that somebody keeps; one that the index
/// knows already may be about to be swept.
fn publish_chunks(
    table: &mut Table<'_, &'static [u8; 32], &'static [u8; PLACE_LEN]>,
    chunks: &[([u8; 32], Place)],
    live: &mut LiveChange,
) -> Result<()> {
    for (hash, place) in chunks {
        let old = table.insert(hash, &place.encode())?.map(|row| Place::decode(row.value()));
        if old != Some(*place) {
            live.gained(place);
            if let Some(old) = old {
                live.lost(&old);
            }
        }
    }
    Ok(())
}

/// What a transaction changes in what segments hold of live records.
#[derive(Default)]
pub struct LiveChange(HashMap<SegmentId, Change>);

#[derive(Default)]
struct Change {
    bytes: i64,
    records: i64,
    hasty_bytes: i64,
}

impl LiveChange {
    pub fn gained(&mut self, place: &Place) {
        self.add(place, 1);
    }

    pub fn lost(&mut self, place: &Place) {
        self.add(place, -1);
    }

    fn add(&mut self, place: &Place, records: i64) {
        let change = self.0.entry(place.segment).or_default();
        // A record is shorter than 4 GiB.
        let bytes = records * place.record_len() as i64;
        change.bytes += bytes;
        change.records += records;
        if place.hasty {
            change.hasty_bytes += bytes;
        }
    }

    pub fn apply(self, txn: &WriteTransaction) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut segments = txn.open_table(SEGMENTS)?;
        for (id, change) in self.0 {
            let mut row = segments.get(id)?.map(|row| SegmentRow::decode(row.value())).unwrap_or_default();
            row.live_bytes = row.live_bytes.saturating_add_signed(change.bytes);
            row.live_records = row.live_records.saturating_add_signed(change.records);
            row.hasty_bytes = row.hasty_bytes.saturating_add_signed(change.hasty_bytes);
            segments.insert(id, &row.encode())?;
        }
        Ok(())
    }
}
