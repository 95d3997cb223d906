//! The scratch directories of builds: `<data-dir>/builds/<run>-<number>`.
//!
//! Making and deleting one for every build would be a large part of what a small build takes, so some are kept
//! for the next build. Nothing waits for that: a directory is made fit again in the background.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use shoal_sandbox::Scratch;

use crate::trees::{in_background, remove};

/// As many as builds end at once on a large machine; each is some ten inodes.
const IDLE_MAX: usize = 64;

pub struct Scratches {
    dir: PathBuf,
    /// No earlier run of the node had it: a supervisor that got its build from one may not have begun yet.
    run: String,
    next: AtomicU64,
    idle: Mutex<Vec<Scratch>>,
}

impl Scratches {
    pub fn new(dir: PathBuf) -> Arc<Scratches> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = format!("{:x}", started.as_nanos());
        Arc::new(Scratches { dir, run, next: AtomicU64::new(1), idle: Mutex::default() })
    }

    /// An empty directory. Nobody else on the machine may look into it: in there are directories that everybody may write
    /// to, and what the builder makes of modes.
    pub fn take(&self) -> Result<Scratch> {
        if let Some(idle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(idle);
        }
        let path = self.dir.join(format!("{}-{}", self.run, self.next.fetch_add(1, Ordering::Relaxed)));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch::new(path))
    }

    /// Takes a directory back from a build that is over and could not give it away: see [`shoal_sandbox::recycle`].
    pub fn give_back(self: &Arc<Self>, scratch: Scratch) {
        let scratches = self.clone();
        in_background(move || match shoal_sandbox::recycle(&scratch) {
            Ok(()) => scratches.keep(scratch),
            Err(error) => {
                tracing::debug!(dir = %scratch.path().display(), %error, "a build's directory cannot be used again");
                remove(scratch.path());
            }
        });
    }

    fn keep(&self, scratch: Scratch) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(scratch);
            return;
        }
        drop(idle);
        remove(scratch.path());
    }
}
