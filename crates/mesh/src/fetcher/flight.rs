//! One path on its way here, and the handles of those who wait for it.

use super::engine::Engine;
use super::error::{Dropped, FetchError, FetchFailure};
use super::nar_reader::NarReader;
use super::{Inner, Want, task};
use shoal_grid::transfer::FetchId;
use shoal_store::{ChunkHold, Ingested, ReceivedManifest, Result as StoreResult, Verified};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::Urgency;
use shoal_wire::mesh::path_record::PathRecord;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A path that is here and can be committed, once what it refers to is valid.
#[derive(Clone)]
pub struct Fetched {
    pub ingested: Ingested,
    /// Bytes of frames that moved for it; less than its size where chunks were here, or compress.
    pub moved_bytes: u64,
    /// Whom nothing more was asked of meanwhile.
    pub dropped: Vec<Dropped>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    pub nar_bytes: u64,
    /// Bytes of chunks that were not here when it began; 0 before the manifest is here.
    pub missing_bytes: u64,
    /// Bytes of frames that came.
    pub moved_bytes: u64,
}

type Outcome = Option<Result<Fetched, FetchError>>;

/// What is known of a path on its way.
pub struct Flight {
    pub record: PathRecord,
    pub checks_nar: bool,
    engine: Arc<Engine>,
    manifest: OnceLock<Arc<ReceivedManifest>>,
    hold: OnceLock<Arc<ChunkHold>>,
    state: Mutex<State>,
    missing_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    outcome: watch::Sender<Outcome>,
}

struct State {
    /// While its chunks are being brought.
    fetch: Option<FetchId>,
    holders: BTreeSet<NodeKey>,
    urgency: Urgency,
    is_read: bool,
    /// Nobody waits for it any more.
    is_given_up: bool,
    dropped: Vec<Dropped>,
}

