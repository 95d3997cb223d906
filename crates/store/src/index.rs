//! The index: which paths are valid, what they hold, and where their chunks lie. One redb file.
//!
//! Reads see one committed state. Writes go through [`group`]: concurrent ones share a sync of the
//! segments and a transaction. redb refuses everything after a failed write (a full disk), so the
//! database is then opened anew.

mod backend;
pub mod group;
pub mod path_record;
pub mod tables;

use crate::error::{Error, Result};
use redb::{Database, ReadTransaction, WriteTransaction};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

pub struct Index {
    path: PathBuf,
    cache_bytes: usize,
    /// `None` between a failed write and a successful attempt to open it anew.
    database: RwLock<Option<Database>>,
    commits: AtomicU64,
}

impl Index {
    /// Opens the index, or creates it with all its tables.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self> {
        let database = open(path, cache_bytes)?;
        let index = Index {
            path: path.to_owned(),
            cache_bytes,
            database: RwLock::new(Some(database)),
            commits: AtomicU64::new(0),
        };
        let missing = index.read(tables::missing_any)?;
        if missing {
            index.transact(tables::create_all)?;
        }
        Ok(index)
    }

    /// Runs `f` on the last committed state.
    pub fn read<T>(&self, f: impl FnOnce(&ReadTransaction) -> Result<T>) -> Result<T> {
        let database = self.database();
        let database = database.as_ref().ok_or_else(closed)?;
        f(&redb::ReadableDatabase::begin_read(database)?)
    }

    /// Runs `f` in a transaction of its own and makes it durable. Nothing of it remains on error.
    pub fn transact<T>(&self, f: impl FnOnce(&WriteTransaction) -> Result<T>) -> Result<T> {
        if self.database().is_none() {
            self.reopen()?;
        }
        let outcome = self.try_transact(f);
        // Also of one that failed: it may be on disk all the same.
        self.commits.fetch_add(1, Ordering::AcqRel);
        if let Err(Error::Index(_)) = &outcome {
            // The first error says what happened; a second one comes up at the next attempt.
            let _ = self.reopen();
        }
        outcome
    }

    /// Grows with each transaction, once it can be read and before its writer goes on.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    fn try_transact<T>(&self, f: impl FnOnce(&WriteTransaction) -> Result<T>) -> Result<T> {
        let database = self.database();
        let txn = database.as_ref().ok_or_else(closed)?.begin_write()?;
        let value = f(&txn)?;
        txn.commit()?;
        Ok(value)
    }

    fn reopen(&self) -> Result<()> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        drop(database.take());
        *database = Some(open(&self.path, self.cache_bytes)?);
        // What was read of the old one meanwhile may lack a transaction that is on disk.
        self.commits.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path, cache_bytes: usize) -> Result<Database> {
    let file = backend::IndexFile::open(path).map_err(Error::io("open", path))?;
    Ok(Database::builder().set_cache_size(cache_bytes).create_with_backend(file)?)
}

fn closed() -> Error {
    redb::DatabaseError::from(redb::StorageError::DatabaseClosed).into()
}
