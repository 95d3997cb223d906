//! Makes paths valid: record, manifest, edges and chunks in one transaction, after their bytes are
//! durable.

use crate::damage;
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
use std::sync::Arc;

/// All that one path publishes.
struct Publication {
    record: PathRecord,
    packed_manifest: Vec<u8>,
    chunks: Vec<([u8; 32], Place)>,
    pins: Arc<PinSet>,
}

/// Whether each path of a batch became valid by it; what was valid before published nothing.
type Published = Vec<bool>;

/// What is known of a path before it is published.
enum Standing {
    Absent,
    Valid,
    /// Recorded, and something of it is damaged.
    Damaged(Box<PathRecord>),
}

impl Store {
    /// Makes paths valid, durably, all or none. Every reference must be valid or among `batch`.
    /// Paths that are valid already stay as they are; what was damaged is healed by what is committed under its name.
    /// A path that relies on a chunk that was found damaged since it was taken in is refused:
    /// [`CommitError::Damaged`]; its bytes have to be taken in again.
    /// Concurrent commits share the wait for the disk.
    pub fn commit(&self, batch: Vec<(PathInfo, Ingested)>) -> Result<(), CommitError> {
        let mut publications = Vec::with_capacity(batch.len());
        let mut pins: Vec<Arc<PinSet>> = Vec::with_capacity(batch.len());
        for (info, ingested) in batch {
            if info.nar_hash != ingested.nar_hash || info.nar_size != ingested.nar_size {
                return Err(CommitError::Contents { path: info.path });
            }
            let record = PathRecord { content_root: ingested.content_root, info };
            let (packed_manifest, set) = (ingested.packed_manifest, Arc::new(ingested.pins));
            pins.push(set.clone());
            publications.push(Publication { record, packed_manifest, chunks: set.unpublished(), pins: set });
        }
        let watchers = self.watchers();
        let infos: Vec<PathInfo> = match watchers.is_empty() {
            true => Vec::new(),
            false => publications.iter().map(|publication| publication.record.info.clone()).collect(),
        };
        let needs_sync = publications.iter().any(|publication| !publication.chunks.is_empty());
        let stored: Vec<[u8; 32]> = publications.iter().flat_map(Publication::names).copied().collect();
        let store = self.clone();
        let published = self.writer.write(needs_sync, move |txn| store.publish(txn, &publications))??;
        pins.iter().zip(&published).filter(|(_, published)| **published).for_each(|(set, _)| set.published());
        let new: Vec<PathInfo> =
            infos.into_iter().zip(published).filter_map(|(info, new)| new.then_some(info)).collect();
        if !new.is_empty() {
            watchers.iter().for_each(|watcher| watcher.committed(&new));
        }
        if self.pins.any_damaged() {
            self.follow_damage(&stored)?;
        }
        Ok(())
    }
}

impl Publication {
    /// What is stored under these names when this is published.
    fn names(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.chunks.iter().map(|(hash, _)| hash).chain(std::iter::once(&self.record.content_root))
    }

    /// Whether something that was stored already when this was taken in is not relied on any more.
    fn relies_on_damage(&self, txn: &WriteTransaction) -> Result<bool> {
        let brought: HashSet<&[u8; 32]> = self.names().collect();
        let is_old = |hash: &[u8; 32]| !brought.contains(hash);
        Ok(self.pins.any_absent(&self.record.content_root) || damage::marks_any(txn, &self.pins, is_old)?)
    }
}

impl Store {
    /// The inner error is decided on before anything is written.
    fn publish(&self, txn: &WriteTransaction, batch: &[Publication]) -> Result<Result<Published, CommitError>> {
        if let Some(error) = missing_reference(&txn.open_table(PATHS)?, batch)? {
            return Ok(Err(error));
        }
        for publication in batch {
            let is_new = !matches!(self.standing(txn, &publication.record)?, Standing::Valid);
            if is_new && publication.relies_on_damage(txn)? {
                return Ok(Err(CommitError::Damaged { path: publication.record.info.path.clone() }));
            }
        }
        let mut live = LiveChange::default();
        let mut published = Vec::with_capacity(batch.len());
        for publication in batch {
            let standing = self.standing(txn, &publication.record)?;
            let is_new = !matches!(standing, Standing::Valid);
            if is_new {
                publish_path(txn, &publication.record, standing)?;
                publish_chunks(&mut txn.open_table(CHUNKS)?, &publication.chunks, &mut live)?;
                let mut manifests = txn.open_table(MANIFESTS)?;
                let root = &publication.record.content_root;
                // What lies there may be damaged without anybody having found it.
                manifests.insert(root, publication.packed_manifest.as_slice())?;
                damage::unmark(txn, publication.names())?;
            }
            published.push(is_new);
        }
        live.apply(txn)?;
        Ok(Ok(published))
    }

    fn standing(&self, txn: &WriteTransaction, record: &PathRecord) -> Result<Standing> {
        let name = record.info.path.base_name();
        let known = match txn.open_table(PATHS)?.get(name)? {
            Some(row) => PathRecord::decode(name, row.value())?,
            None => return Ok(Standing::Absent),
        };
        Ok(match self.is_whole(&txn.open_table(MANIFESTS)?, &known.content_root)? {
            true => Standing::Valid,
            false => Standing::Damaged(Box::new(known)),
        })
    }
}

fn publish_path(txn: &WriteTransaction, record: &PathRecord, standing: Standing) -> Result<()> {
    let info = &record.info;
    let mut record = record.clone();
    let mut referrers = txn.open_table(REFERRERS)?;
    if let Standing::Damaged(known) = standing {
        for reference in &known.info.references {
            referrers.remove(&edge(reference, &info.path))?;
        }
        // The same path, stored again: what was known of it still is.
        if known.info.nar_hash == info.nar_hash && known.info.references == info.references {
            record.info.signatures.extend(known.info.signatures);
            record.info.ultimate |= known.info.ultimate;
            record.info.deriver = known.info.deriver.or(record.info.deriver);
            record.info.registration_time = known.info.registration_time;
        }
    }
    txn.open_table(PATHS)?.insert(info.path.base_name(), record.encode().as_slice())?;
    for reference in &info.references {
        referrers.insert(&edge(reference, &info.path), ())?;
    }
    if let Some(deriver) = &record.info.deriver {
        txn.open_table(DERIVERS)?.insert(&edge(&info.path, deriver), ())?;
    }
    Ok(())
}

/// A reference that is recorded and damaged counts: it is known, and heals when it comes again.
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
