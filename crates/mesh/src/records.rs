//! What this node answers for: a path record of each path that is valid in its store, made when it is asked for.

use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::announcement::{ENCLOSED_LEN_MAX, Enclosed, Holding};
use shoal_wire::mesh::path_record::{PathKey, PathRecord, content_tag, hash_part, path_key};
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::SecretKey;
use std::io::Read;
use std::sync::Arc;

/// Cheap to clone. Everything here reads the store's index, and blocks for as long as that takes.
#[derive(Clone)]
pub struct Records {
    store: Store,
    key: Arc<SecretKey>,
}

/// What a holder of this path announces. `None` for a path without a size, which no store has.
pub fn holding(info: &PathInfo) -> Option<Holding> {
    let content = content_tag(&info.nar_hash, info.nar_size, &info.references);
    Some(Holding { key: path_key(info.path.hash_part())?, content })
}

impl Records {
    /// `key` is the node's own.
    pub fn new(store: Store, key: Arc<SecretKey>) -> Self {
        Records { store, key }
    }

    pub fn author(&self) -> NodeKey {
        *self.key.public().bytes()
    }

    /// The record of a path, if it is valid here.
    pub fn record(&self, key: &PathKey) -> shoal_store::Result<Option<Sealed<PathRecord>>> {
        let Some(hash_part) = hash_part(key) else { return Ok(None) };
        let Some(path) = self.store.path_from_hash_part(&hash_part)? else { return Ok(None) };
        let (Some(info), Some(root)) = (self.store.path_info(&path)?, self.store.content_root(&path)?) else {
            return Ok(None);
        };
        // What is outside the limits of a record stays on this node.
        Ok(Sealed::seal(PathRecord::of(self.author(), info, root), &self.key).ok())
    }

    /// All of a path, where it is small enough to go along with the request to keep it.
    pub fn enclosed(&self, info: &PathInfo) -> shoal_store::Result<Option<Enclosed>> {
        let is_small = info.nar_size <= ENCLOSED_LEN_MAX as u64;
        let Some(key) = path_key(info.path.hash_part()).filter(|_| is_small) else { return Ok(None) };
        let (Some(record), Some(export)) = (self.record(&key)?, self.store.export(&info.path)?) else {
            return Ok(None);
        };
        let mut nar = Vec::with_capacity(info.nar_size as usize);
        // What cannot be read is fetched, or found to be damaged, by who wants it.
        if export.take(info.nar_size).read_to_end(&mut nar).is_err() {
            return Ok(None);
        }
        let enclosed = Enclosed { record: record.bytes().to_vec(), nar };
        Ok(Some(enclosed).filter(|enclosed| enclosed.len() <= ENCLOSED_LEN_MAX))
    }

    /// What this node announces.
    pub fn holdings(&self) -> shoal_store::Result<Vec<Holding>> {
        let paths = self.store.paths()?;
        let mut holdings = Vec::with_capacity(paths.len());
        for path in paths {
            holdings.extend(self.store.path_info(&path)?.as_ref().and_then(holding));
        }
        Ok(holdings)
    }
}
