//! The store's parts, joined.

use crate::damage::DamageNotes;
use crate::error::{Error, OpenError, Result};
use crate::frame::Decoder;
use crate::frame_lists::FrameLists;
use crate::hashing::HashService;
use crate::index::Index;
use crate::index::group::Writer;
use crate::index::path_record::{PathRecord, content_root};
use crate::index::tables::{CHUNKS, MANIFESTS, PATHS};
use crate::ingest::packer::Packer;
use crate::ingest::pool::PackerPool;
use crate::lately::Lately;
use crate::leases::{Leases, TempRoots};
use crate::open::{self, Lock};
use crate::options::Options;
use crate::pins::Pins;
use crate::place::Place;
use crate::read_ahead::Helpers;
use crate::segment::Segments;
use crate::watcher::Watcher;
use redb::{ReadTransaction, ReadableTable};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::signature::Signature;
use shoal_wire::nix::store_path::{HASH_PART_LEN, StorePath};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Coders kept for the next user; each holds one or two MiB.
const IDLE_CODERS_MAX: usize = 4;

/// Records with more references are not kept in memory: nearly all have fewer, and some have thousands.
const KEPT_REFERENCES_MAX: usize = 64;

/// A store of paths as chunks in one directory. Cheap to clone; usable from many threads.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

pub struct Inner {
    pub dir: PathBuf,
    pub options: Options,
    pub index: Arc<Index>,
    pub segments: Arc<Segments>,
    pub writer: Writer,
    pub pins: Arc<Pins>,
    pub damage: DamageNotes,
    pub leases: Arc<Leases>,
    pub hashing: Arc<HashService>,
    pub packers: PackerPool,
    pub idle_packers: Pool<Packer>,
    /// What frames from elsewhere are received into.
    pub idle_buffers: Pool<Vec<u8>>,
    /// What frames for elsewhere are read into.
    pub read_buffers: Arc<Pool<Vec<u8>>>,
    pub decoders: Pool<Decoder>,
    pub helpers: Helpers,
    pub frame_lists: FrameLists,
    /// Of valid paths.
    pub records: Lately<Arc<PathRecord>>,
    /// Held by the one collection that may run.
    pub collecting: Mutex<()>,
    pub watchers: RwLock<Vec<Arc<dyn Watcher>>>,
    pub _lock: Lock,
}

impl Deref for Store {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Store {
    /// Opens the store in `dir`, or makes one where there is nothing; one process at a time may have
    /// it open. After a crash, whole chunks that were not committed yet are kept for the next ingest
    /// of their contents, and what was torn is cut off.
    pub fn open(dir: &Path, options: Options) -> Result<Store, OpenError> {
        Ok(Store(Arc::new(open::open(dir, options)?)))
    }

    /// Seconds since 1970, by the clock it was opened with.
    pub fn now(&self) -> u64 {
        (self.options.clock)()
    }

    /// The directory it was opened in.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// What is known of a valid path.
    pub fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>> {
        Ok(self.record(path)?.map(|record| record.info))
    }

    /// What is known of a valid path, and the name of its manifest.
    pub fn path_and_root(&self, path: &StorePath) -> Result<Option<(PathInfo, [u8; 32])>> {
        Ok(self.record(path)?.map(|record| (record.info, record.content_root)))
    }

    /// The name of a path's manifest.
    pub fn content_root(&self, path: &StorePath) -> Result<Option<[u8; 32]>> {
        match self.find(path.hash_part())? {
            Some(record) if record.info.path == *path => Ok(Some(record.content_root)),
            _ => Ok(self.record(path)?.map(|record| record.content_root)),
        }
    }

    pub fn is_valid(&self, path: &StorePath) -> Result<bool> {
        Ok(!self.valid_of(std::iter::once(path))?.is_empty())
    }

    /// The valid subset, in one look.
    pub fn valid_of<'a>(&self, paths: impl IntoIterator<Item = &'a StorePath>) -> Result<Vec<StorePath>> {
        self.index.read(|txn| {
            let table = txn.open_table(PATHS)?;
            let mut valid = Vec::new();
            for path in paths {
                if let Some(row) = table.get(path.base_name())?
                    && self.is_valid_row(txn, path.base_name(), row.value())?
                {
                    valid.push(path.clone());
                }
            }
            Ok(valid)
        })
    }

