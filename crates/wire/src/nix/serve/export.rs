//! The export stream (`nix-store --export`): store paths with their NARs, what they refer to first.
//!
//! Layout: for each path the word 1, the NAR, the word `NIXE`, path, references, deriver, and 0 (or 1 and an
//! obsolete signature); then the word 0. Nothing tells a NAR's length, so it is parsed.

use crate::nix::nar::stream::NarReader;
use crate::nix::nar::{NarLimits, NarSink};
use crate::nix::proto::{ProtoError, Reader, TOKEN_LEN_MAX, Writer, codec_struct};
use crate::nix::store_path::StorePath;
use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};

/// Between a NAR and what is known of it.
const ENTRY_MAGIC: u64 = 0x4558_494e;

codec_struct! {
    /// What an export says of a path.
    ExportEntry { path: StorePath, references: BTreeSet<StorePath>, deriver: Option<StorePath> }
}

/// Reads an export stream. For each path: [`ExportReader::next_nar`], read it to its end, then
/// [`ExportReader::entry`].
#[derive(Debug)]
pub struct ExportReader<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<'a, R: BufRead> ExportReader<'a, R> {
    pub fn new(reader: &'a mut Reader<R>) -> Self {
        ExportReader { reader }
    }

    /// The NAR of the next path, shown to `sink`; `None` at the end of the stream.
    pub fn next_nar<S: NarSink<Error: Into<io::Error>>>(
        &mut self,
        limits: NarLimits,
        sink: S,
    ) -> Result<Option<NarReader<&mut R, S>>, ProtoError> {
        self.reader.begin();
        match self.reader.u64()? {
            0 => Ok(None),
            1 => Ok(Some(NarReader::new(self.reader.inner_mut(), limits, sink))),
            value => Err(ProtoError::Range { what: "beginning of an exported path", value }),
        }
    }

    /// What is known of the path whose NAR was read.
    pub fn entry(&mut self) -> Result<ExportEntry, ProtoError> {
        match self.reader.u64()? {
            ENTRY_MAGIC => {}
            value => return Err(ProtoError::Range { what: "end of an exported NAR", value }),
        }
        let entry = self.reader.get()?;
        let has_signature = self.reader.get()?;
        if has_signature {
            let _obsolete = self.reader.bytes("signature", TOKEN_LEN_MAX)?;
        }
        Ok(entry)
    }
}

/// Writes an export stream. For each path: [`ExportWriter::nar`], then [`ExportWriter::entry`].
#[derive(Debug)]
pub struct ExportWriter<'a, W> {
    writer: &'a mut Writer<W>,
}

impl<'a, W: Write> ExportWriter<'a, W> {
    pub fn new(writer: &'a mut Writer<W>) -> Self {
        ExportWriter { writer }
    }

    /// Begins a path; write its NAR to the result.
    pub fn nar(&mut self) -> io::Result<&mut impl Write> {
        self.writer.u64(1)?;
        Ok(self.writer.inner_mut())
    }

    pub fn entry(&mut self, entry: &ExportEntry) -> io::Result<()> {
        self.writer.u64(ENTRY_MAGIC)?;
        self.writer.put(entry)?;
        self.writer.u64(0)
    }

    /// Ends the stream.
    pub fn finish(self) -> io::Result<()> {
        self.writer.u64(0)
    }
}
