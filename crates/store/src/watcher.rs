//! Who follows what the store has, and has a say in what it deletes.

use crate::lore::Lore;
use crate::store::Store;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use std::sync::{Arc, PoisonError};

/// Is told what becomes of paths. All calls come from threads that wait for them, so they are short, but for
/// [`Watcher::may_delete`], during which nothing is locked but collections.
pub trait Watcher: Send + Sync {
    /// These became valid, durably.
    fn committed(&self, paths: &[PathInfo]);

    /// Which of `paths` a collection may delete.
    fn may_delete(&self, paths: &[StorePath]) -> Vec<StorePath>;

    /// Of those that it was allowed to delete, these are gone, and these have stayed: somebody came to need them.
    fn deleted(&self, gone: &[StorePath], stayed: &[StorePath]);

    /// Something stored was found damaged, or is whole again: [`Store::damaged_paths`] has changed, perhaps. Asked of in
    /// the middle of other work, so it is not to be asked for from here.
    fn damage_changed(&self);

    /// A log was kept, or where an output came out, perhaps in the place of another.
    fn learned(&self, _lore: &Lore) {}
}

impl Store {
    /// From now on `watcher` is told too.
    pub fn watch(&self, watcher: Arc<dyn Watcher>) {
        self.watchers.write().unwrap_or_else(PoisonError::into_inner).push(watcher);
    }

    pub(crate) fn watchers(&self) -> Vec<Arc<dyn Watcher>> {
        self.watchers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What all who watch agree to. The last who came is asked first, and the first only of what all others allow: it
    /// is the mesh, whose word is told to others.
    pub(crate) fn allowed_to_delete(&self, paths: Vec<StorePath>) -> Vec<StorePath> {
        self.watchers().iter().rev().fold(paths, |allowed, watcher| watcher.may_delete(&allowed))
    }

    pub(crate) fn tell_deleted(&self, allowed: &[StorePath], gone: &[StorePath]) {
        let stayed: Vec<StorePath> = allowed.iter().filter(|path| !gone.contains(path)).cloned().collect();
        self.watchers().iter().for_each(|watcher| watcher.deleted(gone, &stayed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GcAction, GcRequest, Options};
    use std::io::Write;
    use std::sync::Mutex;

    /// Keeps everything whose name begins with `keep`.
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Notes {
        fn note(&self, what: &str, paths: &[StorePath]) {
            let names: Vec<&str> = paths.iter().map(StorePath::name).collect();
            self.0.lock().unwrap().push(format!("{what}: {}", names.join(" ")));
        }
    }

    impl Watcher for Notes {
        fn committed(&self, paths: &[PathInfo]) {
            let paths: Vec<StorePath> = paths.iter().map(|info| info.path.clone()).collect();
            self.note("committed", &paths);
        }

        fn may_delete(&self, paths: &[StorePath]) -> Vec<StorePath> {
            paths.iter().filter(|path| !path.name().starts_with("keep")).cloned().collect()
        }

        fn deleted(&self, gone: &[StorePath], stayed: &[StorePath]) {
            self.note("gone", gone);
            self.note("stayed", stayed);
        }

        fn damage_changed(&self) {
            self.note("damage", &[]);
        }
    }

    fn put(store: &Store, digit: char, name: &str) -> StorePath {
        let mut nar = Vec::new();
        for word in ["nix-archive-1", "(", "type", "regular", "contents", name, ")"] {
            nar.extend((word.len() as u64).to_le_bytes());
            nar.extend(word.as_bytes());
            nar.resize(nar.len().next_multiple_of(8), 0);
        }
        let mut ingest = store.ingest();
        ingest.write_all(&nar).unwrap();
        let ingested = ingest.finish().unwrap();
        let path = StorePath::from_base_name(&format!("{}-{name}", digit.to_string().repeat(32))).unwrap();
        let info = PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size);
        store.commit(vec![(info, ingested)]).unwrap();
        path
    }

    #[test]
    fn a_watcher_hears_what_comes_and_goes_and_keeps_what_it_does_not_give_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let notes = Arc::new(Notes::default());
        let other = Arc::new(Notes::default());
        store.watch(notes.clone());
        store.watch(other.clone());
        let kept = put(&store, '1', "keep-it");
        put(&store, '2', "drop-it");
        put(&store, '2', "drop-it");
        let report = store.collect(&GcRequest::new(GcAction::DeleteDead)).unwrap();
        assert_eq!(report.paths.len(), 1);
        assert_eq!(store.paths().unwrap(), std::slice::from_ref(&kept));
        let heard = notes.0.lock().unwrap().clone();
        assert_eq!(heard, ["committed: keep-it", "committed: drop-it", "gone: drop-it", "stayed: "]);
        assert_eq!(*other.0.lock().unwrap(), heard);
        let named = GcRequest { paths: vec![kept.clone()], ..GcRequest::new(GcAction::DeleteSpecific) };
        assert_eq!(store.collect(&named).unwrap().kept, [kept], "who asked for it by name is told");
    }
}
