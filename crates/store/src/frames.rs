//! Stored frames as they lie, for whoever sends them on without decompressing.
//!
//! Concatenated, the frames of a NAR are a .zst file of it. Frames that follow each other in one
//! segment are one [`Run`]: the record headers between them are skippable frames and may be sent too.
//! A [`StoredFrames`] is a snapshot: while it lives its path is not deleted, and its segments stay,
//! even if their records are moved elsewhere meanwhile. So lengths that were announced hold.

use crate::error::{Damage, Defect, Error, Result, in_path};
use crate::frame_lists::{FrameList, LIST_CHUNKS_MAX};
use crate::leases::Lease;
use crate::place::{Place, SegmentId};
use crate::segment::hold::SegmentHold;
use crate::segment::record::HEADER_LEN;
use crate::store::Store;
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::nix::store_path::StorePath;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The frames that a range of a path's NAR lies in.
pub struct StoredFrames {
    store: Store,
    path: StorePath,
    list: Arc<FrameList>,
    /// Which of the list, and where in the NAR the first begins.
    frames: Range<usize>,
    from: u64,
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
        let Some(root) = self.content_root(path)? else {
            return Ok(None);
        };
        let found = match self.kept_frames(&root, &range) {
            Some(found) => found,
            None => {
                let Some(manifest) = self.manifest(path)? else {
                    return Ok(None);
                };
                self.listed_frames(&root, manifest.chunks, &range).map_err(in_path(path))?
            }
        };
        let Found { list, frames, from, hold } = found;
        let (store, path) = (self.clone(), path.clone());
        Ok(Some(StoredFrames { store, path, list, frames, from, _hold: hold, _lease: lease }))
    }

    /// Frames of a NAR that was asked for lately.
    fn kept_frames(&self, root: &[u8; 32], range: &Range<u64>) -> Option<Found> {
        let _gate = self.segments.holds.enter();
        let age = self.frame_lists.age(self.pins.damage_generation());
        let list = self.frame_lists.get(root, age)?;
        let (frames, from) = touched(&list.chunks, range);
        let hold = SegmentHold::new(&self.segments, list.places[frames.clone()].iter().map(|place| place.segment));
        Some(Found { list, frames, from, hold })
    }

    /// Frames of a NAR with these chunks. Where all are, unless there are very many, is kept for whoever is next.
    fn listed_frames(&self, root: &[u8; 32], mut chunks: Vec<ChunkRef>, range: &Range<u64>) -> Result<Found> {
        let (mut frames, from) = touched(&chunks, range);
        let is_kept = chunks.len() <= LIST_CHUNKS_MAX;
        if !is_kept {
            chunks = chunks[frames].to_vec();
            frames = 0..chunks.len();
        }
        let gate = self.segments.holds.enter();
        let age = self.frame_lists.age(self.pins.damage_generation());
        let places = match self.right_places(&chunks) {
            Ok(places) => places,
            Err(error) => {
                // Taking note waits for the appender, and who has that may wait for the gate.
                drop(gate);
                return Err(self.noting(error));
            }
        };
        let hold = SegmentHold::new(&self.segments, places[frames.clone()].iter().map(|place| place.segment));
        let list = Arc::new(FrameList { chunks, places });
        if is_kept {
            self.frame_lists.put(root, age, &list);
        }
        Ok(Found { list, frames, from, hold })
    }

    /// Where chunks lie. Asked within a passage of the gate.
    fn right_places(&self, chunks: &[ChunkRef]) -> Result<Vec<Place>> {
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
            return Err(defect.into());
        }
        Ok(places)
    }
}

/// What a range of a NAR lies in, in segments that stay.
struct Found {
    list: Arc<FrameList>,
    frames: Range<usize>,
    from: u64,
    hold: SegmentHold,
}

