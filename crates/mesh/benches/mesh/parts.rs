//! What is measured.

use crate::lab::{Host, commit, fetch_all, fetcher, want};
use crate::raw;
use crate::sample::{add, directory, new_store, noise, setting, stocked, stored};
use bytes::Bytes;
use shoal_wire::mesh::path_record::PathRecord;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// What each of several peers gives at most.
const CAP: u64 = 20_000_000;
/// Bytes that capped peers move: some seconds of one.
const CAPPED_MIB: usize = 192;

/// What one percent of is changed: as big as what the store's own benchmark takes.
const CHANGED_MIB: usize = 192;

/// What came out: name, value, and the bar it is held to.
#[derive(Default)]
pub struct Report(Vec<[String; 3]>);

impl Report {
    pub fn add(&mut self, name: &str, value: String, bar: &str) {
        println!("{name:<60} {value:>22}  {bar}");
        self.0.push([name.to_owned(), value, bar.to_owned()]);
    }

    pub fn print(&self) {
        println!("\n| measured | value | bar |\n|---|---|---|");
        self.0.iter().for_each(|[name, value, bar]| println!("| {name} | {value} | {bar} |"));
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

fn repeats() -> usize {
    setting("SHOAL_BENCH_REPEATS", 3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU seconds of all threads of this process.
pub fn process_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// From the segments of one node to those of another, verified and valid, beside bare connections.
pub fn one_peer(report: &mut Report) {
    let (there, records) = stocked(setting("SHOAL_BENCH_MIB", 1024));
    let bytes = Bytes::from(stored(&there.store, &records));
    let nar: u64 = records.iter().map(|record| record.nar_size).sum();
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    println!("{:.0} MiB of NAR, {:.0} MiB stored, {} paths", mib(nar as f64), mib(bytes.len() as f64), records.len());
    let runtime = runtime();
    let names =
        ["raw TCP", "raw quinn, a stream", "raw iroh, a stream", "raw iroh, 4 streams", "chunks", "a file, synced"];
    let mut speeds: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    let mut cpu: Vec<Vec<f64>> = speeds.clone();
    for turn in 0..repeats() {
        for n in 0..names.len() {
            let which = (n + turn) % names.len();
            let before = process_cpu();
            let took = match which {
                0 => raw::tcp(&bytes),
                1 => runtime.block_on(raw::quinn(&bytes)),
                2 => runtime.block_on(raw::iroh(&bytes, 1)),
                3 => runtime.block_on(raw::iroh(&bytes, 4)),
                5 => raw::disk(&bytes),
                _ => {
                    let (here, host) = (new_store(), Host::on(&runtime, &there.store));
                    let began = Instant::now();
                    let moved = runtime.block_on(fetch_all(&here.store, &[&host], &records));
                    let took = began.elapsed();
                    assert!(moved >= bytes.len() as u64);
                    took
                }
            };
            cpu[which].push((process_cpu() - before) / (bytes.len() as f64 / 1e9));
            speeds[which].push(mib(bytes.len() as f64) / took.as_secs_f64());
        }
    }
    for (n, name) in names.iter().enumerate() {
        report.add(&format!("{name}: speed of stored bytes"), format!("{:.0} MiB/s", median(speeds[n].clone())), "");
        report.add(&format!("{name}: CPU, both ends"), format!("{:.1} s/GB", median(cpu[n].clone())), "");
    }
    let over = |other: usize| median(speeds[4].iter().zip(&speeds[other]).map(|(ours, raw)| ours / raw).collect());
    report.add("chunks over a raw iroh stream", format!("{:.2}", over(2)), ">= 0.8");
    let slower = speeds[2].iter().zip(&speeds[5]).map(|(stream, disk)| stream.min(*disk));
    let over_slower = median(speeds[4].iter().zip(slower).map(|(ours, slower)| ours / slower).collect());
    report.add("chunks over the slower of that and the file", format!("{over_slower:.2}"), "told");
    report.add("chunks over a raw quinn stream", format!("{:.2}", over(1)), "");
    report.add("chunks over raw TCP", format!("{:.2}", over(0)), "");
    let nar_speed = median(speeds[4].clone()) * nar as f64 / bytes.len() as f64;
    report.add("chunks: speed of NARs", format!("{nar_speed:.0} MiB/s"), "");
}

/// What `one` says of chunks, alone: for profilers.
pub fn chunks_alone(report: &mut Report) {
    let (there, records) = stocked(setting("SHOAL_BENCH_MIB", 1024));
    let runtime = runtime();
    let (mut speeds, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..repeats() {
        let (here, host) = (new_store(), Host::on(&runtime, &there.store));
        let (before, began) = (process_cpu(), Instant::now());
        let moved = runtime.block_on(fetch_all(&here.store, &[&host], &records)) as f64;
        speeds.push(moved / f64::from(1 << 20) / began.elapsed().as_secs_f64());
        cpu.push((process_cpu() - before) / (moved / 1e9));
    }
    report.add("chunks alone: speed of stored bytes", format!("{:.0} MiB/s", median(speeds)), "");
    report.add("chunks alone: CPU, both ends", format!("{:.1} s/GB", median(cpu)), "");
}

/// What capped peers move: one path that does not compress, so that the cap is what counts.
fn capped() -> (crate::sample::TestStore, PathRecord) {
    let there = new_store();
    let record = add(&there.store, 1, &directory(&[noise(1, CAPPED_MIB << 20)]));
    (there, record)
}

/// Seconds of a fetch from these hosts; `freezes`: the last of them does, after so long.
fn fetch_time(runtime: &Runtime, hosts: &[Host], record: &PathRecord, freezes: Option<Duration>) -> f64 {
    let here = new_store();
    let hosts: Vec<&Host> = hosts.iter().collect();
    runtime.block_on(async {
        let fetcher = fetcher(&here.store, &hosts).await;
        let began = Instant::now();
        let fetching = fetcher.begin(want(record, &hosts));
        if let (Some(after), Some(last)) = (freezes, hosts.last()) {
            tokio::time::sleep(after).await;
            last.freeze(Duration::from_secs(60));
        }
        let fetched = fetching.wait().await.expect("a path");
        let took = began.elapsed().as_secs_f64();
        commit(&here.store, record, fetched).await;
        took
    })
}

fn hosts(there: &crate::sample::TestStore, count: usize) -> Vec<Host> {
    (0..count).map(|_| Host::new(&there.store, Some(CAP))).collect()
}

pub fn four_peers(report: &mut Report) {
    let (runtime, (there, record)) = (runtime(), capped());
    let ratios = (0..repeats()).map(|_| {
        let one = fetch_time(&runtime, &hosts(&there, 1), &record, None);
        let four = fetch_time(&runtime, &hosts(&there, 4), &record, None);
        println!("one peer {one:.2} s, four {four:.2} s");
        one / four
    });
    let ratio = median(ratios.collect());
    report.add("four peers of 20 MB/s each over one", format!("{ratio:.2}"), ">= 3.6");
}

pub fn one_stalls(report: &mut Report) {
    let (runtime, (there, record)) = (runtime(), capped());
    let ratios = (0..repeats()).map(|_| {
        let three = fetch_time(&runtime, &hosts(&there, 3), &record, None);
        let stalled = fetch_time(&runtime, &hosts(&there, 4), &record, Some(Duration::from_millis(500)));
        println!("three peers {three:.2} s, four of which one stalls {stalled:.2} s");
        stalled / three
    });
    let ratio = median(ratios.collect());
    report.add("four peers of which one stalls, time over that of three", format!("{ratio:.2}"), "<= 1.15");
}

/// One percent of a NAR changed, in 20 places: what of its stored bytes moves.
pub fn small_change(report: &mut Report) {
    let (there, records) = stocked(CHANGED_MIB);
    let mut nar = Vec::new();
    for record in &records {
        let mut export = there.store.export(&record.path).expect("the index").expect("valid");
        std::io::Read::read_to_end(&mut export, &mut nar).expect("a NAR");
    }
    // As the contents of one file, so that it stays a NAR.
    let before = directory(&[nar.clone()]);
    let places = 20;
    let len = nar.len() / 100 / places;
    for place in 0..places {
        let at = nar.len() / places * place + len;
        nar[at..at + len].copy_from_slice(&noise(place as u64, len));
    }
    add(&there.store, 1000, &before);
    let new = add(&there.store, 1001, &directory(&[nar]));
    let here = new_store();
    add(&here.store, 1000, &before);
    let host = Host::new(&there.store, None);
    let moved = runtime().block_on(async {
        let fetching = fetcher(&here.store, &[&host]).await.begin(want(&new, &[&host]));
        let fetched = fetching.wait().await.expect("a path");
        commit(&here.store, &new, fetched).await;
        fetching.progress().missing_bytes
    });
    // Of the NAR's bytes: what frames take depends on how busy the machine was when they were stored.
    let share = moved as f64 / new.nar_size as f64 * 100.0;
    report.add("moved of a NAR of which 1 % changed", format!("{share:.2} %"), "<= 3 %");
}

/// What moves of a path whose transfer was cut at 90 %.
pub fn cut_and_resumed(report: &mut Report) {
    let (there, record) = capped();
    let (first, second) = (Host::new(&there.store, Some(4 * CAP)), Host::new(&there.store, None));
    let (here, whole) = (new_store(), stored(&there.store, std::slice::from_ref(&record)).len() as u64);
    let share = runtime().block_on(async {
        let fetcher = fetcher(&here.store, &[&first, &second]).await;
        let fetching = fetcher.begin(want(&record, &[&first]));
        while fetching.progress().moved_bytes < whole * 9 / 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(first);
        let _ = fetching.wait().await.err().expect("it was cut");
        let fetched = fetcher.fetch(want(&record, &[&second])).await.expect("a path");
        let moved = fetched.moved_bytes;
        commit(&here.store, &record, fetched).await;
        moved as f64 / whole as f64 * 100.0
    });
    report.add("moved after a cut at 90 %", format!("{share:.2} %"), "<= 11 %");
}
