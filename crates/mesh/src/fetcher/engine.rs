//! Feeds events to the one [`Transfer`] and carries out what it says.
//!
//! Actions are carried out under the lock that they were decided under, so in the order of the decisions; none of them
//! waits.

use super::error::{AskError, Dropped};
use super::flight::Flight;
use super::request::{self, Asked};
use crate::dial::Dial;
use crate::links::short;
use shoal_grid::transfer::{Action, Failure, Fault, FetchId, Outcome, RequestId, Time, Transfer, Wanted};
use shoal_store::{Error as StoreError, Store};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::Urgency;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// Batches of some more than [`shoal_store::ARRIVALS_LEN_MAX`] that wait to be written, of all requests: 64 MiB.
const BATCHES_MAX: usize = 64;

/// How chunks of a fetch ended.
#[derive(Debug)]
pub enum Brought {
    All,
    Failed(Failure),
    /// They could not be stored here.
    Store(StoreError),
}

pub struct Engine {
    me: Weak<Engine>,
    pub store: Store,
    pub dial: Arc<dyn Dial>,
    began: Instant,
    state: Mutex<State>,
    /// Frames that are verified at a time: one on each core.
    pub verifying: Arc<Semaphore>,
    /// Batches of what came that are not written yet, of all requests.
    pub batches: Arc<Semaphore>,
    /// How often something was stored or ended.
    news: Mutex<u64>,
    told: Condvar,
}

#[derive(Default)]
struct State {
    transfer: Transfer,
    is_ticking: bool,
    fetches: HashMap<FetchId, (Arc<Flight>, oneshot::Sender<Brought>)>,
    fetches_begun: FetchId,
    /// Dropped, they end.
    requests: HashMap<RequestId, oneshot::Sender<()>>,
}

