//! Makes batches valid on a thread of its own, in order, while the next batch comes in.

use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use shoal_store::{CommitError, Store};

use super::Entry;

pub struct Committer {
    /// Holds no batch: handing one over waits until the one before is done.
    batches: SyncSender<Vec<Entry>>,
    thread: JoinHandle<Result<(), CommitError>>,
}

impl Committer {
    pub fn start(store: Store) -> io::Result<Committer> {
        let (batches, received) = mpsc::sync_channel(0);
        let run = move || commit_all(&store, &received);
        let thread = thread::Builder::new().name("commit".into()).spawn(run)?;
        Ok(Committer { batches, thread })
    }

    /// Hands over a batch once the batch before is valid. False when one failed: [`Self::finish`] says why.
    pub fn submit(&self, batch: Vec<Entry>) -> bool {
        self.batches.send(batch).is_ok()
    }

    /// Commits the last batch and waits for all.
    pub fn finish(self, last: Vec<Entry>) -> Result<(), CommitError> {
        if !last.is_empty() {
            self.submit(last);
        }
        drop(self.batches);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn commit_all(store: &Store, batches: &Receiver<Vec<Entry>>) -> Result<(), CommitError> {
    batches.iter().try_for_each(|batch| store.commit(batch))
}
