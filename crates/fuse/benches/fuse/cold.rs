//! A closure of which little is read: how much of it is fetched.

use crate::row;
use shoal_fuse::{Deliver, Mount, Options, Source, SourceError};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use shoal_wire::nix::nar::NarSink;
use shoal_wire::nix::nar::index::IndexBuilder;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::sync::{Arc, Mutex};

const PATHS: usize = 64;
const CLOSURE_BYTES: u64 = 2 << 30;
const CHUNK_LEN: u64 = 65_536;
/// Of a hundred bytes.
const READ_SHARE: u64 = 5;

/// Chunks that are made when they are asked for: only their names are kept.
#[derive(Default)]
struct Made {
    paths: BTreeMap<String, Manifest>,
    seeds: HashMap<[u8; 32], (u64, usize)>,
    /// What was asked for, to be read or to be near.
    asked: Mutex<HashSet<[u8; 32]>>,
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

impl Made {
    /// A path of directories of files, from 1 KiB to 4 MiB, as many small as big ones.
    fn add(&mut self, number: usize, random: &mut Random) -> Vec<(String, u64)> {
        let name = format!("{number:032}-path");
        let (mut index, mut at, mut files) = (IndexBuilder::new(), 96, Vec::new());
        index.directory(b"", at).expect("a tree");
        for directory in 0.. {
            if at > CLOSURE_BYTES / PATHS as u64 {
                break;
            }
            let of = format!("d{directory:04}");
            index.directory(of.as_bytes(), at).expect("a tree");
            for file in 0..20 {
                let size_max = 1 << (10 + random.below(13));
                let size = 1024 + random.below(size_max);
                at += 160;
                let file = format!("f{file:02}");
                index.regular(file.as_bytes(), false, size, at).expect("a tree");
                files.push((format!("{name}/{of}/{file}"), size));
                at = (at + size).next_multiple_of(8);
            }
            index.end_directory(at).expect("a tree");
        }
        index.end_directory(at).expect("a tree");
        let mut chunks = Vec::new();
        for from in (0..at).step_by(CHUNK_LEN as usize) {
            let (seed, len) = (number as u64 * CLOSURE_BYTES + from, (at - from).min(CHUNK_LEN) as usize);
            let chunk = ChunkRef::of(&bytes(seed, len));
            self.seeds.insert(chunk.hash, (seed, len));
            chunks.push(chunk);
        }
        self.paths.insert(name, Manifest { chunks, index: index.finish(at).expect("a tree") });
        files
    }
}

impl Source for Made {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        Ok(self.paths.keys().cloned().collect())
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        Ok(self.paths.get(name).cloned())
    }

    fn fetch(&self, _: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        self.prefetch("", chunks);
        for (place, chunk) in chunks.iter().enumerate() {
            deliver(
                place,
                self.seeds.get(&chunk.hash).map(|(seed, len)| bytes(*seed, *len)).ok_or(SourceError::Missing),
            );
        }
    }

    fn prefetch(&self, _: &str, chunks: &[ChunkRef]) {
        self.asked.lock().expect("nobody panics").extend(chunks.iter().map(|chunk| chunk.hash));
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

pub fn run() {
    let (mut made, mut random) = (Made::default(), Random(6));
    let mut files: Vec<(String, u64)> = (0..PATHS).flat_map(|number| made.add(number, &mut random)).collect();
    let total: u64 = made.paths.values().map(|manifest| manifest.index.nar_size()).sum();
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let made = Arc::new(made);
    let mount = Mount::start(place.path(), made.clone(), &Options::default()).expect("a mount");
    let mut read = 0;
    while read < total * READ_SHARE / 100 {
        let (file, size) = files.swap_remove(random.below(files.len() as u64) as usize);
        assert_eq!(fs::read(place.path().join(file)).expect("a file").len() as u64, size);
        read += size;
    }
    mount.stop().expect("unmounted");
    let asked = made.asked.lock().expect("nobody panics");
    let fetched: u64 = asked.iter().filter_map(|hash| made.seeds.get(hash)).map(|(_, len)| *len as u64).sum();
    let percent = |bytes: u64| bytes as f64 * 100.0 / total as f64;
    let what = format!(
        "cold: fetched of {:.1} GiB when {:.1} % of it is read",
        total as f64 / (1u64 << 30) as f64,
        percent(read)
    );
    row(&what, &format!("{:.1} %", percent(fetched)), "8 %");
}
