//! The machine itself: what it is, who else uses it, and how fast it is just now.

use std::fs;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};

use crate::samples::Samples;

/// How often the machine's own speed is taken: virtual cores can halve in speed from minute to minute.
const SPEED_EVERY: Duration = Duration::from_secs(10);
const SPEED_BYTES: usize = 16 << 20;
/// How long to look whether others work here.
const LOOK: Duration = Duration::from_secs(1);

/// SHA-256 of one core, taken between measurements.
#[derive(Default)]
pub struct Speed {
    mib_s: Samples,
    last: Option<(Instant, f64)>,
}

impl Speed {
    /// MiB/s, not older than [`SPEED_EVERY`].
    pub fn sample(&mut self) -> f64 {
        if let Some((at, mib_s)) = self.last
            && at.elapsed() < SPEED_EVERY
        {
            return mib_s;
        }
        let block = vec![0; SPEED_BYTES];
        let since = Instant::now();
        black_box(digest(&SHA256, &block));
        let mib_s = (SPEED_BYTES >> 20) as f64 / since.elapsed().as_secs_f64();
        self.mib_s.push(mib_s);
        self.last = Some((Instant::now(), mib_s));
        mib_s
    }

    pub fn cell(&self) -> String {
        format!("{} MiB/s", self.mib_s.cell())
    }
}

/// `2 x Intel(R) …, 23 GiB, Linux 6.18.5, 2026-11-21 22:50 UTC, load 0.31`.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_string()).unwrap_or_default()
    };
    let memory_kib: f64 = after(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0);
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    format!(
        "{cores} x {}, {:.0} GiB, Linux {}, load {:.2} at the end",
        after(&read("/proc/cpuinfo"), "model name"),
        memory_kib / 1048576.0,
        read("/proc/sys/kernel/osrelease").trim(),
        load()
    )
}

/// Load of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// Share of the machine's CPU time that others use while this process sleeps, 0 to 1.
pub fn busy_share() -> f64 {
    let before = ticks();
    thread::sleep(LOOK);
    let after = ticks();
    let (busy, all) = (after.0 - before.0, after.1 - before.1);
    if all > 0.0 { busy / all } else { 0.0 }
}

/// Busy and all CPU time of all cores since the machine started.
fn ticks() -> (f64, f64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let ticks: Vec<f64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
    let all: f64 = ticks.iter().sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    (all - idle, all)
}

/// A line of a process's status, like `VmRSS` (resident now) or `VmHWM` (the most there was); 0 when it is gone.
pub fn memory_mib(pid: u32, line: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let kib = line.and_then(|value| value.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// CPU seconds that a process and its children that live have used so far.
pub fn cpu_s(pid: u32) -> f64 {
    let own = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // pid (name) state ... utime and stime are 12 and 13 after the name, which may hold anything.
        let after = stat.rsplit(')').next().unwrap_or_default().to_string();
        let ticks = after.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
        ticks.sum::<f64>() / rustix::param::clock_ticks_per_second() as f64
    };
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    own(pid) + children.split_whitespace().filter_map(|child| child.parse().ok()).map(own).sum::<f64>()
}
