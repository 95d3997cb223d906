//! Each number once.

use crate::measure::{MIB, REPEATS, Report, median, mib_s, process_cpu, resident, sha256, thread_cpu, time};
use crate::sample::{bench_store, commit, file, ingest, noise, path, place, tree};
use shoal_store::chunker::Chunker;
use shoal_store::{Options, Store};
use shoal_wire::nix::nar::NarLimits;
use shoal_wire::nix::nar::index::IndexBuilder;
use shoal_wire::nix::nar::parse::NarParser;
use shoal_wire::nix::path_info::PathInfo;
use std::hint::black_box;
use std::io::{Read, Write};
use std::time::Instant;

/// Ingests at once where many are measured.
const AT_ONCE: usize = 16;

fn hash(nar: &[u8]) {
    black_box(sha256(nar));
}

/// What each step of an ingest costs, in units of SHA-256's CPU time.
pub fn pieces(report: &mut Report) {
    let nar = tree();
    let cpu = |work: &mut dyn FnMut()| {
        let before = thread_cpu();
        work();
        thread_cpu() - before
    };
    let mut ends = vec![];
    let mut cut = || {
        let mut chunker = Chunker::default();
        let mut at = 0;
        for mut piece in nar.chunks(64 << 10) {
            while !piece.is_empty() {
                let (taken, end) = chunker.advance(piece);
                piece = &piece[taken..];
                at += taken;
                ends.extend(end.then_some(at));
            }
        }
    };
    let chunking = cpu(&mut cut);
    let sha = cpu(&mut || hash(&nar));
    let chunks = || ends.iter().scan(0, |from, &to| Some(&nar[std::mem::replace(from, to)..to]));
    let blake3 = cpu(&mut || chunks().for_each(|chunk| _ = black_box(blake3::hash(chunk))));
    let mut parser = NarParser::new(NarLimits::STRICT);
    let parse = cpu(&mut || nar.chunks(64 << 10).for_each(|piece| drop(parser.feed(piece, &mut IndexBuilder::new()))));
    let mut copied = Vec::new();
    let copy = cpu(&mut || {
        for piece in nar.chunks(128 << 10) {
            copied.clear();
            copied.extend_from_slice(black_box(piece));
        }
    });
    let mut file = tempfile::tempfile().expect("a file");
    let write = cpu(&mut || nar.chunks(1 << 20).for_each(|piece| file.write_all(piece).expect("write")));
    let mut frame = vec![0; 300 << 10];
    let steps = [("chunking", chunking), ("blake3", blake3), ("parser", parse), ("copy", copy), ("write", write)];
    for (what, seconds) in steps {
        report.add(format!("{what}, in sha256"), format!("{:.3}", seconds / sha), "");
    }
    for level in [-7, -5, -3, -1, 1, 2, 3] {
        let mut zstd = zstd::bulk::Compressor::new(level).expect("zstd");
        let seconds = cpu(&mut || {
            chunks().for_each(|chunk| _ = black_box(zstd.compress_to_buffer(chunk, &mut frame[..]).expect("zstd")))
        });
        report.add(format!("zstd {level}, in sha256"), format!("{:.3}", seconds / sha), "");
    }
}

pub fn one_nar(report: &mut Report) {
    for (what, nar) in [("real tree", tree()), ("noise", file(&noise(1, 256 << 20)))] {
        let (mut sha, mut ours, mut speed, mut of_disk) = (vec![], vec![], vec![], vec![]);
        for _ in 0..REPEATS {
            let alone = time(|| hash(&nar));
            let written = time(|| write_durably(&nar));
            let (_dir, store) = bench_store(Options::default());
            let taken = time(|| commit(&store, &path(0), ingest(&store, &nar)));
            sha.push(mib_s(nar.len(), alone));
            speed.push(mib_s(nar.len(), taken));
            ours.push(alone.as_secs_f64() / taken.as_secs_f64());
            of_disk.push(written.as_secs_f64() / taken.as_secs_f64());
        }
        report.add(format!("sha256 of one core, {what}"), format!("{:.0} MiB/s", median(sha)), "");
        report.add(format!("ingest of one NAR, {what}"), format!("{:.0} MiB/s", median(speed)), "");
        report.add(format!("ingest / sha256, {what}"), format!("{:.2}", median(ours)), ">= 0.9");
        report.add(format!("ingest / plain write and fdatasync, {what}"), format!("{:.2}", median(of_disk)), "");
    }
}

/// What the disk allows a program that does nothing else, where the stores are made.
fn write_durably(nar: &[u8]) {
    let mut file = tempfile::tempfile_in(place()).expect("a file");
    nar.chunks(1 << 20).for_each(|piece| file.write_all(piece).expect("write"));
    file.sync_data().expect("sync");
}

