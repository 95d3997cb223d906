//! The NAR parser: cuts change nothing, what it accepts is what the writer writes, and the index agrees.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_wire::mesh::manifest::{CHUNK_LEN_MAX, ChunkRef, Manifest};
use shoal_wire::nix::nar::index::{IndexBuilder, Node};
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::nar::{NarError, NarLimits, NarSink};

/// Events as text, contents joined.
#[derive(Default, PartialEq, Debug)]
struct Record(Vec<u8>);

impl Record {
    fn event(&mut self, kind: &[u8], name: &[u8], offset: u64) -> Result<(), NarError> {
        self.0.extend_from_slice(kind);
        self.0.extend_from_slice(name);
        self.0.extend_from_slice(&offset.to_le_bytes());
        Ok(())
    }
}

impl NarSink for Record {
    type Error = NarError;

    fn directory(&mut self, name: &[u8], offset: u64) -> Result<(), NarError> {
        self.event(b"directory", name, offset)
    }

    fn end_directory(&mut self, offset: u64) -> Result<(), NarError> {
        self.event(b"end", b"", offset)
    }

    fn regular(&mut self, name: &[u8], executable: bool, size: u64, offset: u64) -> Result<(), NarError> {
        self.event(if executable { b"program" } else { b"file" }, name, offset)?;
        self.event(b"", b"", size)
    }

    fn contents(&mut self, bytes: &[u8], _offset: u64) -> Result<(), NarError> {
        assert!(!bytes.is_empty());
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn end_regular(&mut self, offset: u64) -> Result<(), NarError> {
        self.event(b"end of file", b"", offset)
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], offset: u64) -> Result<(), NarError> {
        self.event(b"symlink", name, offset)?;
        self.event(b"", target, 0)
    }
}

/// How the parse ended: bytes used and whether the NAR was complete, or why not.
fn parse<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Result<(u64, bool), NarError>, Record) {
    let mut parser = NarParser::new(NarLimits::STRICT);
    let mut record = Record::default();
    for piece in pieces {
        if let Err(error) = parser.feed(piece, &mut record) {
            return (Err(error), record);
        }
    }
    (Ok((parser.offset(), parser.is_done())), record)
}

fuzz_target!(|input: &[u8]| {
    let Some((&step, bytes)) = input.split_first() else { return };
    let whole = parse([bytes].into_iter());
    let cut = parse(bytes.chunks(usize::from(step % 64) + 1));
    assert_eq!(whole.0.is_ok(), cut.0.is_ok());
    if whole.0.is_ok() {
        assert_eq!(whole, cut);
    }
    let Ok((used, true)) = whole.0 else { return };
    let nar = &bytes[..used as usize];

    let mut writer = NarWriter::new(Vec::new());
    NarParser::new(NarLimits::STRICT).feed(nar, &mut writer).expect("parsed before");
    assert_eq!(writer.finish().expect("a whole NAR"), nar);

    let mut builder = IndexBuilder::new();
    NarParser::new(NarLimits::STRICT).feed(nar, &mut builder).expect("parsed before");
    let index = builder.finish(used).expect("a whole NAR");
    for (_, entry) in index.walk() {
        if let Node::Regular { size, offset, .. } = entry.node {
            assert!(offset + size < used);
        }
    }
    let _ = index.listing();
    let chunks = nar.chunks(CHUNK_LEN_MAX as usize).map(|chunk| ChunkRef { hash: [0; 32], len: chunk.len() as u32 });
    let manifest = Manifest { chunks: chunks.collect(), index };
    assert_eq!(Manifest::decode(&manifest.encode()).expect("what was written is read"), manifest);
});
