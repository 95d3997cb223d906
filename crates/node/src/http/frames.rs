//! NARs from stored frames: as they lie, or decompressed.
//!
//! Frames are read in runs, as they lie beside each other in one segment, and checked before anything of them goes on.
//! A run that the kernel has in memory is read in place, without a thread's help; others wait on a thread that may
//! block. The headers between frames are left out, so the bytes of a .zst do not depend on where its frames lie.

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
use tokio::task::JoinHandle;

use super::Body;
use super::body::Pieces;
use super::buffers::{BUFFER_BYTES, Buffer};
use super::decode;

/// Bytes of segment that are read at a time: few calls, and still in the processor's cache when they are sent.
const RUN_BYTES: u64 = BUFFER_BYTES as u64;
/// Bytes of NAR that one run decompresses to.
const PLAIN_BYTES: u64 = 512 << 10;
/// Runs of one body that are decompressed at once: the next one while the last is sent.
const RUNS_AHEAD: usize = 2;
/// A NAR up to this is decompressed in place: a thread's help costs more.
const INLINE_BYTES: u64 = 64 << 10;

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
        let len = range.end - range.start;
        let (mut at, mut first, mut skip, mut count) = (0, 0, 0, 0);
        for (number, frame_len) in self.lens().enumerate() {
            if at + frame_len <= range.start {
                first = number + 1;
            } else if at < range.end {
                if number == first {
                    skip = range.start - at;
                }
                count = number + 1 - first;
            }
            at += frame_len;
        }
        let runs = runs(&self.stored.parts, first..first + count);
        let FramedNar { stored, form } = self;
        Body::pieces(
            len,
            FramePieces { stored, form, len, skip, left: len, runs, made: VecDeque::new(), ahead: VecDeque::new() },
        )
    }
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
    /// Bytes of all pieces.
    len: u64,
    /// Bytes before the range that the first frame has.
    skip: u64,
    left: u64,
    runs: VecDeque<Run>,
    /// Pieces that are ready.
    made: VecDeque<Bytes>,
    /// Runs that threads are at, in order.
    ahead: VecDeque<JoinHandle<io::Result<Vec<Bytes>>>>,
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
                    Ok(made) => self.made.extend(made),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
                self.help_ahead();
                continue;
            }
            let Some(run) = self.runs.pop_front() else { return Poll::Ready(None) };
            match self.make_now(&run) {
                Some(Ok(made)) => self.made.extend(made),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.help(run);
                    self.help_ahead();
                }
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

    /// Makes a run's pieces here, if that takes neither the disk nor long.
    fn make_now(&self, run: &Run) -> Option<io::Result<Vec<Bytes>>> {
        if self.takes_long(run) {
            return None;
        }
        match read_now(&self.stored.frames, run) {
            Ok(None) => None,
            Ok(Some(buffer)) => Some(make(&self.stored, self.form, run, buffer)),
            Err(error) => Some(Err(error)),
        }
    }

    fn takes_long(&self, run: &Run) -> bool {
        self.form == Form::Contents && self.len > INLINE_BYTES && !is_raw(&self.stored, run)
    }

    fn help(&mut self, run: Run) {
        let (stored, form) = (self.stored.clone(), self.form);
        self.ahead.push_back(tokio::task::spawn_blocking(move || {
            let mut buffer = Buffer::take();
            stored.frames.read(&run, buffer.vec())?;
            make_read(&stored, form, &run, buffer)
        }));
    }

    /// Keeps threads at the runs to come, where this body needed one.
    fn help_ahead(&mut self) {
        while self.ahead.len() < RUNS_AHEAD {
            let Some(run) = self.runs.pop_front() else { return };
            self.help(run);
        }
    }
}

/// Whether no frame of a run is compressed: then its bytes are in it as they are.
fn is_raw(stored: &Stored, run: &Run) -> bool {
    stored.of(run).iter().all(|part| part.place.frame_len >= part.len)
}

/// The bytes of a run where the kernel has all of them in memory.
fn read_now(frames: &StoredFrames, run: &Run) -> io::Result<Option<Buffer>> {
    let file = frames.file(run)?;
    let mut buffer = Buffer::take();
    let bytes = buffer.resized(run.len as usize);
    match rustix::io::preadv2(&*file, &mut [IoSliceMut::new(bytes)], run.offset, ReadWriteFlags::NOWAIT) {
        Ok(n) if n as u64 == run.len => Ok(Some(buffer)),
        // Part of it, or nothing; or a file system that does not know.
        _ => Ok(None),
    }
}

/// The pieces of a run that was read and not checked.
fn make(stored: &Stored, form: Form, run: &Run, mut buffer: Buffer) -> io::Result<Vec<Bytes>> {
    stored.frames.check(run, buffer.vec())?;
    make_read(stored, form, run, buffer)
}

/// The pieces of a run that was read and checked.
fn make_read(stored: &Stored, form: Form, run: &Run, buffer: Buffer) -> io::Result<Vec<Bytes>> {
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
