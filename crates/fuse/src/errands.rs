//! Threads that wait for a disk in place of those that answer the kernel.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Enough for a disk to order what it is asked.
const WORKERS: usize = 4;
/// Beyond so many that wait, an errand is dropped, which answers it with an error.
const WAITING_MAX: usize = 16_384;

type Errand = Box<dyn FnOnce() + Send>;

/// Ends when [`Errands::end`] is called; what waits then is dropped.
pub struct Errands {
    sender: Mutex<Option<SyncSender<Errand>>>,
    /// Held by who ends it: whoever pauses waits at the other end.
    life: Mutex<Option<mpsc::Sender<()>>>,
    /// A channel gives out what was sent before its end.
    is_over: Arc<AtomicBool>,
}

/// Pauses that are over when all is.
pub struct Pause(Receiver<()>);

impl Errands {
    pub fn start() -> io::Result<(Errands, Pause, Vec<JoinHandle<()>>)> {
        let (sender, errands) = mpsc::sync_channel::<Errand>(WAITING_MAX);
        let errands = Arc::new(Mutex::new(errands));
        let is_over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for number in 0..WORKERS {
            let (errands, is_over) = (errands.clone(), is_over.clone());
            let work = move || {
                while let Some(errand) = next(&errands) {
                    // Dropped otherwise, like one that found no room.
                    if !is_over.load(Ordering::Acquire) {
                        errand();
                    }
                }
            };
            threads.push(thread::Builder::new().name(format!("disk {number}")).spawn(work)?);
        }
        let (life, pause) = mpsc::channel();
        let errands = Errands { sender: Mutex::new(Some(sender)), life: Mutex::new(Some(life)), is_over };
        Ok((errands, Pause(pause), threads))
    }

    pub fn run(&self, errand: impl FnOnce() + Send + 'static) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            // One that finds no room is dropped here.
            let _ = sender.try_send(Box::new(errand));
        }
    }

    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.life.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn next(errands: &Mutex<Receiver<Errand>>) -> Option<Errand> {
    errands.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

impl Pause {
    /// Waits for so long; `false` once all is over.
    pub fn wait(&self, time: Duration) -> bool {
        self.0.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn what_waits_when_all_ends_is_not_done() {
        let (errands, pause, threads) = Errands::start().unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let [begun, may_end] = [(); 2].map(|()| Arc::new(Barrier::new(WORKERS + 1)));
        for _ in 0..WORKERS {
            let (begun, may_end, done) = (begun.clone(), may_end.clone(), done.clone());
            errands.run(move || {
                begun.wait();
                may_end.wait();
                done.fetch_add(1, Ordering::AcqRel);
            });
        }
        begun.wait();
        let waits = done.clone();
        errands.run(move || waits.store(100, Ordering::Release));
        errands.end();
        may_end.wait();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(done.load(Ordering::Acquire), WORKERS);
        assert!(!pause.wait(Duration::from_secs(60)));
    }
}
