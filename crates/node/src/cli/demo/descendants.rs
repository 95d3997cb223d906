//! Processes below this one. With this process as their subreaper they stay below it when their own parents die.

use std::collections::HashSet;
use std::fs;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};

/// Killed processes are gone within milliseconds, unless a disk holds them.
const ROUND: Duration = Duration::from_millis(20);
const ROUNDS_MAX: u32 = 250;

/// Kills all of them, builds and their supervisors too, and waits until none is left.
pub fn end() {
    for _ in 0..ROUNDS_MAX {
        for pid in all() {
            // It may have ended already.
            let _ = kill_process(pid, Signal::KILL);
        }
        // Nobody else waits for those whose parents died.
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if all().is_empty() {
            return;
        }
        thread::sleep(ROUND);
    }
    tracing::warn!("processes of the demo do not end");
}

fn all() -> HashSet<Pid> {
    let processes: Vec<(Pid, Pid)> = processes().collect();
    let mut found = HashSet::from([getpid()]);
    // Parents may come after their children.
    loop {
        let count = found.len();
        found.extend(
            processes.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>(),
        );
        if found.len() == count {
            break;
        }
    }
    found.remove(&getpid());
    found
}

/// Each process with its parent.
fn processes() -> impl Iterator<Item = (Pid, Pid)> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // pid (name) state parent …; the name may hold anything but ends at the last parenthesis.
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, Pid::from_raw(parent)?))
    })
}
