//! Recorded connections between real clients and servers: both directions decode to the last byte and encode
//! to the same bytes.

mod serve;
mod worker;

use crate::shared;
use shoal_wire::nix::nar::NarLimits;
use shoal_wire::nix::nar::stream::NarReader;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::proto::{Dialect, Reader, Writer};
use shoal_wire::nix::store_path::StoreDir;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One direction of a connection, decoded piece by piece; every piece is encoded again and compared.
pub struct Direction<'a> {
    pub reader: Reader<&'a [u8]>,
    all: &'a [u8],
}

impl<'a> Direction<'a> {
    fn new(all: &'a [u8]) -> Self {
        Direction { reader: Reader::new(all, Dialect::new(StoreDir::default(), 0)), all }
    }

    pub fn offset(&mut self) -> usize {
        self.all.len() - self.reader.inner_mut().len()
    }

    /// Asserts that what was read since `start` is what `write` writes.
    pub fn same_since(
        &mut self,
        start: usize,
        what: &dyn std::fmt::Debug,
        write: impl FnOnce(&mut Writer<Vec<u8>>) -> std::io::Result<()>,
    ) {
        let mut writer = Writer::new(Vec::new(), self.reader.dialect().clone());
        write(&mut writer).expect("the dialect can express what was read in it");
        let read = &self.all[start..self.offset()];
        assert!(writer.into_inner() == read, "at {start}, {what:?} was {:?}", String::from_utf8_lossy(read));
    }

    /// Reads a NAR and writes it again from its events.
    pub fn nar(&mut self) {
        let start = self.offset();
        let limits = NarLimits::STRICT;
        let nar = NarReader::new(self.reader.inner_mut(), limits, NarWriter::new(Vec::new()));
        let again = nar.finish().expect("a NAR").finish().expect("a whole NAR");
        assert!(again == self.all[start..self.offset()]);
    }
}

/// The captured connections of a protocol, by their names: client to server, server to client.
fn connections(test: &str, magic: u64) -> BTreeMap<String, (Vec<u8>, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let Some(captures) = shared::find(test, "conformance/captures") else {
        return found;
    };
    let list = |dir: PathBuf| std::fs::read_dir(dir).expect("folder").map(|entry| entry.expect("entry").path());
    for file in list(captures).flat_map(list) {
        if file.extension().is_some_and(|extension| extension == "c2s") {
            let c2s = std::fs::read(&file).expect("client to server");
            let s2c = std::fs::read(file.with_extension("s2c")).expect("server to client");
            let name = file.iter().rev().take(2).map(|part| part.to_string_lossy()).collect::<Vec<_>>();
            if c2s.starts_with(&magic.to_le_bytes()) {
                found.insert(format!("{}/{}", name[1], name[0]), (c2s, s2c));
            }
        }
    }
    found
}
