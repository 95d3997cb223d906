//! The payload of op 44: many paths in one framed stream.
//!
//! Layout: u64 count, then for each path its info and its NAR. Paths come after what they refer to. Frames
//! have no relation to entries.

use crate::nix::path_info::PathInfo;
use crate::nix::proto::{COUNT_MAX, Dialect, FramedReader, FramedWriter, ProtoError, Reader, Writer};
use std::io::{self, BufRead, Read, Write};

/// Reads the entries of an upload one by one.
#[derive(Debug)]
pub struct UploadEntries<R> {
    reader: Reader<FramedReader<R>>,
    /// Entries that have not begun.
    left: u64,
    /// Bytes of the current entry's NAR that have not been read.
    nar_left: u64,
}

impl<R: Read> UploadEntries<R> {
    /// Reads the count. An error leaves `frames` somewhere in the stream.
    pub fn new(frames: FramedReader<R>, dialect: Dialect) -> Result<Self, ProtoError> {
        let mut reader = Reader::new(frames, dialect);
        let left = reader.u64()?;
        if left > COUNT_MAX {
            return Err(ProtoError::TooLong { what: "upload", len: left, limit: COUNT_MAX });
        }
        Ok(UploadEntries { reader, left, nar_left: 0 })
    }

    /// Entries that have not begun.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// The next entry, whose NAR is then read from `self` to its end; whatever was left of the one before is
    /// skipped. `None` after the last.
    pub fn next_entry(&mut self) -> Result<Option<PathInfo>, ProtoError> {
        let rest = self.nar_left;
        let skipped = io::copy(&mut self.reader.by_ref().take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(ProtoError::Truncated);
        }
        self.nar_left = 0;
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        self.reader.begin();
        let info: PathInfo = self.reader.get()?;
        self.nar_left = info.nar_size;
        Ok(Some(info))
    }

    /// The stream, wherever it is. Drain it before the reply.
    pub fn into_frames(self) -> FramedReader<R> {
        self.reader.into_inner()
    }
}

/// The NAR of the current entry: exactly as many bytes as its info says, or an error of kind `UnexpectedEof`.
impl<R: Read> Read for UploadEntries<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.nar_left).map_or(out.len(), |left| left.min(out.len()));
        let n = self.reader.read(&mut out[..wanted])?;
        if n == 0 && wanted > 0 {
            return Err(ProtoError::Truncated.into());
        }
        self.nar_left -= n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for UploadEntries<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.nar_left == 0 {
            return Ok(&[]);
        }
        let left = self.nar_left;
        let buffer = self.reader.fill_buf()?;
        if buffer.is_empty() {
            return Err(ProtoError::Truncated.into());
        }
        let n = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        Ok(&buffer[..n])
    }

    fn consume(&mut self, n: usize) {
        let n = usize::try_from(self.nar_left).map_or(n, |left| left.min(n));
        self.nar_left -= n as u64;
        self.reader.consume(n);
    }
}

/// Writes what [`UploadEntries`] reads, `count` entries of it.
#[derive(Debug)]
pub struct UploadWriter<W: Write> {
    writer: Writer<FramedWriter<W>>,
}

impl<W: Write> UploadWriter<W> {
    pub fn new(frames: FramedWriter<W>, dialect: Dialect, count: u64) -> io::Result<Self> {
        let mut writer = Writer::new(frames, dialect);
        writer.u64(count)?;
        Ok(UploadWriter { writer })
    }

    /// Begins an entry; write its NAR to the result, `info.nar_size` bytes.
    pub fn entry(&mut self, info: &PathInfo) -> io::Result<&mut impl Write> {
        self.writer.put(info)?;
        Ok(&mut self.writer)
    }

    /// Ends the stream.
    pub fn finish(self) -> io::Result<W> {
        self.writer.into_inner().finish()
    }
}
