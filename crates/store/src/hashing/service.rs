//! The threads that hash, and the blocks that wait for them.
//!
//! With wide vector units sixteen NARs are hashed at the price of a few (see [`super::lanes`]), but
//! only if their blocks are there at the same time. So while enough streams are open to gain by it,
//! a thread waits until blocks of all of them (or a full width) are there, until nobody can go on
//! without it, or for [`GATHER`] at most. Invariants: blocks of a stream are hashed in order, by one
//! thread at a time; a stream has at most [`QUEUE_MAX`] blocks waiting.

use super::BLOCK_LEN;
use super::lanes::{self, Width};
use super::state::State;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Blocks of one NAR that may wait: enough to ride out a time slice of a busy machine.
const QUEUE_MAX: usize = 8;

/// Longest that a block waits for company: well below the time that hashing a full queue takes.
const GATHER: Duration = Duration::from_millis(1);

/// Threads at most. With sixteen lanes each that hashes faster than any network brings bytes.
const THREADS_MAX: usize = 8;

/// Empty blocks kept for the next stream.
const SPARE_MAX: usize = 64;

pub type StreamId = u64;

pub struct HashService {
    shared: Arc<Shared>,
    threads_max: usize,
}

struct Shared {
    board: Mutex<Board>,
    work: Condvar,
    progress: Condvar,
    width: Option<Width>,
}

#[derive(Default)]
struct Board {
    streams: HashMap<StreamId, Stream>,
    /// Streams with a block waiting and no thread at it, in the order they became so.
    ready: VecDeque<StreamId>,
    /// Owners that wait for progress.
    blocked: usize,
    next_id: StreamId,
    spare: Vec<Vec<u8>>,
    threads: usize,
    idle: usize,
    gathering_since: Option<Instant>,
    stop: bool,
}

struct Stream {
    state: State,
    queue: VecDeque<Vec<u8>>,
    busy: bool,
}

/// What a thread does next.
enum Turn {
    Hash(Vec<(StreamId, State, Vec<u8>)>),
    Wait(Option<Duration>),
    Stop,
}

impl HashService {
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let shared =
            Shared { board: Mutex::default(), work: Condvar::new(), progress: Condvar::new(), width: lanes::detect() };
        HashService { shared: Arc::new(shared), threads_max: cores.min(THREADS_MAX) }
    }

    /// Opens a stream.
    pub fn begin(&self) -> StreamId {
        let mut board = self.shared.board();
        let id = board.next_id;
        board.next_id += 1;
        board.streams.insert(id, Stream { state: State::default(), queue: VecDeque::new(), busy: false });
        id
    }

    /// Queues a full block; waits while the stream has [`QUEUE_MAX`]. Returns an empty one.
    pub fn submit(&self, id: StreamId, block: Vec<u8>) -> Vec<u8> {
        debug_assert_eq!(block.len(), BLOCK_LEN);
        let has_room = |stream: &Stream| stream.queue.len() < QUEUE_MAX;
        let mut board = self.shared.wait_for(self.shared.board(), id, has_room);
        if let Some(stream) = board.streams.get_mut(&id) {
            let was_empty = stream.queue.is_empty() && !stream.busy;
            stream.queue.push_back(block);
            if was_empty {
                board.ready.push_back(id);
            }
        }
        let spare = board.spare.pop();
        if board.idle == 0 && board.threads < self.threads_max {
            board.threads += 1;
            self.spawn(&mut board);
        }
        let is_awaited = board.idle > 0;
        drop(board);
        // A wake-up is a system call, whether somebody sleeps or not.
        if is_awaited {
            self.shared.work.notify_one();
        }
        spare.unwrap_or_else(|| Vec::with_capacity(BLOCK_LEN))
    }

    /// Closes a stream when all its blocks are hashed.
    pub fn end(&self, id: StreamId) -> State {
        let drained = |stream: &Stream| stream.queue.is_empty() && !stream.busy;
        let mut board = self.shared.wait_for(self.shared.board(), id, drained);
        let state = board.streams.remove(&id).map(|stream| stream.state);
        if board.streams.is_empty() {
            board.spare.truncate(QUEUE_MAX);
        }
        drop(board);
        // One stream less may be what a gathering thread waited for.
        self.shared.work.notify_one();
        state.unwrap_or_default()
    }

    fn spawn(&self, board: &mut Board) {
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new().name("shoal-sha256".into()).spawn(move || shared.run());
        if spawned.is_err() {
            board.threads -= 1;
        }
    }
}

