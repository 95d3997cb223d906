//! Chunks on their way from the source, and the reads that wait for them.
//!
//! Invariants:
//! - a chunk that several reads want is asked for once;
//! - nothing counts as here that was not compared with its name;
//! - every read is answered once: with its bytes, or with an error no later than its deadline;
//! - what readers wait for goes before what is read ahead, and that before what is only brought near;
//! - what is here waits for nothing that is not.
//!
//! What a reader waits for is looked for here first, and fetched if it is not. The source is asked by [`WORKERS`] threads,
//! which may all be waiting for others, and by [`NEAR_WORKERS`] that only look here. One more thread knows the time: it ends
//! reads that are overdue and asks again for what failed.

use crate::cache::Cache;
use crate::options::Options;
use crate::source::{Source, SourceError};
use crate::table::Shown;
use crate::tree::Piece;
use shoal_wire::mesh::manifest::ChunkRef;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Requests to the source at a time: each waits for a round trip or a disk.
pub const WORKERS: usize = 16;
/// Of them, those that also fetch what nobody waits for. The others are there for readers at once.
const PATIENT_WORKERS: usize = 4;
/// Those that never wait for anybody but this machine: enough for a disk, and for cores that unpack.
const NEAR_WORKERS: usize = 4;
/// Chunks asked for in one request, when more wait than there are workers.
const BATCH_MAX: usize = 32;
/// Chunks that are to be read ahead or brought near, at most; more are not noted. A gigabyte.
const PATIENT_MAX: usize = 16_384;
/// Reads that wait at a time. More processes than a machine has; beyond it a read fails at once.
const READS_MAX: usize = 65_536;
/// What failed is asked for again after so long, then after twice that, up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// Failures that are remembered: as many as reads that can have failed lately.
const FAILED_MAX: usize = READS_MAX;
/// Paths of which it is remembered that people were told that something of them did not come.
const TOLD_MAX: usize = 1024;
/// Paths that turned out to be lost and are still shown; more are not noted until they are read again.
const LOSSES_MAX: usize = 1024;

type Hash = [u8; 32];

/// A read got no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadFailed;

/// Takes what a read gives. Called once, by whatever thread has the last chunk.
pub type Answer = Box<dyn FnOnce(Result<&[u8], ReadFailed>) + Send>;

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counts {
    pub asked_chunks: AtomicU64,
    pub fetched_bytes: AtomicU64,
    /// Chunks whose bytes were not theirs.
    pub corrupt_chunks: AtomicU64,
    /// Reads that had to wait for the source.
    pub waited_reads: AtomicU64,
    pub failed_reads: AtomicU64,
    /// Chunks that were wanted because their like was read before.
    pub expected_chunks: AtomicU64,
}

pub struct Fetches {
    state: Mutex<State>,
    /// There is something to ask for, or all is over.
    work: Condvar,
    /// Something new is due at some time.
    timed: Condvar,
    source: Arc<dyn Source>,
    options: Options,
    pub counts: Counts,
}

struct State {
    cache: Cache,
    flights: HashMap<Hash, Flight>,
    /// What may be here.
    urgent: VecDeque<Hash>,
    /// What is not.
    far: VecDeque<Hash>,
    ahead: VecDeque<Hash>,
    near: VecDeque<(Arc<Shown>, Range<usize>)>,
    near_chunks: usize,
    /// Of the memory for chunks, what those have taken who wait for what they expect.
    expected_bytes: usize,
    /// When what failed is asked for again; the number tells apart what is due at one time.
    retries: BTreeMap<(Instant, u64), Hash>,
    next_retry: u64,
    /// Until when it is not tried again.
    failed: HashMap<Hash, Instant>,
    /// Until when nobody is told again that something of a path did not come.
    told: HashMap<Box<str>, Instant>,
    /// Who is told which paths are lost.
    losses: Option<SyncSender<Arc<Shown>>>,
    /// All reads that wait, in the order of their deadlines.
    reads: VecDeque<(Instant, Arc<Read>)>,
    is_over: bool,
}

/// A chunk that was asked for, or is to be.
struct Flight {
    chunk: ChunkRef,
    of: Arc<Shown>,
    waiting: Vec<(Arc<Read>, usize)>,
    stage: Stage,
    tries: u32,
    /// Why it did not come the last time.
    error: Option<SourceError>,
}

/// Reads of a path that were given errors.
struct Loss {
    of: Arc<Shown>,
    reads: usize,
    error: Option<SourceError>,
}

/// What a thread takes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    /// Only what needs nobody else.
    Near,
    /// Also what readers wait for.
    Prompt,
    /// Also what nobody waits for.
    Patient,
}

