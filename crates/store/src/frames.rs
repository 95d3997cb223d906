//! Stored frames as they lie, for whoever sends them on without decompressing.
//!
//! Concatenated, the frames of a NAR are a .zst file of it. Frames that follow each other in one
//! segment are one [`Run`]: the record headers between them are skippable frames and may be sent too.
//! A [`StoredFrames`] is a snapshot: while it lives its path is not deleted, and its segments stay,
//! even if their records are moved elsewhere meanwhile. So lengths that were announced hold.

use crate::error::{Damage, Defect, Error, Result, in_path};
use crate::leases::Lease;
use crate::place::{Place, SegmentId};
use crate::segment::hold::SegmentHold;
use crate::segment::record::HEADER_LEN;
use crate::store::Store;
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use shoal_wire::nix::store_path::StorePath;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The frames that a range of a path's NAR lies in.
pub struct StoredFrames {
    store: Store,
    path: StorePath,
    manifest: Arc<Manifest>,
    /// Number of the first chunk, and where in the NAR it begins.
    first: usize,
    from: u64,
    places: Vec<Place>,
    _hold: SegmentHold,
    _lease: Lease,
}

/// Bytes of one segment to send as they are: frames, and the headers between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Numbers of its frames within the [`StoredFrames`].
    pub frames: Range<usize>,
    pub segment: SegmentId,
    /// Where its first frame begins in the segment.
    pub offset: u64,
    pub len: u64,
}

impl Store {
    /// The frames of a valid path that the bytes `range` of its NAR lie in; `None` if it is not valid.
    pub fn stored_frames(&self, path: &StorePath, range: Range<u64>) -> Result<Option<StoredFrames>> {
        let lease = Lease::new(&self.leases, path);
        let Some(manifest) = self.manifest(path)? else {
            return Ok(None);
        };
        let (first, from, chunks) = touched(&manifest, &range);
        let (places, hold) = self.held_places(chunks).map_err(in_path(path))?;
        let (store, path, manifest) = (self.clone(), path.clone(), Arc::new(manifest));
        Ok(Some(StoredFrames { store, path, manifest, first, from, places, _hold: hold, _lease: lease }))
    }

    /// Where chunks lie, in segments that stay.
    fn held_places(&self, chunks: &[ChunkRef]) -> Result<(Vec<Place>, SegmentHold)> {
        let _gate = self.segments.holds.enter();
        let found = self.places(chunks.iter().map(|chunk| &chunk.hash))?;
        let mut places = Vec::with_capacity(found.len());
        for (chunk, place) in chunks.iter().zip(found) {
            let defect = match place {
                place if self.pins.is_damaged(&chunk.hash) => Damage::chunk(chunk.hash, place, Defect::Quarantined),
                Some(place) if place.chunk_len == chunk.len => {
                    places.push(place);
                    continue;
                }
                place => Damage::chunk(chunk.hash, place, Defect::Unknown),
            };
            return Err(self.noting(defect.into()));
        }
        let hold = SegmentHold::new(&self.segments, places.iter().map(|place| place.segment));
        Ok((places, hold))
    }
}

/// Number and offset of the first chunk that `range` touches, and all of them.
fn touched<'a>(manifest: &'a Manifest, range: &Range<u64>) -> (usize, u64, &'a [ChunkRef]) {
    let (mut first, mut from) = (0, 0);
    let mut chunks = manifest.chunks.iter();
    for chunk in chunks.by_ref() {
        if range.start < from + u64::from(chunk.len) {
            break;
        }
        from += u64::from(chunk.len);
        first += 1;
    }
    let (mut end, mut last) = (from, first);
    while let Some(chunk) = manifest.chunks.get(last).filter(|_| end < range.end) {
        end += u64::from(chunk.len);
        last += 1;
    }
    (first, from, &manifest.chunks[first..last])
}

impl StoredFrames {
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Where in the NAR the first frame's chunk begins.
    pub fn nar_offset(&self) -> u64 {
        self.from
    }

    /// Of each frame its chunk and where it lies.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = (&ChunkRef, &Place)> {
        self.manifest.chunks[self.first..].iter().take(self.places.len()).zip(&self.places)
    }

    /// The frames in order as runs of up to `len_max` bytes, or one frame if that is longer.
    pub fn runs(&self, len_max: u64) -> impl Iterator<Item = Run> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let run = self.run(next, len_max)?;
            next = run.frames.end;
            Some(run)
        })
    }

    fn run(&self, first: usize, len_max: u64) -> Option<Run> {
        let place = self.places.get(first)?;
        let (segment, offset) = (place.segment, place.frame_offset());
        let (mut last, mut end) = (first + 1, place.end());
        while let Some(next) = self.places.get(last) {
            let follows = next.segment == segment && u64::from(next.offset) == end;
            if !follows || next.end() - offset > len_max {
                break;
            }
            end = next.end();
            last += 1;
        }
        Some(Run { frames: first..last, segment, offset, len: end - offset })
    }

    /// The file that a run lies in.
    pub fn file(&self, run: &Run) -> Result<Arc<File>> {
        match self.store.segments.reader(run.segment)? {
            Some(file) => Ok(file),
            None => Err(self.damaged(run.frames.start, Defect::NoSegment)),
        }
    }

    /// Checks what was read of a run: nothing of it may be sent on an error, which is
    /// [`Error::Damaged`] for bytes that are not what was stored. The store remembers the damage.
    pub fn check(&self, run: &Run, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        for number in run.frames.clone() {
            let (Some(place), Some(chunk)) = (self.places.get(number), self.manifest.chunks.get(self.first + number))
            else {
                return Err(Error::Stopped("a run belongs to other frames".into()));
            };
            let header = place.header(&chunk.hash);
            let is_first = number == run.frames.start;
            let len = place.frame_len as usize + if is_first { 0 } else { HEADER_LEN };
            let Some((record, after)) = rest.split_at_checked(len) else {
                return Err(self.damaged(number, Defect::Truncated));
            };
            let examined = match is_first {
                true if header.is_of(record) => Ok(()),
                true => Err(Defect::Checksum),
                false => header.examine(record),
            };
            examined.map_err(|defect| self.damaged(number, defect))?;
            rest = after;
        }
        Ok(())
    }

    /// Replaces `out` by the bytes of a run, checked.
    pub fn read(&self, run: &Run, out: &mut Vec<u8>) -> Result<()> {
        let file = self.file(run)?;
        out.resize(run.len as usize, 0);
        let read = match file.read_exact_at(out, run.offset) {
            Ok(()) => self.check(run, out),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.damaged(run.frames.end - 1, Defect::Truncated))
            }
            Err(error) => Err(Error::io("read", &self.store.segments.path(run.segment))(error)),
        };
        if read.is_err() {
            out.clear();
        }
        read
    }

    /// The error for frame `number`, of which the store takes note.
    fn damaged(&self, number: usize, defect: Defect) -> Error {
        let (hash, place) = match (self.manifest.chunks.get(self.first + number), self.places.get(number)) {
            (Some(chunk), Some(place)) => (chunk.hash, *place),
            _ => return Error::Stopped("a frame belongs to other frames".into()),
        };
        in_path(&self.path)(self.store.noting(Damage::chunk(hash, Some(place), defect).into()))
    }
}