    /// The valid path with this hash part of 32 digits; `None` also where it is no hash part.
    pub fn path_from_hash_part(&self, hash_part: &str) -> Result<Option<StorePath>> {
        if hash_part.len() != HASH_PART_LEN {
            return Ok(None);
        }
        self.index.read(|txn| {
            let table = txn.open_table(PATHS)?;
            let Some(row) = table.range(hash_part..)?.next() else {
                return Ok(None);
            };
            let (key, row) = row?;
            let name = key.value();
            match name.starts_with(hash_part) && self.is_valid_row(txn, name, row.value())? {
                true => Ok(Some(crate::paths::base_name(name)?)),
                false => Ok(None),
            }
        })
    }

    /// What is known of the valid path with this hash part of 32 digits. What was asked for lately is in memory.
    pub fn find(&self, hash_part: &str) -> Result<Option<Arc<PathRecord>>> {
        let state = self.state();
        if let Some(record) = self.records.get(hash_part, state) {
            return Ok(Some(record));
        }
        let Some(path) = self.path_from_hash_part(hash_part)? else {
            return Ok(None);
        };
        let record = self.record(&path)?.map(Arc::new);
        if let Some(record) = record.as_ref().filter(|record| record.info.references.len() <= KEPT_REFERENCES_MAX) {
            self.records.put(hash_part, state, self.state(), record.clone());
        }
        Ok(record)
    }

    /// Adds signatures to what is known of a path; whether it is valid.
    pub fn add_signatures(&self, path: &StorePath, signatures: &[Signature]) -> Result<bool> {
        let (path, signatures) = (path.clone(), signatures.to_vec());
        self.writer.write(false, move |txn| {
            let mut table = txn.open_table(PATHS)?;
            let name = path.base_name();
            let row = table.get(name)?.map(|row| PathRecord::decode(name, row.value())).transpose()?;
            let Some(mut record) = row else {
                return Ok(false);
            };
            record.info.signatures.extend(signatures);
            table.insert(name, record.encode().as_slice())?;
            Ok(true)
        })
    }

    /// Roots that last until the guard is dropped.
    pub fn temp_roots(&self) -> TempRoots {
        TempRoots::new(self.leases.clone())
    }

    /// The record of a valid path.
    pub(crate) fn record(&self, path: &StorePath) -> Result<Option<PathRecord>> {
        let name = path.base_name();
        self.index.read(|txn| match txn.open_table(PATHS)?.get(name)? {
            Some(row) if self.is_valid_row(txn, name, row.value())? => Ok(Some(PathRecord::decode(name, row.value())?)),
            _ => Ok(None),
        })
    }

    /// Whether the path with this row is valid.
    pub(crate) fn is_valid_row(&self, txn: &ReadTransaction, name: &str, row: &[u8]) -> Result<bool> {
        match self.pins.any_damaged() {
            true => self.is_whole(&txn.open_table(MANIFESTS)?, &content_root(name, row)?),
            false => Ok(true),
        }
    }

    /// Where chunks lie, in the order of `hashes`.
    pub(crate) fn places<'a>(&self, hashes: impl Iterator<Item = &'a [u8; 32]>) -> Result<Vec<Option<Place>>> {
        self.index.read(|txn| {
            let table = txn.open_table(CHUNKS)?;
            let mut places = Vec::new();
            for hash in hashes {
                places.push(table.get(hash)?.map(|row| Place::decode(row.value())));
            }
            Ok(places)
        })
    }
}

/// Things that are costly to make and wait here for their next user.
pub struct Pool<T> {
    idle: Mutex<Vec<T>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Pool { idle: Mutex::default() }
    }
}

impl<T> Pool<T> {
    pub fn take(&self, make: impl FnOnce() -> std::io::Result<T>) -> Result<T> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(thing) => Ok(thing),
            None => make().map_err(Error::io("prepare to use", Path::new("zstd"))),
        }
    }

    pub fn put(&self, thing: T) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CODERS_MAX {
            idle.push(thing);
        }
    }
}
