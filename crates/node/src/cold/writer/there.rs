//! What the bucket has under the name of a path, and so what is to be written of it.

use std::collections::BTreeSet;

use shoal_wire::mesh::cold::{ColdRecord, PackedChunk};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::Signature;
use shoal_wire::nix::store_path::StorePath;

use super::{LATER_MS, Means, Placed, Skipped, Waiting, Work};
use crate::cold::lengths::NAMED_MS;
use crate::cold::{Item, Signers};
use crate::session::admission::SIGNATURES_MAX;
use crate::upstream::Refusal;

/// What is to be written of a path.
pub(super) enum Wanted {
    Nothing,
    /// All but what it shares, with these signatures besides those of the path here.
    All(BTreeSet<Signature>),
    /// This record anew, signed by this node.
    Signatures(Box<ColdRecord>),
}

/// What the bucket has under the name of a path.
enum Found {
    /// All of it, and others believe it.
    Whole(ColdRecord),
    /// All of it, as only this node's configuration has it believe.
    Unsigned(ColdRecord),
    /// The same path by what is said of it; it cannot be read as it is there.
    Useless(ColdRecord),
    /// Contents that others believe in, and that are not those of this node: somebody may count on them.
    Other,
}

impl Work {
    /// What this node is to write. Error: that cannot be said now.
    pub(super) fn wanted(&self, path: &StorePath, is_doubted: bool) -> Result<Wanted, String> {
        let Means { cold, store, .. } = &self.means;
        let text = |error: &dyn std::fmt::Display| format!("{error:#}");
        if !store.is_valid(path).map_err(|error| text(&error))? {
            return Ok(Wanted::Nothing);
        }
        if !is_doubted && cold.notes.is_done(path).map_err(|error| text(&error))? {
            return Ok(Wanted::Nothing);
        }
        if !self.claims.claim(path) {
            if is_doubted {
                // Whether the other writes it is not known yet.
                cold.doubt(path.hash_part());
            }
            cold.backlog().postpone(Item::Path(path.clone()), cold.now_ms() + LATER_MS);
            return Ok(Wanted::Nothing);
        }
        match self.find(path) {
            Ok(Found::Whole(record) | Found::Unsigned(record)) if is_doubted => Ok(Wanted::All(record.signatures)),
            Ok(Found::Useless(record)) => Ok(Wanted::All(record.signatures)),
            // Whatever is there or not there, it is to be replaced.
            _ if is_doubted => Ok(Wanted::All(BTreeSet::new())),
            Err(Refusal::Missing) => Ok(Wanted::All(BTreeSet::new())),
            Ok(Found::Unsigned(record)) => Ok(Wanted::Signatures(Box::new(record))),
            Ok(Found::Whole(_)) => {
                self.claims.end(path);
                cold.notes.done(path).map_err(|error| text(&error))?;
                Ok(Wanted::Nothing)
            }
            Ok(Found::Other) => {
                self.claims.end(path);
                tracing::warn!(
                    path = path.base_name(),
                    "the bucket has other contents under a name that is here too; the first stay"
                );
                cold.notes.unfit(path).map_err(|error| text(&error))?;
                Ok(Wanted::Nothing)
            }
            Err(Refusal::Failed(why)) => {
                self.claims.end(path);
                Err(why)
            }
        }
    }

    /// Missing: what others believe of the path is not there. Anybody may have put something there that has its name.
    fn find(&self, path: &StorePath) -> Result<Found, Refusal> {
        let Means { cold, store, dir, keys, believes, .. } = &self.means;
        let found = cold.record(path.hash_part());
        if matches!(found, Err(Refusal::Missing)) {
            // It is written right now.
            cold.doubted().remove(path.hash_part());
        }
        let (record, failed) = (found?, |error: shoal_store::Error| Refusal::Failed(error.to_string()));
        let Some(info) = store.path_info(path).map_err(failed)? else { return Err(Refusal::Missing) };
        let said = record.info();
        let is_vouched_for = Signers::new(dir.clone(), keys).vouch_for(&said);
        if said.path != info.path || !(is_vouched_for || believes(&said).is_ok()) {
            return Err(Refusal::Missing);
        }
        if said.nar_hash != info.nar_hash {
            return Ok(Found::Other);
        }
        let Some(manifest) = store.manifest(path).map_err(failed)? else { return Err(Refusal::Missing) };
        let is_useless = !record.has_chunks(&manifest.chunks) || cold.lengths.is_any_wrong(&record.packs);
        if is_vouched_for && !is_useless {
            return Ok(Found::Whole(record));
        }
        // What is signed must be what is here.
        if said.references != info.references || said.ca != info.ca {
            return Err(Refusal::Missing);
        }
        match is_useless || !self.has_packs(&record)? {
            true => Ok(Found::Useless(record)),
            false => Ok(Found::Unsigned(record)),
        }
    }

    fn has_packs(&self, record: &ColdRecord) -> Result<bool, Refusal> {
        let (packs, needed): (Vec<_>, Vec<_>) = record.pack_lens().into_iter().unzip();
        let lens = self.means.cold.pack_lens(&packs, NAMED_MS, u64::MAX).map_err(Refusal::Failed)?;
        Ok(lens.iter().zip(&needed).all(|(len, needed)| len >= needed))
    }

    /// Writes a record again that gives the path whole, so that others believe it too.
    pub(super) fn sign(&mut self, record: ColdRecord) -> Result<(), Skipped> {
        let here = self.means.store.path_info(&record.path);
        let Some(mut info) = here.map_err(|error| Skipped::NotNow(error.to_string()))? else {
            self.claims.end(&record.path);
            return Ok(());
        };
        let place = |packed: &PackedChunk| Placed {
            chunk: packed.chunk,
            pack: record.packs.get(packed.pack as usize).copied(),
            offset: packed.offset,
            frame_len: packed.frame_len,
        };
        let chunks = record.chunks.iter().map(place).collect();
        self.vouch(&mut info, record.signatures);
        self.write_record(&Waiting { info, chunks, is_doubted: false })
    }

    /// Adds this node's signatures, without which others could not believe the record, and for as many as there is room
    /// those that are there. A content address proves itself.
    pub(super) fn vouch(&self, info: &mut PathInfo, there: BTreeSet<Signature>) {
        let Means { keys, dir, .. } = &self.means;
        let here = std::mem::take(&mut info.signatures);
        if !info.is_content_addressed(dir) {
            for key in keys.iter().take(SIGNATURES_MAX) {
                // Fails only for a path of unknown size, which none is that is stored.
                let _ = info.sign(dir, key);
            }
        }
        for signature in here.into_iter().chain(there) {
            if info.signatures.len() < SIGNATURES_MAX {
                info.signatures.insert(signature);
            }
        }
    }
}
