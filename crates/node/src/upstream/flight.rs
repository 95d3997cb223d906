//! One path on its way here, and those who watch it arrive.
//!
//! Who wants the bytes as they come reads them from a nameless file that the download writes beside the store. Its last
//! byte is given out only when the whole has been verified, so nobody is ever given a whole that is wrong. Readers never
//! hold the download up.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use shoal_mesh::fetcher::{Progress, Urgency};
use shoal_store::TempRoots;
use shoal_wire::nix::store_path::StorePath;
use tokio::sync::Notify;

use super::offer::Offer;
use crate::session::spool::nameless;

/// What is compared at once where a second download goes over what a first one left.
const COMPARE_BYTES: usize = 64 << 10;

pub struct Flight {
    pub path: StorePath,
    /// The offer it began with.
    pub offer: Arc<Offer>,
    /// What it refers to is not on its way already.
    pub brings_references: bool,
    /// Set when bytes begin to arrive.
    pub begun: AtomicBool,
    /// Of the most urgent that waits for it.
    urgency: Mutex<Urgency>,
    pub nar_bytes: AtomicU64,
    pub file_bytes: Arc<AtomicU64>,
    /// Made before bytes begin to arrive, or not at all.
    tape: OnceLock<File>,
    state: Mutex<State>,
    changed: Condvar,
    /// The same for who waits on no thread.
    told: Notify,
    /// Keeps the path and what it refers to until everybody has seen it.
    _roots: TempRoots,
}

#[derive(Default)]
struct State {
    /// Bytes on the tape.
    written: u64,
    /// Bytes of it that may be read.
    readable: u64,
    /// Why the tape is of no use.
    spoiled: Option<String>,
    /// Whether the path became valid, or why not.
    settled: Option<Result<(), String>>,
}

impl Flight {
    /// `dir` is where a tape goes, if it is fetched for a reader, who does not wait for what it refers to.
    pub fn new(offer: Arc<Offer>, roots: TempRoots, urgency: Urgency, dir: Option<&Path>) -> Flight {
        roots.add(&offer.info.path);
        offer.info.references.iter().for_each(|reference| roots.add(reference));
        let flight = Flight {
            path: offer.info.path.clone(),
            offer,
            brings_references: dir.is_some(),
            begun: AtomicBool::new(false),
            urgency: Mutex::new(urgency),
            nar_bytes: AtomicU64::new(0),
            file_bytes: Arc::default(),
            tape: OnceLock::new(),
            state: Mutex::default(),
            changed: Condvar::new(),
            told: Notify::new(),
            _roots: roots,
        };
        if let Some(dir) = dir {
            flight.want_tape(dir);
        }
        flight
    }

