//! Looks for damage, and changes nothing.

use crate::chunks::ChunkReader;
use crate::error::{Damage, Defect, Error, Result};
use crate::frame::Decoder;
use crate::index::path_record::PathRecord;
use crate::index::tables::{CHUNKS, MANIFESTS, PATHS, SEGMENTS, SegmentRow};
use crate::manifests;
use crate::place::{Place, SegmentId};
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::nix::store_path::StorePath;
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// Findings that are kept; who has more needs no list.
const DAMAGE_MAX: usize = 10_000;

/// Chunks whose places are in memory at a time, to be read in the order they lie: 48 bytes each.
const CHUNKS_AT_ONCE: u64 = 500_000;

/// What was looked at, and what was wrong.
#[derive(Debug, Default)]
pub struct VerifyReport {
    pub paths: u64,
    pub chunks: u64,
    /// Each names the path that suffers, at most 10,000 of them.
    pub damage: Vec<Damage>,
}

impl VerifyReport {
    fn found(&mut self, damage: Damage) {
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(damage);
        }
    }
}

impl Store {
    /// Checks that every valid path has its record, its references, its manifest and its chunks in
    /// the index; with `contents` every live chunk is read back and hashed too.
    pub fn verify(&self, contents: bool) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut broken = HashMap::new();
        if contents {
            for segments in self.segment_groups()? {
                self.verify_chunks(segments, &mut report, &mut broken)?;
            }
        }
        let mut decoder = self.decoders.take(Decoder::new)?;
        for path in self.paths()? {
            report.paths += 1;
            if let Err(error) = self.verify_path(&path, &broken, &mut decoder) {
                match error {
                    Error::Damaged(damage) => report.found(Damage { path: Some(path), ..(*damage).clone() }),
                    error => return Err(error),
                }
            }
        }
        Ok(report)
    }

    /// Ranges of segments with a bounded number of live chunks each.
    fn segment_groups(&self) -> Result<Vec<RangeInclusive<SegmentId>>> {
        self.index.read(|txn| {
            let mut groups: Vec<RangeInclusive<SegmentId>> = Vec::new();
            let mut in_group = 0;
            for row in txn.open_table(SEGMENTS)?.iter()? {
                let (id, row) = row?;
                let (id, records) = (id.value(), SegmentRow::decode(row.value()).live_records);
                match groups.last_mut() {
                    Some(group) if in_group + records <= CHUNKS_AT_ONCE => {
                        in_group += records;
                        *group = *group.start()..=id;
                    }
                    _ => {
                        in_group = records;
                        groups.push(id..=id);
                    }
                }
            }
            Ok(groups)
        })
    }

    fn verify_chunks(
        &self,
        segments: RangeInclusive<SegmentId>,
        report: &mut VerifyReport,
        broken: &mut HashMap<[u8; 32], Damage>,
    ) -> Result<()> {
        let chunks = self.chunks_in(|segment| segments.contains(&segment))?;
        let mut reader = ChunkReader::new(self)?;
        let mut contents = Vec::new();
        for (place, hash) in chunks {
            report.chunks += 1;
            let chunk = ChunkRef { hash, len: place.chunk_len };
            match reader.read(&chunk, Some(place), &mut contents) {
                Ok(()) => {}
                Err(Error::Damaged(damage)) => self.note_broken(hash, &damage, broken)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The chunks in some segments, in the order that they lie in.
    pub(crate) fn chunks_in(&self, wanted: impl Fn(SegmentId) -> bool) -> Result<Vec<(Place, [u8; 32])>> {
        let mut chunks: Vec<(Place, [u8; 32])> = self.index.read(|txn| {
            let mut chunks = Vec::new();
            for row in txn.open_table(CHUNKS)?.iter()? {
                let (hash, place) = row?;
                let place = Place::decode(place.value());
                if wanted(place.segment) {
                    chunks.push((place, *hash.value()));
                }
            }
            Ok(chunks)
        })?;
        chunks.sort_unstable_by_key(|(place, _)| (place.segment, place.offset));
        Ok(chunks)
    }

    /// A chunk that was collected meanwhile is no damage.
    fn note_broken(&self, hash: [u8; 32], damage: &Damage, broken: &mut HashMap<[u8; 32], Damage>) -> Result<()> {
        let known = self.places(std::iter::once(&hash))?.iter().any(Option::is_some);
        if known && broken.len() < DAMAGE_MAX {
            broken.insert(hash, damage.clone());
        }
        Ok(())
    }

    /// The first thing that is wrong with a path. One that was deleted meanwhile is right.
    fn verify_path(&self, path: &StorePath, broken: &HashMap<[u8; 32], Damage>, decoder: &mut Decoder) -> Result<()> {
        self.index.read(|txn| {
            let paths = txn.open_table(PATHS)?;
            let Some(row) = paths.get(path.base_name())? else {
                return Ok(());
            };
            let record = PathRecord::decode(path.base_name(), row.value())?;
            for reference in &record.info.references {
                if paths.get(reference.base_name())?.is_none() {
                    return Err(Damage::record(reference.base_name(), "it is referred to and not valid").into());
                }
            }
            let root = &record.content_root;
            let row = txn.open_table(MANIFESTS)?.get(root)?;
            let row = row.ok_or_else(|| Damage::manifest(*root, Defect::Unknown))?;
            let manifest = manifests::unpack(root, row.value(), decoder)?;
            let chunks = txn.open_table(CHUNKS)?;
            for chunk in &manifest.chunks {
                if let Some(damage) = broken.get(&chunk.hash) {
                    return Err(damage.clone().into());
                }
                if chunks.get(&chunk.hash)?.is_none() {
                    return Err(Damage::chunk(chunk.hash, None, Defect::Unknown).into());
                }
            }
            Ok(())
        })
    }
}
