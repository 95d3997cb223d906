//! Which path an output of a derivation came out as, in Nix's old and new form.
//!
//! Keys: `m`, the 32 bytes of the hash modulo, the output's name (old); `p`, the derivation's base
//! name, `!`, the output's name (new). A realisation goes when its path goes.

use crate::error::{Damage, Result};
use crate::index::tables::{REALISATIONS, REALISED};
use crate::lore::Lore;
use crate::paths::hash_bytes;
use crate::store::Store;
use redb::{ReadableTable, WriteTransaction};
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation, UnkeyedRealisation};
use shoal_wire::nix::store_path::{HASH_LEN, StorePath};

impl Store {
    /// Keeps a realisation, in the place of one with the same id.
    pub fn add_realisation(&self, realisation: &Realisation) -> Result<()> {
        self.put_realisation(old_key(&realisation.id), realisation.to_json(), &realisation.out_path)?;
        self.tell_learned(&Lore::Realisation(realisation.id.clone()));
        Ok(())
    }

    pub fn realisation(&self, id: &DrvOutput) -> Result<Option<Realisation>> {
        let damaged = |error| Damage::record(id.to_string(), error);
        let json = self.realisation_json(&old_key(id))?;
        Ok(json.map(|json| Realisation::from_json(&json)).transpose().map_err(damaged)?)
    }

    /// Keeps a realisation of the new form, in the place of one with the same key.
    pub fn add_build_trace(&self, trace: &BuildTrace) -> Result<()> {
        self.put_realisation(new_key(&trace.key), trace.value.to_json(), &trace.value.out_path)?;
        self.tell_learned(&Lore::BuildTrace(trace.key.clone()));
        Ok(())
    }

    pub fn build_trace(&self, key: &BuildTraceKey) -> Result<Option<BuildTrace>> {
        let damaged = |error| Damage::record(format!("{}!{}", key.drv_path, key.output), error);
        let json = self.realisation_json(&new_key(key))?;
        let value = json.map(|json| UnkeyedRealisation::from_json(&json)).transpose().map_err(damaged)?;
        Ok(value.map(|value| BuildTrace { key: key.clone(), value }))
    }

    fn put_realisation(&self, key: Vec<u8>, json: String, path: &StorePath) -> Result<()> {
        let mut by_path = hash_bytes(path).to_vec();
        by_path.extend_from_slice(&key);
        self.writer.write(false, move |txn| {
            txn.open_table(REALISATIONS)?.insert(key.as_slice(), json.as_bytes())?;
            txn.open_table(REALISED)?.insert(by_path.as_slice(), ())?;
            Ok(())
        })
    }

    fn realisation_json(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.index.read(|txn| Ok(txn.open_table(REALISATIONS)?.get(key)?.map(|row| row.value().to_owned())))
    }
}

fn old_key(id: &DrvOutput) -> Vec<u8> {
    [b"m", id.drv_hash.as_slice(), id.output.as_bytes()].concat()
}

fn new_key(key: &BuildTraceKey) -> Vec<u8> {
    [b"p", key.drv_path.base_name().as_bytes(), b"!", key.output.as_bytes()].concat()
}

/// What a key is of; `None`: it is of nothing that is known.
pub fn lore(key: &[u8]) -> Option<Lore> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    match key.split_first()? {
        (b'm', rest) => {
            let (drv_hash, output) = rest.split_first_chunk()?;
            Some(Lore::Realisation(DrvOutput { drv_hash: *drv_hash, output: text(output)? }))
        }
        (b'p', rest) => {
            let rest = text(rest)?;
            let (drv, output) = rest.split_once('!')?;
            let drv_path = StorePath::from_base_name(drv).ok()?;
            Some(Lore::BuildTrace(BuildTraceKey { drv_path, output: output.to_string() }))
        }
        _ => None,
    }
}

/// Removes the realisations that came out as `path`.
pub fn forget(txn: &WriteTransaction, path: &StorePath) -> Result<()> {
    let prefix = hash_bytes(path);
    let mut realised = txn.open_table(REALISED)?;
    let mut realisations = txn.open_table(REALISATIONS)?;
    let mut keys = Vec::new();
    for row in realised.range::<&[u8]>(prefix.as_slice()..)? {
        let (key, _) = row?;
        if !key.value().starts_with(&prefix) {
            break;
        }
        keys.push(key.value().to_owned());
    }
    for by_path in keys {
        let key = &by_path[HASH_LEN..];
        // The key may have been pointed at another path since.
        let ours = match realisations.get(key)? {
            Some(row) => out_path(row.value()).as_ref() == Some(path),
            None => false,
        };
        if ours {
            realisations.remove(key)?;
        }
        realised.remove(by_path.as_slice())?;
    }
    Ok(())
}

fn out_path(json: &[u8]) -> Option<StorePath> {
    UnkeyedRealisation::from_json(json).ok().map(|value| value.out_path)
}
