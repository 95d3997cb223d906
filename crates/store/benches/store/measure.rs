//! Times, medians, memory, and the table at the end.

use std::time::{Duration, Instant};

pub const MIB: f64 = 1024.0 * 1024.0;

/// Repetitions; the median counts. The machine's speed wanders, so what is compared is measured in
/// turns.
pub const REPEATS: usize = 5;

/// What came out: name, value, and the bar it is held to.
#[derive(Default)]
pub struct Report {
    lines: Vec<(String, String, String)>,
}

impl Report {
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>, bar: impl Into<String>) {
        let line = (name.into(), value.into(), bar.into());
        println!("{:<44} {:>22}  {}", line.0, line.1, line.2);
        self.lines.push(line);
    }

    pub fn print(&self) {
        println!("\n| measured | value | bar |\n|---|---|---|");
        for (name, value, bar) in &self.lines {
            println!("| {name} | {value} | {bar} |");
        }
    }
}

pub fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// CPU seconds of the calling thread, which other processes' load does not change.
pub fn thread_cpu() -> f64 {
    cpu_clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU seconds of all threads of this process.
pub fn process_cpu() -> f64 {
    cpu_clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu_clock(clock: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is there to be written.
    assert_eq!(unsafe { libc::clock_gettime(clock, &mut time) }, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

pub fn mib_s(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / MIB / time.as_secs_f64()
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Resident memory of this process in MiB: now, or the most it ever was.
pub fn resident(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a field");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib / 1024.0
}

/// One core's SHA-256 by the library that ingest uses.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    shoal_wire::nix::hash::sha256(bytes)
}
