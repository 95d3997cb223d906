//! Questions about paths and how they refer to each other.

use crate::error::{Damage, Result};
use crate::index::path_record::PathRecord;
use crate::index::tables::{DERIVERS, PATHS, REFERRERS};
use crate::store::Store;
use redb::{ReadOnlyTable, ReadableTable};
use shoal_wire::nix::base32;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{HASH_LEN, StorePath};

/// The hash part of a path as bytes.
pub fn hash_bytes(path: &StorePath) -> [u8; HASH_LEN] {
    let mut bytes = [0; HASH_LEN];
    // The digits were checked when the path was made, and 32 of them are exactly 160 bits.
    let _ = base32::decode_into(path.hash_part().as_bytes(), &mut bytes);
    bytes
}

/// Key of an edge between two paths.
pub fn edge(from: &StorePath, to: &StorePath) -> [u8; 2 * HASH_LEN] {
    let mut key = [0; 2 * HASH_LEN];
    key[..HASH_LEN].copy_from_slice(&hash_bytes(from));
    key[HASH_LEN..].copy_from_slice(&hash_bytes(to));
    key
}

/// The keys of all edges from a path.
pub fn edges(from: &StorePath) -> std::ops::RangeInclusive<[u8; 2 * HASH_LEN]> {
    let mut first = [0; 2 * HASH_LEN];
    let mut last = [0xff; 2 * HASH_LEN];
    first[..HASH_LEN].copy_from_slice(&hash_bytes(from));
    last[..HASH_LEN].copy_from_slice(&hash_bytes(from));
    first..=last
}

/// A base name that the index holds.
pub fn base_name(name: &str) -> Result<StorePath> {
    StorePath::from_base_name(name).map_err(|error| Damage::record(name, error).into())
}

/// The valid paths with the hash part that an edge leads to.
pub fn targets(paths: &impl ReadableTable<&'static str, &'static [u8]>, edge: &[u8]) -> Result<Vec<StorePath>> {
    let digits = base32::encode(&edge[edge.len().min(HASH_LEN)..]);
    let mut found = Vec::new();
    for row in paths.range(digits.as_str()..)? {
        let (key, _) = row?;
        if !key.value().starts_with(&digits) {
            break;
        }
        found.push(base_name(key.value())?);
    }
    Ok(found)
}

impl Store {
    /// All valid paths, in order.
    pub fn paths(&self) -> Result<Vec<StorePath>> {
        self.index.read(|txn| {
            let mut paths = Vec::new();
            for row in txn.open_table(PATHS)?.iter()? {
                let (name, row) = row?;
                if self.is_valid_row(txn, name.value(), row.value())? {
                    paths.push(base_name(name.value())?);
                }
            }
            Ok(paths)
        })
    }

    /// What is recorded of paths of which something is damaged, in order. They are not valid until it was stored again.
    pub fn damaged_paths(&self) -> Result<Vec<PathInfo>> {
        if !self.pins.any_damaged() {
            return Ok(Vec::new());
        }
        self.index.read(|txn| {
            let mut damaged = Vec::new();
            for row in txn.open_table(PATHS)?.iter()? {
                let (name, row) = row?;
                if !self.is_valid_row(txn, name.value(), row.value())? {
                    damaged.push(PathRecord::decode(name.value(), row.value())?.info);
                }
            }
            Ok(damaged)
        })
    }

    /// The valid paths that refer to a path; the path itself where it does.
    pub fn referrers(&self, path: &StorePath) -> Result<Vec<StorePath>> {
        let found = self.index.read(|txn| follow(&txn.open_table(REFERRERS)?, &txn.open_table(PATHS)?, path))?;
        self.valid_of(&found)
    }

    /// The valid derivations that have a path as an output: those that a valid path names as its
    /// deriver, and those that [`Store::add_outputs`] told of.
    pub fn valid_derivers(&self, path: &StorePath) -> Result<Vec<StorePath>> {
        let found = self.index.read(|txn| follow(&txn.open_table(DERIVERS)?, &txn.open_table(PATHS)?, path))?;
        self.valid_of(&found)
    }

    /// Records that `drv` has these outputs, so that [`Store::valid_derivers`] finds it.
    pub fn add_outputs(&self, drv: &StorePath, outputs: &[StorePath]) -> Result<()> {
        let keys: Vec<_> = outputs.iter().map(|output| edge(output, drv)).collect();
        self.writer.write(false, move |txn| {
            let mut derivers = txn.open_table(DERIVERS)?;
            for key in &keys {
                derivers.insert(key, ())?;
            }
            Ok(())
        })
    }
}

fn follow(
    edges_table: &ReadOnlyTable<&'static [u8; 40], ()>,
    paths: &ReadOnlyTable<&'static str, &'static [u8]>,
    path: &StorePath,
) -> Result<Vec<StorePath>> {
    let (first, last) = edges(path).into_inner();
    let mut found = Vec::new();
    for row in edges_table.range::<&[u8; 40]>(&first..=&last)? {
        found.extend(targets(paths, row?.0.value())?);
    }
    Ok(found)
}
