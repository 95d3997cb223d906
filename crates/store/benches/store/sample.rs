//! What is stored: a real tree as one NAR, noise, and stores to put them in.

use shoal_store::{Ingested, Options, Store};
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::StorePath;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Bytes of the sample: enough to leave every cache, little enough to repeat.
const SAMPLE_MAX: usize = 384 << 20;

/// Where stores are made.
pub fn place() -> PathBuf {
    std::env::var_os("SHOAL_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

pub fn bench_store(options: Options) -> (TempDir, Store) {
    let dir = tempfile::tempdir_in(place()).expect("a directory");
    let store = Store::open(dir.path(), options).expect("a store");
    (dir, store)
}

/// The NAR of a real tree.
pub fn tree() -> Vec<u8> {
    tree_of(&std::env::var_os("SHOAL_BENCH_TREE").map_or_else(toolchain, PathBuf::from))
}

/// The NAR of a tree, or of as much of it as a sample may have.
pub fn tree_of(root: &Path) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    let mut left = SAMPLE_MAX;
    add(&mut writer, root, b"", &mut left);
    writer.finish().expect("a NAR")
}

fn toolchain() -> PathBuf {
    let output = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc");
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("lib")
}

fn add(writer: &mut NarWriter<Vec<u8>>, at: &Path, name: &[u8], left: &mut usize) {
    let metadata = fs::symlink_metadata(at).expect("metadata");
    if metadata.is_symlink() {
        let target = fs::read_link(at).expect("a link");
        writer.symlink(name, target.as_os_str().as_encoded_bytes()).expect("write");
    } else if metadata.is_dir() {
        writer.directory(name).expect("write");
        let mut entries: Vec<_> =
            fs::read_dir(at).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        entries.sort();
        for entry in entries {
            if *left > 0 {
                add(writer, &at.join(&entry), entry.as_encoded_bytes(), left);
            }
        }
        writer.end_directory().expect("write");
    } else {
        let mut contents = fs::read(at).expect("read");
        contents.truncate(*left);
        *left -= contents.len();
        let executable = metadata.permissions().mode() & 0o100 != 0;
        writer.regular(name, executable, contents.len() as u64).expect("write");
        writer.contents(&contents).expect("write");
    }
}

/// The NAR of a file with these bytes.
pub fn file(contents: &[u8]) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    writer.regular(b"", false, contents.len() as u64).expect("write");
    writer.contents(contents).expect("write");
    writer.finish().expect("a NAR")
}

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn path(n: u64) -> StorePath {
    let hash: [u8; 32] = *blake3::hash(&n.to_le_bytes()).as_bytes();
    StorePath::from_parts(&hash[..20].try_into().expect("20 bytes"), &format!("bench-{n}")).expect("a path")
}

/// Feeds a NAR as a network does.
pub fn ingest(store: &Store, nar: &[u8]) -> Ingested {
    let mut ingest = store.ingest();
    for piece in nar.chunks(64 << 10) {
        ingest.write_all(piece).expect("ingest");
    }
    ingest.finish().expect("a NAR")
}

pub fn commit(store: &Store, path: &StorePath, ingested: Ingested) {
    let info = PathInfo::new(path.clone(), ingested.nar_hash, ingested.nar_size);
    store.commit(vec![(info, ingested)]).expect("commit");
}
