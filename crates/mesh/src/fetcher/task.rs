//! The steps of one fetch.

use super::asking::ask_whole;
use super::engine::Brought;
use super::error::{AskError, Dropped, FetchFailure};
use super::flight::Flight;
use super::leftovers::KEPT_TIME;
use super::{Inner, Urgency};
use shoal_grid::transfer::{Failure, Fault, Wanted};
use shoal_store::{AssembleError, ChunkHold, Error as StoreError, Ingested, ReceivedManifest};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::Ask;
use shoal_wire::mesh::manifest::{ChunkRef, ContentRoot};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

/// After so long without the manifest the next holder is asked for it too.
const STAGGER: Duration = Duration::from_millis(300);
/// How often a busy holder is asked for a manifest, and the first wait between; each is twice the one before.
const BUSY_ASKS: u32 = 6;
const BUSY_WAIT: Duration = Duration::from_millis(50);
/// How often a fetch that waits for its place looks whether it became more urgent.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often chunks are brought that were found damaged since they were here.
const ROUNDS_MAX: u32 = 3;

pub async fn fly(fetcher: Arc<Inner>, flight: Arc<Flight>) {
    fetcher.leftovers.expire();
    let outcome = run(&fetcher, &flight).await;
    if let (Err(_), Some(hold)) = (&outcome, flight.hold()) {
        fetcher.leftovers.keep(hold.clone());
        let fetcher = Arc::downgrade(&fetcher);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT_TIME + Duration::from_secs(1)).await;
            fetcher.upgrade().inspect(|fetcher| fetcher.leftovers.expire());
        });
    }
    flight.finish(outcome);
}

async fn run(fetcher: &Arc<Inner>, flight: &Arc<Flight>) -> Result<Ingested, FetchFailure> {
    let _place = place(fetcher, flight).await?;
    let received = Arc::new(manifest(fetcher, flight).await?);
    flight.set_manifest(received.clone());
    for _ in 0..ROUNDS_MAX {
        let missing = missing(fetcher, flight, &received).await?;
        if !missing.is_empty() {
            bring(fetcher, flight, missing).await?;
        }
        match assemble(fetcher, flight, received.clone()).await? {
            Some(ingested) => return Ok(ingested),
            // Damage was found meanwhile.
            None => continue,
        }
    }
    Err(FetchFailure::Unstable)
}

/// Waits for a place among those that are fetched at a time.
async fn place(fetcher: &Inner, flight: &Flight) -> Result<OwnedSemaphorePermit, FetchFailure> {
    let stopped = |_| FetchFailure::Stopped;
    while flight.urgency() == Urgency::Replication {
        // Somebody may come to wait for it.
        if let Ok(place) = timeout(LOOK_AGAIN, fetcher.replication_places.clone().acquire_owned()).await {
            return place.map_err(stopped);
        }
    }
    fetcher.places.clone().acquire_owned().await.map_err(stopped)
}

/// Runs where it may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchFailure> {
    spawn_blocking(work).await.map_err(|_| FetchFailure::Stopped)
}

/// The manifest, from here or from the first holder that has it.
pub async fn manifest(fetcher: &Arc<Inner>, flight: &Arc<Flight>) -> Result<ReceivedManifest, FetchFailure> {
    let (root, nar_size) = (flight.record.content_root, flight.record.nar_size);
    let store = fetcher.store.clone();
    // One that is damaged here is asked for.
    if let Ok(Some(kept)) = blocking(move || store.kept_manifest(root, nar_size)).await? {
        return Ok(kept);
    }
    let (mut asks, mut asked) = (JoinSet::new(), HashSet::new());
    loop {
        let more = flight.holders().into_iter().find(|holder| !asked.contains(holder));
        match more {
            Some(holder) => {
                asked.insert(holder);
                asks.spawn(ask_manifest(fetcher.clone(), holder, root, nar_size));
            }
            None if asks.is_empty() => return Err(FetchFailure::NoHolder),
            None => {}
        }
        tokio::select! {
            Some(answer) = asks.join_next() => match answer {
                Ok((_, Ok(Some(received)))) => return Ok(received),
                Ok((_, Err(AskError::Store(error)))) => return Err(error.into()),
                Ok((holder, Err(error))) => refuse(fetcher, flight, holder, &error),
                // It does not have it; it may have chunks.
                Ok((_, Ok(None))) | Err(_) => {}
            },
            () = tokio::time::sleep(STAGGER) => {}
        }
    }
}

fn refuse(fetcher: &Inner, flight: &Flight, peer: NodeKey, error: &AskError) {
    let Some(fault) = error.fault() else { return };
    let why = error.to_string();
    if fault == Fault::Lied {
        fetcher.engine.accuse(peer, &why);
    }
    flight.dropped(Dropped { peer, fault, why });
}

