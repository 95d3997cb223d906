//! Makes paths valid: record, manifest, edges and chunks in one transaction, after their bytes are
//! durable.

use crate::error::{CommitError, Result};
use crate::index::path_record::PathRecord;
use crate::index::tables::{CHUNKS, DERIVERS, MANIFESTS, PATHS, REFERRERS, SEGMENTS, SegmentRow};
use crate::ingest::Ingested;
use crate::paths::edge;
use crate::pins::PinSet;
use crate::place::{Place, SegmentId};
use crate::store::Store;
use redb::{ReadableTable, WriteTransaction};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use std::collections::{HashMap, HashSet};

/// All that one commit writes.
struct Publication {
    paths: Vec<PathRecord>,
    manifests: Vec<([u8; 32], Vec<u8>)>,
    chunks: Vec<([u8; 32], Place)>,
}

impl Store {
    /// Makes paths valid, durably, all or none. Every reference must be valid or among `batch`.
    /// Paths that are valid already stay as they are. Concurrent commits share the wait for the disk.
    pub fn commit(&self, batch: Vec<(PathInfo, Ingested)>) -> Result<(), CommitError> {
        let mut publication = Publication { paths: Vec::new(), manifests: Vec::new(), chunks: Vec::new() };
        let mut pins: Vec<PinSet> = Vec::with_capacity(batch.len());
        for (info, ingested) in batch {
            if info.nar_hash != ingested.nar_hash || info.nar_size != ingested.nar_size {
                return Err(CommitError::Contents { path: info.path });
            }
            let content_root = ingested.content_root;
            publication.chunks.extend(ingested.pins.unpublished());
            publication.manifests.push((content_root, ingested.packed_manifest));
            publication.paths.push(PathRecord { content_root, info });
            pins.push(ingested.pins);
        }
        self.writer.write(true, move |txn| publication.publish(txn))??;
        for set in &pins {
            set.published();
        }
        Ok(())
    }
}

impl Publication {
    /// The inner error is decided on before anything is written.
    fn publish(self, txn: &WriteTransaction) -> Result<Result<(), CommitError>> {
        let mut paths = txn.open_table(PATHS)?;
        if let Some(error) = self.missing_reference(&paths)? {
            return Ok(Err(error));
        }
        publish_chunks(txn, &self.chunks)?;
        let mut manifests = txn.open_table(MANIFESTS)?;
        for (root, packed) in &self.manifests {
            if manifests.get(root)?.is_none() {
                manifests.insert(root, packed.as_slice())?;
            }
        }
        let mut referrers = txn.open_table(REFERRERS)?;
        let mut derivers = txn.open_table(DERIVERS)?;
        for record in &self.paths {
            let info = &record.info;
            let name = info.path.base_name();
            if paths.get(name)?.is_some() {
                continue;
            }
            paths.insert(name, record.encode().as_slice())?;
            for reference in &info.references {
                referrers.insert(&edge(reference, &info.path), ())?;
            }
            if let Some(deriver) = &info.deriver {
                derivers.insert(&edge(&info.path, deriver), ())?;
            }
        }
        Ok(Ok(()))
    }

    fn missing_reference(
        &self,
        paths: &impl ReadableTable<&'static str, &'static [u8]>,
    ) -> Result<Option<CommitError>> {
        let batch: HashSet<&StorePath> = self.paths.iter().map(|record| &record.info.path).collect();
        for PathRecord { info, .. } in &self.paths {
            for reference in info.references.iter().filter(|reference| !batch.contains(reference)) {
                if paths.get(reference.base_name())?.is_none() {
                    let (path, reference) = (info.path.clone(), reference.clone());
                    return Ok(Some(CommitError::Reference { path, reference }));
                }
            }
        }
        Ok(None)
    }
}

/// Points the index at chunks' places. The place given is one that somebody keeps; one that the index
/// knows already may be about to be swept.
fn publish_chunks(txn: &WriteTransaction, chunks: &[([u8; 32], Place)]) -> Result<()> {
    if chunks.is_empty() {
        return Ok(());
    }
    let mut live = LiveChange::default();
    let mut table = txn.open_table(CHUNKS)?;
    for (hash, place) in chunks {
        let old = table.insert(hash, &place.encode())?.map(|row| Place::decode(row.value()));
        if old != Some(*place) {
            live.gained(place);
            if let Some(old) = old {
                live.lost(&old);
            }
        }
    }
    live.apply(txn)
}

/// What a transaction changes in what segments hold of live records.
#[derive(Default)]
pub struct LiveChange(HashMap<SegmentId, (i64, i64)>);

impl LiveChange {
    pub fn gained(&mut self, place: &Place) {
        self.add(place, 1);
    }

    pub fn lost(&mut self, place: &Place) {
        self.add(place, -1);
    }

    fn add(&mut self, place: &Place, records: i64) {
        let (bytes, count) = self.0.entry(place.segment).or_default();
        // A record is shorter than 4 GiB.
        *bytes += records * place.record_len() as i64;
        *count += records;
    }

    pub fn apply(self, txn: &WriteTransaction) -> Result<()> {
        let mut segments = txn.open_table(SEGMENTS)?;
        for (id, (bytes, records)) in self.0 {
            let row = segments.get(id)?.map(|row| SegmentRow::decode(row.value())).unwrap_or_default();
            let live_bytes = row.live_bytes.saturating_add_signed(bytes);
            let live_records = row.live_records.saturating_add_signed(records);
            segments.insert(id, &SegmentRow { live_bytes, live_records, ..row }.encode())?;
        }
        Ok(())
    }
}