/// One question to the source, about one path.
enum Task {
    LookHere(Arc<Shown>, Vec<ChunkRef>),
    Fetch(Arc<Shown>, Vec<ChunkRef>),
    FetchAhead(Arc<Shown>, Vec<ChunkRef>),
    BringNear(Arc<Shown>, Range<usize>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In the queue for what nobody waits for.
    Ahead,
    Urgent,
    /// It is not here.
    Far,
    Asked,
    /// It failed, and is asked for again in a while.
    Resting,
}

/// A read that waits; empty once it was answered.
struct Read(Mutex<Option<Open>>);

struct Open {
    answer: Answer,
    pieces: Vec<Piece>,
    here: Vec<Option<Arc<Vec<u8>>>>,
    missing: usize,
}

impl Read {
    fn take(&self) -> Option<Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// One more chunk is here. The read itself, where that was the last.
    fn fill(&self, place: usize, contents: &Arc<Vec<u8>>) -> Option<Open> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = open.as_mut()?;
        let here = read.here.get_mut(place)?;
        if here.is_none() {
            *here = Some(contents.clone());
            read.missing -= 1;
        }
        if read.missing > 0 {
            return None;
        }
        open.take()
    }
}

impl Loss {
    /// For people.
    fn tell(&self) {
        let error = self.error.as_ref().map_or_else(|| "no answer".to_owned(), SourceError::to_string);
        tracing::warn!(path = &*self.of.name, error, reads = self.reads, "what was read of a path did not come");
    }
}

impl Open {
    fn end(self) {
        let mut whole = Vec::new();
        let mut pieces =
            self.pieces.iter().zip(&self.here).map(|(piece, here)| here.as_ref()?.get(piece.bytes.clone()));
        let bytes = match (pieces.next(), self.pieces.len()) {
            (Some(only), 1) => only,
            (first, _) => {
                let all = first.into_iter().chain(pieces).try_for_each(|piece| {
                    whole.extend_from_slice(piece?);
                    Some(())
                });
                all.map(|()| whole.as_slice())
            }
        };
        (self.answer)(bytes.ok_or(ReadFailed));
    }
}

