//! Logs and realisations in the bucket. Nobody signs a log, and only people read it; a realisation is as good as its
//! signatures.

use std::io::Read;

use anyhow::Result;
use shoal_store::{Lore, Store};
use shoal_wire::mesh::cold::{LOG_OBJECT_LEN_MAX, log_object, realisation_object, seal, trace_object, unseal};
use shoal_wire::nix::realisation::{BuildTrace, BuildTraceKey, DrvOutput, Realisation};
use shoal_wire::nix::signature::{SecretKey, TrustedKeys};
use shoal_wire::nix::store_path::StorePath;

use super::{Cold, Item};
use crate::session::admission::SIGNATURES_MAX;
use crate::upstream::{LOG_LEN_MAX, Refusal};

/// One realisation, with what it depends on.
const REALISATION_LEN_MAX: usize = 1 << 20;
/// Realisations of one path that the bucket is asked for; a path that came out of more stays.
const ASKED_MAX: usize = 64;
/// What unpacking a log may take, as a power of two: no log is packed with more.
const LOG_WINDOW_LOG_MAX: u32 = 24;
/// Follows a log that is longer than what is given of it.
const CUT_LOG: &[u8] = b"\n(the log goes on: this is the first 16 MiB of it)\n";

/// What its object is called.
pub fn object(lore: &Lore) -> String {
    match lore {
        Lore::Log(derivation) => log_object(derivation),
        Lore::Realisation(id) => realisation_object(id),
        Lore::BuildTrace(key) => trace_object(key),
    }
}

/// The bytes of its object, signed where signatures count; `None`: it is gone, or too long.
pub fn bytes(lore: &Lore, store: &Store, keys: &[SecretKey]) -> Result<Option<Vec<u8>>> {
    let bytes = match lore {
        Lore::Log(derivation) => return log(store, derivation),
        Lore::Realisation(id) => store.realisation(id)?.map(|mut realisation| {
            let room = SIGNATURES_MAX.saturating_sub(realisation.signatures.len());
            keys.iter().take(room).for_each(|key| realisation.sign(key));
            realisation.to_json()
        }),
        Lore::BuildTrace(key) => store.build_trace(key)?.map(|mut trace| {
            let room = SIGNATURES_MAX.saturating_sub(trace.value.signatures.len());
            keys.iter().take(room).for_each(|key| trace.sign(key));
            trace.to_json()
        }),
    };
    Ok(bytes.map(String::into_bytes).filter(|bytes| bytes.len() <= REALISATION_LEN_MAX))
}

fn log(store: &Store, derivation: &StorePath) -> Result<Option<Vec<u8>>> {
    let Some((file, len)) = store.packed_log(derivation)? else { return Ok(None) };
    let mut packed = Vec::new();
    file.take(LOG_OBJECT_LEN_MAX as u64).read_to_end(&mut packed)?;
    let object = seal(packed);
    if object.len() > LOG_OBJECT_LEN_MAX {
        tracing::info!(derivation = derivation.base_name(), len, "a log is too long for the bucket");
        return Ok(None);
    }
    Ok(Some(object))
}

impl Cold {
    /// Where outputs came out as this path, as far as it is not known whether the bucket has it: `None` where that is not
    /// to be learned by asking.
    pub(super) fn lore_to_ask(&self, store: &Store, path: &StorePath) -> Result<Option<Vec<Lore>>> {
        let all = store.lore_of(path)?;
        if all.len() > ASKED_MAX {
            return Ok(None);
        }
        for lore in &all {
            if self.writes && self.notes.lore(&object(lore))?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(all))
    }

    /// Whether the bucket has that an output came out as `path`, signed by one of `keys`. What it has not is written again.
    pub(super) fn has_lore(&self, lore: &Lore, path: &StorePath, keys: &TrustedKeys) -> Result<bool, Refusal> {
        let is_there = match lore {
            Lore::Log(_) => return Ok(true),
            Lore::Realisation(id) => {
                self.realisation(id).map(|found| found.out_path == *path && found.count_valid_signatures(keys) > 0)
            }
            Lore::BuildTrace(key) => self
                .build_trace(key)
                .map(|found| found.value.out_path == *path && found.count_valid_signatures(keys) > 0),
        };
        match is_there {
            Ok(true) => return Ok(true),
            Ok(false) | Err(Refusal::Missing) => {}
            Err(failed) => return Err(failed),
        }
        if let Err(error) = self.notes.forget_lore(&object(lore)) {
            tracing::warn!("{error:#}");
        }
        self.backlog().add(Item::Lore(lore.clone()));
        self.news.notify_all();
        Ok(false)
    }

    /// What a build of this derivation printed.
    pub fn log(&self, derivation: &StorePath) -> Result<Vec<u8>, Refusal> {
        let name = log_object(derivation);
        let object = self.bucket.get(&name, LOG_OBJECT_LEN_MAX)?;
        let packed = unseal(&object).map_err(|error| self.refuse(&name, &error.to_string()))?;
        let mut log = Vec::new();
        let unpack = zstd::stream::read::Decoder::new(packed).and_then(|mut decoder| {
            decoder.window_log_max(LOG_WINDOW_LOG_MAX)?;
            decoder.take(LOG_LEN_MAX as u64 + 1).read_to_end(&mut log)
        });
        unpack.map_err(|error| self.refuse(&name, &error.to_string()))?;
        if log.len() > LOG_LEN_MAX {
            log.truncate(LOG_LEN_MAX);
            log.extend_from_slice(CUT_LOG);
        }
        Ok(log)
    }

    /// Where an output came out, whoever signed it.
    pub fn realisation(&self, id: &DrvOutput) -> Result<Realisation, Refusal> {
        self.outcome(&realisation_object(id), Realisation::from_json, |found| found.id == *id)
    }

    /// The same in the form from Nix 2.35 on.
    pub fn build_trace(&self, key: &BuildTraceKey) -> Result<BuildTrace, Refusal> {
        self.outcome(&trace_object(key), BuildTrace::from_json, |found| found.key == *key)
    }

    fn outcome<T, E: std::fmt::Display>(
        &self,
        name: &str,
        read: impl Fn(&[u8]) -> Result<T, E>,
        is_wanted: impl Fn(&T) -> bool,
    ) -> Result<T, Refusal> {
        let object = self.bucket.get(name, REALISATION_LEN_MAX)?;
        match read(&object) {
            Ok(found) if is_wanted(&found) => Ok(found),
            Ok(_) => Err(self.refuse(name, "it is another realisation")),
            Err(error) => Err(self.refuse(name, &error.to_string())),
        }
    }
}
