//! What keeping costs: reads beside a collection, and stored bytes of versions of one thing.

use crate::measure::{MIB, Report, resident};
use crate::sample::{bench_store, commit, file, ingest, noise, path, place, tree_of};
use shoal_store::chunker::Chunker;
use shoal_store::{Encoder, GcAction, GcRequest, Options, Store};
use shoal_wire::nix::nar::write::NarWriter;
use shoal_wire::nix::path_info::PathInfo;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Chunks of the store that is collected; `SHOAL_BENCH_CHUNKS` for another number.
const CHUNKS: u64 = 1_000_000;
/// Files of a path: each has a chunk of its own, and what lies between two of them is another.
const FILES: u64 = 10;
const FILE_LEN: usize = 32 << 10;
/// How long reads are measured without a collection, before it and after it.
const ALONE: Duration = Duration::from_secs(10);

/// A path's NAR: files that are alike to nobody else's and compress well.
fn nar(n: u64) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    writer.directory(b"").expect("write");
    for file in 0..FILES {
        let contents = noise(n * FILES + file, 1 << 10).repeat(FILE_LEN >> 10);
        writer.regular(format!("{n}-{file}").as_bytes(), false, FILE_LEN as u64).expect("write");
        writer.contents(&contents).expect("write");
    }
    writer.end_directory().expect("write");
    writer.finish().expect("a NAR")
}

/// Every second path is kept, so that every segment is half dead and all of them are rewritten.
pub fn collection(report: &mut Report) {
    let chunks = std::env::var("SHOAL_BENCH_CHUNKS").map_or(CHUNKS, |text| text.parse().expect("a number"));
    let paths = chunks / (2 * FILES);
    let (_dir, store) = bench_store(Options::default());
    for first in (0..paths).step_by(500) {
        let batch = (first..paths.min(first + 500)).map(|n| {
            let ingested = ingest(&store, &nar(n));
            let mut info = PathInfo::new(path(n), ingested.nar_hash, ingested.nar_size);
            info.references = (n >= 2).then(|| path(n - 2)).into_iter().collect();
            (info, ingested)
        });
        store.commit(batch.collect()).expect("commit");
    }
    store.add_root("kept", &path((paths - 1) / 2 * 2)).expect("a root");
    let before = store.stats().expect("stats");
    let read = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| read_until(&store, paths, &done, &read));
        let rate = |work: &mut dyn FnMut()| {
            let (since, from) = (Instant::now(), read.load(Ordering::Relaxed));
            work();
            (read.load(Ordering::Relaxed) - from) as f64 / MIB / since.elapsed().as_secs_f64()
        };
        let alone_before = rate(&mut || std::thread::sleep(ALONE));
        let resident_before = resident("VmRSS");
        let most = AtomicU64::new(0);
        let (mut collected, mut took) = (None, Duration::ZERO);
        let ended = AtomicBool::new(false);
        let beside = rate(&mut || {
            std::thread::scope(|inner| {
                inner.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        most.fetch_max(resident("VmRSS") as u64, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
                let since = Instant::now();
                collected = Some(store.collect(&GcRequest::new(GcAction::DeleteDead)).expect("collect"));
                took = since.elapsed();
                ended.store(true, Ordering::Relaxed);
            });
        });
        let alone_after = rate(&mut || std::thread::sleep(ALONE));
        done.store(true, Ordering::Relaxed);
        let (collected, after) = (collected.expect("a report"), store.stats().expect("stats"));
        let alone = (alone_before + alone_after) / 2.0;
        report.add(
            format!("collection of {} chunks, {} stay", before.chunks, after.chunks),
            format!("{:.1} s, {:.0} MiB copied", took.as_secs_f64(), collected.copied as f64 / MIB),
            "",
        );
        report.add("reads beside it, of reads alone", format!("{:.2} ({alone:.0} MiB/s)", beside / alone), ">= 0.70");
        let grown = most.load(Ordering::Relaxed) as f64 - resident_before;
        report.add("resident beside it, more", format!("{grown:.0} MiB"), "< 200 MiB");
    });
}

/// Exports kept paths, one after the other, far from each other.
fn read_until(store: &Store, paths: u64, done: &AtomicBool, read: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    let mut n = 0;
    while !done.load(Ordering::Relaxed) {
        n = (n + 2 * 7_919) % (paths / 2 * 2);
        let mut export = store.export(&path(n)).expect("export").expect("a kept path");
        loop {
            match export.read(&mut buffer).expect("read") {
                0 => break,
                len => read.fetch_add(len as u64, Ordering::Relaxed),
            };
        }
    }
}

/// Two releases of a compiler, from the Python package index: the same package and two of its versions.
const PACKAGE: &str = "ziglang";
const VERSIONS: [&str; 2] = ["0.12.1", "0.13.0"];
/// zstd level of both sides.
const LEVEL: i32 = 3;

