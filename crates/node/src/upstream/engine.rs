//! Fetches paths: `shoal_grid::fetches` decides which and when, this file downloads and commits.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shoal_grid::fetches::{Action, Fetches, Wanted};
use shoal_mesh::fetcher::Urgency;
use shoal_store::{CommitError, Ingested, Store};
use shoal_wire::nix::path_info::PathInfo;
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use tokio::sync::Semaphore;

use super::BUILD_BUDGET;
use super::asks::{Asks, Query, Tried};
use super::claims::{Claim, Turn};
use super::closure::Closure;
use super::flight::Flight;
use super::offer::{CacheFile, Offer, Source};
use super::pool::Pool;
use super::source::Trouble;
use super::web::Refusal;
use crate::session::ca_check::CaHasher;
use crate::session::fault::Fault;
use crate::session::uploads::intake::{Intake, Taken};

/// NARs downloaded at once: enough to fill a line with small ones; each takes a decoder's memory.
const DOWNLOADS_MAX: usize = 8;
/// Clients of the binary cache that wait for an upstream's answer, each on a thread. Nix asks for 25 paths at once.
const TURNS_MAX: usize = 256;
/// Clients of the binary cache that wait until a path is here with all it refers to, each on a thread.
const FETCH_TURNS_MAX: usize = 32;
/// To find another upstream after one failed.
const RETRY_BUDGET: Duration = Duration::from_secs(10);

pub struct Engine {
    pub store: Store,
    pub dir: StoreDir,
    pub asks: Arc<Asks>,
    /// Turns of those who wait for an answer on a thread of the runtime.
    pub turns: Arc<Semaphore>,
    /// The same of those who wait for a path.
    pub fetch_turns: Arc<Semaphore>,
    pool: Pool,
    state: Mutex<State>,
    settled: Condvar,
}

struct State {
    fetches: Fetches<StorePath>,
    flights: HashMap<StorePath, Arc<Flight>>,
    /// What has been downloaded and waits for what it refers to.
    held: HashMap<StorePath, Held>,
}

/// A NAR that is what was offered, before its path is valid.
struct Held {
    info: PathInfo,
    ingested: Ingested,
    /// Of a derivation that a cache gave, to be checked: its contents, if it is a plain file. One that another node has
    /// was checked there.
    text: Option<Option<Vec<u8>>>,
}