async fn ask_manifest(
    fetcher: Arc<Inner>,
    holder: NodeKey,
    root: ContentRoot,
    nar_size: u64,
) -> (NodeKey, Result<Option<ReceivedManifest>, AskError>) {
    let mut wait = BUSY_WAIT;
    for _ in 1..BUSY_ASKS {
        match try_manifest(&fetcher, holder, root, nar_size).await {
            Err(AskError::Busy) => tokio::time::sleep(wait).await,
            answer => return (holder, answer),
        }
        wait *= 2;
    }
    (holder, try_manifest(&fetcher, holder, root, nar_size).await)
}

async fn try_manifest(
    fetcher: &Inner,
    holder: NodeKey,
    root: ContentRoot,
    nar_size: u64,
) -> Result<Option<ReceivedManifest>, AskError> {
    let parts = ask_whole(&*fetcher.dial, holder, &Ask::Manifest(root)).await?;
    let Some(packed) = parts.into_iter().next().flatten() else { return Ok(None) };
    let store = fetcher.store.clone();
    let opened = spawn_blocking(move || ReceivedManifest::open(&store, root, nar_size, packed)).await;
    match opened {
        Ok(Ok(received)) => Ok(Some(received)),
        Ok(Err(shoal_store::ManifestRefused::Store(error))) => Err(AskError::Store(error)),
        Ok(Err(refused)) => Err(AskError::Lied(refused.to_string())),
        Err(_) => Ok(None),
    }
}

/// Chunks that are not here, each once, in order. All are held from now on.
async fn missing(
    fetcher: &Arc<Inner>,
    flight: &Arc<Flight>,
    received: &Arc<ReceivedManifest>,
) -> Result<Vec<ChunkRef>, FetchFailure> {
    let (store, received, held) = (fetcher.store.clone(), received.clone(), flight.hold().cloned());
    let (hold, missing) = blocking(move || {
        let chunks = &received.manifest().chunks;
        let hashes: Vec<[u8; 32]> = chunks.iter().map(|chunk| chunk.hash).collect();
        let (hold, lacking) = match held {
            Some(hold) => {
                let lacking = hold.missing(&hashes);
                (hold, lacking)
            }
            None => {
                let mut hold: ChunkHold = store.hold_chunks();
                let lacking = hold.lacks(&hashes)?;
                (Arc::new(hold), lacking)
            }
        };
        let mut seen = HashSet::new();
        let missing = chunks.iter().zip(lacking).filter(|(chunk, lacking)| *lacking && seen.insert(chunk.hash));
        Ok::<_, StoreError>((hold, missing.map(|(chunk, _)| *chunk).collect::<Vec<_>>()))
    })
    .await??;
    flight.set_hold(hold, missing.iter().map(|chunk| u64::from(chunk.len)).sum());
    Ok(missing)
}

async fn bring(fetcher: &Arc<Inner>, flight: &Arc<Flight>, chunks: Vec<ChunkRef>) -> Result<(), FetchFailure> {
    let wanted = Wanted { chunks, holders: flight.holders(), urgency: flight.urgency(), is_read: flight.is_read() };
    match fetcher.engine.bring(flight, wanted).await {
        Ok(Brought::All) => Ok(()),
        Ok(Brought::Failed(Failure::NoHolder)) => Err(FetchFailure::NoHolder),
        Ok(Brought::Failed(Failure::Absent(_))) => Err(FetchFailure::Absent),
        Ok(Brought::Store(error)) => Err(error.into()),
        Err(_) => Err(FetchFailure::Stopped),
    }
}

/// The NAR, if all of it is still here.
async fn assemble(
    fetcher: &Arc<Inner>,
    flight: &Arc<Flight>,
    received: Arc<ReceivedManifest>,
) -> Result<Option<Ingested>, FetchFailure> {
    let (store, nar_hash, checks_nar) = (fetcher.store.clone(), flight.record.nar_hash, flight.checks_nar);
    let Some(hold) = flight.hold().cloned() else { return Ok(None) };
    blocking(move || {
        let ingested = match hold.assemble(&received, nar_hash) {
            Ok(ingested) => ingested,
            Err(AssembleError::Lacks(_)) => return Ok(None),
            Err(AssembleError::Store(error)) => return Err(error.into()),
        };
        match checks_nar && store.nar_hash(&ingested)? != nar_hash {
            true => Err(FetchFailure::NarHash),
            false => Ok(Some(ingested)),
        }
    })
    .await?
}