impl Drop for HashService {
    fn drop(&mut self) {
        self.shared.board().stop = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(
        &'a self,
        mut board: MutexGuard<'a, Board>,
        id: StreamId,
        until: impl Fn(&Stream) -> bool,
    ) -> MutexGuard<'a, Board> {
        if board.streams.get(&id).is_none_or(&until) {
            return board;
        }
        board.blocked += 1;
        self.work.notify_one();
        while !board.streams.get(&id).is_none_or(&until) {
            if board.threads == 0 {
                // No thread could be started: the owner does the work.
                board = self.hash_here(board);
                continue;
            }
            board = self.progress.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
        board.blocked -= 1;
        board
    }

    fn hash_here<'a>(&'a self, mut board: MutexGuard<'a, Board>) -> MutexGuard<'a, Board> {
        let batch = board.take(1);
        drop(board);
        self.hash(batch)
    }

    fn run(&self) {
        let mut board = self.board();
        loop {
            match board.turn(self.width) {
                Turn::Stop => return,
                Turn::Hash(batch) => {
                    drop(board);
                    board = self.hash(batch);
                }
                Turn::Wait(limit) => {
                    board.idle += 1;
                    board = match limit {
                        None => self.work.wait(board).unwrap_or_else(PoisonError::into_inner),
                        Some(limit) => self.work.wait_timeout(board, limit).unwrap_or_else(PoisonError::into_inner).0,
                    };
                    board.idle -= 1;
                }
            }
        }
    }

    /// Hashes one block of each stream and puts the states back.
    fn hash(&self, mut batch: Vec<(StreamId, State, Vec<u8>)>) -> MutexGuard<'_, Board> {
        match self.width {
            Some(width) if batch.len() >= width.worth_it() => {
                let (mut states, blocks): (Vec<State>, Vec<&[u8]>) =
                    batch.iter().map(|(_, state, block)| (*state, block.as_slice())).unzip();
                lanes::compress(width, &mut states, &blocks);
                batch.iter_mut().zip(states).for_each(|((_, to, _), state)| *to = state);
            }
            _ => batch.iter_mut().for_each(|(_, state, block)| state.compress(block)),
        }
        let mut board = self.board();
        for (id, state, mut block) in batch {
            if let Some(stream) = board.streams.get_mut(&id) {
                stream.state = state;
                stream.busy = false;
                if !stream.queue.is_empty() {
                    board.ready.push_back(id);
                }
            }
            if board.spare.len() < SPARE_MAX {
                block.clear();
                board.spare.push(block);
            }
        }
        if board.blocked > 0 {
            self.progress.notify_all();
        }
        board
    }
}

impl Board {
    fn turn(&mut self, width: Option<Width>) -> Turn {
        if self.ready.is_empty() {
            self.gathering_since = None;
            return if self.stop { Turn::Stop } else { Turn::Wait(None) };
        }
        let Some(width) = width.filter(|width| self.streams.len() >= width.worth_it()) else {
            return Turn::Hash(self.take(1));
        };
        let wanted = width.lanes().min(self.streams.len());
        // Streams that a thread is at will move their owners on; all others wait for us.
        let at_work = self.streams.values().filter(|stream| stream.busy).count();
        let all_wait = self.blocked + at_work >= self.streams.len() && self.blocked > 0;
        let since = *self.gathering_since.get_or_insert_with(Instant::now);
        let waited = since.elapsed();
        if self.ready.len() < wanted && !all_wait && waited < GATHER {
            return Turn::Wait(Some(GATHER - waited));
        }
        self.gathering_since = None;
        match self.ready.len() >= width.worth_it() {
            true => Turn::Hash(self.take(width.lanes())),
            false => Turn::Hash(self.take(1)),
        }
    }

    fn take(&mut self, most: usize) -> Vec<(StreamId, State, Vec<u8>)> {
        let n = self.ready.len().min(most);
        let mut batch = Vec::with_capacity(n);
        for id in self.ready.drain(..n) {
            if let Some(stream) = self.streams.get_mut(&id)
                && let Some(block) = stream.queue.pop_front()
            {
                stream.busy = true;
                batch.push((id, stream.state, block));
            }
        }
        batch
    }
}
