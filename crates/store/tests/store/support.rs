//! Trees, NARs and stores to test with; all randomness comes from a printed seed.

use shoal_store::{Effort, Encoder, IngestError, Ingested, NarCutter, Options, Store};
use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::nix::hash::sha256;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use tempfile::TempDir;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// A seed from `SHOAL_SEED`, or the clock; printed, so that a failure can be had again.
    pub fn seeded(what: &str) -> Rng {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let seed = match std::env::var("SHOAL_SEED") {
            Ok(seed) => seed.parse().expect("SHOAL_SEED is a number"),
            Err(_) => clock() as u64,
        };
        println!("{what}: SHOAL_SEED={seed}");
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Bytes without any pattern.
    pub fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.next_multiple_of(8)];
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Bytes that compress about as well as program text.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        let words: Vec<Vec<u8>> = (0..500).map(|_| self.word()).collect();
        let mut bytes = Vec::with_capacity(len + 16);
        while bytes.len() < len {
            let word = &words[self.below(500) as usize];
            bytes.extend_from_slice(word);
            bytes.push(if self.below(10) == 0 { b'\n' } else { b' ' });
        }
        bytes.truncate(len);
        bytes
    }

    fn word(&mut self) -> Vec<u8> {
        let len = 1 + self.below(11) as usize;
        (0..len).map(|_| b'a' + self.below(26) as u8).collect()
    }
}

/// A file system object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

pub fn file(contents: impl Into<Vec<u8>>) -> Tree {
    Tree::File { executable: false, contents: contents.into() }
}

pub fn directory<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
    Tree::Directory(entries.into_iter().map(|(name, tree)| (name.as_bytes().to_vec(), tree)).collect())
}

impl Tree {
    /// A tree of up to `budget` bytes or so.
    pub fn random(rng: &mut Rng, budget: usize) -> Tree {
        Tree::random_at(rng, budget, 0)
    }

    fn random_at(rng: &mut Rng, budget: usize, depth: u32) -> Tree {
        match rng.below(8) {
            0 => Tree::Symlink(rng.word()),
            1 | 2 => Tree::random_file(rng, budget),
            _ if depth == 4 => Tree::random_file(rng, budget),
            _ => {
                let count = rng.below(7) as usize;
                let entries = (0..count).map(|_| (rng.word(), Tree::random_at(rng, budget / (count + 1), depth + 1)));
                Tree::Directory(entries.collect())
            }
        }
    }

    fn random_file(rng: &mut Rng, budget: usize) -> Tree {
        // Half of the files are small, whatever the budget.
        let len = if rng.below(2) == 0 { rng.below(200) } else { rng.below(budget as u64 + 1) } as usize;
        let contents = if rng.below(3) == 0 { rng.noise(len) } else { rng.text(len) };
        Tree::File { executable: rng.below(4) == 0, contents }
    }

    pub fn nar(&self) -> Vec<u8> {
        let mut writer = NarWriter::new(Vec::new());
        self.write(b"", &mut writer);
        writer.finish().expect("a whole tree")
    }

    fn write(&self, name: &[u8], writer: &mut NarWriter<Vec<u8>>) {
        match self {
            Tree::File { executable, contents } => {
                writer.regular(name, *executable, contents.len() as u64).expect("file");
                writer.contents(contents).expect("contents");
            }
            Tree::Symlink(target) => writer.symlink(name, target).expect("symlink"),
            Tree::Directory(entries) => {
                writer.directory(name).expect("directory");
                for (name, entry) in entries {
                    entry.write(name, writer);
                }
                writer.end_directory().expect("directory");
            }
        }
    }
}

/// A store in a directory of its own.
pub struct TestStore {
    pub dir: TempDir,
    pub store: Store,
}

pub fn small_options() -> Options {
    Options { segment_bytes: 4 << 20, reserve_bytes: 1 << 20, ..Options::default() }
}

impl TestStore {
    pub fn new() -> TestStore {
        TestStore::with(small_options())
    }

    pub fn with(options: Options) -> TestStore {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(dir.path(), options).expect("open a new store");
        TestStore { dir, store }
    }

    /// Closes the store and opens it again.
    pub fn reopened(self) -> TestStore {
        let TestStore { dir, store } = self;
        drop(store);
        let store = Store::open(dir.path(), small_options()).expect("open the store again");
        TestStore { dir, store }
    }
}

/// A store path whose hash part comes from `seed`.
pub fn path(seed: &str) -> StorePath {
    named(seed, "test")
}

pub fn named(seed: &str, name: &str) -> StorePath {
    let hash = sha256(seed.as_bytes());
    StorePath::from_parts(&hash[..20].try_into().expect("20 bytes"), name).expect("a store path")
}

pub fn ingest(store: &Store, nar: &[u8]) -> Ingested {
    let mut ingest = store.ingest();
    ingest.write_all(nar).expect("ingest");
    ingest.finish().expect("finish")
}

pub fn info(path: &StorePath, ingested: &Ingested) -> PathInfo {
    PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size)
}

/// Makes `path` valid with these contents and references.
pub fn add(store: &Store, path: &StorePath, nar: &[u8], references: &[&StorePath]) {
    let ingested = ingest(store, nar);
    let mut info = info(path, &ingested);
    info.references = references.iter().map(|&path| path.clone()).collect();
    store.commit(vec![(info, ingested)]).expect("commit");
}

/// The chunks of a NAR with their frames, as a client makes them; fed in pieces of `len` bytes.
pub fn cut_nar(nar: &[u8], len: usize, effort: Effort) -> Vec<(ChunkRef, Vec<u8>)> {
    let mut encoder = Encoder::new(1).unwrap();
    let mut chunks = Vec::new();
    let mut cutter = NarCutter::default();
    let mut emit = |bytes: &[u8]| {
        let mut frame = Vec::new();
        encoder.encode(bytes, effort, &mut frame).unwrap();
        chunks.push((ChunkRef { hash: *blake3::hash(bytes).as_bytes(), len: bytes.len() as u32 }, frame));
        Ok::<_, IngestError>(())
    };
    nar.chunks(len).for_each(|piece| cutter.feed(piece, &mut emit).unwrap());
    assert_eq!(cutter.finish(&mut emit).unwrap(), nar.len() as u64);
    chunks
}

/// Makes `path` valid with chunks that were all stored in haste, which an ingest does only on a machine that is too slow for it.
pub fn add_in_haste(store: &Store, path: &StorePath, nar: &[u8]) {
    let chunks = cut_nar(nar, nar.len(), Effort::Haste);
    let mut hold = store.hold_chunks();
    hold.lacks(&chunks.iter().map(|(chunk, _)| chunk.hash).collect::<Vec<_>>()).expect("hold");
    let mut arrivals = store.arrivals().expect("arrivals");
    for (chunk, frame) in &chunks {
        arrivals.slot(*chunk, true, frame.len()).expect("a slot").copy_from_slice(frame);
    }
    hold.keep(arrivals.verify().expect("verify")).expect("keep");
    add(store, path, nar, &[]);
}

/// The whole NAR of a valid path.
pub fn export(store: &Store, path: &StorePath) -> Vec<u8> {
    let mut nar = Vec::new();
    store.export(path).expect("export").expect("a valid path").read_to_end(&mut nar).expect("read");
    nar
}
