//! Chunks of fetches that failed or that nobody wanted any more, kept for the next that wants them.
//!
//! They are pinned in memory and not published: what is left when its time is over, or when the process ends, is dead
//! bytes in a segment, unless a crash's rescan finds it.

use shoal_store::ChunkHold;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Long enough for links to come back and for whoever wants the path to ask again.
pub const KEPT_TIME: Duration = Duration::from_secs(600);
/// Chunks at most: some 16 GiB of NAR, and 50 MB of memory.
const CHUNKS_MAX: usize = 1 << 18;

#[derive(Default)]
pub struct Leftovers(Mutex<VecDeque<(Instant, Arc<ChunkHold>)>>);

impl Leftovers {
    pub fn keep(&self, hold: Arc<ChunkHold>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((Instant::now(), hold));
        let mut chunks: usize = kept.iter().map(|(_, hold)| hold.len()).sum();
        // The newest stays, however big.
        while chunks > CHUNKS_MAX && kept.len() > 1 {
            chunks -= kept.pop_front().map_or(0, |(_, hold)| hold.len());
        }
    }

    /// Lets go of what is too old.
    pub fn expire(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.front().is_some_and(|(since, _)| since.elapsed() > KEPT_TIME) {
            kept.pop_front();
        }
    }
}
