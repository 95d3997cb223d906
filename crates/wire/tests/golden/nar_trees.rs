//! Random file trees, and what a parser says about them.

use proptest::prelude::*;
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::nar::{NarError, NarLimits, NarSink};
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
pub enum Tree {
    Directory(BTreeMap<Vec<u8>, Tree>),
    File { executable: bool, contents: Vec<u8> },
    Symlink(Vec<u8>),
}

pub fn tree() -> impl Strategy<Value = Tree> {
    let contents = prop::collection::vec(any::<u8>(), 0..40);
    let file = (any::<bool>(), contents).prop_map(|(executable, contents)| Tree::File { executable, contents });
    let target = prop::collection::vec(1..=255u8, 1..30).prop_map(Tree::Symlink);
    let leaf = prop_oneof![3 => file, 1 => target, 1 => Just(Tree::Directory(BTreeMap::new()))];
    leaf.prop_recursive(5, 40, 6, |node| prop::collection::btree_map(name(), node, 0..6).prop_map(Tree::Directory))
}

pub fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = (1..=255u8).prop_filter("a slash separates", |byte| *byte != b'/');
    prop::collection::vec(byte, 1..20).prop_filter("reserved", |name| name != b"." && name != b"..")
}

pub fn nar_of(tree: &Tree) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    write(&mut writer, b"", tree);
    writer.finish().expect("a whole tree was written")
}

fn write(writer: &mut NarWriter<Vec<u8>>, name: &[u8], tree: &Tree) {
    match tree {
        Tree::Directory(entries) => {
            writer.directory(name).expect("directory");
            for (name, entry) in entries {
                write(writer, name, entry);
            }
            writer.end_directory().expect("end of directory");
        }
        Tree::File { executable, contents } => {
            writer.regular(name, *executable, contents.len() as u64).expect("file");
            writer.contents(contents).expect("contents");
        }
        Tree::Symlink(target) => writer.symlink(name, target).expect("symlink"),
    }
}

/// What a sink saw, file contents joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Directory(Vec<u8>, u64),
    EndDirectory(u64),
    Regular(Vec<u8>, bool, u64, u64),
    Contents(Vec<u8>, u64),
    EndRegular(u64),
    Symlink(Vec<u8>, Vec<u8>, u64),
}

#[derive(Debug, Default)]
pub struct Record(pub Vec<Event>);

impl NarSink for Record {
    type Error = NarError;

    fn directory(&mut self, name: &[u8], offset: u64) -> Result<(), NarError> {
        self.0.push(Event::Directory(name.into(), offset));
        Ok(())
    }

    fn end_directory(&mut self, offset: u64) -> Result<(), NarError> {
        self.0.push(Event::EndDirectory(offset));
        Ok(())
    }

    fn regular(&mut self, name: &[u8], executable: bool, size: u64, offset: u64) -> Result<(), NarError> {
        self.0.push(Event::Regular(name.into(), executable, size, offset));
        Ok(())
    }

    fn contents(&mut self, bytes: &[u8], offset: u64) -> Result<(), NarError> {
        assert!(!bytes.is_empty(), "empty contents at {offset}");
        match self.0.last_mut() {
            Some(Event::Contents(seen, start)) => {
                assert_eq!(*start + seen.len() as u64, offset);
                seen.extend_from_slice(bytes);
            }
            _ => self.0.push(Event::Contents(bytes.into(), offset)),
        }
        Ok(())
    }

    fn end_regular(&mut self, offset: u64) -> Result<(), NarError> {
        self.0.push(Event::EndRegular(offset));
        Ok(())
    }

    fn symlink(&mut self, name: &[u8], target: &[u8], offset: u64) -> Result<(), NarError> {
        self.0.push(Event::Symlink(name.into(), target.into(), offset));
        Ok(())
    }
}

/// Feeds `bytes` in pieces that end at `cuts`.
pub fn parse_in_pieces(bytes: &[u8], cuts: &[usize], limits: NarLimits) -> Result<Vec<Event>, NarError> {
    let mut parser = NarParser::new(limits);
    let mut record = Record::default();
    let mut from = 0;
    for to in cuts.iter().copied().chain([bytes.len()]) {
        let piece = &bytes[from..to];
        assert_eq!(parser.feed(piece, &mut record)?, piece.len());
        from = to;
    }
    parser.finish()?;
    assert_eq!(parser.offset(), bytes.len() as u64);
    Ok(record.0)
}

pub fn cuts(len: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..=len, 0..40).prop_map(|mut cuts| {
        cuts.sort_unstable();
        cuts
    })
}