/// The chunks that `range` touches, and where in the NAR the first begins.
fn touched(chunks: &[ChunkRef], range: &Range<u64>) -> (Range<usize>, u64) {
    let (mut first, mut from) = (0, 0);
    for chunk in chunks {
        if range.start < from + u64::from(chunk.len) {
            break;
        }
        from += u64::from(chunk.len);
        first += 1;
    }
    let (mut end, mut last) = (from, first);
    while let Some(chunk) = chunks.get(last).filter(|_| end < range.end) {
        end += u64::from(chunk.len);
        last += 1;
    }
    (first..last, from)
}

impl StoredFrames {
    fn chunks(&self) -> &[ChunkRef] {
        &self.list.chunks[self.frames.clone()]
    }

    fn places(&self) -> &[Place] {
        &self.list.places[self.frames.clone()]
    }

    /// Where in the NAR the first frame's chunk begins.
    pub fn nar_offset(&self) -> u64 {
        self.from
    }

    /// Of each frame its chunk and where it lies.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = (&ChunkRef, &Place)> {
        self.chunks().iter().zip(self.places())
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
        let places = self.places();
        let place = places.get(first)?;
        let (segment, offset) = (place.segment, place.frame_offset());
        let (mut last, mut end) = (first + 1, place.end());
        while let Some(next) = places.get(last) {
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
            let (Some(place), Some(chunk)) = (self.places().get(number), self.chunks().get(number)) else {
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
        out.resize(run.len as usize, 0);
        let read = self.read_into(run, out);
        if read.is_err() {
            out.clear();
        }
        read
    }

    /// Fills `out`, which is as long as the run, with its bytes, checked.
    pub fn read_into(&self, run: &Run, out: &mut [u8]) -> Result<()> {
        match self.file(run)?.read_exact_at(out, run.offset) {
            Ok(()) => self.check(run, out),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.damaged(run.frames.end - 1, Defect::Truncated))
            }
            Err(error) => Err(Error::io("read", &self.store.segments.path(run.segment))(error)),
        }
    }

    /// The error for frame `number`, of which the store takes note.
    fn damaged(&self, number: usize, defect: Defect) -> Error {
        let (hash, place) = match (self.chunks().get(number), self.places().get(number)) {
            (Some(chunk), Some(place)) => (chunk.hash, *place),
            _ => return Error::Stopped("a frame belongs to other frames".into()),
        };
        in_path(&self.path)(self.store.noting(Damage::chunk(hash, Some(place), defect).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tables::{CHUNKS, DAMAGED};
    use crate::options::Options;
    use shoal_wire::nix::nar::write::NarWriter;
    use shoal_wire::nix::path_info::PathInfo;
    use std::thread;

    /// Whoever deletes segments has the appender and waits for the gate; who takes note of damage waits for the appender.
    #[test]
    fn taking_note_of_damage_does_not_wait_at_the_gate() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let path = StorePath::from_base_name("00000000000000000000000000000000-p").unwrap();
        let mut nar = NarWriter::new(Vec::new());
        nar.regular(b"", false, 4).unwrap();
        nar.contents(b"text").unwrap();
        let mut ingest = store.ingest();
        ingest.feed(&nar.finish().unwrap()).unwrap();
        let ingested = ingest.finish().unwrap();
        let info = PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size);
        store.commit(vec![(info, ingested)]).unwrap();
        let hash = store.manifest(&path).unwrap().unwrap().chunks[0].hash;
        let lost = move |txn: &redb::WriteTransaction| Ok(txn.open_table(CHUNKS)?.remove(&hash)?.is_some());
        assert!(store.writer.write(false, lost).unwrap());
        let appender = store.segments.appender();
        thread::scope(|scope| {
            let reading = scope.spawn(|| store.stored_frames(&path, 0..u64::MAX).map(|_| ()));
            let is_marked = || store.index.read(|txn| Ok(txn.open_table(DAMAGED)?.get(&hash)?.is_some())).unwrap();
            // The mark is in the index before the appender is asked for.
            while !is_marked() && !reading.is_finished() {
                thread::yield_now();
            }
            let is_open = store.segments.holds.is_free();
            drop(appender);
            assert!(matches!(reading.join().unwrap(), Err(Error::Damaged(_))));
            assert!(is_open, "note is taken within the gate");
        });
    }
}
