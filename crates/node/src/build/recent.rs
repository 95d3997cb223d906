//! The builds that ended last, for people.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use shoal_wire::nix::store_path::StorePath;

/// Enough to see what a node has been doing; what is older is in the logs.
const RECENT_MAX: usize = 100;

#[derive(Clone, Debug, Serialize)]
pub struct EndedBuild {
    pub drv_path: StorePath,
    pub seconds: u64,
    /// Seconds since 1970.
    pub ended: u64,
    /// Nix's message; `None` for a build that succeeded.
    pub failure: Option<String>,
}

#[derive(Debug, Default)]
pub struct Recent(VecDeque<EndedBuild>);

impl Recent {
    pub fn push(&mut self, drv_path: StorePath, took: Duration, failure: Option<String>) {
        if self.0.len() == RECENT_MAX {
            self.0.pop_front();
        }
        let ended = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.0.push_back(EndedBuild { drv_path, seconds: took.as_secs(), ended, failure });
    }

    /// The latest first.
    pub fn list(&self) -> Vec<EndedBuild> {
        self.0.iter().rev().cloned().collect()
    }
}
