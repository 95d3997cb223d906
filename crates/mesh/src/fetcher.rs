//! Brings paths from other members into the store: record, manifest, then the chunks that are missing, from all holders at
//! once.
//!
//! What is asked of whom is decided by [`shoal_grid::transfer`]; this carries it over connections and into the store.
//! Invariants:
//! - nothing is stored that was not compared with its name, and nothing is committed here: the caller does, when
//!   everything that the path refers to is valid;
//! - a path that several want is one fetch, and a chunk that several fetches want is asked for once;
//! - who lies is asked nothing more, and the caller is told;
//! - a fetch that fails, or that nobody waits for any more, leaves its chunks for the next one that wants them, for
//!   [`leftovers::KEPT_TIME`].

mod asking;
mod engine;
mod error;
mod flight;
mod leftovers;
mod nar_reader;
mod parts;
mod request;
mod task;
mod writer;

pub use asking::Realised;
pub use error::{AskError, Dropped, FetchError, FetchFailure};
pub use flight::{Fetched, Fetching, Progress};
pub use nar_reader::NarReader;
pub use parts::Part;
pub use shoal_grid::transfer::Fault;
pub use shoal_wire::mesh::chunks::Urgency;

use crate::dial::Dial;
use engine::Engine;
use flight::Interest;
use leftovers::Leftovers;
use shoal_store::Store;
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::path_record::PathRecord;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Semaphore;

/// Paths that are fetched at a time; others wait. Each has its manifest in memory.
const FETCHES_MAX: usize = 128;
/// Of these, those that only make another copy.
const REPLICATIONS_MAX: usize = 16;

/// A path that is wanted here.
#[derive(Debug, Clone)]
pub struct Want {
    /// As a live member sealed it; its author answers for it.
    pub record: PathRecord,
    /// Who may have it, the author or others; at least one.
    pub holders: Vec<NodeKey>,
    pub urgency: Urgency,
    /// Whether the NAR's SHA-256 is computed and compared, although the author answers for it: see
    /// [`shoal_store::ChunkHold::assemble`].
    pub checks_nar: bool,
}

/// Cheap to clone. Everything it does runs on the tokio runtime that calls it.
#[derive(Clone)]
pub struct Fetcher(Arc<Inner>);

struct Inner {
    store: Store,
    dial: Arc<dyn Dial>,
    engine: Arc<Engine>,
    flights: Mutex<HashMap<FlightKey, Weak<Interest>>>,
    leftovers: Leftovers,
    places: Arc<Semaphore>,
    replication_places: Arc<Semaphore>,
}

/// What fetches are one fetch by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FlightKey {
    content_root: [u8; 32],
    nar_hash: [u8; 32],
    checks_nar: bool,
}

impl Fetcher {
    pub fn new(store: Store, dial: Arc<dyn Dial>) -> Fetcher {
        Fetcher(Arc::new(Inner {
            engine: Engine::new(store.clone(), dial.clone()),
            store,
            dial,
            flights: Mutex::default(),
            leftovers: Leftovers::default(),
            places: Arc::new(Semaphore::new(FETCHES_MAX)),
            replication_places: Arc::new(Semaphore::new(REPLICATIONS_MAX)),
        }))
    }

    /// Begins to fetch a path, or joins the fetch that goes on. Must be called within a tokio runtime; does not wait.
    /// When the last [`Fetching`] and the last reader of it are dropped, it stops.
    pub fn begin(&self, want: Want) -> Fetching {
        let record = &want.record;
        let key =
            FlightKey { content_root: record.content_root, nar_hash: record.nar_hash, checks_nar: want.checks_nar };
        let mut flights = self.0.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interest) = flights.get(&key).and_then(Weak::upgrade).filter(|interest| interest.is_of_use()) {
            drop(flights);
            interest.join(&want);
            return Fetching::new(interest);
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let interest = Interest::begin(&self.0, want);
        flights.insert(key, Arc::downgrade(&interest));
        Fetching::new(interest)
    }

    /// Fetches a path and waits for it.
    pub async fn fetch(&self, want: Want) -> Result<Fetched, FetchError> {
        self.begin(want).wait().await
    }
}

#[cfg(test)]
#[path = "fetcher_tests.rs"]
mod tests;