impl Fetches {
    /// The fetches of one mount, and their threads, which end by [`Fetches::end`].
    pub fn start(source: Arc<dyn Source>, options: &Options) -> io::Result<(Arc<Fetches>, Vec<JoinHandle<()>>)> {
        let state = State {
            cache: Cache::new(options.cache_bytes_max),
            flights: HashMap::new(),
            urgent: VecDeque::new(),
            far: VecDeque::new(),
            ahead: VecDeque::new(),
            near: VecDeque::new(),
            near_chunks: 0,
            retries: BTreeMap::new(),
            next_retry: 0,
            failed: HashMap::new(),
            told: HashMap::new(),
            losses: None,
            reads: VecDeque::new(),
            expected_bytes: 0,
            is_over: false,
        };
        let fetches = Arc::new(Fetches {
            state: Mutex::new(state),
            work: Condvar::new(),
            timed: Condvar::new(),
            source,
            options: options.clone(),
            counts: Counts::default(),
        });
        let mut threads = Vec::new();
        for number in 0..WORKERS + NEAR_WORKERS {
            let (fetches, name) = (fetches.clone(), format!("fetch {number}"));
            let worker = match number {
                0..PATIENT_WORKERS => Worker::Patient,
                PATIENT_WORKERS..WORKERS => Worker::Prompt,
                _ => Worker::Near,
            };
            threads.push(thread::Builder::new().name(name).spawn(move || fetches.work(worker))?);
        }
        let timer = fetches.clone();
        threads.push(thread::Builder::new().name("deadlines".into()).spawn(move || timer.keep_time())?);
        Ok((fetches, threads))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads these pieces of a path. Answers at once where all is in memory, and never waits; whether the read does.
    pub fn read(&self, of: &Arc<Shown>, pieces: Vec<Piece>, answer: Answer) -> bool {
        let mut state = self.state();
        let here: Vec<_> = pieces.iter().map(|piece| state.cache.get(&piece.chunk.hash)).collect();
        let missing = here.iter().filter(|here| here.is_none()).count();
        if missing == 0 {
            drop(state);
            Open { answer, pieces, here, missing }.end();
            return false;
        }
        let now = Instant::now();
        let absent = || pieces.iter().zip(&here).enumerate().filter(|(_, (_, here))| here.is_none());
        let has_failed = absent().any(|(_, (piece, _))| state.has_failed(&piece.chunk.hash, now));
        if has_failed || !state.has_room() || state.is_over {
            drop(state);
            self.counts.failed_reads.fetch_add(1, Ordering::Relaxed);
            answer(Err(ReadFailed));
            return false;
        }
        self.counts.waited_reads.fetch_add(1, Ordering::Relaxed);
        let wanted: Vec<(usize, ChunkRef)> = absent().map(|(place, (piece, _))| (place, piece.chunk)).collect();
        let read = Arc::new(Read(Mutex::new(Some(Open { answer, pieces, here, missing }))));
        for (place, chunk) in wanted {
            state.want(of, chunk, &read, place);
        }
        let is_first = state.reads.is_empty();
        state.reads.push_back((now + self.options.read_deadline, read));
        drop(state);
        self.work.notify_all();
        if is_first {
            self.timed.notify_one();
        }
        true
    }

    /// Whether a chunk is in memory or on its way.
    pub fn are_near(&self, of: &Shown, chunks: Range<usize>) -> Vec<bool> {
        let state = self.state();
        let is_near = |hash: &Hash| state.cache.contains(hash) || state.flights.contains_key(hash);
        chunks.map(|number| of.tree.chunk(number).is_some_and(|chunk| is_near(&chunk.hash))).collect()
    }

    /// Fetches chunks of a path into memory, before anybody waits for them.
    pub fn read_ahead(&self, of: &Arc<Shown>, chunks: Range<usize>) {
        self.bring_in(of, chunks.filter_map(|number| of.tree.chunk(number)));
    }

    fn bring_in(&self, of: &Arc<Shown>, chunks: impl Iterator<Item = ChunkRef>) {
        let mut state = self.state();
        for chunk in chunks {
            let is_known = state.cache.contains(&chunk.hash) || state.flights.contains_key(&chunk.hash);
            if is_known || state.ahead.len() >= PATIENT_MAX || state.is_over {
                continue;
            }
            let flight =
                Flight { chunk, of: of.clone(), waiting: Vec::new(), stage: Stage::Ahead, tries: 0, error: None };
            state.flights.insert(chunk.hash, flight);
            state.ahead.push_back(chunk.hash);
        }
        drop(state);
        self.work.notify_all();
    }

    /// Has the source bring chunks of a path near.
    pub fn bring_near(&self, of: &Arc<Shown>, chunks: Range<usize>) {
        let mut state = self.state();
        if chunks.is_empty() || state.near_chunks + chunks.len() > PATIENT_MAX || state.is_over {
            return;
        }
        state.near_chunks += chunks.len();
        state.near.push_back((of.clone(), chunks));
        drop(state);
        self.work.notify_all();
    }

    /// Answers all reads with errors and ends the threads; those that wait for the source end when it answers.
    pub fn end(&self) {
        let reads = {
            let mut state = self.state();
            state.is_over = true;
            state.losses = None;
            std::mem::take(&mut state.reads)
        };
        self.work.notify_all();
        self.timed.notify_all();
        reads.iter().filter_map(|(_, read)| read.take()).for_each(|open| self.fail(open));
    }

    fn fail(&self, open: Open) {
        self.counts.failed_reads.fetch_add(1, Ordering::Relaxed);
        (open.answer)(Err(ReadFailed));
    }

    /// Paths that turn out to be lost, from now on and until all ends. Some of it was asked for and nobody has it.
    pub fn losses(&self) -> Receiver<Arc<Shown>> {
        let (sender, losses) = mpsc::sync_channel(LOSSES_MAX);
        let mut state = self.state();
        state.losses = Some(sender).filter(|_| !state.is_over);
        losses
    }

    fn work(&self, worker: Worker) {
        let mut state = self.state();
        while !state.is_over {
            let Some(task) = state.next_task(worker) else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            match task {
                Task::LookHere(of, batch) => {
                    self.count_asked(&batch);
                    self.look_here(&of, &batch);
                }
                Task::Fetch(of, batch) => self.ask(&of, &batch),
                Task::FetchAhead(of, batch) => {
                    self.count_asked(&batch);
                    self.ask(&of, &batch);
                }
                Task::BringNear(of, chunks) => {
                    let chunks: Vec<ChunkRef> = chunks.filter_map(|number| of.tree.chunk(number)).collect();
                    self.source.prefetch(&of.name, &chunks);
                }
            }
            state = self.state();
        }
    }

    fn count_asked(&self, batch: &[ChunkRef]) {
        self.counts.asked_chunks.fetch_add(batch.len() as u64, Ordering::Relaxed);
    }

    fn look_here(&self, of: &Arc<Shown>, batch: &[ChunkRef]) {
        let mut open = vec![true; batch.len()];
        self.source.fetch_here(&of.name, batch, &mut |place, result| {
            // What is here and cannot be read may be elsewhere.
            if result.is_ok()
                && let Some(is_open) = open.get_mut(place).filter(|is_open| **is_open)
            {
                *is_open = false;
                self.came(of, &batch[place], result);
            }
        });
        if open.contains(&true) {
            self.state().are_far(batch.iter().zip(open).filter(|(_, is_open)| *is_open).map(|(chunk, _)| chunk));
            self.work.notify_all();
        }
    }

    fn ask(&self, of: &Arc<Shown>, batch: &[ChunkRef]) {
        let mut open = vec![true; batch.len()];
        self.source.fetch(&of.name, batch, &mut |place, result| {
            if let Some(is_open) = open.get_mut(place).filter(|is_open| **is_open) {
                *is_open = false;
                self.came(of, &batch[place], result);
            }
        });
        let undelivered = batch.iter().zip(open).filter(|(_, is_open)| *is_open);
        for (chunk, _) in undelivered {
            self.came(of, chunk, Err(SourceError::Failed("the source did not deliver it".into())));
        }
    }

    /// A chunk came, or did not.
    fn came(&self, of: &Shown, chunk: &ChunkRef, result: Result<Vec<u8>, SourceError>) {
        let result = result.and_then(|contents| match ChunkRef::of(&contents) == *chunk {
            true => Ok(contents),
            false => {
                self.counts.corrupt_chunks.fetch_add(1, Ordering::Relaxed);
                Err(SourceError::Failed("its bytes are not what its name says".into()))
            }
        });
        match result {
            Ok(contents) => self.arrived(chunk, Arc::new(contents)),
            // It was of what the name meant before, and does not come back.
            Err(_) if self.is_outdated(of) => self.lost(chunk, SourceError::Missing),
            Err(error) => self.lost(chunk, error),
        }
    }

    /// Whether a name means something else by now, by what the source knows.
    pub fn is_outdated(&self, shown: &Shown) -> bool {
        self.source.content_root(&shown.name).is_some_and(|root| root != *shown.tree.content_root())
    }

    fn arrived(&self, chunk: &ChunkRef, contents: Arc<Vec<u8>>) {
        self.counts.fetched_bytes.fetch_add(contents.len() as u64, Ordering::Relaxed);
        let flight = {
            let mut state = self.state();
            state.cache.put(chunk.hash, contents.clone());
            state.failed.remove(&chunk.hash);
            state.flights.remove(&chunk.hash)
        };
        let waiting = flight.map(|flight| flight.waiting).unwrap_or_default();
        waiting.iter().filter_map(|(read, place)| read.fill(*place, &contents)).for_each(Open::end);
    }

    fn lost(&self, chunk: &ChunkRef, error: SourceError) {
        let mut state = self.state();
        let Some(flight) = state.flights.get_mut(&chunk.hash) else { return };
        flight.waiting.retain(|(read, _)| read.is_open());
        let is_wanted = !flight.waiting.is_empty();
        tracing::debug!(path = &*flight.of.name, %error, tries = flight.tries, is_wanted, "a chunk did not come");
        let is_missing = error == SourceError::Missing;
        flight.error = Some(error);
        if is_wanted && !is_missing {
            flight.stage = Stage::Resting;
            let pause = RETRY_FIRST.saturating_mul(1 << flight.tries.min(16)).min(RETRY_LONGEST);
            flight.tries += 1;
            let number = state.next_retry;
            state.next_retry += 1;
            state.retries.insert((Instant::now() + pause, number), chunk.hash);
            drop(state);
            return self.timed.notify_one();
        }
        let Some(flight) = state.flights.remove(&chunk.hash) else { return };
        let mut loss = None;
        if is_wanted {
            let (now, memory) = (Instant::now(), self.options.failure_memory);
            state.remember(chunk.hash, now + memory);
            let reads = flight.waiting.len();
            loss = Some(Loss { of: flight.of.clone(), reads, error: flight.error })
                .filter(|loss| state.is_news(&loss.of.name, now, memory));
            if let Some(losses) = &state.losses {
                // One that finds no room is noted when it is read again.
                let _ = losses.try_send(flight.of);
            }
        }
        drop(state);
        loss.iter().for_each(Loss::tell);
        flight.waiting.iter().filter_map(|(read, _)| read.take()).for_each(|open| self.fail(open));
    }

    fn keep_time(&self) {
        let mut state = self.state();
        while !state.is_over {
            let now = Instant::now();
            let (overdue, losses) = state.overdue(now, self.options.failure_memory);
            let is_due = state.ask_again(now);
            let next = state.next_time();
            if is_due {
                self.work.notify_all();
            }
            if !overdue.is_empty() {
                drop(state);
                losses.iter().for_each(Loss::tell);
                overdue.into_iter().for_each(|open| self.fail(open));
                state = self.state();
                continue;
            }
            state = match next {
                Some(at) => {
                    let pause = at.saturating_duration_since(now);
                    self.timed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.timed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

mod expected;
mod queues;

#[cfg(test)]
#[path = "fetches_tests.rs"]
mod tests;