pub fn many_nars(report: &mut Report) {
    let tree = tree();
    // Each a file of its own, so that no two share chunks.
    let nars: Vec<Vec<u8>> = tree.chunks(tree.len() / AT_ONCE + 1).map(file).collect();
    for at_once in [1, 2, 4, 8, AT_ONCE] {
        let (mut ratios, mut speeds, mut shares) = (vec![], vec![], vec![]);
        for _ in 0..REPEATS {
            let cpu = process_cpu();
            let alone = time(|| nars.iter().for_each(|nar| hash(nar)));
            let sha_cpu = process_cpu() - cpu;
            let (_dir, store) = bench_store(Options::default());
            let cpu = process_cpu();
            let taken = time(|| at_the_same_time(&store, &nars, at_once));
            shares.push(2.0 * sha_cpu / (process_cpu() - cpu));
            ratios.push(alone.as_secs_f64() / taken.as_secs_f64());
            speeds.push(mib_s(tree.len(), taken));
        }
        let bar = if at_once == AT_ONCE { ">= 1.6" } else { "" };
        let value = format!("{:.2} ({:.0} MiB/s)", median(ratios), median(speeds));
        report.add(format!("{at_once} NARs at once / sha256 of one core"), value, bar);
        report.add(format!("{at_once} NARs at once, by CPU on two cores"), format!("{:.2}", median(shares)), bar);
    }
}

fn at_the_same_time(store: &Store, nars: &[Vec<u8>], at_once: usize) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(nar) = nars.get(n) else {
                        return;
                    };
                    commit(store, &path(n as u64), ingest(store, nar));
                }
            });
        }
    });
}

pub fn export(report: &mut Report) {
    for (what, nar) in [("real tree", tree()), ("noise", file(&noise(1, 256 << 20)))] {
        let (_dir, store) = bench_store(Options::default());
        commit(&store, &path(0), ingest(&store, &nar));
        let speeds = (0..REPEATS).map(|_| mib_s(nar.len(), time(|| read_all(&store))));
        let value = median(speeds.collect()) * MIB / 1e6;
        report.add(format!("export, {what}"), format!("{value:.0} MB/s"), ">= 600 MB/s");
        let unpacked = tempfile::tempdir().expect("a directory");
        let taken = time(|| assert!(store.unpack(&path(0), &unpacked.path().join("x")).expect("unpack")));
        report.add(format!("unpack, {what}"), format!("{:.0} MB/s", nar.len() as f64 / 1e6 / taken.as_secs_f64()), "");
    }
}

fn read_all(store: &Store) {
    let mut export = store.export(&path(0)).expect("export").expect("valid");
    loop {
        let n = export.fill_buf().expect("read").len();
        if n == 0 {
            return;
        }
        export.consume(n);
    }
}

/// What each level costs and gives.
pub fn levels(report: &mut Report) {
    let nar = tree();
    for level in [-7, -5, -3, -2, -1, 1, 2, 3] {
        let options = Options { level, ..Options::default() };
        let (_dir, store) = bench_store(options);
        let cpu = process_cpu();
        commit(&store, &path(0), ingest(&store, &nar));
        let taken_in = nar.len() as f64 / 1e6 / (process_cpu() - cpu);
        let stored = store.stats().expect("stats").live_bytes as f64 / nar.len() as f64;
        let cpu = process_cpu();
        read_all(&store);
        let read = nar.len() as f64 / 1e6 / (process_cpu() - cpu);
        let value = format!("in {taken_in:.0} MB/CPU s, stored {stored:.3}, out {read:.0} MB/CPU s");
        report.add(format!("level {level}"), value, "");
    }
}

pub fn tiny(report: &mut Report) {
    let (_dir, store) = bench_store(Options::default());
    let rounds = 1000;
    let mut commits = vec![];
    for n in 0..rounds {
        let nar = file(&noise(n, 1024));
        commits.push(time(|| commit(&store, &path(n), ingest(&store, &nar))).as_secs_f64() * 1e3);
    }
    report.add("ingest and commit of 1 KiB, median", format!("{:.3} ms", median(commits)), "< 1.5 ms");
    let (mut infos, mut exports) = (vec![], vec![]);
    for n in 0..rounds {
        let info = || drop(black_box(store.path_info(&path(n)).expect("path info")));
        infos.push(time(info).as_secs_f64() * 1e3);
        let read = || {
            let mut nar = Vec::new();
            store.export(&path(n)).expect("export").expect("valid").read_to_end(&mut nar).expect("read");
        };
        exports.push(time(read).as_secs_f64() * 1e3);
    }
    report.add("path_info, median", format!("{:.4} ms", median(infos)), "< 0.4 ms");
    report.add("export of 1 KiB, median", format!("{:.4} ms", median(exports)), "< 0.4 ms");
}

