//! Streams of unknown length inside a connection: frames of a u64 length and that many bytes, unpadded, up to
//! an empty frame.
//!
//! Whoever reads one must read its end, whatever happened before: the peer sends it in any case, and the
//! next request follows it.

use super::{FRAME_LEN_MAX, ProtoError};
use std::io::{self, BufRead, Read, Write};

/// Bytes that [`FramedReader::drain`] reads at once.
const DRAIN_LEN: usize = 16 << 10;
/// Bytes that a [`FramedWriter`] gathers for one frame.
const FRAME_LEN: usize = 64 << 10;

/// The contents of the frames, up to the empty one; then end of file. A connection that closes before is an
/// error of kind `UnexpectedEof`.
#[derive(Debug)]
pub struct FramedReader<R> {
    inner: R,
    /// Bytes of the current frame still to come.
    left: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The empty frame has been read.
    Ended,
    /// A length was out of range, so nobody knows where the next one is.
    Lost(u64),
}

impl<R: Read> FramedReader<R> {
    pub fn new(inner: R) -> Self {
        FramedReader { inner, left: 0, state: State::Open }
    }

    /// Whether the empty frame has been read.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Reads up to and including the empty frame, and returns how many bytes were thrown away.
    pub fn drain(&mut self) -> Result<u64, ProtoError> {
        let mut buffer = [0; DRAIN_LEN];
        let mut total = 0;
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return Ok(total),
                Ok(n) => total += n as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Goes to the next frame if the current one is used up; false at the end.
    fn in_frame(&mut self) -> io::Result<bool> {
        if self.left == 0 && self.state == State::Open {
            let mut bytes = [0; 8];
            self.inner.read_exact(&mut bytes)?;
            match u64::from_le_bytes(bytes) {
                0 => self.state = State::Ended,
                len if len > FRAME_LEN_MAX => self.state = State::Lost(len),
                len => self.left = len,
            }
        }
        match self.state {
            State::Open => Ok(true),
            State::Ended => Ok(false),
            State::Lost(len) => Err(ProtoError::TooLong { what: "frame", len, limit: FRAME_LEN_MAX }.into()),
        }
    }

    /// How many of `n` bytes lie in this frame.
    fn within_frame(&self, n: usize) -> usize {
        usize::try_from(self.left).map_or(n, |left| left.min(n))
    }
}

impl<R: Read> Read for FramedReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || !self.in_frame()? {
            return Ok(0);
        }
        let wanted = self.within_frame(out.len());
        let n = self.inner.read(&mut out[..wanted])?;
        if n == 0 {
            return Err(ProtoError::Truncated.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

impl<R: BufRead> BufRead for FramedReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if !self.in_frame()? {
            return Ok(&[]);
        }
        let left = self.left;
        let buffer = self.inner.fill_buf()?;
        if buffer.is_empty() {
            return Err(ProtoError::Truncated.into());
        }
        let n = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        Ok(&buffer[..n])
    }

    fn consume(&mut self, n: usize) {
        let n = self.within_frame(n);
        self.left -= n as u64;
        self.inner.consume(n);
    }
}

/// Writes frames. Without [`FramedWriter::finish`] the stream has no end and the connection is of no use.
#[derive(Debug)]
pub struct FramedWriter<W: Write> {
    inner: W,
    buffer: Vec<u8>,
}

impl<W: Write> FramedWriter<W> {
    pub fn new(inner: W) -> Self {
        FramedWriter { inner, buffer: Vec::new() }
    }

    /// Writes what is left and the empty frame, and gives back the writer, unflushed.
    pub fn finish(mut self) -> io::Result<W> {
        self.frame()?;
        self.inner.write_all(&0u64.to_le_bytes())?;
        Ok(self.inner)
    }

    fn frame(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.inner.write_all(&(self.buffer.len() as u64).to_le_bytes())?;
        self.inner.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl<W: Write> Write for FramedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == FRAME_LEN {
            self.frame()?;
        }
        let n = bytes.len().min(FRAME_LEN - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    /// Ends the current frame, so that the peer can see what was written.
    fn flush(&mut self) -> io::Result<()> {
        self.frame()?;
        self.inner.flush()
    }
}
