//! A second thread that decodes an export's next chunks while its reader uses the last.
//!
//! Chunks are claimed in order, by the thread or by the reader, whoever is free; so a reader that
//! only waits gets two cores' worth, and one that is slow finds [`AHEAD`] chunks ready and no more
//! than that are made. The thread sleeps until half of them are used, since a wake-up takes as long
//! as decoding a chunk; what it sleeps through the reader decodes. Invariants: a chunk is decoded by
//! one of them; the thread ends with the export; there are at most as many threads as cores, and an
//! export that gets none does without.

use crate::chunks::ChunkReader;
use crate::error::Result;
use crate::store::Store;
use shoal_wire::mesh::manifest::Manifest;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Chunks that may wait for the reader: a MiB of them, or four at most.
const AHEAD: usize = 16;

/// Bytes from which a thread is worth its start.
pub const WORTH_IT: u64 = 2 << 20;

/// How many exports have a thread.
#[derive(Default)]
pub struct Helpers(AtomicUsize);

pub struct ReadAhead {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    store: Store,
    manifest: Arc<Manifest>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The chunk that the reader wants or has.
    wanted: usize,
    /// The first chunk that nobody has claimed.
    next: usize,
    /// The chunk that the thread is at.
    busy: Option<usize>,
    done: BTreeMap<usize, Result<Vec<u8>>>,
    spare: Vec<Vec<u8>>,
    /// The thread has nothing to do.
    thread_sleeps: bool,
    /// The reader waits for the chunk that the thread is at.
    reader_waits: bool,
    stop: bool,
}

impl ReadAhead {
    /// `None` if enough threads run already, or no thread can be started.
    pub fn start(store: &Store, manifest: &Arc<Manifest>) -> Option<ReadAhead> {
        let most = std::thread::available_parallelism().map_or(1, |n| n.get());
        if store.helpers.0.fetch_add(1, Ordering::Relaxed) >= most {
            store.helpers.0.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let (store, manifest) = (store.clone(), manifest.clone());
        let shared = Arc::new(Shared { store, manifest, state: Mutex::default(), changed: Condvar::new() });
        let theirs = shared.clone();
        let run = move || {
            theirs.run();
            theirs.store.helpers.0.fetch_sub(1, Ordering::Relaxed);
        };
        match std::thread::Builder::new().name("shoal-export".into()).spawn(run) {
            Ok(thread) => Some(ReadAhead { shared, thread: Some(thread) }),
            Err(_) => {
                shared.store.helpers.0.fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Replaces `out` by chunk number `chunk`, which `reader` decodes if the thread has not begun to.
    pub fn read(&self, chunk: usize, reader: &mut ChunkReader, out: &mut Vec<u8>) -> Result<()> {
        let mut state = self.shared.state();
        state.want(chunk);
        if state.thread_sleeps && state.unclaimed(&self.shared.manifest) >= AHEAD / 2 {
            state.thread_sleeps = false;
            self.shared.changed.notify_one();
        }
        loop {
            if let Some(done) = state.done.remove(&chunk) {
                let spare = std::mem::replace(out, done?);
                state.spare.push(spare);
                return Ok(());
            }
            if state.busy != Some(chunk) {
                break;
            }
            state.reader_waits = true;
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.next = state.next.max(chunk + 1);
        drop(state);
        self.shared.decode(chunk, reader, out)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.changed.notify_all();
        // At most one chunk's work; after that nothing of the export holds the store.
        self.thread.take().map(JoinHandle::join);
    }
}

impl State {
    /// Moves the window to begin at `chunk`.
    fn want(&mut self, chunk: usize) {
        let back = chunk < self.wanted;
        self.wanted = chunk;
        self.done.retain(|&done, _| (chunk..chunk + AHEAD).contains(&done));
        if back || self.next < chunk {
            self.next = chunk;
        }
    }

    /// Chunks of the window that nobody has claimed.
    fn unclaimed(&self, manifest: &Manifest) -> usize {
        manifest.chunks.len().min(self.wanted + AHEAD).saturating_sub(self.next)
    }
}

impl Shared {
    fn run(&self) {
        let Ok(mut reader) = ChunkReader::new(&self.store) else {
            return;
        };
        let mut state = self.state();
        while !state.stop {
            let chunk = state.next;
            if state.unclaimed(&self.manifest) == 0 {
                state.thread_sleeps = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.next += 1;
            if state.done.contains_key(&chunk) {
                continue;
            }
            state.busy = Some(chunk);
            let mut out = state.spare.pop().unwrap_or_default();
            drop(state);
            let decoded = self.decode(chunk, &mut reader, &mut out).map(|()| out);
            state = self.state();
            state.busy = None;
            if (state.wanted..state.wanted + AHEAD).contains(&chunk) {
                state.done.insert(chunk, decoded);
            }
            if std::mem::take(&mut state.reader_waits) {
                self.changed.notify_one();
            }
        }
    }

    fn decode(&self, chunk: usize, reader: &mut ChunkReader, out: &mut Vec<u8>) -> Result<()> {
        match self.manifest.chunks.get(chunk) {
            Some(chunk) => reader.read(chunk, None, out),
            None => {
                out.clear();
                Ok(())
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