impl Engine {
    pub fn new(store: Store, dir: StoreDir, asks: Arc<Asks>) -> Engine {
        let state = State { fetches: Fetches::new(DOWNLOADS_MAX), flights: HashMap::new(), held: HashMap::new() };
        // A thread that ends one download may be given the next before it is free itself.
        let pool = Pool::new("fetch", DOWNLOADS_MAX, 2 * DOWNLOADS_MAX);
        let [turns, fetch_turns] = [TURNS_MAX, FETCH_TURNS_MAX].map(|turns| Arc::new(Semaphore::new(turns)));
        Engine { store, dir, asks, turns, fetch_turns, pool, state: Mutex::new(state), settled: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where tapes of flights go.
    pub fn tmp(&self) -> PathBuf {
        self.store.dir().join("tmp")
    }

    /// The path, if it is on its way.
    pub fn flight(&self, path: &StorePath) -> Option<Arc<Flight>> {
        self.lock().flights.get(path).cloned()
    }

    /// Paths being downloaded, and those that wait for it.
    pub fn counts(&self) -> (usize, usize) {
        self.lock().fetches.counts()
    }

    /// Begins to fetch what is not on its way yet. `streamed` can be read while it comes in.
    pub fn fetch(self: &Arc<Self>, closure: &Closure, urgency: Urgency, streamed: Option<&StorePath>) -> Fetch {
        let mut wanted = closure.wanted();
        // Somebody waits for its first byte; the order of downloads is free.
        if let Some(at) = wanted.iter().position(|wanted| Some(&wanted.key) == streamed) {
            wanted[..=at].rotate_right(1);
        }
        let mut state = self.lock();
        let mut flights = Vec::with_capacity(wanted.len());
        for path in wanted.iter().map(|wanted| &wanted.key) {
            let Some(offer) = closure.offers.get(path) else { continue };
            let flight = state.flights.entry(path.clone()).or_insert_with(|| {
                let dir = (Some(path) == streamed).then(|| self.tmp());
                Arc::new(Flight::new(offer.clone(), self.store.temp_roots(), urgency, dir.as_deref()))
            });
            flight.hurry(urgency);
            flights.push(flight.clone());
        }
        let actions = state.fetches.want(wanted);
        drop(state);
        self.carry_out(actions);
        Fetch { engine: self.clone(), flights, detached: false }
    }

    fn carry_out(self: &Arc<Self>, mut actions: Vec<Action<StorePath>>) {
        while !actions.is_empty() {
            let mut ready = Vec::new();
            let mut next = Vec::new();
            for action in actions {
                match action {
                    Action::Download(path) => next.extend(self.begin_download(path)),
                    Action::Commit(path) => ready.push(path),
                    Action::Settled { key, is_valid } => self.settle(&key, is_valid),
                }
            }
            next.extend(self.commit(ready));
            actions = next;
        }
    }

    fn begin_download(self: &Arc<Self>, path: StorePath) -> Vec<Action<StorePath>> {
        let (engine, key) = (self.clone(), path.clone());
        let submitted = self.pool.submit(move || {
            let actions = engine.download(&key);
            engine.carry_out(actions);
        });
        match submitted {
            true => Vec::new(),
            false => self.download_failed(&path, "this node has no thread to fetch it with".into()),
        }
    }

    /// Runs on a thread of the pool.
    fn download(self: &Arc<Self>, path: &StorePath) -> Vec<Action<StorePath>> {
        let Some(flight) = self.flight(path) else { return self.lock().fetches.failed(path) };
        match self.store.is_valid(path) {
            // It came in by another way meanwhile.
            Ok(true) => return self.lock().fetches.downloaded(path),
            Ok(false) => {}
            Err(error) => return self.download_failed(path, error.to_string()),
        }
        match self.download_from_any(&flight) {
            Ok(held) => {
                flight.verified();
                if flight.brings_references {
                    self.bring_references(&held.info, flight.urgency());
                }
                let mut state = self.lock();
                state.held.insert(path.clone(), held);
                state.fetches.downloaded(path)
            }
            Err(why) => self.download_failed(path, why),
        }
    }

    /// Begins to fetch what a path refers to. Of one that is fetched for a reader this is not looked for before, because
    /// it waits. What is not to be had is found out when the path is committed.
    fn bring_references(self: &Arc<Self>, info: &PathInfo, urgency: Urgency) {
        let mut references = info.references.clone();
        references.remove(&info.path);
        match Closure::find(&self.store, &self.asks, &references, BUILD_BUDGET) {
            Ok(closure) if !closure.is_empty() => {
                let references = closure.offers.keys().filter(|path| references.contains(path)).cloned().collect();
                self.fetch(&closure, urgency, None).detach();
                let actions = self.lock().fetches.want(vec![Wanted { key: info.path.clone(), references }]);
                self.carry_out(actions);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(path = info.path.base_name(), error = format!("{error:#}"), "cannot look for references")
            }
        }
    }

    fn download_failed(&self, path: &StorePath, why: String) -> Vec<Action<StorePath>> {
        tracing::warn!(path = path.base_name(), why, "a path could not be fetched from upstream");
        let mut state = self.lock();
        if let Some(flight) = state.flights.get(path) {
            flight.settle(Err(why));
        }
        state.fetches.failed(path)
    }

    /// Tries one source after the other: other nodes, then caches.
    fn download_from_any(&self, flight: &Flight) -> Result<Held, String> {
        let mut offer = flight.offer.clone();
        let mut tried = Tried::default();
        loop {
            flight.begin(&offer);
            let (from, why) = match &offer.source {
                Source::Mesh(held) => match self.asks.neighbours.fetch(held, flight, false) {
                    Ok(ingested) => return Ok(self.held(&offer.info, ingested, None)),
                    Err(why) => {
                        tried.holders.extend(held.holders.iter().copied());
                        // Owners may know only of one that is gone and not dead yet.
                        if let Some(other) = self.asks.neighbours.search(&flight.path, &tried.holders) {
                            offer = Arc::new(Offer::of_member(other));
                            continue;
                        }
                        tried.mesh = true;
                        ("other nodes".to_string(), why)
                    }
                },
                Source::Cache(file) => match self.asks.take_turn(&flight.path) {
                    Turn::Theirs(theirs) if !tried.mesh => {
                        offer = theirs;
                        continue;
                    }
                    turn => match self.download_from(flight, &offer.info, file, turn) {
                        Ok(held) => return Ok(held),
                        Err(Trouble::Here(why)) => return Err(why),
                        Err(Trouble::Upstream(refusal)) => self.note_failure(flight, file, refusal, &mut tried),
                    },
                },
            };
            let why = format!("cannot fetch '{}' from {from}: {why}", self.dir.print(&flight.path));
            tracing::info!(path = flight.path.base_name(), why, "an upstream did not deliver");
            let query = [Query::Path(&flight.path)];
            offer = self.asks.find(&query, RETRY_BUDGET, &tried).pop().flatten().ok_or(why)?;
        }
    }

    /// Who did not deliver, and why.
    fn note_failure(&self, flight: &Flight, file: &CacheFile, refusal: Refusal, tried: &mut Tried) -> (String, String) {
        let why = match refusal {
            Refusal::Missing => "it is gone".to_string(),
            Refusal::Failed(why) => {
                self.asks.failed(file.upstream, &why);
                why
            }
        };
        self.asks.caches[file.upstream].fetched.failed.fetch_add(1, Ordering::Relaxed);
        self.asks.withdraw(&flight.path, file.upstream);
        tried.caches.insert(file.upstream);
        (format!("'{}'", self.asks.caches[file.upstream].base()), why)
    }

    fn download_from(&self, flight: &Flight, info: &PathInfo, file: &CacheFile, turn: Turn) -> Result<Held, Trouble> {
        let cache = &self.asks.caches[file.upstream];
        let mut claim = if let Turn::Mine(claim) = turn { Some(claim) } else { None };
        let full = self.dir.print(&info.path);
        let theirs = |why: String| Trouble::Upstream(Refusal::Failed(why));
        let itself = info.references.contains(&info.path).then_some(&info.path);
        let ca = info.ca.map(|ca| CaHasher::new(ca.method_algo(), itself));
        let mut intake = Intake::new(&self.store, ca, info.path.is_derivation());
        cache.read(&info.path, file, info.nar_size, flight.file_bytes.clone(), |bytes| {
            claim.iter_mut().for_each(Claim::renew);
            intake.write_all(bytes).map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => theirs(format!("what it sends is no NAR: {error}")),
                _ => Trouble::Here(error.to_string()),
            })?;
            flight.record(bytes);
            Ok(())
        })?;
        let Taken { ingested, ca, text } = intake.finish(&full).map_err(|fault| theirs(fault_text(fault)))?;
        let checked = self.asks.admission.check_contents(info, &ingested, ca);
        checked.map_err(|fault| theirs(fault_text(fault)))?;
        cache.count_fetched(flight.file_bytes.load(Ordering::Relaxed));
        if let Some(claim) = claim {
            claim.fulfil();
        }
        let text = info.path.is_derivation().then_some(text);
        Ok(self.held(info, ingested, text))
    }

