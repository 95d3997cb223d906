//! What workers do next, and what is due.

use super::{
    BATCH_MAX, FAILED_MAX, Flight, Hash, Loss, Open, READS_MAX, Read, Stage, State, TOLD_MAX, Task, WORKERS, Worker,
};
use crate::table::Shown;
use shoal_wire::mesh::manifest::ChunkRef;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl State {
    pub fn has_failed(&self, hash: &Hash, now: Instant) -> bool {
        self.failed.get(hash).is_some_and(|until| *until > now)
    }

    pub fn remember(&mut self, hash: Hash, until: Instant) {
        if self.failed.len() >= FAILED_MAX {
            let now = Instant::now();
            self.failed.retain(|_, until| *until > now);
        }
        if self.failed.len() < FAILED_MAX {
            self.failed.insert(hash, until);
        }
    }

    /// Whether one more read may wait. Those that were answered go, which are mostly the oldest.
    pub fn has_room(&mut self) -> bool {
        while self.reads.front().is_some_and(|(_, read)| !read.is_open()) {
            self.reads.pop_front();
        }
        if self.reads.len() >= READS_MAX {
            self.reads.retain(|(_, read)| read.is_open());
        }
        self.reads.len() < READS_MAX
    }

    /// A read waits for a chunk.
    pub fn want(&mut self, of: &Arc<Shown>, chunk: ChunkRef, read: &Arc<Read>, place: usize) {
        let flight = self.flights.entry(chunk.hash).or_insert_with(|| Flight {
            chunk,
            of: of.clone(),
            waiting: Vec::new(),
            stage: Stage::Ahead,
            tries: 0,
            error: None,
        });
        flight.waiting.push((read.clone(), place));
        if flight.stage == Stage::Ahead {
            // It may stay in the other queue too, where it is passed over.
            flight.stage = Stage::Urgent;
            self.urgent.push_back(chunk.hash);
        }
    }

    /// What a worker does next. What may be here goes first, since that takes no time.
    pub fn next_task(&mut self, worker: Worker) -> Option<Task> {
        let State { flights, urgent, far, ahead, .. } = self;
        if let Some((of, batch)) = take_batch(flights, urgent, Stage::Urgent) {
            return Some(Task::LookHere(of, batch));
        }
        if worker == Worker::Near {
            return None;
        }
        if let Some((of, batch)) = take_batch(flights, far, Stage::Far) {
            return Some(Task::Fetch(of, batch));
        }
        if worker != Worker::Patient {
            return None;
        }
        if let Some((of, batch)) = take_batch(flights, ahead, Stage::Ahead) {
            return Some(Task::FetchAhead(of, batch));
        }
        let (of, chunks) = self.near.pop_front()?;
        self.near_chunks -= chunks.len();
        Some(Task::BringNear(of, chunks))
    }

    /// Chunks that are not here: they are fetched.
    pub fn are_far<'a>(&mut self, chunks: impl Iterator<Item = &'a ChunkRef>) {
        for chunk in chunks {
            if let Some(flight) = self.flights.get_mut(&chunk.hash).filter(|flight| flight.stage == Stage::Asked) {
                flight.stage = Stage::Far;
                self.far.push_back(chunk.hash);
            }
        }
    }

    /// Whether people are to be told now that something of a path did not come.
    pub fn is_news(&mut self, name: &str, now: Instant, memory: Duration) -> bool {
        if self.told.get(name).is_some_and(|until| *until > now) {
            return false;
        }
        if self.told.len() >= TOLD_MAX {
            self.told.retain(|_, until| *until > now);
        }
        if self.told.len() < TOLD_MAX {
            self.told.insert(name.into(), now + memory);
        }
        true
    }

    /// Reads whose time is over, and of what. What they lacked is remembered, and not asked for again unless it is already.
    pub fn overdue(&mut self, now: Instant, memory: Duration) -> (Vec<Open>, Vec<Loss>) {
        let mut overdue = Vec::new();
        let mut losses: Vec<Loss> = Vec::new();
        while self.reads.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, read)) = self.reads.pop_front()
        {
            let Some(open) = read.take() else { continue };
            let lacking = open.pieces.iter().zip(&open.here).filter(|(_, here)| here.is_none());
            let mut lacking = lacking.map(|(piece, _)| piece.chunk.hash).peekable();
            if let Some(flight) = lacking.peek().and_then(|hash| self.flights.get(hash)) {
                match losses.iter_mut().find(|loss| Arc::ptr_eq(&loss.of, &flight.of)) {
                    Some(loss) => loss.reads += 1,
                    None => losses.push(Loss { of: flight.of.clone(), reads: 1, error: flight.error.clone() }),
                }
            }
            lacking.for_each(|hash| self.remember(hash, now + memory));
            overdue.push(open);
        }
        losses.retain(|loss| self.is_news(&loss.of.name, now, memory));
        (overdue, losses)
    }

    /// Queues what rested long enough; whether there was any.
    pub fn ask_again(&mut self, now: Instant) -> bool {
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

    pub fn next_time(&self) -> Option<Instant> {
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
