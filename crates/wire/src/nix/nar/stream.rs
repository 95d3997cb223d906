//! A NAR inside a longer stream: it has no length of its own, so it must be parsed to be passed on.

use super::parse::NarParser;
use super::{NarLimits, NarSink};
use std::io::{self, BufRead, Read};

/// Reads exactly one NAR from a reader, checks it, and shows it to a sink on the way.
///
/// `read` gives the NAR's bytes and then ends, even where `R` goes on. A malformed or
/// truncated NAR is an error of kind `InvalidData` or `UnexpectedEof`; the sink sees bytes when
/// they are consumed, not when they are buffered.
#[derive(Debug)]
pub struct NarReader<R, S> {
    reader: R,
    sink: S,
    parser: NarParser,
}

impl<R: BufRead, S: NarSink<Error: Into<io::Error>>> NarReader<R, S> {
    pub fn new(reader: R, limits: NarLimits, sink: S) -> Self {
        let parser = NarParser::new(limits);
        NarReader { reader, sink, parser }
    }

    /// Bytes of the NAR that were consumed.
    pub fn offset(&self) -> u64 {
        self.parser.offset()
    }

    /// Reads what is left of the NAR, and gives back the sink.
    pub fn finish(mut self) -> io::Result<S> {
        while !self.parser.is_done() {
            self.step(usize::MAX, |_| ())?;
        }
        Ok(self.sink)
    }

    /// Parses at most `max` bytes of one buffer and hands them to `copy`.
    fn step(&mut self, max: usize, copy: impl FnOnce(&[u8])) -> io::Result<usize> {
        if self.parser.is_done() || max == 0 {
            return Ok(0);
        }
        while let Err(error) = self.reader.fill_buf() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let buffer = self.reader.fill_buf()?;
        let buffer = &buffer[..buffer.len().min(max)];
        if buffer.is_empty() {
            self.parser.finish()?;
        }
        let used = self.parser.feed(buffer, &mut self.sink).map_err(Into::into)?;
        copy(&buffer[..used]);
        self.reader.consume(used);
        Ok(used)
    }
}

impl<R: BufRead, S: NarSink<Error: Into<io::Error>>> Read for NarReader<R, S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.step(out.len(), |bytes| out[..bytes.len()].copy_from_slice(bytes))
    }
}
