//! The threads that pack blocks, shared by all ingests of a store.
//!
//! Blocks wait in one queue, which decides how much time a chunk gets: while it is short, whoever
//! brings bytes is slower than the threads, and chunks are compressed; when it is half full, the
//! threads are what everybody waits for, and chunks are stored in haste. Whoever brings a block to a
//! full queue packs the oldest one itself. Invariants: at most `queue_max` blocks wait; nobody waits
//! for room; a thread never waits for an ingest; an idle store has no threads.

use super::block::Block;
use super::packer::{Packer, Target};
use super::packing::{Tally, Ticket};
use crate::frame::Effort;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Threads at most: sixteen compress faster than any network brings bytes, and each takes 2 MiB.
const THREADS_MAX: usize = 16;

/// Blocks a thread that may wait. Half of them are a few milliseconds of compressing, which is what
/// the end of an ingest may have to wait for.
const QUEUE_PER_THREAD: usize = 4;

/// Niceness of the threads: what they do can be done in haste, what SHA-256 does cannot, and both want
/// all cores. Who starves them packs instead of them; what they have begun must not wait for long, which
/// is why it is not more.
const NICE: i32 = 10;

/// How long a thread without work stays.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// A block to be packed. Fields are dropped in this order: when the ticket is, nothing holds the store.
pub struct Job {
    pub block: Block,
    pub target: Arc<Target>,
    pub ticket: Ticket,
}

pub struct PackerPool {
    shared: Arc<Shared>,
}

struct Shared {
    level: i32,
    threads_max: usize,
    board: Mutex<Board>,
    work: Condvar,
    /// Blocks that wait, to be read without the lock.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Board {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    spare: Vec<Block>,
    stop: bool,
}

impl Job {
    /// Packs the block; returns it to be filled again.
    pub fn run(self, packer: &mut Option<Packer>, level: i32, effort: impl Fn() -> Effort) -> Block {
        // Dropped in reverse if packing panics.
        let Job { ticket, mut block, target } = self;
        let packed = Packer::ready(packer, level).and_then(|packer| packer.pack(&target, &block, effort));
        drop(target);
        ticket.settle(packed);
        block.clear();
        block
    }
}

impl PackerPool {
    /// `level` is zstd's.
    pub fn new(level: i32) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        PackerPool {
            shared: Arc::new(Shared {
                level,
                threads_max: cores.min(THREADS_MAX),
                board: Mutex::default(),
                work: Condvar::new(),
                waiting: AtomicUsize::new(0),
            }),
        }
    }

    pub fn level(&self) -> i32 {
        self.shared.level
    }

    /// Queues a block and returns an empty one. If the queue was full, also the block that waited
    /// longest, which the caller has to pack, in haste.
    pub fn submit(&self, job: Job) -> (Block, Option<Job>) {
        let mut board = self.shared.board();
        board.jobs.push_back(job);
        let overflow = match board.jobs.len() > self.shared.queue_max() {
            true => board.jobs.pop_front(),
            false => None,
        };
        self.shared.note(&board);
        if board.jobs.len() > board.idle && board.threads < self.shared.threads_max {
            board.threads += 1;
            self.spawn(&mut board);
        }
        let block = board.spare.pop().unwrap_or_default();
        let is_awaited = board.idle > 0;
        drop(board);
        if is_awaited {
            self.shared.work.notify_one();
        }
        (block, overflow)
    }

    /// Takes back a block that still waits.
    pub fn withdraw(&self, of: &Arc<Tally>) -> Option<Job> {
        let mut board = self.shared.board();
        let at = board.jobs.iter().position(|job| job.ticket.is_of(of))?;
        let job = board.jobs.remove(at);
        self.shared.note(&board);
        job
    }

    /// What a chunk is worth now.
    pub fn effort(&self) -> Effort {
        self.shared.effort()
    }

    fn spawn(&self, board: &mut Board) {
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new().name("shoal-pack".into()).spawn(move || {
            let _leave = Leave(&shared);
            // Of this thread alone, on Linux. Without it everything works, only slower.
            let _ = rustix::process::setpriority_process(None, NICE);
            shared.run();
        });
        // Without threads the queue overflows to those who fill it, and they empty it at their end.
        if spawned.is_err() {
            board.threads -= 1;
        }
    }
}

impl Drop for PackerPool {
    fn drop(&mut self) {
        self.shared.board().stop = true;
        self.shared.work.notify_all();
    }
}

/// Counts a thread out, however it ends.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut board = self.0.board();
        board.threads -= 1;
        if board.threads == 0 {
            board.spare.clear();
        }
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue_max(&self) -> usize {
        self.threads_max * QUEUE_PER_THREAD
    }

    fn note(&self, board: &Board) {
        self.waiting.store(board.jobs.len(), Ordering::Relaxed);
    }

    fn effort(&self) -> Effort {
        match self.waiting.load(Ordering::Relaxed) >= self.queue_max() / 2 {
            true => Effort::Haste,
            false => Effort::Level,
        }
    }

    fn run(&self) {
        let mut packer = None;
        let mut board = self.board();
        loop {
            if let Some(job) = board.jobs.pop_front() {
                self.note(&board);
                drop(board);
                let block = job.run(&mut packer, self.level, || self.effort());
                board = self.board();
                if board.spare.len() < self.queue_max() {
                    board.spare.push(block);
                }
                continue;
            }
            if board.stop {
                return;
            }
            board.idle += 1;
            let (after, waited) = self.work.wait_timeout(board, IDLE_TIME).unwrap_or_else(PoisonError::into_inner);
            board = after;
            board.idle -= 1;
            if waited.timed_out() && board.jobs.is_empty() {
                return;
            }
        }
    }
}
