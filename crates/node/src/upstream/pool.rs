//! Threads that wait for a network: started when there is work, gone when there is none for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Without work for so long a thread ends.
const IDLE: Duration = Duration::from_secs(10);
/// They decompress and hash, and nothing on them recurses.
const STACK_BYTES: usize = 1 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// At most so many threads, and so many jobs that wait for one.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    name: &'static str,
    threads_max: usize,
    queue_max: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    pub fn new(name: &'static str, threads_max: usize, queue_max: usize) -> Pool {
        Pool(Arc::new(Shared { name, threads_max, queue_max, state: Mutex::default(), work: Condvar::new() }))
    }

    /// False where the queue is full, or no thread could be started.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let mut state = self.0.lock();
        if state.queue.len() >= self.0.queue_max {
            return false;
        }
        if state.idle <= state.queue.len() && state.threads < self.0.threads_max {
            let shared = self.0.clone();
            let thread = std::thread::Builder::new().name(self.0.name.into()).stack_size(STACK_BYTES);
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    tracing::warn!(%error, "cannot start a thread to ask upstream caches");
                    return false;
                }
                Err(_) => {}
            }
        }
        state.queue.push_back(Box::new(job));
        drop(state);
        self.0.work.notify_one();
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (woken, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}
