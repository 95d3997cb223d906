//! Writes a NAR, and refuses to write anything else.

use super::{
    CLOSE, EXECUTABLE_CONTENTS, NAME, NODE, NarError, NarLimits, NarSink, START, TARGET, check_name, check_target,
};
use std::io::{self, Write};

/// Writes one NAR to `W`. Entries are given in ascending byte order of their names, the root with
/// an empty name. Calls out of order give an error that holds [`NarError::Order`].
#[derive(Debug)]
pub struct NarWriter<W: Write> {
    writer: W,
    limits: NarLimits,
    offset: u64,
    /// The last name written in each open directory.
    open: Vec<Vec<u8>>,
    /// Bytes of the open regular file that are still to come, and its padding.
    file: Option<(u64, usize)>,
    begun: bool,
}

impl<W: Write> NarWriter<W> {
    /// Writes whatever some Nix release can read.
    pub fn new(writer: W) -> Self {
        NarWriter::with_limits(writer, NarLimits::ANY_RELEASE)
    }

    pub fn with_limits(writer: W, limits: NarLimits) -> Self {
        NarWriter { writer, limits, offset: 0, open: Vec::new(), file: None, begun: false }
    }

    /// Bytes written so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Begins a directory; ended by [`NarWriter::end_directory`].
    pub fn directory(&mut self, name: &[u8]) -> io::Result<()> {
        self.node(name)?;
        self.text(b"directory")?;
        self.open.push(Vec::new());
        Ok(())
    }

    pub fn end_directory(&mut self) -> io::Result<()> {
        if self.file.is_some() {
            return Err(order("a directory ends inside a file"));
        }
        if self.open.pop().is_none() {
            return Err(order("a directory ends that was not begun"));
        }
        self.end_node()
    }

    /// Begins a regular file of exactly `size` bytes, which follow by [`NarWriter::contents`].
    pub fn regular(&mut self, name: &[u8], executable: bool, size: u64) -> io::Result<()> {
        self.node(name)?;
        self.text(b"regular")?;
        if executable {
            self.text(b"executable")?;
            self.raw(&EXECUTABLE_CONTENTS)?;
        } else {
            self.text(b"contents")?;
        }
        self.raw(&size.to_le_bytes())?;
        self.file = Some((size, padding_of(size)));
        self.end_file_if_complete()
    }

    /// The next bytes of the open regular file.
    pub fn contents(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let Some((left, _)) = &mut self.file else {
            return Err(order("contents outside a file"));
        };
        *left = left.checked_sub(bytes.len() as u64).ok_or_else(|| order("more contents than announced"))?;
        self.raw(bytes)?;
        self.end_file_if_complete()
    }

    pub fn symlink(&mut self, name: &[u8], target: &[u8]) -> io::Result<()> {
        check_target(target, &self.limits, self.offset)?;
        self.node(name)?;
        self.text(b"symlink")?;
        self.raw(&TARGET)?;
        self.text(target)?;
        self.end_node()
    }

    /// Gives back the writer once the root has ended; flushes nothing.
    pub fn finish(self) -> io::Result<W> {
        match self.begun && self.open.is_empty() && self.file.is_none() {
            true => Ok(self.writer),
            false => Err(order("the root has not ended")),
        }
    }

    /// Everything before the kind of a node.
    fn node(&mut self, name: &[u8]) -> io::Result<()> {
        if self.file.is_some() {
            return Err(order("a node begins inside a file"));
        }
        if self.open.len() >= self.limits.depth {
            let limit = self.limits.depth;
            return Err(NarError::Depth { limit }.into());
        }
        match self.open.last_mut() {
            Some(last) => {
                check_name(name, &self.limits)?;
                if name <= last.as_slice() {
                    return Err(NarError::Unsorted(name.to_vec()).into());
                }
                last.clear();
                last.extend_from_slice(name);
                self.text(b"entry")?;
                self.raw(&NAME)?;
                self.text(name)?;
                self.raw(&NODE)
            }
            None if self.begun => Err(order("a node follows the root")),
            None if !name.is_empty() => Err(order("the root has a name")),
            None => {
                self.begun = true;
                self.raw(&START)
            }
        }
    }

    fn end_node(&mut self) -> io::Result<()> {
        self.raw(&CLOSE)?;
        match self.open.is_empty() {
            true => Ok(()),
            false => self.raw(&CLOSE),
        }
    }

    fn end_file_if_complete(&mut self) -> io::Result<()> {
        let Some((0, padding)) = self.file else {
            return Ok(());
        };
        self.file = None;
        self.raw(&[0; 8][..padding])?;
        self.end_node()
    }

    fn text(&mut self, text: &[u8]) -> io::Result<()> {
        self.raw(&(text.len() as u64).to_le_bytes())?;
        self.raw(text)?;
        self.raw(&[0; 8][..padding_of(text.len() as u64)])
    }

    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

/// Copies a NAR event by event.
impl<W: Write> NarSink for NarWriter<W> {
    type Error = io::Error;

    fn directory(&mut self, name: &[u8], _offset: u64) -> io::Result<()> {
        self.directory(name)
    }

    fn end_directory(&mut self, _offset: u64) -> io::Result<()> {
        self.end_directory()
    }

    fn regular(&mut self, name: &[u8], executable: bool, size: u64, _offset: u64) -> io::Result<()> {
        self.regular(name, executable, size)
    }

    fn contents(&mut self, bytes: &[u8], _offset: u64) -> io::Result<()> {
        self.contents(bytes)
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], _offset: u64) -> io::Result<()> {
        self.symlink(name, target)
    }
}

fn order(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, NarError::Order(what))
}

fn padding_of(len: u64) -> usize {
    (len.wrapping_neg() % 8) as usize
}
