//! Small store paths in memory: manifests, and the chunks that they name.

use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use shoal_wire::nix::nar::NarLimits;
use shoal_wire::nix::nar::index::IndexBuilder;
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::nar::write::NarWriter;
use std::collections::{BTreeMap, HashMap};

/// Bytes of each chunk but the last: the cuts of a real chunker lie elsewhere, which makes no difference to who reads.
const CHUNK_LEN: usize = 65_536;

pub type Chunks = HashMap<[u8; 32], Vec<u8>>;

#[derive(Clone)]
pub enum Entry {
    File { contents: Vec<u8>, executable: bool },
    Link(String),
}

pub fn file(contents: &[u8]) -> Entry {
    Entry::File { contents: contents.to_vec(), executable: false }
}

pub fn executable(contents: &[u8]) -> Entry {
    Entry::File { contents: contents.to_vec(), executable: true }
}

pub fn link(target: &str) -> Entry {
    Entry::Link(target.into())
}

/// Bytes that do not repeat.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// A directory with these files, named by their paths in it; without any name, that file alone.
pub fn path<N: AsRef<str>>(entries: &[(N, Entry)]) -> (Manifest, Chunks) {
    let mut root = Directory::default();
    let mut writer = NarWriter::new(Vec::new());
    match entries {
        [(name, entry)] if name.as_ref().is_empty() => write(&mut writer, "", entry),
        entries => {
            for (name, entry) in entries {
                root.add(name.as_ref(), entry.clone());
            }
            root.write(&mut writer, "");
        }
    }
    of_nar(&writer.finish().expect("a whole NAR"))
}

fn of_nar(nar: &[u8]) -> (Manifest, Chunks) {
    let (mut parser, mut index) = (NarParser::new(NarLimits::ANY_RELEASE), IndexBuilder::new());
    parser.feed(nar, &mut index).expect("a NAR");
    let index = index.finish(nar.len() as u64).expect("a whole NAR");
    let chunks: Vec<(ChunkRef, Vec<u8>)> =
        nar.chunks(CHUNK_LEN).map(|chunk| (ChunkRef::of(chunk), chunk.to_vec())).collect();
    let manifest = Manifest { chunks: chunks.iter().map(|(chunk, _)| *chunk).collect(), index };
    (manifest, chunks.into_iter().map(|(chunk, bytes)| (chunk.hash, bytes)).collect())
}

#[derive(Default)]
struct Directory {
    entries: BTreeMap<String, Entry>,
    directories: BTreeMap<String, Directory>,
}

impl Directory {
    fn add(&mut self, path: &str, entry: Entry) {
        match path.split_once('/') {
            Some((directory, rest)) => self.directories.entry(directory.into()).or_default().add(rest, entry),
            None => drop(self.entries.insert(path.into(), entry)),
        }
    }

    fn write(&self, writer: &mut NarWriter<Vec<u8>>, name: &str) {
        writer.directory(name.as_bytes()).expect("in order");
        let names: std::collections::BTreeSet<&String> = self.entries.keys().chain(self.directories.keys()).collect();
        for name in names {
            match (self.entries.get(name), self.directories.get(name)) {
                (Some(entry), _) => write(writer, name, entry),
                (None, Some(directory)) => directory.write(writer, name),
                (None, None) => {}
            }
        }
        writer.end_directory().expect("in order");
    }
}

fn write(writer: &mut NarWriter<Vec<u8>>, name: &str, entry: &Entry) {
    match entry {
        Entry::File { contents, executable } => {
            writer.regular(name.as_bytes(), *executable, contents.len() as u64).expect("in order");
            writer.contents(contents).expect("in order");
        }
        Entry::Link(target) => writer.symlink(name.as_bytes(), target.as_bytes()).expect("in order"),
    }
}
