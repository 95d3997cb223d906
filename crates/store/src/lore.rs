//! What a store knows beside paths: what builds printed, and where outputs came out.

use crate::error::{Error, Result};
use crate::index::tables::{REALISATIONS, REALISED};
use crate::paths::hash_bytes;
use crate::realisations::lore;
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::nix::realisation::{BuildTraceKey, DrvOutput};
use shoal_wire::nix::store_path::{HASH_LEN, StorePath};
use std::fs;
use std::io;

/// The name of one piece of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lore {
    /// The log of a derivation.
    Log(StorePath),
    Realisation(DrvOutput),
    BuildTrace(BuildTraceKey),
}

impl Store {
    /// All of it. What comes or goes meanwhile may be in it.
    pub fn lore(&self) -> Result<Vec<Lore>> {
        let mut all = self.logs()?;
        self.index.read(|txn| {
            for row in txn.open_table(REALISATIONS)?.iter()? {
                all.extend(lore(row?.0.value()));
            }
            Ok(all)
        })
    }

    /// Where outputs came out as this path.
    pub fn lore_of(&self, path: &StorePath) -> Result<Vec<Lore>> {
        let prefix = hash_bytes(path);
        self.index.read(|txn| {
            let mut found = Vec::new();
            for row in txn.open_table(REALISED)?.range::<&[u8]>(prefix.as_slice()..)? {
                let (key, _) = row?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                found.extend(lore(&key.value()[HASH_LEN..]));
            }
            Ok(found)
        })
    }

    /// Logs by the names of their files; a file that has no log's name is none.
    fn logs(&self) -> Result<Vec<Lore>> {
        let dir = self.dir.join("logs");
        let entries = |dir: &std::path::Path| match fs::read_dir(dir) {
            Ok(entries) => entries.collect::<io::Result<Vec<_>>>().map_err(Error::io("list", dir)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(Error::io("list", dir)(error)),
        };
        let mut logs = Vec::new();
        for shelf in entries(&dir)? {
            if !shelf.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            for entry in entries(&shelf.path())? {
                let (first, rest) = (shelf.file_name(), entry.file_name());
                let name = first.to_str().zip(rest.to_str()).and_then(|(first, rest)| {
                    StorePath::from_base_name(&format!("{first}{}", rest.strip_suffix(".zst")?)).ok()
                });
                logs.extend(name.map(Lore::Log));
            }
        }
        Ok(logs)
    }

    pub(crate) fn tell_learned(&self, lore: &Lore) {
        self.watchers().iter().for_each(|watcher| watcher.learned(lore));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Watcher};
    use shoal_wire::nix::path_info::PathInfo;
    use shoal_wire::nix::realisation::{BuildTrace, Realisation, UnkeyedRealisation};
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Heard(Mutex<Vec<Lore>>);

    impl Watcher for Heard {
        fn committed(&self, _paths: &[PathInfo]) {}

        fn may_delete(&self, paths: &[StorePath]) -> Vec<StorePath> {
            paths.to_vec()
        }

        fn deleted(&self, _gone: &[StorePath], _stayed: &[StorePath]) {}

        fn damage_changed(&self) {}

        fn learned(&self, lore: &Lore) {
            self.0.lock().unwrap().push(lore.clone());
        }
    }

    #[test]
    fn what_is_learned_is_told_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let heard = Arc::new(Heard::default());
        store.watch(heard.clone());
        let path = |digit: char| StorePath::from_base_name(&format!("{}-x", digit.to_string().repeat(32))).unwrap();
        let drv = StorePath::from_base_name(&format!("{}-x.drv", "3".repeat(32))).unwrap();
        store.put_log(&drv, &b"hello"[..]).unwrap();
        let id = DrvOutput { drv_hash: [7; 32], output: "out".into() };
        store.add_realisation(&Realisation::new(id.clone(), path('1'))).unwrap();
        let key = BuildTraceKey { drv_path: drv.clone(), output: "dev".into() };
        let value = UnkeyedRealisation { out_path: path('2'), signatures: BTreeSet::new() };
        store.add_build_trace(&BuildTrace { key: key.clone(), value }).unwrap();
        let all = [Lore::Log(drv), Lore::Realisation(id), Lore::BuildTrace(key)];
        assert_eq!(*heard.0.lock().unwrap(), all);
        assert_eq!(store.lore().unwrap(), all);
        assert_eq!(store.lore_of(&path('1')).unwrap(), all[1..2]);
        assert_eq!(store.lore_of(&path('2')).unwrap(), all[2..]);
        assert!(store.lore_of(&path('4')).unwrap().is_empty());
    }
}
