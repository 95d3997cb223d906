//! Threads that wait for a disk in place of those that answer the kernel.

use std::io;
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
}

/// Pauses that are over when all is.
pub struct Pause(Receiver<()>);

impl Errands {
    pub fn start() -> io::Result<(Errands, Pause, Vec<JoinHandle<()>>)> {
        let (sender, errands) = mpsc::sync_channel::<Errand>(WAITING_MAX);
        let errands = Arc::new(Mutex::new(errands));
        let mut threads = Vec::new();
        for number in 0..WORKERS {
            let errands = errands.clone();
            let work = move || {
                while let Some(errand) = next(&errands) {
                    errand();
                }
            };
            threads.push(thread::Builder::new().name(format!("disk {number}")).spawn(work)?);
        }
        let (life, pause) = mpsc::channel();
        Ok((Errands { sender: Mutex::new(Some(sender)), life: Mutex::new(Some(life)) }, Pause(pause), threads))
    }

    pub fn run(&self, errand: impl FnOnce() + Send + 'static) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*sender {
            // One that finds no room is dropped here.
            let _ = sender.try_send(Box::new(errand));
        }
    }

    pub fn end(&self) {
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
