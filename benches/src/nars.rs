//! NARs made up for the store: one file of bytes that compress or that do not.

use std::io::{self, Write};

use anyhow::{Result, anyhow};
use shoal_store::{Ingest, Ingested, Store};
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;

/// Handed to an ingest at once; about what a session reads from its connection.
const BLOCK: usize = 64 << 10;

/// What a NAR's file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Like source code.
    Text,
    /// Like what is compressed already.
    Noise,
}

impl Kind {
    pub fn bytes(self, len: usize) -> Vec<u8> {
        match self {
            Kind::Text => crate::limits::words(len),
            Kind::Noise => crate::limits::noise(len),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Noise => "noise",
        }
    }
}

/// A NAR of one file.
pub fn of_file(contents: &[u8]) -> Result<Vec<u8>> {
    let mut nar = NarWriter::new(Vec::with_capacity(contents.len() + 256));
    nar.regular(b"", false, contents.len() as u64)?;
    nar.contents(contents)?;
    Ok(nar.finish()?)
}

/// A store path that is number `number` of this run.
pub fn path(number: usize) -> Result<StorePath> {
    StorePath::from_base_name(&format!("{number:032}-made-up")).map_err(|error| anyhow!("{error}"))
}

pub fn ingest(store: &Store, nar: &[u8]) -> Result<Ingested> {
    let mut ingest = store.ingest();
    for block in nar.chunks(BLOCK) {
        ingest.feed(block)?;
    }
    Ok(ingest.finish()?)
}

/// Makes it a valid path, on the disk.
pub fn commit(store: &Store, batch: Vec<(StorePath, Ingested)>) -> Result<()> {
    let info = |(path, nar): (StorePath, Ingested)| (PathInfo::new(path, nar.nar_hash, nar.nar_size), nar);
    Ok(store.commit(batch.into_iter().map(info).collect())?)
}

/// Feeds a NAR's bytes to an ingest as they are written.
pub struct Feed<'a>(pub &'a mut Ingest);

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.feed(bytes).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
