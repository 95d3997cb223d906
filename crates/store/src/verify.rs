//! Looks for damage. What is found is not served any more; see [`crate::damage`].

use crate::chunks::ChunkReader;
use crate::error::{Damage, Defect, Error, Result};
use crate::frame::Decoder;
use crate::index::path_record::PathRecord;
use crate::index::tables::{CHUNKS, MANIFESTS, PATHS, SEGMENTS, SegmentRow};
use crate::manifests;
use crate::paths::base_name;
use crate::place::{Place, SegmentId};
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::nix::store_path::StorePath;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Findings that are kept; who has more needs no list.
const DAMAGE_MAX: usize = 10_000;

/// Chunks whose places are in memory at a time, to be read in the order they lie: 56 bytes each.
const CHUNKS_AT_ONCE: u64 = 250_000;

/// Stored bytes that are read between two looks at whether to go on: some milliseconds of a disk's work.
const PACE_BYTES: u64 = 1 << 20;

/// What was looked at, and what was wrong.
#[derive(Debug, Default)]
pub struct VerifyReport {
    pub paths: u64,
    pub chunks: u64,
    /// Stored bytes that were read.
    pub bytes: u64,
    /// Each names the path that suffers, at most 10,000 of them.
    pub damage: Vec<Damage>,
    /// Chunks that were taken for damaged, and read right again where they lie.
    pub absolved: u64,
    /// Whether it was ended before all was looked at.
    pub cut_short: bool,
}

/// How far a look at all contents has come, in stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    pub bytes: u64,
    pub bytes_total: u64,
    /// Chunks that were found damaged, now or before.
    pub damaged: u64,
}

/// Asked after every MiB or so whether to go on; it may take its time.
pub type Pace<'a> = &'a mut dyn FnMut(VerifyProgress) -> bool;

impl VerifyReport {
    fn found(&mut self, damage: Damage) {
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(damage);
        }
    }
}

impl Store {
    /// Checks that every recorded path has its references, its manifest and its chunks in the index; with `contents`
    /// every chunk is read back and hashed too.
    pub fn verify(&self, contents: bool) -> Result<VerifyReport> {
        match contents {
            true => self.scrub(&mut |_| true),
            false => {
                let mut report = VerifyReport::default();
                self.verify_paths(&HashMap::new(), &mut report)?;
                Ok(report)
            }
        }
    }

    /// As [`Store::verify`] with contents, at the speed that `pace` allows. Chunks that were found damaged before are
    /// looked at again first.
    pub fn scrub(&self, pace: Pace<'_>) -> Result<VerifyReport> {
        let mut reading = Reading::new(self, pace)?;
        reading.look_again()?;
        for segments in self.segment_groups()? {
            if reading.report.cut_short {
                break;
            }
            reading.look_at(segments)?;
        }
        let Reading { mut report, broken, progress, .. } = reading;
        report.bytes = progress.bytes;
        if !report.cut_short {
            self.verify_paths(&broken, &mut report)?;
        }
        Ok(report)
    }

    fn verify_paths(&self, broken: &HashMap<[u8; 32], Damage>, report: &mut VerifyReport) -> Result<()> {
        let mut decoder = self.decoders.take(Decoder::new)?;
        for path in self.recorded_paths()? {
            report.paths += 1;
            match self.verify_path(&path, broken, &mut decoder) {
                Ok(()) => {}
                Err(Error::Damaged(damage)) => {
                    self.note_damage(std::slice::from_ref(&damage));
                    report.found(Damage { path: Some(path), ..(*damage).clone() });
                }
                Err(error) => return Err(error),
            }
        }
        self.decoders.put(decoder);
        Ok(())
    }

    fn recorded_paths(&self) -> Result<Vec<StorePath>> {
        self.index.read(|txn| txn.open_table(PATHS)?.iter()?.map(|row| base_name(row?.0.value())).collect())
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
            let missing = |hash| if self.pins.is_damaged(hash) { Defect::Quarantined } else { Defect::Unknown };
            let row = txn.open_table(MANIFESTS)?.get(root)?;
            let row = row.ok_or_else(|| Damage::manifest(*root, missing(root)))?;
            let manifest = manifests::unpack(root, row.value(), decoder)?;
            let chunks = txn.open_table(CHUNKS)?;
            for chunk in &manifest.chunks {
                if self.pins.is_damaged(&chunk.hash) || chunks.get(&chunk.hash)?.is_none() {
                    let found = broken.get(&chunk.hash).cloned();
                    let damage = found.unwrap_or_else(|| Damage::chunk(chunk.hash, None, missing(&chunk.hash)));
                    return Err(damage.into());
                }
            }
            Ok(())
        })
    }
}

/// Reads all chunks back.
struct Reading<'a> {
    store: &'a Store,
    reader: ChunkReader,
    contents: Vec<u8>,
    pace: Pace<'a>,
    progress: VerifyProgress,
    since_pace: u64,
    report: VerifyReport,
    broken: HashMap<[u8; 32], Damage>,
}

impl<'a> Reading<'a> {
    fn new(store: &'a Store, pace: Pace<'a>) -> Result<Self> {
        let progress = VerifyProgress { bytes_total: store.stats()?.live_bytes, ..VerifyProgress::default() };
        Ok(Reading {
            store,
            reader: ChunkReader::new(store)?,
            contents: Vec::new(),
            pace,
            progress,
            since_pace: 0,
            report: VerifyReport::default(),
            broken: HashMap::new(),
        })
    }

    /// A disk may have read wrong once.
    fn look_again(&mut self) -> Result<()> {
        let mut right = Vec::new();
        for (hash, place) in self.store.damaged_places()? {
            match self.reader.examine(&ChunkRef { hash, len: place.chunk_len }, Some(place), &mut self.contents) {
                Ok(()) => right.push((hash, place)),
                Err(Error::Damaged(_)) => self.progress.damaged += 1,
                Err(error) => return Err(error),
            }
            if !self.go_on(&place) {
                break;
            }
        }
        self.report.absolved = right.len() as u64;
        match right.is_empty() {
            true => Ok(()),
            false => self.store.absolve(right),
        }
    }

    fn look_at(&mut self, segments: RangeInclusive<SegmentId>) -> Result<()> {
        let mut found = Vec::new();
        for (place, hash) in self.store.chunks_in(|segment| segments.contains(&segment))? {
            self.report.chunks += 1;
            match self.reader.examine(&ChunkRef { hash, len: place.chunk_len }, Some(place), &mut self.contents) {
                Ok(()) => {}
                Err(Error::Damaged(damage)) => found.extend(self.note(hash, damage)?),
                Err(error) => return Err(error),
            }
            if !self.go_on(&place) {
                break;
            }
        }
        self.store.note_damage(&found);
        Ok(())
    }

    /// A chunk that was collected meanwhile is no damage.
    fn note(&mut self, hash: [u8; 32], damage: Arc<Damage>) -> Result<Option<Arc<Damage>>> {
        if self.store.places(std::iter::once(&hash))?.iter().all(Option::is_none) {
            return Ok(None);
        }
        self.progress.damaged += 1;
        if self.broken.len() < DAMAGE_MAX {
            self.broken.insert(hash, (*damage).clone());
        }
        Ok(Some(damage))
    }

    fn go_on(&mut self, read: &Place) -> bool {
        self.progress.bytes += read.record_len();
        self.since_pace += read.record_len();
        if self.since_pace >= PACE_BYTES {
            self.since_pace = 0;
            self.report.cut_short = !(self.pace)(self.progress);
        }
        !self.report.cut_short
    }
}