impl Flight {
    pub(super) fn new(engine: Arc<Engine>, want: Want) -> Flight {
        let state = State {
            fetch: None,
            holders: want.holders.into_iter().collect(),
            urgency: want.urgency,
            is_read: false,
            is_given_up: false,
            dropped: Vec::new(),
        };
        Flight {
            record: want.record,
            checks_nar: want.checks_nar,
            engine,
            manifest: OnceLock::new(),
            hold: OnceLock::new(),
            state: Mutex::new(state),
            missing_bytes: AtomicU64::new(0),
            moved_bytes: AtomicU64::new(0),
            outcome: watch::Sender::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its chunks begin to be brought; whether anybody still waits for them.
    pub fn begins(&self, fetch: FetchId) -> bool {
        let mut state = self.state();
        state.fetch = (!state.is_given_up).then_some(fetch);
        state.fetch.is_some()
    }

    /// Its chunks are brought no more.
    pub fn ends(&self) {
        self.state().fetch = None;
    }

    /// Nobody waits for it any more; what is being brought of it, to be withdrawn.
    pub fn give_up(&self) -> Option<FetchId> {
        let mut state = self.state();
        state.is_given_up = true;
        state.fetch.take()
    }

    pub fn holders(&self) -> Vec<NodeKey> {
        self.state().holders.iter().copied().collect()
    }

    pub fn urgency(&self) -> Urgency {
        self.state().urgency
    }

    pub fn is_read(&self) -> bool {
        self.state().is_read
    }

    /// A peer is asked nothing more.
    pub fn dropped(&self, dropped: Dropped) {
        let mut state = self.state();
        state.holders.remove(&dropped.peer);
        state.dropped.push(dropped);
    }

    pub fn all_dropped(&self) -> Vec<Dropped> {
        self.state().dropped.clone()
    }

    pub fn set_manifest(&self, manifest: Arc<ReceivedManifest>) {
        // Set once, by its task.
        let _ = self.manifest.set(manifest);
        self.engine.tell();
    }

    pub fn manifest(&self) -> Option<&Arc<ReceivedManifest>> {
        self.manifest.get()
    }

    /// Holds all its chunks from now on; `missing_bytes` of them are not here.
    pub fn set_hold(&self, hold: Arc<ChunkHold>, missing_bytes: u64) {
        self.missing_bytes.store(missing_bytes, Ordering::Relaxed);
        // Set once, by its task.
        let _ = self.hold.set(hold);
        self.engine.tell();
    }

    pub fn hold(&self) -> Option<&Arc<ChunkHold>> {
        self.hold.get()
    }

    /// Writes frames that are right.
    pub fn keep(&self, verified: Verified) -> StoreResult<()> {
        match self.hold() {
            Some(hold) => hold.keep(verified),
            None => Ok(()),
        }
    }

    pub fn moved(&self, bytes: u64) {
        self.moved_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn progress(&self) -> Progress {
        Progress {
            nar_bytes: self.record.nar_size,
            missing_bytes: self.missing_bytes.load(Ordering::Relaxed),
            moved_bytes: self.moved_bytes.load(Ordering::Relaxed),
        }
    }

    pub fn finish(&self, outcome: Result<Ingested, FetchFailure>) {
        let dropped = self.all_dropped();
        let moved_bytes = self.moved_bytes.load(Ordering::Relaxed);
        let outcome = match outcome {
            Ok(ingested) => Ok(Fetched { ingested, moved_bytes, dropped }),
            Err(failure) => Err(FetchError { failure, dropped }),
        };
        self.outcome.send_replace(Some(outcome));
        self.engine.tell();
    }

    /// Why it failed, or that it did not.
    pub fn ended(&self) -> Option<Result<(), FetchError>> {
        self.outcome.borrow().as_ref().map(|outcome| outcome.as_ref().map(|_| ()).map_err(Clone::clone))
    }
}

/// Keeps a flight going; the last to let go stops it.
pub struct Interest {
    pub flight: Arc<Flight>,
    pub engine: Arc<Engine>,
    fetcher: Arc<Inner>,
    task: AbortHandle,
}

impl Interest {
    pub(super) fn begin(fetcher: &Arc<Inner>, want: Want) -> Arc<Interest> {
        let flight = Arc::new(Flight::new(fetcher.engine.clone(), want));
        let task = tokio::spawn(task::fly(fetcher.clone(), flight.clone())).abort_handle();
        Arc::new(Interest { flight, engine: fetcher.engine.clone(), fetcher: fetcher.clone(), task })
    }

    /// Whether somebody else who wants the path may wait for this.
    pub fn is_of_use(&self) -> bool {
        match &*self.flight.outcome.borrow() {
            None => true,
            Some(Ok(fetched)) => fetched.ingested.is_here(),
            Some(Err(_)) => false,
        }
    }

    /// Somebody else wants it too.
    pub fn join(&self, want: &Want) {
        self.add_holders(&want.holders);
        let fetch = {
            let mut state = self.flight.state();
            state.urgency = state.urgency.min(want.urgency);
            state.fetch
        };
        if let Some(fetch) = fetch {
            self.engine.hurry(fetch, want.urgency);
        }
    }

    fn add_holders(&self, holders: &[NodeKey]) {
        let (fetch, new) = {
            let mut state = self.flight.state();
            // Who was dropped stays so.
            let is_new = |holder: &&NodeKey| !state.dropped.iter().any(|dropped| dropped.peer == **holder);
            let new: Vec<NodeKey> = holders.iter().filter(is_new).copied().collect();
            state.holders.extend(&new);
            (state.fetch, new)
        };
        if let Some(fetch) = fetch {
            self.engine.add_holders(fetch, &new);
        }
    }

    fn begin_reading(&self) {
        let fetch = {
            let mut state = self.flight.state();
            state.is_read = true;
            state.fetch
        };
        if let (Some(fetch), Some(received)) = (fetch, self.flight.manifest()) {
            self.engine.read(fetch, received.manifest().chunks.iter().map(|chunk| chunk.hash));
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        if self.flight.ended().is_some() {
            return;
        }
        self.task.abort();
        // The engine locks flights while it is locked itself, so never the other way round.
        let fetch = self.flight.give_up();
        if let Some(fetch) = fetch {
            self.engine.withdraw(fetch);
        }
        if let Some(hold) = self.flight.hold() {
            self.fetcher.leftovers.keep(hold.clone());
        }
        self.flight.finish(Err(FetchFailure::Stopped));
    }
}

/// Waits for a path. Dropped when nobody else waits for it or reads it, it stops the fetch.
#[derive(Clone)]
pub struct Fetching(Arc<Interest>);

impl Fetching {
    pub(super) fn new(interest: Arc<Interest>) -> Fetching {
        Fetching(interest)
    }

    /// Waits for the end. All who wait for one fetch get the same.
    pub async fn wait(&self) -> Result<Fetched, FetchError> {
        let mut outcome = self.0.flight.outcome.subscribe();
        let stopped = || FetchError { failure: FetchFailure::Stopped, dropped: Vec::new() };
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(stopped())),
            Err(_) => Err(stopped()),
        }
    }

    /// More who may have it. Those that were dropped are not asked again.
    pub fn add_holders(&self, holders: &[NodeKey]) {
        self.0.add_holders(holders);
    }

    /// The NAR from its beginning, while it comes in. What a reader needs next is asked for first from now on.
    pub fn reader(&self) -> NarReader {
        self.0.begin_reading();
        NarReader::new(self.0.clone())
    }

    pub fn progress(&self) -> Progress {
        self.0.flight.progress()
    }

    /// Whom nothing more is asked of until now.
    pub fn dropped(&self) -> Vec<Dropped> {
        self.0.flight.all_dropped()
    }
}
