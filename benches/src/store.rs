//! NARs into the chunk store and out of it, without clients or connections.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::digest::{SHA256, digest};
use sha2::Digest;
use shoal_store::{Options, Store};
use shoal_tests::{Cmd, Place};
use shoal_wire::nix::nar::write::NarWriter;

use crate::Plan;
use crate::machine::memory_mib;
use crate::nars::{self, Feed, Kind};
use crate::report::{Bar, Report};

const THREADS: usize = 2;
const ONE_BYTES: usize = 256 << 20;
const MANY_BYTES: usize = 8 << 20;
const MANY: usize = 64;
const HUGE_BYTES: usize = 4 << 30;
const HUGE_PATIENCE: Duration = Duration::from_secs(900);

const SHA256_CORE: &str = "fastest SHA-256, one core";
const SHOAL: &str = "shoal store";

/// The first argument of the process whose memory is measured.
pub const HUGE_ARG: &str = "__huge-nar";

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    for _ in 0..plan.reps {
        for kind in [Kind::Text, Kind::Noise] {
            one(plan, report, kind)?;
            many(plan, report, kind)?;
        }
    }
    for kind in [Kind::Text, Kind::Noise] {
        report.hold_ratio(&one_name(kind), SHOAL, SHA256_CORE, Bar::AtLeast(0.9));
        report.hold_ratio(&many_name(kind), SHOAL, SHA256_CORE, Bar::AtLeast(1.6));
        report.hold_value(&export_name(kind), SHOAL, Bar::AtLeast(600.0));
    }
    huge(plan, report)
}

fn one_name(kind: Kind) -> String {
    format!("ingest of one NAR, {}", kind.name())
}

fn many_name(kind: Kind) -> String {
    format!("ingest of {MANY} NARs by {THREADS} threads, {}", kind.name())
}

fn export_name(kind: Kind) -> String {
    format!("export, {}", kind.name())
}

/// Decimal megabytes a second, as disks and networks are sold.
fn mb_s(bytes: usize, since: Instant) -> f64 {
    bytes as f64 / 1e6 / since.elapsed().as_secs_f64()
}

/// One NAR in, until it is on the disk and valid; and out again.
fn one(plan: &Plan, report: &mut Report, kind: Kind) -> Result<()> {
    let nar = nars::of_file(&kind.bytes(plan.scaled(ONE_BYTES, 8 << 20)))?;
    let place = Place::new("st");
    let store = Store::open(place.path(), Options::default())?;
    report.add(&one_name(kind), SHA256_CORE, "MB/s", sha256_mb_s(&nar))?;
    rustix::fs::sync();
    let since = Instant::now();
    nars::commit(&store, vec![(nars::path(0)?, nars::ingest(&store, &nar)?)])?;
    report.add(&one_name(kind), SHOAL, "MB/s", mb_s(nar.len(), since))?;
    let mut export = store.export(&nars::path(0)?)?.context("what was committed is not there")?;
    let mut block = vec![0; 64 << 10];
    let since = Instant::now();
    let mut exported = 0;
    loop {
        match export.read(&mut block)? {
            0 => break,
            n => exported += n,
        }
    }
    report.add(&export_name(kind), SHOAL, "MB/s", mb_s(exported, since))
}

/// Different NARs by several threads, until each is on the disk and valid.
fn many(plan: &Plan, report: &mut Report, kind: Kind) -> Result<()> {
    let size = plan.scaled(MANY_BYTES, 256 << 10);
    let contents = kind.bytes(size * MANY);
    let nars = contents.chunks(size).map(nars::of_file).collect::<Result<Vec<_>>>()?;
    let place = Place::new("st");
    let store = Store::open(place.path(), Options::default())?;
    report.add(&many_name(kind), SHA256_CORE, "MB/s", sha256_mb_s(&nars.concat()))?;
    rustix::fs::sync();
    let since = Instant::now();
    let share = |thread: usize| -> Result<()> {
        for (number, nar) in nars.iter().enumerate().filter(|(number, _)| number % THREADS == thread) {
            nars::commit(&store, vec![(nars::path(number)?, nars::ingest(&store, nar)?)])?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let share = &share;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || share(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    report.add(&many_name(kind), SHOAL, "MB/s", mb_s(nars.iter().map(Vec::len).sum(), since))
}

/// Of the libraries that might be the fastest here, whichever is.
fn sha256_mb_s(bytes: &[u8]) -> f64 {
    let since = Instant::now();
    std::hint::black_box(digest(&SHA256, bytes));
    let aws_lc = mb_s(bytes.len(), since);
    let since = Instant::now();
    std::hint::black_box(sha2::Sha256::digest(bytes));
    aws_lc.max(mb_s(bytes.len(), since))
}

/// The memory of a process that takes in one very large NAR and gives it out again.
fn huge(plan: &Plan, report: &mut Report) -> Result<()> {
    let place = Place::new("st");
    let bytes = plan.scaled(HUGE_BYTES, 64 << 20);
    let what = format!("peak memory with a NAR of {} MiB", bytes >> 20);
    let me = Cmd::new(std::env::current_exe()?).arg(HUGE_ARG).arg(bytes.to_string()).arg(place.path());
    let finished = me.patience(HUGE_PATIENCE).ok();
    report.add(&what, SHOAL, "MiB", finished.text().parse()?)?;
    report.hold_value(&what, SHOAL, Bar::AtMost(150.0));
    Ok(())
}

/// That process: `BYTES DIR`; prints its peak in MiB.
pub fn huge_main(args: &[String]) -> ExitCode {
    match take_huge(args) {
        Ok(mib) => {
            println!("{mib}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn take_huge(args: &[String]) -> Result<f64> {
    let [bytes, dir] = args else { return Err(anyhow!("needs BYTES and DIR")) };
    let bytes: u64 = bytes.parse()?;
    let store = Store::open(Path::new(dir), Options::default())?;
    let mut ingest = store.ingest();
    let mut nar = NarWriter::new(Feed(&mut ingest));
    nar.regular(b"", false, bytes)?;
    // Text and noise in turn; the counter in each block makes it a new one.
    let mut blocks = [Kind::Text.bytes(1 << 20), Kind::Noise.bytes(1 << 20)];
    let mut left = bytes;
    for number in 0u64.. {
        let block = &mut blocks[(number % 2) as usize];
        block.chunks_mut(8 << 10).for_each(|part| part[..8].copy_from_slice(&number.to_le_bytes()));
        let len = left.min(block.len() as u64);
        nar.contents(&block[..len as usize])?;
        left -= len;
        if left == 0 {
            break;
        }
    }
    nar.finish()?;
    nars::commit(&store, vec![(nars::path(0)?, ingest.finish()?)])?;
    let mut export = store.export(&nars::path(0)?)?.context("what was committed is not there")?;
    std::io::copy(&mut export, &mut std::io::sink())?;
    Ok(memory_mib(std::process::id(), "VmHWM"))
}
