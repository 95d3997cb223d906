//! Stored frames of chunks that are asked for one by one, whatever NARs they belong to.
//!
//! The same promises as for the frames of a NAR ([`crate::frames`]): a snapshot keeps its segments, and what was read is
//! compared with the checksum of its record before anybody gets it. A chunk that is not here or not whole is left out;
//! of damage the store takes note.

use crate::error::{Damage, Defect, Error, Result};
use crate::frame::FRAME_LEN_MAX;
use crate::place::Place;
use crate::segment::hold::SegmentHold;
use crate::segment::record::HEADER_LEN;
use crate::store::{Pool, Store};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::{Deref, DerefMut, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Where some chunks lie; their segments stay while this lives.
pub struct LooseFrames {
    store: Store,
    hashes: Vec<[u8; 32]>,
    /// As many as hashes.
    places: Vec<Option<Place>>,
    _hold: SegmentHold,
}

/// Longest buffer that is kept for the next who reads.
const BUFFER_LEN_MAX: usize = 1 << 20;

/// What was read; its memory is used again when it is dropped.
#[derive(Default)]
pub struct FrameBytes {
    /// Those of an earlier use lie behind `end`.
    bytes: Vec<u8>,
    end: usize,
    pool: Option<Arc<Pool<Vec<u8>>>>,
}

/// Frames that were read at once.
#[derive(Debug, Default)]
pub struct FramesRead {
    pub bytes: FrameBytes,
    /// Of each chunk where in `bytes` its frame is; `None`: it is not here, or damaged.
    pub frames: Vec<Option<Range<usize>>>,
}

impl FrameBytes {
    /// Room for `len` more bytes.
    fn grow(&mut self, len: usize) -> &mut [u8] {
        let start = self.end;
        self.end += len;
        if self.bytes.len() < self.end {
            self.bytes.resize(self.end, 0);
        }
        &mut self.bytes[start..self.end]
    }
}

impl Deref for FrameBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.end]
    }
}

impl DerefMut for FrameBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.end]
    }
}

impl AsRef<[u8]> for FrameBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for FrameBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameBytes").field("len", &self.end).finish()
    }
}

impl Drop for FrameBytes {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take().filter(|_| self.bytes.capacity() <= BUFFER_LEN_MAX) {
            pool.put(std::mem::take(&mut self.bytes));
        }
    }
}

impl Store {
    /// The frames of these chunks, in their order, as far as they are here.
    pub fn loose_frames(&self, hashes: Vec<[u8; 32]>) -> Result<LooseFrames> {
        // Within the gate, so that no segment goes between the look and the hold.
        let _gate = self.segments.holds.enter();
        let mut places = self.places(hashes.iter())?;
        for (hash, place) in hashes.iter().zip(&mut places) {
            place.take_if(|place| self.pins.is_damaged(hash) || place.frame_len as usize > FRAME_LEN_MAX);
        }
        let hold = SegmentHold::new(&self.segments, places.iter().flatten().map(|place| place.segment));
        Ok(LooseFrames { store: self.clone(), hashes, places, _hold: hold })
    }
}

impl LooseFrames {
    /// How many were asked for.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Of each chunk the lengths of it and of its frame, and whether it was stored in haste; `None`: it is not here.
    pub fn get(&self, number: usize) -> Option<&Place> {
        self.places.get(number)?.as_ref()
    }

    /// Reads frames from number `first` on: up to `len_max` bytes, or one frame if that is longer.
    pub fn read(&self, first: usize, len_max: usize) -> Result<FramesRead> {
        let read = self.read_by(first, len_max, &|file, bytes, at| file.read_exact_at(bytes, at).map(|()| true))?;
        read.ok_or_else(|| Error::Stopped("a read that waits did not wait".into()))
    }

    /// The same without waiting for the disk; `None` if something is not in memory, or if that cannot be told here.
    pub fn read_cached(&self, first: usize, len_max: usize) -> Result<Option<FramesRead>> {
        self.read_by(first, len_max, &read_cached)
    }

    fn read_by(&self, first: usize, len_max: usize, read_at: &ReadAt) -> Result<Option<FramesRead>> {
        let pool = self.store.read_buffers.clone();
        let bytes = FrameBytes { bytes: pool.take(|| Ok(Vec::new()))?, end: 0, pool: Some(pool) };
        let mut read = FramesRead { bytes, frames: Vec::new() };
        let mut next = first;
        while next < self.len() {
            let Some(place) = self.get(next) else {
                read.frames.push(None);
                next += 1;
                continue;
            };
            let room = len_max.saturating_sub(read.bytes.len()) as u64;
            if place.record_len() > room && !read.bytes.is_empty() {
                break;
            }
            let run = self.run(next, *place, room);
            next = run.end;
            if !self.read_run(run, &mut read, read_at)? {
                return Ok(None);
            }
        }
        Ok(Some(read))
    }

    /// The chunks from number `first`, which lies at `place`, whose records follow each other: up to `room` bytes.
    fn run(&self, first: usize, place: Place, room: u64) -> Range<usize> {
        let (from, mut end, mut last) = (u64::from(place.offset), place.end(), first + 1);
        while let Some(next) = self.get(last) {
            let follows = next.segment == place.segment && u64::from(next.offset) == end;
            if !follows || next.end() - from > room {
                break;
            }
            end = next.end();
            last += 1;
        }
        first..last
    }

    /// Whether it could be read.
    fn read_run(&self, run: Range<usize>, read: &mut FramesRead, read_at: &ReadAt) -> Result<bool> {
        let placed: Vec<(&[u8; 32], Place)> =
            run.filter_map(|number| Some((self.hashes.get(number)?, *self.get(number)?))).collect();
        let Some((_, first)) = placed.first() else { return Ok(true) };
        let start = read.bytes.len();
        let len: u64 = placed.iter().map(|(_, place)| place.record_len()).sum();
        let missing = match self.store.segments.reader(first.segment)? {
            None => Some(Defect::NoSegment),
            Some(file) => match read_at(&file, read.bytes.grow(len as usize), u64::from(first.offset)) {
                Ok(true) => None,
                Ok(false) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Some(Defect::Truncated),
                Err(error) => return Err(Error::io("read", &self.store.segments.path(first.segment))(error)),
            },
        };
        let mut damage = Vec::new();
        let mut at = start;
        for (hash, place) in &placed {
            let end = at + place.record_len() as usize;
            let examined = match &missing {
                Some(defect) => Err(defect.clone()),
                None => place.header(hash).examine(&read.bytes[at..end]),
            };
            read.frames.push(match examined {
                Ok(()) => Some(at + HEADER_LEN..end),
                Err(defect) => {
                    damage.push(Arc::new(Damage::chunk(**hash, Some(*place), defect)));
                    None
                }
            });
            at = end;
        }
        if missing.is_some() {
            read.bytes.end = start;
        }
        if !damage.is_empty() {
            self.store.note_damage(&damage);
        }
        Ok(true)
    }
}

/// Fills the bytes from an offset of a file; `false`: not without waiting.
type ReadAt = dyn Fn(&File, &mut [u8], u64) -> io::Result<bool>;

fn read_cached(file: &File, bytes: &mut [u8], at: u64) -> io::Result<bool> {
    let len = bytes.len();
    match preadv2(file, &mut [IoSliceMut::new(bytes)], at, ReadWriteFlags::NOWAIT) {
        // What is missing may lie on the disk, or behind the end.
        Ok(read) => Ok(read == len),
        Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
