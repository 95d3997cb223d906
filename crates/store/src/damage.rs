//! What was found damaged is remembered, kept from readers, and forgotten when it is stored again.
//!
//! The row of a chunk whose bytes are not its own moves from the table of chunks to that of damage, and that of a
//! manifest likewise. So whoever asks where a chunk lies takes it for missing: an ingest stores it again, a collection
//! gives its bytes back. Invariants:
//! - a name is damaged or has a row that is trusted, never both;
//! - the commit that stores it again takes the mark away, in one transaction;
//! - [`crate::pins::Pins`] mirrors the table in memory, and no lock is held while it is read.

use crate::commit::LiveChange;
use crate::error::{Damage, Error, Object, Result};
use crate::frame::Decoder;
use crate::index::tables::{CHUNKS, DAMAGED, MANIFESTS, SEGMENTS};
use crate::manifests;
use crate::pins::PinSet;
use crate::place::{PLACE_LEN, Place};
use crate::store::Store;
use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

type Hash = [u8; 32];

/// Manifests of which it is remembered whether they are whole: 50 bytes each. Of more it is found out again.
const KNOWN_MAX: usize = 1 << 16;

/// What was found out since the damage changed last.
#[derive(Default)]
pub struct DamageNotes {
    /// Held while the mirror follows the table, so that the last to do so has seen the newest.
    following: Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    generation: u64,
    whole: HashMap<Hash, bool>,
}

/// What lies under the name of something damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Manifest,
    Chunk(Option<Place>),
}

impl Mark {
    fn encode(self) -> Vec<u8> {
        match self {
            Mark::Manifest => b"m".to_vec(),
            Mark::Chunk(None) => b"c".to_vec(),
            Mark::Chunk(Some(place)) => [b"c".as_slice(), &place.encode()].concat(),
        }
    }

    fn decode(bytes: &[u8]) -> Mark {
        let place = |bytes: &[u8]| bytes.try_into().ok().map(|place: &[u8; PLACE_LEN]| Place::decode(place));
        match bytes.split_first() {
            Some((b'c', rest)) => Mark::Chunk(place(rest)),
            _ => Mark::Manifest,
        }
    }
}

impl Store {
    /// The error, after note was taken of the damage that it tells of.
    pub(crate) fn noting(&self, error: Error) -> Error {
        if let Error::Damaged(damage) = &error {
            self.note_damage(std::slice::from_ref(damage));
        }
        error
    }

    /// Takes note of damage, durably. Where the index cannot be written it is known until the store is closed.
    pub(crate) fn note_damage(&self, found: &[Arc<Damage>]) {
        let mark = |damage: &Arc<Damage>| match damage.object {
            Object::Chunk(hash) => Some((hash, Mark::Chunk(damage.place))),
            Object::Manifest(root) => Some((root, Mark::Manifest)),
            Object::Record(_) => None,
        };
        let marks = found.iter().filter_map(mark).filter(|(hash, _)| !self.pins.is_damaged(hash));
        let marks: Vec<(Hash, Mark)> = marks.collect();
        if marks.is_empty() {
            return;
        }
        let hashes: Vec<Hash> = marks.iter().map(|(hash, _)| *hash).collect();
        for (hash, mark) in &marks {
            if let Mark::Chunk(place) = mark {
                self.pins.distrust(hash, *place);
            }
        }
        let written = self.writer.write(false, move |txn| mark_all(txn, &marks));
        if written.and_then(|()| self.follow_damage(&hashes)).is_err() {
            self.damage_is(hashes.iter().map(|hash| (*hash, true)));
        }
    }

    /// Brings the mirror to what the index says of these names.
    pub(crate) fn follow_damage(&self, hashes: &[Hash]) -> Result<()> {
        let _following = self.damage.following.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = self.index.read(|txn| {
            let table = txn.open_table(DAMAGED)?;
            let marked = hashes.iter().map(|hash| Ok((*hash, table.get(hash)?.is_some())));
            marked.collect::<Result<Vec<_>>>()
        })?;
        self.damage_is(marked.into_iter());
        Ok(())
    }

