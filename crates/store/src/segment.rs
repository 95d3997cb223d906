//! Append-only files of records.
//!
//! One segment is open for appending; it is closed for good when the next batch does not fit. A
//! batch becomes visible by the index alone. Invariants:
//! - bytes below a segment's committed length never change;
//! - a failed write leaves `end` where it was, so the next batch overwrites what it left;
//! - after a failed sync nothing is written any more: the kernel may have dropped the pages.

pub mod hold;
pub mod record;
pub mod scan;

use crate::error::{Damage, Defect, Error, Result};
use crate::place::{Place, SegmentId};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a segment begins with: a skippable zstd frame, like a record's header.
pub const PREAMBLE: [u8; 16] = *b"\x5d\x2a\x4d\x18\x08\0\0\0shoalsg2";

/// Segment files kept open for reading: a quarter of the usual limit of 1,024 descriptors.
const READERS_MAX: usize = 256;

/// Dirty bytes after which the kernel is asked to begin writing them out, so that the sync of a
/// small commit does not wait for a big neighbour's data.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// Name of a segment's file.
pub fn file_name(id: SegmentId) -> String {
    format!("{id:08x}.seg")
}

/// The inverse of [`file_name`].
pub fn parse_file_name(name: &str) -> Option<SegmentId> {
    let digits = name.strip_suffix(".seg")?;
    let id = SegmentId::from_str_radix(digits, 16).ok()?;
    (file_name(id) == name).then_some(id)
}

/// The directory of segments.
pub struct Segments {
    dir: PathBuf,
    dir_file: File,
    segment_bytes: u64,
    reserve_bytes: u64,
    readers: Mutex<Readers>,
    pub holds: hold::Holds,
    tail: Mutex<Tail>,
}

#[derive(Default)]
struct Readers {
    open: HashMap<SegmentId, (Arc<File>, u64)>,
    clock: u64,
}

/// The segments being written, most recent last.
#[derive(Default)]
struct Tail {
    next_id: SegmentId,
    /// Segments with bytes that are not committed; the last may be open for appending.
    writing: Vec<Writing>,
    /// Whether the last of `writing` takes more.
    open: bool,
    stopped: Option<Arc<str>>,
}

struct Writing {
    id: SegmentId,
    file: Arc<File>,
    end: u64,
    synced: u64,
    committed: u64,
    /// Up to where the kernel was asked to write.
    written_back: u64,
}

/// The open segment, to append to it while nobody else does.
pub struct Appender<'a> {
    segments: &'a Segments,
    tail: MutexGuard<'a, Tail>,
}

impl Segments {
    /// `next_id` must be above every id that was ever used.
    pub fn new(dir: &Path, segment_bytes: u64, reserve_bytes: u64, next_id: SegmentId) -> Result<Self> {
        let dir_file = File::open(dir).map_err(Error::io("open", dir))?;
        let tail = Tail { next_id, ..Tail::default() };
        Ok(Segments {
            dir: dir.to_owned(),
            dir_file,
            segment_bytes,
            reserve_bytes,
            readers: Mutex::default(),
            holds: hold::Holds::default(),
            tail: Mutex::new(tail),
        })
    }

    /// Goes on appending to a segment of `end` bytes, all of them committed.
    pub fn resume(&self, id: SegmentId, end: u64) -> Result<()> {
        let path = self.path(id);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = Arc::new(file.map_err(Error::io("open", &path))?);
        let mut tail = self.tail();
        tail.writing = vec![Writing { id, file, end, synced: end, committed: end, written_back: end }];
        tail.open = true;
        Ok(())
    }

