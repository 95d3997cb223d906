//! When paths were last used, for collections that are to free only so much.
//!
//! A lease on a path, which every read, build and client takes, is a use. Uses are gathered in memory
//! and written now and then: what a crash takes only makes a path look older than it is.

use crate::error::Result;
use crate::index::tables::{PATHS, USES};
use crate::options::now;
use crate::paths::hash_bytes;
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::nix::store_path::StorePath;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Paths whose use is remembered between two writes, some 200 bytes each. Of more the use is lost.
const USES_MAX: usize = 1 << 16;

#[derive(Default)]
pub struct Uses {
    unsaved: Mutex<HashMap<StorePath, u64>>,
}

impl Uses {
    pub fn note(&self, path: &StorePath) {
        let now = now();
        let mut unsaved = self.unsaved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = unsaved.get_mut(path) {
            *used = now;
        } else if unsaved.len() < USES_MAX {
            unsaved.insert(path.clone(), now);
        }
    }

    fn take(&self) -> HashMap<StorePath, u64> {
        std::mem::take(&mut *self.unsaved.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store {
    /// Writes down what was used since the last time. Collections do so first; who wants uses to
    /// outlive the process calls it now and then.
    pub fn save_uses(&self) -> Result<()> {
        let uses = self.leases.uses.take();
        if uses.is_empty() {
            return Ok(());
        }
        self.writer.write(false, move |txn| {
            let (paths, mut table) = (txn.open_table(PATHS)?, txn.open_table(USES)?);
            for (path, used) in &uses {
                if paths.get(path.base_name())?.is_some() {
                    table.insert(&hash_bytes(path), used)?;
                }
            }
            Ok(())
        })
    }
}
