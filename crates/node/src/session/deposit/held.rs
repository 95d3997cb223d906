//! NARs that came in and wait for the narinfo that says what path they are.
//!
//! Clients send either each NAR with its narinfo after it, or all NARs of a closure and then all narinfos. Several
//! narinfos may name one NAR, so one that was used stays for a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_store::Ingested;

/// Paths of a large closure, whose narinfos all come last.
const NARS_MAX: usize = 16 << 10;
/// Bytes of NAR that may wait together; the disk itself ends an upload before that on most machines.
const BYTES_MAX: u64 = 256 << 30;
/// What an upload may take from a NAR to its narinfo: all other NARs of its closure come between.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);
/// How long one that became a path may still be named by another.
const USED_WAIT_MAX: Duration = Duration::from_secs(60);

/// A NAR without a path.
pub struct HeldNar {
    pub ingested: Ingested,
    /// SHA-256 of the file that was sent.
    pub file_hash: [u8; 32],
    /// Bytes of it.
    pub file_size: u64,
}

#[derive(Default)]
pub struct HeldNars(Mutex<State>);

#[derive(Default)]
struct State {
    nars: HashMap<String, Entry>,
    bytes: u64,
}

struct Entry {
    nar: Arc<HeldNar>,
    since: Instant,
    used: bool,
}

/// There is no room for another NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl HeldNars {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a NAR under the name of its file, in place of one that had the name.
    pub fn hold(&self, file: String, nar: HeldNar) -> Result<(), Full> {
        let mut state = self.lock();
        state.drop_if(|entry| entry.is_stale());
        if !state.has_room(nar.ingested.nar_size) {
            state.drop_if(|entry| entry.used);
        }
        state.remove(&file);
        if !state.has_room(nar.ingested.nar_size) {
            return Err(Full);
        }
        state.bytes += nar.ingested.nar_size;
        state.nars.insert(file, Entry { nar: Arc::new(nar), since: Instant::now(), used: false });
        Ok(())
    }

    pub fn get(&self, file: &str) -> Option<Arc<HeldNar>> {
        let mut state = self.lock();
        let entry = state.nars.get_mut(file).filter(|entry| !entry.is_stale())?;
        // Who asks is about to name it.
        entry.since = Instant::now();
        Some(entry.nar.clone())
    }

    /// A path was made of it.
    pub fn used(&self, file: &str) {
        if let Some(entry) = self.lock().nars.get_mut(file) {
            entry.used = true;
            entry.since = Instant::now();
        }
    }

    pub fn tidy(&self) {
        self.lock().drop_if(|entry| entry.is_stale());
    }
}

impl Entry {
    fn is_stale(&self) -> bool {
        self.since.elapsed() > if self.used { USED_WAIT_MAX } else { WAIT_MAX }
    }
}

impl State {
    fn has_room(&self, bytes: u64) -> bool {
        self.nars.len() < NARS_MAX && self.bytes.saturating_add(bytes) <= BYTES_MAX
    }

    fn remove(&mut self, file: &str) {
        if let Some(entry) = self.nars.remove(file) {
            self.bytes -= entry.nar.ingested.nar_size;
        }
    }

    fn drop_if(&mut self, gone: impl Fn(&Entry) -> bool) {
        let State { nars, bytes } = self;
        nars.retain(|_, entry| {
            let goes = gone(entry);
            if goes {
                *bytes -= entry.nar.ingested.nar_size;
            }
            !goes
        });
    }
}
