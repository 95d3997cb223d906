//! Encoding to a byte stream.

use super::{Codec, Dialect, FramedWriter};
use std::io::{self, Write};

/// Writes values to `W`, which should be buffered. Nothing is flushed but by [`Writer::flush`].
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    dialect: Dialect,
}

impl<W: Write> Writer<W> {
    pub fn new(inner: W, dialect: Dialect) -> Self {
        Writer { inner, dialect }
    }

    pub fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    pub fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// The stream itself, for what is not encoded.
    pub fn inner_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    pub fn into_inner(self) -> W {
        self.inner
    }

    /// A framed stream that begins here; [`FramedWriter::finish`] ends it.
    pub fn frames(&mut self) -> FramedWriter<&mut W> {
        FramedWriter::new(&mut self.inner)
    }

    /// Writes `value`.
    pub fn put<T: Codec>(&mut self, value: &T) -> io::Result<()> {
        value.write(self)
    }

    pub fn u64(&mut self, value: u64) -> io::Result<()> {
        self.inner.write_all(&value.to_le_bytes())
    }

    pub fn bool(&mut self, value: bool) -> io::Result<()> {
        self.u64(u64::from(value))
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.u64(bytes.len() as u64)?;
        self.inner.write_all(bytes)?;
        let padding = (bytes.len().wrapping_neg()) % 8;
        self.inner.write_all(&[0; 8][..padding])
    }

    pub fn string(&mut self, text: &str) -> io::Result<()> {
        self.bytes(text.as_bytes())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Bytes that are not encoded, such as a NAR.
impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
