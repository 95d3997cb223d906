//! What this machine takes for the time.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix seconds.
pub fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
