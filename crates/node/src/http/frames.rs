//! NARs from stored frames: as they lie, or decompressed.
//!
//! Frames are read in runs, as they lie beside each other in one segment, and checked before anything of them goes on.
//! A run that the kernel has in memory is read, and decompressed, by who sends it: another thread would work on another
//! core, and the bytes would have to move there and back. Others wait on a thread that may block. The headers between frames are left out, so the bytes of a .zst do not depend on where its frames lie.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::io::ReadWriteFlags;
use shoal_store::{Place, Run, StoredFrames};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use super::Body;
use super::body::Pieces;
use super::buffers::{BUFFER_BYTES, Buffer};
use super::decode;

/// Bytes of segment that are read at a time: few calls, and still in the processor's cache when they are sent.
const RUN_BYTES: u64 = BUFFER_BYTES as u64;
/// Bytes of NAR that one run decompresses to: a sixth of a millisecond's work, and in the processor's cache when sent.
const PLAIN_BYTES: u64 = 256 << 10;
/// What a body holds, whoever takes it: a run, and what it decompresses to.
pub const HELD_BYTES_MAX: u64 = 2 * BUFFER_BYTES as u64;
/// Runs of one body that are read from the disk at once: the next one while the last is sent.
const RUNS_AHEAD: usize = 2;
/// Those of all bodies, beyond the one that each may always have: 144 MiB. A body that has none makes its runs one by
/// one.
const RUNS_AHEAD_ALL: usize = 256;
static AHEAD: Semaphore = Semaphore::const_new(RUNS_AHEAD_ALL);
/// What a body is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The frames: a .zst file.
    Frames,
    /// Their contents: the NAR.
    Contents,
}

/// A NAR's frames, to be sent in one form.
pub struct FramedNar {
    stored: Arc<Stored>,
    form: Form,
}

/// Frames, and where each lies in a table: they are asked for by number.
struct Stored {
    frames: StoredFrames,
    parts: Vec<Part>,
}

#[derive(Clone, Copy)]
struct Part {
    place: Place,
    /// Bytes of contents.
    len: u32,
}

impl Stored {
    fn of(&self, run: &Run) -> &[Part] {
        self.parts.get(run.frames.clone()).unwrap_or_default()
    }
}

impl FramedNar {
    pub fn new(frames: StoredFrames, form: Form) -> FramedNar {
        let parts = frames.frames().map(|(chunk, place)| Part { place: *place, len: chunk.len }).collect();
        FramedNar { stored: Arc::new(Stored { frames, parts }), form }
    }

    /// Bytes of all of it.
    pub fn size(&self) -> u64 {
        self.lens().sum()
    }

    fn lens(&self) -> impl Iterator<Item = u64> {
        self.stored.parts.iter().map(|part| match self.form {
            Form::Frames => u64::from(part.place.frame_len),
            Form::Contents => u64::from(part.len),
        })
    }

    /// Whether some of it is stored as it came in haste. That is compressed anew one day, all else is only moved.
    pub fn is_hasty(&self) -> bool {
        self.stored.parts.iter().any(|part| part.place.hasty)
    }

    /// Names the bytes of the stored form: lengths and checks of all frames.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut named = Vec::with_capacity(8 * self.stored.parts.len());
        for Part { place, .. } in &self.stored.parts {
            named.extend_from_slice(&place.frame_len.to_le_bytes());
            named.extend_from_slice(&place.check.to_le_bytes());
        }
        shoal_wire::nix::hash::sha256(&named)
    }

    /// The bytes of a range of it.
    pub fn body(self, range: Range<u64>) -> Body {
        Body::pieces(range.end - range.start, self.pieces(range))
    }

    fn pieces(self, range: Range<u64>) -> FramePieces {
        let len = range.end - range.start;
        let (frames, skip) = touched(self.lens(), &range);
        let runs = runs(&self.stored.parts, frames);
        let FramedNar { stored, form } = self;
        FramePieces { stored, form, skip, left: len, runs, made: VecDeque::new(), ahead: VecDeque::new() }
    }
}

/// The frames that hold bytes of a range, and how many bytes before it the first of them has.
fn touched(lens: impl Iterator<Item = u64>, range: &Range<u64>) -> (Range<usize>, u64) {
    let ends = lens.scan(0, |end, len| {
        *end += len;
        Some((*end - len, *end))
    });
    let mut inside = ends.enumerate().filter(|(_, (begin, end))| *end > range.start && *begin < range.end);
    let Some((first, (begin, _))) = inside.next() else { return (0..0, 0) };
    let last = inside.last().map_or(first, |(last, _)| last);
    (first..last + 1, range.start.saturating_sub(begin))
}

