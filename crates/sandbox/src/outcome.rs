//! How a build ended.

use serde::{Deserialize, Serialize};

/// The end of a build, written to `<scratch>/exit` and told to everybody attached. By then every process of
/// the sandbox is dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub end: End,
    pub usage: Usage,
    /// Seconds since 1970.
    pub started_at: u64,
    pub stopped_at: u64,
    /// From the arrival of the spec to the execution of the builder, microseconds; 0 if it was never executed.
    pub setup_us: u64,
    /// Bytes in `<scratch>/log`.
    pub log_bytes: u64,
    /// The host's uid of everything the builder made.
    pub uid: u32,
}

/// Why there is no process any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Also a builder that could not be executed: code 1, and the log says why.
    Exited(i32),
    Signaled(i32),
    /// `Limits::timeout` was reached.
    TimedOut,
    /// `Limits::max_silent` was reached.
    Silent,
    /// More output than `Limits::max_log_bytes`.
    LogLimit,
    /// [`crate::Running::kill`] was called.
    Killed,
    /// The sandbox could not be made: the machine's fault, not the builder's.
    SetupFailed(String),
    /// The supervisor went away without leaving an outcome: killed, or the machine stopped.
    Lost,
}

/// What the build used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    /// The most memory held at once: by all processes together with a cgroup, by the largest one without.
    pub memory_peak_bytes: u64,
    /// The kernel killed a process of the build for lack of memory. Known only with a cgroup.
    pub out_of_memory: bool,
}
