//! A million files that can be seen: what the process holds for them.

use crate::row;
use shoal_fuse::{Deliver, Mount, Options, Source, SourceError};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use shoal_wire::nix::nar::NarSink;
use shoal_wire::nix::nar::index::IndexBuilder;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

const PATHS: usize = 500;
const FILES: usize = 2_000;
/// Bytes of a file, on average what a store has.
const FILE_LEN: u64 = 20_000;
const CHUNK_LEN: u64 = 65_536;

/// Paths that are made when they are asked for.
struct Endless;

impl Source for Endless {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        Ok((0..PATHS).map(|number| format!("{number:032}-path")).collect())
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        let (mut index, mut at) = (IndexBuilder::new(), 96);
        index.directory(b"", at).expect("a tree");
        for file in 0..FILES {
            at += 160;
            index.regular(format!("a-file-called-{file:06}").as_bytes(), false, FILE_LEN, at).expect("a tree");
            at += FILE_LEN;
        }
        index.end_directory(at).expect("a tree");
        let chunk = |from: u64| {
            let hash = *blake3::hash(&[name.as_bytes(), &from.to_le_bytes()].concat()).as_bytes();
            ChunkRef { hash, len: (at - from).min(CHUNK_LEN) as u32 }
        };
        let chunks = (0..at).step_by(CHUNK_LEN as usize).map(chunk).collect();
        Ok(Some(Manifest { chunks, index: index.finish(at).expect("a tree") }))
    }

    fn fetch(&self, _: &str, _: &[ChunkRef], _: Deliver<'_>) {}

    fn prefetch(&self, _: &str, _: &[ChunkRef]) {}
}

fn resident_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

pub fn run() {
    let before = resident_mib();
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mount = Mount::start(place.path(), Arc::new(Endless), &Options::default()).expect("a mount");
    let begun = Instant::now();
    let found =
        Command::new("find").arg(place.path()).args(["-type", "f", "-size", "+1"]).output().expect("find").stdout;
    let count = found.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(count, PATHS * FILES);
    drop(found);
    let took = begun.elapsed().as_secs_f64();
    let after = resident_mib();
    row(
        &format!("{count} files found and looked at, in {took:.1} s: resident"),
        &format!("{after} MiB, {before} before"),
        "250 MiB",
    );
    mount.stop().expect("unmounted");
}