/// Frames that lie beside each other, up to a bound in stored and in plain bytes.
fn runs(parts: &[Part], wanted: Range<usize>) -> VecDeque<Run> {
    let mut runs: VecDeque<Run> = VecDeque::new();
    let mut plain = 0;
    for (number, part) in wanted.clone().zip(parts.get(wanted).unwrap_or_default()) {
        let (place, len) = (&part.place, u64::from(part.len));
        plain += len;
        if let Some(run) = runs.back_mut() {
            let follows = run.segment == place.segment && run.offset + run.len == u64::from(place.offset);
            if follows && place.end() - run.offset <= RUN_BYTES && plain <= PLAIN_BYTES {
                run.len = place.end() - run.offset;
                run.frames.end = number + 1;
                continue;
            }
        }
        plain = len;
        let (offset, len) = (place.frame_offset(), u64::from(place.frame_len));
        runs.push_back(Run { frames: number..number + 1, segment: place.segment, offset, len });
    }
    runs
}

struct FramePieces {
    stored: Arc<Stored>,
    form: Form,
    /// Bytes before the range that the first frame has.
    skip: u64,
    left: u64,
    runs: VecDeque<Run>,
    /// Pieces that are ready.
    made: VecDeque<Bytes>,
    /// Runs that threads are at, in order.
    ahead: VecDeque<JoinHandle<io::Result<Made>>>,
}

/// A run's pieces. Those of a run ahead have the right to be held beside others.
struct Made {
    pieces: Vec<Bytes>,
    _ahead: Option<SemaphorePermit<'static>>,
}

impl Pieces for FramePieces {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(piece) = self.made.pop_front() {
                match self.within(piece) {
                    piece if piece.is_empty() => continue,
                    piece => return Poll::Ready(Some(Ok(piece))),
                }
            }
            if let Some(helped) = self.ahead.front_mut() {
                let made = ready!(Pin::new(helped).poll(context));
                self.ahead.pop_front();
                match made.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
                    // It is the body's only run now.
                    Ok(made) => self.made.extend(made.pieces),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
                self.help_ahead();
                continue;
            }
            let Some(run) = self.runs.pop_front() else { return Poll::Ready(None) };
            match self.make_now(&run) {
                Some(Ok(made)) => self.made.extend(made),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.help_from(run),
            }
        }
    }
}

impl FramePieces {
    /// What of a piece is in the range.
    fn within(&mut self, mut piece: Bytes) -> Bytes {
        let skip = self.skip.min(piece.len() as u64);
        self.skip -= skip;
        let _ = piece.split_to(skip as usize);
        piece.truncate(self.left.min(piece.len() as u64) as usize);
        self.left -= piece.len() as u64;
        piece
    }

    /// Makes a run's pieces here, if that does not take the disk.
    fn make_now(&self, run: &Run) -> Option<io::Result<Vec<Bytes>>> {
        let read = read_now(&self.stored.frames, run).transpose()?;
        Some(read.and_then(|buffer| make(&self.stored, self.form, run, buffer)))
    }

    /// Has threads make this run and those that follow.
    fn help_from(&mut self, run: Run) {
        self.help(run, None);
        self.help_ahead();
    }

    fn help(&mut self, run: Run, ahead: Option<SemaphorePermit<'static>>) {
        let (stored, form) = (self.stored.clone(), self.form);
        self.ahead.push_back(tokio::task::spawn_blocking(move || {
            let buffer = read_waiting(&stored.frames, &run)?;
            Ok(Made { pieces: make(&stored, form, &run, buffer)?, _ahead: ahead })
        }));
    }

    /// Keeps threads at the runs to come, where this body needed one.
    fn help_ahead(&mut self) {
        while self.ahead.len() < RUNS_AHEAD && !self.runs.is_empty() {
            let Ok(ahead) = AHEAD.try_acquire() else { return };
            let Some(run) = self.runs.pop_front() else { return };
            self.help(run, Some(ahead));
        }
    }
}

/// The bytes of a run, checked, where the kernel has all of them in memory.
fn read_now(frames: &StoredFrames, run: &Run) -> io::Result<Option<Buffer>> {
    let file = frames.file(run)?;
    let (mut buffer, mut is_whole) = (Buffer::take(), false);
    buffer.append(run.len as usize, |room| {
        let read = rustix::io::preadv2(&*file, &mut [IoSliceMut::new(room)], run.offset, ReadWriteFlags::NOWAIT);
        // Else it is part of it, or nothing; or a file system that does not know.
        is_whole = matches!(read, Ok(n) if n == room.len());
        if is_whole { Ok(frames.check(run, room)?) } else { Ok(()) }
    })?;
    Ok(is_whole.then_some(buffer))
}

/// The same from the disk.
fn read_waiting(frames: &StoredFrames, run: &Run) -> io::Result<Buffer> {
    let mut buffer = Buffer::take();
    buffer.append(run.len as usize, |room| Ok(frames.read_into(run, room)?))?;
    Ok(buffer)
}

