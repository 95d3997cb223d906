//! How a mount behaves, and its bounds.

use std::time::Duration;

/// A read that could not be answered for so long ends with an error: longer than a node needs to start again, or a fetch
/// to move on to another holder, and shorter than people wait before they think that the machine hangs.
pub const READ_DEADLINE: Duration = Duration::from_secs(30);
/// A lookup at the root waits no longer for what others know of a path. Who waits in a lookup cannot be killed.
pub const LOOKUP_DEADLINE: Duration = Duration::from_secs(8);
/// What could not be fetched is not tried again for so long: a program that reads on after errors would wait for each.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(5);
/// Chunks in memory. The kernel has what was read already; here is what was read ahead, or lies around what was read.
pub const CACHE_BYTES_MAX: usize = 64 << 20;

/// How a mount behaves.
#[derive(Debug, Clone)]
pub struct Options {
    pub read_deadline: Duration,
    pub lookup_deadline: Duration,
    pub failure_memory: Duration,
    pub cache_bytes_max: usize,
    /// Whether all users see it. An ordinary user may ask for it only where `/etc/fuse.conf` says so.
    pub is_shared: bool,
    /// Whether what the directory has goes on being shown.
    pub is_overlay: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_deadline: READ_DEADLINE,
            lookup_deadline: LOOKUP_DEADLINE,
            failure_memory: FAILURE_MEMORY,
            cache_bytes_max: CACHE_BYTES_MAX,
            is_shared: rustix::process::geteuid().is_root(),
            is_overlay: false,
        }
    }
}