impl Engine {
    pub fn new(store: Store, dial: Arc<dyn Dial>) -> Arc<Engine> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Arc::new_cyclic(|me| Engine {
            me: me.clone(),
            store,
            dial,
            began: Instant::now(),
            state: Mutex::default(),
            verifying: Arc::new(Semaphore::new(cores)),
            batches: Arc::new(Semaphore::new(BATCHES_MAX)),
            news: Mutex::default(),
            told: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        self.began.elapsed().as_millis() as Time
    }

    /// Begins to bring chunks; how it ends is told once.
    pub fn bring(&self, flight: &Arc<Flight>, wanted: Wanted) -> oneshot::Receiver<Brought> {
        let (tell, told) = oneshot::channel();
        let mut state = self.state();
        state.fetches_begun += 1;
        let id = state.fetches_begun;
        if !flight.begins(id) {
            return told;
        }
        state.fetches.insert(id, (flight.clone(), tell));
        let actions = state.transfer.begin(self.now(), id, wanted);
        self.carry_out(&mut state, actions, "");
        told
    }

    /// Nobody waits for it any more.
    pub fn withdraw(&self, fetch: FetchId) {
        let mut state = self.state();
        state.fetches.remove(&fetch);
        let actions = state.transfer.withdraw(self.now(), fetch);
        self.carry_out(&mut state, actions, "");
    }

    pub fn add_holders(&self, fetch: FetchId, holders: &[NodeKey]) {
        let mut state = self.state();
        let actions = state.transfer.add_holders(self.now(), fetch, holders);
        self.carry_out(&mut state, actions, "");
    }

    pub fn hurry(&self, fetch: FetchId, urgency: Urgency) {
        let mut state = self.state();
        let actions = state.transfer.hurry(self.now(), fetch, urgency);
        self.carry_out(&mut state, actions, "");
    }

    /// Somebody reads the NAR from now on.
    pub fn read(&self, fetch: FetchId, chunks: impl Iterator<Item = [u8; 32]>) {
        self.state().transfer.read(fetch, chunks);
    }

    /// A peer lied elsewhere.
    pub fn accuse(&self, peer: NodeKey, why: &str) {
        let mut state = self.state();
        let actions = state.transfer.accuse(self.now(), peer, Fault::Lied);
        self.carry_out(&mut state, actions, why);
    }

    /// The peer of a request is not silent, or it is not the peer that is waited for.
    pub fn heard(&self, request: RequestId) {
        self.state().transfer.heard(self.now(), request);
    }

    /// What became of the next chunks of a request.
    pub fn settle(&self, request: RequestId, outcomes: &[Outcome]) {
        let mut state = self.state();
        let actions = state.transfer.settle(self.now(), request, outcomes);
        self.carry_out(&mut state, actions, "");
        drop(state);
        self.tell();
    }

    /// Chunks of a request that was cancelled are here nevertheless.
    pub fn found(&self, hashes: &[[u8; 32]]) {
        let mut state = self.state();
        let actions = state.transfer.found(self.now(), hashes);
        self.carry_out(&mut state, actions, "");
        drop(state);
        self.tell();
    }

    /// A request has ended.
    pub fn ended(&self, request: RequestId, fetch: FetchId, error: Option<AskError>) {
        let mut state = self.state();
        state.requests.remove(&request);
        let now = self.now();
        if let Some(AskError::Store(error)) = error {
            if let Some((_, tell)) = state.fetches.remove(&fetch) {
                // It may have been given up.
                let _ = tell.send(Brought::Store(error));
            }
            let actions = state.transfer.withdraw(now, fetch);
            self.carry_out(&mut state, actions, "");
            let actions = state.transfer.ended(now, request, None);
            return self.carry_out(&mut state, actions, "");
        }
        let why = error.as_ref().map(ToString::to_string).unwrap_or_default();
        let actions = state.transfer.ended(now, request, error.and_then(|error| error.fault()));
        self.carry_out(&mut state, actions, &why);
    }

    /// `why` is told with peers that are dropped.
    fn carry_out(&self, state: &mut State, actions: Vec<Action>, why: &str) {
        for action in actions {
            match action {
                Action::Ask { request, fetch, peer, urgency, chunks } => {
                    let Some((flight, _)) = state.fetches.get(&fetch) else { continue };
                    let Some(engine) = self.me.upgrade() else { continue };
                    let asked = Asked { request, fetch, peer, urgency, chunks, flight: flight.clone() };
                    let (cancel, cancelled) = oneshot::channel();
                    state.requests.insert(request, cancel);
                    tokio::spawn(request::run(engine, asked, cancelled));
                }
                Action::Cancel { request } => _ = state.requests.remove(&request),
                Action::Dropped { fetch, peer, fault } => {
                    if let Some((flight, _)) = state.fetches.get(&fetch) {
                        let why = if why.is_empty() { reason(fault) } else { why };
                        // Who lies is cut off by the caller, who says so.
                        if fault != Fault::Lied {
                            tracing::info!(peer = short(&peer), why, "a peer is asked for nothing more of a path");
                        }
                        flight.dropped(Dropped { peer, fault, why: why.to_owned() });
                    }
                }
                Action::Done { fetch } => self.end(state, fetch, Brought::All),
                Action::Failed { fetch, why } => self.end(state, fetch, Brought::Failed(why)),
            }
        }
        if !state.is_ticking && state.transfer.next_tick(self.now()).is_some() {
            state.is_ticking = true;
            tokio::spawn(tick(self.me.clone()));
        }
    }

    fn end(&self, state: &mut State, fetch: FetchId, brought: Brought) {
        if let Some((flight, tell)) = state.fetches.remove(&fetch) {
            flight.ends();
            // It may have been given up.
            let _ = tell.send(brought);
        }
    }

    /// One look at the time; how long until the next, if there is to be one.
    fn tick(&self) -> Option<Duration> {
        let mut state = self.state();
        let now = self.now();
        let actions = state.transfer.tick(now);
        self.carry_out(&mut state, actions, "");
        let next = state.transfer.next_tick(now);
        state.is_ticking = next.is_some();
        next.map(|next| Duration::from_millis(next.saturating_sub(now)))
    }

    /// Wakes those who wait for something to be stored, or to end.
    pub fn tell(&self) {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.told.notify_all();
    }

    /// Waits, as a blocking thread, until `look` finds something; it is asked again after all news.
    pub fn wait_for<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = look() {
                return found;
            }
            news = self.told.wait(news).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn reason(fault: Fault) -> &'static str {
    match fault {
        Fault::Unreachable => "it cannot be reached",
        Fault::Silent => "it sent nothing for too long",
        Fault::Broke => "its streams broke again and again",
        Fault::Lied => "it lied to another fetch",
    }
}

async fn tick(engine: Weak<Engine>) {
    loop {
        let Some(wait) = engine.upgrade().and_then(|engine| engine.tick()) else { return };
        tokio::time::sleep(wait).await;
    }
}
