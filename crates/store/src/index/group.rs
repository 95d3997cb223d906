//! Group commit: concurrent writers share one sync of the segments and one transaction.
//!
//! A writer queues its job. The first that finds nobody leading takes all that is queued, syncs,
//! runs the jobs in one transaction, commits, tells each its outcome, and steps down; jobs queued
//! meanwhile are the next group. A lone writer pays no hand-over to another thread.
//!
//! A job must not write before it has decided that it will succeed: what it rejects it reports by a
//! value of its own, and the `Err` of one job undoes its whole group.

use super::Index;
use super::tables::{SEGMENTS, SegmentRow};
use crate::error::{Error, Result};
use crate::segment::Segments;
use redb::{ReadableTable, WriteTransaction};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs in one transaction: beyond this the last to be served waits longer than it saves.
const GROUP_MAX: usize = 512;

type Job = Box<dyn FnOnce(&WriteTransaction) -> Result<()> + Send>;

struct Waiting {
    job: Job,
    /// Whether what the job publishes lies in segments.
    needs_sync: bool,
    outcome: Arc<Mutex<Option<Result<()>>>>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    leading: bool,
}

/// The way to write the index.
pub struct Writer {
    index: Arc<Index>,
    segments: Arc<Segments>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Writer {
    pub fn new(index: Arc<Index>, segments: Arc<Segments>) -> Self {
        Writer { index, segments, queue: Mutex::default(), changed: Condvar::new() }
    }

    /// Runs `job` in a transaction and returns when it is durable. With `needs_sync` what was
    /// appended to segments before the call is durable first.
    pub fn write<T: Send + 'static>(
        &self,
        needs_sync: bool,
        job: impl FnOnce(&WriteTransaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let value = Arc::new(Mutex::new(None));
        let outcome = Arc::new(Mutex::new(None));
        let job = {
            let value = value.clone();
            Box::new(move |txn: &WriteTransaction| {
                *lock(&value) = Some(job(txn)?);
                Ok(())
            })
        };
        let mut queue = self.queue();
        queue.waiting.push(Waiting { job, needs_sync, outcome: outcome.clone() });
        loop {
            if let Some(outcome) = lock(&outcome).take() {
                outcome?;
                return lock(&value).take().ok_or_else(|| Error::Stopped("a write was lost".into()));
            }
            if queue.leading {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.leading = true;
            let taken = queue.waiting.len().min(GROUP_MAX);
            let group: Vec<Waiting> = queue.waiting.drain(..taken).collect();
            drop(queue);
            self.lead(group);
            queue = self.queue();
        }
    }

    fn lead(&self, group: Vec<Waiting>) {
        let _led = Led(self);
        let needs_sync = group.iter().any(|waiting| waiting.needs_sync);
        let (jobs, outcomes): (Vec<Job>, Vec<_>) = group.into_iter().map(|w| (w.job, w.outcome)).unzip();
        let _unwound = Unwound(&outcomes);
        let outcome = self.commit(jobs, needs_sync);
        for slot in &outcomes {
            *lock(slot) = Some(outcome.clone());
        }
    }

    fn commit(&self, jobs: Vec<Job>, needs_sync: bool) -> Result<()> {
        let lengths = match needs_sync {
            true => self.segments.sync()?,
            false => Vec::new(),
        };
        self.index.transact(|txn| {
            for job in jobs {
                job(txn)?;
            }
            let mut segments = txn.open_table(SEGMENTS)?;
            for &(id, committed) in &lengths {
                let row = segments.get(id)?.map(|row| SegmentRow::decode(row.value()));
                let row = SegmentRow { committed, ..row.unwrap_or_default() };
                segments.insert(id, &row.encode())?;
            }
            Ok(())
        })?;
        self.segments.committed(&lengths);
        Ok(())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

/// Steps down as leader, also when a job panics.
struct Led<'a>(&'a Writer);

impl Drop for Led<'_> {
    fn drop(&mut self) {
        self.0.queue().leading = false;
        self.0.changed.notify_all();
    }
}

/// Gives an error to those whose job's group was lost to a panic.
struct Unwound<'a>(&'a [Arc<Mutex<Option<Result<()>>>>]);

impl Drop for Unwound<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for slot in self.0 {
                *lock(slot) = Some(Err(Error::Stopped("a write panicked".into())));
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