    /// Notes it in memory, and tells who follows what the store has.
    fn damage_is(&self, marks: impl Iterator<Item = (Hash, bool)>) {
        if self.pins.set_damaged(marks) {
            self.watchers().iter().for_each(|watcher| watcher.damage_changed());
        }
    }

    /// Whether all that a content root names is here and right, as far as anybody knows. This is what makes a path that
    /// is recorded a valid one; everything that asks for valid paths asks here.
    pub(crate) fn is_whole(
        &self,
        manifests: &impl ReadableTable<&'static [u8; 32], &'static [u8]>,
        root: &Hash,
    ) -> Result<bool> {
        if !self.pins.any_damaged() {
            return Ok(true);
        }
        let generation = self.pins.damage_generation();
        let known = || self.damage.known.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut known = known();
            if known.generation != generation || known.whole.len() >= KNOWN_MAX {
                *known = Known { generation, whole: HashMap::new() };
            }
            if let Some(&whole) = known.whole.get(root) {
                return Ok(whole);
            }
        }
        let whole = self.look_for_damage(manifests, root)?;
        let mut known = known();
        if known.generation == generation {
            known.whole.insert(*root, whole);
        }
        Ok(whole)
    }

    fn look_for_damage(
        &self,
        manifests: &impl ReadableTable<&'static [u8; 32], &'static [u8]>,
        root: &Hash,
    ) -> Result<bool> {
        let Some(row) = manifests.get(root)? else { return Ok(false) };
        let mut decoder = self.decoders.take(Decoder::new)?;
        let manifest = manifests::unpack(root, row.value(), &mut decoder);
        self.decoders.put(decoder);
        Ok(manifest.is_ok_and(|manifest| self.pins.none_damaged(manifest.chunks.iter().map(|chunk| &chunk.hash))))
    }

    /// Damaged chunks that lie somewhere, to be looked at again: a disk may have read wrong once.
    pub(crate) fn damaged_places(&self) -> Result<Vec<(Hash, Place)>> {
        self.index.read(|txn| {
            let mut places = Vec::new();
            for row in txn.open_table(DAMAGED)?.iter()? {
                let (hash, mark) = row?;
                if let Mark::Chunk(Some(place)) = Mark::decode(mark.value()) {
                    places.push((*hash.value(), place));
                }
            }
            Ok(places)
        })
    }

    /// Trusts chunks again that read right at these places, unless their segment was deleted meanwhile.
    pub(crate) fn absolve(&self, chunks: Vec<(Hash, Place)>) -> Result<()> {
        // So that no collection is about to delete a segment that it found empty.
        let _one = self.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let hashes: Vec<Hash> = chunks.iter().map(|(hash, _)| *hash).collect();
        self.writer.write(false, move |txn| {
            let (mut table, mut damaged) = (txn.open_table(CHUNKS)?, txn.open_table(DAMAGED)?);
            let segments = txn.open_table(SEGMENTS)?;
            let mut live = LiveChange::default();
            for (hash, place) in &chunks {
                if segments.get(place.segment)?.is_none() {
                    continue;
                }
                let same = damaged.get(hash)?.map(|mark| Mark::decode(mark.value())) == Some(Mark::Chunk(Some(*place)));
                if same && table.get(hash)?.is_none() {
                    damaged.remove(hash)?;
                    table.insert(hash, &place.encode())?;
                    live.gained(place);
                }
            }
            drop((table, damaged, segments));
            live.apply(txn)
        })?;
        self.follow_damage(&hashes)
    }

    /// Forgets damage to what no manifest wants any more. Collections call it.
    pub(crate) fn forget_unwanted_damage(&self) -> Result<()> {
        if !self.pins.any_damaged() {
            return Ok(());
        }
        let mut decoder = self.decoders.take(Decoder::new)?;
        let unwanted: Vec<Hash> = self.index.read(|txn| {
            let mut marked = HashSet::new();
            for row in txn.open_table(DAMAGED)?.iter()? {
                marked.insert(*row?.0.value());
            }
            for row in txn.open_table(crate::index::tables::PATHS)?.iter()? {
                let (key, row) = row?;
                marked.remove(&crate::index::path_record::content_root(key.value(), row.value())?);
            }
            for row in txn.open_table(MANIFESTS)?.iter()? {
                let (root, packed) = row?;
                let manifest = manifests::unpack(root.value(), packed.value(), &mut decoder);
                for chunk in manifest.iter().flat_map(|manifest| &manifest.chunks) {
                    marked.remove(&chunk.hash);
                }
            }
            Ok(marked.into_iter().filter(|hash| self.pins.is_free(hash)).collect())
        })?;
        self.decoders.put(decoder);
        if unwanted.is_empty() {
            return Ok(());
        }
        let hashes = unwanted.clone();
        self.writer.write(false, move |txn| unmark(txn, unwanted.iter()))?;
        self.follow_damage(&hashes)
    }
}

