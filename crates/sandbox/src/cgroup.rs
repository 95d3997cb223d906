//! The control group of one build: what it used, and how much memory it may use.

mod discovery;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::{Cgroups, Usage};

pub(crate) use discovery::available;
pub use discovery::cgroups;

/// The names of the directories that we make begin so.
pub(crate) const PREFIX: &str = "shoal-build-";

/// The directories of one build. Dropping it removes them, so nothing must be left inside.
#[derive(Debug)]
pub(crate) struct Group {
    settings: Cgroups,
    dirs: Vec<PathBuf>,
    unified: Option<OwnedFd>,
}

impl Group {
    /// Metering is no reason to fail a build: what can't be made is left out.
    pub fn create(settings: &Cgroups) -> Group {
        let name = format!("{PREFIX}{}", std::process::id());
        let parents: Vec<&PathBuf> = match settings {
            Cgroups::Off => Vec::new(),
            Cgroups::V2 { parent, .. } => vec![parent],
            Cgroups::V1 { memory, cpuacct, .. } => memory.iter().chain(cpuacct).collect(),
        };
        let mut group = Group { settings: settings.clone(), dirs: Vec::new(), unified: None };
        for parent in parents {
            let dir = parent.join(&name);
            // A directory of a supervisor that was killed and had our process id.
            let _ = fs::remove_dir(&dir);
            if fs::create_dir(&dir).is_ok() {
                group.dirs.push(dir);
            }
        }
        if let (Cgroups::V2 { .. }, Some(dir)) = (settings, group.dirs.first()) {
            group.unified = File::open(dir).ok().map(OwnedFd::from);
        }
        group
    }

    /// Whether a build that wants `settings` can use this group.
    pub fn serves(&self, settings: &Cgroups) -> bool {
        parents(&self.settings) == parents(settings)
    }

    /// The group to clone into (v2). Without it [`Group::add`] is needed (v1).
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves a process that has no children yet. Waits some milliseconds for the kernel now and then.
    pub fn add(&self, pid: Pid) {
        for dir in self.dirs.iter().filter(|_| self.unified.is_none()) {
            // A process that stays outside is metered by its resource usage.
            let _ = fs::write(dir.join("cgroup.procs"), pid.as_raw_nonzero().to_string());
        }
    }

    /// Sets the memory limit that `settings` has.
    pub fn limit(&self, settings: &Cgroups) -> io::Result<()> {
        let (file, max) = match settings {
            Cgroups::Off => return Ok(()),
            Cgroups::V2 { memory_max, .. } => ("memory.max", memory_max),
            Cgroups::V1 { memory_max, .. } => ("memory.limit_in_bytes", memory_max),
        };
        let Some(max) = max else { return Ok(()) };
        match self.dirs.iter().find(|dir| dir.join(file).exists()) {
            Some(dir) => fs::write(dir.join(file), max.to_string()),
            None => Err(io::Error::new(io::ErrorKind::Unsupported, "no memory control group")),
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

fn parents(settings: &Cgroups) -> [Option<&Path>; 2] {
    match settings {
        Cgroups::Off => [None, None],
        Cgroups::V2 { parent, .. } => [Some(parent), None],
        Cgroups::V1 { memory, cpuacct, .. } => [memory.as_deref(), cpuacct.as_deref()],
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