    /// Somebody wants to read it while it comes in. Of what has begun to come the first bytes are not kept.
    pub fn want_tape(&self, dir: &Path) {
        let _not_begun_meanwhile = self.lock();
        if self.begun.load(Ordering::Acquire) || self.has_tape() {
            return;
        }
        match nameless(dir) {
            Ok(file) => drop(self.tape.set(file)),
            Err(error) => {
                tracing::warn!(%error, "cannot pass an upstream's path on while it comes in; it is passed on afterwards");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn urgency(&self) -> Urgency {
        *self.urgency.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody else waits for it too.
    pub fn hurry(&self, urgency: Urgency) {
        let mut current = self.urgency.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (*current).min(urgency);
    }

    pub fn has_tape(&self) -> bool {
        self.tape.get().is_some()
    }

    /// A download begins, the first or one after another failed.
    pub fn begin(&self, offer: &Offer) {
        self.nar_bytes.store(0, Ordering::Relaxed);
        {
            let _no_tape_meanwhile = self.lock();
            self.begun.store(true, Ordering::Release);
        }
        if offer.info.nar_hash != self.offer.info.nar_hash {
            self.spoil("another upstream has other contents for it");
        }
    }

    /// The next bytes of the current download. What an earlier download left is compared with them.
    pub fn record(&self, bytes: &[u8]) {
        let at = self.nar_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let Some(tape) = self.tape.get() else { return };
        let (written, spoiled) = {
            let state = self.lock();
            (state.written, state.spoiled.is_some())
        };
        if spoiled {
            return;
        }
        let old = written.saturating_sub(at).min(bytes.len() as u64) as usize;
        let (known, new) = bytes.split_at(old);
        match same(tape, at, known).and_then(|same| tape.write_all_at(new, at + old as u64).map(|()| same)) {
            Ok(true) => {}
            Ok(false) => return self.spoil("two upstreams sent different bytes"),
            Err(error) => return self.spoil(&format!("cannot keep it for a moment: {error}")),
        }
        let mut state = self.lock();
        state.written = state.written.max(at + bytes.len() as u64);
        state.readable = state.readable.max(state.written.min(self.offer.info.nar_size.saturating_sub(1)));
        drop(state);
        self.tell();
    }

    /// How far a transfer from other nodes is, of which no bytes are passed on.
    pub fn progressed(&self, progress: Progress) {
        if !self.has_tape() {
            // They come compressed; how much NAR they are is not counted.
            self.nar_bytes.store(progress.moved_bytes.min(progress.nar_bytes), Ordering::Relaxed);
        }
        self.file_bytes.store(progress.moved_bytes, Ordering::Relaxed);
    }

    /// What came is the NAR that was offered. On a tape that an earlier download spoiled it is not.
    pub fn verified(&self) {
        let mut state = self.lock();
        if state.spoiled.is_some() {
            return;
        }
        state.readable = state.written;
        drop(state);
        self.tell();
    }

    fn tell(&self) {
        self.changed.notify_all();
        self.told.notify_waiters();
    }

    fn spoil(&self, why: &str) {
        self.lock().spoiled.get_or_insert_with(|| why.to_string());
        self.tell();
    }

    pub fn settle(&self, result: Result<(), String>) {
        self.lock().settled.get_or_insert(result);
        self.tell();
    }

    pub fn settled(&self) -> Option<Result<(), String>> {
        self.lock().settled.clone()
    }

    /// Waits for the end.
    pub fn wait(&self) -> Result<(), String> {
        let mut state = self.lock();
        loop {
            if let Some(settled) = &state.settled {
                return settled.clone();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends when [`Flight::read_at`] at `offset` would not wait; without one, at the end.
    pub async fn ready(&self, offset: Option<u64>) {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            // Before looking, so that nothing is missed.
            told.as_mut().enable();
            if self.is_ready(offset) {
                return;
            }
            told.await;
        }
    }

    fn is_ready(&self, offset: Option<u64>) -> bool {
        let state = self.lock();
        let has_bytes =
            |offset: u64| state.spoiled.is_some() || state.readable > offset || offset >= self.offer.info.nar_size;
        state.settled.is_some() || offset.is_some_and(has_bytes)
    }

    /// Reads from the tape at `offset`, waiting for bytes; 0 only at the end of a whole and right NAR. `None`: the path
    /// is valid by now, and the tape does not have the rest.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let tape = self.tape.get().ok_or_else(|| io::Error::other("it is not passed on while it comes in"))?;
        let nar_size = self.offer.info.nar_size;
        let mut state = self.lock();
        loop {
            // Before anything else: what a reader has not got yet may be wrong, however far behind it is.
            if let Some(why) = &state.spoiled {
                return Err(io::Error::other(why.clone()));
            }
            if state.readable > offset {
                break;
            }
            if offset >= nar_size {
                return Ok(Some(0));
            }
            match &state.settled {
                Some(Err(why)) => return Err(io::Error::other(why.clone())),
                Some(Ok(())) => return Ok(None),
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let n = usize::try_from(state.readable - offset).unwrap_or(usize::MAX).min(buffer.len());
        drop(state);
        tape.read_at(&mut buffer[..n], offset).map(Some)
    }
}

/// Whether the tape holds these bytes there.
fn same(tape: &File, at: u64, bytes: &[u8]) -> io::Result<bool> {
    let mut old = [0; COMPARE_BYTES];
    let mut at = at;
    for piece in bytes.chunks(COMPARE_BYTES) {
        tape.read_exact_at(&mut old[..piece.len()], at)?;
        if old[..piece.len()] != *piece {
            return Ok(false);
        }
        at += piece.len() as u64;
    }
    Ok(true)
}