fn mark_all(txn: &WriteTransaction, marks: &[(Hash, Mark)]) -> Result<()> {
    let (mut chunks, mut packed) = (txn.open_table(CHUNKS)?, txn.open_table(MANIFESTS)?);
    let mut damaged = txn.open_table(DAMAGED)?;
    let mut decoder = Decoder::new().map_err(Error::io("prepare to use", Path::new("zstd")))?;
    let mut live = LiveChange::default();
    for (hash, mark) in marks {
        match mark {
            Mark::Manifest => {
                let now = packed.get(hash)?.map(|row| manifests::unpack(hash, row.value(), &mut decoder));
                if now.is_some_and(|now| now.is_ok()) {
                    continue;
                }
                packed.remove(hash)?;
            }
            Mark::Chunk(place) => {
                let now = chunks.get(hash)?.map(|row| Place::decode(row.value()));
                // Stored again, elsewhere, since it was read; as the manifest above.
                if now.is_some() && now != *place {
                    continue;
                }
                if let Some(now) = now {
                    chunks.remove(hash)?;
                    live.lost(&now);
                }
            }
        }
        damaged.insert(hash, mark.encode().as_slice())?;
    }
    drop((chunks, packed, damaged));
    live.apply(txn)
}

/// Takes marks away, in the transaction that stores again what had them.
pub fn unmark<'a>(txn: &WriteTransaction, hashes: impl Iterator<Item = &'a Hash>) -> Result<()> {
    let mut damaged = txn.open_table(DAMAGED)?;
    if damaged.is_empty()? {
        return Ok(());
    }
    for hash in hashes {
        damaged.remove(hash)?;
    }
    Ok(())
}

/// Whether a name of `pins` that `counts` has a mark. Goes over whichever are fewer.
pub fn marks_any(txn: &WriteTransaction, pins: &PinSet, counts: impl Fn(&Hash) -> bool) -> Result<bool> {
    let damaged = txn.open_table(DAMAGED)?;
    if (pins.len() as u64) < damaged.len()? {
        for hash in pins.names().filter(|hash| counts(hash)) {
            if damaged.get(hash)?.is_some() {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    for row in damaged.iter()? {
        let (hash, _) = row?;
        if pins.contains(hash.value()) && counts(hash.value()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All names with a mark.
pub fn marked(index: &crate::index::Index) -> Result<Vec<Hash>> {
    index.read(|txn| {
        let rows = txn.open_table(DAMAGED)?;
        rows.iter()?.map(|row| Ok(*row?.0.value())).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Defect;
    use crate::options::Options;

    #[test]
    fn what_lay_in_a_segment_that_is_gone_is_not_trusted_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let place = Place { segment: 7, offset: 16, frame_len: 9, hasty: false, chunk_len: 9, check: 0 };
        let hash = [5; 32];
        store.note_damage(&[Arc::new(Damage::chunk(hash, Some(place), Defect::Truncated))]);
        store.absolve(vec![(hash, place)]).unwrap();
        assert!(store.pins.is_damaged(&hash));
        assert_eq!(store.places([hash].iter()).unwrap(), [None]);
    }
}