/// The pieces of a run that was read and checked.
fn make(stored: &Stored, form: Form, run: &Run, buffer: Buffer) -> io::Result<Vec<Bytes>> {
    let bytes = buffer.into_bytes();
    let mut made = Vec::with_capacity(run.frames.len());
    let mut contents = decode::Contents::default();
    for Part { place, len } in stored.of(run) {
        let at = (place.frame_offset() - run.offset) as usize;
        let frame = bytes.slice(at..at + place.frame_len as usize);
        match form {
            Form::Frames => made.push(frame),
            Form::Contents => contents.add(&frame, *len as usize, &mut made)?,
        }
    }
    contents.finish(&mut made);
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use shoal_store::{ChunkHold, Effort, Encoder, NarCutter, Options, Store};
    use shoal_wire::mesh::manifest::ChunkRef;
    use shoal_wire::nix::nar::write::NarWriter;
    use shoal_wire::nix::path_info::PathInfo;
    use shoal_wire::nix::store_path::StorePath;

    use super::*;

    /// A NAR of several runs that have to be decompressed.
    fn add(store: &Store) -> (PathInfo, Vec<u8>) {
        let contents: Vec<u8> =
            (0u64..).flat_map(|n| format!("{n} of {}\n", n * n).into_bytes()).take(4 << 20).collect();
        let mut writer = NarWriter::new(Vec::new());
        writer.regular(b"", false, contents.len() as u64).unwrap();
        writer.contents(&contents).unwrap();
        let nar = writer.finish().unwrap();
        let _hold = compressed(store, &nar);
        let mut ingest = store.ingest();
        ingest.write_all(&nar).unwrap();
        let ingested = ingest.finish().unwrap();
        let path = StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap();
        let info = PathInfo::new(path, ingested.nar_hash, ingested.nar_size);
        store.commit(vec![(info.clone(), ingested)]).unwrap();
        (info, nar)
    }

    /// Takes in all chunks of a NAR compressed; from memory it would come faster than that is done.
    fn compressed(store: &Store, nar: &[u8]) -> ChunkHold {
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        let mut cutter = NarCutter::default();
        let mut cut = |chunk: &[u8]| {
            chunks.push(chunk.to_vec());
            Ok::<_, io::Error>(())
        };
        cutter.feed(nar, &mut cut).unwrap();
        cutter.finish(cut).unwrap();
        let mut hold = store.hold_chunks();
        hold.lacks(&chunks.iter().map(|chunk| ChunkRef::of(chunk).hash).collect::<Vec<_>>()).unwrap();
        let mut encoder = Encoder::new(1).unwrap();
        for chunk in &chunks {
            let (mut arrivals, mut frame) = (store.arrivals().unwrap(), Vec::new());
            encoder.encode(chunk, Effort::Level, &mut frame).unwrap();
            arrivals.slot(ChunkRef::of(chunk), false, frame.len()).unwrap().copy_from_slice(&frame);
            hold.keep(arrivals.verify().unwrap()).unwrap();
        }
        hold
    }

    async fn next(pieces: &mut FramePieces) -> Option<Bytes> {
        std::future::poll_fn(|context| pieces.poll_piece(context)).await.transpose().unwrap()
    }

    /// However many clients take nothing, what is decompressed for them beyond a run each is bounded.
    #[tokio::test]
    async fn a_body_without_a_right_to_read_ahead_makes_its_runs_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
        let (info, nar) = add(&store);
        let begin = || {
            let frames = store.stored_frames(&info.path, 0..info.nar_size).unwrap().unwrap();
            FramedNar::new(frames, Form::Contents).pieces(0..info.nar_size)
        };
        let others = AHEAD.try_acquire_many(RUNS_AHEAD_ALL as u32 - 3).unwrap();
        let (mut first, mut second, mut third) = (begin(), begin(), begin());
        let mut all = Vec::new();
        for pieces in [&mut first, &mut second, &mut third] {
            // As if it were not in memory.
            let run = pieces.runs.pop_front().unwrap();
            pieces.help_from(run);
            all.push(next(pieces).await.unwrap().to_vec());
        }
        assert_eq!([first.ahead.len(), second.ahead.len(), third.ahead.len()], [2, 1, 0]);
        drop(first);
        for (pieces, mut all) in [&mut second, &mut third].into_iter().zip(all.into_iter().skip(1)) {
            while let Some(piece) = next(pieces).await {
                all.extend_from_slice(&piece);
            }
            assert!(all == nar);
        }
        drop(others);
        let back = AHEAD.acquire_many(RUNS_AHEAD_ALL as u32);
        let back = tokio::time::timeout(std::time::Duration::from_secs(60), back).await;
        assert!(back.is_ok_and(|back| back.is_ok()), "rights were lost");
    }

    #[test]
    fn the_frames_of_a_range_are_those_with_bytes_in_it() {
        let of = |range: Range<u64>| touched([10, 20, 30].into_iter(), &range);
        assert_eq!(of(0..60), (0..3, 0));
        assert_eq!(of(10..30), (1..2, 0));
        assert_eq!(of(9..11), (0..2, 9));
        assert_eq!(of(59..60), (2..3, 29));
    }
}