/// A NAR of 4 GiB: noise and repetition by turns, made on the way.
pub fn huge(report: &mut Report) {
    let size: u64 = 4 << 30;
    let before = resident("VmRSS");
    let (_dir, store) = bench_store(Options::default());
    let mut header = file(&[]);
    header.truncate(header.len() - 16);
    let at = header.len() - 8;
    header[at..].copy_from_slice(&size.to_le_bytes());
    let mut ingest = store.ingest();
    ingest.write_all(&header).expect("ingest");
    let start = Instant::now();
    let mut most: f64 = 0.0;
    for block in 0..size >> 20 {
        let mut bytes = noise(block, 1 << 20);
        if block % 2 == 0 {
            bytes = bytes[..64 << 10].repeat(16);
        }
        ingest.write_all(&bytes).expect("ingest");
        most = most.max(resident("VmRSS"));
    }
    ingest.write_all(b"\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0").expect("ingest");
    commit(&store, &path(0), ingest.finish().expect("a NAR"));
    most = most.max(resident("VmRSS"));
    let speed = size as f64 / MIB / start.elapsed().as_secs_f64();
    report.add("resident, ingest of 4 GiB, over what was before", format!("{:.0} MiB", most - before), "< 150 MiB");
    report.add("ingest of 4 GiB", format!("{speed:.0} MiB/s"), "");
    let before = resident("VmRSS");
    read_all(&store);
    report.add("resident, export of 4 GiB, more", format!("{:.0} MiB", resident("VmRSS") - before), "");
}

pub fn hundred_thousand_paths(report: &mut Report) {
    let (dir, store) = bench_store(Options::default());
    let start = Instant::now();
    for batch in 0..100 {
        let batch = (0..1000).map(|n| {
            let n = batch * 1000 + n;
            let ingested = ingest(&store, &file(&noise(n, 100)));
            let mut info = PathInfo::new(path(n), ingested.nar_hash, ingested.nar_size);
            info.references = (n.saturating_sub(10)..n).map(path).collect();
            (info, ingested)
        });
        store.commit(batch.collect()).expect("commit");
    }
    report.add("ingest and commit of 100k paths", format!("{:.1} s", start.elapsed().as_secs_f64()), "");
    let index = std::fs::metadata(dir.path().join("index.redb")).expect("index").len();
    report.add("index of 100k paths", format!("{} MiB", index >> 20), "");
    drop(store);
    let mut opened = vec![];
    for _ in 0..REPEATS {
        opened.push(time(|| drop(Store::open(dir.path(), Options::default()).expect("open"))).as_secs_f64() * 1e3);
    }
    report.add("open with 100k paths", format!("{:.1} ms", median(opened)), "< 200 ms");
    let before = resident("VmRSS");
    let store = Store::open(dir.path(), Options::default()).expect("open");
    let looked_up = (0..20_000).map(|n| time(|| drop(store.path_info(&path(n * 5)))).as_secs_f64() * 1e3);
    report.add("path_info among 100k, median", format!("{:.4} ms", median(looked_up.collect())), "< 0.4 ms");
    report.add("resident after 20k look-ups, more", format!("{:.0} MiB", resident("VmRSS") - before), "");
    let all = time(|| drop(store.paths().expect("paths")));
    report.add("list of 100k paths", format!("{:.1} ms", all.as_secs_f64() * 1e3), "");
    // As after kill -9: the index is left open.
    let copy = tempfile::tempdir_in(dir.path().parent().expect("parent")).expect("a directory");
    store.add_root("last", &path(0)).expect("a write");
    for entry in ["format", "index.redb"] {
        std::fs::copy(dir.path().join(entry), copy.path().join(entry)).expect("copy");
    }
    std::fs::create_dir(copy.path().join("segments")).expect("create");
    let unclean = time(|| drop(Store::open(copy.path(), Options::default()).expect("open")));
    report.add("open with 100k paths after a crash", format!("{:.1} ms", unclean.as_secs_f64() * 1e3), "");
    let request = shoal_store::GcRequest::new(shoal_store::GcAction::DeleteDead);
    let collected = time(|| drop(store.collect(&request).expect("collect")));
    report.add("collection of 100k paths", format!("{:.1} s", collected.as_secs_f64()), "");
    report.add("resident, most ever", format!("{:.0} MiB", resident("VmHWM")), "");
}
