//! Decoding from a byte stream.

use super::{COUNT_MAX, Codec, Dialect, FramedReader, MESSAGE_LEN_MAX, ProtoError, TOKEN_LEN_MAX};
use std::io::{self, BufRead, Read};

/// First allocation for a string; it doubles as bytes arrive.
const FIRST_ALLOCATION: usize = 64 << 10;

/// Reads values from `R`, which should be buffered: integers are read 8 bytes at a time.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    dialect: Dialect,
    /// Bytes that the current message may still take.
    budget: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R, dialect: Dialect) -> Self {
        Reader { inner, dialect, budget: MESSAGE_LEN_MAX }
    }

    pub fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    pub fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// The stream itself, for what is not decoded.
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The framed stream that begins here. Read it to its end before anything else.
    pub fn frames(&mut self) -> FramedReader<&mut R> {
        FramedReader::new(&mut self.inner)
    }

    /// Begins a message: its values together may take [`MESSAGE_LEN_MAX`] bytes.
    pub fn begin(&mut self) {
        self.budget = MESSAGE_LEN_MAX;
    }

    /// Reads a value of type `T`.
    pub fn get<T: Codec>(&mut self) -> Result<T, ProtoError> {
        T::read(self)
    }

    pub fn u64(&mut self) -> Result<u64, ProtoError> {
        self.spend(8)?;
        let mut bytes = [0; 8];
        self.inner.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Begins a message with an integer; `None` if the peer closed the stream before it.
    pub fn u64_or_end(&mut self) -> Result<Option<u64>, ProtoError> {
        self.begin();
        let mut bytes = [0; 8];
        let mut at = 0;
        while at < bytes.len() {
            match self.inner.read(&mut bytes[at..]) {
                Ok(0) if at == 0 => return Ok(None),
                Ok(0) => return Err(ProtoError::Truncated),
                Ok(n) => at += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.spend(8)?;
        Ok(Some(u64::from_le_bytes(bytes)))
    }

    /// A string of at most `limit` bytes.
    pub fn bytes(&mut self, what: &'static str, limit: u64) -> Result<Vec<u8>, ProtoError> {
        let len = self.u64()?;
        if len > limit {
            return Err(ProtoError::TooLong { what, len, limit });
        }
        let padding = (len.wrapping_neg() % 8) as usize;
        self.spend(len + padding as u64)?;
        let mut bytes = Vec::with_capacity((len as usize).min(FIRST_ALLOCATION));
        self.inner.by_ref().take(len).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != len {
            return Err(ProtoError::Truncated);
        }
        let mut zeros = [0; 8];
        self.inner.read_exact(&mut zeros[..padding])?;
        match zeros {
            [0, 0, 0, 0, 0, 0, 0, 0] => Ok(bytes),
            _ => Err(ProtoError::Padding),
        }
    }

    /// A UTF-8 string of at most `limit` bytes.
    pub fn string(&mut self, what: &'static str, limit: u64) -> Result<String, ProtoError> {
        String::from_utf8(self.bytes(what, limit)?).map_err(|_| ProtoError::NotUtf8 { what })
    }

    /// A short string that `parse` understands.
    pub fn token<T, E: ToString>(
        &mut self,
        what: &'static str,
        parse: impl FnOnce(&str, &Dialect) -> Result<T, E>,
    ) -> Result<T, ProtoError> {
        let text = self.string(what, TOKEN_LEN_MAX)?;
        parse(&text, &self.dialect).map_err(|error| ProtoError::invalid(what, error.to_string()))
    }

    /// The number of elements that follow.
    pub fn count(&mut self) -> Result<u64, ProtoError> {
        let len = self.u64()?;
        match len <= COUNT_MAX {
            true => Ok(len),
            false => Err(ProtoError::TooLong { what: "list", len, limit: COUNT_MAX }),
        }
    }

    fn spend(&mut self, bytes: u64) -> Result<(), ProtoError> {
        match self.budget.checked_sub(bytes) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(ProtoError::TooLong {
                what: "message",
                len: MESSAGE_LEN_MAX - self.budget + bytes,
                limit: MESSAGE_LEN_MAX,
            }),
        }
    }
}

/// Bytes that are not decoded, such as a NAR.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.inner.read(out)
    }
}

impl<R: BufRead> BufRead for Reader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.inner.consume(n);
    }
}
