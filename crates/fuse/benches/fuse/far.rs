//! A tool chain at another node: how long until something is compiled with it, beside fetching all of it first.

use crate::paths::{Chunks, Entry, file, noise, path};
use crate::row;
use shoal_fuse::{Deliver, Mount, Options, Source, SourceError};
use shoal_wire::mesh::manifest::{ChunkRef, Manifest};
use std::collections::HashSet;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const NAME: &str = "00000000000000000000000000000000-toolchain";
const ROUND_TRIP: Duration = Duration::from_millis(5);
/// Of the link, which all requests share: a gigabit.
const BYTES_A_SECOND: f64 = 125e6;
/// Headers lie in directories, each of which has some that nobody includes.
const DIRECTORIES: usize = 9;
const HEADERS: usize = 200;
const INCLUDED: usize = 100;
/// Programs and libraries, of which this compilation needs none.
const LIBRARIES: usize = 64;
const LIBRARY_LEN: usize = 4 << 20;
const TURNS: usize = 5;

/// A link that carries one thing after the other, and answers after a round trip.
struct Link(Mutex<()>);

impl Link {
    fn carry(&self, bytes: usize) {
        {
            let _turn = self.0.lock().expect("nobody panics");
            thread::sleep(Duration::from_secs_f64(bytes as f64 / BYTES_A_SECOND));
        }
        thread::sleep(ROUND_TRIP);
    }
}

struct Far {
    manifest: Manifest,
    chunks: Chunks,
    link: Link,
    near: Mutex<HashSet<[u8; 32]>>,
}

impl Far {
    fn bring(&self, chunks: &[ChunkRef]) {
        let missing = |chunk: &&ChunkRef| !self.near.lock().expect("nobody panics").contains(&chunk.hash);
        let missing: Vec<&ChunkRef> = chunks.iter().filter(missing).collect();
        if missing.is_empty() {
            return;
        }
        self.link.carry(missing.iter().map(|chunk| chunk.len as usize).sum());
        self.near.lock().expect("nobody panics").extend(missing.iter().map(|chunk| chunk.hash));
    }

    fn fetched(&self) -> usize {
        let near = self.near.lock().expect("nobody panics");
        near.iter().filter_map(|hash| self.chunks.get(hash)).map(Vec::len).sum()
    }
}

impl Source for Far {
    fn names(&self) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }

    fn manifest(&self, name: &str) -> Result<Option<Manifest>, SourceError> {
        self.link.carry(0);
        Ok((name == NAME).then(|| self.manifest.clone()))
    }

    fn fetch(&self, _: &str, chunks: &[ChunkRef], deliver: Deliver<'_>) {
        self.bring(chunks);
        for (place, chunk) in chunks.iter().enumerate() {
            deliver(place, self.chunks.get(&chunk.hash).cloned().ok_or(SourceError::Missing));
        }
    }

    fn prefetch(&self, _: &str, chunks: &[ChunkRef]) {
        self.bring(chunks);
    }
}

fn header(directory: usize, number: usize) -> String {
    format!("include/d{directory}/h{directory}_{number:03}.h")
}

fn contents(directory: usize, number: usize) -> String {
    let line = |line| format!("extern int f{directory}_{number}_{line}(int, const char *, unsigned long);\n");
    (0..40 + number % 60).map(line).collect()
}

pub fn run() {
    let numbers = (0..DIRECTORIES).flat_map(|directory| (0..HEADERS).map(move |number| (directory, number)));
    let headers =
        numbers.map(|(directory, number)| (header(directory, number), file(contents(directory, number).as_bytes())));
    let libraries = (0..LIBRARIES).map(|n| (format!("lib/lib{n}.so"), file(&noise(n as u64, LIBRARY_LEN))));
    let entries: Vec<(String, Entry)> = headers.chain(libraries).collect();
    let (manifest, chunks) = path(&entries);
    let total: usize = chunks.values().map(Vec::len).sum();
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let source = place.path().join("all.c");
    let included =
        (0..DIRECTORIES).flat_map(|directory| (0..INCLUDED).map(move |n| (directory, n * HEADERS / INCLUDED)));
    let included = included.map(|(directory, number)| format!("#include <h{directory}_{number:03}.h>\n"));
    fs::write(&source, included.collect::<String>()).expect("a file");
    let dir = place.path().join("store");
    fs::create_dir(&dir).expect("a directory");

    let (mut ratios, mut fetched, mut waited) = (Vec::new(), 0, 0);
    for _ in 0..TURNS {
        let new = || {
            let (manifest, chunks) = (manifest.clone(), chunks.clone());
            Arc::new(Far { manifest, chunks, link: Link(Mutex::default()), near: Mutex::default() })
        };
        let far = new();
        let mount = Mount::start(&dir, far.clone(), &Options::default()).expect("a mount");
        let begun = Instant::now();
        compile(&dir, &source);
        let lazy = begun.elapsed();
        (fetched, waited) = (far.fetched(), mount.handle().stats().waited_reads);
        mount.stop().expect("unmounted");

        let far = new();
        let begun = Instant::now();
        far.bring(&far.manifest.chunks);
        let mount = Mount::start(&dir, far, &Options::default()).expect("a mount");
        compile(&dir, &source);
        ratios.push(lazy.as_secs_f64() / begun.elapsed().as_secs_f64());
        mount.stop().expect("unmounted");
    }
    ratios.sort_by(f64::total_cmp);
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let what = format!(
        "cold: gcc -M over {} headers, 5 ms and 1 Gbit/s away; {waited} reads waited, {:.1} of {:.0} MiB fetched",
        DIRECTORIES * INCLUDED,
        mib(fetched),
        mib(total)
    );
    row(&what, &format!("{:.2} x fetching all first", ratios[TURNS / 2]), "0.5");
}

fn compile(dir: &std::path::Path, source: &std::path::Path) {
    let mut gcc = Command::new("gcc");
    gcc.args(["-M", "-nostdinc", "-x", "c"]);
    for directory in 0..DIRECTORIES {
        gcc.arg("-isystem").arg(dir.join(NAME).join(format!("include/d{directory}")));
    }
    assert!(gcc.arg(source).stdout(Stdio::null()).status().expect("gcc").success());
}
