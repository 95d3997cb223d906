//! From a directory to a store that may be used.
//!
//! ```text
//! format          the line FORMAT
//! lock            locked by who has the store open; holds the process id
//! index.redb      see crate::index
//! segments/       see crate::segment
//! logs/           see crate::logs
//! tmp/            emptied when the store is opened
//! ```

use crate::commit::LiveChange;
use crate::damage::{self, DamageNotes};
use crate::error::{Error, OpenError, Result};
use crate::frame_lists::FrameLists;
use crate::hashing::HashService;
use crate::index::Index;
use crate::index::group::Writer;
use crate::index::tables::{CHUNKS, SEGMENTS, SegmentRow};
use crate::ingest::pool::PackerPool;
use crate::lately::Lately;
use crate::options::Options;
use crate::pins::Pins;
use crate::place::{Place, SegmentId};
use crate::read_ahead::Helpers;
use crate::segment::{self, Segments, scan};
use crate::store::{Inner, Pool};
use redb::{ReadableTable, WriteTransaction};
use rustix::fs::FlockOperation;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

/// Version of everything in the directory, the chunker's parameters included.
const FORMAT: &str = "shoal-store 2";

/// Bytes behind committed ends that are looked at after a crash; the rest is cut off. A second's
/// work, and four segments of an upload need not be sent again.
const RECOVERED_MAX: u64 = 1 << 30;

pub fn open(dir: &Path, options: Options) -> Result<Inner, OpenError> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    let lock = lock(dir)?;
    check_format(dir)?;
    for name in ["segments", "logs", "tmp"] {
        let path = dir.join(name);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    crate::logs::empty(&dir.join("tmp"))?;
    let index = Arc::new(Index::open(&dir.join("index.redb"), options.index_cache_bytes)?);
    let segments = Arc::new(recover(&dir.join("segments"), &index, &options)?);
    let pins = Pins::default();
    pins.set_damaged(damage::marked(&index)?.into_iter().map(|hash| (hash, true)));
    Ok(Inner {
        dir: dir.to_owned(),
        writer: Writer::new(index.clone(), segments.clone()),
        index,
        segments,
        pins: Arc::new(pins),
        damage: DamageNotes::default(),
        leases: Arc::default(),
        hashing: Arc::new(HashService::new()),
        packers: PackerPool::new(options.level),
        idle_packers: Pool::default(),
        idle_buffers: Pool::default(),
        read_buffers: Arc::default(),
        decoders: Pool::default(),
        helpers: Helpers::default(),
        frame_lists: FrameLists::default(),
        records: Lately::default(),
        collecting: Mutex::new(()),
        watchers: RwLock::default(),
        options,
        _lock: lock,
    })
}

/// Keeps other processes out of a store.
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would do, but for a child of ours that has not come to its `exec` yet.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock(dir: &Path) -> Result<Lock, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.map_err(Error::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Locked(dir.to_owned())),
        Err(error) => return Err(Error::io("lock", &path)(error.into()).into()),
    }
    let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(Error::io("write", &path))?;
    Ok(Lock(file))
}

/// Writes the format into a new store; refuses anything that is not a store of this format.
fn check_format(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join("format");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim_end() == FORMAT => Ok(()),
        Ok(text) => {
            let found = text.lines().next().unwrap_or_default().chars().take(100).collect();
            Err(OpenError::Format { dir: dir.to_owned(), found, known: FORMAT })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?;
            let foreign =
                entries.flatten().any(|entry| !matches!(entry.file_name().to_str(), Some("lock" | "format.new")));
            if foreign {
                return Err(OpenError::NotAStore(dir.to_owned()));
            }
            write_format(dir, &path).map_err(Error::io("write", &path))?;
            Ok(())
        }
        Err(error) => Err(Error::io("read", &path)(error).into()),
    }
}

