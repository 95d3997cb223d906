//! Deletes path records, and the manifests that only they used.

use crate::error::Result;
use crate::frame::Decoder;
use crate::index::path_record::PathRecord;
use crate::index::tables::{DERIVERS, MANIFESTS, PATHS, REFERRERS, USES};
use crate::leases::Leases;
use crate::manifests;
use crate::paths::{edge, edges, hash_bytes, targets};
use crate::realisations;
use crate::roots::lasting_in;
use crate::store::Store;
use redb::{ReadableTable, WriteTransaction};
use shoal_wire::mesh::manifest::Manifest;
use shoal_wire::nix::store_path::StorePath;
use std::collections::{HashMap, HashSet};

/// What one transaction deleted.
#[derive(Default)]
pub struct Gone {
    pub paths: Vec<StorePath>,
    pub manifests: Vec<Manifest>,
}

/// Deletes those of `batch` that nothing came to need since they were marked. `users` counts the
/// paths of each manifest, and is counted down.
pub fn delete(store: &Store, batch: &[StorePath], users: &mut HashMap<[u8; 32], u32>) -> Result<Gone> {
    let chosen = store.leases.begin_deletion(batch);
    let _ending = Ending(&store.leases);
    let (pins, store_dir, now) = (store.pins.clone(), store.options.store_dir.clone(), store.now());
    let mut counts = std::mem::take(users);
    let mut decoder = store.decoders.take(Decoder::new)?;
    let (gone, counts) = store.writer.write(false, move |txn| {
        let mut doomed: HashSet<StorePath> = chosen.iter().cloned().collect();
        for (_, rooted) in lasting_in(txn, &store_dir, now)? {
            doomed.remove(&rooted);
        }
        keep_referenced(txn, &chosen, &mut doomed)?;
        let mut gone = Gone::default();
        for path in chosen.iter().filter(|path| doomed.contains(*path)) {
            let Some(record) = remove_record(txn, path)? else {
                continue;
            };
            gone.paths.push(path.clone());
            let root = record.content_root;
            let left = counts.get_mut(&root).map(|count| {
                *count = count.saturating_sub(1);
                *count
            });
            if left == Some(0) && pins.is_free(&root) {
                gone.manifests.extend(remove_manifest(txn, &root, &mut decoder)?);
            }
        }
        Ok((gone, counts))
    })?;
    *users = counts;
    Ok(gone)
}

/// Takes out of `doomed` what a path that stays refers to. Referrers come first in `chosen`, so one
/// pass in its order finds all, but for cycles, which Nix does not make.
fn keep_referenced(txn: &WriteTransaction, chosen: &[StorePath], doomed: &mut HashSet<StorePath>) -> Result<()> {
    let referrers = txn.open_table(REFERRERS)?;
    let paths = txn.open_table(PATHS)?;
    for path in chosen {
        let (first, last) = edges(path).into_inner();
        for row in referrers.range::<&[u8; 40]>(&first..=&last)? {
            let users = targets(&paths, row?.0.value())?;
            if users.iter().any(|user| user != path && !doomed.contains(user)) {
                doomed.remove(path);
                break;
            }
        }
    }
    Ok(())
}

/// Removes a path's row and all edges from it.
fn remove_record(txn: &WriteTransaction, path: &StorePath) -> Result<Option<PathRecord>> {
    let record = match txn.open_table(PATHS)?.remove(path.base_name())? {
        Some(row) => PathRecord::decode(path.base_name(), row.value())?,
        None => return Ok(None),
    };
    let mut referrers = txn.open_table(REFERRERS)?;
    for reference in &record.info.references {
        referrers.remove(&edge(reference, path))?;
    }
    let (first, last) = edges(path).into_inner();
    let mut derivers = txn.open_table(DERIVERS)?;
    derivers.retain_in::<&[u8; 40], _>(&first..=&last, |_, ()| false)?;
    txn.open_table(USES)?.remove(&hash_bytes(path))?;
    realisations::forget(txn, path)?;
    Ok(Some(record))
}

/// A damaged manifest is removed too; the chunks it had are found unused by the next collection.
fn remove_manifest(txn: &WriteTransaction, root: &[u8; 32], decoder: &mut Decoder) -> Result<Option<Manifest>> {
    let mut manifests = txn.open_table(MANIFESTS)?;
    let row = manifests.remove(root)?;
    Ok(row.and_then(|row| manifests::unpack(root, row.value(), decoder).ok()))
}

/// Forgets manifests that no path has: an ingest wanted them when their last path went, and never
/// came to its commit. `users` was read since the collection began; what came later is touched.
pub fn forget_manifests(store: &Store, users: &HashMap<[u8; 32], u32>) -> Result<()> {
    let stale: Vec<[u8; 32]> = store.index.read(|txn| {
        let mut stale = Vec::new();
        for row in txn.open_table(MANIFESTS)?.iter()? {
            let root = *row?.0.value();
            if !users.contains_key(&root) && store.pins.is_free(&root) {
                stale.push(root);
            }
        }
        Ok(stale)
    })?;
    if stale.is_empty() {
        return Ok(());
    }
    let pins = store.pins.clone();
    store.writer.write(false, move |txn| {
        let mut manifests = txn.open_table(MANIFESTS)?;
        for root in stale.iter().filter(|root| pins.is_free(root)) {
            manifests.remove(root)?;
        }
        Ok(())
    })
}

/// Forgets the outputs of derivations that are gone.
pub fn forget_derivers(store: &Store) -> Result<()> {
    let stale: Vec<[u8; 40]> = store.index.read(|txn| {
        let paths = txn.open_table(PATHS)?;
        let mut stale = Vec::new();
        for row in txn.open_table(DERIVERS)?.iter()? {
            let key = *row?.0.value();
            if targets(&paths, &key)?.is_empty() {
                stale.push(key);
            }
        }
        Ok(stale)
    })?;
    store.writer.write(false, move |txn| {
        let mut derivers = txn.open_table(DERIVERS)?;
        for key in &stale {
            derivers.remove(key)?;
        }
        Ok(())
    })
}

/// Lets those go on that wait for the batch.
struct Ending<'a>(&'a Leases);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end_deletion();
    }
}