/// The unpacked package, fetched once.
fn version(version: &str) -> Option<PathBuf> {
    let dir = place().join("shoal-bench-wheels").join(version);
    let unpacked = dir.join("unpacked");
    if unpacked.exists() {
        return Some(unpacked);
    }
    let wheel = format!("{PACKAGE}=={version}");
    let run = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    let fetched = run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"])
        .arg(&dir)
        .arg(wheel));
    let wheel =
        std::fs::read_dir(&dir).ok()?.flatten().find(|entry| entry.path().extension().is_some_and(|e| e == "whl"));
    let new = dir.join("new");
    let unpack = |wheel: &Path| run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(&new));
    (fetched && unpack(&wheel?.path()) && std::fs::rename(&new, &unpacked).is_ok()).then_some(unpacked)
}

/// Stored bytes of two versions, beside what plain FastCDC over their NARs takes; and what one percent of change adds.
pub fn dedup(report: &mut Report) {
    let trees: Option<Vec<PathBuf>> = VERSIONS.iter().map(|name| version(name)).collect();
    let Some(trees) = trees else {
        report.add("two versions of a tool chain", "not measured: they cannot be fetched", "");
        return;
    };
    let nars: Vec<Vec<u8>> = trees.iter().map(|tree| tree_of(tree)).collect();
    // Small segments, so that all but the last few MiB are compressed that came in in haste.
    let options = Options { level: LEVEL, settled_level: LEVEL, segment_bytes: 4 << 20, ..Options::default() };
    let (_dir, store) = bench_store(options);
    for (n, nar) in (0..).zip(&nars) {
        commit(&store, &path(n), ingest(&store, nar));
    }
    commit(&store, &path(99), ingest(&store, &file(&noise(99, 8 << 20))));
    store.recompress(u64::MAX, &|| true).expect("recompress");
    let usage = store.usage_of(&[path(0), path(1)]).expect("usage");
    let plain = plain_fastcdc(&nars);
    let mib = |bytes: u64| bytes as f64 / MIB;
    report.add(
        format!("{PACKAGE} {} and {}, NARs", VERSIONS[0], VERSIONS[1]),
        format!("{:.0} MiB", mib(usage.nar_bytes)),
        "",
    );
    report.add(
        "stored, of plain FastCDC and zstd",
        format!("{:.3}", usage.stored_bytes as f64 / plain as f64),
        "<= 1.00",
    );
    // As one file each: a change in the bytes between files would make it no NAR.
    let before = &nars[1];
    commit(&store, &path(2), ingest(&store, &file(before)));
    commit(&store, &path(3), ingest(&store, &file(&one_percent_changed(before))));
    let unique = |paths: &[u64]| {
        let paths: Vec<_> = paths.iter().map(|n| path(*n)).collect();
        store.usage_of(&paths).expect("usage").unique_bytes
    };
    let new = (unique(&[2, 3]) - unique(&[2])) as f64 / before.len() as f64;
    report.add("new bytes where 1 % changed", format!("{:.2} %", new * 100.0), "<= 3 %");
}

/// Bytes of the unique chunks of NARs, compressed one by one, without anything of ours but the cutter.
fn plain_fastcdc(nars: &[Vec<u8>]) -> u64 {
    let mut encoder = Encoder::new(LEVEL).expect("zstd");
    let mut lens: HashMap<[u8; 32], usize> = HashMap::new();
    for nar in nars {
        let (mut chunker, mut rest, mut from) = (Chunker::default(), &nar[..], 0);
        let mut at = 0;
        while !rest.is_empty() {
            let (taken, ends) = chunker.advance(rest);
            rest = &rest[taken..];
            at += taken;
            if ends || rest.is_empty() {
                let chunk = &nar[std::mem::replace(&mut from, at)..at];
                let len = || encoder.encode_whole(chunk).expect("zstd").len().min(chunk.len());
                lens.entry(*blake3::hash(chunk).as_bytes()).or_insert_with(len);
            }
        }
    }
    lens.values().map(|len| *len as u64).sum()
}

/// Places in which bytes change; some hundred KiB each, as if a few files had been compiled anew.
const CHANGES: usize = 20;

/// The contents with one percent of their bytes replaced, in places evenly apart.
fn one_percent_changed(contents: &[u8]) -> Vec<u8> {
    let mut changed = contents.to_vec();
    let (apart, len) = (contents.len() / CHANGES, contents.len() / 100 / CHANGES);
    for change in 0..CHANGES {
        let at = apart * change + apart / 3;
        changed[at..at + len].copy_from_slice(&noise(change as u64, len));
    }
    changed
}
