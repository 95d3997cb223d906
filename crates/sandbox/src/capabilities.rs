//! What the machine lets a sandbox do, and what to do about what it does not.

use std::io;
use std::path::Path;

/// One thing a sandbox wants of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Short and stable: `user-namespaces`, `overlay`, …
    pub name: &'static str,
    pub state: State,
    /// What was found.
    pub found: String,
    /// What an administrator can do about it; empty when all is well.
    pub fix: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Good,
    /// Builds work, but slower or with less isolation or metering.
    Degraded,
    /// No build can run.
    Missing,
}

/// Tries everything out. `data_dir` is where scratch directories and trees will lie.
pub fn capabilities(_data_dir: &Path) -> Vec<Capability> {
    Vec::new()
}

/// The argument after [`crate::SUPERVISOR_ARG`] that makes a process try things out.
pub(crate) const TASK: &str = "probe";

/// The life of such a process.
pub(crate) fn probe() -> io::Result<()> {
    Ok(())
}