    pub fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(file_name(id))
    }

    pub fn appender(&self) -> Appender<'_> {
        Appender { segments: self, tail: self.tail() }
    }

    /// Makes everything appended so far durable. Returns the lengths to commit.
    pub fn sync(&self) -> Result<Vec<(SegmentId, u64)>> {
        let dirty: Vec<(SegmentId, Arc<File>, u64, bool)> = {
            let tail = self.tail();
            tail.check()?;
            let uncommitted = tail.writing.iter().filter(|w| w.end > w.committed);
            uncommitted.map(|w| (w.id, w.file.clone(), w.end, w.end > w.synced)).collect()
        };
        let mut lengths = Vec::with_capacity(dirty.len());
        for (id, file, end, unsynced) in dirty {
            if unsynced {
                self.sync_one(id, &file, end)?;
            }
            lengths.push((id, end));
        }
        Ok(lengths)
    }

    fn sync_one(&self, id: SegmentId, file: &File, end: u64) -> Result<()> {
        let synced = file.sync_data();
        let mut tail = self.tail();
        if let Err(error) = synced {
            tail.stopped = Some(error.to_string().into());
            return Err(Error::io("sync", &self.path(id))(error));
        }
        if let Some(writing) = tail.writing.iter_mut().find(|w| w.id == id) {
            writing.synced = writing.synced.max(end);
        }
        Ok(())
    }

    /// Remembers that the index has committed `lengths`.
    pub fn committed(&self, lengths: &[(SegmentId, u64)]) {
        let mut tail = self.tail();
        for &(id, end) in lengths {
            if let Some(writing) = tail.writing.iter_mut().find(|w| w.id == id) {
                writing.committed = writing.committed.max(end);
            }
        }
        let open = tail.open.then(|| tail.writing.last().map(|w| w.id)).flatten();
        tail.writing.retain(|w| Some(w.id) == open || w.committed < w.end);
    }

    /// Reads the record of chunk `hash` into `record` and checks it; the frame is not decompressed.
    pub fn read(&self, hash: &[u8; 32], place: &Place, record: &mut Vec<u8>) -> Result<()> {
        let damaged = |defect| Error::from(Damage::chunk(*hash, Some(*place), defect));
        let file = self.reader(place.segment)?.ok_or_else(|| damaged(Defect::NoSegment))?;
        // A length beyond the segment's is not asked of the allocator.
        if place.end() > self.segment_bytes.max(u64::from(u32::MAX)) {
            return Err(damaged(Defect::Truncated));
        }
        record.resize(place.record_len() as usize, 0);
        match file.read_exact_at(record, u64::from(place.offset)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged(Defect::Truncated));
            }
            Err(error) => return Err(Error::io("read", &self.path(place.segment))(error)),
        }
        place.header(hash).examine(record).map_err(damaged)
    }

    /// Deletes the file of a segment that nothing is in; who has it open may still read it.
    pub fn delete(&self, id: SegmentId) -> Result<()> {
        self.readers().open.remove(&id);
        let path = self.path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("delete", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Grows whenever somebody is about to read of a segment.
    pub fn reads(&self) -> u64 {
        self.readers().clock
    }

    /// The file of a segment; `None` if there is none.
    pub fn reader(&self, id: SegmentId) -> Result<Option<Arc<File>>> {
        let mut readers = self.readers();
        readers.clock += 1;
        let now = readers.clock;
        if let Some((file, used)) = readers.open.get_mut(&id) {
            *used = now;
            return Ok(Some(file.clone()));
        }
        let path = self.path(id);
        let file = match File::open(&path) {
            Ok(file) => Arc::new(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        if readers.open.len() >= READERS_MAX {
            let oldest = readers.open.iter().min_by_key(|(_, (_, used))| *used).map(|(&id, _)| id);
            if let Some(oldest) = oldest {
                readers.open.remove(&oldest);
            }
        }
        readers.open.insert(id, (file.clone(), now));
        Ok(Some(file))
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to take the space that the index needs to delete things.
    fn check_space(&self, len: u64, reserve: u64) -> Result<()> {
        let stat = rustix::fs::fstatvfs(&self.dir_file).map_err(|e| Error::io("examine", &self.dir)(e.into()))?;
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        match available < reserve.saturating_add(len) {
            true => Err(Error::Full { available, reserve }),
            false => Ok(()),
        }
    }
}

impl Tail {
    fn check(&self) -> Result<()> {
        match &self.stopped {
            Some(why) => Err(Error::Stopped(why.clone())),
            None => Ok(()),
        }
    }
}

impl Appender<'_> {
    /// Writes whole records. Returns the segment and the offset that they begin at.
    pub fn append(&mut self, records: &[u8]) -> Result<(SegmentId, u32)> {
        self.append_keeping(records, self.segments.reserve_bytes)
    }

    /// As [`Appender::append`], for copies of what is stored already: they may take half of the space
    /// that is kept, as they give more back.
    pub fn append_copies(&mut self, records: &[u8]) -> Result<(SegmentId, u32)> {
        self.append_keeping(records, self.segments.reserve_bytes / 2)
    }

    fn append_keeping(&mut self, records: &[u8], reserve: u64) -> Result<(SegmentId, u32)> {
        self.tail.check()?;
        self.segments.check_space(records.len() as u64, reserve)?;
        let fits = |w: &Writing| w.end + records.len() as u64 <= self.segments.segment_bytes;
        if !self.tail.open || !self.tail.writing.last().is_some_and(fits) {
            self.begin_segment()?;
        }
        let Some(writing) = self.tail.writing.last_mut() else {
            return Err(Error::Stopped("no segment is open".into()));
        };
        let offset = writing.end;
        let written = writing.file.write_all_at(records, offset);
        written.map_err(Error::io("write", &self.segments.path(writing.id)))?;
        writing.end += records.len() as u64;
        writing.start_writeback();
        // Segments end below 4 GiB, see `Options`.
        Ok((writing.id, offset as u32))
    }

    /// The segment that is open for appending.
    pub fn open_id(&self) -> Option<SegmentId> {
        self.tail.writing.last().filter(|_| self.tail.open).map(|w| w.id)
    }

    /// Segments that are open or have bytes that are not committed, and where they end.
    pub fn unfinished(&self) -> impl Iterator<Item = (SegmentId, u64)> {
        self.tail.writing.iter().map(|w| (w.id, w.end))
    }

    /// Appends no more to the segment that is open: the next bytes begin another.
    pub fn close(&mut self) {
        let open = std::mem::replace(&mut self.tail.open, false);
        if open && self.tail.writing.last().is_some_and(|w| w.committed == w.end) {
            self.tail.writing.pop();
        }
    }

    /// Does nothing more for the durability of a closed segment of which nothing is live.
    pub fn forget(&mut self, id: SegmentId) {
        self.tail.writing.retain(|w| w.id != id);
    }

    fn begin_segment(&mut self) -> Result<()> {
        let id = self.tail.next_id;
        let path = self.segments.path(id);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        self.tail.next_id += 1;
        let begun = file.write_all_at(&PREAMBLE, 0).and_then(|()| self.segments.dir_file.sync_all());
        begun.map_err(Error::io("begin", &path))?;
        let end = PREAMBLE.len() as u64;
        self.close();
        self.tail.open = true;
        let writing = Writing { id, file: Arc::new(file), end, synced: 0, committed: 0, written_back: 0 };
        self.tail.writing.push(writing);
        Ok(())
    }
}

impl Writing {
    /// Asks the kernel to begin writing out what is dirty; waits for nothing and may be ignored.
    fn start_writeback(&mut self) {
        let dirty = self.end - self.written_back;
        if dirty < WRITEBACK_BYTES {
            return;
        }
        let (from, len) = (self.written_back as i64, dirty as i64);
        // SAFETY: the descriptor is open and the call touches no memory of ours.
        unsafe { libc::sync_file_range(self.file.as_raw_fd(), from, len, libc::SYNC_FILE_RANGE_WRITE) };
        self.written_back = self.end;
    }
}
