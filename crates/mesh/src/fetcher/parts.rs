//! Parts of paths, for who reads a path that is not here: its manifest, and then the chunks that are read.
//!
//! What came stays for as long as its [`ChunkHold`] lives, and nothing is committed: a path of which only parts are here
//! is not valid here.

use super::engine::{Brought, Engine};
use super::error::{FetchError, FetchFailure};
use super::flight::Flight;
use super::{Fetcher, Want, task};
use shoal_grid::transfer::{Failure, Wanted};
use shoal_store::{ChunkHold, Error as StoreError, ReceivedManifest};
use shoal_wire::mesh::manifest::ChunkRef;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// Some chunks of a path, all of which are here.
pub struct Part {
    pub hold: Arc<ChunkHold>,
    /// How many of them came from others, and the bytes of their frames.
    pub moved_chunks: u64,
    pub moved_bytes: u64,
}

/// Withdraws what was begun and is not wanted any more.
struct Begun<'a> {
    engine: &'a Engine,
    flight: &'a Flight,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(fetch) = self.flight.give_up() {
            self.engine.withdraw(fetch);
        }
    }
}

impl Fetcher {
    /// The manifest of a path, from here or from a holder, compared with the content root of its record.
    pub async fn manifest(&self, want: Want) -> Result<ReceivedManifest, FetchError> {
        let flight = Arc::new(Flight::new(self.0.engine.clone(), want));
        let manifest = task::manifest(&self.0, &flight).await;
        manifest.map_err(|failure| FetchError { failure, dropped: flight.all_dropped() })
    }

    /// Brings chunks of a path here, those that are not. One that others fetch too is asked for once.
    pub async fn bring(&self, want: Want, chunks: Vec<ChunkRef>) -> Result<Part, FetchError> {
        let flight = Arc::new(Flight::new(self.0.engine.clone(), want));
        let part = self.bring_to(&flight, chunks).await;
        part.map_err(|failure| FetchError { failure, dropped: flight.all_dropped() })
    }

    async fn bring_to(&self, flight: &Arc<Flight>, chunks: Vec<ChunkRef>) -> Result<Part, FetchFailure> {
        let store = self.0.store.clone();
        let held = spawn_blocking(move || {
            let mut hold = store.hold_chunks();
            let hashes: Vec<[u8; 32]> = chunks.iter().map(|chunk| chunk.hash).collect();
            let lacking = hold.lacks(&hashes)?;
            let mut seen = HashSet::new();
            let missing = chunks.into_iter().zip(lacking).filter(|(chunk, lacks)| *lacks && seen.insert(chunk.hash));
            Ok::<_, StoreError>((Arc::new(hold), missing.map(|(chunk, _)| chunk).collect::<Vec<_>>()))
        });
        let (hold, missing) = held.await.map_err(|_| FetchFailure::Stopped)??;
        let moved_chunks = missing.len() as u64;
        if !missing.is_empty() {
            flight.set_hold(hold.clone(), missing.iter().map(|chunk| u64::from(chunk.len)).sum());
            let wanted =
                Wanted { chunks: missing, holders: flight.holders(), urgency: flight.urgency(), is_read: false };
            let _begun = Begun { engine: &self.0.engine, flight };
            match self.0.engine.bring(flight, wanted).await {
                Ok(Brought::All) => {}
                Ok(Brought::Failed(Failure::NoHolder)) => return Err(FetchFailure::NoHolder),
                Ok(Brought::Failed(Failure::Absent(_))) => return Err(FetchFailure::Absent),
                Ok(Brought::Store(error)) => return Err(error.into()),
                Err(_) => return Err(FetchFailure::Stopped),
            }
        }
        Ok(Part { hold, moved_chunks, moved_bytes: flight.progress().moved_bytes })
    }
}
