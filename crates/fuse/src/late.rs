//! What asks for nodes that an earlier server gave to the kernel, and waits until their paths are in memory again.
//!
//! Right after a start not every path that was shown before is found at once: other nodes have to be reached first. So a
//! name is looked for again until it is found or its time is over.

use crate::loads::{Found, Loads};
use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// As many as reads may wait.
const WAITING_MAX: usize = 65_536;
/// Until a name that was not found is looked for again.
const RETRY: Duration = Duration::from_millis(200);

/// Is told that the path is in memory, or that its time is over.
type Tell = Box<dyn FnOnce() + Send>;

struct Waiting {
    name: Box<str>,
    until: Instant,
    not_before: Instant,
    tell: Tell,
}

#[derive(Default)]
pub struct Late(Mutex<Option<SyncSender<Waiting>>>);

impl Late {
    /// Looks for paths from now on.
    pub fn start(self: &Arc<Self>, loads: Arc<Loads>) -> io::Result<JoinHandle<()>> {
        let (sender, waiting) = mpsc::sync_channel(WAITING_MAX);
        *self.sender() = Some(sender);
        let late = self.clone();
        thread::Builder::new().name("late".into()).spawn(move || late.work(&loads, &waiting))
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, Option<SyncSender<Waiting>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wait(&self, name: Box<str>, patience: Duration, tell: impl FnOnce() + Send + 'static) {
        let now = Instant::now();
        self.push(Waiting { name, until: now + patience, not_before: now, tell: Box::new(tell) });
    }

    /// What finds no room, or nobody who looks for it, is dropped, which answers it with an error.
    fn push(&self, waiting: Waiting) {
        if let Some(sender) = &*self.sender() {
            let _ = sender.try_send(waiting);
        }
    }

    pub fn end(&self) {
        drop(self.sender().take());
    }

    fn work(self: Arc<Self>, loads: &Loads, waiting: &Receiver<Waiting>) {
        while let Ok(next) = waiting.recv() {
            thread::sleep(next.not_before.saturating_duration_since(Instant::now()));
            let late = self.clone();
            let Waiting { name, until, tell, .. } = next;
            let asked = name.clone();
            let found = move |found: Found| match found {
                Found::Path(_) => tell(),
                _ if Instant::now() >= until => tell(),
                Found::Nothing | Found::NoRoom | Found::Failed => {
                    late.push(Waiting { name, until, not_before: Instant::now() + RETRY, tell });
                }
            };
            loads.look_up(&asked, Box::new(found));
        }
    }
}
