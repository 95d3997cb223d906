//! Real files as NARs, and stores to put them in.

use shoal_store::{Options, Store};
use shoal_wire::mesh::path_record::PathRecord;
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Contents of one NAR: a big package.
const NAR_LEN: usize = 64 << 20;

/// A number from the environment.
pub fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub struct TestStore {
    pub store: Store,
    _dir: TempDir,
}

/// A directory where stores are made.
pub fn new_dir() -> TempDir {
    let place = std::env::var_os("SHOAL_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).expect("a directory")
}

pub fn new_store() -> TestStore {
    let dir = new_dir();
    TestStore { store: Store::open(dir.path(), Options::default()).expect("a store"), _dir: dir }
}

/// A store with NARs of real files, some `mib` in all, and their records.
pub fn stocked(mib: usize) -> (TestStore, Vec<PathRecord>) {
    let root = std::env::var_os("SHOAL_BENCH_TREE").map_or_else(|| PathBuf::from("/usr"), PathBuf::from);
    let mut files = Vec::new();
    list(&root, &mut files);
    let (there, mut records, mut left) = (new_store(), Vec::new(), mib << 20);
    let mut files = files.into_iter();
    while left > 0 {
        let mut contents: Vec<Vec<u8>> = Vec::new();
        let mut len = 0;
        for file in files.by_ref() {
            let Ok(bytes) = fs::read(file) else { continue };
            len += bytes.len();
            contents.push(bytes);
            if len >= NAR_LEN.min(left) {
                break;
            }
        }
        if contents.is_empty() {
            break;
        }
        left = left.saturating_sub(len);
        records.push(add(&there.store, records.len() as u64, &directory(&contents)));
    }
    (there, records)
}

fn list(at: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(at) else { return };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

/// The NAR of a directory with these files.
pub fn directory(files: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    writer.directory(b"").expect("write");
    for (number, contents) in files.iter().enumerate() {
        writer.regular(format!("{number:06}").as_bytes(), false, contents.len() as u64).expect("write");
        writer.contents(contents).expect("write");
    }
    writer.end_directory().expect("write");
    writer.finish().expect("a NAR")
}

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Makes a path of this number valid; its record.
pub fn add(store: &Store, number: u64, nar: &[u8]) -> PathRecord {
    let mut ingest = store.ingest();
    for piece in nar.chunks(64 << 10) {
        ingest.write_all(piece).expect("ingest");
    }
    let ingested = ingest.finish().expect("a NAR");
    let hash: [u8; 32] = *blake3::hash(&number.to_le_bytes()).as_bytes();
    let path = StorePath::from_parts(&hash[..20].try_into().expect("20 bytes"), &format!("bench-{number}"));
    let info = PathInfo::new(path.expect("a path"), ingested.nar_hash, ingested.nar_size);
    store.commit(vec![(info.clone(), ingested)]).expect("commit");
    record(store, &info.path)
}

fn record(store: &Store, path: &StorePath) -> PathRecord {
    let (info, content_root) = store.path_and_root(path).expect("the index").expect("valid");
    PathRecord {
        author: [0; 32],
        path: info.path,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references,
        content_root,
        deriver: None,
        ca: None,
        signatures: info.signatures,
    }
}

/// Stored bytes of the frames of these paths, each chunk once.
pub fn stored(store: &Store, records: &[PathRecord]) -> Vec<u8> {
    let mut seen = std::collections::HashSet::new();
    let mut bytes = Vec::new();
    for record in records {
        let chunks = store.manifest(&record.path).expect("the index").expect("valid").chunks;
        let new = chunks.iter().map(|chunk| chunk.hash).filter(|hash| seen.insert(*hash)).collect::<Vec<_>>();
        for hashes in new.chunks(1024) {
            let frames = store.loose_frames(hashes.to_vec()).expect("the index");
            let read = frames.read(0, usize::MAX >> 1).expect("segments");
            read.frames.iter().flatten().for_each(|range| bytes.extend_from_slice(&read.bytes[range.clone()]));
        }
    }
    bytes
}
