//! Chunks on their way from the source, and the reads that wait for them.
//!
//! Invariants:
//! - a chunk that several reads want is asked for once;
//! - nothing counts as here that was not compared with its name;
//! - every read is answered once: with its bytes, or with an error no later than its deadline;
//! - what readers wait for goes before what is read ahead, and that before what is only brought near.
//!
//! The source is asked by [`WORKERS`] threads. One more thread knows the time: it ends reads that are overdue and asks
//! again for what failed.

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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Requests to the source at a time: each waits for a round trip or a disk.
pub const WORKERS: usize = 16;
/// Of them, those that also fetch what nobody waits for. The others are there for readers at once.
const PATIENT_WORKERS: usize = 4;
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
    urgent: VecDeque<Hash>,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In the queue for what nobody waits for.
    Ahead,
    Urgent,
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
            ahead: VecDeque::new(),
            near: VecDeque::new(),
            near_chunks: 0,
            retries: BTreeMap::new(),
            next_retry: 0,
            failed: HashMap::new(),
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
        for number in 0..WORKERS {
            let (worker, name) = (fetches.clone(), format!("fetch {number}"));
            let is_patient = number < PATIENT_WORKERS;
            threads.push(thread::Builder::new().name(name).spawn(move || worker.work(is_patient))?);
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
            let flight = Flight { chunk, of: of.clone(), waiting: Vec::new(), stage: Stage::Ahead, tries: 0 };
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

    fn work(&self, is_patient: bool) {
        let mut state = self.state();
        while !state.is_over {
            if let Some((of, batch)) = state.next_batch(is_patient) {
                drop(state);
                self.ask(&of, &batch);
                state = self.state();
            } else if let Some((of, chunks)) = state.next_near(is_patient) {
                drop(state);
                let chunks: Vec<ChunkRef> = chunks.filter_map(|number| of.tree.chunk(number)).collect();
                self.source.prefetch(&of.name, &chunks);
                state = self.state();
            } else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn ask(&self, of: &Arc<Shown>, batch: &[ChunkRef]) {
        self.counts.asked_chunks.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let mut open = vec![true; batch.len()];
        self.source.fetch(&of.name, batch, &mut |place, result| {
            if let Some(is_open) = open.get_mut(place).filter(|is_open| **is_open) {
                *is_open = false;
                self.came(&batch[place], result);
            }
        });
        let undelivered = batch.iter().zip(open).filter(|(_, is_open)| *is_open);
        for (chunk, _) in undelivered {
            self.came(chunk, Err(SourceError::Failed("the source did not deliver it".into())));
        }
    }

    /// A chunk came, or did not.
    fn came(&self, chunk: &ChunkRef, result: Result<Vec<u8>, SourceError>) {
        let result = result.and_then(|contents| match ChunkRef::of(&contents) == *chunk {
            true => Ok(contents),
            false => {
                self.counts.corrupt_chunks.fetch_add(1, Ordering::Relaxed);
                Err(SourceError::Failed("its bytes are not what its name says".into()))
            }
        });
        match result {
            Ok(contents) => self.arrived(chunk, Arc::new(contents)),
            Err(error) => self.lost(chunk, &error),
        }
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

    fn lost(&self, chunk: &ChunkRef, error: &SourceError) {
        let mut state = self.state();
        let Some(flight) = state.flights.get_mut(&chunk.hash) else { return };
        flight.waiting.retain(|(read, _)| read.is_open());
        let is_wanted = !flight.waiting.is_empty();
        tracing::debug!(path = &*flight.of.name, %error, tries = flight.tries, is_wanted, "a chunk did not come");
        if is_wanted && *error != SourceError::Missing {
            flight.stage = Stage::Resting;
            let pause = RETRY_FIRST.saturating_mul(1 << flight.tries.min(16)).min(RETRY_LONGEST);
            flight.tries += 1;
            let number = state.next_retry;
            state.next_retry += 1;
            state.retries.insert((Instant::now() + pause, number), chunk.hash);
            drop(state);
            return self.timed.notify_one();
        }
        let flight = state.flights.remove(&chunk.hash);
        if is_wanted {
            let until = Instant::now() + self.options.failure_memory;
            state.remember(chunk.hash, until);
        }
        drop(state);
        let waiting = flight.map(|flight| flight.waiting).unwrap_or_default();
        waiting.iter().filter_map(|(read, _)| read.take()).for_each(|open| self.fail(open));
    }

    fn keep_time(&self) {
        let mut state = self.state();
        while !state.is_over {
            let now = Instant::now();
            let overdue = state.overdue(now, self.options.failure_memory);
            let is_due = state.ask_again(now);
            let next = state.next_time();
            if is_due {
                self.work.notify_all();
            }
            if !overdue.is_empty() {
                drop(state);
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

impl State {
    fn has_failed(&self, hash: &Hash, now: Instant) -> bool {
        self.failed.get(hash).is_some_and(|until| *until > now)
    }

    fn remember(&mut self, hash: Hash, until: Instant) {
        if self.failed.len() >= FAILED_MAX {
            let now = Instant::now();
            self.failed.retain(|_, until| *until > now);
        }
        if self.failed.len() < FAILED_MAX {
            self.failed.insert(hash, until);
        }
    }

    /// Whether one more read may wait. Those that were answered go, which are mostly the oldest.
    fn has_room(&mut self) -> bool {
        while self.reads.front().is_some_and(|(_, read)| !read.is_open()) {
            self.reads.pop_front();
        }
        if self.reads.len() >= READS_MAX {
            self.reads.retain(|(_, read)| read.is_open());
        }
        self.reads.len() < READS_MAX
    }

    /// A read waits for a chunk.
    fn want(&mut self, of: &Arc<Shown>, chunk: ChunkRef, read: &Arc<Read>, place: usize) {
        let flight = self.flights.entry(chunk.hash).or_insert_with(|| Flight {
            chunk,
            of: of.clone(),
            waiting: Vec::new(),
            stage: Stage::Ahead,
            tries: 0,
        });
        flight.waiting.push((read.clone(), place));
        if flight.stage == Stage::Ahead {
            // It may stay in the other queue too, where it is passed over.
            flight.stage = Stage::Urgent;
            self.urgent.push_back(chunk.hash);
        }
    }

    /// What to ask the source for next, all of one path.
    fn next_batch(&mut self, is_patient: bool) -> Option<(Arc<Shown>, Vec<ChunkRef>)> {
        let State { flights, urgent, ahead, .. } = self;
        let batch = take_batch(flights, urgent, Stage::Urgent);
        batch.or_else(|| if is_patient { take_batch(flights, ahead, Stage::Ahead) } else { None })
    }

    fn next_near(&mut self, is_patient: bool) -> Option<(Arc<Shown>, Range<usize>)> {
        let (of, chunks) = if is_patient { self.near.pop_front() } else { None }?;
        self.near_chunks -= chunks.len();
        Some((of, chunks))
    }

    /// Reads whose time is over. What they lacked is remembered, and not asked for again unless it is already.
    fn overdue(&mut self, now: Instant, memory: Duration) -> Vec<Open> {
        let mut overdue = Vec::new();
        while self.reads.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, read)) = self.reads.pop_front()
        {
            let Some(open) = read.take() else { continue };
            let lacking = open.pieces.iter().zip(&open.here).filter(|(_, here)| here.is_none());
            for (piece, _) in lacking {
                self.remember(piece.chunk.hash, now + memory);
            }
            overdue.push(open);
        }
        overdue
    }

    /// Queues what rested long enough; whether there was any.
    fn ask_again(&mut self, now: Instant) -> bool {
        let mut is_due = false;
        while let Some(entry) = self.retries.first_entry()
            && entry.key().0 <= now
        {
            let hash = entry.remove();
            let Some(flight) = self.flights.get_mut(&hash) else { continue };
            flight.waiting.retain(|(read, _)| read.is_open());
            if flight.waiting.is_empty() {
                self.flights.remove(&hash);
                continue;
            }
            flight.stage = Stage::Urgent;
            self.urgent.push_back(hash);
            is_due = true;
        }
        is_due
    }

    fn next_time(&self) -> Option<Instant> {
        let retry = self.retries.first_key_value().map(|((at, _), _)| *at);
        let read = self.reads.front().map(|(at, _)| *at);
        retry.into_iter().chain(read).min()
    }
}

/// Takes chunks of one path out of a queue: a share of what waits, so that all workers have some.
fn take_batch(
    flights: &mut HashMap<Hash, Flight>,
    queue: &mut VecDeque<Hash>,
    stage: Stage,
) -> Option<(Arc<Shown>, Vec<ChunkRef>)> {
    let share = queue.len().div_ceil(WORKERS).clamp(1, BATCH_MAX);
    let mut batch: Option<(Arc<Shown>, Vec<ChunkRef>)> = None;
    while let Some(hash) = queue.front() {
        match flights.get_mut(hash).filter(|flight| flight.stage == stage) {
            None => {}
            Some(flight) => match &mut batch {
                None => {
                    flight.stage = Stage::Asked;
                    batch = Some((flight.of.clone(), vec![flight.chunk]));
                }
                Some((of, chunks)) if Arc::ptr_eq(of, &flight.of) && chunks.len() < share => {
                    flight.stage = Stage::Asked;
                    chunks.push(flight.chunk);
                }
                Some(_) => break,
            },
        }
        queue.pop_front();
    }
    batch
}

mod expected;

#[cfg(test)]
#[path = "fetches_tests.rs"]
mod tests;