    fn held(&self, info: &PathInfo, ingested: Ingested, text: Option<Option<Vec<u8>>>) -> Held {
        let mut info = info.clone();
        info.ultimate = false;
        info.registration_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Held { info, ingested, text }
    }

    /// Makes paths valid; all they refer to is.
    fn commit(&self, ready: Vec<StorePath>) -> Vec<Action<StorePath>> {
        let (mut actions, mut batch, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        for path in ready {
            let held = self.lock().held.remove(&path);
            match held.map(|held| self.judge(held)) {
                Some(Ok(entry)) => {
                    batch.push(entry);
                    paths.push(path);
                }
                // Nothing is held of a path that was valid before its download began.
                None => actions.extend(self.lock().fetches.committed(&path)),
                Some(Err(fault)) => actions.extend(self.download_failed(&path, fault_text(fault))),
            }
        }
        let refused = self.commit_batch(batch);
        for path in paths {
            actions.extend(match refused.get(&path) {
                None => self.lock().fetches.committed(&path),
                Some(why) => self.download_failed(&path, why.clone()),
            });
        }
        actions
    }

    /// Makes valid what can be: of a path that refers to what is nowhere, the others of its batch know nothing. Those
    /// that could not be, with the reason. Each round has fewer paths than the one before.
    fn commit_batch(&self, mut batch: Vec<(PathInfo, Ingested)>) -> HashMap<StorePath, String> {
        let mut refused = HashMap::new();
        while !batch.is_empty() {
            match self.store.commit(batch.clone()) {
                Ok(()) => break,
                Err(CommitError::Reference { path, reference }) if batch.iter().any(|(info, _)| info.path == path) => {
                    batch.retain(|(info, _)| info.path != path);
                    let reference = self.dir.print(&reference);
                    refused.insert(path, format!("it refers to '{reference}', which no upstream gave"));
                }
                Err(error) => {
                    refused.extend(batch.drain(..).map(|(info, _)| (info.path, error.to_string())));
                }
            }
        }
        refused
    }

    /// A derivation is checked when all it depends on is here.
    fn judge(&self, held: Held) -> Result<(PathInfo, Ingested), Fault> {
        let Held { info, ingested, text } = held;
        if let Some(text) = text {
            self.asks.admission.check_derivation(&info, text, &[])?;
        }
        Ok((info, ingested))
    }

    fn settle(&self, path: &StorePath, is_valid: bool) {
        let mut state = self.lock();
        state.held.remove(path);
        if let Some(flight) = state.flights.remove(path) {
            flight.settle(match is_valid {
                true => Ok(()),
                false => Err("something it refers to could not be fetched".into()),
            });
        }
        drop(state);
        self.settled.notify_all();
    }
}

/// Somebody's interest in paths that are being fetched. Dropping it gives up what was not begun.
pub struct Fetch {
    engine: Arc<Engine>,
    pub flights: Vec<Arc<Flight>>,
    detached: bool,
}

impl Fetch {
    pub fn is_done(&self) -> bool {
        self.flights.iter().all(|flight| flight.settled().is_some())
    }

    /// Waits until everything is settled, at most `patience`; whether it is.
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.engine.lock();
        loop {
            if self.is_done() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.engine.settled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes [`Fetch::wait`] look again, from another thread.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let engine = self.engine.clone();
        move || engine.settled.notify_all()
    }

    /// Goes on to the end without anybody.
    pub fn detach(mut self) {
        self.detached = true;
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        let mut state = self.engine.lock();
        for flight in self.flights.iter().filter(|flight| flight.settled().is_none()) {
            state.fetches.withdraw(&flight.path);
        }
        let State { fetches, flights, .. } = &mut *state;
        flights.retain(|path, flight| {
            let kept = fetches.contains(path);
            if !kept {
                flight.settle(Err("nobody wants it any more".into()));
            }
            kept
        });
    }
}

pub(super) fn fault_text(fault: Fault) -> String {
    match fault {
        Fault::Refused(text) | Fault::Fatal(text) => text,
        Fault::Gone => "it broke off".into(),
    }
}
