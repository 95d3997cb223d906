//! The control group of one build: what it used, and how much memory it may use.

mod discovery;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;

use crate::{Cgroups, Usage};

pub(crate) use discovery::available;
pub use discovery::cgroups;

/// The names of the directories that we make begin so.
pub(crate) const PREFIX: &str = "shoal-build-";

/// The directories of one build. Dropping it removes them, so nothing must be left inside.
///
/// In version 2 a process is born in its group, at no cost. In version 1 it has to be moved, for which the
/// kernel stops every fork and exit of the machine for some milliseconds: that is done before the build only if
/// its memory is limited, and otherwise once it has run for [`JOIN_AFTER`].
#[derive(Debug, Default)]
pub(crate) struct Group {
    parent: Option<PathBuf>,
    dirs: Vec<PathBuf>,
    unified: Option<OwnedFd>,
}

/// A build that is over by then is metered well enough by its resource usage.
pub(crate) const JOIN_AFTER: Duration = Duration::from_secs(1);

/// Passes over a build's processes, some of which may fork while others are moved. What is left out then is
/// forking without end.
const PASSES_MAX: usize = 8;

impl Group {
    /// The group to be born in, if there is such a thing. Metering is no reason to fail a build: what can't be
    /// made is left out.
    pub fn create(settings: &Cgroups) -> Group {
        let Cgroups::V2 { parent, .. } = settings else { return Group::default() };
        let dirs: Vec<PathBuf> = make(parent).into_iter().collect();
        let unified = dirs.first().and_then(|dir| File::open(dir).ok()).map(OwnedFd::from);
        Group { parent: Some(parent.clone()), dirs, unified }
    }

    /// Whether a build that wants `settings` can use this group.
    pub fn serves(&self, settings: &Cgroups) -> bool {
        match settings {
            Cgroups::V2 { parent, .. } => self.parent.as_ref() == Some(parent),
            Cgroups::V1 { .. } | Cgroups::Off => self.parent.is_none(),
        }
    }

    /// The group to clone into.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Limits the memory of a process that has no children yet, if `settings` say so.
    pub fn limit(&mut self, settings: &Cgroups, first: Pid) -> io::Result<()> {
        let unsupported = || io::Error::new(io::ErrorKind::Unsupported, "no memory control group");
        match settings {
            Cgroups::V2 { memory_max: Some(max), .. } => {
                let dir = self.dirs.first().ok_or_else(unsupported)?;
                fs::write(dir.join("memory.max"), max.to_string())
            }
            Cgroups::V1 { memory_max: Some(max), .. } => {
                self.join(settings, first);
                let limit = |dir: &PathBuf| dir.join("memory.limit_in_bytes");
                let limit = self.dirs.iter().map(limit).find(|file| file.exists());
                fs::write(limit.ok_or_else(unsupported)?, max.to_string())
            }
            _ => Ok(()),
        }
    }

    /// Version 1: moves a sandbox's first process and all its descendants. Only the first call counts.
    pub fn join(&mut self, settings: &Cgroups, first: Pid) {
        let Cgroups::V1 { memory, cpuacct, .. } = settings else { return };
        if !self.dirs.is_empty() {
            return;
        }
        self.dirs = memory.iter().chain(cpuacct).filter_map(|parent| make(parent)).collect();
        let mut moved = HashSet::new();
        for _ in 0..PASSES_MAX {
            let mut all = vec![first.as_raw_nonzero().get()];
            descendants(first.as_raw_nonzero().get(), &mut all);
            let before = moved.len();
            for pid in all.into_iter().filter(|pid| moved.insert(*pid)) {
                for dir in &self.dirs {
                    // It may be gone by now.
                    let _ = fs::write(dir.join("cgroup.procs"), pid.to_string());
                }
            }
            if moved.len() == before {
                return;
            }
        }
    }

    /// Replaces in `usage` what the kernel counted for the group, whoever reaped whom.
    pub fn read(&self, usage: &mut Usage) {
        for dir in &self.dirs {
            if let Some(user) = number(dir, "cpuacct.usage_user") {
                usage.cpu_user_us = usage.cpu_user_us.max(user / 1000);
            }
            if let Some(system) = number(dir, "cpuacct.usage_sys") {
                usage.cpu_system_us = usage.cpu_system_us.max(system / 1000);
            }
            if let Some(user) = field(dir, "cpu.stat", "user_usec") {
                usage.cpu_user_us = usage.cpu_user_us.max(user);
            }
            if let Some(system) = field(dir, "cpu.stat", "system_usec") {
                usage.cpu_system_us = usage.cpu_system_us.max(system);
            }
            for peak in ["memory.peak", "memory.max_usage_in_bytes"] {
                if let Some(bytes) = number(dir, peak) {
                    usage.memory_peak_bytes = bytes;
                }
            }
            for events in ["memory.events", "memory.oom_control"] {
                usage.out_of_memory |= field(dir, events, "oom_kill").is_some_and(|kills| kills > 0);
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // An empty directory that stays is removed by the next start of the node.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// A directory for this supervisor's build.
fn make(parent: &Path) -> Option<PathBuf> {
    let dir = parent.join(format!("{PREFIX}{}", std::process::id()));
    // Of a supervisor that was killed and had our process id.
    let _ = fs::remove_dir(&dir);
    fs::create_dir(&dir).ok().map(|()| dir)
}

/// Adds the children of a process, and theirs. There are no more of them than processes on the machine.
fn descendants(pid: i32, all: &mut Vec<i32>) {
    let mut unseen = vec![pid];
    while let Some(pid) = unseen.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace().filter_map(|child| child.parse().ok());
            unseen.extend(children.inspect(|child| all.push(*child)));
        }
    }
}

fn number(dir: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// The number behind `name` in a file of `name number` lines.
fn field(dir: &Path, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(dir.join(file)).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}