fn write_format(dir: &Path, path: &Path) -> io::Result<()> {
    let new = dir.join("format.new");
    let mut file = File::create(&new)?;
    writeln!(file, "{FORMAT}")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

/// A segment file that has bytes the index does not know of.
struct Uncommitted {
    id: SegmentId,
    committed: u64,
}

/// Brings index and segment files together and finds the segment to go on with.
fn recover(dir: &Path, index: &Index, options: &Options) -> Result<Segments> {
    let rows = segment_rows(index)?;
    let files = segment_files(dir)?;
    let next_id = rows.keys().chain(files.keys()).max().map_or(0, |&id| id.saturating_add(1));
    let segments = Segments::new(dir, options.segment_bytes(), options.reserve_bytes, next_id)?;
    let committed = |id: &SegmentId| rows.get(id).map_or(0, |row| row.committed);
    let uncommitted = files.iter().filter(|(id, len)| **len > committed(id) || !rows.contains_key(*id));
    let uncommitted: Vec<_> = uncommitted.map(|(&id, _)| Uncommitted { id, committed: committed(&id) }).collect();
    let mut ends = BTreeMap::new();
    let mut found = Vec::new();
    let mut budget = RECOVERED_MAX;
    for Uncommitted { id, committed } in uncommitted {
        let path = segments.path(id);
        let tail = scan::scan(&path, id, committed, budget)?;
        budget = budget.saturating_sub(tail.end - committed);
        if tail.records.is_empty() && committed == 0 {
            segments.delete(id)?;
            continue;
        }
        cut_and_sync(&path, tail.end).map_err(Error::io("recover", &path))?;
        ends.insert(id, tail.end);
        found.extend(tail.records);
    }
    if !found.is_empty() {
        index.transact(|txn| adopt(txn, &found, &ends))?;
    }
    resume(&segments, &rows, &files, &ends, options)?;
    Ok(segments)
}

/// Goes on with the newest segment if all of it is committed and it has room.
fn resume(
    segments: &Segments,
    rows: &BTreeMap<SegmentId, SegmentRow>,
    files: &BTreeMap<SegmentId, u64>,
    ends: &BTreeMap<SegmentId, u64>,
    options: &Options,
) -> Result<()> {
    let newest = rows.keys().chain(ends.keys()).max();
    let Some(&id) = newest else {
        return Ok(());
    };
    let committed = ends.get(&id).copied().or_else(|| rows.get(&id).map(|row| row.committed));
    let len = ends.get(&id).or_else(|| files.get(&id)).copied();
    match (committed, len) {
        (Some(committed), Some(len)) if committed == len && len < options.segment_bytes() => segments.resume(id, len),
        _ => Ok(()),
    }
}

fn segment_rows(index: &Index) -> Result<BTreeMap<SegmentId, SegmentRow>> {
    index.read(|txn| {
        let mut rows = BTreeMap::new();
        for row in txn.open_table(SEGMENTS)?.range::<u32>(..)? {
            let (id, row) = row?;
            rows.insert(id.value(), SegmentRow::decode(row.value()));
        }
        Ok(rows)
    })
}

fn segment_files(dir: &Path) -> Result<BTreeMap<SegmentId, u64>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let id = entry.file_name().to_str().and_then(segment::parse_file_name);
        if let Some(id) = id {
            let metadata = entry.metadata().map_err(Error::io("examine", &entry.path()))?;
            files.insert(id, metadata.len());
        }
    }
    Ok(files)
}

fn cut_and_sync(path: &Path, end: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(end)?;
    file.sync_all()
}

/// Puts chunks that survived a crash into the index, where nothing refers to them yet.
fn adopt(txn: &WriteTransaction, found: &[([u8; 32], Place)], ends: &BTreeMap<SegmentId, u64>) -> Result<()> {
    let mut chunks = txn.open_table(CHUNKS)?;
    let mut segments = txn.open_table(SEGMENTS)?;
    let mut live = LiveChange::default();
    for (hash, place) in found {
        if chunks.get(hash)?.is_none() {
            chunks.insert(hash, &place.encode())?;
            live.gained(place);
        }
    }
    for (&id, &committed) in ends {
        let row = segments.get(id)?.map(|row| SegmentRow::decode(row.value())).unwrap_or_default();
        segments.insert(id, &SegmentRow { committed, ..row }.encode())?;
    }
    drop((chunks, segments));
    damage::unmark(txn, found.iter().map(|(hash, _)| hash))?;
    live.apply(txn)
}
